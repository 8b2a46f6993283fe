//! Promise 8. Writes in doubt stay until somebody settles them; what they take is shared and bounded, too.

use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::support::{ALL, LIST, OPERATOR, ORG, Plan, Reply, TOO, World, segments_in, send};

/// A write in doubt stays until somebody settles it, also over a restart. The caller whose writes all end in doubt runs
/// out of its own share, and the others go on writing.
#[tokio::test]
async fn writes_in_doubt_of_one_caller_leave_room_for_those_of_others() {
    let plan = Plan::default().set("limits", "doubts = 16\nbreaker_failures = 0").set("upstream", "look = false");
    let mut world = plan.start().await;
    world.sandbox.fault(Fault::always("POST", LIST, FaultKind::status(500)));
    let create = |n: usize| format!(r#"{{"name":"d{n}","regionId":1,"timezoneId":1,"countryId":1}}"#);
    for n in 0..14 {
        world.post(ALL, LIST, &create(n)).await.expect(500);
    }
    world.post(ALL, LIST, &create(14)).await.refused(503, "MG184");
    world.sandbox.clear_faults();
    for restarted in [false, true] {
        if restarted {
            world = world.restart().await;
        }
        world.patch(ALL, ORG, r#"{"name":"refused"}"#).await.refused(503, "MG184");
        world.patch(TOO, ORG, &format!(r#"{{"name":"passes {restarted}"}}"#)).await.expect(200);
        world.get(ALL, ORG).await.expect(200);
        let ready = operator(&world, "GET", "/readyz?verbose", "").await.expect(200);
        assert!(ready.text().contains("[!] doubts: degraded: "), "{}", ready.text());
    }
    // Several of them at once: an operation and a time select.
    let now = world.clock.wall();
    let nothing = [
        r#"{"caller":"too","as":"done"}"#.to_owned(),
        r#"{"caller":"all","operation":"variables.create","as":"done"}"#.to_owned(),
        r#"{"caller":"all","before":"2020-01-01T00:00:00Z","as":"done"}"#.to_owned(),
    ];
    for body in nothing {
        let answer = operator(&world, "POST", "/doubts", &body).await.expect(200).json();
        assert_eq!(answer["settled"], 0, "{body}");
    }
    operator(&world, "POST", "/doubts", r#"{"as":"done"}"#).await.expect(400);
    let note = "\u{1}".repeat(3_000);
    let body =
        json!({"caller": "all", "operation": "organizations.create", "before": now, "as": "not-done", "note": note});
    let answer = operator(&world, "POST", "/doubts", &body.to_string()).await.expect(200).json();
    assert_eq!((&answer["settled"], &answer["left"]), (&json!(14), &json!(0)), "{answer}");
    let records = world.records().await;
    let settlements: Vec<_> = records.iter().filter(|record| record["kind"] == "settlement").collect();
    assert_eq!(settlements.len(), 14, "each has a record of its own");
    let noted = |record: &&Value| record["detail"].as_str().is_some_and(|note| note.matches('\u{1}').count() > 1_000);
    assert!(settlements.iter().all(|record| record["outcome"] == "rejected" && noted(record)), "{:?}", settlements[0]);
    world.patch(ALL, ORG, r#"{"name":"passes again"}"#).await.expect(200);
    let ready = operator(&world, "GET", "/readyz?verbose", "").await.expect(200);
    assert!(ready.text().contains("[+] doubts: ok\n"), "{}", ready.text());
}

async fn operator(world: &World, method: &str, target: &str, body: &str) -> Reply {
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(world.service.operator_addresses()[0], method, target, &key, body).await
}

/// Every segment lists the writes that are open when it begins. However many are in doubt, and however small the
/// segments, the list is not written again and again.
#[tokio::test]
async fn however_many_writes_are_in_doubt_other_records_take_no_more_room_in_the_log() {
    let plan =
        Plan::default().set("limits", "breaker_failures = 0").set("upstream", "look = false").segment_bytes(6_000);
    let world = plan.start().await;
    world.sandbox.fault(Fault::always("POST", LIST, FaultKind::status(500)));
    for n in 0..100 {
        let body = format!(r#"{{"name":"d{n}","regionId":1,"timezoneId":1,"countryId":1}}"#);
        world.post(ALL, LIST, &body).await.expect(500);
    }
    let size =
        || segments_in(&world.dir.path().join("audit")).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    world.records().await;
    let before = size();
    for _ in 0..60 {
        world.get(ALL, ORG).await.expect(200);
        world.service.gateway().log.flush().await;
    }
    let each = (size() - before) / 60;
    assert!(each < 2_000, "{each} bytes for each read");
}
