//! Shared buckets with tasks, over cells in memory that fail when told to.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::super::{BucketId, Quota, QuotaRefused, QuotaSettings, Slot, WaitsFor};
use super::SharedQuota;
use crate::clock::Clock;
use crate::config::QuotaSetting;
use crate::replicas::Epoch;
use crate::replicas::cells::{CellChange, CellContent, CellError, CellFuture, CellReply, EngineClock, QuotaCells};
use crate::replicas::engine::EngineError;
use crate::tasks::Tasks;

const ORG: BucketId = BucketId::Organization(11);
const WAIT: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(10);

/// What all replicas share.
#[derive(Debug, Default)]
struct Shelf {
    cells: HashMap<String, (i64, Vec<u8>)>,
    epoch: Uuid,
    members: HashSet<Uuid>,
    back: HashSet<(Uuid, Uuid)>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The swap is carried out, and nobody hears of it.
    UnclearDone,
    UnclearUndone,
}

/// One replica's way to the shelf.
#[derive(Debug)]
struct ShelfCells {
    shelf: Arc<Mutex<Shelf>>,
    boot: Clock,
    engine_ms: Arc<AtomicU64>,
    clock: EngineClock,
    incarnation: Uuid,
    epoch: watch::Sender<Option<Epoch>>,
    is_cut: AtomicBool,
    faults: Mutex<VecDeque<Fault>>,
}

impl ShelfCells {
    fn shelf(&self, epoch: Uuid) -> Result<MutexGuard<'_, Shelf>, CellError> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Err(CellError::NotSwapped(EngineError::Unreachable));
        }
        let boot = self.boot.boot();
        let ms = u64::try_from(boot.as_millis()).unwrap() + self.engine_ms.load(Ordering::SeqCst);
        self.clock.observe(boot, boot, ms);
        let shelf = self.shelf.lock().unwrap();
        if shelf.epoch == epoch { Ok(shelf) } else { Err(CellError::AnotherEpoch) }
    }
}

fn content(shelf: &Shelf, id: &str) -> CellContent {
    let (version, state) = shelf.cells.get(id).cloned().unwrap_or_default();
    CellContent { version, state }
}

impl QuotaCells for ShelfCells {
    fn read<'a>(&'a self, epoch: Uuid, id: &'a str) -> CellFuture<'a, CellReply> {
        Box::pin(async move { Ok(CellReply::Content(content(&*self.shelf(epoch)?, id))) })
    }

    fn swap<'a>(&'a self, epoch: Uuid, id: &'a str, version: i64, state: Vec<u8>) -> CellFuture<'a, CellReply> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let fault = self.faults.lock().unwrap().pop_front();
            let mut shelf = self.shelf(epoch)?;
            let now = content(&shelf, id);
            if now.version != version {
                return Ok(CellReply::Content(now));
            }
            if !matches!(fault, Some(Fault::UnclearUndone)) {
                shelf.cells.insert(id.to_owned(), (version + 1, state));
            }
            match fault {
                Some(_) => Err(CellError::Unclear(EngineError::Unclear("cut".into()))),
                None => Ok(CellReply::Swapped(version + 1)),
            }
        })
    }

    fn change<'a>(&'a self, epoch: Uuid, id: &'a str, mut change: CellChange<'a>) -> CellFuture<'a, CellReply> {
        Box::pin(async move {
            let mut shelf = self.shelf(epoch)?;
            let now = content(&shelf, id);
            let Some(state) = change(&now) else { return Ok(CellReply::Content(now)) };
            shelf.cells.insert(id.to_owned(), (now.version + 1, state));
            Ok(CellReply::Swapped(now.version + 1))
        })
    }

    fn say_back(&self, epoch: Uuid) -> CellFuture<'_, ()> {
        Box::pin(async move {
            self.shelf(epoch)?.back.insert((self.incarnation, epoch));
            Ok(())
        })
    }

    fn all_back(&self, epoch: Uuid) -> CellFuture<'_, bool> {
        Box::pin(async move {
            let shelf = self.shelf(epoch)?;
            Ok(shelf.members.iter().all(|member| shelf.back.contains(&(*member, epoch))))
        })
    }

    fn epoch(&self) -> watch::Receiver<Option<Epoch>> {
        self.epoch.subscribe()
    }

    fn is_connected(&self) -> bool {
        !self.is_cut.load(Ordering::SeqCst)
    }

    fn clock(&self) -> &EngineClock {
        &self.clock
    }
}

/// Replicas around one engine.
struct Fleet {
    shelf: Arc<Mutex<Shelf>>,
    clock: Clock,
    engine_ms: Arc<AtomicU64>,
    reserve: u32,
    /// Whether its replicas' folders were used before.
    has_run: bool,
}

