//! Promise 4, using `Idempotency-Key`: a write repeated with its key gets the first answer, and nothing is sent
//! twice, whatever happened in between.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fastrand::Rng;
use jiff::SignedDuration;
use makegate::clock::Clock;
use makegate::hash::random;
use makegate::idempotency::KeyedWrite;
use makegate::sandbox::{Fault, FaultKind, Sandbox};
use makegate::tasks::Tasks;
use serde_json::Value;

use crate::support::process::Home;
use crate::support::random::number;
use crate::support::{
    ALL, HELD, LIST, OPERATOR, ORG, Plan, Reply, TOO, VARIABLES, World, attempt, sandbox_at, send, until, with_key,
};

const NEW: &str = r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#;

async fn keyed(world: &World, caller: &str, key: &str, method: &str, target: &str, body: &str) -> Reply {
    world.send(caller, method, target, &[&format!("idempotency-key: {key}")], body).await
}

async fn settle(world: &World, request: &str, how: &str) {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let operator = world.service.operator_addresses()[0];
    send(operator, "POST", &format!("/doubts/{request}"), &key, &format!(r#"{{"as":"{how}"}}"#)).await.expect(200);
}

#[tokio::test]
async fn the_first_answer_is_replayed_even_after_a_restart() {
    let world = World::start().await;
    let first = keyed(&world, ALL, "k-1", "POST", LIST, NEW).await.expect(200);
    assert_eq!(first.header("idempotent-replayed"), None);
    let intent = world.records().await.into_iter().find(|record| record["kind"] == "intent").unwrap();
    assert!(!intent.to_string().contains("k-1") && intent["idempotency"].is_string(), "{intent}");
    for restarted in [false, true] {
        let world = if restarted { return after_restart(world, &first).await } else { &world };
        same_again(world, &first).await;
    }
}

/// A clock that is wrong for a moment, by more than a key's age, makes no key old.
#[tokio::test]
async fn a_wall_clock_that_steps_ahead_forgets_no_key() {
    let day = SignedDuration::from_hours(25);
    for is_swept in [false, true] {
        let world = Plan::default().clock(Clock::frozen()).start().await;
        let first = keyed(&world, ALL, "k-1", "POST", LIST, NEW).await.expect(200);
        world.clock.step(day);
        if is_swept {
            keyed(&world, ALL, "k-2", "POST", VARIABLES, r#"{"name":"v","typeId":1,"value":1}"#).await.expect(200);
            world.clock.advance(Duration::from_secs(31)); // old keys are forgotten every 30 s of this clock
            tokio::time::sleep(Duration::from_millis(2_500)).await;
        } else {
            same_again(&world, &first).await;
        }
        world.clock.step(-day);
        same_again(&world, &first).await;
        // A clock that is wrong at the start is not believed either.
        world.clock.step(day);
        let world = world.restart().await;
        same_again(&world, &first).await;
        world.clock.step(-day);
        let world = world.restart().await;
        same_again(&world, &first).await;
        assert_eq!(world.sandbox.effects("POST", LIST), 1);
        world.clock.advance(Duration::from_hours(25));
        keyed(&world, ALL, "k-1", "POST", LIST, NEW).await.expect(200);
        assert_eq!(world.sandbox.effects("POST", LIST), 2, "time that did pass counts");
    }
}

async fn after_restart(world: World, first: &Reply) {
    let world = world.restart().await;
    same_again(&world, first).await;
    assert_eq!(world.sandbox.effects("POST", LIST), 1);
}

async fn same_again(world: &World, first: &Reply) {
    for key in ["k-1", "\"k-1\""] {
        let again = keyed(world, ALL, key, "POST", LIST, NEW).await.expect(200);
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("content-type"), first.header("content-type"));
        assert_eq!(
            (again.header("idempotent-replayed"), again.header("makegate-outcome")),
            (Some("true"), Some("done"))
        );
        assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
        let record = world.last_record().await;
        assert_eq!((&record["kind"], &record["answer"]), (&"request".into(), &"replayed".into()), "{record}");
        assert_eq!(record["filled_by"].as_str(), first.header("x-request-id"), "{record}");
    }
    assert_eq!(world.received("POST", LIST), 1);
}

#[tokio::test]
async fn a_key_belongs_to_one_request_of_one_caller() {
    let world = World::start().await;
    let first = keyed(&world, ALL, "k", "POST", LIST, NEW).await.expect(200);
    for (method, target, body) in [("POST", LIST, "{\"name\":\"other\"}"), ("PATCH", ORG, NEW), ("DELETE", ORG, "")] {
        let refused = keyed(&world, ALL, "k", method, target, body).await.refused(422, "MG163");
        assert!(refused.text().contains(first.header("x-request-id").unwrap()));
        assert_eq!(refused.header("makegate-outcome"), None);
    }
    keyed(&world, TOO, "k", "POST", LIST, NEW).await.expect(200);
    assert_eq!(world.sandbox.effects("POST", LIST), 2, "another caller's key is another key");
}

#[tokio::test]
async fn a_replay_is_only_for_callers_who_may_write_at_that_moment() {
    let lines = |grants: &str| format!("grants = [{grants}]\nrate = \"600/min\"");
    let world = Plan::default().caller("passing", &lines("\"*\"")).start().await;
    keyed(&world, "passing", "k", "POST", LIST, NEW).await.expect(200);
    let text = std::fs::read_to_string(world.file()).unwrap();
    let at = text.find("name = \"passing\"").unwrap();
    let (before, own) = text.split_at(at);
    std::fs::write(world.file(), format!("{before}{}", own.replace("\"*\"", "\"organizations:read\""))).unwrap();
    world.reload().await;
    keyed(&world, "passing", "k", "POST", LIST, NEW).await.refused(403, "MG131");
}

#[tokio::test]
async fn while_the_first_write_is_under_way_a_second_one_is_refused() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("POST", LIST, HELD));
    let first = keyed(&world, ALL, "k", "POST", LIST, NEW);
    let second = async {
        until(|| world.received("POST", LIST) == 1).await;
        let other = keyed(&world, ALL, "k", "POST", LIST, "{}").await;
        let same = keyed(&world, ALL, "k", "POST", LIST, NEW).await;
        world.sandbox.clear_faults();
        (same, other)
    };
    let (first, (second, other)) = tokio::join!(first, second);
    assert!(second.refused(409, "MG162").text().contains(first.expect(200).header("x-request-id").unwrap()));
    other.refused(422, "MG163");
    keyed(&world, ALL, "k", "POST", LIST, NEW).await.expect(200);
    assert_eq!(world.received("POST", LIST), 1);
}

