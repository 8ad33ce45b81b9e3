//! `tidegate rollout` and `tidegate freeze`: starting, steering and explaining rollouts.
//!
//! Exit codes of commands that wait: 0 promoted, 1 rolled back, 3 not over at the timeout (held or waiting for
//! approval, mostly), 4 failed, superseded or not startable, 2 as everywhere.
//!
//! Not here: the live view (`watch`), the page (`rollout::page`).

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use crate::rollout::{self, Bundle, Plan, Report, State, page, words};

use super::{
    Outcome, backtest, client,
    commands::{FreezeWhat, RolloutCommand, RolloutStart, RolloutTarget, Why},
    print, print_json,
    tables::{self, table},
    traffic::said,
    watch::{self, Watched},
};

/// The largest policy or bundle that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// `tidegate rollout`.
pub(super) fn run(command: RolloutCommand, json: bool) -> anyhow::Result<Outcome> {
    match command {
        RolloutCommand::Start(start) => self::start(&start, json),
        RolloutCommand::Watch { rollout, wait, server } => {
            let id = id_of(&server.admin, &rollout)?;
            let watched = watch::run(&server.admin, &id, (wait.wait, wait.timeout), json)?;
            Ok(if wait.wait { ended(&watched) } else { Outcome::Done })
        }
        RolloutCommand::List { model, limit, server } => {
            list(&server.admin, model.as_deref(), limit, json)
        }
        RolloutCommand::Show { rollout, html, markdown, server } => {
            show(&server.admin, &rollout, html.as_deref(), markdown.as_deref(), json)
        }
        RolloutCommand::Pause(target) => steer(&target, "pause", json),
        RolloutCommand::Resume(target) => steer(&target, "resume", json),
        RolloutCommand::Approve(target) => steer(&target, "approve", json),
        RolloutCommand::Promote(target) => steer(&target, "promote", json),
        RolloutCommand::Abort(target) => steer(&target, "abort", json),
        RolloutCommand::Plan { model, rate, base, policy, server } => {
            let mut wanted = json!({"model": model});
            if let Some(rate) = rate {
                wanted["rate"] = rate.into();
            }
            if let Some(base) = base {
                wanted["base"] = number_or_text(&base);
            }
            if let Some(policy) = policy {
                wanted["policy"] = read_policy(&policy)?;
            }
            let body = ask_plan(&server.admin, &wanted)?;
            if json { print(&(body + "\n")) } else { print(&plan(&model, &parse(&body)?)) }
        }
        RolloutCommand::Backtest(arguments) => backtest::run(&arguments, json),
        RolloutCommand::Replay { file } => replay(&file, json),
        RolloutCommand::Evidence { rollout, output, server } => {
            let id = id_of(&server.admin, &rollout)?;
            let body = get(&server.admin, &format!("/api/v1/rollouts/{id}/evidence"))? + "\n";
            match output {
                Some(file) => write(&file, &body),
                None => print(&body),
            }
        }
    }
}

/// A share as a number, where it is one; the server reads percentages.
fn number_or_text(text: &str) -> Value {
    text.parse::<f64>().map_or_else(|_| text.into(), Value::from)
}

fn parse<T: serde::de::DeserializeOwned>(body: &str) -> anyhow::Result<T> {
    serde_json::from_str(body).context("the server's answer is not understood")
}

fn get(admin: &str, path: &str) -> anyhow::Result<String> {
    client::admin(&Method::GET, admin, path, Vec::new())
}

fn write(file: &Path, text: &str) -> anyhow::Result<Outcome> {
    std::fs::write(file, text)
        .with_context(|| format!("`{}` cannot be written", file.display()))?;
    Ok(Outcome::Done)
}

