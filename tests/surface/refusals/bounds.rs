//! Refusals for want of something bounded: rate, room, quota, a log.

use super::{compare, keyed, provoke, still};
use crate::support::{ALL, LIST, ORG, OTHER, Reply, TOO, World, new_dir, send, until};
use makegate::quota::BucketId;
use makegate::sandbox::{Fault, FaultKind};

const APPS: &str = "/api/v2/organizations/11/apps";
const NAME: &str = r#"{"name":"Named"}"#;
const HANG: FaultKind = FaultKind::Hang { effect: false };

#[tokio::test]
async fn the_callers_rate() {
    let lines = "grants = [\"*\"]\nrate = \"1/min\"\nburst = 1";
    let world = still().caller("slow", lines).start().await;
    world.get("slow", APPS).await.expect(200);
    provoke(&world, "MG141", "slow", ("GET", APPS), &[], "").await.expect(429);
}

#[tokio::test]
async fn the_callers_requests_under_way() {
    let world = still().set("limits", "in_flight_per_caller = 1").start().await;
    refused_beside_another(&world, "MG142", ALL).await;
}

#[tokio::test]
async fn all_requests_under_way() {
    let world = still().set("limits", "in_flight = 1").start().await;
    refused_beside_another(&world, "MG143", TOO).await;
}

/// One more of a caller that has seven eighths of something. `has_seven`: its seven requests have got it.
async fn refused_beyond_seven_eighths(world: &World, code: &str, target: &str, has_seven: impl Fn() -> bool) {
    world.sandbox.fault(Fault::always("GET", target, HANG));
    let held = futures_util::future::join_all((0..7).map(|_| world.get(ALL, target)));
    let refused = async {
        until(has_seven).await;
        provoke(world, code, ALL, ("GET", OTHER), &[], "").await.expect(503);
        world.sandbox.clear_faults();
    };
    tokio::join!(held, refused);
}

#[tokio::test]
async fn the_callers_share_of_requests_under_way() {
    let world = still().set("limits", "in_flight = 8\nin_flight_per_caller = 8").start().await;
    refused_beyond_seven_eighths(&world, "MG144", APPS, || world.received("GET", APPS) == 7).await;
}

#[tokio::test]
async fn the_callers_share_of_the_logs_buffer() {
    let world = still().set("audit", "buffer_bytes = \"64KiB\"").start().await;
    refused_beyond_seven_eighths(&world, "MG183", APPS, || world.received("GET", APPS) == 7).await;
}

