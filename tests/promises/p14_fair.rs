//! Promise 14, and the end of 8: nothing that one caller does stops the others. What callers share is shared fairly,
//! even next to one who takes everything it can: connections, turns at a resource, the breaker, the retry budget, a
//! fetch.
//!
//! The greedy caller's requests end only when the test says so. A polite caller that is served at all was therefore
//! not kept waiting by them, however slow the machine is.

use std::time::Duration;

use futures_util::future::{join_all, select_all};
use http::StatusCode;
use makegate::sandbox::{Fault, FaultKind};

use crate::support::hostile::{Gate, Origin, Step};
use crate::support::process::Home;
use crate::support::{ALL, HELD, OPERATOR, ORG, OTHER, Plan, Reply, TOO, World, send, tls, until, with_key};

const GREEDY: &str = ALL;
const POLITE: &str = TOO;
const PAYMENTS: &str = "/api/v2/organizations/11/payments";
const HANG: FaultKind = FaultKind::Hang { effect: false };
/// So much longer than anything here takes that whoever waited for its end would be refused instead.
const SLOW: &str = "deadline = \"50s\"\nattempt = \"45s\"\nwrite_deadline = \"50s\"\nwrite_attempt = \"45s\"";

/// A real gateway with its operator pages, and an origin that answers when the test opens its gate.
struct Slow {
    home: Home,
    origin: Origin,
    _process: crate::support::process::Process,
}

impl Slow {
    /// The origin answers the first `held` connections only when `gate` opens, and all others at once.
    async fn start(held: usize, gate: &Gate) -> Self {
        let answer = Step::write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}");
        let held = (0..held).map(|_| vec![Step::Read, Step::Wait(gate.clone()), answer.clone(), Step::Close]);
        let scripts = held.chain([vec![Step::Read, answer.clone(), Step::Close]]).collect();
        let origin = Origin::start(scripts);
        let plan = Plan::default().set("upstream", SLOW);
        let home = Home::new(&plan, &format!("http://{}", origin.address()));
        let process = home.serve().await;
        Self { home, origin, _process: process }
    }

    async fn get(&self, key: &str, target: &str) -> Reply {
        send(self.home.gateway, "GET", target, &with_key(key, &["cache-control: no-store"]), "").await
    }

    /// Starts this many reads by the greedy caller at once, each for a different organization.
    async fn greedy(&self, count: u64) -> Vec<Reply> {
        let reads = (100..100 + count).map(|n| format!("/api/v2/organizations/{n}/payments"));
        join_all(reads.map(|target| async move { self.get(GREEDY, &target).await })).await
    }

    /// A value from `/metrics`.
    async fn metric(&self, name: &str) -> u64 {
        let page = send(self.home.operator, "GET", "/metrics", "", "").await.expect(200);
        let line = page.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    async fn until_metric(&self, name: &str, value: u64) {
        for _ in 0..3_000 {
            if self.metric(name).await == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} is {}, not {value}", self.metric(name).await);
    }
}

/// 64 slow reads by one caller take 16 of 18 connections, and the rest of them wait. A returning caller finds a
/// connection again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_slow_reads_leaves_connections_to_returning_callers() {
    let gate = Gate::default();
    let slow = Slow::start(16, &gate).await;
    let greedy = slow.greedy(64);
    let polite = async {
        slow.until_metric("makegate_upstream_waiting", 48).await;
        assert_eq!(slow.metric("makegate_upstream_connections").await, 16);
        for round in 0..20 {
            let target = format!("/api/v2/organizations/{}/payments", 11 + round % 3);
            slow.get(POLITE, &target).await.expect(200);
        }
        // Several requests at once take turns at what is left.
        join_all((0..5).map(|_| slow.get(POLITE, PAYMENTS)))
            .await
            .into_iter()
            .for_each(|reply| drop(reply.expect(200)));
        assert_eq!(slow.metric("makegate_upstream_waiting").await, 48, "one of the greedy caller's went before");
        assert_eq!(slow.origin.received().len(), 16 + 20 + 5);
        gate.open();
    };
    let (greedy, ()) = tokio::join!(greedy, polite);
    greedy.into_iter().for_each(|reply| drop(reply.expect(200)));
    slow.until_metric("makegate_upstream_connections", 0).await;
}

