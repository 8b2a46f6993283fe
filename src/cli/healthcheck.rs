//! `makegate healthcheck`: checks readiness, for container images that have no other HTTP client.

use clap::Args;
use http::StatusCode;

use super::client::OperatorClient;
use super::client_tls::TlsOptions;
use super::failure::CommandFailure;
use super::process;
use crate::ids::escape_invisible;

/// Checks whether a running makegate is ready.
///
/// Exit code 0: it is ready; 1: it is not ready, or cannot be reached.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate healthcheck
  makegate healthcheck --url http://127.0.0.1:9081")]
pub(super) struct HealthcheckCommand {
    /// The operator door to ask.
    #[arg(
        long,
        value_name = "URL",
        env = "MAKEGATE_OPERATOR_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8081"
    )]
    url: String,
    #[command(flatten)]
    tls: TlsOptions,
}

impl HealthcheckCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let client = OperatorClient::new(&self.url, &self.tls, None)?;
        let (status, body) = process::block_on(client.get("/readyz"))?;
        if status == StatusCode::OK {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&body);
        Err(CommandFailure::failed(format!("{}: not ready ({status}): {}", self.url, escape_invisible(why.trim()))))
    }
}
