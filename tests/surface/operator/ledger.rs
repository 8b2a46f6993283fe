//! The quota ledger against the records that it is counted from, and against what Make received.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{ALL, LIST, OPERATOR, ORG, OTHER, Plan, READER, Reply, TOO, VARIABLES, World, send, until};

const HOUR: Duration = Duration::from_secs(3600);
const SUMS: [&str; 6] = ["requests", "spent", "saved", "waited_us", "refused", "out_of_quota"];

async fn ask(world: &World, target: &str, headers: &str) -> Reply {
    let headers = format!("authorization: Bearer {OPERATOR}\r\n{headers}");
    send(world.service.operator_addresses()[0], "GET", target, &headers, "").await
}

async fn ledger(world: &World, query: &str) -> Value {
    ask(world, &format!("/quota/ledger.json?{query}"), "").await.expect(200).json()
}

/// Sums by hour, caller, operation and organization.
type Sums = BTreeMap<[String; 4], [u64; 6]>;

/// The oracle: a naive reading of all records.
fn naive(records: &[Value]) -> Sums {
    let mut sums = Sums::new();
    for record in records {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let kind = text("kind");
        if !["request", "outcome", "refusals"].contains(&&*kind) || text("caller").is_empty() {
            continue;
        }
        let organization = record["organization"].as_u64().map_or("account".to_owned(), |id| id.to_string());
        let hour = format!("{}:00:00Z", &text("time")[..13]);
        let row = sums.entry([hour, text("caller"), text("operation"), organization]).or_default();
        let number = |name: &str| record[name].as_u64().unwrap_or_default();
        let attempts = number("attempts");
        let is_from_memory = ["hit", "stale", "miss"].contains(&&*text("answer")) && attempts == 0;
        let counted = number("count");
        row[0] += if kind == "refusals" { counted } else { 1 };
        row[1] += record["spent"].as_u64().unwrap_or(attempts);
        row[2] += u64::from(is_from_memory);
        row[3] += number("quota_wait_us");
        row[4] += if kind == "refusals" { counted } else { u64::from(text("answer") == "refused") };
        row[5] += u64::from(["MG171", "MG172"].contains(&&*text("refusal")));
    }
    sums
}

fn told(page: &Value) -> Sums {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows = page["rows"].as_array().unwrap().iter();
    let row = |row: &Value| {
        let key = ["hour", "caller", "operation", "organization"].map(|name| text(&row[name]));
        (key, SUMS.map(|name| row[name].as_u64().unwrap()))
    };
    rows.map(row).collect()
}

const EVERYTHING: &str = "by=hour,caller,operation,organization&since=30d";

/// Every kind of request, in three hours.
async fn busy_world() -> World {
    let plan = Plan::default()
        .set("limits", "attempts = 1\nbreaker_failures = 0")
        .caller("slow", "grants = [\"*\"]\nrate = \"1/min\"\nburst = 1\n");
    let world = plan.start().await;
    for target in [ORG, ORG, OTHER, LIST, LIST] {
        world.get(ALL, target).await.expect(200);
    }
    world.get("nobody", ORG).await.expect(401);
    world.clock.advance(HOUR);
    for _ in 0..40 {
        world.get("slow", ORG).await;
    }
    world.get(READER, VARIABLES).await.expect(403);
    world.patch(TOO, ORG, r#"{"name": "Ledger"}"#).await.expect(200);
    world.sandbox.fault(Fault::once("GET", VARIABLES, FaultKind::status(401)));
    world.get(TOO, VARIABLES).await.refused(502, "MG204");
    world.sandbox.fault(Fault::once("GET", VARIABLES, FaultKind::Reset { effect: false }));
    world.get(TOO, VARIABLES).await.expect(502);
    let doubtful = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &doubtful, FaultKind::Reset { effect: true }));
    world.post(ALL, &doubtful, "{}").await.expect(502);
    world.clock.advance(HOUR);
    world.get(TOO, ORG).await.expect(200);
    world
}

