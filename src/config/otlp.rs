//! The values of `[otel]` that the environment may give as well: where telemetry is sent, and how much of it.

use std::sync::Arc;

use http::Uri;

use crate::toml_reader::{InvalidValue, ValueKind};

/// The base URL of a receiver of OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint {
    /// Without a `/` at its end.
    base: String,
    /// Whether the scheme is https.
    pub tls: bool,
    /// Whether its host is this machine.
    pub is_local: bool,
}

impl OtlpEndpoint {
    /// Reads the URL.
    ///
    /// # Errors
    /// It is invalid; the error says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        const ADVICE: &str = "write the receiver's base URL, such as \"http://127.0.0.1:4318\"";
        if text.contains(['@', '?', '#']) {
            let help = "write only scheme, host, port and path: what proves who makegate is belongs in headers_file or headers_env";
            return Err(InvalidValue::new("the URL contains a user, a query or a fragment", help).secret());
        }
        let wrong = |why: &str| InvalidValue::quoting(text, why, ADVICE);
        let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(wrong("begins neither with http:// nor with https://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("has no host"))?;
        let port = uri.authority().and_then(|whole| whole.as_str().strip_prefix(host)?.strip_prefix(':'));
        if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
            return Err(wrong("does not have a port from 1 to 65535"));
        }
        if uri.path().ends_with("/v1/traces") || uri.path().ends_with("/v1/metrics") {
            return Err(wrong("has the path of one signal, which makegate adds itself"));
        }
        let is_local = super::units::is_loopback(host.trim_matches(['[', ']']));
        Ok(Self { base: text.trim_end_matches('/').to_owned(), tls, is_local })
    }

    /// The URL for one signal: `traces` or `metrics`.
    ///
    /// # Errors
    /// None that [`Self::parse`] would not have found.
    pub fn of_signal(&self, signal: &str) -> Result<Uri, http::uri::InvalidUri> {
        format!("{}/v1/{signal}", self.base).parse()
    }
}

/// The part of all traces that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledShare {
    /// Of 2^63 equally likely numbers, those below this one.
    threshold: u64,
}

impl SampledShare {
    /// Every trace.
    pub const ALL: Self = Self { threshold: 1 << 63 };
    /// None.
    pub const NONE: Self = Self { threshold: 0 };

    /// This fraction of all traces, from 0 to 1.
    #[must_use]
    pub fn of_fraction(fraction: f64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 2^63")]
        (0.0..=1.0).contains(&fraction).then_some(Self { threshold: (fraction * (1_u64 << 63) as f64) as u64 })
    }

    /// Is this trace among them? All who ask the same way about one trace agree, as OpenTelemetry's libraries do.
    #[must_use]
    pub const fn includes(self, random_half: u64) -> bool {
        random_half >> 1 < self.threshold
    }
}

pub(super) const ENDPOINT: ValueKind<OtlpEndpoint> =
    ValueKind::text("a URL", "\"http://127.0.0.1:4318\"", OtlpEndpoint::parse);

pub(super) const SHARE: ValueKind<SampledShare> = ValueKind::text("a percentage", "\"10%\"", |text| {
    let wrong =
        || InvalidValue::quoting(text, "is not a percentage", "write \"0%\" to \"100%\", such as \"10%\" or \"0.5%\"");
    let number = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let percent = number.and_then(|digits| digits.parse::<f64>().ok()).ok_or_else(wrong)?;
    SampledShare::of_fraction(percent / 100.0).ok_or_else(wrong)
});

pub(super) const SERVICE: ValueKind<Arc<str>> = ValueKind::text("a name", "\"makegate\"", |text| {
    let is_name = (1..=128).contains(&text.len()) && text.chars().all(|one| !one.is_control());
    let help = "write 1 to 128 characters, such as \"makegate\"";
    is_name.then(|| text.into()).ok_or_else(|| InvalidValue::quoting(text, "is not a service's name", help))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_url() {
        let url = |text: &str| OtlpEndpoint::parse(text).unwrap().of_signal("traces").unwrap().to_string();
        assert_eq!(url("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(url("https://otlp.example.org/"), "https://otlp.example.org/v1/traces");
        assert_eq!(url("https://otlp.example.org/otlp/"), "https://otlp.example.org/otlp/v1/traces");
        assert!(OtlpEndpoint::parse("http://[::1]:4318").unwrap().is_local);
        assert!(!OtlpEndpoint::parse("http://collector:4318").unwrap().is_local);
        for wrong in [
            "", "collector:4318", "grpc://a", "http://", "http://a:0", "http://a:x", "http://u:p@a",
            "http://a/v1/traces",
        ] {
            OtlpEndpoint::parse(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_share_includes_that_part_of_all_traces() {
        let share = |text| (SHARE.parse)(text).unwrap();
        assert_eq!((share("100%"), share("0%")), (SampledShare::ALL, SampledShare::NONE));
        assert!(share("100%").includes(u64::MAX) && !share("0%").includes(0));
        assert!(share("50%").includes(u64::MAX / 2 - 1) && !share("50%").includes(u64::MAX / 2 + 2));
        for wrong in ["", "%", "1", "101%", "-1%", "nan%", "1e1%", "1.2.3%"] {
            (SHARE.parse)(wrong).unwrap_err();
        }
    }
}
