//! Tables, as all commands draw them.
//!
//! Always true: names and numbers stay whole. Where a terminal is too narrow for that, each row is a block of lines.

use comfy_table::{
    ColumnConstraint, ContentArrangement, Table, Width,
    presets::{NOTHING, UTF8_BORDERS_ONLY},
};

/// Columns that the last one of a table keeps, where it is wrapped.
const LAST_MIN: u16 = 16;

/// A table with this head, as wide as the terminal; elsewhere a line a row.
pub(super) fn table(head: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    let arrangement = ContentArrangement::Dynamic;
    table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(arrangement).set_header(head);
    // Only what is said last is wrapped, between words.
    let last = table.column_count().saturating_sub(1);
    for column in table.column_iter_mut().take(last) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    if let Some(column) = table.column_mut(last) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(LAST_MIN)));
    }
    table
}

/// Lines of two columns without a frame, of which the second is wrapped between words.
pub(super) fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// The lines of a table. Where the terminal is too narrow for them, what stands first becomes a heading over the rest
/// of its rows; and where that is too wide as well, each row is a block of lines `name  value`.
pub(super) fn text(table: &Table) -> String {
    let drawn = format!("{table}\n");
    let Some(columns) = table.width().map(usize::from) else { return drawn };
    if width(&drawn) <= columns {
        return drawn;
    }
    let headed = headed(table);
    if width(&headed) <= columns { headed } else { blocks(table) }
}

fn width(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or_default()
}

/// The contents of a table by row, the head first.
fn contents(table: &Table) -> Vec<Vec<String>> {
    let rows = table.header().into_iter().chain(table.row_iter());
    rows.map(|row| row.cell_iter().map(comfy_table::Cell::content).collect()).collect()
}

fn headed(table: &Table) -> String {
    let rows = contents(table);
    let mut rest = Table::new();
    rest.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    rest.add_rows(rows.iter().map(|row| row.iter().skip(1)));
    let (mut text, mut above) = (String::new(), None);
    for (row, line) in rows.iter().zip(rest.lines()) {
        let heading = row.first();
        if above != heading {
            text += &format!("{}\n", heading.map_or("", String::as_str));
            above = heading;
        }
        text += &format!("  {}\n", line.trim_end());
    }
    text
}

fn blocks(table: &Table) -> String {
    let mut rows = contents(table).into_iter();
    let heads = rows.next().unwrap_or_default();
    let block = |row: Vec<String>| {
        let mut block = plain();
        if let Some(columns) = table.width() {
            block.set_width(columns);
        }
        for (head, value) in heads.iter().zip(row) {
            if !matches!(&*value, "" | "-") {
                block.add_row([head.clone(), value]);
            }
        }
        format!("{block}\n")
    };
    rows.map(block).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(columns: u16) -> String {
        let mut table = table(["model", "version", "why"]);
        for (model, version) in [("churn", "1"), ("churn", "2"), ("fraud", "1")] {
            table.add_row([model, version, "because it is better than the others"]);
        }
        table.set_width(columns);
        text(&table)
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_word_breaks() {
        for columns in [24, 30, 34, 40, 60, 80, 120] {
            let drawn = drawn(columns);
            assert!(width(&drawn) <= usize::from(columns), "{columns}:\n{drawn}");
            for word in ["churn", "fraud", "because", "better", "others"] {
                assert!(drawn.contains(word), "{word} at {columns}:\n{drawn}");
            }
        }
        assert!(drawn(80).contains('│'));
        assert!(drawn(120).lines().count() < drawn(44).lines().count());
    }
}