#[tokio::test]
async fn the_key_of_a_write_in_doubt_is_held_until_it_is_settled_and_a_new_key_overrides() {
    let world = Plan::default().set("upstream", "look = false").start().await;
    let doubt = async |world: &World, key: &str, body: &str| {
        world.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
        let first = keyed(world, ALL, key, "POST", LIST, body).await.refused(502, "MG222");
        first.header("x-request-id").unwrap().to_owned()
    };
    let two = &NEW.replace("\"n\"", "\"m\"");
    let one = NEW;
    let (first, second) = (doubt(&world, "k-1", one).await, doubt(&world, "k-2", two).await);
    let world = world.restart().await;
    assert!(keyed(&world, ALL, "k-1", "POST", LIST, one).await.refused(409, "MG164").text().contains(&first));
    assert!(world.post(ALL, LIST, one).await.refused(409, "MG161").text().contains(&first));
    assert_eq!(world.received("POST", LIST), 2);
    keyed(&world, ALL, "k-3", "POST", LIST, one).await.expect(200);
    // Settled as done, the key never runs again. Settled as not done, it does.
    settle(&world, &first, "done").await;
    // A crash may have left the second answer without its outcome; someone who has looked knows better.
    let doubt = world.service.gateway().log.doubts().list().pop().unwrap();
    let (key, write) = (doubt.idempotency.unwrap(), doubt.fingerprint.unwrap());
    let second_key = KeyedWrite { key, write, request: doubt.request, caller: doubt.caller };
    world.service.gateway().idempotency.settle_done(second_key, None).await;
    settle(&world, &second, "not-done").await;
    let world = world.restart().await;
    assert!(keyed(&world, ALL, "k-1", "POST", LIST, one).await.refused(409, "MG165").text().contains(&first));
    keyed(&world, ALL, "k-2", "POST", LIST, two).await.expect(200);
    assert_eq!(world.received("POST", LIST), 4);
}

