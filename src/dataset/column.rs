//! Columns of cells: whole numbers, floating-point numbers, truth values, text, and what is missing.

use std::{borrow::Cow, ops::Range};

use super::error::shown;

/// A column of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Kind of its cells.
    pub kind: Kind,
}

/// Kinds of a column's cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers of at most 64 bits.
    Integer,
    /// Floating-point numbers.
    Float,
    /// Truth values.
    Boolean,
    /// Text.
    Text,
    /// Text whose spelling says what it is, cell by cell: CSV.
    Written,
    /// Lists of plain values.
    List,
    /// Cells that cannot be read as one value.
    Other,
}

/// The cells of one column, one a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    values: Values,
    /// True for each row without a value; empty if all have one.
    missing: Vec<bool>,
}

#[derive(Debug, Clone, PartialEq)]
enum Values {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Booleans(Vec<bool>),
    Texts(Texts),
    Written(Texts),
    /// The elements of all lists, and the end of each list.
    Lists(Box<Cells>, Vec<usize>),
}

/// Texts one after the other in one buffer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// A cell that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Content of the cell, for people.
    pub found: String,
    /// Remedy, or what would be right, for people.
    pub wanted: String,
}

/// The spellings of a missing number, as pandas writes and reads them.
const MISSING: [&str; 10] = ["", "na", "n/a", "#n/a", "nan", "-nan", "null", "<na>", "nat", "#na"];

/// The largest whole number below which an `f64` has every whole number.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl Texts {
    /// Appends a text.
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
    }

    /// The bytes of one text.
    ///
    /// # Panics
    /// If there is no such text.
    pub fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }

    /// The number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of all of them.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
}

impl Cells {
    /// Whole numbers; `missing` is empty or has one entry for each.
    pub fn integers(values: Vec<i64>, missing: Vec<bool>) -> Self {
        Self { values: Values::Integers(values), missing }
    }

    /// Floating-point numbers; NaN counts as missing.
    pub fn floats(values: Vec<f64>, missing: Vec<bool>) -> Self {
        Self { values: Values::Floats(values), missing }
    }

    /// Truth values.
    pub fn booleans(values: Vec<bool>, missing: Vec<bool>) -> Self {
        Self { values: Values::Booleans(values), missing }
    }

    /// Texts.
    pub fn texts(values: Texts, missing: Vec<bool>) -> Self {
        Self { values: Values::Texts(values), missing }
    }

    /// Cells as a CSV file spells them.
    pub fn written(values: Texts) -> Self {
        Self { values: Values::Written(values), missing: Vec::new() }
    }

    /// Lists, one a row: their elements one after the other, and where each of them ends.
    pub fn lists(elements: Cells, ends: Vec<usize>, missing: Vec<bool>) -> Self {
        Self { values: Values::Lists(Box::new(elements), ends), missing }
    }

    /// The list in a row: the elements of all lists, and the place of its own among them; `None` if rows hold no
    /// lists.
    pub fn list(&self, row: usize) -> Option<(&Cells, Range<usize>)> {
        let Values::Lists(elements, ends) = &self.values else { return None };
        let start = row.checked_sub(1).map_or(0, |before| ends[before]);
        Some((elements, start..ends[row]))
    }

    /// True if a row has nothing: NaN is a value here.
    pub fn is_null(&self, row: usize) -> bool {
        self.missing.get(row).copied().unwrap_or(false)
    }

    /// The number of cells.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Integers(values) => values.len(),
            Values::Floats(values) => values.len(),
            Values::Booleans(values) => values.len(),
            Values::Texts(values) | Values::Written(values) => values.len(),
            Values::Lists(_, ends) => ends.len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if a row has no value: nothing there, NaN, or one of the usual words for it, such as `NA`.
    pub fn is_missing(&self, row: usize) -> bool {
        if self.missing.get(row).copied().unwrap_or(false) {
            return true;
        }
        match &self.values {
            Values::Floats(values) => values[row].is_nan(),
            Values::Written(values) => is_missing_word(values.get(row)),
            _ => false,
        }
    }

