//! Accounts: what clients count by themselves equals what a real Prometheus says and what the server logs at its end,
//! by version, arm and code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    models::counted_loop,
    prometheus::Prometheus,
    repository::{Repository, source},
    rollouts::{pick, picking},
    server::{Launch, PATIENCE, Server, eventually},
    tensors::{identity, infer},
};

/// The model that all accounts are about.
const MODEL: &str = "truth";

/// A version, an arm and a code; the first two are empty where no version was reached.
type Entry = (String, String, u16);

/// Requests by how they ended.
type Ledger = BTreeMap<Entry, u64>;

/// The accounts of some clients, and the sign that ends them.
#[derive(Default)]
struct Books {
    ledger: Mutex<Ledger>,
    is_done: AtomicBool,
}

impl Books {
    fn note(&self, entry: Entry) {
        *self.ledger.lock().unwrap().entry(entry).or_default() += 1;
    }

    /// Answers with success of an arm so far.
    fn seen(&self, version: &str, arm: &str) -> u64 {
        let entry = (version.to_owned(), arm.to_owned(), 200);
        self.ledger.lock().unwrap().get(&entry).copied().unwrap_or_default()
    }

    /// Waits for more answers of an arm.
    fn wait(&self, version: &str, arm: &str) {
        let before = self.seen(version, arm);
        eventually(&format!("{arm} {version} answers"), || {
            (self.seen(version, arm) > before + 50).then_some(())
        });
    }

    fn close(self) -> Ledger {
        self.ledger.into_inner().unwrap()
    }

    /// Keeps the books of three clients that ask until a story has ended; pages are scraped meanwhile, on which sums
    /// never fall.
    fn of(
        server: &Server,
        ask: impl Fn(&Server, &mut Connection, usize) -> Entry + Sync,
        story: impl FnOnce(&Self),
    ) -> Ledger {
        let books = Self::default();
        thread::scope(|scope| {
            let (books, ask) = (&books, &ask);
            for client in 0..3 {
                scope.spawn(move || {
                    let mut connection = server.connect();
                    for number in client.. {
                        if books.is_done.load(Relaxed) {
                            break;
                        }
                        books.note(ask(server, &mut connection, number));
                    }
                });
            }
            scope.spawn(move || {
                let mut before = 0;
                while !books.is_done.load(Relaxed) {
                    let now = page(server).values().sum();
                    assert!(now >= before, "{now} requests after {before}");
                    before = now;
                }
            });
            let _end = End(&books.is_done);
            story(books);
        });
        books.close()
    }
}

/// Lets the clients go where the story ends, also where it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The entry of an answer: a version that is named answers 400 by itself, on its own arm.
fn entry(answer: &Response, named: Option<&str>) -> Entry {
    let header = |name| answer.header(name).unwrap_or_default().to_owned();
    match (answer.status, named) {
        (200, _) => (header("x-tidegate-version"), header("x-tidegate-arm"), 200),
        (400, Some(version)) => (version.to_owned(), "direct".to_owned(), 400),
        (code, _) => (String::new(), String::new(), code),
    }
}

/// The accounts on the server's page.
fn page(server: &Server) -> Ledger {
    let text = server.admin("/metrics").ok().text();
    let series = text.lines().filter_map(|line| line.strip_prefix("tidegate_requests_total{"));
    let entry = |line: &str| {
        let (labels, count) = line.rsplit_once("} ").unwrap();
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\"")).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        let is_ours = label("model") == MODEL;
        let entry = (label("version"), label("arm"), label("code").parse().unwrap());
        is_ours.then(|| (entry, count.parse().unwrap()))
    };
    series.filter_map(entry).collect()
}

/// The accounts as Prometheus has them.
fn queried(prometheus: &Prometheus) -> Option<Ledger> {
    let query =
        format!("sum by (version, arm, code) (tidegate_requests_total{{model=\"{MODEL}\"}})");
    let series = prometheus.query(&query)?.into_iter().map(|(labels, count)| {
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        ((label("version"), label("arm"), label("code").parse().unwrap()), whole(count))
    });
    Some(series.collect())
}

