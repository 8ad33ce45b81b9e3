//! The errors of reading data: the file, the place, what was there and what would be right.

use std::{io, path::PathBuf};

/// Error of a file of data that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}` {trouble}", path.display())]
pub struct DatasetError {
    /// The file.
    pub path: PathBuf,
    /// Trouble with the file.
    pub trouble: Trouble,
}

/// Errors of a file of data.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The system does not give it.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Its name does not say its format.
    #[error("has no ending that says its format; name it .csv, .tsv, .parquet or .npy")]
    Format,
    /// Empty file.
    #[error("is empty; a CSV file begins with a line of column names")]
    Empty,
    /// Content that does not follow the file's format.
    #[error("cannot be read: {0}")]
    Malformed(String),
    /// Size beyond a limit.
    #[error("has {actual} {what}, more than the {max} that are read; {advice}")]
    Limit {
        /// Kind of thing that is too much, such as `columns`.
        what: String,
        /// Amount that there is.
        actual: u64,
        /// Largest amount allowed.
        max: u64,
        /// Advice on how to stay below the limit.
        advice: &'static str,
    },
    /// Name that no column has.
    #[error("has no column `{name}`{}; it has {listed}", hint(nearest.as_deref()))]
    UnknownColumn {
        /// The name asked for.
        name: String,
        /// The name that is most like it.
        nearest: Option<String>,
        /// The names that there are, shortened.
        listed: String,
    },
    /// A column holds what is no plain value.
    #[error(
        "has lists, structures or old timestamps in column `{0}`, which cannot be read; write one plain column for each value, or \
         leave the column out"
    )]
    Unreadable(String),
    /// A cell is not what it should be.
    #[error("has {found} in row {row}, column `{column}`; {wanted}")]
    Cell {
        /// The row, counted from 1 without a header.
        row: u64,
        /// The column.
        column: String,
        /// Content of the cell.
        found: String,
        /// Remedy, or what would be right.
        wanted: String,
    },
    /// Columns that changed while the file was read.
    #[error("changed while it was read; try again once it is written")]
    Changed,
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

/// Names that are listed in a message.
const LISTED_MAX: usize = 12;

impl Trouble {
    /// A name that no column has, with the one that is most like it.
    pub fn unknown_column<'a>(name: &str, columns: impl Iterator<Item = &'a str>) -> Self {
        let columns: Vec<&str> = columns.collect();
        let near =
            |other: &&&str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
        let nearest = columns.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
        let nearest = nearest.filter(|other| near(other) > 0.8).map(|name| (*name).to_owned());
        Self::UnknownColumn { name: shown(name), nearest, listed: listed(columns.into_iter()) }
    }
}

/// Names for a message: some of them, and how many more there are.
pub(super) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    let listed: Vec<_> = names.take(LISTED_MAX).map(|name| format!("`{}`", shown(name))).collect();
    let listed = listed.join(", ");
    if more > 0 { format!("{listed} and {more} more") } else { listed }
}

/// A text of strangers for a message: escaped, and not endless.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 48;
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown += "...";
    }
    shown
}
