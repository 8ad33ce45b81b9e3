//! The example file: every key with its reason and default, written from the types of `file`.
//!
//! Defaults stand behind `#` without a blank, so that taking every such `#` away changes nothing; values that are
//! only made up stand behind `# `, like prose.
//!
//! Not here: the keys themselves and what is said about them (`file`).

use serde_json::Value as Json;

use super::file::File;

const HEAD: &str = "\
# tidegate's configuration: every key, with its default and the reason for it.
#
# tidegate needs no configuration; keep only what differs. It reads this file where it is told to: `--config FILE`
# or the environment variable TIDEGATE_CONFIG. Every key is also an environment variable: TIDEGATE__SERVER__HTTP
# for http in [server], TIDEGATE__MODELS__fraud__REQUIRED for required in [models.fraud]. Flags win over the
# environment, the environment over this file, this file over the defaults.
#
# Durations are written as \"500ms\", \"10s\", \"5m\", \"1h\", \"1d\"; sizes as \"100B\", \"1KiB\", \"16MiB\", \"4GiB\", \"1TiB\".
# An unknown key is an error. `tidegate check` lists everything that is wrong with this file.
";

/// The widest line of prose, in characters.
const LINE_CHARS_MAX: usize = 110;

/// Writes the example file.
pub(super) fn example(schema: &Json) -> String {
    let sample = toml::to_string(&File::sample()).expect("the sample is plain tables and values");
    let default = toml::Table::try_from(File::default()).expect("so is the default");
    let mut out = HEAD.to_owned();
    let mut section = Vec::new();
    // The serialiser keeps the order of the fields and writes one section or key a line.
    for line in sample.lines().filter(|line| !line.is_empty()) {
        if let Some(head) = line.strip_prefix('[').and_then(|head| head.strip_suffix(']')) {
            let entry = head.strip_prefix('[').and_then(|head| head.strip_suffix(']'));
            section = entry.unwrap_or(head).split('.').collect();
            out.push('\n');
            let made_up = section.len() > 1;
            let is_key = section.len() > 2 || entry.is_some();
            let path = if is_key { &section[..] } else { &section[..1] };
            prose(&mut out, described(schema, path));
            out.push_str(if made_up { "# " } else { "" });
            out.push_str(line);
            out.push('\n');
        } else if let Some((key, value)) = line.split_once(" = ") {
            let path = [&section[..], &[key]].concat();
            out.push('\n');
            prose(&mut out, described(schema, &path));
            let defaults = section.first().filter(|_| section.len() == 1);
            let defaults = defaults.and_then(|name| default.get(*name));
            let is_default =
                defaults.and_then(|keys| keys.get(key)).is_some_and(|d| d.to_string() == value);
            out.push_str(if is_default { "#" } else { "# " });
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Describes a section or key as the schema does.
fn described<'s>(schema: &'s Json, path: &[&str]) -> &'s str {
    let step = |schema: &'s Json, name: &&str| match &schema["properties"][*name] {
        Json::Null if schema["items"].is_object() => &schema["items"]["properties"][*name],
        Json::Null => &schema["additionalProperties"],
        property => property,
    };
    path.iter().fold(schema, step)["description"].as_str().unwrap_or("")
}

/// Writes text as comment lines.
fn prose(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > LINE_CHARS_MAX {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}
