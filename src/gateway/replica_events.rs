//! What changes between the replicas, in the log.

use std::sync::Arc;

use super::state::Gateway;
use crate::audit::Record;

impl Gateway {
    /// Records what changes between the replicas, for as long as the service runs. Without replicas there is nothing to do.
    pub async fn record_replica_changes(self: Arc<Self>) {
        let Some(mut changes) = self.replicas.as_ref().and_then(|replicas| replicas.changes()) else { return };
        while let Some(change) = changes.recv().await {
            if let Some(room) = self.log.reserve() {
                room.fill(Record::event(self.clock.wall(), change.event(), change.detail()));
            }
        }
    }

    /// Whether the writes of all replicas are known in this epoch, so that writes may go on; without replicas they always are.
    pub(crate) fn are_writes_whole(&self) -> bool {
        self.shared_writes.as_ref().is_none_or(|shared| shared.writes.open_epoch().is_some())
    }
}
