//! All known keys, in memory: what a write with a key is told, and how much room each caller's keys take. Holds no
//! answer that is on disk.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{EarlierUse, EndedKey, FirstAnswer, KeyedWrite, WriteEnd};
use crate::ids::{Fingerprint, RequestId};

/// What a row counts for besides its answer, in bytes.
pub(super) const ROW_BYTES: u64 = 192;
/// Divisor of the total size that limits a single answer, however large answers may otherwise be.
const ANSWER_PART: u64 = 8;

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreBounds {
    pub(super) keys: u64,
    pub(super) age: Duration,
    pub(super) bytes: u64,
    pub(super) answer_bytes: u64,
}

impl StoreBounds {
    /// Maximum size of a stored answer, in bytes.
    pub(super) fn answer_bytes(&self) -> u64 {
        self.answer_bytes.min(self.bytes / ANSWER_PART)
    }

    /// Keys older than this are forgotten.
    pub(super) fn oldest_ms(&self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(i64::try_from(self.age.as_millis()).unwrap_or(i64::MAX))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRow {
    pub(super) keyed: KeyedWrite,
    pub(super) ended: WriteEnd,
    pub(super) time_ms: i64,
}

impl KeyRow {
    pub(super) fn weight(&self) -> u64 {
        ROW_BYTES + self.ended.answer.as_ref().map_or(0, |answer| super::database_rows::weight(answer) as u64)
    }

    pub(super) fn meta(&self) -> KeyRowMeta {
        KeyRowMeta {
            keyed: self.keyed.clone(),
            time_ms: self.time_ms,
            done: self.ended.done,
            answered: self.ended.answer.is_some(),
            bytes: self.weight(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRowMeta {
    pub(super) keyed: KeyedWrite,
    pub(super) time_ms: i64,
    pub(super) done: bool,
    pub(super) answered: bool,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct KeyEntry {
    write: Fingerprint,
    request: Box<str>,
    caller: Arc<str>,
    bytes: u64,
    state: KeyState,
}

#[derive(Debug)]
enum KeyState {
    /// The write is under way.
    Running,
    /// The write has ended, and its row is waiting for the disk.
    Waiting(Arc<KeyRow>),
    /// The row is on disk.
    Kept { time_ms: i64, done: bool, answered: bool },
}

impl KeyEntry {
    fn new(keyed: &KeyedWrite, bytes: u64, state: KeyState) -> Self {
        let KeyedWrite { write, request, caller, .. } = keyed;
        Self { write: *write, request: request.as_str().into(), caller: caller.clone(), bytes, state }
    }

    fn request(&self) -> Option<RequestId> {
        RequestId::parse(self.request.as_bytes())
    }

    fn is_older_than(&self, oldest_ms: i64) -> bool {
        matches!(self.state, KeyState::Kept { time_ms, .. } if time_ms < oldest_ms)
    }
}

/// The room that a caller's keys take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KeyRoom {
    keys: u64,
    bytes: u64,
}

/// The result of looking up a key.
#[derive(Debug)]
pub(super) enum KeyLookup {
    /// The key was unknown and is now claimed.
    New,
    /// The key's write is known.
    Known(EarlierUse),
    /// The key's write has ended, and its answer is on disk.
    OnDisk { first: RequestId, done: bool },
    /// The key is unknown, but its caller has no room for another key.
    NoRoom,
}

/// Where the answer to an ended write is.
#[derive(Debug)]
pub(super) enum KeptAnswer {
    /// Here, if one is kept at all.
    InMemory(Option<FirstAnswer>),
    OnDisk,
}

#[derive(Debug)]
pub(super) struct KeyTable {
    bounds: StoreBounds,
    entries: HashMap<Fingerprint, KeyEntry>,
    held: HashMap<Arc<str>, KeyRoom>,
    /// Keys whose rows are waiting for the disk.
    waiting: HashSet<Fingerprint>,
    running: usize,
}

impl KeyTable {
    pub(super) fn new(bounds: StoreBounds) -> Self {
        Self { bounds, entries: HashMap::new(), held: HashMap::new(), waiting: HashSet::new(), running: 0 }
    }

    /// Claims the key together with room for its answer, or returns what is known of it. `callers` is the number of
    /// callers that share the room.
    pub(super) fn claim(&mut self, keyed: &KeyedWrite, callers: usize, now_ms: i64) -> KeyLookup {
        self.forget_if_old(&keyed.key, now_ms);
        if let Some(entry) = self.entries.get(&keyed.key) {
            let first = entry.request().unwrap_or(keyed.request);
            return match &entry.state {
                _ if entry.write != keyed.write => KeyLookup::Known(EarlierUse::Other { first }),
                KeyState::Running => KeyLookup::Known(EarlierUse::Running { first }),
                KeyState::Waiting(row) => KeyLookup::Known(EarlierUse::Ended { first, ended: row.ended.clone() }),
                KeyState::Kept { done, answered: true, .. } => KeyLookup::OnDisk { first, done: *done },
                KeyState::Kept { done, .. } => {
                    KeyLookup::Known(EarlierUse::Ended { first, ended: WriteEnd { done: *done, answer: None } })
                }
            };
        }
        let bytes = ROW_BYTES + self.bounds.answer_bytes();
        if !self.has_room(&keyed.caller, bytes, callers) {
            return KeyLookup::NoRoom;
        }
        self.put(keyed.key, KeyEntry::new(keyed, bytes, KeyState::Running));
        KeyLookup::New
    }

    fn forget_if_old(&mut self, key: &Fingerprint, now_ms: i64) {
        let oldest = self.bounds.oldest_ms(now_ms);
        if self.entries.get(key).is_some_and(|entry| entry.is_older_than(oldest)) {
            self.remove(key);
        }
    }

    /// Half of the room is divided among all callers, each of whom has its part whatever others do. The other half
    /// goes to whoever comes first, up to its share: the total divided by the number of callers holding any of it (at
    /// least two, if there are two).
    fn has_room(&self, caller: &str, bytes: u64, callers: usize) -> bool {
        let own = self.held.get(caller).copied();
        let active = count(self.held.len() + usize::from(own.is_none()));
        let callers = count(callers).max(active);
        let own = own.unwrap_or_default();
        let fits = |of: fn(&KeyRoom) -> u64, cost: u64, limit: u64| {
            let kept = limit / 2 / callers;
            let share = limit.div_ceil(active.max(callers.min(2)));
            let (all, over) = self
                .held
                .values()
                .map(of)
                .fold((cost, 0), |(all, over), held| (all + held, over + held.saturating_sub(kept)));
            let after = of(&own) + cost;
            let over = over + after.saturating_sub(kept.max(of(&own)));
            all <= limit && (after <= kept || (after <= share && over <= limit - kept * callers))
        };
        fits(|held| held.keys, 1, self.bounds.keys) && fits(|held| held.bytes, bytes, self.bounds.bytes)
    }

    pub(super) fn end(&mut self, row: Arc<KeyRow>) {
        self.put(row.keyed.key, KeyEntry::new(&row.keyed, row.weight(), KeyState::Waiting(row.clone())));
    }

    /// Adds how a key's write ended according to someone else (the log or an operator), unless this or something
    /// newer is known already. Returns true if it was added.
    pub(super) fn add_end(&mut self, row: KeyRow) -> bool {
        let is_known = self.entries.get(&row.keyed.key).is_some_and(|entry| match &entry.state {
            KeyState::Running => false, // looking up a key in doubt claims it for a moment
            KeyState::Waiting(known) => known.keyed.request == row.keyed.request || known.time_ms >= row.time_ms,
            KeyState::Kept { time_ms, done, .. } => {
                // A rejected write may have been sent again.
                let is_same = entry.request() == Some(row.keyed.request);
                is_same || *time_ms >= row.time_ms && (*done || !row.ended.done)
            }
        });
        if !is_known {
            self.end(Arc::new(row));
        }
        !is_known
    }

    /// Adds a row that was found on disk.
    pub(super) fn put_kept(&mut self, meta: &KeyRowMeta) {
        let KeyRowMeta { time_ms, done, answered, .. } = *meta;
        self.put(meta.keyed.key, KeyEntry::new(&meta.keyed, meta.bytes, KeyState::Kept { time_ms, done, answered }));
    }

    /// Ends a claim that leaves nothing behind: the key is free, unless it was taken meanwhile.
    pub(super) fn release_claim(&mut self, keyed: &KeyedWrite) {
        let is_running =
            |entry: &KeyEntry| matches!(entry.state, KeyState::Running) && entry.request() == Some(keyed.request);
        if self.entries.get(&keyed.key).is_some_and(is_running) {
            self.remove(&keyed.key);
        }
    }

    /// Forgets a key whose write did not take effect, unless another write has taken it. Returns true if it was
    /// known.
    pub(super) fn forget_not_done(&mut self, key: &Fingerprint, request: &RequestId) -> bool {
        let is_match = self.entries.get(key).is_some_and(|entry| {
            entry.request().as_ref() == Some(request) && !matches!(entry.state, KeyState::Running)
        });
        if is_match {
            self.remove(key);
        }
        is_match
    }

    /// All keys whose writes have ended.
    pub(super) fn ended(&self) -> Vec<EndedKey> {
        let ended = |(key, entry): (&Fingerprint, &KeyEntry)| {
            let (time_ms, done) = match &entry.state {
                KeyState::Running => return None,
                KeyState::Waiting(row) => (row.time_ms, row.ended.done),
                KeyState::Kept { time_ms, done, .. } => (*time_ms, *done),
            };
            let keyed =
                KeyedWrite { key: *key, write: entry.write, request: entry.request()?, caller: entry.caller.clone() };
            Some(EndedKey { keyed, done, time_ms })
        };
        self.entries.iter().filter_map(ended).collect()
    }

    /// Where the answer to this request is, if its write has ended and used the key.
    pub(super) fn ended_answer(&self, key: &Fingerprint, first: &RequestId) -> Option<KeptAnswer> {
        let entry = self.entries.get(key).filter(|entry| entry.request().as_ref() == Some(first))?;
        match &entry.state {
            KeyState::Running => None,
            KeyState::Waiting(row) => Some(KeptAnswer::InMemory(row.ended.answer.clone())),
            KeyState::Kept { answered: true, .. } => Some(KeptAnswer::OnDisk),
            KeyState::Kept { .. } => Some(KeptAnswer::InMemory(None)),
        }
    }

    pub(super) fn waiting(&self) -> Vec<Arc<KeyRow>> {
        let row = |key: &Fingerprint| match &self.entries.get(key)?.state {
            KeyState::Waiting(row) => Some(row.clone()),
            KeyState::Running | KeyState::Kept { .. } => None,
        };
        self.waiting.iter().filter_map(row).collect()
    }

    /// Whether this row is still waiting for the disk.
    pub(super) fn is_waiting(&self, row: &Arc<KeyRow>) -> bool {
        let state = self.entries.get(&row.keyed.key).map(|entry| &entry.state);
        matches!(state, Some(KeyState::Waiting(waiting)) if Arc::ptr_eq(waiting, row))
    }

    /// Marks these rows as being on disk.
    pub(super) fn mark_stored(&mut self, rows: &[Arc<KeyRow>]) {
        for row in rows {
            if self.is_waiting(row) {
                self.put_kept(&row.meta());
            }
        }
    }

    /// Compares memory, which knows all keys, with the file after it was lost or mended: rows missing from the file
    /// wait for the disk again, without their answers. Returns the keys in the file that should not be there.
    pub(super) fn compare_with_file(&mut self, on_disk: &[KeyRowMeta]) -> Vec<Fingerprint> {
        let in_file: HashMap<Fingerprint, &KeyRowMeta> = on_disk.iter().map(|meta| (meta.keyed.key, meta)).collect();
        let mut lost = Vec::new();
        for (key, entry) in &mut self.entries {
            let KeyState::Kept { time_ms, done, answered } = &mut entry.state else { continue };
            let same =
                in_file.get(key).filter(|meta| meta.keyed.request.as_str() == &*entry.request && meta.done == *done);
            match same {
                Some(meta) => *answered = meta.answered,
                None => lost.push((*key, *time_ms, *done)),
            }
        }
        for (key, time_ms, done) in lost {
            let Some(entry) = self.entries.get(&key) else { continue };
            let (write, caller) = (entry.write, entry.caller.clone());
            match entry.request().filter(|_| done) {
                Some(request) => {
                    let keyed = KeyedWrite { key, write, request, caller };
                    self.end(Arc::new(KeyRow { keyed, ended: WriteEnd { done, answer: None }, time_ms }));
                }
                None => self.remove(&key),
            }
        }
        let is_foreign = |key: &&Fingerprint| !self.entries.contains_key(*key);
        in_file.keys().filter(is_foreign).copied().collect()
    }

    /// Forgets keys that are too old and returns how many.
    pub(super) fn expire(&mut self, now_ms: i64) -> usize {
        let oldest = self.bounds.oldest_ms(now_ms);
        let old: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.is_older_than(oldest)).map(|(key, _)| *key).collect();
        old.iter().for_each(|key| self.remove(key));
        old.len()
    }

    /// Number of keys whose writes have ended.
    pub(super) fn kept(&self) -> usize {
        self.entries.len() - self.running
    }

    fn put(&mut self, key: Fingerprint, mut entry: KeyEntry) {
        self.remove(&key);
        if let Some((caller, _)) = self.held.get_key_value(&entry.caller) {
            entry.caller = caller.clone(); // one string for all keys of a caller
        }
        let held = self.held.entry(entry.caller.clone()).or_default();
        *held = KeyRoom { keys: held.keys + 1, bytes: held.bytes + entry.bytes };
        match entry.state {
            KeyState::Running => self.running += 1,
            KeyState::Waiting(_) => drop(self.waiting.insert(key)),
            KeyState::Kept { .. } => {}
        }
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Fingerprint) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.running -= usize::from(matches!(entry.state, KeyState::Running));
        self.waiting.remove(key);
        if let Slot::Occupied(mut held) = self.held.entry(entry.caller) {
            let KeyRoom { keys, bytes } = *held.get();
            *held.get_mut() = KeyRoom { keys: keys - 1, bytes: bytes.saturating_sub(entry.bytes) };
            if keys == 1 {
                held.remove();
            }
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: u64) -> KeyTable {
        let age = Duration::from_secs(3600);
        KeyTable::new(StoreBounds { keys, age, bytes: 1 << 40, answer_bytes: 100 })
    }

    /// Number of further keys that this caller gets.
    fn fill(keys: &mut KeyTable, caller: &str, most: usize, callers: usize) -> usize {
        let claims = (0..most).take_while(|n| {
            let (name, text) = (caller.as_bytes(), format!("{n} of {}", keys.entries.len()));
            let key = Fingerprint::of(&crate::hash::hmac_key(b"key"), &[name, text.as_bytes()]);
            let request = RequestId::parse(b"r").unwrap();
            let keyed = KeyedWrite { key, write: key, request, caller: caller.into() };
            matches!(keys.claim(&keyed, callers, 0), KeyLookup::New)
        });
        claims.count()
    }

    #[test]
    fn a_caller_below_its_share_finds_room_however_much_another_asks_for() {
        let mut alone = keys(100);
        assert_eq!(fill(&mut alone, "a", 200, 1), 100, "there is no other caller");
        let mut two = keys(100);
        assert_eq!((fill(&mut two, "a", 200, 2), fill(&mut two, "b", 200, 2)), (50, 50));
        assert_eq!(fill(&mut two, "a", 1, 2), 0, "past its share");
        let mut few = keys(1);
        assert_eq!(fill(&mut few, "a", 2, 4), 1, "the minimum is one key");
    }

    /// In whatever order callers come, each finds the part reserved for it, and all together never take more than
    /// there is.
    #[test]
    fn the_part_reserved_for_a_caller_is_there_whenever_it_comes() {
        let mut random = crate::hash::sha256(b"shares");
        for callers in 1..=9_usize {
            let (limit, mut keys) = (97, keys(97));
            let kept = 97 / 2 / callers;
            for _ in 0..40 {
                random = crate::hash::sha256(&random);
                let caller = (usize::from(random[0]) % callers).to_string();
                fill(&mut keys, &caller, usize::from(random[1]) % 30, callers);
            }
            for caller in 0..callers {
                let caller = caller.to_string();
                fill(&mut keys, &caller, kept, callers);
                let held = keys.held.get(caller.as_str()).copied().unwrap_or_default();
                assert!(
                    held.keys >= kept as u64,
                    "{callers} callers: {caller} has {held:?}, below the reserved {kept}"
                );
            }
            let all: u64 = keys.held.values().map(|held| held.keys).sum();
            assert!(all <= limit && all == keys.entries.len() as u64, "{callers} callers: {all}");
        }
    }

    #[test]
    fn room_given_back_is_free_and_counted_once() {
        let mut keys = keys(2);
        let id = |text: &str| RequestId::parse(text.as_bytes()).unwrap();
        let key = Fingerprint::of(&crate::hash::hmac_key(b"key"), &[b"k"]);
        let keyed = |request| KeyedWrite { key, write: key, request: id(request), caller: "a".into() };
        assert!(matches!(keys.claim(&keyed("r-1"), 1, 0), KeyLookup::New));
        keys.release_claim(&keyed("r-2"));
        assert!(matches!(keys.claim(&keyed("r-2"), 1, 0), KeyLookup::Known(EarlierUse::Running { .. })));
        keys.release_claim(&keyed("r-1"));
        assert_eq!((keys.entries.len(), keys.held.len(), keys.running), (0, 0, 0));
        assert!(matches!(keys.claim(&keyed("r-2"), 1, 0), KeyLookup::New));
        let row = KeyRow { keyed: keyed("r-2"), ended: WriteEnd { done: true, answer: None }, time_ms: 0 };
        keys.end(Arc::new(row));
        let rows = keys.waiting();
        keys.mark_stored(&rows);
        assert_eq!((rows.len(), keys.waiting().len(), keys.kept(), keys.running), (1, 0, 1, 0));
        assert_eq!(keys.held.values().copied().collect::<Vec<_>>(), [KeyRoom { keys: 1, bytes: ROW_BYTES }]);
        assert_eq!((keys.expire(3_600_001), keys.held.len(), keys.entries.len()), (1, 0, 0));
    }
}
