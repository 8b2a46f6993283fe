//! The circuit breaker refuses requests that would only time out.
//!
//! Any request can show that the upstream is unreachable (name, TCP, TLS), and that holds for all of them. A missing
//! response says something only about that operation on that organization; others may still be answered.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::catalogue::RetryClass;
use crate::clock::Clock;
use crate::config::Limits;
use crate::process_log::STATE;
use crate::vocabulary::word_enum;

/// `Retry-After` while a probe is due or in progress, whose end is unknown.
const PROBE_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of unresponsive operations to remember; beyond it the oldest is dropped.
const SILENT_OPERATIONS_MAX: usize = 4_096;

/// One operation of one organization.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// The operation's id.
    pub operation: Arc<str>,
    /// The organization in its path, if there is one.
    pub organization: Option<u64>,
}

/// What is refused for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BreakerScope {
    /// Everything: the upstream is unreachable.
    All,
    /// One operation on one organization, which got no response in time.
    Part(BreakerKey),
}

/// What a request's last attempt says about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerReport {
    /// The upstream responded, or closed the connection that the request was sent on.
    Reached,
    /// The upstream took the request and did not respond in time.
    Silent,
    /// A connection was open, but no request was sent on it.
    Connected,
    /// No connection could be opened.
    Unreachable,
    /// The attempt ended because of makegate's own limits.
    Nothing,
}

/// Counts consecutive failures, overall and per [`BreakerKey`].
pub struct Breaker {
    clock: Clock,
    failures: u32,
    open: Duration,
    open_max: Duration,
    state: Arc<Mutex<BreakerState>>,
}

struct BreakerState {
    all: Circuit,
    /// Operations that recently got no response.
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

word_enum! {
    /// The state of the breaker, for metrics and readiness.
    BreakerStatus {
        /// Requests pass.
        Closed = "closed",
        /// All requests are refused.
        Open = "open",
        /// The next `safe` request probes the upstream, or one is doing so now.
        Probing = "probing",
    }
}

/// The right to send a request upstream. Report its result to the breaker; a dropped permit counts for nothing.
pub struct BreakerPermit {
    state: Arc<Mutex<BreakerState>>,
    part: BreakerKey,
    probes_all: bool,
    probes_part: bool,
}

/// The breaker refuses a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerOpen {
    /// What the breaker refuses.
    pub what: BreakerScope,
    /// When to retry.
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

    /// Decides whether a request of this class may go upstream.
    ///
    /// # Errors
    /// [`BreakerOpen`] if it may not. Once the open period is over, one request probes. Only a `safe` request may probe
    /// whether the upstream is reachable, since a write could end in doubt; only a write can probe whether a write gets
    /// a response.
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

    /// What [`Breaker::permit`] would return, without taking the right to probe.
    ///
    /// # Errors
    /// As for [`Breaker::permit`].
    pub fn would_permit(&self, class: RetryClass, part: &BreakerKey) -> Result<(), BreakerOpen> {
        self.admits(&self.state(), class, part).map(drop)
    }

    /// Reports how the request with this permit ended.
    pub fn report(&self, mut permit: BreakerPermit, report: BreakerReport) {
        let (all, part) = match report {
            BreakerReport::Nothing => return,
            BreakerReport::Unreachable => (false, None),
            BreakerReport::Connected => (true, None),
            BreakerReport::Reached => (true, Some(true)),
            BreakerReport::Silent => (true, Some(false)),
        };
        let mut state = self.state();
        let probed = std::mem::take(&mut permit.probes_all);
        match self.update_circuit(&mut state.all, all, probed) {
            Some(true) => {
                tracing::error!(target: STATE, "the breaker is open: requests are refused until the upstream is reachable");
            }
            Some(false) => tracing::info!(target: STATE, "the breaker is closed: requests are sent upstream again"),
            None => {}
        }
        if let Some(answered) = part {
            let probed = std::mem::take(&mut permit.probes_part);
            self.update_part(&mut state, &permit.part, answered, probed);
        }
    }

    fn update_part(&self, state: &mut BreakerState, part: &BreakerKey, answered: bool, probed: bool) {
        if !state.silent.contains_key(part) {
            if answered || self.failures == 0 {
                return;
            }
            if state.silent.len() >= SILENT_OPERATIONS_MAX {
                let oldest = state.silent.iter().min_by_key(|(_, silent)| silent.since).map(|(part, _)| part.clone());
                oldest.and_then(|oldest| state.silent.remove(&oldest));
            }
        }
        let now = self.clock.now();
        let fresh = || SilentOperation { circuit: Circuit::Closed { failed: 0 }, since: now };
        let silent = state.silent.entry(part.clone()).or_insert_with(fresh);
        silent.since = now;
        match self.update_circuit(&mut silent.circuit, answered, probed) {
            Some(true) => {
                tracing::warn!(target: STATE, %part, "the breaker is open for one operation: the upstream does not respond to it");
            }
            Some(false) => {
                tracing::info!(target: STATE, %part, "the breaker is closed for one operation: the upstream responds to it again")
            }
            None => {}
        }
        if matches!(silent.circuit, Circuit::Closed { failed: 0 }) {
            state.silent.remove(part);
        }
    }

