//! Reloads at SIGHUP, and when the contents of the configuration or of a file it names have changed.
//!
//! A separate thread reads all files, and they are checked together; then everything takes effect, or nothing does.

#![expect(clippy::disallowed_methods, reason = "a policy is built on a blocking thread; no file is touched")]

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::config_changes::changes;
use super::doors::DoorCertificates;
use super::{ServiceInner, quota_settings, read_issuers};
use crate::audit::Record;
use crate::clock::Clock;
use crate::config::secret::SecretError;
use crate::config::{self, Config, ConfigError, LoadedConfig, OperatorKey, UpstreamConfig};
use crate::door::CheckedCertificate;
use crate::gateway::admit::policy::Policy;
use crate::hash;
use crate::issuers::Issuer;
use crate::otel::{OtelError, OtelSettings, ReadSettings};
use crate::process_log::{FaultState, STATE};
use crate::upstream::{InvalidToken, SetupError, Token, Upstream};
use crate::watched_files::{FileHashes, FileReadHangs, FileThread, Snapshot};

/// How often the files are compared with the contents checked last. Together with [`STABLE_TIME`] that makes at most 5 s.
const CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// A changed file must stay the same for this long before it counts: somebody may still be writing it.
const STABLE_TIME: Duration = Duration::from_secs(1);
/// How many times in a row a file may still be changing before the next look.
const STABILITY_CHECKS_MAX: usize = 3;
/// Time limit for reading the files.
const READ_TIME_MAX: Duration = Duration::from_secs(5);

/// What the service knows about the files it watches.
pub(super) struct Watch {
    thread: FileThread,
    /// The contents checked last, whether they took effect or not, so that a bad file is reported once.
    judged: Mutex<FileHashes>,
    /// The contents in force.
    in_force: Mutex<FileHashes>,
    /// Set while the files cannot be read in time.
    hangs: FaultState,
    one_at_a_time: tokio::sync::Mutex<()>,
    /// The only folders that the process can read in, if it is confined.
    pub(super) readable: OnceLock<BTreeSet<PathBuf>>,
}

impl Watch {
    /// `files` are the ones that the current configuration was built from.
    pub(super) fn new(files: &Snapshot) -> std::io::Result<Self> {
        Ok(Self {
            thread: FileThread::start()?,
            judged: Mutex::new(files.hashes()),
            in_force: Mutex::new(files.hashes()),
            hangs: FaultState::default(),
            one_at_a_time: tokio::sync::Mutex::default(),
            readable: OnceLock::new(),
        })
    }
}

/// A new configuration, completely read and checked.
struct Prepared {
    read: LoadedConfig,
    operators: Vec<OperatorKey>,
    certificates: DoorCertificates<CheckedCertificate>,
    issuers: Vec<Arc<Issuer>>,
    otel: Option<OtelSettings>,
    upstream: NextConfig,
}

/// The upstream after a reload.
enum NextConfig {
    /// The current one, with this token.
    Same(Box<Token>),
    Another(Arc<Upstream>),
}

/// What a reload put in force.
struct Applied {
    origins: config::Origins,
    /// The configuration's hash, and what changed.
    words: String,
}

/// The result of checking all files.
struct Judged {
    hashes: FileHashes,
    prepared: Result<Prepared, ReloadError>,
}

