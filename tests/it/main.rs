//! All integration tests in one binary: one link, one start.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

mod bad_input;
mod baseline;
mod datasets;
#[cfg(feature = "distributed")]
mod distributed;
mod elastic;
mod engines;
mod errors;
mod es_node;
mod es_proxy;
mod evaluation;
mod fuzz;
mod gate;
mod golden_features;
mod hostile;
mod html;
mod memory;
#[cfg(feature = "milvus")]
mod milvus;
#[cfg(feature = "milvus")]
mod milvus_node;
mod models;
mod object_stores;
mod opensearch;
mod operations;
mod outputs;
mod parity;
mod plan;
#[cfg(target_os = "linux")]
mod power_loss;
mod process;
mod quickstart;
mod readers;
mod s3_node;
mod setup;
mod several;
mod sql;
mod statistics;
mod storage_faults;
mod store;
mod supply_chain;
mod sweep;
mod tiles;
mod trec;
