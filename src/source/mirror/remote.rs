//! The object store: its address, a client for it, its objects.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use object_store::{
    ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
    client::{HttpClient, HttpConnector},
    path::Path as Key,
};

use crate::model::ModelName;

use super::{
    super::{error::shown, reading},
    MirrorError,
};

/// A prefix of an object store.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) store: Arc<dyn ObjectStore>,
    prefix: Option<Key>,
    name: String,
    secrets: Vec<String>,
}

/// Names and values, as the process was given them.
pub(super) type Environment = Vec<(String, String)>;

/// An object as it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// Relative to the repository's address: parts that are not empty, `.`, `..` or hidden.
    pub(super) path: String,
    pub(super) key: Key,
    pub(super) bytes: u64,
    /// Its `ETag`, or its time where there is none: another one means other bytes.
    pub(super) state: String,
    pub(super) e_tag: Option<String>,
    /// The time of its last change, since 1970.
    pub(super) changed: Duration,
}

/// Objects below the address, needed or not.
const OBJECTS_MAX: usize = 200_000;
/// Without an answer for so long, a request is tried again.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Tries of one request, before the whole pass waits for the next poll.
const RETRIES_MAX: usize = 3;
const RETRY_TIME_MAX: Duration = Duration::from_secs(30);

impl Remote {
    /// A client for `s3://bucket/prefix`, `gs://`, `az://` or `http(s)://`; nothing is asked yet.
    pub(super) fn open(root: &str, environment: &Environment) -> Result<Self, MirrorError> {
        let unfit = |what: &str| MirrorError::Root { root: public(root), what: what.to_owned() };
        let (scheme, rest) = root
            .split_once("://")
            .ok_or_else(|| unfit("it is not an address such as `s3://bucket/models`"))?;
        if rest.contains(['@', '?', '#', '\\']) || rest.contains(char::is_control) {
            return Err(unfit(
                "it must have no user, query or fragment; credentials come from the environment",
            ));
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        if host.is_empty() {
            return Err(unfit("it names no bucket, container or host"));
        }
        if !path.is_empty() {
            reading::check_parts(path).map_err(|refusal| unfit(&format!("its path: {refusal}")))?;
        }
        let (store, prefix) = match scheme {
            "s3" => (s3(host, environment), path),
            "gs" => (gcs(host, environment), path),
            "az" => (azure(host, environment), path),
            "http" | "https" => (http(root.trim_end_matches('/')), ""),
            _ => return Err(unfit("it must begin with s3://, gs://, az://, http:// or https://")),
        };
        let secrets = secrets(environment);
        let store = store.map_err(|what| MirrorError::Root {
            root: public(root),
            what: redacted(&what, &secrets),
        })?;
        let prefix = if prefix.is_empty() {
            None
        } else {
            Some(Key::parse(prefix).map_err(|error| unfit(&error.to_string()))?)
        };
        let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(host);
        let name =
            ModelName::parse(last).map_or_else(|_| "models".to_owned(), |name| name.to_string());
        Ok(Self { store, prefix, name, secrets })
    }

    /// The last part of the address, fit for a folder; the name of the model where there is just one.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the store said, without what may be secret.
    pub(super) fn refused(&self, error: &object_store::Error) -> MirrorError {
        MirrorError::Remote(redacted(&chain(error), &self.secrets))
    }

    /// The key of what lies at a path below the address.
    pub(super) fn key(&self, path: &str) -> Result<Key, object_store::path::Error> {
        let whole = match &self.prefix {
            Some(prefix) => format!("{prefix}/{path}"),
            None => path.to_owned(),
        };
        Key::parse(whole)
    }

    /// All objects below a folder of the repository, by path; empty for the repository itself. Hidden ones and
    /// those that no folder can hold are passed over.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<Object>, MirrorError> {
        let prefix = match (&self.prefix, folder) {
            (None, "") => None,
            (None, folder) => Some(Key::from(folder)),
            (Some(prefix), folder) => {
                let parts = folder.split('/').filter(|part| !part.is_empty());
                Some(parts.fold(prefix.clone(), Key::join))
            }
        };
        let mut listed = self.store.list(prefix.as_ref());
        let mut objects = Vec::new();
        while let Some(object) = listed.next().await {
            let object = object.map_err(|error| self.refused(&error))?;
            if objects.len() >= OBJECTS_MAX {
                return Err(MirrorError::TooManyObjects { objects_max: OBJECTS_MAX });
            }
            let key = object.location;
            let path = match &self.prefix {
                None => key.as_ref(),
                Some(prefix) => match key.as_ref().strip_prefix(prefix.as_ref()) {
                    Some(path) => path.trim_start_matches('/'),
                    None => continue,
                },
            };
            let hidden = path.split('/').any(|part| part.starts_with('.'));
            if hidden || reading::check_location(path).is_err() {
                continue;
            }
            let path = path.to_owned();
            let state = match &object.e_tag {
                Some(e_tag) => e_tag.escape_default().to_string(),
                None => object.last_modified.to_rfc3339(),
            };
            let changed = u64::try_from(object.last_modified.timestamp()).unwrap_or(0);
            objects.push(Object {
                path,
                key,
                bytes: object.size,
                state,
                e_tag: object.e_tag,
                changed: Duration::from_secs(changed),
            });
        }
        objects.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(objects)
    }
}

