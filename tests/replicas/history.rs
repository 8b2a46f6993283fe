//! One history of what all callers did at all replicas, and what the promises demand of it. Everything here is a question to data:
//! each check returns what contradicts its promise, and its own tests plant that.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A thing with versions, by the path that it is written at.
pub(crate) type Thing = String;

/// How a write ended, as far as its caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    Rejected,
    NotSent,
    InDoubt,
    /// Nothing came back: its replica was killed, or the connection was lost.
    Unanswered,
}

impl Ended {
    /// What `Makegate-Outcome` says; a refusal without it was not sent.
    pub(crate) fn of(outcome: Option<&str>) -> Self {
        match outcome {
            Some("done") => Self::Done,
            Some("rejected") => Self::Rejected,
            Some("in-doubt") => Self::InDoubt,
            Some("not-sent") | None => Self::NotSent,
            Some(other) => panic!("an outcome that no document knows: {other}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The versions that were shown.
    Read(Vec<(Thing, String)>),
    Write(Thing, String, Ended),
}

/// One request, timed by a clock that ticks at every step of the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) replica: usize,
    /// Its id, if there was an answer.
    pub(crate) request: Option<String>,
    pub(crate) deed: Deed,
    /// For whoever reads why a test failed.
    pub(crate) how: String,
}

/// Promise 3: what reads showed, although a write that was answered before them had made it older. `order` is that of the effects at
/// the upstream, from 1, by thing and version.
pub(crate) fn stale_reads(history: &[Operation], order: &HashMap<(Thing, String), usize>) -> Vec<String> {
    let place = |thing: &Thing, version: &String| order.get(&(thing.clone(), version.clone())).copied().unwrap_or(0);
    let writes = history.iter().filter_map(|operation| match &operation.deed {
        Deed::Write(thing, version, Ended::Done | Ended::Rejected) => Some((operation, thing, place(thing, version))),
        Deed::Write(..) | Deed::Read(_) => None,
    });
    let mut by_thing: HashMap<&Thing, Vec<(&Operation, usize)>> = HashMap::new();
    writes.for_each(|(write, thing, place)| by_thing.entry(thing).or_default().push((write, place)));
    let mut found = Vec::new();
    for read in history {
        let Deed::Read(shown) = &read.deed else { continue };
        for (thing, version) in shown {
            let before = by_thing.get(thing).into_iter().flatten().filter(|(write, _)| write.end < read.start);
            let newest = before.max_by_key(|(_, place)| *place);
            if let Some((write, least)) = newest.filter(|(_, least)| *least > place(thing, version)) {
                found.push(format!(
                    "{version} ({}) of {read:?} is older than {least} of {write:?}",
                    place(thing, version)
                ));
            }
        }
    }
    found
}

/// How many pairs of a write and a later read of the same thing a history has: what [`stale_reads`] judges.
pub(crate) fn judged(history: &[Operation]) -> usize {
    let reads = history.iter().filter(|operation| matches!(operation.deed, Deed::Read(_)));
    reads
        .map(|read| {
            let Deed::Read(shown) = &read.deed else { return 0 };
            let is_judged = |write: &&Operation| match &write.deed {
                Deed::Write(of, _, Ended::Done | Ended::Rejected) => {
                    write.end < read.start && shown.iter().any(|(thing, _)| thing == of)
                }
                Deed::Write(..) | Deed::Read(_) => false,
            };
            history.iter().filter(is_judged).count()
        })
        .sum()
}

/// Promise 4: what the upstream received more than once, of writes that must go there once. Each has its own text.
pub(crate) fn sent_twice<'t>(received: impl IntoIterator<Item = &'t str>) -> Vec<String> {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    received.into_iter().for_each(|text| *times.entry(text).or_default() += 1);
    times.into_iter().filter(|(_, times)| *times > 1).map(|(text, times)| format!("{times} times: {text}")).collect()
}

/// What all replicas and the engine know of the writes, by request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Those with an intent in a replica's log.
    pub(crate) intended: BTreeSet<String>,
    /// Those with an outcome or a settlement that ended them, in any log.
    pub(crate) settled: BTreeSet<String>,
    /// What each replica calls in doubt.
    pub(crate) doubts: Vec<BTreeSet<String>>,
}

