//! Promise 8. What callers share is shared fairly: whatever one of them takes and does not give back, the others are
//! still served.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use makegate::sandbox::{Fault, FaultKind};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::tls::{self, h2, h2_get};
use crate::support::{ALL, HELD, LIST, ORG, OTHER, Plan, READER, TOO, World, until, with_key};

const APPS: &str = "/api/v2/organizations/11/apps";
const KIB: usize = 1024;
const HANG: FaultKind = FaultKind::Hang { effect: false };

/// Makes Make answer this path with a little more than this many bytes.
fn large(world: &World, path: &str, bytes: usize) {
    let body = format!("{{\"x\":\"{}\"}}", "a".repeat(bytes));
    world.sandbox.fault(Fault::always("GET", path, FaultKind::status(200).with_body(&body)));
}

/// Gives the organization at this path a name of 700 KiB.
async fn named(world: &World, roots: &Arc<RootCertStore>, path: &str) {
    let body = format!("{{\"name\":\"{}\"}}", "a".repeat(700 * KIB));
    let lines = format!("content-type: application/json\r\ncontent-length: {}\r\n{}", body.len(), with_key(TOO, &[]));
    let mut stream = tls::connect(world, roots, &[], None).await.unwrap();
    stream.write_all(format!("PATCH {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n{body}").as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert!(start.ends_with(b"200"), "{}", String::from_utf8_lossy(&start));
}

/// Another caller makes a few misses and a few writes.
async fn others_are_served(world: &World) {
    for n in 0..10 {
        world.get_with(TOO, OTHER, &["cache-control: no-cache"]).await.expect(200);
        world.get(TOO, &format!("{OTHER}?unknown={n}")).await.expect(200);
        world.patch(TOO, OTHER, r#"{"name": "another"}"#).await.expect(200);
    }
    let apps = format!("{OTHER}/apps");
    for reply in join_all((0..8).map(|_| world.get(TOO, &apps))).await {
        reply.expect(200);
    }
}

#[tokio::test]
async fn answers_that_one_caller_does_not_accept_leave_room_for_the_others() {
    let plan = Plan::default().set("limits", "answer_bytes = \"4MiB\"\nanswers_bytes = \"8MiB\"");
    let (world, roots) = tls::world(plan, "", &[]).await;
    large(&world, APPS, 500 * KIB);
    let (mut held, mut given) = (Vec::new(), 0);
    for _ in 0..2 {
        let (mut sender, ended) = h2(&world, &roots, 0).await;
        for _ in 0..20 {
            let response = sender.send_request(h2_get(ALL, APPS)).await.unwrap();
            assert!([200, 503].contains(&response.status().as_u16()), "{response:?}");
            given += usize::from(response.status() == 200);
            held.push(response);
        }
        held.push(sender.send_request(h2_get(ALL, "/nowhere")).await.unwrap());
        std::mem::forget((sender, ended));
    }
    let answers = &world.service.gateway().callers.shared.answers;
    assert!(given * 500 * KIB >= 6 << 20, "alone it got only {given} answers");
    assert!(answers.taken() <= 7 << 20, "{} bytes of 8 MiB", answers.taken());
    let lines = [format!("authorization: Token {TOO}")];
    for n in 0..10 {
        let target = format!("{OTHER}?unknown={n}");
        let reply = tls::get(&world, &roots, None, &target, &[&lines[0]]).await;
        reply.expect("an answer").expect(200);
    }
    large(&world, &format!("{OTHER}/apps"), 200 * KIB);
    for _ in 0..10 {
        let reply = tls::get(&world, &roots, None, &format!("{OTHER}/apps"), &[&lines[0]]).await;
        assert!(reply.expect("an answer").expect(200).body.len() > 200 * KIB);
    }
    drop(held);
    until(|| answers.taken() == 0).await;
}

/// The same with connections that nobody reads, and with writes by the others.
#[tokio::test]
async fn answers_that_one_caller_does_not_read_leave_room_for_the_others() {
    let limits = "answer_bytes = \"16MiB\"\nanswers_bytes = \"64MiB\"\nwrite_stall = \"10m\"";
    let world = Plan::default().set("limits", limits).start().await;
    large(&world, APPS, 12_000 * KIB);
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        let request = format!("GET {APPS} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(ALL, &[]));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        held.push((start.ends_with(b"200"), stream));
    }
    assert_eq!(held.iter().filter(|(given, _)| *given).count(), 4, "12 of 64 MiB each, with an eighth kept");
    others_are_served(&world).await;
    world.get(ALL, APPS).await.refused(503, "MG208");
    drop(held);
    until(|| world.service.gateway().callers.shared.answers.taken() == 0).await;
    world.get(ALL, APPS).await.expect(200);
}

/// A cached answer belongs to nobody, but a caller who does not read it keeps it in memory.
#[tokio::test]
async fn cached_answers_that_one_caller_does_not_read_count_against_its_share() {
    let plan = Plan::default().set("limits", "answer_bytes = \"4MiB\"\nanswers_bytes = \"8MiB\"");
    let (world, roots) = tls::world(plan, "", &[]).await;
    large(&world, ORG, 500 * KIB);
    let (mut held, mut given) = (Vec::new(), 0);
    let (mut sender, _ended) = h2(&world, &roots, 0).await;
    for _ in 0..20 {
        let response = sender.send_request(h2_get(ALL, ORG)).await.unwrap();
        given += usize::from(response.status() == 200);
        held.push(response);
    }
    let answers = &world.service.gateway().callers.shared.answers;
    assert_eq!((given, world.received("GET", ORG)), (14, 1));
    assert!(answers.taken() <= 7 << 20, "{} bytes of 8 MiB", answers.taken());
    let (key, greedy) = (format!("authorization: Token {TOO}"), format!("authorization: Token {ALL}"));
    for _ in 0..10 {
        let reply = tls::get(&world, &roots, None, ORG, &[&*key]).await;
        assert!(reply.expect("an answer").expect(200).body.len() > 500 * KIB);
    }
    let reply = tls::get(&world, &roots, None, ORG, &[&*greedy]).await.expect("an answer");
    let etag = tls::get(&world, &roots, None, ORG, &[&*key]).await.unwrap().header("etag").unwrap().to_owned();
    reply.refused(503, "MG208");
    // A 304 needs no memory, so it is given.
    let unchanged = format!("if-none-match: {etag}");
    tls::get(&world, &roots, None, ORG, &[&*greedy, &*unchanged]).await.expect("an answer").expect(304);
    drop((held, sender));
    until(|| answers.taken() == 0).await;
}

/// A caller who joins another's fetch and does not read the answer holds it against its own share, not the other
/// caller's.
#[tokio::test]
async fn joining_a_fetch_without_reading_it_takes_nothing_from_its_owner() {
    let plan =
        Plan::default().set("limits", "answer_bytes = \"4MiB\"\nanswers_bytes = \"8MiB\"\nstored_bytes = \"16KiB\"");
    let (world, roots) = tls::world(plan, "", &[]).await;
    let key = format!("authorization: Token {TOO}");
    let (mut sender, _ended) = h2(&world, &roots, 0).await;
    let mut held = Vec::new();
    named(&world, &roots, ORG).await;
    for n in 1..=4 {
        world.sandbox.fault(Fault::once("GET", ORG, HELD));
        let lines = [&*key];
        let owner = tls::get(&world, &roots, None, ORG, &lines);
        let joins = async {
            until(|| world.received("GET", ORG) == n).await;
            let joins = sender.send_request(h2_get(ALL, ORG));
            let joined = async {
                until(|| world.service.gateway().shared_fetches.waiting() == 2).await;
                world.sandbox.clear_faults();
            };
            tokio::join!(joins, joined).0.unwrap()
        };
        let (owner, joins) = tokio::join!(owner, joins);
        owner.expect("an answer").expect(200);
        held.push(joins);
    }
    assert_eq!(world.received("GET", ORG), 4, "they did not join");
    let policy = world.service.gateway().policy();
    let holds = |caller: &str| policy.caller(caller).unwrap().state.share_holders.answers.held();
    until(|| holds("too") == 0).await;
    assert!(holds("all") > 4 * 700 * KIB as u64, "{} bytes", holds("all"));
}

/// Two callers who ask for the same thing share a fetch, but not the refusal of the caller who started it.
#[tokio::test]
async fn a_used_up_share_is_not_held_against_callers_who_joined() {
    let plan = Plan::default().set("limits", "answer_bytes = \"4MiB\"\nanswers_bytes = \"8MiB\"");
    let (world, roots) = tls::world(plan, "", &[]).await;
    large(&world, APPS, 500 * KIB);
    let (mut sender, _ended) = h2(&world, &roots, 0).await;
    let mut held = Vec::new();
    for _ in 0..13 {
        held.push(sender.send_request(h2_get(ALL, APPS)).await.unwrap());
    }
    assert!(held.iter().all(|response| response.status() == 200));
    named(&world, &roots, OTHER).await;
    world.sandbox.fault(Fault::once("GET", OTHER, HELD));
    let keys = [ALL, TOO].map(|key| format!("authorization: Token {key}"));
    let headers = [[&*keys[0]], [&*keys[1]]];
    let first = tls::get(&world, &roots, None, OTHER, &headers[0]);
    let second = async {
        until(|| world.received("GET", OTHER) == 1).await;
        tls::get(&world, &roots, None, OTHER, &headers[1]).await
    };
    let gateway = world.service.gateway();
    let origin = async {
        until(|| gateway.callers.shared.joined.taken() == 1).await;
        world.sandbox.clear_faults();
    };
    let (first, second, ()) = tokio::join!(first, second, origin);
    first.expect("an answer").refused(503, "MG208");
    second.expect("an answer").expect(200);
    assert_eq!(world.received("GET", OTHER), 2);

    // A caller that asks again, now for itself, needs a place again.
    let too_many = "answers_bytes = \"8MiB\"\nin_flight_per_caller = 1";
    let text = std::fs::read_to_string(world.file()).unwrap();
    std::fs::write(world.file(), text.replace("answers_bytes = \"8MiB\"", too_many)).unwrap();
    world.reload().await;
    named(&world, &roots, ORG).await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    let first = tls::get(&world, &roots, None, ORG, &headers[0]);
    let second = async {
        until(|| world.received("GET", ORG) == 1).await;
        tls::get(&world, &roots, None, ORG, &headers[1]).await
    };
    let beside = async {
        until(|| gateway.callers.shared.joined.taken() == 1).await;
        let mut half = tls::connect(&world, &roots, &[], None).await.unwrap();
        let head = format!("PATCH {OTHER} HTTP/1.1\r\nhost: x\r\n{}content-length: 9\r\n\r\n", with_key(TOO, &[]));
        half.write_all(head.as_bytes()).await.unwrap();
        until(|| gateway.under_way() == 2).await;
        world.sandbox.clear_faults();
        half
    };
    let (first, second, _half) = tokio::join!(first, second, beside);
    first.expect("an answer").refused(503, "MG208");
    second.expect("an answer").refused(429, "MG142");
}

/// A request that joins a fetch gives up its place to others, but keeps its record's place in the log's buffer.
#[tokio::test]
async fn requests_that_join_a_fetch_are_bounded_and_other_callers_can_still_join() {
    let (world, roots) = tls::world(Plan::default().set("limits", "joined = 32"), "", &[]).await;
    world.sandbox.fault(Fault::once("GET", ORG, HELD));
    let gateway = world.service.gateway();
    let shared = &gateway.callers.shared;
    let (sender, _ended) = h2(&world, &roots, 65_535).await;
    let answers = (0..60).map(|_| {
        let mut sender = sender.clone();
        async move { sender.send_request(h2_get(ALL, ORG)).await.unwrap().status().as_u16() }
    });
    let others = async {
        // An eighth is kept free.
        until(|| (gateway.under_way(), shared.joined.taken()) == (1, 28)).await;
        let lines = [ALL, TOO].map(|key| format!("authorization: Token {key}"));
        let lines = [[&*lines[0]], [&*lines[1]]];
        tls::get(&world, &roots, None, ORG, &lines[0]).await.expect("an answer").refused(503, "MG148");
        let others = (0..2).map(|_| async { tls::get(&world, &roots, None, ORG, &lines[1]).await.expect("an answer") });
        let others = join_all(others);
        let origin = async {
            until(|| shared.joined.taken() == 30).await;
            world.sandbox.clear_faults();
        };
        tokio::join!(others, origin).0
    };
    let (answers, others) = tokio::join!(join_all(answers), others);
    others.into_iter().for_each(|reply| drop(reply.expect(200)));
    let count = |status: u16| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(200), count(503), world.received("GET", ORG)), (29, 31, 1));
    until(|| shared.joined.taken() == 0).await;
}

