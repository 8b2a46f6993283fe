//! Settling writes in doubt by looking: where the catalogue says which read tells, that read is made with spare quota once
//! Make answers again, and what its answer proves is settled. Nothing is ever sent a second time here; what is not proved stays.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::evidence::{Evidence, Question};
use super::forward::{About, account_for, is_json, outgoing_headers};
use super::policy::{Policy, bucket_of};
use super::settle::{Verdict, settle};
use super::state::Gateway;
use super::tags::{self, Parameters};
use super::target::path_with;
use crate::audit::Doubt;
use crate::catalogue::{Look, Operation, Proves, Retry};
use crate::config;
use crate::quota::{BucketId, Slot};
use crate::upstream::{Ending, Outgoing, Part, Pass, Upstream};

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
pub enum Why {
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

impl Why {
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
pub(super) struct Heard {
    /// Good answers.
    answers: u64,
    /// Attempts on behalf of callers.
    asked: u64,
}

impl Heard {
    fn now(gateway: &Gateway) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let attempts: u64 = gateway.meters.attempts.iter().map(read).sum();
        Self { answers: read(&gateway.meters.answers), asked: attempts.saturating_sub(read(&gateway.meters.looks)) }
    }
}

/// A doubt that is watched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    since: Instant,
    before: Heard,
    looks: u32,
    /// When the next look may be.
    due: Instant,
    why: Why,
}

/// The doubts that are watched, by the numbers of their intents.
#[derive(Debug, Default)]
pub struct Looks(Mutex<HashMap<u64, Watched>>);

impl Looks {
    fn watched(&self) -> MutexGuard<'_, HashMap<u64, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it was looked for this write, and why it is still in doubt.
    #[must_use]
    pub fn of(&self, policy: &Policy, doubt: &Doubt) -> (u32, Why) {
        let watched = self.watched().get(&doubt.intent).copied();
        let looks = watched.map_or(0, |watched| watched.looks);
        (looks, Plan::of(policy, doubt).err().or(watched.map(|watched| watched.why)).unwrap_or(Why::Early))
    }

    /// The settled ones are watched no more.
    fn keep(&self, doubts: &[Doubt]) {
        let open: HashSet<u64> = doubts.iter().map(|doubt| doubt.intent).collect();
        self.watched().retain(|intent, _| open.contains(intent));
    }

    /// From now on this doubt is watched; what is heard of the upstream later counts.
    pub(super) fn watch(&self, gateway: &Gateway, cache: &config::Cache, intent: u64) -> Watched {
        let now = gateway.clock.now();
        let new =
            || Watched { since: now, before: Heard::now(gateway), looks: 0, due: now + cache.settle, why: Why::Early };
        *self.watched().entry(intent).or_insert_with(new)
    }

    fn change(&self, intent: u64, change: impl FnOnce(&mut Watched)) {
        if let Some(watched) = self.watched().get_mut(&intent) {
            change(watched);
        }
    }
}

impl Watched {
    /// From when on the write cannot take effect unseen any more.
    fn over(&self, cache: &config::Cache) -> Instant {
        self.since + cache.doubt + cache.settle
    }

