//! The simulated Make Organizations API: all 25 operations with state, Make's token check, quota and errors, faults on
//! request, and a list of the requests it received.
//!
//! It is based on Make's document alone and never on the catalogue, so that tests compare two independent readings.
//! Where the document is silent, it follows observed live answers.

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

/// How long [`Sandbox::stop`] waits for requests in progress.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// Settings of a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxSettings {
    /// The token that requests must carry.
    pub token: String,
    /// Requests per organization and minute, and `license.apiLimit`, unless a seed sets its own.
    pub api_limit: u32,
    /// Requests per minute on paths without an organization.
    pub account_limit: u32,
    /// How long reads without `wait=true` still show the old state after a write.
    pub lag: Duration,
    /// How to count the quota's minute.
    pub window: MinuteWindow,
    /// Whether the 429 is JSON instead of plain text as from Make.
    pub json_429: bool,
    /// The initial organizations.
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

/// A running sandbox. Clones are handles to the same one; it runs until stopped, even if all handles are dropped.
#[derive(Clone, Debug)]
pub struct Sandbox {
    core: Arc<SandboxCore>,
    address: SocketAddr,
}

impl Sandbox {
    /// Binds the address (port 0: any free port) and serves in the background.
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

    /// The address it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Arms a fault. The first armed fault that matches a request applies.
    pub fn fault(&self, fault: Fault) {
        self.core.lock().faults.arm(fault);
    }

    /// Clears all faults and ends hanging requests.
    pub fn clear_faults(&self) {
        self.core.clear_faults();
    }

    /// The received requests, oldest first: at most the newest 100,000.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.core.lock().log.after(None, usize::MAX)
    }

    /// The received requests with this method (`*`: any) and path (wildcards as in [`Fault`]).
    #[must_use]
    pub fn received_of(&self, method: &str, path: &str) -> Vec<Received> {
        self.core.lock().log.of(&Pattern::new(method, path)).cloned().collect()
    }

    /// The number of writes with this method and path that took effect.
    #[must_use]
    pub fn effects(&self, method: &str, path: &str) -> usize {
        self.core.lock().log.of(&Pattern::new(method, path)).filter(|received| received.effect).count()
    }

    /// An organization's current detail, regardless of any lag and without a request; `None` if it does not exist.
    #[must_use]
    pub fn organization(&self, id: u64) -> Option<Value> {
        let api_limit = self.core.settings.api_limit;
        let inner = self.core.lock();
        inner.state.organization(id, View::Current).ok().map(|org| operations::detail(org, api_limit))
    }

    /// The hash of the pending invitation for this e-mail address, where Make would send it.
    #[must_use]
    pub fn invitation(&self, email: &str) -> Option<String> {
        let inner = self.core.lock();
        inner.state.invitations().find(|(_, invitation)| invitation.user.email == email).map(|(hash, _)| hash.clone())
    }

    /// Requires another token from now on (until a reset), as after a rotation at Make.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut self.core.lock().token);
    }

    /// Gives an organization another quota and `license.apiLimit`, as a change of plan does. Not a write, so without
    /// lag.
    pub fn set_api_limit(&self, organization: u64, limit: u32) {
        self.core.lock().state.set_api_limit(organization, limit);
    }

    /// Resets everything: state, token, quota, faults, list.
    pub fn reset(&self) {
        self.core.reset();
    }

    /// Stops listening and closes every connection.
    pub async fn stop(&self) {
        self.core.tasks.stop();
        self.core.released.send_replace(());
        // Requests sleeping in a fault may be left behind; nobody waits for their answers any more.
        let _drained = self.core.tasks.drained(STOP_TIME_MAX).await;
    }
}
