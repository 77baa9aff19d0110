//! What was seen against what is stored: which pictures are new, changed, moved, relabelled or gone.
//!
//! The table's short columns are read past the list of what was seen, not joined with it: a join would hold both a second
//! time. Vectors are touched only where they are copied.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::datasource::MemTable;

use super::rewrite::Op;
use super::write::now_us;
use super::{CommitFacts, FeatureStore, StoreError, parse_split};
use crate::config::Budget;
use crate::panics::Rows;
use crate::stages::decode::Failure;
use crate::stages::scan::{ImageRef, Seen, Split};

/// What a run has to do: first [`apply`](FeatureStore::apply) `reuse` and `delete`, then embed and write the
/// rest.
///
/// In this order because [`replace`](FeatureStore::replace) writes over vectors that others are to be copied
/// from. A run that is cut off anywhere leaves a table from which the next plan goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Keys that the table does not hold, with bytes that it does not hold either; in the order seen. For
    /// `append`.
    pub embed_new: Vec<Seen>,
    /// Keys whose bytes changed into ones that the table does not hold; in the order seen. For `replace`.
    pub embed_changed: Vec<Seen>,
    /// Pictures whose vector the table already holds: renamed, copied, changed into a stored one, or only
    /// relabelled.
    pub reuse: Vec<Reuse>,
    /// Pictures that are as they were.
    pub unchanged: usize,
    /// How many of `reuse` are there for their new label alone.
    pub relabelled: usize,
    /// Keys that were not seen, ordered. A rename is one `reuse` and one `delete`.
    pub delete: Vec<(Split, String)>,
}

impl Plan {
    /// Whether the table is already as it should be.
    pub fn is_empty(&self) -> bool {
        self.embed_new.is_empty()
            && self.embed_changed.is_empty()
            && self.reuse.is_empty()
            && self.delete.is_empty()
    }

    /// How many pictures must go through the network.
    pub fn to_embed(&self) -> usize {
        self.embed_new.len() + self.embed_changed.len()
    }
}

/// The share of a split that a run deletes without being asked, where `input.max_deleted` says nothing.
const MAX_DELETED: Budget = Budget::Share(0.5);

/// Splits of fewer pictures than this may be emptied where `input.max_deleted` says nothing.
const SMALL: usize = 100;

impl Plan {
    /// Refuses to delete more of a split than `allowed`, or, where that is `None`, more than half of a split that is not small.
    /// Pictures that moved are not gone. `stored` says how many pictures of a split the table holds.
    ///
    /// An input folder whose file system is not mounted looks as if all of its pictures had been deleted.
    pub fn check_deletions(
        &self,
        allowed: Option<Budget>,
        stored: impl Fn(Split) -> usize,
    ) -> Result<(), StoreError> {
        let moved = self.moved();
        for split in [Split::Gallery, Split::Query] {
            let gone = self.delete.iter().filter(|key| key.0 == split && !moved.contains(key)).count();
            let stored = stored(split);
            let budget = allowed.unwrap_or(MAX_DELETED);
            let is_asked = allowed.is_some() || stored >= SMALL;
            if gone > 0 && is_asked && budget.is_exceeded(gone as u64, stored as u64) {
                return Err(StoreError::TooManyGone { split: split.name(), gone, stored, budget });
            }
        }
        Ok(())
    }

    /// Rows whose vector another picture takes.
    fn moved(&self) -> HashSet<&(Split, String)> {
        self.reuse.iter().map(|reuse| &reuse.source).collect()
    }

    /// Refuses to delete what is stored below a folder that could not be read: whatever is in it, it is not gone. `failures` are those
    /// of the scan.
    pub fn check_readable(&self, failures: &[Failure]) -> Result<(), StoreError> {
        let unread: HashMap<_, _> = failures.iter().map(|at| ((at.split, at.path.as_str()), at)).collect();
        let folders = |(split, id): &(Split, String)| {
            id.match_indices('/').find_map(|(end, _)| unread.get(&(*split, &id[..end])).copied())
        };
        let moved = self.moved();
        let mut below = self.delete.iter().filter(|key| !moved.contains(key)).filter_map(folders);
        if let Some(Failure { path, split, reason, .. }) = below.next() {
            let gone = 1 + below.filter(|folder| (folder.split, &folder.path) == (*split, path)).count();
            let (folder, reason) = (path.clone(), reason.clone());
            return Err(StoreError::BelowUnreadable { split: split.name(), folder, reason, gone });
        }
        Ok(())
    }
}

/// A picture that takes the vector of a stored row with the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reuse {
    pub image: ImageRef,
    /// Hex SHA-256 of the bytes, of picture and source alike.
    pub sha256: String,
    /// Key of the row that holds the vector now. It may be the picture's own, and may be deleted in the same
    /// commit.
    pub source: (Split, String),
}

