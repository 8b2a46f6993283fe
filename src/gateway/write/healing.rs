//! What this replica does for the writes of all: it tells a new epoch what the engine may lack, and adopts writes of replicas that are
//! gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use uuid::Uuid;

use super::shared::{doubt_elsewhere, shared_doubt, shared_end, uuid_of};
use super::writes_of_all::WritesOfAll;
use crate::audit::{ADOPTED, AdoptedWrite, AuditLog, CannotRecord, FieldHashes, Filter, Kind, Record};
use crate::clock::Clock;
use crate::gateway::state::Gateway;
use crate::idempotency::{EndedKey, IdempotencyStore, KeyedWrite};
use crate::ids::Fingerprint;
use crate::process_log::ALWAYS;
use crate::replicas::Epoch;
use crate::replicas::engine::EngineError;
use crate::replicas::writes::{KnownWrite, SharedEnd, SharedState, SharedWrite};
use crate::vocabulary::Outcome;

/// Time between two rounds; the first is for a new epoch, in which writes wait.
const HEALING_ROUND: Duration = Duration::from_millis(100);
const ROUND: Duration = Duration::from_secs(1);
/// How often old rows are deleted.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);
/// Answers that are read from disk and sent together.
const ANSWERS_AT_ONCE: usize = 100;
/// The most records of one request that are looked through.
const RECORDS_MAX: usize = 1_000;

/// Why a round was not finished.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// The engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log does not.
    #[error("this replica's log cannot be read or written")]
    Log,
    /// The stored answers do not.
    #[error("this replica's Idempotency-Keys are not known yet")]
    Keys,
}

impl Gateway {
    /// Keeps the writes of all replicas whole for as long as there are requests. Without other replicas there is nothing to do.
    pub async fn keep_shared_writes(self: Arc<Self>) {
        let Some(shared) = &self.shared_writes else { return };
        let mut told = ToldEpoch::default();
        let mut expired = None;
        loop {
            let epoch = *shared.writes.replicas().epoch().borrow();
            let mut pause = ROUND;
            if let Some(epoch) = epoch {
                let round = HealingRound {
                    log: &self.log,
                    answers: &self.idempotency,
                    shared,
                    epoch: &epoch,
                    clock: &self.clock,
                    gateway: Some(&self),
                };
                let done = round.carry_out(&mut told).await;
                if let Err(why) = &done {
                    tracing::debug!(%why, "the writes of all replicas are not whole yet");
                }
                if !shared.writes.is_open_in(&epoch) {
                    pause = HEALING_ROUND;
                }
                if done.is_ok() && expired.is_none_or(|at| self.clock.now() >= at + EXPIRE_INTERVAL) {
                    expired = Some(self.clock.now());
                    let age = self.policy().limits().idempotency_age;
                    while shared.writes.expire(age, self.clock.wall()).await.is_ok_and(|deleted| deleted >= 1_000) {}
                }
            } else {
                pause = HEALING_ROUND;
            }
            self.clock.sleep_until(self.clock.now() + pause).await;
        }
    }
}

/// What the engine was told.
#[derive(Debug, Default)]
struct ToldEpoch {
    /// The membership in which it was told everything.
    epoch: Option<Epoch>,
    /// Writes of this replica that others look after, and of which this log does not say how they ended.
    unknown: HashSet<Uuid>,
}

/// One round of what is to be done in an epoch.
pub(super) struct HealingRound<'g> {
    pub(super) log: &'g Arc<AuditLog>,
    pub(super) answers: &'g IdempotencyStore,
    pub(super) shared: &'g WritesOfAll,
    pub(super) epoch: &'g Epoch,
    pub(super) clock: &'g Clock,
    /// Whose memory is fenced, if any.
    pub(super) gateway: Option<&'g Gateway>,
}

