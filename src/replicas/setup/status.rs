//! What the engine knows of all replicas, for operators.

use jiff::{SignedDuration, Timestamp};
use tokio_postgres::Row;

use crate::replicas::engine::{EngineError, EngineSession};

/// A replica, as the engine knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// `live`, `gone` (the others have given it up, or it has stopped) or `left`.
    pub state: String,
    /// Number of its last beat, if it is alive.
    pub beats: Option<i64>,
    /// Version of makegate.
    pub version: Option<String>,
    /// Hash of the configuration in force.
    pub config_sha256: Option<String>,
    /// When it joined.
    pub joined: Option<Timestamp>,
    /// Fences that it has not applied yet.
    pub fences_behind: Option<i64>,
    /// Its writes that are under way or in doubt.
    pub open_writes: i64,
    /// The newest of its records that the engine has.
    pub shipped: Option<i64>,
}

/// The engine, as it knows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// Its version.
    pub version: String,
    /// Its time.
    pub time: Option<Timestamp>,
    /// Version of the schema.
    pub schema: i32,
    /// The epoch's id, if there is one.
    pub epoch: Option<String>,
    /// How old the epoch is.
    pub epoch_age: Option<SignedDuration>,
    /// Rows that are dead and not yet reclaimed.
    pub dead_rows: i64,
    /// Size of all tables with their indexes.
    pub bytes: i64,
    /// Size of what was shipped of the logs.
    pub record_bytes: i64,
}

const REPLICAS: &str = "
    select r.name, case when r.left_at is not null then 'left' when m.replica is null or m.gone then 'gone' else 'live' end,
           m.beats, m.version, m.config_sha256, (extract(epoch from r.joined) * 1000000)::int8,
           case when not m.gone then greatest(0, h.seq - m.acked) end,
           (select count(*) from mg.write w where w.replica = r.name and w.state in ('u', 'd')), s.seq
    from mg.replica r left join mg.member m on m.replica = r.name
         -- A replica whose folder was lost has two logs.
         left join (select replica, max(seq) seq from mg.shipped group by replica) s on s.replica = r.name
         left join mg.fence_head h on true
    order by r.name";

const ENGINE: &str = "
    select current_setting('server_version'), (extract(epoch from clock_timestamp()) * 1000000)::int8,
           (select version from mg.about), (select id::text from mg.epoch),
           (select (extract(epoch from clock_timestamp() - born) * 1000)::int8 from mg.epoch),
           coalesce((select sum(n_dead_tup)::int8 from pg_stat_user_tables where schemaname = 'mg'), 0),
           coalesce((select sum(pg_total_relation_size(c.oid))::int8 from pg_class c
                     where c.relnamespace = 'mg'::regnamespace and c.relkind = 'r'), 0),
           coalesce((select sum(pg_total_relation_size(i.inhrelid))::int8 from pg_inherits i
                     where i.inhparent = 'mg.record'::regclass), 0)";

/// All replicas that there have been, by name.
///
/// # Errors
/// [`EngineError`].
pub async fn replicas(session: &EngineSession) -> Result<Vec<ReplicaStatus>, EngineError> {
    let rows = session.timed(session.query(REPLICAS, &[])).await?;
    let replica = |row: &Row| ReplicaStatus {
        name: row.get(0),
        state: row.get(1),
        beats: row.get(2),
        version: row.get(3),
        config_sha256: row.get(4),
        joined: moment(row.get(5)),
        fences_behind: row.get(6),
        open_writes: row.get(7),
        shipped: row.get(8),
    };
    Ok(rows.iter().map(replica).collect())
}

/// The engine itself.
///
/// # Errors
/// [`EngineError`].
pub async fn engine(session: &EngineSession) -> Result<EngineStatus, EngineError> {
    let row = session.timed(session.query_one(ENGINE, &[])).await?;
    Ok(EngineStatus {
        version: row.get(0),
        time: moment(row.get(1)),
        schema: row.get::<_, Option<i32>>(2).unwrap_or(0),
        epoch: row.get(3),
        epoch_age: row.get::<_, Option<i64>>(4).map(SignedDuration::from_millis),
        dead_rows: row.get(5),
        bytes: row.get(6),
        record_bytes: row.get(7),
    })
}

fn moment(us: Option<i64>) -> Option<Timestamp> {
    Timestamp::from_microsecond(us?).ok()
}
