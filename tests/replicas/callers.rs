//! Callers who read and write versions of the same things at all replicas, and note what they did.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use makegate::sandbox::Sandbox;
use serde_json::Value;

use crate::history::{Deed, Ended, Operation, Thing};
use crate::support::{ALL, LIST, READER, Reply, TOKEN, TOO, attempt, send, with_key};

pub(crate) const ORGANIZATIONS: [u64; 3] = [11, 12, 13];

/// What all callers of a test share.
#[derive(Clone)]
pub(crate) struct Callers {
    pub(crate) gateways: Vec<SocketAddr>,
    pub(crate) ticks: Arc<AtomicU64>,
    /// Set when they should come to an end.
    pub(crate) over: Arc<AtomicBool>,
}

impl Callers {
    pub(crate) fn new(gateways: Vec<SocketAddr>) -> Self {
        Self { gateways, ticks: Arc::new(AtomicU64::new(1)), over: Arc::default() }
    }

    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    /// One caller, until it is told to end.
    pub(crate) async fn play(self, number: u64, mut random: Rng) -> Vec<Operation> {
        let mut done = Vec::new();
        for step in 0.. {
            if self.over.load(Ordering::SeqCst) {
                break;
            }
            let replica = random.usize(..self.gateways.len());
            let operation = match random.u64(..10) {
                0..=1 => self.write(replica, format!("v{number}x{step}"), &mut random).await,
                2 => self.create(replica, format!("n{number}x{step}"), &mut random).await,
                _ => self.read(replica, &mut random).await,
            };
            // Whoever meets a replica that is gone waits a moment, as callers do.
            if operation.request.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done.push(operation);
            tokio::time::sleep(Duration::from_millis(random.u64(..20))).await;
        }
        done
    }

