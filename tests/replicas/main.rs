//! Several replicas, one file for each promise and for each thing that happens to them: real processes on a real PostgreSQL, with a
//! link between each two that is cut, held, delayed or half-open. Without PostgreSQL they say so, and pass.

#![allow(clippy::disallowed_methods, reason = "a test may wait for files")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says its seed"
)]

#[path = "../support/mod.rs"]
mod support;

mod callers;
mod cells;
mod commands;
mod degraded;
mod engine;
mod failover;
mod fences;
mod history;
mod leave;
mod mixer;
mod one_replica;
mod operators;
mod pooler;
mod r03_fences;
mod r04_once;
mod r05_crash;
mod r06_records;
mod r09_quota;
mod rates;
mod reads;
mod record_pages;
mod record_queries;
mod records;
mod rounds;
mod shared_log;
mod tls;
mod turns;
mod upgrade;
mod write_rows;
mod writes;