struct Replica {
    quota: Quota,
    cells: Arc<ShelfCells>,
    clock: Clock,
}

impl Fleet {
    fn new() -> Self {
        let shelf = Shelf { epoch: Uuid::from_u128(1), ..Shelf::default() };
        let engine_ms = Arc::new(AtomicU64::new(1_700_000_000_000));
        Self { shelf: Arc::new(Mutex::new(shelf)), clock: Clock::movable(), engine_ms, reserve: 0, has_run: false }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }

    fn replica(&self, number: u128, setting: QuotaSetting, dir: Option<&Path>) -> Replica {
        let incarnation = Uuid::from_u128(number);
        let cells = Arc::new(ShelfCells {
            shelf: self.shelf.clone(),
            boot: self.clock.clone(),
            engine_ms: self.engine_ms.clone(),
            clock: EngineClock::default(),
            incarnation,
            epoch: watch::Sender::new(None),
            is_cut: false.into(),
            faults: Mutex::default(),
        });
        self.shelf().members.insert(incarnation);
        let shared = SharedQuota {
            cells: cells.clone(),
            incarnation,
            attempt_max: ATTEMPT,
            reserve_percent: self.reserve,
            replicas_max: 2,
            tasks: Tasks::new(),
        };
        let settings = QuotaSettings { setting, queue_per_caller: 3, wait: WAIT, ..QuotaSettings::default() };
        let quota =
            Quota::open(settings, dir.map(|dir| (dir, self.has_run)), self.clock.clone(), Some(&shared)).unwrap();
        let replica = Replica { quota, cells, clock: self.clock.clone() };
        replica.join(self);
        replica
    }

    /// The engine loses everything, and has no members.
    fn forget(&self) {
        let mut shelf = self.shelf();
        shelf.cells.clear();
        shelf.epoch = Uuid::from_u128(shelf.epoch.as_u128() + 1);
    }
}

impl Replica {
    fn join(&self, fleet: &Fleet) {
        self.cells.epoch.send_replace(Some(Epoch { id: fleet.shelf().epoch, seen: self.clock.boot() }));
    }

    async fn ask(&self, caller: &str) -> Result<Slot, QuotaRefused> {
        self.quota.acquire(ORG, &caller.into(), 1, self.clock.now() + WAIT).await
    }

    /// Takes a slot that can be had without moving the clock.
    async fn take(&self, caller: &str) -> Slot {
        let taken = tokio::time::timeout(Duration::from_secs(20), self.ask(caller)).await;
        taken.expect("has to wait").expect("is refused")
    }

    async fn used(&self, used: u32) {
        until("the slots are not counted", || self.quota.view(ORG).used == used).await;
    }

    async fn waiting(&self, waiting: usize) {
        until("nobody waits as expected", || self.quota.view(ORG).waiting == waiting).await;
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn replicas_share_one_limit_and_whoever_waits_is_woken() {
    let fleet = Fleet::new();
    let [one, other] = [1, 2].map(|number| fleet.replica(number, QuotaSetting::PerMinute(3), None));
    drop((one.take("a").await, one.take("a").await, other.take("a").await));
    let QuotaRefused::TooLong(outlook) = other.ask("a").await.unwrap_err() else {
        panic!("refused for another reason")
    };
    assert_eq!((outlook.waits_for, outlook.limit, outlook.spent), (WaitsFor::Spent, 3, 3));
    one.clock.advance(Duration::from_secs(58));
    let waits = async { (one.ask("a").await, other.ask("a").await) };
    let later = async {
        one.waiting(1).await;
        one.clock.advance(Duration::from_millis(3_100));
    };
    let ((first, second), ()) = tokio::join!(waits, later);
    assert!(first.unwrap().waited() >= Duration::from_secs(2) && second.is_ok());
}

#[tokio::test]
async fn a_request_that_leaves_while_it_waits_leaves_no_ticket_and_loses_no_slot() {
    let fleet = Fleet::new();
    let [one, other] = [1, 2].map(|number| fleet.replica(number, QuotaSetting::PerMinute(1), None));
    drop(one.take("a").await);
    one.clock.advance(Duration::from_secs(58));
    {
        let mut leaves = Box::pin(one.ask("a"));
        tokio::select! { _ = &mut leaves => panic!("it has to wait"), () = one.waiting(1) => {} }
    }
    one.waiting(0).await;
    one.clock.advance(Duration::from_secs(4));
    // One that leaves before it was asked for leaves nothing either.
    drop(Box::pin(other.ask("a")));
    other.take("a").await.release_unsent();
    other.used(0).await;
    let mut leaves = Box::pin(other.ask("b"));
    assert!(futures_util::poll!(&mut leaves).is_pending());
    drop(leaves);
    drop(one.take("a").await);
}

#[tokio::test]
async fn out_of_reach_it_waits_and_then_says_so_and_the_reserve_is_exact() {
    let mut fleet = Fleet::new();
    let bare = fleet.replica(1, QuotaSetting::PerMinute(40), None);
    bare.take("a").await.release_unsent();
    bare.cells.is_cut.store(true, Ordering::SeqCst);
    let (refused, ()) = tokio::join!(bare.ask("a"), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        bare.clock.advance(WAIT);
    });
    assert_eq!(refused.unwrap_err(), QuotaRefused::EngineUnreachable);
    bare.cells.is_cut.store(false, Ordering::SeqCst);
    bare.clock.advance(Duration::from_secs(1));
    bare.take("a").await.release_unsent();

    fleet.reserve = 10;
    fleet.shelf().cells.clear();
    let reserved = fleet.replica(2, QuotaSetting::PerMinute(40), None);
    let granted = futures_util::future::join_all((0..3).map(|_| reserved.take("a"))).await;
    assert_eq!(reserved.quota.view(ORG).limit, 36, "the engine never grants the reserve");
    reserved.cells.is_cut.store(true, Ordering::SeqCst);
    // Two replicas at most share four slots.
    let own = (reserved.take("a").await, reserved.take("a").await);
    let (refused, ()) = tokio::join!(reserved.ask("a"), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        reserved.clock.advance(WAIT);
    });
    assert_eq!(refused.unwrap_err(), QuotaRefused::EngineUnreachable);
    drop((own, granted));
}

