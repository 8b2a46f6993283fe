//! `makegate serve`: runs the service until a signal stops it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use tracing::field;

use super::ConfigFile;
use super::check;
use super::confine::Confinement;
use super::failure::CommandFailure;
use super::process::{self, ColorChoice, ProcessSignal, Signals};
use super::service_manager::{self, ServiceManager};
use crate::clock::Clock;
use crate::config::{self, LoadedConfig};
use crate::process_log::ALWAYS;
use crate::service::{PassedSockets, Service};

/// Runs the service.
///
/// SIGTERM and SIGINT shut it down gracefully: it reports not ready, finishes work in progress within `limits.drain`,
/// flushes the log and exits with 0. A second signal stops it at once (unless it comes within 1 s of the first). SIGHUP
/// reloads the configuration, secrets and certificates; changes to their contents are also picked up within 5 s. The
/// process log goes to stderr: text on a terminal, otherwise one JSON object per line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate serve --config /etc/makegate/makegate.toml
  MAKEGATE_LOG=debug makegate serve --config makegate.toml
  kill -HUP $(pidof makegate)               reload the configuration")]
pub(super) struct ServeCommand {
    #[command(flatten)]
    config: ConfigFile,
}

impl ServeCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        process::disable_core_dumps()?;
        let sockets = service_manager::passed_sockets();
        let read = config::read(&self.config.path);
        // Before there is any other thread, even that of the log.
        let confinement = read.as_ref().ok().map(Confinement::begin);
        process::log("info", color)?;
        let read = check::reported(read, color.colors(&io::stderr()))?;
        confinement.iter().for_each(Confinement::log);
        for warning in read.warnings.iter().chain(&check::root_warning()) {
            check::log_mistake(&read.origins.file, warning);
        }
        process::raise_descriptor_limit();
        process::serve(serve(read, sockets?, confinement))
    }
}

async fn serve(
    read: LoadedConfig,
    sockets: PassedSockets,
    confinement: Option<Confinement>,
) -> Result<(), CommandFailure> {
    let mut signals = Signals::listen()?;
    let service = start_on(read, sockets).await?;
    confinement.and_then(Confinement::into_readable).into_iter().for_each(|folders| service.note_readable(folders));
    let (gateway, operator) = (service.gateway_addresses(), service.operator_addresses());
    let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (gateway, operator) = (texts(gateway), texts(operator));
    let metrics = Some(texts(service.metrics_addresses())).filter(|listed| !listed.is_empty()).map(field::debug);
    tracing::info!(target: ALWAYS, version = env!("CARGO_PKG_VERSION"), ?gateway, ?operator, metrics, "makegate started");
    let manager = Arc::new(ServiceManager::from_environment());
    manager.ready("serving");
    loop {
        tokio::select! {
            () = say_that_it_serves(&manager, &service) => {}
            signal = signals.next() => match signal {
                // In the background: a hanging file system must not delay the next signal.
                ProcessSignal::Reload => begin_reload(&service, &manager),
                ProcessSignal::End => break,
            }
        }
    }
    manager.stopping();
    end(service, &mut signals).await
}

fn begin_reload(service: &Service, manager: &Arc<ServiceManager>) {
    manager.reloading();
    let manager = manager.clone();
    service.begin_reload(move |reloaded| match reloaded {
        Ok(()) => manager.ready("serving"),
        Err(why) => manager.ready(&format!("serving; the last reload failed: {why}")),
    });
}

/// Waits until the service manager wants to hear again that the service answers, and tells it if it does.
async fn say_that_it_serves(manager: &ServiceManager, service: &Service) {
    match manager.watchdog() {
        Some(time_max) => tokio::time::sleep(time_max / 3).await,
        None => std::future::pending().await,
    }
    manager.serves_if(service.answers()).await;
}

async fn start_on(read: LoadedConfig, sockets: PassedSockets) -> Result<Service, CommandFailure> {
    let started = Service::start_on(read, sockets, Clock::system()).await;
    started.map_err(|error| CommandFailure { code: error.exit_code(), message: Some(error.to_string()) })
}

pub(super) async fn start(read: LoadedConfig) -> Result<Service, CommandFailure> {
    start_on(read, PassedSockets::default()).await
}

/// Shuts down gracefully; a second signal stops the service at once.
pub(super) async fn end(service: Service, signals: &mut Signals) -> Result<(), CommandFailure> {
    tracing::info!(target: ALWAYS, "makegate is shutting down: finishing work in progress");
    tokio::select! {
        finished = service.shut_down() => {
            if !finished {
                tracing::warn!(target: ALWAYS, "limits.drain ran out before all work was finished");
            }
            Ok(())
        }
        () = signals.second_signal() => Err(CommandFailure::failed("stopped by a second signal before all work was finished")),
    }
}
