//! The process: its log, its signals, its runtime, and no trace of its memory on disk.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Map, Value};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::failure::Failure;
use crate::clock::Clock;

/// The variable that sets the process log's level and filters.
const LOG: &str = "MAKEGATE_LOG";

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Yes.
    Always,
    /// No.
    Never,
}

impl When {
    /// Are there colours on this stream?
    pub(super) fn colors(self, stream: &impl io::IsTerminal) -> bool {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        match self {
            Self::Auto => stream.is_terminal() && !plain && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Nothing of this process's memory, where the token is, goes into a core dump, and no other process may look at it.
pub(super) fn no_core_dumps() -> Result<(), Failure> {
    let failed = |error: rustix::io::Errno| Failure::failed(format!("cannot forbid core dumps: {error}"));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).map_err(failed)?;
    Ok(())
}

/// Takes all file descriptors that the system grants: each connection is one, and many systems give 1,024 unless asked.
pub(super) fn all_descriptors() {
    let granted = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: granted.maximum, ..granted }) {
        tracing::debug!(%error, "the limit of file descriptors stays");
    }
}

/// Begins the process log on stderr: text on a terminal, else JSON. `level`: unless `MAKEGATE_LOG` says otherwise.
pub(super) fn log(level: &str, color: When) -> Result<(), Failure> {
    let given = std::env::var(LOG).unwrap_or_default();
    let targets = filters(if given.is_empty() { level } else { &given }).map_err(|error| {
        Failure::usage(format!("{LOG}: {error}; write error, warn, info or debug, or filters as makegate=debug,info"))
    })?;
    let stderr = io::stderr();
    let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
    let subscriber = subscriber.with_writer(io::stderr).with_target(false);
    let begun = if stderr.is_terminal() {
        subscriber.with_ansi(color.colors(&stderr)).finish().with(targets).try_init()
    } else {
        subscriber.event_format(JsonLines(Clock::system())).finish().with(targets).try_init()
    };
    begun.map_err(Failure::failed)
}

/// Levels, for everything or for what a module says: `info`, `makegate=debug,info`.
fn filters(text: &str) -> Result<Targets, String> {
    if let Some(word) =
        text.split(',').map(str::trim).find(|part| !part.contains('=') && part.parse::<LevelFilter>().is_err())
    {
        return Err(format!("`{word}` is no level"));
    }
    text.parse::<Targets>().map_err(|error| error.to_string())
}

/// One JSON object a line: `ts`, `level`, `msg`, then the event's own fields.
struct JsonLines(Clock);

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line(Map::new());
        line.put("ts", format!("{:.6}", self.0.wall()));
        line.put("level", event.metadata().level().as_str().to_ascii_lowercase());
        line.put("msg", "");
        event.record(&mut line);
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

struct Line(Map<String, Value>);

impl Line {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        let name = if name == "message" { "msg" } else { name };
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }
}

/// What somebody tells the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// SIGTERM, SIGINT: come to an end.
    End,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals, from the moment of listening on: none is lost, none kills.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot take signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// The next one that ends the process.
    pub(super) async fn end(&mut self) {
        while self.next().await != Told::End {}
    }
}

/// Runs a service on all cores.
pub(super) fn serve<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    run(&mut Builder::new_multi_thread(), work)
}

/// Runs what one thread is enough for.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    run(&mut Builder::new_current_thread(), work)
}

fn run<T>(builder: &mut Builder, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    const LEFT_BEHIND: Duration = Duration::from_secs(1);
    let runtime: Runtime = builder.enable_all().build().map_err(Failure::failed)?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LEFT_BEHIND);
    done
}
