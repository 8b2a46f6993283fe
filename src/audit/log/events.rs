//! Events about the log itself, and outcomes for writes that nobody else can report on.

use jiff::Timestamp;

use super::shared::LogShared;
use crate::audit::open_writes::RECOVERED;
use crate::audit::proof::heads::HeadsOpened;
use crate::audit::proof::note::Verifier;
use crate::audit::record::{Kind, Record};
use crate::audit::recover::Recovered;
use crate::vocabulary::{Answer, Outcome};

/// The event reporting that the log does not match its newest signed head.
pub(crate) const HEAD_MISMATCH: &str = "head-mismatch";

/// Records that this key signs the log's heads from now on.
pub(crate) fn key_event(now: Timestamp, key: &Verifier) -> Record<'static> {
    Record::event(now, "head-key", format!("heads are signed by {key} from now on"))
}

/// The events recorded when the log opens.
pub(crate) fn start_events(shared: &LogShared, recovered: &Recovered, opened: &HeadsOpened) -> Vec<Record<'static>> {
    let now = shared.clock.wall();
    let manner = if recovered.clean { "after a clean stop" } else { "after an unclean stop" };
    let detail = format!("makegate {} starts {manner}", env!("CARGO_PKG_VERSION"));
    let mut events = vec![Record::event(now, "start", detail)];
    if opened.made {
        events.push(key_event(now, &shared.heads.verifier()));
    }
    if opened.lost {
        tracing::error!(
            "head.key was missing: the log's heads are now signed by a new key, which the old one does not vouch for; \
             `makegate audit verify` accepts it only with `--key head.pub`"
        );
    }
    if let Some(mismatch) = &opened.mismatch {
        tracing::error!("the audit log was altered while makegate was not running: {mismatch}");
        let detail = format!("the log was altered while makegate was not running: {mismatch}");
        events.push(Record::event(now, HEAD_MISMATCH, detail));
    }
    if recovered.cut_bytes > 0 {
        let detail = format!("the log ended in an incomplete record; {} bytes were cut off", recovered.cut_bytes);
        events.push(Record::event(now, "cut", detail));
    }
    for path in &recovered.quarantined {
        let name = path.file_name().unwrap_or_default().display();
        let detail = format!("{name} is damaged and was left as it is; unreadable records: {}", recovered.missing);
        events.push(Record::event(now, "quarantined", detail));
    }
    if !recovered.doubts.is_empty() {
        tracing::warn!(writes = recovered.doubts.len(), "writes are in doubt; list them with makegate doubts list");
    }
    for doubt in &recovered.new_doubts {
        doubt.log_in_doubt("makegate stopped before this write had an outcome: it is in doubt");
    }
    events.extend(recovered.new_doubts.iter().map(|doubt| Record {
        intent: Some(doubt.intent),
        request: Some(doubt.request),
        caller: Some(doubt.caller.clone().into()),
        operation: Some(doubt.operation.clone().into()),
        organization: doubt.organization,
        path: Some(doubt.path.clone().into()),
        ..Record::event(now, RECOVERED, "the gateway stopped before this write had an outcome: it is in doubt")
    }));
    events
}

/// The outcome for an intent that reached the disk too late to be acted on.
pub(crate) fn not_sent(intent: Record<'static>, now: Timestamp) -> Record<'static> {
    Record {
        intent: Some(intent.seq),
        time: now,
        kind: Some(Kind::Outcome),
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
