//! Makes the log provable: signed heads over its tree, and proofs that lead from a record or an earlier head to a
//! head.

pub(super) mod closing_head;
mod head_file;
pub(super) mod heads;
pub(super) mod leaves;
pub(super) mod merkle_path;
pub(super) mod note;
#[cfg(test)]
mod tests;
pub(super) mod verify;

use std::io;
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::audit::log::AuditLog;
use crate::audit::log::events::key_event;
use crate::audit::log::shared::LogShared;
use crate::audit::query::QueryError;
use crate::audit::query::filter::Filter;
use crate::audit::segment::disk;
use crate::audit::segment::tree::{self, Hash, Tree};
use note::{Head, Verifier};

/// Maximum time to wait for a key rotation.
const ROTATION_MAX: Duration = Duration::from_secs(5);
/// Maximum time to wait for the hashes of a proof.
const PROOF_MAX: Duration = Duration::from_secs(30);

/// Proves that a record is in the log (RFC 9162, section 2.1.3). Hashes are base64, as in heads.
#[derive(Debug, Serialize)]
pub struct InclusionProof {
    /// The record's sequence number.
    pub seq: u64,
    /// Its index in the tree, which is one less.
    pub leaf_index: u64,
    /// Leaf hash of the record's line.
    pub leaf_hash: String,
    /// Number of records that the head covers.
    pub tree_size: u64,
    /// The head's root hash.
    pub root_hash: String,
    /// The hashes on the path from the leaf to the root.
    pub audit_path: Vec<String>,
    /// The head, as a signed note.
    pub head: String,
    /// The key that signed it.
    pub key: String,
    /// The record's line.
    pub record: Box<RawValue>,
}

/// Proves that an earlier log grew into the current one (RFC 9162, section 2.1.4). Hashes are base64, as in heads.
#[derive(Debug, Serialize)]
pub struct ConsistencyProof {
    /// Number of records that the earlier head covers.
    pub from: u64,
    /// Number of records that the current head covers.
    pub tree_size: u64,
    /// The current head's root hash.
    pub root_hash: String,
    /// The hashes that lead to both roots.
    pub consistency_path: Vec<String>,
    /// The current head, as a signed note.
    pub head: String,
    /// The key that signed it.
    pub key: String,
}

/// Why a proof failed.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// There is no such record, or it is past the retention.
    #[error("no such record, or it is past the retention; the newest is {newest}")]
    NoRecord {
        /// The newest record's sequence number.
        newest: u64,
    },
    /// The files do not lead to the signed root, so the log was altered.
    #[error("the log's files do not lead to its signed root: run `makegate audit verify` to see where")]
    Altered,
    /// The log cannot be read right now.
    #[error(transparent)]
    Query(#[from] QueryError),
}

impl From<io::Error> for ProofError {
    fn from(error: io::Error) -> Self {
        Self::Query(error.into())
    }
}

impl LogShared {
    fn durable(&self) -> Tree {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AuditLog {
    /// A signed head over everything recorded before the call.
    pub async fn head(&self) -> Head {
        self.flush().await;
        self.shared.heads.sign(&self.shared.durable())
    }

    /// The current signing key.
    #[must_use]
    pub fn head_key(&self) -> Verifier {
        self.shared.heads.verifier()
    }

    /// Replaces the signing key. The current key introduces the new one and is then erased; an event records it.
    ///
    /// # Errors
    /// A system error; the current key then stays in use.
    pub async fn rotate_head_key(&self) -> io::Result<Verifier> {
        self.flush().await;
        let shared = self.shared.clone();
        let key = disk::run_blocking(ROTATION_MAX, move || shared.heads.rotate(|| shared.durable())).await??;
        self.commit(key_event(self.shared.clock.wall(), &key)).await.map_err(io::Error::other)?;
        Ok(key)
    }

    /// Proves to `asker`, as in [`AuditLog::query`], that the record with this sequence number is in the log.
    ///
    /// # Errors
    /// [`ProofError`].
    pub async fn prove(&self, asker: &Arc<str>, seq: u64) -> Result<InclusionProof, ProofError> {
        let head = self.head().await;
        let none = ProofError::NoRecord { newest: head.size };
        if seq == 0 || seq > head.size {
            return Err(none);
        }
        let wanted = Filter { after: Some(seq + 1), limit: 1, ..Filter::default() };
        let record = self.query(asker, wanted).await?.records.pop().filter(|line| is_of(line, seq)).ok_or(none)?;
        let leaf = tree::leaf(record.get().as_bytes());
        let size = head.size;
        let hashes = self.roots(asker, move || merkle_path::inclusion(seq - 1, size)).await?;
        if merkle_path::root_of(leaf, seq - 1, size, &hashes) != Some(head.root) {
            return Err(ProofError::Altered);
        }
        Ok(InclusionProof {
            seq,
            leaf_index: seq - 1,
            leaf_hash: STANDARD.encode(leaf),
            tree_size: size,
            root_hash: STANDARD.encode(head.root),
            audit_path: hashes.iter().map(|hash| STANDARD.encode(hash)).collect(),
            head: head.to_string(),
            key: self.head_key().to_string(),
            record,
        })
    }

    /// Proves to `asker` that the log of `from` records grew into the current one.
    ///
    /// # Errors
    /// [`ProofError`].
    pub async fn prove_consistency(&self, asker: &Arc<str>, from: u64) -> Result<ConsistencyProof, ProofError> {
        let head = self.head().await;
        if from == 0 || from > head.size {
            return Err(ProofError::NoRecord { newest: head.size });
        }
        let size = head.size;
        let hashes = self.roots(asker, move || merkle_path::consistency(from, size)).await?;
        Ok(ConsistencyProof {
            from,
            tree_size: size,
            root_hash: STANDARD.encode(head.root),
            consistency_path: hashes.iter().map(|hash| STANDARD.encode(hash)).collect(),
            head: head.to_string(),
            key: self.head_key().to_string(),
        })
    }

    async fn roots(
        &self,
        asker: &Arc<str>,
        spans: impl FnOnce() -> Vec<merkle_path::LeafRange> + Send + 'static,
    ) -> Result<Vec<Hash>, ProofError> {
        let turn = self.query_turn(asker).await?;
        let dir = self.dir().to_owned();
        let roots = disk::run_blocking(PROOF_MAX, move || {
            let _turn = turn;
            merkle_path::SubtreeReader::open(&dir)?.roots(&spans())
        });
        Ok(roots.await??)
    }
}

fn is_of(line: &RawValue, seq: u64) -> bool {
    crate::audit::record::Record::parse(line.get().as_bytes()).is_some_and(|seen| seen.seq == seq)
}
