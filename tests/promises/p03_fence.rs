//! Promise 3. After a write's answer was sent, no read of what it touches that arrives later carries a body whose fetch
//! began before the write was settled.

use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, LIST, ORG, OTHER, Plan, READER, World};

fn name(answer: &crate::support::Reply) -> String {
    answer.json()["organization"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_write_invalidates_what_it_touches_and_nothing_else() {
    let world = World::start().await;
    for target in [ORG, OTHER, LIST] {
        world.get(ALL, target).await.expect(200);
    }
    world.get(READER, LIST).await.expect(200);
    world.patch(ALL, ORG, r#"{"name":"After"}"#).await.expect(200);
    assert_eq!(name(&world.get(ALL, ORG).await.expect(200)), "After");
    assert!(world.get(ALL, LIST).await.expect(200).text().contains("After"));
    assert!(world.get(READER, LIST).await.expect(200).text().contains("After"));
    let other = world.get(ALL, OTHER).await.expect(200);
    assert!(other.header("cache-status").unwrap().contains("hit"), "another organization was dropped from the cache");
}

#[tokio::test]
async fn a_slow_read_that_began_before_the_write_fills_nothing_and_is_joined_by_nobody() {
    let world = World::start().await;
    let before = name(&world.get(ALL, ORG).await.expect(200));
    world.service.gateway().cache.purge_all();
    // The sandbox handles this read at once, but its answer arrives slowly.
    world.sandbox.fault(Fault::once("GET", ORG, FaultKind::Drip { bytes: 20, every_ms: 25 }));
    let slow = world.get(ALL, ORG);
    let rest = async {
        while world.received("GET", ORG) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.patch(ALL, ORG, r#"{"name":"After"}"#).await.expect(200);
        // The slow read is still under way: nobody may join it, and its result may not be used.
        assert_eq!(name(&world.get(ALL, ORG).await.expect(200)), "After");
    };
    let (slow, ()) = tokio::join!(slow, rest);
    assert_eq!(name(&slow.expect(200)), before, "the slow read saw the write, so the test proves nothing");
    assert_eq!(name(&world.get(ALL, ORG).await.expect(200)), "After");
}

#[tokio::test]
async fn after_a_write_entries_that_it_touches_live_no_longer_than_the_settle_time() {
    let world = Plan::default().sandbox(|s| s.lag = Duration::from_secs(3)).clock(Clock::frozen()).start().await;
    world.get(ALL, ORG).await.expect(200);
    world.patch(ALL, ORG, r#"{"name":"After"}"#).await.expect(200);
    // The zone lags: this body is old, and nobody can tell.
    assert_ne!(name(&world.get(ALL, ORG).await.expect(200)), "After");
    world.clock.advance(Duration::from_secs(11));
    assert_eq!(name(&world.get(ALL, ORG).await.expect(200)), "After");
}

/// After a restart nobody remembers the write.
#[tokio::test]
async fn a_restart_forgets_no_settle_time() {
    let world = Plan::default().sandbox(|s| s.lag = Duration::from_secs(3)).clock(Clock::frozen()).start().await;
    world.patch(ALL, ORG, r#"{"name":"After"}"#).await.expect(200);
    let world = world.restart().await;
    let old = world.get(ALL, ORG).await.expect(200);
    assert_ne!(name(&old), "After", "the zone does not lag, so the test proves nothing");
    world.clock.advance(Duration::from_secs(11));
    assert_eq!(name(&world.get(ALL, ORG).await.expect(200)), "After");
    assert!(world.get(ALL, ORG).await.header("cache-status").unwrap().contains("hit"), "later entries live on");
}

#[tokio::test]
async fn a_write_in_doubt_invalidates_now_and_when_its_doubt_is_over() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    let coupon = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &coupon, FaultKind::Reset { effect: true }));
    world.post(ALL, &coupon, "").await.refused(502, "MG222");
    let read = world.get(ALL, ORG).await.expect(200);
    assert!(read.header("cache-status").unwrap().contains("fwd=miss"), "{read:?}");
    assert_eq!(world.received("GET", ORG), 2);
    // Fetched while in doubt: it is used for a while, but never beyond the doubt.
    world.clock.advance(Duration::from_secs(125));
    let read = world.get(ALL, ORG).await.expect(200);
    assert!(read.header("cache-status").unwrap().contains("fwd="), "{read:?}");
}

#[tokio::test]
async fn a_refused_write_invalidates_nothing() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::status(400)));
    world.patch(ALL, ORG, r#"{"name":"x"}"#).await.expect(400);
    assert!(world.get(ALL, ORG).await.header("cache-status").unwrap().contains("hit"));
}

#[tokio::test]
async fn a_fenced_answer_is_not_served_stale_either() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    world.patch(ALL, ORG, r#"{"name":"After"}"#).await.expect(200);
    world.sandbox.fault(Fault::always("GET", ORG, FaultKind::status(503)));
    world.get(ALL, ORG).await.expect(503);
}
