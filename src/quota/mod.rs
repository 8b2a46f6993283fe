//! The upstream's quota: an exact window over attempts per bucket, handed out fairly among callers (promise 9).
//!
//! `window` counts slots and `fair_queue` decides whose turn it is; both are pure and are passed the time. `bucket`
//! shares them among threads, and `journal` puts them on disk. The upstream's rules are Make's "Rate limiting": a
//! number of requests per minute and organization.

mod all_buckets;
mod bucket;
mod fair_queue;
mod journal;
mod journal_state;
mod outlook;
mod savings;
mod settings;
mod shared;
#[cfg(test)]
mod sim;
mod surplus_pacer;
#[cfg(test)]
mod tests;
mod throttle_gate;
mod window;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::clock::Clock;
use crate::process_log::STATE;

use all_buckets::QuotaShared;
use bucket::Bucket;
pub use bucket::Slot;
use fair_queue::{FairQueue, SlotRequest};
use journal::SlotJournal;
use journal_state::{JournalLine, JournalState};
pub use outlook::{QuotaOutlook, WaitsFor};
use savings::Savings;
pub use settings::{LimitSource, QuotaSettings};
pub use shared::SharedQuota;
use shared::{JournalPast, OwnLimit, QuotaGroup, SharedTurns};
use throttle_gate::CloseReason;
use window::{HOLD_MS, Moment};

/// An organization's attempts per minute until its limit is learned.
const UNLEARNED_PER_MINUTE: u32 = 60;
/// Maximum number of known buckets. Beyond it, another one is dropped together with what it learned.
const BUCKETS_MAX: usize = 100_000;
/// To make room, this many of the least recently examined buckets are looked at, and the one that has sent least is
/// dropped, or else the one idle longest. Looking at all of them would stall every request.
const EVICTION_CANDIDATES: usize = 4;
/// Placeholder caller for slots that an evicted bucket may still hold.
const FORGOTTEN: &str = "(forgotten)";
/// How long a 429 without Retry-After closes a bucket.
const CLOSED_DEFAULT: Duration = Duration::from_secs(60);
/// How long any 429 closes a bucket at most; after that one attempt tests it.
const CLOSED_MAX: Duration = Duration::from_secs(600);

/// How the account's bucket is written.
const ACCOUNT: &str = "account";

/// Whose quota an attempt spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BucketId {
    /// The account's, for operations without an organization.
    Account,
    /// One organization's.
    Organization(u64),
}

/// Why a request gets no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaRefused {
    /// Too many of the caller's requests are waiting for this bucket.
    QueueFull(QuotaOutlook),
    /// No slot comes in time.
    TooLong(QuotaOutlook),
    /// The replicas share the quota through an engine that cannot be reached.
    EngineUnreachable,
}

/// The operators' view of one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BucketView {
    /// The organization; `None` is the account.
    pub organization: Option<u64>,
    /// Attempts per minute.
    pub limit: u32,
    /// Where the limit comes from.
    pub limit_from: LimitSource,
    /// Number of slots taken, by attempts under way or ended within the window.
    pub used: u32,
    /// Number of slots left.
    pub remaining: u32,
    /// Number of waiting requests.
    pub waiting: usize,
    /// Number of free slots that the caller with the most slots cannot have now. They are kept for callers that have
    /// had less, and for newcomers.
    pub kept: u32,
    /// How much longer the upstream's 429 keeps it closed.
    #[serde(rename = "closed_for_ms", serialize_with = "as_millis")]
    pub closed_for: Option<Duration>,
    /// Why it is closed, or still reopening gradually.
    pub closed_because: Option<String>,
    /// Callers by name.
    pub callers: Vec<SpenderView>,
}

#[expect(clippy::ref_option, reason = "serde passes the field itself")]
fn as_millis<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_millis()).serialize(serializer)
}

/// One caller at one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpenderView {
    /// The caller's name.
    pub name: Arc<str>,
    /// What it gets of the window however much others ask for: the limit divided by the number of active callers,
    /// including itself. `None` for the gateway itself, which only takes what nobody wants.
    pub share: Option<u32>,
    /// Number of its slots in the window now.
    pub spent: u64,
    /// Number of its requests waiting now.
    pub waiting: usize,
    /// How often it got no slot since the start.
    pub refused: u64,
    /// Number of its attempts ended since the start.
    pub sent: u64,
    /// Number of its answers since the start that cost no slot.
    pub saved: u64,
    /// How long those attempts waited for their slots, in microseconds.
    pub waited_us: u64,
}

