//! What scrapers read.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, ORG, Plan, READER, VARIABLES, World, golden, send, tls};

const OPENMETRICS: &str = "accept: application/openmetrics-text; version=1.0.0\r\n";

fn plan() -> Plan {
    Plan::default().tables("[metrics]\nlisten = \"127.0.0.1:0\"\n")
}

async fn metrics(world: &World, headers: &str) -> String {
    send(world.service.metrics_addresses()[0], "GET", "/metrics", headers, "").await.expect(200).text().to_owned()
}

/// The value of a sample.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// A world in which each kind of thing has happened that has a metric.
async fn busy_world() -> World {
    let world = plan().start().await;
    for _ in 0..3 {
        world.get(ALL, ORG).await.expect(200);
    }
    world.get(READER, "/api/v2/organizations/13").await.refused(403, "MG132");
    world.get("unknown-key", ORG).await.refused(401, "MG112");
    world.get(ALL, "/api/v2/organizations/99999").await.expect(404);
    world.patch(ALL, ORG, r#"{"name": "Counted"}"#).await.expect(200);
    let reset = Fault {
        method: "*".to_owned(),
        path: VARIABLES.to_owned(),
        times: None,
        kind: FaultKind::Reset { effect: false },
    };
    world.sandbox.fault(reset);
    world.post(ALL, VARIABLES, r#"{"name": "v", "typeId": 1, "value": "1"}"#).await.expect(502);
    world
}

#[tokio::test]
async fn answers_and_the_upstream_are_counted_by_what_an_alert_asks_for() {
    let world = busy_world().await;
    let text = metrics(&world, "").await;
    for (name, value) in [
        (
            r#"makegate_requests_total{caller="all",operation="organizations.get",answer="miss",status="200",code=""}"#,
            1.0,
        ),
        (
            r#"makegate_requests_total{caller="all",operation="organizations.get",answer="hit",status="200",code=""}"#,
            2.0,
        ),
        (
            r#"makegate_requests_total{caller="reader",operation="organizations.get",answer="refused",status="403",code="MG132"}"#,
            1.0,
        ),
        (r#"makegate_requests_total{caller="",operation="",answer="refused",status="401",code="MG112"}"#, 1.0),
        (r#"makegate_upstream_responses_total{operation="organizations.get",status="404"}"#, 1.0),
        (r#"makegate_upstream_responses_total{operation="organizations.update",status="200"}"#, 1.0),
        (r#"makegate_upstream_duration_seconds_count{operation="organizations.get"}"#, 2.0),
        (r#"makegate_request_duration_seconds_count{answer="hit"}"#, 2.0),
        (r#"makegate_quota_bucket_limit{organization="11"}"#, 100_000.0),
        ("makegate_writes_in_doubt", 1.0),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name}: {text}");
    }
    assert!(sample(&text, r#"makegate_quota_bucket_used{organization="11"}"#).unwrap() >= 3.0, "{text}");
    assert!(sample(&text, "makegate_oldest_doubt_age_seconds").is_some_and(|age| age < 600.0), "{text}");
    let mut measured = text;
    while sample(&measured, "makegate_audit_disk_bytes").is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        measured = metrics(&world, "").await;
    }
    assert!(sample(&measured, "makegate_audit_disk_free_bytes").unwrap() > 0.0);
}

/// As long as Make refuses the token, also if nobody asks Make anything more.
#[tokio::test]
async fn a_refused_token_shows_until_make_takes_it_again() {
    const NOW: &str = "makegate_upstream_token_refused";
    let world = plan().start().await;
    assert_eq!(sample(&metrics(&world, "").await, NOW), Some(0.0));
    world.sandbox.fault(Fault::once("GET", VARIABLES, FaultKind::status(401)));
    world.get(ALL, VARIABLES).await.refused(502, "MG204");
    assert_eq!(sample(&metrics(&world, "").await, NOW), Some(1.0));
    world.get(ALL, VARIABLES).await.expect(200);
    let text = metrics(&world, "").await;
    assert_eq!((sample(&text, NOW), sample(&text, "makegate_token_refused_total")), (Some(0.0), Some(1.0)));
}

#[tokio::test]
async fn the_certificates_end_is_there() {
    let (world, _) = tls::world(plan(), "", &[]).await;
    let text = metrics(&world, "").await;
    let end = sample(&text, r#"makegate_certificate_expires_timestamp_seconds{door="gateway"}"#);
    assert!(end.is_some_and(|end| end > 1.7e9), "{text}");
}

/// The table of metrics is made from their own help.
#[tokio::test]
async fn every_metric_is_in_the_documentation() {
    let text = metrics(&busy_world().await, "").await;
    let mut table = "| metric | type | is |\n| --- | --- | --- |".to_owned();
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let _infallible =
                write!(table, "\n| `{name}` | {kind} | {} |", help.trim_end_matches('.').replace('|', "\\|"));
        }
    }
    golden::compare_between("docs/metrics.md", "metrics", &table);
}

/// `promtool check metrics` says nothing if it finds nothing. It reads Prometheus's own format.
#[tokio::test]
async fn promtool_finds_nothing_wrong() {
    let world = busy_world().await;
    let text = metrics(&world, "").await;
    let openmetrics = metrics(&world, OPENMETRICS).await;
    assert!(openmetrics.ends_with("# EOF\n"));
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("SKIPPED: there is no promtool (apt-get install prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let found = promtool.wait_with_output().unwrap();
    let said = [found.stdout, found.stderr].concat();
    assert!(found.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
