//! Measures the log, its index and its proof without a gateway: `cargo bench --bench log [-- RECORDS]`, on the disk of
//! `DISK` (a folder; by default the target folder).
//!
//! Adds records of cached answers as fast as the log accepts them. Then measures how far behind the index is, how long
//! startup with that log takes, how long queries take, and `verify`.

#![allow(clippy::disallowed_methods, reason = "a benchmark may wait for files")]

use std::error::Error;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use makegate::audit::{AuditLog, AuditorInput, Filter, Kind, Peer, Record, verify};
use makegate::clock::Clock;
use makegate::config;
use makegate::ids::{KeyId, RequestId};
use makegate::vocabulary::Answer;
use rusqlite::{Connection, OpenFlags};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Number of callers in the records.
const CALLERS: u64 = 10;
/// Records per block of the index.
const BLOCK: u64 = 256;
/// One in this many records belongs to the rare caller, whose records are far apart.
const RARE: u64 = 100_000;

fn main() -> Fallible<()> {
    let records = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let disk = std::env::var("DISK").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let dir = tempfile::tempdir_in(disk)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(dir.path(), records))
}

#[expect(clippy::print_stdout, reason = "a benchmark reports")]
async fn run(dir: &Path, records: u64) -> Fallible<()> {
    let clock = Clock::system();
    let settings = settings(dir);
    let (log, _) = AuditLog::open(&settings, clock.clone())?;
    let sample = fill(&log, &clock, records).await?;
    let (seconds, counts) = (sample.took.as_secs_f64(), log.counts());
    if counts.records < records {
        return Err(format!("{records} records were added, but {} are stored", counts.records).into());
    }
    println!(
        "{records} records of {} bytes stored in {seconds:.2} s: {:.0}/s, {} fdatasyncs",
        counts.bytes / counts.records,
        records as f64 / seconds,
        counts.syncs
    );
    let of_thread = |name: &str| cpu(name).map_or("unknown".to_owned(), |time| micros_each(time, records));
    let writer = of_thread("audit-writer");
    let began = clock.now();
    // The newest records wait until their block is full.
    while indexed(dir)? + BLOCK < records {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let behind = clock.now() - began;
    let rate = records as f64 / (sample.took + behind).as_secs_f64();
    println!("index: {:.2} s behind at the end, {rate:.0}/s beside the log", behind.as_secs_f64());
    println!("CPU per record: writer {writer}, index {}", of_thread("audit-index"));
    log.close().await;
    drop(log);
    let began = clock.now();
    let (log, recovered) = AuditLog::open(&settings, clock.clone())?;
    println!("startup with it: {} (clean: {})", millis(clock.now() - began), recovered.clean);
    queries(&log, &clock, &sample).await?;
    let head = log.head().await;
    log.close().await;
    drop(log);
    let brought = AuditorInput { heads: vec![("exported".to_owned(), head)], keys: Vec::new() };
    let began = clock.now();
    let report = verify(dir, &brought, &mut |_, _| {})?;
    let took = clock.now() - began;
    if !report.problems.is_empty() || report.records < records {
        return Err(format!("not verified: {report:?}").into());
    }
    println!(
        "verify: {} records, {} MB in {:.2} s: {:.0}/s",
        report.records,
        report.bytes / 1_000_000,
        took.as_secs_f64(),
        report.records as f64 / took.as_secs_f64()
    );
    Ok(())
}

fn settings(dir: &Path) -> config::AuditConfig {
    config::AuditConfig {
        dir: dir.to_owned(),
        retention: Duration::from_secs(400 * 24 * 3600),
        retention_bytes: 1 << 40,
        head: Duration::from_secs(60),
        segment_bytes: 64 << 20,
        buffer_records: 10_000,
        buffer_bytes: 16 << 20,
        record_bytes: 8 << 10,
        disk_wait: Duration::from_millis(900),
    }
}

struct Sample {
    took: Duration,
    /// A request from the middle of the log.
    request: RequestId,
}

/// Adds records as fast as there is room for them.
async fn fill(log: &Arc<AuditLog>, clock: &Clock, records: u64) -> Fallible<Sample> {
    let names =
        |count: u64, prefix: &str| (0..count).map(|n| Arc::from(format!("{prefix}{n}"))).collect::<Vec<Arc<str>>>();
    let (callers, paths) = (names(CALLERS, "caller-"), names(20, "/api/v2/organizations/"));
    let (operation, rare): (Arc<str>, Arc<str>) = ("organizations.get".into(), "rare".into());
    let began = clock.now();
    let mut request = RequestId::new(clock);
    for n in 0..records {
        let room = loop {
            match log.reserve() {
                Some(room) => break room,
                None => tokio::time::sleep(Duration::from_micros(100)).await,
            }
        };
        let id = RequestId::new(clock);
        if n == records / 2 {
            request = id;
        }
        let pick = |from: &[Arc<str>]| from.get(usize::try_from(n).unwrap_or(0) % from.len()).cloned();
        room.fill(Record {
            request: Some(id),
            caller: if n % RARE == 0 { Some(rare.clone().into()) } else { pick(&callers).map(Into::into) },
            key: Some(KeyId::of(&[7; 32])),
            peer: Some(Peer::of(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)))),
            operation: Some(operation.clone().into()),
            organization: Some(n % 20),
            method: Some(Method::GET),
            path: pick(&paths).map(Into::into),
            status: Some(200),
            answer: Some(Answer::Hit),
            filled_by: Some(id),
            duration_us: Some(31),
            bytes: Some(823),
            ..Record::new(Kind::Request, clock.wall())
        });
    }
    log.flush().await;
    Ok(Sample { took: clock.now() - began, request })
}

/// The newest record in the index.
fn indexed(dir: &Path) -> Fallible<u64> {
    let index = Connection::open_with_flags(dir.join("index.sqlite"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let seq: i64 = index.query_row("SELECT seq FROM position", [], |row| row.get(0))?;
    Ok(seq.cast_unsigned())
}

#[expect(clippy::print_stdout, reason = "a benchmark reports")]
async fn queries(log: &AuditLog, clock: &Clock, sample: &Sample) -> Fallible<()> {
    let caller = |name: &str| Filter { caller: Some(name.into()), ..Filter::default() };
    for (what, filter) in [
        ("the last 100", Filter::default()),
        ("a caller's last 100", caller("caller-3")),
        ("a rare caller's last 100", caller("rare")),
        ("a request by its id", Filter { request: Some(sample.request), ..Filter::default() }),
        ("a scan for something absent", Filter { answer: Some(Answer::Stale), ..Filter::default() }),
    ] {
        let mut times = Vec::new();
        let mut found = 0;
        for _ in 0..5 {
            let began = clock.now();
            found = log.query(&"".into(), filter.clone()).await?.records.len();
            times.push(clock.now() - began);
        }
        times.sort_unstable();
        println!("query of {what}: {found} records, {}", times.get(2).map_or_else(String::new, |time| millis(*time)));
    }
    Ok(())
}

/// CPU time of the thread with this name (Linux).
fn cpu(name: &str) -> Option<Duration> {
    let tasks = fs::read_dir("/proc/self/task").ok()?.filter_map(Result::ok).map(|task| task.path());
    let named =
        tasks.into_iter().find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name))?;
    let nanos = fs::read_to_string(named.join("schedstat")).ok()?.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

fn micros_each(time: Duration, count: u64) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6 / count as f64)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
