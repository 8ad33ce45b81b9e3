//! `tidegate rollout backtest`: what a policy would have decided on the recorded predictions of two versions.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;

use crate::{
    config::{Flags, Sources},
    model::ModelName,
    rollout::{
        Backtest, Gate, PastSource, Policy, PolicyDraft, State, backtest, past,
        words::{self, count},
    },
};

use super::{
    Outcome,
    commands::variables,
    print, print_json,
    recorded::{Recorded, Wanted},
    rollout::{read_policy, wrapped},
    tables::{self, table},
};

#[derive(Debug, Args)]
#[command(
    after_help = "The table of predictions must hold both versions ([predictions] in the configuration), at the same time or with \
--shift; outcomes are joined by prediction id. Requests are drawn for an arm with the weight of the policy's step, in the \
order of time; the same --seed gives the same decision.

Examples:
  tidegate rollout backtest fraud 4 --baseline 3
  tidegate rollout backtest fraud 4 --baseline 3 --policy careful.toml --path /data/table
  tidegate rollout backtest fraud 4 --baseline 3 --path s3://company/ml/predictions
  tidegate rollout backtest fraud 4 --baseline 3 --shift --classes fine,fraud --json

Exit codes: 0 promoted; 1 rolled back; 3 neither, when the recorded predictions ended; 2 the command or the table failed."
)]
pub(super) struct BacktestArguments {
    /// The model
    #[arg(value_parser = ModelName::parse)]
    model: ModelName,
    /// The version to try
    candidate: u64,
    /// The version to hold it against
    #[arg(long, value_name = "VERSION")]
    baseline: u64,
    /// A policy as TOML or JSON; what it leaves out is the model's
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The folder of the table, or the address of an object store with it [default: `predictions.upload` of the
    /// configuration, else `predictions.path`, `predictions` below `state.path`]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The output with the prediction [default: the only one that can be it]
    #[arg(long, value_name = "OUTPUT")]
    output: Option<String>,
    /// The names of the classes by their number, separated by commas, where labels are names
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    classes: Vec<String>,
    /// Moves the candidate's predictions in time, as if both had begun together
    #[arg(long)]
    shift: bool,
    /// Predictions of each version to take, the oldest first
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    limit: u32,
    /// The seed of the draws
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &BacktestArguments, json: bool) -> anyhow::Result<Outcome> {
    let file = arguments.config.clone();
    let config =
        crate::config::load(Sources { file, environment: variables(), flags: Flags::default() })?;
    let own = config.models.get(&arguments.model).and_then(|model| model.rollout.clone());
    let given = arguments.policy.as_deref().map(read_policy).transpose()?;
    let given = given.map(|written| PolicyDraft::read(&written)).transpose();
    let wrong = |wrong: Vec<String>| anyhow!("the policy is wrong: {}", wrong.join("; "));
    let drafts: Vec<PolicyDraft> = given.map_err(wrong)?.into_iter().chain(own).collect();
    let policy = Policy::from_drafts(&drafts.iter().collect::<Vec<_>>()).map_err(wrong)?;
    let place = arguments.path.clone().unwrap_or_else(|| {
        let upload = config.predictions.upload.as_ref().map(PathBuf::from);
        upload.unwrap_or_else(|| config.predictions.folder(&config.state.path))
    });
    let recorded = Recorded::open(&place, Wanted::Model(arguments.model.as_str()))?;
    let source = PastSource {
        folder: recorded.path().to_owned(),
        model: arguments.model.to_string(),
        baseline: arguments.baseline,
        candidate: arguments.candidate,
        output: arguments.output.clone(),
        classes: arguments.classes.clone(),
        requests_max: usize::try_from(arguments.limit).context("the limit is too large")?,
        shift: arguments.shift,
    };
    anyhow::ensure!(
        source.baseline != source.candidate,
        "a version cannot be tried against itself"
    );
    let (past, mut notes) = past(&source)?;
    let (baseline, candidate) = (source.baseline.to_string(), source.candidate.to_string());
    let versions = (source.model.as_str(), baseline.as_str(), candidate.as_str());
    let mut tested = backtest(&policy, &past, versions, arguments.seed)?;
    tested.notes.append(&mut notes);
    if json {
        print_json(&tested)?;
    } else {
        print(&shown(&tested))?;
    }
    Ok(match tested.state {
        State::Promoted => Outcome::Done,
        State::RolledBack => Outcome::No,
        _ => Outcome::Code(3),
    })
}

fn shown(tested: &Backtest) -> String {
    let rollout = &tested.rollout;
    let (taken, recorded) = (tested.taken, tested.recorded);
    let mut text = format!(
        "{} version {} against version {}\n",
        rollout.model, rollout.candidate, rollout.baseline
    );
    text += &wrapped(&format!(
        "{} of {} recorded predictions of version {}, {} of {} of version {}, {} outcomes",
        count(taken.baseline),
        count(recorded.baseline),
        rollout.baseline,
        count(taken.candidate),
        count(recorded.candidate),
        rollout.candidate,
        count(tested.outcomes)
    ));
    let mut changes = table(["time (UTC)", "after", "state", "step", "why"]);
    for change in rollout.history.iter().filter(|change| change.to != State::Pending) {
        let after = change.at.since_1970().saturating_sub(rollout.started_at.since_1970());
        changes.add_row([
            words::time(change.at).trim_end_matches(" UTC").to_owned(),
            words::seconds(after.as_secs_f64()),
            words::state(change.to).to_owned(),
            format!("{} of {}", change.step + 1, rollout.steps),
            words::plain(&change.why),
        ]);
    }
    text += &tables::text(&changes);
    let mut gates = table(["gate", "evidence", "baseline", "candidate", "ratio"]);
    for gate in
        rollout.gates.iter().filter(|gate| gate.gate != Gate::OutputShift && !words::is_idle(gate))
    {
        gates.add_row([
            gate.gate.name().to_owned(),
            words::evidence(gate.log_e, gate.log_e_threshold),
            words::counts(gate.baseline),
            words::counts(gate.candidate),
            words::ratio(gate.ratio, gate.ratio_lower, gate.ratio_upper),
        ]);
    }
    text += &tables::text(&gates);
    for note in &tested.notes {
        text += &wrapped(&format!("note: {}", words::plain(note)));
    }
    let after = words::seconds(tested.after_seconds);
    text + &match tested.state {
        State::Promoted => format!("promoted after {after}\n"),
        State::RolledBack => format!("rolled back after {after}\n"),
        _ => format!("not decided: the recorded predictions end after {after}\n"),
    }
}
