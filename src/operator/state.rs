//! What the door shows, and who may see it.

#![expect(clippy::disallowed_methods, reason = "walks over memory alone; no file is touched")]

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::history::History;
use super::operators::{Operator, Operators};
use super::refusal::OperatorRefusal;
use super::wrong_keys::WrongKeys;
use crate::audit::{Filter, Peer, Record};
use crate::config::{OperatorKey, Origins};
use crate::door::{HandshakeFailure, OpenDoor, PeerConnection, UnreadKind};
use crate::fair_semaphore::FairSemaphore;
use crate::gateway::Gateway;
use crate::reconcile::Reconciler;

/// How long a page waits for records that it shows besides.
const RECORDS_TIME_MAX: Duration = Duration::from_secs(1);
/// A wall clock that goes wrong by more than this was set by somebody.
const CLOCK_STEP_MIN: Duration = Duration::from_secs(1);
/// How often tables that one operator takes are recorded.
const EXPORTS_INTERVAL: Duration = Duration::from_secs(60);
/// The most followers of the log at a time. Operators share them by name: one alone gets 14, the last is for who has none.
const FOLLOWERS_MAX: usize = 16;
/// The most pages that all operators together look at while they change: at up to 1 MiB each, 32 MiB in all. They are shared in the same
/// way: one operator alone gets 28.
const LIVE_PAGES_MAX: usize = 32;
/// The most KiB of all large answers under way: they are in memory until their readers take them.
const LARGE_KIB_MAX: usize = 64 << 10;
/// The most KiB of an answer that needs none of that room: probes, scrapers, and what people read.
const SMALL_KIB: u64 = 64;

/// The configuration in force, and how the last reload ended.
#[derive(Clone, Debug)]
pub(super) struct ConfigInForce {
    pub(super) origins: Arc<Origins>,
    pub(super) loaded: Timestamp,
    pub(super) error: Option<Arc<str>>,
}

/// What the operator door works on: the gateway, the operators, the configuration in force.
pub struct OperatorState {
    pub(super) gateway: Arc<Gateway>,
    pub(super) reconciler: Arc<Reconciler>,
    pub(super) file: Option<PathBuf>,
    pub(super) started: Timestamp,
    pub(super) wrong_keys: WrongKeys,
    pub(super) followers: FairSemaphore,
    pub(super) live_pages: FairSemaphore,
    pub(super) large: Arc<Semaphore>,
    walks: Arc<Semaphore>,
    pub(super) history: History,
    pub(super) operators: Operators,
    in_force: ArcSwap<ConfigInForce>,
    /// When each operator's last table of records was recorded as an export.
    tables: Mutex<HashMap<Arc<str>, Instant>>,
    doors: Mutex<Vec<(&'static str, OpenDoor)>>,
    /// A moment and its wall time.
    anchor: Mutex<(Instant, Timestamp)>,
}

/// The wall time of this moment, if it was `wall` at `at`.
fn moved((at, wall): (Instant, Timestamp), moment: Instant) -> Timestamp {
    let signed = |length: Duration| SignedDuration::try_from(length).unwrap_or_default();
    let later = wall.checked_add(signed(moment.saturating_duration_since(at)));
    let moved = later.and_then(|later| later.checked_sub(signed(at.saturating_duration_since(moment))));
    moved.unwrap_or(Timestamp::UNIX_EPOCH)
}

impl OperatorState {
    /// The state of a door that opens to these `operators`, over a gateway and the reconciler of its doubts. `origins` are those of the configuration in
    /// force, read from `file` if there is one.
    #[must_use]
    pub fn new(
        reconciler: Arc<Reconciler>,
        operators: &[OperatorKey],
        file: Option<PathBuf>,
        origins: Origins,
    ) -> Arc<Self> {
        let gateway = reconciler.gateway().clone();
        let started = gateway.clock.wall();
        Arc::new(Self {
            wrong_keys: WrongKeys::new(gateway.clock.clone()),
            followers: FairSemaphore::new(FOLLOWERS_MAX),
            live_pages: FairSemaphore::new(LIVE_PAGES_MAX),
            large: Arc::new(Semaphore::new(LARGE_KIB_MAX)),
            walks: Arc::new(Semaphore::new(1)),
            history: History::default(),
            operators: Operators::new(operators),
            in_force: ArcSwap::from_pointee(ConfigInForce { origins: Arc::new(origins), loaded: started, error: None }),
            tables: Mutex::default(),
            doors: Mutex::default(),
            anchor: Mutex::new((gateway.clock.now(), started)),
            reconciler,
            gateway,
            file,
            started,
        })
    }

