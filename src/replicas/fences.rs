//! Fences over all replicas (promise 3).
//!
//! The engine gives every raise a place in one order without gaps, and announces it. Each replica applies what others raise in that
//! order, and says how far it has come: by each beat, and at once after it has applied something. Whoever has raised a fence waits for
//! that ([`raise`](super::Replicas::raise)).

mod raise;
mod wait;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::Replicas;
use super::engine::{HELLO, Line, Statement};
use super::members::outlasting;

pub(super) use self::wait::AckPolls;

/// The least time from one acknowledgement to the next.
const ACK_INTERVAL: Duration = Duration::from_millis(10);
/// How often the engine is asked for new fences where its announcements are not heard, while there are other replicas.
const ASK_INTERVAL: Duration = Duration::from_millis(30);
/// How often old fences are deleted, and how old they are then. A member that was given up for longer fences everything when it is back.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
const KEPT: &str = "5 minutes";
/// Time for the way of a raise to the engine and back.
const WAY: Duration = Duration::from_millis(100);

static ACK: Statement = Statement::new(
    "update mg.member set acked = greatest(acked, $1) where replica = $2 and incarnation = $3 \
     and exists (select from mg.epoch where id = $4)",
    &[Type::INT8, Type::TEXT, Type::UUID, Type::UUID],
);
static NEWER: Statement = Statement::new(
    "select e.id, f.seq, f.tags, f.doubt_ms, f.raised_by from mg.epoch e left join mg.fence f on f.seq > $1 order by f.seq",
    &[Type::INT8],
);
/// Quotas that nobody has asked for in so long hold nothing any more. Callers choose their names, so they must not stay.
static PRUNE_BUCKETS: Statement = Statement::new(
    "delete from mg.bucket where id in (select b.id from mg.bucket b where b.touched < clock_timestamp() - interval '2 hours' \
       limit 10000 for update skip locked)",
    &[],
);
static PRUNE: Statement = Statement::new(
    "delete from mg.fence where seq <= (select min(acked) from mg.member where not gone) \
     and at < clock_timestamp() - $1::text::interval",
    &[Type::TEXT],
);

/// The longest that a raise waits for the other replicas while the engine answers: for their leases by the slowest of clocks.
#[must_use]
pub fn longest_wait(lease: Duration) -> Duration {
    outlasting(lease) + WAY
}

/// Why fences are raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceKind {
    /// An operator's purge, or a new token.
    Purge,
    /// A write took effect, or may have.
    Settled,
    /// A write may take effect for this long.
    InDoubt(Duration),
}

impl FenceKind {
    /// As the engine stores it.
    pub(super) fn to_engine(self) -> Option<i32> {
        match self {
            Self::Settled => None,
            Self::Purge => Some(-1),
            Self::InDoubt(doubt) => Some(i32::try_from(doubt.as_millis()).unwrap_or(i32::MAX)),
        }
    }

    /// Undoes [`Self::to_engine`].
    pub(super) fn of_engine(stored: Option<i32>) -> Self {
        match stored {
            None => Self::Settled,
            Some(doubt_ms) => {
                u64::try_from(doubt_ms).map_or(Self::Purge, |ms| Self::InDoubt(Duration::from_millis(ms)))
            }
        }
    }
}

/// What fences guard: this replica's memory.
pub trait FenceTarget: Send + Sync {
    /// Raises the fences of these tags (none: everything).
    fn raise(&self, tags: &[String], kind: FenceKind);
    /// Fences everything, because this replica may have missed fences. What is fetched from now on may still lag.
    fn raise_all(&self);
}

/// A fence in the engine's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OrderedFence {
    place: i64,
    tags: Vec<String>,
    kind: FenceKind,
    /// The process that raised it.
    raised_by: Uuid,
}

impl OrderedFence {
    /// The fence in a row's columns from this one on; `None` if they are empty.
    pub(super) fn of_row(row: &Row, from: usize) -> Option<Self> {
        let place: Option<i64> = row.get(from);
        Some(Self {
            place: place?,
            tags: row.get::<_, Option<_>>(from + 1).unwrap_or_default(),
            kind: FenceKind::of_engine(row.get(from + 2)),
            raised_by: row.get(from + 3),
        })
    }
}

/// The fence that an announcement tells whole, and its epoch.
fn announced_fence(told: &str) -> Option<(Uuid, OrderedFence)> {
    let mut words = told.splitn(5, ' ');
    let place = words.next()?.parse().ok()?;
    let epoch = words.next()?.parse().ok()?;
    let raised_by = words.next()?.parse().ok()?;
    let doubt = match words.next()? {
        "-" => None,
        doubt_ms => Some(doubt_ms.parse().ok()?),
    };
    let tags = serde_json::from_str(words.next()?).ok()?;
    Some((epoch, OrderedFence { place, tags, kind: FenceKind::of_engine(doubt), raised_by }))
}

