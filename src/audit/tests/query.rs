//! Compares queries with a naive reading of the same records.

use std::fs;
use std::time::Duration;

use fastrand::Rng;
use rusqlite::Connection;

use super::*;
use crate::audit::index::position::IndexPosition;
use crate::audit::record::Record;
use crate::clock::Clock;
use crate::config;
use crate::vocabulary::Answer;

const CALLERS: [&str; 3] = ["billing", "finance-dashboard", "a \"quoted\"\u{85} one"];
const OPERATIONS: [&str; 3] = ["organizations.get", "payments.create", "usage"];
const STATUSES: [&str; 5] = ["200", "304", "404", "429", "503"];

/// An id as the gateway generates it, but for a different time than its record's.
const FAR_ID: &str = "0197c9a0-0000-7000-8000-0123456789ab";

/// An id as the gateway generates it, for the time of the record with this number.
fn near_id(n: u64) -> String {
    let ms = record(Kind::Request, "r").time.as_millisecond().cast_unsigned() + n * 60_000;
    format!("{:08x}-{:04x}-7000-8000-{n:012x}", ms >> 16, ms & 0xffff)
}

fn some_record(random: &mut Rng, n: u64) -> Record<'static> {
    let request = match random.u64(..10) {
        0 => FAR_ID.to_owned(),
        1 | 2 => near_id(n),
        _ => format!("r{}", n % 50),
    };
    let base = record(Kind::Request, &request);
    Record {
        time: base.time + Duration::from_secs(n * 60),
        caller: Some(random.choice(CALLERS).unwrap().into()),
        operation: Some(random.choice(OPERATIONS).unwrap().into()),
        organization: Some(random.u64(..3) + 10).filter(|id| *id != 12),
        status: random.choice(STATUSES).unwrap().parse().ok(),
        answer: Answer::ALL.get(random.usize(..6)).copied(),
        kind: Some(if random.u64(..5) == 0 { Kind::Event } else { Kind::Request }),
        intent: (random.u64(..3) == 0).then(|| random.u64(..=n)),
        ..base
    }
}

fn some_filter(random: &mut Rng) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    let mut maybe = |random: &mut Rng, name, value: String| {
        if random.u64(..4) == 0 {
            pairs.push((name, value));
        }
    };
    let value = random.choice(CALLERS).unwrap().to_owned();
    maybe(random, "caller", value);
    let value = random.choice(OPERATIONS).unwrap().to_owned();
    maybe(random, "operation", value);
    maybe(random, "organization", "11".to_owned());
    let value = random.choice(["404", "4xx", "5xx", "200"]).unwrap().to_owned();
    maybe(random, "status", value);
    let value = random.choice(["hit", "refused"]).unwrap().to_owned();
    maybe(random, "answer", value);
    let value = random.choice(["event", "request"]).unwrap().to_owned();
    maybe(random, "kind", value);
    let value = random.u64(..40).to_string();
    maybe(random, "intent", value);
    let value = match random.u64(..3) {
        0 => near_id(random.u64(..150)),
        _ => random.choice(["r7", "r13", FAR_ID]).unwrap().to_owned(),
    };
    maybe(random, "request", value);
    let value = random.choice(["2026-07-01T13:00:00Z", "2026-07-01T15:30:00Z"]).unwrap().to_owned();
    maybe(random, "since", value);
    let value = random.choice(["2026-07-01T16:00:00Z", "2026-07-02"]).unwrap().to_owned();
    maybe(random, "until", value);
    let value = random.choice(["1", "7", "10000"]).unwrap().to_owned();
    maybe(random, "limit", value);
    let value = random.choice(["5", "250", "9999"]).unwrap().to_owned();
    maybe(random, "after", value);
    pairs
}

