//! Inputs as other tools keep them: tar files of WebDataset, annotations of COCO, folders with metadata for Hugging Face.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use flate2::Compression;
use flate2::write::GzEncoder;
use imagedex::stages::scan::{self, LabelRule, Places, Scan, ScanError, ScanOptions, Source, Split};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::support::{Shop, imagedex};

const MODEL: &str = "[model]\nprecision = 'int8'\nprovider = 'openvino'\n";

/// Writes a tar file of these members, in this order.
fn write_tar(path: &Path, members: &[(&str, &[u8])]) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
    let mut builder = Builder::new(std::fs::File::create(path).expect("writable"));
    for (name, content) in members {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).expect("written");
    }
    builder.into_inner().expect("written").flush().expect("written");
}

/// A header that says what it is told, with any name, and then `content` as it is.
fn raw_member(kind: EntryType, name: &[u8], size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bytes = [header.as_bytes().as_slice(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Members, and the end mark.
fn raw_tar(path: &Path, members: &[Vec<u8>]) {
    let bytes = [members.concat(), vec![0; 1024]].concat();
    std::fs::write(path, bytes).expect("writable");
}

/// What begins as a PNG does, and differs by `seed`.
fn png(seed: u8) -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n".as_slice(), &[seed; 40]].concat()
}

fn options(gallery: &Path, label: LabelRule) -> ScanOptions {
    ScanOptions { gallery: gallery.to_owned(), queries: None, images: None, label, outside: false }
}

fn scan_with(options: &ScanOptions) -> Result<Scan, ScanError> {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(scan::scan(options))
}

fn scan(gallery: &Path) -> Result<Scan, ScanError> {
    scan_with(&options(gallery, LabelRule::Folder))
}

/// `id label`, of each picture.
fn found(scan: &Scan) -> Vec<String> {
    let label = |label: &Option<String>| label.clone().unwrap_or_else(|| "-".to_owned());
    scan.images.iter().map(|image| format!("{} {}", image.id, label(&image.label))).collect()
}

/// `path kind`, of each failure.
fn failed(scan: &Scan) -> Vec<String> {
    scan.failures.iter().map(|failure| format!("{} {}", failure.path, failure.kind)).collect()
}

fn rows(shop: &Shop, query: &str) -> Vec<Value> {
    let file = shop.path("shop.toml").display().to_string();
    let said = imagedex(["sql", query, &file, "--format", "json"]).exits(0);
    serde_json::from_str(&said.out).expect("JSON")
}

/// Class and vector of each stored picture, by the hash of its bytes.
fn stored(shop: &Shop) -> BTreeMap<String, (Value, Value)> {
    let rows = rows(shop, "SELECT sha256, label, embedding FROM features");
    let row = |row: Value| (row["sha256"].to_string(), (row["label"].clone(), row["embedding"].clone()));
    rows.into_iter().map(row).collect()
}

fn books(shop: &Shop) -> (Value, Value) {
    let run = shop.run_json();
    (run["books"]["embedded"].clone(), run["books"]["stored"].clone())
}

/// Ten pictures of two classes, in a folder, and as two shards.
fn shop_of_shards() -> (Shop, Shop) {
    let (folder, shards) = (Shop::new(), Shop::new());
    for seed in 0..10 {
        let class = if seed < 5 { "stripes" } else { "waves" };
        folder.picture(&format!("gallery/{class}/{seed}.png"), seed * 7 + 1);
    }
    folder.pipeline(&format!("[input]\ngallery = 'gallery'\n{MODEL}"));
    shards.pipeline(&format!("[input]\ngallery = 'shards/shop-{{00..01}}.tar'\n{MODEL}"));
    for shard in 0..2 {
        write_shard(&folder, &shards, shard);
    }
    (folder, shards)
}

fn write_shard(folder: &Shop, shards: &Shop, shard: u32) {
    let mut members = Vec::new();
    for seed in shard * 5..shard * 5 + 5 {
        let class = if seed < 5 { "stripes" } else { "waves" };
        let picture = std::fs::read(folder.path(&format!("gallery/{class}/{seed}.png"))).expect("a picture");
        members.push((format!("{seed:03}.png"), picture));
        // Half of them as text, half as JSON.
        members.push(match shard {
            0 => (format!("{seed:03}.cls"), format!("{class}\n").into_bytes()),
            _ => (format!("{seed:03}.json"), json!({ "label": class, "width": 64 }).to_string().into_bytes()),
        });
    }
    let members: Vec<(&str, &[u8])> =
        members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    write_tar(&shards.path(&format!("shards/shop-{shard:02}.tar")), &members);
}

#[test]
fn pictures_in_a_tar_give_the_vectors_that_they_give_in_a_folder() {
    let (folder, shards) = shop_of_shards();
    folder.imagedex("extract").exits(0);
    shards.imagedex("run").exits(0);
    let (in_folder, in_shards) = (stored(&folder), stored(&shards));
    assert_eq!(in_folder.len(), 10);
    assert_eq!(in_folder, in_shards, "bytes, classes and vectors");
    let ids = rows(&shards, "SELECT id FROM features ORDER BY id");
    assert_eq!(ids[0]["id"], "shop-00.tar/000.png");
    assert_eq!(ids[9]["id"], "shop-01.tar/009.png");

    // A report and a search show pictures that they have only ids of.
    let page = std::fs::read_to_string(shards.path("runs/shop/report/report.html")).expect("a report");
    assert!(page.contains("class=\"t s0 x0 y0\""), "there are thumbnails");
    assert!(!page.contains("class=\"t gone\""), "and none is missing");
    let query = folder.path("gallery/waves/7.png").display().to_string();
    let (file, html) = (shards.path("shop.toml"), shards.path("found.html"));
    let (file, html) = (file.display().to_string(), html.display().to_string());
    imagedex(["search", &query, "--pipeline", &file, "-k", "3", "--html", &html]).exits(0);
    let page = std::fs::read_to_string(&html).expect("a page");
    assert_eq!(page.matches("data:image/").count(), 4, "the query and three hits");
    assert!(page.contains("shop-01.tar/007.png"));

    // Nothing is done twice.
    let version = || shards.run_json()["features"].clone();
    let before = version();
    shards.imagedex("run").exits(0);
    assert_eq!(books(&shards), (json!(0), json!(10)));
    assert_eq!(version(), before);
    // The same pictures elsewhere in the file, with longer names before them.
    let shard = shards.path("shards/shop-00.tar");
    let whole = std::fs::read(&shard).expect("a shard");
    let moved = [raw_member(EntryType::Regular, b"README", 700, &[b'x'; 700]), whole.clone()].concat();
    std::fs::write(&shard, moved).expect("writable");
    shards.imagedex("run").exits(0);
    assert_eq!(books(&shards), (json!(0), json!(10)));
    // One other picture in a shard.
    folder.picture("gallery/stripes/3.png", 1000);
    write_shard(&folder, &shards, 0);
    shards.imagedex("run").exits(0);
    assert_eq!(books(&shards), (json!(1), json!(10)));
    folder.imagedex("extract").exits(0);
    assert_eq!(stored(&folder), stored(&shards));
}

#[test]
fn of_a_torn_shard_nothing_stored_is_lost() {
    let (folder, shards) = shop_of_shards();
    shards.imagedex("extract").exits(0);
    let all = stored(&shards);
    let shard = shards.path("shards/shop-01.tar");
    let whole = std::fs::read(&shard).expect("a shard");
    // In a picture, and where a header would begin: a copy that is under way.
    for length in [whole.len() / 2, whole.len() - 1024] {
        std::fs::write(&shard, &whole[..length]).expect("writable");
        shards.imagedex("extract").exits(4).complains("shop-01.tar").complains("nothing was changed");
        assert_eq!(stored(&shards), all);
    }
    // A missing one is an error, not a smaller input.
    std::fs::remove_file(&shard).expect("removed");
    shards.imagedex("extract").exits(2).complains("shop-01.tar is not there");
    assert_eq!(stored(&shards), all);
    std::fs::write(&shard, &whole).expect("writable");
    shards.imagedex("extract").exits(0);
    assert_eq!(books(&shards), (json!(0), json!(10)));

    // From the beginning: what is whole is used, and the rest is told.
    std::fs::write(&shard, &whole[..whole.len() / 2]).expect("writable");
    let file = shards.path("shop.toml").display().to_string();
    let others = format!("features.table={}", shards.path("others").display());
    imagedex(["extract", &file, "--set", &others, "--set", "input.max_failures=9"])
        .exits(0)
        .complains("cut short");
    write_shard(&folder, &shards, 1);
}

#[test]
fn however_a_tar_is_cut_nothing_is_lost_in_silence() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let pictures: Vec<Vec<u8>> = (1..5).map(png).collect();
    let long = format!("{}/4.png", "n".repeat(150));
    let members: [(&str, &[u8]); 8] = [
        ("1.png", &pictures[0]),
        ("1.cls", b"one"),
        ("2.png", &pictures[1]),
        ("2.json", b"{\"label\": \"two\"}"),
        ("3.cls", b"three"),
        ("3.png", &pictures[2]),
        (&long, &pictures[3]),
        (&long.replace(".png", ".cls"), b"four"),
    ];
    write_tar(&path, &members);
    let whole = std::fs::read(&path).expect("a tar");
    let all = found(&scan(&path).expect("whole"));
    assert_eq!(all.len(), 4);
    let end = whole.len() - 1024;
    for length in 0..whole.len() {
        // Each byte near a border, and one in a while elsewhere.
        if !(length % 512 < 2 || length % 512 == 511 || length % 97 == 0) {
            continue;
        }
        std::fs::write(&path, &whole[..length]).expect("writable");
        match scan(&path) {
            Ok(scan) if length < end + 512 => {
                let found = found(&scan);
                assert!(found.iter().all(|picture| all.contains(picture)), "{length}: {found:?}");
                let told = |failure: &scan::Scan| failed(failure).contains(&"a.tar truncated".to_owned());
                assert!(told(&scan), "{length}: {:?}", failed(&scan));
            }
            Ok(scan) => assert_eq!(found(&scan), all, "half of the end mark is one"),
            Err(error) => assert!(error.to_string().contains("a.tar"), "{length}: {error}"),
        }
    }
}

#[test]
fn classes_come_from_the_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let one = png(1);
    write_tar(
        &path,
        &[
            ("x/01.jpg", &one),
            ("x/01.cls", b" cat\n"),
            ("x/01.json", b"{\"label\": \"dog\"}"),
            ("x/02.json", b"{\"id\": 5, \"cls\": 7, \"species\": \"lynx\"}"),
            ("x/02.JPG", &one),
            ("x/02.left.png", &one),
            ("x/03.jpg", &one),
            ("x/03.json", b"{\"label\": null}"),
            ("x/04.jpg", &one),
            ("x/04.json", b"{\"label\": [1]}"),
            ("x/05.jpg", &one),
            ("x/05.json", b"{\"label\""),
            ("x/06.jpg", &one),
            ("x/06.cls", b"\xff\xfe"),
            ("x/07.cls", b"alone"),
            ("x/08.jpg", &one),
            ("x/08.txt", b"a caption"),
            ("x/08.species", b"wolf"),
            ("__info__", b"kept by WebDataset"),
            ("__meta__/1.png", &one),
            ("x/._08.jpg", b"a Mac's"),
            ("x/09", &one),
            ("x/README", b"text"),
        ],
    );
    let scanned = scan(&path).expect("pictures");
    assert_eq!(
        found(&scanned),
        [
            "a.tar/x/01.jpg cat",
            "a.tar/x/02.JPG 7",
            "a.tar/x/02.left.png 7",
            "a.tar/x/03.jpg -",
            "a.tar/x/08.jpg -",
            "a.tar/x/09 -"
        ]
    );
    assert_eq!(failed(&scanned), ["a.tar/x/04.jpg label", "a.tar/x/05.jpg label", "a.tar/x/06.jpg label"]);
    assert!(
        scanned.failures[0].reason.contains("x/04.json: `label` is neither"),
        "{:?}",
        scanned.failures[0]
    );
    let skipped: Vec<(&str, usize)> = scanned.skipped.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    let expected =
        [("hidden", 3), ("no ending", 1), ("samples without a picture", 1), ("species", 1), ("txt", 1)];
    assert_eq!(skipped, expected);

    let with = |rule| found(&scan_with(&options(&path, rule)).expect("pictures"));
    assert_eq!(
        with(LabelRule::Column("species".to_owned())),
        [
            "a.tar/x/01.jpg -",
            "a.tar/x/02.JPG lynx",
            "a.tar/x/02.left.png lynx",
            "a.tar/x/03.jpg -",
            "a.tar/x/04.jpg -",
            "a.tar/x/06.jpg -",
            "a.tar/x/08.jpg wolf",
            "a.tar/x/09 -"
        ]
    );
    assert!(with(LabelRule::TopFolder).iter().all(|picture| picture.ends_with(" x")));
    assert!(with(LabelRule::None).iter().all(|picture| picture.ends_with(" -")));
    assert_eq!(with(LabelRule::regex("/0([0-9])").expect("valid"))[0], "a.tar/x/01.jpg 1");
    let error = scan_with(&options(&path, LabelRule::Column("nothing".to_owned()))).expect_err("no such");
    assert!(error.to_string().contains("no column `nothing`"), "{error}");
    // Where no JSON can be read, that is what is wrong.
    write_tar(&path, &[("1.jpg", &one), ("1.json", b"{")]);
    let error = scan_with(&options(&path, LabelRule::Column("nothing".to_owned()))).expect_err("damaged");
    assert!(error.to_string().contains("1.json: EOF"), "{error}");
}

