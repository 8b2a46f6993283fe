//! `/audit/follow`: new records as they come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};

use super::super::operators::Operator;
use super::super::refusal::OperatorRefusal;
use super::super::render::{CSV, PageFormat, PageView, typed};
use super::super::state::OperatorState;
use crate::audit::{Filter, FollowEvent, csv, csv_header};
use crate::door::PeerConnection;

/// What ends a row of CSV.
const ROW_END: &str = "\r\n";

/// New records until the client leaves, the operator's key is taken away or shutdown begins: as JSON lines, or as rows of CSV below a header.
/// Records that came faster than they were taken are counted in a line of their own: `{"missed": n}`, or a row of the kind `missed` with
/// their `count`.
///
/// # Errors
/// A parameter is not a filter; there are too many followers.
pub(crate) async fn follow(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let filter = Filter::parse(view.query.iter(), state.gateway.clock.wall())?;
    let turn = state.followers.try_acquire(operator.name()).ok_or(OperatorRefusal::TooManyFollowers)?;
    peer.busy().mark_endless();
    let is_table = view.format == PageFormat::Csv;
    let start = (state.gateway.log.follow(filter), [state.gateway.tasks.stop_token(), operator.revoked.clone()], turn);
    let lines = stream::unfold(start, move |(mut follow, ends, turn)| async move {
        let [stopping, revoked] = &ends;
        let next = tokio::select! {
            next = follow.next() => next,
            () = stopping.cancelled() => None,
            () = revoked.cancelled() => None,
        };
        let line = match (next?, is_table) {
            (FollowEvent::Line(line), false) => format!("{}\n", line.trim_end()),
            (FollowEvent::Missed(missed), false) => format!("{{\"missed\":{missed}}}\n"),
            (FollowEvent::Line(line), true) => csv(&line) + ROW_END,
            (FollowEvent::Missed(missed), true) => {
                csv(&format!("{{\"kind\":\"missed\",\"count\":{missed}}}")) + ROW_END
            }
        };
        Some((Ok::<_, Infallible>(line), (follow, ends, turn)))
    });
    let header = is_table.then(|| Ok(csv_header() + ROW_END));
    let media_type = if is_table { CSV } else { "application/x-ndjson" };
    Ok(typed(media_type, Body::from_stream(stream::iter(header).chain(lines))))
}
