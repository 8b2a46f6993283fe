//! Promise 13. No answer comes later than the deadline, counted from the moment the request was read whole.

use std::time::{Duration, Instant};

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};

use crate::support::hostile::{Origin, Step};
use crate::support::{ALL, ORG, Plan};

/// Deadlines of half a second. Whatever takes over ten seconds is not due to them.
fn short() -> Plan {
    Plan::default().set(
        "upstream",
        "deadline = \"500ms\"\nwrite_deadline = \"500ms\"\nattempt = \"400ms\"\nwrite_attempt = \"450ms\"\nquota_wait = \"300ms\"",
    )
}

const LATE: Duration = Duration::from_secs(10);

#[expect(clippy::disallowed_methods, reason = "a test's own stopwatch")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn no_answer_is_late_wherever_the_upstream_hangs() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n";
    let hangs = [
        vec![Step::Hang],
        vec![Step::Read, Step::Hang],
        vec![Step::Read, Step::write("HTTP/1.1 2"), Step::Hang],
        vec![Step::Read, Step::write(head), Step::Hang],
        vec![Step::Read, Step::write(head), Step::write("{\"ok\""), Step::Hang],
    ];
    for (number, script) in hangs.into_iter().enumerate() {
        let origin = Origin::start(vec![script]);
        let world = short().upstream(format!("http://{}", origin.address())).start().await;
        let began = now();
        let read = world.get(ALL, ORG).await;
        assert_eq!(read.status / 100, 5, "{number}: {read:?}");
        assert!(began.elapsed() < LATE, "{number}: a read took {:?}", began.elapsed());
        let began = now();
        let write = world.post(ALL, &format!("{ORG}/subscription-free"), "").await;
        assert_eq!(write.status / 100, 5, "{number}: {write:?}");
        assert!(write.header("retry-after").is_none());
        assert!(began.elapsed() < LATE, "{number}: a write took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_write_without_an_answer_in_time_is_504_in_doubt_and_listed() {
    // Long enough for the write to be sent.
    let world = Plan::default().set("upstream", "write_deadline = \"4s\"\nwrite_attempt = \"3s\"").start().await;
    let target = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &target, FaultKind::Hang { effect: true }));
    let answer = world.post(ALL, &target, "").await.refused(504, "MG221");
    assert_eq!(answer.header("makegate-outcome"), Some("in-doubt"));
    assert!(answer.header("retry-after").is_none());
    assert!(answer.header("proxy-status").unwrap().starts_with("makegate; error="), "{answer:?}");
}

#[tokio::test]
async fn a_write_that_would_get_its_quota_too_late_to_be_answered_is_refused_unsent() {
    // The only slot comes back after 61 s. Then one second would be left, of an attempt's sixteen.
    let times = "quota = \"1/min\"\nquota_wait = \"90s\"\nwrite_deadline = \"62s\"\nwrite_attempt = \"16s\"";
    let world = Plan::default().set("upstream", times).clock(Clock::frozen()).start().await;
    world.get(ALL, ORG).await.expect(200);
    let write = world.patch(ALL, ORG, "{\"name\":\"New\"}");
    let refused = tokio::time::timeout(LATE, write).await.expect("it waits").refused(429, "MG171");
    assert!(refused.header("retry-after").is_some() && refused.header("makegate-outcome").is_none(), "{refused:?}");
    assert_eq!(world.received("PATCH", ORG), 0);
}
