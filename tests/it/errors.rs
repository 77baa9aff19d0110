//! docs/errors.md: what each error says, what it means and how the program ends with it, as the code has it; and every exit code,
//! reached through the program.
//!
//! The texts are read from the sources, the exit codes asked of [`Exit::of`]. A variant without a sample here, or without a remedy,
//! fails the test.

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use imagedex::cluster::ClusterError;
use imagedex::config::{Budget, ConfigError};
use imagedex::embedders::EmbedError;
use imagedex::engines::EngineError;
use imagedex::exchange::ExchangeError;
use imagedex::exit::{Exit, UsageError};
use imagedex::lock::LockError;
use imagedex::memory::{Bytes, MemoryError};
use imagedex::metric::Metric;
use imagedex::models::ModelError;
use imagedex::objects::ObjectError;
use imagedex::setup::{Purpose, SetupError};
use imagedex::sql::SqlError;
use imagedex::stages::baseline::BaselineError;
use imagedex::stages::decode::DecodeError;
use imagedex::stages::evaluate::EvaluateError;
use imagedex::stages::load::LoadError;
use imagedex::stages::report::ReportError;
use imagedex::stages::scan::ScanError;
use imagedex::stages::store::{Differences, StoreError};

use crate::support::{Shop, cache, imagedex, root, said};

/// The error types in the order of a run, and the file of each.
const TYPES: [(&str, &str); 18] = [
    ("ConfigError", "src/config.rs"),
    ("MemoryError", "src/memory.rs"),
    ("LockError", "src/lock.rs"),
    ("ScanError", "src/stages/scan/mod.rs"),
    ("ObjectError", "src/objects/error.rs"),
    ("DecodeError", "src/stages/decode.rs"),
    ("ModelError", "src/models/mod.rs"),
    ("EmbedError", "src/embedders/mod.rs"),
    ("ClusterError", "src/cluster/mod.rs"),
    ("StoreError", "src/stages/store/error.rs"),
    ("LoadError", "src/stages/load.rs"),
    ("EngineError", "src/engines/mod.rs"),
    ("EvaluateError", "src/stages/evaluate/mod.rs"),
    ("BaselineError", "src/stages/baseline.rs"),
    ("ReportError", "src/stages/report/mod.rs"),
    ("SqlError", "src/sql/mod.rs"),
    ("ExchangeError", "src/exchange/mod.rs"),
    ("SetupError", "src/setup/mod.rs"),
];

/// One variant of an error type.
struct Variant {
    name: String,
    /// As `#[error]` has it; nothing where it is that of the error inside.
    message: Option<String>,
    doc: String,
}

/// The doc comment and the variants of an enum.
fn variants(source: &str, name: &str) -> (String, Vec<Variant>) {
    let (before, rest) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum");
    let (body, _) = rest.split_once("\n}").expect("its end");
    let head: Vec<&str> = before.lines().rev().take_while(|line| line.starts_with(['/', '#'])).collect();
    let head = head.iter().rev().filter_map(|line| line.strip_prefix("/// ")).collect::<Vec<_>>().join(" ");
    let (mut found, mut doc, mut message, mut attribute) = (Vec::new(), Vec::new(), None, String::new());
    for line in body.lines().map(str::trim) {
        if !attribute.is_empty() || line.starts_with("#[error(") {
            attribute += line;
            attribute.push('\n');
            if line.ends_with(")]") {
                message = literal(&attribute);
                attribute.clear();
            }
        } else if let Some(text) = line.strip_prefix("/// ") {
            doc.push(text);
        } else if line.starts_with(|c: char| c.is_ascii_uppercase()) {
            let name: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            found.push(Variant { name, message: message.take(), doc: doc.join(" ") });
            doc.clear();
        }
    }
    (head, found)
}

