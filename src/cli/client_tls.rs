//! TLS of the commands that ask a running makegate: whom they trust, and the certificate that they show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use hyper_rustls::ConfigBuilderExt as _;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::failure::CommandFailure;

#[derive(Clone, Debug, Default, Args)]
pub(super) struct TlsOptions {
    /// Certificate authorities to trust instead of the system's (PEM) [env: MAKEGATE_OPERATOR_CA].
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// The certificate to show, and its key, in one file (PEM) [env: MAKEGATE_OPERATOR_CERT].
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
}

impl TlsOptions {
    /// The options, and what the environment says where one is left out.
    pub(super) fn with_environment(&self) -> Self {
        let or =
            |given: &Option<PathBuf>, name| given.clone().or_else(|| super::source::variable(name).map(PathBuf::from));
        Self { ca: or(&self.ca, "MAKEGATE_OPERATOR_CA"), cert: or(&self.cert, "MAKEGATE_OPERATOR_CERT") }
    }

    /// What a connection to `url` is made with.
    pub(super) fn config(&self, url: &str) -> Result<ClientConfig, CommandFailure> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().map_err(CommandFailure::failed)?;
        let config = match &self.ca {
            Some(file) => config.with_root_certificates(authorities(file)?),
            None => config.with_native_roots().map_err(|_no_roots| {
                let why = "the system has no certificate authorities to verify it with; install the package ca-certificates, or give --ca FILE";
                CommandFailure::failed(format!("{url}: {why}"))
            })?,
        };
        let Some(file) = &self.cert else { return Ok(config.with_no_client_auth()) };
        let key = PrivateKeyDer::from_pem_file(file).map_err(|error| wrong("--cert", file, &error))?;
        config.with_client_auth_cert(certificates("--cert", file)?, key).map_err(|error| wrong("--cert", file, &error))
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, CommandFailure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--ca", file)? {
        roots.add(certificate).map_err(|error| wrong("--ca", file, &error))?;
    }
    Ok(roots)
}

fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, CommandFailure> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| wrong(option, file, &error))?;
    if all.is_empty() { Err(wrong(option, file, &"it contains no certificate")) } else { Ok(all) }
}

fn wrong(option: &str, file: &Path, why: &dyn std::fmt::Display) -> CommandFailure {
    CommandFailure::usage(format!("{option} {}: {why}", file.display()))
}
