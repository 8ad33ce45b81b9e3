//! Webhooks as the operator names them: where to, what about, and with which secrets.
//!
//! Secrets and values of headers stand in the configuration, in a file or in a variable of the environment. Files are
//! read for each delivery, so that a secret can be changed without a restart. Always true: no secret is ever written
//! to a log, an error or an answer.
//!
//! Not here: sending (`client`, `driver`), what is queued (`outbox`).

use std::{collections::BTreeMap, fmt, fs, io::Read as _, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;

use crate::{
    model::ModelName,
    monitor::{Event, EventKind},
    rollout::Span,
};

/// A receiver of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its name, for logs and answers.
    pub name: String,
    /// Where events are sent.
    pub target: Target,
    /// Kinds of events, or their beginnings.
    pub events: Vec<String>,
    /// Models whose events are sent; empty for all.
    pub models: Vec<ModelName>,
    /// Key of the signature; without one, deliveries are not signed.
    pub secret: Option<Secret>,
    /// Further headers of each delivery.
    pub headers: Vec<(HeaderName, Secret)>,
    /// The most time for one delivery, from resolving the name to the last byte of the answer.
    pub timeout: Duration,
}

/// A URL that events are sent to.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// True for `https`.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query; may hold a secret, and is not shown.
    pub path: String,
}

/// A text that is not shown, and where it stands.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In the configuration.
    Inline(String),
    /// In a file; white space around it is cut off.
    File(PathBuf),
    /// In a variable of the environment.
    Variable(String),
}

/// Looks up a variable of the environment.
pub type Variables = fn(&str) -> Option<String>;

/// A receiver of events.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookDraft {
    /// A name for logs and for `tidegate notify`: lower-case letters, digits, `-` and `_`. What is queued belongs to
    /// the name, so that a URL can be changed.
    pub name: String,
    /// Where events are sent: `https://` or `http://`. Redirects are not followed.
    pub url: String,
    /// Kinds of events, or their beginnings: `"drift"` stands for `drift.detected` and `drift.cleared`. Left out:
    /// everything that somebody should hear of (drift, quality, performance, retraining, rollouts and failed versions).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<String>>,
    /// Only events of these models. Left out: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Key of the signature, at least 16 bytes: a text, `{ file = "..." }` or `{ env = "..." }`. Without one,
    /// deliveries are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretDraft>,
    /// A file with the key of the signature: the same as `secret = { file = "..." }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<String>,
    /// The most time for one delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Further headers, each with a text, `{ file = "..." }` or `{ env = "..." }`:
    /// `Authorization = { env = "HOOK_TOKEN" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, SecretDraft>,
}

/// A secret as it is written.
#[derive(Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum SecretDraft {
    /// The text itself.
    Inline(String),
    /// A file that holds it.
    File {
        /// Its path.
        file: PathBuf,
    },
    /// A variable of the environment that holds it.
    Variable {
        /// Its name.
        env: String,
    },
}

/// Kinds of events for webhooks that name none.
const DEFAULT_EVENTS: [&str; 6] =
    ["drift", "quality", "performance", "retrain", "rollout", "failed"];
/// The most webhooks.
pub const WEBHOOKS_MAX: usize = 16;
/// The most kinds, models or headers of one webhook.
const LIST_MAX: usize = 64;
/// The longest name of a webhook, in bytes.
const NAME_BYTES_MAX: usize = 32;
/// The shortest key of a signature, in bytes.
const SECRET_BYTES_MIN: usize = 16;
/// The largest file of a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 16 << 10;
/// Time for one delivery where none is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds of that time.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_mins(1);

/// Headers that deliveries have anyway.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "content-length",
    "content-type",
    "connection",
    "transfer-encoding",
    "user-agent",
    "ce-id",
    "ce-type",
    super::signature::HEADER,
];

impl Webhook {
    /// Reads webhooks as they are written; an error repeats none of their texts.
    pub fn drafts(written: Value) -> Result<Vec<WebhookDraft>, String> {
        serde_json::from_value(written).map_err(|error| {
            let error = error.to_string();
            match (error.find("string \""), error.rfind("\", expected")) {
                (Some(from), Some(to)) if from < to => {
                    format!("{}text{}", &error[..from], &error[to + 1..])
                }
                _ => error,
            }
        })
    }

