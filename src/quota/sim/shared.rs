//! Several replicas in virtual time that share one state: swaps that are lost or whose result nobody learns, replicas that are killed and
//! come back, an engine that forgets, and an upstream that counts at the worst moment.

mod cases;

use super::super::LimitSource;
use super::super::fair_queue::SharedState;
use super::super::shared::{AskAnswer, DecidedSwap, LendTerms, OwnLimit, SharedAsk, Wishes};
use super::super::window::HOLD_MS;
use super::*;
use crate::replicas::cells::EngineTime;

/// The engine's clock when the simulation begins.
const ENGINE_MS: Moment = 1_700_000_000_000;
const TICK: Moment = 10;

/// What goes wrong, each once in so many steps of 10 ms.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// Nobody learns what became of a swap (once in so many swaps).
    unclear: Option<u64>,
    kill: Option<u64>,
    forget: Option<u64>,
}

struct SharedSim {
    limit: u32,
    eligible: usize,
    latency_ms: u64,
    trouble: Trouble,
    random: fastrand::Rng,
    /// The engine: its state, the version of that, and how often it has forgotten.
    cell: Vec<u8>,
    version: i64,
    epoch: u64,
    /// When it forgot last, and whether all have put back since.
    forgot_at: Moment,
    is_open: bool,
    replicas: Vec<SimReplica>,
    names: Vec<Arc<str>>,
    /// `answer` is when the request came.
    fates: Vec<Fate>,
    /// When each was over: its attempt ended, or it got none.
    over: Vec<Moment>,
    /// By end: the replica's incarnation, its slot, and the attempt.
    ends: BTreeMap<Moment, Vec<(usize, u128, u64, usize)>>,
    attempts: Vec<(Moment, Moment)>,
    swaps: u64,
    lost: u64,
    reads: u64,
}

struct SimReplica {
    owner: u128,
    wishes: Wishes<usize>,
    /// The request of each ask.
    asks: HashMap<usize, u64>,
    known: Option<(i64, SharedState)>,
    looked: Moment,
    retry_at: Moment,
    epoch: u64,
    /// When it has seen the newest epoch, or comes back.
    joins_at: Moment,
    flight: Option<Flight>,
    /// Callers and attempts, as its journal remembers them.
    journal: Vec<(usize, usize)>,
}

struct Flight {
    epoch: u64,
    applies: Moment,
    arrives: Moment,
    what: Errand,
    came: Option<Outcome>,
}

enum Errand {
    Read,
    Put(i64, Box<SharedState>, DecidedSwap),
    Locked,
}

enum Outcome {
    Content(i64, Option<Box<SharedState>>),
    Swapped(i64, Box<SharedState>, DecidedSwap),
    Unclear(Option<DecidedSwap>),
}

impl SharedSim {
    fn new(replicas: usize, limit: u32, eligible: usize, latency_ms: u64, seed: u64) -> Self {
        let mut sim = Self {
            limit,
            eligible,
            latency_ms,
            trouble: Trouble::default(),
            random: fastrand::Rng::with_seed(seed),
            cell: Vec::new(),
            version: 0,
            epoch: 0,
            forgot_at: 0,
            is_open: true,
            replicas: Vec::new(),
            names: (0..200).map(|n| format!("caller {n}").into()).collect(),
            fates: Vec::new(),
            over: Vec::new(),
            ends: BTreeMap::new(),
            attempts: Vec::new(),
            swaps: 0,
            lost: 0,
            reads: 0,
        };
        for n in 0..replicas {
            let owner = n as u128 + 1;
            sim.replicas.push(SimReplica {
                owner,
                wishes: sim.wishes(owner),
                asks: HashMap::new(),
                known: None,
                looked: 0,
                retry_at: 0,
                epoch: 0,
                joins_at: 0,
                flight: None,
                journal: Vec::new(),
            });
        }
        sim
    }

    fn in_trouble(mut self, trouble: Trouble) -> Self {
        self.trouble = trouble;
        self
    }

    fn wishes(&self, owner: u128) -> Wishes<usize> {
        let own = OwnLimit { limit: self.limit, from: LimitSource::Configured, is_news: false };
        Wishes::new(LendTerms { owner, attempt_ms: self.latency_ms + 500, reserve_percent: 0 }, own)
    }

