//! Who goes next: a pure state machine, without time or tasks of its own.
//!
//! Of those who wait, the caller that holds the fewest places goes first; among equals, the one whose round is due, then the
//! one that has waited longest. A caller that holds places leaves some free for those who hold fewer, since what is held
//! cannot be taken back: the last place goes only to somebody who has none.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// For each so many places that a caller holds, one stays free for others.
const HELD_PER_FREE: usize = 8;

/// The places, who holds them and who waits for one. `W` is what a waiting request is woken with.
#[derive(Debug)]
pub(super) struct PlaceQueue<W> {
    places: usize,
    taken: usize,
    waiting: usize,
    /// Those who hold or wait; while anybody waits also those who were served, so that nobody is new again by coming back.
    callers: HashMap<Arc<str>, CallerPlaces<W>>,
    /// In each round every caller that waits is served once.
    round: u64,
    next_ticket: u64,
}

#[derive(Debug)]
struct CallerPlaces<W> {
    held: usize,
    /// The first round in which it may be served again.
    due: u64,
    /// First come, first served.
    tickets: VecDeque<(u64, W)>,
}

impl<W> PlaceQueue<W> {
    pub(super) fn new(places: usize) -> Self {
        Self { places: places.max(1), taken: 0, waiting: 0, callers: HashMap::new(), round: 0, next_ticket: 0 }
    }

    /// Takes a place for this caller, if there is one for it now.
    pub(super) fn take(&mut self, name: &Arc<str>) -> bool {
        let held = self.callers.get(name).map_or(0, |caller| caller.held);
        let may = may_take(held, self.free());
        if may {
            self.serve(name);
        }
        may
    }

    /// Waits in this caller's name; the answer is the ticket to [`PlaceQueue::leave`] with.
    pub(super) fn queue(&mut self, name: &Arc<str>, wake: W) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting += 1;
        self.caller(name).tickets.push_back((ticket, wake));
        ticket
    }

    /// A ticket's holder has given up; if it was served meanwhile, nothing happens.
    pub(super) fn leave(&mut self, name: &Arc<str>, ticket: u64) {
        let Some(caller) = self.callers.get_mut(name) else { return };
        let Some(place) = caller.tickets.iter().position(|(id, _)| *id == ticket) else { return };
        caller.tickets.remove(place);
        self.waiting -= 1;
        self.forget(name);
    }

    /// A place is free again. [`PlaceQueue::next`] is to be called after it until it says `None`.
    pub(super) fn release(&mut self, name: &Arc<str>) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(caller) = self.callers.get_mut(name) {
            caller.held = caller.held.saturating_sub(1);
        }
        self.forget(name);
    }

    /// Gives a place to whoever is next, if there is one for it.
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

    /// Places that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.places.saturating_sub(self.taken)
    }

    /// How many wait.
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

    /// Forgets a caller that holds nothing and waits for nothing, unless it could overtake somebody by being new again.
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

/// May a caller that holds so many take one more of so many free ones?
fn may_take(held: usize, free: usize) -> bool {
    free > held.div_ceil(HELD_PER_FREE)
}
