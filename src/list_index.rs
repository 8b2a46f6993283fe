//! Where the organizations of a list are in its body: read once, so that a caller's page is cut out of the text without reading the list
//! again.

use std::cmp::Ordering;
use std::ops::Range;

use serde_json::value::RawValue;

use crate::json_members::JsonMembers;

/// Make's maximum and default page size for this list; a longer list cannot be fetched in one piece.
pub(crate) const WHOLE_LIMIT: usize = 10_000;

/// The index of one list. It belongs to one body and never changes.
#[derive(Debug)]
pub(crate) struct ListIndex {
    /// In the list's order.
    rows: Box<[ListRow]>,
    /// The member `pg`.
    page_member: Option<TextRange>,
}

/// One organization.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListRow {
    pub(crate) id: u64,
    pub(crate) text: TextRange,
    /// Its place in the order by name; rows whose names are equal have the same.
    pub(crate) name_rank: u32,
}

/// Where a piece of text is in the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TextRange {
    start: u32,
    end: u32,
}

impl TextRange {
    /// Where `part`, which was borrowed from `body`, is in it.
    fn of(part: &RawValue, body: &[u8]) -> Option<Self> {
        let part = part.get().as_bytes();
        let start = part.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
        let end = start.checked_add(part.len()).filter(|end| *end <= body.len())?;
        Some(Self { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })
    }

    /// The text in the body that the range was made for.
    pub(crate) fn in_body(self, body: &[u8]) -> &str {
        let range: Range<usize> = self.start as usize..self.end as usize;
        body.get(range).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default()
    }

    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

impl ListIndex {
    /// Reads a list whose organizations are in its member `array`.
    ///
    /// # Errors
    /// The reason, if it is not certain which organization each of them is; then none of it may be shown to a caller with a scope.
    pub(crate) fn of(body: &[u8], array: &str) -> Result<Self, &'static str> {
        let whole: JsonMembers<'_> = serde_json::from_slice(body).map_err(|_| "it is not a JSON object")?;
        if whole.may_repeat_names() {
            return Err("it has a member twice");
        }
        let rows = whole.get_only(array).ok_or("it has no array of organizations")?;
        let rows: Vec<&RawValue> = serde_json::from_str(rows.get()).map_err(|_| "its organizations are no array")?;
        if rows.len() >= WHOLE_LIMIT {
            return Err("it is too long to fetch in one piece");
        }
        let mut rows: Vec<_> = rows.into_iter().map(|row| named_row(row, body)).collect::<Result<_, _>>()?;
        rank_by_name(&mut rows);
        let page_member = whole.get("pg").and_then(|pg| TextRange::of(pg, body));
        Ok(Self { rows: rows.into_iter().map(|(row, _)| row).collect(), page_member })
    }

    pub(crate) fn rows(&self) -> &[ListRow] {
        &self.rows
    }

    pub(crate) fn page_member(&self) -> Option<TextRange> {
        self.page_member
    }

    /// Memory that it takes besides itself.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[ListRow]>(&self.rows)
    }
}

/// A row that is not ranked yet, with its name.
fn named_row<'a>(row: &'a RawValue, body: &[u8]) -> Result<(ListRow, Option<&'a RawValue>), &'static str> {
    let members: JsonMembers<'a> = serde_json::from_str(row.get()).map_err(|_| "its organizations are not objects")?;
    if members.may_repeat_names() {
        return Err("an organization has a member twice");
    }
    let id = members.get_only("id").and_then(|id| serde_json::from_str(id.get()).ok());
    let id = id.ok_or("an organization has no id")?;
    let text = TextRange::of(row, body).ok_or("it is too long")?;
    let name = members.0.iter().find(|(name, _)| name == "name").map(|(_, value)| *value);
    Ok((ListRow { id, text, name_rank: 0 }, name))
}

/// Gives each row its place in the order by name. The upstream's list is sorted by name already, in its own collation. That order is kept,
/// so that pages with and without `sortBy` match, unless the list is not sorted after all.
fn rank_by_name(rows: &mut [(ListRow, Option<&RawValue>)]) {
    if rows.is_sorted_by_key(|(_, name)| name.map(RawValue::get)) {
        return rank(rows.iter_mut().map(|(row, name)| (name.map(RawValue::get), row)));
    }
    let mut keyed: Vec<_> = rows.iter_mut().map(|(row, name)| (SortKey::of(*name), row)).collect();
    // All values are comparable, because JSON has no NaN.
    keyed.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    rank(keyed.into_iter());
}

/// Ranks rows that come sorted by their keys.
fn rank<'r, K: PartialEq>(sorted: impl Iterator<Item = (K, &'r mut ListRow)>) {
    let (mut rank, mut earlier) = (0, None);
    for (key, row) in sorted {
        if earlier.is_some_and(|earlier| earlier != key) {
            rank += 1;
        }
        row.name_rank = rank;
        earlier = Some(key);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(names: &[&str]) -> Vec<u32> {
        let rows: Vec<String> = names.iter().map(|name| format!(r#"{{"id":1,"name":{name}}}"#)).collect();
        let list = format!(r#"{{"a":[{}]}}"#, rows.join(", "));
        ListIndex::of(list.as_bytes(), "a").unwrap().rows().iter().map(|row| row.name_rank).collect()
    }

    #[test]
    fn rows_are_ranked_by_name_unless_they_come_sorted() {
        assert_eq!(ranks(&[r#""b""#, r#""A""#, r#""c""#]), [1, 0, 2]);
        assert_eq!(ranks(&[r#""B""#, r#""a""#]), [0, 1], "sorted as they come");
        assert_eq!(ranks(&["\"b\"", "\"a\"", "\"b\"", "null", "3"]), [2, 1, 2, 3, 0]);
        assert_eq!(ranks(&["\"a\"", "\"a\"", "\"b\""]), [0, 0, 1]);
    }

    #[test]
    fn each_text_is_found_in_its_body() {
        let list = r#" {"x": 1, "pg" : {"limit": 3}, "a": [ {"id":5} , {"id": 6, "n": [{}]}]} "#;
        let index = ListIndex::of(list.as_bytes(), "a").unwrap();
        let texts: Vec<_> = index.rows().iter().map(|row| row.text.in_body(list.as_bytes())).collect();
        assert_eq!(texts, [r#"{"id":5}"#, r#"{"id": 6, "n": [{}]}"#]);
        assert_eq!(index.page_member().unwrap().in_body(list.as_bytes()), r#"{"limit": 3}"#);
        assert_eq!(index.rows().iter().map(|row| row.id).collect::<Vec<_>>(), [5, 6]);
    }
}
