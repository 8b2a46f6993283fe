//! Decides whether to retry an attempt and what its ending proves: the table of `docs/decisions/retries.md`, as pure
//! functions.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::ending::Ending;
use crate::catalogue::RetryClass;
use crate::config::Limits;
use crate::vocabulary::Outcome;

/// Upper bound of the first pause; it doubles with each retry...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ...up to this.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is known about an attempt that has ended.
#[derive(Debug)]
pub struct EndedAttempt<'a> {
    /// The operation's retry class.
    pub class: RetryClass,
    /// Attempt number, starting at 1.
    pub number: u32,
    /// How it ended.
    pub ending: &'a Ending,
    /// Whether the token has changed since the attempt began.
    pub token_changed: bool,
    /// Time left until the deadline.
    pub left: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Make another attempt.
    Retry {
        /// Wait at least this long first.
        pause: Duration,
    },
    /// Make no further attempt.
    Stop,
}

/// Decides whether to retry. `random` returns a random number for the pause; `now` is needed for a `Retry-After` date.
pub(super) fn decide(
    attempted: &EndedAttempt<'_>,
    limits: &Limits,
    now: Timestamp,
    random: impl FnOnce() -> u64,
) -> RetryDecision {
    let most = match attempted.class {
        RetryClass::Safe | RetryClass::Idempotent => limits.attempts,
        RetryClass::Once => limits.attempts_once,
    };
    if attempted.number >= most {
        return RetryDecision::Stop;
    }
    let requested_pause = requested_pause(attempted.ending, now);
    let backoff = || backoff(attempted.number, random());
    let pause = match plan(attempted.ending, attempted.class) {
        RetryPlan::Stop => None,
        RetryPlan::Backoff => Some(requested_pause.unwrap_or(Duration::ZERO).max(backoff())),
        RetryPlan::AsRequested => requested_pause,
        RetryPlan::IfTokenChanged => attempted.token_changed.then_some(Duration::ZERO),
    };
    match pause.filter(|pause| *pause < attempted.left) {
        Some(pause) => RetryDecision::Retry { pause },
        None => RetryDecision::Stop,
    }
}

/// What a write's attempts did, judging by the last ending. `ambiguous_before`: whether an earlier attempt was
/// [`ambiguous`].
#[must_use]
pub fn effect(class: RetryClass, ambiguous_before: bool, last: &Ending) -> Outcome {
    let unless_ambiguous = |effect| if ambiguous_before { Outcome::InDoubt } else { effect };
    match row(last) {
        RetryRow::Done | RetryRow::DoneButCut => Outcome::Done,
        RetryRow::Unsent => unless_ambiguous(Outcome::NotSent),
        RetryRow::TooMany | RetryRow::TokenRefused | RetryRow::Rejected => unless_ambiguous(Outcome::Rejected),
        RetryRow::Missing => match class {
            // An earlier attempt deleted it, so the goal is reached.
            RetryClass::Idempotent if ambiguous_before => Outcome::Done,
            RetryClass::Safe | RetryClass::Idempotent | RetryClass::Once => unless_ambiguous(Outcome::Rejected),
        },
        RetryRow::Lost | RetryRow::TimedOut | RetryRow::Unsure | RetryRow::Failed | RetryRow::Redirected => {
            Outcome::InDoubt
        }
    }
}

/// Whether this ending leaves the effect unknown.
#[must_use]
pub fn ambiguous(ending: &Ending) -> bool {
    effect(RetryClass::Once, false, ending) == Outcome::InDoubt
}

/// Longest pause that `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Shortest: 0 and a past date would mean to send it again at once.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// The pause that `Retry-After` asks for, given in seconds or as a date in any of the three forms of HTTP (RFC 9110, section 5.6.7),
/// between a second and ten minutes.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        let now = Duration::from_millis(now.as_millisecond().try_into().unwrap_or(0));
        date.duration_since(SystemTime::UNIX_EPOCH + now).unwrap_or_default()
    };
    Some(asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
}

/// The rows of the table. The two HTTP/2 rows are missing because upstream connections speak only HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RetryRow {
    /// DNS, TCP, TLS, handed back.
    Unsent,
    /// The connection ended after hand-over.
    Lost,
    TimedOut,
    /// 429.
    TooMany,
    /// 408, 502, 503, 504.
    Unsure,
    /// 500, and 5xx without a row.
    Failed,
    /// 3xx.
    Redirected,
    /// 401.
    TokenRefused,
    /// 404 in Make's own words.
    Missing,
    /// Other 4xx, and a 404 of which nobody knows who said it.
    Rejected,
    /// 2xx whose body was cut.
    DoneButCut,
    /// 2xx.
    Done,
}

