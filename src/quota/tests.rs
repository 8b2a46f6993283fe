//! The quota with tasks: waiting, waking, leaving, closing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::{BucketId, Quota, QuotaOutlook, QuotaRefused, QuotaSettings, Slot, WaitsFor};
use crate::clock::Clock;
use crate::config::QuotaSetting;

const ORG: BucketId = BucketId::Organization(11);
const WAIT: Duration = Duration::from_secs(5);

struct World {
    quota: Quota,
    clock: Clock,
    caller: Arc<str>,
}

impl World {
    fn new(setting: QuotaSetting) -> Self {
        let clock = Clock::frozen();
        let quota = Quota::open(
            QuotaSettings { setting, queue_per_caller: 3, wait: WAIT, ..QuotaSettings::default() },
            None,
            clock.clone(),
            None,
        )
        .unwrap();
        Self { quota, clock, caller: "a".into() }
    }

    async fn turn(&self) -> Result<Slot, QuotaRefused> {
        self.quota.acquire(ORG, &self.caller, 1, self.clock.now() + WAIT).await
    }

    /// Takes a slot that is free now.
    fn take(&self) -> Slot {
        self.turn().now_or_never().expect("has to wait").expect("is refused")
    }

    fn advance(&self, seconds: f64) {
        self.clock.advance(Duration::from_secs_f64(seconds));
    }

