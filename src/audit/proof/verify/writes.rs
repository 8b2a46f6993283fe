//! Matches intents with their outcomes.

use crate::audit::open_writes::{ADOPTED, OpenWrites};
use crate::audit::record::Kind;
use crate::audit::record::Record;

/// Applies a record to the open writes. Returns what is wrong with it, if anything.
pub(super) fn apply(open: &mut OpenWrites, seen: &Record<'_>) -> Option<&'static str> {
    let wrong = match (seen.kind, seen.request) {
        (None, _) => Some("of an unknown kind"),
        (Some(Kind::Intent | Kind::Outcome | Kind::Settlement), None) => Some("a write without a request id"),
        (Some(Kind::Event), None) if seen.event.as_deref() == Some(ADOPTED) => Some("a write without a request id"),
        (Some(kind @ (Kind::Outcome | Kind::Settlement)), Some(request)) => {
            let settles = kind == Kind::Settlement;
            match open.of(seen.intent, &request, settles) {
                Some(write) if write.doubt.request != request => Some("about the intent of another request"),
                write => misplaced(write.map(|write| write.in_doubt), settles),
            }
        }
        (Some(Kind::Intent | Kind::Request | Kind::Event | Kind::Refusals), _) => None,
    };
    open.apply(seen);
    wrong
}

/// What is wrong with an outcome or settlement, given whether its write is in doubt, under way (not in doubt) or not
/// open.
const fn misplaced(in_doubt: Option<bool>, settles: bool) -> Option<&'static str> {
    match (in_doubt, settles) {
        (None, false) => Some("an outcome without an intent"),
        (Some(true), false) => Some("a second outcome for a write in doubt"),
        (None | Some(false), true) => Some("a settlement for a write that is not in doubt"),
        (Some(false), false) | (Some(true), true) => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::audit::record::AdoptedWrite;
    use crate::hash;
    use crate::ids::{Fingerprint, RequestId};
    use crate::vocabulary::Outcome;

    #[test]
    fn an_adopted_write_has_no_outcome_but_a_settlement() {
        let id = Fingerprint::of(&hash::hmac_key(b"key"), &[]);
        let adopted = AdoptedWrite { id, replica: "makegate-1".into(), time: Timestamp::UNIX_EPOCH };
        let event = Record {
            seq: 7,
            request: RequestId::parse(b"w1"),
            adopted: Some(Box::new(adopted)),
            ..Record::event(Timestamp::UNIX_EPOCH, ADOPTED, "")
        };
        let about = |kind, intent| Record {
            intent: Some(intent),
            request: RequestId::parse(b"w1"),
            outcome: Some(Outcome::Done),
            ..Record::new(kind, Timestamp::UNIX_EPOCH)
        };
        let mut open = OpenWrites::default();
        assert_eq!(
            apply(&mut open, &about(Kind::Settlement, 7)),
            Some("a settlement for a write that is not in doubt")
        );
        assert_eq!(apply(&mut open, &Record { request: None, ..event.clone() }), Some("a write without a request id"));
        assert_eq!((apply(&mut open, &event), open.in_doubt()), (None, 1));
        let mut other = open.clone();
        assert_eq!(apply(&mut other, &about(Kind::Outcome, 7)), Some("a second outcome for a write in doubt"));
        assert_eq!((apply(&mut open, &about(Kind::Settlement, 7)), open.in_doubt()), (None, 0));
    }
}
