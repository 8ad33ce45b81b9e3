//! Some requests of many, spread evenly, each of one row and all of them different.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{
    model::Input,
    tensor::{Data, Shape, Strings, Tensor},
};

use super::super::ValidationError;

/// Bytes of all requests that are kept.
const BYTES_MAX: usize = 64 << 20;

/// A request of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Pick {
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// The recorded outputs, by their place in the signature.
    pub outputs: Vec<Option<Tensor>>,
}

/// Requests that are kept for now: every so many of those seen.
#[derive(Debug)]
pub(super) struct Picks {
    wanted: usize,
    every: u64,
    seen: u64,
    kept: Vec<(u64, u64, Pick)>,
    hashes: HashSet<u64>,
    bytes: usize,
}

impl Picks {
    pub(super) fn new(wanted: usize) -> Self {
        let (kept, hashes) = (Vec::new(), HashSet::new());
        Self { wanted, every: 1, seen: 0, kept, hashes, bytes: 0 }
    }

    /// Takes the first row of a run, if it is its turn.
    pub(super) fn offer(
        &mut self,
        inputs: &[Input],
        outputs: Vec<Option<&Tensor>>,
        rows: usize,
    ) -> Result<(), ValidationError> {
        let number = self.seen;
        if self.wanted == 0 {
            return Ok(());
        }
        self.seen += 1;
        if !number.is_multiple_of(self.every) {
            return Ok(());
        }
        let first = |tensor: &Tensor| first_row(tensor, rows);
        let input =
            |input: &Input| Some(Input { name: input.name.clone(), tensor: first(&input.tensor)? });
        let Some(inputs) = inputs.iter().map(input).collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        let hash = hash_of(&inputs);
        if !self.hashes.insert(hash) {
            // The next request has its turn instead.
            self.seen = number;
            return Ok(());
        }
        let outputs = outputs.into_iter().map(|output| output.and_then(first)).collect();
        self.bytes += bytes_of(&inputs);
        if self.bytes > BYTES_MAX {
            return Err(ValidationError::Columns(format!(
                "golden inputs of {} rows have more than {} MiB; ask for fewer with --golden",
                self.wanted,
                BYTES_MAX >> 20
            )));
        }
        self.kept.push((number, hash, Pick { inputs, outputs }));
        if self.kept.len() >= self.wanted.saturating_mul(2) {
            self.halve();
        }
        Ok(())
    }

    /// Keeps every second one.
    fn halve(&mut self) {
        self.every *= 2;
        let every = self.every;
        self.kept.retain(|(number, ..)| number.is_multiple_of(every));
        self.hashes = self.kept.iter().map(|(_, hash, _)| *hash).collect();
        self.bytes = self.kept.iter().map(|(.., pick)| bytes_of(&pick.inputs)).sum();
    }

    /// As many as were wanted, or all there are.
    pub(super) fn finish(self) -> Vec<Pick> {
        let (all, wanted) = (self.kept.len(), self.wanted.min(self.kept.len()));
        let mut kept: Vec<_> = self.kept.into_iter().map(|(.., pick)| Some(pick)).collect();
        (0..wanted).filter_map(|place| kept[place * all / wanted].take()).collect()
    }
}

fn bytes_of(inputs: &[Input]) -> usize {
    inputs.iter().map(|input| input.tensor.raw_len()).sum()
}

fn hash_of(inputs: &[Input]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut raw = Vec::new();
    for input in inputs {
        raw.clear();
        input.tensor.write_raw(&mut raw);
        input.name.hash(&mut hasher);
        raw.hash(&mut hasher);
    }
    hasher.finish()
}

/// The first row of a tensor of so many; `None` if rows are not its first dimension.
fn first_row(tensor: &Tensor, rows: usize) -> Option<Tensor> {
    if rows == 1 {
        return Some(tensor.clone());
    }
    let (first, rest) = tensor.shape().split_first()?;
    if usize::try_from(*first) != Ok(rows) {
        return None;
    }
    let dims: Vec<i64> = std::iter::once(1).chain(rest.iter().copied()).collect();
    let (shape, each) = (Shape::new(&dims)?, tensor.len() / rows);
    macro_rules! cut {
        ($($variant:ident),*) => {
            match tensor.data() {
                $(Data::$variant(values) => Data::$variant(values[..each].to_vec()),)*
                Data::Bytes(all) => {
                    let mut strings = Strings::default();
                    all.iter().take(each).for_each(|text| strings.push(text));
                    Data::Bytes(strings)
                }
                Data::Raw(raw) => {
                    let bytes = each * tensor.datatype().size()?;
                    return Tensor::from_raw(tensor.datatype(), shape, raw.slice(..bytes)).ok();
                }
            }
        };
    }
    let data = cut!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp32, Fp64);
    Tensor::new(shape, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(picks: &mut Picks, values: &[i64]) {
        let rows = i64::try_from(values.len()).unwrap();
        let tensor = Tensor::new(Shape::new(&[rows, 1]).unwrap(), Data::Int64(values.to_vec()));
        let input = Input { name: "x".to_owned(), tensor: tensor.unwrap() };
        picks.offer(&[input], Vec::new(), values.len()).unwrap();
    }

    fn values(picks: Picks) -> Vec<i64> {
        let value = |pick: Pick| pick.inputs[0].tensor.view::<i64>().unwrap()[0];
        picks.finish().into_iter().map(value).collect()
    }

    #[test]
    fn picks_are_spread_and_different() {
        let mut picks = Picks::new(5);
        (0..1000).for_each(|x| offer(&mut picks, &[x, 7]));
        let found = values(picks);
        assert_eq!(found.len(), 5);
        assert!(found.is_sorted() && found[4] >= 600 && found[1] >= 100, "{found:?}");
        let mut picks = Picks::new(5);
        (0..100).for_each(|x| offer(&mut picks, &[x % 3]));
        assert_eq!(values(picks), [0, 1, 2]);
    }
}
