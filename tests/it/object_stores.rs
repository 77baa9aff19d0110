//! Gallery, manifests, features and report on `s3://`, against a real S3 server; and what becomes of a run whose server fails.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::store::FeatureStore;
use object_store::ObjectStoreExt;
use serde_json::json;

use crate::elastic::runtime;
use crate::es_proxy::{Asked, Fault, Proxy};
use crate::s3_node::{Bucket, ID, S3Node, SECRET};
use crate::support::{Said, Shop, cache, said};

/// A bucket with a gallery of three classes and two queries, and a pipeline over it.
struct Store {
    shop: Shop,
    bucket: Bucket,
}

impl Store {
    /// With `more` of a pipeline; `$bucket` in it is the bucket's URL.
    fn new(name: &str, more: &str) -> Store {
        let shop = Shop::new();
        for seed in 1..=6 {
            shop.picture(&format!("gallery/{}/{seed}.png", ["ant", "bee", "cat"][seed as usize % 3]), seed);
        }
        shop.picture("queries/ant/7.png", 7);
        shop.picture("queries/bee/8.png", 8);
        let bucket = S3Node::shared().bucket(name);
        bucket.put_folder(&shop.path("gallery"), "photos/gallery");
        bucket.put_folder(&shop.path("queries"), "photos/queries");
        let store = Store { shop, bucket };
        store.pipeline(&format!(
            "[input]\ngallery = '$bucket/photos/gallery'\nqueries = '$bucket/photos/queries'\n{more}"
        ));
        store
    }

    fn pipeline(&self, text: &str) {
        self.shop.pipeline(&text.replace("$bucket", &format!("s3://{}", self.bucket.name)));
    }

    fn imagedex(&self, args: &[&str]) -> Said {
        imagedex_at(&format!("http://127.0.0.1:{}", S3Node::shared().port()), &self.args(args))
    }

    fn through(&self, proxy: &Proxy, args: &[&str]) -> Said {
        imagedex_at(&proxy.url(), &self.args(args))
    }

    /// The pipeline file where `shop.toml` stands.
    fn args(&self, args: &[&str]) -> Vec<String> {
        let file = self.shop.path("shop.toml").display().to_string();
        args.iter().map(|arg| if *arg == "shop.toml" { file.clone() } else { (*arg).to_owned() }).collect()
    }

    fn books(&self) -> serde_json::Value {
        self.shop.run_json()["books"].clone()
    }

    #[track_caller]
    fn has_books(&self, embedded: u64, reused: u64, stored: u64) {
        let books = self.books();
        let found = (&books["embedded"], &books["reused"], &books["stored"]);
        assert_eq!(found, (&json!(embedded), &json!(reused), &json!(stored)), "{books}");
    }

    /// The rows of the feature table, or of its copy.
    fn rows(&self, folder: &str) -> EmbeddingBatch {
        rows(&self.shop.path(&format!("runs/shop/{folder}")))
    }

    /// What the same pictures give where they lie in folders.
    fn expected(&self) -> EmbeddingBatch {
        let text = "name = 'local'\n[input]\ngallery = 'gallery'\nqueries = 'queries'\n";
        let file = self.shop.path("local.toml");
        std::fs::write(&file, text).unwrap();
        crate::support::imagedex(["extract".into(), file.into_os_string()]).exits(0);
        rows(&self.shop.path("runs/local/features"))
    }
}

fn rows(folder: &Path) -> EmbeddingBatch {
    let store = runtime().block_on(FeatureStore::open(folder)).expect("sound").expect("there");
    runtime().block_on(store.read(None)).expect("readable")
}

/// Runs the program with the credentials of the test server, which stand in its environment alone.
fn imagedex_at(endpoint: &str, args: &[String]) -> Said {
    let said = said(command(endpoint, args).output().expect("the program starts"));
    for secret in [ID, SECRET] {
        assert!(
            !said.err.contains(secret) && !said.out.contains(secret),
            "a credential is told:\n{}",
            said.err
        );
    }
    said
}

