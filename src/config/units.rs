//! Parsers for durations, sizes, rates, addresses and URLs, each with advice on what to write instead.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo};

use super::{BaseUrl, Expiry, Listen, QuotaSetting, Rate};
use crate::ids::{KeyHash, is_invisible};
use crate::toml_reader::{InvalidValue, TomlForm, ValueKind, looks_like_a_secret};

/// The longest duration accepted.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A duration above zero.
pub(super) const DURATION: ValueKind<Duration> = ValueKind::text("a duration", "\"5m\"", |text| duration(text, false));

/// A duration, or `0s` for "off".
pub(super) const DURATION_OR_OFF: ValueKind<Duration> =
    ValueKind::text("a duration", "\"5m\"", |text| duration(text, true));

fn duration(text: &str, may_be_off: bool) -> Result<Duration, InvalidValue> {
    const ADVICE: &str = "write a number and ms, s, m, h, d or w: \"500ms\", \"1h30m\", \"400d\"";
    let wrong = |why, help: &str| Err(InvalidValue::quoting(text, why, help));
    if let Ok(number) = text.parse::<u64>() {
        return wrong("has no unit", &format!("write \"{number}s\" for seconds"));
    }
    let Ok(span) = text.parse::<Span>() else { return wrong("is not a duration", ADVICE) };
    let Ok(signed) = span.to_duration(SpanRelativeTo::days_are_24_hours()) else {
        return wrong("has no fixed length", "write it in days, such as \"365d\"");
    };
    match Duration::try_from(signed) {
        Err(_) => wrong("is negative", ADVICE),
        Ok(Duration::ZERO) if !may_be_off => wrong("is too short", ADVICE),
        Ok(long) if long > DURATION_MAX => wrong("is too long", "write at most 100 years"),
        Ok(duration) => Ok(duration),
    }
}

/// A size in bytes, above 0.
pub(super) const fn size<T: TryFrom<u64>>() -> ValueKind<T> {
    ValueKind::text("a size", "\"64MiB\"", bytes)
}

const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

fn bytes<T: TryFrom<u64>>(text: &str) -> Result<T, InvalidValue> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let known = UNITS.iter().find(|(name, _)| *name == unit);
    let (Ok(number), Some((_, unit))) = (digits.parse::<u64>(), known) else {
        return Err(InvalidValue::quoting(text, "is not a size", size_advice(digits, unit)));
    };
    let size = number.checked_mul(*unit).and_then(|size| T::try_from(size).ok());
    match size {
        Some(_) if number == 0 => Err(InvalidValue::quoting(text, "is too small", "write at least \"1B\"")),
        Some(size) => Ok(size),
        None => Err(InvalidValue::quoting(text, "is too large", "write a smaller size")),
    }
}

fn size_advice(digits: &str, unit: &str) -> String {
    let first = unit.trim_start().chars().next().map(|c| c.to_ascii_uppercase());
    let meant = match first {
        _ if digits.is_empty() => None,
        None | Some('B') => Some("B"),
        Some('K') => Some("KiB"),
        Some('M') => Some("MiB"),
        Some('G') => Some("GiB"),
        Some(_) => None,
    };
    match meant {
        Some(unit) => format!("write \"{digits}{unit}\" (the units are B, KiB, MiB, GiB)"),
        None => "write a whole number and B, KiB, MiB or GiB: \"64MiB\"".to_owned(),
    }
}

/// A request rate.
pub(super) const RATE: ValueKind<Rate> = ValueKind::text("a rate", "\"600/min\"", rate);

const PERIODS: [(&str, Duration); 3] =
    [("s", Duration::from_secs(1)), ("min", Duration::from_mins(1)), ("h", Duration::from_hours(1))];

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = PERIODS.iter().find(|(_, per)| *per == self.per).map_or("h", |(name, _)| name);
        write!(f, "{}/{unit}", self.requests)
    }
}