    /// Reads a list of webhooks; gives everything that is wrong with it.
    pub fn read(drafts: &[WebhookDraft]) -> Result<Vec<Self>, Vec<String>> {
        let (mut webhooks, mut wrong) = (Vec::new(), Vec::new());
        if drafts.len() > WEBHOOKS_MAX {
            wrong.push(format!("there may be {WEBHOOKS_MAX} webhooks, not {}", drafts.len()));
        }
        for (index, draft) in drafts.iter().enumerate() {
            let mut errors = Vec::new();
            let webhook = draft.webhook(&mut errors);
            if drafts[..index].iter().any(|other| other.name == draft.name) {
                errors.push("`name` is taken by another webhook".to_owned());
            }
            wrong.extend(errors.into_iter().map(|error| {
                let name: String = draft.name.chars().take(NAME_BYTES_MAX).collect();
                format!("webhook {} `{}`: {error}", index + 1, name.escape_debug())
            }));
            webhooks.extend(webhook);
        }
        if wrong.is_empty() { Ok(webhooks) } else { Err(wrong) }
    }

    /// True if an event is sent to this webhook.
    pub(super) fn wants(&self, event: &Event) -> bool {
        let kind = event.kind.name();
        let is_kind = |pattern: &String| is_kind_or_prefix(pattern, kind);
        self.events.iter().any(is_kind)
            && (self.models.is_empty() || self.models.contains(&event.model))
    }
}

/// True if a pattern is a kind, or the words before a dot of it.
fn is_kind_or_prefix(pattern: &str, kind: &str) -> bool {
    let rest = kind.strip_prefix(pattern.trim_end_matches(".*"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl WebhookDraft {
    fn webhook(&self, wrong: &mut Vec<String>) -> Option<Webhook> {
        let before = wrong.len();
        let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        if self.name.is_empty()
            || self.name.len() > NAME_BYTES_MAX
            || !self.name.bytes().all(is_word)
        {
            wrong.push(format!(
                "`name` must be 1 to {NAME_BYTES_MAX} lower-case letters, digits, `-` or `_`"
            ));
        }
        let target = Target::read(&self.url).map_err(|error| wrong.push(error)).ok();
        let events =
            self.events.clone().unwrap_or_else(|| DEFAULT_EVENTS.map(str::to_owned).into());
        check_events(&events, wrong);
        let models = self.models.iter().flatten().filter_map(|name| {
            ModelName::parse(name).map_err(|error| wrong.push(format!("`models`: {error}"))).ok()
        });
        let models: Vec<ModelName> = models.collect();
        let secret = self.secret(wrong);
        let headers = self.headers(wrong);
        let timeout = self.timeout.map_or(TIMEOUT, |span| span.0);
        if !TIMEOUTS.contains(&timeout) {
            wrong.push("`timeout` must lie between \"10ms\" and \"1m\"".to_owned());
        }
        if models.len() > LIST_MAX {
            wrong.push(format!("`models` may name {LIST_MAX}; leave it out for all"));
        }
        let (name, target) = (self.name.clone(), target?);
        (wrong.len() == before).then_some(Webhook {
            name,
            target,
            events,
            models,
            secret,
            headers,
            timeout,
        })
    }

    fn secret(&self, wrong: &mut Vec<String>) -> Option<Secret> {
        if self.secret.is_some() && self.secret_file.is_some() {
            wrong.push("`secret` and `secret_file` exclude each other; keep one".to_owned());
        }
        let file = self.secret_file.as_ref().map(|path| Secret::File(path.into()));
        let secret = self.secret.as_ref().map(SecretDraft::secret).or(file)?;
        if let Secret::Inline(text) = &secret
            && text.len() < SECRET_BYTES_MIN
        {
            wrong.push(format!(
                "`secret` must have at least {SECRET_BYTES_MIN} bytes, such as `openssl rand -hex 32` makes"
            ));
        }
        Some(secret)
    }

    fn headers(&self, wrong: &mut Vec<String>) -> Vec<(HeaderName, Secret)> {
        if self.headers.len() > LIST_MAX {
            wrong.push(format!("`headers` may have {LIST_MAX}"));
        }
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            let secret = value.secret();
            let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
            let is_value = match &secret {
                Secret::Inline(text) => HeaderValue::try_from(text).is_ok(),
                _ => true,
            };
            match HeaderName::try_from(name.as_str()) {
                Ok(name) if OWN_HEADERS.contains(&name.as_str()) => {
                    wrong.push(format!("`headers.{shown}` is set by tidegate"));
                }
                Ok(_) if !is_value => {
                    wrong.push(format!("`headers.{shown}` is no value of a header"));
                }
                Ok(name) => headers.push((name, secret)),
                Err(_) => wrong.push(format!("`headers.{shown}` is no name of a header")),
            }
        }
        headers
    }
}

fn check_events(events: &[String], wrong: &mut Vec<String>) {
    if events.is_empty() || events.len() > LIST_MAX {
        wrong.push(format!("`events` must name 1 to {LIST_MAX} kinds; leave it out for the usual"));
    }
    let known = || EventKind::ALL.iter().map(|kind| kind.name());
    for pattern in events {
        if !known().any(|kind| is_kind_or_prefix(pattern, kind)) {
            let near = known()
                .map(|kind| (strsim::jaro_winkler(pattern, kind), kind))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(near, _)| *near > 0.7);
            let hint = near.map_or_else(
                || format!("there are {}", known().collect::<Vec<_>>().join(", ")),
                |(_, kind)| format!("did you mean `{kind}`?"),
            );
            let pattern: String = pattern.chars().take(64).flat_map(char::escape_debug).collect();
            wrong.push(format!("`events`: no event is called `{pattern}`; {hint}"));
        }
    }
}

/// By hand, so that no error repeats the text.
impl<'de> Deserialize<'de> for SecretDraft {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Value::deserialize(deserializer)?;
        let entry = written.as_object().filter(|object| object.len() == 1);
        let entry = |name: &str| entry?.get(name)?.as_str().map(str::to_owned);
        match (written.as_str(), entry("file"), entry("env")) {
            (Some(text), ..) => Ok(Self::Inline(text.to_owned())),
            (_, Some(file), _) => Ok(Self::File { file: file.into() }),
            (.., Some(env)) => Ok(Self::Variable { env }),
            _ => Err(D::Error::custom(
                "a secret or header must be a text, { file = \"...\" } or { env = \"...\" }",
            )),
        }
    }
}

