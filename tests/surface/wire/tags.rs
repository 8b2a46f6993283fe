//! `ETag`, `If-None-Match`, HEAD, and what a caller's own cache is told.

use makegate::sandbox::{Fault, FaultKind};

use super::{APPS, USAGE, header, still};
use crate::support::{ALL, LIST, ORG, READER};

#[tokio::test]
async fn what_may_come_from_memory_has_a_strong_tag_and_answers_304() {
    let world = still().start().await;
    let first = world.get(ALL, USAGE).await.expect(200);
    let tag = header(&first, "etag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "{tag}");
    let matching =
        [tag.clone(), format!("\"a\", {tag}"), format!("W/{tag}"), "*".to_owned(), format!("W/\"b\",{tag}, ")];
    for wanted in &matching {
        let same = world.get_with(ALL, USAGE, &[&format!("if-none-match: {wanted}")]).await.expect(304);
        assert_eq!((same.body.len(), header(&same, "etag")), (0, &*tag), "{wanted}");
        assert_eq!(header(&same, "cache-control"), "private, no-cache");
        assert_eq!(header(&same, "cache-status"), "makegate; hit; ttl=300");
        assert!(same.header("content-type").is_none() && same.header("x-request-id").is_some(), "{same:?}");
    }
    for other in ["\"a\"", "W/\"a\", \"b\"", tag.trim_matches('"'), "\"*\""] {
        let whole = world.get_with(ALL, USAGE, &[&format!("if-none-match: {other}")]).await.expect(200);
        assert_eq!(whole.body, first.body, "{other}");
    }
    assert_eq!(world.received("GET", USAGE), 1);
    assert_eq!(world.last_record().await["status"], 200);
}

#[tokio::test]
async fn a_fetch_can_be_answered_304_too_and_the_upstream_is_not_asked_conditionally() {
    let world = still().start().await;
    let tag = header(&world.get(ALL, USAGE).await, "etag").to_owned();
    world.clock.advance(std::time::Duration::from_secs(301));
    let same = world.get_with(ALL, USAGE, &[&format!("if-none-match: {tag}")]).await.expect(304);
    assert_eq!(header(&same, "cache-status"), "makegate; fwd=stale; fwd-status=200; stored");
    assert!(world.sandbox.received().iter().all(|received| received.header("if-none-match").is_none()));
    let record = world.last_record().await;
    assert_eq!((record["status"].as_u64(), record["bytes"].as_u64()), (Some(304), Some(0)), "{record}");
}

#[tokio::test]
async fn each_body_has_its_own_tag() {
    let world = still().start().await;
    let all = world.get(ALL, LIST).await.expect(200);
    let own = world.get(READER, LIST).await.expect(200);
    assert_ne!(header(&all, "etag"), header(&own, "etag"), "two scopes, two bodies");
    let same = world.get_with(READER, LIST, &[&format!("if-none-match: {}", header(&own, "etag"))]).await.expect(304);
    assert_eq!(same.body.len(), 0);
    world.get_with(READER, LIST, &[&format!("if-none-match: {}", header(&all, "etag"))]).await.expect(200);
}

#[tokio::test]
async fn the_upstreams_own_tag_is_kept_where_it_is_strong() {
    let world = still().start().await;
    for (target, own, kept) in [(USAGE, "\"make-1\"", true), (ORG, "W/\"make-2\"", false)] {
        world.sandbox.fault(Fault::once("GET", target, FaultKind::status(200).with_header("etag", own)));
        let first = world.get(ALL, target).await.expect(200);
        assert_eq!(header(&first, "etag") == own, kept);
        assert!(!header(&first, "etag").starts_with("W/"));
    }
}

#[tokio::test]
async fn head_is_its_get_without_the_body() {
    let world = still().start().await;
    for target in [USAGE, APPS, LIST] {
        let head = world.send(ALL, "HEAD", target, &[], "").await.expect(200);
        let get = world.get(ALL, target).await.expect(200);
        assert_eq!(head.body.len(), 0, "{target}");
        let length = get.body.len().to_string();
        for name in ["content-length", "content-type", "etag", "cache-control"] {
            assert_eq!(head.header(name), get.header(name), "{name} of {target}");
        }
        assert_eq!(head.header("content-length"), Some(&*length));
    }
    assert_eq!(world.received("HEAD", "/**"), 0, "a HEAD fills memory as its GET does");
    assert_eq!(world.received("GET", USAGE), 1);
    let missing = world.send(ALL, "HEAD", "/api/v2/organizations/999", &[], "").await.expect(404);
    assert!(missing.body.is_empty() && missing.header("content-length") != Some("0"), "{missing:?}");
    let refused = world.send(ALL, "HEAD", "/api/v2/scenarios", &[], "").await.expect(404);
    assert!(refused.body.is_empty(), "{refused:?}");
}

/// A tool's own cache would break promise 3 out of sight.
#[tokio::test]
async fn the_upstreams_word_on_caching_never_goes_on() {
    let world = still().start().await;
    let cacheable = FaultKind::status(200)
        .with_header("cache-control", "public, max-age=600")
        .with_header("expires", "Thu, 01 Jan 2099 00:00:00 GMT")
        .with_header("pragma", "cache");
    world.sandbox.fault(Fault::always("*", "/**", cacheable));
    for target in [USAGE, APPS] {
        let reply = world.get(ALL, target).await.expect(200);
        assert_eq!((header(&reply, "cache-control"), reply.header("expires")), ("private, no-cache", None), "{target}");
        assert_eq!(reply.header("pragma"), None);
    }
    let written = world.patch(ALL, ORG, "{}").await.expect(200);
    assert_eq!((written.header("cache-control"), written.header("expires")), (None, None));
}
