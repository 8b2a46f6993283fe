//! Over several replicas and an engine whose answers come late, in any order or never, callers get their rate and nothing more.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::purse::{Granted, PermitTerms, Purse};
use super::*;

/// What `GRANT` and `MAKE` do to a row, in nanoseconds.
#[derive(Debug)]
struct Row {
    tat: Option<u64>,
    born: u64,
}

impl Row {
    fn grant(&mut self, terms: &PermitTerms, want: u32, now: u64) -> Granted {
        let tat = self.tat.unwrap_or(self.born + terms.bucket);
        let base = if tat.saturating_sub(now) / 4 > terms.bucket + 15_000_000_000 { now + terms.bucket } else { tat };
        let base = base.max(now);
        let got = ((now + terms.bucket).saturating_sub(base) / terms.step).min(u64::from(want));
        let tat = base + got * terms.step;
        self.tat = Some(tat);
        Granted { permits: u32::try_from(got).unwrap(), whole_in: tat - now }
    }
}

/// What happens next at one of the replicas.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// So many requests arrive at once.
    Requests(u8),
    /// A round ends: the caller may ask for what it is likely to spend.
    RoundEnds,
    /// Its statement leaves, if none is under way. It may ask for more than anybody needs: no demand makes a rate larger.
    Sends(u8),
    /// The engine carries its statement out.
    Carried,
    /// The answer arrives.
    Arrives,
    /// Or never does.
    Lost,
    /// The engine loses its soft state.
    Crash,
}

/// A statement of one replica.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: u64,
    want: u32,
    /// When the engine carried it out, and what it granted.
    granted: Option<(u64, Granted)>,
}

struct Replica {
    purse: Purse,
    waiting: VecDeque<oneshot::Receiver<bool>>,
    sent: Option<Sent>,
    likely: u32,
}

impl Replica {
    fn new(terms: PermitTerms) -> Self {
        Self { purse: Purse::new("a".into(), terms), waiting: VecDeque::new(), sent: None, likely: 0 }
    }

    /// Lets this happen at this time, and notes when requests are admitted.
    fn happens(&mut self, event: Event, now: u64, row: &mut Row, admitted: &mut Vec<u64>) {
        match event {
            Event::Requests(number) => (0..number).for_each(|_| {
                if self.purse.take(now) {
                    admitted.push(now);
                } else if self.purse.next_in(now) == 0 {
                    self.waiting.extend(self.purse.wait());
                }
            }),
            Event::RoundEnds => self.likely = self.purse.end_round(now).unwrap_or(0),
            Event::Sends(more) => {
                let want = self.purse.demand().max(std::mem::take(&mut self.likely)).max(more.into());
                if want > 0 && self.sent.is_none() {
                    self.sent = Some(Sent { at: now, want, granted: None });
                }
            }
            Event::Carried => {
                if let Some(sent) = self.sent.as_mut().filter(|sent| sent.granted.is_none()) {
                    sent.granted = Some((now, row.grant(&self.purse.terms, sent.want, now * 1_000)));
                }
            }
            Event::Arrives => {
                if let Some(Sent { at, granted: Some((decided, granted)), .. }) = self.sent {
                    self.purse.answer(granted, at, now);
                    self.waiting.retain_mut(|one| match one.try_recv() {
                        Ok(true) => {
                            admitted.push(decided);
                            false
                        }
                        Ok(false) | Err(oneshot::error::TryRecvError::Closed) => false,
                        Err(oneshot::error::TryRecvError::Empty) => true,
                    });
                    self.sent = None;
                }
            }
            Event::Lost => {
                if self.sent.take().is_some() {
                    self.purse.give_up();
                    self.waiting.clear();
                }
            }
            Event::Crash => *row = Row { tat: None, born: now * 1_000 },
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..40_u8).prop_map(Event::Requests),
        2 => Just(Event::RoundEnds),
        6 => prop_oneof![Just(0), 0..40_u8].prop_map(Event::Sends),
        6 => Just(Event::Carried),
        6 => Just(Event::Arrives),
        1 => Just(Event::Lost),
        1 => prop::bool::weighted(0.2).prop_map(|crashes| if crashes { Event::Crash } else { Event::Lost }),
    ]
}

