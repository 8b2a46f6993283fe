//! A running makegate: the engines wired together, both doors open, configuration and secrets followed, an orderly end.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use secrecy::ExposeSecret as _;

use crate::answers::Answers;
use crate::audit::{Log, Record};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Read;
use crate::config::secret::secret;
use crate::config::{self, Config, Limits, Origins, Source};
use crate::gateway::door::{Certificate, Checked, Door, OpenDoor};
use crate::gateway::{Engines, Gate, life, look, tally};
use crate::hash;
use crate::operator::{self, Desk};
use crate::quota::{self, Quota};
use crate::tasks::Tasks;
use crate::upstream::{Token, Upstream};

/// File descriptors that connections leave to the rest: the log, its index, the listeners, what is read while running.
const FURTHER_FILES: usize = 64;
/// Where descriptors are few, operators have one of so many that are left for connections.
const OPERATORS_PART: usize = 8;
/// With fewer connections there is nothing to serve.
const CONNECTIONS_MIN: usize = 16;
/// How often contents of the configuration and the secrets are compared.
const WATCH: Duration = Duration::from_secs(5);
/// How often the cache and the answers forget and the quota's journal is synced.
const CHORES: Duration = Duration::from_secs(1);
/// How long connections have to end that were cut, and the operators' door to close.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// After the drain began, doors stay open so long: whoever balances load sees `not ready` first.
const NOT_READY_FIRST: Duration = Duration::from_millis(200);

/// Why the service did not start.
#[derive(Debug)]
pub struct StartError {
    what: String,
    configuration: bool,
}

impl StartError {
    fn configuration(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), configuration: true }
    }

    fn failed(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), configuration: false }
    }

    /// 2: the configuration or a secret is to be mended; 1: anything else.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if self.configuration { 2 } else { 1 }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for StartError {}

/// The contents that were looked at last, whether they were put in force or refused: a bad file is told once.
#[derive(PartialEq, Eq)]
struct Seen {
    text: Option<[u8; 32]>,
    token: Option<[u8; 32]>,
    operator_key: Option<[u8; 32]>,
    /// Of certificates: the door's files, and the authorities that the upstream is believed by.
    door: Vec<Option<[u8; 32]>>,
    authorities: Option<[u8; 32]>,
}

impl Seen {
    fn of(file: &Path, config: &Config) -> Self {
        let tls = config.gateway.tls.iter();
        let door = tls.flat_map(|tls| [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()]).flatten();
        Self {
            text: file_hash(file),
            door: door.map(|path| file_hash(path)).collect(),
            authorities: config.upstream.ca_file.as_deref().and_then(file_hash),
            token: secret_hash(&config.upstream.token).ok(),
            operator_key: secret_hash(&config.operator.key).ok(),
        }
    }
}

/// The running service.
pub struct Service {
    inner: Arc<Inner>,
    gateway: OpenDoor,
    operator: OpenDoor,
}

struct Inner {
    gate: Arc<Gate>,
    desk: Arc<Desk>,
    /// The operators' door has tasks of its own: it says `not ready` until the gateway's are done.
    desk_tasks: Tasks,
    file: PathBuf,
    /// What the gateway door shows of itself.
    certificate: Option<Certificate>,
    /// By which contents of `upstream.ca_file` the upstream is believed now; what was seen since may have been refused.
    believed: Mutex<Option<[u8; 32]>>,
    seen: Mutex<Seen>,
    reloading: tokio::sync::Mutex<()>,
}

