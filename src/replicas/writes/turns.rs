//! Turns over all replicas: writes to one path go one at a time, whoever sends them.
//!
//! Who wants to write to a path draws a ticket: a row of `mg.turn`. It has the turn once its row is `held`, which a unique index grants to
//! one row of a path at a time: two that ask in the same moment cannot both get it, whatever either has seen of the other. That the
//! smallest ticket comes next is fair, and nothing else rests on it. Tickets are soft state: a new epoch has none, so nobody has a turn in
//! it before each replica has put back what it held, or has had a lease to do so ([`SharedWrites::open_epoch`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::SharedWrites;
use crate::replicas::Epoch;
use crate::replicas::engine::{EngineError, Line, Parameters, Statement};
use crate::tasks::Tasks;

/// Pauses between two looks at whether it is the ticket's turn.
const LOOK: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(50);
/// How often tickets are given back that could not be.
const GIVE_BACK_RETRY: Duration = Duration::from_millis(250);

/// Draws a ticket. It is held at once if the path has no other ticket.
static DRAW: Statement = Statement::new(
    "insert into mg.turn (path, held, replica, incarnation, draw) \
     select $1, not exists (select from mg.turn t where t.path = $1), $2, $3, $5 \
     where exists (select from mg.epoch e where e.id = $4) \
       and exists (select from mg.member m where m.replica = $2 and m.incarnation = $3 and not m.gone) \
     on conflict (path) where held do nothing returning ticket, held",
    &[Type::TEXT, Type::TEXT, Type::UUID, Type::UUID, Type::INT8],
);
/// The same where somebody has the turn.
static DRAW_WAITING: Statement = Statement::new(
    "insert into mg.turn (path, held, replica, incarnation, draw) select $1, false, $2, $3, $5 \
     where exists (select from mg.epoch e where e.id = $4) \
       and exists (select from mg.member m where m.replica = $2 and m.incarnation = $3 and not m.gone) \
     returning ticket",
    &[Type::TEXT, Type::TEXT, Type::UUID, Type::UUID, Type::INT8],
);
/// Takes the turn, if it is this ticket's. (`23505`: somebody took it in this moment.)
static TAKE: Statement = Statement::new(
    "update mg.turn t set held = true where t.path = $1 and t.ticket = $2 and t.replica = $3 and t.incarnation = $4 \
       and exists (select from mg.epoch e where e.id = $5) \
       and not exists (select from mg.turn o where o.path = $1 and o.ticket <> $2 and (o.held or o.ticket < $2))",
    &[Type::TEXT, Type::INT8, Type::TEXT, Type::UUID, Type::UUID],
);
/// Puts back a turn that was held in an earlier epoch; it may be there already, if an answer was lost.
static PUT_BACK: Statement = Statement::new(
    "insert into mg.turn (path, held, replica, incarnation, draw) select $1, true, $2, $3, $5 \
     where exists (select from mg.epoch e where e.id = $4) on conflict (path) where held \
       do update set draw = mg.turn.draw where mg.turn.replica = $2 and mg.turn.incarnation = $3 returning ticket",
    &[Type::TEXT, Type::TEXT, Type::UUID, Type::UUID, Type::INT8],
);
/// All tickets of this replica for these paths, up to a draw of each: carried out late, after its connection was given up, this takes away
/// no ticket that was drawn since.
static GIVE_BACK: Statement = Statement::new(
    "delete from mg.turn t using unnest($3, $4) as x(path, draw) \
     where t.replica = $1 and t.incarnation = $2 and t.path = x.path and t.draw <= x.draw",
    &[Type::TEXT, Type::UUID, Type::TEXT_ARRAY, Type::INT8_ARRAY],
);
static OWN: Statement = Statement::new(
    "select t.path, t.ticket from mg.turn t where t.replica = $1 and t.incarnation = $2",
    &[Type::TEXT, Type::UUID],
);
static GIVE_BACK_STRAY: Statement = Statement::new(
    "delete from mg.turn t where t.path = $1 and t.ticket = $2 and t.replica = $3 and t.incarnation = $4",
    &[Type::TEXT, Type::INT8, Type::TEXT, Type::UUID],
);
/// The tickets of replicas that are gone.
static GIVE_BACK_OF_GONE: Statement = Statement::new(
    "delete from mg.turn t where exists (select from mg.epoch e where e.id = $1) and not exists \
       (select from mg.member m where m.replica = t.replica and m.incarnation = t.incarnation and not m.gone)",
    &[Type::UUID],
);