fn command(endpoint: &str, args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagedex"));
    command
        .args(args)
        .env("IMAGEDEX_CACHE", cache())
        .env_remove("IMAGEDEX_PIPELINE")
        .env_remove("GITHUB_STEP_SUMMARY");
    command
        .env("AWS_ACCESS_KEY_ID", ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ENDPOINT_URL", endpoint);
    command
}

/// Counts the reads of pictures, and spoils nothing.
fn counting(reads: &Arc<AtomicUsize>) -> Proxy {
    let reads = reads.clone();
    Proxy::before(S3Node::shared().port(), move |asked| {
        if is_read(asked) {
            reads.fetch_add(1, Ordering::SeqCst);
        }
        Fault::Pass
    })
}

fn is_read(asked: &Asked) -> bool {
    asked.method == "GET" && asked.path.contains(".png")
}

#[test]
fn a_bucket_gives_what_a_folder_gives_and_is_read_once() {
    let store = Store::new("once", "");
    let expected = store.expected();
    let reads = Arc::new(AtomicUsize::new(0));
    let proxy = counting(&reads);
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    store.has_books(8, 0, 8);
    assert_eq!(reads.load(Ordering::SeqCst), 8, "each is read once");
    let found = store.rows("features");
    assert_eq!(found.pictures, expected.pictures, "ids, labels, hashes");
    assert_eq!(found, expected, "vectors");

    // Nothing is read to find that nothing has changed.
    reads.store(0, Ordering::SeqCst);
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    store.has_books(0, 8, 8);
    assert_eq!(reads.load(Ordering::SeqCst), 0);

    // One is written over, one is renamed, one goes: only these are looked at.
    let moved = store.bucket.get("photos/gallery/ant/3.png");
    store.bucket.put("photos/gallery/cat/33.png", moved);
    store.bucket.remove("photos/gallery/ant/3.png");
    store.bucket.remove("photos/gallery/ant/6.png");
    store.shop.picture("new.png", 20);
    store.bucket.put("photos/gallery/bee/1.png", std::fs::read(store.shop.path("new.png")).unwrap());
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    store.has_books(1, 6, 7);
    assert!(reads.load(Ordering::SeqCst) <= 3, "the new, the renamed, and the new once more to embed it");

    // Without its memory it reads everything once more, and embeds nothing.
    std::fs::remove_file(store.shop.path("runs/shop/objects.parquet")).unwrap();
    reads.store(0, Ordering::SeqCst);
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    store.has_books(0, 7, 7);
    assert_eq!(reads.load(Ordering::SeqCst), 7);
}

#[test]
fn what_is_no_picture_is_told_as_in_a_folder() {
    let store = Store::new("odd", "max_failures = 5\n");
    let picture = store.bucket.get("photos/gallery/ant/3.png");
    for (key, bytes) in [
        ("broken.jpg", &b"not a picture at all"[..]),
        ("empty.jpg", b""),
        ("raw.dng", b"II*"),
        ("notes.txt", b"hello"),
        (".hidden/1.png", &picture),
        ("nameless/picture", &picture),
        ("nameless/LICENSE", b"Permission is hereby granted"),
        ("ü b/50% off #1.png", &picture),
    ] {
        store.bucket.put(&format!("photos/gallery/{key}"), bytes);
    }
    // What consoles leave for an empty folder: an object whose key ends with a slash.
    let marker = "PUT /odd/photos/gallery/ant/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", S3Node::shared().port())).unwrap();
    std::io::Write::write_all(&mut connection, marker.as_bytes()).unwrap();
    std::io::Read::read_to_end(&mut connection, &mut Vec::new()).unwrap();
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    let books = store.books();
    assert_eq!((&books["stored"], &books["failed"]), (&json!(10), &json!(3)), "{books}");
    let rows = store.rows("features");
    let label = |id: &str| {
        rows.pictures.iter().find(|picture| picture.id == id).and_then(|found| found.label.clone())
    };
    assert_eq!(label("nameless/picture").as_deref(), Some("nameless"));
    assert_eq!(label("ü b/50% off #1.png").as_deref(), Some("ü b"));
    let failures =
        store.imagedex(&["sql", "SELECT path, kind FROM failures ORDER BY path", "shop.toml"]).exits(0);
    for words in ["broken.jpg", "not_a_picture", "empty.jpg", "raw.dng", "unsupported"] {
        assert!(failures.out.contains(words), "{words}\n{}", failures.out);
    }
}