impl HealingRound<'_> {
    async fn carry_out(&self, told: &mut ToldEpoch) -> Result<(), Unfinished> {
        let writes = &self.shared.writes;
        if told.epoch.as_ref() == Some(self.epoch) {
            // What others hand over, or add to an engine that had lost it; and what was adopted here by a statement that came too late.
            self.correct(&mut told.unknown).await?;
        } else {
            told.unknown = self.reassert().await?;
            told.epoch = Some(*self.epoch);
        }
        if !writes.is_open_in(self.epoch) && writes.may_open(self.epoch).await? {
            writes.open(self.epoch);
            tracing::info!(epoch = %self.epoch.id, "writes may go on: all that was open before is known");
        }
        if writes.is_settled(self.epoch) && writes.replicas().lease().holds() {
            self.adopt(false).await?;
            self.shared.turns.give_back_of_gone(self.epoch).await?;
        }
        self.shared.turns.give_back_strays().await?;
        Ok(())
    }

    fn doubts(&self) -> Vec<SharedWrite> {
        self.log.doubts().list().iter().map(|doubt| shared_doubt(self.log, doubt)).collect()
    }

    /// Tells the engine what it may lack: turns, open writes, ended writes with keys. What it has in an earlier state than this log is
    /// corrected. Returns what [`Self::correct`] does not know.
    pub(super) async fn reassert(&self) -> Result<HashSet<Uuid>, Unfinished> {
        let writes = &self.shared.writes;
        self.shared.turns.put_back(self.epoch).await?;
        let doubts = self.doubts();
        let all = writes.all_under_way();
        let told = all.iter().filter(|one| one.is_told).map(|one| one.write.id);
        let in_doubt: Vec<_> = told.chain(doubts.iter().map(|write| write.id)).collect();
        let under_way = all.iter().map(|one| {
            let end = SharedEnd { state: SharedState::UnderWay, done: None, answer: None };
            (one.write.clone(), if one.is_told { SharedEnd::IN_DOUBT } else { end })
        });
        let in_log = doubts.into_iter().map(|write| (Arc::new(write), SharedEnd::IN_DOUBT));
        let restored = writes.restore(&under_way.chain(in_log).collect::<Vec<_>>()).await?;
        writes.doubt_own(&in_doubt).await?;
        let keys = restore_keys(self.shared, self.log, self.answers).await?;
        if restored > 0 || keys > 0 {
            tracing::info!(
                writes = restored,
                keys,
                "the replicas' database lacked writes of this replica, and has them now"
            );
        }
        let mut unknown = HashSet::new();
        self.correct(&mut unknown).await?;
        self.fence_doubts_elsewhere().await?;
        writes.say_reasserted(self.epoch).await?;
        Ok(unknown)
    }

    /// Ends or takes up writes that the engine calls open, and that are not open here: those that it says this replica looks after, and
    /// those that this one sent and others look after, because it was killed or given up before the engine had heard of their ends.
    /// `unknown`: which of the latter this log does not say the end of.
    async fn correct(&self, unknown: &mut HashSet<Uuid>) -> Result<(), Unfinished> {
        let writes = &self.shared.writes;
        let mut open = writes.own_open().await?;
        unknown.retain(|id| open.iter().any(|known| known.write.id == *id));
        let is_under_way = |id| writes.is_under_way(id) || self.shared.adopting().contains(&id);
        open.retain(|known| !unknown.contains(&known.write.id) && !is_under_way(known.write.id));
        if open.is_empty() {
            return Ok(());
        }
        let open_here = self.open_here();
        let is_doubt = |known: &KnownWrite| open_here.get(&known.write.id) == Some(&true);
        let is_news = |known: &&KnownWrite| known.state == SharedState::UnderWay && is_doubt(known);
        let news: Vec<_> = open.iter().filter(is_news).map(|known| known.write.id).collect();
        if !news.is_empty() {
            // The engine did not take it, or had not heard that its sender lost its log: others must hold equal writes.
            writes.doubt_own(&news).await?;
        }
        let mut told = Vec::new();
        for known in open.into_iter().filter(|known| !open_here.contains_key(&known.write.id)) {
            let id = known.write.id;
            // What is not open here now has its end in the log, if it ever had one.
            if is_under_way(id) || self.open_here().contains_key(&id) {
                continue;
            }
            match self.end_here(&known).await? {
                Some(end) => told.push(writes.end(Arc::new(known.write), end)),
                None if known.replica == *writes.replicas().name() => self.record_adoption(&known).await?,
                None => {
                    unknown.insert(id);
                }
            }
        }
        join_all(told).await;
        Ok(())
    }

    /// Fences here what may still change because of writes in doubt: those fences were raised before this replica joined.
    async fn fence_doubts_elsewhere(&self) -> Result<(), Unfinished> {
        let Some(gateway) = self.gateway else { return Ok(()) };
        for known in self.shared.writes.doubts().await? {
            gateway.fence_in_doubt(&doubt_elsewhere(&known)).here_alone();
        }
        Ok(())
    }

    /// The writes that are open in this log, and whether they are in doubt.
    fn open_here(&self) -> HashMap<Uuid, bool> {
        let open = self.log.doubts().open_writes();
        open.iter().map(|open| (shared_doubt(self.log, &open.doubt).id, open.in_doubt)).collect()
    }

    /// How a write of this replica ended that is not open here. `None`: nobody knows.
    async fn end_here(&self, known: &KnownWrite) -> Result<Option<SharedEnd>, Unfinished> {
        let write = &known.write;
        if let Some(key) = write.key {
            let ended = self.answers.ended().ok_or(Unfinished::Keys)?;
            let own = ended.iter().find(|ended| ended.keyed.key == key && ended.keyed.request == write.request);
            if let Some(EndedKey { done, .. }) = own {
                let answer = self.answers.answer(key, write.request).await;
                if *done || answer.is_some() {
                    return Ok(Some(shared_end(*done, answer.as_ref())));
                }
            }
        }
        Ok(match end_in_log(self.log, write).await? {
            Some(Outcome::Done) => Some(shared_end(true, None)),
            Some(Outcome::Rejected | Outcome::NotSent) => Some(SharedEnd::NOT_SENT),
            // That the log does not have the intent proves nothing: it may be an old copy, put where the newer one was lost.
            Some(Outcome::InDoubt) | None => None,
        })
    }

    /// Takes over writes of replicas that are gone: those under way there, and those in doubt as well if `also_doubts`. Returns their
    /// number.
    pub(super) async fn adopt(&self, also_doubts: bool) -> Result<usize, Unfinished> {
        // If it is unclear whether some were, the next round finds them.
        let adopted = self.shared.writes.adopt(self.epoch, also_doubts).await?;
        for known in &adopted {
            self.record_adoption(known).await?;
        }
        Ok(adopted.len())
    }

    /// Records that this replica looks after a write from now on, and fences what it touches.
    async fn record_adoption(&self, known: &KnownWrite) -> Result<(), Unfinished> {
        let id = known.write.id;
        if !self.shared.adopting().insert(id) {
            return Ok(());
        }
        if known.state == SharedState::UnderWay {
            self.shared.writes.doubt_own(&[id]).await.inspect_err(|_| {
                self.shared.adopting().remove(&id);
            })?;
        }
        let recorded = record_adoption(self.log, known, self.clock.wall()).await;
        if !recorded.as_ref().is_err_and(|cannot| cannot.is_recorded()) {
            // Otherwise it is on its way to the disk, and must not go there twice.
            self.shared.adopting().remove(&id);
        }
        recorded.map_err(|_cannot| Unfinished::Log)?;
        if let Some(gateway) = self.gateway {
            gateway.fence_in_doubt(&doubt_elsewhere(known)).in_background(&gateway.tasks);
        }
        Ok(())
    }
}

