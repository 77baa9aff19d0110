//! The command line: definitions only. What each command does stands in `commands` and `pipeline`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cluster::DEFAULT_PORT;
use crate::metric::Metric;
use crate::models::{Precision, Provider};
use crate::plan::wish::{self, IndexOption};
use crate::sql::Format;

/// Folders of labelled pictures into a searchable, evaluated image index.
#[derive(Debug, Parser)]
#[command(name = "imagedex", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How messages on standard error look. Their level: environment variable IMAGEDEX_LOG (info, debug, …).
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

const AFTER_HELP: &str = "\
A pipeline is one TOML file; pipelines/quickstart.toml explains each key.
Exit codes: 0 done · 1 a quality gate failed · 2 usage or configuration · 3 finished, too many pictures failed
· 4 infrastructure (model, runtime, engine, disk) · 75 another run holds the lock · 130 interrupted, work saved.";

/// How messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Extract, load, evaluate, gate and report; what is already done is not done again
    Run(Pipeline),
    /// Pictures → the feature table; only what is new or changed is embedded
    Extract(Pipeline),
    /// Feature table → the engine
    Load(Load),
    /// Queries against the engine → measures
    Evaluate(Pipeline),
    /// Measures → Markdown, the HTML page and the table on the terminal
    Report(Pipeline),
    /// Try the settings of section `sweep`, and say which is best and what is beyond noise
    Sweep(Pipeline),
    /// Keep the measures of the last run, for later runs to be held against
    #[command(subcommand)]
    Baseline(Baseline),
    /// Find pictures like this one
    Search(Search),
    /// Ask the tables `features`, `failures` and `per_query`
    Sql(Sql),
    /// Import, export, compare or verify features
    #[command(subcommand)]
    Features(Features),
    /// Build, verify or calibrate the model files
    #[command(subcommand)]
    Models(Models),
    /// Download and check the model source, ONNX Runtime and the sample pictures
    Setup(Setup),
    /// Take part in an extract on several machines (docs/scaling.md)
    #[command(subcommand)]
    Cluster(Cluster),
    /// Check inputs, model, runtime, engine, permissions and versions before a run
    Doctor(Pipeline),
    /// How many processors, disks and nodes a gallery of some size takes, from what was measured of VGG16 and Elasticsearch
    Plan(Plan),
    /// The original's index.py: a folder of pictures → one HDF5 file
    Index(Index),
    /// The original's retrieval.py: search an HDF5 file for pictures like this one
    Retrieve(Retrieve),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

/// A pipeline file and changes to it.
#[derive(Debug, Args)]
pub struct Pipeline {
    /// The pipeline file
    #[arg(value_name = "PIPELINE.toml", env = "IMAGEDEX_PIPELINE")]
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub overrides: Overrides,
}

#[derive(Debug, Subcommand)]
pub enum Baseline {
    /// Write the last evaluation's measures, query by query, to the baseline file; commit it
    Set(Pipeline),
}

#[derive(Debug, Args)]
pub struct Load {
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// Load nothing; put the index that users searched before back in its place
    #[arg(long)]
    pub rollback: bool,
}

#[derive(Debug, Args)]
pub struct Overrides {
    /// Lay a value over the file, such as --set model.precision=fp32; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Search {
    /// The picture to search for
    pub image: PathBuf,
    /// The pipeline whose gallery is searched
    #[arg(
        short,
        long,
        value_name = "PIPELINE.toml",
        env = "IMAGEDEX_PIPELINE",
        default_value = "pipelines/quickstart.toml"
    )]
    pub pipeline: PathBuf,
    /// How many hits
    #[arg(short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
    #[arg(long, value_enum, default_value_t = Metric::Cosine)]
    pub metric: Metric,
    /// The engine to ask; default: the pipeline's
    #[arg(long)]
    pub engine: Option<String>,
    /// Leave out hits with a lower score
    #[arg(long)]
    pub threshold: Option<f32>,
    /// Only pictures with this value, such as --only label=cat; several must all hold
    #[arg(long, value_name = "COLUMN=VALUE")]
    pub only: Vec<String>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// One HTML page with the pictures in it, written to this file
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub overrides: Overrides,
}

