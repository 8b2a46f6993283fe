//! Promise 1. The token goes to the configured upstream and nowhere else.

use makegate::sandbox::{Fault, FaultKind};

use crate::support::hostile::{Origin, Step};
use crate::support::{ALL, LIST, ORG, Plan, READER, TOKEN, World};

#[tokio::test]
async fn an_answer_that_holds_the_token_is_withheld() {
    let world = World::start().await;
    for status in [200, 400, 500] {
        world.sandbox.fault(Fault::once("*", ORG, FaultKind::echo_token(status)));
        let answer = world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG206");
        assert!(!answer.head.contains(TOKEN) && !answer.text().contains(TOKEN));
    }
    // Also when only a header holds it.
    let fault = FaultKind::status(200).with_header("x-echo", "{authorization}").with_body("{}");
    world.sandbox.fault(Fault::once("*", ORG, fault));
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG206");
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let elsewhere =
        Origin::start(vec![vec![Step::Read, Step::write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")]]);
    let world = World::start().await;
    let location = format!("http://{}/stolen", elsewhere.address());
    for status in [301, 302, 303, 307, 308] {
        let fault = FaultKind::status(status).with_header("location", &location);
        world.sandbox.fault(Fault::once("*", "/**", fault));
        let answer = world.get(ALL, ORG).await.refused(502, "MG205");
        assert!(answer.header("location").is_none());
    }
    world.sandbox.fault(Fault::once("*", "/**", FaultKind::redirect(&location)));
    let answer = world.patch(ALL, ORG, r#"{"name":"x"}"#).await.refused(502, "MG205");
    assert_eq!(answer.header("makegate-outcome"), Some("in-doubt"));
    assert_eq!(elsewhere.connections(), 0, "somebody followed a redirect");
}

#[tokio::test]
async fn the_token_is_in_no_record_answer_or_file() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    world.get(READER, LIST).await.expect(200);
    world.post(ALL, &format!("{ORG}/variables"), r#"{"typeId":2,"name":"v1","value":"x"}"#).await.expect(200);
    world.sandbox.fault(Fault::once("*", ORG, FaultKind::status(401)));
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG204");
    world.sandbox.fault(Fault::always("*", ORG, FaultKind::Reset { effect: false }));
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG203");
    let records = world.log().await;
    assert!(records.len() > 6);
    for entry in std::fs::read_dir(world.dir.path().join("audit")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        assert!(!bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()));
    }
    // Upstream sees the token as the credential, never the caller's key.
    assert!(world.sandbox.received().iter().all(|r| r.headers.iter().all(|(_, value)| !value.contains(ALL))));
}

#[tokio::test]
async fn headers_that_the_caller_made_up_do_not_go_upstream() {
    let world = Plan::default().start().await;
    let headers = [
        "cookie: a=b",
        "x-forwarded-for: 1.2.3.4",
        "user-agent: evil/1",
        "x-http-method-override: DELETE",
        "forwarded: for=x",
    ];
    world.get_with(ALL, ORG, &headers).await.expect(200);
    let seen = world.sandbox.received_of("GET", ORG).remove(0);
    let names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["cookie", "x-forwarded-for", "x-http-method-override", "forwarded"] {
        assert!(!names.contains(&name), "{name} went upstream: {names:?}");
    }
    let agent = seen.headers.iter().find(|(name, _)| name == "user-agent").unwrap();
    assert!(agent.1.starts_with("makegate/"), "{agent:?}");
}
