//! Open writes: under way (an intent without an outcome) or in doubt (nobody knows whether they took effect).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::Notify;

use super::doubt_room::DoubtRoom;
use super::request_ids::{HeldRequestId, RequestIds};
use super::{OpenWrite, OpenWrites, WriteChange};
use crate::audit::record::field_hashes::FieldHashes;
use crate::audit::record::text::{Text, lenient};
use crate::audit::record::{AdoptedWrite, Record};
use crate::ids::{Fingerprint, RequestId};
use crate::process_log::ALWAYS;
use crate::shares::HeldShare;

/// A write in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Sequence number of its intent, which identifies the write everywhere.
    #[serde(rename = "seq")]
    pub intent: u64,
    /// The request id, which is the write's name for people.
    pub request: RequestId,
    /// When its intent was recorded, by the replica that sent it.
    #[serde(deserialize_with = "read_in_micros")]
    pub time: Timestamp,
    /// The caller's name.
    pub caller: Arc<str>,
    /// The operation's id.
    pub operation: Arc<str>,
    /// The organization in its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<u64>,
    /// Its canonical path.
    pub path: Arc<str>,
    /// The fingerprint that an equal write would share.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// The keyed hash of its idempotency key.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Fingerprint>,
    /// Hashes by which its effect can be recognized upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marks: Option<FieldHashes>,
    /// If another replica sent it: which of that replica's writes it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Box<AdoptedWrite>>,
}

impl Doubt {
    /// The doubt that this intent would become, or that this event `adopted` tells of.
    pub(crate) fn of(record: &Record<'_>) -> Option<Self> {
        let text = |value: &Option<Text<'_>>| value.as_ref().map(Text::shared).unwrap_or_default();
        Some(Self {
            intent: record.seq,
            request: record.request?,
            time: in_micros(record.adopted.as_ref().map_or(record.time, |adopted| adopted.time)),
            caller: text(&record.caller),
            operation: text(&record.operation),
            organization: record.organization,
            path: text(&record.path),
            fingerprint: record.fingerprint,
            idempotency: record.idempotency,
            marks: record.marks.clone(),
            adopted: record.adopted.clone(),
        })
    }

    /// Logs that the write is in doubt.
    pub(crate) fn log_in_doubt(&self, why: &str) {
        let Self { request, caller, operation, organization, path, .. } = self;
        tracing::warn!(target: ALWAYS, %request, caller = &**caller, operation = &**operation, organization, path = &**path, "{why}");
    }

    fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> + use<> {
        self.fingerprint.into_iter().chain(self.idempotency)
    }
}

/// Truncated to microseconds as in records, so that a doubt is the same whether read or remembered.
fn in_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

fn read_in_micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    Timestamp::deserialize(deserializer).map(in_micros)
}

/// The running gateway's open writes, as requests see them. Each holds its request id exclusively.
#[derive(Debug, Default)]
pub struct Doubts {
    request_ids: Arc<RequestIds>,
    room: DoubtRoom,
    open: Mutex<DoubtTable>,
    added: Notify,
}

/// What a write holds until it has ended.
#[derive(Debug)]
struct OpenWriteHold {
    _request_id: HeldRequestId,
    _room: Option<HeldShare>,
}

/// What requests ask of the open writes.
#[derive(Debug, Default)]
struct DoubtTable {
    writes: OpenWrites,
    /// What each open write holds.
    held: HashMap<u64, OpenWriteHold>,
    /// Writes in doubt by their fingerprint and that of their idempotency key; several may share one.
    by_fingerprint: HashMap<Fingerprint, Vec<u64>>,
    /// Writes in doubt that someone is settling.
    claimed: HashSet<u64>,
}

impl DoubtTable {
    fn is_under_way(&self, intent: Option<u64>) -> bool {
        intent.and_then(|intent| self.writes.get(intent)).is_some_and(|write| !write.in_doubt)
    }

    fn doubt(&self, intent: u64) -> Option<&Doubt> {
        self.writes.get(intent).filter(|write| write.in_doubt).map(|write| &write.doubt)
    }

    /// The first write in doubt that has this fingerprint and is `wanted`.
    fn find(&self, fingerprint: Fingerprint, wanted: impl Fn(&Doubt) -> bool) -> Option<RequestId> {
        let mut doubts = self.by_fingerprint.get(&fingerprint)?.iter().filter_map(|intent| self.doubt(*intent));
        doubts.find(|doubt| wanted(doubt)).map(|doubt| doubt.request)
    }
}

