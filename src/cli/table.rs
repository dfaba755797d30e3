//! How is a table printed on a terminal? Columns as wide as their widest cell, and nothing raw in them: a cell may hold
//! what a caller sent.

use std::fmt::Write as _;

/// Text as it can be shown on a terminal, whatever is in it.
pub(crate) fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

/// One line each.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:width$}  ").expect("a text takes more text");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}
