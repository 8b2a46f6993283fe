//! Ships the log's durable records to the table that all replicas share, and notes the other replicas' heads.
//!
//! It follows the log as the index does: it reads the segments up to where they are durable, so no request and no write waits for it. While
//! the engine is out of reach it waits, and the records stay in the log.

mod heads;
mod hour_rows;
pub(super) mod mark;
mod reader;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::heads::HeadExchange;
use self::mark::ShipState;
use self::reader::{BATCH_RECORDS, UnshippedBatch, UnshippedReader};
use super::log::AuditLog;
use super::record::Record;
use super::segment::disk;
use crate::config::ShippedRecords;
use crate::process_log::STATE;
use crate::replicas::engine::{Engine, EngineError, Line};
use crate::replicas::shipping::{RecordDays, Shipment, ShippedLog, ShippedPosition, forget_old};

/// At most so often records are shipped, unless a whole batch waits.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often partitions are looked after, and what is old is forgotten.
const CHORES: Duration = Duration::from_secs(1800);
/// Shortest and longest wait after an error.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How long the first connection may take before it is a trouble.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long reading a batch may take.
const READ_MAX: Duration = Duration::from_secs(30);

/// What is shipped, and where to.
#[derive(Clone, Debug)]
pub struct ShipSettings {
    /// The database.
    pub engine: Arc<Engine>,
    /// This replica's name.
    pub replica: Arc<str>,
    /// Which records.
    pub records: ShippedRecords,
    /// How long they are kept there.
    pub keep: Duration,
}

#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the log cannot be read: {0}")]
    Log(#[from] io::Error),
}

impl AuditLog {
    /// How far the log was shipped; `None`: nobody ships it.
    #[must_use]
    pub fn ship_state(&self) -> Option<ShipState> {
        self.shared.shipped.state(self.newest())
    }

    /// The newest durable record.
    pub(super) fn newest(&self) -> u64 {
        self.shared.synced.borrow().seq
    }
}

/// What ships one log.
pub struct LogShipper {
    log: Arc<AuditLog>,
    settings: ShipSettings,
    place: ShippedLog,
    /// Where the engine says that the log is; `None`: it must be asked.
    position: Option<ShippedPosition>,
    /// The position was compared with the log as it was when it was opened.
    is_checked: bool,
    days: Option<(RecordDays, Instant)>,
    reader: Option<UnshippedReader>,
    /// What was read, but perhaps not shipped.
    batch: Option<Shipment>,
    skipped: u64,
    shipped_at: Option<Instant>,
    heads: HeadExchange,
}

