//! A 200 that cannot be an answer of its operation is passed on to whoever asked, and not stored.

use makegate::sandbox::{Fault, FaultKind};

use super::{USAGE, still};
use crate::support::{ALL, LIST, ORG};

const CONTROLS: &str = "/api/v2/organizations/11/feature-controls";

#[tokio::test]
async fn what_cannot_be_an_answer_is_passed_on_once_and_not_stored() {
    let world = still().start().await;
    let any =
        ["", " ", "null", "7", "\"text\"", "{", "[1", "<html></html>", "{} {}", "\u{feff}{}", "{\"a\":\"\u{1}\"}"];
    let lists = [(LIST, "organizations"), (USAGE, "data"), (CONTROLS, "featureControls")];
    let no_list = |array: &str| {
        ["{}", "[]", "{\"ARRAY\":null}", "{\"ARRAY\":{}}", "{\"ARRAY\":[],\"ARRAY\":[]}"]
            .map(|t| t.replace("ARRAY", array))
    };
    let mut cases: Vec<(&str, String)> = any.iter().map(|body| (ORG, (*body).to_owned())).collect();
    for (target, array) in lists {
        cases.extend(any.iter().map(|body| (target, (*body).to_owned())));
        cases.extend(no_list(array).map(|body| (target, body)));
    }
    for (target, body) in cases {
        let before = world.received("GET", target);
        world.sandbox.fault(Fault::always("GET", target, FaultKind::status(200).with_body(&body)));
        for asked in 1..=2 {
            let reply = world.get(ALL, target).await.expect(200);
            assert_eq!(reply.text(), body, "{target}");
            assert!(!reply.header("cache-status").unwrap().contains("stored"), "{target} {body:?}: {reply:?}");
            assert_eq!(world.received("GET", target), before + asked, "{target} {body:?}");
        }
        world.sandbox.clear_faults();
    }
    // A good one is stored, also with an empty list of codings.
    for (target, body) in [(ORG, "{}"), (USAGE, "{\"data\":[]}"), (CONTROLS, "{\"featureControls\":[]}")] {
        let before = world.received("GET", target);
        let good = FaultKind::status(200).with_body(body).with_header("content-encoding", "");
        world.sandbox.fault(Fault::once("GET", target, good));
        for _ in 0..3 {
            assert_eq!(world.get(ALL, target).await.expect(200).text(), body);
        }
        assert_eq!(world.received("GET", target), before + 1, "{target}");
    }
}
