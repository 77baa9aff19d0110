//! `imagedex cluster scheduler`: Ballista's scheduler, which knows our function by name and hands out tasks to executors.
//!
//! Executors ask for work; nothing connects to them but who fetches results. So an executor needs no open port for orders, and one that
//! is slow takes less.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use ballista_core::utils::default_session_builder;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::create_scheduler;
use datafusion::execution::FunctionRegistry;
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::tls::{self, Tls};
use super::udf::embed_image;
use super::worker::Worker;
use super::{ClusterError, TlsFiles};
use crate::commands::say;
use crate::interrupt;

/// A part and its answer may take so much on the wire; Ballista refuses what is larger.
pub(super) const MOST_BYTES: u32 = 256 << 20;

/// How it is started.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    pub bind: IpAddr,
    pub port: u16,
    /// After so many seconds without a word an executor counts as lost, and its tasks go to others.
    pub executor_timeout: u64,
    pub tls: Option<TlsFiles>,
}

/// Runs until it is asked to end.
pub fn run(options: &SchedulerOptions) -> anyhow::Result<()> {
    let tls = options.tls.as_ref().map(Tls::read).transpose()?;
    super::job::runtime()?.block_on(serve(options, tls))
}

async fn serve(options: &SchedulerOptions, tls: Option<Tls>) -> anyhow::Result<()> {
    let address = SocketAddr::new(options.bind, options.port);
    let failed =
        |reason: String| ClusterError::Start { what: "scheduler", address: address.to_string(), reason };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| failed(error.to_string()))?;
    let function = Arc::new(embed_image(Arc::new(Worker::nowhere())));
    let config = SchedulerConfig {
        bind_host: options.bind.to_string(),
        bind_port: options.port,
        external_host: options.bind.to_string(),
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        executor_timeout_seconds: options.executor_timeout,
        expire_dead_executor_interval_seconds: (options.executor_timeout / 4).clamp(1, 15),
        no_executors_grace_period_seconds: options.executor_timeout,
        // Answers are fetched at once. Kept longer they would fill the executors' disks.
        finished_job_data_clean_up_interval_seconds: 60,
        finished_job_state_clean_up_interval_seconds: 300,
        grpc_server_max_decoding_message_size: MOST_BYTES,
        grpc_server_max_encoding_message_size: MOST_BYTES,
        override_session_builder: Some(Arc::new(move |config: SessionConfig| {
            let mut state = default_session_builder(config)?;
            state.register_udf(function.clone())?;
            Ok(state)
        })),
        override_create_grpc_client_endpoint: Some(tls::endpoint(tls.as_ref())),
        use_tls: tls.is_some(),
        ..SchedulerConfig::default()
    };
    let started = async {
        let cluster = BallistaCluster::new_from_config(&config).await?;
        create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config)).await
    };
    let scheduler = started.await.map_err(|error| failed(error.to_string()))?;
    // Whoever vanished would stay connected for ever.
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)));
    if let Some(tls) = &tls {
        server = server.tls_config(tls.server()).map_err(|error| failed(super::job::whole(&error)))?;
    }
    let service = SchedulerGrpcServer::new(scheduler)
        .max_decoding_message_size(MOST_BYTES as usize)
        .max_encoding_message_size(MOST_BYTES as usize);
    let address = listener.local_addr().unwrap_or(address);
    let how = if tls.is_some() { ", TLS on both sides" } else { "" };
    say(format!("scheduler at df://{address}{how}\n").as_bytes())?;
    tls::warn_of_strangers(options.bind, tls.as_ref());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = server.add_service(service).serve_with_incoming_shutdown(incoming, asked_to_end());
    // What is connected would hold it up for ever.
    tokio::select! {
        served = served => served.map_err(|error| failed(super::job::whole(&error)))?,
        () = async { asked_to_end().await; tokio::time::sleep(Duration::from_secs(2)).await } => {}
    }
    Ok(())
}

pub(super) async fn asked_to_end() {
    while !interrupt::is_set() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
