//! What the door shows, and what it is guarded by.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::refusal::OperatorRefusal;
use super::wrong_keys::WrongKeys;
use crate::config::Origins;
use crate::door::OpenDoor;
use crate::gateway::Gateway;
use crate::hash;
use crate::reconcile::Reconciler;

/// Followers of the log at once.
const FOLLOWERS_MAX: usize = 16;
/// All large answers under way have at most so many KiB together. What a reader does not take is held for it in memory.
const LARGE_KIB_MAX: usize = 64 << 10;
/// What is no larger needs no room of that: the probes' and scrapers' answers, and what people read.
const SMALL_KIB: u64 = 64;

/// The configuration as it is shown, and how the last attempt to load it ended.
#[derive(Clone, Debug)]
pub(super) struct ConfigInForce {
    pub(super) origins: Arc<Origins>,
    pub(super) loaded: Timestamp,
    pub(super) error: Option<Arc<str>>,
}

/// The operator key's hash, and the word that another has taken its place.
struct OperatorKey {
    hash: [u8; 32],
    replaced: CancellationToken,
}

impl OperatorKey {
    fn new(key: &SecretString) -> Self {
        Self { hash: hash::sha256(key.expose_secret().as_bytes()), replaced: CancellationToken::new() }
    }
}

/// What the operator door works on: the gateway, the operator key, the configuration in force.
pub struct OperatorState {
    pub(super) gateway: Arc<Gateway>,
    pub(super) reconciler: Arc<Reconciler>,
    pub(super) file: Option<PathBuf>,
    pub(super) started: Timestamp,
    pub(super) failures: WrongKeys,
    pub(super) followers: Arc<Semaphore>,
    pub(super) large: Arc<Semaphore>,
    key: ArcSwap<OperatorKey>,
    in_force: ArcSwap<ConfigInForce>,
    doors: Mutex<Vec<(&'static str, OpenDoor)>>,
}

impl OperatorState {
    /// The state of a door that opens to `key`, over a gateway and the reconciler of its doubts. `origins`: of the configuration in force, read from `file` if there is one.
    #[must_use]
    pub fn new(reconciler: Arc<Reconciler>, key: &SecretString, file: Option<PathBuf>, origins: Origins) -> Arc<Self> {
        let gateway = reconciler.gateway().clone();
        let started = gateway.clock.wall();
        Arc::new(Self {
            failures: WrongKeys::new(gateway.clock.clone()),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            large: Arc::new(Semaphore::new(LARGE_KIB_MAX)),
            key: ArcSwap::from_pointee(OperatorKey::new(key)),
            in_force: ArcSwap::from_pointee(ConfigInForce { origins: Arc::new(origins), loaded: started, error: None }),
            doors: Mutex::default(),
            reconciler,
            gateway,
            file,
            started,
        })
    }

    /// This operator key from now on. What is under way with another one ends.
    pub fn set_key(&self, key: &SecretString) {
        let key = OperatorKey::new(key);
        if key.hash != self.key.load().hash {
            self.key.swap(Arc::new(key)).replaced.cancel();
        }
    }

    /// Room for an answer of so many bytes, for as long as it is under way.
    ///
    /// # Errors
    /// Those under way have it all.
    pub(super) fn room(&self, bytes: u64) -> Result<Option<OwnedSemaphorePermit>, OperatorRefusal> {
        let kib = bytes.div_ceil(1024);
        if kib <= SMALL_KIB {
            return Ok(None);
        }
        let kib = u32::try_from(kib.min(LARGE_KIB_MAX as u64)).unwrap_or(u32::MAX);
        self.large.clone().try_acquire_many_owned(kib).map(Some).map_err(|_| OperatorRefusal::NoRoom)
    }

    /// Resolves when another key has taken the place of the present one.
    pub(super) fn key_replaced(&self) -> CancellationToken {
        self.key.load().replaced.clone()
    }

    /// A reload has ended: with this configuration in force, or with this error and the old one.
    pub fn reloaded(&self, result: Result<Origins, String>) {
        let before = self.in_force();
        let loaded = self.gateway.clock.wall();
        let after = match result {
            Ok(origins) => ConfigInForce { origins: Arc::new(origins), loaded, error: None },
            Err(error) => ConfigInForce { origins: before.origins.clone(), loaded, error: Some(error.into()) },
        };
        self.in_force.store(Arc::new(after));
    }

    /// Counts the connections of this door too. The operator door is there by itself.
    pub fn show_door(&self, name: &'static str, door: OpenDoor) {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).push((name, door));
    }

    pub(super) fn in_force(&self) -> Arc<ConfigInForce> {
        self.in_force.load_full()
    }

    /// Connections now, by door.
    pub(super) fn connections(&self) -> Vec<(&'static str, usize)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.iter().map(|(name, door)| (*name, door.connections())).collect()
    }

    /// Is this the key? Takes a time that does not depend on it.
    pub(super) fn opens_to(&self, key: &[u8]) -> bool {
        hash::constant_time_eq(&hash::sha256(key), &self.key.load().hash)
    }
}
