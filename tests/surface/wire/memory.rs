//! Answers from memory: `Cache-Status`, `Age`, and what callers' `Cache-Control` does. Time stands still unless moved.

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};
use serde_json::json;

use super::{APPS, USAGE, header, still};
use crate::support::{ALL, HELD, LIST, ORG, READER, Reply, TOO, World, until};

/// What memory did for this answer.
#[track_caller]
fn did(reply: &Reply) -> &str {
    header(reply, "cache-status").strip_prefix("makegate; ").unwrap()
}

impl World {
    fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// What memory did for a request with this `Cache-Control`.
    async fn with(&self, directives: &str) -> String {
        let reply = self.get_with(ALL, USAGE, &[&format!("cache-control: {directives}")]).await;
        did(&reply.expect(200)).to_owned()
    }
}

#[tokio::test]
async fn a_stored_answer_ages_and_is_fetched_anew_when_its_lifetime_is_over() {
    let world = still().start().await;
    let first = world.get(ALL, USAGE).await.expect(200);
    assert_eq!((did(&first), header(&first, "age")), ("fwd=miss; fwd-status=200; stored", "0"));
    for (later, status, age) in [(0, "hit; ttl=300", "0"), (10, "hit; ttl=290", "10"), (289, "hit; ttl=1", "299")] {
        world.wait(later);
        let hit = world.get(TOO, USAGE).await.expect(200);
        assert_eq!((did(&hit), header(&hit, "age"), hit.text()), (status, age, first.text()));
        assert_eq!(header(&hit, "content-type"), header(&first, "content-type"));
    }
    world.wait(2);
    let anew = world.get(ALL, USAGE).await.expect(200);
    assert_eq!((did(&anew), header(&anew, "age")), ("fwd=stale; fwd-status=200; stored", "0"));
    assert_eq!(world.received("GET", USAGE), 2);
}

#[tokio::test]
async fn records_say_which_request_filled_the_entry() {
    let world = still().start().await;
    world.get_with(ALL, USAGE, &["x-request-id: filler"]).await.expect(200);
    world.get(TOO, USAGE).await.expect(200);
    let hit = world.last_record().await;
    assert_eq!((&hit["answer"], &hit["filled_by"]), (&json!("hit"), &json!("filler")));
    assert!(hit.get("attempts").is_none() && hit.get("upstream_status").is_none(), "{hit}");
}

#[tokio::test]
async fn a_stale_answer_stands_in_while_the_upstream_fails() {
    let world = still().set("limits", "attempts = 1").start().await;
    let first = world.get(ALL, USAGE).await.expect(200);
    world.wait(301);
    world.sandbox.fault(Fault::once("GET", USAGE, FaultKind::status(503)));
    let stale = world.get(ALL, USAGE).await.expect(200);
    assert_eq!((did(&stale), header(&stale, "age"), stale.text()), ("fwd=stale; fwd-status=503", "301", first.text()));
    let record = world.last_record().await;
    assert_eq!((&record["answer"], &record["upstream_status"]), (&json!("stale"), &json!(503)), "{record}");
    world.wait(3601);
    world.sandbox.fault(Fault::once("GET", USAGE, FaultKind::status(503)));
    assert_eq!(did(&world.get(ALL, USAGE).await.expect(503)), "fwd=miss; fwd-status=503", "an hour, no longer");
}

#[tokio::test]
async fn directives_of_the_caller_are_honoured() {
    let world = still().start().await;
    world.get(ALL, USAGE).await.expect(200);
    assert_eq!(world.with("no-cache").await, "hit; ttl=300", "young enough: cache.refresh_floor");
    world.wait(10);
    for (directives, did) in [
        ("max-age=10", "hit; ttl=290"),
        ("min-fresh=290", "hit; ttl=290"),
        ("only-if-cached", "hit; ttl=290"),
        ("nonsense=1", "hit; ttl=290"),
        ("no-store", "fwd=bypass; fwd-status=200"),
        ("max-age=300", "hit; ttl=290"),
        ("max-age=9", "fwd=request; fwd-status=200; stored"),
        ("max-age=9", "hit; ttl=300"),
    ] {
        assert_eq!(world.with(directives).await, did, "{directives}");
    }
    world.wait(10);
    assert_eq!(world.with("min-fresh=291").await, "fwd=request; fwd-status=200; stored");
    world.wait(10);
    assert_eq!(world.with("no-cache").await, "fwd=request; fwd-status=200; stored");
    world.wait(350);
    assert_eq!(world.with("max-stale=50").await, "hit; ttl=-50");
    assert_eq!(world.last_record().await["answer"], "stale");
    assert_eq!(world.with("max-stale").await, "hit; ttl=-50");
    assert_eq!(world.with("max-stale=49").await, "fwd=stale; fwd-status=200; stored");
}

