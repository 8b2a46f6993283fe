//! Checks the queue against its rules: every move of a random history is judged by what is held and waited for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::timeout;

use super::*;
use crate::tasks::Tasks;

/// The next move. Numbers are taken modulo the number of choices.
#[derive(Clone, Debug)]
enum Move {
    Ask(usize),
    Release(usize),
    Leave(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0..5_usize).prop_map(Move::Ask),
        3 => any::<usize>().prop_map(Move::Release),
        1 => any::<usize>().prop_map(Move::Leave),
    ];
    prop::collection::vec(one, 1..400)
}

#[derive(Default)]
struct Caller {
    held: usize,
    tickets: VecDeque<u64>,
    /// How often each caller was served since the first of these tickets reached the front.
    passed_by: BTreeMap<usize, usize>,
}

/// The queue, next to a model of what it should have done.
struct Model {
    line: PlaceQueue<()>,
    names: Vec<Arc<str>>,
    callers: Vec<Caller>,
    places: usize,
}

impl Model {
    fn new(places: usize) -> Self {
        let names: Vec<Arc<str>> = (0..5).map(|n| format!("caller-{n}").into()).collect();
        let callers = names.iter().map(|_| Caller::default()).collect();
        Self { line: PlaceQueue::new(places), names, callers, places }
    }

    fn free(&self) -> usize {
        self.places - self.callers.iter().map(|caller| caller.held).sum::<usize>()
    }

    /// One in eight, rounded up, stays free; a caller that holds nothing need not leave any.
    fn may(&self, caller: usize) -> bool {
        let held = self.callers[caller].held;
        self.free() * 8 >= held + 8 || (held == 0 && self.free() > 0)
    }

    fn play(&mut self, one: &Move) {
        match one {
            Move::Ask(caller) => self.ask(*caller),
            Move::Release(choice) => {
                let holding: Vec<_> = (0..5).filter(|caller| self.callers[*caller].held > 0).collect();
                let Some(caller) = holding.get(choice % holding.len().max(1)) else { return };
                self.callers[*caller].held -= 1;
                self.line.release(&self.names[*caller]);
                self.serve();
            }
            Move::Leave(choice) => {
                let waiting: Vec<_> = (0..5).filter(|caller| !self.callers[*caller].tickets.is_empty()).collect();
                let Some(caller) = waiting.get(choice % waiting.len().max(1)) else { return };
                let state = &mut self.callers[*caller];
                let place = choice % state.tickets.len();
                let ticket = state.tickets.remove(place).unwrap();
                if place == 0 {
                    state.passed_by.clear();
                }
                self.line.leave(&self.names[*caller], ticket);
                self.line.leave(&self.names[*caller], ticket);
            }
        }
    }

    fn ask(&mut self, caller: usize) {
        let may = self.may(caller);
        let is_taken = self.line.take(&self.names[caller]);
        assert_eq!(is_taken, may, "it took a place kept for others, or did not take a free one");
        let state = &mut self.callers[caller];
        if is_taken {
            assert!(state.tickets.is_empty(), "it overtook the caller's own earlier request");
            state.held += 1;
            self.served(caller);
        } else {
            state.tickets.push_back(self.line.queue(&self.names[caller], ()));
        }
    }

    fn serve(&mut self) {
        while let Some((name, ())) = self.line.next() {
            let caller = self.names.iter().position(|known| *known == name).unwrap();
            assert!(self.may(caller), "it took a place kept for others");
            let fewest = self.callers.iter().filter(|other| !other.tickets.is_empty()).map(|other| other.held).min();
            assert_eq!(Some(self.callers[caller].held), fewest, "a caller with fewer places is still waiting");
            let state = &mut self.callers[caller];
            state.tickets.pop_front().unwrap();
            state.passed_by.clear();
            state.held += 1;
            self.served(caller);
        }
    }

