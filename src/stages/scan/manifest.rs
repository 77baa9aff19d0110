//! A CSV, JSONL or Parquet table with a row per picture, read by DataFusion.
//!
//! Columns: `path` (or `file_name`, `filename`), and if wanted `label`, `split` (`gallery` or `train`; `query` or
//! `test`), or OML's `is_query` and `is_gallery`. Relative paths count from the manifest's folder.
//!
//! Whoever wrote the list must not choose any file of the machine: a row that leads out of the folder, by an absolute path or by
//! `..`, is a failure unless [`ScanOptions::outside`] allows it. A symbolic link is followed: it was put there by who may write
//! in the folder.
//!
//! A manifest may lie in an object store, beside or above its pictures, and a row of any manifest may be a URL (`s3://…`); one that
//! leads out of the manifest's folder is held as any other that does. A manifest in an object store names no file of this machine.
//!
//! The rows keep their order and every value is taken as text: `007` stays a label of three characters.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::prelude::{
    CsvReadOptions, DataFrame, JsonReadOptions, ParquetReadOptions, SessionConfig, SessionContext,
};

use super::source::Object;
use super::{ImageRef, LabelRule, Scan, ScanError, ScanOptions, Source, Split, leads_out};
use crate::objects::{Bucket, ObjectUrl, is_url};
use crate::panics;

const PATH: [&str; 3] = ["path", "file_name", "filename"];

/// Whether `path` is a manifest, by its ending.
pub fn is_manifest(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    matches!(ending.as_str(), "csv" | "jsonl" | "ndjson" | "parquet")
}

/// Adds the manifest's rows. A row that names no split belongs to `default`.
///
/// Where there is no `label` column a pattern is applied to the ids; folders give no labels here, since a manifest's
/// pictures often lie in one folder.
pub(super) async fn scan(
    manifest: &Path,
    default: Split,
    options: &ScanOptions,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let rule = &options.label;
    let wrong = |reason: String| ScanError::Manifest { path: manifest.to_owned(), reason };
    // DataFusion's chain of errors ends in the one that names the row.
    let failed = |error: DataFusionError| wrong(error.strip_backtrace());
    let home = Home::of(manifest).map_err(|error| wrong(error.to_string()))?;
    // One in an object store is read as a copy.
    let (file, _copy) = match &home {
        Home::Store(_) => copy(manifest)?,
        Home::Disk { .. } => (manifest.to_owned(), None),
    };
    // In a task: a damaged Parquet file may make its reader panic.
    let read = tokio::spawn(read(file)).await;
    let (names, batches) = read.map_err(|_| wrong(panics::DAMAGED.to_owned()))?.map_err(failed)?;
    let find = |wanted: &[&str]| wanted.iter().find_map(|name| names.iter().position(|found| found == name));
    let Some(path) = find(&PATH) else {
        let found = names.join(", ");
        return Err(wrong(format!("no column `path` (or file_name, filename); found: {found}")));
    };
    let (label, split) = (find(&["label"]), find(&["split"]));
    let (is_query, is_gallery) = (find(&["is_query"]), find(&["is_gallery"]));
    let folder = home.folder();
    let mut objects: Vec<Row> = Vec::new();
    let mut number = 0;
    for batch in batches {
        let column = |index| Column::new(&batch, index).map_err(wrong);
        let (paths, labels, splits) = (column(Some(path))?, column(label)?, column(split)?);
        let (queries, galleries) = (column(is_query)?, column(is_gallery)?);
        for row in 0..batch.num_rows() {
            number += 1;
            let Some(path) = paths.get(row) else {
                scan.fail(&format!("row {number}"), default, "name", "the row names no picture");
                continue;
            };
            let sides = match is_query.or(is_gallery) {
                Some(_) => flagged(&queries, &galleries, row),
                None => named(splits.get(row), default).map(|split| vec![split]),
            };
            let sides = sides.map_err(|reason| wrong(format!("row {number} ({path}): {reason}")))?;
            if sides.is_empty() {
                scan.skip("rows that are neither query nor gallery");
            }
            for split in sides {
                let id = home.id(path);
                if path.contains('\0') {
                    let reason = format!("the path of row {number} holds a NUL, which no file's name can");
                    scan.fail(&id, split, "name", reason);
                    continue;
                }
                if !options.outside && (is_url(&id) || leads_out(Path::new(&id))) {
                    let reason = format!(
                        "row {number} leads out of the manifest's folder; move the manifest above its pictures, or set \
                         input.outside = true if whoever wrote it may name any file"
                    );
                    scan.fail(&id, split, "outside", reason);
                    continue;
                }
                let given = labels.get(row).map(str::to_owned);
                let label = match rule {
                    LabelRule::Regex(_) if label.is_none() => rule.label(&id),
                    _ => given,
                };
                let file = match home.source(&id) {
                    Some(Source::File(_)) => folder.join(path),
                    Some(Source::Object(Object { url, .. })) => {
                        objects.push(Row { number, id, split, label, url });
                        continue;
                    }
                    _ => {
                        let reason = format!(
                            "row {number} names neither a file nor an object that a manifest here may name"
                        );
                        scan.fail(&id, split, "name", reason);
                        continue;
                    }
                };
                match std::fs::metadata(&file) {
                    Ok(kind) if kind.is_file() => {
                        scan.images.push(ImageRef { id, split, label, source: Source::File(file) });
                    }
                    Ok(_) => scan.fail(
                        &id,
                        split,
                        "not_a_file",
                        format!("row {number} names a folder or a device"),
                    ),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        let reason =
                            format!("the file that row {number} names is missing: {}", file.display());
                        scan.fail(&id, split, "missing", reason);
                    }
                    Err(error) => scan.fail(&id, split, "unreadable", error.to_string()),
                }
            }
        }
    }
    find_objects(objects, scan)
}

