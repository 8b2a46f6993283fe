//! The `OpenAPI` 3.1 document of the gateway door, built from the catalogue's rows. What Make's document tells of their
//! parameters, bodies and answers is `config/schemas.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{BodyKind, Catalogue, Operation, Parameter, ParameterKind};

const SCHEMAS: &str = include_str!("../../config/schemas.json");

/// What Make's document tells of the operations.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentedSchemas {
    /// What the others refer to, by name.
    schemas: Map<String, Value>,
    /// By the row's id.
    operations: BTreeMap<String, DocumentedOperation>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentedOperation {
    /// By the parameter's name, what to add to its schema.
    #[serde(default)]
    parameters: BTreeMap<String, Map<String, Value>>,
    body: Option<Value>,
    answer: Value,
}

/// Builds the document from the catalogue. `servers` are the URLs of the gateway door.
#[must_use]
pub fn openapi(catalogue: &Catalogue, servers: &[String]) -> Value {
    let mut documented: DocumentedSchemas = serde_json::from_str(SCHEMAS).unwrap_or_default();
    documented.schemas.insert("problem".to_owned(), problem());
    // A row of the configuration is not in Make's document.
    let further = DocumentedOperation { answer: json!({}), ..DocumentedOperation::default() };
    let mut paths = Map::new();
    for row in catalogue.rows() {
        let path = paths.entry(row.path.as_str()).or_insert_with(|| Value::Object(Map::new()));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(
                row.method.as_str().to_ascii_lowercase(),
                operation(row, documented.operations.get(&*row.id).unwrap_or(&further)),
            );
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "makegate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The Make.com Organizations API through makegate: paths, bodies and answers are Make's; keys are the gateway's.",
        },
        "servers": servers.iter().map(|url| json!({"url": url})).collect::<Vec<_>>(),
        "security": [{"token": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Token KEY`, as Make's own clients send it",
                },
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "responses": {"refusal": refusal()},
            "schemas": documented.schemas,
        },
    })
}

fn operation(row: &Operation, documented: &DocumentedOperation) -> Value {
    let tag = row.id.split('.').next().unwrap_or_default();
    let mut operation = json!({
        "operationId": row.id,
        "summary": row.summary,
        "tags": [tag],
        "parameters": parameters(row, documented),
        "responses": {
            "2XX": {
                "description": "Make's answer, unchanged",
                "headers": headers(row),
                "content": {"application/json": {"schema": documented.answer}},
            },
            "default": {"$ref": "#/components/responses/refusal"},
        },
        "x-makegate": makegate(row),
    });
    let of_json = |schema: &Value| json!({"application/json": {"schema": schema}});
    let content = match (row.body, &documented.body) {
        (BodyKind::None, _) => None,
        (BodyKind::Object | BodyKind::Any, Some(schema)) => Some(of_json(schema)),
        (BodyKind::Object, None) => Some(of_json(&json!({"type": "object"}))),
        (BodyKind::Any, None) => Some(json!({"*/*": {"schema": {}}})),
    };
    if let (Some(content), Some(members)) = (content, operation.as_object_mut()) {
        let body = json!({"required": row.body == BodyKind::Object, "content": content});
        members.insert("requestBody".to_owned(), body);
    }
    operation
}

/// What the gateway adds to an operation.
fn makegate(row: &Operation) -> Value {
    json!({
        "grant": row.grant,
        "cache": row.cache,
        "retry": row.retry.as_str(),
        "quota": row.quota.as_str(),
        "tags": row.tags.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(),
        "invalidates": row.invalidates.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(),
    })
}

fn parameters(row: &Operation, documented: &DocumentedOperation) -> Vec<Value> {
    let in_path = row.path.parameters().map(|name| {
        let schema = if name == super::template::ORGANIZATION {
            json!({"type": "integer", "minimum": 1})
        } else {
            json!({"type": "string", "minLength": 1})
        };
        (name, json!({"name": name, "in": "path", "required": true, "schema": schema}))
    });
    let in_query = row.query.iter().map(|parameter| (&*parameter.name, in_query(parameter)));
    let all = in_path.chain(in_query).map(|(name, mut parameter)| {
        let schema = parameter.get_mut("schema").and_then(Value::as_object_mut);
        if let (Some(more), Some(schema)) = (documented.parameters.get(name), schema) {
            schema.extend(more.clone());
        }
        parameter
    });
    let key = json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A repeated request with the same key gets the first answer again, and nothing is sent twice",
        "schema": {"type": "string"},
    });
    all.chain(row.is_write().then_some(key)).collect()
}

fn in_query(parameter: &Parameter) -> Value {
    let mut schema = match parameter.kind {
        ParameterKind::Set => json!({"type": "array", "items": {"type": "string"}}),
        ParameterKind::Scalar => json!({"type": "string"}),
        ParameterKind::Number => json!({"type": "integer", "minimum": 0}),
        ParameterKind::Flag | ParameterKind::Refresh => json!({"type": "boolean"}),
    };
    if let (Some(default), Some(members)) = (&parameter.default, schema.as_object_mut()) {
        // A default must match its schema: 0 and false are not strings.
        let text = || Value::from(&**default);
        let value = match parameter.kind {
            ParameterKind::Set | ParameterKind::Scalar => text(),
            ParameterKind::Number | ParameterKind::Flag | ParameterKind::Refresh => {
                serde_json::from_str(default).unwrap_or_else(|_| text())
            }
        };
        members.insert("default".to_owned(), value);
    }
    json!({"name": parameter.name, "in": "query", "schema": schema})
}

fn headers(row: &Operation) -> Value {
    let of_all = [
        ("X-Request-Id", "Identifies the request in the gateway's records"),
        ("RateLimit", "How much of the caller's rate is left"),
        ("RateLimit-Policy", "The caller's rate"),
    ];
    let own = if row.is_write() {
        [
            ("Makegate-Outcome", "done, rejected, not-sent or in-doubt"),
            ("Idempotent-Replayed", "true if this is the first answer to this Idempotency-Key, sent again"),
        ]
    } else {
        [("Cache-Status", "Whether the cache answered (RFC 9211)"), ("ETag", "For If-None-Match")]
    };
    let text = |(name, description): (&str, &str)| {
        (name.to_owned(), json!({"description": description, "schema": {"type": "string"}}))
    };
    Value::Object(of_all.into_iter().chain(own).map(text).collect())
}

fn refusal() -> Value {
    json!({
        "description": "A refusal of the gateway (`application/problem+json`), or Make's own error, unchanged",
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/problem"}},
            "application/json": {"schema": {}},
        },
    })
}

/// An RFC 9457 problem, plus the fields that Make's clients read.
fn problem() -> Value {
    let text = json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail", "message", "code", "instance"],
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "message": text,
            "code": {"type": "string", "pattern": "^MG[0-9]{3}$"},
            "instance": {"type": "string", "description": "The request's id"},
            "suberrors": {"type": "array", "items": {"type": "object", "properties": {"message": text}}},
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_is_an_operation_with_what_its_path_names() {
        let catalogue = Catalogue::built_in();
        let document = openapi(&catalogue, &[]);
        for row in catalogue.rows() {
            let operation = &document["paths"][row.path.as_str()][row.method.as_str().to_ascii_lowercase()];
            assert_eq!(operation["operationId"], *row.id);
            assert_eq!(operation["x-makegate"]["grant"], *row.grant);
            assert_eq!(operation.get("requestBody").is_some(), row.body != BodyKind::None, "{}", row.id);
            let parameters = operation["parameters"].as_array().unwrap();
            for name in row.path.parameters() {
                assert!(parameters.iter().any(|p| p["name"] == *name && p["required"] == true), "{}: {name}", row.id);
            }
        }
        let operations: usize =
            document["paths"].as_object().unwrap().values().map(|p| p.as_object().unwrap().len()).sum();
        assert_eq!(operations, catalogue.rows().len());
    }

    #[test]
    fn every_built_in_row_and_no_other_has_schemas_and_all_that_they_refer_to_is_there() {
        let documented: DocumentedSchemas = serde_json::from_str(SCHEMAS).unwrap();
        let catalogue = Catalogue::built_in();
        let ids: BTreeSet<_> = catalogue.rows().iter().map(|row| &*row.id).collect();
        assert_eq!(documented.operations.keys().map(String::as_str).collect::<BTreeSet<_>>(), ids);
        for row in catalogue.rows() {
            let own = &documented.operations[&*row.id];
            assert!(own.body.is_none() || row.body != BodyKind::None, "{}", row.id);
            let names: Vec<_> = row.path.parameters().chain(row.query.iter().map(|p| &*p.name)).collect();
            assert!(own.parameters.keys().all(|name| names.contains(&&**name)), "{}", row.id);
        }
        let document = openapi(&catalogue, &[]);
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }

    #[test]
    fn defaults_are_values_of_their_schema() {
        let document = openapi(&Catalogue::built_in(), &[]);
        let parameters = document["paths"]["/api/v2/organizations"]["get"]["parameters"].as_array().unwrap();
        let schema = |name: &str| &parameters.iter().find(|p| p["name"] == name).unwrap()["schema"];
        assert_eq!(schema("pg[offset]"), &json!({"type": "integer", "minimum": 0, "default": 0}));
        assert_eq!(schema("pg[sortBy]"), &json!({"type": "string", "default": "name"}));
        assert_eq!(schema("cols[]")["type"], "array");
    }
}
