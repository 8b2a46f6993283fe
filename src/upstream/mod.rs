//! The upstream: Make's API, one attempt at a time. The token is added here and nowhere else.
//!
//! The loop over attempts lives in the gateway, because each attempt needs a quota slot. It uses: [`Breaker`] to decide
//! whether to begin at all, [`Upstream::acquire_connection`] to wait for a caller's turn, [`Upstream::attempt`] to send once,
//! [`Upstream::decide_retry`] to decide whether to retry, and [`effect`] to tell what a write's attempts did.

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
mod token_search;
mod token_writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use tokio_util::sync::CancellationToken;

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
pub use ending::{AttemptError, Ending, EndingKind, ProxyError, UpstreamAnswer, is_from_make, is_json};
pub use retry::{EndedAttempt, RetryDecision, ambiguous, effect, retry_after};
pub use token::{InvalidToken, Token};

/// What goes upstream on behalf of a caller.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Method.
    pub method: Method,
    /// Path and query, rendered from the template.
    pub target: String,
    /// The caller's header fields that may be forwarded. `Host`, `Authorization`, `User-Agent`, `Accept-Encoding` and
    /// `Content-Length` are set here and replace any given ones.
    pub headers: HeaderMap,
    /// The complete body.
    pub body: Bytes,
    /// Whose share of response memory the answer counts against.
    pub answers: Arc<ShareHolder>,
}

/// The upstream, with its connections, token and budgets.
pub struct Upstream {
    url: config::BaseUrl,
    host: HeaderValue,
    token: ArcSwap<HeldToken>,
    token_refused: FaultState,
    pool: Arc<Pool>,
    memory: BodyMemory,
    budget: RetryBudget,
    breaker: Breaker,
    limits: config::Limits,
    clock: Clock,
    /// Cancelled when another upstream takes its place.
    retired: CancellationToken,
}

struct HeldToken {
    token: Token,
    generation: u64,
    /// Has the upstream accepted or refused it?
    is_judged: AtomicBool,
}

impl HeldToken {
    fn new(token: Token, generation: u64) -> Self {
        Self { token, generation, is_judged: AtomicBool::new(false) }
    }
}

/// What the upstream said of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenVerdict {
    /// Nothing yet.
    Untried,
    /// It was accepted last.
    Accepted,
    /// It is refused, since then.
    Refused(Instant),
    /// The token before it is refused, since then, and it was not tried yet.
    Replaced(Instant),
}

impl Upstream {
    /// Sets up the configured upstream; `files` holds its CA file. Opens no connection yet.
    ///
    /// # Errors
    /// [`SetupError`] if no connection could ever be made; it says what to change.
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
            url: settings.url.clone(),
            host: HeaderValue::from_str(authority).map_err(|_| SetupError::Host(authority.clone()))?,
            token: ArcSwap::from_pointee(HeldToken::new(token, 0)),
            token_refused: FaultState::default(),
            pool: Arc::new(Pool::new(dialer, settings.connections, settings.idle, clock.clone())),
            memory: BodyMemory::new(limits.answer_bytes),
            budget: RetryBudget::new(limits, clock.clone()),
            breaker: Breaker::new(limits, clock.clone()),
            limits: limits.clone(),
            clock,
            retired: CancellationToken::new(),
        })
    }

    /// Where it is.
    #[must_use]
    pub const fn url(&self) -> &config::BaseUrl {
        &self.url
    }

    /// Sends nothing from now on: another upstream has taken its place. What was sent before may still be answered.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// Has no other upstream taken its place?
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        !self.retired.is_cancelled()
    }

    /// Uses this token from now on; requests already sent keep theirs. Returns whether the token changed.
    pub fn set_token(&self, token: Token) -> bool {
        let held = self.token.load();
        if held.token == token {
            return false;
        }
        self.token.store(Arc::new(HeldToken::new(token, held.generation + 1)));
        true
    }

    /// Grows with every token change: an attempt that began with an earlier generation may be retried after a 401.
    #[must_use]
    pub fn token_generation(&self) -> u64 {
        self.token.load().generation
    }

    /// Whether the upstream rejects the token.
    #[must_use]
    pub fn refuses_token(&self) -> bool {
        self.token_refused.is_ongoing()
    }

    /// Since when the upstream rejects the token.
    #[must_use]
    pub fn token_refused_since(&self) -> Option<Instant> {
        self.token_refused.since()
    }

    /// What the upstream said of the token.
    #[must_use]
    pub fn token_verdict(&self) -> TokenVerdict {
        match (self.token_refused.since(), self.token.load().is_judged.load(Ordering::Relaxed)) {
            (None, false) => TokenVerdict::Untried,
            (None, true) => TokenVerdict::Accepted,
            (Some(since), true) => TokenVerdict::Refused(since),
            (Some(since), false) => TokenVerdict::Replaced(since),
        }
    }

    /// Since when no connection to the upstream could be opened.
    #[must_use]
    pub fn unreachable_since(&self) -> Option<Instant> {
        self.pool.unreachable_since()
    }

    /// Decides whether and when to retry after this attempt. A retry is charged to the caller's retry budget.
    #[must_use]
    pub fn decide_retry(&self, caller: &Arc<str>, attempted: &EndedAttempt<'_>) -> RetryDecision {
        // If there is no randomness, use the longest pause, which is harmless.
        let random = || hash::random::<8>().map_or(u64::MAX, u64::from_ne_bytes);
        match retry::decide(attempted, &self.limits, self.clock.wall(), random) {
            RetryDecision::Retry { .. } if !self.budget.take(caller) => RetryDecision::Stop,
            next @ (RetryDecision::Retry { .. } | RetryDecision::Stop) => next,
        }
    }

    /// Whether most connections are free.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.pool.is_quiet()
    }

    /// The number of connections in use and of requests waiting for one.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        self.pool.load()
    }

    /// The breaker, which decides whether requests may begin at all.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }
}
