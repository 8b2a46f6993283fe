//! Writes that are open: under way (an intent and no outcome yet), or in doubt (nobody knows whether they took effect).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::field_hashes::FieldHashes;
use super::record::{Outcome, Record};
use super::request_ids::{HeldRequestId, RequestIds};
use crate::ids::{Fingerprint, RequestId};
use crate::process_log::EACH;

/// Unsettled doubts beyond which no write is accepted: operators settle them first.
pub const DOUBTS_MAX: usize = 10_000;

/// What is known of a write whose effect is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The number of its intent: by it everything else knows this write.
    pub intent: u64,
    /// The request's id: its name for people.
    pub request: RequestId,
    /// When it was intended.
    pub time: Timestamp,
    /// Who asked for it.
    pub caller: Arc<str>,
    /// What it is.
    pub operation: Arc<str>,
    /// The organization in its path.
    pub organization: Option<u64>,
    /// Its canonical path.
    pub path: Arc<str>,
    /// What an equal write would have too.
    pub fingerprint: Option<Fingerprint>,
    /// The keyed hash of its idempotency key.
    pub idempotency: Option<Fingerprint>,
    /// By what a look at the upstream knows its effect again.
    pub marks: Option<FieldHashes>,
}

impl Doubt {
    /// The doubt that the intent with this number would leave.
    pub(crate) fn of(intent: u64, record: &Record) -> Option<Self> {
        let text = |value: &Option<Arc<str>>| value.clone().unwrap_or_default();
        Some(Self {
            intent,
            request: record.request?,
            time: in_micros(record.time),
            caller: text(&record.caller),
            operation: text(&record.operation),
            organization: record.organization,
            path: text(&record.path),
            fingerprint: record.fingerprint,
            idempotency: record.idempotency,
            marks: record.marks.clone(),
        })
    }

    /// Tells the process log that the write is in doubt.
    pub(super) fn tell(&self, why: &str) {
        let Self { request, caller, operation, organization, path, .. } = self;
        tracing::warn!(target: EACH, %request, caller = &**caller, operation = &**operation, organization, path = &**path, "{why}");
    }

    fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> + use<> {
        self.fingerprint.into_iter().chain(self.idempotency)
    }
}

/// The time as records spell it, to the microsecond: a doubt is the same whether it was read or remembered.
pub(crate) fn in_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// The open writes of the running gateway, as its requests see them. Each has its request's id for itself.
#[derive(Debug, Default)]
pub struct Doubts {
    names: Arc<RequestIds>,
    open: Mutex<DoubtTable>,
    added: Notify,
}

/// A write, and its hold on its request's id.
#[derive(Debug)]
struct HeldDoubt {
    doubt: Doubt,
    _name: HeldRequestId,
}

/// All by the numbers of their intents: nobody can choose those.
#[derive(Debug, Default)]
struct DoubtTable {
    under_way: HashMap<u64, HeldDoubt>,
    in_doubt: BTreeMap<u64, HeldDoubt>,
    /// Those in doubt by their own fingerprints and those of their idempotency keys: several may have the same.
    by_fingerprint: HashMap<Fingerprint, Vec<u64>>,
    /// Those in doubt that somebody is settling.
    claimed: HashSet<u64>,
}

impl DoubtTable {
    fn add(&mut self, held: HeldDoubt) {
        let intent = held.doubt.intent;
        self.remove(intent);
        for fingerprint in held.doubt.fingerprints() {
            self.by_fingerprint.entry(fingerprint).or_default().push(intent);
        }
        self.in_doubt.insert(intent, held);
    }

    fn remove(&mut self, intent: u64) -> Option<Doubt> {
        let HeldDoubt { doubt, .. } = self.in_doubt.remove(&intent)?;
        for fingerprint in doubt.fingerprints() {
            if let Entry::Occupied(mut same) = self.by_fingerprint.entry(fingerprint) {
                same.get_mut().retain(|one| *one != intent);
                if same.get().is_empty() {
                    same.remove();
                }
            }
        }
        Some(doubt)
    }

    /// The first of those in doubt that have this fingerprint and are what is looked for.
    fn find(&self, fingerprint: Fingerprint, wanted: impl Fn(&Doubt) -> bool) -> Option<RequestId> {
        let same = self.by_fingerprint.get(&fingerprint)?;
        let mut doubts = same.iter().filter_map(|intent| self.in_doubt.get(intent)).map(|held| &held.doubt);
        doubts.find(|doubt| wanted(doubt)).map(|doubt| doubt.request)
    }
}