/// The accounts that the server logged at its end.
fn logged(server: &Server) -> Ledger {
    let said = server.said();
    let mut ledger = Ledger::new();
    for line in said.lines().filter(|line| line.contains("\"final totals")) {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        if text("model") != MODEL {
            continue;
        }
        for code in text("codes").split(' ') {
            let (code, count) = code.split_once('=').unwrap();
            let entry = (text("version"), text("arm"), code.parse().unwrap());
            assert!(
                ledger.insert(entry, count.parse().unwrap()).is_none(),
                "{line} is there twice"
            );
        }
    }
    ledger
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
fn whole(count: f64) -> u64 {
    assert!(count >= 0.0 && count.fract().to_bits() == 0, "{count} requests");
    count as u64
}

/// Waits until Prometheus says what the clients say, stops the server, and compares what it logs.
fn compare(mut server: Server, prometheus: &Prometheus, ledger: &Ledger) {
    eventually("Prometheus has it all", || {
        let theirs = queried(prometheus)?;
        (theirs == *ledger).then_some(()).or_else(|| {
            let sum: u64 = theirs.values().sum();
            assert!(sum <= ledger.values().sum(), "too many: {theirs:?} of {ledger:?}");
            None
        })
    });
    let number = |query: &str| whole(prometheus.number(query).unwrap());
    let answered = ledger.iter().filter(|((version, ..), _)| !version.is_empty());
    let answered: u64 = answered.map(|(_, count)| count).sum();
    assert_eq!(number("sum(tidegate_request_duration_seconds_count)"), answered, "histograms");
    for code in ledger.keys().map(|(.., code)| *code).collect::<BTreeSet<_>>() {
        let own = ledger.iter().filter(|((.., own), _)| *own == code);
        let own: u64 = own.map(|(_, count)| count).sum();
        let all = number(&format!("sum(tidegate_http_responses_total{{code=\"{code}\"}})"));
        // Others ask for other things, with success.
        assert!(all == own || code == 200 && all > own, "{all} answers with {code}, of {own}");
    }
    // What was counted after the last scrape is in the log.
    let mut ledger = ledger.clone();
    let last = server.post(&format!("/v2/models/{MODEL}/versions/77/infer"), &json!({}));
    *ledger.entry(entry(&last, None)).or_default() += 1;
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
    assert_eq!(logged(&server), ledger, "{}", server.said());
}

fn admin(server: &Server, method: &str, path: &str, body: &Value) -> Response {
    let request = Request::post_json(path, body).method(method);
    Connection::open(server.admin).ask(&request)
}

/// One request of a client that does much right and some things wrong.
fn ask_for_truth(server: &Server, connection: &mut Connection, number: usize) -> Entry {
    let truth = identity("FP32", &json!([1.5]));
    let first = format!("/v2/models/{MODEL}/versions/1/infer");
    let broken =
        Request::post(&first, "{\"inputs\": [{").header("content-type", "application/json");
    let (request, named) = match number % 10 {
        0 => (Request::post_json(&first, &truth), Some("1")),
        1 => (Request::post_json(&first, &json!({"inputs": []})), Some("1")),
        2 => (broken, Some("1")),
        3 => (Request::post_json(&format!("/v2/models/{MODEL}/versions/77/infer"), &truth), None),
        4 => {
            // Gone before the last byte.
            let head = format!("POST {} HTTP/1.1\r\nhost: x\r\n", infer(MODEL));
            server.connect().send(head + "content-length: 99\r\n\r\n{");
            return (String::new(), String::new(), 499);
        }
        _ => (Request::post_json(&infer(MODEL), &truth), None),
    };
    let answer = connection.ask(&request);
    if answer.closes() {
        *connection = server.connect();
    }
    entry(&answer, named)
}

#[test]
fn accounts_hold_across_swaps_splits_and_clients_that_go() {
    let repository = Repository::empty();
    let version = |model| fs::read(source(model, "1")).unwrap();
    repository.add_bytes(MODEL, "1", &version("identity_fp32"));
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms").start();
    let prometheus = Prometheus::scraping(server.admin, "");
    let traffic = format!("/api/v1/models/{MODEL}/traffic");
    let ledger = Books::of(&server, ask_for_truth, |books| {
        books.wait("1", "baseline");
        repository.add_bytes(MODEL, "2", &version("doubled_fp32"));
        books.wait("2", "baseline");
        let arms = json!({"arms": [
            {"name": "baseline", "version": 2, "weight": 0.6},
            {"name": "canary", "version": 1, "weight": 0.4},
        ]});
        admin(&server, "PUT", &traffic, &arms).ok();
        books.wait("1", "canary");
        Connection::open(server.admin).ask(&Request::get(&traffic).method("DELETE")).ok();
        repository.remove(MODEL, "1");
        books.wait("2", "baseline");
    });
    for code in [200, 400, 404, 499] {
        assert!(ledger.keys().any(|(.., own)| *own == code), "no {code} in {ledger:?}");
    }
    compare(server, &prometheus, &ledger);
}

#[test]
fn accounts_hold_across_rollouts() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    repository.add_bytes(MODEL, "2", &picking(101));
    repository.add_bytes(MODEL, "3", &picking(95));
    repository.describe(MODEL, "model.toml", "versions = \"all\"\n");
    let server = Launch::of(&repository).start();
    let back = format!("/api/v1/models/{MODEL}/rollback");
    admin(&server, "POST", &back, &json!({"version": 1})).ok();
    let prometheus = Prometheus::scraping(server.admin, "");
    let ask = |_: &Server, connection: &mut Connection, number: usize| {
        let number = i64::try_from(number % 100).unwrap();
        let request = Request::post_json(&infer(MODEL), &pick(number));
        let answer = connection.ask(&request).ok();
        // The baseline answers where the candidate cannot, and counts it.
        let fell_back = answer.header("x-tidegate-fallback").is_some();
        let entry = entry(&answer, None);
        assert!(!fell_back || entry.1 == "baseline", "{entry:?}");
        entry
    };
    let run = |candidate: u64| -> Value {
        let body = json!({"model": MODEL, "candidate": candidate, "policy": {
            "steps": [{"weight": 0.3, "min_duration": "0s", "min_requests": 20}],
            "warmup_requests": 5,
            "rollback_window": "0s",
        }});
        let begun = admin(&server, "POST", "/api/v1/rollouts", &body);
        assert_eq!(begun.status, 201, "{begun:?}");
        let path = format!("/api/v1/rollouts/{}", begun.json()["id"].as_str().unwrap());
        eventually("the rollout ends", || {
            let shown = server.admin(&path).ok().json();
            let is_over =
                ["promoted", "rolled_back", "failed"].iter().any(|s| shown["state"] == *s);
            is_over.then_some(shown)
        })
    };
    let ledger = Books::of(&server, ask, |books| {
        books.wait("1", "baseline");
        let shown = run(2);
        assert_eq!(shown["state"], "promoted", "{shown:#}");
        books.wait("2", "baseline");
        let shown = run(3);
        assert_eq!(shown["state"], "rolled_back", "{shown:#}");
        books.wait("2", "baseline");
    });
    for entry in [("1", "baseline"), ("2", "canary"), ("2", "baseline"), ("3", "canary")] {
        let (version, arm) = (entry.0.to_owned(), entry.1.to_owned());
        assert!(ledger.contains_key(&(version, arm, 200)), "no {entry:?} in {ledger:?}");
    }
    compare(server, &prometheus, &ledger);
}

