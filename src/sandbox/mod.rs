//! The simulated Make API.
