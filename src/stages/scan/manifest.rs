//! A CSV, JSONL or Parquet table with a row per picture, read by DataFusion.
//!
//! Columns: `path` (or `file_name`, `filename`), and if wanted `label` (or another that [`LabelRule::Column`] names), `split`
//! (`gallery` or `train`; `query` or `test`), or OML's `is_query` and `is_gallery`. Relative paths count from the manifest's folder,
//! or from [`ScanOptions::images`].
//!
//! Whoever wrote the list must not choose any file of the machine: a row that leads out of the folder, by an absolute path or by
//! `..`, is a failure unless [`ScanOptions::outside`] allows it. A symbolic link is followed: it was put there by who may write
//! in the folder.
//!
//! A manifest may lie in an object store, beside or above its pictures, and a row of any manifest may be a URL (`s3://…`); one that
//! leads out of the manifest's folder is held as any other that does. Where rows count from a folder of an object store, none names a
//! file of this machine.
//!
//! The rows keep their order and every value is taken as text: `007` stays a label of three characters.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::prelude::{
    CsvReadOptions, DataFrame, JsonReadOptions, ParquetReadOptions, SessionConfig, SessionContext,
};
use tempfile::TempDir;

use super::find::leads_out;
use super::source::Object;
use super::{ImageRef, LabelRule, Scan, ScanError, ScanOptions, Source, Split};
use crate::objects::{Bucket, ObjectUrl, is_url};
use crate::panics;

/// Columns that name the picture, the first that is there.
const PATH: [&str; 3] = ["path", "file_name", "filename"];

/// Whether `path` is a manifest, by its ending.
pub fn is_manifest(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    matches!(ending.as_str(), "csv" | "jsonl" | "ndjson" | "parquet")
}

/// What the names in a manifest count from: `images` if it is given, else its own folder, which may be one of an object store.
pub(super) fn folder(manifest: &Path, images: Option<&Path>) -> PathBuf {
    match (images, ObjectUrl::of(manifest)) {
        (Some(images), _) => images.to_owned(),
        (None, Some(url)) => PathBuf::from(url.folder().to_string()),
        (None, None) => manifest.parent().unwrap_or(Path::new("")).to_owned(),
    }
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
    let folder = folder(manifest, options.images.as_deref());
    let columns = &PATH;
    let rows = Rows { columns, folder: &folder, prefix: "", split: default, labelled_by_folders: false };
    Table::open(manifest).await?.scan(&rows, options, scan).await
}

/// What the rows of a table mean.
pub(super) struct Rows<'a> {
    /// Those that name the picture, the first that is there.
    pub columns: &'a [&'a str],
    /// What relative names count from.
    pub folder: &'a Path,
    /// What goes before a name to make an id of it: nothing, or a folder and a `/`.
    pub prefix: &'a str,
    /// Of a row that names none.
    pub split: Split,
    /// Whether the folders in a name are its class where there is no column for it.
    pub labelled_by_folders: bool,
}

/// A table whose columns are known, and whose rows are not read yet.
pub(super) struct Table<'a> {
    path: &'a Path,
    frame: DataFrame,
    pub columns: Vec<String>,
    /// What is read of one in an object store; it goes with the table.
    _copy: Option<TempDir>,
}

