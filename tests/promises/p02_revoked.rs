//! Promise 2. Revoked rights take effect at once, even for waiting requests.

use std::fs;
use std::time::Duration;

use makegate::quota::BucketId;
use makegate::sandbox::Fault;
use makegate::tasks::Tasks;
use tokio::task::JoinHandle;

use crate::support::{ALL, HELD, LIST, ORG, OTHER, Plan, READER, Reply, VARIABLES, World, until, with_key};

const FAST: &str = "rate = \"1000000/min\"\nburst = 100000\n";
const VARIABLE: &str = r#"{"typeId":2,"name":"v","value":"x"}"#;

/// What is revoked, as a change to the configuration's text, and how the caller is then refused.
const TAKEN: [(&str, &str, u16, &str); 3] = [
    ("sha256:KEY", "sha256:0000000000000000000000000000000000000000000000000000000000000000", 401, "MG112"),
    ("# its own\ngrants = [\"*\"]", "grants = [\"usage:read\"]", 403, "MG131"),
    ("organizations = [11]", "organizations = [12]", 403, "MG132"),
];

/// A world with a caller `some`, all of whose rights can be revoked.
async fn world(plan: Plan) -> World {
    plan.caller("some", &format!("# its own\ngrants = [\"*\"]\norganizations = [11]\n{FAST}")).start().await
}

async fn take_away(world: &World, (from, to, ..): (&str, &str, u16, &str)) {
    let from = from.replace("KEY", &makegate::hash::hex(&makegate::hash::sha256(b"some")));
    let text = fs::read_to_string(world.file()).unwrap();
    let changed = text.replacen(&from, to, 1);
    assert_ne!(changed, text, "{from}");
    fs::write(world.file(), changed).unwrap();
    world.reload().await;
}

fn request(world: &World, method: &'static str, target: &'static str, body: &'static str) -> JoinHandle<Reply> {
    let (gateway, headers) = (world.gateway, with_key("some", &[]));
    Tasks::new().spawn(async move { crate::support::send(gateway, method, target, &headers, body).await })
}

#[tokio::test]
async fn a_request_that_waited_for_quota_is_authorized_again_before_it_is_sent() {
    for taken in TAKEN {
        for (method, target, body) in [("GET", ORG, ""), ("POST", VARIABLES, VARIABLE)] {
            let plan = Plan::default().set(
                "upstream",
                "quota = \"1/min\"\nquota_wait = \"90s\"\ndeadline = \"100s\"\nwrite_deadline = \"100s\"",
            );
            let world = world(plan).await;
            // This request holds the only slot until a minute after it ends, by the world's clock.
            world.get(ALL, "/api/v2/organizations/11/usage").await.expect(200);
            let waits = request(&world, method, target, body);
            until(|| world.service.gateway().quota.view(BucketId::Organization(11)).waiting == 1).await;
            take_away(&world, taken).await;
            world.clock.advance(Duration::from_secs(61));
            waits.await.unwrap().refused(taken.2, taken.3);
            assert_eq!(world.received(method, target), 0, "{method}, {}: it was sent", taken.3);
        }
    }
}

