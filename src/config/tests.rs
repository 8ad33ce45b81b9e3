//! The configuration as a user meets it: texts in, findings out.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::rollout::Policy;

const NO_VARIABLES: [(&str, &str); 0] = [];

/// Loads a file with this text, these variables and flags; the file's name in findings is `tidegate.toml`.
fn load_all<const N: usize>(
    text: &str,
    variables: [(&str, &str); N],
    flags: Flags,
) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidegate.toml");
    std::fs::write(&path, text).unwrap();
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let folder = format!("{}/", folder.path().display());
    load(Sources { file: Some(path), environment, flags })
        .map_err(|findings| findings.to_string().replace(&folder, ""))
}

fn check(text: &str, expected: &str) {
    let told = check_text(text).expect_err(text).to_string();
    let lines: Vec<&str> = told.lines().map(str::trim_end).collect();
    let expected: Vec<&str> = expected.trim().lines().map(str::trim_end).collect();
    assert_eq!(lines, expected, "{text}\n{told}");
}

#[test]
fn nothing_said_means_the_defaults() {
    assert_eq!(check_text(""), Ok(Config::default()));
    let environment: [(String, String); 0] = [];
    let sources = Sources { file: None, environment, flags: Flags::default() };
    assert_eq!(load(sources), Ok(Config::default()));
}

#[test]
fn what_is_written_arrives() {
    let config = check_text(
        r#"
        [server]
        http = "0.0.0.0:9000"
        workers = 3
        grace = "1m"
        [limits]
        body = "32MiB"
        connections = 0
        [repository]
        model_name = "fraud"
        [models."fraud.v2"]
        engine = "tract"
        required = true
        [models.iris]
        "#,
    )
    .unwrap();
    assert_eq!(config.edge.http, "0.0.0.0:9000".parse().unwrap());
    assert_eq!(config.edge.workers.map(Into::into), Some(3_usize));
    assert_eq!(config.edge.grace, Duration::from_mins(1));
    assert_eq!(config.edge.limits.body_bytes_max, 32 << 20);
    assert_eq!(config.edge.limits.connections_max, None);
    assert_eq!(config.source.model_name.as_deref(), Some("fraud"));
    assert!(!config.repository_api, "the data plane is open to the network");
    let engine = Some(EngineChoice::Tract);
    assert_eq!(
        config.models["fraud.v2"],
        ModelPolicy { engine, required: true, ..ModelPolicy::default() }
    );
    assert_eq!(config.models["iris"], ModelPolicy::default());
}

#[test]
fn all_findings_come_at_once() {
    check(
        r#"
[server]
http = "localhost:8000"
drain_delay = "5"
[limits]
body = "16MB"
headers = 0
[models.fraud]
required = "yes"
engine = "onnx-runtime"
"#,
        r#"
tidegate.toml: 6 problems
  server.http = "localhost:8000"           must be an IP address and a port, for example "127.0.0.1:8000" (line 3)
  server.drain_delay = "5"                 needs a unit, for example "5s" (line 4)
  limits.body = "16MB"                     has an unknown unit; there are B, KiB, MiB, GiB, TiB; did you mean "16MiB"? (line 6)
  limits.headers = 0                       must lie between 1 and 1024 (line 7)
  models.fraud.required = "yes"            must be true or false (line 9)
  models.fraud.engine = "onnx-runtime"     must be "auto", "onnxruntime" or "tract"; did you mean "onnxruntime"? (line 10)
"#,
    );
}

