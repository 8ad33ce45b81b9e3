//! Live features against a reference: what drifted is found and named, what did not is left alone, and nobody is
//! unwatched without being told.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    receiver::Receiver,
    repository::{Repository, source},
    server::{Launch, PATIENCE, Server, eventually},
    tensors::infer,
};

/// Numbers below `bound`, the same in every run (Lehmer's generator).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0 * 48_271 % 0x7fff_ffff;
        usize::try_from(self.0).unwrap() % bound
    }
}

/// The folder of a sample model's first version.
fn sample_profile(model: &str) -> String {
    let file = source(model, "1").with_file_name("profile.json");
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// `iris` with its profile, which has the lengths of the flowers that it was trained on.
pub(crate) fn iris() -> Repository {
    let repository = Repository::of(&["iris"]);
    repository.describe("iris", "1/profile.json", &sample_profile("iris"));
    repository
}

/// A server whose alarms come soon.
pub(crate) fn quick(repository: &Repository) -> Launch {
    Launch::of(repository)
        .set("DRIFT__FALSE_ALARM_EVERY", "1h")
        .set("DRIFT__LEARN_ROWS", "500")
        .set("DRIFT__COOLDOWN", "1s")
}

/// Rows of flowers: each length drawn from the profile's sample, the second one longer by `longer`.
pub(crate) fn flowers(dice: &mut Dice, rows: usize, longer: f64) -> Vec<f64> {
    let profile: Value = serde_json::from_str(&sample_profile("iris")).unwrap();
    let samples: Vec<Vec<f64>> = profile["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| serde_json::from_value(feature["sample"].clone()).unwrap())
        .collect();
    let mut data = Vec::new();
    for _ in 0..rows {
        for (feature, sample) in samples.iter().enumerate() {
            let more = if feature == 1 { longer } else { 0.0 };
            data.push(sample[dice.below(sample.len())] + more);
        }
    }
    data
}

/// The request for these rows of flowers.
pub(crate) fn request_of(data: &[f64]) -> Value {
    json!({
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [data.len() / 4, 4], "data": data}]
    })
}

fn send(connection: &mut Connection, data: &[f64]) -> Response {
    connection.ask(&Request::post_json(&infer("iris"), &request_of(data)))
}

fn report(server: &Server, model: &str) -> Value {
    server.admin(&format!("/api/v1/models/{model}/drift")).ok().json()
}

fn feature<'r>(report: &'r Value, name: &str) -> &'r Value {
    let features = report["features"].as_array().unwrap();
    let own = features.iter().find(|feature| feature["name"] == name);
    own.unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn pages(report: &Value) -> Vec<(String, String)> {
    let alarms = report["alarms"].as_array().unwrap().iter();
    let page = alarms.filter(|alarm| alarm["tier"] == "page");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    page.map(|alarm| (text(&alarm["feature"]), text(&alarm["kind"]))).collect()
}

