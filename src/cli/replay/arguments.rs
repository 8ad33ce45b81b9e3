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

Exit codes: 0 all is equal within the tolerance; 1 it is not so, or the version cannot be loaded or run; 2 the command, \
the configuration or the data are wrong."
)]
pub(in crate::cli) struct ReplayArguments {
    /// The recorded rows: a folder of the table of predictions, or a .parquet, .csv, .tsv or .npy file
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
