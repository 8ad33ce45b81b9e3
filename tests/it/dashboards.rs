//! Rules, alerts and dashboards as shipped, against a real Prometheus and the real server.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    clients::assert_success,
    prometheus::Prometheus,
    repository::Repository,
    server::{Server, eventually},
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

#[test]
fn rules_are_valid_and_fire_where_they_should() {
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        let told = command.args(arguments).current_dir(project("deploy/prometheus")).output();
        assert_success("promtool", &told.unwrap());
    };
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "tests/alerts.yml"]);
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
    // A group's first evaluation comes within its interval, of half a minute; here it is Prometheus' own, of a second.
    let folder = tempfile::tempdir().unwrap();
    let hurried = |path: PathBuf| {
        let rules = fs::read_to_string(&path).unwrap();
        let copy = folder.path().join(path.file_name().unwrap());
        fs::write(&copy, rules.replace("    interval: 30s\n", "")).unwrap();
        copy
    };
    let rules: Vec<_> = files("deploy/prometheus/rules", "yml").into_iter().map(hurried).collect();
    let prometheus = Prometheus::with_rules(server.admin, "", &rules);
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
