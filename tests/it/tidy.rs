//! The code and its pages against each other: arrows between rooms, head comments, flags, keys, links.
//!
//! Text is read as text. Of Rust only so much is understood as the rules need: comments and literals are blanked
//! out first, so that what somebody merely writes about is never taken for code. A rule lists everything that
//! breaks it, with its place and with what would be right; a rule that looks for something in sources is shown an
//! example of it first, so that it cannot fall asleep.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tidegate::monitor::EventKind;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Fails with a list of everything that breaks a rule.
#[track_caller]
fn assert_tidy(findings: &[String]) {
    assert!(findings.is_empty(), "{} to put right:\n  {}", findings.len(), findings.join("\n  "));
}

/// A file of the project.
struct File {
    /// Relative to the project, with `/`.
    path: String,
    text: String,
}

/// Every text file below a folder of the project, in order.
fn files_below(folder: &str) -> Vec<File> {
    let mut files = Vec::new();
    let mut open = vec![Path::new(ROOT).join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = entry.file_name().into_string().unwrap();
            // What is built, fetched or made for one machine is not the project's text.
            let foreign = ["target", "third_party", "__pycache__", ".git", ".cache", ".venv"];
            if foreign.contains(&name.as_str()) || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                open.push(path);
            } else if let Ok(text) = String::from_utf8(fs::read(&path).unwrap()) {
                let path = path.strip_prefix(ROOT).unwrap().to_str().unwrap().replace('\\', "/");
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn rust_below(folder: &str) -> Vec<File> {
    let mut files = files_below(folder);
    files.retain(|file| has_extension(&file.path, "rs"));
    files
}

fn pages() -> Vec<File> {
    let mut files = files_below("");
    files.retain(|file| has_extension(&file.path, "md"));
    files
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

// Rust, as far as the rules need it.

/// The source with comments and literals blanked out; every byte that is left keeps its place.
fn code_of(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + passive_length(&bytes[at..], at > 0 && is_word(bytes[at - 1]));
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).expect("whole literals and comments were replaced by spaces")
}

/// The length of the comment or literal that begins here; 0 if code does.
fn passive_length(rest: &[u8], inside_word: bool) -> usize {
    match rest {
        [b'/', b'/', ..] => find(rest, b"\n").unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_length(rest),
        [b'"', ..] => quoted_length(rest),
        [b'b' | b'c', b'"', ..] if !inside_word => 1 + quoted_length(&rest[1..]),
        [b'r', b'"' | b'#', ..] if !inside_word => raw_length(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !inside_word => raw_length(rest, 2),
        [b'\'', b'\\', ..] => 3 + find(&rest[3..], b"'").map_or(0, |end| end + 1),
        // A character of up to four bytes; whatever closes later is a lifetime.
        [b'\'', ..] => match (2..=5).find(|end| rest.get(*end) == Some(&b'\'')) {
            Some(end) if end == 2 || rest[1] >= 0x80 => end + 1,
            _ => 0,
        },
        _ => 0,
    }
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_length(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        // A raw identifier, such as `r#type`.
        return 0;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    find(&rest[open + 1..], &close).map_or(rest.len(), |end| open + 1 + end + close.len())
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where a word, or a path of words, stands whole.
fn places<'a>(code: &'a str, path: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(path).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].bytes().next_back().is_none_or(|byte| !is_word(byte));
        let after = code[at + path.len()..].bytes().next().is_none_or(|byte| !is_word(byte));
        before && after
    })
}

/// The code that ships: without the inline module of tests, which stands last.
fn shipped(file: &File) -> String {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    if name == "tests.rs" || file.path.contains("/tests/") {
        return String::new();
    }
    let mut code = code_of(&file.text);
    let tests = ["", "pub(super) "].map(|public| format!("#[cfg(test)]\n{public}mod tests {{"));
    if let Some(at) = tests.iter().find_map(|tests| code.find(tests)) {
        code.truncate(at);
    }
    code
}

/// The rooms that a source names behind `crate::`, each with the place.
fn rooms_named(code: &str) -> Vec<(String, usize)> {
    let mut named = Vec::new();
    for at in places(code, "crate") {
        let Some(rest) = code[at..].strip_prefix("crate::") else { continue };
        let begin = at + "crate::".len();
        if rest.starts_with('{') {
            let members = members(rest).into_iter();
            named.extend(members.map(|member| (word_at(rest, member), begin + member)));
        } else {
            named.push((word_at(rest, 0), begin));
        }
    }
    named
}

/// Where the members of `{a::b, c::{d, e}}` begin, on its own level.
fn members(group: &str) -> Vec<usize> {
    let (mut depth, mut inside, mut members) = (0, false, Vec::new());
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => inside = false,
            _ if depth == 1 && is_word(byte) && !inside => {
                inside = true;
                members.push(at);
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    members
}

fn word_at(text: &str, at: usize) -> String {
    text[at..].bytes().take_while(|byte| is_word(*byte)).map(char::from).collect()
}

// The table of ARCHITECTURE.md.

/// A row of the table: a room, and the rooms that it uses.
struct Row {
    layer: u32,
    room: String,
    uses: BTreeSet<String>,
}

/// Rows such as `` | 1 | `wire` | what it owns | `tensor`, `model` | ``.
fn table() -> Vec<Row> {
    let page = read("ARCHITECTURE.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [layer, room, _, uses] = cells[..] else { return None };
        let layer = layer.parse().ok()?;
        let room = room.trim_matches('`').to_owned();
        Some(Row { layer, room, uses: code_spans(uses).into_iter().collect() })
    });
    rows.collect()
}

fn room_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let room = inside.split('/').next()?;
    let room = room.strip_suffix(".rs").unwrap_or(room);
    (room != "main" && room != "lib").then_some(room)
}

