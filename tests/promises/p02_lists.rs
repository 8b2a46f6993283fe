//! Promise 2, against an upstream that is not believed: whatever it answers to a list, a caller with a scope sees its own organizations
//! in it, or a refusal.

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};
use serde_json::Value;

use crate::support::hostile::{Origin, Step, repeated};
use crate::support::{ALL, LIST, Plan, READER, Reply, World};

/// What a foreign organization could be recognized by.
const FOREIGN: [&str; 2] = ["Foreign", "\"id\":99"];
const OWN: &str = r#"{"id":11,"name":"Own"}"#;
const GOOD: &str = r#"{"organizations":[{"id":11,"name":"Own"},{"id":99,"name":"Foreign"}],"pg":{"limit":10000}}"#;

/// Lists that a reader could take for another list than the gateway does, and what is no list.
const ODD: [&str; 27] = [
    r#"{"organizations":[{"id":11,"id":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":99,"id":11,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11,"\u0069d":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"\u0069\u0064":11,"id":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11,"ID":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11,"name":"Own","name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":"11","name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11.0,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":1.1e1,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11e0,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":18446744073709551627,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":-11,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":[11],"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":{"id":11},"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":null,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"name":"Foreign"}]}"#,
    r#"{"organizations":[[{"id":11,"name":"Own"},{"id":99,"name":"Foreign"}]]}"#,
    r#"{"organizations":{"11":{"id":11,"name":"Foreign"}}}"#,
    r#"{"organizations":[{"id":11}],"organizations":[{"id":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11}],"organi\u007aations":[{"id":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11}],"Organizations":[{"id":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11}]} {"organizations":[{"id":99,"name":"Foreign"}]}"#,
    r#"{"organizations":[{"id":11},{"id":99,"name":"Foreign""#,
    r#"[{"id":11},{"id":99,"name":"Foreign"}]"#,
    "\u{feff}{\"organizations\":[{\"id\":99,\"name\":\"Foreign\"}]}",
    "null",
    "",
];

fn answer(status: u16, body: &str) -> FaultKind {
    FaultKind::status(status).with_body(body)
}

#[track_caller]
fn shows_nothing_foreign(reply: &Reply, what: &str) {
    let body = String::from_utf8_lossy(&reply.body);
    assert!(FOREIGN.iter().all(|foreign| !body.contains(foreign)), "{what}: {reply:?}");
    assert!(!reply.head.contains("Foreign"), "{what}: {reply:?}");
}

#[tokio::test]
async fn a_list_that_could_be_read_in_two_ways_is_refused() {
    let world = World::start().await;
    for body in ODD {
        world.sandbox.fault(Fault::always("GET", LIST, answer(200, body)));
        for directive in ["accept: */*", "cache-control: no-store"] {
            let reply = world.get_with(READER, LIST, &[directive]).await.refused(502, "MG210");
            shows_nothing_foreign(&reply, body);
        }
        world.sandbox.clear_faults();
    }
    // Each of them was asked for and not stored: the next list is the sandbox's.
    assert_eq!(world.received("GET", LIST), 2 * ODD.len());
    world.get(READER, LIST).await.expect(200);
}

/// As bytes that are no text, which the sandbox cannot send.
#[tokio::test]
async fn a_list_that_is_not_text_is_refused() {
    let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin = b"{\"organizations\":[{\"id\":11,\"name\":\"\xff\"},{\"id\":99,\"name\":\"Foreign\"}]}".to_vec();
    let surrogate = br#"{"organizations":[{"id":11,"\ud800":1},{"id":99,"name":"Foreign"}]}"#.to_vec();
    for (body, status) in [(utf16, "200 OK"), (latin.clone(), "200 OK"), (surrogate, "200 OK"), (latin, "500 Error")] {
        let mut bytes =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len())
                .into_bytes();
        bytes.extend(&body);
        let origin = Origin::start(vec![repeated(&[Step::Read, Step::write(bytes)], 9)]);
        let world = Plan::default().upstream(format!("http://{}", origin.address())).start().await;
        let reply = world.get(READER, LIST).await.refused(502, "MG210");
        shows_nothing_foreign(&reply, status);
    }
}