/// A caller who hangs up gives back nothing that is still in use, so hanging up never lets anyone have more under way
/// than allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_makes_no_room_for_more() {
    let plan = Plan::default().set("upstream", SLOW).set("limits", "in_flight_per_caller = 2");
    let (world, roots) = tls::world(plan, "", &[]).await;
    let (mut sender, _ended) = tls::h2(&world, &roots, 65_535).await;
    for (method, path) in [("GET", ORG), ("DELETE", OTHER)] {
        world.sandbox.fault(Fault::once(method, path, HANG));
        let mut request = tls::h2_get(GREEDY, path);
        *request.method_mut() = method.parse().unwrap();
        tokio::select! {
            answer = sender.send_request(request) => panic!("it was answered: {answer:?}"),
            () = until(|| world.received(method, path) == 1) => {}
        }
    }
    // The requester leaves the read's record, but the fetch is still under way.
    while !world.records().await.iter().any(|record| record["kind"] == "request") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let third = sender.send_request(tls::h2_get(GREEDY, PAYMENTS)).await.unwrap();
    assert_eq!((third.status(), world.service.gateway().under_way()), (StatusCode::TOO_MANY_REQUESTS, 2));
    let another = sender.send_request(tls::h2_get(POLITE, PAYMENTS)).await.unwrap();
    assert_eq!(another.status(), StatusCode::OK);
    world.sandbox.clear_faults();
    until(|| world.service.gateway().under_way() == 0).await;
}

/// 60 writes by one caller to one resource; another caller's writes go after the one under way, and from then on
/// every second turn is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_take_turns_at_one_resource() {
    let world = Plan::default().set("upstream", SLOW).start().await;
    world.sandbox.fault(Fault::once("PATCH", ORG, HANG));
    let body = |who: &str, n: usize| format!(r#"{{"name":"{who} {n}"}}"#);
    let greedy: Vec<_> = (0..60).map(|n| body("greedy", n)).collect();
    let polite: Vec<_> = (0..5).map(|n| body("polite", n)).collect();
    let are_queued = |writes| world.received("PATCH", ORG) == 1 && world.service.gateway().queued_writes() == writes;
    let polite = async {
        until(|| are_queued(59)).await;
        let go = async {
            until(|| are_queued(64)).await;
            world.sandbox.clear_faults();
        };
        tokio::join!(patch(&world, POLITE, &polite), go).0
    };
    let (greedy, polite) = tokio::join!(patch(&world, GREEDY, &greedy), polite);
    greedy.into_iter().chain(polite).for_each(|reply| drop(reply.expect(200)));
    let order: Vec<String> = world.sandbox.received_of("PATCH", ORG).into_iter().map(|write| write.body).collect();
    let places: Vec<_> = (0..order.len()).filter(|place| order[*place].contains("polite")).collect();
    // The first was not answered, so it went twice.
    assert_eq!((order.len(), places), (66, vec![2, 4, 6, 8, 10]));
}

async fn patch(world: &World, key: &str, bodies: &[String]) -> Vec<Reply> {
    join_all(bodies.iter().map(|body| world.patch(key, ORG, body))).await
}

