//! The thread `audit-key`: it notices when someone deletes or damages `fingerprint.key` while the log is open.

#![expect(clippy::disallowed_methods, reason = "a thread of its own")]

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::FingerprintKey;
use crate::audit::fingerprints;
use crate::audit::log::buffer::WriterStage;
use crate::audit::log::{AuditLog, spawn};
use crate::audit::record::Record;
use crate::audit::segment::disk::OpenError;

/// How often the file is compared with the key in use.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Watches the key file while the log is open: if someone deletes or damages it, this is recorded and the file is
/// rewritten.
pub(crate) fn guard(log: &Arc<AuditLog>, key: FingerprintKey) -> Result<(), OpenError> {
    let (watched, path) = (Arc::downgrade(log), fingerprints::path(log.dir()));
    spawn("audit-key", log.dir(), move || watch(&watched, &path, &key))
}

fn watch(log: &Weak<AuditLog>, path: &Path, key: &FingerprintKey) {
    let mut is_told = false;
    loop {
        std::thread::sleep(CHECK_INTERVAL);
        let Some(log) = log.upgrade() else { return };
        if log.shared.buffer.stage() != WriterStage::Running {
            return;
        }
        if matches!(fingerprints::read(path), Ok(Ok(bytes)) if bytes == key.bytes) {
            is_told = false;
            continue;
        }
        let detail = match fingerprints::write(path, &key.bytes) {
            Ok(()) => "fingerprint.key was deleted or damaged while makegate was running, and was rewritten".to_owned(),
            Err(error) => format!("fingerprint.key was deleted or damaged, and cannot be rewritten: {error}"),
        };
        if !is_told {
            tracing::error!("{detail}");
            if let Some(room) = log.reserve() {
                room.fill(Record::event(log.shared.clock.wall(), "fingerprint-key", detail));
            }
        }
        is_told = true;
    }
}
