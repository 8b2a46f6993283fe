//! Promise 1, against an upstream that writes the token in another form: whatever it is encoded as, it does not come through.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use makegate::sandbox::{Fault, FaultKind};

use crate::support::hostile::{Origin, Step, repeated};
use crate::support::{ALL, ORG, Plan, TOKEN, World};

fn each(form: impl Fn(u8) -> String) -> String {
    TOKEN.bytes().map(form).collect()
}

/// Every form that is text, as it stands in the answer.
fn forms() -> Vec<(&'static str, String)> {
    let list = |between: &str| TOKEN.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(between);
    let encoded = |before: &str| STANDARD.encode(format!("{before}{TOKEN}!"));
    let lines =
        |end: &str| encoded("").as_bytes().chunks(20).map(String::from_utf8_lossy).collect::<Vec<_>>().join(end);
    vec![
        ("plain", TOKEN.to_owned()),
        ("upper case", TOKEN.to_uppercase()),
        ("without dashes", TOKEN.replace('-', "")),
        ("upper case without dashes", TOKEN.replace('-', "").to_uppercase()),
        ("with spaces for dashes", TOKEN.replace('-', " ")),
        ("hex", each(|byte| format!("{byte:02x}"))),
        ("HEX with spaces", each(|byte| format!("{byte:02X} "))),
        ("percent", each(|byte| format!("%{byte:02X}"))),
        ("decimal entities", each(|byte| format!("&#{byte};"))),
        ("hex entities", each(|byte| format!("&#x{byte:x};"))),
        ("JSON escapes", each(|byte| format!("\\u{byte:04x}"))),
        ("JSON in JSON", each(|byte| format!("\\\\u{byte:04X}"))),
        ("list", format!("[{}]", list(","))),
        ("list in lines", format!("[{}]", list(",\n  "))),
        ("base64", encoded("")),
        ("base64, one before", encoded("x")),
        ("base64, two before", encoded("xy")),
        ("URL-safe base64", URL_SAFE.encode(format!("?>{TOKEN}?>"))),
        ("base64 in lines", lines("\r\n")),
        ("base64 in lines in JSON", lines("\\n")),
    ]
}

#[tokio::test]
async fn the_token_is_found_in_every_form_that_one_step_gives_it() {
    let world = World::start().await;
    for (name, form) in forms() {
        for status in [200, 404] {
            let body = format!("{{\"before\":\"100%\",\"a\":{{\"b\":\"{form}\"}}}}");
            world.sandbox.fault(Fault::once("*", ORG, FaultKind::status(status).with_body(&body)));
            let reply = world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG206");
            assert!(!reply.text().contains(&form), "{name}");
        }
        // In a header that passes, of a write, too.
        if !form.contains(['\r', '\n']) {
            let kind = FaultKind::status(201).with_header("content-disposition", &form).with_body("{}");
            world.sandbox.fault(Fault::once("*", ORG, kind));
            let reply = world.patch(ALL, ORG, r#"{"name":"x"}"#).await.refused(502, "MG206");
            assert_eq!((reply.header("makegate-outcome"), reply.header("content-disposition")), (Some("done"), None));
        }
    }
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.expect(200);
    // As UTF-16, and far into a long answer.
    for utf16 in [u16::to_le_bytes as fn(u16) -> [u8; 2], u16::to_be_bytes] {
        let body: Vec<u8> = format!("{}{TOKEN}", "x".repeat(300_000)).encode_utf16().flat_map(utf16).collect();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = [head.as_bytes(), &body].concat();
        let origin = Origin::start(vec![repeated(&[Step::Read, Step::write(answer)], 3)]);
        let world = Plan::default().upstream(format!("http://{}", origin.address())).start().await;
        world.get(ALL, ORG).await.refused(502, "MG206");
    }
}
