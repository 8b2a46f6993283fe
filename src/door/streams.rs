//! HTTP/2 streams: runs them, and resets a stream whose client does not take its answer.

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

/// The future of one HTTP/2 stream, from request to answer.
type StreamRun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs HTTP/2 streams. Each is polled once after everything received with it has been read, so that answers that are ready at once
/// (hits) leave together. Those that are pending then become tracked tasks.
#[derive(Clone)]
pub(super) struct Streams {
    tasks: Tasks,
    state: Arc<ConnectionState>,
    clock: Clock,
    stall: Duration,
    new: Arc<Mutex<Vec<StreamRun>>>,
}

impl Streams {
    /// An answer of which the client takes nothing for `stall` is reset.
    pub(super) fn new(tasks: &Tasks, state: &Arc<ConnectionState>, clock: &Clock, stall: Duration) -> Self {
        Self { tasks: tasks.clone(), state: state.clone(), clock: clock.clone(), stall, new: Arc::default() }
    }

    /// Polls the new streams once; returns false if there were none.
    pub(super) fn run(&self) -> bool {
        let new = std::mem::take(&mut *self.new.lock().unwrap_or_else(PoisonError::into_inner));
        let some = !new.is_empty();
        for mut stream in new {
            // A noop waker will do: the task polls the stream again first thing.
            let (polled, progress) =
                poll_with_progress(|| stream.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            if polled.is_pending() {
                let mut timed = TimedStream { stream, streams: self.clone(), take_deadline: None };
                timed.on_progress(progress);
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

/// What one poll of a stream did with its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyProgress {
    /// Nothing.
    Nothing,
    /// The head or a piece of the body was handed to hyper; the client must take it before the next.
    HandedOver,
    /// The body has nothing to hand over yet: the stream does not wait for the client.
    NotReady,
}

thread_local! {
    /// hyper owns the stream's future, so the answer's body reports to [`TimedStream`] through the thread that polls both. For an answer
    /// that is taken at once this costs one store and no allocation.
    static PROGRESS: Cell<BodyProgress> = const { Cell::new(BodyProgress::Nothing) };
}

/// Polls a stream; returns the result and the progress noted meanwhile.
fn poll_with_progress(poll: impl FnOnce() -> Poll<()>) -> (Poll<()>, BodyProgress) {
    PROGRESS.set(BodyProgress::Nothing);
    (poll(), PROGRESS.get())
}

/// A response body that notes its progress.
pub(super) struct ProgressBody<B>(B);

impl<B> ProgressBody<B> {
    pub(super) fn new(body: B) -> Self {
        PROGRESS.set(BodyProgress::HandedOver);
        Self(body)
    }
}

impl<B: Body + Unpin> Body for ProgressBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        PROGRESS.set(BodyProgress::NotReady);
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        PROGRESS.set(BodyProgress::HandedOver);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A stream that was pending after its first poll. It is dropped, which resets the stream, if the client does not take the answer in
/// time.
struct TimedStream {
    stream: StreamRun,
    streams: Streams,
    /// The deadline for the client to take what was handed over; `None` if it has taken everything.
    take_deadline: Option<(Pin<Box<Sleep>>, UntakenAnswer)>,
}

impl TimedStream {
    fn on_progress(&mut self, progress: BodyProgress) {
        match progress {
            BodyProgress::Nothing => {}
            BodyProgress::HandedOver => {
                let Streams { state, clock, stall, .. } = &self.streams;
                let untaken = state.untaken(clock);
                match &mut self.take_deadline {
                    Some((until, before)) => {
                        until.as_mut().reset(tokio::time::sleep(*stall).deadline());
                        *before = untaken;
                    }
                    None => self.take_deadline = Some((Box::pin(tokio::time::sleep(*stall)), untaken)),
                }
            }
            BodyProgress::NotReady => self.take_deadline = None,
        }
    }
}

impl Future for TimedStream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (polled, progress) = poll_with_progress(|| self.stream.as_mut().poll(cx));
        self.on_progress(progress);
        if polled.is_ready() {
            return polled;
        }
        match &mut self.take_deadline {
            Some((until, _)) => until.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