/// In any time there are at most so many as the burst and the rate allow.
fn check_rate(mut admitted: Vec<u64>, step: u64, burst: u32) -> Result<(), TestCaseError> {
    admitted.sort_unstable();
    for (first, start) in admitted.iter().enumerate() {
        for (last, end) in admitted.iter().enumerate().skip(first + usize::try_from(burst).unwrap()) {
            let number = u64::try_from(last - first + 1).unwrap();
            let over = (number - u64::from(burst)) * step;
            prop_assert!(over <= (end - start) * 1_000, "{number} in {} µs", end - start);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4_000 }))]

    #[test]
    fn all_replicas_together_never_admit_more_than_the_burst_and_the_rate(
        step_us in prop_oneof![Just(1_u64), 20..2_000_u64, 10_000..300_000_u64],
        burst in 1..40_u32,
        history in prop::collection::vec((0..3_usize, prop_oneof![3 => 0..3_u64, 1 => 0..600_u64], event()), 1..300),
    ) {
        let terms = PermitTerms::new(Duration::from_micros(step_us), NonZeroU32::new(burst).unwrap());
        let mut replicas = [(); 3].map(|()| Replica::new(terms));
        // The engine is young, and the caller's bucket empty.
        let (mut now, mut admitted) = (1_000_000, Vec::new());
        let mut row = Row { tat: None, born: now * 1_000 };
        for (replica, later, event) in history {
            // In thousandths of the time in which a burst becomes whole, so that permits die now and then.
            now += later * terms.step * u64::from(burst) / 1_000_000;
            replicas[replica].happens(event, now, &mut row, &mut admitted);
        }
        check_rate(admitted, terms.step, burst)?;
    }
}

fn terms(interval: Duration, burst: u32) -> PermitTerms {
    PermitTerms::new(interval, NonZeroU32::new(burst).unwrap())
}

#[test]
fn every_rate_has_a_bucket_for_one_request_at_least() {
    let intervals = [1, 60, 333_334, 8_571_428_572, 1_000_000_000, u64::MAX / 8].map(Duration::from_nanos);
    for (interval, burst) in intervals.into_iter().flat_map(|interval| [1, 2, 3, 60].map(|burst| (interval, burst))) {
        let terms = terms(interval, burst);
        assert!(terms.bucket >= terms.step && terms.step >= u64::try_from(interval.as_nanos()).unwrap(), "{terms:?}");
        let granted = Row { tat: Some(0), born: 0 }.grant(&terms, 1, 5_000_000_000_000_000_000);
        assert_eq!(granted.permits, 1, "{terms:?}");
    }
}

#[test]
fn a_burst_of_one_is_for_those_who_asked() {
    let (purse, now) = (Purse::new("a".into(), terms(Duration::from_secs(1), 1)), 7_000_000);
    let (mut first, mut second) = (purse.wait().unwrap(), purse.wait().unwrap());
    assert_eq!(purse.demand(), 2);
    // However late the answer comes.
    assert!(!purse.answer(Granted { permits: 1, whole_in: 1_000_000_000 }, now - 800_000, now));
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(true), Ok(false)));
    assert_eq!(purse.next_in(now), 1_000_000_000);
    drop(purse.wait());
    assert_eq!(purse.demand(), 0, "who asked has gone");
    purse.answer(Granted { permits: 1, whole_in: 1_000_000_000 }, now, now);
    assert!(!purse.take(now), "nobody else spends it");
}

#[test]
fn permits_die_and_those_who_wait_come_first() {
    let purse = Purse::new("a".into(), terms(Duration::from_millis(10), 41));
    let (sent, now) = (1_000_000, 1_050_000);
    let mut waits = purse.wait().unwrap();
    purse.answer(Granted { permits: 3, whole_in: 0 }, sent, now);
    assert_eq!(waits.try_recv(), Ok(true));
    assert_eq!(purse.left(now), 2);
    assert!(purse.take(now));
    assert_eq!(purse.left(sent + 197_999), 1, "200 ms less a hundredth, from before it was asked for");
    assert_eq!(purse.left(sent + 198_000), 0);
    assert!(!purse.take(sent + 198_000));
    // Batches of several ages.
    for (sent, permits) in [(2_000_000, 1), (2_010_000, 1), (2_020_000, 1)] {
        purse.answer(Granted { permits, whole_in: 0 }, sent, 2_050_000);
    }
    assert_eq!([2_100_000, 2_198_000, 2_208_000].map(|now| purse.left(now)), [3, 2, 0]);
}

#[test]
fn who_spends_much_asks_for_much_and_who_stops_asks_for_nothing() {
    let purse = Purse::new("a".into(), terms(Duration::from_millis(10), 101));
    let mut now = 5_000_000;
    for _ in 0..2 {
        purse.answer(Granted { permits: 40, whole_in: 0 }, now, now);
        (0..40).for_each(|_| assert!(purse.take(now)));
        let waits = purse.wait();
        assert!(purse.demand() >= 20, "{}", purse.demand());
        drop(waits);
        now += 100_000;
        purse.end_round(now);
    }
    let waits = purse.wait();
    assert_eq!(purse.demand(), 40);
    drop(waits);
    assert_eq!(purse.end_round(now), Some(0), "it was silent for a round");
    assert_eq!(purse.end_round(now), None);
}