#[test]
fn a_listing_of_several_pages_is_read_to_its_end() {
    let store = Store::new("pages", "");
    runtime().block_on(async {
        use futures::{StreamExt, stream};
        let put = |i: usize| {
            let key = object_store::path::Path::from(format!("photos/gallery/many/{i}.jpg"));
            let store = store.bucket.store.clone();
            async move { store.put(&key, vec![0_u8].into()).await }
        };
        stream::iter((0..2_100).map(put))
            .buffer_unordered(32)
            .map(|put| drop(put.expect("put")))
            .collect::<()>()
            .await;
    });
    store.imagedex(&["doctor", "shop.toml"]).exits(0).says("2106 gallery pictures, 2 queries");
}

#[test]
fn the_report_shows_pictures_of_a_bucket_and_is_sent_to_one() {
    let store = Store::new("reports", "[report]\nupload = '$bucket/reports/today'\n");
    let uploads = Arc::new(AtomicUsize::new(0));
    let (counted, failed) = (uploads.clone(), AtomicBool::new(false));
    let proxy = Proxy::before(S3Node::shared().port(), move |asked| {
        if asked.method == "POST" && asked.path.contains("large.txt?uploads") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        // One part of one upload fails once.
        match asked.path.contains("partNumber=2") && !failed.swap(true, Ordering::SeqCst) {
            true => Fault::Answer(503, "<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>"),
            false => Fault::Pass,
        }
    });
    // Whatever stands in the folder of the report goes along, a large file in parts.
    std::fs::create_dir_all(store.shop.path("runs/shop/report")).unwrap();
    let large: Vec<u8> = (0..20_000_000_u32).map(|i| (i / 7) as u8).collect();
    std::fs::write(store.shop.path("runs/shop/report/large.txt"), &large).unwrap();
    store
        .through(&proxy, &["run", "shop.toml"])
        .exits(0)
        .says("report: s3://reports/reports/today/report.html");
    assert_eq!((uploads.load(Ordering::SeqCst), proxy.spoilt()), (1, 1));
    assert!(store.bucket.get("reports/today/large.txt") == large, "the parts are in order");
    let folder = store.shop.path("runs/shop/report");
    for name in ["report.html", "report.md", "summary.json", "junit.xml", "per_query.parquet"] {
        let sent = store.bucket.get(&format!("reports/today/{name}"));
        assert!(sent == std::fs::read(folder.join(name)).unwrap(), "{name}");
        let text = String::from_utf8_lossy(&sent);
        assert!(!text.contains(SECRET) && !text.contains(ID), "{name}");
    }
    let page = String::from_utf8(store.bucket.get("reports/today/report.html")).unwrap();
    assert!(page.contains("data:image/jpeg;base64,") && !page.contains("(no picture)"), "thumbnails");

    // A query by its URL, and a page with the pictures that were found.
    let (query, file) = (store.bucket.url("photos/queries/ant/7.png"), store.shop.path("hits.html"));
    let pipeline = store.shop.path("shop.toml").display().to_string();
    let html = file.display().to_string();
    let args = ["search", &query, "-k", "3", "--pipeline", &pipeline, "--html", &html];
    store.imagedex(&args).exits(0).says("3 hits");
    let page = std::fs::read_to_string(file).unwrap();
    assert_eq!(page.matches("data:image").count(), 4, "the query and its hits");
}