#[tokio::test]
async fn rejections_are_replayed_but_not_answers_that_say_nothing_about_the_write() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("POST", LIST, FaultKind::status(422)));
    let first = keyed(&world, ALL, "bad", "POST", LIST, NEW).await.expect(422);
    let again = keyed(&world, ALL, "bad", "POST", LIST, NEW).await.expect(422);
    assert_eq!((&again.body, again.header("makegate-outcome")), (&first.body, Some("rejected")));
    assert_eq!(world.received("POST", LIST), 1);
    for status in [429, 401] {
        world.sandbox.reset();
        let key = format!("k-{status}");
        world.sandbox.fault(Fault::once("POST", LIST, FaultKind::status(status).with_header("retry-after", "120")));
        assert!(keyed(&world, ALL, &key, "POST", LIST, NEW).await.status >= 400);
        assert_eq!(world.sandbox.effects("POST", LIST), 0);
        world.service.gateway().quota.set_settings(makegate::quota::QuotaSettings {
            setting: makegate::config::QuotaSetting::PerMinute(100_000),
            ..makegate::quota::QuotaSettings::default()
        });
        world.clock.advance(Duration::from_secs(601));
        keyed(&world, ALL, &key, "POST", LIST, NEW).await.expect(200);
    }
}

#[tokio::test]
async fn a_write_that_was_never_sent_leaves_its_key_free() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = Plan::default().upstream(format!("http://{port}")).start().await;
    for _ in 0..2 {
        let answer = keyed(&world, ALL, "k", "POST", LIST, NEW).await.refused(502, "MG201");
        assert_eq!(answer.header("makegate-outcome"), Some("not-sent"));
    }
}

#[tokio::test]
async fn a_write_is_not_sent_again_because_its_answer_is_lost_or_too_large() {
    let world = Plan::default().set("limits", "idempotency_answer_bytes = \"64B\"").start().await;
    keyed(&world, ALL, "large", "POST", LIST, NEW).await.expect(200);
    keyed(&world, ALL, "large", "POST", LIST, NEW).await.refused(409, "MG165");
    world.sandbox.fault(Fault::once("POST", LIST, FaultKind::Cut { after_bytes: 3 }));
    keyed(&world, ALL, "cut", "POST", LIST, NEW).await.refused(502, "MG223");
    keyed(&world, ALL, "cut", "POST", LIST, NEW).await.refused(409, "MG165");
    assert_eq!(world.received("POST", LIST), 2);
}

#[tokio::test]
async fn an_invalid_key_is_refused_and_reads_ignore_keys() {
    let world = World::start().await;
    for bad in ["", "a b", "\"open", &"k".repeat(256)] {
        keyed(&world, ALL, bad, "POST", LIST, NEW).await.refused(400, "MG157");
    }
    let twice = ["idempotency-key: a", "idempotency-key: b"];
    world.send(ALL, "POST", LIST, &twice, NEW).await.refused(400, "MG157");
    assert_eq!(world.received("POST", LIST), 0);
    keyed(&world, ALL, "a b", "GET", ORG, "").await.expect(200);
}

/// What a write under way when the gateway was killed turns out to be when it is sent again with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Found {
    /// Its caller had received the answer, and gets it again.
    Answered,
    /// Its caller had not received the answer, but it was stored.
    Kept,
    /// It is in doubt.
    InDoubt,
    /// It never went upstream, and goes now.
    Free,
}

