//! Steps 2 to 7: what is asked for, by whom, whether it may, and the body.

pub(crate) mod body;
pub mod policy;
pub mod steps;
pub mod target;