/// A drawn ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket {
    epoch: Uuid,
    number: i64,
    draw: i64,
    held: bool,
}

/// This replica's tickets by path: one each, because local turns come first.
#[derive(Debug, Default)]
struct Tickets {
    drawn: HashMap<Arc<str>, Ticket>,
    /// Number of draws so far.
    draws: i64,
    /// Paths of which a ticket may lie in the engine that nobody here has, and the last draw that it can be of. No other is drawn until it
    /// is given back, because that one would wait for it.
    to_give_back: HashMap<Arc<str>, i64>,
    /// Tickets in the engine that nobody here had when they were last looked at.
    strays: HashSet<(Arc<str>, i64)>,
}

impl Tickets {
    fn next_draw(&mut self) -> i64 {
        self.draws += 1;
        self.draws
    }

    /// Whatever was drawn for this path until now goes back.
    fn give_back(&mut self, path: Arc<str>) {
        let draws = self.draws;
        self.to_give_back.insert(path, draws);
    }
}

/// The turns of this replica.
#[derive(Debug)]
pub struct SharedTurns {
    writes: Arc<SharedWrites>,
    tickets: Mutex<Tickets>,
    given_back: Notify,
}

/// The right to write to a path before all other replicas; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct SharedTurn {
    turns: Arc<SharedTurns>,
    path: Arc<str>,
}

impl Drop for SharedTurn {
    fn drop(&mut self) {
        self.turns.let_go(&self.path);
    }
}