#[test]
fn arrows_between_rooms_are_those_of_the_table() {
    let named = rooms_named(&code_of(
        "use crate::{\n a::{b, c},\n d,\n};\nlet x: &crate::e::F; // crate::g\n\"crate::h\"; my_crate::i;",
    ));
    let named: Vec<&str> = named.iter().map(|(room, _)| room.as_str()).collect();
    assert_eq!(named, ["a", "d", "e"], "the rule itself");

    let table = table();
    let mut unused = BTreeSet::new();
    for row in &table {
        unused.extend(row.uses.iter().map(|used| (row.room.clone(), used.clone())));
    }
    let mut findings = Vec::new();
    for file in &rust_below("src") {
        let Some(room) = room_of(&file.path) else { continue };
        let Some(row) = table.iter().find(|row| row.room == room) else { continue };
        for (used, at) in rooms_named(&code_of(&file.text)) {
            unused.remove(&(room.to_owned(), used.clone()));
            if used != room && !row.uses.contains(&used) {
                let line = line_of(&file.text, at);
                findings.push(format!(
                    "{}:{line}: the table of ARCHITECTURE.md has no arrow from `{room}` to `{used}`",
                    file.path
                ));
            }
        }
    }
    findings.extend(unused.iter().map(|(room, used)| {
        format!("ARCHITECTURE.md: nothing in `{room}` uses `{used}` any more; take the arrow away")
    }));
    assert_tidy(&findings);
}

#[test]
fn rooms_are_those_of_the_table() {
    let table = table();
    let files = rust_below("src");
    let built: BTreeSet<&str> = files.iter().filter_map(|file| room_of(&file.path)).collect();
    let listed: BTreeSet<&str> = table.iter().map(|row| row.room.as_str()).collect();
    let missing = built.difference(&listed).map(|room| {
        format!("src/{room}: ARCHITECTURE.md has no row for it: what does it own, what may it use?")
    });
    let gone = listed.difference(&built).map(|room| {
        format!("ARCHITECTURE.md: there is no src/{room}; rooms get their row when they are built")
    });
    assert_tidy(&missing.chain(gone).collect::<Vec<_>>());
    assert_eq!(table.len(), listed.len(), "a room has one row");
}

#[test]
fn rooms_use_only_rooms_above_them_in_the_table() {
    let (mut above, mut layer, mut findings) = (BTreeSet::new(), 0, Vec::new());
    for row in &table() {
        if row.layer < layer {
            findings.push(format!("`{}` stands below a row of a higher layer", row.room));
        }
        layer = row.layer;
        for used in &row.uses {
            if !above.contains(used) {
                findings
                    .push(format!("`{}` uses `{used}`, which does not stand above it", row.room));
            }
        }
        above.insert(row.room.clone());
    }
    assert_tidy(&findings);
}

