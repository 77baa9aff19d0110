//! What the program takes at most, as the operating system counts it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::ImageFormat;
use imagedex::exchange;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split;
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance, read_failures};
use serde_json::json;

use crate::bad_input::{encoded, photo};
use crate::models::mean_colour;
use crate::support::{Said, Shop, cache};

/// Runs a command on the pipeline file: what it said, and the bytes that it took at most.
///
/// Asked of the system again and again while it runs: what `wait4` tells at the end counts what this process has taken as well.
fn run<S: AsRef<OsStr>>(shop: &Shop, command: &[S]) -> (Said, u64) {
    let (out, err) = (shop.path("out"), shop.path("err"));
    let file = |path: &Path| std::fs::File::create(path).expect("writable");
    let mut program = Command::new(env!("CARGO_BIN_EXE_imagedex"));
    program.args(command).arg(shop.path("shop.toml")).env("IMAGEDEX_CACHE", cache());
    let mut child = program.stdout(file(&out)).stderr(file(&err)).spawn().expect("the program starts");
    let mut peak = 0;
    let status = loop {
        peak = peak.max(high_water(child.id()));
        match child.try_wait().expect("waited for") {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(peak > 0, "the system tells");
    let text = |path| std::fs::read_to_string(path).expect("readable");
    (Said { code: status.code().unwrap_or(-1), out: text(&out), err: text(&err) }, peak)
}

/// The most that a process has taken so far, in bytes; 0 of one that has ended.
fn high_water(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Pictures and an encoder that takes next to nothing.
fn shop(pictures: u32) -> Shop {
    let shop = Shop::new();
    let card = mean_colour(&shop.path(""));
    shop.pipeline(&format!(
        "[input]\ngallery = 'gallery'\nmax_failures = '100%'\n[model]\ncard = '{}'\npooling = 'model'\n",
        card.display()
    ));
    for seed in 0..pictures {
        shop.picture(&format!("gallery/good/{seed:02}.png"), seed);
    }
    shop
}

/// The same with a budget on top of the pipeline file.
fn within(shop: &Shop, text: &str, budget: &str) -> (Said, u64) {
    shop.pipeline(&format!("memory = '{budget}'\n{text}"));
    run(shop, &["extract"])
}

/// The budget that an error asks for, in bytes and as it says it.
fn asked_for(said: &Said) -> (u64, String) {
    let (_, text) = said.err.split_once("set memory to \"").expect("the error names a budget that would do");
    let text = text.split('"').next().expect("its end");
    let mib: u64 = text.strip_suffix("MiB").expect("in MiB").parse().expect("a number");
    (mib << 20, text.to_owned())
}

/// So many zeros, deflated to a thousandth.
fn zeros(count: u64) -> Vec<u8> {
    let mut deflated = ZlibEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut std::io::repeat(0).take(count), &mut deflated).expect("deflates");
    deflated.finish().expect("deflates")
}

/// A PNG of 8-bit (`depth` 1: of black and white) grey pixels with one more chunk before its data.
fn png(side: u32, depth: u8, chunk: Option<(&[u8; 4], Vec<u8>)>) -> Vec<u8> {
    let row = 1 + u64::from(side) * u64::from(depth) / 8;
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[depth, 0, 0, 0, 0]].concat();
    let data = zeros(row * u64::from(side));
    let chunks = [(b"IHDR", header)].into_iter().chain(chunk).chain([(b"IDAT", data), (b"IEND", Vec::new())]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in chunks {
        let named = [&name[..], &data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&named);
        file.extend(crc(&named).to_be_bytes());
    }
    file
}

/// The checksum of a PNG chunk, for megabytes.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A JPEG whose header says that it is of `side` x `side` pixels, which its content is not.
fn jpeg(side: u16, is_progressive: bool, scans: usize) -> Vec<u8> {
    let mut file = match is_progressive {
        false => encoded(photo(64, 64), ImageFormat::Jpeg),
        true => {
            let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
            encoder.set_size(64, 64);
            encoder.set_progressive_mode();
            let mut encoder = encoder.start_compress(Vec::new()).expect("starts");
            encoder.write_scanlines(photo(64, 64).as_raw()).expect("writes");
            encoder.finish().expect("finishes")
        }
    };
    let marker = [0xff, if is_progressive { 0xc2 } else { 0xc0 }];
    let frame = file.windows(2).position(|pair| pair == marker).expect("a frame header");
    let side = side.to_be_bytes();
    file[frame + 5..frame + 9].copy_from_slice(&[side, side].concat());
    let scan = file.windows(2).position(|pair| pair == [0xff, 0xda]).expect("a scan");
    let scan = file[scan..scan + 14].repeat(scans);
    file.truncate(file.len() - 2);
    file.extend(scan);
    file.extend([0xff, 0xd9]);
    file
}

/// A TIFF of 9,000 x 9,000 grey pixels that claims a quarter of a billion strips.
fn tiff() -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let entries = [
        entry(256, 4, 1, 9_000),
        entry(257, 4, 1, 9_000),
        entry(258, 3, 1, 8),
        entry(259, 3, 1, 1),
        entry(262, 3, 1, 1),
        entry(273, 4, 1 << 28, 8),
        entry(278, 4, 1, 1),
        entry(279, 4, 1 << 28, 8),
    ];
    [b"II*\0\x08\0\0\0".to_vec(), (entries.len() as u16).to_le_bytes().to_vec(), entries.concat(), vec![0; 4]]
        .concat()
}

/// A picture of 8 x 8 pixels whose bytes at `at` are others.
fn lying(format: ImageFormat, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = encoded(photo(8, 8), format);
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn a_bomb_costs_a_failure_row_and_no_memory() {
    const GOOD: u32 = 40;
    let (said, usual) = run(&shop(GOOD), &["extract"]);
    said.exits(0);

    let sides = |side: i32| [side.to_le_bytes(), side.to_le_bytes()].concat();
    let profile = |name: &[u8]| [name, &zeros(600 << 20)].concat();
    let bombs = [
        ("black.png", "too_large", png(50_000, 1, None)),
        ("screen.gif", "too_large", lying(ImageFormat::Gif, 6, &[0xff; 4])),
        ("huge.bmp", "too_large", lying(ImageFormat::Bmp, 18, &sides(60_000))),
        ("hollow.bmp", "truncated", lying(ImageFormat::Bmp, 18, &sides(9_900))),
        ("strips.tiff", "", tiff()),
        // 14 bits of width - 1, and as many of height - 1.
        ("lossless.webp", "corrupt", lying(ImageFormat::WebP, 21, &[0xff, 0xff, 0xff, 0x0f])),
        ("huge.jpg", "too_large", jpeg(65_500, false, 0)),
        ("huge-progressive.jpg", "too_large", jpeg(65_500, true, 0)),
        ("hollow.jpg", "truncated", jpeg(9_900, false, 0)),
        ("hollow-progressive.jpg", "truncated", jpeg(9_900, true, 0)),
        ("scans.jpg", "corrupt", jpeg(64, true, 5_000)),
    ];
    // These are pictures all the same: what comes with them is of no interest.
    let harmless = [
        ("profile.png", png(64, 8, Some((b"iCCP", profile(b"p\0\0"))))),
        ("text.png", png(64, 8, Some((b"zTXt", profile(b"t\0\0"))))),
    ];
    let shop = shop(GOOD);
    let files = bombs
        .iter()
        .map(|(name, _, file)| (name, file))
        .chain(harmless.iter().map(|(name, file)| (name, file)));
    std::fs::create_dir(shop.path("gallery/bombs")).expect("writable");
    for (name, bytes) in files {
        let mut file = std::fs::File::create(shop.path("gallery/bombs").join(name)).expect("writable");
        file.write_all(bytes).expect("writable");
    }
    let (said, peak) = run(&shop, &["extract"]);
    said.exits(0);
    let failures = read_failures(&shop.path("runs/shop/failures.parquet")).expect("failures");
    let failures: BTreeMap<&str, &str> =
        failures.iter().map(|f| (f.path.trim_start_matches("bombs/"), f.kind.as_str())).collect();
    for (name, kind, _) in &bombs {
        let found = failures.get(name).unwrap_or_else(|| panic!("{name} passed: {failures:?}"));
        assert!(kind.is_empty() || found == kind, "{name}: {found}");
    }
    assert_eq!(failures.len(), bombs.len(), "{failures:?}");
    let stored = u64::from(GOOD) + harmless.len() as u64;
    assert_eq!(shop.run_json()["books"]["stored"], stored);
    let more = peak.saturating_sub(usual) / 1_000_000;
    eprintln!("peak {} MB with bombs, {} MB without", peak / 1_000_000, usual / 1_000_000);
    assert!(more < 150, "{more} MB more than {} MB without bombs", usual / 1_000_000);
}

#[test]
fn large_pictures_wait_for_one_another_within_a_budget() {
    const BUDGET: u64 = 512 << 20;
    let shop = shop(4);
    std::fs::create_dir(shop.path("gallery/large")).expect("writable");
    for number in 0..10_u8 {
        let picture = png(4_000, 8, Some((b"tEXt", vec![b'n', 0, b'0' + number])));
        std::fs::write(shop.path(&format!("gallery/large/{number}.png")), picture).expect("writable");
    }
    let rest =
        std::fs::read_to_string(shop.path("shop.toml")).expect("readable") + "[runtime]\nthreads = 8\n";
    shop.pipeline(&rest);
    let (said, without) = run(&shop, &["extract"]);
    said.exits(0);
    std::fs::remove_dir_all(shop.path("runs")).expect("writable");
    let (said, peak) = within(&shop, &rest, "512MiB");
    said.exits(0);
    eprintln!("peak {} MB within 537 MB, {} MB without a budget", peak / 1_000_000, without / 1_000_000);
    let record = shop.run_json();
    assert_eq!(record["books"]["stored"], 14, "{record}");
    assert_eq!(record["memory"]["budget"], BUDGET);
    assert!(peak <= BUDGET, "{peak} bytes; {}", record["memory"]);
    assert!(without > BUDGET, "it takes {without} bytes without a budget, so this test shows nothing");

    // A picture that does not fit even alone is a failure that says so.
    std::fs::write(shop.path("gallery/large/giant.png"), png(9_900, 8, None)).expect("writable");
    let (said, peak) = within(&shop, &rest, "512MiB");
    said.exits(0);
    let failures = read_failures(&shop.path("runs/shop/failures.parquet")).expect("failures");
    let [giant] = &failures[..] else { panic!("{failures:?}") };
    assert_eq!((giant.path.as_str(), giant.kind.as_str()), ("large/giant.png", "too_large"));
    assert!(giant.reason.contains("raise memory"), "{}", giant.reason);
    assert!(peak <= BUDGET, "{peak} bytes");
}

#[test]
fn too_little_is_refused_and_what_the_error_asks_for_is_enough() {
    let shop = shop(12);
    let rest = std::fs::read_to_string(shop.path("shop.toml")).expect("readable");
    for wrong in ["1", "many", "0MiB"] {
        let (said, _) = within(&shop, &rest, wrong);
        said.exits(2).complains("memory").complains("\"512MiB\"");
    }
    let (said, _) = within(&shop, &rest, "48MiB");
    let said = said.exits(2).complains("memory = \"48MiB\" is too little").complains("for the program");
    assert!(!shop.path("runs/shop").exists(), "refused before any work");
    // What the model takes shows when it is there: the program may ask once more, and then has enough.
    let (mut budget, mut text) = asked_for(&said);
    for round in 0.. {
        let (said, _) = within(&shop, &rest, &text);
        if said.code == 0 {
            // The system's figure includes this process as it was when it forked, other tests' memory and all.
            let peak = shop.run_json()["memory"]["peak"].as_u64().expect("a number");
            eprintln!("peak {} MB of {text}", peak / 1_000_000);
            assert!(peak <= budget, "{peak} bytes of {budget}");
            break;
        }
        let asked = asked_for(&said.exits(2));
        assert!(round < 3 && asked.0 > budget, "{text}, and then {}", asked.1);
        (budget, text) = asked;
    }
}

/// Rows without pictures.
fn rows(split: Split, numbers: std::ops::Range<usize>, dim: usize) -> EmbeddingBatch {
    let picture = |number| Picture {
        id: format!("{number:06}.jpg"),
        split,
        label: Some("a".into()),
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 0,
        height: 0,
        format: String::new(),
    };
    // xorshift64: numbers that do not compress away.
    let mut state = numbers.start as u64 + 1;
    let number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    EmbeddingBatch {
        norms: vec![1.0; numbers.len()],
        dim,
        vectors: std::iter::repeat_with(number).take(numbers.len() * dim).collect(),
        pictures: numbers.map(picture).collect(),
    }
}

#[tokio::test]
async fn a_table_larger_than_the_budget_is_exported_and_measured_and_not_loaded() {
    const ROWS: usize = 96_000;
    const DIM: usize = 1_024;
    const BUDGET: u64 = 288 << 20;
    let shop = shop(0);
    let table = shop.path("features");
    let provenance = Provenance { fingerprint: "imported:f".into(), dim: DIM, facts: json!({}) };
    let mut store = FeatureStore::open_or_create(&table, &provenance).await.expect("made");
    for start in (0..ROWS).step_by(8_000) {
        store
            .append(&rows(Split::Gallery, start..start + 8_000, DIM), &CommitFacts::default())
            .await
            .expect("written");
    }
    store.append(&rows(Split::Query, 0..50, DIM), &CommitFacts::default()).await.expect("written");
    drop(store);
    shop.pipeline("memory = '288MiB'\n[input]\ngallery = 'gallery'\nqueries = 'queries'\n[features]\ntable = 'features'\n");

    for name in ["f.npy", "f.h5", "f.parquet"] {
        let file = shop.path(name);
        let (said, peak) = run(&shop, &["features".as_ref(), "export".as_ref(), file.as_os_str()]);
        said.exits(0);
        let length = std::fs::metadata(&file).expect("written").len();
        eprintln!(
            "{name}: peak {} MB of {} MB, a file of {} MB",
            peak / 1_000_000,
            BUDGET / 1_000_000,
            length / 1_000_000
        );
        assert!(peak <= BUDGET, "{name}: {peak} bytes");
        assert!(length > BUDGET, "{name}: {length} bytes fit, so this test shows nothing");
    }
    // The first and the last row are at their places.
    let back = exchange::read(&shop.path("f.h5")).expect("readable");
    let last = rows(Split::Gallery, ROWS - 8_000..ROWS, DIM);
    assert_eq!(back.len(), ROWS);
    assert_eq!(back.vectors[..DIM], rows(Split::Gallery, 0..1, DIM).vectors);
    assert_eq!(back.vectors[(ROWS - 1) * DIM..], last.vectors[7_999 * DIM..]);

    let (said, peak) = run(&shop, &["load"]);
    let said = said.exits(2).complains("MiB for the vectors in flat");
    assert!(peak < asked_for(&said).0 / 2, "{peak} bytes were taken all the same");

    // Fifty queries are vectors of the gallery: each finds its own.
    let (said, peak) =
        run(&shop, &["evaluate", "--set", "load.engine=table", "--set", "evaluate.metrics=['cosine']"]);
    said.exits(0);
    eprintln!("evaluate by table: peak {} MB of {} MB", peak / 1_000_000, BUDGET / 1_000_000);
    assert!(peak <= BUDGET, "{peak} bytes");
    let summary = std::fs::read_to_string(shop.path("runs/shop/report/summary.json")).expect("a report");
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    let cosine = &summary["evaluations"][0]["modes"][0]["metrics"][0];
    assert_eq!(cosine["engine_recall"][0]["mean"], 1.0, "{cosine}");
}
