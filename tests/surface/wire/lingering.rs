//! A refusal reaches its caller although the body is still coming, and the next request on the connection is good.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Duration, timeout};

use super::{USAGE, still};
use crate::support::{ALL, LIST, ORG, Plan, READER, tls, with_key};

const SIZES: [usize; 3] = [10_000, 900_000, 5_000_000];

/// No machine is so slow that the rest of a body is not read in this time.
fn patient() -> Plan {
    still().set("limits", "linger = \"60s\"")
}

/// Reads one answer; empty if the connection ended.
async fn answer(connection: &mut TcpStream) -> String {
    let mut all = Vec::new();
    loop {
        if connection.read_buf(&mut all).await.unwrap() == 0 {
            return String::from_utf8(all).unwrap();
        }
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return text;
        }
    }
}

fn closes(answer: &str) -> bool {
    answer.split("\r\n\r\n").next().unwrap().lines().any(|line| line == "connection: close")
}

/// As Python and Go do: the whole body is written before the answer is read.
async fn send(connection: &mut TcpStream, head: &str, size: usize, chunked: bool) -> String {
    let framing = if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {size}") };
    connection.write_all(format!("{head}host: a\r\n{framing}\r\n\r\n").as_bytes()).await.unwrap();
    let piece = vec![b'['; 10_000];
    for _ in 0..size / piece.len() {
        if chunked {
            connection.write_all(b"2710\r\n").await.unwrap();
        }
        connection.write_all(&piece).await.unwrap();
        if chunked {
            connection.write_all(b"\r\n").await.unwrap();
        }
    }
    if chunked {
        connection.write_all(b"0\r\n\r\n").await.unwrap();
    }
    answer(connection).await
}

#[tokio::test]
async fn a_refusal_arrives_whatever_is_still_being_sent_and_the_next_request_is_good() {
    let world = patient().start().await;
    let json = "content-type: application/json";
    let good = format!("GET {USAGE} HTTP/1.1\r\nhost: a\r\n{}\r\n", with_key(ALL, &[]));
    let operator = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let cases = [
        (world.gateway, 401, format!("PATCH {ORG} HTTP/1.1\r\n"), &*good),
        (world.gateway, 404, format!("POST /nowhere HTTP/1.1\r\n{}", with_key(ALL, &[])), &good),
        (world.gateway, 403, format!("PATCH {ORG} HTTP/1.1\r\n{}", with_key(READER, &[])), &good),
        (world.gateway, 415, format!("PATCH {ORG} HTTP/1.1\r\n{}", with_key(ALL, &["content-type: a/b"])), &good),
        (world.gateway, 413, format!("PATCH {ORG} HTTP/1.1\r\n{}", with_key(ALL, &[json])), &good),
        (world.service.operator_addresses()[0], 421, "POST /cache/purge HTTP/1.1\r\n".to_owned(), operator),
    ];
    for (door, refusal, head, next) in cases {
        for size in SIZES {
            for chunked in [false, true] {
                let status = match refusal {
                    413 if size < 1 << 20 => 400, // it is no JSON
                    415 if size > 1 << 20 && !chunked => 413,
                    other => other,
                };
                let mut connection = TcpStream::connect(door).await.unwrap();
                let refused = send(&mut connection, &head, size, chunked).await;
                let what = format!("{status} {size} {chunked}");
                assert!(refused.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {refused}");
                if closes(&refused) {
                    assert!(chunked, "{what}: the rest of a body of known length fits: {refused}");
                    assert_eq!(answer(&mut connection).await, "", "{what}");
                } else {
                    connection.write_all(next.as_bytes()).await.unwrap();
                    let answered = answer(&mut connection).await;
                    assert!(answered.starts_with("HTTP/1.1 200 "), "{what}: {answered}");
                }
            }
        }
    }
    assert_eq!(world.received("PATCH", ORG), 0);
}

/// hyper does not say of a chunked body that it is over.
#[tokio::test]
async fn a_connection_goes_on_behind_a_chunked_body_that_was_read_whole() {
    let world = patient().start().await;
    let mut connection = TcpStream::connect(world.gateway).await.unwrap();
    let key = with_key(ALL, &["content-type: application/json", "transfer-encoding: chunked"]);
    let write = format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{key}\r\n2\r\n{{}}\r\n0\r\n\r\n");
    for _ in 0..3 {
        connection.write_all(write.as_bytes()).await.unwrap();
        let done = answer(&mut connection).await;
        assert!(done.starts_with("HTTP/1.1 200 ") && !closes(&done), "{done}");
    }
}

#[tokio::test]
async fn where_more_may_come_than_is_thrown_away_the_end_is_announced() {
    let world = patient().set("limits", "linger_bytes = \"100KiB\"").start().await;
    let mut connection = TcpStream::connect(world.gateway).await.unwrap();
    let head = format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let refused = answer(&mut connection).await;
    assert!(refused.starts_with("HTTP/1.1 401 ") && closes(&refused), "{refused}");
    // A caller that waits to be asked for its body is not asked, and sends none.
    let mut connection = TcpStream::connect(world.gateway).await.unwrap();
    let head = format!("POST {LIST} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let refused = answer(&mut connection).await;
    assert!(refused.starts_with("HTTP/1.1 401 ") && closes(&refused), "{refused}");
    assert_eq!(answer(&mut connection).await, "", "the connection ends");
}

#[tokio::test]
async fn over_http_2_no_status_is_lost() {
    let (world, roots) = tls::world(patient(), "", &[]).await;
    let stream = tls::connect(&world, &roots, &["h2"], None).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driven = async { drop(connection.await) };
    let asked = async move {
        for round in 0..30 {
            let body = Full::new(Bytes::from(vec![b' '; SIZES[round % SIZES.len()]]));
            let request = Request::builder().method(Method::PATCH).uri(format!("https://localhost{ORG}"));
            let refused = sender.send_request(request.body(body).unwrap()).await.unwrap();
            assert_eq!(refused.status(), 401, "round {round}");
            assert!(refused.into_body().collect().await.unwrap().to_bytes().starts_with(b"{\"type\""));
        }
    };
    tokio::join!(driven, asked);
}

/// A peer without a key fills a door with bodies that the door only throws away. Others are served all the same, and keep their
/// connections.
#[tokio::test]
async fn bodies_that_are_thrown_away_give_way_to_other_connections() {
    const MOST: usize = 16;
    let plan = Plan::default().set("limits", &format!("linger = \"60s\"\nconnections = {MOST}"));
    let world = plan.start().await;
    let probe = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for door in [world.gateway, world.service.operator_addresses()[0]] {
        let connect = async || {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let mut connection = timeout(Duration::from_secs(20), socket.connect(door)).await.unwrap().unwrap();
            connection.write_all(probe).await.unwrap();
            let answered = timeout(Duration::from_secs(20), answer(&mut connection)).await.expect("it is served");
            assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
            connection
        };
        let mut stays = connect().await;
        let mut held = Vec::new();
        for round in 0..4 {
            while held.len() < (round + 1) * MOST {
                let mut connection = TcpStream::connect(door).await.unwrap();
                connection
                    .write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000\r\n\r\nx")
                    .await
                    .unwrap();
                held.push(connection);
            }
            drop(connect().await);
            stays.write_all(probe).await.unwrap();
            assert!(answer(&mut stays).await.starts_with("HTTP/1.1 200"), "an idle connection of another peer stays");
        }
    }
}
