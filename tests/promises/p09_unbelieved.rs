//! Promise 9, against an upstream that is not believed: what it says of limits and waits is bounded, and an operator has the last word.

use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::support::{ALL, LIST, OPERATOR, ORG, OTHER, Plan, Reply, World, send};

async fn operator(world: &World, method: &str, target: &str, body: &str) -> Reply {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(world.service.operator_addresses()[0], method, target, &key, body).await
}

async fn bucket(world: &World, organization: Option<u64>) -> Value {
    let quota = operator(world, "GET", "/quota.json", "").await.expect(200).json();
    let buckets = quota["buckets"].as_array().unwrap();
    buckets.iter().find(|bucket| bucket["organization"] == json!(organization)).cloned().unwrap_or(Value::Null)
}

fn still() -> Plan {
    Plan::default().clock(Clock::frozen()).set("limits", "attempts = 1\nattempts_once = 1")
}

fn throttled(retry_after: &str) -> FaultKind {
    FaultKind::status(429).with_header("retry-after", retry_after)
}

#[tokio::test]
async fn an_odd_limit_hides_no_other_and_is_not_believed() {
    let limits = "quota = \"auto\"\nquota_max = 2000";
    let fixed = "[upstream.quotas]\n\"5\" = \"7/min\"\n\"6\" = \"auto\"\n";
    let world = still().set("upstream", limits).tables(fixed).start().await;
    let list = r#"{"organizations":[
        {"id":"x","license":{"apiLimit":1}}, {"id":1,"license":{"apiLimit":240}}, {"id":2,"license":{"apiLimit":"120"}},
        {"id":3,"license":{"apiLimit":2001}}, {"id":4,"license":{"apiLimit":0}}, {"id":5,"license":{"apiLimit":90}},
        {"id":6,"license":{"apiLimit":2000}}, null, {"id":7,"license":{"apiLimit":1.5}}, {"id":8,"license":{"apiLimit":30}}]}"#;
    world.sandbox.fault(Fault::once("GET", LIST, FaultKind::status(200).with_body(list)));
    world.get(ALL, LIST).await.expect(200);
    for (organization, limit, from) in [
        (1, 240, "learned"),
        (2, 120, "learned"),
        (6, 2000, "learned"),
        (8, 30, "learned"),
        (5, 7, "configured"),
        (3, 60, "assumed"),
        (4, 60, "assumed"),
        (7, 60, "assumed"),
    ] {
        let view = world.service.gateway().quota.view(makegate::quota::BucketId::Organization(organization));
        assert_eq!((view.limit, json!(view.limit_from)), (limit, json!(from)), "{organization}");
    }
    // An answer about one organization says nothing of others.
    let other = r#"{"organization":{"id":1,"license":{"apiLimit":1}}}"#;
    world.sandbox.fault(Fault::once("GET", ORG, FaultKind::status(200).with_body(other)));
    world.get(ALL, ORG).await.expect(200);
    assert_eq!(bucket(&world, Some(1)).await["limit"], 240);
    // A reload with another quota reaches waiting and future requests, and purges nothing.
    let text = std::fs::read_to_string(world.file()).unwrap().replace("\"5\" = \"7/min\"", "\"1\" = \"9/min\"");
    std::fs::write(world.file(), text).unwrap();
    world.reload().await;
    let view = |id| world.service.gateway().quota.view(makegate::quota::BucketId::Organization(id)).limit;
    assert_eq!((view(1), view(5)), (9, 60));
    assert_eq!(world.get(ALL, ORG).await.expect(200).text(), other, "it is still in memory");
}

#[tokio::test]
async fn retry_after_is_believed_in_every_form_from_a_second_to_ten_minutes() {
    for (said, seconds) in [
        ("0", 1),
        ("7", 7),
        ("86400", 600),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 1),
        ("Sun Nov  6 08:49:37 1994", 1),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 1),
        ("Wed, 06 Nov 2199 08:49:37 GMT", 600),
        ("soon", 60),
    ] {
        let world = still().start().await;
        world.sandbox.fault(Fault::once("GET", ORG, throttled(said)));
        let reply = world.get(ALL, ORG).await.expect(429);
        assert_eq!(reply.header("retry-after"), Some(&*seconds.to_string()), "{said}");
        let closed = bucket(&world, Some(11)).await;
        assert_eq!(closed["closed_for_ms"], seconds * 1000, "{said}");
        if seconds > 5 {
            world.get(ALL, ORG).await.refused(429, "MG171"); // longer than it could wait
        }
        world.clock.advance(Duration::from_secs(if seconds > 60 { seconds / 2 } else { seconds }));
        world.get(ALL, ORG).await.expect(200);
    }
}

