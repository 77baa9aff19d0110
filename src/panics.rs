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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array};
    use datafusion::arrow::datatypes::{DataType, Int64Type};
    use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
    use datafusion::prelude::{SessionContext, col};

    use super::*;

    /// A function that panics over a 3, as a Parquet reader over a damaged page.
    fn damaged_at_3() -> ScalarUDF {
        create_udf(
            "read",
            vec![DataType::Int64],
            DataType::Int64,
            Volatility::Volatile,
            Arc::new(|columns| {
                for column in ColumnarValue::values_to_arrays(columns)? {
                    assert!(
                        !column.as_primitive::<Int64Type>().iter().any(|value| value == Some(3)),
                        "a damaged page"
                    );
                }
                Ok(columns[0].clone())
            }),
        )
    }

    /// A batch for each number.
    fn rows(numbers: &[i64]) -> DataFrame {
        let context = SessionContext::new();
        let batch = |number| {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![number]));
            RecordBatch::try_from_iter([("number", column)]).expect("a column")
        };
        let batches: Vec<RecordBatch> = numbers.iter().copied().map(batch).collect();
        let rows = context.read_batches(batches).expect("rows");
        rows.select(vec![damaged_at_3().call(vec![col("number")])]).expect("a query")
    }

    #[tokio::test]
    async fn a_reader_that_panics_is_an_error() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(caught(|| -> i32 { panic!("a damaged page") }), None);

        let mut stream = Rows::of(rows(&[1, 2]));
        for number in [1, 2] {
            let batch = stream.next().await.expect("a batch").expect("whole");
            assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(0), number);
        }
        assert!(stream.next().await.is_none());
        assert_eq!(collected(rows(&[1, 2])).await.expect("whole").len(), 2);

        let mut stream = Rows::of(rows(&[1, 3, 4]));
        let error = loop {
            if let Err(error) = stream.next().await.expect("an error before the end") {
                break error;
            }
        };
        assert!(error.to_string().ends_with(DAMAGED), "{error}");
        assert!(stream.next().await.is_none(), "nothing after an error");
        let error = collected(rows(&[3])).await.expect_err("damaged");
        assert!(error.to_string().ends_with(DAMAGED), "{error}");
    }
}
