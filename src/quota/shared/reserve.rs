//! The part of a quota that is never granted through the engine: while the engine cannot be reached, each replica grants its part of that by
//! itself. All replicas together then grant no more than what is kept.

use std::sync::Arc;

use super::super::fair_queue::{FairQueue, SlotAnswer, SlotGrant, SlotRequest};
use super::super::throttle_gate::CloseReason;
use super::super::window::Moment;
use super::wishes::Wishes;

/// This replica's part of a bucket's reserve. Moments are since the machine's start.
#[derive(Debug)]
pub(super) struct Reserve {
    percent: u64,
    replicas_max: u64,
    queue: FairQueue,
}

/// A slot of the reserve.
#[derive(Clone, Debug)]
pub(super) struct ReservedSlot(SlotGrant);

impl Reserve {
    pub(super) fn new(percent: u32, replicas_max: u32) -> Self {
        Self { percent: percent.into(), replicas_max: replicas_max.max(1).into(), queue: FairQueue::new(0) }
    }

    /// Takes its part of a limit.
    fn set_limit(&mut self, limit: u32) {
        let part = u64::from(limit) * self.percent / 100 / self.replicas_max;
        self.queue.set_limit(u32::try_from(part).unwrap_or(0));
    }

    /// Grants what it has to the requests that wait. The slots are to be handed to who is named with them.
    pub(super) fn offer<T>(&mut self, boot: Moment, wishes: &mut Wishes<T>) -> Vec<(T, Arc<str>, ReservedSlot)> {
        if self.percent == 0 {
            return Vec::new();
        }
        self.set_limit(wishes.limit.limit);
        let mut granted = Vec::new();
        for (number, ask) in wishes.asks().filter(|(_, ask)| !ask.is_spare) {
            let request = SlotRequest {
                caller: &ask.caller,
                // Nobody knows who else may come: there is too little for newcomers.
                eligible: 1,
                wait_ms: 0,
                latest: boot,
                queue_max: 0,
                owner: 0,
            };
            if self.queue.limit() > 0
                && let SlotAnswer::Granted(grant) = self.queue.ask(boot, &request)
            {
                granted.push((*number, ReservedSlot(grant)));
            }
        }
        let granted = granted.into_iter();
        granted.filter_map(|(number, slot)| wishes.withdraw(number).map(|ask| (ask.reply, ask.caller, slot))).collect()
    }

    /// The attempt with this slot has ended, or was never sent.
    pub(super) fn end(&mut self, boot: Moment, slot: &ReservedSlot, is_sent: bool) {
        match is_sent {
            true => self.queue.end(boot, &slot.0),
            false => self.queue.unsend(boot, &slot.0),
        }
    }

    pub(super) fn close(&mut self, boot: Moment, until: Moment, why: CloseReason) {
        self.queue.close(boot, until, why);
    }

    pub(super) fn reopen(&mut self, boot: Moment) {
        self.queue.reopen(boot);
    }

    /// An earlier process spent slots; nobody knows whether they were of the reserve.
    pub(super) fn restore(&mut self, caller: &Arc<str>, count: u64, returns: Moment) {
        if self.percent > 0 {
            self.queue.hold(returns, caller, count);
        }
    }

    pub(super) fn is_idle(&mut self, boot: Moment) -> bool {
        self.queue.evictable(boot) == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::LimitSource;
    use super::super::wishes::{LendTerms, OwnLimit, SharedAsk};
    use super::*;

    #[test]
    fn all_replicas_together_grant_no_more_than_what_is_kept() {
        for (limit, percent, replicas) in [(240, 10, 3), (60, 50, 7), (10, 10, 100), (1, 50, 1), (1_000, 33, 32)] {
            let terms = LendTerms { owner: 1, attempt_ms: 1_000, reserve_percent: percent };
            let own = OwnLimit { limit, from: LimitSource::Configured, is_news: false };
            let mut wishes = Wishes::new(terms, own);
            for n in 0..limit {
                wishes.add(SharedAsk {
                    caller: format!("caller {}", n % 3).into(),
                    eligible: 3,
                    wait_ms: 0,
                    latest: 5_000,
                    queue_max: 5,
                    is_spare: false,
                    ticket: None,
                    reply: n,
                });
            }
            let mut reserve = Reserve::new(percent, replicas);
            let slots = reserve.offer(1_000, &mut wishes);
            assert_eq!(slots.len(), (limit * percent / 100 / replicas) as usize);
            let kept = limit - terms.granted(limit);
            assert!(slots.len() * replicas as usize <= kept as usize, "{limit}, {percent} %, {replicas}");
            assert!(reserve.offer(60_000, &mut wishes).is_empty(), "it has granted all that it has");
            for (_, _, slot) in &slots {
                reserve.end(2_000, slot, true);
            }
            assert!(reserve.offer(62_999, &mut wishes).is_empty(), "the slots are held for 61 seconds");
            assert_eq!(reserve.offer(63_000, &mut wishes).len(), slots.len());
        }
    }
}
