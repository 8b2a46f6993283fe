//! The one place where what is shown becomes an answer: JSON, CSV or HTML.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use maud::Markup;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::html;
use super::query::PageQuery;
use super::refusal::OperatorRefusal;
use super::routes::PageFormat;
use crate::audit::csv_cell;
use crate::door::BusyGuard;

/// An answer's body.
pub(super) type PageBody = UnsyncBoxBody<Bytes, Infallible>;

/// What a page shows: its JSON is how it serializes.
pub(super) trait Page: Serialize {
    /// Its heading.
    const TITLE: &str;
    /// Its bare path.
    const PATH: &str;

    /// Its rows.
    fn table(&self) -> PageTable;

    /// What people see.
    fn html(&self) -> Markup;

    /// The rows for spreadsheets.
    fn csv(&self) -> String {
        self.table().csv()
    }
}

/// The answer that shows this page.
pub(super) fn page<P: Page>(page: &P, form: PageFormat, query: &PageQuery) -> Response<PageBody> {
    match form {
        PageFormat::Json => match serde_json::to_vec(page) {
            Ok(json) => bytes("application/json", json),
            Err(_) => OperatorRefusal::Internal.response(form),
        },
        PageFormat::Csv => bytes("text/csv; charset=utf-8; header=present", page.csv()),
        PageFormat::Html => bytes("text/html; charset=utf-8", html::page(page, query).into_string()),
    }
}

/// An answer whose body is this text.
pub(super) fn text(kind: &'static str, text: impl Into<String>) -> Response<PageBody> {
    bytes(kind, text.into())
}

/// An answer whose body is these bytes.
pub(super) fn bytes(kind: &'static str, bytes: impl Into<Bytes>) -> Response<PageBody> {
    with_body(kind, Full::new(bytes.into()).boxed_unsync())
}

/// An answer with this body.
pub(super) fn with_body(kind: &'static str, body: PageBody) -> Response<PageBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Rows under named columns.
pub(super) struct PageTable {
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

impl PageTable {
    /// RFC 4180, in which no cell is a formula.
    pub(super) fn csv(&self) -> String {
        let mut csv = self.columns.join(",") + "\r\n";
        for row in &self.rows {
            let cells: Vec<_> = row.iter().map(|cell| csv_cell(cell)).collect();
            csv.push_str(&cells.join(","));
            csv.push_str("\r\n");
        }
        csv
    }
}

/// What does not apply is an empty cell.
pub(super) fn cell<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A body, and with it its connection's busy mark and the room that it takes: until its last byte is written, which is long after
/// hyper has taken it out of here.
pub(super) struct GuardedBody {
    body: PageBody,
    _busy: BusyGuard,
    room: Option<OwnedSemaphorePermit>,
}

impl GuardedBody {
    pub(super) fn new(body: PageBody, busy: BusyGuard, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { body, _busy: busy, room }
    }
}

/// Bytes with the room that they take.
struct ReservedBytes(Bytes, #[expect(dead_code, reason = "held until the bytes are gone")] OwnedSemaphorePermit);

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // Whatever takes room is in one piece.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_a_table_are_quoted_and_no_formulas() {
        let rows = vec![vec!["=1+1".to_owned(), "a,b".to_owned()], vec![cell(None::<u8>), cell(Some(7))]];
        assert_eq!(PageTable { columns: &["one", "two"], rows }.csv(), "one,two\r\n'=1+1,\"a,b\"\r\n,7\r\n");
    }
}
