//! The queue in virtual time: flooding callers, polite callers, an upstream that counts at the worst moment, and
//! processes that are killed.

mod lone;
mod shared;
mod small;
mod spare;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::fair_queue::{FairQueue, SlotAnswer, SlotGrant, SlotRequest};
use super::journal_state::{JournalLine, JournalState, JournalStep};
use super::throttle_gate::CloseReason;
use super::window::Moment;
use super::{BucketId, QuotaRefused, WaitsFor};

const STEP_MS: Moment = 10;
const QUOTA_WAIT_MS: Moment = 5_000;
const QUEUE_MAX: usize = 50;
const MINUTE: Moment = 60_000;
const EVER: Moment = Moment::MAX;

/// What a caller asks for during a span of time.
#[derive(Clone, Debug)]
struct Load {
    caller: usize,
    demand: Demand,
    span: Range<Moment>,
}

#[derive(Clone, Copy, Debug)]
enum Demand {
    /// This many requests per minute, evenly spaced.
    Even(u64),
    /// This many per minute, at random moments.
    AtRandom(u64),
    /// This many clients, each of which asks again as soon as it has its answer, or a second after it was refused.
    Clients(usize),
}

fn even(caller: usize, per_minute: u64, span: Range<Moment>) -> Load {
    Load { caller, demand: Demand::Even(per_minute), span }
}

fn random(caller: usize, per_minute: u64, span: Range<Moment>) -> Load {
    Load { caller, demand: Demand::AtRandom(per_minute), span }
}

fn clients(caller: usize, clients: usize, span: Range<Moment>) -> Load {
    Load { caller, demand: Demand::Clients(clients), span }
}

/// 30 requests a second, which exceeds most limits here and runs quickly.
fn flood(caller: usize, span: Range<Moment>) -> Load {
    even(caller, 1_800, span)
}

/// What became of a request.
struct Fate {
    caller: usize,
    answer: Moment,
    /// Whether it, along with those waiting before it, was within the caller's share.
    within_share: bool,
    granted: Option<Moment>,
}

struct Sim {
    limit: u32,
    eligible: usize,
    latency_ms: u64,
    random: fastrand::Rng,
    queue: FairQueue,
    /// When the queue's process started, which is its moment 0.
    started: Moment,
    wake: Option<Moment>,
    names: Vec<Arc<str>>,
    /// Caller, request and latest moment by ticket.
    waiting: HashMap<u64, (usize, usize, Moment)>,
    /// Callers refused recently, and when.
    refused: Vec<(usize, Moment)>,
    /// Attempts by end, with their indexes in `attempts`.
    ends: BTreeMap<Moment, Vec<(usize, SlotGrant)>>,
    fates: Vec<Fate>,
    /// Send and end of every attempt.
    attempts: Vec<(Moment, Moment)>,
    /// The journal's lines, if the process is killed now and then: once in this many steps.
    journal: Option<(Vec<u8>, u64)>,
    /// Lines not written yet.
    pending: Vec<u8>,
    /// A spare slot is requested once in this many steps.
    spare_in_steps: Option<u64>,
    /// Number of spare slots granted.
    spare: usize,
}

impl Sim {
    fn new(limit: u32, eligible: usize, latency_ms: u64, seed: u64) -> Self {
        Self {
            limit,
            eligible,
            latency_ms,
            random: fastrand::Rng::with_seed(seed),
            queue: FairQueue::new(limit),
            started: 0,
            wake: None,
            names: (0..40).map(|n| format!("caller {n}").into()).collect(),
            waiting: HashMap::new(),
            refused: Vec::new(),
            ends: BTreeMap::new(),
            fates: Vec::new(),
            attempts: Vec::new(),
            journal: None,
            pending: Vec::new(),
            spare_in_steps: None,
            spare: 0,
        }
    }

    /// The same, with a gateway that asks for spare slots all the time.
    fn looking(mut self) -> Self {
        self.spare_in_steps = Some(5);
        self
    }

    fn run(mut self, length_ms: Moment, loads: &[Load]) -> Self {
        for now in (0..length_ms).step_by(10) {
            while let Some(entry) = self.ends.first_entry().filter(|entry| *entry.key() <= now) {
                for (_, grant) in entry.remove() {
                    self.queue.end(now - self.started, &grant);
                    self.note(now, &grant.caller, JournalLine::Ended);
                    self.pump(now);
                }
            }
            if self.wake.is_some_and(|wake| self.started + wake <= now) {
                self.pump(now);
            }
            for load in loads.iter().filter(|load| load.span.contains(&now)) {
                for _ in 0..self.arrivals(load, now) {
                    self.ask(now, load.caller);
                }
            }
            if self.spare_in_steps.is_some_and(|in_steps| self.random.u64(..in_steps) == 0) {
                self.ask_for_spare(now);
            }
            self.give_up(now);
            if self.journal.as_ref().is_some_and(|(_, in_steps)| self.random.u64(..*in_steps) == 0) {
                self.restart(now);
            }
        }
        self
    }

