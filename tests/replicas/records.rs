//! The records of all replicas in one table: each exactly once, for as long as they are kept.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use makegate::audit::{AuditorInput, Kind, Record, heads, stored_head, verify};
use makegate::clock::Clock;
use makegate::config::{AuditConfig, ShippedRecords};
use makegate::replicas::engine::Line;
use makegate::replicas::shipping::{RecordDays, Shipment, ShippedLog};
use makegate::replicas::{CopyRows, SharedRecord, day_of, heads as shared_heads, shipping};
use serde_json::Value;

use crate::one_replica::{DATABASE, DAY, KEY, engine};
use crate::shared_log::{SharedLog, any_record, lines, settings};
use crate::support::postgres::Postgres;
use crate::support::random::{number, seeds};

/// The numbers and lines of a replica's records in the table, by number.
fn shipped(engine: &Postgres, replica: &str) -> Vec<(u64, String)> {
    let sql = format!("select seq || ' ' || line from mg.record where replica = '{replica}' order by seq, line");
    let rows = engine.sql(DATABASE, &sql);
    let row = |row: &str| row.split_once(' ').map(|(seq, line)| (seq.parse().unwrap(), line.to_owned())).unwrap();
    rows.lines().map(row).collect()
}

fn number_of(line: &str) -> u64 {
    serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()
}

fn now() -> Timestamp {
    Clock::system().wall()
}

/// Promise 6: the log's records are in the table exactly once, whatever happens to the connection, the database and the replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_shipped_once_through_kills() {
    if !Postgres::available() {
        return;
    }
    for seed in seeds(1) {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut engine, dir) = (engine(&KEY), tempfile::tempdir().unwrap());
        let url = engine.url(DATABASE);
        let mut replica = SharedLog::open(&url, "m-0", dir.path(), ShippedRecords::All);
        let mut shipping = replica.ship();
        for round in 0..number("MAKEGATE_ROUNDS").unwrap_or(14) {
            for _ in 0..random.usize(20..400) {
                replica.record(any_record(&mut random, now()));
            }
            tokio::time::sleep(Duration::from_millis(random.u64(..400))).await;
            match round % 5 {
                0..3 => {
                    let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid() \
                                  and application_name like 'makegate%'";
                    engine.sql(DATABASE, others);
                }
                3 => {
                    engine.kill_backend();
                    engine.wait_until_ready();
                }
                _ => {
                    shipping.abort();
                    replica.close().await;
                    replica = SharedLog::open(&url, "m-0", dir.path(), ShippedRecords::All);
                    shipping = replica.ship();
                }
            }
        }
        replica.shipped().await;
        replica.close().await;
        // What the end recorded was shipped, too.
        let (expected, found) = (lines(&dir.path().join("audit")), shipped(&engine, "m-0"));
        assert_eq!(found.len(), expected.len());
        for (line, (seq, found)) in expected.iter().zip(found) {
            assert_eq!((number_of(line), line), (seq, &found));
        }
        let requests = engine.sql(DATABASE, "select sum(requests), count(*) > 0 from mg.ledger");
        let counted = expected.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let counted = counted
            .filter(|one| one["caller"].is_string() && matches!(one["kind"].as_str(), Some("request" | "outcome")));
        assert_eq!(requests, format!("{}|t", counted.count()));
    }
}

/// The answer to a commit is lost, and the database is still about to carry it out when the replica asks what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_ends_after_it_was_given_up_counts_once() {
    if !Postgres::available() {
        return;
    }
    let (engine, dir) = (engine(&KEY), tempfile::tempdir().unwrap());
    let replica = SharedLog::open(&engine.url(DATABASE), "m-0", dir.path(), ShippedRecords::All);
    let slow = "create sequence public.commits;
        create function public.slow() returns trigger language plpgsql as $$ begin
            if nextval('public.commits') = 1 then perform pg_sleep(7); end if; return null; end $$;
        create constraint trigger slow after update on mg.shipped deferrable initially deferred
            for each row execute function public.slow()";
    engine.sql(DATABASE, slow);
    (0..200).for_each(|n| replica.record(any_record(&mut fastrand::Rng::with_seed(n), now())));
    replica.ship();
    replica.shipped().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let found = shipped(&engine, "m-0");
    let given_up = replica.replicas.engine().counters().failures.load(Ordering::Relaxed);
    assert!(given_up > 0, "the first commit is too slow to be waited for");
    replica.close().await;
    let numbers: BTreeSet<u64> = found.iter().map(|(seq, _)| *seq).collect();
    assert!(numbers.len() == found.len() && found.len() > 200, "{} of {}", numbers.len(), found.len());
}

