//! The breaker: what cannot be had is refused at once instead of after its time.
//!
//! That the upstream cannot be reached (name, TCP, TLS) is known from anybody's requests and holds for all. That it does not
//! answer is known of one operation of one organization only, and holds for that: others may be answered well.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::catalogue::RetryClass;
use crate::clock::Clock;
use crate::config::Limits;
use crate::process_log::STATE;

/// What a refused request is told when a probe is due or under way: its end is not known.
const PROBE_GUESS: Duration = Duration::from_secs(1);
/// So many operations of organizations that do not answer are known at once; for a further one the oldest goes.
const SILENT_MAX: usize = 4_096;

/// One operation of one organization.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// The operation's id.
    pub operation: Arc<str>,
    /// The organization in its path, if there is one.
    pub organization: Option<u64>,
}

/// What does not go upstream for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BreakerScope {
    /// Anything: the upstream could not be reached.
    All,
    /// This: it was not answered in time.
    Part(BreakerKey),
}

/// What a request's last attempt tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerReport {
    /// The upstream answered, or ended the connection that the request went out on.
    Reached,
    /// The upstream took the request and did not answer in time.
    Silent,
    /// There was a connection to the upstream, on which nothing was asked.
    Connected,
    /// There was no connection to the upstream.
    Unreachable,
    /// The attempt ended for a reason of this side's own.
    Nothing,
}

/// Counts failures in a row, for everything and for each [`BreakerKey`].
pub struct Breaker {
    clock: Clock,
    failures: u32,
    open: Duration,
    open_max: Duration,
    state: Arc<Mutex<BreakerState>>,
}

struct BreakerState {
    all: Circuit,
    /// Those parts that were not answered lately.
    silent: HashMap<BreakerKey, SilentOperation>,
}

struct SilentOperation {
    circuit: Circuit,
    since: Instant,
}

#[derive(Clone, Copy)]
enum Circuit {
    Closed { failed: u32 },
    Open { until: Instant, span: Duration, probing: bool },
}

/// What the breaker is doing, for metrics and readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerStatus {
    /// Everything passes.
    Closed,
    /// Everything is refused.
    Open,
    /// The next `safe` request finds out, or one is doing so.
    Probing,
}

/// A request's right to go upstream. Reported back to the breaker; dropped, it counts as nothing.
pub struct BreakerPermit {
    state: Arc<Mutex<BreakerState>>,
    part: BreakerKey,
    probes_all: bool,
    probes_part: bool,
}

/// The breaker refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerOpen {
    /// What is refused.
    pub what: BreakerScope,
    /// When to come again.
    pub retry_after: Duration,
}

