//! The pages: what is in force, and what the gateway did. Each module has its handler.

mod audit;
mod cache;
mod callers;
mod charts;
mod config;
mod doubts;
mod entries;
mod explain;
mod follow;
mod history;
mod hours;
mod ledger;
mod links;
mod overview;
mod proof;
mod quota;
mod rankings;
mod record;
mod replica_records;
pub(crate) mod story;
mod titles;

pub(super) use audit::audit;
pub(super) use cache::cache;
pub(super) use callers::callers;
pub(super) use config::config;
pub(super) use doubts::doubts;
pub(super) use entries::{cached_entry, entries};
pub(super) use explain::explain;
pub(super) use follow::follow;
pub(super) use history::history;
pub(super) use ledger::ledger;
pub(super) use overview::overview;
pub(super) use proof::{head, proof};
pub(super) use quota::quota;
pub(super) use record::record;