#[tokio::test]
async fn the_callers_share_of_writes_in_doubt() {
    let world = still().set("limits", "doubts = 8\nbreaker_failures = 0").start().await;
    world.sandbox.fault(Fault::always("PATCH", ORG, FaultKind::status(500)));
    world.sandbox.fault(Fault::always("POST", LIST, FaultKind::status(500)));
    for n in 0..7 {
        let body = format!(r#"{{"name":"d{n}","regionId":1,"timezoneId":1,"countryId":1}}"#);
        world.post(ALL, LIST, &body).await.expect(500);
    }
    provoke(&world, "MG184", ALL, ("PATCH", ORG), &[], NAME).await.expect(503);
}

#[tokio::test]
async fn the_callers_share_of_connections() {
    let world = still().set("limits", "connections = 8").start().await;
    let taken = || world.service.gateway().callers.shared.connections.taken();
    refused_beyond_seven_eighths(&world, "MG145", ORG, || taken() == 7).await;
}

#[tokio::test]
async fn the_callers_share_of_waiting_requests() {
    let world = still().set("limits", "joined = 1").start().await;
    world.sandbox.fault(Fault::always("GET", ORG, HANG));
    let held = futures_util::future::join_all((0..2).map(|_| world.get(ALL, ORG)));
    let refused = async {
        until(|| world.service.gateway().callers.shared.joined.taken() == 1).await;
        provoke(&world, "MG148", ALL, ("GET", ORG), &[], "").await.expect(503);
        world.sandbox.clear_faults();
    };
    tokio::join!(held, refused);
}

#[tokio::test]
async fn memory_for_its_body() {
    let world = still().set("limits", "body_bytes = \"1KiB\"\nbodies_bytes = \"2KiB\"").start().await;
    world.sandbox.fault(Fault::once("PATCH", ORG, HANG));
    let body = format!("{{\"name\": \"{}\"}}", "a".repeat(1_000));
    let first = world.patch(ALL, ORG, &body);
    let second = async {
        until(|| world.received("PATCH", ORG) == 1).await;
        provoke(&world, "MG158", ALL, ("PATCH", OTHER), &[], &body).await.expect(503);
        world.sandbox.clear_faults();
    };
    tokio::join!(first, second);
}

/// One request of [`ALL`] is under way when one of `key` is refused.
async fn refused_beside_another(world: &World, code: &str, key: &str) {
    world.sandbox.fault(Fault::once("GET", APPS, HANG));
    let first = world.get(ALL, APPS);
    let second = async {
        until(|| world.received("GET", APPS) == 1).await;
        provoke(world, code, key, ("GET", OTHER), &[], "").await;
        world.sandbox.clear_faults();
    };
    tokio::join!(first, second).0.expect(200);
}

/// A write may have the only connection for longer than a read may wait.
#[tokio::test]
async fn a_connection() {
    let upstream = "connections = 1\ndeadline = \"1s\"\nattempt = \"1s\"";
    let world = still().set("upstream", upstream).start().await;
    let read = async { provoke(&world, "MG146", TOO, ("GET", OTHER), &[], "").await.expect(503) };
    beside_a_write(&world, read).await;
}

/// The earlier write takes longer than the later one may wait, since writes have less time after a reload.
#[tokio::test]
async fn a_turn_at_a_resource() {
    let world = still().start().await;
    let later = async {
        let text = std::fs::read_to_string(world.file()).unwrap();
        let is_long = |line: &&str| !line.starts_with("write_deadline") && !line.starts_with("write_attempt");
        let text: String = text.lines().filter(is_long).map(|line| format!("{line}\n")).collect();
        let short = "[upstream]\nwrite_deadline = \"1s\"\nwrite_attempt = \"1s\"\n";
        std::fs::write(world.file(), text.replace("[upstream]\n", short)).unwrap();
        world.reload().await;
        let refused = provoke(&world, "MG147", TOO, ("PATCH", ORG), &[], NAME).await.expect(503);
        assert_eq!(world.received("PATCH", ORG), 1);
        refused
    };
    beside_a_write(&world, later).await;
}

/// `refused` happens while a write of [`ALL`] has no answer.
async fn beside_a_write(world: &World, refused: impl Future<Output = Reply>) {
    world.sandbox.fault(Fault::once("PATCH", ORG, HANG));
    let beside = async {
        until(|| world.received("PATCH", ORG) == 1).await;
        refused.await;
        world.sandbox.clear_faults();
    };
    tokio::join!(world.patch(ALL, ORG, NAME), beside).0.expect(200);
}

#[tokio::test]
async fn quota() {
    let world = still().set("upstream", "quota = \"1/min\"\nquota_wait = \"0s\"").start().await;
    world.get(ALL, APPS).await.expect(200);
    provoke(&world, "MG171", ALL, ("GET", APPS), &[], "").await.expect(429);
}

#[tokio::test]
async fn a_place_in_the_queue_for_quota() {
    let times = "quota = \"1/min\"\nquota_wait = \"90s\"\ndeadline = \"100s\"";
    let world = still().set("upstream", times).set("limits", "quota_queue = 1").start().await;
    world.get(ALL, APPS).await.expect(200);
    let waits = world.get(ALL, APPS);
    let second = async {
        let quota = &world.service.gateway().quota;
        until(|| quota.view(BucketId::Organization(11)).waiting == 1).await;
        provoke(&world, "MG172", ALL, ("GET", APPS), &[], "").await.expect(429);
    };
    tokio::select! { _ = waits => panic!("there was quota"), () = second => {} }
}

/// The log's folder is gone: the next segment cannot be begun.
#[tokio::test]
async fn a_log() {
    let log = "segment = \"1KiB\"\nrecord_bytes = \"1KiB\"\nbuffer_records = 64";
    let world = still().set("audit", log).start().await;
    std::fs::rename(world.dir.path().join("audit"), world.dir.path().join("elsewhere")).unwrap();
    let log = &world.service.gateway().log;
    while log.writable() {
        world.get(ALL, LIST).await.expect(200);
        tokio::select! { _ = log.flush() => {}, () = until(|| !log.writable()) => {} }
    }
    let refused = send(world.gateway, "PATCH", ORG, &keyed("MG181", ALL), "{}").await;
    compare("MG181", &refused.expect(503));
    assert_eq!(world.received("PATCH", ORG), 0, "nothing goes upstream without an intent");
    // A caller fills its share of the buffer, and whoever is not known what refusals may have of it.
    while world.get(ALL, LIST).await.status == 200 {}
    let mut read = send(world.gateway, "GET", LIST, &keyed("MG182", "nobodys-key"), "").await;
    while read.status == 401 {
        read = send(world.gateway, "GET", LIST, &keyed("MG182", "nobodys-key"), "").await;
    }
    compare("MG182", &read.expect(503));
}

/// Nobody listens where the replicas' database should be.
#[tokio::test]
async fn a_database_of_the_replicas() {
    let files = new_dir();
    let at = |name: &str| files.path().join(name).display().to_string();
    std::fs::write(at("engine"), "postgresql://makegate@127.0.0.1:1/makegate").unwrap();
    std::fs::write(at("key"), [7; 32]).unwrap();
    let (url, key) = (at("engine"), at("key"));
    let replicas = format!("[replicas]\nurl_file = {url:?}\nkey_file = {key:?}\nname = \"a\"\n");
    let world = still().tables(&replicas).start().await;
    provoke(&world, "MG241", ALL, ("PATCH", ORG), &[], "{}").await.expect(503);
    assert_eq!(world.received("PATCH", ORG), 0, "nothing goes upstream that could be lost or doubled");
}
