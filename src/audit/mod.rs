//! The log: one append-only file of records that is the journal of writes and the audit of requests at once.
//!
//! [`Log`] is what requests hold; a thread of its own writes the segments, another makes the index from them.
//! Everything that reads ([`Log::query`], [`query_files`], [`export`], [`Follow`]) reads the segments, so that it works beside a running
//! gateway and without one.

mod backwards;
mod belief;
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
mod filter;
mod fingerprints;
mod follow;
mod index;
mod kept;
mod keys;
mod line;
mod log;
#[cfg(test)]
mod log_tests;
mod marks;
mod names;
#[cfg(test)]
mod names_tests;
mod open;
mod outage;
mod proof;
mod query;
#[cfg(test)]
mod query_tests;
mod record;
mod recover;
#[cfg(test)]
mod recover_tests;
mod reserve;
mod retention;
#[cfg(test)]
mod retention_tests;
mod room;
mod seen;
mod segment;
mod tail;
mod terms;
mod tree;
mod writer;

pub use csv::{COLUMNS, csv, csv_cell, csv_header};
pub use disk::{Disk, MachineDisk, OpenError};
pub use doubts::{Claim, DOUBTS_MAX, Doubt, Doubts};
pub use filter::{BadFilter, FILTERS, Filter, LIMIT_DEFAULT, LIMIT_MAX, StatusFilter};
pub use follow::{Follow, FollowFiles, Followed};
pub use keys::KeyEnd;
pub use line::{at_most, object};
pub use log::{CannotRecord, Counts, Log};
pub use marks::Marks;
pub use names::{Name, Names};
pub use proof::heads::stored as stored_head;
pub use proof::note::{Head, Verifier, heads};
pub use proof::verify::{Brought, Problem, Report, VerifyError, verify};
pub use proof::{Growth, Inclusion, ProofError};
pub use query::{Page, QueryError, export, query_files};
pub use record::{Answer, Counted, Kind, OVER_RATE, Outcome, Peer, Record};
pub use recover::{Recovered, doubts_in};
pub use room::Room;
pub use tree::{Hash, Tree, leaf};
