//! `#` over HTTP/2: the h2 library would cut it off with what follows.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::time::{Duration, sleep, timeout};

use super::still;
use super::unread::{
    DATA, HEADERS, PREFACE, RST_STREAM, SETTINGS, WHOLE, field, frame, get_block, read_to, read_to_one_of, unread,
};
use crate::support::{ALL, ORG, VARIABLES, exchange, tls, with_key};

const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` and `:status: 400` in the static table.
const OK: u8 = 0x88;
const BAD_REQUEST: u8 = 0x8c;
/// What takes the name of the newest field of the client's table, and is not added to it.
const NEWEST_NAME: [u8; 2] = [0x0f, 62 - 15];
/// The newest field of the client's table.
const NEWEST: [u8; 1] = [0x80 | 62];

/// Huffman codes: a character, its code and how many bits that has.
const CODES: [(char, u32, usize); 21] = [
    ('/', 0x18, 6),
    ('a', 0x3, 5),
    ('b', 0x23, 6),
    ('d', 0x24, 6),
    ('e', 0x5, 5),
    ('g', 0x26, 6),
    ('i', 0x6, 5),
    ('l', 0x28, 6),
    ('n', 0x2a, 6),
    ('o', 0x7, 5),
    ('p', 0x2b, 6),
    ('r', 0x2c, 6),
    ('s', 0x8, 5),
    ('t', 0x9, 5),
    ('v', 0x77, 7),
    ('z', 0x7b, 7),
    ('1', 0x1, 5),
    ('2', 0x2, 5),
    ('=', 0x20, 6),
    ('?', 0x3fc, 10),
    ('#', 0xffa, 12),
];

fn huffman(text: &str) -> Vec<u8> {
    let code = |c: char| CODES.iter().find(|(known, ..)| *known == c).map(|(_, code, bits)| format!("{code:0bits$b}"));
    let mut bits: String = text.chars().map(|c| code(c).unwrap()).collect();
    bits.extend(std::iter::repeat_n('1', bits.len().next_multiple_of(8) - bits.len()));
    let bytes: Vec<_> = bits.as_bytes().chunks(8).map(|byte| std::str::from_utf8(byte).unwrap()).collect();
    let bytes = bytes.iter().map(|byte| u8::from_str_radix(byte, 2).unwrap());
    [0x80 | u8::try_from(bits.len() / 8).unwrap()].into_iter().chain(bytes).collect()
}

fn plain(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// A block, and the length of what is before its path.
fn delete(path: &[u8]) -> (Vec<u8>, usize) {
    let before = [field(":method", "DELETE"), field(":scheme", "https"), field(":authority", "localhost")].concat();
    let key = field("authorization", &format!("Token {ALL}"));
    ([&*before, path, &key].concat(), before.len())
}

/// Reads the answer to one request: the first byte of its head, and its body.
async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> (u8, serde_json::Value) {
    let (kind, head) = timeout(Duration::from_secs(20), read_to_one_of(stream, &[HEADERS, RST_STREAM])).await.unwrap();
    assert_eq!(kind, HEADERS, "{head:02x?}");
    (head[0], serde_json::from_slice(&read_to(stream, DATA).await).unwrap())
}

/// A target is refused with a problem and leaves a record, however it is encoded; nothing is sent upstream, and the other streams of the
/// connection go on.
#[tokio::test]
async fn over_http_2_a_fragment_is_refused_and_the_connection_goes_on() {
    let (world, roots) = tls::world(still(), "", &[]).await;
    let prod = format!("{VARIABLES}/prod");
    let mut stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    // This one puts a `:path` into the table. The rest keeps it there.
    let (first, _) = delete(&[&[0x44], &*plain(&format!("{ORG}#"))].concat());
    let first = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), frame(HEADERS, WHOLE, 1, &first)].concat();
    stream.write_all(&first).await.unwrap();
    let (status, problem) = read_answer(&mut stream).await;
    assert_eq!(status, BAD_REQUEST);
    let targets = [
        format!("{prod}#old"),
        format!("{prod}#"),
        format!("{prod}?a=b#old"),
        format!("{prod}?#"),
        format!("{VARIABLES}/#/prod"),
        format!("#{prod}"),
    ];
    let (mut number, mut refused) = (3, BTreeSet::from([problem["instance"].as_str().unwrap().to_owned()]));
    for target in &targets {
        let name = field(":path", "");
        let encoded = [
            [&[0x04], &*plain(target)].concat(),
            [&[0x14], &*huffman(target)].concat(),
            [&name[..name.len() - 1], &plain(target)].concat(),
            [&NEWEST_NAME[..], &huffman(target)].concat(),
            [&NEWEST_NAME[..], &plain(target)].concat(),
            [&[0x44], &*huffman(target)].concat(),
            NEWEST.to_vec(),
        ];
        for path in encoded {
            let (block, before) = delete(&path);
            let (head, rest) = block.split_at(before + path.len() / 2);
            let parts =
                [frame(HEADERS, END_STREAM, number, head), frame(CONTINUATION, END_HEADERS, number, rest)].concat();
            let cut = parts.len() - rest.len() / 2;
            stream.write_all(&parts[..cut]).await.unwrap();
            stream.flush().await.unwrap();
            sleep(Duration::from_millis(5)).await;
            stream.write_all(&parts[cut..]).await.unwrap();
            let (status, problem) = read_answer(&mut stream).await;
            assert_eq!((status, problem["code"].as_str()), (BAD_REQUEST, Some("MG101")), "{target} {path:02x?}");
            refused.insert(problem["instance"].as_str().unwrap().to_owned());
            stream.write_all(&frame(HEADERS, WHOLE, number + 2, &get_block(ORG, &[]))).await.unwrap();
            assert_eq!(read_answer(&mut stream).await.0, OK, "behind {target}");
            number += 4;
        }
    }
    assert!(world.sandbox.received().iter().all(|received| received.method == "GET" && received.path == ORG));
    let records = world.records().await;
    let records = records.iter().filter(|record| record["refusal"] == "MG101");
    let ids: BTreeSet<_> = records.map(|record| record["request"].as_str().unwrap().to_owned()).collect();
    assert!(ids.is_subset(&refused) && ids.len() == 30, "one record each, until there are too many: {ids:?}");
    drop(stream);
    assert_eq!(unread(&world, "gateway", "http2-stream").await, 0);
    // The same without a fragment is carried out.
    let mut stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    let (good, _) = delete(&[&[0x04], &*huffman(&prod)].concat());
    let good = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), frame(HEADERS, WHOLE, 1, &good)].concat();
    stream.write_all(&good).await.unwrap();
    read_to(&mut stream, HEADERS).await;
    assert_eq!(world.received("DELETE", &prod), 1);
}

/// The library's own encoder sends the key in Huffman code. It is the same key as over HTTP/1.1.
#[tokio::test]
async fn over_http_2_a_number_sign_in_a_header_stays() {
    let (world, roots) = tls::world(still(), "", &[]).await;
    let stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driven = async { drop(connection.await) };
    let asked = async move {
        for round in 0..3 {
            let request = Request::builder().method(Method::PATCH).uri(format!("https://localhost{ORG}"));
            let request = request.header("authorization", format!("Token {ALL}")).header("idempotency-key", "order#7");
            let request =
                request.header("content-type", "application/json").body(Full::<Bytes>::from("{\"name\":\"#\"}"));
            let answer = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers().contains_key("idempotent-replayed"), round > 0);
            let _body = answer.into_body().collect().await.unwrap().to_bytes();
        }
    };
    tokio::join!(driven, asked);
    let key = with_key(ALL, &["idempotency-key: order#7", "content-type: application/json", "connection: close"]);
    let stream = tls::connect(&world, &roots, &["http/1.1"], None).await.unwrap();
    let text = format!("PATCH {ORG} HTTP/1.1\r\nhost: localhost\r\n{key}content-length: 12\r\n\r\n{{\"name\":\"#\"}}");
    let again = exchange(stream, &text).await.unwrap();
    assert_eq!((again.status, again.header("idempotent-replayed").is_some()), (200, true), "{again:?}");
    assert_eq!(world.received("PATCH", ORG), 1);
}