/// The oracle is the log; and what was spent is what Make received.
#[tokio::test]
async fn the_ledger_says_what_the_records_say_over_a_restart_and_a_lost_index() {
    let world = busy_world().await;
    let before = naive(&world.records().await);
    assert_eq!(told(&ledger(&world, EVERYTHING).await), before);
    let hours: Vec<_> = before.keys().map(|[hour, ..]| hour).collect();
    assert!(hours.first() < hours.last() && before.len() > 8, "{before:?}");
    let spent = |sums: &Sums| sums.values().map(|sums| sums[1]).sum::<u64>();
    assert_eq!(spent(&before), world.sandbox.received().len() as u64, "{before:#?}");
    let sent: u64 = {
        let quota = ask(&world, "/quota.json", "").await.json();
        let buckets = quota["buckets"].as_array().unwrap().clone();
        let callers = buckets.iter().flat_map(|bucket| bucket["callers"].as_array().unwrap().clone());
        callers.map(|caller| caller["sent"].as_u64().unwrap()).sum()
    };
    assert_eq!(spent(&before), sent);

    // Its counts of refusals are recorded when it stops. The restart leaves no record of a caller's request.
    let world = world.restart().await;
    let all = naive(&world.records().await);
    assert_eq!(told(&ledger(&world, EVERYTHING).await), all, "after a restart");
    let slow = all.iter().filter(|([_, caller, ..], _)| caller == "slow").map(|(_, sums)| sums[4]).sum::<u64>();
    assert_eq!(slow, 39, "those that left a record, and those that were counted");

    let index = |audit: &std::path::Path| audit.join("index.sqlite");
    let world = world.restart_after(|audit| std::fs::remove_file(index(audit)).unwrap()).await;
    assert_eq!(told(&ledger(&world, EVERYTHING).await), all, "without an index");
    let world = world.restart().await;
    assert_eq!(told(&ledger(&world, EVERYTHING).await), all, "with a new one");

    // Retention deletes records, but not what they came to.
    world.get(ALL, ORG).await.expect(200);
    let now = naive(&world.records().await);
    let world = world.restart().await;
    world.clock.advance(HOUR * 24 * 29);
    assert_eq!(told(&ledger(&world, EVERYTHING).await), now);
    world.clock.advance(HOUR * 24 * 2);
    assert_eq!(told(&ledger(&world, EVERYTHING).await), Sums::new(), "30 days are over");
}

#[tokio::test]
async fn who_burnt_the_quota_in_an_hour_is_one_look() {
    let world = busy_world().await;
    let all = naive(&world.records().await);
    let page = ledger(&world, "by=hour").await;
    let hours: Vec<_> = page["rows"].as_array().unwrap().iter().map(|row| row["hour"].clone()).collect();
    assert_eq!(hours.len(), 3, "{page}");
    assert!(hours.is_sorted_by(|a, b| a.as_str() > b.as_str()), "the newest first: {hours:?}");
    let most = &page["rows"][1]["spenders"][0];
    assert_eq!((&most["caller"], &most["spent"]), (&json!("too"), &json!(3)), "{page}");
    let total: Vec<_> = (0..6).map(|at| all.values().map(|sums| sums[at]).sum::<u64>()).collect();
    assert_eq!(SUMS.map(|name| page["total"][name].as_u64().unwrap()).to_vec(), total);

    // An hour alone, by what it consists of; the default of scripts is caller and operation.
    let (begin, end) = (hours[1].as_str().unwrap(), hours[0].as_str().unwrap());
    let hour = ledger(&world, &format!("since={begin}&until={end}&caller=too")).await;
    let rows: Vec<_> = hour["rows"].as_array().unwrap().iter().map(|row| (&row["operation"], &row["spent"])).collect();
    assert_eq!(rows, [(&json!("variables.list"), &json!(2)), (&json!("organizations.update"), &json!(1))], "{hour}");
    let account = ledger(&world, "by=organization&organization=account").await;
    assert_eq!(account["rows"][0]["organization"], "account");
    let sum = |by: &str| {
        let query = format!("by={by}");
        let world = &world;
        async move { ledger(world, &query).await["total"].clone() }
    };
    assert_eq!(sum("caller").await, page["total"]);
    assert_eq!(sum("operation,organization").await, page["total"]);

    let csv = ask(&world, &format!("/quota/ledger.csv?since={begin}&until={end}&by=caller"), "").await.expect(200);
    let columns =
        "hour,caller,operation,organization,requests,spent,saved,waited_us,refused,out_of_quota\r\n,too,,,3,3,";
    assert!(csv.text().starts_with(columns), "{}", csv.text());
    let html = "accept: text/html\r\n";
    let shown = ask(&world, "/quota/ledger", html).await.expect(200).text().to_owned();
    let narrowed = begin.replace(':', "%3A").replace('-', "%2D");
    assert!(shown.contains("too 3, all 1, slow 0") || shown.contains("too 3, all 1"), "{shown}");
    assert!(shown.contains(&format!("href=\"/audit?since={narrowed}&amp;until=")), "{shown}");
    assert!(shown.contains(&format!("href=\"/quota/ledger?since={narrowed}&amp;until=")), "{shown}");
    assert!(ask(&world, "/quota", html).await.expect(200).text().contains("href=\"/quota/ledger\""));
    for bad in ["by=day", "by=hour,hour", "nope=1", "since=yesterday", "caller=a&caller=b", "organization=x"] {
        let detail =
            ask(&world, &format!("/quota/ledger.json?{bad}"), "").await.expect(400).json()["detail"].to_string();
        assert!(detail.contains(bad.split('=').next().unwrap()), "{detail}");
    }
}

