//! Every operation of Make's document through the gateway, on real sockets, against the sandbox, which knows nothing of
//! the catalogue.

mod cases;
mod described;
mod private;

use std::collections::BTreeSet;

use makegate::catalogue::Catalogue;
use makegate::clock::Clock;
use makegate::sandbox::{Sandbox, SandboxSettings};
use serde_json::{Value, json};

use crate::support::{ALL, Plan, Reply, TOKEN, World, send, with_key};
use cases::{CASES, Case, INVITATION, SECRET};

#[test]
fn the_cases_are_the_operations_of_the_catalogue() {
    let catalogue = Catalogue::built_in();
    let rows: BTreeSet<_> = catalogue.rows().iter().map(|row| (row.id.to_string(), row.grant.to_string())).collect();
    let cases: BTreeSet<_> = CASES.iter().map(|case| (case.id.to_owned(), case.grant.to_owned())).collect();
    assert_eq!(rows, cases);
    assert_eq!(cases.len(), 25);
}

#[tokio::test]
async fn each_passes_through_with_status_and_body_untouched() {
    let world = still().start().await;
    let twin = twin(&world).await;
    for case in &CASES {
        let id = format!("req-{}", case.id);
        let answer = ask(&world, ALL, case, &id).await;
        let direct = twin.ask(case).await;
        assert_eq!((answer.status, answer.text()), (200, direct.text()), "{}", case.id);
        assert_eq!(answer.header("content-type"), direct.header("content-type"), "{}", case.id);
        assert_eq!(answer.header("content-length"), direct.header("content-length"), "{}", case.id);
        assert_eq!(answer.header("x-request-id"), Some(&*id));
        assert_eq!(answer.header("makegate-outcome"), case.is_write().then_some("done"), "{}", case.id);
        let forwarded = match (case.is_write(), case.is_kept()) {
            (true, _) => "makegate; fwd=method; fwd-status=200",
            (false, false) => "makegate; fwd=bypass; fwd-status=200",
            (false, true) if case.rest.contains("wait") => "makegate; fwd=request; fwd-status=200; stored",
            (false, true) => "makegate; fwd=miss; fwd-status=200; stored",
        };
        assert_eq!(answer.header("cache-status"), Some(forwarded), "{}", case.id);
        assert_eq!(answer.header("etag").is_some(), !case.is_write(), "{}", case.id);
    }
    let sent = |sandbox: &Sandbox| -> Vec<_> {
        sandbox.received().into_iter().map(|r| (r.method, r.path, r.body, r.status, r.effect)).collect()
    };
    assert_eq!(sent(&world.sandbox), sent(&twin.0), "the same was done upstream, once each");
}

#[tokio::test]
async fn errors_of_the_upstream_pass_untouched_too() {
    let world = still().start().await;
    let twin = twin(&world).await;
    for case in CASES.iter().filter(|case| case.organization().is_some()) {
        let rest: &'static str = case.rest.replacen("/11", "/999", 1).leak();
        let case = Case { rest, ..*case };
        let answer = ask(&world, ALL, &case, "req-404").await;
        let direct = twin.ask(&case).await;
        assert_eq!((answer.status, answer.text()), (404, direct.text()), "{}", case.id);
        assert_eq!(answer.header("makegate-outcome"), case.is_write().then_some("rejected"), "{}", case.id);
    }
}

