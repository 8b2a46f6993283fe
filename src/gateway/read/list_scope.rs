//! Lists of organizations for callers that may access only some. The gateway fetches the complete list (one entry for all scopes), then
//! filters, sorts and pages it, so that pages are right for each caller (`docs/decisions/scoped-lists.md`).

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer_form::is_error_alone;
use crate::config::Scope;
use crate::gateway::admit::target::{QueryPair, Target, decoded, push_pair};
use crate::gateway::etag::strong_etag;
use crate::gateway::refusal::Refusal;
use crate::gateway::response::{PassedAnswer, Reply, ReplyBody};
use crate::json_members::JsonMembers;

/// Make's maximum and default page size for this list; a longer list cannot be fetched in one piece.
const WHOLE_LIMIT: usize = 10_000;
/// Make's parameter that selects columns.
pub(crate) const COLUMNS: &str = "cols[]";

/// The page that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListPage {
    /// Requested columns; empty for the upstream's default.
    columns: Vec<String>,
    sort_by: Option<String>,
    descending: bool,
    offset: usize,
    limit: usize,
    /// Parameters that the gateway does not understand, escaped: for the upstream, which may filter by them or refuse them.
    others: String,
}

impl ListPage {
    /// Reads `cols[]` and `pg[…]` from the target.
    #[must_use]
    pub(crate) fn of(target: &Target<'_>) -> Self {
        let number = |name| target.value(name).and_then(|text| text.parse().ok());
        Self {
            columns: target.query.iter().filter(|pair| is_columns(&pair.name)).filter_map(named).collect(),
            sort_by: target.value("pg[sortBy]"),
            descending: target.value("pg[sortDir]").is_some_and(|dir| dir.eq_ignore_ascii_case("desc")),
            offset: number("pg[offset]").unwrap_or(0),
            limit: number("pg[limit]").unwrap_or(WHOLE_LIMIT).min(WHOLE_LIMIT),
            others: target.query.iter().filter(|pair| !is_understood(pair)).fold(String::new(), |mut others, pair| {
                push_pair(&mut others, &pair.name, pair.value.as_deref());
                others
            }),
        }
    }

    /// Does the gateway understand all parameters, so that the complete list may be one in the cache?
    pub(crate) fn is_keyed(&self) -> bool {
        self.others.is_empty()
    }

    /// The query for the complete list with everything that this page needs: the requested columns, and those to filter and sort by.
    #[must_use]
    pub(crate) fn whole_query(&self) -> String {
        let mut columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        if !columns.is_empty() && !columns.contains(&"*") {
            columns.push("id");
            columns.extend(self.gateway_sort_column());
        }
        columns.sort_unstable();
        columns.dedup();
        let mut query = String::new();
        for column in columns {
            let escaped = escaped(column);
            push_pair(&mut query, COLUMNS, Some(if column == "*" { "*" } else { &escaped }));
        }
        if !self.others.contains("pg[limit]=") {
            push_pair(&mut query, "pg[limit]", Some(&WHOLE_LIMIT.to_string()));
        }
        if let Some(by) = self.upstream_sort_column() {
            push_pair(&mut query, "pg[sortBy]", Some(&escaped(by)));
            push_pair(&mut query, "pg[sortDir]", self.descending.then_some("desc").or(Some("asc")));
        }
        if !self.others.is_empty() {
            push_pair(&mut query, &self.others, None);
        }
        query
    }