/// The first string literal of an attribute, as the program prints it.
fn literal(attribute: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = attribute.split_once('"')?.1.chars();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => match rest.next()? {
                // A line that goes on: its indentation is no part of it.
                '\n' => {
                    let trimmed = rest.as_str().trim_start();
                    rest = trimmed.chars();
                }
                'n' => text.push('\n'),
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
}

/// What file systems say in samples.
const IO: &str = "the words of the file system";

/// One error of each variant. What is in it decides no exit code.
fn samples() -> BTreeMap<&'static str, anyhow::Error> {
    let s = String::new;
    let io = || io::Error::other(IO);
    let engine = || EngineError::Failed { engine: s(), reason: s() };
    let object = || ObjectError::Unreachable { url: s(), reason: s() };
    let store = || StoreError::Failed { path: s(), reason: s() };
    macro_rules! errors {
        ($($type:ident { $($variant:ident $fields:tt)* })*) => {
            BTreeMap::from([$($((
                concat!(stringify!($type), "::", stringify!($variant)),
                anyhow::Error::from(errors!(@ $type $variant $fields)),
            ),)*)*])
        };
        (@ $type:ident $variant:ident ()) => { $type::$variant };
        (@ $type:ident $variant:ident ($($value:expr),+)) => { $type::$variant($($value),+) };
        (@ $type:ident $variant:ident {$($fields:tt)+}) => { $type::$variant { $($fields)+ } };
    }
    errors! {
        ConfigError {
            Read { path: s().into(), reason: io() }
            Parse { origin: s(), reason: s() }
            Value { origin: s(), key: s(), reason: s() }
        }
        MemoryError { TooLittle { budget: Bytes(1), needs: s(), least: Bytes(2) } NotMeasured() }
        LockError { Held { path: s().into() } TableHeld { path: s().into() } TableIo { path: s().into(), reason: io() } Io { path: s().into(), reason: io() } }
        ScanError {
            Unreadable { what: "", path: s().into(), reason: io() }
            NotAFolder { what: "", path: s().into() }
            Empty { what: "", path: s().into(), seen: s() }
            Vanished { what: "", path: s().into() }
            Changed { what: "", path: s().into() }
            Archive { path: s().into(), reason: s() }
            NoColumn { what: "", path: s().into(), column: s(), found: s() }
            ObjectsVanished { what: "", url: s(), reason: s() }
            NotInStores { what: "", url: s(), found: "", remedy: "" }
            Object(object())
            Manifest { path: s().into(), reason: s() }
        }
        ObjectError {
            Settings { url: s(), reason: s() }
            Missing { url: s(), reason: s() }
            Denied { url: s(), reason: s() }
            Name { url: s(), reason: s() }
            Unreachable { url: s(), reason: s() }
        }
        ModelError {
            Read { path: s(), reason: s() }
            Write { path: s(), reason: s() }
            Card { path: s(), reason: s() }
            Choice { card: s(), reason: s() }
            Missing { path: s(), card: s() }
            Sha256 { path: s(), card: s(), expected: s(), found: s() }
            Weights { path: s(), reason: s() }
            Built { card: s(), wrong: s() }
            Ranges { path: s(), reason: s() }
            Range { layer: s(), found: s() }
            Calibration { what: s(), reason: s() }
        }
        EmbedError {
            Runtime { path: s(), reason: s() }
            Provider { provider: s(), reason: s() }
            Contract { path: s(), reason: s() }
            Inference(s())
        }
        ClusterError {
            Scheduler { address: s(), reason: s() }
            NoExecutor { address: s(), seconds: 1 }
            NoAnswer { address: s(), reason: s() }
            Refused { executor: s(), reason: s() }
            Unlike { executor: s(), picture: s(), reason: s() }
            Part { first: s(), last: s(), tries: 1, reason: s() }
            Tls { path: s().into(), reason: s() }
            Start { what: "", address: s(), reason: s() }
        }
        StoreError {
            FingerprintMismatch { path: s(), differences: Differences(Vec::new()) }
            NotATable { path: s(), reason: s() }
            OtherSchema { path: s(), found: s(), known: 1 }
            Io { path: s(), reason: s(), remedy: "" }
            Damaged { file: s(), reason: s(), remedy: "" }
            TooManyGone { split: "", gone: 1, stored: 1, budget: Budget::Count(0) }
            BelowUnreadable { split: "", folder: s(), reason: s(), gone: 1 }
            Unreadable { path: s(), reason: s() }
            Newer { path: s(), reason: s() }
            Unconditional { url: s() }
            Object(object())
            Conflict { path: s(), reason: s() }
            InvalidRow { split: "", id: s(), reason: s() }
            Duplicate { split: "", id: s(), place: "" }
            Failed { path: s(), reason: s() }
        }
        LoadError {
            Store(store())
            Engine(engine())
            Books(s())
            Differs { engine: s(), id: s(), how: "" }
            OverBudget { engine: s(), rejected: 1, gallery: 1, budget: Budget::Count(0), file: s() }
            Write { path: s(), reason: s() }
        }
        EngineError {
            UnsupportedMetric { engine: s(), metric: Metric::L1, reason: s() }
            WrongDimension { expected: 1, got: 2 }
            NotFinite { id: s() }
            ZeroK()
            Failed { engine: s(), reason: s() }
            Usage(s())
            Locked(s())
            Interrupted()
            Store(store())
        }
        EvaluateError {
            EmptyGallery()
            NoQueries()
            NothingAsked("")
            ZeroK()
            NotHeld()
            Dimensions { gallery: 1, queries: 2 }
            RepeatedId { id: s() }
            UnknownHit { engine: s(), id: s() }
            NoSupportedMetric { engine: s(), metrics: s() }
            Engine(engine())
            Rankings { path: s(), reason: s() }
            Write { path: s(), reason: s() }
        }
        BaselineError {
            Missing { path: s() }
            Read { path: s(), reason: s() }
            Schema { path: s(), found: 0 }
            Write { path: s(), reason: s() }
            Incomparable { path: s(), what: s() }
            Nothing(s())
        }
        ReportError {
            Write { path: s(), reason: s() }
            Read { path: s(), reason: s() }
            Schema { path: s(), found: 0 }
            OfTwoRuns { path: s() }
        }
        SqlError {
            NoTable { table: "", remedy: "" }
            NotAllowed { statement: s() }
            NotOne(2)
            Query(s())
            Output(io())
            Store(store())
        }
        ExchangeError {
            UnknownFormat { path: s() }
            NoTable { path: s() }
            Invalid { path: s(), reason: s() }
            Store(store())
            Lock(LockError::Held { path: s().into() })
            Memory(MemoryError::NotMeasured)
        }
        SetupError {
            MissingTool { tool: "", why: s(), install: "" }
            Platform { purpose: Purpose::Runtime, os: "", arch: "" }
            Client { client: "", package: s(), lines: s() }
            Damaged { file: s(), tries: 2, expected: s(), found: s() }
            Member { file: s(), member: s(), problem: s() }
            Sheet { file: s().into(), problem: s() }
            DiskFull { path: s().into() }
            Io { action: "", path: s().into(), reason: io() }
            Table(s())
        }
        DecodeError {
            Empty()
            NotAPicture()
            Unsupported(s())
            Truncated()
            Corrupt(s())
            TooLarge { width: 1, height: 1, max: 0 }
            TooLong { bytes: 1, max: 0 }
            NoRoom { bytes: 1, most: 0 }
        }
    }
}

