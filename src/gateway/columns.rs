//! Fewer columns than an entry holds (`cache.column_subsets`): a list that is asked for with `cols[]` is cut from one in memory that
//! has more columns, where what the upstream would answer is known: all else that was asked is equal, and every row has every column.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::json_members::JsonMembers;
use super::list_scope::COLUMNS;
use super::target::decoded;

/// Lists of which it is known in which columns they were stored. When there are more, all are forgotten: they are hints.
const LISTS_MAX: usize = 1_000;
/// Choices of columns that are remembered of one list.
const CHOICES_MAX: usize = 8;

/// Which columns a cache key asks for, and of what.
#[derive(Debug, PartialEq, Eq)]
struct ColumnChoice {
    /// The key without them: the list with the upstream's own choice.
    list: String,
    /// Decoded.
    columns: Vec<String>,
}

impl ColumnChoice {
    /// `None`: the key chooses no columns.
    fn of(key: &str) -> Option<Self> {
        let (path, query) = key.split_once('?')?;
        let column = |pair: &str| Some(decoded(pair.strip_prefix(COLUMNS)?.strip_prefix('=')?));
        let columns: Vec<_> = query.split('&').filter_map(column).collect();
        let rest: Vec<_> = query.split('&').filter(|pair| column(pair).is_none()).collect();
        let list = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
        (!columns.is_empty()).then_some(Self { list, columns })
    }

    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|chosen| chosen == column)
    }
}

/// In which columns lists were stored.
#[derive(Debug, Default)]
pub(super) struct StoredColumns(Mutex<HashMap<String, Vec<Arc<str>>>>);

impl StoredColumns {
    /// An entry of this key was stored.
    pub(super) fn stored(&self, key: &Arc<str>) {
        let Some(choice) = ColumnChoice::of(key) else { return };
        let mut known = self.known();
        if known.len() >= LISTS_MAX && !known.contains_key(&choice.list) {
            known.clear();
        }
        let keys = known.entry(choice.list).or_default();
        keys.retain(|other| other != key);
        keys.insert(0, key.clone());
        keys.truncate(CHOICES_MAX);
    }

    /// The answer to `key` of an entry that has more columns, newest choices first. `held`: the entry of a key, if it may answer; of its
    /// body, `array` is the member that has the rows.
    pub(super) fn cut<E>(
        &self,
        key: &str,
        array: &str,
        held: impl Fn(&str) -> Option<(E, Bytes)>,
    ) -> Option<(E, Vec<u8>)> {
        let choice = ColumnChoice::of(key).filter(|choice| !choice.has("*"))?;
        let known = self.known().get(&choice.list).cloned().unwrap_or_default();
        let more = known.iter().filter(|other| {
            let other = ColumnChoice::of(other);
            other.is_some_and(|other| {
                other.columns.len() > choice.columns.len() && choice.columns.iter().all(|c| other.has(c))
            })
        });
        let of = |key: &str, chosen| {
            held(key).and_then(|(entry, body)| Some((entry, fewer(&body, array, &choice, chosen)?)))
        };
        more.map(|key| &**key).find_map(|key| of(key, true)).or_else(|| of(&choice.list, false))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<str>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The list with the columns of `choice` alone. `None`: what the upstream would answer is not known, as the answer has more than rows
/// and their page, or a row lacks a column. `chosen`: were all of these columns asked for in this list? Else it takes a row to
/// tell that they exist.
fn fewer(list: &[u8], array: &str, choice: &ColumnChoice, chosen: bool) -> Option<Vec<u8>> {
    let whole: JsonMembers<'_> = serde_json::from_slice(list).ok()?;
    let rows: Vec<JsonMembers<'_>> = serde_json::from_str(whole.get(array)?.get()).ok()?;
    let known = whole.0.iter().all(|(name, _)| name == array || name == "pg") && (chosen || !rows.is_empty());
    if !known || !rows.iter().all(|row| choice.columns.iter().all(|column| row.get(column).is_some())) {
        return None;
    }
    let rows: Vec<_> = rows.iter().map(|row| row.only(|name| choice.has(name))).collect();
    let rows = format!("[{}]", rows.join(","));
    Some(
        whole
            .spelled(|name, value| Some(if name == array { (&*rows).into() } else { value.get().into() }))
            .into_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"rows":[{"id":1,"name":"a","big":800000000000000000001},{"id":2,"name":"b","big":null}],"pg":{"limit":9}}"#;

    fn cut(key: &str, held: &[(&str, &str)]) -> Option<String> {
        let columns = StoredColumns::default();
        held.iter().for_each(|(key, _)| columns.stored(&Arc::from(*key)));
        let body = |key: &str| {
            held.iter().find(|(k, _)| *k == key).map(|(_, body)| ((), Bytes::copy_from_slice(body.as_bytes())))
        };
        columns.cut(key, "rows", body).map(|((), body)| String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_list_is_cut_from_one_with_more_columns() {
        let cut_down = r#"{"rows":[{"id":1,"big":800000000000000000001},{"id":2,"big":null}],"pg":{"limit":9}}"#;
        for more in ["/l?cols[]=big&cols[]=id&cols[]=name&x=1", "/l?x=1"] {
            assert_eq!(cut("/l?cols[]=big&cols[]=id&x=1", &[(more, LIST)]).as_deref(), Some(cut_down), "{more}");
        }
    }

    #[test]
    fn nothing_is_cut_where_the_upstreams_answer_is_not_known() {
        let all = "/l";
        for (why, key, more, list) in [
            ("another list", "/l?cols[]=id&x=1", all, LIST),
            ("a row lacks the column", "/l?cols[]=id", all, r#"{"rows":[{"id":1},{"name":"b"}]}"#),
            ("nobody knows whether there is such a column", "/l?cols[]=id", all, r#"{"rows":[]}"#),
            ("a member beside rows and page", "/l?cols[]=id", all, r#"{"rows":[{"id":1}],"total":1}"#),
            ("no array of objects", "/l?cols[]=id", all, r#"{"rows":[1]}"#),
            ("all columns", "/l?cols[]=*", all, LIST),
            ("fewer columns", "/l?cols[]=id&cols[]=name", "/l?cols[]=id", LIST),
            ("other columns", "/l?cols[]=id", "/l?cols[]=big&cols[]=name", LIST),
        ] {
            assert_eq!(cut(key, &[(more, list)]), None, "{why}");
        }
        let empty = r#"{"rows":[]}"#;
        assert_eq!(
            cut("/l?cols[]=id", &[("/l?cols[]=id&cols[]=name", empty)]).as_deref(),
            Some(empty),
            "both were asked for"
        );
    }

    #[test]
    fn hints_are_bounded() {
        let columns = StoredColumns::default();
        for n in 0..LISTS_MAX + 1 {
            columns.stored(&Arc::from(format!("/l{n}?cols[]=a")));
        }
        assert_eq!(columns.known().len(), 1);
        for n in 0..CHOICES_MAX * 2 {
            columns.stored(&Arc::from(format!("/l?cols[]=a{n}")));
        }
        let keys = columns.known()["/l"].clone();
        assert_eq!((keys.len(), &*keys[0]), (CHOICES_MAX, "/l?cols[]=a15"));
    }
}
