//! `makegate explain`: shows what the gateway would do with a request and why.

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use super::failure::{CommandFailure, REFUSED};
use super::output::{self, Format};
use super::process::{self, ColorChoice};
use super::source::{DataSource, SourceOptions};
use crate::callers::Callers;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::gateway::admit::policy::Policy;
use crate::gateway::explain;

/// Explains what the gateway would do with a request.
///
/// Shows each step and spends nothing. With --config, only the configuration decides; with --url, the explanation also
/// covers what a running makegate has in its cache and how much quota is left. The exit code is 0 if the request would be
/// allowed, and 3 if it would be refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate explain --config makegate.toml --caller dashboard GET /api/v2/organizations/11
  makegate explain --url http://127.0.0.1:8081 --caller dashboard PATCH /api/v2/organizations/11")]
pub(super) struct ExplainCommand {
    /// The caller's name.
    #[arg(long, value_name = "NAME")]
    caller: String,
    /// The request's method.
    method: String,
    /// The request's path, with its query.
    target: String,
    #[command(flatten)]
    source_options: SourceOptions,
    /// table, json, or csv (only the steps).
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

#[derive(Deserialize)]
struct ExplainAnswer {
    verdict: String,
    status: Option<u16>,
    code: Option<String>,
    steps: Vec<ExplainAnswerStep>,
}

#[derive(Deserialize)]
struct ExplainAnswerStep {
    step: String,
    verdict: String,
    why: String,
}

impl ExplainCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let text = match self.source_options.source(color)? {
            DataSource::Files(read) => self.explain_offline(read.config)?,
            DataSource::Running(client) => process::block_on(client.text(&self.page_target()))?,
        };
        self.print(&text)
    }

    /// Explains from the configuration alone.
    fn explain_offline(&self, config: Config) -> Result<String, CommandFailure> {
        let names = config.callers.iter().map(|caller| &*caller.name);
        if !names.clone().any(|name| name == self.caller) {
            return Err(CommandFailure::usage(format!("--caller: {}", config::unknown_caller(&self.caller, names))));
        }
        let policy = Policy::new(config, Vec::new(), &Callers::new(Clock::system(), None));
        let explanation = explain::explain(&policy, None, &self.caller, &self.method, &self.target);
        serde_json::to_string(&explanation).map_err(CommandFailure::failed)
    }

    fn page_target(&self) -> String {
        let encoded =
            [&self.caller, &self.method, &self.target].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC));
        let [caller, method, target] = encoded;
        format!("/explain.json?caller={caller}&method={method}&target={target}")
    }

    fn print(&self, text: &str) -> Result<(), CommandFailure> {
        let unknown = |error| CommandFailure::failed(format!("the response is not an explanation: {error}"));
        let ExplainAnswer { verdict, status, code, steps } = serde_json::from_str(text).map_err(unknown)?;
        let ended = if verdict == "refuse" { Err(CommandFailure::reported(REFUSED)) } else { Ok(()) };
        if self.format == Format::Json {
            let compact: Value = serde_json::from_str(text).map_err(unknown)?;
            output::json(&compact.to_string())?;
            return ended;
        }
        let rows: Vec<_> = steps.iter().map(|step| [&*step.step, &*step.verdict, &*step.why]).collect();
        output::rows(self.format, ["step", "verdict", "why"], &rows)?;
        if self.format == Format::Table {
            let with = match (status, code) {
                (Some(status), Some(code)) => format!(" with {status} {code}"),
                _ => String::new(),
            };
            output::line("")?;
            output::line(&format!("verdict: {verdict}{with}"))?;
        }
        ended
    }
}
