//! A write's id over all replicas.

use jiff::Timestamp;

use crate::audit::log::AuditLog;
use crate::audit::open_writes::doubts::Doubt;
use crate::ids::{Fingerprint, RequestId};

impl AuditLog {
    /// A write's id over all replicas that have this log's key. It follows from what the intent says, so the log need not hold it.
    #[must_use]
    pub fn write_id(&self, request: &RequestId, time: Timestamp, fingerprint: Option<Fingerprint>) -> Fingerprint {
        let time = time.as_microsecond().to_be_bytes();
        let write = fingerprint.map(|fingerprint| *fingerprint.as_bytes()).unwrap_or_default();
        self.fingerprint(&[b"write", request.as_str().as_bytes(), &time, &write])
    }

    /// The id over all replicas of a write in doubt.
    #[must_use]
    pub fn doubt_id(&self, doubt: &Doubt) -> Fingerprint {
        let own = || self.write_id(&doubt.request, doubt.time, doubt.fingerprint);
        doubt.adopted.as_ref().map_or_else(own, |adopted| adopted.id)
    }
}
