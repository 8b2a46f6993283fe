//! Promise 3 over several replicas, part one: what the replicas say to each other. Each member is this process's own piece of makegate
//! on a connection of its own; all share a clock that the test moves, so no lease ends by itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use makegate::clock::Clock;
use makegate::config::ShippedRecords;
use makegate::replicas::fences::{FenceKind, FenceTarget};
use makegate::replicas::{Replicas, schema};
use makegate::tasks::Tasks;
use tokio::task::JoinHandle;

use crate::one_replica::{DATABASE, KEY, engine, settings};
use crate::support::fleet::wait;
use crate::support::link::{Link, LinkState};
use crate::support::pooler::Pooler;
use crate::support::postgres::Postgres;

const LEASE: Duration = Duration::from_secs(60);

/// Notes what is raised, in order.
#[derive(Default)]
struct Raised(Mutex<Vec<String>>);

impl FenceTarget for Raised {
    fn raise(&self, tags: &[String], kind: FenceKind) {
        self.0.lock().unwrap().push(format!("{} {kind:?}", tags.join(",")));
    }

    fn raise_all(&self) {
        self.0.lock().unwrap().push("everything".to_owned());
    }
}

struct Member {
    replicas: Arc<Replicas>,
    raised: Arc<Raised>,
    link: Link,
    tasks: Tasks,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Member {
    fn start(name: &str, engine: std::net::SocketAddr, clock: &Clock) -> Self {
        let (link, tasks) = (Link::to(engine), Tasks::new());
        let url = Postgres::url_at(&[link.address()], DATABASE);
        let settings = settings(&url, name, LEASE, ShippedRecords::None);
        let replicas = Replicas::start(settings, "0", clock.clone(), &tasks).unwrap();
        let raised = Arc::new(Raised::default());
        replicas.set_fence_target(raised.clone());
        Self { replicas, raised, link, tasks }
    }

    fn raised(&self) -> Vec<String> {
        self.raised.0.lock().unwrap().clone()
    }

    /// What was raised since everything was.
    fn raised_since_joined(&self) -> Vec<String> {
        self.raised().rsplit(|raised| raised == "everything").next().unwrap().to_vec()
    }

    fn has_lease(&self) -> bool {
        self.replicas.lease().holds()
    }

    fn raise(&self, tag: &str) -> JoinHandle<()> {
        let (replicas, tags) = (self.replicas.clone(), vec![tag.to_owned()]);
        self.tasks.spawn(async move { replicas.raise(&tags, FenceKind::Settled).await })
    }

    fn acks(&self) -> u64 {
        self.replicas.counters().fence_acks.load(std::sync::atomic::Ordering::Relaxed)
    }
}

struct World {
    engine: Postgres,
    clock: Clock,
    members: Vec<Member>,
}

impl World {
    /// Members of an epoch that is old enough for acknowledgements to count.
    async fn start(names: &[&str]) -> Self {
        let world = Self::start_young(names.first().unwrap()).await;
        world.clock.advance(LEASE * 2);
        world.joined_by(names.get(1..).unwrap()).await
    }

    /// One member of an epoch that has just begun.
    async fn start_young(name: &str) -> Self {
        Self { engine: engine(&KEY), clock: Clock::movable(), members: Vec::new() }.joined_by(&[name]).await
    }

    async fn joined_by(mut self, names: &[&str]) -> Self {
        for name in names {
            let member = Member::start(name, self.engine.address(), &self.clock);
            wait("it has a lease and hears", async || member.has_lease() && member.replicas.engine().hears()).await;
            self.members.push(member);
        }
        self
    }

    fn sql(&self, text: &str) -> String {
        self.engine.sql(DATABASE, text)
    }

    /// Has everybody who hears beat.
    fn beat(&self) {
        self.sql("notify mg_fence, 'beat'");
    }

