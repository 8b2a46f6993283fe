//! Promise 11. SIGTERM: not ready, finish what is under way within the drain time, flush the log. (The signal itself is
//! tested on the binary.)

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, HELD, ORG, Plan, World, until};

#[tokio::test]
async fn requests_under_way_are_finished_and_recorded() {
    let world = World::start().await;
    world.sandbox.fault(Fault::always("*", ORG, HELD));
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
    let crate::support::World { service, sandbox, dir, .. } = world;
    let operator = service.operator_addresses()[0];
    let asked = async {
        // Wait until it says so.
        while crate::support::send(operator, "GET", "/readyz", "", "").await.status != 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sandbox.clear_faults();
    };
    let (finished, ()) = tokio::join!(service.shut_down(), asked);
    assert!(finished);
    write.await.unwrap().expect(200);
    read.await.unwrap().expect(200);
    assert!(tokio::net::TcpStream::connect(gateway).await.is_err(), "the door is still open");
    let lines = log(dir.path());
    assert!(
        lines.contains("\"kind\":\"outcome\"") && lines.lines().last().unwrap().contains("\"event\":\"stop\""),
        "{lines}"
    );
}

#[tokio::test]
async fn requests_not_finished_in_time_are_cut_off_and_recorded() {
    let world = Plan::default().set("limits", "drain = \"300ms\"").start().await;
    world.sandbox.fault(Fault::always("GET", ORG, FaultKind::Hang { effect: false }));
    let (gateway, tasks) = (world.gateway, makegate::tasks::Tasks::new());
    tasks.spawn(async move {
        let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", crate::support::with_key(ALL, &[]));
        assert!(crate::support::raw(gateway, &request).await.is_none(), "it was answered");
    });
    while world.received("GET", ORG) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let crate::support::World { service, dir, .. } = world;
    assert!(!service.shut_down().await);
    // A slow disk is not waited for, and continues on its own.
    until(|| log(dir.path()).lines().last().unwrap().contains("\"event\":\"stop\"")).await;
    let lines = log(dir.path());
    let records: Vec<&str> = lines.lines().filter(|line| line.contains("\"kind\":\"request\"")).collect();
    assert_eq!(records.len(), 1, "{lines}");
    assert!(!records[0].contains("\"status\""), "nobody got a status: {lines}");
}

fn log(dir: &std::path::Path) -> String {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("audit")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}