#[test]
fn manifests_name_objects_and_may_be_some() {
    let store = Store::new("lists", "");
    let rows = "path,label,split\ngallery/ant/3.png,first,gallery\n./gallery/ant/6.png,second,gallery\n\
                s3://lists/photos/gallery/bee/1.png,third,gallery\nqueries/ant/7.png,first,query\n\
                gallery/none.png,x,gallery\n../up.png,x,gallery\n/etc/hosts,x,gallery\n";
    store.bucket.put("photos/list.csv", rows);
    store.bucket.put("up.png", store.bucket.get("photos/gallery/cat/2.png"));
    store.pipeline("[input]\ngallery = '$bucket/photos/list.csv'\nqueries = '$bucket/photos/list.csv'\nmax_failures = 9\n");
    store.imagedex(&["run", "shop.toml"]).exits(0);
    let books = store.books();
    assert_eq!((&books["stored"], &books["failed"]), (&json!(4), &json!(3)), "{books}");
    let ids: Vec<String> = store.rows("features").pictures.into_iter().map(|picture| picture.id).collect();
    assert_eq!(ids, ["gallery/ant/3.png", "gallery/ant/6.png", "gallery/bee/1.png", "queries/ant/7.png"]);
    let page = std::fs::read_to_string(store.shop.path("runs/shop/report/report.html")).unwrap();
    assert!(!page.contains("(no picture)"), "thumbnails");
    let failures = store.imagedex(&["sql", "SELECT path, kind, reason FROM failures", "shop.toml"]).exits(0);
    for words in ["missing", "s3://lists/photos/gallery/none.png", "outside"] {
        assert!(failures.out.contains(words), "{words}\n{}", failures.out);
    }

    // One on this machine may name objects if it may name what is outside of its folder.
    let rows = "path,label,split\ns3://lists/photos/gallery/ant/3.png,a,gallery\ngallery/cat/2.png,b,gallery\n\
                queries/bee/8.png,a,query\n";
    std::fs::write(store.shop.path("mixed.csv"), rows).unwrap();
    let text = "name = 'mixed'\n[input]\ngallery = 'mixed.csv'\nqueries = 'mixed.csv'\n";
    store.pipeline(text);
    store.imagedex(&["extract", "shop.toml"]).exits(3).complains("leads out of the manifest's folder");
    store.pipeline(&format!("{text}outside = true\n"));
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    let ids: Vec<String> =
        rows_of(&store.shop.path("runs/mixed/features")).into_iter().map(|picture| picture.id).collect();
    assert_eq!(ids, ["gallery/cat/2.png", "s3://lists/photos/gallery/ant/3.png", "queries/bee/8.png"]);
}

#[test]
fn names_of_a_list_count_from_a_bucket_where_input_images_says_so() {
    let store = Store::new("images", "");
    let ids = |name: &str| -> Vec<String> {
        let rows = rows_of(&store.shop.path(&format!("runs/{name}/features")));
        rows.into_iter().map(|picture| picture.id).collect()
    };
    let rows = "path,label,split\nant/3.png,a,gallery\nbee/1.png,b,gallery\n../queries/ant/7.png,a,query\n\
                s3://images/photos/gallery/ant/6.png,a,query\nnone.png,a,gallery\n";
    std::fs::write(store.shop.path("list.csv"), rows).unwrap();
    let text = "[input]\ngallery = 'list.csv'\nqueries = 'list.csv'\nimages = '$bucket/photos/gallery'\nmax_failures = 2\n";
    store.pipeline(&format!("name = 'list'\n{text}"));
    store.imagedex(&["run", "shop.toml"]).exits(0);
    assert_eq!(ids("list"), ["ant/3.png", "bee/1.png", "ant/6.png"]);
    let page = std::fs::read_to_string(store.shop.path("runs/list/report/report.html")).unwrap();
    assert!(!page.contains("(no picture)"), "thumbnails");
    let failures = store.imagedex(&["sql", "SELECT path, kind FROM failures", "shop.toml"]).exits(0);
    for words in ["none.png", "missing", "../queries/ant/7.png", "outside"] {
        assert!(failures.out.contains(words), "{words}\n{}", failures.out);
    }

    let coco = json!({
        "images": [{ "id": 1, "file_name": "ant/3.png" }, { "id": 2, "file_name": "bee/4.png" },
                   { "id": 3, "file_name": "none.png" }],
        "annotations": [{ "image_id": 1, "category_id": 1, "area": 5 }],
        "categories": [{ "id": 1, "name": "insect" }],
    });
    std::fs::write(store.shop.path("all.json"), coco.to_string()).unwrap();
    store.pipeline(
        "name = 'coco'\n[input]\ngallery = 'all.json'\nimages = '$bucket/photos/gallery'\nmax_failures = 1\n",
    );
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    let found = rows_of(&store.shop.path("runs/coco/features"));
    assert_eq!(found[0].label.as_deref(), Some("insect"));
    assert_eq!(ids("coco"), ["ant/3.png", "bee/4.png"]);
    let failures = store.imagedex(&["sql", "SELECT path, kind, reason FROM failures", "shop.toml"]).exits(0);
    assert!(failures.out.contains("the object that picture 3 names is missing"), "{}", failures.out);
}

