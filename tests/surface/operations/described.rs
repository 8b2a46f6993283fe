//! The OpenAPI document of the gateway door against what goes through the door.

use serde_json::{Map, Value};

use super::cases::CASES;
use super::{ask, still};
use crate::support::{ALL, OPERATOR, World, send};

/// Whether a text matches one of the document's patterns.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[A-Za-z0-9$_]+$" => !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"$_".contains(&b)),
        "^MG[0-9]{3}$" => {
            text.strip_prefix("MG").is_some_and(|n| n.len() == 3 && n.bytes().all(|b| b.is_ascii_digit()))
        }
        other => panic!("the test does not know the pattern {other}"),
    }
}

/// What the value has that its schema does not allow, or does not tell of.
fn misfit(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return misfit(document, document.pointer(&reference[1..]).unwrap(), value);
    }
    let found = schema.as_object().unwrap().iter().find_map(|(keyword, told)| match &**keyword {
        "type" => {
            let types = told.as_array().map_or(vec![told], |types| types.iter().collect());
            (!types.iter().any(|kind| is_of_type(value, kind.as_str().unwrap()))).then(|| format!("is no {told}"))
        }
        "enum" => (!told.as_array().unwrap().contains(value)).then(|| format!("is none of {told}")),
        "minimum" => (value.as_f64()? < told.as_f64().unwrap()).then(|| format!("is less than {told}")),
        "pattern" => (!matches(told.as_str().unwrap(), value.as_str()?)).then(|| format!("does not match {told}")),
        "required" => {
            let missing = told.as_array().unwrap().iter().find(|name| value.get(name.as_str().unwrap()).is_none())?;
            Some(format!("has no {missing}"))
        }
        "properties" => each_member(value, |name, member| match told.get(name) {
            Some(schema) => misfit(document, schema, member),
            None => Some("is not described".to_owned()),
        }),
        "additionalProperties" => each_member(value, |_, member| misfit(document, told, member)),
        "items" => value.as_array()?.iter().find_map(|item| misfit(document, told, item)),
        "format" | "description" => None,
        other => panic!("the test does not know the keyword {other}"),
    });
    found.map(|what| format!("{value} {what}"))
}

fn each_member(value: &Value, wrong: impl Fn(&str, &Value) -> Option<String>) -> Option<String> {
    let members: &Map<String, Value> = value.as_object()?;
    members.iter().find_map(|(name, member)| Some(format!("{name}: {}", wrong(name, member)?)))
}

fn is_of_type(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is no type"),
    }
}

async fn document(world: &World) -> Value {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(world.service.operator_addresses()[0], "GET", "/openapi.json", &key, "").await.expect(200).json()
}

#[tokio::test]
async fn the_openapi_document_describes_every_body_and_answer_and_names_the_door() {
    let world = still().start().await;
    let gateway = world.service.gateway_addresses()[0];
    let document = document(&world).await;
    assert_eq!(document["servers"], serde_json::json!([{"url": format!("http://{gateway}")}]));
    let mut misfits = Vec::new();
    for case in &CASES {
        let operation = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .find_map(|path| path.as_object().unwrap().values().find(|operation| operation["operationId"] == case.id))
            .unwrap();
        let answer = ask(&world, ALL, case, "described").await.expect(200).json();
        let schema = &operation["responses"]["2XX"]["content"]["application/json"]["schema"];
        assert!(schema["properties"].is_object() || schema["$ref"].is_string(), "{}", case.id);
        misfits.extend(misfit(&document, schema, &answer).map(|what| format!("{}: {what}", case.id)));
        if let Ok(mut body) = serde_json::from_str::<Value>(case.body) {
            body.as_object_mut().unwrap().retain(|_, value| !value.to_string().contains("s3cret note"));
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            misfits.extend(misfit(&document, schema, &body).map(|what| format!("the body of {}: {what}", case.id)));
        }
    }
    assert!(misfits.is_empty(), "{misfits:#?}");
}

#[tokio::test]
async fn a_refusal_is_the_problem_that_the_openapi_document_describes() {
    let world = still().start().await;
    let document = document(&world).await;
    let refusal = world.get("nobody", "/api/v2/organizations").await.expect(401).json();
    assert_eq!(misfit(&document, &document["components"]["schemas"]["problem"], &refusal), None);
}
