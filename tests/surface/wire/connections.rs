//! Connections: kept, pipelined, over a Unix socket.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::{USAGE, still};
use crate::support::{ALL, LIST, raw, with_key};

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

/// As clients write that take the gateway for a proxy (RFC 9112 section 3.2.2).
#[tokio::test]
async fn a_target_in_absolute_form_is_its_path() {
    let world = still().start().await;
    raw(world.gateway, &request(&format!("http://elsewhere.example{USAGE}"), "a", "close")).await.unwrap().expect(200);
    assert_eq!(world.last_record().await["path"], USAGE);
    assert_eq!(world.sandbox.received()[0].header("host"), Some(&*world.sandbox.address().to_string()));
}
