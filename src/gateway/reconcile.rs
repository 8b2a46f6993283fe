//! Settling writes in doubt by looking: where the catalogue says which read tells, that read is made with spare quota once
//! Make answers again, and what its answer proves is settled. Nothing is ever sent a second time here; what is not proved stays.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::evidence::{Evidence, EvidenceQuestion};
use super::forward::{AttemptContext, is_json, outgoing_headers, report_attempt};
use super::policy::{Policy, bucket_of};
use super::settle::{Settlement, settle};
use super::state::Gateway;
use super::tags::{self, Parameters};
use super::target::path_with;
use crate::audit::Doubt;
use crate::catalogue::{EffectCheck, Operation, Proves, RetryClass};
use crate::config;
use crate::quota::{BucketId, Slot};
use crate::upstream::{BreakerKey, BreakerPermit, Ending, Outgoing, Upstream};

/// How often the doubts are gone through.
const ROUND: Duration = Duration::from_secs(1);
/// The pause after the first look.
const SECOND_LOOK: Duration = Duration::from_secs(30);
/// Pauses after the look at the end of the doubt window; the last one stays.
const PAUSES: [Duration; 3] = [Duration::from_mins(5), Duration::from_mins(15), Duration::from_hours(1)];
/// After this no look will tell any more.
const LOOKED_MAX: Duration = Duration::from_hours(24);

/// Why a doubt is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtReason {
    /// Its row says of no read that it tells, or its body cannot be known again.
    Unprovable,
    /// `upstream.look = false`.
    Off,
    /// Make may lag behind: it is too early.
    Early,
    /// The upstream has not answered anybody since.
    Unanswered,
    /// There is no quota to spare.
    NoQuota,
    /// What is found out could not be recorded.
    NoLog,
    /// What was seen last proves nothing.
    Unproved,
    /// The last look was not answered well.
    Failed,
    /// All looks were in vain.
    GivenUp,
}

impl DoubtReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unprovable,
        Self::Off,
        Self::Early,
        Self::Unanswered,
        Self::NoQuota,
        Self::NoLog,
        Self::Unproved,
        Self::Failed,
        Self::GivenUp,
    ];

    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unprovable => "a look cannot prove it",
            Self::Off => "looking is off (upstream.look)",
            Self::Early => "waits for the first look: Make may lag behind",
            Self::Unanswered => "waits until Make answers again",
            Self::NoQuota => "waits for spare quota",
            Self::NoLog => "waits until the log can be written",
            Self::Unproved => "the last look proved nothing",
            Self::Failed => "the last look had no good answer",
            Self::GivenUp => "a day of looks proved nothing",
        }
    }
}

/// What had been heard of the upstream at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpstreamHistory {
    /// Good answers.
    answers: u64,
    /// Attempts on behalf of callers.
    asked: u64,
}

impl UpstreamHistory {
    fn now(gateway: &Gateway) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let attempts: u64 = gateway.metrics.attempts.iter().map(read).sum();
        Self { answers: read(&gateway.metrics.answers), asked: attempts.saturating_sub(read(&gateway.metrics.looks)) }
    }
}

/// A doubt that is watched.
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchedDoubt {
    since: Instant,
    before: UpstreamHistory,
    looks: u32,
    /// When the next look may be.
    due: Instant,
    why: DoubtReason,
}

/// The doubts that are watched, by the numbers of their intents.
#[derive(Debug, Default)]
pub struct WatchedDoubts(Mutex<HashMap<u64, WatchedDoubt>>);

impl WatchedDoubts {
    fn watched(&self) -> MutexGuard<'_, HashMap<u64, WatchedDoubt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it was looked for this write, and why it is still in doubt.
    #[must_use]
    pub fn of(&self, policy: &Policy, doubt: &Doubt) -> (u32, DoubtReason) {
        let watched = self.watched().get(&doubt.intent).copied();
        let looks = watched.map_or(0, |watched| watched.looks);
        (
            looks,
            ReconcilePlan::of(policy, doubt).err().or(watched.map(|watched| watched.why)).unwrap_or(DoubtReason::Early),
        )
    }

    /// The settled ones are watched no more.
    fn keep(&self, doubts: &[Doubt]) {
        let open: HashSet<u64> = doubts.iter().map(|doubt| doubt.intent).collect();
        self.watched().retain(|intent, _| open.contains(intent));
    }

