//! A real Milvus (`tests/milvus-node`) for tests: on free ports, in a temporary folder.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use milvus::v2::prelude::{
    AlterCollectionPropertiesRequest, CheckHealthRequest, ClientV2, ConnectConfig, CreateAliasRequest,
    CreateCollectionRequest, DataType, DescribeAliasRequest, DescribeCollectionRequest,
    DropCollectionRequest, Error, FieldSchema, ListCollectionsRequest, RetryConfig, TelemetryConfig,
};
use tempfile::TempDir;

use crate::elastic::runtime;
use crate::process::{Process, free_ports};
use crate::support::{cache, root};

/// The token of the user that a server with security begins with.
pub const ADMIN: &str = "root:Milvus";

/// One server.
pub struct MilvusNode {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Process,
}

impl MilvusNode {
    /// One server that tests share, each with aliases of its own.
    pub fn shared() -> &'static MilvusNode {
        static SHARED: OnceLock<MilvusNode> = OnceLock::new();
        SHARED.get_or_init(|| MilvusNode::start(|_| Vec::new()))
    }

    /// A server of one's own. `prepare` may put files into its folder, and says its settings.
    pub fn start(prepare: impl Fn(&Path) -> Vec<String>) -> MilvusNode {
        let mut last = String::new();
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let settings = prepare(folder.path());
            let port = free_ports();
            let process = spawn(&folder, port, &settings);
            let mut node = MilvusNode { folder, port, settings, process };
            match node.wait() {
                Ok(()) => return node,
                // Another program may take a port between our look and the server's start.
                Err(log) if log.contains("address already in use") => last = log,
                Err(log) => panic!("Milvus did not start:\n{log}"),
            }
        }
        panic!("Milvus found no free port:\n{last}");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        let scheme = if self.ca().exists() { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.port)
    }

    /// The authority of a server that speaks TLS.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.process.kill();
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again on the same port, with the same data.
    pub fn restart(&mut self) {
        self.process = spawn(&self.folder, self.port, &self.settings);
        self.wait().unwrap_or_else(|log| panic!("Milvus did not start again:\n{log}"));
    }

    fn wait(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(300)
            && self.process.server.try_wait().expect("its state").is_none()
        {
            let healthy = self.try_ask(|client| async move {
                Ok(client.check_health(CheckHealthRequest::builder().build()?).await?.is_healthy())
            });
            if matches!(healthy, Ok(true)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        // Of a Go program that gave up, not the state of its hundreds of threads.
        let words = log.split("\ngoroutine ").next().unwrap_or_default();
        Err(words.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Asks it by a client of its own.
    fn try_ask<T, F>(&self, ask: impl FnOnce(ClientV2) -> F) -> Result<T, Box<Error>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut how = ConnectConfig::new()
            .uri(self.url())
            .connect_timeout(Duration::from_secs(5))
            .rpc_timeout(Duration::from_secs(30))
            .retry(RetryConfig::new().max_attempts(1))
            .telemetry(TelemetryConfig::new().enabled(false));
        if self.ca().exists() {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            how = how.ca_certificate(self.ca().to_string_lossy()).token(ADMIN);
        }
        runtime().block_on(async { Ok(ask(ClientV2::new(&how).await?).await?) })
    }

    #[track_caller]
    pub fn ask<T, F>(&self, ask: impl FnOnce(ClientV2) -> F) -> T
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.try_ask(ask).expect("Milvus answers")
    }

    /// The collection that an alias stands for.
    pub fn behind(&self, alias: &str) -> Option<String> {
        self.try_ask(|client| async move {
            client.describe_alias(DescribeAliasRequest::builder().alias(alias).build()?).await
        })
        .ok()
        .map(|found| found.collection_name().to_owned())
    }

    /// All collections whose names begin with the alias.
    pub fn collections(&self, alias: &str) -> Vec<String> {
        let all = self.ask(|client| async move {
            client.list_collections(ListCollectionsRequest::builder().build()?).await
        });
        let mut names: Vec<String> =
            all.collection_names().iter().filter(|name| name.starts_with(alias)).cloned().collect();
        names.sort();
        names
    }

    /// Makes a collection that is not ours.
    pub fn make(&self, name: &str, property: Option<(&str, &str)>) {
        self.ask(|client| async move {
            let field = |name: &str, data_type| FieldSchema::new().name(name).data_type(data_type);
            let schema = milvus::v2::prelude::CollectionSchema::new()
                .add_field(field("id", DataType::Int64).primary_key(true))
                .add_field(field("v", DataType::FloatVector).dimension(2));
            let request = CreateCollectionRequest::builder().collection_name(name).schema(schema);
            let properties = property.map(|(key, value)| (key.to_owned(), value.to_owned()));
            client
                .create_collection(
                    request.description("another's").properties(properties.into_iter().collect()).build()?,
                )
                .await
        });
    }

    /// What a collection of ours says of itself.
    pub fn meta(&self, name: &str) -> serde_json::Value {
        let found = self.ask(|client| async move {
            let request = DescribeCollectionRequest::builder().collection_name(name);
            client.describe_collection(request.build()?).await
        });
        serde_json::from_str(&found.description().get_properties()["imagedex.load"]).expect("JSON")
    }

    pub fn set_meta(&self, name: &str, meta: &serde_json::Value) {
        self.ask(|client| async move {
            let request = AlterCollectionPropertiesRequest::builder().collection_name(name);
            client
                .alter_collection_properties(request.property("imagedex.load", meta.to_string()).build()?)
                .await
        });
    }

    pub fn remove(&self, name: &str) {
        self.ask(|client| async move {
            client.drop_collection(DropCollectionRequest::builder().collection_name(name).build()?).await
        });
    }

    pub fn point(&self, alias: &str, collection: &str) {
        self.ask(|client| async move {
            let request = CreateAliasRequest::builder().alias(alias).collection_name(collection);
            client.create_alias(request.build()?).await
        });
    }
}

fn spawn(folder: &TempDir, port: u16, settings: &[String]) -> Process {
    let home = cache().join("milvus-node/home");
    assert!(home.is_dir(), "{} is missing: run `make setup-milvus`", home.display());
    let mut command = Command::new("python3");
    command.arg(root().join("tests/milvus-node/run.py")).arg(home).arg(port.to_string()).arg(folder.path());
    Process::start(command.args(settings), folder)
}

#[test]
fn it_is_the_real_thing_and_keeps_its_collections_through_kill_9() {
    let mut node = MilvusNode::start(|_| Vec::new());
    let version = node.ask(|client| async move {
        client.server_version(milvus::v2::prelude::GetServerVersionRequest::builder().build()?).await
    });
    assert!(version.version().contains("2.3.5"), "{}", version.version());
    node.make("kept", None);
    node.kill();
    node.restart();
    assert_eq!(node.collections("kept"), ["kept"]);
}
