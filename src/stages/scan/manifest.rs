//! A CSV, JSONL or Parquet table with a row per picture, read by DataFusion.
//!
//! Columns: `path` (or `file_name`, `filename`), and if wanted `label`, `split` (`gallery` or `train`; `query`, `queries`
//! or `test`), or OML's `is_query` and `is_gallery`. Relative paths count from the manifest's folder.

use std::collections::HashSet;
use std::path::Path;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::prelude::{CsvReadOptions, DataFrame, JsonReadOptions, ParquetReadOptions, SessionContext};

use super::{ImageRef, Scan, ScanError, Split};

const PATH: [&str; 3] = ["path", "file_name", "filename"];

/// Adds the manifest's rows. A row that names no split belongs to `default`.
pub(super) async fn scan(manifest: &Path, default: Split, scan: &mut Scan) -> Result<(), ScanError> {
    let wrong = |reason: String| ScanError::Manifest { path: manifest.to_owned(), reason };
    let frame = read(manifest).await.map_err(|error| wrong(error.strip_backtrace()))?;
    let columns: Vec<String> = frame.schema().fields().iter().map(|field| field.name().clone()).collect();
    let find = |names: &[&str]| columns.iter().position(|column| names.contains(&column.as_str()));
    let Some(path) = find(&PATH) else {
        let found = columns.join(", ");
        return Err(wrong(format!("no column `path` (or file_name, filename); found: {found}")));
    };
    let (label, split) = (find(&["label"]), find(&["split"]));
    let (is_query, is_gallery) = (find(&["is_query"]), find(&["is_gallery"]));
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let mut known: HashSet<(Split, String)> = HashSet::new();
    let mut number = 0;
    for batch in frame.collect().await.map_err(|error| wrong(error.strip_backtrace()))? {
        let paths = Column::new(&batch, Some(path)).map_err(wrong)?;
        let labels = Column::new(&batch, label).map_err(wrong)?;
        let splits = Column::new(&batch, split).map_err(wrong)?;
        let queries = Column::new(&batch, is_query).map_err(wrong)?;
        let galleries = Column::new(&batch, is_gallery).map_err(wrong)?;
        for row in 0..batch.num_rows() {
            number += 1;
            let Some(path) = paths.get(row).filter(|path| !path.is_empty()) else {
                scan.fail(&format!("row {number}"), default, "name", "the row names no picture");
                continue;
            };
            let of_row = splits_of(splits.get(row), queries.get(row), galleries.get(row), default);
            let of_row = of_row.map_err(|reason| wrong(format!("row {number} ({path}): {reason}")))?;
            for split in of_row {
                let file = folder.join(path);
                let id = id(path, folder);
                if !known.insert((split, id.clone())) {
                    let reason = format!("row {number} names {path} again; each picture may stand there once");
                    return Err(wrong(reason));
                }
                if !file.is_file() {
                    let reason = if file.is_dir() { "the row names a folder" } else { "the file is missing" };
                    scan.fail(&id, split, "missing", reason);
                    continue;
                }
                let label = labels.get(row).filter(|label| !label.is_empty()).map(str::to_owned);
                scan.images.push(ImageRef { id, split, label, path: file });
            }
        }
    }
    Ok(())
}

async fn read(manifest: &Path) -> datafusion::error::Result<DataFrame> {
    let context = SessionContext::new();
    let path = manifest.to_string_lossy().into_owned();
    let ending = format!(".{}", manifest.extension().unwrap_or_default().to_string_lossy());
    match ending.to_ascii_lowercase().as_str() {
        // Labels such as 007 and split flags such as 0/1 are text here; nothing is to be guessed.
        ".csv" => {
            let schema = csv_schema(manifest)?;
            let options =
                CsvReadOptions::new().file_extension(&ending).schema(&schema).newlines_in_values(true);
            context.read_csv(path, options).await
        }
        ".parquet" => {
            context.read_parquet(path, ParquetReadOptions::default().file_extension(&ending)).await
        }
        _ => context.read_json(path, JsonReadOptions::default().file_extension(&ending)).await,
    }
}

/// All columns of the header as text.
fn csv_schema(manifest: &Path) -> datafusion::error::Result<datafusion::arrow::datatypes::Schema> {
    use datafusion::arrow::datatypes::{Field, Schema};
    let external = |error: csv::Error| datafusion::error::DataFusionError::External(Box::new(error));
    let mut reader = csv::Reader::from_path(manifest).map_err(external)?;
    let headers = reader.headers().map_err(external)?;
    let fields = headers.iter().map(|name| Field::new(name.trim_start_matches('\u{feff}'), DataType::Utf8, true));
    Ok(Schema::new(fields.collect::<Vec<_>>()))
}

/// A column as text, whatever its type; absent columns give nothing.
struct Column(Option<datafusion::arrow::array::ArrayRef>);

impl Column {
    fn new(batch: &RecordBatch, index: Option<usize>) -> Result<Column, String> {
        let text = |index: usize| {
            cast(batch.column(index), &DataType::Utf8).map_err(|_| {
                format!("column `{}` is not text", batch.schema().field(index).name())
            })
        };
        Ok(Column(index.map(text).transpose()?))
    }

    fn get(&self, row: usize) -> Option<&str> {
        let column = self.0.as_ref()?;
        column.is_valid(row).then(|| column.as_string::<i32>().value(row))
    }
}

/// The sides that a row belongs to: with OML's two flags it may be both.
fn splits_of(
    split: Option<&str>,
    is_query: Option<&str>,
    is_gallery: Option<&str>,
    default: Split,
) -> Result<Vec<Split>, String> {
    if is_query.is_some() || is_gallery.is_some() {
        let mut splits = Vec::new();
        if flag(is_gallery)? {
            splits.push(Split::Gallery);
        }
        if flag(is_query)? {
            splits.push(Split::Query);
        }
        return Ok(splits);
    }
    match split.map(str::to_ascii_lowercase).as_deref() {
        None | Some("") => Ok(vec![default]),
        Some("gallery" | "train" | "index") => Ok(vec![Split::Gallery]),
        Some("query" | "queries" | "test") => Ok(vec![Split::Query]),
        Some(other) => Err(format!("split `{other}` is neither gallery (train) nor query (test)")),
    }
}

fn flag(text: Option<&str>) -> Result<bool, String> {
    match text.map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1") => Ok(true),
        None | Some("" | "false" | "0") => Ok(false),
        Some(other) => Err(format!("`{other}` is neither true nor false")),
    }
}

/// The path as written, `/`-separated, without `./`; absolute ones relative to the manifest's folder where they are below it.
fn id(path: &str, folder: &Path) -> String {
    let path = Path::new(path);
    let relative = path.strip_prefix(folder).unwrap_or(path);
    let parts = relative.components().filter(|part| !matches!(part, std::path::Component::CurDir));
    parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>().join("/").replace("//", "/")
}