/// The same for a caller whose write is under way: a caller's own writes never overtake each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_one_caller_to_one_resource_keep_the_order_they_came_in() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("PATCH", ORG, HELD));
    let bodies: Vec<_> = (0..20).map(|n| format!(r#"{{"name":"{n}"}}"#)).collect();
    let mut writes = Vec::new();
    for (n, body) in bodies.iter().enumerate() {
        let mut write = Box::pin(world.patch(if n % 2 == 0 { GREEDY } else { POLITE }, ORG, body));
        // Wait until it is in the queue before sending the next one.
        let is_queued = || world.received("PATCH", ORG) == 1 && world.service.gateway().queued_writes() == n;
        tokio::select! { reply = &mut write => panic!("it was answered: {reply:?}"), () = until(is_queued) => writes.push(write) }
    }
    world.sandbox.clear_faults();
    join_all(writes).await.into_iter().for_each(|reply| drop(reply.expect(200)));
    let order: Vec<usize> = world
        .sandbox
        .received_of("PATCH", ORG)
        .into_iter()
        .map(|write| write.body.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap())
        .collect();
    for parity in 0..2 {
        let own: Vec<_> = order.iter().filter(|n| *n % 2 == parity).collect();
        assert!(own.is_sorted(), "{order:?}");
    }
}

/// Time-outs of one operation of one organization stop only that; only a lost connection would stop everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unanswered_reads_stop_only_their_own_operation_and_organization() {
    let limits = "attempts = 1\nbreaker_open = \"60s\"";
    let world = Plan::default().set("upstream", "attempt = \"3s\"").set("limits", limits).start().await;
    world.sandbox.fault(Fault::always("GET", PAYMENTS, HANG));
    for late in join_all((0..5).map(|_| world.get(GREEDY, PAYMENTS))).await {
        late.refused(504, "MG202");
    }
    let refused = world.get(GREEDY, PAYMENTS).await.refused(503, "MG209");
    let words = "did not answer payments.list of organization 11 several times in a row";
    assert!(refused.text().contains(words), "{}", refused.text());
    assert_eq!(world.received("GET", PAYMENTS), 5, "what is refused is not sent");
    for target in ["/api/v2/organizations/12/payments", ORG, OTHER, "/api/v2/organizations/11/apps"] {
        world.get(POLITE, target).await.expect(200);
    }
    let operator = world.service.operator_addresses()[0];
    let ready = send(operator, "GET", "/readyz?verbose", "", "").await.expect(200);
    assert!(ready.text().contains("[!] upstream: degraded"), "{}", ready.text());
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let explain = format!("/explain.json?caller=all&method=GET&target={PAYMENTS}");
    let explained = send(operator, "GET", &explain, &key, "").await.expect(200).json();
    assert_eq!((explained["verdict"].as_str(), explained["code"].as_str()), (Some("refuse"), Some("MG209")));
    // When the pause is over, one request probes.
    world.sandbox.clear_faults();
    world.clock.advance(Duration::from_secs(60));
    world.get(GREEDY, PAYMENTS).await.expect(200);
    let ready = send(operator, "GET", "/readyz?verbose", "", "").await.expect(200);
    assert!(ready.text().contains("[+] upstream: ok"), "{}", ready.text());
}

/// A request that waited for its turn until hardly any time was left has learned nothing about the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_connection_opens_no_breaker_and_spends_no_retries() {
    let times = "connections = 1\nattempt = \"2s\"\ndeadline = \"2s\"";
    let world = Plan::default().set("upstream", times).start().await;
    world.sandbox.fault(Fault::always("GET", PAYMENTS, HANG));
    let holder = world.get(GREEDY, PAYMENTS);
    let others = async {
        until(|| world.received("GET", PAYMENTS) == 1).await;
        let waiting = (12..20).map(|n| format!("/api/v2/organizations/{n}/payments"));
        let waiting: Vec<_> = waiting.collect();
        let replies = join_all(waiting.iter().map(|target| world.get(POLITE, target))).await;
        for reply in replies {
            // The holder's deadline may come first, with enough time left or hardly any.
            match reply.status {
                200 | 404 => {}
                504 => drop(reply.refused(504, "MG202")),
                _ => {
                    let reply = reply.refused(503, "MG146");
                    assert_eq!(reply.header("proxy-status"), Some("makegate; error=connection_limit_reached"));
                }
            }
        }
    };
    let (held, ()) = tokio::join!(holder, others);
    held.refused(504, "MG202");
    assert_eq!(world.received("GET", PAYMENTS), 1, "hardly any time was left to ask again");
    world.sandbox.clear_faults();
    world.get(POLITE, ORG).await.expect(200);
    let operator = world.service.operator_addresses()[0];
    let ready = send(operator, "GET", "/readyz?verbose", "", "").await.expect(200);
    assert!(ready.text().contains("[+] upstream: ok"), "{}", ready.text());
}