/// Why the old configuration stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The token cannot be used.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// The operator key cannot be used.
    #[error(transparent)]
    OperatorKey(#[from] SecretError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(io::Error),
    /// The keys of an issuer cannot be used.
    #[error(transparent)]
    Issuer(io::Error),
    /// Telemetry cannot be sent as the configuration says.
    #[error(transparent)]
    Otel(#[from] OtelError),
    /// The upstream can never be reached.
    #[error(transparent)]
    Upstream(#[from] SetupError),
    /// The files cannot be read in time.
    #[error(transparent)]
    Hangs(#[from] FileReadHangs),
    /// These settings are fixed while the service runs.
    #[error("{0} cannot change while makegate is running: restart it, or restore the old value")]
    Fixed(String),
    /// The configuration names files where the process may not read.
    #[error(
        "it names files in {0}, and makegate has confined itself to the folders of its first configuration: restart it, or keep the files in those"
    )]
    Confined(String),
    /// Applying it panicked.
    #[error("it could not be applied because of an internal error in makegate")]
    Panicked,
}

impl ServiceInner {
    /// Applies the current contents of all files, or reports why it cannot.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<(), ReloadError> {
        let _one_at_a_time = self.watch.one_at_a_time.lock().await;
        let judged = self.read_and_check().await;
        self.conclude(judged).await
    }

    /// Reloads whenever file contents change.
    pub(super) async fn follow_files(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if let Err(hangs) = self.check_files().await
                && self.watch.hangs.begin(self.gateway.clock.now())
            {
                let _reported = self.conclude(Err(hangs)).await;
            }
        }
    }

    /// Looks at the files once. Changes take effect once two consecutive checks saw the same contents.
    async fn check_files(self: &Arc<Self>) -> Result<(), FileReadHangs> {
        let known = lock(&self.watch.judged).clone();
        let before = known.clone();
        let now = self.watch.thread.run(READ_TIME_MAX, move |files| before.rehash(&files)).await?;
        self.watch.hangs.end(self.gateway.clock.now());
        if now == known {
            return Ok(());
        }
        let mut first = self.read_and_check().await?.hashes;
        for _ in 0..STABILITY_CHECKS_MAX {
            tokio::time::sleep(STABLE_TIME).await;
            let _one_at_a_time = self.watch.one_at_a_time.lock().await;
            if *lock(&self.watch.judged) != known {
                return Ok(()); // a reload was requested in the meantime
            }
            let second = self.read_and_check().await?;
            if second.hashes == first {
                let _reported = self.conclude(Ok(second)).await;
                return Ok(());
            }
            first = second.hashes;
        }
        Ok(())
    }

    async fn read_and_check(&self) -> Result<Judged, FileReadHangs> {
        let (file, clock) = (self.file.clone(), self.gateway.clock.clone());
        let (policy, in_force) = (self.gateway.policy(), lock(&self.watch.in_force).clone());
        let readable = self.watch.readable.get().cloned();
        let is_telemetry_sent = self.gateway.otel.is_some();
        let judge = move |files: Snapshot| {
            let prepared = prepare(&files, &file, ((&policy, &in_force), is_telemetry_sent), readable.as_ref(), clock);
            Judged { hashes: files.hashes(), prepared }
        };
        self.watch.thread.run(READ_TIME_MAX, judge).await
    }

    /// Puts in force what was read, if it is good, and reports the result.
    async fn conclude(self: &Arc<Self>, judged: Result<Judged, FileReadHangs>) -> Result<(), ReloadError> {
        let result = self.apply(judged).await;
        self.report(result)
    }

    async fn apply(self: &Arc<Self>, judged: Result<Judged, FileReadHangs>) -> Result<Applied, ReloadError> {
        let Judged { hashes, prepared } = judged?;
        *lock(&self.watch.judged) = hashes.clone();
        let prepared = prepared?;
        let hash = hashes.of(&self.file).unwrap_or_default();
        *lock(&self.watch.in_force) = hashes;
        self.gateway.replicas.iter().for_each(|replicas| replicas.set_config_hash(hash::hex(&hash)));
        // With very many callers this takes longer than other tasks on this thread should wait.
        let inner = self.clone();
        let applied = tokio::task::spawn_blocking(move || inner.put_in_force(prepared)).await;
        let (origins, changes) = applied.map_err(|_panicked| ReloadError::Panicked)?;
        Ok(Applied { origins, words: format!("sha256:{}; {changes}", hash::hex(&hash)) })
    }

    /// What is in force now, and what changed, in words.
    fn put_in_force(&self, prepared: Prepared) -> (config::Origins, String) {
        let Prepared { read, operators, certificates, issuers, otel, upstream } = prepared;
        let gateway = &self.gateway;
        let before = (gateway.policy(), self.operator_state.operators());
        let mut changes = changes((&before.0.config, &before.1), (&read.config, &operators));
        let upstream = match upstream {
            NextConfig::Another(upstream) => Some(upstream),
            NextConfig::Same(token) => {
                if gateway.upstream().set_token(*token) {
                    gateway.purge(None).1.in_background(&gateway.tasks);
                    changes.push_str("; the Make token was replaced");
                }
                None
            }
        };
        if let (Some(otel), Some(settings)) = (&gateway.otel, otel) {
            otel.set_settings(settings);
        }
        self.certificates.replace(certificates, gateway.clock.wall());
        gateway.quota.set_settings(quota_settings(&read.config));
        gateway.apply_config(read.config, issuers, upstream);
        self.log_expiry();
        self.operator_state.set_operators(&operators);
        (read.origins, changes)
    }

    /// Tells both logs and the operators.
    fn report(&self, result: Result<Applied, ReloadError>) -> Result<(), ReloadError> {
        let file = self.file.display();
        let (event, detail) = match &result {
            Ok(Applied { words, .. }) => {
                tracing::info!(target: STATE, %file, "the configuration was reloaded");
                ("reload", format!("the configuration was reloaded: {words}"))
            }
            Err(why) => {
                tracing::error!(target: STATE, %file, %why, "the configuration was not reloaded: the old one stays in force");
                ("reload-failed", why.to_string())
            }
        };
        if let Some(room) = self.gateway.log.reserve() {
            room.fill(Record::event(self.gateway.clock.wall(), event, &*detail));
        }
        let (origins, done) =
            result.map_or_else(|why| (Err(detail), Err(why)), |applied| (Ok(applied.origins), Ok(())));
        self.operator_state.note_reload(origins);
        done
    }
}

