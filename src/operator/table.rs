//! The rows of a page, as HTML and CSV show them.

use crate::audit::csv_cell;

/// Rows under named columns.
pub(super) struct PageTable {
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

impl PageTable {
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
