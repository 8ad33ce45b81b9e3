//! Findings about a configuration: all that is wrong at once, each with its place and what would be right.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// Everything that is wrong with a configuration; never empty as an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The file that was read, if any was.
    pub file: Option<PathBuf>,
    /// In the order of the places: the file's lines, the environment, the flags.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The key's path, such as `server.http`.
    pub key: String,
    /// The value as it was written, shortened. `None`: the key itself is wrong, or its value is no single one.
    pub value: Option<String>,
    /// The mistake, and what would be right.
    pub advice: String,
    /// Where it was written.
    pub origin: Origin,
}

/// Where a value was given; the later ones win.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// In the configuration file, on this line, counted from 1. `None`: the file as a whole.
    File {
        /// The line, counted from 1.
        line: Option<usize>,
    },
    /// In an environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// In a flag.
    Flag {
        /// Its name, dashes included.
        flag: String,
    },
}

/// The longest path of a key that is shown, in characters: a model's name and more.
const KEY_CHARS_MAX: usize = 200;
/// The longest value that is shown, in characters.
const VALUE_CHARS_MAX: usize = 60;
/// The widest left column.
const COLUMN_CHARS_MAX: usize = 64;
/// Between the columns.
const GAP: usize = 5;

impl Findings {
    pub(super) fn new(file: Option<&Path>) -> Self {
        Self { file: file.map(Path::to_owned), findings: Vec::new() }
    }

    pub(super) fn add(
        &mut self,
        key: &str,
        value: Option<&str>,
        advice: impl Into<String>,
        origin: &Origin,
    ) {
        self.findings.push(Finding {
            key: shorten(key, KEY_CHARS_MAX),
            value: value.map(|value| shorten(value, VALUE_CHARS_MAX)),
            advice: advice.into(),
            origin: origin.clone(),
        });
    }

    pub(super) fn sort(&mut self) {
        self.findings.sort_by(|a, b| a.origin.cmp(&b.origin));
    }
}

impl std::error::Error for Findings {}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_file = |finding: &Finding| matches!(finding.origin, Origin::File { .. });
        match &self.file {
            Some(file) if self.findings.iter().any(in_file) => write!(f, "{}", file.display())?,
            _ => f.write_str("configuration")?,
        }
        let plural = if self.findings.len() == 1 { "" } else { "s" };
        write!(f, ": {} problem{plural}", self.findings.len())?;

        let lefts: Vec<String> = self.findings.iter().map(Finding::left).collect();
        let widths = lefts.iter().map(|left| left.chars().count());
        let column = widths.filter(|width| *width <= COLUMN_CHARS_MAX).max().unwrap_or(0) + GAP;
        for (finding, left) in self.findings.iter().zip(lefts) {
            write!(f, "\n  {left:column$}")?;
            if left.chars().count() > COLUMN_CHARS_MAX {
                write!(f, "\n  {:column$}", "")?;
            }
            write!(f, "{}", finding.advice)?;
            match &finding.origin {
                Origin::File { line: Some(line) } => write!(f, " (line {line})")?,
                Origin::Environment { variable } if *variable != finding.key => {
                    write!(f, " ({})", variable.escape_debug())?;
                }
                Origin::Flag { flag } => write!(f, " ({flag})")?,
                Origin::File { line: None } | Origin::Environment { .. } => {}
            }
        }
        Ok(())
    }
}

impl Finding {
    fn left(&self) -> String {
        match &self.value {
            Some(value) => format!("{} = {value}", self.key),
            None => self.key.clone(),
        }
    }
}

/// One line without control characters, not too long.
fn shorten(value: &str, chars_max: usize) -> String {
    let mut short: String = value.chars().take(chars_max).take_while(|c| !c.is_control()).collect();
    if short.len() < value.len() {
        short.push_str(" ...");
    }
    short
}