/// The right to settle a write in doubt, which nobody else has. Dropped, it is given back.
#[derive(Debug)]
#[must_use]
pub struct SettlementClaim<'d> {
    doubts: &'d Doubts,
    doubt: Doubt,
    is_kept: bool,
}

impl SettlementClaim<'_> {
    /// The write.
    #[must_use]
    pub fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// The settlement will be on disk sooner or later: until then nobody may settle the write again.
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

    /// The request ids that are taken.
    #[must_use]
    pub const fn names(&self) -> &Arc<RequestIds> {
        &self.names
    }

    fn held_by_id(&self, doubt: Doubt) -> HeldDoubt {
        HeldDoubt { _name: self.names.hold(doubt.request), doubt }
    }

    /// Adds a write in doubt.
    pub fn add(&self, doubt: Doubt) {
        let held = self.held_by_id(doubt);
        self.open().add(held);
        self.added.notify_one();
    }

    /// Waits until a write is in doubt that was not when this was called last. For one task alone.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// All writes in doubt, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Doubt> {
        self.open().in_doubt.values().map(|held| held.doubt.clone()).collect()
    }

    /// How many writes are in doubt.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open().in_doubt.len()
    }

    /// Is the write with this intent in doubt?
    #[must_use]
    pub fn contains(&self, intent: u64) -> bool {
        self.open().in_doubt.contains_key(&intent)
    }

    /// The intent of the write in doubt that people call by this id. (Of a log from before ids were taken, several may have it:
    /// then the oldest.)
    #[must_use]
    pub fn named(&self, request: &RequestId) -> Option<u64> {
        let open = self.open();
        open.in_doubt.values().find(|held| held.doubt.request == *request).map(|held| held.doubt.intent)
    }

    /// The write in doubt that holds an equal write of the same caller, if there is one.
    #[must_use]
    pub fn held(&self, caller: &str, fingerprint: Fingerprint) -> Option<RequestId> {
        self.open().find(fingerprint, |doubt| doubt.fingerprint == Some(fingerprint) && &*doubt.caller == caller)
    }

    /// The write in doubt that came with this idempotency key, if there is one.
    #[must_use]
    pub fn keyed(&self, key: Fingerprint) -> Option<RequestId> {
        self.open().find(key, |doubt| doubt.idempotency == Some(key))
    }

    /// The right to settle the write with this intent; it stays in doubt until its settlement is on disk. `None`: it is not in
    /// doubt, or somebody is settling it.
    #[must_use]
    pub fn claim(&self, intent: u64) -> Option<SettlementClaim<'_>> {
        let mut open = self.open();
        let doubt = open.in_doubt.get(&intent)?.doubt.clone();
        open.claimed.insert(intent).then_some(doubt).map(|doubt| SettlementClaim {
            doubts: self,
            doubt,
            is_kept: false,
        })
    }

    /// Takes a settled write out. `None`: it was not in doubt.
    pub fn remove(&self, intent: u64) -> Option<Doubt> {
        let mut open = self.open();
        open.claimed.remove(&intent);
        open.remove(intent)
    }

    /// This intent is on disk: its write is under way.
    pub(crate) fn begin(&self, intent: u64, record: &Record) {
        if let Some(write) = Doubt::of(intent, record) {
            let held = self.held_by_id(write);
            self.open().under_way.insert(intent, held);
        }
    }

    /// An outcome is about to be recorded: its write is no longer under way.
    /// `true`: it was (and room is kept for its outcome).
    pub(crate) fn end(&self, outcome: &Record) -> bool {
        let mut open = self.open();
        let Some(write) = outcome.intent.and_then(|intent| open.under_way.remove(&intent)) else { return false };
        if outcome.outcome == Some(Outcome::InDoubt) {
            write.doubt.tell("nobody knows whether a write took effect: it is in doubt");
            open.add(write);
            self.added.notify_one();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Kind;

    fn record(kind: Kind, request: &str) -> Record {
        Record {
            request: RequestId::parse(request.as_bytes()),
            caller: Some("billing".into()),
            fingerprint: Some(Fingerprint::of(b"key", &[b"pay"])),
            ..Record::new(kind, Timestamp::UNIX_EPOCH)
        }
    }

    fn outcome(intent: u64, request: &str, outcome: Outcome) -> Record {
        Record { intent: Some(intent), outcome: Some(outcome), ..record(Kind::Outcome, request) }
    }

    /// A write in doubt.
    fn doubt(doubts: &Doubts, intent: u64, record: &Record) {
        doubts.begin(intent, record);
        assert!(doubts.end(&Record { intent: Some(intent), outcome: Some(Outcome::InDoubt), ..record.clone() }));
    }

    #[test]
    fn a_write_in_doubt_holds_equal_writes_of_its_caller_until_it_is_settled() {
        let doubts = Doubts::default();
        let equal = Fingerprint::of(b"key", &[b"pay"]);
        doubts.begin(7, &record(Kind::Intent, "w1"));
        assert_eq!(doubts.held("billing", equal), None, "under way is not in doubt");
        assert!(doubts.end(&outcome(7, "w1", Outcome::InDoubt)));
        let id = RequestId::parse(b"w1").unwrap();
        assert_eq!(doubts.held("billing", equal), Some(id));
        assert_eq!(doubts.held("finance", equal), None);
        assert_eq!(doubts.remove(7).map(|doubt| doubt.request), Some(id));
        assert_eq!((doubts.held("billing", equal), doubts.count()), (None, 0));
        assert!(doubts.open().by_fingerprint.is_empty(), "nothing is left of it");
    }

    #[test]
    fn of_equal_writes_in_doubt_the_next_one_holds_when_the_first_is_settled() {
        let doubts = Doubts::default();
        let equal = Fingerprint::of(b"key", &[b"pay"]);
        let key = Fingerprint::of(b"key", &[b"idempotency"]);
        doubt(&doubts, 1, &record(Kind::Intent, "w1"));
        doubt(&doubts, 2, &Record { idempotency: Some(key), ..record(Kind::Intent, "w2") });
        let [first, second] = [b"w1", b"w2"].map(|id| RequestId::parse(id).unwrap());
        assert_eq!((doubts.held("billing", equal), doubts.keyed(key)), (Some(first), Some(second)));
        assert_eq!((doubts.held("billing", key), doubts.keyed(equal)), (None, None), "each for its own");
        doubts.remove(1);
        assert_eq!(doubts.held("billing", equal), Some(second));
        doubts.remove(2);
        assert_eq!((doubts.held("billing", equal), doubts.keyed(key)), (None, None));
    }

    #[test]
    fn one_at_a_time_may_settle_a_write_and_the_right_to_it_is_given_back() {
        let doubts = Doubts::default();
        assert!(doubts.claim(1).is_none(), "it is not in doubt");
        doubt(&doubts, 1, &record(Kind::Intent, "w1"));
        let claim = doubts.claim(1).unwrap();
        assert!(doubts.claim(1).is_none() && doubts.contains(1), "claimed, and in doubt all the same");
        drop(claim);
        doubts.claim(1).unwrap().keep();
        assert!(doubts.claim(1).is_none(), "kept");
        doubts.remove(1);
        doubt(&doubts, 2, &record(Kind::Intent, "w1"));
        assert!(doubts.claim(2).is_some(), "another write of the same id");
    }

    #[test]
    fn a_settled_outcome_leaves_no_doubt_and_its_id_is_free() {
        let doubts = Doubts::default();
        let id = RequestId::parse(b"w1").unwrap();
        doubts.begin(1, &record(Kind::Intent, "w1"));
        assert!(doubts.names().take(id).is_none());
        assert!(doubts.end(&outcome(1, "w1", Outcome::Done)));
        assert!(doubts.names().take(id).is_some());
        assert!(!doubts.end(&outcome(1, "w1", Outcome::Done)), "only once");
    }

    #[test]
    fn a_write_ends_its_own_and_no_other_of_the_same_name() {
        let doubts = Doubts::default();
        let id = RequestId::parse(b"w1").unwrap();
        let [pay, other] = [b"pay", b"two"].map(|write| Fingerprint::of(b"key", &[write]));
        doubts.begin(1, &record(Kind::Intent, "w1"));
        doubts.begin(2, &Record { fingerprint: Some(other), ..record(Kind::Intent, "w1") });
        assert!(doubts.end(&outcome(1, "w1", Outcome::InDoubt)));
        assert!(doubts.end(&outcome(2, "w1", Outcome::Done)));
        assert_eq!((doubts.held("billing", pay), doubts.held("billing", other)), (Some(id), None));
        doubt(&doubts, 3, &Record { fingerprint: Some(other), ..record(Kind::Intent, "w1") });
        assert_eq!((doubts.named(&id), doubts.count()), (Some(1), 2));
        doubts.remove(1);
        assert_eq!((doubts.named(&id), doubts.held("billing", other)), (Some(3), Some(id)));
        assert!(doubts.names().take(id).is_none(), "one of them is still in doubt");
        doubts.remove(3);
        assert!(doubts.names().take(id).is_some());
    }
}