impl Breaker {
    pub(super) fn new(limits: &Limits, clock: Clock) -> Self {
        let state = BreakerState { all: Circuit::Closed { failed: 0 }, silent: HashMap::new() };
        Self {
            clock,
            failures: limits.breaker_failures,
            open: limits.breaker_open,
            open_max: limits.breaker_open_max.max(limits.breaker_open),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// May a request of this class go upstream?
    ///
    /// # Errors
    /// [`BreakerOpen`]: not now. When the time of what is open is over, one request finds out how it is. Whether the upstream can be
    /// reached only a `safe` one may find out, since a write could end in doubt; whether a write is answered only a write can.
    pub fn permit(&self, class: RetryClass, part: &BreakerKey) -> Result<BreakerPermit, BreakerOpen> {
        let mut state = self.state();
        let (probes_all, probes_part) = self.admits(&state, class, part)?;
        if probes_all {
            state.all.set_probing(true);
        }
        if probes_part && let Some(silent) = state.silent.get_mut(part) {
            silent.circuit.set_probing(true);
        }
        Ok(BreakerPermit { state: self.state.clone(), part: part.clone(), probes_all, probes_part })
    }

    /// What [`Breaker::permit`] would say, without taking the right to probe.
    ///
    /// # Errors
    /// As there.
    pub fn would_permit(&self, class: RetryClass, part: &BreakerKey) -> Result<(), BreakerOpen> {
        self.admits(&self.state(), class, part).map(drop)
    }

    /// How a request that had `pass` ended.
    pub fn report(&self, mut pass: BreakerPermit, told: BreakerReport) {
        let (all, part) = match told {
            BreakerReport::Nothing => return,
            BreakerReport::Unreachable => (false, None),
            BreakerReport::Connected => (true, None),
            BreakerReport::Reached => (true, Some(true)),
            BreakerReport::Silent => (true, Some(false)),
        };
        let mut state = self.state();
        let probed = std::mem::take(&mut pass.probes_all);
        match self.turn(&mut state.all, all, probed) {
            Some(true) => {
                tracing::error!(target: STATE, "the breaker is open: requests are refused until the upstream can be reached");
            }
            Some(false) => tracing::info!(target: STATE, "the breaker is closed: requests go upstream again"),
            None => {}
        }
        if let Some(answered) = part {
            let probed = std::mem::take(&mut pass.probes_part);
            self.turn_part(&mut state, &pass.part, answered, probed);
        }
    }

    fn turn_part(&self, state: &mut BreakerState, part: &BreakerKey, answered: bool, probed: bool) {
        if !state.silent.contains_key(part) {
            if answered || self.failures == 0 {
                return;
            }
            if state.silent.len() >= SILENT_MAX {
                let oldest = state.silent.iter().min_by_key(|(_, silent)| silent.since).map(|(part, _)| part.clone());
                oldest.and_then(|oldest| state.silent.remove(&oldest));
            }
        }
        let now = self.clock.now();
        let fresh = || SilentOperation { circuit: Circuit::Closed { failed: 0 }, since: now };
        let silent = state.silent.entry(part.clone()).or_insert_with(fresh);
        silent.since = now;
        match self.turn(&mut silent.circuit, answered, probed) {
            Some(true) => {
                tracing::warn!(target: STATE, %part, "the breaker is open for one operation: the upstream does not answer it");
            }
            Some(false) => {
                tracing::info!(target: STATE, %part, "the breaker is closed for one operation: the upstream answers it again")
            }
            None => {}
        }
        if matches!(silent.circuit, Circuit::Closed { failed: 0 }) {
            state.silent.remove(part);
        }
    }

    /// What a request's end does to a circuit: `Some(true)` if that opened it, `Some(false)` if it closed it.
    fn turn(&self, circuit: &mut Circuit, good: bool, probed: bool) -> Option<bool> {
        let before = circuit.is_open();
        *circuit = match *circuit {
            Circuit::Closed { .. } if good => Circuit::Closed { failed: 0 },
            Circuit::Closed { failed } if self.failures == 0 || failed + 1 < self.failures => {
                Circuit::Closed { failed: failed.saturating_add(1).min(self.failures) }
            }
            Circuit::Closed { .. } => self.opened(self.open),
            Circuit::Open { .. } if probed && good => Circuit::Closed { failed: 0 },
            Circuit::Open { span, .. } if probed => self.opened(span.saturating_mul(2).min(self.open_max)),
            // It began before the circuit opened: old news.
            open @ Circuit::Open { .. } => open,
        };
        let after = circuit.is_open();
        (before != after).then_some(after)
    }

    /// May such a request pass, and is it the probe of everything, and of its part?
    fn admits(&self, state: &BreakerState, class: RetryClass, part: &BreakerKey) -> Result<(bool, bool), BreakerOpen> {
        let now = self.clock.now();
        let all = state.all.admits(now, class == RetryClass::Safe);
        let all = all.map_err(|retry_after| BreakerOpen { what: BreakerScope::All, retry_after })?;
        let part_admits = state.silent.get(part).map_or(Ok(false), |silent| silent.circuit.admits(now, true));
        let one =
            part_admits.map_err(|retry_after| BreakerOpen { what: BreakerScope::Part(part.clone()), retry_after })?;
        Ok((all, one))
    }

    /// What it is doing to everything.
    #[must_use]
    pub fn status(&self) -> BreakerStatus {
        match self.state().all {
            Circuit::Closed { .. } => BreakerStatus::Closed,
            Circuit::Open { until, .. } if self.clock.now() < until => BreakerStatus::Open,
            Circuit::Open { .. } => BreakerStatus::Probing,
        }
    }

    /// How many operations of organizations are refused, or probed, because they were not answered.
    #[must_use]
    pub fn silent(&self) -> usize {
        self.state().silent.values().filter(|silent| silent.circuit.is_open()).count()
    }

    fn opened(&self, span: Duration) -> Circuit {
        Circuit::Open { until: self.clock.now() + span, span, probing: false }
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        lock(&self.state)
    }
}

impl Circuit {
    /// May a request pass, and would it be the one that finds out? Else when to come again.
    fn admits(&self, now: Instant, may_probe: bool) -> Result<bool, Duration> {
        match *self {
            Self::Closed { .. } => Ok(false),
            Self::Open { until, .. } if now < until => Err(until - now),
            Self::Open { probing, .. } if probing || !may_probe => Err(PROBE_GUESS),
            Self::Open { .. } => Ok(true),
        }
    }

    fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    fn set_probing(&mut self, now: bool) {
        if let Self::Open { probing, .. } = self {
            *probing = now;
        }
    }
}

impl Drop for BreakerPermit {
    fn drop(&mut self) {
        if !self.probes_all && !self.probes_part {
            return;
        }
        let mut state = lock(&self.state);
        if self.probes_all {
            state.all.set_probing(false);
        }
        if self.probes_part
            && let Some(silent) = state.silent.get_mut(&self.part)
        {
            silent.circuit.set_probing(false);
        }
    }
}

impl fmt::Display for BreakerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.organization {
            Some(organization) => write!(f, "{} of organization {organization}", self.operation),
            None => write!(f, "{}", self.operation),
        }
    }
}