#[tokio::test]
async fn an_unclear_swap_grants_nothing_and_what_it_stored_counts() {
    let fleet = Fleet::new();
    let one = fleet.replica(1, QuotaSetting::PerMinute(10), None);
    one.take("a").await.release_unsent();
    one.used(0).await;
    for (fault, counted) in [(Fault::UnclearDone, 2), (Fault::UnclearUndone, 3)] {
        one.cells.faults.lock().unwrap().push_back(fault);
        let (slot, ()) = tokio::join!(one.ask("a"), async {
            until("the fault did not happen", || one.cells.faults.lock().unwrap().is_empty()).await;
            one.clock.advance(Duration::from_millis(300));
        });
        slot.unwrap();
        one.used(counted).await;
    }
}

#[tokio::test]
async fn after_a_new_epoch_nobody_grants_before_all_have_put_back_what_they_spent() {
    let fleet = Fleet::new();
    let [one, other] = [1, 2].map(|number| fleet.replica(number, QuotaSetting::PerMinute(10), None));
    let under_way = one.take("a").await;
    drop(one.take("a").await);
    drop(other.take("a").await);
    one.used(3).await;
    fleet.forget();
    one.join(&fleet);
    // The other has not come back yet, so nobody knows what it spent.
    let mut waits = Box::pin(one.ask("a"));
    tokio::select! { _ = &mut waits => panic!("granted too early"), () = tokio::time::sleep(Duration::from_millis(300)) => {} }
    other.join(&fleet);
    let slot = waits.await.unwrap();
    one.used(4).await;
    drop(under_way);
    one.used(4).await;
    drop(slot);
    // One that does not come back is waited for no longer than its slots count.
    fleet.forget();
    one.join(&fleet);
    one.clock.advance(ATTEMPT + Duration::from_secs(70));
    drop(one.take("a").await);
    one.used(1).await;
}

#[tokio::test]
async fn a_429_closes_the_bucket_for_all_and_a_learned_limit_is_everybodys() {
    let fleet = Fleet::new();
    let [one, other] = [1, 2].map(|number| fleet.replica(number, QuotaSetting::Auto, None));
    drop((one.take("a").await, other.take("a").await));
    one.quota.learn_limit(11, 240);
    until("the limit is not told", || fleet.shelf().cells.len() == 1 && one.quota.view(ORG).limit == 240).await;
    drop(other.take("a").await);
    assert_eq!(other.quota.view(ORG).limit, 240);
    other.quota.learn_limit(11, 300);
    until("the new limit is not told", || other.quota.view(ORG).limit == 300).await;
    drop(one.take("a").await);
    assert_eq!(one.quota.view(ORG).limit, 300, "news replace what the others knew");
    let configured = fleet.replica(3, QuotaSetting::PerMinute(7), None);
    drop(configured.take("a").await);
    assert_eq!(configured.quota.view(ORG).limit, 7, "a configured limit wins");
    one.quota.close(ORG, Some(Duration::from_secs(30)));
    until("it is not closed", || one.quota.view(ORG).closed_for.is_some()).await;
    let refused = other.ask("a").await.unwrap_err();
    assert!(matches!(refused, QuotaRefused::TooLong(outlook) if outlook.waits_for == WaitsFor::Closed), "{refused:?}");
    assert!(other.quota.reopen(ORG).is_some_and(|why| why.contains("429")));
    drop(other.take("a").await);
}

