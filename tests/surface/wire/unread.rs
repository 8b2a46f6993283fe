//! Requests that HTTP itself refuses, that are no requests for this gateway, or that never arrive.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::still;
use super::streams::large;
use crate::support::hostile::{Origin, Step};
use crate::support::{ALL, LIST, OPERATOR, ORG, Plan, VARIABLES, World, exchange, raw, send, tls, with_key};

fn doors(world: &World) -> [SocketAddr; 2] {
    [world.gateway, world.service.operator_addresses()[0]]
}

/// How often a request was unread for this reason.
pub(super) async fn unread(world: &World, door: &str, kind: &str) -> u64 {
    let [_, operator] = doors(world);
    let metrics = send(operator, "GET", "/metrics", "", "").await;
    let name = format!("makegate_unread_requests_total{{door=\"{door}\",kind=\"{kind}\"}} ");
    metrics.text().lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("0").parse().unwrap()
}

/// All that comes back on a connection until it ends.
async fn until_end(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn what_http_refuses_has_a_problem_an_id_and_a_count_but_no_record() {
    let world = still().start().await;
    let large = format!("GET {LIST} HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    let many = format!("GET {LIST} HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(101));
    let cases = [
        ("BAD\r\n\r\n", 400, "MG107", "syntax"),
        ("GET /a b HTTP/1.1\r\n\r\n", 400, "MG107", "syntax"),
        ("GET / HTTP/3.1\r\n\r\n", 400, "MG107", "syntax"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400, "MG107", "syntax"),
        ("GET / HTTP/1.1\r\nhost: a\r\n folded: a\r\n\r\n", 400, "MG107", "syntax"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400, "MG107", "syntax"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400, "MG107", "syntax"),
        (&large, 431, "MG108", "head-too-large"),
        (&many, 431, "MG108", "head-too-large"),
    ];
    for (door, name) in doors(&world).into_iter().zip(["gateway", "operator"]) {
        for (text, status, code, kind) in cases {
            let before = unread(&world, name, kind).await;
            let reply = raw(door, text).await.unwrap().expect(status);
            assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
            assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
            assert!(reply.header("date").is_some_and(|date| date.ends_with(" GMT")), "{reply:?}");
            let id = reply.header("x-request-id").unwrap_or_else(|| panic!("no id: {reply:?}"));
            assert_eq!(reply.json()["status"], status);
            if name == "gateway" {
                assert_eq!((reply.code(), &reply.json()["instance"]), (code.to_owned(), &id.into()));
            }
            assert_eq!(unread(&world, name, kind).await, before + 1, "{kind} {text:.60}");
        }
    }
    assert_eq!(world.records().await.len(), 0);
    // With fewer fields than hyper reads, but more than the limit, it is a request.
    let many = vec!["x: y"; 64];
    world.get_with(ALL, LIST, &many).await.refused(431, "MG108");
    assert_eq!(world.last_record().await["refusal"], "MG108");
    assert_eq!(world.sandbox.received().len(), 0);
}

/// An answer that looks like hyper's own is passed on as it is, however it is cut into pieces.
#[tokio::test]
async fn a_body_that_looks_like_such_an_answer_is_passed_on() {
    let own = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
               date: Sun, 29 Nov 2026 22:07:42 GMT\r\n\r\n";
    for before in [0, 10, 32 << 10, 64 << 10] {
        let body = "x".repeat(before) + own;
        let head = format!("HTTP/1.1 500 Broken\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", body.len());
        let origin = Origin::start(vec![vec![Step::Read, Step::write(format!("{head}{body}"))]]);
        let world = still().upstream(format!("http://{}", origin.address())).start().await;
        let reply = world.get(ALL, ORG).await.expect(500);
        assert!(reply.body == body.as_bytes(), "{before}: {}", String::from_utf8_lossy(&reply.body));
        assert_eq!(unread(&world, "gateway", "syntax").await, 0);
    }
}

/// What comes before on the same connection is answered first; so is a caller that goes on sending.
#[tokio::test]
async fn such_an_answer_arrives_behind_others_and_at_a_client_that_is_still_sending() {
    let world = still().start().await;
    let own = with_key(ALL, &[]);
    let good = format!("GET {ORG} HTTP/1.1\r\nhost: a\r\n{own}\r\n");
    let all = format!("{good}{good}BAD\r\n\r\n");
    let text = until_end(TcpStream::connect(world.gateway).await.unwrap(), all.as_bytes()).await;
    let statuses: Vec<_> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "400"], "{text}");
    assert!(text.contains("MG107"), "{text}");
    for _ in 0..20 {
        let flood = format!("GET {ORG} HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(4 << 20));
        raw(world.gateway, &flood).await.unwrap().refused(431, "MG108");
    }
}