fn index(by_fingerprint: &mut HashMap<Fingerprint, Vec<u64>>, doubt: &Doubt) {
    for fingerprint in doubt.fingerprints() {
        by_fingerprint.entry(fingerprint).or_default().push(doubt.intent);
    }
}

fn forget(by_fingerprint: &mut HashMap<Fingerprint, Vec<u64>>, doubt: &Doubt) {
    for fingerprint in doubt.fingerprints() {
        if let Entry::Occupied(mut same) = by_fingerprint.entry(fingerprint) {
            same.get_mut().retain(|one| *one != doubt.intent);
            if same.get().is_empty() {
                same.remove();
            }
        }
    }
}

/// The exclusive right to settle a write in doubt, given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct SettlementClaim<'d> {
    doubts: &'d Doubts,
    doubt: Doubt,
    is_kept: bool,
}

impl SettlementClaim<'_> {
    /// The write in doubt.
    #[must_use]
    pub fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// Keeps the claim, because the settlement will be on disk sooner or later: nobody may settle the write again.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for SettlementClaim<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.doubts.open().claimed.remove(&self.doubt.intent);
        }
    }
}

impl Doubts {
    fn open(&self) -> MutexGuard<'_, DoubtTable> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request ids in use.
    #[must_use]
    pub const fn request_ids(&self) -> &Arc<RequestIds> {
        &self.request_ids
    }

    /// The room for open writes, which callers share.
    #[must_use]
    pub const fn room(&self) -> &DoubtRoom {
        &self.room
    }

    /// Adds a write in doubt.
    pub fn add(&self, doubt: Doubt) {
        let request_id = self.request_ids.hold(doubt.request);
        let held = OpenWriteHold { _request_id: request_id, _room: Some(self.room.hold(&doubt.caller)) };
        let mut table = self.open();
        table.held.insert(doubt.intent, held);
        index(&mut table.by_fingerprint, &doubt);
        table.writes.insert(OpenWrite { in_doubt: true, doubt });
        self.added.notify_one();
    }

