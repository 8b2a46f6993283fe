//! Readers and writers in virtual time against an upstream that is slow, lags and loses answers, from a seed. An
//! oracle that knows what happened when judges every answer. `MAKEGATE_SEEDS` sets the number of seeds (200), and
//! `MAKEGATE_SEED` replays one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;

use fastrand::Rng;
use futures_util::future::FutureExt;
use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::*;
use crate::tasks::Tasks;

const KEYS: [(&str, [&str; 2]); 4] = [
    ("11/usage", ["org:11", "org:11/usage"]),
    ("11/detail", ["org:11", "org:11/detail"]),
    ("12/detail", ["org:12", "org:12/detail"]),
    ("list", ["organizations", "organizations"]),
];
/// The tags that writes fence; a write without tags fences everything.
const WRITES: [&[&str]; 5] = [&["org:11/usage"], &["org:11", "organizations"], &["org:12/detail"], &["org:12"], &[]];
const WISHES: [&str; 7] = ["", "", "", "no-cache", "max-age=3", "max-stale=30", "min-fresh=2"];
/// Maximum number of writes per run; a body shows in one number which of them it includes.
const WRITES_MAX: usize = 40;
const READS: usize = 120;
const READ_SPAN_MS: u64 = 400_000;

/// Deviations that the oracle must detect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// The fence is raised when the write begins.
    FenceAtBegin,
    /// No window is opened after the write.
    NoWindow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    WriteBegins(usize),
    /// The upstream applies it; readers of the upstream see it `lag` later.
    WriteApplied(usize),
    /// The gateway gets the answer or gives up on it, raises the fences and answers.
    WriteSettled(usize),
    ReadArrives(usize),
    ReadLeaves(usize),
    /// A fetch's turn has come and its request leaves.
    FetchSent(usize),
    FetchSeen(usize),
    FetchAnswered(usize),
}

struct Write {
    tags: &'static [&'static str],
    in_doubt: bool,
    lag: Duration,
    applied: Option<Instant>,
    /// When its fence was raised and its answer sent, and the number of that event.
    settled: Option<(Instant, usize)>,
}

impl Write {
    fn touches(&self, key: usize) -> bool {
        self.tags.is_empty() || self.tags.iter().any(|tag| KEYS[key].1.contains(tag))
    }
}

/// What a fetch brought.
#[derive(Clone, Copy, Debug)]
struct Body {
    fetch: usize,
    /// The writes that it includes, one bit each.
    shows: u64,
}

struct Fetch {
    key: usize,
    go: Option<oneshot::Sender<()>>,
    answer: Option<oneshot::Sender<Body>>,
    sent: Option<(Instant, usize)>,
    shows: u64,
}

struct Read {
    key: usize,
    request_directives: RequestDirectives,
    wait: bool,
    arrived: Option<(Instant, usize)>,
    waiter: Option<FetchWaiter<Body>>,
}

struct Simulation {
    random: Rng,
    mutant: Mutant,
    cache: Arc<Cache>,
    shared_fetches: SharedFetches<Body>,
    tasks: Tasks,
    clock: Clock,
    now_ms: u64,
    number: usize,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    writes: Vec<Write>,
    reads: Vec<Read>,
    fetches: Vec<Fetch>,
    wrong: Vec<String>,
}

impl Simulation {
    fn new(seed: u64, mutant: Mutant) -> Self {
        let (mut random, (cache, clock)) = (Rng::with_seed(seed), cache());
        let mut events = BinaryHeap::new();
        let writes: Vec<_> = (0..random.u64(5..=WRITES_MAX as u64)).map(|_| write(&mut random)).collect();
        for n in 0..writes.len() {
            events.push(Reverse((random.u64(0..=READ_SPAN_MS), Event::WriteBegins(n))));
        }
        let reads = (0..READS).map(|_| read(&mut random)).collect();
        for n in 0..READS {
            events.push(Reverse((random.u64(0..=READ_SPAN_MS), Event::ReadArrives(n))));
        }
        let (shared_fetches, cache) = (SharedFetches::new(&cache), Arc::new(cache));
        let (tasks, fetches, wrong) = (Tasks::new(), vec![], vec![]);
        Self {
            random,
            mutant,
            cache,
            shared_fetches,
            tasks,
            clock,
            now_ms: 0,
            number: 0,
            events,
            writes,
            reads,
            fetches,
            wrong,
        }
    }

