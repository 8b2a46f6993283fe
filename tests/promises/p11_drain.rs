//! Promise 11. SIGTERM: not ready, finish what is under way within the drain time, flush the log. (The signal itself is
//! tested on the binary.)

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, ORG, World};

#[tokio::test]
async fn what_is_under_way_is_finished_and_recorded() {
    let world = World::start().await;
    world.sandbox.fault(Fault::always("*", ORG, FaultKind::Latency { ms: 600 }));
    let (gateway, tasks) = (world.gateway, makegate::tasks::Tasks::new());
    let headers = crate::support::with_key(ALL, &[]);
    let write = {
        let headers = headers.clone();
        tasks.spawn(async move { crate::support::send(gateway, "PATCH", ORG, &headers, r#"{"name":"x"}"#).await })
    };
    let read = tasks.spawn(async move { crate::support::send(gateway, "GET", ORG, &headers, "").await });
    while world.received("PATCH", ORG) + world.received("GET", ORG) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let crate::support::World { service, dir, .. } = world;
    let operator = service.operator_addresses()[0];
    let asked = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        crate::support::send(operator, "GET", "/readyz", "", "").await
    };
    let (finished, ready) = tokio::join!(service.shut_down(), asked);
    assert!(finished);
    ready.expect(503);
    write.await.unwrap().expect(200);
    read.await.unwrap().expect(200);
    assert!(tokio::net::TcpStream::connect(gateway).await.is_err(), "the door is still open");
    let mut lines = String::new();
    for entry in std::fs::read_dir(dir.path().join("audit")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            lines += &std::fs::read_to_string(path).unwrap();
        }
    }
    assert!(
        lines.contains("\"kind\":\"outcome\"") && lines.lines().last().unwrap().contains("\"event\":\"stop\""),
        "{lines}"
    );
}
