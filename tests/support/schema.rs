//! Is a value what a JSON schema of an `OpenAPI` document says? Of the schema language it knows what the documents use, and fails for
//! anything else, so that nothing goes unchecked.

use serde_json::Value;

/// What is wrong with `value`, each with its place. A member that the schema does not name is wrong, too, unless the schema lets others in.
pub(crate) fn mistakes(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "", &mut found);
    found
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = document.pointer(reference.trim_start_matches('#'));
        return check(document, target.unwrap_or_else(|| panic!("{reference} is not there")), value, at, found);
    }
    for (keyword, rule) in schema.as_object().unwrap_or_else(|| panic!("{at}: no schema: {schema}")) {
        let is_met = match (keyword.as_str(), value) {
            ("type", _) => types(rule).any(|kind| is_of(value, kind)),
            ("enum", _) => rule.as_array().unwrap().contains(value),
            ("minimum", Value::Number(number)) => number.as_f64() >= rule.as_f64(),
            ("maximum", Value::Number(number)) => number.as_f64() <= rule.as_f64(),
            ("minLength", Value::String(text)) => text.len() as u64 >= rule.as_u64().unwrap(),
            ("maxLength", Value::String(text)) => text.len() as u64 <= rule.as_u64().unwrap(),
            ("pattern", Value::String(text)) => has_form(text, rule.as_str().unwrap()),
            ("format", Value::String(text)) => is_time(text, rule.as_str().unwrap()),
            ("required", Value::Object(members)) => {
                let lacking =
                    rule.as_array().unwrap().iter().filter(|name| !members.contains_key(name.as_str().unwrap()));
                found.extend(lacking.map(|name| format!("{at}: lacks {name}")));
                true
            }
            ("items", Value::Array(items)) => {
                items.iter().for_each(|item| check(document, rule, item, &format!("{at}[]"), found));
                true
            }
            // Looked at below, or not about a value of this kind, or not about values.
            (
                "properties"
                | "additionalProperties"
                | "description"
                | "minimum"
                | "maximum"
                | "minLength"
                | "maxLength"
                | "pattern"
                | "format"
                | "required"
                | "items",
                _,
            ) => true,
            _ => panic!("{at}: the keyword {keyword} is unknown here"),
        };
        if !is_met {
            found.push(format!("{at}: {value} is not {keyword} {rule}"));
        }
    }
    if let Value::Object(members) = value {
        check_members(document, schema, members, at, found);
    }
}

/// An object without `properties` may have any members.
fn check_members(
    document: &Value,
    schema: &Value,
    members: &serde_json::Map<String, Value>,
    at: &str,
    found: &mut Vec<String>,
) {
    let (named, others) = (schema.get("properties"), schema.get("additionalProperties"));
    for (name, value) in members {
        let at = format!("{at}/{name}");
        match (named.and_then(|named| named.get(name)), others) {
            (Some(rule), _) => check(document, rule, value, &at, found),
            (None, Some(Value::Bool(true))) => {}
            (None, Some(rule)) => check(document, rule, value, &at, found),
            (None, None) if named.is_none() => {}
            (None, None) => found.push(format!("{at}: is not described")),
        }
    }
}

fn types(rule: &Value) -> impl Iterator<Item = &str> {
    let several = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
    rule.as_str().into_iter().chain(several)
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("there is no type {kind}"),
    }
}

/// The patterns of the documents, in words.
fn has_form(text: &str, pattern: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match pattern {
        "^MG[0-9]{3}$" => text.strip_prefix("MG").is_some_and(|number| number.len() == 3 && digits(number)),
        "^[0-9]+$" => digits(text),
        "^[0-9]+\\.[0-9]{2}$" => {
            text.split_once('.').is_some_and(|(one, two)| digits(one) && two.len() == 2 && digits(two))
        }
        "^[0-9a-f]{8}$" => text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
        "^[A-Za-z0-9$_]+$" => {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"$_".contains(&byte))
        }
        _ => panic!("the pattern {pattern} is unknown here"),
    }
}

fn is_time(text: &str, format: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "email" => text.contains('@'),
        "uri" => text.contains("://"),
        _ => panic!("the format {format} is unknown here"),
    }
}