    async fn run(mut self) -> Vec<String> {
        while let Some(Reverse((at, event))) = self.events.pop() {
            self.clock.advance(Duration::from_millis(at - self.now_ms));
            (self.now_ms, self.number) = (at, self.number + 1);
            self.happen(event);
            for _ in 0..4 {
                yield_now().await;
            }
            self.collect();
        }
        let unanswered = self.reads.iter().filter(|read| read.waiter.is_some()).count();
        assert_eq!(
            (unanswered, self.shared_fetches.under_way()),
            (0, 0),
            "all are answered or gone, and no fetch is left"
        );
        self.wrong
    }

    fn after(&mut self, ms: RangeInclusive<u64>, event: Event) {
        let at = self.now_ms + self.random.u64(ms);
        self.events.push(Reverse((at, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::WriteBegins(n) => self.begin_write(n),
            Event::WriteApplied(n) => self.writes[n].applied = Some(self.clock.now()),
            Event::WriteSettled(n) => self.settle_write(n),
            Event::ReadArrives(n) => self.arrive(n),
            Event::ReadLeaves(n) => self.reads[n].waiter = None,
            Event::FetchSent(n) => {
                self.fetches[n].sent = Some((self.clock.now(), self.number));
                // If everyone has left a shared fetch, it is gone by now.
                if self.fetches[n].go.take().unwrap().send(()).is_ok() {
                    self.after(0..=3_000, Event::FetchSeen(n));
                }
            }
            Event::FetchSeen(n) => {
                self.fetches[n].shows = self.shown(self.fetches[n].key);
                self.after(0..=8_000, Event::FetchAnswered(n));
            }
            Event::FetchAnswered(n) => {
                let body = Body { fetch: n, shows: self.fetches[n].shows };
                self.fetches[n].answer.take().unwrap().send(body).unwrap();
            }
        }
    }

    fn begin_write(&mut self, n: usize) {
        if self.mutant == Mutant::FenceAtBegin {
            self.raise(n);
        }
        if self.writes[n].in_doubt {
            // Its answer never comes; it may take effect at any time until the doubt is over, or never.
            self.after(0..=10_000, Event::WriteSettled(n));
            if self.random.u64(0..=3) > 0 {
                self.after(0..=120_000, Event::WriteApplied(n));
            }
        } else {
            let applied = self.random.u64(0..=4_000);
            self.after(applied..=applied, Event::WriteApplied(n));
            self.after(applied + 1..=applied + 4_000, Event::WriteSettled(n));
        }
    }

    fn settle_write(&mut self, n: usize) {
        if self.mutant != Mutant::FenceAtBegin {
            self.raise(n);
        }
        self.writes[n].settled = Some((self.clock.now(), self.number));
    }

    fn raise(&self, n: usize) {
        let after = match self.mutant {
            Mutant::NoWindow => Invalidation::Purge,
            Mutant::None | Mutant::FenceAtBegin if self.writes[n].in_doubt => IN_DOUBT,
            Mutant::None | Mutant::FenceAtBegin => SETTLED,
        };
        self.cache.raise(self.writes[n].tags, after);
    }

    /// The writes touching this key that the upstream shows, one bit each.
    fn shown(&self, key: usize) -> u64 {
        let now = self.clock.now();
        let visible = |write: &Write| write.touches(key) && write.applied.is_some_and(|at| at + write.lag <= now);
        self.writes.iter().enumerate().filter(|(_, write)| visible(write)).map(|(n, _)| 1 << n).sum()
    }

    fn arrive(&mut self, n: usize) {
        let now = self.clock.now();
        self.reads[n].arrived = Some((now, self.number));
        let Read { key, request_directives, wait, .. } = self.reads[n];
        let which = if wait {
            (JoinGroup::Wait, Some(now))
        } else {
            match self.cache.lookup(KEYS[key].0, &request_directives, &REFRESH_POLICY, now) {
                Lookup::Hit(entry) => return self.hit(n, &entry),
                Lookup::Fetch { since, .. } => (JoinGroup::Normal, since),
                other @ (Lookup::Bypass | Lookup::NotHeld) => panic!("{other:?}"),
            }
        };
        let waiter = self.join(key, which);
        self.reads[n].waiter = Some(waiter);
        if self.random.u64(0..=9) == 0 {
            self.after(0..=6_000, Event::ReadLeaves(n));
        }
    }

    fn hit(&mut self, n: usize, entry: &Entry) {
        let (fetch, shows) = entry.body.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let body = Body { fetch: usize::try_from(number(fetch)).unwrap(), shows: number(shows) };
        self.judge(n, body);
        let Read { request_directives, arrived: Some((arrived, _)), .. } = self.reads[n] else {
            panic!("it has arrived")
        };
        let age = arrived - entry.stamp().at();
        let young = age < REFRESH_POLICY.refresh_floor;
        let too_old = request_directives.no_cache || request_directives.max_age.is_some_and(|max| age > max);
        if (too_old && !young) || age > LIFETIME + request_directives.max_stale.unwrap_or_default() {
            self.wrong.push(format!("read {n}: a hit of age {age:?} against {request_directives:?}"));
        }
    }

    fn join(&mut self, key: usize, which: (JoinGroup, Option<Instant>)) -> FetchWaiter<Body> {
        let ((go, gone), (answer, answered)) = (oneshot::channel::<()>(), oneshot::channel::<Body>());
        let cache = self.cache.clone();
        let fetch = move |handle: FetchHandle| async move {
            gone.await.unwrap();
            let stamp = handle.mark_sent();
            let body = answered.await.unwrap();
            let bytes = [(body.fetch as u64).to_le_bytes(), body.shows.to_le_bytes()].concat();
            cache.store(new_entry(KEYS[key].0, bytes.into(), stamp));
            body
        };
        let fence_set = self.cache.fence_set(&KEYS[key].1);
        let join_request = JoinRequest { caller: &"a".into(), group: which.0, since: which.1, ready: false };
        let waiter = self
            .shared_fetches
            .join_or_start(&self.tasks, &KEYS[key].0.into(), fence_set, &join_request, fetch)
            .unwrap();
        if !waiter.collapsed() {
            let n = self.fetches.len();
            self.fetches.push(Fetch { key, go: Some(go), answer: Some(answer), sent: None, shows: 0 });
            // Some wait long for their turn.
            let turn_ms = self.random.choice([0, 10, 5_000]).unwrap();
            self.after(0..=turn_ms, Event::FetchSent(n));
        }
        waiter
    }

    /// Passes the outcomes of finished shared fetches to the oracle.
    fn collect(&mut self) {
        for n in 0..self.reads.len() {
            if let Some(outcome) = self.reads[n].waiter.as_mut().and_then(FutureExt::now_or_never) {
                self.reads[n].waiter = None;
                self.judge(n, outcome.expect("no fetch panics"));
            }
        }
    }

    /// The promises: what a read that arrived after a write's answer may be given.
    fn judge(&mut self, n: usize, body: Body) {
        let (arrived, arrived_number) = self.reads[n].arrived.unwrap();
        let (sent, sent_number) = self.fetches[body.fetch].sent.unwrap();
        assert_eq!(self.fetches[body.fetch].key, self.reads[n].key);
        for (w, write) in self.writes.iter().enumerate().filter(|(_, write)| write.touches(self.reads[n].key)) {
            let Some((settled, number)) = write.settled.filter(|(_, number)| *number < arrived_number) else {
                continue;
            };
            if sent_number < number {
                self.wrong.push(format!("read {n}: fetched {sent:?}, before write {w} was settled {settled:?}"));
            }
            let window = if write.in_doubt { DOUBT + SETTLE } else { SETTLE };
            let applied = write.applied.is_some_and(|at| at + write.lag <= settled + window);
            if applied && arrived >= settled + window && body.shows & 1 << w == 0 {
                self.wrong.push(format!("read {n}: without write {w}, {:?} after it", arrived - settled));
            }
        }
    }
}

fn write(random: &mut Rng) -> Write {
    let lag = Duration::from_millis(random.choice([0, 0, 2_000, 9_000]).unwrap());
    let in_doubt = random.u64(0..=5) == 0;
    Write { tags: random.choice(WRITES).unwrap(), in_doubt, lag, applied: None, settled: None }
}

fn read(random: &mut Rng) -> Read {
    let key = random.choice([0, 1, 2, 3]).unwrap();
    let wait = random.u64(0..=19) == 0;
    Read {
        key,
        request_directives: request_directives(random.choice(WISHES).unwrap()),
        wait,
        arrived: None,
        waiter: None,
    }
}

fn play(seed: u64, mutant: Mutant) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(Simulation::new(seed, mutant).run())
}

fn seeds() -> RangeInclusive<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    number("MAKEGATE_SEED").map_or(1..=number("MAKEGATE_SEEDS").unwrap_or(200), |seed| seed..=seed)
}

/// Promise 3, over many seeds.
#[test]
fn no_seed_brings_an_answer_that_a_write_forbids() {
    for seed in seeds() {
        println!("seed {seed}");
        let wrong = play(seed, Mutant::None);
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    }
}

#[test]
fn the_oracle_notices_a_fence_at_the_beginning_only() {
    assert!((1..=20).any(|seed| !play(seed, Mutant::FenceAtBegin).is_empty()));
}

#[test]
fn the_oracle_notices_that_no_window_was_opened() {
    assert!((1..=20).any(|seed| play(seed, Mutant::NoWindow).iter().any(|wrong| wrong.contains("without write"))));
}
