//! What is wrong between the replicas: their database, this one's lease, and the others.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::state::OperatorState;
use super::problem::{Check, LINES_MAX, Problem, Severity, counted};
use crate::config::WithoutLease;
use crate::replicas::{ListedReplica, Replicas, ReplicasTrouble, TakesPart};

/// How long the overview tells of a step of the database's clock: a quota is closed for a minute at most.
const STEP_TOLD: Duration = Duration::from_secs(600);

/// What `/readyz` says, too: the database and the lease.
pub(super) fn engine(state: &OperatorState) -> Option<Problem> {
    let replicas = state.gateway.replicas.as_ref()?;
    let leaseless = replicas.without_lease_since();
    let refuses = replicas.config().without == WithoutLease::Refuse;
    let without = match (leaseless.is_some(), refuses) {
        (false, _) => {
            "Until the lease ends memory still answers. Writes, and reads that need the quota, are refused (MG241)."
        }
        (true, true) => {
            "The lease is over: memory answers nothing, and what needs the other replicas is refused (MG241)."
        }
        (true, false) => {
            "The lease is over: memory answers without knowing of the others' writes, and all else is refused (MG241)."
        }
    };
    if let Some(ReplicasTrouble { why, since }) = replicas.engine_lost() {
        let spoils = match (leaseless.is_some(), refuses) {
            (false, _) => "the database (the engine) cannot be used; until the lease ends memory still answers",
            (true, true) => "the database (the engine) cannot be used, and the lease is over: memory answers nothing",
            (true, false) => "the database (the engine) cannot be used, and the lease is over: memory answers unfenced",
        };
        let what = format!("The replicas' database cannot be used: {why}. {without}");
        let todo = format!(
            "See whether PostgreSQL at {} runs and answers (`makegate check --online`), and whether the other replicas reach it: if they do, \
             look at this machine's way to it. All goes on by itself when it is back.",
            replicas.engine().address()
        );
        let problem = Problem::spoiling((Check::Replicas, spoils), Severity::Degraded, "replicas-engine", what);
        return Some(problem.since(Some(state.wall_at(since))).todo(todo, "/replicas"));
    }
    let Some(since) = leaseless else { return healing(state, replicas) };
    let what = format!("This replica has no lease, although the database answers. {without}");
    let todo = "Wait for a lease: a replica that was given up has one after its second beat. If none comes, see how long the database takes \
                to answer (/replicas) and what the process log says.";
    let spoils = "the database (the engine) answers, but this replica has no lease";
    let problem = Problem::spoiling((Check::Replicas, spoils), Severity::Degraded, "replicas-lease", what);
    Some(problem.since(Some(state.wall_at(since))).todo(todo, "/replicas"))
}

/// A new epoch, in which not all replicas have told yet what they know.
fn healing(state: &OperatorState, replicas: &Replicas) -> Option<Problem> {
    if state.gateway.are_writes_whole() {
        return None;
    }
    let epoch = *replicas.epoch().borrow();
    let age = epoch.map(|epoch| state.gateway.clock.boot().saturating_sub(epoch.seen)).unwrap_or_default();
    let what = "The database has lost its soft state (it crashed or failed over, or this is the first replica), and not every replica has \
                told it yet what it knows. Writes are refused until then (MG241).";
    let todo = "Wait: it takes a second or two, or a lease if a replica is missing. If it lasts, see on /replicas which one is gone.";
    let spoils = "the database (the engine) has lost its soft state, and writes are refused until the replicas have told it what they know";
    let problem = Problem::spoiling((Check::Replicas, spoils), Severity::Degraded, "replicas-epoch", what);
    let now = state.gateway.clock.now();
    Some(problem.since(now.checked_sub(age).map(|since| state.wall_at(since))).todo(todo, "/replicas"))
}

/// What only the overview tells.
pub(super) fn others(state: &OperatorState) -> Vec<Problem> {
    let Some(replicas) = &state.gateway.replicas else { return Vec::new() };
    let roster = replicas.roster();
    let listed = roster.as_ref().map_or(&[][..], |roster| &roster.replicas);
    [gone(replicas, listed), clock_step(state, replicas)]
        .into_iter()
        .flatten()
        .chain(unlike(replicas, listed))
        .collect()
}

fn gone(replicas: &Replicas, listed: &[ListedReplica]) -> Option<Problem> {
    let own = |name: &str| name == &**replicas.name();
    let of_roster = listed.iter().filter(|one| one.state == TakesPart::Gone).map(|one| one.name.clone());
    let live: BTreeSet<_> = listed.iter().filter(|one| one.state == TakesPart::Live).map(|one| &*one.name).collect();
    // This replica may know it before the list does, but not better.
    let seen = replicas.gone().into_iter().filter(|name| !live.contains(&**name) && !has_left(listed, name));
    let names: BTreeSet<String> = of_roster.chain(seen).filter(|name| !own(name)).collect();
    let named: Vec<_> = names.iter().take(LINES_MAX).map(String::as_str).collect();
    let more =
        if names.len() > named.len() { format!(" and {} more", names.len() - named.len()) } else { String::new() };
    if named.is_empty() {
        return None;
    }
    let what = format!(
        "{} gone (ended, or silent for a lease): {}{more}. The others go on without, and look after writes that it left open.",
        counted(names.len(), "replica is", "replicas are"),
        named.join(", ")
    );
    let todo = "Start it again, or see why it cannot reach the database. If it will not come back: `makegate replicas leave` with its \
                configuration, so that nobody waits for it after a crash of the database.";
    Some(Problem::warning("replicas-gone", what).todo(todo, "/replicas"))
}

fn has_left(listed: &[ListedReplica], name: &str) -> bool {
    listed.iter().any(|one| one.name == name && one.state == TakesPart::Left)
}

fn clock_step(state: &OperatorState, replicas: &Replicas) -> Option<Problem> {
    let (at, by_ms) = replicas.last_clock_step()?;
    if state.gateway.clock.now().saturating_duration_since(at) > STEP_TOLD {
        return None;
    }
    let what = format!(
        "The clock of the replicas' database was set by {by_ms} ms. Each quota is closed for as long, a minute at most."
    );
    let todo = "Let a time service slew that machine's clock instead of setting it. Here there is nothing to do.";
    Some(Problem::warning("replicas-clock", what).since(Some(state.wall_at(at))).todo(todo, "/replicas"))
}

/// Live replicas that run something else than this one.
fn unlike(replicas: &Replicas, listed: &[ListedReplica]) -> Vec<Problem> {
    let [versions, configurations] = replicas.unlike(listed).map(|names| names.join(", "));
    let version = (!versions.is_empty()).then(|| {
        let what = format!("Other versions of makegate than this one's run on {versions}.");
        let todo = "Finish the update, or take it back: neighbouring releases work together, but an update that stopped hides something.";
        Problem::warning("replicas-unlike", what).todo(todo, "/replicas")
    });
    let configuration = (!configurations.is_empty()).then(|| {
        let what = format!("Other configurations than this one's are in force on {configurations}.");
        let todo = "Compare the files: callers, grants, quota and lifetimes should be the same for all. If names or ports alone differ, \
                    this line stays, and means nothing.";
        Problem::warning("replicas-unlike", what).todo(todo, "/replicas")
    });
    version.into_iter().chain(configuration).collect()
}
