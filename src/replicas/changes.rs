//! What changes between the replicas, for the log: each change once, in the log of each replica that notices it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::{Replicas, ReplicasTrouble};

/// The most changes that wait to be recorded; further ones are dropped.
const WAITING_MAX: usize = 256;
/// The most names of replicas that are known.
const NAMES_MAX: usize = 1_000;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaChange {
    /// The engine cannot be used any more, and why.
    EngineLost(String),
    /// It can be used again.
    EngineBack,
    /// This replica has no lease any more.
    LeaseLost,
    /// It has one again.
    LeaseBack,
    /// The engine's soft state is another than before.
    NewEpoch(Uuid),
    /// The engine's clock was set, by so many milliseconds.
    ClockStepped(u64),
    /// Another replica has ended, or was given up.
    Gone(String),
    /// It takes part again.
    Back(String),
}

impl ReplicaChange {
    /// The name of its event.
    #[must_use]
    pub const fn event(&self) -> &'static str {
        match self {
            Self::EngineLost(_) => "replicas-engine-lost",
            Self::EngineBack => "replicas-engine-back",
            Self::LeaseLost => "replicas-lease-lost",
            Self::LeaseBack => "replicas-lease-back",
            Self::NewEpoch(_) => "replicas-epoch",
            Self::ClockStepped(_) => "replicas-clock",
            Self::Gone(_) => "replicas-gone",
            Self::Back(_) => "replicas-back",
        }
    }

    /// What its event says.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::EngineLost(why) => format!("this replica shares nothing with the others: {why}"),
            Self::EngineBack => "this replica shares with the others again".to_owned(),
            Self::LeaseLost => {
                "the lease is over: from now on another replica's write may change what memory holds here".to_owned()
            }
            Self::LeaseBack => "this replica has a lease again".to_owned(),
            Self::NewEpoch(id) => {
                format!(
                    "the database has lost its soft state: this replica has joined the epoch {id}, and emptied its memory"
                )
            }
            Self::ClockStepped(by) => format!("the clock of the replicas' database was set, by {by} ms"),
            Self::Gone(name) => format!("the replica {name} is gone: it has ended, or was silent for a lease"),
            Self::Back(name) => format!("the replica {name} is back"),
        }
    }
}

/// What is known of the others, and what is to be recorded.
#[derive(Debug)]
pub(super) struct ReplicaChanges {
    sender: mpsc::Sender<ReplicaChange>,
    receiver: Mutex<Option<mpsc::Receiver<ReplicaChange>>>,
    /// Whether each other replica is alive.
    alive: Mutex<BTreeMap<String, bool>>,
    lease: Mutex<LeaseLoss>,
    pub(super) lease_extended: Notify,
    clock_step: Mutex<Option<(Instant, u64)>>,
}

#[derive(Debug)]
struct LeaseLoss {
    since: Option<Instant>,
    /// Whether the loss was recorded: at the start there is nothing to lose.
    is_told: bool,
}

