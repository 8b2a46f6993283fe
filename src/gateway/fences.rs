//! Fences beyond this process: raised here first, then at the other replicas, if there are any; and what memory may answer while this
//! replica does not know whether it has missed some.

use std::sync::{Arc, Weak};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::state::Gateway;
use crate::audit::Doubt;
use crate::cache::{CacheDetail, Entry, Invalidation};
use crate::config::WithoutLease;
use crate::replicas::Replicas;
use crate::replicas::fences::{FenceKind, FenceTarget};
use crate::tasks::Tasks;

/// Whether memory may answer a read that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryUse {
    /// No write that was answered before the read came is missing here.
    Allowed,
    /// Fences may be missing here; memory answers all the same, and says so.
    Unfenced,
    /// Fences may be missing here: nothing answers that was fetched before the read came.
    Forbidden,
}

impl MemoryUse {
    /// What `Cache-Status` says of it.
    pub(crate) const fn detail(self) -> Option<CacheDetail> {
        match self {
            Self::Allowed => None,
            Self::Unfenced => Some(CacheDetail::Unfenced),
            Self::Forbidden => Some(CacheDetail::NoLease),
        }
    }
}

/// A fence that is raised here, and still to be raised at the other replicas.
#[must_use = "the other replicas learn of it only by what is done with this"]
pub(crate) struct RaisedFence(Option<FenceForOthers>);

struct FenceForOthers {
    replicas: Arc<Replicas>,
    tags: Vec<String>,
    kind: FenceKind,
}

impl RaisedFence {
    /// Raises it at the other replicas. When this returns, none of them finds or joins what was fetched before. While the engine cannot
    /// be reached it does not return.
    pub(crate) async fn everywhere(self) {
        if let Some(FenceForOthers { replicas, tags, kind }) = self.0 {
            // Boxed: without other replicas nobody should pay for its room.
            Box::pin(replicas.raise(&tags, kind)).await;
        }
    }

    /// Lets the other replicas be: they have raised it by themselves.
    pub(crate) fn here_alone(self) {}

    /// Raises it at the other replicas in a task of its own.
    pub(crate) fn in_background(self, tasks: &Tasks) {
        drop(self.spawned(tasks));
    }

    /// Raises it at the other replicas, and waits as long as that takes while they can be told. Returns whether they were.
    pub(crate) async fn everywhere_or_later(self, tasks: &Tasks) -> bool {
        let Some(limit) = self.0.as_ref().map(|fence| fence.replicas.config().lease * 2) else { return true };
        match self.spawned(tasks) {
            Some(task) => tokio::time::timeout(limit, task).await.is_ok(),
            None => false,
        }
    }

    fn spawned(self, tasks: &Tasks) -> Option<JoinHandle<()>> {
        let lease = self.0.as_ref()?.replicas.config().lease;
        // A write that is dropped at the very end has no runtime any more; the others fence what it touches when they adopt it.
        Handle::try_current().ok()?;
        let stop = tasks.stop_token();
        Some(tasks.spawn(async move {
            // Once shutdown has begun it may take as long as a fence takes, but waits for no engine that is away.
            let too_late = async {
                stop.cancelled().await;
                tokio::time::sleep(lease).await;
            };
            tokio::select! { () = self.everywhere() => {}, () = too_late => {} }
        }))
    }
}

impl Gateway {
    /// From now on other replicas' fences are raised on this gateway's cache.
    pub fn follow_fences(self: &Arc<Self>) {
        if let Some(replicas) = &self.replicas {
            replicas.set_fence_target(Arc::new(FencedCache(Arc::downgrade(self))));
        }
    }

    /// Raises the fences of `tags` (none: everything) here, at once. The other replicas follow by what is done with the result; before
    /// a write's answer is sent, that is [`RaisedFence::everywhere`].
    pub(crate) fn raise(&self, tags: Vec<String>, after: Invalidation) -> RaisedFence {
        self.cache.raise(&tags, after);
        self.for_others(tags, after)
    }

    /// Drops the entries with this tag, or all of them, here. Returns their number.
    pub(crate) fn purge(&self, tag: Option<&str>) -> (usize, RaisedFence) {
        let dropped = match tag {
            Some(tag) => self.cache.purge(tag),
            None => self.cache.purge_all(),
        };
        (dropped, self.for_others(tag.into_iter().map(str::to_owned).collect(), Invalidation::Purge))
    }

    /// Drops the entry under this key here. The other replicas give up what has its most special tag: they know entries by tags alone.
    pub(crate) fn purge_entry(&self, key: &str, entry: &Entry) -> RaisedFence {
        self.cache.purge_entry(key);
        let special = entry.tags().max_by_key(|tag| tag.len()).map(|tag| (**tag).to_owned());
        self.for_others(special.into_iter().collect(), Invalidation::Purge)
    }

    fn for_others(&self, tags: Vec<String>, after: Invalidation) -> RaisedFence {
        let kind = match after {
            Invalidation::Purge => FenceKind::Purge,
            Invalidation::Settled { .. } => FenceKind::Settled,
            Invalidation::InDoubt { doubt, .. } => FenceKind::InDoubt(doubt),
        };
        RaisedFence(self.replicas.clone().map(|replicas| FenceForOthers { replicas, tags, kind }))
    }

    /// Fences what this write touches, or everything if its operation is unknown now.
    pub(crate) fn fence_doubt(&self, doubt: &Doubt, after: Invalidation) -> RaisedFence {
        let policy = self.policy();
        let row = policy.catalogue().row(&doubt.operation);
        let tags = row.and_then(|row| super::tags::of_path(row, &doubt.path));
        self.raise(tags.unwrap_or_default(), after)
    }

    /// Fences what a write in doubt may still change.
    pub(crate) fn fence_in_doubt(&self, doubt: &Doubt) -> RaisedFence {
        let policy = self.policy();
        let cache = &policy.config.cache;
        self.fence_doubt(doubt, Invalidation::InDoubt { settle: cache.settle, doubt: cache.doubt })
    }

    /// Whether memory may answer a read that arrived before this call.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        match &self.replicas {
            None => MemoryUse::Allowed,
            Some(replicas) if replicas.lease().holds() => MemoryUse::Allowed,
            Some(replicas) => match replicas.config().without {
                WithoutLease::Refuse => MemoryUse::Forbidden,
                WithoutLease::Memory => MemoryUse::Unfenced,
            },
        }
    }
}

/// What other replicas' fences are raised on: this gateway's cache. Each replica has its own settle time.
struct FencedCache(Weak<Gateway>);

impl FenceTarget for FencedCache {
    fn raise(&self, tags: &[String], kind: FenceKind) {
        let Some(gateway) = self.0.upgrade() else { return };
        let settle = gateway.policy().config.cache.settle;
        let after = match kind {
            FenceKind::Purge => Invalidation::Purge,
            FenceKind::Settled => Invalidation::Settled { settle },
            FenceKind::InDoubt(doubt) => Invalidation::InDoubt { settle, doubt },
        };
        gateway.cache.raise(tags, after);
    }

    fn raise_all(&self) {
        self.raise(&[], FenceKind::Settled);
    }
}
