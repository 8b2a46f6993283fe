//! The rows of a page, as HTML and CSV show them.

use serde::Serialize;
use serde_json::Value;

use crate::audit::csv_cell;

/// Rows under named columns.
pub(super) struct PageTable {
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

impl PageTable {
    /// Of each row, the members that these columns name.
    pub(super) fn of<T: Serialize>(columns: &'static [&'static str], rows: &[T]) -> Self {
        Self { columns, rows: rows.iter().map(|row| members(row, columns)).collect() }
    }

    /// As RFC 4180 has it; a spreadsheet takes no cell for a formula.
    pub(super) fn csv(&self) -> String {
        let mut csv = self.columns.join(",") + "\r\n";
        for row in &self.rows {
            let cells: Vec<_> = row.iter().map(|cell| csv_cell(cell)).collect();
            csv.push_str(&cells.join(","));
            csv.push_str("\r\n");
        }
        csv
    }
}

/// The members of these names, as cells.
pub(super) fn members(row: &impl Serialize, names: &[&str]) -> Vec<String> {
    let row = serde_json::to_value(row).unwrap_or_default();
    names.iter().map(|name| json_cell(row.get(name))).collect()
}

/// A JSON value as a cell: text without its quotes, and nothing for null.
pub(crate) fn json_cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => other.to_string(),
    }
}

/// The value, or an empty cell where it does not apply.
pub(super) fn cell<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_no_formulas() {
        let rows = vec![vec!["=1+1".to_owned(), "a,b".to_owned()], vec![cell(None::<u8>), cell(Some(7))]];
        assert_eq!(PageTable { columns: &["one", "two"], rows }.csv(), "one,two\r\n'=1+1,\"a,b\"\r\n,7\r\n");
    }
}
