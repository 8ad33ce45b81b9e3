//! The arguments, with their help.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    config::{self, Findings, Flags, Sources},
    model::ModelName,
    rollout::Span,
    validation::Threshold,
};

use super::{backtest::BacktestArguments, replay::ReplayArguments};

/// Serves ONNX models and watches over them
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Prints results as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

const EXAMPLES: &str = "Examples:
  tidegate serve                             serve ./models on 127.0.0.1:8000
  tidegate serve --repository /srv/models --http 0.0.0.0:8000
  tidegate check                             load every model and say what is wrong
  tidegate predict digits --golden           its golden inputs at a running server, compared
  tidegate profile train.csv --label fraud   how the features of a model are distributed
  tidegate validate fraud 4 --data held-out.csv --threshold accuracy=0.9
  tidegate replay state/predictions --model fraud --version 4   yesterday's requests, today's version
  tidegate models list                       what a running server serves
  tidegate traffic set fraud baseline=3 canary=4:10%
  tidegate rollout start fraud 4             a growing share for version 4, or back by itself
  tidegate rollback fraud                    back to the version before
  tidegate drift status fraud                which features drift, and since when
  tidegate audit list                        what was decided, by whom and why

Exit codes: 0 done; 1 the answer is no; 2 the command, the configuration or the connection failed.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serves models until SIGTERM or Ctrl-C
    #[command(after_help = SETTINGS)]
    Serve(ServeArguments),
    /// Loads every model of the repository without serving, and reports what it finds
    #[command(after_help = SETTINGS)]
    Check(ServeArguments),
    /// Asks a running server whether it takes requests; for container health checks
    Health(Server),
    /// Sends a request to a running server and shows the answer
    Predict(PredictArguments),
    /// Looks predictions up in the table that a server writes
    #[command(subcommand)]
    Predictions(PredictionsCommand),
    /// Learns from training data how features are distributed, so that drift from it can be told
    Profile(ProfileArguments),
    /// Runs a version on labelled data and judges its answers, without a server
    Validate(ValidateArguments),
    /// Runs a version on recorded requests and compares its answers with the recorded ones or another version's
    Replay(ReplayArguments),
    /// Shows what a running server serves, and changes it
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Shows how a model's requests are split between versions, and changes it
    #[command(subcommand)]
    Traffic(TrafficCommand),
    /// Shows how good a model's predictions were, by the outcomes that came and by estimates
    #[command(after_help = QUALITY)]
    Quality {
        /// The model
        model: String,
        /// Predictions of this time before now
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        window: String,
        #[command(flatten)]
        server: Server,
    },
    /// Shows how far live features and outputs are from their reference, and tests it
    #[command(subcommand)]
    Drift(DriftCommand),
    /// Tries a version on a growing share of traffic, and promotes it or rolls it back by evidence
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Lets nothing start, advance or take over by itself; rollbacks still happen
    #[command(after_help = FREEZE)]
    Freeze {
        /// Shows whether everything is frozen, and changes nothing
        #[arg(value_enum, conflicts_with = "off")]
        what: Option<FreezeWhat>,
        /// Thaws
        #[arg(long)]
        off: bool,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        server: Server,
    },
    /// Goes back to an older version of a model, at once, and pins it
    #[command(after_help = ROLLBACK)]
    Rollback {
        /// The model
        model: String,
        /// The version to go back to [default: the newest older one that served, else the next older]
        #[arg(long, value_name = "VERSION")]
        to: Option<u64>,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        server: Server,
    },
    /// Shows where events are sent and what became of them, and tests it
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// Asks for a model to be trained anew: sends `retrain.requested` to webhooks that want it
    #[command(after_help = "Example: tidegate retrain fraud --reason 'labels of March are in'")]
    Retrain {
        /// The model
        #[arg(value_parser = ModelName::parse)]
        model: ModelName,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        server: Server,
    },
    /// Shows and verifies the log of decisions
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Saves and restores the log of decisions
    #[command(subcommand)]
    State(StateCommand),
    /// Prints what can be configured
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Proves one version, asked by the server that starts it
    #[command(hide = true)]
    ProveVersion,
    /// Prints completions for a shell
    #[command(after_help = "Example: tidegate completions bash > /etc/bash_completion.d/tidegate")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

