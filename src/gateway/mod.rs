//! The gateway: the life of every request.
//!
//! [`life`] is the list of steps. [`admit`] decides whether a request may proceed, [`read`] and [`mod@write`] carry it out. [`Gateway`] is
//! what all requests share.

pub mod admit;
pub(crate) mod etag;
pub mod explain;
pub(crate) mod fences;
pub(crate) mod forward;
mod header_value;
pub mod key_expiry;
mod key_log;
pub(crate) mod large_work;
mod last_uses;
mod learned_quota;
pub mod life;
#[cfg(test)]
mod life_tests;
pub mod metrics;
pub(crate) mod outgoing;
mod read;
pub(crate) mod recorded;
mod recorder;
pub mod refusal;
pub mod refusal_tally;
mod replica_events;
mod request;
mod request_trace;
mod response;
mod state;
pub(crate) mod tags;
mod write;

#[cfg(any(test, fuzzing))]
pub(crate) use read::list_scope;

pub use key_log::KeyLogAdapter;
pub use last_uses::recall_last_uses;
pub use response::AnswerBody;
pub use state::{Engines, Gateway};
pub use write::healing::Unfinished;
pub use write::leaving::{LeftWrites, leave_writes, tell_writes};
pub(crate) use write::shared;
