//! Promise 6 over all replicas: one record in the log of the replica that answered, and the same one in the engine exactly once, later,
//! whatever ends in between.

use std::sync::atomic::Ordering;

use fastrand::Rng;
use futures_util::future::join_all;
use makegate::tasks::Tasks;

use crate::callers::{Callers, make_variables};
use crate::history::{Operation, wrong_records};
use crate::rounds::{lines, shipped};
use crate::support::fleet::{FleetPlan, wait};
use crate::support::link::LinkState;
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::{ALL, ORG, Plan};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_shipped_once_whatever_ends_in_between() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().set("upstream", "quota = \"100000/min\"").set("audit", "segment = \"1MiB\"");
    let mut fleet = FleetPlan { plan, ..FleetPlan::default() }.start().await;
    make_variables(&fleet.sandbox).await;
    let callers = Callers::new(fleet.replicas.iter().map(|replica| replica.home.gateway).collect());
    let tasks = Tasks::new();
    let mut random = Rng::with_seed(6);
    let playing: Vec<_> = (0..4).map(|caller| tasks.spawn(callers.clone().play(caller, random.fork()))).collect();
    let rows =
        |fleet: &crate::support::fleet::Fleet| -> u64 { fleet.sql("select count(*) from mg.record").parse().unwrap() };
    let grows = async |fleet: &crate::support::fleet::Fleet| {
        let before = rows(fleet);
        wait("records are shipped", async || rows(fleet) > before + 20).await;
    };
    grows(&fleet).await;
    // In the middle of a copy, as likely as not.
    fleet.engine.kill_backend();
    grows(&fleet).await;
    fleet.engine.restart(Shutdown::Immediate);
    grows(&fleet).await;
    fleet.replicas[0].kill();
    fleet.replicas[0].start().await;
    fleet.replicas[1].engine.set(LinkState::Cut);
    grows(&fleet).await;
    fleet.replicas[1].engine.set(LinkState::Deaf);
    grows(&fleet).await;
    fleet.heal();
    fleet.replicas[2].end();
    fleet.replicas[2].start().await;
    grows(&fleet).await;
    callers.over.store(true, Ordering::SeqCst);
    let history: Vec<Operation> = join_all(playing).await.into_iter().flat_map(Result::unwrap).collect();
    shipped(&fleet).await;
    let logs: Vec<_> = fleet.replicas.iter().map(|replica| lines(&replica.log())).collect();
    // What is no write is answered before its record is on disk, and the kill took some of the first replica's.
    let history: Vec<Operation> = history.into_iter().filter(|operation| operation.replica > 0).collect();
    let found = wrong_records(&history, &logs, None);
    assert!(found.is_empty(), "{found:#?}");
    // The engine has the line itself.
    let line =
        fleet.sql("select line from mg.record where replica = 'replica-1' and kind = 'request' order by seq limit 1");
    let own = fleet.replicas[1].log();
    let own = own.iter().find(|record| record["kind"] == "request").unwrap();
    assert_eq!(&serde_json::from_str::<serde_json::Value>(&line).unwrap(), own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shipped_can_be_less() {
    if !Postgres::available() {
        return;
    }
    let fleet = FleetPlan { replicas: 1, section: "records = \"writes\"", ..FleetPlan::default() }.start().await;
    let replica = &fleet.replicas[0];
    for number in 0..3 {
        replica.get(ALL, ORG).await.expect(200);
        let body = format!(r#"{{"name":"n {number}"}}"#);
        replica.send(ALL, "PATCH", ORG, &[], &body).await.unwrap().expect(200);
    }
    replica.flushed().await;
    let writes = |kind: &str| replica.log().iter().filter(|record| record["kind"] == kind).count().to_string();
    wait("the writes are shipped", async || {
        let rows = |kind: &str| fleet.sql(&format!("select count(*) from mg.record where kind = '{kind}'"));
        rows("intent") == writes("intent") && rows("outcome") == writes("outcome")
    })
    .await;
    assert_eq!(fleet.sql("select count(*) from mg.record where kind = 'request'"), "0");
}
