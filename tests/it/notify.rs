//! Events sent to webhooks: signed, in order, at least once, and never where they must not go.
//!
//! Most events here are an operator's requests to train a model anew: each is answered once it is queued.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tidegate::{
    model::{ModelName, VersionId},
    monitor::EventKind,
    notify::{self, Notifier, RetrainSettings, Webhook},
    registry::Registry,
};

use crate::{
    choices::Choices,
    cli::tidegate,
    clients::python,
    http::{Connection, Request, Response},
    panics::Plane,
    receiver::{OK, Receiver, Reply},
    repository::Repository,
    server::{Launch, PATIENCE, Server, eventually, free_address},
};

const SECRET: &str = "correct horse battery staple";

/// A server whose webhooks may go to this machine, and do not wait long.
fn launch(repository: &Repository, webhooks: &Value) -> Launch {
    Launch::of(repository)
        .set("PROOF__ENABLED", "false")
        .set("NOTIFY__WEBHOOK", &webhooks.to_string())
        .set("NOTIFY__PRIVATE_ADDRESSES", "127.0.0.1")
        .set("NOTIFY__BACKOFF", "20ms")
        .set("NOTIFY__BACKOFF_MAX", "100ms")
}

fn hook(name: &str, url: &str) -> Value {
    json!({ "name": name, "url": url, "events": ["retrain"] })
}

/// Asks for a model to be trained anew; gives the id of the request.
fn retrain(server: &Server, reason: &str) -> String {
    let body = json!({ "actor": "ana", "reason": reason });
    let answer = post(server, "/api/v1/models/add_sub/retrain", &body);
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn post(server: &Server, path: &str, body: &Value) -> Response {
    Connection::open(server.admin).ask(&Request::post_json(path, body))
}

fn report(server: &Server) -> Value {
    server.admin("/api/v1/notifications").ok().json()
}

fn reasons(receiver: &Receiver) -> Vec<String> {
    let reason = |event: Value| event["data"]["retrain"]["reason"].as_str().unwrap().to_owned();
    receiver.taken().iter().map(|delivery| reason(delivery.event())).collect()
}

/// Waits until a count of `/metrics` is reached.
fn wait_for_count(server: &Server, line: &str) {
    eventually(line, || server.admin("/metrics").ok().text().contains(line).then_some(()));
}

#[test]
fn a_delivery_is_a_signed_cloud_event_that_the_manual_verifies() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::start();
    fs::write(repository.beside("secret"), format!("{SECRET}\n")).unwrap();
    let mut webhook = hook("ops", &receiver.url("/hook?channel=7"));
    webhook["secret_file"] = repository.beside("secret").to_str().unwrap().into();
    webhook["headers"] = json!({ "Authorization": { "env": "TIDEGATE__LOGS__LEVEL" } });
    let server = launch(&repository, &json!([webhook])).set("LOGS__LEVEL", "debug").start();
    let id = retrain(&server, "labels of March");

    let delivery = receiver.wait_for(1).remove(0);
    assert_eq!(delivery.path, "/hook?channel=7");
    let kind = delivery.header("content-type").unwrap();
    assert_eq!(kind, "application/cloudevents+json; charset=utf-8");
    assert_eq!(delivery.header("authorization"), Some("debug"));
    assert_eq!(delivery.header("host"), Some(&*receiver.address.to_string()));
    let event = delivery.event();
    assert_eq!(delivery.header("ce-id"), event["id"].as_str());
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "tidegate.retrain.requested");
    assert_eq!(event["subject"], "add_sub");
    assert_eq!(event["data"]["event"], "retrain.requested");
    let asked = &event["data"]["retrain"];
    assert_eq!(asked["id"], id);
    assert_eq!((&asked["by"], &asked["reason"]), (&json!("ana"), &json!("labels of March")));
    assert_eq!(asked["version"], "1");
    assert_eq!(asked["digest"].as_str().unwrap().len(), 64);

    let signature = delivery.header("x-tidegate-signature").unwrap();
    for (body, secret, expected) in [
        (delivery.body.clone(), SECRET, "right"),
        (delivery.body.clone() + " ", SECRET, "wrong"),
        (delivery.body.clone(), "another secret, as long", "wrong"),
    ] {
        assert_eq!(verified(signature, &body, secret), expected);
    }
    let old = signature.replacen("t=1", "t=0", 1);
    assert_eq!(verified(&old, &delivery.body, SECRET), "wrong");
    // The stream has the same.
    let stream = Connection::open(server.admin)
        .listen(&Request::get("/api/v1/events"), |said| said.contains("retrain.requested"));
    assert!(stream.contains(&format!("\"id\":\"{id}\"")), "{stream}");
}