/// An error with its causes.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        // Many of these repeat their cause.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// What must not be in a message: values of the providers' variables that may be secret.
fn secrets(environment: &Environment) -> Vec<String> {
    const PROVIDERS: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "SERVICE_"];
    const WORDS: [&str; 7] =
        ["KEY", "SECRET", "TOKEN", "PASSWORD", "SAS", "CREDENTIAL", "SERVICE_ACCOUNT"];
    const BYTES_MIN: usize = 4;
    let secret = |name: &str| {
        PROVIDERS.iter().any(|provider| name.starts_with(provider))
            && WORDS.iter().any(|word| name.contains(word))
    };
    let values = environment.iter().filter(|(name, _)| secret(name)).map(|(_, value)| value);
    values.filter(|value| value.len() >= BYTES_MIN).cloned().collect()
}

/// Text fit for a message: short, without control characters and secrets.
fn redacted(text: &str, secrets: &[String]) -> String {
    const CHARACTERS_MAX: usize = 400;
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret, "***");
    }
    let mut short: String = text.chars().take(CHARACTERS_MAX).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// An address without a user and a query.
fn public(root: &str) -> String {
    let plain = root.split(['?', '#']).next().unwrap_or_default();
    let plain = match (plain.split_once("://"), plain.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => plain.to_owned(),
    };
    shown(&plain)
}

type Opened = Result<Arc<dyn ObjectStore>, String>;

/// A builder with all that the environment says to it; names that it does not know are others' business.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn configured<B, K: std::str::FromStr>(
    builder: B,
    environment: &Environment,
    provider: &str,
    with: impl Fn(B, K, &str) -> B,
) -> B {
    let known = environment.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix(provider).map(|_| name.to_ascii_lowercase())?;
        Some((name.parse::<K>().ok()?, value))
    });
    known.fold(builder, |builder, (key, value)| with(builder, key, value))
}

#[cfg(feature = "s3")]
fn s3(bucket: &str, environment: &Environment) -> Opened {
    use object_store::aws::AmazonS3Builder;

    // Without TLS only where the operator's own environment says so.
    let plain = environment.iter().any(|(name, value)| {
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
        endpoint.contains(&name.as_str()) && value.starts_with("http://")
    });
    let builder =
        AmazonS3Builder::new().with_client_options(ClientOptions::new().with_allow_http(plain));
    let builder = configured(builder, environment, "AWS_", |builder, key, value| {
        AmazonS3Builder::with_config(builder, key, value)
    });
    let builder = builder.with_bucket_name(bucket).with_http_connector(Connector);
    built(builder.with_retry(retry()).build())
}

