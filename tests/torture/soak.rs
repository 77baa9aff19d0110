//! The long run: the same gallery over and over, changed between the rounds, into a real Elasticsearch. What a round took is
//! printed; memory, open files and files on disk are held to bounds that growth from round to round would break.
//!
//! imagedex is a process for each run, which hides leaks; so decoding and the model are run many times in this process first.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use fastrand::Rng;
use imagedex::embedders::{self, EmbedError, Runtime};
use imagedex::memory::Shares;
use imagedex::models::card::{Card, ModelChoice};
use imagedex::models::{Pooling, Resize};
use imagedex::stages::decode::{DecodeOptions, Exif, PictureOptions};
use imagedex::stages::embed;
use imagedex::stages::scan::{self, LabelRule, ScanOptions};
use serde_json::Value;

use crate::es_node::Node;
use crate::setting;
use crate::shop::{Model, Pair, Side};
use crate::support::cache;

/// With 20,000 pictures: 500,000 in all.
const ROUNDS: usize = 25;
/// By so much may a process be larger than one that did the same work before: allocators do not give all back at once.
const MORE_KIB: u64 = 64 << 10;
/// Whoever opens the table opens each entry of its log since the last checkpoint, and Delta makes one every so many commits.
const LOG_ENTRIES: u64 = 100;
/// Files of the table that a commit may add: a Parquet file, its change data, a checksum of each, its entry in the log, and what a
/// checkpoint takes. Delta keeps those that were replaced for seven days, so they do grow within one day.
const FILES_A_COMMIT: u64 = 6;

/// What a round came to.
struct Round {
    embedded: u64,
    /// Pictures a second of decoding and model.
    embed_rate: f64,
    sent: u64,
    /// Documents a second.
    load_rate: f64,
    seconds: f64,
    peak_kib: u64,
    most_open: usize,
    files: u64,
    other_files: u64,
    bytes: u64,
    version: u64,
    temporary: usize,
}

