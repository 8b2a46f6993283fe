//! A round: callers at all replicas while a mixer makes things go wrong, and afterwards one look at all of it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use makegate::clock::Clock;
use makegate::hash;
use makegate::sandbox::MinuteWindow;
use makegate::tasks::Tasks;
use serde_json::Value;

use crate::callers::{Callers, creates, make_variables, order};
use crate::history::{Deed, Ended, Known, Line, Operation, forgotten, judged, sent_twice, stale_reads, wrong_records};
use crate::mixer::{Faults, Mixer};
use crate::support::Plan;
use crate::support::fleet::{Fleet, FleetPlan, wait};
use crate::support::postgres::Postgres;
use crate::support::random::number;

/// Callers of one round.
const CALLERS: u64 = 6;
/// Mishaps of one round.
const MISHAPS: usize = 6;
/// What Make allows each organization per minute, in a window that slides.
const LIMIT: u32 = 600;

/// The seeds of a test: one at random, or the one that is asked for; in the long form, as many as fit into
/// `MAKEGATE_REPLICAS_SECONDS`.
pub(crate) async fn rounds(faults: Faults) {
    if !Postgres::available() || (faults.steps && !Postgres::clock_available()) {
        return;
    }
    let clock = Clock::system();
    let end = clock.now() + Duration::from_secs(number("MAKEGATE_REPLICAS_SECONDS").unwrap_or(0));
    let mut judged = 0;
    loop {
        let seed = number("MAKEGATE_SEED").unwrap_or_else(|| u64::from(u32::from_ne_bytes(hash::random().unwrap())));
        println!("MAKEGATE_SEED={seed}");
        judged += Round::play(seed, faults).await;
        if clock.now() >= end || number("MAKEGATE_SEED").is_some() {
            break;
        }
    }
    println!("{judged} pairs of write and read");
    assert!(judged > 50, "too few to prove anything");
}

fn plan() -> Plan {
    Plan::default()
        .set("upstream", &format!("quota = \"{LIMIT}/min\"\nlook = false"))
        .set("upstream", "deadline = \"6s\"\nwrite_deadline = \"12s\"\nattempt = \"2s\"\nwrite_attempt = \"3s\"")
        .set("limits", "breaker_failures = 0\nretry_percent = 100\nretry_floor = 1000")
        .set("cache.lifetime", "\"variables.list\" = \"5m\"")
}

struct Round {
    fleet: Fleet,
    history: Vec<Operation>,
    /// Were replicas killed?
    kills: bool,
    /// What went wrong, and its seed.
    story: String,
}

impl Round {
    async fn play(seed: u64, faults: Faults) -> usize {
        let mut random = Rng::with_seed(seed);
        let plan = FleetPlan {
            plan,
            is_clocked: faults.steps,
            sandbox: |sandbox| {
                (sandbox.api_limit, sandbox.account_limit) = (LIMIT, LIMIT);
                sandbox.window = MinuteWindow::Sliding;
            },
            ..FleetPlan::default()
        };
        let mut fleet = plan.start().await;
        make_variables(&fleet.sandbox).await;
        let callers = Callers::new(fleet.replicas.iter().map(|replica| replica.home.gateway).collect());
        let tasks = Tasks::new();
        let playing: Vec<_> =
            (0..CALLERS).map(|caller| tasks.spawn(callers.clone().play(caller, random.fork()))).collect();
        let mishaps = Mixer::new(&mut fleet, random, faults).play(MISHAPS).await;
        // What everybody sees now that all is well.
        tokio::time::sleep(fleet.lease).await;
        callers.over.store(true, Ordering::SeqCst);
        let history = join_all(playing).await.into_iter().flat_map(Result::unwrap).collect();
        let story = format!("MAKEGATE_SEED={seed}: {mishaps:#?}");
        let round = Self { fleet, history, kills: faults.kills, story };
        round.check().await
    }

    fn holds(&self, promise: &str, found: &[String]) {
        let Self { fleet, story, .. } = self;
        assert!(found.is_empty(), "promise {promise}: {found:#?}\n{story}\n{}", fleet.logs());
    }