#[test]
fn no_module_leaves_its_room_by_the_back_door() {
    let mut findings = Vec::new();
    for file in &rust_below("src") {
        // `super` of src/room/mod.rs is the crate, and so on inwards; tests inside a file are one level deeper.
        let folders = file.path.matches('/').count() - 1;
        let depth = folders - usize::from(file.path.ends_with("/mod.rs"));
        let code = shipped(file);
        let climb = "super::".repeat(depth + 1);
        let found = places(&code, "super").find(|at| code[*at..].starts_with(&climb));
        findings.extend(found.map(|at| {
            format!(
                "{}:{}: write `crate::`, so that the arrow is seen",
                file.path,
                line_of(&code, at)
            )
        }));
    }
    assert_tidy(&findings);
}

// Rules for sources.

#[test]
fn every_module_opens_with_its_story() {
    let folders = ["src", "tests", "fuzz", "benches", "loadtests/floor/src"];
    let there = folders.iter().filter(|folder| Path::new(ROOT).join(folder).is_dir());
    let silent =
        there.flat_map(|folder| rust_below(folder)).filter(|file| !file.text.starts_with("//!"));
    let findings = silent.map(|file| format!("{}: the first line begins with `//!`", file.path));
    assert_tidy(&findings.collect::<Vec<_>>());
}

/// Whoever asks the clock cannot be tested with another time: rooms are handed a `monitor::Clock`.
///
/// The one exception is `edge/body.rs`, which times out a slow body by tokio's clock: that clock belongs to the
/// runtime that the wait runs on, and stands still with it in tests.
#[test]
fn only_the_app_asks_the_clock() {
    let asks = |code: &str| -> Vec<usize> {
        let all = ["Instant::now", "SystemTime::now", "elapsed()"];
        all.iter().flat_map(|what| places(code, what).collect::<Vec<_>>()).collect()
    };
    assert_eq!(
        asks("a.elapsed(); Instant::now(); time::SystemTime::now()").len(),
        3,
        "the rule itself"
    );

    let mut findings = Vec::new();
    for file in rust_below("src").iter().filter(|file| file.path != "src/app/mod.rs") {
        let mut code = shipped(file);
        if file.path == "src/edge/body.rs" {
            code = code.replace("tokio::time::Instant::now", "tokio::time::Instant::___");
        }
        findings.extend(asks(&code).into_iter().map(|at| {
            format!("{}:{}: take the time from a `monitor::Clock`", file.path, line_of(&code, at))
        }));
    }
    assert_tidy(&findings);
}

#[test]
fn unsafe_stands_only_in_the_engine_room() {
    let mut seen = 0;
    let mut findings = Vec::new();
    for file in rust_below("src").iter().chain(&rust_below("tests")) {
        let code = code_of(&file.text);
        for at in places(&code, "unsafe") {
            seen += 1;
            // A counting allocator cannot be written without.
            if !file.path.starts_with("src/engine/")
                && file.path != "tests/allocations/allocator.rs"
            {
                findings.push(format!("{}:{}: `unsafe`", file.path, line_of(&code, at)));
            }
        }
    }
    assert_tidy(&findings);
    assert!(seen > 0, "the rule itself: the engine room has `unsafe` for string tensors");
}

#[test]
fn nothing_is_left_for_later() {
    let left = |code: &str| -> Vec<usize> {
        let all = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
        all.iter().flat_map(|what| code.match_indices(what).map(|(at, _)| at)).collect()
    };
    assert_eq!(left("todo!(); #[ignore = \"\"] dbg!(x)").len(), 3, "the rule itself");

    let mut findings = Vec::new();
    for file in &rust_below("") {
        let code = code_of(&file.text);
        findings.extend(left(&code).into_iter().map(|at| {
            let line = line_of(&code, at);
            format!("{}:{line}: {}", file.path, code[at..].lines().next().unwrap_or_default())
        }));
    }
    assert_tidy(&findings);
}

