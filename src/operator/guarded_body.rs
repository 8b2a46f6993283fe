//! What an answer holds until its last byte is written: its connection's busy mark, and its share of the room for large answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::refusal::OperatorRefusal;
use super::state::OperatorState;
use crate::door::{BusyGuard, PeerConnection};

/// Keeps the connection busy, and refuses an answer that has no room beside the large ones under way.
pub(super) async fn guard_body(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    let busy = peer.busy();
    let response = next.run(request).await;
    // An answer without an exact size is made while it is sent.
    let room = state.reserve_answer(response.body().size_hint().exact().unwrap_or(0))?;
    Ok(response.map(|body| Body::new(GuardedBody { body, _busy: busy, room })))
}

/// A body with what it holds. Its bytes keep the room after hyper has taken them out of here.
struct GuardedBody {
    body: Body,
    _busy: BusyGuard,
    room: Option<OwnedSemaphorePermit>,
}

/// Bytes with the room that they take.
struct ReservedBytes(Bytes, #[expect(dead_code, reason = "held until the bytes are gone")] OwnedSemaphorePermit);

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // A body that takes room is one piece.
        let hold = |bytes| match self.room.take() {
            Some(room) => Bytes::from_owner(ReservedBytes(bytes, room)),
            None => bytes,
        };
        polled.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
