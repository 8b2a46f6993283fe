//! Promise 6. Every request that reaches the service leaves exactly one record (a write: one intent and one outcome).

use std::collections::HashMap;
use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, HELD, LIST, ORG, Plan, READER, World, tls, until};

#[tokio::test]
async fn every_request_leaves_exactly_one_record() {
    let world = World::start().await;
    let mut expected: Vec<(String, &str)> = Vec::new();
    let mut number = 0;
    let mut id = |kind: &'static str| {
        number += 1;
        expected.push((format!("r-{number}"), kind));
        format!("x-request-id: r-{number}")
    };
    let fault = |method: &str, path: &str, kind| world.sandbox.fault(Fault::once(method, path, kind));
    world.send(ALL, "GET", ORG, &[&id("request")], "").await.expect(200);
    world.send(ALL, "GET", ORG, &[&id("request")], "").await.expect(200);
    world.send(ALL, "HEAD", ORG, &[&id("request")], "").await.expect(200);
    world.send(ALL, "GET", ORG, &[&id("request"), "if-none-match: *"], "").await.expect(304);
    world.send(ALL, "GET", "/api/v2/nothing", &[&id("request")], "").await.expect(404);
    world.send(ALL, "GET", "/api//v2", &[&id("request")], "").await.expect(400);
    world.send(ALL, "PUT", ORG, &[&id("request")], "").await.expect(405);
    world.send("nobody", "GET", ORG, &[&id("request")], "").await.expect(401);
    world.send(READER, "DELETE", ORG, &[&id("request")], "").await.expect(403);
    world.send(ALL, "PATCH", ORG, &[&id("request")], "[]").await.expect(400);
    world.send(ALL, "PATCH", ORG, &[&id("write")], r#"{"name":"x"}"#).await.expect(200);
    fault("PATCH", ORG, FaultKind::status(400));
    world.send(ALL, "PATCH", ORG, &[&id("write")], r#"{"name":"y"}"#).await.expect(400);
    fault("POST", LIST, FaultKind::Reset { effect: true });
    let new = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;
    world.send(ALL, "POST", LIST, &[&id("write")], new).await.expect(502);
    world.send(ALL, "POST", LIST, &[&id("request")], new).await.expect(409);
    fault("GET", ORG, FaultKind::status(500));
    world.send(ALL, "GET", ORG, &[&id("request"), "cache-control: no-store"], "").await.expect(500);
    let mut kinds: HashMap<String, Vec<String>> = HashMap::new();
    for record in world.records().await {
        let id = record["request"].as_str().unwrap().to_owned();
        kinds.entry(id).or_default().push(record["kind"].as_str().unwrap().to_owned());
    }
    for (id, kind) in &expected {
        let want: &[&str] = if *kind == "write" { &["intent", "outcome"] } else { &["request"] };
        assert_eq!(kinds.get(id).map(Vec::as_slice).unwrap_or_default(), want, "{id}");
    }
    assert_eq!(kinds.len(), expected.len());
    let seqs: Vec<u64> = world.log().await.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_a_record_too() {
    let (world, roots) = tls::world(Plan::default(), "", &[]).await;
    world.sandbox.fault(Fault::always("GET", ORG, HELD));
    let one_record = async |world: &World| {
        while world.records().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The fetch ends later than its caller, and leaves no record of its own.
        world.sandbox.clear_faults();
        until(|| world.service.gateway().under_way() == 0).await;
        let mut records = world.records().await;
        assert_eq!(records.len(), 1, "{records:?}");
        records.remove(0)
    };
    let (mut sender, _ended) = tls::h2(&world, &roots, 65_535).await;
    let asked = sender.send_request(tls::h2_get(ALL, ORG));
    tokio::select! {
        answer = asked => panic!("it was answered: {answer:?}"),
        () = until(|| world.received("GET", ORG) == 1) => {}
    }
    let record = one_record(&world).await;
    assert!(record.get("status").is_none(), "nobody got a status: {record}");
    // Over HTTP/1.1, a client that closes looks like one that has no further request and is waiting for its answer,
    // so it is answered.
    let plain = World::start().await;
    plain.sandbox.fault(Fault::always("GET", ORG, HELD));
    plain.send_until(ALL, "GET", ORG, "", until(|| plain.received("GET", ORG) == 1)).await;
    plain.sandbox.clear_faults();
    assert_eq!(one_record(&plain).await["status"], 200);
}

#[tokio::test]
async fn when_the_log_cannot_be_written_writes_are_refused_and_reads_go_on() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    let audit = world.dir.path().join("audit");
    let aside = world.dir.path().join("aside");
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::write(&audit, "no folder").unwrap();
    // The active segment is gone with its folder, which is noticed within a second or so.
    let mut refused = None;
    for number in 0..600 {
        let answer = world.patch(ALL, ORG, &format!(r#"{{"name":"n{number}"}}"#)).await;
        if answer.status == 503 {
            refused = Some(answer);
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused.expect("no write was ever refused").refused(503, "MG181");
    let sent = world.received("PATCH", ORG);
    world.patch(ALL, ORG, r#"{"name":"never"}"#).await.refused(503, "MG181");
    assert_eq!(world.received("PATCH", ORG), sent, "a write went upstream without an intent");
    world.get(ALL, ORG).await.expect(200);
    std::fs::remove_file(&audit).unwrap();
    std::fs::rename(&aside, &audit).unwrap();
    for _ in 0..300 {
        if world.patch(ALL, ORG, r#"{"name":"again"}"#).await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("writes did not come back");
}