    /// Number of slots taken and of requests waiting.
    fn used(&self) -> (u32, usize) {
        let view = self.quota.view(ORG);
        (view.used, view.waiting)
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_in_time_is_refused_at_once_and_told_when_to_retry() {
    let world = World::new(QuotaSetting::PerMinute(2));
    drop((world.take(), world.take()));
    let refused = world.turn().now_or_never().expect("waits in vain").unwrap_err();
    let QuotaRefused::TooLong(QuotaOutlook { after: retry_after, limit: 2, waits_for: WaitsFor::Spent, .. }) = refused
    else {
        panic!("{refused:?}")
    };
    assert!(retry_after > Duration::from_secs(60) && retry_after <= Duration::from_millis(61_010), "{retry_after:?}");
    world.advance(retry_after.as_secs_f64());
    world.take();
}

#[tokio::test]
async fn a_waiting_request_is_woken_when_a_slot_comes_back() {
    let world = World::new(QuotaSetting::PerMinute(1));
    drop(world.take());
    world.advance(58.0);
    let mut turn = Box::pin(world.turn());
    assert!(turn.as_mut().now_or_never().is_none());
    assert_eq!(world.used(), (1, 1));
    world.advance(3.1);
    let slot = turn.await.unwrap();
    assert!(slot.waited() >= Duration::from_millis(2_900), "{:?}", slot.waited());
    assert_eq!(world.used(), (1, 0));
}

#[tokio::test]
async fn the_slot_of_an_unsent_attempt_is_free_at_once() {
    let world = World::new(QuotaSetting::PerMinute(2));
    drop(world.take());
    let never_sent = world.take();
    world.advance(58.0);
    let mut turn = Box::pin(world.turn());
    assert!(turn.as_mut().now_or_never().is_none());
    never_sent.release_unsent();
    turn.now_or_never().expect("not woken").unwrap();
}

#[tokio::test]
async fn a_turn_that_nobody_receives_passes_to_the_next() {
    let world = World::new(QuotaSetting::PerMinute(3));
    drop((world.take(), world.take()));
    let never_sent = world.take();
    world.advance(58.0);
    let mut first = Box::pin(world.turn());
    let mut second = Box::pin(world.turn());
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    never_sent.release_unsent();
    assert_eq!(world.used(), (3, 1), "the first has its turn, unreceived");
    drop(first);
    let slot = second.now_or_never().expect("the turn was lost").unwrap();
    assert_eq!(world.used(), (3, 0));
    drop(slot);
}

#[tokio::test]
async fn a_request_that_leaves_delays_nobody() {
    let world = World::new(QuotaSetting::PerMinute(1));
    drop(world.take());
    world.advance(58.0);
    let mut first = Box::pin(world.turn());
    let mut second = Box::pin(world.turn());
    assert!(first.as_mut().now_or_never().is_none());
    // Only one slot comes in time, and the first request waits for it.
    assert!(matches!(second.as_mut().now_or_never(), Some(Err(QuotaRefused::TooLong { .. }))));
    drop(first);
    assert_eq!(world.used(), (1, 0));
    let waiter = Box::pin(world.turn());
    world.advance(3.1);
    waiter.await.unwrap();
}

#[tokio::test]
async fn a_callers_queue_is_bounded() {
    let world = World::new(QuotaSetting::PerMinute(4));
    drop((world.take(), world.take(), world.take(), world.take()));
    world.advance(58.0);
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(world.turn())).collect();
    assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
    let refused = world.turn().now_or_never().expect("waits").unwrap_err();
    let QuotaRefused::QueueFull(QuotaOutlook { after: retry_after, .. }) = refused else { panic!("{refused:?}") };
    assert!(retry_after <= Duration::from_millis(3_010), "{retry_after:?}");
    world.advance(3.1);
    for turn in waiting {
        turn.await.unwrap();
    }
}

#[tokio::test]
async fn after_a_429_it_is_closed_and_then_reopens_gently() {
    let world = World::new(QuotaSetting::PerMinute(5));
    let before = world.take();
    world.quota.close(ORG, Some(Duration::from_secs(30)));
    drop(before);
    let refused = world.turn().now_or_never().expect("waits").unwrap_err();
    let QuotaRefused::TooLong(QuotaOutlook { after: retry_after, .. }) = refused else { panic!("{refused:?}") };
    assert!(retry_after > Duration::from_secs(29) && retry_after <= Duration::from_secs(30), "{retry_after:?}");
    assert!(world.quota.view(ORG).closed_for.is_some());
    world.advance(30.0);
    let first = world.take();
    let mut second = Box::pin(world.turn());
    assert!(second.as_mut().now_or_never().is_none(), "first one attempt");
    drop(first);
    let second = second.now_or_never().expect("then two").unwrap();
    let third = world.take();
    let mut fourth = Box::pin(world.turn());
    assert!(fourth.as_mut().now_or_never().is_none(), "no more than two");
    drop((second, third));
    fourth.now_or_never().expect("then four").unwrap();
}

#[tokio::test]
async fn a_429_without_retry_after_closes_for_a_minute_and_none_closes_for_longer_than_ten() {
    let world = World::new(QuotaSetting::PerMinute(5));
    for (said, lasts) in [(None, 60), (Some(86_400), 600)] {
        world.quota.close(ORG, said.map(Duration::from_secs));
        let closed_for = world.quota.view(ORG).closed_for.unwrap();
        assert!(
            closed_for <= Duration::from_secs(lasts) && closed_for > Duration::from_secs(lasts - 1),
            "{closed_for:?}"
        );
    }
}

#[tokio::test]
async fn a_learned_limit_counts_at_once_unless_one_is_configured() {
    let world = World::new(QuotaSetting::Auto);
    assert_eq!(world.quota.view(ORG).limit, 60);
    let slots: Vec<_> = (0..10).map(|_| world.take()).collect();
    world.quota.learn_limit(11, 5);
    assert!(world.turn().now_or_never().expect("waits").is_err());
    world.quota.learn_limit(11, 240);
    world.take();
    drop(slots);
    world.quota.set_settings(QuotaSettings {
        setting: QuotaSetting::PerMinute(7),
        queue_per_caller: 3,
        wait: WAIT,
        ..QuotaSettings::default()
    });
    world.quota.learn_limit(11, 500);
    assert_eq!(world.quota.view(ORG).limit, 7);
    world.quota.set_settings(QuotaSettings {
        setting: QuotaSetting::Auto,
        queue_per_caller: 3,
        wait: WAIT,
        ..QuotaSettings::default()
    });
    assert_eq!(world.quota.view(ORG).limit, 240);
    assert_eq!(world.quota.view(BucketId::Account).limit, 60);
}

#[tokio::test]
async fn a_raised_limit_lets_waiting_requests_through() {
    let world = World::new(QuotaSetting::PerMinute(1));
    drop(world.take());
    world.advance(58.0);
    let mut turn = Box::pin(world.turn());
    assert!(turn.as_mut().now_or_never().is_none());
    world.quota.set_settings(QuotaSettings {
        setting: QuotaSetting::PerMinute(2),
        queue_per_caller: 3,
        wait: WAIT,
        ..QuotaSettings::default()
    });
    turn.now_or_never().expect("not woken").unwrap();
}

#[tokio::test]
async fn operators_see_who_spent_and_who_saved() {
    let world = World::new(QuotaSetting::PerMinute(60));
    drop(world.take());
    let under_way = world.take();
    world.quota.count_saved(ORG, &world.caller);
    world.quota.count_saved(ORG, &"b".into());
    let views = world.quota.buckets();
    assert_eq!(views.len(), 1);
    assert_eq!((views[0].organization, views[0].limit, views[0].used, views[0].waiting), (Some(11), 60, 2, 0));
    let callers: Vec<_> = views[0].callers.iter().map(|c| (&*c.name, c.spent, c.sent, c.saved)).collect();
    assert_eq!(callers, [("a", 2, 1, 1), ("b", 0, 0, 1)]);
    drop(under_way);
    world.advance(61.1);
    let view = world.quota.view(ORG);
    assert_eq!((view.used, view.callers[0].spent, view.callers[0].sent), (0, 0, 2));
}

#[tokio::test]
async fn operators_see_shares_and_who_waits_and_was_refused() {
    let world = World::new(QuotaSetting::PerMinute(6));
    let ask = |name: &str| {
        let (quota, caller, latest) = (&world.quota, Arc::from(name), world.clock.now() + WAIT);
        async move { quota.acquire(ORG, &caller, 3, latest).await }
    };
    let taken: Vec<_> = (0..2).map(|_| ask("a").now_or_never().expect("has to wait").unwrap()).collect();
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(ask("a"))).collect();
    assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
    assert!(matches!(ask("a").now_or_never(), Some(Err(QuotaRefused::QueueFull(outlook))) if outlook.waiting == 3));
    let see = || {
        let view = world.quota.view(ORG);
        let callers: Vec<_> = view.callers.iter().map(|c| (&*c.name == "a", c.share, c.waiting, c.refused)).collect();
        (view.used, view.kept, view.waiting, callers)
    };
    assert_eq!(see(), (2, 4, 3, vec![(true, Some(6), 3, 1)]));
    let mut below = Box::pin(ask("b"));
    assert!(below.as_mut().now_or_never().is_none(), "whoever waits first hands out the slots");
    assert!(waiting[0].as_mut().now_or_never().is_none());
    drop(below.now_or_never().expect("has to wait, although it has had nothing").unwrap());
    assert_eq!(see(), (3, 3, 3, vec![(true, Some(3), 3, 1), (false, Some(3), 0, 0)]));
    drop((waiting, taken));
    assert_eq!(see().2, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowding_tasks_lose_no_slot_and_no_wake_up() {
    let world = Arc::new(World::new(QuotaSetting::PerMinute(40)));
    drop((0..40).map(|_| world.take()).collect::<Vec<_>>());
    world.advance(57.0);
    let tasks = crate::tasks::Tasks::new();
    let crowd: Vec<_> = (0..40)
        .map(|n| {
            let world = world.clone();
            tasks.spawn(async move {
                let caller = format!("caller {}", n % 20).into();
                let latest = world.clock.now() + Duration::from_secs(20);
                let turn = world.quota.acquire(ORG, &caller, 1, latest);
                // Every fourth gives up while waiting, just when slots come back or earlier.
                if n % 4 == 0 {
                    tokio::time::timeout(Duration::from_millis(n), turn).await.is_ok_and(|slot| slot.is_ok())
                } else {
                    turn.await.is_ok()
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.advance(4.1);
    let mut through = 0;
    for task in crowd {
        through += u32::from(task.await.unwrap());
    }
    assert!(through >= 30, "{through}");
    assert_eq!(world.used(), (through, 0));
}

/// Promise 9 when more organizations are used within a minute than there are buckets: none exceeds its limit.
#[tokio::test]
async fn a_bucket_that_had_to_be_forgotten_counts_what_it_may_have_spent() {
    let world = World::new(QuotaSetting::PerMinute(2));
    let ask = |id| {
        let turn = world.quota.acquire(BucketId::Organization(id), &world.caller, 1, world.clock.now());
        turn.now_or_never().expect("waits in vain").is_ok()
    };
    let all = u64::try_from(super::BUCKETS_MAX).unwrap() + 50;
    assert!((1..=all).all(ask), "there is room for more");
    assert!(world.quota.all().len() <= super::BUCKETS_MAX);
    let gone = (1..=all).find(|id| world.quota.all().iter().all(|(known, _)| *known != BucketId::Organization(*id)));
    let gone = gone.expect("one was evicted");
    assert!(ask(gone) && !ask(gone), "one of its two slots was spent before");
    world.advance(61.1);
    assert!(ask(gone) && ask(gone) && !ask(gone));
}
