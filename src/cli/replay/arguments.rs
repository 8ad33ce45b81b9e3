//! Arguments of `tidegate replay`.

use std::path::PathBuf;

use clap::Args;

use crate::{
    config::{Flags, Sources},
    model::ModelName,
    validation::replay::Tolerance,
};

use super::super::commands::variables;

#[derive(Debug, Args)]
#[command(
    after_help = "Rows are those of the table of predictions that a server writes, or any CSV, Parquet or .npy file: columns \
`output:NAME` are outputs to compare with, all others inputs. Rows of one prediction run together, as they were sent. Those \
of predictions that failed are left out and counted.

Examples:
  tidegate replay state/predictions --model fraud --version 4       are its answers those of yesterday?
  tidegate replay state/predictions/predictions/fraud/3 --model fraud --version 4 --against 3
  tidegate replay inputs.csv --model fraud --version 4 --against 3 --tolerance 0.001,0.00001 --json
  tidegate replay state/predictions --model fraud --version 4 --server http://127.0.0.1:8000 --speed 10x
  tidegate replay s3://company/ml/predictions --model fraud --version 4
  tidegate replay state/predictions --model fraud --version 4 --golden 20      proven on them from now on

Exit codes: 0 all is equal within the tolerance; 1 it is not so, or the version cannot be loaded or run; 2 the command, \
the configuration or the data are wrong."
)]
pub(in crate::cli) struct ReplayArguments {
    /// The recorded rows: a folder of the table of predictions, or a .parquet, .csv, .tsv or .npy file; or the address
    /// of either in an object store
    #[arg(value_name = "DATA")]
    pub(super) data: PathBuf,
    /// The model
    #[arg(long, value_name = "NAME", value_parser = ModelName::parse)]
    pub(super) model: ModelName,
    /// The version: a number, an alias, or `latest` for the highest number in the repository
    #[arg(long, value_name = "VERSION", default_value = "latest")]
    pub(super) version: String,
    /// Compares with this version's answers to the same rows, not with the recorded outputs
    #[arg(long, value_name = "VERSION")]
    pub(super) against: Option<String>,
    /// The distance that numbers may be apart, as a share of the expected one and in their own unit
    #[arg(long, value_name = "RELATIVE[,ABSOLUTE]", default_value = "0.0001,0.00001", value_parser = tolerance)]
    pub(super) tolerance: Tolerance,
    /// Rows to show of those that differ most
    #[arg(long, value_name = "ROWS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(super) worst: u32,
    /// A column that is no input, such as an id; may be repeated
    #[arg(long, value_name = "COLUMN")]
    pub(super) ignore: Vec<String>,
    /// Rows of one run, where they do not belong to a prediction
    #[arg(long, value_name = "ROWS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) batch: u32,
    /// Asks a running server, whose inference port is there, and not a version that is loaded here
    #[arg(long, value_name = "URL", conflicts_with_all = ["repository", "onnxruntime"])]
    pub(super) server: Option<String>,
    /// The pace of the recorded requests at a server: 1x as they came, 10x ten times as fast, max as fast as it answers
    #[arg(long, value_name = "SPEED", default_value = "max", requires = "server")]
    pub(super) speed: Speed,
    /// Connections to the server, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 8, requires = "server",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) connections: u32,
    /// Writes golden.json beside the version, from so many different rows spread over all: from then on it must
    /// reproduce their outputs before it answers
    #[arg(long, value_name = "N", conflicts_with = "server", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) golden: Option<u32>,
    /// The golden outputs: those that the version gives now, or the recorded ones
    #[arg(long, value_enum, default_value_t = GoldenFrom::Version, requires = "golden")]
    pub(super) golden_from: GoldenFrom,
    /// Replaces a golden.json that is there
    #[arg(long, requires = "golden")]
    pub(super) force: bool,
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

impl ReplayArguments {
    pub(super) fn sources(&self) -> Sources<Vec<(String, String)>> {
        let flags = Flags {
            repository: self.repository.clone(),
            onnxruntime: self.onnxruntime.clone(),
            ..Flags::default()
        };
        Sources { file: self.config.clone(), environment: variables(), flags }
    }
}

/// The pace of requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Speed {
    /// As fast as they are answered.
    Max,
    /// So many times as fast as they were recorded.
    Times(f64),
}

impl std::str::FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let times = text.trim_end_matches('x').parse::<f64>().ok();
        let times = times.filter(|times| (1e-6..=1e6).contains(times));
        times.map(Self::Times).ok_or_else(|| "write 1x, 10x, 0.5x or max".to_owned())
    }
}

/// Sources of golden outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum GoldenFrom {
    /// Outputs that the version gives
    Version,
    /// Recorded outputs
    Recorded,
}

fn tolerance(text: &str) -> Result<Tolerance, String> {
    let number = |text: &str| {
        let number = text.trim().parse::<f64>().ok();
        number
            .filter(|number| *number >= 0.0 && number.is_finite())
            .ok_or_else(|| format!("`{text}` is no distance; write 0.001 or 0.001,0.00001"))
    };
    let (relative, absolute) = text.split_once(',').unwrap_or((text, "0"));
    Ok(Tolerance { relative: number(relative)?, absolute: number(absolute)? })
}