#[test]
fn no_comment_is_wider_than_a_page() {
    const WIDTH: usize = 120;
    let is_wide = |line: &&str| line.trim_start().starts_with("//") && line.chars().count() > WIDTH;
    let of = |width: usize| format!("    // {}", "x".repeat(width - 7));
    assert!(!is_wide(&&*of(WIDTH)) && is_wide(&&*of(WIDTH + 1)), "the rule itself");

    let mut findings = Vec::new();
    for file in &rust_below("") {
        let lines = file.text.lines().enumerate().filter(|(_, line)| is_wide(line));
        findings.extend(lines.map(|(at, _)| {
            format!("{}:{}: a comment wider than {WIDTH} columns; break it", file.path, at + 1)
        }));
    }
    assert_tidy(&findings);
}

#[test]
fn no_function_is_longer_than_a_screen() {
    const LINES: usize = 70;
    /// Functions with the number of their lines; each ends at the brace in its own column.
    fn functions(code: &str) -> Vec<(usize, usize)> {
        let lines: Vec<&str> = code.lines().collect();
        let begins = |line: &str| {
            let words = line.trim_start().split(' ').take_while(|word| *word != "fn");
            line.contains("fn ")
                && words.clone().count() < 5
                && words.into_iter().all(|word| {
                    word.starts_with("pub")
                        || word.starts_with("super)")
                        || ["const", "async", "unsafe", "extern"].contains(&word)
                })
        };
        let length = |at: usize| {
            let column = lines[at].len() - lines[at].trim_start().len();
            let brace = format!("{}}}", " ".repeat(column));
            let end = lines[at..].iter().position(|line| line.trim_end() == brace)?;
            // Of one without a body the brace is another's.
            let head = lines[at..].iter().position(|line| line.contains([';', '{']))?;
            lines[at + head].contains('{').then_some(end + 1)
        };
        let all = (0..lines.len()).filter(|at| begins(lines[*at]));
        all.filter_map(|at| Some((at + 1, length(at)?))).collect()
    }
    let rule =
        "impl A {\n    pub(super) async fn a() {\n        b();\n    }\n}\nfn c();\nfn d(\n) {\n}\n";
    assert_eq!(functions(rule), [(2, 3), (7, 3)], "the rule itself");

    let mut findings = Vec::new();
    for file in &rust_below("src") {
        let long = functions(&shipped(file)).into_iter().filter(|(_, lines)| *lines > LINES);
        findings.extend(long.map(|(at, lines)| {
            format!("{}:{at}: a function of {lines} lines; at most {LINES}", file.path)
        }));
    }
    assert_tidy(&findings);
}

/// A doc says what a thing is or does. Rooms that are older than the rule are named here until somebody rewrites them.
#[test]
fn docs_begin_with_a_noun_or_a_verb() {
    const OLDER: [&str; 17] = [
        "admin",
        "app",
        "cli",
        "drift",
        "edge",
        "engine",
        "lifecycle",
        "model",
        "monitor",
        "registry",
        "rollout",
        "serve",
        "source",
        "state",
        "stats",
        "tensor",
        "wire",
    ];
    let is_question = |line: &&str| {
        let text = line.trim_start();
        let doc = text.strip_prefix("/// ").or_else(|| text.strip_prefix("//! "));
        let first = doc.and_then(|doc| doc.split(' ').next());
        first.is_some_and(|word| ["What", "Whether", "Gives", "How"].contains(&word))
    };
    assert!(
        is_question(&"    /// Whether it is") && !is_question(&"/// However it is"),
        "the rule itself"
    );

    let mut findings = Vec::new();
    for file in &rust_below("src") {
        let is_profile = file.path.starts_with("src/cli/profile/");
        if room_of(&file.path).is_none_or(|room| OLDER.contains(&room)) && !is_profile {
            continue;
        }
        let lines = file.text.lines().enumerate().filter(|(_, line)| is_question(line));
        findings
            .extend(lines.map(|(at, line)| format!("{}:{}: {}", file.path, at + 1, line.trim())));
    }
    assert_tidy(&findings);
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // In parts, so that this file is not one of those that it looks for.
    let homes = ["home", "root", "Users"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for file in &files_below("") {
        let places = homes.iter().map(String::as_str).chain([ROOT]);
        for place in places {
            let before = |at: usize| file.text[..at].bytes().next_back();
            let found = file.text.match_indices(place).map(|(at, _)| at).find(|at| {
                // `https://host/home/` and `a/root/` are other things.
                before(*at).is_none_or(|byte| !is_word(byte) && !b"/.-$}>".contains(&byte))
            });
            findings.extend(found.map(|at| {
                format!("{}:{}: a path below {place}", file.path, line_of(&file.text, at))
            }));
        }
    }
    assert_tidy(&findings);
}

// Rules for pages.

/// The texts between backticks of a line, without those of fences.
fn code_spans(line: &str) -> Vec<String> {
    line.split('`').skip(1).step_by(2).filter(|span| !span.is_empty()).map(str::to_owned).collect()
}

/// A page cut into lines of prose and lines within fences, with their numbers.
fn lines_of(page: &str) -> Vec<(usize, bool, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else {
            lines.push((index + 1, fenced, line));
        }
    }
    lines
}

