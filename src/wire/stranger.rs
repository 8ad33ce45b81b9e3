//! Which requests come from a web page of another site: a browser on the server's machine reaches loopback,
//! and whatever page it shows can make it ask.
//!
//! Always true:
//! - What changes something is refused if it names an `Origin` that is not the server as the client names it. A
//!   page cannot leave that header out; programs do not send it.
//! - What listens on loopback answers only to names of loopback, so that a name which its owner turns to this
//!   machine later (DNS rebinding) is nobody here. Predictions are held to this where a browser asks: behind a proxy on
//!   the same machine programs may call the server by its public name.
//!
//! Not here: who the caller is.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{HOST, ORIGIN},
    uri::Authority,
};

/// Why a request is taken for one of another site.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// A page would change what is served.
    #[error(
        "the request comes from a page of another site, `{0}`, and would change what is served; ask without an Origin header, or from the server's own address"
    )]
    Page(String),
    /// A page asks for work.
    #[error(
        "the request comes from a web page of another site ({0}), and the server listens on loopback, which any page can reach; ask without the headers of a browser, or set server.web_pages = \"on\" where a proxy on this machine serves browsers"
    )]
    Asker(String),
    /// A name that anybody could have turned to this machine.
    #[error(
        "the server listens on loopback and is not `{0}`; name it localhost, 127.0.0.1 or [::1] in the URL or the Host header"
    )]
    Name(String),
}

/// Refuses what names this machine by a name that need not be its own; for what listens on loopback.
pub fn check_name(uri: &Uri, headers: &HeaderMap) -> Result<(), Stranger> {
    let foreign = names(uri, headers).find(|name| !is_loopback(name));
    foreign.map_or(Ok(()), |name| Err(Stranger::Name(shown(name))))
}

/// Refuses what a page of another site asks; for what changes something.
pub fn check_page(uri: &Uri, headers: &HeaderMap) -> Result<(), Stranger> {
    let mut origins = headers.get_all(ORIGIN).iter().map(HeaderValue::as_bytes);
    let own = |origin: &[u8]| names(uri, headers).any(|name| is_origin_of(origin, name));
    let foreign = origins.find(|origin| !own(origin));
    foreign.map_or(Ok(()), |origin| Err(Stranger::Page(shown(origin))))
}

/// Refuses what a page of another site asks of what listens on loopback; for what takes time and changes nothing.
///
/// Costs what does not come from a browser two looks for headers.
pub fn check_asker(uri: &Uri, headers: &HeaderMap) -> Result<(), Stranger> {
    let site = headers.get(SEC_FETCH_SITE);
    if site.is_none() && !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    // `none` is what a person asked for, not a page.
    let own = |site: &HeaderValue| [&b"same-origin"[..], b"none"].contains(&site.as_bytes());
    if let Some(site) = site.filter(|site| !own(site)) {
        return Err(Stranger::Asker(shown(site.as_bytes())));
    }
    check_name(uri, headers)?;
    check_page(uri, headers).map_err(|stranger| match stranger {
        Stranger::Page(origin) => Stranger::Asker(origin),
        other => other,
    })
}

/// How near the page is that asks, as browsers say (W3C, Fetch Metadata Request Headers).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the request calls the server: HTTP/1.1 in `Host`, HTTP/2 in the URI.
fn names<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = &'a [u8]> {
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    headers.get_all(HOST).iter().map(HeaderValue::as_bytes).chain(authority)
}

fn is_loopback(name: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(name) else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn is_origin_of(origin: &[u8], name: &[u8]) -> bool {
    let (origin, port) = match origin.strip_prefix(b"http://") {
        Some(rest) => (rest, &b":80"[..]),
        None => match origin.strip_prefix(b"https://") {
            Some(rest) => (rest, &b":443"[..]),
            None => return false,
        },
    };
    let bare = |name: &[u8]| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    bare(origin) == bare(name)
}

/// The start of what a client wrote, for the answer.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let lines = [(HOST, Some(host)), (ORIGIN, origin)];
        let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
        lines.map(|(name, value)| (name, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn loopback_has_few_names() {
        let uri = Uri::from_static("/");
        for name in ["localhost", "LocalHost:8002", "127.0.0.1", "127.9.9.9:1", "[::1]:8002"] {
            assert_eq!(check_name(&uri, &headers(name, None)), Ok(()), "{name}");
        }
        for name in
            ["evil.example", "localhost.evil.example", "10.0.0.1:8002", "127.0.0.1.nip.io", ""]
        {
            assert_eq!(check_name(&uri, &headers(name, None)), Err(Stranger::Name(name.into())));
        }
        assert_eq!(check_name(&uri, &HeaderMap::new()), Ok(()), "HTTP/1.0 without any name");
        let uri = Uri::from_static("http://evil.example/");
        assert!(check_name(&uri, &HeaderMap::new()).is_err(), "HTTP/2");
        assert!(check_name(&uri, &headers("localhost", None)).is_err(), "both must be right");
    }

    #[test]
    fn programs_and_own_pages_may_ask() {
        let uri = Uri::from_static("/");
        let with = |host: &str, origin: Option<&str>, site: Option<&'static str>| {
            let mut headers = headers(host, origin);
            if let Some(site) = site {
                headers.insert(SEC_FETCH_SITE, HeaderValue::from_static(site));
            }
            check_asker(&uri, &headers)
        };
        let own = Some("http://localhost:8000");
        for (host, origin, site) in [
            ("localhost:8000", None, None),
            ("models.example", None, None),
            ("localhost:8000", own, None),
            ("localhost:8000", own, Some("same-origin")),
            ("localhost:8000", None, Some("none")),
        ] {
            assert_eq!(with(host, origin, site), Ok(()), "{host} {origin:?} {site:?}");
        }
        for (host, origin, site) in [
            ("localhost:8000", None, Some("cross-site")),
            ("localhost:8000", own, Some("cross-site")),
            ("localhost:8000", None, Some("same-site")),
            ("localhost:8000", Some("http://localhost:3000"), None),
            ("localhost:8000", Some("null"), None),
            ("evil.example:8000", Some("http://evil.example:8000"), Some("same-origin")),
        ] {
            assert!(with(host, origin, site).is_err(), "{host} {origin:?} {site:?}");
        }
    }

    #[test]
    fn an_origin_is_the_servers_own_or_another_sites() {
        let uri = Uri::from_static("/");
        let own = [
            ("localhost:8002", "http://localhost:8002"),
            ("LOCALHOST:80", "http://localhost"),
            ("models.example", "https://models.example:443"),
        ];
        for (host, origin) in own {
            assert_eq!(check_page(&uri, &headers(host, Some(origin))), Ok(()), "{origin}");
        }
        let foreign =
            ["null", "", "http://localhost", "http://localhost:80020", "ftp://localhost:8002"];
        for origin in foreign {
            let refused = check_page(&uri, &headers("localhost:8002", Some(origin)));
            assert_eq!(refused, Err(Stranger::Page(origin.into())));
        }
        assert_eq!(check_page(&uri, &headers("localhost:8002", None)), Ok(()), "no browser");
        let uri = Uri::from_static("http://localhost:8002/");
        let mut headers = headers("", Some("http://localhost:8002"));
        headers.remove(HOST);
        assert_eq!(check_page(&uri, &headers), Ok(()), "HTTP/2");
    }
}