/// Rounds until they are done, or the time is over.
pub fn run(minutes: u64) -> ExitCode {
    let started = Instant::now();
    let node = Node::start(&[]);
    let mut rng = Rng::with_seed(setting("TORTURE_SEED", 1));
    let pictures = setting("SOAK_PICTURES", 20_000) as usize;
    let mut pair = Pair::new(&node, Model::Pixels, pictures, &mut rng);
    let mut wrong = in_this_process(&pair);
    println!(
        "{pictures} pictures; fds: most open files of the program; files: of the feature table, and others in the work folder"
    );
    println!(
        "round  embedded  pictures/s     sent  docs/s  seconds  peak MiB  fds    files      MB  version  temporary"
    );
    let mut rounds: Vec<Round> = Vec::new();
    while rounds.len() < ROUNDS && started.elapsed() < Duration::from_secs(60 * minutes) {
        match rounds.len() {
            0 => {}
            // Most of it: the index is made anew. Else it is copied, and what changed is sent.
            nth if nth % 5 == 0 => pair.churn(&mut rng, pictures * 6 / 10, pictures / 20),
            _ => pair.churn(&mut rng, pictures * 3 / 10, pictures / 20),
        }
        match round(pair.calm()) {
            Ok(round) => {
                println!(
                    "{:>5}  {:>8}  {:>10.0}  {:>7}  {:>6.0}  {:>7.1}  {:>8.0}  {:>3}  {:>4}+{:<3}  {:>6.1}  {:>7}  {:>9}",
                    rounds.len() + 1,
                    round.embedded,
                    round.embed_rate,
                    round.sent,
                    round.load_rate,
                    round.seconds,
                    round.peak_kib as f64 / 1024.0,
                    round.most_open,
                    round.files,
                    round.other_files,
                    round.bytes as f64 / 1e6,
                    round.version,
                    round.temporary
                );
                rounds.push(round);
            }
            Err(reason) => {
                wrong.push(format!("round {}: {reason}", rounds.len() + 1));
                break;
            }
        }
    }
    wrong.extend(grown(&rounds, &pair));
    let seen = rounds.len() * pictures;
    println!("{} rounds, {seen} pictures looked at, {} s", rounds.len(), started.elapsed().as_secs());
    if let [_, first, .., last] = rounds.as_slice() {
        let change = |first: f64, last: f64| 100.0 * (last / first - 1.0);
        println!(
            "from round 2 to the last: pictures/s {:+.0} %, docs/s {:+.0} %",
            change(first.embed_rate, last.embed_rate),
            change(first.load_rate, last.load_rate)
        );
    }
    for reason in &wrong {
        println!("{reason}");
    }
    let word = if wrong.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. soak: {} rounds", rounds.len());
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run, watched from outside.
fn round(side: &Side<'_>) -> Result<Round, String> {
    let started = Instant::now();
    let log = side.pipeline.with_extension("log");
    let out = File::create(&log).map_err(|error| error.to_string())?;
    let err = out.try_clone().map_err(|error| error.to_string())?;
    let mut run = Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .arg("run")
        .arg(&side.pipeline)
        .env("IMAGEDEX_CACHE", cache())
        .env_remove("GITHUB_STEP_SUMMARY")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .expect("the program starts");
    let (mut peak_kib, mut most_open) = (0, 0);
    let status = loop {
        peak_kib = peak_kib.max(status_kib(&run.id().to_string(), "VmHWM:"));
        most_open = most_open.max(open_files(&run.id().to_string()));
        match run.try_wait().expect("its state") {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if !status.success() {
        return Err(format!("{status}\n{}", fs::read_to_string(&log).unwrap_or_default()));
    }
    let record = fs::read_to_string(side.work.join("run.json")).map_err(|error| error.to_string())?;
    let record: Value = serde_json::from_str(&record).map_err(|error| error.to_string())?;
    let stages = record["stages"].as_array().cloned().unwrap_or_default();
    let sum = |stage: &str| {
        let of = stages.iter().filter(|done| done["stage"] == stage);
        of.fold((0, 0.0), |(items, seconds), done| {
            (
                items + done["items_out"].as_u64().unwrap_or(0),
                seconds + done["seconds"].as_f64().unwrap_or(0.0),
            )
        })
    };
    let ((embedded, embed_seconds), (sent, load_seconds)) = (sum("embed"), sum("load: bulk"));
    let gallery = record["books"]["stored"].as_u64().unwrap_or(0);
    let searchable = side.searchable();
    if searchable == 0 || searchable > gallery {
        return Err(format!("users search {searchable} pictures of {gallery} stored"));
    }
    let [files, other_files, bytes] = on_disk(&side.work);
    Ok(Round {
        embedded,
        embed_rate: embedded as f64 / f64::max(embed_seconds, 1e-9),
        sent,
        load_rate: sent as f64 / f64::max(load_seconds, 1e-9),
        seconds: started.elapsed().as_secs_f64(),
        peak_kib,
        most_open,
        files,
        other_files,
        bytes,
        version: record["table_version"].as_u64().unwrap_or(0),
        temporary: side.leftovers().len(),
    })
}

/// What grew from round to round. The second round is the first that does what the later ones do.
fn grown(rounds: &[Round], pair: &Pair<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let [_, early @ .., last] = rounds else { return found };
    // Of each kind of round one was there.
    let early = &early[..early.len().min(5)];
    let most = |of: fn(&Round) -> u64| early.iter().map(of).max().unwrap_or_else(|| of(last));
    let bounds = [
        ("peak memory, KiB", last.peak_kib, most(|round| round.peak_kib) + MORE_KIB),
        ("open files", last.most_open as u64, most(|round| round.most_open as u64) + LOG_ENTRIES),
        ("files of the table", last.files, FILES_A_COMMIT * (last.version + 1)),
        ("other files in the work folder", last.other_files, most(|round| round.other_files)),
        ("temporary files", last.temporary as u64, 0),
        ("indices on the server", pair.calm().indices().len() as u64, 2),
    ];
    for (what, is, bound) in bounds {
        if is > bound {
            found.push(format!("{what}: {is} in the last round, more than {bound}"));
        }
    }
    found
}

/// Decoding and the model, again and again in one process.
fn in_this_process(pair: &Pair<'_>) -> Vec<String> {
    const TIMES: usize = 60;
    let runtime = Runtime { library: cache().join("runtime/onnxruntime"), threads: 2, cache: None };
    let card = Card::load(&pair.card()).expect("a card");
    let choice = ModelChoice { pooling: Pooling::Model, ..ModelChoice::default() };
    let options = PictureOptions {
        decode: DecodeOptions { exif: Exif::default(), max_pixels: 1_000_000 },
        side: 4,
        resize: Resize::Nearest,
        batch: choice.batch,
        threads: 2,
        shares: Shares::default(),
    };
    let scanning = ScanOptions {
        gallery: pair.pictures(),
        queries: None,
        images: None,
        label: LabelRule::Folder,
        outside: false,
    };
    let mut sizes = Vec::new();
    for _ in 0..TIMES {
        let stop = AtomicBool::new(false);
        let mut images = crate::runtime().block_on(scan::scan(&scanning)).expect("scanned").images;
        images.truncate(2_000);
        let (seen, _) = scan::hash(images, &stop);
        let spec = card.resolve(&cache().join("models"), &choice).expect("resolved");
        let mut embedder = embedders::open(spec, &runtime).expect("opens");
        let mut stored = 0;
        embed::embed(embedder.as_mut(), &seen, &options, &stop, |chunk| {
            stored += chunk.len();
            Ok::<(), EmbedError>(())
        })
        .expect("embedded");
        assert_eq!(stored, seen.len());
        sizes.push((status_kib("self", "VmRSS:"), open_files("self")));
    }
    // The first third fills caches and pools.
    let settled = &sizes[TIMES / 3..];
    let ((first, open), (last, still_open)) = (settled[0], settled[settled.len() - 1]);
    println!(
        "one process, {TIMES} times scan, hash, decode and embed: {:.1} MiB after {}, {:.1} MiB at the end; {open} open files, {still_open}",
        first as f64 / 1024.0,
        TIMES / 3 + 1,
        last as f64 / 1024.0
    );
    let mut found = Vec::new();
    if last > first + MORE_KIB / 4 {
        found.push(format!("one process grew from {first} KiB to {last} KiB"));
    }
    if still_open > open + 8 {
        found.push(format!("one process had {open} files open, and {still_open} at the end"));
    }
    found
}

/// A number of `/proc/PROCESS/status`; 0 where the process has gone.
fn status_kib(process: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn open_files(process: &str) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).map_or(0, |entries| entries.count())
}

/// Files of the feature table, other files, and bytes of all.
fn on_disk(work: &Path) -> [u64; 3] {
    let table = work.join("features");
    let files = walkdir::WalkDir::new(work).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    files.fold([0, 0, 0], |[of_table, others, bytes], file| {
        let is_table = file.path().starts_with(&table);
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        [of_table + u64::from(is_table), others + u64::from(!is_table), bytes + size]
    })
}
