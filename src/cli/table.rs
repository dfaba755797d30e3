//! Tables for a terminal. Columns are as wide as their widest cell; cells are escaped, because they
//! may contain callers' data.

use std::fmt::Write as _;

/// Escapes control characters, so that the text is safe on a terminal.
pub(crate) fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

/// Formats the rows, one per line.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:width$}  ").expect("writing to a String cannot fail");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}
