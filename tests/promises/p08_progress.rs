//! Promise 8. A client that does not read its answer loses it; one that reads steadily may take as long as its
//! connection lives.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::support::tls::{self, h2, h2_get};
use crate::support::{ALL, OPERATOR, ORG, Plan, TOO, World, half_closed, send, until, with_key};

const APPS: &str = "/api/v2/organizations/11/apps";
const PAYMENTS: &str = "/api/v2/organizations/11/payments";
const MIB: usize = 1 << 20;

/// The next bytes of a body, or `None` at its end. An error means that the stream was reset or the connection ended.
async fn piece(body: &mut hyper::body::Incoming) -> Option<Result<Bytes, hyper::Error>> {
    let frame =
        tokio::time::timeout(Duration::from_secs(60), body.frame()).await.expect("the answer is never reset")?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

/// A connection with a small kernel buffer, after a request for [`APPS`].
async fn asked(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(world.gateway).await.unwrap();
    stream.write_all(format!("GET {APPS} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(ALL, &[])).as_bytes()).await.unwrap();
    stream
}

fn large(world: &World, bytes: usize) {
    let body = format!("{{\"x\":\"{}\"}}", "a".repeat(bytes));
    world.sandbox.fault(Fault::always("GET", APPS, FaultKind::status(200).with_body(&body)));
}

/// Long before such answers are reset, their connections make room for others.
#[tokio::test]
async fn newcomers_do_not_wait_for_answers_that_nobody_reads() {
    let limits = "connections = 4\nwrite_stall = \"10m\"";
    let (world, roots) = tls::world(Plan::default().set("limits", limits), "", &[]).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let (mut sender, ended) = h2(&world, &roots, 0).await;
        let response = sender.send_request(h2_get("no-key", ORG)).await.unwrap();
        held.push((sender, ended, response));
    }
    let key = format!("authorization: Token {TOO}");
    let lines = [&*key];
    let polite = tls::get(&world, &roots, None, ORG, &lines);
    let polite = tokio::time::timeout(Duration::from_secs(30), polite).await.expect("it waits forever");
    polite.expect("an answer").expect(200);
}

/// Refusals that nobody reads, with a key or without, hold no connection and meanwhile keep nobody out.
#[tokio::test]
async fn answers_blocked_by_a_zero_window_hold_no_connection() {
    let limits = "connections = 8\nwrite_stall = \"3s\"\nidle = \"4s\"";
    let (world, roots) = tls::world(Plan::default().set("limits", limits), "", &[]).await;
    let mut held = Vec::new();
    for n in 0..8 {
        let (mut sender, ended) = h2(&world, &roots, 0).await;
        let request = h2_get(if n % 2 == 0 { "no-key" } else { ALL }, if n % 2 == 0 { ORG } else { "/nowhere" });
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), if n % 2 == 0 { 401 } else { 404 });
        held.push((sender, ended, response));
    }
    // The door is full of them, but a newcomer still finds a place.
    let key = format!("authorization: Token {TOO}");
    let lines = [&*key];
    let polite = tls::get(&world, &roots, None, ORG, &lines);
    let polite = tokio::time::timeout(Duration::from_secs(20), polite).await.expect("it waits forever");
    polite.expect("an answer").expect(200);
    for (_sender, ended, _untaken) in &mut held {
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the connection is still open").unwrap();
    }
}

