//! Promise 9. The gateway's own pacing never draws a 429, and no caller can starve another of quota.

use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, ORG, Plan, TOO};

const NO_STORE: &[&str] = &["cache-control: no-store"];

fn tight(quota: &str) -> Plan {
    // However long the test takes, no slot comes back during it, so nobody waits for one.
    let plan =
        Plan::default().set("upstream", &format!("quota = \"{quota}\"\nquota_wait = \"0s\"")).clock(Clock::frozen());
    plan.sandbox(|s| {
        s.api_limit = 10;
        s.account_limit = 10;
    })
}

#[tokio::test]
async fn pacing_draws_no_429_and_says_when_to_retry() {
    let world = tight("10/min").start().await;
    let mut refused = None;
    for _ in 0..30 {
        let answer = world.get_with(ALL, ORG, NO_STORE).await;
        if answer.status == 429 {
            refused = Some(answer);
        }
    }
    let refused = refused.expect("nothing was refused").refused(429, "MG171");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(refused.header("ratelimit-policy").unwrap().starts_with("\"quota\";q=10"), "{refused:?}");
    assert!(refused.header("ratelimit").unwrap().starts_with("\"quota\";r=0;t="), "{refused:?}");
    let received = world.sandbox.received_of("GET", ORG);
    assert!(received.len() <= 10 && received.iter().all(|r| r.status == Some(200)), "{}", received.len());
    // Another organization has its own quota.
    world.get_with(ALL, "/api/v2/organizations/12", NO_STORE).await.expect(200);
}

#[tokio::test]
async fn a_flooding_caller_leaves_the_others_their_share() {
    let world = tight("10/min").start().await;
    for _ in 0..30 {
        world.get_with(ALL, ORG, NO_STORE).await;
    }
    let mut served = 0;
    for _ in 0..3 {
        if world.get_with(TOO, ORG, NO_STORE).await.status == 200 {
            served += 1;
        }
    }
    assert_eq!(served, 3, "a caller below its share was refused while another had flooded");
}

#[tokio::test]
async fn a_restart_forgets_no_slot() {
    let world = tight("10/min").start().await;
    for _ in 0..30 {
        world.get_with(ALL, ORG, NO_STORE).await;
    }
    let before = world.received("GET", ORG);
    let world = world.restart().await;
    for _ in 0..10 {
        world.get_with(TOO, ORG, NO_STORE).await;
        world.get_with(ALL, ORG, NO_STORE).await;
    }
    let received = world.sandbox.received_of("GET", ORG);
    assert!(received.len() <= 10, "{before} before the restart, {} in all", received.len());
    assert!(received.iter().all(|r| r.status == Some(200)));
}

#[tokio::test]
async fn the_quota_is_learned_from_the_organization_itself() {
    let world = Plan::default()
        .set("upstream", "quota = \"auto\"\nquota_wait = \"0s\"")
        .clock(Clock::frozen())
        .sandbox(|s| {
            s.api_limit = 5;
            for seed in &mut s.seed_organizations {
                seed.api_limit = None;
            }
        })
        .start()
        .await;
    for _ in 0..20 {
        world.get_with(ALL, ORG, NO_STORE).await;
    }
    let received = world.sandbox.received_of("GET", ORG);
    assert!(received.len() <= 5 && received.iter().all(|r| r.status == Some(200)), "{} went", received.len());
}

#[tokio::test]
async fn an_upstream_429_closes_the_bucket_for_as_long_as_it_says() {
    let world = Plan::default().set("upstream", "quota_wait = \"0s\"").clock(Clock::frozen()).start().await;
    let fault = FaultKind::status(429)
        .with_header("retry-after", "30")
        .with_body("Requests limit for organization exceeded, please try again later.");
    world.sandbox.fault(Fault::once("GET", ORG, fault));
    let answer = world.get_with(ALL, ORG, NO_STORE).await.expect(429);
    assert_eq!(answer.header("retry-after"), Some("30"));
    let sent = world.received("GET", ORG);
    world.get_with(ALL, ORG, NO_STORE).await.refused(429, "MG171");
    assert_eq!(world.received("GET", ORG), sent);
    world.clock.advance(Duration::from_secs(31));
    world.get_with(ALL, ORG, NO_STORE).await.expect(200);
}

#[tokio::test]
async fn a_stored_answer_stands_in_when_there_is_no_quota() {
    let world = tight("10/min").start().await;
    world.get(ALL, ORG).await.expect(200);
    for _ in 0..20 {
        world.get_with(ALL, ORG, NO_STORE).await;
        world.get_with(TOO, ORG, NO_STORE).await;
    }
    world.clock.advance(Duration::from_secs(5 * 60 + 1));
    // The window is over too, so spend it again.
    for _ in 0..20 {
        world.get_with(ALL, ORG, NO_STORE).await;
        world.get_with(TOO, ORG, NO_STORE).await;
    }
    let answer = world.get(ALL, ORG).await.expect(200);
    assert!(answer.header("cache-status").unwrap().starts_with("makegate; fwd=stale"), "{answer:?}");
}
