//! The quota's state over all replicas: one cell per bucket, which whoever changes it swaps for another, and the engine's clock, by which
//! all of them count. What is in a cell, only `quota` knows.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::engine::{Engine, EngineError, EngineTransaction, Line, Parameters, Statement};
use super::{Epoch, Replicas};

/// A step of the engine's clock smaller than this is not one: the second that a slot is held beyond the upstream's minute covers it.
const STEP_MS: u64 = 500;
/// How much faster or slower the engine's clock may run than this machine's: one part in this many.
const DRIFT: u64 = 100;

// Each returns the epoch's id, the cell's version and state if they are asked for, and the engine's time.
static READ: Statement = Statement::new(
    "select e.id, null::bigint, b.version, b.state, (extract(epoch from clock_timestamp()) * 1000)::bigint \
     from (select) one left join mg.epoch e on true left join mg.bucket b on b.id = $1",
    &[Type::TEXT],
);
static SWAP: Statement = Statement::new(
    "with put as (update mg.bucket set state = $3, version = version + 1, touched = clock_timestamp() \
       where id = $1 and version = $2 and $4 = (select id from mg.epoch) returning version) \
     select e.id, p.version, b.version, b.state, (extract(epoch from clock_timestamp()) * 1000)::bigint \
     from (select) one left join mg.epoch e on true left join put p on true \
       left join mg.bucket b on b.id = $1 and p.version is null",
    &[Type::TEXT, Type::INT8, Type::BYTEA, Type::UUID],
);
static ADD: Statement = Statement::new(
    "with put as (insert into mg.bucket (id, version, state) select $1, $2 + 1, $3 \
       where $4 = (select id from mg.epoch) on conflict do nothing returning version) \
     select e.id, p.version, b.version, b.state, (extract(epoch from clock_timestamp()) * 1000)::bigint \
     from (select) one left join mg.epoch e on true left join put p on true \
       left join mg.bucket b on b.id = $1 and p.version is null",
    &[Type::TEXT, Type::INT8, Type::BYTEA, Type::UUID],
);
static LOCK: Statement = Statement::new(
    "select e.id, null::bigint, b.version, b.state, (extract(epoch from clock_timestamp()) * 1000)::bigint \
     from (select version, state from mg.bucket where id = $1 for update) b left join mg.epoch e on true",
    &[Type::TEXT],
);
static PUT: Statement = Statement::new(
    "update mg.bucket set state = $2, version = version + 1, touched = clock_timestamp() where id = $1 \
     returning version, (extract(epoch from clock_timestamp()) * 1000)::bigint",
    &[Type::TEXT, Type::BYTEA],
);
static SAY_BACK: Statement = Statement::new(
    "update mg.member set slots_told = true where replica = $1 and incarnation = $2 and $3 = (select id from mg.epoch)",
    &[Type::TEXT, Type::UUID, Type::UUID],
);
static ALL_BACK: Statement = Statement::new(
    "select e.id is not distinct from $1, not exists (select from mg.replica r where r.left_at is null \
       and not exists (select from mg.member m where m.replica = r.name and m.slots_told)) \
     from (select) one left join mg.epoch e on true",
    &[Type::UUID],
);

/// A cell's version and state. A cell that does not exist yet has version 0 and an empty state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellContent {
    /// Each swap makes it larger by one.
    pub version: i64,
    /// The state.
    pub state: Vec<u8>,
}

/// What the engine answered about a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellReply {
    /// The swap was carried out; this is the version now.
    Swapped(i64),
    /// It was not, or none was asked for. After a swap this may be as old as the state that it was made from.
    Content(CellContent),
}

/// Why the engine told nothing.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The swap was certainly not carried out.
    #[error("{0}")]
    NotSwapped(EngineError),
    /// It may have been.
    #[error("{0}")]
    Unclear(EngineError),
    /// The soft state is another: this replica has to join it first.
    #[error("the database has lost its soft state, and this replica has not joined the new one yet")]
    AnotherEpoch,
}

/// Makes a cell's next state; `None` leaves it as it is.
pub type CellChange<'a> = Box<dyn FnMut(&CellContent) -> Option<Vec<u8>> + Send + 'a>;

/// The answer about a cell, later.
pub type CellFuture<'a, T> = BoxFuture<'a, Result<T, CellError>>;

