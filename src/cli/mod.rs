//! The command line: arguments, exit codes, and the `match` that runs the command.
//!
//! Data goes to stdout, messages to stderr. Each command has its own module, which also holds its arguments and help.

mod audit;
mod cert;
mod check;
mod check_endings;
mod client;
mod client_tls;
mod completions;
mod config_show;
mod confine;
mod demo;
mod demo_text;
mod doubts;
mod environment;
mod explain;
mod failure;
mod filter_options;
mod follow;
mod healthcheck;
mod key;
mod new_file;
mod output;
mod process;
mod record_printer;
mod record_source;
mod record_story;
mod record_table;
mod replicas;
mod sandbox;
mod serve;
mod service_manager;
mod show;
mod source;
mod verify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::ids::escape_invisible_in_lines;
use crate::process_log;
use failure::CommandFailure;
use process::ColorChoice;

/// A sidecar between a company's internal tools and the Make.com Organizations API.
///
/// Each tool calls it with its own key. makegate decides what the tool may do, answers from its cache when it can,
/// spends the one shared Make token and its quota on everything else, and records who did what.
#[derive(Debug, Parser)]
#[command(version = VERSION, max_term_width = 100, arg_required_else_help = true, after_help = EXAMPLES, after_long_help = format!("{LONG}\n\n{EXAMPLES}"))]
struct Cli {
    /// Color output: auto (on a terminal, unless NO_COLOR is set), always or never.
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    #[arg(display_order = 900)]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

/// With the commit that the binary was built from, if `build.rs` found out.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("MAKEGATE_COMMIT"), ")");

const EXAMPLES: &str = "\
Examples:
  makegate demo                             try it, no configuration needed
  makegate key new --caller dashboard       create a key for a tool
  makegate check --config makegate.toml     find mistakes in the configuration
  makegate serve --config makegate.toml     run the service";

const LONG: &str = "\
Exit codes:
  0  success
  1  failure
  2  usage or configuration error
  3  explain: the request would be refused";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeCommand),
    Demo(demo::DemoCommand),
    Check(check::CheckCommand),
    Sandbox(sandbox::SandboxCommand),
    #[command(subcommand)]
    Key(key::KeyCommand),
    #[command(subcommand)]
    Cert(cert::CertCommand),
    Explain(explain::ExplainCommand),
    #[command(subcommand)]
    Audit(Box<audit::AuditCommand>),
    #[command(subcommand)]
    Doubts(doubts::DoubtsCommand),
    #[command(subcommand)]
    Replicas(replicas::ReplicasCommand),
    Healthcheck(healthcheck::HealthcheckCommand),
    #[command(subcommand)]
    Config(config_show::ConfigCommand),
    Completions(completions::CompletionsCommand),
    Man(completions::ManCommand),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long = "config", value_name = "FILE", env = "MAKEGATE_CONFIG", hide_env_values = true)]
    path: PathBuf,
}

/// All commands with their options and help.
fn command_line() -> clap::Command {
    environment::describe(Cli::command())
}

/// Parses the command line and runs the command.
#[must_use]
pub fn run() -> ExitCode {
    let parsed = Cli::from_arg_matches(&command_line().get_matches());
    let Cli { color, command } = parsed.unwrap_or_else(|error| error.exit());
    let code = match dispatch(&command, color) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandFailure { code, message }) => {
            if let Some(message) = message
                && !process_log::fatal(&message, code)
            {
                // If stderr is closed, the exit code still reports the failure.
                let _told = writeln!(std::io::stderr(), "error: {}", escape_invisible_in_lines(&message));
            }
            ExitCode::from(code)
        }
    };
    process_log::end();
    code
}

fn dispatch(command: &Command, color: ColorChoice) -> Result<(), CommandFailure> {
    match command {
        Command::Serve(serve) => serve.run(color),
        Command::Demo(demo) => demo.run(color),
        Command::Check(check) => check.run(color),
        Command::Sandbox(sandbox) => sandbox.run(color),
        Command::Key(key) => key.run(),
        Command::Cert(cert) => cert.run(),
        Command::Explain(explain) => explain.run(color),
        Command::Audit(audit) => audit.run(color),
        Command::Doubts(doubts) => doubts.run(color),
        Command::Replicas(replicas) => replicas.run(color),
        Command::Healthcheck(healthcheck) => healthcheck.run(),
        Command::Config(config) => config.run(color),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    }
}
