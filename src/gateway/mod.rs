//! The gateway: the callers' door and the life of every request.
//!
//! [`life`] is the list of steps; each step has its module. [`Gateway`] is what all requests share.

mod authorized_request;
mod body;
mod evidence;
pub mod explain;
mod fetch;
mod forward;
mod header_value;
mod idempotency;
mod json_members;
mod key_log;
pub mod life;
#[cfg(test)]
mod life_tests;
mod list_scope;
mod lookup;
pub mod metrics;
pub mod policy;
pub mod reconcile;
mod recorder;
pub mod refusal;
pub mod refusal_tally;
mod response;
pub mod settle;
mod state;
pub mod steps;
mod tags;
pub mod target;
mod write;
mod write_order;

pub use key_log::KeyLogAdapter;
pub use response::AnswerBody;
pub use state::{Engines, Gateway};
