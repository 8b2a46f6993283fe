//! `100 Continue` over HTTP/2, which hyper cannot send.

use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep};
use tokio_rustls::client::TlsStream;

use super::still;
use super::unread::{DATA, HEADERS, PREFACE, RST_STREAM, SETTINGS, WHOLE, field, frame, get_block, patch_block};
use crate::support::{ALL, ORG, Plan, World, tls, with_key};

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const JSON: (&str, &str) = ("content-type", "application/json");
/// `:status: 100`, as a field that no table remembers.
const CONTINUE: &[u8] = b"\x08\x03100";
/// `:status: 200` and `:status: 404` in the static table.
const OK: u8 = 0x88;
const NOT_FOUND: u8 = 0x8d;
/// The newest field of the client's table.
const NEWEST: [u8; 1] = [0x80 | 62];

type Client = TlsStream<TcpStream>;

async fn client(plan: Plan) -> (World, Client) {
    let (world, roots) = tls::world(plan, "", &[]).await;
    let mut stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    stream.write_all(&[PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    (world, stream)
}

/// The next frame of an answer: its type, its stream and its payload.
async fn next(stream: &mut Client) -> (u8, u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if matches!(head[3], DATA | HEADERS | RST_STREAM) {
            return (head[3], head[8], payload);
        }
    }
}

/// A request for the organization, with these bytes behind its fields.
fn patch(stream: u8, more: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[&patch_block(&[JSON]), more].concat())
}

async fn asked(stream: &mut Client, number: u8) {
    assert_eq!(next(stream).await, (HEADERS, number, CONTINUE.to_vec()));
}

/// Sends the body, and reads the answer.
async fn finish(stream: &mut Client, number: u8) {
    stream.write_all(&frame(DATA, END_STREAM, number, b"{\"name\":\"a\"}")).await.unwrap();
    let (kind, own, head) = next(stream).await;
    assert_eq!((kind, own, head[0]), (HEADERS, number, OK), "{}", String::from_utf8_lossy(&head));
    while next(stream).await.0 != DATA {}
}

#[tokio::test]
async fn over_http_2_a_body_is_asked_for_however_that_is_expected() {
    let (world, mut stream) = client(still()).await;
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let expectations = [
        field("expect", "100-continue"),
        field("expect", "100-Continue"),
        [&[0x0f, 35 - 15][..], &text("100-continue")].concat(),
        [&[0x40][..], &text("expect"), &text("100-continue")].concat(),
        NEWEST.to_vec(),
        [&[0x0f, 62 - 15][..], &text("100-continue")].concat(),
        [field("expect", "other"), field("expect", "100-continue")].concat(),
    ];
    for (number, expectation) in (1..).step_by(2).zip(&expectations) {
        stream.write_all(&patch(number, expectation)).await.unwrap();
        asked(&mut stream, number).await;
        finish(&mut stream, number).await;
    }
    assert_eq!(world.received("PATCH", ORG), expectations.len());
    // Nothing of it goes upstream.
    assert!(world.sandbox.received().iter().all(|one| one.headers.iter().all(|(name, _)| name != "expect")));
}

#[tokio::test]
async fn over_http_2_each_stream_asks_for_its_own_body_and_a_client_may_send_at_once() {
    let (_world, mut stream) = client(still()).await;
    let expectation = field("expect", "100-continue");
    let numbers = [1, 3, 5, 7];
    let heads: Vec<_> = numbers.iter().flat_map(|number| patch(*number, &expectation)).collect();
    stream.write_all(&heads).await.unwrap();
    let mut seen = Vec::new();
    for _ in numbers {
        let (kind, number, payload) = next(&mut stream).await;
        assert_eq!((kind, &*payload), (HEADERS, CONTINUE));
        seen.push(number);
    }
    seen.sort_unstable();
    assert_eq!(seen, numbers);
    for number in numbers {
        finish(&mut stream, number).await;
    }
    // Without an expectation, and with another one, nobody asks.
    for (number, expectation) in [(9, Vec::new()), (11, field("expect", "9"))] {
        stream.write_all(&patch(number, &expectation)).await.unwrap();
        finish(&mut stream, number).await;
    }
    let all = [patch(13, &expectation), frame(DATA, END_STREAM, 13, b"{\"name\":\"a\"}")].concat();
    stream.write_all(&all).await.unwrap();
    let (kind, number, head) = next(&mut stream).await;
    assert_eq!((kind, number, head[0]), (HEADERS, 13, OK), "what has arrived is not asked for");
}

/// As over HTTP/1.1: a refusal by the head comes without it, and so does the answer to a request without a body.
#[tokio::test]
async fn over_http_2_no_body_is_asked_for_that_nobody_reads() {
    let (world, mut stream) = client(still()).await;
    let expectation = field("expect", "100-continue");
    let nowhere = [field(":method", "PATCH"), field(":scheme", "https"), field(":authority", "localhost")].concat();
    let key = field("authorization", &format!("Token {ALL}"));
    let nowhere = [nowhere, field(":path", "/nowhere"), key, expectation.clone()].concat();
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &nowhere)).await.unwrap();
    let (kind, number, head) = next(&mut stream).await;
    assert_eq!((kind, number, head[0]), (HEADERS, 1, NOT_FOUND));
    let get = [get_block(ORG, &[]), expectation.clone()].concat();
    stream.write_all(&frame(HEADERS, WHOLE, 3, &get)).await.unwrap();
    loop {
        match next(&mut stream).await {
            (HEADERS, 3, head) => break assert_eq!(head[0], OK),
            (kind, number, payload) => assert!(number == 1 && kind != HEADERS, "{payload:02x?}"),
        }
    }
    // Nor for one that its client has given up.
    let reset = frame(RST_STREAM, 0, 5, &8_u32.to_be_bytes());
    stream.write_all(&[patch(5, &expectation), reset].concat()).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    stream.write_all(&patch(7, &expectation)).await.unwrap();
    loop {
        match next(&mut stream).await {
            (DATA | RST_STREAM, 1 | 3, _) => {}
            other => break assert_eq!(other, (HEADERS, 7, CONTINUE.to_vec())),
        }
    }
    finish(&mut stream, 7).await;
    assert_eq!(world.received("PATCH", ORG), 1);
}

/// curl waits for a minute here, so that it would not come to an end without being asked.
#[tokio::test(flavor = "multi_thread")]
async fn curl_is_asked_for_its_body() {
    let (world, _roots) = tls::world(still(), "", &[]).await;
    let key = with_key(ALL, &[]);
    let url = format!("https://{}{ORG}", world.gateway);
    let mut curl = Command::new("curl");
    curl.args(["-sik", "--http2", "--expect100-timeout", "60", "-m", "30", "-X", "PATCH", "-d", "{\"name\":\"a\"}"]);
    curl.args(["-H", "expect: 100-continue", "-H", "content-type: application/json", "-H", key.trim(), &url]);
    match curl.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => eprintln!("skipped: no curl here"),
        answer => {
            let answer = String::from_utf8(answer.unwrap().stdout).unwrap();
            assert!(answer.starts_with("HTTP/2 100 \r\n\r\nHTTP/2 200 \r\n"), "{answer}");
        }
    }
}
