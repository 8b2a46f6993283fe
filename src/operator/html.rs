//! The pages for people: plain HTML, one stylesheet, no script. Whatever comes from records is shown as text.

use std::sync::Arc;

use http::StatusCode;
use maud::{DOCTYPE, Markup, html};

use super::table::PageTable;
use crate::ids::escape_invisible;

/// The pages of the menu in their order: path and name.
pub(super) type Menu = Arc<[(&'static str, &'static str)]>;

/// A whole page. `query`: of its address, with the question mark.
pub(super) fn page(menu: &Menu, title: &str, path: &str, query: &str, content: &Markup) -> Markup {
    let body = html! {
        h1 { (title) }
        (content)
        footer {
            "This page as "
            a href={ (path) ".json" (query) } { "JSON" }
            " or "
            a href={ (path) ".csv" (query) } { "CSV" }
        }
    };
    shell(menu, title, path, &body)
}

/// A refusal, for people.
pub(super) fn problem(menu: &Menu, status: StatusCode, title: &str, detail: &str) -> Markup {
    let body = html! {
        h1 { (title) }
        p { (detail) }
        p.quiet { "Status " (status.as_u16()) }
    };
    shell(menu, title, "", &body)
}

fn shell(menu: &Menu, title: &str, path: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · makegate" }
                link rel="stylesheet" href="/style.css";
            }
            body {
                header {
                    strong { "makegate" }
                    nav aria-label="Pages" {
                        @for (place, name) in menu.iter() {
                            a href=(place) aria-current=[(*place == path).then_some("page")] { (name) }
                        }
                    }
                }
                main { (body) }
            }
        }
    }
}

/// The table, or the hint if it has no rows.
pub(super) fn table(table: &PageTable, hint: &str) -> Markup {
    html! {
        @if table.rows.is_empty() {
            p.empty { (hint) }
        } @else {
            div.wide {
                table {
                    thead { tr { @for column in table.columns { th scope="col" { (column.replace('_', " ")) } } } }
                    tbody { @for row in &table.rows { tr { @for cell in row { (data(cell)) } } } }
                }
            }
        }
    }
}

fn data(cell: &str) -> Markup {
    let number = !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit());
    html! { td class=[number.then_some("n")] { (escape_invisible(cell)) } }
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

/// How much of a limit is used, and by whom.
pub(super) fn gauge(label: &str, used: u64, limit: u64, by: &str) -> Markup {
    let most = limit.max(1);
    html! {
        div.gauge {
            span { (label) }
            meter min="0" max=(most) value=(used.min(most)) high=(most / 4 * 3) optimum="0" {}
            span.n { (used) " of " (limit) }
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