/// Where a manifest is: its rows count from there.
enum Home {
    Disk { folder: PathBuf, absolute: PathBuf },
    Store(ObjectUrl),
}

impl Home {
    fn of(manifest: &Path) -> std::io::Result<Home> {
        if let Some(url) = ObjectUrl::of(manifest) {
            return Ok(Home::Store(url.folder()));
        }
        let folder = manifest.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Home::Disk { absolute: std::path::absolute(&folder)?, folder })
    }

    fn folder(&self) -> PathBuf {
        match self {
            Home::Disk { folder, .. } => folder.clone(),
            Home::Store(folder) => PathBuf::from(folder.to_string()),
        }
    }

    /// The id of the picture that a row names.
    fn id(&self, path: &str) -> String {
        match (self, ObjectUrl::parse(path)) {
            (Home::Store(folder), Ok(url))
                if (url.scheme, &url.bucket) == (folder.scheme, &folder.bucket) =>
            {
                folder.name_of(&url.key).map_or(url.to_string(), str::to_owned)
            }
            (_, Ok(url)) => url.to_string(),
            (Home::Disk { folder, absolute }, Err(_)) => id(path, folder, absolute),
            (Home::Store(_), Err(_)) => id(path, Path::new(""), Path::new("")),
        }
    }

    /// Where the picture of an id is; `None` where there is no such place.
    fn source(&self, id: &str) -> Option<Source> {
        if is_url(id) {
            return ObjectUrl::parse(id).ok().map(|url| Source::Object(Object::at(url)));
        }
        match self {
            Home::Disk { folder, .. } => Some(Source::File(folder.join(id))),
            Home::Store(folder) => Some(Source::Object(Object::at(below(folder, id)?))),
        }
    }
}

/// Where the picture with this id is, that `manifest` names.
pub(super) fn source_of(manifest: &Path, id: &str) -> Option<Source> {
    match (is_url(id), ObjectUrl::of(manifest)) {
        (false, None) => Some(Source::File(manifest.parent().unwrap_or(Path::new("")).join(id))),
        (true, _) => ObjectUrl::parse(id).ok().map(|url| Source::Object(Object::at(url))),
        (false, Some(url)) => Some(Source::Object(Object::at(below(&url.folder(), id)?))),
    }
}

/// An object as counted from a folder; `..` leads up, but not out of the bucket. An absolute path is one of a machine.
fn below(folder: &ObjectUrl, name: &str) -> Option<ObjectUrl> {
    let mut parts: Vec<&str> = folder.key.split('/').filter(|part| !part.is_empty()).collect();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(ObjectUrl { key: parts.join("/"), ..folder.clone() })
}

/// A row that names an object.
struct Row {
    number: usize,
    id: String,
    split: Split,
    label: Option<String>,
    url: ObjectUrl,
}

