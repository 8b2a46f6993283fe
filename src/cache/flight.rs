//! Flights: one fetch for all who ask for the same at the same time.
//!
//! A flight is a task of its own. Callers wait with their own deadlines; when all have left before its request was
//! sent, it is cancelled; once sent, it finishes and fills the cache, whoever is left. Joining is checked against the
//! fences like a lookup: a reader who arrives after a write's answer never gets a body from before it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::{FutureExt, Shared};
use tokio::sync::{Notify, oneshot};

use super::fence::{Behind, Birth, Fences};
use super::{Cache, lock};
use crate::clock::Clock;
use crate::tasks::Tasks;

/// The most flights under way at once.
const FLIGHTS_MAX: usize = 4_096;
/// The most callers that wait for one flight.
const WAITERS_MAX: usize = 10_000;

/// Which flights a caller may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Those of other ordinary reads.
    Normal,
    /// Those of other reads with `wait=true`: the upstream makes those wait until it is up to date.
    Wait,
}

/// Who asks for a flight, and which will do.
#[derive(Clone, Copy, Debug)]
pub struct Boarding<'a> {
    /// In whose name it waits for its turns, if a new one begins.
    pub caller: &'a Arc<str>,
    /// Which flights it may join.
    pub lane: Lane,
    /// As [`Wish::since`](super::Wish::since) says; for [`Lane::Wait`], now.
    pub since: Option<Instant>,
    /// It can go at once: it does not wait for one that still waits for its turn.
    pub ready: bool,
}

/// The fetch's side of its flight.
#[derive(Clone, Debug)]
pub struct Leg(Arc<Course>);

/// What a flight, its leg and its waiters know of one another, whatever it brings.
#[derive(Debug)]
struct Course {
    fences: Arc<Fences>,
    clock: Clock,
    behind: Behind,
    birth: OnceLock<Birth>,
    waiters: AtomicUsize,
    /// Told when the last waiter has left.
    deserted: Notify,
}

impl Leg {
    /// A leg without a flight: for a fetch that goes alone but stores what it brings.
    pub(super) fn alone(fences: Arc<Fences>, clock: Clock, behind: Behind) -> Self {
        let (birth, waiters) = (OnceLock::new(), AtomicUsize::new(0));
        Self(Arc::new(Course { fences, clock, behind, birth, waiters, deserted: Notify::new() }))
    }

    /// To be called right before the first attempt's request leaves, when nothing is waited for any more. From here on
    /// the flight finishes whoever leaves, and readers are judged by this birth; further calls (retries) give the same.
    #[must_use]
    pub fn sent(&self) -> Birth {
        self.0.birth.get_or_init(|| self.0.fences.birth(&self.0.behind, self.0.clock.now())).clone()
    }
}

impl Course {
    /// May a reader who arrives now wait for this one? One that has not been sent yet will see all that was settled by now.
    fn joinable(&self, boarding: &Boarding<'_>, now: Instant) -> bool {
        match self.birth.get() {
            None => !boarding.ready,
            Some(birth) => birth.usable(now) && boarding.since.is_none_or(|since| birth.at() >= since),
        }
    }
}

/// A flight: its course, and what it will bring.
#[derive(Debug)]
struct Flight<T> {
    /// In whose name it waits for its turns.
    caller: Arc<str>,
    course: Arc<Course>,
    outcome: Shared<oneshot::Receiver<T>>,
}

/// All flights. `T` is what waiters share.
#[derive(Debug)]
pub struct Flights<T> {
    air: Arc<Mutex<Air<T>>>,
    fences: Arc<Fences>,
    clock: Clock,
}

#[derive(Debug)]
struct Air<T> {
    /// The newest flight for each key, by lane.
    normal: HashMap<Arc<str>, Flight<T>>,
    wait: HashMap<Arc<str>, Flight<T>>,
    /// All that are under way, those that were replaced included.
    under_way: usize,
}

