//! A real Prometheus, as Debian ships it, and what it makes of our pages.
//!
//! `scripts/prepare-tests.sh` installs it, with `promtool`. The parsers of its Python client read the pages too.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    clients::{assert_success, python},
    http::{Connection, Request},
    repository::Repository,
    server::{Launch, Server, eventually, free_address},
    tensors::{add_sub, infer},
};

/// A Prometheus that scrapes a server each second; killed when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

/// One series of an answer to a query: its labels and its value.
pub(crate) type Found = (BTreeMap<String, String>, f64);

impl Prometheus {
    /// Starts one that scrapes this address, with these features.
    pub(crate) fn scraping(admin: SocketAddr, features: &str) -> Self {
        Self::with_rules(admin, features, &[], None)
    }

    /// Starts one that scrapes this address, evaluates the rules of these files each second, and tells an Alertmanager.
    pub(crate) fn with_rules(
        admin: SocketAddr,
        features: &str,
        rules: &[PathBuf],
        alertmanager: Option<SocketAddr>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let file = folder.path().join("prometheus.yml");
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: {}\n\
             scrape_configs: [{{job_name: tidegate, static_configs: [{{targets: ['{admin}']}}]}}]\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: {}}}]}}]}}\n",
            json!(rules),
            json!(alertmanager.into_iter().collect::<Vec<_>>()),
        );
        fs::write(&file, configuration).unwrap();
        let said = fs::File::create(folder.path().join("said")).unwrap();
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let mut command = Command::new("prometheus");
        command
            .arg(flag("config.file", &file))
            .arg(flag("storage.tsdb.path", &folder.path().join("data")))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        if !features.is_empty() {
            command.arg(format!("--enable-feature={features}"));
        }
        let child = command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let child = child.spawn().unwrap_or_else(|error| {
            panic!("prometheus does not run ({error}): run scripts/prepare-tests.sh")
        });
        let mut prometheus = Self { child, address, folder };
        eventually("Prometheus has scraped", || {
            if let Some(status) = prometheus.child.try_wait().unwrap() {
                let said = fs::read_to_string(prometheus.folder.path().join("said")).unwrap();
                panic!("prometheus ended with {status}: {said}");
            }
            (prometheus.query("up")?.first()?.1 > 0.0).then_some(())
        });
        prometheus
    }

    /// Where it is asked.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The answer to a query, now; `None` where it gives none.
    pub(crate) fn query(&self, expression: &str) -> Option<Vec<Found>> {
        let answer = self.ask("query", &[("query", expression)])?;
        let found = answer["data"]["result"].as_array()?.iter().map(|series| {
            let labels = series["metric"].as_object().unwrap().iter();
            let labels = labels.map(|(key, value)| (key.clone(), value.as_str().unwrap().into()));
            (labels.collect(), series["value"][1].as_str().unwrap().parse().unwrap())
        });
        Some(found.collect())
    }

    /// The one number that a query gives.
    pub(crate) fn number(&self, expression: &str) -> Option<f64> {
        match self.query(expression)?.as_slice() {
            [(_, number)] => Some(*number),
            _ => None,
        }
    }

    /// Asks its API with parameters in a form.
    pub(crate) fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let encode = |text: &str| -> String {
            text.bytes().flat_map(|byte| ['%', hex(byte >> 4), hex(byte & 15)]).collect()
        };
        let form: Vec<_> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let request = Request::post(&format!("/api/v1/{what}"), form.join("&"))
            .header("content-type", "application/x-www-form-urlencoded");
        self.answer(&request)
    }

    /// Reads a resource of its API.
    pub(crate) fn get(&self, what: &str) -> Option<Value> {
        self.answer(&Request::get(&format!("/api/v1/{what}")))
    }

    fn answer(&self, request: &Request) -> Option<Value> {
        let answer = Connection::try_open(self.address)?.try_ask(request).ok()?;
        (answer.status == 200).then(|| answer.json())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(digit: u8) -> char {
    char::from_digit(digit.into(), 16).unwrap()
}

/// Checks the pages of a server with the programs that others read them with.
fn check_pages(server: &Server) {
    let page = server.admin("/metrics").ok().text();
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("no promtool ({error}): run scripts/prepare-tests.sh"));
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    assert_success("promtool", &child.wait_with_output().unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/pages.py");
    let mut command = Command::new(python());
    command.arg(script).arg(server.admin.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
    assert_success("pages.py", &command.output().unwrap());
}

#[test]
fn promtool_and_the_python_client_read_every_page() {
    let server = Server::over(&Repository::of(&["add_sub", "scalar"]));
    check_pages(&server);
    for _ in 0..20 {
        server.post(&infer("add_sub"), &add_sub()).ok();
    }
    check_pages(&server);
}

#[test]
fn pages_are_compressed_where_a_scraper_asks() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let ask = |request: &Request| Connection::open(server.admin).ask(request).ok();
    let plain = ask(&Request::get("/metrics"));
    assert_eq!(plain.header("content-encoding"), None);
    let gzip = ask(&Request::get("/metrics").header("accept-encoding", "gzip"));
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    assert!(gzip.body.len() * 3 < plain.body.len(), "{} {}", gzip.body.len(), plain.body.len());
}

#[test]
fn native_histograms_give_prometheus_our_quantiles() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("METRICS__OBJECTIVES", "750us, 20ms").start();
    let prometheus = Prometheus::scraping(server.admin, "native-histograms,exemplar-storage");
    let mut connection = server.connect();
    for number in 0..600 {
        // On an arm of its own where the path names the version.
        let named = "/v2/models/add_sub/versions/1/infer".to_owned();
        let path = if number % 6 == 0 { named } else { infer("add_sub") };
        connection.ask(&Request::post_json(&path, &add_sub())).ok();
    }
    let series = "tidegate_request_duration_seconds";
    eventually("Prometheus has all requests", || {
        (prometheus.number(&format!("sum(histogram_count({series}))"))? > 599.5).then_some(())
    });
    let report = server.admin("/api/v1/models/add_sub").ok().json();
    let loaded = &report["versions"][0]["loaded"];
    let agree = |series: &str, latency: &Value| {
        for (quantile, name) in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p999")] {
            let theirs = prometheus.number(&format!("histogram_quantile({quantile}, {series})"));
            let (theirs, ours) = (theirs.unwrap() * 1e6, latency[name].as_f64().unwrap());
            let ratio = theirs / ours;
            let factor = 2f64.powf(0.125) * (1.0 + 1e-9);
            // Nothing waits here: all of these are zero.
            let agree = ours == 0.0 && theirs < 1e-3 || (1.0 / factor..=factor).contains(&ratio);
            assert!(agree, "{series} {name}: {theirs} us for {ours} us");
        }
    };
    agree(&format!("sum({series})"), &loaded["latency_us"]);
    let arms = loaded["arms"].as_array().unwrap();
    for (arm, count) in arms.iter().zip([500, 100]) {
        assert_eq!(arm["requests"], json!([[200, count]]));
        let label = format!("arm={}", arm["arm"]);
        agree(&format!("{series}{{{label}}}"), &arm["latency_us"]);
        for phase in ["queue", "decode", "run", "encode"] {
            let of =
                |by: &str| format!(r#"tidegate_phase_duration_seconds{{{by}phase="{phase}"}}"#);
            agree(&of(&format!("{label},")), &arm["phases_us"][phase]);
            agree(&format!("sum({})", of("")), &loaded["phases_us"][phase]);
        }
    }
    assert_eq!(arms.iter().map(|arm| &arm["arm"]).collect::<Vec<_>>(), ["baseline", "direct"]);
    let sum = prometheus.number(&format!("sum(histogram_sum({series}))")).unwrap();
    assert!(sum > 0.0 && sum < 20.0, "{sum} seconds");
    let phases = prometheus.number("sum(histogram_sum(tidegate_phase_duration_seconds))").unwrap();
    assert!((phases - sum).abs() < 1e-6, "the phases take {phases} of {sum} seconds");
    let page = server.admin("/metrics").ok().text();
    for edge in ["0.00075", "0.02"] {
        assert!(page.contains(&format!("le=\"{edge}\"")), "{edge} is not in {page}");
    }
}