impl FeatureStore {
    /// Compares the pictures found and readable now with the table.
    ///
    /// A stored picture that is not in `seen` counts as gone, so leave out only what is gone or can no longer
    /// be read. Errors: two pictures with one key.
    ///
    /// Memory: the keys, and what is left of `seen`. The table is read batch by batch.
    pub async fn plan(&self, seen: Vec<Seen>) -> Result<Plan, StoreError> {
        let mut plan = Plan::default();
        let became = self.compare(&seen, &mut plan.delete).await?;
        let sources = self.sources(&seen, &became).await?;
        for (seen, became) in seen.into_iter().zip(became) {
            let source = sources.get(&seen.sha256);
            match (became, source) {
                (Became::Unchanged, _) => plan.unchanged += 1,
                (Became::Relabelled, _) => {
                    plan.relabelled += 1;
                    let own = (seen.image.split, seen.image.id.clone());
                    plan.reuse.push(Reuse { image: seen.image, sha256: seen.sha256, source: own });
                }
                (_, Some(source)) => {
                    plan.reuse.push(Reuse { image: seen.image, sha256: seen.sha256, source: source.clone() })
                }
                (Became::New, None) => plan.embed_new.push(seen),
                (Became::Changed, None) => plan.embed_changed.push(seen),
            }
        }
        Ok(plan)
    }

    /// What became of each picture since it was stored; keys that are stored and were not seen go to `gone`, ordered.
    async fn compare(
        &self,
        seen: &[Seen],
        gone: &mut Vec<(Split, String)>,
    ) -> Result<Vec<Became>, StoreError> {
        let mut rows = HashMap::with_capacity(seen.len());
        for (row, Seen { image, .. }) in seen.iter().enumerate() {
            if rows.insert((image.split, image.id.as_str()), row).is_some() {
                return Err(StoreError::Duplicate {
                    split: image.split.name(),
                    id: image.id.clone(),
                    place: "in the input",
                });
            }
        }
        let mut became = vec![Became::New; seen.len()];
        self.for_each_part(&["split", "id", "sha256", "label"], |part| {
            let [split, id, sha256, label] = [0, 1, 2, 3].map(|column| text(part, column));
            let (split, id, sha256, label) = (split?, id?, sha256?, label?);
            for i in 0..part.num_rows() {
                let Some(split) = parse_split(split.value(i)) else { continue };
                let Some(&row) = rows.get(&(split, id.value(i))) else {
                    gone.push((split, id.value(i).to_owned()));
                    continue;
                };
                let now = &seen[row];
                became[row] = if sha256.is_null(i) || sha256.value(i) != now.sha256 {
                    Became::Changed
                } else if label.is_valid(i).then(|| label.value(i)) != now.image.label.as_deref() {
                    Became::Relabelled
                } else {
                    Became::Unchanged
                };
            }
            Ok(())
        })
        .await?;
        gone.sort();
        Ok(became)
    }

    /// For the bytes of new and changed pictures: the first row, by key, that holds their vector now.
    async fn sources(
        &self,
        seen: &[Seen],
        became: &[Became],
    ) -> Result<HashMap<String, (Split, String)>, StoreError> {
        let wanted: HashSet<&str> = seen
            .iter()
            .zip(became)
            .filter(|(_, became)| matches!(became, Became::New | Became::Changed))
            .map(|(seen, _)| seen.sha256.as_str())
            // An empty hash is what imported rows have: it says nothing.
            .filter(|sha256| !sha256.is_empty())
            .collect();
        let mut sources = HashMap::new();
        if wanted.is_empty() {
            return Ok(sources);
        }
        self.for_each_part(&["sha256", "split", "id"], |part| {
            let (sha256, split, id) = (text(part, 0)?, text(part, 1)?, text(part, 2)?);
            for row in (0..part.num_rows()).filter(|&row| wanted.contains(sha256.value(row))) {
                let Some(split) = parse_split(split.value(row)) else { continue };
                let key = (split, id.value(row).to_owned());
                match sources.entry(sha256.value(row).to_owned()) {
                    Entry::Vacant(entry) => drop(entry.insert(key)),
                    Entry::Occupied(mut first) if key < *first.get() => drop(first.insert(key)),
                    Entry::Occupied(_) => {}
                }
            }
            Ok(())
        })
        .await?;
        Ok(sources)
    }

    /// Hands columns of the whole table to `f`, batch by batch, in no order.
    async fn for_each_part(
        &self,
        columns: &[&str],
        mut f: impl FnMut(&RecordBatch) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let rows = self.features(None).await?.select_columns(columns);
        let rows = rows.map_err(|error| StoreError::datafusion(self.dir(), error))?;
        let mut rows = Rows::of(rows);
        while let Some(part) = rows.next().await {
            f(&part.map_err(|error| self.read_error(error))?)?;
        }
        Ok(())
    }

