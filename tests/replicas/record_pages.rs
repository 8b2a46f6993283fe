//! What operators see of all replicas' records: at any replica, by page and by command.

use std::process::Command;

use serde_json::Value;

use crate::one_replica::engine;
use crate::support::fleet::{Fleet, FleetPlan, wait};
use crate::support::link::LinkState;
use crate::support::postgres::Postgres;
use crate::support::process::binary;
use crate::support::{ALL, OPERATOR, ORG, OTHER};

const KEY: [u8; 32] = [9; 32];

/// Three replicas that have had some requests each, whose records are all shipped.
async fn fleet() -> Fleet {
    let mut fleet = FleetPlan::default().prepare(engine(&KEY)).await;
    for replica in &mut fleet.replicas {
        std::fs::write(replica.home.path().join("replicas.key"), KEY).unwrap();
        replica.start().await;
    }
    for (at, replica) in fleet.replicas.iter().enumerate() {
        for n in 0..=at * 2 {
            let request = format!("x-request-id: job-{at}-{n}");
            replica.send(ALL, "GET", if n % 2 == 0 { ORG } else { OTHER }, &[&request], "").await.unwrap();
        }
        replica.flushed().await;
    }
    wait("all records are shipped", async || {
        fleet.sql("select count(*) from mg.record where request like 'job-%'") == "9"
    })
    .await;
    fleet
}

async fn json(fleet: &Fleet, at: usize, path: &str) -> Value {
    fleet.replicas[at].page(path).await.unwrap().expect(200).json()
}

