//! The whole life of requests, without a socket on the caller's side.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use secrecy::SecretString;
use tower::ServiceExt as _;

use super::{Engines, Gateway, KeyLogAdapter, life};
use crate::audit::AuditLog;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::door::{PeerConnection, RequestBody};
use crate::hash;
use crate::idempotency::IdempotencyStore;
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
            quota: Quota::open(quota, None, clock.clone()).unwrap(),
            upstream: Arc::new(upstream),
            issuers: Vec::new(),
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

#[tokio::test]
async fn a_request_needs_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[operator]\nkey_file = \"key\"\n[upstream]\nurl = \"http://127.0.0.1:1\"\ntoken_file = \"token\"\n\
         [audit]\ndir = {:?}\n[[caller]]\nname = \"all\"\nkeys = [\"sha256:{}\"]\ngrants = [\"*\"]\n",
        dir.path().join("audit"),
        hash::hex(&hash::sha256(KEY.as_bytes()))
    );
    let config = config::parse(&text, Path::new("/etc/makegate.toml")).unwrap_or_else(|bad| panic!("{bad}")).config;
    let clock = Clock::system();
    let gateway = Gateway::for_tests(config, &clock);
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
