//! Names that attack: files, folders, labels and manifests that try to leave their place in a page, a table, a spreadsheet, a
//! request, a terminal or the file system. What is decided about each stands in docs/input-and-sql.md.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use imagedex::exchange;
use imagedex::metric::Metric;
use imagedex::stages::scan::Split;
use imagedex::stages::store::FeatureStore;
use quick_xml::events::Event;
use serde_json::{Value, json};

use crate::elastic::{self, Table};
use crate::es_node::Node;
use crate::html::check_in_browser;
use crate::support::{Said, Shop, imagedex};

/// Classes whose names are folders. What a file system cannot hold (`/`, NUL) comes by manifests.
const LABELS: [&str; 9] = [
    "<img src=x onerror=alert(1)>",
    "=cmd('calc')!A1",
    "@SUM(1+1)*cmd",
    "-2+3+cmd",
    "a\nb,c\r\"d\"; {\"index\":{}}",
    "\x1b]0;owned\x07\x1b[31mred\u{9b}2J",
    "gpj.\u{202e}live",
    "Case",
    "case",
];

const MODEL: &str = "[model]\nprecision = 'int8'\nprovider = 'openvino'\n";

/// Two gallery pictures and a query of each class, one name of 255 bytes, and one that is no UTF-8.
fn shop() -> Shop {
    let shop = Shop::new();
    for (i, label) in (0..).zip(LABELS) {
        shop.picture(&format!("gallery/{label}/{label} {i}.png"), 3 * i + 1);
        shop.picture(&format!("gallery/{label}/..png"), 3 * i + 2);
        shop.picture(&format!("gallery/{label}/%2e%2e \"'&.png"), 3 * i + 2);
        shop.picture(&format!("queries/{label}/q.png"), 3 * i + 3);
    }
    shop.picture(&format!("gallery/long/{}.png", "n".repeat(251)), 98);
    shop.picture("gallery/long/plain.png", 99);
    let bad = shop.path("gallery/long").join(OsStr::from_bytes(b"bad\xff\x1b.png"));
    std::fs::copy(shop.path("gallery/long/plain.png"), bad).expect("writable");
    shop.pipeline(&format!(
        "name = '<img src=x onerror=alert(1)> \"a\" \\ & @team'\nwork = 'runs/shop'\n\
         [input]\ngallery = 'gallery'\nqueries = 'queries'\nmax_failures = 5\n{MODEL}\
         [gate.cosine]\n'P@1' = 0.0\n'hit@10' = 1.0\n[report]\ntrec = true\nprometheus = 'shop.prom'\n"
    ));
    shop
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// No control character but the ends of lines, and nothing that turns the direction.
#[track_caller]
fn is_calm(text: &str) {
    let acts = |c: &char| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c);
    let found: Vec<char> = text.chars().filter(acts).collect();
    assert!(found.is_empty(), "{found:?} in\n{text:?}");
}

fn sql(shop: &Shop, query: &str, format: &str) -> Said {
    let file = shop.path("shop.toml").display().to_string();
    imagedex(["sql", query, &file, "--format", format]).exits(0)
}

/// What a query answers, as programs read it.
fn rows(shop: &Shop, query: &str) -> Vec<Value> {
    serde_json::from_str(&sql(shop, query, "json").out).expect("JSON")
}

/// All attributes and texts of a well-formed XML file.
fn xml_values(text: &str) -> Vec<String> {
    let (mut reader, mut values) = (quick_xml::Reader::from_str(text), Vec::new());
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Start(tag) | Event::Empty(tag) => {
                for attribute in tag.attributes() {
                    let value = attribute.expect("an attribute").unescape_value().expect("escaped");
                    values.push(value.into_owned());
                }
            }
            Event::Eof => return values,
            _ => {}
        }
    }
}