/// A request that waits for quota in vain has its wait in its record and in the ledger.
#[tokio::test]
async fn waiting_for_quota_and_going_without_are_in_the_ledger() {
    let plan = Plan::default()
        .set("upstream", "quota = \"2/min\"\nquota_wait = \"50ms\"")
        .set("cache.lifetime", "organizations = \"1s\"");
    let world = plan.start().await;
    for target in [ORG, OTHER] {
        world.get(ALL, target).await.expect(200);
    }
    let mut refused = 0;
    for kind in ["usage", "apps", "variables", "payments"] {
        refused += u64::from(world.get(ALL, &format!("{ORG}/{kind}")).await.status == 429);
    }
    assert!(refused > 0);
    let page = ledger(&world, "by=caller").await;
    assert_eq!(page["rows"][0]["out_of_quota"], refused, "{page}");
    assert_eq!(told(&ledger(&world, EVERYTHING).await), naive(&world.records().await));
}

/// An upstream that answers one request so and then, like one that restarts, refuses connections; what it received.
async fn answers_once(listener: TcpListener, status: &str) -> u64 {
    let (mut stream, _) = listener.accept().await.unwrap();
    drop(listener);
    let mut head = [0; 4096];
    assert!(stream.read(&mut head).await.unwrap() > 0);
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    1
}

/// A world whose upstream is at this address; a request has so many attempts.
async fn world_at(port: SocketAddr, attempts: u32) -> World {
    let limits = format!("attempts = {attempts}\nretry_percent = 100\nretry_floor = 100\nbreaker_failures = 0");
    Plan::default().upstream(format!("http://{port}")).set("limits", &limits).start().await
}

async fn spent_by_all(world: &World) -> u64 {
    ledger(world, "by=caller").await["total"]["spent"].as_u64().unwrap()
}

/// Only attempts that reached Make count, whichever of a request's attempts these are.
#[tokio::test]
async fn attempts_after_the_first_that_reach_nobody_spend_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world_at(listener.local_addr().unwrap(), 3).await;
    let (answer, received) = tokio::join!(world.get(ALL, ORG), answers_once(listener, "503 Service Unavailable"));
    answer.refused(502, "MG201");
    let record = world.last_record().await;
    assert_eq!((&record["attempts"], &record["spent"]), (&json!(3), &json!(1)), "{record}");
    assert_eq!(spent_by_all(&world).await, received);
    world.get(ALL, VARIABLES).await.refused(502, "MG201");
    assert_eq!(world.last_record().await["spent"], 0);
    assert_eq!(spent_by_all(&world).await, received);
    assert_eq!(ask(&world, "/audit.json?spent=1", "").await.json()["records"].as_array().unwrap().len(), 1);
    assert_eq!(told(&ledger(&world, EVERYTHING).await), naive(&world.records().await));
}

#[tokio::test]
async fn attempts_before_the_last_that_reach_nobody_spend_nothing() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let world = world_at(port, 50).await;
    let attempts = || world.service.gateway().metrics.attempts().map(|(_, count)| count).sum::<u64>();
    let later = async {
        until(|| attempts() > 0).await;
        answers_once(TcpListener::bind(port).await.unwrap(), "200 OK").await
    };
    let (answer, received) = tokio::join!(world.get(ALL, ORG), later);
    answer.expect(200);
    let record = world.last_record().await;
    assert!(record["spent"] == 1 && record["attempts"].as_u64() > Some(1), "{record}");
    assert_eq!(spent_by_all(&world).await, received);
    assert_eq!(told(&ledger(&world, EVERYTHING).await), naive(&world.records().await));
}