/// Runs the verifier that the manual shows.
fn verified(signature: &str, body: &str, secret: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/alerts.md");
    let page = fs::read_to_string(page).unwrap();
    let code = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let call = "import sys\nis_right = verify(sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode())\nprint('right' if is_right else 'wrong')\n";
    let output = Command::new(python())
        .args(["-c", &format!("{code}\n{call}"), signature, body, secret])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_was_queued_is_delivered_in_order_after_a_kill() {
    let repository = Repository::of(&["add_sub"]);
    let address = free_address();
    let webhooks = json!([hook("ops", &format!("http://{address}/"))]);
    let launch = || launch(&repository, &webhooks).remembering();
    let server = launch().start();
    for reason in ["1", "2", "3"] {
        retrain(&server, reason);
    }
    server.signal(Signal::KILL);
    server.ended_by(PATIENCE);

    let server = launch().start();
    retrain(&server, "4");
    assert_eq!(report(&server)["webhooks"][0]["waiting"], 4);
    let receiver = Receiver::at(address, |_, _| OK);
    receiver.wait_for(4);
    assert_eq!(reasons(&receiver), ["1", "2", "3", "4"]);
    wait_for_count(
        &server,
        "tidegate_notifications_total{kind=\"retrain.requested\",outcome=\"delivered\"} 4",
    );
    assert!(server.admin("/metrics").ok().text().contains("tidegate_notifications_waiting 0"));
    let mut server = server;
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);

    // Nothing is delivered twice once that is on record.
    let server = launch().start();
    retrain(&server, "5");
    receiver.wait_for(5);
    assert_eq!(reasons(&receiver), ["1", "2", "3", "4", "5"]);
    let folder = repository.beside("state");
    let audit = tidegate(&["audit", "list", "--json", "--state", folder.to_str().unwrap()], "");
    let records: Value = serde_json::from_slice(&audit.stdout).unwrap();
    let of = |kind: &str| {
        records.as_array().unwrap().iter().filter(|record| record["kind"] == kind).count()
    };
    assert_eq!((of("notification.queued"), of("retrain.requested")), (5, 5));
}

#[test]
fn a_failing_receiver_is_given_rests_and_then_gets_everything_under_the_same_ids() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::answering(|n, _| if n < 7 { Reply::Status(500, &[]) } else { OK });
    let healthy = Receiver::start();
    let webhooks = json!([hook("ops", &receiver.url("/")), hook("other", &healthy.url("/"))]);
    let server = launch(&repository, &webhooks).start();
    retrain(&server, "1");
    retrain(&server, "2");
    healthy.wait_for(2);
    let deliveries = receiver.wait_for(9);
    let ids: Vec<_> = deliveries.iter().map(crate::receiver::Delivery::id).collect();
    assert!(ids[..8].iter().all(|id| *id == ids[0]) && ids[8] != ids[0], "{ids:?}");
    let attempt = |n: usize| deliveries[n].header("x-tidegate-attempt").unwrap().to_owned();
    assert_eq!((attempt(0), attempt(7), attempt(8)), ("1".into(), "8".into(), "1".into()));
    // Pauses double from 20 ms to 100 ms; of each, at least half is kept.
    let pause = |n: usize| deliveries[n].at - deliveries[n - 1].at;
    for (n, least) in [(1, 10), (2, 20), (3, 40), (4, 50), (5, 50), (6, 50), (7, 50)] {
        assert!(pause(n) >= Duration::from_millis(least), "{n}: {:?}", pause(n));
    }
    server.wait_until_said("is given a rest");
    eventually("the circuit closes", || {
        (report(&server)["webhooks"][0]["circuit"] == "closed").then_some(())
    });
}

