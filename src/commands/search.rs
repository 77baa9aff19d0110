//! Questions to what a pipeline has stored: pictures like this one, and SQL.

use serde_json::json;

use crate::cli::{Search, Sql};
use crate::config::PipelineConfig;
use crate::engines::{Filter, Query};
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
    let mut index = run.searcher()?;
    if !index.supports(args.metric) {
        let reason = format!("engine {} has no metric {}", index.name(), args.metric);
        return Err(UsageError(reason).into());
    }
    let query = Query { vector: &vector, k: args.k as usize, metric: args.metric };
    let filters = filters(&args.only)?;
    let mut hits = match index.as_server() {
        _ if filters.is_empty() => index.search(&query)?,
        Some(server) => server.search_filtered(&query, &filters)?,
        None => {
            // All of them, of which those that pass: exact, as the engine is.
            let passing = run.passing(&filters)?;
            let mut hits = index.search(&Query { k: usize::MAX, ..query })?;
            hits.retain(|hit| passing.contains(&hit.id));
            hits.truncate(query.k);
            hits
        }
    };
    hits.retain(|hit| args.threshold.is_none_or(|threshold| hit.score >= threshold));
    let found: Vec<String> = hits.iter().map(|hit| hit.id.clone()).collect();
    let labels = run.labels(&found)?;
    let label = |id: &str| labels.get(id);
    let text = if args.json {
        let hits: Vec<_> = hits
            .iter()
            .map(|hit| json!({ "id": hit.id, "label": label(&hit.id), "score": hit.score }))
            .collect();
        let answer = json!({
            "image": args.image.display().to_string(),
            "engine": index.name(),
            "metric": args.metric,
            "hits": hits,
        });
        format!("{answer}\n")
    } else {
        let rows = hits.iter().enumerate().map(|(i, hit)| {
            format!(
                "{:>3}  {:<10.6}  {}  {}\n",
                i + 1,
                hit.score,
                hit.id,
                label(&hit.id).map_or("", String::as_str)
            )
        });
        format!("  #  score       picture  label   ({}, {})\n", args.metric, index.name())
            + &rows.collect::<String>()
    };
    say(text.as_bytes())?;
    Ok(Exit::Done)
}

/// `column=value` of each `--only`.
fn filters(only: &[String]) -> anyhow::Result<Vec<Filter>> {
    /// What every engine knows of a picture.
    const COLUMNS: [&str; 8] = ["id", "label", "sha256", "dhash", "width", "height", "format", "norm"];
    let parse = |text: &String| {
        let (column, value) = text.split_once('=').ok_or_else(|| {
            UsageError(format!("--only {text} is not of the form column=value, such as label=cat"))
        })?;
        if !COLUMNS.contains(&column) {
            return Err(
                UsageError(format!("there is no column {column}; known: {}", COLUMNS.join(", "))).into()
            );
        }
        Ok(Filter { column: column.to_owned(), value: value.to_owned() })
    };
    only.iter().map(parse).collect()
}

/// `imagedex sql`
pub fn sql(args: &Sql) -> anyhow::Result<Exit> {
    let config = PipelineConfig::load(&args.pipeline.pipeline, &args.pipeline.overrides.set)?;
    let run = Run::look(&config)?;
    run.sql(&args.query, args.format)?;
    Ok(Exit::Done)
}
