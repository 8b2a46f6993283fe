//! From one replica to several, from one release to the next, and who must not take part.

use makegate::sandbox::{Fault, FaultKind, SandboxSettings};

use crate::support::fleet::{DATABASE, Fleet, FleetPlan, wait};
use crate::support::link::LinkState;
use crate::support::postgres::Postgres;
use crate::support::{ALL, LIST, ORG, Plan, READER, TOO};

const NEW: &str = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;

async fn prepared(plan: FleetPlan) -> Fleet {
    let engine = Postgres::start(&[]);
    engine.database(DATABASE);
    plan.prepare(engine).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_knew_all_know_when_it_takes_part() {
    if !Postgres::available() {
        return;
    }
    let plan = FleetPlan {
        replicas: 2,
        plan: || Plan::default().set("upstream", "look = false\nquota = \"20/min\"\nquota_wait = \"0s\""),
        sandbox: |sandbox: &mut SandboxSettings| {
            sandbox.window = makegate::sandbox::MinuteWindow::Sliding;
            sandbox.seed_organizations.iter_mut().for_each(|seed| seed.api_limit = Some(20));
        },
        ..FleetPlan::default()
    };
    let mut fleet = prepared(plan).await;
    // Alone, without [replicas]: a write that is done, one in doubt, and a part of the quota.
    let with = fleet.replicas[0].config_text();
    let (without, section) = with.split_once("[replicas]").unwrap();
    assert!(section.contains("key_file"), "{section}");
    fleet.replicas[0].set_config_text(without);
    fleet.replicas[0].start().await;
    let alone = &fleet.replicas[0];
    let done = alone.send(ALL, "POST", LIST, &["idempotency-key: k"], NEW).await.unwrap().expect(200);
    fleet.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
    let equal = NEW.replace("\"n\"", "\"d\"");
    let doubt = alone.send(ALL, "POST", LIST, &[], &equal).await.unwrap().refused(502, "MG222");
    let doubt = doubt.header("x-request-id").unwrap();
    for _ in 0..15 {
        for key in [ALL, TOO, READER] {
            alone.send(key, "GET", ORG, &["cache-control: no-store"], "").await.unwrap();
        }
    }
    assert!(fleet.sandbox.received_of("GET", ORG).len() > 10);
    assert_eq!(fleet.replicas[0].end(), Some(0));
    fleet.replicas[0].set_config_text(&with);
    fleet.init();
    for replica in &mut fleet.replicas {
        replica.start().await;
    }
    fleet.settled().await;
    for replica in &fleet.replicas {
        wait("the key is known", async || {
            let again = replica.send(ALL, "POST", LIST, &["idempotency-key: k"], NEW).await.unwrap();
            again.status == 200 && again.header("idempotent-replayed") == Some("true") && again.body == done.body
        })
        .await;
        let held = replica.send(ALL, "POST", LIST, &[], &equal).await.unwrap().refused(409, "MG161");
        assert!(held.text().contains(doubt), "{held:?}");
    }
    for _ in 0..20 {
        fleet.replicas[1].send(ALL, "GET", ORG, &["cache-control: no-store"], "").await.unwrap();
    }
    let received = fleet.sandbox.received();
    assert!(received.iter().all(|received| received.status != Some(429)), "the quota of before was forgotten");
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 2);
    // Its records so far are shipped as well.
    crate::rounds::shipped(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_after_the_other_is_restarted_and_callers_notice_nothing() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { replicas: 2, ..FleetPlan::default() }.start().await;
    for round in 0..2 {
        for restarted in 0..2 {
            assert_eq!(fleet.replicas[restarted].end(), Some(0));
            let other = &fleet.replicas[1 - restarted];
            // Whoever leaves in order is waited for by nobody.
            let body = format!(r#"{{"name":"{round} {restarted}"}}"#);
            other.send(ALL, "PATCH", ORG, &[], &body).await.unwrap().expect(200);
            other.get(ALL, ORG).await.expect(200);
            fleet.replicas[restarted].start().await;
            fleet.settled().await;
            let reply = fleet.replicas[restarted].get(ALL, ORG).await.expect(200);
            assert!(reply.text().contains(&format!("{round} {restarted}")), "{reply:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_take_part_is_told_why_and_answers_nothing() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = prepared(FleetPlan { replicas: 3, ..FleetPlan::default() }).await;
    let refused = |fleet: &Fleet, replica: usize, why: &str| {
        let told = fleet.replicas[replica].refuses_to_start();
        assert!(told.contains(why), "{told}");
    };
    // Without a schema, or with that of another version.
    fleet.init();
    fleet.sql("update mg.about set version = version - 1");
    refused(&fleet, 0, "makegate replicas init");
    fleet.sql("update mg.about set version = version + 2, works_with = works_with + 1");
    refused(&fleet, 0, "start a newer makegate");
    // A newer one that this makegate can use: the next release has prepared it, and not every replica has been upgraded.
    fleet.sql("update mg.about set works_with = works_with - 1");
    fleet.replicas[0].start().await;
    fleet.settled().await;
    // With another key.
    let key = fleet.replicas[1].home.path().join("replicas.key");
    std::fs::write(&key, [7; 32]).unwrap();
    refused(&fleet, 1, "key_file is not the key that the other replicas use");
    std::fs::copy(fleet.replicas[0].home.path().join("replicas.key"), &key).unwrap();
    // As one too many.
    let text = fleet.replicas[1].config_text();
    fleet.replicas[1].set_config_text(&text.replace("[replicas]\n", "[replicas]\nmax = 1\n"));
    refused(&fleet, 1, "there are 1 other replicas, and replicas.max is 1");
    fleet.replicas[1].set_config_text(&text);
    // With a name that another one has.
    let text = fleet.replicas[2].config_text().replace("\"replica-2\"", "\"replica-0\"");
    fleet.replicas[2].set_config_text(&text);
    refused(&fleet, 2, "give each replica its own replicas.name");
    // If the engine was out of reach at that moment, it starts, and takes no part.
    fleet.replicas[2].engine.set(LinkState::Cut);
    fleet.replicas[2].start().await;
    fleet.replicas[2].engine.set(LinkState::Open);
    let twin = &fleet.replicas[2];
    wait("it says why", async || twin.home.process_log().contains("give each replica its own replicas.name")).await;
    twin.get(ALL, ORG).await.refused(503, "MG241");
    let ready = twin.page("/readyz").await.unwrap().expect(200);
    assert!(ready.text().contains("[!] replicas"), "{ready:?}");
    assert!(fleet.replicas[0].has_lease().await, "the one that was first goes on");
}
