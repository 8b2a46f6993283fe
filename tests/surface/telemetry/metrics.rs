//! The same numbers as at `/metrics`.

use std::collections::BTreeMap;

use super::world;
use crate::support::otlp::ReceivedSample;
use crate::support::{ALL, OPERATOR, ORG, READER, World, send, until};

/// What changes from one moment to the next.
const RESTLESS: [&str; 11] = [
    "process_", "makegate_otel_", "makegate_audit_", "makegate_cache_bytes", "makegate_cache_entries",
    "makegate_connections", "makegate_log_", "makegate_oldest_doubt", "makegate_quota_bucket_used",
    "makegate_quota_remaining", "makegate_shared_taken",
];

async fn scraped(world: &World) -> Vec<ReceivedSample> {
    let operator = world.service.operator_addresses()[0];
    let text =
        send(operator, "GET", "/metrics", &format!("authorization: Bearer {OPERATOR}\r\n"), "").await.expect(200);
    text.text().lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

/// Reads `name{key="value",…} number`; no label here has a quote or a comma.
fn sample(line: &str) -> ReceivedSample {
    let (name, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
    let pairs = labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty());
    let label = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap();
        let value = value.trim_matches('"');
        // A bound is the same number in both.
        let bound =
            if key == "le" && value != "+Inf" { value.parse::<f64>().unwrap().to_string() } else { value.to_owned() };
        (key.to_owned(), bound)
    };
    ReceivedSample { name: name.to_owned(), labels: pairs.map(label).collect(), value: value.parse().unwrap() }
}

fn sorted(samples: Vec<ReceivedSample>) -> BTreeMap<String, f64> {
    samples.into_iter().map(|one| (format!("{}{:?}", one.name, one.labels), one.value)).collect()
}

#[tokio::test]
async fn what_is_sent_is_what_a_scraper_reads() {
    let (world, receiver) = world("").await;
    for _ in 0..3 {
        world.get(ALL, ORG).await.expect(200);
    }
    world.get(READER, "/api/v2/organizations/13").await.refused(403, "MG132");
    world.patch(ALL, ORG, r#"{"name": "Counted"}"#).await.expect(200);
    let quiet = |samples: Vec<ReceivedSample>| -> BTreeMap<_, _> {
        sorted(samples).into_iter().filter(|(name, _)| !RESTLESS.iter().any(|one| name.starts_with(one))).collect()
    };
    let expected = quiet(scraped(&world).await);
    until(|| quiet(receiver.samples()) == expected || receiver.exports().len() > 8).await;
    let sent = quiet(receiver.samples());
    let lacking: Vec<_> = expected.iter().filter(|(name, value)| sent.get(*name) != Some(value)).collect();
    assert!(lacking.is_empty() && sent.len() == expected.len(), "{lacking:?} {sent:?}");
    assert!(expected.keys().any(|name| name.starts_with("makegate_request_duration_seconds_bucket")), "{expected:?}");
    // The restless ones are there as well, with the same labels.
    let names = |samples| sorted(samples).into_keys().collect::<Vec<_>>();
    let (sent, scraped) = (names(receiver.samples()), names(scraped(&world).await));
    assert_eq!(sent, scraped);
}

#[tokio::test]
async fn each_signal_can_be_left_out() {
    let (only_metrics, receiver) = world("traces = false").await;
    only_metrics.get(ALL, ORG).await.expect(200);
    until(|| receiver.samples().iter().any(|one| one.name == "makegate_requests_total")).await;
    assert!(receiver.spans().is_empty());
    let (only_traces, receiver) = world("metrics = false").await;
    only_traces.get(ALL, ORG).await.expect(200);
    receiver.wait_for_spans(4).await;
    assert!(only_traces.service.shut_down().await);
    assert!(receiver.samples().is_empty());
}
