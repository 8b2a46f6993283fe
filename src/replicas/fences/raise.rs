//! Raising a fence at all replicas.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::FenceKind;
use super::wait::{FenceWait, WaitRule};
use crate::replicas::engine::{EngineError, Line, Statement, cut_at_random};
use crate::replicas::{Epoch, Replicas};

/// Pause before a raise is tried again; cut at random.
const RETRY: Duration = Duration::from_millis(100);
/// PostgreSQL's code for a raise in an epoch that is over (`schema.sql`).
const ANOTHER_EPOCH: &str = "MG001";

static RAISE: Statement = Statement::new(
    "select mg.raise($1, $2, $3, $4), (select max(lease_ms) from mg.replica where left_at is null)",
    &[Type::UUID, Type::TEXT_ARRAY, Type::INT4, Type::UUID],
);

/// A fence that has its place in an epoch's order.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedFence {
    pub(super) epoch: Epoch,
    pub(super) place: i64,
}

impl Replicas {
    /// Raises the fences of these tags (none: everything) at all other replicas; here they must be raised already. When this returns,
    /// no read that arrives later is answered from what any replica fetched before the call. While the engine cannot be reached, it
    /// goes on trying.
    pub async fn raise(&self, tags: &[String], kind: FenceKind) {
        let began = self.clock.now();
        let by = self.raise_and_wait(tags, kind).await;
        let counters = &self.counters;
        let waits = if by == FenceWait::Acknowledged { &counters.fence_acks } else { &counters.fence_leases };
        waits.fetch_add(1, Ordering::Relaxed);
        counters.fence_waits.add(self.clock.now().saturating_duration_since(began));
    }

    /// Returns how the wait ended.
    async fn raise_and_wait(&self, tags: &[String], kind: FenceKind) -> FenceWait {
        let placed = self.place(tags, kind).await;
        let returned = self.clock.boot();
        let mut rule = WaitRule::new(self.longest_lease(), returned, placed, self.polls.begun());
        let mut polls = self.polls.subscribe();
        let mut waiting = None;
        loop {
            let poll = *polls.borrow_and_update();
            let now = self.clock.boot();
            match rule.state(now, &poll) {
                over @ (FenceWait::Acknowledged | FenceWait::Outlasted) => return over,
                FenceWait::Until(until) => {
                    if now >= rule.acks_count_from() {
                        waiting.get_or_insert_with(|| self.polls.wait());
                    }
                    let _sooner = self.clock.timeout(until.saturating_sub(now), polls.changed()).await;
                }
                FenceWait::Again => {
                    let left = rule.outlasted().saturating_sub(now);
                    if let Some(placed) = self.clock.timeout(left, self.place(tags, kind)).await {
                        rule.place_again(placed, self.polls.begun());
                    }
                }
            }
        }
    }

    /// Has the engine give the fence a place, however long that takes.
    async fn place(&self, tags: &[String], kind: FenceKind) -> PlacedFence {
        let mut known = self.epoch.subscribe();
        loop {
            self.engine.connected(Line::Quick).await;
            let Some(epoch) = *known.borrow_and_update() else {
                let _joined = tokio::time::timeout(RETRY, known.changed()).await;
                continue;
            };
            let doubt = kind.to_engine();
            match self.engine.query(Line::Quick, &RAISE, &[&epoch.id, &tags, &doubt, &self.incarnation]).await {
                Ok(rows) => {
                    if let Some(row) = rows.first() {
                        self.note_lease(row.get(1));
                        return PlacedFence { epoch, place: row.get(0) };
                    }
                }
                Err(EngineError::Failed { code, .. }) if code.code() == ANOTHER_EPOCH => {
                    self.beat_now.notify_one();
                    let _joined = tokio::time::timeout(RETRY, known.changed()).await;
                    continue;
                }
                Err(why) => tracing::debug!(%why, "a fence could not be raised: it is tried again"),
            }
            tokio::time::sleep(cut_at_random(RETRY)).await;
        }
    }
}