/// Reads and checks everything without changing anything. `before`: the policy in force and the files it was built
/// from.
fn prepare(
    files: &Snapshot,
    file: &Path,
    (before, is_telemetry_sent): ((&Policy, &FileHashes), bool),
    readable: Option<&BTreeSet<PathBuf>>,
    clock: Clock,
) -> Result<Prepared, ReloadError> {
    let (policy, in_force) = before;
    let read = config::read_in(files, file)?;
    readable.map_or(Ok(()), |readable| check_readable(readable, &read))?;
    let config = &read.config;
    let token = Token::read(files, &config.upstream.token)?;
    let operators = config.operator.operators(files)?;
    check_fixed(&policy.config, config)?;
    let ReadSettings { settings: otel, .. } = OtelSettings::read(&config.otel, files)?;
    if otel.is_some() != is_telemetry_sent {
        return Err(ReloadError::Fixed("whether telemetry is sent (otel.endpoint)".to_owned()));
    }
    let certificates = DoorCertificates::read(config, files).map_err(ReloadError::Certificate)?;
    let issuers = read_issuers(config, files, &policy.issuers).map_err(ReloadError::Issuer)?;
    let other_authorities = |path: &Path| files.hashes().of(path) != in_force.of(path);
    // Another quota needs no other upstream.
    let UpstreamConfig { quota, quota_max, quotas, .. } = config.upstream.clone();
    let before = UpstreamConfig { quota, quota_max, quotas, ..policy.config.upstream.clone() };
    let is_another = before != config.upstream
        || policy.config.limits != config.limits
        || config.upstream.ca_file.as_deref().is_some_and(other_authorities);
    let upstream = if is_another {
        let upstream = Upstream::new(&config.upstream, &config.limits, token, clock, files);
        NextConfig::Another(Arc::new(upstream?))
    } else {
        NextConfig::Same(Box::new(token))
    };
    Ok(Prepared { read, operators, certificates, issuers, otel, upstream })
}

/// Rejects a configuration with files where a confined process cannot read.
fn check_readable(readable: &BTreeSet<PathBuf>, read: &LoadedConfig) -> Result<(), ReloadError> {
    let is_within = |folder: &PathBuf| readable.iter().any(|one| folder.starts_with(one));
    match read.folders().iter().find(|folder| !is_within(folder)) {
        Some(folder) => Err(ReloadError::Confined(folder.display().to_string())),
        None => Ok(()),
    }
}

/// Rejects changes to settings that are fixed while the service runs.
fn check_fixed(before: &Config, after: &Config) -> Result<(), ReloadError> {
    let same = [
        ("gateway.listen", before.gateway.listen == after.gateway.listen),
        ("gateway.socket", before.gateway.socket == after.gateway.socket),
        ("operator.socket", before.operator.socket == after.operator.socket),
        ("gateway.tls", before.gateway.tls.is_some() == after.gateway.tls.is_some()),
        ("operator.tls", before.operator.tls.is_some() == after.operator.tls.is_some()),
        ("metrics.listen", before.metrics.listen == after.metrics.listen),
        ("operator.listen", before.operator.listen == after.operator.listen),
        ("audit", before.audit == after.audit),
        ("otel.queue", before.otel.queue == after.otel.queue),
        ("process", before.process == after.process),
        ("replicas", before.replicas == after.replicas),
        ("cache.capacity", before.cache.capacity_bytes == after.cache.capacity_bytes),
    ];
    let changed: Vec<&str> = same.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(ReloadError::Fixed(changed.join(", ")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
