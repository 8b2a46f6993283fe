//! Callers' rates over all replicas: burst + rate × time, whoever is asked, and a fraction of it where the database cannot be asked.

use std::time::Duration;

use makegate::clock::Clock;
use tokio::task::JoinSet;

use crate::support::fleet::{Fleet, FleetPlan, wait};
use crate::support::link::LinkState;
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ORG, Plan, attempt, with_key};

/// Twenty a second, and ten at once.
const FAST: &str = "fast";
const RATE: f64 = 20.0;
const BURST: f64 = 10.0;
/// One at once.
const SINGLE: &str = "single";

fn plan() -> Plan {
    let grants = "grants = [\"organizations:read\"]\n";
    Plan::default()
        .caller(FAST, &format!("{grants}rate = \"20/s\"\nburst = 10\n"))
        .caller(SINGLE, &format!("{grants}rate = \"20/s\"\nburst = 1\n"))
}

async fn three(section: &'static str) -> Fleet {
    let engine = Postgres::start(&[]);
    FleetPlan { plan, section, ..FleetPlan::default() }.start_on(engine).await
}

/// Floods all replicas for a while; the number of requests admitted, and how long it took.
async fn flood(fleet: &Fleet, key: &'static str, rounds: usize) -> (usize, Duration) {
    let clock = Clock::system();
    let began = clock.now();
    let mut floods = JoinSet::new();
    for replica in &fleet.replicas {
        for _ in 0..3 {
            let door = replica.home.gateway;
            floods.spawn(async move {
                let mut admitted = 0;
                for _ in 0..rounds {
                    let reply = attempt(door, "GET", ORG, &with_key(key, &[]), "").await.expect("an answer");
                    match reply.status {
                        429 => {
                            assert!(reply.header("retry-after").is_some(), "{reply:?}");
                            assert!(reply.header("ratelimit").is_some_and(|left| left.contains("r=0;")), "{reply:?}");
                        }
                        200 => admitted += 1,
                        other => panic!("{other}: {reply:?}"),
                    }
                    assert_eq!(reply.header("ratelimit-policy").map(|policy| policy.contains("q=20;w=1")), Some(true));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                admitted
            });
        }
    }
    let mut admitted = 0;
    while let Some(one) = floods.join_next().await {
        admitted += one.unwrap();
    }
    (admitted, clock.now().saturating_duration_since(began))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_together_keep_a_callers_rate() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = three("").await;
    for (key, burst) in [(FAST, BURST), (SINGLE, 1.0)] {
        let (admitted, took) = flood(&fleet, key, 100).await;
        let most = burst + RATE * took.as_secs_f64();
        assert!(admitted as f64 <= most, "{key}: {admitted} in {took:?}: {}", fleet.logs());
        assert!(admitted as f64 >= burst + RATE * 0.5, "{key}: {admitted} in {took:?}");
    }
    // What the engine forgets in a crash it does not grant twice.
    let clock = Clock::system();
    let began = clock.now();
    let (before, _) = flood(&fleet, FAST, 20).await;
    fleet.engine.restart(Shutdown::Immediate);
    fleet.settled().await;
    let (after, _) = flood(&fleet, FAST, 20).await;
    let took = clock.now().saturating_duration_since(began).as_secs_f64();
    // At each switch there may be one burst more; here every replica may have lost its lease and got it back.
    assert!((before + after) as f64 <= 3.0 * BURST + RATE * took, "{before} + {after} in {took} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_a_replica_has_its_fraction() {
    if !Postgres::available() {
        return;
    }
    let fleet = three("max = 10\nwithout = \"memory\"").await;
    for replica in &fleet.replicas {
        let reply = replica.get(FAST, ORG).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        replica.engine.set(LinkState::Cut);
    }
    for replica in &fleet.replicas {
        wait("its lease ends", async || !replica.has_lease().await).await;
    }
    let (admitted, took) = flood(&fleet, FAST, 50).await;
    // Two a second and one at once, at each of three.
    assert!(admitted as f64 <= 3.0 * (1.0 + 2.0 * took.as_secs_f64()), "{admitted} in {took:?}");
    assert!(admitted >= 3, "{admitted}");
    let mut last = fleet.replicas[0].get(FAST, ORG).await;
    for _ in 0..100 {
        if last.status == 429 {
            break;
        }
        last = fleet.replicas[0].get(FAST, ORG).await;
    }
    let refused = last.refused(429, "MG141");
    assert!(refused.text().contains("one part in 10 of the caller's rate"), "{refused:?}");
}