    /// The number in a row, NaN where it is missing; truth values are 0 and 1.
    #[expect(
        clippy::cast_precision_loss,
        reason = "whoever wants whole numbers exactly asks for them"
    )]
    pub fn float(&self, row: usize) -> Result<f64, Wrong> {
        if self.missing.get(row).copied().unwrap_or(false) {
            return Ok(f64::NAN);
        }
        match &self.values {
            Values::Integers(values) => Ok(values[row] as f64),
            Values::Floats(values) => Ok(values[row]),
            Values::Booleans(values) => Ok(f64::from(u8::from(values[row]))),
            Values::Texts(texts) | Values::Written(texts) => {
                let wrong = || self.wrong(row, "a number belongs there");
                let text = std::str::from_utf8(texts.get(row)).map_err(|_| wrong())?.trim();
                if let Ok(number) = text.parse() {
                    return Ok(number);
                }
                if is_missing_word(text.as_bytes()) {
                    return Ok(f64::NAN);
                }
                truth(text).map(|truth| f64::from(u8::from(truth))).ok_or_else(wrong)
            }
            Values::Lists(..) => Err(self.wrong(row, "one value belongs there")),
        }
    }

    /// The whole number in a row, `None` where it is missing; truth values are 0 and 1, and `3.0` is 3.
    pub fn integer(&self, row: usize) -> Result<Option<i64>, Wrong> {
        if self.is_missing(row) {
            return Ok(None);
        }
        match &self.values {
            Values::Integers(values) => Ok(Some(values[row])),
            Values::Texts(texts) | Values::Written(texts)
                if let Some(number) = whole(texts.get(row)) =>
            {
                Ok(Some(number))
            }
            _ => {
                let number = self.float(row).ok();
                let whole = number.filter(|number| number.fract() == 0.0 && number.abs() < EXACT);
                #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
                let whole = whole.map(|number| number as i64);
                whole.map(Some).ok_or_else(|| {
                    self.wrong(row, "a whole number of at most 64 bits belongs there")
                })
            }
        }
    }

    /// The truth value in a row, `None` where it is missing; 0 is false, 1 is true.
    pub fn boolean(&self, row: usize) -> Result<Option<bool>, Wrong> {
        match self.integer(row) {
            Ok(None) => Ok(None),
            Ok(Some(0)) => Ok(Some(false)),
            Ok(Some(1)) => Ok(Some(true)),
            _ => Err(self.wrong(row, "true, false, 1 or 0 belongs there")),
        }
    }

    /// The bytes of a text in a row: of a CSV file as they stand there, of other values as they are written;
    /// `None` where there is none. An empty text of a CSV file is a text.
    pub fn text(&self, row: usize) -> Option<Cow<'_, [u8]>> {
        if self.missing.get(row).copied().unwrap_or(false) {
            return None;
        }
        Some(match &self.values {
            Values::Integers(values) => Cow::Owned(values[row].to_string().into_bytes()),
            Values::Floats(values) => Cow::Owned(values[row].to_string().into_bytes()),
            Values::Booleans(values) => Cow::Owned(values[row].to_string().into_bytes()),
            Values::Texts(texts) | Values::Written(texts) => Cow::Borrowed(texts.get(row)),
            Values::Lists(..) => {
                let values = self.list(row).map_or(0, |(_, own)| own.len());
                Cow::Owned(format!("a list of {values} values").into_bytes())
            }
        })
    }

    /// A text in a row that must be UTF-8.
    pub fn utf8(&self, row: usize) -> Result<Option<Cow<'_, str>>, Wrong> {
        let wrong = || self.wrong(row, "text must be UTF-8; convert the file");
        match self.text(row) {
            None => Ok(None),
            Some(Cow::Borrowed(text)) => {
                std::str::from_utf8(text).map(|text| Some(Cow::Borrowed(text))).map_err(|_| wrong())
            }
            Some(Cow::Owned(text)) => {
                String::from_utf8(text).map(|text| Some(Cow::Owned(text))).map_err(|_| wrong())
            }
        }
    }

    /// A complaint about a row.
    pub fn wrong(&self, row: usize, wanted: &str) -> Wrong {
        let found = match self.text(row) {
            None => "nothing".to_owned(),
            Some(text) if text.is_empty() => "nothing".to_owned(),
            Some(text) => format!("`{}`", shown(&String::from_utf8_lossy(&text))),
        };
        Wrong { found, wanted: wanted.to_owned() }
    }
}

fn is_missing_word(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    text.len() <= 4 && MISSING.iter().any(|word| text.eq_ignore_ascii_case(word.as_bytes()))
}

fn whole(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

fn truth(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        return Some(true);
    }
    text.eq_ignore_ascii_case("false").then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(texts: &[&str]) -> Cells {
        let mut all = Texts::default();
        for text in texts {
            all.push(text.as_bytes());
        }
        Cells::written(all)
    }

    #[test]
    fn written_cells_are_what_is_asked_of_them() {
        let cells = written(&[" 3", "3.0", "1e3", "True", "NA", "", "007", "x"]);
        let floats: Vec<_> = (0..8).map(|row| cells.float(row).ok()).collect();
        assert_eq!(floats[..4], [Some(3.0), Some(3.0), Some(1000.0), Some(1.0)]);
        assert!(floats[4].unwrap().is_nan() && floats[5].unwrap().is_nan());
        assert_eq!(floats[6..], [Some(7.0), None]);
        let integers: Vec<_> = (0..8).map(|row| cells.integer(row).ok()).collect();
        let some = |number| Some(Some(number));
        assert_eq!(
            integers,
            [some(3), some(3), some(1000), some(1), Some(None), Some(None), some(7), None]
        );
        assert_eq!(cells.utf8(6).unwrap().unwrap(), "007");
        assert_eq!(cells.boolean(3), Ok(Some(true)));
        let wrong = cells.boolean(0).unwrap_err();
        assert_eq!((wrong.found.as_str(), &wrong.wanted[..4]), ("` 3`", "true"));
    }

    #[test]
    fn typed_cells_convert_without_loss_or_not_at_all() {
        let floats = Cells::floats(vec![2.0, 2.5, f64::NAN, 1e300], Vec::new());
        assert_eq!(floats.integer(0), Ok(Some(2)));
        assert_eq!(floats.integer(1).unwrap_err().found, "`2.5`");
        assert_eq!((floats.integer(2), floats.is_missing(2)), (Ok(None), true));
        assert!(floats.integer(3).is_err());
        let integers = Cells::integers(vec![i64::MAX, 0], vec![false, true]);
        assert_eq!((integers.integer(0), integers.integer(1)), (Ok(Some(i64::MAX)), Ok(None)));
        assert!(integers.float(1).unwrap().is_nan());
        assert_eq!(integers.wrong(1, "x").found, "nothing");
        let mut texts = Texts::default();
        texts.push(b"\xff");
        let texts = Cells::texts(texts, Vec::new());
        assert!(texts.utf8(0).is_err() && texts.float(0).is_err());
    }
}
