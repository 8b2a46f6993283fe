//! The state of a queue that replicas share, as bytes. What follows from the rest is left out: a caller's counts follow from its slots.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::super::LimitSource;
use super::super::throttle_gate::{CloseReason, ReopenBatch, ThrottleGate};
use super::super::window::{LentSlots, Moment};
use super::{FairQueue, QueueCaller, QueueTicket};
use crate::hash::NameMap;

/// Version of the encoding. A replica that reads a newer one must not write.
const VERSION: u32 = 1;
/// The most that any moment may be, in milliseconds since 1970: the year 2248. Beyond it, sums could overflow.
const MOMENT_MAX: u64 = 1 << 43;
/// The most slots and tickets, and the longest times.
const COUNT_MAX: u64 = u32::MAX as u64;

/// What replicas share about a bucket.
#[derive(Clone, Debug)]
pub(in super::super) struct SharedState {
    pub(in super::super) queue: FairQueue,
    /// Attempts per minute, reserve included.
    pub(in super::super) limit: u32,
    pub(in super::super) limit_from: LimitSource,
    /// The longest time for which any replica lends a slot.
    pub(in super::super) lend_ms: u64,
    /// The ticket whose turn is next, and since when it is due, as whoever swapped last expected.
    pub(in super::super) turn: Option<(u64, Moment)>,
}

/// Why bytes are not a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum StateFault {
    /// A newer makegate wrote it.
    #[error("a newer makegate has written a quota's state (version {0}): update this one")]
    Newer(u32),
    /// It makes no sense.
    #[error("the state of a quota in the database makes no sense")]
    Garbled,
}

