//! Work on large bodies: searching through lists, hashing. It takes longer than anyone else's hit may wait, so it is done off the threads
//! that answer requests, and only so much at a time; callers take turns.

#![expect(clippy::disallowed_methods, reason = "work on memory alone; no file is touched")]

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::fair_semaphore::FairSemaphore;

/// Work on a smaller body takes less time than moving it would be worth.
pub(crate) const LARGE_BYTES: usize = 256 << 10;

/// Places for work on large bodies.
pub(crate) struct LargeWork(FairSemaphore);

impl LargeWork {
    /// Half of the cores may do such work; the others are left for everything else.
    pub(crate) fn new() -> Self {
        Self(FairSemaphore::new(available_parallelism().map_or(1, |cores| cores.get() / 2).max(1)))
    }

    /// Does `work` on a body of this many bytes, for this caller. The turn may take long to come: whoever has a deadline must bound the
    /// wait. The last place goes only to a caller that has none, and turns go round callers.
    pub(crate) async fn run<T>(&self, caller: &Arc<str>, bytes: usize, work: impl FnOnce() -> T) -> T {
        if bytes < LARGE_BYTES {
            return work();
        }
        let _place = self.0.acquire(caller).await;
        // A runtime with a single thread (in tests) has no other thread to go on with.
        if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
            tokio::task::block_in_place(work)
        } else {
            work()
        }
    }

    /// Takes every place, each for a caller of its own.
    #[cfg(test)]
    pub(crate) async fn take_all(&self) -> Vec<crate::fair_semaphore::FairPermit> {
        let mut taken = Vec::new();
        while self.0.free() > 0 {
            taken.push(self.0.acquire(&format!("holder-{}", taken.len()).into()).await);
        }
        taken
    }
}
