//! Decides which upstream answers are stored and for how long (`docs/decisions/lifetimes.md`).

use std::time::Duration;

use http::header::{self, AsHeaderName, HeaderMap};
use http::{HeaderValue, StatusCode};

use super::directives;
use crate::catalogue::Freshness;

/// The configuration for storing an operation's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorePolicy {
    /// Whether the class or the upstream decides how long an answer is fresh.
    pub freshness: Freshness,
    /// The class's lifetime.
    pub lifetime: Duration,
    /// `[cache] stale_if_error`.
    pub stale_if_error: Duration,
    /// `[cache] negative`.
    pub negative: Duration,
}

/// How long an answer may be used, counted from when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// How long it is fresh.
    pub fresh: Duration,
    /// How much longer it may be used while the upstream fails.
    pub stale: Duration,
    /// Its age on arrival (`Age`).
    pub age: Duration,
    /// The upstream said not to store it, but the operation's row does not follow the upstream.
    pub overruled: bool,
}

/// How long this answer may be stored, if its body is complete. `headers` are the upstream's own. Returns `None` if
/// it must not be stored.
#[must_use]
pub fn storable(status: StatusCode, headers: &HeaderMap, policy: &StorePolicy) -> Option<Lifetime> {
    let (lifetime, stale) = match status {
        StatusCode::OK => (policy.lifetime, policy.stale_if_error),
        StatusCode::NOT_FOUND => (policy.negative.min(policy.lifetime), Duration::ZERO),
        _ => return None,
    };
    if !is_plain_json(headers) {
        return None;
    }
    let response_directives = ResponseDirectives::of(headers);
    let (fresh, stale) = match policy.freshness {
        Freshness::Configured => (lifetime, stale),
        Freshness::Upstream if response_directives.unstorable => return None,
        Freshness::Upstream => (
            lifetime.min(response_directives.fresh?),
            if response_directives.never_stale { Duration::ZERO } else { stale },
        ),
    };
    let age = age(headers);
    let is_usable = !fresh.is_zero() && age < fresh.saturating_add(stale);
    is_usable.then_some(Lifetime { fresh, stale, age, overruled: response_directives.unstorable })
}

/// Rejects an intermediary's HTML page, and encoded, partial or per-request answers.
fn is_plain_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let json = types.next().is_some_and(is_json) && types.next().is_none();
    let identity = headers.get_all(header::CONTENT_ENCODING).iter().all(|coding| {
        let coding = coding.as_bytes().trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    });
    let varies = headers.get_all(header::VARY).iter().any(|v| v.as_bytes().contains(&b'*'));
    json && identity && !varies && !headers.contains_key(header::CONTENT_RANGE)
}

fn is_json(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let suffix = essence.len().checked_sub(5).and_then(|at| essence.get(at..));
    essence.eq_ignore_ascii_case(b"application/json") || suffix.is_some_and(|s| s.eq_ignore_ascii_case(b"+json"))
}

/// The upstream's directives for storing its answer.
#[derive(Debug, Default)]
struct ResponseDirectives {
    unstorable: bool,
    never_stale: bool,
    fresh: Option<Duration>,
}

impl ResponseDirectives {
    /// Invalid and contradictory values count as the shortest (RFC 9111, section 4.2.1).
    fn of(headers: &HeaderMap) -> Self {
        let (mut response_directives, mut shared, mut max_age) = (Self::default(), None, None);
        directives::for_each(headers, header::CACHE_CONTROL, |name, value| {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("no-store") || is("private") || is("no-cache") {
                response_directives.unstorable = true;
            } else if is("must-revalidate") || is("proxy-revalidate") {
                response_directives.never_stale = true;
            } else if is("s-maxage") {
                // It implies proxy-revalidate (section 5.2.2.10).
                response_directives.never_stale = true;
                shared = shorter(shared, value);
            } else if is("max-age") {
                max_age = shorter(max_age, value);
            }
        });
        response_directives.fresh = shared.or(max_age).or_else(|| expires(headers));
        response_directives
    }
}

fn shorter(known: Option<Duration>, value: Option<&str>) -> Option<Duration> {
    let value = value.and_then(directives::seconds).unwrap_or_default();
    Some(known.map_or(value, |known| known.min(value)))
}

