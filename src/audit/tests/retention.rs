//! What retention deletes, and what it must not delete, on real files.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;

use super::*;
use crate::audit::LogSharing;
use crate::audit::log::buffer;
use crate::audit::recover::recover;
use crate::clock::Clock;
use crate::config;
use crate::vocabulary::Outcome;

const HOUR: Duration = Duration::from_secs(3600);

/// A refusal of an unidentified caller.
fn refusal(request: &str) -> Box<Record<'static>> {
    Box::new(Record { caller: None, refusal: Some("MG111".into()), ..record(Kind::Request, request) })
}

fn is_refusal(line: &Value) -> bool {
    line["kind"] == "refusals" || (line["kind"] == "request" && line["caller"].is_null())
}

/// Bytes in the log's files: of refusals, and of everything else.
fn bytes(settings: &config::AuditConfig) -> (u64, u64) {
    let (mut refusals, mut others) = (0, 0);
    for first in segment::list(&settings.dir).unwrap() {
        let text = std::fs::read_to_string(segment::path(&settings.dir, first)).unwrap();
        for line in text.lines() {
            let kind = if is_refusal(&serde_json::from_str(line).unwrap()) { &mut refusals } else { &mut others };
            *kind += line.len() as u64 + 1;
        }
    }
    (refusals, others)
}

/// Records refusals until the log takes no more; returns how many it took.
async fn flood(log: &Arc<AuditLog>) -> usize {
    for n in 0..3_000 {
        if !log.refusals_fit() {
            log.flush().await; // records in the buffer count for more than they will on disk
            if !log.refusals_fit() {
                return n;
            }
        }
        log.reserve().unwrap().fill_refusal(refusal(&format!("x{n}"))).unwrap();
    }
    panic!("the log never stops taking refusals");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_a_share_of_the_log_and_push_out_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 4096, retention_bytes: 128 << 10, ..settings(&dir) };
    let share = settings.retention_bytes / 8;
    let write = async |log: &AuditLog, n: usize| {
        let intent = log.commit(record(Kind::Intent, &format!("w{n}"))).await.unwrap();
        log.commit(outcome(&format!("w{n}"), intent, Outcome::Done)).await.unwrap();
    };
    let mut written = 0;
    for round in 0..4 {
        let (log, _) = open(&settings, &Clock::system()).await;
        // As many writes as fit beside any number of refusals.
        while bytes(&settings).1 < (settings.retention_bytes - share - 4096) * (round + 1) / 4 {
            write(&log, written).await;
            written += 1;
        }
        flood(&log).await;
        log.close().await;
        drop(log);
        let (refusals, _) = bytes(&settings);
        assert!((share..share + 512).contains(&refusals), "{refusals} of {share}");
        let (start, _) = recover(&settings.dir).unwrap();
        assert_eq!(start.kept.refusals_in_log(), refusals, "wrong account after round {round}");
        let lines = lines(&settings);
        assert_eq!(count(&lines, "event", "retention"), 0);
        assert_eq!((count(&lines, "kind", "intent"), count(&lines, "kind", "outcome")), (written, written));
    }
    // More than fits: the oldest segments are deleted together with their refusals, which makes room for new ones.
    let (log, _) = open(&settings, &Clock::system()).await;
    for n in 0..800 {
        write(&log, written + n).await;
    }
    assert!(flood(&log).await > 0, "deleted refusals make room for new ones");
    log.close().await;
    drop(log);
    let (refusals, others) = bytes(&settings);
    assert!(others <= settings.retention_bytes - share + 3 * 4608, "{others}");
    assert_eq!(recover(&settings.dir).unwrap().0.kept.refusals_in_log(), refusals);
    assert_eq!(count(&lines(&settings), "request", "w0"), 0);
}

