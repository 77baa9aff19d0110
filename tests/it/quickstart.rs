//! The program as a person runs it: the whole pipeline on real pictures, and what a second run does.

use serde_json::json;

use crate::support::{Shop, cache, imagedex, root, said};

/// Six gallery pictures of two classes and two queries: small enough for the exact `cpu` / `fp32` default.
fn shop() -> Shop {
    let shop = Shop::new();
    for (class, seeds) in [("stripes", [1, 2, 3]), ("waves", [40, 41, 42])] {
        for seed in seeds {
            shop.picture(&format!("gallery/{class}/{seed}.png"), seed);
        }
    }
    shop.picture("queries/stripes/4.png", 4);
    shop.picture("queries/waves/43.png", 43);
    shop
}

#[test]
fn the_books_follow_every_change() {
    let shop = shop();
    shop.imagedex("run").exits(0).says("cosine");
    let books = |shop: &Shop| shop.run_json()["books"].clone();
    let first = books(&shop);
    assert_eq!((&first["scanned"], &first["embedded"], &first["reused"]), (&json!(8), &json!(8), &json!(0)));
    let version = shop.run_json()["table_version"].clone();
    let stages = shop.run_json()["stages"].clone();
    let stages: Vec<_> = stages.as_array().expect("stages").iter().map(|stage| &stage["stage"]).collect();
    for stage in ["scan", "hash", "plan", "embed", "load", "evaluate"] {
        assert!(stages.contains(&&json!(stage)), "{stage} is not timed: {stages:?}");
    }

    shop.imagedex("run").exits(0);
    let second = books(&shop);
    assert_eq!(
        (&second["embedded"], &second["reused"], &second["failed"]),
        (&json!(0), &json!(8), &json!(0))
    );
    assert_eq!(shop.run_json()["table_version"], version, "a second run commits nothing");

    shop.picture("gallery/stripes/5.png", 5); // one added
    shop.picture("gallery/stripes/1.png", 99); // one changed
    std::fs::rename(shop.path("gallery/waves/40.png"), shop.path("gallery/waves/renamed.png"))
        .expect("renamed");
    std::fs::remove_file(shop.path("gallery/waves/41.png")).expect("deleted");
    shop.imagedex("run").exits(0);
    let third = books(&shop);
    assert_eq!(third["scanned"], json!(8));
    assert_eq!(third["embedded"], json!(2), "the added and the changed one");
    assert_eq!(third["reused"], json!(6), "the renamed one keeps its vector");
    assert_eq!(third["deleted"], json!(2), "the old name and the deleted one");
    assert_eq!(third["stored"], json!(8));
}

#[test]
fn another_model_does_not_mix_into_the_table() {
    let shop = shop();
    shop.imagedex("extract").exits(0);
    shop.pipeline("[input]\ngallery = 'gallery'\nqueries = 'queries'\n[model]\npooling = 'avg'\n");
    shop.imagedex("extract").exits(2).complains("pooling").complains("avg");
}

#[test]
fn bad_pictures_are_counted_and_the_budget_decides() {
    let shop = shop();
    std::fs::write(shop.path("gallery/waves/broken.jpg"), b"\xff\xd8\xff\xe0 no picture").expect("writable");
    shop.imagedex("run").exits(3).complains("1 of 9");
    assert_eq!(shop.run_json()["books"]["failed"], json!(1));
    shop.pipeline("[input]\ngallery = 'gallery'\nqueries = 'queries'\nmax_failures = 1\n");
    shop.imagedex("run").exits(0);
    let sql = imagedex([
        "sql".into(),
        "SELECT path, stage FROM failures".into(),
        shop.path("shop.toml").into_os_string(),
    ]);
    sql.exits(0).says("waves/broken.jpg");
}

