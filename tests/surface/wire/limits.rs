//! How long a connection may take for what: each limit of time at each door, over each protocol, by a clock that stands still until it is
//! moved. One timeline for all connections: shortly before a limit those that it bounds are still there, shortly after it they are not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use makegate::sandbox::Fault;
use makegate::tasks::Tasks;
use rustls::RootCertStore;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::net::{TcpStream, UnixStream};

use super::unread::{GOAWAY, HEADERS, PREFACE, SETTINGS, WHOLE, frame, get_block, patch_block};
use super::{APPS, still};
use crate::support::tls::{connect_to, show};
use crate::support::{ALL, HELD, OPERATOR, ORG, World, exchange, new_dir, until};

trait Link: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Link for T {}

const FIRST_BYTE: u64 = 10;
const BODY_GAP: u64 = 15;
const HEAD: u64 = 20;
const HANDSHAKE: u64 = 30;
const BODY: u64 = 40;
const IDLE: u64 = 50;
const AGE: u64 = 100;
const AGE_AND_GRACE: u64 = 120;

const LIMITS: &str = "first_byte = \"10s\"\nbody_gap = \"15s\"\nhead = \"20s\"\nhandshake = \"30s\"\nbody = \"40s\"\nidle = \"50s\"\n\
                      age = \"100s\"\nage_grace = \"20s\"\nh2_ping = \"10m\"";

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Plain,
    Unix,
    Tls,
    Http2,
    /// TCP to a door that speaks TLS.
    Handshake,
}

/// What a client sees at the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sees {
    End,
    /// An answer with this code.
    Refusal(&'static str),
    /// HTTP/2 says so first, and waits for the client for a moment.
    Goaway,
}

/// One connection, and what shall become of it.
struct Case {
    what: &'static str,
    first: Vec<u8>,
    /// What it sends again and again.
    then: Vec<u8>,
    at: u64,
    sees: Sees,
}

fn case(what: &'static str, at: u64, sees: Sees, first: impl Into<Vec<u8>>, then: impl Into<Vec<u8>>) -> Case {
    Case { what, first: first.into(), then: then.into(), at, sees }
}

fn http1(gateway: bool) -> Vec<Case> {
    let key = if gateway { format!("authorization: Token {ALL}\r\n") } else { String::new() };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{key}\r\n");
    let patch = format!("PATCH {ORG} HTTP/1.1\r\nhost: localhost\r\n{key}content-length: 100\r\n\r\n{{");
    let mut cases = vec![
        case("says nothing", FIRST_BYTE, Sees::End, "", ""),
        case("stops within a head", HEAD, Sees::End, "GET / HT", ""),
        case("trickles a head", HEAD, Sees::End, "GET /", "a"),
        case("trickles its second head", HEAD, Sees::End, get("/livez"), "G"),
        case("stops within a second head that came with the first", HEAD, Sees::End, get("/livez") + "GET / HT", ""),
        case("trickles a third head that came with the others", HEAD, Sees::End, get("/livez").repeat(2) + "G", "a"),
        case("is idle", IDLE, Sees::End, get("/livez"), ""),
        case("asks often", AGE, Sees::End, get("/livez"), get("/livez")),
    ];
    if gateway {
        cases.push(case("stops within a body", BODY_GAP, Sees::Refusal("MG154"), patch.clone(), ""));
        cases.push(case("trickles a body", BODY, Sees::Refusal("MG154"), patch, " "));
        cases.push(case("waits for its answer", AGE_AND_GRACE, Sees::End, get(APPS), ""));
    } else {
        let purge = format!(
            "POST /cache/purge HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {OPERATOR}\r\n\
             content-type: application/json\r\ncontent-length: 100\r\n\r\n"
        );
        cases.push(case("stops within a body", BODY, Sees::Refusal("body-slow"), purge.clone(), ""));
        cases.push(case("trickles a body", BODY, Sees::Refusal("body-slow"), purge, " "));
    }
    cases
}

