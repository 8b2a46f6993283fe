//! What callers see of promise 3 besides fresh answers: what a replica without its lease still says, and when writes end.

use makegate::sandbox::Fault;

use crate::support::fleet::{Fleet, FleetPlan, Replica, wait};
use crate::support::link::LinkState;
use crate::support::postgres::Postgres;
use crate::support::{ALL, HELD, OPERATOR, ORG, Plan, Reply, attempt};

async fn start(section: &'static str, plan: fn() -> Plan) -> Fleet {
    let fleet = FleetPlan { replicas: 2, section, plan, ..FleetPlan::default() }.start().await;
    for replica in &fleet.replicas {
        wait("it answers from memory", async || is_hit(&replica.get(ALL, ORG).await)).await;
    }
    fleet
}

fn name(answer: &Reply) -> String {
    answer.json()["organization"]["name"].as_str().unwrap().to_owned()
}

fn cache_status(answer: &Reply) -> &str {
    answer.header("cache-status").unwrap_or_default()
}

fn is_hit(answer: &Reply) -> bool {
    cache_status(answer).starts_with("makegate; hit")
}

async fn rename(replica: &Replica, to: &str) -> Reply {
    let headers = ["content-type: application/json"];
    replica.send(ALL, "PATCH", ORG, &headers, &format!(r#"{{"name":"{to}"}}"#)).await.expect("it answers")
}

async fn purge(replica: &Replica) -> Reply {
    let headers = format!("authorization: Bearer {OPERATOR}\r\ncontent-type: application/json\r\n");
    attempt(replica.home.operator, "POST", "/cache/purge", &headers, r#"{"all":true}"#).await.expect("it answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_memory_answers_nothing() {
    if !Postgres::available() {
        return;
    }
    // There is quota for whoever cannot reach the engine.
    let fleet = start("reserve = \"50%\"\nmax = 2", Plan::default).await;
    let [a, b] = &fleet.replicas[..] else { panic!() };
    b.engine.set(LinkState::Cut);
    rename(a, "Later").await.expect(200);
    let read = b.get(ALL, ORG).await;
    assert!(read.status == 503 || name(&read) == "Later", "{}", read.text());
    let unleased = async |headers: &[&str]| b.send(ALL, "GET", ORG, headers, "").await.expect("it answers");
    wait("its lease ends, and Make answers", async || {
        let read = unleased(&[]).await;
        read.status == 200 && cache_status(&read).ends_with("; detail=no-lease")
    })
    .await;
    assert!(!is_hit(&unleased(&[]).await));
    unleased(&["cache-control: only-if-cached"]).await.expect(504);
    let explained = b.page(&format!("/explain.json?caller=all&method=GET&target={ORG}")).await.unwrap().expect(200);
    assert!(explained.text().contains("this replica has no lease"), "{}", explained.text());
    // No stale answer stands in, either.
    b.upstream.set(LinkState::Cut);
    let failed = unleased(&[]).await;
    assert!(failed.status >= 500, "{}", failed.text());
    fleet.heal();
    wait("it answers from memory", async || is_hit(&b.get(ALL, ORG).await)).await;
    assert_eq!(name(&b.get(ALL, ORG).await.expect(200)), "Later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_may_answer_without_a_lease_if_it_says_so() {
    if !Postgres::available() {
        return;
    }
    let fleet = start("without = \"memory\"", Plan::default).await;
    let b = &fleet.replicas[1];
    b.engine.set(LinkState::Cut);
    wait("its lease ends", async || {
        let read = b.get(ALL, ORG).await.expect(200);
        is_hit(&read) && cache_status(&read).ends_with("; detail=unfenced")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_the_others_do_not_know_of_yet_says_so_and_reaches_them_later() {
    if !Postgres::available() {
        return;
    }
    let fleet = start("", Plan::default).await;
    let [a, b] = &fleet.replicas[..] else { panic!() };
    a.engine.set(LinkState::Cut);
    let told = purge(a).await.expect(503);
    assert!(told.text().contains("It was done here"), "{}", told.text());
    assert!(is_hit(&b.get(ALL, ORG).await));
    fleet.heal();
    wait("it reaches the other", async || !is_hit(&b.get(ALL, ORG).await)).await;
}

/// Otherwise its fence could not wait for another's lease, and it would end in doubt by the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_attempts_of_a_write_end_a_lease_before_its_deadline() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().set("upstream", "write_deadline = \"12s\"\nwrite_attempt = \"12s\"");
    let fleet = start("", plan).await;
    fleet.sandbox.fault(Fault::once("PATCH", ORG, HELD));
    let answer = rename(&fleet.replicas[0], "Held").await.expect(504);
    assert!(answer.text().contains("no answer in time"), "{}", answer.text());
}
