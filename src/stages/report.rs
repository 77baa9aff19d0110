use serde::{Deserialize, Serialize};
use std::{path::Path, collections::BTreeMap};
use crate::stages::{evaluate::Evaluation, decode::Failure, store::StoreError};
use crate::stats::{Books, StageStats};
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunReport { pub name: String, pub provenance: serde_json::Value, pub books: Books, pub failures: BTreeMap<String, u64>, pub stages: Vec<StageStats>, pub evaluation: Evaluation }
pub fn write_per_query(_: &Path, _: &Evaluation) -> Result<(), StoreError> { Ok(()) }
pub fn by_kind(_: &[Failure]) -> BTreeMap<String, u64> { BTreeMap::new() }
pub fn write_summary(_: &Path, _: &RunReport) -> Result<(), StoreError> { Ok(()) }
pub fn read_summary(_: &Path) -> Result<RunReport, StoreError> { todo!() }
pub fn write_markdown(_: &Path, _: &RunReport) -> Result<(), StoreError> { Ok(()) }
pub fn terminal(_: &RunReport) -> String { "cosine".into() }
