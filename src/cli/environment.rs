//! The environment variables that makegate reads: one table, which every `--help` and docs/environment.md show.

use clap::Command;

struct EnvironmentVariable {
    name: &'static str,
    meaning: &'static str,
    readers: Readers,
}

/// Which commands read a variable.
enum Readers {
    /// Those with this option.
    Option(&'static str),
    /// Those of these names.
    Commands(&'static [&'static str]),
    /// Those that read secrets: the operator key, or all that the configuration names.
    Secrets,
}

use Readers::{Commands, Option as HasOption, Secrets};

const fn variable(name: &'static str, meaning: &'static str, readers: Readers) -> EnvironmentVariable {
    EnvironmentVariable { name, meaning, readers }
}

const SERVICES: Readers = Commands(&["makegate serve", "makegate demo", "makegate sandbox"]);
const TABLES: Readers = Commands(&["makegate audit query", "makegate audit follow", "makegate audit export"]);

const VARIABLES: [EnvironmentVariable; 13] = [
    variable("MAKEGATE_CONFIG", "the configuration file, if --config is not given", HasOption("config")),
    variable(
        "MAKEGATE_OPERATOR_URL",
        "the operator door of a running makegate, without --url or --config",
        HasOption("url"),
    ),
    variable("MAKEGATE_OPERATOR_KEY", "the operator key, if --key-file is not given", HasOption("key_file")),
    variable(
        "MAKEGATE_OPERATOR_KEY_FILE",
        "a file that holds the operator key, if nothing else gives it",
        HasOption("key_file"),
    ),
    variable("MAKEGATE_OPERATOR_CA", "certificate authorities to trust there, if --ca is not given", HasOption("ca")),
    variable(
        "MAKEGATE_OPERATOR_CERT",
        "the certificate and key to show there, if --cert is not given",
        HasOption("cert"),
    ),
    variable("MAKEGATE_LOG", "level and filters of the process log: info, debug, makegate=debug,info", SERVICES),
    variable("COLUMNS", "the width of tables, instead of the terminal's", TABLES),
    variable("NO_COLOR", "if set, no colors, unless --color always", HasOption("color")),
    variable("CREDENTIALS_DIRECTORY", "a folder with secrets whose files do not exist (systemd sets it)", Secrets),
    variable("LISTEN_FDS", "sockets to serve, opened by the service manager", Commands(&["makegate serve"])),
    variable("NOTIFY_SOCKET", "where to tell the service manager how the service is", Commands(&["makegate serve"])),
    variable("TMPDIR", "where the demo keeps its data, if not in /tmp", Commands(&["makegate demo"])),
];

/// Adds to the long help of this command and of all below it which variables they read.
pub(super) fn describe(command: Command) -> Command {
    let root = command.get_name().to_owned();
    let options = option_ids(&command);
    let told = told(command.get_after_long_help().or(command.get_after_help()), |_| true);
    let command = command.after_long_help(told);
    command.mut_subcommands(|below| describe_below(below, &root, &options))
}

fn describe_below(command: Command, path: &str, inherited: &[String]) -> Command {
    let path = format!("{path} {}", command.get_name());
    let options = [inherited, &option_ids(&command)].concat();
    let command = if command.has_subcommands() {
        command
    } else {
        let has = |id: &str| options.iter().any(|option| option == id);
        let reads = |variable: &EnvironmentVariable| match variable.readers {
            HasOption(id) => has(id),
            Commands(names) => names.contains(&&*path),
            Secrets => {
                let readers = ["makegate serve", "makegate check", "makegate replicas"];
                has("key_file")
                    || readers.iter().any(|reader| path == *reader || path.starts_with(&format!("{reader} ")))
            }
        };
        let told = told(command.get_after_long_help().or(command.get_after_help()), reads);
        command.after_long_help(told)
    };
    command.mut_subcommands(|below| describe_below(below, &path, inherited))
}

/// The ids of the options that a command shares with those below it, or has of its own.
fn option_ids(command: &Command) -> Vec<String> {
    command
        .get_arguments()
        .map(|argument| match argument.get_long() {
            Some("config") => "config".to_owned(),
            Some(_) | None => argument.get_id().to_string(),
        })
        .collect()
}

/// The section with these variables, above the examples.
fn told(help: Option<&clap::builder::StyledStr>, reads: impl Fn(&EnvironmentVariable) -> bool) -> String {
    let help = help.map(ToString::to_string).unwrap_or_default();
    let (before, examples) = help.split_at(help.find("Examples:\n").unwrap_or(help.len()));
    let read: Vec<_> = VARIABLES.iter().filter(|variable| reads(variable)).collect();
    let width = read.iter().map(|variable| variable.name.len()).max().unwrap_or(0);
    let lines = read.iter().map(|EnvironmentVariable { name, meaning, .. }| format!("  {name:width$}  {meaning}\n"));
    format!("{before}Environment:\n{}\n{examples}", lines.collect::<String>())
}
