#![doc = include_str!("../ARCHITECTURE.md")]

// A module names only modules of a lower rank, never a neighbour of its own.
// Rank 0: words and small tools.
pub mod clock;
pub mod hash;
pub mod tasks;
pub mod words;
// Rank 1: what there is.
pub mod catalogue;
// Rank 2: what is wanted.
pub mod config;
// Rank 3: the engines.
pub mod callers;
pub mod quota;
// Rank 4, on rank 0 alone: the simulated Make reads Make's document by itself.
pub mod sandbox;