impl Service {
    /// Reads the secrets, opens the log, binds both doors and begins to serve.
    ///
    /// # Errors
    /// [`StartError`]: what is wrong and what to do.
    pub async fn start(read: Read, clock: Clock) -> Result<Self, StartError> {
        let Read { config, origins, .. } = read;
        let file = origins.file.clone();
        if config.upstream.url.tls || config.gateway.tls.is_some() {
            hash::warm_tls();
        }
        let token = token(&config.upstream.token).map_err(StartError::configuration)?;
        let operator_key = secret(&config.operator.key).map_err(StartError::configuration)?;
        let upstream =
            Upstream::new(&config.upstream, &config.limits, token, clock.clone()).map_err(StartError::configuration)?;
        let (tasks, desk_tasks) = (Tasks::new(), Tasks::new());
        let [callers, operators] =
            connections(&config)?.map(|connections| Limits { connections, ..config.limits.clone() });
        let gateway = Door::bind(&config.gateway.listen, config.gateway.tls.as_ref(), &callers, &clock, &tasks);
        let gateway = gateway.map_err(StartError::failed)?;
        let operator =
            Door::bind(&config.operator.listen, None, &operators, &clock, &desk_tasks).map_err(StartError::failed)?;
        let (log, recovered) = Log::open(&config.audit, clock.clone()).map_err(StartError::failed)?;
        let answers = Answers::open(&config.audit.dir, &config.limits, clock.clone()).map_err(StartError::failed)?;
        let quota =
            Quota::open(quota_settings(&config), Some(&config.audit.dir), clock.clone()).map_err(StartError::failed)?;
        let cache = Cache::new(&config.cache, config.limits.stored_bytes, clock.clone());
        let engines = Engines { log, answers, cache, quota, upstream: Arc::new(upstream), clock, tasks };
        let gate = Gate::new(config, engines);
        gate.take_up(&recovered.doubts);
        let seen = Seen::of(&file, &gate.policy().config);
        let desk = Desk::new(gate.clone(), &operator_key, Some(file.clone()), origins);
        let inner = Arc::new(Inner {
            gate: gate.clone(),
            desk: desk.clone(),
            desk_tasks,
            file,
            certificate: gateway.certificate().cloned(),
            believed: Mutex::new(seen.authorities),
            seen: Mutex::new(seen),
            reloading: tokio::sync::Mutex::default(),
        });
        let gateway = gateway.open(move |peer, request| life::answer(gate.clone(), &peer, request));
        desk.show_door("gateway", gateway.clone());
        let operator = operator::open(operator, desk);
        inner.clone().look_after();
        Ok(Self { inner, gateway, operator })
    }

    /// Where callers come in.
    #[must_use]
    pub fn gateway_addresses(&self) -> &[SocketAddr] {
        self.gateway.addresses()
    }

    /// Where operators come in.
    #[must_use]
    pub fn operator_addresses(&self) -> &[SocketAddr] {
        self.operator.addresses()
    }

    /// The gate, for tests and the demo.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.inner.gate
    }

    /// Puts the configuration file's and the secrets' present contents in force: all of it or nothing.
    ///
    /// # Errors
    /// Why nothing changed.
    pub async fn reload(&self) -> Result<(), String> {
        self.inner.reload().await
    }

    /// Not ready, then closed; what is under way has the drain time to finish. `true`: all of it did.
    pub async fn shut_down(self) -> bool {
        let gate = &self.inner.gate;
        let limit = gate.policy().limits().drain;
        gate.drain();
        tokio::time::sleep(NOT_READY_FIRST.min(limit)).await;
        self.gateway.close();
        gate.tasks.stop();
        let finished = gate.tasks.drained(limit).await;
        // Whoever is cut off now leaves a record all the same; a write without an outcome is in doubt at the next start.
        self.gateway.cut();
        gate.tasks.drained(LAST_WORDS).await;
        self.operator.close();
        self.inner.desk_tasks.stop();
        self.inner.desk_tasks.drained(LAST_WORDS).await;
        gate.quota.shut();
        gate.answers.maintain();
        gate.tally.settle(&gate.log, (gate.clock.now(), gate.clock.wall()), true);
        gate.log.close().await;
        finished
    }
}

impl Inner {
    /// The small work that recurs while the service runs.
    fn look_after(self: Arc<Self>) {
        let (gate, watched) = (self.gate.clone(), self.clone());
        self.gate.tasks.spawn_until_stop(async move {
            loop {
                tokio::time::sleep(CHORES).await;
                gate.cache.maintain();
                let gate = gate.clone();
                // fdatasync is no work for a runtime thread.
                let chores = move || {
                    gate.quota.sync();
                    gate.answers.maintain();
                };
                let _joined = tokio::task::spawn_blocking(chores).await;
            }
        });
        self.gate.tasks.spawn_until_stop(look::run(self.gate.clone()));
        self.gate.tasks.spawn_until_stop(tally::run(self.gate.clone()));
        self.gate.tasks.spawn_until_stop(async move {
            loop {
                tokio::time::sleep(WATCH).await;
                if watched.changed() {
                    let _told = watched.reload().await;
                }
            }
        });
    }

