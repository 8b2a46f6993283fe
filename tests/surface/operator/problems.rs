//! An on-call engineer finds from the overview alone what is wrong and what to do.

use std::fs;

use makegate::sandbox::{Fault, FaultKind};
use rustix::io::Errno;
use serde_json::Value;

use crate::support::disk::{Disk, Effect, Fault as DiskFault, Operation};
use crate::support::{ALL, OPERATOR, ORG, Plan, VARIABLES, World, new_dir, send, until};

/// The problem of this name, which the page for people shows too; the page itself.
async fn problem(world: &World, name: &str) -> (Value, String) {
    let operator = world.service.operator_addresses()[0];
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let overview = send(operator, "GET", "/.json", &key, "").await.expect(200).json();
    let problems = overview["problems"].as_array().unwrap();
    let found = problems.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}: {problems:?}"));
    let page = send(operator, "GET", "/", &format!("{key}accept: text/html\r\n"), "").await.expect(200);
    let page = page.text().to_owned();
    assert!(page.contains(&format!("id=\"{name}\"")) && page.contains("What to do: "), "{page}");
    (found.clone(), page)
}

async fn names(world: &World) -> Vec<String> {
    let operator = world.service.operator_addresses()[0];
    let overview =
        send(operator, "GET", "/.json", &format!("authorization: Bearer {OPERATOR}\r\n"), "").await.expect(200).json();
    let names = overview["problems"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
    // The tests may run as root.
    names.filter(|name| name != "runs-as-root").collect()
}

fn says(problem: &Value, member: &str, words: &[&str]) {
    let text = problem[member].as_str().unwrap();
    for word in words {
        assert!(text.contains(word), "{word} is not in {text}");
    }
}

#[tokio::test]
async fn a_refused_token_is_told_with_its_remedy_until_it_is_accepted_again() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    let before = names(&world).await;
    assert!(before.iter().all(|name| name == "configuration-warning"), "{before:?}");
    world.sandbox.set_token("another-token-of-make");
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.refused(502, "MG204");
    let (told, _) = problem(&world, "token-refused").await;
    says(&told, "what", &["refuses the gateway's token", "callers' keys are fine"]);
    says(&told, "todo", &["new API token", "upstream.token_file"]);
    let since = told["since"].as_str().unwrap().to_owned();
    assert!(since.len() == "2026-11-30T01:38:18.313Z".len() && told["page"] == "/audit?refusal=MG204", "{told}");
    assert_eq!(told["runbook"], "MakegateTokenRefused");
    world.clock.advance(std::time::Duration::from_secs(3));
    assert_eq!(problem(&world, "token-refused").await.0["since"], since, "it moves");
    let file = world.file().with_file_name("token");
    fs::write(&file, "a-third-token-of-make").unwrap();
    world.reload().await;
    let (told, _) = problem(&world, "token-refused").await;
    says(&told, "what", &["Another token is in force now, and has not been tried yet"]);
    says(&told, "todo", &["Send a read"]);
    fs::write(&file, crate::support::TOKEN).unwrap();
    world.reload().await;
    world.sandbox.set_token(crate::support::TOKEN);
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.expect(200);
    assert_eq!(names(&world).await, before);
}

#[tokio::test]
async fn make_down_is_told_whether_it_does_not_answer_or_answers_with_errors() {
    let world = Plan::default().upstream("http://127.0.0.1:1").start().await;
    for _ in 0..6 {
        world.get(ALL, ORG).await;
    }
    let (told, _) = problem(&world, "upstream-down").await;
    says(&told, "what", &["Make cannot be reached"]);
    says(&told, "todo", &["status page", "127.0.0.1:1", "send a read"]);
    assert!(told["since"].is_string(), "{told}");

    let world = World::start().await;
    let headers = std::collections::BTreeMap::new();
    let kind = FaultKind::Answer { status: 503, body: None, content_type: None, headers, effect: false };
    world.sandbox.fault(Fault { times: None, ..Fault::once("GET", ORG, kind) });
    for _ in 0..5 {
        world.get_with(ALL, ORG, &["cache-control: no-store"]).await;
    }
    let (told, _) = problem(&world, "upstream-errors").await;
    says(&told, "what", &["5xx", "the last one 503"]);
    world.sandbox.clear_faults();
    world.get_with(ALL, ORG, &["cache-control: no-store"]).await.expect(200);
    assert!(!names(&world).await.contains(&"upstream-errors".to_owned()));
}

