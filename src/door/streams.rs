//! HTTP/2 streams: how they are run, and the clock of an answer that its client does not take.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::connections::{ConnectionState, UntakenAnswer};
use crate::clock::Clock;
use crate::tasks::Tasks;

/// One HTTP/2 stream's run, from request to answer.
type StreamRun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs HTTP/2 streams: each once after all that came with it have been taken in, so that answers that are ready at once (hits) leave
/// together; then as tracked tasks.
#[derive(Clone)]
pub(super) struct Streams {
    tasks: Tasks,
    state: Arc<ConnectionState>,
    clock: Clock,
    stall: Duration,
    new: Arc<Mutex<Vec<StreamRun>>>,
}

impl Streams {
    /// `stall`: an answer of which nothing is taken for so long is reset.
    pub(super) fn new(tasks: &Tasks, state: &Arc<ConnectionState>, clock: &Clock, stall: Duration) -> Self {
        Self { tasks: tasks.clone(), state: state.clone(), clock: clock.clone(), stall, new: Arc::default() }
    }

    /// Runs the new ones; `false`: there were none.
    pub(super) fn run(&self) -> bool {
        let new = std::mem::take(&mut *self.new.lock().unwrap_or_else(PoisonError::into_inner));
        let some = !new.is_empty();
        for mut stream in new {
            // Whom this poll would wake does not matter: the task's own first poll comes after it.
            let (polled, noted) = noting(|| stream.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            if polled.is_pending() {
                let mut timed = TimedStream { stream, streams: self.clone(), waits: None };
                timed.note(noted);
                drop(self.tasks.spawn(timed));
            }
        }
        some
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stream = Box::pin(async { drop(stream.await) });
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
}

/// What one poll of a stream's run did with its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyProgress {
    /// Nothing.
    Nothing,
    /// The head or a piece of the body was handed over: what follows waits for the client.
    Handed,
    /// The body has nothing to hand over yet: the client is not who is waited for.
    Behind,
}

thread_local! {
    /// hyper has the stream's run in its own hands: what its answer's body sees reaches [`TimedStream`] through the thread that polls
    /// both. That costs an answer that is taken at once a store, and no allocation.
    static NOTED: Cell<BodyProgress> = const { Cell::new(BodyProgress::Nothing) };
}

/// Polls a stream's run: what came of it, and what was noted meanwhile.
fn noting(poll: impl FnOnce() -> Poll<()>) -> (Poll<()>, BodyProgress) {
    NOTED.set(BodyProgress::Nothing);
    (poll(), NOTED.get())
}

/// An answer's body, whose progress is noted.
pub(super) struct ProgressBody<B>(B);

impl<B> ProgressBody<B> {
    pub(super) fn new(body: B) -> Self {
        NOTED.set(BodyProgress::Handed);
        Self(body)
    }
}

impl<B: Body + Unpin> Body for ProgressBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        NOTED.set(BodyProgress::Behind);
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        NOTED.set(BodyProgress::Handed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A stream's run that did not end at once. Dropped when its answer is not taken in time, which resets the stream.
struct TimedStream {
    stream: StreamRun,
    streams: Streams,
    /// There is something of the answer that the client has not taken; until when it may wait.
    waits: Option<(Pin<Box<Sleep>>, UntakenAnswer)>,
}

impl TimedStream {
    fn note(&mut self, noted: BodyProgress) {
        match noted {
            BodyProgress::Nothing => {}
            BodyProgress::Handed => {
                let Streams { state, clock, stall, .. } = &self.streams;
                let untaken = state.untaken(clock);
                match &mut self.waits {
                    Some((until, before)) => {
                        until.as_mut().reset(tokio::time::sleep(*stall).deadline());
                        *before = untaken;
                    }
                    None => self.waits = Some((Box::pin(tokio::time::sleep(*stall)), untaken)),
                }
            }
            BodyProgress::Behind => self.waits = None,
        }
    }
}

impl Future for TimedStream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (polled, noted) = noting(|| self.stream.as_mut().poll(cx));
        self.note(noted);
        if polled.is_ready() {
            return polled;
        }
        match &mut self.waits {
            Some((until, _)) => until.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