#[test]
fn a_feature_that_moves_is_found_and_named_and_nothing_is_before() {
    let server = quick(&iris()).start();
    let (mut connection, mut dice) = (server.connect(), Dice(42));
    let before = report(&server, "iris");
    assert_eq!(before["reference"]["kind"], "profile", "{before}");
    assert_eq!(before["reference"]["rows"], 105);
    for _ in 0..40 {
        assert_eq!(send(&mut connection, &flowers(&mut dice, 100, 0.0)).status, 200);
    }
    let calm = report(&server, "iris");
    assert_eq!((&calm["status"], pages(&calm)), (&json!("watching"), vec![]), "{calm}");
    assert_eq!(calm["rows"], 4000);
    let width = feature(&calm, "sepal_width");
    assert_eq!((&width["rows"], &width["source"]), (&json!(4000), &json!("input")));
    assert!(width["psi"].as_f64().unwrap() < 0.25, "{width}");
    let alarmed = eventually("the alarm", || {
        send(&mut connection, &flowers(&mut dice, 100, 0.6));
        let report = report(&server, "iris");
        (report["status"] == "drifting").then_some(report)
    });
    assert!(pages(&alarmed).contains(&("sepal_width".into(), "up".into())), "{alarmed}");
    assert!(!pages(&alarmed).iter().any(|(name, _)| name.starts_with("petal")), "{alarmed}");
    assert_eq!(feature(&alarmed, "sepal_width")["status"], "drifting");

    let heard = Connection::open(server.admin)
        .listen(&Request::new("GET", "/api/v1/events"), |said| said.contains("drift.detected"));
    assert!(heard.contains("sepal_width"), "{heard}");
    let page = server.admin("/metrics").ok().text();
    for line in [
        "tidegate_drift_alarm{model=\"iris\",version=\"1\"} 1",
        // An output may have moved with it.
        "tidegate_drift_alarms_total{model=\"iris\",kind=\"up\"} ",
        "tidegate_feature_psi{model=\"iris\",version=\"1\",feature=\"sepal_width\"}",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
}

#[test]
fn alarms_and_windows_outlive_the_process() {
    let repository = iris();
    let mut server = quick(&repository).remembering().start();
    let (mut connection, mut dice) = (server.connect(), Dice(11));
    let alarmed = eventually("the alarm", || {
        send(&mut connection, &flowers(&mut dice, 100, 0.8));
        let report = report(&server, "iris");
        (report["status"] == "drifting").then_some(report)
    });
    drop(connection);
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
    let server = quick(&repository).remembering().start();
    let after = report(&server, "iris");
    assert_eq!(
        (&after["status"], &after["alarms"]),
        (&json!("drifting"), &alarmed["alarms"]),
        "{after}"
    );
    assert_eq!(after["rows"], alarmed["rows"]);
    let current = |report: &Value| feature(report, "sepal_width")["current"].clone();
    assert_eq!(current(&after), current(&alarmed));
}

#[test]
fn drift_that_stands_asks_for_training_once_though_the_process_is_killed() {
    let (repository, receiver) = (iris(), Receiver::start());
    let webhook =
        json!([{ "name": "ops", "url": receiver.url("/"), "events": ["drift", "retrain"] }]);
    let launch = || {
        quick(&repository)
            .remembering()
            .set("NOTIFY__WEBHOOK", &webhook.to_string())
            .set("NOTIFY__PRIVATE_ADDRESSES", "127.0.0.1")
            // What was told is not told again, however long ago it was.
            .set("NOTIFY__COOLDOWN", "0s")
            .set("MODELS__iris__RETRAIN", r#"{"windows": 2, "window": "2s", "min_psi": 0.01}"#)
            .start()
    };
    // Once its delivery is written down, as it comes again otherwise.
    let kill_after = |kind: &str, server: Server| {
        let line = format!("total{{kind=\"{kind}\",outcome=\"delivered\"}} 1");
        eventually(&line, || server.admin("/metrics").ok().text().contains(&line).then_some(()));
        server.signal(Signal::KILL);
        assert_eq!(server.ended_by(PATIENCE), 9);
    };
    let server = launch();
    let (mut connection, mut dice) = (server.connect(), Dice(11));
    eventually("the alarm", || {
        send(&mut connection, &flowers(&mut dice, 100, 0.8));
        (report(&server, "iris")["status"] == "drifting").then_some(())
    });
    let detected = receiver.wait_for(1)[0].event();
    drop(connection);
    kill_after("drift.detected", server);

    let server = launch();
    let asked = receiver.wait_for(2)[1].event();
    assert_eq!(asked["type"], "tidegate.retrain.requested", "{asked:#}");
    let evidence = &asked["data"]["retrain"];
    assert_eq!(evidence["window_start"], detected["data"]["drift"]["raised_at"], "{asked:#}");
    kill_after("retrain.requested", server);

    let server = launch();
    let again = Connection::open(server.admin)
        .listen(&Request::get("/api/v1/events"), |said| said.contains("drift still stands"));
    assert!(again.contains("drift still stands: sepal_width"), "{again}");
    let by_hand = json!({ "actor": "ana", "reason": "new labels" });
    assert_eq!(
        Connection::open(server.admin)
            .ask(&Request::post_json("/api/v1/models/iris/retrain", &by_hand))
            .status,
        202
    );
    let types: Vec<Value> =
        receiver.wait_for(3).iter().map(|delivery| delivery.event()["type"].clone()).collect();
    let retrain = "tidegate.retrain.requested";
    assert_eq!(types, ["tidegate.drift.detected", retrain, retrain]);
    assert_eq!(receiver.taken()[2].event()["data"]["retrain"]["by"], "ana");
}

#[test]
fn a_batch_test_on_demand_has_the_usual_shape() {
    let server = quick(&iris()).start();
    let (mut connection, mut dice) = (server.connect(), Dice(7));
    let test = |body: &Value| {
        let path = "/api/v1/models/iris/drift/test";
        Connection::open(server.admin).ask(&Request::post_json(path, body))
    };
    let empty = test(&json!({})).ok().json();
    assert_eq!(empty["features"], json!([]), "{empty}");
    assert_eq!(empty["skipped"].as_array().unwrap().len(), 4);
    eventually("sampled rows", || {
        send(&mut connection, &flowers(&mut dice, 50, 1.0));
        let tested = test(&json!({})).ok().json();
        (tested["rows"].as_u64() >= Some(200)).then_some(())
    });
    let tested = test(&json!({"p_value": 0.04})).ok().json();
    assert_eq!(tested["features"].as_array().unwrap().len(), 4);
    assert_eq!(
        (&tested["data"]["is_drift"], &tested["data"]["threshold"]),
        (&json!(1), &json!(0.01))
    );
    assert!(tested["data"]["p_val"][1].as_f64().unwrap() < 1e-6, "{tested}");
    assert!(tested["data"]["distance"][1].as_f64().unwrap() > 0.5, "{tested}");
    let each = test(&json!({"drift_type": "feature", "correction": "fdr"})).ok().json();
    assert_eq!(each["data"]["is_drift"][1], 1, "{each}");
    assert_eq!(each["data"]["threshold"], 0.05);
    let wrong = test(&json!({"pvalue": 0.1, "correction": "none", "window": "2 weeks"}));
    assert_eq!(wrong.status, 400);
    for word in ["did you mean `p_value`", "bonferroni or fdr", "`window`"] {
        assert!(wrong.text().contains(word), "{}", wrong.text());
    }
}

#[test]
fn without_a_profile_the_first_rows_teach_and_a_restart_remembers() {
    let repository = Repository::of(&["iris"]);
    let server = quick(&repository).remembering().start();
    let (mut connection, mut dice) = (server.connect(), Dice(3));
    send(&mut connection, &flowers(&mut dice, 10, 0.0));
    let learning = eventually("rows to learn from", || {
        let report = report(&server, "iris");
        (report["reference"]["progress"].as_f64() > Some(0.0)).then_some(report)
    });
    assert_eq!(learning["status"], "learning", "{learning}");
    let detail = learning["detail"].as_str().unwrap();
    assert!(detail.contains("10 of 500") && detail.contains("profile.json"), "{detail}");
    let learned = eventually("a reference", || {
        send(&mut connection, &flowers(&mut dice, 100, 0.0));
        let report = report(&server, "iris");
        (report["status"] == "watching").then_some(report)
    });
    assert_eq!(learned["reference"]["kind"], "learned");
    assert_eq!(feature(&learned, "output:label")["type"], "categorical", "{learned}");
    // Another version with the same inputs need not learn them.
    repository.add_bytes("iris", "2", &fs::read(source("iris", "1")).unwrap());
    server.wait_for_state("iris", "2", "READY");
    let inherited = server.admin("/api/v1/models/iris/drift?version=2").ok().json();
    assert_eq!(inherited["reference"]["kind"], "inherited", "{inherited}");
    assert_eq!(inherited["status"], "watching");
    drop(server);
    repository.remove("iris", "2");
    let server = quick(&repository).remembering().start();
    let again = report(&server, "iris");
    assert_eq!(again["reference"]["kind"], "learned", "{again}");
    assert_eq!(again["reference"]["digest"], learned["reference"]["digest"]);
    assert_eq!(
        feature(&again, "input[0]")["reference"],
        feature(&learned, "input[0]")["reference"]
    );
}

#[test]
fn a_profile_that_does_not_fit_is_said_and_costs_no_prediction() {
    for (content, said) in [
        ("{\"schema\": 1", "it is not a profile"),
        (&sample_profile("breast_cancer"), "takes 4 values a row"),
    ] {
        let repository = Repository::of(&["iris"]);
        repository.describe("iris", "1/profile.json", content);
        let server = quick(&repository).start();
        let mut connection = server.connect();
        assert_eq!(send(&mut connection, &[5.1, 3.5, 1.4, 0.2]).status, 200);
        let report = report(&server, "iris");
        assert_eq!(
            (&report["status"], &report["reference"]["kind"]),
            (&json!("learning"), &json!("none"))
        );
        let detail = report["detail"].as_str().unwrap();
        assert!(detail.contains("profile.json is not used") && detail.contains(said), "{detail}");
        let models = server.admin("/api/v1/models").ok().text();
        assert!(models.contains("profile.json is not used"), "{models}");
    }
}

#[test]
fn texts_are_watched_by_their_length_and_their_words() {
    let repository = Repository::of(&["sentiment"]);
    repository.describe("sentiment", "1/profile.json", &sample_profile("sentiment"));
    let server = quick(&repository).start();
    let mut connection = server.connect();
    let alarmed = eventually("the alarm", || {
        let texts = vec!["zxqv wrtp bnmq kjhg ffgh"; 50];
        let body = json!({
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [50, 1], "data": texts}]
        });
        connection.ask(&Request::post_json(&infer("sentiment"), &body)).ok();
        let report = report(&server, "sentiment");
        (report["status"] == "drifting").then_some(report)
    });
    assert_eq!(feature(&alarmed, "text.known")["type"], "text", "{alarmed}");
    assert!(pages(&alarmed).iter().any(|(name, _)| name == "text.known"), "{alarmed}");
}