fn rate(text: &str) -> Result<Rate, InvalidValue> {
    let wrong = || InvalidValue::quoting(text, "is not a rate", "write a number and /s, /min or /h: \"600/min\"");
    let too_fast = |help| InvalidValue::quoting(text, "is too fast", help);
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let (_, per) = PERIODS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let requests = match number.parse::<u64>().map(u32::try_from) {
        Ok(Ok(0)) => return Err(InvalidValue::quoting(text, "allows no requests", "write 1 or more")),
        Ok(Ok(requests)) => requests,
        Ok(Err(_)) => return Err(too_fast("write at most 4294967295")),
        Err(_) => return Err(wrong()),
    };
    if per.as_nanos() < u128::from(requests) {
        return Err(too_fast("write at most 1000000000/s: one request per nanosecond"));
    }
    Ok(Rate { requests, per })
}

/// The default burst: a tenth of a minute's requests, at least one.
pub(super) fn default_burst(rate: Rate) -> u32 {
    let per_minute = u128::from(rate.requests) * Duration::from_mins(1).as_nanos() / rate.per.as_nanos().max(1);
    u32::try_from(per_minute / 10).unwrap_or(u32::MAX).max(1)
}

/// `auto`, or requests per minute.
pub(super) const QUOTA: ValueKind<QuotaSetting> = ValueKind::text("a quota", "\"auto\"", |text| match rate(text) {
    _ if text == "auto" => Ok(QuotaSetting::Auto),
    Ok(Rate { requests, per }) if per == Duration::from_mins(1) => Ok(QuotaSetting::PerMinute(requests)),
    Ok(_) | Err(_) => {
        let help = "write \"auto\", or Make's limit per organization and minute: \"240/min\"";
        Err(InvalidValue::quoting(text, "is not a quota", help))
    }
});

/// An address to listen on; `PORT` is suggested where a port is missing.
pub(super) const fn listen<const PORT: u16>() -> ValueKind<Listen> {
    ValueKind::text("an address", "\"127.0.0.1:8080\"", parse_listen::<PORT>)
}

/// The path of a Unix socket must fit into `sockaddr_un`.
const SOCKET_PATH_BYTES_MAX: usize = 107;

fn parse_listen<const PORT: u16>(text: &str) -> Result<Listen, InvalidValue> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.len() {
            0 => Err(InvalidValue::new("unix: has no path", "write \"unix:/run/makegate.sock\"")),
            1..=SOCKET_PATH_BYTES_MAX => Ok(Listen::Unix(PathBuf::from(path))),
            _ => Err(InvalidValue::new("this path is too long for a Unix socket", "write a path of at most 107 bytes")),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen::Tcp(address));
    }
    let port = text.rsplit_once(':').map_or(text, |(_, port)| port);
    let help = match text.rsplit_once(':') {
        _ if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => format!("write \"[{text}]:{PORT}\", with a port"),
        _ if text.parse::<IpAddr>().is_ok() => format!("write \"{text}:{PORT}\", with a port"),
        _ if text.starts_with('/') => format!("write \"unix:{text}\" for a socket"),
        None | Some(("" | "localhost", _)) if port.parse::<u16>().is_ok() => {
            format!("write \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for all addresses")
        }
        None | Some(_) => "write an IP address and a port, or unix: and a path: \"127.0.0.1:8080\"".to_owned(),
    };
    Err(InvalidValue::quoting(text, "is not a valid listen address", help))
}

pub(super) const URL: ValueKind<BaseUrl> = ValueKind::text("a URL", "\"https://eu1.make.com\"", url);

