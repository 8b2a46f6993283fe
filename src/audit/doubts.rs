//! Writes that are open: under way (an intent and no outcome yet), or in doubt (nobody knows whether they took effect).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::marks::Marks;
use super::record::{Outcome, Record};
use crate::process_log::EACH;
use crate::words::{Fingerprint, RequestId};

/// Unsettled doubts beyond which no write is accepted: operators settle them first.
pub const DOUBTS_MAX: usize = 10_000;

/// What is known of a write whose effect is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The request's id: its name for operators.
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
    pub marks: Option<Marks>,
}

impl Doubt {
    /// The doubt that this intent (or outcome, where the intent is not known) would leave.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        let text = |value: &Option<Arc<str>>| value.clone().unwrap_or_default();
        Some(Self {
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

/// The open writes of the running gateway, as its requests see them.
#[derive(Debug, Default)]
pub struct Doubts {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    under_way: HashMap<RequestId, Doubt>,
    in_doubt: HashMap<RequestId, Doubt>,
    /// Those in doubt by their own fingerprints and those of their idempotency keys: several may have the same.
    by_fingerprint: HashMap<Fingerprint, Vec<RequestId>>,
    /// Those in doubt that somebody is settling.
    claimed: HashSet<RequestId>,
}

impl Open {
    fn add(&mut self, doubt: Doubt) {
        self.remove(&doubt.request);
        for fingerprint in doubt.fingerprints() {
            self.by_fingerprint.entry(fingerprint).or_default().push(doubt.request);
        }
        self.in_doubt.insert(doubt.request, doubt);
    }

    fn remove(&mut self, request: &RequestId) -> Option<Doubt> {
        let doubt = self.in_doubt.remove(request)?;
        for fingerprint in doubt.fingerprints() {
            if let Entry::Occupied(mut same) = self.by_fingerprint.entry(fingerprint) {
                same.get_mut().retain(|one| one != request);
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
        same.iter().copied().find(|request| self.in_doubt.get(request).is_some_and(&wanted))
    }
}

/// The right to settle a write in doubt, which nobody else has. Dropped, it is given back.
#[derive(Debug)]
#[must_use]
pub struct Claim<'d> {
    doubts: &'d Doubts,
    doubt: Doubt,
    is_kept: bool,
}

impl Claim<'_> {
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

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.doubts.open().claimed.remove(&self.doubt.request);
        }
    }
}

impl Doubts {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a write in doubt.
    pub fn add(&self, doubt: Doubt) {
        self.open().add(doubt);
    }

