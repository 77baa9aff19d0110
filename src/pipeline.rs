//! The whole run, top to bottom, on one screen; then each phase.
//!
//! Between phases there are only files: the feature table, and the report's `summary.json`. So each phase can be run
//! alone, from the artefact before it, and a run that was cut off goes on where it was.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::config::{PipelineConfig, is_manifest};
use crate::embedders::{self, Embedder};
use crate::engines::{self, VectorIndex};
use crate::exit::{Exit, UsageError};
use crate::interrupt::{self, STOP};
use crate::lock::WorkLock;
use crate::models::ModelSpec;
use crate::models::card::Card;
use crate::setup;
use crate::stages::decode::{DecodeOptions, Failure, PictureOptions};
use crate::stages::embed::{self, ChunkRule, EmbeddingBatch};
use crate::stages::evaluate::{self, EvaluateOptions, Evaluation};
use crate::stages::report::{self, RunReport};
use crate::stages::scan::{self, ScanOptions, Seen, Split};
use crate::stages::store::{self, CommitFacts, FeatureStore, Provenance};
use crate::stats::{Books, StageStats};

/// Pictures → feature table → engine → measures → report.
pub fn run(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let extracted = run.extract()?;
    if extracted.interrupted {
        return run.close(&extracted);
    }
    let loaded = run.load()?;
    let evaluation = run.evaluate(&loaded)?;
    run.report(&extracted, evaluation)?;
    run.close(&extracted)
}

/// Pictures → feature table.
pub fn extract(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let extracted = run.extract()?;
    print!("{}", extracted.books);
    run.close(&extracted)
}
