//! What the pages show.

use http::StatusCode;
use serde_json::{Value, json};

use super::{CALLER_KEY, KEY, PAGES, TOKEN, World};
use crate::audit::Doubt;
use crate::counters::AnswerKind;
use crate::ids::{Fingerprint, RequestId};
use crate::vocabulary::Answer;
use crate::{config, hash};

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
    let hit = AnswerKind::new(Answer::Hit, StatusCode::OK, None);
    let refused = AnswerKind::new(Answer::Refused, StatusCode::NOT_FOUND, Some("MG120"));
    for (id, kind) in [(Some(list), hit), (Some(list), hit), (None, refused)] {
        reader.state.answers.add(id, kind);
    }
    let hash = hash::sha256(CALLER_KEY.as_bytes());
    let known = policy.caller_key(&hash).unwrap();
    known.last_used.store(1_750_000_000_000, std::sync::atomic::Ordering::Relaxed);
    let callers = world.get("/callers.json").await.json();
    let expected = json!({
        "name": "reader", "grants": ["organizations:read"], "organizations": [11, 12], "rate": "30/min", "burst": 3,
        "may_refresh": true, "identities": [], "certificates": [], "uids": [],
        "keys": [{"key": &hash::hex(&hash)[..8], "expires": null, "from": [], "note": null, "warning": null, "last_used": "2025-06-15T15:06:40Z"}],
        "requests": 3, "refused": 1, "under_way": 0,
        "last_minute": {"requests": 3, "over_rate": 0}, "rate_used": 0.1, "answers": {"hit": 2, "refused": 1}, "refusals": {"MG120": 1},
        "operations": {"": {"refused": 1}, "organizations.list": {"hit": 2}},
    });
    assert_eq!(callers["callers"][0], expected);
    assert_eq!(callers["callers"][1]["organizations"], Value::Null);
    assert_eq!(callers["callers"][1]["keys"][0]["last_used"], Value::Null);
    let metrics = world.get("/metrics").await.body;
    let hits = "makegate_requests_total{caller=\"reader\",operation=\"organizations.list\",answer=\"hit\",status=\"200\",code=\"\"} 2";
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
    assert_eq!(purges[1]["detail"], "operator purged the tag org:11: 1 entries");
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
async fn metrics_are_in_the_format_that_is_asked_for() {
    let world = World::new();
    let reply = world.send("GET", "/metrics", &[], "").await;
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let accept = [("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")];
    let openmetrics = world.send("GET", "/metrics", &accept, "").await;
    assert_eq!(openmetrics.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(openmetrics.body.ends_with("# EOF\n"));
    let samples = |body: &str| body.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples(&reply.body), samples(&openmetrics.body));
    let mut family = "";
    for line in reply.body.lines() {
        if let Some(named) = line.strip_prefix("# HELP ") {
            family = named.split(' ').next().unwrap();
        } else if !line.starts_with('#') {
            assert!(line.starts_with(family), "{line} is not of {family}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    for name in [
        "makegate_request_duration_seconds_bucket{le=\"+Inf\",answer=\"hit\"} ",
        "makegate_upstream_attempts_total{result=\"answered\"} 0",
        "makegate_quota_wait_seconds_count 0",
        "makegate_cache_requests_total{result=\"hit\"} 0",
        "makegate_audit_backlog ",
        "makegate_audit_head_age_seconds ",
        "makegate_audit_disk_bytes ",
        "makegate_writes_in_doubt 0",
        "makegate_writes_open 0",
        "makegate_writes_open_limit 10000",
        "makegate_config_last_reload_successful 1",
        "makegate_build_info{version=",
        "makegate_upstream_breaker{state=\"closed\"} 1",
        "process_resident_memory_bytes ",
    ] {
        assert!(reply.body.lines().any(|line| line.starts_with(name)), "{name}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_failed_reload_is_told_and_the_old_configuration_stays() {
    let world = World::new();
    let before = world.get("/config.json").await.json();
    assert_eq!((&before["file"], &before["reload"]["error"]), (&json!("/etc/makegate.toml"), &Value::Null));
    let rate = json!({"key": "caller.reader.rate", "value": "30/min", "origin": "/etc/makegate.toml:11"});
    assert!(before["settings"].as_array().unwrap().contains(&rate), "{before}");
    world.state.note_reload(Err("makegate.toml:3:1: unknown key".to_owned()));
    let after = world.get("/config.json").await.json();
    assert_eq!(after["reload"]["error"], "makegate.toml:3:1: unknown key");
    assert_eq!(after["settings"], before["settings"]);
    assert!(world.get("/metrics").await.body.contains("makegate_config_last_reload_successful 0\n"));
    assert_eq!(world.send("GET", "/readyz", &[], "").await.status, 200);
    world.state.note_reload(Ok(config::Origins::default()));
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
        adopted: None,
    });
    let expected = json!({"doubts": [{
        "intent": 42, "request": "w1", "time": "2026-07-01T12:00:00.000000Z", "caller": "all", "operation": "payments.create",
        "organization": 11, "path": "/api/v2/organizations/11/payments",
        "looks": 0, "why": "a look cannot prove it", "proof": "no read of Make's proves what became of it: look there yourself",
    }]});
    assert_eq!(world.get("/doubts.json").await.json(), expected);
    let csv = world.get("/doubts.csv").await.body;
    assert!(csv.starts_with("request,time,caller,operation,organization,path,looks,why,proof\r\nw1,"), "{csv}");
    let html = world.with_key("GET", "/doubts", &[("accept", "text/html")], "").await.body;
    assert!(html.contains("<code>makegate doubts settle w1 --as done --config /etc/makegate.toml</code>"), "{html}");
}

/// A terminal's escape, C1, a zero-width space, an override of the direction, a tag, a variation selector.
const HIDDEN: &str = "x\u{1b}[31m\u{9b}\u{200b}\u{202e}\u{e0041}\u{fe0f}y";

#[tokio::test]
async fn nothing_hidden_is_shown_on_any_page_or_table() {
    let world = World::new();
    world.record(|record| {
        record.caller = Some(HIDDEN.into());
        record.path = Some(HIDDEN.into());
        record.detail = Some(HIDDEN.into());
        record.event = Some(HIDDEN.into());
    });
    world.store(HIDDEN, &[HIDDEN]);
    world.state.note_reload(Err(HIDDEN.to_owned()));
    let query: String = HIDDEN.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut told = 0;
    for page in super::PAGES {
        for (target, accept) in [
            (page.to_owned(), "text/html"),
            (format!("{page}?caller={query}&method=GET&target=%2F{query}"), "text/html"),
            (format!("{page}?caller={query}"), "text/html"),
            (format!("{page}?{query}={query}"), "text/html"),
            (format!("{}.csv", if page == "/" { "/" } else { page }), "*/*"),
        ] {
            let body = world.with_key("GET", &target, &[("accept", accept)], "").await.body;
            let hidden = |c: char| crate::ids::is_invisible(c) && !matches!(c, '\n' | '\r');
            assert!(!body.contains(hidden), "{target}: {body:?}");
            told += usize::from(body.contains("\\u{202e}"));
        }
    }
    assert!(told > 8, "it was shown {told} times, so hardly anything was tested");
}
