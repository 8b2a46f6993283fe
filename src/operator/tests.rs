//! The door as a whole, over a gate whose upstream nobody asks.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::audit::{Doubt, Kind, Record};
use crate::cache::{Lifetime, NewEntry};
use crate::callers::AnswerSource;
use crate::clock::Clock;
use crate::gateway::Gateway;
use crate::ids::{Fingerprint, RequestId};
use crate::reconcile::Reconciler;
use crate::{config, hash};

const KEY: &str = "operator-key-of-this-test";
const TOKEN: &str = "make-token-of-this-test";
const CALLER_KEY: &str = "caller-key-of-this-test";
const PAGES: [&str; 8] = ["/", "/audit", "/callers", "/quota", "/cache", "/config", "/doubts", "/explain"];

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

struct World {
    state: Arc<OperatorState>,
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
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key_hash = hash::hex(&hash::sha256(CALLER_KEY.as_bytes()));
        let dir_text = format!("{:?}", dir.path().join("audit"));
        let text = CONFIG.replace("DIR", &dir_text).replace("HASH", &key_hash).replace("OTHER", &"ab".repeat(32));
        let read = config::parse(&text, Path::new("/etc/makegate.toml")).unwrap_or_else(|failure| panic!("{failure}"));
        let clock = Clock::movable();
        let gateway = Gateway::for_tests(read.config, &clock);
        let state = OperatorState::new(
            Reconciler::new(gateway),
            &SecretString::from(KEY),
            Some(read.origins.file.clone()),
            read.origins,
        );
        Self { state, clock, _dir: dir }
    }

    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &'static str) -> Reply {
        let mut request = Request::builder().method(method).uri(target);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost:8081");
        }
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let peer = Some("127.0.0.1".parse().unwrap());
        let response = answer(&self.state, peer, request.body(Full::new(Bytes::from(body))).unwrap()).await;
        let (head, body) = response.into_parts();
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
            path: key.into(),
            filled_by: RequestId::new(&self.clock),
            lifetime: Lifetime { fresh: hour, stale: hour, age: Duration::ZERO, overruled: false },
            stamp: cache.fetch_handle(cache.fence_set(tags)).mark_sent(),
        });
        assert!(stored.is_some());
    }
}

#[tokio::test]
async fn probes_and_scrapes_need_no_key_and_everything_else_does() {
    let world = World::new();
    for open in ["/livez", "/healthz", "/readyz", "/readyz?verbose", "/metrics"] {
        assert_eq!(world.send("GET", open, &[], "").await.status, 200, "{open}");
    }
    for closed in PAGES.iter().chain(&["/audit/follow", "/openapi.json", "/quota.json", "/nothing", "/style.css"]) {
        let reply = world.send("GET", closed, &[], "").await;
        assert_eq!(reply.status, 401, "{closed}");
        assert_eq!(reply.header("www-authenticate"), "Basic realm=\"makegate\", Bearer");
        assert_eq!(reply.json()["type"], "urn:makegate:operator:no-key");
    }
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("me:{KEY}")));
    assert_eq!(world.send("GET", "/quota", &[("authorization", &basic)], "").await.status, 200);
    let two = [("authorization", &*basic), ("authorization", "Bearer x")];
    assert_eq!(world.send("GET", "/quota", &two, "").await.status, 400);
}

#[tokio::test]
async fn a_new_key_replaces_the_old_and_guessing_is_slow() {
    let world = World::new();
    world.state.set_key(&SecretString::from("another-key"));
    assert_eq!(world.get("/quota").await.json()["type"], "urn:makegate:operator:wrong-key");
    for _ in 1..30 {
        assert_eq!(world.get("/quota").await.status, 401);
    }
    let reply = world.get("/quota").await;
    assert_eq!((reply.status, reply.header("retry-after").parse::<u64>().unwrap() <= 60), (429, true));
    assert_eq!(world.send("GET", "/livez", &[], "").await.status, 200);
    // Nobody who guesses locks out who has the key, from the same address either.
    let right = [("authorization", "Bearer another-key")];
    assert_eq!(world.send("GET", "/quota", &right, "").await.status, 200);
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.get("/quota").await.status, 401);
}