#[test]
fn unknown_keys_are_refused_with_what_was_meant() {
    check(
        r#"
http = "127.0.0.1:1"
top = 1
[sever]
[server]
htpp = "127.0.0.1:1"
idle_timeout = "1s"
colour = "red"
"server.http" = 1
[models.a]
canary = 1
[models."a b"]
required = true
"#,
        r#"
tidegate.toml: 9 problems
  http = "127.0.0.1:1"            stands in section [server] (line 2)
  top = 1                         unknown section; there are drift, engine, feedback, limits, logs, metrics, models, notify, predictions, proof, repository, serve, server, state, tracing, validation (line 3)
  sever                           unknown section, did you mean [server]? (line 4)
  server.htpp = "127.0.0.1:1"     unknown key, did you mean `http`? (line 6)
  server.idle_timeout = "1s"      unknown key here, it stands in section [limits] (line 7)
  server.colour = "red"           unknown key; [server] has admin, admin_connections, drain_delay, grace, grpc, http, web_pages, workers (line 8)
  server."server.http" = 1        unknown key; [server] has admin, admin_connections, drain_delay, grace, grpc, http, web_pages, workers (line 9)
  models.a.canary = 1             unknown key; [models] has contract, drift, engine, feedback, on_new_version, predictions, required, retrain, rollout, route_override, segments, signature_may_change (line 11)
  models."a b"                    must be a model name: 1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit, without `..` (line 12)
"#,
    );
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    check(
        r#"
server = 1
models = []
[limits]
body = 5
headers = "64"
inputs = 99999999999999999999
outputs = 1.5
json_depth = { a = 1 }
[limits.body_grace]
a = 1
[repository]
root = 7
model_name = []
[[engine]]
default = "tract"
"#,
        r#"
tidegate.toml: 11 problems
  server = 1                               must be a section [server] (line 2)
  models = []                              must be a section [models.NAME] (line 3)
  limits.body = 5                          needs a unit, for example "5MiB" (line 5)
  limits.headers = "64"                    must stand without quotes: 64 (line 6)
  limits.inputs = 99999999999999999999     must lie between 1 and 65536 (line 7)
  limits.outputs = 1.5                     must be a whole number from 1 to 65536 (line 8)
  limits.json_depth = { ... }              must be a whole number from 4 to 256 (line 9)
  limits.body_grace = { ... }              must be text with a unit, for example "10s" (line 10)
  repository.root = 7                      must stand in quotes: "7" (line 13)
  repository.model_name = []               must be a model name: 1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit, without `..` (line 14)
  engine                                   must be a section [engine] (line 15)
"#,
    );
}

