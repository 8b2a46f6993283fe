//! What callers and operators see while the engine is slow, out of reach, back, or has another time: a test for each row of the table in
//! `docs/replicas.md`.

use std::time::Duration;

use crate::support::fleet::{Fleet, FleetPlan, Replica, wait};
use crate::support::link::LinkState;
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ALL, ORG, OTHER, Plan, READER, Reply, TOO};

const NO_STORE: &[&str] = &["cache-control: no-store"];

fn plan() -> Plan {
    Plan::default()
        .set("upstream", "quota_wait = \"1s\"\nlook = false\nwrite_deadline = \"10s\"\nwrite_attempt = \"3s\"")
}

async fn fleet(section: &'static str) -> Fleet {
    let fleet = FleetPlan { replicas: 2, plan, section, ..FleetPlan::default() }.start().await;
    for replica in &fleet.replicas {
        primed(replica).await;
    }
    fleet
}

async fn primed(replica: &Replica) {
    wait("it answers from memory", async || status(&replica.get(ALL, ORG).await).starts_with("makegate; hit")).await;
}

fn status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or_default()
}

async fn without_lease(replica: &Replica) {
    wait(&format!("{} has no lease", replica.name), async || !replica.has_lease().await).await;
}

async fn readyz(replica: &Replica) -> String {
    let ready = replica.page("/readyz").await.unwrap().expect(200);
    ready.text().to_owned()
}

