//! The whole server killed at any instant of an operation: what it acknowledged is there, the rest is before or after.
//!
//! A [`History`] is one state folder and the many processes that have it in turn. Each round does one acknowledged
//! operation, begins another, kills the server somewhere within it, and starts the next one over what is left.
//! How long to wait before a kill is learned from the rounds before, so that most kills fall inside.
//!
//! Not here: the log alone under kills (`audit`), the content store alone (`collection`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{BuildHasher as _, Hasher as _},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    choices::Choices,
    cli::tidegate,
    http::{Connection, Request, Response},
    repository::{Repository, source},
    server::{Launch, Server},
    tensors::{identity, infer},
};

/// Kills of each test.
const ROUNDS: usize = 27;

/// Makes the choices of an earlier run again; a failed test says which.
const SEED: &str = "TIDEGATE_TEST_SEED";

/// What is decided about the model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decided {
    unloaded: bool,
    pinned: Option<u64>,
    aliases: BTreeMap<String, u64>,
    newest: u64,
}

/// What is done to the model.
#[derive(Debug, Clone)]
enum Step {
    /// A new version appears, and a load of it is asked for.
    Register,
    /// A new version appears, and nobody waits for it.
    Appear,
    Load,
    Rollback(u64),
    Unpin,
    SetAlias(&'static str, u64),
    RemoveAlias(String),
    Unload,
}

/// One state folder, and what has happened to it.
struct History {
    repository: Repository,
    choices: Choices,
    decided: Decided,
    /// Microseconds within which each kind of operation is killed.
    windows: BTreeMap<&'static str, u64>,
    /// How many operations there were; each gives its number as its reason.
    steps: usize,
    /// Reasons that must be in the log once.
    kept: BTreeSet<String>,
    /// Reasons that must not be in the log.
    lost: BTreeSet<String>,
    /// Kills that met an operation without its acknowledgement.
    within: usize,
}

#[test]
fn a_kill_while_a_version_appears() {
    History::new().suffer(|choices, _| choices.of(&[Step::Register, Step::Appear]));
}

#[test]
fn a_kill_while_versions_are_swapped() {
    History::new().suffer(|choices, decided| {
        let back = Step::Rollback(version(choices, decided));
        choices.of(&[back.clone(), back, Step::Load, Step::Unpin])
    });
}

#[test]
fn a_kill_while_an_alias_moves() {
    History::new().suffer(|choices, decided| {
        let set = Step::SetAlias(choices.of(&["canary", "stage"]), version(choices, decided));
        let named = decided.aliases.keys().next().cloned();
        choices.of(&[set.clone(), named.map_or(set, Step::RemoveAlias)])
    });
}

#[test]
fn a_kill_while_a_model_is_unloaded() {
    History::new().suffer(|_, decided| if decided.unloaded { Step::Load } else { Step::Unload });
}

impl History {
    fn new() -> Self {
        let seed = std::env::var(SEED).map_or_else(
            |_| std::hash::RandomState::new().build_hasher().finish(),
            |seed| seed.parse().unwrap(),
        );
        eprintln!("{SEED}={seed}");
        let repository = Repository::of(&["identity_fp32"]);
        let (steps, within) = (0, 0);
        let (windows, kept, lost) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let decided =
            Decided { unloaded: false, pinned: None, aliases: BTreeMap::new(), newest: 3 };
        let choices = Choices(seed);
        let history = Self { repository, choices, decided, windows, steps, kept, lost, within };
        (1..=3).for_each(|version| history.add(version));
        history
    }

    /// Has servers killed within steps of one kind.
    fn suffer(mut self, next: impl Fn(&mut Choices, &Decided) -> Step) {
        let mut server = self.start();
        self.assert_decided(&server);
        for round in 0..ROUNDS {
            let before = self.any();
            self.succeed(&server, &before);
            let step = next(&mut self.choices, &self.decided);
            eprintln!("round {round}: {before:?}, then a kill within {step:?}");
            server = self.kill_within(server, &step);
        }
        drop(server);
        self.assert_recorded();
        assert!(self.within >= ROUNDS / 3, "only {} kills fell within operations", self.within);
    }

    fn start(&self) -> Server {
        // Proof takes most of the time of a load: it may be met by some of the kills, not by all.
        let proof = self.steps.is_multiple_of(8).to_string();
        Launch::of(&self.repository)
            .remembering()
            .set("REPOSITORY__POLL_INTERVAL", "20ms")
            .set("PROOF__ENABLED", &proof)
            .start()
    }

