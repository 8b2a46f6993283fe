//! The rules of shares, over random interleavings. `MAKEGATE_SEEDS` sets the number of seeds, `MAKEGATE_SEED` replays
//! one.

use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;

use fastrand::Rng;

use super::*;

fn seeds(usual: u64) -> RangeInclusive<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    number("MAKEGATE_SEED").map_or(1..=number("MAKEGATE_SEEDS").unwrap_or(usual), |seed| seed..=seed)
}

/// Takes `step` repeatedly until refused.
fn fill(holder: &Arc<ShareHolder>, step: u64) -> (Vec<HeldShare>, Shortage) {
    let mut held = Vec::new();
    loop {
        match holder.take(step) {
            Ok(more) => held.push(more),
            Err(short) => return (held, short),
        }
    }
}

#[test]
fn a_lone_holder_has_nearly_all_and_the_next_ones_find_room_at_once() {
    let shared = SharedLimit::new(1024);
    let greedy = shared.holder();
    let (all, short) = fill(&greedy, 1);
    assert_eq!((greedy.held(), short), (1024 * 7 / 8, Shortage::Share));
    let found: Vec<u64> = (0..4)
        .map(|_| {
            let holder = shared.holder();
            let (held, short) = fill(&holder, 1);
            assert_eq!(short, Shortage::All, "it has less than its share because the others hold it");
            std::mem::forget(held);
            holder.held()
        })
        .collect();
    assert_eq!(found, [64, 32, 16, 8]);
    assert_eq!(shared.taken(), 896 + 64 + 32 + 16 + 8);
    drop(all);
    assert_eq!(shared.taken(), 64 + 32 + 16 + 8);
}

#[test]
fn amounts_given_back_go_to_those_below_their_share() {
    let shared = SharedLimit::new(1200);
    let (greedy, late) = (shared.holder(), shared.holder());
    let (mut all, _) = fill(&greedy, 1);
    let mut lates = Vec::new();
    // Both ask for whatever is given back; the greedy one asks first.
    for _ in 0..5_000 {
        all.pop();
        all.extend(greedy.take(1));
        lates.extend(late.take(1));
    }
    assert_eq!(late.held(), 400, "a third: limit ÷ (two holders + 1)");
    assert!(greedy.held() >= 400);
}

#[test]
fn no_holder_has_more_than_one_may_have() {
    let shared = SharedLimit::new(100);
    let holder = shared.holder();
    let first = holder.take_up_to(1, 1).unwrap();
    assert_eq!(holder.take_up_to(1, 1).unwrap_err(), Shortage::HolderMax);
    assert_eq!((shared.taken(), holder.refused()), (1, 1));
    drop(first);
    assert!(holder.take_up_to(1, 1).is_ok());
}

#[test]
fn the_smallest_limits_work() {
    let shared = SharedLimit::new(1);
    let (one, other) = (shared.holder(), shared.holder());
    let first = one.take(1).unwrap();
    assert_eq!(one.take(1).unwrap_err(), Shortage::Share);
    assert_eq!(other.take(1).unwrap_err(), Shortage::All);
    drop(first);
    assert!(other.take(1).is_ok());
    assert_eq!(other.take(u64::MAX).unwrap_err(), Shortage::All);
    assert_eq!(shared.word.load(Ordering::Relaxed), 0);
}

#[test]
fn a_lower_limit_takes_nothing_back() {
    let shared = SharedLimit::new(100);
    let holder = shared.holder();
    let mut held = holder.take(80).unwrap();
    shared.set_limit(40);
    assert_eq!(holder.take(1).unwrap_err(), Shortage::Share);
    held.shrink(10);
    assert!(held.grow(20).is_ok());
    assert_eq!((held.amount(), shared.taken()), (20, 20));
}

/// What one holder holds in the model.
struct Part {
    holder: Arc<ShareHolder>,
    held: Vec<HeldShare>,
}