    /// Waits until another write is in doubt since the last call. Only one task may call this.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// All writes in doubt, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Doubt> {
        self.open().writes.doubts().cloned().collect()
    }

    /// All writes that are under way or in doubt, oldest first.
    pub(crate) fn open_writes(&self) -> Vec<OpenWrite> {
        self.open().writes.list().cloned().collect()
    }

    /// The intents of all writes in doubt.
    #[must_use]
    pub fn intents(&self) -> HashSet<u64> {
        self.open().writes.doubts().map(|doubt| doubt.intent).collect()
    }

    /// Number of writes in doubt.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open().writes.in_doubt()
    }

    /// Since when the oldest write in doubt is under way.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        self.open().writes.doubts().next().map(|doubt| doubt.time)
    }

    /// Whether the write with this intent is in doubt.
    #[must_use]
    pub fn contains(&self, intent: u64) -> bool {
        self.open().doubt(intent).is_some()
    }

    /// The intent of the write in doubt with this request id. (In a log from before ids were reserved several may
    /// share it; then it is the oldest.)
    #[must_use]
    pub fn find_by_request(&self, request: &RequestId) -> Option<u64> {
        self.open().writes.doubts().find(|doubt| doubt.request == *request).map(|doubt| doubt.intent)
    }

    /// The write in doubt that blocks an equal write of the same caller, if any.
    #[must_use]
    pub fn find_equal(&self, caller: &str, fingerprint: Fingerprint) -> Option<RequestId> {
        self.open().find(fingerprint, |doubt| doubt.fingerprint == Some(fingerprint) && &*doubt.caller == caller)
    }

    /// The write in doubt that came with this idempotency key, if any.
    #[must_use]
    pub fn find_by_key(&self, key: Fingerprint) -> Option<RequestId> {
        self.open().find(key, |doubt| doubt.idempotency == Some(key))
    }

    /// Claims the right to settle the write with this intent. It stays in doubt until the settlement is on disk.
    /// Returns `None` if it is not in doubt or someone is already settling it.
    #[must_use]
    pub fn claim(&self, intent: u64) -> Option<SettlementClaim<'_>> {
        let mut open = self.open();
        let doubt = open.doubt(intent)?.clone();
        open.claimed.insert(intent).then_some(doubt).map(|doubt| SettlementClaim {
            doubts: self,
            doubt,
            is_kept: false,
        })
    }

    /// Applies a record: an intent (with its room), an event `adopted` or a settlement that is on disk, an outcome that is about to be
    /// recorded. Returns whether it changed anything.
    pub(crate) fn apply(&self, record: &Record<'_>, room: Option<HeldShare>) -> bool {
        self.apply_to(&mut self.open(), record, room)
    }

    fn apply_to(&self, table: &mut DoubtTable, record: &Record<'_>, room: Option<HeldShare>) -> bool {
        let DoubtTable { writes, held, by_fingerprint, claimed } = table;
        match writes.apply(record) {
            None => return false,
            Some(WriteChange::Begun(write)) => {
                let request_id = self.request_ids.hold(write.request);
                held.insert(write.intent, OpenWriteHold { _request_id: request_id, _room: room });
            }
            Some(WriteChange::Adopted(doubt)) => {
                let request_id = self.request_ids.hold(doubt.request);
                let room = room.or_else(|| Some(self.room.hold(&doubt.caller)));
                held.insert(doubt.intent, OpenWriteHold { _request_id: request_id, _room: room });
                doubt.log_in_doubt("this replica looks after a write in doubt of another");
                index(by_fingerprint, doubt);
                self.added.notify_one();
            }
            Some(WriteChange::InDoubt(doubt)) => {
                doubt.log_in_doubt("nobody knows whether a write took effect: it is in doubt");
                index(by_fingerprint, doubt);
                self.added.notify_one();
            }
            Some(WriteChange::Closed(write)) => {
                forget(by_fingerprint, &write);
                held.remove(&write.intent);
                claimed.remove(&write.intent);
            }
        }
        true
    }

    /// Whether the write with this intent is under way, which means that room is reserved for its outcome.
    pub(crate) fn is_under_way(&self, intent: Option<u64>) -> bool {
        self.open().is_under_way(intent)
    }

    /// An outcome is on its way to the log, so its write is no longer under way. Returns true if it was.
    pub(crate) fn end(&self, outcome: &Record<'_>) -> bool {
        let mut table = self.open();
        table.is_under_way(outcome.intent) && self.apply_to(&mut table, outcome, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Kind;
    use crate::hash;
    use crate::vocabulary::Outcome;

    fn record(kind: Kind, request: &str) -> Record<'static> {
        Record {
            request: RequestId::parse(request.as_bytes()),
            caller: Some("billing".into()),
            fingerprint: Some(Fingerprint::of(&hash::hmac_key(b"key"), &[b"pay"])),
            ..Record::new(kind, Timestamp::UNIX_EPOCH)
        }
    }

    fn outcome(intent: u64, request: &str, outcome: Outcome) -> Record<'static> {
        Record { intent: Some(intent), outcome: Some(outcome), ..record(Kind::Outcome, request) }
    }

    fn begin(doubts: &Doubts, intent: u64, record: Record<'_>) {
        assert!(doubts.apply(&Record { seq: intent, ..record }, None));
    }

    fn settle(doubts: &Doubts, intent: u64) -> bool {
        doubts.apply(&Record { intent: Some(intent), ..record(Kind::Settlement, "settled") }, None)
    }

    /// Adds a write in doubt.
    fn doubt(doubts: &Doubts, intent: u64, record: Record<'_>) {
        begin(doubts, intent, record.clone());
        assert!(doubts.end(&Record {
            intent: Some(intent),
            outcome: Some(Outcome::InDoubt),
            kind: Some(Kind::Outcome),
            ..record
        }));
    }

    #[test]
    fn a_write_in_doubt_holds_equal_writes_of_its_caller_until_it_is_settled() {
        let doubts = Doubts::default();
        let equal = Fingerprint::of(&hash::hmac_key(b"key"), &[b"pay"]);
        begin(&doubts, 7, record(Kind::Intent, "w1"));
        assert_eq!(doubts.find_equal("billing", equal), None, "a write under way is not in doubt");
        assert!(doubts.end(&outcome(7, "w1", Outcome::InDoubt)));
        let id = RequestId::parse(b"w1").unwrap();
        assert_eq!(doubts.find_equal("billing", equal), Some(id));
        assert_eq!(doubts.find_equal("finance", equal), None);
        assert!(settle(&doubts, 7));
        assert!(!settle(&doubts, 7));
        assert_eq!((doubts.find_equal("billing", equal), doubts.count()), (None, 0));
        assert!(doubts.open().by_fingerprint.is_empty(), "a settled write leaves nothing behind");
    }

    #[test]
    fn when_the_first_of_equal_writes_in_doubt_is_settled_the_next_one_holds() {
        let doubts = Doubts::default();
        let equal = Fingerprint::of(&hash::hmac_key(b"key"), &[b"pay"]);
        let key = Fingerprint::of(&hash::hmac_key(b"key"), &[b"idempotency"]);
        doubt(&doubts, 1, record(Kind::Intent, "w1"));
        doubt(&doubts, 2, Record { idempotency: Some(key), ..record(Kind::Intent, "w2") });
        let [first, second] = [b"w1", b"w2"].map(|id| RequestId::parse(id).unwrap());
        assert_eq!((doubts.find_equal("billing", equal), doubts.find_by_key(key)), (Some(first), Some(second)));
        assert_eq!(
            (doubts.find_equal("billing", key), doubts.find_by_key(equal)),
            (None, None),
            "the fingerprints of keys and writes are looked up separately"
        );
        settle(&doubts, 1);
        assert_eq!(doubts.find_equal("billing", equal), Some(second));
        settle(&doubts, 2);
        assert_eq!((doubts.find_equal("billing", equal), doubts.find_by_key(key)), (None, None));
    }

    #[test]
    fn only_one_may_settle_a_write_at_a_time_and_the_claim_is_given_back() {
        let doubts = Doubts::default();
        assert!(doubts.claim(1).is_none(), "the write is not in doubt");
        doubt(&doubts, 1, record(Kind::Intent, "w1"));
        let claim = doubts.claim(1).unwrap();
        assert!(doubts.claim(1).is_none() && doubts.contains(1), "claimed, but still in doubt");
        drop(claim);
        doubts.claim(1).unwrap().keep();
        assert!(doubts.claim(1).is_none(), "kept");
        settle(&doubts, 1);
        doubt(&doubts, 2, record(Kind::Intent, "w1"));
        assert!(doubts.claim(2).is_some(), "another write with the same id");
    }

    #[test]
    fn a_settled_outcome_leaves_no_doubt_and_frees_its_id() {
        let doubts = Doubts::default();
        let id = RequestId::parse(b"w1").unwrap();
        begin(&doubts, 1, record(Kind::Intent, "w1"));
        assert!(doubts.request_ids().take(id).is_none());
        assert!(doubts.end(&outcome(1, "w1", Outcome::Done)));
        assert!(doubts.request_ids().take(id).is_some());
        assert!(!doubts.end(&outcome(1, "w1", Outcome::Done)), "a write ends only once");
    }

    #[test]
    fn a_write_ends_itself_and_no_other_with_the_same_id() {
        let doubts = Doubts::default();
        let id = RequestId::parse(b"w1").unwrap();
        let [pay, other] = [b"pay", b"two"].map(|write| Fingerprint::of(&hash::hmac_key(b"key"), &[write]));
        begin(&doubts, 1, record(Kind::Intent, "w1"));
        begin(&doubts, 2, Record { fingerprint: Some(other), ..record(Kind::Intent, "w1") });
        assert!(doubts.end(&outcome(1, "w1", Outcome::InDoubt)));
        assert!(doubts.end(&outcome(2, "w1", Outcome::Done)));
        assert_eq!((doubts.find_equal("billing", pay), doubts.find_equal("billing", other)), (Some(id), None));
        doubt(&doubts, 3, Record { fingerprint: Some(other), ..record(Kind::Intent, "w1") });
        assert_eq!((doubts.find_by_request(&id), doubts.count()), (Some(1), 2));
        settle(&doubts, 1);
        assert_eq!((doubts.find_by_request(&id), doubts.find_equal("billing", other)), (Some(3), Some(id)));
        assert!(doubts.request_ids().take(id).is_none(), "one of them is still in doubt");
        settle(&doubts, 3);
        assert!(doubts.request_ids().take(id).is_some());
    }
}
