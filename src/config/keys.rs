//! The keys there are, as the schema of `file` lists them, and which one a misspelt key was meant to be.
//!
//! Not here: values (`value`), where a key was given (`draft`).

use serde_json::Value as Json;

/// Keys that had another name once: old and new, `section.key` each. They are refused with the new name, so that
/// a configuration never changes its meaning in silence.
pub(super) const RENAMED: &[(&str, &str)] = &[];

/// Words longer than this are no misspellings.
const MISSPELT_BYTES_MAX: usize = 64;

/// All keys of the configuration.
pub(super) struct Keys {
    sections: Vec<Section>,
}

/// A section of the file: `[server]`, or `[models.NAME]`, whose keys hold for one model each.
pub(super) struct Section {
    pub(super) name: String,
    pub(super) per_model: bool,
    pub(super) keys: Vec<Key>,
}

/// A key of a section.
pub(super) struct Key {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// Reading of the text of an environment variable or flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Whole,
    Decimal,
    Switch,
}

impl Keys {
    /// Lists the keys of a schema without references.
    pub(super) fn of(schema: &Json) -> Self {
        let sections = properties(schema)
            .map(|(name, section)| {
                let one_model = &section["additionalProperties"];
                let per_model = one_model.is_object();
                let keys = properties(if per_model { one_model } else { section });
                Section { name: name.clone(), per_model, keys: keys.map(Key::of).collect() }
            })
            .collect();
        Self { sections }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The key at `[section, key]` or `[section, model, key]`.
    pub(super) fn key(&self, path: &[String]) -> Option<&Key> {
        let section = self.section(path.first()?)?;
        let depth = if section.per_model { 3 } else { 2 };
        (path.len() == depth).then(|| section.key(&path[depth - 1])).flatten()
    }

    /// Advice about a section that does not exist.
    pub(super) fn advise_section(&self, name: &str) -> String {
        let mut homes = self.sections.iter().filter(|s| !s.per_model && s.key(name).is_some());
        if let (Some(home), None) = (homes.next(), homes.next()) {
            return format!("stands in section [{}]", home.name);
        }
        let names = self.sections.iter().map(|section| section.name.as_str());
        match nearest(name, names.clone()) {
            Some(meant) => format!("unknown section, did you mean [{meant}]?"),
            None => format!("unknown section; there are {}", names.collect::<Vec<_>>().join(", ")),
        }
    }

    /// Advice about a key that `section` does not have.
    pub(super) fn advise_key(&self, section: &Section, name: &str) -> String {
        if let Some(meant) = nearest(name, section.names()) {
            return format!("unknown key, did you mean `{meant}`?");
        }
        let mut homes = self.sections.iter().filter(|s| !s.per_model && s.key(name).is_some());
        if let Some(home) = homes.next() {
            return format!("unknown key here, it stands in section [{}]", home.name);
        }
        let names = section.names().collect::<Vec<_>>().join(", ");
        format!("unknown key; [{}] has {names}", section.name)
    }

    /// All environment variables without the prefix, each with its section and key; those of models are left out,
    /// as their names are not known.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, &Section, &Key)> {
        self.sections.iter().filter(|section| !section.per_model).flat_map(|section| {
            let variable = |key: &Key| format!("{}__{}", section.name, key.name);
            section.keys.iter().map(move |key| (variable(key).to_uppercase(), section, key))
        })
    }
}

impl Section {
    pub(super) fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.name.as_str())
    }
}

impl Key {
    fn of((name, schema): (&String, &Json)) -> Self {
        let kind = match schema["type"].as_str() {
            Some("integer") => Kind::Whole,
            Some("number") => Kind::Decimal,
            Some("boolean") => Kind::Switch,
            _ => Kind::Text,
        };
        Self { name: name.clone(), kind }
    }
}

impl Kind {
    /// Reads text as a value of this kind; what can't be read stays text, for the key itself to refuse.
    pub(super) fn read(self, text: &str) -> toml::Value {
        let word = text.trim();
        match (self, word) {
            (Self::Whole, _) => {
                word.parse().map_or_else(|_| text.to_owned().into(), toml::Value::Integer)
            }
            (Self::Decimal, _) => {
                word.parse().map_or_else(|_| text.to_owned().into(), toml::Value::Float)
            }
            (Self::Switch, "true" | "on") => true.into(),
            (Self::Switch, "false" | "off") => false.into(),
            _ => text.to_owned().into(),
        }
    }
}

/// The candidate that `word` was most likely meant to be, if any is close.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if word.len() > MISSPELT_BYTES_MAX {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let near = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn properties(schema: &Json) -> impl Iterator<Item = (&String, &Json)> {
    schema["properties"].as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_words_are_suggested() {
        for (word, expected) in [
            ("htpp", Some("http")),
            ("HTTP", Some("http")),
            ("drain-delay", Some("drain_delay")),
            ("drain_dely", Some("drain_delay")),
            ("zzzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, ["http", "grpc", "drain_delay"]), expected, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), ["http"]), None);
    }
}