#[test]
fn retry_after_is_kept_to() {
    let repository = Repository::of(&["add_sub"]);
    let receiver =
        Receiver::answering(
            |n, _| {
                if n == 0 { Reply::Status(429, &[("retry-after", "1")]) } else { OK }
            },
        );
    let server = launch(&repository, &json!([hook("ops", &receiver.url("/"))])).start();
    retrain(&server, "1");
    let deliveries = receiver.wait_for(2);
    let pause = deliveries[1].at - deliveries[0].at;
    assert!(pause >= Duration::from_millis(990), "{pause:?}");
}

#[test]
fn a_silent_receiver_is_left_and_asked_again() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::answering(|n, _| if n == 0 { Reply::Silence(PATIENCE) } else { OK });
    let mut webhook = hook("ops", &receiver.url("/"));
    webhook["timeout"] = "200ms".into();
    let server = launch(&repository, &json!([webhook])).start();
    retrain(&server, "1");
    let deliveries = receiver.wait_for(2);
    assert_eq!(deliveries[0].id(), deliveries[1].id());
    server.wait_until_said("no answer within 200 ms");
}

#[test]
fn redirects_are_not_followed() {
    let repository = Repository::of(&["add_sub"]);
    let elsewhere = Receiver::start();
    let to = elsewhere.url("/");
    let receiver =
        Receiver::answering(move |n, _| if n < 2 { Reply::Redirect(to.clone()) } else { OK });
    let server = launch(&repository, &json!([hook("ops", &receiver.url("/"))])).start();
    retrain(&server, "1");
    receiver.wait_for(3);
    server.wait_until_said("redirects are not followed");
    assert_eq!(elsewhere.taken().len(), 0);
}

#[test]
fn addresses_of_this_machine_are_refused_unless_listed() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::start();
    let port = receiver.address.port();
    let hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"];
    let name = |n: usize| format!("hook-{n}");
    let hooks: Vec<Value> = hosts
        .iter()
        .enumerate()
        .map(|(n, host)| hook(&name(n), &format!("http://{host}:{port}/")))
        .collect();
    let server = launch(&repository, &hooks.into()).set("NOTIFY__PRIVATE_ADDRESSES", "").start();
    let results = post(&server, "/api/v1/notifications/test", &json!({})).ok().json();
    for result in results["results"].as_array().unwrap() {
        let detail = result["detail"].as_str().unwrap();
        assert_eq!(result["delivered"], false);
        assert!(detail.contains("list it in notify.private_addresses"), "{detail}");
    }
    assert_eq!(results["results"].as_array().unwrap().len(), hosts.len());
    assert_eq!(receiver.taken().len(), 0);

    let webhooks = json!([hook("a", &receiver.url("/")), hook("b", "http://localhost:1/")]);
    let (status, said) = launch(&repository, &webhooks).set("NOTIFY__HOSTS", "127.0.0.1").fail();
    assert_eq!(status.code(), Some(2));
    assert!(
        said.contains("webhook `b` names `localhost`, which `notify.hosts` does not list"),
        "{said}"
    );
}

#[test]
fn the_same_news_comes_once_in_a_cooldown() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::start();
    let mut webhook = hook("ops", &receiver.url("/"));
    webhook["events"] = json!(["failed"]);
    let server = launch(&repository, &json!([webhook])).start();
    repository.add_bytes("add_sub", "2", b"no model");
    receiver.wait_for(1);
    repository.replace("add_sub", "2", b"no model either");
    let line = "tidegate_notifications_total{kind=\"failed\",outcome=\"suppressed\"} 1";
    wait_for_count(&server, line);
    assert_eq!(receiver.taken().len(), 1);
    let event = receiver.taken()[0].event();
    assert_eq!(event["type"], "tidegate.failed");
    assert_eq!(event["dedupekey"], "failed/add_sub/2");
    assert_eq!(event["severity"], "warning");
}