    fn arrivals(&mut self, load: &Load, now: Moment) -> u64 {
        match load.demand {
            Demand::Even(per_minute) => {
                let until = |moment: Moment| (moment - load.span.start) * per_minute / MINUTE;
                until(now + STEP_MS) - until(now)
            }
            Demand::AtRandom(per_minute) => {
                (0..STEP_MS * 10).filter(|_| self.random.u64(..MINUTE * 10) < per_minute).count() as u64
            }
            Demand::Clients(clients) => {
                let waiting = self.waiting.values().filter(|(caller, ..)| *caller == load.caller).count();
                let under_way = self.ends.values().flatten();
                let under_way = under_way.filter(|(_, grant)| grant.caller == self.names[load.caller]).count();
                self.refused.retain(|(_, at)| at + 1_000 > now);
                let refused = self.refused.iter().filter(|(caller, _)| *caller == load.caller).count();
                clients.saturating_sub(waiting + under_way + refused) as u64
            }
        }
    }

    fn ask(&mut self, now: Moment, caller: usize) {
        let (id, name, moment) = (self.fates.len(), self.names[caller].clone(), now - self.started);
        assert!(self.queue.pump(moment).is_none(), "a turn at {now} was not handed out in time");
        let within_share = self.queue.within_share(&name);
        self.fates.push(Fate { caller, answer: now, within_share, granted: None });
        let latest = moment + QUOTA_WAIT_MS;
        let request = SlotRequest {
            caller: &name,
            eligible: self.eligible,
            wait_ms: QUOTA_WAIT_MS,
            latest,
            queue_max: QUEUE_MAX,
            owner: 0,
        };
        let foreseen = self.queue.foresee(moment, &request);
        match self.queue.ask(moment, &request) {
            SlotAnswer::Granted(grant) => {
                assert!(foreseen.is_ok_and(|outlook| outlook.after.is_zero()), "{foreseen:?}, but granted");
                self.sent(now, id, grant);
            }
            SlotAnswer::Queued(ticket) => {
                assert!(!matches!(foreseen, Err(QuotaRefused::QueueFull(_))), "{foreseen:?}, but queued");
                self.waiting.insert(ticket, (caller, id, now + QUOTA_WAIT_MS));
                self.pump(now);
            }
            SlotAnswer::Full(outlook) => {
                self.refused.push((caller, now));
                assert!(!outlook.after.is_zero(), "full, but at once");
                assert_eq!(foreseen, Err(QuotaRefused::QueueFull(outlook)));
            }
            SlotAnswer::TooLong(outlook) => {
                self.refused.push((caller, now));
                assert!(outlook.after > Duration::from_millis(QUOTA_WAIT_MS), "{outlook:?}");
                assert_eq!(foreseen, Err(QuotaRefused::TooLong(outlook)));
            }
        }
    }

    fn ask_for_spare(&mut self, now: Moment) {
        let waiting = self.queue.waiting();
        if let Some(grant) = self.queue.take_spare(now - self.started) {
            assert_eq!(waiting, 0, "a spare slot while somebody waits at {now}");
            self.spare += 1;
            self.note(now, &grant.caller, JournalLine::Sent);
            let end = now + self.random.u64(..=self.latency_ms);
            self.ends.entry(end).or_default().push((self.attempts.len(), grant));
            self.attempts.push((now, end));
        }
    }

    fn pump(&mut self, now: Moment) {
        while let Some((grant, ticket)) = self.queue.pump(now - self.started) {
            let (_, id, _) = self.waiting.remove(&ticket).unwrap();
            self.sent(now, id, grant);
        }
        self.wake = self.queue.next_wake(now - self.started);
    }

    fn sent(&mut self, now: Moment, id: usize, grant: SlotGrant) {
        self.fates[id].granted = Some(now);
        self.note(now, &grant.caller, JournalLine::Sent);
        let end = now + self.random.u64(..=self.latency_ms);
        self.ends.entry(end).or_default().push((self.attempts.len(), grant));
        self.attempts.push((now, end));
    }

