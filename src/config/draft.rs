//! The configuration as it is given: file, environment and flags laid over each other, key by key.
//!
//! Every value is read by itself, in the layer where it stands, so that one mistake does not hide the next, nor
//! a value that a higher layer replaces.
//!
//! Not here: what values mean together (`check`).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Findings, Origin, VARIABLE_PREFIX,
    file::File,
    keys::{Keys, Kind, RENAMED, nearest},
    value::model_name_advice,
};
use crate::model::ModelName;

/// A key in the file.
type Name<'i> = Spanned<Cow<'i, str>>;

/// Values given so far.
pub(super) struct Draft {
    keys: Keys,
    renamed: &'static [(&'static str, &'static str)],
    given: toml::Table,
    places: Places,
    findings: Findings,
}

/// Which keys were given, and where.
#[derive(Default)]
pub(super) struct Places {
    origins: BTreeMap<String, Origin>,
    refused: BTreeSet<String>,
}

impl Draft {
    /// An empty draft for the keys of `schema`; `file` is named in findings.
    pub(super) fn new(schema: &serde_json::Value, file: Option<&Path>) -> Self {
        Self {
            keys: Keys::of(schema),
            renamed: RENAMED,
            given: toml::Table::new(),
            places: Places::default(),
            findings: Findings::new(file),
        }
    }

