//! Promise 4. A `once` write is never sent twice unless the first attempt provably was not processed. While one is in
//! doubt, an equal write of the same caller is held.

use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};

use crate::support::hostile::{Origin, Step};
use crate::support::{ALL, LIST, OPERATOR, ORG, Plan, TOO, World, send};

const CUSTOMER: &str =
    r#""customer":{"email":"a@example.com","name":"A","isBusiness":false,"countryId":1,"city":"P","line1":"S"}"#;

fn payment(price: u32) -> String {
    format!(r#"{{"priceId":{price},"quantity":1,"couponCode":null,"doNotCharge":false,{CUSTOMER}}}"#)
}

fn pay() -> String {
    format!("{ORG}/single-payment-create")
}

#[tokio::test]
async fn a_once_write_cut_after_its_effect_is_not_sent_again() {
    let world = World::start().await;
    for kind in
        [FaultKind::Reset { effect: true }, FaultKind::Close { effect: true }, FaultKind::Reset { effect: false }]
    {
        world.sandbox.reset();
        world.sandbox.fault(Fault::once("POST", &pay(), kind));
        let body = format!(r#"{{"priceId":200,"quantity":{}}}"#, rand_quantity());
        let answer = world.post(ALL, &pay(), &body).await.refused(502, "MG222");
        assert_eq!(answer.header("makegate-outcome"), Some("in-doubt"));
        assert!(answer.header("retry-after").is_none());
        assert_eq!(world.received("POST", &pay()), 1);
        let id = answer.header("x-request-id").unwrap();
        assert!(world.service.gateway().log.doubts().list().iter().any(|d| d.request.as_str() == id));
    }
}

/// Makes bodies distinct, because an equal one would be held.
fn rand_quantity() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[tokio::test]
async fn a_once_write_answered_5xx_is_passed_on_in_doubt() {
    let world = World::start().await;
    for status in [500, 502, 503, 504, 408] {
        world.sandbox.reset();
        world.sandbox.fault(Fault::always("POST", &pay(), FaultKind::status(status).with_header("retry-after", "7")));
        let body = format!(r#"{{"priceId":{}}}"#, rand_quantity());
        let answer = world.post(ALL, &pay(), &body).await.expect(status);
        assert_eq!(answer.header("makegate-outcome"), Some("in-doubt"), "{status}");
        assert!(answer.header("retry-after").is_none(), "{status}");
        assert_eq!(world.received("POST", &pay()), 1, "{status}");
    }
}

#[tokio::test]
async fn a_once_write_that_provably_was_not_processed_is_sent_again() {
    // Nobody listens at the origin's address yet, so the first connection is refused and nothing was processed.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = Plan::default().upstream(format!("http://{port}")).start().await;
    let answer = world.post(ALL, &pay(), &payment(200)).await.refused(502, "MG201");
    assert_eq!(answer.header("makegate-outcome"), Some("not-sent"));
    let record = world.last_record().await;
    assert_eq!(record["outcome"], "not-sent");
    assert_eq!(record["attempts"], 2);
}

#[tokio::test]
async fn an_equal_write_in_doubt_is_held_and_names_the_first() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("POST", &pay(), FaultKind::Reset { effect: true }));
    let first = world.post(ALL, &pay(), &payment(200)).await.refused(502, "MG222");
    let held = world.post(ALL, &pay(), &payment(200)).await.refused(409, "MG161");
    assert!(held.text().contains(first.header("x-request-id").unwrap()));
    assert_eq!(world.received("POST", &pay()), 1);
    // A different body or a different caller makes a different write.
    world.post(ALL, &pay(), &payment(201)).await.expect(200);
    world.post(TOO, &pay(), &payment(200)).await.expect(200);
    // A restart forgets no doubt. An operator who has looked ends it, and a restart remembers that too.
    let world = world.restart().await;
    world.post(ALL, &pay(), &payment(200)).await.refused(409, "MG161");
    let doubt = format!("/doubts/{}", first.header("x-request-id").unwrap());
    let operator = world.service.operator_addresses()[0];
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let settle = |body: &'static str| send(operator, "POST", &doubt, &key, body);
    settle(r#"{"as":"perhaps"}"#).await.expect(400);
    settle(r#"{"as":"not-done","note":"no payment in Make"}"#).await.expect(200);
    settle(r#"{"as":"done"}"#).await.expect(404);
    assert_eq!(world.last_record().await["kind"], "settlement");
    let world = world.restart().await;
    world.post(ALL, &pay(), &payment(200)).await.expect(200);
}

#[tokio::test]
async fn an_idempotent_write_is_sent_again_and_a_404_then_means_done() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once("DELETE", "/api/v2/organizations/12", FaultKind::Reset { effect: true }));
    let answer = world.delete(ALL, "/api/v2/organizations/12?confirmed=true").await.expect(404);
    assert_eq!(answer.header("makegate-outcome"), Some("done"));
    assert_eq!(world.received("DELETE", "/api/v2/organizations/12"), 2);
    let record = world.last_record().await;
    assert_eq!((record["outcome"].as_str(), record["attempts"].as_u64()), (Some("done"), Some(2)));
    assert_eq!(world.service.gateway().log.doubts().count(), 0);
}

#[tokio::test]
async fn a_cut_at_every_byte_of_the_answer_never_doubles_a_once_write() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"ok\":1}";
    let scripts = (0..answer.len()).map(|end| vec![Step::Read, Step::write(&answer[..end]), Step::Reset]).collect();
    let origin = Origin::start(scripts);
    let world = Plan::default()
        .upstream(format!("http://{}", origin.address()))
        .set("limits", "breaker_failures = 0")
        .start()
        .await;
    for end in 0..answer.len() {
        let body = format!(r#"{{"priceId":{end},"customer":{{}}}}"#);
        let reply = world.post(ALL, &pay(), &body).await;
        let outcome = reply.header("makegate-outcome").unwrap().to_owned();
        assert!(reply.status == 502 || reply.status == 504, "cut at {end}: {reply:?}");
        assert!(outcome == "in-doubt" || outcome == "done", "cut at {end}: {outcome}");
        assert_eq!(origin.received().len(), end + 1, "cut at {end}: sent again");
    }
}

#[tokio::test]
async fn writes_to_one_resource_keep_their_order_over_their_attempts() {
    let world = World::start().await;
    // The older one may go again after a second; the newer one comes in the meantime.
    world.sandbox.fault(Fault::once("PATCH", ORG, FaultKind::status(503).with_header("retry-after", "1")));
    let older = world.patch(ALL, ORG, r#"{"name":"Older"}"#);
    let newer = async {
        while world.received("PATCH", ORG) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.patch(ALL, ORG, r#"{"name":"Newer"}"#).await
    };
    let (older, newer) = tokio::join!(older, newer);
    older.expect(200);
    newer.expect(200);
    let names: Vec<String> = world.sandbox.received_of("PATCH", ORG).into_iter().map(|r| r.body).collect();
    assert_eq!(names, [r#"{"name":"Older"}"#, r#"{"name":"Older"}"#, r#"{"name":"Newer"}"#]);
}

#[tokio::test]
async fn a_429_says_that_nothing_was_done() {
    let world = World::start().await;
    world.sandbox.fault(Fault::once(
        "POST",
        LIST,
        FaultKind::status(429).with_body("Requests limit for organization exceeded, please try again later."),
    ));
    let answer = world.post(ALL, LIST, r#"{"name":"n","regionId":1,"timezoneId":1,"countryId":1}"#).await.expect(429);
    assert_eq!(answer.header("makegate-outcome"), Some("rejected"));
    assert_eq!(answer.text(), "Requests limit for organization exceeded, please try again later.");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}