/// Records the event that stands for the intent of a write of another replica.
async fn record_adoption(log: &AuditLog, known: &KnownWrite, now: Timestamp) -> Result<u64, CannotRecord> {
    let SharedWrite { id, request, sender, caller, operation, organization, path, fingerprint, key, marks, time } =
        &known.write;
    let replica = sender.clone().unwrap_or_else(|| known.replica.clone());
    let detail =
        format!("{replica} is gone, or has lost its log: this replica looks after its write, which is in doubt");
    let marks = marks.as_ref().and_then(|marks| serde_json::from_str::<FieldHashes>(marks).ok());
    let adopted = AdoptedWrite { id: Fingerprint::from_bytes(id.into_bytes()), replica: replica.clone(), time: *time };
    let record = Record {
        request: Some(*request),
        caller: Some(caller.clone().into()),
        operation: Some(operation.clone().into()),
        organization: *organization,
        path: Some(path.clone().into()),
        fingerprint: Some(*fingerprint),
        idempotency: *key,
        marks,
        adopted: Some(Box::new(adopted)),
        ..Record::event(now, ADOPTED, detail)
    };
    tracing::warn!(target: ALWAYS, %request, replica = &*replica, "a write of a replica that is gone is in doubt; this replica looks after it");
    log.commit(record).await
}

