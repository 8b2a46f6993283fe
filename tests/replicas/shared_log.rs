//! A log that ships its records to a real PostgreSQL: what the tests of records share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use makegate::audit::{AuditLog, Kind, LogSharing, LogShipper, Record, ShipSettings};
use makegate::clock::Clock;
use makegate::config::{AuditConfig, ShippedRecords};
use makegate::ids::RequestId;
use makegate::replicas::Replicas;
use makegate::replicas::engine::Line;
use makegate::tasks::Tasks;
use makegate::vocabulary::{Answer, Outcome};

use crate::one_replica::{self, DAY, KEY};

/// One replica, without its doors: what it shares, and its log.
pub(crate) struct SharedLog {
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) log: Arc<AuditLog>,
    pub(crate) records: ShippedRecords,
    tasks: Tasks,
}

pub(crate) fn settings(dir: &Path) -> AuditConfig {
    AuditConfig {
        dir: dir.join("audit"),
        retention: 400 * DAY,
        retention_bytes: 1 << 40,
        head: Duration::from_secs(1),
        segment_bytes: 8 << 10,
        buffer_records: 100_000,
        buffer_bytes: 64 << 20,
        record_bytes: 8 << 10,
        disk_wait: Duration::from_secs(60),
    }
}

impl SharedLog {
    /// Opens the replica's log in this folder, and begins to connect.
    pub(crate) fn open(url: &str, name: &str, dir: &Path, records: ShippedRecords) -> Self {
        Self::open_with(url, name, &settings(dir), records)
    }

    pub(crate) fn open_with(url: &str, name: &str, settings: &AuditConfig, records: ShippedRecords) -> Self {
        let (tasks, clock) = (Tasks::new(), Clock::system());
        let replica = one_replica::settings(url, name, Duration::from_secs(5), records);
        let replicas = Replicas::start(replica, "test", clock.clone(), &tasks).unwrap();
        let log = AuditLog::open_shared(settings, clock, Some(LogSharing { key: KEY, keep: 30 * DAY })).unwrap().0;
        Self { replicas, log, records, tasks }
    }

    /// Begins to ship, in the background, until the log is closed.
    pub(crate) fn ship(&self) -> tokio::task::JoinHandle<()> {
        let settings = ShipSettings {
            engine: self.replicas.engine().clone(),
            replica: self.replicas.name().clone(),
            records: self.records,
            keep: 30 * DAY,
        };
        self.tasks.spawn(LogShipper::new(self.log.clone(), settings).run())
    }

    pub(crate) async fn connected(&self) {
        self.replicas.engine().connected(Line::Bulk).await;
    }

    pub(crate) fn record(&self, record: Record<'static>) {
        self.log.reserve().unwrap().fill(record);
    }

    /// Waits until everything that was recorded is shipped.
    pub(crate) async fn shipped(&self) {
        self.log.flush().await;
        for _ in 0..6_000 {
            if self.log.ship_state().unwrap().behind == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not shipped: {:?}", self.log.ship_state());
    }

    /// Closes the log, and leaves the database. Its folder can be opened again.
    pub(crate) async fn close(self) {
        self.log.close().await;
        self.tasks.stop();
        assert!(self.tasks.drained(Duration::from_secs(60)).await);
    }
}

/// A record of some request, with what is unusual in it too.
pub(crate) fn any_record(random: &mut fastrand::Rng, now: Timestamp) -> Record<'static> {
    let names = ["billing", "a\0b", "ä \"quoted\" \\", "dashboard", "%_'", "x"];
    let long = "long".repeat(300);
    let age = SignedDuration::from_micros(random.i64(0..3_600_000_000));
    // An intent is waited for, and is not filled in lazily.
    let kind =
        Some(Kind::ALL[random.usize(..Kind::ALL.len())]).filter(|kind| *kind != Kind::Intent).unwrap_or(Kind::Request);
    let caller = if random.u8(..20) == 0 { long } else { names[random.usize(..names.len())].to_owned() };
    let is_write = matches!(kind, Kind::Outcome | Kind::Settlement);
    let request = format!("r-{}", random.u8(..40));
    Record {
        request: RequestId::parse(request.as_bytes()).filter(|_| is_write || random.u8(..4) > 0),
        intent: (kind == Kind::Outcome).then(|| random.u64(1..50)),
        caller: (random.u8(..8) > 0).then(|| caller.into()),
        operation: (random.bool()).then(|| ["organizations.get", "payments.create"][random.usize(..2)].into()),
        organization: (random.bool()).then(|| [11, 12, u64::MAX][random.usize(..3)]),
        path: random.bool().then(|| format!("/api/v2/organizations/{}\n\t", random.u8(..3)).into()),
        status: random.bool().then(|| [200, 404, 409, 503][random.usize(..4)]),
        answer: (!is_write && random.bool()).then(|| Answer::ALL[random.usize(..Answer::ALL.len())]),
        refusal: (random.u8(..6) == 0).then(|| "MG131".into()),
        outcome: (kind == Kind::Outcome).then(|| Outcome::ALL[random.usize(..Outcome::ALL.len())]),
        attempts: random.bool().then(|| random.u32(..3)),
        duration_us: random.bool().then(|| random.u64(..5_000)),
        detail: (random.u8(..5) == 0).then(|| "a tab\t, \u{0} and a line\nend \\.".into()),
        ..Record::new(kind, now - age)
    }
}

/// The lines of a log's files that no later segment makes void.
pub(crate) fn lines(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    makegate::audit::export(dir, &makegate::audit::Filter::default(), &mut |line| {
        lines.push(line.to_owned());
        Ok(())
    })
    .unwrap();
    lines
}
