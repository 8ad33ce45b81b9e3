//! Segments: rows that are counted apart, by a header or by a feature, for drift, the contract and outcomes.

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    drift::{Dice, flowers, iris, quick, request_of},
    feedback::{classes, predict},
    http::{Connection, Request},
    repository::Repository,
    server::{Launch, PATIENCE, Server, eventually},
    tensors::infer,
};

const REGIONS: &str = r#"{"header": "x-region", "values": ["eu"], "limit": 2}"#;

/// Sends rows of flowers from a region; without a name, from none.
fn send(connection: &mut Connection, region: &str, data: &[f64]) {
    let request = Request::post_json(&infer("iris"), &request_of(data));
    let request = if region.is_empty() { request } else { request.header("x-region", region) };
    connection.ask(&request).ok();
}

fn report(server: &Server, asked: &str) -> Value {
    server.admin(&format!("/api/v1/models/iris/drift{asked}")).ok().json()
}

fn segment<'r>(report: &'r Value, value: &str) -> &'r Value {
    let all = report["segments"].as_array().unwrap();
    all.iter().find(|one| one["value"] == value).unwrap_or(&Value::Null)
}

#[test]
fn a_segment_that_moves_is_named_and_its_neighbour_is_left_alone() {
    let repository = iris();
    let contract = json!({"features": {"sepal_width": {"max": 7.0}}});
    let launch = || {
        quick(&repository)
            .set("MODELS__iris__SEGMENTS", REGIONS)
            .set("MODELS__iris__CONTRACT", &contract.to_string())
            .remembering()
    };
    let mut server = launch().start();
    let (mut connection, mut dice) = (server.connect(), Dice(5));
    // The third is one too many.
    for region in ["us", "asia", "eu", ""] {
        send(&mut connection, region, &flowers(&mut dice, 10, 0.0));
    }
    send(&mut connection, "eu", &[5.1, 7.5, 1.4, 0.2]);
    eventually("references of both", || {
        for region in ["eu", "us"] {
            send(&mut connection, region, &flowers(&mut dice, 50, 0.0));
        }
        let report = report(&server, "");
        let is_watched = |value| segment(&report, value)["status"] == "watching";
        (is_watched("eu") && is_watched("us")).then_some(())
    });
    let alarmed = eventually("the alarm", || {
        send(&mut connection, "eu", &flowers(&mut dice, 50, 1.5));
        send(&mut connection, "us", &flowers(&mut dice, 50, 0.0));
        let report = report(&server, "");
        (segment(&report, "eu")["status"] == "drifting").then_some(report)
    });
    assert_eq!(segment(&alarmed, "us")["status"], "watching", "{alarmed}");
    let drifting = segment(&alarmed, "eu")["drifting"].to_string();
    assert!(drifting.contains("sepal_width"), "{drifting}");
    assert_eq!(segment(&alarmed, "asia"), &Value::Null, "there is room for two");

    let own = report(&server, "?segment=eu");
    assert_eq!(own["segment"], json!({"by": "x-region", "value": "eu"}));
    assert_eq!(own["reference"]["kind"], "learned", "{own}");
    assert!(own["detail"].as_str().unwrap().contains("the segment's first 500 rows"), "{own}");
    let broken = |report: &Value| report["contract"][0]["broken"].clone();
    assert_eq!(broken(&own), json!({"max": 1}));
    assert_eq!(broken(&report(&server, "?segment=us")), json!({}));
    let counts = |report: &Value| report["contract"][0]["values"].as_u64().unwrap();
    let (eu, us) = (counts(&own), counts(&report(&server, "?segment=us")));
    // Those of `asia`, and of no region.
    assert_eq!(counts(&report(&server, "")), eu + us + 20);

    let heard = Connection::open(server.admin)
        .listen(&Request::new("GET", "/api/v1/events"), |said| {
            said.contains("where x-region is `eu`")
        });
    assert!(heard.contains(r#""segment_value":"eu""#), "{heard}");
    let page = server.admin("/metrics").ok().text();
    let gauge = |segment| {
        format!(
            "tidegate_drift_segment_alarm{{model=\"iris\",version=\"1\",segment=\"{segment}\"}}"
        )
    };
    assert!(page.contains(&format!("{} 1", gauge("eu"))), "{page}");
    assert!(!page.contains(&gauge("us")), "a client chose it");
    let unknown = server.admin("/api/v1/models/iris/drift?segment=mars");
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().contains("there are eu, us"), "{}", unknown.text());

    let admin = format!("http://{}", server.admin);
    let shown = tidegate(&["drift", "status", "iris", "--admin", &admin], "");
    assert_eq!(shown.status.code(), Some(1), "a segment drifts");
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("tidegate drift status iris --segment eu"), "{text}");
    let shown = tidegate(&["drift", "status", "iris", "--segment", "eu", "--admin", &admin], "");
    assert_eq!(shown.status.code(), Some(1));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("x-region eu") && text.contains("sepal_width"), "{text}");

    drop(connection);
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
    let server = launch().start();
    let after = report(&server, "?segment=eu");
    assert_eq!(after["status"], "drifting", "{after}");
    assert_eq!(after["reference"]["digest"], own["reference"]["digest"]);
}