    /// Moves the clock until the raise has ended. It must not, while this member may answer from memory and does not know of it.
    async fn outlasts(&self, raise: JoinHandle<()>, member: &Member) {
        // Time for a raise that does not wait as it should.
        tokio::time::sleep(Duration::from_millis(300)).await;
        while !raise.is_finished() {
            self.clock.advance(Duration::from_millis(500));
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        assert!(!member.has_lease(), "a writer has answered, and this member may still answer from memory");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raise_ends_once_all_members_have_applied_it() {
    if !Postgres::available() {
        return;
    }
    let world = World::start(&["a", "b", "c"]).await;
    let [a, b, c] = &world.members[..] else { panic!() };
    a.replicas.raise(&["org:11".to_owned(), "with space".to_owned()], FenceKind::InDoubt(Duration::from_secs(2))).await;
    assert_eq!(a.acks(), 1);
    for other in [b, c] {
        assert_eq!(other.raised_since_joined(), ["org:11,with space InDoubt(2s)"]);
    }
    world.sql("select mg.raise(id, '{}', -1, gen_random_uuid()) from mg.epoch");
    wait("it is applied", async || !a.raised_since_joined().is_empty()).await;
    assert_eq!(a.raised_since_joined(), [" Purge"], "its own fence was applied before it was raised");
}

/// A long announcement says the place alone, and a lost one nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_announcement_tells_is_brought_by_a_beat() {
    if !Postgres::available() {
        return;
    }
    let world = World::start(&["a", "b"]).await;
    let [a, b] = &world.members[..] else { panic!() };
    let tags: Vec<String> = (0..400).map(|n| format!("org:{n}/a-rather-long-tag")).collect();
    a.replicas.raise(&tags, FenceKind::Settled).await;
    assert_eq!((a.acks(), b.raised_since_joined().len()), (1, 1));
    world.sql(
        "update mg.fence_head set seq = seq + 1; \
         insert into mg.fence select seq, '{lost}', null, gen_random_uuid(), clock_timestamp() from mg.fence_head",
    );
    a.replicas.raise(&["next".to_owned()], FenceKind::Settled).await;
    assert_eq!(b.raised_since_joined()[1..], ["lost Settled", "next Settled"], "in their order");
    assert_eq!(a.raised_since_joined(), ["lost Settled"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raise_outlasts_the_lease_of_a_member_that_does_not_hear_it() {
    if !Postgres::available() {
        return;
    }
    let world = World::start(&["a", "b"]).await;
    let [a, b] = &world.members[..] else { panic!() };
    b.link.set(LinkState::Hold);
    world.outlasts(a.raise("org:11"), b).await;
    assert_eq!(b.raised_since_joined(), [""; 0]);
}

/// The answer to a beat may come long after the beat was carried out, and fences that were raised between are not in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_late_gives_no_longer_lease() {
    if !Postgres::available() {
        return;
    }
    let world = World::start(&["a", "b"]).await;
    let [a, b] = &world.members[..] else { panic!() };
    // No announcement arrives.
    let silent = schema::SCHEMA.replace("perform pg_notify('mg_fence', told);", "");
    assert_ne!(silent, schema::SCHEMA);
    world.sql(&silent);
    let (sql, connection) = tokio_postgres::connect(&world.engine.url(DATABASE), tokio_postgres::NoTls).await.unwrap();
    b.tasks.spawn_until_stop(async { drop(connection.await) });
    let number = async |what: &str| sql.query_one(what, &[]).await.unwrap().get::<_, i64>(0);
    let changes = async |what: &str, from: i64| {
        while number(what).await == from {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let (beats, places) = ("select beats from mg.member where replica = 'b'", "select seq from mg.fence_head");
    for _ in 0..20 {
        let (beat, place, known) = (number(beats).await, number(places).await, b.raised().len());
        b.link.set(LinkState::Delay(Duration::from_millis(150)));
        sql.batch_execute("notify mg_fence, 'beat'").await.unwrap();
        changes(beats, beat).await;
        b.link.set(LinkState::Deaf);
        let raise = a.raise("org:11");
        changes(places, place).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let left = b.replicas.lease().left().saturating_sub(LEASE / 2);
        world.clock.advance(LEASE / 2);
        b.link.set(LinkState::Open);
        tokio::time::sleep(Duration::from_millis(250)).await;
        b.link.set(LinkState::Hold);
        // If the machine was too slow, the connection was given up instead, and the next beat has brought the fence.
        if b.replicas.lease().left() > left && b.raised().len() == known {
            return world.outlasts(raise, b).await;
        }
        b.link.set(LinkState::Open);
        wait("it is back", async || b.has_lease()).await;
    }
    println!("skipped: this machine was too slow each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_another_epoch_everything_is_fenced_and_leases_of_the_last_one_are_outlasted() {
    if !Postgres::available() {
        return;
    }
    let mut world = World::start(&["a", "b"]).await;
    let (engine, [a, b]) = (&mut world.engine, &world.members[..]) else { panic!() };
    a.replicas.raise(&["org:12".to_owned()], FenceKind::Settled).await;
    b.link.set(LinkState::Cut);
    let (before, fenced) = (*a.replicas.epoch().borrow(), a.raised().len());
    engine.kill_backend();
    wait("another epoch", async || *a.replicas.epoch().borrow() != before).await;
    assert_eq!(a.raised()[fenced..], ["everything"]);
    assert!(b.has_lease(), "otherwise this proves nothing");
    world.outlasts(a.raise("org:11"), b).await;
    b.link.set(LinkState::Open);
    wait("it is back", async || b.has_lease()).await;
    assert_eq!(b.raised().last().unwrap(), "everything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_given_up_learns_what_it_missed_before_it_has_a_lease() {
    if !Postgres::available() {
        return;
    }
    let world = World::start(&["a", "b"]).await;
    let [a, b] = &world.members[..] else { panic!() };
    for pruned in [false, true] {
        b.link.set(LinkState::Cut);
        world.beat();
        wait("it is given up", async || {
            world.clock.advance(LEASE / 4);
            world.beat();
            world.sql("select gone from mg.member where replica = 'b'") == "t"
        })
        .await;
        let acks = a.acks();
        let fenced = b.raised().len();
        a.replicas.raise(&["org:11".to_owned()], FenceKind::Settled).await;
        assert_eq!(a.acks(), acks + 1, "nobody waits for it");
        if pruned {
            world.sql("delete from mg.fence");
        }
        assert!(!b.has_lease());
        b.link.set(LinkState::Open);
        wait("it is back", async || b.has_lease()).await;
        let wanted = if pruned { "everything" } else { "org:11 Settled" };
        assert_eq!(b.raised()[fenced..], [wanted]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raise_waits_for_an_engine_that_is_away() {
    if !Postgres::available() {
        return;
    }
    let world = World::start(&["a", "b"]).await;
    let [a, b] = &world.members[..] else { panic!() };
    a.link.set(LinkState::Cut);
    let raise = a.raise("org:11");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!raise.is_finished());
    a.link.set(LinkState::Open);
    raise.await.unwrap();
    assert!(b.raised_since_joined().contains(&"org:11 Settled".to_owned()));
}

/// Behind a pooler nothing is announced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_announcements_members_ask() {
    if !Postgres::available() || !Pooler::available() {
        return;
    }
    let world = World::start(&["a"]).await;
    let pooler = Pooler::start(world.engine.address());
    let b = Member::start("b", pooler.address(), &world.clock);
    wait("it has a lease", async || b.has_lease()).await;
    let a = &world.members[0];
    // It begins to ask once it knows of others.
    wait("it is told in time", async || {
        let before = a.acks();
        a.replicas.raise(&["org:11".to_owned()], FenceKind::Settled).await;
        a.acks() > before
    })
    .await;
    assert!(!b.replicas.engine().hears());
    assert_eq!(b.raised_since_joined().first().map(String::as_str), Some("org:11 Settled"));
}