/// A record has its place in the log's buffer from the moment its request arrives.
#[tokio::test]
async fn pending_records_of_one_caller_leave_room_in_the_logs_buffer_for_the_others() {
    let plan = Plan::default().set("audit", "buffer_bytes = \"256KiB\"").set("upstream", "connections = 64");
    let world = plan.start().await;
    world.sandbox.fault(Fault::always("GET", APPS, HANG));
    let gateway = world.service.gateway();
    let records = &gateway.callers.shared.records;
    let hang = join_all((0..40).map(|_| world.get(ALL, APPS)));
    let beside = async {
        // 8 KiB each, and an eighth is kept free.
        until(|| gateway.under_way() == 28 && records.taken() == 224 * KIB as u64).await;
        world.get(ALL, ORG).await.refused(503, "MG183");
        for n in 0..10 {
            world.get(TOO, OTHER).await.expect(200);
            world.get(TOO, &format!("{OTHER}?unknown={n}")).await.expect(200);
            world.patch(TOO, OTHER, r#"{"name": "another"}"#).await.expect(200);
        }
        world.sandbox.clear_faults();
    };
    let (replies, ()) = tokio::join!(hang, beside);
    assert_eq!(replies.iter().filter(|reply| reply.status == 503).count(), 12);
    until(|| records.taken() == 0).await;
    world.get(ALL, ORG).await.expect(200);
}

/// Slow bodies, each within its own bounds but together far beyond what there is.
#[tokio::test]
async fn slow_bodies_of_one_caller_are_bounded_together_and_the_others_write() {
    let limits = "body_bytes = \"256KiB\"\nbodies_bytes = \"2MiB\"";
    let world = Plan::default().set("limits", limits).start().await;
    let body = format!("{{\"name\":\"{}\"}}", "a".repeat(200 * KIB));
    let (half, rest) = body.split_at(100 * KIB);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        let length = body.len();
        let head = format!("PATCH {ORG} HTTP/1.1\r\nhost: x\r\n{}content-length: {length}\r\n\r\n", with_key(ALL, &[]));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let gateway = world.service.gateway();
    let bodies = &gateway.callers.shared.bodies;
    until(|| gateway.under_way() == 8).await;
    assert!((1600 * KIB as u64..=1792 * KIB as u64).contains(&bodies.taken()), "{} bytes of 2 MiB", bodies.taken());
    others_are_served(&world).await;
    let (mut done, mut refused) = (0, 0);
    for mut stream in slow {
        let _may_be_closed = stream.write_all(rest.as_bytes()).await;
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        done += usize::from(start.ends_with(b"200"));
        refused += usize::from(start.ends_with(b"503"));
    }
    assert_eq!((done, refused), (8, 12));
    until(|| bodies.taken() == 0).await;
    world.patch(ALL, ORG, &body).await.expect(200);
}

/// A body is kept as long as its write, so a write that hangs upstream counts too.
#[tokio::test]
async fn bodies_of_writes_under_way_count_until_the_writes_end() {
    let world = Plan::default().set("limits", "body_bytes = \"256KiB\"\nbodies_bytes = \"1MiB\"").start().await;
    world.sandbox.fault(Fault::always("POST", "/api/v2/organizations/11/variables", HANG));
    let body = |n: usize| format!("{{\"name\":\"v{n}\",\"typeId\":1,\"value\":\"{}\"}}", "a".repeat(200 * KIB));
    let (first, second, third, fourth) = (body(1), body(2), body(3), body(4));
    let variables = format!("{ORG}/variables");
    let hang = join_all([&first, &second, &third, &fourth].map(|body| world.post(ALL, &variables, body)));
    let beside = async {
        let bodies = &world.service.gateway().callers.shared.bodies;
        until(|| bodies.taken() > 790 * KIB as u64).await;
        world.post(ALL, &variables, &body(5)).await.refused(503, "MG158");
        others_are_served(&world).await;
        world.sandbox.clear_faults();
        bodies
    };
    let (_, bodies) = tokio::join!(hang, beside);
    until(|| bodies.taken() == 0).await;
}

#[tokio::test]
async fn requests_of_one_caller_leave_places_for_the_others() {
    let plan = Plan::default().set("limits", "in_flight = 32\nin_flight_per_caller = 32");
    let world = plan.set("upstream", "connections = 64").start().await;
    world.sandbox.fault(Fault::always("GET", APPS, HANG));
    world.sandbox.fault(Fault::always("GET", &format!("{OTHER}/apps"), FaultKind::Latency { ms: 200 }));
    let hang = join_all((0..40).map(|_| world.get(ALL, APPS)));
    let beside = async {
        until(|| world.service.gateway().under_way() == 28).await;
        for _ in 0..5 {
            let other = format!("{OTHER}/apps");
            let (first, second) = tokio::join!(world.get(TOO, &other), world.get(TOO, &other));
            first.expect(200);
            second.expect(200);
            world.get(ALL, LIST).await.refused(503, "MG144");
        }
        world.sandbox.clear_faults();
    };
    let (replies, ()) = tokio::join!(hang, beside);
    let refused: Vec<_> = replies.into_iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(refused.len(), 12, "alone it has seven eighths of 32");
    for reply in refused {
        assert!(reply.refused(503, "MG144").header("retry-after").is_some());
    }
    until(|| world.service.gateway().under_way() == 0).await;
}

/// A waiting connection costs its caller a place among the connections, however cheap its request is.
#[tokio::test]
async fn busy_connections_of_one_caller_leave_room_for_those_of_others() {
    let world = Plan::default().set("limits", "connections = 32").start().await;
    world.sandbox.fault(Fault::always("GET", ORG, HANG));
    let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(ALL, &[]));
    let mut waiting = Vec::new();
    for _ in 0..28 {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let connections = &world.service.gateway().callers.shared.connections;
    until(|| connections.taken() == 28).await;
    assert!(world.received("GET", ORG) <= 2, "they wait for the same fetch");
    for _ in 0..40 {
        let refused = world.get(ALL, OTHER).await.refused(503, "MG145");
        assert_eq!(refused.header("connection"), Some("close"));
        world.get(TOO, OTHER).await.expect(200);
    }
    drop(waiting);
    world.sandbox.clear_faults();
    until(|| connections.taken() == 0).await;
    world.get(ALL, OTHER).await.expect(200);
}

/// Of a caller's own connections, the one that has waited longest makes room for a new one, and nothing is refused.
#[tokio::test]
async fn a_callers_idle_connections_make_room_for_its_new_ones() {
    let world = Plan::default().set("limits", "connections = 16").start().await;
    let request = format!("GET {ORG} HTTP/1.1\r\nhost: x\r\n{}\r\n", with_key(ALL, &[]));
    let mut idle = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert!(start.ends_with(b"200"), "{}", String::from_utf8_lossy(&start));
        idle.push(stream);
    }
    let connections = &world.service.gateway().callers.shared.connections;
    assert!(connections.taken() <= 14, "{} of 16", connections.taken());
    drop(idle);
    until(|| connections.taken() == 0).await;
}