#[test]
fn what_is_read_of_a_disk_alone_is_told() {
    let store = Store::new("alone", "");
    let extract = |gallery: &str| {
        store.pipeline(&format!("name = 'alone'\n[input]\ngallery = '$bucket/{gallery}'\n"));
        store.imagedex(&["extract", "shop.toml"])
    };
    for (gallery, key, bytes, told) in [
        ("a.tar", "a.tar", "", "a tar file"),
        ("a-{0..3}.tar", "a-0.tar", "", "a tar file"),
        ("shards", "shards/b.tar", "", "shards/b.tar: a tar file"),
        ("all.json", "all.json", "{}", "a COCO file"),
        (
            "hub",
            "hub/train/metadata.csv",
            "file_name,text\n1.png,x\n",
            "hub/train/metadata.csv: a folder's metadata",
        ),
        ("top", "top/metadata.jsonl", "{\"file_name\": \"1.png\"}\n", "name this file itself"),
    ] {
        store.bucket.put(key, bytes);
        extract(gallery).exits(2).complains(told).complains("is read from this machine alone");
    }
    assert!(!store.shop.path("runs/alone/features/_delta_log").exists());

    // Beside pictures tar files are passed over, and so is what is about something else, as in a folder.
    store.bucket.put("photos/gallery/c.tar", "");
    store.bucket.put("photos/gallery/metadata.csv", "station,rain\n1,2\n");
    extract("photos/gallery").exits(0);
    assert_eq!(rows_of(&store.shop.path("runs/alone/features")).len(), 6);
    // Metadata named itself are a manifest.
    store.bucket.put("photos/gallery/metadata.csv", "file_name,label\nant/3.png,x\n");
    extract("photos/gallery").exits(2).complains("name this file itself");
    store.pipeline("name = 'named'\n[input]\ngallery = '$bucket/photos/gallery/metadata.csv'\n");
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    assert_eq!(rows_of(&store.shop.path("runs/named/features"))[0].label.as_deref(), Some("x"));
}

fn rows_of(folder: &Path) -> Vec<imagedex::stages::decode::Picture> {
    rows(folder).pictures
}

#[test]
fn a_server_that_stumbles_changes_nothing() {
    let store = Store::new("stumbles", "");
    let expected = store.expected();
    let asked = AtomicUsize::new(0);
    let proxy =
        Proxy::before(S3Node::shared().port(), move |_| match asked.fetch_add(1, Ordering::SeqCst) % 6 {
            1 => Fault::Answer(503, "<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>"),
            2 => Fault::CutAnswer,
            3 => Fault::Reset,
            4 => Fault::Delay(Duration::from_millis(300)),
            5 => Fault::LoseAnswer,
            _ => Fault::Pass,
        });
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    assert!(proxy.spoilt() > 6, "{}", proxy.spoilt());
    assert_eq!(store.rows("features"), expected);
}

/// Stops to answer once `last` picture reads have been answered, until told otherwise.
fn going_away(last: usize, how: Fault) -> (Proxy, Arc<AtomicBool>) {
    let (reads, is_back) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let back = is_back.clone();
    let proxy = Proxy::before(S3Node::shared().port(), move |asked| {
        if back.load(Ordering::SeqCst) {
            return Fault::Pass;
        }
        let count =
            if is_read(asked) { reads.fetch_add(1, Ordering::SeqCst) } else { reads.load(Ordering::SeqCst) };
        if count >= last { how.clone() } else { Fault::Pass }
    });
    (proxy, is_back)
}

#[test]
fn a_bucket_that_goes_away_is_none_whose_pictures_were_deleted() {
    let store = Store::new("away", "max_failures = '100%'\nmax_deleted = '100%'\n");
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    let before = store.rows("features");
    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    for how in [
        Fault::Reset,
        Fault::Answer(403, denied),
        Fault::Answer(404, "<Error><Code>NoSuchBucket</Code></Error>"),
    ] {
        // All have to be read again.
        std::fs::remove_file(store.shop.path("runs/shop/objects.parquet")).unwrap();
        let (proxy, _) = going_away(2, how.clone());
        store
            .through(&proxy, &["extract", "shop.toml"])
            .exits(4)
            .complains("stopped answering while its pictures were read");
        assert_eq!(store.rows("features"), before, "{how:?}");
        store.imagedex(&["extract", "shop.toml"]).exits(0);
        store.has_books(0, 8, 8);
    }
    // Gone from the start, and with nobody there at all.
    let (proxy, _) = going_away(
        0,
        Fault::Answer(
            404,
            "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>",
        ),
    );
    store
        .through(&proxy, &["extract", "shop.toml"])
        .exits(2)
        .complains("NoSuchBucket: The specified bucket does not exist");
    let nobody = crate::process::free_ports();
    let args = store.args(&["extract", "shop.toml"]);
    imagedex_at(&format!("http://127.0.0.1:{nobody}"), &args)
        .exits(4)
        .complains("does not answer as it should");
    assert_eq!(store.rows("features"), before);
}

