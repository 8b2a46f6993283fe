//! One request on a page of its own, and a write in doubt from the page to its settlement.

use makegate::sandbox::{Fault, FaultKind};
use serde_json::json;

use crate::support::{ALL, OPERATOR, ORG, Reply, World, send};

async fn ask(world: &World, method: &str, target: &str, headers: &str, body: &str) -> Reply {
    let operator = world.service.operator_addresses()[0];
    send(operator, method, target, &format!("authorization: Bearer {OPERATOR}\r\n{headers}"), body).await
}

async fn page(world: &World, target: &str) -> String {
    ask(world, "GET", target, "accept: text/html\r\n", "").await.expect(200).text().to_owned()
}

const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";

#[tokio::test]
async fn a_write_in_doubt_is_settled_by_a_form_and_its_story_is_told_in_order() {
    let world = World::start().await;
    let target = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &target, FaultKind::Reset { effect: true }));
    let answer = world.post(ALL, &target, "{}").await.expect(502);
    let id = answer.header("x-request-id").unwrap().to_owned();

    let doubts = page(&world, "/doubts").await;
    let action = format!("action=\"/doubts/{}\"", id.replace('-', "%2D"));
    for part in [&*action, "name=\"note\"", "value=\"not-done\"", "What a look would prove"] {
        assert!(doubts.contains(part), "{part}: {doubts}");
    }
    let file = world.file().display().to_string();
    assert!(doubts.contains(&format!("makegate doubts settle {id} --as done --config {file}")), "{doubts}");

    // Another site's page cannot send the form, and one that says nothing settles nothing.
    let doubt = format!("/doubts/{id}");
    ask(&world, "POST", &doubt, &format!("{FORM}origin: http://evil.example\r\n"), "as=done").await.expect(403);
    ask(&world, "POST", &doubt, FORM, "note=x").await.expect(400);
    let done = ask(&world, "POST", &doubt, FORM, "as=done&note=it+is+there").await.expect(303);
    let then = done.header("location").unwrap().to_owned();
    let told = page(&world, &then).await;
    assert!(told.contains("Settled as done by operator") && told.contains("it is there"), "{told}");
    assert!(!told.contains(&action), "{told}");

    let story = ask(&world, "GET", &format!("/audit/record.json?request={id}"), "", "").await.expect(200).json();
    let records = story["records"].as_array().unwrap();
    let kinds: Vec<_> = records.iter().map(|record| record["kind"].clone()).collect();
    assert_eq!(kinds, ["intent", "outcome", "settlement"]);
    for record in records {
        let by_number = ask(&world, "GET", &format!("/audit/record.json?seq={}", record["seq"]), "", "").await;
        assert_eq!(by_number.expect(200).json(), story, "each record leads to the whole write");
    }
    let shown = page(&world, &format!("/audit/record?request={id}")).await;
    for record in records {
        let proof = format!("/audit/proof.json?seq={}", record["seq"]);
        let proof = ask(&world, "GET", &proof, "", "").await.expect(200).json();
        let hash = proof["hash"].as_str().or_else(|| proof["leaf_hash"].as_str()).unwrap_or_else(|| panic!("{proof}"));
        assert!(shown.contains(hash), "the page says what the command must print: {hash}");
        assert!(shown.contains(&format!("/audit/proof?seq={}", record["seq"])), "{shown}");
    }
    assert!(shown.contains("operator settled it as done: it is there."), "{shown}");
    for bad in ["/audit/record", "/audit/record?seq=1&request=a", "/audit/record?seq=x"] {
        ask(&world, "GET", bad, "", "").await.expect(400);
    }
    assert!(page(&world, "/audit/record?seq=99999").await.contains("The log has no such record"));
}

/// `curl -d` calls whatever it sends a form.
#[tokio::test]
async fn json_settles_whatever_its_media_type_says() {
    let world = World::start().await;
    let target = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &target, FaultKind::Reset { effect: true }));
    let id = world.post(ALL, &target, "{}").await.expect(502).header("x-request-id").unwrap().to_owned();
    let settled = ask(&world, "POST", &format!("/doubts/{id}"), FORM, r#"{"as": "not-done"}"#).await.expect(200);
    assert_eq!(settled.json(), json!({"request": id, "as": "not-done"}));
}

#[tokio::test]
async fn a_refused_record_leads_to_its_explanation_and_filters_are_form_fields() {
    let world = World::start().await;
    world.get(crate::support::READER, "/api/v2/organizations/13").await.refused(403, "MG132");
    let shown = page(&world, "/audit?refusal=MG132").await;
    let explain = "/explain?caller=reader&amp;method=GET&amp;target=%2Fapi%2Fv2%2Forganizations%2F13";
    assert!(shown.contains(explain), "{shown}");
    for filter in makegate::audit::FIELD_FILTERS {
        assert!(shown.contains(&format!("name=\"{}\"", filter.name)), "{} is no field of the form", filter.name);
    }
    let explained = page(&world, &explain.replace("&amp;", "&")).await;
    assert!(explained.contains("aria-current=\"step\"") && explained.contains("This step decides."), "{explained}");
    let caller = page(&world, "/callers?name=reader").await;
    assert!(caller.contains("/audit?caller=reader&amp;refusal=MG132"), "{caller}");
}
