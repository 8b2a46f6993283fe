//! Promise 10. A bad new configuration, certificate or token file never disturbs a running gateway: it says why and keeps the old.

use std::fs;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::hostile::{Origin, Step, repeated, tls_identity};
use crate::support::{ALL, ORG, Plan, TOKEN, World, new_dir, tls};

#[tokio::test]
async fn a_bad_configuration_is_reported_and_the_old_one_stays() {
    let world = World::start().await;
    let good = fs::read_to_string(world.file()).unwrap();
    let bads = [
        "".to_owned(),
        good[..good.len() / 2].to_owned(),
        format!("{good}\nnonsense = 1\n"),
        good.replace("grants = [\"*\"]", "grants = [\"no-such:grant\"]"),
        good.replace("token_file = \"token\"", "token_file = \"not-there\""),
        good.replace("dir = \"audit\"", "dir = \"elsewhere\""),
    ];
    for bad in bads {
        fs::write(world.file(), &bad).unwrap();
        let why = world.service.reload().await.unwrap_err().to_string();
        assert!(!why.is_empty());
        world.get(ALL, ORG).await.expect(200);
    }
    fs::write(world.file(), good.replace(&ALL[4..], "whole")).unwrap();
    let events: Vec<String> = world.log().await.iter().filter_map(|r| r["event"].as_str().map(str::to_owned)).collect();
    assert_eq!(events.iter().filter(|event| *event == "reload-failed").count(), 6, "{events:?}");
}

#[tokio::test]
async fn a_good_configuration_is_in_force_at_once_and_keeps_rates() {
    let world = Plan::default().caller("slow", "grants = [\"*\"]\nrate = \"1/min\"\nburst = 1").start().await;
    world.get("slow", ORG).await.expect(200);
    let text = fs::read_to_string(world.file()).unwrap().replacen("grants = [\"*\"]", "grants = [\"usage:read\"]", 1);
    fs::write(world.file(), text).unwrap();
    world.reload().await;
    world.get(ALL, ORG).await.refused(403, "MG131");
    world.get("slow", ORG).await.refused(429, "MG141");
}

#[tokio::test]
async fn a_new_token_is_used_and_a_bad_one_is_not() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    let file = world.dir.path().join("token");
    for bad in ["", "two words", "line\nbreak"] {
        fs::write(&file, bad).unwrap();
        world.service.reload().await.unwrap_err().to_string();
        world.get_with(ALL, ORG, &["cache-control: no-store"]).await.expect(200);
    }
    let new = TOKEN.replace('9', "8");
    world.sandbox.set_token(&new);
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG204");
    fs::write(&file, format!("{new}\n")).unwrap();
    world.reload().await;
    // What the old token saw was dropped from the cache.
    let answer = world.get(ALL, ORG).await.expect(200);
    assert!(answer.header("cache-status").unwrap().contains("fwd=miss"), "{answer:?}");
}

#[tokio::test]
async fn a_new_certificate_is_served_and_a_bad_one_is_not() {
    let authority = tls::Authority::new();
    let files = [("callers.pem", &*authority.pem)];
    let (world, old) = tls::world(Plan::default(), ", client_ca = \"callers.pem\"", &files).await;
    let token = format!("authorization: Token {ALL}");
    let get = async |roots| tls::get(&world, roots, None, ORG, &[&token]).await;
    let file = |name: &str| world.dir.path().join(name);
    let (cert, key) = (fs::read(file("cert.pem")).unwrap(), fs::read(file("key.pem")).unwrap());
    tls::show(world.dir.path(), "another.pem", "another-key.pem");
    let anothers_key = fs::read(file("another-key.pem")).unwrap();
    let bads: [(&str, &[u8]); 6] = [
        ("cert.pem", b""),
        ("cert.pem", &cert[..cert.len() / 2]),
        ("key.pem", b"nonsense"),
        ("key.pem", &anothers_key),
        ("callers.pem", b""),
        ("callers.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ];
    for (name, bad) in bads {
        fs::write(file(name), bad).unwrap();
        let why = world.service.reload().await.unwrap_err().to_string();
        assert!(why.contains(name) || (name == "key.pem" && why.contains("cert.pem")), "{name}: {why}");
        get(&old).await.unwrap().expect(200);
        fs::write(file("cert.pem"), &cert).unwrap();
        fs::write(file("key.pem"), &key).unwrap();
        fs::write(file("callers.pem"), &authority.pem).unwrap();
    }
    let mut stays = tls::connect(&world, &old, &[], None).await.unwrap();
    let new = tls::show(world.dir.path(), "cert.pem", "key.pem");
    world.reload().await;
    get(&new).await.unwrap().expect(200);
    assert!(get(&old).await.is_none(), "the old certificate is still served");
    // Existing connections stay.
    let request = format!("GET {ORG} HTTP/1.1\r\nhost: localhost\r\n{token}\r\n\r\n");
    stays.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stays.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn new_authorities_are_trusted_after_a_reload() {
    let (before, after) = (tls::Authority::new(), tls::Authority::new());
    let files = [("callers.pem", &*before.pem)];
    let (world, roots) = tls::world(Plan::default(), ", client_ca = \"callers.pem\"", &files).await;
    let identity = after.identity("a tool", &["all"]);
    assert!(tls::get(&world, &roots, Some(&identity), ORG, &[]).await.is_none());
    fs::write(world.dir.path().join("callers.pem"), &after.pem).unwrap();
    world.reload().await;
    tls::get(&world, &roots, Some(&identity), ORG, &[]).await.unwrap().expect(200);
    assert!(tls::get(&world, &roots, Some(&before.identity("a tool", &["all"])), ORG, &[]).await.is_none());
}

#[tokio::test]
async fn new_upstream_authorities_are_trusted_and_bad_ones_change_nothing() {
    let (authority, identity) = tls_identity(&["127.0.0.1"]);
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let origin = Origin::start_tls(vec![repeated(&[Step::Read, Step::write(answer)], 9)], identity);
    let dir = new_dir();
    let file = dir.path().join("ca.pem");
    fs::write(&file, tls_identity(&["127.0.0.1"]).0).unwrap();
    let plan =
        Plan::default().upstream(format!("https://{}", origin.address())).set("upstream", "ca_file = \"ca.pem\"");
    let world = plan.start_in(dir).await;
    let get = async || world.get_with(ALL, ORG, &["cache-control: no-store"]).await;
    get().await.refused(502, "MG201");
    // They are refused together with a bad configuration, and trusted once that is fixed.
    let good = fs::read_to_string(world.file()).unwrap();
    fs::write(&file, &authority).unwrap();
    fs::write(world.file(), "nonsense").unwrap();
    world.service.reload().await.unwrap_err().to_string();
    get().await.refused(502, "MG201");
    fs::write(world.file(), good).unwrap();
    world.reload().await;
    get().await.expect(200);
    for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&file, bad).unwrap();
        let why = world.service.reload().await.unwrap_err().to_string();
        assert!(why.contains("ca.pem"), "{why}");
        get().await.expect(200);
    }
}