#[test]
fn a_tar_of_class_folders_means_what_the_folders_mean() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("photos.tar"), folder.path().join("more.tar"));
    write_tar(
        &one,
        &[("./animals/cat/1.png", &png(1)), ("./animals/dog/2.png", &png(2)), ("3.png", &png(3))],
    );
    let expected =
        ["photos.tar/3.png -", "photos.tar/animals/cat/1.png cat", "photos.tar/animals/dog/2.png dog"];
    assert_eq!(found(&scan(&one).expect("pictures")), expected);
    let top = scan_with(&options(&one, LabelRule::TopFolder)).expect("pictures");
    assert_eq!(found(&top)[1], "photos.tar/animals/cat/1.png animals");
    // One class of a sample's own, in any of the archives, and folders are no classes any more.
    write_tar(&two, &[("train/1.png", &png(4)), ("train/1.cls", b"fox")]);
    assert_eq!(
        found(&scan(folder.path()).expect("pictures")),
        [
            "more.tar/train/1.png fox",
            "photos.tar/3.png -",
            "photos.tar/animals/cat/1.png -",
            "photos.tar/animals/dog/2.png -"
        ]
    );
}

#[test]
fn several_tars_are_named_by_braces_by_patterns_and_by_their_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for shard in 0..3u8 {
        write_tar(&at(&format!("shards/shop-{shard:06}.tar")), &[("1.png", &png(shard)), ("1.cls", b"a")]);
    }
    write_tar(&at("shards/more/x.tar"), &[("1.png", &png(9)), ("1.cls", b"b")]);
    std::fs::write(at("shards/info.json"), "{}").expect("writable");
    let ids = |name: &str| {
        let found = scan(&at(name)).map_err(|error| error.to_string())?;
        assert!(found.failures.is_empty(), "{:?}", found.failures);
        Ok::<Vec<String>, String>(found.images.into_iter().map(|image| image.id).collect())
    };
    let two = ["shop-000000.tar/1.png", "shop-000001.tar/1.png"];
    assert_eq!(ids("shards/shop-{000000..000001}.tar").expect("two"), two);
    assert_eq!(ids("shards/shop-00000[01].tar").expect("two"), two);
    assert_eq!(ids("shards/shop-000001.tar").expect("one"), ["shop-000001.tar/1.png"]);
    assert_eq!(ids("{shards,shards/more}/*{1,x}.tar").expect_err("each must be there"), {
        let path = at("{shards,shards/more}/*{1,x}.tar");
        format!("gallery {} cannot be read: no file is called shards/*x.tar", path.display())
    });
    let four =
        ["more/x.tar/1.png", "shop-000000.tar/1.png", "shop-000001.tar/1.png", "shop-000002.tar/1.png"];
    assert_eq!(ids("shards").expect("four"), four);
    let missing = ids("shards/shop-{000000..000003}.tar").expect_err("one is missing");
    assert!(missing.contains("shop-000003.tar is not there"), "{missing}");
    let other = ids("shards/*.json").expect_err("no tar");
    assert!(other.contains("info.json is not a folder, nor"), "{other}");

    // Found again, wherever they are; an id that names nothing finds nothing.
    for root in ["shards", "shards/shop-{000000..000002}.tar", "shards/*.tar"] {
        let root = at(root);
        let found = scan(&root).expect("pictures");
        let mut ids: Vec<&str> = found.images.iter().map(|image| image.id.as_str()).collect();
        ids.extend(["shop-000000.tar/2.png", "shop-000009.tar/1.png", "../shards/shop-000000.tar/1.png"]);
        let again = Places { root: &root, images: None }.sources(&ids);
        for (image, source) in found.images.iter().zip(&again) {
            assert_eq!(source.as_ref(), Some(&image.source));
        }
        let rest = &again[found.images.len()..];
        assert!(rest.iter().all(|source| !matches!(source, Some(Source::Member { .. }))), "{rest:?}");
    }

    // Beside pictures an archive is no input: it was passed over before there were any.
    std::fs::write(at("shards/1.png"), png(1)).expect("writable");
    let mixed = scan(&at("shards")).expect("a picture");
    assert_eq!((found(&mixed), mixed.skipped["tar"]), (vec!["1.png -".to_owned()], 4));
}

