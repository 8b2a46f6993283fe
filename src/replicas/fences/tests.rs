use std::sync::Mutex;

use super::raise::PlacedFence;
use super::wait::{AckPoll, FenceWait, WaitRule};
use super::*;
use crate::clock::Clock;
use crate::replicas::Epoch;

const LEASE: Duration = Duration::from_secs(5);
const EPOCH: Uuid = Uuid::from_u128(1);
const OWN: Uuid = Uuid::from_u128(2);
const OTHER: Uuid = Uuid::from_u128(3);

/// Notes what is raised.
#[derive(Default)]
struct Raised(Mutex<Vec<String>>);

impl Raised {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl FenceTarget for Raised {
    fn raise(&self, tags: &[String], kind: FenceKind) {
        self.0.lock().unwrap().push(format!("{} {kind:?}", tags.join(",")));
    }

    fn raise_all(&self) {
        self.0.lock().unwrap().push("everything".to_owned());
    }
}

fn fence(place: i64, raised_by: Uuid) -> OrderedFence {
    OrderedFence { place, tags: vec![format!("t{place}")], kind: FenceKind::Settled, raised_by }
}

/// A replica that has joined when 10 fences had been raised.
fn joined() -> (AppliedFences, Arc<Raised>) {
    let (fences, raised) = (AppliedFences::new(OWN), Arc::new(Raised::default()));
    fences.set_target(raised.clone());
    assert_eq!(raised.take(), ["everything"], "it may have joined before");
    fences.joined(EPOCH, 10);
    assert_eq!(raised.take(), ["everything"]);
    (fences, raised)
}

#[test]
fn fences_are_applied_in_their_order_and_once() {
    let (fences, raised) = joined();
    assert_eq!(fences.take(EPOCH, &fence(10, OTHER)), Taken::Known, "from before it joined");
    assert_eq!(fences.take(EPOCH, &fence(12, OTHER)), Taken::Early, "the 11th is missing");
    assert_eq!((raised.take(), fences.upto()), (vec![], 10));
    for place in [11, 12] {
        assert_eq!(fences.take(EPOCH, &fence(place, OTHER)), Taken::Applied);
        assert_eq!(fences.take(EPOCH, &fence(place, OTHER)), Taken::Known, "announced and brought by a beat");
    }
    assert_eq!((raised.take(), fences.upto()), (vec!["t11 Settled".to_owned(), "t12 Settled".to_owned()], 12));
}

#[test]
fn its_own_fences_count_and_are_not_applied_again() {
    let (fences, raised) = joined();
    assert_eq!(fences.take(EPOCH, &fence(11, OWN)), Taken::Known);
    assert_eq!((raised.take(), fences.upto()), (vec![], 11));
    assert_eq!(fences.take(EPOCH, &fence(12, OTHER)), Taken::Applied);
}

/// An announcement may wait in a queue while the engine falls and another epoch begins.
#[test]
fn a_fence_of_another_epoch_takes_no_place_in_this_one() {
    let (fences, raised) = joined();
    let next = Uuid::from_u128(9);
    assert_eq!(fences.take(next, &fence(11, OTHER)), Taken::Early);
    fences.joined(next, 10);
    assert_eq!(fences.take(EPOCH, &fence(11, OTHER)), Taken::Early);
    assert_eq!(fences.take(next, &fence(11, OTHER)), Taken::Applied);
    assert_eq!(raised.take(), ["everything", "t11 Settled"]);
}

#[tokio::test]
async fn what_others_raised_is_acknowledged_after_it_is_applied() {
    let (fences, _) = joined();
    let is_due = async || tokio::time::timeout(Duration::ZERO, fences.unacked.notified()).await.is_ok();
    fences.take(EPOCH, &fence(11, OWN));
    fences.take(EPOCH, &fence(13, OTHER));
    assert!(!is_due().await, "nobody waits for these");
    fences.take(EPOCH, &fence(12, OTHER));
    assert!(is_due().await);
}

#[test]
fn announcements_are_read_as_the_engine_writes_them() {
    let told = |rest: &str| announced_fence(&format!("7 {EPOCH} {OTHER} {rest}"));
    let of = |tags: &[&str], kind| {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Some((EPOCH, OrderedFence { place: 7, tags, kind, raised_by: OTHER }))
    };
    assert_eq!(told(r#"- ["org:11","a b"]"#), of(&["org:11", "a b"], FenceKind::Settled));
    assert_eq!(told("-1 []"), of(&[], FenceKind::Purge));
    assert_eq!(told(r#"2500 ["\"x"]"#), of(&["\"x"], FenceKind::InDoubt(Duration::from_millis(2_500))));
    for other in ["hello", "7", "", "x y z", &format!("7 {EPOCH} {OTHER} -")] {
        assert_eq!(announced_fence(other), None, "{other}");
    }
    for kind in [FenceKind::Purge, FenceKind::Settled, FenceKind::InDoubt(Duration::from_secs(120))] {
        assert_eq!(FenceKind::of_engine(kind.to_engine()), kind);
    }
}

/// A fence with the place 7, raised 60 s after the epoch was first seen.
fn rule(clock: &Clock, epoch_age: Duration) -> WaitRule {
    let epoch = Epoch { id: EPOCH, seen: clock.boot().checked_sub(epoch_age).unwrap() };
    WaitRule::new(outlasting(LEASE), clock.boot(), PlacedFence { epoch, place: 7 }, 3)
}

fn poll(number: u64, least: Option<i64>) -> AckPoll {
    AckPoll { number, epoch: Some(EPOCH), least }
}

#[test]
fn a_writer_answers_once_all_members_have_applied_its_fence() {
    let clock = Clock::frozen();
    let rule = rule(&clock, Duration::from_secs(60));
    let state = |poll| rule.state(clock.boot(), &poll);
    let waits = FenceWait::Until(rule.outlasted());
    assert_eq!(state(AckPoll::default()), waits, "nobody has been asked");
    assert_eq!(state(poll(4, Some(6))), waits);
    assert_eq!(state(poll(4, Some(7))), FenceWait::Acknowledged);
    assert_eq!(state(poll(4, None)), FenceWait::Acknowledged, "there are no others");
    assert_eq!(state(poll(3, None)), waits, "a poll from before the raise: others may have come since");
}

#[test]
fn a_writer_answers_when_every_lease_from_before_the_raise_is_over_by_the_slowest_clock() {
    let clock = Clock::frozen();
    let rule = rule(&clock, Duration::from_secs(60));
    let silent = poll(4, Some(6));
    clock.advance(LEASE + Duration::from_millis(49));
    assert!(matches!(rule.state(clock.boot(), &silent), FenceWait::Until(_)), "another's clock may be 1 % slower");
    clock.advance(Duration::from_millis(1));
    assert_eq!(rule.state(clock.boot(), &silent), FenceWait::Outlasted);
    assert!(longest_wait(LEASE) > LEASE + Duration::from_millis(50), "attempts end before that");
}

#[test]
fn in_a_young_epoch_acknowledgements_are_not_enough() {
    let clock = Clock::frozen();
    let rule = rule(&clock, Duration::from_secs(1));
    clock.advance(Duration::from_millis(4_049));
    assert!(
        matches!(rule.state(clock.boot(), &poll(4, Some(7))), FenceWait::Until(_)),
        "of an earlier epoch there may be leases"
    );
    clock.advance(Duration::from_millis(1));
    assert_eq!(rule.state(clock.boot(), &poll(4, Some(7))), FenceWait::Acknowledged);
}

#[test]
fn a_fence_of_a_lost_epoch_is_raised_again_and_the_lease_since_the_first_time_counts() {
    let clock = Clock::frozen();
    let mut rule = rule(&clock, Duration::from_secs(60));
    let next = Uuid::from_u128(9);
    let lost = AckPoll { number: 4, epoch: Some(next), least: Some(100) };
    assert_eq!(rule.state(clock.boot(), &lost), FenceWait::Again);
    assert_eq!(rule.state(clock.boot(), &AckPoll { epoch: None, ..lost }), FenceWait::Again, "none has begun yet");
    clock.advance(Duration::from_secs(2));
    rule.place_again(PlacedFence { epoch: Epoch { id: next, seen: clock.boot() }, place: 1 }, 4);
    assert_eq!(rule.state(clock.boot(), &AckPoll { number: 5, ..lost }), FenceWait::Until(rule.outlasted()));
    clock.advance(Duration::from_millis(3_050));
    assert_eq!(rule.state(clock.boot(), &lost), FenceWait::Outlasted);
}
