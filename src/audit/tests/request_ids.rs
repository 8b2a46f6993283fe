//! Promise 4: whatever ids callers choose, repeat or reuse, each write gets its own outcome.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;
use crate::audit::open_writes::OpenWrites;
use crate::audit::record::Record;
use crate::clock::Clock;
use crate::ids::RequestId;
use crate::vocabulary::Outcome;

/// Prefix of the ids of writes whose callers do not wait for their intents.
const GIVEN_UP: &str = "given-up-";

/// What the log is expected to know.
#[derive(Default)]
struct Model {
    under_way: BTreeMap<u64, RequestId>,
    in_doubt: BTreeMap<u64, RequestId>,
    /// Intents by their first outcome.
    ended: BTreeMap<u64, Outcome>,
    /// Holders of the ids of writes under way.
    names: BTreeMap<u64, HeldRequestId>,
}

impl Model {
    fn check(&self, log: &AuditLog, place: &str) {
        let mut listed: BTreeMap<_, _> = log.doubts().list().into_iter().map(|one| (one.intent, one.request)).collect();
        // The log ends these itself, unless their own outcome comes first; then they are rightly in doubt.
        listed.retain(|_, request| !request.as_str().starts_with(GIVEN_UP));
        assert_eq!(listed, self.in_doubt, "{place}");
        for request in self.in_doubt.values().chain(self.under_way.values()) {
            assert!(
                log.request_ids().take(*request).is_none(),
                "{place}: {request} is not taken although its write is open"
            );
        }
    }
}

/// One life of a log. With `takes`, an id is taken before use, as the gateway does. Without it, several open writes
/// may share an id and only their sequence numbers distinguish them.
async fn live(seed: u64, takes: bool) -> usize {
    let mut random = Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let settings = crate::config::AuditConfig { segment_bytes: 4000, ..settings(&dir) };
    let clock = Clock::system();
    let (mut log, _) = open(&settings, &clock).await;
    let mut model = Model::default();
    let mut used = vec![RequestId::parse(b"job-1").unwrap(), RequestId::parse(b"job-2").unwrap()];
    let mut refused = 0;
    for step in 0..80 {
        let place = format!("seed {seed}, step {step}");
        let under_way: Vec<u64> = model.under_way.keys().copied().collect();
        match random.usize(..10) {
            0..=3 => {
                let wanted = *random.choice(&used).unwrap();
                let name = match log.request_ids().take(wanted) {
                    Some(name) => name,
                    None if takes => log.request_ids().make(clock.wall()),
                    None => log.request_ids().hold(wanted),
                };
                refused += usize::from(*name.id() != wanted);
                used.push(*name.id());
                let intent = Record { request: Some(*name.id()), ..record(Kind::Intent, "x") };
                let intent = log.commit(intent).await.unwrap();
                model.under_way.insert(intent, *name.id());
                model.names.insert(intent, name);
            }
            4 => drop(log.commit(record(Kind::Intent, &format!("{GIVEN_UP}{step}")))),
            5..=7 => {
                let Some(&intent) = random.choice(&under_way) else { continue };
                let (request, _name) = (model.under_way.remove(&intent).unwrap(), model.names.remove(&intent));
                let how = *random.choice(Outcome::ALL).unwrap();
                log.commit(outcome(request.as_str(), intent, how)).await.unwrap();
                model.ended.insert(intent, how);
                if how == Outcome::InDoubt {
                    model.in_doubt.insert(intent, request);
                }
            }
            8 => {
                let doubts: Vec<RequestId> = model.in_doubt.values().copied().collect();
                let Some(&request) = random.choice(&doubts) else { continue };
                let intent = log.doubts().find_by_request(&request).unwrap();
                assert_eq!(model.in_doubt.remove(&intent), Some(request), "{place}");
                let settled =
                    Record { kind: Some(Kind::Settlement), ..outcome(request.as_str(), intent, Outcome::Done) };
                log.commit(settled).await.unwrap();
            }
            _ => {
                if random.bool() {
                    log.close().await;
                }
                model.names.clear();
                drop(log);
                log = open(&settings, &clock).await.0;
                model.in_doubt.append(&mut model.under_way);
            }
        }
        model.check(&log, &place);
    }
    log.close().await;
    check(&lines(&settings), &model, seed);
    if takes {
        assert_eq!(
            fold(&settings, true),
            fold(&settings, false),
            "seed {seed}: read as if an earlier makegate had written it"
        );
    }
    refused
}

