//! Decides who is next: a pure state machine, without time or tasks.
//!
//! Of those who wait, the caller holding the fewest places goes first; among equals, the one whose round is due, then
//! the one waiting longest. A caller that holds places must leave some free for those with fewer, because held places
//! cannot be taken back: the last place only goes to a caller that has none.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::hash::NameMap;

/// For every this many places that a caller holds, one must stay free for others.
const HELD_PER_FREE: usize = 8;

/// The places, their holders and the queue. `W` wakes a waiting request.
#[derive(Debug)]
pub(super) struct PlaceQueue<W> {
    places: usize,
    taken: usize,
    waiting: usize,
    /// Callers that hold or wait. While anyone waits, also callers served before, so that nobody counts as new by
    /// coming back.
    callers: NameMap<CallerPlaces<W>>,
    /// In each round, every waiting caller is served once.
    round: u64,
    next_ticket: u64,
}

#[derive(Debug)]
struct CallerPlaces<W> {
    held: usize,
    /// The first round in which the caller may be served again.
    due: u64,
    /// In order of arrival.
    tickets: VecDeque<(u64, W)>,
}

impl<W> PlaceQueue<W> {
    pub(super) fn new(places: usize) -> Self {
        Self { places: places.max(1), taken: 0, waiting: 0, callers: NameMap::default(), round: 0, next_ticket: 0 }
    }

    /// Takes a place for this caller if it may have one now.
    pub(super) fn take(&mut self, name: &Arc<str>) -> bool {
        let held = self.callers.get(name).map_or(0, |caller| caller.held);
        let may = may_take(held, self.free());
        if may {
            self.serve(name);
        }
        may
    }

    /// Queues a request of this caller. Returns the ticket for [`PlaceQueue::leave`].
    pub(super) fn queue(&mut self, name: &Arc<str>, wake: W) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting += 1;
        self.caller(name).tickets.push_back((ticket, wake));
        ticket
    }

    /// Removes a ticket from the queue; does nothing if it was served meanwhile.
    pub(super) fn leave(&mut self, name: &Arc<str>, ticket: u64) {
        let Some(caller) = self.callers.get_mut(name) else { return };
        let Some(place) = caller.tickets.iter().position(|(id, _)| *id == ticket) else { return };
        caller.tickets.remove(place);
        self.waiting -= 1;
        self.forget(name);
    }

    /// Frees a place. Afterwards [`PlaceQueue::next`] must be called until it returns `None`.
    pub(super) fn release(&mut self, name: &Arc<str>) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(caller) = self.callers.get_mut(name) {
            caller.held = caller.held.saturating_sub(1);
        }
        self.forget(name);
    }

    /// Gives a place to the next in the queue, if it may have one.
    pub(super) fn next(&mut self) -> Option<(Arc<str>, W)> {
        let free = self.free();
        if free == 0 || self.waiting == 0 {
            return None;
        }
        let able = self.callers.iter().filter(|(_, caller)| may_take(caller.held, free));
        let ranked = able.filter_map(|(name, caller)| {
            let (ticket, _) = caller.tickets.front()?;
            Some((caller.held, caller.due.max(self.round), *ticket, name))
        });
        let name = ranked.min().map(|(.., name)| name.clone())?;
        let (_, wake) = self.callers.get_mut(&name)?.tickets.pop_front()?;
        self.waiting -= 1;
        self.serve(&name);
        self.forget(&name);
        Some((name, wake))
    }

    pub(super) fn free(&self) -> usize {
        self.places.saturating_sub(self.taken)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    fn serve(&mut self, name: &Arc<str>) {
        self.taken += 1;
        let round = self.round;
        let caller = self.caller(name);
        caller.held += 1;
        let round = round.max(caller.due);
        caller.due = round + 1;
        self.round = round;
    }

    fn caller(&mut self, name: &Arc<str>) -> &mut CallerPlaces<W> {
        let new = CallerPlaces { held: 0, due: self.round, tickets: VecDeque::new() };
        self.callers.entry(name.clone()).or_insert(new)
    }

    /// Forgets a caller that holds nothing and waits for nothing, unless counting as new would let it overtake
    /// someone.
    fn forget(&mut self, name: &Arc<str>) {
        if self.waiting == 0 {
            self.callers.retain(|_, caller| caller.held > 0);
            return;
        }
        let round = self.round;
        let is_over = |caller: &CallerPlaces<W>| caller.held == 0 && caller.tickets.is_empty() && caller.due <= round;
        if self.callers.get(name).is_some_and(is_over) {
            self.callers.remove(name);
        }
    }
}

/// Whether a caller holding `held` places may take one more of `free` places.
fn may_take(held: usize, free: usize) -> bool {
    free > held.div_ceil(HELD_PER_FREE)
}
