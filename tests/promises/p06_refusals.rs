//! Promise 6, the exception: an unidentified or rate-limited client costs the log thirty records a minute and one
//! with the count of the others. A known caller keeps every record.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use makegate::audit::{AuditorInput, verify};
use makegate::clock::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::support::{ALL, ORG, Plan, TOO, VARIABLES, World, raw, records_in, with_key};

/// Refusals of one peer or caller per minute that get a record each.
const RECORDED: usize = 30;
/// Number of peers told apart.
const PEERS: usize = 1024;

/// However long a test takes, the minute never ends.
fn still() -> Plan {
    Plan::default().clock(Clock::frozen())
}

/// Sends these requests from this address over one connection and returns the statuses.
async fn flood(from: Ipv4Addr, to: SocketAddr, requests: &[String]) -> Vec<u16> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let (last, others) = requests.split_last().unwrap();
    let text = others.concat() + &last.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    let (mut reading, mut writing) = stream.split();
    let mut all = Vec::new();
    let (sent, read) = tokio::join!(writing.write_all(text.as_bytes()), reading.read_to_end(&mut all));
    sent.unwrap();
    read.unwrap();
    let text = String::from_utf8_lossy(&all);
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
}

fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")
}

fn is_refused(record: &Value, by: &str, who: &str) -> bool {
    record[by] == who && record["answer"] == "refused" && (by == "caller" || record["caller"].is_null())
}

/// The only summary of a peer or caller.
fn summary<'r>(records: &'r [Value], by: &str, who: &str) -> &'r Value {
    let all: Vec<_> = records.iter().filter(|record| record["kind"] == "refusals" && record[by] == who).collect();
    assert_eq!(all.len(), 1, "{who}: {all:?}");
    let codes = all[0]["codes"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum::<u64>();
    assert_eq!(codes, all[0]["count"], "{}", all[0]);
    let times = ["first", "last", "time"].map(|name| all[0][name].as_str().unwrap());
    assert!(times.is_sorted(), "{}", all[0]);
    all[0]
}

fn assert_verified(audit: &Path) {
    let report = verify(audit, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{report:#?}");
}

/// Next to an identified caller.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_without_a_key_leaves_thirty_records_and_their_count() {
    let world = still().start().await;
    let unknown = |n: usize| match n % 5 {
        0 => request("GET", ORG, "authorization: Token nobody\r\n"),
        1 => request("GET", &format!("{ORG}/"), ""),
        2 => request("GET", &format!("/{}", "long/".repeat(1000) + "x"), ""),
        3 => request(&"M".repeat(20_000), ORG, ""),
        _ => request("GET", ORG, ""),
    };
    let requests: Vec<String> = (0..1000).map(unknown).collect();
    let honest: Vec<String> = (0..40)
        .map(|n| request("GET", ORG, &with_key(ALL, &[&format!("x-request-id: honest-{n}")])))
        .chain((0..40).map(|n| write(&n.to_string())))
        .collect();
    let here = Ipv4Addr::LOCALHOST;
    let (refused, answered) = tokio::join!(flood(here, world.gateway, &requests), flood(here, world.gateway, &honest));
    assert_eq!(refused.len(), 1000);
    assert!(refused.iter().all(|status| matches!(status, 400 | 401)), "{refused:?}");
    assert_eq!(answered, vec![200; 80]);
    assert!(world.service.shut_down().await);
    let audit = world.dir.path().join("audit");
    let records = records_in(&audit);
    let recorded: Vec<_> = records.iter().filter(|record| is_refused(record, "peer", "127.0.0.1")).collect();
    assert_eq!(recorded.len(), RECORDED);
    for record in &recorded {
        assert!(record["method"].as_str().unwrap().len() <= 32, "{record}");
        assert!(record["path"].as_str().is_none_or(|path| path.len() <= 256), "{record}");
        assert!(record.to_string().len() < 1024, "{record}");
    }
    let counted = summary(&records, "peer", "127.0.0.1");
    assert_eq!(counted["count"], 970, "{counted}");
    // 200 of each kind were sent, and six of each are among the first thirty.
    assert_eq!(counted["codes"], json!({"MG101": 194, "MG111": 582, "MG112": 194}), "{counted}");
    for n in 0..40 {
        let of = |id: String| records.iter().filter(|record| record["request"] == id).count();
        assert_eq!((of(format!("honest-{n}")), of(format!("write-{n}"))), (1, 2));
    }
    assert_verified(&audit);
}

/// Each peer has its own thirty; beyond the peers told apart, all others share thirty.
#[tokio::test(flavor = "multi_thread")]
async fn each_peer_has_thirty_records_and_peers_past_the_bound_share_thirty() {
    let world = still().start().await;
    let peer = |n: usize| Ipv4Addr::new(127, 1, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250 + 1).unwrap());
    let forty: Vec<String> = (0..40).map(|_| request("GET", ORG, "")).collect();
    for n in 0..PEERS + 50 {
        let requests = if n < 20 { &forty[..] } else { &forty[..1] };
        assert_eq!(flood(peer(n), world.gateway, requests).await, vec![401; requests.len()]);
    }
    assert!(world.service.shut_down().await);
    let records = records_in(&world.dir.path().join("audit"));
    for n in 0..20 {
        let name = peer(n).to_string();
        assert_eq!(records.iter().filter(|record| is_refused(record, "peer", &name)).count(), RECORDED, "{name}");
        assert_eq!(summary(&records, "peer", &name)["count"], 10);
    }
    let recorded = records.iter().filter(|record| record["answer"] == "refused").count();
    assert_eq!(recorded, 20 * RECORDED + (PEERS - 20) + RECORDED);
    assert_eq!(summary(&records, "peer", "others")["count"], 50 - RECORDED);
}

