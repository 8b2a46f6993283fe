//! The time that retention trusts. What is deleted for its age never comes back, and a wall clock can be wrong by
//! years. A clock step is trusted only after the clock has then kept pace with the monotonic clock for as long as the
//! step itself. Until then, segments that only the untrusted clock calls old are deleted one per hour, which leaves
//! time to notice.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Minimum time between two deletions on the word of an untrusted clock.
const UNTRUSTED_DELETION_INTERVAL: Duration = Duration::from_secs(3600);
/// The clocks may drift apart by this much between two observations, plus a tenth of the time passed. Anything more is
/// a step.
const TOLERANCE: Duration = Duration::from_secs(1);
const DRIFT_PART: u32 = 10;

#[derive(Debug)]
pub(crate) struct TrustedTime {
    believed: Timestamp,
    wall: Timestamp,
    observed: Instant,
    agreed: Duration,
    /// When a segment was last deleted on the word of an untrusted clock. A restart counts as such a deletion.
    untrusted_deletion: Instant,
}

impl TrustedTime {
    /// Continues from the time that the previous run trusted. Only the wall clock says how long ago that was.
    pub(crate) fn new(believed: Option<Timestamp>, (now, wall): (Instant, Timestamp)) -> Self {
        let believed = believed.unwrap_or(wall);
        Self { believed, wall, observed: now, agreed: Duration::ZERO, untrusted_deletion: now }
    }

    /// Must be called often: a step can only be detected if it is large compared with the time since the last call.
    pub(crate) fn observe(&mut self, (now, wall): (Instant, Timestamp)) {
        let passed = now.saturating_duration_since(self.observed);
        let stepped = wall.duration_since(later(self.wall, passed)).unsigned_abs() > TOLERANCE + passed / DRIFT_PART;
        self.agreed = if stepped { Duration::ZERO } else { self.agreed + passed };
        (self.believed, self.wall, self.observed) = (later(self.believed, passed), wall, now);
        if wall.duration_since(self.believed).unsigned_abs() <= self.agreed {
            self.believed = wall;
        }
    }

    pub(crate) const fn believed(&self) -> Timestamp {
        self.believed
    }

    pub(crate) const fn wall(&self) -> Timestamp {
        self.wall
    }

