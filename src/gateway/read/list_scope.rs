//! Lists of organizations for callers that may access only some. The gateway fetches the complete list (one entry for all scopes), then
//! filters, sorts and pages it, so that pages are right for each caller (`docs/decisions/scoped-lists.md`).

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use super::answer_form::is_error_alone;
use crate::config::Scope;
use crate::gateway::admit::target::{QueryPair, Target, decoded, push_pair};
use crate::gateway::etag::etag_of;
use crate::gateway::refusal::Refusal;
use crate::gateway::response::{PassedAnswer, Reply, ReplyBody};
use crate::json_members::JsonMembers;
use crate::list_index::{ListIndex, ListRow, TextRange, WHOLE_LIMIT};

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

    /// The rows of this page for a caller of `scope`.
    pub(crate) fn rows(&self, list: &ListIndex, scope: &Scope) -> PageRows {
        let mut seen: Vec<ListRow> = list.rows().iter().filter(|row| scope.covers(row.id)).copied().collect();
        // Equal rows keep their order in both directions.
        match (self.sort_by.as_deref(), self.descending) {
            (None | Some("name"), false) => seen.sort_by_key(|row| row.name_rank),
            (None | Some("name"), true) => seen.sort_by_key(|row| Reverse(row.name_rank)),
            (Some("id"), false) => seen.sort_by_key(|row| row.id),
            (Some("id"), true) => seen.sort_by_key(|row| Reverse(row.id)),
            (Some(_), _) => {} // the upstream sorted it already
        }
        let rows = seen.iter().skip(self.offset).take(self.limit).map(|row| row.text).collect();
        PageRows { rows, page_member: list.page_member() }
    }

    /// Writes this page with the rows of `list`, the upstream's complete answer, whose organizations are in its member `array`. Values
    /// keep the upstream's exact text. All other members are left out: they may be about organizations that the caller may not see.
    pub(crate) fn cut(&self, list: &[u8], array: &str, page: &PageRows) -> String {
        let mut out = String::with_capacity(page.bytes() + 256);
        out.push('{');
        out.push_str(&Value::from(array).to_string());
        out.push_str(":[");
        for (at, row) in page.rows.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            self.push_row(&mut out, row.in_body(list));
        }
        out.push(']');
        if let Some(member) = page.page_member {
            out.push_str(",\"pg\":");
            out.push_str(&self.page_member(member.in_body(list)));
        }
        out.push('}');
        out
    }

    /// Reads a complete list and cuts this page out of it.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn cut_whole(&self, list: &[u8], array: &str, scope: &Scope) -> Result<String, &'static str> {
        ListIndex::of(list, array).map(|index| self.cut(list, array, &self.rows(&index, scope)))
    }

    /// Leaves out the columns that the gateway added.
    fn push_row(&self, out: &mut String, row: &str) {
        let is_asked_for = |name: &str| self.columns.is_empty() || self.columns.iter().any(|c| c == name || c == "*");
        if is_asked_for("id") && self.gateway_sort_column().is_none_or(is_asked_for) {
            out.push_str(row);
        } else if let Ok(members) = serde_json::from_str::<JsonMembers<'_>>(row) {
            out.push_str(&members.render_only(|name| !is_added(name, self) || is_asked_for(name)));
        }
    }

    /// The upstream's `pg` member with the caller's values. It contains no count that includes organizations the caller may not see.
    fn page_member(&self, whole: &str) -> String {
        let Ok(whole) = serde_json::from_str::<JsonMembers<'_>>(whole) else { return "{}".to_owned() };
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

/// The rows of one page, in its order, and the list's member `pg`.
pub(crate) struct PageRows {
    rows: Vec<TextRange>,
    page_member: Option<TextRange>,
}

impl PageRows {
    fn bytes(&self) -> usize {
        self.rows.iter().chain(&self.page_member).map(|text| text.len() + 1).sum()
    }
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

fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// An answer to be narrowed to a caller's page.
pub(crate) struct Narrowing<'a> {
    scope: &'a Scope,
    /// The member with the organizations.
    array: &'a str,
    page: &'a ListPage,
    reply: Reply,
    /// Known already, if the list is in the cache.
    rows: Option<PageRows>,
}

impl<'a> Narrowing<'a> {
    pub(crate) fn new(scope: &'a Scope, array: Option<&'a str>, page: &'a ListPage, reply: Reply) -> Self {
        let index = reply.body.as_entry().and_then(|entry| entry.list.as_ref());
        let rows = index.map(|list| page.rows(list, scope));
        Self { scope, array: array.unwrap_or_default(), page, reply, rows }
    }

    /// How many bytes must be read.
    pub(crate) fn bytes(&self) -> usize {
        let (_, _, whole) = self.reply.body.parts();
        self.rows.as_ref().map_or(whole.len(), PageRows::bytes)
    }

    /// Narrows a complete list to the caller's page. Whatever else the upstream answered passes only if it is an error and nothing else.
    ///
    /// # Errors
    /// If the answer could show an organization that the caller may not see.
    pub(crate) fn narrow(self) -> Result<Reply, Refusal> {
        let Self { scope, array, page, mut reply, rows } = self;
        let (status, headers, whole): (_, &HeaderMap, &Bytes) = reply.body.parts();
        if status != StatusCode::OK {
            let is_error = status.is_client_error() || status.is_server_error();
            let why = "the answer is neither a list nor an error in Make's form";
            return if is_error && is_error_alone(whole) { Ok(reply) } else { Err(Refusal::NotNarrowable { why }) };
        }
        let rows = match rows {
            Some(rows) => rows,
            None => {
                let list = ListIndex::of(whole, array).map_err(|why| Refusal::NotNarrowable { why })?;
                page.rows(&list, scope)
            }
        };
        let body = Bytes::from(page.cut(whole, array, &rows));
        let of = reply.body.as_entry().cloned();
        // The other headers describe the whole list.
        let date = headers.get(header::DATE).map(|date| (header::DATE, date.clone()));
        let headers = date.into_iter().chain([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let (headers, etag) = (headers.collect(), Some(etag_of(&body)));
        let passed = PassedAnswer { status, headers, body, etag, is_counted: false };
        reply.body = ReplyBody::Made { passed: Arc::new(passed), of };
        Ok(reply)
    }
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
        cut_of(LIST, query, ids).unwrap()
    }

    fn cut_of(list: &str, query: &str, ids: &[u64]) -> Result<String, &'static str> {
        page(query).cut_whole(list.as_bytes(), "organizations", &Scope::Only(ids.to_vec()))
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
            assert!(cut_of(&list, "", &[5]).is_err(), "{items}");
        }
        assert!(cut_of(r#"{"organizations":[{"\u0069d":5}]}"#, "", &[5]).is_ok());
    }

    #[test]
    fn nothing_of_other_organizations_is_in_the_page_member() {
        let list = r#"{"organizations":[],"pg":{"returnTotalCount":{"id":6},"totalCount":9,"limit":[6]}}"#;
        assert_eq!(cut_of(list, "", &[5]).unwrap(), r#"{"organizations":[],"pg":{"limit":10000}}"#);
    }
}