#[tokio::test]
async fn http_2_without_tls_and_a_head_that_is_cut_are_counted() {
    let world = still().start().await;
    let mut stream = TcpStream::connect(world.gateway).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(unread(&world, "gateway", "http2-preface").await, 1);
    let mut stream = TcpStream::connect(world.gateway).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(unread(&world, "gateway", "cut").await, 1);
    // Not so a connection that ends between two requests, or within a body: that request has a record.
    let own = with_key(ALL, &["content-type: application/json", "content-length: 9"]);
    let mut stream = TcpStream::connect(world.gateway).await.unwrap();
    stream.write_all(format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{own}\r\n{{").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(world.records().await.len(), 1);
    assert_eq!(unread(&world, "gateway", "cut").await, 1);
    assert_eq!(unread(&world, "gateway", "syntax").await, 0);
}

#[tokio::test]
async fn who_says_nothing_or_stops_within_a_head_is_cut_off_and_counted() {
    let plan = Plan::default().clock(Clock::movable()).set("limits", "first_byte = \"5s\"\nhead = \"10s\"");
    let world = plan.start().await;
    let mut silent = TcpStream::connect(world.gateway).await.unwrap();
    let mut slow = TcpStream::connect(world.gateway).await.unwrap();
    slow.write_all(b"GET / HT").await.unwrap();
    raw(world.gateway, &format!("GET {ORG} HTTP/1.1\r\nhost: a\r\n{}\r\n", with_key(ALL, &["connection: close"])))
        .await;
    world.clock.advance(Duration::from_secs(6));
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(unread(&world, "gateway", "silent").await, 1);
    assert_eq!(unread(&world, "gateway", "slow").await, 0);
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(slow.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(unread(&world, "gateway", "slow").await, 1);
}

#[tokio::test]
async fn a_method_that_is_not_implemented_is_501_and_ends_the_connection() {
    let world = still().start().await;
    let long = "M".repeat(33);
    let keys = [with_key(ALL, &[]), format!("authorization: Bearer {OPERATOR}\r\n")];
    for (door, key) in doors(&world).into_iter().zip(keys) {
        for line in ["CONNECT localhost:80", "CONNECT /livez", "TRACE /livez", &format!("{long} /livez")] {
            let text = format!(
                "{line} HTTP/1.1\r\nhost: localhost\r\n{key}\r\nGET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
            );
            let answers = until_end(TcpStream::connect(door).await.unwrap(), text.as_bytes()).await;
            assert!(answers.starts_with("HTTP/1.1 501 "), "{line}: {answers}");
            assert!(answers.contains("\r\nconnection: close\r\n"), "{line}: {answers}");
            assert!(answers.contains("application/problem+json"), "{line}: {answers}");
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{line}: what follows is no request: {answers}");
        }
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

/// RFC 9110 section 7.8: a server may ignore `Upgrade`, and this one always does.
#[tokio::test]
async fn an_upgrade_is_ignored() {
    let world = still().start().await;
    let h2c = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n";
    let websocket =
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n";
    let own = with_key(ALL, &[]);
    for (door, target) in doors(&world).into_iter().zip([ORG, "/livez"]) {
        for upgrade in [h2c, websocket] {
            let first = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{own}{upgrade}\r\n");
            let second = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{own}\r\n");
            let text = until_end(TcpStream::connect(door).await.unwrap(), format!("{first}{second}").as_bytes()).await;
            assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
            assert!(!text.to_ascii_lowercase().contains("upgrade"), "{text}");
        }
    }
    let received = world.sandbox.received();
    assert!(received.iter().all(|one| one.headers.iter().all(|(name, _)| name != "upgrade")), "{received:?}");
}

/// The status and the code of an answer over HTTP/2.
async fn told(response: Response<Incoming>) -> (u16, String) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    assert!(head.headers.contains_key("x-request-id"), "{head:?}");
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (head.status.as_u16(), json["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn over_http_2_a_method_or_a_head_too_many_ends_its_stream_alone() {
    let (world, roots) = tls::world(still(), "", &[]).await;
    let (mut sender, _end) = tls::h2(&world, &roots, 1 << 20).await;
    let mut exchange = async |request: Request<Empty<Bytes>>| told(sender.send_request(request).await.unwrap()).await;
    let get = || tls::h2_get(ALL, ORG);
    for method in [Method::TRACE, Method::from_bytes("M".repeat(33).as_bytes()).unwrap()] {
        let mut request = get();
        *request.method_mut() = method;
        assert_eq!(exchange(request).await, (501, "MG123".to_owned()));
    }
    let connect = Request::connect("localhost:80").header("authorization", format!("Token {ALL}"));
    assert_eq!(exchange(connect.body(Empty::new()).unwrap()).await, (501, "MG123".to_owned()));
    assert_eq!(world.records().await.len(), 3);
    let with = |fields: usize, bytes: usize| {
        let mut request = get();
        let value = "y".repeat(bytes);
        (0..fields).for_each(|at| drop(request.headers_mut().insert(name(at), value.parse().unwrap())));
        request
    };
    assert_eq!(exchange(with(60, 400)).await.0, 200, "within both limits");
    assert_eq!(exchange(with(64, 1)).await, (431, "MG108".to_owned()));
    assert_eq!(exchange(with(1, 33 << 10)).await, (431, "MG108".to_owned()));
    assert_eq!(world.last_record().await["refusal"], "MG108");
    // Beyond twice the limit h2 itself answers, and keeps nothing. That answer too is whole.
    let before = world.records().await.len();
    for request in [with(1, 70 << 10), with(3000, 10), with(1, 70 << 10)] {
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        for name in ["date", "cache-control"] {
            assert!(head.headers.contains_key(name), "no {name}: {head:?}");
        }
        assert_eq!(head.status, 431);
        assert_eq!(head.headers["content-type"], "application/problem+json");
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.headers["content-length"], body.len().to_string());
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&"MG108".into(), &431.into()));
        assert_eq!(problem["instance"], head.headers["x-request-id"].to_str().unwrap());
    }
    // HEAD is answered without a body; so is the client that has no more room for one.
    let mut request = with(1, 70 << 10);
    *request.method_mut() = Method::HEAD;
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("x-request-id")), (431, true));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "");
    assert_eq!((unread(&world, "gateway", "head-too-large").await, world.records().await.len()), (4, before));
    let mut exchange = async |request: Request<Empty<Bytes>>| told(sender.send_request(request).await.unwrap()).await;
    assert_eq!(exchange(get()).await.0, 200, "the connection goes on");
}

/// A head whose answer is a problem, or has no body.
async fn is_whole(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let head = String::from_utf8_lossy(&read_to(stream, HEADERS).await).into_owned();
    let is_whole = head.contains("application/problem+json");
    assert_eq!(head.contains("content-length\u{1}0"), !is_whole, "{head}");
    if is_whole {
        let problem: serde_json::Value = serde_json::from_slice(&read_to(stream, DATA).await).unwrap();
        assert_eq!(problem["code"], "MG108");
    }
    is_whole
}

/// The body of such an answer counts in the client's windows as any: a client that takes none gets none.
#[tokio::test]
async fn over_http_2_the_problem_of_a_head_too_large_fits_the_window_of_its_client() {
    let (world, roots) = tls::world(still(), "", &[]).await;
    for (stream_window, has_body) in [(65_535, true), (0, false)] {
        let window = frame(SETTINGS, 0, 0, &[&[0, 4][..], &u32::to_be_bytes(stream_window)].concat());
        let mut stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
        stream.write_all(&[PREFACE, &window].concat()).await.unwrap();
        let mut bodies = 0;
        for number in (1..40).step_by(2) {
            stream.write_all(&large(number, 1).concat()).await.unwrap();
            if !is_whole(&mut stream).await {
                break;
            }
            bodies += 1;
        }
        // Some are given in advance, not any number.
        assert!(if has_body { (3..19).contains(&bodies) } else { bodies == 0 }, "{bodies}");
        let grant = frame(WINDOW_UPDATE, 0, 0, &u32::to_be_bytes(16_384));
        stream.write_all(&[grant, large(41, 1).concat()].concat()).await.unwrap();
        assert_eq!(is_whole(&mut stream).await, has_body);
    }
}

/// What such a body takes of the window is given to no other answer, and what the client grants later is used to the last byte.
#[tokio::test]
async fn over_http_2_no_client_gets_more_than_it_takes() {
    const BYTES: usize = 100_000;
    let (world, roots) = tls::world(still(), "", &[]).await;
    let body = format!("{{\"variables\":[],\"x\":\"{}\"}}", "y".repeat(BYTES));
    let length = body.len();
    let own = FaultKind::Answer {
        status: 200,
        body: Some(body),
        content_type: None,
        headers: std::collections::BTreeMap::new(),
        effect: false,
    };
    world.sandbox.fault(Fault::always("GET", VARIABLES, own));
    let window = frame(SETTINGS, 0, 0, &[&[0, 4][..], &u32::to_be_bytes(1 << 20)].concat());
    let start = [PREFACE, &window, &large(1, 1).concat(), &large(3, 1).concat()].concat();
    let mut stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    stream.write_all(&start).await.unwrap();
    let mut problems = 0;
    for _ in 0..2 {
        read_to(&mut stream, HEADERS).await;
        problems += read_to(&mut stream, DATA).await.len();
    }
    assert!(problems > 200, "{problems}");
    stream.write_all(&frame(HEADERS, WHOLE, 5, &get_block(VARIABLES, &[]))).await.unwrap();
    let (mut taken, mut granted, mut got) = (problems, 65_535, 0);
    for grant in [1, 10_000, 16_384, 40_000] {
        // All that it takes, and then nothing for a while.
        while let Ok(data) = tokio::time::timeout(Duration::from_millis(300), read_to(&mut stream, DATA)).await {
            (taken, got) = (taken + data.len(), got + data.len());
            assert!(taken <= granted, "{taken} of {granted}");
        }
        stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &u32::to_be_bytes(grant))).await.unwrap();
        granted += grant as usize;
    }
    while got < length {
        got += read_to(&mut stream, DATA).await.len();
    }
    assert_eq!(got, length);
    assert!(problems + length <= granted && problems + length > granted - 40_000, "the last grant was needed");
}

