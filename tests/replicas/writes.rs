//! Promises 4, 5 and 12 over several replicas: a key counts everywhere, no write is sent twice, and what nobody knows the end of is in
//! doubt at every replica, whoever sent it and whatever became of that one.

use futures_util::future::{join_all, select};
use std::pin::pin;

use makegate::sandbox::{Fault, FaultKind};
use serde_json::Value;

use crate::support::fleet::{Fleet, FleetPlan, Replica, wait};
use crate::support::link::LinkState;
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ALL, Plan, Reply, VARIABLES, until};

fn no_looks() -> Plan {
    Plan::default().set("upstream", "look = false")
}

fn variable(name: &str) -> String {
    format!(r#"{{"typeId":2,"name":"{name}","value":"x"}}"#)
}

async fn create(replica: &Replica, headers: &[&str], name: &str) -> Reply {
    let sent = replica.send(ALL, "POST", VARIABLES, headers, &variable(name)).await;
    sent.unwrap_or_else(|| panic!("no answer from {}", replica.name))
}

/// The same, as soon as writes go on.
async fn create_once_open(replica: &Replica, headers: &[&str], name: &str) -> Reply {
    let mut last = create(replica, headers, name).await;
    for _ in 0..2_000 {
        if last.status != 503 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        last = create(replica, headers, name).await;
    }
    last
}

fn sent(fleet: &Fleet) -> usize {
    fleet.sandbox.received_of("POST", VARIABLES).len()
}

fn settlements(replica: &Replica) -> Vec<Value> {
    replica.log().into_iter().filter(|record| record["kind"] == "settlement").collect()
}

/// Starts a write at a replica that Make never answers, and kills the replica.
async fn die_in_a_write(fleet: &mut Fleet, at: usize, headers: &[&str], name: &str) {
    fleet.sandbox.fault(Fault::once("POST", VARIABLES, FaultKind::Hang { effect: false }));
    let (before, body) = (sent(fleet), variable(name));
    {
        let write = pin!(fleet.replicas[at].send(ALL, "POST", VARIABLES, headers, &body));
        let arrived = pin!(until(|| sent(fleet) > before));
        assert!(matches!(select(write, arrived).await, futures_util::future::Either::Right(_)), "it was answered");
    }
    fleet.replicas[at].kill();
    fleet.sandbox.clear_faults();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_counts_at_every_replica() {
    if !Postgres::available() {
        return;
    }
    let fleet = FleetPlan { plan: no_looks, ..FleetPlan::default() }.start().await;
    let [a, b, c] = &fleet.replicas[..] else { panic!() };
    let key = ["idempotency-key: k-1"];
    let first = create_once_open(a, &key, "one").await.expect(200);
    let again = create_once_open(b, &key, "one").await.expect(200);
    assert_eq!((first.text(), again.header("idempotent-replayed")), (again.text(), Some("true")));
    create_once_open(c, &key, "another").await.refused(422, "MG163");
    assert_eq!(sent(&fleet), 1);
    // Ten writes with one key at three replicas at once: one is sent, and the others hear that it is, or its answer.
    let race = (0..10).map(|n| create(&fleet.replicas[n % 3], &["idempotency-key: k-2"], "two"));
    let answers = join_all(race).await;
    assert_eq!(sent(&fleet), 2, "{answers:?}");
    assert!(answers.iter().any(|answer| answer.status == 200), "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 409)), "{answers:?}");
    // A rejected write's answer counts as well.
    let odd = r#"{"typeId":2,"value":"x"}"#;
    for replica in [b, a] {
        let answer = replica.send(ALL, "POST", VARIABLES, &["idempotency-key: k-3"], odd).await.unwrap();
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    assert_eq!(sent(&fleet), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_a_replica_that_died_is_in_doubt_everywhere_and_settled_from_any() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { plan: no_looks, ..FleetPlan::default() }.start().await;
    create_once_open(&fleet.replicas[0], &[], "warm").await.expect(200);
    die_in_a_write(&mut fleet, 0, &["x-request-id: job-1"], "lost").await;
    let key = ["idempotency-key: k-lost", "x-request-id: job-2"];
    let [_, b, c] = &fleet.replicas[..] else { panic!() };
    for replica in [b, c] {
        wait("the write is in doubt there", async || replica.doubts().await.contains(&"job-1".to_owned())).await;
        create(replica, &[], "lost").await.refused(409, "MG161");
    }
    // Its request id is taken: another write gets a new one.
    let other = create(b, &["x-request-id: job-1"], "other").await.expect(200);
    assert_ne!(other.header("x-request-id"), Some("job-1"));
    // Whoever adopted it has it in its log; the other one settles it.
    let adopted = |replica: &Replica| replica.log().iter().any(|record| record["event"] == "adopted");
    let (adopter, settler) = if adopted(b) { (b, c) } else { (c, b) };
    assert!(adopted(adopter) && !adopted(settler));
    let body = r#"{"as": "not-done", "note": "it is not there"}"#;
    settler.operate("POST", "/doubts/job-1", body).await.unwrap().expect(200);
    settler.operate("POST", "/doubts/job-1", body).await.unwrap().expect(404);
    wait("the adopter records the settlement", async || !settlements(adopter).is_empty()).await;
    let [settlement] = &settlements(adopter)[..] else { panic!() };
    let detail = settlement["detail"].as_str().unwrap();
    assert!(detail.contains(&settler.name) && detail.contains("it is not there"), "{settlement}");
    assert_eq!((&settlement["request"], &settlement["outcome"]), (&"job-1".into(), &"rejected".into()));
    for replica in [b, c] {
        wait("nothing is in doubt any more", async || replica.doubts().await.is_empty()).await;
    }
    create(b, &key, "lost").await.expect(200);
    // The one that died finds it settled.
    let a = &mut fleet.replicas[0];
    a.start().await;
    wait("the owner records the settlement", async || !settlements(a).is_empty()).await;
    assert!(a.doubts().await.is_empty());
    for replica in &fleet.replicas {
        replica.flushed().await;
        let log = replica.home.path().join("audit");
        let report = makegate::audit::verify(&log, &makegate::audit::AuditorInput::default(), &mut |_, _| {}).unwrap();
        assert!(report.problems.is_empty(), "{report:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_settles_its_write_by_its_own_outcome() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { plan: no_looks, replicas: 2, ..FleetPlan::default() }.start().await;
    create_once_open(&fleet.replicas[0], &[], "warm").await.expect(200);
    fleet.sandbox.fault(Fault::once("POST", VARIABLES, FaultKind::Latency { ms: 6_000 }));
    let [a, b] = &fleet.replicas[..] else { panic!() };
    let headers = ["idempotency-key: k-slow", "x-request-id: slow"];
    let body = variable("slow");
    let write = a.send(ALL, "POST", VARIABLES, &headers, &body);
    let meanwhile = async {
        until(|| sent(&fleet) == 2).await;
        a.engine.set(LinkState::Hold);
        wait("it is in doubt elsewhere", async || b.doubts().await.contains(&"slow".to_owned())).await;
        create(b, &["idempotency-key: k-slow"], "slow").await.refused(409, "MG164");
        a.engine.set(LinkState::Open);
    };
    let (_answered, ()) = tokio::join!(write, meanwhile);
    wait("it is settled by its own outcome", async || !settlements(b).is_empty()).await;
    let [settlement] = &settlements(b)[..] else { panic!() };
    assert_eq!(settlement["outcome"], "done");
    let again = create_once_open(b, &["idempotency-key: k-slow"], "slow").await.expect(200);
    assert_eq!((again.header("idempotent-replayed"), sent(&fleet)), (Some("true"), 2), "it was sent once");
    fleet.replicas.clear();
}

/// A write of the first replica that its log calls done, and the second one a doubt: the first one was killed before the engine had heard
/// of the end.
async fn killed_before_the_engine_heard_the_end(fleet: &mut Fleet, headers: &[&str], name: &str) {
    create_once_open(&fleet.replicas[0], headers, name).await.expect(200);
    fleet.replicas[0].kill();
    let begun = "state = 'u', done = null, status = null, head = null, body = null, ended = null";
    fleet.sql(&format!("update mg.write set {begun} where request = '{name}'"));
    let b = &fleet.replicas[1];
    wait("it is in doubt elsewhere", async || b.doubts().await.contains(&name.to_owned())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_killed_before_the_engine_heard_the_end_tells_it_later() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { plan: no_looks, replicas: 2, ..FleetPlan::default() }.start().await;
    let key = ["idempotency-key: k-ended", "x-request-id: ended"];
    killed_before_the_engine_heard_the_end(&mut fleet, &key, "ended").await;
    fleet.replicas[0].start().await;
    let b = &fleet.replicas[1];
    wait("the other one hears how it ended", async || settlements(b).len() == 1).await;
    let settlement = &settlements(b)[0];
    let told = (&settlement["outcome"], &settlement["detail"]);
    assert_eq!(told, (&"done".into(), &"replica-0 has recorded how it ended".into()));
    let again = create_once_open(b, &key[..1], "ended").await.expect(200);
    assert_eq!((again.header("idempotent-replayed"), sent(&fleet)), (Some("true"), 1));

    // The engine forgets that write as well, and hears of it from the one that adopted it, after the one that sent it had its say.
    killed_before_the_engine_heard_the_end(&mut fleet, &["x-request-id: forgotten"], "forgotten").await;
    fleet.replicas[1].engine.set(LinkState::Hold);
    fleet.sql("delete from mg.write where request = 'forgotten'");
    fleet.engine.restart(Shutdown::Immediate);
    fleet.replicas[0].start().await;
    // What it answers without the quota, once it has told the engine all that it knows.
    create_once_open(&fleet.replicas[0], &key[..1], "ended").await.expect(200);
    assert_eq!(fleet.sql("select count(*) from mg.write where request = 'forgotten'"), "0");
    fleet.heal();
    wait("the other one hears how it ended", async || settlements(&fleet.replicas[1]).len() == 2).await;
    assert_eq!(settlements(&fleet.replicas[1])[0]["outcome"], "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_tells_what_only_its_log_knows() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { plan: no_looks, replicas: 2, ..FleetPlan::default() }.start().await;
    killed_before_the_engine_heard_the_end(&mut fleet, &["x-request-id: ended"], "ended").await;
    let told = fleet.replicas[0].command(&["leave"]).unwrap();
    assert!(told.contains("replica-1 takes over its open writes (0 in doubt)"), "{told}");
    let b = &fleet.replicas[1];
    wait("the other one hears how it ended", async || settlements(b).len() == 1).await;
    assert_eq!(settlements(b)[0]["outcome"], "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engine_forgot_it_learns_from_the_replicas() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { plan: no_looks, replicas: 2, ..FleetPlan::default() }.start().await;
    let key = ["idempotency-key: k-kept"];
    let first = create_once_open(&fleet.replicas[0], &key, "kept").await.expect(200);
    fleet.sandbox.fault(Fault::once("POST", VARIABLES, FaultKind::Reset { effect: true }));
    create(&fleet.replicas[0], &["x-request-id: torn"], "torn").await.expect(502);
    let count =
        |fleet: &Fleet, state: &str| fleet.sql(&format!("select count(*) from mg.write where state = '{state}'"));
    wait("the doubt is there", async || count(&fleet, "d") == "1").await;
    // As after a failover to an engine that lacks the newest commits.
    fleet.sql("delete from mg.write");
    fleet.engine.restart(Shutdown::Immediate);
    let b = &fleet.replicas[1];
    let again = create_once_open(b, &key, "kept").await.expect(200);
    assert_eq!((again.text(), again.header("idempotent-replayed")), (first.text(), Some("true")));
    create_once_open(b, &[], "torn").await.refused(409, "MG161");
    assert_eq!((count(&fleet, "d"), count(&fleet, "e"), sent(&fleet)), ("1".to_owned(), "1".to_owned(), 2));
    // And rows that are in an earlier state than their owner knows: an equal write is held again within a round.
    fleet.sql("update mg.write set state = 'u' where request = 'torn'");
    wait("it is in doubt again", async || count(&fleet, "d") == "1").await;
    fleet.sql("update mg.write set state = 'u' where key is not null and state = 'e'");
    fleet.engine.restart(Shutdown::Immediate);
    wait("the owner corrects it", async || {
        let ended = "select count(*) from mg.write where key is not null and state = 'e' and body is not null";
        fleet.engine.try_sql("makegate", ended).is_ok_and(|count| count == "1")
    })
    .await;
}
