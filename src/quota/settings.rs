//! The quota's configuration, and the limit that it gives a bucket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{BucketId, UNLEARNED_PER_MINUTE};
use crate::config::QuotaSetting;

/// The quota's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaSettings {
    /// `upstream.quota`.
    pub setting: QuotaSetting,
    /// `[upstream.quotas]`, by organization.
    pub of_organizations: Arc<BTreeMap<u64, QuotaSetting>>,
    /// The largest limit that is believed (`upstream.quota_max`).
    pub learned_max: u32,
    /// Maximum number of one caller's requests waiting at one bucket.
    pub queue_per_caller: usize,
    /// Maximum time that a request waits (`upstream.quota_wait`).
    pub wait: Duration,
}

/// The defaults of the configuration.
impl Default for QuotaSettings {
    fn default() -> Self {
        Self {
            setting: QuotaSetting::Auto,
            of_organizations: Arc::default(),
            learned_max: 10_000,
            queue_per_caller: 50,
            wait: Duration::from_secs(5),
        }
    }
}

/// Where a bucket's limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitSource {
    /// The configuration.
    Configured,
    /// The organization's license.
    Learned,
    /// Nothing says more yet.
    Assumed,
}

impl QuotaSettings {
    /// The limit of a bucket that has learned this one (0: none).
    pub(super) fn limit(&self, bucket: BucketId, learned: u32) -> (u32, LimitSource) {
        let own = match bucket {
            BucketId::Account => None,
            BucketId::Organization(id) => self.of_organizations.get(&id).copied(),
        };
        match own.unwrap_or(self.setting) {
            QuotaSetting::PerMinute(limit) => (limit, LimitSource::Configured),
            QuotaSetting::Auto if (1..=self.learned_max).contains(&learned) => (learned, LimitSource::Learned),
            QuotaSetting::Auto => (UNLEARNED_PER_MINUTE, LimitSource::Assumed),
        }
    }
}
