//! A real S3 server (moto, `tests/s3-node`) for tests: on a free port, in a process of its own. It keeps its objects in memory.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

use crate::elastic::runtime;
use crate::process::{Process, free_ports};
use crate::support::cache;

/// What the tests sign with; it may turn up nowhere.
pub const ID: &str = "test-access-key-id";
pub const SECRET: &str = "test-secret-access-key";

/// One server.
pub struct S3Node {
    port: u16,
    _process: Process,
}

impl S3Node {
    /// One server that tests share, each with buckets of its own.
    pub fn shared() -> &'static S3Node {
        static SHARED: OnceLock<S3Node> = OnceLock::new();
        SHARED.get_or_init(S3Node::start)
    }

    fn start() -> S3Node {
        let program = cache().join("s3-node/bin/moto_server");
        assert!(program.is_file(), "{} is missing: run `make setup-s3`", program.display());
        for _ in 0..5 {
            let folder: TempDir = tempfile::tempdir().expect("a temporary folder");
            let port = free_ports();
            let process = Process::start(Command::new(&program).args(["-p", &port.to_string()]), &folder);
            let mut node = S3Node { port, _process: process };
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(60)
                && node._process.server.try_wait().expect("its state").is_none()
            {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    // The watchdog removes it.
                    let _ = folder.keep();
                    return node;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("the S3 server did not start");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new bucket of this name.
    pub fn bucket(&self, name: &str) -> Bucket {
        use std::io::{Read, Write};
        let mut made = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        write!(
            made,
            "PUT /{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .expect("sent");
        let mut answer = String::new();
        made.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let store = AmazonS3Builder::new()
            .with_bucket_name(name)
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id(ID)
            .with_secret_access_key(SECRET)
            .build()
            .expect("a client");
        Bucket { store: Arc::new(store), name: name.to_owned() }
    }
}

/// A bucket, as the tests see it.
pub struct Bucket {
    pub store: Arc<AmazonS3>,
    pub name: String,
}

impl Bucket {
    pub fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.name)
    }

    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let bytes: Vec<u8> = bytes.into();
        runtime().block_on(self.store.put(&Key::parse(key).unwrap(), bytes.into())).expect("put");
    }

    /// Sends all files of a folder.
    pub fn put_folder(&self, folder: &Path, to: &str) {
        for entry in
            walkdir::WalkDir::new(folder).into_iter().flatten().filter(|entry| entry.file_type().is_file())
        {
            let name = entry.path().strip_prefix(folder).unwrap().to_str().unwrap();
            self.put(&format!("{to}/{name}"), std::fs::read(entry.path()).unwrap());
        }
    }

    pub fn get(&self, key: &str) -> Vec<u8> {
        let got = async { self.store.get(&Key::parse(key).unwrap()).await?.bytes().await };
        runtime().block_on(got).expect("get").to_vec()
    }

    pub fn remove(&self, key: &str) {
        runtime().block_on(self.store.delete(&Key::parse(key).unwrap())).expect("delete");
    }

    pub fn list(&self, prefix: &str) -> Vec<String> {
        let list = self.store.list(Some(&Key::parse(prefix).unwrap()));
        let mut keys: Vec<String> =
            runtime().block_on(list.map_ok(|meta| meta.location.to_string()).try_collect()).expect("list");
        keys.sort();
        keys
    }
}
