//! Promise 2. A key ends when it expires, without a reload, even for requests that wait; and its last use is remembered.

use std::time::Duration;

use jiff::SignedDuration;
use makegate::quota::BucketId;
use makegate::sandbox::Fault;
use makegate::tasks::Tasks;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::support::{ALL, HELD, OPERATOR, ORG, Plan, Reply, VARIABLES, World, send, until, with_key};

const KEY: &str = "key-brief";
const VARIABLE: &str = r#"{"typeId":2,"name":"v","value":"x"}"#;
/// How long the key of each world is good.
const LIFE: Duration = Duration::from_secs(30);

/// A world with a caller `brief` whose key expires in [`LIFE`].
async fn world(plan: Plan) -> World {
    let expires = plan.now() + SignedDuration::try_from(LIFE).unwrap();
    let hash = makegate::hash::hex(&makegate::hash::sha256(KEY.as_bytes()));
    let keys = format!("keys = [{{ hash = \"sha256:{hash}\", expires = \"{expires}\", note = \"ci\" }}]");
    plan.tables(&format!("[[caller]]\nname = \"brief\"\n{keys}\ngrants = [\"*\"]\nrate = \"600/min\"\n")).start().await
}

fn request(world: &World, method: &'static str, target: &'static str, body: &'static str) -> JoinHandle<Reply> {
    let (gateway, headers) = (world.gateway, with_key(KEY, &[]));
    Tasks::new().spawn(async move { send(gateway, method, target, &headers, body).await })
}

async fn look(world: &World, page: &str) -> String {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(world.service.operator_addresses()[0], "GET", page, &key, "").await.expect(200).text().to_owned()
}

async fn caller(world: &World, name: &str) -> Value {
    let page: Value = serde_json::from_str(&look(world, "/callers.json").await).unwrap();
    page["callers"].as_array().unwrap().iter().find(|caller| caller["name"] == name).unwrap().clone()
}

#[tokio::test]
async fn a_key_is_refused_from_the_moment_that_it_expires() {
    let world = world(Plan::default()).await;
    world.get(KEY, ORG).await.expect(200);
    world.get(KEY, ORG).await.expect(200);
    let before = caller(&world, "brief").await["keys"][0].clone();
    assert_eq!((&before["warning"], &before["note"]), (&"expires soon".into(), &"ci".into()), "{before}");
    world.clock.advance(LIFE);
    let refused = world.get(KEY, ORG).await.refused(401, "MG113");
    assert!(refused.header("www-authenticate").is_some());
    world.get(ALL, ORG).await.expect(200);
    let after = caller(&world, "brief").await["keys"][0].clone();
    assert_eq!((&after["warning"], &after["last_used"]), (&"expired".into(), &before["last_used"]), "{after}");
    let metrics = look(&world, "/metrics").await;
    assert!(metrics.contains("makegate_key_expires_timestamp_seconds{caller=\"brief\",key="), "{metrics}");
    assert!(look(&world, "/callers.csv").await.contains("(ci; expired "));
}

#[tokio::test]
async fn a_request_that_waits_while_its_key_expires_is_not_sent() {
    for (method, target, body) in [("GET", ORG, ""), ("POST", VARIABLES, VARIABLE)] {
        let times = "quota = \"1/min\"\nquota_wait = \"90s\"\ndeadline = \"100s\"\nwrite_deadline = \"100s\"";
        let world = world(Plan::default().set("upstream", times)).await;
        // This request holds the only slot until a minute after it ends, by the world's clock.
        world.get(ALL, "/api/v2/organizations/11/usage").await.expect(200);
        let waits = request(&world, method, target, body);
        until(|| world.service.gateway().quota.view(BucketId::Organization(11)).waiting == 1).await;
        world.clock.advance(Duration::from_secs(61));
        waits.await.unwrap().refused(401, "MG113");
        assert_eq!(world.received(method, target), 0, "{method}: it was sent");
    }
}

#[tokio::test]
async fn an_answer_is_withheld_from_a_caller_whose_key_expired_while_it_was_fetched() {
    let world = world(Plan::default()).await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    world.sandbox.fault(Fault::once("POST", VARIABLES, HELD));
    let (read, write) = (request(&world, "GET", ORG, ""), request(&world, "POST", VARIABLES, VARIABLE));
    until(|| world.received("GET", ORG) == 1 && world.received("POST", VARIABLES) == 1).await;
    world.clock.advance(LIFE);
    world.sandbox.clear_faults();
    read.await.unwrap().refused(401, "MG113");
    let write = write.await.unwrap().refused(401, "MG113");
    // The caller is not told what Make answered, only what became of the write.
    assert_eq!(write.header("makegate-outcome"), Some("done"), "{write:?}");
}

#[tokio::test]
async fn the_last_use_of_a_key_outlives_a_restart() {
    let world = world(Plan::default()).await;
    world.get(KEY, ORG).await.expect(200);
    // Uses of another key, more than a block of the index has.
    for _ in 0..300 {
        world.get(ALL, ORG).await.expect(200);
    }
    let used = ["brief", "all", "reader"].map(|name| name.to_owned());
    let mut before = Vec::new();
    for name in &used {
        before.push(caller(&world, name).await["keys"][0]["last_used"].clone());
    }
    assert!(before[0].is_string() && before[1].is_string() && before[2].is_null(), "{before:?}");
    let world = world.restart().await;
    for (name, before) in used.iter().zip(before) {
        for attempt in 0.. {
            let now = caller(&world, name).await["keys"][0]["last_used"].clone();
            if now == before {
                break;
            }
            assert!(attempt < 1_000, "{name}: {now}, not {before}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
