//! Reads a file into a [`Config`], or reports every mistake in it at once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::callers::CallerChecks;
use super::issuers;
use super::{
    AuditConfig, CacheConfig, Config, GatewayConfig, Limits, MetricsConfig, OperatorConfig, OtelConfig, ProcessConfig,
    ReplicasConfig, UpstreamConfig, checks,
};
use crate::catalogue::rows::{self, ParsedRow};
use crate::catalogue::{Catalogue, Operation};
use crate::toml_reader::{
    self, Diagnostic, InvalidValue, Setting, SettingOrigin, Severity, Table, TomlForm, ValueKind,
};
use crate::watched_files::Snapshot;

/// A configuration, with its warnings and origins.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// Settings that are valid but probably not intended.
    pub warnings: Vec<Diagnostic>,
    /// Where each setting comes from.
    pub origins: Origins,
    /// The files read for it. Read the other files that it names from here too.
    pub files: Snapshot,
}

/// The settings in force and their origins. They are rendered only on request: with many callers there are hundreds of
/// thousands.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    /// The configuration file.
    pub file: PathBuf,
    /// The file's text, with possible secrets blotted out.
    pub text: String,
    /// What is valid in it but probably not intended.
    pub warnings: Vec<Diagnostic>,
    settings: Vec<Setting>,
}

/// Why a file is not a valid configuration.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.errors())]
pub struct ConfigError {
    /// The configuration file.
    pub file: PathBuf,
    /// The file's text, with possible secrets blotted out; empty if the file could not be read.
    pub text: String,
    /// Every error and warning, in file order.
    pub mistakes: Vec<Diagnostic>,
}

impl ConfigError {
    /// Every error with its place, one a line.
    fn errors(&self) -> String {
        let errors = self.mistakes.iter().filter(|mistake| mistake.severity == Severity::Error);
        let places = errors.map(|m| format!("{}:{}:{}: {}", self.file.display(), m.line, m.column, m.message));
        places.collect::<Vec<_>>().join("\n")
    }
}

/// Size limit; anything larger is the wrong file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Reads a configuration file.
///
/// # Errors
/// Every mistake in the file, or why it cannot be read.
pub fn read(path: &Path) -> Result<LoadedConfig, ConfigError> {
    let files = Snapshot::new();
    let read = read_in(&files, path)?;
    Ok(LoadedConfig { files, ..read })
}

/// As [`read`], from a snapshot of files, which stays with the caller.
///
/// # Errors
/// As [`read`].
pub fn read_in(files: &Snapshot, path: &Path) -> Result<LoadedConfig, ConfigError> {
    match text_of(files, path) {
        Ok(text) => parse_with(&text, path, files),
        Err(why) => {
            let help = Some("give the configuration's path: --config FILE".to_owned());
            let message = format!("cannot read the configuration: {why}");
            let mistake = Diagnostic { severity: Severity::Error, line: 1, column: 1, span: 0..0, message, help };
            Err(ConfigError { file: path.to_owned(), text: String::new(), mistakes: vec![mistake] })
        }
    }
}

/// Reads what a file says as far as it is valid; what is wrong has its default. A makegate goes on with its configuration when the
/// file gets a mistake, so whoever looks for a running one must not stumble over the mistake.
///
/// # Errors
/// The file cannot be read.
pub fn read_despite_mistakes(path: &Path) -> io::Result<Config> {
    let files = Snapshot::new();
    let text = text_of(&files, path)?;
    Ok(toml_reader::walk(&text, |root| document(root, base_of(path), &files)).0)
}

fn base_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn text_of(files: &Snapshot, path: &Path) -> io::Result<String> {
    let bytes = files.read(path, FILE_BYTES_MAX)?;
    let text = str::from_utf8(&bytes);
    Ok(text.map_err(|error| io::Error::other(format!("invalid UTF-8 at byte {}", error.valid_up_to())))?.to_owned())
}

/// Parses a configuration from `text`. Relative paths are resolved against the folder of `file`.
///
/// # Errors
/// Every mistake in the text.
pub fn parse(text: &str, file: &Path) -> Result<LoadedConfig, ConfigError> {
    parse_with(text, file, &Snapshot::new())
}

/// As [`parse`]; the secrets are read from `files`, to warn about weak ones.
fn parse_with(text: &str, file: &Path, files: &Snapshot) -> Result<LoadedConfig, ConfigError> {
    let (config, findings) = toml_reader::walk(text, |root| document(root, base_of(file), files));
    let failed = findings.failed();
    let toml_reader::WalkResult { mistakes, settings, text } = findings;
    let file = file.to_owned();
    if failed {
        return Err(ConfigError { file, text, mistakes });
    }
    let origins = Origins { file, text, warnings: mistakes.clone(), settings };
    Ok(LoadedConfig { config, warnings: mistakes, origins, files: Snapshot::new() })
}