/// The id that is meant: itself, or that of the model's newest rollout.
fn id_of(admin: &str, named: &str) -> anyhow::Result<String> {
    if named.starts_with("r-") {
        match get(admin, &format!("/api/v1/rollouts/{}", segment(named))) {
            Ok(_) => return Ok(named.to_owned()),
            Err(error) => {
                let refused = error.downcast_ref::<client::Refused>();
                if refused.is_none_or(|refused| refused.status != StatusCode::NOT_FOUND) {
                    return Err(error);
                }
            }
        }
    }
    let path = format!("/api/v1/rollouts?model={}&limit=1", segment(named));
    let list: List = parse(&get(admin, &path)?)?;
    match list.rollouts.into_iter().next() {
        Some(newest) => Ok(newest.id),
        None => {
            bail!("`{named}` has no rollout; `tidegate rollout start {named} VERSION` starts one")
        }
    }
}

/// Text as a part of a URL: nothing in it ends the part.
pub(super) fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

/// Reads a policy from TOML or JSON.
pub(super) fn read_policy(file: &Path) -> anyhow::Result<Value> {
    let text = read(file)?;
    let name = file.display();
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
        || text.trim_start().starts_with('{');
    if is_json {
        return serde_json::from_str(&text).with_context(|| format!("`{name}` is not JSON"));
    }
    toml::from_str(&text).with_context(|| format!("`{name}` is not TOML"))
}

fn read(file: &Path) -> anyhow::Result<String> {
    let name = file.display();
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("`{name}` cannot be read"))?)
    };
    let read = source.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.with_context(|| format!("`{name}` cannot be read"))?;
    if bytes as u64 > FILE_BYTES_MAX {
        bail!("`{name}` is larger than 64 MiB, which no policy and no evidence is");
    }
    Ok(text)
}

fn start(start: &RolloutStart, json: bool) -> anyhow::Result<Outcome> {
    let admin = &start.server.admin;
    let mut wanted = said(&start.why);
    wanted["model"] = start.model.as_str().into();
    wanted["candidate"] = start.candidate.as_str().into();
    if let Some(baseline) = &start.baseline {
        wanted["baseline"] = baseline.as_str().into();
    }
    let mut planned = json!({"model": start.model});
    if let Some(policy) = &start.policy {
        wanted["policy"] = read_policy(policy)?;
        planned["policy"] = wanted["policy"].clone();
    }
    if start.force {
        wanted["force"] = true.into();
    }
    if !json {
        match ask_plan(admin, &planned).and_then(|body| parse(&body)) {
            Ok(seen) => print(&plan(&start.model, &seen))?,
            // What is wrong with a request, its start says better.
            Err(error) if error.is::<client::Refused>() => Outcome::Done,
            Err(error) => {
                anstream::eprintln!("notice: no plan: {error:#}");
                Outcome::Done
            }
        };
    }
    let body = serde_json::to_vec(&wanted)?;
    let started = match client::admin(&Method::POST, admin, "/api/v1/rollouts", body) {
        Ok(started) => started,
        Err(error) if start.wait.wait && error.is::<client::Refused>() => {
            anstream::eprintln!("tidegate: not started: {error}");
            return Ok(Outcome::Code(4));
        }
        Err(error) => return Err(error),
    };
    let report: Report = parse(&started)?;
    if !start.wait.wait {
        if json {
            return print(&(started + "\n"));
        }
        let (model, id) = (&report.model, &report.id);
        return print(&format!(
            "{}\n  `tidegate rollout watch {model}` shows it, `tidegate rollout abort {model}` rolls it back; its id is {id}\n",
            standing(&report)
        ));
    }
    Ok(ended(&watch::run(admin, &report.id, (true, start.wait.timeout), json)?))
}

/// The exit code of a rollout that was waited for.
fn ended(watched: &Watched) -> Outcome {
    match watched.report.state {
        State::Promoted => Outcome::Done,
        State::RolledBack => Outcome::No,
        State::Failed | State::Superseded => Outcome::Code(4),
        // Whoever interrupts knows; a script must not take it for a promotion.
        _ => Outcome::Code(3),
    }
}