/// What the code says.
fn document() -> String {
    let mut text = String::from(
        "# Errors\n\n\
         Each error ends the run with the exit code beside it (README.md lists the codes) and is printed on standard error as one message, \
         the outer cause first. What stands in braces is filled in; where a message ends in `{reason}` those are the words of the file system, \
         of a library or of a server. Not listed are the command line's own messages (exit code 2; they show the usage), and wrong \
         settings, which are `ConfigError`s with the key and what is possible.\n\n\
         This file is generated from the sources: `UPDATE_DOCS=1 cargo test --release --test it errors` writes it.\n",
    );
    let samples = samples();
    for (name, file) in TYPES {
        let source = std::fs::read_to_string(root().join(file)).expect("a source file");
        let (head, variants) = variants(&source, name);
        text +=
            &format!("\n## {name}\n\n{head}\n\n| message | ends with | cause and remedy |\n|---|---|---|\n");
        for Variant { name: variant, message, doc } in variants {
            let key = format!("{name}::{variant}");
            let error =
                samples.get(&*key).unwrap_or_else(|| panic!("no sample of {key} in tests/it/errors.rs"));
            // A picture that fails is a row, unless it is the one that a command names.
            let ends = match error.downcast_ref::<DecodeError>() {
                Some(error) => format!("a row of kind `{}`; 2 if a command names it", error.kind()),
                None if message.is_none() => "as the error inside".to_owned(),
                None => (Exit::of(error) as u8).to_string(),
            };
            let shown = message.as_deref().map_or("that of the error inside".to_owned(), |message| {
                format!("`{}`", message.replace('`', "'").replace('|', "\\|").replace('\n', " ↵ "))
            });
            let is_said = message.is_none_or(|message| message.contains("; ") || message.contains(": "));
            assert!(
                is_said || !doc.is_empty(),
                "{key} says neither in its message nor in its comment what to do"
            );
            let doc = if doc.is_empty() { "as the message says".to_owned() } else { doc.replace('|', "\\|") };
            text += &format!("| {shown} | {ends} | {doc} |\n");
        }
    }
    text
}

