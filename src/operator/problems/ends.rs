//! Certificates and keys near their ends.

use jiff::{SignedDuration, Timestamp};

use super::super::query::encode;
use super::super::state::OperatorState;
use super::problem::{Check, LINES_MAX, Problem, Severity, counted, minute};
use crate::config::KeyConfig;
use crate::gateway::key_expiry::KeyExpiry;
use crate::ids::KeyId;

/// A certificate that expires so soon is more than a warning.
const VERY_SOON: SignedDuration = SignedDuration::from_hours(2 * 24);

pub(super) fn certificates(state: &OperatorState) -> Vec<Problem> {
    let now = state.gateway.clock.wall();
    let ending =
        state.certificate_ends().into_iter().filter_map(|(door, end)| Some((door, end, KeyExpiry::at(end, now)?)));
    let problem = |(door, end, ends): (&str, Timestamp, KeyExpiry)| {
        let (severity, what, why) = match ends {
            KeyExpiry::Past => (
                Severity::Degraded,
                format!(
                    "The certificate of the {door} door expired at {}: clients that check it cannot connect.",
                    minute(end)
                ),
                "a door's certificate has expired: clients that check it cannot connect",
            ),
            KeyExpiry::Soon => (
                if end.duration_since(now) <= VERY_SOON { Severity::Degraded } else { Severity::Warning },
                format!(
                    "The certificate of the {door} door expires at {}; after that, clients that check it cannot connect.",
                    minute(end)
                ),
                "a door's certificate expires soon; after that, clients that check it cannot connect",
            ),
        };
        let todo = format!(
            "Put a new certificate and its key into the files that {door}.tls names (`makegate cert new` makes them for localhost); they are \
             read again within 5 s."
        );
        let since = (ends == KeyExpiry::Past).then_some(end);
        let problem = Problem::spoiling((Check::Certificates, why), severity, "certificate-ends", what);
        problem.since(since).todo(todo, "/config")
    };
    ending.map(problem).collect()
}

pub(super) fn keys(state: &OperatorState) -> Vec<Problem> {
    let (now, policy) = (state.gateway.clock.wall(), state.gateway.policy());
    let keys =
        policy.callers.iter().flat_map(|caller| caller.config.keys.iter().map(move |key| (&*caller.config.name, key)));
    let mut ending: Vec<_> = keys.filter_map(|(caller, key)| Some((KeyExpiry::of(key, now)?, caller, key))).collect();
    ending.sort_by_key(|(_, _, key)| key.expires.as_ref().map(|expiry| expiry.at));
    let problem = |(ends, caller, key): &(KeyExpiry, &str, &KeyConfig)| {
        let (id, end) = (KeyId::of(&key.hash), key.expires.as_ref().map(|expiry| expiry.at));
        let (severity, verb, why) = match ends {
            KeyExpiry::Past => (Severity::Degraded, "expired", "a caller's key has expired; see the overview"),
            KeyExpiry::Soon => (Severity::Warning, "expires", "a caller's key expires soon; see the overview"),
        };
        let what = format!("The key {id} of {caller} {verb} at {}.", end.map(minute).unwrap_or_default());
        let todo = format!(
            "Give {caller} a new key (`makegate key new --caller {caller}`), add its hash beside the old one, and take the old one out once \
             nobody uses it."
        );
        let since = end.filter(|_| *ends == KeyExpiry::Past);
        let problem = Problem::spoiling((Check::Keys, why), severity, "key-ends", what).since(since);
        problem.todo(todo, format!("/callers?name={}", encode(caller)))
    };
    let mut problems: Vec<_> = ending.iter().take(LINES_MAX).map(problem).collect();
    if let Some(more) = ending.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
        let what = format!(
            "{} of callers.",
            counted(more, "more key has expired or expires soon", "more keys have expired or expire soon")
        );
        problems.push(Problem::warning("key-ends", what).todo("Replace them likewise.", "/callers"));
    }
    problems
}
