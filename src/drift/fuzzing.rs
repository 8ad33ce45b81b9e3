//! What must hold for any bytes as a profile: the check of the fuzz target, and of the test over its corpus.
//!
//! It takes whatever bytes come and panics if a promise is broken. Not part of the product.

use crate::{
    model::{Input, Rows, Signature, TensorSpec},
    monitor::WorkerId,
    tensor::{Data, DataType, Shape, Strings, Tensor},
};

use super::{
    activity::Place,
    layout::{Hints, Layout},
    profile::Profile,
    recorder::Recorder,
};

/// Rows that are counted by each profile that fits.
const ROWS: usize = 3;

/// Bytes of the longest message.
const MESSAGE_MAX: usize = 2_000;

/// Any bytes as a version's profile: what is read fits into the signature or says why not, the path counts every value
/// of it once, and messages are short and printable.
pub fn profile(bytes: &[u8]) {
    let profile = match Profile::read(bytes) {
        Ok(profile) => profile,
        Err(error) => return printable(&error.to_string()),
    };
    let again = Profile::read(profile.to_json().as_bytes());
    assert_eq!(again.as_ref().ok(), Some(&profile), "what is written is read back");
    for (signature, names) in signatures() {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        for features_max in [2, 256] {
            let hints = Hints { names: &names, is_batched: true, features_max };
            let (layout, wrong) = Layout::new(&signature, Some(&profile), hints);
            assert_eq!(layout.inputs.len(), signature.inputs.len());
            match wrong {
                Some(wrong) => printable(&wrong),
                None => {
                    assert!(!layout.lacks_inputs(), "a profile is used as a whole or not at all");
                }
            }
            count(&signature, layout);
        }
    }
}

fn printable(message: &str) {
    assert!(message.len() < MESSAGE_MAX, "{message}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
}

/// Inputs as sample models and others have them.
fn signatures() -> Vec<(Signature, &'static [&'static str])> {
    let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        dims: Some(dims.to_vec()),
        view: None,
    };
    let of =
        |inputs: Vec<TensorSpec>| Signature { inputs, rows: Rows::Same, ..Signature::default() };
    vec![
        (of(vec![spec("input", DataType::Fp32, &[-1, 4])]), &["a", "b", "c", "d"]),
        (of(vec![spec("x", DataType::Fp64, &[-1]), spec("kind", DataType::Bytes, &[-1, 1])]), &[]),
        (of(vec![spec("text", DataType::Bytes, &[-1, 1])]), &[]),
        (of(vec![spec("image", DataType::Uint8, &[-1, 2, 2])]), &[]),
        (of(vec![spec("e", DataType::Fp32, &[-1, 2])]), &[]),
        (of(vec![spec("open", DataType::Fp32, &[-1, -1])]), &[]),
    ]
}

/// Counts some rows, with what is missing and what is infinite, and compares the sums.
fn count(signature: &Signature, layout: Layout) {
    let inputs: Vec<Input> = signature.inputs.iter().map(input).collect();
    let features = layout.features.len();
    let recorder = Recorder::new(layout, Place::alone(1), 1 << 20);
    recorder.inputs(WorkerId(0), &inputs, ROWS);
    let stage = recorder.stage();
    assert_eq!(stage.plan.cells.len(), features);
    for (_, shard) in stage.shards() {
        let cells = shard.counts(&stage.plan);
        let inputs = stage.plan.cells.iter().take(stage.layout.inputs_end());
        for (feature, place) in inputs.enumerate() {
            let Some((first, len)) = *place else { continue };
            let sum: u32 = cells[first..first + len].iter().sum();
            let name = &stage.layout.features[feature].name;
            assert_eq!(usize::try_from(sum), Ok(ROWS), "each value of `{name}` has one bin");
        }
    }
}

fn input(spec: &TensorSpec) -> Input {
    let dims = spec.dims.iter().flatten().skip(1).map(|dim| if *dim < 0 { 2 } else { *dim });
    let dims: Vec<i64> = [3].into_iter().chain(dims).collect();
    let count = usize::try_from(dims.iter().product::<i64>()).unwrap_or(0);
    let numbers = [0.0, f64::NAN, f64::INFINITY, -1.0, 1e300, 0.5];
    let numbers = || numbers.into_iter().cycle().take(count);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "any number will do"
    )]
    let data = match spec.datatype {
        DataType::Bytes => {
            let texts = ["", "two Words", "\u{0}\u{1f600}"].into_iter().cycle().take(count);
            Data::Bytes(texts.collect::<Strings>())
        }
        DataType::Fp64 => Data::Fp64(numbers().collect()),
        DataType::Uint8 => Data::Uint8(numbers().map(|number| number as u8).collect()),
        _ => Data::Fp32(numbers().map(|number| number as f32).collect()),
    };
    let shape = Shape::new(&dims).expect("three rows of known dimensions");
    let tensor = Tensor::new(shape, data).expect("as many elements as the shape has");
    Input { name: spec.name.clone(), tensor }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The seeds, in the same order everywhere.
    fn corpus() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/profile");
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn profiles_hold_over_the_corpus() {
        let corpus = corpus();
        assert!(corpus.len() >= 10, "only {} seeds", corpus.len());
        for bytes in &corpus {
            profile(bytes);
        }
    }

    proptest! {
        #[test]
        fn damaged_profiles_are_read_or_refused(
            seed in any::<prop::sample::Index>(),
            wounds in vec((any::<prop::sample::Index>(), 0_usize..4, "[0-9a-x\\[\\],.\":\\n-]{0,3}"), 1..4),
        ) {
            let corpus = corpus();
            let mut bytes = seed.get(&corpus).clone();
            for (at, cut, piece) in wounds {
                let start = at.index(bytes.len() + 1);
                let end = (start + cut).min(bytes.len());
                bytes.splice(start..end, piece.bytes());
            }
            profile(&bytes);
        }
    }
}
