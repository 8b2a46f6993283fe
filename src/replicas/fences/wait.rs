//! How long a raise waits: the rule, and one poll of acknowledgements for everybody who waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::raise::PlacedFence;
use crate::replicas::Replicas;
use crate::replicas::engine::{Line, Statement};

/// Pause between two polls: at first, and at most. Each poll makes it longer by a quarter; whoever comes makes it short again.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Pause after a poll that failed.
const PAUSE_FAILED: Duration = Duration::from_millis(50);

static LEAST: Statement = Statement::new(
    "select (select id from mg.epoch), (select min(acked) from mg.member where incarnation <> $1 and not gone)",
    &[Type::UUID],
);

/// What one poll found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AckPoll {
    /// The number of the poll. It saw all that happened before it was counted.
    pub(super) number: u64,
    pub(super) epoch: Option<Uuid>,
    /// How far the last of the other members has come; `None`: there are no others.
    pub(super) least: Option<i64>,
}

/// What a raise waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FenceWait {
    /// Every member has applied it, and no lease of an earlier epoch is left.
    Acknowledged,
    /// Every lease from before the raise is over.
    Outlasted,
    /// Something, until this time since the machine's start at the latest.
    Until(Duration),
    /// It is to be raised again: the epoch that it was raised in is over.
    Again,
}

/// When a raised fence lets its writer answer. All times are since this machine's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitRule {
    /// How long another replica's lease may last by this machine's clock.
    lease: Duration,
    /// When the last lease that may not know of the fence is over.
    outlasted: Duration,
    placed: PlacedFence,
    /// The newest poll that may not have seen the raise.
    polls: u64,
}

impl WaitRule {
    /// For a fence that was placed before `returned`.
    pub(super) fn new(lease: Duration, returned: Duration, placed: PlacedFence, polls: u64) -> Self {
        Self { lease, outlasted: returned + lease, placed, polls }
    }

    /// The same fence was placed again, in another epoch. A lease since the first time is still enough: whoever joins fences everything.
    pub(super) fn place_again(&mut self, placed: PlacedFence, polls: u64) {
        (self.placed, self.polls) = (placed, polls);
    }

    pub(super) const fn outlasted(&self) -> Duration {
        self.outlasted
    }

    /// When acknowledgements begin to count: members of an earlier epoch may have leases that this one knows nothing of.
    pub(super) fn acks_count_from(&self) -> Duration {
        self.placed.epoch.seen + self.lease
    }

    pub(super) fn state(&self, now: Duration, poll: &AckPoll) -> FenceWait {
        if now >= self.outlasted {
            return FenceWait::Outlasted;
        }
        if now < self.acks_count_from() {
            return FenceWait::Until(self.outlasted.min(self.acks_count_from()));
        }
        if poll.number <= self.polls {
            return FenceWait::Until(self.outlasted);
        }
        if poll.epoch != Some(self.placed.epoch.id) {
            return FenceWait::Again;
        }
        if poll.least.is_none_or(|least| least >= self.placed.place) {
            return FenceWait::Acknowledged;
        }
        FenceWait::Until(self.outlasted)
    }
}

/// The polls of this replica, which go on while somebody waits.
#[derive(Debug, Default)]
pub(in crate::replicas) struct AckPolls {
    begun: AtomicU64,
    waiting: AtomicUsize,
    wanted: Notify,
    newest: watch::Sender<AckPoll>,
}

/// Keeps the polls going.
pub(super) struct PollWaiter<'a>(&'a AckPolls);

impl Drop for PollWaiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AckPolls {
    /// The number of the newest poll that has begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<AckPoll> {
        self.newest.subscribe()
    }

    pub(super) fn wait(&self) -> PollWaiter<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.wanted.notify_one();
        PollWaiter(self)
    }
}

impl Replicas {
    /// Polls while somebody waits.
    pub(in crate::replicas) async fn poll_acks(self: Arc<Self>) {
        let polls = &self.polls;
        loop {
            polls.wanted.notified().await;
            let mut pause = PAUSE;
            while polls.waiting.load(Ordering::SeqCst) > 0 {
                let number = polls.begun.fetch_add(1, Ordering::SeqCst) + 1;
                match self.engine.query(Line::Quick, &LEAST, &[&self.incarnation]).await {
                    Ok(rows) => rows.iter().for_each(|row| {
                        polls.newest.send_replace(AckPoll { number, epoch: row.get(0), least: row.get(1) });
                    }),
                    Err(_) => pause = PAUSE_FAILED,
                }
                if tokio::time::timeout(pause, polls.wanted.notified()).await.is_ok() {
                    pause = PAUSE;
                    tokio::time::sleep(pause).await;
                } else {
                    pause = (pause * 5 / 4).min(PAUSE_MAX);
                }
            }
        }
    }
}
