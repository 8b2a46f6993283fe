//! Promise 3 over all replicas: once a write's answer was sent by any of them, nobody reads the state before it at any other, however
//! the engine, the links and the replicas fare.

use std::time::Duration;

use makegate::sandbox::Fault;
use makegate::tasks::Tasks;

use crate::mixer::Faults;
use crate::rounds::rounds;
use crate::support::fleet::{Fleet, FleetPlan, wait};
use crate::support::link::LinkState;
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ALL, HELD, ORG, OTHER, Plan, Reply, attempt, with_key};

fn plan() -> Plan {
    // Whoever has no quota because of a mishap says so at once.
    Plan::default().set("upstream", "quota_wait = \"1s\"")
}

async fn fleet() -> Fleet {
    FleetPlan { plan, ..FleetPlan::default() }.start().await
}

fn named(reply: &Reply) -> String {
    reply.json()["organization"]["name"].as_str().unwrap().to_owned()
}

fn status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or_default()
}

/// Waits until a replica answers from memory.
async fn primed(fleet: &Fleet, replica: usize) {
    let replica = &fleet.replicas[replica];
    wait(&format!("{} answers from memory", replica.name), async || {
        let reply = replica.get(ALL, ORG).await;
        reply.status == 200 && status(&reply).starts_with("makegate; hit")
    })
    .await;
}

