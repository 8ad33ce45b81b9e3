//! Which fields each message of `config.pbtxt` may have, and values by their kind.

use super::text::{Fault, Field, Value, integer};
use crate::source::error::shown;

/// The fields of one message.
pub(super) struct Schema {
    /// What the message is, for people.
    pub(super) place: &'static str,
    /// Fields that may stand once.
    pub(super) single: &'static [&'static str],
    /// Fields that may stand many times.
    pub(super) repeated: &'static [&'static str],
    /// At most one of these.
    pub(super) choice: &'static [&'static str],
}

impl Schema {
    /// A message of fields that may stand once.
    pub(super) const fn of(place: &'static str, single: &'static [&'static str]) -> Self {
        Self { place, single, repeated: &[], choice: &[] }
    }

    /// Checks that every field is known and stands no more often than it may.
    pub(super) fn check(&self, fields: &[Field<'_>]) -> Result<(), Fault> {
        let mut seen: Vec<&str> = Vec::new();
        for field in fields {
            if self.repeated.contains(&field.name) {
                continue;
            }
            if !self.single.contains(&field.name) && !self.choice.contains(&field.name) {
                return Err(Fault::new(field.at, self.unknown(field.name)));
            }
            // `seen` never grows beyond the known names.
            if seen.contains(&field.name) {
                let what = format!("`{}` stands here for the second time; keep one", field.name);
                return Err(Fault::new(field.at, what));
            }
            let other = seen.iter().find(|other| self.choice.contains(*other));
            if let (Some(other), true) = (other, self.choice.contains(&field.name)) {
                let what = format!("`{}` and `{other}` exclude each other; keep one", field.name);
                return Err(Fault::new(field.at, what));
            }
            seen.push(field.name);
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> String {
        let known = || [self.single, self.repeated, self.choice].into_iter().flatten().copied();
        let place = self.place;
        let name_shown = shown(name);
        if let Some(near) = nearest(name, known()) {
            return format!("{place} has no field `{name_shown}`; did you mean `{near}`?");
        }
        let known: Vec<_> = known().map(|name| format!("`{name}`")).collect();
        if known.is_empty() {
            return format!("{place} has no fields, not `{name_shown}` either");
        }
        format!("{place} has no field `{name_shown}`; it has {}", known.join(", "))
    }
}

/// The field of this name.
pub(super) fn one<'m, 't>(fields: &'m [Field<'t>], name: &str) -> Option<&'m Field<'t>> {
    fields.iter().find(|field| field.name == name)
}

/// The fields of this name.
pub(super) fn many<'m, 't>(
    fields: &'m [Field<'t>],
    name: &'static str,
) -> impl Iterator<Item = &'m Field<'t>> {
    fields.iter().filter(move |field| field.name == name)
}

impl<'t> Field<'t> {
    /// The message that the field holds, checked against its schema.
    pub(super) fn block(&self, schema: &Schema) -> Result<&[Field<'t>], Fault> {
        let Value::Block(fields) = &self.value else {
            return Err(self.misfit("a message in `{ }`"));
        };
        schema.check(fields)?;
        Ok(fields)
    }

    /// The text that the field holds.
    pub(super) fn text(&self) -> Result<&str, Fault> {
        let Value::Text(bytes) = &self.value else {
            return Err(self.misfit("text in quotes"));
        };
        std::str::from_utf8(bytes).map_err(|_| self.misfit("UTF-8 text"))
    }

    /// The whole number that the field holds, within the bounds of its type.
    pub(super) fn int<N: TryFrom<i128>>(&self) -> Result<N, Fault> {
        let Value::Number { negative, digits } = &self.value else {
            return Err(self.misfit("a whole number"));
        };
        let magnitude = integer(digits).ok_or_else(|| self.misfit("a whole number"))?;
        let number = if *negative { -magnitude } else { magnitude };
        N::try_from(number).map_err(|_| {
            let name = self.name;
            Fault::new(self.value_at, format!("`{name}` is out of bounds: {number}"))
        })
    }

    /// The truth value that the field holds, in one of the spellings of the text format.
    pub(super) fn flag(&self) -> Result<bool, Fault> {
        match &self.value {
            Value::Word { negative: false, word: "true" | "True" | "t" }
            | Value::Number { negative: false, digits: "1" } => Ok(true),
            Value::Word { negative: false, word: "false" | "False" | "f" }
            | Value::Number { negative: false, digits: "0" } => Ok(false),
            _ => Err(self.misfit("`true` or `false`")),
        }
    }

    /// The name that the field holds, such as `KIND_CPU`; `example` is one.
    pub(super) fn word(&self, example: &str) -> Result<&'t str, Fault> {
        match self.value {
            Value::Word { negative: false, word } => Ok(word),
            _ => Err(self.misfit(&format!("a name such as `{example}`, without quotes"))),
        }
    }

    fn misfit(&self, expected: &str) -> Fault {
        Fault::new(self.value_at, format!("`{}` must be {expected}", self.name))
    }
}

/// The known name that a mistyped one most likely means.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    const LENGTH_MAX: usize = 64;
    if name.len() > LENGTH_MAX {
        return None;
    }
    known
        .map(|candidate| (edits(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.len().div_ceil(3).min(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: how many letters are put in, left out or changed.
fn edits(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_names_find_their_neighbour() {
        let known = ["input", "output", "instance_group", "name"];
        let near = |name: &str| nearest(name, known.into_iter());
        assert_eq!(near("inputs"), Some("input"));
        assert_eq!(near("instance_groups"), Some("instance_group"));
        assert_eq!(near("instancegroup"), Some("instance_group"));
        assert_eq!(near("nam"), Some("name"));
        assert_eq!(near("something_else"), None);
        assert_eq!(near(&"x".repeat(1000)), None);
    }
}
