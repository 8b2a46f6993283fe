//! What the engine decides about writes: which intent stands, which end and which verdict counts, who adopts, and when writes go on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use makegate::clock::Clock;
use makegate::ids::{Fingerprint, RequestId};
use makegate::replicas::Epoch;
use makegate::replicas::writes::{NotIntended, SharedEnd, SharedState, SharedVerdict, SharedWrite, SharedWrites};
use uuid::Uuid;

use crate::one_replica::{DATABASE, KEY, OneReplica, engine};
use crate::support::fleet::wait;
use crate::support::postgres::Postgres;

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 16])
}

/// A write that has nothing in common with those of other numbers.
fn write(number: u8) -> SharedWrite {
    SharedWrite {
        id: Uuid::from_bytes([number; 16]),
        request: RequestId::parse(format!("request-{number}").as_bytes()).unwrap(),
        sender: None,
        caller: "billing".into(),
        operation: "payments.create".into(),
        organization: Some(11),
        path: "/api/v2/organizations/11/payments".into(),
        fingerprint: fingerprint(number),
        key: None,
        marks: None,
        time: Timestamp::UNIX_EPOCH,
    }
}

/// The same with this idempotency key.
fn keyed(number: u8, key: u8) -> SharedWrite {
    SharedWrite { key: Some(fingerprint(key)), ..write(number) }
}

fn ended(done: bool) -> SharedEnd {
    SharedEnd { state: SharedState::Ended, done: Some(done), answer: None }
}

async fn intend(writes: &SharedWrites, write: SharedWrite) -> Result<(), NotIntended> {
    writes.intend(Arc::new(write)).await
}

/// Tells how it ended, and waits until the engine has it.
async fn end(writes: &SharedWrites, write: SharedWrite, end: SharedEnd) {
    writes.end(Arc::new(write), end).await.unwrap();
}

/// What the engine knows of it.
async fn known(writes: &SharedWrites, number: u8) -> (SharedState, Option<bool>) {
    let found = writes.find(&[write(number).id]).await.unwrap();
    (found[0].state, found[0].done)
}

