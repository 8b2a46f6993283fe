//! Every refusal, provoked once from outside; its answer is in `tests/golden/refusals/`, whole. Nothing in it is masked:
//! the request id is the test's own, and time stands still.

mod before;
mod bounds;
mod keys;
mod upstream;

use std::collections::BTreeMap;

use makegate::clock::Clock;
use serde_json::{Value, json};

use crate::support::{Plan, Reply, World, golden, with_key};

/// What the answers of other moments and lengths would differ in. (So would what is left of the caller's rate, unless it
/// is why the request is refused.)
const LEFT_OUT: [&str; 4] = ["date", "content-length", "connection", "x-request-id"];

fn still() -> Plan {
    Plan::default().clock(Clock::frozen())
}

/// The request id by which a provoked refusal is known.
fn id_of(code: &str) -> String {
    format!("golden-{code}")
}

/// Sends what is to be refused with this code, and compares the answer with its golden file and its record.
async fn provoke(world: &World, code: &str, key: &str, request: (&str, &str), headers: &[&str], body: &str) -> Reply {
    let id = format!("x-request-id: {}", id_of(code));
    let reply = world.send(key, request.0, request.1, &[&[&*id], headers].concat(), body).await;
    compare(code, &reply);
    let last = world.last_record().await;
    assert_eq!(last["request"], id_of(code), "{last}");
    assert_eq!((&last["answer"], &last["refusal"]), (&json!("refused"), &json!(code)), "{last}");
    assert_eq!(last["status"], reply.status, "{last}");
    assert_eq!(last["bytes"], reply.body.len(), "{last}");
    reply
}

/// Compares a refusal with its golden file.
fn compare(code: &str, reply: &Reply) {
    let problem = reply.json();
    assert_eq!(problem["code"], code, "{reply:?}");
    assert_eq!((&problem["instance"], reply.header("x-request-id")), (&json!(id_of(code)), Some(&*id_of(code))));
    for text in ["type", "title", "detail", "message"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{text} of {problem}");
    }
    assert_eq!(problem["status"], reply.status);
    if reply.status == 429 {
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    let told = |name: &str| !LEFT_OUT.contains(&name) && (reply.status == 429 || !name.starts_with("ratelimit"));
    let headers: BTreeMap<String, &str> = fields(&reply.head).filter(|(name, _)| told(name)).collect();
    let whole = json!({ "status": reply.status, "headers": headers, "problem": problem });
    golden::compare(&format!("tests/golden/refusals/{code}.json"), &pretty(&whole));
}

fn fields(head: &str) -> impl Iterator<Item = (String, &str)> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    lines.map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// The lines of a request whose credentials are not one key's.
fn only(code: &str, headers: &[&str]) -> String {
    let id = format!("x-request-id: {}\r\n", id_of(code));
    headers.iter().fold(id, |text, header| format!("{text}{header}\r\n"))
}

fn keyed(code: &str, key: &str) -> String {
    with_key(key, &[&format!("x-request-id: {}", id_of(code))])
}