#[tokio::test]
async fn a_long_wait_is_tested_once_at_half() {
    let world = still().start().await;
    world.sandbox.fault(Fault::always("GET", ORG, throttled("600")));
    world.get(ALL, ORG).await.expect(429);
    world.clock.advance(Duration::from_secs(290));
    world.get(ALL, ORG).await.refused(429, "MG171");
    world.clock.advance(Duration::from_secs(10));
    world.get(ALL, ORG).await.expect(429);
    assert_eq!(world.received("GET", ORG), 2);
    // The test was in vain: now the wait is kept.
    for _ in 0..5 {
        world.clock.advance(Duration::from_secs(118));
        world.get(ALL, ORG).await.refused(429, "MG171");
    }
    world.sandbox.clear_faults();
    world.clock.advance(Duration::from_secs(10));
    world.get(ALL, ORG).await.expect(200);
    assert_eq!(world.received("GET", ORG), 3);
    // A minute, which is what Make's text says, is waited whole.
    world.sandbox.fault(Fault::once("GET", OTHER, throttled("60")));
    world.get(ALL, OTHER).await.expect(429);
    world.clock.advance(Duration::from_secs(50));
    world.get(ALL, OTHER).await.refused(429, "MG171");
    world.clock.advance(Duration::from_secs(10));
    world.get(ALL, OTHER).await.expect(200);
}

#[tokio::test]
async fn an_operator_sees_why_a_quota_is_closed_and_reopens_it() {
    let world = still().start().await;
    world.sandbox.fault(Fault::once("GET", ORG, throttled("500")));
    world.sandbox.fault(Fault::once("GET", LIST, FaultKind::status(429)));
    world.get(ALL, ORG).await.expect(429);
    world.get(ALL, LIST).await.expect(429);
    let closed = bucket(&world, Some(11)).await;
    assert_eq!(closed["closed_because"], "Make answered 429 with Retry-After: 500", "{closed}");
    assert_eq!(bucket(&world, None).await["closed_because"], "Make answered 429 without Retry-After");
    let page = operator(&world, "GET", "/quota", "").await.expect(200);
    assert!(page.text().contains("Make answered 429 with Retry-After: 500"), "{page:?}");
    for bad in ["", "{}", "[]", "{\"organization\":\"11\"}", "{\"organization\":11,\"x\":1}", "{\"organization\":-1}"] {
        operator(&world, "POST", "/quota/reopen", bad).await.expect(400);
    }
    assert_eq!(send(world.service.operator_addresses()[0], "POST", "/quota/reopen", "", "{}").await.status, 401);
    for (organization, target) in [(Some(11), ORG), (None, LIST)] {
        world.get(ALL, target).await.refused(429, "MG171");
        let asked = json!({"organization": organization}).to_string();
        let reopened = operator(&world, "POST", "/quota/reopen", &asked).await.expect(200).json();
        assert_eq!((&reopened["reopened"], &reopened["organization"]), (&json!(true), &json!(organization)));
        let event = world.log().await.pop().unwrap();
        assert_eq!((&event["kind"], &event["event"]), (&json!("event"), &json!("reopen")), "{event}");
        assert!(event["detail"].as_str().unwrap().contains("Make answered 429"), "{event}");
        world.get(ALL, target).await.expect(200);
        let open = bucket(&world, organization).await;
        assert_eq!(open["closed_for_ms"], Value::Null, "{open}");
    }
    let again = operator(&world, "POST", "/quota/reopen", "{\"organization\":99}").await.expect(200).json();
    assert_eq!(again["reopened"], false);
    // A restart closes nothing that was reopened.
    let world = world.restart().await;
    world.get(ALL, &format!("{ORG}/apps")).await.expect(200);
}
