//! Process-wide setup: the log, signals, the runtime, and no core dumps.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::failure::CommandFailure;
use crate::clock::Clock;
use crate::process_log::{self, LogFormat};

/// The variable that sets the process log's level and filters.
const LOG: &str = "MAKEGATE_LOG";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Even if the stream is not a terminal.
    Always,
    Never,
}

impl ColorChoice {
    /// Whether to color output on this stream.
    pub(super) fn colors(self, stream: &impl io::IsTerminal) -> bool {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        match self {
            Self::Auto => stream.is_terminal() && !plain && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Disables core dumps and ptrace access, because the process holds the token in memory.
pub(super) fn disable_core_dumps() -> Result<(), CommandFailure> {
    let failed = |error: rustix::io::Errno| CommandFailure::failed(format!("cannot disable core dumps: {error}"));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).map_err(failed)?;
    Ok(())
}

/// Raises the limit of file descriptors to the hard limit: each connection needs one, and many systems start with
/// 1,024.
pub(super) fn raise_descriptor_limit() {
    let granted = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: granted.maximum, ..granted }) {
        tracing::debug!(%error, "cannot raise the limit of file descriptors");
    }
}

/// Starts the process log on stderr, as text on a terminal, otherwise as JSON. `level` applies to makegate's own lines
/// unless `MAKEGATE_LOG` is set.
pub(super) fn log(level: &str, color: ColorChoice) -> Result<(), CommandFailure> {
    let given = std::env::var(LOG).unwrap_or_default();
    let (targets, wrong) = match filters(if given.is_empty() { level } else { &given }) {
        Ok(targets) => (targets, None),
        Err(error) => (Targets::new().with_default(LevelFilter::INFO), Some(error)),
    };
    let stderr = io::stderr();
    let form =
        if stderr.is_terminal() { LogFormat::Text { has_colors: color.colors(&stderr) } } else { LogFormat::Json };
    let events = process_log::begin(form, Clock::system());
    tracing_subscriber::registry().with(events).with(targets).try_init().map_err(CommandFailure::failed)?;
    wrong.map_or(Ok(()), |error| {
        Err(CommandFailure::usage(format!(
            "{LOG}: {error}; use error, warn, info or debug, or filters such as makegate=debug,info"
        )))
    })
}

/// A bare level applies to makegate, and libraries log only errors; filters (`makegate=debug,info`) apply as written.
fn filters(text: &str) -> Result<Targets, InvalidFilter> {
    if let Ok(level) = text.trim().parse::<LevelFilter>() {
        return Ok(Targets::new().with_default(level.min(LevelFilter::ERROR)).with_target("makegate", level));
    }
    if let Some(word) =
        text.split(',').map(str::trim).find(|part| !part.contains('=') && part.parse::<LevelFilter>().is_err())
    {
        return Err(InvalidFilter::Level(word.to_owned()));
    }
    Ok(text.parse()?)
}

#[derive(Debug, thiserror::Error)]
enum InvalidFilter {
    #[error("`{0}` is not a level")]
    Level(String),
    #[error(transparent)]
    Other(#[from] ParseError),
}

/// What a signal asks the process to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessSignal {
    /// SIGTERM, SIGINT: shut down.
    End,
    /// SIGHUP: reload the configuration.
    Reload,
}

/// SIGXFSZ: a file would exceed the process's size limit. Caught, it makes the write fail like any other; uncaught, it
/// kills the process.
const XFSZ: SignalKind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
/// A second signal this soon after the first counts as the same one: `timeout` signals the process, then its group.
const SAME_SIGNAL_WINDOW: Duration = Duration::from_secs(1);

/// The signals that the process handles; from `listen` on none is lost and none kills it.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, CommandFailure> {
        let listen = |kind| {
            signal(kind).map_err(|error| CommandFailure::failed(format!("cannot install signal handlers: {error}")))
        };
        // Once registered, a signal no longer kills the process, even after the stream is dropped.
        for ignored in [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::pipe(), XFSZ] {
            drop(listen(ignored)?);
        }
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> ProcessSignal {
        tokio::select! {
            _ = self.terminate.recv() => ProcessSignal::End,
            _ = self.interrupt.recv() => ProcessSignal::End,
            _ = self.hangup.recv() => ProcessSignal::Reload,
        }
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn end(&mut self) {
        while self.next().await != ProcessSignal::End {}
    }

    /// After a first signal to shut down, waits for a second one from somebody who does not want to wait.
    pub(super) async fn second_signal(&mut self) {
        let same = async {
            loop {
                self.next().await;
            }
        };
        let _over: Result<(), _> = tokio::time::timeout(SAME_SIGNAL_WINDOW, same).await;
        self.end().await;
    }
}

/// Runs a service on all cores.
pub(super) fn serve<T>(work: impl Future<Output = Result<T, CommandFailure>>) -> Result<T, CommandFailure> {
    run(&mut Builder::new_multi_thread(), work)
}

/// Runs a short task on one thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CommandFailure>>) -> Result<T, CommandFailure> {
    run(&mut Builder::new_current_thread(), work)
}

fn run<T>(builder: &mut Builder, work: impl Future<Output = Result<T, CommandFailure>>) -> Result<T, CommandFailure> {
    /// How long to wait for remaining blocking file operations, which had their time already.
    const SHUTDOWN_WAIT: Duration = Duration::from_millis(100);
    let runtime: Runtime = builder.enable_all().build().map_err(CommandFailure::failed)?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    done
}