#[derive(Debug, Args)]
pub struct Sql {
    /// One SELECT statement
    pub query: String,
    #[command(flatten)]
    pub pipeline: Pipeline,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub enum Features {
    /// Write the table as .h5 (the original's layout), .npy + .parquet, .csv or .parquet, by the file's ending
    Export {
        file: PathBuf,
        #[command(flatten)]
        pipeline: Pipeline,
    },
    /// Read such a file into a new feature table
    Import {
        file: PathBuf,
        /// The folder of the new table
        #[arg(long)]
        table: PathBuf,
    },
    /// Read the whole table and its log: exit code 0 if it is sound, else 4 and a line for each thing that is wrong
    Verify {
        /// Move what is damaged aside, and embed again what was in it
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        pipeline: Pipeline,
    },
    /// How alike two sets of vectors of the same pictures are, such as those of int8 and of fp32
    Compare {
        /// The folder of a feature table (`features` in a pipeline's work folder), or such a file
        first: PathBuf,
        second: PathBuf,
        /// How many of the least alike pictures to list
        #[arg(long, default_value_t = 5)]
        worst: usize,
    },
}

#[derive(Debug, Args)]
pub struct ModelFiles {
    /// `vgg16`, or the path of a model card
    #[arg(long, default_value = "vgg16")]
    pub card: String,
    /// The cache folder; default: IMAGEDEX_CACHE, else the user's
    #[arg(long)]
    pub cache: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Models {
    /// Weights → ONNX files, each checked against its sha256 in the card
    Build {
        /// Weights of your own: Keras' vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5
        #[arg(long)]
        weights: Option<PathBuf>,
        #[command(flatten)]
        files: ModelFiles,
    },
    /// Check the built files against the card
    Verify(#[command(flatten)] ModelFiles),
    /// Measure activation ranges for int8 on a folder of photos
    Calibrate {
        /// Folder of photos; default: the ones that set-up brings
        #[arg(long)]
        photos: Option<PathBuf>,
        /// The file to write
        #[arg(long, default_value = "models/vgg16.int8.toml")]
        output: PathBuf,
        #[command(flatten)]
        files: ModelFiles,
    },
}

#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Hand out the tasks of a pipeline whose section `extract` says on = "df://HOST:PORT"
    Scheduler {
        /// The address to listen at
        #[arg(long, default_value = "127.0.0.1")]
        bind: IpAddr,
        #[arg(long, default_value_t = DEFAULT_PORT)]
        port: u16,
        /// An executor that has said nothing for so many seconds is lost, and others get its tasks; at least 10, as a busy one says something every 5
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(10..))]
        executor_timeout: u64,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// Embed pictures for whoever the scheduler gets tasks from; pictures must be there under the same paths
    Executor {
        /// Where the scheduler is
        #[arg(value_name = "df://HOST:PORT")]
        scheduler: String,
        /// The address at which answers can be fetched; default: 127.0.0.1, where the scheduler is on this machine
        #[arg(long)]
        bind: Option<IpAddr>,
        #[arg(long, default_value_t = DEFAULT_PORT + 1)]
        port: u16,
        /// The name under which others reach it; default: the address
        #[arg(long)]
        host: Option<String>,
        /// Tasks at a time: while one waits for the model, another decodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
        tasks: u16,
        /// Threads of the model, and of each task's decoding; default: one for each core
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
        /// Folder for answers until they are fetched; default: the system's for temporary files
        #[arg(long)]
        work: Option<PathBuf>,
        /// The ONNX Runtime library; default: the one in the cache
        #[arg(long)]
        library: Option<PathBuf>,
        /// The cache folder; default: IMAGEDEX_CACHE, else the user's
        #[arg(long)]
        cache: Option<PathBuf>,
        /// How long to wait for the scheduler at the start
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
        patience: u16,
        #[command(flatten)]
        tls: TlsArgs,
    },
}

/// PEM files for TLS, all three or none: each side shows its certificate, and believes those that the authority signed.
#[derive(Debug, Args)]
pub struct TlsArgs {
    /// The authority's certificate
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    pub ca: Option<PathBuf>,
    /// Our certificate, which names our host
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    pub cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires_all = ["ca", "cert"])]
    pub key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Setup {
    /// Also write all 60,000 sample pictures
    #[arg(long)]
    pub all_samples: bool,
    /// Also fetch the photos that int8 was calibrated on
    #[arg(long)]
    pub calibration: bool,
    /// Hash everything that is in the cache again, and repair it
    #[arg(long)]
    pub verify: bool,
    /// The cache folder; default: IMAGEDEX_CACHE, else the user's
    #[arg(long)]
    pub cache: Option<PathBuf>,
}

