//! `imagedex cluster executor`: Ballista's executor with our function. It asks the scheduler for tasks, and keeps answers for whoever
//! fetches them in a folder of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_server::FlightServiceServer;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::error::BallistaError;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::utils::create_grpc_server;
use ballista_executor::ArrowFlightServerProvider;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_executor::flight_service::BallistaFlightService;
use ballista_executor::health::ExecutorHealth;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionStateBuilder;

use super::scheduler::{MOST_BYTES, asked_to_end};
use super::tls::{self, Tls};
use super::udf::embed_image;
use super::worker::Worker;
use super::{ClusterError, TlsFiles};
use crate::commands::say;
use crate::embedders::Runtime;
use crate::embedders::onnx::runtime_facts;
use crate::exit::Exit;
use crate::interrupt;
use crate::models;

/// How it is started.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// The scheduler's host and port.
    pub scheduler: (String, u16),
    pub bind: IpAddr,
    pub port: u16,
    /// The name under which the driver reaches it; an IPv6 address in brackets.
    pub host: String,
    /// Tasks at a time: while one waits for the model, the other decodes.
    pub tasks: usize,
    /// Where answers are kept until they are fetched; default: a temporary folder.
    pub work: Option<PathBuf>,
    pub cache: PathBuf,
    pub runtime: Runtime,
    /// How long it waits for its scheduler at the start, in seconds.
    pub patience: u16,
    pub tls: Option<TlsFiles>,
}

/// Runs until it is asked to end.
pub fn run(options: &ExecutorOptions) -> anyhow::Result<()> {
    let tls = options.tls.as_ref().map(Tls::read).transpose()?;
    let name = format!("{}:{}", options.host, options.port);
    let failed = |reason: String| ClusterError::Start { what: "executor", address: name.clone(), reason };
    // Ballista would end without a word.
    let address = SocketAddr::new(options.bind, options.port);
    drop(std::net::TcpListener::bind(address).map_err(|error| failed(format!("{address}: {error}")))?);
    let facts = runtime_facts(&options.runtime)?;
    let folder = match &options.work {
        Some(work) => tempfile::Builder::new().prefix("executor-").tempdir_in(work),
        None => tempfile::tempdir(),
    };
    let folder = folder.map_err(|error| failed(format!("its work folder: {error}")))?;
    let worker = Worker::new(name.clone(), models::dir(&options.cache), options.runtime.clone());
    let mut state = SessionStateBuilder::new().with_default_features().build();
    state.register_udf(Arc::new(embed_image(Arc::new(worker)))).map_err(|error| failed(error.to_string()))?;
    let (scheduler_host, scheduler_port) = options.scheduler.clone();
    let health = ExecutorHealth::new();
    let config = ExecutorProcessConfig {
        bind_host: in_url(options.bind),
        external_host: Some(options.host.clone()),
        port: options.port,
        // Not opened: it asks for work, and takes no orders.
        grpc_port: options.port,
        scheduler_host: scheduler_host.clone(),
        scheduler_port,
        // Waited for by us: with a time here, Ballista 55 waits for ever.
        scheduler_connect_timeout_seconds: 0,
        vcores: options.tasks,
        task_scheduling_policy: TaskSchedulingPolicy::PullStaged,
        work_dir: Some(folder.path().display().to_string()),
        // The model's memory is not Ballista's to give; its own operators take next to nothing here.
        memory_pool_size: Some(0),
        job_data_ttl_seconds: 3600,
        job_data_clean_up_interval_seconds: 600,
        grpc_max_decoding_message_size: MOST_BYTES,
        grpc_max_encoding_message_size: MOST_BYTES,
        override_function_registry: Some(Arc::new(BallistaFunctionRegistry::from(&state))),
        override_create_grpc_client_endpoint: Some(tls::endpoint(tls.as_ref())),
        override_arrow_flight_service: tls.as_ref().map(flight_over_tls),
        health: health.clone(),
        ..ExecutorProcessConfig::default()
    };
    let of = format!("df://{scheduler_host}:{scheduler_port}");
    let how = if tls.is_some() { ", TLS on both sides" } else { "" };
    say(format!("executor {name} of {of}{how}; ONNX Runtime {}, CPU {}\n", facts.onnxruntime, facts.cpu)
        .as_bytes())?;
    tls::warn_of_strangers(options.bind, tls.as_ref());
    let runtime = super::job::runtime()?;
    runtime.block_on(wait_for(
        &of,
        &format!("http://{scheduler_host}:{scheduler_port}"),
        tls.as_ref(),
        options.patience,
    ))?;
    runtime.spawn(report(health, of.clone()));
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = start_executor_process(Arc::new(config)) => Some(ended),
            // By then Ballista has told the scheduler, which gives its tasks to others. It would go on asking for new ones: the sooner it ends,
            // the fewer it has, which wait until the scheduler takes it for lost.
            () = async { asked_to_end().await; tokio::time::sleep(Duration::from_millis(500)).await } => None,
        }
    });
    let Some(ended) = ended else {
        tracing::info!("ended; the scheduler gives its tasks to others");
        drop(folder);
        interrupt::leave(Exit::Done)
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map_err(|error| match error {
        BallistaError::GrpcConnectionError(reason) | BallistaError::General(reason) => {
            ClusterError::Scheduler { address: of, reason }
        }
        other => failed(other.to_string()),
    })?;
    Ok(())
}

/// An address as a URL has it.
pub fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Until the scheduler answers, for `patience` seconds at most.
async fn wait_for(address: &str, url: &str, tls: Option<&Tls>, patience: u16) -> Result<(), ClusterError> {
    let started = Instant::now();
    while let Err(reason) = super::job::connect(url, tls).await {
        if started.elapsed() > Duration::from_secs(patience.into()) || interrupt::is_set() {
            return Err(ClusterError::Scheduler { address: address.to_owned(), reason });
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// Says when the scheduler is lost, and when it is back: Ballista goes on asking for ever, in silence.
async fn report(health: ExecutorHealth, scheduler: String) {
    let mut was_ready = false;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let is_ready = health.is_ready();
        match (was_ready, is_ready) {
            (false, true) => tracing::info!("connected to {scheduler}"),
            (true, false) => tracing::warn!("{scheduler} does not answer; asking again until it does"),
            _ => {}
        }
        was_ready = is_ready;
    }
}

/// Ballista's own service, which hands out answers, behind TLS.
fn flight_over_tls(tls: &Tls) -> Arc<ArrowFlightServerProvider> {
    let tls = tls.server();
    Arc::new(move |folder, address, mut shutdown, config| {
        let tls = tls.clone();
        tokio::spawn(async move {
            let service = FlightServiceServer::new(BallistaFlightService::new(folder))
                .max_decoding_message_size(MOST_BYTES as usize)
                .max_encoding_message_size(MOST_BYTES as usize);
            let mut server =
                create_grpc_server(&config).tls_config(tls).map_err(BallistaError::TonicError)?;
            let served = server.add_service(service).serve_with_shutdown(address, shutdown.recv());
            served.await.map_err(BallistaError::TonicError)
        })
    })
}