#[test]
fn rows_of_one_request_belong_to_their_own_segments_and_so_do_their_outcomes() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let launch = || {
        Launch::of(&repository)
            .set("MODELS__judged__SEGMENTS", r#"{"feature": "x", "limit": 2}"#)
            .remembering()
    };
    let mut server = launch().start();
    let name = predict(&mut server.connect(), "judged", &[7, 8, 7, 9, 7]);
    let outcomes: Vec<Value> = [1, 1, 1, 1, 0]
        .into_iter()
        .enumerate()
        .map(|(row, label)| json!({"prediction_id": name, "row": row, "label": label}))
        .collect();
    server.post("/v2/models/judged/feedback", &json!({ "outcomes": outcomes })).ok();
    let quality = |server: &Server| {
        let page = server.admin("/api/v1/models/judged/quality?window=1h").ok().json();
        let all = &page["versions"][0];
        let segments = all["segments"].as_array().unwrap();
        let of = |one: &Value| {
            let value = &one["metrics"]["accuracy"]["value"];
            (one["segment"].as_str().unwrap().to_owned(), one["served"].clone(), value.clone())
        };
        (all["served"].clone(), segments.iter().map(of).collect::<Vec<_>>())
    };
    let expected = [("7", 3, 2.0 / 3.0), ("8", 1, 0.0), ("other", 1, 1.0)]
        .map(|(value, rows, accuracy)| (value.to_owned(), json!(rows), json!(accuracy)));
    assert_eq!(quality(&server), (json!(5), expected.to_vec()));
    let admin = format!("http://{}", server.admin);
    let shown = tidegate(&["quality", "judged", "--admin", &admin], "");
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("segment") && text.contains("0.6667"), "{text}");
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
    let server = launch().start();
    assert_eq!(quality(&server), (json!(5), expected.to_vec()));
}

#[test]
fn segments_that_cannot_be_told_apart_are_said() {
    let launch = quick(&iris()).set("MODELS__iris__SEGMENTS", r#"{"feature": "colour"}"#);
    let models = launch.start().admin("/api/v1/models").ok().text();
    assert!(models.contains("segments are by `colour`, which is no column"), "{models}");
    for (wrong, said) in [
        ("{}", "must have either `header` or `feature`"),
        (r#"{"header": "Cookie"}"#, "must be one that holds no secret"),
        (r#"{"header": "x region"}"#, "must be the name of a header"),
        (r#"{"feature": "a", "limit": 33}"#, "must be from 1 to 32"),
        (r#"{"feature": "a", "values": ["other"]}"#, "not \"other\""),
    ] {
        let (_, refused) = quick(&iris()).set("MODELS__iris__SEGMENTS", wrong).fail();
        assert!(refused.contains(said), "{said} in {refused}");
    }
}