#[tokio::test]
async fn only_if_cached_asks_nobody() {
    let world = still().start().await;
    for target in [USAGE, APPS, "/api/v2/organizations/11?wait=true"] {
        world.get_with(ALL, target, &["cache-control: only-if-cached"]).await.refused(504, "MG191");
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn a_caller_that_may_not_refresh_takes_what_there_is() {
    let plan = still().caller("modest", "grants = [\"*\"]\nrate = \"600/min\"\nmay_refresh = false");
    let world = plan.start().await;
    world.get(ALL, USAGE).await.expect(200);
    world.wait(10);
    for directives in ["no-cache", "max-age=1", "min-fresh=299"] {
        let reply = world.get_with("modest", USAGE, &[&format!("cache-control: {directives}")]).await;
        assert_eq!(did(&reply), "hit; ttl=290", "{directives}");
    }
}

#[tokio::test]
async fn waiting_for_the_zone_is_never_answered_from_memory_but_fills_it() {
    let world = still().start().await;
    world.get(ALL, ORG).await.expect(200);
    for _ in 0..2 {
        let waited = world.get(ALL, &format!("{ORG}?wait=true")).await.expect(200);
        assert_eq!(did(&waited), "fwd=request; fwd-status=200; stored");
    }
    assert_eq!(did(&world.get(ALL, ORG).await), "hit; ttl=300");
    assert_eq!(did(&world.get(ALL, &format!("{ORG}?wait=false")).await), "hit; ttl=300");
    assert_eq!(world.received("GET", ORG), 3);
}

#[tokio::test]
async fn equal_questions_are_one_entry_and_no_others() {
    let world = still().start().await;
    world.get(ALL, &format!("{LIST}?cols[]=id&cols[]=name&pg[limit]=3")).await.expect(200);
    for (query, did_) in [
        ("pg%5Blimit%5D=3&cols%5B%5D=name&cols[]=id&cols[]=id", "hit; ttl=300"),
        ("cols[]=id&cols[]=name&pg[limit]=3&pg[offset]=0&pg[sortBy]=name&pg[sortDir]=asc", "hit; ttl=300"),
        ("cols[]=%69d&cols[]=name&&pg[limit]=3&", "hit; ttl=300"),
        ("cols[]=id&pg[limit]=3", "fwd=miss; fwd-status=200; stored"),
        ("cols[]=id&cols[]=name&pg[limit]=03", "fwd=bypass; fwd-status=200"),
        ("cols[]=id&cols[]=name&pg[limit]=3&new=1", "fwd=bypass; fwd-status=200"),
        ("cols=id&cols=name&pg[limit]=3", "fwd=bypass; fwd-status=200"),
    ] {
        assert_eq!(did(&world.get(ALL, &format!("{LIST}?{query}")).await.expect(200)), did_, "{query}");
    }
}

#[tokio::test]
async fn callers_of_all_scopes_share_one_entry_of_the_list() {
    let plan = still().caller("twelve", "grants = [\"*\"]\norganizations = [12]\nrate = \"600/min\"");
    let world = plan.start().await;
    let first = world.get(READER, &format!("{LIST}?pg[limit]=1")).await.expect(200);
    assert_eq!(did(&first), "fwd=miss; fwd-status=200; stored");
    let second = world.get("twelve", &format!("{LIST}?pg[sortBy]=id")).await.expect(200);
    assert_eq!((did(&second), header(&second, "age")), ("hit; ttl=300", "0"));
    assert_eq!(second.json()["organizations"][0]["id"], 12);
    assert_eq!(world.received("GET", LIST), 1);
}

#[tokio::test]
async fn a_stale_answer_hides_no_refused_token_and_no_redirect() {
    let world = still().start().await;
    world.get(ALL, USAGE).await.expect(200);
    world.wait(301);
    world.sandbox.fault(Fault::once("GET", USAGE, FaultKind::status(401)));
    world.get(ALL, USAGE).await.refused(502, "MG204");
    world.sandbox.fault(Fault::once("GET", USAGE, FaultKind::redirect("http://127.0.0.1:1/")));
    world.get(ALL, USAGE).await.refused(502, "MG205");
    world.sandbox.fault(Fault::once("GET", USAGE, FaultKind::status(500)));
    assert_eq!(did(&world.get(ALL, USAGE).await.expect(200)), "fwd=stale; fwd-status=500");
}

#[tokio::test]
async fn conditions_on_several_lines_are_one_list_and_if_match_is_no_business_of_memory() {
    let world = still().start().await;
    let etag = header(&world.get(ALL, USAGE).await.expect(200), "etag").to_owned();
    let lines = ["if-none-match: \"other\"", &format!("if-none-match: {etag}")];
    world.get_with(ALL, USAGE, &lines).await.expect(304);
    let reply = world.get_with(ALL, USAGE, &[&format!("if-match: {etag}")]).await.expect(200);
    assert_eq!(did(&reply), "fwd=bypass; fwd-status=200");
}

#[tokio::test]
async fn a_429_says_when_to_come_again_in_seconds_that_a_client_can_live_with() {
    for (told, said) in [("1.5", "60"), ("0", "1"), ("7", "7"), ("99999999", "600")] {
        let world = still().set("limits", "attempts = 1").start().await;
        let fault = FaultKind::status(429).with_header("retry-after", told).with_body("Requests limit exceeded");
        world.sandbox.fault(Fault::always("GET", USAGE, fault));
        let reply = world.get_with(ALL, USAGE, &["cache-control: no-store"]).await.expect(429);
        assert_eq!((header(&reply, "retry-after"), reply.text()), (said, "Requests limit exceeded"), "{told}");
    }
}

/// Waits until so many requests for [`USAGE`] have come to the upstream; more are not expected.
async fn received_usage(world: &World, count: usize) {
    until(|| world.received("GET", USAGE) >= count).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.received("GET", USAGE), count);
}

#[tokio::test]
async fn what_is_asked_for_late_is_fetched_ahead_and_nobody_waits() {
    let world = still().set("cache", "refresh_ahead = true").start().await;
    world.get(ALL, USAGE).await.expect(200);
    world.wait(239);
    assert_eq!(did(&world.get(ALL, USAGE).await.expect(200)), "hit; ttl=61", "early: not yet");
    received_usage(&world, 1).await;
    world.wait(2);
    world.sandbox.fault(Fault::once("GET", USAGE, HELD));
    for caller in [ALL, TOO, ALL] {
        assert_eq!(did(&world.get(caller, USAGE).await.expect(200)), "hit; ttl=59", "nobody waits for it");
    }
    received_usage(&world, 2).await;
    world.sandbox.clear_faults();
    let fresh = async || did(&world.get(ALL, USAGE).await.expect(200)).to_owned();
    for _ in 0..3_000 {
        if fresh().await == "hit; ttl=300" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fresh().await, "hit; ttl=300");
    world.wait(301);
    assert_eq!(fresh().await, "fwd=stale; fwd-status=200; stored", "nobody asked late: it is let go");
}

#[tokio::test]
async fn what_is_fetched_ahead_takes_no_quota_that_somebody_may_want() {
    let tight = || still().set("upstream", "quota = \"4/min\"").set("cache", "refresh_ahead = true");
    for (others, refreshed) in [(1, true), (2, false)] {
        let world = tight().start().await;
        world.get(ALL, USAGE).await.expect(200);
        world.wait(250);
        for _ in 0..others {
            world.get_with(ALL, ORG, &["cache-control: no-store"]).await.expect(200);
        }
        assert_eq!(did(&world.get(ALL, USAGE).await.expect(200)), "hit; ttl=50");
        received_usage(&world, 1 + usize::from(refreshed)).await;
    }
}

#[tokio::test]
async fn nothing_is_fetched_ahead_unless_that_is_configured() {
    let world = still().start().await;
    world.get(ALL, USAGE).await.expect(200);
    world.wait(299);
    assert_eq!(did(&world.get(ALL, USAGE).await.expect(200)), "hit; ttl=1");
    received_usage(&world, 1).await;
}

#[tokio::test]
async fn a_failed_fetch_ahead_hurts_nobody() {
    let world = still().set("cache", "refresh_ahead = true").start().await;
    let first = world.get(ALL, USAGE).await.expect(200);
    world.wait(250);
    world.sandbox.fault(Fault::always("GET", USAGE, FaultKind::status(404)));
    world.get(ALL, USAGE).await.expect(200);
    received_usage(&world, 2).await;
    let hit = world.get(ALL, USAGE).await.expect(200);
    assert_eq!((did(&hit), hit.text()), ("hit; ttl=50", first.text()), "one try for each entry, and it stays");
    received_usage(&world, 2).await;
}
