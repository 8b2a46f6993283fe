//! What operators see of several replicas: the page, the metrics, `/readyz`, the problems, and the events of the log.

use serde_json::Value;

use crate::support::fleet::{FleetPlan, Replica, wait};
use crate::support::postgres::{Postgres, Shutdown};

async fn page(replica: &Replica) -> Value {
    replica.page("/replicas.json").await.unwrap().expect(200).json()
}

async fn text(replica: &Replica, path: &str) -> String {
    replica.page(path).await.unwrap().expect(200).text().to_owned()
}

/// The states of all replicas, by name.
async fn states(replica: &Replica) -> Vec<String> {
    let page = page(replica).await;
    let rows = page["replicas"].as_array().unwrap().iter();
    rows.map(|row| format!("{} {}", row["name"].as_str().unwrap(), row["state"].as_str().unwrap())).collect()
}

async fn problems(replica: &Replica) -> Vec<String> {
    let page = replica.page("/").await.unwrap().expect(200).json();
    page["problems"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// Events about replicas in its log, by name.
async fn events(replica: &Replica) -> Vec<String> {
    replica.flushed().await;
    let log = replica.log();
    let events = log.iter().filter_map(|record| record["event"].as_str());
    events.filter(|event| event.starts_with("replicas-")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_each_replica_and_the_engine() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { replicas: 2, ..FleetPlan::default() }.start().await;
    let [first, second] = &fleet.replicas[..] else { panic!("two replicas") };
    wait("both are listed", async || states(first).await == ["replica-0 live", "replica-1 live"]).await;
    let shown = page(first).await;
    assert_eq!((&shown["this"], &shown["configured"]), (&Value::from("replica-0"), &Value::from(true)));
    assert_eq!(shown["epoch"], Value::from(fleet.sql("select id from mg.epoch")));
    assert_eq!(shown["engine"]["up"], Value::from(true));
    let [own, other] = &shown["replicas"].as_array().unwrap()[..] else { panic!("{shown}") };
    assert_eq!(own["version"], Value::from(env!("CARGO_PKG_VERSION")));
    assert!(own["lease_ms"].as_u64().is_some_and(|left| left <= 2_000) && other["lease_ms"].is_null(), "{shown}");
    assert_eq!((&own["fences_behind"], other["config_sha256"].as_str().map(str::len)), (&Value::from(0), Some(64)));
    // Names and ports differ, so the configurations do.
    assert!(problems(first).await.contains(&"replicas-unlike".to_owned()), "{:?}", problems(first).await);
    assert_eq!(first.metric("makegate_replicas_unlike{what=\"configuration\"}").await, Some(1.0));
    assert_eq!(first.metric("makegate_replicas_unlike{what=\"version\"}").await, Some(0.0));
    assert_eq!(first.metric("makegate_replicas_members{state=\"live\"}").await, Some(2.0));
    assert_eq!(second.metric("makegate_replicas_engine_up").await, Some(1.0));
    let statements = second.metric("makegate_replicas_engine_seconds_count{line=\"quick\"}").await;
    assert!(statements.is_some_and(|count| count > 1.0), "{statements:?}");
    let csv = text(first, "/replicas.csv").await;
    assert!(csv.starts_with("name,state,version,") && csv.contains("\r\nreplica-1,live,"), "{csv}");
    assert!(text(first, "/readyz?verbose").await.contains("[+] replicas: ok\n"));

    fleet.replicas[1].kill();
    let first = &fleet.replicas[0];
    wait("it is gone", async || states(first).await == ["replica-0 live", "replica-1 gone"]).await;
    wait("that is a problem", async || problems(first).await.contains(&"replicas-gone".to_owned())).await;
    wait("it is counted", async || first.metric("makegate_replicas_members{state=\"gone\"}").await == Some(1.0)).await;
    wait("it is recorded", async || events(first).await == ["replicas-gone"]).await;
    fleet.replicas[1].start().await;
    let first = &fleet.replicas[0];
    wait("it is back", async || events(first).await == ["replicas-gone", "replicas-back"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_lost_is_told_once_and_no_page_waits_for_it() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { replicas: 2, ..FleetPlan::default() }.start().await;
    let first = &fleet.replicas[0];
    assert!(!text(first, "/readyz").await.contains("replicas"));
    wait("both are listed", async || states(first).await.len() == 2).await;
    fleet.engine.stop(Shutdown::Immediate);
    let first = &fleet.replicas[0];
    wait("it has no lease", async || !first.has_lease().await).await;
    let ready = text(first, "/readyz").await;
    let line = "[!] replicas: degraded: the database (the engine) cannot be used, and the lease is over: memory answers nothing\n";
    assert!(ready.starts_with(line) && ready.ends_with("ready\n"), "{ready}");
    let shown = page(first).await;
    assert_eq!(shown["engine"]["up"], Value::from(false));
    assert!(shown["engine"]["why"].is_string() && shown["engine"]["since"].is_string(), "{shown}");
    assert_eq!(shown["replicas"].as_array().map(Vec::len), Some(2), "what was read last is shown");
    assert!(problems(first).await.contains(&"replicas-engine".to_owned()));
    wait("both are recorded", async || events(first).await.len() == 2).await;
    let mut told = events(first).await;
    told.sort();
    assert_eq!(told, ["replicas-engine-lost", "replicas-lease-lost"]);
    fleet.engine.start_again();
    let first = &fleet.replicas[0];
    wait("it has a lease", async || first.has_lease().await).await;
    wait("all is recorded", async || events(first).await.len() >= 5).await;
    let told = events(first).await;
    for event in ["replicas-engine-back", "replicas-lease-back", "replicas-epoch"] {
        assert_eq!(told.iter().filter(|one| *one == event).count(), 1, "{told:?}");
    }
    assert_eq!(first.metric("makegate_replicas_epochs_total").await, Some(2.0));
}