fn url(text: &str) -> Result<BaseUrl, InvalidValue> {
    let example = "write only your zone's URL, such as \"https://eu1.make.com\"";
    let wrong = |why: &str| InvalidValue::quoting(text, why, example);
    if text.contains('@') {
        let help = "remove it: the token belongs in token_file or token_env";
        return Err(InvalidValue::new("the URL contains a user", help).secret());
    }
    let uri: http::Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        Some(_) | None => return Err(wrong("does not begin with https://")),
    };
    let (Some(authority), Some(host)) = (uri.authority(), uri.host().filter(|host| !host.is_empty())) else {
        return Err(wrong("has no host"));
    };
    if uri.path() != "/" || uri.query().is_some() || text.contains('#') {
        return Err(wrong("has a path, which makegate adds itself"));
    }
    let usual = if tls { 443 } else { 80 };
    let port = match authority.as_str().strip_prefix(host).unwrap_or_default().strip_prefix(':') {
        None => usual,
        // http::Uri treats an invalid port like a missing one.
        Some(port) => {
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("does not have a port from 1 to 65535"))?
        }
    };
    let host = host.to_ascii_lowercase();
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if !tls && !is_loopback(&bare) {
        let help = format!("write \"https://{}\": the token must not be sent unencrypted", authority.as_str());
        return Err(InvalidValue::new("http is allowed only for this machine", help));
    }
    let authority = if port == usual { host } else { format!("{host}:{port}") };
    Ok(BaseUrl { tls, host: bare, port, authority })
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) const PATH: ValueKind<PathBuf> = ValueKind::text("a path", "\"/run/secrets/make\"", |text| {
    if looks_like_a_secret(text) || text.contains('\n') {
        let help = "write it to a file that others cannot read, and write that file's path here: \"/run/secrets/make\"";
        return Err(InvalidValue::new("this looks like the secret itself", help).secret());
    }
    match text.is_empty() || text.contains('\0') {
        false => Ok(PathBuf::from(text)),
        true => Err(InvalidValue::quoting(text, "is not a path", "write a path, such as \"/run/secrets/make\"")),
    }
});

/// Whether the text consists only of ASCII letters, digits and these marks.
pub(super) fn is_plain(text: &str, marks: &[u8]) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(&byte))
}

pub(super) const VARIABLE: ValueKind<String> =
    ValueKind::text("the name of an environment variable", "\"MAKE_API_TOKEN\"", |text| {
        let is_name = is_plain(text, b"_") && text.starts_with(|c: char| !c.is_ascii_digit());
        let is_valid = is_name && !looks_like_a_secret(text);
        let help = "write the variable's name, not its value: letters, digits and _, such as \"MAKE_API_TOKEN\"";
        let wrong = || InvalidValue::new("this is not a valid name for an environment variable", help).secret();
        is_valid.then(|| text.to_owned()).ok_or_else(wrong)
    });

pub(super) const HOST: ValueKind<String> = ValueKind::text("a host name", "\"makegate.internal\"", |text| {
    let is_valid = is_plain(text, b"-.") && text.bytes().any(|byte| byte.is_ascii_alphanumeric());
    let help = "write only the name, without scheme or port: \"makegate.internal\"";
    let wrong = || InvalidValue::quoting(text, "is not a host name", help);
    is_valid.then(|| text.to_ascii_lowercase()).ok_or_else(wrong)
});

pub(super) const CALLER: ValueKind<Arc<str>> =
    ValueKind::text("a name", "\"finance-dashboard\"", |text| name(text, "is not a valid caller name"));

/// An operator's name: of the same form as a caller's.
pub(super) const OPERATOR: ValueKind<Arc<str>> =
    ValueKind::text("a name", "\"anna\"", |text| name(text, "is not a valid operator name"));

fn name(text: &str, wrong: &str) -> Result<Arc<str>, InvalidValue> {
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let is_valid = begins_well && is_plain(text, b"-._") && text.len() <= 64;
    let help = "write 1 to 64 letters, digits, dots, dashes and underscores, starting with a letter or digit: \"finance-dashboard\"";
    is_valid.then(|| Arc::from(text)).ok_or_else(|| InvalidValue::quoting(text, wrong, help))
}

pub(super) const KEY: ValueKind<KeyHash> = ValueKind::text("the SHA-256 of a key", "\"sha256:…\"", |text| {
    // Never quote the value: it may be the key itself.
    let wrong = |message, help| Err(InvalidValue::new(message, help).secret());
    match text.strip_prefix("sha256:").map(crate::hash::unhex32) {
        Some(Some(hash)) => Ok(hash),
        Some(None) => {
            wrong("this is not the SHA-256 of a key", "write what `makegate key new` prints: sha256: and 64 hex digits")
        }
        None => wrong(
            "write only the SHA-256 of a key here, never the key itself",
            "run `makegate key new --caller NAME` and write the sha256: line it prints; if this was a real key, stop using it",
        ),
    }
});

