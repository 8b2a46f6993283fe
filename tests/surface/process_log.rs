//! What the process log says: one line where something changes, however often it is met; and which signals the process heeds.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind, Sandbox};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::process::{Home, Process, own_ip};
use crate::support::tls;
use crate::support::{ALL, OPERATOR, ORG, Plan, Reply, TOKEN, VARIABLES, attempt, sandbox_at, send, until, with_key};

const AT_MOST: Duration = Duration::from_secs(30);

/// A gateway as its own process, and its Make.
struct Scene {
    home: Home,
    sandbox: Sandbox,
}

impl Scene {
    async fn new() -> Self {
        let sandbox = sandbox_at(&format!("{}:0", own_ip())).await;
        let plan = Plan::default()
            .set("limits", "drain = \"60s\"\nbreaker_open = \"200ms\"\nbreaker_open_max = \"400ms\"")
            .set("upstream", "look = false");
        Self { home: Home::new(&plan, &format!("http://{}", sandbox.address())), sandbox }
    }

    /// The same behind TLS; its certificate is still to be made.
    async fn with_tls() -> Self {
        let sandbox = sandbox_at(&format!("{}:0", own_ip())).await;
        let plan = Plan::default().set("gateway", "tls = { cert = \"cert.pem\", key = \"key.pem\" }");
        Self { home: Home::new(&plan, &format!("http://{}", sandbox.address())), sandbox }
    }

    async fn get(&self, target: &str) -> Reply {
        send(self.home.gateway, "GET", target, &with_key(ALL, &[]), "").await
    }

