//! Promise 5 over all replicas: replicas and the engine are killed (SIGKILL) while they write, again and again on the same folders, and
//! no write is forgotten.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use makegate::hash;
use makegate::sandbox::Received;
use makegate::tasks::Tasks;

use crate::history::{forgotten, sent_twice};
use crate::rounds::known_by_all;
use crate::support::fleet::{Fleet, FleetPlan};
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::random::number;
use crate::support::{ALL, Plan, VARIABLES, attempt, until, with_key};

/// Number of rounds; nightly runs set more.
fn count() -> u64 {
    number("MAKEGATE_CRASHES").unwrap_or(4)
}

/// Writes one variable after the other, until nobody answers.
async fn write(to: SocketAddr, name: String) {
    for number in 0..500 {
        let body = format!(r#"{{"typeId":2,"name":"{name}_{number}","value":"x"}}"#);
        if attempt(to, "POST", VARIABLES, &with_key(ALL, &[]), &body).await.is_none() {
            return;
        }
    }
}

fn assert_each_was_intended(fleet: &Fleet, received: &[Received]) {
    let intended: BTreeSet<String> = fleet
        .replicas
        .iter()
        .flat_map(|replica| replica.log())
        .filter(|record| record["kind"] == "intent")
        .map(|record| record["fields"]["name"].as_str().unwrap().to_owned())
        .collect();
    for received in received {
        let body: serde_json::Value = serde_json::from_str(&received.body).unwrap();
        assert!(intended.contains(body["name"].as_str().unwrap()), "{body} went upstream without an intent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_with_or_without_the_engine_no_write_is_forgotten_or_doubled() {
    if !Postgres::available() {
        return;
    }
    let seed = number("MAKEGATE_SEED").unwrap_or_else(|| u64::from(u32::from_ne_bytes(hash::random().unwrap())));
    println!("MAKEGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let plan = || {
        Plan::default()
            .set("upstream", "quota = \"1000000/min\"\nlook = false")
            .set("upstream", "write_deadline = \"10s\"\nwrite_attempt = \"3s\"")
    };
    let sandbox = |sandbox: &mut makegate::sandbox::SandboxSettings| sandbox.api_limit = 1_000_000;
    let mut fleet = FleetPlan { plan, sandbox, ..FleetPlan::default() }.start().await;
    let tasks = Tasks::new();
    for round in 0..count() {
        let enough = fleet.sandbox.effects("POST", VARIABLES) + 1 + random.usize(..30);
        for writer in 0..6 {
            tasks.spawn(write(fleet.replicas[writer % 3].home.gateway, format!("v_{round}_{writer}")));
        }
        until(|| fleet.sandbox.effects("POST", VARIABLES) >= enough).await;
        tokio::time::sleep(Duration::from_micros(random.u64(..8_000))).await;
        // One of them, two, or all; the engine before them, after them, or not at all.
        let (last, engine) = (random.usize(1..=3), random.u64(..3));
        if engine == 1 {
            fleet.engine.stop(Shutdown::Immediate);
        }
        fleet.replicas[..last].iter_mut().for_each(|replica| replica.kill());
        match engine {
            1 => fleet.engine.start_again(),
            2 => fleet.engine.restart(Shutdown::Immediate),
            _ => {}
        }
        for replica in &mut fleet.replicas[..last] {
            replica.start().await;
        }
        fleet.settled().await;
    }
    for replica in &mut fleet.replicas {
        replica.kill();
    }
    assert!(tasks.drained(Duration::from_secs(120)).await, "a writer is stuck");
    for replica in &mut fleet.replicas {
        replica.start().await;
    }
    fleet.settled().await;
    let received = fleet.sandbox.received_of("POST", VARIABLES);
    let doubled = sent_twice(received.iter().map(|received| received.body.as_str()));
    assert!(doubled.is_empty(), "MAKEGATE_SEED={seed}: {doubled:#?}");
    let mut found = Vec::new();
    let mut seen = (0, 0);
    for _ in 0..120 {
        let known = known_by_all(&fleet).await;
        found = forgotten(&known, &BTreeSet::new());
        seen = (known.intended.len(), known.doubts[0].len());
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(found.is_empty(), "MAKEGATE_SEED={seed}: {found:#?}\n{}", fleet.logs());
    assert_each_was_intended(&fleet, &received);
    println!("{} intents, {} in doubt, {} seen upstream", seen.0, seen.1, received.len());
}