impl<T> Air<T> {
    fn lane(&mut self, lane: Lane) -> &mut HashMap<Arc<str>, Flight<T>> {
        match lane {
            Lane::Normal => &mut self.normal,
            Lane::Wait => &mut self.wait,
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// No flight yet; those to come are judged by this cache's fences.
    #[must_use]
    pub fn new(cache: &Cache) -> Self {
        let air = Air { normal: HashMap::new(), wait: HashMap::new(), under_way: 0 };
        Self { air: Arc::new(Mutex::new(air)), fences: cache.fences.clone(), clock: cache.clock.clone() }
    }

    /// Joins a usable flight for this key, or begins one with `fetch`. `None`: too many flights, or too many wait for this
    /// one; go alone or refuse.
    ///
    /// `fetch` must call [`Leg::sent`] before its request leaves, and store what it brings before it ends.
    pub fn fly<F, Fut>(
        &self,
        tasks: &Tasks,
        key: &Arc<str>,
        behind: Behind,
        boarding: &Boarding<'_>,
        fetch: F,
    ) -> Option<Waiter<T>>
    where
        F: FnOnce(Leg) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (now, lane) = (self.clock.now(), boarding.lane);
        let mut air = lock(&self.air);
        if let Some(flight) = air.lane(lane).get(&**key)
            && flight.course.joinable(boarding, now)
        {
            let room = flight.course.waiters.load(SeqCst) < WAITERS_MAX;
            return room.then(|| Waiter::new(flight, true));
        }
        if air.under_way >= FLIGHTS_MAX {
            return None;
        }
        let (bring, outcome) = oneshot::channel();
        let Leg(course) = Leg::alone(self.fences.clone(), self.clock.clone(), behind);
        let caller = boarding.caller.clone();
        let flight = Flight { caller, course: course.clone(), outcome: outcome.shared() };
        let waiter = Waiter::new(&flight, false);
        air.lane(lane).insert(key.clone(), flight);
        air.under_way += 1;
        drop(air);
        let under_way = UnderWay { air: self.air.clone(), key: key.clone(), lane, course };
        // The task is tracked; nobody needs its handle. Boxed: the runtime moves a task about, and this one is large.
        drop(tasks.spawn(Box::pin(under_way.run(fetch, bring))));
        Some(waiter)
    }

    /// How many wait for the newest flights, those included that the flights were begun for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let air = lock(&self.air);
        air.normal.values().chain(air.wait.values()).map(|flight| flight.course.waiters.load(SeqCst)).sum()
    }

    /// How many flights are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        lock(&self.air).under_way
    }
}

/// The task's side of a flight. However it ends (brought in, deserted, panicked, torn down), the flight leaves the map
/// before its waiters hear of it: who asks again begins anew.
struct UnderWay<T> {
    air: Arc<Mutex<Air<T>>>,
    key: Arc<str>,
    lane: Lane,
    course: Arc<Course>,
}

impl<T> UnderWay<T> {
    async fn run<F, Fut>(self, fetch: F, bring: oneshot::Sender<T>)
    where
        F: FnOnce(Leg) -> Fut,
        Fut: Future<Output = T>,
    {
        let mut fetch = pin!(fetch(Leg(self.course.clone())));
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut fetch => break outcome,
                () = self.course.deserted.notified() => if self.abandon() { return },
            }
        };
        drop(self);
        // Nobody may be left to hear it.
        drop(bring.send(outcome));
    }

    /// Takes the flight off the map if it may be cancelled: nobody waits and nothing was sent. Joins happen under the
    /// same lock, so nobody can join what is being cancelled.
    fn abandon(&self) -> bool {
        let mut air = lock(&self.air);
        let deserted = self.course.waiters.load(SeqCst) == 0 && self.course.birth.get().is_none();
        if deserted {
            self.remove(&mut air);
        }
        deserted
    }

    fn remove(&self, air: &mut Air<T>) {
        let flights = air.lane(self.lane);
        if flights.get(&*self.key).is_some_and(|flight| Arc::ptr_eq(&flight.course, &self.course)) {
            flights.remove(&*self.key);
        }
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        let mut air = lock(&self.air);
        self.remove(&mut air);
        air.under_way -= 1;
    }
}

/// The flight ended without an outcome: its fetch panicked, or the process is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// One caller's wait for a flight. Dropping it is leaving.
#[must_use = "dropping it leaves the flight"]
#[derive(Debug)]
pub struct Waiter<T> {
    outcome: Shared<oneshot::Receiver<T>>,
    caller: Arc<str>,
    course: Arc<Course>,
    collapsed: bool,
}

impl<T: Clone> Waiter<T> {
    fn new(flight: &Flight<T>, collapsed: bool) -> Self {
        flight.course.waiters.fetch_add(1, SeqCst);
        let (outcome, caller, course) = (flight.outcome.clone(), flight.caller.clone(), flight.course.clone());
        Self { outcome, caller, course, collapsed }
    }
}

impl<T> Waiter<T> {
    /// Is this another request's fetch? Then a failure that is only that request's own (its rate, its turn at the
    /// quota) is no reason to fail: fly once more.
    #[must_use]
    pub fn collapsed(&self) -> bool {
        self.collapsed
    }

    /// Does it wait for its turn in another caller's name? That may be long, and this caller's own turn may come sooner.
    #[must_use]
    pub fn is_queued_for_another(&self, caller: &str) -> bool {
        self.collapsed && self.course.birth.get().is_none() && *self.caller != *caller
    }
}

impl<T: Clone> Future for Waiter<T> {
    type Output = Result<T, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(context).map(|outcome| outcome.map_err(|_| Lost))
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        if self.course.waiters.fetch_sub(1, SeqCst) == 1 {
            self.course.deserted.notify_one();
        }
    }
}