/// Writes a new name at the first replica until it is done there.
async fn write(fleet: &Fleet, name: &str) {
    wait("the write is done", async || {
        let reply = fleet.replicas[0].send(ALL, "PATCH", ORG, &[], &format!(r#"{{"name":"{name}"}}"#)).await.unwrap();
        assert!(reply.status == 200 || reply.header("makegate-outcome") != Some("done"), "{reply:?}");
        reply.status == 200
    })
    .await;
}

/// What a replica answers now is of this version, or says why there is nothing.
async fn shows(fleet: &Fleet, replica: usize, name: &str, when: &str) {
    let reply = fleet.replicas[replica].get(ALL, ORG).await;
    match reply.status {
        200 => assert_eq!(named(&reply), name, "{when}: {reply:?}"),
        503 => assert_eq!(reply.code(), "MG241", "{when}"),
        // The quota is closed until every replica has said what it has sent.
        429 => assert_eq!(reply.code(), "MG171", "{when}"),
        _ => panic!("{when}: {reply:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_at_one_replica_is_seen_at_all_whatever_their_links_do() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet().await;
    for round in 0..10 {
        primed(&fleet, 1).await;
        primed(&fleet, 2).await;
        let name = format!("healthy {round}");
        write(&fleet, &name).await;
        for replica in [1, 2] {
            let reply = fleet.replicas[replica].get(ALL, ORG).await.expect(200);
            assert_eq!(named(&reply), name, "{reply:?}");
        }
    }
    let slow = LinkState::Delay(Duration::from_millis(150));
    for state in [LinkState::Hold, LinkState::Deaf, LinkState::HalfOpen, LinkState::Cut, slow] {
        primed(&fleet, 1).await;
        fleet.replicas[1].engine.set(state);
        let name = format!("{state:?}");
        write(&fleet, &name).await;
        shows(&fleet, 1, &name, "its link is bad").await;
        fleet.heal();
        // What was held arrives now, in some order.
        for _ in 0..20 {
            shows(&fleet, 1, &name, "its link is good again").await;
        }
        fleet.settled().await;
        shows(&fleet, 1, &name, "it has a lease again").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_stopped_for_a_while_shows_nothing_old() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = fleet().await;
    primed(&fleet, 1).await;
    fleet.replicas[1].pause();
    write(&fleet, "written meanwhile").await;
    fleet.replicas[1].resume();
    for _ in 0..20 {
        shows(&fleet, 1, "written meanwhile", "it goes on").await;
    }
    fleet.settled().await;
    // So does the engine: what a replica believes must not outlive a pause of it.
    primed(&fleet, 1).await;
    fleet.engine.pause();
    tokio::time::sleep(fleet.lease.mul_f64(1.5)).await;
    let refused = fleet.replicas[1].get(ALL, ORG).await;
    assert_eq!((refused.status, refused.code()), (503, "MG241".to_owned()));
    fleet.engine.resume();
    fleet.settled().await;
    write(&fleet, "after the pause").await;
    for replica in 0..3 {
        shows(&fleet, replica, "after the pause", "the engine goes on").await;
    }
}

/// A rolling restart with another `replicas.lease` is such a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_outlasts_the_lease_of_a_replica_whose_lease_is_longer() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { plan, replicas: 2, ..FleetPlan::default() }.start().await;
    let other = &mut fleet.replicas[1];
    assert_eq!(other.end(), Some(0));
    let text = other.config_text();
    assert!(text.contains("lease = \"2000ms\""), "{text}");
    other.set_config_text(&text.replace("lease = \"2000ms\"", "lease = \"9s\""));
    other.start().await;
    fleet.settled().await;
    for round in 0..3 {
        primed(&fleet, 1).await;
        fleet.replicas[1].engine.set(LinkState::Hold);
        let name = format!("round {round}");
        write(&fleet, &name).await;
        for _ in 0..20 {
            shows(&fleet, 1, &name, "its lease was longer than the writer's").await;
        }
        fleet.heal();
        fleet.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_engine_loses_no_fence() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = fleet().await;
    let tasks = Tasks::new();
    for crash in 0..4 {
        for replica in [1, 2] {
            primed(&fleet, replica).await;
        }
        // A write is with Make while the engine crashes: it has its slot, and needs its fences afterwards.
        fleet.sandbox.fault(Fault::always("PATCH", ORG, HELD));
        let name = format!("after crash {crash}");
        let (to, body) = (fleet.replicas[0].home.gateway, format!(r#"{{"name":"{name}"}}"#));
        let write = tasks.spawn(async move { attempt(to, "PATCH", ORG, &with_key(ALL, &[]), &body).await.unwrap() });
        wait("the write is with Make", async || {
            fleet.sandbox.received_of("PATCH", ORG).last().is_some_and(|last| last.body.contains(&name))
        })
        .await;
        // One replica does not even notice, and answers from memory as long as its lease lasts.
        fleet.replicas[2].engine.set(LinkState::Hold);
        match crash % 2 {
            0 => fleet.engine.kill_backend(),
            _ => fleet.engine.restart(Shutdown::Immediate),
        }
        fleet.sandbox.clear_faults();
        write.await.unwrap().expect(200);
        for replica in [1, 2] {
            shows(&fleet, replica, &name, "after a crash").await;
        }
        fleet.heal();
        fleet.settled().await;
        for replica in [1, 2] {
            shows(&fleet, replica, &name, "all is well again").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_at_one_replica_is_one_at_all() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet().await;
    for replica in 0..3 {
        primed(&fleet, replica).await;
        let other = &fleet.replicas[replica];
        wait("the other organization is in memory", async || {
            status(&other.get(ALL, OTHER).await).starts_with("makegate; hit")
        })
        .await;
    }
    let purge = async |body: &str| {
        let headers = format!("authorization: Bearer {}\r\n", crate::support::OPERATOR);
        let to = fleet.replicas[0].home.operator;
        crate::support::send(to, "POST", "/cache/purge", &headers, body).await.expect(200)
    };
    purge(r#"{"tag":"org:11"}"#).await;
    for replica in &fleet.replicas {
        let reply = replica.get(ALL, ORG).await.expect(200);
        assert!(!status(&reply).starts_with("makegate; hit"), "{}: {reply:?}", replica.name);
        let reply = replica.get(ALL, OTHER).await.expect(200);
        assert!(status(&reply).starts_with("makegate; hit"), "{}: {reply:?}", replica.name);
    }
    purge(r#"{"all":true}"#).await;
    for replica in &fleet.replicas {
        let reply = replica.get(ALL, OTHER).await.expect(200);
        assert!(!status(&reply).starts_with("makegate; hit"), "{}: {reply:?}", replica.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_random_every_promise_holds_while_links_replicas_and_engine_fail() {
    rounds(Faults { kills: true, crashes: true, steps: false }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_random_every_promise_holds_while_the_engines_clock_jumps() {
    rounds(Faults { kills: false, crashes: false, steps: true }).await;
}
