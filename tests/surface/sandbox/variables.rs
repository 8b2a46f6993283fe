//! Organization variables.

use serde_json::{Value, json};

use super::{ORG, World};

const FREE: &str = "/api/v2/organizations/14";

async fn custom(world: &World) -> Vec<Value> {
    let list = world.get(&format!("{ORG}/variables")).await.expect(200);
    let all = list["organizationVariables"].as_array().unwrap();
    all.iter().filter(|variable| variable["isSystem"] == false).cloned().collect()
}

#[tokio::test]
async fn a_variable_is_created_changed_and_deleted_with_a_history() {
    let world = World::start().await;
    let (all, one) = (format!("{ORG}/variables"), format!("{ORG}/variables/user%24Id"));
    let body = r#"{"typeId": 1, "value": 25, "name": "user$Id"}"#;
    let created = world.send("POST", &all, body).await.expect(200);
    let shown = json!({ "name": "user$Id", "typeId": 1, "value": 25, "isSystem": false });
    assert_eq!(created["organizationVariable"], shown);
    assert_eq!(custom(&world).await, [shown]);
    assert_eq!(world.send("POST", &all, body).await.status, 400, "a name is taken once");

    let updated = world.send("PATCH", &one, r#"{"value": 140}"#).await.expect(200);
    assert_eq!(updated["organizationVariable"], json!({ "name": "user$Id", "typeId": 1, "value": 140 }));
    let history = world.get(&format!("{one}/history")).await.expect(200);
    let entries = history["organizationVariableHistory"].as_array().unwrap();
    let actions: Vec<&Value> = entries.iter().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["organization_variable_edited", "organization_variable_created"], "newest first");
    assert_eq!(entries[0]["diffObject"]["old"], json!({ "value": 25, "typeId": 1 }));
    assert_eq!(entries[1]["diffObject"], json!({ "name": "user$Id", "value": 25, "typeId": 1 }));

    assert_eq!(world.send("DELETE", &one, "").await.expect(406)["code"], "IM004");
    let confirmed = format!("{one}?confirmed=true");
    assert_eq!(world.send("DELETE", &confirmed, "").await.expect(200), json!({ "ok": 1 }));
    assert_eq!(world.send("DELETE", &confirmed, "").await.status, 404);
    assert_eq!(world.get(&format!("{one}/history")).await.status, 404);
    assert_eq!(world.send("PATCH", &one, r#"{"value": 1}"#).await.status, 404);
}

#[tokio::test]
async fn type_and_value_are_compared_when_both_are_given() {
    let world = World::start().await;
    let all = format!("{ORG}/variables");
    for (type_id, fits, wrong) in [
        (1, json!(1.5), json!("1")),
        (2, json!("text"), json!(2)),
        (3, json!(false), json!(0)),
        (4, json!("1998-03-06T12:31:00.000Z"), json!("yesterday")),
    ] {
        let name = format!("v{type_id}");
        let refused = json!({ "typeId": type_id, "value": wrong, "name": name }).to_string();
        assert_eq!(world.send("POST", &all, &refused).await.status, 400, "{refused}");
        let taken = json!({ "typeId": type_id, "value": fits, "name": name }).to_string();
        assert_eq!(world.send("POST", &all, &taken).await.status, 200, "{taken}");
    }
    let one = format!("{all}/v1");
    assert_eq!(world.send("PATCH", &one, r#"{"typeId": 3, "value": 1}"#).await.status, 400);
    assert_eq!(world.send("PATCH", &one, r#"{"value": true}"#).await.status, 200, "alone it is not checked");
    assert_eq!(world.send("PATCH", &one, r#"{"typeId": 5}"#).await.status, 400);
    assert_eq!(world.send("PATCH", &one, "{}").await.status, 400);
    let named = r#"{"typeId": 1, "value": 1, "name": "a-b"}"#;
    assert_eq!(world.send("POST", &all, named).await.status, 400);
}

#[tokio::test]
async fn a_plan_without_custom_variables_has_system_ones_only() {
    let world = World::start().await;
    let list = world.get(&format!("{FREE}/variables")).await.expect(200);
    let all = list["organizationVariables"].as_array().unwrap();
    assert!(!all.is_empty() && all.iter().all(|variable| variable["isSystem"] == true));
    let body = r#"{"typeId": 1, "value": 1, "name": "a"}"#;
    assert_eq!(world.send("POST", &format!("{FREE}/variables"), body).await.status, 404);
    assert_eq!(world.send("DELETE", &format!("{FREE}/variables/a?confirmed=true"), "").await.status, 404);
    assert_eq!(world.get("/api/v2/organizations/999/variables").await.status, 404);
}
