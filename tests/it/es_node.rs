//! A real Elasticsearch (`tests/es-node`) or OpenSearch (`tests/opensearch-node`) for tests: on loopback, on free ports, in a temporary folder.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use elasticsearch::auth::Credentials;
use elasticsearch::cert::{Certificate, CertificateValidation};
use elasticsearch::http::Method;
use elasticsearch::http::headers::HeaderMap;
use elasticsearch::http::transport::{SingleNodeConnectionPool, TransportBuilder};
use imagedex::engines::elastic::Product;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, free_ports};
use crate::support::{cache, root};

/// A user's name and password on a node with security.
pub type User = (&'static str, &'static str);

/// May do everything.
pub const ADMIN: User = ("admin", "admin-password");
/// May look at the cluster and read indices, no more.
pub const READER: User = ("reader", "reader-password");

/// One server.
pub struct Node {
    product: Product,
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Process,
}

impl Node {
    /// One server that tests share, each with indices of its own.
    pub fn shared() -> &'static Node {
        static SHARED: OnceLock<Node> = OnceLock::new();
        SHARED.get_or_init(|| Node::start(&[]))
    }

    /// The same of OpenSearch.
    pub fn shared_opensearch() -> &'static Node {
        static SHARED: OnceLock<Node> = OnceLock::new();
        SHARED.get_or_init(|| Node::opensearch(&[]))
    }

    /// An OpenSearch of one's own.
    pub fn opensearch(settings: &[&str]) -> Node {
        Node::prepared(Product::OpenSearch, settings, |_| {})
    }

    /// A server of one's own, with settings such as `indexing_pressure.memory.limit=1mb`.
    pub fn start(settings: &[&str]) -> Node {
        Node::prepared(Product::Elasticsearch, settings, |_| {})
    }

    /// A server of one's own that speaks TLS and knows two users, [`ADMIN`] and [`READER`].
    pub fn start_secure() -> Node {
        let settings = [
            "xpack.security.enabled=true",
            "xpack.security.http.ssl.enabled=true",
            "xpack.security.http.ssl.key=node.key",
            "xpack.security.http.ssl.certificate=node.pem",
        ];
        Node::prepared(Product::Elasticsearch, &settings, |config| {
            let mut script = Command::new("bash");
            script.arg(root().join("tests/es-node/secure.sh")).arg(home(Product::Elasticsearch)).arg(config);
            let said = script.args([ADMIN.0, ADMIN.1, READER.0, READER.1]).output().expect("bash starts");
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        })
    }

    /// A server whose configuration folder is filled by `prepare` before it starts.
    pub fn prepared(product: Product, settings: &[&str], prepare: impl Fn(&Path)) -> Node {
        let mut last = String::new();
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let config = folder.path().join("config");
            let copied = Command::new("cp").arg("-r").arg(home(product).join("config")).arg(&config).status();
            assert!(copied.expect("cp starts").success());
            prepare(&config);
            let settings: Vec<String> = settings.iter().map(|text| (*text).to_owned()).collect();
            let port = free_ports();
            let process = spawn(product, &folder, port, &settings);
            let mut node = Node { product, folder, port, settings, process };
            match node.wait() {
                Ok(()) => return node,
                // Another program may take a port between our look and the server's start.
                Err(log) if log.contains("Failed to bind") => last = log,
                Err(log) => panic!("{product} did not start:\n{log}"),
            }
        }
        panic!("{product} found no free port:\n{last}");
    }

    pub fn product(&self) -> Product {
        self.product
    }

    pub fn url(&self) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that signed the certificate of a node with security.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("config/ca.pem")
    }

    /// Ends it as a power cut would: at once, with no word to anyone.
    pub fn kill(&mut self) {
        self.process.kill();
        // That was the launcher. The server is not our child: it has ended when its port is closed.
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again on the same port, with the same data.
    pub fn restart(&mut self) {
        self.process = spawn(self.product, &self.folder, self.port, &self.settings);
        self.wait().unwrap_or_else(|log| panic!("{} did not start again:\n{log}", self.product));
    }

    /// Waits until it has found its indices; its log where it does not.
    fn wait(&mut self) -> Result<(), String> {
        let limit = Duration::from_secs(300);
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < limit && self.process.server.try_wait().expect("its state").is_none() {
            match self.try_request("GET", "/_cluster/health?wait_for_status=yellow&timeout=30s", None) {
                Ok((200, _)) => return Ok(()),
                Ok((status, answer)) => last = format!("{status} {answer}"),
                Err(error) => last = error.to_string(),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        Err(format!("{log}\nthe last answer: {last}"))
    }

    /// A request and its answer: status and JSON. With security, it is [`ADMIN`]'s.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.try_request(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> std::io::Result<(u16, Value)> {
        if self.is_secure() {
            return self.request_as(Some(ADMIN), method, path, body);
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let length = body.len();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        // By HTTP/1.0, an answer ends with the connection.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
        )?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let answer = String::from_utf8_lossy(&bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
        let (head, body) = (String::from_utf8_lossy(&bytes[..end]), bytes.get(end + 4..).unwrap_or(&[]));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("not HTTP: {answer}")))?;
        // The server sends long answers in chunks even so: a length in hexadecimal, then so many bytes.
        let mut whole = Vec::new();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            let mut rest = body;
            while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
                let length = String::from_utf8_lossy(&rest[..line]);
                let length = usize::from_str_radix(&length, 16).map_err(std::io::Error::other)?;
                let chunk = &rest[line + 2..];
                whole.extend_from_slice(&chunk[..length.min(chunk.len())]);
                rest = chunk.get(length + 2..).unwrap_or(&[]);
            }
        } else {
            whole.extend_from_slice(body);
        }
        let json = if whole.is_empty() { b"null" } else { whole.as_slice() };
        let parsed = serde_json::from_slice(json);
        Ok((status, parsed.map_err(|error| std::io::Error::other(format!("{error}: {answer}")))?))
    }

    /// A request over TLS, as a user or as nobody.
    pub fn request_as(
        &self,
        user: Option<User>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> std::io::Result<(u16, Value)> {
        let method = match method {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            other => panic!("no test sends {other}"),
        };
        let ca = Certificate::from_pem(&std::fs::read(self.ca())?).map_err(std::io::Error::other)?;
        let pool = SingleNodeConnectionPool::new(self.url().parse().expect("a URL"));
        let mut builder = TransportBuilder::new(pool)
            .timeout(Duration::from_secs(60))
            .cert_validation(CertificateValidation::Full(ca));
        if let Some((name, password)) = user {
            builder = builder.auth(Credentials::Basic(name.to_owned(), password.to_owned()));
        }
        let transport = builder.build().map_err(std::io::Error::other)?;
        let answer = async {
            let response = transport
                .send(method, path, HeaderMap::new(), None::<&()>, body.map(|body| body.to_string()), None)
                .await?;
            Ok((response.status_code().as_u16(), response.json().await.unwrap_or(Value::Null)))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(answer).map_err(|error: elasticsearch::Error| std::io::Error::other(error))
    }

    fn is_secure(&self) -> bool {
        self.settings.iter().any(|setting| setting == "xpack.security.http.ssl.enabled=true")
    }

    /// What must succeed: the answer's JSON.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.request(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// The indices that an alias stands for.
    pub fn behind(&self, alias: &str) -> Vec<String> {
        match self.request("GET", &format!("/_alias/{alias}"), None) {
            (200, Value::Object(indices)) => indices.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// All indices whose names begin with the alias.
    pub fn indices(&self, alias: &str) -> Vec<String> {
        let path = format!("/{alias}-*?expand_wildcards=all&allow_no_indices=true");
        self.ask("GET", &path, None)
            .as_object()
            .map(|found| found.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// How many documents an index holds.
    pub fn count(&self, index: &str) -> u64 {
        self.ask("POST", &format!("/{index}/_refresh"), None);
        self.ask("GET", &format!("/{index}/_count"), None)["count"].as_u64().expect("a count")
    }
}

/// What belongs to a server: its folder in `tests` and in the cache, and what sets it up.
fn kit(product: Product) -> (&'static str, &'static str) {
    match product {
        Product::Elasticsearch => ("es-node", "make setup-es"),
        Product::OpenSearch => ("opensearch-node", "make setup-opensearch"),
    }
}

/// Where set-up put the server.
fn home(product: Product) -> PathBuf {
    let (folder, setup) = kit(product);
    let home = cache().join(folder).join("home");
    assert!(home.is_dir(), "{} is missing: run `{setup}`", home.display());
    home
}

/// Starts the server.
fn spawn(product: Product, folder: &TempDir, port: u16, settings: &[String]) -> Process {
    let mut command = Command::new("bash");
    command
        .arg(root().join("tests").join(kit(product).0).join("run.sh"))
        .arg(home(product))
        .arg(port.to_string())
        .arg(folder.path())
        .args(settings);
    Process::start(&mut command, folder)
}

#[test]
fn it_is_the_real_thing_and_scores_by_script() {
    let node = Node::shared();
    assert_eq!(node.ask("GET", "/", None)["version"]["number"], "9.5.3");
    let vector = serde_json::json!({ "v": { "type": "dense_vector", "dims": 2, "index": false } });
    node.ask("PUT", "/es-node-scores", Some(serde_json::json!({ "mappings": { "properties": vector } })));
    node.ask("PUT", "/es-node-scores/_doc/1?refresh=true", Some(serde_json::json!({ "v": [3.0, 4.0] })));
    let script = serde_json::json!({ "source": "cosineSimilarity(params.q, 'v') + 1.0", "params": { "q": [4.0, 3.0] } });
    let query = serde_json::json!({ "query": { "script_score": { "query": { "match_all": {} }, "script": script } } });
    let found = node.ask("POST", "/es-node-scores/_search", Some(query));
    let score = found["hits"]["hits"][0]["_score"].as_f64().expect("a score");
    assert!((score - 1.96).abs() < 1e-6, "{score}");
}

#[test]
fn opensearch_is_the_real_thing_with_scripts_and_graphs() {
    let node = Node::shared_opensearch();
    let version = &node.ask("GET", "/", None)["version"];
    assert_eq!((&version["distribution"], &version["number"]), (&"opensearch".into(), &"2.19.1".into()));
    let method = serde_json::json!({ "name": "hnsw", "engine": "lucene", "space_type": "cosinesimil" });
    let vector = serde_json::json!({ "v": { "type": "knn_vector", "dimension": 2, "method": method } });
    let index =
        serde_json::json!({ "settings": { "index.knn": true }, "mappings": { "properties": vector } });
    node.ask("PUT", "/node-scores", Some(index));
    node.ask("PUT", "/node-scores/_doc/1?refresh=true", Some(serde_json::json!({ "v": [3.0, 4.0] })));
    let source = "cosineSimilarity(params.q, doc['v']) + 1.0";
    let script = serde_json::json!({ "source": source, "params": { "q": [4.0, 3.0] } });
    let exact = serde_json::json!({ "script_score": { "query": { "match_all": {} }, "script": script } });
    let graph = serde_json::json!({ "knn": { "v": { "vector": [4.0, 3.0], "k": 1 } } });
    for (query, expected) in [(exact, 1.96), (graph, 0.98)] {
        let query = serde_json::json!({ "query": query });
        let found = node.ask("POST", "/node-scores/_search", Some(query));
        let score = found["hits"]["hits"][0]["_score"].as_f64().expect("a score");
        assert!((score - expected).abs() < 1e-6, "{score} {expected}");
    }
}

#[test]
fn it_keeps_its_documents_through_kill_9() {
    let mut node = Node::start(&[]);
    let url = node.url();
    for id in ["1", "2", "3"] {
        node.ask("PUT", &format!("/kept/_doc/{id}"), Some(serde_json::json!({ "n": 1 })));
    }
    node.kill();
    assert!(node.try_request("GET", "/", None).is_err(), "it still answers");
    node.restart();
    assert_eq!(node.url(), url);
    assert_eq!(node.count("kept"), 3);
}

#[test]
fn it_asks_who_is_there_and_what_they_may_do() {
    let node = Node::start_secure();
    let status = |user, method, path| node.request_as(user, method, path, None).expect("an answer").0;
    assert_eq!(status(None, "GET", "/"), 401);
    assert_eq!(status(Some(("admin", "wrong-password")), "GET", "/"), 401);
    assert_eq!(status(Some(READER), "GET", "/"), 200);
    assert_eq!(status(Some(READER), "PUT", "/theirs"), 403);
    assert_eq!(status(Some(ADMIN), "PUT", "/ours"), 200);
    assert_eq!(status(Some(READER), "GET", "/ours/_count"), 200);
}
