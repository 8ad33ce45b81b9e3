//! tidegate: a model-serving gateway that serves ONNX models and closes the MLOps loop in the data path.
//!
//! The rooms, in reading order; a room uses only rooms of lower layers (ARCHITECTURE.md has the table, a test
//! keeps it).

// vocabulary
pub mod model;
pub mod stats;
pub mod tensor;

// data plane
pub mod drift;
pub mod edge;
pub mod engine;
pub mod monitor;
pub mod serve;
pub mod wire;

// control plane
pub mod dataset;
pub mod feedback;
pub mod lifecycle;
pub mod notify;
pub mod predictions;
pub mod registry;
pub mod rollout;
pub mod source;
pub mod state;
pub mod validation;

// faces
pub mod admin;
pub mod cli;
pub mod config;

pub mod app;
