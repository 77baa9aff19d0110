//! Rows out of the table, always ordered by (`split`, `id`), so that equal tables read alike whatever commits made them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::{Expr, JoinType, SessionConfig, SessionContext, col, lit};

use super::inspect::{damage_unread, read_parquet};
use super::schema::{PICTURE_COLUMNS, append_pictures, append_rows, sort_by_key};
use super::{COLUMNS, FeatureStore, StoreError, first_key};
use crate::panics::{self, Rows};
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;

impl FeatureStore {
    /// The table for a query of one's own, under the name `features`.
    pub async fn context(&self) -> Result<SessionContext, StoreError> {
        let mut config = SessionConfig::new()
            .with_target_partitions(1)
            .with_batch_size(self.shares.batch_rows(self.dim()));
        // A join holds its left side; the table is always put on the right.
        config.options_mut().optimizer.join_reordering = false;
        let context = SessionContext::new_with_config(config);
        self.register(&context).await?;
        Ok(context)
    }

    /// Makes the table known to `context` under the name `features`.
    pub async fn register(&self, context: &SessionContext) -> Result<(), StoreError> {
        let datafusion = |error| StoreError::datafusion(&self.dir, error);
        let session = context.state();
        self.table
            .update_datafusion_session(&session)
            .map_err(|error| StoreError::delta(&self.dir, error))?;
        let provider = self.table.table_provider().await.map_err(datafusion)?;
        context.register_table("features", provider).map_err(datafusion)?;
        Ok(())
    }

    /// Number of pictures, of one split or of both.
    pub async fn count(&self, split: Option<Split>) -> Result<usize, StoreError> {
        let table = self.features(split.map(is_split)).await?;
        let counted = self.collect(table.aggregate(Vec::new(), vec![count(lit(true))])).await?;
        let counts = counted.first().and_then(|counted| counted.column(0).as_primitive_opt::<Int64Type>());
        Ok(counts.map_or(0, |counts| counts.value(0) as usize))
    }

    /// All rows, of one split or of both, ordered by (`split`, `id`): the same answer whatever the commits
    /// before.
    pub async fn read(&self, split: Option<Split>) -> Result<EmbeddingBatch, StoreError> {
        let rows = self.count(split).await?;
        self.read_rows(self.features(split.map(is_split)).await?, rows).await
    }

    /// What is known of the pictures of a split, by id, without their vectors.
    pub async fn pictures(&self, split: Split) -> Result<Vec<Picture>, StoreError> {
        let rows = self.features(Some(is_split(split))).await?.select_columns(&PICTURE_COLUMNS);
        let mut rows = Rows::of(rows.map_err(|error| StoreError::datafusion(&self.dir, error))?);
        let mut pictures = Vec::new();
        while let Some(part) = rows.next().await {
            let part = part.map_err(|error| self.read_error(error))?;
            append_pictures(&part, &mut pictures).map_err(|reason| self.failed(reason))?;
        }
        pictures.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(pictures)
    }

