//! Promise 14. Nothing that a client of the operator door does stops the rest: pages it does not read are bounded,
//! its pages are made away from the threads that answer callers, and a client that leaves gives back its place.

use std::net::SocketAddr;
use std::time::Duration;

use makegate::hash;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{ALL, OPERATOR, ORG, Plan, READER, Reply, World, send};

/// The most followers of one operator, who is alone.
const FOLLOWERS: usize = 14;

fn operator(world: &World) -> SocketAddr {
    world.service.operator_addresses()[0]
}

async fn page(world: &World, target: &str) -> Reply {
    send(operator(world), "GET", target, &format!("authorization: Bearer {OPERATOR}\r\n"), "").await
}

/// A client that requests this, has read part of the head, and then stops reading.
async fn asked(world: &World, target: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut stream = socket.connect(operator(world)).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {OPERATOR}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut status)).await.expect("no answer").unwrap();
    stream
}

async fn follower(world: &World) -> (bool, TcpStream) {
    follower_with(world, OPERATOR).await
}

/// Whether a follower with this key was accepted, and its connection, once the answer's head has been read.
async fn follower_with(world: &World, key: &str) -> (bool, TcpStream) {
    let mut stream = TcpStream::connect(operator(world)).await.unwrap();
    let head =
        format!("GET /audit/follow?caller=nobody HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "no answer");
    }
    (answer.starts_with(b"HTTP/1.1 200"), stream)
}

/// Nothing is written to a follower of nothing, so no failed write shows that it left; it must be noticed anyway.
#[tokio::test]
async fn a_follower_that_hangs_up_gives_its_place_back() {
    let world = World::start().await;
    for round in 0..3 {
        let mut all = Vec::new();
        for number in 0..FOLLOWERS {
            let mut taken = follower(&world).await;
            for _ in 0..1_000 {
                if taken.0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                taken = follower(&world).await;
            }
            assert!(taken.0, "round {round}: the place of follower {number} is not free");
            all.push(taken.1);
        }
        assert!(!follower(&world).await.0, "there is one place too many");
    }
}

/// One operator cannot take all places, and neither can two.
#[tokio::test]
async fn followers_are_shared_among_operators() {
    let table = |name: &str| {
        let hash = hash::hex(&hash::sha256(name.as_bytes()));
        format!("[[operator.key]]\nname = \"{name}\"\nhash = \"sha256:{hash}\"\nrole = \"read\"\n")
    };
    let world = Plan::default().tables(&(table("anna") + &table("ben"))).start().await;
    let mut all = Vec::new();
    for (key, least) in [(OPERATOR, FOLLOWERS), ("anna", 1), ("ben", 1)] {
        let before = all.len();
        loop {
            let (is_taken, stream) = follower_with(&world, key).await;
            if !is_taken {
                break;
            }
            all.push(stream);
        }
        assert_eq!(all.len() - before, least, "{key}");
    }
}

#[tokio::test]
async fn pages_that_nobody_reads_are_bounded_together() {
    let world = Plan::default().set("limits", "connections = 512").start().await;
    // The path of a known caller's operation is recorded in full.
    let long = format!("{ORG}/variables/{}", "n".repeat(4_000));
    for _ in 0..3_000 {
        world.send(READER, "DELETE", &long, &[], "").await.expect(403);
    }
    let whole = page(&world, "/audit.json?limit=10000").await.expect(200).body.len();
    assert!(whole > 8 << 20, "{whole} bytes are too few to prove anything");
    let most = (64 << 20) / whole + 1;
    let mut untaken = Vec::new();
    for _ in 0..most {
        untaken.push(asked(&world, "/audit.json?limit=10000").await);
    }
    let reply = page(&world, "/audit.json?limit=10000").await.expect(503);
    assert_eq!(reply.json()["type"], "urn:makegate:operator:no-room");
    assert!(reply.header("retry-after").is_some());
    // Small answers need no room, and nobody else waits.
    for target in ["/livez", "/metrics", "/audit.json?limit=10", "/quota.json"] {
        page(&world, target).await.expect(200);
    }
    world.get(ALL, ORG).await.expect(200);
    drop(untaken);
    for _ in 0..1_000 {
        if page(&world, "/audit.json?limit=10000").await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the room is never given back");
}
