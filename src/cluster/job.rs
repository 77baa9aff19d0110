//! One query sent to a cluster, its answer, and how it is taken back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use ballista_core::execution_plans::DistributedQueryExec;
use ballista_core::extension::SessionConfigExt;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{CancelJobParams, GetJobStatusParams};
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, ScalarUDF, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_proto::protobuf::LogicalPlanNode;
use futures::TryStreamExt;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::answer::{Row, from_array};
use super::scheduler::MOST_BYTES;
use super::tls::{self, Tls};
use super::udf::embed_image;
use super::worker::Worker;
use super::{ClusterConfig, ClusterError};

/// To connect to a scheduler that is there.
const CONNECT: Duration = Duration::from_secs(5);

/// Why a query has no answer.
#[derive(Debug)]
pub enum Trouble {
    /// The scheduler does not answer at all.
    Away(String),
    /// All executors were lost while it ran.
    Alone,
    /// The query failed.
    Failed(String),
}

/// What Ballista says then; it has no code for it.
const ALONE: &str = "all executors were lost";

/// A way to a cluster.
pub struct Cluster {
    url: String,
    context: SessionContext,
    function: Arc<ScalarUDF>,
    tls: Option<Tls>,
    /// Queries that are at the cluster, those included that are being taken back.
    open: AtomicUsize,
}

/// A picture as it is asked for: its number and its location. Not its hash: that the answer has it shows that the bytes were read.
pub type Wanted = (u64, String);

impl Cluster {
    /// Reads certificates; connects to nothing yet.
    pub fn new(config: &ClusterConfig) -> std::result::Result<Cluster, ClusterError> {
        let tls = config.tls.as_ref().map(Tls::read).transpose()?;
        let session = SessionConfig::new_with_ballista()
            // A part is one task.
            .with_target_partitions(1)
            .with_ballista_grpc_client_max_message_size(MOST_BYTES as usize)
            .with_ballista_use_tls(tls.is_some())
            // It asks how the query goes, again and again. Waiting to be told, it would not notice a scheduler that has died.
            .set_bool("ballista.client.pull", true)
            // Tries are ours.
            .set_usize("ballista.client.io_retries_times", 1)
            .set_usize("ballista.client.io_retry_wait_time_ms", 200)
            .with_ballista_override_create_grpc_client_endpoint(tls::endpoint(tls.as_ref()));
        Ok(Cluster {
            url: format!("http://{}:{}", config.host, config.port),
            context: SessionContext::new_with_config(session),
            function: Arc::new(embed_image(Arc::new(Worker::nowhere()))),
            tls,
            open: AtomicUsize::new(0),
        })
    }

    /// Whether the scheduler answers; if not, why.
    pub async fn look(&self) -> std::result::Result<(), String> {
        connect(&self.url, self.tls.as_ref()).await.map(drop)
    }