/// Events of its log, by name.
fn events(replica: &Replica) -> Vec<String> {
    let log = replica.log();
    log.iter().filter_map(|record| record["event"].as_str()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_engine_is_slow_memory_answers_and_all_else_waits() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet("").await;
    let replica = &fleet.replicas[0];
    replica.engine.set(LinkState::Delay(Duration::from_millis(60)));
    for number in 0..5 {
        let hit = replica.get(ALL, ORG).await.expect(200);
        assert!(status(&hit).starts_with("makegate; hit"), "{hit:?}");
        replica.send(ALL, "GET", OTHER, NO_STORE, "").await.unwrap().expect(200);
        replica.send(ALL, "PATCH", OTHER, &[], &format!(r#"{{"name":"n {number}"}}"#)).await.unwrap().expect(200);
    }
    assert!(replica.has_lease().await);
    let up = replica.metric("makegate_replicas_engine_up").await;
    assert_eq!(up, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_engine_nothing_is_answered_that_may_be_wrong() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = fleet("").await;
    fleet.engine.stop(Shutdown::Immediate);
    for replica in &fleet.replicas {
        // Until the lease ends, memory answers; a write is refused at once, or soon.
        let write = replica.send(ALL, "PATCH", ORG, &[], r#"{"name":"never"}"#).await.unwrap().refused(503, "MG241");
        assert_ne!(write.header("makegate-outcome"), Some("in-doubt"));
        without_lease(replica).await;
        let read = replica.get(ALL, ORG).await.refused(503, "MG241");
        assert_eq!(status(&read), "makegate; fwd=miss; detail=no-lease", "{read:?}");
        assert!(read.header("retry-after").is_some(), "{read:?}");
        replica.send(ALL, "GET", OTHER, NO_STORE, "").await.unwrap().refused(503, "MG241");
        replica.send(ALL, "GET", ORG, &["cache-control: max-stale=1000"], "").await.unwrap().refused(503, "MG241");
        assert!(readyz(replica).await.contains("[!] replicas"), "{}", readyz(replica).await);
        assert_eq!(replica.metric("makegate_replicas_engine_up").await, Some(0.0));
        assert_eq!(replica.metric("makegate_replicas_lease_seconds").await, Some(0.0));
        wait("its log has both events", async || {
            let events = events(replica);
            ["replicas-engine-lost", "replicas-lease-lost"].iter().all(|event| events.iter().any(|one| one == event))
        })
        .await;
    }
    let sent = fleet.sandbox.received_of("PATCH", ORG).len() + fleet.sandbox.received_of("GET", OTHER).len();
    assert_eq!(sent, 0, "something was sent");
    // It is back: another epoch, empty caches, and everything works.
    let epochs = fleet.replicas[0].metric("makegate_replicas_epochs_total").await.unwrap();
    fleet.engine.start_again();
    fleet.settled().await;
    fleet.open().await;
    for replica in &fleet.replicas {
        let read = replica.get(ALL, ORG).await.expect(200);
        assert!(!status(&read).contains("no-lease"), "{read:?}");
        assert!(!readyz(replica).await.contains("[!] replicas"), "{}", readyz(replica).await);
        assert_eq!(replica.metric("makegate_replicas_engine_up").await, Some(1.0));
    }
    assert!(fleet.replicas[0].metric("makegate_replicas_epochs_total").await.unwrap() > epochs);
    wait("its log has the event", async || events(&fleet.replicas[0]).iter().any(|event| event == "replicas-epoch"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_refuses_while_the_others_go_on() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet("").await;
    let [cut_off, other] = &fleet.replicas[..] else { panic!("two replicas") };
    cut_off.engine.set(LinkState::Cut);
    without_lease(cut_off).await;
    cut_off.get(ALL, ORG).await.refused(503, "MG241");
    assert!(other.has_lease().await);
    other.send(ALL, "PATCH", ORG, &[], r#"{"name":"by the other"}"#).await.unwrap().expect(200);
    wait("it is given up", async || fleet.sql("select gone from mg.member where replica = 'replica-0'") == "t").await;
    let page = other.page("/replicas.json").await.unwrap().expect(200).json();
    let states: Vec<(&str, &str)> = page["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states, [("replica-0", "gone"), ("replica-1", "live")]);
    fleet.heal();
    fleet.settled().await;
    wait("it answers", async || cut_off.get(ALL, ORG).await.status == 200).await;
    assert!(cut_off.get(ALL, ORG).await.text().contains("by the other"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_may_answer_from_memory_without_a_lease_and_says_so() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet("without = \"memory\"").await;
    let replica = &fleet.replicas[0];
    replica.engine.set(LinkState::Hold);
    without_lease(replica).await;
    let hit = replica.get(ALL, ORG).await.expect(200);
    assert!(status(&hit).starts_with("makegate; hit") && status(&hit).ends_with("; detail=unfenced"), "{hit:?}");
    // What is not in memory needs quota, and that needs the engine.
    replica.get(ALL, OTHER).await.refused(503, "MG241");
    replica.send(ALL, "PATCH", ORG, &[], r#"{"name":"x"}"#).await.unwrap().refused(503, "MG241");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserve_of_the_quota_is_for_replicas_without_the_engine() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().set("upstream", "quota = \"40/min\"\nquota_wait = \"0s\"");
    let plan = FleetPlan { replicas: 2, plan, section: "reserve = \"10%\"\nmax = 2", ..FleetPlan::default() };
    let fleet = plan.start().await;
    let [alone, other] = &fleet.replicas[..] else { panic!("two replicas") };
    for _ in 0..20 {
        let asked = [ALL, TOO, READER].map(|key| other.send(key, "GET", ORG, NO_STORE, ""));
        futures_util::future::join_all(asked).await;
    }
    let shared = fleet.sandbox.received_of("GET", ORG).len();
    assert!((30..=36).contains(&shared), "{shared}: a tenth is never granted");
    alone.engine.set(LinkState::Cut);
    without_lease(alone).await;
    let mut reserved = 0;
    for _ in 0..5 {
        let reply = alone.send(ALL, "GET", ORG, NO_STORE, "").await.unwrap();
        if reply.status != 200 {
            reply.refused(503, "MG241");
            break;
        }
        reserved += 1;
    }
    assert_eq!(reserved, 2, "its half of the tenth");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_under_way_waits_for_the_engine_and_is_in_doubt_at_its_deadline() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = fleet("").await;
    fleet.sandbox.fault(makegate::sandbox::Fault::always("PATCH", ORG, crate::support::HELD));
    let tasks = makegate::tasks::Tasks::new();
    let to = fleet.replicas[0].home.gateway;
    let write = tasks.spawn(async move {
        let headers = crate::support::with_key(ALL, &[]);
        crate::support::attempt(to, "PATCH", ORG, &headers, r#"{"name":"meanwhile"}"#).await.unwrap()
    });
    wait("it is with Make", async || fleet.sandbox.received_of("PATCH", ORG).len() == 1).await;
    fleet.engine.stop(Shutdown::Immediate);
    fleet.sandbox.clear_faults();
    let told = write.await.unwrap();
    assert_eq!((told.status, told.header("makegate-outcome")), (504, Some("in-doubt")), "{told:?}");
    let id = told.header("x-request-id").unwrap().to_owned();
    fleet.engine.start_again();
    fleet.settled().await;
    // Its replica knows how it ended, and tells when it can.
    for replica in &fleet.replicas {
        wait("it is settled everywhere", async || !replica.doubts().await.contains(&id)).await;
    }
    fleet.open().await;
    for replica in &fleet.replicas {
        wait("all see it", async || replica.get(ALL, ORG).await.text().contains("meanwhile")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_engines_clock_is_counted_and_ends() {
    if !Postgres::available() || !Postgres::clock_available() {
        return;
    }
    let fleet = FleetPlan { replicas: 2, plan, is_clocked: true, ..FleetPlan::default() }.start().await;
    let replica = &fleet.replicas[0];
    primed(replica).await;
    let before = replica.metric("makegate_replicas_engine_clock_steps_total").await.unwrap();
    fleet.engine.step_clock(3);
    wait("the step is noticed", async || {
        let hit = replica.get(ALL, ORG).await.expect(200);
        assert!(status(&hit).starts_with("makegate; hit"), "{hit:?}");
        // What asks the engine for a slot notices.
        let _answer = replica.send(ALL, "GET", OTHER, NO_STORE, "").await;
        replica.metric("makegate_replicas_engine_clock_steps_total").await.unwrap() > before
    })
    .await;
    wait("quota is granted again", async || replica.send(ALL, "GET", OTHER, NO_STORE, "").await.unwrap().status == 200)
        .await;
}