#[test]
fn a_full_queue_takes_nothing_and_says_so() {
    let repository = Repository::of(&["add_sub"]);
    let address = free_address();
    let webhooks = json!([hook("ops", &format!("http://{address}/"))]);
    let server = launch(&repository, &webhooks).set("NOTIFY__QUEUE", "2").start();
    for reason in ["1", "2", "3", "4"] {
        retrain(&server, reason);
    }
    wait_for_count(
        &server,
        "tidegate_notifications_total{kind=\"retrain.requested\",outcome=\"dropped\"} 2",
    );
    wait_for_count(&server, "tidegate_notifications_waiting 2");
    server.wait_until_said("webhook `ops` takes no more notifications");
    let receiver = Receiver::at(address, |_, _| OK);
    receiver.wait_for(2);
    assert_eq!(reasons(&receiver), ["1", "2"]);
}

#[test]
fn a_refusal_costs_one_event_and_gone_all() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::answering(|n, _| match n {
        0 => Reply::Status(422, &[]),
        1 => OK,
        _ => Reply::Status(410, &[]),
    });
    let server = launch(&repository, &json!([hook("ops", &receiver.url("/"))])).start();
    for reason in ["1", "2", "3"] {
        retrain(&server, reason);
    }
    receiver.wait_for(3);
    server.wait_until_said("wants nothing any more");
    let id = retrain(&server, "4");
    let report = report(&server);
    assert_eq!(report["webhooks"][0]["circuit"], "gone");
    let outcomes: Vec<_> = report["notifications"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["dropped", "given_up", "delivered", "given_up"], "{id}");
    assert_eq!(receiver.taken().len(), 3);
}

#[test]
fn a_rollout_is_told_from_start_to_end() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::start();
    let mut webhook = hook("ops", &receiver.url("/"));
    webhook["events"] = json!(["rollout.*"]);
    let server =
        launch(&repository, &json!([webhook])).set("MODELS__add_sub__ON_NEW_VERSION", "hold");
    let server = server.start();
    repository.add_as("add_sub", "2", &crate::repository::source("add_sub", "1"));
    let started = eventually("the version is known", || {
        let body = json!({ "model": "add_sub", "candidate": 2 });
        let answer = post(&server, "/api/v1/rollouts", &body);
        (answer.status == 201).then(|| answer.json())
    });
    let id = started["id"].as_str().unwrap().to_owned();
    let aborted = post(&server, &format!("/api/v1/rollouts/{id}/abort"), &json!({}));
    assert_eq!(aborted.status, 200);
    let last = eventually("the end is told", || {
        let taken = receiver.taken();
        let is_end = |event: &Value| event["type"] == "tidegate.rollout.rolled_back";
        taken.iter().map(crate::receiver::Delivery::event).find(is_end)
    });
    assert_eq!(last["data"]["rollout"]["id"], id);
    assert_eq!(receiver.taken()[0].event()["type"], "tidegate.rollout.started");
}

