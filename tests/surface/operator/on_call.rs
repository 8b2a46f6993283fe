//! The same of the binary: on the page for people each line says what is wrong, since when, what to do, and leads to a page that is there.

use std::fs;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::support::disk::{Disk, Effect, Fault, Operation};
use crate::support::process::{Home, Process};
use crate::support::{ALL, OPERATOR, ORG, Plan, TOKEN, VARIABLES, sandbox_at, send, until, with_key};

async fn page(home: &Home, target: &str) -> String {
    let headers = format!("authorization: Bearer {OPERATOR}\r\naccept: text/html\r\n");
    send(home.operator, "GET", target, &headers, "").await.expect(200).text().to_owned()
}

/// The line of this problem on the overview, once it is there.
async fn line(home: &Home, name: &str) -> String {
    for _ in 0..1_000 {
        let shown = page(home, "/").await;
        if let Some(line) = shown.split(&format!("id=\"{name}\"")).nth(1) {
            return line.split("</li>").next().unwrap().to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("no line {name}: {}", page(home, "/").await);
}

/// What the line says of what is wrong and of what to do, and where it leads: a page that is there.
async fn tells(home: &Home, name: &str, what: &[&str], todo: &[&str], page_begins: &str) -> String {
    let line = line(home, name).await;
    let (wrong, remedy) = line.split_once("What to do: ").unwrap_or_else(|| panic!("nothing to do: {line}"));
    let (remedy, link) = remedy.split_once("<a href=\"").unwrap_or_else(|| panic!("no link: {line}"));
    for (text, words) in [(wrong, what), (remedy, todo)] {
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
    }
    let target = link.split('"').next().unwrap().replace("&amp;", "&");
    assert!(target.starts_with(page_begins), "{target}");
    page(home, &target).await;
    line
}

/// When it began: short, and whole on hover.
fn has_since(line: &str) {
    let since = line.split("It began <time class=\"ago\" datetime=\"").nth(1).unwrap_or_else(|| panic!("{line}"));
    assert!(since.contains(" UTC\">") && (since.contains(" ago</time>") || since.contains(">now</time>")), "{line}");
}

async fn get(home: &Home, headers: &[&str]) -> u16 {
    send(home.gateway, "GET", ORG, &with_key(ALL, headers), "").await.status
}

#[tokio::test]
async fn a_refused_token() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let _process = home.serve().await;
    assert!(!page(&home, "/").await.contains("id=\"token-refused\""));
    sandbox.set_token("another-token-of-make");
    assert_eq!(get(&home, &[]).await, 502);
    let (what, todo) = (["refuses the gateway's token", "callers' keys are fine"], ["new API token", "within 5 s"]);
    has_since(&tells(&home, "token-refused", &what, &todo, "/audit?refusal=MG204").await);
    sandbox.set_token(TOKEN);
    assert_eq!(get(&home, &[]).await, 200);
    assert!(!page(&home, "/").await.contains("id=\"token-refused\""));
}

#[tokio::test]
async fn make_that_is_down() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:1");
    let _process = home.serve().await;
    for _ in 0..6 {
        get(&home, &[]).await;
    }
    let todo = ["status page", "127.0.0.1:1", "send a read"];
    let line = tells(&home, "upstream-down", &["Make cannot be reached"], &todo, "/audit?refusal=MG209").await;
    has_since(&line);
    assert!(line.contains("Runbook: docs/runbooks.md, MakegateUpstreamDown"), "{line}");
}

#[tokio::test]
async fn a_quota_that_one_caller_spends() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let plan = Plan::default().set("upstream", "quota = \"10/min\"\nquota_wait = \"50ms\"");
    let home = Home::new(&plan, &format!("http://{}", sandbox.address()));
    let _process = home.serve().await;
    for _ in 0..14 {
        get(&home, &["cache-control: no-store"]).await;
    }
    // A quota is spent anew in each minute: instead of a beginning it has an end.
    let what = ["organization 11: ", " of 10 a minute are used, most by all (", "Its next request can go in "];
    tells(&home, "quota-spent", &what, &["caller.all.rate"], "/audit?caller=all&organization=11&since=10m").await;
}

#[tokio::test]
async fn a_full_disk() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home =
        Home::new(&Plan::default().set("audit", "disk_wait = \"700ms\""), &format!("http://{}", sandbox.address()));
    let (below, at) = (tempfile::tempdir().unwrap(), home.path().join("audit"));
    fs::create_dir(&at).unwrap();
    let Some(disk) = Disk::mount(below.path(), &at) else { return };
    let process = home.serve().await;
    disk.fault(Fault::of("*.jsonl", Operation::Write, Effect::Fail(Errno::NOSPC)));
    let variable = r#"{"name":"a","typeId":1,"value":1}"#;
    send(home.gateway, "POST", VARIABLES, &with_key(ALL, &[]), variable).await.expect(503);
    let what = ["writes are refused", "No space left"];
    let todo = ["Free space", at.to_str().unwrap(), "audit.retention", "restart makegate"];
    has_since(&tells(&home, "log-outage", &what, &todo, "/config").await);
    disk.heal();
    // The process has files open there until it has ended.
    let ended = std::thread::spawn(move || process.end());
    until(|| ended.is_finished()).await;
    assert_eq!(ended.join().unwrap(), Some(0));
    drop(disk);
}

#[tokio::test]
async fn a_certificate_near_its_end_and_past_it() {
    for (days, verb) in [(10, "expires at "), (-1, "expired at ")] {
        let plan = Plan::default().set("gateway", "tls = { cert = \"cert.pem\", key = \"key.pem\" }");
        let home = Home::new(&plan, "http://127.0.0.1:1");
        let end = plan.now() + jiff::SignedDuration::from_hours(24 * days);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let second = std::time::Duration::from_secs(end.as_second().try_into().unwrap());
        params.not_after = (std::time::UNIX_EPOCH + second).into();
        fs::write(home.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(home.path().join("key.pem"), key.serialize_pem()).unwrap();
        let _process = home.serve().await;
        let what = format!("The certificate of the gateway door {verb}{}", end.strftime("%Y-%m-%d"));
        let todo = ["gateway.tls", "makegate cert new", "within 5 s"];
        let line = tells(&home, "certificate-ends", &[&what], &todo, "/config").await;
        if days < 0 {
            has_since(&line);
        }
    }
}

#[tokio::test]
async fn a_failed_reload() {
    let home = Home::new(&Plan::default(), "http://127.0.0.1:1");
    let process: Process = home.serve().await;
    let file = home.path().join("makegate.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("[cache]", "[cache]\nnonsense = 1")).unwrap();
    process.signal(Signal::HUP);
    let check = format!("makegate check --config {}", file.display());
    let what = ["the configuration before it is in force", "nonsense"];
    has_since(&tells(&home, "reload-failed", &what, &[&check, "within 5 s"], "/config").await);
}
