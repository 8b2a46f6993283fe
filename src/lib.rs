#![doc = include_str!("../ARCHITECTURE.md")]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test may wait for files"))]

// A module names only modules of a lower rank, never a neighbour of its own.
// Rank 0: small tools and words, each naming only those above it.
pub mod clock;
pub mod hash;
pub mod ids;
mod json_members;
pub mod private_files;
pub mod shares;
pub mod tasks;
pub mod toml_reader;
pub mod vocabulary;
pub mod watched_files;
// Each of these uses some of the above.
pub mod counters;
pub mod fair_semaphore;
mod http_client;
mod list_index;
pub mod process_log;
// Rank 1: what there is.
pub mod catalogue;
// Rank 2: what is wanted.
pub mod config;
// Rank 3: what several replicas share.
pub mod replicas;
// Rank 4: the engines.
pub mod audit;
pub mod cache;
pub mod callers;
pub mod door;
pub mod idempotency;
pub mod issuers;
pub mod otel;
pub mod quota;
pub mod upstream;
// Rank 5: the life of a request; and the simulated Make, which reads Make's document by itself (rank 0 alone).
pub mod gateway;
pub mod sandbox;
// Rank 6: what becomes of writes in doubt.
pub mod reconcile;
// Rank 7: what operators see.
pub mod operator;
// Rank 8: all of it running.
pub mod service;
// Rank 9: what people start.
pub mod cli;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