#[test]
fn drift_may_be_off_for_a_model_and_unknown_ones_are_not_found() {
    let launch = quick(&iris()).set("MODELS__iris__DRIFT", r#"{"enabled": false}"#);
    let server = launch.start();
    let off = report(&server, "iris");
    assert_eq!((&off["status"], &off["features"]), (&json!("off"), &json!([])), "{off}");
    let path = "/api/v1/models/iris/drift";
    assert_eq!(server.admin("/api/v1/models/no/drift").status, 404);
    assert_eq!(server.admin(&format!("{path}?version=9x")).status, 404);
    assert_eq!(server.admin(&format!("{path}?version=7")).status, 404);
    assert_eq!(server.admin(&format!("{path}?window=2d")).status, 400);
    assert_eq!(server.admin(&format!("{path}?windows=1h")).status, 400);
}

#[test]
fn a_contract_counts_flags_and_refuses_and_may_be_tried() {
    let contract = json!({"owner": "the garden", "action": "refuse", "features": {
        "sepal_width": {"max": 5.0, "missing_max": 0},
        "petal_length": {"min": 0.5, "action": "flag"},
        "petal_width": {"max": 1.0, "action": "count"},
    }});
    let launch = quick(&iris()).set("MODELS__iris__CONTRACT", &contract.to_string());
    let server = launch.start();
    let mut connection = server.connect();
    let fine = send(&mut connection, &[5.1, 3.5, 1.4, 0.2]).ok().json();
    assert_eq!(fine["parameters"].get("contract"), None, "{fine}");
    let flagged = send(&mut connection, &[5.1, 3.5, 0.25, 2.0]).ok().json();
    let flag = flagged["parameters"]["contract"].as_str().unwrap();
    assert_eq!(flag, "row 0: `petal_length` is 0.25, below min = 0.5");
    let refused = send(&mut connection, &[5.1, 3.5, 1.4, 0.2, 5.1, 7.5, 1.4, 0.2]);
    assert_eq!(refused.status, 400);
    let text = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(text.contains("row 1: `sepal_width` is 7.5, above max = 5"), "{text}");
    assert!(text.contains("ask the garden"), "{text}");
    assert_eq!(send(&mut connection, &[5.1, 3.5, 1.4, 0.2]).status, 200);
    let report = eventually("the rules' counts", || {
        let report = report(&server, "iris");
        (report["contract"][1]["values"] == 5).then_some(report)
    });
    assert_eq!(report["contract"][0]["broken"], json!({"max": 1}), "{report}");
    assert_eq!(report["contract"][2]["broken"], json!({"max": 1}));
    let heard = Connection::open(server.admin)
        .listen(&Request::new("GET", "/api/v1/events"), |said| said.contains("quality.violated"));
    assert!(heard.contains("sepal_width (max, 1 of"), "{heard}");
    let line = "tidegate_contract_breaches_total{model=\"iris\",version=\"1\",feature=\"sepal_width\",rule=\"max\",\
                action=\"refuse\"} 1";
    assert!(server.admin("/metrics").ok().text().contains(line));

    let mut trial = contract;
    trial["dry_run"] = json!(true);
    let server = quick(&iris()).set("MODELS__iris__CONTRACT", &trial.to_string()).start();
    let answer = send(&mut server.connect(), &[5.1, 7.5, 0.25, 0.2]).ok().json();
    assert_eq!(answer["parameters"].get("contract"), None, "{answer}");
}
