//! What an upstream's answer can be: the answer of its operation, or an error and nothing else.

use http::StatusCode;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::catalogue::Operation;
use crate::json_members::JsonMembers;

/// The members of Make's errors, of problem documents (RFC 9457), and of common gateways' errors.
const ERROR_MEMBERS: [&str; 13] = [
    "code", "detail", "details", "error", "errors", "instance", "message", "name", "status", "statusCode", "suberrors",
    "title", "type",
];

/// Can this body be an answer of the operation? One that cannot be is passed on to whoever asked, but not stored.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_answer(row: &Operation, status: StatusCode, body: &[u8]) -> Result<(), &'static str> {
    let Some(array) = row.array.as_deref().filter(|_| status == StatusCode::OK) else {
        let value: &RawValue = serde_json::from_slice(body).map_err(|_| "it is not JSON")?;
        return value.get().starts_with(['{', '[']).then_some(()).ok_or("it is neither an object nor an array");
    };
    let members: JsonMembers<'_> = serde_json::from_slice(body).map_err(|_| "it is not a JSON object")?;
    let is_array = members.get_only(array).is_some_and(|value| value.get().starts_with('['));
    is_array.then_some(()).ok_or("the array that it should have is not there, or there twice")
}

/// Does the body of an error tell of nothing but the error? In Make's form, a problem document's, or plain text.
pub(crate) fn is_error_alone(body: &[u8]) -> bool {
    match serde_json::from_slice(body) {
        Ok(error) => is_error(&error),
        Err(_) => str::from_utf8(body).is_ok_and(is_plain),
    }
}

fn is_error(value: &Value) -> bool {
    match value {
        Value::Object(members) => {
            members.iter().all(|(name, value)| ERROR_MEMBERS.contains(&&**name) && is_error(value))
        }
        Value::Array(values) => values.iter().all(is_error),
        Value::String(text) => is_plain(text),
        Value::Number(_) | Value::Bool(_) | Value::Null => true,
    }
}

/// Text that contains no JSON object and is no JSON array.
fn is_plain(text: &str) -> bool {
    !text.contains('{') && !text.trim_start_matches('\u{feff}').trim_start().starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn an_answer_of_an_operation_is_json_with_what_it_documents() {
        let catalogue = Catalogue::built_in();
        let check = |id: &str, body: &[u8]| check_answer(catalogue.row(id).unwrap(), StatusCode::OK, body).is_ok();
        for (id, array) in [
            ("organizations.list", "organizations"),
            ("organizations.usage", "data"),
            ("feature-controls.list", "featureControls"),
        ] {
            assert!(check(id, format!(r#" {{"{array}": [], "pg": {{}}}} "#).as_bytes()), "{id}");
            for bad in [
                "{}".to_owned(),
                "[]".to_owned(),
                format!(r#"{{"{array}":{{}}}}"#),
                format!(r#"{{"{array}":null}}"#),
                format!(r#"{{"{array}":[],"{array}":[]}}"#),
                format!(r#"{{"{array}":["#),
                format!(r#"{{"{array}":[]}} {{}}"#),
                format!("\u{feff}{{\"{array}\":[]}}"),
            ] {
                assert!(!check(id, bad.as_bytes()), "{id}: {bad}");
            }
        }
        assert!(check("organizations.get", br#"{"organization": {}}"#));
        for bad in ["", " ", "null", "1", "true", "\"text\"", "{", "<html>", "{\"a\":\"\u{1}\"}"] {
            assert!(!check("organizations.get", bad.as_bytes()) && !check("subscription.get", bad.as_bytes()), "{bad}");
        }
        assert!(check("subscription.get", b"{}"));
        assert!(!check("subscription.get", b"{\"a\":\"\xff\"}"), "not UTF-8");
    }

    #[test]
    fn an_error_tells_of_nothing_but_the_error() {
        for error in [
            "",
            "error code: 1010",
            "Requests limit for organization exceeded, please try again later.",
            "<html><h1>502 Bad Gateway</h1></html>",
            r#"{"message":"Access denied.","code":"SC403"}"#,
            r#"{"detail":["a","b"],"message":"m","code":"IM005","suberrors":[{"message":"'cols[0]' is odd","name":"Error"}]}"#,
            r#"{"type":"about:blank","title":"t","status":503,"detail":null,"instance":"i"}"#,
        ] {
            assert!(is_error_alone(error.as_bytes()), "{error}");
        }
        for other in [
            r#"{"organizations":[{"id":13}]}"#,
            r#"{"message":"m","organization":{"id":13}}"#,
            r#"{"message":"{\"id\":13}"}"#,
            r#"{"message":{"id":13}}"#,
            r#"{"suberrors":[{"message":"m","id":13}]}"#,
            r#"{"organizations":[{"id":13}"#,
            r#"{"message":"m"} {"id":13}"#,
            "\u{feff}{\"id\":13}",
            "\u{feff}[13",
            "<script>x = {id: 13}</script>",
        ] {
            assert!(!is_error_alone(other.as_bytes()), "{other}");
        }
        assert!(!is_error_alone(b"\xff\xfe{\0}\0"), "UTF-16");
    }
}