    /// A replica's idea of the engine's time.
    fn time(&mut self, now: Moment) -> EngineTime {
        let (early, late) = (self.random.u64(..10), self.random.u64(..10));
        EngineTime { boot: now, earliest: ENGINE_MS + now - early, latest: ENGINE_MS + now + late }
    }

    fn happens(&mut self, in_steps: Option<u64>) -> bool {
        in_steps.is_some_and(|in_steps| self.random.u64(..in_steps) == 0)
    }

    /// Which replica a caller asks: each has its own, or any.
    fn run(mut self, length_ms: Moment, loads: &[Load], is_balanced: bool) -> Self {
        let mut clients = Sim::new(self.limit, self.eligible, self.latency_ms, 0);
        for now in (0..length_ms / TICK).map(|tick| tick * TICK) {
            while let Some(entry) = self.ends.first_entry().filter(|entry| *entry.key() <= now) {
                for (replica, owner, slot, _) in entry.remove() {
                    let replica = &mut self.replicas[replica];
                    if replica.owner == owner {
                        replica.wishes.end(slot, now, true);
                    }
                }
            }
            if self.happens(self.trouble.kill) {
                self.kill(now);
            }
            if self.happens(self.trouble.forget) {
                self.forget(now);
            }
            for load in loads.iter().filter(|load| load.span.contains(&now) && now % STEP_MS == 0) {
                for _ in 0..self.arrivals(&mut clients, load, now) {
                    let any = self.random.usize(..self.replicas.len());
                    self.ask(now, load.caller, if is_balanced { any } else { load.caller % self.replicas.len() });
                }
            }
            for replica in 0..self.replicas.len() {
                self.step(replica, now);
            }
            self.open(now);
        }
        self
    }

    fn arrivals(&mut self, clients: &mut Sim, load: &Load, now: Moment) -> u64 {
        let Demand::Clients(number) = load.demand else { return clients.arrivals(load, now) };
        let newest = self.fates.iter().zip(&self.over).rev().take(2_000);
        let busy = newest.filter(|(fate, over)| {
            let pause = if fate.granted.is_some() { 0 } else { 1_000 };
            fate.caller == load.caller && over.saturating_add(pause) > now
        });
        number.saturating_sub(busy.count()) as u64
    }

    fn ask(&mut self, now: Moment, caller: usize, replica: usize) {
        let id = self.fates.len();
        let within_share = match SharedState::decode(&self.cell) {
            Ok(mut state) => {
                state.queue.expire(ENGINE_MS + now);
                state.queue.within_share(&self.names[caller])
            }
            Err(_) => true,
        };
        self.fates.push(Fate { caller, answer: now, within_share, granted: None });
        self.over.push(EVER);
        let replica = &mut self.replicas[replica];
        if replica.owner == 0 {
            self.over[id] = now;
            return;
        }
        let number = replica.wishes.add(SharedAsk {
            caller: self.names[caller].clone(),
            eligible: self.eligible,
            wait_ms: QUOTA_WAIT_MS,
            latest: now + QUOTA_WAIT_MS,
            queue_max: QUEUE_MAX,
            is_spare: false,
            ticket: None,
            reply: id,
        });
        replica.asks.insert(id, number);
    }

    fn step(&mut self, at: usize, now: Moment) {
        if self.replicas[at].owner == 0 {
            if self.replicas[at].joins_at <= now {
                self.come_back(at, now);
            }
            return;
        }
        self.give_up(at, now);
        if self.replicas[at].epoch != self.epoch && self.replicas[at].joins_at <= now {
            self.put_back(at, now);
        }
        self.fly(at, now);
        let is_ready = self.replicas[at].flight.is_none() && self.replicas[at].retry_at <= now;
        if !is_ready || !self.is_open || self.replicas[at].epoch != self.epoch {
            return;
        }
        let time = self.time(now);
        let replica = &mut self.replicas[at];
        replica.wishes.forget(now);
        let known = replica.known.as_ref().map(|(_, state)| state);
        if !replica.wishes.has_work() || replica.wishes.due(known, time, replica.looked).is_none_or(|due| due > now) {
            return;
        }
        let Some((version, mut state)) = replica.known.clone() else { return self.start(at, now, Errand::Read) };
        let swap = replica.wishes.decide(&mut state, time);
        match swap.is_changed {
            true => self.start(at, now, Errand::Put(version, Box::new(state), swap)),
            false => self.start(at, now, Errand::Read),
        }
    }