    fn changed(&self) -> bool {
        let now = Seen::of(&self.file, &self.gate.policy().config);
        *self.seen() != now
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reload(&self) -> Result<(), String> {
        let _one_at_a_time = self.reloading.lock().await;
        let seen = Seen::of(&self.file, &self.gate.policy().config);
        let believed = *self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        let (shown, result) = match self.adopt(believed != seen.authorities) {
            Ok(origins) => {
                *self.believed.lock().unwrap_or_else(PoisonError::into_inner) = seen.authorities;
                (Ok(origins), Ok(()))
            }
            Err(why) => (Err(why.clone()), Err(why)),
        };
        self.desk.reloaded(shown);
        *self.seen() = seen;
        match &result {
            Ok(()) => tracing::info!(file = %self.file.display(), "the configuration was reloaded"),
            Err(why) => {
                tracing::error!(file = %self.file.display(), %why, "the configuration was not reloaded: the old one stays in force")
            }
        }
        self.told(&result);
        result
    }

    /// Everything is checked before anything changes. `other_authorities`: the upstream's certificate is to be believed by others.
    fn adopt(&self, other_authorities: bool) -> Result<Origins, String> {
        let gate = &self.gate;
        let before = gate.policy();
        let read = config::read(&self.file).map_err(|failure| failure.to_string())?;
        let token = token(&read.config.upstream.token)?;
        let operator_key = secret(&read.config.operator.key)?;
        fixed(&before.config, &read.config)?;
        let checked = read.config.gateway.tls.as_ref().map(Checked::read).transpose().map_err(|why| why.to_string())?;
        let other_upstream = other_authorities
            || before.config.upstream != read.config.upstream
            || before.config.limits != read.config.limits;
        let upstream = if other_upstream {
            let made = Upstream::new(&read.config.upstream, &read.config.limits, token, gate.clock.clone());
            Some(Arc::new(made.map_err(|error| error.to_string())?))
        } else {
            if gate.upstream().set_token(token) {
                gate.cache.purge_all();
            }
            None
        };
        if let Some((certificate, checked)) = self.certificate.as_ref().zip(checked) {
            certificate.put(checked);
        }
        gate.quota.configure(quota_settings(&read.config));
        gate.adopt(read.config, upstream);
        self.desk.set_key(&operator_key);
        Ok(read.origins)
    }

    fn told(&self, result: &Result<(), String>) {
        let (event, detail) = match result {
            Ok(()) => ("reload", "the configuration was reloaded"),
            Err(why) => ("reload-failed", why.as_str()),
        };
        if let Some(room) = self.gate.log.reserve() {
            room.fill(Record::event(self.gate.clock.wall(), event, detail));
        }
    }
}

/// How many connections the two doors may have, callers' and operators'. Fewer than are configured where the system grants too
/// few file descriptors: the log and the way upstream need theirs whatever callers do.
fn connections(config: &Config) -> Result<[usize; 2], StartError> {
    let wanted = config.limits.connections;
    let kept = config.upstream.connections.saturating_add(FURTHER_FILES);
    let granted = getrlimit(Resource::Nofile).current.and_then(|granted| usize::try_from(granted).ok());
    let Some(granted) = granted.filter(|granted| *granted < wanted.saturating_mul(2).saturating_add(kept)) else {
        return Ok([wanted; 2]);
    };
    let help = "raise the limit (LimitNOFILE, ulimit -n), or lower limits.connections";
    let free = granted.saturating_sub(kept);
    if free < CONNECTIONS_MIN {
        let least = kept.saturating_add(CONNECTIONS_MIN);
        let what = format!("the system grants {granted} file descriptors, and at least {least} are needed: {help}");
        return Err(StartError::failed(what));
    }
    let operators = wanted.min(free / OPERATORS_PART);
    let callers = wanted.min(free - operators);
    let what = "the system grants fewer file descriptors than may be needed: the doors take fewer connections";
    tracing::warn!(granted, kept, callers, operators, help, "{what}");
    Ok([callers, operators])
}

/// What cannot change while the service runs.
fn fixed(before: &Config, after: &Config) -> Result<(), String> {
    let same = [
        ("gateway.listen", before.gateway.listen == after.gateway.listen),
        ("gateway.tls", before.gateway.tls.is_some() == after.gateway.tls.is_some()),
        ("operator.listen", before.operator.listen == after.operator.listen),
        ("audit", before.audit == after.audit),
        ("cache.capacity", before.cache.capacity_bytes == after.cache.capacity_bytes),
    ];
    let changed: Vec<&str> = same.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(format!("{} cannot change while makegate runs: restart it, or set the old value again", changed.join(", ")))
}

fn quota_settings(config: &Config) -> quota::Settings {
    quota::Settings { setting: config.upstream.quota, queue_per_caller: config.limits.quota_queue }
}

fn token(source: &Source) -> Result<Token, String> {
    Token::new(&secret(source)?).map_err(|error| error.to_string())
}

fn file_hash(path: &Path) -> Option<[u8; 32]> {
    std::fs::read(path).ok().map(|contents| hash::sha256(&contents))
}

fn secret_hash(source: &Source) -> Result<[u8; 32], String> {
    secret(source).map(|secret| hash::sha256(secret.expose_secret().as_bytes()))
}
