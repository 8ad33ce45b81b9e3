//! Rules, alerts and dashboards as shipped, against a real Prometheus and the real server.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    clients::{assert_success, python},
    drift::{Dice, flowers, iris, quick, request_of},
    http::{Connection, Request},
    models::counted_loop,
    prometheus::Prometheus,
    receiver::Receiver,
    repository::{Repository, source},
    server::{Launch, PATIENCE, Server, eventually, free_address},
    tensors::{add_sub, infer},
};

/// A file or folder of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(project(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

/// The metrics of the server that a text speaks of, without the suffixes of histograms.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| {
        !character.is_ascii_alphanumeric() && character != '_' && character != ':'
    });
    // A colon is in names of recording rules only.
    let ours = words.filter(|word| word.starts_with("tidegate_") && !word.contains(':'));
    ours.map(|word| {
        let suffix =
            ["_bucket", "_count", "_sum"].into_iter().find_map(|end| word.strip_suffix(end));
        suffix.unwrap_or(word)
    })
    .collect()
}

/// Queries of a dashboard's panels, with what Grafana puts in for its variables.
fn queries(of: &Value, found: &mut Vec<String>) {
    match of {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(query) if name == "expr" => found.push(
                        query
                            .replace("$__rate_interval", "30s")
                            .replace("$__interval", "5s")
                            .replace("$instance", ".*")
                            .replace("$version", ".*")
                            .replace("$model", "add_sub"),
                    ),
                    value => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

/// Copies of the shipped rules, of the lines that a test wants, without their groups' interval of half a minute: a
/// first evaluation comes within it, and here within Prometheus' own, of a second.
fn hurried_rules(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let hurried = |path: PathBuf| {
        let rules = fs::read_to_string(&path).unwrap();
        let lines =
            rules.lines().filter(|line| !line.starts_with("    interval: ") && wanted(line));
        let copy = folder.join(path.file_name().unwrap());
        fs::write(&copy, lines.map(|line| line.to_owned() + "\n").collect::<String>()).unwrap();
        copy
    };
    files("deploy/prometheus/rules", "yml").into_iter().map(hurried).collect()
}

/// A program that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's Alertmanager, with the shipped configuration: only the receiver's address is another, and nothing waits.
fn alertmanager(folder: &Path, receiver: &Receiver) -> (Running, SocketAddr) {
    let shipped = fs::read_to_string(project("deploy/prometheus/alertmanager.yml")).unwrap();
    let configuration = shipped
        .replace("http://127.0.0.1:9099", &receiver.url(""))
        .replace("group_wait: 30s", "group_wait: 0s")
        .replace("group_wait: 5s", "group_wait: 0s");
    assert_ne!(configuration, shipped);
    let file = folder.join("alertmanager.yml");
    fs::write(&file, configuration).unwrap();
    let address = free_address();
    let child = Command::new("prometheus-alertmanager")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.path={}", folder.join("alertmanager").display()))
        .arg(format!("--web.listen-address={address}"))
        .args(["--cluster.listen-address=", "--log.level=warn"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("no Alertmanager ({error}): run scripts/prepare-tests.sh");
        });
    (Running(child), address)
}

/// Is set when dropped, so that the threads of a failed test end too.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn an_alert_about_errors_reaches_whoever_is_paged() {
    let repository = Repository::of(&["add_sub"]);
    repository.add_bytes("endless", "1", &counted_loop());
    let server = Server::over(&repository);
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let (_running, alertmanager) = alertmanager(folder.path(), &receiver);
    // How long an expression must hold, the rules' own tests check.
    let rules = hurried_rules(folder.path(), |line| !line.starts_with("        for: "));
    let prometheus = Prometheus::with_rules(server.admin, "", &rules, Some(alertmanager));
    let rounds = json!([1_u64 << 40]);
    let tensor = json!({"name": "rounds", "shape": [1], "datatype": "INT64", "data": rounds});
    let late = Request::post_json(&infer("endless"), &json!({"inputs": [tensor]}))
        .header("x-request-timeout-ms", "5");
    let page = eventually("somebody is paged", || {
        let failed = server.ask(&late);
        assert_eq!(failed.status, 504, "{failed:?}");
        server.post(&infer("add_sub"), &add_sub()).ok();
        let deliveries = receiver.taken();
        let pages = deliveries.iter().filter(|delivery| delivery.path == "/page");
        let mut alerts = pages.flat_map(|page| page.event()["alerts"].as_array().cloned().unwrap());
        alerts.find(|alert| alert["labels"]["alertname"] == "TidegateErrorsFast")
    });
    assert_eq!(page["status"], "firing");
    assert_eq!(page["labels"]["model"], "endless");
    assert_eq!(page["labels"]["severity"], "page");
    let summary = page["annotations"]["summary"].as_str().unwrap();
    assert_eq!(summary, "Model endless fails 100% of its requests");
    let runbook = page["annotations"]["runbook_url"].as_str().unwrap();
    assert!(runbook.ends_with("/docs/runbooks/TidegateErrorsFast.md"), "{runbook}");
    // The model that answers is nobody's worry.
    let raised = prometheus.query(r#"ALERTS{model="add_sub"}"#).unwrap();
    assert_eq!(raised, []);
}

#[test]
fn autoscalers_follow_the_load() {
    let objects = ["deployment", "service", "disruption", "autoscaler", "keda"]
        .map(|name| project(&format!("deploy/kubernetes/{name}.yaml")));
    let output = Command::new(python())
        .arg(project("tests/clients/kubernetes.py"))
        .arg(project("tests/fixtures/keda/scaledobject.schema.json"))
        .args(&objects)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert_success("kubernetes.py", &output);
    let objects: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |kind: &str| {
        objects.as_array().unwrap().iter().find(|object| object["kind"] == kind).unwrap()
    };
    let trigger = &of("ScaledObject")["spec"]["triggers"][0]["metadata"];
    let threshold: f64 = trigger["threshold"].as_str().unwrap().parse().unwrap();
    assert!((threshold - 0.6).abs() < 1e-9, "{trigger}");
    let metric = &of("HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"];
    assert_eq!(metric["target"]["averageValue"], "600m");
    let adapter = fs::read_to_string(project("deploy/kubernetes/adapter.yaml")).unwrap();
    assert!(adapter.contains(metric["metric"]["name"].as_str().unwrap()));
    let custom = adapter.lines().find_map(|line| line.trim().strip_prefix("metricsQuery: '"));
    let custom = custom
        .and_then(|query| query.strip_suffix('\''))
        .unwrap()
        .replace("<<.GroupBy>>", "instance")
        .replace("<<.LabelMatchers>>", r#"job="tidegate""#);
    // What the autoscalers ask, over the last seconds instead of a minute.
    let queries = [trigger["query"].as_str().unwrap(), &custom].map(|query| {
        assert!(query.contains("[1m]"), "{query}");
        query.replace("[1m]", "[3s]")
    });

    let repository = Repository::empty();
    repository.add_bytes("loop", "1", &counted_loop());
    let server = Launch::of(&repository).set("SERVER__WORKERS", "1").start();
    let prometheus = Prometheus::scraping(server.admin, "");
    let wanted = || queries.iter().map(|query| prometheus.number(query).unwrap());
    eventually("a calm server needs no replicas", || {
        wanted().all(|number| number < 0.3).then_some(())
    });
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // Each client asks again once it is answered, so that two always keep the one worker busy.
        for _ in 0..2 {
            scope.spawn(|| {
                let tensor =
                    json!({"name": "rounds", "shape": [1], "datatype": "INT64", "data": [20_000]});
                let request = Request::post_json(&infer("loop"), &json!({"inputs": [tensor]}));
                let mut client = server.connect();
                while !ended.load(Relaxed) {
                    client.ask(&request).ok();
                }
            });
        }
        let _end = Ended(&ended);
        eventually("a full server needs replicas", || {
            wanted().all(|number| number > 0.8).then_some(())
        });
    });
    eventually("then no more", || wanted().all(|number| number < threshold).then_some(()));
}

/// A rollout whose candidate is first a shadow and then gets a share, for longer than the test lasts.
fn long_policy() -> Value {
    json!({
        "shadow": {"requests": 50},
        "steps": [{"weight": 0.3, "min_duration": "1h", "min_requests": 20}],
        "warmup_requests": 5,
    })
}

/// Asks for predictions of flowers, and says later what they were, until the flag is set.
fn load(server: &Server, ended: &AtomicBool) {
    let (mut client, mut dice) = (server.connect(), Dice(7));
    while !ended.load(Relaxed) {
        let flowers = request_of(&flowers(&mut dice, 10, 0.0));
        let answer = client.ask(&Request::post_json(&infer("iris"), &flowers)).ok();
        let id = answer.header("x-tidegate-prediction-id").unwrap();
        let outcome = json!({"prediction_id": id, "row": 0, "label": dice.below(3)});
        let outcomes = json!({ "outcomes": [outcome] });
        client.ask(&Request::post_json("/v2/models/iris/feedback", &outcomes)).ok();
    }
}

#[test]
fn each_panel_shows_data_of_a_rollout_under_load() {
    let repository = iris();
    repository.add_as("iris", "2", &source("iris", "1"));
    repository.describe("iris", "model.toml", "versions = [1, 2]\n");
    let server = quick(&repository).remembering().start();
    server.wait_for_state("iris", "2", "READY");
    let mut admin = Connection::open(server.admin);
    let back = Request::post_json("/api/v1/models/iris/rollback", &json!({"version": 1}));
    admin.ask(&back).ok();
    let prometheus = Prometheus::scraping(server.admin, "");
    let start = json!({"model": "iris", "candidate": 2, "policy": long_policy()});
    let started = admin.ask(&Request::post_json("/api/v1/rollouts", &start));
    assert_eq!(started.status, 201, "{}", started.text());
    // Where people look at them: beside what else the tests leave.
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboards");
    fs::create_dir_all(&pictures).unwrap();
    let draw = || {
        let output = Command::new(python())
            .arg(project("tests/clients/picture.py"))
            .arg(prometheus.url())
            .args(["60".as_ref(), pictures.as_os_str(), "iris".as_ref()])
            .args(files("deploy/grafana/dashboards", "json"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .unwrap();
        assert_success("picture.py", &output);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| load(&server, &ended));
        let _end = Ended(&ended);
        let deadline = Instant::now() + PATIENCE / 2;
        let without = eventually("each panel shows data", || {
            let without = draw();
            (without == json!({}) || Instant::now() > deadline).then_some(without)
        });
        assert_eq!(without, json!({}), "no data");
    });
}

#[test]
fn dashboards_are_of_grafanas_types() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("node")
        .arg(project("tests/clients/dashboards.mjs"))
        .arg(python().ancestors().nth(2).unwrap().join("npm/node_modules"))
        .arg(folder.path())
        .args(files("deploy/grafana/dashboards", "json"))
        .output()
        .unwrap_or_else(|error| panic!("no Node.js ({error}): run scripts/prepare-tests.sh"));
    assert_success("dashboards.mjs", &output);
}