const QUALITY: &str = "Examples:
  tidegate quality fraud
  tidegate quality fraud --window 7d --json

Outcomes come by POST /v2/models/MODEL/feedback.";

const ROLLBACK: &str = "Examples:
  tidegate rollback fraud                          to the version that served before
  tidegate rollback fraud --to 3 --reason 'too many false alarms'

The model stays there, whatever appears in the repository, until `tidegate models unpin fraud`.";

const SETTINGS: &str = "A flag wins over the environment (TIDEGATE__SERVER__HTTP), that over the file, that over the \
                        default. `tidegate config example` prints every key.";

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder with the models [default: ./models]
    #[arg(long, visible_alias = "model-dir", value_name = "DIR")]
    repository: Option<PathBuf>,
    /// The model's name, where the folder is one bare model or an `MLflow` model
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Where predictions are served [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Where metrics, health and the admin API are served [default: 127.0.0.1:8002]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Threads that serve requests [default: the CPUs that this process may use]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// ONNX Runtime's library [default: `ORT_DYLIB_PATH`, lib/ beside this program, the system]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// What is logged: off, error, warn, info, debug, trace, or by module [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How it is logged: text, json, or auto (text on a terminal) [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl ServeArguments {
    pub(super) fn sources(self) -> Sources<Vec<(String, String)>> {
        Sources {
            file: self.config,
            environment: variables(),
            flags: Flags {
                http: self.http,
                admin: self.admin,
                workers: self.workers,
                model_name: self.model_name,
                log_level: self.log_level,
                log_format: self.log_format,
                repository: self.repository,
                onnxruntime: self.onnxruntime,
                ..Flags::default()
            },
        }
    }
}

pub(super) fn variables() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidegate predict sentiment --golden        its golden inputs, and whether the answers are the golden outputs
  tidegate predict sentiment request.json
  echo '{\"inputs\":[{\"name\":\"text\",\"shape\":[1,1],\"datatype\":\"BYTES\",\"data\":[\"lovely\"]}]}' \\
    | tidegate predict sentiment -")]
