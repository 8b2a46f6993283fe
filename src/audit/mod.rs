//! The log: one append-only file of records that serves both as the journal of writes and as the audit trail of
//! requests.
//!
//! Requests hold an [`AuditLog`]. One thread writes the segments, another builds the index from them. Everything that
//! reads
//! ([`AuditLog::query`], [`query_files`], [`export`], [`Follower`]) reads the segments, so it works with or without a
//! running gateway.

#[cfg(test)]
mod beside_tests;
mod buffer;
#[cfg(test)]
mod crash_tests;
mod csv;
mod disk;
#[cfg(test)]
mod disk_tests;
mod doubts;
mod events;
mod field_hashes;
mod field_values;
mod filter;
mod fingerprints;
mod follow;
mod forward_reader;
mod index;
mod index_terms;
mod json_text;
mod key_ends;
mod key_guard;
mod log;
#[cfg(test)]
mod log_tests;
mod open_writes;
mod outage;
mod proof;
mod query;
#[cfg(test)]
mod query_tests;
mod record;
mod record_line;
mod record_room;
mod recover;
#[cfg(test)]
mod recover_tests;
mod request_ids;
#[cfg(test)]
mod request_ids_tests;
mod retention;
mod retention_state;
#[cfg(test)]
mod retention_tests;
mod reverse_reader;
mod segment;
mod shared;
mod space_reserve;
mod stored_record;
mod tree;
mod trusted_time;
mod writer;

pub use buffer::CannotRecord;
pub use csv::{COLUMNS, csv, csv_cell, csv_header};
pub use disk::{Disk, MachineDisk, OpenError};
pub use doubts::{DOUBTS_MAX, Doubt, Doubts, SettlementClaim};
pub use field_hashes::FieldHashes;
pub use field_values::canonical_number;
pub use filter::{BadFilter, FILTERS, Filter, LIMIT_DEFAULT, LIMIT_MAX, StatusFilter};
pub use follow::{FileFollower, FollowEvent, Follower};
pub use key_ends::KeyEnd;
pub use log::{AuditLog, LogCounts};
pub use proof::heads::stored as stored_head;
pub use proof::note::{Head, Verifier, heads};
pub use proof::verify::{AuditorInput, VerifyError, VerifyProblem, VerifyReport, verify};
pub use proof::{ConsistencyProof, InclusionProof, ProofError};
pub use query::{QueryError, RecordPage, export, query_files};
pub use record::{CountedRefusals, Kind, Peer, Record};
pub use record_line::{at_most, object};
pub use record_room::RecordRoom;
pub use recover::{Recovered, doubts_in};
pub use request_ids::{HeldRequestId, RequestIds};
pub use tree::{Hash, Tree, leaf};
