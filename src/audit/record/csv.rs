//! Records as CSV (RFC 4180) for spreadsheets, escaped so that no cell is a formula.

use serde_json::{Map, Value};

use crate::ids::escape_invisible_in_lines;

/// The columns: every field of a record, in the order of the documentation.
pub const COLUMNS: [&str; 38] = [
    "seq", "time", "kind", "intent", "request", "caller", "key", "credential", "operator", "peer", "operation",
    "organization", "method", "path", "query", "fields", "status", "answer", "refusal", "filled_by", "attempts",
    "spent", "upstream_status", "outcome", "quota_wait_us", "duration_us", "bytes", "trace", "event", "detail",
    "fingerprint", "idempotency", "marks", "adopted", "count", "codes", "first", "last",
];

/// The header row, without its line ending.
#[must_use]
pub fn csv_header() -> String {
    COLUMNS.join(",")
}

/// The row for a record's line, without its line ending. A line that is not a record gives an empty row.
#[must_use]
pub fn csv(line: &str) -> String {
    let record: Map<String, Value> = serde_json::from_str(line).unwrap_or_default();
    COLUMNS.map(|column| record.get(column).map(cell).unwrap_or_default()).join(",")
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => csv_cell(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            csv_cell(&value.to_string())
        }
    }
}

/// One cell: quoted where necessary, prefixed with an apostrophe where a spreadsheet would see a formula, and with nothing hidden in it.
#[must_use]
pub fn csv_cell(text: &str) -> String {
    let text = escape_invisible_in_lines(text);
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_never_formulas() {
        let line =
            r#"{"seq":7,"caller":"=cmd|' /C calc'!A0","path":"/a,b","query":{"q":"x"},"detail":"say \"hi\"\nthere"}"#;
        let row = csv(line);
        assert_eq!(
            row,
            r#"7,,,,,'=cmd|' /C calc'!A0,,,,,,,,"/a,b","{""q"":""x""}",,,,,,,,,,,,,,,"say ""hi""
there",,,,,,,,"#
        );
        for text in ["+1", "-1", "@x", "\tx"] {
            assert_eq!(csv_cell(text), format!("'{text}"));
        }
        assert_eq!(csv_cell("plain - text"), "plain - text");
        assert_eq!(csv_cell("\u{202e}=1\u{e0041}"), "\\u{202e}=1\\u{e0041}");
        assert_eq!(csv_header().split(',').count(), csv("{}").split(',').count());
    }
}