/// Clients repeat every write with its key until they have an answer, while the gateway is killed again and again.
/// Each write is carried out at most once, and everyone who gets an answer gets the same one. Goes on until every
/// case was seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyed_write_is_done_once_and_answered_alike_whenever_the_gateway_is_killed() {
    let seed = number("MAKEGATE_SEED").unwrap_or_else(|| u64::from(u32::from_ne_bytes(random::<4>().unwrap())));
    println!("MAKEGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let plan = Plan::default().set("upstream", "quota = \"1000000/min\"\nlook = false");
    let home = Home::new(&plan, &format!("http://{}", sandbox.address()));
    let tasks = Tasks::new();
    let mut all: HashMap<String, Asked> = HashMap::new();
    let mut seen: HashMap<Found, usize> = HashMap::new();
    let cases = [Found::Answered, Found::Kept, Found::InDoubt, Found::Free];
    for round in 0..200_u64 {
        if round >= 20 && cases.iter().all(|case| seen.get(case).is_some_and(|times| *times >= 3)) {
            break;
        }
        let process = home.serve().await;
        let (gateway, before) = (home.gateway, sandbox.effects("POST", VARIABLES));
        let clients: Vec<_> = (0..4)
            .map(|client| tasks.spawn(async move { insist(gateway, &format!("v_{round}_{client}")).await }))
            .collect();
        let enough = before + 1 + random.usize(..12);
        until(|| sandbox.effects("POST", VARIABLES) >= enough).await;
        tokio::time::sleep(Duration::from_micros(random.u64(..8_000))).await;
        drop(process);
        let _process = home.serve().await;
        for client in clients {
            for (name, answer) in client.await.unwrap() {
                let (found, asked) = find(&home, &sandbox, &name, answer).await;
                *seen.entry(found).or_default() += 1;
                all.insert(name, asked);
            }
        }
    }
    let _process = home.serve().await;
    for (name, asked) in &all {
        let again = post(home.gateway, name).await.unwrap();
        match asked {
            Some(first) => assert_eq!((again.status, again.text()), (200, &**first), "{name}"),
            None => drop(again.refused(409, "MG164")),
        }
    }
    println!("{seen:?}, {} effects", sandbox.effects("POST", VARIABLES));
    let done: Vec<String> = sandbox.received_of("POST", VARIABLES).into_iter().map(|received| received.body).collect();
    let once: HashSet<&String> = done.iter().collect();
    assert_eq!(done.len(), once.len(), "a write was done twice");
    assert!(cases.iter().all(|case| seen.contains_key(case)), "not every case was seen: {seen:?}");
}

/// The answer received, if any.
type Asked = Option<String>;

/// Sends the write again after the gateway's end. `answer` is what its caller had received. Returns which case it is
/// and the answer from now on.
async fn find(home: &Home, sandbox: &Sandbox, name: &str, answer: Asked) -> (Found, Asked) {
    let was_sent = sandbox.received_of("POST", VARIABLES).iter().any(|received| received.body.contains(&quoted(name)));
    let again = post(home.gateway, name).await.unwrap();
    let is_replayed = again.header("idempotent-replayed").is_some();
    let found = match (&answer, again.status) {
        (Some(first), _) => {
            assert_eq!((again.status, again.text(), is_replayed), (200, &**first, true), "{name}");
            Found::Answered
        }
        (None, 200) => {
            assert_eq!(is_replayed, was_sent, "{name}: {again:?}");
            if is_replayed { Found::Kept } else { Found::Free }
        }
        (None, _) => {
            again.clone().refused(409, "MG164");
            Found::InDoubt
        }
    };
    (found, (again.status == 200).then(|| again.text().to_owned()))
}

