//! Promise 4, and 5: a write in doubt is settled once, by an operator or by a look at its effect, and nothing is sent
//! twice for that.

use std::time::Duration;

use makegate::audit::Doubt;
use makegate::clock::Clock;
use makegate::quota::BucketId;
use makegate::reconcile::{DoubtProgress, DoubtReason};
use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::support::hostile::{Origin, Step, repeated};
use crate::support::{ALL, LIST, OPERATOR, ORG, OTHER, Plan, TOO, VARIABLES, World, send};

const NO_STORE: &[&str] = &["cache-control: no-store"];
const WINDOW: Duration = Duration::from_secs(2 * 60 + 11);

/// A write, and the read that shows its effect.
struct Case {
    operation: &'static str,
    method: &'static str,
    target: &'static str,
    body: &'static str,
    read: &'static str,
}

const CONTROLS: &str = "/api/v2/organizations/11/feature-controls";

const fn case(
    operation: &'static str,
    method: &'static str,
    target: &'static str,
    body: &'static str,
    read: &'static str,
) -> Case {
    Case { operation, method, target, body, read }
}

const CASES: [Case; 5] = [
    case("organizations.update", "PATCH", ORG, r#"{"name":"Named anew","timezoneId":7}"#, ORG),
    case("organizations.delete", "DELETE", "/api/v2/organizations/12?confirmed=true", "", OTHER),
    case(
        "variables.update",
        "PATCH",
        "/api/v2/organizations/11/variables/there",
        r#"{"value":"whispered"}"#,
        VARIABLES,
    ),
    case("variables.delete", "DELETE", "/api/v2/organizations/11/variables/there?confirmed=true", "", VARIABLES),
    case("feature-controls.update", "PATCH", CONTROLS, r#"{"id":1,"enabled":true}"#, CONTROLS),
];

impl Case {
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
}

/// One attempt per request, and an existing variable.
fn plan() -> Plan {
    Plan::default().set("limits", "attempts = 1\nbreaker_failures = 0").clock(Clock::frozen())
}

async fn prepared(plan: Plan) -> World {
    let world = plan.start().await;
    world.post(TOO, VARIABLES, r#"{"name":"there","typeId":2,"value":"old"}"#).await.expect(200);
    world
}

/// Puts the write in doubt and returns its request id.
async fn doubtful(world: &World, case: &Case, effect: bool) -> String {
    world.sandbox.fault(Fault::once(case.method, case.path(), FaultKind::Reset { effect }));
    let answer = world.send(ALL, case.method, case.target, &[], case.body).await.refused(502, "MG222");
    answer.header("x-request-id").unwrap().to_owned()
}

/// Has a request answered.
async fn answered(world: &World) {
    world.get_with(TOO, LIST, NO_STORE).await.expect(200);
}

fn doubt(world: &World, id: &str) -> Option<Doubt> {
    world.service.gateway().log.doubts().list().into_iter().find(|doubt| doubt.request.as_str() == id)
}

/// Waits until this holds, while rounds of looks go on.
async fn until(world: &World, what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        world.clock.advance(Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("timed out waiting for {what}");
}

/// Waits until the doubt is open for this reason after this many looks, and checks that further rounds do not change
/// that. Takes 3 s of this clock.
async fn stays(world: &World, id: &str, looks: u32, why: DoubtReason) {
    let doubtful = doubt(world, id).expect("the write is in doubt");
    let now = || world.service.reconciler().progress(&world.service.gateway().policy(), &doubtful);
    let expected = DoubtProgress { looks, why };
    until(world, &format!("{why:?} after {looks} looks"), || now() == expected).await;
    for _ in 0..60 {
        world.clock.advance(Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(doubt(world, id).is_some(), "settled without proof");
    assert_eq!(now(), expected);
}

/// Waits until it is settled and returns the settlement.
async fn settled(world: &World, id: &str) -> Value {
    until(world, "the settlement", || doubt(world, id).is_none()).await;
    let records = world.records().await;
    let mut settlements = records.into_iter().filter(|r| r["kind"] == "settlement" && r["request"] == id);
    let settlement = settlements.next().expect("a settlement");
    assert!(settlements.next().is_none(), "settled twice");
    settlement
}

async fn operator(world: &World, method: &str, target: &str, body: &str) -> crate::support::Reply {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(world.service.operator_addresses()[0], method, target, &key, body).await
}

#[tokio::test]
async fn an_effect_is_found_and_settled_as_done() {
    for case in CASES {
        let world = prepared(plan()).await;
        let id = doubtful(&world, &case, true).await;
        let reads = world.received("GET", case.read);
        answered(&world).await;
        world.clock.advance(Duration::from_secs(11));
        let settlement = settled(&world, &id).await;
        assert_eq!(settlement["outcome"], "done", "{}: {settlement}", case.operation);
        assert_eq!(settlement["operation"], case.operation);
        let detail = settlement["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("looked: GET {} answered ", case.read)), "{detail}");
        let status = if case.operation == "organizations.delete" { 404 } else { 200 };
        assert_eq!((&settlement["upstream_status"], settlement.get("peer")), (&json!(status), None));
        assert_eq!(world.received("GET", case.read), reads + 1, "{}: one look is enough", case.operation);
        assert_eq!(world.received(case.method, case.path()), 1, "{}", case.operation);
        let log = serde_json::to_string(&world.log().await).unwrap();
        assert!(!log.contains("whispered"), "a value was logged: {log}");
    }
}

#[tokio::test]
async fn a_write_without_effect_stays_in_doubt_unless_it_deletes_an_id() {
    for case in CASES {
        let world = prepared(plan()).await;
        let id = doubtful(&world, &case, false).await;
        answered(&world).await;
        world.clock.advance(Duration::from_secs(11));
        stays(&world, &id, 1, DoubtReason::Unproved).await;
        world.clock.advance(Duration::from_secs(31));
        stays(&world, &id, 2, DoubtReason::Unproved).await;
        world.clock.advance(WINDOW);
        if case.operation == "organizations.delete" {
            world.delete(ALL, case.target).await.refused(409, "MG161");
            let settlement = settled(&world, &id).await;
            assert_eq!((&settlement["outcome"], &settlement["upstream_status"]), (&json!("rejected"), &json!(200)));
            // The hold is over.
            world.delete(ALL, case.target).await.expect(200);
            assert_eq!(world.received("DELETE", case.path()), 2);
            continue;
        }
        stays(&world, &id, 3, DoubtReason::Unproved).await;
        world.clock.advance(Duration::from_hours(24));
        stays(&world, &id, 3, DoubtReason::GivenUp).await;
        assert_eq!(world.received(case.method, case.path()), 1, "{}: sent again", case.operation);
    }
}

#[tokio::test]
async fn a_different_value_than_requested_proves_nothing() {
    let world = prepared(plan()).await;
    let id = doubtful(&world, &CASES[0], true).await;
    world.patch(TOO, ORG, r#"{"name":"Somebody else's"}"#).await.expect(200);
    let variable = doubtful(&world, &CASES[2], true).await;
    let theirs = r#"{"value":"theirs"}"#;
    world.patch(TOO, CASES[2].target, theirs).await.expect(200);
    // Another variable has the requested value, but it is not the one.
    world.post(TOO, VARIABLES, r#"{"name":"other","typeId":2,"value":"whispered"}"#).await.expect(200);
    world.clock.advance(Duration::from_secs(11));
    stays(&world, &id, 1, DoubtReason::Unproved).await;
    stays(&world, &variable, 1, DoubtReason::Unproved).await;
}

#[tokio::test]
async fn creates_nested_bodies_and_rows_without_a_look_are_left_to_operators() {
    let world = prepared(plan()).await;
    let nested = Case { body: r#"{"value":[1]}"#, ..CASES[2] };
    // Make never sees this create, and what it asks for is there already.
    let create = r#"{"name":"there","typeId":2,"value":"old"}"#;
    let create = case("variables.create", "POST", VARIABLES, create, VARIABLES);
    let pay =
        case("payments.create", "POST", "/api/v2/organizations/11/single-payment-create", r#"{"priceId":1}"#, ORG);
    for case in [nested, create, pay] {
        let id = doubtful(&world, &case, false).await;
        answered(&world).await;
        stays(&world, &id, 0, DoubtReason::Unprovable).await;
        world.clock.advance(WINDOW);
        stays(&world, &id, 0, DoubtReason::Unprovable).await;
    }
    let page = operator(&world, "GET", "/doubts.json", "").await.expect(200).json();
    assert_eq!((&page["doubts"][0]["looks"], &page["doubts"][0]["why"]), (&json!(0), &json!("a look cannot prove it")));
}

#[tokio::test]
async fn there_are_no_looks_while_the_upstream_is_down() {
    let world = prepared(plan()).await;
    let id = doubtful(&world, &CASES[0], true).await;
    world.sandbox.fault(Fault::always("*", "/**", FaultKind::Reset { effect: false }));
    world.get_with(TOO, OTHER, NO_STORE).await.refused(502, "MG203");
    world.clock.advance(Duration::from_secs(11));
    stays(&world, &id, 0, DoubtReason::Unanswered).await;
    world.clock.advance(WINDOW);
    stays(&world, &id, 0, DoubtReason::Unanswered).await;
    assert_eq!(world.received("GET", ORG), 0);
    // A 5xx is not a usable answer either.
    world.sandbox.clear_faults();
    world.sandbox.fault(Fault::once("GET", OTHER, FaultKind::status(503)));
    world.get_with(TOO, OTHER, NO_STORE).await.expect(503);
    stays(&world, &id, 0, DoubtReason::Unanswered).await;
    assert_eq!(world.received("GET", ORG), 0);
    answered(&world).await;
    assert_eq!(settled(&world, &id).await["outcome"], "done");
}

#[tokio::test]
async fn without_other_requests_the_look_itself_probes_once_the_doubt_window_is_over() {
    let world = prepared(plan()).await;
    let id = doubtful(&world, &CASES[0], true).await;
    world.clock.advance(Duration::from_secs(30));
    stays(&world, &id, 0, DoubtReason::Unanswered).await;
    world.clock.advance(WINDOW);
    assert_eq!(settled(&world, &id).await["outcome"], "done");
}

#[tokio::test]
async fn there_are_no_looks_before_make_has_settled() {
    let world = prepared(plan()).await;
    let id = doubtful(&world, &CASES[0], true).await;
    answered(&world).await;
    stays(&world, &id, 0, DoubtReason::Early).await;
    world.clock.advance(Duration::from_secs(2));
    stays(&world, &id, 0, DoubtReason::Early).await;
    assert_eq!(world.received("GET", ORG), 0);
}

#[tokio::test]
async fn looks_only_spend_quota_that_nobody_needs() {
    let tight = plan().set("upstream", "quota = \"10/min\"\nquota_wait = \"300ms\"");
    let world = prepared(tight).await;
    let id = doubtful(&world, &CASES[0], true).await;
    for _ in 0..3 {
        world.get_with(TOO, ORG, NO_STORE).await.expect(200);
    }
    world.clock.advance(Duration::from_secs(11));
    stays(&world, &id, 0, DoubtReason::NoQuota).await;
    assert_eq!(world.received("GET", ORG), 3);
    world.clock.advance(Duration::from_secs(62));
    assert_eq!(settled(&world, &id).await["outcome"], "done");
    let spent = |world: &World| {
        let view = world.service.gateway().quota.view(BucketId::Organization(11));
        let own = view.callers.into_iter().find(|caller| &*caller.name == "(makegate)").expect("its own account");
        (view.used, own.spent)
    };
    assert_eq!(spent(&world), (1, 1));
    assert_eq!(spent(&world.restart().await), (1, 1), "its slot is journalled");
}

#[tokio::test]
async fn a_restart_keeps_everything_that_a_look_needs() {
    for number in [2, 3, 4] {
        let case = &CASES[number];
        let world = prepared(plan()).await;
        let id = doubtful(&world, case, true).await;
        let world = world.restart().await;
        answered(&world).await;
        world.clock.advance(Duration::from_secs(11));
        assert_eq!(settled(&world, &id).await["outcome"], "done", "{}", case.operation);
    }
}

#[tokio::test]
async fn looking_can_be_switched_off_and_on() {
    let world = prepared(plan().set("upstream", "look = false")).await;
    let id = doubtful(&world, &CASES[0], true).await;
    answered(&world).await;
    world.clock.advance(WINDOW);
    stays(&world, &id, 0, DoubtReason::Off).await;
    let text = std::fs::read_to_string(world.file()).unwrap().replace("look = false", "look = true");
    std::fs::write(world.file(), text).unwrap();
    world.reload().await;
    assert_eq!(settled(&world, &id).await["outcome"], "done");
}

#[tokio::test]
async fn after_a_settlement_earlier_reads_are_no_longer_cached() {
    let world = prepared(plan()).await;
    let id = doubtful(&world, &CASES[1], true).await;
    world.sandbox.fault(Fault::once("GET", OTHER, FaultKind::status(500)));
    world.get(ALL, OTHER).await.expect(500);
    world.get(ALL, ORG).await.expect(200);
    world.get(ALL, LIST).await.expect(200);
    operator(&world, "POST", &format!("/doubts/{id}"), r#"{"as":"done"}"#).await.expect(200);
    assert!(world.get(ALL, LIST).await.header("cache-status").unwrap().contains("fwd="));
    assert!(world.get(ALL, ORG).await.header("cache-status").unwrap().contains("hit"), "another organization");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_of_two_simultaneous_settlements_is_recorded() {
    let world = World::start().await;
    let pay =
        case("payments.create", "POST", "/api/v2/organizations/11/single-payment-create", r#"{"priceId":1}"#, ORG);
    for _ in 0..20 {
        let id = doubtful(&world, &pay, false).await;
        let target = format!("/doubts/{id}");
        let (one, other) = tokio::join!(
            operator(&world, "POST", &target, r#"{"as":"done"}"#),
            operator(&world, "POST", &target, r#"{"as":"not-done"}"#)
        );
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 404]);
        settled(&world, &id).await;
    }
}

#[tokio::test]
async fn a_settlement_that_cannot_be_recorded_can_be_made_again() {
    let world = World::start().await;
    let pay =
        case("payments.create", "POST", "/api/v2/organizations/11/single-payment-create", r#"{"priceId":1}"#, ORG);
    let id = doubtful(&world, &pay, false).await;
    let (audit, aside) = (world.dir.path().join("audit"), world.dir.path().join("aside"));
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::write(&audit, "no folder").unwrap();
    // Writes notice it within a second or so.
    for number in 0..600 {
        if world.patch(ALL, ORG, &format!(r#"{{"name":"n{number}"}}"#)).await.status == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    operator(&world, "POST", &format!("/doubts/{id}"), r#"{"as":"done"}"#).await.expect(503);
    assert!(doubt(&world, &id).is_some());
    std::fs::remove_file(&audit).unwrap();
    std::fs::rename(&aside, &audit).unwrap();
    for _ in 0..600 {
        if operator(&world, "POST", &format!("/doubts/{id}"), r#"{"as":"done"}"#).await.status == 200 {
            assert_eq!(settled(&world, &id).await["outcome"], "done");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it can no longer be settled");
}

const TEAMS: &str = r#"
[[operation]]
id = "teams.get"
method = "GET"
path = "/api/v2/teams/{teamId}"
grant = "teams:read"
[[operation]]
id = "teams.update"
method = "PATCH"
path = "/api/v2/teams/{teamId}"
grant = "teams:write"
look = { read = "teams.get", at = "/team", proves = "fields" }
[[operation]]
id = "teams.delete"
method = "DELETE"
path = "/api/v2/teams/{teamId}"
grant = "teams:write"
look = { read = "teams.get", at = "/team", proves = "gone", member = { id = "{teamId}" } }
"#;

fn json_answer(status: &str, kind: &str, body: &str) -> [Step; 2] {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}");
    [Step::Read, Step::write(text)]
}

/// A world whose origin cuts the first request and gives this answer to all others.
async fn cut_then(answer: [Step; 2]) -> (Origin, World) {
    let origin = Origin::start(vec![vec![Step::Read, Step::Reset], repeated(&answer, 20)]);
    let world = plan().tables(TEAMS).upstream(format!("http://{}", origin.address())).start().await;
    (origin, world)
}

async fn cut(world: &World, method: &str, body: &str) -> String {
    let answer = world.send(ALL, method, "/api/v2/teams/a%20b", &[], body).await.refused(502, "MG222");
    answer.header("x-request-id").unwrap().to_owned()
}

#[tokio::test]
async fn custom_rows_are_looked_at_too() {
    let (origin, world) =
        cut_then(json_answer("200 OK", "application/json", r#"{"team":{"id":1,"name":"New","size":2}}"#)).await;
    let id = cut(&world, "PATCH", r#"{"name":"New","size":2.0}"#).await;
    world.get(ALL, "/api/v2/teams/x").await.expect(200);
    world.clock.advance(Duration::from_secs(11));
    let settlement = settled(&world, &id).await;
    assert_eq!(
        settlement["detail"],
        "looked: GET /api/v2/teams/a%20b answered 200, and all that the write asked for is there"
    );
    let heads: Vec<String> =
        origin.received().into_iter().map(|one| one.head.lines().next().unwrap().to_owned()).collect();
    assert_eq!(
        heads,
        ["PATCH /api/v2/teams/a%20b HTTP/1.1", "GET /api/v2/teams/x HTTP/1.1", "GET /api/v2/teams/a%20b HTTP/1.1"]
    );
}

#[tokio::test]
async fn a_404_that_is_not_makes_own_proves_nothing() {
    let (_origin, world) = cut_then(json_answer("404 Not Found", "text/html", "<h1>lost</h1>")).await;
    let id = cut(&world, "DELETE", "").await;
    world.get(ALL, "/api/v2/teams/x").await.expect(404);
    world.clock.advance(Duration::from_secs(11));
    stays(&world, &id, 1, DoubtReason::Failed).await;
    let (_origin, world) = cut_then(json_answer("404 Not Found", "application/json", "{}")).await;
    let id = cut(&world, "DELETE", "").await;
    world.get(ALL, "/api/v2/teams/x").await.expect(404);
    world.clock.advance(Duration::from_secs(11));
    assert_eq!(settled(&world, &id).await["outcome"], "done");
}

#[tokio::test]
async fn a_late_effect_is_found_by_a_later_look() {
    let once = |status: &str, body: &str| {
        let mut script = json_answer(status, "application/json\r\nconnection: close", body).to_vec();
        script.push(Step::Close);
        script
    };
    let there = r#"{"team":{"id":"a b"}}"#;
    let origin = Origin::start(vec![
        vec![Step::Read, Step::Reset],
        once("200 OK", "{}"),
        once("200 OK", there),
        once("404 Not Found", "{}"),
    ]);
    let world = plan().tables(TEAMS).upstream(format!("http://{}", origin.address())).start().await;
    let id = cut(&world, "DELETE", "").await;
    world.get(ALL, "/api/v2/teams/x").await.expect(200);
    world.clock.advance(Duration::from_secs(11));
    stays(&world, &id, 1, DoubtReason::Unproved).await;
    world.clock.advance(Duration::from_secs(30));
    assert_eq!(settled(&world, &id).await["outcome"], "done");
    assert_eq!(origin.received().iter().filter(|one| one.head.starts_with("DELETE")).count(), 1);
}