#[test]
fn an_archive_that_cannot_be_read_in_place_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write_tar(&at("a.tar"), &[("1.png", &png(1))]);
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&std::fs::read(at("a.tar")).expect("a tar")).expect("written");
    let gz = gz.finish().expect("written");
    // By whatever name.
    for name in ["b.tar.gz", "c.tgz", "d.tar"] {
        std::fs::write(at(name), &gz).expect("writable");
        let error = scan(&at(name)).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains("gzip") && error.contains("unpack it"), "{error}");
    }
    std::fs::write(at("e.tar.zst"), b"\x28\xb5\x2f\xfd").expect("writable");
    assert!(scan(&at("e.tar.zst")).is_err_and(|error| error.to_string().contains("zstd")));
    // Not left out of a folder in silence, either.
    assert!(scan(folder.path()).is_err_and(|error| error.to_string().contains("unpack it")));

    let sparse = raw_member(EntryType::GNUSparse, b"1.png", 0, b"");
    let records = b"22 GNU.sparse.major=1\n";
    let pax = raw_member(EntryType::XHeader, b"x", records.len() as u64, records);
    let plain = || raw_member(EntryType::Regular, b"2.png", 48, &png(2));
    for members in [vec![plain(), sparse], vec![pax, plain()]] {
        raw_tar(&at("s.tar"), &members);
        let error = scan(&at("s.tar")).expect_err("sparse").to_string();
        assert!(error.contains(".png is stored sparse; unpack it"), "{error}");
    }
    std::fs::write(at("t.tar"), "no tar at all, but longer than a header".repeat(20)).expect("writable");
    let error = scan(&at("t.tar")).expect_err("no tar").to_string();
    assert!(
        error.contains("holds no pictures") && error.contains("no header of a tar file at byte 0"),
        "{error}"
    );
    std::fs::write(at("u.tar"), "").expect("writable");
    assert!(scan(&at("u.tar")).is_err_and(|error| error.to_string().contains("the file is empty")));
    raw_tar(&at("v.tar"), &[]);
    assert!(scan(&at("v.tar")).is_err_and(|error| error.to_string().contains("holds no pictures")));
}

