//! May it go again, and what did it do? The table of `reliability.md`, section 4: pure, without time or chance of its own.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::ending::Ending;
use crate::catalogue::Retry;
use crate::config::Limits;

/// The first pause is at most this, each further one at most twice the one before...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ...and none longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is known when an attempt has ended.
#[derive(Debug)]
pub struct Attempted<'a> {
    /// The operation's retry class.
    pub class: Retry,
    /// This was the so-manieth attempt, from 1.
    pub number: u32,
    /// How it ended.
    pub ending: &'a Ending,
    /// Has the token changed since it began?
    pub token_changed: bool,
    /// Time left until the deadline.
    pub left: Duration,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt.
    Again {
        /// Not earlier than after this pause.
        pause: Duration,
    },
    /// This ending is the last.
    Stop,
}

/// What a write's attempts did upstream: its outcome, before anybody records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It took effect (though its answer may be lost).
    Done,
    /// The upstream refused it: no effect.
    Rejected,
    /// It never reached the upstream: no effect.
    NotSent,
    /// Unknown.
    InDoubt,
}

/// May it go again? `dice`: a random number, for the pause; `now`: for a `Retry-After` that is a date.
pub(super) fn next(attempted: &Attempted<'_>, limits: &Limits, now: Timestamp, dice: u64) -> Next {
    let most = match attempted.class {
        Retry::Safe | Retry::Idempotent => limits.attempts,
        Retry::Once => limits.attempts_once,
    };
    if attempted.number >= most {
        return Next::Stop;
    }
    let told = told(attempted.ending, now);
    let backoff = backoff(attempted.number, dice);
    let pause = match plan(attempted.ending, attempted.class) {
        Plan::Stop => None,
        Plan::Backoff => Some(told.map_or(backoff, |told| told.max(backoff))),
        Plan::WhenTold => told,
        Plan::IfTokenChanged => attempted.token_changed.then_some(Duration::ZERO),
    };
    match pause.filter(|pause| *pause < attempted.left) {
        Some(pause) => Next::Again { pause },
        None => Next::Stop,
    }
}

/// What the attempts of a write did, by how the last one ended. `ambiguous_before`: was an earlier one [`ambiguous`]?
#[must_use]
pub fn effect(class: Retry, ambiguous_before: bool, last: &Ending) -> Effect {
    let unless_ambiguous = |effect| if ambiguous_before { Effect::InDoubt } else { effect };
    match row(last) {
        Row::Done | Row::DoneButCut => Effect::Done,
        Row::Unsent => unless_ambiguous(Effect::NotSent),
        Row::TooMany | Row::TokenRefused | Row::Rejected => unless_ambiguous(Effect::Rejected),
        Row::Missing => match class {
            // The earlier attempt deleted it: what was wanted is so.
            Retry::Idempotent if ambiguous_before => Effect::Done,
            Retry::Safe | Retry::Idempotent | Retry::Once => unless_ambiguous(Effect::Rejected),
        },
        Row::Lost | Row::TimedOut | Row::Unsure | Row::Failed | Row::Redirected => Effect::InDoubt,
    }
}

/// Is the effect of the attempt that ended so unknown?
#[must_use]
pub fn ambiguous(ending: &Ending) -> bool {
    effect(Retry::Once, false, ending) == Effect::InDoubt
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110, section 10.2.3). A date that is over: no time.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// The rows of the table. The two of HTTP/2 are missing: upstream connections speak HTTP/1.1 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
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
    /// 404.
    Missing,
    /// Other 4xx.
    Rejected,
    /// 2xx whose body was cut.
    DoneButCut,
    /// 2xx.
    Done,
}

fn row(ending: &Ending) -> Row {
    match ending {
        Ending::NotSent(_) | Ending::NoRoom { status: None } => Row::Unsent,
        Ending::Lost(_) | Ending::Unusable { status: None, .. } => Row::Lost,
        Ending::TimedOut(_) => Row::TimedOut,
        Ending::Cut { status, .. } if status.is_success() => Row::DoneButCut,
        Ending::Answered(answered) => status_row(answered.status),
        Ending::Cut { status, .. } | Ending::Leaked { status } => status_row(*status),
        Ending::Unusable { status: Some(status), .. } | Ending::NoRoom { status: Some(status) } => status_row(*status),
    }
}

fn status_row(status: StatusCode) -> Row {
    match status.as_u16() {
        200..=299 => Row::Done,
        300..=399 => Row::Redirected,
        401 => Row::TokenRefused,
        404 => Row::Missing,
        429 => Row::TooMany,
        408 | 502 | 503 | 504 => Row::Unsure,
        400..=499 => Row::Rejected,
        // What no status should be tells nothing.
        0..=199 | 500..=u16::MAX => Row::Failed,
    }
}

enum Plan {
    Stop,
    Backoff,
    WhenTold,
    IfTokenChanged,
}

fn plan(ending: &Ending, class: Retry) -> Plan {
    match ending {
        // The same answer would come again.
        Ending::Leaked { .. } | Ending::Unusable { .. } | Ending::NoRoom { status: Some(_) } => return Plan::Stop,
        Ending::NoRoom { status: None } | Ending::NotSent(_) | Ending::Lost(_) => {}
        Ending::TimedOut(_) | Ending::Cut { .. } | Ending::Answered(_) => {}
    }
    match (row(ending), class) {
        (Row::Unsent, Retry::Safe | Retry::Idempotent | Retry::Once) => Plan::Backoff,
        (Row::Lost | Row::TimedOut | Row::Unsure, Retry::Safe | Retry::Idempotent) => Plan::Backoff,
        (Row::Lost | Row::TimedOut | Row::Unsure, Retry::Once) => Plan::Stop,
        // Without a word on when, it is the quota's turn: the pacer closes the bucket.
        (Row::TooMany, Retry::Safe | Retry::Idempotent | Retry::Once) => Plan::WhenTold,
        (Row::TokenRefused, Retry::Safe | Retry::Idempotent | Retry::Once) => Plan::IfTokenChanged,
        (Row::DoneButCut, Retry::Safe) => Plan::Backoff,
        (Row::DoneButCut, Retry::Idempotent | Retry::Once) => Plan::Stop,
        (Row::Failed | Row::Redirected | Row::Missing, Retry::Safe | Retry::Idempotent | Retry::Once) => Plan::Stop,
        (Row::Rejected | Row::Done, Retry::Safe | Retry::Idempotent | Retry::Once) => Plan::Stop,
    }
}

fn told(ending: &Ending, now: Timestamp) -> Option<Duration> {
    match ending {
        Ending::Answered(answered) => retry_after(&answered.headers, now),
        Ending::NotSent(_) | Ending::Cut { .. } | Ending::Lost(_) | Ending::TimedOut(_) => None,
        Ending::Leaked { .. } | Ending::Unusable { .. } | Ending::NoRoom { .. } => None,
    }
}

/// Full jitter: anything from nothing to the bound, so that callers who failed together do not come again together.
fn backoff(number: u32, dice: u64) -> Duration {
    let doublings = number.saturating_sub(1).min(16);
    let bound = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
    let nanos = (bound.as_nanos() * u128::from(dice)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