    /// Whether a segment whose newest record has this time may be deleted, given how long records are kept.
    pub(crate) fn may_delete(&mut self, time: Timestamp, keep: Duration) -> bool {
        let is_old = |now: Timestamp| now.duration_since(time) >= SignedDuration::try_from(keep).unwrap_or_default();
        if is_old(self.believed.min(self.wall)) {
            return true;
        }
        let may_delete_one = is_old(self.wall)
            && self.observed.saturating_duration_since(self.untrusted_deletion) >= UNTRUSTED_DELETION_INTERVAL;
        if may_delete_one {
            self.untrusted_deletion = self.observed;
        }
        may_delete_one
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    const KEEP: Duration = Duration::from_secs(400 * 24 * 3600);

    /// A gateway that seals a segment every day, with a wall clock that can be wrong.
    struct Run {
        trusted_time: TrustedTime,
        now: Instant,
        /// The true time.
        truth: Timestamp,
        /// The wall clock's error.
        off: SignedDuration,
        /// Each segment's newest time, by the wall clock and in truth.
        segments: Vec<(Timestamp, Timestamp)>,
        /// The true age of each deleted segment when it was deleted.
        went: Vec<Duration>,
    }

    impl Run {
        fn new() -> Self {
            let (now, truth) = (crate::clock::Clock::system().now(), "2026-01-01T00:00:00Z".parse().unwrap());
            let off = SignedDuration::ZERO;
            Self { trusted_time: TrustedTime::new(None, (now, truth)), now, truth, off, segments: vec![], went: vec![] }
        }

        fn wall(&self) -> Timestamp {
            self.truth + self.off
        }

        /// Lets this much time pass, observing the clock every `step` and sweeping every hour.
        fn pass(&mut self, time: Duration, step: Duration) {
            let mut passed = Duration::ZERO;
            while passed < time {
                passed += step;
                (self.now, self.truth) = (self.now + step, self.truth + step);
                self.trusted_time.observe((self.now, self.wall()));
                if passed.as_secs().is_multiple_of(DAY.as_secs()) {
                    self.segments.push((self.wall(), self.truth));
                }
                if passed.as_secs().is_multiple_of(HOUR.as_secs()) {
                    self.sweep();
                }
            }
        }

        fn sweep(&mut self) {
            while let Some((newest, truth)) = self.segments.first().copied()
                && self.trusted_time.may_delete(newest, KEEP)
            {
                self.segments.remove(0);
                self.went.push(self.truth.duration_since(truth).unsigned_abs());
            }
        }

        fn step(&mut self, by: SignedDuration) {
            self.off += by;
            self.trusted_time.observe((self.now, self.wall()));
        }

        /// Stops for this long; the next start knows what the last opening recorded.
        fn restart(&mut self, down: Duration) {
            let believed = self.trusted_time.believed();
            (self.now, self.truth) = (self.now + Duration::from_secs(1), self.truth + down);
            self.trusted_time = TrustedTime::new(Some(believed), (self.now, self.wall()));
        }
    }

    fn years(years: i64) -> SignedDuration {
        SignedDuration::from_hours(years * 365 * 24)
    }

    #[test]
    fn normally_each_segment_is_deleted_at_its_age() {
        let mut run = Run::new();
        run.pass(2 * YEAR, HOUR);
        assert_eq!(run.went.len(), 730 - 400);
        assert!(run.went.iter().all(|age| *age == KEEP), "{:?}", run.went);
    }

    #[test]
    fn a_step_ahead_deletes_one_segment_an_hour_and_none_once_it_is_fixed() {
        let mut run = Run::new();
        run.pass(KEEP, HOUR);
        run.step(years(2));
        run.sweep();
        assert_eq!(run.went.len(), 1, "only what is old by now");
        run.pass(10 * HOUR, Duration::from_secs(900));
        assert_eq!(run.went.len(), 11);
        run.step(-years(2));
        run.pass(5 * HOUR, Duration::from_secs(900));
        assert_eq!(run.went.len(), 11);
    }

    #[test]
    fn a_step_is_trusted_after_its_own_length_and_not_before() {
        let mut run = Run::new();
        run.pass(100 * DAY, HOUR);
        run.step(SignedDuration::from_hours(24 * 10));
        for (hours, agrees) in [(1, false), (238, false), (2, true)] {
            run.pass(HOUR * hours, HOUR);
            assert_eq!(run.trusted_time.believed() == run.wall(), agrees, "{hours}");
        }
        run.step(SignedDuration::from_hours(-24 * 10));
        run.pass(9 * DAY, HOUR);
        assert_ne!(run.trusted_time.believed(), run.wall());
        run.pass(2 * DAY, HOUR);
        assert_eq!(run.trusted_time.believed(), run.truth);
    }

    #[test]
    fn a_step_back_deletes_nothing() {
        let mut run = Run::new();
        run.pass(399 * DAY, HOUR);
        run.step(-years(30));
        run.pass(40 * DAY, HOUR);
        assert_eq!(run.went, Vec::<Duration>::new());
        run.step(years(30));
        run.pass(DAY, HOUR);
        assert_eq!(run.went.len(), 40, "what became old meanwhile is deleted once the clock is right again");
    }

    #[test]
    fn many_small_steps_are_steps_but_a_slow_drift_is_not() {
        let mut run = Run::new();
        run.pass(KEEP, HOUR);
        for _ in 0..48 {
            run.step(SignedDuration::from_hours(24 * 10));
            run.pass(HOUR, HOUR);
        }
        assert!(run.went.len() <= 1 + 48 + 2, "{}", run.went.len());
        let mut run = Run::new();
        for _ in 0..500 {
            run.off += SignedDuration::from_secs(20);
            run.pass(DAY, HOUR);
            assert_eq!(run.trusted_time.believed(), run.wall());
        }
        assert!(run.went.len() >= 100, "{}", run.went.len());
    }

    #[test]
    fn a_step_across_a_restart_deletes_one_segment_an_hour() {
        let mut run = Run::new();
        run.pass(KEEP - DAY, HOUR);
        for _ in 0..5 {
            run.restart(Duration::from_secs(10));
            run.off = years(2);
            run.trusted_time = TrustedTime::new(Some(run.trusted_time.believed()), (run.now, run.wall()));
            run.sweep();
            run.pass(HOUR / 2, HOUR / 4);
        }
        assert_eq!(run.went, Vec::<Duration>::new(), "a restart does not count as an hour");
        run.pass(10 * HOUR, HOUR);
        assert_eq!(run.went.len(), 10);
    }

    #[test]
    fn after_a_long_pause_old_segments_are_deleted_hourly_and_then_on_time() {
        let mut run = Run::new();
        run.pass(KEEP, HOUR);
        run.went.clear();
        run.restart(20 * DAY);
        run.pass(2 * DAY, HOUR);
        let ages: Vec<_> =
            run.segments.iter().map(|(_, truth)| run.truth.duration_since(*truth).unsigned_abs()).collect();
        assert!(ages.iter().all(|age| *age <= KEEP + DAY), "{ages:?}");
    }
}
