//! What a model's folder says about the model: `model.toml` or `config.pbtxt`, and the class names they point to.

use crate::model::{ModelDescription, WarmupData};

use super::{
    SourceError,
    error::shown as shortened,
    files::{Files, below},
    model_toml, pbtxt,
    reading::{ReadFault, Refusal},
};

/// The most bytes of a description, and of all class names of a model together.
pub(super) const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
/// The most bytes of the files of a model's `model_warmup` together.
const WARMUP_BYTES_MAX: u64 = 16 << 20;
/// The folder of these files in the model's.
pub(super) const WARMUP_FOLDER: &str = "warmup";
/// The most class names of a model.
const CLASS_NAMES_MAX: usize = 100_000;

/// Reads whichever description there is, and the class names that it points to.
pub(super) fn describe(files: &dyn Files, shown: &str) -> Result<ModelDescription, SourceError> {
    const TOML: &str = model_toml::FILENAME;
    let path = |name: &str| below(shown, name);
    let file = |name: &str| match files.own(name, DESCRIPTION_BYTES_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ReadFault::Missing) => Ok(None),
        Err(fault) => Err(SourceError::from_read(&path(name), fault)),
    };
    let (referrer, description) = match (file(TOML)?, file(pbtxt::FILENAME)?) {
        (None, None) => return Ok(ModelDescription::default()),
        (Some(_), Some(_)) => {
            let folder = if shown.is_empty() { "." } else { shown }.to_owned();
            return Err(SourceError::TwoDescriptions { folder });
        }
        (Some(toml), None) => {
            let read = model_toml::read(&toml).map_err(|fault| {
                let model_toml::TomlFault { line, column, what } = fault;
                SourceError::Description { path: path(TOML), line, column, what }
            });
            (TOML, read?)
        }
        (None, Some(text)) => {
            let read = pbtxt::read(&text).map_err(|error| {
                let pbtxt::PbtxtError { line, column, what } = error;
                SourceError::Description { path: path(pbtxt::FILENAME), line, column, what }
            });
            (pbtxt::FILENAME, read?)
        }
    };
    let mut description = with_class_names(description, files, referrer, shown)?;
    read_warmup(&mut description, files, referrer);
    Ok(description)
}

/// Reads the files of `model_warmup`; what cannot be read is left out, for warm-up is not what a model must have.
fn read_warmup(description: &mut ModelDescription, files: &dyn Files, referrer: &str) {
    let mut bytes_left = WARMUP_BYTES_MAX;
    let inputs = description.warmup.iter_mut().flat_map(|request| request.inputs.values_mut());
    for input in inputs {
        let WarmupData::File(name, bytes) = &mut input.data else { continue };
        let read = files.named(referrer, &below(WARMUP_FOLDER, name), bytes_left).ok();
        bytes_left -= read.as_ref().map_or(0, |read| read.len() as u64).min(bytes_left);
        *bytes = read;
    }
}

/// Adds the class names from the label files of the outputs; `referrer` is the description that names them.
fn with_class_names(
    mut description: ModelDescription,
    files: &dyn Files,
    referrer: &str,
    shown: &str,
) -> Result<ModelDescription, SourceError> {
    let mut bytes_left = DESCRIPTION_BYTES_MAX;
    let mut names_left = CLASS_NAMES_MAX;
    for output in &description.outputs {
        let Some(location) = &output.label_filename else { continue };
        let refused = |source| SourceError::Beside {
            folder: if shown.is_empty() { "." } else { shown }.to_owned(),
            location: shortened(location),
            source,
        };
        let unfit = |what: String| SourceError::ClassNames { path: shortened(location), what };
        let bytes = match files.named(referrer, location, bytes_left) {
            Ok(bytes) => bytes,
            Err(Refusal::TooLarge { .. }) => {
                let what = format!("a model's label files may have {DESCRIPTION_BYTES_MAX} bytes");
                return Err(unfit(what));
            }
            Err(fault) => return Err(refused(fault)),
        };
        bytes_left -= u64::try_from(bytes.len()).unwrap_or(bytes_left);
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| unfit("they are not UTF-8 text, one name a line".to_owned()))?;
        let names: Vec<String> = text.lines().take(names_left + 1).map(str::to_owned).collect();
        names_left = names_left.checked_sub(names.len()).ok_or_else(|| {
            unfit(format!("there are more than {CLASS_NAMES_MAX}, the most of one model"))
        })?;
        description.class_names.insert(output.name.clone(), names);
    }
    Ok(description)
}
