//! Promise 4 over all replicas: a write goes to Make at most once, whichever of them it is sent to, and to how many.

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};
use makegate::tasks::Tasks;

use crate::support::fleet::{Fleet, FleetPlan, wait};
use crate::support::link::LinkState;
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ALL, HELD, LIST, ORG, OTHER, Plan, Reply, TOO, VARIABLES, attempt, with_key};

const NEW: &str = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;

fn variable(name: &str) -> String {
    format!(r#"{{"typeId":2,"name":"{name}","value":"x"}}"#)
}

async fn post(fleet: &Fleet, replica: usize, key: Option<&str>, target: &str, body: &str) -> Reply {
    let key = key.map(|key| format!("idempotency-key: {key}"));
    let headers: Vec<&str> = key.iter().map(String::as_str).collect();
    fleet.replicas[replica].send(ALL, "POST", target, &headers, body).await.expect("an answer")
}

async fn settle(fleet: &Fleet, replica: usize, request: &str, how: &str) -> Reply {
    let headers = format!("authorization: Bearer {}\r\n", crate::support::OPERATOR);
    let to = fleet.replicas[replica].home.operator;
    crate::support::send(to, "POST", &format!("/doubts/{request}"), &headers, &format!(r#"{{"as":"{how}"}}"#)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_carried_out_once_whichever_replicas_it_is_sent_to() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan::default().start().await;
    for number in 0..10 {
        let (key, body) = (format!("k-{number}"), variable(&format!("at_once_{number}")));
        let (a, b, c) = tokio::join!(
            post(&fleet, 0, Some(&key), VARIABLES, &body),
            post(&fleet, 1, Some(&key), VARIABLES, &body),
            post(&fleet, 2, Some(&key), VARIABLES, &body),
        );
        let done: Vec<&Reply> = [&a, &b, &c].into_iter().filter(|reply| reply.status == 200).collect();
        assert!(!done.is_empty(), "{a:?} {b:?} {c:?}");
        assert!(done.iter().all(|reply| reply.body == done[0].body));
        for reply in [&a, &b, &c].into_iter().filter(|reply| reply.status != 200) {
            assert_eq!((reply.status, reply.code()), (409, "MG162".to_owned()), "under way elsewhere: {reply:?}");
        }
        let fresh = done.iter().filter(|reply| reply.header("idempotent-replayed").is_none()).count();
        assert_eq!(fresh, 1);
    }
    assert_eq!(fleet.sandbox.received_of("POST", VARIABLES).len(), 10);
    let first = post(&fleet, 0, Some("later"), LIST, NEW).await.expect(200);
    let again = async |fleet: &Fleet| {
        for replica in 0..3 {
            let reply = post(fleet, replica, Some("later"), LIST, NEW).await.expect(200);
            assert_eq!((reply.header("idempotent-replayed"), &reply.body), (Some("true"), &first.body));
            let other = post(fleet, replica, Some("later"), LIST, &NEW.replace("\"n\"", "\"m\"")).await;
            assert_eq!((other.status, other.code()), (422, "MG163".to_owned()), "a key belongs to one request");
        }
    };
    again(&fleet).await;
    // Nor does it depend on whoever had it first, or on what the engine keeps in memory.
    fleet.replicas[0].kill();
    fleet.engine.restart(Shutdown::Immediate);
    fleet.replicas[0].start().await;
    fleet.settled().await;
    fleet.open().await;
    again(&fleet).await;
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_write_in_doubt_is_held_at_every_replica_until_one_settles_it() {
    if !Postgres::available() {
        return;
    }
    let fleet =
        FleetPlan { plan: || crate::support::Plan::default().set("upstream", "look = false"), ..FleetPlan::default() };
    let mut fleet = fleet.start().await;
    fleet.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
    let first = post(&fleet, 0, None, LIST, NEW).await.refused(502, "MG222");
    let id = first.header("x-request-id").unwrap().to_owned();
    for replica in 0..3 {
        let held = post(&fleet, replica, None, LIST, NEW).await.refused(409, "MG161");
        assert!(held.text().contains(&id), "it names the first: {held:?}");
        wait("each replica lists it", async || fleet.replicas[replica].doubts().await.contains(&id)).await;
        // Another caller's is another write, and so is one with other content.
        post(&fleet, replica, None, LIST, &NEW.replace("\"n\"", &format!("\"other {replica}\""))).await.expect(200);
    }
    fleet.replicas[0].kill();
    post(&fleet, 1, None, LIST, NEW).await.refused(409, "MG161");
    wait("it can be settled elsewhere", async || settle(&fleet, 2, &id, "done").await.status == 200).await;
    for replica in [1, 2] {
        wait("nothing is in doubt", async || fleet.replicas[replica].doubts().await.is_empty()).await;
    }
    post(&fleet, 1, None, LIST, NEW).await.expect(200);
    fleet.replicas[0].start().await;
    fleet.settled().await;
    wait("its old owner has heard of it", async || fleet.replicas[0].doubts().await.is_empty()).await;
    fleet.open().await;
    post(&fleet, 0, None, LIST, NEW).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_one_resource_take_turns_over_all_replicas() {
    if !Postgres::available() {
        return;
    }
    let fleet = FleetPlan::default().start().await;
    fleet.sandbox.fault(Fault::always("PATCH", ORG, HELD));
    let tasks = Tasks::new();
    let patch = |replica: usize, key: &'static str| {
        let to = fleet.replicas[replica].home.gateway;
        let body = format!(r#"{{"name":"by {replica}"}}"#);
        tasks.spawn(async move { attempt(to, "PATCH", ORG, &with_key(key, &[]), &body).await.unwrap() })
    };
    let first = patch(0, ALL);
    wait("the first is with Make", async || fleet.sandbox.received_of("PATCH", ORG).len() == 1).await;
    let others = [patch(1, TOO), patch(2, ALL)];
    // They wait, however long.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.sandbox.received_of("PATCH", ORG).len(), 1);
    fleet.sandbox.clear_faults();
    first.await.unwrap().expect(200);
    for other in others {
        other.await.unwrap().expect(200);
    }
    assert_eq!(fleet.sandbox.received_of("PATCH", ORG).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_a_replica_that_died_is_held_everywhere_and_sent_by_nobody() {
    if !Postgres::available() {
        return;
    }
    let plan = || {
        crate::support::Plan::default()
            .set("upstream", "look = false\nwrite_deadline = \"20s\"\nwrite_attempt = \"10s\"")
    };
    let mut fleet = FleetPlan { plan, ..FleetPlan::default() }.start().await;
    fleet.sandbox.fault(Fault::always("POST", LIST, FaultKind::Hang { effect: true }));
    let tasks = Tasks::new();
    let to = fleet.replicas[0].home.gateway;
    tasks.spawn(async move { attempt(to, "POST", LIST, &with_key(ALL, &[]), NEW).await });
    wait("it is with Make", async || fleet.sandbox.received_of("POST", LIST).len() == 1).await;
    fleet.replicas[0].kill();
    fleet.sandbox.clear_faults();
    let adopted =
        format!("select count(*) from mg.write where path = '{LIST}' and state = 'd' and replica <> 'replica-0'");
    wait("somebody has adopted it", async || fleet.sql(&adopted) == "1").await;
    for replica in [1, 2] {
        wait("it is in doubt here", async || fleet.replicas[replica].doubts().await.len() == 1).await;
        post(&fleet, replica, None, LIST, NEW).await.refused(409, "MG161");
    }
    // A crash of the engine changes nothing, and neither does its return.
    fleet.engine.restart(Shutdown::Immediate);
    fleet.settled().await;
    fleet.replicas[0].start().await;
    fleet.settled().await;
    for replica in 0..3 {
        wait("it is still in doubt", async || {
            let reply = post(&fleet, replica, None, LIST, NEW).await;
            assert_ne!(reply.status, 200, "{reply:?}");
            reply.status == 409
        })
        .await;
    }
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 1);
    let id = fleet.replicas[1].doubts().await.remove(0);
    settle(&fleet, 0, &id, "done").await.expect(200);
    for replica in 0..3 {
        wait("nothing is in doubt", async || fleet.replicas[replica].doubts().await.is_empty()).await;
    }
}

/// Its answer waits for fences that the engine cannot give a place, until its caller hears that it is in doubt. In the next epoch writes
/// go on before those fences are raised everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_caller_was_told_that_it_is_in_doubt_is_held_from_then_on() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().set("upstream", "look = false\nwrite_deadline = \"8s\"\nwrite_attempt = \"2s\"");
    let mut fleet = FleetPlan { plan, lease: Duration::from_secs(3), ..FleetPlan::default() }.start().await;
    fleet.sandbox.fault(Fault::once("POST", LIST, FaultKind::Latency { ms: 700 }));
    let tasks = Tasks::new();
    let to = fleet.replicas[0].home.gateway;
    let write = tasks.spawn(async move { attempt(to, "POST", LIST, &with_key(ALL, &[]), NEW).await });
    wait("it is with Make", async || fleet.sandbox.received_of("POST", LIST).len() == 1).await;
    fleet.engine.pause();
    let told = write.await.unwrap().expect("an answer").expect(504);
    assert_eq!(told.header("makegate-outcome"), Some("in-doubt"), "{told:?}");
    fleet.engine.restart(Shutdown::Immediate);
    // From the first answer on that is not about the engine, or the quota.
    let mut first = post(&fleet, 1, None, LIST, NEW).await;
    while [429, 503].contains(&first.status) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        first = post(&fleet, 1, None, LIST, NEW).await;
    }
    first.refused(409, "MG161");
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 1);
    // It took effect, which its own replica tells as soon as it can.
    wait("nothing is in doubt", async || fleet.replicas[1].doubts().await.is_empty()).await;
}

/// A replica that has no lease, or had none for a while, may be one whose writes others look after: what waits there between its intent
/// and its first byte is not sent any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_while_the_lease_ends_is_not_sent() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().set("upstream", "quota = \"100000/min\"\nconnections = 1");
    let fleet = FleetPlan { replicas: 2, plan, ..FleetPlan::default() }.start().await;
    let [alone, other] = &fleet.replicas[..] else { panic!() };
    for (name, is_back) in [("late", false), ("later", true)] {
        fleet.open().await;
        fleet.sandbox.fault(Fault::once("GET", OTHER, HELD));
        let before = fleet.sandbox.received_of("GET", OTHER).len();
        let holder = alone.send(TOO, "GET", OTHER, &["cache-control: no-store"], "");
        let write = async {
            wait("the only connection is in use", async || fleet.sandbox.received_of("GET", OTHER).len() > before)
                .await;
            alone.send(ALL, "POST", VARIABLES, &[], &variable(name)).await.expect("an answer")
        };
        let mishap = async {
            let is_it = |record: &serde_json::Value| record["kind"] == "intent" && record["fields"]["name"] == name;
            let has_intent = || alone.log().iter().any(is_it);
            wait("its intent is on disk", async || has_intent()).await;
            alone.engine.set(LinkState::Cut);
            wait("the lease is over", async || !alone.has_lease().await).await;
            if is_back {
                wait("it is in doubt elsewhere", async || !other.doubts().await.is_empty()).await;
                fleet.heal();
                wait("it has a lease again", async || alone.has_lease().await).await;
            }
            fleet.sandbox.clear_faults();
        };
        let (_held, refused, ()) = tokio::join!(holder, write, mishap);
        assert_eq!((refused.status, refused.code()), (503, "MG241".to_owned()), "{refused:?}");
        assert_eq!(refused.header("makegate-outcome"), Some("not-sent"));
        assert_eq!(fleet.sandbox.received_of("POST", VARIABLES).len(), 0);
        fleet.heal();
        fleet.settled().await;
        wait("nothing is in doubt", async || other.doubts().await.is_empty()).await;
    }
}