#[test]
fn rules_are_valid_and_fire_where_they_should() {
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        let told = command.args(arguments).current_dir(project("deploy/prometheus")).output();
        assert_success("promtool", &told.unwrap());
    };
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "tests/alerts.yml"]);
    let mut command = Command::new("amtool");
    command.arg("check-config").arg(project("deploy/prometheus/alertmanager.yml"));
    assert_success("amtool", &command.output().unwrap());
}

#[test]
fn each_alert_has_a_runbook_and_each_runbook_an_alert() {
    let rules = fs::read_to_string(project("deploy/prometheus/rules/alerts.yml")).unwrap();
    let alerts: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let runbooks = files("docs/runbooks", "md");
    let pages: BTreeSet<_> =
        runbooks.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    let pages: BTreeSet<_> = pages.into_iter().filter(|page| *page != "README").collect();
    assert_eq!(alerts, pages);
    for alert in alerts {
        assert!(rules.contains(&format!("/docs/runbooks/{alert}.md")), "{alert} names its page");
    }
}

#[test]
fn rules_and_dashboards_name_documented_metrics() {
    let documented = fs::read_to_string(project("docs/metrics.md")).unwrap();
    let mut shipped = files("deploy/prometheus/rules", "yml");
    shipped.extend(files("deploy/grafana/dashboards", "json"));
    shipped.extend(files("deploy/kubernetes", "yaml"));
    for path in shipped {
        let text = fs::read_to_string(&path).unwrap();
        for metric in metrics_in(&text) {
            assert!(documented.contains(metric), "{}: {metric}", path.display());
        }
    }
}

