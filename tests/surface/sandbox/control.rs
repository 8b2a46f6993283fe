//! The sandbox's own interface over HTTP.

use serde_json::json;

use super::{LIST, ORG, World};

#[tokio::test]
async fn it_says_what_it_is_and_its_example_works() {
    let world = World::start().await;
    let about = world.get("/sandbox").await.expect(200);
    assert_eq!(about["organizations"], json!([11, 12, 13, 14, 15]));
    for kind in about["fault"]["kind"].as_array().unwrap() {
        let fault = json!({ "path": "/nowhere", "kind": kind }).to_string();
        assert_eq!(world.send("POST", "/sandbox/faults", &fault).await.status, 200, "{fault}");
    }
    let armed = world.get("/sandbox/faults").await.expect(200);
    assert_eq!(armed["faults"].as_array().unwrap().len(), about["fault"]["kind"].as_array().unwrap().len());
    world.send("POST", "/sandbox/faults", &about["fault"]["example"].to_string()).await.expect(200);
    assert_eq!(world.send("DELETE", "/sandbox/faults", "").await.expect(200), json!({ "faults": [] }));
    assert!(world.sandbox.received().is_empty(), "control requests are not Make's");
}

#[tokio::test]
async fn a_fault_armed_over_http_strikes() {
    let world = World::start().await;
    let fault = r#"{"method": "GET", "path": "/api/v2/organizations", "kind": {"answer": {"status": 503}}}"#;
    world.send("POST", "/sandbox/faults", fault).await.expect(200);
    assert_eq!(world.get(LIST).await.status, 503);
    assert_eq!(world.get(LIST).await.status, 200);
}

#[tokio::test]
async fn a_wrong_fault_is_refused_with_what_to_write() {
    let world = World::start().await;
    for fault in [
        "",
        r#"{"path": "/a"}"#,
        r#"{"path": "/a", "kind": {"explode": {}}}"#,
        r#"{"path": "/a", "tims": 1, "kind": {"hang": {}}}"#,
        r#"{"path": "a", "kind": {"hang": {}}}"#,
        r#"{"path": "/a", "times": 0, "kind": {"hang": {}}}"#,
        r#"{"path": "/a", "kind": {"latency": {"ms": 600001}}}"#,
        r#"{"path": "/a", "kind": {"drip": {"bytes": 0, "every_ms": 1}}}"#,
    ] {
        let refused = world.send("POST", "/sandbox/faults", fault).await.expect(400);
        assert!(refused["message"].is_string() && refused["example"].is_object(), "{refused}");
    }
    assert_eq!(world.get("/sandbox/nothing").await.status, 404);
    assert_eq!(world.get("/sandbox/received?limit=x").await.status, 400);
}

#[tokio::test]
async fn the_list_shows_what_came_without_the_token() {
    let world = World::start().await;
    world.send("PATCH", &format!("{ORG}?key=sandbox-token"), r#"{"name": "sandbox-token"}"#).await.expect(200);
    world.raw("GET", LIST, "", "").await.unwrap();
    let reply = world.get("/sandbox/received").await;
    assert!(!reply.body.contains("sandbox-token"), "{}", reply.body);
    let list = reply.expect(200)["received"].clone();
    let first = &list[0];
    assert_eq!((&first["method"], &first["path"], &first["token"]), (&json!("PATCH"), &json!(ORG), &json!("right")));
    assert_eq!((&first["bucket"], &first["effect"], &first["status"]), (&json!(11), &json!(true), &json!(200)));
    assert_eq!((&list[1]["token"], &list[1]["status"]), (&json!("missing"), &json!(401)));
    let after = world.get("/sandbox/received?after=0&limit=5").await.expect(200);
    assert_eq!(after["received"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_reset_brings_everything_back_to_the_start() {
    let world = World::start().await;
    world.sandbox.set_token("other");
    assert_eq!(world.get(ORG).await.status, 401);
    world.send("POST", "/sandbox/reset", "").await.expect(200);
    assert!(world.sandbox.received().is_empty());
    world.send("DELETE", ORG, "").await.expect(200);
    world.sandbox.reset();
    assert_eq!(world.get(ORG).await.status, 200);
    let invitations = world.get("/sandbox/invitations").await.expect(200);
    assert_eq!(invitations["invitations"][0]["organization"], 13);
}
