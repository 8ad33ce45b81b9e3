//! `/api/v1/events`: what happens to models, as server-sent events.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::monitor::Event;

use super::Admin;

/// After this long without an event a comment is sent: proxies close what is silent.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// The path at which events are followed.
pub(super) const PATH: &str = "/api/v1/events";

pub(super) fn router() -> Router<Admin> {
    Router::new().route(PATH, get(follow))
}

/// The last events, then each as it comes; with `Last-Event-ID` only those after it.
///
/// Source of the format: WHATWG HTML, section 9.2, server-sent events.
async fn follow(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let (recent, later) = admin.monitor.events().follow();
    let recent = recent.into_iter().filter(|event| seen.is_none_or(|seen| event.sequence > seen));
    let stream = Stream { recent: recent.collect(), later };
    let frames = futures_util::stream::unfold(stream, |mut stream| async move {
        let text = stream.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), stream))
    });
    let mut response = Body::new(StreamBody::new(frames)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

struct Stream {
    recent: VecDeque<Event>,
    later: Receiver<Event>,
}

impl Stream {
    /// The next event as text; `None` when there will be no more.
    async fn next(&mut self) -> Option<String> {
        if let Some(event) = self.recent.pop_front() {
            return Some(text(&event));
        }
        match tokio::time::timeout(QUIET_MAX, self.later.recv()).await {
            Ok(Ok(event)) => Some(text(&event)),
            Ok(Err(RecvError::Lagged(missed))) => {
                Some(format!(": {missed} events were missed\n\n"))
            }
            Ok(Err(RecvError::Closed)) => None,
            Err(_) => Some(": nothing new\n\n".to_owned()),
        }
    }
}

fn text(event: &Event) -> String {
    let data = event.to_json();
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.sequence, event.kind.name())
}