    /// Even versions double their input.
    fn add(&self, version: u64) {
        let model = if version.is_multiple_of(2) { "doubled_fp32" } else { "identity_fp32" };
        let bytes = fs::read(source(model, "1")).unwrap();
        self.repository.add_bytes("truth", &version.to_string(), &bytes);
    }

    /// Any operation.
    fn any(&mut self) -> Step {
        let version = version(&mut self.choices, &self.decided);
        let name = self.choices.of(&["canary", "stage"]);
        self.choices.of(&[
            Step::Register,
            Step::Load,
            Step::Rollback(version),
            Step::Unpin,
            Step::SetAlias(name, version),
            Step::Unload,
        ])
    }

    /// Does something that must be acknowledged.
    fn succeed(&mut self, server: &Server, step: &Step) {
        let (after, reason) = (step.after(&self.decided), self.reason());
        if after.newest > self.decided.newest {
            self.add(after.newest);
        }
        let request = step.request(&reason).expect("a step that is waited for");
        Connection::open(server.admin).ask(&request).ok();
        if step.is_recorded(&self.decided) {
            self.kept.insert(reason);
        }
        self.decided = after;
    }

    /// Begins something, kills the server, and gives the next one once all that was promised is there.
    fn kill_within(&mut self, server: Server, step: &Step) -> Server {
        let (before, after, reason) =
            (self.decided.clone(), step.after(&self.decided), self.reason());
        let mut connection = Connection::open(server.admin);
        let window = *self.windows.entry(step.name()).or_insert(20_000);
        let delay = Duration::from_micros(self.choices.below(window));
        if after.newest > before.newest {
            self.add(after.newest);
        }
        let request = step.request(&reason);
        if let Some(request) = &request {
            connection.send(request.bytes());
        }
        thread::park_timeout(delay);
        drop(server); // by SIGKILL
        // What it sent before it died can still be read.
        let acknowledged = request.is_some() && connection.try_answer().map(Response::ok).is_ok();
        self.within += usize::from(!acknowledged);
        let window = if acknowledged { window * 7 / 10 } else { window * 11 / 10 };
        self.windows.insert(step.name(), window.clamp(100, 400_000));
        self.assert_log_is_good();

        let next = self.recover(&before, &after, acknowledged);
        if step.is_recorded(&before) {
            let took = self.decided == after;
            // What changes nothing leaves its record as its only trace.
            if acknowledged || (before != after && took) {
                self.kept.insert(reason);
            } else if !took {
                self.lost.insert(reason);
            }
        }
        next
    }

    /// Starts the next server: ready, and before or after the step, never between.
    fn recover(&mut self, before: &Decided, after: &Decided, acknowledged: bool) -> Server {
        // A version that has appeared is there whatever became of the request that spoke of it.
        let without = Decided { newest: after.newest, ..before.clone() };
        let possible = if acknowledged { vec![after] } else { vec![after, &without] };
        let loaded = possible.iter().all(|decided| !decided.unloaded) && !before.unloaded;
        let away = self.repository.beside("away");
        let from_the_store = loaded && self.choices.below(4) == 0;
        if from_the_store {
            fs::rename(self.repository.path(), &away).unwrap();
        }
        let server = self.start();
        let shown = server.admin("/api/v1/models/truth").ok().json();
        let found = possible.iter().find(|decided| decided.is_shown(&shown));
        let found = found.unwrap_or_else(|| panic!("{shown} is none of {possible:?}"));
        self.decided = (*found).clone();
        if from_the_store {
            let answering = answering(&server);
            let mut allowed = vec![self.decided.answering()];
            if !acknowledged {
                allowed.extend([before.answering(), without.answering()]);
            }
            assert!(allowed.contains(&answering), "{answering:?} from the store, not {allowed:?}");
            drop(server);
            fs::rename(&away, self.repository.path()).unwrap();
            let server = self.start();
            self.assert_decided(&server);
            return server;
        }
        self.assert_decided(&server);
        server
    }

    /// The first answers of a server that is ready.
    fn assert_decided(&self, server: &Server) {
        assert_eq!(server.admin("/readyz").status, 200);
        let shown = server.admin("/api/v1/models/truth").ok().json();
        assert!(self.decided.is_shown(&shown), "{shown}, not {:?}", self.decided);
        assert_eq!(answering(server), self.decided.answering(), "{shown}");
        for (alias, version) in self.decided.aliases.iter().filter(|_| !self.decided.unloaded) {
            let path = format!("/v2/models/truth/versions/{alias}/infer");
            assert_eq!(answer(server, &path), Some(*version), "alias {alias}: {shown}");
        }
    }

    fn assert_log_is_good(&self) {
        let state = self.repository.beside("state").display().to_string();
        let verified = tidegate(&["audit", "verify", "--state", &state], "");
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    }