    fn give_up(&mut self, now: Moment) {
        let late: Vec<_> =
            self.waiting.iter().filter(|(_, (.., latest))| *latest <= now).map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            // Those behind one that gives up may be sent because it does.
            let Some((caller, ..)) = self.waiting.remove(&ticket) else { continue };
            self.queue.leave(now - self.started, &self.names[caller], ticket);
            self.refused.push((caller, now));
            self.pump(now);
        }
    }

    fn note<'a>(&mut self, now: Moment, caller: &'a str, line: impl Fn(JournalStep<'a>) -> JournalLine<'a>) {
        if let Some((text, _)) = &mut self.journal {
            let step = JournalStep { at: now as i64, bucket: BucketId::Account, count: 1, caller };
            let line = line(step);
            line.append_to(&mut self.pending);
            if !line.can_wait() {
                text.append(&mut self.pending);
            }
        }
    }

    /// Kills the process with everything waiting and under way; a new one reads the journal.
    fn restart(&mut self, now: Moment) {
        let (text, _) = self.journal.as_mut().unwrap();
        self.pending.clear();
        let mut journal_state = JournalState::read(text, "boot", now as i64);
        journal_state.end_all(now as i64);
        *text = journal_state.text("boot", now as i64, None);
        self.queue = FairQueue::new(self.limit);
        if let Some(bucket) = journal_state.buckets.get(&BucketId::Account) {
            bucket.restore_into(&mut self.queue, now as i64);
        }
        (self.started, self.wake) = (now, None);
        self.waiting.clear();
        for (attempt, _) in std::mem::take(&mut self.ends).into_values().flatten() {
            self.attempts[attempt].1 = now;
        }
    }

    /// How much of the upstream's own limit was used, in percent.
    fn used_percent(&self, span: Range<Moment>) -> u64 {
        let sent = self.attempts.iter().filter(|(sent, _)| span.contains(sent)).count() as u64;
        sent * MINUTE * 100 / (u64::from(self.limit) * (span.end - span.start))
    }

    fn answer(&self, caller: usize, span: Range<Moment>) -> impl Iterator<Item = &Fate> {
        self.fates.iter().filter(move |fate| fate.caller == caller && span.contains(&fate.answer))
    }

    fn granted(&self, caller: usize, span: Range<Moment>) -> usize {
        self.answer(caller, span).filter(|fate| fate.granted.is_some()).count()
    }

    fn refused(&self, caller: usize, span: Range<Moment>) -> usize {
        self.answer(caller, span).filter(|fate| fate.granted.is_none()).count()
    }

    /// Number of requests refused although within the share.
    fn starved(&self, callers: Range<usize>, span: Range<Moment>) -> usize {
        let answer = callers.flat_map(|caller| self.answer(caller, span.clone()));
        answer.filter(|fate| fate.within_share && fate.granted.is_none()).count()
    }

    /// Wherever the upstream's minute begins, and at whatever point between send and end it counts an attempt, it
    /// never counts more than the limit. Checks every minute that ends with a send.
    fn assert_within_limit(&self) {
        let mut begin = 0;
        for (n, (sent, _)) in self.attempts.iter().enumerate() {
            while self.attempts[begin].0 + MINUTE + self.latency_ms < *sent {
                begin += 1;
            }
            let counted = self.attempts[begin..=n].iter().filter(|(_, end)| end + MINUTE >= *sent).count();
            assert!(counted <= self.limit as usize, "{counted} attempts in the minute before {sent}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_minute_holds_more_than_the_limit(
        limit in 1_u32..80, callers in 1_usize..5, eligible in 1_usize..6, latency in 0_u64..3_000, seed: u64,
        kill_in_s in 5_u64..100, per_minute in 10_u64..1_000,
    ) {
        let loads: Vec<_> = (0..callers).map(|caller| random(caller, per_minute, 0..EVER)).collect();
        let mut sim = Sim::new(limit, eligible, latency, seed);
        sim.journal = Some((b"makegate-slots-1 boot\n".to_vec(), kill_in_s * 1_000 / STEP_MS));
        sim.spare_in_steps = Some(5);
        sim.run(4 * MINUTE, &loads).assert_within_limit();
    }
}

#[test]
fn polite_callers_are_served_beside_one_that_floods_a_thousand_a_second() {
    let mut loads = vec![even(0, 60_000, 0..EVER)];
    // A share is 12 a minute, and 9 are three quarters of it.
    loads.extend((1..5).map(|caller| even(caller, 9, 0..EVER)));
    let sim = Sim::new(60, 5, 300, 1).run(3 * MINUTE, &loads);
    sim.assert_within_limit();
    for caller in 1..5 {
        assert_eq!(sim.refused(caller, 0..3 * MINUTE - QUOTA_WAIT_MS), 0, "caller {caller}");
    }
    let used = sim.used_percent(MINUTE..3 * MINUTE);
    assert!(used >= 90, "{used} %");
}

/// Requests that come at random come in bursts, and a burst may want more than the reserve and what comes back within
/// the wait. Over 100 seeds 2 of 84,307 were refused.
#[test]
fn of_a_thousand_random_requests_within_a_share_at_most_one_is_refused_beside_a_flood() {
    for (limit, latency, seeds) in [(60, 300, 0..6), (60, 1_000, 0..6), (240, 300, 0..2), (240, 3_000, 0..2)] {
        let (mut starved, mut asked) = (0, 0);
        for seed in seeds {
            let mut loads = vec![flood(0, 0..EVER)];
            loads.extend((1..5).map(|caller| random(caller, u64::from(limit) * 8 / 50, 0..EVER)));
            let sim = Sim::new(limit, 5, latency, seed).run(10 * MINUTE, &loads);
            let span = MINUTE..10 * MINUTE - QUOTA_WAIT_MS;
            starved += sim.starved(1..5, span.clone());
            asked += (1..5).map(|caller| sim.answer(caller, span.clone()).count()).sum::<usize>();
            let used = sim.used_percent(MINUTE..10 * MINUTE);
            assert!(used >= 89, "{used} % of {limit} used, latency {latency}, seed {seed}");
        }
        assert!(starved * 1_000 <= asked, "{starved} of {asked} refused, limit {limit}, latency {latency}");
    }
}

#[test]
fn newcomers_are_served_from_their_first_request_after_ten_minutes_of_flooding() {
    for (newcomers, eligible, seed) in [(1, 3, 1), (1, 2, 2), (4, 5, 3)] {
        let begin = 10 * MINUTE + 17_000;
        let mut loads = vec![flood(0, 0..EVER)];
        let share = 60 / (newcomers as u64 + 1);
        loads.extend((1..=newcomers).map(|caller| even(caller, share * 8 / 10, begin..EVER)));
        let sim = Sim::new(60, eligible, 300, seed).run(13 * MINUTE, &loads);
        sim.assert_within_limit();
        for caller in 1..=newcomers {
            assert_eq!(
                sim.refused(caller, begin..13 * MINUTE - QUOTA_WAIT_MS),
                0,
                "{newcomers} newcomers, seed {seed}"
            );
        }
        let used = sim.used_percent(MINUTE..10 * MINUTE);
        assert!(used >= 90, "{used} % used by the one that floods, seed {seed}");
    }
}

#[test]
fn quiet_callers_leave_their_shares_to_others_until_they_want_them() {
    let surge = 5 * MINUTE;
    let mut loads = vec![flood(0, 0..EVER)];
    loads.extend((1..10).map(|caller| random(caller, 1, 0..surge)));
    loads.extend((1..10).map(|caller| random(caller, 19, surge..EVER)));
    let sim = Sim::new(240, 10, 300, 5).run(10 * MINUTE, &loads);
    let (before, after) = (sim.used_percent(MINUTE..surge), sim.used_percent(surge..10 * MINUTE));
    assert!(before >= 90 && after >= 90, "{before} %, then {after} %");
    assert_eq!(sim.starved(1..10, 0..10 * MINUTE - QUOTA_WAIT_MS), 0);
}

#[test]
fn two_that_flood_have_the_same() {
    let sim = Sim::new(60, 3, 300, 1).run(10 * MINUTE, &[flood(0, 0..EVER), flood(1, 0..EVER), even(2, 1, 0..EVER)]);
    let (one, other) = (sim.granted(0, MINUTE..EVER), sim.granted(1, MINUTE..EVER));
    assert!(one.abs_diff(other) * 10 <= one, "{one} and {other}");
    assert_eq!(sim.refused(2, 0..9 * MINUTE), 0);
}

#[test]
fn all_the_quiet_ones_may_want_their_shares_at_once_whenever_that_is() {
    for phase in 0..4 {
        let surge = 3 * MINUTE + phase * 16_000;
        let mut loads = vec![flood(0, 0..EVER)];
        loads.extend((1..10).map(|caller| random(caller, 1, 0..surge)));
        loads.extend((1..10).map(|caller| even(caller, 21, surge..EVER)));
        let sim = Sim::new(240, 10, 300, phase).run(surge + 2 * MINUTE, &loads);
        let answer = surge..surge + 2 * MINUTE - QUOTA_WAIT_MS;
        assert_eq!(sim.starved(1..10, answer), 0, "phase and seed {phase}");
    }
}
