//! The secret by which the names of this server's predictions are recognised, also after a restart.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::model::PredictionKey;

/// The key in the state's folder; made from `random` bits where there is none.
///
/// # Errors
/// If it can neither be read nor made; then names are recognised by this process alone.
pub fn secret(state: &Path, random: [u64; 2]) -> io::Result<PredictionKey> {
    let path = state.join("prediction-key");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let bits = u128::from_str_radix(text.trim(), 16).map_err(|_| {
                let what =
                    "is not 32 hexadecimal digits; remove it, and predictions so far are strangers";
                io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", path.display()))
            })?;
            #[expect(clippy::cast_possible_truncation, reason = "the halves")]
            let bits = [(bits >> 64) as u64, bits as u64];
            Ok(PredictionKey::new(bits))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let aside = state.join("prediction-key.incoming");
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&aside)?;
            writeln!(file, "{:016x}{:016x}", random[0], random[1])?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            Ok(PredictionKey::new(random))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let name = secret(folder.path(), [1, u64::MAX]).unwrap().name(1, 2, 3);
        assert!(secret(folder.path(), [5, 6]).unwrap().knows(name));
        fs::write(folder.path().join("prediction-key"), "nonsense").unwrap();
        assert!(secret(folder.path(), [5, 6]).is_err());
    }
}
