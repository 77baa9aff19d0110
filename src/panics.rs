//! Libraries panic over some damaged files. Whoever reads a file that may be damaged reads it here, on a thread of its own, whose
//! end is the end of the reading alone; `main` keeps what a panic says from people.

use datafusion::arrow::array::RecordBatch;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

/// What `read` gives; `None` where it panicked.
pub fn caught<T: Send>(read: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| scope.spawn(read).join().ok())
}

/// What is said of a file whose reader panicked.
pub const DAMAGED: &str = "its content is damaged";

/// What a query over files that may be damaged gives: batch by batch, one ahead of what was taken.
pub struct Rows {
    batches: mpsc::Receiver<RecordBatch>,
    query: Option<JoinHandle<Result<(), DataFusionError>>>,
}

impl Rows {
    /// Asks in a task of its own, within a runtime.
    pub fn of(query: DataFrame) -> Self {
        let (sender, batches) = mpsc::channel(1);
        let query = tokio::spawn(async move {
            let mut rows = query.execute_stream().await?;
            while let Some(batch) = rows.next().await {
                if sender.send(batch?).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        Self { batches, query: Some(query) }
    }

    /// The next batch; after the last one, or after an error, `None`.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, DataFusionError>> {
        match self.batches.recv().await {
            Some(batch) => Some(Ok(batch)),
            None => self.query.take()?.await.unwrap_or_else(damaged).err().map(Err),
        }
    }
}

/// All that a query over files that may be damaged gives.
pub async fn collected(query: DataFrame) -> Result<Vec<RecordBatch>, DataFusionError> {
    tokio::spawn(query.collect()).await.unwrap_or_else(damaged)
}

fn damaged<T>(_panic: JoinError) -> Result<T, DataFusionError> {
    Err(DataFusionError::External(DAMAGED.into()))
}
