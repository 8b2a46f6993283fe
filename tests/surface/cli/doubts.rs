//! `makegate doubts`: of a running makegate and of its files, and what it says when there is nothing to do.

use std::path::Path;

use makegate::sandbox::{Fault, FaultKind};
use serde_json::Value;

use super::{command, run, stderr, stdout};
use crate::support::{ALL, OPERATOR, ORG, World};

/// A world with a payment in doubt, its request id, and the name of a configuration that says where its operator door is.
async fn doubtful() -> (World, String, &'static str) {
    let world = World::start().await;
    let pay = format!("{ORG}/single-payment-create");
    world.sandbox.fault(Fault::once("POST", &pay, FaultKind::Reset { effect: false }));
    let answer = world.post(ALL, &pay, r#"{"priceId":1}"#).await.refused(502, "MG222");
    let text = std::fs::read_to_string(world.file()).unwrap();
    let door = format!("[operator]\nlisten = \"{}\"", world.service.operator_addresses()[0]);
    std::fs::write(world.dir.path().join("door.toml"), text.replace("[operator]\nlisten = \"127.0.0.1:0\"", &door))
        .unwrap();
    (world, answer.header("x-request-id").unwrap().to_owned(), "door.toml")
}

/// A configuration of the same files at whose operator door nobody answers.
fn nobody(folder: &Path) -> &'static str {
    let text = std::fs::read_to_string(folder.join("makegate.toml")).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let door = format!("[operator]\nlisten = \"{free}\"");
    std::fs::write(folder.join("nobody.toml"), text.replace("[operator]\nlisten = \"127.0.0.1:0\"", &door)).unwrap();
    "nobody.toml"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubts_are_listed_and_settled_at_the_running_gateway() {
    let (world, id, config) = doubtful().await;
    let folder = world.dir.path();
    let listed = run(folder, &["doubts", "list", "--config", config]);
    let url = format!("http://{}", world.service.operator_addresses()[0]);
    assert_eq!(stderr(0, &listed), format!("From the makegate running at {url}:\n"));
    let table = stdout(0, &listed);
    assert!(table.starts_with("REQUEST ") && table.lines().count() == 2, "{table}");
    assert!(table.contains(&id) && table.contains("payments.create"), "{table}");
    let json = stdout(0, &run(folder, &["doubts", "list", "--url", &url, "--key-file", "operator", "-o", "json"]));
    let doubt: Value = serde_json::from_str(json.trim_end()).unwrap();
    assert_eq!(
        (&doubt["request"], &doubt["organization"], &doubt["looks"]),
        (&id.as_str().into(), &11.into(), &0.into())
    );
    let csv = stdout(0, &run(folder, &["doubts", "list", "--config", config, "-o", "csv"]));
    assert!(csv.starts_with("request,time,caller,operation,organization,path,looks,why\n"), "{csv}");

    let settle = ["doubts", "settle", &id, "--as", "not-done", "--note", "no payment in Make", "--config", config];
    assert_eq!(stdout(0, &run(folder, &settle)), format!("{id} is settled as not-done\n"));
    let told = stderr(1, &run(folder, &settle));
    assert!(told.contains("404 Not Found: No write in doubt has this request id"), "{told}");
    let listed = command(folder, &["doubts", "list"])
        .env("MAKEGATE_OPERATOR_URL", &url)
        .env("MAKEGATE_OPERATOR_KEY", OPERATOR)
        .output();
    assert_eq!(stderr(0, &listed.unwrap()), "No write is in doubt.\n");
    let settlement = world.last_record().await;
    assert_eq!((&settlement["kind"], &settlement["outcome"]), (&"settlement".into(), &"rejected".into()));
    assert_eq!(settlement["detail"], "no payment in Make");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_doubts_of_a_caller_are_settled_at_once() {
    let (world, id, config) = doubtful().await;
    let folder = world.dir.path();
    let settle = |all_of, rest: &[&str]| {
        let all = ["doubts", "settle", "--all-of", all_of, "--as", "done", "--note", "looked", "--config", config];
        stdout(0, &run(folder, &[&all, rest].concat()))
    };
    assert_eq!(settle("too", &[]), "0 writes are settled as done\n");
    assert_eq!(settle("all", &["--before", "2020-01-01T00:00:00Z"]), "0 writes are settled as done\n");
    assert_eq!(settle("all", &["--operation", "payments.create"]), "1 writes are settled as done\n");
    let settlement = world.last_record().await;
    assert_eq!((&settlement["request"], &settlement["detail"]), (&id.as_str().into(), &"looked".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_they_are_read_from_the_files_whoever_holds_the_log() {
    let (world, id, _) = doubtful().await;
    let folder = world.dir.path();
    let config = nobody(folder);
    let list = ["doubts", "list", "--config", config, "-o", "json"];
    let listed = run(folder, &list);
    let doubt: Value = serde_json::from_str(stdout(0, &listed).trim_end()).unwrap();
    assert_eq!((&doubt["request"], &doubt["operation"]), (&id.as_str().into(), &"payments.create".into()));
    assert!(stderr(0, &listed).starts_with("No running makegate responds; from the log's files"), "{listed:?}");
    let told = stderr(1, &run(folder, &["doubts", "settle", &id, "--as", "done", "--config", config]));
    assert!(told.contains("no makegate responds at operator.listen"), "{told}");
    let World { service, sandbox: _sandbox, dir, .. } = world;
    assert!(service.shut_down().await);
    assert!(stdout(0, &run(dir.path(), &list)).contains(&id));
}

#[test]
fn what_is_no_doubt_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [
        &["doubts", "settle"] as &[&str],
        &["doubts", "settle", "w1"],
        &["doubts", "settle", "w1", "--all-of", "billing", "--as", "done", "--url", "http://127.0.0.1:1"],
        &["doubts", "settle", "w1", "--before", "2026-07-01T12:00:00Z", "--as", "done", "--url", "http://127.0.0.1:1"],
        &["doubts", "settle", "w1", "--as", "perhaps"],
        &["doubts", "settle", "w1", "--as", "done"],
        &["doubts", "list"],
        &["doubts", "list", "--config", "nowhere.toml"],
    ] {
        assert!(!stderr(2, &run(folder.path(), wrong)).is_empty(), "{wrong:?}");
    }
    let told =
        stderr(2, &run(folder.path(), &["doubts", "settle", "no id", "--as", "done", "--url", "http://127.0.0.1:1"]));
    assert!(told.contains("`makegate doubts list` shows"), "{told}");
    let told = stderr(1, &run(folder.path(), &["doubts", "list", "--url", "http://127.0.0.1:1"]));
    assert!(told.contains("is makegate running"), "{told}");
    std::fs::write(
        folder.path().join("f.toml"),
        "operator = { listen = \"127.0.0.1:1\", key_file = \"k\" }\nupstream.token_file = \"t\"\n",
    )
    .unwrap();
    let told = stderr(1, &run(folder.path(), &["doubts", "list", "--config", "f.toml"]));
    assert!(told.contains("audit") && told.contains("audit.dir"), "{told}");
}