    fn served(&mut self, caller: usize) {
        for (other, state) in self.callers.iter_mut().enumerate() {
            if other != caller && !state.tickets.is_empty() {
                *state.passed_by.entry(caller).or_default() += 1;
                let times = state.passed_by[&caller];
                assert!(self.places > 1 || times <= 2, "{other} was passed by {times} times by {caller}");
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.line.free(), self.free());
        assert_eq!(self.line.waiting(), self.callers.iter().map(|caller| caller.tickets.len()).sum::<usize>());
        for caller in 0..5 {
            assert!(self.callers[caller].tickets.is_empty() || !self.may(caller), "{caller} waits beside a free place");
        }
    }

    /// All holders give back their places until nobody waits.
    fn drain(&mut self) {
        while self.callers.iter().any(|caller| caller.held > 0) {
            self.play(&Move::Release(0));
            self.check();
        }
        assert_eq!((self.line.free(), self.line.waiting()), (self.places, 0));
        assert!(format!("{:?}", self.line).contains("callers: {}"), "a caller is still remembered: {:?}", self.line);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn the_caller_with_the_fewest_places_goes_first_and_nobody_waits_beside_a_free_place(places in 1..24_usize, moves in moves()) {
        let mut model = Model::new(places);
        for one in &moves {
            model.play(one);
            model.check();
        }
        model.drain();
    }
}

/// Takes a place if possible, and queues otherwise; returns true if it got one at once.
fn ask(line: &mut PlaceQueue<()>, name: &Arc<str>) -> bool {
    line.take(name) || {
        line.queue(name, ());
        false
    }
}

#[test]
fn one_caller_leaves_places_for_newcomers() {
    let mut line = PlaceQueue::new(18);
    let greedy: Arc<str> = "greedy".into();
    assert_eq!((0..64).filter(|_| ask(&mut line, &greedy)).count(), 16);
    for name in ["a", "b"] {
        assert!(ask(&mut line, &name.into()), "{name} comes back");
    }
    // A third caller waits for just one place, whoever gives it back.
    assert!(!ask(&mut line, &"c".into()));
    line.release(&greedy);
    assert_eq!(line.next().map(|(name, ())| name), Some("c".into()));
    assert_eq!(line.next(), None);
}

/// Among callers that hold equally many, each is served once per round: coming back does not make a caller new.
#[test]
fn callers_take_turns_at_one_place() {
    let mut line = PlaceQueue::new(1);
    let names: [Arc<str>; 3] = ["greedy".into(), "a".into(), "b".into()];
    for name in [0, 0, 0, 0, 0, 0, 0, 1, 2] {
        ask(&mut line, &names[name]);
    }
    let (mut holder, mut order) = (names[0].clone(), String::new());
    for _ in 0..9 {
        line.release(&holder);
        let (name, ()) = line.next().unwrap();
        order.push_str(&name[..1]);
        // The polite ones come back as soon as they have been served.
        if name != names[0] {
            ask(&mut line, &name);
        }
        holder = name;
    }
    assert_eq!(order, "abgabgabg");
}

/// Waiters that give up at any moment, even just after they were served, lose no place.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_place_whose_waiter_has_gone_is_passed_on() {
    let (fair, tasks, taken) = (FairSemaphore::new(3), Tasks::new(), Arc::new(AtomicUsize::new(0)));
    let handles: Vec<_> = (0..200_u64)
        .map(|number| {
            let (fair, taken, name) = (fair.clone(), taken.clone(), Arc::from(format!("caller-{}", number % 7)));
            tasks.spawn(async move {
                for round in 0..20_u64 {
                    let patience = Duration::from_micros((number * 37 + round * 101) % 900);
                    if let Ok(turn) = timeout(patience, fair.acquire(&name)).await {
                        assert!(taken.fetch_add(1, Ordering::SeqCst) < 3);
                        tokio::task::yield_now().await;
                        taken.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                }
            })
        })
        .collect();
    for handle in handles {
        handle.await.unwrap();
    }
    assert_eq!((fair.free(), fair.waiting()), (3, 0));
    assert!(fair.is_unused());
}
