//! Every kind of fault, seen from the client's end of the wire.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use makegate::sandbox::{Fault, FaultKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{LIST, ORG, World, parse};
use crate::support::until;

const TOKEN: &str = "authorization: Token sandbox-token\r\ncontent-type: application/json\r\n";
const RENAME: &str = r#"{"name": "Renamed"}"#;

/// The bytes of a renaming PATCH's answer under this fault.
async fn rename(world: &World, kind: FaultKind) -> std::io::Result<Vec<u8>> {
    world.sandbox.fault(Fault::once("PATCH", "/api/v2/organizations/*", kind));
    world.raw("PATCH", ORG, TOKEN, RENAME).await
}

fn renamed(world: &World) -> bool {
    assert_eq!(world.sandbox.effects("PATCH", ORG), usize::from(name(world) == "Renamed"));
    name(world) == "Renamed"
}

fn name(world: &World) -> String {
    world.sandbox.organization(11).unwrap()["name"].as_str().unwrap().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a fault takes real time, whatever the sandbox's clock says")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn latency_comes_before_the_effect_and_outlives_the_client() {
    let world = World::start().await;
    let begin = now();
    let answer = rename(&world, FaultKind::Latency { ms: 60 }).await.unwrap();
    assert!(now() - begin >= Duration::from_millis(60));
    assert_eq!(parse(&answer).unwrap().status, 200);

    world.sandbox.reset();
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::Latency { ms: 200 }));
    let mut hasty = TcpStream::connect(world.sandbox.address()).await.unwrap();
    let length = RENAME.len();
    let head = format!("PATCH {ORG} HTTP/1.1\r\nhost: s\r\ncontent-length: {length}\r\n{TOKEN}\r\n{RENAME}");
    hasty.write_all(head.as_bytes()).await.unwrap();
    until(|| !world.sandbox.received().is_empty()).await;
    drop(hasty);
    until(|| renamed(&world)).await;
}

#[tokio::test]
async fn an_answer_replaces_handling_or_follows_it() {
    let world = World::start().await;
    let kind = FaultKind::status(503).with_header("retry-after", "2").with_body("busy");
    let reply = parse(&rename(&world, kind.clone()).await.unwrap()).unwrap();
    assert_eq!((reply.status, reply.header("retry-after"), reply.body.as_str()), (503, Some("2"), "busy"));
    assert!(!renamed(&world));
    let reply = parse(&rename(&world, kind.after_effect()).await.unwrap()).unwrap();
    assert_eq!(reply.status, 503);
    assert!(renamed(&world));
    let shaped = parse(&rename(&world, FaultKind::status(502)).await.unwrap()).unwrap();
    assert_eq!(shaped.expect(502)["code"], "SC502");
}

#[tokio::test]
async fn an_answer_can_redirect_and_can_echo_the_token() {
    let world = World::start().await;
    let away = parse(&rename(&world, FaultKind::redirect("https://elsewhere.example/")).await.unwrap()).unwrap();
    assert_eq!((away.status, away.header("location")), (302, Some("https://elsewhere.example/")));
    let echo = parse(&rename(&world, FaultKind::echo_token(200)).await.unwrap()).unwrap();
    assert_eq!(echo.header("x-echo"), Some("Token sandbox-token"));
    assert_eq!(echo.json()["you"], "Token sandbox-token");
}

#[tokio::test]
async fn a_reset_is_a_reset_with_and_without_effect() {
    let world = World::start().await;
    for effect in [false, true] {
        let error = rename(&world, FaultKind::Reset { effect }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(renamed(&world), effect);
    }
    assert!(world.sandbox.received().iter().all(|received| received.status.is_none()));
}

#[tokio::test]
async fn a_close_ends_the_connection_before_the_status_line() {
    let world = World::start().await;
    for effect in [false, true] {
        assert_eq!(rename(&world, FaultKind::Close { effect }).await.unwrap(), b"");
        assert_eq!(renamed(&world), effect);
    }
}

#[tokio::test]
async fn a_cut_sends_less_of_the_body_than_it_promised() {
    let world = World::start().await;
    for (after_bytes, arrive) in [(0, 0), (10, 10)] {
        let reply = parse(&rename(&world, FaultKind::Cut { after_bytes }).await.unwrap()).unwrap();
        assert_eq!((reply.status, reply.body.len()), (200, arrive));
        assert!(reply.header("content-length").unwrap().parse::<usize>().unwrap() > arrive);
    }
    let reply = parse(&rename(&world, FaultKind::Cut { after_bytes: 1_000_000 }).await.unwrap()).unwrap();
    let promised: usize = reply.header("content-length").unwrap().parse().unwrap();
    assert_eq!(reply.body.len(), promised - 1, "a cut never lets the whole body through");
    assert_eq!(world.sandbox.effects("PATCH", ORG), 3);
}

#[tokio::test]
async fn a_drip_sends_the_whole_body_slowly() {
    let world = World::start().await;
    let whole = world.get(LIST).await.body;
    world.sandbox.fault(Fault::once("GET", LIST, FaultKind::Drip { bytes: 100, every_ms: 5 }));
    let begin = now();
    assert_eq!(world.get(LIST).await.body, whole);
    assert!(now() - begin >= Duration::from_millis(5) * u32::try_from(whole.len() / 100).unwrap());
}

#[tokio::test]
async fn a_hang_answers_nothing_until_it_is_released() {
    let world = World::start().await;
    for effect in [false, true] {
        let waiting = rename(&world, FaultKind::Hang { effect });
        let release = async {
            until(|| world.sandbox.received_of("PATCH", ORG).len() == 1 + usize::from(effect)).await;
            until(|| renamed(&world) == effect).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(world.sandbox.received().last().unwrap().status, None);
            world.sandbox.clear_faults();
        };
        let (answer, ()) = tokio::join!(waiting, release);
        assert_eq!(answer.unwrap(), b"");
        assert_eq!(renamed(&world), effect);
    }
}

#[tokio::test]
async fn a_connection_is_reused_and_numbered() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.sandbox.address()).await.unwrap();
    for _ in 0..2 {
        stream.write_all(format!("GET {ORG} HTTP/1.1\r\nhost: s\r\n{TOKEN}\r\n").as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        let mut rest = vec![0; 65_536];
        while !String::from_utf8_lossy(&rest).contains("}}") {
            assert!(stream.read(&mut rest).await.unwrap() > 0);
        }
    }
    world.get(ORG).await.expect(200);
    let connections: Vec<u64> = world.sandbox.received().iter().map(|received| received.connection).collect();
    assert_eq!(connections, [1, 1, 2]);
}

#[tokio::test]
async fn stop_closes_the_port_and_what_hangs() {
    let world = World::start().await;
    world.sandbox.fault(Fault::always("*", "/**", FaultKind::Hang { effect: false }));
    let stop = async {
        until(|| !world.sandbox.received().is_empty()).await;
        world.sandbox.stop().await;
    };
    let (answer, ()) = tokio::join!(world.raw("GET", ORG, TOKEN, ""), stop);
    assert!(answer.is_err() || answer.unwrap().is_empty());
    assert!(TcpStream::connect(world.sandbox.address()).await.is_err());
}
