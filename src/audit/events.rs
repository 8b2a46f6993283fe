//! What the log says of itself, and of writes for whom nobody else speaks.

use jiff::Timestamp;

use super::log::LogShared;
use super::open_writes::RECOVERED;
use super::proof::heads::HeadsOpened;
use super::proof::note::Verifier;
use super::record::{Answer, Kind, Outcome, Record};
use super::recover::Recovered;

/// The event that says that the log is not what its newest signed head says.
pub(crate) const HEAD_MISMATCH: &str = "head-mismatch";

/// From here on this key signs the log's heads.
pub(super) fn key_event(now: Timestamp, key: &Verifier) -> Record {
    Record::event(now, "head-key", format!("heads are signed by {key} from now on"))
}

/// What the log says of its own start.
pub(super) fn start_events(shared: &LogShared, recovered: &Recovered, opened: &HeadsOpened) -> Vec<Record> {
    let now = shared.clock.wall();
    let manner = if recovered.clean { "after a clean stop" } else { "after a stop that was not clean" };
    let detail = format!("makegate {} starts {manner}", env!("CARGO_PKG_VERSION"));
    let mut events = vec![Record::event(now, "start", detail)];
    if opened.made {
        events.push(key_event(now, &shared.heads.verifier()));
    }
    if opened.lost {
        tracing::error!(
            "head.key was not there: the log's heads are signed by a new key, which the old one does not vouch for; \
             `makegate audit verify` accepts it only with `--key head.pub`"
        );
    }
    if let Some(mismatch) = &opened.mismatch {
        tracing::error!("the audit log was altered while makegate did not run: {mismatch}");
        let detail = format!("the log was altered while makegate did not run: {mismatch}");
        events.push(Record::event(now, HEAD_MISMATCH, detail));
    }
    if recovered.cut_bytes > 0 {
        let detail = format!("{} bytes at the end were no whole record and were cut off", recovered.cut_bytes);
        events.push(Record::event(now, "cut", detail));
    }
    for path in &recovered.quarantined {
        let name = path.file_name().unwrap_or_default().display();
        let detail =
            format!("{name} is damaged and stays as it is; records that cannot be read: {}", recovered.missing);
        events.push(Record::event(now, "quarantined", detail));
    }
    if !recovered.doubts.is_empty() {
        tracing::warn!(writes = recovered.doubts.len(), "writes are in doubt; makegate doubts list shows them");
    }
    for doubt in &recovered.new_doubts {
        doubt.tell("makegate ended before this write had an outcome: it is in doubt");
    }
    events.extend(recovered.new_doubts.iter().map(|doubt| Record {
        intent: Some(doubt.intent),
        request: Some(doubt.request),
        caller: Some(doubt.caller.clone()),
        operation: Some(doubt.operation.clone()),
        organization: doubt.organization,
        path: Some(doubt.path.clone()),
        ..Record::event(now, RECOVERED, "the gateway ended before this write had an outcome: it is in doubt")
    }));
    events
}

/// The outcome of the intent with this number, which came too late to be acted on.
pub(super) fn not_sent(seq: u64, intent: Record, now: Timestamp) -> Record {
    Record {
        intent: Some(seq),
        time: now,
        kind: Kind::Outcome,
        outcome: Some(Outcome::NotSent),
        answer: Some(Answer::Refused),
        status: Some(503),
        detail: Some("the intent was not on disk in time, so nothing was sent".into()),
        query: None,
        fields: None,
        fingerprint: None,
        idempotency: None,
        marks: None,
        ..intent
    }
}