/// Filters as documented, without an index and without the filter's own code.
fn naive(lines: &[serde_json::Value], pairs: &[(&str, String)]) -> (Vec<u64>, bool) {
    let get = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    let time = |text: &str| if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let wanted = |line: &&serde_json::Value| {
        let text = |name: &str| get(name).is_none_or(|value| line[name] == value.as_str());
        let status = line["status"].as_u64().map(|status| status.to_string()).unwrap_or_default();
        ["caller", "operation", "answer", "kind", "request"].into_iter().all(text)
            && get("intent").is_none_or(|seq| line["intent"].as_u64() == seq.parse().ok())
            && get("organization").is_none_or(|id| line["organization"].as_u64() == id.parse().ok())
            && get("status").is_none_or(|s| s == status || (s.ends_with("xx") && status.starts_with(&s[..1])))
            && get("since").is_none_or(|since| line["time"].as_str().unwrap() >= time(&since).trim_end_matches('Z'))
            && get("until").is_none_or(|until| line["time"].as_str().unwrap() < time(&until).trim_end_matches('Z'))
            && get("after").is_none_or(|after| line["seq"].as_u64() < after.parse().ok())
    };
    let limit = get("limit").map_or(100, |limit| limit.parse().unwrap());
    let all: Vec<_> = lines.iter().rev().filter(wanted).map(|line| line["seq"].as_u64().unwrap()).collect();
    (all.iter().copied().take(limit).collect(), all.len() > limit)
}

fn seqs(page: &RecordPage) -> Vec<u64> {
    page.records.iter().map(|line| Record::parse(line.get().as_bytes()).unwrap().seq).collect()
}

