//! Promise 3, at random: tools write versions of the same things and read them in every way, while the upstream is
//! slow, cuts connections, fails, and answers late, callers hang up, and time passes. Afterwards each read is
//! compared with the order in which the upstream carried out the writes: it must not be older than any write that was
//! answered before the read was sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use makegate::sandbox::{Fault, FaultKind};
use serde_json::Value;
use tokio::sync::RwLock;

use crate::support::random::seeds;
use crate::support::{ALL, LIST, Plan, READER, Reply, TOKEN, TOO, World, send};

const STEPS: u64 = 30;
const TASKS: u64 = 6;
const ORGANIZATIONS: [u64; 3] = [11, 12, 13];

/// A thing that has versions: an organization's name, or the value of one of its variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Thing {
    Name(u64),
    Variable(u64),
}

impl Thing {
    fn path(self) -> String {
        match self {
            Self::Name(id) => format!("{LIST}/{id}"),
            Self::Variable(id) => format!("{LIST}/{id}/variables/changing"),
        }
    }
}

/// A write that was answered, timed by a clock that ticks at every step of the test.
#[derive(Clone, Debug)]
struct Written {
    thing: Thing,
    version: String,
    answered: u64,
    status: u16,
}

/// What a read showed of one thing.
#[derive(Clone, Debug)]
struct Seen {
    thing: Thing,
    version: String,
    sent: u64,
    #[expect(dead_code, reason = "printed when the test fails")]
    how: String,
}

/// One tool.
struct Tool {
    world: Arc<World>,
    ticks: Arc<AtomicU64>,
    /// Time does not jump while requests are under way: a write that timed out because of it could take effect after
    /// its answer.
    jump: Arc<RwLock<()>>,
    random: Rng,
    number: u64,
    written: Vec<Written>,
    seen: Vec<Seen>,
    /// The last entity tag by target, with the body it stands for.
    tags: HashMap<String, (String, Value)>,
}

impl Tool {
    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    async fn play(mut self) -> Self {
        for step in 0..STEPS {
            match self.random.u64(..10) {
                0..=2 => self.write(step).await,
                3 => self.provoke(),
                4 if self.random.u64(..4) == 0 => {
                    let seconds = self.random.choice([1, 11, 130, 310]).unwrap();
                    let _alone = self.jump.write().await;
                    self.world.clock.advance(Duration::from_secs(seconds));
                }
                _ => self.read().await,
            }
        }
        self
    }

