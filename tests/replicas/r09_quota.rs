//! Promise 9 over all replicas: together they send no more than Make allows, through crashes of replicas and of the engine, and a
//! caller's rate is one rate, at however many replicas it calls.

use makegate::clock::Clock;
use makegate::sandbox::{MinuteWindow, SandboxSettings};

use crate::history::over_quota;
use crate::support::fleet::{Fleet, FleetPlan, Replica, wait};
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ALL, ORG, OTHER, Plan, READER, TOO};

/// Of each organization.
const LIMIT: usize = 20;

fn tight() -> FleetPlan {
    FleetPlan {
        plan: || Plan::default().set("upstream", "quota = \"20/min\"\nquota_wait = \"2s\""),
        sandbox: |sandbox: &mut SandboxSettings| {
            (sandbox.api_limit, sandbox.account_limit) = (20, 20);
            sandbox.window = MinuteWindow::Sliding;
            sandbox.seed_organizations.iter_mut().for_each(|seed| seed.api_limit = Some(20));
        },
        ..FleetPlan::default()
    }
}

/// Asks each replica that runs so often, at once; how many were answered by Make.
async fn hammer(replicas: &[Replica], target: &str, times: usize) -> usize {
    let running = replicas.iter().filter(|replica| replica.runs());
    let all = running.flat_map(|replica| {
        (0..times).map(move |number| {
            let key = [ALL, TOO, READER][number % 3];
            replica.send(key, "GET", target, &["cache-control: no-store"], "")
        })
    });
    let replies = futures_util::future::join_all(all).await;
    replies.iter().flatten().filter(|reply| reply.status == 200).count()
}

fn check(fleet: &Fleet) {
    let received = fleet.sandbox.received();
    let drawn = received.iter().filter(|received| received.status == Some(429)).count();
    assert_eq!(drawn, 0, "Make turned requests away\n{}", fleet.logs());
    for target in [ORG, OTHER] {
        let arrivals: Vec<i64> = fleet.sandbox.received_of("GET", target).iter().map(|one| one.time_ms).collect();
        let found = over_quota(&arrivals, LIMIT, 60_000);
        assert!(found.is_empty(), "{target}: {found:?}\n{}", fleet.logs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_replicas_share_one_quota_and_can_use_all_of_it() {
    if !Postgres::available() {
        return;
    }
    let fleet = tight().start().await;
    // All who may call do, so nothing is kept for a newcomer: all but what the division leaves is used at once.
    wait("the quota is used", async || {
        hammer(&fleet.replicas, ORG, 9).await;
        check(&fleet);
        fleet.sandbox.received_of("GET", ORG).len() >= LIMIT - 2
    })
    .await;
    // Another organization has its own.
    assert!(hammer(&fleet.replicas, OTHER, 3).await > 0);
    check(&fleet);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crash_forgets_a_slot() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = tight().start().await;
    assert!(hammer(&fleet.replicas, ORG, 4).await > 0);
    fleet.engine.kill_backend();
    hammer(&fleet.replicas, ORG, 4).await;
    check(&fleet);
    fleet.settled().await;
    hammer(&fleet.replicas, ORG, 4).await;
    check(&fleet);
    // A replica that dies takes what it has sent with it, and what it comes back with is in its journal.
    fleet.replicas[0].kill();
    hammer(&fleet.replicas, ORG, 8).await;
    check(&fleet);
    fleet.engine.restart(Shutdown::Immediate);
    hammer(&fleet.replicas, ORG, 8).await;
    check(&fleet);
    fleet.replicas[0].start().await;
    fleet.settled().await;
    for _ in 0..3 {
        hammer(&fleet.replicas, ORG, 8).await;
        check(&fleet);
    }
    // All at once.
    for replica in &mut fleet.replicas {
        replica.kill();
    }
    fleet.engine.restart(Shutdown::Immediate);
    for replica in &mut fleet.replicas {
        replica.start().await;
    }
    fleet.settled().await;
    hammer(&fleet.replicas, ORG, 8).await;
    check(&fleet);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_engines_clock_brings_no_slot_back() {
    if !Postgres::available() || !Postgres::clock_available() {
        return;
    }
    let fleet = FleetPlan { is_clocked: true, ..tight() }.start().await;
    for seconds in [0, 300, -300, 70, 0] {
        fleet.engine.step_clock(seconds);
        for _ in 0..2 {
            hammer(&fleet.replicas, ORG, 4).await;
            check(&fleet);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_only_idle_replicas_could_notice_brings_no_slot_back() {
    if !Postgres::available() || !Postgres::clock_available() {
        return;
    }
    let mut fleet = FleetPlan { is_clocked: true, replicas: 2, ..tight() }.start().await;
    for target in [ORG, OTHER] {
        wait("the quota is used", async || {
            hammer(&fleet.replicas[..1], target, LIMIT).await;
            fleet.sandbox.received_of("GET", target).len() >= LIMIT - 2
        })
        .await;
    }
    let ask = async |fleet: &Fleet, target| {
        for running in [&fleet.replicas[1..], &fleet.replicas] {
            hammer(running, target, LIMIT).await;
            check(fleet);
        }
    };
    // One that has asked for nothing yet knows the clock from its beats alone.
    assert_eq!(fleet.replicas[1].end(), Some(0));
    fleet.replicas[1].start().await;
    fleet.settled().await;
    fleet.engine.step_clock(300);
    ask(&fleet, ORG).await;
    // One that starts after the step knows nothing.
    assert_eq!(fleet.replicas[1].end(), Some(0));
    let steps = "makegate_replicas_engine_clock_steps_total";
    let before = fleet.replicas[0].metric(steps).await.unwrap();
    fleet.engine.step_clock(600);
    wait("the step is noticed", async || fleet.replicas[0].metric(steps).await.unwrap() > before).await;
    fleet.replicas[1].start().await;
    fleet.settled().await;
    ask(&fleet, OTHER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_rate_is_one_rate_at_all_replicas() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().caller("key-slow", "grants = [\"*\"]\nrate = \"600/min\"\nburst = 30\n");
    let fleet = FleetPlan { plan, ..FleetPlan::default() }.start().await;
    let clock = Clock::system();
    let start = clock.now();
    let mut admitted = 0;
    // A young epoch grants what its age allows, so the burst is not there at once.
    wait("more than the burst is admitted", async || {
        let all =
            fleet.replicas.iter().flat_map(|replica| (0..20).map(|_| replica.send("key-slow", "GET", ORG, &[], "")));
        let replies = futures_util::future::join_all(all).await;
        let (passed, refused): (Vec<_>, Vec<_>) = replies.into_iter().flatten().partition(|reply| reply.status == 200);
        admitted += passed.len();
        assert!(refused.iter().all(|reply| reply.code() == "MG141"), "{:?}", refused.first());
        let most = 30.0 + 10.0 * clock.now().duration_since(start).as_secs_f64();
        assert!(admitted as f64 <= most, "{admitted} of at most {most}");
        admitted > 60
    })
    .await;
}
