//! The quota's cells in a real engine: swaps, lost swaps, the lock, epochs, and two quotas that hand out one limit.

use std::sync::Arc;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::config::{QuotaSetting, ShippedRecords};
use makegate::quota::{BucketId, Quota, QuotaSettings, SharedQuota};
use makegate::replicas::Replicas;
use makegate::replicas::cells::{CellContent, CellError, CellReply, EngineCells, QuotaCells};
use makegate::tasks::Tasks;
use uuid::Uuid;

use crate::one_replica::{DATABASE, KEY, engine, settings};
use crate::support::fleet::wait;
use crate::support::postgres::Postgres;

struct Holder {
    replicas: Arc<Replicas>,
    cells: Arc<EngineCells>,
    tasks: Tasks,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Holder {
    async fn join(name: &str, engine: &Postgres, clock: &Clock) -> Self {
        let tasks = Tasks::new();
        let settings = settings(&engine.url(DATABASE), name, Duration::from_secs(5), ShippedRecords::None);
        let replicas = Replicas::start(settings, "0", clock.clone(), &tasks).unwrap();
        let cells = Arc::new(EngineCells::new(replicas.clone()));
        let holder = Self { replicas, cells, tasks };
        wait("it joins", async || holder.cells.epoch().borrow().is_some()).await;
        holder
    }

    fn epoch(&self) -> Uuid {
        self.cells.epoch().borrow().as_ref().unwrap().id
    }

    fn quota(&self, clock: &Clock) -> Quota {
        let shared = SharedQuota {
            cells: self.cells.clone(),
            incarnation: self.replicas.incarnation(),
            attempt_max: Duration::from_secs(10),
            reserve_percent: 0,
            replicas_max: 100,
            tasks: self.tasks.clone(),
        };
        let settings = QuotaSettings { setting: QuotaSetting::PerMinute(20), ..QuotaSettings::default() };
        Quota::open(settings, None, clock.clone(), Some(&shared)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_swaps_made_from_the_same_state_one_counts_and_under_the_lock_all_do() {
    if !Postgres::available() {
        return;
    }
    let (engine, clock) = (engine(&KEY), Clock::system());
    let holder = Holder::join("a", &engine, &clock).await;
    let (cells, epoch) = (&holder.cells, holder.epoch());
    assert_eq!(cells.read(epoch, "11").await.unwrap(), CellReply::Content(CellContent::default()));
    assert_eq!(cells.swap(epoch, "11", 0, b"one".to_vec()).await.unwrap(), CellReply::Swapped(1));
    let known = || CellContent { version: 1, state: b"one".to_vec() };
    assert_eq!(cells.swap(epoch, "11", 0, b"two".to_vec()).await.unwrap(), CellReply::Content(known()));
    assert_eq!(cells.swap(epoch, "11", 1, b"two".to_vec()).await.unwrap(), CellReply::Swapped(2));
    assert!(matches!(cells.swap(epoch, "11", 1, b"three".to_vec()).await.unwrap(), CellReply::Content(_)));
    let seen = CellContent { version: 2, state: b"two".to_vec() };
    assert_eq!(cells.read(epoch, "11").await.unwrap(), CellReply::Content(seen.clone()));
    assert_eq!(cells.change(epoch, "11", Box::new(|_| None)).await.unwrap(), CellReply::Content(seen));
    let other = Holder::join("b", &engine, &clock).await;
    let count = async |cells: &EngineCells| {
        for _ in 0..20 {
            let more = |content: &CellContent| Some([content.state.as_slice(), b"+"].concat());
            assert!(matches!(cells.change(epoch, "11", Box::new(more)).await.unwrap(), CellReply::Swapped(_)));
        }
    };
    tokio::join!(count(cells), count(&other.cells));
    let CellReply::Content(content) = cells.read(epoch, "11").await.unwrap() else { panic!("nothing was swapped") };
    assert_eq!((content.version, content.state.len()), (42, 43));
    let told = cells.clock().at(clock.boot()).unwrap();
    let wall = u64::try_from(clock.wall_ms()).unwrap();
    assert!(
        told.earliest <= wall + 1 && told.latest + 1_000 >= wall && told.latest - told.earliest < 1_000,
        "{told:?}, {wall}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_epoch_takes_nothing_and_is_open_when_all_have_put_back() {
    if !Postgres::available() {
        return;
    }
    let (engine, clock) = (engine(&KEY), Clock::system());
    let holder = Holder::join("a", &engine, &clock).await;
    let (cells, epoch) = (&holder.cells, holder.epoch());
    cells.swap(epoch, "11", 0, b"one".to_vec()).await.unwrap();
    let other = Uuid::from_u128(7);
    assert!(matches!(cells.read(other, "11").await, Err(CellError::AnotherEpoch)));
    assert!(matches!(cells.swap(other, "11", 1, b"x".to_vec()).await, Err(CellError::AnotherEpoch)));
    assert!(matches!(cells.swap(other, "12", 0, b"x".to_vec()).await, Err(CellError::AnotherEpoch)));
    assert!(matches!(cells.change(other, "11", Box::new(|_| Some(b"x".to_vec()))).await, Err(CellError::AnotherEpoch)));
    assert_eq!(engine.sql(DATABASE, "select id, version, encode(state, 'escape') from mg.bucket"), "11|1|one");
    assert!(matches!(cells.say_back(other).await, Err(CellError::AnotherEpoch)));
    assert!(matches!(cells.all_back(other).await, Err(CellError::AnotherEpoch)));
    assert!(!cells.all_back(epoch).await.unwrap());
    cells.say_back(epoch).await.unwrap();
    assert!(cells.all_back(epoch).await.unwrap());
    let missing =
        "insert into mg.replica (name, incarnation, joined, lease_ms) values ('b', gen_random_uuid(), now(), 1)";
    engine.sql(DATABASE, missing);
    assert!(!cells.all_back(epoch).await.unwrap(), "a replica that has not left is missing");
    engine.sql(DATABASE, "update mg.replica set left_at = now() where name = 'b'");
    assert!(cells.all_back(epoch).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_quotas_hand_out_one_limit_whoever_is_asked() {
    if !Postgres::available() {
        return;
    }
    let (engine, clock) = (engine(&KEY), Clock::system());
    let holders = [Holder::join("a", &engine, &clock).await, Holder::join("b", &engine, &clock).await];
    let quotas = holders.each_ref().map(|holder| holder.quota(&clock));
    let (id, caller) = (BucketId::Organization(11), Arc::from("a"));
    let latest = clock.now() + Duration::from_secs(20);
    let asks = (0..40).map(|number| quotas[number % 2].acquire(id, &caller, 1, latest));
    let answers = futures_util::future::join_all(asks).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 20);
    drop(answers);
    let used = async || engine.sql(DATABASE, "select count(*) from mg.bucket where id = '11'") == "1";
    wait("the bucket is in the engine", used).await;
    wait("each replica knows", async || quotas.iter().all(|quota| quota.view(id).used == 20)).await;
}
