//! `report.html` as people open it: in a browser, on a phone, by keyboard, on paper, with hostile labels.
//!
//! What can be asked of a page only in a browser is asked in tests/browser/check.mjs, which `make setup-browser` prepares.

use std::path::{Path, PathBuf};
use std::process::Command;

use imagedex::engines::VectorIndex;
use imagedex::engines::flat::Flat;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::evaluate::{self, EvaluateOptions, Mode};
use imagedex::stages::report::{Exporter, Html, Pictures, RunReport};
use imagedex::stages::scan::Split;
use serde_json::json;

use crate::support::{Shop, cache, imagedex, root, said};

/// Checks a report in headless Chromium; each of `texts` must be seen on it. Said loudly, and passed, where no browser
/// runs; in CI one must.
pub fn check_in_browser(report: &Path, texts: &[&str]) {
    /// check.mjs ends with it where there is no browser.
    const NO_BROWSER: i32 = 77;
    let scripts = root().join("tests/browser");
    let browser = cache().join("browser");
    let skip = |reason: &str| {
        assert!(std::env::var_os("CI").is_none(), "{reason}: run `make setup-browser`; CI does not skip");
        eprintln!(
            "\n*** SKIPPED: the page was not opened in a browser ({reason}; `make setup-browser`) ***\n"
        );
    };
    if !browser.join("stamp").is_file() {
        return skip(&format!("{} is not set up", browser.display()));
    }
    let mut node = Command::new("node");
    node.arg(scripts.join("check.mjs")).arg(&browser).arg(report).args(texts);
    let Ok(output) = node.output() else { return skip("there is no node") };
    let said = said(output);
    if said.code == NO_BROWSER {
        return skip(&said.err);
    }
    println!("{}", said.out);
    said.exits(0);
}

/// Twelve gallery pictures and three queries of each class of the sample photos, for the quick model.
fn photo_shop() -> Shop {
    let shop = Shop::new();
    let samples = cache().join("samples/cifar10");
    for (side, most) in [("gallery", 12), ("queries", 3)] {
        for class in std::fs::read_dir(samples.join(side)).expect("samples") {
            let class = class.expect("a class").path();
            let mut pictures: Vec<PathBuf> = std::fs::read_dir(&class)
                .expect("pictures")
                .map(|entry| entry.expect("a picture").path())
                .collect();
            pictures.sort();
            for picture in pictures.iter().take(most) {
                let to = shop.path(side).join(picture.strip_prefix(samples.join(side)).expect("below"));
                std::fs::create_dir_all(to.parent().expect("a folder")).expect("writable");
                std::fs::copy(picture, to).expect("copied");
            }
        }
    }
    shop.pipeline(
        "[input]\ngallery = 'gallery'\nqueries = 'queries'\n\
         [model]\nprecision = 'int8'\nprovider = 'openvino'\nresize = 'bilinear'\n\
         [evaluate]\nmodes = ['held_out', 'leave_one_out']\n[gate.cosine]\n'P@1' = 0.01\n",
    );
    shop
}

/// The page's table of measures holds the Markdown's figures for each metric, and its intervals.
fn assert_same_figures(markdown: &str, page: &str) {
    for metric in ["cosine", "dot_product", "l1", "l2"] {
        let rows = markdown.lines().filter(|line| line.starts_with(&format!("| {metric} |")));
        let rows: Vec<Vec<&str>> =
            rows.take(2).map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
        let [means, intervals] = &rows[..] else { panic!("no rows of {metric} in\n{markdown}") };
        let (_, row) = page.split_once(&format!("<bdi>{metric}</bdi></th>")).expect("a row");
        let (row, _) = row.split_once("</tr>").expect("its end");
        let cells = means[1..].iter().zip(&intervals[1..]);
        let mut expected: String =
            cells.map(|(mean, interval)| format!("<td>{mean}<small>{interval}</small></td>")).collect();
        expected += &format!("<td>{}</td>", means.last().expect("n"));
        assert_eq!(row, expected);
    }
}

#[test]
fn a_run_leaves_a_page_that_report_writes_again() {
    let shop = photo_shop();
    shop.imagedex("run").exits(0).says("report.html");
    let page = shop.path("runs/shop/report/report.html");
    let read = || std::fs::read_to_string(&page).expect("report.html");
    let first = read();
    let markdown = std::fs::read_to_string(shop.path("runs/shop/report/report.md")).expect("report.md");
    assert_same_figures(&markdown, &first);
    check_in_browser(&page, &["Gate: ", "scanned 150", "flat, leave-one-out"]);

    std::fs::remove_file(&page).expect("removed");
    shop.imagedex("report").exits(0);
    assert_eq!(read(), first, "all that it needs is on disk");
    std::fs::remove_dir_all(shop.path("gallery")).expect("removed");
    shop.imagedex("report").exits(0);
    assert!(read().contains("could not be read again, and are blank: 120."), "all but the queries");
    std::fs::remove_file(shop.path("runs/shop/report/per_query.parquet")).expect("removed");
    shop.imagedex("report").exits(0).complains("per_query.parquet");
    assert!(!read().contains("class=\"gallery\""));
    assert_same_figures(&markdown, &read());
}