    async fn until_answered(&self, target: &str) {
        for _ in 0..1_200 {
            if self.get(target).await.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("no answer to {target}");
    }

    /// Ends the process; the lines of its log.
    async fn lines(&self, mut process: Process) -> Vec<Value> {
        process.signal(Signal::TERM);
        assert_eq!(process.ended(AT_MOST).await, Some(0));
        let text = self.home.process_log();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

/// The lines whose message has these words.
fn with<'l>(lines: &'l [Value], words: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line["msg"].as_str().unwrap().contains(words)).collect()
}

#[track_caller]
fn once(lines: &[Value], words: &str) {
    let found = with(lines, words);
    assert!(found.len() == 1 && found[0].get("repeated").is_none(), "{words}: {lines:#?}");
}

#[tokio::test]
async fn an_outage_of_the_upstream_is_told_once_and_so_is_its_end() {
    let mut scene = Scene::new().await;
    let process = scene.home.serve().await;
    scene.get(VARIABLES).await.expect(200);
    let address = scene.sandbox.address().to_string();
    scene.sandbox.stop().await;
    for _ in 0..40 {
        let status = scene.get(VARIABLES).await.status;
        assert!([502, 503].contains(&status), "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.sandbox = sandbox_at(&address).await;
    scene.until_answered(VARIABLES).await;
    let lines = scene.lines(process).await;
    for words in ["the upstream is unreachable", "the upstream is reachable again"] {
        once(&lines, words);
    }
    for words in ["the breaker is open", "the breaker is closed"] {
        once(&lines, words);
    }
    assert!(lines.iter().all(|line| line["ts"].is_string() && line["level"].is_string()), "{lines:#?}");
}

#[tokio::test]
async fn a_refused_token_is_one_line_for_a_thousand_requests() {
    let scene = Scene::new().await;
    let process = scene.home.serve().await;
    scene.sandbox.set_token("another-token");
    for _ in 0..50 {
        for reply in join_all((0..20).map(|_| scene.get(VARIABLES))).await {
            reply.expect(502);
        }
    }
    let ready = send(scene.home.operator, "GET", "/readyz?verbose", "", "").await.expect(200);
    assert!(ready.text().contains("[!] token: degraded: "), "{}", ready.text());
    scene.sandbox.set_token(TOKEN);
    scene.get(VARIABLES).await.expect(200);
    let ready = send(scene.home.operator, "GET", "/readyz?verbose", "", "").await.expect(200);
    assert!(ready.text().contains("[+] token: ok\n"), "{}", ready.text());
    let lines = scene.lines(process).await;
    once(&lines, "the upstream refuses the gateway's token");
    once(&lines, "the upstream accepts the gateway's token again");
}

#[tokio::test]
async fn each_write_in_doubt_and_its_settlement_is_a_line() {
    let scene = Scene::new().await;
    let process = scene.home.serve().await;
    scene.sandbox.fault(Fault::always("POST", VARIABLES, FaultKind::Reset { effect: true }));
    let mut ids = Vec::new();
    for number in 0..15 {
        let body = format!("{{\"name\":\"v{number}\",\"typeId\":1,\"value\":\"1\"}}");
        let reply = send(scene.home.gateway, "POST", VARIABLES, &with_key(ALL, &[]), &body).await;
        assert_eq!(reply.header("makegate-outcome"), Some("in-doubt"), "{reply:?}");
        ids.push(reply.header("x-request-id").unwrap().to_owned());
    }
    let bearer = format!("authorization: Bearer {OPERATOR}\r\n");
    let settled = "{\"as\":\"done\"}";
    send(scene.home.operator, "POST", &format!("/doubts/{}", ids[0]), &bearer, settled).await.expect(200);
    let lines = scene.lines(process).await;
    let doubts = with(&lines, "is in doubt");
    assert_eq!(doubts.iter().map(|line| line["request"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    assert!(doubts.iter().all(|line| line["caller"] == "all" && line["operation"] == "variables.create"));
    let settled = with(&lines, "was settled");
    assert_eq!(settled.len(), 1);
    assert_eq!((&settled[0]["request"], &settled[0]["by"]), (&ids[0].as_str().into(), &"operator".into()));
}

#[tokio::test]
async fn a_signed_head_is_told_as_it_is() {
    let scene = Scene::new().await;
    let process = scene.home.serve().await;
    scene.get(ORG).await.expect(200);
    let lines = scene.lines(process).await;
    let heads = with(&lines, "signed head");
    let stored = std::fs::read_to_string(scene.home.path().join("audit/head")).unwrap();
    assert_eq!(heads.last().unwrap()["note"], stored.as_str());
}

#[tokio::test]
async fn pings_of_strangers_are_no_flood_of_lines() {
    let scene = Scene::with_tls().await;
    let roots = tls::show(scene.home.path(), "cert.pem", "key.pem");
    let process = scene.home.serve().await;
    let stream = tls::connect_to(scene.home.gateway, &roots, &["h2"], None).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    writing.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let [ack, ping] = [1, 0].map(|flags| [b"\0\0\x08\x06" as &[u8], &[flags], b"\0\0\0\0nobody's"].concat());
    let flood = async {
        for _ in 0..200 {
            writing.write_all(&ack.repeat(100)).await.unwrap();
        }
        // The answer to this one says that all before it were taken.
        writing.write_all(&ping).await.unwrap();
        writing.flush().await.unwrap();
    };
    let answered = async {
        let mut read = Vec::new();
        while !read.windows(ack.len()).any(|bytes| bytes == ack) {
            assert!(reading.read_buf(&mut read).await.unwrap() > 0, "the connection ended: {read:?}");
        }
    };
    tokio::time::timeout(AT_MOST, async { tokio::join!(flood, answered) }).await.unwrap();
    let lines = scene.lines(process).await;
    assert!(lines.len() < 20, "{} lines: {:#?}", lines.len(), lines.last());
}

#[tokio::test]
async fn signals_that_mean_nothing_end_nothing_and_two_at_once_are_one() {
    // Between two signals that are sent at once a busy machine may stop the process for longer than makes them one.
    for _ in 0..5 {
        let (reply, code) = signalled().await;
        if code == Some(0) {
            return drop(reply.unwrap().expect(200));
        }
        assert_eq!(code, Some(1));
    }
    panic!("two signals at once ended it at once");
}

/// What a write that is under way is answered, and the exit code.
async fn signalled() -> (Option<Reply>, Option<i32>) {
    let scene = Scene::new().await;
    let mut process = scene.home.serve().await;
    for signal in [Signal::USR1, Signal::USR2, Signal::PIPE] {
        process.signal(signal);
    }
    scene.get(ORG).await.expect(200);
    scene.sandbox.fault(Fault::always("PATCH", ORG, FaultKind::Latency { ms: 1_500 }));
    let headers = with_key(ALL, &[]);
    let write = attempt(scene.home.gateway, "PATCH", ORG, &headers, "{\"name\":\"x\"}");
    let end = async {
        until(|| !scene.sandbox.received_of("PATCH", ORG).is_empty()).await;
        process.signal(Signal::TERM);
        tokio::time::sleep(Duration::from_millis(50)).await;
        process.signal(Signal::TERM);
        process.ended(AT_MOST).await
    };
    tokio::join!(write, end)
}

#[tokio::test]
async fn who_insists_ends_it_at_once() {
    let scene = Scene::new().await;
    let mut process = scene.home.serve().await;
    scene.sandbox.fault(Fault::always("GET", ORG, FaultKind::Hang { effect: false }));
    let headers = with_key(ALL, &[]);
    let read = attempt(scene.home.gateway, "GET", ORG, &headers, "");
    let end = async {
        until(|| !scene.sandbox.received_of("GET", ORG).is_empty()).await;
        process.signal(Signal::TERM);
        until(|| scene.home.process_log().contains("makegate is shutting down")).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        process.signal(Signal::TERM);
        process.ended(AT_MOST).await
    };
    let (reply, code) = tokio::join!(read, end);
    assert!(reply.is_none() && code == Some(1), "{code:?}");
    // A thread that tells something at that very moment may come after it.
    let lines = scene.home.process_log();
    let mut lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(lines.any(|line| (&line["level"], &line["exit_code"]) == (&"error".into(), &1.into())));
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_told_at_the_start() {
    let days = |days: i64| {
        let end = Clock::system().wall() + jiff::SignedDuration::from_hours(24 * days);
        let text = end.to_string();
        let part = |range: std::ops::Range<usize>| text[range].parse::<u16>().unwrap();
        let [month, day] = [part(5..7), part(8..10)].map(|number| u8::try_from(number).unwrap());
        rcgen::date_time_ymd(i32::from(part(0..4)), month, day)
    };
    let words = BTreeMap::from([(10, Some("expires soon")), (-2, Some("has expired")), (20, None)]);
    for (left, words) in words {
        let scene = Scene::with_tls().await;
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = days(left);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(scene.home.path().join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(scene.home.path().join("key.pem"), key.serialize_pem()).unwrap();
        let process = scene.home.serve().await;
        let lines = scene.lines(process).await;
        let told = with(&lines, "certificate of the gateway door");
        match words {
            Some(words) => once(&lines, words),
            None => assert!(told.is_empty(), "{told:?}"),
        }
    }
}
