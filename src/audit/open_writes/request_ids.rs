//! Request ids in use: a request holds its id exclusively while it is under way, and a write until its outcome is on
//! disk. So at any moment an id names only one request, whoever chose it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::ids::RequestId;

/// Number of locks that the ids are spread over.
const SHARDS: usize = 16;

/// The ids in use, with their number of holders.
#[derive(Debug, Default)]
pub struct RequestIds {
    shards: [Mutex<HashMap<RequestId, u32>>; SHARDS],
}

impl RequestIds {
    /// Takes this id. Returns `None` if it is already in use.
    #[must_use]
    pub fn take(self: &Arc<Self>, id: RequestId) -> Option<HeldRequestId> {
        match self.shard(&id).entry(id) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(1);
                Some(HeldRequestId { id, request_ids: Some(self.clone()) })
            }
        }
    }

    /// Generates a new id and takes it.
    pub fn make(self: &Arc<Self>, now: Timestamp) -> HeldRequestId {
        loop {
            if let Some(name) = self.take(RequestId::at(now)) {
                return name;
            }
        }
    }

    /// Adds a holder of this id, whether or not it has others.
    pub(crate) fn hold(self: &Arc<Self>, id: RequestId) -> HeldRequestId {
        *self.shard(&id).entry(id).or_insert(0) += 1;
        HeldRequestId { id, request_ids: Some(self.clone()) }
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
        // Shard 0 is apart because, unlike `get`, `first` cannot fail.
        let shard = (at % SHARDS).checked_sub(1).and_then(|at| rest.get(at)).unwrap_or(first);
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of ids in use.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// A held request id, which is free again once its last holder drops it.
#[derive(Debug)]
#[must_use]
pub struct HeldRequestId {
    id: RequestId,
    /// `None` for an id that nobody can know and ask for.
    request_ids: Option<Arc<RequestIds>>,
}

impl HeldRequestId {
    /// A new id that is not revealed while its request is under way. It cannot be guessed, so it is not registered.
    pub fn unregistered(now: Timestamp) -> Self {
        Self { id: RequestId::at(now), request_ids: None }
    }

    /// The id.
    #[must_use]
    pub const fn id(&self) -> &RequestId {
        &self.id
    }

    /// Adds another holder.
    pub fn add_holder(&self) -> Self {
        match &self.request_ids {
            Some(request_ids) => request_ids.hold(self.id),
            None => Self { id: self.id, request_ids: None },
        }
    }
}

impl Drop for HeldRequestId {
    fn drop(&mut self) {
        if let Some(request_ids) = &self.request_ids {
            request_ids.release(self.id);
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
        let second = first.add_holder();
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
