//! Promise 5, the hard way: the real binary is killed (SIGKILL) while it writes, repeatedly on the same folder,
//! against a sandbox that counts effects.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fastrand::Rng;
use makegate::hash::random;
use makegate::sandbox::Sandbox;
use makegate::tasks::Tasks;
use serde_json::Value;

use crate::support::process::Home;
use crate::support::random::number;
use crate::support::{ALL, OPERATOR, Plan, VARIABLES, attempt, records_in, sandbox_at, send, until, with_key};

/// Number of rounds; nightly runs set more.
fn rounds() -> u64 {
    number("MAKEGATE_CRASHES").unwrap_or(30)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_write_is_forgotten_or_doubled() {
    let seed = number("MAKEGATE_SEED").unwrap_or_else(|| u64::from(u32::from_ne_bytes(random::<4>().unwrap())));
    println!("MAKEGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let plan =
        Plan::default().set("upstream", "quota = \"1000000/min\"\nlook = false").set("audit", "segment = \"1MiB\"");
    let home = Home::new(&plan, &format!("http://{}", sandbox.address()));
    let gateway = home.gateway;
    let tasks = Tasks::new();
    for round in 0..rounds() {
        let service = home.serve().await;
        for writer in 0..4 {
            tasks.spawn(async move {
                let headers = with_key(ALL, &[]);
                for number in 0..1000 {
                    let body = format!(r#"{{"typeId":2,"name":"v_{round}_{writer}_{number}","value":"x"}}"#);
                    if attempt(gateway, "POST", VARIABLES, &headers, &body).await.is_none() {
                        return;
                    }
                }
            });
        }
        // Kill after this many writes, however long they take here, and then at any moment.
        let enough = sandbox.effects("POST", VARIABLES) + 1 + random.usize(..40);
        until(|| sandbox.effects("POST", VARIABLES) >= enough).await;
        tokio::time::sleep(Duration::from_micros(random.u64(..8_000))).await;
        drop(service);
    }
    tasks.drained(Duration::from_secs(30)).await;
    let _service = home.serve().await;
    let headers = format!("authorization: Bearer {OPERATOR}\r\n");
    let doubts = send(home.operator, "GET", "/doubts.json", &headers, "").await.expect(200).json();
    let doubts: HashSet<String> =
        doubts["doubts"].as_array().unwrap().iter().map(|d| d["request"].as_str().unwrap().to_owned()).collect();
    check(&records_in(&home.path().join("audit")), &doubts, &sandbox);
}

fn check(records: &[Value], doubts: &HashSet<String>, sandbox: &Sandbox) {
    let seqs: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "the sequence has gaps");
    let of_kind = |kind: &str| -> HashMap<String, String> {
        let wanted = records.iter().filter(|record| record["kind"] == kind);
        wanted
            .map(|r| (r["request"].as_str().unwrap().to_owned(), r["outcome"].as_str().unwrap_or("").to_owned()))
            .collect()
    };
    let (intents, outcomes) = (of_kind("intent"), of_kind("outcome"));
    for id in intents.keys() {
        let settled = outcomes.get(id).is_some_and(|outcome| outcome != "in-doubt");
        assert!(settled != doubts.contains(id), "{id} is neither settled nor in doubt, or both");
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    for received in sandbox.received_of("POST", VARIABLES) {
        *seen.entry(received.body).or_default() += 1;
    }
    assert!(seen.values().all(|times| *times == 1), "a write was sent twice");
    let intended: HashSet<String> = records
        .iter()
        .filter(|record| record["kind"] == "intent")
        .map(|record| record["fields"]["name"].as_str().unwrap().to_owned())
        .collect();
    for body in seen.keys() {
        let name = serde_json::from_str::<Value>(body).unwrap()["name"].as_str().unwrap().to_owned();
        assert!(intended.contains(&name), "{name} went upstream without an intent");
    }
    println!(
        "{} intents, {} outcomes, {} in doubt, {} seen upstream",
        intents.len(),
        outcomes.len(),
        doubts.len(),
        seen.len()
    );
}
