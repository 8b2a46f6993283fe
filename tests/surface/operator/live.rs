//! Live pages: a stream of events that tells a page again whenever it has changed, and holds nothing up.

use std::net::SocketAddr;
use std::time::Duration;

use makegate::hash;
use makegate::sandbox::{Fault, FaultKind};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::process::Home;
use crate::support::{ALL, OPERATOR, ORG, Plan, READER, TOO, World, sandbox_at, send, with_key};

/// The most live pages of one operator, who is alone.
const OF_ONE: usize = 28;
/// The most of all operators together.
const OF_ALL: usize = 32;

/// Rows of 4 KiB paths that make a page of nearly 1 MiB.
const ROWS: usize = 70;
/// The most that the system keeps for a connection, and a page in the gateway.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// A stream of events over HTTP/1.1, without the lengths of its chunks.
struct Events(Lines<BufReader<TcpStream>>);

impl Events {
    /// What a browser asks for; the status.
    async fn open(to: SocketAddr, page: &str, key: &str) -> (u16, Self) {
        Self::open_over(TcpStream::connect(to).await.unwrap(), page, key).await
    }

    async fn open_over(mut stream: TcpStream, page: &str, key: &str) -> (u16, Self) {
        let head = format!(
            "GET /events?page={page} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next_line().await.unwrap().unwrap();
        while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
        (status.split(' ').nth(1).unwrap().parse().unwrap(), Self(lines))
    }

    /// The next line that begins so; `None`: the stream has ended.
    async fn line(&mut self, begin: &str) -> Option<String> {
        let find = async {
            while let Ok(Some(line)) = self.0.next_line().await {
                if line.starts_with(begin) {
                    return Some(line);
                }
            }
            None
        };
        tokio::time::timeout(Duration::from_secs(60), find).await.expect("neither a line nor an end")
    }

    /// The next line that says something: a field, or a comment.
    async fn next(&mut self) -> String {
        let is_said = |line: &str| line.starts_with([':', 'e', 'd', 'r']) && line.contains(':');
        let find = async {
            while let Ok(Some(line)) = self.0.next_line().await {
                if is_said(&line) {
                    return line;
                }
            }
            panic!("the stream has ended");
        };
        tokio::time::timeout(Duration::from_secs(60), find).await.expect("neither a line nor an end")
    }

    /// The next event's page.
    async fn page(&mut self) -> String {
        serde_json::from_str(&self.line("data: ").await.expect("an event")["data: ".len()..]).unwrap()
    }
}

fn operator(world: &World) -> SocketAddr {
    world.service.operator_addresses()[0]
}

#[tokio::test]
async fn a_page_comes_again_when_it_has_changed() {
    let world = World::start().await;
    let (status, mut events) = Events::open(operator(&world), "%2Fcallers%3Fname%3Dall", OPERATOR).await;
    assert_eq!((status, events.line("retry: ").await.as_deref()), (200, Some("retry: 3000")));
    let first = events.page().await;
    assert!(
        first.contains("id=\"live\" data-live") && first.contains("It has asked nothing since the start."),
        "{first}"
    );
    // What changes elsewhere is not told here.
    world.clock.advance(Duration::from_secs(20));
    assert!(events.line(":").await.is_some());
    world.get(ALL, ORG).await.expect(200);
    world.clock.advance(Duration::from_secs(3));
    let next = events.page().await;
    assert!(next.contains("operation=organizations%2Eget"), "{next}");
}

#[tokio::test]
async fn the_audit_page_is_told_again_for_records_that_it_shows() {
    let world = World::start().await;
    let (_, mut events) = Events::open(operator(&world), "%2Faudit%3Fcaller%3Dtoo", OPERATOR).await;
    assert!(events.page().await.contains("No record is like that."));
    world.get(READER, ORG).await.expect(200);
    world.clock.advance(Duration::from_secs(20));
    assert!(events.line(":").await.is_some(), "a record of somebody else");
    world.get(TOO, &format!("{ORG}/apps")).await;
    world.clock.advance(Duration::from_secs(3));
    let next = events.page().await;
    assert!(next.contains(&format!("{ORG}/apps")) && !next.contains("No record is like that."), "{next}");
}

/// Times on a page are told by how long ago they were: the script counts, the server sends nothing for it.
#[tokio::test]
async fn a_page_does_not_come_again_because_time_passes() {
    let world = Plan::default().set("limits", "attempts = 1\nbreaker_failures = 0").start().await;
    let doubtful = format!("{ORG}/single-payment-create");
    world.sandbox.fault(Fault::once("POST", &doubtful, FaultKind::Reset { effect: true }));
    world.post(ALL, &doubtful, r#"{"priceId":1}"#).await.expect(502);
    let (_, mut events) = Events::open(operator(&world), "%2Fdoubts", OPERATOR).await;
    let first = events.page().await;
    assert!(first.contains("<time class=\"ago\"") && first.contains("single-payment-create"), "{first}");
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(20));
        // Neither the page nor anything else but a sign of life.
        assert_eq!(events.next().await, ": still here");
    }
    world.sandbox.fault(Fault::once("POST", &doubtful, FaultKind::Reset { effect: true }));
    let own = ["idempotency-key: another"];
    world.send(ALL, "POST", &doubtful, &own, r#"{"priceId":1}"#).await.expect(502);
    world.clock.advance(Duration::from_secs(3));
    let next = events.page().await;
    assert!(next.matches("class=\"doubt\"").count() > first.matches("class=\"doubt\"").count(), "{next}");
}

#[tokio::test]
async fn pages_that_are_not_live_are_refused() {
    let world = World::start().await;
    for page in [
        "", "%2Fconfig", "%2Fnothing", "%2Fhistory%3Fhours%3D24", "http%3A%2F%2Fevil.example%2F", "%2Faudit%3Fexport",
        "%2Faudit%3Flimit%3D0",
    ] {
        let (status, _) = Events::open(operator(&world), page, OPERATOR).await;
        assert_eq!(status, 400, "{page}");
    }
    assert_eq!(Events::open(operator(&world), "%2F", "wrong-key").await.0, 401);
}

/// A page of more than a MiB is told to be too large, once.
#[tokio::test]
async fn a_page_that_is_too_large_is_not_sent_again_and_again() {
    let world = World::start().await;
    let headers = format!("authorization: Bearer {OPERATOR}\r\naccept: text/html\r\n");
    let long = format!("/api/v2/{}", "x".repeat(900));
    let page = async || {
        let page = send(operator(&world), "GET", "/audit?limit=1000", &headers, "").await.expect(200);
        page.text().len()
    };
    while page().await <= 1 << 20 {
        assert!(world.log().await.len() < 1_000, "it does not become larger, so it proves nothing");
        for _ in 0..100 {
            world.get(ALL, &long).await.expect(404);
        }
    }
    let (status, mut events) = Events::open(operator(&world), "%2Faudit%3Flimit=1000", OPERATOR).await;
    assert_eq!((status, events.line("event: ").await.as_deref()), (200, Some("event: still")));
    assert_eq!(events.line("data: ").await.as_deref(), Some("data: \"This page is too large to be live.\""));
    world.get(ALL, ORG).await.expect(200);
    world.clock.advance(Duration::from_secs(20));
    assert_eq!(events.line("").await.as_deref(), Some(""));
    assert_eq!(events.line(":").await.as_deref(), Some(": still here"));
}

/// One operator cannot take all places, and a place that is left is free again.
#[tokio::test]
async fn live_pages_are_bounded_and_shared_among_operators() {
    let key = hash::hex(&hash::sha256(b"anna-key"));
    let table = format!("[[operator.key]]\nname = \"anna\"\nhash = \"sha256:{key}\"\nrole = \"read\"\n");
    let world = Plan::default().tables(&table).start().await;
    let mut open = Vec::new();
    for number in 0..OF_ONE {
        let (status, events) = Events::open(operator(&world), "%2Fquota", OPERATOR).await;
        assert_eq!(status, 200, "{number}");
        open.push(events);
    }
    assert_eq!(Events::open(operator(&world), "%2Fquota", OPERATOR).await.0, 503);
    let headers = format!("authorization: Bearer {OPERATOR}\r\n");
    let refused = send(operator(&world), "GET", "/events?page=/quota", &headers, "").await.expect(503);
    assert_eq!(refused.json()["type"], "urn:makegate:operator:too-many-live-pages");
    assert!(refused.header("retry-after").is_some());
    let (status, mut of_anna) = Events::open(operator(&world), "%2Fquota", "anna-key").await;
    assert!(status == 200 && of_anna.line("data: ").await.is_some());
    let mut further = Vec::new();
    while let (200, events) = Events::open(operator(&world), "%2Fquota", "anna-key").await {
        further.push(events);
        assert!(OF_ONE + 1 + further.len() <= OF_ALL, "{} of all operators together", OF_ONE + 1 + further.len());
    }
    // Nobody else waits for them.
    world.get(ALL, ORG).await.expect(200);
    send(operator(&world), "GET", "/quota", &headers, "").await.expect(200);
    drop((of_anna, further, open.pop()));
    for _ in 0..1_000 {
        if Events::open(operator(&world), "%2Fquota", OPERATOR).await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place is never given back");
}

/// Of a page that is nearly as large as may be, a few fill what the system keeps for a connection. Who takes nothing of it for
/// `write_stall` is cut, gives its place back, and has had no more kept for it than those.
#[tokio::test]
async fn a_reader_that_stops_is_cut_and_its_place_is_free_again() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home =
        Home::new(&Plan::default().set("limits", "write_stall = \"1s\""), &format!("http://{}", sandbox.address()));
    let _process = home.serve().await;
    let long = format!("{ORG}/variables/{}", "n".repeat(4_000));
    let change = async || send(home.gateway, "DELETE", &long, &with_key(READER, &[]), "").await.expect(403);
    for _ in 0..ROWS {
        change().await;
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let stream = socket.connect(home.operator).await.unwrap();
    let page = format!("%2Faudit%3Flimit%3D{ROWS}");
    let (status, mut stopped) = Events::open_over(stream, &page, OPERATOR).await;
    assert!(status == 200 && stopped.line("retry: ").await.is_some());
    let mut others = Vec::new();
    for number in 1..OF_ONE {
        let (status, events) = Events::open(home.operator, "%2Fcache", OPERATOR).await;
        assert_eq!(status, 200, "{number}");
        others.push(events);
    }
    assert_eq!(Events::open(home.operator, "%2Fcache", OPERATOR).await.0, 503, "all places are taken");
    let mut changes = 0;
    while Events::open(home.operator, "%2Fcache", OPERATOR).await.0 != 200 {
        assert!(changes < 1_200, "its place is never free again");
        change().await;
        changes += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rest = Vec::new();
    let mut stream = stopped.0.into_inner();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "it is still connected");
    assert!(rest.len() < KEPT_BYTES_MAX, "{} bytes were kept for it", rest.len());
}

#[tokio::test]
async fn they_end_at_shutdown_and_do_not_hold_it_up() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:1");
    let mut process = home.serve().await;
    let mut open = Vec::new();
    for page in ["%2F", "%2Faudit"] {
        let (status, mut events) = Events::open(home.operator, page, OPERATOR).await;
        assert!(status == 200 && events.line("data: ").await.is_some());
        open.push(events);
    }
    process.signal(Signal::TERM);
    for mut events in open {
        assert_eq!(events.line("nothing begins so").await, None);
    }
    assert_eq!(process.ended(Duration::from_secs(60)).await, Some(0));
}
