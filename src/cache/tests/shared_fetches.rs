//! Shared fetches: who shares a fetch, and who can stop it.

use std::future::{Future, pending};

use futures_util::future::{FutureExt, join_all};
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use super::*;
use crate::tasks::Tasks;

/// Counts a test's fetches and lets them advance step by step.
#[derive(Clone)]
struct Upstream {
    cache: Arc<Cache>,
    /// One permit lets one fetch take one step.
    steps: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Upstream {
    fn new() -> (Self, SharedFetches<Bytes>, Clock) {
        let (cache, clock) = cache();
        let shared_fetches = SharedFetches::new(&cache);
        let (cache, steps, counter) = (Arc::new(cache), Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default);
        (Self { cache, steps, begun: counter(), sent: counter(), dropped: counter() }, shared_fetches, clock)
    }

    /// Two steps (waiting for quota, say), the request, two steps (attempts), stored.
    fn fetch(
        &self,
        key: &'static str,
    ) -> impl FnOnce(FetchHandle) -> futures_util::future::BoxFuture<'static, Bytes> + use<> {
        let this = self.clone();
        move |handle| {
            async move {
                this.begun.fetch_add(1, SeqCst);
                let ended = Ended(Some(this.dropped.clone()));
                this.step().await;
                this.step().await;
                this.sent.fetch_add(1, SeqCst);
                let stamp = handle.mark_sent();
                this.step().await;
                this.step().await;
                let body = Bytes::from(format!("{key} {}", this.sent.load(SeqCst)));
                this.cache.store(new_entry(key, body.clone(), stamp));
                ended.well();
                body
            }
            .boxed()
        }
    }

    async fn step(&self) {
        self.steps.acquire().await.expect("never closed").forget();
    }

    async fn let_go(&self, steps: usize) {
        self.steps.add_permits(steps);
        settle().await;
    }

    fn join(&self, shared_fetches: &SharedFetches<Bytes>, tasks: &Tasks, key: &'static str) -> FetchWaiter<Bytes> {
        self.join_in(shared_fetches, tasks, key, (JoinGroup::Normal, None)).unwrap()
    }

    fn join_in(
        &self,
        shared_fetches: &SharedFetches<Bytes>,
        tasks: &Tasks,
        key: &'static str,
        which: (JoinGroup, Option<Instant>),
    ) -> Option<FetchWaiter<Bytes>> {
        self.join_as(
            shared_fetches,
            tasks,
            key,
            &JoinRequest { caller: &"a".into(), group: which.0, since: which.1, ready: false },
        )
    }

    fn join_as(
        &self,
        shared_fetches: &SharedFetches<Bytes>,
        tasks: &Tasks,
        key: &'static str,
        join_request: &JoinRequest<'_>,
    ) -> Option<FetchWaiter<Bytes>> {
        shared_fetches.join_or_start(tasks, &key.into(), self.cache.fence_set(&["a"]), join_request, self.fetch(key))
    }

    fn counts(&self) -> (usize, usize, usize) {
        (self.begun.load(SeqCst), self.sent.load(SeqCst), self.dropped.load(SeqCst))
    }
}

/// Counts fetches dropped before their end.
struct Ended(Option<Arc<AtomicUsize>>);

impl Ended {
    fn well(mut self) {
        self.0 = None;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(dropped) = &self.0 {
            dropped.fetch_add(1, SeqCst);
        }
    }
}

/// Runs all tasks until none can advance, on one thread, in a known number of turns.
async fn settle() {
    for _ in 0..8 {
        yield_now().await;
    }
}

async fn ended(shared_fetches: &SharedFetches<Bytes>) {
    for _ in 0..1_000 {
        yield_now().await;
    }
    assert_eq!(shared_fetches.under_way(), 0);
}

#[tokio::test]
async fn a_thousand_readers_of_one_missing_answer_are_one_fetch() {
    let ((upstream, shared_fetches, _), tasks) = (Upstream::new(), Tasks::new());
    let waiters: Vec<_> = (0..1_000).map(|_| upstream.join(&shared_fetches, &tasks, "k")).collect();
    assert_eq!(waiters.iter().filter(|waiter| waiter.collapsed()).count(), 999);
    upstream.let_go(4).await;
    for body in join_all(waiters).await {
        assert_eq!(body.unwrap(), "k 1");
    }
    assert_eq!(upstream.counts(), (1, 1, 0));
    ended(&shared_fetches).await;
}