pub(super) struct PredictArguments {
    /// The model
    pub(super) model: String,
    /// A file with the request as the protocol writes it; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(super) input: Option<PathBuf>,
    /// Sends the golden inputs of the version that answers, instead of a file, and compares the answers with its
    /// golden outputs: exit code 1 if one differs
    #[arg(long, conflicts_with = "input")]
    pub(super) golden: bool,
    /// A repository whose golden.json is taken, of its newest version that has one, instead of what the server loaded
    #[arg(long, visible_alias = "model-dir", value_name = "DIR", requires = "golden")]
    pub(super) repository: Option<PathBuf>,
    /// A version other than the one that traffic goes to
    #[arg(long = "model-version", value_name = "VERSION")]
    pub(super) version: Option<String>,
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", env = "TIDEGATE_URL")]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) server: Server,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Data are CSV (.csv, .tsv), Parquet (.parquet) or numpy.save's (.npy). A model of one input gets all columns \
but the label in the order of the file; a model of several gets each from the column of its name.

Examples:
  tidegate validate iris --data iris.csv --label species
  tidegate validate fraud 4 --data holdout.parquet --threshold accuracy=0.9 --threshold log_loss=0.3
  tidegate validate fraud latest --data holdout.parquet --compare --report report.md
  tidegate validate digits 1 --data images.npy --labels digits.npy --json
  tidegate validate price 2 --data sales.csv --label price --ignore id --threshold mae=12.5

Exit codes: 0 every threshold is reached and the version is not significantly worse; 1 it is not so, or the version cannot \
be loaded or run; 2 the command, the configuration or the data are wrong."
)]
pub(super) struct ValidateArguments {
    /// The model
    #[arg(value_parser = ModelName::parse)]
    pub(super) model: ModelName,
    /// The version: a number, an alias, or `latest` for the highest number in the repository
    #[arg(default_value = "latest")]
    pub(super) version: String,
    /// The labelled data: .csv, .tsv, .parquet or .npy
    #[arg(long, value_name = "FILE")]
    pub(super) data: PathBuf,
    /// The column of the labels, or `last` [default: the only one named label, target, class or y]
    #[arg(long, value_name = "COLUMN", conflicts_with = "labels")]
    pub(super) label: Option<String>,
    /// A file of one column with the labels, where they are not in the data
    #[arg(long, value_name = "FILE")]
    pub(super) labels: Option<PathBuf>,
    /// A column that is neither label nor input, such as an id; may be repeated
    #[arg(long, value_name = "COLUMN")]
    pub(super) ignore: Vec<String>,
    /// The names of the classes by number or column of scores, separated by commas [default: those of `label_filename`]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) classes: Vec<String>,
    /// The class that precision, recall and F1 are about [default: of two, the second; else means over the classes]
    #[arg(long, value_name = "CLASS")]
    pub(super) positive: Option<String>,
    /// The kind of the answers, classes or numbers [default: as outputs and labels say]
    #[arg(long, value_name = "TASK", value_enum)]
    pub(super) task: Option<TaskName>,
    /// The output with the prediction [default: the only one that can be it]
    #[arg(long, value_name = "OUTPUT")]
    pub(super) output: Option<String>,
    /// A value to reach, such as accuracy=0.9: at least for accuracy, precision, recall, f1, `roc_auc` and r2, at most
    /// for `log_loss`, mae and rmse; may be repeated
    #[arg(long = "threshold", value_name = "METRIC=NUMBER")]
    pub(super) thresholds: Vec<Threshold>,
    /// Runs the serving version on the same rows, too, and fails if this one is significantly worse
    #[arg(long)]
    pub(super) compare: bool,
    /// The version to compare with, a number or an alias; implies --compare [default: what serves by the log of
    /// decisions, else the next lower number]
    #[arg(long, value_name = "VERSION")]
    pub(super) against: Option<String>,
    /// The chance of calling a version worse that is as good
    #[arg(long, value_name = "CHANCE", default_value_t = 0.05, value_parser = chance)]
    pub(super) alpha: f64,
    /// Writes a report in Markdown
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    /// Rows of one run, at most those that the model takes
    #[arg(long, value_name = "ROWS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) batch: u32,
    /// Stops after so many rows
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder with the models [default: ./models]
    #[arg(long, visible_alias = "model-dir", value_name = "DIR")]
    repository: Option<PathBuf>,
    /// ONNX Runtime's library [default: `ORT_DYLIB_PATH`, lib/ beside this program, the system]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Data are CSV (.csv, .tsv), Parquet (.parquet) or numpy.save's (.npy), of any size: exactly the rows that the \
model was trained on, without its label. Columns of numbers become numeric features; truth values, and texts if they are \
few, categories; other texts are watched by their length and by their share of known words. A .npy file is one input, named \
as the file.

Examples:
  tidegate profile --model iris train.csv --label species     checked against iris, and beside its latest version
  tidegate profile --model iris --version 3 --repository /srv/models train.csv --label species
  tidegate profile train.csv --label species -o models/iris/1/profile.json
  tidegate profile train-*.parquet --exclude id --categorical zip --categorical channel
  tidegate profile image.npy                        pictures; above 256 numbers by mean, spread and extremes
  tidegate profile vectors.npy --embedding vectors  embeddings, watched by clusters and length
  tidegate profile train.csv --columns age,income --contract credit

Exit codes: 0 written; 1 the version cannot be loaded, or would not use the profile; 2 the command or the data are wrong."
)]
pub(super) struct ProfileArguments {
    /// The data: .csv, .tsv, .parquet or .npy; several files must have the same columns
    #[arg(required = true, value_name = "DATA")]
    pub(super) data: Vec<PathBuf>,
    /// The model that the profile is for: it is checked against the inputs of the version before it is written
    #[arg(long, value_name = "MODEL", value_parser = ModelName::parse)]
    pub(super) model: Option<ModelName>,
    /// The version of --model: a number, an alias, or `latest` [default: latest]
    #[arg(long, value_name = "VERSION", requires = "model")]
    pub(super) version: Option<String>,
    /// The file to write [default: profile.json, beside the version where --model is given]
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// The column of the labels, or `last`: it is left out
    #[arg(long, value_name = "COLUMN")]
    pub(super) label: Option<String>,
    /// A column to leave out, such as an id; may be repeated
    #[arg(long, value_name = "COLUMN")]
    pub(super) exclude: Vec<String>,
    /// The only columns to take, separated by commas
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub(super) columns: Vec<String>,
    /// A column whose numbers or texts are categories, however many; may be repeated
    #[arg(long, value_name = "COLUMN")]
    pub(super) categorical: Vec<String>,
    /// Columns that are one embedding, watched by the nearest of 32 centres and by its length; may be repeated
    #[arg(long, value_name = "NAME=FIRST..LAST")]
    pub(super) embedding: Vec<ColumnRange>,
    /// Columns that are one wide input, watched by mean, spread, extremes and share of zeros; may be repeated
    #[arg(long, value_name = "NAME=FIRST..LAST")]
    pub(super) wide: Vec<ColumnRange>,
    /// The input that the columns are; features are named `INPUT[0]` and on [default: the columns' names; for .npy the
    /// file's]
    #[arg(long, value_name = "INPUT")]
    pub(super) input: Option<String>,
    /// Values of each numeric feature that the profile holds, for exact tests
    #[arg(long, value_name = "ROWS", default_value_t = 10_000)]
    pub(super) sample_rows: u32,
    /// The seed of the samples
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(super) seed: u64,
    /// Prints the contract that the data keep, for the configuration of this model
    #[arg(long, value_name = "MODEL", value_parser = ModelName::parse, conflicts_with = "json")]
    pub(super) contract: Option<ModelName>,
    /// The configuration file, for --model
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder with the models, for --model [default: ./models]
    #[arg(long, visible_alias = "model-dir", value_name = "DIR", requires = "model")]
    repository: Option<PathBuf>,
    /// ONNX Runtime's library, for --model [default: `ORT_DYLIB_PATH`, lib/ beside this program, the system]
    #[arg(long, value_name = "FILE", requires = "model")]
    onnxruntime: Option<PathBuf>,
}

