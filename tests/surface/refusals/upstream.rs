//! Refusals that stand for the upstream, or for the way to it.

use super::{provoke, still};
use crate::support::{ALL, LIST, ORG, Plan, READER, Reply, World};
use makegate::sandbox::{Fault, FaultKind};

const APPS: &str = "/api/v2/organizations/11/apps";
const INVITE: &str = "/api/v2/organizations/11/invite";
const GUEST: &str = r#"{"usersRoleId": 12, "email": "tom@example.com", "name": "Tom"}"#;
const HANG: FaultKind = FaultKind::Hang { effect: false };

/// A read that is refused while this goes wrong.
async fn read(plan: Plan, code: &str, kind: FaultKind) -> Reply {
    let world = plan.start().await;
    world.sandbox.fault(Fault::always("GET", APPS, kind));
    provoke(&world, code, ALL, ("GET", APPS), &[], "").await
}

/// A `once` write that is refused while this goes wrong.
async fn write(plan: Plan, code: &str, kind: FaultKind) -> (World, Reply) {
    let world = plan.start().await;
    world.sandbox.fault(Fault::always("POST", INVITE, kind));
    let reply = world.send(ALL, "POST", INVITE, &[&format!("x-request-id: {}", super::id_of(code))], GUEST).await;
    super::compare(code, &reply);
    assert_eq!(world.received("POST", INVITE), 1, "a once write is sent once");
    let last = world.last_record().await;
    assert_eq!((&last["kind"], &last["refusal"]), (&"outcome".into(), &code.into()), "{last}");
    assert_eq!(last["outcome"], reply.header("makegate-outcome").unwrap());
    (world, reply)
}

/// Port 9 of the loopback: nobody listens there.
fn nowhere() -> Plan {
    still().upstream("http://127.0.0.1:9")
}

#[tokio::test]
async fn it_cannot_be_reached() {
    let world = nowhere().set("limits", "attempts = 1\nbreaker_failures = 2").start().await;
    provoke(&world, "MG201", ALL, ("GET", APPS), &[], "").await.expect(502);
    let unsent = world.post(ALL, INVITE, GUEST).await.refused(502, "MG201");
    assert_eq!(unsent.header("makegate-outcome"), Some("not-sent"));
    provoke(&world, "MG209", ALL, ("GET", APPS), &[], "").await.expect(503);
}

#[tokio::test]
async fn it_is_late() {
    read(still().set("upstream", "attempt = \"3s\"").set("limits", "attempts = 1"), "MG202", HANG).await.expect(504);
}

/// At the deadline, the wait for an answer and the attempt itself end at once: the attempt may be the one that tells.
#[tokio::test]
async fn the_deadline_is_over() {
    let world = still().set("upstream", "deadline = \"50ms\"").set("limits", "breaker_failures = 0").start().await;
    world.sandbox.fault(Fault::always("GET", ORG, HANG));
    let mut late = world.get_with(ALL, ORG, &["x-request-id: golden-MG231"]).await;
    for _ in 0..100 {
        if late.code() == "MG231" {
            break;
        }
        late = world.get_with(ALL, ORG, &["x-request-id: golden-MG231"]).await;
    }
    super::compare("MG231", &late);
}

#[tokio::test]
async fn its_answer_is_cut() {
    read(still(), "MG203", FaultKind::Cut { after_bytes: 10 }).await.expect(502);
}

#[tokio::test]
async fn it_refuses_the_token() {
    let world = still().start().await;
    world.sandbox.set_token("another");
    provoke(&world, "MG204", ALL, ("GET", APPS), &[], "").await.expect(502);
}

#[tokio::test]
async fn it_redirects() {
    let answer = read(still(), "MG205", FaultKind::redirect("https://elsewhere.example/")).await.expect(502);
    assert_eq!(answer.header("location"), None);
}

#[tokio::test]
async fn its_answer_holds_the_token() {
    read(still(), "MG206", FaultKind::echo_token(200)).await.expect(502);
}

#[tokio::test]
async fn its_answer_cannot_be_passed_on() {
    let encoded = FaultKind::status(200).with_header("content-encoding", "gzip");
    read(still(), "MG207", encoded).await.expect(502);
}

#[tokio::test]
async fn there_is_no_memory_for_its_answer() {
    let world = still().set("limits", "answer_bytes = \"64KiB\"\nanswers_bytes = \"80KiB\"").start().await;
    world.sandbox.fault(Fault::always("GET", ORG, HANG));
    let first = world.get(ALL, ORG);
    let second = async {
        while world.received("GET", ORG) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        provoke(&world, "MG208", ALL, ("GET", APPS), &[], "").await.expect(503);
        world.sandbox.clear_faults();
    };
    tokio::join!(first, second);
}

#[tokio::test]
async fn a_precondition_fails_or_cannot_be_looked_at() {
    let world = still().start().await;
    provoke(&world, "MG168", ALL, ("PATCH", ORG), &["if-match: \"old\""], "{}").await.expect(412);
    world.sandbox.fault(Fault::once("GET", ORG, FaultKind::status(418)));
    provoke(&world, "MG211", ALL, ("PATCH", ORG), &["if-match: *"], "{}").await.expect(502);
    assert_eq!(world.received("PATCH", ORG), 0);
}

#[tokio::test]
async fn its_list_cannot_be_narrowed() {
    let world = still().start().await;
    let nameless = FaultKind::status(200).with_body(r#"{"organizations": [{"name": "b"}]}"#);
    world.sandbox.fault(Fault::always("GET", LIST, nameless));
    provoke(&world, "MG210", READER, ("GET", LIST), &[], "").await.expect(502);
}

#[tokio::test]
async fn a_write_in_doubt_holds_its_equals() {
    let (world, first) = write(still(), "MG222", FaultKind::Close { effect: true }).await;
    assert_eq!((first.status, first.header("makegate-outcome")), (502, Some("in-doubt")));
    provoke(&world, "MG161", ALL, ("POST", INVITE), &[], GUEST).await.expect(409);
    assert_eq!(world.received("POST", INVITE), 1);
}

#[tokio::test]
async fn a_write_without_an_answer_in_time_is_in_doubt() {
    let hang = FaultKind::Hang { effect: true };
    let (_, reply) = write(still().set("upstream", "write_attempt = \"3s\""), "MG221", hang).await;
    assert_eq!((reply.status, reply.header("makegate-outcome")), (504, Some("in-doubt")));
}

#[tokio::test]
async fn a_write_is_done_though_its_answer_is_lost() {
    let (_, reply) = write(still(), "MG223", FaultKind::Cut { after_bytes: 10 }).await;
    assert_eq!((reply.status, reply.header("makegate-outcome")), (502, Some("done")));
}
