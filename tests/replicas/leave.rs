//! Back from several replicas to one.

use makegate::sandbox::{Fault, FaultKind};

use crate::support::fleet::{FleetPlan, wait};
use crate::support::postgres::Postgres;
use crate::support::{ALL, LIST, ORG, Plan};

const NEW: &str = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_one_takes_what_all_knew_and_goes_on_alone() {
    if !Postgres::available() {
        return;
    }
    let plan = || Plan::default().set("upstream", "look = false");
    let mut fleet = FleetPlan { replicas: 2, plan, ..FleetPlan::default() }.start().await;
    // Both known to the other replica alone.
    let done = fleet.replicas[1].send(ALL, "POST", LIST, &["idempotency-key: k"], NEW).await.unwrap().expect(200);
    fleet.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
    let equal = NEW.replace("\"n\"", "\"d\"");
    let doubt = fleet.replicas[1].send(ALL, "POST", LIST, &[], &equal).await.unwrap().refused(502, "MG222");
    let doubt = doubt.header("x-request-id").unwrap().to_owned();
    assert_eq!(fleet.replicas[0].end(), Some(0));
    // It may not start alone beside the other one.
    let with = fleet.replicas[0].config_text();
    let (without, _) = with.split_once("[replicas]").unwrap();
    fleet.replicas[0].set_config_text(without);
    let refused = fleet.replicas[0].home.command().output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("replicas leave"), "{told}");
    fleet.replicas[0].set_config_text(&with);
    fleet.replicas[1].end();
    fleet.replicas[0].command(&["leave"]).unwrap_or_else(|why| panic!("{why}"));
    fleet.replicas[0].set_config_text(without);
    fleet.replicas[0].start().await;
    let alone = &fleet.replicas[0];
    let again = alone.send(ALL, "POST", LIST, &["idempotency-key: k"], NEW).await.unwrap().expect(200);
    assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &done.body));
    let held = alone.send(ALL, "POST", LIST, &[], &equal).await.unwrap().refused(409, "MG161");
    assert!(held.text().contains(&doubt), "{held:?}");
    assert!(alone.doubts().await.contains(&doubt));
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 2);
    // The quota begins as if it were used up.
    wait("it reads again", async || alone.get(ALL, ORG).await.status == 200).await;
}
