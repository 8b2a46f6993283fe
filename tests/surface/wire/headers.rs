//! Headers that are the gateway's own, headers that go upstream, headers that come down.

use std::collections::BTreeSet;
use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use super::{APPS, USAGE, header, still};
use crate::support::{ALL, LIST, ORG, READER, TOKEN, send, with_key};

const HANG: FaultKind = FaultKind::Hang { effect: false };

#[tokio::test]
async fn a_short_and_plain_request_id_is_kept_and_any_other_replaced() {
    let world = still().start().await;
    let longest = "x".repeat(64);
    for own in ["a", "01JC-2.b_c", &longest] {
        let reply = world.get_with(ALL, USAGE, &[&format!("X-Request-Id: {own}")]).await;
        assert_eq!(header(&reply, "x-request-id"), own);
        assert_eq!(world.last_record().await["request"], own);
    }
    let too_long = "x".repeat(65);
    for other in ["", "a b", "a;b", "\u{e4}", "a/b", "a:b", "{a}", &too_long] {
        let reply = world.get_with(ALL, USAGE, &[&format!("X-Request-Id: {other}")]).await;
        let id = header(&reply, "x-request-id");
        assert_ne!(id, other);
        assert_eq!((id.len(), &id[14..15]), (36, "7"), "a time-ordered UUID: {id}");
        assert_eq!(world.last_record().await["request"], id);
    }
}

#[tokio::test]
async fn made_request_ids_are_unique_and_in_the_order_of_time() {
    let world = still().start().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(header(&world.get(ALL, USAGE).await, "x-request-id").to_owned());
        world.clock.advance(Duration::from_millis(1));
    }
    assert!(ids.is_sorted() && ids.iter().collect::<BTreeSet<_>>().len() == 20, "{ids:?}");
}

