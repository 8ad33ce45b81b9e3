//! Paths of the data plane.

use std::borrow::Cow;

use crate::model::{VersionId, VersionSelector};

/// What a path names.
#[derive(Debug, PartialEq)]
pub(super) enum Route<'a> {
    ServerMetadata,
    Live,
    Ready,
    Models,
    Model { model: Cow<'a, str>, version: Option<Cow<'a, str>>, part: Part },
    AllStatistics,
    Repository,
    SharedMemoryStatus,
    SharedMemory,
    Tracing,
    Logging,
}

/// What of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
    Feedback,
    Generate,
    Tracing,
}

/// Why a path names nothing.
#[derive(Debug, PartialEq)]
pub(super) enum NoRoute {
    Unknown,
    Percent,
}

impl<'a> Route<'a> {
    pub(super) fn parse(path: &'a str) -> Result<Self, NoRoute> {
        if let Some(rest) = path.strip_prefix("/v2/models/") {
            return model(rest);
        }
        Ok(match path {
            "/" | "/v2/health/live" => Self::Live,
            "/v2" | "/v2/" => Self::ServerMetadata,
            "/v2/health/ready" => Self::Ready,
            "/v2/models" => Self::Models,
            "/v2/trace/setting" => Self::Tracing,
            "/v2/logging" => Self::Logging,
            _ if path.starts_with("/v2/repository/") => Self::Repository,
            _ => return shared_memory(path),
        })
    }

    /// The methods that a path takes, as `Allow` lists them.
    pub(super) fn methods(&self) -> &'static str {
        match self {
            Self::Model { part: Part::Infer | Part::Feedback | Part::Generate, .. }
            | Self::Repository
            | Self::SharedMemory => "POST",
            Self::Tracing | Self::Logging | Self::Model { part: Part::Tracing, .. } => "GET, POST",
            _ => "GET, HEAD",
        }
    }
}

/// `{m}[/versions/{v}][/part]` behind `/v2/models/`.
fn model(rest: &str) -> Result<Route<'_>, NoRoute> {
    let (model, rest) = segment(rest);
    if model == "stats" && rest.is_none() {
        return Ok(Route::AllStatistics);
    }
    let model = decoded(model)?;
    let (version, rest) = match rest.and_then(|rest| rest.strip_prefix("versions/")) {
        Some(rest) => {
            let (version, rest) = segment(rest);
            (Some(decoded(version)?), rest)
        }
        None => (None, rest),
    };
    let part = match rest {
        None => Part::Metadata,
        Some("infer") => Part::Infer,
        Some("feedback") if version.is_none() => Part::Feedback,
        Some("ready") => Part::Ready,
        Some("config") => Part::Config,
        Some("stats") => Part::Statistics,
        Some("generate" | "generate_stream") => Part::Generate,
        Some("trace/setting") if version.is_none() => Part::Tracing,
        Some(_) => return Err(NoRoute::Unknown),
    };
    if model.is_empty() || version.as_deref() == Some("") {
        return Err(NoRoute::Unknown);
    }
    Ok(Route::Model { model, version, part })
}

fn shared_memory(path: &str) -> Result<Route<'_>, NoRoute> {
    let rest = ["/v2/systemsharedmemory/", "/v2/cudasharedmemory/"]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .ok_or(NoRoute::Unknown)?;
    Ok(if rest == "status" || rest.ends_with("/status") {
        Route::SharedMemoryStatus
    } else {
        Route::SharedMemory
    })
}

fn segment(rest: &str) -> (&str, Option<&str>) {
    rest.split_once('/').map_or((rest, None), |(segment, rest)| (segment, Some(rest)))
}

/// Undoes percent-encoding, once.
fn decoded(segment: &str) -> Result<Cow<'_, str>, NoRoute> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(NoRoute::Percent)?;
        bytes.push(byte);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| NoRoute::Percent)
}

/// The version that a path names.
pub(super) fn selector(version: Option<&str>) -> VersionSelector<'_> {
    match version {
        None => VersionSelector::Default,
        Some(text) => {
            VersionId::parse(text).map_or(VersionSelector::Alias(text), VersionSelector::Number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(model: &'a str, version: Option<&'a str>, part: Part) -> Route<'a> {
        Route::Model { model: model.into(), version: version.map(Cow::from), part }
    }

    #[test]
    fn paths_name_what_they_should() {
        let check = |path, expected| assert_eq!(Route::parse(path), Ok(expected), "{path}");
        check("/", Route::Live);
        check("/v2", Route::ServerMetadata);
        check("/v2/models/m", of("m", None, Part::Metadata));
        check("/v2/models/m/infer", of("m", None, Part::Infer));
        check("/v2/models/a%2Db/versions/3/infer", of("a-b", Some("3"), Part::Infer));
        check("/v2/models/m/versions/stable/ready", of("m", Some("stable"), Part::Ready));
        check("/v2/models/stats", Route::AllStatistics);
        check("/v2/models/m/feedback", of("m", None, Part::Feedback));
        check("/v2/models/m/stats", of("m", None, Part::Statistics));
        check("/v2/repository/index", Route::Repository);
        check("/v2/systemsharedmemory/region/x/register", Route::SharedMemory);
        check("/v2/cudasharedmemory/status", Route::SharedMemoryStatus);
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "/v2/models/",
            "/v2/models//infer",
            "/v2/models/m/nothing",
            "/v3",
            "/v2/models/m/versions/",
        ] {
            assert_eq!(Route::parse(path), Err(NoRoute::Unknown), "{path}");
        }
        for path in
            ["/v2/models/%/infer", "/v2/models/%zz", "/v2/models/%ff/infer", "/v2/models/%+1"]
        {
            assert_eq!(Route::parse(path), Err(NoRoute::Percent), "{path}");
        }
    }
}
