//! The log: whether it can be written, its disk, and the room for writes in doubt.

use std::time::Duration;

use super::super::state::OperatorState;
use super::problem::{Check, Problem, Severity, counted};

/// A trouble with shipping that is over sooner is none.
const SHIP_TROUBLE_MIN: Duration = Duration::from_secs(60);

pub(super) fn log(state: &OperatorState) -> Option<Problem> {
    let log = &state.gateway.log;
    let dir = log.dir().display();
    let outage = log.outage();
    let since = outage.as_ref().map(|outage| state.wall_at(outage.since));
    let cause = outage.as_ref().map_or("the disk does not answer", |outage| &outage.cause);
    let todo = if outage.as_ref().is_some_and(|outage| outage.is_disk_full) {
        format!(
            "Free space on the disk of {dir}: makegate tries again every second, and writes go on by themselves. Or lower audit.retention or \
             audit.retention_bytes, and restart makegate."
        )
    } else {
        format!(
            "See what is wrong with the disk of {dir} (the process log, dmesg, df). makegate tries again every second, and writes go on \
             by themselves."
        )
    };
    match (log.writable(), log.has_room()) {
        (true, true) if log.has_lost() => {
            let what = "A segment of the log was damaged while it was written to, and the log goes on in a new one.";
            let todo = format!(
                "Run `makegate audit verify {dir}` to see whether something was lost, and check the disk. This line goes with the next \
                 restart."
            );
            let why = "a segment was damaged while it was written to; see the process log";
            let problem = Problem::spoiling((Check::Log, why), Severity::Degraded, "log-damaged", what);
            Some(problem.todo(todo, "/audit?kind=event"))
        }
        (true, true) => None,
        (false, true) => {
            let what = format!("The log cannot be written, and writes are refused: {cause}.");
            let why = "it cannot be written, and writes are refused; see the process log";
            let problem = Problem::spoiling((Check::Log, why), Severity::Degraded, "log-outage", what).since(since);
            Some(problem.todo(todo, "/config"))
        }
        (_, false) => {
            let what =
                format!("The log cannot be written and its buffer is full, so every request is refused: {cause}.");
            let why = "it cannot be written, and its buffer is full; see the process log";
            let problem = Problem::spoiling((Check::Log, why), Severity::Failed, "log-outage", what).since(since);
            Some(problem.todo(todo, "/config"))
        }
    }
}

pub(super) fn disk(state: &OperatorState) -> Option<Problem> {
    let log = &state.gateway.log;
    let usage = log.disk_usage().filter(|usage| usage.is_nearly_full() && log.writable())?;
    let mib = |bytes: u64| bytes >> 20;
    let what = format!(
        "The log's disk is nearly full: {} MiB of {} MiB are free, and the log takes {} MiB. Once it is full, writes are refused.",
        mib(usage.free_bytes),
        mib(usage.size_bytes),
        mib(usage.used_bytes)
    );
    let todo = format!(
        "Free space on the disk of {}; or lower audit.retention or audit.retention_bytes, and restart makegate.",
        log.dir().display()
    );
    let why = "its disk is nearly full, and once it is, writes are refused";
    Some(Problem::spoiling((Check::Log, why), Severity::Degraded, "disk-nearly-full", what).todo(todo, "/config"))
}

/// Records that are not shipped to the other replicas' database, and those that never will be.
pub(super) fn shipping(state: &OperatorState) -> Vec<Problem> {
    let Some(shipping) = state.gateway.log.ship_state() else { return Vec::new() };
    let clock = &state.gateway.clock;
    let late = shipping.trouble.as_ref().filter(|trouble| {
        let waits = clock.now().saturating_duration_since(trouble.since);
        waits >= SHIP_TROUBLE_MIN && shipping.behind > 0
    });
    let late = late.map(|trouble| {
        let what = format!("{} are not shipped to the replicas' database: {}.", records(shipping.behind), trouble.cause);
        let todo = "See that makegate can reach the database and has its schema (`makegate check --online`). The records wait in this \
                    replica's log; retention keeps them until they are shipped, as long as audit.retention_bytes leaves room.";
        Problem::warning("shipping-behind", what).since(Some(state.wall_at(trouble.since))).todo(todo, "/audit")
    });
    let lost = (shipping.deleted > 0).then(|| {
        let what = format!(
            "{} of this replica were deleted before they were shipped, because the log has grown to audit.retention_bytes.",
            records(shipping.deleted)
        );
        let todo = "The replicas' database will never have them. Raise audit.retention_bytes, or ship less with replicas.records. This \
                    line goes with the next restart.";
        Problem::warning("records-not-shipped", what).todo(todo, "/audit?event=retention")
    });
    late.into_iter().chain(lost).collect()
}

fn records(count: u64) -> String {
    counted(count, "record", "records")
}

pub(super) fn doubts_room(state: &OperatorState) -> Option<Problem> {
    let room = state.gateway.log.doubts().room();
    let (taken, limit) = room.load();
    let what = format!(
        "Writes in doubt use up most of their room ({taken} of {limit}), and callers beyond their share are refused writes (MG184)."
    );
    let why = "writes in doubt use up most of limits.doubts, and callers beyond their share are refused writes: settle some; see /doubts";
    let problem = Problem::spoiling((Check::Doubts, why), Severity::Degraded, "doubts-nearly-full", what);
    room.is_nearly_full().then(|| problem.todo("Settle some: look in Make what became of them.", "/doubts"))
}

pub(super) fn open_doubts(state: &OperatorState) -> Option<Problem> {
    let doubts = state.gateway.log.doubts();
    let oldest = doubts.oldest()?;
    let (what, todo) = match doubts.count() {
        1 => (
            "1 write is in doubt: nobody knows whether Make carried it out, and equal writes of its caller are held."
                .to_owned(),
            "Look in Make what became of it, and settle it.",
        ),
        count => (
            format!(
                "{count} writes are in doubt: nobody knows whether Make carried them out, and equal writes of their callers are held."
            ),
            "Look in Make what became of each, and settle it.",
        ),
    };
    Some(Problem::warning("doubts", what).since(Some(oldest)).todo(todo, "/doubts"))
}
