//! W3C Trace Context: a trace goes on through a prediction, and what is no trace begins none.

use std::{collections::BTreeSet, fs};

use serde_json::json;

use crate::{
    http::{Request, Response},
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{identity, infer},
};

const MODEL: &str = "identity_fp32";
/// The example of the specification.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn request(model: &str) -> Request {
    Request::post_json(&infer(model), &identity("FP32", &json!([1.0])))
}

/// The trace, span and flags that an answer tells.
fn told(answer: &Response) -> Option<[String; 3]> {
    let parts: Vec<&str> = answer.header("traceparent")?.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { panic!("{parts:?}") };
    assert_eq!((version, trace.len(), span.len()), ("00", 32, 16));
    Some([trace, span, flags].map(str::to_owned))
}

fn start(sample: &str) -> (Repository, Server) {
    let repository = Repository::of(&[MODEL]);
    let path = repository.beside("access.log");
    let launch = Launch::of(&repository).set("LOGS__ACCESS", path.to_str().unwrap());
    let server = launch.set("TRACING__SAMPLE", sample).start();
    (repository, server)
}

#[test]
fn a_trace_goes_on_with_a_span_of_its_own() {
    let (repository, server) = start("0");
    let mut spans = BTreeSet::new();
    // Whether the request succeeds or not, and whether the caller records the trace or not.
    for (model, parent, flags) in [
        (MODEL, PARENT.to_owned(), "01"),
        (MODEL, PARENT.replace("-01", "-00"), "00"),
        ("nobody", PARENT.to_owned(), "01"),
    ] {
        let answer = server.ask(&request(model).header("traceparent", &parent));
        let [trace, span, told_flags] = told(&answer).unwrap();
        assert_eq!((&*trace, &*told_flags), (TRACE, flags));
        assert_ne!(span, "00f067aa0ba902b7");
        spans.insert(span);
    }
    assert_eq!(spans.len(), 3, "each request has a span of its own");
    let path = repository.beside("access.log");
    let lines = eventually("three lines", || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        (text.matches('\n').count() == 3).then_some(text)
    });
    for span in spans {
        assert!(lines.contains(&format!(r#""trace_id":"{TRACE}","span_id":"{span}""#)), "{lines}");
    }
}

#[test]
fn what_is_no_trace_is_passed_over() {
    let (_repository, server) = start("0");
    let answer = server.ask(&request(MODEL)).ok();
    assert_eq!(told(&answer), None, "nobody asked for one");
    let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    for bad in [zero, "", "x", &PARENT.to_uppercase(), &PARENT.replacen("00", "ff", 1)] {
        let answer = server.ask(&request(MODEL).header("traceparent", bad)).ok();
        assert_eq!(told(&answer), None, "{bad}");
    }
    let twice = request(MODEL).header("traceparent", PARENT).header("traceparent", PARENT);
    assert_eq!(told(&server.ask(&twice).ok()), None, "one of two would be a guess");
}

#[test]
fn a_share_of_requests_begins_a_trace() {
    let (_repository, server) = start("0.5");
    let mut connection = server.connect();
    let answers: Vec<_> =
        (0..200).filter_map(|_| told(&connection.ask(&request(MODEL)).ok())).collect();
    // 200 times one half: seven standard deviations.
    assert!((50..=150).contains(&answers.len()), "{}", answers.len());
    assert!(answers.iter().all(|[_, _, flags]| flags == "03"), "recorded, and random");
    let traces: BTreeSet<_> = answers.iter().map(|[trace, ..]| trace).collect();
    assert_eq!(traces.len(), answers.len());
    let answer = connection.ask(&request(MODEL).header("traceparent", PARENT)).ok();
    assert_eq!(told(&answer).unwrap()[0], TRACE, "a caller's comes first");
}