impl SecretDraft {
    fn secret(&self) -> Secret {
        match self {
            Self::Inline(text) => Secret::Inline(text.clone()),
            Self::File { file } => Secret::File(file.clone()),
            Self::Variable { env } => Secret::Variable(env.clone()),
        }
    }
}

impl Secret {
    /// Reads the text; an error says what is missing and never holds the text.
    pub(super) fn reveal(&self, variables: Variables) -> Result<String, String> {
        match self {
            Self::Inline(text) => Ok(text.clone()),
            Self::Variable(name) => variables(name)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| format!("the environment has no variable `{name}`; set it")),
            Self::File(path) => {
                let mut text = String::new();
                let read = fs::File::open(path)
                    .and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
                match read {
                    Ok(_) if text.trim().is_empty() => {
                        Err(format!("`{}` is empty; write the secret into it", path.display()))
                    }
                    Ok(_) => Ok(text.trim().to_owned()),
                    Err(error) => Err(format!("`{}` cannot be read: {error}", path.display())),
                }
            }
        }
    }

    /// Reads the text as the key of a signature.
    pub(super) fn key(&self, variables: Variables) -> Result<String, String> {
        let key = self.reveal(variables)?;
        if key.len() < SECRET_BYTES_MIN {
            return Err(format!("the secret has fewer than {SECRET_BYTES_MIN} bytes"));
        }
        Ok(key)
    }
}

