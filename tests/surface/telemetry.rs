//! Traces and metrics as a receiver of OpenTelemetry gets them.

mod metrics;
mod receivers;

use std::collections::BTreeSet;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::otlp::{ReceivedSpan, Receiver, Taking};
use crate::support::{
    ALL, HELD, OPERATOR, ORG, Plan, READER, TOKEN, TOO, VARIABLES, World, send, tls, until, with_key,
};

const ROUTE: &str = "GET /api/v2/organizations/{organizationId}";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLERS_SPAN: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{CALLERS_SPAN}-{flags}")
}

/// A world that sends to a receiver, with these further lines in `[otel]`.
async fn world(further: &str) -> (World, Receiver) {
    let receiver = Receiver::start().await;
    (Plan::default().tables(&receiver.section(further)).start().await, receiver)
}

fn names(spans: &[ReceivedSpan]) -> Vec<&str> {
    spans.iter().map(|span| &*span.name).collect()
}

/// The request's own span, and those within it in the order of their beginnings.
fn tree(spans: &[ReceivedSpan]) -> (ReceivedSpan, Vec<ReceivedSpan>) {
    let (servers, children): (Vec<_>, Vec<_>) = spans.iter().cloned().partition(|span| span.kind == 2);
    let [server] = <[_; 1]>::try_from(servers).unwrap();
    for child in &children {
        assert_eq!((&child.trace, &child.parent), (&server.trace, &server.id), "{child:?}");
        assert!(child.times.0 >= server.times.0 && child.times.0 <= child.times.1, "{child:?} in {server:?}");
    }
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    assert_eq!(ids.len(), spans.len());
    (server, children)
}

fn of_trace(spans: &[ReceivedSpan], trace: &str) -> Vec<ReceivedSpan> {
    spans.iter().filter(|span| span.trace == trace).cloned().collect()
}

/// What the sandbox got as `traceparent`, request by request.
fn sent_upstream(world: &World) -> Vec<String> {
    let header = |headers: &[(String, String)]| headers.iter().find(|(name, _)| name == "traceparent").cloned();
    world.sandbox.received().iter().map(|one| header(&one.headers).map_or(String::new(), |(_, value)| value)).collect()
}

#[tokio::test]
async fn a_miss_waits_and_goes_upstream_and_a_hit_does_neither() {
    let (world, receiver) = world("").await;
    world.get(ALL, ORG).await.expect(200);
    let miss = world.last_record().await;
    world.get(ALL, ORG).await.expect(200);
    let spans = receiver.wait_for_spans(5).await;
    let (server, children) = tree(&of_trace(&spans, &spans[0].trace));
    assert_eq!((&*server.name, &*server.parent, server.status, server.flags), (ROUTE, "", 0, 0x101));
    let port = world.sandbox.address().port().to_string();
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/api/v2/organizations/{organizationId}"),
        ("url.scheme", "http"),
        ("url.path", ORG),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("client.address", "127.0.0.1"),
        ("makegate.caller", "all"),
        ("makegate.operation", "organizations.get"),
        ("makegate.organization", "11"),
        ("makegate.answer", "miss"),
        ("makegate.request", miss["request"].as_str().unwrap()),
        ("error.type", ""),
    ] {
        assert_eq!(server.get(key), value, "{key}: {server:?}");
    }
    // The record names the span, so that either is found from the other.
    assert_eq!(miss["trace"], format!("00-{}-{}-01", server.trace, server.id));
    assert_eq!(names(&children), ["wait for quota", "wait for a connection", "GET"]);
    let attempt = &children[2];
    assert_eq!((attempt.kind, attempt.status), (3, 0));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.full", &*format!("http://127.0.0.1:{port}{ORG}")),
        ("url.template", "/api/v2/organizations/{organizationId}"),
        ("server.address", "127.0.0.1"),
        ("server.port", &*port),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("http.request.resend_count", ""),
        ("error.type", ""),
    ] {
        assert_eq!(attempt.get(key), value, "{key}: {attempt:?}");
    }
    assert_eq!(sent_upstream(&world), [format!("00-{}-{}-01", attempt.trace, attempt.id)]);
    let (hit, children) = tree(&of_trace(&spans, &spans[4].trace));
    assert_eq!((hit.get("makegate.answer"), children.len()), ("hit", 0));
}

