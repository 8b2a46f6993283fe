//! Promise 4, with something in front of Make that answers in its place: what Make has not said is never the answer to a key, and what is
//! in doubt stays held.

use makegate::sandbox::{Fault, FaultKind};

use crate::support::{ALL, LIST, ORG, Plan, Reply, World};

const INVITE: &str = "/api/v2/organizations/11/invite";
const GUEST: &str = r#"{"usersRoleId": 12, "email": "tom@example.com", "name": "Tom"}"#;
const HTML: &str = "<html><head><title>Attention Required! | Cloudflare</title></head></html>";
const JSON: &str = r#"{"message":"Access denied.","code":"SC403"}"#;

/// What a write with a key is told when it comes again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Again {
    Sent,
    Replayed,
    Held,
}

fn with_type(mut kind: FaultKind, value: &str) -> FaultKind {
    if let FaultKind::Answer { content_type, .. } = &mut kind {
        *content_type = Some(value.to_owned());
    }
    kind
}

async fn keyed(world: &World, key: &str, (method, target, body): (&str, &str, &str)) -> Reply {
    world.send(ALL, method, target, &[&format!("idempotency-key: {key}")], body).await
}

/// What Make's own answer and that of an edge mean for a key, by status.
const STATUSES: [(u16, Again, Again); 22] = [
    (400, Again::Replayed, Again::Sent),
    (401, Again::Sent, Again::Sent),
    (402, Again::Replayed, Again::Sent),
    (403, Again::Replayed, Again::Sent),
    (404, Again::Replayed, Again::Sent),
    (405, Again::Replayed, Again::Sent),
    (406, Again::Replayed, Again::Sent),
    (408, Again::Held, Again::Held),
    (409, Again::Replayed, Again::Sent),
    (413, Again::Replayed, Again::Sent),
    (421, Again::Replayed, Again::Sent),
    (422, Again::Replayed, Again::Sent),
    (429, Again::Sent, Again::Sent),
    (451, Again::Replayed, Again::Sent),
    (500, Again::Held, Again::Held),
    (501, Again::Held, Again::Held),
    (502, Again::Held, Again::Held),
    (503, Again::Held, Again::Held),
    (504, Again::Held, Again::Held),
    (520, Again::Held, Again::Held),
    (522, Again::Held, Again::Held),
    (530, Again::Held, Again::Held),
];

#[tokio::test]
async fn what_only_an_edge_said_is_never_the_answer_to_a_key() {
    let world = Plan::default().set("limits", "attempts = 1").start().await;
    let mut number = 0;
    for (status, of_make, of_an_edge) in STATUSES {
        for (body, kind, expected) in [
            (JSON, "application/json; charset=utf-8", of_make),
            (HTML, "text/html", of_an_edge),
            (HTML, "application/json", of_an_edge),
            (JSON, "text/plain", of_an_edge),
            ("error code: 1010", "text/plain", of_an_edge),
            ("", "application/json", of_an_edge),
            ("null", "application/json", of_an_edge),
        ] {
            for write in [("POST", INVITE, GUEST), ("PATCH", ORG, r#"{"name":"Acme"}"#)] {
                number += 1;
                let (key, what) = (format!("k-{number}"), format!("{} {status} {kind} {body:.9}", write.0));
                let fault = with_type(FaultKind::status(status).with_body(body), kind);
                world.sandbox.fault(Fault::once(write.0, write.1, fault));
                let first = keyed(&world, &key, write).await;
                let sent = world.received(write.0, write.1);
                world.clock.advance(std::time::Duration::from_secs(61)); // after a 429
                let again = keyed(&world, &key, write).await;
                let sent = world.received(write.0, write.1) - sent;
                let told = match (sent, again.header("idempotent-replayed"), again.status) {
                    (1, None, 200) => Again::Sent,
                    (0, Some("true"), same) if same == first.status && again.body == first.body => Again::Replayed,
                    (0, None, 409) if again.code() == "MG164" => Again::Held,
                    _ => panic!("{what}: {again:?}"),
                };
                assert_eq!(told, expected, "{what}");
            }
        }
    }
}

/// Also after a restart: neither the store nor the log keeps what an edge said.
#[tokio::test]
async fn after_a_restart_a_key_that_an_edge_refused_is_free() {
    let world = World::start().await;
    let write = ("POST", LIST, r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#);
    let edge = with_type(FaultKind::status(403).with_body(HTML), "text/html");
    world.sandbox.fault(Fault::once("POST", LIST, edge));
    let first = keyed(&world, "k", write).await.expect(403);
    assert_eq!((first.text(), first.header("makegate-outcome")), (HTML, Some("rejected")));
    let world = world.restart().await;
    let again = keyed(&world, "k", write).await.expect(200);
    assert_eq!((again.header("idempotent-replayed"), world.sandbox.effects("POST", LIST)), (None, 1));
    keyed(&world, "k", write).await.expect(200);
    assert_eq!(world.sandbox.effects("POST", LIST), 1);
}

/// A 404 after an attempt in doubt means that the deletion is done, but only if Make itself says so.
#[tokio::test]
async fn a_404_proves_a_deletion_only_in_makes_own_words() {
    let world = Plan::default().set("upstream", "look = false").set("limits", "retry_floor = 100").start().await;
    let cases = [
        (JSON, "application/json", "done"),
        (HTML, "text/html", "in-doubt"),
        (HTML, "application/json", "in-doubt"),
        ("404 page not found", "text/plain", "in-doubt"),
        ("", "application/json", "in-doubt"),
        ("null", "application/json", "in-doubt"),
    ];
    for (number, (body, kind, outcome)) in cases.into_iter().enumerate() {
        let (key, write) = (format!("gone-{number}"), ("DELETE", "/api/v2/organizations/11/variables/prod", ""));
        world.sandbox.fault(Fault::once("DELETE", write.1, FaultKind::Close { effect: false }));
        let missing = with_type(FaultKind::status(404).with_body(body), kind);
        world.sandbox.fault(Fault::once("DELETE", write.1, missing));
        let first = keyed(&world, &key, write).await.expect(404);
        assert_eq!((first.text(), first.header("makegate-outcome")), (body, Some(outcome)), "{kind}");
        let again = keyed(&world, &key, write).await;
        if outcome == "done" {
            assert_eq!(again.expect(404).header("idempotent-replayed"), Some("true"));
        } else {
            again.refused(409, "MG164");
        }
    }
}
