//! Another primary: a promoted standby, which has every write if commits waited for it, and is told by the replicas what it lacks if not.

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::fleet::{DATABASE, Fleet, FleetPlan, wait};
use crate::support::link::Link;
use crate::support::postgres::{Postgres, Replication, Shutdown};
use crate::support::{ALL, LIST, ORG, Plan};

const NEW: &str = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;

/// A fleet whose configuration names both servers.
async fn fleet(replication: Replication) -> (Fleet, Postgres, Vec<Link>) {
    let engine = Postgres::start(&[]);
    engine.database(DATABASE);
    let standby = engine.standby(replication);
    let plan = || Plan::default().set("upstream", "look = false");
    let mut fleet = FleetPlan { plan, ..FleetPlan::default() }.prepare(engine).await;
    let mut links = Vec::new();
    for replica in &fleet.replicas {
        let link = Link::to(standby.address());
        replica.engine_at(&[replica.engine.address(), link.address()]);
        links.push(link);
    }
    fleet.init();
    for replica in &mut fleet.replicas {
        replica.start().await;
    }
    fleet.settled().await;
    fleet.open().await;
    (fleet, standby, links)
}

async fn keyed(fleet: &Fleet, replica: usize) -> crate::support::Reply {
    fleet.replicas[replica].send(ALL, "POST", LIST, &["idempotency-key: k"], NEW).await.unwrap()
}

/// A write that is done, by the first replica, and one in doubt, by the second.
async fn writes(fleet: &Fleet) -> (Vec<u8>, String) {
    let done = keyed(fleet, 0).await.expect(200);
    fleet.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
    let doubt = fleet.replicas[1].send(ALL, "POST", LIST, &[], &NEW.replace("\"n\"", "\"d\"")).await.unwrap();
    let doubt = doubt.refused(502, "MG222");
    (done.body, doubt.header("x-request-id").unwrap().to_owned())
}

/// After the failover, everything is known everywhere.
async fn check(fleet: &mut Fleet, standby: Postgres, (body, doubt): (Vec<u8>, String)) {
    standby.promote();
    fleet.engine = standby;
    fleet.settled().await;
    fleet.open().await;
    for replica in 0..3 {
        let again = keyed(fleet, replica).await.expect(200);
        assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &body));
        let equal = NEW.replace("\"n\"", "\"d\"");
        let held = fleet.replicas[replica].send(ALL, "POST", LIST, &[], &equal).await.unwrap().refused(409, "MG161");
        assert!(held.text().contains(&doubt), "{held:?}");
    }
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 2);
    let body = r#"{"name":"after the failover"}"#;
    fleet.replicas[0].send(ALL, "PATCH", ORG, &[], body).await.unwrap().expect(200);
    for replica in &fleet.replicas {
        assert!(replica.get(ALL, ORG).await.expect(200).text().contains("after the failover"));
    }
    crate::rounds::shipped(fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_commits_waited_for_has_every_write() {
    if !Postgres::available() {
        return;
    }
    let (mut fleet, standby, _links) = fleet(Replication::Synchronous).await;
    let writes = writes(&fleet).await;
    // Those who sent them are gone as well: the engine alone knows.
    let (body, doubt) = writes;
    fleet.replicas[..2].iter_mut().for_each(|replica| replica.kill());
    fleet.engine.stop(Shutdown::Immediate);
    standby.promote();
    fleet.engine = standby;
    fleet.settled().await;
    let mut again = keyed(&fleet, 2).await;
    while again.status == 503 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        again = keyed(&fleet, 2).await;
    }
    let again = again.expect(200);
    assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &body));
    let equal = NEW.replace("\"n\"", "\"d\"");
    let held = fleet.replicas[2].send(ALL, "POST", LIST, &[], &equal).await.unwrap().refused(409, "MG161");
    assert!(held.text().contains(&doubt), "{held:?}");
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_lacks_the_replicas_tell_it() {
    if !Postgres::available() {
        return;
    }
    let (mut fleet, mut standby, _links) = fleet(Replication::Asynchronous).await;
    // It hears nothing of the next writes.
    standby.pause();
    let writes = writes(&fleet).await;
    wait("the engine has both", async || fleet.sql("select count(*) from mg.write where state <> 'u'") != "0").await;
    fleet.engine.stop(Shutdown::Immediate);
    standby.resume();
    check(&mut fleet, standby, writes).await;
}
