//! placeholder
use crate::clock::Clock;
use std::sync::Arc;
use std::time::{Duration, Instant};
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BucketId {
    Account,
    Organization(u64),
}
pub struct Quota;
pub struct Slot;
pub enum Refused {
    QueueFull { retry_after: Duration, limit: u32 },
    TooLong { retry_after: Duration, limit: u32 },
}
impl Quota {
    pub async fn turn(&self, _: BucketId, _: &Arc<str>, _: usize, _: Instant) -> Result<Slot, Refused> {
        Ok(Slot)
    }
    pub fn learn(&self, _: u64, _: u32) {}
    pub fn close(&self, _: BucketId, _: Option<Duration>) {}
    pub fn new(_: Clock) -> Self {
        Self
    }
}
impl Slot {
    pub fn unsent(self) {}
    pub fn waited(&self) -> Duration {
        Duration::ZERO
    }
}

pub struct View {
    pub used: u32,
    pub limit: u32,
    pub waiting: usize,
}
impl Quota {
    pub fn view(&self, _: BucketId) -> View {
        View { used: 0, limit: 0, waiting: 0 }
    }
}

pub struct BucketView {
    pub organization: Option<u64>,
    pub limit: u32,
    pub used: u32,
    pub waiting: usize,
    pub closed_for: Option<Duration>,
    pub callers: Vec<SpenderView>,
}
pub struct SpenderView {
    pub name: Arc<str>,
    pub spent: u64,
    pub saved: u64,
    pub waited_us: u64,
}
impl Quota {
    pub fn buckets(&self) -> Vec<BucketView> {
        Vec::new()
    }
}
