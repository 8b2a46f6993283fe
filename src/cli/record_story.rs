//! The records of one request as a story that fits the terminal.

use clap::builder::styling::Style;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::record_table::{TableView, ago};
use crate::ids::escape_invisible;
use crate::operator::story;

const INDENT: &str = "  ";

/// The records, oldest first: each with its sentences, and how long after the one before it was.
pub(super) fn told(records: &[Map<String, Value>], view: &TableView) -> String {
    let mut chapters = Vec::new();
    let mut before = None;
    for record in records {
        let time = record.get("time").and_then(Value::as_str).unwrap_or_default();
        let at = time.parse::<Timestamp>().ok();
        let title = escape_invisible(&format!("{}, {}", story::title(record), when(time, at, before, view)));
        let title = if view.has_colors { format!("{0}{title}{0:#}", Style::new().bold()) } else { title };
        let sentences = escape_invisible(&story::sentences(record).join(" "));
        chapters.push(format!("{title}\n{}", wrapped(&sentences, view.width)));
        before = at;
    }
    if let Some(open) = open_doubt(records) {
        chapters.push(wrapped(&escape_invisible(&open), view.width));
    }
    chapters.join("\n\n")
}

/// `41.2 ms later`, or for the first one its time.
fn when(written: &str, at: Option<Timestamp>, before: Option<Timestamp>, view: &TableView) -> String {
    let since = at.zip(before).map(|(at, before)| at.duration_since(before));
    // A clock that was set back says nothing about what came later.
    if let Some(us) = since.and_then(|since| u64::try_from(since.as_micros()).ok()) {
        return format!("{} later", story::length(us));
    }
    let time = written.replace('T', " ").replace('Z', " UTC");
    match view.now.zip(at).and_then(|(now, at)| ago(now.duration_since(at))) {
        Some(ago) => format!("{time}, {ago}"),
        None => time,
    }
}

/// What is to be done about the newest write in doubt that nobody has settled.
fn open_doubt(records: &[Map<String, Value>]) -> Option<String> {
    let is = |record: &Map<String, Value>, name: &str, word: &str| record.get(name).is_some_and(|value| value == word);
    let is_doubt = |record: &&Map<String, Value>| is(record, "kind", "outcome") && is(record, "outcome", "in-doubt");
    let doubt = records.iter().rfind(is_doubt)?;
    let settles =
        |record: &Map<String, Value>| is(record, "kind", "settlement") && record.get("intent") == doubt.get("intent");
    if records.iter().any(settles) {
        return None;
    }
    let request = doubt.get("request").and_then(Value::as_str)?;
    Some(format!("Nobody has settled it. Look in Make, then: makegate doubts settle {request} --as done (or not-done)"))
}

/// The text in lines of at most this width, indented. What has no spaces stays whole, so that it can be copied.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let is_full = |line: &String| INDENT.len() + line.chars().count() + 1 + word.chars().count() > width;
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if !is_full(line) => *line = format!("{line} {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| format!("{INDENT}{line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn story(records: &[Value], view: &TableView) -> String {
        let records: Vec<_> = records.iter().map(|record| record.as_object().unwrap().clone()).collect();
        told(&records, view)
    }

    fn write() -> [Value; 2] {
        [
            json!({"seq": 1, "time": "2026-07-01T12:00:00.000000Z", "kind": "intent", "request": "r", "caller": "a", "method": "POST", "path": "/x"}),
            json!({"seq": 2, "time": "2026-07-01T12:00:00.041200Z", "kind": "outcome", "request": "r", "caller": "a", "intent": 1,
                "outcome": "in-doubt", "status": 504}),
        ]
    }

    #[test]
    fn a_doubt_is_open_until_its_own_settlement() {
        let open = story(&write(), &TableView::FILE);
        assert!(open.contains("Outcome, number 2, 41.2 ms later\n  Nobody knows"), "{open}");
        assert!(open.ends_with("makegate doubts settle r --as done\n  (or not-done)"), "{open}");
        let settlement = |intent: u64| {
            json!({"seq": 3, "time": "2026-07-01T12:03:05.041200Z", "kind": "settlement", "request": "r",
            "intent": intent, "operator": "anna", "outcome": "done"})
        };
        let settled = story(&[&write()[..], &[settlement(1)]].concat(), &TableView::FILE);
        assert!(settled.ends_with("Settlement, number 3, 3m 5s later\n  anna settled it as done."), "{settled}");
        assert!(story(&[&write()[..], &[settlement(9)]].concat(), &TableView::FILE).contains("Nobody has settled it"));
    }

    #[test]
    fn lines_fit_and_nothing_hidden_gets_through() {
        let mut records = write();
        records[1]["time"] = json!("2026-07-01T11:00:00.000000Z");
        records[1]["caller"] = json!("e\u{1b}[2Jvil");
        let told = story(&records, &TableView::FILE);
        assert!(told.contains("Outcome, number 2, 2026-07-01 11:00:00.000000 UTC\n"), "the clock was set back: {told}");
        assert!(told.contains("e\\u{1b}[2Jvil") && !told.contains('\u{1b}'), "{told}");
        assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
        assert_eq!(wrapped("aa bb cc", 7), "  aa bb\n  cc");
        assert_eq!(wrapped("a bbbbbbbbbb c", 7), "  a\n  bbbbbbbbbb\n  c");
    }
}
