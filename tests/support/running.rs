//! The service of a world: in the process of the test, or the binary that `MAKEGATE_TEST_BINARY` names.

use std::fs::File;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use makegate::clock::Clock;
use makegate::config::LoadedConfig;
use makegate::gateway::Gateway;
use makegate::reconcile::Reconciler;
use makegate::service::{ReloadError, Service};
use rustix::process::Signal;
use serde_json::Value;

use super::attempt;
use super::process::{Process, binary, given_binary};

/// Where a binary's process log goes.
const LOG: &str = "process.log";

/// `.ci/attacks` knows this text.
fn needs_the_inside(what: &str) -> ! {
    panic!("this test needs the service in its own process: it {what}")
}

/// Ends a test that cannot be run against a binary.
pub(crate) fn must_be_here(what: &str) {
    if given_binary().is_some() {
        needs_the_inside(what);
    }
}

pub(crate) enum Running {
    Here(Box<Service>),
    There(Box<OtherProcess>),
}

/// A binary that serves.
pub(crate) struct OtherProcess {
    process: Process,
    log: PathBuf,
    gateway: Vec<SocketAddr>,
    operator: Vec<SocketAddr>,
    metrics: Vec<SocketAddr>,
}

/// Why a reload changed nothing.
#[derive(Debug)]
pub(crate) enum NotReloaded {
    /// The files could not be read in time.
    Hangs,
    Why(String),
}

impl std::fmt::Display for NotReloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hangs => f.write_str("the files could not be read in time"),
            Self::Why(why) => f.write_str(why),
        }
    }
}

impl Running {
    /// Starts it with the configuration in this folder.
    pub(crate) async fn start(dir: &Path, read: LoadedConfig, clock: Clock) -> Self {
        if given_binary().is_none() {
            return Self::Here(Box::new(Service::start(read, clock).await.unwrap()));
        }
        let log = dir.join(LOG);
        let mut command = Command::new(binary());
        command.args(["serve", "--config"]).arg(dir.join("makegate.toml")).env_remove("MAKEGATE_LOG");
        let process = Process::start(command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()));
        let mut other = OtherProcess { process, log, gateway: vec![], operator: vec![], metrics: vec![] };
        let started = other.told(0, &["makegate started"]).await;
        let of = |door: &str| -> Vec<SocketAddr> {
            let listed = started[door].as_array().into_iter().flatten();
            listed.map(|address| address.as_str().unwrap().parse().unwrap()).collect()
        };
        (other.gateway, other.operator, other.metrics) = (of("gateway"), of("operator"), of("metrics"));
        Self::There(Box::new(other))
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        match self {
            Self::Here(service) => service.gateway(),
            Self::There(_) => needs_the_inside("looks at the gateway's state"),
        }
    }

    pub(crate) fn reconciler(&self) -> &Arc<Reconciler> {
        match self {
            Self::Here(service) => service.reconciler(),
            Self::There(_) => needs_the_inside("calls the reconciler"),
        }
    }

    pub(crate) fn gateway_addresses(&self) -> &[SocketAddr] {
        match self {
            Self::Here(service) => service.gateway_addresses(),
            Self::There(other) => &other.gateway,
        }
    }

    pub(crate) fn operator_addresses(&self) -> &[SocketAddr] {
        match self {
            Self::Here(service) => service.operator_addresses(),
            Self::There(other) => &other.operator,
        }
    }

    pub(crate) fn metrics_addresses(&self) -> &[SocketAddr] {
        match self {
            Self::Here(service) => service.metrics_addresses(),
            Self::There(other) => &other.metrics,
        }
    }

    /// What the service manager's watchdog asks.
    pub(crate) async fn answers(&self) -> bool {
        match self {
            Self::Here(service) => service.answers().await,
            Self::There(_) => needs_the_inside("asks what the watchdog asks"),
        }
    }

    /// Applies what the files say now.
    pub(crate) async fn reload(&self) -> Result<(), NotReloaded> {
        match self {
            Self::Here(service) => service.reload().await.map_err(|error| {
                let hangs = matches!(error, ReloadError::Hangs(_));
                if hangs { NotReloaded::Hangs } else { NotReloaded::Why(error.to_string()) }
            }),
            Self::There(other) => {
                let before = other.lines().len();
                other.process.signal(Signal::HUP);
                let told = other.told(before, &["was reloaded", "was not reloaded"]).await;
                match told["why"].as_str() {
                    Some(why) => Err(NotReloaded::Why(why.to_owned())),
                    None => Ok(()),
                }
            }
        }
    }

    /// Waits until all records so far are in the log.
    pub(crate) async fn flush(&self) {
        match self {
            Self::Here(service) => service.gateway().log.flush().await,
            Self::There(other) => other.flush().await,
        }
    }

    /// Ends it in order. Did it finish its work?
    pub(crate) async fn shut_down(self) -> bool {
        match self {
            Self::Here(service) => service.shut_down().await,
            Self::There(mut other) => {
                other.process.signal(Signal::TERM);
                assert_eq!(other.process.ended(Duration::from_secs(60)).await, Some(0));
                !other.text().contains("before all work was finished")
            }
        }
    }
}

impl OtherProcess {
    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        // The last line may not be whole yet.
        self.text().lines().map_while(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line with one of these texts, behind the first lines.
    async fn told(&self, behind: usize, texts: &[&str]) -> Value {
        for _ in 0..6_000 {
            let is_it = |line: &&Value| texts.iter().any(|text| line["msg"].as_str().unwrap().contains(text));
            if let Some(line) = self.lines().iter().skip(behind).find(is_it) {
                return line.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not say {texts:?}: {}", self.text())
    }

    /// Every record is written at once, and on disk a second later at most. What is under way keeps room for its record.
    async fn flush(&self) {
        for _ in 0..150 {
            let scraped = match self.operator.first() {
                Some(door) => attempt(*door, "GET", "/metrics", "", "").await,
                None => None,
            };
            if scraped
                .is_some_and(|reply| String::from_utf8_lossy(&reply.body).contains("\nmakegate_audit_backlog 0\n"))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The clock of a world. That of another process stands for nobody to move.
#[derive(Clone)]
pub(crate) struct WorldClock(pub(crate) Clock);

impl WorldClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.movable().advance(by);
    }

    pub(crate) fn step(&self, by: SignedDuration) {
        self.movable().step(by);
    }

    fn movable(&self) -> &Clock {
        must_be_here("moves the clock");
        &self.0
    }
}

impl Deref for WorldClock {
    type Target = Clock;

    fn deref(&self) -> &Clock {
        &self.0
    }
}