/// The open writes that a reader finds. With `by_request`, as if no record named its intent.
fn fold(settings: &crate::config::AuditConfig, by_request: bool) -> OpenWrites {
    let mut open = OpenWrites::default();
    for first in segment::list(&settings.dir).unwrap() {
        for line in std::fs::read(segment::path(&settings.dir, first)).unwrap().split(|byte| *byte == b'\n') {
            let Some(mut seen) = Record::parse(line) else { continue };
            if by_request {
                seen.intent = None;
            }
            open.apply(&seen);
        }
    }
    open
}

/// Checks that every write has exactly the outcome that it was given.
fn check(lines: &[serde_json::Value], model: &Model, seed: u64) {
    assert_gapless(lines);
    let mut ended = BTreeSet::new();
    for line in lines.iter().filter(|line| matches!(line["kind"].as_str(), Some("outcome" | "settlement"))) {
        let intent = line["intent"].as_u64().unwrap_or_else(|| panic!("seed {seed}: {line} names no intent"));
        let begun = &lines[usize::try_from(intent - 1).unwrap()];
        assert_eq!((&begun["kind"], &begun["request"]), (&"intent".into(), &line["request"]), "seed {seed}: {line}");
        if line["kind"] == "outcome" {
            assert!(ended.insert(intent), "seed {seed}: {line} is a second outcome");
            let how = model.ended.get(&intent).copied().unwrap_or(Outcome::NotSent);
            assert_eq!(line["outcome"], how.as_str(), "seed {seed}: {line}");
        }
    }
    assert!(model.ended.keys().all(|intent| ended.contains(intent)), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_has_its_own_end_whatever_ids_callers_choose() {
    let lives = (1..=24).map(|seed| crate::tasks::Tasks::new().spawn(live(seed, seed % 2 == 0)));
    let refused: usize = futures_util::future::join_all(lives).await.into_iter().map(Result::unwrap).sum();
    assert!(refused > 20, "only {refused} requested ids were already taken, so the test proves little");
}

/// Older logs were written before ids were reserved. Of two open writes with the same id, either may be read as open,
/// but never neither.
#[test]
fn in_an_earlier_log_no_write_is_forgotten_for_another_with_its_id() {
    let line = |seq: u64, kind: &str, outcome: &str| {
        let time = "2026-07-01T12:00:00Z";
        format!(r#"{{"seq":{seq},"time":"{time}","kind":"{kind}","request":"job-1","outcome":"{outcome}"}}"#)
    };
    let open_after = |lines: &[(&str, &str)]| -> Vec<(u64, bool)> {
        let mut open = OpenWrites::default();
        for (seq, (kind, outcome)) in (1..).zip(lines) {
            let line = line(seq, kind, outcome);
            open.apply(&Record::parse(line.as_bytes()).unwrap());
        }
        open.list().map(|write| (write.doubt.intent, write.in_doubt)).collect()
    };
    let two = [("intent", ""), ("intent", "")];
    let after = |ends: &[(&'static str, &'static str)]| open_after(&[two.as_slice(), ends].concat());
    assert_eq!(after(&[]), [(1, false), (2, false)]);
    assert_eq!(after(&[("outcome", "done")]), [(1, false)]);
    assert_eq!(after(&[("outcome", "in-doubt"), ("outcome", "done")]), [(2, true)]);
    assert_eq!(after(&[("outcome", "done"), ("outcome", "in-doubt")]), [(1, true)]);
    assert_eq!(after(&[("outcome", "in-doubt"), ("outcome", "in-doubt"), ("settlement", "done")]), [(1, true)]);
    assert_eq!(after(&[("outcome", "in-doubt"), ("settlement", "done"), ("outcome", "rejected")]), []);
}
