//! imagedex turns folders of labelled pictures into a searchable, *evaluated* image index.
//!
//! ```text
//! scan ──ImageRef──▶ decode ──ImageBatch──▶ embed ──EmbeddingBatch──▶ store ──▶ features (Delta table)
//!                                                                                    │
//! report ◀──Evaluation── evaluate ◀──Hit── engine ◀──EmbeddingBatch── load ◀─────────┘
//! ```
//!
//! Modules are listed in the order in which the data flows through them.

pub mod cli;
pub mod config;
pub mod exit;
pub mod pipeline;

pub mod metric;
pub mod models;
pub mod stats;

pub mod embedders;
pub mod engines;
pub mod stages;