    /// Updates a circuit when a request ends: `Some(true)` if it opened, `Some(false)` if it closed.
    fn update_circuit(&self, circuit: &mut Circuit, good: bool, probed: bool) -> Option<bool> {
        let before = circuit.is_open();
        *circuit = match *circuit {
            Circuit::Closed { .. } if good => Circuit::Closed { failed: 0 },
            Circuit::Closed { failed } if self.failures == 0 || failed + 1 < self.failures => {
                Circuit::Closed { failed: failed.saturating_add(1).min(self.failures) }
            }
            Circuit::Closed { .. } => self.open_circuit(self.open),
            Circuit::Open { .. } if probed && good => Circuit::Closed { failed: 0 },
            Circuit::Open { span, .. } if probed => self.open_circuit(span.saturating_mul(2).min(self.open_max)),
            // The request began before the circuit opened and says nothing about now.
            open @ Circuit::Open { .. } => open,
        };
        let after = circuit.is_open();
        (before != after).then_some(after)
    }

    /// Decides whether a request may pass, and whether it probes everything or its own operation.
    fn admits(&self, state: &BreakerState, class: RetryClass, part: &BreakerKey) -> Result<(bool, bool), BreakerOpen> {
        let now = self.clock.now();
        let all = state.all.admits(now, class == RetryClass::Safe);
        let all = all.map_err(|retry_after| BreakerOpen { what: BreakerScope::All, retry_after })?;
        let part_admits = state.silent.get(part).map_or(Ok(false), |silent| silent.circuit.admits(now, true));
        let one =
            part_admits.map_err(|retry_after| BreakerOpen { what: BreakerScope::Part(part.clone()), retry_after })?;
        Ok((all, one))
    }

    /// The state of the breaker for all requests.
    #[must_use]
    pub fn status(&self) -> BreakerStatus {
        match self.state().all {
            Circuit::Closed { .. } => BreakerStatus::Closed,
            Circuit::Open { until, .. } if self.clock.now() < until => BreakerStatus::Open,
            Circuit::Open { .. } => BreakerStatus::Probing,
        }
    }

    /// The number of operations that are refused or probed because they got no response.
    #[must_use]
    pub fn silent_operations(&self) -> usize {
        self.state().silent.values().filter(|silent| silent.circuit.is_open()).count()
    }

    /// At most `most` of these operations.
    #[must_use]
    pub fn some_silent_operations(&self, most: usize) -> Vec<BreakerKey> {
        let state = self.state();
        let open = state.silent.iter().filter(|(_, silent)| silent.circuit.is_open());
        open.take(most).map(|(part, _)| part.clone()).collect()
    }

    fn open_circuit(&self, span: Duration) -> Circuit {
        Circuit::Open { until: self.clock.now() + span, span, probing: false }
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        lock(&self.state)
    }
}

impl Circuit {
    /// Whether a request may pass and would be the probe; otherwise when to retry.
    fn admits(&self, now: Instant, may_probe: bool) -> Result<bool, Duration> {
        match *self {
            Self::Closed { .. } => Ok(false),
            Self::Open { until, .. } if now < until => Err(until - now),
            Self::Open { probing, .. } if probing || !may_probe => Err(PROBE_RETRY_AFTER),
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

    fn request(breaker: &Breaker, class: RetryClass, report: BreakerReport) -> Result<(), BreakerOpen> {
        request_of(breaker, class, &part(11), report)
    }

    fn request_of(
        breaker: &Breaker,
        class: RetryClass,
        part: &BreakerKey,
        report: BreakerReport,
    ) -> Result<(), BreakerOpen> {
        breaker.permit(class, part).map(|permit| breaker.report(permit, report))
    }

    /// A breaker opened by five consecutive requests that did not arrive.
    fn opened(clock: &Clock) -> Breaker {
        let breaker = breaker(clock);
        for number in 1..=5 {
            request(&breaker, RetryClass::Once, BreakerReport::Unreachable).unwrap();
            assert_eq!(breaker.status() == BreakerStatus::Open, number == 5);
        }
        breaker
    }

    /// How long the breaker opened for. A movable clock also runs with the machine's, so the remaining time is not a
    /// round number.
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
        assert_eq!(open, BreakerOpen { what: BreakerScope::All, retry_after: PROBE_RETRY_AFTER });
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
        assert_eq!((breaker.status(), breaker.silent_operations()), (BreakerStatus::Closed, 1));
        // Only a write probes whether writes get a response.
        clock.advance(Duration::from_secs(5));
        let probe = breaker.permit(RetryClass::Once, &part(11)).ok().unwrap();
        assert!(breaker.permit(RetryClass::Once, &part(11)).is_err());
        breaker.report(probe, BreakerReport::Unreachable); // says nothing about this operation
        let probe = breaker.permit(RetryClass::Once, &part(11)).ok().unwrap();
        breaker.report(probe, BreakerReport::Reached);
        assert_eq!(
            (breaker.silent_operations(), breaker.state().silent.len()),
            (0, 0),
            "what is well is not remembered"
        );
    }

    /// A timeout proves that there was a connection, so it is no step toward refusing everything.
    #[test]
    fn silence_of_many_operations_never_refuses_everything() {
        let breaker = breaker(&Clock::movable());
        for organization in 0..u64::try_from(SILENT_OPERATIONS_MAX).unwrap() + 100 {
            request_of(&breaker, RetryClass::Safe, &part(organization), BreakerReport::Silent).unwrap();
        }
        assert_eq!(breaker.status(), BreakerStatus::Closed);
        let state = breaker.state();
        assert_eq!(state.silent.len(), SILENT_OPERATIONS_MAX);
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
