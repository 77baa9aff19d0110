//! Rows replaced, added and removed in one commit, in bounded memory.
//!
//! Delta's own MERGE would do it, but it joins the whole table, vectors and their former values included, and then holds each
//! file until it knows whether to keep it: 6 kB for each picture of the table. Here each file that holds one of the keys is copied
//! without them, row group by row group, and the new rows follow in the order given. What a newcomer would get wrong: a commit
//! with change data is read from its change data alone, so every row that comes or goes must be in it, new ones too.
//!
//! Memory: the keys, and one row group for each of the two files that are being written (some 20 MB with 512 numbers).

use std::collections::{HashMap, HashSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, new_null_array,
};
use datafusion::arrow::compute::{cast, filter_record_batch, not};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use deltalake::kernel::transaction::CommitBuilder;
use deltalake::kernel::{Action, Add, AddCDCFile};
use deltalake::protocol::{DeltaOperation, SaveMode};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::schema::types::SchemaDescriptor;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::durable::{Sum, check_sum, make_folder, seal};
use super::inspect::WRONG_SUM;
use super::write::{commit_properties, now_us};
use super::{
    CommitFacts, FeatureStore, STATISTICS, StoreError, arrow_schema, parse_split, writer_properties,
};
use crate::panics::{self, Rows};
use crate::stages::scan::Split;

/// Rows read at a time.
const BATCH_ROWS: usize = 1_024;

/// Rows after which a further file is begun: with 512 numbers about the size that compaction aims at.
const FILE_ROWS: usize = 131_072;

/// Column of change data: what became of a row.
const CHANGE_TYPE: &str = "_change_type";

/// Folder of change data in the table's folder.
const CHANGE_DATA: &str = "_change_data";

/// What becomes of the row with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// The source has a row for it.
    Put,
    Delete,
}

/// The keys of a commit.
pub(super) type Ops<'a> = HashMap<(Split, &'a str), Op>;

impl FeatureStore {
    /// Takes the rows of `ops` out of the table and adds those of `source` (the table's columns, a row for each
    /// [`Op::Put`]): one commit; none where nothing comes of it. To delete what is not there is no error.
    pub(super) async fn rewrite(
        &mut self,
        ops: &Ops<'_>,
        source: Option<DataFrame>,
        facts: &CommitFacts,
    ) -> Result<(), StoreError> {
        self.check_writable()?;
        let mut actions = Vec::new();
        let mut rows = Output::new(self.dir(), None);
        let mut changes = Output::new(self.dir(), Some(CHANGE_DATA));
        let mut stored = HashSet::new();
        {
            let snapshot = self.table.snapshot().map_err(|error| StoreError::delta(self.dir(), error))?;
            for file in snapshot.log_data() {
                let path = file.object_store_path();
                let path = path.as_ref().split('/').fold(self.dir().to_owned(), |dir, part| dir.join(part));
                let damaged =
                    |reason: String| self.diagnose().unwrap_or_else(|| StoreError::damaged(&path, &reason));
                let copy = || self.copy_without(&path, ops, &mut stored, &mut rows, &mut changes, damaged);
                let is_touched = panics::caught(copy);
                if is_touched.unwrap_or_else(|| Err(damaged(panics::DAMAGED.to_owned())))? {
                    actions.push(Action::Remove(file.remove_action(true)));
                }
            }
        }
        if let Some(source) = source {
            let mut source = Rows::of(source);
            while let Some(part) = source.next().await {
                let part = part.map_err(|error| self.read_error(error))?;
                let part = in_our_columns(&part).map_err(|reason| self.failed(reason))?;
                let keys = Keys::of(&part);
                let kind = |row| match keys.at(row).is_some_and(|key| stored.contains(&key)) {
                    true => "update_postimage",
                    false => "insert",
                };
                let kinds = StringArray::from_iter_values((0..part.num_rows()).map(kind));
                rows.write(&part)?;
                changes.write(&with_column(&part, CHANGE_TYPE, Arc::new(kinds)))?;
            }
        }
        actions.extend(rows.finish()?.into_iter().map(Written::added));
        actions.extend(changes.finish()?.into_iter().map(|file| {
            Action::Cdc(AddCDCFile { path: file.path, size: file.size, ..AddCDCFile::default() })
        }));
        if actions.is_empty() {
            return Ok(());
        }
        let operation = DeltaOperation::Merge {
            predicate: None,
            merge_predicate: Some("t.split = s.split AND t.id = s.id".to_owned()),
            matched_predicates: Vec::new(),
            not_matched_predicates: Vec::new(),
            not_matched_by_source_predicates: Vec::new(),
        };
        self.commit(actions, operation, facts).await
    }

    /// Adds rows that come part by part: one commit.
    pub(super) async fn add(
        &mut self,
        parts: impl Iterator<Item = RecordBatch>,
        facts: &CommitFacts,
    ) -> Result<(), StoreError> {
        let mut rows = Output::new(self.dir(), None);
        for part in parts {
            rows.write(&part)?;
        }
        let actions = rows.finish()?.into_iter().map(Written::added).collect();
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        self.commit(actions, operation, facts).await
    }