impl fmt::Debug for LogShipper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogShipper")
            .field("place", &self.place)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl LogShipper {
    /// Ships this log, which must have been opened to be shipped.
    #[must_use]
    pub fn new(log: Arc<AuditLog>, settings: ShipSettings) -> Self {
        let name = log.head_key().name().into();
        let place = ShippedLog { replica: settings.replica.clone(), log: name };
        Self {
            heads: HeadExchange::new(place.clone()),
            place,
            position: None,
            is_checked: false,
            days: None,
            reader: None,
            batch: None,
            skipped: 0,
            shipped_at: None,
            log,
            settings,
        }
    }

    /// Ships until the log has ended and all of it is shipped, or cannot be.
    pub async fn run(mut self) {
        let (mut synced, ended) = (self.log.shared.synced.subscribe(), self.log.shared.ended.subscribe());
        let mut backoff = BACKOFF.0;
        // The first connection is being made: that it is not there yet is no trouble.
        self.pause(CONNECT_MAX, true).await;
        loop {
            let has_ended = *ended.borrow() > 0;
            match self.round(has_ended).await {
                Ok(()) => {
                    backoff = BACKOFF.0;
                    self.note_trouble(None);
                    if has_ended && self.is_done() {
                        return;
                    }
                    self.wait(&mut synced, has_ended).await;
                }
                Err(error) => {
                    self.forget_position(&error);
                    self.note_trouble(Some(&error.to_string()));
                    if has_ended {
                        return;
                    }
                    self.pause(BACKOFF.0, false).await;
                    self.pause(backoff, matches!(error, ShipError::Engine(EngineError::Unreachable))).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// Waits so long, but no longer than until the log has ended or, if that is what is missing, there is a connection.
    async fn pause(&self, longest: Duration, for_connection: bool) {
        let clock = &self.log.shared.clock;
        let mut ended = self.log.shared.ended.subscribe();
        let connected = async {
            if for_connection {
                self.settings.engine.connected(Line::Bulk).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = clock.sleep_until(clock.now() + longest) => {}
            () = connected => {}
            _ended = ended.wait_for(|threads| *threads > 0) => {}
        }
    }

    /// One round: at most one batch, and whatever else is due.
    async fn round(&mut self, has_ended: bool) -> Result<(), ShipError> {
        if self.position.is_none() {
            self.find_position().await?;
        }
        self.do_chores(&BTreeSet::new()).await?;
        let now = self.log.shared.clock.now();
        let is_time = self.shipped_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL);
        if is_time || has_ended || self.behind() >= BATCH_RECORDS {
            self.ship_batch().await?;
        }
        Ok(self.heads.exchange(&self.log, &self.settings.engine, has_ended).await?)
    }

    fn is_done(&self) -> bool {
        self.batch.is_none() && self.behind() == 0
    }

    fn behind(&self) -> u64 {
        let last = self.position.map_or(0, |position| position.seq);
        self.log.newest().saturating_sub(last)
    }

    /// Waits until something is to be done.
    async fn wait(
        &self,
        synced: &mut tokio::sync::watch::Receiver<super::log::shared::DurablePosition>,
        has_ended: bool,
    ) {
        let clock = &self.log.shared.clock;
        if has_ended || self.behind() >= BATCH_RECORDS {
            return;
        }
        let mut ended = self.log.shared.ended.subscribe();
        let pause = async {
            if let Some(at) = self.shipped_at {
                clock.sleep_until(at + INTERVAL).await;
            }
            let last = self.position.map_or(0, |position| position.seq);
            tokio::select! {
                _grown = synced.wait_for(|synced| synced.seq > last) => {}
                () = clock.sleep_until(clock.now() + INTERVAL) => {}
            }
        };
        tokio::select! {
            () = pause => {}
            _ended = ended.wait_for(|threads| *threads > 0) => {}
        }
    }

    /// Asks where the log is, and settles what became of the batch that may have been shipped.
    async fn find_position(&mut self) -> Result<(), ShipError> {
        let engine = &self.settings.engine;
        let mut position = self.place.position(engine).await?;
        if !self.is_checked {
            position = self.check(position).await?;
            self.is_checked = true;
        }
        if let Some(batch) = self.batch.take_if(|batch| batch.moves.0 != position.seq)
            && batch.moves.1 == position.seq
        {
            self.count_shipped(&batch);
        }
        if self.reader.as_ref().is_some_and(|reader| self.batch.is_none() && reader.last != position.seq) {
            self.reader = None;
        }
        self.log.shared.shipped.moved(position.seq);
        self.position = Some(position);
        Ok(())
    }

    /// The log may have been cut, or replaced by an older copy, while makegate was not running: the engine then knows more of it than there
    /// was. What was recorded since is shipped under the numbers that it has.
    async fn check(&self, position: ShippedPosition) -> Result<ShippedPosition, ShipError> {
        let opened = self.log.shared.opened_size;
        let known = position.seq.max(position.head);
        if known <= opened {
            return Ok(position);
        }
        let what = format!(
            "the log ended with record {opened} when it was opened, but the other replicas' database knows it up to record {known}"
        );
        tracing::error!("the audit log was cut, or replaced by an older copy: {what}");
        let event = Record::event(self.log.shared.clock.wall(), "log-cut", what);
        let _unrecorded = self.log.commit(event).await;
        if position.seq > opened {
            self.place.rewind(&self.settings.engine, position.seq, opened).await?;
        }
        Ok(ShippedPosition { seq: position.seq.min(opened), ..position })
    }

    /// Looks after the partitions when that is due, or when some are missing.
    async fn do_chores(&mut self, wanted: &BTreeSet<i64>) -> Result<(), ShipError> {
        let (now, settings) = (self.log.shared.clock.now(), &self.settings);
        let is_due = self.days.as_ref().is_none_or(|(_, at)| now.saturating_duration_since(*at) >= CHORES);
        if is_due {
            forget_old(&settings.engine, settings.keep).await?;
        }
        let lacks = |days: &RecordDays| wanted.iter().any(|day| days.has_room(*day) && !days.known.contains(day));
        if is_due || self.days.as_ref().is_some_and(|(days, _)| lacks(days)) {
            self.days = Some((RecordDays::refresh(&settings.engine, settings.keep, wanted).await?, now));
        }
        Ok(())
    }

    async fn ship_batch(&mut self) -> Result<(), ShipError> {
        if self.batch.is_none() && !self.read_batch().await? {
            return Ok(());
        }
        let Some(batch) = &self.batch else { return Ok(()) };
        let days = batch.records.days().clone();
        self.do_chores(&days).await?;
        let Some(batch) = &self.batch else { return Ok(()) };
        if !self.place.ship(&self.settings.engine, batch).await? {
            // Its position is another: an earlier attempt was carried out after all, or another process ships this log.
            self.position = None;
            return Ok(());
        }
        self.shipped_at = Some(self.log.shared.clock.now());
        if let Some(batch) = self.batch.take() {
            self.count_shipped(&batch);
            self.log.shared.shipped.moved(batch.moves.1);
            self.position = self.position.map(|position| ShippedPosition { seq: batch.moves.1, ..position });
        }
        Ok(())
    }

    fn count_shipped(&mut self, batch: &Shipment) {
        self.log.shared.shipped.shipped(batch.records.count(), std::mem::take(&mut self.skipped));
    }

    /// Reads what is to be shipped next, away from the threads that serve callers. Returns whether there is something.
    async fn read_batch(&mut self) -> Result<bool, ShipError> {
        let (Some(position), Some((days, _))) = (self.position, &self.days) else { return Ok(false) };
        let end = *self.log.shared.synced.borrow();
        if end.segment == 0 || end.seq <= position.seq {
            return Ok(false);
        }
        let (dir, reader, records) = (self.log.dir().to_owned(), self.reader.take(), self.settings.records);
        let (replica, days) = (self.settings.replica.clone(), days.clone());
        let read = move || -> io::Result<(UnshippedReader, UnshippedBatch)> {
            let mut reader = match reader {
                Some(reader) => reader,
                None => UnshippedReader::after(&dir, position.seq)?,
            };
            let batch = reader.read(&dir, end, records, (&replica, &days))?;
            Ok((reader, batch))
        };
        let (reader, UnshippedBatch { records, ledger, last, skipped }) = disk::run_blocking(READ_MAX, read).await??;
        self.reader = Some(reader);
        if last > position.seq {
            self.skipped = skipped;
            self.batch = Some(Shipment { moves: (position.seq, last), newest: end.seq, records, ledger });
        }
        Ok(self.batch.is_some())
    }

    /// What the engine says next decides where shipping goes on.
    fn forget_position(&mut self, error: &ShipError) {
        self.position = None;
        if let ShipError::Engine(EngineError::Failed { .. }) = error {
            self.days = None; // a partition may have been dropped
        }
        if let ShipError::Log(_) = error {
            self.reader = None;
        }
    }

    fn note_trouble(&self, cause: Option<&str>) {
        if self.log.shared.shipped.set_trouble(cause, self.log.shared.clock.now()) {
            match cause {
                Some(why) => {
                    let behind = self.log.ship_state().map_or(0, |state| state.behind);
                    tracing::warn!(target: STATE, why, behind, "records are not shipped");
                }
                None => tracing::info!(target: STATE, "records are shipped again"),
            }
        }
    }
}
