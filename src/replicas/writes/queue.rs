//! What is on its way to the engine's disk: intents, whose writes wait for them, and ends, which are sent until the engine has them.
//! One batch is under way at a time, and a batch is what came during the last commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::row::{SharedEnd, SharedWrite};

/// The most intents or ends in one batch.
const BATCH_MAX: usize = 1_024;
/// Ends with more bytes of answers than this go into several batches.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Why an intent does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIntended {
    /// The engine refused it: its key is taken, an equal write is in doubt, or this replica is no member.
    Refused,
    /// The engine did not answer in time. If it carries it out later, that is undone.
    NoAnswer,
}

#[derive(Debug)]
pub(super) struct QueuedIntent {
    pub(super) write: Arc<SharedWrite>,
    pub(super) ack: oneshot::Sender<Result<(), NotIntended>>,
}

#[derive(Clone, Debug)]
pub(super) struct QueuedEnd {
    pub(super) write: Arc<SharedWrite>,
    pub(super) end: Arc<SharedEnd>,
    /// Whether the write goes on, and will end once more.
    pub(super) goes_on: bool,
    pub(super) ack: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

impl QueuedEnd {
    pub(super) fn new(write: Arc<SharedWrite>, end: SharedEnd) -> (Self, oneshot::Receiver<()>) {
        let (ack, acked) = oneshot::channel();
        (Self { write, end: Arc::new(end), goes_on: false, ack: Arc::new(Mutex::new(Some(ack))) }, acked)
    }

    /// In doubt, until its own end is told.
    pub(super) fn in_doubt_meanwhile(write: Arc<SharedWrite>) -> Self {
        Self { goes_on: true, ..Self::new(write, SharedEnd::IN_DOUBT).0 }
    }

    /// Whether `later` says more of the same write.
    fn is_outdated_by(&self, later: &Self) -> bool {
        self.goes_on && self.write.id == later.write.id
    }

    pub(super) fn acknowledge(&self) {
        if let Some(ack) = self.ack.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _nobody_waits = ack.send(());
        }
    }
}

#[derive(Debug, Default)]
struct WaitingWrites {
    intents: Vec<QueuedIntent>,
    ends: Vec<QueuedEnd>,
}

/// Intents and ends that wait for the next batch.
#[derive(Debug, Default)]
pub(super) struct WriteQueue {
    waiting: Mutex<WaitingWrites>,
    pub(super) came: Notify,
}

impl WriteQueue {
    fn waiting(&self) -> MutexGuard<'_, WaitingWrites> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_intent(&self, intent: QueuedIntent) {
        self.waiting().intents.push(intent);
        self.came.notify_one();
    }

    pub(super) fn add_end(&self, end: QueuedEnd) {
        let mut waiting = self.waiting();
        // One statement says one thing of each write.
        waiting.ends.retain(|earlier| !earlier.is_outdated_by(&end));
        waiting.ends.push(end);
        drop(waiting);
        self.came.notify_one();
    }

    /// Puts back ends that the engine did not take.
    pub(super) fn put_back(&self, mut ends: Vec<QueuedEnd>) {
        let mut waiting = self.waiting();
        ends.retain(|earlier| !waiting.ends.iter().any(|later| earlier.is_outdated_by(later)));
        ends.append(&mut waiting.ends);
        waiting.ends = ends;
    }

    /// Number of ends that the engine lacks, those of a batch under way aside.
    pub(super) fn ends(&self) -> usize {
        self.waiting().ends.len()
    }

    /// The next batch. Intents that nobody waits for any more were not sent.
    pub(super) fn next(&self, with_ends: bool) -> (Vec<QueuedIntent>, Vec<QueuedEnd>) {
        let mut waiting = self.waiting();
        waiting.intents.retain(|intent| !intent.ack.is_closed());
        let intents = waiting.intents.len().min(BATCH_MAX);
        let mut bytes = 0;
        let mut fits = |end: &&QueuedEnd| {
            let fits = bytes <= BATCH_BYTES_MAX;
            bytes += end.end.answer.as_ref().map_or(0, |answer| answer.body.len());
            fits
        };
        let ends = if with_ends { waiting.ends.iter().take(BATCH_MAX).take_while(|end| fits(end)).count() } else { 0 };
        (waiting.intents.drain(..intents).collect(), waiting.ends.drain(..ends).collect())
    }
}
