//! The `OpenAPI` 3.1 document of this door. Its paths are those of the router's table; what it says of each is data: `openapi.json`.

use serde_json::{Map, Value, json};

use crate::audit::{FIELD_FILTERS, FilterName, Kind};
use crate::vocabulary::{Answer, CredentialKind, Outcome};

const DATA: &str = include_str!("openapi.json");

/// Filters of records that are not by a field.
const BOUNDS: [(&str, &str); 4] = [
    ("since", "Only records of this time or later: a time, a day, or how long ago (1h)"),
    ("until", "Only records of before this time"),
    ("limit", "How many records at most"),
    ("after", "Only records before this number: `next` of the page before"),
];

/// The forms of a page: what its path ends in, and the media types that it may have there.
const FORMS: [(&str, &[&str]); 3] =
    [("", &["application/json", "text/html", "text/csv"]), (".json", &["application/json"]), (".csv", &["text/csv"])];

/// Builds the document of the door with these pages.
pub(super) fn document(pages: &[&str], servers: &[String]) -> Value {
    // A test ensures that it is JSON and knows every page.
    let data: Value = serde_json::from_str(DATA).unwrap_or_default();
    let member = |name: &str| data.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let (known, mut paths) = (member("pages"), member("paths"));
    for path in pages {
        let Some(page) = known.get(*path) else { continue };
        for (suffix, media_types) in FORMS {
            let item = paths.entry(format!("{path}{suffix}")).or_insert_with(|| Value::Object(Map::new()));
            if let Some(methods) = item.as_object_mut() {
                methods.insert("get".to_owned(), operation(page, suffix, media_types));
            }
        }
    }
    let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut);
    for responses in operations.filter_map(|operation| operation.get_mut("responses")?.as_object_mut()) {
        responses.insert("default".to_owned(), json!({"$ref": "#/components/responses/refusal"}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "makegate, the operator door",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What the gateway does and did. Each page is JSON, CSV and HTML.",
        },
        "servers": servers.iter().map(|url| json!({"url": url})).collect::<Vec<_>>(),
        "security": [{"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An operator's key"},
                "basic": {"type": "http", "scheme": "basic", "description": "Any name; the key is the password"},
            },
            "responses": {"refusal": {
                "description": "A refusal",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/problem"}}},
            }},
            "schemas": member("schemas"),
        },
    })
}

fn operation(page: &Value, suffix: &str, media_types: &[&str]) -> Value {
    let text = |name: &str| page.get(name).and_then(Value::as_str).unwrap_or_default();
    let own = page.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
    let filters = page.get("filters").is_some().then(|| FIELD_FILTERS.iter().map(filter).chain(BOUNDS.map(bound)));
    let parameters: Vec<Value> = filters.into_iter().flatten().chain(own).collect();
    let content: Map<String, Value> = media_types
        .iter()
        .filter_map(|media_type| match *media_type {
            "application/json" if page.get("stream").is_some() => {
                Some(("application/x-ndjson".to_owned(), json!({"schema": page.get("answer")})))
            }
            "application/json" => Some((media_type.to_string(), json!({"schema": page.get("answer")}))),
            "text/html" if page.get("stream").is_some() => None,
            _ => Some((media_type.to_string(), json!({"schema": {"type": "string"}}))),
        })
        .collect();
    json!({
        "operationId": format!("{}{suffix}", text("id")),
        "summary": text("summary"),
        "parameters": parameters,
        "responses": {"200": {"description": text("summary"), "content": content}},
    })
}

fn filter(filter: &FilterName) -> Value {
    let words = |words: Vec<&'static str>| json!({"type": "string", "enum": words});
    let schema = match (filter.name, filter.value) {
        ("answer", _) => words(Answer::ALL.iter().map(|one| one.as_str()).collect()),
        ("kind", _) => words(Kind::ALL.iter().map(|one| one.as_str()).collect()),
        ("outcome", _) => words(Outcome::ALL.iter().map(|one| one.as_str()).collect()),
        ("credential", _) => words(CredentialKind::ALL.iter().map(|one| one.as_str()).collect()),
        ("key", _) => json!({"type": "string", "pattern": "^[0-9a-f]{8}$"}),
        ("refusal", _) => json!({"type": "string", "pattern": "^MG[0-9]{3}$"}),
        ("path", _) => json!({"type": "string", "pattern": "^/"}),
        ("organization", _) | (_, "N" | "SEQ") => json!({"type": "integer", "minimum": 0}),
        (_, "STATUS") => json!({"type": "string", "pattern": "^[1-5](xx|[0-9]{2})$"}),
        _ => json!({"type": "string", "minLength": 1}),
    };
    json!({"name": filter.name, "in": "query", "description": filter.help, "schema": schema})
}

fn bound((name, help): (&str, &str)) -> Value {
    let schema = match name {
        "limit" => json!({"type": "integer", "minimum": 1, "maximum": 10000, "default": 100}),
        "after" => json!({"type": "integer", "minimum": 0}),
        _ => json!({"type": "string"}),
    };
    json!({"name": name, "in": "query", "description": help, "schema": schema})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every path in the router's text: the first text in the call of `route`, or in a row of its table of pages.
    fn paths_of_router() -> BTreeSet<&'static str> {
        let code = include_str!("router.rs");
        let texts = code.lines().filter_map(|line| {
            let rest = line.trim_start();
            let rest = rest.strip_prefix("(\"").or_else(|| rest.split_once(".route(\"").map(|(_, rest)| rest))?;
            Some(rest.split_once('"')?.0).filter(|text| text.starts_with('/'))
        });
        texts.collect()
    }

    #[test]
    fn the_document_has_every_path_of_the_router_and_no_other() {
        let pages = super::super::router::page_paths();
        let document = document(&pages, &[]);
        let told: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        let forms = pages.iter().flat_map(|page| FORMS.map(|(suffix, _)| format!("{page}{suffix}")));
        let expected: BTreeSet<String> = paths_of_router().into_iter().map(str::to_owned).chain(forms).collect();
        assert!(expected.len() > 40, "{expected:?}");
        assert_eq!(told, expected, "src/operator/openapi.json");
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_its_own_name() {
        let document = document(&super::super::router::page_paths(), &[]);
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split_once('"')) {
            assert!(document.pointer(reference.0).is_some(), "{}", reference.0);
        }
        let ids: Vec<_> = text.split("\"operationId\":\"").skip(1).filter_map(|rest| rest.split_once('"')).collect();
        let different: BTreeSet<_> = ids.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), different.len());
    }
}