#[test]
fn pictures_that_come_while_the_server_fails_are_done_by_the_next_run() {
    let store = Store::new("resumes", "");
    let expected = store.expected();
    // While they are fetched to be embedded.
    let (proxy, is_back) = going_away(3, Fault::Reset);
    store.through(&proxy, &["extract", "shop.toml"]).exits(4).complains("stopped answering");
    is_back.store(true, Ordering::SeqCst);
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    assert_eq!(store.rows("features"), expected);
}

#[test]
fn credentials_are_asked_for_and_told_to_nobody() {
    let store = Store::new("secrets", "");
    let answer = format!(
        "<Error><Code>SignatureDoesNotMatch</Code><Message>Wrong key {SECRET}.</Message><AWSAccessKeyId>{ID}</AWSAccessKeyId></Error>"
    );
    let answer: &'static str = Box::leak(answer.into_boxed_str());
    let proxy = Proxy::before(S3Node::shared().port(), move |_| Fault::Answer(403, answer));
    store
        .through(&proxy, &["extract", "shop.toml"])
        .exits(2)
        .complains("SignatureDoesNotMatch: Wrong key ….");

    let mut without = command(&proxy.url(), &store.args(&["extract", "shop.toml"]));
    without
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    without.env("HOME", store.shop.path("home"));
    said(without.output().unwrap()).exits(2).complains("no credentials were found");

    // A profile, as the AWS command line keeps it.
    std::fs::create_dir_all(store.shop.path("home/.aws")).unwrap();
    let profile = format!("[shop]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(store.shop.path("home/.aws/credentials"), profile).unwrap();
    let mut with = command(
        &format!("http://127.0.0.1:{}", S3Node::shared().port()),
        &store.args(&["doctor", "shop.toml"]),
    );
    with.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env("AWS_PROFILE", "shop");
    with.env("HOME", store.shop.path("home")).env("AWS_EC2_METADATA_DISABLED", "true");
    said(with.output().unwrap()).exits(0).says("6 gallery pictures");
}

/// Rows of the table in the bucket, as another library reads it there.
fn rows_in_bucket(bucket: &Bucket, key: &str) -> usize {
    const READ: &str = "
import os, sys
from deltalake import DeltaTable
url, endpoint, id, secret = sys.argv[1:]
options = {'AWS_ENDPOINT_URL': endpoint, 'AWS_ALLOW_HTTP': 'true', 'AWS_REGION': 'us-east-1', 'AWS_ACCESS_KEY_ID': id, 'AWS_SECRET_ACCESS_KEY': secret}
print(DeltaTable(url, storage_options=options).to_pyarrow_table().num_rows, flush=True)
# Its threads may abort the process where the interpreter ends by itself.
os._exit(0)";
    let python = cache().join("python/bin/python");
    assert!(python.is_file(), "{} is missing: run `make setup-python`", python.display());
    let endpoint = format!("http://127.0.0.1:{}", S3Node::shared().port());
    let read = Command::new(python).args(["-c", READ, &bucket.url(key), &endpoint, ID, SECRET]).output();
    let read = said(read.expect("python starts")).exits(0);
    read.out.trim().parse().unwrap_or_else(|_| panic!("{}", read.out))
}

const TABLE: &str = "[features]\ntable = '$bucket/table'\n";

#[test]
fn a_table_in_a_bucket_is_that_of_every_machine() {
    let store = Store::new("tables", TABLE);
    let expected = store.expected();
    store.imagedex(&["run", "shop.toml"]).exits(0);
    assert_eq!(store.rows("features-copy"), expected);
    assert_eq!(rows_in_bucket(&store.bucket, "table"), 8);

    // Another machine: it has nothing, and embeds nothing.
    std::fs::remove_dir_all(store.shop.path("runs")).unwrap();
    store.imagedex(&["sql", "SELECT count(*) AS n FROM features", "shop.toml"]).exits(0).says("8");
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    store.has_books(0, 8, 8);
    assert_eq!(store.rows("features-copy"), expected);
    store.imagedex(&["features", "verify", "shop.toml"]).exits(0).says("8 sound rows").says("; sound");

    // A picture more, one changed, one gone, commit by commit.
    for (key, seed) in [("cat/9.png", 9), ("bee/1.png", 21)] {
        store.shop.picture("new.png", seed);
        store
            .bucket
            .put(&format!("photos/gallery/{key}"), std::fs::read(store.shop.path("new.png")).unwrap());
        store.imagedex(&["extract", "shop.toml"]).exits(0);
        store.has_books(1, store.books()["reused"].as_u64().unwrap(), 9);
    }
    store.bucket.remove("photos/gallery/ant/3.png");
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    assert_eq!(rows_in_bucket(&store.bucket, "table"), 8);

    // A damaged copy is fetched again.
    let copy = store.shop.path("runs/shop/features-copy");
    let files = runtime().block_on(FeatureStore::open(&copy)).unwrap().unwrap().files().unwrap();
    let part = files.into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    store
        .imagedex(&["features", "verify", "shop.toml"])
        .exits(4)
        .complains("the copy is then fetched from s3://tables/table again");
    store
        .imagedex(&["features", "verify", "--repair", "shop.toml"])
        .exits(2)
        .complains("is not repaired from here");
    std::fs::remove_dir_all(&copy).unwrap();
    store.imagedex(&["features", "verify", "shop.toml"]).exits(0).says("; sound");

    // And one that is damaged in the bucket is known by its checksum.
    let name = part.file_name().unwrap().to_str().unwrap().to_owned();
    let sound = store.bucket.get(&format!("table/{name}"));
    let mut damaged = sound.clone();
    damaged[middle] ^= 1;
    store.bucket.put(&format!("table/{name}"), damaged);
    std::fs::remove_dir_all(&copy).unwrap();
    store
        .imagedex(&["features", "verify", "shop.toml"])
        .exits(4)
        .complains(&name)
        .complains("restore that object in the bucket");
    store.bucket.put(&format!("table/{name}"), sound);
    store.imagedex(&["features", "verify", "shop.toml"]).exits(0).says("; sound");

    let to = store.bucket.url("other");
    store
        .imagedex(&["features", "import", "x.parquet", "--table", &to])
        .exits(2)
        .complains("import into a folder");

    // A table that went away is no reason to make another.
    for key in store.bucket.list("table") {
        store.bucket.remove(&key);
    }
    store.imagedex(&["extract", "shop.toml"]).exits(2).complains("restore it, or delete that folder");
}

#[test]
fn of_two_writers_of_a_table_one_fails_and_nothing_is_lost() {
    let first = Store::new("writers", TABLE);
    first.imagedex(&["extract", "shop.toml"]).exits(0);
    // The second has a picture more in its list, and the first one another.
    let second = Shop::new();
    let text = "[input]\ngallery = 's3://writers/photos/gallery'\nqueries = 's3://writers/photos/queries'\n\
                [features]\ntable = 's3://writers/table'\n";
    second.pipeline(text);
    first.shop.picture("new.png", 30);
    first.bucket.put("photos/gallery/cat/30.png", std::fs::read(first.shop.path("new.png")).unwrap());
    // While the second is about to commit, the first does.
    let (is_done, args) = (AtomicBool::new(false), first.args(&["extract", "shop.toml"]));
    let proxy = Proxy::before(S3Node::shared().port(), move |asked| {
        if asked.method == "PUT"
            && asked.path.contains("/_delta_log/")
            && !is_done.swap(true, Ordering::SeqCst)
        {
            imagedex_at(&format!("http://127.0.0.1:{}", S3Node::shared().port()), &args).exits(0);
        }
        Fault::Pass
    });
    let args = ["extract".to_owned(), second.path("shop.toml").display().to_string()];
    imagedex_at(&proxy.url(), &args)
        .exits(4)
        .complains("another program wrote to s3://writers/table at the same time");
    assert_eq!(rows_in_bucket(&first.bucket, "table"), 9);
    imagedex_at(&proxy.url(), &args).exits(0).complains("dropped and done again");
    let books = &second.run_json()["books"];
    assert_eq!((&books["embedded"], &books["stored"]), (&json!(0), &json!(9)), "{books}");
    assert_eq!(rows(&second.path("runs/shop/features-copy")), first.rows("features-copy"));
}

#[test]
fn a_table_survives_a_machine_that_dies_at_any_write() {
    let store = Store::new("dies", TABLE);
    let expected = store.expected();
    let mut died = 0;
    for last in 0..12 {
        store.pipeline(&format!(
            "[input]\ngallery = '$bucket/photos/gallery'\nqueries = '$bucket/photos/queries'\n\
             [features]\ntable = '$bucket/table{last}'\n"
        ));
        let _ = std::fs::remove_dir_all(store.shop.path("runs/shop"));
        let (writes, pid) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let killed = pid.clone();
        let proxy = Proxy::before(S3Node::shared().port(), move |asked| {
            let is_write = asked.method == "PUT" && asked.path.contains("/table");
            if is_write && writes.fetch_add(1, Ordering::SeqCst) == last {
                let pid = killed.load(Ordering::SeqCst).to_string();
                let kill = Command::new("kill").args(["-KILL", &pid]).status();
                assert!(kill.expect("kill starts").success());
            }
            Fault::Pass
        });
        let mut run = command(&proxy.url(), &store.args(&["extract", "shop.toml"]));
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        pid.store(run.id() as usize, Ordering::SeqCst);
        died += usize::from(run.wait().expect("it ends").code().is_none());
        // The machine's disk is gone, too, every third time.
        if last % 3 == 0 {
            std::fs::remove_dir_all(store.shop.path("runs/shop")).unwrap();
        }
        store.imagedex(&["extract", "shop.toml"]).exits(0);
        assert_eq!(store.rows("features-copy"), expected, "after {last} writes");
        assert_eq!(rows_in_bucket(&store.bucket, &format!("table{last}")), 8, "after {last} writes");
    }
    assert!(died >= 6, "only {died} runs met their end");
}

#[test]
fn a_table_is_sent_by_the_next_run_where_the_server_died() {
    let store = Store::new("late", TABLE);
    let is_entry = |asked: &Asked| asked.method == "PUT" && asked.path.contains("/_delta_log/");
    let proxy =
        Proxy::before(
            S3Node::shared().port(),
            move |asked| {
                if is_entry(asked) { Fault::Reset } else { Fault::Pass }
            },
        );
    store.through(&proxy, &["extract", "shop.toml"]).exits(4).complains("does not answer as it should");
    assert!(store.bucket.list("table/_delta_log").is_empty(), "no entry without all that it names");
    // What was embedded was not in vain.
    store.imagedex(&["extract", "shop.toml"]).exits(0);
    store.has_books(0, 8, 8);
    assert_eq!(rows_in_bucket(&store.bucket, "table"), 8);
    // An answer that is lost: the entry is there, and is known for its own.
    store.shop.picture("new.png", 40);
    store.bucket.put("photos/gallery/cat/40.png", std::fs::read(store.shop.path("new.png")).unwrap());
    let lost = AtomicBool::new(false);
    let proxy = Proxy::before(S3Node::shared().port(), move |asked| {
        match is_entry(asked) && !lost.swap(true, Ordering::SeqCst) {
            true => Fault::LoseAnswer,
            false => Fault::Pass,
        }
    });
    store.through(&proxy, &["extract", "shop.toml"]).exits(0);
    assert_eq!((proxy.spoilt(), rows_in_bucket(&store.bucket, "table")), (1, 9));
}

#[test]
fn a_store_without_conditional_writes_holds_no_table() {
    let store = Store::new("heedless", TABLE);
    // An older server, which knows no `If-None-Match`.
    let proxy = Proxy::before(S3Node::shared().port(), |asked| match asked.method {
        "PUT" => Fault::Strip("if-none-match"),
        _ => Fault::Pass,
    });
    store
        .through(&proxy, &["extract", "shop.toml"])
        .exits(2)
        .complains("writes over objects although it is asked not to");
    assert!(store.bucket.list("table").is_empty());
}
