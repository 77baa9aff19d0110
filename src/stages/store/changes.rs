//! What changed in a split since a version of the table: what an index that holds that version must be told, instead of
//! everything.
//!
//! Delta's change feed has a row for each row that a commit added or took away, so a picture may be in it many times;
//! here each is listed once, by what came of it. Two things a newcomer would get wrong: a commit that writes over a row
//! puts the old row and the new one into the feed, in no order, so within one commit *there* wins over *gone*; and the
//! feed lives in files that the table itself no longer needs, which are swept up after seven days
//! ([`compact`](FeatureStore::compact)), so it may not reach back far enough.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::error::DataFusionError;
use deltalake::delta_datafusion::DeltaCdfTableProvider;

use super::plan::text;
use super::{FeatureStore, StoreError};
use crate::panics;
use crate::stages::scan::Split;

/// The net changes of one split between two versions of the table. Ids are unique over both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The version that the changes lead away from.
    pub from: u64,
    /// The version that they lead to: that of the [`FeatureStore`].
    pub to: u64,
    /// Pictures of `to` that are new or were written again, ascending. Written again may mean with the same content.
    pub upserted: Vec<String>,
    /// Pictures that `to` does not hold, ascending: those that went away, and those that came and went in between.
    pub deleted: Vec<String>,
}

impl Changes {
    /// Whether both versions hold the same.
    pub fn is_empty(&self) -> bool {
        self.upserted.is_empty() && self.deleted.is_empty()
    }
}

impl FeatureStore {
    /// What became of the pictures of `split` from `version` to this one. Read the rows of `upserted` with
    /// [`for_each_row_of`](FeatureStore::for_each_row_of).
    ///
    /// `None` where the feed cannot tell, so that everything must be taken anew: the table never had that version, or
    /// files that the feed needs have been swept up. Whether `version` is one of this table at all the caller knows
    /// ([`table_id`](FeatureStore::table_id)).
    ///
    /// Memory: the changed ids. Vectors are not read.
    pub async fn changes_since(&self, version: u64, split: Split) -> Result<Option<Changes>, StoreError> {
        let mut changes = Changes { from: version, to: self.version(), ..Changes::default() };
        if changes.from > changes.to {
            return Ok(None);
        }
        if changes.from == changes.to {
            return Ok(Some(changes));
        }
        let rows = match self.net_changes(changes.from + 1, changes.to, split).await {
            Ok(rows) => rows,
            Err(error) => {
                // If the table itself is damaged, reading it in full will say so.
                let reason = StoreError::datafusion(self.dir(), error);
                tracing::info!("no change feed from version {version} on, so everything is read: {reason}");
                return Ok(None);
            }
        };
        for rows in rows {
            let (id, is_there) = (text(&rows, 0)?, rows.column(1).as_boolean());
            for (id, is_there) in id.iter().zip(is_there) {
                let (Some(id), Some(is_there)) = (id, is_there) else { continue };
                let list = if is_there { &mut changes.upserted } else { &mut changes.deleted };
                list.push(id.to_owned());
            }
        }
        Ok(Some(changes))
    }

    /// Each id that commits `first` to `last` touched, ascending, and whether it is there after them.
    async fn net_changes(
        &self,
        first: u64,
        last: u64,
        split: Split,
    ) -> Result<Vec<RecordBatch>, DataFusionError> {
        let feed = self.table.clone().scan_cdf().with_starting_version(first).with_ending_version(last);
        let context = self.context().await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        context.register_table("feed", Arc::new(DeltaCdfTableProvider::try_new(feed)?))?;
        panics::collected(context.sql(&NET_CHANGES.replace("$split", split.name())).await?).await
    }
}

/// The greatest commit decides, and in it a row that is there: `2 * commit + 1` for such a row, `2 * commit` for one that
/// went.
const NET_CHANGES: &str = "
    SELECT id, max(2 * CAST(_commit_version AS BIGINT)
                   + CASE WHEN _change_type IN ('insert', 'update_postimage') THEN 1 ELSE 0 END) % 2 = 1 AS is_there
    FROM feed
    WHERE split = '$split'
    GROUP BY id
    ORDER BY id";
