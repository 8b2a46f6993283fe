//! How a page or a refusal becomes an answer: JSON, CSV or HTML.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use maud::Markup;
use serde::Serialize;

use super::html::{self, Menu, PageFrame};
use super::query::PageQuery;
use super::refusal::OperatorRefusal;
use super::state::OperatorState;
use super::table::PageTable;
use crate::ids::escape_invisible_in_lines;

/// The media type of CSV with a header (RFC 4180).
pub(super) const CSV: &str = "text/csv; charset=utf-8; header=present";

/// What a page shows. Its JSON is how it serializes.
pub(super) trait Page: Serialize {
    /// Its heading.
    const TITLE: &str;

    /// Its rows.
    fn table(&self) -> PageTable;

    /// What people see under the heading. `now`: what times are told from.
    fn html(&self, now: Timestamp) -> Markup;

    /// Has it JSON and CSV? A form that is not filled in has none.
    fn has_data(&self) -> bool {
        true
    }

    /// May it change by itself? See [`html::LIVE_PAGES`].
    fn is_live(&self) -> bool {
        true
    }

    /// The rows for spreadsheets.
    fn csv(&self) -> String {
        self.table().csv()
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageFormat {
    Json,
    Csv,
    Html,
}

impl PageFormat {
    /// The path's suffix decides; without one, a client that accepts HTML gets it, and any other JSON.
    fn of(path: &str, headers: &HeaderMap) -> Self {
        match Self::of_suffix(path) {
            Some(format) => format,
            None if prefers_html(headers) => Self::Html,
            None => Self::Json,
        }
    }

    fn of_suffix(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// How much the client wants this media type (RFC 9110, section 12.5.1). `None` if it does not name it.
pub(super) fn accept_weight(headers: &HeaderMap, kind: &str) -> Option<f32> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = values.flat_map(|value| value.split(',')).map(|range| range.split(';').map(str::trim));
    ranges.find_map(|mut parts| {
        parts.next()?.eq_ignore_ascii_case(kind).then(|| {
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
            weight.unwrap_or(1.0)
        })
    })
}

/// Does the client prefer HTML to JSON? Only who names it does.
fn prefers_html(headers: &HeaderMap) -> bool {
    let weight = |kind: &str| accept_weight(headers, kind);
    weight("text/html").is_some_and(|html| html > 0.0 && weight("application/json").is_none_or(|json| html >= json))
}

/// The moment that the times of a page are told from, if it is not the moment of the request.
#[derive(Clone, Copy)]
pub(super) struct ToldFrom(pub(super) Timestamp);

/// How a request wants its page.
pub(super) struct PageView {
    pub(super) format: PageFormat,
    pub(super) query: PageQuery,
    path: String,
    menu: Menu,
    now: Timestamp,
}

impl FromRequestParts<Arc<OperatorState>> for PageView {
    type Rejection = OperatorRefusal;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<OperatorState>) -> Result<Self, OperatorRefusal> {
        let told_from = parts.extensions.get::<ToldFrom>().map(|told_from| told_from.0);
        Ok(Self {
            now: told_from.unwrap_or_else(|| state.gateway.clock.wall()),
            format: PageFormat::of(parts.uri.path(), &parts.headers),
            query: PageQuery::from_request_parts(parts, state).await?,
            path: parts.uri.path().to_owned(),
            menu: parts.extensions.get::<Menu>().cloned().unwrap_or_default(),
        })
    }
}

impl PageView {
    /// The answer that shows this page.
    pub(super) fn show<P: Page>(&self, page: &P) -> Response {
        match self.format {
            PageFormat::Json => match serde_json::to_vec(page) {
                Ok(json) => typed("application/json", json),
                Err(_) => OperatorRefusal::Internal.into_response(),
            },
            PageFormat::Csv => typed(CSV, page.csv()),
            PageFormat::Html => {
                let frame = PageFrame {
                    menu: &self.menu,
                    title: P::TITLE,
                    path: &self.path,
                    query: &self.query.suffix(),
                    has_data: page.has_data(),
                    is_live: page.is_live(),
                    now: self.now,
                };
                html_document(html::page(&frame, &page.html(self.now)))
            }
        }
    }

    /// Does the path end in `.json` or `.csv`?
    pub(super) fn has_suffix(&self) -> bool {
        PageFormat::of_suffix(&self.path).is_some()
    }
}

/// An answer of this media type.
pub(super) fn typed(media_type: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, media_type)], body.into()).into_response()
}

/// A page for people. Whatever would change how its text looks, wherever it came from, is escaped.
fn html_document(whole: Markup) -> Response {
    typed("text/html; charset=utf-8", escape_invisible_in_lines(&whole.into_string()))
}

/// Writes the refusal that came from further inside: a page for people, a problem document (RFC 9457) for everybody else.
pub(super) async fn render_refusal(State(menu): State<Menu>, request: Request, next: Next) -> Response {
    let format = PageFormat::of(request.uri().path(), request.headers());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let response = next.run(request).await;
    let Some(refusal) = response.extensions().get::<Arc<OperatorRefusal>>() else { return response };
    let document = match format {
        PageFormat::Html => {
            let (status, title, detail) = (refusal.status(), refusal.title(), refusal.detail());
            html_document(match refusal.comes_before_key() {
                true if status == StatusCode::UNAUTHORIZED => {
                    html::closed(status, title, &detail, &html::how_to_come_in(&host))
                }
                true => html::closed(status, title, &detail, &maud::html! {}),
                false => html::problem(&menu, status, title, &detail),
            })
        }
        PageFormat::Json | PageFormat::Csv => typed("application/problem+json", refusal.problem().to_string()),
    };
    (refusal.status(), refusal.headers(), document).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_wins_over_accept_and_a_bare_path_is_json_unless_html_is_accepted() {
        let of = |path, accept: &str| {
            PageFormat::of(path, &HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]))
        };
        assert_eq!(of("/quota", "text/html,application/xhtml+xml,*/*;q=0.8"), PageFormat::Html);
        assert_eq!(of("/quota", "*/*"), PageFormat::Json);
        assert_eq!(of("/quota", "text/html;q=0, application/json"), PageFormat::Json);
        assert_eq!(of("/quota", "application/json, text/html;q=0.5"), PageFormat::Json);
        assert_eq!(of("/quota", "application/json;q=0.5, text/html;q=0.9"), PageFormat::Html);
        assert_eq!(of("/quota.json", "text/html"), PageFormat::Json);
        assert_eq!(of("/quota.csv", "text/html"), PageFormat::Csv);
        assert_eq!(PageFormat::of("/quota", &HeaderMap::new()), PageFormat::Json);
    }
}
