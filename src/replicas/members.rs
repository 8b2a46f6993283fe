//! Who takes part: beats, the lease that they bring, the epoch of the soft state, and whom the others have given up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::engine::{EngineError, Line, Statement};
use super::fences::{OrderedFence, Taken};
use super::schema;
use super::{Epoch, Replicas};

/// Beats per lease.
const BEATS: u32 = 5;
/// A lease by another machine's clock, whose rate is within 1 % of this one's.
const RATES: f64 = 1.01;

/// How long a lease of this length may last by this machine's clock.
pub(super) fn outlasting(lease: Duration) -> Duration {
    lease.mul_f64(RATES)
}

/// How long a member must be watched before it is clear whether it beats: as long as two beats take.
pub(super) fn watch_time(lease: Duration) -> Duration {
    lease * 2 / BEATS
}

static BEAT: Statement = Statement::new(
    "select epoch, verdict, head, (extract(epoch from clock_timestamp()) * 1000)::bigint, seq, tags, doubt_ms, raised_by \
     from mg.beat($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    &[Type::TEXT, Type::UUID, Type::UUID, Type::INT8, Type::INT8, Type::INT8, Type::INT8, Type::TEXT, Type::TEXT],
);
static OTHERS: Statement =
    Statement::new("select replica, incarnation, beats, gone from mg.member where replica <> $1", &[Type::TEXT]);
static NAMESAKE: Statement = Statement::new(
    "select m.incarnation, m.beats, r.lease_ms from mg.member m join mg.replica r on r.name = m.replica \
     where m.replica = $1 and not m.gone",
    &[Type::TEXT],
);
static LONGEST_LEASE: Statement = Statement::new(schema::LONGEST_LEASE, &[]);
static GONE: Statement = Statement::new(
    "update mg.member set gone = true where replica = $1 and incarnation = $2 and beats = $3 and not gone",
    &[Type::TEXT, Type::UUID, Type::INT8],
);
static LEAVE: Statement = Statement::new(
    "update mg.member set gone = true where replica = $1 and incarnation = $2",
    &[Type::TEXT, Type::UUID],
);

/// Another member, as far as its beats were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SeenBeat {
    incarnation: Uuid,
    beats: i64,
    /// When this beat was first seen, since the machine's start.
    at: Duration,
}

/// How a beat was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Member,
    Gone,
    Joined,
    Taken,
    Late,
}

impl Verdict {
    fn of(text: &str) -> Option<Self> {
        match text {
            "member" => Some(Self::Member),
            "gone" => Some(Self::Gone),
            "joined" => Some(Self::Joined),
            "taken" => Some(Self::Taken),
            "late" => Some(Self::Late),
            _ => None,
        }
    }
}

/// Sends beats for as long as the service runs, and watches those of others.
pub(super) struct BeatSender {
    replicas: Arc<Replicas>,
    /// When the process began, in microseconds since 1970.
    began_us: i64,
    count: i64,
    others: HashMap<String, SeenBeat>,
}

impl BeatSender {
    pub(super) fn new(replicas: Arc<Replicas>) -> Self {
        let began_us = replicas.clock.wall().as_microsecond();
        Self { replicas, began_us, count: 0, others: HashMap::new() }
    }

    pub(super) async fn run(mut self) {
        let interval = self.replicas.config.lease / BEATS;
        loop {
            if tokio::time::timeout(interval, self.replicas.engine.connected(Line::Quick)).await.is_err() {
                let why = self.replicas.engine.trouble(Line::Quick);
                self.replicas.note_trouble(Some(why.unwrap_or_else(|| EngineError::Unreachable.to_string())));
                self.replicas.engine.connected(Line::Quick).await;
            }
            if self.replicas.is_leaving.load(Ordering::SeqCst) {
                return;
            }
            let again = match self.beat().await {
                Ok(again) => again,
                Err(why) => {
                    self.replicas.note_trouble(Some(why.to_string()));
                    false
                }
            };
            if !again {
                let asked = self.replicas.beat_now.notified();
                let _early = tokio::time::timeout(interval, asked).await;
            }
        }
    }

    /// Why this replica must not take part, before it has.
    async fn objection(&self) -> Result<Option<String>, EngineError> {
        static OTHERS: Statement = Statement::new(schema::OTHERS, &[Type::TEXT]);
        let replicas = &self.replicas;
        if let Err(fault) = schema::check(&replicas.engine, Line::Quick, &replicas.key).await? {
            return Ok(Some(fault.to_string()));
        }
        let rows = replicas.engine.query(Line::Quick, &OTHERS, &[&&*replicas.name]).await?;
        Ok(schema::too_many(rows.first().map_or(0, |row| row.get(0)), replicas.config.max))
    }