fn document(root: &Table<'_>, base: &Path, files: &Snapshot) -> Config {
    root.optional("version", VERSION);
    let gateway = root.table("gateway", |t| GatewayConfig::read(t, base));
    let operator = root.table("operator", |t| OperatorConfig::read(t, base));
    let metrics = root.table("metrics", |t| MetricsConfig::read(t, base));
    let upstream = root.table("upstream", |t| UpstreamConfig::read(t, base));
    let cache = root.table("cache", |t| CacheConfig::read(t, base));
    let audit = root.table("audit", |t| AuditConfig::read(t, base));
    let limits = root.table("limits", |t| Limits::read(t, base));
    let otel = root.table("otel", |t| OtelConfig::read(t, base));
    let replicas = root.optional_table("replicas", |t| ReplicasConfig::read(t, base));
    let process = root.table("process", |t| ProcessConfig::read(t, base));
    let added = rows::read(root);
    check_classes(root, &added, &cache.lifetime);
    let catalogue = Arc::new(catalogue(root, &added, &cache.lifetime));
    check_looks(root, &added, &catalogue);
    let mut grants = catalogue.grants();
    grants.extend(added.iter().filter_map(|row| row.grant.clone()));
    let certificates = gateway.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let issuers = issuers::read(root, base);
    let mut callers = CallerChecks::new(grants, certificates, &issuers);
    let callers = root.tables("caller", "name", |t| callers.read(t));
    let config = Config {
        gateway,
        operator,
        metrics,
        upstream,
        cache,
        audit,
        limits,
        otel,
        replicas,
        process,
        issuers,
        callers,
        catalogue,
    };
    checks::check(root, &config, &added, files);
    config
}

const VERSION: ValueKind<()> = ValueKind {
    form: TomlForm::Integer,
    what: "the format's version",
    example: "1",
    parse: |text| match text {
        "1" => Ok(()),
        other => Err(InvalidValue::new(format!("this makegate does not support version {other}"), "write version = 1")),
    },
};

/// The built-in rows and those of the file. An operation whose id is listed under the lifetimes becomes its own class.
fn catalogue(root: &Table<'_>, added: &[ParsedRow], lifetimes: &BTreeMap<Arc<str>, Duration>) -> Catalogue {
    let built_in = Catalogue::built_in();
    let mut operations: Vec<Operation> = built_in.rows().iter().map(|row| (**row).clone()).collect();
    let (places, further): (Vec<_>, Vec<_>) =
        added.iter().filter_map(|row| Some((row.place.clone(), row.operation.clone()?))).unzip();
    operations.extend(further);
    for operation in operations.iter_mut().filter(|row| row.may_cache && lifetimes.contains_key(&row.id)) {
        operation.cache = Some(operation.id.clone());
    }
    Catalogue::new(operations.clone()).unwrap_or_else(|conflicts| {
        for (index, conflict) in conflicts {
            let place = index.checked_sub(built_in.rows().len()).and_then(|index| places.get(index));
            let is_built_in = operations.get(index).is_some_and(|row| clashes(&built_in, row));
            let help = if is_built_in {
                "built-in rows cannot be replaced: give this row its own id and path"
            } else {
                "give this row its own id and path"
            };
            root.wrong(place.cloned().unwrap_or_default(), conflict.to_string(), help);
        }
        operations.truncate(built_in.rows().len());
        Catalogue::new(operations).unwrap_or_default()
    })
}

fn clashes(catalogue: &Catalogue, row: &Operation) -> bool {
    catalogue.rows().iter().any(|other| other.id == row.id || (other.method == row.method && other.path == row.path))
}

fn check_classes(root: &Table<'_>, added: &[ParsedRow], lifetimes: &BTreeMap<Arc<str>, Duration>) {
    for row in added {
        let Some(class) = row.class.as_ref().filter(|class| !lifetimes.contains_key(*class)) else {
            continue;
        };
        let (place, what) =
            (row.cache_place.clone(), format!("the class {} has no lifetime", toml_reader::quoted(class)));
        match toml_reader::nearest(class, lifetimes.keys().map(|class| &**class)) {
            Some(near) => root.wrong(place, what, format!("did you mean \"{near}\"?")),
            None => {
                let help = format!("add {class} = \"5m\" to [cache.lifetime], or leave cache out");
                root.warn(place, what + ": its answers are not cached", help);
            }
        }
    }
}

/// Checks the reads that rows of the file name in `look`, whatever their order.
fn check_looks(root: &Table<'_>, added: &[ParsedRow], catalogue: &Catalogue) {
    for row in added {
        let look = row.operation.as_ref().and_then(|write| Some((write, write.look.as_ref()?)));
        if let Some((write, look)) = look
            && let Err(wrong) = look.check(&write.path, catalogue)
        {
            root.invalid(row.look_place.clone(), wrong);
        }
    }
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownSetting {
    /// The key with its table (`cache.capacity`, `caller.finance.rate`).
    pub key: String,
    /// The value as written; for a secret, its source.
    pub value: String,
    /// `FILE:LINE`, or `default`.
    pub origin: String,
}

impl Origins {
    /// Every setting in force with its origin, section by section. Contains no secrets, because the file holds none.
    #[must_use]
    pub fn shown(&self) -> Vec<ShownSetting> {
        let lines: Vec<usize> = self.text.match_indices('\n').map(|(newline, _)| newline).collect();
        let show = |Setting { path, key, written }: &Setting| {
            let key = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            let (value, origin) = match written {
                SettingOrigin::Default(value) => (value.to_string(), "default".to_owned()),
                SettingOrigin::At(place) => {
                    let line = lines.partition_point(|newline| *newline < place.start) + 1;
                    let text = self.text.get(place.clone()).unwrap_or_default();
                    (on_one_line(text), format!("{}:{line}", self.file.display()))
                }
            };
            ShownSetting { key, value, origin }
        };
        self.settings.iter().map(show).collect()
    }
}

/// Removes the quotes of a plain string, and joins the lines of a list.
fn on_one_line(value: &str) -> String {
    let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    match unquoted.filter(|text| !text.contains(['"', '\\'])) {
        Some(text) => text.to_owned(),
        None => value.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}
