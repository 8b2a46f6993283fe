//! Live pages: a stream of events that tells a page again whenever it has changed, and holds nothing up.

use std::net::SocketAddr;
use std::time::Duration;

use makegate::hash;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;

use crate::support::process::Home;
use crate::support::{ALL, OPERATOR, ORG, Plan, READER, TOO, World, send};

/// The most live pages of one operator, who is alone.
const OF_ONE: usize = 28;

/// A stream of events over HTTP/1.1, without the lengths of its chunks.
struct Events(Lines<BufReader<TcpStream>>);

impl Events {
    /// What a browser asks for; the status.
    async fn open(to: SocketAddr, page: &str, key: &str) -> (u16, Self) {
        let mut stream = TcpStream::connect(to).await.unwrap();
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

#[tokio::test]
async fn pages_that_are_not_live_are_refused() {
    let world = World::start().await;
    for page in
        ["", "%2Fconfig", "%2Fnothing", "http%3A%2F%2Fevil.example%2F", "%2Faudit%3Fexport", "%2Faudit%3Flimit%3D0"]
    {
        let (status, _) = Events::open(operator(&world), page, OPERATOR).await;
        assert_eq!(status, 400, "{page}");
    }
    assert_eq!(Events::open(operator(&world), "%2F", "wrong-key").await.0, 401);
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
    // Nobody else waits for them.
    world.get(ALL, ORG).await.expect(200);
    send(operator(&world), "GET", "/quota", &headers, "").await.expect(200);
    drop((of_anna, open.pop()));
    for _ in 0..1_000 {
        if Events::open(operator(&world), "%2Fquota", OPERATOR).await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place is never given back");
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