impl ProfileArguments {
    pub(super) fn sources(&self) -> Sources<Vec<(String, String)>> {
        let flags = Flags {
            repository: self.repository.clone(),
            onnxruntime: self.onnxruntime.clone(),
            ..Flags::default()
        };
        Sources { file: self.config.clone(), environment: variables(), flags }
    }
}

/// A name for columns from one to another, or for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColumnRange {
    pub(super) name: String,
    /// The first and the last; `None` for all that are left.
    pub(super) columns: Option<(String, String)>,
}

impl std::str::FromStr for ColumnRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "write NAME=FIRST..LAST with two columns, or NAME for all of them".to_owned();
        let Some((name, columns)) = text.split_once('=') else {
            return Ok(Self { name: text.to_owned(), columns: None });
        };
        let (first, last) = columns.split_once("..").ok_or_else(wrong)?;
        if [name, first, last].contains(&"") {
            return Err(wrong());
        }
        let columns = Some((first.to_owned(), last.to_owned()));
        Ok(Self { name: name.to_owned(), columns })
    }
}

impl std::fmt::Display for ColumnRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.columns {
            Some((first, last)) => write!(f, "{}={first}..{last}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Kinds of a model's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TaskName {
    /// Classes
    Classification,
    /// Numbers
    Regression,
}

impl ValidateArguments {
    pub(super) fn sources(&self) -> Sources<Vec<(String, String)>> {
        let flags = Flags {
            repository: self.repository.clone(),
            onnxruntime: self.onnxruntime.clone(),
            ..Flags::default()
        };
        Sources { file: self.config.clone(), environment: variables(), flags }
    }
}

fn chance(text: &str) -> Result<f64, String> {
    let chance: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if chance > 0.0 && chance < 1.0 {
        return Ok(chance);
    }
    Err("it must lie between 0 and 1, for example 0.05".to_owned())
}

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// Lists models, versions and states
    List(Server),
    /// Shows everything about one model
    Show {
        /// The model
        model: String,
        #[command(flatten)]
        server: Server,
    },
    /// Takes a model into service, with versions that were held back; tries again what failed
    Load(Target),
    /// Takes a model out of service until it is loaded again
    Unload {
        /// The model
        model: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        server: Server,
    },
    /// Lets the repository decide again, after a rollback or an unload
    Unpin(Target),
    /// Gives a version a name that can be used wherever a version can
    #[command(after_help = "Examples:
  tidegate models alias fraud canary 4
  tidegate models alias fraud canary --remove")]
    Alias {
        /// The model
        model: String,
        /// The name: letters, digits, `.`, `_`, `-`, beginning with a letter
        alias: String,
        /// The version that it stands for; it is loaded and stays loaded
        #[arg(required_unless_present = "remove", conflicts_with = "remove")]
        version: Option<u64>,
        /// Takes the name away
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TrafficCommand {
    /// Shows the arms of a model and their shares
    Show {
        /// The model
        model: String,
        #[command(flatten)]
        server: Server,
    },
    /// Splits a model's requests; what is not said stays as it is
    #[command(after_help = TRAFFIC_SET)]
    Set(TrafficSet),
    /// Sends all requests to one version again
    Reset {
        /// The model
        model: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        server: Server,
    },
}

const TRAFFIC_SET: &str = "Examples:
  tidegate traffic set fraud baseline=3 canary=4:10%
  tidegate traffic set fraud baseline=stable canary=4:0.25 --sticky cookie:session
  tidegate traffic set fraud --shadow 5:10%            copies a tenth of the requests to version 5
  tidegate traffic set fraud --shadow none

Whoever is in an arm stays there while it grows.";

#[derive(Debug, Args)]
pub(super) struct TrafficSet {
    /// The model
    pub(super) model: String,
    /// The arms, as NAME=VERSION:SHARE; one is `baseline`, which takes what is left if it has no share
    #[arg(value_name = "ARM", required_unless_present_any = ["sticky", "shadow"])]
    pub(super) arms: Vec<String>,
    /// Keeps a client in its arm: header:NAME, cookie:NAME, parameter:NAME, `request_id` or none
    #[arg(long, value_name = "KEY")]
    pub(super) sticky: Option<String>,
    /// Copies requests to a version that answers nobody, as VERSION:SHARE; none ends it
    #[arg(long, value_name = "VERSION")]
    pub(super) shadow: Option<String>,
    #[command(flatten)]
    pub(super) consent: Consent,
    #[command(flatten)]
    pub(super) why: Why,
    #[command(flatten)]
    pub(super) server: Server,
}

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Starts a rollout, after showing what its policy will and will not see
    #[command(after_help = ROLLOUT_START)]
    Start(RolloutStart),
    /// Shows a rollout live: steps, evidence of each gate, ratios; Ctrl-C leaves it running
    #[command(after_help = EXIT_CODES)]
    Watch {
        /// The rollout's id, or a model for its newest one
        #[arg(value_name = "ID|MODEL")]
        rollout: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        server: Server,
    },
    /// Lists rollouts, the newest first
    List {
        /// Only those of this model
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Only the newest N
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
        #[command(flatten)]
        server: Server,
    },
    /// Says why a rollout stands where it does, as Markdown; or writes the page to a file
    #[command(after_help = "Example: tidegate rollout show fraud --html why.html")]
    Show {
        /// The rollout's id, or a model for its newest one
        #[arg(value_name = "ID|MODEL")]
        rollout: String,
        /// Writes the page, with plots of the evidence, as one HTML file
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Writes the page as a Markdown file
        #[arg(long, value_name = "FILE")]
        markdown: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
    /// Stops a rollout where it is; it goes on counting and still rolls back
    Pause(RolloutTarget),
    /// Lets a paused or held rollout go on
    Resume(RolloutTarget),
    /// Agrees to a step that waits for approval
    Approve(RolloutTarget),
    /// Promotes the candidate now, without the steps and evidence that are left
    Promote(RolloutTarget),
    /// Rolls the candidate back now
    Abort(RolloutTarget),
    /// Says what a policy will and will not see at a model's traffic, and when; changes nothing
    #[command(after_help = "Examples:
  tidegate rollout plan fraud
  tidegate rollout plan fraud --rate 50 --base 0.01 --policy careful.toml")]
    Plan {
        /// The model
        model: String,
        /// Requests per second [default: as seen]
        #[arg(long, value_name = "N")]
        rate: Option<f64>,
        /// Share of requests that fail [default: as seen]
        #[arg(long, value_name = "SHARE")]
        base: Option<String>,
        /// A policy as TOML or JSON; what it leaves out is the model's
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
    /// Says what a policy would have decided, and when, on the recorded predictions of two versions; changes nothing
    Backtest(BacktestArguments),
    /// Repeats a verdict from its evidence alone; exit code 1 if it is another one
    Replay {
        /// A file from `tidegate rollout evidence`; `-` is standard input
        file: PathBuf,
    },
    /// Writes down everything that a rollout decided by
    #[command(after_help = "Example: tidegate rollout evidence fraud -o evidence.json")]
    Evidence {
        /// The rollout's id, or a model for its newest one
        #[arg(value_name = "ID|MODEL")]
        rollout: String,
        /// The file [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
}

const EXIT_CODES: &str = "Exit codes with --wait: 0 promoted; 1 rolled back; 3 held, waiting for approval or still running at \
                          --timeout; 4 failed, superseded or not startable; 2 the command or the connection failed.";

const ROLLOUT_START: &str = "Examples:
  tidegate rollout start fraud 4
  tidegate rollout start fraud 4 --policy careful.toml --reason 'trained on March' --wait --timeout 2h

Exit codes with --wait: 0 promoted; 1 rolled back; 3 held, waiting for approval or still running at --timeout; 4 failed,
superseded or not startable; 2 the command or the connection failed.";

const FREEZE: &str = "Examples:
  tidegate freeze --reason 'incident 4711'
  tidegate freeze status
  tidegate freeze --off";

/// Arguments of `tidegate freeze` beside freezing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FreezeWhat {
    /// Shows whether everything is frozen.
    Status,
}

#[derive(Debug, Args)]
pub(super) struct RolloutStart {
    /// The model
    pub(super) model: String,
    /// The version to try, by number or alias
    pub(super) candidate: String,
    /// The version to hold it against [default: the one that serves]
    #[arg(long, value_name = "VERSION")]
    pub(super) baseline: Option<String>,
    /// A policy as TOML or JSON; what it leaves out is the model's
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,
    /// Starts although the same files were rolled back lately
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) wait: Wait,
    #[command(flatten)]
    pub(super) why: Why,
    #[command(flatten)]
    pub(super) server: Server,
}

/// For scripts that go on when a rollout is over.
#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Waits for the end and tells it by the exit code
    #[arg(long)]
    pub(super) wait: bool,
    /// Stops waiting after a time such as 10m; the rollout goes on
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = time)]
    pub(super) timeout: Option<Duration>,
}

