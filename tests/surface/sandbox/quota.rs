//! Quota per organization and minute, and the zone's lag.

use std::time::Duration;

use makegate::sandbox::{MinuteWindow, SandboxBucket, SandboxSettings, Seed};

use super::{LIST, ORG, World};

const TEXT: &str = "Requests limit for organization exceeded, please try again later.";

fn two_a_minute() -> SandboxSettings {
    SandboxSettings { api_limit: 2, account_limit: 1, ..SandboxSettings::default() }
}

#[tokio::test]
async fn past_the_quota_the_answer_is_makes_plain_text() {
    let world = World::with(two_a_minute()).await;
    assert_eq!(world.get(ORG).await.status, 200);
    assert_eq!(world.get(&format!("{ORG}/nothing")).await.status, 404, "a 404 counts");
    let refused = world.get(ORG).await;
    assert_eq!((refused.status, refused.body.as_str()), (429, TEXT));
    assert_eq!(refused.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(world.get("/api/v2/organizations/12").await.status, 200, "another organization has its own");
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.get(ORG).await.status, 200);
}

#[tokio::test]
async fn paths_without_organization_share_the_accounts_bucket() {
    let world = World::with(two_a_minute()).await;
    assert_eq!(world.get(LIST).await.status, 200);
    assert_eq!(world.get(&format!("{LIST}/invitation?hash=x")).await.status, 429);
    let buckets: Vec<_> = world.sandbox.received().iter().map(|received| received.bucket).collect();
    assert_eq!(buckets, [Some(SandboxBucket::Account), Some(SandboxBucket::Account)]);
}

#[tokio::test]
async fn a_wrong_token_is_not_counted() {
    let world = World::with(two_a_minute()).await;
    for _ in 0..3 {
        world.raw("GET", ORG, "authorization: Token wrong\r\n", "").await.unwrap();
    }
    assert_eq!(world.get(ORG).await.status, 200);
    assert_eq!(world.sandbox.received()[0].bucket, None);
}

#[tokio::test]
async fn a_429_is_json_where_the_settings_say_so() {
    let world = World::with(SandboxSettings { json_429: true, api_limit: 0, ..SandboxSettings::default() }).await;
    assert_eq!(world.get(ORG).await.expect(429)["message"], TEXT);
}

#[tokio::test]
async fn a_sliding_window_frees_slots_one_by_one() {
    let world = World::with(SandboxSettings { window: MinuteWindow::Sliding, ..two_a_minute() }).await;
    assert_eq!(world.get(ORG).await.status, 200);
    world.clock.advance(Duration::from_secs(40));
    assert_eq!(world.get(ORG).await.status, 200);
    world.clock.advance(Duration::from_secs(20));
    assert_eq!(world.get(ORG).await.status, 200, "the first is a minute old");
    assert_eq!(world.get(ORG).await.status, 429, "the second is not");
}

#[tokio::test]
async fn an_organization_can_have_its_own_quota() {
    let seeds = vec![Seed { api_limit: Some(1), ..Seed::new(21, "Small") }, Seed::new(22, "Ordinary")];
    let world = World::with(SandboxSettings { seed_organizations: seeds, ..SandboxSettings::default() }).await;
    let detail = world.get("/api/v2/organizations/21").await.expect(200);
    assert_eq!(detail["organization"]["license"]["apiLimit"], 1);
    assert_eq!(world.get("/api/v2/organizations/21").await.status, 429);
    world.sandbox.set_api_limit(21, 3);
    let detail = world.get("/api/v2/organizations/21").await.expect(200);
    assert_eq!(detail["organization"]["license"]["apiLimit"], 3);
}

#[tokio::test]
async fn a_lagging_zone_shows_writes_late_except_to_those_who_wait() {
    let world = World::with(SandboxSettings { lag: Duration::from_secs(2), ..SandboxSettings::default() }).await;
    let name = async |target: &str| world.get(target).await.expect(200)["organization"]["name"].clone();
    world.send("PATCH", ORG, r#"{"name": "Later"}"#).await.expect(200);
    assert_eq!(name(ORG).await, "Acme Operations");
    assert_eq!(
        world.get(&format!("{LIST}?cols[]=name")).await.expect(200)["organizations"][0]["name"],
        "Acme Operations"
    );
    assert_eq!(name(&format!("{ORG}?wait=true")).await, "Later");
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(name(ORG).await, "Later");
}

#[tokio::test]
async fn a_lagging_zone_does_not_know_new_organizations_and_still_shows_deleted_ones() {
    let world = World::with(SandboxSettings { lag: Duration::from_secs(2), ..SandboxSettings::default() }).await;
    let body = r#"{"name": "New", "regionId": 1, "timezoneId": 113, "countryId": 1}"#;
    let id = world.send("POST", LIST, body).await.expect(200)["organization"]["id"].clone();
    let new = format!("{LIST}/{id}");
    assert_eq!(world.get(&new).await.status, 404);
    assert_eq!(world.get(&format!("{new}?wait=true")).await.status, 200);
    world.send("DELETE", ORG, "").await.expect(200);
    assert_eq!(world.get(ORG).await.status, 200);
    assert_eq!(world.send("DELETE", ORG, "").await.status, 404, "writes work on the truth");
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(world.get(ORG).await.status, 404);
    assert_eq!(world.get(&new).await.status, 200);
}