#[test]
fn prometheus_stores_exemplars_of_traced_requests() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    // One of them reads OpenMetrics, the other one protobuf.
    for features in ["exemplar-storage", "exemplar-storage,native-histograms"] {
        let server = Server::over(&Repository::of(&["add_sub"]));
        let prometheus = Prometheus::scraping(server.admin, features);
        let ask = |sampled: &str, trace: &str| {
            let parent = format!("00-{trace}-00f067aa0ba902b7-{sampled}");
            let request = Request::post_json(&infer("add_sub"), &add_sub());
            server.ask(&request.header("traceparent", &parent)).ok();
        };
        ask("01", TRACE);
        // Nobody records this one.
        ask("00", &TRACE.replace("4b", "5b"));
        let query = "{__name__=~\"tidegate_request_duration_seconds.*\"}";
        let asked = [("query", query), ("start", "0"), ("end", "9999999999")];
        let found = eventually(&format!("exemplars with {features}"), || {
            let series = prometheus.ask("query_exemplars", &asked)?["data"].take();
            (!series.as_array()?.is_empty()).then_some(series)
        });
        let (series, exemplar) = (&found[0]["seriesLabels"], &found[0]["exemplars"][0]);
        assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
        assert_eq!((&series["model"], &series["arm"]), (&json!("add_sub"), &json!("baseline")));
        assert_eq!(exemplar["labels"], json!({"trace_id": TRACE}));
        let took: f64 = exemplar["value"].as_str().unwrap().parse().unwrap();
        assert!(took > 0.0 && took < 10.0, "{exemplar}");
        let is_native = series["__name__"] == "tidegate_request_duration_seconds";
        assert_eq!(is_native, features.contains("native"), "{series}");
    }
}