async fn indexed(settings: &config::AuditConfig, at_least: u64) {
    for _ in 0..1000 {
        if index_seq(settings) >= at_least {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the index does not catch up");
}

fn index_seq(settings: &config::AuditConfig) -> u64 {
    let connection = Connection::open(index::path(&settings.dir)).ok();
    connection.and_then(|connection| IndexPosition::read(&connection).ok()).map_or(0, |position| position.seq)
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_agree_with_a_naive_reading_with_half_an_index_a_complete_one_and_none() {
    let seed = 0x5eed_0001;
    let mut random = Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 20_000, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    for n in 0..300 {
        log.reserve().unwrap().fill(some_record(&mut random, n));
        if n == 150 {
            log.flush().await;
        }
    }
    log.flush().await;
    let mut all = lines(&settings);
    for round in 0..900 {
        if round == 300 {
            // The newest records are not indexed until their block is full.
            indexed(&settings, segment::list(&settings.dir).unwrap().last().unwrap() - 1).await;
        }
        if round == 600 {
            log.close().await;
            all = lines(&settings);
            fs::remove_file(index::path(&settings.dir)).unwrap();
        }
        let pairs = some_filter(&mut random);
        let pairs_text = pairs.iter().map(|(name, value)| (*name, value.as_str()));
        let filter = Filter::parse(pairs_text, jiff::Timestamp::UNIX_EPOCH).unwrap();
        let expected = naive(&all, &pairs);
        let page = if round % 2 == 0 {
            log.query(&"".into(), filter).await.unwrap()
        } else {
            query_files(log.dir(), &filter).unwrap()
        };
        let found = (seqs(&page), page.next.is_some());
        assert_eq!(found, expected, "seed {seed:x}, round {round}, {pairs:?}");
        assert_eq!(page.next.is_some().then(|| found.0.last().copied()).flatten(), page.next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rare_records_are_found_in_all_parts_of_the_index_and_parts_go_with_their_records() {
    const RECORDS: u64 = 160_000; // three parts of 65,536 records
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 4 << 20, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    // Its segment is kept.
    let open_write = log.commit(record(Kind::Intent, "w")).await.unwrap();
    for n in 0..RECORDS {
        let caller = if n % 10_000 == 0 { "rare" } else { "frequent" };
        log.reserve().unwrap().fill(Record { caller: Some(caller.into()), ..record(Kind::Request, "r") });
        if n % 5_000 == 0 {
            log.flush().await;
        }
    }
    log.close().await;
    drop(log);
    let rare = |after, limit| {
        let filter = Filter { caller: Some("rare".into()), after, limit, ..Filter::default() };
        seqs(&query_files(&settings.dir, &filter).unwrap())
    };
    let naive = || -> Vec<u64> {
        let lines = lines(&settings).into_iter().rev().filter(|line| line["caller"] == "rare");
        lines.map(|line| line["seq"].as_u64().unwrap()).collect()
    };
    let all = naive();
    assert_eq!((all.len(), rare(None, 100)), (16, all.clone()));
    // Pages that end and begin within a part and at its edge.
    for (at, seq) in all.iter().enumerate() {
        assert_eq!(rare(Some(*seq), 3), all[at + 1..].iter().copied().take(3).collect::<Vec<_>>());
    }
    assert_eq!(rare(Some(2 << 16), 100), all.iter().copied().filter(|seq| *seq < 2 << 16).collect::<Vec<_>>());

    let few = config::AuditConfig { retention_bytes: 4 << 20, ..settings.clone() };
    let (log, _) = open(&few, &Clock::system()).await;
    let numbers = |sql| -> Vec<u64> {
        let connection = Connection::open(index::path(&settings.dir)).unwrap();
        let mut numbers = connection.prepare(sql).unwrap();
        numbers.query_map((), |row| row.get(0).map(i64::cast_unsigned)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let parts = || numbers("SELECT DISTINCT part FROM has ORDER BY part");
    let gone = async {
        while parts() != [0, 2] {
            tokio::time::sleep(Duration::from_millis(10)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("the second part is deleted and the others are kept");
    let there = || segment::list(&settings.dir).unwrap();
    assert!(there()[0] < open_write && there()[1] > 2 << 16, "{:?}", there());
    let known = || numbers("SELECT DISTINCT segment FROM blocks ORDER BY segment");
    let forgotten = async {
        // Segments are deleted one by one, and the index forgets each a little later.
        while known().iter().any(|segment| !there().contains(segment)) || rare(None, 100) != naive() {
            tokio::time::sleep(Duration::from_millis(10)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(60), forgotten).await.expect("the index forgets what is gone");
    let left = naive();
    assert!(left.len() < all.len() && !left.is_empty());
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_rebuilt_when_it_is_missing_damaged_or_of_another_log() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let path = index::path(&settings.dir);
    let clock = Clock::system();
    let one = Filter { request: Some(id("r7")), ..Filter::default() };
    let mut last = 0;
    for damage in 0..5 {
        let (log, _) = open(&settings, &clock).await;
        for n in 0..20 {
            log.reserve().unwrap().fill(record(Kind::Request, &format!("r{n}")));
        }
        log.flush().await;
        assert_eq!(log.query(&"".into(), one.clone()).await.unwrap().records.len(), damage + 1);
        assert!(!settings.dir.join("index.sqlite-shm").exists(), "no mapped file that could be truncated");
        log.close().await;
        drop(log);
        last = lines(&settings).len() as u64;
        assert_eq!(index_seq(&settings), last, "caught up by the end, after damage {damage}");
        match damage {
            0 => fs::remove_file(&path).unwrap(),
            1 => fs::write(&path, "this is not a database").unwrap(),
            2 => {
                let connection = Connection::open(&path).unwrap();
                connection.execute_batch("UPDATE position SET seq = 1000000; UPDATE blocks SET offset = 3").unwrap();
            }
            3 => {
                let connection = Connection::open(&path).unwrap();
                connection.pragma_update(None, "journal_mode", "WAL").unwrap();
            }
            _ => {
                let journal = settings.dir.join("index.sqlite-journal");
                fs::remove_file(&journal).unwrap();
                fs::create_dir(journal).unwrap();
            }
        }
    }
    let (log, _) = open(&settings, &clock).await;
    for n in 0..300 {
        log.reserve().unwrap().fill(record(Kind::Request, &format!("more{n}")));
    }
    log.flush().await;
    indexed(&settings, last).await;
    assert_eq!(log.query(&"".into(), one.clone()).await.unwrap().records.len(), 5);
    fs::remove_file(&path).unwrap();
    assert_eq!(log.query(&"".into(), one).await.unwrap().records.len(), 5, "without an index");
    indexed(&settings, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn export_streams_all_in_order_and_followers_see_new_records() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 5000, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    log.flush().await;
    let wanted = Filter { kind: Some(Kind::Request), limit: 3, after: Some(2), ..Filter::default() };
    let mut follow = log.follow(wanted.clone());
    let mut files = FileFollower::open(log.dir(), wanted.clone()).unwrap();
    for n in 0..100 {
        log.reserve().unwrap().fill(record(Kind::Request, &format!("r{n}")));
        if n % 10 == 0 {
            log.flush().await;
        }
    }
    log.close().await;
    let mut exported = Vec::new();
    export(log.dir(), &wanted, &mut |line| {
        exported.push(line.to_owned());
        Ok(())
    })
    .unwrap();
    let requests: Vec<_> = exported.iter().map(|line| Record::parse(line.as_bytes()).unwrap().seq).collect();
    assert_eq!(requests.len(), 100);
    assert!(requests.is_sorted());
    for line in exported {
        assert_eq!(follow.next().await, Some(FollowEvent::Line(line.as_str().into())));
        assert_eq!(files.poll().unwrap(), Some(line));
    }
    assert_eq!(follow.next().await, None, "the log has ended");
    assert_eq!(files.poll().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_follower_is_told_how_much_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    log.flush().await;
    let mut follow = log.follow(Filter::default());
    for n in 0..1100 {
        log.reserve().unwrap().fill(record(Kind::Request, &format!("r{n}")));
    }
    log.flush().await;
    let Some(FollowEvent::Missed(missed)) = follow.next().await else { panic!("nothing missed") };
    assert!((1..=76).contains(&missed), "{missed}");
    assert!(matches!(follow.next().await, Some(FollowEvent::Line(_))));
}

#[test]
fn sqlite_is_recent_enough_to_keep_its_write_ahead_log_whole() {
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}

/// What the ledger says of the last 30 days.
async fn requests_of_30_days(log: &AuditLog) -> i64 {
    let wall = log.shared.clock.wall();
    let query = LedgerQuery::parse([("since", "30d")], &[], wall).unwrap();
    log.ledger(&"".into(), query, |page| page.total.requests).await.unwrap()
}

/// A clock that jumps, ahead or back, and is then right again, costs no row: neither at once nor over restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_for_a_while_makes_the_ledger_forget_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let clock = Clock::movable();
    let mut expected = 0;
    for days in [31, -40, 29, 4_000] {
        let days = jiff::SignedDuration::from_hours(days * 24);
        for (step, is_shown) in [(jiff::SignedDuration::ZERO, true), (days, false), (-days, true)] {
            clock.step(step);
            let (log, _) = open(&settings, &clock).await;
            for _ in 0..600 {
                log.reserve().unwrap().fill(Record { time: clock.wall(), ..record(Kind::Request, "r") });
            }
            log.flush().await;
            expected += if is_shown { 600 } else { 0 };
            // It is all in the index then.
            log.close().await;
            drop(log);
            if is_shown {
                let (log, _) = open(&settings, &clock).await;
                assert_eq!(requests_of_30_days(&log).await, expected, "{days:?}, then {step:?}");
                log.close().await;
            }
        }
    }
}

/// An index that another log's gateway made, of as many records, is told from this log's, whether it was put there while nothing ran or
/// under a running gateway; no query ever believes it.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_another_log_of_the_same_length_is_not_believed() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let clock = Clock::system();
    let of = |caller: &'static str| Record { caller: Some(caller.into()), ..record(Kind::Request, "r") };
    let [anna, ben] =
        ["anna", "ben"].map(|caller| Filter { caller: Some(caller.into()), limit: 9_999, ..Filter::default() });
    let all = ["anna", "ben"].into_iter().zip(&dirs);
    for (caller, dir) in all {
        let (log, _) = open(&settings(dir), &clock).await;
        (0..2_000).for_each(|_| log.reserve().unwrap().fill(of(caller)));
        log.flush().await;
        log.close().await;
    }
    let [foreign, own] = dirs.each_ref().map(|dir| index::path(&settings(dir).dir));
    let settings = settings(&dirs[1]);
    let counts = |dir: &std::path::Path| [&anna, &ben].map(|filter| query_files(dir, filter).unwrap().records.len());
    assert_eq!(counts(&settings.dir), [0, 2_000]);
    fs::copy(&foreign, &own).unwrap();
    assert_eq!(counts(&settings.dir), [0, 2_000], "nothing runs, and a command reads the log");
    let (log, _) = open(&settings, &clock).await;
    indexed(&settings, 2_000).await;
    log.close().await;
    drop(log);
    assert_eq!(counts(&settings.dir), [0, 2_000]);
    assert_ne!(fs::read(&own).unwrap(), fs::read(&foreign).unwrap(), "it is rebuilt");
    // Its bytes are overwritten under a running gateway.
    let (log, _) = open(&settings, &clock).await;
    indexed(&settings, 2_000).await;
    fs::write(&own, fs::read(&foreign).unwrap()).unwrap();
    (0..600).for_each(|_| log.reserve().unwrap().fill(of("ben")));
    log.flush().await;
    assert_eq!(counts(&settings.dir), [0, 2_600]);
    log.close().await;
    drop(log);
    let (log, _) = open(&settings, &clock).await;
    indexed(&settings, 2_600).await;
    log.close().await;
    assert_eq!(counts(&settings.dir), [0, 2_600]);
}
