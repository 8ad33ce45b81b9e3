//! Instructions of a small request, counted by valgrind: the same on every run, so that a change shows.
//!
//! Needs valgrind and `gungraun-runner` in the version of the library; `make bench` sees to the second.

#![allow(missing_docs, reason = "gungraun's macros make public functions")]

mod requests;

use std::hint::black_box;

use bytes::Bytes;
use gungraun::{library_benchmark, library_benchmark_group, main};
use requests::Served;
use tidegate::{model::InferRequest, tensor::Tensor, wire::v2};

/// A path that has been walked before, so that nothing is counted that only the first request pays.
fn served() -> Served {
    let served = Served::without_engine();
    black_box(served.predict(&requests::FEATURES.into()));
    served
}

fn body() -> Bytes {
    black_box(served());
    requests::FEATURES.into()
}

#[library_benchmark(setup = body)]
#[bench::thirty_floats()]
fn decode_small(body: Bytes) -> (Option<InferRequest>, Bytes) {
    (v2::decode_infer(black_box(&body), None, &v2::Limits::default()).ok(), body)
}

fn encoding() -> (Served, Vec<Tensor>) {
    (served(), requests::answer())
}

#[library_benchmark(setup = encoding)]
#[bench::label_and_probabilities()]
fn encode_small((served, outputs): (Served, Vec<Tensor>)) -> (Vec<u8>, Served) {
    (served.encode(black_box(&outputs)), served)
}

fn predicting() -> (Served, Bytes) {
    (served(), requests::FEATURES.into())
}

#[library_benchmark(setup = predicting)]
#[bench::without_the_engine()]
fn predict_small_own((served, body): (Served, Bytes)) -> (Vec<u8>, Served) {
    (served.predict(black_box(&body)), served)
}

library_benchmark_group!(
    name = small,
    benchmarks = [decode_small, encode_small, predict_small_own]
);
main!(library_benchmark_groups = small);