    /// Hands all rows to `f`, ordered by (`split`, `id`), at most `batch_rows` at a time. Memory is bounded as in
    /// [`for_each_row_of`](FeatureStore::for_each_row_of).
    pub async fn for_each_batch<E: From<StoreError>>(
        &self,
        split: Option<Split>,
        batch_rows: usize,
        mut f: impl FnMut(&EmbeddingBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        for split in split.map_or(vec![Split::Gallery, Split::Query], |split| vec![split]) {
            self.for_each_row_of(split, &self.ids(split).await?, batch_rows, &mut f).await?;
        }
        Ok(())
    }

    /// Hands the rows of `ids`, which are ascending and unique, to `f`: in that order, at most `batch_rows` at a time.
    ///
    /// Bounded memory: rows are read in bands of [`Shares::rows`](crate::memory::Shares::rows). As pictures are written in the
    /// order of their ids, most files and row groups outside of a band's first and last id are skipped unread.
    ///
    /// Errors, besides those of reading and of `f`: an id that the split does not hold.
    pub async fn for_each_row_of<E: From<StoreError>>(
        &self,
        split: Split,
        ids: &[String],
        batch_rows: usize,
        mut f: impl FnMut(&EmbeddingBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let band_rows = self.shares.rows(self.dim());
        let batch_rows = batch_rows.clamp(1, band_rows);
        for band in ids.chunks(band_rows / batch_rows * batch_rows) {
            let rows = self.read_band(split, band).await?;
            if rows.len() <= batch_rows {
                f(&rows)?;
                continue;
            }
            for start in (0..rows.len()).step_by(batch_rows) {
                f(&slice(&rows, start, batch_rows.min(rows.len() - start)))?;
            }
        }
        Ok(())
    }

    /// The rows of `ids`, which are ascending, unique and not empty.
    async fn read_band(&self, split: Split, ids: &[String]) -> Result<EmbeddingBatch, StoreError> {
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else {
            return Ok(EmbeddingBatch { dim: self.dim(), ..EmbeddingBatch::default() });
        };
        let column: ArrayRef = Arc::new(StringArray::from_iter_values(ids));
        let wanted = RecordBatch::try_from_iter([("wanted", column)]).map_err(|error| self.failed(error))?;
        let band = is_split(split)
            .and(col("id").gt_eq(lit(first.as_str())))
            .and(col("id").lt_eq(lit(last.as_str())));
        let context = self.context().await?;
        let rows = context.table("features").await.and_then(|rows| {
            let wanted = context.read_batch(wanted)?;
            wanted.join(rows.filter(band)?, JoinType::RightSemi, &["wanted"], &["id"], None)
        });
        let rows = rows.map_err(|error| StoreError::datafusion(&self.dir, error))?;
        let rows = self.read_rows(rows, ids.len()).await?;
        if rows.len() != ids.len() {
            let reason =
                format!("{} of {} pictures asked for are not there", ids.len() - rows.len(), ids.len());
            return Err(self.failed(reason));
        }
        Ok(rows)
    }

    /// The classes of those of `ids` that the split holds, and that have one.
    pub async fn labels(&self, split: Split, ids: &[String]) -> Result<BTreeMap<String, String>, StoreError> {
        let wanted = col("id").in_list(ids.iter().map(|id| lit(id.as_str())).collect(), false);
        let rows = self.features(Some(is_split(split).and(wanted).and(col("label").is_not_null()))).await?;
        let mut labels = BTreeMap::new();
        for batch in self.collect(rows.select_columns(&["id", "label"])).await? {
            let (ids, of_ids) = (self.strings(&batch, 0)?, self.strings(&batch, 1)?);
            labels.extend(ids.into_iter().zip(of_ids));
        }
        Ok(labels)
    }

    /// The ids of the pictures of a split whose columns have these values, in order. Numbers are compared as they are written.
    pub async fn ids_where(&self, split: Split, wanted: &[(&str, &str)]) -> Result<Vec<String>, StoreError> {
        let holds = |(column, value): &(&str, &str)| {
            datafusion::prelude::cast(col(*column), DataType::Utf8).eq(lit(*value))
        };
        let filter = wanted.iter().map(holds).fold(is_split(split), Expr::and);
        let rows = self.features(Some(filter)).await?;
        let mut ids = Vec::new();
        for batch in self.collect(rows.select_columns(&["id"])).await? {
            ids.extend(self.strings(&batch, 0)?);
        }
        ids.sort();
        Ok(ids)
    }

    /// A text column without nulls.
    fn strings(&self, rows: &RecordBatch, column: usize) -> Result<Vec<String>, StoreError> {
        let column = cast(rows.column(column), &DataType::Utf8).map_err(|error| self.failed(error))?;
        Ok(column.as_string::<i32>().iter().flatten().map(str::to_owned).collect())
    }

    /// The ids of a split, in order.
    pub async fn ids(&self, split: Split) -> Result<Vec<String>, StoreError> {
        self.ids_where(split, &[]).await
    }

    /// Checks every row: values where they must be, vectors of the table's length, keys unique, one
    /// fingerprint.
    pub async fn verify(&self) -> Result<(), StoreError> {
        let context = self.context().await?;
        let nulls: Vec<String> =
            COLUMNS.iter().filter(|name| **name != "label").map(|name| format!("{name} IS NULL")).collect();
        let checks = [
            (
                format!("SELECT split, id FROM features WHERE {} LIMIT 1", nulls.join(" OR ")),
                "a value is missing",
            ),
            (
                format!(
                    "SELECT split, id FROM features WHERE cardinality(embedding) <> {} LIMIT 1",
                    self.dim()
                ),
                "the vector has another length than the table's",
            ),
            (
                "SELECT split, id FROM features GROUP BY split, id HAVING count(*) > 1 LIMIT 1".into(),
                "the key is there twice",
            ),
            (
                format!(
                    "SELECT split, id FROM features WHERE fingerprint <> '{}' LIMIT 1",
                    self.provenance.fingerprint.replace('\'', "''")
                ),
                "the vector has another fingerprint than the table",
            ),
        ];
        for (query, reason) in checks {
            let found = self.collect(context.sql(&query).await).await?;
            if let Some((split, id)) = found.iter().find_map(first_key) {
                return Err(StoreError::Failed {
                    path: self.shown(),
                    reason: format!("{split} picture {id:?}: {reason}"),
                });
            }
        }
        Ok(())
    }

    /// The Parquet files that make up this version.
    pub fn files(&self) -> Result<Vec<PathBuf>, StoreError> {
        Ok(self.files_with_size()?.into_iter().map(|(file, _)| file).collect())
    }

    fn files_with_size(&self) -> Result<Vec<(PathBuf, u64)>, StoreError> {
        let snapshot = self.table.snapshot().map_err(|error| StoreError::delta(&self.dir, error))?;
        let file = |path: &str| path.split('/').fold(self.dir.clone(), |dir, part| dir.join(part));
        Ok(snapshot
            .log_data()
            .into_iter()
            .map(|add| (file(add.object_store_path().as_ref()), add.size().max(0) as u64))
            .collect())
    }

    /// The files that make up this version: path, bytes, and rows as the log has them.
    pub(super) fn files_with_rows(&self) -> Result<Vec<(PathBuf, u64, u64)>, StoreError> {
        let snapshot = self.table.snapshot().map_err(|error| StoreError::delta(&self.dir, error))?;
        let rows = snapshot.log_data().into_iter().map(|add| add.num_records().unwrap_or_default() as u64);
        let files = self.files_with_size()?.into_iter().zip(rows);
        Ok(files.map(|((file, size), rows)| (file, size, rows)).collect())
    }

    pub(super) async fn features(&self, filter: Option<Expr>) -> Result<DataFrame, StoreError> {
        let context = self.context().await?;
        let table = context.table("features").await.and_then(|table| match filter {
            Some(filter) => table.filter(filter),
            None => Ok(table),
        });
        table.map_err(|error| StoreError::datafusion(&self.dir, error))
    }

    pub(super) async fn collect(
        &self,
        rows: Result<DataFrame, DataFusionError>,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let collected = match rows {
            Ok(rows) => panics::collected(rows).await,
            Err(error) => Err(error),
        };
        collected.map_err(|error| self.read_error(error))
    }

    /// `expected` is the number of rows, for which memory is set aside.
    async fn read_rows(&self, rows: DataFrame, expected: usize) -> Result<EmbeddingBatch, StoreError> {
        let mut batch = EmbeddingBatch {
            pictures: Vec::with_capacity(expected),
            dim: self.dim(),
            vectors: Vec::with_capacity(expected * self.dim()),
            norms: Vec::with_capacity(expected),
        };
        let mut rows = Rows::of(rows);
        while let Some(part) = rows.next().await {
            let part = part.map_err(|error| self.read_error(error))?;
            append_rows(&part, &mut batch).map_err(|reason| self.failed(reason))?;
        }
        sort_by_key(&mut batch);
        Ok(batch)
    }

    /// Why reading failed: the query engine does not name the file, so the files are tried one by one.
    pub(super) fn read_error(&self, error: DataFusionError) -> StoreError {
        self.diagnose().unwrap_or_else(|| StoreError::datafusion(&self.dir, error))
    }

    /// The first of the table's files that is missing, is no file, or has another size than when it was written: what shows unread.
    pub(super) fn missing_file(&self) -> Option<StoreError> {
        self.files_with_size().ok()?.into_iter().find_map(|(file, size)| {
            match damage_unread(&file, Some(size)) {
                Ok(reason) => reason.map(|reason| StoreError::damaged(&file, &reason)),
                Err(error) => Some(StoreError::io(&file, &error)),
            }
        })
    }

    /// The first of the table's files that is missing, has another size than when it was written, or cannot
    /// be read.
    pub(super) fn diagnose(&self) -> Option<StoreError> {
        if let Some(error) = self.missing_file() {
            return Some(error);
        }
        for (file, _) in self.files_with_size().ok()? {
            let damaged = |reason: String| Some(StoreError::damaged(&file, &reason));
            if let Err(error) = fs::File::open(&file) {
                return Some(StoreError::io(&file, &error));
            }
            if let Err(reason) = read_parquet(&file, |_| Ok(())) {
                return damaged(reason);
            }
        }
        // Bytes may be wrong and still be decoded, into what makes no sense.
        self.check_sums().err()
    }
}

fn is_split(split: Split) -> Expr {
    col("split").eq(lit(split.name()))
}

fn slice(rows: &EmbeddingBatch, start: usize, len: usize) -> EmbeddingBatch {
    EmbeddingBatch {
        pictures: rows.pictures[start..start + len].to_vec(),
        dim: rows.dim,
        vectors: rows.vectors[start * rows.dim..(start + len) * rows.dim].to_vec(),
        norms: rows.norms[start..start + len].to_vec(),
    }
}