    fn start(&mut self, at: usize, now: Moment, what: Errand) {
        let applies = now + self.random.u64(..8);
        let arrives = applies + self.random.u64(..8);
        self.replicas[at].flight = Some(Flight { epoch: self.replicas[at].epoch, applies, arrives, what, came: None });
    }

    fn fly(&mut self, at: usize, now: Moment) {
        let Some(mut flight) = self.replicas[at].flight.take() else { return };
        if flight.came.is_none() && flight.applies <= now {
            flight.came = Some(self.apply(at, &mut flight, now));
        }
        match flight.came.take() {
            Some(came) if flight.arrives <= now => self.arrive(at, flight, came, now),
            came => {
                flight.came = came;
                self.replicas[at].flight = Some(flight);
            }
        }
    }

    /// What the engine does.
    fn apply(&mut self, at: usize, flight: &mut Flight, now: Moment) -> Outcome {
        if flight.epoch != self.epoch {
            return Outcome::Unclear(None);
        }
        let content = SharedState::decode(&self.cell).ok().map(Box::new);
        let unclear = self.happens(self.trouble.unclear);
        if unclear && self.random.bool() {
            return match std::mem::replace(&mut flight.what, Errand::Read) {
                Errand::Put(_, _, swap) => Outcome::Unclear(Some(swap)),
                Errand::Read | Errand::Locked => Outcome::Unclear(None),
            };
        }
        let came = match std::mem::replace(&mut flight.what, Errand::Read) {
            Errand::Read => {
                self.reads += 1;
                Outcome::Content(self.version, content)
            }
            Errand::Put(version, state, swap) if version == self.version => self.store(state, swap),
            Errand::Put(..) => {
                self.lost += 1;
                flight.what = Errand::Locked;
                Outcome::Content(self.version, None)
            }
            Errand::Locked => {
                let mut state = content.unwrap_or_else(|| self.empty());
                let time = self.time(now);
                let swap = self.replicas[at].wishes.decide(&mut state, time);
                if swap.is_changed { self.store(state, swap) } else { Outcome::Swapped(self.version, state, swap) }
            }
        };
        match came {
            Outcome::Swapped(_, _, swap) if unclear => Outcome::Unclear(Some(swap)),
            came @ (Outcome::Content(..) | Outcome::Swapped(..) | Outcome::Unclear(_)) => came,
        }
    }

    fn empty(&self) -> Box<SharedState> {
        Box::new(SharedState::new(self.limit, LimitSource::Configured))
    }

    fn store(&mut self, state: Box<SharedState>, swap: DecidedSwap) -> Outcome {
        self.cell = state.encode();
        self.version += 1;
        self.swaps += 1;
        Outcome::Swapped(self.version, state, swap)
    }

    fn arrive(&mut self, at: usize, flight: Flight, came: Outcome, now: Moment) {
        let empty = self.empty();
        let time = self.time(now);
        let replica = &mut self.replicas[at];
        if replica.epoch != flight.epoch {
            return;
        }
        match came {
            Outcome::Unclear(swap) => {
                swap.iter().for_each(|swap| replica.wishes.maybe_told(swap));
                (replica.known, replica.retry_at) = (None, now + 250);
            }
            Outcome::Content(..) if matches!(flight.what, Errand::Locked) => self.start(at, now, Errand::Locked),
            Outcome::Content(version, state) => {
                let mut state = state.unwrap_or(empty);
                let swap = replica.wishes.decide(&mut state, time);
                match swap.is_changed {
                    true => self.start(at, now, Errand::Put(version, state, swap)),
                    false => self.settle(at, version, *state, swap, now),
                }
            }
            Outcome::Swapped(version, state, swap) => self.settle(at, version, *state, swap, now),
        }
    }