fn name(at: usize) -> http::HeaderName {
    http::HeaderName::try_from(format!("x-{at}")).unwrap()
}

/// A frame of HTTP/2: type, flags, stream, payload.
pub(super) fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A field that is neither compressed nor remembered.
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// What an HTTP/2 client sends first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// END_STREAM and END_HEADERS.
pub(super) const WHOLE: u8 = 5;

/// An HTTP/2 connection that these frames were sent on.
pub(super) async fn frames(
    world: &World,
    roots: &std::sync::Arc<rustls::RootCertStore>,
    frames: Vec<Vec<u8>>,
) -> impl AsyncRead + Unpin + use<> {
    let mut stream = tls::connect(world, roots, &["h2"], None).await.unwrap();
    let bytes = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), frames.concat()].concat();
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Reads frames up to the first of this type.
pub(super) async fn read_to(stream: &mut (impl AsyncRead + Unpin), kind: u8) -> Vec<u8> {
    read_to_one_of(stream, &[kind]).await.1
}

/// The same with several types; which of them it is.
pub(super) async fn read_to_one_of(stream: &mut (impl AsyncRead + Unpin), kinds: &[u8]) -> (u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if kinds.contains(&head[3]) {
            return (head[3], payload);
        }
    }
}

pub(super) fn get_block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let own = format!("Token {ALL}");
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    let all = [&fields, more, &[("authorization", &*own)]].concat();
    all.into_iter().map(|(name, value)| field(name, value)).collect::<Vec<_>>().concat()
}

