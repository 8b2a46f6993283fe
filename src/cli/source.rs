//! `--config FILE` or `--url URL`: whether a command reads files or asks a running makegate.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::SecretString;

use super::check;
use super::client::OperatorClient;
use super::client_tls::TlsOptions;
use super::failure::CommandFailure;
use super::process::ColorChoice;
use crate::config::secret::secret;
use crate::config::{self, Config, Listen, LoadedConfig, OperatorConfig};

pub(super) const CONFIG: &str = "MAKEGATE_CONFIG";
pub(super) const URL: &str = "MAKEGATE_OPERATOR_URL";
const KEY: &str = "MAKEGATE_OPERATOR_KEY";
const KEY_FILE: &str = "MAKEGATE_OPERATOR_KEY_FILE";

#[derive(Debug, Args)]
pub(super) struct SourceOptions {
    /// Read the files that this configuration names [env: MAKEGATE_CONFIG].
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// Ask the running makegate with this operator door [env: MAKEGATE_OPERATOR_URL].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A file with the operator key [env: MAKEGATE_OPERATOR_KEY_FILE, or the key itself in MAKEGATE_OPERATOR_KEY].
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsOptions,
}

pub(super) enum DataSource {
    Files(Box<LoadedConfig>),
    Running(OperatorClient),
}

impl SourceOptions {
    /// Options take precedence over the environment, and there a running makegate over files.
    pub(super) fn source(&self, color: ColorChoice) -> Result<DataSource, CommandFailure> {
        let files = |path: &Path| {
            check::configuration(path, color.colors(&io::stderr())).map(|read| DataSource::Files(Box::new(read)))
        };
        if let Some(path) = &self.config {
            return files(path);
        }
        if let Some(url) = self.url.clone().or_else(|| variable(URL)) {
            return Ok(DataSource::Running(OperatorClient::new(&url, &self.tls, self.key()?)?));
        }
        match variable(CONFIG) {
            Some(path) => files(Path::new(&path)),
            None => {
                Err(CommandFailure::usage("give --config FILE to read files, or --url URL to ask a running makegate"))
            }
        }
    }

    /// The running makegate of this configuration: the first operator address that responds, or `None`. Uses the key
    /// from the configuration unless an option gives one.
    pub(super) async fn door(&self, config: &Config) -> Result<Option<OperatorClient>, CommandFailure> {
        let operator = &config.operator;
        let tls = trusting(operator, &self.tls);
        for url in operator.listen.iter().map(|listen| url_of(scheme(operator), listen)) {
            if OperatorClient::new(&url, &tls, None)?.get("/livez").await.is_ok() {
                let source = self.key_file.clone().map(config::SecretSource::File).or_else(|| operator.key.clone());
                let key = match source {
                    Some(source) => Some(secret(&source).map_err(CommandFailure::usage)?),
                    None => self.key()?,
                };
                return Ok(Some(OperatorClient::new(&url, &tls, key)?));
            }
        }
        Ok(None)
    }

    fn key(&self) -> Result<Option<SecretString>, CommandFailure> {
        let file = |path: PathBuf| Some(config::SecretSource::File(path));
        let source = match &self.key_file {
            Some(path) => file(path.clone()),
            None if variable(KEY).is_some() => Some(config::SecretSource::Env(KEY.to_owned())),
            None => variable(KEY_FILE).and_then(|path| file(path.into())),
        };
        source.map(|source| secret(&source).map_err(CommandFailure::usage)).transpose()
    }
}

/// Where a makegate with this configuration answers probes, which show no key: the door for scrapers, or else the operator
/// door. And whom to trust there.
pub(super) fn door_for_probes(config: &Config, tls: &TlsOptions) -> Option<(String, TlsOptions)> {
    let Config { operator, metrics, .. } = config;
    if let Some(listen) = metrics.listen.first() {
        return Some((url_of("http", listen), tls.clone()));
    }
    let listen = operator.listen.first()?;
    Some((url_of(scheme(operator), listen), trusting(operator, tls)))
}

const fn scheme(operator: &OperatorConfig) -> &'static str {
    if operator.tls.is_some() { "https" } else { "http" }
}

/// The door's own certificate is trusted if the authority that issued it is in the same file.
fn trusting(operator: &OperatorConfig, tls: &TlsOptions) -> TlsOptions {
    let mut tls = tls.with_environment();
    tls.ca = tls.ca.or_else(|| operator.tls.as_ref().map(|tls| tls.cert.clone()));
    tls
}

/// The URL that reaches this listener from this machine.
fn url_of(scheme: &str, listen: &Listen) -> String {
    match listen {
        Listen::Unix(path) => format!("unix:{}", path.display()),
        Listen::Tcp(address) => {
            let mut address = *address;
            match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
            format!("{scheme}://{address}")
        }
    }
}

/// An environment variable, unless it is unset or empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
