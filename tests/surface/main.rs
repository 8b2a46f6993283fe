//! What the service shows to the outside, operation by operation.

#![allow(clippy::disallowed_methods, reason = "a test may wait for files")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod cli;
mod documents;
mod openapi;
mod operations;
mod operator;
mod process_log;
mod properties;
mod refusals;
mod sandbox;
mod telemetry;
mod upgrade;
mod wire;
