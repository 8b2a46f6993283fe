//! Behind PgBouncer in transaction mode, where nobody hears announcements and no statement stays prepared.

use crate::support::fleet::{DATABASE, Fleet, FleetPlan, wait};
use crate::support::pooler::Pooler;
use crate::support::postgres::Postgres;
use crate::support::{ALL, LIST, ORG};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_behind_a_pooler() {
    if !Postgres::available() || !Pooler::available() {
        return;
    }
    let engine = Postgres::start(&[]);
    engine.database(DATABASE);
    let pooler = Pooler::start(engine.address());
    let mut fleet = FleetPlan::default().prepare(engine).await;
    for replica in &fleet.replicas {
        replica.engine.lead_to(pooler.address());
    }
    fleet.init();
    for replica in &mut fleet.replicas {
        replica.start().await;
    }
    fleet.settled().await;
    fleet.open().await;
    for round in 0..5 {
        for replica in &fleet.replicas {
            wait("it answers from memory", async || {
                let reply = replica.get(ALL, ORG).await;
                reply.header("cache-status").is_some_and(|status| status.starts_with("makegate; hit"))
            })
            .await;
        }
        let body = format!(r#"{{"name":"round {round}"}}"#);
        write(&fleet, &body).await;
        for replica in &fleet.replicas {
            let reply = replica.get(ALL, ORG).await.expect(200);
            assert!(reply.text().contains(&format!("round {round}")), "{}: {reply:?}", replica.name);
        }
    }
    let new = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;
    for replica in &fleet.replicas {
        replica.send(ALL, "POST", LIST, &["idempotency-key: k"], new).await.unwrap().expect(200);
    }
    assert_eq!(fleet.sandbox.received_of("POST", LIST).len(), 1);
    crate::rounds::shipped(&fleet).await;
}

async fn write(fleet: &Fleet, body: &str) {
    wait("it is written", async || {
        let reply = fleet.replicas[0].send(ALL, "PATCH", ORG, &[], body).await.unwrap();
        // Where the machine is busy, an intent may take too long.
        assert!(reply.status == 200 || reply.code() == "MG241", "{reply:?}\n{}", fleet.logs());
        reply.status == 200
    })
    .await;
}
