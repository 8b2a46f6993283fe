//! Random tests that can be played again. `MAKEGATE_SEEDS` is how many seeds a test plays, `MAKEGATE_SEED` the one to play
//! again.

use std::ops::RangeInclusive;

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds to play; so many of them when nothing else is asked for.
pub(crate) fn seeds(usual: u64) -> RangeInclusive<u64> {
    number("MAKEGATE_SEED").map_or(1..=number("MAKEGATE_SEEDS").unwrap_or(usual), |seed| seed..=seed)
}