/// Refusals waiting for the disk use only their part of the buffer and leave the rest to others.
#[test]
fn refusals_get_only_a_part_of_the_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let by_count = config::AuditConfig { buffer_records: 80, ..settings(&dir) };
    let by_bytes = config::AuditConfig { buffer_bytes: 80 * 500, ..settings(&dir) };
    for settings in [by_count, by_bytes] {
        let buffer = buffer::RecordBuffer::new(&settings);
        let (mine, other) =
            (buffer::BufferCharge { records: 1, bytes: 500, refusal: true }, buffer::BufferCharge::default());
        let taken = (0..80).filter(|_| buffer.convert_to_refusal(mine)).count();
        assert_eq!(taken, 10, "refusals get an eighth");
        let other = buffer::BufferCharge { records: 1, bytes: 500, ..other };
        assert!((0..80).all(|_| buffer.take(other)), "others may use all of it");
        buffer.release(mine);
        assert!(buffer.convert_to_refusal(mine) && !buffer.convert_to_refusal(mine), "released room can be used again");
    }
}

/// A segment kept for an open write keeps its refusals, even when later segments have been deleted.
#[tokio::test(flavor = "multi_thread")]
async fn the_count_of_refusals_is_right_when_segments_in_between_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 4096, retention_bytes: 64 << 10, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    let intent = log.commit(record(Kind::Intent, "open")).await.unwrap();
    for round in 0..2 {
        for n in 0..600 {
            if n % 8 == 0 && log.refusals_fit() {
                log.reserve().unwrap().fill_refusal(refusal(&format!("x{n}"))).unwrap();
            }
            log.commit(record(Kind::Event, &format!("e{n}"))).await.unwrap();
        }
        let left = lines(&settings);
        assert_eq!(count(&left, "request", "open"), usize::from(round == 0), "{round}");
        if round == 0 {
            log.commit(outcome("open", intent, Outcome::Done)).await.unwrap();
        }
    }
    log.close().await;
    drop(log);
    let (refusals, _) = bytes(&settings);
    assert_eq!(recover(&settings.dir).unwrap().0.kept.refusals_in_log(), refusals);
}

