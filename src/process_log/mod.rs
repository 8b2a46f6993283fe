//! The process log: what makegate reports about itself on stderr. A reader that is slow, stuck or gone loses lines,
//! which are counted, and never makes makegate wait.
//!
//! Events come from `tracing`. Ordinary ones are logged once per minute and kind, with a count of the repeats; the
//! targets [`STATE`] and [`ALWAYS`] mark events that are logged more often.

mod fault_state;
mod log_line;
mod non_blocking;
mod repeats;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::clock::Clock;
use crate::ids::escape_invisible_in_lines;

use log_line::LogLine;
use repeats::Repeats;

pub use fault_state::FaultState;
pub use non_blocking::NonBlockingWriter;

/// Target of an event that reports a change of state: logged at once, up to a limit per minute.
pub const STATE: &str = "makegate::state";
/// Target of an event that is always logged. The sender must bound how often it happens.
pub const ALWAYS: &str = "makegate::each";

/// Changes of one state logged per minute.
const STATES_MAX: u32 = 10;
/// How long the process waits at exit for its last lines to be read.
const FLUSH_TIME_MAX: Duration = Duration::from_millis(200);

/// The format of the process log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people at a terminal.
    Text {
        /// Whether to use colors.
        has_colors: bool,
    },
    /// For programs: one JSON object per line.
    Json,
}

impl LogFormat {
    fn write(self, line: LogLine) -> String {
        match self {
            Self::Text { has_colors } => line.text(has_colors),
            Self::Json => line.json(),
        }
    }
}

#[derive(Debug)]
struct ProcessLog {
    format: LogFormat,
    clock: Clock,
    repeats: Mutex<Repeats<Identifier>>,
    writer: NonBlockingWriter,
    /// The final line was written; anything that threads log after it is dropped.
    has_ended: AtomicBool,
}

static LOG: OnceLock<ProcessLog> = OnceLock::new();

/// Starts the process log on stderr. The returned layer logs `tracing` events; panics are logged too.
pub fn begin(format: LogFormat, clock: Clock) -> ProcessLogLayer {
    LOG.get_or_init(|| {
        let mut reported = 0;
        let writer = NonBlockingWriter::begin("process-log", std::io::stderr(), move |writer, is_well| {
            let Some(log) = LOG.get() else { return };
            log.log_due_repeats(false);
            let dropped = writer.dropped();
            if is_well && dropped > reported {
                let line = log.line(Level::WARN, "log lines were dropped because nobody read them");
                log.put(line.with("dropped", dropped - reported));
                reported = dropped;
            }
        });
        ProcessLog { format, clock, repeats: Mutex::default(), writer, has_ended: false.into() }
    });
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let why = panic.payload_as_str().unwrap_or_default();
        tracing::error!(target: STATE, at, "internal error in makegate: {why}");
    }));
    ProcessLogLayer(())
}

/// Logs the final line of a failing command. `false` if there is no process log to write it to.
#[must_use]
pub fn fatal(message: &str, exit_code: u8) -> bool {
    let Some(log) = LOG.get() else { return false };
    log.log_due_repeats(true);
    log.has_ended.store(true, Ordering::SeqCst);
    log.writer.put(match log.format {
        LogFormat::Text { .. } => format!("error: {}\n", escape_invisible_in_lines(message)),
        format @ LogFormat::Json => format.write(log.line(Level::ERROR, message).with("exit_code", exit_code)),
    });
    true
}

/// The format of the process log, if it has begun.
#[must_use]
pub fn format() -> Option<LogFormat> {
    LOG.get().map(|log| log.format)
}

/// Writes text for people between the lines of the process log, unchanged.
pub fn print(text: String) {
    if let Some(log) = LOG.get() {
        log.writer.put(text);
    }
}

/// The number of lines dropped because nobody read them.
#[must_use]
pub fn dropped() -> u64 {
    LOG.get().map_or(0, |log| log.writer.dropped())
}

/// Ends the process log: logs pending repeats and gives the last lines a moment to be read.
pub fn end() {
    if let Some(log) = LOG.get() {
        log.log_due_repeats(true);
        log.writer.flush(FLUSH_TIME_MAX);
    }
}

impl ProcessLog {
    fn line(&self, level: Level, message: &str) -> LogLine {
        LogLine::new(self.clock.wall(), level, message.to_owned())
    }

    fn put(&self, line: LogLine) {
        if !self.has_ended.load(Ordering::Relaxed) {
            self.writer.put(self.format.write(line));
        }
    }

    fn repeats(&self) -> MutexGuard<'_, Repeats<Identifier>> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_event(&self, event: &Event<'_>) {
        let about = event.metadata();
        let line = LogLine::of(event, self.clock.wall());
        let most = match about.target() {
            STATE => STATES_MAX,
            // Levels below `info` are logged without counting repeats: whoever enables them wants everything.
            _ if *about.level() > Level::INFO => return self.put(line),
            ALWAYS => return self.put(line),
            _ => 1,
        };
        let admitted = self.repeats().admit(about.callsite(), line, most, self.clock.now());
        if let Some(line) = admitted {
            self.put(line);
        }
    }

    fn log_due_repeats(&self, all: bool) {
        let due = self.repeats().due(self.clock.now(), all);
        for line in due {
            self.put(line);
        }
    }
}

/// Writes `tracing` events to the process log.
#[derive(Debug)]
pub struct ProcessLogLayer(());

impl<S: Subscriber> Layer<S> for ProcessLogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if let Some(log) = LOG.get() {
            log.log_event(event);
        }
    }
}
