//! The query string as Make's servers parse it: brackets escaped or not, `cols[]=a` and `cols=a` alike.

use std::cmp::Ordering;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::answer::MakeError;

/// Make's default and maximum page size.
const PAGE_MAX: usize = 10_000;

/// The decoded pairs of a query, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct ListQuery(Vec<(String, String)>);

impl ListQuery {
    pub(super) fn parse(raw: &str) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        Self(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// The first value of a parameter that has one value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// The requested columns; `None`: the default ones. `*` stays in the list for the caller to handle.
    fn columns(&self) -> Option<Vec<&str>> {
        let is_column = |key: &str| {
            key.strip_prefix("cols").is_some_and(|rest| {
                rest.is_empty()
                    || rest
                        .strip_prefix('[')
                        .and_then(|index| index.strip_suffix(']'))
                        .is_some_and(|index| index.bytes().all(|b| b.is_ascii_digit()))
            })
        };
        let asked: Vec<&str> = self
            .0
            .iter()
            .filter(|(key, value)| is_column(key) && !value.is_empty())
            .map(|(_, value)| value.as_str())
            .collect();
        (!asked.is_empty()).then_some(asked)
    }

    /// Keeps only the requested columns of an object (`*`: all; none requested: `default`), in the object's order.
    pub(super) fn project(&self, mut whole: Value, default: Option<&[&str]>) -> Value {
        let asked = self.columns();
        let keep = match (&asked, default) {
            (Some(asked), _) if asked.contains(&"*") => return whole,
            (Some(asked), _) => asked.as_slice(),
            (None, Some(default)) => default,
            (None, None) => return whole,
        };
        if let Some(members) = whole.as_object_mut() {
            members.retain(|name, _| keep.contains(&name.as_str()));
        }
        whole
    }

    /// Parses `pg[…]`: sort column and direction (with the operation's defaults), page size and offset.
    pub(super) fn page(&self, sort_by: &str, descending: bool, sortable: &[&str]) -> Result<MakePage, MakeError> {
        let mut errors = Vec::new();
        let mut number = |name: &str, default: usize| match self.get(name) {
            None => default,
            Some(text) => text.parse().unwrap_or_else(|_| {
                errors.push(format!("Invalid value of parameter '{name}': write a whole number that is not negative."));
                default
            }),
        };
        let limit = number("pg[limit]", PAGE_MAX).min(PAGE_MAX);
        let offset = number("pg[offset]", 0);
        let sort_by = self.get("pg[sortBy]").unwrap_or(sort_by).to_owned();
        if !sortable.contains(&sort_by.as_str()) {
            errors.push(format!("Invalid value of parameter 'pg[sortBy]': write one of {}.", sortable.join(", ")));
        }
        let descending = match self.get("pg[sortDir]") {
            None => descending,
            Some("asc") => false,
            Some("desc") => true,
            Some(_) => {
                errors.push("Invalid value of parameter 'pg[sortDir]': write asc or desc.".to_owned());
                descending
            }
        };
        if errors.is_empty() {
            Ok(MakePage { sort_by, descending, limit, offset })
        } else {
            Err(MakeError::Invalid(errors))
        }
    }
}

/// The requested page of a collection.
#[derive(Debug)]
pub(super) struct MakePage {
    sort_by: String,
    descending: bool,
    limit: usize,
    offset: usize,
}

impl MakePage {
    /// Sorts by the page's column (stable) and cuts out the page.
    pub(super) fn cut(&self, mut rows: Vec<Value>) -> Vec<Value> {
        rows.sort_by(|a, b| {
            let order = compare(a.get(&self.sort_by), b.get(&self.sort_by));
            if self.descending { order.reverse() } else { order }
        });
        rows.into_iter().skip(self.offset).take(self.limit).collect()
    }

    /// The page parameters that Make echoes with the page.
    pub(super) fn echo(&self) -> Value {
        json!({
            "sortBy": self.sort_by,
            "limit": self.limit,
            "sortDir": if self.descending { "desc" } else { "asc" },
            "offset": self.offset,
            "returnTotalCount": false,
        })
    }
}

/// Absent first, then booleans, numbers, text; text by code point.
fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let rank = |value: Option<&Value>| match value {
        None | Some(Value::Null | Value::Array(_) | Value::Object(_)) => 0,
        Some(Value::Bool(_)) => 1,
        Some(Value::Number(_)) => 2,
        Some(Value::String(_)) => 3,
    };
    match (a, b) {
        (Some(Value::Bool(a)), Some(Value::Bool(b))) => a.cmp(b),
        (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_u64().cmp(&b.as_u64()),
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn projected(raw: &str) -> Value {
        ListQuery::parse(raw).project(json!({ "id": 1, "name": "A", "zone": "z" }), Some(&["id", "zone"]))
    }

    #[test]
    fn columns_are_read_in_every_spelling_that_clients_send() {
        for raw in ["cols%5B%5D=name", "cols[]=name", "cols=name", "cols[0]=name"] {
            assert_eq!(projected(raw), json!({ "name": "A" }), "{raw}");
        }
        assert_eq!(projected("cols[]=*"), json!({ "id": 1, "name": "A", "zone": "z" }));
        assert_eq!(projected("cols="), json!({ "id": 1, "zone": "z" }));
        assert_eq!(projected("colsx=name"), json!({ "id": 1, "zone": "z" }));
    }

    #[test]
    fn a_page_is_sorted_cut_and_echoed() {
        let query = ListQuery::parse("pg%5BsortBy%5D=id&pg[sortDir]=desc&pg[limit]=2&pg[offset]=1");
        let page = query.page("name", false, &["id", "name"]).unwrap();
        let rows = (1..=4).map(|id| json!({ "id": id })).collect();
        assert_eq!(page.cut(rows), [json!({ "id": 3 }), json!({ "id": 2 })]);
        assert_eq!(page.echo()["sortDir"], "desc");
        assert_eq!(page.echo()["limit"], 2);
    }

    #[test]
    fn each_wrong_page_parameter_is_named() {
        let query = ListQuery::parse("pg[limit]=-1&pg[sortDir]=up&pg[sortBy]=colour");
        let Err(MakeError::Invalid(errors)) = query.page("name", false, &["name"]) else { panic!("accepted") };
        assert_eq!(errors.len(), 3);
    }
}