    /// Sends one beat. Returns whether the next one must come at once.
    async fn beat(&mut self) -> Result<bool, EngineError> {
        let replicas = self.replicas.clone();
        let known = *replicas.epoch.borrow();
        if known.is_none()
            && let Some(why) = self.objection().await?
        {
            replicas.note_trouble(Some(why));
            return Ok(false);
        }
        if !replicas.engine.hears() {
            replicas.engine.say_hello().await;
        }
        self.count += 1;
        let sent = replicas.clock.boot();
        let epoch = known.as_ref().map(|epoch| epoch.id);
        let (version, config) = replicas.described();
        let applied = replicas.fences.upto();
        let lease_ms = i64::try_from(replicas.config.lease.as_millis()).unwrap_or(i64::MAX);
        let rows = replicas
            .engine
            .query(
                Line::Quick,
                &BEAT,
                &[
                    &&*replicas.name, &replicas.incarnation, &epoch, &self.count, &applied, &self.began_us, &lease_ms,
                    &version, &config,
                ],
            )
            .await?;
        let Some((id, verdict, head, now_ms)) = rows.first().and_then(answer) else {
            return Err(EngineError::Unclear("a beat brought no answer".into()));
        };
        match verdict {
            Verdict::Taken => {
                self.look_at_predecessor().await?;
                let name = &replicas.name;
                replicas.note_trouble(Some(format!(
                    "another makegate with the name {name} is alive: give each replica its own replicas.name"
                )));
                return Ok(false);
            }
            Verdict::Late => return Err(EngineError::Unclear("a beat came after a newer one".into())),
            Verdict::Joined => {
                // Not `sent`: the epoch may have begun since, and members of the one before it may have got leases until then.
                let seen = replicas.clock.boot();
                replicas.fences.joined(id, head);
                let rows = replicas.engine.query(Line::Quick, &LONGEST_LEASE, &[]).await?;
                replicas.note_lease(rows.first().and_then(|row| row.get(0)));
                self.others.clear();
                replicas.join(Epoch { id, seen });
                replicas.extend_lease(sent);
            }
            Verdict::Member | Verdict::Gone => {
                let mut missed = rows.iter().filter_map(|row| OrderedFence::of_row(row, 4));
                let has_gap = missed.any(|fence| replicas.fences.take(id, &fence) == Taken::Early);
                if has_gap || replicas.fences.upto() < head {
                    return Err(EngineError::Unclear("a beat left fences out".into()));
                }
                if verdict == Verdict::Member {
                    replicas.extend_lease(sent);
                }
            }
        }
        replicas.observe_engine_clock(sent, now_ms);
        replicas.note_trouble(None);
        self.look_at_others().await?;
        Ok(verdict == Verdict::Gone)
    }

    /// Gives up a process that had this replica's name and was killed: no other replica may be there to do it.
    async fn look_at_predecessor(&mut self) -> Result<(), EngineError> {
        let replicas = self.replicas.clone();
        let name = &*replicas.name;
        let rows = replicas.engine.query(Line::Quick, &NAMESAKE, &[&name]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let (incarnation, beats): (Uuid, i64) = (row.get(0), row.get(1));
        replicas.note_lease(row.get(2));
        let now = replicas.clock.boot();
        let seen = self.others.get(name).filter(|seen| seen.incarnation == incarnation && seen.beats == beats);
        let seen = seen.copied().unwrap_or(SeenBeat { incarnation, beats, at: now });
        if now.saturating_sub(seen.at) > replicas.longest_lease() {
            replicas.engine.execute(Line::Quick, &GONE, &[&name, &incarnation, &beats]).await?;
        }
        self.others.insert(name.to_owned(), seen);
        Ok(())
    }

    /// Gives up members whose beats have not changed for a lease.
    async fn look_at_others(&mut self) -> Result<(), EngineError> {
        let replicas = self.replicas.clone();
        let rows = replicas.engine.query(Line::Quick, &OTHERS, &[&&*replicas.name]).await?;
        let now = replicas.clock.boot();
        let mut alive = 1_u64;
        let mut seen = HashMap::new();
        let mut told = Vec::new();
        for row in rows {
            let (name, incarnation, beats, gone): (String, Uuid, i64, bool) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let before = self.others.get(&name).filter(|seen| seen.incarnation == incarnation && seen.beats == beats);
            let beat = before.copied().unwrap_or(SeenBeat { incarnation, beats, at: now });
            let is_silent = now.saturating_sub(beat.at) > replicas.longest_lease();
            if is_silent
                && !gone
                && replicas.engine.execute(Line::Quick, &GONE, &[&name, &incarnation, &beats]).await? > 0
            {
                tracing::warn!(replica = %name, "a replica has been silent for a lease: it is given up until it beats again");
                replicas.counters.given_up.fetch_add(1, Ordering::Relaxed);
            }
            alive += u64::from(!is_silent && !gone);
            told.push((name.clone(), !is_silent && !gone));
            seen.insert(name, beat);
        }
        let joined = replicas.epoch.borrow().map(|epoch| epoch.seen);
        let had_time = |joined| now.saturating_sub(joined) > replicas.longest_lease();
        if replicas.changes.note_members(&told, joined.is_some_and(had_time)) {
            replicas.board.want();
        }
        self.others = seen;
        replicas.counters.members.store(alive, Ordering::Relaxed);
        Ok(())
    }
}

/// Epoch, verdict, the newest fence, and the engine's time in milliseconds since 1970.
fn answer(row: &Row) -> Option<(Uuid, Verdict, i64, i64)> {
    let (id, verdict): (Uuid, &str) = (row.get(0), row.get(1));
    Some((id, Verdict::of(verdict)?, row.get(2), row.get(3)))
}

/// Tells the others that this replica ends, so that nobody waits for it.
pub(super) async fn leave(replicas: &Replicas) {
    let _told = replicas.engine.execute(Line::Quick, &LEAVE, &[&&*replicas.name, &replicas.incarnation]).await;
}