/// The quota of all buckets.
#[derive(Debug)]
pub struct Quota {
    settings: RwLock<QuotaSettings>,
    buckets: RwLock<Buckets>,
    shared: Arc<QuotaShared>,
    /// A bucket created before this (in milliseconds since the quota was opened) counts as full until then.
    full_until: u64,
    /// The most slots that any evicted bucket had taken, and when they will all have come back (in milliseconds since
    /// the quota was opened).
    forgotten: Mutex<(u64, u64)>,
    savings: Savings,
    /// If replicas share the quota.
    group: Option<Arc<QuotaGroup>>,
}

#[derive(Debug, Default)]
struct Buckets {
    by_id: HashMap<BucketId, Arc<Bucket>>,
    /// All buckets, least recently examined first.
    order: VecDeque<BucketId>,
}

impl Buckets {
    /// Drops a bucket and returns how many slots it had taken. Returns `None` if all are in use.
    fn make_room(&mut self) -> Option<u64> {
        for _ in 0..self.order.len().div_ceil(EVICTION_CANDIDATES) {
            let seen: Vec<_> = self.order.drain(..EVICTION_CANDIDATES.min(self.order.len())).collect();
            let mut seen: Vec<_> = seen.into_iter().map(|id| (self.evictable(&id), id)).collect();
            let least = seen.iter().enumerate().filter_map(|(place, (cost, _))| Some(((*cost)?, place))).min();
            let gone = least.map(|((cost, _), place)| (cost, seen.remove(place).1));
            self.order.extend(seen.into_iter().map(|(_, id)| id));
            if let Some((used, id)) = gone {
                self.by_id.remove(&id);
                return Some(used);
            }
        }
        None
    }

    fn evictable(&self, id: &BucketId) -> Option<(u64, Moment)> {
        self.by_id.get(id).filter(|bucket| Arc::strong_count(bucket) == 1)?.evictable()
    }
}

impl Quota {
    /// Opens the quota with the slots and limits that the journal in a folder remembers (without a folder it keeps no
    /// journal). The flag says whether the gateway has run with that folder before, so that a missing journal was
    /// removed by someone. If replicas share the quota, its slots are handed out through the engine; this must then be called within tokio.
    ///
    /// # Errors
    /// The journal cannot be read or created.
    pub fn open(
        settings: QuotaSettings,
        dir: Option<(&Path, bool)>,
        clock: Clock,
        shared: Option<&SharedQuota>,
    ) -> io::Result<Self> {
        let (journal, journal_state) = match dir {
            Some((dir, has_run)) => {
                let (journal, journal_state) = SlotJournal::open(dir, has_run, clock.clone())?;
                (Some(journal), journal_state)
            }
            None => (None, JournalState::default()),
        };
        let wall_ms = clock.wall_ms();
        let common = Arc::new(QuotaShared { opened: clock.now(), clock, journal, accounts: 0.into() });
        let group = shared.map(|shared| QuotaGroup::new(shared, common.clone()));
        let full_until = journal_state.full_until.map_or(0, |until| u64::try_from(until - wall_ms).unwrap_or(0));
        let quota = Self {
            settings: RwLock::new(settings),
            buckets: RwLock::default(),
            shared: common,
            full_until,
            forgotten: Mutex::default(),
            savings: Savings::new(),
            group,
        };
        for (id, known) in &journal_state.buckets {
            quota.restore(*id, known, wall_ms);
        }
        match (&quota.group, shared) {
            (Some(group), Some(shared)) => {
                let unknown_until = quota.shared.boot() + full_until;
                let past = JournalPast { epoch: journal_state.epoch, unknown_until };
                shared.tasks.spawn_until_stop(shared::follow(group.clone(), past));
            }
            // What is spent from here on, no engine knows.
            _ if journal_state.epoch.is_some() => {
                quota.shared.add_line(|_| JournalLine::Epoch(None));
            }
            _ => {}
        }
        Ok(quota)
    }

    fn restore(&self, id: BucketId, known: &journal_state::JournalBucket, wall_ms: i64) {
        let Ok(bucket) = self.bucket(id) else { return };
        if let Some((_, limit)) = known.learned {
            bucket.learned.store(limit, Ordering::Relaxed);
        }
        self.tell_limit(id, &bucket, bucket.learned(), false);
        bucket.restore(known, wall_ms);
    }

