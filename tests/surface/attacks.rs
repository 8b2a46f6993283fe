//! Attacks whose parts are tested one by one in `src`, on the whole: what an attacker does, and what comes of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::support::hostile::{Origin, Step, repeated, tls_identity};
use crate::support::process::binary;
use crate::support::{
    ALL, LIST, OPERATOR, ORG, Plan, TOKEN, VARIABLES, World, new_dir, raw, segments_in, send, with_key,
};

fn makegate(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).env_remove("MAKEGATE_LOG").output().unwrap()
}

fn all_said(output: &Output) -> String {
    [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat()
}

#[tokio::test]
async fn a_rebound_name_and_a_foreign_page_reach_nothing_of_the_operators() {
    let world = World::start().await;
    let door = world.service.operator_addresses()[0];
    let ask = async |host: &str, more: &str| {
        let head = format!("GET /quota HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {OPERATOR}\r\n{more}");
        raw(door, &format!("{head}connection: close\r\n\r\n")).await.unwrap()
    };
    assert_eq!(ask("evil.example", "").await.status, 421);
    assert_eq!(ask("localhost", "origin: http://evil.example\r\n").await.status, 403);
    let page = ask("localhost", "accept: text/html\r\n").await.expect(200);
    assert_eq!(
        (page.header("x-frame-options"), page.header("x-content-type-options")),
        (Some("DENY"), Some("nosniff"))
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe-inline"), "{policy}");
}

#[tokio::test]
async fn what_hides_in_a_record_is_shown_escaped() {
    let world = World::start().await;
    world.get(ALL, "/api/v2/%E2%80%AEtxt.exe%F3%A0%81%81").await.expect(404);
    assert_eq!(world.records().await.len(), 1);
    let key = format!("authorization: Bearer {OPERATOR}\r\naccept: text/html\r\n");
    for page in ["/audit", "/audit.csv", "/audit.json"] {
        let shown = send(world.service.operator_addresses()[0], "GET", page, &key, "").await.expect(200);
        let text = shown.text();
        assert!(!text.contains(['\u{202e}', '\u{e0041}']), "{page}: {text}");
        assert!(text.contains("txt.exe"), "{page}: {text}");
    }
    let config = world.file();
    for form in ["csv", "json", "table"] {
        let shown = all_said(&makegate(&["audit", "query", "--config", config.to_str().unwrap(), "-o", form]));
        assert!(!shown.contains(['\u{202e}', '\u{e0041}']) && shown.contains("MG121"), "{shown}");
        assert_eq!(shown.contains("txt.exe"), form != "table", "{shown}");
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_told_without_being_shown_and_open_files_are_told() {
    let dir = new_dir();
    let file = dir.path().join("makegate.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        all_said(&makegate(&["check", "--config", file.to_str().unwrap()]))
    };
    let text = Plan::default().text("http://127.0.0.1:9");
    let misplaced =
        text.replace("token_file = \"token\"", &format!("token_file = \"Token {TOKEN}\"\ntokn = \"{TOKEN}\""));
    let told = check(&misplaced);
    assert!(told.contains("tokn") && !told.contains(&TOKEN[..8]), "{told}");
    fs::set_permissions(dir.path().join("token"), Permissions::from_mode(0o644)).unwrap();
    let open = check(&text);
    fs::set_permissions(dir.path().join("token"), Permissions::from_mode(0o600)).unwrap();
    let closed = check(&text);
    let warnings = |told: &str| told.matches("every user of this machine").count();
    assert_eq!(warnings(&open), warnings(&closed) + 1, "{open}\n{closed}");
}

#[tokio::test]
async fn an_altered_log_is_found_by_the_command() {
    let world = World::start().await;
    for name in ["one", "two", "three"] {
        world.patch(ALL, ORG, &format!("{{\"name\":\"{name}\"}}")).await.expect(200);
    }
    let World { service, dir, .. } = world;
    assert!(service.shut_down().await);
    let audit = dir.path().join("audit");
    let verify = || makegate(&["audit", "verify", audit.to_str().unwrap()]);
    assert_eq!(verify().status.code(), Some(0), "{}", all_said(&verify()));
    let segment = &segments_in(&audit)[0];
    let text = fs::read_to_string(segment).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let without_one: String = lines.iter().enumerate().filter(|(at, _)| *at != 3).map(|(_, line)| *line).collect();
    for altered in [text.replacen("\"all\"", "\"alt\"", 1), without_one, lines[..lines.len() - 1].concat()] {
        fs::write(segment, altered).unwrap();
        assert_eq!(verify().status.code(), Some(1), "{}", all_said(&verify()));
    }
    fs::write(segment, &text).unwrap();
    let forged = audit.join("0000000000.jsonl");
    fs::write(&forged, &text).unwrap();
    assert_eq!(verify().status.code(), Some(1), "a file that no segment can be");
    fs::remove_file(forged).unwrap();
    assert_eq!(verify().status.code(), Some(0), "{}", all_said(&verify()));
}

#[tokio::test]
async fn a_server_without_makes_certificate_gets_no_request() {
    let (authority, _) = tls_identity(&["127.0.0.1"]);
    let (_, foreign) = tls_identity(&["127.0.0.1"]);
    let answer = Step::write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}");
    let origin = Origin::start_tls(vec![repeated(&[Step::Read, answer], 9); 9], foreign);
    let dir = new_dir();
    fs::write(dir.path().join("ca.pem"), authority).unwrap();
    let plan =
        Plan::default().set("upstream", "ca_file = \"ca.pem\"").upstream(format!("https://{}", origin.address()));
    let world = plan.start_in(dir).await;
    world.get(ALL, LIST).await.expect(502);
    assert!(origin.received().is_empty());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_cut() {
    const BYTES: usize = 8 << 20;
    let world = Plan::default().set("limits", "write_stall = \"1s\"").start().await;
    let body = format!("{{\"x\":\"{}\"}}", "a".repeat(BYTES));
    world.sandbox.fault(Fault::always("GET", VARIABLES, FaultKind::status(200).with_body(&body)));
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(world.gateway).await.unwrap();
    let head = format!("GET {VARIABLES} HTTP/1.1\r\nhost: a\r\n{}\r\n", with_key(ALL, &[]));
    stream.write_all(head.as_bytes()).await.unwrap();
    let connections = "makegate_connections{door=\"gateway\"} ";
    let open = async || {
        let metrics = send(world.service.operator_addresses()[0], "GET", "/metrics", "", "").await;
        let mut lines = metrics.text().lines().filter_map(|line| line.strip_prefix(connections));
        lines.next().unwrap().to_owned()
    };
    for _ in 0..600 {
        if open().await == "0" {
            let mut rest = Vec::new();
            let _reset_or_ended = stream.read_to_end(&mut rest).await;
            assert!(rest.len() < BYTES, "it was sent whole");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the connection stays open");
}