#[tokio::test]
async fn a_write_that_is_sent_twice_has_a_span_for_each_attempt_and_each_wait() {
    let (world, receiver) = world("").await;
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::status(503)));
    world.patch(ALL, ORG, r#"{"name": "New"}"#).await.expect(200);
    let (server, children) = tree(&receiver.wait_for_spans(11).await);
    assert_eq!(server.get("makegate.outcome"), "done");
    let again = ["wait for quota", "wait for a connection", "PATCH", "write the outcome"];
    let first = [
        "read the body", "wait for the resource's turn", "wait for quota", "write the intent", "wait for a connection",
        "PATCH",
    ];
    assert_eq!(names(&children), first.into_iter().chain(again).collect::<Vec<_>>());
    let attempts: Vec<_> = children.iter().filter(|span| span.kind == 3).collect();
    let of = |key| [0, 1].map(|at| attempts[at].get(key));
    assert_eq!(of("http.response.status_code"), ["503", "200"]);
    assert_eq!(of("error.type"), ["503", ""]);
    assert_eq!(of("http.request.resend_count"), ["", "1"]);
    assert_eq!([attempts[0].status, attempts[1].status], [2, 0]);
    let ids: Vec<_> = attempts.iter().map(|span| format!("00-{}-{}-01", span.trace, span.id)).collect();
    assert_eq!(sent_upstream(&world), ids);
}

#[tokio::test]
async fn a_refusal_says_its_code_and_only_a_fault_of_ours_is_an_error() {
    let (world, receiver) = world("").await;
    world.get("unknown-key", ORG).await.refused(401, "MG112");
    let (unknown, children) = tree(&receiver.wait_for_spans(1).await);
    assert_eq!((&*unknown.name, unknown.status, children.len()), ("GET", 0, 0));
    let of = |key| unknown.get(key).to_owned();
    assert_eq!(
        [of("http.response.status_code"), of("makegate.code"), of("makegate.answer")],
        ["401", "MG112", "refused"]
    );
    assert_eq!([of("http.route"), of("makegate.caller"), of("error.type")], ["", "", ""]);
    let reset = Fault::always("GET", ORG, FaultKind::Reset { effect: false });
    world.sandbox.fault(reset);
    world.get(ALL, ORG).await.expect(502);
    until(|| receiver.spans().iter().filter(|span| span.kind == 2).count() == 2).await;
    let spans = receiver.spans();
    let (server, children) = tree(&of_trace(&spans, &spans[1].trace));
    assert_eq!((server.status, server.get("error.type")), (2, server.get("makegate.code")));
    let lost = children.iter().find(|span| span.kind == 3).unwrap();
    assert_eq!(
        (lost.status, lost.get("makegate.ending"), lost.get("error.type")),
        (2, "lost", "connection_terminated")
    );
    // A method that nobody has defined is no name of a span.
    world.send(ALL, "S3CRET", ORG, &[], "").await;
    until(|| receiver.spans().iter().any(|span| span.get("http.request.method") == "_OTHER")).await;
    assert!(receiver.spans().iter().all(|span| !format!("{span:?}").contains("S3CRET")));
}

#[tokio::test]
async fn a_callers_traceparent_is_the_parent_and_decides() {
    let (world, receiver) = world("sample = \"0%\"").await;
    let state = "tracestate: vendor=1";
    world.get_with(ALL, ORG, &[&traceparent("00"), state]).await.expect(200);
    assert_eq!(sent_upstream(&world), [format!("00-{TRACE}-{CALLERS_SPAN}-00")], "it passes as it came");
    world.get(ALL, "/api/v2/organizations/12").await.expect(200);
    assert_eq!(sent_upstream(&world)[1], "", "nothing was sampled, so nothing is begun");
    world.get_with(ALL, VARIABLES, &[&traceparent("01"), state]).await.expect(200);
    let (server, children) = tree(&receiver.wait_for_spans(4).await);
    assert_eq!((&*server.trace, &*server.parent, server.flags), (TRACE, CALLERS_SPAN, 0x301));
    assert_eq!(sent_upstream(&world)[2], format!("00-{TRACE}-{}-01", children[2].id));
    let last = world.sandbox.received().pop().unwrap();
    assert!(last.headers.contains(&("tracestate".to_owned(), "vendor=1".to_owned())), "{last:?}");
    let traces: Vec<_> = world.records().await.into_iter().map(|record| record["trace"].clone()).collect();
    let given = |flags| serde_json::Value::from(format!("00-{TRACE}-{CALLERS_SPAN}-{flags}"));
    assert_eq!(traces, [given("00"), serde_json::Value::Null, given("01")]);
}