/// What a fence was to this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was the next one, and is applied now.
    Applied,
    /// It was raised here, or is known.
    Known,
    /// Others come before it, or it is of another epoch.
    Early,
}

/// Which fences of the engine's order this replica has applied.
#[derive(Default)]
pub(super) struct AppliedFences {
    target: OnceLock<Arc<dyn FenceTarget>>,
    /// The process that this is.
    own: Uuid,
    state: Mutex<AppliedState>,
    /// Others' fences were applied, and the engine does not know it yet.
    unacked: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct AppliedState {
    epoch: Option<Uuid>,
    /// All up to this one.
    upto: i64,
}

impl fmt::Debug for AppliedFences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AppliedFences").field(&self.state).finish()
    }
}

impl AppliedFences {
    pub(super) fn new(own: Uuid) -> Self {
        Self { own, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, AppliedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until then there was nothing to guard; what is fetched from now on may still lag behind fences that came before.
    pub(super) fn set_target(&self, target: Arc<dyn FenceTarget>) {
        let _state = self.state();
        self.target.get_or_init(|| target).raise_all();
    }

    /// The place up to which all fences are applied.
    pub(super) fn upto(&self) -> i64 {
        self.state().upto
    }

    /// This replica joined this epoch when `head` was the newest place: whatever was raised before is behind the fence of everything.
    pub(super) fn joined(&self, epoch: Uuid, head: i64) {
        let mut state = self.state();
        if let Some(target) = self.target.get() {
            target.raise_all();
        }
        *state = AppliedState { epoch: Some(epoch), upto: head };
    }

    /// Applies this fence if it is the next one. What was raised here was applied before it had a place.
    pub(super) fn take(&self, epoch: Uuid, fence: &OrderedFence) -> Taken {
        let mut state = self.state();
        if state.epoch != Some(epoch) {
            return Taken::Early;
        }
        if fence.place <= state.upto {
            return Taken::Known;
        }
        if fence.place != state.upto + 1 {
            return Taken::Early;
        }
        let is_own = fence.raised_by == self.own;
        if let Some(target) = self.target.get().filter(|_| !is_own) {
            target.raise(&fence.tags, fence.kind);
        }
        // Only now, and under the same lock: what is acknowledged is applied.
        state.upto = fence.place;
        if is_own {
            return Taken::Known;
        }
        self.unacked.notify_one();
        Taken::Applied
    }
}

impl Replicas {
    /// Applies announced fences; whatever is missing between them, the next beat brings.
    pub(super) async fn hear_fences(self: Arc<Self>, mut announced: mpsc::Receiver<String>) {
        while let Some(told) = announced.recv().await {
            let taken = announced_fence(&told).map(|(epoch, fence)| self.fences.take(epoch, &fence));
            if !matches!(taken, Some(Taken::Applied | Taken::Known)) && !told.starts_with(HELLO) {
                self.beat_now.notify_one();
            }
        }
    }

    /// Tells the engine how far this replica has come, as soon as it has applied something.
    pub(super) async fn acknowledge_fences(self: Arc<Self>) {
        loop {
            self.fences.unacked.notified().await;
            let AppliedState { epoch, upto } = *self.fences.state();
            // If it fails, the next beat says it.
            let _told = self.engine.execute(Line::Quick, &ACK, &[&upto, &&*self.name, &self.incarnation, &epoch]).await;
            tokio::time::sleep(ACK_INTERVAL).await;
        }
    }

    /// Asks for new fences where their announcements are not heard.
    pub(super) async fn ask_for_fences(self: Arc<Self>) {
        loop {
            tokio::time::sleep(ASK_INTERVAL).await;
            if self.engine.hears() || !self.has_others() || !self.engine.is_connected(Line::Quick) {
                continue;
            }
            let upto = self.fences.upto();
            let Ok(rows) = self.engine.query(Line::Quick, &NEWER, &[&upto]).await else { continue };
            let mut fences = rows.iter().filter_map(|row| Some((row.get(0), OrderedFence::of_row(row, 1)?)));
            if fences.any(|(epoch, fence)| self.fences.take(epoch, &fence) == Taken::Early) {
                self.beat_now.notify_one();
            }
        }
    }

    /// Deletes old fences that no member lacks, and old quotas.
    pub(super) async fn prune(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PRUNE_INTERVAL).await;
            // If it fails, another replica does it, or this one next time.
            let _pruned = self.engine.execute(Line::Bulk, &PRUNE, &[&KEPT]).await;
            // By a clock that was set, new ones may look old.
            if self.engine_clock.steps() == 0 {
                let _pruned = self.engine.execute(Line::Bulk, &PRUNE_BUCKETS, &[]).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