/// Describes the state of a rollout in a line.
fn standing(report: &Report) -> String {
    let (model, candidate, baseline) = (&report.model, &report.candidate, &report.baseline);
    let mut text =
        format!("{model}: version {candidate} against {baseline}: {}", words::state(report.state));
    if !report.state.is_over() {
        let (step, steps, share) = (report.step + 1, report.steps, words::share(report.weight));
        text += &format!(", step {step} of {steps}, share {share}");
    }
    text
}

fn steer(target: &RolloutTarget, order: &str, json: bool) -> anyhow::Result<Outcome> {
    let admin = &target.server.admin;
    let id = id_of(admin, &target.rollout)?;
    let body = serde_json::to_vec(&said(&target.why))?;
    let path = format!("/api/v1/rollouts/{id}/{order}");
    let body = client::admin(&Method::POST, admin, &path, body)?;
    if json {
        return print(&(body + "\n"));
    }
    let report: Report = parse(&body)?;
    print(&format!("{}\n  {}\n", standing(&report), words::plain(&report.reason)))
}

/// Rollouts as they are listed: of each what the list shows.
#[derive(Debug, Deserialize)]
struct List {
    rollouts: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    model: String,
    baseline: String,
    candidate: String,
    state: State,
    step: usize,
    steps: usize,
    weight: f64,
    reason: String,
    started_at: String,
}

fn list(admin: &str, model: Option<&str>, limit: u32, json: bool) -> anyhow::Result<Outcome> {
    let of = model.map_or(String::new(), |model| format!("&model={}", segment(model)));
    let body = get(admin, &format!("/api/v1/rollouts?limit={limit}{of}"))?;
    if json {
        return print(&(body + "\n"));
    }
    let list: List = parse(&body)?;
    if list.rollouts.is_empty() {
        return print("no rollouts; `tidegate rollout start MODEL VERSION` starts one\n");
    }
    let mut table = table(["id", "model", "versions", "state", "step", "share", "started", "why"]);
    for rollout in list.rollouts {
        table.add_row([
            rollout.id,
            rollout.model,
            format!("{} to {}", rollout.baseline, rollout.candidate),
            words::state(rollout.state).to_owned(),
            format!("{} of {}", rollout.step + 1, rollout.steps),
            words::share(rollout.weight),
            rollout.started_at,
            words::plain(&rollout.reason),
        ]);
    }
    print(&tables::text(&table))
}

fn show(
    admin: &str,
    named: &str,
    html: Option<&Path>,
    markdown: Option<&Path>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let id = id_of(admin, named)?;
    let body = get(admin, &format!("/api/v1/rollouts/{id}"))?;
    let report: Report = parse(&body)?;
    if let Some(file) = html {
        let evidence = get(admin, &format!("/api/v1/rollouts/{id}/evidence"))?;
        let bundle: Bundle = parse(&evidence)?;
        write(file, &page::html(&report, &bundle.trace()))?;
    }
    if let Some(file) = markdown {
        write(file, &page::markdown(&report))?;
    }
    let files: Vec<PathBuf> = [html, markdown].into_iter().flatten().map(Path::to_owned).collect();
    match files.as_slice() {
        _ if json => print(&(body + "\n")),
        [] => print(&page::markdown(&report)),
        files => {
            let written: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            print(&format!("{}: {}\n", standing(&report), written.join(", ")))
        }
    }
}

fn ask_plan(admin: &str, wanted: &Value) -> anyhow::Result<String> {
    client::admin(&Method::POST, admin, "/api/v1/rollouts/plan", serde_json::to_vec(wanted)?)
}