#[test]
fn members_that_attack_are_failures() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let file = |name: &[u8], seed| raw_member(EntryType::Regular, name, 48, &png(seed));
    let link = |kind, name: &[u8]| {
        let mut bytes = raw_member(kind, name, 0, b"");
        // Its target: the name that a link has.
        bytes[157..168].copy_from_slice(b"/etc/passwd");
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 256).as_bytes());
        bytes
    };
    let records = b"16 path=b\n5.png\n".to_vec();
    let members = vec![
        file(b"../1.png", 1),
        file(b"/etc/2.png", 2),
        file(b"a/../../3.png", 3),
        file(b"a\xff.png", 4),
        file(b"4.png", 4),
        file(b"4.png", 5),
        link(EntryType::Symlink, b"5.png"),
        link(EntryType::Link, b"6.png"),
        raw_member(EntryType::Char, b"7.png", 0, b""),
        raw_member(EntryType::Fifo, b"8.png", 0, b""),
        raw_member(EntryType::Directory, b"9.png", 0, b""),
        raw_member(EntryType::Symlink, b"a.txt", 0, b""),
        file(b"\x1b[2J.png", 6),
        file(b"10.nef", 7),
        raw_member(EntryType::Regular, b"11.png", 0, b""),
        raw_member(EntryType::XHeader, b"x", records.len() as u64, &records),
        file(b"12.png", 8),
    ];
    raw_tar(&path, &members);
    let scanned = scan(&path).expect("pictures");
    assert_eq!(
        found(&scanned),
        ["a.tar/\x1b[2J.png -", "a.tar/11.png -", "a.tar/4.png -", "a.tar/b\n5.png -"],
    );
    assert_eq!(
        failed(&scanned),
        [
            "a.tar/../1.png outside",
            "a.tar//etc/2.png outside",
            "a.tar/10.nef unsupported",
            "a.tar/4.png duplicate",
            "a.tar/5.png link",
            "a.tar/6.png link",
            "a.tar/7.png not_a_file",
            "a.tar/8.png not_a_file",
            "a.tar/a/../../3.png outside",
            "a.tar/a\\xff.png name",
        ]
    );
    let four = scanned.images.iter().find(|image| image.id == "a.tar/4.png").expect("the first");
    assert_eq!(four.source.read().expect("bytes"), png(4));
    let (_, unreadable) = scan::hash(scanned.images, &AtomicBool::new(false));
    assert_eq!(unreadable.iter().map(|failure| failure.kind.as_str()).collect::<Vec<_>>(), ["empty"]);

    // What claims to be longer than the file, up to 8 EiB and beyond what 64 bits hold.
    let good = || file(b"1.png", 1);
    let claims = [
        raw_member(EntryType::Regular, b"2.png", 1 << 63, b""),
        raw_member(EntryType::Regular, b"2.png", u64::MAX, b""),
        raw_member(EntryType::Regular, b"2.png", 1 << 20, b""),
        raw_member(EntryType::GNULongName, b"x", u64::MAX - 511, b""),
        raw_member(EntryType::XHeader, b"x", 1 << 40, b""),
        raw_member(EntryType::XHeader, b"x", 28, b"28 size=9223372036854775808\n"),
        raw_member(EntryType::XHeader, b"x", 10, b"5 a=b\n5 a="),
        raw_member(EntryType::XGlobalHeader, b"x", 16, b"16 path=b/5.png\n"),
        raw_member(EntryType::GNULongName, b"x", 5, b"a/b/c"),
    ];
    for (i, claim) in claims.into_iter().enumerate() {
        // Another sample between them, so that the first is complete.
        let members = vec![good(), file(b"note.txt", 0), claim];
        let members = if i == 5 { [members, vec![file(b"3.png", 3)]].concat() } else { members };
        raw_tar(&path, &members);
        let scanned = scan(&path).expect("a picture");
        assert_eq!(
            (found(&scanned), failed(&scanned)),
            (vec!["a.tar/1.png -".into()], vec!["a.tar truncated".into()]),
            "{i}"
        );
    }
    // A long name that is too long.
    let name = vec![b'n'; 2 << 20];
    let long = raw_member(EntryType::GNULongName, b"x", name.len() as u64, &name);
    raw_tar(&path, &[good(), file(b"note.txt", 0), long, file(b"2.png", 2)]);
    assert_eq!(failed(&scan(&path).expect("a picture")), ["a.tar truncated"]);
    // Joined by `cat`.
    raw_tar(&path, &[good()]);
    let one = std::fs::read(&path).expect("a tar");
    std::fs::write(&path, [one.clone(), one].concat()).expect("writable");
    let joined = scan(&path).expect("a picture");
    assert_eq!(
        (found(&joined), failed(&joined)),
        (vec!["a.tar/1.png -".into()], vec!["a.tar followed".into()])
    );
}

