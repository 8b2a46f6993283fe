//! What keeps `mg.write` whole: writes of replicas that are gone are adopted, a new epoch is told what it lacks, old rows are deleted.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::row::KnownWrite;
use super::{CHORE_MAX, SharedEnd, SharedWrite, SharedWrites, statements};
use crate::ids::Fingerprint;
use crate::replicas::Epoch;
use crate::replicas::engine::{EngineError, Line, Parameters};

/// For how many leases writes wait for members that are alive, and do not say what they know.
const PATIENCE_LEASES: u32 = 6;

impl SharedWrites {
    /// Whether this epoch is older than a lease, as this replica has seen it: who could join it has joined.
    #[must_use]
    pub fn is_settled(&self, epoch: &Epoch) -> bool {
        let age = self.replicas.clock.boot().saturating_sub(epoch.seen);
        age > self.replicas.longest_lease()
    }

    /// Open writes of replicas that are gone become doubts of this replica. `also_doubts`: also what is in doubt already.
    ///
    /// # Errors
    /// The engine does not answer. What was adopted all the same is found by [`SharedWrites::own_open`].
    pub async fn adopt(&self, epoch: &Epoch, also_doubts: bool) -> Result<Vec<KnownWrite>, EngineError> {
        let (name, incarnation) = (&**self.replicas.name(), self.replicas.incarnation());
        let parameters: Parameters<'_> = &[&name, &incarnation, &epoch.id, &also_doubts];
        let rows = self.replicas.engine().query(Line::Durable, &statements::ADOPT, parameters).await?;
        Ok(rows.iter().filter_map(KnownWrite::of).collect())
    }

    /// These writes of this replica are in doubt, if they are not yet.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn doubt_own(&self, ids: &[Uuid]) -> Result<(), EngineError> {
        let (name, incarnation) = (&**self.replicas.name(), self.replicas.incarnation());
        for ids in ids.chunks(CHORE_MAX) {
            self.replicas.engine().execute(Line::Durable, &statements::DOUBT_OWN, &[&name, &incarnation, &ids]).await?;
        }
        Ok(())
    }

    /// Adds the writes that the engine lacks.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn restore(&self, writes: &[(Arc<SharedWrite>, SharedEnd)]) -> Result<usize, EngineError> {
        let mut restored = 0;
        for writes in writes.chunks(CHORE_MAX) {
            let ids: Vec<_> = writes.iter().map(|(write, _)| write.id).collect();
            let lacking = self.replicas.engine().query(Line::Quick, &statements::LACKING, &[&ids]).await?;
            let lacking: Vec<Uuid> = lacking.iter().map(|row| row.get(0)).collect();
            let lacking = writes.iter().filter(|(write, _)| lacking.contains(&write.id));
            let lacking: Vec<_> = lacking.map(|(write, end)| (&**write, end)).collect();
            if !lacking.is_empty() {
                restored += self.insert_ended(&lacking).await?.len();
            }
        }
        Ok(restored)
    }

    /// The idempotency keys, of these, that the engine does not know as used or under way.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn lacking_keys(&self, keys: &[Fingerprint]) -> Result<Vec<Fingerprint>, EngineError> {
        let mut lacking = Vec::new();
        for keys in keys.chunks(CHORE_MAX) {
            let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes().as_slice()).collect();
            let rows = self.replicas.engine().query(Line::Quick, &statements::LACKING_KEYS, &[&keys]).await?;
            let keys =
                rows.iter().filter_map(|row| row.get::<_, &[u8]>(0).try_into().ok().map(Fingerprint::from_bytes));
            lacking.extend(keys);
        }
        Ok(lacking)
    }

    /// This replica has told the engine all that it knows.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn say_reasserted(&self, epoch: &Epoch) -> Result<(), EngineError> {
        let (name, incarnation) = (&**self.replicas.name(), self.replicas.incarnation());
        let parameters: Parameters<'_> = &[&name, &incarnation, &epoch.id];
        self.replicas.engine().execute(Line::Quick, &statements::SAY_REASSERTED, parameters).await.map(drop)
    }

    /// Whether writes may go on in this epoch: all replicas have done so, or those that are alive have, and the others have had a lease to
    /// come. Whoever is alive and cannot do so is waited for, but not for ever.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn may_open(&self, epoch: &Epoch) -> Result<bool, EngineError> {
        let rows = self.replicas.engine().query(Line::Quick, &statements::ALL_REASSERTED, &[&epoch.id]).await?;
        let (all, alive) = rows.first().map_or((false, false), |row| (row.get(0), row.get(1)));
        let age = self.replicas.clock.boot().saturating_sub(epoch.seen);
        Ok(all || self.is_settled(epoch) && (alive || age > self.replicas.longest_lease() * PATIENCE_LEASES))
    }

    /// Deletes some rows of writes that ended longer ago than this by the engine's clock and by this machine's, which shows `now`: one of
    /// them may be wrong for a while. Returns how many.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn expire(&self, age: Duration, now: Timestamp) -> Result<u64, EngineError> {
        let parameters: Parameters<'_> = &[&age.as_secs_f64(), &now.as_microsecond()];
        self.replicas.engine().execute(Line::Bulk, &statements::EXPIRE, parameters).await
    }

    /// Ended writes with keys and their answers, by their keys, after this one.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn ended_keys(&self, after: Option<Fingerprint>) -> Result<Vec<KnownWrite>, EngineError> {
        let after = after.map(|key| *key.as_bytes()).unwrap_or_default();
        let rows = self.replicas.engine().query(Line::Bulk, &statements::ENDED_KEYS, &[&after.as_slice()]).await?;
        Ok(rows.iter().filter_map(KnownWrite::with_answer).collect())
    }
}
