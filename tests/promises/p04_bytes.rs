//! Promise 4, byte by byte: the connection to the upstream is cut after every byte of the request and of the answer,
//! by an orderly close and by a reset, for an operation of each retry class. Effects are counted at the upstream and
//! attributed to requests by text unique to each, after everything that got through has been read: even a late effect
//! belongs to its request.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use futures_util::future::join_all;

use crate::support::hostile::{Origin, Received, Step, repeated, tls_identity};
use crate::support::relay::{At, Manner, Relay};
use crate::support::{ALL, ORG, Plan, Reply, World, new_dir, until};

/// A request that can be made repeatedly, each time as a different one of the same length.
#[derive(Clone, Copy, Debug)]
struct Shape {
    method: &'static str,
    /// `N` stands for a five-digit number, here or in the body.
    path: &'static str,
    body: &'static str,
    /// Whether it may be sent again when nobody knows what the first attempt did.
    again: bool,
    /// Whether it is sent again when only its answer was cut.
    again_for_the_answer: bool,
}

const PAY: Shape = Shape {
    method: "POST",
    path: "/api/v2/organizations/11/single-payment-create",
    body: r#"{"priceId":N,"quantity":1,"couponCode":null,"doNotCharge":false,"customer":{"email":"a@example.com","name":"A","isBusiness":false,"countryId":1,"city":"P","line1":"S"}}"#,
    again: false,
    again_for_the_answer: false,
};
const RENAME: Shape =
    Shape { method: "PATCH", path: ORG, body: r#"{"name":"Named N"}"#, again: true, again_for_the_answer: false };
const READ: Shape = Shape {
    method: "GET",
    path: "/api/v2/organizations/11/payments?pg[offset]=N",
    body: "",
    again: true,
    again_for_the_answer: true,
};

/// The upstream's constant answer.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"ok\":1}";

/// A gateway whose connection to its own upstream can be cut.
struct Bench {
    world: World,
    origin: Origin,
    relay: Relay,
    /// The number of effects that each request must have had, by the request's number.
    expected: HashMap<usize, RangeInclusive<usize>>,
}

impl Bench {
    async fn new(is_tls: bool) -> Self {
        let scripts = vec![repeated(&[Step::Read, Step::write(ANSWER)], 1_000)];
        let dir = new_dir();
        // Whatever may be sent again is, as often as its class allows.
        let limits = "breaker_failures = 0\nretry_percent = 100\nretry_floor = 1000000";
        let mut plan = Plan::default().set("upstream", "look = false").set("limits", limits);
        let origin = if is_tls {
            let (authority, tls) = tls_identity(&["127.0.0.1"]);
            std::fs::write(dir.path().join("ca.pem"), authority).unwrap();
            plan = plan.set("upstream", "ca_file = \"ca.pem\"");
            Origin::start_tls(scripts, tls)
        } else {
            Origin::start(scripts)
        };
        let relay = Relay::start(origin.address());
        let scheme = if is_tls { "https" } else { "http" };
        let world = plan.upstream(format!("{scheme}://{}", relay.address())).start_in(dir).await;
        Self { world, origin, relay, expected: HashMap::new() }
    }

    async fn send(&self, shape: Shape, number: usize) -> Reply {
        let [path, body] = [shape.path, shape.body].map(|text| text.replace('N', &name(number)));
        self.world.send(ALL, shape.method, &path, &[], &body).await
    }

    /// The lengths in bytes of this request, and of its answer up to the end of the head and in full.
    async fn lengths(&self, shape: Shape) -> (usize, usize, usize) {
        self.relay.arm(None);
        let reply = self.send(shape, 0).await.expect(200);
        let (request, answer) = self.relay.passed();
        (request, answer - reply.body.len(), answer)
    }

    /// Cuts at this point and checks the result.
    async fn check(
        &mut self,
        shape: Shape,
        number: usize,
        (at, manner): (At, Manner),
        (request, head): (usize, usize),
    ) {
        self.relay.arm(Some((at, manner)));
        let reply = self.send(shape, number).await;
        let place = format!("{} {} {at:?} {manner:?}: {reply:?}", shape.method, name(number));
        let is_whole = matches!(at, At::Answer(_)) || at == At::Request(request);
        let answer_only = matches!(at, At::Answer(bytes) if bytes >= head);
        let again = if answer_only { shape.again_for_the_answer } else { shape.again };
        let effects = usize::from(is_whole) + usize::from(again);
        self.expected.insert(number, effects..=effects);
        let (status, outcome) = match (again, answer_only) {
            (true, _) => (200, "done"),
            (false, true) => (502, "done"),
            (false, false) => (502, "in-doubt"),
        };
        assert_eq!(reply.status, status, "{place}");
        let told = reply.header("makegate-outcome");
        assert_eq!(told, (shape.method != "GET").then_some(outcome), "{place}");
        if status == 502 {
            assert_eq!(reply.code(), if answer_only { "MG223" } else { "MG222" }, "{place}");
            assert_eq!(reply.header("retry-after"), None, "{place}");
        }
        let record = self.world.last_record().await;
        assert_eq!(record["attempts"], 1 + u64::from(again), "{place}");
        assert_eq!(record["outcome"].as_str(), told, "{place}");
    }

    /// Returns what each request did at the upstream, by number, once the upstream has read everything that got
    /// through to it.
    async fn effects(self) -> HashMap<usize, usize> {
        let Self { origin, relay, expected, .. } = self;
        relay.end();
        until(|| origin.connections() == relay.connections() && origin.open() == 0).await;
        let sent = |received: &Received| {
            let line = received.head.lines().next().unwrap_or_default();
            format!("{line} {}", String::from_utf8_lossy(&received.body))
        };
        let sent: Vec<_> = origin.received().iter().map(sent).collect();
        let effects = |number| sent.iter().filter(|text| text.contains(&name(number))).count();
        let effects: HashMap<_, _> = expected.keys().map(|number| (*number, effects(*number))).collect();
        for (number, wanted) in expected {
            assert!(
                wanted.contains(&effects[&number]),
                "{}: {} effects, not {wanted:?}",
                name(number),
                effects[&number]
            );
        }
        effects
    }
}

/// The name that stands for a request on the wire. All names have the same length, so all requests of a shape do too.
fn name(number: usize) -> String {
    format!("{}", 10_000 + number)
}

/// Several gateways share the work, because most of it is waiting.
async fn cut_everywhere(shape: Shape) {
    let (request, head, answer) = Bench::new(false).await.lengths(shape).await;
    println!("{} {}: {request} bytes, answered by {answer}", shape.method, shape.path);
    let places = (0..=request).map(At::Request).chain((0..answer).map(At::Answer));
    let cuts: Vec<_> = places.flat_map(|at| [(at, Manner::Fin), (at, Manner::Reset)]).collect();
    let shares = cuts.chunks(cuts.len().div_ceil(6)).map(|share| async move {
        let mut bench = Bench::new(false).await;
        for (number, cut) in share.iter().enumerate() {
            bench.check(shape, number + 1, *cut, (request, head)).await;
        }
        bench.effects().await.len()
    });
    assert_eq!(join_all(shares).await.into_iter().sum::<usize>(), cuts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_byte_never_doubles_a_once_write() {
    cut_everywhere(PAY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_byte_leaves_an_idempotent_write_done() {
    cut_everywhere(RENAME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_byte_of_a_read_is_not_noticed() {
    cut_everywhere(READ).await;
}

/// Over TLS the handshake's bytes come first: a connection cut during it has sent nothing, so the write goes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_byte_of_tls_never_doubles_a_once_write() {
    let share = |is_request: bool, from: usize| async move {
        let mut bench = Bench::new(true).await;
        // Later handshakes resume the first session, so the client sends more bytes and receives fewer.
        let (first, later) = (bench.lengths(PAY).await, bench.lengths(PAY).await);
        let (there, back) = (first.0.max(later.0), first.2.max(later.2));
        let mut in_doubt = Vec::new();
        let places = (from..=if is_request { there } else { back }).step_by(2);
        // The position of the last byte depends on whether a session was resumed.
        let again = std::iter::repeat_n(there, if is_request { 10 } else { 0 });
        for (number, bytes) in places.chain(again).enumerate() {
            let (at, number) = (if is_request { At::Request(bytes) } else { At::Answer(bytes) }, number + 1);
            bench.relay.arm(Some((at, if bytes / 2 % 2 == 0 { Manner::Fin } else { Manner::Reset })));
            let reply = bench.send(PAY, number).await;
            let effects = match reply.header("makegate-outcome") {
                Some("done") => 1..=1,
                Some("in-doubt") => 0..=1,
                _ => panic!("{at:?} of {there} and {back}: {reply:?}"),
            };
            if effects == (0..=1) {
                in_doubt.push(number);
            }
            bench.expected.insert(number, effects);
        }
        let effects = bench.effects().await;
        let doubted = |count| in_doubt.iter().filter(|number| effects[number] == count).count();
        let seen = [effects.len() - in_doubt.len(), doubted(0), doubted(1)];
        println!("{there} bytes, answered by {back}: done, in doubt without and with an effect: {seen:?}");
        seen
    };
    let shares = [share(true, 0), share(true, 1), share(false, 0), share(false, 1)];
    let seen = join_all(shares).await;
    let sum = |of: &[[usize; 3]]| -> [usize; 3] { std::array::from_fn(|n| of.iter().map(|seen| seen[n]).sum()) };
    let (there, back) = (sum(&seen[..2]), sum(&seen[2..]));
    assert!(
        there.iter().all(|count| *count > 0),
        "before the handshake's end, within the request, after its last byte"
    );
    assert!(back[0] > 0 && back[2] > 0, "before the handshake's end, and before the answer's head was whole");
}