fn time(text: &str) -> Result<Duration, String> {
    let span: Result<Span, _> = serde_json::from_value(text.into());
    span.map(|span| span.0).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(super) struct RolloutTarget {
    /// The rollout's id, or a model for its newest one
    #[arg(value_name = "ID|MODEL")]
    pub(super) rollout: String,
    #[command(flatten)]
    pub(super) why: Why,
    #[command(flatten)]
    pub(super) server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Target {
    /// The model
    pub(super) model: String,
    #[command(flatten)]
    pub(super) consent: Consent,
    #[command(flatten)]
    pub(super) why: Why,
    #[command(flatten)]
    pub(super) server: Server,
}

/// For a version that would otherwise be refused.
#[derive(Debug, Default, Args)]
pub(super) struct Consent {
    /// Lets a version answer that clients of the one before cannot use
    #[arg(long)]
    pub(super) signature_may_change: bool,
}

/// For the audit trail.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Who, for the audit trail [default: the user's name]
    #[arg(long, value_name = "NAME", env = "TIDEGATE_ACTOR")]
    pub(super) actor: Option<String>,
}

impl Why {
    /// The actor, or else the user.
    pub(super) fn who(&self) -> Option<String> {
        let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
        self.actor.clone().or_else(user)
    }
}

#[derive(Debug, Args)]
pub(super) struct Server {
    /// The admin listener of the server; `http://` may be left out
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8002",
        env = "TIDEGATE_ADMIN_URL"
    )]
    pub(super) admin: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum NotifyCommand {
    /// Lists webhooks with their circuits, and the last notifications
    List {
        /// Only the newest N notifications
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
        #[command(flatten)]
        server: Server,
    },
    /// Sends a test to a webhook, or to all, and says what the receivers said
    #[command(after_help = "Exit code 1: a receiver did not take it.

Examples:
  tidegate notify test
  tidegate notify test ops")]
    Test {
        /// The webhook's name [default: all]
        webhook: Option<String>,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum DriftCommand {
    /// Shows a version's alarms and its features, the worst first; without a model, a line for each
    #[command(after_help = DRIFT_STATUS)]
    Status {
        /// The model [default: all]
        model: Option<String>,
        /// Shows every feature, and alarms that are over
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        of: DriftOf,
    },
    /// Shows it live: redrawn each second; a line per change where there is no terminal
    #[command(after_help = "Examples:
  tidegate drift watch fraud
  tidegate drift watch fraud --json | jq -c '.alarms[0]'      a page per change")]
    Watch {
        /// The model
        model: String,
        #[command(flatten)]
        of: DriftOf,
    },
    /// Shows where a feature's values fall, beside where the reference's fell
    #[command(after_help = "Examples:
  tidegate drift show fraud amount
  tidegate drift show fraud 'input[3]' --window 10m
  tidegate drift show fraud output:label --plot label.svg")]
    Show {
        /// The model
        model: String,
        /// The feature, as `tidegate drift status` names it
        feature: String,
        /// Draws both histograms and the course of the PSI as an SVG file
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
        #[command(flatten)]
        of: DriftOf,
    },
    /// Tests raw rows of a window against the reference's, once: p-values, distances, a verdict
    #[command(after_help = DRIFT_TEST)]
    Test(DriftTest),
}

const DRIFT_STATUS: &str = "Examples:
  tidegate drift status
  tidegate drift status fraud --all
  tidegate drift status fraud --window 10m --json | jq '.features[] | select(.psi > 0.2) | .name'
  tidegate drift status fraud || echo 'do not train on this'

Exit codes: 0 no page alarm is open (inconspicuous, learning or not watched); 1 drift; 2 the command or the connection
failed, or there is no such model.";

const DRIFT_TEST: &str = "Numeric features are compared by Kolmogorov and Smirnov's test, categories by the chi-square test.

Examples:
  tidegate drift test fraud
  tidegate drift test fraud --window 10m --drift-type feature
  tidegate drift test fraud --include all --p-value 0.001 --json

Exit codes: 0 no drift; 1 drift; 2 the command or the connection failed, or there is nothing to test.";

/// The version and the time that a page about drift is about.
#[derive(Debug, Args)]
pub(super) struct DriftOf {
    /// The version, by number or alias [default: the one that had requests last]
    #[arg(long, value_name = "VERSION")]
    pub(super) version: Option<String>,
    /// The segment of the rows, by the value of its header or feature [default: all rows]
    #[arg(long, value_name = "VALUE")]
    pub(super) segment: Option<String>,
    /// The time before now, from 1m to 24h [default: `drift.window` of the configuration]
    #[arg(long, value_name = "DURATION")]
    pub(super) window: Option<String>,
    #[command(flatten)]
    pub(super) server: Server,
}

#[derive(Debug, Args)]
pub(super) struct DriftTest {
    /// The model
    pub(super) model: String,
    /// The chance of calling rows different that are not [default: 0.05]
    #[arg(long, value_name = "CHANCE", value_parser = chance)]
    pub(super) p_value: Option<f64>,
    /// The correction for the number of features, for a verdict on all together [default: bonferroni]
    #[arg(long, value_enum)]
    pub(super) correction: Option<DriftCorrection>,
    /// The subject of the verdict: each feature by itself, or all together [default: batch]
    #[arg(long, value_enum)]
    pub(super) drift_type: Option<DriftType>,
    /// The features that are tested [default: inputs]
    #[arg(long, value_enum)]
    pub(super) include: Option<DriftInclude>,
    #[command(flatten)]
    pub(super) of: DriftOf,
}

/// Corrections for testing many features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DriftCorrection {
    /// The p-value shared out equally
    Bonferroni,
    /// Benjamini and Hochberg's
    Fdr,
}

/// Subjects of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DriftType {
    /// Each feature by itself
    Feature,
    /// All features together
    Batch,
}

