//! `Makegate-Outcome`: every write says what became of it.

use makegate::sandbox::{Fault, FaultKind};

use super::{header, still};
use crate::support::{ALL, LIST, ORG, Reply, TOKEN, World};

const INVITE: &str = "/api/v2/organizations/11/invite";
const GUEST: &str = r#"{"usersRoleId": 12, "email": "tom@example.com", "name": "Tom"}"#;

#[tokio::test]
async fn what_the_upstream_answers_decides() {
    let world = still().start().await;
    for (status, outcome) in [
        (200, "done"),
        (201, "done"),
        (400, "rejected"),
        (403, "rejected"),
        (404, "rejected"),
        (409, "rejected"),
        (422, "rejected"),
        (500, "in-doubt"),
        (503, "in-doubt"),
        (504, "in-doubt"),
    ] {
        world.sandbox.fault(Fault::once("POST", INVITE, FaultKind::status(status).with_header("retry-after", "7")));
        let body = GUEST.replace("tom", &format!("tom{status}"));
        let reply = world.post(ALL, INVITE, &body).await.expect(status);
        assert_eq!(header(&reply, "makegate-outcome"), outcome, "{status}");
        assert_eq!(
            reply.header("retry-after").is_none(),
            outcome == "in-doubt",
            "{status}: nobody is invited to repeat it"
        );
        assert!(reply.json().get("message").is_some(), "{status}: Make's own body");
        assert_eq!(world.last_record().await["outcome"], outcome);
    }
    let doubts = world.service.gateway().log.doubts().list();
    assert_eq!(doubts.len(), 3, "{doubts:?}");
}

#[tokio::test]
async fn a_deletion_that_is_sent_again_and_finds_nothing_is_done() {
    let world = still().start().await;
    world.sandbox.fault(Fault::once("DELETE", ORG, FaultKind::Close { effect: true }));
    let reply = world.delete(ALL, ORG).await.expect(404);
    assert_eq!((header(&reply, "makegate-outcome"), world.sandbox.effects("DELETE", ORG)), ("done", 1));
    let record = world.last_record().await;
    assert_eq!((record["attempts"].as_u64(), record["upstream_status"].as_u64()), (Some(2), Some(404)), "{record}");
}

#[tokio::test]
async fn what_had_no_intent_has_no_outcome() {
    let world = still().start().await;
    for reply in [
        world.post(ALL, LIST, "[]").await,
        world.post("unknown", LIST, "{}").await,
        world.post(ALL, "/api/v2/organizations/011/invite", GUEST).await,
        world.get(ALL, LIST).await,
    ] {
        assert_eq!(reply.header("makegate-outcome"), None, "{reply:?}");
    }
    assert!(kinds(&world).await.iter().all(|kind| kind == "request"));
}

async fn kinds(world: &World) -> Vec<String> {
    world.records().await.iter().map(|record| record["kind"].as_str().unwrap().to_owned()).collect()
}

/// Many clients show only `detail`: whatever refuses a write in doubt names it there.
#[tokio::test]
async fn every_refusal_of_a_write_in_doubt_names_its_request() {
    let world = still().set("upstream", "write_attempt = \"1s\"").set("limits", "breaker_failures = 0").start().await;
    let cases = [
        FaultKind::Close { effect: true },
        FaultKind::Reset { effect: false },
        FaultKind::Hang { effect: true },
        FaultKind::redirect("http://127.0.0.1:9/"),
        FaultKind::echo_token(500),
        FaultKind::status(503).with_body("x").with_header("content-encoding", "gzip"),
    ];
    for (number, kind) in cases.into_iter().enumerate() {
        let (id, body) = (format!("named-{number}"), GUEST.replace("tom", &format!("tom{number}")));
        world.sandbox.fault(Fault::once("POST", INVITE, kind.clone()));
        let reply = world.send(ALL, "POST", INVITE, &[&format!("x-request-id: {id}")], &body).await;
        names_its_doubt(&world, &reply, &id, &format!("{kind:?}")).await;
    }
    // A doubt of an earlier attempt, and then a word on the token, which says nothing about the write.
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::Close { effect: true }));
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::status(401)));
    let reply = world.send(ALL, "PATCH", ORG, &["x-request-id: named-patch"], r#"{"name":"x"}"#).await;
    names_its_doubt(&world, &reply, "named-patch", "401").await;
    assert!(!format!("{reply:?}").contains(TOKEN));
}

async fn names_its_doubt(world: &World, reply: &Reply, id: &str, what: &str) {
    assert_eq!(header(reply, "makegate-outcome"), "in-doubt", "{what}: {reply:?}");
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.ends_with(&format!("It is listed at /doubts as {id}.")), "{what}: {detail}");
    let doubts = world.service.gateway().log.doubts().list();
    assert!(doubts.iter().any(|doubt| doubt.request.as_str() == id), "{what}: {doubts:?}");
    let record = world.last_record().await;
    assert_eq!(record["bytes"], reply.body.len(), "{what}: {record}");
}
