//! `makegate check`: reports every mistake in the configuration. Also loads the configuration for other commands.

use std::io::{self, Write as _};
use std::path::Path;

use clap::Args;
use rustix::process::geteuid;

use super::failure::{CommandFailure, USAGE};
use super::output::{self, ReportFormat};
use super::process::{self, ColorChoice};
use super::{ConfigFile, check_endings};
use crate::clock::Clock;
use crate::config::{self, LoadedConfig};
use crate::config::{Config, ConfigError, Diagnostic, ReplicasConfig, Severity};
use crate::process_log::{self, ALWAYS, LogFormat};
use crate::replicas::engine::EngineSession;
use crate::replicas::setup::trial::{self, TrialFinding};
use crate::replicas::{EngineAccess, shared_key};
use crate::service::{MachineFault, MachineFaultKind, Preparation, machine_faults};
use crate::tasks::Tasks;
use crate::watched_files::Snapshot;

/// Checks a configuration and reports every mistake at once.
///
/// Each mistake comes with its place and what to write instead. Exit code 0: the configuration is valid (warnings do
/// not count); 2: it is not. The command changes nothing. It reads the files that the configuration names, to warn about weak
/// secrets and about keys and certificates that have expired or expire within 14 days, and asks the machine for the data folder and
/// the owners of sockets; only with --online are they errors if they cannot be used.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate check --config makegate.toml
  makegate check --config makegate.toml --online
  makegate check --config makegate.toml --format json | jq -r .message")]
pub(super) struct CheckCommand {
    #[command(flatten)]
    config: ConfigFile,
    /// Output format: text, or json (one object per line).
    #[arg(short = 'o', long, value_enum, default_value = "text", hide_possible_values = true)]
    format: ReportFormat,
    /// Also check the secrets, the certificates, the keys of issuers, the addresses to listen on, the database of `[replicas]` and the connection to Make (without sending anything over it).
    #[arg(long)]
    online: bool,
}

impl CheckCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let file = &self.config.path;
        let (mistakes, text): (Vec<_>, _) = match config::read(file) {
            Ok(LoadedConfig { config, warnings, origins, files }) => {
                let tried = match self.online {
                    true => process::block_on(async { Ok(online(&config, &files).await) })?,
                    false => Vec::new(),
                };
                let ending = check_endings::warnings(&config, &origins.text, &files, Clock::system().wall());
                let is_told = |warning: &Diagnostic| tried.iter().any(|failure| failure.message == warning.message);
                let ending: Vec<_> = ending.into_iter().filter(|warning| !is_told(warning)).collect();
                let machine = machine(&config, self.online);
                (warnings.into_iter().chain(ending).chain(machine).chain(tried).collect(), origins.text)
            }
            Err(failure) => (failure.mistakes, failure.text),
        };
        let mistakes: Vec<_> = mistakes.into_iter().chain(root_warning()).collect();
        for mistake in &mistakes {
            match self.format {
                ReportFormat::Text => {
                    output::styled(&(mistake.render(file, &text, color.colors(&io::stdout())) + "\n"))
                }
                ReportFormat::Json => output::json(&mistake.to_json(file)),
            }?;
        }
        summary(file, &mistakes)
    }
}

