//! The command line: what people and scripts type.
//!
//! Results go to standard output, messages to standard error; `--json` gives every result for machines.
//! Exit codes: 0 done, 1 the answer is no (not healthy, a model that cannot be served, a request refused),
//! 2 the command itself was wrong (arguments, configuration, a server that cannot be reached). Commands that wait for a
//! rollout have more: see `rollout`.

mod audit;
mod backtest;
mod check;
mod client;
mod commands;
mod drift;
mod models;
mod notify;
mod operations;
mod predict;
mod predictions;
mod profile;
mod quality;
mod recorded;
mod replay;
mod rollout;
mod state;
mod tables;
mod terminal;
mod traffic;
mod validate;
mod watch;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;

use commands::{
    AuditCommand, Cli, Command, ConfigCommand, Consent, ModelsCommand, PredictionsCommand,
    StateCommand, Target, TrafficCommand,
};

use crate::config::{self, Findings};

/// Result of a command.
enum Outcome {
    Done,
    /// The answer no, of a command that ran.
    No,
    /// An answer that is one of several.
    Code(u8),
}

/// Reads the arguments and does what they say.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match dispatch(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) if json => {
            let (told, code) = told_in_json(&error);
            // Where nobody reads, the code still says it.
            let _ = print_json(&told);
            code
        }
        Err(error) => {
            if let Some(refused) = error.downcast_ref::<client::Refused>() {
                anstream::eprintln!("tidegate: {refused}");
                return ExitCode::from(1);
            }
            match error.downcast_ref::<Findings>() {
                Some(findings) => anstream::eprintln!("{findings}"),
                None => anstream::eprintln!("tidegate: {error:#}"),
            }
            ExitCode::from(2)
        }
    }
}

/// An error for machines: `error`, and `status`, `errors` or `findings` where there are some.
fn told_in_json(error: &anyhow::Error) -> (serde_json::Value, ExitCode) {
    if let Some(refused) = error.downcast_ref::<client::Refused>() {
        let mut told = serde_json::json!({
            "error": refused.detail,
            "status": refused.status.as_u16(),
        });
        if !refused.errors.is_empty() {
            told["errors"] = refused.errors.clone().into();
        }
        return (told, ExitCode::from(1));
    }
    let mut told = serde_json::json!({ "error": format!("{error:#}") });
    if let Some(findings) = error.downcast_ref::<Findings>() {
        told["error"] = "the configuration has problems".into();
        told["findings"] = serde_json::to_value(&findings.findings).unwrap_or_default();
    }
    (told, ExitCode::from(2))
}

fn dispatch(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Serve(arguments) => {
            crate::app::serve(config::load(arguments.sources())?)?;
            Ok(Outcome::Done)
        }
        Command::Check(arguments) => check::run(&config::load(arguments.sources())?, cli.json),
        Command::Health(server) => client::health(&server.admin, cli.json),
        Command::Predict(arguments) => predict::run(&arguments, cli.json),
        Command::Predictions(PredictionsCommand::Show { id, folder }) => {
            predictions::show(&folder.places()?, &id, cli.json)
        }
        Command::Profile(arguments) => profile::run(&arguments, cli.json),
        Command::Validate(arguments) => validate::run(&arguments, cli.json),
        Command::Replay(arguments) => replay::run(&arguments, cli.json),
        Command::Models(command) => about_models(command, cli.json),
        Command::Traffic(TrafficCommand::Show { model, server }) => {
            traffic::show(&server.admin, &model, cli.json)
        }
        Command::Traffic(TrafficCommand::Set(set)) => traffic::set(&set, cli.json),
        Command::Traffic(TrafficCommand::Reset { model, why, server }) => {
            traffic::reset(&server.admin, &model, &why, cli.json)
        }
        Command::Quality { model, window, server } => {
            quality::show(&server.admin, &model, &window, cli.json)
        }
        Command::Drift(command) => drift::run(command, cli.json),
        Command::Rollout(command) => rollout::run(command, cli.json),
        Command::Freeze { what, off, why, server } => {
            rollout::freeze(&server.admin, what, off, &why, cli.json)
        }
        Command::Rollback { model, to, consent, why, server } => {
            operations::rollback(&Target { model, consent, why, server }, to, cli.json)
        }
        Command::Notify(command) => notify::run(command, cli.json),
        Command::Retrain { model, why, server } => {
            notify::retrain(&server.admin, &model, &why, cli.json)
        }
        Command::Audit(AuditCommand::List { model, limit, folder }) => {
            audit::list(&folder.path()?, model, limit, cli.json)
        }
        Command::Audit(AuditCommand::Verify(folder)) => audit::verify(&folder.path()?, cli.json),
        Command::State(StateCommand::Backup { file, replace, folder }) => {
            state::backup(&folder.path()?, &file, replace, cli.json)
        }
        Command::State(StateCommand::Restore { file, folder }) => {
            state::restore(&file, &folder.path()?, cli.json)
        }
        Command::Config(ConfigCommand::Schema) => print_json(&config::schema()),
        Command::Config(ConfigCommand::Example) => print(&config::example()),
        Command::ProveVersion => {
            let clock = crate::app::SystemClock;
            let (input, output) = (std::io::stdin(), std::io::stdout().lock());
            // Not buffered: what is read beyond a message would lose the open files that follow it.
            let input = std::os::fd::AsFd::as_fd(&input);
            let input = std::fs::File::from(input.try_clone_to_owned()?);
            crate::lifecycle::prove_version(&clock, input, output).map_err(anyhow::Error::msg)?;
            Ok(Outcome::Done)
        }
        Command::Completions { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "tidegate", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

fn about_models(command: ModelsCommand, json: bool) -> anyhow::Result<Outcome> {
    match command {
        ModelsCommand::List(server) => models::list(&server.admin, json),
        ModelsCommand::Show { model, server } => models::show(&server.admin, &model, json),
        ModelsCommand::Load(target) => operations::load(&target, json),
        ModelsCommand::Unload { model, why, server } => {
            let consent = Consent::default();
            operations::unload(&Target { model, consent, why, server }, json)
        }
        ModelsCommand::Unpin(target) => operations::unpin(&target, json),
        ModelsCommand::Alias { model, alias, version, remove: _, consent, why, server } => {
            let target = Target { model, consent, why, server };
            operations::alias(&target, &alias, version, json)
        }
    }
}

/// Writes a result; a reader that has gone away wanted no more.
fn print(text: &str) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Outcome::Done),
    }
}

/// Writes a file as a whole or not at all: a server may look at it meanwhile.
fn write_whole(path: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let aside = path.with_file_name(name);
    let written = std::fs::File::create(&aside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<Outcome> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
