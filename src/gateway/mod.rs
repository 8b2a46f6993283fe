//! The gateway: the callers' door and the life of every request.

pub mod door;
mod narrow;
pub mod refusal;
pub mod target;