    /// Copies vectors to their new keys and deletes what is gone, in one commit; none where there is nothing
    /// to do.
    ///
    /// Vectors are read from the version before the commit, so a source may be deleted or written over by it.
    /// Call it before [`replace`](FeatureStore::replace), and once more for stored pictures whose new bytes
    /// turned out to be undecodable: their old vectors are no longer true. Deleting a key that is not there
    /// is no error.
    ///
    /// Errors: a source row that is not there any more or holds other bytes.
    pub async fn apply(
        &mut self,
        reuse: &[Reuse],
        delete: &[(Split, String)],
        facts: &CommitFacts,
    ) -> Result<(), StoreError> {
        if reuse.is_empty() && delete.is_empty() {
            return Ok(());
        }
        let context = self.context().await?;
        let ops = op_rows(reuse, delete, &self.provenance.fingerprint);
        let failed = |error| StoreError::datafusion(self.dir(), error);
        let ops = MemTable::try_new(ops[0].schema(), vec![ops]).map_err(failed)?;
        context.register_table("ops", Arc::new(ops)).map_err(failed)?;
        if !reuse.is_empty() {
            let lost = self.collect(context.sql(LOST_SOURCES).await).await?;
            if let Some((split, id)) = lost.iter().find_map(super::first_key) {
                let reason = "the row that its vector was to be copied from has changed; run again";
                let split = parse_split(&split).map_or("stored", Split::name);
                return Err(StoreError::InvalidRow { split, id, reason: reason.into() });
            }
        }
        let source = match reuse {
            [] => None,
            _ => Some(context.sql(COPIES).await.map_err(|error| StoreError::datafusion(self.dir(), error))?),
        };
        let puts = reuse.iter().map(|reuse| ((reuse.image.split, reuse.image.id.as_str()), Op::Put));
        let deletes = delete.iter().map(|(split, id)| ((*split, id.as_str()), Op::Delete));
        self.rewrite(&deletes.chain(puts).collect(), source, facts).await
    }
}

const LOST_SOURCES: &str = "
    SELECT ops.split, ops.id
    FROM ops LEFT JOIN (SELECT split, id, sha256 FROM features) AS stored
         ON stored.split = ops.source_split AND stored.id = ops.source_id AND stored.sha256 = ops.sha256
    WHERE ops.op = 'put' AND stored.id IS NULL
    LIMIT 1";

const COPIES: &str = "
    SELECT ops.id, ops.label, ops.split, stored.sha256, stored.pixel_sha256, stored.dhash, stored.width, stored.height,
           stored.format, stored.norm, stored.embedding, ops.fingerprint, ops.indexed_at
    FROM ops JOIN features AS stored
         ON stored.split = ops.source_split AND stored.id = ops.source_id AND stored.sha256 = ops.sha256
    WHERE ops.op = 'put'";

/// A picture that was seen, beside the row that is stored under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    /// There is no such row.
    New,
    /// It has other bytes.
    Changed,
    /// It has another class, and the same bytes.
    Relabelled,
    Unchanged,
}

pub(super) fn text(rows: &RecordBatch, column: usize) -> Result<StringArray, StoreError> {
    let name = rows.schema().field(column).name().clone();
    let column = cast(rows.column(column), &DataType::Utf8)
        .map_err(|error| StoreError::Failed { path: format!("column {name}"), reason: error.to_string() })?;
    Ok(column.as_string::<i32>().clone())
}

/// One row for each copy and each deletion; `source_*` and `sha256` are null for a deletion. Not all in one batch: an array of texts holds
/// 2 GiB.
fn op_rows(reuse: &[Reuse], delete: &[(Split, String)], fingerprint: &str) -> Vec<RecordBatch> {
    const ROWS: usize = 1 << 18;
    let copies = reuse.chunks(ROWS).map(|reuse| op_batch(reuse, &[], fingerprint));
    copies.chain(delete.chunks(ROWS).map(|delete| op_batch(&[], delete, fingerprint))).collect()
}

fn op_batch(reuse: &[Reuse], delete: &[(Split, String)], fingerprint: &str) -> RecordBatch {
    let rows = reuse.len() + delete.len();
    let copies = |get: fn(&Reuse) -> Option<&str>| -> ArrayRef {
        Arc::new(StringArray::from_iter(reuse.iter().map(get).chain(delete.iter().map(|_| None))))
    };
    let ids =
        reuse.iter().map(|reuse| reuse.image.id.as_str()).chain(delete.iter().map(|(_, id)| id.as_str()));
    let splits = reuse
        .iter()
        .map(|reuse| reuse.image.split.name())
        .chain(delete.iter().map(|(split, _)| split.name()));
    let ops = reuse.iter().map(|_| "put").chain(delete.iter().map(|_| "delete"));
    let columns: [(&str, ArrayRef); 9] = [
        ("id", Arc::new(StringArray::from_iter_values(ids))),
        ("split", Arc::new(StringArray::from_iter_values(splits))),
        ("label", copies(|reuse| reuse.image.label.as_deref())),
        ("sha256", copies(|reuse| Some(&reuse.sha256))),
        ("source_split", copies(|reuse| Some(reuse.source.0.name()))),
        ("source_id", copies(|reuse| Some(&reuse.source.1))),
        ("fingerprint", Arc::new(StringArray::from(vec![fingerprint; rows]))),
        ("indexed_at", Arc::new(TimestampMicrosecondArray::from_value(now_us(), rows).with_timezone("UTC"))),
        ("op", Arc::new(StringArray::from_iter_values(ops))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
        .expect("nine columns of one length")
}
