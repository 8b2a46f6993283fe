//! Callers' rates over all replicas. The engine has a bucket for each caller; a replica takes permits out of it, for all its callers with
//! one statement at a time, and spends them by itself.

mod purse;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use self::purse::{Granted, ROUND};
use super::engine::{Engine, EngineError, Line, Statement};
use crate::clock::Clock;

pub use self::purse::{PermitTerms, Purse};

/// The most callers in one statement.
const BATCH_MAX: usize = 4_096;
/// The most requests that wait for permits.
const WAITING_MAX: usize = 16_384;
/// The longest wait for one.
const WAIT_MAX: Duration = Duration::from_millis(900);
/// The least time between two statements, so that those who come one after the other share some.
const PAUSE: Duration = Duration::from_millis(2);

/// Takes permits out of the callers' buckets: a virtual schedule (GCRA) in nanoseconds of the engine's clock. The rows are locked in the
/// order of names, so that two replicas never wait for each other. A moment that lies too far ahead is from before somebody set the
/// engine's clock back. A caller without a row does not come back.
static GRANT: Statement = Statement::new(
    "with w as (select * from unnest($1::text[], $2::int4[], $3::int8[], $4::int8[]) as w(caller, want, step, bucket)),
     l as materialized (
       select w.*, (extract(epoch from clock_timestamp()) * 1000000)::int8 * 1000 as now, r.tat_ns
       from mg.rate r join w on w.caller = r.caller order by r.caller for update of r),
     b as (select l.*, greatest(now, case when (tat_ns - now) / 4 > bucket + 15000000000 then now + bucket else tat_ns end) as base from l),
     g as (select caller, step, now, base, least(want, greatest(0, (now + bucket - base) / step))::int4 as got from b)
     update mg.rate r set tat_ns = g.base + g.got * g.step from g where r.caller = g.caller
     returning r.caller, g.got, r.tat_ns - g.now",
    &[Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::INT8_ARRAY, Type::INT8_ARRAY],
);

/// Gives callers a bucket. What others took out of the last one, before the engine lost its soft state, nobody knows: so it was empty when
/// the epoch was born.
static MAKE: Statement = Statement::new(
    "insert into mg.rate (caller, tat_ns)
     select w.caller, (extract(epoch from e.born) * 1000000)::int8 * 1000 + w.bucket
     from unnest($1::text[], $2::int8[]) as w(caller, bucket), mg.epoch e order by w.caller
     on conflict (caller) do nothing",
    &[Type::TEXT_ARRAY, Type::INT8_ARRAY],
);

/// What became of a request for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermitAnswer {
    /// It may go on.
    Granted,
    /// The caller is over its rate.
    OverRate,
    /// The engine did not say.
    Unknown,
}

/// What a replica knows of a caller's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRate {
    /// Number of requests that can be sent at once now.
    pub left: u32,
    /// Time until the bucket is full.
    pub whole_in: Duration,
    /// Time until the next request; zero: now.
    pub next_in: Duration,
}

/// What fills the purses of all callers.
#[derive(Debug)]
pub struct Permits {
    clock: Clock,
    /// Callers without permits, in the order in which they ran out.
    wanting: Mutex<VecDeque<Arc<Purse>>>,
    waiting: AtomicUsize,
    wake: Notify,
}

/// What one statement asks for.
type Demands = Vec<(Arc<Purse>, u32)>;

impl Permits {
    /// Nobody has permits yet.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, wanting: Mutex::default(), waiting: AtomicUsize::new(0), wake: Notify::new() })
    }

    /// An empty purse. What a caller does not spend dies with it.
    #[must_use]
    pub fn purse(&self, caller: Arc<str>, terms: PermitTerms) -> Arc<Purse> {
        Arc::new(Purse::new(caller, terms))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.boot().as_micros()).unwrap_or(u64::MAX)
    }

    /// Spends a permit of this purse, if it has one.
    #[must_use]
    pub fn take(&self, purse: &Purse) -> bool {
        purse.take(self.now())
    }

    /// What is left of the rate.
    #[must_use]
    pub fn known(&self, purse: &Purse) -> KnownRate {
        let now = self.now();
        let [whole_in, next_in] = [purse.whole_in(now), purse.next_in(now)].map(Duration::from_nanos);
        KnownRate { left: purse.known_left(now), whole_in, next_in }
    }

    /// Asks the engine for a permit, for a limited time.
    pub async fn ask(self: Arc<Self>, purse: Arc<Purse>) -> PermitAnswer {
        let Some(_place) = WaitingPlace::take(&self) else { return PermitAnswer::Unknown };
        let Some(answer) = purse.wait() else { return PermitAnswer::Unknown };
        self.want(purse);
        match self.clock.timeout(WAIT_MAX, answer).await {
            Some(Ok(true)) => PermitAnswer::Granted,
            Some(Ok(false)) => PermitAnswer::OverRate,
            Some(Err(_)) | None => PermitAnswer::Unknown,
        }
    }

    fn want(&self, purse: Arc<Purse>) {
        if !purse.is_wanting.swap(true, Ordering::AcqRel) {
            self.wanting().push_back(purse);
        }
        self.wake.notify_one();
    }

    fn wanting(&self) -> MutexGuard<'_, VecDeque<Arc<Purse>>> {
        self.wanting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the purses, for ever.
    pub(super) async fn run(&self, engine: &Engine, holds_lease: impl Fn() -> bool + Send + Sync) {
        let mut rounds = Rounds { spenders: HashMap::new(), next: self.clock.now() + ROUND };
        let mut sent = self.clock.now();
        loop {
            let tick = async {
                match rounds.spenders.is_empty() {
                    true => std::future::pending().await,
                    false => self.clock.sleep_until(rounds.next).await,
                }
            };
            tokio::select! { () = self.wake.notified() => {}, () = tick => {} }
            self.clock.sleep_until(sent + PAUSE).await;
            let mut demands = self.demands();
            if self.clock.now() >= rounds.next {
                rounds.end(self, &mut demands, holds_lease());
            }
            if demands.is_empty() {
                continue;
            }
            sent = self.clock.now();
            self.fill(engine, &demands).await;
            rounds.add(demands);
        }
    }

    /// Those who wait, as many as fit into a statement, none of them twice.
    fn demands(&self) -> Demands {
        let (mut demands, mut named, mut later) = (Demands::new(), HashSet::new(), Vec::new());
        let mut wanting = self.wanting();
        while demands.len() < BATCH_MAX
            && let Some(purse) = wanting.pop_front()
        {
            // Whose rate was changed has two purses for a moment.
            if !named.insert(purse.caller.clone()) {
                later.push(purse);
                continue;
            }
            // First this: who begins to wait from now on wants again.
            purse.is_wanting.store(false, Ordering::Release);
            let demand = purse.demand();
            if demand > 0 {
                demands.push((purse, demand));
            }
        }
        wanting.extend(later);
        if !wanting.is_empty() {
            self.wake.notify_one();
        }
        demands
    }

    /// Asks the engine, and hands out what it grants.
    async fn fill(&self, engine: &Engine, demands: &Demands) {
        let sent = self.now();
        let granted = grant(engine, demands).await.unwrap_or_default();
        let now = self.now();
        for (purse, _) in demands {
            match granted.get(&*purse.caller) {
                Some(granted) => {
                    if purse.answer(*granted, sent, now) {
                        self.want(purse.clone());
                    }
                }
                None => purse.give_up(),
            }
        }
    }
}