/// The leading caller hangs up after each possible number of steps: there is one request, and whoever joined is
/// answered.
#[tokio::test]
async fn a_leader_who_leaves_takes_nobody_along() {
    for steps in 0..=4 {
        let ((upstream, shared_fetches, _), tasks) = (Upstream::new(), Tasks::new());
        let leader = upstream.join(&shared_fetches, &tasks, "k");
        let joined = upstream.join(&shared_fetches, &tasks, "k");
        upstream.let_go(steps).await;
        drop(leader);
        settle().await;
        upstream.let_go(4 - steps).await;
        assert_eq!(joined.await.unwrap(), "k 1");
        assert_eq!(upstream.counts(), (1, 1, 0), "after {steps} steps");
        ended(&shared_fetches).await;
    }
}

/// All callers hang up after each possible number of steps: before the request has left nothing is spent; afterwards
/// it fills the cache.
#[tokio::test]
async fn a_deserted_fetch_is_cancelled_unless_it_was_sent() {
    for steps in 0..=3 {
        let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
        let waiters = [upstream.join(&shared_fetches, &tasks, "k"), upstream.join(&shared_fetches, &tasks, "k")];
        upstream.let_go(steps).await;
        drop(waiters);
        settle().await;
        let sent = steps >= 2;
        assert_eq!(shared_fetches.under_way(), usize::from(sent), "after {steps} steps");
        upstream.let_go(4 - steps).await;
        assert_eq!(upstream.counts(), if sent { (1, 1, 0) } else { (1, 0, 1) }, "after {steps} steps");
        assert_eq!(told(&upstream.cache, &clock, "k", ""), if sent { "hit 299" } else { "miss" });
        ended(&shared_fetches).await;
    }
}

/// Someone joins between the last waiter's leaving and the cancellation, so the shared fetch goes on.
#[tokio::test]
async fn joining_in_time_saves_a_deserted_fetch() {
    let ((upstream, shared_fetches, _), tasks) = (Upstream::new(), Tasks::new());
    let first = upstream.join(&shared_fetches, &tasks, "k");
    settle().await;
    drop(first);
    let second = upstream.join(&shared_fetches, &tasks, "k");
    assert!(second.collapsed());
    upstream.let_go(4).await;
    assert_eq!(second.await.unwrap(), "k 1");
    assert_eq!(upstream.counts(), (1, 1, 0));
}

/// A caller whose turn has come does not wait for a fetch that is still waiting for its own turn, and all later
/// callers join it.
#[tokio::test]
async fn whoever_can_go_at_once_overtakes_a_fetch_that_waits_for_its_turn() {
    let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
    let (greedy, polite) = (Arc::from("greedy"), Arc::from("polite"));
    let join_request = |caller, ready| JoinRequest { caller, group: JoinGroup::Normal, since: None, ready };
    let join_as = |join_request| upstream.join_as(&shared_fetches, &tasks, "k", &join_request).unwrap();
    let queued = join_as(join_request(&greedy, false));
    let waiter = join_as(join_request(&polite, false));
    assert!(waiter.is_queued_for_another("polite") && !waiter.is_queued_for_another("greedy"));
    let ready = join_as(join_request(&polite, true));
    assert!(!ready.collapsed() && !ready.is_queued_for_another("polite"));
    let later = join_as(join_request(&greedy, false));
    assert!(later.collapsed());
    // The older fetch has waited longer, so it goes first: four steps end it, two send the other.
    upstream.let_go(6).await;
    assert!(
        join_as(join_request(&greedy, true)).collapsed(),
        "a fetch that was sent is good enough for whoever is ready"
    );
    assert!(!waiter.is_queued_for_another("polite"));
    upstream.let_go(2).await;
    let bodies = join_all([queued, waiter, ready, later]).await;
    assert!(bodies.iter().all(Result::is_ok), "{bodies:?}");
    assert_eq!((upstream.counts(), shared_fetches.under_way()), ((2, 2, 0), 0));
    assert!(told(&upstream.cache, &clock, "k", "").starts_with("hit "));
}

#[tokio::test]
async fn a_panic_is_an_error_to_all_and_leaves_nothing_behind() {
    let ((upstream, shared_fetches, _), tasks) = (Upstream::new(), Tasks::new());
    let join = || {
        let fetch = |handle: FetchHandle| async move {
            drop(handle.mark_sent());
            yield_now().await;
            panic!("on purpose")
        };
        let join_request = JoinRequest { caller: &"a".into(), group: JoinGroup::Normal, since: None, ready: false };
        shared_fetches
            .join_or_start(&tasks, &"k".into(), upstream.cache.fence_set(&["a"]), &join_request, fetch)
            .unwrap()
    };
    let (first, second) = (join(), join());
    assert!(second.collapsed());
    assert_eq!((first.await, second.await), (Err(FetchLost), Err(FetchLost)));
    ended(&shared_fetches).await;
    let next = upstream.join(&shared_fetches, &tasks, "k");
    upstream.let_go(4).await;
    assert_eq!(next.await.unwrap(), "k 1");
}

