//! What a test needs to run a replica's parts in its own process: a database that is set up, and the replica's settings.

use std::sync::Arc;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::config::{ReplicasConfig, SecretSource, ShippedRecords, WithoutLease};
use makegate::replicas::writes::SharedWrites;
use makegate::replicas::{EngineAccess, Epoch, Replicas, ReplicasSettings, schema};
use makegate::tasks::Tasks;

use crate::support::fleet::wait;
use crate::support::postgres::Postgres;

pub(crate) const DATABASE: &str = "makegate";
pub(crate) const KEY: [u8; 32] = [7; 32];
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A database with makegate's schema, for replicas that share this key.
pub(crate) fn engine(shared_key: &[u8; 32]) -> Postgres {
    let engine = Postgres::start(&[]);
    engine.database(DATABASE);
    engine.sql(DATABASE, schema::SCHEMA);
    let key: String = schema::key_sha256(shared_key).iter().map(|byte| format!("{byte:02x}")).collect();
    engine
        .sql(DATABASE, &format!("insert into mg.about (version, key_sha256) values ({}, '\\x{key}')", schema::VERSION));
    engine
}

/// A replica that shares [`KEY`].
pub(crate) fn settings(url: &str, name: &str, lease: Duration, records: ShippedRecords) -> ReplicasSettings {
    let config = ReplicasConfig {
        url: SecretSource::Env("UNUSED".to_owned()),
        ca_file: None,
        name: None,
        key_file: "unused".into(),
        max: 100,
        lease,
        without: WithoutLease::Refuse,
        reserve_percent: 0,
        records,
        keep: 30 * DAY,
    };
    let access = EngineAccess { url: url.to_owned().into(), roots: None, name: name.into() };
    ReplicasSettings { config, access, key: KEY }
}

/// A replica's part in what all share, in this process. Its lease is so long that nothing depends on its beats.
pub(crate) struct OneReplica {
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) writes: Arc<SharedWrites>,
    pub(crate) tasks: Tasks,
}

impl Drop for OneReplica {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl OneReplica {
    /// Waits until it has joined, and lets it write.
    pub(crate) async fn join(name: &str, engine: &Postgres) -> Self {
        let tasks = Tasks::new();
        let settings = settings(&engine.url(DATABASE), name, Duration::from_secs(60), ShippedRecords::None);
        let replicas = Replicas::start(settings, "0", Clock::system(), &tasks).unwrap();
        let writes = SharedWrites::start(replicas.clone(), &tasks);
        wait("it joins", async || replicas.epoch().borrow().is_some()).await;
        let one = Self { replicas, writes, tasks };
        one.writes.open(&one.epoch());
        one
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.replicas.epoch().borrow().expect("it has joined")
    }
}
