//! All interleavings of one write and two reads (`docs/decisions/fences.md`), on the real fences, entries and shared
//! fetches, and the same with mutants, which must fail.

use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::*;
use crate::tasks::Tasks;
use futures_util::future::FutureExt;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// The upstream applies it.
    Apply,
    /// The gateway raises the fence.
    Raise,
    /// The answer is sent.
    Answer,
}

/// How the gateway under test differs from the real one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// No difference.
    None,
    /// Shared fetches are joined without checking their fences.
    UncheckedJoin,
    /// Entries are found without checking their fences: what was stored stays, unless it was fenced by then.
    UncheckedLookup,
}

const SETTLED_WRITE: [Write; 3] = [Write::Apply, Write::Raise, Write::Answer];
const READ_STEPS: usize = 4;

/// What a fetch brought, as the oracle knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Body {
    /// The body includes the write.
    new: bool,
    /// Its request left after the fence was raised.
    late: bool,
}

/// A fetch and the oracle's controls for it.
struct Fetch {
    go: Option<oneshot::Sender<()>>,
    answer: Option<oneshot::Sender<Body>>,
    body: Body,
}

enum Read {
    NotArrived,
    Has(Body),
    /// It waits for a shared fetch, its own or another's.
    Waits(FetchWaiter<Body>),
    /// A mutant's read takes what this fetch will bring.
    Takes(usize),
}

struct World {
    cache: Arc<Cache>,
    shared_fetches: SharedFetches<Body>,
    tasks: Tasks,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        let (cache, clock) = cache();
        Self { shared_fetches: SharedFetches::new(&cache), cache: Arc::new(cache), tasks: Tasks::new(), clock }
    }

    /// Plays one schedule (each number stands for an actor's next step: 0 the write, 1 and 2 the reads) under its own
    /// key. Counts the reads that arrived after the write's answer and got a body (fetched before the raise, without
    /// the write).
    async fn play(&self, number: usize, schedule: &[usize], write: &[Write], mutant: Mutant) -> (usize, usize) {
        let mut play = Play::new(self, number, mutant);
        let (mut written, mut stepped) = (0, [0; 2]);
        for actor in schedule {
            match actor.checked_sub(1) {
                None => {
                    play.write(write[written]);
                    written += 1;
                }
                Some(read) => {
                    play.read(read, stepped[read]).await;
                    stepped[read] += 1;
                }
            }
        }
        play.verdict()
    }
}

/// The state of one schedule.
struct Play<'w> {
    world: &'w World,
    key: Arc<str>,
    tag: String,
    mutant: Mutant,
    applied: bool,
    raised: bool,
    answered: bool,
    fetches: [Option<Fetch>; 2],
    reads: [(Read, bool); 2],
}

impl<'w> Play<'w> {
    fn new(world: &'w World, number: usize, mutant: Mutant) -> Self {
        let reads = [(Read::NotArrived, false), (Read::NotArrived, false)];
        let (key, tag) = (format!("k{number}").into(), format!("t{number}"));
        Self { world, key, tag, mutant, applied: false, raised: false, answered: false, fetches: [None, None], reads }
    }

    fn write(&mut self, step: Write) {
        match step {
            Write::Apply => self.applied = true,
            Write::Raise => {
                self.world.cache.raise(&[&self.tag], Invalidation::Purge);
                self.raised = true;
            }
            Write::Answer => self.answered = true,
        }
    }

    /// A read arrives; its fetch, if it has one, is sent, handled by the upstream, and answered.
    async fn read(&mut self, read: usize, step: usize) {
        if step == 0 {
            self.reads[read] = (self.arrive(read), self.answered);
            return;
        }
        let Some(fetch) = &mut self.fetches[read] else { return };
        match step {
            1 => {
                fetch.body.late = self.raised;
                fetch.go.take().unwrap().send(()).unwrap();
            }
            2 => fetch.body.new = self.applied,
            _ => fetch.answer.take().unwrap().send(fetch.body).unwrap(),
        }
        // The fetch runs until it waits again, and then its waiters.
        for _ in 0..3 {
            yield_now().await;
        }
    }

