//! `[replicas]` with what its files hold.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use secrecy::SecretString;

use super::engine::{EngineTarget, InvalidTarget};
use crate::config::secret::{file_or_credential, secret_in};
use crate::config::{ReplicasConfig, is_replica_name};
use crate::http_client::{authorities, file_error};
use crate::watched_files::Snapshot;

/// Size of the key, in bytes.
const KEY_BYTES: u64 = 32;

/// What `[replicas]` says, with what its files hold.
pub struct ReplicasSettings {
    /// `[replicas]`.
    pub config: ReplicasConfig,
    /// How to reach the engine, and as whom.
    pub access: EngineAccess,
    /// The content of `key_file`.
    pub key: [u8; 32],
}

/// How to reach the engine, and as whom; the key may still be missing.
pub struct EngineAccess {
    /// The engine's URL.
    pub url: SecretString,
    /// The authorities in `ca_file`, if it is set.
    pub roots: Option<RootCertStore>,
    /// This replica's name.
    pub name: Arc<str>,
}

impl EngineAccess {
    /// Reads the files that say how to reach the engine.
    ///
    /// # Errors
    /// Which of them cannot be used, why, and what to do.
    pub fn read(config: &ReplicasConfig, files: &Snapshot) -> io::Result<Self> {
        let url = secret_in(files, &config.url).map_err(io::Error::other)?;
        let roots = config.ca_file.as_deref().map(|path| authorities(path, files)).transpose()?;
        let name = match &config.name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        Ok(Self { url, roots, name })
    }

    /// The engine that this names.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn target(&self) -> Result<EngineTarget, InvalidTarget> {
        EngineTarget::parse(&self.url, self.roots.clone(), &self.name)
    }
}

impl fmt::Debug for ReplicasSettings {
    /// Hides the URL and the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicasSettings").field("name", &self.access.name).finish_non_exhaustive()
    }
}

impl ReplicasSettings {
    /// Reads the files that `[replicas]` names.
    ///
    /// # Errors
    /// Which of them cannot be used, why, and what to do.
    pub fn read(config: &ReplicasConfig, files: &Snapshot) -> io::Result<Self> {
        let access = EngineAccess::read(config, files)?;
        Ok(Self { config: config.clone(), access, key: key(&config.key_file, files)? })
    }
}

fn key(path: &Path, files: &Snapshot) -> io::Result<[u8; 32]> {
    let read = files.read(&file_or_credential(path), KEY_BYTES);
    let bytes = read.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            file_error(path, &"does not exist: `makegate replicas init` makes it, once for all replicas")
        } else {
            file_error(path, &error)
        }
    })?;
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| file_error(path, &"does not hold the 32 bytes of a key"))
}

/// The key that all replicas share.
///
/// # Errors
/// There is none, or it is damaged.
pub fn shared_key(config: &ReplicasConfig, files: &Snapshot) -> io::Result<[u8; 32]> {
    key(&config.key_file, files)
}

/// The host's name, which is a pod's name in Kubernetes.
fn host_name() -> io::Result<Arc<str>> {
    let about = rustix::system::uname();
    let name = about.nodename().to_str().ok().filter(|name| is_replica_name(name));
    name.map(Arc::from).ok_or_else(|| io::Error::other("the host's name cannot be a replica's name: set replicas.name"))
}
