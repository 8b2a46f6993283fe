//! Promise 3 over several replicas, part two: what callers see, through real processes.

use makegate::replicas::schema;

use crate::support::fleet::{DATABASE, Fleet, FleetPlan, Replica, wait};
use crate::support::link::LinkState;
use crate::support::postgres::Postgres;
use crate::support::{ALL, OPERATOR, ORG, Reply, attempt};

const KEY: [u8; 32] = [7; 32];

async fn start(section: &'static str) -> Fleet {
    let engine = Postgres::start(&[]);
    engine.database(DATABASE);
    let mut fleet = FleetPlan { replicas: 2, section, ..FleetPlan::default() }.prepare(engine).await;
    fleet.sql(schema::SCHEMA);
    let key: String = schema::key_sha256(&KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    fleet.sql(&format!("insert into mg.about values (true, {}, '\\x{key}')", schema::VERSION));
    for replica in &mut fleet.replicas {
        std::fs::write(replica.home.path().join("replicas.key"), KEY).unwrap();
        replica.start().await;
    }
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

async fn purge(replica: &Replica, body: &str) -> Reply {
    let headers = format!("authorization: Bearer {OPERATOR}\r\ncontent-type: application/json\r\n");
    attempt(replica.home.operator, "POST", "/cache/purge", &headers, body).await.expect("it answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_through_one_replica_sees_what_was_written_through_another() {
    if !Postgres::available() {
        return;
    }
    let fleet = start("").await;
    let [a, b] = &fleet.replicas[..] else { panic!() };
    let mut hits = 0;
    for round in 0..20 {
        let (writer, reader) = if round % 2 == 0 { (a, b) } else { (b, a) };
        reader.get(ALL, ORG).await.expect(200);
        hits += usize::from(is_hit(&reader.get(ALL, ORG).await));
        let wanted = format!("Round {round}");
        rename(writer, &wanted).await.expect(200);
        assert_eq!(name(&reader.get(ALL, ORG).await.expect(200)), wanted);
    }
    assert!(hits > 0, "memory never answered, so this proves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_stopped_beyond_its_lease_shows_nothing_old() {
    if !Postgres::available() {
        return;
    }
    let fleet = start("").await;
    let [a, b] = &fleet.replicas[..] else { panic!() };
    for round in 0..3 {
        wait("it answers from memory", async || is_hit(&b.get(ALL, ORG).await)).await;
        b.pause();
        let wanted = format!("Round {round}");
        rename(a, &wanted).await.expect(200);
        b.resume();
        assert_eq!(name(&b.get(ALL, ORG).await.expect(200)), wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_memory_answers_nothing() {
    if !Postgres::available() {
        return;
    }
    let fleet = start("").await;
    let [a, b] = &fleet.replicas[..] else { panic!() };
    b.engine.set(LinkState::Cut);
    rename(a, "Later").await.expect(200);
    let read = b.get(ALL, ORG).await;
    // It goes to Make, or nobody may go there.
    assert!(read.status == 503 || name(&read) == "Later", "{}", read.text());
    let unleased = async |headers: &[&str]| b.send(ALL, "GET", ORG, headers, "").await.expect("it answers");
    wait("its lease ends", async || {
        let read = unleased(&[]).await;
        read.status == 503 || cache_status(&read).ends_with("; detail=no-lease")
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
    let fleet = start("without = \"memory\"").await;
    let b = &fleet.replicas[1];
    b.engine.set(LinkState::Cut);
    wait("its lease ends", async || {
        let read = b.get(ALL, ORG).await.expect(200);
        is_hit(&read) && cache_status(&read).ends_with("; detail=unfenced")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_reaches_all_replicas() {
    if !Postgres::available() {
        return;
    }
    let fleet = start("").await;
    let [a, b] = &fleet.replicas[..] else { panic!() };
    for body in [r#"{"tag":"org:11/detail"}"#, r#"{"all":true}"#] {
        wait("it answers from memory", async || is_hit(&b.get(ALL, ORG).await)).await;
        purge(a, body).await.expect(200);
        assert!(!is_hit(&b.get(ALL, ORG).await), "{body}");
    }
    a.engine.set(LinkState::Cut);
    let told = purge(a, r#"{"all":true}"#).await.expect(503);
    assert!(told.text().contains("It was done here"), "{}", told.text());
}