/// The same for attempts that had hardly any time: five in a row would open the breaker if they had had all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_cut_short_by_waiting_open_no_breaker() {
    let times = "connections = 1\nattempt = \"20s\"\ndeadline = \"20s\"";
    let world = Plan::default().set("upstream", times).set("limits", "attempts = 1").start().await;
    let (gate, other) = (world.service.gateway(), "/api/v2/organizations/12/payments");
    let mut silent = 0;
    for round in 1..=20 {
        world.sandbox.fault(Fault::always("GET", PAYMENTS, HANG));
        let cut_short = async {
            until(|| world.received("GET", PAYMENTS) == round).await;
            world.get(POLITE, other).await
        };
        let origin = async {
            until(|| gate.upstream().load().1 == 1).await;
            world.clock.advance(Duration::from_millis(19_500));
            world.sandbox.clear_faults();
            world.sandbox.fault(Fault::always("GET", other, HANG));
        };
        let (_held, cut_short, ()) = tokio::join!(world.get(GREEDY, PAYMENTS), cut_short, origin);
        silent += usize::from(cut_short.status == 504);
        world.sandbox.clear_faults();
        if silent == 5 {
            world.get(POLITE, other).await.expect(200);
            return;
        }
    }
    panic!("only {silent} attempts were cut short: the test proves nothing");
}

/// One caller's requests fail all the time, but another's single failure is still retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_caller_leaves_others_their_retries() {
    let world = Plan::default().set("limits", "breaker_failures = 0").start().await;
    let failing = "/api/v2/organizations/11/apps";
    world.sandbox.fault(Fault::always("GET", failing, FaultKind::status(503)));
    for _ in 0..30 {
        world.get(GREEDY, failing).await.expect(503);
    }
    // Ten in a hundred, and a few every ten seconds; without a bound it would be 90.
    assert!(world.received("GET", failing) < 60, "the retry budget is a bound");
    world.sandbox.fault(Fault::once("GET", PAYMENTS, FaultKind::status(503)));
    world.get(POLITE, PAYMENTS).await.expect(200);
    assert_eq!(world.received("GET", PAYMENTS), 2);
}

/// A read joins another caller's fetch, but not while that fetch is queued behind everything else that caller wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_queued_in_another_callers_name_is_not_joined() {
    let gate = Gate::default();
    let slow = Slow::start(16, &gate).await;
    let greedy = slow.greedy(16);
    let rest = async {
        slow.until_metric("makegate_upstream_connections", 16).await;
        // A cached class, so both would share one fetch.
        let (to, queued, polite) = (slow.home.gateway, with_key(GREEDY, &[]), with_key(POLITE, &[]));
        let queued = Box::pin(send(to, "GET", ORG, &queued, ""));
        let polite = Box::pin(async {
            slow.until_metric("makegate_upstream_waiting", 1).await;
            let first = send(to, "GET", ORG, &polite, "").await.expect(200);
            assert_eq!(first.header("cache-status").map(|text| text.contains("collapsed")), Some(false), "{first:?}");
            send(to, "GET", ORG, &polite, "").await.expect(200)
        });
        let (first, _, other) = select_all([queued as futures_util::future::BoxFuture<'_, Reply>, polite]).await;
        assert!(first.header("cache-status").unwrap().contains("hit"), "the polite one is answered first: {first:?}");
        gate.open();
        for one in other {
            one.await.expect(200);
        }
    };
    let (greedy, ()) = tokio::join!(greedy, rest);
    greedy.into_iter().for_each(|reply| drop(reply.expect(200)));
}