/// Promise 5: writes that are neither settled nor in doubt at every replica, or both.
pub(crate) fn forgotten(known: &Known, sent: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for request in &known.intended {
        let in_doubt = known.doubts.iter().filter(|doubts| doubts.contains(request)).count();
        let wanted = if known.settled.contains(request) { 0 } else { known.doubts.len() };
        if in_doubt != wanted {
            found.push(format!(
                "{request} is settled: {}, and in doubt at {in_doubt} of {} replicas",
                wanted == 0,
                known.doubts.len()
            ));
        }
    }
    found.extend(sent.difference(&known.intended).map(|request| format!("{request} went upstream without an intent")));
    found
}

/// One record of a replica's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) seq: u64,
    pub(crate) kind: String,
    pub(crate) request: Option<String>,
}

/// Promise 6: answered requests without exactly one record in the log of the replica that answered, and records that the engine does
/// not have exactly once. `shipped` has a replica and a place for each row; `None`: nobody ships.
pub(crate) fn wrong_records(
    history: &[Operation],
    logs: &[Vec<Line>],
    shipped: Option<&[(usize, u64)]>,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut ends: HashMap<(usize, &str), usize> = HashMap::new();
    for (replica, log) in logs.iter().enumerate() {
        let answered = log.iter().filter(|line| matches!(&*line.kind, "request" | "outcome"));
        for request in answered.filter_map(|line| line.request.as_deref()) {
            *ends.entry((replica, request)).or_default() += 1;
        }
        let seqs = log.iter().map(|line| line.seq);
        found.extend(
            seqs.zip(1..)
                .find(|(seq, place)| seq != place)
                .map(|(seq, _)| format!("replica {replica}: a gap before {seq}")),
        );
    }
    for operation in history {
        let Some(request) = operation.request.as_deref() else { continue };
        let own = ends.get(&(operation.replica, request)).copied().unwrap_or(0);
        let elsewhere = (0..logs.len()).filter(|replica| *replica != operation.replica);
        let elsewhere: usize = elsewhere.filter_map(|replica| ends.get(&(replica, request))).sum();
        if (own, elsewhere) != (1, 0) {
            found.push(format!("{own} records, and {elsewhere} elsewhere, of {operation:?}"));
        }
    }
    let Some(shipped) = shipped else { return found };
    let mut rows: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    shipped.iter().for_each(|row| *rows.entry(*row).or_default() += 1);
    for (replica, log) in logs.iter().enumerate() {
        for line in log {
            let times = rows.remove(&(replica, line.seq)).unwrap_or(0);
            if times != 1 {
                found.push(format!("{times} rows of replica {replica}'s record {}", line.seq));
            }
        }
    }
    found.extend(
        rows.keys().map(|(replica, seq)| format!("a row of replica {replica}'s record {seq}, which its log lacks")),
    );
    found
}

