//! The whole life of requests, without a socket on the caller's side.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use secrecy::SecretString;
use tower::ServiceExt as _;

use super::{Engines, Gateway, KeyLogAdapter, life};
use crate::audit::AuditLog;
use crate::cache::{Cache, Lifetime, NewEntry};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::door::{PeerConnection, RequestBody};
use crate::hash;
use crate::idempotency::IdempotencyStore;
use crate::ids::RequestId;
use crate::list_index::ListIndex;
use crate::quota::{Quota, QuotaSettings};
use crate::tasks::Tasks;
use crate::upstream::{Token, Upstream};
use crate::watched_files::Snapshot;

impl Gateway {
    /// A gateway with this configuration and real engines; its quota is not persisted.
    pub(crate) fn for_tests(mut config: Config, clock: &Clock) -> Arc<Self> {
        config.audit.disk_wait = Duration::from_secs(60);
        let (log, _) = AuditLog::open(&config.audit, clock.clone()).unwrap();
        let token = Token::new(&SecretString::from("9b2d7c1e-5a64-4f0b-8e3a-7d1c2b3a4f5e")).unwrap();
        let upstream = Upstream::new(&config.upstream, &config.limits, token, clock.clone(), &Snapshot::new()).unwrap();
        let keys = Arc::new(KeyLogAdapter::new(log.clone(), clock.clone()));
        let quota = QuotaSettings {
            setting: config.upstream.quota,
            queue_per_caller: config.limits.quota_queue,
            wait: config.upstream.quota_wait,
            ..QuotaSettings::default()
        };
        let engines = Engines {
            idempotency: IdempotencyStore::open(&config.audit, &config.limits, clock.clone(), keys).unwrap(),
            log,
            cache: Cache::new(&config.cache, config.limits.stored_bytes, clock.clone()),
            quota: Quota::open(quota, None, clock.clone(), None).unwrap(),
            upstream: Arc::new(upstream),
            issuers: Vec::new(),
            otel: None,
            replicas: None,
            clock: clock.clone(),
            tasks: Tasks::new(),
        };
        Self::new(config, engines)
    }
}

const KEY: &str = "key-all";
const PAYMENT: &str = "/api/v2/organizations/11/single-payment-create";

