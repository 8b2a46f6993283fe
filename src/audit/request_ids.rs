//! Request ids that are taken: a request has its id for itself while it is under way, and a write until it is on disk how it ended.
//! So an id names one request at any moment, whoever chose it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::ids::RequestId;

/// Locks that the ids are spread over.
const SHARDS: usize = 16;

/// The ids that are taken, and by how many holders.
#[derive(Debug, Default)]
pub struct RequestIds {
    shards: [Mutex<HashMap<RequestId, u32>>; SHARDS],
}

impl RequestIds {
    /// Takes this id; `None`: somebody has it.
    #[must_use]
    pub fn take(self: &Arc<Self>, id: RequestId) -> Option<HeldRequestId> {
        match self.shard(&id).entry(id) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(1);
                Some(HeldRequestId { id, names: Some(self.clone()) })
            }
        }
    }

    /// Makes a new id and takes it.
    pub fn make(self: &Arc<Self>, now: Timestamp) -> HeldRequestId {
        loop {
            if let Some(name) = self.take(RequestId::at(now)) {
                return name;
            }
        }
    }

    /// One more holder of this id, whether somebody has it already or not.
    pub(crate) fn hold(self: &Arc<Self>, id: RequestId) -> HeldRequestId {
        *self.shard(&id).entry(id).or_insert(0) += 1;
        HeldRequestId { id, names: Some(self.clone()) }
    }

    fn release(&self, id: RequestId) {
        if let Entry::Occupied(mut holders) = self.shard(&id).entry(id) {
            *holders.get_mut() -= 1;
            if *holders.get() == 0 {
                holders.remove();
            }
        }
    }

    fn shard(&self, id: &RequestId) -> MutexGuard<'_, HashMap<RequestId, u32>> {
        let [first, rest @ ..] = &self.shards;
        let at = id.as_str().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        // Of shard 0 there is no other way to say that it is always there.
        let shard = (at % SHARDS).checked_sub(1).and_then(|at| rest.get(at)).unwrap_or(first);
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many ids are taken.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// A request's id. Dropped by its last holder, it is free again.
#[derive(Debug)]
#[must_use]
pub struct HeldRequestId {
    id: RequestId,
    /// `None`: nobody can ask for it.
    names: Option<Arc<RequestIds>>,
}

impl HeldRequestId {
    /// A new id that nobody learns while its request is under way: it cannot be guessed, and need not be taken.
    pub fn untold(now: Timestamp) -> Self {
        Self { id: RequestId::at(now), names: None }
    }

    /// The id.
    #[must_use]
    pub const fn id(&self) -> &RequestId {
        &self.id
    }

    /// One more holder.
    pub fn share(&self) -> Self {
        match &self.names {
            Some(names) => names.hold(self.id),
            None => Self { id: self.id, names: None },
        }
    }
}

impl Drop for HeldRequestId {
    fn drop(&mut self) {
        if let Some(names) = &self.names {
            names.release(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_free_again_when_its_last_holder_lets_go() {
        let names = Arc::new(RequestIds::default());
        let id = RequestId::parse(b"job-1").unwrap();
        let first = names.take(id).unwrap();
        assert!(names.take(id).is_none());
        let second = first.share();
        drop(first);
        assert!(names.take(id).is_none(), "the second still has it");
        drop(second);
        let third = names.take(id).unwrap();
        let fourth = names.hold(id);
        drop((third, fourth));
        assert_eq!(names.count(), 0);
    }

    #[test]
    fn every_shard_is_used() {
        let names = Arc::new(RequestIds::default());
        let held: Vec<HeldRequestId> = (0..500).map(|_| names.make(Timestamp::UNIX_EPOCH)).collect();
        assert!(names.shards.iter().all(|shard| !shard.lock().unwrap().is_empty()));
        assert_eq!(names.count(), held.len());
    }
}
