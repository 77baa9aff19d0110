//! A real Elasticsearch for tests (`tests/es-node`): started on loopback, on free ports, in a temporary folder; stopped by its
//! process id when the test that owns it ends, or the test program dies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{cache, root};

/// One server.
pub struct Node {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Child,
}

impl Node {
    /// One server that tests share, each with an alias of its own.
    pub fn shared() -> &'static Node {
        static SHARED: OnceLock<Node> = OnceLock::new();
        SHARED.get_or_init(|| Node::start(&[]))
    }

    /// A server of one's own, with settings such as `indexing_pressure.memory.limit=1mb`.
    pub fn start(settings: &[&str]) -> Node {
        Node::prepared(settings, |_| {})
    }

    /// The same, with its configuration folder filled by `prepare` before it starts.
    pub fn prepared(settings: &[&str], prepare: impl Fn(&std::path::Path)) -> Node {
        let mut last = String::new();
        // Another program may take a port between our look and the server's start.
        for _ in 0..3 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let config = folder.path().join("config");
            let copied = Command::new("cp").arg("-r").arg(home().join("config")).arg(&config).status();
            assert!(copied.expect("cp").success());
            prepare(&config);
            let settings: Vec<String> = settings.iter().map(|text| (*text).to_owned()).collect();
            let port = free_ports();
            let process = spawn(&folder, port, &settings);
            let mut node = Node { folder, port, settings, process };
            match node.wait() {
                Ok(()) => return node,
                Err(log) => last = log,
            }
        }
        panic!("Elasticsearch did not start:\n{last}");
    }

    pub fn url(&self) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn is_secure(&self) -> bool {
        self.settings.iter().any(|setting| setting == "xpack.security.http.ssl.enabled=true")
    }

    /// Ends it as a power cut would: at once, with no word to anyone.
    pub fn kill(&mut self) {
        let group = i32::try_from(self.process.id()).expect("a process id");
        // Its launcher and the server itself are one process group, which is the server's alone.
        let killed = Command::new("kill").args(["-9", "--", &format!("-{group}")]).status();
        assert!(killed.expect("kill").success());
        self.process.wait().expect("it has ended");
    }

    /// Starts it again on the same port, with the same data.
    pub fn restart(&mut self) {
        self.process = spawn(&self.folder, self.port, &self.settings);
        self.wait().unwrap_or_else(|log| panic!("Elasticsearch did not start again:\n{log}"));
    }

    /// Waits until it answers; its log where it does not.
    fn wait(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(180) {
            let is_up = match self.is_secure() {
                // TLS: the port is opened last.
                true => TcpStream::connect(("127.0.0.1", self.port)).is_ok(),
                false => self
                    .try_request("GET", "/_cluster/health?wait_for_status=yellow", None)
                    .is_ok_and(|(status, _)| status == 200),
            };
            if is_up {
                return Ok(());
            }
            if self.process.try_wait().expect("its state").is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err(std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default())
    }

    /// A request and its answer: status and JSON.
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
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
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

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

/// Where `make setup-es` put the server.
pub fn home() -> PathBuf {
    let home = cache().join("es-node/home");
    assert!(home.is_dir(), "{} is missing: run `make setup-es`", home.display());
    home
}

fn spawn(folder: &TempDir, port: u16, settings: &[String]) -> Child {
    let log = std::fs::File::create(folder.path().join("log")).expect("writable");
    // Tests share the machine with the server: a small heap, and no crowd of threads.
    Command::new("setpriv")
        // A test program that is killed takes its server with it.
        .args(["--pdeathsig", "KILL", "bash"])
        .arg(root().join("tests/es-node/run.sh"))
        .arg(home())
        .arg(port.to_string())
        .arg(folder.path())
        .args(settings)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .process_group(0)
        .spawn()
        .expect("bash starts")
}

/// A port that is free, and the next one as well.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = first.local_addr().expect("an address").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

#[test]
fn the_test_server_is_real_and_keeps_its_documents_through_kill_9() {
    let mut node = Node::start(&[]);
    assert_eq!(node.ask("GET", "/", None)["version"]["number"], "9.5.3");
    let vector = serde_json::json!({ "mappings": { "properties": { "v": { "type": "dense_vector", "dims": 2, "index": false } } } });
    node.ask("PUT", "/kept", Some(vector));
    node.ask("PUT", "/kept/_doc/1?refresh=true", Some(serde_json::json!({ "v": [3.0, 4.0] })));
    node.kill();
    node.restart();
    let script = serde_json::json!({ "source": "cosineSimilarity(params.q, 'v') + 1.0", "params": { "q": [4.0, 3.0] } });
    let query = serde_json::json!({ "query": { "script_score": { "query": { "match_all": {} }, "script": script } } });
    let found = node.ask("POST", "/kept/_search", Some(query));
    let score = found["hits"]["hits"][0]["_score"].as_f64().expect("a score");
    assert!((score - 1.96).abs() < 1e-6, "{score}");
}
