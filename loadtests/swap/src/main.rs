//! Proves hot swapping under load, against the real program: version after version takes over while many clients
//! ask, and every single answer is judged.
//!
//! It says whether requests failed, were dropped, were answered by a mixture of versions or by one that had already
//! been replaced; what swaps do to latencies; and what is left behind in memory. Exit code 1 if anything was wrong.
//!
//! Reading order: `swapping` (a run), `load` (the clients), `truth` (what is right), `report` and `plot`.

mod candidates;
mod load;
mod memory;
mod onnx;
mod plot;
mod report;
mod server;
mod swapping;
mod truth;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{candidates::Bad, load::Pattern, server::Launch};

/// Swaps model versions under load and judges every answer.
#[derive(Debug, Clone, Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// The server to test
    #[arg(long, value_name = "FILE", default_value = "target/release/tidegate")]
    server: PathBuf,
    /// `ONNX Runtime`'s library, if the server does not find it by itself
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Further arguments of `tidegate serve`, such as `--server-argument=--workers=2`
    #[arg(long = "server-argument", value_name = "ARGUMENT")]
    server_arguments: Vec<String>,
    /// Swaps, or bad candidates
    #[arg(long, value_name = "N", default_value_t = 100)]
    swaps: usize,
    /// From one swap's beginning to the next one's, at least
    #[arg(long, value_name = "MS", default_value_t = 300)]
    interval_ms: u64,
    /// Leave swaps to the watching of the folder, without the load call
    #[arg(long)]
    watch: bool,
    /// Puts up candidates that must not take over, instead of good versions
    #[arg(long, value_name = "KIND")]
    bad: Option<Bad>,
    /// `HTTP/1.1` connections
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// `HTTP/2` connections, with 8 requests at a time on each
    #[arg(long, value_name = "N", default_value_t = 0)]
    h2_connections: usize,
    /// Requests per second; without it, connections ask again as soon as they have an answer
    #[arg(long, value_name = "N", conflicts_with = "rate_share")]
    rate: Option<f64>,
    /// The rate as a share of what the server manages at most, measured before
    #[arg(long, value_name = "SHARE")]
    rate_share: Option<f64>,
    /// Requests with binary tensors, the others are JSON
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    binary_share: f64,
    /// Size of each version's weights
    #[arg(long, value_name = "MB", default_value_t = 0)]
    weights_mb: u64,
    /// Version folders that are kept; older ones are removed
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep: u64,
    /// Load without swaps, before them
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    steady: f64,
    /// Binds the server and this program to a core each, such as `0:1`
    #[arg(long, value_name = "SERVER:CLIENT", value_parser = cores)]
    pin: Option<(usize, usize)>,
    /// Threads of clients
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// The most that the p99 of swap windows may be, as a multiple of the p99 before; above is exit code 1
    #[arg(long, value_name = "RATIO")]
    p99_max: Option<f64>,
    /// Draws latencies and memory over time, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Writes all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    options.check()?;
    if let Some((_, core)) = options.pin {
        bind(core)?;
    }
    let findings = swapping::run(&options)?;
    let report = report::Report::new(&findings, &options);
    print!("{report}");
    if let Some(file) = &options.plot {
        fs::write(file, plot::draw(&findings, &options))
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_vec_pretty(&report.json())?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Options {
    fn check(&self) -> Result<()> {
        ensure!(self.connections + self.h2_connections > 0, "there must be a connection");
        ensure!(self.threads > 0, "there must be a thread");
        ensure!((0.0..=1.0).contains(&self.binary_share), "a share is between 0 and 1");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "a rate is above 0");
        ensure!(self.rate_share.is_none_or(|share| share > 0.0), "a share of a rate is above 0");
        ensure!(self.steady.is_finite() && self.steady > 0.0, "the steady time is above 0");
        ensure!(self.keep > 0, "the version that serves must be kept");
        ensure!(self.weights_mb <= 1_024, "weights above 1 GB do not fit into one ONNX file");
        ensure!(
            (self.swaps as u64) < truth::VERSION_MAX,
            "at most {} swaps are exact",
            truth::VERSION_MAX - 1
        );
        Ok(())
    }

    fn launch(&self) -> Launch {
        Launch {
            program: self.server.clone(),
            onnxruntime: self.onnxruntime.clone(),
            core: self.pin.map(|(server, _)| server),
            arguments: self.server_arguments.clone(),
        }
    }

    fn pattern(&self) -> Pattern {
        Pattern {
            connections: self.connections,
            h2_connections: self.h2_connections,
            threads: self.threads,
            rate: self.rate,
            binary_share: self.binary_share,
            weights: self.weights(),
        }
    }

    /// The number of weights, of four bytes each.
    fn weights(&self) -> u64 {
        self.weights_mb * 1_000_000 / 4
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }
}

fn cores(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("`{text}` is not of the form SERVER:CLIENT, such as 0:1");
    let (server, client) = text.split_once(':').ok_or_else(wrong)?;
    Ok((server.parse().map_err(|_| wrong())?, client.parse().map_err(|_| wrong())?))
}

/// Binds this thread, and all that it will start, to a core.
fn bind(core: usize) -> Result<()> {
    ensure!(core < rustix::thread::CpuSet::MAX_CPU, "there is no core {core}");
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("this program cannot be bound to core {core}"))
}
