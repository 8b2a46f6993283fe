//! The pages for people: plain HTML and one stylesheet; a script adds keys and copy buttons. Whatever comes from records is shown as text.

use std::sync::Arc;

use http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::assets::{STYLE, icon_address};
use super::cells::{ColumnView, sentence};
use super::table::PageTable;

/// The pages of the menu in their order: path and name.
pub(super) type Menu = Arc<[(&'static str, &'static str)]>;

/// The pages that change by themselves while somebody with a script looks at them.
pub(super) const LIVE_PAGES: [&str; 7] = ["/", "/audit", "/callers", "/quota", "/cache", "/doubts", "/history"];

/// A whole page. `query`: of its address, with the question mark. `has_data`: there is JSON and CSV of it.
pub(super) fn page(menu: &Menu, title: &str, path: &str, query: &str, has_data: bool, content: &Markup) -> Markup {
    let body = html! {
        h1 { (title) }
        div id="live" data-live[LIVE_PAGES.contains(&path)] { (content) }
        @if has_data {
            footer {
                "This page as "
                a href={ (path) ".json" (query) } { "JSON" }
                " or "
                a href={ (path) ".csv" (query) } { "CSV" }
            }
        }
    };
    shell(title, &own_head(), &header(menu, path), &body)
}

/// A refusal, for somebody who has shown a key.
pub(super) fn problem(menu: &Menu, status: StatusCode, title: &str, detail: &str) -> Markup {
    shell(title, &own_head(), &header(menu, ""), &problem_body(status, title, detail, &html! {}))
}

/// A refusal, for somebody who has not: the page needs nothing else from this door. `advice`: how to come in.
pub(super) fn closed(status: StatusCode, title: &str, detail: &str, advice: &Markup) -> Markup {
    let head = html! {
        link rel="icon" href=(icon_address());
        style { (PreEscaped(STYLE)) }
    };
    let header = html! { header { strong { "makegate" } } };
    shell(title, &head, &header, &problem_body(status, title, detail, advice))
}

fn problem_body(status: StatusCode, title: &str, detail: &str, advice: &Markup) -> Markup {
    html! {
        h1 { (title) }
        p { (sentence(detail)) }
        (advice)
        p.quiet { "Status " (status.as_u16()) }
    }
}

/// How somebody gets in who has a browser, or a shell.
pub(super) fn how_to_come_in(host: &str) -> Markup {
    html! {
        h2 { "In a browser" }
        p { "Reload the page. When the browser asks, give any name, and the operator's key as the password." }
        p { a href="" { "Ask me for the key" } }
        h2 { "In a shell" }
        pre { "curl --user \"me:$MAKEGATE_OPERATOR_KEY\" " (host) "/" }
        p {
            "The key is in the file that " code { "operator.key_file" } " names in the configuration, or in the variable that "
            code { "operator.key_env" } " names. " code { "makegate demo" } " prints its own."
        }
    }
}

fn own_head() -> Markup {
    html! {
        link rel="stylesheet" href="/style.css";
        link rel="icon" href="/favicon.svg" type="image/svg+xml";
        script src="/page.js" defer {}
    }
}

fn header(menu: &Menu, path: &str) -> Markup {
    html! {
        a.skip href="#main" { "Skip to the content" }
        header {
            strong { "makegate" }
            nav aria-label="Pages" {
                @for (place, name) in menu.iter() {
                    a href=(place) aria-current=[(*place == path).then_some("page")] { (name) }
                }
            }
        }
    }
}

fn shell(title: &str, head: &Markup, header: &Markup, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · makegate" }
                (head)
            }
            body {
                (header)
                main id="main" { (body) }
            }
        }
    }
}

/// The table, or the hint if it has no rows. It scrolls in a box of its own if it is too wide.
pub(super) fn table(table: &PageTable, hint: &str) -> Markup {
    let column = |(at, name): (usize, &&'static str)| {
        ColumnView::of(name, table.rows.iter().filter_map(move |row| Some(row.get(at)?.as_str())))
    };
    let columns: Vec<_> = table.columns.iter().enumerate().map(column).collect();
    html! {
        @if table.rows.is_empty() {
            p.empty { (hint) }
        } @else {
            div.wide tabindex="0" role="region" aria-label={ "Table by " (table.columns.first().copied().unwrap_or_default().replace('_', " ")) } {
                table {
                    thead { tr { @for column in &columns { (column.head()) } } }
                    tbody { @for row in &table.rows { tr { @for (column, text) in columns.iter().zip(row) { (column.cell(text)) } } } }
                }
            }
        }
    }
}

/// Figures with their names, the most important first.
pub(super) fn figures(figures: &[(&str, String)]) -> Markup {
    html! {
        dl.figures {
            @for (name, value) in figures {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// How much of a limit is used, as `show` writes it, and by whom. It turns amber at 60 % and red at 85 %.
pub(super) fn gauge(label: &str, [used, limit]: [u64; 2], show: impl Fn(u64) -> String, by: &str) -> Markup {
    let most = limit.max(1);
    let part = |percent: u64| most.saturating_mul(percent) / 100;
    html! {
        div.gauge {
            span { (label) }
            meter min="0" max=(most) value=(used.min(most)) low=(part(60)) high=(part(85)) optimum="0" aria-label=(label) {}
            span.n { (show(used)) " of " (show(limit)) }
            span.quiet { (by) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_records_is_text() {
        let rows = vec![vec!["<script>alert(1)</script>".to_owned(), "a\u{202e}b\u{1b}[31m".to_owned()]];
        let shown = table(&PageTable { columns: &["one", "two"], rows }, "none").into_string();
        assert!(shown.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{shown}");
        assert!(shown.contains("a\\u{202e}b\\u{1b}[31m"), "{shown}");
        assert!(!shown.contains('\u{202e}') && !shown.contains('\u{1b}'));
    }

    #[test]
    fn a_table_without_rows_says_what_would_be_there() {
        let shown = table(&PageTable { columns: &["one"], rows: vec![] }, "No write is in doubt.").into_string();
        assert_eq!(shown, "<p class=\"empty\">No write is in doubt.</p>");
    }
}