    /// Waits for the right to send one attempt, at most until `latest`. `eligible` is the number of configured
    /// callers that can reach this bucket. Does not wait if nobody is ahead and a slot is free. Dropping the future
    /// leaves the queue.
    ///
    /// # Errors
    /// [`QuotaRefused`], immediately if no slot can come in time or too many buckets are in use.
    pub async fn acquire(
        &self,
        bucket: BucketId,
        caller: &Arc<str>,
        eligible: usize,
        latest: Instant,
    ) -> Result<Slot, QuotaRefused> {
        let request = self.request(caller, eligible, latest);
        self.bucket(bucket)?.acquire(&request, latest).await
    }

    /// Predicts, by the same rules, what [`Quota::acquire`] would say now: how long a request would wait if nothing
    /// else happened. Takes no slot and does not make the caller active.
    ///
    /// # Errors
    /// The request would be refused, immediately or after waiting in vain.
    pub fn foresee(
        &self,
        bucket: BucketId,
        caller: &Arc<str>,
        eligible: usize,
        latest: Instant,
    ) -> Result<QuotaOutlook, QuotaRefused> {
        let request = self.request(caller, eligible, latest);
        let known = self.buckets.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&bucket).cloned();
        known.map_or_else(|| self.new_bucket(bucket).foresee(&request), |bucket| bucket.foresee(&request))
    }

    fn request<'a>(&self, caller: &'a Arc<str>, eligible: usize, latest: Instant) -> SlotRequest<'a> {
        let QuotaSettings { queue_per_caller, wait, .. } = self.settings();
        SlotRequest {
            caller,
            eligible,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            latest: self.shared.moment(latest),
            queue_max: queue_per_caller,
            owner: 0,
        }
    }

    /// Takes a slot for an attempt of the gateway's own if nobody misses it: nobody is waiting for this bucket, more
    /// than half of its slots are free, and few were taken this way.
    #[must_use]
    pub async fn acquire_spare(&self, bucket: BucketId) -> Option<Slot> {
        self.bucket(bucket).ok()?.acquire_spare().await
    }

    /// Learns the organization's limit from the upstream. It applies at once, unless a limit is configured. One that no license has is
    /// not believed.
    pub fn learn_limit(&self, organization: u64, per_minute: u64) {
        let id = BucketId::Organization(organization);
        let settings = self.settings();
        let known = u32::try_from(per_minute).ok().filter(|limit| (1..=settings.learned_max).contains(limit));
        let Some(per_minute) = known else {
            let most = settings.learned_max;
            tracing::warn!(organization, said = per_minute, most, "an apiLimit of the upstream is not believed");
            return;
        };
        if settings.limit(id, per_minute).1 == LimitSource::Configured {
            return;
        }
        let Ok(bucket) = self.bucket(id) else { return };
        let before = bucket.learned();
        if before == per_minute {
            return;
        }
        bucket.learned.store(per_minute, Ordering::Relaxed);
        self.tell_limit(id, &bucket, per_minute, true);
        if before != 0 {
            tracing::info!(target: STATE, organization, before, now = per_minute, "the quota of an organization has changed");
        }
        if let Some(journal) = &self.shared.journal {
            journal.add(&JournalLine::Learned(self.shared.clock.wall_ms(), organization, per_minute));
        }
    }

    /// The upstream answered 429: nothing is sent for `retry_after` (a minute if it did not say), and then the bucket
    /// reopens gradually.
    pub fn close(&self, bucket: BucketId, retry_after: Option<Duration>) {
        if let Ok(bucket) = self.bucket(bucket) {
            bucket.close(retry_after.unwrap_or(CLOSED_DEFAULT).min(CLOSED_MAX), retry_after);
        }
    }

    /// Opens a bucket before its time. Returns why it was closed, if it was.
    pub fn reopen(&self, bucket: BucketId) -> Option<String> {
        let known = self.buckets.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&bucket).cloned();
        known?.reopen().map(|why| why.to_string())
    }

    /// Counts an answer from the cache that would have cost `caller` a slot. Cheap, because it runs on every hit.
    pub fn count_saved(&self, bucket: BucketId, caller: &Arc<str>) {
        self.savings.add(bucket, caller);
    }

    /// Replaces the configuration.
    pub fn set_settings(&self, settings: QuotaSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        let buckets: Vec<_> = self.all();
        for (id, bucket) in buckets {
            self.tell_limit(id, &bucket, bucket.learned(), false);
        }
    }

    /// The operators' view of all buckets, the account's first.
    #[must_use]
    pub fn buckets(&self) -> Vec<BucketView> {
        self.maintain();
        let mut views: Vec<_> = self.all().into_iter().map(|(id, bucket)| self.view_of(id, &bucket)).collect();
        views.sort_unstable_by_key(|view| view.organization);
        views
    }

    /// The operators' view of one bucket, whether or not it is known yet.
    #[must_use]
    pub fn view(&self, bucket: BucketId) -> BucketView {
        let known = self.buckets.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&bucket).cloned();
        known.map_or_else(|| self.view_of(bucket, &self.new_bucket(bucket)), |known| self.view_of(bucket, &known))
    }

    fn view_of(&self, id: BucketId, bucket: &Bucket) -> BucketView {
        bucket.view(self.settings().limit(id, bucket.learned()).1)
    }

    /// Adds savings to the buckets' accounts. Must be called every second.
    pub fn maintain(&self) {
        for (bucket, caller, count) in self.savings.take() {
            if let Ok(bucket) = self.bucket(bucket) {
                bucket.count_saved(&caller, count);
            }
        }
    }

    /// Closes the journal, so that even a reboot forgets and doubts nothing. Nothing may be sent afterwards. Returns
    /// false if the journal is not on disk `within` this time.
    pub async fn end(&self, within: Duration) -> bool {
        match &self.shared.journal {
            Some(journal) => journal.close(self.shared.clock.wall_ms(), within).await,
            None => true,
        }
    }

    /// Number of times the journal could not be written at all or in time.
    #[must_use]
    pub fn journal_failures(&self) -> u64 {
        self.shared.journal.as_ref().map_or(0, SlotJournal::failures)
    }

    fn settings(&self) -> QuotaSettings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets a bucket's limit to what the configuration says, or else to what was learned.
    fn tell_limit(&self, id: BucketId, bucket: &Arc<Bucket>, learned: u32, is_news: bool) {
        let (limit, from) = self.settings().limit(id, learned);
        bucket.set_limit(limit, from, is_news);
    }

    fn all(&self) -> Vec<(BucketId, Arc<Bucket>)> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets.by_id.iter().map(|(id, bucket)| (*id, bucket.clone())).collect()
    }

    fn bucket(&self, id: BucketId) -> Result<Arc<Bucket>, QuotaRefused> {
        if let Some(bucket) = self.buckets.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&id) {
            return Ok(bucket.clone());
        }
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.by_id.get(&id) {
            return Ok(bucket.clone());
        }
        if buckets.by_id.len() >= BUCKETS_MAX {
            let used = buckets.make_room().ok_or(QuotaRefused::TooLong(QuotaOutlook::UNKNOWN))?;
            self.remember_evicted(used);
        }
        let bucket = Arc::new(self.new_bucket(id));
        buckets.order.push_back(id);
        buckets.by_id.insert(id, bucket.clone());
        Ok(bucket)
    }

    fn new_bucket(&self, id: BucketId) -> Bucket {
        let now = self.shared.now();
        let (limit, from) = self.settings().limit(id, 0);
        let mut queue = FairQueue::new(limit);
        if let Some(group) = &self.group {
            let turns = SharedTurns::new(id, OwnLimit { limit, from, is_news: false }, group);
            return Bucket::new(id, queue, Some(turns), self.shared.clone());
        }
        if self.full_until > now {
            queue.close(now, self.full_until, CloseReason::UnknownBefore);
        }
        let (count, until) = *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        if until > now {
            // It may be one of the evicted buckets and must not exceed its limit, so it starts with as many slots as
            // any of them had taken.
            queue.hold(until, &FORGOTTEN.into(), count);
        }
        Bucket::new(id, queue, None, self.shared.clone())
    }

    /// Remembers that a bucket with this many slots taken was evicted.
    fn remember_evicted(&self, used: u64) {
        if used > 0 {
            let now = self.shared.now();
            let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
            let before = if forgotten.1 > now { forgotten.0 } else { 0 };
            *forgotten = (before.max(used), now + HOLD_MS);
        }
    }
}

impl SpenderView {
    fn new(name: &Arc<str>) -> Self {
        let name = name.clone();
        Self { name, share: None, spent: 0, waiting: 0, refused: 0, sent: 0, saved: 0, waited_us: 0 }
    }
}

impl BucketId {
    /// Parses what `Display` writes.
    fn parse(text: &str) -> Option<Self> {
        if text == ACCOUNT { Some(Self::Account) } else { text.parse().ok().map(Self::Organization) }
    }
}

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account => f.write_str(ACCOUNT),
            Self::Organization(id) => write!(f, "{id}"),
        }
    }
}
