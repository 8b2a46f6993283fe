//! `/audit/follow`: new records as they come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use futures_util::stream;

use super::super::operators::Operator;
use super::super::query::PageQuery;
use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;
use crate::audit::{Filter, FollowEvent};
use crate::door::PeerConnection;

/// New records as JSON lines until the client leaves, the operator's key is taken away or shutdown begins. Records that came faster than they
/// were taken are counted in a line of their own: `{"missed": n}`.
///
/// # Errors
/// A parameter is not a filter; there are too many followers.
pub(crate) async fn follow(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    query: PageQuery,
) -> Result<Response, OperatorRefusal> {
    let filter = Filter::parse(query.iter(), state.gateway.clock.wall())?;
    let turn = state.followers.clone().try_acquire_owned().map_err(|_| OperatorRefusal::TooManyFollowers)?;
    peer.busy().mark_endless();
    let start = (state.gateway.log.follow(filter), [state.gateway.tasks.stop_token(), operator.revoked.clone()], turn);
    let lines = stream::unfold(start, |(mut follow, ends, turn)| async move {
        let [stopping, revoked] = &ends;
        let next = tokio::select! {
            next = follow.next() => next,
            () = stopping.cancelled() => None,
            () = revoked.cancelled() => None,
        };
        let line = match next? {
            FollowEvent::Line(line) => format!("{}\n", line.trim_end()),
            FollowEvent::Missed(missed) => format!("{{\"missed\":{missed}}}\n"),
        };
        Some((Ok::<_, Infallible>(line), (follow, ends, turn)))
    });
    Ok(typed("application/x-ndjson", Body::from_stream(lines)))
}
