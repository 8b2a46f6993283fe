//! Shared fetches: callers who ask for the same at the same time share one fetch.
//!
//! Each runs in a task of its own. Callers wait with their own deadlines; when all have left before its request was
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

use super::fence::{FenceSet, Fences, FetchStamp};
use super::{Cache, lock};
use crate::clock::Clock;
use crate::tasks::Tasks;

/// The most shared fetches under way at once.
const SHARED_FETCHES_MAX: usize = 4_096;

/// Which shared fetches a caller may join: reads of one group only join each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JoinGroup {
    /// Those of other ordinary reads.
    Normal,
    /// Those of other reads with `wait=true`: the upstream makes those wait until it is up to date.
    Wait,
}

/// A caller who asks for a shared fetch, and which of those under way will do.
#[derive(Clone, Copy, Debug)]
pub struct JoinRequest<'a> {
    /// In whose name it waits for its turns, if a new one begins.
    pub caller: &'a Arc<str>,
    /// Which shared fetches it may join.
    pub group: JoinGroup,
    /// As [`oldest_acceptable_fetch`](super::RequestDirectives::oldest_acceptable_fetch) says; for [`JoinGroup::Wait`], now.
    pub since: Option<Instant>,
    /// It can go at once: it does not wait for one that still waits for its turn.
    pub ready: bool,
}

/// What the task that fetches holds: it says when its request leaves.
#[derive(Clone, Debug)]
pub struct FetchHandle(Arc<FetchState>);

/// What a shared fetch, its handle and its waiters know of one another, whatever the answer is.
#[derive(Debug)]
struct FetchState {
    fences: Arc<Fences>,
    clock: Clock,
    fence_set: FenceSet,
    stamp: OnceLock<FetchStamp>,
    waiters: AtomicUsize,
    /// Told when the last waiter has left.
    deserted: Notify,
}

impl FetchHandle {
    /// A handle for a fetch that nobody can join, but whose answer is stored.
    pub(super) fn unshared(fences: Arc<Fences>, clock: Clock, fence_set: FenceSet) -> Self {
        let (stamp, waiters) = (OnceLock::new(), AtomicUsize::new(0));
        Self(Arc::new(FetchState { fences, clock, fence_set, stamp, waiters, deserted: Notify::new() }))
    }

    /// To be called right before the first attempt's request leaves, when nothing is waited for any more. From here on
    /// the shared fetch finishes whoever leaves, and readers are judged by this stamp; further calls (retries) give the same.
    #[must_use]
    pub fn mark_sent(&self) -> FetchStamp {
        self.0.stamp.get_or_init(|| self.0.fences.stamp(&self.0.fence_set, self.0.clock.now())).clone()
    }
}

impl FetchState {
    /// May a reader who arrives now wait for this one? One that has not been sent yet will see all that was settled by now.
    fn joinable(&self, join_request: &JoinRequest<'_>, now: Instant) -> bool {
        match self.stamp.get() {
            None => !join_request.ready,
            Some(stamp) => stamp.usable(now) && join_request.since.is_none_or(|since| stamp.at() >= since),
        }
    }
}

/// One fetch under way: its state, and the answer that it will bring.
#[derive(Debug)]
struct SharedFetch<T> {
    /// In whose name it waits for its turns.
    caller: Arc<str>,
    state: Arc<FetchState>,
    outcome: Shared<oneshot::Receiver<T>>,
}

/// All shared fetches. `T` is what waiters share.
#[derive(Debug)]
pub struct SharedFetches<T> {
    table: Arc<Mutex<FetchTable<T>>>,
    fences: Arc<Fences>,
    clock: Clock,
}

#[derive(Debug)]
struct FetchTable<T> {
    /// The newest shared fetch for each key, by group.
    normal: HashMap<Arc<str>, SharedFetch<T>>,
    wait: HashMap<Arc<str>, SharedFetch<T>>,
    /// All that are under way, those that were replaced included.
    under_way: usize,
}

impl<T> FetchTable<T> {
    fn group(&mut self, group: JoinGroup) -> &mut HashMap<Arc<str>, SharedFetch<T>> {
        match group {
            JoinGroup::Normal => &mut self.normal,
            JoinGroup::Wait => &mut self.wait,
        }
    }
}

