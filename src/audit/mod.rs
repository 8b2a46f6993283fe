//! The log: one append-only file of records that serves both as the journal of writes and as the audit trail of
//! requests.
//!
//! Requests hold an [`AuditLog`]. One thread writes the segments, another builds the index from them. Everything that
//! reads ([`AuditLog::query`], [`query_files`], [`export`], [`Follower`]) reads the segments, so it works with or
//! without a running gateway.
//!
//! | folder | responsible for |
//! | --- | --- |
//! | `record` | a record, its line, its row in CSV |
//! | `open_writes` | the writes under way and in doubt, and the request ids in use |
//! | `segment` | the log's files, how they are read, the tree over their records |
//! | `log` | from a request to the disk: the buffer, the thread that writes |
//! | `retention` | deleting old segments |
//! | `recover` | what is found again at startup |
//! | `fingerprints` | the key of all keyed hashes, and the hashes of a body's fields |
//! | `index`, `query` | finding records by their fields; following new ones; the quota ledger |
//! | `ship` | copying the records to the table that several replicas share |
//! | `proof` | signed heads, proofs for auditors, verification |

mod fingerprints;
mod index;
mod log;
mod open_writes;
mod proof;
mod query;
mod record;
mod recover;
mod retention;
mod segment;
mod ship;
#[cfg(test)]
mod tests;

pub use fingerprints::field_values::canonical_number;
pub(crate) use index::ledger::HOURS_KEPT as LEDGER_HOURS;
pub use index::ledger::LedgerSums;
pub use log::buffer::CannotRecord;
pub use log::disk_usage::DiskUsage;
pub use log::record_room::RecordRoom;
pub use log::shared::LogOutage;
pub use log::{AuditLog, LogCounts, LogSharing};
pub(crate) use open_writes::ADOPTED;
pub use open_writes::doubt_room::DoubtRoom;
pub use open_writes::doubts::{Doubt, Doubts, SettlementClaim};
pub use open_writes::request_ids::{HeldRequestId, RequestIds};
pub use proof::heads::stored as stored_head;
pub use proof::note::{Head, Verifier, heads};
pub use proof::verify::{AuditorInput, VerifyError, VerifyProblem, VerifyReport, verify};
pub use proof::{ConsistencyProof, InclusionProof, ProofError};
pub use query::all_replicas::{ReplicaBehind, ReplicasPage, ReplicasQuery, replica_named, with_replica};
pub use query::filter::{BadFilter, FIELD_FILTERS, Filter, FilterName, LIMIT_DEFAULT, LIMIT_MAX, StatusFilter};
pub use query::follow::{FileFollower, FollowEvent, Follower};
pub use query::ledger::{LedgerColumn, LedgerOrganization, LedgerPage, LedgerQuery, LedgerRow, LedgerSpender};
pub use query::{QueryError, RecordPage, export, query_files};
pub use record::csv::{COLUMNS, csv, csv_cell, csv_header};
pub use record::field_hashes::FieldHashes;
pub use record::line::{object, truncate};
pub use record::text::Text;
pub use record::{AdoptedWrite, CountedRefusals, Kind, Peer, Record};
pub use recover::key_ends::KeyEnd;
pub use recover::{Recovered, doubts_in};
pub use segment::disk::{Disk, MachineDisk, OpenError, check_folder};
pub use segment::tree::{Hash, Tree, leaf};
pub use ship::mark::{ShipState, ShipTrouble};
pub use ship::{LogShipper, ShipSettings};
