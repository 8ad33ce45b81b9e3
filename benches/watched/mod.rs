//! A version whose drift is watched, and requests for it.

use std::{collections::BTreeMap, sync::Arc};

use tidegate::{
    app::SystemClock,
    drift::{Bins, Drift, Feature, Newcomer, Profile, Recorder, Settings},
    model::{Input, ModelName, Rows, Signature, TensorSpec, VersionId},
    monitor::Monitor,
    tensor::{Data, DataType, Shape, Strings, Tensor},
};

/// A recorder of `width` columns of numbers with 16 inner bins each, and a request of `rows`.
pub(crate) fn columns(
    datatype: DataType,
    rows: usize,
    width: usize,
) -> (Arc<Recorder>, Vec<Input>) {
    let edges: Vec<f64> = (0..=16).map(f64::from).collect();
    let feature =
        |column: usize| feature(&format!("x[{column}]"), Bins::Numeric { edges: edges.clone() });
    let numbers = (0..rows * width).map(|index| u8::try_from(index * 7 % 19).unwrap());
    let data = match datatype {
        DataType::Int64 => Data::Int64(numbers.map(|number| i64::from(number) - 1).collect()),
        _ => Data::Fp32(numbers.map(|number| f32::from(number) - 0.5).collect()),
    };
    recorder(datatype, (rows, width), (0..width).map(feature).collect(), data)
}

/// A recorder of a text of 30 categories, and a request of `rows`.
pub(crate) fn categories(rows: usize) -> (Arc<Recorder>, Vec<Input>) {
    let names: Vec<String> = (0..30).map(|number| format!("category {number}")).collect();
    let texts: Strings = (0..rows).map(|row| &names[row * 7 % 30]).collect();
    let bins = Bins::Categorical { categories: names.clone(), others: Vec::new() };
    recorder(DataType::Bytes, (rows, 1), vec![feature("x", bins)], Data::Bytes(texts))
}

/// A recorder of a number with 30 values as categories, and a request of `rows`.
pub(crate) fn codes(rows: usize) -> (Arc<Recorder>, Vec<Input>) {
    let categories = (0..30).map(|number| (number * 1000).to_string()).collect();
    let codes = (0..rows).map(|row| i64::try_from(row * 7 % 30 * 1000).unwrap());
    let bins = Bins::Categorical { categories, others: Vec::new() };
    recorder(DataType::Int64, (rows, 1), vec![feature("x", bins)], Data::Int64(codes.collect()))
}

fn feature(name: &str, bins: Bins) -> Feature {
    let counts = vec![100; bins.len()];
    Feature { name: name.to_owned(), bins, counts, moments: None, sample: Vec::new() }
}

fn recorder(
    datatype: DataType,
    (rows, width): (usize, usize),
    features: Vec<Feature>,
    data: Data,
) -> (Arc<Recorder>, Vec<Input>) {
    let size = |size: usize| i64::try_from(size).unwrap();
    let dims = Some(vec![-1, size(width)]);
    let spec = TensorSpec { name: "x".to_owned(), datatype, dims, view: None };
    let signature = Signature { inputs: vec![spec], rows: Rows::Same, ..Signature::default() };
    let profile = Profile {
        schema: 1,
        rows: 2000,
        digest: String::new(),
        source: String::new(),
        derived: Vec::new(),
        features,
    };
    let monitor = Arc::new(Monitor::new(1, Arc::new(SystemClock)));
    // All rows are counted, however many there are.
    let settings = Settings { values_max: usize::MAX, ..Settings::default() };
    let drift = Drift::new(monitor, 1, settings, BTreeMap::new(), None);
    let given = drift.watch(&Newcomer {
        model: &ModelName::parse("bench").unwrap(),
        version: VersionId::parse("1").unwrap(),
        signature: &signature,
        is_batched: true,
        names: &[],
        identity: "",
        profile: Some(Ok(profile)),
    });
    assert!(given.notes.is_empty(), "{:?}", given.notes);
    let tensor = Tensor::new(Shape::new(&[size(rows), size(width)]).unwrap(), data).unwrap();
    (given.recorder.unwrap(), vec![Input { name: "x".to_owned(), tensor }])
}