impl<T: Clone + Send + Sync + 'static> SharedFetches<T> {
    /// No shared fetch yet; those to come are judged by this cache's fences.
    #[must_use]
    pub fn new(cache: &Cache) -> Self {
        let table = FetchTable { normal: HashMap::new(), wait: HashMap::new(), under_way: 0 };
        Self { table: Arc::new(Mutex::new(table)), fences: cache.fences.clone(), clock: cache.clock.clone() }
    }

    /// Joins a usable shared fetch for this key, or begins one with `fetch`. `None`: too many are under way; go alone or refuse. How many
    /// may join is the caller's to bound.
    ///
    /// `fetch` must call [`FetchHandle::mark_sent`] before its request leaves, and store what it brings before it ends.
    pub fn join_or_start<F, Fut>(
        &self,
        tasks: &Tasks,
        key: &Arc<str>,
        fence_set: FenceSet,
        join_request: &JoinRequest<'_>,
        fetch: F,
    ) -> Option<FetchWaiter<T>>
    where
        F: FnOnce(FetchHandle) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (now, group) = (self.clock.now(), join_request.group);
        let mut table = lock(&self.table);
        if let Some(shared) = table.group(group).get(&**key)
            && shared.state.joinable(join_request, now)
        {
            return Some(FetchWaiter::new(shared, true));
        }
        if table.under_way >= SHARED_FETCHES_MAX {
            return None;
        }
        let (bring, outcome) = oneshot::channel();
        let FetchHandle(state) = FetchHandle::unshared(self.fences.clone(), self.clock.clone(), fence_set);
        let caller = join_request.caller.clone();
        let shared = SharedFetch { caller, state: state.clone(), outcome: outcome.shared() };
        let waiter = FetchWaiter::new(&shared, false);
        table.group(group).insert(key.clone(), shared);
        table.under_way += 1;
        drop(table);
        let under_way = RunningFetch { table: self.table.clone(), key: key.clone(), group, state };
        // The task is tracked; nobody needs its handle. Boxed: the runtime moves a task about, and this one is large.
        drop(tasks.spawn(Box::pin(under_way.run(fetch, bring))));
        Some(waiter)
    }

    /// How many wait for the newest shared fetches, those included that the shared fetches were begun for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let table = lock(&self.table);
        table.normal.values().chain(table.wait.values()).map(|shared| shared.state.waiters.load(SeqCst)).sum()
    }

    /// How many shared fetches are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        lock(&self.table).under_way
    }
}

/// What the task of a shared fetch owns. However it ends (brought in, deserted, panicked, torn down), the shared fetch leaves the map
/// before its waiters hear of it: who asks again begins anew.
struct RunningFetch<T> {
    table: Arc<Mutex<FetchTable<T>>>,
    key: Arc<str>,
    group: JoinGroup,
    state: Arc<FetchState>,
}

impl<T> RunningFetch<T> {
    async fn run<F, Fut>(self, fetch: F, bring: oneshot::Sender<T>)
    where
        F: FnOnce(FetchHandle) -> Fut,
        Fut: Future<Output = T>,
    {
        let mut fetch = pin!(fetch(FetchHandle(self.state.clone())));
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut fetch => break outcome,
                () = self.state.deserted.notified() => if self.abandon() { return },
            }
        };
        drop(self);
        // Nobody may be left to hear it.
        drop(bring.send(outcome));
    }

    /// Takes the shared fetch off the map if it may be cancelled: nobody waits and nothing was sent. Joins happen under the
    /// same lock, so nobody can join what is being cancelled.
    fn abandon(&self) -> bool {
        let mut table = lock(&self.table);
        let deserted = self.state.waiters.load(SeqCst) == 0 && self.state.stamp.get().is_none();
        if deserted {
            self.remove(&mut table);
        }
        deserted
    }

    fn remove(&self, table: &mut FetchTable<T>) {
        let shared_fetches = table.group(self.group);
        if shared_fetches.get(&*self.key).is_some_and(|shared| Arc::ptr_eq(&shared.state, &self.state)) {
            shared_fetches.remove(&*self.key);
        }
    }
}

impl<T> Drop for RunningFetch<T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        self.remove(&mut table);
        table.under_way -= 1;
    }
}

/// The shared fetch ended without an outcome: its fetch panicked, or the process is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLost;

/// One caller's wait for a shared fetch. Dropping it is leaving.
#[must_use = "dropping it leaves the shared fetch"]
#[derive(Debug)]
pub struct FetchWaiter<T> {
    outcome: Shared<oneshot::Receiver<T>>,
    caller: Arc<str>,
    state: Arc<FetchState>,
    collapsed: bool,
}

impl<T: Clone> FetchWaiter<T> {
    fn new(shared: &SharedFetch<T>, collapsed: bool) -> Self {
        shared.state.waiters.fetch_add(1, SeqCst);
        let (outcome, caller, state) = (shared.outcome.clone(), shared.caller.clone(), shared.state.clone());
        Self { outcome, caller, state, collapsed }
    }
}

impl<T> FetchWaiter<T> {
    /// Is this another request's fetch? Then a failure that is only that request's own (its rate, its turn at the
    /// quota) is no reason to fail: ask once more.
    #[must_use]
    pub fn collapsed(&self) -> bool {
        self.collapsed
    }

    /// Does it wait for its turn in another caller's name? That may be long, and this caller's own turn may come sooner.
    #[must_use]
    pub fn is_queued_for_another(&self, caller: &str) -> bool {
        self.collapsed && self.state.stamp.get().is_none() && *self.caller != *caller
    }
}

impl<T: Clone> Future for FetchWaiter<T> {
    type Output = Result<T, FetchLost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(context).map(|outcome| outcome.map_err(|_| FetchLost))
    }
}

impl<T> Drop for FetchWaiter<T> {
    fn drop(&mut self) {
        if self.state.waiters.fetch_sub(1, SeqCst) == 1 {
            self.state.deserted.notify_one();
        }
    }
}