#[cfg(not(feature = "s3"))]
fn s3(_: &str, _: &Environment) -> Opened {
    missing("s3")
}

#[cfg(feature = "gcs")]
fn gcs(bucket: &str, environment: &Environment) -> Opened {
    use object_store::gcp::GoogleCloudStorageBuilder;

    let builder = GoogleCloudStorageBuilder::new();
    let builder = configured(builder, environment, "GOOGLE_", |builder, key, value| {
        GoogleCloudStorageBuilder::with_config(builder, key, value)
    });
    let builder = builder.with_bucket_name(bucket).with_http_connector(Connector);
    built(builder.with_retry(retry()).build())
}

#[cfg(not(feature = "gcs"))]
fn gcs(_: &str, _: &Environment) -> Opened {
    missing("gcs")
}

#[cfg(feature = "azure")]
fn azure(container: &str, environment: &Environment) -> Opened {
    use object_store::azure::MicrosoftAzureBuilder;

    let builder = MicrosoftAzureBuilder::new();
    let builder = configured(builder, environment, "AZURE_", |builder, key, value| {
        MicrosoftAzureBuilder::with_config(builder, key, value)
    });
    let builder = builder.with_container_name(container).with_http_connector(Connector);
    built(builder.with_retry(retry()).build())
}

#[cfg(not(feature = "azure"))]
fn azure(_: &str, _: &Environment) -> Opened {
    missing("azure")
}

#[cfg(feature = "http-store")]
fn http(address: &str) -> Opened {
    let plain = address.starts_with("http://");
    let builder = object_store::http::HttpBuilder::new()
        .with_url(address)
        .with_client_options(ClientOptions::new().with_allow_http(plain))
        .with_http_connector(Connector)
        .with_retry(retry());
    built(builder.build())
}

#[cfg(not(feature = "http-store"))]
fn http(_: &str) -> Opened {
    missing("http-store")
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http-store"))]
fn built<S: ObjectStore>(store: object_store::Result<S>) -> Opened {
    match store {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(chain(&error)),
    }
}

#[cfg(not(all(feature = "s3", feature = "gcs", feature = "azure", feature = "http-store")))]
fn missing(feature: &str) -> Opened {
    Err(format!("this build of tidegate has no client for it; build with `--features {feature}`"))
}

fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIME_MAX,
        ..RetryConfig::default()
    }
}

/// Makes clients that follow no redirect: a store must not send us, and what we sign, to another host.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .https_only(plain.as_deref() != Some("true"))
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENCE_MAX)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build();
        client.map(HttpClient::new).map_err(|error| object_store::Error::Generic {
            store: "HTTP client",
            source: Box::new(error.without_url()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_asked() {
        let check = |root: &str, expected: &str| {
            let error = Remote::open(root, &Vec::new()).expect_err(root).to_string();
            assert!(error.contains(expected), "{root}: {error}");
        };
        check("models", "is not an address");
        check("ftp://host/x", "must begin with s3://");
        check("s3:///prefix", "names no bucket");
        check("s3://bucket/../x", "its path: it has a part");
        check("s3://bucket/a//x", "its path: it has a part");
        check("s3://bucket/a\\b", "no user, query");
        check(
            "https://me:secret@host/x",
            "`https://***@host/x` cannot be mirrored: it must have no user",
        );
        check("https://host/x?sig=secret", "`https://host/x` cannot be mirrored");
    }

    #[test]
    fn secrets_are_left_out_of_messages() {
        let environment = [
            ("AWS_SECRET_ACCESS_KEY", "hush/hush"),
            ("AWS_SESSION_TOKEN", "tokentoken"),
            ("AWS_REGION", "us-east-1"),
            ("HOME", "/home"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let secrets = secrets(&environment.to_vec());
        let text = redacted("no hush/hush\n tokentoken in us-east-1 /home", &secrets);
        assert_eq!(text, "no ***  *** in us-east-1 /home");
        assert!(redacted(&"x".repeat(1000), &secrets).len() < 410);
    }
}