/// Where cells are.
pub trait QuotaCells: fmt::Debug + Send + Sync {
    /// Reads a cell.
    fn read<'a>(&'a self, epoch: Uuid, id: &'a str) -> CellFuture<'a, CellReply>;
    /// Swaps a cell of this version for another state, or makes it (version 0).
    fn swap<'a>(&'a self, epoch: Uuid, id: &'a str, version: i64, state: Vec<u8>) -> CellFuture<'a, CellReply>;
    /// Locks a cell that exists, first come first served, and swaps what it holds.
    fn change<'a>(&'a self, epoch: Uuid, id: &'a str, change: CellChange<'a>) -> CellFuture<'a, CellReply>;
    /// Tells that this replica has put back what it had spent.
    fn say_back(&self, epoch: Uuid) -> CellFuture<'_, ()>;
    /// Whether every replica that has not left has done so.
    fn all_back(&self, epoch: Uuid) -> CellFuture<'_, bool>;
    /// The epoch that this replica has joined, as it changes.
    fn epoch(&self) -> watch::Receiver<Option<Epoch>>;
    /// Whether the engine can be reached as far as anybody knows.
    fn is_connected(&self) -> bool;
    /// The engine's clock.
    fn clock(&self) -> &EngineClock;
}

/// The cells in the engine.
#[derive(Debug)]
pub struct EngineCells {
    replicas: Arc<Replicas>,
}

impl EngineCells {
    /// The cells in the engine of these replicas.
    #[must_use]
    pub const fn new(replicas: Arc<Replicas>) -> Self {
        Self { replicas }
    }

    fn engine(&self) -> &Engine {
        self.replicas.engine()
    }

    /// Reads what a statement about a cell returned, and the engine's clock from it.
    fn reply(&self, before: Duration, rows: &[Row], epoch: Uuid) -> Result<CellReply, CellError> {
        let Some(row) = rows.first() else { return Ok(CellReply::Content(CellContent::default())) };
        let (id, put): (Option<Uuid>, Option<i64>) = (row.get(0), row.get(1));
        if id != Some(epoch) {
            return Err(CellError::AnotherEpoch);
        }
        self.replicas.observe_engine_clock(before, row.get(4));
        let (version, state): (Option<i64>, Option<Vec<u8>>) = (row.get(2), row.get(3));
        let content = CellContent { version: version.unwrap_or(0), state: state.unwrap_or_default() };
        Ok(put.map_or(CellReply::Content(content), CellReply::Swapped))
    }

    async fn ask(
        &self,
        statement: &'static Statement,
        parameters: Parameters<'_>,
        epoch: Uuid,
    ) -> Result<CellReply, CellError> {
        let before = self.replicas.clock.boot();
        let rows = self.engine().query(Line::Quick, statement, parameters).await?;
        self.reply(before, &rows, epoch)
    }

    async fn change_locked(
        &self,
        transaction: &EngineTransaction<'_>,
        epoch: Uuid,
        id: &str,
        change: &mut CellChange<'_>,
    ) -> Result<Result<CellReply, CellError>, EngineError> {
        let before = self.replicas.clock.boot();
        let rows = transaction.query(&LOCK, &[&id]).await?;
        let content = match self.reply(before, &rows, epoch) {
            Ok(CellReply::Content(content)) if content.version > 0 => content,
            other => return Ok(other),
        };
        let Some(state) = change(&content) else { return Ok(Ok(CellReply::Content(content))) };
        let before = self.replicas.clock.boot();
        let rows = transaction.query(&PUT, &[&id, &state]).await?;
        let Some(row) = rows.first() else { return Ok(Ok(CellReply::Content(CellContent::default()))) };
        self.replicas.observe_engine_clock(before, row.get(1));
        Ok(Ok(CellReply::Swapped(row.get(0))))
    }
}

impl From<EngineError> for CellError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Unclear(_) => Self::Unclear(error),
            EngineError::Unreachable | EngineError::Failed { .. } => Self::NotSwapped(error),
        }
    }
}

impl QuotaCells for EngineCells {
    fn read<'a>(&'a self, epoch: Uuid, id: &'a str) -> CellFuture<'a, CellReply> {
        Box::pin(async move { self.ask(&READ, &[&id], epoch).await })
    }

