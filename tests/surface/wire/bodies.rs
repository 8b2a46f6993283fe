//! Bodies: taken whole, passed on byte by byte, or refused before anything is spent.

use makegate::sandbox::{Fault, FaultKind};
use serde_json::json;

use super::{APPS, USAGE, still};
use crate::support::{ALL, LIST, ORG, READER, raw, with_key};

/// Numbers beyond 2^31 and 2^53, numbers as text, odd spellings: nothing is read and written anew.
const ODD: &str = "{ \"big\":12345678901234567890123,\"f\" : 1.0,\"e\":1E3,\"id\":\"0011\", \"u\":\"\\u00e9\u{e9}\",\n\"n\":2147483648 }";

#[tokio::test]
async fn bodies_of_the_upstream_come_down_byte_by_byte() {
    let world = still().start().await;
    for (method, target) in [("GET", APPS), ("GET", USAGE), ("GET", USAGE), ("PATCH", ORG)] {
        world.sandbox.fault(Fault::once(method, target, FaultKind::status(200).with_body(ODD)));
        let reply = world.send(ALL, method, target, &[], if method == "GET" { "" } else { "{}" }).await.expect(200);
        assert_eq!(reply.text(), ODD, "{method} {target}");
    }
}

#[tokio::test]
async fn what_is_left_of_a_narrowed_list_keeps_its_spelling_and_nothing_else_is_left() {
    let world = still().start().await;
    let rows = format!(r#"{{"id":11,"odd":{ODD}}},{{"id":13,"odd":1}}"#);
    let body = format!(r#"{{"organizations":[{rows}],"more":1.0}}"#);
    world.sandbox.fault(Fault::once("GET", LIST, FaultKind::status(200).with_body(&body)));
    let reply = world.get(READER, LIST).await.expect(200);
    assert_eq!(reply.text(), format!(r#"{{"organizations":[{{"id":11,"odd":{ODD}}}]}}"#));
}

#[tokio::test]
async fn bodies_of_callers_go_up_byte_by_byte() {
    let world = still().start().await;
    for kind in ["application/json", "application/json; charset=utf-7", "application/merge-patch+json"] {
        world.send(ALL, "PATCH", ORG, &[&format!("content-type: {kind}")], ODD).await.expect(200);
        let received = world.sandbox.received().pop().unwrap();
        assert_eq!(
            (&*received.body, received.header("content-type")),
            (ODD, Some("application/json")),
            "it goes as what was checked"
        );
        assert_eq!(received.header("content-length"), Some(&*ODD.len().to_string()));
    }
    let bare = with_key(ALL, &["connection: close", &format!("content-length: {}", ODD.len())]);
    let text = format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{bare}\r\n{ODD}");
    raw(world.gateway, &text).await.unwrap().expect(200);
    assert_eq!(world.sandbox.received().pop().unwrap().header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn an_operation_that_takes_an_object_takes_nothing_else() {
    let world = still().start().await;
    for body in
        ["", "[]", "\"a\"", "1", "null", "{", "{\"a\":}", "{} {}", "{'a':1}", "\u{feff}", "\u{feff}[]", &nested(129)]
    {
        world.send(ALL, "PATCH", ORG, &["content-type: application/json"], body).await.refused(400, "MG151");
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "application/xml",
        "json",
    ] {
        world.send(ALL, "PATCH", ORG, &[&format!("content-type: {kind}")], "{}").await.refused(415, "MG156");
    }
    for coded in [
        &["content-encoding: gzip"][..],
        &["content-encoding: identity, gzip"],
        &["content-encoding: identity", "content-encoding: gzip"],
    ] {
        world.send(ALL, "PATCH", ORG, coded, "{}").await.refused(415, "MG156");
    }
    assert_eq!(world.sandbox.received().len(), 0);
    for plain in [
        &["content-encoding: identity"][..],
        &["content-encoding:"],
        &["content-encoding: , Identity,", "content-encoding: "],
    ] {
        world.send(ALL, "PATCH", ORG, plain, " {}\n").await.expect(200);
    }
    world.send(ALL, "PATCH", ORG, &[], "{\"name\": \"[[{\\\"[[\"}").await.expect(200);
    world.send(ALL, "PATCH", ORG, &[], "\u{feff}{\"name\": \"a\"}").await.expect(200);
    assert_eq!(world.sandbox.received().pop().unwrap().body, "{\"name\": \"a\"}", "without the byte order mark");
    world.send(ALL, "PATCH", ORG, &[], &nested(128)).await.expect(400);
    assert_eq!(world.sandbox.received().len(), 6, "it is Make's to refuse");
}

/// What the log tells of a write is all that a reader of its body can find in it. Both are so whatever else the body has.
#[tokio::test]
async fn nothing_in_a_body_keeps_its_fields_out_of_the_log() {
    let world = still().start().await;
    let pay = format!("{ORG}/single-payment-create");
    let paid = |more: &str| format!(r#"{{"priceId":5,"quantity":3,"doNotCharge":true{more}}}"#);
    let deep = format!(r#","z":{}1{}"#, "[".repeat(127), "]".repeat(127));
    for more in [
        r#","z":1e999"#, r#","z":"\ud800""#, r#","\ud800":1"#, r#","z":{"a":1,"\u0061":2}"#, r#","priceId":6"#,
        r#","price\u0049d":6"#,
    ] {
        world.post(ALL, &pay, &paid(more)).await.refused(400, "MG151");
    }
    assert_eq!(world.sandbox.received().len(), 0);
    for more in ["", r#","z":1e300"#, r#","z":"\ud83d\ude00""#, r#","PriceId":6"#, &deep] {
        let reply = world.post(ALL, &pay, &paid(more)).await;
        let id = reply.header("x-request-id").unwrap().to_owned();
        let records: Vec<_> = world.log().await.into_iter().filter(|record| record["request"] == *id).collect();
        assert_eq!(records.iter().map(|record| &record["kind"]).collect::<Vec<_>>(), ["intent", "outcome"], "{more}");
        for record in records {
            assert_eq!(record["fields"], json!({"priceId": 5, "quantity": 3, "doNotCharge": true}), "{more}");
        }
    }
    // A recorded field that is nested too deeply for a record is there as a hash.
    world.patch(ALL, ORG, &nested(128)).await.expect(400);
    let last = world.last_record().await;
    assert!(last["fields"]["name"].as_str().is_some_and(|name| name.starts_with("hidden:")), "{last}");
}

/// An object that is nested this deep.
fn nested(depth: usize) -> String {
    format!("{{\"name\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
}

/// What is said of a broken body names a place in it, never its text.
#[tokio::test]
async fn a_refusal_does_not_give_the_body_back() {
    let world = still().start().await;
    let refused = world.patch(ALL, ORG, "{\"s3cret\": s3cret}").await.refused(400, "MG151");
    assert!(!refused.text().contains("s3cret"), "{}", refused.text());
}

#[tokio::test]
async fn an_operation_that_takes_no_body_refuses_one_and_any_takes_any() {
    let world = still().start().await;
    for (method, target) in [("GET", LIST), ("HEAD", LIST), ("GET", APPS), ("DELETE", ORG)] {
        let reply = world.send(ALL, method, target, &["content-type: application/json"], "{}").await.expect(400);
        assert!(method == "HEAD" || reply.code() == "MG152", "{method} {target}");
        world.send(ALL, method, &format!("{target}?confirmed=true"), &["content-length: 0"], "").await.expect(200);
    }
    let free = "/api/v2/organizations/12/subscription-free";
    for body in ["", "{}", "free text"] {
        world.post(ALL, free, body).await.expect(200);
        assert_eq!(world.sandbox.received().pop().unwrap().body, body);
    }
    let packed = world.send(ALL, "POST", free, &["content-encoding: gzip"], "xyz").await;
    packed.refused(415, "MG156");
}

#[tokio::test]
async fn a_body_is_bounded_however_it_comes() {
    let world = still().set("limits", "body_bytes = \"1KiB\"").start().await;
    let object = |bytes: usize| format!("{{\"note\":\"{}\"}}", "x".repeat(bytes - 11));
    world.patch(ALL, ORG, &object(1024)).await.expect(200);
    world.patch(ALL, ORG, &object(1025)).await.refused(413, "MG155");
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let headers = ["transfer-encoding: chunked", "content-type: application/json"];
    world.send(ALL, "PATCH", ORG, &headers, &chunked(&object(1024))).await.expect(200);
    world.send(ALL, "PATCH", ORG, &headers, &chunked(&object(1025))).await.refused(413, "MG155");
    assert_eq!(world.received("PATCH", ORG), 2);
}

#[tokio::test]
async fn who_asks_first_is_told_to_go_on() {
    let world = still().start().await;
    let text = format!(
        "PATCH {ORG} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n{}\r\n{{}}",
        with_key(ALL, &["connection: close"])
    );
    let reply = raw(world.gateway, &text).await.unwrap();
    assert!(reply.status == 100 && reply.text().starts_with("HTTP/1.1 200 OK\r\n"), "{reply:?}");
}

/// Two lengths, a length and chunks, a folded header: what smuggles requests is no request.
#[tokio::test]
async fn messages_that_end_in_two_places_are_refused() {
    let world = still().start().await;
    for lines in [
        "content-length: 2\r\ncontent-length: 3\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "content-length: +2\r\n",
        "content-length: 2\r\n folded\r\n",
        "content-length : 2\r\n",
    ] {
        let text =
            format!("PATCH {ORG} HTTP/1.1\r\nhost: a\r\n{lines}{}\r\n{{}}", with_key(ALL, &["connection: close"]));
        let answered = raw(world.gateway, &text).await;
        assert!(answered.is_none_or(|reply| reply.status == 400), "{lines}");
    }
    assert_eq!(world.sandbox.received().len(), 0);
}
