//! The design's promises, one file each: the real service on real sockets, against the sandbox or a hostile origin.

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

mod p01_forms;
mod p01_memory;
mod p01_token;
mod p01_upstream;
mod p02_expiry;
mod p02_lists;
mod p02_revoked;
mod p02_scope;
mod p02_tokens;
mod p03_fence;
mod p03_history;
mod p04_bytes;
mod p04_doubts;
mod p04_edges;
mod p04_idempotency;
mod p04_looks;
mod p04_names;
mod p04_once;
mod p05_crash;
mod p05_intent;
mod p06_records;
mod p06_refusals;
mod p07_damage;
mod p07_keys;
mod p07_tampering;
mod p08_bounds;
mod p08_doubts;
mod p08_progress;
mod p08_shares;
mod p09_lone;
mod p09_quota;
mod p09_unbelieved;
mod p10_names;
mod p10_reload;
mod p10_watched;
mod p11_drain;
mod p12_outlives;
mod p13_deadline;
mod p14_descriptors;
#[cfg(target_os = "linux")]
mod p14_disk;
mod p14_fair;
#[cfg(target_os = "linux")]
mod p14_large;
mod p14_operators;
mod p14_process_log;
