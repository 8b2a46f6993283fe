//! Turns over all replicas: writes to one path go one at a time, whoever sends them, whoever dies, and whatever the engine does late.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use makegate::replicas::Epoch;
use makegate::replicas::writes::turns::{SharedTurn, SharedTurns};
use makegate::sandbox::{Fault, FaultKind};
use makegate::tasks::Tasks;

use crate::one_replica::{DATABASE, KEY, OneReplica, engine};
use crate::support::fleet::{Fleet, FleetPlan, wait};
use crate::support::postgres::{Postgres, Shutdown, say};
use crate::support::{ALL, HELD, ORG, TOO, attempt, with_key};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_one_path_go_one_at_a_time_whoever_sends_them() {
    if !Postgres::available() {
        return;
    }
    let fleet = FleetPlan::default().start().await;
    fleet.sandbox.fault(Fault::always("PATCH", ORG, FaultKind::Latency { ms: 150 }));
    let patch = |n: usize| {
        let replica = &fleet.replicas[n % 3];
        async move { replica.send(ALL, "PATCH", ORG, &[], &format!(r#"{{"name": "name {n}"}}"#)).await.unwrap() }
    };
    let answers = join_all((0..9).map(patch)).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let mut times: Vec<_> = fleet.sandbox.received_of("PATCH", ORG).iter().map(|seen| seen.time_ms).collect();
    times.sort_unstable();
    assert_eq!(times.len(), 9);
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 140), "two at a time: {times:?}");
    wait("no ticket is left", async || fleet.sql("select count(*) from mg.turn") == "0").await;
}

/// A write of this replica's name to one organization.
async fn patch(fleet: &Fleet, replica: usize, key: &str) -> u16 {
    let body = format!(r#"{{"name":"by {replica}"}}"#);
    fleet.replicas[replica].send(key, "PATCH", ORG, &[], &body).await.map_or(0, |reply| reply.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_outlasts_a_crash_of_the_engine_and_not_its_replica() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = FleetPlan { replicas: 2, ..FleetPlan::default() }.start().await;
    let sent = |fleet: &Fleet| fleet.sandbox.received_of("PATCH", ORG).len();
    let waiting = |fleet: &Fleet| {
        let rows = "select count(*) from mg.turn where not held";
        fleet.engine.try_sql("makegate", rows).is_ok_and(|count| count == "1")
    };
    let tasks = Tasks::new();
    let start = |fleet: &Fleet, replica: usize, key: &'static str| {
        let to = fleet.replicas[replica].home.gateway;
        let body = format!(r#"{{"name":"by {replica}"}}"#);
        tasks.spawn(async move { attempt(to, "PATCH", ORG, &with_key(key, &[]), &body).await })
    };
    fleet.sandbox.fault(Fault::always("PATCH", ORG, HELD));
    let first = start(&fleet, 0, ALL);
    wait("the first is with Make", async || sent(&fleet) == 1).await;
    fleet.engine.restart(Shutdown::Immediate);
    fleet.settled().await;
    // Writes that are refused because they have to wait for the new epoch come again.
    let second = async {
        wait("the second one is answered", async || patch(&fleet, 1, TOO).await == 200).await;
    };
    let meanwhile = async {
        wait("the second one waits", async || waiting(&fleet) || sent(&fleet) > 1).await;
        assert_eq!(sent(&fleet), 1, "both had the turn");
        fleet.sandbox.clear_faults();
    };
    tokio::join!(second, meanwhile);
    first.await.unwrap().expect("an answer").expect(200);
    assert_eq!(sent(&fleet), 2);

    fleet.sandbox.fault(Fault::always("PATCH", ORG, FaultKind::Hang { effect: false }));
    drop(start(&fleet, 0, ALL));
    wait("a third one is with Make", async || sent(&fleet) == 3).await;
    fleet.replicas[0].kill();
    fleet.sandbox.clear_faults();
    wait("its turn is over", async || patch(&fleet, 1, TOO).await == 200).await;
    wait("no ticket is left", async || fleet.sql("select count(*) from mg.turn") == "0").await;
}

/// The turns of a replica in this process.
struct Holder {
    one: OneReplica,
    turns: Arc<SharedTurns>,
}

impl Holder {
    async fn join(name: &str, engine: &Postgres) -> Self {
        let one = OneReplica::join(name, engine).await;
        let turns = SharedTurns::start(one.writes.clone(), &one.tasks);
        Self { one, turns }
    }

    /// Takes a turn and gives it back: the connection has prepared the statements then, so that one message is all that each takes.
    async fn prepare(&self, engine: &Postgres) {
        drop(self.turn().await);
        wait("it is given back", async || engine.sql(DATABASE, TICKETS) == "0").await;
    }

    async fn turn(&self) -> SharedTurn {
        let (path, term) = (Arc::from(PATH), self.one.replicas.lease().term().expect("a lease"));
        let turn = self.turns.turn(&path, term);
        tokio::time::timeout(Duration::from_secs(60), turn).await.expect("no turn in a minute").unwrap()
    }
}

const PATH: &str = "/api/v2/organizations/11";
const TICKETS: &str = "select count(*) from mg.turn";
const HELD_BY: &str = "select replica from mg.turn where held";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_late_is_no_ticket_that_was_drawn_since() {
    if !Postgres::available() {
        return;
    }
    let mut engine = engine(&KEY);
    let holder = Holder::join("a", &engine).await;
    holder.prepare(&engine).await;
    let turn = holder.turn().await;
    let before = engine.backends(DATABASE);
    engine.pause_backends(DATABASE);
    drop(turn);
    // Its connection is given up, and the ticket goes back over another one.
    let turn = holder.turn().await;
    assert_eq!(engine.sql(DATABASE, HELD_BY), "a");
    engine.resume();
    wait("the old connection is done", async || {
        let now = engine.backends(DATABASE);
        before.iter().any(|pid| !now.contains(pid))
    })
    .await;
    assert_eq!(engine.sql(DATABASE, HELD_BY), "a", "the turn is another's now");
    drop(turn);
    wait("it is given back", async || engine.sql(DATABASE, HELD_BY).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_take_a_turn_at_once_the_other_one_waits() {
    if !Postgres::available() {
        return;
    }
    let mut engine = engine(&KEY);
    let holder = Holder::join("a", &engine).await;
    let taken = format!(
        "insert into mg.turn (path, held, replica, incarnation, draw) values ('{PATH}', true, 'b', gen_random_uuid(), 1)"
    );
    engine.sql(DATABASE, &taken);
    let waits = holder.turn();
    let meanwhile = async {
        let drawn = "select count(*) from mg.turn where replica = 'a'";
        wait("it has a ticket", async || engine.sql(DATABASE, drawn) == "1").await;
        engine.pause_backends(DATABASE);
        engine.sql(DATABASE, "delete from mg.turn where replica = 'b'");
        // Another one takes the turn, and nobody sees it yet.
        let mut taking = engine.transaction(DATABASE, &format!("begin; {taken}"));
        engine.resume();
        let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        wait("both take it", async || engine.sql(DATABASE, blocked) == "1").await;
        say(&mut taking, "commit");
        wait("the other one has it", async || engine.sql(DATABASE, HELD_BY) == "b").await;
        engine.sql(DATABASE, "delete from mg.turn where replica = 'b'");
    };
    let (turn, ()) = tokio::join!(waits, meanwhile);
    assert_eq!(engine.sql(DATABASE, HELD_BY), "a");
    drop(turn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_drawn_too_late_goes_back_and_none_is_drawn_in_another_epoch() {
    if !Postgres::available() {
        return;
    }
    let mut engine = engine(&KEY);
    let holder = Holder::join("a", &engine).await;
    holder.prepare(&engine).await;
    engine.pause_backends(DATABASE);
    let term = holder.one.replicas.lease().term().expect("a lease");
    assert!(holder.turns.turn(&PATH.into(), term).await.is_err(), "nobody answers");
    let again = holder.turn().await;
    drop(again);
    wait("that one is given back", async || engine.sql(DATABASE, TICKETS) == "0").await;
    engine.resume();
    wait("the first one is drawn", async || engine.sql(DATABASE, TICKETS) == "1").await;
    for left in ["1", "0"] {
        holder.turns.give_back_strays().await.unwrap();
        assert_eq!(engine.sql(DATABASE, TICKETS), left);
    }

    // What was put back by a statement whose answer was lost is this replica's own.
    let turn = holder.turn().await;
    engine.sql(DATABASE, "update mg.turn set ticket = nextval('mg.ticket')");
    let id = engine.sql(DATABASE, "update mg.epoch set id = gen_random_uuid() returning id").parse().unwrap();
    holder.turns.put_back(&Epoch { id, ..holder.one.epoch() }).await.unwrap();
    for _ in 0..3 {
        holder.turns.give_back_strays().await.unwrap();
    }
    assert_eq!(engine.sql(DATABASE, HELD_BY), "a", "it was taken for a stray");
    drop(turn);
    wait("it is given back", async || engine.sql(DATABASE, TICKETS) == "0").await;

    let own = holder.one.epoch().id;
    let (turn, ()) = tokio::join!(holder.turn(), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(engine.sql(DATABASE, TICKETS), "0", "drawn in another epoch");
        engine.sql(DATABASE, &format!("update mg.epoch set id = '{own}'"));
    });
    assert_eq!(engine.sql(DATABASE, HELD_BY), "a");
    drop(turn);
}