#[tokio::test]
async fn a_write_that_waited_for_its_turn_is_authorized_again_before_its_intent() {
    let world = world(Plan::default()).await;
    world.sandbox.fault(Fault::once("PATCH", ORG, HELD));
    let (gateway, headers) = (world.gateway, with_key(ALL, &[]));
    let first = Tasks::new()
        .spawn(async move { crate::support::send(gateway, "PATCH", ORG, &headers, r#"{"name":"first"}"#).await });
    until(|| world.received("PATCH", ORG) == 1).await;
    let second = request(&world, "PATCH", ORG, r#"{"name":"second"}"#);
    until(|| world.service.gateway().queued_writes() == 1).await;
    take_away(&world, TAKEN[1]).await;
    world.sandbox.clear_faults();
    first.await.unwrap().expect(200);
    second.await.unwrap().refused(403, "MG131");
    assert_eq!(world.received("PATCH", ORG), 1, "it was sent");
    assert!(world.records().await.iter().all(|record| record["kind"] != "intent" || record["caller"] == "all"));
}

/// A write waiting for a connection already has its intent, so it ends as not sent.
#[tokio::test]
async fn a_request_that_waited_for_a_connection_is_authorized_again_before_it_is_sent() {
    for taken in TAKEN {
        for (method, target, body) in [("GET", ORG, ""), ("POST", VARIABLES, VARIABLE)] {
            let world = world(Plan::default().set("upstream", "connections = 1")).await;
            world.sandbox.fault(Fault::once("GET", OTHER, HELD));
            let beside = async {
                until(|| world.received("GET", OTHER) == 1).await;
                let waits = request(&world, method, target, body);
                until(|| world.service.gateway().upstream().load() == (1, 1)).await;
                take_away(&world, taken).await;
                world.sandbox.clear_faults();
                waits.await.unwrap().refused(taken.2, taken.3)
            };
            let (held, reply) = tokio::join!(world.get(ALL, OTHER), beside);
            held.expect(200);
            assert_eq!(world.received(method, target), 0, "{method}, {}: it was sent", taken.3);
            assert_eq!(reply.header("makegate-outcome"), (method == "POST").then_some("not-sent"));
        }
    }
}

#[tokio::test]
async fn an_answer_is_withheld_from_a_caller_whose_rights_were_revoked_while_it_was_fetched() {
    for taken in TAKEN {
        let world = world(Plan::default()).await;
        world.sandbox.fault(Fault::once("GET", ORG, HELD));
        world.sandbox.fault(Fault::once("POST", VARIABLES, HELD));
        let (read, write) = (request(&world, "GET", ORG, ""), request(&world, "POST", VARIABLES, VARIABLE));
        until(|| world.received("GET", ORG) == 1 && world.received("POST", VARIABLES) == 1).await;
        take_away(&world, taken).await;
        world.sandbox.clear_faults();
        read.await.unwrap().refused(taken.2, taken.3);
        let write = write.await.unwrap().refused(taken.2, taken.3);
        // The caller is not told what Make answered, only what became of the write.
        assert_eq!(write.header("makegate-outcome"), Some("done"), "{write:?}");
        let records = world.records().await;
        let outcome = records.iter().find(|record| record["kind"] == "outcome").unwrap();
        assert_eq!(
            (&outcome["outcome"], &outcome["status"], &outcome["refusal"]),
            (&"done".into(), &taken.2.into(), &taken.3.into())
        );
    }
}

/// Requests for the same thing share a fetch. A key that is taken away ends its own requests, and no other key's that had joined them.
#[tokio::test]
async fn a_revoked_key_takes_no_answer_from_those_who_had_joined_its_fetch() {
    let own = makegate::hash::hex(&makegate::hash::sha256(b"own"));
    let keys = format!("\"sha256:{}\", \"sha256:{own}\"", makegate::hash::hex(&makegate::hash::sha256(b"some")));
    let world = world(Plan::default().set("upstream", "connections = 1")).await;
    let text = fs::read_to_string(world.file()).unwrap();
    fs::write(world.file(), text.replace(keys.split(", ").next().unwrap(), &keys)).unwrap();
    world.reload().await;
    world.sandbox.fault(Fault::once("GET", OTHER, HELD));
    let beside = async {
        until(|| world.received("GET", OTHER) == 1).await;
        let joined = async |count| until(|| world.service.gateway().shared_fetches.waiting() == count).await;
        let mut waiting = Vec::new();
        // The one whose fetch it is waits for a connection. Each of the others would begin the next if that one fails.
        for count in 2..6 {
            waiting.push(request(&world, "GET", ORG, ""));
            joined(count).await;
        }
        let (gateway, headers) = (world.gateway, with_key("own", &[]));
        let other = Tasks::new().spawn(async move { crate::support::send(gateway, "GET", ORG, &headers, "").await });
        joined(6).await;
        take_away(&world, TAKEN[0]).await;
        world.sandbox.clear_faults();
        for one in waiting {
            one.await.unwrap().refused(401, "MG112");
        }
        other.await.unwrap().expect(200);
    };
    let (held, ()) = tokio::join!(world.get(ALL, OTHER), beside);
    held.expect(200);
    assert_eq!(world.received("GET", ORG), 1, "only for the key that is still there");
}

#[tokio::test]
async fn a_list_narrowed_to_more_than_the_current_scope_is_withheld() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("GET", LIST, HELD));
    let (gateway, headers) = (world.gateway, with_key(READER, &[]));
    let list = Tasks::new().spawn(async move { crate::support::send(gateway, "GET", LIST, &headers, "").await });
    until(|| world.received("GET", LIST) == 1).await;
    let text = fs::read_to_string(world.file()).unwrap();
    fs::write(world.file(), text.replace("organizations = [11, 12]", "organizations = [11]")).unwrap();
    world.reload().await;
    world.sandbox.clear_faults();
    list.await.unwrap().refused(403, "MG132");
    let list = world.get(READER, LIST).await.expect(200);
    assert_eq!(list.json()["organizations"].as_array().unwrap().len(), 1);
    world.get(READER, OTHER).await.refused(403, "MG132");
}
