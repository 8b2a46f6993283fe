//! The two text formats of metrics.

use http::HeaderMap;

use super::super::render::accept_weight;

/// The media type of OpenMetrics.
pub(super) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of Prometheus's text format.
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Does the client ask for OpenMetrics? Prometheus does; a person with curl and older scrapers do not.
pub(super) fn accepts_openmetrics(headers: &HeaderMap) -> bool {
    accept_weight(headers, "application/openmetrics-text").is_some_and(|weight| weight > 0.0)
}

/// The same metrics in Prometheus's own format: there a counter has its suffix in its name, and neither units, nor `info`, nor an end
/// are marked.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        match line.split_once(' ').filter(|(mark, _)| *mark == "#").map(|(_, rest)| rest) {
            Some(rest) if rest == "EOF" || rest.starts_with("UNIT ") => continue,
            Some(rest) if rest.starts_with("HELP ") => {
                // The type follows, and decides the name.
                let kind = lines.peek().and_then(|next| next.strip_prefix("# TYPE ")?.split(' ').nth(1));
                out.push_str(&renamed(line, kind.unwrap_or_default()));
            }
            Some(rest) if rest.starts_with("TYPE ") => {
                let kind = rest.rsplit(' ').next().unwrap_or_default();
                let line = renamed(line, kind);
                out.push_str(
                    line.strip_suffix(" info").map(|line| format!("{line} gauge")).as_deref().unwrap_or(&line),
                );
            }
            Some(_) | None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// A `HELP` or `TYPE` line with the name that the samples have.
fn renamed(line: &str, kind: &str) -> String {
    let suffix = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let mut words = line.splitn(4, ' ');
    let [mark, what, name, rest] = [(); 4].map(|()| words.next().unwrap_or_default());
    format!("{mark} {what} {name}{suffix} {rest}")
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    #[test]
    fn openmetrics_is_for_whoever_asks_for_it() {
        let of = |accept: &str| accepts_openmetrics(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]));
        assert!(of(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(of("text/plain;q=0.5, Application/OpenMetrics-Text; q=0.1"));
        for other in ["*/*", "text/plain", "application/json", "application/openmetrics-text;q=0", ""] {
            assert!(!of(other), "{other}");
        }
        assert!(!accepts_openmetrics(&HeaderMap::new()));
    }

    #[test]
    fn prometheus_own_format_has_the_suffixes_in_the_names() {
        let openmetrics = "# HELP a Some counter of seconds.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"# TYPE\"} 1\n\
            # HELP build What.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n\
            # HELP g A gauge.\n# TYPE g gauge\ng 2\n# EOF\n";
        let expected = "# HELP a_total Some counter of seconds.\n# TYPE a_total counter\na_total{x=\"# TYPE\"} 1\n\
            # HELP build_info What.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
            # HELP g A gauge.\n# TYPE g gauge\ng 2\n";
        assert_eq!(to_prometheus(openmetrics), expected);
    }
}
