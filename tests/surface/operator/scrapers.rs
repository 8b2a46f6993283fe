//! The door for scrapers and probes, and probes at every door.

use crate::support::{ALL, OPERATOR, ORG, Plan, World, raw, send};

fn plan() -> Plan {
    Plan::default().tables("[metrics]\nlisten = \"127.0.0.1:0\"\n")
}

#[tokio::test]
async fn it_has_metrics_and_probes_for_any_host_and_nothing_else() {
    let world = plan().start().await;
    let door = world.service.metrics_addresses()[0];
    for host in ["127.0.0.1", "10-0-0-7.makegate.svc", "evil.example:80"] {
        for (path, says) in [
            ("/metrics", "makegate_connections{door=\"metrics\"} "),
            ("/livez", "ok\n"),
            ("/readyz", "ready\n"),
            ("/readyz?verbose", "[+] token: not tried yet\n"),
        ] {
            let asked = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let reply = raw(door, &asked).await.unwrap().expect(200);
            assert!(reply.text().contains(says), "{path}: {}", reply.text());
        }
    }
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    for path in [
        "/", "/healthz", "/quota", "/quota.json", "/audit", "/audit/follow", "/config", "/style.css", "/openapi.json",
        "/metrics/", "/metrics.json", "/api/v2/organizations",
    ] {
        let reply = send(door, "GET", path, &key, "").await.expect(404);
        assert_eq!(reply.json()["type"], "urn:makegate:operator:no-page", "{path}");
        let page = send(door, "GET", path, &format!("{key}accept: text/html\r\n"), "").await.expect(404);
        assert!(!page.text().contains("href=\"/audit\""), "{path} has a menu of pages that are not there");
    }
    for path in ["/cache/purge", "/audit/rotate", "/doubts/x"] {
        send(door, "POST", path, &format!("{key}content-type: application/json\r\n"), "{\"all\": true}")
            .await
            .expect(404);
    }
    send(door, "POST", "/metrics", &key, "").await.expect(405);
}

#[tokio::test]
async fn there_is_none_unless_it_is_configured_and_a_reload_does_not_move_it() {
    let world = World::start().await;
    assert!(world.service.metrics_addresses().is_empty());
    let text = std::fs::read_to_string(world.file()).unwrap();
    std::fs::write(world.file(), format!("{text}[metrics]\nlisten = \"127.0.0.1:0\"\n")).unwrap();
    let why = world.service.reload().await.unwrap_err().to_string();
    assert!(why.starts_with("metrics.listen cannot change while makegate is running"), "{why}");
}

/// Old load balancers speak HTTP/1.0 and name no host.
#[tokio::test]
async fn probes_over_http_1_0_without_a_host_are_answered_at_every_door() {
    let world = plan().start().await;
    let service = &world.service;
    let doors = [service.gateway_addresses()[0], service.operator_addresses()[0], service.metrics_addresses()[0]];
    for door in doors {
        for path in ["/livez", "/readyz"] {
            for method in ["GET", "HEAD"] {
                raw(door, &format!("{method} {path} HTTP/1.0\r\n\r\n")).await.unwrap().expect(200);
            }
        }
    }
    raw(doors[2], "GET /metrics HTTP/1.0\r\n\r\n").await.unwrap().expect(200);
    raw(doors[1], "GET /quota HTTP/1.0\r\n\r\n").await.unwrap().expect(421);
}

async fn readiness(world: &World, target: &str) -> (u16, String) {
    let reply = send(world.service.metrics_addresses()[0], "GET", target, "", "").await;
    (reply.status, reply.text().to_owned())
}

/// Reads can still be answered from memory: load balancers go on sending, people see why they should look.
#[tokio::test]
async fn each_thing_that_is_wrong_has_its_line_and_only_what_stops_everything_is_unready() {
    let world = plan().start().await;
    let (status, all) = readiness(&world, "/readyz?verbose").await;
    assert_eq!(
        (status, &*all),
        (
            200,
            "[+] config: ok\n[+] log: ok\n[+] draining: ok\n[+] upstream: ok\n[+] token: not tried yet\n[+] doubts: ok\n\
             [+] telemetry: ok\n[+] quota: ok\n[+] certificates: ok\n[+] keys: ok\nready\n"
        )
    );

    world.get(ALL, ORG).await.expect(200);
    assert!(readiness(&world, "/readyz?verbose").await.1.contains("[+] token: ok\n"));
    world.sandbox.set_token("another-token-of-make");
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG204");
    let good = std::fs::read_to_string(world.file()).unwrap();
    std::fs::write(world.file(), "nonsense").unwrap();
    world.service.reload().await.unwrap_err();
    for target in ["/readyz", "/readyz?verbose"] {
        let (status, text) = readiness(&world, target).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("[!] token: degraded: Make refuses the gateway's token"), "{text}");
        assert!(text.contains("[!] config: degraded: the last reload failed"), "{text}");
    }
    world.get(ALL, ORG).await.expect(200);
    std::fs::write(world.file(), good).unwrap();
    world.reload().await;
    assert!(!readiness(&world, "/readyz").await.1.contains("config"));

    let world = plan().upstream("http://127.0.0.1:1").start().await;
    for _ in 0..6 {
        world.get(ALL, ORG).await;
    }
    let (status, text) = readiness(&world, "/readyz?verbose").await;
    assert!(status == 200 && text.contains("[!] upstream: degraded: Make could not be reached"), "{text}");
    world.service.gateway().drain();
    let (status, text) = readiness(&world, "/readyz").await;
    assert!(status == 503 && text.contains("[-] draining: failed") && text.ends_with("not ready\n"), "{text}");
}