#[test]
fn names_that_attack_are_text_in_every_output() {
    let shop = shop();
    // No class is found rightly ten times of ten, perhaps: the gate's answer is not what is tested.
    let said = shop.imagedex("run");
    assert!([0, 1].contains(&said.code), "{}", said.err);
    is_calm(&said.out);
    is_calm(&said.err);
    let ids: BTreeSet<String> = rows(&shop, "SELECT id FROM features WHERE split = 'gallery'")
        .iter()
        .map(|row| row["id"].as_str().expect("text").to_owned())
        .collect();
    // `..png` is a hidden file, so two of three.
    assert_eq!(ids.len(), 2 * LABELS.len() + 2, "{ids:?}");
    for (i, label) in LABELS.iter().enumerate() {
        assert!(ids.contains(&format!("{label}/{label} {i}.png")), "{label:?}: every byte as it is");
    }
    let failures = rows(&shop, "SELECT path, kind FROM failures");
    assert_eq!(failures, [json!({ "path": "long/bad\\xff\x1b.png", "kind": "name" })]);

    let report = shop.path("runs/shop/report");
    let html = read(&report.join("report.html"));
    assert!(!html.contains("<img") && !html.contains("\x1b") && !html.contains('\u{202e}'));
    check_in_browser(
        &report.join("report.html"),
        &[
            "<img src=x onerror=alert(1)>",
            "=cmd('calc')!A1",
            "a↵b,c↵\"d\"; {\"index\":{}}",
            "gpj.\u{fffd}live",
        ],
    );
    let markdown = read(&report.join("report.md"));
    is_calm(&markdown);
    assert!(!markdown.contains("<img") && !markdown.contains("@team"), "{markdown}");

    let values = xml_values(&read(&report.join("junit.xml")));
    let name = "imagedex: <img src=x onerror=alert(1)> \"a\" \\ & @team";
    assert!(values.iter().any(|value| value == name), "{values:?}");

    let metrics = read(&shop.path("shop.prom"));
    let pipeline = "{pipeline=\"<img src=x onerror=alert(1)> \\\"a\\\" \\\\ & @team\"";
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    assert!(samples.clone().count() > 10 && samples.clone().all(|line| line.contains(pipeline)), "{metrics}");

    for run in std::fs::read_dir(report.join("trec")).expect("a folder") {
        let path = run.expect("a file").path();
        let columns = if path.extension().is_some_and(|end| end == "run") { 6 } else { 4 };
        let text = read(&path);
        for line in text.lines() {
            let words: Vec<&str> = line.split(char::is_whitespace).collect();
            assert_eq!(words.len(), columns, "{line:?}");
            let id = percent_encoding::percent_decode_str(words[2]).decode_utf8().expect("UTF-8");
            assert!(ids.contains(&*id), "{id:?}");
        }
    }
}

#[test]
fn a_terminal_shows_what_a_name_holds_and_does_not_obey_it() {
    let shop = shop();
    shop.imagedex("extract").exits(0);
    let file = shop.path("shop.toml").display().to_string();
    let query = shop.path("queries").join(LABELS[5]).join("q.png").display().to_string();
    let said = imagedex(["search", &query, "--pipeline", &file, "-k", "99"]).exits(0);
    is_calm(&said.out);
    assert_eq!(said.out.lines().count(), 1 + 2 * LABELS.len() + 2, "a line for each: {}", said.out);
    let said = said.says("\\u{1b}]0;owned\\u{7}").says("gpj.\\u{202e}live").says("a\\nb,c\\r");
    is_calm(&said.err);

    let page = shop.path("found.html");
    imagedex([
        "search".as_ref(),
        query.as_ref(),
        "--pipeline".as_ref(),
        file.as_ref(),
        "-k".as_ref(),
        "99".as_ref(),
        "--html".as_ref(),
        page.as_os_str(),
    ])
    .exits(0);
    let html = read(&page);
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;"), "{html}");
    assert!(!html.contains("<img src=x") && !html.contains('\u{202e}') && !html.contains('\x1b'));
    assert!(html.contains("default-src 'none'"), "and nothing could be loaded or run");

    is_calm(&sql(&shop, "SELECT id, label, [label] AS list FROM features", "table").out);
    is_calm(&sql(&shop, "SELECT path FROM failures", "table").out);
    let said = imagedex(["extract", &file, "--log-format", "json"]).exits(0);
    is_calm(&said.err);
    let lines = said.err.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object each"));
    let messages: Vec<String> = lines.map(|line| line["fields"]["message"].to_string()).collect();
    assert!(messages.iter().any(|message| message.contains("not valid UTF-8")), "{messages:?}");
}