    /// Lays the text of a file over the draft.
    pub(super) fn lay_file(&mut self, text: &str) {
        let page = Page::of(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| page.line(span.start));
            let shown = line.map_or("syntax", |line| page.text_of(line));
            let advice = error.message().lines().collect::<Vec<_>>().join(", ");
            self.findings.add(shown, None, advice, &Origin::File { line });
        }
        // What is read beside a syntax error may be anything; no findings about that.
        if errors.is_empty() {
            for (name, content) in root.get_ref() {
                self.lay_section(&page, name, content);
            }
        }
        dismantle(root.into_inner());
    }

    /// Lays environment variables over the draft; those without tidegate's prefix are none of its business.
    pub(super) fn lay_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) {
        for (variable, text) in variables {
            let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else { continue };
            let origin = Origin::Environment { variable: variable.clone() };
            match self.key_of_variable(name) {
                Ok((path, kind)) => {
                    self.lay(&path, kind.read(&text), &quoted(&text), &origin);
                }
                Err(advice) => self.findings.add(&variable, Some(&quoted(&text)), advice, &origin),
            }
        }
    }

    /// Lays the value of a flag over the draft.
    pub(super) fn lay_flag(&mut self, flag: &str, path: [&str; 2], text: &str) {
        let path = path.map(str::to_owned);
        let kind = self.keys.key(&path).map_or(Kind::Text, |key| key.kind);
        let origin = Origin::Flag { flag: flag.to_owned() };
        self.lay(&path, kind.read(text), &quoted(text), &origin);
    }

    /// The file that was given, where each key came from, and what was wrong so far.
    pub(super) fn finish(self) -> (File, Places, Findings) {
        let file = File::deserialize(toml::Value::Table(self.given))
            .expect("every key was read by itself before");
        (file, self.places, self.findings)
    }

    /// Adds a finding about the file as a whole.
    pub(super) fn refuse_file(&mut self, path: &Path, advice: String) {
        let shown = quoted(&path.to_string_lossy());
        self.findings.add("file", Some(&shown), advice, &Origin::File { line: None });
    }

    /// Adds a finding about a flag whose value can't be read as text.
    pub(super) fn refuse_flag(&mut self, flag: &str, key: &str, advice: &str) {
        self.findings.add(key, None, advice, &Origin::Flag { flag: flag.to_owned() });
    }

    fn lay_section(&mut self, page: &Page, name: &Name, content: &Spanned<DeValue>) {
        let origin = page.origin(name);
        let path = vec![name.get_ref().to_string()];
        let Some(section) = self.keys.section(name.get_ref()) else {
            let advice = self.keys.advise_section(name.get_ref());
            return self.refuse(&path, page.shown(content), advice, &origin);
        };
        let per_model = section.per_model;
        let DeValue::Table(table) = content.get_ref() else {
            let head = if per_model { format!("{}.NAME", path[0]) } else { path[0].clone() };
            let advice = format!("must be a section [{head}]");
            return self.refuse(&path, page.shown(content), advice, &origin);
        };
        for (key, value) in table {
            if per_model {
                self.lay_model(page, &path[0], key, value);
            } else {
                self.lay_written(page, &path, key, value);
            }
        }
    }

    fn lay_model(&mut self, page: &Page, section: &str, name: &Name, content: &Spanned<DeValue>) {
        let origin = page.origin(name);
        let path = vec![section.to_owned(), name.get_ref().to_string()];
        let DeValue::Table(table) = content.get_ref() else {
            let advice = format!("must be a section [{}]", written_path(&path));
            return self.refuse(&path, page.shown(content), advice, &origin);
        };
        if ModelName::parse(name.get_ref()).is_err() {
            return self.refuse(&path, None, model_name_advice(), &origin);
        }
        // The section is kept even if it says nothing.
        insert(&mut self.given, &path, None);
        for (key, value) in table {
            self.lay_written(page, &path, key, value);
        }
    }

    fn lay_written(
        &mut self,
        page: &Page,
        section: &[String],
        key: &Name,
        value: &Spanned<DeValue>,
    ) {
        let path = [section, &[key.get_ref().to_string()]].concat();
        let shown = page.shown(value).unwrap_or("{ ... }");
        self.lay(&path, plain(value.get_ref(), LEVELS_MAX), shown, &page.origin(key));
    }

    /// Reads one value by itself and keeps it, or says what is wrong with it.
    fn lay(&mut self, path: &[String], value: toml::Value, shown: &str, origin: &Origin) {
        if self.keys.key(path).is_none() {
            let section = self.keys.section(&path[0]).expect("callers pass known sections");
            let advice = self.keys.advise_key(section, path.last().map_or("", String::as_str));
            return self.refuse(path, Some(shown), advice, origin);
        }
        // Webhooks may hold secrets.
        let shown = if path == ["notify", "webhook"] { "..." } else { shown };
        let mut alone = toml::Table::new();
        insert(&mut alone, path, Some(value.clone()));
        match File::deserialize(toml::Value::Table(alone)) {
            Ok(_) => {
                insert(&mut self.given, path, Some(value));
                self.places.origins.insert(written_path(path), origin.clone());
            }
            Err(error) => self.refuse(path, Some(shown), error.message().to_owned(), origin),
        }
    }

    fn refuse(&mut self, path: &[String], shown: Option<&str>, advice: String, origin: &Origin) {
        let key = written_path(path);
        let renamed = self.renamed.iter().find(|(old, _)| *old == key);
        let advice = renamed.map_or(advice, |(_, new)| format!("is now called `{new}`"));
        self.findings.add(&key, shown, advice, origin);
        self.places.refused.insert(key);
    }

    /// The key that `SECTION__KEY` or `MODELS__name__KEY` stands for, or what to do about it.
    fn key_of_variable(&self, name: &str) -> Result<(Vec<String>, Kind), String> {
        if let Some((_, section, key)) = self.keys.variables().find(|(known, ..)| known == name) {
            return Ok((vec![section.name.clone(), key.name.clone()], key.kind));
        }
        if let Some(("MODELS", of_model)) = name.split_once("__") {
            return self.key_of_model_variable(of_model);
        }
        let old = name.to_lowercase().replacen("__", ".", 1);
        if let Some((_, new)) = self.renamed.iter().find(|(renamed, _)| *renamed == old) {
            let new = new.to_uppercase().replace('.', "__");
            return Err(format!("is now called `{VARIABLE_PREFIX}{new}`"));
        }
        let known: Vec<String> = self.keys.variables().map(|(known, ..)| known).collect();
        Err(match nearest(name, known.iter().map(String::as_str)) {
            Some(meant) => format!("unknown variable, did you mean `{VARIABLE_PREFIX}{meant}`?"),
            None => format!("unknown variable; variables are `{VARIABLE_PREFIX}SECTION__KEY`"),
        })
    }

    fn key_of_model_variable(&self, name: &str) -> Result<(Vec<String>, Kind), String> {
        let section = self.keys.section("models").expect("the file has this section");
        let Some((model, key)) = name.rsplit_once("__") else {
            return Err(format!("unknown variable; write `{VARIABLE_PREFIX}MODELS__name__KEY`"));
        };
        if ModelName::parse(model).is_err() {
            return Err(format!("`{}` {}", model.escape_debug(), model_name_advice()));
        }
        let Some(known) = section.keys.iter().find(|known| known.name.to_uppercase() == key) else {
            return Err(match nearest(key, section.keys.iter().map(|known| known.name.as_str())) {
                Some(meant) => {
                    let meant = meant.to_uppercase();
                    format!(
                        "unknown variable, did you mean `{VARIABLE_PREFIX}MODELS__{model}__{meant}`?"
                    )
                }
                None => self.keys.advise_key(section, key),
            });
        };
        let path = vec![section.name.clone(), model.to_owned(), known.name.clone()];
        Ok((path, known.kind))
    }
}

