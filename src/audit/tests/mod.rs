//! The log as a whole, on real files: what these tests share.

mod beside;
mod crash;
mod disk;
mod log;
mod query;
mod recover;
mod request_ids;
mod retention;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::config;
use crate::ids::RequestId;
use crate::vocabulary::Outcome;

/// Settings small enough for tests.
pub(in crate::audit) fn settings(dir: &TempDir) -> config::AuditConfig {
    config::AuditConfig {
        dir: dir.path().join("audit"),
        retention: Duration::from_secs(400 * 24 * 3600),
        retention_bytes: 1 << 40,
        head: Duration::from_secs(60),
        segment_bytes: 1 << 20,
        buffer_records: 10_000,
        buffer_bytes: 16 << 20,
        record_bytes: 8 << 10,
        disk_wait: Duration::from_secs(60),
    }
}

/// Opens the log once the previous run has released the folder.
pub(in crate::audit) async fn open(settings: &config::AuditConfig, clock: &Clock) -> (Arc<AuditLog>, Recovered) {
    open_on(settings, clock, Arc::new(MachineDisk)).await
}

async fn open_on(settings: &config::AuditConfig, clock: &Clock, disk: Arc<dyn Disk>) -> (Arc<AuditLog>, Recovered) {
    for _ in 0..500 {
        match AuditLog::open_on(settings, clock.clone(), disk.clone()) {
            Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other.unwrap(),
        }
    }
    panic!("the folder is still locked");
}

fn id(text: &str) -> RequestId {
    RequestId::parse(text.as_bytes()).unwrap()
}

pub(in crate::audit) fn record(kind: Kind, request: &str) -> Record<'static> {
    let time: Timestamp = "2026-07-01T12:00:00Z".parse().unwrap();
    Record {
        request: Some(id(request)),
        caller: Some("billing".into()),
        operation: Some("payments.create".into()),
        organization: Some(11),
        path: Some("/api/v2/organizations/11/payments".into()),
        ..Record::new(kind, time)
    }
}

fn outcome(request: &str, intent: u64, outcome: Outcome) -> Record<'static> {
    Record { intent: Some(intent), outcome: Some(outcome), ..record(Kind::Outcome, request) }
}

/// Nobody altered this log, whatever happened to it, so nothing may claim otherwise (promise 7).
fn assert_untouched(dir: &std::path::Path) {
    let report = verify(dir, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{report:#?}");
}

/// Every line of every segment, parsed, after checking that the log verifies.
fn lines(settings: &config::AuditConfig) -> Vec<serde_json::Value> {
    assert_untouched(&settings.dir);
    lines_of(settings)
}

/// The same for a log that was altered.
fn lines_of(settings: &config::AuditConfig) -> Vec<serde_json::Value> {
    let segments = segment::list(&settings.dir).unwrap();
    let texts = segments.iter().map(|first| std::fs::read_to_string(segment::path(&settings.dir, *first)).unwrap());
    texts.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect()
}

fn assert_gapless(lines: &[serde_json::Value]) {
    let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=lines.len() as u64).collect::<Vec<_>>());
}

fn count(lines: &[serde_json::Value], field: &str, value: &str) -> usize {
    lines.iter().filter(|line| line[field] == value).count()
}