    /// The operators in force.
    #[must_use]
    pub fn operators(&self) -> Vec<OperatorKey> {
        self.operators.keys()
    }

    /// The wall time of a moment that the clock measured. It is the same at each call, unless somebody sets the wall clock.
    pub(super) fn wall_at(&self, moment: Instant) -> Timestamp {
        let clock = &self.gateway.clock;
        let (now, wall) = (clock.now(), clock.wall());
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        if moved(*anchor, now).duration_since(wall).unsigned_abs() > CLOCK_STEP_MIN {
            *anchor = (now, wall);
        }
        moved(*anchor, moment)
    }

    /// Does work that goes through everything of a kind that is in memory: not on the threads that answer callers, and one at a time.
    ///
    /// # Errors
    /// [`OperatorRefusal::Internal`]: the work panicked.
    pub(super) async fn walk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, OperatorRefusal> {
        let turn = self.walks.clone().acquire_owned().await.map_err(|_closed| OperatorRefusal::Internal)?;
        let state = self.clone();
        let walked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&state)
        });
        walked.await.map_err(|_panicked| OperatorRefusal::Internal)
    }

    /// Replaces the operators. What those who are gone still follow ends.
    pub fn set_operators(&self, operators: &[OperatorKey]) {
        self.operators.replace(operators);
    }

    /// Takes note that an operator takes records out of the log. Best effort: whoever looks for what is wrong with the log must be able to
    /// read it. Tables are recorded once a minute, because a script may ask for them again and again.
    pub(super) fn note_export(&self, operator: &Operator, peer: &PeerConnection, query: &str, is_table: bool) {
        let now = self.gateway.clock.now();
        if is_table {
            let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            let last = tables.get(operator.name()).copied();
            if last.is_some_and(|last| now.saturating_duration_since(last) < EXPORTS_INTERVAL) {
                return;
            }
            tables.insert(operator.name().clone(), now);
        }
        if let Some(room) = self.gateway.log.reserve() {
            let what =
                if query.is_empty() { "exported the log".to_owned() } else { format!("exported the log: {query}") };
            room.fill(self.record(operator, peer, "export", &what));
        }
    }

    /// The records that these filters find for this operator, newest first, as JSON objects. None, if the log's disk does not answer soon: a page does not
    /// wait for it.
    pub(super) async fn newest_records(
        &self,
        operator: &Operator,
        filters: &[&[(&str, &str)]],
    ) -> Vec<Map<String, Value>> {
        let log = &self.gateway.log;
        if !log.writable() {
            return Vec::new();
        }
        let read = async {
            log.flush().await;
            let mut records = Vec::<Map<String, Value>>::new();
            for filter in filters {
                let Ok(filter) = Filter::parse(filter.iter().copied(), self.gateway.clock.wall()) else { continue };
                let found = log.query(operator.name(), filter).await.unwrap_or_default();
                records.extend(found.records.iter().filter_map(|line| serde_json::from_str(line.get()).ok()));
            }
            records
        };
        let mut records = self.gateway.clock.timeout(RECORDS_TIME_MAX, read).await.unwrap_or_default();
        records.sort_by_key(|record| Reverse(record.get("seq").and_then(Value::as_u64)));
        records
    }

    /// The record of what an operator does. `what` follows the name in it: "purged everything".
    pub(super) fn record(
        &self,
        operator: &Operator,
        peer: &PeerConnection,
        event: &'static str,
        what: &str,
    ) -> Record<'static> {
        Record {
            operator: Some(operator.name().clone().into()),
            key: Some(operator.key_id()),
            peer: Some(Peer::of(peer.address)),
            ..Record::event(self.gateway.clock.wall(), event, format!("{} {what}", operator.name()))
        }
    }

    /// Room for an answer of `bytes` while it is under way; `None` if it is small and needs none.
    ///
    /// # Errors
    /// [`OperatorRefusal::NoRoom`]: the answers under way leave too little.
    pub(super) fn reserve_answer(&self, bytes: u64) -> Result<Option<OwnedSemaphorePermit>, OperatorRefusal> {
        let kib = bytes.div_ceil(1024);
        if kib <= SMALL_KIB {
            return Ok(None);
        }
        let kib = u32::try_from(kib.min(LARGE_KIB_MAX as u64)).unwrap_or(u32::MAX);
        self.large.clone().try_acquire_many_owned(kib).map(Some).map_err(|_| OperatorRefusal::NoRoom)
    }

    /// Takes note of a reload: a new configuration is in force, or there was an error and the old one stays.
    pub fn note_reload(&self, result: Result<Origins, String>) {
        let before = self.in_force();
        let loaded = self.gateway.clock.wall();
        let after = match result {
            Ok(origins) => ConfigInForce { origins: Arc::new(origins), loaded, error: None },
            Err(error) => ConfigInForce { origins: before.origins.clone(), loaded, error: Some(error.into()) },
        };
        self.in_force.store(Arc::new(after));
    }

    /// Shows the connections of this door too. The operator door adds itself.
    pub fn register_door(&self, name: &'static str, door: OpenDoor) {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).push((name, door));
    }

    /// The URLs of the gateway door, by its names and its TCP addresses.
    pub(super) fn gateway_urls(&self) -> Vec<String> {
        let door = &self.gateway.policy().config.gateway;
        self.urls("gateway", &door.names, door.tls.is_some())
    }

    /// The same of this door.
    pub(super) fn operator_urls(&self) -> Vec<String> {
        let door = &self.gateway.policy().config.operator;
        self.urls("operator", &door.names, door.tls.is_some())
    }

    fn urls(&self, door_name: &str, names: &[String], is_tls: bool) -> Vec<String> {
        let scheme = if is_tls { "https" } else { "http" };
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let open = doors.iter().find(|(name, _)| *name == door_name).map_or(&[][..], |(_, open)| open.addresses());
        let named = open.iter().flat_map(|at| names.iter().map(|name| format!("{scheme}://{name}:{}", at.port())));
        let by_address = open.iter().map(|at| match at.ip().is_unspecified() {
            true => format!("{scheme}://localhost:{}", at.port()),
            false => format!("{scheme}://{at}"),
        });
        named.chain(by_address).collect()
    }

    pub(super) fn in_force(&self) -> Arc<ConfigInForce> {
        self.in_force.load_full()
    }

    /// The number of connections now, by door.
    pub(super) fn connections(&self) -> Vec<(&'static str, usize)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.iter().map(|(name, door)| (*name, door.connections())).collect()
    }

    /// Requests that never reached a service, by door and kind.
    pub(super) fn unread_requests(&self) -> Vec<(&'static str, UnreadKind, u64)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.iter().flat_map(|(name, door)| door.unread_requests().map(|(kind, n)| (*name, kind, n))).collect()
    }

    /// When the certificates of the doors expire.
    pub(super) fn certificate_ends(&self) -> Vec<(&'static str, Timestamp)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.iter().filter_map(|(name, door)| Some((*name, door.certificate_end()?))).collect()
    }

    /// The failed TLS handshakes so far, by door and reason.
    pub(super) fn handshake_failures(&self) -> Vec<(&'static str, Vec<(HandshakeFailure, u64)>)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.iter().map(|(name, door)| (*name, door.handshake_failures())).collect()
    }
}