/// Refusals have a share of the log's bytes. Once it is spent they are only counted, and no write's record is deleted
/// for them.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_never_push_the_records_of_writes_out() {
    let small = "record_bytes = \"1KiB\"\nsegment = \"4KiB\"\nretention_bytes = \"64KiB\"";
    let mut world = still().set("audit", small).start().await;
    let audit = world.dir.path().join("audit");
    let mut sent = 0;
    for round in 1..=2_u8 {
        let writes: Vec<String> = (0..10).map(|n| write(&format!("{round}-{n}"))).collect();
        assert_eq!(flood(Ipv4Addr::LOCALHOST, world.gateway, &writes).await, vec![200; 10]);
        let refused: Vec<String> = (0..40).map(|_| request("GET", ORG, "")).collect();
        for peer in 1..=50 {
            flood(Ipv4Addr::new(127, 2, round, peer), world.gateway, &refused).await;
            sent += refused.len();
        }
        world = world.restart().await;
        let records = records_in(&audit);
        for id in (1..=round).flat_map(|round| (0..10).map(move |n| format!("write-{round}-{n}"))) {
            assert_eq!(records.iter().filter(|record| record["request"] == id).count(), 2, "{id}");
        }
        let recorded = records.iter().filter(|record| record["answer"] == "refused").count();
        let counts = records.iter().filter_map(|record| record["count"].as_u64());
        assert_eq!(
            recorded + usize::try_from(counts.sum::<u64>()).unwrap(),
            sent,
            "each refusal is recorded or counted"
        );
        let summaries = records.iter().filter(|record| record["kind"] == "refusals").count();
        assert!(summaries <= 20, "{summaries} summaries: all peers have one together when the share is spent");
        assert!(recorded <= 40, "{recorded} records are more than the refusals' share of 8 KiB");
        assert_verified(&audit);
    }
}

/// Also those of a caller that is known and within its rate: past the share they are counted.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_known_caller_never_push_the_records_of_writes_out() {
    let small = "record_bytes = \"1KiB\"\nsegment = \"4KiB\"\nretention_bytes = \"64KiB\"";
    let world = still().set("audit", small).start().await;
    let audit = world.dir.path().join("audit");
    let writes: Vec<String> = (0..10).map(|n| write(&n.to_string())).collect();
    assert_eq!(flood(Ipv4Addr::LOCALHOST, world.gateway, &writes).await, vec![200; 10]);
    let nowhere: Vec<String> = (0..50).map(|_| request("GET", "/api/v2/nowhere", &with_key(TOO, &[]))).collect();
    for _ in 0..10 {
        assert_eq!(flood(Ipv4Addr::LOCALHOST, world.gateway, &nowhere).await, vec![404; 50]);
        world.service.gateway().log.flush().await;
    }
    let world = world.restart().await;
    let records = records_in(&audit);
    for n in 0..10 {
        let id = format!("write-{n}");
        assert_eq!(records.iter().filter(|record| record["request"] == id).count(), 2, "{id}");
    }
    let recorded = records.iter().filter(|record| record["answer"] == "refused").count();
    let counted =
        records.iter().filter(|record| record["caller"] == "too").filter_map(|record| record["count"].as_u64());
    assert_eq!(recorded + usize::try_from(counted.sum::<u64>()).unwrap(), 500, "each is recorded or counted");
    assert!(recorded <= 100, "{recorded} records are more than the refusals' share of 8 KiB and what was on its way");
    assert_verified(&audit);
    drop(world);
}

