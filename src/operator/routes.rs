//! Which place a path is, and in which form it answers.

use http::{HeaderMap, Method, header};

use super::refusal::OperatorRefusal;

/// A place behind this door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Livez,
    Readyz,
    Metrics,
    Style,
    OpenApi,
    Overview,
    Audit,
    Follow,
    Head,
    Proof,
    Rotate,
    Callers,
    Quota,
    Cache,
    Purge,
    Settle,
    Config,
    Doubts,
    Explain,
}

const PLACES: [(&str, Destination); 19] = [
    ("/livez", Destination::Livez),
    ("/healthz", Destination::Livez),
    ("/readyz", Destination::Readyz),
    ("/metrics", Destination::Metrics),
    ("/style.css", Destination::Style),
    ("/openapi.json", Destination::OpenApi),
    ("/", Destination::Overview),
    ("/audit", Destination::Audit),
    ("/audit/follow", Destination::Follow),
    ("/audit/head", Destination::Head),
    ("/audit/proof", Destination::Proof),
    ("/audit/rotate", Destination::Rotate),
    ("/callers", Destination::Callers),
    ("/quota", Destination::Quota),
    ("/cache", Destination::Cache),
    ("/cache/purge", Destination::Purge),
    ("/config", Destination::Config),
    ("/doubts", Destination::Doubts),
    ("/explain", Destination::Explain),
];

impl Destination {
    /// Needs it no key?
    pub(super) const fn is_open(self) -> bool {
        matches!(self, Self::Livez | Self::Readyz | Self::Metrics)
    }

    /// Is it one value that is shown in every form?
    const fn is_page(self) -> bool {
        match self {
            Self::Overview
            | Self::Audit
            | Self::Head
            | Self::Proof
            | Self::Callers
            | Self::Quota
            | Self::Cache
            | Self::Config
            | Self::Doubts
            | Self::Explain => true,
            Self::Livez | Self::Readyz | Self::Metrics | Self::Style | Self::OpenApi | Self::Follow => false,
            Self::Purge | Self::Settle | Self::Rotate => false,
        }
    }

    /// Refuses another method.
    ///
    /// # Errors
    /// [`OperatorRefusal::NoMethod`].
    pub(super) fn takes(self, method: &Method) -> Result<(), OperatorRefusal> {
        let (takes, allowed) = if matches!(self, Self::Purge | Self::Settle | Self::Rotate) {
            (*method == Method::POST, "POST")
        } else {
            (matches!(*method, Method::GET | Method::HEAD), "GET, HEAD")
        };
        if takes { Ok(()) } else { Err(OperatorRefusal::NoMethod { allowed }) }
    }
}

/// What stands before the request id of a doubt.
pub(super) const DOUBT: &str = "/doubts/";

/// How a page answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageFormat {
    Json,
    Csv,
    Html,
}

/// A path understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundRoute {
    pub(super) destination: Destination,
    /// The form that its suffix asks for.
    form: Option<PageFormat>,
}

/// What this path is; `None`: nothing.
pub(super) fn find(path: &str) -> Option<FoundRoute> {
    let named = |name: &str| PLACES.iter().find(|(path, _)| *path == name).map(|(_, destination)| *destination);
    if let Some(destination) = named(path) {
        return Some(FoundRoute { destination, form: None });
    }
    if path.strip_prefix(DOUBT).is_some_and(|request| !request.is_empty()) {
        return Some(FoundRoute { destination: Destination::Settle, form: None });
    }
    let (page, form) = match path.rsplit_once('.')? {
        (page, "json") => (page, PageFormat::Json),
        (page, "csv") => (page, PageFormat::Csv),
        _ => return None,
    };
    named(page)
        .filter(|destination| destination.is_page())
        .map(|destination| FoundRoute { destination, form: Some(form) })
}

/// The form of the answer: the suffix's, else HTML for who accepts it.
pub(super) fn form(route: Option<FoundRoute>, headers: &HeaderMap) -> PageFormat {
    let suffix = route.and_then(|route| route.form);
    suffix.unwrap_or_else(|| if accepts_html(headers) { PageFormat::Html } else { PageFormat::Json })
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = values.flat_map(|value| value.split(','));
    ranges.any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        html && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_suffixes_and_nothing_else_has() {
        assert_eq!(find("/quota"), Some(FoundRoute { destination: Destination::Quota, form: None }));
        assert_eq!(
            find("/quota.csv"),
            Some(FoundRoute { destination: Destination::Quota, form: Some(PageFormat::Csv) })
        );
        assert_eq!(
            find("/.json"),
            Some(FoundRoute { destination: Destination::Overview, form: Some(PageFormat::Json) })
        );
        assert_eq!(find("/openapi.json"), Some(FoundRoute { destination: Destination::OpenApi, form: None }));
        for nothing in ["/metrics.json", "/cache/purge.csv", "/quota.html", "/quota/", "", "//", "/quota.json.csv"] {
            assert_eq!(find(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_suffix_wins_over_accept_and_a_bare_path_is_json_unless_html_is_asked_for() {
        let of =
            |path, accept: &str| form(find(path), &HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]));
        assert_eq!(of("/quota", "text/html,application/xhtml+xml,*/*;q=0.8"), PageFormat::Html);
        assert_eq!(of("/quota", "*/*"), PageFormat::Json);
        assert_eq!(of("/quota", "text/html;q=0, application/json"), PageFormat::Json);
        assert_eq!(of("/quota.json", "text/html"), PageFormat::Json);
        assert_eq!(of("/quota.csv", "text/html"), PageFormat::Csv);
        assert_eq!(form(find("/quota"), &HeaderMap::new()), PageFormat::Json);
    }
}