/// The clock is wrong by two years: one segment is deleted per hour, across a restart too, until somebody notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_past_the_retention_does_not_empty_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 2000, ..settings(&dir) };
    let (clock, years) = (Clock::movable(), SignedDuration::from_hours(2 * 365 * 24));
    let (mut log, _) = open(&settings, &clock).await;
    let write = async |log: &AuditLog, n: usize| {
        log.commit(Record { time: clock.wall(), ..record(Kind::Event, &format!("e{n}")) }).await.unwrap();
    };
    let gone = async || {
        let (first, mut last) = (segment::list(&settings.dir).unwrap()[0], 0);
        // A segment stays for a while after a sweep found it.
        for round in 0..40 {
            if round == 20 {
                assert_eq!(segment::list(&settings.dir).unwrap()[0], first);
                clock.advance(Duration::from_secs(601));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
            last = segment::list(&settings.dir).unwrap()[0];
        }
        assert!(last >= first);
        last
    };
    for n in 0..60 {
        write(&log, n).await;
    }
    clock.step(years);
    for n in 60..100 {
        write(&log, n).await;
    }
    assert_eq!(gone().await, 1, "an hour has not passed");
    let mut oldest = 1;
    for hour in 1..=3 {
        clock.advance(HOUR + Duration::from_secs(1));
        let segments = segment::list(&settings.dir).unwrap();
        assert_eq!(gone().await, segments[1], "one segment in hour {hour}");
        oldest = segments[1];
    }
    log.close().await;
    drop(log);
    (log, _) = open(&settings, &clock).await;
    assert_eq!(gone().await, oldest, "a restart does not count as an hour");
    // The clock is right again: records written meanwhile carry future times, and nothing is old.
    clock.step(-years);
    clock.advance(HOUR * 2);
    for n in 100..120 {
        write(&log, n).await;
    }
    assert_eq!(gone().await, oldest);
    // In due time all are deleted, including those with future times.
    clock.advance(settings.retention + HOUR * 48);
    write(&log, 120).await;
    for _ in 0..400 {
        if count(&lines_if_whole(&settings), "request", "e99") == 0 {
            break;
        }
        clock.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let left = lines_if_whole(&settings);
    assert_eq!((count(&left, "request", "e99"), count(&left, "request", "e120")), (0, 1));
}

/// Segments may be deleted between listing and reading.
fn lines_if_whole(settings: &config::AuditConfig) -> Vec<Value> {
    let segments = segment::list(&settings.dir).unwrap();
    let texts = segments.iter().filter_map(|first| std::fs::read_to_string(segment::path(&settings.dir, *first)).ok());
    texts.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect()
}

/// Opens a log whose records another table keeps for 30 days.
async fn open_to_ship(settings: &config::AuditConfig, clock: &Clock) -> Arc<AuditLog> {
    AuditLog::open_shared(settings, clock.clone(), Some(LogSharing { key: [7; 32], keep: 30 * 24 * HOUR })).unwrap().0
}

/// Adds records of this moment until the log has begun a new segment, which makes retention look for old ones.
async fn fill_a_segment(log: &AuditLog, settings: &config::AuditConfig, clock: &Clock) {
    let begun = segment::list(&settings.dir).unwrap().last().copied();
    while segment::list(&settings.dir).unwrap().last().copied() == begun {
        log.commit(Record { time: clock.wall(), ..record(Kind::Event, "e") }).await.unwrap();
    }
}

fn announced(settings: &config::AuditConfig) -> u64 {
    let told = lines(settings).into_iter().rfind(|line| line["event"] == "retention");
    told.map_or(0, |told| told["fields"]["last"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_stays_until_it_is_shipped_or_the_table_would_not_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 1000, retention: 10 * 24 * HOUR, ..settings(&dir) };
    let clock = Clock::movable();
    let log = open_to_ship(&settings, &clock).await;
    log.flush().await; // the first one is begun
    fill_a_segment(&log, &settings, &clock).await;
    let old = *segment::list(&settings.dir).unwrap().last().unwrap() - 1;
    clock.advance(11 * 24 * HOUR);
    fill_a_segment(&log, &settings, &clock).await;
    fill_a_segment(&log, &settings, &clock).await;
    assert_eq!(announced(&settings), 0, "nothing is shipped");
    log.shared.shipped.moved(old - 1);
    fill_a_segment(&log, &settings, &clock).await;
    assert_eq!(announced(&settings), 0, "the segment's last record is not shipped");
    log.shared.shipped.moved(old);
    fill_a_segment(&log, &settings, &clock).await;
    assert_eq!(announced(&settings), old);
    clock.advance(31 * 24 * HOUR);
    fill_a_segment(&log, &settings, &clock).await;
    assert!(announced(&settings) > old, "no table takes records that are so old");
    assert_eq!(log.ship_state().unwrap().deleted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_too_large_loses_what_is_not_shipped_and_says_how_much() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 1000, retention_bytes: 6_000, ..settings(&dir) };
    let log = open_to_ship(&settings, &Clock::system()).await;
    for _ in 0..12 {
        fill_a_segment(&log, &settings, &Clock::system()).await;
    }
    assert!(announced(&settings) > 20);
    assert_eq!(log.ship_state().unwrap().deleted, 0, "nobody knows yet what was shipped before the start");
    let early = announced(&settings);
    log.shared.shipped.moved(10);
    assert_eq!(log.ship_state().unwrap().deleted, early - 10);
    fill_a_segment(&log, &settings, &Clock::system()).await;
    fill_a_segment(&log, &settings, &Clock::system()).await;
    let later = announced(&settings);
    assert!(later > early);
    assert_eq!(log.ship_state().unwrap().deleted, later - 10);
}
