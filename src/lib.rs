#![doc = include_str!("../ARCHITECTURE.md")]

// Rank 0: words and small tools. A module names only modules of a lower rank.
pub mod clock;
pub mod hash;
pub mod tasks;
pub mod words;
// Rank 4, on rank 0 alone: the simulated Make reads Make's document by itself.
pub mod sandbox;
