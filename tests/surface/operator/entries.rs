//! What is in memory, entry by entry; what a caller uses of its rate; and names that nobody has.

use std::process::{Command, Output};
use std::time::Duration;

use makegate::sandbox::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::support::hostile::{Gate, Origin, Step};
use crate::support::{ALL, LIST, OPERATOR, ORG, OTHER, Plan, Reply, VARIABLES, World, send, until};

async fn ask(world: &World, method: &str, target: &str, headers: &str, body: &str) -> Reply {
    let headers = format!("authorization: Bearer {OPERATOR}\r\n{headers}");
    send(world.service.operator_addresses()[0], method, target, &headers, body).await
}

async fn json_of(world: &World, target: &str) -> Value {
    ask(world, "GET", target, "", "").await.expect(200).json()
}

async fn html_of(world: &World, target: &str) -> String {
    ask(world, "GET", target, "accept: text/html\r\n", "").await.expect(200).text().to_owned()
}

const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";

#[tokio::test]
async fn each_entry_tells_who_filled_it_and_is_purged_alone() {
    let world = World::start().await;
    let first = world.get(ALL, ORG).await.expect(200);
    let filler = first.header("x-request-id").unwrap().to_owned();
    world.get(ALL, OTHER).await.expect(200);
    world.get(ALL, &format!("{LIST}?cols[]=id")).await.expect(200);
    world.clock.advance(Duration::from_secs(7));
    let all = json_of(&world, "/cache/entries.json").await;
    assert_eq!((&all["total"], &all["next"]), (&json!(3), &Value::Null), "{all}");
    let of_org = json_of(&world, "/cache/entries.json?tag=org:11").await;
    let entry = &of_org["entries"][0];
    assert_eq!((&entry["path"], &entry["operation"]), (&json!(ORG), &json!("organizations.get")), "{of_org}");
    assert_eq!((&entry["filled_by"], &entry["status"]), (&json!(filler), &json!(200)));
    let [age, ttl] = ["age_s", "ttl_s"].map(|name| entry[name].as_u64().unwrap());
    assert!((7..60).contains(&age) && ttl > 0 && entry["left_s"].as_u64().unwrap() >= ttl, "{entry}");
    let weights: u64 = all["entries"].as_array().unwrap().iter().map(|one| one["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json_of(&world, "/cache.json").await["bytes"], weights);
    assert_eq!(json_of(&world, "/cache/entries.json?operation=organizations.list").await["total"], 1);

    let id = entry["id"].as_str().unwrap();
    let page = html_of(&world, &format!("/cache/entries?id={id}&purge=1")).await;
    let filled = format!("/audit/record?request={}", filler.replace('-', "%2D"));
    assert!(page.contains(&filled) && page.contains("Purge this entry?"), "{page}");
    assert!(!page.contains(first.json()["organization"]["name"].as_str().unwrap_or("never there")), "never its body");
    let purged = ask(&world, "POST", "/cache/purge", FORM, &format!("entry={id}")).await.expect(303);
    assert!(purged.header("location").unwrap().starts_with("/cache?purged=1"));
    assert_eq!(json_of(&world, "/cache/entries.json").await["total"], 2);
    let body = json!({"entry": id}).to_string();
    let again = ask(&world, "POST", "/cache/purge", "content-type: application/json\r\n", &body).await.expect(200);
    assert_eq!(again.json(), json!({"purged": 0}));
    world.get(ALL, ORG).await.expect(200);
    assert_eq!(world.received("GET", ORG), 2, "only this one was fetched again");
    world.get(ALL, OTHER).await.expect(200);
    assert_eq!(world.received("GET", OTHER), 1);
    let both = json!({"entry": id, "tag": "org:11"}).to_string();
    ask(&world, "POST", "/cache/purge", "content-type: application/json\r\n", &both).await.expect(400);
    for bad in ["page=0", "page=x", "nope=1"] {
        ask(&world, "GET", &format!("/cache/entries?{bad}"), "", "").await.expect(400);
    }
}

/// Whatever is purged: a read that is under way fills nothing with what Make answered before.
#[tokio::test]
async fn a_read_under_way_at_a_purge_fills_nothing() {
    let world = World::start().await;
    for purge in
        [|_: &Value| json!({"tag": "org:11"}), |_: &Value| json!({"all": true}), |id: &Value| json!({"entry": id})]
    {
        world.get(ALL, ORG).await.expect(200);
        world.clock.advance(Duration::from_secs(2));
        let body = purge(&json_of(&world, "/cache/entries.json?tag=org:11").await["entries"][0]["id"]);
        let before = world.received("GET", ORG);
        // The simulated Make handles this read at once, but its answer arrives slowly.
        world.sandbox.fault(Fault::once("GET", ORG, FaultKind::Drip { bytes: 20, every_ms: 25 }));
        let slow = world.get_with(ALL, ORG, &["cache-control: no-cache"]);
        let meanwhile = async {
            while world.received("GET", ORG) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let headers = "content-type: application/json\r\n";
            let purged = ask(&world, "POST", "/cache/purge", headers, &body.to_string()).await.expect(200);
            assert_eq!(purged.json(), json!({"purged": 1}), "{body}");
        };
        let (slow, ()) = tokio::join!(slow, meanwhile);
        slow.expect(200);
        assert_eq!(json_of(&world, "/cache/entries.json?tag=org:11").await["total"], 0, "{body}");
        let next = world.get(ALL, ORG).await.expect(200);
        assert!(next.header("cache-status").unwrap().contains("fwd=miss"), "{body}: {next:?}");
    }
}

/// What to purge, by the id of the entry.
type PurgeOf = fn(&Value) -> Value;

/// What was purged does not stand in for Make's failure either, even for who asked before.
#[tokio::test]
async fn a_purged_answer_is_not_served_stale() {
    let answer = |status: &str| {
        Step::write(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: 19\r\n\r\n{{\"organization\":{{}}}}"
        ))
    };
    let purges: [Option<PurgeOf>; 3] = [Some(|_| json!({"tag": "org:11"})), Some(|id| json!({"entry": id})), None];
    for purge in purges {
        let gate = Gate::default();
        let script = vec![Step::Read, answer("200 OK"), Step::Read, Step::Wait(gate.clone()), answer("503 Slow")];
        let origin = Origin::start(vec![script]);
        let plan = Plan::default().set("limits", "attempts = 1").set("cache.lifetime", "organizations = \"1s\"");
        let world = plan.upstream(format!("http://{}", origin.address())).start().await;
        world.get(ALL, ORG).await.expect(200);
        world.clock.advance(Duration::from_secs(2));
        let entries = json_of(&world, "/cache/entries.json").await;
        let slow = world.get(ALL, ORG);
        let meanwhile = async {
            until(|| origin.received().len() == 2).await;
            if let Some(purge) = purge {
                let (headers, body) = ("content-type: application/json\r\n", purge(&entries["entries"][0]["id"]));
                ask(&world, "POST", "/cache/purge", headers, &body.to_string()).await.expect(200);
            }
            gate.open();
        };
        let (slow, ()) = tokio::join!(slow, meanwhile);
        slow.expect(if purge.is_some() { 503 } else { 200 });
    }
}

#[tokio::test]
async fn what_records_may_not_hold_is_not_shown_of_an_entrys_key() {
    let body = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let origin = Origin::start(vec![vec![Step::Read, Step::write(body)]]);
    let world = Plan::default()
        .upstream(format!("http://{}", origin.address()))
        .tables(
            "[[operation]]\nid = \"things.list\"\nmethod = \"GET\"\npath = \"/api/v2/things\"\ngrant = \"things:read\"\ncache = \"usage\"\n\
             record = [\"kind\"]\nquery = { kind = \"scalar\", email = \"scalar\" }\n",
        )
        .start()
        .await;
    world.get(ALL, "/api/v2/things?kind=small&email=a%40b.example").await.expect(200);
    let shown = ask(&world, "GET", "/cache/entries.json", "", "").await.expect(200).text().to_owned();
    assert!(shown.contains("email=…") && shown.contains("kind=small") && !shown.contains("b.example"), "{shown}");
}

#[tokio::test]
async fn a_caller_shows_how_much_of_its_rate_it_uses() {
    let world = Plan::default()
        .caller("slow", "grants = [\"*\"]\nrate = \"4/min\"\nburst = 2\n")
        .caller("slower", "grants = [\"*\"]\nrate = \"120/h\"\nburst = 2\n")
        .start()
        .await;
    for key in ["slow", "slower"] {
        for status in [200, 200, 429] {
            world.get(key, ORG).await.expect(status);
        }
    }
    let slower = json_of(&world, "/callers.json?name=slower").await["callers"][0].clone();
    assert_eq!(slower["rate_used"], json!(1.0), "two of two in a minute: {slower}");
    let one = async || json_of(&world, "/callers.json?name=slow").await["callers"][0].clone();
    let row = one().await;
    assert_eq!(row["last_minute"], json!({"requests": 3, "over_rate": 1}), "{row}");
    assert_eq!((&row["rate_used"], &row["refusals"]), (&json!(0.5), &json!({"MG141": 1})));
    let page = html_of(&world, "/callers?name=slow").await;
    for part in
        ["2 of 4", "1 refused (MG141)", "/explain?caller=slow", "/audit?caller=slow", "/quota/ledger?caller=slow"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    world.clock.advance(Duration::from_secs(6));
    assert_eq!(one().await["last_minute"]["requests"], 3, "and a sample is taken");
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(one().await["last_minute"]["requests"], 0, "a minute later");
    assert_eq!(one().await["requests"], 3);
}

fn makegate(arguments: &[&str]) -> Output {
    let mut command = Command::new(crate::support::process::binary());
    command.env("MAKEGATE_OPERATOR_KEY", OPERATOR).env_remove("MAKEGATE_CONFIG").args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_nobody_knows_is_told_with_the_nearest_name() {
    let world = World::start().await;
    world.get(ALL, ORG).await.expect(200);
    let refused = ask(&world, "GET", &format!("/explain.json?caller=readr&target={ORG}"), "", "").await.expect(400);
    let said = "no caller is named \"readr\" in the configuration; did you mean \"reader\"?";
    assert_eq!(refused.json()["type"], "urn:makegate:operator:unknown-caller");
    assert!(refused.text().to_lowercase().contains(&said.replace('"', "\\\"")), "{}", refused.text());
    let page = ask(&world, "GET", &format!("/explain?caller=readr&target={ORG}"), "accept: text/html\r\n", "").await;
    assert!(page.expect(400).text().contains("did you mean"), "the form is there again");
    assert!(html_of(&world, "/audit?caller=readr").await.contains("did you mean"));

    let (url, file) = (format!("http://{}", world.service.operator_addresses()[0]), world.file().display().to_string());
    for source in [["--url", &*url], ["--config", &*file]] {
        let run = |arguments: &[&str]| tokio::task::block_in_place(|| makegate(&[arguments, &source[..]].concat()));
        for asked in [&["explain", "GET", ORG, "--caller", "readr"][..], &["audit", "query", "--caller", "readr"]] {
            let output = run(asked);
            let stderr = String::from_utf8_lossy(&output.stderr).to_lowercase();
            assert!(output.status.code() == Some(2) && stderr.contains(said), "{asked:?} {source:?}: {output:?}");
        }
        assert_eq!(run(&["explain", "GET", ORG, "--caller", "reader"]).status.code(), Some(0));
        assert_eq!(run(&["explain", "GET", VARIABLES, "--caller", "reader"]).status.code(), Some(3));
        assert_eq!(run(&["audit", "query", "--caller", "reader"]).status.code(), Some(0), "it has no record yet");
        assert_eq!(run(&["audit", "query", "--caller", "all"]).status.code(), Some(0));
    }
}