/// The callers that spend, and when their round ends.
struct Rounds {
    spenders: HashMap<Arc<str>, Arc<Purse>>,
    next: Instant,
}

impl Rounds {
    fn add(&mut self, demands: Demands) {
        self.spenders.extend(demands.into_iter().map(|(purse, _)| (purse.caller.clone(), purse)));
    }

    /// Forgets the silent, and lets the others ask for what they are likely to spend.
    fn end(&mut self, permits: &Permits, demands: &mut Demands, holds_lease: bool) {
        self.next = permits.clock.now() + ROUND;
        let now = permits.now();
        let named: HashSet<_> = demands.iter().map(|(purse, _)| purse.caller.clone()).collect();
        self.spenders.retain(|caller, purse| {
            let Some(likely) = purse.end_round(now) else { return false };
            if likely > 0 && holds_lease && demands.len() < BATCH_MAX && !named.contains(caller) {
                demands.push((purse.clone(), likely));
            }
            true
        });
    }
}

/// What the engine grants, by caller. Callers without a bucket get one.
async fn grant(engine: &Engine, demands: &Demands) -> Result<HashMap<String, Granted>, EngineError> {
    let mut granted = HashMap::new();
    take(engine, demands.iter().collect(), &mut granted).await?;
    let missing: Vec<_> = demands.iter().filter(|(purse, _)| !granted.contains_key(&*purse.caller)).collect();
    if !missing.is_empty() {
        let callers: Vec<_> = missing.iter().map(|(purse, _)| &*purse.caller).collect();
        let buckets: Vec<_> = missing.iter().map(|(purse, _)| signed(purse.terms.bucket)).collect();
        // What was granted before is granted, whatever becomes of this.
        if engine.execute(Line::Quick, &MAKE, &[&callers, &buckets]).await.is_ok() {
            let _missing = take(engine, missing, &mut granted).await;
        }
    }
    Ok(granted)
}

async fn take(
    engine: &Engine,
    demands: Vec<&(Arc<Purse>, u32)>,
    granted: &mut HashMap<String, Granted>,
) -> Result<(), EngineError> {
    let callers: Vec<_> = demands.iter().map(|(purse, _)| &*purse.caller).collect();
    let wants: Vec<_> = demands.iter().map(|(_, want)| i32::try_from(*want).unwrap_or(i32::MAX)).collect();
    let steps: Vec<_> = demands.iter().map(|(purse, _)| signed(purse.terms.step)).collect();
    let buckets: Vec<_> = demands.iter().map(|(purse, _)| signed(purse.terms.bucket)).collect();
    let rows = engine.query(Line::Quick, &GRANT, &[&callers, &wants, &steps, &buckets]).await?;
    granted.extend(rows.iter().filter_map(granted_in));
    Ok(())
}

fn granted_in(row: &Row) -> Option<(String, Granted)> {
    let (permits, whole_in): (i32, i64) = (row.try_get(1).ok()?, row.try_get(2).ok()?);
    let granted = Granted { permits: u32::try_from(permits).ok()?, whole_in: u64::try_from(whole_in).unwrap_or(0) };
    Some((row.try_get(0).ok()?, granted))
}

fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// A place among those who wait.
struct WaitingPlace<'a>(&'a AtomicUsize);

impl<'a> WaitingPlace<'a> {
    fn take(permits: &'a Permits) -> Option<Self> {
        let place = Self(&permits.waiting);
        (place.0.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(place)
    }
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
