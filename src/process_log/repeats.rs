//! Logs each kind of event once a minute, and its repeats as one line when the minute is over.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::log_line::LogLine;

/// How long a kind of event stays quiet after it was logged.
const QUIET: Duration = Duration::from_secs(60);

/// The kinds of event logged recently. A kind is a place in the code, so their number is bounded.
#[derive(Debug)]
pub(super) struct Repeats<K> {
    kinds: HashMap<K, RepeatedKind>,
    /// Number of events so far; orders those that come at the same moment.
    events: u64,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self { kinds: HashMap::new(), events: 0 }
    }
}

#[derive(Debug)]
struct RepeatedKind {
    /// When its first line of this minute was logged.
    since: Instant,
    logged: u32,
    /// The number of suppressed events, and the last one with its position among all events.
    suppressed: u64,
    last: Option<(u64, LogLine)>,
}

impl<K: Eq + Hash> Repeats<K> {
    /// Returns the line if it should be logged now: if it is one of the first `most` of its kind in a minute.
    pub(super) fn admit(&mut self, kind: K, line: LogLine, most: u32, now: Instant) -> Option<LogLine> {
        self.events += 1;
        let kind = self.kinds.entry(kind).or_insert(RepeatedKind { since: now, logged: 0, suppressed: 0, last: None });
        let is_over = now.saturating_duration_since(kind.since) >= QUIET;
        if kind.suppressed == 0 && (is_over || kind.logged < most) {
            if is_over {
                (kind.since, kind.logged) = (now, 0);
            }
            kind.logged += 1;
            return Some(line);
        }
        kind.suppressed += 1;
        kind.last = Some((self.events, line));
        None
    }

    /// The lines for suppressed events of kinds whose minute is over, or of all kinds if `all`.
    pub(super) fn due(&mut self, now: Instant, all: bool) -> Vec<LogLine> {
        let mut due = Vec::new();
        self.kinds.retain(|_, kind| {
            if !all && now.saturating_duration_since(kind.since) < QUIET {
                return true;
            }
            let Some((place, last)) = kind.last.take() else { return false };
            due.push((place, last.with("repeated", kind.suppressed)));
            *kind = RepeatedKind { since: now, logged: 1, suppressed: 0, last: None };
            true
        });
        due.sort_by_key(|(place, _)| *place);
        due.into_iter().map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;
    use crate::clock::Clock;

    /// Repeats on a frozen clock, and what they logged.
    struct Told {
        clock: Clock,
        repeats: Repeats<&'static str>,
        lines: Vec<String>,
    }

    impl Told {
        fn event(&mut self, kind: &'static str, most: u32, message: &str) {
            let line = LogLine::new(self.clock.wall(), Level::WARN, message.to_owned());
            let told = self.repeats.admit(kind, line, most, self.clock.now());
            self.lines.extend(told.map(words));
        }

        fn due(&mut self, all: bool) {
            let due = self.repeats.due(self.clock.now(), all);
            self.lines.extend(due.into_iter().map(words));
        }

        fn take(&mut self) -> Vec<String> {
            std::mem::take(&mut self.lines)
        }
    }

    fn words(line: LogLine) -> String {
        let value: serde_json::Value = serde_json::from_str(&line.json()).unwrap();
        format!("{} {}", value["msg"].as_str().unwrap(), value["repeated"].as_u64().unwrap_or(1))
    }

    fn told() -> Told {
        Told { clock: Clock::frozen(), repeats: Repeats::default(), lines: Vec::new() }
    }

    #[test]
    fn a_flood_is_one_line_a_minute_and_no_event_is_uncounted() {
        let mut told = told();
        let (mut events, mut counted) = (0, 0);
        for second in 0..600 {
            for number in 0..5 {
                told.event("flood", 1, &format!("{second}.{number}"));
                events += 1;
            }
            told.due(false);
            told.clock.advance(Duration::from_secs(1));
        }
        told.due(true);
        for line in told.take() {
            counted += line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
            assert!(line.starts_with("0.0 ") || line.contains(".4 "), "the last one stands for all: {line}");
        }
        assert_eq!((counted, events), (3_000, 3_000));
    }

    #[test]
    fn a_repetition_is_told_when_its_minute_is_over_and_at_the_end() {
        let mut told = told();
        told.event("kind", 1, "first");
        told.event("kind", 1, "second");
        told.event("other", 1, "other");
        told.due(false);
        assert_eq!(told.take(), ["first 1", "other 1"]);
        told.clock.advance(QUIET);
        told.event("kind", 1, "third");
        told.due(false);
        assert_eq!(told.take(), ["third 2"]);
        told.event("kind", 1, "fourth");
        told.due(true);
        assert_eq!(told.take(), ["fourth 1"], "its minute began with the line before");
        told.due(true);
        told.clock.advance(QUIET);
        told.due(false);
        assert!(told.take().is_empty() && told.repeats.kinds.is_empty());
        told.event("kind", 1, "fifth");
        assert_eq!(told.take(), ["fifth 1"]);
    }

    #[test]
    fn a_state_that_changes_to_and_fro_is_told_so_often_a_minute_and_then_as_it_is() {
        let mut told = told();
        for _ in 0..8 {
            told.event("down", 5, "down");
            told.event("up", 5, "up");
            told.clock.advance(Duration::from_secs(1));
        }
        assert_eq!(told.take(), ["down 1", "up 1"].repeat(5));
        told.clock.advance(QUIET);
        told.due(false);
        assert_eq!(told.take(), ["down 3", "up 3"], "in the order of the last of each");
    }
}
