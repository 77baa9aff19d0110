//! Questions to what a pipeline has stored: pictures like this one, and SQL.

use std::io::Write;

use serde::Serialize;

use crate::cli::{Search, Sql};
use crate::config::{Input, PipelineConfig};
use crate::engines::{Filter, Hit, Query};
use crate::exit::{Exit, UsageError};
use crate::metric::Metric;
use crate::pipeline::Run;
use crate::stages::report::{html, write_whole};
use crate::stages::scan::{Places, Source};
use crate::text::visible;

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
    let query = Query { vector: &vector, k: args.k as usize, metric: args.metric };
    let mut found = run.search(&query, &filters(&args.only)?)?;
    found.hits.retain(|hit| args.threshold.is_none_or(|threshold| hit.score >= threshold));
    let hits =
        found.hits.into_iter().map(|Hit { id, score }| Found { label: found.labels.remove(&id), id, score });
    let answer = Answer {
        image: args.image.display().to_string(),
        engine: found.engine,
        metric: args.metric,
        hits: hits.collect(),
    };
    let text = match &args.html {
        Some(file) => {
            let page = answer.html(&bytes, &config.input);
            write_whole(file, |out| out.write_all(page.as_bytes()))
                .map_err(|reason| anyhow::anyhow!("cannot write {}: {reason}", file.display()))?;
            format!("{}: {} hits\n", file.display(), answer.hits.len())
        }
        None if args.json => format!("{}\n", serde_json::to_string(&answer)?),
        None => answer.table(),
    };
    say(text.as_bytes())?;
    Ok(Exit::Done)
}

/// What a search found, in the words of its outputs.
#[derive(Serialize)]
struct Answer {
    image: String,
    engine: String,
    metric: Metric,
    /// The closest first.
    hits: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    id: String,
    label: Option<String>,
    /// Greater is closer.
    score: f32,
}

impl Answer {
    /// For a terminal.
    fn table(&self) -> String {
        let mut text = format!("  #  score       picture  label   ({}, {})\n", self.metric, self.engine);
        for (i, Found { id, label, score }) in self.hits.iter().enumerate() {
            let label = label.as_deref().unwrap_or_default();
            text += &format!("{:>3}  {score:<10.6}  {}  {}\n", i + 1, visible(id), visible(label));
        }
        text
    }

    /// A page that shows the query, whose bytes are `query`, and the hits, whose files are read from the gallery of `input`.
    fn html(&self, query: &[u8], input: &Input) -> String {
        let thumbnail =
            |bytes: &[u8]| html::thumbnail(bytes, input.max_pixels).map_err(|error| error.to_string());
        let places = Places { root: &input.gallery, images: input.images.as_deref() };
        let ids: Vec<&str> = self.hits.iter().map(|hit| hit.id.as_str()).collect();
        let sources = places.sources(&ids);
        let shown = |source: Option<&Source>| {
            let source = source.ok_or("the gallery holds no picture of this id")?;
            let bytes = source.read().map_err(|error| match source {
                Source::File(path) => format!("{}: {error}", path.display()),
                _ => error.to_string(),
            })?;
            thumbnail(&bytes)
        };
        let mut body = html::figure(&thumbnail(query), &["query"]);
        let count = self.hits.len();
        body +=
            &format!("<p>{count} hits, {}, {}; a greater score is closer</p>\n", self.metric, self.engine);
        body += "<div class=\"pictures\">\n";
        for (i, (Found { id, label, score }, source)) in self.hits.iter().zip(&sources).enumerate() {
            let (head, score) = (label.as_deref().unwrap_or("no label"), format!("{score:.6}"));
            body += &html::figure(&shown(source.as_ref()), &[&format!("{}. {head}", i + 1), &score, id]);
        }
        body += "</div>\n";
        html::page(&format!("Pictures like {}", self.image), &body)
    }
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
