//! A caller's rate: kept by this process alone, or over all replicas.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use super::local_rate::{LimiterTerms, LocalRate};
use super::{OverRate, Remaining};
use crate::clock::Clock;
use crate::config::{self, Rate};
use crate::replicas::Replicas;
use crate::replicas::permits::{KnownRate, PermitAnswer, PermitTerms, Purse};

/// What a caller's rate says to a request.
pub enum Admission {
    /// Whether it may go on.
    Told(Result<Remaining, OverRate>),
    /// Only the engine that all replicas share knows; this asks it, for less than a second.
    Ask(Pin<Box<dyn Future<Output = Result<Remaining, OverRate>> + Send>>),
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told(told) => f.debug_tuple("Told").field(told).finish(),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

/// A caller's rate and who keeps it.
#[derive(Debug)]
pub(super) struct CallerRate {
    rate: Rate,
    /// As configured; the effective burst may be smaller.
    burst: u32,
    keeper: RateKeeper,
}

#[derive(Debug)]
enum RateKeeper {
    /// This process.
    Own(LocalRate),
    /// All replicas.
    Shared(Arc<SharedRate>),
}

impl CallerRate {
    pub(super) fn new(config: &config::CallerConfig, clock: &Clock, replicas: Option<&Arc<Replicas>>) -> Self {
        let terms = LimiterTerms::new(config.rate, config.burst);
        let keeper = match replicas {
            None => RateKeeper::Own(LocalRate::new(terms, clock)),
            Some(replicas) => RateKeeper::Shared(Arc::new(SharedRate::new(config, terms, clock, replicas))),
        };
        Self { rate: config.rate, burst: config.burst, keeper }
    }

    pub(super) fn has_settings(&self, config: &config::CallerConfig) -> bool {
        self.rate == config.rate && self.burst == config.burst
    }

    pub(super) fn admit(&self) -> Admission {
        match &self.keeper {
            RateKeeper::Own(local) => Admission::Told(local.admit()),
            RateKeeper::Shared(shared) => shared.admit(),
        }
    }
}

/// A rate that all replicas keep together.
#[derive(Debug)]
struct SharedRate {
    replicas: Arc<Replicas>,
    purse: Arc<Purse>,
    /// This replica's fraction, for when the engine cannot be asked. It stays the same over all such times, so that a replica that loses
    /// its engine again and again has no new burst each time.
    fraction: LocalRate,
}

impl SharedRate {
    fn new(config: &config::CallerConfig, terms: LimiterTerms, clock: &Clock, replicas: &Arc<Replicas>) -> Self {
        let permits = PermitTerms::new(terms.interval, terms.burst);
        let max = replicas.config().max.max(1);
        let fraction = Rate { per: config.rate.per.saturating_mul(max), ..config.rate };
        Self {
            replicas: replicas.clone(),
            purse: replicas.permits().purse(config.name.clone(), permits),
            fraction: LocalRate::new(LimiterTerms::new(fraction, config.burst / max), clock),
        }
    }

    fn admit(self: &Arc<Self>) -> Admission {
        if !self.replicas.lease().holds() {
            return Admission::Told(self.admit_alone());
        }
        let permits = self.replicas.permits();
        if permits.take(&self.purse) {
            return Admission::Told(Ok(remaining(&permits.known(&self.purse))));
        }
        let known = permits.known(&self.purse);
        if !known.next_in.is_zero() {
            return Admission::Told(Err(over(&known)));
        }
        let shared = self.clone();
        Admission::Ask(Box::pin(async move {
            let permits = shared.replicas.permits().clone();
            match permits.clone().ask(shared.purse.clone()).await {
                PermitAnswer::Granted => Ok(remaining(&permits.known(&shared.purse))),
                PermitAnswer::OverRate => Err(over(&permits.known(&shared.purse))),
                PermitAnswer::Unknown => shared.admit_alone(),
            }
        }))
    }

    fn admit_alone(&self) -> Result<Remaining, OverRate> {
        self.fraction.admit().map_err(|over| OverRate { one_of: self.replicas.config().max, ..over })
    }
}

const fn remaining(known: &KnownRate) -> Remaining {
    Remaining { left: known.left, whole_in: known.whole_in }
}

const fn over(known: &KnownRate) -> OverRate {
    OverRate { retry_after: known.next_in, remaining: Remaining { left: 0, whole_in: known.whole_in }, one_of: 1 }
}