#[tokio::test]
async fn each_leaves_its_records_and_no_secret() {
    let world = still().set("audit", "segment = \"1MiB\"").start().await;
    for case in &CASES {
        ask(&world, ALL, case, &format!("req-{}", case.id)).await.expect(200);
    }
    let records = world.records().await;
    for case in &CASES {
        let own: Vec<&Value> = records.iter().filter(|r| r["request"] == format!("req-{}", case.id)).collect();
        let kinds: Vec<&str> = own.iter().map(|record| record["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, if case.is_write() { vec!["intent", "outcome"] } else { vec!["request"] }, "{}", case.id);
        for record in &own {
            check_head(record, case);
        }
        check_end(own[own.len() - 1], case);
    }
    let all = everything_in(&world.dir.path().join("audit"));
    let invitation = world.sandbox.invitation("s3cret@example.com");
    let hash = invitation.as_deref().unwrap_or(INVITATION);
    for secret in [SECRET, INVITATION, hash, TOKEN, ALL] {
        assert_eq!(memchr::memmem::find(&all, secret.as_bytes()), None, "{secret} is in the log");
    }
}

fn check_head(record: &Value, case: &Case) {
    assert_eq!(record["operation"], case.id);
    assert_eq!(record["caller"], "all");
    assert_eq!(record["key"].as_str().unwrap().len(), 8);
    assert_eq!(record["peer"], "127.0.0.1");
    assert_eq!(record["method"], case.method);
    assert_eq!(record["path"], case.path());
    assert_eq!(record["organization"].as_u64(), case.organization(), "{}", case.id);
    let shown: Value = serde_json::from_str(case.recorded).unwrap();
    assert_eq!((&record["query"], &record["fields"]), (&shown["query"], &shown["fields"]), "{}", case.id);
}

fn check_end(record: &Value, case: &Case) {
    let answer = if case.is_kept() { "miss" } else { "forwarded" };
    assert_eq!(record["answer"], answer, "{}", case.id);
    assert_eq!((&record["status"], &record["upstream_status"]), (&json!(200), &json!(200)));
    assert_eq!(record["attempts"], 1);
    assert_eq!(record["outcome"].as_str(), case.is_write().then_some("done"));
    assert!(
        record["bytes"].as_u64().unwrap() > 0 && record["duration_us"].is_u64() && record["quota_wait_us"].is_u64()
    );
    assert!(record.get("refusal").is_none());
}

#[tokio::test]
async fn each_demands_its_grant_and_no_other() {
    let grants: BTreeSet<&str> = CASES.iter().map(|case| case.grant).collect();
    let mut plan = still();
    for grant in &grants {
        let others: Vec<&str> = grants.iter().copied().filter(|other| other != grant).collect();
        let fast = "rate = \"100000/min\"\nburst = 1000";
        plan = plan
            .caller(&format!("only-{}", word(grant)), &format!("grants = [\"{grant}\"]\n{fast}"))
            .caller(&format!("but-{}", word(grant)), &format!("grants = {others:?}\n{fast}"));
    }
    let world = plan.start().await;
    for case in &CASES {
        let before = world.sandbox.received().len();
        let refused = ask(&world, &format!("but-{}", word(case.grant)), case, "req").await.refused(403, "MG131");
        assert!(refused.json()["detail"].as_str().unwrap().contains(case.grant), "{}", refused.text());
        assert_eq!(world.sandbox.received().len(), before, "nothing was sent");
        assert_eq!(world.last_record().await["operation"], case.id);
        ask(&world, &format!("only-{}", word(case.grant)), case, "req").await.expect(200);
    }
}

/// A name out of a grant.
fn word(grant: &str) -> String {
    grant.replace(':', "-")
}

#[tokio::test]
async fn each_keeps_to_the_callers_organizations() {
    let plan = still()
        .caller("eleven", "grants = [\"*\"]\norganizations = [11]\nrate = \"100000/min\"\nburst = 1000")
        .caller("twelve", "grants = [\"*\"]\norganizations = [12]\nrate = \"100000/min\"\nburst = 1000");
    let world = plan.start().await;
    for case in &CASES {
        let before = world.sandbox.received().len();
        if case.organization().is_some() {
            ask(&world, "twelve", case, "req").await.refused(403, "MG132");
            assert_eq!(world.sandbox.received().len(), before, "nothing was sent");
            ask(&world, "eleven", case, "req").await.expect(200);
        } else if case.id == "organizations.list" {
            let list = ask(&world, "twelve", case, "req").await.expect(200).json();
            assert_eq!(list["organizations"], json!([{ "id": 12, "name": "Borealis Finance" }]));
        } else {
            ask(&world, "twelve", case, "req").await.refused(403, "MG133");
            assert_eq!(world.sandbox.received().len(), before, "nothing was sent");
        }
    }
}

/// Time stands still: two sandboxes write the same times into their answers.
fn still() -> Plan {
    Plan::default().clock(Clock::frozen())
}

async fn ask(world: &World, key: &str, case: &Case, id: &str) -> Reply {
    let id = format!("x-request-id: {id}");
    world.send(key, case.method, &case.target(), &[&id], case.body).await
}

/// A second sandbox, asked without the gateway.
struct Twin(Sandbox);

async fn twin(world: &World) -> Twin {
    let settings = SandboxSettings {
        token: TOKEN.to_owned(),
        api_limit: 100_000,
        account_limit: 100_000,
        ..SandboxSettings::default()
    };
    Twin(Sandbox::start("127.0.0.1:0".parse().unwrap(), settings, Clock::clone(&world.clock)).await.unwrap())
}

impl Twin {
    async fn ask(&self, case: &Case) -> Reply {
        send(self.0.address(), case.method, &case.target(), &with_key(TOKEN, &[]), case.body).await
    }
}

/// The bytes of every file in a folder.
fn everything_in(dir: &std::path::Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>().concat()
}