/// Asks for a run of so many rounds.
fn rounds(count: i64) -> Value {
    json!({"inputs": [{"name": "rounds", "shape": [1], "datatype": "INT64", "data": [count]}]})
}

#[test]
fn runs_whose_clients_go_count_with_their_version() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &counted_loop());
    let server = Launch::of(&repository).set("SERVER__WORKERS", "2").start();
    let prometheus = Prometheus::scraping(server.admin, "");
    let request = Request::post_json(&infer(MODEL), &rounds(7));
    let mut ledger = Ledger::new();
    let baseline = |code| ("1".to_owned(), "baseline".to_owned(), code);
    for gone in 1..=4 {
        server.ask(&request).ok();
        let mut client = server.connect();
        client.send(Request::post_json(&infer(MODEL), &rounds(1 << 40)).bytes());
        eventually("it is in flight", || {
            let page = server.admin("/metrics").ok().text();
            page.contains("\ntidegate_http_requests_in_flight 1\n").then_some(())
        });
        drop(client);
        ledger.insert(baseline(499), gone);
        ledger.insert(baseline(200), gone);
        eventually("it is counted", || (page(&server) == ledger).then_some(()));
    }
    let late = Request::post_json(&infer(MODEL), &rounds(1 << 40));
    assert_eq!(server.ask(&late.header("x-request-timeout-ms", "50")).status, 504);
    ledger.insert(baseline(504), 1);
    compare(server, &prometheus, &ledger);
}