/// Asks which of these objects are there, many at a time.
fn find_objects(rows: Vec<Row>, scan: &mut Scan) -> Result<(), ScanError> {
    let mut by_bucket: std::collections::BTreeMap<_, Vec<Row>> = std::collections::BTreeMap::new();
    for row in rows {
        by_bucket.entry((row.url.scheme, row.url.bucket.clone())).or_default().push(row);
    }
    for rows in by_bucket.into_values() {
        let Some(first) = rows.first() else { continue };
        let bucket = Bucket::of(&first.url)?;
        let found = bucket.look_up(rows.iter().map(|row| row.url.key.clone()).collect())?;
        for (Row { number, id, split, label, url }, found) in rows.into_iter().zip(found) {
            match found {
                Some(found) => {
                    let object = Object { url, size: Some(found.size), e_tag: found.e_tag };
                    scan.images.push(ImageRef { id, split, label, source: Source::Object(object) });
                }
                None => {
                    let reason = format!("the object that row {number} names is missing: {url}");
                    scan.fail(&id, split, "missing", reason);
                }
            }
        }
    }
    Ok(())
}

/// A copy of a manifest in an object store, of the same name, in a folder that goes when the second value does.
fn copy(manifest: &Path) -> Result<(PathBuf, Option<tempfile::TempDir>), ScanError> {
    let wrong =
        |error: std::io::Error| ScanError::Manifest { path: manifest.to_owned(), reason: error.to_string() };
    let url = ObjectUrl::parse(&manifest.to_string_lossy())
        .map_err(|reason| wrong(std::io::Error::other(reason)))?;
    let bucket = Bucket::of(&url)?;
    let found = bucket.look_up(vec![url.key.clone()])?.into_iter().flatten().next();
    let found = found.ok_or_else(|| wrong(std::io::Error::other("there is no such object")))?;
    let folder = tempfile::Builder::new().prefix(".imagedex-").tempdir().map_err(wrong)?;
    let path = folder.path().join(manifest.file_name().unwrap_or_default());
    let file = File::create(&path).map_err(wrong)?;
    bucket.download(&url, found.size, file).map_err(wrong)?;
    Ok((path, Some(folder)))
}

/// The names of the columns, and the rows.
async fn read(manifest: PathBuf) -> datafusion::error::Result<(Vec<String>, Vec<RecordBatch>)> {
    let frame = open(&manifest).await?;
    let names = frame.schema().fields().iter().map(|field| field.name().clone()).collect();
    Ok((names, frame.collect().await?))
}

async fn open(manifest: &Path) -> datafusion::error::Result<DataFrame> {
    // One partition: several would hand over their rows in the order in which they finish.
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    // A URL, because DataFusion reads `*`, `?` and `[` in a plain path as a pattern.
    let external = |error: std::io::Error| DataFusionError::External(Box::new(error));
    let path = std::path::absolute(manifest).map_err(external)?;
    let url =
        url::Url::from_file_path(&path).map(String::from).unwrap_or_else(|()| path.display().to_string());
    let ending = format!(".{}", manifest.extension().unwrap_or_default().to_string_lossy());
    match ending.to_ascii_lowercase().as_str() {
        ".csv" => {
            let schema = header(manifest)?;
            let options =
                CsvReadOptions::new().file_extension(&ending).schema(&schema).newlines_in_values(true);
            context.read_csv(url, options).await
        }
        ".parquet" => {
            footer_fits(manifest)?;
            context.read_parquet(url, ParquetReadOptions::default().file_extension(&ending)).await
        }
        _ => {
            // All rows are looked at: a label may first turn up in a late one.
            let options =
                JsonReadOptions::default().file_extension(&ending).schema_infer_max_records(usize::MAX);
            context.read_json(url, options).await
        }
    }
}

/// A Parquet file ends with the length of its footer; the reader panics where that is more than the file (found by fuzzing).
fn footer_fits(manifest: &Path) -> std::io::Result<()> {
    let mut file = File::open(manifest)?;
    let length = file.metadata()?.len();
    let mut end = [0; 8];
    if length >= 12 {
        file.seek(SeekFrom::End(-8))?;
        file.read_exact(&mut end)?;
        let footer = u32::from_le_bytes([end[0], end[1], end[2], end[3]]);
        if u64::from(footer) + 8 > length {
            return Err(std::io::Error::other(
                "the file is damaged or cut short: its footer is longer than it",
            ));
        }
    }
    Ok(())
}

