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

#[cfg(feature = "otlp")]
mod spans {
    use std::{
        io::{BufRead as _, BufReader},
        net::TcpListener,
        path::Path,
        process::{Child, ChildStdout, Command, Stdio},
        sync::mpsc::{self, Receiver},
        thread,
    };

    use serde_json::Value;

    use super::*;
    use crate::{clients::python, server::PATIENCE};

    /// A collector that others' code reads messages for.
    struct Collector {
        child: Child,
        port: u16,
        spans: Receiver<Value>,
    }

    impl Collector {
        fn start(refuse: u32) -> Self {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/collector.py");
            let mut command = Command::new(python());
            command.arg(script).args(["--refuse", &refuse.to_string()]).stdout(Stdio::piped());
            let mut child = command.env("PYTHONDONTWRITEBYTECODE", "1").spawn().unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap());
            let mut port = String::new();
            said.read_line(&mut port).unwrap();
            let (told, spans) = mpsc::channel();
            let tell = move |said: BufReader<ChildStdout>| {
                let spans = said.lines().map_while(Result::ok);
                let mut spans = spans.map(|line| serde_json::from_str(&line).unwrap());
                // The test that listens may have ended.
                spans.all(|span: Value| told.send(span).is_ok())
            };
            thread::spawn(move || tell(said));
            Self { child, port: port.trim().parse().unwrap(), spans }
        }

        fn next(&self, number: usize) -> Vec<Value> {
            (0..number).map(|_| self.spans.recv_timeout(PATIENCE).expect("a span")).collect()
        }
    }

    impl Drop for Collector {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn launch(port: u16) -> (Repository, Server) {
        let repository = Repository::of(&[MODEL]);
        let launch = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "0s");
        let endpoint = format!("http://127.0.0.1:{port}");
        let server = launch.set("TRACING__OTLP", &endpoint).start();
        (repository, server)
    }

    fn check_request(spans: &[Value], answer: &Response) {
        let [server, phases @ ..] = spans else { panic!("no span") };
        let [trace, own, _] = told(answer).unwrap();
        assert_eq!((&server["trace"], &server["span"]), (&json!(trace), &json!(own)));
        assert_eq!(server["parent"], "00f067aa0ba902b7");
        assert_eq!((&server["kind"], &server["service"]), (&json!(2), &json!("tidegate")));
        assert_eq!(server["name"], "POST /v2/models/{model}/infer");
        let attributes = &server["attributes"];
        assert_eq!(attributes["http.route"], "/v2/models/{model}/infer");
        assert_eq!(attributes["http.response.status_code"], 200);
        assert_eq!(attributes["tidegate.model"], MODEL);
        assert_eq!(attributes["network.peer.address"], "127.0.0.1");
        let id = answer.header("x-tidegate-prediction-id").unwrap();
        assert_eq!(attributes["tidegate.prediction_id"], id);
        let names: Vec<_> = phases.iter().map(|span| span["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["queue", "decode", "run", "encode"]);
        let time = |span: &Value, name: &str| span[name].as_u64().unwrap();
        let mut from = time(server, "start");
        for phase in phases {
            assert_eq!((&phase["trace"], &phase["parent"]), (&json!(trace), &json!(own)));
            assert!(time(phase, "start") >= from && time(phase, "end") >= time(phase, "start"));
            from = time(phase, "end");
        }
        assert_eq!(from, time(server, "end"), "the phases end with the request");
        let ids: BTreeSet<_> = spans.iter().map(|span| span["span"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), spans.len());
    }

    #[test]
    fn a_collector_gets_the_request_and_its_phases() {
        // The first message is refused for a while, and sent again.
        let collector = Collector::start(1);
        let (_repository, mut server) = launch(collector.port);
        server.ask(&request(MODEL)).ok();
        server.ask(&request(MODEL).header("traceparent", &PARENT.replace("-01", "-00"))).ok();
        let answer = server.ask(&request(MODEL).header("traceparent", PARENT)).ok();
        check_request(&collector.next(5), &answer);
        // One that reaches no version has no phases; and the end waits for the last spans.
        server.ask(&request("nobody").header("traceparent", PARENT));
        server.terminate();
        assert_eq!(server.exit_code(PATIENCE), 0);
        let last = collector.next(1).remove(0);
        assert_eq!(last["attributes"]["http.response.status_code"], 404);
        assert_eq!(
            (&last["status"], last["attributes"].get("error.type")),
            (&json!("UNSET"), None)
        );
        assert!(collector.spans.try_recv().is_err(), "nothing else was sampled");
    }

    #[test]
    fn a_collector_that_is_not_there_costs_spans_and_nothing_else() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (_repository, server) = launch(port);
        let mut connection = server.connect();
        let traced = request(MODEL).header("traceparent", PARENT);
        (0..100).for_each(|_| drop(connection.ask(&traced).ok()));
        eventually("spans are dropped", || {
            let page = server.admin("/metrics").ok().text();
            let mut lines = page.lines();
            let name = "tidegate_traced_requests_dropped_total ";
            let dropped = lines.find_map(|line| line.strip_prefix(name)).expect("the metric");
            (dropped.parse::<f64>().unwrap() >= 100.0).then_some(())
        });
        connection.ask(&traced).ok();
    }
}