    /// The column that the gateway sorts by; without one, the list keeps the upstream's order.
    fn gateway_sort_column(&self) -> Option<&'static str> {
        match (self.sort_by.as_deref(), self.descending) {
            (Some("id"), _) => Some("id"),
            (Some("name"), _) | (None, true) => Some("name"),
            (Some(_), _) | (None, false) => None,
        }
    }

    /// The column that the upstream sorts by: any other one, because the default columns may not include it, and only the upstream knows
    /// whether it exists.
    fn upstream_sort_column(&self) -> Option<&str> {
        self.sort_by.as_deref().filter(|by| !["id", "name"].contains(by))
    }

    /// Cuts this page for a caller of `scope` out of `list` (the upstream's complete answer, with the array in its member `array`).
    /// Values keep the upstream's exact text.
    ///
    /// # Errors
    /// The reason, if the list cannot be narrowed; then none of it may be shown.
    pub(crate) fn cut_page(&self, list: &[u8], array: &str, scope: &Scope) -> Result<Vec<u8>, &'static str> {
        let whole: JsonMembers<'_> = serde_json::from_slice(list).map_err(|_| "it is not a JSON object")?;
        let mut seen = organizations(&whole, array)?;
        seen.retain(|(id, _)| scope.covers(*id));
        let mut seen: Vec<_> = seen.into_iter().map(|(_, row)| row).collect();
        self.sort(&mut seen);
        let strip = |name: &str| !self.columns.is_empty() && !self.columns.iter().any(|c| c == name || c == "*");
        let page: Vec<String> = seen
            .iter()
            .skip(self.offset)
            .take(self.limit)
            .map(|row| row.render_only(|name| !is_added(name, self) || !strip(name)))
            .collect();
        Ok(self.render(&whole, array, &page))
    }

    /// The upstream's list is sorted by name already, in its own collation. That order is kept, so that pages with and without `sortBy`
    /// match, unless the list is not sorted after all.
    fn sort(&self, seen: &mut [JsonMembers<'_>]) {
        let column = match self.sort_by.as_deref() {
            None | Some("name") => "name",
            Some("id") => "id",
            Some(_) => return, // the upstream sorted it already
        };
        let value = |row: &JsonMembers<'_>| row.get(column).map(|value| value.get().to_owned());
        let ordered = |a: &JsonMembers<'_>, b: &JsonMembers<'_>| compare(a.get(column), b.get(column));
        let comes_sorted = column == "name" && seen.is_sorted_by_key(value);
        if !comes_sorted {
            seen.sort_by(ordered);
        }
        if self.descending {
            seen.reverse();
            // Equal rows keep their order in both directions.
            seen.chunk_by_mut(|a, b| value(a) == value(b)).for_each(<[_]>::reverse);
        }
    }

    fn render(&self, whole: &JsonMembers<'_>, array: &str, page: &[String]) -> Vec<u8> {
        let spelled = whole.render_with(|name, value| match name {
            _ if name == array => Some(format!("[{}]", page.join(",")).into()),
            "pg" => Some(self.page_member(value).into()),
            // Drop all other members: they may be about organizations that the caller may not see.
            _ => None,
        });
        spelled.into_bytes()
    }

    /// The upstream's `pg` member with the caller's values. It contains no count that includes organizations the caller may not see.
    fn page_member(&self, whole: &RawValue) -> String {
        let Ok(whole) = serde_json::from_str::<JsonMembers<'_>>(whole.get()) else { return "{}".to_owned() };
        whole.render_with(|name, value| match name {
            "sortBy" => Some(Value::from(self.sort_by.as_deref().unwrap_or("name")).to_string().into()),
            "sortDir" => Some(Value::from(if self.descending { "desc" } else { "asc" }).to_string().into()),
            "limit" => Some(self.limit.to_string().into()),
            "offset" => Some(self.offset.to_string().into()),
            "returnTotalCount" => serde_json::from_str::<bool>(value.get()).ok().map(|flag| flag.to_string().into()),
            _ => None,
        })
    }
}

/// Every organization of a list, with its id.
///
/// # Errors
/// The reason, if it is not certain which organization each of them is.
fn organizations<'a>(whole: &'a JsonMembers<'a>, array: &str) -> Result<Vec<(u64, JsonMembers<'a>)>, &'static str> {
    if whole.may_repeat_names() {
        return Err("it has a member twice");
    }
    let rows = whole.get_only(array).ok_or("it has no array of organizations")?;
    let rows: Vec<JsonMembers<'_>> =
        serde_json::from_str(rows.get()).map_err(|_| "its organizations are not objects")?;
    if rows.len() >= WHOLE_LIMIT {
        return Err("it is too long to fetch in one piece");
    }
    let with_id = |row: JsonMembers<'a>| {
        if row.may_repeat_names() {
            return Err("an organization has a member twice");
        }
        let id = row.get_only("id").and_then(|id| serde_json::from_str(id.get()).ok());
        id.map(|id| (id, row)).ok_or("an organization has no id")
    };
    rows.into_iter().map(with_id).collect()
}

/// Can callers of every scope be given their part of this list?
pub(crate) fn is_narrowable(list: &[u8], array: &str) -> bool {
    serde_json::from_slice(list).is_ok_and(|whole| organizations(&whole, array).is_ok())
}

