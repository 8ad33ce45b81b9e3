//! The part of a request that keeps its client in its arm.
//!
//! Not here: which part that is (the model's traffic, in `serve`), what becomes of it (`serve`).

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, header::COOKIE};

use crate::{
    model::{InferRequest, Parameter, StickyBy},
    serve::Traffic,
};

use super::v2::REQUEST_ID;

/// The longest key that is hashed; of a longer one, so many bytes.
const KEY_BYTES_MAX: usize = 4096;

/// True if the key may stand in the body, which must be decoded first.
pub(super) fn needs_body(traffic: &Traffic, headers: &HeaderMap) -> bool {
    match traffic.sticky() {
        StickyBy::Parameter(_) => true,
        StickyBy::RequestId => header(headers, REQUEST_ID.as_str()).is_none(),
        StickyBy::Header(_) | StickyBy::Cookie(_) | StickyBy::None => false,
    }
}

/// The key of a request; `None` if it has none.
pub(super) fn key<'a>(
    traffic: &Traffic,
    headers: &'a HeaderMap,
    request: Option<&'a InferRequest>,
) -> Option<Cow<'a, [u8]>> {
    let key = match traffic.sticky() {
        StickyBy::None => None,
        StickyBy::Header(name) => header(headers, name).map(Cow::Borrowed),
        StickyBy::Cookie(name) => cookie(headers, name).map(Cow::Borrowed),
        StickyBy::RequestId => header(headers, REQUEST_ID.as_str())
            .or_else(|| request?.id.as_deref().map(str::as_bytes))
            .map(Cow::Borrowed),
        StickyBy::Parameter(name) => parameter(request?, name),
    }?;
    Some(match key {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..bytes.len().min(KEY_BYTES_MAX)]),
        owned @ Cow::Owned(_) => owned,
    })
    .filter(|key| !key.is_empty())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers.get(name).map(HeaderValue::as_bytes).filter(|value| !value.is_empty())
}

/// The value of a cookie (RFC 6265, 5.4): the first of its name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at].trim_ascii_end() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
    })
}

/// The value of a parameter, named, or pointed at (RFC 6901) from the object of all parameters; they hold no others.
fn parameter<'a>(request: &'a InferRequest, name: &str) -> Option<Cow<'a, [u8]>> {
    let name = match name.strip_prefix('/') {
        Some(pointed) if pointed.contains('/') => return None,
        Some(pointed) => Cow::Owned(pointed.replace("~1", "/").replace("~0", "~")),
        None => Cow::Borrowed(name),
    };
    let (_, value) = request.parameters.iter().find(|(key, _)| *key == name)?;
    Some(match value {
        Parameter::String(text) => Cow::Borrowed(text.as_bytes()),
        Parameter::Bool(yes) => Cow::Borrowed(if *yes { b"true" } else { b"false" }),
        Parameter::Int(number) => Cow::Owned(number.to_string().into_bytes()),
        Parameter::Uint(number) => Cow::Owned(number.to_string().into_bytes()),
        Parameter::Double(number) => Cow::Owned(number.to_string().into_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Split, TrafficSource, TrafficSpec};

    fn traffic(sticky: StickyBy) -> Traffic {
        let spec = TrafficSpec {
            source: TrafficSource::Operator,
            rollout: None,
            salt: [0, 0],
            sticky,
            arms: Vec::new(),
            runs: Split::whole().runs().collect(),
            shadow: Vec::new(),
            keep: Vec::new(),
        };
        Traffic::new(Arc::new(spec), None, |_| None)
    }

    #[test]
    fn the_key_stands_where_the_traffic_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-tidegate-key", HeaderValue::from_static("from header"));
        headers.append(COOKIE, HeaderValue::from_static("a=1; session = two ; b=3"));
        headers.append(COOKIE, HeaderValue::from_static("c=4;session=later"));
        let request = InferRequest {
            id: Some("from body".to_owned()),
            parameters: vec![
                ("user".to_owned(), Parameter::String("anna".to_owned())),
                ("a/b".to_owned(), Parameter::Int(-7)),
            ],
            ..InferRequest::default()
        };
        let of = |sticky: StickyBy| {
            let key = key(&traffic(sticky), &headers, Some(&request));
            key.map(|key| String::from_utf8(key.into_owned()).unwrap())
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(of(StickyBy::default()), text("from header"));
        assert_eq!(of(StickyBy::Header("x-other".to_owned())), None);
        assert_eq!(of(StickyBy::Cookie("session".to_owned())), text("two"));
        assert_eq!(of(StickyBy::Cookie("sess".to_owned())), None);
        assert_eq!(of(StickyBy::Parameter("user".to_owned())), text("anna"));
        assert_eq!(of(StickyBy::Parameter("/user".to_owned())), text("anna"));
        assert_eq!(of(StickyBy::Parameter("/a~1b".to_owned())), text("-7"));
        assert_eq!(of(StickyBy::Parameter("/user/name".to_owned())), None);
        assert_eq!(of(StickyBy::RequestId), text("from body"));
        assert_eq!(of(StickyBy::None), None);
        assert!(needs_body(&traffic(StickyBy::RequestId), &headers));
        headers.insert(REQUEST_ID, HeaderValue::from_static("from header"));
        assert!(!needs_body(&traffic(StickyBy::RequestId), &headers));
    }
}