#[test]
fn a_name_forges_no_line_of_a_log() {
    let shop = Shop::new();
    let name = "photos\nERROR all is lost\n\x1b[2J";
    std::fs::create_dir(shop.path(name)).expect("writable");
    let text = format!("[input]\ngallery = {}\n", Value::from(name));
    // JSON's escapes are TOML's here.
    shop.pipeline(&text);
    let said = shop.imagedex("extract").exits(2).complains("holds no pictures");
    is_calm(&said.err);
    let begins = said.err.lines().filter(|line| !line.starts_with("  ")).count();
    assert_eq!(begins, 1, "one message:\n{}", said.err);
}

#[test]
fn a_spreadsheet_gets_no_formula_and_an_export_keeps_every_byte() {
    let shop = shop();
    shop.imagedex("extract").exits(0);
    let exact =
        "SELECT id, label, height, -1.5 AS x, '-7' AS n FROM features WHERE split = 'gallery' ORDER BY id";
    let said = sql(&shop, exact, "csv");
    let mut reader = csv::Reader::from_reader(said.out.as_bytes());
    let cells: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    let expected = rows(&shop, exact);
    assert_eq!(cells.len(), expected.len());
    let mut quoted = 0;
    for (cells, row) in cells.iter().zip(&expected) {
        for (cell, column) in cells.iter().zip(["id", "label"]) {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
            let text = row[column].as_str().expect("text");
            quoted += usize::from(cell != text);
            assert!(cell == text || cell.strip_prefix('\'') == Some(text), "{cell:?} is {text:?}");
        }
        assert_eq!((&cells[3], &cells[4]), ("-1.5", "-7"), "numbers are numbers");
    }
    assert_eq!(quoted, 3 * 4, "ids and labels of three classes");

    let file = shop.path("features.csv");
    let export = [OsStr::new("features"), OsStr::new("export"), file.as_os_str()];
    imagedex(export.into_iter().chain([shop.path("shop.toml").as_os_str()])).exits(0);
    let back = exchange::read(&file).expect("read");
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let store = runtime.block_on(FeatureStore::open(&shop.path("runs/shop/features"))).expect("opened");
    let stored = runtime.block_on(store.expect("a table").read(None)).expect("read");
    let keys = |batch: &imagedex::stages::embed::EmbeddingBatch| {
        let key = |picture: &imagedex::stages::decode::Picture| {
            (picture.split, picture.id.clone(), picture.label.clone())
        };
        batch.pictures.iter().map(key).collect::<BTreeSet<(Split, String, Option<String>)>>()
    };
    assert_eq!(keys(&back), keys(&stored));
}

