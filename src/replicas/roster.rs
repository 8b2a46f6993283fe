//! Who takes part, as the engine knows it, for operators. A task reads it now and then, and when somebody asks, so that no page waits for
//! an engine that hangs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_postgres::Row;
use uuid::Uuid;

use super::Replicas;
use super::engine::{Line, Statement};

/// How often it is read although nobody asks.
const INTERVAL: Duration = Duration::from_secs(10);
/// How old it may be when somebody asks; it is read no more often than this.
const AGE_MAX: Duration = Duration::from_secs(1);
/// How long whoever asks waits for a newer one.
const WAIT_MAX: Duration = Duration::from_millis(300);

static ROSTER: Statement = Statement::new(
    "select e.id, (extract(epoch from e.born) * 1000000)::bigint, r.name, \
       case when r.left_at is not null then 'left' when m.replica is null or m.gone then 'gone' else 'live' end, \
       m.version, m.config_sha256, (extract(epoch from r.joined) * 1000000)::bigint, \
       case when not m.gone then greatest(0, h.seq - m.acked) end, \
       (select greatest(0, s.newest - s.seq) from mg.shipped s where s.replica = r.name order by s.reported desc limit 1) \
     from (select) one left join mg.epoch e on true left join mg.fence_head h on true \
       join mg.replica r on true left join mg.member m on m.replica = r.name \
     order by r.name limit 1000",
    &[],
);

/// Whether a replica takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TakesPart {
    /// It beats.
    Live,
    /// It has ended, or the others have given it up.
    Gone,
    /// It will not come back.
    Left,
}

impl TakesPart {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Live, Self::Gone, Self::Left];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Gone => "gone",
            Self::Left => "left",
        }
    }
}

/// A replica in the roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedReplica {
    /// Its name.
    pub name: String,
    /// Whether it takes part.
    pub state: TakesPart,
    /// Its version of makegate.
    pub version: Option<String>,
    /// The SHA-256 of the configuration that is in force there.
    pub config_sha256: Option<String>,
    /// When it joined.
    pub joined: Option<Timestamp>,
    /// Fences that it has not applied yet.
    pub fences_behind: Option<u64>,
    /// Records that it had not shipped when it last shipped some.
    pub records_behind: Option<u64>,
}

/// All replicas, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// They.
    pub replicas: Vec<ListedReplica>,
    /// The epoch of the soft state, and when it began by the engine's clock.
    pub epoch: Option<(Uuid, Option<Timestamp>)>,
    /// When it was read.
    pub read: Timestamp,
    /// The same, since the machine's start.
    read_boot: Duration,
}

/// The newest roster, and who wants a newer one.
#[derive(Debug, Default)]
pub(super) struct RosterBoard {
    newest: watch::Sender<Option<Arc<Roster>>>,
    wanted: Notify,
}

impl RosterBoard {
    /// The newest roster is not true any more.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }
}

impl Replicas {
    /// The newest roster, which is seconds old, or older if the engine does not answer.
    #[must_use]
    pub fn roster(&self) -> Option<Arc<Roster>> {
        self.board.newest.borrow().clone()
    }

    /// One that was read within the last second; an older one if the engine does not answer soon.
    pub async fn fresh_roster(&self) -> Option<Arc<Roster>> {
        let mut newest = self.board.newest.subscribe();
        let oldest = self.clock.boot().saturating_sub(AGE_MAX);
        let is_fresh = |roster: &Option<Arc<Roster>>| roster.as_ref().is_some_and(|roster| roster.read_boot >= oldest);
        if !is_fresh(&newest.borrow()) {
            self.board.want();
            let _too_late = tokio::time::timeout(WAIT_MAX, newest.wait_for(is_fresh)).await;
        }
        self.roster()
    }

    /// Reads it for as long as the service runs.
    pub(super) async fn keep_roster(self: Arc<Self>) {
        loop {
            if let Ok(rows) = self.engine.query(Line::Quick, &ROSTER, &[]).await {
                let epoch = rows.first().and_then(|row| Some((row.get::<_, Option<Uuid>>(0)?, moment(row.get(1)))));
                let replicas = rows.iter().map(listed).collect();
                let roster = Roster { replicas, epoch, read: self.clock.wall(), read_boot: self.clock.boot() };
                self.board.newest.send_replace(Some(Arc::new(roster)));
            }
            tokio::time::sleep(AGE_MAX).await;
            let _asked = tokio::time::timeout(INTERVAL, self.board.wanted.notified()).await;
        }
    }
}

fn listed(row: &Row) -> ListedReplica {
    let state = match row.get(3) {
        "live" => TakesPart::Live,
        "left" => TakesPart::Left,
        _ => TakesPart::Gone,
    };
    let count = |at| row.get::<_, Option<i64>>(at).map(|count| u64::try_from(count).unwrap_or(0));
    ListedReplica {
        name: row.get(2),
        state,
        version: row.get(4),
        config_sha256: row.get::<_, Option<String>>(5).filter(|hash| !hash.is_empty()),
        joined: moment(row.get(6)),
        fences_behind: count(7),
        records_behind: count(8),
    }
}

fn moment(us: Option<i64>) -> Option<Timestamp> {
    Timestamp::from_microsecond(us?).ok()
}