impl ReplicaChanges {
    pub(super) fn new(now: Instant) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
            alive: Mutex::default(),
            lease: Mutex::new(LeaseLoss { since: Some(now), is_told: false }),
            lease_extended: Notify::new(),
            clock_step: Mutex::default(),
        }
    }

    pub(super) fn note(&self, change: ReplicaChange) {
        let _too_many = self.sender.try_send(change);
    }

    /// Takes note of which other members are alive. `is_whole`: each had time to join the epoch, so whoever is not there is gone.
    /// Returns whether anything has changed.
    pub(super) fn note_members(&self, rows: &[(String, bool)], is_whole: bool) -> bool {
        let mut has_changed = false;
        let mut alive = locked(&self.alive);
        for (name, is_alive) in rows {
            match alive.get(name) {
                Some(true) if !is_alive => self.note(ReplicaChange::Gone(name.clone())),
                Some(false) if *is_alive => self.note(ReplicaChange::Back(name.clone())),
                None if alive.len() >= NAMES_MAX => continue,
                Some(_) | None => {}
            }
            has_changed |= alive.insert(name.clone(), *is_alive) != Some(*is_alive);
        }
        if is_whole {
            let is_missing = |name: &String| !rows.iter().any(|(known, _)| known == name);
            for (name, is_alive) in alive.iter_mut().filter(|(name, is_alive)| **is_alive && is_missing(name)) {
                *is_alive = false;
                has_changed = true;
                self.note(ReplicaChange::Gone(name.clone()));
            }
        }
        has_changed
    }

    fn note_lease(&self, holds: bool, now: Instant) {
        let mut lease = locked(&self.lease);
        match (holds, lease.since) {
            (false, None) => {
                *lease = LeaseLoss { since: Some(now), is_told: true };
                self.note(ReplicaChange::LeaseLost);
            }
            (true, Some(_)) => {
                if lease.is_told {
                    self.note(ReplicaChange::LeaseBack);
                }
                lease.since = None;
            }
            (true, None) | (false, Some(_)) => {}
        }
    }
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replicas {
    /// The changes from the start on, for whoever records them: one alone.
    #[must_use]
    pub fn changes(&self) -> Option<mpsc::Receiver<ReplicaChange>> {
        locked(&self.changes.receiver).take()
    }

    /// Since when this replica has had no lease, if it has none.
    #[must_use]
    pub fn without_lease_since(&self) -> Option<Instant> {
        if self.lease.holds() {
            return None;
        }
        // The watch may be some milliseconds late.
        locked(&self.changes.lease).since.or_else(|| Some(self.clock.now()))
    }

    /// Since when the engine cannot be used, and why, if it cannot.
    #[must_use]
    pub fn engine_lost(&self) -> Option<ReplicasTrouble> {
        locked(&self.trouble).clone()
    }

    /// Names of the other replicas that are gone.
    #[must_use]
    pub fn gone(&self) -> Vec<String> {
        let alive = locked(&self.changes.alive);
        alive.iter().filter(|(_, is_alive)| !**is_alive).map(|(name, _)| name.clone()).collect()
    }

    /// The engine's clock was found to be set, by so many milliseconds.
    pub fn note_clock_step(&self, by_ms: u64) {
        self.counters.clock_steps.fetch_add(1, Ordering::Relaxed);
        *locked(&self.changes.clock_step) = Some((self.clock.now(), by_ms));
        self.changes.note(ReplicaChange::ClockStepped(by_ms));
    }

    /// When the engine's clock was set last, if this replica has noticed it, and by how many milliseconds.
    #[must_use]
    pub fn last_clock_step(&self) -> Option<(Instant, u64)> {
        *locked(&self.changes.clock_step)
    }

    /// Notices when the lease ends, and when there is one again.
    pub(super) async fn watch_lease(self: Arc<Self>) {
        loop {
            let left = self.lease.left();
            self.changes.note_lease(!left.is_zero(), self.clock.now());
            let pause = if left.is_zero() { Duration::from_secs(1) } else { left };
            let _extended = self.clock.timeout(pause, self.changes.lease_extended.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(changes: &ReplicaChanges) -> Vec<ReplicaChange> {
        let mut receiver = locked(&changes.receiver);
        std::iter::from_fn(|| receiver.as_mut().unwrap().try_recv().ok()).collect()
    }

    fn rows(rows: &[(&str, bool)]) -> Vec<(String, bool)> {
        rows.iter().map(|(name, is_alive)| ((*name).to_owned(), *is_alive)).collect()
    }

    #[test]
    fn each_change_is_noted_once() {
        let clock = crate::clock::Clock::frozen();
        let changes = ReplicaChanges::new(clock.now());
        let _changed = changes.note_members(&rows(&[("a", true), ("b", false)]), true);
        let _changed = changes.note_members(&rows(&[("a", false), ("b", false)]), true);
        let _changed = changes.note_members(&rows(&[("a", false), ("b", true)]), true);
        let expected = [ReplicaChange::Gone("a".into()), ReplicaChange::Back("b".into())];
        assert_eq!(noted(&changes), expected);
        // In a new epoch each has some time to join.
        let _changed = changes.note_members(&[], false);
        assert_eq!(noted(&changes), []);
        let _changed = changes.note_members(&[], true);
        let _changed = changes.note_members(&[], true);
        assert_eq!(noted(&changes), [ReplicaChange::Gone("b".into())]);
    }

    #[test]
    fn a_lease_that_was_never_there_is_not_lost() {
        let clock = crate::clock::Clock::frozen();
        let changes = ReplicaChanges::new(clock.now());
        changes.note_lease(false, clock.now());
        changes.note_lease(true, clock.now());
        assert_eq!(noted(&changes), []);
        for holds in [false, false, true, true] {
            changes.note_lease(holds, clock.now());
        }
        assert_eq!(noted(&changes), [ReplicaChange::LeaseLost, ReplicaChange::LeaseBack]);
    }
}