    fn settle(&mut self, at: usize, version: i64, state: SharedState, swap: DecidedSwap, now: Moment) {
        let replica = &mut self.replicas[at];
        let answers = replica.wishes.swapped(swap, &state, now, true);
        (replica.known, replica.looked) = (Some((version, state)), now);
        for (id, answer) in answers {
            self.replicas[at].asks.remove(&id);
            match answer {
                AskAnswer::Refused(_) => self.over[id] = now,
                AskAnswer::Granted(slot, _) => {
                    // The attempt is sent a little later, and counts from then on.
                    let sent = now + self.random.u64(..20);
                    let end = sent + self.random.u64(..=self.latency_ms);
                    let replica = &mut self.replicas[at];
                    self.ends.entry(end).or_default().push((at, replica.owner, slot, self.attempts.len()));
                    replica.journal.push((self.fates[id].caller, self.attempts.len()));
                    self.attempts.push((sent, end));
                    (self.fates[id].granted, self.over[id]) = (Some(now), end);
                }
            }
        }
    }

    fn give_up(&mut self, at: usize, now: Moment) {
        let replica = &mut self.replicas[at];
        let late: Vec<_> =
            replica.wishes.asks().filter(|(_, ask)| ask.latest <= now).map(|(number, _)| *number).collect();
        for number in late {
            if let Some(ask) = replica.wishes.withdraw(number) {
                replica.asks.remove(&ask.reply);
                self.over[ask.reply] = now;
            }
        }
    }

    /// A replica dies with all that it waits for; the upstream may count its attempts until then.
    fn kill(&mut self, now: Moment) {
        let at = self.random.usize(..self.replicas.len());
        let back = now + self.random.u64(..20_000);
        let replica = &mut self.replicas[at];
        for id in std::mem::take(&mut replica.asks).into_keys() {
            self.over[id] = now;
        }
        for (_, attempt) in &replica.journal {
            let (sent, end) = &mut self.attempts[*attempt];
            (*sent, *end) = ((*sent).min(now), (*end).min(now));
        }
        (replica.owner, replica.flight, replica.joins_at) = (0, None, back);
    }

    fn come_back(&mut self, at: usize, now: Moment) {
        let owner = self.random.u128(1_000..);
        let mut wishes = self.wishes(owner);
        for (caller, attempt) in &self.replicas[at].journal {
            let end = self.attempts[*attempt].1;
            if end + HOLD_MS > now {
                wishes.restore(&self.names[*caller], 1, end.min(now));
            }
        }
        let replica = &mut self.replicas[at];
        replica.journal.retain(|(_, attempt)| self.attempts[*attempt].1 + 2 * HOLD_MS > now);
        (replica.owner, replica.wishes, replica.known, replica.retry_at) = (owner, wishes, None, 0);
    }

    /// The engine loses its soft state.
    fn forget(&mut self, now: Moment) {
        (self.cell, self.version, self.epoch) = (Vec::new(), 0, self.epoch + 1);
        (self.forgot_at, self.is_open) = (now, false);
        for at in 0..self.replicas.len() {
            let joins_at = now + self.random.u64(50..1_500);
            let replica = &mut self.replicas[at];
            replica.joins_at = replica.joins_at.max(joins_at);
        }
    }

    fn put_back(&mut self, at: usize, now: Moment) {
        let mut state = SharedState::decode(&self.cell).ok().map_or_else(|| self.empty(), Box::new);
        let time = self.time(now);
        let replica = &mut self.replicas[at];
        let back = replica.wishes.put_back(&mut state, time);
        (replica.epoch, replica.known) = (self.epoch, None);
        replica.wishes.is_back(back, now);
        self.cell = state.encode();
        self.version += 1;
    }

    fn open(&mut self, now: Moment) {
        let are_back = self.replicas.iter().all(|replica| replica.epoch == self.epoch && replica.owner != 0);
        let lend_ms = LendTerms { owner: 0, attempt_ms: self.latency_ms + 500, reserve_percent: 0 }.lend_ms();
        self.is_open |= are_back || now >= self.forgot_at + lend_ms;
    }

    /// As `Sim` sees what was sent.
    fn seen(self) -> Sim {
        let mut sim = Sim::new(self.limit, self.eligible, self.latency_ms + 20, 0);
        (sim.attempts, sim.fates) = (self.attempts, self.fates);
        sim.attempts.sort_unstable();
        sim
    }
}