/// Nobody can hold memory with a body whose request would be refused anyway, because it is not read.
#[tokio::test]
async fn bodies_of_unauthorized_requests_are_not_read() {
    let world = World::start().await;
    for (key, status) in [("nobodys-key", "401"), (READER, "403")] {
        let mut stream = TcpStream::connect(world.gateway).await.unwrap();
        let head = format!("PATCH {ORG} HTTP/1.1\r\nhost: x\r\n{}content-length: 100000\r\n\r\n", with_key(key, &[]));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut start)).await;
        read.expect("the gateway waits for its body").unwrap();
        assert!(start.ends_with(status.as_bytes()), "{}", String::from_utf8_lossy(&start));
    }
}

#[tokio::test]
async fn a_reload_changes_the_shared_limits() {
    let world = Plan::default().set("limits", "in_flight = 16").start().await;
    let shared = &world.service.gateway().callers.shared;
    assert_eq!((shared.requests.limit(), shared.bodies.limit()), (16, 64 << 20));
    let text = std::fs::read_to_string(world.file()).unwrap();
    std::fs::write(world.file(), text.replace("in_flight = 16", "in_flight = 24\nbodies_bytes = \"8MiB\"")).unwrap();
    world.reload().await;
    assert_eq!((shared.requests.limit(), shared.bodies.limit()), (24, 8 << 20));
}