fn row(ending: &Ending) -> RetryRow {
    match ending {
        Ending::NotSent(_) | Ending::NoRoom { status: None, .. } => RetryRow::Unsent,
        Ending::Lost(_) | Ending::Unusable { status: None, .. } => RetryRow::Lost,
        Ending::TimedOut(_) => RetryRow::TimedOut,
        Ending::Cut { status, .. } if status.is_success() => RetryRow::DoneButCut,
        Ending::Answered(answered) if answered.status == StatusCode::NOT_FOUND && answered.is_from_make() => {
            RetryRow::Missing
        }
        Ending::Answered(answered) => status_row(answered.status),
        Ending::Cut { status, .. } | Ending::Leaked { status } => status_row(*status),
        Ending::Unusable { status: Some(status), .. } | Ending::NoRoom { status: Some(status), .. } => {
            status_row(*status)
        }
    }
}

fn status_row(status: StatusCode) -> RetryRow {
    match status.as_u16() {
        200..=299 => RetryRow::Done,
        300..=399 => RetryRow::Redirected,
        401 => RetryRow::TokenRefused,
        429 => RetryRow::TooMany,
        408 | 502 | 503 | 504 => RetryRow::Unsure,
        400..=499 => RetryRow::Rejected,
        // A status outside the valid range proves nothing.
        0..=199 | 500..=u16::MAX => RetryRow::Failed,
    }
}

enum RetryPlan {
    Stop,
    Backoff,
    AsRequested,
    IfTokenChanged,
}

fn plan(ending: &Ending, class: RetryClass) -> RetryPlan {
    match ending {
        // The same response would come again. A caller without room for it is refused at once, and nobody pays for a
        // retry.
        Ending::Leaked { .. } | Ending::Unusable { .. } | Ending::NoRoom { .. } => return RetryPlan::Stop,
        Ending::NotSent(_) | Ending::Lost(_) => {}
        Ending::TimedOut(_) | Ending::Cut { .. } | Ending::Answered(_) => {}
    }
    match (row(ending), class) {
        (RetryRow::Unsent, RetryClass::Safe | RetryClass::Idempotent | RetryClass::Once) => RetryPlan::Backoff,
        (RetryRow::Lost | RetryRow::TimedOut | RetryRow::Unsure, RetryClass::Safe | RetryClass::Idempotent) => {
            RetryPlan::Backoff
        }
        (RetryRow::Lost | RetryRow::TimedOut | RetryRow::Unsure, RetryClass::Once) => RetryPlan::Stop,
        // Without `Retry-After`, the quota pacer takes over and closes the bucket.
        (RetryRow::TooMany, RetryClass::Safe | RetryClass::Idempotent | RetryClass::Once) => RetryPlan::AsRequested,
        (RetryRow::TokenRefused, RetryClass::Safe | RetryClass::Idempotent | RetryClass::Once) => {
            RetryPlan::IfTokenChanged
        }
        (RetryRow::DoneButCut, RetryClass::Safe) => RetryPlan::Backoff,
        (RetryRow::DoneButCut, RetryClass::Idempotent | RetryClass::Once) => RetryPlan::Stop,
        (
            RetryRow::Failed | RetryRow::Redirected | RetryRow::Missing,
            RetryClass::Safe | RetryClass::Idempotent | RetryClass::Once,
        ) => RetryPlan::Stop,
        (RetryRow::Rejected | RetryRow::Done, RetryClass::Safe | RetryClass::Idempotent | RetryClass::Once) => {
            RetryPlan::Stop
        }
    }
}

fn requested_pause(ending: &Ending, now: Timestamp) -> Option<Duration> {
    match ending {
        Ending::Answered(answered) => retry_after(&answered.headers, now),
        Ending::NotSent(_) | Ending::Cut { .. } | Ending::Lost(_) | Ending::TimedOut(_) => None,
        Ending::Leaked { .. } | Ending::Unusable { .. } | Ending::NoRoom { .. } => None,
    }
}

