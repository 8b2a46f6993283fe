//! Tests of the upstream against an origin that misbehaves on purpose.

mod answers;
mod connections;
mod endings;
#[path = "../../../tests/support/hostile.rs"]
mod hostile;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use secrecy::SecretString;
use tokio::task::JoinHandle;

use super::{BreakerReport, Ending, Outgoing, ProxyError, Token, Upstream, UpstreamAnswer};
use crate::clock::Clock;
use crate::config::{self, BaseUrl, Limits, QuotaSetting, SecretSource};
use crate::shares::SharedLimit;
use crate::tasks::Tasks;
use crate::watched_files::Snapshot;
use hostile::{Gate, Origin, Script, Step, repeated};

const TOKEN: &str = "3f2a91c4-77de-4b0a-9a51-0c6d1e8b2f47";
/// A small complete response.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
/// Long enough for anything that does happen.
const LONG: Duration = Duration::from_secs(60);
/// Long enough for what should already have happened; short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

fn token(text: &str) -> Token {
    Token::new(&SecretString::from(text)).unwrap()
}

fn settings(host: &str, port: u16) -> config::UpstreamConfig {
    config::UpstreamConfig {
        url: BaseUrl { tls: false, host: host.to_owned(), port, authority: format!("{host}:{port}") },
        token: SecretSource::Env("TOKEN".to_owned()),
        quota: QuotaSetting::Auto,
        quota_max: 10_000,
        quotas: std::collections::BTreeMap::new(),
        deadline: Duration::from_secs(15),
        write_deadline: Duration::from_secs(40),
        attempt: Duration::from_secs(10),
        write_attempt: Duration::from_secs(30),
        connect: Duration::from_secs(3),
        quota_wait: Duration::from_secs(5),
        connections: 16,
        idle: Duration::from_secs(15),
        look: true,
        ca_file: None,
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        connections: 1024,
        handshake: Duration::from_secs(5),
        first_byte: Duration::from_secs(5),
        head: Duration::from_secs(10),
        head_bytes: 32 << 10,
        head_fields: 64,
        target_bytes: 8000,
        body_bytes: 1 << 20,
        bodies_bytes: 64 << 20,
        body_gap: Duration::from_secs(10),
        linger: Duration::from_secs(2),
        linger_bytes: 16 << 20,
        body: Duration::from_secs(30),
        idle: Duration::from_secs(60),
        age: Duration::from_secs(3600),
        age_grace: Duration::from_secs(120),
        write_stall: Duration::from_secs(30),
        in_flight: 512,
        in_flight_per_caller: 64,
        joined: 8192,
        h2_streams: 64,
        h2_window_bytes: 64 << 10,
        h2_connection_window_bytes: 256 << 10,
        h2_frame_bytes: 16 << 10,
        h2_header_table_bytes: 4 << 10,
        h2_send_bytes: 400 << 10,
        h2_pending_resets: 20,
        h2_local_resets: 64,
        h2_ping: Duration::from_secs(20),
        h2_ping_wait: Duration::from_secs(10),
        quota_queue: 50,
        doubts: 10_000,
        stored_bytes: 4 << 20,
        answer_bytes: 64 << 20,
        answers_bytes: 128 << 20,
        attempts: 3,
        attempts_once: 2,
        retry_percent: 10,
        retry_floor: 2,
        breaker_failures: 5,
        breaker_open: Duration::from_secs(5),
        breaker_open_max: Duration::from_secs(60),
        idempotency_keys: 100_000,
        idempotency_age: Duration::from_secs(24 * 3600),
        idempotency_answer_bytes: 64 << 10,
        idempotency_bytes: 256 << 20,
        drain: Duration::from_secs(25),
    }
}

/// An upstream at this origin with settings changed by `change`.
fn upstream_with(
    origin: &Origin,
    clock: Clock,
    change: impl FnOnce(&mut config::UpstreamConfig, &mut Limits),
) -> Arc<Upstream> {
    let (mut settings, mut limits) = (settings("127.0.0.1", origin.address().port()), limits());
    change(&mut settings, &mut limits);
    Arc::new(Upstream::new(&settings, &limits, token(TOKEN), clock, &Snapshot::new()).unwrap())
}

fn upstream(origin: &Origin) -> Arc<Upstream> {
    upstream_with(origin, Clock::system(), |_, _| {})
}

fn get() -> Outgoing {
    Outgoing {
        method: Method::GET,
        target: "/api/v2/organizations/11?wait=true".to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        answers: SharedLimit::new(u64::MAX).holder(),
    }
}

fn post(body: impl Into<Bytes>) -> Outgoing {
    Outgoing { method: Method::POST, body: body.into(), ..get() }
}

/// Reads one request, writes `answer`, then does `rest`.
fn answering(answer: impl AsRef<[u8]>, rest: &[Step]) -> Script {
    [vec![Step::Read, Step::write(answer)], rest.to_vec()].concat()
}

/// Answers `times` requests on one connection.
fn serving(times: usize) -> Script {
    repeated(&[Step::Read, Step::write(OK)], times)
}

/// How one attempt at an origin with this one script ends.
async fn ending_of(script: Script) -> Ending {
    let origin = Origin::start(vec![script]);
    upstream(&origin).once(&get(), LONG, false).await
}

impl Upstream {
    /// An attempt on the gateway's own behalf, with so much time for each of the connection and the rest.
    async fn once(&self, outgoing: &Outgoing, time: Duration, fresh: bool) -> Ending {
        let connection = self.acquire_connection(None, time).await.expect("a connection");
        self.attempt(connection, outgoing, time, fresh).await
    }
}

/// An attempt on a task of its own.
fn begin(upstream: &Arc<Upstream>) -> JoinHandle<Ending> {
    let upstream = upstream.clone();
    Tasks::new().spawn(async move { upstream.once(&get(), LONG, false).await })
}

#[track_caller]
fn answered(ending: Ending) -> UpstreamAnswer {
    let shape = shape(&ending);
    let Ending::Answered(answered) = ending else { panic!("no answer: {shape:?}") };
    answered
}

/// The ending's name, status and error, to compare with.
fn shape(ending: &Ending) -> (&'static str, Option<u16>, Option<ProxyError>) {
    (ending.kind().as_str(), ending.status().map(|status| status.as_u16()), ending.error().map(|why| why.error))
}

/// Waits until `done`; gives up long after any machine would have got there.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..4000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
