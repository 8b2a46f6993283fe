//! Writes over all replicas (promises 4 and 5): which are under way, in doubt or ended, whoever sent them.
//!
//! Each replica has its own log and its own answers; `mg.write` is in addition what all of them agree on. An intent is on this
//! replica's disk and in the engine before the first byte of its write is sent. The unique index on the key decides which of two writes
//! with one key goes; the state decides which of two verdicts counts: the first.

mod chores;
mod queue;
mod row;
mod statements;
pub mod turns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use self::queue::{QueuedEnd, QueuedIntent, WriteQueue};
use self::row::{EndColumns, WriteColumns};
use super::engine::{EngineError, Line, Parameters};
use super::{Epoch, Replicas};
use crate::ids::{Fingerprint, RequestId};
use crate::tasks::Tasks;

pub use queue::NotIntended;
pub use row::{KnownWrite, SharedAnswer, SharedEnd, SharedState, SharedVerdict, SharedWrite};

/// How long a write waits for its intent.
const INTENT_WAIT: Duration = Duration::from_millis(900);
/// How long ends wait before they are sent again after a failure.
const END_RETRY: Duration = Duration::from_millis(250);
/// How often the queue is looked at although nothing came.
const IDLE: Duration = Duration::from_secs(60);
/// The most writes in doubt that are listed.
const LISTED_MAX: i64 = 10_000;
/// The most writes that one statement of a chore is about.
const CHORE_MAX: usize = 1_000;

/// What is asked of the engine before a write goes on.
#[derive(Clone, Copy, Debug)]
pub struct EarlierQuestion<'q> {
    /// The caller's name.
    pub caller: &'q str,
    /// What equal writes share.
    pub fingerprint: Fingerprint,
    /// The keyed hash of its idempotency key.
    pub key: Option<Fingerprint>,
    /// Its request.
    pub request: &'q RequestId,
}

/// What the engine knows of earlier writes.
#[derive(Debug, Default)]
pub struct EarlierWrites {
    /// The write with the same key, with its answer.
    pub same_key: Option<KnownWrite>,
    /// An equal write in doubt, if the question has no key.
    pub equal: Option<KnownWrite>,
    /// The open write with the same request id.
    pub same_request: Option<KnownWrite>,
}

/// A write that this replica sends.
#[derive(Clone, Debug)]
pub struct WriteUnderWay {
    /// The write.
    pub write: Arc<SharedWrite>,
    /// Its caller has been told that it is in doubt.
    pub is_told: bool,
}

/// The writes of all replicas.
#[derive(Debug)]
pub struct SharedWrites {
    replicas: Arc<Replicas>,
    queue: WriteQueue,
    /// The writes of this replica whose intents may stand in the engine and whose ends it does not have yet.
    under_way: Mutex<HashMap<Uuid, WriteUnderWay>>,
    /// The epoch in which all that was open before is known again, so that writes may go on.
    open_in: watch::Sender<Option<Uuid>>,
}

impl SharedWrites {
    /// Begins to carry intents and ends to the engine.
    #[must_use]
    pub fn start(replicas: Arc<Replicas>, tasks: &Tasks) -> Arc<Self> {
        let writes = Arc::new(Self {
            replicas,
            queue: WriteQueue::default(),
            under_way: Mutex::default(),
            open_in: watch::Sender::new(None),
        });
        tasks.spawn_until_stop(writes.clone().carry());
        writes
    }

    /// This replica's part in what all share.
    #[must_use]
    pub const fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Uuid, WriteUnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this replica sends this write, or sent it and has not yet told the engine how it ended.
    #[must_use]
    pub fn is_under_way(&self, id: Uuid) -> bool {
        self.under_way().contains_key(&id)
    }

    /// All writes that this replica sends.
    #[must_use]
    pub fn all_under_way(&self) -> Vec<WriteUnderWay> {
        self.under_way().values().cloned().collect()
    }

    /// Number of ends that wait for the engine.
    #[must_use]
    pub fn waiting_ends(&self) -> usize {
        self.queue.ends()
    }