#[tokio::test]
async fn unknown_hosts_and_foreign_pages_are_refused_everywhere() {
    let world = World::new();
    for target in ["/metrics", "/livez", "/quota"] {
        let rebound = world.with_key("GET", target, &[("host", "evil.example")], "").await;
        assert_eq!((rebound.status, rebound.json()["status"].clone()), (421, json!(421)), "{target}");
        let foreign = world.with_key("GET", target, &[("origin", "http://evil.example")], "").await;
        assert_eq!(foreign.status, 403, "{target}");
    }
    let purge = world.with_key("POST", "/cache/purge", &[("origin", "null")], "{\"all\":true}").await;
    assert_eq!(purge.status, 403);
    let own = [("origin", "http://localhost:8081")];
    assert_eq!(world.with_key("POST", "/cache/purge", &own, "{\"all\":true}").await.status, 200);
}

#[tokio::test]
async fn every_answer_forbids_scripts_frames_storing_and_sniffing() {
    let world = World::new();
    let html = [("accept", "text/html")];
    for target in ["/", "/audit", "/style.css", "/metrics", "/nothing", "/audit?limit=0"] {
        let reply = world.with_key("GET", target, &html, "").await;
        assert!(reply.header("content-security-policy").starts_with("default-src 'none'; style-src 'self';"));
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("x-frame-options"), "DENY");
        assert_eq!(reply.header("cache-control"), "no-store");
        assert!(!reply.headers.contains_key("set-cookie"));
        assert!(!reply.body.contains("<script") && !reply.body.contains(" style="), "{target}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let world = World::new();
    let reply = world.with_key("POST", "/quota", &[], "").await;
    assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"));
    let reply = world.get("/cache/purge").await;
    assert_eq!((reply.status, reply.header("allow")), (405, "POST"));
    assert_eq!(world.with_key(Method::HEAD.as_str(), "/quota", &[], "").await.status, 200);
    assert_eq!(world.get("/nothing").await.status, 404);
}

#[tokio::test]
async fn every_page_has_three_forms_and_no_secret() {
    let world = World::new();
    for page in PAGES {
        let query = if page == "/explain" { "?caller=all&method=GET&target=/api/v2/organizations" } else { "" };
        let json = world.get(&format!("{page}{query}")).await;
        assert_eq!((json.status, json.header("content-type")), (200, "application/json"), "{page}: {}", json.body);
        let suffixed = world.get(&format!("{page}.json{query}")).await;
        assert!(suffixed.json().is_object(), "{page}");
        let csv = world.get(&format!("{page}.csv{query}")).await;
        assert_eq!(csv.header("content-type"), "text/csv; charset=utf-8; header=present");
        assert!(csv.body.lines().next().unwrap().contains(','), "{page}: {}", csv.body);
        let html = world.with_key("GET", &format!("{page}{query}"), &[("accept", "text/html")], "").await;
        assert!(html.body.starts_with("<!DOCTYPE html>") && html.body.contains("<h1>"), "{page}");
        for reply in [json, suffixed, csv, html] {
            let hash = hash::hex(&hash::sha256(CALLER_KEY.as_bytes()));
            for secret in [KEY, TOKEN, CALLER_KEY] {
                assert!(!reply.body.contains(secret), "{page} holds {secret}");
            }
            assert!(page == "/config" || !reply.body.contains(&hash), "{page}");
        }
    }
}

#[tokio::test]
async fn callers_are_shown_with_what_they_did() {
    let world = World::new();
    let policy = world.state.gateway.policy();
    let reader = policy.caller("reader").unwrap();
    let list = &policy.catalogue().row("organizations.list").unwrap().id;
    reader.state.count(Some(list), AnswerSource::Hit);
    reader.state.count(Some(list), AnswerSource::Hit);
    reader.state.count(None, AnswerSource::Refused);
    let hash = hash::sha256(CALLER_KEY.as_bytes());
    let known = policy.caller_key(&hash).unwrap();
    known.last_used.store(1_750_000_000_000, std::sync::atomic::Ordering::Relaxed);
    let callers = world.get("/callers.json").await.json();
    let expected = json!({
        "name": "reader", "grants": ["organizations:read"], "organizations": [11, 12], "rate": "30/min", "burst": 3,
        "may_refresh": true, "keys": [{"key": &hash::hex(&hash)[..8], "last_used": "2025-06-15T15:06:40Z"}],
        "requests": 3, "refused": 1, "under_way": 0, "answers": {"hit": 2, "refused": 1},
        "operations": {"": {"refused": 1}, "organizations.list": {"hit": 2}},
    });
    assert_eq!(callers["callers"][0], expected);
    assert_eq!(callers["callers"][1]["organizations"], Value::Null);
    assert_eq!(callers["callers"][1]["keys"][0]["last_used"], Value::Null);
    let metrics = world.get("/metrics").await.body;
    let hits = "makegate_requests_total{caller=\"reader\",operation=\"organizations.list\",outcome=\"hit\"} 2";
    assert!(metrics.lines().any(|line| line == hits), "{metrics}");
}

#[tokio::test]
async fn a_purge_says_how_much_it_took_and_leaves_a_record() {
    let world = World::new();
    world.store("/a", &["org:11", "organizations"]);
    world.store("/b", &["org:12", "organizations"]);
    let cache = world.get("/cache.json").await.json();
    assert_eq!(cache["entries"], 2);
    assert_eq!(cache["tags"][2], json!({"tag": "organizations", "entries": 2}));
    let purged = world.with_key("POST", "/cache/purge", &[], r#"{"tag": "org:11"}"#).await;
    assert_eq!(purged.json(), json!({"purged": 1}));
    assert_eq!(world.with_key("POST", "/cache/purge", &[], r#"{"all": true}"#).await.json(), json!({"purged": 1}));
    assert_eq!(world.get("/cache.json").await.json()["entries"], 0);
    let records = world.get("/audit.json?kind=event").await.json();
    let purges: Vec<_> = records["records"].as_array().unwrap().iter().filter(|one| one["event"] == "purge").collect();
    assert_eq!((purges.len(), &purges[1]["peer"]), (2, &json!("127.0.0.1")));
    assert_eq!(purges[1]["detail"], "an operator purged the tag org:11: 1 entries");
}

#[tokio::test]
async fn a_body_that_is_no_purge_is_refused_with_what_to_write() {
    let world = World::new();
    let post = |kind: &'static str, body| {
        let world = &world;
        async move { world.with_key("POST", "/cache/purge", &[("content-type", kind)], body).await }
    };
    let reply = post("application/json", r#"{"tags": "org:11"}"#).await;
    assert_eq!(reply.status, 400);
    assert!(reply.json()["detail"].as_str().unwrap().starts_with("write {\"tag\": \"org:11\"}"));
    assert_eq!(post("text/plain", r#"{"all": true}"#).await.status, 415);
    let large: &'static str = "x".repeat(70_000).leak();
    assert_eq!(post("application/json", large).await.status, 413);
    let form = post("application/x-www-form-urlencoded", "tag=org%3A11").await;
    assert_eq!((form.status, form.header("location").starts_with("/cache?purged=0")), (303, true));
}

#[tokio::test]
async fn records_are_searched_paged_and_harmless() {
    let world = World::new();
    for status in [200, 403, 404] {
        world.record(|record| {
            record.caller = Some("reader".into());
            record.status = Some(status);
            record.detail = Some("=cmd()<script>\u{202e}".into());
            record.path = Some("/api/v2/<b>".into());
        });
    }
    let page = world.get("/audit.json?caller=reader&limit=2&operation=").await.json();
    let statuses: Vec<_> = page["records"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, [404, 403]);
    let rest = world.get(&format!("/audit.json?caller=reader&after={}", page["next"])).await.json();
    assert_eq!((rest["records"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    assert_eq!(world.get("/audit.json?status=4xx").await.json()["records"].as_array().unwrap().len(), 2);

    let html = world.with_key("GET", "/audit?caller=reader&limit=2", &[("accept", "text/html")], "").await.body;
    assert!(html.contains("/api/v2/&lt;b&gt;") && !html.contains("<b>"), "{html}");
    assert!(html.contains("href=\"/audit?caller=reader&amp;limit=2&amp;after="), "{html}");
    let csv = world.get("/audit.csv?caller=reader&limit=1").await.body;
    assert!(csv.starts_with("seq,time,kind,") && csv.contains(",'=cmd()<script>"), "{csv}");

    let bad = world.get("/audit?limit=0").await;
    assert_eq!((bad.status, bad.header("content-type")), (400, "application/problem+json"));
    assert!(bad.json()["detail"].as_str().unwrap().contains("a number from 1 to 10000"));
}

#[tokio::test]
async fn followers_get_what_they_want_as_it_comes_until_shutdown() {
    let world = World::new();
    let request = Request::get("/audit/follow?status=403")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {KEY}"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = answer(&world.state, None, request).await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut body = response.into_body();
    world.record(|record| record.status = Some(200));
    world.record(|record| record.status = Some(403));
    let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(line.ends_with(b"\n"));
    assert_eq!(serde_json::from_slice::<Value>(&line).unwrap()["status"], 403);
    world.state.gateway.tasks.stop();
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn too_many_followers_are_turned_away() {
    let world = World::new();
    let _all = world.state.followers.clone().try_acquire_many_owned(16).unwrap();
    assert_eq!(world.get("/audit/follow").await.status, 503);
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let world = World::new();
    let reply = world.send("GET", "/metrics", &[], "").await;
    assert_eq!(reply.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(reply.body.ends_with("# EOF\n"));
    let mut family = "";
    for line in reply.body.lines().filter(|line| *line != "# EOF") {
        if let Some(named) = line.strip_prefix("# HELP ") {
            family = named.split(' ').next().unwrap();
        } else if !line.starts_with('#') {
            assert!(line.starts_with(family), "{line} is not of {family}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    for name in [
        "makegate_request_duration_seconds_bucket{le=\"+Inf\"} ",
        "makegate_upstream_attempts_total{result=\"answered\"} 0",
        "makegate_quota_wait_seconds_count 0",
        "makegate_cache_requests_total{result=\"hit\"} 0",
        "makegate_audit_backlog ",
        "makegate_writes_in_doubt 0",
        "makegate_config_last_reload_successful 1",
        "makegate_build_info{version=",
        "makegate_upstream_breaker{state=\"closed\"} 1",
        "process_resident_memory_bytes ",
    ] {
        assert!(reply.body.lines().any(|line| line.starts_with(name)), "{name}: {}", reply.body);
    }
}

#[tokio::test]
async fn draining_is_not_ready_but_alive() {
    let world = World::new();
    assert_eq!(world.send("GET", "/readyz", &[], "").await.body, "ready\n");
    world.state.gateway.drain();
    let reply = world.send("GET", "/readyz?verbose", &[], "").await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("[+] log: ok\n[-] draining: failed: it is shutting down\n"), "{}", reply.body);
    assert_eq!(world.send("GET", "/livez", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_failed_reload_is_told_and_the_old_configuration_stays() {
    let world = World::new();
    let before = world.get("/config.json").await.json();
    assert_eq!((&before["file"], &before["reload"]["error"]), (&json!("/etc/makegate.toml"), &Value::Null));
    let rate = json!({"key": "caller.reader.rate", "value": "30/min", "origin": "/etc/makegate.toml:11"});
    assert!(before["settings"].as_array().unwrap().contains(&rate), "{before}");
    world.state.reloaded(Err("makegate.toml:3:1: unknown key".to_owned()));
    let after = world.get("/config.json").await.json();
    assert_eq!(after["reload"]["error"], "makegate.toml:3:1: unknown key");
    assert_eq!(after["settings"], before["settings"]);
    assert!(world.get("/metrics").await.body.contains("makegate_config_last_reload_successful 0\n"));
    assert_eq!(world.send("GET", "/readyz", &[], "").await.status, 200);
    world.state.reloaded(Ok(config::Origins::default()));
    assert_eq!(world.get("/config.json").await.json()["settings"], json!([]));
}

#[tokio::test]
async fn explain_shows_the_step_that_decides() {
    let world = World::new();
    let told = world.get("/explain.json?caller=reader&method=GET&target=%2Fapi%2Fv2%2Forganizations%2F99").await.json();
    assert_eq!((&told["verdict"], &told["status"], &told["code"]), (&json!("refuse"), &json!(403), &json!("MG132")));
    let steps = told["steps"].as_array().unwrap();
    assert_eq!(steps.last().unwrap()["step"], "authorize");
    let missing = world.get("/explain.json?caller=reader").await;
    assert_eq!(missing.status, 400);
    let form = world.with_key("GET", "/explain", &[("accept", "text/html")], "").await;
    assert!(form.status == 200 && form.body.contains("name=\"target\""));
}

#[tokio::test]
async fn writes_in_doubt_are_listed() {
    let world = World::new();
    assert_eq!(world.get("/doubts.json").await.json(), json!({"doubts": []}));
    world.state.gateway.log.doubts().add(Doubt {
        intent: 42,
        request: RequestId::parse(b"w1").unwrap(),
        time: "2026-07-01T12:00:00Z".parse().unwrap(),
        caller: "all".into(),
        operation: "payments.create".into(),
        organization: Some(11),
        path: "/api/v2/organizations/11/payments".into(),
        fingerprint: Fingerprint::parse(&"0".repeat(32)),
        idempotency: None,
        marks: None,
    });
    let expected = json!({"doubts": [{
        "intent": 42, "request": "w1", "time": "2026-07-01T12:00:00Z", "caller": "all", "operation": "payments.create",
        "organization": 11, "path": "/api/v2/organizations/11/payments",
        "looks": 0, "why": "a look cannot prove it",
    }]});
    assert_eq!(world.get("/doubts.json").await.json(), expected);
    let csv = world.get("/doubts.csv").await.body;
    assert!(csv.starts_with("request,time,caller,operation,organization,path,looks,why\r\nw1,"), "{csv}");
    let html = world.with_key("GET", "/doubts", &[("accept", "text/html")], "").await.body;
    assert!(html.contains("<code>makegate doubts settle REQUEST --as done|not-done</code>"), "{html}");
}

#[tokio::test]
async fn over_a_socket_head_has_no_body_and_the_door_counts_its_connections() {
    let world = World::new();
    let policy = world.state.gateway.policy();
    let listen = [config::Listen::Tcp("127.0.0.1:0".parse().unwrap())];
    let door = Door::bind(&listen, None, policy.limits(), &world.clock, &world.state.gateway.tasks).unwrap();
    let door = open(door, world.state.clone());
    let mut stream = tokio::net::TcpStream::connect(door.addresses()[0]).await.unwrap();
    let head =
        format!("HEAD /callers HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {KEY}\r\n\r\n", door.addresses()[0]);
    let get = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{head}{get}").as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let (first, second) = answers.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 200 OK") && first.contains("content-length: "), "{first}");
    assert!(second.starts_with("HTTP/1.1 200 OK"), "HEAD has a body: {second}");
    assert!(second.contains("makegate_connections{door=\"operator\"} 1\n"), "{second}");
    door.close();
}
