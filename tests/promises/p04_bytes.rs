//! Promise 4, byte by byte: the wire to the upstream is cut after every byte of the request and of the answer, in order and by
//! a reset, for an operation of each retry class. What took effect is counted at the upstream.

use futures_util::future::join_all;

use crate::support::hostile::{Origin, Step, repeated, tls_identity};
use crate::support::relay::{At, Manner, Relay};
use crate::support::{ALL, ORG, Plan, Reply, World};

/// A request that may be made again and again, each time as another one of the same length.
#[derive(Clone, Copy, Debug)]
struct Shape {
    method: &'static str,
    path: &'static str,
    /// `N` stands for a number of five digits.
    body: &'static str,
    /// May it be sent again when nobody knows what the first attempt did?
    again: bool,
    /// Is it sent again when only its answer was cut?
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
    path: "/api/v2/organizations/11/payments",
    body: "",
    again: true,
    again_for_the_answer: true,
};

/// A gateway whose wire to an upstream of its own can be cut.
struct Bench {
    world: World,
    upstream: World,
    relay: Relay,
}

impl Bench {
    async fn new() -> Self {
        let upstream = World::start().await;
        let relay = Relay::start(upstream.sandbox.address());
        Self { world: gateway(&format!("http://{}", relay.address())).start().await, upstream, relay }
    }

    async fn send(&self, shape: Shape, number: usize) -> Reply {
        let body = shape.body.replace('N', &format!("{}", 10_000 + number));
        // All ids are of one length, so that all requests of a shape are.
        self.world.send(ALL, shape.method, shape.path, &[], &body).await
    }

    /// The bytes of this request, and of its answer up to the end of the head, and whole.
    async fn lengths(&self, shape: Shape) -> (usize, usize, usize) {
        self.relay.arm(None);
        let reply = self.send(shape, 0).await.expect(200);
        let (request, answer) = self.relay.passed();
        (request, answer - reply.body.len(), answer)
    }

    /// Cuts there, and looks what came of it.
    async fn check(&self, shape: Shape, number: usize, (at, manner): (At, Manner), head: usize) {
        self.upstream.sandbox.reset();
        self.relay.arm(Some((at, manner)));
        let reply = self.send(shape, number).await;
        let place = format!("{} {at:?} {manner:?}: {reply:?}", shape.method);
        let effects = self.upstream.received(shape.method, shape.path);
        let first = usize::from(matches!(at, At::Answer(_)));
        let answer_only = matches!(at, At::Answer(bytes) if bytes >= head);
        let again = if answer_only { shape.again_for_the_answer } else { shape.again };
        assert_eq!(effects, first + usize::from(again), "{place}");
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
}

/// Everything that may be sent again is, as often as the classes allow.
fn gateway(upstream: &str) -> Plan {
    let plan = Plan::default().upstream(upstream).set("upstream", "look = false");
    plan.set("limits", "breaker_failures = 0\nretry_percent = 100\nretry_floor = 1000000")
}

/// Several gateways share the work: most of it is waiting.
async fn cut_everywhere(shape: Shape) {
    let (request, head, answer) = Bench::new().await.lengths(shape).await;
    println!("{} {}: {request} bytes, answered by {answer}", shape.method, shape.path);
    let places = (0..request).map(At::Request).chain((0..answer).map(At::Answer));
    let cuts: Vec<_> = places.flat_map(|at| [(at, Manner::Fin), (at, Manner::Reset)]).collect();
    let shares = cuts.chunks(cuts.len().div_ceil(6)).map(|share| async move {
        let bench = Bench::new().await;
        for (number, cut) in share.iter().enumerate() {
            bench.check(shape, number + 1, *cut, head).await;
        }
        share.len()
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

/// Over TLS the bytes of the handshake come first: whatever ends within it has sent nothing, and goes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_byte_of_tls_never_doubles_a_once_write() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"ok\":1}";
    let share = |is_request: bool| async move {
        let of = |at| if is_request { At::Request(at) } else { At::Answer(at) };
        let (authority, tls) = tls_identity(&["127.0.0.1"]);
        let origin = Origin::start_tls(vec![repeated(&[Step::Read, Step::write(answer)], 2)], tls);
        let relay = Relay::start(origin.address());
        let dir = crate::support::new_dir();
        std::fs::write(dir.path().join("ca.pem"), authority).unwrap();
        let plan = gateway(&format!("https://{}", relay.address())).set("upstream", "ca_file = \"ca.pem\"");
        let world = plan.start_in(dir).await;
        let pay = |number: usize| format!(r#"{{"priceId":{},"customer":{{}}}}"#, 10_000 + number);
        // The first handshake is the longest.
        world.post(ALL, PAY.path, &pay(0)).await.expect(200);
        let (there, back) = relay.passed();
        let mut seen = [0; 2];
        for at in 0..if is_request { there } else { back } {
            let before = origin.received().len();
            relay.arm(Some((of(at), if at % 2 == 0 { Manner::Fin } else { Manner::Reset })));
            let reply = world.post(ALL, PAY.path, &pay(at + 1)).await;
            let effects = origin.received().len() - before;
            let place = format!("{:?} of {there} and {back}: {effects} effects: {reply:?}", of(at));
            match reply.header("makegate-outcome") {
                Some("done") => assert_eq!(effects, 1, "{place}"),
                Some("in-doubt") => assert!(effects <= 1, "{place}"),
                _ => panic!("{place}"),
            }
            seen[effects] += 1;
        }
        println!("{there} bytes, answered by {back}; 0 and 1 effects: {seen:?}");
        seen
    };
    let (there, back) = tokio::join!(share(true), share(false));
    assert!(there.iter().all(|count| *count > 0) && back[1] > 0, "cut before and after the handshake's end");
}