#[test]
fn a_runtime_that_goes_down_is_an_error_not_a_hang() {
    let ((upstream, shared_fetches, _), tasks) = (Upstream::new(), Tasks::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let waiter = {
        let _inside = runtime.enter();
        upstream.join(&shared_fetches, &tasks, "k")
    };
    drop(runtime);
    assert_eq!(waiter.now_or_never(), Some(Err(FetchLost)));
    assert_eq!(shared_fetches.under_way(), 0);
}

/// Promise 3: what was sent before a write was settled is not joined afterwards, and its end does not affect the
/// newer fetch. A purge, of whatever kind, does the same.
#[tokio::test]
async fn a_fenced_fetch_is_replaced_not_joined() {
    a_fetch_is_replaced_after(|cache| cache.raise(&["a"], Invalidation::Purge)).await;
    a_fetch_is_replaced_after(|cache| assert_eq!(cache.purge("a"), 0)).await;
    a_fetch_is_replaced_after(|cache| assert_eq!(cache.purge_all(), 0)).await;
    a_fetch_is_replaced_after(|cache| cache.purge_entry("k")).await;
}

async fn a_fetch_is_replaced_after(purge: impl FnOnce(&Cache)) {
    let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
    let before = upstream.join(&shared_fetches, &tasks, "k");
    upstream.let_go(2).await;
    purge(&upstream.cache);
    let after = upstream.join(&shared_fetches, &tasks, "k");
    assert!(!after.collapsed());
    settle().await;
    // The older fetch has waited longer, so it goes first: its last two steps are two of the three.
    upstream.let_go(3).await;
    assert_eq!(before.await.unwrap(), "k 1");
    assert_eq!(told(&upstream.cache, &clock, "k", ""), "miss");
    assert!(upstream.join(&shared_fetches, &tasks, "k").collapsed(), "the newer fetch is still there");
    upstream.let_go(3).await;
    assert_eq!(after.await.unwrap(), "k 2");
    assert_eq!(told(&upstream.cache, &clock, "k", ""), "hit 299");
    assert_eq!(upstream.counts(), (2, 2, 0));
    ended(&shared_fetches).await;
}

/// A fetch waiting for quota while a write is settled will see the write, so no second turn is spent.
#[tokio::test]
async fn a_fetch_not_sent_yet_is_joined_across_a_fence() {
    let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
    let before = upstream.join(&shared_fetches, &tasks, "k");
    upstream.let_go(1).await;
    upstream.cache.raise(&["a"], SETTLED);
    let after = upstream.join_in(&shared_fetches, &tasks, "k", (JoinGroup::Normal, Some(clock.now()))).unwrap();
    assert!(after.collapsed());
    upstream.let_go(3).await;
    assert_eq!((before.await.unwrap(), after.await.unwrap()), ("k 1".into(), "k 1".into()));
    assert_eq!(told(&upstream.cache, &clock, "k", ""), "hit 9", "still born in the window");
}

#[tokio::test]
async fn a_fetch_born_in_a_window_is_not_joined_after_it() {
    let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
    upstream.cache.raise(&["a"], SETTLED);
    let _slow = upstream.join(&shared_fetches, &tasks, "k");
    upstream.let_go(2).await;
    pass(&clock, 9_000);
    assert!(upstream.join(&shared_fetches, &tasks, "k").collapsed());
    pass(&clock, 1_000);
    assert!(!upstream.join(&shared_fetches, &tasks, "k").collapsed());
}

#[tokio::test]
async fn since_and_group_choose_among_fetches() {
    let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
    let first = upstream.join(&shared_fetches, &tasks, "k");
    upstream.let_go(2).await;
    let born = clock.now();
    pass(&clock, 2_000);
    let join = |which| upstream.join_in(&shared_fetches, &tasks, "k", which).unwrap();
    assert!(
        join((
            JoinGroup::Normal,
            request_directives("max-age=3").oldest_acceptable_fetch(&REFRESH_POLICY, clock.now())
        ))
        .collapsed()
    );
    let refresh =
        join((JoinGroup::Normal, request_directives("no-cache").oldest_acceptable_fetch(&REFRESH_POLICY, clock.now())));
    assert!(!refresh.collapsed());
    let waits = [join((JoinGroup::Wait, Some(clock.now()))), join((JoinGroup::Wait, Some(born)))];
    assert_eq!(waits.each_ref().map(FetchWaiter::collapsed), [false, true]);
    drop((first, refresh, waits));
}

/// Fifty callers who insist on new data at once share one fetch; later ones share the next.
#[tokio::test]
async fn parallel_refreshes_share_fetches() {
    let ((upstream, shared_fetches, clock), tasks) = (Upstream::new(), Tasks::new());
    fill(&upstream.cache, "k", &["a"]).unwrap();
    pass(&clock, 60_000);
    let mut waiters = Vec::new();
    for n in 0..50 {
        let found = upstream.cache.lookup("k", &request_directives("no-cache"), &REFRESH_POLICY, clock.now());
        let Lookup::Fetch { why: ForwardReason::Request, fallback: None, since } = found else { panic!("{found:?}") };
        waiters.push(upstream.join_in(&shared_fetches, &tasks, "k", (JoinGroup::Normal, since)).unwrap());
        pass(&clock, 10);
        upstream.let_go(usize::from(n < 3)).await;
    }
    upstream.let_go(4).await;
    drop(join_all(waiters).await);
    assert_eq!(upstream.counts(), (1, 1, 0));
}

#[tokio::test]
async fn fetches_under_way_are_bounded() {
    let ((upstream, shared_fetches, _), tasks) = (Upstream::new(), Tasks::new());
    let fence_set = upstream.cache.fence_set(&["a"]);
    let (caller, fetch) = ("a".into(), |_| pending::<Bytes>());
    let join_request = JoinRequest { caller: &caller, group: JoinGroup::Normal, since: None, ready: false };
    let join = |key: &str| shared_fetches.join_or_start(&tasks, &key.into(), fence_set.clone(), &join_request, fetch);
    let many: Vec<_> = (0..4_096).map_while(|n| join(&n.to_string())).collect();
    assert_eq!((many.len(), shared_fetches.under_way()), (4_096, 4_096));
    assert!(join("one more").is_none() && join("7").is_some());
    drop(many);
    ended(&shared_fetches).await;
    assert!(join("one more").is_some());
}

/// Threads join while others leave and shared fetches end: every waiter is answered, and every shared fetch ends.
#[test]
fn threads_that_join_and_leave_lose_no_fetch() {
    let (cache, _) = cache();
    let (shared_fetches, tasks) = (SharedFetches::<u64>::new(&cache), Tasks::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    runtime.block_on(async {
        let reader = |seed: u64| {
            let (shared_fetches, spawner, fence_set) = (&shared_fetches, &tasks, cache.fence_set(&["a"]));
            let join = move || {
                let fetch = move |handle: FetchHandle| async move {
                    yield_now().await;
                    drop(handle.mark_sent());
                    yield_now().await;
                    seed
                };
                let join_request =
                    JoinRequest { caller: &"a".into(), group: JoinGroup::Normal, since: None, ready: false };
                shared_fetches.join_or_start(spawner, &"k".into(), fence_set.clone(), &join_request, fetch).unwrap()
            };
            async move {
                for n in 0..500_u64 {
                    let waiter = join();
                    if (n ^ seed).is_multiple_of(3) {
                        drop(waiter);
                        yield_now().await;
                    } else {
                        assert!(waiter.await.is_ok());
                    }
                }
            }
        };
        let _all: Vec<()> = join_all((0..16).map(reader)).await;
    });
    runtime.block_on(async { assert!(tasks.drained(Duration::from_secs(60)).await) });
    assert_eq!(shared_fetches.under_way(), 0);
}

/// A lone fetch, past the bound on shared fetches, is fenced like any other.
#[test]
fn an_unshared_fetch_keeps_its_first_stamp() {
    let (cache, clock) = cache();
    let handle = cache.fetch_handle(cache.fence_set(&["a"]));
    let stamp = handle.mark_sent();
    cache.raise(&["a"], Invalidation::Purge);
    pass(&clock, 5);
    assert_eq!(handle.mark_sent().at(), stamp.at(), "a retry keeps it");
    assert!(!handle.mark_sent().is_usable(clock.now()));
    assert!(cache.store(new_entry("k", Bytes::new(), handle.mark_sent())).is_none());
}

fn _waiters_go_between_threads(
    waiter: FetchWaiter<Bytes>,
) -> impl Future<Output = Result<Bytes, FetchLost>> + Send + 'static {
    waiter
}