    /// Waits until no query is at the cluster any more, for `most` at most: else the next run would wait for the work of this one.
    pub async fn settle(&self, most: Duration) {
        let started = Instant::now();
        while self.open.load(Ordering::Relaxed) > 0 && started.elapsed() < most {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a query for `wanted`, and waits for its answer: rows by their numbers. Dropping the future takes the query back.
    pub async fn ask(
        self: Arc<Cluster>,
        wanted: Vec<Wanted>,
        spec: Arc<str>,
    ) -> std::result::Result<BTreeMap<u64, Row>, Trouble> {
        // A scheduler that hangs is known in seconds so; the query would wait for much longer.
        self.look().await.map_err(Trouble::Away)?;
        let failed = |error: &dyn std::fmt::Display| error.to_string().replace('\n', " ");
        let plan = query(&self.function, &wanted, &spec).map_err(|error| Trouble::Failed(failed(&error)))?;
        let ballista = self.context.copied_config().ballista_config();
        let session = self.context.session_id();
        let query =
            Arc::new(DistributedQueryExec::<LogicalPlanNode>::new(self.url.clone(), ballista, plan, session));
        self.open.fetch_add(1, Ordering::Relaxed);
        let taken_back = TakenBack { cluster: self.clone(), query: Some(query.clone()) };
        let answer = async {
            let batches: Vec<RecordBatch> = query.execute(0, self.context.task_ctx())?.try_collect().await?;
            rows(&batches, wanted.len())
        };
        match answer.await {
            Ok(rows) => {
                taken_back.keep();
                Ok(rows)
            }
            Err(error) => match connect(&self.url, self.tls.as_ref()).await {
                Ok(_) if error.to_string().contains(ALONE) => Err(Trouble::Alone),
                Ok(_) => Err(Trouble::Failed(failed(&error))),
                Err(reason) => Err(Trouble::Away(reason)),
            },
        }
    }
}

/// A connection to the scheduler at `url`, which has answered a question, or why there is none.
///
/// The question is needed: that a port takes connections does not say who is there.
pub async fn connect(
    url: &str,
    tls: Option<&Tls>,
) -> std::result::Result<SchedulerGrpcClient<Channel>, String> {
    let asked = async {
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| whole(&error))?;
        let endpoint = tls::endpoint(tls)(endpoint).map_err(|error| whole(&*error))?;
        let mut scheduler =
            SchedulerGrpcClient::new(endpoint.connect().await.map_err(|error| whole(&error))?);
        // Of a job that it does not know a scheduler says so, which is no error.
        let asked = scheduler.get_job_status(GetJobStatusParams { job_id: "none".to_owned() }).await;
        asked.map_err(|status| whole(&status))?;
        Ok(scheduler)
    };
    match tokio::time::timeout(CONNECT, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(format!("no answer within {} s", CONNECT.as_secs())),
    }
}

/// Takes a query back when nobody waits for it any more.
struct TakenBack {
    cluster: Arc<Cluster>,
    query: Option<Arc<DistributedQueryExec<LogicalPlanNode>>>,
}

impl TakenBack {
    fn keep(mut self) {
        self.query = None;
    }
}

impl Drop for TakenBack {
    fn drop(&mut self) {
        let cluster = self.cluster.clone();
        let job = self.query.take().and_then(|query| query.job_id());
        let (Some(job), Ok(runtime)) = (job, tokio::runtime::Handle::try_current()) else {
            cluster.open.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        runtime.spawn(async move {
            // What cannot be taken back is computed for nothing; its answer is looked at by nobody.
            if let Ok(mut scheduler) = connect(&cluster.url, cluster.tls.as_ref()).await {
                let _ = scheduler.cancel_job(CancelJobParams { job_id: job.to_string() }).await;
            }
            cluster.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// `SELECT picture, embed_image(location, spec) FROM (VALUES …)`: the list travels in the query, so nothing but the
/// pictures has to be on a disk that all machines see.
pub fn query(function: &Arc<ScalarUDF>, wanted: &[Wanted], spec: &str) -> Result<LogicalPlan> {
    let row = |(number, location): &Wanted| -> Vec<Expr> { vec![lit(*number), lit(location.as_str())] };
    let answer = function.call(vec![col("column2"), lit(spec)]).alias("answer");
    LogicalPlanBuilder::values(wanted.iter().map(row).collect())?
        .project([col("column1").alias("picture"), answer])?
        .build()
}

/// The rows of an answer by their numbers, each of which must be there once.
pub fn rows(batches: &[RecordBatch], wanted: usize) -> Result<BTreeMap<u64, Row>> {
    let mut rows = BTreeMap::new();
    let mut count = 0;
    for batch in batches {
        let numbers = batch.column(0).as_primitive::<UInt64Type>().values();
        count += numbers.len();
        rows.extend(numbers.iter().copied().zip(from_array(batch.column(1))?));
    }
    match (count, rows.len()) {
        (count, distinct) if count == wanted && distinct == wanted => Ok(rows),
        (count, distinct) => {
            datafusion::common::exec_err!(
                "{count} rows ({distinct} different) were answered for {wanted} pictures"
            )
        }
    }
}

/// An error with its causes: Tonic's say "transport error" alone.
pub fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text += &format!(": {said}");
        }
        source = cause.source();
    }
    text
}

/// The runtime of a scheduler or an executor.
pub fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // As in `pipeline::async_runtime`; Ballista's own programs take twice as much.
        .thread_stack_size(32 << 20)
        .build()
        .context("cannot start threads for the cluster")
}