#[tokio::test]
async fn of_a_list_that_is_no_200_only_an_error_passes() {
    let world = World::start().await;
    let errors = [
        "",
        "error code: 1010",
        "<html><h1>502 Bad Gateway</h1></html>",
        r#"{"message":"Access denied.","code":"SC403"}"#,
        r#"{"detail":["one","two"],"message":"m","code":"IM005","suberrors":[{"message":"m"}]}"#,
    ];
    let others = [
        GOOD,
        r#"{"message":"m","organizations":[{"id":99,"name":"Foreign"}]}"#,
        r#"{"message":"{\"id\":99,\"name\":\"Foreign\"}"}"#,
        r#"[{"id":99,"name":"Foreign"}]"#,
        r#"{"organizations":[{"id":99,"name":"Foreign""#,
        "\u{feff}{\"id\":99,\"name\":\"Foreign\"}",
        "<script>list = [{\"id\":99,\"name\":\"Foreign\"}]</script>",
    ];
    for status in [201, 202, 203, 206, 400, 403, 404, 410, 418, 429, 500, 503, 520] {
        for (body, may_pass) in errors.iter().map(|body| (body, true)).chain(others.iter().map(|body| (body, false))) {
            world.sandbox.fault(Fault::always("GET", LIST, answer(status, body)));
            let reply = world.get_with(READER, LIST, &["cache-control: no-store"]).await;
            if may_pass && status >= 400 {
                assert_eq!(reply.clone().expect(status).text(), *body);
            } else {
                reply.clone().refused(502, "MG210");
            }
            shows_nothing_foreign(&reply, body);
            world.sandbox.clear_faults();
            world.clock.advance(Duration::from_secs(700)); // after a 429
        }
    }
}

#[tokio::test]
async fn a_narrowed_list_carries_nothing_else_that_describes_the_whole_list() {
    let world = World::start().await;
    let list = r#"{"organizations":[OWN,{"id":99,"name":"Foreign"}],"pg":{"limit":10000,"returnTotalCount":{"name":"Foreign"},"totalCount":2},"first":{"id":99,"name":"Foreign"}}"#;
    let kind = answer(200, &list.replace("OWN", OWN))
        .with_header("content-disposition", "attachment; filename=\"Foreign.json\"")
        .with_header("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT")
        .with_header("etag", "\"whole\"")
        .with_header("content-language", "en");
    world.sandbox.fault(Fault::always("GET", LIST, kind));
    for answer in ["miss", "hit"] {
        let reply = world.get(READER, LIST).await.expect(200);
        shows_nothing_foreign(&reply, answer);
        assert_eq!(reply.text(), format!(r#"{{"organizations":[{OWN}],"pg":{{"limit":10000}}}}"#));
        for name in ["content-disposition", "last-modified", "content-language"] {
            assert_eq!(reply.header(name), None, "{answer}");
        }
        assert_ne!(reply.header("etag"), Some("\"whole\""));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(world.last_record().await["answer"], answer);
    }
}

/// A caller without a scope stored it: a list in every way, but one that cannot be narrowed.
#[tokio::test]
async fn a_stored_list_that_cannot_be_narrowed_is_asked_for_anew_once() {
    let world = World::start().await;
    let odd = r#"{"organizations":[{"id":11,"name":"Own"},{"id":"99","name":"Foreign"}],"pg":{}}"#;
    let whole = format!("{LIST}?pg[limit]=10000");
    let store = async || {
        world.service.gateway().cache.purge_all();
        world.sandbox.fault(Fault::once("GET", LIST, answer(200, odd)));
        world.get(ALL, &whole).await.expect(200);
        let before = world.received("GET", LIST);
        assert_eq!(world.get(ALL, &whole).await.expect(200).text(), odd, "it is stored");
        assert_eq!(world.received("GET", LIST), before);
        before
    };
    // The new one is good, and stored.
    let before = store().await;
    world.get_with(READER, LIST, &["cache-control: only-if-cached"]).await.refused(504, "MG191");
    for _ in 0..3 {
        let list: Value = world.get(READER, LIST).await.expect(200).json();
        assert_eq!(list["organizations"].as_array().unwrap().len(), 2);
    }
    assert_eq!(world.received("GET", LIST), before + 1);
    // The new one is no better: each request asks once, and those that come together ask together.
    let before = store().await;
    world.sandbox.fault(Fault::always("GET", LIST, answer(200, odd)));
    shows_nothing_foreign(&world.get(READER, LIST).await.refused(502, "MG210"), odd);
    assert_eq!(world.received("GET", LIST), before + 1);
    world.sandbox.clear_faults();
    let before = store().await;
    world.sandbox.fault(Fault::always("GET", LIST, answer(200, odd)));
    let herd = futures_util::future::join_all((0..20).map(|_| world.get(READER, LIST))).await;
    for reply in herd {
        shows_nothing_foreign(&reply.refused(502, "MG210"), odd);
    }
    let asked = world.received("GET", LIST) - before;
    assert!((1..=20).contains(&asked), "{asked}");
}

/// An old list that cannot be narrowed does not stand in for an upstream that fails.
#[tokio::test]
async fn a_stale_list_that_cannot_be_narrowed_stands_in_for_nothing() {
    let world = Plan::default().set("cache.lifetime", "organizations = \"10s\"").start().await;
    world.sandbox.fault(Fault::once("GET", LIST, answer(200, r#"{"organizations":[{"name":"Foreign"}]}"#)));
    world.get(ALL, &format!("{LIST}?pg[limit]=10000")).await.expect(200);
    world.clock.advance(Duration::from_secs(11));
    world.sandbox.fault(Fault::always("GET", LIST, FaultKind::status(500)));
    let reply = world.get(READER, LIST).await.expect(500);
    shows_nothing_foreign(&reply, "500");
}