    fn arrive(&mut self, read: usize) -> Read {
        let World { cache, clock, .. } = self.world;
        let found = match cache.lookup(&self.key, &RequestDirectives::default(), &REFRESH_POLICY, clock.now()) {
            Lookup::Hit(entry) => Some(entry),
            Lookup::Fetch { .. } if self.mutant == Mutant::UncheckedLookup => cache.entries.get(&*self.key),
            Lookup::Fetch { .. } | Lookup::Bypass | Lookup::NotHeld => None,
        };
        if let Some(entry) = found {
            return Read::Has(Body { new: entry.body[0] == 1, late: entry.body[1] == 1 });
        }
        let other = self.fetches.iter().position(|fetch| fetch.as_ref().is_some_and(|f| f.answer.is_some()));
        match other {
            Some(other) if self.mutant == Mutant::UncheckedJoin => Read::Takes(other),
            _ => Read::Waits(self.join(read)),
        }
    }

    fn join(&mut self, read: usize) -> FetchWaiter<Body> {
        let World { cache, shared_fetches, tasks, .. } = self.world;
        let (go, gone) = oneshot::channel();
        let (answer, answered) = oneshot::channel::<Body>();
        let (key, store) = (self.key.to_string(), cache.clone());
        let fetch = move |handle: FetchHandle| async move {
            gone.await.unwrap();
            let stamp = handle.mark_sent();
            let body = answered.await.unwrap();
            store.store(new_entry(&key, vec![u8::from(body.new), u8::from(body.late)].into(), stamp));
            body
        };
        let fence_set = cache.fence_set(&[&self.tag]);
        let join_request = JoinRequest { caller: &"a".into(), group: JoinGroup::Normal, since: None, ready: false };
        let waiter = shared_fetches.join_or_start(tasks, &self.key, fence_set, &join_request, fetch).unwrap();
        if !waiter.collapsed() {
            let body = Body { new: false, late: false };
            self.fetches[read] = Some(Fetch { go: Some(go), answer: Some(answer), body });
        }
        waiter
    }

    fn verdict(self) -> (usize, usize) {
        let (mut early, mut old) = (0, 0);
        for (read, after_answer) in self.reads {
            let body = match read {
                Read::Has(body) => body,
                Read::Takes(fetch) => self.fetches[fetch].as_ref().unwrap().body,
                Read::Waits(waiter) => waiter.now_or_never().expect("all fetches have ended").unwrap(),
                Read::NotArrived => panic!("every read has arrived"),
            };
            early += usize::from(after_answer && !body.late);
            old += usize::from(after_answer && !body.new);
        }
        (early, old)
    }
}

/// All orders of the given numbers of steps per actor.
fn schedules(left: &mut [usize], so_far: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
    if left.iter().all(|n| *n == 0) {
        all.push(so_far.clone());
    }
    for actor in 0..left.len() {
        if left[actor] > 0 {
            left[actor] -= 1;
            so_far.push(actor);
            schedules(left, so_far, all);
            so_far.pop();
            left[actor] += 1;
        }
    }
}

/// Number of wrong reads over all schedules.
fn bad(write: &[Write], mutant: Mutant) -> (usize, usize) {
    let mut all = Vec::new();
    schedules(&mut [write.len(), READ_STEPS, READ_STEPS], &mut Vec::new(), &mut all);
    assert_eq!(all.len(), 11_550);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        let (mut early, mut old) = (0, 0);
        for (number, schedule) in all.iter().enumerate() {
            let (e, o) = world.play(number, schedule, write, mutant).await;
            assert!(mutant != Mutant::None || write != SETTLED_WRITE || e == 0, "{schedule:?}");
            (early, old) = (early + e, old + o);
        }
        (early, old)
    })
}

/// Promise 3: after a write's answer no read carries a body whose fetch began before the write was settled.
#[test]
fn no_interleaving_brings_an_old_body_after_the_answer() {
    assert_eq!(bad(&SETTLED_WRITE, Mutant::None), (0, 0));
}

#[test]
fn a_fence_at_the_beginning_only_would_be_noticed() {
    assert!(bad(&[Write::Raise, Write::Apply, Write::Answer], Mutant::None).1 > 0);
}

#[test]
fn a_fence_after_the_answer_would_be_noticed() {
    assert!(bad(&[Write::Apply, Write::Answer, Write::Raise], Mutant::None).1 > 0);
}

#[test]
fn an_unchecked_join_would_be_noticed() {
    assert!(bad(&SETTLED_WRITE, Mutant::UncheckedJoin).1 > 0);
}

#[test]
fn an_unchecked_lookup_would_be_noticed() {
    assert!(bad(&SETTLED_WRITE, Mutant::UncheckedLookup).1 > 0);
}