    /// The epoch, if writes may go on in it.
    #[must_use]
    pub fn open_epoch(&self) -> Option<Uuid> {
        let now = self.replicas.epoch().borrow().as_ref().map(|epoch| epoch.id)?;
        let open = *self.open_in.borrow() == Some(now);
        (open && self.replicas.lease().holds()).then_some(now)
    }

    /// All that was open before this epoch is known again, or those who know it have had their time: writes may go on.
    pub fn open(&self, epoch: &Epoch) {
        self.open_in.send_replace(Some(epoch.id));
    }

    /// Whether [`Self::open`] was called for this epoch, with or without a lease now.
    pub fn is_open_in(&self, epoch: &Epoch) -> bool {
        *self.open_in.borrow() == Some(epoch.id)
    }

    /// What the engine knows of earlier writes.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn earlier(&self, asked: &EarlierQuestion<'_>) -> Result<EarlierWrites, EngineError> {
        let key = asked.key.as_ref().map(|key| key.as_bytes().as_slice());
        let (fingerprint, request) = (asked.fingerprint.as_bytes().as_slice(), asked.request.as_str());
        let parameters: Parameters<'_> = &[&asked.caller, &fingerprint, &key, &request];
        let mut found = EarlierWrites::default();
        for row in self.replicas.engine().query(Line::Quick, &statements::EARLIER, parameters).await? {
            let place = match row.get::<_, i32>("why") {
                1 => &mut found.same_key,
                2 => &mut found.equal,
                _ => &mut found.same_request,
            };
            *place = KnownWrite::with_answer(&row);
        }
        Ok(found)
    }

    /// Puts an intent on the engine's disk. Its write may be sent if this returns without an error, and the local log has it as well.
    ///
    /// # Errors
    /// [`NotIntended`].
    pub async fn intend(&self, write: Arc<SharedWrite>) -> Result<(), NotIntended> {
        let (ack, acked) = oneshot::channel();
        self.under_way().insert(write.id, WriteUnderWay { write: write.clone(), is_told: false });
        self.queue.add_intent(QueuedIntent { write: write.clone(), ack });
        let answer = match tokio::time::timeout(INTENT_WAIT, acked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NotIntended::NoAnswer),
        };
        match answer {
            Ok(()) => Ok(()),
            Err(NotIntended::Refused) => {
                self.under_way().remove(&write.id);
                Err(NotIntended::Refused)
            }
            Err(NotIntended::NoAnswer) => {
                // Whatever becomes of it, it is undone.
                drop(self.end(write, SharedEnd::NOT_SENT));
                Err(NotIntended::NoAnswer)
            }
        }
    }

    /// The caller of this request's write is told that it is in doubt, although the write goes on: from now on equal ones are held.
    pub fn doubt_meanwhile(&self, request: &RequestId) {
        let mut under_way = self.under_way();
        let Some(one) = under_way.values_mut().find(|one| one.write.request == *request) else { return };
        one.is_told = true;
        self.queue.add_end(QueuedEnd::in_doubt_meanwhile(one.write.clone()));
    }

    /// Tells the engine how a write ended, as often as it takes. The receiver hears when the engine has it.
    pub fn end(&self, write: Arc<SharedWrite>, end: SharedEnd) -> oneshot::Receiver<()> {
        let (queued, acked) = QueuedEnd::new(write, end);
        self.queue.add_end(queued);
        acked
    }

    /// Carries intents and ends to the engine, one batch at a time.
    async fn carry(self: Arc<Self>) {
        let clock = &self.replicas.clock;
        let mut failed = None;
        loop {
            let idle = if self.queue.ends() > 0 { END_RETRY } else { IDLE };
            let _came = tokio::time::timeout(idle, self.queue.came.notified()).await;
            loop {
                failed.take_if(|at| clock.now() >= *at + END_RETRY);
                let (intents, ends) = self.queue.next(failed.is_none());
                if intents.is_empty() && ends.is_empty() {
                    break;
                }
                let ((), taken) = tokio::join!(self.carry_intents(intents), self.carry_ends(ends));
                if !taken {
                    failed = Some(clock.now());
                }
            }
        }
    }

    async fn carry_intents(&self, intents: Vec<QueuedIntent>) {
        let Some(epoch) = self.open_epoch().filter(|_| !intents.is_empty()) else {
            for intent in intents {
                // It was not sent, so there is nothing to undo.
                let _gone = intent.ack.send(Err(NotIntended::Refused));
            }
            return;
        };
        let tell = |intent: QueuedIntent, stands: &[Uuid]| {
            let answer = if stands.contains(&intent.write.id) { Ok(()) } else { Err(NotIntended::Refused) };
            let stood = answer.is_ok();
            if intent.ack.send(answer).is_err() && stood {
                drop(self.end(intent.write, SharedEnd::NOT_SENT));
            }
        };
        match self.insert_intents(epoch, intents.iter().map(|intent| &*intent.write)).await {
            Ok(stands) => intents.into_iter().for_each(|intent| tell(intent, &stands)),
            Err(EngineError::Failed { .. }) => {
                // One that the engine cannot take must not keep the others out.
                for intent in intents {
                    match self.insert_intents(epoch, [&*intent.write]).await {
                        Ok(stands) => tell(intent, &stands),
                        Err(_) => {
                            let _nobody_waits = intent.ack.send(Err(NotIntended::NoAnswer));
                        }
                    }
                }
            }
            Err(EngineError::Unreachable | EngineError::Unclear(_)) => {
                for intent in intents {
                    let _nobody_waits = intent.ack.send(Err(NotIntended::NoAnswer));
                }
            }
        }
    }

    async fn insert_intents<'w>(
        &self,
        epoch: Uuid,
        writes: impl IntoIterator<Item = &'w SharedWrite>,
    ) -> Result<Vec<Uuid>, EngineError> {
        let c = WriteColumns::of(writes);
        let (name, incarnation) = (&**self.replicas.name(), self.replicas.incarnation());
        let parameters: Parameters<'_> = &[
            &name, &incarnation, &epoch, &c.ids, &c.requests, &c.callers, &c.operations, &c.organizations, &c.paths,
            &c.fingerprints, &c.keys, &c.marks, &c.times,
        ];
        let rows = self.replicas.engine().query(Line::Durable, &statements::INTEND, parameters).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Returns whether the engine has them. If not, they wait again.
    async fn carry_ends(&self, ends: Vec<QueuedEnd>) -> bool {
        if ends.is_empty() {
            return true;
        }
        let pairs = ends.iter().map(|end| (&*end.write, &*end.end)).collect::<Vec<_>>();
        let told = match self.tell_ends(&pairs).await {
            Err(EngineError::Failed { message, .. }) if pairs.len() == 1 => {
                tracing::error!(%message, "the database cannot take how a write ended; this replica's log has it");
                Ok(())
            }
            told => told,
        };
        match told {
            Ok(()) => {
                for end in &ends {
                    // Not before the engine has it: until then it is put into a new epoch as under way.
                    if !end.goes_on {
                        self.under_way().remove(&end.write.id);
                    }
                    end.acknowledge();
                }
                true
            }
            Err(EngineError::Failed { .. }) => {
                for end in ends {
                    Box::pin(self.carry_ends(vec![end])).await;
                }
                true
            }
            Err(EngineError::Unreachable | EngineError::Unclear(_)) => {
                self.queue.put_back(ends);
                false
            }
        }
    }

    /// Rows that are open get these ends; rows that the engine lacks are added. A late intent of a write that is told as not sent finds
    /// its row there, so it does not stand.
    async fn tell_ends(&self, ends: &[(&SharedWrite, &SharedEnd)]) -> Result<(), EngineError> {
        let mut left = self.update_ends(ends).await?;
        if !left.is_empty() {
            let added = self.insert_ended(&left).await?;
            left.retain(|(write, _)| !added.contains(&write.id));
        }
        if !left.is_empty() {
            self.update_ends(&left).await?;
        }
        Ok(())
    }

    /// Returns those that were not open.
    async fn update_ends<'e>(
        &self,
        ends: &[(&'e SharedWrite, &'e SharedEnd)],
    ) -> Result<Vec<(&'e SharedWrite, &'e SharedEnd)>, EngineError> {
        let ids: Vec<_> = ends.iter().map(|(write, _)| write.id).collect();
        let e = EndColumns::of(ends.iter().map(|(_, end)| *end));
        let parameters: Parameters<'_> = &[&ids, &e.states, &e.done, &e.statuses, &e.heads, &e.bodies];
        let rows = self.replicas.engine().query(Line::Durable, &statements::END, parameters).await?;
        let ended: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        Ok(ends.iter().filter(|(write, _)| !ended.contains(&write.id)).copied().collect())
    }

    /// Adds rows that the engine lacks. Returns which it took: not those whose id, key or open request it has.
    async fn insert_ended(&self, writes: &[(&SharedWrite, &SharedEnd)]) -> Result<Vec<Uuid>, EngineError> {
        let c = WriteColumns::of(writes.iter().map(|(write, _)| *write));
        let e = EndColumns::of(writes.iter().map(|(_, end)| *end));
        let (name, incarnation) = (&**self.replicas.name(), self.replicas.incarnation());
        let parameters: Parameters<'_> = &[
            &name, &incarnation, &c.ids, &c.requests, &c.senders, &c.callers, &c.operations, &c.organizations,
            &c.paths, &c.fingerprints, &c.keys, &c.marks, &c.times, &e.states, &e.done, &e.statuses, &e.heads,
            &e.bodies,
        ];
        let rows = self.replicas.engine().query(Line::Durable, &statements::RESTORE, parameters).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Settles a write in doubt; the first verdict counts. Returns the write as it was settled, or as it is if that was done before;
    /// `None` if the engine does not have it.
    ///
    /// # Errors
    /// The engine does not answer: the verdict may count or not.
    pub async fn settle(&self, id: Uuid, verdict: &SharedVerdict) -> Result<Option<(KnownWrite, bool)>, EngineError> {
        let SharedVerdict { done, operator, replica, note, upstream_status } = verdict;
        let status = upstream_status.map(i32::from);
        let (operator, replica, note) = (operator.as_deref(), &**replica, note.as_deref());
        let parameters: Parameters<'_> = &[&id, done, &operator, &replica, &note, &status];
        let rows = self.replicas.engine().query(Line::Durable, &statements::SETTLE, parameters).await?;
        if let Some(settled) = rows.first().and_then(KnownWrite::of) {
            return Ok(Some((settled, true)));
        }
        let known = self.find(&[id]).await?;
        Ok(known.into_iter().next().map(|known| (known, false)))
    }

    /// What the engine knows of these writes, with their answers.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn find(&self, ids: &[Uuid]) -> Result<Vec<KnownWrite>, EngineError> {
        let mut found = Vec::new();
        for ids in ids.chunks(CHORE_MAX) {
            let rows = self.replicas.engine().query(Line::Quick, &statements::FIND, &[&ids]).await?;
            found.extend(rows.iter().filter_map(KnownWrite::with_answer));
        }
        Ok(found)
    }

    /// The writes in doubt of all replicas, oldest first.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn doubts(&self) -> Result<Vec<KnownWrite>, EngineError> {
        let rows = self.replicas.engine().query(Line::Bulk, &statements::DOUBTS, &[&LISTED_MAX]).await?;
        Ok(rows.iter().filter_map(KnownWrite::of).collect())
    }

    /// The write in doubt with this request id, whoever has it.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn doubt_of(&self, request: &RequestId) -> Result<Option<KnownWrite>, EngineError> {
        let rows = self.replicas.engine().query(Line::Quick, &statements::DOUBT_OF, &[&request.as_str()]).await?;
        Ok(rows.first().and_then(KnownWrite::of))
    }

    /// The open writes that the engine says are this replica's: those that it looks after, and those that it sent and others look after.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn own_open(&self) -> Result<Vec<KnownWrite>, EngineError> {
        let rows =
            self.replicas.engine().query(Line::Quick, &statements::OWN_OPEN, &[&&**self.replicas.name()]).await?;
        Ok(rows.iter().filter_map(KnownWrite::of).collect())
    }
}