#[test]
fn syntax_errors_come_with_their_line() {
    check(
        "[server\nhttp = 1",
        r"
tidegate.toml: 1 problem
  [server     unclosed table, expected `]` (line 1)
",
    );
    check(
        "[server]\nhttp = \"a\"\nhttp = \"b\"\n[limits]\nbody = oops",
        r#"
tidegate.toml: 2 problems
  http = "b"      duplicate key (line 3)
  body = oops     string values must be quoted, expected literal string (line 5)
"#,
    );
}

#[test]
fn byte_order_mark_and_windows_lines_are_accepted() {
    let config = check_text("\u{feff}[server]\r\nhttp = \"127.0.0.1:9\"\r\n").unwrap();
    assert_eq!(config.edge.http.port(), 9);
}

#[test]
fn contradictions_are_found() {
    check(
        r#"
[server]
http = "127.0.0.1:9000"
admin = "0.0.0.0:9000"
grpc = "[::]:9000"
grace = "500ms"
[limits]
body = "2GiB"
in_flight_bytes = "1GiB"
uri_bytes = "16KiB"
header_bytes = "8KiB"
"#,
        r#"
tidegate.toml: 6 problems
  server.admin = "0.0.0.0:9000"       takes the port of `server.http` ("127.0.0.1:9000") (line 4)
  server.grpc = "[::]:9000"           takes the port of `server.http` ("127.0.0.1:9000") (line 5)
  server.grpc = "[::]:9000"           takes the port of `server.admin` ("0.0.0.0:9000") (line 5)
  server.grace = "500ms"              must be longer than `server.drain_delay` ("1s", its default) (line 6)
  limits.in_flight_bytes = "1GiB"     must be at least `limits.body` ("2GiB") (line 9)
  limits.header_bytes = "8KiB"        must be at least `limits.uri_bytes` ("16KiB") (line 11)
"#,
    );
    for right in [
        "[server]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"",
        "[server]\nhttp = \"127.0.0.1:9000\"\nadmin = \"127.0.0.2:9000\"",
        "[server]\nhttp = \"[::1]:9000\"\nadmin = \"0.0.0.0:9000\"",
        "[server]\nhttp = \"127.0.0.1:8001\"",
    ] {
        assert!(check_text(right).is_ok(), "{right}");
    }
    // A refused value does not drag its partner down.
    check(
        "[server]\ngrace = \"500ms\"\ndrain_delay = \"x\"",
        r#"
tidegate.toml: 1 problem
  server.drain_delay = "x"     must be a whole number with a unit, for example "10s" (line 3)
"#,
    );
}

#[test]
fn flag_wins_over_environment_over_file_over_default() {
    let text = "[server]\nhttp = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\ngrpc = \"127.0.0.1:3\"";
    let variables =
        [("TIDEGATE__SERVER__HTTP", "127.0.0.1:11"), ("TIDEGATE__SERVER__ADMIN", "127.0.0.1:12")];
    let flags = Flags { http: Some("127.0.0.1:21".to_owned()), ..Flags::default() };
    let config = load_all(text, variables, flags).unwrap();
    assert_eq!(config.edge.http.port(), 21);
    assert_eq!(config.admin.address.port(), 12);
    assert_eq!(config.reserved.grpc.port(), 3);
    assert_eq!(config.edge.grace, edge::Settings::default().grace);
}

#[test]
fn variables_are_read_by_the_key_they_stand_for() {
    let variables = [
        ("TIDEGATE__DRIFT__TOLERANCE", "0.05"),
        ("TIDEGATE__SERVER__WORKERS", " 4 "),
        ("TIDEGATE__LIMITS__BODY", "1MiB"),
        ("TIDEGATE__REPOSITORY__API", "off"),
        ("TIDEGATE__MODELS__fraud__REQUIRED", "on"),
        ("TIDEGATE__MODELS__a__b__ENGINE", "tract"),
        ("TIDEGATE_PORT", "tcp://10.0.0.1:8000"),
        ("PATH", "/bin"),
    ];
    let config =
        load_all("[models.fraud]\nengine = \"tract\"", variables, Flags::default()).unwrap();
    assert_eq!(config.edge.workers.map(Into::into), Some(4_usize));
    assert_eq!(config.edge.limits.body_bytes_max, 1 << 20);
    assert!(!config.repository_api);
    let engine = Some(EngineChoice::Tract);
    assert_eq!(
        config.models["fraud"],
        ModelPolicy { engine, required: true, ..ModelPolicy::default() }
    );
    assert_eq!(config.models["a__b"], ModelPolicy { engine, ..ModelPolicy::default() });
    assert_eq!(config.drift.tolerance.to_bits(), 0.05_f64.to_bits());
}

#[test]
fn findings_name_their_layer() {
    let variables = [
        ("TIDEGATE__SERVER__WORKERS", "four"),
        ("TIDEGATE__SERVER__HTPP", "x"),
        ("TIDEGATE__server__http", "x"),
        ("TIDEGATE__", ""),
        ("TIDEGATE__MODELS__fraud", "x"),
        ("TIDEGATE__MODELS__..__ENGINE", "tract"),
        ("TIDEGATE__MODELS__fraud__ENGIN", "tract"),
        ("TIDEGATE__SERVER__GRACE", "100ms"),
    ];
    let flags = Flags {
        log_level: Some("inof\u{1b}[31m".to_owned()),
        workers: Some("-1".to_owned()),
        ..Flags::default()
    };
    let told = load_all("[server]\nhttp = \"x\"", variables, flags).unwrap_err();
    let expected = r#"
tidegate.toml: 11 problems
  server.http = "x"                            must be an IP address and a port, for example "127.0.0.1:8000" (line 2)
  TIDEGATE__ = ""                              unknown variable; variables are `TIDEGATE__SECTION__KEY`
  TIDEGATE__MODELS__..__ENGINE = "tract"       `..` must be a model name: 1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit, without `..`
  TIDEGATE__MODELS__fraud = "x"                unknown variable; write `TIDEGATE__MODELS__name__KEY`
  TIDEGATE__MODELS__fraud__ENGIN = "tract"     unknown variable, did you mean `TIDEGATE__MODELS__fraud__ENGINE`?
  server.grace = "100ms"                       must be longer than `server.drain_delay` ("1s", its default) (TIDEGATE__SERVER__GRACE)
  TIDEGATE__SERVER__HTPP = "x"                 unknown variable, did you mean `TIDEGATE__SERVER__HTTP`?
  server.workers = "four"                      must be a whole number from 0 to 1024 (TIDEGATE__SERVER__WORKERS)
  TIDEGATE__server__http = "x"                 unknown variable, did you mean `TIDEGATE__SERVER__HTTP`?
  logs.level = "inof\u{1b}[31m"                must be a level or a list such as "info,tidegate=debug" (--log-level)
  server.workers = "-1"                        must lie between 0 and 1024 (--workers)
"#;
    assert_eq!(told, expected.trim());
    let told = load_all("", [("TIDEGATE__LOGS__FORMAT", "xml")], Flags::default()).unwrap_err();
    let expected = r#"
configuration: 1 problem
  logs.format = "xml"     must be "auto", "text" or "json" (TIDEGATE__LOGS__FORMAT)
"#;
    assert_eq!(told, expected.trim());
}

#[test]
fn values_that_a_higher_layer_replaces_are_checked_too() {
    let variables = [("TIDEGATE__SERVER__HTTP", "127.0.0.1:1")];
    assert!(load_all("[server]\nhttp = \"x\"", variables, Flags::default()).is_err());
}

#[test]
fn files_that_cannot_be_read_are_findings() {
    let folder = tempfile::tempdir().unwrap();
    let told = |path: PathBuf| {
        let environment: [(String, String); 0] = [];
        let sources = Sources { file: Some(path), environment, flags: Flags::default() };
        load(sources).unwrap_err().findings.remove(0).advice
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(told(folder.path().join("missing.toml")).starts_with("can't be opened: No such file"));
    assert!(told(folder.path().to_owned()).starts_with("can't be read: "));
    assert_eq!(
        told(write("latin1", b"a = 1\nb = '\xe4'")),
        "must be UTF-8 text, which line 2 is not"
    );
    assert_eq!(
        told(write("huge", &vec![b'#'; 5 << 20])),
        "is too large for a configuration: above 4194304 bytes"
    );
}

#[test]
fn flags_that_are_no_text_are_findings() {
    use std::os::unix::ffi::OsStringExt;
    let path = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff]));
    let flags = Flags { repository: Some(path), ..Flags::default() };
    assert_eq!(
        load_all("", NO_VARIABLES, flags).unwrap_err(),
        "configuration: 1 problem\n  repository.root     must be a path in UTF-8 (--repository)"
    );
}

