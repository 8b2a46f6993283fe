//! Classify (step 4): finds the row for a method and a decoded path. A literal segment takes precedence over a
//! parameter (`/organizations/invitation` is not an organization), and an organization id must be a plain decimal.

use std::sync::Arc;

use http::Method;

use super::Operation;
use super::template::{ORGANIZATION, PathTemplate};

/// Maximum number of path segments.
const SEGMENTS_MAX: usize = 32;

/// The row for a request, and the values in its path.
#[derive(Clone, Debug)]
pub struct MatchedOperation<'c, 'p> {
    /// The row.
    pub operation: &'c Arc<Operation>,
    /// The row's index in the catalogue.
    pub index: usize,
    /// The organization in the path.
    pub organization: Option<u64>,
    values: matchit::Params<'c, 'p>,
}

impl<'c, 'p> MatchedOperation<'c, 'p> {
    /// The decoded path parameters by name, in template order.
    pub fn parameters(&self) -> impl Iterator<Item = (&'c str, &'p str)> {
        self.operation.path.parameters().zip(self.values.iter().map(|(_, value)| value))
    }
}

/// Why no row was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoMatch {
    /// No row has this path: 404.
    Path,
    /// Rows have this path, but only with these methods: 405, with these as its `Allow`.
    Method(Vec<Method>),
}

/// Why a row cannot stand beside the ones before it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RowConflict {
    /// An earlier row, this one, has the same id.
    #[error("the id \"{}\" is already used by {} {}", .0.id, .0.method, .0.path)]
    Id(Arc<Operation>),
    /// An earlier row, this one, has the same method and path.
    #[error("{} {} is already defined by the row \"{}\"", .0.method, .0.path, .0.id)]
    Request(Arc<Operation>),
    /// The path cannot be told apart from another row's.
    #[error("{0} conflicts with another row's path: {1}")]
    Path(PathTemplate, matchit::InsertError),
    /// The path is too long.
    #[error("a path can have at most {SEGMENTS_MAX} segments")]
    Segments,
}

/// Leads from a path to the rows that have it.
#[derive(Debug, Default)]
pub(super) struct Router(matchit::Router<Vec<usize>>);

impl Router {
    pub(super) fn new(rows: &[Arc<Operation>]) -> Result<Self, Vec<(usize, RowConflict)>> {
        let mut router = Self::default();
        let mut wrong = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            if let Some(earlier) = rows.iter().take(index).find(|r| r.id == row.id) {
                wrong.push((index, RowConflict::Id(earlier.clone())));
            }
            if let Err(why) = router.add(rows, index, row) {
                wrong.push((index, why));
            }
        }
        if wrong.is_empty() { Ok(router) } else { Err(wrong) }
    }

    fn add(&mut self, rows: &[Arc<Operation>], index: usize, row: &Operation) -> Result<(), RowConflict> {
        if row.path.segments().len() > SEGMENTS_MAX {
            return Err(RowConflict::Segments);
        }
        let of_path = || rows.iter().enumerate().filter(|(_, other)| other.path == row.path);
        let earlier = || of_path().take_while(|(place, _)| *place < index);
        if let Some((_, twin)) = earlier().find(|(_, other)| other.method == row.method) {
            return Err(RowConflict::Request(twin.clone()));
        }
        // The first row of a path leads to all of them.
        if earlier().next().is_some() {
            return Ok(());
        }
        let inserted = self.0.insert(row.path.as_str(), of_path().map(|(place, _)| place).collect());
        inserted.map_err(|conflict| RowConflict::Path(row.path.clone(), conflict))
    }

    pub(super) fn classify<'c, 'p>(
        &'c self,
        rows: &'c [Arc<Operation>],
        method: &Method,
        path: &'p str,
    ) -> Result<MatchedOperation<'c, 'p>, NoMatch> {
        let found = self.0.at(path).map_err(|_| NoMatch::Path)?;
        let sought = if method == Method::HEAD { &Method::GET } else { method };
        let Some(index) = found.value.iter().copied().find(|i| rows.get(*i).is_some_and(|r| r.method == *sought))
        else {
            return Err(NoMatch::Method(allowed(rows, found.value)));
        };
        let operation = rows.get(index).ok_or(NoMatch::Path)?;
        let mut matched = MatchedOperation { operation, index, organization: None, values: found.params };
        let organization = matched.parameters().find(|(name, _)| *name == ORGANIZATION);
        if let Some((_, text)) = organization {
            matched.organization = Some(plain_decimal(text).ok_or(NoMatch::Path)?);
        }
        Ok(matched)
    }
}

fn allowed(rows: &[Arc<Operation>], of_route: &[usize]) -> Vec<Method> {
    let mut methods = Vec::new();
    for row in of_route.iter().filter_map(|i| rows.get(*i)) {
        methods.push(row.method.clone());
        if row.method == Method::GET {
            methods.push(Method::HEAD);
        }
    }
    methods
}

/// Parses an id as Make writes it: decimal, no sign, no leading zeros. Anything else would be ambiguous.
fn plain_decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_decimal_is_an_id() {
        assert_eq!(plain_decimal("11"), Some(11));
        assert_eq!(plain_decimal("0"), Some(0));
        for other in ["", "011", "+11", "-1", "1.0", "1e3", "0x1", "99999999999999999999999", "१"] {
            assert_eq!(plain_decimal(other), None, "{other}");
        }
    }
}
