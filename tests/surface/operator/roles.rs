//! Operators with names and roles, and what is left of wrong keys.

use std::fmt::Write as _;

use makegate::hash;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{ALL, OPERATOR, ORG, Plan, Reply, World, send};

/// The tables of these operators; each one's key is its name and `-key`.
fn operators(roles: &[(&str, &str)]) -> String {
    roles.iter().fold(String::new(), |mut text, (name, role)| {
        let hash = hash::hex(&hash::sha256(format!("{name}-key").as_bytes()));
        let _infallible =
            writeln!(text, "[[operator.key]]\nname = \"{name}\"\nhash = \"sha256:{hash}\"\nrole = \"{role}\"");
        text
    })
}

async fn ask(world: &World, key: &str, method: &str, target: &str, body: &str) -> Reply {
    let operator = world.service.operator_addresses()[0];
    let json = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    send(operator, method, target, &format!("authorization: Bearer {key}\r\n{json}"), body).await
}

async fn events(world: &World, event: &str) -> Vec<Value> {
    world.log().await.into_iter().filter(|record| record["event"] == event).collect()
}

const PURGE: (&str, &str) = ("/cache/purge", r#"{"all": true}"#);
const REOPEN: (&str, &str) = ("/quota/reopen", r#"{"organization": 11}"#);

#[tokio::test]
async fn each_role_may_do_what_it_says_and_its_name_is_in_the_record() {
    let roles = [("anna", "read"), ("ben", "operate"), ("eve", "admin")];
    let world = Plan::default().tables(&operators(&roles)).start().await;
    world.get(ALL, ORG).await.expect(200);
    for (key, purge, rotate, settle) in
        [("anna-key", 403, 403, 403), ("ben-key", 200, 403, 404), ("eve-key", 200, 200, 404), (OPERATOR, 200, 200, 404)]
    {
        for page in ["/", "/audit.json", "/callers.csv", "/config", "/openapi.json"] {
            ask(&world, key, "GET", page, "").await.expect(200);
        }
        ask(&world, key, "POST", PURGE.0, PURGE.1).await.expect(purge);
        ask(&world, key, "POST", REOPEN.0, REOPEN.1).await.expect(purge);
        ask(&world, key, "POST", "/audit/rotate", "").await.expect(rotate);
        ask(&world, key, "POST", "/doubts/none", r#"{"as": "done"}"#).await.expect(settle);
        ask(&world, key, "GET", "/audit/rotate", "").await.expect(405);
    }
    let refused = ask(&world, "ben-key", "POST", "/audit/rotate", "").await.json();
    assert_eq!(refused["type"], "urn:makegate:operator:role-insufficient");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.starts_with("Operator ben has the role operate, but this takes admin."), "{detail}");

    let names = async |event| -> Vec<Value> {
        events(&world, event).await.into_iter().map(|record| record["operator"].clone()).collect()
    };
    assert_eq!(names("purge").await, ["ben", "eve", "operator"]);
    assert_eq!(names("reopen").await, ["ben", "eve", "operator"]);
    assert_eq!(names("rotate").await, ["eve", "operator"]);
    let purged = &events(&world, "purge").await[0];
    let id = &hash::hex(&hash::sha256(b"ben-key"))[..8];
    assert_eq!((&purged["key"], &purged["peer"]), (&json!(id), &json!("127.0.0.1")));
    assert!(purged["detail"].as_str().unwrap().starts_with("ben purged everything: "), "{purged}");
}

#[tokio::test]
async fn the_right_key_is_let_in_after_any_number_of_wrong_ones() {
    let world = World::start().await;
    for count in 1..=40 {
        let expected = if count <= 30 { 401 } else { 429 };
        ask(&world, &format!("wrong-{count}"), "GET", "/quota", "").await.expect(expected);
        ask(&world, OPERATOR, "GET", "/quota", "").await.expect(200);
    }
    let told = events(&world, "wrong-keys").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["peer"], "127.0.0.1");
}

/// Follows the log until it ends; what came.
async fn follow(world: &World, key: &str) -> TcpStream {
    let to = world.service.operator_addresses()[0];
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head =
        format!("GET /audit/follow HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "no answer");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    stream
}

#[tokio::test]
async fn a_key_that_is_taken_away_opens_nothing_and_ends_what_it_follows() {
    let world = Plan::default().tables(&operators(&[("anna", "read"), ("ben", "admin")])).start().await;
    let (mut anna, mut ben) = (follow(&world, "anna-key").await, follow(&world, "ben-key").await);
    let with = std::fs::read_to_string(world.file()).unwrap();
    let without = with.replacen(&operators(&[("anna", "read")]), "", 1);
    assert_ne!(with, without);
    std::fs::write(world.file(), without).unwrap();
    world.reload().await;
    ask(&world, "anna-key", "GET", "/quota", "").await.expect(401);
    let mut rest = Vec::new();
    tokio::time::timeout(std::time::Duration::from_secs(30), anna.read_to_end(&mut rest)).await.unwrap().unwrap();
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.ends_with("\r\n0\r\n\r\n") || rest == "0\r\n\r\n", "{rest}");
    // The other one goes on: it is told of what comes now.
    world.get(ALL, ORG).await.expect(200);
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("organizations.get") {
        assert!(ben.read_buf(&mut seen).await.unwrap() > 0, "the stream of who still has a key ended");
    }
    ask(&world, "ben-key", "POST", PURGE.0, PURGE.1).await.expect(200);
}

#[tokio::test]
async fn exports_are_recorded_with_their_filters_and_looking_is_not() {
    let world = Plan::default().tables(&operators(&[("anna", "read")])).start().await;
    world.get(ALL, ORG).await.expect(200);
    for page in ["/audit", "/audit.json?limit=1000", "/audit.json?caller=all"] {
        ask(&world, "anna-key", "GET", page, "").await.expect(200);
    }
    assert_eq!(events(&world, "export").await.len(), 0);
    ask(&world, "anna-key", "GET", "/audit.json?caller=all&limit=1&export=true", "").await.expect(200);
    // A table is one, however often a script takes it.
    for _ in 0..3 {
        ask(&world, "anna-key", "GET", "/audit.csv?since=30d", "").await.expect(200);
    }
    let told = events(&world, "export").await;
    let details: Vec<_> = told.iter().map(|record| record["detail"].as_str().unwrap()).collect();
    assert_eq!(details, ["anna exported the log: caller=all", "anna exported the log: since=30d"]);
    assert!(told.iter().all(|record| record["operator"] == "anna"), "{told:?}");
}

#[tokio::test]
async fn a_reload_leaves_the_hash_and_what_changed_in_rights_and_keys() {
    let world = Plan::default().tables(&operators(&[("anna", "read")])).start().await;
    let text = std::fs::read_to_string(world.file()).unwrap();
    let changed = text
        .replace(
            "grants = [\"organizations:read\", \"usage:read\"]\norganizations = [11, 12]",
            "grants = [\"usage:read\"]\norganizations = [11]",
        )
        .replace("role = \"read\"", "role = \"operate\"");
    assert_ne!(text, changed);
    std::fs::write(world.file(), &changed).unwrap();
    std::fs::write(world.dir.path().join("operator"), "another-operator-key-of-this-test").unwrap();
    world.reload().await;
    let told = events(&world, "reload").await;
    let hash = hash::hex(&hash::sha256(changed.as_bytes()));
    let [before, after] = [OPERATOR, "another-operator-key-of-this-test"]
        .map(|key| hash::hex(&hash::sha256(key.as_bytes()))[..8].to_owned());
    let expected = format!(
        "the configuration was reloaded: sha256:{hash}; caller reader: -grant organizations:read, -organization 12; \
         operator anna: +role operate, -role read; operator operator: +key {after}, -key {before}"
    );
    assert_eq!(told.last().unwrap()["detail"], expected);
    world.reload().await;
    let told = events(&world, "reload").await;
    assert!(told.last().unwrap()["detail"].as_str().unwrap().ends_with("keys are as before"), "{told:?}");
}
