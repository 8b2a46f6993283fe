//! What the h2 library refuses by itself on one HTTP/2 stream.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::still;
use super::unread::{
    DATA, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, WHOLE, field, frame, get_block, patch_block,
};
use crate::support::tls::{connect_to, show};
use crate::support::{OPERATOR, ORG, World, exchange, new_dir};

const PROTOCOL_ERROR: u8 = 1;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

/// A case: its name, the frames of one stream or two, what answers them, and the kinds that are counted.
type Case = (&'static str, Vec<Vec<u8>>, &'static [(u8, u8)], &'static [(&'static str, u64)]);

/// 70 KB of fields, as HEADERS and CONTINUATION.
pub(super) fn large(stream: u8, flags: u8) -> Vec<Vec<u8>> {
    let text = "y".repeat(100);
    let fields = (0..700).map(|at| field(&format!("x-{at}"), &text)).collect::<Vec<_>>().concat();
    let block = [get_block(ORG, &[]), fields].concat();
    let pieces: Vec<_> = block.chunks(16 << 10).collect();
    let frames = pieces.iter().enumerate().map(|(at, piece)| match at {
        0 => frame(HEADERS, flags, stream, piece),
        _ => frame(9, if at + 1 == pieces.len() { END_HEADERS } else { 0 }, stream, piece),
    });
    frames.collect()
}

const BAD: &[(u8, u8)] = &[(RST_STREAM, PROTOCOL_ERROR)];
const ONE: &[(&str, u64)] = &[("http2-stream", 1)];

/// What is wrong with a head.
fn heads() -> Vec<Case> {
    let whole = |more: &[(&str, &str)]| vec![frame(HEADERS, WHOLE, 1, &get_block(ORG, more))];
    vec![
        // h2 takes this for a fault of compression, which all streams share.
        ("an upper-case name", whole(&[("Upper", "a")]), &[(GOAWAY, PROTOCOL_ERROR)], &[("http2-protocol", 1)]),
        ("Connection", whole(&[("connection", "close")]), BAD, ONE),
        ("two paths", whole(&[(":path", ORG)]), BAD, ONE),
        ("a pseudo-header behind a field", whole(&[("a", "b"), (":path", ORG)]), BAD, ONE),
        ("TE that is not trailers", whole(&[("te", "gzip")]), BAD, ONE),
        ("a length without a body", whole(&[("content-length", "5")]), BAD, ONE),
        (
            "two heads that are too large",
            [large(1, END_STREAM), large(3, END_STREAM)].concat(),
            &[(HEADERS, 0), (HEADERS, 0)],
            &[("head-too-large", 2)],
        ),
        (
            "a head that is too large, of a request with a body",
            large(1, 0),
            &[(HEADERS, 0), (RST_STREAM, PROTOCOL_ERROR)],
            &[("head-too-large", 1)],
        ),
    ]
}

/// What is wrong with a body.
fn bodies() -> Vec<Case> {
    let with_body = |stream: u8, more: &[(&str, &str)]| frame(HEADERS, END_HEADERS, stream, &patch_block(more));
    vec![
        (
            "a body that is shorter than its length",
            vec![with_body(1, &[("content-length", "5")]), frame(DATA, END_STREAM, 1, b"{}")],
            BAD,
            ONE,
        ),
        (
            "trailers that do not end the stream",
            vec![with_body(1, &[]), frame(HEADERS, END_HEADERS, 1, &field("a", "b"))],
            BAD,
            ONE,
        ),
    ]
}

/// How many requests a door has not read, by kind.
async fn counts(world: &World, roots: &Arc<RootCertStore>, door: &str) -> BTreeMap<String, u64> {
    let stream = connect_to(world.service.operator_addresses()[0], roots, &["http/1.1"], None).await.unwrap();
    let head = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let key = format!("authorization: Bearer {OPERATOR}\r\n\r\n");
    let metrics = exchange(stream, &(head.to_owned() + &key)).await.unwrap().expect(200);
    let name = format!("makegate_unread_requests_total{{door=\"{door}\",kind=\"");
    let lines = metrics.text().lines().filter_map(|line| line.strip_prefix(&name)?.split_once("\"} "));
    lines.filter(|(_, count)| *count != "0").map(|(kind, count)| (kind.to_owned(), count.parse().unwrap())).collect()
}

/// Sends the frames and then a good request. Once that is answered, and so many frames came back on the other streams: the types of these
/// and, of resets, the error codes.
async fn told(door: SocketAddr, roots: &Arc<RootCertStore>, frames: &[Vec<u8>], number: usize) -> Vec<(u8, u8)> {
    const GOOD: u8 = 99;
    let mut stream = connect_to(door, roots, &["h2"], None).await.unwrap();
    let good = frame(HEADERS, WHOLE, GOOD, &get_block("/livez", &[]));
    let all = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), frames.concat(), good].concat();
    stream.write_all(&all).await.unwrap();
    let (mut seen, mut is_answered) = (Vec::new(), false);
    loop {
        let mut head = [0; 9];
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut head)).await;
        read.expect("no answer").unwrap_or_else(|error| panic!("after {seen:?}: {error}"));
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match (head[3], head[8]) {
            (GOAWAY, _) => {
                seen.push((GOAWAY, payload[7]));
                return seen;
            }
            (HEADERS, GOOD) => is_answered = true,
            (HEADERS, _) => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                assert!(text.contains("x-request-id") && text.contains("application/problem+json"), "{text}");
                seen.push((HEADERS, 0));
            }
            (RST_STREAM, _) => seen.push((RST_STREAM, payload[3])),
            _ => continue,
        }
        if is_answered && seen.len() >= number {
            return seen;
        }
    }
}

#[tokio::test]
async fn what_h2_refuses_on_one_stream_is_counted_by_kind_and_the_connection_goes_on() {
    let dir = new_dir();
    let roots = show(dir.path(), "cert.pem", "key.pem");
    let tls = "tls = { cert = \"cert.pem\", key = \"key.pem\" }";
    let plan = still().set("gateway", tls).set("operator", tls).set("limits", "h2_window_bytes = \"2KiB\"");
    let world = plan.start_in(dir).await;
    for (door, name) in [(world.gateway, "gateway"), (world.service.operator_addresses()[0], "operator")] {
        // The operator door answers some requests before their bodies.
        let cases = if name == "gateway" { [heads(), bodies()].concat() } else { heads() };
        for (what, frames, expected, kinds) in cases {
            let before = counts(&world, &roots, name).await;
            let seen = told(door, &roots, &frames, expected.len()).await;
            assert_eq!(seen, expected, "{name}: {what}");
            let mut after = counts(&world, &roots, name).await;
            for (kind, count) in &before {
                *after.get_mut(kind).unwrap() -= count;
            }
            after.retain(|_, count| *count > 0);
            let kinds: BTreeMap<_, _> = kinds.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
            assert_eq!(after, kinds, "{name}: {what}");
        }
    }
    assert_eq!(world.sandbox.received().len(), 0);
}
