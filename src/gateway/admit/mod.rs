//! Steps 2 to 7: decide what is asked for, by whom and whether they may, and read the body.

pub(crate) mod body;
pub mod identify;
pub mod policy;
pub mod steps;
pub mod target;
