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

use crate::config::QuotaSetting;
use std::path::Path;
pub struct Settings {
    pub setting: QuotaSetting,
    pub queue_per_caller: usize,
}
impl Quota {
    pub fn open(_: Settings, _: Option<&Path>, _: Clock) -> Result<Self, String> {
        Ok(Self)
    }
    pub fn configure(&self, _: Settings) {}
    pub fn sync(&self) {}
}
