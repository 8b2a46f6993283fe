//! Promise 10. A bad new configuration or token file never disturbs a running gateway: it says why and keeps the old.

use crate::support::{ALL, ORG, Plan, TOKEN, World};

#[tokio::test]
async fn a_bad_configuration_is_told_and_the_old_stays() {
    let world = World::start().await;
    let good = std::fs::read_to_string(world.file()).unwrap();
    let bads = [
        "".to_owned(),
        good[..good.len() / 2].to_owned(),
        format!("{good}\nnonsense = 1\n"),
        good.replace("grants = [\"*\"]", "grants = [\"no-such:grant\"]"),
        good.replace("token_file = \"token\"", "token_file = \"not-there\""),
        good.replace("dir = \"audit\"", "dir = \"elsewhere\""),
    ];
    for bad in bads {
        std::fs::write(world.file(), &bad).unwrap();
        let why = world.service.reload().await.unwrap_err();
        assert!(!why.is_empty());
        world.get(ALL, ORG).await.expect(200);
    }
    std::fs::write(world.file(), good.replace(&ALL[4..], "whole")).unwrap();
    let events: Vec<String> = world.log().await.iter().filter_map(|r| r["event"].as_str().map(str::to_owned)).collect();
    assert_eq!(events.iter().filter(|event| *event == "reload-failed").count(), 6, "{events:?}");
}

#[tokio::test]
async fn a_good_configuration_is_in_force_at_once_and_keeps_rates() {
    let world = Plan::default().caller("slow", "grants = [\"*\"]\nrate = \"1/min\"\nburst = 1").start().await;
    world.get("slow", ORG).await.expect(200);
    let text =
        std::fs::read_to_string(world.file()).unwrap().replacen("grants = [\"*\"]", "grants = [\"usage:read\"]", 1);
    std::fs::write(world.file(), text).unwrap();
    world.service.reload().await.unwrap();
    world.get(ALL, ORG).await.refused(403, "MG131");
    world.get("slow", ORG).await.refused(429, "MG141");
}

#[tokio::test]
async fn a_new_token_is_used_and_a_bad_one_is_not() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    let file = world.dir.path().join("token");
    for bad in ["", "two words", "line\nbreak"] {
        std::fs::write(&file, bad).unwrap();
        world.service.reload().await.unwrap_err();
        world.get_with(ALL, ORG, &["cache-control: no-store"]).await.expect(200);
    }
    let new = TOKEN.replace('9', "8");
    world.sandbox.set_token(&new);
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG204");
    std::fs::write(&file, format!("{new}\n")).unwrap();
    world.service.reload().await.unwrap();
    // What the old token saw is forgotten.
    let answer = world.get(ALL, ORG).await.expect(200);
    assert!(answer.header("cache-status").unwrap().contains("fwd=miss"), "{answer:?}");
}
