//! `If-Match` and `If-Unmodified-Since` on writes: no update is lost between tools that use them.

use makegate::sandbox::{Fault, FaultKind};

use super::{header, still};
use crate::support::{ALL, LIST, ORG, World};

async fn etag(world: &World) -> String {
    header(&world.get(ALL, ORG).await.expect(200), "etag").to_owned()
}

fn named(name: &str) -> String {
    format!("{{\"name\":\"{name}\"}}")
}

#[tokio::test]
async fn a_write_goes_only_to_the_version_that_its_caller_read() {
    let world = still().start().await;
    let first = etag(&world).await;
    let if_first = format!("if-match: {first}");
    let written = world.send(ALL, "PATCH", ORG, &[&if_first], &named("one")).await.expect(200);
    assert_eq!(header(&written, "makegate-outcome"), "done");
    let refused = world.send(ALL, "PATCH", ORG, &[&if_first], &named("two")).await.refused(412, "MG168");
    assert_eq!(refused.header("makegate-outcome"), None, "it had no intent");
    let record = world.last_record().await;
    assert_eq!(
        (&record["kind"], &record["attempts"], &record["upstream_status"]),
        (&"request".into(), &1.into(), &200.into())
    );
    assert_eq!(world.received("PATCH", ORG), 1);
    let second = etag(&world).await;
    assert_ne!(first, second);
    let listed = format!("if-match: \"other\", {second}");
    world.send(ALL, "PATCH", ORG, &[&listed], &named("three")).await.expect(200);
    world.send(ALL, "PATCH", ORG, &["if-match: *"], &named("four")).await.expect(200);
    let delete = format!("{ORG}?confirmed=true");
    let weak = format!("if-match: W/{}", etag(&world).await);
    world.send(ALL, "PATCH", ORG, &[&weak], "{}").await.refused(412, "MG168");
    world.send(ALL, "DELETE", &delete, &["if-match: \"x\""], "").await.refused(412, "MG168");
    let current = format!("if-match: {}", etag(&world).await);
    world.send(ALL, "DELETE", &delete, &[&current], "").await.expect(200);
    world.send(ALL, "DELETE", &delete, &["if-match: *"], "").await.refused(412, "MG168");
}

#[tokio::test]
async fn of_many_writes_to_one_version_one_is_carried_out() {
    let world = still().start().await;
    let if_match = format!("if-match: {}", etag(&world).await);
    let headers = [&*if_match];
    let bodies: Vec<String> = (0..8).map(|n| named(&format!("n{n}"))).collect();
    let writes = bodies.iter().map(|body| world.send(ALL, "PATCH", ORG, &headers, body));
    let replies = futures_util::future::join_all(writes).await;
    let done = replies.iter().filter(|reply| reply.status == 200).count();
    let failed = replies.iter().filter(|reply| reply.status == 412).count();
    assert_eq!((done, failed, world.received("PATCH", ORG)), (1, 7, 1), "{replies:?}");
}

#[tokio::test]
async fn what_cannot_be_checked_is_refused_not_ignored() {
    let world = still().start().await;
    let date = "if-unmodified-since: Sat, 28 Nov 2026 00:00:00 GMT";
    world.send(ALL, "PATCH", ORG, &["if-unmodified-since: yesterday"], "{}").await.refused(400, "MG159");
    world.send(ALL, "PATCH", ORG, &[date], "{}").await.refused(412, "MG168");
    let invite = "/api/v2/organizations/11/invite";
    world.send(ALL, "POST", invite, &["if-match: *"], "{}").await.refused(400, "MG159");
    world.send(ALL, "POST", LIST, &["if-match: *"], "{}").await.refused(400, "MG159");
    assert_eq!((world.received("PATCH", ORG), world.received("POST", invite), world.received("POST", LIST)), (0, 0, 0));
    let dated = |day: &str| {
        let modified = format!("{day} Nov 2026 00:00:00 GMT");
        Fault::once("GET", ORG, FaultKind::status(200).with_header("last-modified", &modified))
    };
    world.sandbox.fault(dated("Fri, 27"));
    world.send(ALL, "PATCH", ORG, &[date], "{}").await.expect(200);
    world.sandbox.fault(dated("Sun, 29"));
    world.send(ALL, "PATCH", ORG, &[date], "{}").await.refused(412, "MG168");
    world.sandbox.fault(Fault::once("GET", ORG, FaultKind::status(418)));
    world.send(ALL, "PATCH", ORG, &["if-match: *"], "{}").await.refused(502, "MG211");
    assert_eq!(world.received("PATCH", ORG), 1);
}

/// Also where answers are not stored, a read says by which tag a write can name its version; and only who may read may ask.
#[tokio::test]
async fn every_resource_with_a_read_has_a_tag_and_only_its_readers_may_ask() {
    const WRITER: &str = "key-writer";
    let world = still().caller(WRITER, "grants = [\"organizations:write\", \"billing:write\"]").start().await;
    let subscription = "/api/v2/organizations/11/subscription";
    let tag = header(&world.get(ALL, subscription).await.expect(200), "etag").to_owned();
    let (fits, differs) = (format!("if-match: {tag}"), "if-match: \"x\"");
    world.send(ALL, "DELETE", subscription, &[differs], "").await.refused(412, "MG168");
    world.send(WRITER, "DELETE", subscription, &[&fits], "").await.refused(403, "MG131");
    world.send(WRITER, "PATCH", ORG, &[differs], "{}").await.refused(403, "MG131");
    assert_eq!((world.received("DELETE", subscription), world.received("PATCH", ORG)), (0, 0));
    world.send(ALL, "DELETE", subscription, &[&fits], "").await.expect(200);
}

/// The first answer comes again, although the resource has changed by it.
#[tokio::test]
async fn a_write_sent_again_with_its_key_is_answered_before_its_precondition_is_checked() {
    let world = still().start().await;
    let headers = [&*format!("if-match: {}", etag(&world).await), "idempotency-key: k1"];
    for replayed in [None, Some("true")] {
        let reply = world.send(ALL, "PATCH", ORG, &headers, &named("once")).await.expect(200);
        assert_eq!(reply.header("idempotent-replayed"), replayed);
    }
    assert_eq!(world.received("PATCH", ORG), 1);
}
