//! `makegate check`: every mistake in the configuration at once; and what other commands read the configuration by.

use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;

use clap::{Args, ValueEnum};

use super::ConfigFile;
use super::failure::{CommandFailure, USAGE};
use super::output;
use super::process::{self, ColorChoice};
use crate::clock::Clock;
use crate::config::secret::secret_in;
use crate::config::{self, LoadedConfig};
use crate::config::{Config, Diagnostic, Severity};
use crate::door::CheckedCertificate;
use crate::process_log::{self, EACH, LogFormat};
use crate::upstream::{Token, Upstream};
use crate::watched_files::Snapshot;

/// Says everything that is wrong with a configuration.
///
/// And what to write instead. Exit code 0: it can be used (warnings do not count); 2: it cannot. Nothing is changed, and nothing but the file read,
/// unless --online.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate check --config makegate.toml
  makegate check --config makegate.toml --online
  makegate check --config makegate.toml --format json | jq -r .message")]
pub(super) struct CheckCommand {
    #[command(flatten)]
    config: ConfigFile,
    /// How mistakes are printed: text, or json (one object a line).
    #[arg(long, value_enum, default_value = "text", hide_possible_values = true)]
    format: Printed,
    /// Try it here and now: the secrets, the certificates, and a connection to Make (over which nothing is sent).
    #[arg(long)]
    online: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Printed {
    Text,
    Json,
}

impl CheckCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let file = &self.config.path;
        let (mistakes, text) = match config::read(file) {
            Ok(LoadedConfig { config, warnings, origins, files }) if self.online => {
                let tried = process::block_on(async { Ok(online(&config, &files).await) })?;
                (warnings.into_iter().chain(tried).collect(), origins.text)
            }
            Ok(LoadedConfig { warnings, origins, .. }) => (warnings, origins.text),
            Err(failure) => (failure.mistakes, failure.text),
        };
        for mistake in &mistakes {
            output::line(&match self.format {
                Printed::Text => mistake.render(file, &text, color.colors(&io::stdout())) + "\n",
                Printed::Json => mistake.to_json(file),
            })?;
        }
        summary(file, &mistakes)
    }
}

/// Says on stderr how it went.
fn summary(file: &Path, mistakes: &[Diagnostic]) -> Result<(), CommandFailure> {
    let count = |severity| mistakes.iter().filter(|mistake| mistake.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let verdict = if errors == 0 { "it can be used" } else { "it cannot be used" };
    writeln!(io::stderr(), "{}: {verdict}; errors: {errors}, warnings: {warnings}", file.display())?;
    if errors == 0 { Ok(()) } else { Err(CommandFailure::told(USAGE)) }
}

/// No place in any text.
const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

/// What fails on this machine now. Its place is the file as a whole: nothing in it need be wrong.
async fn online(config: &Config, files: &Snapshot) -> Vec<Diagnostic> {
    let clock = Clock::system();
    let mut failures = Vec::new();
    let mut failed = |what: &str, why: String| {
        let message = format!("{what}: {why}");
        failures.push(Diagnostic { severity: Severity::Error, line: 1, column: 1, span: NOWHERE, message, help: None });
    };
    if let Err(why) = secret_in(files, &config.operator.key) {
        failed("the operator key", why);
    }
    if let Some(Err(error)) = config.gateway.tls.as_ref().map(|tls| CheckedCertificate::read(tls, files)) {
        failed("gateway.tls", error.to_string());
    }
    let token =
        secret_in(files, &config.upstream.token).and_then(|secret| Token::new(&secret).map_err(|bad| bad.to_string()));
    let token = match token {
        Ok(token) => token,
        Err(why) => {
            failed("the Make token", why);
            return failures;
        }
    };
    match Upstream::new(&config.upstream, &config.limits, token, clock, files) {
        Err(error) => failed("upstream", error.to_string()),
        Ok(upstream) => {
            if let Err(why) = upstream.reach(config.upstream.connect).await {
                failed(&format!("{} cannot be reached", config.upstream.url.authority), why.text.into());
            }
        }
    }
    failures
}

/// The configuration for a command that needs one; every mistake is told on stderr, in the form of the process log if there is one.
pub(super) fn configuration(file: &Path, color: bool) -> Result<LoadedConfig, CommandFailure> {
    config::read(file).map_err(|failure| {
        for mistake in &failure.mistakes {
            let text = || format!("{}\n\n", mistake.render(&failure.file, &failure.text, color));
            match process_log::form() {
                // With nobody at stderr, the exit code says it alone.
                None => drop(io::stderr().write_all(text().as_bytes())),
                Some(LogFormat::Text { .. }) => process_log::print(text()),
                Some(LogFormat::Json) => tell(&failure.file, mistake),
            }
        }
        CommandFailure::told(USAGE)
    })
}

/// Tells the process log of a mistake.
pub(super) fn tell(file: &Path, mistake: &Diagnostic) {
    let place = format!("{}:{}:{}", file.display(), mistake.line, mistake.column);
    let help = mistake.help.as_deref();
    match mistake.severity {
        Severity::Error => tracing::error!(target: EACH, place, help, "{}", mistake.message),
        Severity::Warning => tracing::warn!(target: EACH, place, help, "{}", mistake.message),
    }
}
