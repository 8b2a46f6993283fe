//! The door as a whole, without sockets, over a gateway whose upstream nobody asks.

mod bounds;
mod door;
mod pages;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt as _;

use super::{OperatorState, router};
use crate::audit::{Kind, Record};
use crate::cache::{Lifetime, NewEntry};
use crate::clock::Clock;
use crate::config::OperatorKey;
use crate::door::PeerConnection;
use crate::gateway::Gateway;
use crate::ids::RequestId;
use crate::reconcile::Reconciler;
use crate::{config, hash};

const KEY: &str = "operator-key-of-this-test";
/// The token of `Gateway::for_tests`.
const TOKEN: &str = "9b2d7c1e-5a64-4f0b-8e3a-7d1c2b3a4f5e";
const CALLER_KEY: &str = "caller-key-of-this-test";
const PAGES: [&str; 9] = ["/", "/audit", "/callers", "/quota", "/cache", "/config", "/doubts", "/explain", "/replicas"];

const CONFIG: &str = r#"
operator.key_env = "K"
upstream.token_env = "T"
upstream.url = "http://127.0.0.1:1"
audit.dir = DIR
[[caller]]
name = "reader"
keys = ["sha256:HASH"]
grants = ["organizations:read"]
organizations = [11, 12]
rate = "30/min"
burst = 3
[[caller]]
name = "all"
keys = ["sha256:OTHER"]
grants = ["*"]
"#;

pub(super) struct World {
    pub(super) state: Arc<OperatorState>,
    router: Router,
    clock: Clock,
    _dir: TempDir,
}

/// An answer, taken whole.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", self.headers)).to_str().unwrap()
    }
}

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key_hash = hash::hex(&hash::sha256(CALLER_KEY.as_bytes()));
        let dir_text = format!("{:?}", dir.path().join("audit"));
        let text = CONFIG.replace("DIR", &dir_text).replace("HASH", &key_hash).replace("OTHER", &"ab".repeat(32));
        let read = config::parse(&text, Path::new("/etc/makegate.toml")).unwrap_or_else(|failure| panic!("{failure}"));
        let clock = Clock::movable();
        let gateway = Gateway::for_tests(read.config, &clock);
        let state = OperatorState::new(
            Reconciler::new(gateway),
            &[OperatorKey::admin(&SecretString::from(KEY))],
            Some(read.origins.file.clone()),
            read.origins,
        );
        Self { router: router::router(state.clone()), state, clock, _dir: dir }
    }

    /// The answer to this request, whose body is not taken yet.
    async fn answer(&self, request: http::request::Builder, body: impl Into<Body>) -> Response {
        let peer = PeerConnection::detached(Some(IpAddr::from([127, 0, 0, 1])), None, &self.clock);
        self.router.clone().oneshot(request.extension(peer).body(body.into()).unwrap()).await.unwrap()
    }

    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &'static str) -> Reply {
        let mut request = Request::builder().method(method).uri(target);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost:8081");
        }
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (head, body) = self.answer(request, body).await.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Reply { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// With the key.
    async fn get(&self, target: &str) -> Reply {
        self.with_key("GET", target, &[], "").await
    }

    async fn with_key(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &'static str) -> Reply {
        let bearer = format!("Bearer {KEY}");
        self.send(method, target, &[&[("authorization", &*bearer)], headers].concat(), body).await
    }

    fn record(&self, record: impl FnOnce(&mut Record)) {
        let mut one = Record::new(Kind::Request, self.clock.wall());
        record(&mut one);
        self.state.gateway.log.reserve().unwrap().fill(one);
    }

    fn store(&self, key: &str, tags: &[&str]) {
        let cache = &self.state.gateway.cache;
        let hour = Duration::from_secs(3600);
        let stored = cache.store(NewEntry {
            key: key.into(),
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{}"),
            etag: HeaderValue::from_static("\"1\""),
            list: None,
            path: key.into(),
            filled_by: RequestId::new(&self.clock),
            lifetime: Lifetime { fresh: hour, stale: hour, age: Duration::ZERO, overruled: false },
            stamp: cache.fetch_handle(cache.fence_set(tags)).mark_sent(),
        });
        assert!(stored.is_some());
    }
}
