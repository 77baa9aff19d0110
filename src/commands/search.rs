//! Questions to what a pipeline has stored: pictures like this one, and SQL.

use serde_json::json;

use crate::cli::{Search, Sql};
use crate::config::PipelineConfig;
use crate::engines::Query;
use crate::exit::{Exit, UsageError};
use crate::pipeline::Run;

use super::{read_picture, say};

/// `imagedex search`
pub fn search(args: &Search) -> anyhow::Result<Exit> {
    let mut overrides = args.overrides.set.clone();
    if let Some(engine) = &args.engine {
        overrides.push(format!("load.engine={engine}"));
    }
    let config = PipelineConfig::load(&args.pipeline, &overrides)?;
    let bytes = read_picture(&args.image)?;
    let run = Run::look(&config)?;
    let vector = run.embed_picture(&args.image, &bytes)?;
    let loaded = run.load()?;
    if !loaded.index.supports(args.metric) {
        let reason = format!("engine {} has no metric {}", loaded.index.name(), args.metric);
        return Err(UsageError(reason).into());
    }
    let query = Query { vector: &vector, k: args.k as usize, metric: args.metric };
    let mut hits = loaded.index.search(&query)?;
    hits.retain(|hit| args.threshold.is_none_or(|threshold| hit.score >= threshold));
    let label = |id: &str| loaded.label(id);
    let text = if args.json {
        let hits: Vec<_> = hits
            .iter()
            .map(|hit| json!({ "id": hit.id, "label": label(&hit.id), "score": hit.score }))
            .collect();
        let answer = json!({
            "image": args.image.display().to_string(),
            "engine": loaded.index.name(),
            "metric": args.metric,
            "hits": hits,
        });
        format!("{answer}\n")
    } else {
        let rows = hits.iter().enumerate().map(|(i, hit)| {
            format!("{:>3}  {:<10.6}  {}  {}\n", i + 1, hit.score, hit.id, label(&hit.id).unwrap_or_default())
        });
        format!("  #  score       picture  label   ({}, {})\n", args.metric, loaded.index.name())
            + &rows.collect::<String>()
    };
    say(text.as_bytes())?;
    Ok(Exit::Done)
}

/// `imagedex sql`
pub fn sql(args: &Sql) -> anyhow::Result<Exit> {
    let config = PipelineConfig::load(&args.pipeline.pipeline, &args.pipeline.overrides.set)?;
    let run = Run::look(&config)?;
    run.sql(&args.query, args.format)?;
    Ok(Exit::Done)
}