/// Features that are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DriftInclude {
    /// Values that the model gets
    Inputs,
    /// Values that it answers
    Outputs,
    /// Both
    All,
}

#[derive(Debug, Subcommand)]
pub(super) enum PredictionsCommand {
    /// Shows inputs, outputs and outcome of a prediction; also while a server runs
    #[command(after_help = "Examples:
  tidegate predictions show 692a54f3deadb00100000007a1b2c3d4
  tidegate predictions show 692a54f3deadb00100000007a1b2c3d4 --path /data/table --json
  tidegate predictions show 692a54f3deadb00100000007a1b2c3d4 --path s3://company/ml/predictions

Exit codes: 0 it is shown; 1 it is in no complete file; 2 the command is wrong, or the table cannot be read.")]
    Show {
        /// The prediction's id, from the header x-tidegate-prediction-id
        id: String,
        #[command(flatten)]
        folder: TableFolder,
    },
}

#[derive(Debug, Args)]
pub(super) struct TableFolder {
    /// The configuration file, which names the folder
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder of the table, or the address of an object store with it [default: `predictions.path` of the
    /// configuration, `predictions` below `state.path`; then `predictions.upload`]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

impl TableFolder {
    /// Places of the table, in the order in which they are looked at.
    pub(super) fn places(self) -> Result<Vec<PathBuf>, Findings> {
        if let Some(path) = self.path {
            return Ok(vec![path]);
        }
        let sources =
            Sources { file: self.config, environment: variables(), flags: Flags::default() };
        let config = config::load(sources)?;
        let folder = config.predictions.folder(&config.state.path);
        Ok([folder].into_iter().chain(config.predictions.upload.map(PathBuf::from)).collect())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Lists what was decided, by whom and why; also while a server runs
    #[command(after_help = "Examples:
  tidegate audit list --model fraud --limit 20
  tidegate audit list --json | jq '.[] | select(.actor == \"ana\")'")]
    List {
        /// Only what is about this model
        #[arg(long, value_name = "NAME", value_parser = ModelName::parse)]
        model: Option<ModelName>,
        /// Only the newest N
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
        #[command(flatten)]
        folder: StateFolder,
    },
    /// Verifies every byte of the log, or of a backup; also while a server runs
    #[command(after_help = "Exit code 1 names the first byte that is wrong, and what to do.

Examples:
  tidegate audit verify
  tidegate audit verify --state /mnt/backup/records-monday")]
    Verify(StateFolder),
}

#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Copies the log to a file and verifies the copy; also while a server runs
    #[command(after_help = "Example: tidegate state backup /mnt/backup/records-monday")]
    Backup {
        /// Where the copy goes
        file: PathBuf,
        /// Replaces a file that is there
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        folder: StateFolder,
    },
    /// Makes a backup the log; the server must be stopped, the log that was there is kept
    #[command(after_help = "Example: tidegate state restore /mnt/backup/records-monday")]
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        folder: StateFolder,
    },
}

#[derive(Debug, Args)]
pub(super) struct StateFolder {
    /// The configuration file, which names the folder
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder of the log; to read, also a backup [default: `state.path` of the configuration, ./state]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StateFolder {
    pub(super) fn path(self) -> Result<PathBuf, Findings> {
        if let Some(path) = self.state {
            return Ok(path);
        }
        let sources =
            Sources { file: self.config, environment: variables(), flags: Flags::default() };
        Ok(config::load(sources)?.state.path)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Prints the JSON Schema of the configuration file
    Schema,
    /// Prints a configuration file with every key, its default and its reason
    Example,
}
