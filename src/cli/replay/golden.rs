//! `golden.json` from recorded requests: what a version must reproduce from now on before it answers.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::{
    lifecycle::Golden,
    model::Input,
    serve::Version,
    validation::replay::{Pick, Tolerance},
};

use super::{
    super::write_whole,
    arguments::{GoldenFrom, ReplayArguments},
};

const FILE: &str = "golden.json";

/// Place of the file, which must not be there unless it may be replaced.
pub(super) fn place(
    arguments: &ReplayArguments,
    folder: Option<&Path>,
) -> anyhow::Result<Option<PathBuf>> {
    if arguments.golden.is_none() {
        return Ok(None);
    }
    let folder = folder.context("the version is in no folder that golden.json could lie in")?;
    let path = folder.join(FILE);
    if path.try_exists()? && !arguments.force {
        bail!("`{}` is there already; replace it with --force", path.display());
    }
    Ok(Some(path))
}

/// Writes the file; gives what was done in a sentence.
pub(super) fn write(
    arguments: &ReplayArguments,
    path: &Path,
    version: &Version,
    picks: Vec<Pick>,
) -> anyhow::Result<String> {
    let mut cases = Vec::with_capacity(picks.len());
    for Pick { inputs, outputs } in picks {
        let outputs = match arguments.golden_from {
            GoldenFrom::Version => {
                version.evaluate(inputs.clone())?.into_iter().map(Some).collect()
            }
            GoldenFrom::Recorded => outputs,
        };
        let named = version.signature().outputs.iter().zip(outputs);
        let named = named
            .filter_map(|(spec, tensor)| Some(Input { name: spec.name.clone(), tensor: tensor? }));
        let outputs: Vec<Input> = named.collect();
        if !outputs.is_empty() {
            cases.push((inputs, outputs));
        }
    }
    if cases.is_empty() {
        bail!(
            "no row has recorded outputs; leave out --golden-from to take those that the version gives"
        );
    }
    let Tolerance { relative, absolute } = arguments.tolerance;
    let file = Golden::file((relative, absolute), &cases)?;
    write_whole(path, &file).with_context(|| format!("`{}` cannot be written", path.display()))?;
    let wanted = arguments.golden.map_or(0, |wanted| wanted as usize);
    let fewer = if cases.len() < wanted { ": there are no more different rows" } else { "" };
    Ok(format!(
        "{} golden cases are in `{}`{fewer}; from its next load on the version must reproduce them, as `tidegate check` tries",
        cases.len(),
        path.display()
    ))
}
