//! The simulated Make Organizations API: stateful over all 25 operations, with Make's token check, quota and errors,
//! faults on request, and a list of what it received.
//!
//! It reads Make's document by itself and never the catalogue: tests compare two readings. What the document leaves
//! open follows the survey of live answers.

mod answer;
mod control;
mod door;
mod exchange;
mod faults;
mod fields;
mod operations;
mod query;
mod quota;
mod received;
mod seed;
mod state;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::clock::Clock;
use exchange::SandboxCore;
use faults::Pattern;
use state::View;

pub use faults::{Fault, FaultKind};
pub use quota::{MinuteWindow, SandboxBucket};
pub use received::{Received, TokenSeen};
pub use seed::{Seed, SeedPlan};

/// How long [`Sandbox::stop`] waits for what is under way.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// What a sandbox is to be like.
#[derive(Clone, Debug)]
pub struct SandboxSettings {
    /// The token that it takes.
    pub token: String,
    /// Requests per organization and minute, and `license.apiLimit`, where a seed sets no other.
    pub api_limit: u32,
    /// Requests per minute on paths without an organization.
    pub account_limit: u32,
    /// How long after a write reads without `wait=true` still show the state before it.
    pub lag: Duration,
    /// How the quota's minute is counted.
    pub window: MinuteWindow,
    /// Whether the 429 is JSON; Make's own is plain text.
    pub json_429: bool,
    /// The organizations it starts with.
    pub seed_organizations: Vec<Seed>,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self {
            token: "sandbox-token".to_owned(),
            api_limit: 240,
            account_limit: 240,
            lag: Duration::ZERO,
            window: MinuteWindow::Fixed,
            json_429: false,
            seed_organizations: Seed::demo(),
        }
    }
}

/// A running sandbox. Clones are handles of the same one; it serves until it is stopped, whoever drops its handles.
#[derive(Clone, Debug)]
pub struct Sandbox {
    core: Arc<SandboxCore>,
    address: SocketAddr,
}

impl Sandbox {
    /// Binds (port 0: any free one) and serves in the background.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(listen: SocketAddr, settings: SandboxSettings, clock: Clock) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let core = SandboxCore::new(settings, clock);
        core.tasks.spawn_until_stop(door::listen(Arc::clone(&core), listener));
        Ok(Self { core, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Arms a fault. The first armed fault that matches a request applies.
    pub fn fault(&self, fault: Fault) {
        self.core.lock().faults.arm(fault);
    }

    /// Clears all faults; what hangs ends.
    pub fn clear_faults(&self) {
        self.core.clear_faults();
    }

    /// What arrived, oldest first: the newest 100,000 requests at most.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.core.lock().log.all()
    }

    /// What arrived with this method (`*`: any) and path (wildcards as in [`Fault`]).
    #[must_use]
    pub fn received_of(&self, method: &str, path: &str) -> Vec<Received> {
        self.core.lock().log.of(&Pattern::new(method, path)).cloned().collect()
    }

    /// How many writes with this method and path took effect.
    #[must_use]
    pub fn effects(&self, method: &str, path: &str) -> usize {
        self.core.lock().log.of(&Pattern::new(method, path)).filter(|received| received.effect).count()
    }

    /// An organization's detail as it is now, past any lag and without a request; `None`: it does not exist.
    #[must_use]
    pub fn organization(&self, id: u64) -> Option<Value> {
        let api_limit = self.core.settings.api_limit;
        let inner = self.core.lock();
        inner.state.organization(id, View::Current).ok().map(|org| operations::detail(org, api_limit))
    }

    /// The hash of the pending invitation of this e-mail address, which Make would send there.
    #[must_use]
    pub fn invitation(&self, email: &str) -> Option<String> {
        let inner = self.core.lock();
        inner.state.invitations().find(|(_, invitation)| invitation.user.email == email).map(|(hash, _)| hash.clone())
    }

    /// Takes another token from now on (until a reset), as after a rotation at Make.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut self.core.lock().token);
    }

    /// Gives an organization another quota and `license.apiLimit`, as a change of plan does. Not a write: no lag.
    pub fn set_api_limit(&self, organization: u64, limit: u32) {
        self.core.lock().state.set_api_limit(organization, limit);
    }

    /// Everything back to the start: state, token, quota, faults, list.
    pub fn reset(&self) {
        self.core.reset();
    }

    /// Stops listening and closes every connection.
    pub async fn stop(&self) {
        self.core.tasks.stop();
        self.core.released.send_replace(());
        // What sleeps in a fault may be left behind: nobody waits for its answer any more.
        let _drained = self.core.tasks.drained(STOP_TIME_MAX).await;
    }
}