#[test]
fn accounts_of_versions_that_left_stay_with_their_model() {
    let repository = Repository::empty();
    let version = fs::read(source("identity_fp32", "1")).unwrap();
    for number in 1..=20 {
        repository.add_bytes(MODEL, &number.to_string(), &version);
    }
    repository.describe(MODEL, "model.toml", "versions = \"all\"\n");
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms").start();
    let prometheus = Prometheus::scraping(server.admin, "");
    let truth = identity("FP32", &json!([1.5]));
    let ask = |_: &Server, connection: &mut Connection, number: usize| {
        let version = (number % 21 + 1).to_string();
        let path = match version.as_str() {
            "21" => infer(MODEL),
            named => format!("/v2/models/{MODEL}/versions/{named}/infer"),
        };
        entry(&connection.ask(&Request::post_json(&path, &truth)), None)
    };
    let ledger = Books::of(&server, ask, |books| {
        books.wait("20", "baseline");
        for number in 1..20 {
            repository.remove(MODEL, &number.to_string());
        }
        eventually("they are gone", || {
            (books.ledger.lock().unwrap().keys().any(|(.., code)| *code == 404)).then_some(())
        });
        repository.add_bytes(MODEL, "21", &version);
        books.wait("21", "baseline");
        eventually("some are retired", || {
            page(&server).keys().any(|(version, ..)| version == "retired").then_some(())
        });
    });
    // Those that left longest ago are one now; nobody else has gained or lost a request.
    let folded = page(&server);
    let kept: BTreeSet<_> = folded.keys().map(|(version, ..)| version.clone()).collect();
    assert!(kept.len() < 20, "{kept:?}");
    let mut expected = Ledger::new();
    for ((version, arm, code), count) in ledger {
        let entry = if version.is_empty() || kept.contains(&version) {
            (version, arm, code)
        } else {
            ("retired".to_owned(), String::new(), code)
        };
        *expected.entry(entry).or_default() += count;
    }
    compare(server, &prometheus, &expected);
}

#[test]
fn accounts_are_complete_when_the_server_stops_under_load() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &fs::read(source("identity_fp32", "1")).unwrap());
    let mut server = Launch::of(&repository).start();
    let books = Books::default();
    let truth = Request::post_json(&infer(MODEL), &identity("FP32", &json!([1.5])));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(mut connection) = Connection::try_open(server.http) {
                    // Each asks until its connection ends, then opens another one, until there is no server.
                    while let Ok(answer) = connection.try_ask(&truth) {
                        books.note(entry(&answer, None));
                        if answer.closes() {
                            break;
                        }
                    }
                }
            });
        }
        books.wait("1", "baseline");
        server.terminate();
    });
    assert_eq!(server.exit_code(PATIENCE), 0);
    let mut ledger = books.close();
    // Said to whoever comes when the listener is about to close, by nobody who counts for a model.
    ledger.retain(|(.., code), _| *code != 503);
    assert_eq!(logged(&server), ledger, "{}", server.said());
}
