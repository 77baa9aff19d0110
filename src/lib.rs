//! imagedex turns folders of labelled pictures into a searchable, *evaluated* image index.
//!
//! ```text
//! scan ──ImageRef──▶ decode ──ImageBatch──▶ embed ──EmbeddingBatch──▶ store ──▶ features (Delta table)
//!                                                                                    │
//! report ◀──Evaluation── evaluate ◀──Hit── engine ◀──EmbeddingBatch── load ◀─────────┘
//! ```
//!
//! Three phases, each restartable from the artefact before it: *extract* (pictures → feature table), *load* (table →
//! engine), *evaluate* (engine → report). `pipeline` calls them in order; `stages` has one file per arrow.

// What a person types, and how it ends.
pub mod cli;
pub mod commands;
pub mod config;
pub mod exit;
pub mod interrupt;
pub mod leftovers;
pub mod lock;
pub mod memory;
pub mod panics;
pub mod plan;
pub mod progress;
pub mod setup;
pub mod text;

// The run, and what it counts.
pub mod pipeline;
pub mod stats;
pub mod sweep;

// What crosses the arrows, and what does the work.
pub mod cluster;
pub mod embedders;
pub mod engines;
pub mod metric;
pub mod models;
pub mod objects;
pub mod stages;

// Other ways to the features.
pub mod exchange;
pub mod sql;