    /// All writes in doubt, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Doubt> {
        let mut all: Vec<_> = self.open().in_doubt.values().cloned().collect();
        all.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.request.as_str().cmp(b.request.as_str())));
        all
    }

    /// How many writes are in doubt.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open().in_doubt.len()
    }

    /// Is the write with this id in doubt?
    #[must_use]
    pub fn contains(&self, request: &RequestId) -> bool {
        self.open().in_doubt.contains_key(request)
    }

    /// Is the write with this id under way or in doubt? Then no other request may have its id.
    #[must_use]
    pub fn is_open(&self, request: &RequestId) -> bool {
        let open = self.open();
        open.under_way.contains_key(request) || open.in_doubt.contains_key(request)
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

    /// The right to settle the write with this id; it stays in doubt until its settlement is on disk. `None`: it is not in
    /// doubt, or somebody is settling it.
    #[must_use]
    pub fn claim(&self, request: &RequestId) -> Option<Claim<'_>> {
        let mut open = self.open();
        let doubt = open.in_doubt.get(request)?.clone();
        open.claimed.insert(*request).then_some(doubt).map(|doubt| Claim { doubts: self, doubt, is_kept: false })
    }

    /// Takes a settled write out. `None`: it was not in doubt.
    pub fn remove(&self, request: &RequestId) -> Option<Doubt> {
        let mut open = self.open();
        open.claimed.remove(request);
        open.remove(request)
    }

    /// An intent is about to be recorded.
    pub(crate) fn begin(&self, intent: &Record) {
        if let Some(write) = Doubt::of(intent) {
            self.open().under_way.insert(write.request, write);
        }
    }

    /// An outcome is about to be recorded, or the intent could not be: the write is no longer under way.
    /// `true`: it was (and room is kept for its outcome).
    pub(crate) fn end(&self, outcome: &Record) -> bool {
        let Some(request) = outcome.request else { return false };
        let mut open = self.open();
        let write = open.under_way.remove(&request);
        let was_under_way = write.is_some();
        if outcome.outcome == Some(Outcome::InDoubt)
            && let Some(doubt) = write.or_else(|| Doubt::of(outcome))
        {
            doubt.tell("nobody knows whether a write took effect: it is in doubt");
            open.add(doubt);
        }
        was_under_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Kind;

    fn record(kind: Kind, request: &str, outcome: Option<Outcome>) -> Record {
        Record {
            request: RequestId::parse(request.as_bytes()),
            caller: Some("billing".into()),
            fingerprint: Some(Fingerprint::of(b"key", &[b"pay"])),
            outcome,
            ..Record::new(kind, Timestamp::UNIX_EPOCH)
        }
    }

    #[test]
    fn a_write_in_doubt_holds_equal_writes_of_its_caller_until_it_is_settled() {
        let doubts = Doubts::default();
        let equal = Fingerprint::of(b"key", &[b"pay"]);
        doubts.begin(&record(Kind::Intent, "w1", None));
        assert_eq!(doubts.held("billing", equal), None, "under way is not in doubt");
        assert!(doubts.end(&record(Kind::Outcome, "w1", Some(Outcome::InDoubt))));
        let id = RequestId::parse(b"w1").unwrap();
        assert_eq!(doubts.held("billing", equal), Some(id));
        assert_eq!(doubts.held("finance", equal), None);
        assert_eq!(doubts.remove(&id).map(|doubt| doubt.request), Some(id));
        assert_eq!((doubts.held("billing", equal), doubts.count()), (None, 0));
        assert!(doubts.open().by_fingerprint.is_empty(), "nothing is left of it");
    }

    #[test]
    fn of_equal_writes_in_doubt_the_next_one_holds_when_the_first_is_settled() {
        let doubts = Doubts::default();
        let equal = Fingerprint::of(b"key", &[b"pay"]);
        let key = Fingerprint::of(b"key", &[b"idempotency"]);
        for request in ["w1", "w2"] {
            let outcome = record(Kind::Outcome, request, Some(Outcome::InDoubt));
            doubts.end(&Record { idempotency: (request == "w2").then_some(key), ..outcome });
        }
        let [first, second] = [b"w1", b"w2"].map(|id| RequestId::parse(id).unwrap());
        assert_eq!((doubts.held("billing", equal), doubts.keyed(key)), (Some(first), Some(second)));
        assert_eq!((doubts.held("billing", key), doubts.keyed(equal)), (None, None), "each for its own");
        doubts.remove(&first);
        assert_eq!(doubts.held("billing", equal), Some(second));
        doubts.remove(&second);
        assert_eq!((doubts.held("billing", equal), doubts.keyed(key)), (None, None));
    }

    #[test]
    fn one_at_a_time_may_settle_a_write_and_the_right_to_it_is_given_back() {
        let doubts = Doubts::default();
        let id = RequestId::parse(b"w1").unwrap();
        assert!(doubts.claim(&id).is_none(), "it is not in doubt");
        doubts.end(&record(Kind::Outcome, "w1", Some(Outcome::InDoubt)));
        let claim = doubts.claim(&id).unwrap();
        assert!(doubts.claim(&id).is_none() && doubts.contains(&id), "claimed, and in doubt all the same");
        drop(claim);
        doubts.claim(&id).unwrap().keep();
        assert!(doubts.claim(&id).is_none(), "kept");
        doubts.remove(&id);
        doubts.end(&record(Kind::Outcome, "w1", Some(Outcome::InDoubt)));
        assert!(doubts.claim(&id).is_some(), "another write of the same id");
    }

    #[test]
    fn a_settled_outcome_leaves_no_doubt() {
        let doubts = Doubts::default();
        doubts.begin(&record(Kind::Intent, "w1", None));
        assert!(doubts.is_open(&RequestId::parse(b"w1").unwrap()));
        assert!(doubts.end(&record(Kind::Outcome, "w1", Some(Outcome::Done))));
        assert!(!doubts.is_open(&RequestId::parse(b"w1").unwrap()));
        assert!(!doubts.end(&record(Kind::Outcome, "w1", Some(Outcome::Done))), "only once");
    }
}
