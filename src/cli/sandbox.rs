//! `makegate sandbox`: runs only the simulated Make API.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::failure::CommandFailure;
use super::output::ServiceOutput;
use super::process::{self, ColorChoice, Signals};
use crate::clock::Clock;
use crate::config;
use crate::sandbox::{MinuteWindow, Sandbox as Simulated, SandboxSettings};

/// Runs only the simulated Make API.
///
/// It has all 25 operations on organizations, keeps state, checks the token and enforces quota. It starts with five
/// organizations, 11 to 15. Under /sandbox/ you can inject faults and list the requests it received.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate sandbox --listen 127.0.0.1:8082
  makegate sandbox --listen 127.0.0.1:8082 --api-limit 10 --lag 2s
  curl -H 'Authorization: Token sandbox-token' http://127.0.0.1:8082/api/v2/organizations")]
pub(super) struct SandboxCommand {
    /// Address to listen on; port 0: any free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082")]
    listen: SocketAddr,
    /// The token that clients must send.
    #[arg(long, default_value = "sandbox-token")]
    token: String,
    /// Quota per organization, in requests per minute.
    #[arg(long, value_name = "N", default_value_t = 240)]
    api_limit: u32,
    /// Quota for requests without an organization, in requests per minute.
    #[arg(long, value_name = "N", default_value_t = 240)]
    account_limit: u32,
    /// How long reads still return the old state after a write.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = config::duration)]
    lag: Duration,
    /// How to count the quota's minute: fixed (one minute after another) or sliding (the last 60 s).
    #[arg(long, value_enum, default_value = "fixed", hide_possible_values = true)]
    window: MinuteWindow,
    /// Send JSON when over quota, instead of plain text as Make does.
    #[arg(long)]
    json_429: bool,
}

impl SandboxCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        process::log("info", color)?;
        process::serve(self.serve())
    }

    async fn serve(&self) -> Result<(), CommandFailure> {
        let mut signals = Signals::listen()?;
        let started = Simulated::start(self.listen, self.settings(), Clock::system()).await;
        let sandbox = started.map_err(|error| listen_failure(self.listen, &error))?;
        ServiceOutput::begin().line(&format!("http://{}", sandbox.address()));
        signals.end().await;
        sandbox.stop().await;
        Ok(())
    }

    fn settings(&self) -> SandboxSettings {
        SandboxSettings {
            token: self.token.clone(),
            api_limit: self.api_limit,
            account_limit: self.account_limit,
            lag: self.lag,
            window: self.window,
            json_429: self.json_429,
            ..SandboxSettings::default()
        }
    }
}

fn listen_failure(address: SocketAddr, error: &io::Error) -> CommandFailure {
    CommandFailure::failed(format!("cannot listen on {address}: {error}; choose another address with --listen"))
}
