//! Promise 4: no request id that a caller chooses can hide, join or end another request's write. The real binary is
//! killed while callers choose equal ids, repeat and reuse each other's, and pick up generated ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::select;
use makegate::audit::{AuditorInput, verify};
use makegate::hash::random;
use makegate::sandbox::{Fault, FaultKind, Sandbox};
use makegate::tasks::Tasks;
use serde_json::Value;

use crate::support::process::Home;
use crate::support::random::number;
use crate::support::{
    ALL, OPERATOR, ORG, Plan, VARIABLES, World, attempt, records_in, sandbox_at, send, until, with_key,
};

const JOB: &str = "x-request-id: job-1";

fn assert_untouched(audit: &Path) {
    let report = verify(audit, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{report:#?}");
}

fn variable(name: &str) -> String {
    format!(r#"{{"typeId":2,"name":"{name}","value":"x"}}"#)
}

/// A write under way whose id others ask for: in memory, in the log, and after a restart.
#[tokio::test]
async fn the_id_of_an_open_write_cannot_be_taken() {
    let world = Plan::default().set("upstream", "look = false").start().await;
    world.sandbox.fault(Fault::once("POST", VARIABLES, FaultKind::Hang { effect: true }));
    let first = world.send(ALL, "POST", VARIABLES, &[JOB], r#"{"typeId":2,"name":"first","value":"x"}"#);
    let meanwhile = async {
        until(|| world.received("POST", VARIABLES) == 1).await;
        let read = world.get_with(ALL, ORG, &[JOB]).await.expect(200);
        assert_ne!(read.header("x-request-id"), Some("job-1"));
        let second = world.send(ALL, "POST", VARIABLES, &[JOB], &variable("second")).await.expect(200);
        assert_ne!(second.header("x-request-id"), Some("job-1"));
        world.sandbox.clear_faults();
    };
    let (first, ()) = tokio::join!(first, meanwhile);
    assert_eq!((first.header("x-request-id"), first.header("makegate-outcome")), (Some("job-1"), Some("in-doubt")));
    let held = world.send(ALL, "POST", VARIABLES, &[JOB], &variable("first")).await.refused(409, "MG161");
    assert!(held.text().contains("job-1") && held.header("x-request-id") != Some("job-1"), "{held:?}");
    let world = world.restart_after(assert_untouched).await;
    world.send(ALL, "POST", VARIABLES, &[JOB], &variable("first")).await.refused(409, "MG161");
    let third = world.send(ALL, "POST", VARIABLES, &[JOB], &variable("third")).await.expect(200);
    assert_ne!(third.header("x-request-id"), Some("job-1"), "a restart frees no id");
    assert_eq!(world.received("POST", VARIABLES), 3, "each was sent once");
    let operator = world.service.operator_addresses()[0];
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(operator, "POST", "/doubts/job-1", &key, r#"{"as":"done"}"#).await.expect(200);
    let fourth = world.send(ALL, "POST", VARIABLES, &[JOB], &variable("fourth")).await.expect(200);
    assert_eq!(fourth.header("x-request-id"), Some("job-1"), "it is settled, and its id free");
    check(&world.log().await, &BTreeSet::new());
}

/// Readers of the log learn ids whose writes are still under way.
#[tokio::test]
async fn an_id_generated_for_a_write_cannot_be_taken() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("POST", VARIABLES, FaultKind::Hang { effect: true }));
    let body = variable("first");
    let first = world.post(ALL, VARIABLES, &body);
    let meanwhile = async {
        until(|| world.received("POST", VARIABLES) == 1).await;
        let id = world.last_record().await["request"].as_str().unwrap().to_owned();
        let header = format!("x-request-id: {id}");
        let second = world.send(ALL, "POST", VARIABLES, &[&header], &variable("second")).await.expect(200);
        assert_ne!(second.header("x-request-id"), Some(&*id));
        world.sandbox.clear_faults();
        id
    };
    let (first, id) = tokio::join!(first, meanwhile);
    assert_eq!(first.header("x-request-id"), Some(&*id));
}

/// Repeating an idempotency key reveals the first write's id, even while that write is still waiting for its turn.
#[tokio::test]
async fn an_id_revealed_by_a_key_cannot_be_taken() {
    const KEY: &str = "idempotency-key: k-1";
    let world = World::start().await;
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::Hang { effect: true }));
    let [earlier, body] = ["Earlier", "Later"].map(|name| format!(r#"{{"name":"{name}"}}"#));
    let earlier = world.patch(ALL, ORG, &earlier);
    let keyed = async {
        until(|| world.received("PATCH", ORG) == 1).await;
        let [one, two] = [(); 2].map(|()| Box::pin(world.send(ALL, "PATCH", ORG, &[KEY], &body)));
        // One has the key and waits; the other is answered and learns the first one's id.
        let (told, waits) = select(one, two).await.factor_first();
        let told = told.refused(409, "MG162");
        let own = told.header("x-request-id");
        let id = told.text().split(|c: char| c != '-' && !c.is_ascii_alphanumeric());
        let id = id.into_iter().find(|word| word.len() == 36 && Some(*word) != own).unwrap();
        let read = world.get_with(ALL, ORG, &[&format!("x-request-id: {id}")]).await.expect(200);
        assert_ne!(read.header("x-request-id"), Some(id));
        world.sandbox.clear_faults();
        assert_eq!(waits.await.header("x-request-id"), Some(id));
    };
    tokio::join!(earlier, keyed);
}

/// What the callers know and were answered.
#[derive(Default)]
struct Told {
    /// Ids worth asking for: chosen ones, and generated ones from answers of this and earlier runs.
    ids: Vec<String>,
    /// Answered writes that had an intent: name, the answer's id, and outcome.
    ended: Vec<(String, String, String)>,
    /// How many requested ids were granted, and how many were replaced.
    asked: [usize; 2],
}

impl Told {
    fn id(&mut self, random: &mut Rng) -> String {
        let newest = self.ids.len().saturating_sub(12);
        let ids = if random.bool() { &self.ids[..3] } else { &self.ids[newest..] };
        random.choice(ids).unwrap().clone()
    }
}

/// A caller in one run: asks for ids that it knows, sometimes hangs up, and stops when the gateway is gone.
struct Caller {
    gateway: SocketAddr,
    operator: SocketAddr,
    sandbox: Arc<Sandbox>,
    told: Arc<Mutex<Told>>,
    random: Rng,
    name: String,
}

impl Caller {
    async fn run(mut self) {
        for number in 0..60 {
            let id = self.told.lock().unwrap().id(&mut self.random);
            let own = format!("x-request-id: {id}");
            let goes_on = match self.random.u64(..12) {
                0 => self.unknown(&own).await,
                1 => attempt(self.gateway, "GET", ORG, &with_key(ALL, &[&own]), "").await.is_some(),
                2 => self.settle(&id).await,
                _ => self.write(&id, &own, number).await,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Makes requests without a key, whose answers reveal further ids.
    async fn unknown(&self, own: &str) -> bool {
        let with_own = format!("{own}\r\n");
        let Some(answer) = attempt(self.gateway, "GET", ORG, &with_own, "").await else { return false };
        let Some(made) = attempt(self.gateway, "GET", ORG, "", "").await else { return false };
        let ids = [answer, made].map(|answer| answer.header("x-request-id").unwrap().to_owned());
        self.told.lock().unwrap().ids.extend(ids);
        true
    }

    /// An operator settles by an id, which may or may not be that of a write in doubt.
    async fn settle(&self, id: &str) -> bool {
        let key = format!("authorization: Bearer {OPERATOR}\r\n");
        let answer = attempt(self.operator, "POST", &format!("/doubts/{id}"), &key, r#"{"as":"done"}"#).await;
        answer.is_none_or(|answer| matches!(answer.status, 200 | 404))
    }

    async fn write(&mut self, id: &str, own: &str, number: u64) -> bool {
        let kind = match self.random.u64(..8) {
            0 => Some(FaultKind::Reset { effect: self.random.bool() }),
            1 => Some(FaultKind::status(400)),
            2 => Some(FaultKind::status(500)),
            3 | 4 => Some(FaultKind::Latency { ms: 5 + self.random.u64(..40) }),
            _ => None,
        };
        if let Some(kind) = kind {
            // Whichever request comes next meets the fault.
            self.sandbox.fault(Fault::once("POST", VARIABLES, kind));
        }
        let name = format!("{}_{number}", self.name);
        let (headers, body) = (with_key(ALL, &[own]), variable(&name));
        let write = attempt(self.gateway, "POST", VARIABLES, &headers, &body);
        let patience = if self.random.u64(..4) == 0 { 3 + self.random.u64(..12) } else { 30_000 };
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(patience), write).await else { return true };
        let Some(answer) = answer else { return false };
        let given = answer.header("x-request-id").unwrap().to_owned();
        let mut told = self.told.lock().unwrap();
        told.asked[usize::from(given != id)] += 1;
        told.ids.push(given.clone());
        if let Some(outcome) = answer.header("makegate-outcome") {
            told.ended.push((name, given, outcome.to_owned()));
        }
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_is_sent_once_and_has_its_own_outcome_whatever_ids_callers_choose() {
    let seed = number("MAKEGATE_SEED").unwrap_or_else(|| u64::from(u32::from_ne_bytes(random::<4>().unwrap())));
    println!("MAKEGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let sandbox = Arc::new(sandbox);
    let plan = Plan::default()
        .set("upstream", "quota = \"1000000/min\"\nlook = false")
        .set("limits", "breaker_failures = 0")
        .set("audit", "segment = \"1MiB\"");
    let home = Home::new(&plan, &format!("http://{}", sandbox.address()));
    let audit = home.path().join("audit");
    let told = Told { ids: ["job-1", "job-2", "job-3"].map(str::to_owned).to_vec(), ..Told::default() };
    let told = Arc::new(Mutex::new(told));
    for round in 0..8 {
        let service = home.serve().await;
        let tasks = Tasks::new();
        for caller in 0..6 {
            let caller = Caller {
                gateway: home.gateway,
                operator: home.operator,
                sandbox: sandbox.clone(),
                told: told.clone(),
                random: random.fork(),
                name: format!("v_{round}_{caller}"),
            };
            tasks.spawn(caller.run());
        }
        if round < 7 {
            tokio::time::sleep(Duration::from_millis(50 + random.u64(..250))).await;
            drop(service);
            tasks.drained(Duration::from_secs(30)).await;
        } else {
            tasks.drained(Duration::from_secs(30)).await;
            assert_eq!(service.end(), Some(0));
        }
        assert_untouched(&audit);
    }
    let service = home.serve().await;
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let listed = send(home.operator, "GET", "/doubts.json", &key, "").await.expect(200).json();
    let doubts = listed["doubts"].as_array().unwrap().iter().map(|doubt| doubt["intent"].as_u64().unwrap()).collect();
    assert_eq!(service.end(), Some(0));
    assert_untouched(&audit);
    let records = records_in(&audit);
    let intents = check(&records, &doubts);
    let told = told.lock().unwrap();
    compare(&records, &intents, &told);
    let mut sent: HashMap<String, usize> = HashMap::new();
    for received in sandbox.received_of("POST", VARIABLES) {
        let body: Value = serde_json::from_str(&received.body).unwrap();
        *sent.entry(body["name"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    for (name, times) in &sent {
        assert!(*times == 1 && intents.contains_key(name), "{name} was sent {times} times");
    }
    let [got, other] = told.asked;
    let recovered = records.iter().filter(|record| record["event"] == "recovered").count();
    println!(
        "{} writes, {} in doubt, {recovered} recovered; {got} got the id they chose, {other} another",
        intents.len(),
        doubts.len()
    );
    let ends: BTreeSet<&str> = records.iter().filter_map(|record| record["outcome"].as_str()).collect();
    assert!(ends.is_superset(&BTreeSet::from(["done", "rejected", "in-doubt"])), "not all ends: {ends:?}");
    assert!(got > 20 && other > 20, "too few ids were requested, so the test proves little");
}

/// Goes through the log: each write has its own end, no two open writes share an id, and the writes open at the end
/// are the `doubts`. Returns the intents by the names of their variables.
fn check(records: &[Value], doubts: &BTreeSet<u64>) -> HashMap<String, u64> {
    let (mut open, mut intents): (BTreeMap<u64, (&str, bool)>, _) = (BTreeMap::new(), HashMap::new());
    for (seq, record) in (1..).zip(records) {
        assert_eq!(record["seq"], seq, "the sequence has gaps");
        let (kind, is_recovered) = (record["kind"].as_str().unwrap(), record["event"] == "recovered");
        let Some(request) = record["request"].as_str() else { continue };
        if kind == "intent" {
            assert!(open.values().all(|(other, _)| *other != request), "{record} takes the id of an open write");
            open.insert(seq, (request, false));
            let name = record["fields"]["name"].as_str().unwrap().to_owned();
            assert_eq!(intents.insert(name, seq), None, "{record} is a second intent of one request");
        }
        if !matches!(kind, "outcome" | "settlement") && !is_recovered {
            continue;
        }
        let intent = record["intent"].as_u64().unwrap_or_else(|| panic!("{record} names no intent"));
        let begun = &records[usize::try_from(intent - 1).unwrap()];
        let (own, in_doubt) =
            open.remove(&intent).unwrap_or_else(|| panic!("{record} belongs to a write that has ended"));
        assert_eq!((own, in_doubt), (request, kind == "settlement"), "{record} does not belong to {begun}");
        // The log itself ends an intent that came too late, without its fields.
        let same = record["fields"] == begun["fields"] || record["fields"].is_null();
        assert!(same && begun["kind"] == "intent", "{record} does not belong to {begun}");
        if is_recovered || record["outcome"] == "in-doubt" {
            open.insert(intent, (own, true));
        }
    }
    assert_eq!(open.into_keys().collect::<BTreeSet<_>>(), *doubts, "exactly the open writes are in doubt");
    intents
}

/// What callers were told matches what the log says about their own writes.
fn compare(records: &[Value], intents: &HashMap<String, u64>, told: &Told) {
    for (name, id, outcome) in &told.ended {
        let intent = intents.get(name).unwrap_or_else(|| panic!("{name} has no intent"));
        assert_eq!(records[usize::try_from(intent - 1).unwrap()]["request"], id.as_str(), "{name}");
        let ends = records.iter().filter(|record| record["kind"] == "outcome" && record["intent"] == *intent);
        let ends: Vec<&str> = ends.map(|end| end["outcome"].as_str().unwrap()).collect();
        assert_eq!(ends, [outcome], "{name}");
    }
}