    /// A new version of a thing.
    async fn write(&self, replica: usize, version: String, random: &mut Rng) -> Operation {
        let id = random.choice(ORGANIZATIONS).unwrap();
        let (thing, body) = match random.u64(..3) {
            0 => (variable(id), format!(r#"{{"typeId":2,"value":"{version}"}}"#)),
            _ => (name(id), format!(r#"{{"name":"{version}"}}"#)),
        };
        let headers = with_key(random.choice([ALL, TOO]).unwrap(), &[]);
        let start = self.tick();
        let reply = attempt(self.gateways[replica], "PATCH", &thing, &headers, &body).await;
        let ended = ended(reply.as_ref());
        self.note(start, replica, reply, Deed::Write(thing, version, ended))
    }

    /// A write that must not go twice; sometimes with a key, and then at several replicas.
    async fn create(&self, replica: usize, name: String, random: &mut Rng) -> Operation {
        let path = format!("{LIST}/{}/variables", random.choice(ORGANIZATIONS).unwrap());
        let body = format!(r#"{{"typeId":2,"name":"{name}","value":"x"}}"#);
        let key = format!("idempotency-key: {name}");
        let is_keyed = random.bool();
        let own = [&*key];
        let headers = with_key(ALL, if is_keyed { &own } else { &[] });
        let start = self.tick();
        let reply = attempt(self.gateways[replica], "POST", &path, &headers, &body).await;
        if is_keyed {
            let other = random.usize(..self.gateways.len());
            let again = attempt(self.gateways[other], "POST", &path, &headers, &body).await;
            if let (Some(first), Some(again)) = (&reply, &again)
                && first.header("makegate-outcome") == Some("done")
                && again.status < 400
            {
                assert_eq!(first.body, again.body, "{name}: two answers to one key");
            }
        }
        let ended = ended(reply.as_ref());
        self.note(start, replica, reply, Deed::Write(path, name, ended))
    }

    async fn read(&self, replica: usize, random: &mut Rng) -> Operation {
        let id = random.choice(ORGANIZATIONS).unwrap();
        let (key, target) = match random.u64(..6) {
            0 => (ALL, LIST.to_owned()),
            1 => (READER, format!("{LIST}?pg[limit]=10")),
            2 => (ALL, format!("{LIST}/{id}/variables")),
            _ => (random.choice([ALL, TOO]).unwrap(), name(id)),
        };
        let words = ["", "", "", "", "max-age=0", "max-stale=1000", "only-if-cached", "max-age=3"];
        let word = *random.choice(&words).unwrap();
        let header = format!("cache-control: {word}");
        let own = [&*header];
        let headers = with_key(key, if word.is_empty() { &[] } else { &own });
        let start = self.tick();
        let reply = attempt(self.gateways[replica], "GET", &target, &headers, "").await;
        let shown = reply.as_ref().filter(|reply| reply.status == 200).map(|reply| shown(id, &reply.json()));
        let mut operation = self.note(start, replica, reply, Deed::Read(shown.unwrap_or_default()));
        operation.how = format!("GET {target} ({word}): {}", operation.how);
        operation
    }

    fn note(&self, start: u64, replica: usize, reply: Option<Reply>, deed: Deed) -> Operation {
        let header = |name| reply.as_ref().and_then(|reply: &Reply| reply.header(name)).map(str::to_owned);
        let how = format!("{:?} {:?}", reply.as_ref().map(|reply| reply.status), header("cache-status"));
        // Refusals for a caller's own rate share a record a minute.
        let is_counted = reply.as_ref().is_some_and(|reply| reply.status == 429 && reply.text().contains("MG141"));
        let request = header("x-request-id").filter(|_| !is_counted);
        Operation { start, end: self.tick(), replica, request, deed, how }
    }
}

fn ended(reply: Option<&Reply>) -> Ended {
    reply.map_or(Ended::Unanswered, |reply| Ended::of(reply.header("makegate-outcome")))
}

pub(crate) fn name(id: u64) -> Thing {
    format!("{LIST}/{id}")
}

pub(crate) fn variable(id: u64) -> Thing {
    format!("{LIST}/{id}/variables/changing")
}

/// All versions that an answer shows.
fn shown(id: u64, body: &Value) -> Vec<(Thing, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    if let Some(one) = body.get("organization") {
        return vec![(name(id), text(&one["name"]))];
    }
    if let Some(variables) = body.get("organizationVariables") {
        let changing = variables.as_array().unwrap().iter().filter(|one| one["name"] == "changing");
        return changing.map(|one| (variable(id), text(&one["value"]))).collect();
    }
    let all = body["organizations"].as_array().unwrap().iter();
    all.map(|one| (name(one["id"].as_u64().unwrap()), text(&one["name"]))).collect()
}

/// Makes the variables whose values are versions, at Make itself.
pub(crate) async fn make_variables(sandbox: &Sandbox) {
    for id in ORGANIZATIONS {
        let body = r#"{"name":"changing","typeId":2,"value":"first"}"#;
        let token = format!("authorization: Token {TOKEN}\r\n");
        send(sandbox.address(), "POST", &format!("{LIST}/{id}/variables"), &token, body).await.expect(200);
    }
}

/// The order in which Make carried out the writes to each thing.
pub(crate) fn order(sandbox: &Sandbox) -> HashMap<(Thing, String), usize> {
    let mut order = HashMap::new();
    for id in ORGANIZATIONS {
        for (thing, member) in [(name(id), "name"), (variable(id), "value")] {
            let effects = sandbox.received_of("PATCH", &thing).into_iter().filter(|received| received.effect);
            for (received, place) in effects.zip(1..) {
                let body: Value = serde_json::from_str(&received.body).unwrap();
                order.insert((thing.clone(), body[member].as_str().unwrap().to_owned()), place);
            }
        }
    }
    order
}

/// The writes that must go once, as Make received them, whatever became of them there. What its quota turns away is not carried out.
pub(crate) fn creates(sandbox: &Sandbox) -> Vec<String> {
    let received = sandbox.received_of("POST", &format!("{LIST}/*/variables")).into_iter();
    received
        .filter(|received| received.status != Some(429))
        .map(|received| format!("{} {}", received.path, received.body))
        .collect()
}