/// Full jitter: a random pause from zero to the bound, so that callers who failed together do not retry together.
fn backoff(number: u32, random: u64) -> Duration {
    let doublings = number.saturating_sub(1).min(16);
    let bound = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
    let nanos = (bound.as_nanos() * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::Shortage;
    use crate::upstream::body::UpstreamBody;
    use crate::upstream::ending::{AttemptError, ProxyError, UpstreamAnswer};
    use crate::upstream::tests::limits;
    use crate::vocabulary::Outcome::{Done, InDoubt, NotSent, Rejected};
    use http::HeaderValue;

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0); // Tue, 14 Nov 2023 22:13:20 GMT
    const LEFT: Duration = Duration::from_secs(10);
    const CLASSES: [RetryClass; 3] = [RetryClass::Safe, RetryClass::Idempotent, RetryClass::Once];

    fn why() -> AttemptError {
        AttemptError::new(ProxyError::ConnectionTerminated, "")
    }

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).unwrap()
    }

    fn missing(kind: &'static str, body: &'static [u8]) -> Ending {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let (status, body) = (StatusCode::NOT_FOUND, UpstreamBody::of(body));
        Ending::Answered(UpstreamAnswer { status, headers, body, delay: Duration::ZERO, framed: true })
    }

    fn answer(code: u16, retry_after: Option<&str>) -> Ending {
        let value = retry_after.map(|text| (header::RETRY_AFTER, HeaderValue::from_str(text).unwrap()));
        let (headers, body) = (value.into_iter().collect(), UpstreamBody::empty());
        Ending::Answered(UpstreamAnswer { status: status(code), headers, body, delay: Duration::ZERO, framed: true })
    }

    fn attempted(class: RetryClass, number: u32, ending: &Ending) -> EndedAttempt<'_> {
        EndedAttempt { class, number, ending, token_changed: false, left: LEFT }
    }

    fn again(attempted: &EndedAttempt<'_>) -> bool {
        matches!(decide(attempted, &limits(), NOW, || u64::MAX), RetryDecision::Retry { .. })
    }

    /// The table of `docs/decisions/retries.md`: ending; retried if safe, idempotent, once; effect for an idempotent
    /// write, first and after an ambiguous attempt.
    #[test]
    fn the_table_row_by_row() {
        let (yes, no) = (true, false);
        let cut = |code| Ending::Cut { status: status(code), why: why() };
        let unusable = |status| Ending::Unusable { status, why: why() };
        let no_room = |status| Ending::NoRoom { status, short: Shortage::Share };
        for (name, ending, expected, first, after_ambiguous) in [
            ("not sent", Ending::NotSent(why()), [yes, yes, yes], NotSent, InDoubt),
            ("lost", Ending::Lost(why()), [yes, yes, no], InDoubt, InDoubt),
            ("time-out", Ending::TimedOut(why()), [yes, yes, no], InDoubt, InDoubt),
            ("429", answer(429, Some("1")), [yes, yes, yes], Rejected, InDoubt),
            ("429 without a word", answer(429, None), [no, no, no], Rejected, InDoubt),
            ("429 for too long", answer(429, Some("10")), [no, no, no], Rejected, InDoubt),
            ("408", answer(408, None), [yes, yes, no], InDoubt, InDoubt),
            ("502", answer(502, None), [yes, yes, no], InDoubt, InDoubt),
            ("503", answer(503, None), [yes, yes, no], InDoubt, InDoubt),
            ("503 with a word", answer(503, Some("1")), [yes, yes, no], InDoubt, InDoubt),
            ("503 for too long", answer(503, Some("60")), [no, no, no], InDoubt, InDoubt),
            ("504", answer(504, None), [yes, yes, no], InDoubt, InDoubt),
            ("500", answer(500, None), [no, no, no], InDoubt, InDoubt),
            ("501", answer(501, None), [no, no, no], InDoubt, InDoubt),
            ("302", answer(302, None), [no, no, no], InDoubt, InDoubt),
            ("304", answer(304, None), [no, no, no], InDoubt, InDoubt),
            ("401", answer(401, None), [no, no, no], Rejected, InDoubt),
            ("400", answer(400, None), [no, no, no], Rejected, InDoubt),
            ("403", answer(403, None), [no, no, no], Rejected, InDoubt),
            ("404", missing("application/json", b"{}"), [no, no, no], Rejected, Done),
            ("404 of an edge", missing("text/html", b"{}"), [no, no, no], Rejected, InDoubt),
            ("404 of another kind", missing("application/json", b"<html>"), [no, no, no], Rejected, InDoubt),
            ("404 without a body", answer(404, None), [no, no, no], Rejected, InDoubt),
            ("200", answer(200, None), [no, no, no], Done, Done),
            ("204", answer(204, None), [no, no, no], Done, Done),
            ("2xx cut", cut(201), [yes, no, no], Done, Done),
            ("404 cut", cut(404), [no, no, no], Rejected, InDoubt),
            ("503 cut", cut(503), [yes, yes, no], InDoubt, InDoubt),
            ("2xx leaked", Ending::Leaked { status: status(200) }, [no, no, no], Done, Done),
            ("503 leaked", Ending::Leaked { status: status(503) }, [no, no, no], InDoubt, InDoubt),
            ("2xx too large", unusable(Some(status(200))), [no, no, no], Done, Done),
            ("head too large", unusable(None), [no, no, no], InDoubt, InDoubt),
            ("no room at first", no_room(None), [no, no, no], NotSent, InDoubt),
            ("no room for 2xx", no_room(Some(status(200))), [no, no, no], Done, Done),
        ] {
            assert_eq!(CLASSES.map(|class| again(&attempted(class, 1, &ending))), expected, "{name}");
            assert_eq!(effect(RetryClass::Idempotent, false, &ending), first, "{name}");
            assert_eq!(effect(RetryClass::Once, false, &ending), first, "{name}");
            assert_eq!(effect(RetryClass::Idempotent, true, &ending), after_ambiguous, "{name} after an ambiguous one");
            assert_eq!(ambiguous(&ending), first == InDoubt, "{name}");
        }
        let missing = missing("application/json", b"{}");
        assert_eq!(effect(RetryClass::Once, true, &missing), InDoubt, "what a create did, no 404 tells");
    }

    #[test]
    fn a_refused_token_goes_again_only_as_another() {
        for class in CLASSES {
            let refused = answer(401, None);
            assert!(!again(&attempted(class, 1, &refused)));
            assert!(again(&EndedAttempt { token_changed: true, ..attempted(class, 1, &refused) }));
            let forbidden = answer(403, None);
            assert!(!again(&EndedAttempt { token_changed: true, ..attempted(class, 1, &forbidden) }));
        }
    }

    #[test]
    fn three_attempts_or_two() {
        let unsent = Ending::NotSent(why());
        for (class, most) in [(RetryClass::Safe, 3), (RetryClass::Idempotent, 3), (RetryClass::Once, 2)] {
            let numbers: Vec<_> = (1..5).filter(|number| again(&attempted(class, *number, &unsent))).collect();
            assert_eq!(numbers, (1..most).collect::<Vec<_>>(), "{class:?}");
        }
    }

    #[test]
    fn pauses_are_jittered_doubled_bounded_and_fit_before_the_deadline() {
        let unsent = Ending::NotSent(why());
        let limits = Limits { attempts: 100, ..limits() };
        let pause =
            |number, random| match decide(&attempted(RetryClass::Safe, number, &unsent), &limits, NOW, || random) {
                RetryDecision::Retry { pause } => pause.as_millis(),
                RetryDecision::Stop => panic!("attempt {number} stops"),
            };
        assert_eq!([1, 2, 3, 4, 5, 6, 99].map(|n| pause(n, u64::MAX)), [99, 199, 399, 799, 1599, 1999, 1999]);
        assert_eq!([1, 2, 3].map(|n| pause(n, u64::MAX / 2)), [49, 99, 199]);
        assert_eq!(pause(9, 0), 0);
        let late = EndedAttempt { left: Duration::from_millis(99), ..attempted(RetryClass::Safe, 1, &unsent) };
        assert_eq!(decide(&late, &limits, NOW, || u64::MAX), RetryDecision::Stop);
        assert_eq!(decide(&late, &limits, NOW, || 0), RetryDecision::Retry { pause: Duration::ZERO });
    }

    #[test]
    fn what_the_upstream_asks_for_is_waited() {
        for (code, text, millis) in [(429, "3", 3000), (503, "3", 3000), (503, "0", 1000), (429, "0", 1000)] {
            let ending = answer(code, Some(text));
            let next = decide(&attempted(RetryClass::Safe, 1, &ending), &limits(), NOW, || u64::MAX);
            assert!(
                matches!(next, RetryDecision::Retry { pause } if pause.as_millis() == millis),
                "{code} {text}: {next:?}"
            );
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, seconds) in [
            ("0", Some(1)),
            (" 120 ", Some(120)),
            ("600", Some(600)),
            ("601", Some(600)),
            ("99999999999999999999", Some(600)),
            ("Tue, 14 Nov 2023 22:13:50 GMT", Some(30)),
            ("Tuesday, 14-Nov-23 22:13:50 GMT", Some(30)),
            ("Tue Nov 14 22:13:50 2023", Some(30)),
            ("Tue, 14 Nov 2023 22:13:00 GMT", Some(1)),
            ("Tuesday, 14-Nov-23 22:13:20 GMT", Some(1)),
            ("Thu Jan  1 00:00:00 1970", Some(1)),
            ("Fri, 14 Nov 2053 22:13:00 GMT", Some(600)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(1)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1e1", None),
            ("1, 2", None),
            ("soon", None),
            ("Tue, 32 Nov 2023 22:13:50 GMT", None),
        ] {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            assert_eq!(retry_after(&headers, NOW), seconds.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), NOW), None);
    }
}
