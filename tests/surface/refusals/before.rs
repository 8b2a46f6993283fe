//! Refusals of steps 2 to 8: before anything is spent.

use std::time::Duration;

use super::{compare, id_of, keyed, only, provoke, still};
use crate::support::issuer::{Platform, claims};
use crate::support::tls::{self, Authority};
use crate::support::{ALL, LIST, ORG, READER, half_closed, new_dir, raw, send, until};

#[tokio::test]
async fn targets() {
    let world = still().start().await;
    provoke(&world, "MG101", ALL, ("GET", "/api/v2/organizations/"), &[], "").await.expect(400);
    let long = format!("{LIST}?x={}", "y".repeat(8000));
    provoke(&world, "MG102", ALL, ("GET", &long), &[], "").await.expect(414);
    provoke(&world, "MG103", ALL, ("GET", &format!("{LIST}?pg[limit]=1&pg%5Blimit%5D=2")), &[], "").await.expect(400);
    provoke(&world, "MG121", ALL, ("GET", "/api/v2/scenarios"), &[], "").await.expect(404);
    provoke(&world, "MG122", ALL, ("PUT", ORG), &[], "{}").await.expect(405);
    provoke(&world, "MG123", ALL, ("TRACE", ORG), &[], "").await.expect(501);
    // These cannot be read, so their id is always the gateway's own, and they leave no record.
    let large = format!("GET {LIST} HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    for (code, text) in [("MG107", "nonsense\r\n\r\n"), ("MG108", &large)] {
        let mut reply = raw(world.gateway, text).await.unwrap();
        let (own, told) = (reply.header("x-request-id").unwrap().to_owned(), id_of(code));
        reply.head = reply.head.replace(&own, &told);
        reply.body = reply.text().replace(&own, &told).into_bytes();
        compare(code, &reply);
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn credentials() {
    let world = still().start().await;
    let twice = [&*format!("authorization: Token {ALL}"), &*format!("authorization: Bearer {ALL}")];
    compare("MG104", &send(world.gateway, "GET", LIST, &only("MG104", &twice), "").await.expect(400));
    let id = only("MG105", &[]);
    let bare = format!("GET {LIST} HTTP/1.1\r\n{id}connection: close\r\n\r\n");
    compare("MG105", &raw(world.gateway, &bare).await.unwrap().expect(400));
    provoke(&world, "MG106", ALL, ("GET", &format!("{LIST}?token={ALL}")), &[], "").await.expect(400);
    compare("MG111", &send(world.gateway, "GET", LIST, &only("MG111", &[]), "").await.expect(401));
    provoke(&world, "MG112", "unknown", ("GET", LIST), &[], "").await.expect(401);
    assert_eq!(world.sandbox.received().len(), 0);
}

/// A caller `NAME` whose only key, `key-NAME`, has these terms.
fn with_terms(name: &str, terms: &str) -> String {
    let hash = makegate::hash::hex(&makegate::hash::sha256(format!("key-{name}").as_bytes()));
    format!("[[caller]]\nname = \"{name}\"\nkeys = [{{ hash = \"sha256:{hash}\", {terms} }}]\ngrants = [\"*\"]\n")
}

#[tokio::test]
async fn keys_with_terms() {
    let callers = with_terms("past", "expires = \"2026-01-31\"")
        + &with_terms("elsewhere", "expires = \"2026-01-31\", from = [\"192.0.2.0/24\"]");
    let world = still().tables(&callers).start().await;
    provoke(&world, "MG113", "key-past", ("GET", LIST), &[], "").await.expect(401);
    provoke(&world, "MG114", "key-elsewhere", ("GET", LIST), &[], "").await.expect(401);
    for (record, name) in world.records().await.iter().zip(["key-past", "key-elsewhere"]) {
        let key = makegate::hash::hex(&makegate::hash::sha256(name.as_bytes()));
        assert_eq!(record["key"], key[..8], "{record}");
        assert!(record.get("caller").is_none(), "{record}");
    }
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn tokens() {
    let platform = Platform::new("a");
    let dir = new_dir();
    std::fs::write(dir.path().join("jwks.json"), platform.jwks()).unwrap();
    let issuer = |name: &str, keys: &str| {
        format!("[[issuer]]\nname = \"{name}\"\nissuer = \"https://{name}.test\"\naudience = \"makegate\"\n{keys}\n")
    };
    let tables =
        issuer("issuer", "jwks_file = \"jwks.json\"") + &issuer("absent", "jwks_url = \"http://127.0.0.1:1/jwks\"");
    let plan = still().tables(&tables);
    let now = plan.now().as_second();
    let world = plan.start_in(dir).await;
    let token = |seconds: i64, issuer: &str| {
        let mut claims = claims(now, seconds);
        claims["iss"] = format!("https://{issuer}.test").into();
        platform.token("ES256", &claims)
    };
    provoke(&world, "MG115", &token(600, "nobody"), ("GET", LIST), &[], "").await.expect(401);
    provoke(&world, "MG116", &token(-600, "issuer"), ("GET", LIST), &[], "").await.expect(401);
    provoke(&world, "MG117", &token(600, "issuer"), ("GET", LIST), &[], "").await.expect(401);
    provoke(&world, "MG119", &token(600, "absent"), ("GET", LIST), &[], "").await.expect(503);
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn certificates() {
    let authority = Authority::new();
    let files = [("callers.pem", &*authority.pem)];
    let (world, roots) = tls::world(still(), ", client_ca = \"callers.pem\"", &files).await;
    let id = |code: &str| format!("x-request-id: golden-{code}");
    let nobody = authority.identity("all", &["tool.internal"]);
    compare("MG118", &tls::get(&world, &roots, Some(&nobody), LIST, &[&id("MG118")]).await.unwrap().expect(401));
    let all = authority.identity("", &["all"]);
    let foreign = [&*id("MG134"), "origin: https://evil.example"];
    compare("MG134", &tls::get(&world, &roots, Some(&all), LIST, &foreign).await.unwrap().expect(403));
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn rights() {
    let world = still().caller("scoped", "grants = [\"*\"]\norganizations = [11]\nrate = \"600/min\"").start().await;
    provoke(&world, "MG131", READER, ("GET", &format!("{ORG}/variables")), &[], "").await.expect(403);
    provoke(&world, "MG132", READER, ("GET", "/api/v2/organizations/13"), &[], "").await.expect(403);
    provoke(&world, "MG133", "scoped", ("POST", LIST), &[], "{}").await.expect(403);
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn bodies() {
    let world = still().start().await;
    provoke(&world, "MG151", ALL, ("PATCH", ORG), &[], "[]").await.expect(400);
    provoke(&world, "MG152", ALL, ("DELETE", ORG), &[], "{}").await.expect(400);
    let if_match = ["if-match: *"];
    provoke(&world, "MG159", ALL, ("POST", &format!("{ORG}/invite")), &if_match, "{}").await.expect(400);
    provoke(&world, "MG155", ALL, ("PATCH", ORG), &["content-length: 1048577"], "").await.expect(413);
    provoke(&world, "MG156", ALL, ("PATCH", ORG), &["content-type: text/plain"], "{}").await.expect(415);
    assert_eq!(world.sandbox.received().len(), 0);
}

/// The caller closes its half of the connection in the middle of the body, but still listens.
#[tokio::test]
async fn a_body_that_is_cut() {
    let world = still().start().await;
    let headers = keyed("MG153", ALL);
    let text = format!("PATCH {ORG} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: 100\r\n\r\n{{\"name\":");
    compare("MG153", &half_closed(world.gateway, &text).await.unwrap().expect(400));
}

#[tokio::test]
async fn a_body_that_comes_too_slowly() {
    let world = still().set("limits", "body_gap = \"50ms\"").start().await;
    let headers = keyed("MG154", ALL);
    let text = format!(
        "PATCH {ORG} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: 100\r\n\r\n{{\"name\":"
    );
    let waits = async {
        until(|| world.service.gateway().under_way() == 1).await;
        world.clock.advance(Duration::from_millis(51));
    };
    let (reply, ()) = tokio::join!(raw(world.gateway, &text), waits);
    compare("MG154", &reply.unwrap().expect(408));
}

#[tokio::test]
async fn memory_that_has_nothing() {
    let world = still().start().await;
    provoke(&world, "MG191", ALL, ("GET", LIST), &["cache-control: only-if-cached"], "").await.expect(504);
    assert_eq!(world.sandbox.received().len(), 0);
}
