//! What was seen against what is stored: which pictures are new, changed, moved, relabelled or gone.
//!
//! DataFusion joins the two, reading the table's short columns alone; vectors are touched only where they are
//! copied.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::prelude::SessionContext;

use super::rewrite::Op;
use super::write::now_us;
use super::{CommitFacts, FeatureStore, StoreError, parse_split};
use crate::config::Budget;
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
        let moved: HashSet<&(Split, String)> = self.reuse.iter().map(|reuse| &reuse.source).collect();
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
    pub async fn plan(&self, seen: &[Seen]) -> Result<Plan, StoreError> {
        let mut keys = HashSet::with_capacity(seen.len());
        for Seen { image, .. } in seen {
            if !keys.insert((image.split, image.id.as_str())) {
                return Err(StoreError::Duplicate {
                    split: image.split.name(),
                    id: image.id.clone(),
                    place: "in the input",
                });
            }
        }
        let context = self.context().await?;
        context
            .register_batch("seen", seen_rows(seen))
            .map_err(|error| StoreError::datafusion(self.dir(), error))?;
        let found = Differing::read(&self.collect(context.sql(DIFFERING).await).await?)
            .map_err(|error| self.failed(error))?;
        let unchanged = seen.len() - found.new.len() - found.changed.len() - found.relabelled.len();

        let sources = if found.new.is_empty() && found.changed.is_empty() {
            HashMap::new()
        } else {
            self.sources(&context, seen, &found).await?
        };
        let mut plan =
            Plan { unchanged, relabelled: found.relabelled.len(), delete: found.gone, ..Default::default() };
        let reuse = |row: usize, source: (Split, String)| Reuse {
            image: seen[row].image.clone(),
            sha256: seen[row].sha256.clone(),
            source,
        };
        for &row in &found.new {
            match sources.get(&seen[row].sha256) {
                Some(source) => plan.reuse.push(reuse(row, source.clone())),
                None => plan.embed_new.push(seen[row].clone()),
            }
        }
        for &row in &found.changed {
            match sources.get(&seen[row].sha256) {
                Some(source) => plan.reuse.push(reuse(row, source.clone())),
                None => plan.embed_changed.push(seen[row].clone()),
            }
        }
        for &row in &found.relabelled {
            plan.reuse.push(reuse(row, (seen[row].image.split, seen[row].image.id.clone())));
        }
        Ok(plan)
    }

    /// For the bytes of new and changed pictures: the first row, by key, that holds their vector now.
    async fn sources(
        &self,
        context: &SessionContext,
        seen: &[Seen],
        found: &Differing,
    ) -> Result<HashMap<String, (Split, String)>, StoreError> {
        let wanted: HashSet<&str> =
            found.new.iter().chain(&found.changed).map(|&row| seen[row].sha256.as_str()).collect();
        // An empty hash is what imported rows have: it says nothing.
        let wanted = StringArray::from_iter_values(wanted.into_iter().filter(|sha256| !sha256.is_empty()));
        let wanted = RecordBatch::try_from_iter([("sha256", Arc::new(wanted) as ArrayRef)])
            .map_err(|error| self.failed(error))?;
        context
            .register_batch("wanted", wanted)
            .map_err(|error| StoreError::datafusion(self.dir(), error))?;
        let mut sources = HashMap::new();
        for rows in self.collect(context.sql(SOURCES).await).await? {
            let (sha256, split, id) = (text(&rows, 0)?, text(&rows, 1)?, text(&rows, 2)?);
            for row in 0..rows.num_rows() {
                if let Some(split) = parse_split(split.value(row)) {
                    sources
                        .entry(sha256.value(row).to_owned())
                        .or_insert_with(|| (split, id.value(row).to_owned()));
                }
            }
        }
        Ok(sources)
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
        context.register_batch("ops", ops).map_err(|error| StoreError::datafusion(self.dir(), error))?;
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

/// Every key whose row is not as it was seen. `row` counts the pictures seen and is null for a row that was
/// not.
const DIFFERING: &str = "
    SELECT seen.row AS row, stored.split AS split, stored.id AS id,
           (stored.id IS NOT NULL) AND (stored.sha256 IS DISTINCT FROM seen.sha256) AS changed
    FROM seen FULL JOIN (SELECT split, id, sha256, label FROM features) AS stored
         ON stored.split = seen.split AND stored.id = seen.id
    WHERE (seen.row IS NULL) OR (stored.id IS NULL)
          OR (stored.sha256 IS DISTINCT FROM seen.sha256) OR (stored.label IS DISTINCT FROM seen.label)";

const SOURCES: &str = "
    SELECT features.sha256, features.split, features.id
    FROM features JOIN wanted ON wanted.sha256 = features.sha256
    ORDER BY features.split, features.id";

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

/// The rows of [`DIFFERING`], by kind; numbers are places in the list of pictures seen, ascending.
#[derive(Debug, Default)]
struct Differing {
    new: Vec<usize>,
    changed: Vec<usize>,
    relabelled: Vec<usize>,
    gone: Vec<(Split, String)>,
}

impl Differing {
    fn read(batches: &[RecordBatch]) -> Result<Differing, StoreError> {
        let mut found = Differing::default();
        for rows in batches {
            let row = rows.column(0).as_primitive::<UInt64Type>();
            let (split, id) = (text(rows, 1)?, text(rows, 2)?);
            let changed: &BooleanArray = rows.column(3).as_boolean();
            for i in 0..rows.num_rows() {
                let seen = row.is_valid(i).then(|| row.value(i) as usize);
                match seen {
                    None => found
                        .gone
                        .extend(parse_split(split.value(i)).map(|split| (split, id.value(i).to_owned()))),
                    Some(row) if id.is_null(i) => found.new.push(row),
                    Some(row) if changed.value(i) => found.changed.push(row),
                    Some(row) => found.relabelled.push(row),
                }
            }
        }
        found.new.sort_unstable();
        found.changed.sort_unstable();
        found.relabelled.sort_unstable();
        found.gone.sort();
        Ok(found)
    }
}

pub(super) fn text(rows: &RecordBatch, column: usize) -> Result<StringArray, StoreError> {
    let name = rows.schema().field(column).name().clone();
    let column = cast(rows.column(column), &DataType::Utf8)
        .map_err(|error| StoreError::Failed { path: format!("column {name}"), reason: error.to_string() })?;
    Ok(column.as_string::<i32>().clone())
}

fn seen_rows(seen: &[Seen]) -> RecordBatch {
    let text = |get: fn(&Seen) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(seen.iter().map(get)))
    };
    let columns: [(&str, ArrayRef); 5] = [
        ("row", Arc::new(UInt64Array::from_iter_values(0..seen.len() as u64))),
        ("split", text(|seen| seen.image.split.name())),
        ("id", text(|seen| &seen.image.id)),
        ("label", Arc::new(StringArray::from_iter(seen.iter().map(|seen| seen.image.label.as_deref())))),
        ("sha256", text(|seen| &seen.sha256)),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
        .expect("five columns of one length")
}

/// One row for each copy and each deletion; `source_*` and `sha256` are null for a deletion.
fn op_rows(reuse: &[Reuse], delete: &[(Split, String)], fingerprint: &str) -> RecordBatch {
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
