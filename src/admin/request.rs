//! Bodies of changes: read with all their errors at once, each with what would be right.

use serde_json::{Map, Value};

use crate::model::{SLOTS, slots_of};

/// An object of a request, and what is wrong with it so far.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    place: String,
}

/// Errors found in a request.
#[derive(Debug, Default)]
pub(super) struct Errors(pub(super) Vec<String>);

impl Errors {
    /// Adds what is wrong with a value.
    pub(super) fn add(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }
}

impl<'a> Fields<'a> {
    /// The fields of an object, which may have these; notes unknown ones, each with the nearest known one.
    pub(super) fn of(
        value: &'a Value,
        place: &str,
        known: &[&str],
        errors: &mut Errors,
    ) -> Option<Self> {
        let Some(object) = value.as_object() else {
            let what = if place.is_empty() { "the body" } else { place };
            errors.add(format!("{what} must be an object with {}", known.join(", ")));
            return None;
        };
        for field in object.keys().filter(|field| !known.contains(&field.as_str())) {
            let nearest = known.iter().map(|known| (strsim::jaro_winkler(field, known), known));
            let nearest =
                nearest.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(near, _)| *near > 0.7);
            let hint = nearest.map_or_else(
                || format!("it takes {}", known.join(", ")),
                |(_, known)| format!("did you mean `{known}`?"),
            );
            let field: String = field.chars().take(64).flat_map(char::escape_debug).collect();
            errors.add(format!("unknown field `{place}{field}`: {hint}"));
        }
        let place = place.to_owned();
        Some(Self { object, place })
    }

    /// The name of a field, for an error.
    pub(super) fn name(&self, field: &str) -> String {
        format!("`{}{field}`", self.place)
    }

    /// A field's value; `null` counts as left out.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// A text.
    pub(super) fn text(&self, field: &str, errors: &mut Errors) -> Option<&'a str> {
        let value = self.get(field)?;
        if value.as_str().is_none() {
            errors.add(format!("{} must be a text", self.name(field)));
        }
        value.as_str()
    }

    /// A truth value.
    pub(super) fn truth(&self, field: &str, errors: &mut Errors) -> Option<bool> {
        let value = self.get(field)?;
        if value.as_bool().is_none() {
            errors.add(format!("{} must be true or false", self.name(field)));
        }
        value.as_bool()
    }

    /// A version's number or alias: a number, or a text.
    pub(super) fn version(&self, field: &str, errors: &mut Errors) -> Option<String> {
        match self.get(field)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) if number.is_u64() => Some(number.to_string()),
            _ => {
                errors.add(format!("{} must be a version's number or alias", self.name(field)));
                None
            }
        }
    }

    /// A share from 0 to 1; also `"5%"`.
    pub(super) fn share(&self, field: &str, errors: &mut Errors) -> Option<f64> {
        let value = self.get(field)?;
        let share = match value {
            Value::String(text) => text
                .strip_suffix('%')
                .and_then(|percent| percent.trim().parse::<f64>().ok())
                .map(|percent| percent / 100.0),
            value => value.as_f64(),
        };
        let share = share.filter(|share| (0.0..=1.0).contains(share));
        if share.is_none() {
            errors.add(format!(
                "{} must be a share from 0 to 1, or a percentage such as \"5%\"",
                self.name(field)
            ));
        }
        share
    }

    /// A list.
    pub(super) fn list(&self, field: &str, errors: &mut Errors) -> Option<&'a [Value]> {
        let value = self.get(field)?;
        if value.as_array().is_none() {
            errors.add(format!("{} must be a list", self.name(field)));
        }
        value.as_array().map(Vec::as_slice)
    }
}

/// Weights in slots, the first one's taken as the rest.
///
/// Each is rounded on its own, so that together they may be too many by a slot for each: then the largest gives way.
pub(super) fn slots(weights: &[f64]) -> Vec<u32> {
    let mut slots: Vec<u32> = weights.iter().map(|weight| slots_of(*weight)).collect();
    let others: u32 = slots.iter().skip(1).sum();
    if others > SLOTS
        && let Some(largest) = slots.iter_mut().skip(1).max()
    {
        *largest -= others - SLOTS;
    }
    let others: u32 = slots.iter().skip(1).sum();
    if let Some(first) = slots.first_mut() {
        *first = SLOTS - others;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_told_at_once_and_unknown_fields_with_the_nearest_known_one() {
        let body = serde_json::json!({ "wieght": 1, "name": 3, "weight": "120%", "xyz": 0 });
        let mut errors = Errors::default();
        let fields = Fields::of(&body, "arms[0].", &["name", "weight"], &mut errors).unwrap();
        assert_eq!(
            (fields.text("name", &mut errors), fields.share("weight", &mut errors)),
            (None, None)
        );
        assert_eq!(
            errors.0,
            [
                "unknown field `arms[0].wieght`: did you mean `weight`?",
                "unknown field `arms[0].xyz`: it takes name, weight",
                "`arms[0].name` must be a text",
                "`arms[0].weight` must be a share from 0 to 1, or a percentage such as \"5%\"",
            ]
        );
    }

    #[test]
    fn slots_are_all_given_out() {
        for weights in
            [&[0.9, 0.1][..], &[1.0], &[0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0], &[0.0, 0.5, 0.5]]
        {
            assert_eq!(slots(weights).iter().sum::<u32>(), SLOTS, "{weights:?}");
        }
        assert_eq!(slots(&[0.99, 0.01]), [SLOTS - 655, 655]);
    }
}