#[test]
fn prometheus_evaluates_every_rule_and_every_query_of_the_dashboards() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let folder = tempfile::tempdir().unwrap();
    let prometheus =
        Prometheus::with_rules(server.admin, "", &hurried_rules(folder.path(), |_| true), None);
    let panels: Vec<_> = files("deploy/grafana/dashboards", "json")
        .into_iter()
        .flat_map(|path| {
            let dashboard = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let mut found = Vec::new();
            queries(&dashboard, &mut found);
            assert!(!found.is_empty(), "{}", path.display());
            found
        })
        .collect();
    for query in &panels {
        assert!(prometheus.query(query).is_some(), "not a query: {query}");
    }
    let of_requests: Vec<_> =
        panels.iter().filter(|query| query.contains("tidegate_requests_total")).collect();
    assert!(!of_requests.is_empty());
    eventually("panels of requests show them", || {
        server.post(&infer("add_sub"), &add_sub()).ok();
        let shown = |query: &&&String| !prometheus.query(query).unwrap_or_default().is_empty();
        of_requests.iter().all(|query| shown(&query)).then_some(())
    });
    eventually("all rules are evaluated well", || {
        let answer = prometheus.get("rules")?;
        let groups = answer["data"]["groups"].as_array()?;
        let rules: Vec<_> = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().into_iter().flatten())
            .collect();
        let troubled = rules.iter().find(|rule| rule["health"] == "err");
        assert!(troubled.is_none(), "{troubled:?}");
        (rules.len() > 20 && rules.iter().all(|rule| rule["health"] == "ok")).then_some(())
    });
    // A calm server raises nothing that wakes somebody.
    let raised = prometheus.query(r#"ALERTS{alertstate="firing"}"#).unwrap();
    assert_eq!(raised, []);
}