#[test]
fn many_tiny_members_and_one_of_gigabytes_are_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let mut file = std::fs::File::create(&path).expect("writable");
    for i in 0..20_000u32 {
        let name = format!("{i:05}.png");
        file.write_all(&raw_member(EntryType::Regular, name.as_bytes(), 48, &png(i as u8))).expect("written");
        file.write_all(&raw_member(EntryType::Regular, format!("{i:05}.cls").as_bytes(), 1, b"7"))
            .expect("written");
    }
    // A hole in the file on disk: what is in it is not read, or this would take minutes and gigabytes.
    let large = 40u64 << 30;
    let header = raw_member(EntryType::Regular, b"large.npy", large, b"");
    file.write_all(&header).expect("written");
    let end = file.metadata().expect("a file").len() + large;
    file.set_len(end).expect("a hole");
    use std::os::unix::fs::FileExt;
    let last = raw_member(EntryType::Regular, b"last.png", 48, &png(1));
    file.write_all_at(&last, end).expect("written");
    file.set_len(end + last.len() as u64 + 1024).expect("an end mark");
    drop(file);
    let scanned = scan(&path).expect("pictures");
    assert_eq!((scanned.images.len(), scanned.failures.len()), (20_001, 0));
    assert_eq!(scanned.images[20_000].id, "a.tar/last.png");
    let (seen, unreadable) = scan::hash(scanned.images, &AtomicBool::new(false));
    assert!(unreadable.is_empty());
    assert_eq!(seen[0].sha256, scan::sha256_hex(&png(0)));
    assert_eq!(seen[0].image.label.as_deref(), Some("7"));
}

