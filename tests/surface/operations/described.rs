//! The OpenAPI document of the gateway door against what goes through the door.

use serde_json::Value;

use super::cases::CASES;
use super::{ask, still};
use crate::support::schema::mistakes;
use crate::support::{ALL, OPERATOR, World, send};

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
        misfits.extend(mistakes(&document, schema, &answer).iter().map(|what| format!("{}: {what}", case.id)));
        if let Ok(mut body) = serde_json::from_str::<Value>(case.body) {
            body.as_object_mut().unwrap().retain(|_, value| !value.to_string().contains("s3cret note"));
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            misfits.extend(
                mistakes(&document, schema, &body).iter().map(|what| format!("the body of {}: {what}", case.id)),
            );
        }
    }
    assert!(misfits.is_empty(), "{misfits:#?}");
}

#[tokio::test]
async fn a_refusal_is_the_problem_that_the_openapi_document_describes() {
    let world = still().start().await;
    let document = document(&world).await;
    let refusal = world.get("nobody", "/api/v2/organizations").await.expect(401).json();
    assert_eq!(mistakes(&document, &document["components"]["schemas"]["problem"], &refusal), Vec::<String>::new());
}
