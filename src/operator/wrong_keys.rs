//! Wrong keys, counted by peer: whoever guesses has to wait.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;

/// The most wrong keys of one peer in one [`WINDOW`].
const FAILURES_MAX: u32 = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// Peers with a count of their own. All others share one, also with the peers on Unix sockets.
const PEERS_MAX: usize = 1024;

/// The most windows in which a peer's failures are recorded at once: records of wrong keys must not push out other records.
const RECORDED_MAX: usize = 30;

/// When a peer's window began, and its wrong keys since.
type FailureWindow = (Instant, u32);

pub(super) struct WrongKeys {
    clock: Clock,
    windows: Mutex<HashMap<Option<IpAddr>, FailureWindow>>,
    total: AtomicU64,
}

impl WrongKeys {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, windows: Mutex::default(), total: AtomicU64::new(0) }
    }

    /// Wrong keys since the start.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// How long this peer has to wait, if it has sent too many wrong keys.
    pub(super) fn blocked_for(&self, peer: Option<IpAddr>) -> Option<Duration> {
        let now = self.clock.now();
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, count) = windows.get(&counted_address(&windows, peer)).copied()?;
        let left = WINDOW.saturating_sub(now.saturating_duration_since(began));
        (count >= FAILURES_MAX && !left.is_zero()).then_some(left)
    }

    /// Whether this peer's wrong keys are to be recorded: once in its window, and only for so many peers.
    pub(super) fn is_to_be_recorded(&self, peer: Option<IpAddr>) -> bool {
        let now = self.clock.now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = counted_address(&windows, peer);
        if windows.get(&peer).is_none_or(|(_, count)| *count != FAILURES_MAX) {
            return false;
        }
        let is_recorded =
            |(began, count): &FailureWindow| *count > FAILURES_MAX && now.saturating_duration_since(*began) < WINDOW;
        if windows.values().filter(|window| is_recorded(window)).count() >= RECORDED_MAX {
            return false;
        }
        windows.entry(peer).and_modify(|(_, count)| *count += 1);
        true
    }

    pub(super) fn add(&self, peer: Option<IpAddr>) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= PEERS_MAX {
            windows.retain(|_, (began, _)| now.saturating_duration_since(*began) < WINDOW);
        }
        let peer = counted_address(&windows, peer);
        let window = windows.entry(peer).or_insert((now, 0));
        if now.saturating_duration_since(window.0) >= WINDOW {
            *window = (now, 0);
        }
        window.1 = window.1.saturating_add(1);
    }
}

/// The address that a peer is counted under. An IPv6 network of 64 bits counts as one peer, because one customer has all of it.
fn counted_address(windows: &HashMap<Option<IpAddr>, FailureWindow>, peer: Option<IpAddr>) -> Option<IpAddr> {
    let peer = peer.map(|ip| match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
    });
    peer.filter(|_| windows.len() < PEERS_MAX || windows.contains_key(&peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_wrong_keys_a_minute_and_no_more() {
        let clock = Clock::movable();
        let failures = WrongKeys::new(clock.clone());
        let (one, other) = (Some("10.0.0.1".parse().unwrap()), Some("10.0.0.2".parse().unwrap()));
        for _ in 0..30 {
            assert_eq!(failures.blocked_for(one), None);
            failures.add(one);
        }
        assert!(failures.blocked_for(one).unwrap() <= WINDOW);
        assert_eq!((failures.blocked_for(other), failures.blocked_for(None), failures.total()), (None, None, 30));
        clock.advance(WINDOW);
        assert_eq!(failures.blocked_for(one), None);
    }

    #[test]
    fn many_peers_take_no_more_memory_and_a_network_is_one_peer() {
        let failures = WrongKeys::new(Clock::movable());
        for peer in 0..3000u32 {
            failures.add(Some(IpAddr::V4(peer.into())));
        }
        assert!(failures.windows.lock().unwrap().len() <= PEERS_MAX + 1);
        assert!(failures.blocked_for(Some("99.9.9.9".parse().unwrap())).is_some(), "the rest shares one count");
        let failures = WrongKeys::new(Clock::movable());
        (0..30u128).for_each(|host| failures.add(Some(IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | host)))));
        assert!(failures.blocked_for(Some("2001:db8::ffff:1".parse().unwrap())).is_some());
    }
}
