//! TLS at the operator door, and the client certificates that it demands besides the key.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;

use crate::support::tls::{Authority, Identity, connect_to, show};
use crate::support::{OPERATOR, Plan, Reply, World, exchange, new_dir};

/// One GET with the operator's key. `None`: there was no answer.
async fn get(to: SocketAddr, roots: &Arc<RootCertStore>, identity: Option<&Identity>, target: &str) -> Option<Reply> {
    let stream = connect_to(to, roots, &["http/1.1"], identity).await.ok()?;
    let head = format!(
        "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {OPERATOR}\r\n\r\n"
    );
    exchange(stream, &head).await
}

async fn world(more: &str, authority: &Authority) -> (World, Arc<RootCertStore>) {
    let dir = new_dir();
    let roots = show(dir.path(), "cert.pem", "key.pem");
    std::fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    let plan = Plan::default().set("operator", &format!("tls = {{ cert = \"cert.pem\", key = \"key.pem\"{more} }}"));
    (plan.start_in(dir).await, roots)
}

#[tokio::test]
async fn a_certificate_of_the_authority_is_demanded_besides_the_key() {
    let (own, other) = (Authority::new(), Authority::new());
    let (world, roots) = world(", client_ca = \"ca.pem\"", &own).await;
    let door = world.service.operator_addresses()[0];
    let [good, foreign] = [&own, &other].map(|authority| authority.identity("anna", &["anna.example"]));
    get(door, &roots, Some(&good), "/quota").await.unwrap().expect(200);
    assert!(get(door, &roots, None, "/quota").await.is_none(), "a client without a certificate came in");
    assert!(get(door, &roots, Some(&foreign), "/quota").await.is_none(), "another authority's certificate will do");
    // The certificate alone is not enough.
    let stream = connect_to(door, &roots, &["http/1.1"], Some(&good)).await.unwrap();
    let head = "GET /quota HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    exchange(stream, head).await.unwrap().expect(401);

    // A reload brings another authority and another certificate of the door.
    std::fs::write(world.dir.path().join("ca.pem"), &other.pem).unwrap();
    let renewed = show(world.dir.path(), "cert.pem", "key.pem");
    world.reload().await;
    get(door, &renewed, Some(&foreign), "/quota").await.unwrap().expect(200);
    assert!(get(door, &renewed, Some(&good), "/quota").await.is_none(), "the authority that is gone still counts");
    assert!(get(door, &roots, Some(&foreign), "/quota").await.is_none(), "the old certificate is still shown");
    std::fs::write(world.dir.path().join("ca.pem"), "nonsense").unwrap();
    assert!(world.service.reload().await.is_err());
    get(door, &renewed, Some(&foreign), "/quota").await.unwrap().expect(200);
}

#[tokio::test]
async fn without_an_authority_the_key_is_enough() {
    let (world, roots) = world("", &Authority::new()).await;
    let door = world.service.operator_addresses()[0];
    get(door, &roots, None, "/quota").await.unwrap().expect(200);
    get(door, &roots, None, "/livez").await.unwrap().expect(200);
}

/// The commands are clients, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_show_a_certificate_and_trust_an_authority_of_their_own() {
    let authority = Authority::new();
    let (world, _) = world(", client_ca = \"ca.pem\"", &authority).await;
    let (certificate, key) = authority.pem("anna", &["anna.example"]);
    std::fs::write(world.dir.path().join("anna.pem"), certificate + &key).unwrap();
    let url = format!("https://localhost:{}", world.service.operator_addresses()[0].port());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(crate::support::process::binary());
        command.args(arguments).args(["--url", &url]).current_dir(world.dir.path());
        command.env("MAKEGATE_OPERATOR_KEY", OPERATOR).env_remove("MAKEGATE_CONFIG");
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // The door's certificate is self-signed: it is its own authority.
    for command in [&["audit", "query"] as &[&str], &["doubts", "list"], &["healthcheck"]] {
        let all = [command, &["--ca", "cert.pem", "--cert", "anna.pem"]].concat();
        assert_eq!(run(&all).0, Some(0), "{command:?}: {}", run(&all).1);
        assert_eq!(
            run(&[command, &["--ca", "cert.pem"]].concat()).0,
            Some(1),
            "{command:?} came in without a certificate"
        );
        assert_eq!(
            run(&[command, &["--ca", "ca.pem", "--cert", "anna.pem"]].concat()).0,
            Some(1),
            "{command:?} trusts everybody"
        );
    }
    let (code, told) = run(&["healthcheck", "--ca", "nowhere.pem"]);
    assert!(code == Some(2) && told.contains("--ca nowhere.pem: "), "{told}");
}
