//! Engines: what reads a model and runs it.

pub mod onnx;