    fn swap<'a>(&'a self, epoch: Uuid, id: &'a str, version: i64, state: Vec<u8>) -> CellFuture<'a, CellReply> {
        let statement = if version == 0 { &ADD } else { &SWAP };
        Box::pin(async move {
            let reply = self.ask(statement, &[&id, &version, &state, &epoch], epoch).await?;
            let counters = self.replicas.counters();
            let swaps = match reply {
                CellReply::Swapped(_) => &counters.swaps_won,
                CellReply::Content(_) => &counters.swaps_lost,
            };
            swaps.fetch_add(1, Ordering::Relaxed);
            Ok(reply)
        })
    }

    fn change<'a>(&'a self, epoch: Uuid, id: &'a str, mut change: CellChange<'a>) -> CellFuture<'a, CellReply> {
        Box::pin(async move {
            let change = &mut change;
            let work =
                async |transaction: &EngineTransaction<'_>| self.change_locked(transaction, epoch, id, change).await;
            self.engine().transaction(Line::Locks, work).await?
        })
    }

    fn say_back(&self, epoch: Uuid) -> CellFuture<'_, ()> {
        Box::pin(async move {
            let (name, incarnation) = (&**self.replicas.name(), self.replicas.incarnation());
            let told = self.engine().execute(Line::Quick, &SAY_BACK, &[&name, &incarnation, &epoch]).await?;
            if told == 0 { Err(CellError::AnotherEpoch) } else { Ok(()) }
        })
    }

    fn all_back(&self, epoch: Uuid) -> CellFuture<'_, bool> {
        Box::pin(async move {
            let rows = self.engine().query(Line::Quick, &ALL_BACK, &[&epoch]).await?;
            let (is_same, are_back): (bool, bool) = rows.first().map_or((false, false), |row| (row.get(0), row.get(1)));
            if is_same { Ok(are_back) } else { Err(CellError::AnotherEpoch) }
        })
    }

    fn epoch(&self) -> watch::Receiver<Option<Epoch>> {
        self.replicas.epoch()
    }

    fn is_connected(&self) -> bool {
        self.engine().is_connected(Line::Quick)
    }

    fn clock(&self) -> &EngineClock {
        &self.replicas.engine_clock
    }
}

impl Replicas {
    /// Compares the engine's clock, as a statement of this epoch told it that was sent `before`. Each beat does so, too: a replica that
    /// asks for nothing else must know what the clock showed before it was set.
    pub(super) fn observe_engine_clock(&self, before: Duration, told_ms: i64) {
        let told_ms = u64::try_from(told_ms).unwrap_or(0);
        if let Some(by_ms) = self.engine_clock.observe(before, self.clock.boot(), told_ms) {
            self.note_clock_step(by_ms);
        }
    }
}

/// What the engine's clock shows, as far as its replies tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineTime {
    /// This machine's time since its start, in milliseconds.
    pub boot: u64,
    /// The engine's clock shows at least this, in milliseconds since 1970.
    pub earliest: u64,
    /// And at most this.
    pub latest: u64,
}

/// The engine's clock, compared with this machine's time since its start. A difference that changes by more than 0.5 s means that
/// somebody has set the engine's clock.
#[derive(Debug, Default)]
pub struct EngineClock {
    bounds: Mutex<Option<EngineTime>>,
    steps: AtomicU64,
    /// By how much the clock was set in all, in milliseconds, either way.
    stepped: watch::Sender<u64>,
    /// As long after the last step as it was, since the machine's start, in milliseconds.
    unsure_until: AtomicU64,
}

impl EngineClock {
    /// The engine's time at this time since the machine's start; `None` before its first reply.
    #[must_use]
    pub fn at(&self, boot: Duration) -> Option<EngineTime> {
        Some(self.bounds().as_ref()?.later(millis(boot)))
    }

