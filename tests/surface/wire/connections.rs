//! Connections: kept, pipelined, over a Unix socket.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use makegate::clock::Clock;
use makegate::service::Service;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::{USAGE, still};
use crate::support::{ALL, LIST, World, raw, with_key};

/// Everything that comes back after these requests on one connection.
async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, requests: &str) -> String {
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    answers
}

fn request(target: &str, id: &str, connection: &str) -> String {
    let headers = with_key(ALL, &[&format!("x-request-id: {id}"), &format!("connection: {connection}")]);
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_their_order() {
    let world = still().start().await;
    let three = ["/api/v2/organizations/11/apps", "/nowhere", USAGE]
        .map(|target| request(target, &target.replace('/', "."), "keep-alive"));
    let requests = three.concat() + &request(LIST, "last", "close");
    let answers = talk(TcpStream::connect(world.gateway).await.unwrap(), &requests).await;
    let ids: Vec<&str> = answers.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!(ids, [".api.v2.organizations.11.apps", ".nowhere", ".api.v2.organizations.11.usage", "last"]);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3);
}

#[tokio::test]
async fn a_unix_socket_is_a_door_too() {
    let world = still().set("gateway", "listen = [\"127.0.0.1:0\", \"unix:door.sock\"]").start().await;
    let stream = UnixStream::connect(world.dir.path().join("door.sock")).await.unwrap();
    let answer = talk(stream, &request(USAGE, "local", "close")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(world.last_record().await["peer"].as_str().unwrap().starts_with("unix"));
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_never_removed_for_one() {
    let dir = crate::support::new_dir();
    std::fs::write(dir.path().join("door.sock"), "precious").unwrap();
    let plan = still().set("gateway", "listen = [\"127.0.0.1:0\", \"unix:door.sock\"]");
    std::fs::write(dir.path().join("makegate.toml"), plan.text("http://127.0.0.1:9")).unwrap();
    let read = makegate::config::read(&dir.path().join("makegate.toml")).unwrap();
    let told = Service::start(read, Clock::system()).await.err().expect("it started").to_string();
    assert!(told.contains("door.sock") && told.contains("not a socket"), "{told}");
    assert_eq!(std::fs::read_to_string(dir.path().join("door.sock")).unwrap(), "precious");
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_replaced_and_its_own_is_removed_at_the_end() {
    let dir = crate::support::new_dir();
    let path = dir.path().join("door.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let plan = still().set("gateway", "listen = [\"127.0.0.1:0\", \"unix:door.sock\"]");
    let world = plan.start_in(dir).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let answer = talk(UnixStream::connect(&path).await.unwrap(), &request(USAGE, "local", "close")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let hidden = std::fs::read_dir(world.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(hidden.into_iter().all(|name| !name.as_encoded_bytes().starts_with(b".")), "something was left beside it");
    assert!(world.service.shut_down().await);
    assert!(!path.exists());
}

/// Seen by a watcher that looks as fast as it can: under its name the socket is never open to more users than it shall be.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_never_stands_open_to_everybody() {
    let dir = crate::support::new_dir();
    let path = dir.path().join("door.sock");
    let (over, watched) = (Arc::new(AtomicBool::new(false)), path.clone());
    let watcher = std::thread::spawn({
        let over = over.clone();
        move || {
            let mut seen = std::collections::BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                seen.extend(std::fs::symlink_metadata(&watched).map(|file| file.permissions().mode() & 0o777));
            }
            seen
        }
    });
    let mut dir = Some(dir);
    for _ in 0..10 {
        let plan = still().set("gateway", "listen = [\"127.0.0.1:0\", \"unix:door.sock\"]");
        let world = plan.start_in(dir.take().unwrap()).await;
        let World { service, dir: same, .. } = world;
        assert!(service.shut_down().await);
        dir = Some(same);
    }
    over.store(true, Ordering::Relaxed);
    assert_eq!(watcher.join().unwrap().into_iter().collect::<Vec<_>>(), [0o660]);
}

#[tokio::test]
async fn both_families_may_have_the_same_port() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("not tested: there is no IPv6 here");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for first in ["0.0.0.0", "[::]"] {
        let second = if first == "[::]" { "0.0.0.0" } else { "[::]" };
        let world =
            still().set("gateway", &format!("listen = [\"{first}:{port}\", \"{second}:{port}\"]")).start().await;
        for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let stream = TcpStream::connect(&address).await.unwrap();
            let answer = talk(stream, &request(USAGE, "mine", "close")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{address}: {answer}");
        }
        assert!(world.service.shut_down().await);
    }
}

/// As clients write that take the gateway for a proxy (RFC 9112 section 3.2.2).
#[tokio::test]
async fn a_target_in_absolute_form_is_its_path() {
    let world = still().start().await;
    raw(world.gateway, &request(&format!("http://localhost{USAGE}"), "a", "close")).await.unwrap().expect(200);
    assert_eq!(world.last_record().await["path"], USAGE);
    assert_eq!(world.sandbox.received()[0].header("host"), Some(&*world.sandbox.address().to_string()));
}
