//! Shared fetches: callers who ask for the same thing at the same time share one fetch.
//!
//! Each fetch runs in its own task, and callers wait with their own deadlines. If all have left before its request
//! was sent, it is cancelled; once sent, it finishes and fills the cache whoever is left. Joining is checked against
//! the fences like a lookup: a reader who arrives after a write's answer never gets a body from before the write.

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

/// Maximum number of shared fetches under way.
const SHARED_FETCHES_MAX: usize = 4_096;

/// Which shared fetches a caller may join: reads only join others in their own group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JoinGroup {
    /// Ordinary reads.
    Normal,
    /// Reads with `wait=true`, for which the upstream waits until it is up to date.
    Wait,
}

/// A caller's request to share a fetch, with its conditions.
#[derive(Clone, Copy, Debug)]
pub struct JoinRequest<'a> {
    /// The caller on whose behalf a new fetch waits for its turns.
    pub caller: &'a Arc<str>,
    /// Which shared fetches it may join.
    pub group: JoinGroup,
    /// The earliest acceptable start, from
    /// [`oldest_acceptable_fetch`](super::RequestDirectives::oldest_acceptable_fetch); for [`JoinGroup::Wait`], now.
    pub since: Option<Instant>,
    /// The caller goes itself: it does not join a fetch that is still waiting for its turn.
    pub ready: bool,
}

/// Held by the fetching task, which uses it to say when its request leaves.
#[derive(Clone, Debug)]
pub struct FetchHandle(Arc<FetchState>);

/// The state shared by a fetch, its handle and its waiters, whatever the type of the answer.
#[derive(Debug)]
struct FetchState {
    fences: Arc<Fences>,
    clock: Clock,
    fence_set: FenceSet,
    stamp: OnceLock<FetchStamp>,
    waiters: AtomicUsize,
    /// Notified when the last waiter has left.
    deserted: Notify,
}

impl FetchHandle {
    /// A handle for a fetch that nobody can join but whose answer is stored.
    pub(super) fn unshared(fences: Arc<Fences>, clock: Clock, fence_set: FenceSet) -> Self {
        let (stamp, waiters) = (OnceLock::new(), AtomicUsize::new(0));
        Self(Arc::new(FetchState { fences, clock, fence_set, stamp, waiters, deserted: Notify::new() }))
    }

    /// Must be called right before the first attempt's request leaves, once there is nothing left to wait for. From
    /// here on the fetch finishes whoever leaves, and readers are judged by this stamp. Further calls (retries)
    /// return the same stamp.
    #[must_use]
    pub fn mark_sent(&self) -> FetchStamp {
        self.0.stamp.get_or_init(|| self.0.fences.stamp(&self.0.fence_set, self.0.clock.now())).clone()
    }
}

impl FetchState {
    /// Whether a reader who arrives now may wait for this fetch. One not sent yet will see everything settled by now.
    fn is_joinable(&self, key: &str, join_request: &JoinRequest<'_>, now: Instant) -> bool {
        match self.stamp.get() {
            None => !join_request.ready,
            Some(stamp) => {
                stamp.is_usable(now)
                    && !self.fences.is_key_fenced(key, stamp)
                    && join_request.since.is_none_or(|since| stamp.at() >= since)
            }
        }
    }
}

/// A fetch under way: its state, and its future answer.
#[derive(Debug)]
struct SharedFetch<T> {
    /// The caller on whose behalf it waits for its turns.
    caller: Arc<str>,
    state: Arc<FetchState>,
    result: Shared<oneshot::Receiver<T>>,
}

/// All shared fetches. Waiters share a `T`.
#[derive(Debug)]
pub struct SharedFetches<T> {
    table: Arc<Mutex<FetchTable<T>>>,
    fences: Arc<Fences>,
    clock: Clock,
}

#[derive(Debug)]
struct FetchTable<T> {
    /// The newest ordinary shared fetch for each key.
    normal: HashMap<Arc<str>, SharedFetch<T>>,
    wait: HashMap<Arc<str>, SharedFetch<T>>,
    /// Number of fetches under way, including those that were replaced in the maps.
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
    /// Creates an empty set, whose fetches are judged by this cache's fences.
    #[must_use]
    pub fn new(cache: &Cache) -> Self {
        let table = FetchTable { normal: HashMap::new(), wait: HashMap::new(), under_way: 0 };
        Self { table: Arc::new(Mutex::new(table)), fences: cache.fences.clone(), clock: cache.clock.clone() }
    }