fn http2(gateway: bool) -> Vec<Case> {
    const END_HEADERS: u8 = 4;
    const PING: u8 = 6;
    let start = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    let get = |stream: u8, path: &str| frame(HEADERS, WHOLE, stream, &get_block(path, &[]));
    let livez = [&*start, &get(1, "/livez")].concat();
    let half = frame(HEADERS, 1, 3, &get_block("/livez", &[]));
    let ping = frame(PING, 0, 0, &[0; 8]);
    let patch = [&*start, &frame(HEADERS, END_HEADERS, 1, &patch_block(&[]))].concat();
    let mut cases = vec![
        case("says nothing", FIRST_BYTE, Sees::End, "", ""),
        case("stops within the preface", FIRST_BYTE, Sees::End, &PREFACE[..9], ""),
        case("sends the preface alone", FIRST_BYTE, Sees::End, PREFACE, ""),
        case("sends SETTINGS alone", FIRST_BYTE, Sees::End, &*start, ""),
        case("only pings", FIRST_BYTE, Sees::End, &*start, &*ping),
        case("stops within its first head", FIRST_BYTE, Sees::End, [&*start, &half].concat(), ""),
        case("stops within its second head", IDLE, Sees::Goaway, [&*livez, &half].concat(), ""),
        case("is idle", IDLE, Sees::Goaway, &*livez, ""),
        case("pings after its answer", IDLE, Sees::Goaway, &*livez, &*ping),
    ];
    if gateway {
        cases.push(case("stops within a body", BODY_GAP, Sees::Refusal("MG154"), &*patch, ""));
        cases.push(case("trickles a body", BODY, Sees::Refusal("MG154"), &*patch, frame(0, 0, 1, b" ")));
        cases.push(case("waits for its answer", AGE, Sees::Goaway, [&*start, &get(1, APPS)].concat(), ""));
        cases.push(case(
            "waits for its answer too long",
            AGE_AND_GRACE,
            Sees::End,
            [&*start, &get(1, APPS)].concat(),
            "",
        ));
    }
    cases
}

fn handshakes() -> Vec<Case> {
    // A record of 512 bytes that begins a ClientHello.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 100]].concat();
    vec![
        case("says nothing", HANDSHAKE, Sees::End, "", ""),
        case("stops within its hello", HANDSHAKE, Sees::End, &*hello, ""),
        case("trickles its hello", HANDSHAKE, Sees::End, &*hello, [7]),
    ]
}

/// A connection in the course of time.
struct Client {
    name: String,
    case: Case,
    write: WriteHalf<Box<dyn Link>>,
    /// What came, and whether that was all.
    read: Arc<Mutex<(Vec<u8>, bool)>>,
}

impl Client {
    async fn new(tasks: &Tasks, name: String, case: Case, link: Box<dyn Link>) -> Self {
        let (mut from, mut write) = tokio::io::split(link);
        let read = Arc::<Mutex<(Vec<u8>, bool)>>::default();
        let all = read.clone();
        tasks.spawn(async move {
            let mut piece = [0; 4096];
            while let Ok(bytes @ 1..) = from.read(&mut piece).await {
                all.lock().unwrap().0.extend_from_slice(&piece[..bytes]);
            }
            all.lock().unwrap().1 = true;
        });
        write.write_all(&case.first).await.unwrap();
        Self { name, case, write, read }
    }

    async fn go_on(&mut self) {
        let _unless_it_ended = self.write.write_all(&self.case.then).await;
    }

    fn has_ended(&self) -> bool {
        self.read.lock().unwrap().1
    }

    fn has_seen(&self, sees: Sees) -> bool {
        let read = self.read.lock().unwrap();
        match sees {
            Sees::End => read.1,
            Sees::Refusal(code) => memchr::memmem::find(&read.0, code.as_bytes()).is_some(),
            Sees::Goaway => {
                let mut rest = &*read.0;
                while let Some((head, after)) = rest.split_first_chunk::<9>() {
                    if head[3] == GOAWAY {
                        return true;
                    }
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    rest = after.get(length..).unwrap_or_default();
                }
                false
            }
        }
    }
}

async fn connect(over: Over, door: SocketAddr, socket: &std::path::Path, roots: &Arc<RootCertStore>) -> Box<dyn Link> {
    match over {
        Over::Plain | Over::Handshake => Box::new(TcpStream::connect(door).await.unwrap()),
        Over::Unix => Box::new(UnixStream::connect(socket).await.unwrap()),
        Over::Tls => Box::new(connect_to(door, roots, &["http/1.1"], None).await.unwrap()),
        Over::Http2 => Box::new(connect_to(door, roots, &["h2"], None).await.unwrap()),
    }
}