#[test]
fn a_manifest_names_no_file_outside_of_its_folder_unless_it_may() {
    let shop = Shop::new();
    shop.picture("outside.png", 1);
    for (i, name) in (2..).zip(["in.png", "A.png", "a.png", "..b.png", "a/1.png"]) {
        shop.picture(&format!("lists/{name}"), i);
    }
    std::os::unix::fs::symlink(shop.path("outside.png"), shop.path("lists/link.png")).expect("linked");
    let absolute = shop.path("outside.png").display().to_string();
    let inside = shop.path("lists/in.png").display().to_string();
    let dotted = shop.path("lists/../outside.png").display().to_string();
    let paths = [
        &*inside,
        "A.png",
        "a.png",
        "..b.png",
        "./a//./1.png",
        "link.png",
        "../outside.png",
        "a/../../outside.png",
        "a/../in.png",
        &*absolute,
        &*dotted,
        "in.png\0.png",
        "/dev/zero",
        "/etc/passwd",
    ];
    let lines: String =
        paths.iter().map(|path| format!("{}\n", json!({ "path": path, "label": "l" }))).collect();
    std::fs::write(shop.path("lists/list.jsonl"), lines).expect("writable");
    shop.pipeline(&format!("[input]\ngallery = 'lists/list.jsonl'\nmax_failures = 9\n{MODEL}"));
    shop.imagedex("extract").exits(0).complains("input.outside = true");
    let ids = |shop: &Shop| -> Vec<String> {
        let rows = rows(shop, "SELECT id FROM features ORDER BY id");
        rows.iter().map(|row| row["id"].as_str().expect("text").to_owned()).collect()
    };
    // Names that differ in case alone are two pictures; a link is its target's picture under its own name.
    assert_eq!(ids(&shop), ["..b.png", "A.png", "a.png", "a/1.png", "in.png", "link.png"]);
    let kinds = rows(&shop, "SELECT kind, count(*) AS n FROM failures GROUP BY kind ORDER BY kind");
    assert_eq!(kinds, [json!({ "kind": "name", "n": 1 }), json!({ "kind": "outside", "n": 7 })]);

    shop.pipeline(&format!(
        "[input]\ngallery = 'lists/list.jsonl'\noutside = true\nmax_failures = 9\n{MODEL}"
    ));
    shop.imagedex("extract").exits(0);
    let ids = ids(&shop);
    assert!(ids.contains(&"../outside.png".to_owned()) && ids.contains(&absolute), "{ids:?}");
    let kinds = rows(&shop, "SELECT path, kind FROM failures ORDER BY path");
    assert_eq!(
        kinds,
        [
            // The same file by its whole path, and by two ways out of the folder.
            json!({ "path": "../outside.png", "kind": "duplicate" }),
            json!({ "path": "/dev/zero", "kind": "not_a_file" }),
            json!({ "path": "/etc/passwd", "kind": "not_a_picture" }),
            json!({ "path": "in.png\0.png", "kind": "name" }),
        ],
        "a device is not read, and what is no picture leaves nothing but its name"
    );
}

#[test]
fn elasticsearch_takes_any_id_as_one_document() {
    let node = Node::shared();
    let alias = elastic::alias();
    let mut batch = elastic::pictures(0..LABELS.len() + 3, 16, 5);
    let long = format!("{}.png", "ü/".repeat(2000));
    let ids = LABELS.iter().copied().chain([
        &*long,
        "\"}}\n{\"delete\":{\"_id\":\"x\"}}\n",
        "../../etc/\u{2028}\0",
    ]);
    for (picture, id) in batch.pictures.iter_mut().zip(ids) {
        picture.id = id.to_owned();
        picture.label = Some(id.chars().take(40).collect());
    }
    let table = Table::of(&batch);
    let (books, name) = elastic::publish(&table, &elastic::config_of(node, &alias));
    assert_eq!((books.searchable, books.rejected), (batch.len() as u64, 0));
    let rows = table.rows();
    let mut loaded = elastic::load(&table, &elastic::config_of(node, &alias)).expect("loaded");
    elastic::holds_all(loaded.index.as_mut(), &rows, node, &name);
    let query = imagedex::engines::Query { vector: rows.vector(0), k: rows.len(), metric: Metric::Cosine };
    let found: BTreeSet<String> =
        loaded.index.search(&query).expect("found").into_iter().map(|hit| hit.id).collect();
    assert_eq!(found, rows.pictures.iter().map(|picture| picture.id.clone()).collect());
}
