//! The pages for people: plain HTML and one stylesheet; a script adds keys and copy buttons. Whatever comes from records is shown as text.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::assets::{STYLE, icon_address};
use super::cells::sentence;

/// The pages of the menu in their order: path and name.
pub(super) type Menu = Arc<[(&'static str, &'static str)]>;

/// The pages that change by themselves while somebody with a script looks at them.
pub(super) const LIVE_PAGES: [&str; 8] =
    ["/", "/audit", "/callers", "/quota", "/cache", "/doubts", "/history", "/replicas"];

/// What is around the content of a page.
pub(super) struct PageFrame<'p> {
    pub(super) menu: &'p Menu,
    pub(super) title: &'p str,
    pub(super) path: &'p str,
    /// Of its address, with the question mark.
    pub(super) query: &'p str,
    /// Is there JSON and CSV of it?
    pub(super) has_data: bool,
    pub(super) is_live: bool,
    /// What its times are told from.
    pub(super) now: Timestamp,
}

/// A whole page.
pub(super) fn page(frame: &PageFrame<'_>, content: &Markup) -> Markup {
    let PageFrame { menu, title, path, query, has_data, is_live, now } = *frame;
    let body = html! {
        h1 { (title) }
        div id="live" data-live[is_live && LIVE_PAGES.contains(&path)] { (content) }
        @if has_data {
            footer {
                "This page as "
                a href={ (path) ".json" (query) } { "JSON" }
                " or "
                a href={ (path) ".csv" (query) } { "CSV" }
            }
        }
    };
    shell(title, &own_head(), &header(menu, path), &body, Some(now))
}

/// A refusal, for somebody who has shown a key.
pub(super) fn problem(menu: &Menu, status: StatusCode, title: &str, detail: &str) -> Markup {
    shell(title, &own_head(), &header(menu, ""), &problem_body(status, title, detail, &html! {}), None)
}

/// A refusal, for somebody who has not: the page needs nothing else from this door. `advice`: how to come in.
pub(super) fn closed(status: StatusCode, title: &str, detail: &str, advice: &Markup) -> Markup {
    let head = html! {
        link rel="icon" href=(icon_address());
        style { (PreEscaped(STYLE)) }
    };
    let header = html! { header { strong { "makegate" } } };
    shell(title, &head, &header, &problem_body(status, title, detail, advice), None)
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

/// `now`: the script tells times by the server's clock.
fn shell(title: &str, head: &Markup, header: &Markup, body: &Markup, now: Option<Timestamp>) -> Markup {
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
            body data-now=[now.map(Timestamp::as_millisecond)] {
                (header)
                main id="main" { (body) }
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
