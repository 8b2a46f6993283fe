//! The last hour: what callers did is in its points, by a clock that the test moves.

use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::support::{ALL, OPERATOR, ORG, OTHER, Plan, READER, World, send};

const HOUR: Duration = Duration::from_secs(3600);

async fn page(world: &World, target: &str, accept: &str) -> String {
    let headers = format!("authorization: Bearer {OPERATOR}\r\naccept: {accept}\r\n");
    let operator = world.service.operator_addresses()[0];
    send(operator, "GET", target, &headers, "").await.expect(200).text().to_owned()
}

async fn points(world: &World) -> Vec<Value> {
    let history: Value = serde_json::from_str(&page(world, "/history", "*/*").await).unwrap();
    history["points"].as_array().unwrap().clone()
}

/// Moves the clock to the next look, and waits until it was.
async fn look(world: &World) -> Value {
    let before = points(world).await.last().cloned();
    world.clock.advance(Duration::from_secs(10));
    for _ in 0..3_000 {
        let last = points(world).await.last().cloned();
        if last != before {
            return last.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no look");
}

async fn world() -> World {
    let world = Plan::default().clock(Clock::frozen()).set("upstream", "quota = \"50/min\"").start().await;
    // The first look is what the next is compared with; nothing tells when it was.
    let first = look(&world).await;
    assert_eq!((&first["answers"]["hit"], &first["quota"]), (&json!(0), &json!([])), "{first}");
    world
}

#[tokio::test]
async fn a_point_has_what_happened_since_the_one_before() {
    let world = world().await;
    for _ in 0..4 {
        world.get(ALL, ORG).await.expect(200);
    }
    world.get(READER, "/api/v2/organizations/13").await.refused(403, "MG132");
    world.get("nobody", ORG).await.expect(401);
    let kind =
        FaultKind::Answer { status: 503, body: None, content_type: None, headers: Default::default(), effect: false };
    world.sandbox.fault(Fault { times: Some(1), ..Fault::once("GET", &format!("{ORG}/usage"), kind) });
    world.get(ALL, &format!("{ORG}/usage")).await;
    let point = look(&world).await;
    let answers = &point["answers"];
    assert_eq!((&answers["hit"], &answers["refused"]), (&json!(3), &json!(2)), "{point}");
    let fetched = ["miss", "forwarded"].map(|answer| answers[answer].as_u64().unwrap());
    assert_eq!(fetched.iter().sum::<u64>(), 2, "{point}");
    assert_eq!((&point["seconds"], &point["hit_ratio_of_all"]), (&json!(10.0), &json!(3.0 / 7.0)), "{point}");
    assert_eq!((&point["errors"]["MG132"], &point["errors"]["503"]), (&json!(1), &json!(1)), "{point}");
    assert_eq!(point["latency"]["samples"], 5, "refusals apart: {point}");
    let upstream = point["upstream_latency"]["samples"].as_u64().unwrap();
    assert!(upstream >= 2 && point["upstream_latency"]["p99_us"].is_number(), "{point}");
    assert_eq!(point["quota"], json!([{"organization": 11, "used": upstream, "limit": 50}]));

    // A reload neither begins anew nor counts twice.
    world.reload().await;
    world.get(ALL, ORG).await.expect(200);
    let next = look(&world).await;
    assert_eq!((&next["answers"]["hit"], &next["answers"]["refused"]), (&json!(1), &json!(0)), "{next}");
    assert_eq!(next["errors"], json!({}));
    let all = points(&world).await;
    assert_eq!(all[all.len() - 2], point);

    let csv = page(&world, "/history.csv", "*/*").await;
    let rows: Vec<_> = csv.lines().collect();
    assert!(rows[0].starts_with("time,seconds,hit,stale,miss,forwarded,replayed,refused,hit_ratio,"), "{csv}");
    assert_eq!(rows.len(), all.len() + 1);
    let row = rows[rows.len() - 2];
    assert!(
        row.contains(",10,3,0,") && row.ends_with(&format!(" MG132=1,11={upstream}/50")) && row.contains(",503=1"),
        "{row}"
    );
}

#[tokio::test]
async fn the_charts_are_drawn_from_it_and_an_empty_one_says_what_would_be_there() {
    let world = Plan::default().clock(Clock::frozen()).start().await;
    let empty = page(&world, "/", "text/html").await;
    assert!(empty.contains("There is no history yet."), "{empty}");
    look(&world).await;
    let idle = page(&world, "/history", "text/html").await;
    assert!(idle.contains("Nobody asked anything within the hour.") && !idle.contains("class=\"line"), "{idle}");
    world.get(ALL, ORG).await.expect(200);
    world.get(READER, "/api/v2/organizations/13").await.expect(403);
    look(&world).await;
    let shown = page(&world, "/", "text/html").await;
    for id in ["answers", "memory", "latency", "upstream", "errors", "quota"] {
        let chart = shown.split(&format!("id=\"chart-{id}\"")).nth(1).unwrap().split("</figure>").next().unwrap();
        assert!(chart.contains("class=\"line line-0\" d=\"M"), "{id}: {chart}");
        assert!(chart.contains(&format!("<desc id=\"chart-{id}-desc\">")), "{id}: {chart}");
    }
    assert!(!shown.contains("style="), "the policy forbids it");
}

/// More than the last hour comes from the log's index, in whole hours.
#[tokio::test]
async fn longer_histories_say_what_the_ledger_says_with_an_hour_for_each() {
    let world = Plan::default().set("cache.lifetime", "organizations = \"1s\"").start().await;
    for _ in 0..3 {
        world.get(ALL, ORG).await.expect(200);
    }
    world.get(READER, &format!("{ORG}/variables")).await.expect(403);
    world.clock.advance(HOUR * 2);
    world.get(ALL, ORG).await.expect(200);
    let day: Value = serde_json::from_str(&page(&world, "/history?hours=24", "*/*").await).unwrap();
    let hours = day["hours"].as_array().unwrap();
    // The hour between has nothing, and the hours before are not known.
    let counts = |name: &str| hours.iter().map(|hour| hour[name].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!((counts("requests"), counts("refused")), (vec![4, 0, 1], vec![1, 0, 0]), "{day}");
    let ledger: Value =
        serde_json::from_str(&page(&world, "/quota/ledger.json?by=hour&since=24h", "*/*").await).unwrap();
    assert_eq!(day["total"], ledger["total"]);
    let spent: i64 = counts("spent").iter().sum();
    assert_eq!(spent, world.sandbox.received().len() as i64, "{day}");

    let begin = hours[0]["hour"].as_str().unwrap();
    let end = hours[1]["hour"].as_str().unwrap();
    let one = page(&world, &format!("/history.json?since={begin}&until={end}"), "*/*").await;
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!((&one["since"], &one["until"], &one["hours"][0]), (&json!(begin), &json!(end), &hours[0]));
    assert_eq!(one["hours"].as_array().unwrap().len(), 1);
    let csv = page(&world, "/history.csv?hours=24", "*/*").await;
    let rows: Vec<_> = csv.lines().collect();
    assert_eq!(rows[0], "hour,requests,spent,saved,waited_us,refused,out_of_quota");
    assert!(rows.len() == 4 && rows[1].starts_with(&format!("{begin},4,")), "{csv}");

    let shown = page(&world, "/history?hours=24", "text/html").await;
    for id in ["requests", "spent", "refused", "waited"] {
        let chart = shown.split(&format!("id=\"chart-{id}\"")).nth(1).unwrap().split("</figure>").next().unwrap();
        assert!(chart.contains("class=\"line line-0\" d=\"M") && chart.contains(" (UTC)</title>"), "{id}: {chart}");
    }
    assert!(!shown.contains("data-live") && shown.contains("href=\"/quota/ledger?since="), "{shown}");
    for from in ["/", "/history"] {
        let shown = page(&world, from, "text/html").await;
        assert!(
            shown.contains("href=\"/history?hours=24\"") && shown.contains("href=\"/history?hours=720\""),
            "{from}"
        );
    }
    // 30 days.
    world.clock.advance(HOUR * 24 * 29);
    let month: Value = serde_json::from_str(&page(&world, "/history.json?hours=720", "*/*").await).unwrap();
    assert_eq!(month["hours"].as_array().unwrap().len(), 24 * 29 + 3);
    assert_eq!(month["total"], day["total"]);
    let old: Value = serde_json::from_str(&page(&world, "/history.json?since=30d&until=28d", "*/*").await).unwrap();
    assert_eq!(old["total"], day["total"], "{old}");
    world.clock.advance(HOUR * 24 * 2);
    let month: Value = serde_json::from_str(&page(&world, "/history.json?hours=720", "*/*").await).unwrap();
    assert_eq!(month["hours"], json!([]));
}

#[tokio::test]
async fn what_is_no_span_of_hours_is_refused() {
    let world = World::start().await;
    for (query, word) in [
        ("hours=0", "from 1 to 720"),
        ("hours=721", "from 1 to 720"),
        ("hours=day", "from 1 to 720"),
        ("hours=24&since=1h", "not both"),
        ("since=yesterday", "since"),
        ("nope=1", "hours, since, until"),
    ] {
        let headers = format!("authorization: Bearer {OPERATOR}\r\n");
        let operator = world.service.operator_addresses()[0];
        let refused = send(operator, "GET", &format!("/history.json?{query}"), &headers, "").await.expect(400);
        assert!(refused.json()["detail"].as_str().unwrap().contains(word), "{query}: {}", refused.text());
    }
}

/// The page of quotas has each by itself, in slots, with its limit beside it.
#[tokio::test]
async fn each_quota_has_its_chart_with_its_limit() {
    let world = world().await;
    assert!(page(&world, "/quota", "text/html").await.contains("No quota was spent within the hour"));
    for target in [ORG, OTHER] {
        world.get(ALL, target).await.expect(200);
    }
    look(&world).await;
    let shown = page(&world, "/quota", "text/html").await;
    for id in [11, 12] {
        let chart = shown.split(&format!("id=\"chart-quota-{id}\"")).nth(1).unwrap().split("</figure>").next().unwrap();
        assert!(chart.contains("used: 1 a minute at last") && chart.contains("limit: 50 a minute at last"), "{chart}");
    }
    // The overview has all of them in one, by how full they are.
    let overview = page(&world, "/", "text/html").await;
    assert!(overview.contains("id=\"chart-quota\"") && !overview.contains("id=\"chart-quota-11\""), "{overview}");
}

#[tokio::test]
async fn it_goes_back_an_hour_and_no_further() {
    let world = world().await;
    let first = points(&world).await[0]["time"].clone();
    for _ in 0..359 {
        look(&world).await;
    }
    let all = points(&world).await;
    assert_eq!((all.len(), &all[0]["time"]), (360, &first));
    look(&world).await;
    let all = points(&world).await;
    assert!(all.len() == 360 && all[0]["time"] != first);
    // After a pause, as of a machine that slept, nothing is made up for.
    world.clock.advance(Duration::from_secs(3_600));
    look(&world).await;
    let all = points(&world).await;
    assert!(all.len() <= 2, "{all:?}");
}