/// What is read after somebody wrote the file anew would be other bytes.
#[test]
fn an_archive_that_changes_while_it_is_read_stops_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    write_tar(&path, &[("1.png", &png(1)), ("2.png", &png(2))]);
    let scanned = scan(&path).expect("pictures");
    scanned.folders.check().expect("unchanged");
    write_tar(&path, &[("0.png", &png(0)), ("1.png", &png(1)), ("2.png", &png(2))]);
    let (seen, unreadable) = scan::hash(scanned.images, &AtomicBool::new(false));
    assert!(seen.is_empty());
    assert!(unreadable[0].reason.contains("changed"), "{:?}", unreadable[0]);
    assert!(matches!(scanned.folders.check(), Err(ScanError::Changed { .. })));
    std::fs::remove_file(&path).expect("removed");
    assert!(matches!(scanned.folders.check(), Err(ScanError::Changed { .. })));
}

/// In each format that Python writes, with names that no header has room for.
#[test]
fn what_pythons_tarfile_writes_is_read() {
    const SCRIPT: &str = r#"
import io, sys, tarfile
formats = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}
for name, format in formats.items():
    with tarfile.open(f"{sys.argv[1]}/{name}.tar", "w", format=format) as archive:
        def add(path, content, **more):
            info = tarfile.TarInfo(path)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
        add("a", b"", type=tarfile.DIRTYPE)
        add("a/1.png", b"\x89PNG\r\n\x1a\n one", mtime=1234567890.5)
        add("a/1.cls", b"7")
        add("d" * 100 + "/" + "f" * 90 + ".png", b"\x89PNG\r\n\x1a\n two")
        if name != "ustar":
            add("e" * 200 + "/größe.png", b"\x89PNG\r\n\x1a\n three")
            add("e" * 200 + "/größe.json", b'{"label": "gr\xc3\xb6\xc3\x9fe"}')
            add("l.txt", b"", type=tarfile.SYMTYPE, linkname="t" * 150)
"#;
    let folder = tempfile::tempdir().expect("a folder");
    let python =
        Command::new("python3").args(["-c", SCRIPT]).arg(folder.path()).output().expect("python3 starts");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    for format in ["gnu", "pax", "ustar"] {
        let scanned = scan(&folder.path().join(format!("{format}.tar"))).expect("pictures");
        let mut expected = vec![
            format!("{format}.tar/a/1.png 7"),
            format!("{format}.tar/{}/{}.png -", "d".repeat(100), "f".repeat(90)),
        ];
        if format != "ustar" {
            expected.push(format!("{format}.tar/{}/größe.png größe", "e".repeat(200)));
        }
        assert_eq!(found(&scanned), expected);
        assert!(scanned.failures.is_empty(), "{:?}", scanned.failures);
        assert_eq!(scanned.images[0].source.read().expect("bytes"), b"\x89PNG\r\n\x1a\n one");
    }
}