#[tokio::test]
async fn a_quota_that_one_caller_spends_is_told_with_its_name_and_when_the_next_request_can_go() {
    let world = Plan::default().set("upstream", "quota = \"10/min\"\nquota_wait = \"50ms\"").start().await;
    for _ in 0..14 {
        world.get_with(ALL, ORG, &["cache-control: no-store"]).await;
    }
    let (told, page) = problem(&world, "quota-spent").await;
    says(&told, "what", &["The quota of organization 11: ", " of 10 a minute are used, most by all (", "can go in "]);
    says(&told, "todo", &["caller.all.rate"]);
    assert_eq!(told["page"], "/audit?caller=all&organization=11&since=10m");
    assert!(page.contains("/audit?caller=all&amp;organization=11&amp;since=10m"), "{page}");
}

#[tokio::test]
async fn a_full_disk_is_told_with_its_folder_and_that_writes_are_refused() {
    let dir = new_dir();
    let below = dir.path().join("below");
    let at = dir.path().join("audit");
    fs::create_dir(&below).unwrap();
    fs::create_dir(&at).unwrap();
    let Some(disk) = Disk::mount(&below, &at) else { return };
    let world = Plan::default().start_in(dir).await;
    disk.fault(DiskFault::of("*.jsonl", Operation::Write, Effect::Fail(Errno::NOSPC)));
    world.post(ALL, VARIABLES, r#"{"name":"a","typeId":1,"value":1}"#).await.expect(503);
    until(|| !world.service.gateway().log.writable()).await;
    let (told, _) = problem(&world, "log-outage").await;
    says(&told, "what", &["writes are refused", "No space left"]);
    says(&told, "todo", &["Free space", &at.display().to_string(), "audit.retention", "restart makegate"]);
    assert!(told["since"].is_string(), "{told}");
    disk.heal();
    until(|| world.service.gateway().log.writable()).await;
    assert!(!names(&world).await.contains(&"log-outage".to_owned()));
    assert!(world.service.shut_down().await);
    drop(disk);
}

#[tokio::test]
async fn a_certificate_near_its_end_is_told_before_and_after() {
    let dir = new_dir();
    let plan = Plan::default().set("gateway", "tls = { cert = \"cert.pem\", key = \"key.pem\" }");
    let now = plan.now().as_second().try_into().unwrap();
    let end = std::time::Duration::from_secs(20 * 24 * 3600);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = (std::time::UNIX_EPOCH + std::time::Duration::from_secs(now) + end).into();
    fs::write(dir.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
    let world = plan.start_in(dir).await;
    assert!(!names(&world).await.contains(&"certificate-ends".to_owned()));
    world.clock.advance(end / 2);
    let (told, _) = problem(&world, "certificate-ends").await;
    assert_eq!(told["severity"], "warning");
    says(&told, "what", &["The certificate of the gateway door expires at "]);
    world.clock.advance(end / 2 - std::time::Duration::from_secs(24 * 3600));
    assert_eq!(problem(&world, "certificate-ends").await.0["severity"], "degraded");
    says(&told, "todo", &["gateway.tls", "within 5 s"]);
    world.clock.advance(end);
    let (told, _) = problem(&world, "certificate-ends").await;
    assert_eq!(told["severity"], "degraded");
    says(&told, "what", &["expired at", "cannot connect"]);
    let ready = send(world.service.operator_addresses()[0], "GET", "/readyz?verbose", "", "").await.expect(200);
    assert!(ready.text().contains("[!] certificates: degraded: a door's certificate has expired"), "{}", ready.text());
}

#[tokio::test]
async fn a_failed_reload_is_told_with_its_error() {
    let world = World::start().await;
    let good = fs::read_to_string(world.file()).unwrap();
    fs::write(world.file(), good.replace("[cache]", "[cache]\nnonsense = 1")).unwrap();
    world.service.reload().await.unwrap_err();
    let (told, _) = problem(&world, "reload-failed").await;
    says(&told, "what", &["the configuration before it is in force", "nonsense"]);
    assert!(told["what"].as_str().unwrap().ends_with('.'), "{told}");
    says(&told, "todo", &["makegate check --config ", "within 5 s"]);
    assert_eq!(told["page"], "/config");
    fs::write(world.file(), good).unwrap();
    world.reload().await;
    assert!(!names(&world).await.contains(&"reload-failed".to_owned()));
}
