//! Receivers that hang, refuse, lie or go away: requests notice nothing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use makegate::clock::Clock;

use super::world;
use crate::support::hostile::tls_identity;
use crate::support::otlp::{Receiver, Taking};
use crate::support::process::Home;
use crate::support::{ALL, OPERATOR, ORG, Plan, World, new_dir, sandbox_at, send, until};

/// The value of a sample at `/metrics`.
async fn count(world: &World, name: &str) -> u64 {
    let operator = world.service.operator_addresses()[0];
    let text =
        send(operator, "GET", "/metrics", &format!("authorization: Bearer {OPERATOR}\r\n"), "").await.expect(200);
    let line = text.text().lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("{name}: {}", text.text()))
}

async fn spans(world: &World, result: &str) -> u64 {
    count(world, &format!("makegate_otel_spans_total{{result=\"{result}\"}}")).await
}

/// Waits until so many spans have had this result.
async fn wait_for(world: &World, result: &str, enough: impl Fn(u64) -> bool) {
    for _ in 0..600 {
        if enough(spans(world, result).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{result}: {}", spans(world, result).await);
}

#[tokio::test]
async fn spans_are_dropped_and_counted_while_a_receiver_hangs() {
    let (world, receiver) = world("queue = 8\ntimeout = \"60s\"").await;
    receiver.take(Taking::Hanging);
    world.get(ALL, ORG).await.expect(200);
    until(|| receiver.exports().iter().any(|export| export.head.starts_with("post /v1/traces"))).await;
    for _ in 0..50 {
        world.get(ALL, ORG).await.expect(200);
    }
    // The first are on their way, eight wait.
    assert_eq!(spans(&world, "dropped").await, 42);
    let told = readiness(&world).await;
    assert!(told.contains("[!] telemetry: warning: spans are dropped"), "{told}");
    // Neither a hanging receiver of spans nor one of metrics holds the end up.
    let begun = Clock::system().now();
    assert!(world.service.shut_down().await);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_a_receiver_refuses_is_counted_and_the_next_is_sent() {
    let (world, receiver) = world("").await;
    receiver.take(Taking::With(500, "", b"no".to_vec()));
    world.get(ALL, ORG).await.expect(200);
    wait_for(&world, "failed", |count| count == 4).await;
    receiver.take(Taking::Garbage(b"HTTP/1.1 200 OK\r\n\r\n\xff\xff"));
    world.get(ALL, ORG).await.expect(200);
    // It said 200. What it says without an end is not read without an end.
    wait_for(&world, "sent", |count| count == 1).await;
    // Of three spans it takes one: ExportTracePartialSuccess.rejected_spans is 2.
    receiver.take(Taking::With(200, "", vec![0x0a, 0x02, 0x08, 0x02]));
    let before = receiver.exports().len();
    for _ in 0..3 {
        world.get(ALL, ORG).await.expect(200);
    }
    until(|| receiver.exports().len() > before).await;
    wait_for(&world, "failed", |count| count >= 6).await;
    assert!(count(&world, "makegate_otel_exports_total{signal=\"traces\",result=\"failed\"}").await >= 1);
}

/// Promise 14: what a receiver sends stops nobody, because little of it is read, however it is framed.
#[tokio::test]
async fn of_interim_answers_without_an_end_little_is_read() {
    let (world, receiver) = world("metrics = false").await;
    receiver.take(Taking::Garbage(b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(500).leak()));
    world.get(ALL, ORG).await.expect(200);
    wait_for(&world, "failed", |count| count == 4).await;
    // What it could write each time includes what the sockets hold.
    let (written, times) = (receiver.garbage.load(Ordering::Relaxed), receiver.exports().len());
    assert!(written < times * (8 << 20), "{written} bytes were taken, {times} times");
}

/// Until it takes telemetry again. Requests notice nothing, so the gateway is ready all the while.
#[tokio::test]
async fn a_receiver_that_fails_is_told_on_the_overview_and_by_readyz() {
    let (world, receiver) = world("metrics = false").await;
    assert!(readiness(&world).await.contains("[+] telemetry: ok"));
    receiver.take(Taking::With(500, "", b"no".to_vec()));
    world.get(ALL, ORG).await.expect(200);
    wait_for(&world, "failed", |count| count == 4).await;
    let told = readiness(&world).await;
    assert!(
        told.contains("[!] telemetry: warning: the receiver does not take it") && told.ends_with("ready\n"),
        "{told}"
    );
    let shown = overview(&world).await;
    let line = shown.split("id=\"telemetry-failing\"").nth(1).unwrap().split("</li>").next().unwrap();
    for words in
        ["does not take traces", "It began <time", "What to do: ", "<code>otel.endpoint</code>", "href=\"/config\""]
    {
        assert!(line.contains(words), "{words}: {line}");
    }
    receiver.take(Taking::With(200, "", Vec::new()));
    world.get(ALL, ORG).await.expect(200);
    wait_for(&world, "sent", |count| count >= 1).await;
    assert!(readiness(&world).await.contains("[+] telemetry: ok"));
    assert!(!overview(&world).await.contains("telemetry-failing"));
}

async fn readiness(world: &World) -> String {
    let operator = world.service.operator_addresses()[0];
    send(operator, "GET", "/readyz?verbose", "", "").await.expect(200).text().to_owned()
}

async fn overview(world: &World) -> String {
    let headers = format!("authorization: Bearer {OPERATOR}\r\naccept: text/html\r\n");
    send(world.service.operator_addresses()[0], "GET", "/", &headers, "").await.expect(200).text().to_owned()
}

#[tokio::test]
async fn a_batch_is_sent_again_when_a_receiver_is_back() {
    let (world, receiver) = world("metrics = false").await;
    receiver.take(Taking::With(503, "", Vec::new()));
    world.get(ALL, ORG).await.expect(200);
    until(|| !receiver.exports().is_empty()).await;
    receiver.take(Taking::With(200, "", Vec::new()));
    wait_for(&world, "sent", |count| count == 4).await;
    assert_eq!(spans(&world, "failed").await, 0);
    let exports = receiver.exports();
    assert!(exports.len() >= 2 && exports.iter().all(|export| export.body == exports[0].body));
}

#[tokio::test]
async fn a_receiver_that_nobody_runs_costs_no_request() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = Plan::default().tables(&format!("[otel]\nendpoint = \"http://{address}\"\n")).start().await;
    for _ in 0..20 {
        world.get(ALL, ORG).await.expect(200);
    }
    assert_eq!(world.records().await.len(), 20);
    assert!(world.service.shut_down().await);
}

#[tokio::test]
async fn a_reload_is_followed_but_for_whether_anything_is_sent() {
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    let dir = new_dir();
    let headers = dir.path().join("otel");
    std::fs::write(&headers, "x-tenant=one").unwrap();
    let section = receiver.section("headers_file = \"otel\"\nmetrics = false");
    let world = Plan::default().tables(&section).start_in(dir).await;
    world.get(ALL, ORG).await.expect(200);
    receiver.wait_for_spans(4).await;
    assert!(receiver.exports()[0].head.contains("x-tenant: one\r\n"));
    std::fs::write(&headers, "x-tenant=two").unwrap();
    let text = std::fs::read_to_string(world.file()).unwrap();
    std::fs::write(world.file(), text.replace(&receiver.address.to_string(), &other.address.to_string())).unwrap();
    world.reload().await;
    world.get(ALL, ORG).await.expect(200);
    until(|| !other.exports().is_empty()).await;
    assert!(other.exports()[0].head.contains("x-tenant: two\r\n"));
    std::fs::write(world.file(), text.replace("endpoint = ", "# ")).unwrap();
    let why = world.service.reload().await.unwrap_err().to_string();
    assert!(why.starts_with("whether telemetry is sent (otel.endpoint) cannot change"), "{why}");
}

#[tokio::test]
async fn an_https_receiver_is_verified() {
    let (own, tls) = tls_identity(&["localhost"]);
    let dir = new_dir();
    std::fs::write(dir.path().join("ca.pem"), own).unwrap();
    let receiver = Receiver::start_tls(tls).await;
    let port = receiver.address.port();
    let section = format!("[otel]\nendpoint = \"https://localhost:{port}\"\nca_file = \"ca.pem\"\n");
    let trusting = Plan::default().tables(&section).start_in(dir).await;
    trusting.get(ALL, ORG).await.expect(200);
    receiver.wait_for_spans(4).await;
    let dir = new_dir();
    std::fs::write(dir.path().join("ca.pem"), tls_identity(&["localhost"]).0).unwrap();
    let doubting = Plan::default().tables(&section).start_in(dir).await;
    doubting.get(ALL, ORG).await.expect(200);
    assert!(doubting.service.shut_down().await);
    receiver.wait_for_spans(4).await;
}

/// The binary, with the variables that platforms set.
#[tokio::test]
async fn the_standard_variables_are_heeded_and_the_end_sends_what_is_left() {
    let (receiver, sandbox) = (Receiver::start().await, sandbox_at("127.0.0.1:0").await);
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let variables = format!(
        "export OTEL_EXPORTER_OTLP_ENDPOINT=http://{} OTEL_EXPORTER_OTLP_HEADERS=x-tenant=seven OTEL_SERVICE_NAME=gate \
         OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test OTEL_TRACES_SAMPLER=s3cret",
        receiver.address
    );
    let process = home.serve_with(&variables).await;
    send(home.gateway, "GET", ORG, &crate::support::with_key(ALL, &[]), "").await.expect(200);
    let ended = std::thread::spawn(move || process.end());
    until(|| ended.is_finished()).await;
    assert_eq!(ended.join().unwrap(), Some(0));
    assert_eq!(receiver.spans().iter().filter(|span| span.kind == 2).count(), 1);
    let resource = receiver.resource("traces");
    assert_eq!((&*resource["service.name"], &*resource["deployment.environment.name"]), ("gate", "test"));
    assert!(receiver.samples().iter().any(|one| one.name == "makegate_requests_total" && one.value == 1.0));
    assert!(receiver.exports().iter().all(|export| export.head.contains("x-tenant: seven\r\n")));
    let log = home.process_log();
    assert!(log.contains("OTEL_TRACES_SAMPLER is ignored") && !log.contains("s3cret"), "{log}");
    // Off: as if there were no variables at all.
    let sent = receiver.exports().len();
    let process = home.serve_with(&format!("{variables} OTEL_SDK_DISABLED=true")).await;
    send(home.gateway, "GET", ORG, &crate::support::with_key(ALL, &[]), "").await.expect(200);
    let ended = std::thread::spawn(move || process.end());
    until(|| ended.is_finished()).await;
    assert_eq!((ended.join().unwrap(), receiver.exports().len()), (Some(0), sent));
}