#[derive(Clone, PartialEq, Message)]
struct StateMessage {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    limit: u64,
    #[prost(uint32, tag = "3")]
    limit_from: u32,
    #[prost(uint64, tag = "4")]
    granted_limit: u64,
    #[prost(uint64, tag = "5")]
    eligible: u64,
    #[prost(uint64, tag = "6")]
    wait_ms: u64,
    #[prost(uint64, tag = "7")]
    next_ticket: u64,
    #[prost(uint64, tag = "8")]
    pace_next_ns: u64,
    #[prost(uint64, tag = "9")]
    lend_ms: u64,
    /// Of callers; other members name a caller by its place here.
    #[prost(string, repeated, tag = "10")]
    names: Vec<String>,
    /// Each by its distance from the one before.
    #[prost(uint64, repeated, tag = "11")]
    held_returns: Vec<u64>,
    #[prost(uint32, repeated, tag = "12")]
    held_callers: Vec<u32>,
    #[prost(uint64, repeated, tag = "13")]
    held_counts: Vec<u64>,
    #[prost(uint64, repeated, tag = "14")]
    lent_returns: Vec<u64>,
    #[prost(uint32, repeated, tag = "15")]
    lent_callers: Vec<u32>,
    #[prost(uint64, repeated, tag = "16")]
    lent_counts: Vec<u64>,
    #[prost(uint32, repeated, tag = "17")]
    lent_rounds: Vec<u32>,
    #[prost(message, repeated, tag = "18")]
    callers: Vec<CallerMessage>,
    #[prost(uint32, repeated, tag = "19")]
    order: Vec<u32>,
    /// Incarnations of replicas with tickets, 16 bytes each.
    #[prost(bytes = "vec", tag = "20")]
    owners: Vec<u8>,
    #[prost(message, optional, tag = "21")]
    gate: Option<GateMessage>,
    #[prost(message, optional, tag = "22")]
    turn: Option<TurnMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct CallerMessage {
    #[prost(uint32, tag = "1")]
    name: u32,
    #[prost(uint64, tag = "2")]
    since: u64,
    #[prost(uint64, tag = "3")]
    noted: u64,
    #[prost(uint64, repeated, tag = "4")]
    tickets: Vec<u64>,
    #[prost(uint32, repeated, tag = "5")]
    owners: Vec<u32>,
    #[prost(uint64, repeated, tag = "6")]
    latest: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct GateMessage {
    #[prost(uint64, tag = "1")]
    closed_until: u64,
    #[prost(uint64, optional, tag = "2")]
    early_test: Option<u64>,
    #[prost(bool, tag = "3")]
    is_tested_early: bool,
    #[prost(uint64, tag = "4")]
    unknown_until: u64,
    #[prost(uint32, tag = "5")]
    round: u32,
    /// Size, sent and ended; empty while it is not reopening.
    #[prost(uint64, repeated, tag = "6")]
    batch: Vec<u64>,
    /// 0: never closed; 1: 429; 2: 429 before a start; 3: unknown before a start; 4: a clock's step.
    #[prost(uint32, tag = "7")]
    why: u32,
    #[prost(uint64, optional, tag = "8")]
    asked_s: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct TurnMessage {
    #[prost(uint64, tag = "1")]
    ticket: u64,
    #[prost(uint64, tag = "2")]
    due: u64,
}

impl SharedState {
    /// Nothing is taken and nobody waits.
    pub(in super::super) fn new(limit: u32, limit_from: LimitSource) -> Self {
        Self { queue: FairQueue::new(limit), limit, limit_from, lend_ms: 0, turn: None }
    }

    pub(in super::super) fn encode(&self) -> Vec<u8> {
        let queue = &self.queue;
        let mut names = NameTable::default();
        let mut message = StateMessage {
            version: VERSION,
            limit: self.limit.into(),
            limit_from: match self.limit_from {
                LimitSource::Assumed => 0,
                LimitSource::Learned => 1,
                LimitSource::Configured => 2,
            },
            granted_limit: queue.limit,
            eligible: to_u64(queue.eligible),
            wait_ms: queue.wait_ms.min(COUNT_MAX),
            next_ticket: queue.next_ticket,
            pace_next_ns: queue.pace.next_ns,
            lend_ms: self.lend_ms,
            gate: Some(GateMessage::of(&queue.gate)),
            turn: self.turn.map(|(ticket, due)| TurnMessage { ticket, due }),
            ..StateMessage::default()
        };
        let mut before = 0;
        for slots in queue.window.held() {
            message.held_returns.push(slots.returns - before);
            message.held_callers.push(names.place(&slots.caller));
            message.held_counts.push(slots.count);
            before = slots.returns;
        }
        before = 0;
        for slots in queue.window.lent() {
            message.lent_returns.push(slots.returns - before);
            message.lent_callers.push(names.place(&slots.caller));
            message.lent_counts.push(slots.count);
            message.lent_rounds.push(slots.round);
            before = slots.returns;
        }
        let mut owners = Vec::new();
        for (name, state) in &queue.callers {
            message.callers.push(CallerMessage::of(names.place(name), state, &mut owners));
        }
        message.order = queue.order.iter().map(|name| names.place(name)).collect();
        message.owners = owners.iter().flat_map(|owner| owner.to_be_bytes()).collect();
        message.names = names.names;
        message.encode_to_vec()
    }

    pub(in super::super) fn decode(bytes: &[u8]) -> Result<Self, StateFault> {
        let message = StateMessage::decode(bytes).map_err(|_| StateFault::Garbled)?;
        if message.version > VERSION {
            return Err(StateFault::Newer(message.version));
        }
        Self::of(&message).filter(|_| message.version == VERSION).ok_or(StateFault::Garbled)
    }

    /// Returns `None` if the message makes no sense.
    fn of(message: &StateMessage) -> Option<Self> {
        let names: Vec<Arc<str>> = message.names.iter().map(|name| Arc::from(name.as_str())).collect();
        let mut queue = FairQueue::new(u32::try_from(message.granted_limit).ok()?);
        queue.eligible = usize::try_from(count(message.eligible)?).ok()?;
        queue.wait_ms = count(message.wait_ms)?;
        queue.next_ticket = moment(message.next_ticket)?;
        queue.pace.next_ns = Some(message.pace_next_ns).filter(|ns| *ns <= MOMENT_MAX * 1_000_000)?;
        queue.gate = message.gate.as_ref()?.to_gate()?;
        let name = |place: u32| names.get(usize::try_from(place).ok()?);
        let (owners, []) = message.owners.as_chunks::<16>() else { return None };
        for caller in &message.callers {
            let state = caller.to_caller(owners)?;
            if queue.callers.insert(name(caller.name)?.clone(), state).is_some() {
                return None;
            }
        }
        message.restore_slots(&names, &mut queue)?;
        queue.order = message.order.iter().map(|place| name(*place).cloned()).collect::<Option<VecDeque<_>>>()?;
        queue.is_in_order().then_some(())?;
        let turn = message.turn.map(|turn| Some((turn.ticket, moment(turn.due)?)));
        Some(Self {
            queue,
            limit: u32::try_from(message.limit).ok()?,
            limit_from: match message.limit_from {
                0 => LimitSource::Assumed,
                1 => LimitSource::Learned,
                2 => LimitSource::Configured,
                _ => return None,
            },
            lend_ms: count(message.lend_ms)?,
            turn: match turn {
                None => None,
                Some(turn) => Some(turn?),
            },
        })
    }
}

impl FairQueue {
    /// Whether exactly the callers with waiting requests are in `order`, once each.
    fn is_in_order(&self) -> bool {
        let waiting = self.callers.values().filter(|state| !state.waiting.is_empty()).count();
        let mut seen = NameMap::default();
        let is_known = |name: &Arc<str>| self.callers.get(name).is_some_and(|state| !state.waiting.is_empty());
        self.order.len() == waiting
            && self.order.iter().all(|name| is_known(name) && seen.insert(name.clone(), ()).is_none())
    }
}

impl StateMessage {
    /// Puts the slots into the window, and counts them for their callers.
    fn restore_slots(&self, names: &[Arc<str>], queue: &mut FairQueue) -> Option<()> {
        let name = |place: u32| names.get(usize::try_from(place).ok()?);
        let held = self.held_returns.len();
        let lent = self.lent_returns.len();
        let is_even = self.held_callers.len() == held && self.held_counts.len() == held;
        (is_even
            && self.lent_callers.len() == lent
            && self.lent_counts.len() == lent
            && self.lent_rounds.len() == lent)
            .then_some(())?;
        let (mut returns, mut total) = (0_u64, 0_u64);
        for ((by, caller), slots) in self.held_returns.iter().zip(&self.held_callers).zip(&self.held_counts) {
            returns = moment(returns.checked_add(*by)?)?;
            total = count(total.checked_add(*slots)?)?;
            queue.hold(returns, name(*caller)?, *slots);
        }
        returns = 0;
        let rounds = self.lent_callers.iter().zip(&self.lent_counts).zip(&self.lent_rounds);
        for (by, ((caller, slots), round)) in self.lent_returns.iter().zip(rounds) {
            returns = moment(returns.checked_add(*by)?)?;
            total = count(total.checked_add(*slots)?)?;
            let caller = name(*caller)?.clone();
            (*slots > 0).then_some(())?;
            if *caller == *super::SPARE {
                queue.spare.spent += slots;
            } else {
                let state = queue.callers.entry(caller.clone()).or_default();
                state.spent += slots;
                state.under_way += slots;
            }
            queue.window.lend(LentSlots { returns, caller, round: *round, count: *slots });
        }
        Some(())
    }
}

impl CallerMessage {
    fn of(name: u32, state: &QueueCaller, owners: &mut Vec<u128>) -> Self {
        let mut message = Self { name, since: state.since, noted: state.active_noted_at, ..Self::default() };
        for ticket in &state.waiting {
            let owner = owners.iter().position(|owner| *owner == ticket.owner).unwrap_or_else(|| {
                owners.push(ticket.owner);
                owners.len() - 1
            });
            message.tickets.push(ticket.id);
            message.owners.push(u32::try_from(owner).unwrap_or(u32::MAX));
            message.latest.push(ticket.latest.min(MOMENT_MAX));
        }
        message
    }

    fn to_caller(&self, owners: &[[u8; 16]]) -> Option<QueueCaller> {
        let number = self.tickets.len();
        (self.owners.len() == number && self.latest.len() == number).then_some(())?;
        let tickets = self.tickets.iter().zip(&self.owners).zip(&self.latest);
        let tickets = tickets.map(|((&id, owner), &latest)| {
            let owner = owners.get(usize::try_from(*owner).ok()?)?;
            Some(QueueTicket { id, owner: u128::from_be_bytes(*owner), latest: moment(latest)? })
        });
        Some(QueueCaller {
            since: moment(self.since)?,
            active_noted_at: moment(self.noted)?,
            waiting: tickets.collect::<Option<_>>()?,
            ..QueueCaller::default()
        })
    }
}

impl GateMessage {
    fn of(gate: &ThrottleGate) -> Self {
        let (why, asked) = match gate.why {
            None => (0, None),
            Some(CloseReason::Throttled(asked)) => (1, asked),
            Some(CloseReason::ThrottledBefore) => (2, None),
            Some(CloseReason::UnknownBefore) => (3, None),
            Some(CloseReason::ClockStep) => (4, None),
        };
        Self {
            closed_until: gate.closed_until,
            early_test: gate.early_test,
            is_tested_early: gate.is_tested_early,
            unknown_until: gate.unknown_until,
            round: gate.round,
            batch: gate.batch.as_ref().map_or_else(Vec::new, |batch| vec![batch.size, batch.sent, batch.ended]),
            why,
            asked_s: asked.map(|asked| asked.as_secs()),
        }
    }

    fn to_gate(&self) -> Option<ThrottleGate> {
        let batch = match *self.batch.as_slice() {
            [] => None,
            [size, sent, ended] => Some(ReopenBatch { size: count(size)?, sent: count(sent)?, ended: count(ended)? }),
            _ => return None,
        };
        Some(ThrottleGate {
            closed_until: moment(self.closed_until)?,
            early_test: match self.early_test {
                None => None,
                Some(at) => Some(moment(at)?),
            },
            is_tested_early: self.is_tested_early,
            unknown_until: moment(self.unknown_until)?,
            round: self.round,
            batch,
            why: match self.why {
                0 => None,
                1 => Some(CloseReason::Throttled(self.asked_s.map(Duration::from_secs))),
                2 => Some(CloseReason::ThrottledBefore),
                3 => Some(CloseReason::UnknownBefore),
                4 => Some(CloseReason::ClockStep),
                _ => return None,
            },
        })
    }
}

/// The names of callers, each once.
#[derive(Default)]
struct NameTable {
    names: Vec<String>,
    places: NameMap<u32>,
}

impl NameTable {
    fn place(&mut self, name: &Arc<str>) -> u32 {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.to_string());
        self.places.insert(name.clone(), place);
        place
    }
}

fn moment(moment: u64) -> Option<Moment> {
    (moment <= MOMENT_MAX).then_some(moment)
}

fn count(count: u64) -> Option<u64> {
    (count <= COUNT_MAX).then_some(count)
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX).min(COUNT_MAX)
}

#[cfg(test)]
mod tests;