fn lock(state: &Mutex<BreakerState>) -> MutexGuard<'_, BreakerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::limits;

    fn breaker(clock: &Clock) -> Breaker {
        Breaker::new(&limits(), clock.clone())
    }

    fn part(organization: u64) -> BreakerKey {
        BreakerKey { operation: "organizations.get".into(), organization: Some(organization) }
    }

    fn request(breaker: &Breaker, class: RetryClass, told: BreakerReport) -> Result<(), BreakerOpen> {
        request_of(breaker, class, &part(11), told)
    }

    fn request_of(
        breaker: &Breaker,
        class: RetryClass,
        part: &BreakerKey,
        told: BreakerReport,
    ) -> Result<(), BreakerOpen> {
        breaker.permit(class, part).map(|pass| breaker.report(pass, told))
    }

    /// Opened by five requests in a row that did not arrive.
    fn opened(clock: &Clock) -> Breaker {
        let breaker = breaker(clock);
        for number in 1..=5 {
            request(&breaker, RetryClass::Once, BreakerReport::Unreachable).unwrap();
            assert_eq!(breaker.status() == BreakerStatus::Open, number == 5);
        }
        breaker
    }

    /// For how long it opened; a movable clock runs on with the machine's, so what is left of that is no round number.
    fn open_for(breaker: &Breaker) -> Duration {
        let open = breaker.would_permit(RetryClass::Safe, &part(11)).unwrap_err();
        let state = breaker.state();
        let circuit = match &open.what {
            BreakerScope::All => state.all,
            BreakerScope::Part(part) => state.silent[part].circuit,
        };
        let Circuit::Open { span, .. } = circuit else { panic!("it is closed") };
        assert!(open.retry_after <= span);
        span
    }

    #[test]
    fn five_in_a_row_open_it_and_one_that_arrives_begins_anew() {
        let breaker = breaker(&Clock::movable());
        for _ in 0..3 {
            for _ in 0..4 {
                request(&breaker, RetryClass::Safe, BreakerReport::Unreachable).unwrap();
            }
            request(&breaker, RetryClass::Safe, BreakerReport::Reached).unwrap();
        }
        for _ in 0..4 {
            request(&breaker, RetryClass::Safe, BreakerReport::Unreachable).unwrap();
        }
        drop(breaker.permit(RetryClass::Safe, &part(11)).ok().unwrap());
        request(&breaker, RetryClass::Safe, BreakerReport::Nothing).unwrap();
        assert_eq!(breaker.status(), BreakerStatus::Closed, "neither a dropped pass nor this side's own bounds count");
        request(&breaker, RetryClass::Safe, BreakerReport::Unreachable).unwrap();
        assert_eq!(breaker.status(), BreakerStatus::Open);
        assert_eq!(open_for(&breaker), Duration::from_secs(5));
    }

    #[test]
    fn one_read_probes_while_all_others_wait() {
        let clock = Clock::movable();
        let breaker = opened(&clock);
        clock.advance(Duration::from_secs(5));
        assert_eq!(breaker.status(), BreakerStatus::Probing);
        for class in [RetryClass::Once, RetryClass::Idempotent] {
            assert!(breaker.permit(class, &part(11)).is_err());
        }
        let probe = breaker.permit(RetryClass::Safe, &part(11)).ok().unwrap();
        let open = breaker.permit(RetryClass::Safe, &part(12)).err().unwrap();
        assert_eq!(open, BreakerOpen { what: BreakerScope::All, retry_after: PROBE_GUESS });
        drop(probe);
        let probe = breaker.permit(RetryClass::Safe, &part(11)).ok().unwrap();
        breaker.report(probe, BreakerReport::Reached);
        assert_eq!(breaker.status(), BreakerStatus::Closed);
        assert!(breaker.permit(RetryClass::Once, &part(11)).is_ok());
    }

    #[test]
    fn each_probe_that_fails_doubles_the_time_to_a_minute() {
        let clock = Clock::movable();
        for failure in [BreakerReport::Unreachable, BreakerReport::Silent] {
            let breaker = breaker(&clock);
            for _ in 0..5 {
                request(&breaker, RetryClass::Safe, failure).unwrap();
            }
            for seconds in [5, 10, 20, 40, 60, 60] {
                assert_eq!(open_for(&breaker), Duration::from_secs(seconds));
                clock.advance(Duration::from_secs(seconds));
                request(&breaker, RetryClass::Safe, failure).unwrap();
            }
            clock.advance(Duration::from_secs(60));
            request(&breaker, RetryClass::Safe, BreakerReport::Reached).unwrap();
            for _ in 0..5 {
                request(&breaker, RetryClass::Safe, failure).unwrap();
            }
            assert_eq!(open_for(&breaker), Duration::from_secs(5), "once closed, it begins anew");
        }
    }

    #[test]
    fn what_is_not_answered_is_refused_for_its_organization_and_operation_alone() {
        let clock = Clock::movable();
        let breaker = breaker(&clock);
        for _ in 0..5 {
            request(&breaker, RetryClass::Safe, BreakerReport::Silent).unwrap();
        }
        let open = breaker.permit(RetryClass::Safe, &part(11)).err().unwrap();
        assert_eq!(open.what, BreakerScope::Part(part(11)));
        let other = BreakerKey { operation: "organizations.usage".into(), ..part(11) };
        assert!(
            breaker.permit(RetryClass::Safe, &other).is_ok() && breaker.permit(RetryClass::Once, &part(12)).is_ok()
        );
        assert_eq!((breaker.status(), breaker.silent()), (BreakerStatus::Closed, 1));
        // A write is found out about by a write: nothing else tells.
        clock.advance(Duration::from_secs(5));
        let probe = breaker.permit(RetryClass::Once, &part(11)).ok().unwrap();
        assert!(breaker.permit(RetryClass::Once, &part(11)).is_err());
        breaker.report(probe, BreakerReport::Unreachable); // that tells nothing of it
        let probe = breaker.permit(RetryClass::Once, &part(11)).ok().unwrap();
        breaker.report(probe, BreakerReport::Reached);
        assert_eq!((breaker.silent(), breaker.state().silent.len()), (0, 0), "what is well is not remembered");
    }

    /// A time-out proves that there was a connection: it is no step towards refusing everything.
    #[test]
    fn silence_of_many_operations_never_refuses_everything() {
        let breaker = breaker(&Clock::movable());
        for organization in 0..u64::try_from(SILENT_MAX).unwrap() + 100 {
            request_of(&breaker, RetryClass::Safe, &part(organization), BreakerReport::Silent).unwrap();
        }
        assert_eq!(breaker.status(), BreakerStatus::Closed);
        let state = breaker.state();
        assert_eq!(state.silent.len(), SILENT_MAX);
        assert!(!state.silent.contains_key(&part(0)) && state.silent.contains_key(&part(200)), "the oldest have gone");
    }

    #[test]
    fn what_began_before_it_opened_tells_nothing() {
        let clock = Clock::movable();
        let breaker = breaker(&clock);
        let old: Vec<_> = (0..7).map(|_| breaker.permit(RetryClass::Safe, &part(11)).ok().unwrap()).collect();
        for (number, pass) in old.into_iter().enumerate() {
            breaker.report(pass, if number == 6 { BreakerReport::Reached } else { BreakerReport::Unreachable });
        }
        assert_eq!(breaker.status(), BreakerStatus::Open);
        assert_eq!(open_for(&breaker), Duration::from_secs(5));
    }

    #[test]
    fn zero_is_never() {
        let breaker = Breaker::new(&Limits { breaker_failures: 0, ..limits() }, Clock::movable());
        for _ in 0..100 {
            request(&breaker, RetryClass::Safe, BreakerReport::Unreachable).unwrap();
            request(&breaker, RetryClass::Safe, BreakerReport::Silent).unwrap();
        }
    }
}