    /// A look has been made.
    fn looked(&mut self, now: Instant, cache: &config::Cache, why: Why) {
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
struct Plan<'p> {
    look: &'p Look,
    parameters: Parameters,
    read: &'p Operation,
    target: String,
    bucket: BucketId,
    organization: Option<u64>,
}

impl<'p> Plan<'p> {
    /// How to find out what became of this write.
    ///
    /// # Errors
    /// Looking is off, or no look can prove anything of this write.
    fn of(policy: &'p Policy, doubt: &Doubt) -> Result<Self, Why> {
        if !policy.config.upstream.look {
            return Err(Why::Off);
        }
        Self::provable(policy, doubt).ok_or(Why::Unprovable)
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

    fn part(&self) -> Part {
        Part { operation: self.read.id.clone(), organization: self.organization }
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
    gateway.looks.keep(&doubts);
    for doubt in doubts {
        let policy = gateway.policy();
        let watched = gateway.looks.watch(gateway, &policy.config.cache, doubt.intent);
        if let Err(why) = attend(gateway, &policy, &doubt, watched).await {
            gateway.looks.change(doubt.intent, |watched| watched.why = why);
        }
    }
}

/// Looks after one doubt if that can be done now.
///
/// # Errors
/// Why not.
async fn attend(gateway: &Arc<Gateway>, policy: &Policy, doubt: &Doubt, watched: Watched) -> Result<(), Why> {
    let plan = Plan::of(policy, doubt)?;
    let now = gateway.clock.now();
    if now >= watched.since + LOOKED_MAX {
        return Err(Why::GivenUp);
    }
    if now < watched.due {
        return Err(if watched.looks == 0 { Why::Early } else { watched.why });
    }
    if !gateway.log.writable() {
        return Err(Why::NoLog);
    }
    let upstream = gateway.upstream();
    let too_late = now >= watched.over(&policy.config.cache);
    if !answers_again(gateway, &watched, too_late) {
        return Err(Why::Unanswered);
    }
    let pass = upstream.breaker().permit(Retry::Safe, &plan.part()).map_err(|_open| Why::Unanswered)?;
    let slot = gateway.quota.spare(plan.bucket).await.ok_or(Why::NoQuota)?;
    if gateway.draining() || !gateway.log.doubts().contains(doubt.intent) {
        slot.unsent();
        return Ok(());
    }
    let why = look(gateway, policy, doubt, &plan, (&upstream, pass, slot), too_late).await;
    gateway.looks.change(doubt.intent, |watched| watched.looked(gateway.clock.now(), &policy.config.cache, why));
    Ok(())
}

/// Has the upstream answered anybody since? Where nobody has asked until the doubt window is over, the look itself asks.
fn answers_again(gateway: &Gateway, watched: &Watched, too_late: bool) -> bool {
    let now = Heard::now(gateway);
    now.answers > watched.before.answers || (too_late && now.asked == watched.before.asked)
}

/// One look, and what it settles; else why the doubt stays.
async fn look(
    gateway: &Arc<Gateway>,
    policy: &Policy,
    doubt: &Doubt,
    plan: &Plan<'_>,
    (upstream, pass, slot): (&Upstream, Pass, Slot),
    too_late: bool,
) -> Why {
    let headers = outgoing_headers(&HeaderMap::new(), false);
    let answers = gateway.callers.own.answers.clone();
    let outgoing = Outgoing { method: Method::GET, target: plan.target.clone(), headers, body: Bytes::new(), answers };
    let time = policy.config.upstream.attempt;
    let Some(connection) = upstream.connection(None, time).await else {
        slot.unsent();
        return Why::Failed;
    };
    let ending = upstream.attempt(connection, &outgoing, time, false).await;
    gateway.meters.looks.fetch_add(1, Ordering::Relaxed);
    let about = About { request: &doubt.request, row: plan.read, bucket: plan.bucket };
    account_for(gateway, &about, Some(slot), &ending);
    upstream.breaker().report(pass, ending.told());
    let Ending::Answered(answered) = ending else { return Why::Failed };
    let body: Option<Value> =
        is_json(&answered.headers).then(|| serde_json::from_slice(answered.body.bytes()).ok()).flatten();
    let question = Question { look: plan.look, parameters: &plan.parameters, marks: doubt.marks.as_ref(), too_late };
    let (done, because) = match question.judge(&gateway.log, answered.status, body.as_ref()) {
        Evidence::Done(because) => (true, because),
        Evidence::NotDone(because) => (false, because),
        Evidence::Nothing if answered.status.is_success() => return Why::Unproved,
        Evidence::Nothing => return Why::Failed,
    };
    let status = answered.status.as_u16();
    let verdict = Verdict {
        done,
        peer: None,
        detail: Some(format!("looked: GET {} answered {status}, {because}", plan.target).into()),
        upstream_status: Some(status),
    };
    if settle(gateway, doubt.intent, verdict).await.is_ok() {
        gateway.meters.settled_by_look.fetch_add(1, Ordering::Relaxed);
    }
    Why::Unproved
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
        let before = Heard { answers: 0, asked: 0 };
        let mut watched = Watched { since, before, looks: 0, due: since + cache.settle, why: Why::Early };
        let mut seconds = Vec::new();
        for _ in 0..8 {
            seconds.push((watched.due - since).as_secs());
            watched.looked(watched.due, &cache, Why::Unproved);
        }
        assert_eq!(seconds, [10, 40, 130, 430, 1_330, 4_930, 8_530, 12_130]);
    }
}