/// A size to plan for, and the machines.
#[derive(Debug, Args)]
pub struct Plan {
    /// How many pictures, such as 1e8
    #[arg(long, value_name = "N", value_parser = wish::pictures)]
    pub pictures: f64,
    /// How many searches a second
    #[arg(long, value_name = "N", value_parser = wish::rate)]
    pub queries_per_second: f64,
    /// Numbers of a vector; figures were measured with the 512 of VGG16
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub dimensions: u32,
    /// How Elasticsearch keeps the vectors; several, parted by commas, are set side by side
    #[arg(
        long,
        value_name = "NAME,…",
        value_enum,
        value_delimiter = ',',
        default_value = "exact,int8_hnsw,bbq_hnsw"
    )]
    pub index_options: Vec<IndexOption>,
    /// What VGG16 computes vectors with; no other model was measured
    #[arg(long, value_enum, default_value_t = Precision::Int8)]
    pub precision: Precision,
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cores_per_node: u32,
    /// Such as 64GB
    #[arg(long, value_name = "SIZE", default_value = "64GB", value_parser = wish::size)]
    pub memory_per_node: f64,
    /// Such as 2TB
    #[arg(long, value_name = "SIZE", default_value = "2TB", value_parser = wish::size)]
    pub disk_per_node: f64,
    /// Copies beside the primary one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=10))]
    pub replicas: u32,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Flags of the original's index.py, and how to compute.
#[derive(Debug, Args)]
pub struct Index {
    /// Folder of pictures
    #[arg(long = "train_data", value_name = "DIR")]
    pub train_data: PathBuf,
    /// The HDF5 file to write
    #[arg(long = "index_file", value_name = "FILE")]
    pub index_file: PathBuf,
    #[command(flatten)]
    pub compute: Compute,
}

/// Flags of the original's retrieval.py, and how to compute.
#[derive(Debug, Args)]
pub struct Retrieve {
    /// Where to search
    #[arg(long, value_enum, default_value_t = OriginalEngine::Numpy)]
    pub engine: OriginalEngine,
    /// The picture to search for
    #[arg(long = "test_data", value_name = "IMAGE")]
    pub test_data: PathBuf,
    /// The HDF5 file to search
    #[arg(long = "index_file", value_name = "FILE")]
    pub index_file: PathBuf,
    /// The alias that holds it in Elasticsearch or Milvus; where the server is, ELASTICSEARCH_URL or ES_HOST and ES_PORT say, of Milvus
    /// MILVUS_URI or MILVUS_HOST and MILVUS_PORT
    #[arg(long = "db_name", value_name = "NAME", default_value = "image_retrieval")]
    pub db_name: String,
    /// Show only scores above this, from 0 to 1: half the cosine, plus a half. The original's value is the default
    #[arg(long, value_name = "SCORE", default_value_t = 0.85)]
    pub threshold: f32,
    #[command(flatten)]
    pub compute: Compute,
}

/// The original's names of engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OriginalEngine {
    /// Exact search in memory: our `flat`
    Numpy,
    /// FAISS' IndexFlatIP, in programs with the feature `faiss`
    Faiss,
    /// Elasticsearch, loaded with the file unless it holds it already
    Es,
    /// Milvus, the same way, in programs with the feature `milvus`
    Milvus,
}

#[derive(Debug, Args)]
pub struct Compute {
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    pub precision: Precision,
    #[arg(long, value_enum, default_value_t = Provider::Cpu)]
    pub provider: Provider,
    /// The cache folder; default: IMAGEDEX_CACHE, else the user's
    #[arg(long)]
    pub cache: Option<PathBuf>,
}
