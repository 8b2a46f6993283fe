//! What callers write freely, in every place from which the log takes something.

use makegate::catalogue::{Catalogue, Operation, RecordedKind};
use serde_json::{Value, json};

use super::cases::{CASES, Case};
use super::{everything_in, still};
use crate::support::{ALL, World};

/// Stands in every value that the log must not contain.
const MARK: &str = "m4rk";

/// Values of a body's field, as JSON, that no field of this kind is meant to have.
fn odd_values(kind: RecordedKind) -> Vec<String> {
    let mut values = vec![
        json!({"email": MARK}).to_string(),
        json!({"m4rk@example.com": 1}).to_string(),
        json!([MARK, {"email": MARK}]).to_string().replace("[\"m4rk\",", "["),
        json!([[MARK]]).to_string(),
        json!(["m4rk@example.com"]).to_string(),
        json!("m4rk@example.com").to_string(),
        r#""m4rk\u0040example.com""#.to_owned(),
        json!("m4rk%40example.com").to_string(),
        json!("m4rk\u{ff20}example.com").to_string(),
        json!(MARK.repeat(100)).to_string(),
        json!(vec![format!("{MARK}@"); 100]).to_string(),
        format!("{}\"{MARK}\"{}", "[".repeat(120), "]".repeat(120)),
    ];
    if !matches!(kind, RecordedKind::Scalar | RecordedKind::Set) {
        values.extend([json!(MARK).to_string(), json!([MARK]).to_string(), json!("1 m4rk").to_string()]);
    }
    values
}

/// Values of a query parameter, percent-encoded.
fn odd_parameters(name: &str, kind: RecordedKind) -> Vec<String> {
    let long = MARK.repeat(100);
    let mut values = vec!["m4rk@example.com", "m4rk%40example.com", "m4rk%2540example.com", "m4rk%EF%BC%A0x", &long];
    if !matches!(kind, RecordedKind::Scalar | RecordedKind::Set) {
        values.extend([MARK, "1m4rk", "true,m4rk"]);
    }
    let mut queries: Vec<_> = values.iter().map(|value| format!("?{name}={value}")).collect();
    queries.push(format!("?{name}=1&{name}=m4rk@example.com&{name}=2"));
    queries
}

/// Sends each odd value in each field that the operation's records may contain. Returns how many it sent.
async fn send_odd_values(world: &World, case: &Case, row: &Operation) -> usize {
    let mut sent = 0;
    for field in &row.record {
        for query in odd_parameters(&field.name, field.kind) {
            world.send(ALL, case.method, &(case.path() + &query), &[], case.body).await;
            sent += 1;
        }
        for value in odd_values(field.kind).iter().filter(|_| !case.body.is_empty()) {
            let mut body: serde_json::Map<String, Value> = serde_json::from_str(case.body).unwrap();
            body.remove("customer");
            body.retain(|name, _| *name != *field.name);
            let rest = json!(body).to_string();
            let comma = if body.is_empty() { "" } else { "," };
            let body = format!("{{\"{}\":{value}{comma}{}", field.name, &rest[1..]);
            world.send(ALL, case.method, &case.path(), &["content-type: application/json"], &body).await;
            sent += 1;
        }
    }
    sent
}

#[tokio::test]
async fn nothing_that_a_field_is_not_meant_to_have_is_in_the_log() {
    let world = still().set("audit", "segment = \"4MiB\"").start().await;
    let catalogue = Catalogue::built_in();
    let mut sent = 0;
    for case in &CASES {
        sent += send_odd_values(&world, case, catalogue.row(case.id).unwrap()).await;
    }
    let paths = ["/api/v2/organizations/11/variables/m4rk%40x", "/api/v2/organizations/11/variables/m4rk@x/history"];
    let unknown = ["/api/v2/users/m4rk%40example.com", "/m4rk@x/y", "/api/v2/organizations/m4rk%EF%B9%ABx"];
    for path in paths.iter().chain(&unknown) {
        for (key, method) in [(ALL, "GET"), (ALL, "PATCH"), (ALL, "DELETE"), ("nobody", "GET")] {
            world.send(key, method, path, &["content-type: application/json"], "").await;
            sent += 1;
        }
    }
    let records = world.records().await;
    let answered = records.iter().filter(|record| record["kind"] != "intent").count();
    assert_eq!(answered, sent, "each left its record");
    let hidden = records.iter().filter(|record| record.to_string().contains("hidden:")).count();
    assert!(hidden * 4 > sent * 3, "{hidden} of {sent} records show that something is hidden");
    let log = everything_in(&world.dir.path().join("audit"));
    if let Some(at) = memchr::memmem::find(&log, MARK.as_bytes()) {
        panic!("the log has it: {}", String::from_utf8_lossy(&log[at.saturating_sub(600)..at + 100]));
    }
}

#[tokio::test]
async fn what_is_hidden_can_be_recognized_and_the_rest_of_a_list_be_read() {
    let world = still().start().await;
    let invite =
        |teams: &str| format!(r#"{{"usersRoleId":"12","email":"a@example.com","name":"A","teamsId":{teams}}}"#);
    let mut teams = Vec::new();
    for given in [r#"[5,"a@example.com",null]"#, r#"["a@example.com","26"]"#, "7", r#"{"5":true}"#] {
        world.post(ALL, "/api/v2/organizations/11/invite", &invite(given)).await;
        let record = world.last_record().await;
        assert_eq!(record["fields"]["usersRoleId"], "12");
        teams.push(record["fields"]["teamsId"].clone());
    }
    let hidden = teams[0][1].as_str().unwrap();
    assert_eq!((hidden.len(), hidden.starts_with("hidden:")), (39, true), "{hidden}");
    assert_eq!(teams[..3], [json!([5, hidden, null]), json!([hidden, "26"]), json!(7)]);
    assert!(teams[3].as_str().is_some_and(|text| text.starts_with("hidden:")), "{teams:?}");
    let path = "/api/v2/organizations/11/variables/a@example.com/history";
    world.get(ALL, path).await;
    assert_eq!(world.last_record().await["path"], path.replace("a@example.com", hidden));
    let hash = "/api/v2/organizations/accept/bf1effe1-bc9d-4ab3-9414-9c3b66175305";
    world.get(ALL, hash).await.expect(404);
    let shown = world.last_record().await["path"].as_str().unwrap().to_owned();
    assert!(shown.starts_with("/api/v2/organizations/accept/hidden:"), "{shown}");
}