#[tokio::test]
async fn who_joins_a_fetch_has_its_wait_and_no_attempt() {
    let (world, receiver) = world("").await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    let first = world.get(ALL, ORG);
    let second = async {
        until(|| world.received("GET", ORG) == 1).await;
        let answer = world.get(TOO, ORG);
        let release = async {
            until(|| world.service.gateway().callers.shared.joined.taken() == 1).await;
            world.sandbox.clear_faults();
        };
        tokio::join!(answer, release).0
    };
    let (first, second) = tokio::join!(first, second);
    first.expect(200);
    second.expect(200);
    let spans = receiver.wait_for_spans(6).await;
    let joined = spans.iter().find(|span| span.get("makegate.caller") == "too").unwrap();
    let (_, children) = tree(&of_trace(&spans, &joined.trace));
    assert_eq!(names(&children), ["wait for a shared fetch"]);
    let filler = spans.iter().find(|span| span.get("makegate.caller") == "all").unwrap();
    assert_eq!(joined.get("makegate.filled_by"), filler.get("makegate.request"));
}

#[tokio::test]
async fn a_caller_that_leaves_has_a_span_too() {
    let receiver = Receiver::start().await;
    let (world, roots) = tls::world(Plan::default().tables(&receiver.section("")), "", &[]).await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    let (mut sender, _ended) = tls::h2(&world, &roots, 65_535).await;
    let asked = sender.send_request(tls::h2_get(ALL, ORG));
    tokio::select! {
        answer = asked => panic!("it was answered: {answer:?}"),
        () = until(|| world.received("GET", ORG) == 1) => {}
    }
    until(|| receiver.spans().iter().any(|span| span.kind == 2)).await;
    world.sandbox.clear_faults();
    let (server, children) = tree(&receiver.wait_for_spans(4).await);
    assert_eq!(
        (server.get("error.type"), server.get("http.response.status_code"), server.status),
        ("cancelled", "", 0)
    );
    assert_eq!((server.get("url.scheme"), server.get("network.protocol.version")), ("https", "2"));
    // The fetch goes on without it.
    assert!(children[2].times.1 > server.times.1, "{children:?}");
}

#[tokio::test]
async fn no_secret_is_in_anything_that_is_sent() {
    let receiver = Receiver::start().await;
    let dir = crate::support::new_dir();
    std::fs::write(dir.path().join("otel"), "authorization=Bearer%20s3cret-of-receiver").unwrap();
    let section = receiver.section("headers_file = \"otel\"\nservice = \"gate\"");
    let world = Plan::default().tables(&section).start_in(dir).await;
    world.sandbox.fault(Fault::once("GET", "/api/v2/organizations/13", FaultKind::echo_token(200)));
    world.get(ALL, "/api/v2/organizations/13").await.expect(502);
    world.get_with(READER, &format!("{ORG}?s3cret-name=s3cret-value"), &["x-own: s3cret-header"]).await;
    world.get("s3cret-key", ORG).await.expect(401);
    world.get(ALL, &format!("{ORG}/s3cret@example.org")).await;
    world.get(ALL, &format!("/{}", "x".repeat(7_000))).await;
    world.patch(ALL, ORG, r#"{"name": "s3cret-body"}"#).await.expect(200);
    send(world.gateway, "GET", ORG, &format!("{}host2: s3cret-host\r\n", with_key(ALL, &[])), "").await;
    until(|| receiver.spans().iter().filter(|span| span.kind == 2).count() == 7 && !receiver.samples().is_empty())
        .await;
    for export in receiver.exports() {
        assert!(export.head.contains("authorization: bearer s3cret-of-receiver\r\n"), "{}", export.head);
        let body = String::from_utf8_lossy(&export.body);
        for secret in ["s3cret", "example.org", ALL, READER, OPERATOR, TOKEN] {
            assert!(!body.contains(secret), "{secret}: {body}");
        }
    }
    let resource = receiver.resource("traces");
    assert_eq!((&*resource["service.name"], &*resource["service.version"]), ("gate", env!("CARGO_PKG_VERSION")));
    assert_eq!(resource, receiver.resource("metrics"));
    let longest = receiver.spans().iter().flat_map(|span| span.attributes.values().map(String::len)).max();
    assert!(longest <= Some(1024), "{longest:?}");
    receiver.take(Taking::Hanging);
}