#[tokio::test]
async fn when_the_engines_clock_is_set_the_slot_goes_back_and_the_bucket_is_closed_for_the_step() {
    let fleet = Fleet::new();
    let one = fleet.replica(1, QuotaSetting::PerMinute(3), None);
    drop((one.take("a").await, one.take("a").await));
    one.used(2).await;
    one.clock.advance(Duration::from_millis(300));
    // By the engine's clock, both slots have come back.
    fleet.engine_ms.fetch_add(70_000, Ordering::SeqCst);
    let refused = one.ask("a").await;
    assert!(refused.is_err(), "a slot came back early");
    assert_eq!(one.cells.clock.steps(), 1);
    let view = one.quota.view(ORG);
    assert!(view.closed_because.is_some_and(|why| why.contains("clock")));
    one.used(0).await;
    assert!(one.ask("a").await.is_err(), "a slot came back early");
    one.clock.advance(Duration::from_secs(71));
    drop(one.take("a").await);
}

#[tokio::test]
async fn the_next_process_puts_back_what_the_journal_holds_unless_the_engine_knows_it() {
    let fleet = Fleet::new();
    let dir = tempfile::tempdir().unwrap();
    let alone = |clock: &Clock| {
        let settings = QuotaSettings { setting: QuotaSetting::PerMinute(10), ..QuotaSettings::default() };
        Quota::open(settings, Some((dir.path(), true)), clock.clone(), None).unwrap()
    };
    // From one to many: the slots of a process without replicas move in.
    {
        let before =
            Quota::open(QuotaSettings::default(), Some((dir.path(), false)), fleet.clock.clone(), None).unwrap();
        let slot = before.acquire(ORG, &"a".into(), 1, fleet.clock.now() + WAIT).await.unwrap();
        drop(slot);
        assert!(before.end(Duration::from_secs(20)).await);
    }
    for (process, forgets, used) in [(1, false, 2), (2, false, 3), (3, true, 4)] {
        if forgets {
            fleet.forget();
        }
        fleet.shelf().members.clear();
        let one = fleet.replica(process, QuotaSetting::PerMinute(10), Some(dir.path()));
        drop(one.take("a").await);
        one.used(used).await;
        assert!(one.quota.end(Duration::from_secs(20)).await);
    }
    let by_itself = alone(&fleet.clock);
    assert_eq!(by_itself.view(ORG).used, 4);
    assert!(by_itself.end(Duration::from_secs(20)).await);
    // What a process spent alone, no engine knows.
    fleet.shelf().members.clear();
    let one = fleet.replica(9, QuotaSetting::PerMinute(10), Some(dir.path()));
    one.take("a").await.release_unsent();
    one.used(8).await;
}

#[tokio::test]
async fn one_that_has_lost_its_journal_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet { has_run: true, ..Fleet::new() };
    let _lost = fleet.replica(2, QuotaSetting::PerMinute(10), Some(dir.path()));
    let one = fleet.replica(1, QuotaSetting::PerMinute(10), None);
    // What the other one had sent before, nobody knows.
    let mut waits = Box::pin(one.ask("a"));
    tokio::select! { _ = &mut waits => panic!("granted too early"), () = tokio::time::sleep(Duration::from_millis(300)) => {} }
    drop(waits);
    one.clock.advance(ATTEMPT + Duration::from_secs(62));
    drop(one.take("a").await);
}

#[tokio::test]
async fn a_turn_that_a_dead_replica_does_not_take_passes_to_another() {
    let fleet = Fleet::new();
    let [dead, alive] = [1, 2].map(|number| fleet.replica(number, QuotaSetting::PerMinute(2), None));
    drop((dead.take("a").await, dead.take("a").await));
    dead.clock.advance(Duration::from_secs(58));
    let (name, far) = ("a".into(), dead.clock.now() + Duration::from_secs(600));
    let mut first = Box::pin(dead.quota.acquire(ORG, &name, 2, far));
    tokio::select! { _ = &mut first => panic!("it has to wait"), () = dead.waiting(1) => {} }
    dead.cells.is_cut.store(true, Ordering::SeqCst);
    let (caller, latest) = ("a".into(), alive.clock.now() + Duration::from_secs(20));
    let mut second = Box::pin(alive.quota.acquire(ORG, &caller, 2, latest));
    tokio::select! { told = &mut second => panic!("it has to wait, but: {told:?}"), () = alive.waiting(2) => {} }
    alive.clock.advance(Duration::from_millis(3_700));
    let steps = async {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            alive.clock.advance(Duration::from_millis(10));
        }
    };
    let (second, ()) = tokio::join!(second, steps);
    second.unwrap();
}