    async fn commit(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        facts: &CommitFacts,
    ) -> Result<(), StoreError> {
        let delta = |error| StoreError::delta(&self.dir, error);
        let snapshot = self.table.snapshot().map_err(delta)?;
        CommitBuilder::from(commit_properties(facts))
            .with_actions(actions)
            .build(Some(snapshot), self.table.log_store(), operation)
            .await
            .map_err(delta)?;
        self.table.update_state().await.map_err(|error| StoreError::delta(&self.dir, error))
    }

    /// Copies the rows of a file but for those of `ops`, which go to the change data. False, and nothing is copied, where it
    /// holds none of them.
    fn copy_without(
        &self,
        path: &Path,
        ops: &Ops<'_>,
        stored: &mut HashSet<(Split, String)>,
        rows: &mut Output<'_>,
        changes: &mut Output<'_>,
        damaged: impl Fn(String) -> StoreError,
    ) -> Result<bool, StoreError> {
        let open = |columns: fn(&SchemaDescriptor) -> ProjectionMask| {
            let file = std::fs::File::open(path).map_err(|error| damaged(error.to_string()))?;
            let reader = ParquetRecordBatchReaderBuilder::try_new(file);
            let reader = reader.map_err(|error| damaged(error.to_string()))?;
            let columns = columns(reader.parquet_schema());
            let reader = reader.with_projection(columns).with_batch_size(BATCH_ROWS).build();
            reader.map_err(|error| damaged(error.to_string()))
        };
        let mut is_touched = false;
        for part in open(|schema| ProjectionMask::columns(schema, ["id", "split"]))? {
            let part = part.map_err(|error| damaged(error.to_string()))?;
            let keys = Keys::of(&part);
            is_touched |= (0..part.num_rows()).any(|row| keys.op(row, ops).is_some());
            if is_touched {
                break;
            }
        }
        if !is_touched {
            return Ok(false);
        }
        // Damage would be copied into a new file, whose checksum is right.
        if check_sum(path).map_err(|error| StoreError::io(path, &error))? == Sum::Wrong {
            return Err(StoreError::damaged(path, WRONG_SUM));
        }
        for part in open(|_| ProjectionMask::all())? {
            let part = part.map_err(|error| damaged(error.to_string()))?;
            let part = in_our_columns(&part).map_err(&damaged)?;
            let keys = Keys::of(&part);
            let of_rows: Vec<Option<Op>> = (0..part.num_rows()).map(|row| keys.op(row, ops)).collect();
            let is_gone = BooleanArray::from_iter(of_rows.iter().map(|op| Some(op.is_some())));
            let failed = |error: datafusion::arrow::error::ArrowError| self.failed(error);
            let kept = not(&is_gone).and_then(|kept| filter_record_batch(&part, &kept)).map_err(failed)?;
            let gone = filter_record_batch(&part, &is_gone).map_err(failed)?;
            let kinds = StringArray::from_iter_values(of_rows.iter().flatten().map(|op| match op {
                Op::Put => "update_preimage",
                Op::Delete => "delete",
            }));
            stored.extend(
                (0..part.num_rows()).filter(|&row| of_rows[row].is_some()).filter_map(|row| keys.at(row)),
            );
            rows.write(&kept)?;
            changes.write(&with_column(&gone, CHANGE_TYPE, Arc::new(kinds)))?;
        }
        Ok(true)
    }
}

/// The keys of a batch of rows.
struct Keys {
    id: StringArray,
    split: StringArray,
}

impl Keys {
    /// Columns that are missing or of another kind give no keys.
    fn of(rows: &RecordBatch) -> Keys {
        let text = |name: &str| {
            let column = rows.column_by_name(name).and_then(|column| cast(column, &DataType::Utf8).ok());
            let column = column.unwrap_or_else(|| new_null_array(&DataType::Utf8, rows.num_rows()));
            column.as_string::<i32>().clone()
        };
        Keys { id: text("id"), split: text("split") }
    }

    fn borrowed(&self, row: usize) -> Option<(Split, &str)> {
        let is_there = self.id.is_valid(row) && self.split.is_valid(row);
        is_there
            .then(|| parse_split(self.split.value(row)))
            .flatten()
            .map(|split| (split, self.id.value(row)))
    }

    fn at(&self, row: usize) -> Option<(Split, String)> {
        self.borrowed(row).map(|(split, id)| (split, id.to_owned()))
    }

    fn op(&self, row: usize, ops: &Ops<'_>) -> Option<Op> {
        ops.get(&self.borrowed(row)?).copied()
    }
}

