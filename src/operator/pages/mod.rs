//! The pages that show what is in force and what it did.

mod cache;
mod callers;
mod config;
mod doubts;
mod explain;
mod overview;
mod proof;
mod quota;

pub(super) use cache::cache;
pub(super) use callers::callers;
pub(super) use config::config;
pub(super) use doubts::doubts;
pub(super) use explain::explain;
pub(super) use overview::overview;
pub(super) use proof::{head, proof};
pub(super) use quota::{buckets, quota};