/// Two pictures, three categories, as COCO lays them out.
fn coco(root: &Path) -> PathBuf {
    for name in ["val2017/1.png", "val2017/2.png", "val2017/3.png"] {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(path, png(name.as_bytes()[8])).expect("writable");
    }
    let file = root.join("annotations/instances_val2017.json");
    std::fs::create_dir_all(root.join("annotations")).expect("writable");
    let categories = json!([
        { "id": 1, "name": "person", "supercategory": "human" },
        { "id": 18, "name": "dog", "supercategory": "animal" },
    ]);
    let annotations = json!([
        { "id": 1, "image_id": 139, "category_id": 1, "area": 100.0, "bbox": [0, 0, 10, 10], "segmentation": [[1.5, 2, 3, 4]], "iscrowd": 0 },
        { "id": 2, "image_id": 139, "category_id": 18, "area": 500.0, "bbox": [0, 0, 50, 10],
          "segmentation": { "counts": [1, 2], "size": [3, 4] }, "iscrowd": 1 },
        { "id": 3, "image_id": 285, "category_id": 1, "bbox": [0, 0, 5, 5] },
    ]);
    let images = json!([
        { "id": 139, "file_name": "1.png", "width": 64, "height": 48, "coco_url": "…" },
        { "id": 285, "file_name": "2.png" },
        { "id": 632, "file_name": "3.png" },
        { "id": 724, "file_name": "4.png" },
        { "id": 776, "file_name": "../annotations/instances_val2017.json" },
        { "id": 785 },
    ]);
    let coco = json!({ "info": {}, "images": images, "annotations": annotations, "categories": categories });
    std::fs::write(&file, coco.to_string()).expect("writable");
    file
}

#[test]
fn a_coco_file_names_pictures_and_their_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = coco(folder.path());
    let scanned = scan(&file).expect("pictures");
    assert_eq!(found(&scanned), ["1.png dog", "2.png person", "3.png -"]);
    assert_eq!(
        failed(&scanned),
        ["../annotations/instances_val2017.json outside", "4.png missing", "picture 6 name"]
    );
    let with = |rule| found(&scan_with(&options(&file, rule)).expect("pictures"));
    assert_eq!(with(LabelRule::Column("supercategory".to_owned()))[..2], ["1.png animal", "2.png human"]);
    assert_eq!(with(LabelRule::None)[0], "1.png -");
    assert_eq!(with(LabelRule::regex("^(.)").expect("valid"))[0], "1.png 1");
    let error = scan_with(&options(&file, LabelRule::Column("colour".to_owned()))).expect_err("no such");
    assert!(error.to_string().contains("found: name, supercategory"), "{error}");

    // Elsewhere, by a setting.
    let elsewhere = folder.path().join("elsewhere");
    std::fs::rename(folder.path().join("val2017"), &elsewhere).expect("moved");
    assert!(matches!(scan(&file), Err(ScanError::Empty { .. })), "not beside it");
    let moved = ScanOptions { images: Some(elsewhere.clone()), ..options(&file, LabelRule::Folder) };
    assert_eq!(found(&scan_with(&moved).expect("pictures")).len(), 3);
    let places = Places { root: &file, images: Some(&elsewhere) };
    assert_eq!(places.sources(&["1.png"]), [Some(Source::File(elsewhere.join("1.png")))]);

    for (text, said) in [
        ("[]", "a COCO file is an object"),
        ("{\"images\": []}", "lacks one of them"),
        ("{\"images\": [{\"id\": 1.5}]}", "expected an id"),
        ("{\"images\"", "EOF"),
        ("", "EOF"),
    ] {
        std::fs::write(&file, text).expect("writable");
        let error = scan(&file).expect_err(text).to_string();
        assert!(error.contains("instances_val2017.json") && error.contains(said), "{text}: {error}");
    }
}

#[test]
fn a_run_takes_a_coco_file() {
    let shop = Shop::new();
    let mut images = Vec::new();
    let mut annotations = Vec::new();
    for seed in 0..6 {
        shop.picture(&format!("images/{seed}.png"), seed * 7 + 1);
        images.push(json!({ "id": seed, "file_name": format!("{seed}.png") }));
        annotations.push(json!({ "image_id": seed, "category_id": seed / 3, "area": 5 }));
        annotations.push(json!({ "image_id": seed, "category_id": 2, "area": 1 }));
    }
    let names = ["stripes", "waves", "dust"];
    let categories: Vec<Value> =
        names.iter().enumerate().map(|(id, name)| json!({ "id": id, "name": name })).collect();
    let coco = json!({ "images": images, "annotations": annotations, "categories": categories });
    std::fs::create_dir(shop.path("annotations")).expect("writable");
    std::fs::write(shop.path("annotations/instances.json"), coco.to_string()).expect("writable");
    shop.pipeline(&format!("[input]\ngallery = 'annotations/instances.json'\n{MODEL}"));
    shop.imagedex("run").exits(0).complains("6 pictures have regions of several categories");
    let labels = rows(&shop, "SELECT label, count(*) AS n FROM features GROUP BY label ORDER BY label");
    assert_eq!(labels, [json!({ "label": "stripes", "n": 3 }), json!({ "label": "waves", "n": 3 })]);
    let page = std::fs::read_to_string(shop.path("runs/shop/report/report.html")).expect("a report");
    assert!(page.contains("class=\"t s0 x0 y0\"") && !page.contains("class=\"t gone\""));
    shop.imagedex("run").exits(0);
    assert_eq!(books(&shop), (json!(0), json!(6)));
}

