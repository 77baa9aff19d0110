//! Extract on a cluster: a scheduler and three executors, each a process of the real program. Whatever is killed, stopped, missing or
//! different: the run ends with the table of one machine, or with one clear error, and then goes on to that table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::array::StringArray;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use imagedex::cluster::answer::from_array;
use imagedex::cluster::spec::WorkSpec;
use imagedex::cluster::udf::embed_image;
use imagedex::cluster::worker::Worker;
use imagedex::embedders::Runtime;
use imagedex::models::card::{Card, ModelChoice};
use imagedex::models::{Normalize, Pooling};
use imagedex::stages::decode::{DecodeOptions, Failure};
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Source;
use imagedex::stages::store::{FeatureStore, read_failures};
use tempfile::TempDir;

use crate::datasets::write_tar;
use crate::es_proxy::{Fault, Proxy};
use crate::models::mean_colour;
use crate::process::{Process, free_ports};
use crate::s3_node::{ID, S3Node, SECRET};
use crate::support::{Said, Shop, cache, imagedex, said};

/// Longer than anything here takes, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// A scheduler or an executor.
struct Member {
    folder: TempDir,
    process: Process,
}

impl Member {
    fn start(command: &mut Command, ready: &str) -> Member {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let process = Process::start(command, &folder);
        let mut member = Member { folder, process };
        member.wait_for(ready);
        member
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until its log holds `text`.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            let ended = self.process.server.try_wait().expect("its state");
            assert!(ended.is_none() && started.elapsed() < PATIENCE, "no `{text}` in: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn is_alive(&mut self) -> bool {
        self.process.server.try_wait().expect("its state").is_none()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.server.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagedex"));
    command.env("IMAGEDEX_CACHE", cache()).env_remove("IMAGEDEX_PIPELINE").env_remove("IMAGEDEX_LOG");
    command
}

/// How the members of a cluster are started.
#[derive(Default)]
struct How {
    /// Arguments of all, such as those of TLS.
    all: Vec<String>,
    /// Arguments of executors.
    executor: Vec<String>,
    /// Seconds after which the scheduler takes an executor for lost; 10, the least, where none are given.
    timeout: Option<u64>,
    /// The folder that executors are started in.
    inside: Option<PathBuf>,
    /// Variables of executors.
    variables: Variables,
}

/// Variables of the environment.
type Variables = Vec<(&'static str, String)>;

struct Cluster {
    port: u16,
    how: How,
    scheduler: Option<Member>,
    executors: Vec<Member>,
}

impl Cluster {
    fn start(executors: usize) -> Cluster {
        Cluster::start_as(executors, How::default())
    }

    fn start_as(executors: usize, how: How) -> Cluster {
        let mut cluster = Cluster { port: free_ports(), how, scheduler: None, executors: Vec::new() };
        cluster.start_scheduler();
        for _ in 0..executors {
            cluster.start_executor();
        }
        cluster
    }

    fn start_scheduler(&mut self) {
        let (port, timeout) = (self.port.to_string(), self.how.timeout.unwrap_or(10).to_string());
        let mut command = program();
        command.args(["cluster", "scheduler", "--port", &port, "--executor-timeout", &timeout]);
        command.args(&self.how.all);
        self.scheduler = Some(Member::start(&mut command, "scheduler at"));
    }

    fn start_executor(&mut self) {
        let port = free_ports().to_string();
        let mut command = program();
        command.args(["cluster", "executor", &self.address(), "--port", &port, "--threads", "1"]);
        command.args(&self.how.executor).args(&self.how.all);
        if let Some(folder) = &self.how.inside {
            command.current_dir(folder);
        }
        command.envs(self.how.variables.iter().cloned());
        self.executors.push(Member::start(&mut command, "connected to"));
    }

    fn address(&self) -> String {
        format!("df://127.0.0.1:{}", self.port)
    }
}

/// A shop with a pipeline for one machine, and the same with a cluster in folders of its own.
struct Both {
    shop: Shop,
    model: String,
}

/// Everything in a table, but for its commits.
#[derive(Debug, PartialEq)]
struct Table {
    rows: EmbeddingBatch,
    failures: Vec<Failure>,
}

impl Both {
    /// With an encoder that takes next to no time.
    fn quick(pictures: u32) -> Both {
        let shop = Shop::new();
        let card = mean_colour(&shop.path(""));
        let model = format!("[model]\ncard = '{}'\npooling = 'model'\n", card.display());
        Both { shop, model }.with_pictures(pictures)
    }

    /// With VGG16, a tenth of a second a picture.
    fn slow(pictures: u32) -> Both {
        Both { shop: Shop::new(), model: String::new() }.with_pictures(pictures)
    }

    fn with_pictures(self, pictures: u32) -> Both {
        for seed in 0..pictures {
            self.shop.picture(&format!("gallery/{}/{seed:03}.png", seed % 3), seed);
        }
        self.write("", "");
        self
    }

    /// Writes the pipeline files: `shop.toml` for one machine, and `cluster.toml`.
    fn write(&self, input: &str, extract: &str) {
        let text = |name: &str, extract: &str| {
            format!(
                "name = '{name}'\n[input]\ngallery = 'gallery'\nmax_failures = '100%'\nmax_deleted = '100%'\n{input}\n{}\n{extract}",
                self.model
            )
        };
        std::fs::write(self.shop.path("shop.toml"), text("shop", "")).expect("writable");
        std::fs::write(self.shop.path("cluster.toml"), text("cluster", extract)).expect("writable");
    }

    fn on(&self, cluster: &Cluster, more: &str) {
        self.write("", &format!("[extract]\non = '{}'\npart = 4\n{more}", cluster.address()));
    }

    /// Makes both pipelines read their pictures from elsewhere.
    fn reads(&self, gallery: &str) {
        for name in ["shop.toml", "cluster.toml"] {
            let file = self.shop.path(name);
            let text = std::fs::read_to_string(&file).expect("readable");
            std::fs::write(&file, text.replace("'gallery'", &format!("'{gallery}'"))).expect("writable");
        }
    }

    fn here(&self) -> Said {
        imagedex([Path::new("extract"), &self.shop.path("shop.toml")])
    }

    fn extract(&self, name: &str, variables: &Variables) -> Said {
        let mut command = program();
        command.arg("extract").arg(self.shop.path(&format!("{name}.toml"))).envs(variables.iter().cloned());
        said(command.output().expect("the program starts"))
    }

    fn there(&self) -> Said {
        said(self.start().wait_with_output().expect("it ends"))
    }

    /// The run on the cluster, still going on.
    fn start(&self) -> Child {
        let mut command = program();
        command.arg("extract").arg(self.shop.path("cluster.toml"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    fn table(&self, name: &str) -> Table {
        let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
        let rows = runtime.block_on(async {
            let store = FeatureStore::open(&self.shop.path(&format!("runs/{name}/features"))).await;
            store.expect("a table").expect("it is there").read(None).await.expect("readable")
        });
        let failures = read_failures(&self.shop.path(&format!("runs/{name}/failures.parquet")));
        Table { rows, failures: failures.expect("readable") }
    }

    /// The table of the cluster is that of one machine.
    #[track_caller]
    fn are_equal(&self) {
        self.here().exits(0);
        self.have_equal_tables();
    }

    #[track_caller]
    fn have_equal_tables(&self) {
        let (here, there) = (self.table("shop"), self.table("cluster"));
        assert!(!here.rows.is_empty());
        assert_eq!(there, here);
    }

    fn run_json(&self) -> serde_json::Value {
        let file = std::fs::read(self.shop.path("runs/cluster/run.json")).expect("run.json");
        serde_json::from_slice(&file).expect("JSON")
    }

    /// Pictures that each executor answered for, by the run's books.
    fn executors(&self) -> BTreeMap<String, u64> {
        let mut executors = BTreeMap::new();
        for stage in self.run_json()["stages"].as_array().expect("stages") {
            let name = stage["stage"].as_str().expect("a name");
            if let Some(executor) = name.strip_prefix("embed: ").filter(|name| name.contains(':')) {
                *executors.entry(executor.to_owned()).or_default() +=
                    stage["items_in"].as_u64().expect("a count");
            }
        }
        executors
    }
}

/// A JPEG whose reader unwinds: its Huffman tables are nonsense.
fn unwinding_jpeg() -> Vec<u8> {
    let mut file = crate::bad_input::encoded(crate::bad_input::photo(64, 64), image::ImageFormat::Jpeg);
    let table = file.windows(2).position(|pair| pair == [0xff, 0xc4]).expect("a Huffman table");
    file[table + 5..table + 21].fill(0xff);
    file
}

#[test]
fn a_cluster_gives_the_table_of_one_machine() {
    let mut cluster = Cluster::start(3);
    let both = Both::quick(70);
    let put = |name: &str, bytes: &[u8]| std::fs::write(both.shop.path(name), bytes).expect("writable");
    // One that makes its reader panic, and others that fail in other ways: each is a row, and no executor goes down.
    put("gallery/1/unwinds.jpg", &unwinding_jpeg());
    put("gallery/1/text.png", b"no picture");
    put("gallery/2/empty.png", b"");
    let cut = std::fs::read(both.shop.path("gallery/0/000.png")).expect("readable");
    put("gallery/0/cut.png", &cut[..cut.len() / 2]);
    both.on(&cluster, "");
    both.there().exits(0).says("embedded 70").says("failed 4");
    both.are_equal();
    assert_eq!(both.table("cluster").failures.len(), 4);
    let executors = both.executors();
    assert_eq!(
        executors.values().sum::<u64>(),
        73,
        "the empty file got no further than this machine: {executors:?}"
    );
    assert!(cluster.executors.iter_mut().all(Member::is_alive));

    // Nothing is new: nothing is embedded, and no cluster is asked.
    both.write("", "[extract]\non = 'df://127.0.0.1:9'\n");
    std::fs::remove_file(both.shop.path("gallery/0/cut.png")).expect("removed");
    std::fs::remove_file(both.shop.path("gallery/1/text.png")).expect("removed");
    std::fs::remove_file(both.shop.path("gallery/1/unwinds.jpg")).expect("removed");
    both.there().exits(0).says("embedded 0");

    // Changed, new, renamed and gone pictures.
    both.on(&cluster, "");
    both.shop.picture("gallery/0/000.png", 900);
    both.shop.picture("gallery/0/new.png", 901);
    std::fs::rename(both.shop.path("gallery/0/003.png"), both.shop.path("gallery/0/renamed.png"))
        .expect("renamed");
    std::fs::remove_file(both.shop.path("gallery/1/001.png")).expect("removed");
    put("gallery/1/004.png", b"changed for the worse");
    both.there().exits(0).says("embedded 2");
    both.are_equal();
}

#[test]
fn vgg16_gives_the_same_vectors_there_as_here() {
    let cluster = Cluster::start(2);
    let both = Both::slow(12);
    both.on(&cluster, "");
    both.there().exits(0).says("embedded 12").complains("ONNX Runtime");
    both.are_equal();
}

#[test]
fn executors_read_pictures_in_tar_files() {
    let cluster = Cluster::start(2);
    let both = Both::quick(30);
    let shard = |number: u32| {
        let mut members = Vec::new();
        for seed in number * 15..number * 15 + 15 {
            let file = both.shop.path(&format!("gallery/{}/{seed:03}.png", seed % 3));
            members.push((format!("{seed:03}.png"), std::fs::read(file).expect("a picture")));
            members.push((format!("{seed:03}.cls"), (seed % 3).to_string().into_bytes()));
        }
        members.push(("damaged.png".to_owned(), b"no picture".to_vec()));
        let members: Vec<(&str, &[u8])> =
            members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        write_tar(&both.shop.path(&format!("shards/a b:{number}.tar")), &members);
    };
    shard(0);
    shard(1);
    both.on(&cluster, "");
    both.reads("shards/*.tar");
    both.there().exits(0).says("embedded 30").says("failed 2");
    both.are_equal();
    assert_eq!(both.executors().values().sum::<u64>(), 32);
    let table = both.table("cluster");
    let first = &table.rows.pictures[0];
    assert_eq!((first.id.as_str(), first.label.as_deref()), ("a b:0.tar/000.png", Some("0")));

    // A shard that is written anew.
    both.shop.picture("gallery/2/020.png", 2_000);
    shard(1);
    both.there().exits(0).says("embedded 1");
    both.are_equal();
}

#[test]
fn executors_fetch_objects_with_credentials_of_their_own() {
    let both = Both::quick(24);
    std::fs::write(both.shop.path("gallery/1/text ü%.png"), "no picture").expect("writable");
    let bucket = S3Node::shared().bucket("cluster");
    bucket.put_folder(&both.shop.path("gallery"), "photos");
    let at = |port: u16| -> Variables {
        let endpoint = format!("http://127.0.0.1:{port}");
        [
            ("AWS_ACCESS_KEY_ID", ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ENDPOINT_URL", &endpoint),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec()
    };
    let direct = at(S3Node::shared().port());
    let cluster = Cluster::start_as(2, How { variables: direct.clone(), ..How::default() });
    both.on(&cluster, "");
    both.reads(&bucket.url("photos"));
    // This machine reads one object of each executor's, to see that it is the same, and those that failed.
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = reads.clone();
    let proxy = Proxy::before(S3Node::shared().port(), move |asked| {
        counted
            .fetch_add(usize::from(asked.method == "GET" && asked.path.contains(".png")), Ordering::SeqCst);
        Fault::Pass
    });
    let port = url::Url::parse(&proxy.url()).expect("a URL").port().expect("a port");
    both.extract("cluster", &at(port)).exits(0).says("embedded 24").says("failed 1");
    let reads = reads.load(Ordering::SeqCst);
    assert!((1..=2).contains(&reads), "this machine read {reads} objects for two executors");
    both.extract("shop", &direct).exits(0);
    both.have_equal_tables();
    assert_eq!(both.executors().values().sum::<u64>(), 25);
    // Their hashes are known now, though others read them.
    bucket.remove("photos/1/text ü%.png");
    both.write("", "[extract]\non = 'df://127.0.0.1:9'\n");
    both.reads(&bucket.url("photos"));
    both.extract("cluster", &direct).exits(0).says("embedded 0");

    // An executor that may not read them does not empty the table.
    let none = vec![("AWS_EC2_METADATA_DISABLED", "true".to_owned()), ("HOME", "/nonexistent".to_owned())];
    let cluster = Cluster::start_as(1, How { variables: none, ..How::default() });
    both.shop.picture("new.png", 300);
    bucket.put("photos/1/new.png", std::fs::read(both.shop.path("new.png")).expect("readable"));
    both.on(&cluster, "tries = 2");
    both.reads(&bucket.url("photos"));
    let said = both.extract("cluster", &direct).exits(4).complains("does not see picture 1/new.png");
    said.complains("no credentials were found").complains("give it the same settings and credentials");
    assert_eq!(both.table("cluster").rows.len(), 24);
}

#[test]
fn the_function_in_one_process_gives_the_same_rows() {
    let both = Both::quick(9);
    std::fs::write(both.shop.path("gallery/1/text.png"), "no picture").expect("writable");
    both.here().exits(0);
    let table = both.table("shop");

    let library = cache().join("runtime/onnxruntime");
    let runtime = Runtime { library, threads: 1, cache: None };
    let models = cache().join("models");
    let choice = ModelChoice { pooling: Pooling::Model, normalize: Normalize::L2, ..ModelChoice::default() };
    let card = Card::load(&both.shop.path("colour.toml")).expect("a card");
    let model = card.resolve(&models, &choice).expect("its file");
    let spec = WorkSpec::new(&model, &models, DecodeOptions::default(), &runtime).expect("a runtime");
    let context = SessionContext::new();
    context.register_udf(embed_image(Arc::new(Worker::new("here".to_owned(), models, runtime))));
    let ids = table.rows.pictures.iter().map(|picture| picture.id.as_str()).chain(["1/text.png"]);
    let locations: Vec<String> =
        ids.map(|id| Source::File(both.shop.path("gallery").join(id)).to_text()).collect();
    let column: Arc<dyn datafusion::arrow::array::Array> = Arc::new(StringArray::from(locations));
    let pictures = RecordBatch::try_from_iter([("location", column)]).expect("a batch");
    context.register_batch("pictures", pictures).expect("registered");
    let query = format!("SELECT embed_image(location, '{}') FROM pictures", spec.to_text());
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let answer = runtime.block_on(async { context.sql(&query).await?.collect().await }).expect("an answer");
    let rows = from_array(answer[0].column(0)).expect("rows");
    assert_eq!(rows.len(), 10);
    for (i, picture) in table.rows.pictures.iter().enumerate() {
        let row = &rows[i];
        assert_eq!(row.embedding.as_deref(), Some(table.rows.vector(i)));
        assert_eq!(row.norm, Some(table.rows.norms[i]));
        assert_eq!(row.sha256.as_ref(), Some(&picture.sha256));
        assert_eq!(row.pixel_sha256.as_ref(), Some(&picture.pixel_sha256));
        assert_eq!(
            (row.dhash, row.width, row.height),
            (Some(picture.dhash), Some(picture.width), Some(picture.height))
        );
    }
    let (failure, failed) = (&rows[9], &table.failures[0]);
    assert_eq!((failure.kind.as_ref(), failure.reason.as_ref()), (Some(&failed.kind), Some(&failed.reason)));
}

#[test]
fn an_executor_killed_while_it_embeds_costs_time_alone() {
    let mut cluster = Cluster::start(3);
    let both = Both::slow(40);
    both.on(&cluster, "");
    let run = both.start();
    cluster.executors[1].wait_for("pictures to do");
    cluster.executors[1].process.kill();
    said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 40");
    both.are_equal();
}

#[test]
fn an_executor_killed_with_its_answer_costs_time_alone() {
    let mut cluster = Cluster::start(3);
    let both = Both::slow(40);
    both.on(&cluster, "");
    let run = both.start();
    // It has done a task, and is the only one that has the answer.
    cluster.executors[2].wait_for("pictures in");
    cluster.executors[2].process.kill();
    said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 40");
    both.are_equal();
}

#[test]
fn a_run_whose_executors_all_die_waits_for_others_or_ends_with_an_error() {
    let mut cluster = Cluster::start(2);
    let both = Both::slow(32);
    both.on(&cluster, "");
    let run = both.start();
    cluster.executors[0].wait_for("pictures in");
    cluster.executors.iter_mut().for_each(|executor| executor.process.kill());
    cluster.executors.clear();
    cluster.start_executor();
    said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 32");
    both.are_equal();

    // Nobody comes.
    for seed in 32..64 {
        both.shop.picture(&format!("gallery/more/{seed}.png"), seed);
    }
    both.on(&cluster, "limit_seconds = 8\ntries = 100");
    let run = both.start();
    cluster.executors[0].wait_for("pictures in");
    let tasks = cluster.executors[0].log().matches("pictures in").count();
    let started = Instant::now();
    while cluster.executors[0].log().matches("pictures in").count() == tasks && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.executors[0].process.kill();
    let ended = said(run.wait_with_output().expect("it ends")).exits(4);
    ended.complains("no executor of df://127.0.0.1").complains("imagedex cluster executor");

    cluster.executors.clear();
    cluster.start_executor();
    // It has to open its model first.
    both.on(&cluster, "");
    both.there().exits(0);
    both.are_equal();
}

#[test]
fn a_scheduler_that_is_killed_may_come_back() {
    let mut cluster = Cluster::start(2);
    let both = Both::slow(32);
    both.on(&cluster, "");
    let run = both.start();
    cluster.executors[0].wait_for("pictures in");
    cluster.scheduler.as_mut().expect("it runs").process.kill();
    cluster.start_scheduler();
    said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 32");
    both.are_equal();

    // It does not come back.
    for seed in 32..64 {
        both.shop.picture(&format!("gallery/more/{seed}.png"), seed);
    }
    let before = cluster.executors[0].log().matches("pictures in").count();
    let run = both.start();
    while cluster.executors[0].log().matches("pictures in").count() == before {
        assert!(cluster.executors[0].is_alive());
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.scheduler.as_mut().expect("it runs").process.kill();
    let ended = said(run.wait_with_output().expect("it ends")).exits(4);
    ended.complains("scheduler df://127.0.0.1").complains("does not answer").complains("run again");

    // The executors have waited for it.
    cluster.start_scheduler();
    both.there().exits(0);
    both.are_equal();
}

#[test]
fn a_scheduler_that_comes_back_alone_is_not_waited_on_for_ever() {
    let mut cluster = Cluster::start(1);
    let both = Both::slow(32);
    both.on(&cluster, "limit_seconds = 60\ntries = 100");
    let run = both.start();
    cluster.executors[0].wait_for("pictures in");
    cluster.scheduler.as_mut().expect("it runs").process.kill();
    cluster.executors.clear();
    std::thread::sleep(Duration::from_secs(3));
    cluster.start_scheduler();
    let ended = said(run.wait_with_output().expect("it ends")).exits(4);
    ended.complains("no executor of df://127.0.0.1").complains("lower extract.part");
}

#[test]
fn an_executor_whose_answers_cannot_be_fetched_is_an_error_of_its_own() {
    // It listens at 127.0.0.1 alone.
    let executor = ["--host", "127.0.0.2"].map(str::to_owned).to_vec();
    let cluster = Cluster::start_as(1, How { executor, ..How::default() });
    let both = Both::quick(3);
    both.on(&cluster, "");
    both.there().exits(4).complains("no answer of an executor of df://127.0.0.1").complains("--host");
}

#[test]
fn an_executor_that_is_asked_to_end_does_so_though_there_is_work() {
    let mut cluster = Cluster::start(2);
    let both = Both::slow(120);
    both.on(&cluster, "");
    let mut run = both.start();
    cluster.executors[0].wait_for("pictures to do");
    cluster.executors[0].signal("-TERM");
    let asked = Instant::now();
    while cluster.executors[0].is_alive() {
        assert!(asked.elapsed() < PATIENCE, "it goes on: {}", cluster.executors[0].log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(run.try_wait().expect("its state").is_none(), "it ended when there was no work left");
    said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 120");
    both.are_equal();
}

#[test]
fn a_scheduler_that_stands_still_is_one_that_does_not_answer() {
    let mut cluster = Cluster::start(1);
    let both = Both::slow(60);
    both.on(&cluster, "");
    let run = both.start();
    cluster.executors[0].wait_for("pictures in");
    let scheduler = cluster.scheduler.as_ref().expect("it runs");
    scheduler.signal("-STOP");
    let asked = Instant::now();
    let ended = said(run.wait_with_output().expect("it ends")).exits(4);
    scheduler.signal("-CONT");
    ended.complains("scheduler df://127.0.0.1").complains("does not answer");
    assert!(asked.elapsed() < PATIENCE, "long before extract.limit_seconds");
}

#[test]
fn without_a_scheduler_the_error_says_so() {
    let both = Both::quick(3);
    both.write("", "[extract]\non = 'df://127.0.0.1:9'\n");
    let ended = both.there().exits(4).complains("scheduler df://127.0.0.1:9 does not answer");
    ended.complains("imagedex cluster scheduler");
}

#[test]
fn an_executor_that_stands_still_does_not_hold_the_others_up() {
    // The scheduler would wait for it.
    let mut cluster = Cluster::start_as(3, How { timeout: Some(600), ..How::default() });
    let both = Both::slow(40);
    both.on(&cluster, "");
    let run = both.start();
    cluster.executors[0].wait_for("pictures to do");
    cluster.executors[0].signal("-STOP");
    let ended = said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 40");
    ended.complains("are late and were sent once more");
    cluster.executors[0].signal("-CONT");
    both.are_equal();
    assert!(cluster.executors[0].is_alive());
}

#[test]
fn a_run_starts_though_the_executor_that_was_asked_first_stands_still() {
    let mut cluster = Cluster::start_as(2, How { timeout: Some(600), ..How::default() });
    let both = Both::slow(4);
    both.on(&cluster, "");
    let mut run = both.start();
    let opened = loop {
        assert!(run.try_wait().expect("its state").is_none(), "it ended before any executor was asked");
        if let Some(first) = cluster.executors.iter().position(|executor| executor.log().contains("opened")) {
            break first;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    cluster.executors[opened].signal("-STOP");
    said(run.wait_with_output().expect("it ends")).exits(0).says("embedded 4");
    cluster.executors[opened].signal("-CONT");
    both.are_equal();
    assert!(cluster.executors[opened].is_alive());
}

#[test]
fn a_model_that_is_missing_or_another_on_one_executor_is_one_error() {
    let other = tempfile::tempdir().expect("a temporary folder");
    let library = cache().join("runtime/onnxruntime").display().to_string();
    let there = other.path().display().to_string();
    let executor = ["--cache", &there, "--library", &library].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start_as(1, How { executor, ..How::default() });
    let both = Both::slow(3);
    both.on(&cluster, "");
    let said = both.there().exits(4).complains("executor 127.0.0.1:").complains("cannot take part");
    said.complains("vgg16-max-fp32.onnx is missing");

    std::fs::create_dir_all(other.path().join("models")).expect("writable");
    std::fs::write(other.path().join("models/vgg16-max-fp32.onnx"), "another").expect("writable");
    let said = both.there().exits(4).complains("cannot take part").complains("sha256 of model file");
    said.complains("where the run was started");

    // Made good, it takes part, without being started again.
    let file = "models/vgg16-max-fp32.onnx";
    std::fs::copy(cache().join(file), other.path().join(file)).expect("copied");
    both.there().exits(0).says("embedded 3");
    both.are_equal();
    assert!(cluster.executors[0].is_alive());
}

/// `/proc/self/cwd` is another folder for each process, as a path is on machines that do not share it.
#[cfg(target_os = "linux")]
#[test]
fn an_executor_that_does_not_see_the_folder_is_one_error() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let cluster = Cluster::start_as(1, How { inside: Some(elsewhere.path().to_owned()), ..How::default() });
    let both = Both::quick(5);
    both.here().exits(0);
    let pipeline = std::fs::read_to_string(both.shop.path("shop.toml")).expect("readable");
    let on = |gallery: &str| {
        let text = pipeline
            .replace("name = 'shop'", "name = 'cluster'")
            .replace("'gallery'", &format!("'{gallery}'"));
        let text = format!("{text}\n[extract]\non = '{}'\ntries = 2\n", cluster.address());
        std::fs::write(both.shop.path("cluster.toml"), text).expect("writable");
    };
    on("/proc/self/cwd/gallery");
    let run = || {
        let mut command = program();
        command.arg("extract").arg(both.shop.path("cluster.toml")).current_dir(both.shop.path(""));
        said(command.output().expect("the program starts"))
    };
    let said = run().exits(4).complains("does not see picture").complains("No such file");
    said.complains("mount the same folder there");

    // Other pictures under the same names.
    for seed in 0..5 {
        let from = both.shop.path(&format!("gallery/{}/{seed:03}.png", seed % 3));
        let to = elsewhere.path().join(format!("gallery/{}/{seed:03}.png", (seed + 1) % 3));
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("writable");
        std::fs::copy(from, to).expect("copied");
    }
    for class in 0..3 {
        for seed in 0..5 {
            let wanted = elsewhere.path().join(format!("gallery/{class}/{seed:03}.png"));
            if !wanted.exists() {
                std::fs::write(wanted, "another").expect("writable");
            }
        }
    }
    run().exits(4).complains("does not see picture").complains("it is of sha256");
    let table = both.shop.path("runs/cluster/features/_delta_log");
    assert_eq!(std::fs::read_dir(table).expect("a table").count(), 1, "nothing was stored");
}

/// An authority and a certificate of it for 127.0.0.1, as arguments and as a pipeline's settings.
fn certificates(folder: &Path) -> (Vec<String>, String) {
    let script = "set -e; cd \"$0\"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out request.pem -subj /CN=member
        printf 'subjectAltName=IP:127.0.0.1' > names
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names";
    let made = Command::new("sh").args(["-c", script]).arg(folder).output().expect("sh starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = |name: &str| folder.join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let settings = format!("ca = '{ca}'\ncert = '{cert}'\nkey = '{key}'\n");
    (["--ca", &ca, "--cert", &cert, "--key", &key].map(str::to_owned).to_vec(), settings)
}

#[test]
fn members_that_speak_tls_believe_those_of_their_authority_alone() {
    let (ours, theirs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (all, settings) = certificates(ours.path());
    let (_, others) = certificates(theirs.path());
    let cluster = Cluster::start_as(2, How { all, ..How::default() });
    let both = Both::quick(20);
    both.on(&cluster, &settings);
    both.there().exits(0).says("embedded 20");
    both.are_equal();

    both.shop.picture("gallery/new.png", 77);
    both.on(&cluster, &others);
    both.there().exits(4).complains("does not answer");
    // An authority that is right, and a certificate that it did not sign.
    let file = |folder: &TempDir, name: &str| folder.path().join(name).display().to_string();
    let mixed = format!(
        "ca = '{}'\ncert = '{}'\nkey = '{}'\n",
        file(&ours, "ca.pem"),
        file(&theirs, "cert.pem"),
        file(&theirs, "key.pem")
    );
    both.on(&cluster, &mixed);
    both.there().exits(4).complains("does not answer");
    both.on(&cluster, "");
    both.there().exits(4).complains("does not answer");
    both.on(&cluster, &settings.replace("key.pem", "none.pem"));
    both.there().exits(2).complains("none.pem");
    both.on(&cluster, &settings.replace(&file(&ours, "key.pem"), &file(&theirs, "key.pem")));
    both.there().exits(2).complains("not a certificate with its key");

    // An executor that does not speak it gets no work.
    let mut plain = program();
    let port = free_ports().to_string();
    plain.args(["cluster", "executor", &cluster.address(), "--port", &port, "--patience", "2"]);
    said(plain.output().expect("the program starts")).exits(4).complains("does not answer");
}

#[test]
fn a_run_on_a_cluster_that_is_interrupted_goes_on_later() {
    let mut cluster = Cluster::start(2);
    let both = Both::slow(40);
    both.on(&cluster, "");
    let run = both.start();
    cluster.executors[0].wait_for("pictures in");
    let sent = Command::new("kill").args(["-INT", &run.id().to_string()]).status();
    assert!(sent.expect("kill starts").success());
    said(run.wait_with_output().expect("it ends")).exits(130).complains("interrupted");
    both.there().exits(0);
    both.are_equal();
}

#[test]
fn a_killed_run_goes_on_from_what_is_stored() {
    let mut cluster = Cluster::start(2);
    let both = Both::slow(24);
    both.on(&cluster, "");
    let mut run = both.start();
    cluster.executors[0].wait_for("pictures in");
    run.kill().expect("it can be killed");
    run.wait().expect("it has ended");
    both.there().exits(0);
    both.are_equal();
}

#[test]
fn members_say_why_they_cannot_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    imagedex(["cluster", "scheduler", "--port", &port]).exits(4).complains("scheduler cannot start");
    imagedex(["cluster", "executor", "df://127.0.0.1:9", "--port", &port])
        .exits(4)
        .complains("executor cannot start");
    let port = free_ports().to_string();
    let alone = ["cluster", "executor", "df://127.0.0.1:9", "--port", &port, "--patience", "1"];
    imagedex(alone).exits(4).complains("scheduler df://127.0.0.1:9 does not answer");
    imagedex(["cluster", "executor", "127.0.0.1:9"]).exits(2).complains("df://host:50050");
    imagedex(["cluster", "executor", "df://127.0.0.1:9", "--bind", "0.0.0.0"]).exits(2).complains("--host");
    imagedex(["cluster", "executor", "df://10.0.0.1:9"]).exits(2).complains("with --bind");
    for host in ["", "a b", "http://ten:1"] {
        let alone = ["cluster", "executor", "df://127.0.0.1:9", "--host", host];
        imagedex(alone).exits(2).complains("is neither a name nor an address");
    }
}