/// A plan as a table: what happens at each step to a candidate that fails more often.
fn plan(model: &str, plan: &Plan) -> String {
    let minutes = |minutes: Option<f64>| match minutes {
        Some(minutes) => words::seconds(minutes * 60.0),
        None => "never".to_owned(),
    };
    let mut head = vec!["step".to_owned(), "share".to_owned(), "passes after".to_owned()];
    let ratios = plan.steps.first().map(|step| step.rollback.as_slice()).unwrap_or_default();
    head.extend(ratios.iter().map(|at| format!("{} x worse", words::digits(at.ratio, 3))));
    let mut table = table([""; 0]);
    table.set_header(head);
    for (step, number) in plan.steps.iter().zip(1..) {
        let mut row =
            vec![format!("{number}"), words::share(step.weight), minutes(step.pass_minutes)];
        row.extend(step.rollback.iter().map(|at| match (at.canary_requests, at.minutes) {
            (Some(requests), Some(_)) => {
                let (after, requests) = (minutes(at.minutes), words::count(requests));
                let met = words::percent(at.users_share);
                format!("out after {after}\n{requests} requests\n{met} of users")
            }
            _ => "not seen".to_owned(),
        }));
        table.add_row(row);
    }
    let (rate, base) = (words::digits(plan.rate_per_second, 3), words::percent(plan.base_rate));
    let mut text =
        format!("plan for {model} at {rate} requests/s, of which {base} fail\n{table}\n");
    let promotes: Vec<_> = (plan.promotes.iter())
        .map(|at| format!("{} x {}", words::digits(at.ratio, 3), words::percent(at.probability)))
        .collect();
    if !promotes.is_empty() {
        text += &wrapped(&format!(
            "promoted in the end, by how much it fails: {}",
            promotes.join(", ")
        ));
    }
    for warning in &plan.warnings {
        text += &wrapped(&format!("warning: {}", words::plain(warning)));
    }
    text
}

/// Text in lines as wide as the terminal, broken between words; elsewhere one line.
pub(super) fn wrapped(text: &str) -> String {
    let columns = table([""; 0]).width().map_or(usize::MAX, usize::from);
    let mut lines = String::new();
    let mut taken = 0;
    for word in text.split(' ') {
        let width = word.width();
        if taken > 0 && taken + 1 + width > columns {
            lines += "\n  ";
            taken = 2;
        } else if taken > 0 {
            lines.push(' ');
            taken += 1;
        }
        lines += word;
        taken += width;
    }
    lines + "\n"
}

/// `tidegate rollout replay`.
fn replay(file: &Path, json: bool) -> anyhow::Result<Outcome> {
    let text = read(file)?;
    let name = file.display();
    let bundle: Value =
        serde_json::from_str(&text).with_context(|| format!("`{name}` is not JSON"))?;
    let replayed = rollout::replay(&bundle)?;
    let equal = replayed.is_equal();
    if json {
        print_json(&replayed)?;
    } else {
        let mut text = String::new();
        for (gate, log_e) in &replayed.log_e {
            text += &format!("{:<16} log_e {log_e:.6}\n", gate.name());
        }
        for difference in &replayed.differences {
            text += &format!("differs: {}\n", words::plain(difference));
        }
        let verdict =
            replayed.verdict.as_ref().map_or("no verdict", |verdict| verdict.state.name());
        let says = if equal { "as the bundle says" } else { "not as the bundle says" };
        print(&format!("{text}{verdict}: {says}\n"))?;
    }
    Ok(if equal { Outcome::Done } else { Outcome::No })
}

/// `tidegate freeze`.
pub(super) fn freeze(
    admin: &str,
    what: Option<FreezeWhat>,
    off: bool,
    why: &Why,
    json: bool,
) -> anyhow::Result<Outcome> {
    let said = serde_json::to_vec(&said(why))?;
    let (method, body) = match what {
        Some(FreezeWhat::Status) => (Method::GET, Vec::new()),
        None if off => (Method::DELETE, said),
        None => (Method::POST, said),
    };
    let body = client::admin(&method, admin, "/api/v1/freeze", body)?;
    if json {
        return print(&(body + "\n"));
    }
    let answer: Value = parse(&body)?;
    let text = |field: &str| words::plain(answer[field].as_str().unwrap_or_default());
    if answer["frozen"] != true {
        return print("not frozen: rollouts start and advance by themselves\n");
    }
    let reason = text("reason");
    let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
    print(&format!(
        "frozen since {} by {}{reason}; gates still roll back; `tidegate freeze --off` thaws\n",
        text("since"),
        text("by")
    ))
}