#[test]
fn a_folder_with_metadata_is_what_its_metadata_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str, content: &[u8]| {
        std::fs::create_dir_all(at(name).parent().expect("a folder")).expect("writable");
        std::fs::write(at(name), content).expect("writable");
    };
    for name in ["cat/1.png", "cat/2.png", "dog/3.png", "4.png"] {
        write(name, &png(1));
    }
    let all = ["4.png -", "cat/1.png cat", "cat/2.png cat", "dog/3.png dog"];
    assert_eq!(found(&scan(folder.path()).expect("pictures")), all);
    // A table of that name that is about something else.
    write("metadata.csv", b"camera,year\nbox,1999\n");
    assert_eq!(found(&scan(folder.path()).expect("pictures")), all);
    // Without a class: captions, and the folders are classes as before.
    write("metadata.csv", b"file_name,text\ncat/1.png,a cat\n4.png,nothing\n");
    let scanned = scan(folder.path()).expect("pictures");
    assert_eq!(found(&scanned), ["4.png -", "cat/1.png cat"]);
    assert_eq!(scanned.skipped["pictures that metadata does not list"], 2);
    // With one.
    let rows =
        "file_name,path,label,species\ncat/1.png,x,7,lynx\ndog/3.png,y,,wolf\n5.png,z,8,\n../6.png,z,8,\n";
    write("metadata.csv", rows.as_bytes());
    let scanned = scan(folder.path()).expect("pictures");
    assert_eq!(found(&scanned), ["cat/1.png 7", "dog/3.png -"]);
    assert_eq!(failed(&scanned), ["../6.png outside", "5.png missing"]);
    let species = options(folder.path(), LabelRule::Column("species".to_owned()));
    assert_eq!(found(&scan_with(&species).expect("pictures")), ["cat/1.png lynx", "dog/3.png wolf"]);
    let none = options(folder.path(), LabelRule::Column("colour".to_owned()));
    assert!(
        scan_with(&none)
            .is_err_and(|error| error.to_string().contains("found: file_name, path, label, species"))
    );
    write("metadata.jsonl", b"{\"file_name\": \"4.png\"}\n");
    assert!(scan(folder.path()).is_err_and(|error| error.to_string().contains("keep one of them")));
    std::fs::remove_file(at("metadata.csv")).expect("removed");
    assert_eq!(found(&scan(folder.path()).expect("pictures")), ["4.png -"]);
    write("metadata.jsonl", b"{\"file_name\": ");
    assert!(scan(folder.path()).is_err(), "what cannot be read is not ignored");
}

#[test]
fn folders_of_splits_with_metadata_are_both_sides() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (split, count) in [("train", 2), ("test", 1), ("validation", 1)] {
        let mut rows = String::new();
        for i in 0..count {
            std::fs::create_dir_all(at(split)).expect("writable");
            std::fs::write(at(&format!("{split}/{i}.png")), png(i)).expect("writable");
            rows += &format!("{{\"file_name\": \"{i}.png\", \"label\": \"class {i}\"}}\n");
        }
        std::fs::write(at(&format!("{split}/metadata.jsonl")), rows).expect("writable");
    }
    let both =
        ScanOptions { queries: Some(folder.path().to_owned()), ..options(folder.path(), LabelRule::Folder) };
    let scanned = scan_with(&both).expect("pictures");
    assert_eq!(found(&scanned), ["train/0.png class 0", "train/1.png class 1", "test/0.png class 0"]);
    assert_eq!(scanned.images[2].split, Split::Query);
    assert_eq!(scanned.skipped["pictures that metadata does not list"], 1, "that of the validation split");
    // Named one by one, a folder is what the key says.
    let named = ScanOptions { queries: Some(at("validation")), ..options(&at("train"), LabelRule::Folder) };
    let scanned = scan_with(&named).expect("pictures");
    assert_eq!(found(&scanned), ["0.png class 0", "1.png class 1", "0.png class 0"]);
    // Places are those of a folder.
    let source = Places { root: folder.path(), images: None }.sources(&["test/0.png"]).remove(0);
    assert_eq!(source, Some(Source::File(at("test/0.png"))));
}