#[test]
fn the_list_of_errors_is_what_the_code_says() {
    let (file, now) = (root().join("docs/errors.md"), document());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &now).expect("writable");
    }
    let listed = std::fs::read_to_string(&file).expect("docs/errors.md");
    assert!(
        listed == now,
        "docs/errors.md is out of date: UPDATE_DOCS=1 cargo test --release --test it errors"
    );
}

#[test]
fn no_error_type_is_missing_from_the_list() {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap_or_default();
            for rest in source.split("thiserror::Error)]\npub enum ").skip(1) {
                found.push(rest.chars().take_while(char::is_ascii_alphanumeric).collect::<String>());
            }
        }
    }
    found.sort();
    let mut listed: Vec<String> = TYPES.iter().map(|(name, _)| (*name).to_owned()).collect();
    listed.sort();
    assert_eq!(found, listed);
    assert_eq!(Exit::of(&UsageError(String::new()).into()), Exit::Usage, "the one that is no enum");
}

/// The chain is printed as a whole, so an error whose message holds that of its cause would say it twice.
#[test]
fn no_error_says_its_cause_twice() {
    let mut causes = 0;
    for (name, error) in samples() {
        let said = format!("{error:#}");
        for cause in error.chain().skip(1).map(ToString::to_string).filter(|cause| !cause.is_empty()) {
            assert_eq!(said.matches(&cause).count(), 1, "{name}: {said}");
            causes += 1;
        }
        // A reason that is kept as an error, and is no cause, is in the message itself.
        assert!(said.matches(IO).count() <= 1, "{name}: {said}");
    }
    assert!(causes > 0, "some errors have causes");
}

#[test]
fn a_literal_is_read_as_the_compiler_reads_it() {
    let attribute = "#[error(\n\"a \\\"b\\\" \\\n   {c}; \\n\\\\ d\", x.display()\n)]\n";
    assert_eq!(literal(attribute).as_deref(), Some("a \"b\" {c}; \n\\ d"));
    assert_eq!(literal("#[error(transparent)]"), None);
}

#[test]
fn every_exit_code_is_reached() {
    let shop = Shop::new();
    for seed in 0..6 {
        let class = if seed < 3 { "stripes" } else { "waves" };
        shop.picture(&format!("gallery/{class}/{seed}.png"), seed * 7 + 1);
    }
    shop.pipeline("[input]\ngallery = 'gallery'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n");
    let file = shop.path("shop.toml").display().to_string();
    let with = |setting: &str| imagedex(["run", &file, "--set", setting]);
    // 4 first: a run that stored nothing.
    with("runtime.library=shop.toml").exits(Exit::Infrastructure as i32).complains("ONNX Runtime");
    shop.imagedex("run").exits(Exit::Done as i32);
    with("gate.cosine.MAP=1.0").exits(Exit::Gate as i32).says("gate FAILED");
    with("gate.cosine.MPA=1.0").exits(Exit::Usage as i32).complains("MPA");
    std::fs::write(shop.path("gallery/waves/broken.png"), "no picture").expect("writable");
    with("input.max_failures=0").exits(Exit::OverBudget as i32).complains("1 of 7 pictures failed");
    std::fs::remove_file(shop.path("gallery/waves/broken.png")).expect("removed");
    let lock = std::fs::File::open(shop.path("runs/shop/lock")).expect("a lock");
    lock.lock().expect("free");
    shop.imagedex("run").exits(Exit::Locked as i32).complains("another run holds");
    lock.unlock().expect("unlocked");
    drop(lock);

    for seed in 6..600 {
        shop.picture(&format!("gallery/many/{seed}.png"), seed);
    }
    std::fs::remove_file(shop.path("runs/shop/lock")).expect("removed");
    let mut run = Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .args(["run", &file])
        .env("IMAGEDEX_CACHE", cache())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // It listens for signals before it takes the lock.
    while !shop.path("runs/shop/lock").exists() {
        assert!(run.try_wait().expect("a state").is_none(), "it ended before it took the lock");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &run.id().to_string()]).status();
    assert!(killed.expect("kill starts").success());
    said(run.wait_with_output().expect("it ends")).exits(Exit::Interrupted as i32);
    assert_eq!(shop.run_json()["exit_code"], 130);
    shop.imagedex("run").exits(Exit::Done as i32).says("scanned 600");
}