/// Does the gateway do itself what this parameter asks for?
fn is_understood(pair: &QueryPair<'_>) -> bool {
    let value = pair.value.as_deref().map(decoded).unwrap_or_default();
    match &*pair.name {
        "pg[limit]" | "pg[offset]" => value.parse::<usize>().is_ok(),
        "pg[sortDir]" => ["asc", "desc"].iter().any(|dir| value.eq_ignore_ascii_case(dir)),
        name => name == "pg[sortBy]" || is_columns(name),
    }
}

/// Make treats `cols[]`, `cols` and `cols[0]` alike, and its clients use all three.
fn is_columns(name: &str) -> bool {
    let index = |rest: &str| rest.strip_prefix('[')?.strip_suffix(']').map(|i| i.bytes().all(|b| b.is_ascii_digit()));
    name.strip_prefix("cols").is_some_and(|rest| rest.is_empty() || index(rest) == Some(true))
}

fn named(pair: &QueryPair<'_>) -> Option<String> {
    pair.value.as_deref().filter(|column| !column.is_empty()).map(decoded)
}

/// Columns that the gateway may have added to the query.
fn is_added(name: &str, page: &ListPage) -> bool {
    name == "id" || page.gateway_sort_column() == Some(name)
}

/// Sorts numbers by value, text first without and then with regard to case, other values by their JSON text, and missing values last.
#[derive(PartialEq, PartialOrd)]
enum SortKey {
    Number { value: f64, spelled: String },
    Text { folded: String, text: String },
    Other { spelled: String },
    Missing,
}

impl SortKey {
    fn of(value: Option<&RawValue>) -> Self {
        let Some(raw) = value else { return Self::Missing };
        let spelled = raw.get().to_owned();
        if let Ok(value) = serde_json::from_str(&spelled) {
            Self::Number { value, spelled }
        } else if let Ok(text) = serde_json::from_str::<String>(&spelled) {
            Self::Text { folded: text.to_lowercase(), text }
        } else {
            Self::Other { spelled }
        }
    }
}

fn compare(a: Option<&RawValue>, b: Option<&RawValue>) -> Ordering {
    // All values are comparable, because JSON has no NaN.
    SortKey::of(a).partial_cmp(&SortKey::of(b)).unwrap_or(Ordering::Equal)
}

fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Narrows a complete list to the caller's page. Whatever else the upstream answered passes only if it is an error and nothing else.
///
/// # Errors
/// If the answer could show an organization that the caller may not see.
pub(crate) fn narrow(scope: &Scope, array: Option<&str>, page: &ListPage, mut reply: Reply) -> Result<Reply, Refusal> {
    let (status, headers, whole): (_, &HeaderMap, &Bytes) = reply.body.parts();
    if status != StatusCode::OK {
        let is_error = status.is_client_error() || status.is_server_error();
        let why = "the answer is neither a list nor an error in Make's form";
        return if is_error && is_error_alone(whole) { Ok(reply) } else { Err(Refusal::NotNarrowable { why }) };
    }
    let body = page.cut_page(whole, array.unwrap_or_default(), scope).map_err(|why| Refusal::NotNarrowable { why })?;
    let (body, age) = (Bytes::from(body), reply.body.entry().cloned());
    // The other headers describe the whole list.
    let date = headers.get(header::DATE).map(|date| (header::DATE, date.clone()));
    let headers = date.into_iter().chain([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let (headers, etag) = (headers.collect(), Some(strong_etag(&HeaderMap::new(), &body)));
    reply.body =
        ReplyBody::Made { passed: Arc::new(PassedAnswer { status, headers, body, etag, is_counted: false }), of: age };
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> ListPage {
        let uri = format!("/api/v2/organizations?{query}").parse().unwrap();
        ListPage::of(&Target::parse(&uri).unwrap())
    }

    const LIST: &str = r#"{"organizations":[{"id":5,"name":"b","license":{"operations":800000000000}},{"id":6,"name":"A"},{"id":7,"name":"c"}],"pg":{"sortBy":"name","sortDir":"asc","limit":10000,"offset":0,"totalCount":3}}"#;

    fn cut(query: &str, ids: &[u64]) -> String {
        String::from_utf8(page(query).cut_page(LIST.as_bytes(), "organizations", &Scope::Only(ids.to_vec())).unwrap())
            .unwrap()
    }

    #[test]
    fn a_scoped_caller_sees_its_own_with_a_page_that_is_right_for_it() {
        let echo = |by: &str, dir: &str, limit: u32, offset: u32| {
            format!(r#""pg":{{"sortBy":"{by}","sortDir":"{dir}","limit":{limit},"offset":{offset}}}"#)
        };
        assert_eq!(
            cut("", &[5, 7]),
            format!(
                r#"{{"organizations":[{{"id":5,"name":"b","license":{{"operations":800000000000}}}},{{"id":7,"name":"c"}}],{}}}"#,
                echo("name", "asc", 10000, 0)
            )
        );
        assert_eq!(
            cut("cols[]=name&pg[sortBy]=id&pg[sortDir]=desc&pg[limit]=1&pg[offset]=1", &[5, 6, 7]),
            format!(r#"{{"organizations":[{{"name":"A"}}],{}}}"#, echo("id", "desc", 1, 1))
                .replace(r#""name":"A""#, r#""name":"A""#)
        );
        assert!(cut("pg[sortBy]=name", &[5, 6]).starts_with(r#"{"organizations":[{"id":6,"name":"A"},{"id":5"#));
    }

    #[test]
    fn the_whole_list_is_asked_for_with_what_narrowing_needs() {
        assert_eq!(page("").whole_query(), "pg[limit]=10000");
        assert_eq!(page("cols[]=name&pg[limit]=2&pg[offset]=4").whole_query(), "cols[]=id&cols[]=name&pg[limit]=10000");
        let odd = page("zone=eu1&pg[limit]=abc&pg[sortDir]=down&x");
        assert_eq!(odd.whole_query(), "zone=eu1&pg[limit]=abc&pg[sortDir]=down&x");
        assert!(!odd.is_keyed() && page("pg[limit]=2&cols[]=id").is_keyed());
        assert_eq!(page("cols[]=*").whole_query(), "cols[]=*&pg[limit]=10000");
        assert_eq!(page("cols[]=&cols=").whole_query(), "pg[limit]=10000");
        assert_eq!(
            page("cols=b&cols[1]=a&cols1=c&cols[x]=d").whole_query(),
            "cols[]=a&cols[]=b&cols[]=id&pg[limit]=10000&cols1=c&cols[x]=d"
        );
        assert_eq!(
            page("cols[]=zone&pg[sortDir]=desc").whole_query(),
            "cols[]=id&cols[]=name&cols[]=zone&pg[limit]=10000"
        );
        assert_eq!(page("pg[sortBy]=name").whole_query(), page("pg[sortBy]=id&pg[sortDir]=desc").whole_query());
        assert_eq!(page("pg[sortBy]=zone").whole_query(), "pg[limit]=10000&pg[sortBy]=zone&pg[sortDir]=asc");
    }

    #[test]
    fn a_list_in_which_an_organization_could_be_another_shows_nothing() {
        for items in [
            r#"{"name":"b"}"#,
            r#"{"id":"5"}"#,
            r#"{"id":5.0}"#,
            r#"{"id":5e0}"#,
            r#"{"id":-5}"#,
            r#"{"id":null}"#,
            r#"{"id":[5]}"#,
            r#"{"id":18446744073709551621}"#,
            r#"{"id":5,"id":6}"#,
            r#"{"id":5,"\u0069d":6}"#,
            r#"{"id":5,"ID":6}"#,
            r#"{"Id":5}"#,
            r#"{"id":5,"name":"a","name":"b"}"#,
            r#"[{"id":5}]"#,
            "5",
            "null",
        ] {
            let list = format!(r#"{{"organizations":[{{"id":5}},{items}],"pg":{{}}}}"#);
            assert!(page("").cut_page(list.as_bytes(), "organizations", &Scope::Only(vec![5])).is_err(), "{items}");
            assert!(!is_narrowable(list.as_bytes(), "organizations"), "{items}");
        }
        assert!(is_narrowable(br#"{"organizations":[{"\u0069d":5}]}"#, "organizations"));
    }

    #[test]
    fn nothing_of_other_organizations_is_in_the_page_member() {
        let list = br#"{"organizations":[],"pg":{"returnTotalCount":{"id":6},"totalCount":9,"limit":[6]}}"#;
        let cut = page("").cut_page(list, "organizations", &Scope::Only(vec![5])).unwrap();
        assert_eq!(cut, br#"{"organizations":[],"pg":{"limit":10000}}"#);
    }
}