#[tokio::test]
async fn the_id_of_a_request_under_way_or_in_doubt_is_not_given_twice() {
    let world = still().start().await;
    world.sandbox.fault(Fault::once("GET", APPS, HANG));
    let own = ["x-request-id: mine"];
    let first = world.get_with(ALL, APPS, &own);
    let second = async {
        while world.received("GET", APPS) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let reply = world.get_with(ALL, USAGE, &own).await;
        world.sandbox.clear_faults();
        reply
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(header(&first, "x-request-id"), "mine");
    assert_ne!(header(&second, "x-request-id"), "mine");
    assert_eq!(header(&world.get_with(ALL, USAGE, &own).await, "x-request-id"), "mine", "free again");

    world.sandbox.fault(Fault::once("POST", LIST, FaultKind::Close { effect: true }));
    world.send(ALL, "POST", LIST, &own, "{}").await.refused(502, "MG222");
    assert_ne!(header(&world.get_with(ALL, USAGE, &own).await, "x-request-id"), "mine", "it names the doubt");
}

#[tokio::test]
async fn refusals_before_the_caller_is_known_have_an_id_too() {
    let world = still().start().await;
    for target in ["/", "//", "*"] {
        let reply = send(world.gateway, "GET", target, "", "").await;
        assert!(reply.status >= 400 && reply.header("x-request-id").is_some(), "{target}: {reply:?}");
    }
}

#[tokio::test]
async fn the_rate_is_told_with_every_answer() {
    let world = still().caller("slow", "grants = [\"*\"]\nrate = \"60/min\"\nburst = 3").start().await;
    for (left, whole) in [(2, 1), (1, 2), (0, 3)] {
        let reply = world.get("slow", USAGE).await.expect(200);
        assert_eq!(header(&reply, "ratelimit-policy"), "\"caller\";q=60;w=60");
        assert_eq!(header(&reply, "ratelimit"), format!("\"caller\";r={left};t={whole}"));
        assert_eq!(reply.header("retry-after"), None);
    }
    let refused = world.get("slow", USAGE).await.refused(429, "MG141");
    assert_eq!((header(&refused, "ratelimit"), header(&refused, "retry-after")), ("\"caller\";r=0;t=3", "1"));
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(header(&world.get("slow", USAGE).await, "ratelimit"), "\"caller\";r=1;t=2");
    let elsewhere = world.get("slow", "/api/v2/scenarios").await.refused(404, "MG121");
    assert_eq!(elsewhere.header("ratelimit"), None, "what is refused earlier spends nothing");
}

#[tokio::test]
async fn nothing_of_the_callers_goes_upstream_but_body_type_and_trace() {
    let world = still().start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let traceparent = format!("traceparent: {trace}");
    let sent = [
        "cookie: a=b",
        "x-forwarded-for: 10.0.0.1",
        "forwarded: for=10.0.0.1",
        "x-real-ip: 10.0.0.1",
        "user-agent: Tool/1.0",
        "if-none-match: \"a\"",
        "if-modified-since: Thu, 01 Jan 2026 00:00:00 GMT",
        "range: bytes=0-1",
        "accept: text/html",
        "accept-language: de",
        "accept-encoding: gzip, br",
        "referer: http://a/",
        "origin: http://a",
        "te: trailers",
        "x-http-method-override: DELETE",
        "x-request-id: mine",
        "proxy-authorization: Basic YTpi",
        "x-api-key: b",
        "cache-control: no-store",
        "idempotency-key: one",
        "imt-vsf-zone: eu2",
        &traceparent,
        "tracestate: a=b",
        "content-type: application/json; charset=utf-8",
    ];
    world.send(ALL, "PATCH", ORG, &sent, r#"{"name": "Acme"}"#).await.expect(200);
    world.get_with(ALL, APPS, &sent[..19]).await.expect(200);
    let received = world.sandbox.received();
    let names = |index: usize| -> BTreeSet<&str> { received[index].headers.iter().map(|(name, _)| &**name).collect() };
    let always = ["accept", "accept-encoding", "host", "user-agent"];
    assert_eq!(names(1), always.into(), "of a read");
    let of_write = always.into_iter().chain(["content-length", "content-type", "traceparent", "tracestate"]);
    assert_eq!(names(0), of_write.collect(), "of a write");
    let value = |name| received[0].header(name).unwrap();
    assert_eq!((value("traceparent"), value("tracestate")), (trace, "a=b"));
    assert_eq!((value("accept"), value("accept-encoding")), ("application/json", "identity"));
    assert_eq!(value("user-agent"), concat!("makegate/", env!("CARGO_PKG_VERSION")));
    assert_eq!(value("content-type"), "application/json", "without a charset that nobody checked");
    let records = world.records().await;
    assert!(records.iter().take(2).all(|record| record["trace"] == trace), "{records:?}");
}

#[tokio::test]
async fn a_traceparent_that_is_none_is_left_out() {
    let world = still().start().await;
    for odd in ["00-abc-def-01", "nonsense", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01"] {
        world.get_with(ALL, APPS, &[&format!("traceparent: {odd}"), "tracestate: a=b"]).await.expect(200);
        assert!(world.last_record().await.get("trace").is_none(), "{odd}");
    }
    let received = world.sandbox.received();
    assert!(received.iter().all(|r| r.header("traceparent").is_none() && r.header("tracestate").is_none()));
}

#[tokio::test]
async fn of_an_answers_headers_only_those_that_describe_it_come_down() {
    let world = still().start().await;
    let answer = [
        ("set-cookie", "session=1"),
        ("connection", "x-hop, close"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("te", "trailers"),
        ("trailer", "x-end"),
        ("x-request-id", "make-1"),
        ("x-make", "1"),
        ("x-total-count", "9"),
        ("alt-svc", "h3=\":443\""),
        ("strict-transport-security", "max-age=1"),
        ("nel", "{}"),
        ("clear-site-data", "\"*\""),
        ("idempotent-replayed", "true"),
        ("proxy-status", "make; error=dns_error"),
        ("makegate-outcome", "not-sent"),
        ("location", "/elsewhere"),
        ("content-language", "en"),
        ("upgrade", "h2c"),
        ("retry-after", "7"),
    ];
    let kind = answer.iter().fold(FaultKind::status(404), |kind, (name, value)| kind.with_header(name, value));
    world.sandbox.fault(Fault::always("*", "/**", kind));
    for reply in [world.get(ALL, APPS).await, world.get(ALL, ORG).await, world.patch(ALL, ORG, "{}").await] {
        let reply = reply.expect(404);
        for (name, value) in answer {
            let passes = matches!(name, "content-language" | "retry-after");
            assert_eq!(reply.header(name) == Some(value), passes, "{name}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn makes_own_429_passes_untouched_with_a_time_to_wait() {
    for json in [false, true] {
        let world = still().sandbox(|settings| (settings.api_limit, settings.json_429) = (0, json)).start().await;
        let direct = send(world.sandbox.address(), "GET", APPS, &with_key(TOKEN, &[]), "").await.expect(429);
        let reply = world.get(ALL, APPS).await.expect(429);
        assert_eq!((reply.text(), reply.header("content-type")), (direct.text(), direct.header("content-type")));
        assert_eq!(reply.text().starts_with("Requests limit for organization exceeded"), !json);
        assert_eq!(header(&reply, "retry-after"), "60");
        assert_eq!(world.received("GET", APPS), 2, "it is not sent again");
        let next = world.get(ALL, APPS).await.refused(429, "MG171");
        assert_eq!(header(&next, "ratelimit").split(';').next(), Some("\"quota\""));
        assert_eq!(world.received("GET", APPS), 2, "the bucket is closed");
        world.get(READER, "/api/v2/organizations/12").await.expect(429);
    }
}
