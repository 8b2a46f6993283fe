//! Every field of a record selects records: at `/audit`, and as an option of `makegate audit`.

use std::collections::BTreeMap;
use std::process::Command;

use makegate::audit::{COLUMNS, FIELD_FILTERS};
use serde_json::Value;

use crate::support::{ALL, LIST, OPERATOR, ORG, Plan, READER, VARIABLES, World, send};

/// Fields that are objects, or keyed hashes, or counts of `refusals`: nobody looks for these.
const NOT_FILTERS: [&str; 12] = [
    "time", "query", "fields", "detail", "fingerprint", "idempotency", "marks", "adopted", "count", "codes", "first",
    "last",
];
const TRACE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn page(world: &World, query: &str) -> Vec<Value> {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let operator = world.service.operator_addresses()[0];
    let page = send(operator, "GET", &format!("/audit.json?limit=1000&{query}"), &key, "").await.expect(200);
    page.json()["records"].as_array().unwrap().clone()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn encoded(text: &str) -> String {
    text.replace(' ', "%20").replace('/', "%2F").replace(':', "%3A")
}

async fn busy_world() -> World {
    let world = Plan::default().start().await;
    world.get_with(ALL, ORG, &[TRACE]).await.expect(200);
    world.get(ALL, ORG).await.expect(200);
    world.get(READER, LIST).await.expect(200);
    world.get(READER, VARIABLES).await.expect(403);
    world.get("nobody", ORG).await.expect(401);
    world.patch(ALL, ORG, r#"{"name": "Example"}"#).await.expect(200);
    let key = format!("authorization: Bearer {OPERATOR}\r\ncontent-type: application/json\r\n");
    send(world.service.operator_addresses()[0], "POST", "/cache/purge", &key, r#"{"all": true}"#).await.expect(200);
    world
}

/// The oracle is the list of all records: a filter by a value selects those that have it, and no others.
#[tokio::test]
async fn each_field_selects_the_records_that_have_its_value() {
    let world = busy_world().await;
    let all = page(&world, "").await;
    let mut unseen: Vec<_> = COLUMNS.into_iter().filter(|name| !NOT_FILTERS.contains(name)).collect();
    for name in unseen.clone() {
        assert!(FIELD_FILTERS.iter().any(|filter| filter.name == name), "{name} is no filter");
        let mut values: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for record in &all {
            if let Some(value) = record.get(name) {
                values.entry(text(value)).or_default().push(record["seq"].as_u64().unwrap());
            }
        }
        for (value, expected) in &values {
            let found = page(&world, &format!("{name}={}", encoded(value))).await;
            let found: Vec<_> = found.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
            if name == "path" {
                assert!(expected.iter().all(|seq| found.contains(seq)), "{name}={value}");
            } else {
                assert_eq!(&found, expected, "{name}={value}");
            }
            unseen.retain(|unseen| *unseen != name);
        }
    }
    // The surface's test of Unix sockets has records with a credential, and that of the ledger has attempts that took no slot.
    assert_eq!(unseen, ["credential", "spent"], "no record has these, so nothing was tested");
}

#[tokio::test]
async fn prefixes_ranges_and_parts_select_too_and_mistakes_are_told() {
    let world = busy_world().await;
    let all = page(&world, "").await;
    let count = |holds: &dyn Fn(&Value) -> bool| all.iter().filter(|record| holds(record)).count();
    let below =
        count(&|record| record["path"].as_str().is_some_and(|path| path.starts_with("/api/v2/organizations/1")));
    assert!(below > 2);
    assert_eq!(page(&world, "path=%2Fapi%2Fv2%2Forganizations%2F1").await.len(), below);
    let slow = count(&|record| record["duration_us"].as_u64().is_some_and(|micros| micros >= 1000));
    assert_eq!(page(&world, "min_duration=1ms").await.len(), slow);
    assert_eq!(page(&world, "min_duration=1h").await.len(), 0);
    assert_eq!(page(&world, "trace=0af7651916cd43dd8448eb211c80319c").await.len(), 1);
    assert_eq!(page(&world, "upstream_status=2xx&method=get").await.len(), 2);
    assert_eq!(page(&world, "seq=1&caller=all").await.len(), 0);
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let operator = world.service.operator_addresses()[0];
    for bad in ["key=xyz", "seq=-1", "min_duration=5", "outcome=lost", "path=api", "upstream_status=9xx", "nope=1"] {
        let detail =
            send(operator, "GET", &format!("/audit?{bad}"), &key, "").await.expect(400).json()["detail"].to_string();
        assert!(detail.contains(bad.split('=').next().unwrap()), "{detail}");
    }
}

fn makegate(world: &World, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(crate::support::process::binary());
    command.arg("audit").args(arguments).args(["--url", &format!("http://{}", world.service.operator_addresses()[0])]);
    command.env("MAKEGATE_OPERATOR_KEY", OPERATOR).env_remove("MAKEGATE_CONFIG").output().unwrap()
}

async fn lines(world: &World, arguments: &[&str]) -> Vec<Value> {
    // The command asks this very process, which has to go on meanwhile.
    let output = tokio::task::block_in_place(|| makegate(world, arguments));
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_have_options_of_the_same_names_and_show_a_request_whole() {
    let world = busy_world().await;
    for (option, parameter, value) in [
        ("--min-duration", "min_duration", "1ms"),
        ("--min_duration", "min_duration", "1ms"),
        ("--upstream-status", "upstream_status", "200"),
        ("--path", "path", "/api/v2/organizations/11"),
        ("--refusal", "refusal", "MG131"),
        ("--operator", "operator", "operator"),
        ("--outcome", "outcome", "done"),
    ] {
        let expected = page(&world, &format!("{parameter}={}", encoded(value))).await;
        assert!(!expected.is_empty(), "{option}");
        assert_eq!(
            lines(&world, &["query", "-o", "json", "--limit", "1000", option, value]).await,
            expected,
            "{option}"
        );
        let exported = lines(&world, &["export", option, value]).await;
        assert_eq!(exported.into_iter().rev().collect::<Vec<_>>(), expected, "{option}");
    }

    let written = page(&world, "kind=outcome").await.remove(0);
    let id = written["request"].as_str().unwrap();
    let shown = lines(&world, &["show", id, "-o", "json"]).await;
    let kinds: Vec<_> = shown.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["intent", "outcome"]);
    assert_eq!(lines(&world, &["show", &written["seq"].to_string(), "-o", "json"]).await, shown);
    let table = tokio::task::block_in_place(|| makegate(&world, &["show", id, "-o", "table"]));
    let table = String::from_utf8(table.stdout).unwrap();
    for record in &shown {
        for name in record.as_object().unwrap().keys() {
            assert!(table.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {table}");
        }
    }
    let none = tokio::task::block_in_place(|| makegate(&world, &["show", "no-such-request"]));
    assert_eq!(none.status.code(), Some(1));
}