    /// From now on this doubt is watched; what is heard of the upstream later counts.
    pub(super) fn watch(&self, gateway: &Gateway, cache: &config::CacheConfig, intent: u64) -> WatchedDoubt {
        let now = gateway.clock.now();
        let new = || WatchedDoubt {
            since: now,
            before: UpstreamHistory::now(gateway),
            looks: 0,
            due: now + cache.settle,
            why: DoubtReason::Early,
        };
        *self.watched().entry(intent).or_insert_with(new)
    }

    fn change(&self, intent: u64, change: impl FnOnce(&mut WatchedDoubt)) {
        if let Some(watched) = self.watched().get_mut(&intent) {
            change(watched);
        }
    }
}

impl WatchedDoubt {
    /// From when on the write cannot take effect unseen any more.
    fn over(&self, cache: &config::CacheConfig) -> Instant {
        self.since + cache.doubt + cache.settle
    }

    /// A look has been made.
    fn looked(&mut self, now: Instant, cache: &config::CacheConfig, why: DoubtReason) {
        self.looks += 1;
        self.why = why;
        self.due = match self.looks {
            1 => now + SECOND_LOOK,
            2 => self.over(cache).max(now + SECOND_LOOK),
            later => {
                let place = usize::try_from(later - 3).unwrap_or(usize::MAX).min(PAUSES.len() - 1);
                now + PAUSES.get(place).copied().unwrap_or(LOOKED_MAX)
            }
        };
    }
}

/// A look that can be made.
struct ReconcilePlan<'p> {
    look: &'p EffectCheck,
    parameters: Parameters,
    read: &'p Operation,
    target: String,
    bucket: BucketId,
    organization: Option<u64>,
}

impl<'p> ReconcilePlan<'p> {
    /// How to find out what became of this write.
    ///
    /// # Errors
    /// Looking is off, or no look can prove anything of this write.
    fn of(policy: &'p Policy, doubt: &Doubt) -> Result<Self, DoubtReason> {
        if !policy.config.upstream.look {
            return Err(DoubtReason::Off);
        }
        Self::provable(policy, doubt).ok_or(DoubtReason::Unprovable)
    }

    fn provable(policy: &'p Policy, doubt: &Doubt) -> Option<Self> {
        let row = policy.catalogue().row(&doubt.operation)?;
        let look = row.look.as_ref().filter(|look| look.proves != Proves::Fields || doubt.marks.is_some())?;
        let read = policy.catalogue().row(&look.read)?;
        let parameters = tags::parameters_in(row, &doubt.path)?;
        let value = |name: &str| parameters.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
        let target = path_with(read, value);
        let organization = doubt.organization.filter(|_| read.has_organization());
        Some(Self { look, read, target, bucket: bucket_of(read, organization), organization, parameters })
    }

    fn part(&self) -> BreakerKey {
        BreakerKey { operation: self.read.id.clone(), organization: self.organization }
    }
}

/// Looks, for as long as the service runs: one look at a time.
pub async fn run(gateway: Arc<Gateway>) {
    loop {
        gateway.clock.sleep_until(gateway.clock.now() + ROUND).await;
        round(&gateway).await;
    }
}

async fn round(gateway: &Arc<Gateway>) {
    let doubts = gateway.log.doubts().list();
    gateway.watched_doubts.keep(&doubts);
    for doubt in doubts {
        let policy = gateway.policy();
        let watched = gateway.watched_doubts.watch(gateway, &policy.config.cache, doubt.intent);
        if let Err(why) = reconcile_if_due(gateway, &policy, &doubt, watched).await {
            gateway.watched_doubts.change(doubt.intent, |watched| watched.why = why);
        }
    }
}