    /// A reply told the engine's time; it was asked `before` and had answered `after`. Returns by how much the clock was set since the
    /// earlier replies.
    pub fn observe(&self, before: Duration, after: Duration, engine_ms: u64) -> Option<u64> {
        let (before, after) = (millis(before), millis(after));
        let took = after.saturating_sub(before);
        let told = EngineTime { boot: after, earliest: engine_ms, latest: engine_ms + took + took / DRIFT + 1 };
        let mut bounds = self.bounds();
        let implied = bounds.map(|known| (known.later(before).earliest, known.later(after.max(known.boot))));
        let Some((earliest, implied)) = implied else {
            *bounds = Some(told);
            return None;
        };
        let by = if engine_ms + STEP_MS < earliest {
            implied.latest - engine_ms
        } else if engine_ms > implied.latest + STEP_MS {
            engine_ms - earliest
        } else {
            let (earliest, latest) = (told.later(implied.boot).earliest, told.later(implied.boot).latest);
            let narrow = EngineTime {
                boot: implied.boot,
                earliest: earliest.max(implied.earliest),
                latest: latest.min(implied.latest),
            };
            // Smaller changes of the clock are believed.
            *bounds = Some(if narrow.earliest <= narrow.latest { narrow } else { told });
            return None;
        };
        *bounds = Some(told);
        drop(bounds);
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.unsure_until.fetch_max(after.saturating_add(by), Ordering::SeqCst);
        self.stepped.send_modify(|stepped| *stepped += by);
        tracing::warn!(by_ms = by, "the clock of the replicas' database was set: each quota is closed for as long");
        Some(by)
    }

    /// Another engine may have another clock.
    pub fn forget(&self) {
        *self.bounds() = None;
    }

    /// Number of times that the clock was set.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Until when something that was to last may seem over too early, because the clock was set, since the machine's start, in
    /// milliseconds.
    #[must_use]
    pub fn unsure_until(&self) -> u64 {
        self.unsure_until.load(Ordering::SeqCst)
    }

    /// By how much the clock was set in all, in milliseconds, as it changes.
    #[must_use]
    pub fn stepped(&self) -> watch::Receiver<u64> {
        self.stepped.subscribe()
    }

    fn bounds(&self) -> MutexGuard<'_, Option<EngineTime>> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineTime {
    /// The same later (or earlier) by this machine's time.
    fn later(&self, boot: u64) -> Self {
        let (by, back) = (boot.saturating_sub(self.boot), self.boot.saturating_sub(boot));
        Self {
            boot,
            earliest: (self.earliest + by - by / DRIFT).saturating_sub(back + back / DRIFT),
            latest: (self.latest + by + by / DRIFT).saturating_sub(back - back / DRIFT),
        }
    }

    /// The latest that the engine's clock can have shown at this time since the machine's start.
    #[must_use]
    pub fn latest_at(&self, boot: u64) -> u64 {
        self.later(boot).latest
    }

    /// The earliest that it can have shown or can show then.
    #[must_use]
    pub fn earliest_at(&self, boot: u64) -> u64 {
        self.later(boot).earliest
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_engines_time_is_known_within_what_its_replies_took() {
        let clock = EngineClock::default();
        assert_eq!(clock.at(ms(5)), None);
        assert_eq!(clock.observe(ms(1_000), ms(1_100), 50_000), None);
        let now = clock.at(ms(1_100)).unwrap();
        assert_eq!((now.earliest, now.latest), (50_000, 50_102));
        let later = clock.at(ms(11_100)).unwrap();
        assert_eq!((later.earliest, later.latest), (59_900, 60_202), "1 % of ten seconds, either way");
        // A quicker reply narrows it, and a slower one does not widen it again.
        assert_eq!(clock.observe(ms(2_000), ms(2_002), 50_950), None);
        assert_eq!(clock.at(ms(2_002)).map(|now| (now.earliest, now.latest)), Some((50_950, 50_953)));
        assert_eq!(clock.observe(ms(2_002), ms(2_802), 51_400), None);
        assert_eq!(clock.at(ms(2_802)).map(|now| (now.earliest, now.latest)), Some((51_742, 51_761)));
        assert_eq!(clock.steps(), 0);
    }

    #[test]
    fn a_step_of_more_than_half_a_second_is_noticed_either_way() {
        for (told, by) in [(60_600, Some(610)), (59_300, Some(711)), (60_400, None), (59_600, None)] {
            let clock = EngineClock::default();
            clock.observe(ms(1_000), ms(1_000), 59_000);
            assert_eq!(
                clock.observe(ms(2_000), ms(2_000), told).map(|by| by.abs_diff(0)),
                by.map(|by: u64| by),
                "{told}"
            );
            assert_eq!(clock.steps(), u64::from(by.is_some()));
            assert_eq!(*clock.stepped().borrow(), by.unwrap_or(0));
            let now = clock.at(ms(2_000)).unwrap();
            assert!(
                now.earliest.abs_diff(told) <= 20 && now.latest.abs_diff(told) <= 20,
                "{now:?}: the new time is believed"
            );
        }
    }
}
