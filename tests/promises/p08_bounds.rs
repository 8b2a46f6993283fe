//! Promise 8. Everything is bounded, and past a bound the answer is a clear refusal.

use std::io::ErrorKind;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{ALL, HELD, ORG, Plan, TOO, raw, until, with_key};

#[tokio::test]
async fn targets_heads_and_bodies_past_their_bounds_are_refused() {
    let world = Plan::default().set("limits", "body_bytes = \"1KiB\"").start().await;
    let long = format!("{ORG}?x={}", "a".repeat(8_000));
    world.get(ALL, &long).await.refused(414, "MG102");
    let body = format!(r#"{{"name":"{}"}}"#, "a".repeat(2_000));
    world.patch(ALL, ORG, &body).await.refused(413, "MG155");
    let head = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(64 * 1024));
    assert!(raw(world.gateway, &head).await.is_none_or(|reply| reply.status == 431));
    let fields: String = (0..100).map(|n| format!("x-{n}: 1\r\n")).collect();
    let head = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    assert_eq!(raw(world.gateway, &head).await.expect("an answer").status, 431);
    assert!(world.sandbox.received().is_empty());
}

#[tokio::test]
async fn a_slow_body_is_refused() {
    let world = Plan::default().set("limits", "body_gap = \"100ms\"").start().await;
    let mut stream = TcpStream::connect(world.gateway).await.unwrap();
    let head = format!("PATCH {ORG} HTTP/1.1\r\nhost: x\r\n{}content-length: 10\r\n\r\n{{", with_key(ALL, &[]));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    assert!(world.sandbox.received().is_empty());
}

#[tokio::test]
async fn silent_slow_and_idle_connections_are_closed() {
    let limits = "first_byte = \"300ms\"\nhead = \"300ms\"\nidle = \"300ms\"";
    let world = Plan::default().set("limits", limits).start().await;
    let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(ALL, &[]));
    for sent in ["", "GET / HT", request.as_str()] {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
        assert!(closed.is_ok(), "still open after {sent:?}");
    }
}

#[tokio::test]
async fn at_the_connection_cap_the_longest_idle_connections_give_way() {
    let world = Plan::default().set("limits", "connections = 4\nfirst_byte = \"10m\"").start().await;
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(TcpStream::connect(world.gateway).await.unwrap());
    }
    world.get(ALL, ORG).await.expect(200);
    // At most 4 of 13 are left. A connection that is still open has nothing to read.
    until(|| {
        idle.retain(|stream| matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock));
        idle.len() <= 4
    })
    .await;
}

#[tokio::test]
async fn requests_of_one_caller_under_way_are_bounded_and_others_are_served() {
    let world = Plan::default().set("limits", "in_flight_per_caller = 3").start().await;
    world.sandbox.fault(Fault::always("GET", "/api/v2/organizations/*/apps", HELD));
    let (apps, other) = (format!("{ORG}/apps"), async {
        until(|| world.service.gateway().under_way() == 3).await;
        let others = (world.get(ALL, ORG).await, world.get(TOO, ORG).await);
        world.sandbox.clear_faults();
        others
    });
    let (a, b, c, (fourth, of_another)) =
        tokio::join!(world.get(ALL, &apps), world.get(ALL, &apps), world.get(ALL, &apps), other);
    for reply in [a, b, c] {
        reply.expect(200);
    }
    let fourth = fourth.refused(429, "MG142");
    assert!(fourth.header("retry-after").is_some());
    of_another.expect(200);
}

/// A request that only waits for another request's fetch takes nothing that the bounds protect.
#[tokio::test]
async fn everyone_waiting_for_one_fetch_is_answered() {
    let world = Plan::default().set("limits", "in_flight_per_caller = 3\nin_flight = 4").start().await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    let herd = futures_util::future::join_all((0..200).map(|_| world.get(ALL, ORG)));
    let fetched = async {
        until(|| world.received("GET", ORG) == 1 && world.service.gateway().shared_fetches.waiting() == 200).await;
        world.sandbox.clear_faults();
    };
    let (replies, ()) = futures_util::future::join(herd, fetched).await;
    replies.into_iter().for_each(|reply| drop(reply.expect(200)));
    assert_eq!(world.received("GET", ORG), 1);
}

#[tokio::test]
async fn a_request_over_the_callers_rate_is_refused_with_an_explanation() {
    let slow = "grants = [\"*\"]\nrate = \"60/min\"\nburst = 2";
    let world = Plan::default().caller("slow", slow).clock(Clock::frozen()).start().await;
    let first = world.get("slow", ORG).await.expect(200);
    assert_eq!(first.header("ratelimit-policy"), Some("\"caller\";q=60;w=60"));
    assert_eq!(first.header("ratelimit"), Some("\"caller\";r=1;t=1"));
    world.get("slow", ORG).await.expect(200);
    let fast = world.get("slow", ORG).await.refused(429, "MG141");
    assert_eq!(fast.header("retry-after"), Some("1"));
    assert_eq!(fast.header("ratelimit"), Some("\"caller\";r=0;t=2"));
    world.clock.advance(Duration::from_secs(1));
    world.get("slow", ORG).await.expect(200);
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_passed_on() {
    let world = Plan::default().set("limits", "answer_bytes = \"64KiB\"\nstored_bytes = \"16KiB\"").start().await;
    let large = format!("{{\"x\":\"{}\"}}", "a".repeat(100 * 1024));
    world.sandbox.fault(Fault::once("GET", ORG, FaultKind::status(200).with_body(&large)));
    world.get(ALL, ORG).await.refused(502, "MG207");
    let medium = format!("{{\"x\":\"{}\"}}", "a".repeat(32 * 1024));
    world.sandbox.fault(Fault::once("GET", ORG, FaultKind::status(200).with_body(&medium)));
    assert_eq!(world.get(ALL, ORG).await.expect(200).text(), medium);
    // Too large to be stored, so the next read goes upstream.
    world.get(ALL, ORG).await.expect(200);
    assert_eq!(world.received("GET", ORG), 3);
}
