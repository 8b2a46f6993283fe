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

/// A small generator of reproducible numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below the bound.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }

    /// Another generator, for a task of its own.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.below(u64::MAX))
    }
}
