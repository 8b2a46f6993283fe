//! Where a record leads to, and words for a shell.

use serde_json::{Map, Value};

use super::super::query::encode;
use super::super::table::json_cell;

/// The page that explains the request of this record, if it says whose and what it was. Parameters that may not be recorded are missing
/// in its target.
pub(super) fn explain(record: &Map<String, Value>) -> Option<String> {
    let text = |name: &str| record.get(name).and_then(Value::as_str);
    let (caller, method, path) = (text("caller")?, text("method")?, text("path")?);
    let query = record.get("query").and_then(Value::as_object).into_iter().flatten();
    let pairs: Vec<String> = query
        .flat_map(|(name, value)| {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            values
                .iter()
                .map(|value| format!("{}={}", encode(name), encode(&json_cell(Some(value)))))
                .collect::<Vec<_>>()
        })
        .collect();
    let target = if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) };
    Some(format!("/explain?caller={}&method={}&target={}", encode(caller), encode(method), encode(&target)))
}

/// A text as one word of a POSIX shell.
pub(super) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_leads_to_the_explanation_of_its_request() {
        let of = |record: Value| explain(record.as_object().unwrap());
        let record = json!({"caller": "a b", "method": "GET", "path": "/api/v2/x", "query": {"cols[]": ["a", "b"], "pg[limit]": 5}});
        let target = "%2Fapi%2Fv2%2Fx%3Fcols%255B%255D%3Da%26cols%255B%255D%3Db%26pg%255Blimit%255D%3D5";
        assert_eq!(of(record).unwrap(), format!("/explain?caller=a%20b&method=GET&target={target}"));
        assert_eq!(of(json!({"method": "GET", "path": "/x"})), None);
    }

    #[test]
    fn any_text_is_one_word_of_a_shell() {
        assert_eq!(shell_word("/etc/makegate.toml"), "/etc/makegate.toml");
        assert_eq!(shell_word("/my files/it's"), r"'/my files/it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
