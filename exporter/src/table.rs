//! Plain tables for a terminal.

use std::io::Write;

/// Prints rows in aligned columns. The last column is not padded, so it may be long.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    // A reader that went away, as `head` does, is no error.
    let _ = std::io::stdout().write_all(render(header, rows).as_bytes());
}

fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let header = header.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let all = || std::iter::once(&header).chain(rows);
    let width = |column: usize| {
        all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    all().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_columns_to_the_longest_cell() {
        let rows = [vec!["a".into(), "long cell".into()], vec!["wider".into(), String::new()]];
        assert_eq!(render(&["X", "Y"], &rows), "X      Y\na      long cell\nwider\n");
    }
}