/// Sends writes one after the other, each twice with its key, and returns the answers until none comes.
async fn insist(gateway: std::net::SocketAddr, prefix: &str) -> Vec<(String, Asked)> {
    let mut asked = Vec::new();
    for number in 0..5_000 {
        let name = format!("{prefix}_{number}");
        let first = post(gateway, &name).await;
        asked.push((name.clone(), first.as_ref().map(|first| first.text().to_owned())));
        let Some(first) = first else { break };
        assert_eq!(first.status, 200, "{first:?}");
        let Some(again) = post(gateway, &name).await else { break };
        assert_eq!((again.text(), again.header("idempotent-replayed")), (first.text(), Some("true")));
    }
    asked
}

/// The name as it appears in its write's body.
fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

async fn post(gateway: std::net::SocketAddr, name: &str) -> Option<Reply> {
    let headers = with_key(ALL, &[&format!("idempotency-key: {name}")]);
    let body = format!(r#"{{"typeId":2,"name":{},"value":"x"}}"#, quoted(name));
    attempt(gateway, "POST", VARIABLES, &headers, &body).await
}

/// The log knows keys too, so losing the idempotency store loses only answers.
#[tokio::test]
async fn a_key_outlives_the_store_of_answers() {
    let world = Plan::default().set("upstream", "look = false").start().await;
    keyed(&world, ALL, "done", "POST", LIST, NEW).await.expect(200);
    world.sandbox.fault(Fault::once("POST", LIST, FaultKind::status(422)));
    keyed(&world, ALL, "rejected", "POST", LIST, NEW).await.expect(422);
    let doubt = async |key: &str| {
        world.sandbox.fault(Fault::once("POST", LIST, FaultKind::Reset { effect: true }));
        let first = keyed(&world, ALL, key, "POST", LIST, &NEW.replace("\"n\"", &format!("\"{key}\"")))
            .await
            .refused(502, "MG222");
        first.header("x-request-id").unwrap().to_owned()
    };
    let (settled, freed) = (doubt("settled").await, doubt("freed").await);
    doubt("in-doubt").await;
    settle(&world, &settled, "done").await;
    settle(&world, &freed, "not-done").await;
    let before = world.received("POST", LIST);
    let world = world.restart_after(|dir| std::fs::remove_file(dir.join("answers.sqlite")).unwrap()).await;
    let again = async |key: &str| {
        let own = NEW.replace("\"n\"", &format!("\"{key}\""));
        keyed(&world, ALL, key, "POST", LIST, if matches!(key, "done" | "rejected") { NEW } else { &own }).await
    };
    again("done").await.refused(409, "MG165");
    again("settled").await.refused(409, "MG165");
    again("in-doubt").await.refused(409, "MG164");
    keyed(&world, ALL, "done", "POST", LIST, "{}").await.refused(422, "MG163");
    assert_eq!(world.received("POST", LIST), before);
    again("freed").await.expect(200);
    again("rejected").await.expect(200);
    let events: Vec<Value> =
        world.log().await.into_iter().filter(|record| record["event"] == "answers-mended").collect();
    assert!(events.len() == 1 && events[0]["detail"].as_str().unwrap().contains("2 keys"), "{events:?}");
}

#[tokio::test]
async fn one_callers_keys_leave_room_for_those_of_others() {
    let world = Plan::default().set("limits", "idempotency_keys = 8").start().await;
    let mut first = Vec::new();
    let refused = loop {
        let reply = keyed(&world, ALL, &format!("k-{}", first.len()), "POST", LIST, NEW).await;
        if reply.status != 200 {
            break reply;
        }
        first.push(reply);
    };
    refused.refused(503, "MG166");
    assert_eq!(world.received("POST", LIST), first.len(), "it is refused before anything is sent");
    for n in 0..8 / 2 / 3 {
        keyed(&world, TOO, &format!("k-{n}"), "POST", LIST, NEW).await.expect(200);
    }
    let world = world.restart().await;
    for (n, first) in first.iter().enumerate() {
        let again = keyed(&world, ALL, &format!("k-{n}"), "POST", LIST, NEW).await.expect(200);
        assert_eq!(again.body, first.body, "none was evicted");
    }
    keyed(&world, ALL, "one-more", "POST", LIST, NEW).await.refused(503, "MG166");
}
