//! systemd, or whatever speaks its protocol, is told how the service is, and may open its sockets.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use futures_util::FutureExt as _;
use makegate::tasks::Tasks;
use rustix::process::Signal;

use super::stderr;
use crate::support::process::{Home, Process, binary};
use crate::support::{ALL, OPERATOR, Plan, World, raw, send, until, with_key};

/// The next thing that the manager is told besides that the service still serves.
fn next(told: &UnixDatagram) -> String {
    loop {
        let message = any(told);
        if message != "WATCHDOG=1" {
            return message;
        }
    }
}

fn any(told: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = told.recv(&mut buffer).unwrap_or_else(|error| panic!("nothing is told: {error}"));
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_told_how_the_service_is() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:9");
    let told = UnixDatagram::bind(home.path().join("notify")).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let environment = format!("export NOTIFY_SOCKET={}/notify WATCHDOG_USEC=300000", home.path().display());
    let mut process = home.serve_with(&environment).await;
    assert_eq!(next(&told), "READY=1\nSTATUS=serving");
    for _ in 0..3 {
        assert_eq!(any(&told), "WATCHDOG=1");
    }
    for (text, status) in [("", "serving"), ("no = \"such key\"\n", "serving; the last reload failed: ")] {
        let file = home.path().join("makegate.toml");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}{before}")).unwrap();
        process.signal(Signal::HUP);
        let reloading = next(&told);
        let us = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{reloading}"));
        assert!(us.parse::<u64>().unwrap() > 0);
        let ready = next(&told);
        assert!(ready.starts_with(&format!("READY=1\nSTATUS={status}")) && ready.lines().count() == 2, "{ready}");
    }
    process.signal(Signal::TERM);
    assert_eq!(next(&told), "STOPPING=1\nSTATUS=finishing work in progress");
    assert_eq!(process.ended(Duration::from_secs(60)).await, Some(0));
}

/// A stopped process tells nothing: systemd would start it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_run_does_not_say_that_it_serves() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:9");
    let told = UnixDatagram::bind(home.path().join("notify")).unwrap();
    let environment = format!("export NOTIFY_SOCKET={}/notify WATCHDOG_USEC=60000", home.path().display());
    let process = home.serve_with(&environment).await;
    assert_eq!(next(&told), "READY=1\nSTATUS=serving");
    process.signal(Signal::STOP);
    tokio::time::sleep(Duration::from_millis(300)).await;
    told.set_nonblocking(true).unwrap();
    while told.recv(&mut [0; 4096]).is_ok() {}
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(told.recv(&mut [0; 4096]).is_err());
    process.signal(Signal::CONT);
    told.set_nonblocking(false).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(any(&told), "WATCHDOG=1");
    assert_eq!(process.end(), Some(0));
}

/// What the watchdog is told depends on an answer, which a service whose tasks do not run does not give.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_that_hangs_does_not_answer_the_watchdogs_question() {
    let world = World::start().await;
    assert!(world.service.answers().await);
    let (go_on, waits) = mpsc::channel();
    let (is_held, held) = mpsc::channel();
    let hanging = Tasks::new().spawn(async move {
        is_held.send(()).unwrap();
        waits.recv().unwrap();
    });
    // The only thread that runs tasks hangs; this one does not.
    held.recv().unwrap();
    let mut answer = pin!(world.service.answers());
    for _ in 0..20 {
        assert!(answer.as_mut().now_or_never().is_none(), "nobody could answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    go_on.send(()).unwrap();
    assert!(answer.await);
    hanging.await.unwrap();
}

/// Starts it on these two sockets, with these names.
fn on_sockets(home: &Home, sockets: [OwnedFd; 2], names: &str) -> Command {
    let [first, second] = sockets;
    let script =
        "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$; export LISTEN_PID; exec \"$0\" serve --config \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(binary()).arg(home.path().join("makegate.toml"));
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names).env_remove("MAKEGATE_LOG");
    command.stdin(Stdio::from(first)).stdout(Stdio::from(second));
    command
}

fn bound() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_sockets_are_the_doors() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:9");
    let ((gateway, at), (operator, operator_at)) = (bound(), bound());
    // Who comes before it runs waits in the socket's queue.
    let early =
        Tasks::new().spawn(async move { raw(at, "GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await });
    let log = fs::File::create(home.path().join("log")).unwrap();
    let sockets = [OwnedFd::from(gateway), OwnedFd::from(operator)];
    let process = Process::start(on_sockets(&home, sockets, "gateway:operator").stderr(log));
    assert_eq!(early.await.unwrap().unwrap().status, 200);
    send(at, "GET", "/nowhere", &with_key(ALL, &[]), "").await.refused(404, "MG121");
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    send(operator_at, "GET", "/callers.json", &key, "").await.expect(200);
    assert!(std::net::TcpStream::connect(home.gateway).is_err(), "it binds nothing itself");
    until(|| home.process_log().contains(&at.to_string())).await;
    assert_eq!(process.end(), Some(0));

    // A Unix socket belongs to who made it: it stays when the process ends.
    let path = home.path().join("gate");
    let (gateway, (operator, _)) = (UnixListener::bind(&path).unwrap(), bound());
    let log = fs::File::create(home.path().join("log")).unwrap();
    let sockets = [OwnedFd::from(gateway), OwnedFd::from(operator)];
    let process = Process::start(on_sockets(&home, sockets, "gateway:operator").stderr(log));
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let ask = "GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert_eq!(crate::support::exchange(stream, ask).await.unwrap().status, 200);
    assert_eq!(process.end(), Some(0));
    assert!(fs::symlink_metadata(&path).is_ok());

    let ((gateway, _), (operator, _)) = (bound(), bound());
    let sockets = [OwnedFd::from(gateway), OwnedFd::from(operator)];
    let refused = on_sockets(&home, sockets, "gateway:other").stderr(Stdio::piped()).output().unwrap();
    assert!(
        stderr(2, &refused).contains("a socket named \\\"other\\\" was passed")
            || stderr(2, &refused).contains("\"other\"")
    );
}