/// Promise 9: where more requests than the limit came within a window.
pub(crate) fn over_quota(arrivals_ms: &[i64], limit: usize, window_ms: i64) -> Vec<String> {
    let mut sorted = arrivals_ms.to_vec();
    sorted.sort_unstable();
    let runs = sorted.windows(limit + 1).filter(|run| run[limit] - run[0] < window_ms);
    runs.map(|run| format!("{} requests in {} ms", limit + 1, run[limit] - run[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THING: &str = "/thing";

    fn write(start: u64, end: u64, version: &str, ended: Ended) -> Operation {
        let deed = Deed::Write(THING.to_owned(), version.to_owned(), ended);
        Operation { start, end, replica: 0, request: Some(version.to_owned()), deed, how: String::new() }
    }

    fn read(start: u64, version: &str) -> Operation {
        let deed = Deed::Read(vec![(THING.to_owned(), version.to_owned())]);
        let request = Some(format!("read-{start}"));
        Operation { start, end: start + 1, replica: 1, request, deed, how: String::new() }
    }

    fn order(versions: &[&str]) -> HashMap<(Thing, String), usize> {
        let places = versions.iter().zip(1..);
        places.map(|(version, place)| ((THING.to_owned(), (*version).to_owned()), place)).collect()
    }

    #[test]
    fn a_read_that_is_older_than_an_answered_write_is_found() {
        let order = order(&["a", "b"]);
        let history = |ended, shown| vec![write(1, 2, "a", Ended::Done), write(3, 6, "b", ended), read(7, shown)];
        assert_eq!(stale_reads(&history(Ended::Done, "a"), &order).len(), 1);
        assert_eq!(stale_reads(&history(Ended::Done, "before all"), &order).len(), 1);
        assert!(stale_reads(&history(Ended::Done, "b"), &order).is_empty());
        // In doubt, or unanswered, a write demands nothing; the one before it still does.
        for ended in [Ended::InDoubt, Ended::Unanswered, Ended::NotSent] {
            assert!(stale_reads(&history(ended, "a"), &order).is_empty());
            assert_eq!(stale_reads(&history(ended, "before all"), &order).len(), 1);
        }
        // While a write is under way, both are right.
        let during = [write(1, 2, "a", Ended::Done), write(3, 6, "b", Ended::Done), read(5, "a")];
        assert!(stale_reads(&during, &order).is_empty());
        assert_eq!(judged(&during), 1);
    }

    #[test]
    fn a_write_that_went_twice_is_found() {
        assert!(sent_twice(["a", "b"]).is_empty());
        assert_eq!(sent_twice(["a", "b", "a"]), ["2 times: a"]);
    }

    #[test]
    fn a_write_that_a_replica_does_not_know_of_is_found() {
        let set = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<BTreeSet<_>>();
        let known = |settled: &[&str], first: &[&str], second: &[&str]| Known {
            intended: set(&["a"]),
            settled: set(settled),
            doubts: vec![set(first), set(second)],
        };
        let found = |known: &Known| forgotten(known, &set(&["a"])).len();
        assert_eq!(found(&known(&["a"], &[], &[])), 0);
        assert_eq!(found(&known(&[], &["a"], &["a"])), 0);
        assert_eq!(found(&known(&[], &["a"], &[])), 1, "in doubt at one alone");
        assert_eq!(found(&known(&[], &[], &[])), 1, "forgotten");
        assert_eq!(found(&known(&["a"], &[], &["a"])), 1, "settled, and in doubt somewhere");
        assert_eq!(forgotten(&known(&["a"], &[], &[]), &set(&["a", "b"])).len(), 1, "sent without an intent");
    }

    #[test]
    fn a_record_too_many_or_too_few_is_found() {
        let line =
            |seq, kind: &str, request: &str| Line { seq, kind: kind.to_owned(), request: Some(request.to_owned()) };
        let history = [write(1, 2, "a", Ended::Done), read(3, "a")];
        let logs = |second: Vec<Line>| vec![vec![line(1, "intent", "a"), line(2, "outcome", "a")], second];
        let own = || vec![line(1, "request", "read-3")];
        let rows = [(0, 1), (0, 2), (1, 1)];
        assert!(wrong_records(&history, &logs(own()), Some(&rows)).is_empty());
        assert!(wrong_records(&history, &logs(own()), None).is_empty());
        assert_eq!(wrong_records(&history, &logs(vec![]), None).len(), 1, "no record");
        let twice = vec![line(1, "request", "read-3"), line(2, "request", "read-3")];
        assert_eq!(wrong_records(&history, &logs(twice), None).len(), 1);
        assert_eq!(wrong_records(&history, &logs(vec![line(2, "request", "read-3")]), None).len(), 1, "a gap");
        let elsewhere = vec![line(1, "request", "read-3"), line(2, "outcome", "a")];
        assert_eq!(wrong_records(&history, &logs(elsewhere), None).len(), 1, "in another replica's log, too");
        assert_eq!(wrong_records(&history, &logs(own()), Some(&rows[..2])).len(), 1, "not shipped");
        assert_eq!(wrong_records(&history, &logs(own()), Some(&[rows[0], rows[1], rows[2], rows[2]])).len(), 1);
        assert_eq!(wrong_records(&history, &logs(own()), Some(&[rows[0], rows[1], rows[2], (1, 2)])).len(), 1);
    }

    #[test]
    fn one_request_too_many_in_a_window_is_found() {
        assert!(over_quota(&[0, 10, 60_000], 2, 60_000).is_empty());
        assert_eq!(over_quota(&[59_999, 10, 0], 2, 60_000), ["3 requests in 59999 ms"]);
        assert!(over_quota(&[0], 2, 60_000).is_empty());
    }
}