/// The table's columns out of what a reader made of them.
fn in_our_columns(rows: &RecordBatch) -> Result<RecordBatch, String> {
    let schema = arrow_schema();
    let columns = schema.fields().iter().map(|field| {
        let column = rows
            .column_by_name(field.name())
            .ok_or_else(|| format!("there is no column {}", field.name()))?;
        cast(column, field.data_type()).map_err(|error| error.to_string())
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(|error| error.to_string())
}

fn with_column(rows: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(name, column.data_type().clone(), true)));
    let columns = rows.columns().iter().cloned().chain([column]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .expect("a column of the same length, with its own field")
}

/// A file that is written, and on disk.
struct Written {
    /// In the table's folder.
    path: String,
    /// Bytes.
    size: i64,
    /// Delta's statistics, as JSON.
    statistics: String,
}

impl Written {
    /// As a file of the table.
    fn added(self) -> Action {
        Action::Add(Add {
            path: self.path,
            size: self.size,
            modification_time: now_us() / 1_000,
            data_change: true,
            stats: Some(self.statistics),
            ..Add::default()
        })
    }
}

/// Files being written. Those that are not finished remove themselves.
struct Output<'a> {
    dir: &'a Path,
    folder: Option<&'static str>,
    open: Option<Open>,
    done: Vec<(NamedTempFile, Statistics)>,
}

struct Open {
    file: NamedTempFile,
    writer: ArrowWriter<std::fs::File>,
    statistics: Statistics,
}

impl<'a> Output<'a> {
    fn new(dir: &'a Path, folder: Option<&'static str>) -> Output<'a> {
        Output { dir, folder, open: None, done: Vec::new() }
    }

    fn write(&mut self, rows: &RecordBatch) -> Result<(), StoreError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin(rows.schema())?,
        };
        open.writer.write(rows).map_err(|error| StoreError::writing(open.file.path(), &error))?;
        open.statistics.add(rows);
        if open.statistics.rows >= FILE_ROWS {
            self.close(open)
        } else {
            self.open = Some(open);
            Ok(())
        }
    }

    fn begin(&self, schema: SchemaRef) -> Result<Open, StoreError> {
        let folder = self.folder.map_or(self.dir.to_owned(), |folder| self.dir.join(folder));
        let io = |error: std::io::Error| StoreError::io(&folder, &error);
        make_folder(&folder).map_err(io)?;
        let prefix = if self.folder.is_some() { "cdc-" } else { "part-" };
        let file = tempfile::Builder::new()
            .prefix(prefix)
            .rand_bytes(24)
            .suffix(".zstd.parquet")
            // As files are made in general; those of this crate are for their owner alone.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&folder)
            .map_err(io)?;
        let handle = file.reopen().map_err(io)?;
        let writer = ArrowWriter::try_new(handle, schema, Some(writer_properties()));
        let writer = writer.map_err(|error| StoreError::writing(file.path(), &error))?;
        Ok(Open { file, writer, statistics: Statistics::default() })
    }

    fn close(&mut self, open: Open) -> Result<(), StoreError> {
        let Open { file, writer, statistics } = open;
        writer.close().map_err(|error| StoreError::writing(file.path(), &error))?;
        self.done.push((file, statistics));
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Written>, StoreError> {
        if let Some(open) = self.open.take() {
            self.close(open)?;
        }
        let mut written = Vec::new();
        for (file, statistics) in self.done {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (file, path) =
                file.keep().map_err(|error| StoreError::io(error.file.path(), &error.error))?;
            // On the disk, with its checksum, before the commit names it.
            seal(&path).map_err(|error| StoreError::io(&path, &error))?;
            let size = file.metadata().map_err(|error| StoreError::io(&path, &error))?.len() as i64;
            let path = self.folder.map_or(name.clone(), |folder| format!("{folder}/{name}"));
            written.push(Written { path, size, statistics: statistics.json() });
        }
        Ok(written)
    }
}

/// What lets readers skip a file: its rows, and for each of [`STATISTICS`] the least, the greatest and the number of nulls.
#[derive(Default)]
struct Statistics {
    rows: usize,
    columns: HashMap<&'static str, OfColumn>,
}

#[derive(Default)]
struct OfColumn {
    /// The least and the greatest value; nothing where all are null.
    range: Option<(String, String)>,
    nulls: usize,
}

impl Statistics {
    fn add(&mut self, rows: &RecordBatch) {
        self.rows += rows.num_rows();
        for name in STATISTICS {
            let Some(column) = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>())
            else {
                continue;
            };
            let of_column = self.columns.entry(name).or_default();
            of_column.nulls += column.null_count();
            for value in column.iter().flatten() {
                match &mut of_column.range {
                    range @ None => *range = Some((value.to_owned(), value.to_owned())),
                    Some((least, _)) if value < least.as_str() => value.clone_into(least),
                    Some((_, greatest)) if value > greatest.as_str() => value.clone_into(greatest),
                    Some(_) => {}
                }
            }
        }
    }

    fn json(&self) -> String {
        let of = |value: fn(&OfColumn) -> Option<Value>| -> Map<String, Value> {
            let values = STATISTICS.iter().filter_map(|name| Some((*name, self.columns.get(name)?)));
            values.filter_map(|(name, facts)| Some((name.to_owned(), value(facts)?))).collect()
        };
        json!({
            "numRecords": self.rows,
            "minValues": of(|facts| Some(json!(facts.range.as_ref()?.0))),
            "maxValues": of(|facts| Some(json!(facts.range.as_ref()?.1))),
            "nullCount": of(|facts| Some(json!(facts.nulls))),
        })
        .to_string()
    }
}