#[tokio::test]
async fn an_unread_answer_is_reset_and_its_connection_goes_on_serving() {
    let (world, roots) = tls::world(Plan::default().set("limits", "write_stall = \"500ms\""), "", &[]).await;
    large(&world, MIB);
    for window in [0, 1, 50_000] {
        let (mut sender, _ended) = h2(&world, &roots, window).await;
        let mut untaken = sender.send_request(h2_get(ALL, APPS)).await.unwrap().into_body();
        // Read nothing until the gateway has had enough.
        until(|| world.service.gateway().callers.shared.answers.taken() == 0).await;
        let end = loop {
            match piece(&mut untaken).await.expect("it ended as if it were complete") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(!end.is_closed() && !end.is_canceled(), "the stream was reset, not the connection: {end:?}");
        let response = sender.send_request(h2_get(ALL, "/nowhere")).await.expect("the connection still serves");
        assert_eq!(response.status(), 404);
    }
}

/// The readers take longer than each of these times.
const STEADY: &str = "idle = \"4s\"\nwrite_stall = \"4s\"\nfirst_byte = \"4s\"";

#[tokio::test]
async fn a_steady_reader_is_not_cut() {
    let (world, roots) = tls::world(Plan::default().set("limits", STEADY), "", &[]).await;
    large(&world, 2 * MIB);
    let (mut sender, _ended) = h2(&world, &roots, 64 << 10).await;
    let mut body = sender.send_request(h2_get(ALL, APPS)).await.unwrap().into_body();
    let mut read = 0;
    while let Some(bytes) = piece(&mut body).await {
        read += bytes.expect("it was cut").len();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read, 2 * MIB + 8);
}

#[tokio::test]
async fn a_steady_reader_over_http_1_is_not_cut() {
    let plain = Plan::default().set("limits", STEADY).start().await;
    large(&plain, 12 * MIB);
    let mut stream = asked(&plain).await;
    let (mut read, mut piece) = (0, vec![0; 64 << 10]);
    while read < 12 * MIB {
        let bytes = stream.read(&mut piece).await.expect("it was reset");
        assert!(bytes > 0, "it was cut after {read} bytes");
        read += bytes;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test]
async fn an_http_1_reader_that_stops_is_cut() {
    let world = Plan::default().set("limits", "write_stall = \"500ms\"").start().await;
    large(&world, 32 * MIB);
    let mut stream = asked(&world).await;
    // Stop reading once there is something to read.
    stream.readable().await.unwrap();
    until(|| world.service.gateway().callers.shared.answers.taken() == 0).await;
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await;
    assert!(read.is_ok(), "the connection is still open: {}", String::from_utf8_lossy(&all[..all.len().min(600)]));
    assert!(all.len() < 32 * MIB, "the whole answer was kept for a client that did not read it");
}

/// A connection has an end, whatever progress it makes.
#[tokio::test]
async fn no_connection_outlives_its_age_and_the_grace() {
    let limits = "age = \"3s\"\nage_grace = \"2s\"";
    let (world, roots) = tls::world(Plan::default().set("limits", limits), "", &[]).await;
    large(&world, 4 * MIB);
    let (mut sender, ended) = h2(&world, &roots, 32 << 10).await;
    let mut body = sender.send_request(h2_get(ALL, APPS)).await.unwrap().into_body();
    let cut = async {
        while piece(&mut body).await.expect("it ended as if it were complete").is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cut).await.expect("it is never cut");
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the connection is still open").unwrap();
}

/// RFC 9112, section 9.6: a client may say that it has no further request and still wait for its answer.
#[tokio::test]
async fn a_client_that_half_closes_gets_its_answer() {
    let world = World::start().await;
    world.sandbox.fault(Fault::always("*", ORG, FaultKind::Latency { ms: 300 }));
    let headers = with_key(ALL, &[]);
    let get = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    half_closed(world.gateway, &get).await.expect("an answer").expect(200);
    let patch = format!("PATCH {ORG} HTTP/1.1\r\nhost: x\r\n{headers}content-length: 12\r\n\r\n{{\"name\":\"x\"}}");
    half_closed(world.gateway, &patch).await.expect("an answer").expect(200);
}

/// Number of requests waiting for quota.
async fn waiting(world: &World) -> u64 {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let page = send(world.service.operator_addresses()[0], "GET", "/quota.json", &key, "").await.expect(200).json();
    page["buckets"].as_array().unwrap().iter().map(|bucket| bucket["waiting"].as_u64().unwrap()).sum()
}

async fn come_to_wait(world: &World, number: u64) {
    for _ in 0..3_000 {
        if waiting(world).await == number {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} wait, not {number}", waiting(world).await);
}

/// Over HTTP/1.1 nothing is read while an answer is owed. A client that is certainly gone is still noticed; one that
/// merely has no further request keeps its place.
#[tokio::test]
async fn a_client_that_leaves_while_waiting_gives_its_place_back() {
    let patient = "quota = \"1/min\"\nquota_wait = \"5m\"\ndeadline = \"5m\"\nwrite_deadline = \"5m\"";
    // The request holding the quota holds it however long this takes.
    let plan = || Plan::default().set("upstream", patient).set("limits", "quota_queue = 1").clock(Clock::frozen());
    let world = plan().set("gateway", "listen = [\"127.0.0.1:0\", \"unix:door.sock\"]").start().await;
    let (over_tls, roots) = tls::world(plan(), "", &[]).await;
    let headers = with_key(ALL, &[]);
    let get = format!("GET {PAYMENTS} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    let patch =
        format!("PATCH {ORG} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: 12\r\n\r\n{{\"name\":\"x\"}}");
    world.get(ALL, PAYMENTS).await.expect(200);
    tls::get(&over_tls, &roots, None, PAYMENTS, &[headers.trim_end()]).await.unwrap().expect(200);
    for request in [&get, &patch] {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        come_to_wait(&world, 1).await;
        reset(stream);
        come_to_wait(&world, 0).await;
        let mut stream = UnixStream::connect(world.dir.path().join("door.sock")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        come_to_wait(&world, 1).await;
        drop(stream);
        come_to_wait(&world, 0).await;
        let mut stream = tls::connect(&over_tls, &roots, &[], None).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        come_to_wait(&over_tls, 1).await;
        reset(stream.into_inner().0);
        come_to_wait(&over_tls, 0).await;
        // It has half-closed the connection, and later it is gone after all.
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        come_to_wait(&world, 1).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(waiting(&world).await, 1, "it is waiting for its answer");
        reset(stream);
        come_to_wait(&world, 0).await;
    }
    let records = world.records().await;
    let unanswered = records.iter().filter(|record| record.get("status").is_none()).count();
    assert_eq!((records.len(), unanswered), (7, 6), "{records:?}");
}

/// Closes a connection with a reset.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Input that has not become a request delays shutdown no longer than its own limit.
#[tokio::test]
async fn half_a_head_does_not_delay_shutdown() {
    for sent in ["", "GET / HT"] {
        let limits = "drain = \"60s\"\nfirst_byte = \"500ms\"\nhead = \"500ms\"";
        let world = Plan::default().set("limits", limits).start().await;
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        world.get(ALL, ORG).await.expect(200);
        stream.write_all(sent.as_bytes()).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(30), world.service.shut_down()).await;
        assert_eq!(ended, Ok(true), "after {sent:?}");
    }
}

/// An HTTP/2 connection between two requests ends when its client confirms that. This client has stopped reading.
#[tokio::test]
async fn a_client_that_confirms_nothing_does_not_delay_shutdown() {
    let plan = Plan::default().set("limits", "drain = \"60s\"");
    let (world, roots) = tls::world(plan, "", &[]).await;
    let mut stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut head = Vec::new();
    for (name, value) in [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/livez")] {
        for text in [name, value] {
            head.extend((text == name).then_some(0));
            head.push(u8::try_from(text.len()).unwrap());
            head.extend(text.as_bytes());
        }
    }
    sent.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    sent.extend(head);
    stream.write_all(&sent).await.unwrap();
    let (mut answer, mut received) = (vec![0; 4096], Vec::new());
    // The answer's DATA or HEADERS frame with END_STREAM: type 0 or 1, flag 1, stream 1.
    let is_end =
        |frames: &[u8]| frames.windows(6).any(|six| six[0] <= 1 && six[1] & 1 == 1 && six[2..] == [0, 0, 0, 1]);
    while !is_end(&received) {
        let read = stream.read(&mut answer).await.unwrap();
        assert!(read > 0, "no answer");
        received.extend(&answer[..read]);
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), world.service.shut_down()).await;
    assert_eq!(ended, Ok(true));
}

/// Silent connections give way before those that have made requests and may make more, although the latter are more.
#[tokio::test]
async fn silent_connections_do_not_push_out_used_ones() {
    let world = Plan::default().set("limits", "connections = 6").start().await;
    let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(ALL, &[]));
    let mut answer = vec![0; 64 << 10];
    let mut used = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(stream.read(&mut answer).await.unwrap() > 0);
        used.push(stream);
    }
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(TcpStream::connect(world.gateway).await.unwrap());
    }
    world.get(TOO, ORG).await.expect(200);
    for stream in &mut used {
        stream.write_all(request.as_bytes()).await.unwrap();
        let read = stream.read(&mut answer).await.expect("it was pushed out");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "it was pushed out");
    }
}

/// Among used connections, those of the client with the most give way.
#[tokio::test]
async fn clients_with_the_most_connections_give_way() {
    let world = Plan::default().set("limits", "connections = 8").start().await;
    let mut answer = vec![0; 64 << 10];
    let idle = async |key: &str| {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(key, &[]));
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(stream.read(&mut vec![0; 64 << 10]).await.unwrap() > 0);
        stream
    };
    let mut modest = idle(TOO).await;
    let mut greedy = Vec::new();
    for key in [ALL, "no-key"] {
        for _ in 0..20 {
            greedy.push(idle(key).await);
        }
    }
    let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(TOO, &[]));
    modest.write_all(request.as_bytes()).await.unwrap();
    let read = modest.read(&mut answer).await.expect("it was pushed out");
    assert!(
        answer[..read].starts_with(b"HTTP/1.1 200"),
        "the oldest idle connection was pushed out by {}",
        greedy.len()
    );
}
