//! The function `embed_image(location, spec)` of DataFusion's SQL: what an executor is asked to run.
//!
//! It is asynchronous, so that a task that waits for the model blocks no thread of the executor, and it takes a part as one batch: decoding
//! and model overlap inside. It is registered three times: with the driver, which writes the query, with the scheduler,
//! which plans it, and with the executors. On the wire it is a name.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, exec_err};
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::answer::{row_type, to_array};
use super::worker::{Item, Worker};

/// The function's name in SQL.
pub const NAME: &str = "embed_image";

/// The function, run by `worker`.
pub fn embed_image(worker: Arc<Worker>) -> ScalarUDF {
    let text = DataType::Utf8;
    let signature = Signature::exact(vec![text.clone(), text], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(EmbedImage { worker, signature })).into_scalar_udf()
}

#[derive(Debug)]
struct EmbedImage {
    worker: Arc<Worker>,
    signature: Signature,
}

impl PartialEq for EmbedImage {
    fn eq(&self, other: &EmbedImage) -> bool {
        Arc::ptr_eq(&self.worker, &other.worker)
    }
}

impl Eq for EmbedImage {}

impl Hash for EmbedImage {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.worker).hash(state);
    }
}

impl ScalarUDFImpl for EmbedImage {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(row_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{NAME} is asynchronous")
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for EmbedImage {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [locations, specs] = &args.args[..] else { return exec_err!("{NAME} takes two values") };
        let texts = |value: &ColumnarValue| cast(&value.to_array(args.number_rows)?, &DataType::Utf8);
        let (locations, specs) = (texts(locations)?, texts(specs)?);
        let items = locations.as_string::<i32>().iter();
        let items: Vec<Item> =
            items.map(|location| Item { location: location.unwrap_or_default().to_owned() }).collect();
        if items.is_empty() {
            return Ok(ColumnarValue::Array(to_array(&[])?));
        }
        let spec = specs.as_string::<i32>().value(0).to_owned();
        let worker = self.worker.clone();
        let abandoned = Abandoned::default();
        let stop = abandoned.0.clone();
        let rows = tokio::task::spawn_blocking(move || worker.answer(&items, &spec, &stop)).await;
        let rows = rows.map_err(|error| DataFusionError::Execution(format!("{NAME}: {error}")))?;
        Ok(ColumnarValue::Array(to_array(&rows)?))
    }
}

/// Says that nobody waits for the answer, once it is dropped: a query that was cancelled decodes no further.
#[derive(Default)]
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
