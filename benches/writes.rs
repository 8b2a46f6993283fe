//! Measures durable writes per second, and what their intents add: `cargo bench --bench writes [-- ROUNDS SECONDS]`, on
//! the disk of `DISK` (a folder; by default the target folder). The origin answers at once, so the result shows the
//! log.
//!
//! In the same rounds, for comparison: a bare loop that appends as many bytes as a record has and calls fdatasync,
//! alone on that disk.

#![allow(clippy::disallowed_methods, reason = "a benchmark may wait for files")]

mod common;

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use makegate::clock::Clock;
use makegate::service::Service;
use makegate::tasks::Tasks;
use makegate::{config, hash};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use common::{Fallible, message};

/// Numbers of concurrent writers.
const CLIENTS: [usize; 3] = [1, 16, 64];
/// Number of organizations that they write to in turn, enough that no two concurrent writes hit the same one.
const ORGANIZATIONS: u64 = 10_000;
/// Bytes that the bare loop appends: about one record.
const PROBE_BYTES: usize = 300;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

fn main() -> Fallible<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (rounds, seconds) =
        (numbers.first().copied().unwrap_or(3), Duration::from_secs(numbers.get(1).copied().unwrap_or(3)));
    let disk = std::env::var("DISK").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let dir = tempfile::tempdir_in(disk)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let origin = origin().await?;
        let service = Service::start(config::read(&configured(dir.path(), origin)?)?, Clock::system()).await?;
        let gateway = *service.gateway_addresses().first().ok_or("no gateway address")?;
        let mut lone = Vec::new();
        let mut runs = Vec::new();
        for _ in 0..rounds {
            lone.push(probe(dir.path())?);
            for clients in CLIENTS {
                let before = service.gateway().log.counts().records;
                let writes = load(gateway, clients, seconds, true).await?;
                service.gateway().log.flush().await;
                let records = service.gateway().log.counts().records - before;
                if records < 2 * writes.count() {
                    return Err(format!("{} writes left {records} records", writes.count()).into());
                }
                runs.push((clients, writes, load(gateway, clients, seconds, false).await?));
            }
        }
        report(&mut lone, runs);
        service.shut_down().await;
        Ok(())
    })
}

/// The latencies of one run, in microseconds, and how long it took.
struct Run {
    latencies: Vec<u64>,
    took: Duration,
}

impl Run {
    fn count(&self) -> u64 {
        self.latencies.len() as u64
    }

    fn a_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    fn at(&self, percent: usize) -> u64 {
        self.latencies.get(self.latencies.len() * percent / 100).copied().unwrap_or(0)
    }
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> Option<T> {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

#[expect(clippy::print_stdout, reason = "a benchmark reports")]
fn report(lone: &mut [Run], runs: Vec<(usize, Run, Run)>) {
    let alone = median(lone.iter().map(Run::a_second).collect()).unwrap_or(0.0);
    let syncs = median(lone.iter().map(|run| run.at(99)).collect()).unwrap_or(0);
    println!("append of {PROBE_BYTES} bytes + fdatasync alone: {alone:.0}/s, p99 {syncs} µs");
    println!("clients  writes/s  of the bare loop  p50 µs  p99 µs  added by the log: p50 µs  p99 µs");
    for clients in CLIENTS {
        let of = |value: &dyn Fn(&Run, &Run) -> f64| {
            let values =
                runs.iter().filter(|(count, ..)| *count == clients).map(|(_, writes, reads)| value(writes, reads));
            median(values.collect()).unwrap_or(0.0)
        };
        let rate = of(&|writes, _| writes.a_second());
        let added = |percent: usize| of(&|writes, reads| writes.at(percent) as f64 - reads.at(percent) as f64);
        println!(
            "{clients:>7}  {rate:>8.0}  {:>16.2}  {:>6.0}  {:>6.0}  {:>24.0}  {:>6.0}",
            rate / alone,
            of(&|writes, _| writes.at(50) as f64),
            of(&|writes, _| writes.at(99) as f64),
            added(50),
            added(99),
        );
    }
}

/// The bare loop.
fn probe(dir: &Path) -> Fallible<Run> {
    let clock = Clock::system();
    let mut file = File::create(dir.join("probe"))?;
    let (began, bytes) = (clock.now(), [b'x'; PROBE_BYTES]);
    let mut latencies = Vec::new();
    while clock.now() - began < Duration::from_secs(1) {
        let start = clock.now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        latencies.push(micros(clock.now() - start));
    }
    latencies.sort_unstable();
    Ok(Run { latencies, took: clock.now() - began })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Runs `clients` connections that each send the next request when the last one is answered: writes to different
/// organizations, or reads that are always forwarded, which differ only in the log.
async fn load(gateway: SocketAddr, clients: usize, time: Duration, writes: bool) -> Fallible<Run> {
    let clock = Clock::system();
    let began = clock.now();
    let next = Arc::new(AtomicU64::new(1));
    let tasks = Tasks::new();
    let running: Vec<_> =
        (0..clients).map(|_| tasks.spawn(client(gateway, clock.clone(), began + time, next.clone(), writes))).collect();
    let mut latencies = Vec::new();
    for one in running {
        latencies.extend(one.await??);
    }
    latencies.sort_unstable();
    Ok(Run { latencies, took: clock.now() - began })
}

async fn client(
    gateway: SocketAddr,
    clock: Clock,
    end: Instant,
    next: Arc<AtomicU64>,
    writes: bool,
) -> Fallible<Vec<u64>> {
    let mut stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let mut latencies = Vec::new();
    while clock.now() < end {
        let id = 1 + next.fetch_add(1, Ordering::Relaxed) % ORGANIZATIONS;
        let (method, rest, body) = if writes { ("PATCH", "", "{\"name\":\"Bench\"}") } else { ("GET", "/apps", "") };
        let request = format!(
            "{method} /api/v2/organizations/{id}{rest} HTTP/1.1\r\nhost: makegate\r\nauthorization: Token bench\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let start = clock.now();
        stream.write_all(request.as_bytes()).await?;
        let status = message(&mut stream).await?.ok_or("the gateway hung up")?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(format!("not done: {status}").into());
        }
        latencies.push(micros(clock.now() - start));
    }
    Ok(latencies)
}

/// An upstream that answers everything at once.
async fn origin() -> Fallible<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tasks = Tasks::new();
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                while let Ok(Some(_)) = message(&mut stream).await {
                    if stream.write_all(ANSWER).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(address)
}

fn configured(dir: &Path, origin: SocketAddr) -> Fallible<std::path::PathBuf> {
    let file = dir.join("makegate.toml");
    let key = hash::hex(&hash::sha256(b"bench"));
    std::fs::write(dir.join("secret"), "bench-secret-0123456789")?;
    std::fs::write(
        &file,
        format!(
            "gateway.listen = \"127.0.0.1:0\"\naudit.dir = \"audit\"\n\
             operator = {{ listen = \"127.0.0.1:0\", key_file = \"secret\" }}\n\
             upstream = {{ url = \"http://{origin}\", token_file = \"secret\", quota = \"600000000/min\", connections = 64 }}\n\
             limits.in_flight_per_caller = 512\n\
             [[caller]]\nname = \"bench\"\nkeys = [\"sha256:{key}\"]\ngrants = [\"*\"]\nrate = \"600000000/min\"\nburst = 1000000\n"
        ),
    )?;
    Ok(file)
}
