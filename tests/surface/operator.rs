//! The operators' door beside real traffic: what callers did is what operators see.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind, Sandbox, SandboxSettings};
use makegate::service::Service;
use makegate::{config, hash};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

mod entries;
mod filters;
mod history;
mod ledger;
mod live;
mod metrics;
mod on_call;
mod problems;
mod proofs;
mod roles;
mod scrapers;
mod stories;
mod tls;

const KEY: &str = "operator-key";
const ORG: &str = "/api/v2/organizations/11";

/// A service between its callers and a sandbox.
struct World {
    service: Service,
    sandbox: Sandbox,
    _dir: TempDir,
}

impl World {
    async fn start() -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let sandbox = Sandbox::start(any, SandboxSettings::default(), Clock::system()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut text = format!(
            "gateway.listen = \"127.0.0.1:0\"\naudit.dir = \"audit\"\noperator = {{ listen = \"127.0.0.1:0\", key_file = \"operator\" }}\n\
             upstream = {{ url = \"http://{}\", token_file = \"token\", quota = \"100/min\" }}\n",
            sandbox.address()
        );
        for (name, grant) in [("tool", "*"), ("reader", "usage:read")] {
            let hash = hash::hex(&hash::sha256(name.as_bytes()));
            let _infallible =
                write!(text, "[[caller]]\nname = \"{name}\"\nkeys = [\"sha256:{hash}\"]\ngrants = [\"{grant}\"]\n");
        }
        for (file, content) in [("token", "sandbox-token"), ("operator", KEY), ("makegate.toml", &text)] {
            std::fs::write(dir.path().join(file), content).unwrap();
        }
        let read =
            config::read(&dir.path().join("makegate.toml")).unwrap_or_else(|failure| panic!("{text}: {failure}"));
        let service = Service::start(read, Clock::system()).await.unwrap();
        Self { service, sandbox, _dir: dir }
    }

    /// A caller's request: its name is its key. The status.
    async fn call(&self, caller: &str, method: &str, target: &str) -> u16 {
        let (status, _) = send(self.service.gateway_addresses()[0], method, target, caller).await;
        status
    }

    async fn look(&self, target: &str) -> Value {
        let (status, body) = send(self.service.operator_addresses()[0], "GET", target, KEY).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }
}

async fn connect(to: SocketAddr, method: &str, target: &str, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn send(to: SocketAddr, method: &str, target: &str, key: &str) -> (u16, String) {
    let mut answer = String::new();
    let mut stream = connect(to, method, target, key).await;
    tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn requests_are_seen_by_caller_quota_cache_and_record() {
    let world = World::start().await;
    let asked = [("tool", ORG, 200), ("tool", ORG, 200), ("reader", ORG, 403), ("nobody", ORG, 401)];
    for (caller, target, status) in asked {
        assert_eq!(world.call(caller, "GET", target).await, status);
    }
    let callers = world.look("/callers.json").await;
    let tool = &callers["callers"][0];
    assert_eq!((&tool["requests"], &tool["answers"]), (&json!(2), &json!({"miss": 1, "hit": 1})));
    assert!(tool["keys"][0]["last_used"].as_str().unwrap().ends_with('Z'));
    assert_eq!(callers["callers"][1]["refused"], 1);

    let quota = world.look("/quota.json").await;
    let bucket = &quota["buckets"][0];
    assert_eq!((&bucket["organization"], &bucket["limit"], &bucket["used"]), (&json!(11), &json!(100), &json!(1)));
    let spender = &bucket["callers"][0];
    assert_eq!((&spender["name"], &spender["spent"], &spender["saved"]), (&json!("tool"), &json!(1), &json!(1)));
    let shared = (&spender["share"], &spender["waiting"], &spender["refused"], &bucket["kept"]);
    assert_eq!(shared, (&json!(100), &json!(0), &json!(0), &json!(0)), "it may have all of them");

    let cache = world.look("/cache.json").await;
    assert_eq!((&cache["entries"], &cache["hits"], &cache["misses"]), (&json!(1), &json!(1), &json!(1)));

    let audit = world.look("/audit.json?kind=request").await;
    let statuses: Vec<_> = audit["records"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, [401, 403, 200, 200], "newest first");
}

#[tokio::test]
async fn a_write_in_doubt_is_listed_by_its_request_and_counted() {
    let world = World::start().await;
    let target = format!("{ORG}/subscription-free");
    world.sandbox.fault(Fault::once("POST", &target, FaultKind::Reset { effect: true }));
    assert_eq!(world.call("tool", "POST", &target).await, 502);
    let doubts = world.look("/doubts.json").await;
    let doubt = &doubts["doubts"][0];
    assert_eq!((&doubt["caller"], &doubt["operation"]), (&json!("tool"), &json!("subscription.free")));
    assert_eq!((&doubt["organization"], &doubt["path"]), (&json!(11), &json!(target)));
    let request = doubt["request"].as_str().unwrap();
    let records = world.look(&format!("/audit.json?request={request}")).await;
    assert_eq!(records["records"][0]["outcome"], "in-doubt");
    let (_, metrics) = send(world.service.operator_addresses()[0], "GET", "/metrics", "").await;
    assert!(metrics.contains("\nmakegate_writes_in_doubt 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_follower_sees_requests_as_they_come_and_its_end_at_shutdown() {
    let world = World::start().await;
    let operator = world.service.operator_addresses()[0];
    let mut followers = Vec::new();
    for suffix in ["", ".json", ".csv"] {
        let target = format!("/audit/follow{suffix}?caller=tool");
        let mut lines = BufReader::new(connect(operator, "GET", &target, KEY).await).lines();
        let mut head = String::new();
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
            head += &(line + "\n");
        }
        let media_type =
            if suffix == ".csv" { "text/csv; charset=utf-8; header=present" } else { "application/x-ndjson" };
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(&format!("content-type: {media_type}\n")), "{head}");
        followers.push(lines);
    }
    world.call("reader", "GET", ORG).await;
    world.call("tool", "GET", ORG).await;
    let mut shown = Vec::new();
    for (lines, begin) in followers.iter_mut().zip(["{", "{", "seq,"]) {
        // Between them are the lengths of chunks.
        let mut line = String::new();
        while !line.starts_with(begin) {
            line = lines.next_line().await.unwrap().unwrap();
        }
        shown.push(line);
    }
    assert_eq!(shown[0], shown[1]);
    let record: Value = serde_json::from_str(&shown[0]).unwrap();
    assert_eq!((&record["caller"], &record["answer"]), (&json!("tool"), &json!("miss")));
    let mut row = String::new();
    while !row.starts_with(&format!("{},", record["seq"])) {
        row = followers[2].next_line().await.unwrap().unwrap();
    }
    assert!(row.contains(",request,") && row.contains(",tool,") && row.contains(",miss,"), "{row}");
    let end = async {
        for lines in &mut followers {
            while lines.next_line().await.is_ok_and(|line| line.is_some()) {}
        }
    };
    let (drained, ()) = tokio::join!(world.service.shut_down(), end);
    assert!(drained, "a follower held up the shutdown");
}
