//! Tasks that shutdown waits for: a write or a cache fill in its own task outlives its caller, but never the process.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tracked tasks of one part of the process, and the signal that tells them to stop.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// An empty set of tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` to completion, even if its handle is dropped.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // Boxed: a write's future is 5 KB, and a spawn moves what it is given half a dozen times.
        self.tracker.spawn(Box::pin(task))
    }

    /// Runs `task` until it ends or shutdown begins, for timers and watchers, which have nothing worth finishing.
    pub fn spawn_until_stop<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = task => {} }
        });
    }

    /// A token that is cancelled when shutdown begins.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Signals every task that shutdown has begun.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits up to `limit` for all tasks to end. `false` if some have not.
    pub async fn drained(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}