/// What the metrics say of silence, slowness and handshakes.
async fn metrics(world: &World, roots: &Arc<RootCertStore>, over: Over) -> BTreeMap<String, u64> {
    let link = connect(over, world.service.operator_addresses()[0], std::path::Path::new(""), roots).await;
    let head = format!(
        "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {OPERATOR}\r\n\r\n"
    );
    let all = exchange(link, &head).await.unwrap().expect(200);
    let of_interest = ["kind=\"silent\"", "kind=\"slow\"", "reason=\"timed-out\""];
    let lines = all.text().lines().filter(|line| of_interest.iter().any(|one| line.contains(one)));
    let counts = lines.map(|line| line.rsplit_once(' ').unwrap());
    let some = counts.filter(|(_, count)| *count != "0");
    some.map(|(name, count)| (name.to_owned(), count.parse().unwrap())).collect()
}

/// What `metrics` shall be.
fn expected(clients: &[Client]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for client in clients {
        let door = client.name.split(' ').next().unwrap();
        let name = match client.case.at {
            FIRST_BYTE => format!("makegate_unread_requests_total{{door=\"{door}\",kind=\"silent\"}}"),
            HEAD => format!("makegate_unread_requests_total{{door=\"{door}\",kind=\"slow\"}}"),
            HANDSHAKE => format!("makegate_tls_handshake_failures_total{{door=\"{door}\",reason=\"timed-out\"}}"),
            _ => continue,
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// Connects every client of these ways to both doors, and moves the clock from limit to limit.
async fn hold(tls: &str, ways: &[Over], scrape: Over) {
    let dir = new_dir();
    let roots = show(dir.path(), "cert.pem", "key.pem");
    let listen = |name: &str| format!("listen = [\"127.0.0.1:0\", \"unix:{name}.sock\"]\n{tls}");
    let patient = "deadline = \"5m\"\nwrite_deadline = \"5m\"\nattempt = \"4m\"\nwrite_attempt = \"4m\"";
    let plan = still().set("gateway", &listen("gateway")).set("operator", &listen("operator"));
    let world = plan.set("limits", LIMITS).set("upstream", patient).start_in(dir).await;
    world.sandbox.fault(Fault::always("GET", APPS, HELD));
    let (tasks, mut clients) = (Tasks::new(), Vec::new());
    let operator = world.service.operator_addresses()[0];
    for (door, name) in [(world.gateway, "gateway"), (operator, "operator")] {
        for over in ways {
            let cases = match over {
                Over::Plain | Over::Unix | Over::Tls => http1(name == "gateway"),
                Over::Http2 => http2(name == "gateway"),
                Over::Handshake => handshakes(),
            };
            for case in cases {
                let link = connect(*over, door, &world.dir.path().join(format!("{name}.sock")), &roots).await;
                clients.push(Client::new(&tasks, format!("{name} over {over:?}: {}", case.what), case, link).await);
            }
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut now = 0;
    let mut move_to = |to: u64| {
        world.clock.advance(Duration::from_secs(to - now));
        now = to;
    };
    for limit in [FIRST_BYTE, BODY_GAP, HEAD, HANDSHAKE, BODY, IDLE, AGE, AGE_AND_GRACE] {
        for client in &mut clients {
            client.go_on().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        move_to(limit - 1);
        // Longer than from one sweep over the connections to the next.
        tokio::time::sleep(Duration::from_millis(600)).await;
        for client in clients.iter_mut().filter(|client| client.case.at >= limit) {
            assert!(!client.has_ended() && !client.has_seen(client.case.sees), "{} before {limit} s", client.name);
            client.go_on().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        move_to(limit + 1);
        for client in clients.iter().filter(|client| client.case.at == limit) {
            until(|| client.has_seen(client.case.sees)).await;
            assert!(client.case.sees != Sees::Goaway || !client.has_ended(), "{} is cut off", client.name);
        }
        // An HTTP/2 client that does not confirm the GOAWAY is not waited for, unless it has a request in progress.
        tokio::time::sleep(Duration::from_millis(300)).await;
        move_to(limit + 4);
        for client in clients.iter().filter(|client| client.case.at == limit && client.case.sees == Sees::Goaway) {
            if limit == IDLE {
                until(|| client.has_ended()).await;
            }
        }
    }
    until(|| clients.iter().all(Client::has_ended)).await;
    assert_eq!(metrics(&world, &roots, scrape).await, expected(&clients));
}

#[tokio::test]
async fn each_limit_of_time_holds_at_each_door_without_tls() {
    hold("", &[Over::Plain, Over::Unix], Over::Plain).await;
}

#[tokio::test]
async fn each_limit_of_time_holds_at_each_door_with_tls() {
    let tls = "tls = { cert = \"cert.pem\", key = \"key.pem\" }";
    hold(tls, &[Over::Tls, Over::Http2, Over::Handshake], Over::Tls).await;
}