const REFUSED: Result<(), NotIntended> = Err(NotIntended::Refused);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intent_stands_only_where_nothing_speaks_against_it() {
    if !Postgres::available() {
        return;
    }
    let engine = engine(&KEY);
    let one = OneReplica::join("a", &engine).await;
    let writes = &*one.writes;
    assert_eq!(intend(writes, write(1)).await, Ok(()));
    // The engine has lost its soft state, and this replica has not noticed yet.
    let own = engine.sql(DATABASE, "select id from mg.epoch");
    engine.sql(DATABASE, "update mg.epoch set id = gen_random_uuid()");
    assert_eq!(intend(writes, write(2)).await, REFUSED, "another epoch");
    engine.sql(DATABASE, &format!("update mg.epoch set id = '{own}'"));
    engine.sql(DATABASE, "update mg.member set gone = true");
    assert_eq!(intend(writes, write(2)).await, REFUSED, "the others have given it up");
    engine.sql(DATABASE, "update mg.member set gone = false");
    // An equal write is in doubt.
    end(writes, write(1), SharedEnd::IN_DOUBT).await;
    let equal = SharedWrite { fingerprint: fingerprint(1), ..write(3) };
    assert_eq!(intend(writes, equal.clone()).await, REFUSED, "an equal write is in doubt");
    assert_eq!(intend(writes, SharedWrite { caller: "finance".into(), ..equal.clone() }).await, Ok(()));
    let with_key = SharedWrite { id: write(4).id, request: write(4).request, key: Some(fingerprint(4)), ..equal };
    assert_eq!(intend(writes, with_key).await, Ok(()), "a new key overrides");
    // A key is free again if nothing was sent.
    assert_eq!(intend(writes, keyed(5, 5)).await, Ok(()));
    assert_eq!(intend(writes, keyed(6, 5)).await, REFUSED, "the key is in use");
    end(writes, keyed(5, 5), SharedEnd::NOT_SENT).await;
    assert_eq!(intend(writes, keyed(6, 5)).await, Ok(()));
    end(writes, keyed(6, 5), ended(true)).await;
    assert_eq!(intend(writes, keyed(7, 5)).await, REFUSED, "the key is used up");
    // A request id is one write's for as long as it is open.
    assert_eq!(intend(writes, write(8)).await, Ok(()));
    let same = SharedWrite { request: write(8).request, ..write(9) };
    assert_eq!(intend(writes, same.clone()).await, REFUSED, "an open write has its request id");
    end(writes, write(8), ended(true)).await;
    assert_eq!(intend(writes, same).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_end_counts_and_the_first_verdict() {
    if !Postgres::available() {
        return;
    }
    let engine = engine(&KEY);
    let one = OneReplica::join("a", &engine).await;
    let writes = &*one.writes;
    for number in 1..=3 {
        assert_eq!(intend(writes, keyed(number, number)).await, Ok(()));
    }
    end(writes, keyed(1, 1), ended(true)).await;
    end(writes, keyed(1, 1), SharedEnd::NOT_SENT).await;
    end(writes, keyed(1, 1), SharedEnd::IN_DOUBT).await;
    assert_eq!(known(writes, 1).await, (SharedState::Ended, Some(true)));
    // What was in doubt ends as its sender says.
    end(writes, keyed(2, 2), SharedEnd::IN_DOUBT).await;
    end(writes, keyed(2, 2), ended(true)).await;
    assert_eq!(known(writes, 2).await, (SharedState::Ended, Some(true)));
    let verdict =
        |done| SharedVerdict { done, operator: None, replica: "a".into(), note: None, upstream_status: Some(404) };
    let settle = async |done| {
        let (known, counts) = writes.settle(write(3).id, &verdict(done)).await.unwrap().expect("the engine has it");
        (known.state, known.done, counts)
    };
    assert_eq!(settle(true).await, (SharedState::UnderWay, None, false), "it is under way");
    end(writes, keyed(3, 3), SharedEnd::IN_DOUBT).await;
    assert_eq!(settle(false).await, (SharedState::NotSent, Some(false), true));
    assert_eq!(settle(true).await, (SharedState::NotSent, Some(false), false), "it was settled before");
    assert_eq!(intend(writes, keyed(4, 3)).await, Ok(()), "its key is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intent_that_the_engine_carries_out_too_late_is_undone() {
    if !Postgres::available() {
        return;
    }
    let mut engine = engine(&KEY);
    let one = OneReplica::join("a", &engine).await;
    // The connection has prepared the statement, so that one message is all it takes.
    assert_eq!(intend(&one.writes, write(1)).await, Ok(()));
    engine.pause_backends(DATABASE);
    assert_eq!(intend(&one.writes, write(2)).await, Err(NotIntended::NoAnswer));
    engine.resume();
    let state = format!("select state from mg.write where id = '{}'", write(2).id);
    wait("it was not sent", async || engine.sql(DATABASE, &state) == "n").await;
    assert_eq!(intend(&one.writes, SharedWrite { id: write(3).id, ..write(2) }).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_writes_of_the_gone_are_adopted_and_only_in_this_epoch() {
    if !Postgres::available() {
        return;
    }
    let engine = engine(&KEY);
    let (one, other) = (OneReplica::join("a", &engine).await, OneReplica::join("b", &engine).await);
    for number in 1..=2 {
        assert_eq!(intend(&one.writes, write(number)).await, Ok(()));
    }
    end(&one.writes, write(2), SharedEnd::IN_DOUBT).await;
    let adopt = async |epoch: Epoch, also_doubts| {
        let adopted = other.writes.adopt(&epoch, also_doubts).await.unwrap();
        adopted.into_iter().map(|known| (known.write.id, known.write.sender.unwrap().to_string())).collect::<Vec<_>>()
    };
    assert_eq!(adopt(other.epoch(), true).await, [], "it is alive");
    engine.sql(DATABASE, "update mg.member set gone = true where replica = 'a'");
    assert_eq!(
        adopt(Epoch { id: Uuid::nil(), ..other.epoch() }, true).await,
        [],
        "in another epoch nobody is gone yet"
    );
    assert_eq!(adopt(other.epoch(), false).await, [(write(1).id, "a".to_owned())]);
    assert_eq!(known(&other.writes, 1).await, (SharedState::InDoubt, None));
    assert_eq!(adopt(other.epoch(), false).await, []);
    assert_eq!(adopt(other.epoch(), true).await, [(write(2).id, "a".to_owned())]);
    // Who sent them still says how they ended.
    for one in [&one, &other] {
        let open = one.writes.own_open().await.unwrap();
        let open: std::collections::BTreeSet<_> = open.into_iter().map(|known| known.write.id).collect();
        assert_eq!(open, [write(1).id, write(2).id].into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_once_all_have_told_what_they_know() {
    if !Postgres::available() {
        return;
    }
    let engine = engine(&KEY);
    let (one, other) = (OneReplica::join("a", &engine).await, OneReplica::join("b", &engine).await);
    // By now, whoever could join this epoch has joined; and nobody has waited for too long.
    let settled = Epoch { seen: Clock::system().boot().saturating_sub(Duration::from_secs(130)), ..one.epoch() };
    for epoch in [one.epoch(), settled] {
        assert!(!one.writes.may_open(&epoch).await.unwrap(), "nobody has told anything");
        one.writes.say_reasserted(&epoch).await.unwrap();
        assert!(!one.writes.may_open(&epoch).await.unwrap(), "one that is alive has told nothing");
    }
    engine.sql(DATABASE, "update mg.member set gone = true where replica = 'b'");
    assert!(!one.writes.may_open(&one.epoch()).await.unwrap(), "it may come yet");
    assert!(one.writes.may_open(&settled).await.unwrap(), "it had its time");
    engine.sql(DATABASE, "update mg.member set gone = false where replica = 'b'");
    other.writes.say_reasserted(&other.epoch()).await.unwrap();
    assert!(one.writes.may_open(&one.epoch()).await.unwrap());
    assert!(!one.writes.may_open(&Epoch { id: Uuid::nil(), ..one.epoch() }).await.unwrap(), "of another epoch");
    let patience = Epoch { seen: Duration::ZERO, ..one.epoch() };
    engine.sql(DATABASE, "update mg.member set writes_told = false where replica = 'b'");
    if Clock::system().boot() > Duration::from_secs(6 * 60) {
        assert!(one.writes.may_open(&patience).await.unwrap(), "nobody is waited for for ever");
    }
}
