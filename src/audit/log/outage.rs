//! Outages of the log's disk: what is refused, when the disk is tried again, and what is recorded afterwards.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::buffer::PendingRecord;
use super::shared::LogOutage;
use super::writer::LogWriter;
use crate::audit::record::{Kind, Record};
use crate::process_log::STATE;

/// The disk is failing.
#[derive(Debug)]
pub(crate) struct Outage {
    since: Instant,
    cause: String,
    refused_before: u64,
    /// The disk is full, and the space freed by the reserve is only for outcomes of writes under way.
    pub(crate) is_disk_full: bool,
}

impl LogWriter {
    /// Starts an outage after two failed attempts: writes are refused at once, and the disk is tried every second.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        let (now, cause, is_disk_full) = (self.shared.clock.now(), error.to_string(), self.reserve.is_freed());
        tracing::error!(target: STATE, %error, "the audit log cannot be written; refusing writes until it can be");
        let is_full = is_disk_full || matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.shared.set_outage(Some(LogOutage { since: now, cause: cause.clone(), is_disk_full: is_full }));
        self.shared.failed.store(true, Ordering::SeqCst);
        let refused_before = self.shared.refused.load(Ordering::Relaxed);
        self.outage = Some(Outage { since: now, cause, refused_before, is_disk_full });
        self.refuse_waiting();
        if is_disk_full {
            self.write_outcomes();
        }
    }

    /// Tries to write the record of the outage; returns true if the outage is over.
    pub(crate) fn retry_disk(&mut self) -> bool {
        self.refuse_waiting();
        if self.reserve.is_freed() && !self.reserve.restore(&*self.disk) {
            self.write_outcomes();
            return false;
        }
        let Some(outage) = &mut self.outage else { return true };
        outage.is_disk_full = false;
        let seconds = self.shared.clock.now().duration_since(outage.since).as_secs_f64();
        let refused = self.shared.refused.load(Ordering::Relaxed) - outage.refused_before;
        let detail = format!("not writable for {seconds:.1} s ({}); requests refused: {refused}", outage.cause);
        let event = Record::event(self.shared.clock.wall(), "outage", detail.as_str());
        self.pending.push_front(PendingRecord::own(event));
        match self.write_batch() {
            Ok(()) => {
                tracing::info!(target: STATE, "the audit log can be written again: {detail}");
                self.outage = None;
                self.shared.failed.store(false, Ordering::SeqCst);
                self.shared.set_outage(None);
                true
            }
            Err(_still_failing) => {
                self.pending.pop_front();
                false
            }
        }
    }

    /// Writes outcomes of writes under way into the space freed by the reserve, while there is some left.
    fn write_outcomes(&mut self) {
        while self.pending.iter().any(|entry| entry.record.kind == Some(Kind::Outcome)) {
            if self.write_batch().is_err() {
                if let Some(outage) = &mut self.outage {
                    outage.is_disk_full = false;
                }
                return;
            }
        }
    }
}
