//! The upstream: Make's API, one attempt at a time. The token goes in here and nowhere else.
//!
//! The loop over attempts is the gateway's, since each attempt takes a turn of the quota; what it asks is here:
//! [`Breaker`] says whether to begin at all, [`Upstream::connection`] when it is a caller's turn, [`Upstream::attempt`] sends
//! once, [`Upstream::next`] says whether it may go again, [`effect`] what a write's attempts did.

mod attempt;
mod body;
mod breaker;
mod budget;
mod connect;
mod ending;
mod interim;
mod pool;
mod retry;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use crate::clock::Clock;
use crate::config;
use crate::hash;
use crate::process_log::FaultState;
use crate::shares::ShareHolder;
use crate::watched_files::Snapshot;

use body::BodyMemory;
use budget::RetryBudget;
use connect::Connector;
use pool::Pool;

pub use attempt::ConnectionPermit;
pub use body::UpstreamBody;
pub use breaker::{Breaker, BreakerKey, BreakerOpen, BreakerPermit, BreakerReport, BreakerScope, BreakerStatus};
pub use connect::SetupError;
pub use ending::{AttemptError, Ending, ProxyError, UpstreamAnswer};
pub use retry::{EndedAttempt, RetryDecision, WriteEffect, ambiguous, effect, retry_after};
pub use token::{InvalidToken, Token};

/// What goes upstream on behalf of a caller.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// Path and query, rendered from the template.
    pub target: String,
    /// The caller's header fields that may go on. `Host`, `Authorization`, `User-Agent`, `Accept-Encoding` and
    /// `Content-Length` are set here, over whatever is in it.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Whose share of the answers' memory the answer takes.
    pub answers: Arc<ShareHolder>,
}

/// The one upstream: its connections, its token, its budgets.
pub struct Upstream {
    host: HeaderValue,
    token: ArcSwap<HeldToken>,
    token_refused: FaultState,
    pool: Arc<Pool>,
    memory: BodyMemory,
    budget: RetryBudget,
    breaker: Breaker,
    limits: config::Limits,
    clock: Clock,
}

struct HeldToken {
    token: Token,
    generation: u64,
}

impl Upstream {
    /// The upstream as configured; `files` has its authorities. Opens no connection yet.
    ///
    /// # Errors
    /// [`SetupError`]: no connection could ever be made; says what to change.
    pub fn new(
        settings: &config::UpstreamConfig,
        limits: &config::Limits,
        token: Token,
        clock: Clock,
        files: &Snapshot,
    ) -> Result<Self, SetupError> {
        let authority = &settings.url.authority;
        let dialer = Connector::new(settings, files)?;
        Ok(Self {
            host: HeaderValue::from_str(authority).map_err(|_| SetupError::Host(authority.clone()))?,
            token: ArcSwap::from_pointee(HeldToken { token, generation: 0 }),
            token_refused: FaultState::default(),
            pool: Arc::new(Pool::new(dialer, settings.connections, settings.idle, clock.clone())),
            memory: BodyMemory::new(limits.answer_bytes),
            budget: RetryBudget::new(limits, clock.clone()),
            breaker: Breaker::new(limits, clock.clone()),
            limits: limits.clone(),
            clock,
        })
    }

    /// Another token from now on; attempts under way keep theirs. The same token again changes nothing.
    /// `true`: it was another.
    pub fn set_token(&self, token: Token) -> bool {
        let held = self.token.load();
        if held.token == token {
            return false;
        }
        self.token.store(Arc::new(HeldToken { token, generation: held.generation + 1 }));
        true
    }

    /// Grows with every change of the token: a 401 to an attempt that began at another generation may go again.
    #[must_use]
    pub fn token_generation(&self) -> u64 {
        self.token.load().generation
    }

    /// Does the upstream refuse the token?
    #[must_use]
    pub fn refuses_token(&self) -> bool {
        self.token_refused.is_ongoing()
    }

    /// May a request go again after this attempt, and when? Takes from the caller's retry budget what it allows.
    #[must_use]
    pub fn next(&self, caller: &Arc<str>, attempted: &EndedAttempt<'_>) -> RetryDecision {
        // Without chance the pause is the longest: nobody is hurt by that.
        let dice = || hash::random::<8>().map_or(u64::MAX, u64::from_ne_bytes);
        match retry::decide(attempted, &self.limits, self.clock.wall(), dice) {
            RetryDecision::Again { .. } if !self.budget.take(caller) => RetryDecision::Stop,
            next @ (RetryDecision::Again { .. } | RetryDecision::Stop) => next,
        }
    }

    /// Are most connections free?
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.pool.is_quiet()
    }

    /// How many connections are in use, and how many requests wait for one.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        self.pool.load()
    }

    /// Whether requests may begin at all.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }
}