fn requests(page: &Value) -> Vec<(String, String)> {
    let of = |record: &Value| {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        (text("replica"), text("request"))
    };
    page["records"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_replica_shows_the_records_of_all() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet().await;
    let all = requests(&json(&fleet, 1, "/audit.json?kind=request").await);
    assert_eq!(all.len(), 9, "{all:?}");
    assert_eq!(all[8], ("replica-0".to_owned(), "job-0-0".to_owned()), "the newest first");
    // Page by page.
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let page = json(&fleet, 2, &format!("/audit.json?kind=request&limit=4{after}")).await;
        paged.extend(requests(&page));
        assert_eq!(page["behind"].as_array().unwrap().len(), 3, "{page}");
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    for (name, count) in [("replica-0", 1), ("replica-1", 3), ("replica-2", 5)] {
        let one = json(&fleet, 1, &format!("/audit.json?kind=request&replica={name}")).await;
        assert!(requests(&one).iter().all(|(replica, _)| replica == name) && requests(&one).len() == count, "{one}");
    }
    let story = json(&fleet, 0, "/audit/record.json?request=job-2-3").await;
    assert_eq!(requests(&story), [("replica-2".to_owned(), "job-2-3".to_owned())]);
    let record = &story["records"][0];
    let (seq, time) = (record["seq"].as_u64().unwrap(), record["time"].as_str().unwrap());
    for path in [format!("seq={seq}&replica=replica-2&time={time}"), format!("seq={seq}&replica=replica-2")] {
        assert_eq!(json(&fleet, 0, &format!("/audit/record.json?{path}")).await, story);
    }
    let own = json(&fleet, 0, "/audit/record.json?seq=1").await;
    assert_eq!((&own["records"][0]["replica"], &own["records"][0]["seq"]), (&"replica-0".into(), &1.into()));
    let ledger = json(&fleet, 0, "/quota/ledger.json?by=caller").await;
    assert_eq!(ledger["total"]["requests"], 9, "{ledger}");
    assert_eq!(json(&fleet, 0, "/quota/ledger.json?by=caller&replica=replica-2").await["total"]["requests"], 5);
    let csv = fleet.replicas[0].page("/audit.csv?kind=request").await.unwrap().expect(200);
    assert!(csv.text().lines().next().unwrap().ends_with(",replica"), "{}", csv.text());
    assert_eq!(csv.text().lines().filter(|line| line.ends_with(",replica-2")).count(), 5);
    let page = fleet.replicas[0].page("/audit").await.unwrap().expect(200);
    assert!(page.json()["records"].is_array());
    let bad = fleet.replicas[0].page("/audit.json?after=17x").await.unwrap();
    assert_eq!(bad.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_read_the_records_of_all_replicas() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet().await;
    let run = |words: &[&str]| {
        let url = format!("http://{}", fleet.replicas[0].home.operator);
        let mut command = Command::new(binary());
        command.arg("audit").args(words).args(["--url", &url]).env("MAKEGATE_OPERATOR_KEY", OPERATOR);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let exported = run(&["export", "--kind", "request", "-o", "json"]);
    let names: Vec<String> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|record| format!("{}:{}", record["replica"].as_str().unwrap(), record["request"].as_str().unwrap()))
        .collect();
    assert_eq!((names.len(), names[0].as_str()), (9, "replica-0:job-0-0"), "the oldest first: {names:?}");
    let csv = run(&["export", "--kind", "request", "--replica", "replica-1", "-o", "csv"]);
    assert_eq!(csv.lines().count(), 4, "{csv}");
    assert!(csv.lines().skip(1).all(|line| line.ends_with(",replica-1")), "{csv}");
    let table = run(&["query", "--request", "job-2-4"]);
    assert!(table.contains("REPLICA") && table.contains("replica-2"), "{table}");
    assert!(run(&["show", "job-1-1", "-o", "json"]).contains("\"replica\":\"replica-1\""));
    assert!(run(&["show", "1", "-o", "json"]).contains("\"replica\":\"replica-0\""), "this replica's own number");
    wait("the heads are shown", async || fleet.sql("select count(distinct replica) from mg.head") == "3").await;
    let head = run(&["head", "--replica", "replica-2"]);
    assert!(fleet.sql("select note from mg.head where replica = 'replica-2'").contains(head.trim()), "{head}");
    let folder = fleet.replicas[2].home.path().join("audit");
    let file = fleet.replicas[0].home.path().join("replica-2.head");
    std::fs::write(&file, &head).unwrap();
    let verified =
        Command::new(binary()).args(["audit", "verify"]).arg(&folder).arg("--head").arg(&file).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let config = fleet.replicas[0].home.path().join("makegate.toml");
    let files =
        Command::new(binary()).args(["audit", "query", "--replica", "replica-1", "--config"]).arg(&config).output();
    assert_eq!(files.unwrap().status.code(), Some(2), "files are of one replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_a_replica_shows_its_own_records_and_says_so() {
    if !Postgres::available() {
        return;
    }
    let fleet = fleet().await;
    let next = json(&fleet, 1, "/audit.json?kind=request&limit=4").await["next"].as_str().unwrap().to_owned();
    fleet.replicas[1].engine.set(LinkState::Cut);
    let own = json(&fleet, 1, "/audit.json?kind=request&limit=2").await;
    assert!(own["note"].as_str().unwrap().contains("replica-1 alone") && own["behind"].is_null(), "{own}");
    assert!(requests(&own).iter().all(|(replica, _)| replica == "replica-1"));
    // The next page of this replica's own records.
    let page = json(&fleet, 1, &format!("/audit.json?kind=request&after={}", own["next"])).await;
    assert_eq!(requests(&page), [("replica-1".to_owned(), "job-1-0".to_owned())]);
    for path in [format!("/audit.json?kind=request&after={next}"), "/audit.json?replica=replica-0".to_owned()] {
        let refused = fleet.replicas[1].page(&path).await.unwrap();
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{path}: {}", refused.text());
    }
    let story = json(&fleet, 1, "/audit/record.json?request=job-1-2").await;
    assert!(story["note"].is_string() && requests(&story).len() == 1, "{story}");
    let ledger = json(&fleet, 1, "/quota/ledger.json?by=caller").await;
    assert!(ledger["note"].is_string() && ledger["total"]["requests"] == 3, "{ledger}");
    fleet.heal();
    wait("it sees all again", async || json(&fleet, 1, "/audit.json?kind=request").await["note"].is_null()).await;
}