/// Two attempts to ship the same records, one after the other or at once: one of them does it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_attempts_with_the_same_records_one_ships_them() {
    if !Postgres::available() {
        return;
    }
    let (engine, dirs) = (engine(&KEY), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let open =
        |at: usize| SharedLog::open(&engine.url(DATABASE), &format!("m-{at}"), dirs[at].path(), ShippedRecords::All);
    let [one, other] = [open(0), open(1)];
    one.connected().await;
    other.connected().await;
    RecordDays::refresh(one.replicas.engine(), 30 * DAY, &BTreeSet::new()).await.unwrap();
    let place = ShippedLog { replica: "m-0".into(), log: "log".into() };
    assert_eq!(place.position(one.replicas.engine()).await.unwrap().seq, 0);
    let mut records = CopyRows::new("m-0");
    let record = SharedRecord {
        seq: 1,
        time: now(),
        kind: "event",
        caller: None,
        organization: None,
        operation: None,
        status: None,
        answer: None,
        request: None,
        line: "{}",
    };
    (1..=3_000).for_each(|seq| records.add(&SharedRecord { seq, ..record }));
    for round in 0..10 {
        let moves = (round * 3_000, round * 3_000 + 3_000);
        let shipment = Shipment { moves, newest: moves.1, records: records.clone(), ledger: Vec::new() };
        let (first, second) =
            tokio::join!(place.ship(one.replicas.engine(), &shipment), place.ship(other.replicas.engine(), &shipment));
        assert!(first.unwrap() ^ second.unwrap(), "round {round}");
        assert!(!place.ship(one.replicas.engine(), &shipment).await.unwrap(), "and nobody does it again");
    }
    assert_eq!(engine.sql(DATABASE, "select count(*) from mg.record"), "30000");
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_is_shipped_and_the_position_moves_over_the_rest() {
    if !Postgres::available() {
        return;
    }
    let engine = engine(&KEY);
    let every = [ShippedRecords::All, ShippedRecords::NoHits, ShippedRecords::Writes, ShippedRecords::None];
    for (at, records) in every.into_iter().enumerate() {
        let (name, dir) = (format!("m-{at}"), tempfile::tempdir().unwrap());
        let replica = SharedLog::open(&engine.url(DATABASE), &name, dir.path(), records);
        let mut random = fastrand::Rng::with_seed(3);
        (0..500).for_each(|_| replica.record(any_record(&mut random, now())));
        replica.ship();
        replica.shipped().await;
        replica.close().await;
        let wanted = |line: &&String| {
            let record: Value = serde_json::from_str(line).unwrap();
            match records {
                ShippedRecords::All => true,
                ShippedRecords::NoHits => record["answer"] != "hit",
                ShippedRecords::Writes => record["kind"] != "request" && record["kind"] != "refusals",
                ShippedRecords::None => false,
            }
        };
        // Where the machine is busy, the log ends with events about that, which nobody ships any more.
        let position = engine.sql(DATABASE, &format!("select seq from mg.shipped where replica = '{name}'"));
        let position: u64 = position.parse().unwrap();
        assert!(position >= 500, "{records:?}: {position}");
        let all = lines(&dir.path().join("audit"));
        let is_reached = |line: &&String| number_of(line) <= position;
        let expected: Vec<u64> = all.iter().filter(is_reached).filter(wanted).map(|line| number_of(line)).collect();
        assert_eq!(shipped(&engine, &name).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), expected, "{records:?}");
    }
    let sums = engine
        .sql(DATABASE, "select count(distinct s) from (select sum(requests) s from mg.ledger group by replica) r");
    assert_eq!(sums, "1", "the ledger counts all records, shipped or not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_days_that_are_kept_find_a_partition_and_others_are_counted() {
    if !Postgres::available() {
        return;
    }
    let (engine, dir) = (engine(&KEY), tempfile::tempdir().unwrap());
    let replica = SharedLog::open(&engine.url(DATABASE), "m-0", dir.path(), ShippedRecords::All);
    let at = |days: i64| Record::event(now() + SignedDuration::from_hours(24 * days), "test", "one");
    for days in [-400, -32, -29, -1, 0, 2, 9, 3_000] {
        replica.record(at(days));
    }
    replica.ship();
    replica.shipped().await;
    let found = engine.sql(DATABASE, "select count(*) from mg.record where line like '%\"event\":\"test\"%'");
    assert_eq!((found.as_str(), replica.log.ship_state().unwrap().skipped), ("4", 4));
    let days = RecordDays::refresh(replica.replicas.engine(), 30 * DAY, &BTreeSet::new()).await.unwrap();
    let today = day_of(now());
    assert_eq!(days.known, BTreeSet::from([today - 29, today - 1, today, today + 1, today + 2]));
    // Kept for less: old partitions go.
    let days = RecordDays::refresh(replica.replicas.engine(), 10 * DAY, &BTreeSet::new()).await.unwrap();
    assert_eq!(days.known, BTreeSet::from([today - 1, today, today + 1, today + 2]));
    // A partition that another replica has dropped is made again, or its records are skipped, but shipping goes on.
    replica.record(at(-29));
    replica.record(at(0));
    replica.shipped().await;
    let newest = engine.sql(DATABASE, "select count(*) from mg.record where line like '%\"event\":\"test\"%'");
    assert_eq!(newest, "5");
    replica.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn partitions_that_many_replicas_make_at_once_are_made_once() {
    if !Postgres::available() {
        return;
    }
    let (engine, dir) = (engine(&KEY), tempfile::tempdir().unwrap());
    let names: Vec<String> = (0..8).map(|n| format!("m-{n}")).collect();
    let open =
        |name: &String| SharedLog::open(&engine.url(DATABASE), name, &dir.path().join(name), ShippedRecords::All);
    names.iter().for_each(|name| std::fs::create_dir(dir.path().join(name)).unwrap());
    let all: Vec<SharedLog> = names.iter().map(open).collect();
    let today = day_of(now());
    let wanted: BTreeSet<i64> = (today - 12..=today).collect();
    let tasks = makegate::tasks::Tasks::new();
    let mut refreshing = Vec::new();
    for one in &all {
        one.connected().await;
        let (replicas, wanted) = (one.replicas.clone(), wanted.clone());
        refreshing.push(tasks.spawn(async move {
            let mut refreshed = RecordDays::refresh(replicas.engine(), 30 * DAY, &wanted).await;
            for _ in 0..20 {
                if refreshed.is_ok() {
                    break;
                }
                // Others held the lock for so long.
                refreshed = RecordDays::refresh(replicas.engine(), 30 * DAY, &wanted).await;
            }
            refreshed.unwrap()
        }));
    }
    for one in refreshing {
        assert_eq!(one.await.unwrap().known, (today - 12..=today + 2).collect());
    }
    for one in all {
        one.close().await;
    }
}

/// A log's head is with the other replicas and in the database, so its tail cannot be cut unnoticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_tail_shows_in_the_other_replicas_logs() {
    if !Postgres::available() {
        return;
    }
    let (engine, dirs) = (engine(&KEY), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let open =
        |at: usize| SharedLog::open(&engine.url(DATABASE), &format!("m-{at}"), dirs[at].path(), ShippedRecords::All);
    let victim = open(0);
    victim.ship();
    (0..50).for_each(|_| victim.record(Record::event(now(), "test", "one")));
    victim.shipped().await;
    let folder = dirs[0].path().join("audit");
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&folder).unwrap().flatten() {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    (0..50).for_each(|_| victim.record(Record::event(now(), "test", "one")));
    victim.shipped().await;
    victim.close().await;
    let witness = open(1);
    witness.replicas.engine().connected(Line::Bulk).await;
    let mut newest = stored_head(&folder).unwrap();
    for end in 0.. {
        let shown = shared_heads::newest(witness.replicas.engine(), "m-0").await.unwrap().unwrap();
        if (shown.size, shown.note.clone()) == (newest.size, newest.to_string()) {
            break;
        }
        // Where the machine is busy, there may have been no time for that.
        assert!(end < 5, "the last head is shown at the end: {} of {}", shown.size, newest.size);
        let again = open(0);
        again.ship();
        again.shipped().await;
        again.close().await;
        newest = stored_head(&folder).unwrap();
    }
    witness.ship();
    witness.shipped().await;
    let noted = loop {
        let noted = lines(&dirs[1].path().join("audit")).into_iter().find(|line| line.contains("\"event\":\"heads\""));
        match noted {
            Some(noted) => break serde_json::from_str::<Value>(&noted).unwrap(),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(noted["fields"]["m-0"], newest.to_string());
    // The older copy verifies by itself, and not against the head that the other replica has.
    let brought = |note: &str| AuditorInput {
        heads: heads(note).unwrap().into_iter().map(|head| ("it".to_owned(), head)).collect(),
        keys: Vec::new(),
    };
    let problems = |brought: &AuditorInput| verify(copy.path(), brought, &mut |_, _| {}).unwrap().problems.len();
    assert_eq!(problems(&AuditorInput::default()), 0);
    assert!(problems(&brought(noted["fields"]["m-0"].as_str().unwrap())) > 0);
    // A replica that starts with the older copy says so, and what it records from then on is shipped.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(copy.path()).unwrap().flatten() {
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let back = open(0);
    back.ship();
    back.record(Record::event(now(), "after", "one"));
    back.shipped().await;
    back.log.flush().await;
    back.shipped().await;
    assert!(lines(&folder).iter().any(|line| line.contains("\"event\":\"log-cut\"")));
    assert_eq!(engine.sql(DATABASE, "select count(*) from mg.record where line like '%\"event\":\"after\"%'"), "1");
    back.close().await;
    witness.close().await;
}

/// A replica whose folder was lost begins again with the number 1; nothing of it is taken for what was shipped before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_log_of_the_same_replica_is_shipped_from_its_beginning() {
    if !Postgres::available() {
        return;
    }
    let engine = engine(&KEY);
    for run in ["first", "second"] {
        let dir = tempfile::tempdir().unwrap();
        let replica = SharedLog::open(&engine.url(DATABASE), "m-0", dir.path(), ShippedRecords::All);
        replica.ship();
        (0..20).for_each(|_| replica.record(Record::event(now(), "test", run)));
        replica.shipped().await;
        replica.close().await;
        let count = engine.sql(DATABASE, &format!("select count(*) from mg.record where line like '%{run}%'"));
        assert_eq!(count, "20", "{run}");
    }
    assert_eq!(engine.sql(DATABASE, "select count(*) from mg.shipped"), "2");
}

/// While the database is away, records wait in the log and are told; at its return they are shipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_wait_in_the_log_while_the_database_is_away() {
    if !Postgres::available() {
        return;
    }
    let (engine, dir) = (engine(&KEY), tempfile::tempdir().unwrap());
    engine.sql("postgres", &format!("alter database {DATABASE} allow_connections false"));
    let small = AuditConfig { segment_bytes: 4_000, ..settings(dir.path()) };
    let replica = SharedLog::open_with(&engine.url(DATABASE), "m-0", &small, ShippedRecords::All);
    replica.ship();
    (0..300)
        .for_each(|_| replica.record(Record { caller: Some("billing".into()), ..Record::new(Kind::Request, now()) }));
    replica.log.flush().await;
    let state = loop {
        let state = replica.log.ship_state().unwrap();
        if state.trouble.is_some() {
            break state;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(state.behind >= 300 && state.shipped == 0, "{state:?}");
    engine.sql("postgres", &format!("alter database {DATABASE} allow_connections true"));
    replica.shipped().await;
    while replica.log.ship_state().unwrap().trouble.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(replica.log.ship_state().unwrap().shipped >= 300);
    let lags = shipping::lags(replica.replicas.engine()).await.unwrap();
    assert_eq!(lags.iter().map(|lag| (&*lag.replica, lag.records)).collect::<Vec<_>>(), [("m-0", 0)]);
    assert!(replica.replicas.engine().is_connected(Line::Bulk));
    replica.close().await;
}
