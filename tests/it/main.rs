//! The product from outside: every test starts the real `tidegate` on free ports and speaks to its sockets.
//!
//! In reading order: the harness (a server, a repository, a raw HTTP client), then one module per promise. A
//! test waits for conditions, never for time; what one server can answer is asked of one server, in tables.
//!
//! Not here: codecs, statistics and units, which are tested beside their code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must stop")]
#![allow(
    clippy::disallowed_methods,
    reason = "in a test a file that cannot be asked about counts as missing"
)]

mod choices;
mod http;
mod models;
mod receiver;
mod replay;
mod repository;
mod run_memory;
mod segments;
mod server;
mod tensors;

mod access;
mod accounts;
mod audit;
mod blame;
mod budget;
mod cli;
mod clients;
mod collection;
mod corpus;
mod dashboards;
mod deadlines;
mod deploy;
mod division;
mod drain;
mod drift;
mod drift_commands;
mod drift_data;
mod engines;
mod errors;
mod evidence;
mod feedback;
mod fuzz;
mod hostile;
mod http1;
mod http2;
mod infer;
mod killers;
mod kills;
mod limits;
mod links;
mod logs;
mod metrics;
mod misread;
mod notify;
#[cfg(feature = "s3")]
mod object_store;
#[cfg(feature = "s3")]
mod object_store_predictions;
mod operations;
mod operators;
mod panics;
mod predictions;
mod profile;
mod prometheus;
mod proof;
mod protocol;
mod proxies;
mod readme;
mod real_models;
mod reload;
mod rollout_commands;
mod rollout_kills;
mod rollouts;
mod shadow;
mod shapes;
mod smuggling;
mod strangers;
mod swap;
mod tidy;
mod traces;
mod traffic;
mod uploads;
mod validate;
mod vanished;
mod verdicts;
mod weights;
