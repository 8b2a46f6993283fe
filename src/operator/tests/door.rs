//! What every request passes: key, host and origin, headers, methods, bodies, followers.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::html::Menu;
use super::super::open;
use super::super::router::within_layers;
use super::{KEY, PAGES, World};
use crate::config::{self, OperatorKey, Role};
use crate::door::{Door, DoorSockets};
use crate::hash;

#[tokio::test]
async fn probes_and_scrapes_need_no_key_and_everything_else_does() {
    let world = World::new();
    for open in ["/livez", "/healthz", "/readyz", "/readyz?verbose", "/metrics"] {
        assert_eq!(world.send("GET", open, &[], "").await.status, 200, "{open}");
    }
    for closed in
        PAGES.iter().chain(&["/audit/follow", "/openapi.json", "/quota.json", "/nothing", "/style.css", "/page.js"])
    {
        let reply = world.send("GET", closed, &[], "").await;
        assert_eq!(reply.status, 401, "{closed}");
        let schemes: Vec<_> = reply.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(
            schemes,
            ["Basic realm=\"makegate\"", "Bearer"],
            "Chromium asks nobody for a key if they are in one field"
        );
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
    world.state.set_operators(&[OperatorKey::admin(&SecretString::from("another-key"))]);
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
        assert_eq!(rebound.status, if target == "/quota" { 421 } else { 200 }, "{target}");
        let foreign = world.with_key("GET", target, &[("origin", "http://evil.example")], "").await;
        assert_eq!(foreign.status, 403, "{target}");
    }
    let purge = world.with_key("POST", "/cache/purge", &[("origin", "null")], "{\"all\":true}").await;
    assert_eq!(purge.status, 403);
    let own = [("origin", "http://localhost:8081")];
    assert_eq!(world.with_key("POST", "/cache/purge", &own, "{\"all\":true}").await.status, 200);
}

#[tokio::test]
async fn every_answer_forbids_foreign_scripts_frames_storing_and_sniffing() {
    let world = World::new();
    let html = [("accept", "text/html")];
    for target in ["/", "/audit", "/style.css", "/metrics", "/nothing", "/audit?limit=0"] {
        let reply = world.with_key("GET", target, &html, "").await;
        let policy = reply.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self' 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("x-frame-options"), "DENY");
        assert_eq!(reply.header("cache-control"), "no-store");
        assert!(!reply.headers.contains_key("set-cookie"));
        let own = reply.body.replace("<script src=\"/page.js\" defer></script>", "");
        assert!(!own.contains("<script") && !own.contains(" style="), "{target}");
    }
}