/// Looks after one doubt if that can be done now.
///
/// # Errors
/// Why not.
async fn reconcile_if_due(
    gateway: &Arc<Gateway>,
    policy: &Policy,
    doubt: &Doubt,
    watched: WatchedDoubt,
) -> Result<(), DoubtReason> {
    let plan = ReconcilePlan::of(policy, doubt)?;
    let now = gateway.clock.now();
    if now >= watched.since + LOOKED_MAX {
        return Err(DoubtReason::GivenUp);
    }
    if now < watched.due {
        return Err(if watched.looks == 0 { DoubtReason::Early } else { watched.why });
    }
    if !gateway.log.writable() {
        return Err(DoubtReason::NoLog);
    }
    let upstream = gateway.upstream();
    let too_late = now >= watched.over(&policy.config.cache);
    if !answers_again(gateway, &watched, too_late) {
        return Err(DoubtReason::Unanswered);
    }
    let pass = upstream.breaker().permit(RetryClass::Safe, &plan.part()).map_err(|_open| DoubtReason::Unanswered)?;
    let slot = gateway.quota.acquire_spare(plan.bucket).await.ok_or(DoubtReason::NoQuota)?;
    if gateway.draining() || !gateway.log.doubts().contains(doubt.intent) {
        slot.unsent();
        return Ok(());
    }
    let why = reconcile(gateway, policy, doubt, &plan, (&upstream, pass, slot), too_late).await;
    gateway
        .watched_doubts
        .change(doubt.intent, |watched| watched.looked(gateway.clock.now(), &policy.config.cache, why));
    Ok(())
}

/// Has the upstream answered anybody since? Where nobody has asked until the doubt window is over, the look itself asks.
fn answers_again(gateway: &Gateway, watched: &WatchedDoubt, too_late: bool) -> bool {
    let now = UpstreamHistory::now(gateway);
    now.answers > watched.before.answers || (too_late && now.asked == watched.before.asked)
}

/// One look, and what it settles; else why the doubt stays.
async fn reconcile(
    gateway: &Arc<Gateway>,
    policy: &Policy,
    doubt: &Doubt,
    plan: &ReconcilePlan<'_>,
    (upstream, pass, slot): (&Upstream, BreakerPermit, Slot),
    too_late: bool,
) -> DoubtReason {
    let headers = outgoing_headers(&HeaderMap::new(), false);
    let answers = gateway.callers.own.answers.clone();
    let outgoing = Outgoing { method: Method::GET, target: plan.target.clone(), headers, body: Bytes::new(), answers };
    let time = policy.config.upstream.attempt;
    let Some(connection) = upstream.connection(None, time).await else {
        slot.unsent();
        return DoubtReason::Failed;
    };
    let ending = upstream.attempt(connection, &outgoing, time, false).await;
    gateway.metrics.looks.fetch_add(1, Ordering::Relaxed);
    let about = AttemptContext { request: &doubt.request, row: plan.read, bucket: plan.bucket };
    report_attempt(gateway, &about, Some(slot), &ending);
    upstream.breaker().report(pass, ending.breaker_report());
    let Ending::Answered(answered) = ending else { return DoubtReason::Failed };
    let body: Option<Value> =
        is_json(&answered.headers).then(|| serde_json::from_slice(answered.body.bytes()).ok()).flatten();
    let question =
        EvidenceQuestion { look: plan.look, parameters: &plan.parameters, marks: doubt.marks.as_ref(), too_late };
    let (done, because) = match question.judge(&gateway.log, answered.status, body.as_ref()) {
        Evidence::Done(because) => (true, because),
        Evidence::NotDone(because) => (false, because),
        Evidence::Nothing if answered.status.is_success() => return DoubtReason::Unproved,
        Evidence::Nothing => return DoubtReason::Failed,
    };
    let status = answered.status.as_u16();
    let verdict = Settlement {
        done,
        peer: None,
        detail: Some(format!("looked: GET {} answered {status}, {because}", plan.target).into()),
        upstream_status: Some(status),
    };
    if settle(gateway, doubt.intent, verdict).await.is_ok() {
        gateway.metrics.settled_by_look.fetch_add(1, Ordering::Relaxed);
    }
    DoubtReason::Unproved
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn looks_come_early_then_at_the_end_of_the_doubt_window_then_ever_more_rarely() {
        let read =
            config::parse("operator.key_env = \"K\"\nupstream.token_env = \"T\"\n", Path::new("m.toml")).unwrap();
        let (cache, since) = (read.config.cache, Clock::system().now());
        let before = UpstreamHistory { answers: 0, asked: 0 };
        let mut watched = WatchedDoubt { since, before, looks: 0, due: since + cache.settle, why: DoubtReason::Early };
        let mut seconds = Vec::new();
        for _ in 0..8 {
            seconds.push((watched.due - since).as_secs());
            watched.looked(watched.due, &cache, DoubtReason::Unproved);
        }
        assert_eq!(seconds, [10, 40, 130, 430, 1_330, 4_930, 8_530, 12_130]);
    }
}