impl Table<'_> {
    pub(super) async fn open(path: &Path) -> Result<Table<'_>, ScanError> {
        let (file, copy) = match ObjectUrl::of(path) {
            Some(url) => copy(path, &url)?,
            None => (path.to_owned(), None),
        };
        let frame = careful(path, async move { open(&file).await }).await?;
        let columns = frame.schema().fields().iter().map(|field| field.name().clone()).collect();
        Ok(Table { path, frame, columns, _copy: copy })
    }

    pub(super) async fn scan(
        self,
        rows: &Rows<'_>,
        options: &ScanOptions,
        scan: &mut Scan,
    ) -> Result<(), ScanError> {
        let Table { path: manifest, frame, columns, _copy } = self;
        let wrong = |reason: String| ScanError::Manifest { path: manifest.to_owned(), reason };
        let batches = careful(manifest, frame.collect()).await?;
        let find =
            |wanted: &[&str]| wanted.iter().find_map(|name| columns.iter().position(|found| found == name));
        let found = || format!("found: {}", columns.join(", "));
        let Some(path) = find(rows.columns) else {
            let (first, rest) = rows.columns.split_first().unwrap_or((&"path", &[]));
            return Err(wrong(format!("no column `{first}` (or {}); {}", rest.join(", "), found())));
        };
        let label = match &options.label {
            LabelRule::Column(column) => match find(&[column]) {
                None => {
                    let (what, path, column) = (rows.split.input(), manifest.to_owned(), column.clone());
                    return Err(ScanError::NoColumn { what, path, column, found: found() });
                }
                label => label,
            },
            _ => find(&["label"]),
        };
        let split = find(&["split"]);
        let (is_query, is_gallery) = (find(&["is_query"]), find(&["is_gallery"]));
        let place = Place::of(rows.folder, options, "manifest").map_err(|error| wrong(error.to_string()))?;
        let mut objects = Objects::default();
        let mut number = 0;
        for batch in batches {
            let column = |index| Column::new(&batch, index).map_err(wrong);
            let (paths, labels, splits) = (column(Some(path))?, column(label)?, column(split)?);
            let (queries, galleries) = (column(is_query)?, column(is_gallery)?);
            for row in 0..batch.num_rows() {
                number += 1;
                let Some(path) = paths.get(row) else {
                    scan.fail(&format!("row {number}"), rows.split, "name", "the row names no picture");
                    continue;
                };
                let sides = match is_query.or(is_gallery) {
                    Some(_) => flagged(&queries, &galleries, row),
                    None => named(splits.get(row), rows.split).map(|split| vec![split]),
                };
                let sides = sides.map_err(|reason| wrong(format!("row {number} ({path}): {reason}")))?;
                if sides.is_empty() {
                    scan.skip("rows that are neither query nor gallery");
                }
                for split in sides {
                    let name = place.name(path);
                    let id = if is_url(&name) { name.clone() } else { format!("{}{name}", rows.prefix) };
                    let listed = format!("row {number}");
                    match place.picture(path, &name, &listed) {
                        Err((kind, reason)) => scan.fail(&id, split, kind, reason),
                        Ok(source) => {
                            let label = match &options.label {
                                _ if label.is_some() => labels.get(row).map(str::to_owned),
                                rule @ LabelRule::Regex(_) => rule.label(&id),
                                rule if rows.labelled_by_folders => rule.label(&name),
                                _ => None,
                            };
                            objects.add(listed, ImageRef { id, split, label, source }, scan);
                        }
                    }
                }
            }
        }
        objects.find(scan)
    }
}

/// What the names of a list count from.
pub(super) enum Home {
    Disk(PathBuf),
    Store(ObjectUrl),
}

impl Home {
    pub(super) fn of(folder: &Path) -> Home {
        ObjectUrl::of(folder).map_or_else(|| Home::Disk(folder.to_owned()), Home::Store)
    }

    /// Where the picture of an id is; `None` where there is no such place.
    pub(super) fn source(&self, id: &str) -> Option<Source> {
        if is_url(id) {
            return ObjectUrl::parse(id).ok().map(|url| Source::Object(Object::at(url)));
        }
        match self {
            Home::Disk(folder) => Some(Source::File(folder.join(id))),
            Home::Store(folder) => Some(Source::Object(Object::at(below(folder, id)?))),
        }
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

/// Where the pictures are that a list names.
pub(super) struct Place<'a> {
    home: Home,
    /// The folder, in whole.
    absolute: PathBuf,
    options: &'a ScanOptions,
    /// What to call the list.
    list: &'a str,
}

impl<'a> Place<'a> {
    /// Errors: there is no current folder to count from.
    pub(super) fn of(folder: &Path, options: &'a ScanOptions, list: &'a str) -> io::Result<Place<'a>> {
        let home = Home::of(folder);
        let absolute = match &home {
            Home::Disk(folder) => std::path::absolute(folder)?,
            Home::Store(_) => PathBuf::new(),
        };
        Ok(Place { home, absolute, options, list })
    }

    /// What a picture is called whose path is written so: as counted from the folder, where it lies below it.
    pub(super) fn name(&self, path: &str) -> String {
        match (&self.home, ObjectUrl::parse(path)) {
            (Home::Store(folder), Ok(url))
                if (url.scheme, &url.bucket) == (folder.scheme, &folder.bucket) =>
            {
                folder.name_of(&url.key).map_or(url.to_string(), str::to_owned)
            }
            (_, Ok(url)) => url.to_string(),
            (Home::Disk(folder), Err(_)) => id(path, folder, &self.absolute),
            (Home::Store(_), Err(_)) => id(path, Path::new(""), Path::new("")),
        }
    }

