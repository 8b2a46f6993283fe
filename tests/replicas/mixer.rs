//! What goes wrong, at random: links, replicas and the engine, one or several at a time.

use std::time::Duration;

use fastrand::Rng;

use crate::support::fleet::Fleet;
use crate::support::link::LinkState;
use crate::support::postgres::Shutdown;

/// What a mixer may do besides links and pauses of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faults {
    /// `kill -9` of replicas.
    pub(crate) kills: bool,
    /// Crashes of the engine.
    pub(crate) crashes: bool,
    /// Steps of the engine's clock.
    pub(crate) steps: bool,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    EngineLink(LinkState),
    UpstreamLink(LinkState),
    PauseReplica,
    KillReplica,
    KillBackend,
    CrashEngine,
    PauseEngine,
    StepClock(i64),
    PinSnapshot,
}

pub(crate) struct Mixer<'f> {
    fleet: &'f mut Fleet,
    random: Rng,
    faults: Faults,
    /// What it did, for a test that fails.
    pub(crate) done: Vec<String>,
}

impl<'f> Mixer<'f> {
    pub(crate) fn new(fleet: &'f mut Fleet, random: Rng, faults: Faults) -> Self {
        Self { fleet, random, faults, done: Vec::new() }
    }

    /// So many mishaps; afterwards everything runs, is linked, and has a lease.
    pub(crate) async fn play(mut self, mishaps: usize) -> Vec<String> {
        for _ in 0..mishaps {
            let mishap = self.choose();
            let replica = self.random.usize(..self.fleet.replicas.len());
            // Up to two leases: some end before a lease does, and some after.
            let lasts = self.fleet.lease.mul_f64(self.random.f64() * 2.0);
            self.done.push(format!("{mishap:?} at {replica} for {lasts:?}"));
            self.happen(mishap, replica, lasts).await;
            tokio::time::sleep(Duration::from_millis(self.random.u64(..1_000))).await;
        }
        self.fleet.heal();
        self.fleet.settled().await;
        self.done
    }

    fn choose(&mut self) -> Mishap {
        let Faults { kills, crashes, steps } = self.faults;
        let delay = LinkState::Delay(Duration::from_millis(self.random.u64(10..300)));
        // Set back by less than a minute, it would keep the callers waiting for their rates, and show nothing else.
        let seconds = *self.random.choice(&[-120, -2, -1, 1, 2, 120]).unwrap();
        let mut all = vec![
            Mishap::EngineLink(LinkState::Cut),
            Mishap::EngineLink(LinkState::Hold),
            Mishap::EngineLink(LinkState::Deaf),
            Mishap::EngineLink(LinkState::HalfOpen),
            Mishap::EngineLink(delay),
            Mishap::UpstreamLink(LinkState::Cut),
            Mishap::UpstreamLink(LinkState::Hold),
            Mishap::UpstreamLink(delay),
            Mishap::PauseReplica,
            Mishap::PauseEngine,
            Mishap::PinSnapshot,
        ];
        all.extend(kills.then_some([Mishap::KillReplica; 2]).into_iter().flatten());
        all.extend(crashes.then_some([Mishap::KillBackend, Mishap::CrashEngine]).into_iter().flatten());
        all.extend(steps.then_some([Mishap::StepClock(seconds); 2]).into_iter().flatten());
        *self.random.choice(&all).unwrap()
    }

    async fn happen(&mut self, mishap: Mishap, replica: usize, lasts: Duration) {
        let fleet = &mut *self.fleet;
        let one = &mut fleet.replicas[replica];
        match mishap {
            Mishap::EngineLink(state) => {
                one.engine.set(state);
                tokio::time::sleep(lasts).await;
                one.engine.set(LinkState::Open);
            }
            // Shorter than the second by which a slot outlives its attempt: what arrives later than that is the network's fault.
            Mishap::UpstreamLink(state) => {
                one.upstream.set(state);
                tokio::time::sleep(lasts.min(Duration::from_millis(800))).await;
                one.upstream.set(LinkState::Open);
            }
            Mishap::PauseReplica => {
                one.pause();
                tokio::time::sleep(lasts).await;
                one.resume();
            }
            Mishap::KillReplica => {
                one.kill();
                tokio::time::sleep(lasts).await;
                one.start().await;
            }
            Mishap::KillBackend => {
                fleet.engine.kill_backend();
            }
            Mishap::CrashEngine => {
                fleet.engine.stop(Shutdown::Immediate);
                tokio::time::sleep(lasts / 2).await;
                fleet.engine.start_again();
            }
            Mishap::PauseEngine => {
                fleet.engine.pause();
                tokio::time::sleep(lasts).await;
                fleet.engine.resume();
            }
            Mishap::StepClock(seconds) => fleet.engine.step_clock(seconds),
            Mishap::PinSnapshot => {
                let session = fleet.engine.pin_snapshot(crate::support::fleet::DATABASE);
                tokio::time::sleep(lasts).await;
                drop(session);
            }
        }
    }
}