/// Everything on a page that is set as code: spans of prose, and whole lines of fences.
fn code_on(page: &File) -> Vec<(usize, String)> {
    let mut code = Vec::new();
    for (number, fenced, line) in lines_of(&page.text) {
        if fenced {
            code.push((number, line.to_owned()));
        } else {
            code.extend(code_spans(line).into_iter().map(|span| (number, span)));
        }
    }
    code
}

/// Pages about tidegate itself; those about its tools have the tools' flags.
fn manual() -> Vec<File> {
    let mut pages = pages();
    pages.retain(|page| !page.path.contains('/') || page.path.starts_with("docs/"));
    pages
}

/// What the program says about its commands: flags by command, such as `models list`.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(command) = open.pop() {
        let program = env!("CARGO_BIN_EXE_tidegate");
        let help = Command::new(program).args(command.split_whitespace()).arg("--help").output();
        let help = String::from_utf8(help.unwrap().stdout).unwrap();
        let sections = help.split("\n\n");
        let listed = sections.into_iter().find_map(|section| section.strip_prefix("Commands:\n"));
        for line in listed.unwrap_or_default().lines().filter(|line| !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap_or_default();
            if name != "help" {
                open.push(format!("{command} {name}").trim().to_owned());
            }
        }
        known.insert(command, flags_in(&help).map(str::to_owned).collect());
    }
    assert!(known["serve"].contains("--repository"), "the help has another form: {known:?}");
    known
}

fn flags_in(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| word.starts_with("--") && word.len() > 2)
}

#[test]
fn commands_and_flags_on_pages_exist() {
    let commands = commands();
    let anywhere: BTreeSet<&String> = commands.values().flatten().collect();
    let mut findings = Vec::new();
    for page in &manual() {
        for (line, code) in code_on(page) {
            let place = format!("{}:{line}", page.path);
            if code.starts_with("--") {
                let flag = flags_in(&code).next().unwrap_or_default();
                // Cargo's.
                let builds = flag == "--features" || page.path.starts_with("CONTRIBUTING");
                if !anywhere.contains(&flag.to_owned()) && !builds {
                    findings.push(format!("{place}: no command of tidegate has the flag `{flag}`"));
                }
            }
            for call in calls(&code) {
                findings.extend(check_call(call, &commands).map(|what| format!("{place}: {what}")));
            }
        }
    }
    assert_tidy(&findings);
}

/// The arguments of each call of tidegate in a line of shell.
fn calls(code: &str) -> impl Iterator<Item = &str> {
    let commands = code.split(['|', ';', '&', '(', ')']).map(str::trim);
    commands.filter_map(|command| {
        let command = command.strip_prefix("$ ").unwrap_or(command);
        let (program, arguments) = command.split_once(' ')?;
        (program.rsplit('/').next() == Some("tidegate")).then_some(arguments)
    })
}

fn check_call(arguments: &str, commands: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let arguments = arguments.split(" #").next().unwrap_or_default();
    let mut command = String::new();
    for word in arguments.split_whitespace() {
        let longer = format!("{command} {word}").trim().to_owned();
        if !commands.contains_key(&longer) {
            break;
        }
        command = longer;
    }
    let flags = &commands[&command];
    // `tidegate ready: ...` is what it prints, not a call.
    let printed = arguments.starts_with("ready") || arguments.starts_with("listening");
    if command.is_empty() && !arguments.starts_with('-') && !printed {
        return Some(format!("there is no `tidegate {arguments}`"));
    }
    let strange = flags_in(arguments).find(|flag| !flags.contains(*flag))?;
    Some(format!("`tidegate {command}` has no flag `{strange}`"))
}

