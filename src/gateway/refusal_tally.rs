//! Limits the records that refusals may cause. Each minute, the first thirty refusals of a peer before identification, or of a caller
//! over its rate, leave a record each. Further ones are counted, and the minute ends with one record for them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::audit::{AuditLog, CountedRefusals, Kind, Peer, Record, RecordRoom};

/// Refusals of one peer or caller per minute that get a record of their own.
pub const RECORDED_MAX: u32 = 30;
/// The minute starts with the first refusal.
const MINUTE: Duration = Duration::from_secs(60);
/// Peers that are tracked separately; the rest share one count. An attacker has more addresses than we have memory.
const PEERS_MAX: usize = 1024;
/// Code for a caller that hung up before it could be refused.
const HUNG_UP: &str = "hung-up";

/// Who was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RefusedParty {
    /// An unidentified peer.
    Peer(Peer),
    /// A caller over its own rate.
    Caller(Arc<str>),
}

/// Peers that share one count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PeerGroup {
    /// An IPv4 address, or an IPv6 /64 network: whoever has one of its addresses has them all.
    Network(IpAddr),
    /// The processes of one user.
    Unix(Option<u32>),
    Others,
}

impl PeerGroup {
    fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Ip(IpAddr::V6(address)) => Self::Network(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
            Peer::Ip(address @ IpAddr::V4(_)) => Self::Network(*address),
            Peer::Unix(uid) => Self::Unix(*uid),
            Peer::Several(_) => Self::Others,
        }
    }

    fn peer(self) -> Peer {
        match self {
            Self::Network(address @ IpAddr::V4(_)) => Peer::Ip(address),
            Self::Network(address @ IpAddr::V6(_)) => Peer::Several(format!("{address}/64").into()),
            Self::Unix(uid) => Peer::Unix(uid),
            Self::Others => Peer::Several("others".into()),
        }
    }
}

/// The refusals of one peer or caller in one minute.
#[derive(Debug)]
struct RefusalMinute {
    begun: Instant,
    recorded: u32,
    counted: Option<CountedRefusals>,
}

impl RefusalMinute {
    const fn new(begun: Instant) -> Self {
        Self { begun, recorded: 0, counted: None }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= MINUTE
    }

    fn count(&mut self, record: &Record<'static>) {
        let (code, time) = (record.refusal.clone().unwrap_or(HUNG_UP.into()), record.time);
        let counted = self.counted.get_or_insert_with(|| CountedRefusals {
            count: 0,
            codes: Vec::new(),
            first: time,
            last: time,
        });
        counted.count += 1;
        (counted.first, counted.last) = (counted.first.min(time), counted.last.max(time));
        match counted.codes.iter_mut().find(|(known, _)| **known == *code) {
            Some((_, count)) => *count += 1,
            None => counted.codes.push((code, 1)),
        }
    }
}

#[derive(Debug, Default)]
struct TallyTable {
    peers: HashMap<PeerGroup, RefusalMinute>,
    /// At most the configured callers.
    callers: HashMap<Arc<str>, RefusalMinute>,
}

/// Counts the refusals of all peers and callers.
#[derive(Debug, Default)]
pub struct RefusalTally {
    table: Mutex<TallyTable>,
    counted: AtomicU64,
}

impl RefusalTally {
    /// Number of refusals that were counted instead of recorded.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    fn table(&self) -> MutexGuard<'_, TallyTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records or counts a refusal. `room` was reserved for its record, if possible.
    pub(super) fn tally(
        &self,
        log: &Arc<AuditLog>,
        who: RefusedParty,
        room: Option<RecordRoom>,
        record: Box<Record<'static>>,
        now: Instant,
    ) {
        let (mut table, wall) = (self.table(), record.time);
        let left = match who {
            RefusedParty::Caller(name) => {
                tally(&mut table.callers, name, log, (room, record), (now, wall), caller_record)
            }
            RefusedParty::Peer(peer) => {
                let place = PeerGroup::of(&peer);
                let is_full = table.peers.len() >= PEERS_MAX && !table.peers.contains_key(&place);
                let place = if is_full || !log.refusals_fit() { PeerGroup::Others } else { place };
                tally(&mut table.peers, place, log, (room, record), (now, wall), peer_record)
            }
        };
        if !left {
            self.counted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records the counts of minutes that are over, or of all at shutdown.
    pub(crate) fn record_counts(&self, log: &Arc<AuditLog>, (now, wall): (Instant, Timestamp), at_the_end: bool) {
        let mut table = self.table();
        let is_over = |minute: &RefusalMinute| at_the_end || minute.is_over(now);
        table
            .peers
            .retain(|place, minute| !(is_over(minute) && record_minute(minute, log, || peer_record(place, wall))));
        table
            .callers
            .retain(|name, minute| !(is_over(minute) && record_minute(minute, log, || caller_record(name, wall))));
    }
}

/// Returns true if the record is in the log, false if it was only counted.
fn tally<K: Clone + Eq + Hash>(
    minutes: &mut HashMap<K, RefusalMinute>,
    key: K,
    log: &Arc<AuditLog>,
    (room, record): (Option<RecordRoom>, Box<Record<'static>>),
    (now, wall): (Instant, Timestamp),
    summary: fn(&K, Timestamp) -> Record<'static>,
) -> bool {
    let minute = minutes.entry(key.clone()).or_insert_with(|| RefusalMinute::new(now));
    if minute.is_over(now) && record_minute(minute, log, || summary(&key, wall)) {
        *minute = RefusalMinute::new(now);
    }
    let record = match room {
        Some(room) if minute.recorded < RECORDED_MAX && log.refusals_fit() => match room.fill_refusal(record) {
            Ok(()) => {
                minute.recorded += 1;
                return true;
            }
            Err(record) => record,
        },
        _ => record,
    };
    minute.count(&record);
    false
}

/// Records the count. Returns false, and keeps the count, if the log has no room.
fn record_minute(minute: &mut RefusalMinute, log: &Arc<AuditLog>, record: impl FnOnce() -> Record<'static>) -> bool {
    if minute.counted.is_none() {
        return true;
    }
    let Some(room) = log.reserve() else { return false };
    room.fill(Record { counted: minute.counted.take().map(Box::new), ..record() });
    true
}

fn peer_record(place: &PeerGroup, wall: Timestamp) -> Record<'static> {
    Record { peer: Some(place.peer()), ..Record::new(Kind::Refusals, wall) }
}

fn caller_record(name: &Arc<str>, wall: Timestamp) -> Record<'static> {
    Record { caller: Some(name.clone().into()), ..Record::new(Kind::Refusals, wall) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_one_hand_has_are_one_peer() {
        let place = |address: &str| PeerGroup::of(&Peer::Ip(address.parse().unwrap()));
        assert_eq!(place("2001:db8:0:1::5"), place("2001:db8:0:1:ffff::"));
        assert_ne!(place("2001:db8:0:1::5"), place("2001:db8:0:2::5"));
        assert_ne!(place("192.0.2.1"), place("192.0.2.2"));
        assert_eq!(place("2001:db8:0:1::5").peer().to_string(), "2001:db8:0:1::/64");
        assert_eq!(place("192.0.2.1").peer(), Peer::Ip("192.0.2.1".parse().unwrap()));
        assert_eq!(PeerGroup::of(&Peer::Unix(Some(1000))).peer(), Peer::Unix(Some(1000)));
        assert_ne!(PeerGroup::of(&Peer::Unix(Some(1000))), PeerGroup::of(&Peer::Unix(None)));
    }
}
