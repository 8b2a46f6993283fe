//! One line of the process log: an event as JSON, or as text for a terminal.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::ids::{escape_invisible, escape_invisible_in_json};

/// Size limit of a text in a line, in bytes.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// Fields whose values are lists of strings: their Debug form is JSON.
const LISTS: [&str; 3] = ["gateway", "operator", "metrics"];

/// An event, ready to be written.
#[derive(Clone, Debug)]
pub(super) struct LogLine {
    pub(super) time: Timestamp,
    level: Level,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl LogLine {
    pub(super) const fn new(time: Timestamp, level: Level, message: String) -> Self {
        Self { time, level, message, fields: Vec::new() }
    }

    /// The line for an event; names the library if it comes from one.
    pub(super) fn of(event: &Event<'_>, time: Timestamp) -> Self {
        let about = event.metadata();
        let mut line = Self::new(time, *about.level(), String::new());
        event.record(&mut line);
        if !about.target().starts_with("makegate") {
            line.fields.push(("library", about.target().into()));
        }
        line
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// One JSON object: `ts`, `level`, `msg`, then the event's own fields.
    pub(super) fn json(self) -> String {
        let mut object = Map::new();
        object.insert("ts".to_owned(), format!("{:.6}", self.time).into());
        object.insert("level".to_owned(), self.level.as_str().to_ascii_lowercase().into());
        object.insert("msg".to_owned(), self.message.into());
        object.extend(self.fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        format!("{}\n", escape_invisible_in_json(&Value::Object(object).to_string()))
    }

    /// The line as text for people.
    pub(super) fn text(&self, has_colors: bool) -> String {
        let (dim, color, plain) = match (has_colors, self.level) {
            (false, _) => ("", "", ""),
            (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
            (true, Level::INFO) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
        };
        let message = escape_invisible(&self.message);
        let mut text = format!("{dim}{:.6}{plain} {color}{:>5}{plain} {message}", self.time, self.level.as_str());
        for (name, value) in &self.fields {
            let word = value.as_str().filter(|text| !text.is_empty() && !text.contains([' ', '"', '=']));
            let value = word.map_or_else(|| escape_invisible(&value.to_string()), escape_invisible);
            let _infallible = write!(text, " {dim}{name}={plain}{value}");
        }
        text.push('\n');
        text
    }

    fn put(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }

    fn put_text(&mut self, field: &Field, mut text: String) {
        if text.len() > TEXT_BYTES_MAX {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
            text.push('…');
        }
        if field.name() == "message" {
            self.message = text;
            return;
        }
        let list = LISTS.contains(&field.name()).then(|| serde_json::from_str(&text).ok()).flatten();
        self.put(field, list.unwrap_or(Value::String(text)));
    }
}

impl Visit for LogLine {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value.to_owned());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tracing::Subscriber;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    use super::*;

    struct Seen(Arc<Mutex<Vec<LogLine>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(LogLine::of(event, Timestamp::UNIX_EPOCH));
        }
    }

    /// The lines that these events become.
    fn lines(tell: impl FnOnce()) -> Vec<LogLine> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Seen(seen.clone())), tell);
        seen.lock().unwrap().clone()
    }

    #[test]
    fn values_are_what_they_are_and_lists_are_lists() {
        let note = "makegate/abc\n122\nroot=\n\n\u{2014} makegate/abc sig\n";
        let [line] = &lines(|| {
            let (gateway, help) = (vec!["127.0.0.1:8080", "[::1]:8080"], None::<&str>);
            tracing::info!(?gateway, help, size = 122_u64, is = true, note = %note, "makegate {}", "started");
        })[..] else {
            panic!("one line")
        };
        let told: Value = serde_json::from_str(&line.clone().json()).unwrap();
        let expected = json!({
            "ts": "1970-01-01T00:00:00.000000Z", "level": "info", "msg": "makegate started",
            "gateway": ["127.0.0.1:8080", "[::1]:8080"], "size": 122, "is": true, "note": note,
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_terminal_is_shown_no_control_characters_and_no_line_is_endless() {
        let long = "\u{e9}".repeat(TEXT_BYTES_MAX);
        let told = lines(|| {
            tracing::warn!(path = "a\x1b[31m b", plain = "c", "two\nlines");
            tracing::error!(target: "h2::proto", long, "of a library");
        });
        let text = "1970-01-01T00:00:00.000000Z  WARN two\\u{a}lines path=\"a\\u001b[31m b\" plain=c\n";
        assert_eq!(told[0].text(false), text);
        assert!(told[0].text(true).contains("\x1b[33m WARN\x1b[0m"));
        let line: Value = serde_json::from_str(&told[1].clone().json()).unwrap();
        let hidden = lines(|| tracing::info!(name = "a\u{202e}\u{9b}\u{e0041}b", "told"));
        let json = hidden[0].clone().json();
        assert!(json.contains(r#""name":"a\u202e\u009b\udb40\udc41b""#), "{json}");
        assert!(hidden[0].text(false).ends_with(" told name=a\\u{202e}\\u{9b}\\u{e0041}b\n"));
        assert_eq!(line["library"], "h2::proto");
        assert_eq!(line["long"].as_str().unwrap().len(), TEXT_BYTES_MAX + "\u{2026}".len());
    }
}