#[test]
fn keys_on_pages_exist() {
    let printed = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["config", "schema"]).output();
    let schema: Value = serde_json::from_slice(&printed.unwrap().stdout).unwrap();
    assert!(has_key(&schema, &["server", "http"]), "the schema has another form");
    assert!(has_key(&schema, &["models", "fraud", "required"]), "models are named freely");
    assert!(!has_key(&schema, &["server", "nosuch"]), "the rule itself");

    let mut findings = Vec::new();
    for page in &manual() {
        for (line, code) in code_on(page) {
            // What it says about a wrong key is worth showing.
            if code.contains("unknown key") {
                continue;
            }
            for path in keys_in(&code, &schema) {
                let is_key = has_key(&schema, &path.iter().map(String::as_str).collect::<Vec<_>>());
                let path = path.join(".");
                // `drift.detected` is an event, though there is a section `drift`.
                let is_event = EventKind::ALL.iter().any(|kind| kind.name() == path);
                if !is_key && !is_event {
                    findings.push(format!("{}:{line}: there is no key `{path}`", page.path));
                }
            }
        }
    }
    assert_tidy(&findings);
}

/// Paths of keys in a piece of code: `[section]`, `section.key`, `TIDEGATE__SECTION__KEY`.
fn keys_in(code: &str, schema: &Value) -> Vec<Vec<String>> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let path_of = |name: &str| -> Vec<String> { name.split('.').map(str::to_owned).collect() };
    let mut keys = Vec::new();
    for word in code.split(|c: char| !is_key(c)).filter(|word| word.starts_with("TIDEGATE__")) {
        let path: Vec<String> = word.split("__").skip(1).map(str::to_lowercase).collect();
        // The names of parts, where the form itself is explained.
        if path != ["section", "key"] {
            keys.push(path);
        }
    }
    let code = code.trim();
    let section = code.strip_prefix('[').and_then(|code| code.strip_suffix(']'));
    if let Some(section) = section.filter(|section| section.starts_with(char::is_alphabetic)) {
        if section.chars().all(is_key) {
            keys.push(path_of(section));
        }
        return keys;
    }
    let name = code.split(|c: char| !is_key(c)).next().unwrap_or_default();
    let path = path_of(name);
    let is_file = ["rs", "toml", "md", "onnx", "py"].iter().any(|end| has_extension(name, end));
    if path.len() > 1 && schema["properties"].get(&path[0]).is_some() && !is_file {
        keys.push(path);
    }
    keys
}

fn has_key(schema: &Value, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    let free = schema.get("additionalProperties").filter(|free| free.is_object());
    let inner = schema["properties"].get(first).or(free).map(|inner| resolved(schema, inner));
    inner.is_some_and(|inner| has_key(inner, rest))
}

/// A schema inside another; the project's schema is written without references.
fn resolved<'a>(schema: &'a Value, inner: &'a Value) -> &'a Value {
    assert!(inner.get("$ref").is_none(), "a reference in the schema: {schema}");
    inner
}

#[test]
fn relative_links_on_pages_lead_somewhere() {
    let mut findings = Vec::new();
    for page in &pages() {
        let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
        for (line, target) in links(page) {
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { PathBuf::from(&page.path) } else { folder.join(file) };
            let full = Path::new(ROOT).join(&path);
            let place = format!("{}:{line}", page.path);
            if !full.exists() {
                findings.push(format!("{place}: there is no {}", path.display()));
            } else if !anchor.is_empty()
                && !anchors(&fs::read_to_string(full).unwrap()).contains(anchor)
            {
                findings.push(format!("{place}: {} has no heading #{anchor}", path.display()));
            }
        }
    }
    assert_tidy(&findings);
}

/// Targets of `[text](target)` that lie in the project.
fn links(page: &File) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, fenced, line) in lines_of(&page.text) {
        for (at, _) in line.match_indices("](").filter(|_| !fenced) {
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push((number, target.to_owned()));
            }
        }
    }
    links
}

/// Anchors of a page's headings, as forges make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings =
        lines_of(page).into_iter().filter(|(_, fenced, line)| !fenced && line.starts_with('#'));
    let anchors = headings.map(|(_, _, line)| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    });
    anchors.collect()
}