#[test]
fn a_search_finds_the_picture_itself_first() {
    let shop = shop();
    shop.imagedex("run").exits(0);
    let picture = shop.path("gallery/waves/41.png");
    let said = imagedex([
        "search".into(),
        picture.into_os_string(),
        "--json".into(),
        "-k".into(),
        "2".into(),
        "--pipeline".into(),
        shop.path("shop.toml").into_os_string(),
    ])
    .exits(0);
    let found: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(found["hits"][0]["id"], json!("waves/41.png"));
    assert!((found["hits"][0]["score"].as_f64().expect("a number") - 2.0).abs() < 1e-6, "{found}");
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_search_makes_a_page_that_needs_nothing_else() {
    let shop = shop();
    // File names that would become HTML where they are not escaped; a class is the name of a folder.
    let hostile = "<img src=x onerror=alert(1)>\"'";
    shop.picture(&format!("gallery/{hostile}/1 &amp; '2'.png"), 77);
    shop.picture("gallery/waves/gone.png", 78);
    shop.imagedex("run").exits(0);
    std::fs::remove_file(shop.path("gallery/waves/gone.png")).expect("removed");
    let (picture, page) = (shop.path("<b>query.png"), shop.path("page.html"));
    std::fs::copy(shop.path(&format!("gallery/{hostile}/1 &amp; '2'.png")), &picture).expect("copied");
    let (picture, pipeline) = (picture.to_string_lossy(), shop.path("shop.toml"));
    let pipeline = pipeline.to_string_lossy();
    let search = |html: &str, more: &[&str]| {
        let args = ["search", &picture, "-k", "20", "--pipeline", &pipeline, "--html", html];
        imagedex(args.iter().chain(more))
    };
    search(&page.to_string_lossy(), &[]).exits(0).says("page.html: 8 hits");
    let html = std::fs::read_to_string(&page).expect("the page");
    assert!(!html.contains("<img src=x") && !html.contains("<b>query"), "{html}");
    assert!(html.contains("<strong>1. &lt;img src=x onerror=alert(1)&gt;&quot;&#39;</strong>"), "{html}");
    assert!(html.contains("1 &amp;amp; &#39;2&#39;.png"), "{html}");
    assert_eq!(html.matches("src=\"data:image/jpeg;base64,").count(), 8, "the query, and 7 of 8 hits");
    assert!(html.contains("gone.png: No such file"), "{html}");
    for word in ["http:", "https:", "<script", "url("] {
        assert!(!html.contains(word), "{word} in {html}");
    }
    search(&shop.path("no/such/folder.html").to_string_lossy(), &[]).exits(4).complains("cannot write");
    search(&page.to_string_lossy(), &["--json"]).exits(2);
}

#[test]
fn mistakes_end_with_one_clear_sentence() {
    let shop = Shop::new();
    shop.imagedex("run").exits(2).complains("gallery");
    std::fs::create_dir_all(shop.path("gallery")).expect("writable");
    std::fs::create_dir_all(shop.path("queries")).expect("writable");
    shop.imagedex("run").exits(2).complains("no pictures");
    shop.pipeline("[input]\ngallery = 'gallery'\n[evaluate]\nk = [0]\n");
    shop.imagedex("run").exits(2).complains("evaluate.k");
    shop.pipeline("[input]\ngalery = 'gallery'\n");
    shop.imagedex("run").exits(2).complains("did you mean `gallery`?");
    shop.picture("gallery/a/1.png", 1);
    shop.pipeline("[input]\ngallery = 'gallery'\n[runtime]\nlibrary = 'shop.toml'\n");
    shop.imagedex("run").exits(4).complains("cannot load the ONNX Runtime library");
    imagedex(["run", "no-such-file.toml"]).exits(2).complains("no-such-file.toml");
    imagedex(["retrieve", "--engine", "annoy", "--test_data", "a", "--index_file", "b"]).exits(2);
}

#[test]
fn one_run_at_a_time() {
    let shop = shop();
    std::fs::create_dir_all(shop.path("runs/shop")).expect("writable");
    let lock = std::fs::File::create(shop.path("runs/shop/lock")).expect("writable");
    lock.lock().expect("free");
    shop.imagedex("run").exits(75).complains("another run holds");
}

/// The work folder is a file system of 16 kB in a mount name space of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_clear_error_and_the_next_run_goes_on() {
    let shop = shop();
    std::fs::create_dir_all(shop.path("runs/shop")).expect("writable");
    let script = "mount -t tmpfs -o size=16k none \"$1\" && exec \"$2\" run \"$3\"";
    let run = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(shop.path("runs/shop"))
        .arg(env!("CARGO_BIN_EXE_imagedex"))
        .arg(shop.path("shop.toml"))
        .env("IMAGEDEX_CACHE", cache())
        .output()
        .expect("unshare is part of util-linux");
    let said = said(run);
    if said.err.contains("unshare:") && std::env::var_os("CI").is_none() {
        eprintln!("\n*** SKIPPED: no mount name spaces here, so a full disk was not tried ***\n{}", said.err);
        return;
    }
    let said = said.exits(4).complains("No space left on device");
    assert!(!said.err.contains("panicked"), "{}", said.err);
    shop.imagedex("run").exits(0);
}

#[test]
fn the_sample_pictures_give_the_figures_that_the_readme_shows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = root().join("pipelines/quickstart.toml");
    let work = format!("work={}", folder.path().display());
    let samples = cache().join("samples/cifar10");
    let gallery = format!("input.gallery={}", samples.join("gallery").display());
    let queries = format!("input.queries={}", samples.join("queries").display());
    let args = ["run", &file.to_string_lossy(), "--set", &work, "--set", &gallery, "--set", &queries];
    imagedex(args).exits(0).says("cosine");
    let summary = std::fs::read(folder.path().join("report/summary.json")).expect("summary.json");
    let summary: serde_json::Value = serde_json::from_slice(&summary).expect("JSON");
    let mode = &summary["evaluations"][0]["modes"][0];
    assert_eq!(mode["queries"]["evaluated"], json!(200));
    // Enlarging these small pictures by NEAREST gives a P@1 of 0.3; the pipeline's BILINEAR doubles it.
    let precision = mode["metrics"][0]["micro"]["at"][0]["precision"].as_f64().expect("P@1");
    assert!((0.59..0.68).contains(&precision), "P@1 {precision}");
}