    /// Each operation that was acknowledged or took effect is in the log once, and none of the others.
    fn assert_recorded(&self) {
        self.assert_log_is_good();
        let state = self.repository.beside("state").display().to_string();
        let listed = tidegate(
            &["audit", "list", "--json", "--model", "truth", "--limit", "10000", "--state", &state],
            "",
        );
        let text = String::from_utf8(listed.stdout).unwrap();
        let times = |reason: &String| text.matches(&format!("\"{reason}\"")).count();
        for reason in &self.kept {
            assert_eq!(times(reason), 1, "{reason} in {text}");
        }
        for reason in &self.lost {
            assert_eq!(times(reason), 0, "{reason} in {text}");
        }
    }

    fn reason(&mut self) -> String {
        self.steps += 1;
        format!("step {}", self.steps)
    }
}

impl Decided {
    fn answering(&self) -> Option<u64> {
        (!self.unloaded).then(|| self.pinned.unwrap_or(self.newest))
    }

    /// Whether this is what the server says. It does not say what a model that is unloaded is pinned to.
    fn is_shown(&self, shown: &Value) -> bool {
        let pinned = match (self.unloaded, self.pinned) {
            (true, _) => json!("unloaded by an operator"),
            (false, Some(version)) => json!(format!("pinned to version {version} by an operator")),
            (false, None) => Value::Null,
        };
        shown["pinned"] == pinned && shown["aliases"] == json!(self.aliases)
    }
}

impl Step {
    fn name(&self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Appear => "appear",
            Self::Load => "load",
            Self::Rollback(_) => "rollback",
            Self::Unpin => "unpin",
            Self::SetAlias(..) => "set alias",
            Self::RemoveAlias(_) => "remove alias",
            Self::Unload => "unload",
        }
    }

    fn after(&self, before: &Decided) -> Decided {
        let mut after = before.clone();
        match self {
            Self::Register => (after.unloaded, after.newest) = (false, before.newest + 1),
            Self::Appear => after.newest += 1,
            Self::Load => after.unloaded = false,
            Self::Rollback(version) => (after.unloaded, after.pinned) = (false, Some(*version)),
            Self::Unpin => (after.unloaded, after.pinned) = (false, None),
            Self::SetAlias(alias, version) => {
                after.aliases.insert((*alias).to_owned(), *version);
            }
            Self::RemoveAlias(alias) => {
                after.aliases.remove(alias);
            }
            Self::Unload => after.unloaded = true,
        }
        after
    }

    /// Whether it leaves a record: a load of what is not unloaded decides nothing.
    fn is_recorded(&self, before: &Decided) -> bool {
        match self {
            Self::Register | Self::Load => before.unloaded,
            Self::Appear => false,
            _ => true,
        }
    }

    fn request(&self, reason: &str) -> Option<Request> {
        let (what, version) = match self {
            Self::Appear => return None,
            Self::Register | Self::Load => ("load".to_owned(), None),
            Self::Rollback(version) => ("rollback".to_owned(), Some(*version)),
            Self::Unpin => ("unpin".to_owned(), None),
            Self::SetAlias(alias, version) => (format!("aliases/{alias}"), Some(*version)),
            Self::RemoveAlias(alias) => (format!("aliases/{alias}"), None),
            Self::Unload => ("unload".to_owned(), None),
        };
        let mut said = json!({"reason": reason});
        if let Some(version) = version {
            said["version"] = json!(version);
        }
        let request = Request::post_json(&format!("/api/v1/models/truth/{what}"), &said);
        Some(match self {
            Self::SetAlias(..) => request.method("PUT"),
            Self::RemoveAlias(_) => request.method("DELETE"),
            _ => request,
        })
    }
}

/// One of the newest versions.
fn version(choices: &mut Choices, decided: &Decided) -> u64 {
    decided.newest - choices.below(3)
}

/// The version that answers by default.
fn answering(server: &Server) -> Option<u64> {
    answer(server, &infer("truth"))
}

/// The version that answers here, once its answer is the one that this version gives.
fn answer(server: &Server, path: &str) -> Option<u64> {
    let answer = server.post(path, &identity("FP32", &json!([1.5])));
    if answer.status == 503 {
        return None;
    }
    let answer = answer.ok();
    let version: u64 = answer.header("x-tidegate-version").unwrap().parse().unwrap();
    let expected = if version.is_multiple_of(2) { 3.0 } else { 1.5 };
    assert_eq!(answer.json()["outputs"][0]["data"], json!([expected]), "version {version}");
    Some(version)
}