impl SharedTurns {
    /// Begins to give back tickets.
    #[must_use]
    pub fn start(writes: Arc<SharedWrites>, tasks: &Tasks) -> Arc<Self> {
        let turns = Arc::new(Self { writes, tickets: Mutex::default(), given_back: Notify::new() });
        tasks.spawn_until_stop(turns.clone().give_back());
        turns
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits in this term of the lease for this replica's turn at a path. Whoever asks has the local turn.
    ///
    /// # Errors
    /// The engine is out of reach, or has been: others may have given back what was drawn here.
    pub async fn turn(self: &Arc<Self>, path: &Arc<str>, term: u64) -> Result<SharedTurn, EngineError> {
        // From here on: dropped before the end, it leaves no ticket behind.
        let turn = SharedTurn { turns: self.clone(), path: path.clone() };
        let mut pause = LOOK;
        loop {
            if self.writes.replicas().lease().term() != Some(term) {
                return Err(EngineError::Unreachable);
            }
            if let Some(epoch) = self.writes.open_epoch()
                && self.look(path, epoch).await?
            {
                return Ok(turn);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    /// Whether it is this replica's turn; draws a ticket first, if there is none.
    async fn look(&self, path: &Arc<str>, epoch: Uuid) -> Result<bool, EngineError> {
        let drawn = {
            let tickets = self.tickets();
            if tickets.to_give_back.contains_key(path) {
                return Ok(false);
            }
            tickets.drawn.get(path).copied().filter(|ticket| ticket.epoch == epoch)
        };
        let ticket = match drawn {
            Some(ticket) if ticket.held => return Ok(true),
            Some(ticket) => self.take(path, ticket).await?,
            None => self.draw(path, epoch).await?,
        };
        let Some(ticket) = ticket else { return Ok(false) };
        self.tickets().drawn.insert(path.clone(), ticket);
        Ok(ticket.held)
    }

    async fn draw(&self, path: &Arc<str>, epoch: Uuid) -> Result<Option<Ticket>, EngineError> {
        let replicas = self.writes.replicas();
        let draw = self.tickets().next_draw();
        let (path, name, incarnation) = (&**path, &**replicas.name(), replicas.incarnation());
        let parameters: Parameters<'_> = &[&path, &name, &incarnation, &epoch, &draw];
        let rows = replicas.engine().query(Line::Quick, &DRAW, parameters).await?;
        if let Some(row) = rows.first() {
            return Ok(Some(Ticket { epoch, number: row.get(0), draw, held: row.get(1) }));
        }
        let rows = replicas.engine().query(Line::Quick, &DRAW_WAITING, parameters).await?;
        Ok(rows.first().map(|row| Ticket { epoch, number: row.get(0), draw, held: false }))
    }

    async fn take(&self, path: &str, ticket: Ticket) -> Result<Option<Ticket>, EngineError> {
        let replicas = self.writes.replicas();
        let (name, incarnation) = (&**replicas.name(), replicas.incarnation());
        let parameters: Parameters<'_> = &[&path, &ticket.number, &name, &incarnation, &ticket.epoch];
        match replicas.engine().execute(Line::Quick, &TAKE, parameters).await {
            Ok(taken) => Ok(Some(Ticket { held: taken > 0, ..ticket })),
            Err(error) if error.is(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => Ok(Some(ticket)),
            Err(error) => Err(error),
        }
    }

    fn let_go(&self, path: &Arc<str>) {
        let mut tickets = self.tickets();
        tickets.drawn.remove(path);
        tickets.give_back(path.clone());
        drop(tickets);
        self.given_back.notify_one();
    }

    /// Gives back tickets, as often as it takes.
    async fn give_back(self: Arc<Self>) {
        loop {
            let waiting = !self.tickets().to_give_back.is_empty();
            if !waiting {
                self.given_back.notified().await;
            }
            if self.give_back_now().await.is_err() {
                tokio::time::sleep(GIVE_BACK_RETRY).await;
            }
        }
    }

    async fn give_back_now(&self) -> Result<(), EngineError> {
        let replicas = self.writes.replicas();
        let given = self.tickets().to_give_back.clone();
        if given.is_empty() {
            return Ok(());
        }
        let (paths, draws): (Vec<&str>, Vec<i64>) = given.iter().map(|(path, draw)| (&**path, *draw)).unzip();
        let parameters: Parameters<'_> = &[&&**replicas.name(), &replicas.incarnation(), &paths, &draws];
        replicas.engine().execute(Line::Quick, &GIVE_BACK, parameters).await?;
        self.tickets().to_give_back.retain(|path, draw| given.get(path) != Some(&*draw));
        Ok(())
    }

    /// Gives back tickets that nobody here has: the engine drew them after their connection was given up. One that is just being drawn is
    /// known at the next look, so it is left alone.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn give_back_strays(&self) -> Result<(), EngineError> {
        let replicas = self.writes.replicas();
        let (name, incarnation) = (&**replicas.name(), replicas.incarnation());
        let rows = replicas.engine().query(Line::Quick, &OWN, &[&name, &incarnation]).await?;
        let twice: Vec<_> = {
            let mut tickets = self.tickets();
            let all = rows.iter().map(|row| (Arc::<str>::from(row.get::<_, &str>(0)), row.get::<_, i64>(1)));
            let is_stray = |(path, number): &(Arc<str>, i64)| {
                tickets.drawn.get(path).is_none_or(|ticket| ticket.number != *number)
                    && !tickets.to_give_back.contains_key(path)
            };
            let strays: HashSet<_> = all.filter(is_stray).collect();
            let before = std::mem::replace(&mut tickets.strays, strays);
            tickets.strays.intersection(&before).cloned().collect()
        };
        for (path, number) in twice {
            let parameters: Parameters<'_> = &[&&*path, &number, &name, &incarnation];
            replicas.engine().execute(Line::Quick, &GIVE_BACK_STRAY, parameters).await?;
        }
        Ok(())
    }

    /// Puts back the turns that this replica has, for a new epoch.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn put_back(&self, epoch: &Epoch) -> Result<(), EngineError> {
        let replicas = self.writes.replicas();
        let held: Vec<_> = {
            let tickets = self.tickets();
            let old = tickets.drawn.iter().filter(|(_, ticket)| ticket.held && ticket.epoch != epoch.id);
            old.map(|(path, ticket)| (path.clone(), ticket.draw)).collect()
        };
        for (path, draw) in held {
            let (name, incarnation, text) = (&**replicas.name(), replicas.incarnation(), &*path);
            let parameters: Parameters<'_> = &[&text, &name, &incarnation, &epoch.id, &draw];
            let rows = replicas.engine().query(Line::Quick, &PUT_BACK, parameters).await?;
            let mut tickets = self.tickets();
            match (rows.first(), tickets.drawn.get_mut(&path)) {
                (Some(row), Some(ticket)) => {
                    *ticket = Ticket { epoch: epoch.id, number: row.get(0), draw, held: true };
                }
                (Some(_), None) => tickets.give_back(path),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Gives back the tickets of replicas that are gone.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn give_back_of_gone(&self, epoch: &Epoch) -> Result<(), EngineError> {
        let engine = self.writes.replicas().engine();
        engine.execute(Line::Quick, &GIVE_BACK_OF_GONE, &[&epoch.id]).await.map(drop)
    }
}
