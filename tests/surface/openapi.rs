//! The operator door's OpenAPI document says what it really answers.

use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::support::schema::mistakes;
use crate::support::{ALL, OPERATOR, ORG, Plan, READER, Reply, VARIABLES, World, golden, send};

async fn ask(world: &World, method: &str, target: &str, body: &str) -> Reply {
    let door = world.service.operator_addresses()[0];
    let headers = format!("authorization: Bearer {OPERATOR}\r\n");
    send(door, method, target, &headers, body).await
}

fn answer_schema<'d>(document: &'d Value, path: &str, method: &str, status: &str) -> &'d Value {
    let responses = &document["paths"][path][method]["responses"];
    let schema = &responses[status]["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {path}: {responses}");
    schema
}

#[track_caller]
fn assert_is(document: &Value, schema: &Value, value: &Value, what: &str) {
    let found = mistakes(document, schema, value);
    assert!(found.is_empty(), "{what}: {found:#?}\n{value}");
}

/// A world in which there is something of every kind to show.
async fn busy() -> World {
    let fields = "grants = [\"*\"]\nrate = \"60/min\"";
    let world = Plan::default().caller("idle", fields).start().await;
    for _ in 0..2 {
        world.get(ALL, ORG).await.expect(200);
    }
    world.get(READER, "/api/v2/organizations/13").await.expect(403);
    world.get("unknown-key", ORG).await.expect(401);
    world.patch(ALL, ORG, r#"{"name": "Described"}"#).await.expect(200);
    for name in ["v", "w"] {
        let kind = FaultKind::Reset { effect: false };
        world.sandbox.fault(Fault { method: "*".to_owned(), path: VARIABLES.to_owned(), times: None, kind });
        world.post(ALL, VARIABLES, &json!({"name": name, "typeId": 1, "value": "1"}).to_string()).await.expect(502);
    }
    world
}

#[tokio::test]
async fn each_pages_real_answer_is_what_the_operator_doors_document_says() {
    let world = busy().await;
    let door = world.service.operator_addresses()[0];
    let document = ask(&world, "GET", "/operator/openapi.json", "").await.expect(200).json();
    assert_eq!(document["servers"], json!([{"url": format!("http://{door}")}]));
    let pages: Vec<_> = document["paths"].as_object().unwrap().keys().filter(|path| path.ends_with(".json")).collect();
    let mut checked = 0;
    for path in pages {
        let queries: &[&str] = match path.as_str() {
            "/audit/follow.json" | "/openapi.json" | "/operator/openapi.json" => continue,
            "/audit/proof.json" => &["?seq=1", "?from=1"],
            "/audit/record.json" => &["?seq=5"],
            "/explain.json" => &[
                "?caller=reader&method=GET&target=%2Fapi%2Fv2%2Forganizations%2F13",
                "?caller=all&target=%2Fapi%2Fv2%2Forganizations%2F11",
            ],
            "/history.json" => &["", "?hours=24", "?hours=0", "?since=7d&until=1h"],
            _ => &["", "?a-parameter-that-no-page-has=1"],
        };
        for query in queries {
            let answer = ask(&world, "GET", &format!("{path}{query}"), "").await;
            let what = format!("{path}{query}");
            if answer.status == 400 {
                assert_is(&document, &document["components"]["schemas"]["problem"], &answer.json(), &what);
            } else {
                assert_is(&document, answer_schema(&document, path, "get", "200"), &answer.expect(200).json(), &what);
                checked += 1;
            }
        }
    }
    assert!(checked >= 12, "{checked}");
}

#[tokio::test]
async fn each_actions_real_answer_is_what_the_operator_doors_document_says() {
    let world = busy().await;
    let document = ask(&world, "GET", "/operator/openapi.json", "").await.expect(200).json();
    let doubts = ask(&world, "GET", "/doubts.json", "").await.expect(200).json();
    let request = doubts["doubts"][0]["request"].as_str().unwrap();
    for (path, target, body) in [
        ("/cache/purge", "/cache/purge", r#"{"tag": "org:11"}"#),
        ("/quota/reopen", "/quota/reopen", r#"{"organization": 11}"#),
        ("/doubts/{request}", &*format!("/doubts/{request}"), r#"{"as": "not-done", "note": "looked"}"#),
        ("/doubts", "/doubts", r#"{"caller": "all", "as": "done"}"#),
        ("/audit/rotate", "/audit/rotate", ""),
    ] {
        if !body.is_empty() {
            let sent = serde_json::from_str(body).unwrap();
            let schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
            assert_is(&document, schema, &sent, path);
        }
        let answer = ask(&world, "POST", target, body).await.expect(200).json();
        assert_is(&document, answer_schema(&document, path, "post", "200"), &answer, path);
    }
}

/// The documents name every filter with what it takes, and the door takes a value of that kind.
#[tokio::test]
async fn each_filter_is_described_and_taken() {
    let world = World::start().await;
    let document = ask(&world, "GET", "/operator/openapi.json", "").await.expect(200).json();
    let parameters = document["paths"]["/audit.json"]["get"]["parameters"].as_array().unwrap();
    assert!(parameters.len() > 30, "{parameters:?}");
    for parameter in parameters {
        let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
        let value = match (name, schema["pattern"].as_str(), schema["enum"].get(0), schema["type"].as_str().unwrap()) {
            (_, _, Some(word), _) => word.as_str().unwrap(),
            (_, Some("^MG[0-9]{3}$"), ..) => "MG131",
            (_, Some("^[0-9a-f]{8}$"), ..) => "0123abcd",
            (_, Some("^[1-5](xx|[0-9]{2})$"), ..) => "4xx",
            (_, Some("^/"), ..) => "/api",
            (_, _, _, "integer") => "1",
            ("since" | "until" | "min_duration", ..) => "1h",
            _ => "word",
        };
        let asked = ask(&world, "GET", &format!("/audit.json?{name}={}", value.replace('/', "%2F")), "").await;
        // Only one of several replicas knows others by name.
        asked.expect(if name == "replica" { 400 } else { 200 });
    }
}

/// Each path once, with what it is for and who may; and each filter.
#[tokio::test]
async fn the_page_of_the_operator_doors_api_is_the_document() {
    let world = World::start().await;
    let document = ask(&world, "GET", "/operator/openapi.json", "").await.expect(200).json();
    let (paths, mut table) = (
        document["paths"].as_object().unwrap(),
        "| request | does | parameters | role |\n| --- | --- | --- | --- |".to_owned(),
    );
    for (path, item) in paths.iter().filter(|(path, _)| !["/.json", "/.csv"].contains(&path.as_str())) {
        let is_form =
            path.strip_suffix(".json").or(path.strip_suffix(".csv")).is_some_and(|page| paths.contains_key(page));
        for (method, operation) in item.as_object().unwrap().iter().filter(|_| !is_form) {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let names: Vec<&str> = parameters.filter_map(|parameter| parameter["name"].as_str()).collect();
            let names = if names.len() > 10 { "the filters below".to_owned() } else { names.join(", ") };
            let body = &operation["requestBody"]["content"]["application/json"]["schema"]["properties"];
            let members = body
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ");
            let open = operation["security"].as_array().is_some_and(Vec::is_empty).then_some("none, nor a key");
            let role = operation["x-makegate"]["role"].as_str().or(open).unwrap_or("read");
            let takes = if members.is_empty() { names } else { format!("body: {members}") };
            let (method, summary) = (method.to_ascii_uppercase(), operation["summary"].as_str().unwrap());
            table += &format!("\n| `{method} {path}` | {} | {takes} | {role} |", summary.replace('|', "\\|"));
        }
    }
    golden::compare_between("docs/operator-api.md", "paths", &table);
    let mut table = "| filter | selects |\n| --- | --- |".to_owned();
    for parameter in document["paths"]["/audit.json"]["get"]["parameters"].as_array().unwrap() {
        let text = |name: &str| parameter[name].as_str().unwrap();
        table += &format!("\n| `{}` | {} |", text("name"), text("description"));
    }
    golden::compare_between("docs/operator-api.md", "filters", &table);
}

#[test]
fn what_is_not_as_described_is_found() {
    let document = json!({"one": {"type": "object", "required": ["id"], "properties": {
        "id": {"type": "integer", "minimum": 1},
        "word": {"type": ["string", "null"], "enum": ["a", "b", null]},
        "codes": {"type": "array", "items": {"type": "string", "pattern": "^MG[0-9]{3}$"}},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "time": {"type": "string", "format": "date-time"},
    }}});
    let found = |value: Value| mistakes(&document, &json!({"$ref": "#/one"}), &value);
    let right =
        json!({"id": 1, "word": null, "codes": ["MG131"], "counts": {"any": 1}, "time": "2026-07-01T00:00:00Z"});
    assert_eq!(found(right), Vec::<String>::new());
    for (wrong, what) in [
        (json!([]), "type"),
        (json!({}), "lacks"),
        (json!({"id": 0}), "minimum"),
        (json!({"id": "1"}), "type"),
        (json!({"id": 1, "word": "c"}), "enum"),
        (json!({"id": 1, "codes": ["MG1"]}), "pattern"),
        (json!({"id": 1, "counts": {"any": "1"}}), "type"),
        (json!({"id": 1, "time": "today"}), "format"),
        (json!({"id": 1, "other": 1}), "is not described"),
    ] {
        let mistakes = found(wrong.clone());
        assert!(mistakes.len() == 1 && mistakes[0].contains(what), "{wrong}: {mistakes:?}");
    }
}