    /// Joins a usable shared fetch for this key, or starts one with `fetch`. Returns `None` if too many are under
    /// way; the caller must then fetch alone or refuse. The caller must bound how many join.
    ///
    /// `fetch` must call [`FetchHandle::mark_sent`] before its request leaves, and store its answer before it ends.
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
            && shared.state.is_joinable(key, join_request, now)
        {
            return Some(FetchWaiter::new(shared, true));
        }
        if table.under_way >= SHARED_FETCHES_MAX {
            return None;
        }
        let (sender, result) = oneshot::channel();
        let FetchHandle(state) = FetchHandle::unshared(self.fences.clone(), self.clock.clone(), fence_set);
        let caller = join_request.caller.clone();
        let shared = SharedFetch { caller, state: state.clone(), result: result.shared() };
        let waiter = FetchWaiter::new(&shared, false);
        table.group(group).insert(key.clone(), shared);
        table.under_way += 1;
        drop(table);
        let under_way = RunningFetch { table: self.table.clone(), key: key.clone(), group, state };
        // The task is tracked, so nobody needs its handle. It is boxed because it is large and the runtime moves
        // tasks.
        drop(tasks.spawn(Box::pin(under_way.run(fetch, sender))));
        Some(waiter)
    }

    /// Number of waiters of the newest shared fetches, including those who started them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let table = lock(&self.table);
        table.normal.values().chain(table.wait.values()).map(|shared| shared.state.waiters.load(SeqCst)).sum()
    }

    /// Number of shared fetches under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        lock(&self.table).under_way
    }
}

/// Owned by the task of a shared fetch. However the task ends (done, deserted, panicked, torn down), the fetch leaves
/// the map before its waiters are told, so that whoever asks again starts a new one.
struct RunningFetch<T> {
    table: Arc<Mutex<FetchTable<T>>>,
    key: Arc<str>,
    group: JoinGroup,
    state: Arc<FetchState>,
}

impl<T> RunningFetch<T> {
    async fn run<F, Fut>(self, fetch: F, sender: oneshot::Sender<T>)
    where
        F: FnOnce(FetchHandle) -> Fut,
        Fut: Future<Output = T>,
    {
        let mut fetch = pin!(fetch(FetchHandle(self.state.clone())));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut fetch => break result,
                () = self.state.deserted.notified() => if self.abandon() { return },
            }
        };
        drop(self);
        // There may be nobody left to receive it.
        drop(sender.send(result));
    }

    /// Removes the fetch from the map if it may be cancelled, that is, if nobody waits and nothing was sent. Joins
    /// happen under the same lock, so nobody can join a fetch that is being cancelled.
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

/// The shared fetch ended without an answer: it panicked, or the process is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLost;

/// A caller's wait for a shared fetch. Dropping it leaves the fetch.
#[must_use = "dropping it leaves the shared fetch"]
#[derive(Debug)]
pub struct FetchWaiter<T> {
    result: Shared<oneshot::Receiver<T>>,
    caller: Arc<str>,
    state: Arc<FetchState>,
    collapsed: bool,
}

impl<T: Clone> FetchWaiter<T> {
    fn new(shared: &SharedFetch<T>, collapsed: bool) -> Self {
        shared.state.waiters.fetch_add(1, SeqCst);
        let (result, caller, state) = (shared.result.clone(), shared.caller.clone(), shared.state.clone());
        Self { result, caller, state, collapsed }
    }
}

impl<T> FetchWaiter<T> {
    /// Whether this is another request's fetch. If so, a failure that is specific to that request (its rate, its
    /// quota turn) does not apply to this one, which should ask again.
    #[must_use]
    pub fn collapsed(&self) -> bool {
        self.collapsed
    }

    /// Whether the fetch is queued in another caller's name. That may take long, and this caller's own turn may come
    /// sooner.
    #[must_use]
    pub fn is_queued_for_another(&self, caller: &str) -> bool {
        self.collapsed && self.state.stamp.get().is_none() && *self.caller != *caller
    }
}

impl<T: Clone> Future for FetchWaiter<T> {
    type Output = Result<T, FetchLost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(context).map(|result| result.map_err(|_| FetchLost))
    }
}

impl<T> Drop for FetchWaiter<T> {
    fn drop(&mut self) {
        if self.state.waiters.fetch_sub(1, SeqCst) == 1 {
            self.state.deserted.notify_one();
        }
    }
}