async fn answer<B: RequestBody>(gateway: &Arc<Gateway>, clock: &Clock, request: Request<B>) -> (StatusCode, String) {
    let peer = PeerConnection::detached(None, None, clock);
    let response = life::service(gateway.clone(), peer).oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// A configuration with these lines about the upstream and limits, and callers: their key, which is their name, and their other lines.
fn config(dir: &Path, lines: &str, callers: &[(&str, &str)]) -> Config {
    let mut text = format!(
        "[operator]\nkey_file = \"key\"\n[audit]\ndir = {:?}\n\
         [upstream]\nurl = \"http://127.0.0.1:1\"\ntoken_file = \"token\"\n{lines}\n",
        dir.join("audit")
    );
    for (key, caller) in callers {
        let hash = hash::hex(&hash::sha256(key.as_bytes()));
        text += &format!("[[caller]]\nname = \"{key}\"\nkeys = [\"sha256:{hash}\"]\ngrants = [\"*\"]\n{caller}\n");
    }
    config::parse(&text, Path::new("/etc/makegate.toml")).unwrap_or_else(|bad| panic!("{bad}")).config
}

#[tokio::test]
async fn a_request_needs_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let gateway = Gateway::for_tests(config(dir.path(), "", &[(KEY, "")]), &clock);
    let request = |method: &str, target: &str| {
        let request = Request::builder().method(method).uri(target).header("content-type", "application/json");
        request.header("host", "localhost").header("authorization", format!("Token {KEY}"))
    };

    let unknown = Request::get("http://localhost/api/v2/organizations").body(Full::<Bytes>::default()).unwrap();
    let (status, body) = answer(&gateway, &clock, unknown).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    let unreachable = request("GET", "/api/v2/organizations/11").body(Full::<Bytes>::default()).unwrap();
    let (status, body) = answer(&gateway, &clock, unreachable).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
    // Any body type will do; this one arrives in pieces.
    let pieces =
        [r#"{"priceId":"#, r#""p1""#, "}"].map(|piece| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(piece))));
    let write = request("POST", PAYMENT).body(StreamBody::new(futures_util::stream::iter(pieces))).unwrap();
    let (status, body) = answer(&gateway, &clock, write).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");

    gateway.log.flush().await;
    let kinds = std::fs::read_to_string(dir.path().join("audit/00000000000000000001.jsonl")).unwrap();
    for kind in ["\"kind\":\"request\"", "\"kind\":\"intent\"", "\"kind\":\"outcome\""] {
        assert!(kinds.contains(kind), "{kind}: {kinds}");
    }
}

const LIST: &str = "/api/v2/organizations";
const ORGANIZATIONS: u64 = 2_000;

/// Puts a large list into the cache.
fn store_list(gateway: &Gateway, clock: &Clock) {
    let pad = "x".repeat(200);
    let rows: Vec<String> = (1..=ORGANIZATIONS).map(|id| format!(r#"{{"id":{id},"pad":"{pad}"}}"#)).collect();
    let body = Bytes::from(format!(r#"{{"organizations":[{}]}}"#, rows.join(",")));
    let fresh = Duration::from_secs(3600);
    let stored = gateway.cache.store(NewEntry {
        key: format!("{LIST}?pg[limit]=10000").into(),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        etag: HeaderValue::from_static("\"1\""),
        list: Some(ListIndex::of(&body, "organizations").unwrap()),
        body,
        path: LIST.into(),
        filled_by: RequestId::new(clock),
        lifetime: Lifetime { fresh, stale: fresh, age: Duration::ZERO, overruled: false },
        stamp: gateway.cache.fetch_handle(gateway.cache.fence_set::<&str>(&[])).mark_sent(),
    });
    assert!(stored.is_some());
}

#[tokio::test]
async fn large_work_that_gets_no_turn_is_refused_in_time_and_a_small_page_of_a_large_list_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let most: Vec<u64> = (1..=ORGANIZATIONS).collect();
    let callers = [("key-most", &*format!("organizations = {most:?}")), ("key-few", "organizations = [11, 12]")];
    let lines =
        "deadline = \"500ms\"\nattempt = \"400ms\"\nquota_wait = \"300ms\"\n[limits]\nbody = \"1s\"\nbody_gap = \"1s\"";
    let gateway = Gateway::for_tests(config(dir.path(), lines, &callers), &clock);
    store_list(&gateway, &clock);
    let ask = async |key: &str, method: &str, target: &str, body: String| {
        let request = Request::builder().method(method).uri(target).header("host", "localhost");
        let request =
            request.header("authorization", format!("Token {key}")).header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        // Much longer than it may take.
        tokio::time::timeout(Duration::from_secs(20), answer(&gateway, &clock, request)).await.expect("no answer")
    };
    let taken = gateway.large_work.take_all().await;
    let (status, page) = ask("key-few", "GET", LIST, String::new()).await;
    assert!(status == StatusCode::OK && page.contains(r#"{"id":12,"#) && !page.contains(r#""id":13,"#), "{page}");
    let (status, refusal) = ask("key-most", "GET", LIST, String::new()).await;
    assert!(status == StatusCode::GATEWAY_TIMEOUT && refusal.contains("MG231"), "{status} {refusal}");
    let body = format!(r#"{{"pad":"{}"}}"#, "x".repeat(300 << 10));
    let (status, refusal) = ask("key-few", "POST", PAYMENT, body).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && refusal.contains("MG143"), "{status} {refusal}");
    drop(taken);
    let (status, page) = ask("key-most", "GET", LIST, String::new()).await;
    assert_eq!((status, page.matches(r#""id":"#).count()), (StatusCode::OK, most.len()));
}