/// A head of a request with a body.
pub(super) fn patch_block(more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = get_block(ORG, more);
    let method = field(":method", "GET").len();
    block.splice(..method, field(":method", "PATCH"));
    block
}

#[tokio::test]
async fn over_http_2_what_breaks_its_rules_is_reset_or_ends_the_connection() {
    let (world, roots) = tls::world(still(), "", &[]).await;
    let bad = [
        get_block(ORG, &[("Upper", "a")]),
        get_block(ORG, &[("connection", "close")]),
        get_block(ORG, &[("a", "b\r\nc: d")]),
        get_block(ORG, &[("a", "b"), (":path", ORG)]),
        // Extended CONNECT (RFC 8441), which nobody offered.
        [field(":method", "CONNECT"), field(":protocol", "websocket"), get_block(ORG, &[])].concat(),
    ];
    for block in bad {
        let good = frame(HEADERS, WHOLE, 3, &get_block(ORG, &[]));
        let mut stream = frames(&world, &roots, vec![frame(HEADERS, WHOLE, 1, &block), good]).await;
        let (ends, _) = read_to_one_of(&mut stream, &[RST_STREAM, GOAWAY]).await;
        if ends == RST_STREAM {
            read_to(&mut stream, HEADERS).await;
        }
    }
    assert_eq!(world.sandbox.received().len(), 1, "only what is good");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = unread(&world, "gateway", "http2-protocol").await;
    let mut stream = frames(&world, &roots, vec![frame(SETTINGS, 0, 1, &[])]).await;
    assert_eq!(read_to(&mut stream, GOAWAY).await[7], 1, "PROTOCOL_ERROR");
    until_counted(&world, "http2-protocol", before + 1).await;
    // Heads that do not end (CVE-2024-27316).
    let endless = std::iter::once(frame(HEADERS, 1, 1, &get_block(ORG, &[])))
        .chain((0..200).map(|_| frame(9, 0, 1, &field("x", &"y".repeat(100)))));
    let mut stream = frames(&world, &roots, endless.collect()).await;
    assert_eq!(read_to(&mut stream, GOAWAY).await[7], 11, "ENHANCE_YOUR_CALM");
    until_counted(&world, "http2-flood", 1).await;
    // Streams that are reset at once (CVE-2023-44487).
    let mut rapid = Vec::new();
    for stream in (1..200).step_by(2) {
        rapid.push(frame(HEADERS, WHOLE, stream, &get_block(ORG, &[])));
        rapid.push(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut stream = frames(&world, &roots, rapid).await;
    assert_eq!(read_to(&mut stream, GOAWAY).await[7], 11, "ENHANCE_YOUR_CALM");
    until_counted(&world, "http2-flood", 2).await;
}

async fn until_counted(world: &World, kind: &str, count: u64) {
    for _ in 0..500 {
        if unread(world, "gateway", kind).await >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{kind} is not counted");
}

/// `100 Continue` asks for a body that will be read: a refusal by the head comes without it.
#[tokio::test]
async fn no_body_is_asked_for_that_nobody_reads() {
    let world = still().start().await;
    let body = "content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n";
    for (key, target, status) in [("nobody", ORG, "401"), (ALL, "/nowhere", "404"), ("key-reader", ORG, "403")] {
        let head = format!("PATCH {target} HTTP/1.1\r\nhost: a\r\n{body}authorization: Token {key}\r\n\r\n");
        let text = until_end(TcpStream::connect(world.gateway).await.unwrap(), head.as_bytes()).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    }
    let head = format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{body}authorization: Token {ALL}\r\n\r\n");
    let mut stream = TcpStream::connect(world.gateway).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert!(exchange(stream, "{}").await.is_some_and(|reply| reply.status != 408));
}
