//! The folders that a configuration's files are in: the process may be confined to them.

#![expect(clippy::disallowed_methods, reason = "runs at startup and on the `watched-files` thread")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Config, JwksSource, Listen, LoadedConfig, SecretSource, secret};

impl LoadedConfig {
    /// The folders of the configuration itself and of every file that it names, and of what a link leads to.
    #[must_use]
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        let Config { gateway, operator, upstream, otel, replicas, issuers, .. } = &self.config;
        let tls = gateway.tls.iter().chain(&operator.tls);
        let tls = tls.flat_map(|tls| {
            let lists = tls.crl.iter().map(|file| Some(&**file));
            [Some(&*tls.cert), Some(&*tls.key), tls.client_ca.as_deref()].into_iter().chain(lists)
        });
        let secrets = [
            operator.key.as_ref(),
            Some(&upstream.token),
            otel.headers.as_ref(),
            replicas.as_ref().map(|one| &one.url),
        ]
        .map(|source| match source {
            Some(SecretSource::File(path)) => Some(&**path),
            Some(SecretSource::Env(_)) | None => None,
        });
        let keys = issuers.iter().flat_map(|issuer| match &issuer.keys {
            JwksSource::File(path) => [Some(&**path), None],
            JwksSource::Url(_) => [None, issuer.ca_file.as_deref()],
        });
        let authorities = [upstream.ca_file.as_deref(), otel.ca_file.as_deref()];
        let shared = replicas.iter().flat_map(|one| [Some(&*one.key_file), one.ca_file.as_deref()]);
        let files = tls
            .chain(secrets)
            .chain(shared)
            .chain(keys)
            .chain(authorities)
            .chain([Some(&*self.origins.file)])
            .flatten();
        let real = |folder: PathBuf| folder.canonicalize().ok();
        let behind = |file: &Path| Some(file.canonicalize().ok()?.parent()?.to_owned());
        files
            .flat_map(|file| [real(folder(file)), behind(file)])
            // When systemd passes new credentials, it puts another folder in the place of this one.
            .chain([secret::credentials().and_then(|own| real(folder(&own)))])
            .flatten()
            .collect()
    }
}

impl Config {
    /// The folder of the log and of everything else that makegate keeps, as it is behind links.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.audit.dir.canonicalize().unwrap_or_else(|_| self.audit.dir.clone())
    }

    /// The folders of the doors' Unix sockets.
    #[must_use]
    pub fn socket_folders(&self) -> BTreeSet<PathBuf> {
        let doors = [&self.gateway.listen, &self.operator.listen, &self.metrics.listen];
        let sockets = doors.into_iter().flatten().filter_map(|listen| match listen {
            Listen::Unix(path) => Some(folder(path)),
            Listen::Tcp(_) => None,
        });
        sockets.collect()
    }
}

/// The folder that a file is in.
fn folder(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}