    async fn write(&mut self, step: u64) {
        let id = self.random.choice(ORGANIZATIONS).unwrap();
        let version = format!("v{}x{step}", self.number);
        let (thing, body) = match self.random.u64(..3) {
            0 => (Thing::Variable(id), format!(r#"{{"typeId":2,"value":"{version}"}}"#)),
            _ => (Thing::Name(id), format!(r#"{{"name":"{version}"}}"#)),
        };
        let key = self.random.choice([ALL, TOO]).unwrap();
        if self.random.u64(..6) == 0 {
            // Nobody learns what becomes of it; it may take effect at any later time.
            let after = Duration::from_millis(self.random.u64(..4));
            return self.world.send_and_leave(key, "PATCH", &thing.path(), &body, after).await;
        }
        let jump = self.jump.clone();
        let _no_jump = jump.read().await;
        let status = self.world.patch(key, &thing.path(), &body).await.status;
        if status == 504 && !order(&self.world, thing).contains_key(&version) {
            // It may take effect after its answer, and only then is it older than a read.
            return;
        }
        self.written.push(Written { thing, version, answered: self.tick(), status });
    }

    /// Makes one of the next requests fail in some way.
    fn provoke(&mut self) {
        let thing = if self.random.u64(..3) == 0 { Thing::Variable } else { Thing::Name };
        let path = thing(self.random.choice(ORGANIZATIONS).unwrap()).path();
        let effect = self.random.bool();
        let write = [
            FaultKind::Reset { effect },
            FaultKind::Close { effect },
            FaultKind::Cut { after_bytes: 5 },
            FaultKind::status(500),
            FaultKind::status(500).after_effect(),
            FaultKind::status(503).after_effect(),
            FaultKind::status(400),
            FaultKind::Hang { effect },
            FaultKind::Drip { bytes: 50, every_ms: 4 },
        ];
        let read = [
            FaultKind::Drip { bytes: 50, every_ms: 4 },
            FaultKind::Drip { bytes: 200, every_ms: 10 },
            FaultKind::Latency { ms: 20 },
            FaultKind::Cut { after_bytes: 30 },
            FaultKind::status(503),
            FaultKind::Reset { effect: false },
        ];
        let list = if self.random.bool() { LIST.to_owned() } else { path.replace("/changing", "") };
        let fault = match self.random.u64(..3) {
            0 => Fault::once("PATCH", &path, self.random.choice(&write).unwrap().clone()),
            1 => Fault::once("GET", &list, self.random.choice(&read).unwrap().clone()),
            _ => Fault::once("GET", &path.replace("/changing", ""), self.random.choice(&read).unwrap().clone()),
        };
        self.world.sandbox.fault(fault);
    }

    async fn read(&mut self) {
        let id = self.random.choice(ORGANIZATIONS).unwrap();
        let (key, target) = match self.random.u64(..6) {
            0 => (ALL, LIST.to_owned()),
            1 => (READER, format!("{LIST}?pg[limit]=10")),
            2 => (READER, LIST.to_owned()),
            3 => (ALL, format!("{LIST}/{id}/variables")),
            _ => (self.random.choice([ALL, TOO]).unwrap(), format!("{LIST}/{id}")),
        };
        let words = ["", "", "", "no-cache", "max-age=0", "max-stale=1000", "only-if-cached", "no-store", "max-age=3"];
        let word = *self.random.choice(&words).unwrap();
        let mut headers = Vec::new();
        if !word.is_empty() {
            headers.push(format!("cache-control: {word}"));
        }
        let known = self.tags.get(&target).filter(|_| self.number.is_multiple_of(2)).cloned();
        if let Some((tag, _)) = &known {
            headers.push(format!("if-none-match: {tag}"));
        }
        let jump = self.jump.clone();
        let _no_jump = jump.read().await;
        let sent = self.tick();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let reply = self.world.get_with(key, &target, &headers).await;
        let body = match (reply.status, known) {
            (200, _) => reply.json(),
            (304, Some((_, body))) => body,
            _ => return,
        };
        if let Some(tag) = reply.header("etag") {
            self.tags.insert(target.clone(), (tag.to_owned(), body.clone()));
        }
        let how = how(&reply, &target, word);
        let seen = things(id, &body).into_iter();
        self.seen.extend(seen.map(|(thing, version)| Seen { thing, version, sent, how: how.clone() }));
    }
}

fn how(reply: &Reply, target: &str, word: &str) -> String {
    let header = |name| reply.header(name).unwrap_or("").to_owned();
    format!("{} GET {target} ({word}): {}, {}", header("x-request-id"), reply.status, header("cache-status"))
}

/// All versions that an answer shows.
fn things(id: u64, body: &Value) -> Vec<(Thing, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    if let Some(one) = body.get("organization") {
        return vec![(Thing::Name(id), text(&one["name"]))];
    }
    if let Some(variables) = body.get("organizationVariables") {
        let changing = variables.as_array().unwrap().iter().filter(|one| one["name"] == "changing");
        return changing.map(|one| (Thing::Variable(id), text(&one["value"]))).collect();
    }
    let all = body["organizations"].as_array().unwrap().iter();
    all.map(|one| (Thing::Name(one["id"].as_u64().unwrap()), text(&one["name"]))).collect()
}

async fn start() -> World {
    let world = Plan::default()
        .set("limits", "breaker_failures = 0\nretry_percent = 100\nretry_floor = 1000")
        .set("upstream", "attempt = \"300ms\"\nwrite_attempt = \"300ms\"")
        .set("cache.lifetime", "\"variables.list\" = \"5m\"")
        .sandbox(|sandbox| sandbox.seed_organizations.iter_mut().for_each(|seed| seed.api_limit = Some(100_000)))
        .start()
        .await;
    for id in ORGANIZATIONS {
        let body = r#"{"name":"changing","typeId":2,"value":"first"}"#;
        // Asked at Make itself, because the gateway's own attempts may be too short.
        let token = format!("authorization: Token {TOKEN}\r\n");
        send(world.sandbox.address(), "POST", &format!("{LIST}/{id}/variables"), &token, body).await.expect(200);
    }
    world
}

/// The order in which the upstream carried out the writes to a thing.
fn order(world: &World, thing: Thing) -> HashMap<String, usize> {
    let member = if matches!(thing, Thing::Name(_)) { "name" } else { "value" };
    let effects = world.sandbox.received_of("PATCH", &thing.path()).into_iter().filter(|received| received.effect);
    let version = |body: &str| serde_json::from_str::<Value>(body).unwrap()[member].as_str().unwrap().to_owned();
    effects.enumerate().map(|(at, received)| (version(&received.body), at + 1)).collect()
}

async fn play(seed: u64) -> (usize, usize) {
    let world = Arc::new(start().await);
    let (ticks, jump, mut random) = (Arc::new(AtomicU64::new(1)), Arc::default(), Rng::with_seed(seed));
    let tools: Vec<Tool> = (0..TASKS)
        .map(|number| Tool {
            world: world.clone(),
            ticks: ticks.clone(),
            jump: Arc::clone(&jump),
            random: random.fork(),
            number,
            written: Vec::new(),
            seen: Vec::new(),
            tags: HashMap::new(),
        })
        .collect();
    let tools = join_all(tools.into_iter().map(Tool::play)).await;
    let written: Vec<Written> = tools.iter().flat_map(|tool| tool.written.clone()).collect();
    let seen: Vec<Seen> = tools.into_iter().flat_map(|tool| tool.seen).collect();
    let mut orders: HashMap<Thing, HashMap<String, usize>> = HashMap::new();
    let mut judged = 0;
    for one in &seen {
        let order = orders.entry(one.thing).or_insert_with(|| order(&world, one.thing));
        // What was there at the start is older than everything else.
        let place = order.get(&one.version).copied().unwrap_or(0);
        for write in written.iter().filter(|write| write.thing == one.thing && write.answered < one.sent) {
            judged += 1;
            // A write without an effect (refused, or cut off before it) has no place and demands nothing.
            let least = order.get(&write.version).copied().unwrap_or(0);
            assert!(place >= least, "MAKEGATE_SEED={seed}: {one:?} is older than {write:?}; order: {order:?}");
        }
    }
    (judged, written.iter().filter(|write| write.status != 200).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_a_write_that_was_answered_before_it() {
    let (mut judged, mut failed) = (0, 0);
    for seed in seeds(20) {
        let (more, not_done) = play(seed).await;
        (judged, failed) = (judged + more, failed + not_done);
    }
    println!("{judged} pairs of write and read; {failed} writes were not answered 200");
    assert!(judged > 100 && failed > 0, "too few to prove anything");
}
