//! The gateway: the callers' door and the life of every request.
//!
//! [`life`] is the list of steps; each step has its module. [`Gateway`] is what all requests share.

mod account;
mod answer;
mod body;
mod call;
mod columns;
pub mod door;
mod evidence;
pub mod explain;
mod fetch;
mod fields;
mod forward;
mod ink;
mod keys;
pub mod life;
pub mod look;
pub mod meters;
mod narrow;
mod order;
pub mod policy;
mod recall;
mod recognise;
pub mod refusal;
pub mod settle;
mod state;
pub mod steps;
mod tags;
pub mod tally;
pub mod target;
mod write;

pub use answer::AnswerBody;
pub use keys::LogOfKeys;
pub use state::{Engines, Gateway};
