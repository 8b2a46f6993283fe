//! Promise 12. A write outlives its caller: once intended, its outcome is recorded whoever hangs up.

use std::time::Duration;

use makegate::sandbox::Fault;

use crate::support::{ALL, HELD, ORG, World, until};

#[tokio::test]
async fn a_write_whose_caller_hangs_up_is_settled_and_invalidates() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    world.sandbox.fault(Fault::once("PATCH", ORG, HELD));
    let sent = until(|| world.received("PATCH", ORG) == 1);
    world.send_until(ALL, "PATCH", ORG, r#"{"name":"After"}"#, sent).await;
    world.sandbox.clear_faults();
    until(|| world.service.gateway().under_way() == 0).await;
    let records = world.records().await;
    let of_write: Vec<&str> =
        records.iter().filter(|r| r["method"] == "PATCH").map(|r| r["kind"].as_str().unwrap()).collect();
    assert_eq!(of_write, ["intent", "outcome"]);
    assert_eq!(records.last().unwrap()["outcome"], "done");
    assert_eq!(world.get(ALL, ORG).await.json()["organization"]["name"], "After");
}

#[tokio::test]
async fn a_read_whose_leader_hangs_up_still_answers_the_others_with_one_fetch() {
    let world = &World::start().await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    let waiting = |count| move || world.service.gateway().shared_fetches.waiting() == count;
    let leader = async {
        world.send_until(ALL, "GET", ORG, "", until(waiting(2))).await;
        world.sandbox.clear_faults();
    };
    let follower = async {
        until(waiting(1)).await;
        world.get(ALL, ORG).await
    };
    let ((), follower) = tokio::join!(leader, follower);
    let follower = follower.expect(200);
    assert!(follower.header("cache-status").unwrap().contains("collapsed"), "{follower:?}");
    assert_eq!(world.received("GET", ORG), 1);
}

#[tokio::test]
async fn whenever_a_caller_hangs_up_its_write_has_an_outcome_or_was_never_intended() {
    let world = World::start().await;
    for number in 0..120_u64 {
        let body = format!(r#"{{"typeId":2,"name":"v{number}","value":"x"}}"#);
        let target = format!("{ORG}/variables");
        world.send_and_leave(ALL, "POST", &target, &body, Duration::from_micros(number * 20)).await;
    }
    let of_kind = |records: &[serde_json::Value], kind: &str| -> Vec<String> {
        let mut ids: Vec<_> = records.iter().filter(|r| r["kind"] == kind).map(|r| r["request"].to_string()).collect();
        ids.sort();
        ids
    };
    let mut records = Vec::new();
    let ended = |records: &[_]| of_kind(records, "intent") == of_kind(records, "outcome") && records.len() >= 120;
    for _ in 0..1_000 {
        records = world.records().await;
        if ended(&records) && world.service.gateway().under_way() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(of_kind(&records, "intent"), of_kind(&records, "outcome"), "an intent has no outcome, or two");
    let requests: std::collections::HashSet<_> = records.iter().map(|r| r["request"].to_string()).collect();
    assert_eq!(requests.len(), 120, "a request left no record");
}