/// The mode of a Unix socket, in octal digits.
pub(super) const SOCKET_MODE: ValueKind<u32> = ValueKind::text("a mode in quotes", "\"660\"", |text| {
    const MODE_DIGITS_MAX: usize = 4;
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    let is_octal = text.len() <= MODE_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    let help = "write three octal digits: \"660\" (owner and group) or \"666\" (everybody)";
    mode.filter(|_| is_octal).ok_or_else(|| InvalidValue::quoting(text, "is not the mode of a socket", help))
});

/// A user or group, as a name or a number.
pub(super) const ACCOUNT: ValueKind<String> = ValueKind::text("a user or group", "\"makegate\"", |text| {
    let is_valid = !text.is_empty() && is_plain(text, b"-._$@");
    let wrong = || InvalidValue::quoting(text, "is not the name of a user or group", "write its name or its number");
    is_valid.then(|| text.to_owned()).ok_or_else(wrong)
});

/// A user id.
pub(super) const UID: ValueKind<u32> = ValueKind {
    form: TomlForm::Integer,
    what: "a user id",
    example: "1000",
    parse: |text| {
        // The last one means "nobody in particular" (chown).
        let uid = text.parse().ok().filter(|uid| *uid != u32::MAX);
        uid.ok_or_else(|| InvalidValue::new(format!("{text} is not a user id"), "write a number, as `id -u` prints it"))
    },
};

/// A claim of a token, as the token has it.
pub(super) const CLAIM: ValueKind<Arc<str>> = ValueKind::text("a claim", "\"makegate\"", |text| {
    const CLAIM_BYTES_MAX: usize = 1000;
    let is_valid = (1..=CLAIM_BYTES_MAX).contains(&text.len()) && !text.chars().any(is_invisible);
    let wrong = || InvalidValue::quoting(text, "is not a claim", "write it as the platform's tokens have it");
    is_valid.then(|| Arc::from(text)).ok_or_else(wrong)
});

/// Where an issuer's keys are.
pub(super) const JWKS_URL: ValueKind<http::Uri> =
    ValueKind::text("a URL", "\"https://issuer.example/jwks.json\"", |text| {
        let wrong = |why: &str| InvalidValue::quoting(text, why, "write the platform's jwks_uri: \"https://…\"");
        let uri: http::Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("has no host"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(
                InvalidValue::new("the URL contains a user", "remove it: public keys need no password").secret()
            );
        }
        match uri.scheme_str() {
            _ if text.contains('#') => Err(wrong("has a fragment")),
            Some("https") => Ok(uri),
            Some("http") if is_loopback(host.trim_matches(['[', ']'])) => Ok(uri),
            Some("http") => Err(wrong("is not encrypted: anybody on the way could replace the keys")),
            Some(_) | None => Err(wrong("does not begin with https://")),
        }
    });

/// The first moment at which something has expired. A date without a time includes that whole day (UTC).
pub(super) const EXPIRY: ValueKind<Expiry> = ValueKind::text("a date in quotes", "\"2027-01-31\"", |text| {
    const DATE_BYTES: usize = 10;
    let end_of_day = |date: Date| TimeZone::UTC.to_timestamp(date.tomorrow().ok()?.at(0, 0, 0, 0)).ok();
    let expiry = match text.len() {
        DATE_BYTES => text.parse().ok().and_then(end_of_day),
        _ => text.parse().ok(),
    };
    let help = "write the last day, such as \"2027-01-31\", or a time with its zone, such as \"2027-01-31T18:00:00Z\"";
    let expiry = expiry.map(|at| Expiry { at, written: text.into() });
    expiry.ok_or_else(|| InvalidValue::quoting(text, "is not a date", help))
});

