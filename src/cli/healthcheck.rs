//! `makegate healthcheck`: checks readiness, for container images that have no other HTTP client.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use http::StatusCode;

use super::client::OperatorClient;
use super::client_tls::TlsOptions;
use super::failure::CommandFailure;
use super::{process, source};
use crate::config;
use crate::ids::escape_invisible;

/// Asked if nothing says otherwise: the operator door of a configuration that leaves its address out.
const DEFAULT_URL: &str = "http://127.0.0.1:8081";

/// Checks whether a running makegate is ready.
///
/// With --config, asks the door for scrapers that the configuration opens, or else its operator door. A mistake in the
/// file is no obstacle, because a running makegate goes on without what is wrong.
///
/// Exit code 0: it is ready; 1: it is not ready, or cannot be reached.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate healthcheck --config makegate.toml
  makegate healthcheck --url http://127.0.0.1:9081")]
pub(super) struct HealthcheckCommand {
    /// Ask the makegate that runs with this configuration [env: MAKEGATE_CONFIG].
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// The door to ask; if neither is given, http://127.0.0.1:8081 [env: MAKEGATE_OPERATOR_URL].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    tls: TlsOptions,
}

impl HealthcheckCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let client = self.door()?;
        let (status, body) = process::block_on(client.get("/readyz"))?;
        if status == StatusCode::OK {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&body);
        Err(CommandFailure::failed(format!("{}: not ready ({status}): {}", client.url(), escape_invisible(why.trim()))))
    }

    /// Options take precedence over the environment, and there a door over a file.
    fn door(&self) -> Result<OperatorClient, CommandFailure> {
        let url = self.url.clone().or_else(|| source::variable(source::URL).filter(|_| self.config.is_none()));
        let (url, tls) = match url {
            Some(url) => (url, self.tls.clone()),
            None => self.configured()?.unwrap_or_else(|| (DEFAULT_URL.to_owned(), self.tls.clone())),
        };
        OperatorClient::new(&url, &tls, None)
    }

    fn configured(&self) -> Result<Option<(String, TlsOptions)>, CommandFailure> {
        let file = self.config.clone().or_else(|| source::variable(source::CONFIG).map(PathBuf::from));
        let Some(file) = file else { return Ok(None) };
        match config::read_despite_mistakes(&file) {
            Ok(config) => Ok(source::door_for_probes(&config, &self.tls)),
            Err(why) => {
                let told = format!("cannot read {}: {why}; asking {DEFAULT_URL}", file.display());
                writeln!(io::stderr(), "warning: {}", escape_invisible(&told))?;
                Ok(None)
            }
        }
    }
}