/// `Expires` minus `Date`, both the upstream's, so that a skewed clock does not matter. An invalid value counts as
/// expired.
fn expires(headers: &HeaderMap) -> Option<Duration> {
    if !headers.contains_key(header::EXPIRES) {
        return None;
    }
    let date = |name| httpdate::parse_http_date(single(headers, name)?).ok();
    let lifetime = || date(header::EXPIRES)?.duration_since(date(header::DATE)?).ok();
    Some(lifetime().unwrap_or_default())
}

fn single(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.to_str().ok()?;
    lines.next().is_none().then_some(first)
}

/// The first member of `Age`. Ignores anything but a number of seconds (RFC 9111, section 5.1).
fn age(headers: &HeaderMap) -> Duration {
    let first = headers.get(header::AGE).and_then(|value| value.to_str().ok()).and_then(|v| v.split(',').next());
    first.and_then(|age| directives::seconds(age.trim())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    const CONFIGURED: StorePolicy = StorePolicy {
        freshness: Freshness::Configured,
        lifetime: Duration::from_secs(300),
        stale_if_error: Duration::from_secs(3600),
        negative: Duration::ZERO,
    };
    const UPSTREAM: StorePolicy = StorePolicy { freshness: Freshness::Upstream, ..CONFIGURED };

    /// Response headers from lines, with `application/json` unless they say otherwise.
    fn headers(lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map.entry("content-type").or_insert(HeaderValue::from_static("application/json; charset=utf-8"));
        map
    }

    fn fresh(policy: &StorePolicy, lines: &[&str]) -> Option<u64> {
        storable(StatusCode::OK, &headers(lines), policy).map(|l| l.fresh.as_secs())
    }

    #[test]
    fn a_configured_row_lives_as_long_as_its_class() {
        for lines in [
            &[][..],
            &["cache-control: max-age=1"],
            &["cache-control: max-age=9999, immutable"],
            &["expires: 0", "pragma: no-cache"],
        ] {
            let expected = Lifetime {
                fresh: CONFIGURED.lifetime,
                stale: CONFIGURED.stale_if_error,
                age: Duration::ZERO,
                overruled: false,
            };
            assert_eq!(storable(StatusCode::OK, &headers(lines), &CONFIGURED), Some(expected), "{lines:?}");
        }
        let overruled = storable(StatusCode::OK, &headers(&["cache-control: no-store"]), &CONFIGURED).unwrap();
        assert!(overruled.overruled && overruled.fresh == CONFIGURED.lifetime);
        assert_eq!(
            storable(StatusCode::OK, &headers(&[]), &StorePolicy { lifetime: Duration::ZERO, ..CONFIGURED }),
            None
        );
    }

    #[test]
    fn only_whole_identity_json_200s_are_stored() {
        let ok = |lines: &[&str]| storable(StatusCode::OK, &headers(lines), &CONFIGURED).is_some();
        assert!(ok(&["content-type: Application/JSON"]) && ok(&["content-type: application/problem+json;x=y"]));
        assert!(ok(&["content-encoding: identity"]) && ok(&["vary: Accept-Encoding, Origin"]));
        assert!(!ok(&["content-type: text/html"]) && !ok(&["content-type: application/jsonp"]));
        assert!(!ok(&["content-type: application/json", "content-type: text/html"]));
        assert!(!ok(&["content-encoding: gzip"]) && !ok(&["vary: Accept", "vary: *"]) && !ok(&["vary: Accept, *"]));
        assert!(!ok(&["content-range: bytes 0-1/9"]));
        assert_eq!(storable(StatusCode::OK, &HeaderMap::new(), &CONFIGURED), None, "no content type");
        for status in (100..600).filter(|s| *s != 200) {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(storable(status, &headers(&[]), &CONFIGURED), None, "{status}");
        }
    }

    #[test]
    fn a_404_is_remembered_where_configured_and_never_stale() {
        let policy = StorePolicy { negative: Duration::from_secs(5), ..CONFIGURED };
        let kept = storable(StatusCode::NOT_FOUND, &headers(&[]), &policy).unwrap();
        assert_eq!((kept.fresh.as_secs(), kept.stale.as_secs()), (5, 0));
        assert_eq!(storable(StatusCode::GONE, &headers(&[]), &policy), None);
    }

    #[test]
    fn an_upstream_row_lives_as_long_as_the_smaller_of_both() {
        let of = |lines: &[&str]| fresh(&UPSTREAM, lines);
        assert_eq!(of(&[]), None, "silence");
        assert_eq!(of(&["cache-control: public"]), None);
        assert_eq!(of(&["cache-control: max-age=60"]), Some(60));
        assert_eq!(of(&["cache-control: MaX-aGe=\"60\""]), Some(60));
        assert_eq!(of(&["cache-control: max-age=99999999999"]), Some(300));
        assert_eq!(of(&["cache-control: max-age=1", "cache-control: s-maxage=90"]), Some(90));
        assert_eq!(of(&["cache-control: s-maxage=9, max-age=90"]), Some(9));
        assert_eq!(of(&["cache-control: x=\"max-age=100\", max-age=1"]), Some(1));
        assert_eq!(of(&["cache-control: max-age=1800, max-age=7"]), Some(7));
        for none in ["no-store", "private", "no-cache", "private=\"x-a, x-b\"", "No-Cache=\"set-cookie\""] {
            assert_eq!(of(&["cache-control: max-age=60", &format!("cache-control: {none}")]), None, "{none}");
        }
        for invalid in ["0", "'60'", "-60", "60a", "a60", "6.0", "", " 60"] {
            assert_eq!(of(&[&format!("cache-control: max-age={invalid}")]), None, "{invalid}");
        }
        assert_eq!(of(&["cache-control: max-age =60"]), None, "an unknown directive");
        assert_eq!(of(&["cache-control: max-age", "expires: Thu, 18 Aug 2050 02:01:18 GMT"]), None);
    }

    #[test]
    fn expires_counts_from_the_upstreams_date() {
        let date = "date: Thu, 18 Aug 2050 02:01:18 GMT";
        let of = |expires: &str| fresh(&UPSTREAM, &[date, &format!("expires: {expires}")]);
        assert_eq!(of("Thu, 18 Aug 2050 02:02:18 GMT"), Some(60));
        assert_eq!(of("Thu Aug 18 02:02:18 2050"), Some(60));
        for expired in ["Thu, 18 Aug 2050 02:01:18 GMT", "Thu, 18 Aug 2049 02:01:18 GMT", "0", "-1", "tomorrow"] {
            assert_eq!(of(expired), None, "{expired}");
        }
        let later = "expires: Thu, 18 Aug 2050 02:02:18 GMT";
        assert_eq!(fresh(&UPSTREAM, &[later]), None, "no Date to count from");
        assert_eq!(fresh(&UPSTREAM, &[date, later, later]), None);
        assert_eq!(fresh(&UPSTREAM, &[date, "expires: 0", "cache-control: max-age=60"]), Some(60));
    }

    #[test]
    fn revalidation_and_s_maxage_forbid_stale() {
        let stale = |cc: &str| {
            let lines = [&*format!("cache-control: {cc}")];
            storable(StatusCode::OK, &headers(&lines), &UPSTREAM).unwrap().stale.as_secs()
        };
        assert_eq!(stale("max-age=60"), 3600);
        for never in ["max-age=60, must-revalidate", "max-age=60, proxy-revalidate", "s-maxage=60"] {
            assert_eq!(stale(never), 0, "{never}");
        }
    }

    #[test]
    fn age_is_the_first_member_and_counts() {
        let of = |line: &str| storable(StatusCode::OK, &headers(&[line]), &CONFIGURED).map(|l| l.age.as_secs());
        assert_eq!(of("age: 200"), Some(200));
        assert_eq!(of("age: 200, 7"), Some(200));
        assert_eq!(of("age: 299999"), None, "expired on arrival");
        assert_eq!(of("age: 1800"), Some(1800), "stale on arrival, but useful when the upstream fails");
        for invalid in ["-1", "abc", "7.5", ""] {
            assert_eq!(of(&format!("age: {invalid}")), Some(0), "{invalid}");
        }
    }
}
