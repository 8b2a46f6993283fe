//! `makegate serve`: the service, from its configuration to its orderly end.

use std::io;
use std::net::SocketAddr;

use clap::Args;

use super::ConfigFile;
use super::check;
use super::failure::CommandFailure;
use super::process::{self, ColorChoice, ProcessSignal, Signals};
use crate::clock::Clock;
use crate::config::LoadedConfig;
use crate::process_log::EACH;
use crate::service::Service;

/// Runs the service.
///
/// SIGTERM and SIGINT end it in order: not ready, finish what is under way within `limits.drain`, flush the log, exit 0;
/// a second one ends it at once (within 1 s it is the same one). SIGHUP reads the configuration, the secrets and the certificates again; so does a
/// change of their contents, within 5 s. The process log goes to stderr: text on a terminal, else a JSON object a line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate serve --config /etc/makegate/makegate.toml
  MAKEGATE_LOG=debug makegate serve --config makegate.toml
  kill -HUP $(pidof makegate)               put a changed configuration in force")]
pub(super) struct ServeCommand {
    #[command(flatten)]
    config: ConfigFile,
}

impl ServeCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        process::no_core_dumps()?;
        process::log("info", color)?;
        let read = check::configuration(&self.config.path, color.colors(&io::stderr()))?;
        for warning in &read.warnings {
            check::tell(&read.origins.file, warning);
        }
        process::all_descriptors();
        process::serve(serve(read))
    }
}

async fn serve(read: LoadedConfig) -> Result<(), CommandFailure> {
    let mut signals = Signals::listen()?;
    let service = start(read).await?;
    let (gateway, operator) = (service.gateway_addresses(), service.operator_addresses());
    let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (gateway, operator) = (texts(gateway), texts(operator));
    tracing::info!(target: EACH, version = env!("CARGO_PKG_VERSION"), ?gateway, ?operator, "makegate serves");
    while signals.next().await == ProcessSignal::Reload {
        // A file system that hangs must not keep the next signal waiting.
        service.begin_reload();
    }
    end(service, &mut signals).await
}

pub(super) async fn start(read: LoadedConfig) -> Result<Service, CommandFailure> {
    let started = Service::start(read, Clock::system()).await;
    started.map_err(|error| CommandFailure { code: error.exit_code(), message: Some(error.to_string()) })
}

/// Shuts down in order; a second signal ends it at once.
pub(super) async fn end(service: Service, signals: &mut Signals) -> Result<(), CommandFailure> {
    tracing::info!(target: EACH, "makegate ends: what is under way is finished");
    tokio::select! {
        finished = service.shut_down() => {
            if !finished {
                tracing::warn!(target: EACH, "not everything was finished in limits.drain");
            }
            Ok(())
        }
        () = signals.insist() => Err(CommandFailure::failed("a second signal: ended before everything was finished")),
    }
}