fn summary(file: &Path, mistakes: &[Diagnostic]) -> Result<(), CommandFailure> {
    let count = |severity| mistakes.iter().filter(|mistake| mistake.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let verdict = if errors == 0 { "valid" } else { "not valid" };
    // If stderr is closed, the exit code still tells.
    let _told = writeln!(io::stderr(), "{}: {verdict}; errors: {errors}, warnings: {warnings}", file.display());
    if errors == 0 { Ok(()) } else { Err(CommandFailure::reported(USAGE)) }
}

/// Warns if this process runs as root, as which `serve` should not run.
pub(super) fn root_warning() -> Option<Diagnostic> {
    let help = Some("run it as a user of its own: whoever takes it over then has no more than that user".to_owned());
    let warning = Diagnostic { help, ..Diagnostic::of_file(Severity::Warning, "makegate runs as root".to_owned()) };
    geteuid().is_root().then_some(warning)
}

/// Failures on this machine right now. They are reported for the whole file, whose text may well be right.
async fn online(config: &Config, files: &Snapshot) -> Vec<Diagnostic> {
    process::raise_descriptor_limit();
    let error = |message| Diagnostic::of_file(Severity::Error, message);
    let Preparation { upstream, issuers, warnings, faults, .. } = Preparation::read(config, files, &Clock::system());
    let mut failures: Vec<_> = faults.iter().map(|fault| error(fault.to_string())).collect();
    failures.extend(warnings.into_iter().map(|warning| Diagnostic::of_file(Severity::Warning, warning)));
    for issuer in issuers {
        if let Err(why) = issuer.check().await {
            failures.push(error(format!("the keys of the issuer {}: {why}", issuer.config().name)));
        }
    }
    if let Some(upstream) = upstream
        && let Err(why) = upstream.check_connection(config.upstream.connect).await
    {
        failures.push(error(format!("cannot reach {}: {}", config.upstream.url.authority, why.text)));
    }
    if let Some(replicas) = &config.replicas {
        failures.extend(try_shared_engine(replicas, files).await);
    }
    failures
}

/// What is wrong with the database that the replicas share. What is wrong with the files for it was said already.
async fn try_shared_engine(config: &ReplicasConfig, files: &Snapshot) -> Vec<Diagnostic> {
    let Ok(access) = EngineAccess::read(config, files) else { return Vec::new() };
    let found = |severity, what: &str, help: Option<String>| Diagnostic {
        help,
        ..Diagnostic::of_file(severity, format!("replicas: {what}"))
    };
    let failed = |why: &dyn std::fmt::Display| vec![found(Severity::Error, &why.to_string(), None)];
    let target = match access.target() {
        Ok(target) => target,
        Err(why) => return failed(&why),
    };
    let tasks = Tasks::new();
    let connect = || EngineSession::connect(&target, &tasks);
    let (one, other) = match (connect().await, connect().await) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(why), _) | (_, Err(why)) => return failed(&format!("cannot reach {}: {why}", target.address())),
    };
    let key = shared_key(config, files).ok();
    match trial::try_engine([&one, &other], config, key.as_ref(), Clock::system().wall()).await {
        Err(why) => failed(&why),
        Ok(findings) => findings
            .into_iter()
            .map(|TrialFinding { is_fatal, what, help }| {
                found(if is_fatal { Severity::Error } else { Severity::Warning }, &what, Some(help))
            })
            .collect(),
    }
}

/// What `serve` would not get from this machine. Without --online only what will hardly be otherwise when it starts, as a warning.
fn machine(config: &Config, online: bool) -> Vec<Diagnostic> {
    let faults = machine_faults(config, online).into_iter().filter_map(|MachineFault { what, kind }| {
        let severity = match (online, kind) {
            (true, MachineFaultKind::Lasting | MachineFaultKind::Now) => Severity::Error,
            (true, MachineFaultKind::InUse) | (false, MachineFaultKind::Lasting) => Severity::Warning,
            (false, MachineFaultKind::Now | MachineFaultKind::InUse) => return None,
        };
        Some(Diagnostic::of_file(severity, what))
    });
    faults.collect()
}

/// Loads the configuration for another command and prints every mistake to stderr, in the process log's format if it
/// has begun.
pub(super) fn configuration(file: &Path, color: bool) -> Result<LoadedConfig, CommandFailure> {
    reported(config::read(file), color)
}

/// Prints every mistake of a configuration that was read.
pub(super) fn reported(read: Result<LoadedConfig, ConfigError>, color: bool) -> Result<LoadedConfig, CommandFailure> {
    read.map_err(|failure| {
        for mistake in &failure.mistakes {
            let text = || format!("{}\n\n", mistake.render(&failure.file, &failure.text, color));
            match process_log::format() {
                // If stderr is closed, the exit code still reports the failure.
                None => drop(io::stderr().write_all(text().as_bytes())),
                Some(LogFormat::Text { .. }) => process_log::print(text()),
                Some(LogFormat::Json) => log_mistake(&failure.file, mistake),
            }
        }
        CommandFailure::reported(USAGE)
    })
}

/// Writes a mistake to the process log.
pub(super) fn log_mistake(file: &Path, mistake: &Diagnostic) {
    let place = format!("{}:{}:{}", file.display(), mistake.line, mistake.column);
    let help = mistake.help.as_deref();
    match mistake.severity {
        Severity::Error => tracing::error!(target: ALWAYS, place, help, "{}", mistake.message),
        Severity::Warning => tracing::warn!(target: ALWAYS, place, help, "{}", mistake.message),
    }
}
