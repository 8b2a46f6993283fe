//! Intents against what became of them.

use super::super::super::open::OpenWrites;
use super::super::super::record::Kind;
use super::super::super::seen::Seen;
use crate::words::RequestId;

/// Goes on by a record; what is wrong with it as a part of a write's life.
pub(super) fn apply(open: &mut OpenWrites, seen: &Seen<'_>) -> Option<&'static str> {
    let request = seen.request.as_ref().and_then(|id| RequestId::parse(id.as_bytes()));
    let write = request.as_ref().and_then(|id| open.get(id));
    let wrong = match (Kind::parse(&seen.kind), write.map(|write| write.in_doubt)) {
        (None, _) => Some("a record of a kind that there is not"),
        (Some(Kind::Intent | Kind::Outcome | Kind::Settlement), _) if request.is_none() => {
            Some("a write without a request")
        }
        (Some(Kind::Intent), Some(_)) => Some("a second intent of a write that has not ended"),
        (Some(Kind::Outcome), None) => Some("an outcome without an intent"),
        (Some(Kind::Outcome), Some(true)) => Some("a second outcome of a write in doubt"),
        (Some(Kind::Settlement), None | Some(false)) => Some("a settlement of a write that is not in doubt"),
        (Some(Kind::Intent | Kind::Outcome | Kind::Settlement | Kind::Request | Kind::Event | Kind::Refusals), _) => {
            None
        }
    };
    open.apply_seen(seen);
    wrong
}