impl Places {
    /// True if a value of this key was refused, in any layer.
    pub(super) fn refused(&self, key: &str) -> bool {
        self.refused.contains(key)
    }

    /// Where the value of this key was given. `None`: nowhere, it is the default.
    pub(super) fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(key)
    }
}

/// The text of a file, with its lines.
struct Page<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Page<'t> {
    fn of(text: &'t str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = std::iter::once(0).chain(after_breaks.map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line of a byte, counted from 1.
    fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    fn text_of(&self, line: usize) -> &'t str {
        let start = line.checked_sub(1).and_then(|index| self.starts.get(index)).copied();
        let rest = start.and_then(|start| self.text.get(start..)).unwrap_or("");
        rest.lines().next().unwrap_or("").trim()
    }

    fn origin(&self, name: &Name) -> Origin {
        Origin::File { line: Some(self.line(name.span().start)) }
    }

    /// The value as it stands in the file. `None`: it is spread over several lines or sections.
    fn shown(&self, value: &Spanned<DeValue>) -> Option<&'t str> {
        let of_lines = match value.get_ref() {
            DeValue::Table(_) => true,
            DeValue::Array(array) => {
                array.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_)))
            }
            _ => false,
        };
        if of_lines { None } else { self.text.get(value.span()) }
    }
}

/// Levels of tables and arrays in a value that are read: as many as a rollout's policy has.
const LEVELS_MAX: usize = 8;

/// A value without its place. What lies too deep is left empty, which every key refuses.
fn plain(value: &DeValue, levels_max: usize) -> toml::Value {
    match value {
        DeValue::String(text) => text.to_string().into(),
        // What 64 bits can't hold stays text: the key says what its bounds are.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string().into(), toml::Value::Integer),
        DeValue::Float(number) => number.as_str().parse().unwrap_or(f64::NAN).into(),
        DeValue::Boolean(yes) => (*yes).into(),
        DeValue::Datetime(time) => (*time).into(),
        DeValue::Array(_) | DeValue::Table(_) if levels_max == 0 => toml::Table::new().into(),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| plain(item.get_ref(), levels_max - 1));
            items.collect::<Vec<_>>().into()
        }
        DeValue::Table(table) => {
            let entry = |(name, value): (&Name, &Spanned<DeValue>)| {
                (name.get_ref().to_string(), plain(value.get_ref(), levels_max - 1))
            };
            table.iter().map(entry).collect::<toml::Table>().into()
        }
    }
}

/// Drops a file's tables level by level. The parser bounds brackets and dots apart, so that both together nest
/// thousands of levels, and dropping those from the outside in would exhaust a small stack.
fn dismantle(root: DeTable) {
    let mut rest: Vec<DeValue> = vec![DeValue::Table(root)];
    while let Some(value) = rest.pop() {
        match value {
            DeValue::Table(table) => rest.extend(table.into_iter().map(|(_, v)| v.into_inner())),
            DeValue::Array(array) => rest.extend(array.into_iter().map(Spanned::into_inner)),
            _ => {}
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

/// The path as TOML writes it: parts that are no bare keys stand in quotes.
fn written_path(path: &[String]) -> String {
    let bare = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    let parts = path.iter().map(|part| if bare(part) { part.clone() } else { quoted(part) });
    parts.collect::<Vec<_>>().join(".")
}

/// Puts a value, or an empty table, at a path.
fn insert(table: &mut toml::Table, path: &[String], value: Option<toml::Value>) {
    match path {
        [] => {}
        [key] => {
            let value = value.unwrap_or_else(|| toml::Table::new().into());
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let section = table.entry(section.clone()).or_insert_with(|| toml::Table::new().into());
            if let toml::Value::Table(section) = section {
                insert(section, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamed_keys_are_refused_with_their_new_name() {
        let mut draft = Draft::new(&super::super::schema(), Some(Path::new("t.toml")));
        draft.renamed = &[("server.port", "server.http"), ("metrics.serial", "logs.level")];
        draft.lay_file("[server]\nport = 1\n");
        draft.lay_environment([("TIDEGATE__METRICS__SERIAL".to_owned(), "5".to_owned())]);
        let (_, _, findings) = draft.finish();
        assert_eq!(
            findings.to_string(),
            "t.toml: 2 problems\n  \
             server.port = 1                     is now called `server.http` (line 2)\n  \
             TIDEGATE__METRICS__SERIAL = \"5\"     is now called `TIDEGATE__LOGS__LEVEL`"
        );
    }
}