fn write(name: &str) -> String {
    let body = format!(r#"{{"typeId":2,"name":"v_{}","value":"x"}}"#, name.replace('-', "_"));
    let headers = with_key(ALL, &[&format!("x-request-id: write-{name}"), "content-type: application/json"]);
    request("POST", VARIABLES, &format!("{headers}content-length: {}\r\n", body.len())) + &body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_over_its_rate_leaves_thirty_records_and_their_count() {
    let world = still().caller("fast", "grants = [\"*\"]\nrate = \"6/min\"\nburst = 5").start().await;
    let requests: Vec<String> = (0..500).map(|_| request("GET", ORG, &with_key("fast", &[]))).collect();
    let answers = flood(Ipv4Addr::LOCALHOST, world.gateway, &requests).await;
    let refused = answers.iter().filter(|status| **status == 429).count();
    assert_eq!(refused, 495, "{answers:?}");
    assert!(world.service.shut_down().await);
    let records = records_in(&world.dir.path().join("audit"));
    assert_eq!(records.iter().filter(|record| record["answer"] == "refused").count(), RECORDED);
    assert_eq!(records.iter().filter(|record| record["status"] == 200).count(), answers.len() - refused);
    let counted = summary(&records, "caller", "fast");
    assert_eq!(counted["codes"], json!({"MG141": refused - RECORDED}), "{counted}");
    assert!(counted["peer"].is_null(), "{counted}");
}

/// The count is in the log when the minute is over, even if nobody comes any more; the next minute has its own.
#[tokio::test]
async fn each_minute_has_a_record_of_its_own() {
    let world = still().start().await;
    for (minute, requests) in [(1, 35), (2, 31), (3, 30)] {
        for _ in 0..requests {
            world.get("nobody", ORG).await.refused(401, "MG112");
        }
        assert_eq!(counts(&world).await.values().sum::<u64>(), [0, 5, 6][minute - 1], "not before its minute is over");
        world.clock.advance(Duration::from_secs(60));
        let sum = [5, 6, 6][minute - 1];
        for _ in 0..300 {
            if counts(&world).await.values().sum::<u64>() == sum {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(counts(&world).await.values().sum::<u64>(), sum);
    }
    let recorded = world.records().await.iter().filter(|record| record["answer"] == "refused").count();
    assert_eq!(recorded, 3 * RECORDED);
    assert_eq!(world.service.gateway().refusal_tally.counted(), 6);
}

/// Counts by sequence number.
async fn counts(world: &World) -> BTreeMap<u64, u64> {
    let records = world.records().await.into_iter().filter(|record| record["kind"] == "refusals");
    records.map(|record| (record["seq"].as_u64().unwrap(), record["count"].as_u64().unwrap())).collect()
}

/// A method that no operation could have gets 501, and takes no more room than any other.
#[tokio::test]
async fn methods_are_bounded() {
    let world = World::start().await;
    let key = with_key(ALL, &["connection: close"]);
    let thirty_two = "M".repeat(32);
    raw(world.gateway, &request(&thirty_two, ORG, &key)).await.unwrap().refused(405, "MG122");
    assert_eq!(world.last_record().await["method"], *thirty_two);
    for (method, target) in [
        ("M".repeat(33), ORG),
        ("M".repeat(30_000), ORG),
        ("TRACE".to_owned(), ORG),
        ("CONNECT".to_owned(), "example.com:443"),
        ("CONNECT".to_owned(), "localhost:80"),
    ] {
        raw(world.gateway, &request(&method, target, &key)).await.unwrap().refused(501, "MG123");
        let record = world.last_record().await;
        assert_eq!(record["method"], method[..method.len().min(32)], "{record}");
        assert_eq!((&record["refusal"], &record["caller"]), (&json!("MG123"), &json!("all")), "{record}");
        raw(world.gateway, &request(&method, target, "connection: close\r\n")).await.unwrap().refused(401, "MG111");
        assert_eq!(world.last_record().await["method"], record["method"]);
    }
    raw(world.gateway, &request("GET", "example.com:443", &key)).await.unwrap().expect(400);
}