    /// The picture at `path`, as it is written; `name` is the same, cleaned. Of a file it is known to be there, of an object not yet.
    /// Errors: the kind of failure, and the reason.
    pub(super) fn picture(
        &self,
        path: &str,
        name: &str,
        row: &str,
    ) -> Result<Source, (&'static str, String)> {
        if path.contains('\0') {
            return Err(("name", format!("the path of {row} holds a NUL, which no file's name can")));
        }
        let list = self.list;
        if !self.options.outside && (is_url(name) || leads_out(Path::new(name))) {
            let reason = match self.options.images {
                None => format!(
                    "{row} leads out of the {list}'s folder; move the {list} above its pictures, or set \
                     input.outside = true if whoever wrote it may name any file"
                ),
                Some(_) => format!(
                    "{row} leads out of input.images; name a folder above it there, or set input.outside = true if \
                     whoever wrote the {list} may name any file"
                ),
            };
            return Err(("outside", reason));
        }
        let file = match (&self.home, self.home.source(name)) {
            (Home::Disk(folder), Some(Source::File(_))) => folder.join(path),
            (_, Some(source)) => return Ok(source),
            (_, None) => {
                let reason = format!("{row} names neither a file nor an object that this {list} may name");
                return Err(("name", reason));
            }
        };
        match std::fs::metadata(&file) {
            Ok(kind) if kind.is_file() => Ok(Source::File(file)),
            Ok(_) => Err(("not_a_file", format!("{row} names a folder or a device"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(("missing", format!("the file that {row} names is missing: {}", file.display())))
            }
            Err(error) => Err(("unreadable", error.to_string())),
        }
    }
}

/// The objects that a list names, each with its row: whether they are there is asked of many at a time.
#[derive(Default)]
pub(super) struct Objects(BTreeMap<String, Vec<(String, ImageRef, Object)>>);

impl Objects {
    /// Keeps a picture that is an object; another one is among those of `scan` at once.
    pub(super) fn add(&mut self, row: String, image: ImageRef, scan: &mut Scan) {
        match image.source.clone() {
            Source::Object(object) => {
                let bucket = format!("{}://{}", object.url.scheme.name(), object.url.bucket);
                self.0.entry(bucket).or_default().push((row, image, object));
            }
            _ => scan.images.push(image),
        }
    }

    /// Asks which of them are there.
    pub(super) fn find(self, scan: &mut Scan) -> Result<(), ScanError> {
        for rows in self.0.into_values() {
            let Some((_, _, first)) = rows.first() else { continue };
            let bucket = Bucket::of(&first.url)?;
            let found = bucket.look_up(rows.iter().map(|(_, _, object)| object.url.key.clone()).collect())?;
            for ((row, image, Object { url, .. }), found) in rows.into_iter().zip(found) {
                match found {
                    Some(found) => {
                        let object = Object { url, size: Some(found.size), e_tag: found.e_tag };
                        scan.images.push(ImageRef { source: Source::Object(object), ..image });
                    }
                    None => {
                        let reason = format!("the object that {row} names is missing: {url}");
                        scan.fail(&image.id, image.split, "missing", reason);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A copy of a manifest in an object store, of the same name, in a folder that goes when the second value does.
fn copy(manifest: &Path, url: &ObjectUrl) -> Result<(PathBuf, Option<TempDir>), ScanError> {
    let wrong =
        |error: io::Error| ScanError::Manifest { path: manifest.to_owned(), reason: error.to_string() };
    let bucket = Bucket::of(url)?;
    let found = bucket.look_up(vec![url.key.clone()])?.into_iter().flatten().next();
    let found = found.ok_or_else(|| wrong(io::Error::other("there is no such object")))?;
    let folder = tempfile::Builder::new().prefix(".imagedex-").tempdir().map_err(wrong)?;
    let path = folder.path().join(manifest.file_name().unwrap_or_default());
    let file = File::create(&path).map_err(wrong)?;
    bucket.download(url, found.size, file).map_err(wrong)?;
    Ok((path, Some(folder)))
}

/// In a task: a damaged Parquet file may make its reader panic.
async fn careful<T: Send + 'static>(
    manifest: &Path,
    work: impl Future<Output = datafusion::error::Result<T>> + Send + 'static,
) -> Result<T, ScanError> {
    let wrong = |reason: String| ScanError::Manifest { path: manifest.to_owned(), reason };
    let done = tokio::spawn(work).await.map_err(|_| wrong(panics::DAMAGED.to_owned()))?;
    // DataFusion's chain of errors ends in the one that names the row.
    done.map_err(|error| wrong(error.strip_backtrace()))
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