impl Target {
    /// Reads a URL.
    pub fn read(url: &str) -> Result<Self, String> {
        let advice =
            |what: &str| format!("`url` {what}; write it as https://hooks.example.com/tidegate");
        let uri: Uri = url.parse().map_err(|_| advice("is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(advice("must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| advice("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(advice("must hold no user or password, for which there is `headers`"));
        }
        if url.contains('#') {
            return Err(advice("must have no fragment"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() || authority.port_u16() == Some(0) {
            return Err(advice("names no host or port"));
        }
        let port = match (authority.port_u16(), tls) {
            (Some(port), _) => port,
            (None, _) if authority.as_str().len() > authority.host().len() => {
                return Err(advice("names no host or port"));
            }
            (None, true) => 443,
            (None, false) => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { tls, host, port, path })
    }

    /// The value of the header `Host`.
    pub(super) fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

/// The part that may be shown.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}/...")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(...)"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Variable(name) => write!(f, "Variable({name})"),
        }
    }
}

impl fmt::Debug for SecretDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.secret().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(name: &str, url: &str) -> WebhookDraft {
        WebhookDraft { name: name.to_owned(), url: url.to_owned(), ..WebhookDraft::default() }
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, shown, host, port, path) in [
            ("https://h.example", "https://h.example", "h.example", 443, "/"),
            ("http://H.example:8080/a?b=c", "http://h.example:8080", "h.example", 8080, "/a?b=c"),
            ("https://[::1]:8443/x", "https://[::1]:8443", "::1", 8443, "/x"),
            ("http://127.0.0.1/", "http://127.0.0.1", "127.0.0.1", 80, "/"),
        ] {
            let target = Target::read(url).unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!((&*target.host, target.port, &*target.path), (host, port, path));
        }
        for wrong in [
            "",
            "hooks.example.com",
            "ftp://h/",
            "https:///x",
            "https://u:p@h/",
            "https://h/#a",
            "https://h:99999/",
            "https://h:0/",
            "/x",
        ] {
            assert!(Target::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut wrong = draft("Ops!", "hooks.example.com");
        wrong.events = Some(vec!["drift.detcted".to_owned(), "drift".to_owned()]);
        wrong.secret = Some(SecretDraft::Inline("short".to_owned()));
        wrong.timeout = Some(Span(Duration::ZERO));
        wrong.headers.insert("Host".to_owned(), SecretDraft::Inline("x".to_owned()));
        let twice = [draft("a", "http://h/"), draft("a", "http://h/"), wrong];
        let told = Webhook::read(&twice).unwrap_err().join("\n");
        assert_eq!(
            told,
            "webhook 2 `a`: `name` is taken by another webhook\n\
             webhook 3 `Ops!`: `name` must be 1 to 32 lower-case letters, digits, `-` or `_`\n\
             webhook 3 `Ops!`: `url` must begin with https:// or http://; write it as \
             https://hooks.example.com/tidegate\n\
             webhook 3 `Ops!`: `events`: no event is called `drift.detcted`; did you mean `drift.detected`?\n\
             webhook 3 `Ops!`: `secret` must have at least 16 bytes, such as `openssl rand -hex 32` makes\n\
             webhook 3 `Ops!`: `headers.Host` is set by tidegate\n\
             webhook 3 `Ops!`: `timeout` must lie between \"10ms\" and \"1m\""
        );
        assert!(!told.contains("short"));
    }

    #[test]
    fn kinds_are_named_whole_or_by_their_beginning() {
        for (pattern, kind, expected) in [
            ("drift", "drift.detected", true),
            ("drift.*", "drift.cleared", true),
            ("drift.detected", "drift.detected", true),
            ("drift.detected", "drift.cleared", false),
            ("dri", "drift.detected", false),
            ("failed", "failed", true),
            ("failed", "rollout.failed", false),
        ] {
            assert_eq!(is_kind_or_prefix(pattern, kind), expected, "{pattern} {kind}");
        }
    }

    #[test]
    fn secrets_come_from_text_file_and_environment_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "from the file, of some length\n").unwrap();
        let variables: Variables = |name| (name == "HOOK").then(|| "from the environment".into());
        let of = |secret: Secret| secret.key(variables);
        assert_eq!(of(Secret::File(path)).unwrap(), "from the file, of some length");
        assert_eq!(of(Secret::Variable("HOOK".to_owned())).unwrap(), "from the environment");
        assert!(of(Secret::Variable("OTHER".to_owned())).unwrap_err().contains("`OTHER`"));
        assert!(of(Secret::File("nowhere/secret".into())).unwrap_err().contains("nowhere"));
        let inline = Secret::Inline("correct horse battery".to_owned());
        assert_eq!(format!("{inline:?}"), "Inline(...)");
    }
}