/// Whoever has no key can fetch neither stylesheet nor script nor icon.
#[tokio::test]
async fn a_page_for_somebody_without_a_key_needs_nothing_else_and_says_how_to_come_in() {
    let world = World::new();
    let html = ("accept", "text/html");
    for (headers, status) in [
        (vec![html], 401),
        (vec![html, ("authorization", "Bearer wrong")], 401),
        (vec![html, ("host", "evil.example")], 421),
        (vec![html, ("origin", "http://evil.example")], 403),
    ] {
        let reply = world.send("GET", "/audit", &headers, "").await;
        assert_eq!(reply.status, status);
        for other in ["src=", "href=\"/", "<nav"] {
            assert!(!reply.body.contains(other), "{other}: {}", reply.body);
        }
        let style = reply.body.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = base64::engine::general_purpose::STANDARD.encode(hash::sha256(style.as_bytes()));
        assert!(reply.header("content-security-policy").contains(&format!("'sha256-{hash}'")));
        let command = "curl --user &quot;me:$MAKEGATE_OPERATOR_KEY&quot; localhost:8081/";
        assert_eq!(reply.body.contains(command), status == 401, "{}", reply.body);
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
async fn a_body_that_is_no_purge_is_refused_with_what_to_write() {
    let world = World::new();
    let post = |kind: &'static str, body| {
        let world = &world;
        async move { world.with_key("POST", "/cache/purge", &[("content-type", kind)], body).await }
    };
    let reply = post("application/json", r#"{"tags": "org:11"}"#).await;
    assert_eq!(reply.status, 400);
    let detail = reply.json()["detail"].to_string();
    assert!(detail.contains("; write {\\\"tag\\\": \\\"org:11\\\"}, {\\\"entry\\\": "), "{detail}");
    assert_eq!(post("text/plain", r#"{"all": true}"#).await.status, 415);
    let large: &'static str = "x".repeat(70_000).leak();
    assert_eq!(post("application/json", large).await.status, 413);
    let form = post("application/x-www-form-urlencoded", "tag=org%3A11").await;
    assert_eq!((form.status, form.header("location").starts_with("/cache?purged=0")), (303, true));
}

#[tokio::test]
async fn followers_get_what_they_want_as_it_comes_until_shutdown() {
    let world = World::new();
    let request = Request::get("/audit/follow?status=403")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {KEY}"));
    let response = world.answer(request, Body::empty()).await;
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
    let _all: Vec<_> = (0..16).map_while(|n| world.state.followers.try_acquire(&format!("{n}").into())).collect();
    assert_eq!(world.get("/audit/follow").await.status, 503);
}

/// Who asks much has all places but the last, on every page that reads the log's files: another operator is answered at once.
#[tokio::test]
async fn one_operator_does_not_take_every_turn_to_query_the_log() {
    let world = World::new();
    let key = |name: &str| OperatorKey { name: name.into(), hash: hash::sha256(name.as_bytes()), role: Role::Read };
    world.state.set_operators(&[key("anna"), key("ben")]);
    world.record(|record| record.status = Some(200));
    let queries = &world.state.gateway.log.queries;
    let held: Vec<_> = std::iter::from_fn(|| queries.try_acquire(&"anna".into())).collect();
    assert_eq!((held.len(), queries.free()), (2, 1));
    for page in ["/audit.json", "/audit/record?seq=1", "/audit/proof?seq=1", "/quota/ledger", "/history?hours=2"] {
        let reply = world.send("GET", page, &[("authorization", "Bearer ben")], "").await;
        assert_eq!(reply.status, 200, "{page}: {}", reply.body);
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
async fn over_a_socket_head_has_no_body_and_the_door_counts_its_connections() {
    let world = World::new();
    let policy = world.state.gateway.policy();
    let listen = [config::Listen::Tcp("127.0.0.1:0".parse().unwrap())];
    let door = Door::bind(
        DoorSockets { listen: &listen, ..DoorSockets::default() },
        None,
        policy.limits(),
        &world.clock,
        &world.state.gateway.tasks,
    )
    .unwrap();
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

/// Paths of every kind: open ones, pages in each form, files, actions, and one that leads nowhere.
const PATHS: [&str; 14] = [
    "/livez", "/readyz", "/metrics", "/style.css", "/openapi.json", "/quota", "/quota.csv", "/audit/follow",
    "/audit/rotate", "/cache/purge", "/quota/reopen", "/doubts", "/doubts/x", "/nothing",
];

/// Origin and host first, then key, path, method: whoever lacks the key learns nothing about the rest. No answer lacks the headers.
#[tokio::test]
async fn checks_come_in_one_order_on_every_path_and_all_answers_have_the_headers() {
    let world = World::new();
    let (host, origin) = (("host", "evil.example"), ("origin", "http://evil.example"));
    let key = ("authorization", "Bearer operator-key-of-this-test");
    for path in PATHS {
        let is_open = matches!(path, "/livez" | "/readyz" | "/metrics");
        let method = if path == "/nothing" { (404, "no-page") } else { (405, "no-method") };
        let steps = [
            // A probe knows the door by whatever address it reaches it at.
            (vec![host], if is_open { method } else { (421, "unknown-host") }),
            (vec![host, origin], if is_open { method } else { (421, "unknown-host") }),
            (vec![origin], (403, "foreign-origin")),
            (vec![], if is_open { method } else { (401, "no-key") }),
            (vec![key], method),
        ];
        for (headers, (status, kind)) in steps {
            for accept in ["application/json", "text/html"] {
                let accept = ("accept", accept);
                let reply = world.send("PATCH", path, &[&*headers, &[accept]].concat(), "").await;
                assert_eq!(reply.status, status, "{path} {headers:?}");
                for name in ["content-security-policy", "vary", "x-request-id", "cache-control", "referrer-policy"] {
                    assert!(!reply.header(name).is_empty(), "{path}");
                }
                match reply.header("content-type") {
                    "application/problem+json" => {
                        assert_eq!(reply.json()["type"], format!("urn:makegate:operator:{kind}"), "{path}");
                    }
                    other => assert_eq!((other, accept.1), ("text/html; charset=utf-8", "text/html"), "{path}"),
                }
                assert_eq!(reply.headers.contains_key("allow"), status == 405, "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_short_plain_request_id_is_kept_and_any_other_is_replaced() {
    let world = World::new();
    let id = async |own: &str| {
        world.send("GET", "/livez", &[("x-request-id", own)], "").await.header("x-request-id").to_owned()
    };
    assert_eq!(id("deploy-7.1").await, "deploy-7.1");
    for bad in ["a b", "", &"x".repeat(65), "<script>"] {
        let given = id(bad).await;
        assert!(given != bad && uuid::Uuid::try_parse(&given).is_ok(), "{given}");
    }
}

#[tokio::test]
async fn a_panic_is_answered_with_all_the_headers() {
    async fn fails() -> &'static str {
        panic!("this handler fails on purpose")
    }
    let world = World::new();
    let routes = Router::new().route("/fails", get(fails));
    let world = World { router: within_layers(routes, Menu::from([]), world.state.clone()), ..world };
    let reply = world.send("GET", "/fails", &[], "").await;
    assert_eq!((reply.status, &reply.json()["type"]), (500, &json!("urn:makegate:operator:internal")));
    assert!(!reply.header("content-security-policy").is_empty() && !reply.header("x-request-id").is_empty());
    assert!(!reply.body.contains("on purpose"), "{}", reply.body);
}

#[tokio::test]
async fn a_body_that_does_not_end_is_given_up() {
    let world = World::new();
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>());
    let request =
        Request::post("/cache/purge").header("host", "localhost").header("authorization", format!("Bearer {KEY}"));
    let limit = world.state.gateway.policy().limits().body;
    let waits = async { world.state.gateway.clock.advance(limit) };
    let (answer, ()) = tokio::join!(world.answer(request, never), waits);
    assert_eq!(answer.status(), 408);
}