/// How this log says that a write ended. `None` if it does not have the intent.
async fn end_in_log(log: &AuditLog, write: &SharedWrite) -> Result<Option<Outcome>, Unfinished> {
    log.flush().await;
    let filter = Filter { request: Some(write.request), limit: RECORDS_MAX, ..Filter::default() };
    let page = log.query(&"".into(), filter).await.map_err(|_unreadable| Unfinished::Log)?;
    let lines: Vec<_> = page.records.iter().filter_map(|line| Record::parse(line.get().as_bytes())).collect();
    let same_time = |time: Timestamp| time.as_microsecond() == write.time.as_microsecond();
    let is_intent = |record: &&Record<'_>| {
        let adopted = record.adopted.as_ref().is_some_and(|adopted| uuid_of(adopted.id) == write.id);
        record.kind == Some(Kind::Intent) && same_time(record.time) || adopted
    };
    let Some(intent) = lines.iter().find(is_intent).map(|record| record.seq) else { return Ok(None) };
    // The newest comes first: a settlement counts more than the outcome in doubt before it.
    let end = lines.iter().find(|record| record.intent == Some(intent) && record.outcome.is_some());
    Ok(Some(end.and_then(|record| record.outcome).unwrap_or(Outcome::InDoubt)))
}

/// Tells the engine the keys and answers that it lacks. Returns their number.
async fn restore_keys(shared: &WritesOfAll, log: &AuditLog, answers: &IdempotencyStore) -> Result<usize, Unfinished> {
    let ended = answers.ended().ok_or(Unfinished::Keys)?;
    let keys: Vec<_> = ended.iter().map(|ended| ended.keyed.key).collect();
    let lacking: HashSet<_> = shared.writes.lacking_keys(&keys).await?.into_iter().collect();
    let lacking: Vec<_> = ended.into_iter().filter(|ended| lacking.contains(&ended.keyed.key)).collect();
    let mut restored = 0;
    for ended in lacking.chunks(ANSWERS_AT_ONCE) {
        let mut rows = Vec::new();
        for EndedKey { keyed, done, time_ms } in ended {
            let KeyedWrite { key, write, request, caller } = keyed;
            let answer = answers.answer(*key, *request).await;
            if !done && answer.is_none() {
                continue; // its key is free
            }
            let id = uuid_of(log.fingerprint(&[b"ended", key.as_bytes(), request.as_str().as_bytes()]));
            let row = SharedWrite {
                id,
                request: *request,
                sender: None,
                caller: caller.clone(),
                operation: "".into(),
                organization: None,
                path: "".into(),
                fingerprint: *write,
                key: Some(*key),
                marks: None,
                time: Timestamp::from_millisecond(*time_ms).unwrap_or_default(),
            };
            rows.push((Arc::new(row), shared_end(*done, answer.as_ref())));
        }
        restored += shared.writes.restore(&rows).await?;
    }
    Ok(restored)
}