impl Part {
    fn sum(&self) -> u64 {
        self.held.iter().map(HeldShare::amount).sum()
    }
}

/// Lets a random holder act, and checks the answer against the rules.
fn step(random: &mut Rng, shared: &Arc<SharedLimit>, parts: &mut [Part]) {
    let (at, limit) = (random.usize(..parts.len()), shared.limit());
    let most = if random.u64(..4) == 0 { limit } else { limit / 20 + 1 };
    let more = 1 + random.u64(..most);
    let others = parts.iter().enumerate().filter(|(place, _)| *place != at);
    let beside: Vec<u64> = others.map(|(_, part)| part.sum()).filter(|sum| *sum > 0).collect();
    let share = limit / (beside.len() as u64 + 2);
    let part = &mut parts[at];
    let (own, place) = (part.sum(), random.usize(..=part.held.len()));
    let free = limit - beside.iter().sum::<u64>() - own;
    let taken = match (random.u64(..5), part.held.get_mut(place)) {
        (0 | 1, Some(_)) => {
            part.held.swap_remove(place);
            return;
        }
        (2, Some(held)) => {
            let less = random.u64(..=held.amount());
            return held.shrink(less);
        }
        (3, Some(held)) => {
            let to = held.amount() + more;
            held.grow(to)
        }
        _ => part.holder.take(more).map(|held| part.held.push(held)),
    };
    let reserve = share.min(limit / 8);
    match taken {
        Ok(()) if own + more > share => assert!(free - more >= reserve, "beyond its share it left too little"),
        Ok(()) => {}
        Err(_) if own + more <= share => {
            assert!(beside.iter().any(|sum| *sum > share), "refused within its share, and nobody is beyond its own");
            assert!(free < more + reserve / 2, "refused within its share, though enough is free");
        }
        Err(_) => assert!(free < more + reserve, "refused, though more is free than is kept for others"),
    }
}

#[test]
fn every_answer_is_right_whatever_happened_before() {
    for seed in seeds(300) {
        println!("MAKEGATE_SEED={seed}");
        let mut random = Rng::with_seed(seed);
        let shared = SharedLimit::new([1, 7, 64, 512, 1000, 1 << 27, AMOUNT_MASK][random.usize(..7)]);
        let count = 1 + random.u64(..9);
        let mut parts: Vec<Part> = (0..count).map(|_| Part { holder: shared.holder(), held: Vec::new() }).collect();
        for _ in 0..2_000 {
            step(&mut random, &shared, &mut parts);
            let sum: u64 = parts.iter().map(Part::sum).sum();
            assert!(sum <= shared.limit() && sum == shared.taken(), "{sum} of {}", shared.limit());
            assert!(parts.iter().all(|part| part.sum() == part.holder.held()));
        }
        drop(parts);
        assert_eq!(shared.word.load(Ordering::Relaxed), 0, "something is still counted");
    }
}

/// Several threads also use the same holder, so its first and last amounts are counted by different threads.
#[test]
fn nothing_is_lost_between_threads_and_the_limit_holds_at_any_moment() {
    for seed in seeds(20) {
        println!("MAKEGATE_SEED={seed}");
        let shared = SharedLimit::new(100);
        let holders: Vec<_> = (0..3).map(|_| shared.holder()).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (mut random, shared, holders, over) =
                    (Rng::with_seed(seed * 31 + thread), &shared, &holders, &over);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for _ in 0..3_000 {
                        match random.u64(..3) {
                            0 => held.extend(holders[random.usize(..3)].take(1 + random.u64(..40))),
                            1 => drop(held.pop()),
                            _ => std::thread::yield_now(),
                        }
                        if shared.taken() > 100 {
                            over.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(!over.into_inner(), "more was taken than there is");
        assert_eq!(shared.word.load(Ordering::Relaxed), 0, "something is still counted");
        assert!(holders.iter().all(|holder| holder.held() == 0));
    }
}