/// The columns of a CSV file, all as text.
fn header(manifest: &Path) -> datafusion::error::Result<Schema> {
    let external = |error: csv::Error| DataFusionError::External(Box::new(error));
    let mut reader = csv::Reader::from_path(manifest).map_err(external)?;
    let names = reader.headers().map_err(external)?.iter();
    let names =
        names.map(|name| Field::new(name.trim_start_matches('\u{feff}').trim(), DataType::Utf8, true));
    Ok(Schema::new(names.collect::<Vec<_>>()))
}

/// A column as text, whatever its type; an absent one is empty.
struct Column(Option<ArrayRef>);

impl Column {
    fn new(batch: &RecordBatch, index: Option<usize>) -> Result<Column, String> {
        let text = |index: usize| {
            let name = || batch.schema().field(index).name().clone();
            cast(batch.column(index), &DataType::Utf8).map_err(|_| format!("column `{}` is not text", name()))
        };
        Ok(Column(index.map(text).transpose()?))
    }

    /// The value, where there is one; an empty text is none.
    fn get(&self, row: usize) -> Option<&str> {
        let column = self.0.as_ref().filter(|column| column.is_valid(row))?;
        Some(column.as_string::<i32>().value(row)).filter(|text| !text.is_empty())
    }
}

/// The sides that OML's two flags name: both, one, or none (its training rows). Of a single flag, "no" means the other.
fn flagged(queries: &Column, galleries: &Column, row: usize) -> Result<Vec<Split>, String> {
    let flag = |column: &Column| match column.get(row).map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1" | "1.0") => Ok(true),
        None | Some("false" | "0" | "0.0") => Ok(false),
        Some(other) => Err(format!("`{other}` is neither true nor false")),
    };
    let (query, gallery) = match (&queries.0, &galleries.0) {
        (Some(_), None) => (flag(queries)?, !flag(queries)?),
        (None, Some(_)) => (!flag(galleries)?, flag(galleries)?),
        _ => (flag(queries)?, flag(galleries)?),
    };
    let sides = [(gallery, Split::Gallery), (query, Split::Query)];
    Ok(sides.into_iter().filter_map(|(yes, split)| yes.then_some(split)).collect())
}

fn named(split: Option<&str>, default: Split) -> Result<Split, String> {
    match split.map(str::to_ascii_lowercase).as_deref() {
        None => Ok(default),
        Some("gallery" | "train") => Ok(Split::Gallery),
        Some("query" | "test") => Ok(Split::Query),
        Some(other) => {
            let help = "rename it, or leave these rows out of the manifest";
            Err(format!("split `{other}` is neither gallery (train) nor query (test); {help}"))
        }
    }
}

/// The path as written, `/`-separated, without `.` parts; an absolute one below the manifest's folder becomes relative.
fn id(path: &str, folder: &Path, absolute: &Path) -> String {
    let path = Path::new(path);
    let relative = path.strip_prefix(absolute).or_else(|_| path.strip_prefix(folder)).unwrap_or(path);
    let parts = relative.components().filter(|part| !matches!(part, Component::CurDir));
    parts.collect::<PathBuf>().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_that_is_longer_than_the_file_is_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("list.parquet");
        for (bytes, fits) in [(b"PAR1....\x04\0\0\0PAR1", true), (b"PAR1....\x09\0\0\0PAR1", false)] {
            std::fs::write(&path, bytes).expect("writable");
            assert_eq!(footer_fits(&path).is_ok(), fits);
        }
    }

    #[test]
    fn ids_are_paths_as_written_but_clean() {
        let id = |path| id(path, Path::new("lists"), Path::new("/data/lists"));
        assert_eq!(id("./a//b/./1.jpg"), "a/b/1.jpg");
        assert_eq!(id("/data/lists/a/1.jpg"), "a/1.jpg");
        assert_eq!(id("/elsewhere/1.jpg"), "/elsewhere/1.jpg");
        assert_eq!(id("../1.jpg"), "../1.jpg");
    }

    #[test]
    fn splits_have_the_names_that_people_use() {
        assert_eq!(named(Some("Train"), Split::Query), Ok(Split::Gallery));
        assert_eq!(named(Some("test"), Split::Gallery), Ok(Split::Query));
        assert_eq!(named(None, Split::Query), Ok(Split::Query));
        assert!(named(Some("val"), Split::Query).is_err_and(|reason| reason.contains("`val` is neither")));
    }
}