/// A picture of coarse grain: harder to compress than a photo of its size.
fn draw(path: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (tone, grain): (u8, Vec<u8>) = (random.u8(..), (0..30 * 40).map(|_| random.u8(0..120)).collect());
    let picture = image::RgbImage::from_fn(160, 120, |x, y| {
        let level = grain[(y / 4 * 40 + x / 4) as usize];
        image::Rgb([tone.wrapping_add(level / 2), level, (x / 2) as u8 + level / 2])
    });
    picture.save(path).expect("writable");
}

/// `count` pictures with random vectors; their classes are `labels` in turn.
fn random_batch(split: Split, count: usize, labels: &[&str]) -> EmbeddingBatch {
    const DIM: usize = 8;
    let mut random = fastrand::Rng::with_seed(count as u64);
    let picture = |i: usize| Picture {
        id: format!("{}-{i}.bmp", split.name()),
        split,
        label: Some(labels[i % labels.len()].to_owned()),
        sha256: format!("{}-{i}", split.name()),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 160,
        height: 120,
        format: "bmp".to_owned(),
    };
    EmbeddingBatch {
        pictures: (0..count).map(picture).collect(),
        dim: DIM,
        vectors: (0..count * DIM).map(|_| random.f32()).collect(),
        norms: vec![1.0; count],
    }
}

#[test]
fn four_hundred_queries_stay_below_five_megabytes_and_hostile_labels_stay_text() {
    let labels = [
        "</script><script>alert(1)</script>",
        "</style><img src=x onerror=alert(1)>",
        "\"'><svg onload=alert(1)>",
        "&lt;b&gt; | **bold** `code` @team",
        "שלום עולם",
        "gpj.\u{202e}live\u{7}\n",
        "plain",
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gallery, queries) =
        (random_batch(Split::Gallery, 1500, &labels), random_batch(Split::Query, 450, &labels));
    for (picture, seed) in gallery.pictures.iter().chain(&queries.pictures).zip(0..) {
        draw(&folder.path().join(&picture.id), seed);
    }
    let mut index = Flat::new(true);
    index.create(gallery.dim).expect("create");
    index.upsert(&gallery).expect("upsert");
    index.commit().expect("commit");
    // Vectors that are not of length 1: four metrics, four rankings.
    let options = EvaluateOptions { modes: vec![Mode::HeldOut], ..EvaluateOptions::default() };
    let evaluation = evaluate::evaluate(&index, &gallery, &queries, &options).expect("evaluated");
    assert!(evaluation.modes[0].same_ranking.is_empty());
    let provenance = json!({ "model": "</script>", "note\u{202e}": "<img src=x>" });
    let report = RunReport::new("</title><script>alert(1)</script>", provenance, vec![evaluation]);
    let pictures =
        Pictures { gallery: folder.path(), queries: Some(folder.path()), images: None, max_pixels: u64::MAX };
    let mut page = Vec::new();
    Html { pictures }.write(&report, &mut page).expect("written");
    println!("{} bytes", page.len());
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    let file = folder.path().join("report.html");
    std::fs::write(&file, &page).expect("writable");
    let html = String::from_utf8(page).expect("UTF-8");
    assert_eq!(html.matches("<script>").count(), 1);
    assert!(html.contains("The 400 worst of 450 queries by"));
    assert!(!html.contains('\u{202e}'));
    let seen = [
        "</script><script>alert(1)</script>",
        "\"'><svg onload=alert(1)>",
        "**bold** `code` @team",
        "שלום עולם",
        "gpj.\u{fffd}live\u{fffd}↵",
    ];
    check_in_browser(&file, &seen);
}

#[test]
fn a_report_without_queries_is_a_page_too() {
    let report = RunReport::new("empty", json!({}), Vec::new());
    let mut page = Vec::new();
    let pictures = Pictures { gallery: Path::new("gone"), queries: None, images: None, max_pixels: 1 };
    Html { pictures }.write(&report, &mut page).expect("written");
    let html = String::from_utf8(page).expect("UTF-8");
    assert!(html.contains("This run scanned and loaded no pictures."), "{html}");
    assert_eq!(imagedex(["report", "no-such-file.toml"]).code, 2);
}