#[test]
fn commands_test_and_list_webhooks() {
    let repository = Repository::of(&["add_sub"]);
    let receiver = Receiver::start();
    let broken = Receiver::answering(|_, _| Reply::Status(503, &[]));
    let mut webhook = hook("ops", &receiver.url("/"));
    webhook["secret"] = SECRET.into();
    let webhooks = json!([webhook, hook("broken", &broken.url("/"))]);
    let server = launch(&repository, &webhooks).start();
    let admin = server.admin.to_string();
    let run = |arguments: &[&str]| {
        let output = tidegate(&[arguments, &["--admin", &admin]].concat(), "");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    assert_eq!(run(&["notify", "test", "ops"]), (Some(0), "ops: delivered (204)\n".to_owned()));
    let delivery = receiver.wait_for(1).remove(0);
    assert_eq!(delivery.event()["type"], "tidegate.test");
    assert_eq!(
        verified(delivery.header("x-tidegate-signature").unwrap(), &delivery.body, SECRET),
        "right"
    );
    let (code, said) = run(&["notify", "test"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("broken: not delivered: 503 Service Unavailable"), "{said}");
    let (code, said) = run(&["notify", "test", "opps"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no webhook is called `opps`; there are ops, broken"), "{said}");
    let (code, said) = run(&["retrain", "add_sub", "--reason", "new labels"]);
    assert!(code == Some(0) && said.starts_with("add_sub is to be trained anew"), "{said}");
    receiver.wait_for(3);
    eventually("it is listed", || {
        let (code, said) = run(&["notify", "list"]);
        assert_eq!(code, Some(0));
        let is_there = ["retrain.requested", "delivered", "503 Service Unavailable"];
        is_there.iter().all(|word| said.contains(word)).then_some(())
    });
    assert!(!server.said().contains(SECRET));
}

#[test]
fn check_finds_what_deliveries_lack() {
    let repository = Repository::of(&["add_sub"]);
    let config = repository.beside("tidegate.toml");
    let text = "[[notify.webhook]]\nname = \"ops\"\nurl = \"https://hooks.example.com/x\"\n\
                secret_file = \"/nowhere/secret\"\nheaders = { Authorization = { env = \"NO_SUCH_TOKEN\" } }\n\
                [notify]\nca_file = \"/nowhere/ca.pem\"\n";
    // A table cannot be opened a second time: the keys of [notify] stand before its webhooks.
    let (webhook, keys) = text.split_once("[notify]").unwrap();
    fs::write(&config, format!("[notify]{keys}{webhook}")).unwrap();
    let folder = repository.path().to_str().unwrap();
    let output =
        tidegate(&["check", "--config", config.to_str().unwrap(), "--repository", folder], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for what in ["/nowhere/secret", "NO_SUCH_TOKEN", "/nowhere/ca.pem"] {
        assert!(said.contains(what), "{said}");
    }
}

/// A program in Python that says on its first line where it listens, killed when dropped.
struct Program {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Program {
    fn start(script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (Self, String) {
        let mut child = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
            .args(arguments)
            .envs(environment.iter().copied())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, said };
        let first = program.line();
        (program, first)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn https_is_judged_by_the_authorities_of_a_file() {
    let repository = Repository::of(&["add_sub"]);
    let authority = repository.beside("authority.pem");
    let authority = authority.to_str().unwrap();
    let (mut receiver, port) = Program::start("tests/clients/https_receiver.py", &[authority], &[]);
    let right = hook("right", &format!("https://localhost:{port}/"));
    let mut other_name = hook("other-name", &format!("https://127.0.0.1:{port}/"));
    other_name["events"] = json!(["decided"]);
    let server =
        launch(&repository, &json!([right, other_name])).set("NOTIFY__CA_FILE", authority).start();
    retrain(&server, "1");
    let event: Value = serde_json::from_str(&receiver.line()).unwrap();
    assert_eq!(event["data"]["retrain"]["reason"], "1");
    let test = |name: &str| {
        let answer = post(&server, "/api/v1/notifications/test", &json!({ "webhook": name }));
        answer.ok().json()["results"][0].clone()
    };
    assert_eq!(test("right")["delivered"], true);
    let refused = test("other-name");
    assert_eq!(refused["delivered"], false);
    assert!(refused["detail"].as_str().unwrap().starts_with("no TLS with 127.0.0.1"), "{refused}");
}

#[test]
fn the_example_starts_a_workflow_once() {
    let repository = Repository::of(&["add_sub"]);
    let github = Receiver::answering(|n, _| if n == 0 { Reply::Status(500, &[]) } else { OK });
    let file = |name: &str, text: &str| -> PathBuf {
        fs::write(repository.beside(name), text).unwrap();
        repository.beside(name)
    };
    let (secret, token) = (file("secret", SECRET), file("token", "github_pat_1"));
    let (secret, token) = (secret.to_str().unwrap(), token.to_str().unwrap());
    let seen = repository.beside("seen");
    let environment = [
        ("TIDEGATE_SECRET_FILE", secret),
        ("GITHUB_TOKEN_FILE", token),
        ("GITHUB_REPOSITORY", "acme/models"),
        ("GITHUB_API", &github.url("/")),
        ("SEEN_FILE", seen.to_str().unwrap()),
        ("LISTEN", "127.0.0.1:0"),
    ];
    let start = || {
        let (program, said) = Program::start("deploy/github/receiver.py", &[], &environment);
        let address = said.strip_prefix("listening on ").unwrap().to_owned();
        (program, address)
    };
    let (example, address) = start();
    let copies = Receiver::start();
    let mut webhooks =
        [hook("github", &format!("http://{address}/")), hook("copy", &copies.url("/"))];
    for webhook in &mut webhooks {
        webhook["secret_file"] = secret.into();
    }
    let server = launch(&repository, &webhooks.to_vec().into()).start();
    let id = retrain(&server, "labels of March");

    let dispatch = github.wait_for(2).remove(1);
    assert_eq!(dispatch.path, "/repos/acme/models/dispatches");
    assert_eq!(dispatch.header("authorization"), Some("Bearer github_pat_1"));
    let body = dispatch.event();
    assert_eq!(body["event_type"], "tidegate-retrain");
    let payload = &body["client_payload"];
    assert!(payload.as_object().unwrap().len() <= 10, "GitHub takes ten properties");
    assert_eq!((&payload["model"], &payload["version"]), (&json!("add_sub"), &json!("1")));
    assert_eq!((&payload["evidence"]["id"], &payload["trigger"]), (&json!(id), &json!("operator")));
    eventually("it counts as delivered", || {
        (report(&server)["webhooks"][0]["waiting"] == 0).then_some(())
    });

    // The same delivery again, one that was changed, and one after a restart.
    let copy = copies.wait_for(1).remove(0);
    let send = |address: &str, body: &str| {
        let signature = copy.header("x-tidegate-signature").unwrap();
        let request = Request::post("/", body).header("x-tidegate-signature", signature);
        Connection::open(address.parse().unwrap()).ask(&request).status
    };
    assert_eq!(send(&address, &copy.body), 204);
    assert_eq!(send(&address, &copy.body.replace("add_sub", "another")), 401);
    drop(example);
    let (_example, address) = start();
    assert_eq!(send(&address, &copy.body), 204);
    assert_eq!(github.taken().len(), 2);
}

#[test]
fn the_workflow_listens_to_the_example_and_takes_no_text_into_its_scripts() {
    let code = "import json, sys, yaml\nprint(json.dumps({str(k): v for k, v in yaml.safe_load(sys.stdin).items()}))";
    let workflow = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/github/retrain.yml");
    let output = Command::new(python())
        .args(["-c", code])
        .stdin(fs::File::open(workflow).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let workflow: Value = serde_json::from_slice(&output.stdout).unwrap();
    // YAML 1.1 takes the word `on` for a truth value.
    let types = &workflow["True"]["repository_dispatch"]["types"];
    assert_eq!(types, &json!(["tidegate-retrain"]));
    assert_eq!(workflow["permissions"], json!({ "contents": "read" }));
    let steps = workflow["jobs"]["train"]["steps"].as_array().unwrap();
    for step in steps {
        assert!(!step["run"].as_str().unwrap_or_default().contains("${{"), "{step}");
        assert_ne!(step["run"].is_string(), step["uses"].is_string(), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_that_lasts_asks_for_training_with_its_evidence() {
    let repository = Repository::of(&["add_sub"]);
    let plane = Plane::over(&repository, Registry::default()).await;
    let receiver = Receiver::start();
    let model = ModelName::parse("add_sub").unwrap();
    let webhook =
        json!([{ "name": "ops", "url": receiver.url("/"), "events": ["drift", "retrain"] }]);
    let rule = RetrainSettings { window: Duration::from_millis(50), ..RetrainSettings::default() };
    let events = plane.monitor.events();
    let now = || plane.monitor.clock().unix();
    let version = VersionId::new(1);
    // More than the stream remembers, before anybody listens.
    for _ in 0..1500 {
        events.tell(now(), &model, Some(version), EventKind::TrafficChanged, "");
    }
    let notifier = Notifier::start(notify::Parts {
        settings: notify::Settings {
            webhooks: Webhook::read(&Webhook::drafts(webhook).unwrap()).unwrap(),
            private_addresses: vec!["127.0.0.1".parse().unwrap()],
            retrain: [(model.clone(), rule)].into(),
            ..notify::Settings::default()
        },
        monitor: Arc::clone(&plane.monitor),
        state: None,
        rollouts: plane.rollouts.handle(),
        version: Box::new(|_, version| Some((version?, "0123".to_owned()))),
        variables: |_| None,
        random: || 7,
    })
    .unwrap();
    let alarm = json!({
        "id": "d-1", "feature": "amount", "tier": "page",
        "features": [{ "name": "amount", "kind": "up", "psi": 0.4, "js": 0.2, "since": "2026-11-28T15:00:00.000Z", "log_m": 20.1 }],
    });
    let about = (&model, Some(version));
    for _ in 0..3 {
        events.tell_about(now(), about, EventKind::DriftDetected, "amount", Some(alarm.clone()));
    }
    let deliveries = receiver.wait_for(2);
    assert_eq!(deliveries[0].event()["type"], "tidegate.drift.detected");
    assert_eq!(deliveries[0].event()["severity"], "critical");
    let asked = &deliveries[1].event()["data"]["retrain"];
    assert_eq!((&asked["trigger"], &asked["by"]), (&json!("drift"), &json!("tidegate")));
    assert_eq!((&asked["version"], &asked["digest"]), (&json!("1"), &json!("0123")));
    assert_eq!(asked["features"][0]["since"], "2026-11-28T15:00:00.000Z");
    assert_eq!(asked["weighted_psi"], 0.4);
    let counts = notifier.handle().counts();
    let count =
        |kind, outcome| counts.iter().find(|(key, _)| *key == (kind, outcome)).map(|(_, n)| *n);
    assert_eq!(count("drift.detected", "suppressed"), Some(2));
    assert!(count("", "missed") >= Some(1500 - 1024), "{counts:?}");
}

/// Makes the choices of an earlier run again; a failed test says which.
const SEED: &str = "TIDEGATE_TEST_SEED";

#[test]
fn kills_at_random_instants_lose_nothing_that_was_queued() {
    let seed = std::env::var(SEED).map_or(20_261_128, |seed| seed.parse().unwrap());
    eprintln!("{SEED}={seed}");
    let mut choices = Choices(seed);
    let repository = Repository::of(&["add_sub"]);
    // Takes two of three, so that something waits at any time.
    let receiver =
        Receiver::answering(|n, _| if n % 3 == 1 { Reply::Status(503, &[]) } else { OK });
    let webhooks = json!([hook("ops", &receiver.url("/"))]);
    let launch = || launch(&repository, &webhooks).remembering().set("NOTIFY__BACKOFF", "10ms");
    let mut queued = Vec::new();
    for _ in 0..8 {
        let server = launch().start();
        for _ in 0..=choices.below(6) {
            queued.push(retrain(&server, "round"));
        }
        std::thread::park_timeout(Duration::from_micros(choices.below(40_000)));
        server.signal(Signal::KILL);
        server.ended_by(PATIENCE);
    }
    let _server = launch().start();
    let mut order: Vec<String> = Vec::new();
    eventually("all that was queued is delivered", || {
        order.clear();
        let taken = receiver.taken();
        for delivery in taken.iter().map(crate::receiver::Delivery::event) {
            let id = delivery["data"]["retrain"]["id"].as_str().unwrap().to_owned();
            if !order.contains(&id) {
                order.push(id);
            }
        }
        (order.len() == queued.len()).then_some(())
    });
    assert_eq!(order, queued, "in order, and repeats only of what came before");
}