/// Compares a file of the repository with what it must hold; `BLESS=1` writes it.
fn in_step(path: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} is not in step; `BLESS=1 cargo test` writes it", path.display());
}

#[test]
fn policies_of_rollouts_are_read_to_their_last_level() {
    check(
        r"
[models.fraud.rollout]
alpha = 2
steps = [{ weight = 0.7 }]
gates = { slow = { quantiles = [0.9, 0.5] } }
[models.iris.rollout.gates.eror]
a = [[[[[[[[[[1]]]]]]]]]]
",
        r"
tidegate.toml: 2 problems
  models.fraud.rollout = { ... }     steps[0].weight = 0.7: must lie above 0 (at least 1/65536) and be at most 0.5; alpha = 2: must lie between 0 and 1, without either; gates.slow.quantiles = [0.9, 0.5]: must be 1 to 4 increasing numbers between 0 and 1 (line 2)
  models.iris.rollout = { ... }      gates.eror: unknown field, did you mean `errors`? (line 6)
",
    );
}

#[test]
fn manual_of_rollouts_shows_every_key_with_its_default() {
    let page = include_str!("../../docs/rollouts.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let config = check_text(example).unwrap();
    let draft = config.models["fraud"].rollout.clone().unwrap();
    assert!(draft.validate.is_some() && draft.shadow.is_some(), "{draft:?}");
    let mut expected = PolicyDraft::from(Policy::default());
    (expected.validate, expected.shadow) = (draft.validate.clone(), draft.shadow.clone());
    assert_eq!(draft, expected);
}

#[test]
fn example_is_in_step() {
    in_step("config/tidegate.toml", &example());
}

#[test]
fn schema_is_in_step() {
    in_step("config/schema.json", &format!("{:#}\n", schema()));
}

#[test]
fn example_holds_every_key_with_its_default() {
    let example = example();
    assert_eq!(check_text(&example), Ok(Config::default()));
    let uncommented: Vec<&str> = example
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|l| l.starts_with(char::is_alphabetic)).unwrap_or(line)
        })
        .collect();
    let uncommented = uncommented.join("\n");
    assert_eq!(check_text(&uncommented), Ok(Config::default()), "{uncommented}");

    let written: toml::Table = uncommented.parse().unwrap();
    for (section, key, _) in every_key() {
        let stands = written.get(&section).is_some_and(|keys| keys.get(&key).is_some());
        let made_up = [format!("\n# {key} = "), format!(".{key}]\n"), format!(".{key}]]\n")];
        let made_up = made_up.iter().any(|line| example.contains(line));
        assert!(stands || made_up, "{section}.{key}");
    }
}

