//! A confined process reads and writes where it must, and nowhere else, whoever it runs as.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::Home;
use crate::support::{ALL, ORG, Plan, TOKEN, new_dir, sandbox_at, send, with_key};

/// Landlock is missing from some kernels and containers; then there is nothing to test but that makegate says so.
fn is_confined(home: &Home) -> bool {
    let log = home.process_log();
    let is_confined = log.contains("confined: other files are out of reach");
    if !is_confined {
        assert!(log.contains("not confined: this system does not support it"), "{log}");
        eprintln!("skipped: no Landlock here");
    }
    is_confined
}

/// Tells the process to reload, and waits for what it says of it.
async fn reload(home: &Home, process: &crate::support::process::Process) -> String {
    let before = home.process_log().len();
    process.signal(Signal::HUP);
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let told = home.process_log()[before..].to_owned();
        if told.contains("was reloaded") || told.contains("was not reloaded") {
            return told;
        }
    }
}

fn replace(home: &Home, file: &str, text: &str) {
    let (next, file) = (home.path().join("next"), home.path().join(file));
    fs::write(&next, text).unwrap();
    fs::rename(next, file).unwrap();
}

async fn hits(home: &Home) -> u16 {
    send(home.gateway, "GET", ORG, &with_key(ALL, &[]), "").await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_reads_and_writes_only_where_it_must() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let mut process = home.serve().await;
    assert_eq!(hits(&home).await, 200);
    let status = fs::read_to_string(format!("/proc/{}/status", process.child().id())).unwrap();
    assert!(status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"])), "{status}");
    if !is_confined(&home) {
        return;
    }
    // Files that are replaced whole, as editors and Kubernetes do.
    replace(&home, "token", TOKEN);
    let text = fs::read_to_string(home.path().join("makegate.toml")).unwrap();
    replace(&home, "makegate.toml", &format!("{text}\n# changed\n"));
    fs::create_dir(home.path().join("..one")).unwrap();
    fs::write(home.path().join("..one/token"), TOKEN).unwrap();
    symlink("..one", home.path().join("..data")).unwrap();
    fs::remove_file(home.path().join("token")).unwrap();
    symlink("..data/token", home.path().join("token")).unwrap();
    let told = reload(&home, &process).await;
    assert!(told.contains("was reloaded"), "{told}");
    assert_eq!(hits(&home).await, 200);
    let metrics = send(home.operator, "GET", "/metrics", "", "").await.expect(200);
    assert!(metrics.text().contains("process_open_fds "), "the kernel's figures are still read");
    // A file elsewhere: by name, and behind a link.
    let elsewhere = new_dir();
    let token = elsewhere.path().join("token");
    replace(&home, "makegate.toml", &text.replace("token_file = \"token\"", &format!("token_file = {token:?}")));
    let told = reload(&home, &process).await;
    assert!(told.contains("was not reloaded") && told.contains("restart"), "{told}");
    replace(&home, "makegate.toml", &text);
    fs::remove_file(home.path().join("token")).unwrap();
    symlink(&token, home.path().join("token")).unwrap();
    let told = reload(&home, &process).await;
    assert!(told.contains("was not reloaded") && told.contains("restart"), "{told}");
    assert_eq!(hits(&home).await, 200, "the old configuration stays in force");
    assert_eq!(process.end(), Some(0));
    // After a restart it may read there.
    let process = home.serve().await;
    assert_eq!(hits(&home).await, 200);
    assert_eq!(process.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn confinement_can_be_turned_off() {
    let home = Home::new(&Plan::default().tables("[process]\nconfine = false\n"), "http://127.0.0.1:9");
    let process = home.serve().await;
    assert!(home.process_log().contains("not confined: process.confine is off"));
    let elsewhere = new_dir();
    fs::remove_file(home.path().join("token")).unwrap();
    symlink(elsewhere.path().join("token"), home.path().join("token")).unwrap();
    let told = reload(&home, &process).await;
    assert!(told.contains("was reloaded"), "{told}");
    assert_eq!(process.end(), Some(0));
}

/// Everything that is made while makegate runs: segments, heads, the index, sockets.
#[tokio::test(flavor = "multi_thread")]
async fn what_it_makes_while_it_runs_is_made() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let plan = Plan::default().set("audit", "segment = \"64KiB\"").set("limits", "drain = \"2s\"");
    let home = Home::new(&plan, &format!("http://{}", sandbox.address()));
    let file = home.path().join("makegate.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::create_dir(home.path().join("sockets")).unwrap();
    let (gateway, socket) = (home.gateway.to_string(), home.path().join("sockets/gate"));
    let both = format!("listen = [\"{gateway}\", \"unix:{}\"]", socket.display());
    fs::write(&file, text.replacen(&format!("listen = \"{gateway}\""), &both, 1)).unwrap();
    let process = home.serve().await;
    assert!(fs::symlink_metadata(&socket).is_ok());
    for _ in 0..300 {
        assert_eq!(hits(&home).await, 200);
    }
    let body = "{\"name\": \"x\"}";
    let key = with_key(ALL, &["idempotency-key: a"]);
    send(home.gateway, "PATCH", ORG, &key, body).await.expect(200);
    fs::remove_file(home.path().join("audit/index.sqlite")).unwrap();
    let operator = with_operator_key();
    let page = send(home.operator, "GET", "/audit.json?limit=500", &operator, "").await.expect(200).json();
    assert!(page["records"].as_array().is_some_and(|records: &Vec<Value>| records.len() > 300));
    assert_eq!(process.end(), Some(0));
    assert!(fs::symlink_metadata(&socket).is_err(), "its socket is removed");
    let log = home.process_log();
    assert!(!log.contains("denied") && !log.contains("\"level\":\"ERROR\""), "{log}");
}

/// What a write is answered, until it is answered like that.
async fn until_write(home: &Home, status: u16) {
    for _ in 0..600 {
        if send(home.gateway, "PATCH", ORG, &with_key(ALL, &[]), "{\"name\": \"x\"}").await.status == status {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("no write is answered {status}: {}", home.process_log());
}

/// Writes are refused while the data folder is missing, and go on in the new one.
async fn goes_on_in_a_new_folder(home: &Home, data: &Path) {
    until_write(home, 200).await;
    // The gateway may write a file into a folder that has just been emptied.
    while data.exists() {
        let _retried = fs::remove_dir_all(data);
    }
    until_write(home, 503).await;
    fs::create_dir(data).unwrap();
    until_write(home, 200).await;
}

/// As without confinement: writes are refused while the folder is missing, and go on in the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_is_made_anew_is_written_to() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let (elsewhere, file) = (new_dir(), home.path().join("makegate.toml"));
    let data = elsewhere.path().join("audit");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("dir = \"audit\"", &format!("dir = {data:?}"), 1)).unwrap();
    let process = home.serve().await;
    goes_on_in_a_new_folder(&home, &data).await;
    assert_eq!(process.end(), Some(0));
    if is_confined(&home) {
        let log = home.process_log();
        assert!(log.contains("if it is deleted and made anew, makegate goes on in the new one"), "{log}");
    }
}

/// The default: that the log goes on weighs more than that the process cannot change its configuration, and the start says so.
#[tokio::test(flavor = "multi_thread")]
async fn beside_the_configuration_too_a_new_data_folder_is_written_to() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let process = home.serve().await;
    let (is_confined, log, data) = (is_confined(&home), home.process_log(), home.path().join("audit"));
    assert!(!is_confined || log.contains("makegate could change them"), "{log}");
    goes_on_in_a_new_folder(&home, &data).await;
    assert_eq!(process.end(), Some(0));
}

fn with_operator_key() -> String {
    format!("authorization: Bearer {}\r\n", crate::support::OPERATOR)
}