/// A remark for operators.
pub(super) const NOTE: ValueKind<Arc<str>> = ValueKind::text("a note", "\"for CI\"", |text| {
    const NOTE_CHARS_MAX: usize = 200;
    let is_valid = (1..=NOTE_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(is_invisible);
    let wrong =
        || InvalidValue::new("this note is empty, too long or has control characters", "write 1 to 200 characters");
    is_valid.then(|| Arc::from(text)).ok_or_else(wrong)
});

/// A count from 1 to `MAX`.
pub(super) const fn count<T: TryFrom<u64>, const MAX: u64>() -> ValueKind<T> {
    let parse = |text: &str| {
        let given = text.parse::<u64>().ok().filter(|n| (1..=MAX).contains(n)).and_then(|n| T::try_from(n).ok());
        given.ok_or_else(|| InvalidValue::new(format!("{text} is out of range"), format!("write 1 to {MAX}")))
    };
    ValueKind { form: TomlForm::Integer, what: "an integer", example: "10", parse }
}

pub(super) const ORGANIZATION: ValueKind<u64> = ValueKind {
    form: TomlForm::Integer,
    what: "an organization id",
    example: "11",
    parse: |text| match text.parse() {
        Ok(0) | Err(_) => {
            Err(InvalidValue::new(format!("{text} is not an organization id"), "write an integer, such as 11"))
        }
        Ok(id) => Ok(id),
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_up_to_weeks() {
        let seconds = |text| duration(text, true).unwrap().as_secs_f64();
        let cases = [
            ("5m", 300.0),
            ("1h30m", 5400.0),
            ("400d", 34_560_000.0),
            ("2w", 1_209_600.0),
            ("500ms", 0.5),
            ("0s", 0.0),
        ];
        for (text, expected) in cases {
            assert!((seconds(text) - expected).abs() < 1e-9, "{text}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes::<u64>("64MiB").unwrap(), 64 << 20);
        assert_eq!(bytes::<usize>("8000B").unwrap(), 8000);
        assert!(bytes::<u32>("4GiB").is_err());
        for bad in ["", "MiB", "1.5MiB", "-1B", "1mib", "1MiB ", "²B"] {
            assert!(bytes::<u64>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_is_as_fast_as_one_a_nanosecond_and_its_burst_a_tenth_of_a_minute() {
        let cases = [("600/min", 60), ("10/s", 60), ("60/h", 1), ("5/min", 1), ("1000000000/min", 100_000_000)];
        for (text, burst) in cases {
            assert_eq!(default_burst(rate(text).unwrap()), burst, "{text}");
        }
        assert_eq!(default_burst(rate("1000000000/s").unwrap()), u32::MAX);
        for bad in ["0/min", "1000000001/s", "5000000000/min", "5", "/min", "-1/min", "1.5/s", "5 /min"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_base_url_is_a_scheme_and_a_host() {
        let of =
            |text| url(text).map(|url| (url.tls, url.host, url.port, url.authority)).map_err(|wrong| wrong.message);
        let of_make = (true, "eu1.make.com".to_owned(), 443, "eu1.make.com".to_owned());
        assert_eq!(of("https://EU1.make.com:443/").unwrap(), of_make);
        assert_eq!(of("http://[::1]:9100").unwrap(), (false, "::1".to_owned(), 9100, "[::1]:9100".to_owned()));
        assert_eq!(of("http://localhost").unwrap(), (false, "localhost".to_owned(), 80, "localhost".to_owned()));
        let bad = [
            "", "https://", "https:///x", "https://h:", "https://h:0", "https://h:70000", "https://h?q", "https://h#f",
            "http://127.0.0.1.example.com", "ftp://h", "//h", "https://u@h", "https://h/x",
        ];
        for bad in bad {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_is_shown_as_it_is_written() {
        assert_eq!(["5/s", "600/min", "7/h"].map(|text| rate(text).unwrap().to_string()), ["5/s", "600/min", "7/h"]);
    }

    #[test]
    fn an_address_is_ip_and_port_or_a_socket() {
        assert_eq!(parse_listen::<8080>("[::1]:80").unwrap(), Listen::Tcp("[::1]:80".parse().unwrap()));
        assert_eq!(parse_listen::<8080>("unix:/run/m.sock").unwrap(), Listen::Unix("/run/m.sock".into()));
        assert!(parse_listen::<8080>(&format!("unix:/{}", "x".repeat(107))).is_err());
    }
}