#[test]
fn every_key_is_described() {
    for (section, key, schema) in every_key() {
        assert!(schema["description"].is_string(), "{section}.{key}");
    }
}

#[test]
fn every_key_reaches_the_settings() {
    for (section, key, schema) in every_key() {
        if key == "otlp" && !cfg!(feature = "otlp") || key == "upload" && !cfg!(feature = "s3") {
            continue;
        }
        let section = if section == "models" { "models.a".to_owned() } else { section };
        let tables = [r#"{"alpha": 0.02}"#, r#"{"ttl": "1d"}"#].map(Into::into);
        let texts = ["127.0.0.1:7", "./elsewhere", "debug"].map(Into::into);
        let mut candidates: Vec<serde_json::Value> = [&texts[..], &tables[..]].concat();
        candidates.extend(
            [r#"{"windows": 4}"#, "10.0.0.0/8", r#"{"tolerance": 0.07}"#, r#"{"sample": 0.5}"#]
                .map(Into::into),
        );
        candidates.extend(["7ms", "triton", "http://h:1", r#"{"owner": "x"}"#].map(Into::into));
        candidates.push(r#"[{"name": "a", "url": "http://h/"}]"#.into());
        candidates.extend([r#"{"feature": "country"}"#, "s3://bucket/x"].map(Into::into));
        candidates
            .extend(["minimum", "maximum", "x-minimum", "x-maximum"].map(|k| schema[k].clone()));
        candidates.extend(schema["enum"].as_array().into_iter().flatten().cloned());
        candidates.extend([false.into(), true.into()]);
        let before = check_text(&format!("[{section}]")).unwrap();
        let arrives = candidates.iter().filter(|value| !value.is_null()).any(|value| {
            let text = format!("[{section}]\n{key} = {value}");
            check_text(&text).is_ok_and(|config| config != before)
        });
        assert!(arrives, "{section}.{key} changes nothing");
    }
}

/// Section, key and schema of every key; those of models stand under `models`.
fn every_key() -> Vec<(String, String, serde_json::Value)> {
    let schema = schema();
    let mut keys = Vec::new();
    for (section, content) in schema["properties"].as_object().unwrap() {
        let content =
            content.get("additionalProperties").filter(|c| c.is_object()).unwrap_or(content);
        for (key, schema) in content["properties"].as_object().unwrap() {
            keys.push((section.clone(), key.clone(), schema.clone()));
        }
    }
    assert!(keys.len() > 40, "{}", keys.len());
    keys
}

#[test]
fn corpus_never_panics() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        never_panics(&String::from_utf8_lossy(&bytes));
        files += 1;
    }
    assert!(files >= 15, "{files}");
}

#[test]
fn deepest_nesting_that_parses_does_not_exhaust_the_stack() {
    for (dots, brackets) in [(70, 70), (200_000, 1), (1, 200_000)] {
        let open = format!("{}a = {{", "a.".repeat(dots)).repeat(brackets);
        let close = "}".repeat(brackets);
        let path = "a.".repeat(dots);
        for text in [
            format!("{open}{close}"),
            format!("[server]\nhttp = {{{open}{close}}}"),
            format!("[server]\nhttp = {}{}", "[".repeat(brackets), "]".repeat(brackets)),
            format!("[models.{path}a]\n{open}{close}"),
        ] {
            assert!(check_text(&text).is_err());
        }
    }
}

fn never_panics(text: &str) {
    if let Err(findings) = check_text(text) {
        assert!(!findings.findings.is_empty());
        let told = findings.to_string();
        let forbidden = |c: char| c.is_control() && c != '\n';
        assert!(!told.contains(forbidden), "control characters reach the terminal: {told:?}");
    }
}

/// A line of a configuration file: plausible, misspelt or broken.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<String> = every_key()
        .into_iter()
        .flat_map(|(section, key, _)| [format!("[{section}]"), key])
        .collect();
    let key = prop_oneof![
        8 => proptest::sample::select(keys),
        1 => "[a-z_.\"\\[\\]-]{0,12}",
        1 => "\\[models\\.[a-z.\" -]{0,6}\\]",
    ];
    let value = prop_oneof![
        2 => "[0-9-]{1,21}",
        4 => "\"[0-9]{1,21}(ms|s|m|h|d|B|KiB|MB|GiB|x)?\"",
        2 => "\"[a-z0-9:./=,\\[\\]-]{0,12}\"",
        1 => "(true|false|nan|[0-9]\\.[0-9]|\\[[0-9, ]{0,3}\\]|\\{ [a-z] = 1 \\}|1979-05-27)",
        1 => any::<String>(),
    ];
    (key, value).prop_map(
        |(key, value)| {
            if key.starts_with('[') { key } else { format!("{key} = {value}") }
        },
    )
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        never_panics(&text);
    }

    #[test]
    fn no_likely_text_panics(lines in proptest::collection::vec(line(), 0..12)) {
        never_panics(&lines.join("\n"));
    }

    #[test]
    fn no_variable_panics(name in "[A-Z_a-z.]{0,20}", model in "(MODELS__)?", value in any::<String>()) {
        let environment = [(format!("{VARIABLE_PREFIX}{model}{name}"), value)];
        let sources = Sources { file: None, environment, flags: Flags::default() };
        let _ = load(sources).map_err(|findings| findings.to_string());
    }
}

#[test]
fn webhooks_are_tables_or_json_and_their_secrets_are_not_shown() {
    let text = "[notify]\nhosts = [\"h.example\"]\n[[notify.webhook]]\nname = \"ops\"\nurl = \"https://h.example/x\"\n\
                secret = \"correct horse battery\"\nheaders = { Authorization = { env = \"TOKEN\" } }\n\
                [models.fraud.retrain]\nwindows = 2\nweights = { amount = 0.5 }\n";
    let config = check_text(text).unwrap();
    let webhook = &config.notify.webhooks[0];
    assert_eq!((&*webhook.name, &*webhook.target.host), ("ops", "h.example"));
    let rule = &config.notify.retrain[&ModelName::parse("fraud").unwrap()];
    assert_eq!((rule.windows, rule.weights["amount"]), (2, 0.5));

    let wrong =
        text.replace("h.example\"]", "other.example\"]").replace("windows = 2", "windows = 0");
    check(
        &wrong,
        r"
tidegate.toml: 2 problems
  notify.webhook                     webhook `ops` names `h.example`, which `notify.hosts` does not list; add it there (line 3)
  models.fraud.retrain = { ... }     `windows` must lie between 1 and 1000 (line 8)",
    );
    for wrong in [
        text.replace("{ env = \"TOKEN\" }", "7").replace("https://", "correct://"),
        text.replace("{ Authorization = { env = \"TOKEN\" } }", "\"correct horse\""),
        text.replace("battery", "\\u0001").replace("\"ops\"", "7"),
    ] {
        let told = check_text(&wrong).unwrap_err().to_string();
        assert!(told.contains("notify.webhook") && !told.contains("correct horse"), "{told}");
    }
    let variable = [("TIDEGATE__NOTIFY__WEBHOOK", r#"[{"name": "x", "secret": "correct horse"}]"#)];
    let told = load_all("", variable, Flags::default()).unwrap_err();
    assert!(told.contains("missing field `url`") && !told.contains("correct horse"), "{told}");
    let variable = [("TIDEGATE__NOTIFY__PRIVATE_ADDRESSES", "10.0.0.0/8, 127.0.0.1")];
    let config = load_all("", variable, Flags::default()).unwrap();
    assert_eq!(config.notify.private_addresses.len(), 2);
}

#[test]
fn an_upload_needs_an_address_and_a_client_for_it() {
    let check = |value: &str, expected: &str| {
        let found = check_text(&format!("[predictions]\nupload = {value:?}\n"));
        let found = found.map_err(|findings| findings.to_string());
        assert!(found.as_ref().is_err_and(|text| text.contains(expected)), "{value}: {found:?}");
    };
    for value in
        ["/data", "ftp://host/x", "s3://", "s3:///x", "s3://me:secret@bucket", "https://h/x"]
    {
        check(value, "must be an address such as \"s3://bucket/prefix\"");
    }
    if cfg!(feature = "s3") {
        let config = check_text("[predictions]\nupload = \"s3://bucket/x/\"\n").unwrap();
        assert_eq!(config.predictions.upload.as_deref(), Some("s3://bucket/x"));
    } else {
        check("s3://bucket/x", "build with `--features s3`");
    }
}