    async fn check(self) -> usize {
        let Self { fleet, history, story, .. } = &self;
        let order = order(&fleet.sandbox);
        self.holds("3", &stale_reads(history, &order));
        let creates = creates(&fleet.sandbox);
        self.holds("4", &sent_twice(creates.iter().map(String::as_str)));
        // Two leases are enough; a slow machine may take longer.
        let mut known = Known::default();
        let mut found = Vec::new();
        for _ in 0..120 {
            known = known_by_all(fleet).await;
            found = forgotten(&known, &BTreeSet::new());
            if found.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.holds("5", &found);
        self.holds("5", &self.untold(&known));
        let logs: Vec<Vec<Line>> = fleet.replicas.iter().map(|replica| lines(&replica.log())).collect();
        // What is no write is answered before its record is on disk: a kill in between takes it away.
        let lasts = |request: &String| !self.kills || known.intended.contains(request);
        let answered: Vec<Operation> =
            history.iter().filter(|operation| operation.request.as_ref().is_some_and(lasts)).cloned().collect();
        self.holds("6", &wrong_records(&answered, &logs, None));
        shipped(fleet).await;
        let received = fleet.sandbox.received();
        let drawn: Vec<String> = received
            .iter()
            .filter(|received| received.status == Some(429))
            .map(|received| format!("429 drawn by {} {}", received.method, received.path))
            .collect();
        self.holds("9", &drawn);
        let doubts = known.doubts.first().map_or(0, BTreeSet::len);
        println!("{} operations, {} received, {doubts} in doubt\n{story}", history.len(), received.len());
        judged(history)
    }

    /// Writes whose caller was told of an end that no replica knows.
    fn untold(&self, known: &Known) -> Vec<String> {
        let ended = self.history.iter().filter(|operation| matches!(operation.deed, Deed::Write(_, _, Ended::Done)));
        let requests = ended.filter_map(|operation| Some((operation.request.as_ref()?, operation)));
        // The replay of a key's answer is a request without a write of its own.
        let lost = requests.filter(|(id, _)| known.intended.contains(*id) && !known.settled.contains(*id));
        lost.map(|(_, operation)| format!("no outcome of {operation:?}")).collect()
    }
}

/// Waits until the engine has each record of each log exactly once.
pub(crate) async fn shipped(fleet: &Fleet) {
    for replica in fleet.replicas.iter().filter(|replica| replica.runs()) {
        replica.flushed().await;
    }
    wait("each record is shipped once", async || {
        let rows = fleet.sql("select replica, seq from mg.record");
        let names: Vec<&str> = fleet.replicas.iter().map(|replica| &*replica.name).collect();
        let rows: Vec<(usize, u64)> = rows
            .lines()
            .map(|row| {
                let (name, seq) = row.split_once('|').unwrap();
                (names.iter().position(|known| *known == name).unwrap(), seq.parse().unwrap())
            })
            .collect();
        let logs: Vec<Vec<Line>> = fleet.replicas.iter().map(|replica| lines(&replica.log())).collect();
        wrong_records(&[], &logs, Some(&rows)).is_empty()
    })
    .await;
}

/// What all replicas know of all writes.
pub(crate) async fn known_by_all(fleet: &Fleet) -> Known {
    let mut known = Known::default();
    for replica in &fleet.replicas {
        replica.flushed().await;
        for record in replica.log() {
            let Some(request) = record["request"].as_str().map(str::to_owned) else { continue };
            match record["kind"].as_str().unwrap() {
                "intent" => {
                    known.intended.insert(request);
                }
                "outcome" | "settlement" if record["outcome"] != "in-doubt" => {
                    known.settled.insert(request);
                }
                _ => {}
            }
        }
        known.doubts.push(replica.doubts().await.into_iter().collect());
    }
    known
}

/// What a log says of requests.
pub(crate) fn lines(log: &[Value]) -> Vec<Line> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    log.iter()
        .map(|record| Line {
            seq: record["seq"].as_u64().unwrap(),
            kind: text(&record["kind"]).unwrap(),
            request: text(&record["request"]),
        })
        .collect()
}
