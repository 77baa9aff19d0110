//! Runs held against a baseline, through the program.

use std::path::{Path, PathBuf};

use crate::support::imagedex;

/// A pipeline of its own over two classes of sample pictures, whose gallery can be spoilt.
struct Shop {
    folder: tempfile::TempDir,
}

impl Shop {
    fn new(baseline: &str) -> Shop {
        let folder = tempfile::tempdir().expect("a folder");
        let samples = crate::support::cache().join("samples/cifar10");
        for (split, count) in [("gallery", 12), ("queries", 20)] {
            for class in ["ship", "horse", "frog"] {
                let to = folder.path().join(split).join(class);
                std::fs::create_dir_all(&to).expect("made");
                let mut files: Vec<PathBuf> = std::fs::read_dir(samples.join(split).join(class))
                    .expect("samples")
                    .map(|entry| entry.expect("an entry").path())
                    .collect();
                files.sort();
                for file in files.iter().take(count) {
                    std::fs::copy(file, to.join(file.file_name().expect("a name"))).expect("copied");
                }
            }
        }
        let shop = Shop { folder };
        let text = format!(
            "work = 'work'\n[input]\ngallery = 'gallery'\nqueries = 'queries'\n[model]\nprecision = 'int8'\n\
             provider = 'openvino'\nresize = 'bilinear'\n{baseline}"
        );
        std::fs::write(shop.pipeline(), text).expect("written");
        shop
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn pipeline(&self) -> PathBuf {
        self.path().join("shop.toml")
    }

    fn call(&self, arguments: &[&str]) -> crate::support::Said {
        let pipeline = self.pipeline().display().to_string();
        imagedex(arguments.iter().map(|argument| if *argument == "@" { pipeline.as_str() } else { argument }))
    }

    fn file(&self) -> PathBuf {
        self.path().join("shop.baseline.json")
    }

    /// Changes numbers in the baseline: as if the run that somebody trusted had been better.
    fn rewrite(&self, change: impl Fn(&mut serde_json::Value)) {
        let mut json = serde_json::from_slice(&std::fs::read(self.file()).expect("read")).expect("JSON");
        change(&mut json);
        std::fs::write(self.file(), json.to_string()).expect("written");
    }
}

#[test]
fn a_run_is_held_against_what_was_trusted_before() {
    let shop = Shop::new("[baseline]\nmax_drop = 0.02\nmax_class_drop = 0.2\n");
    // Without the file nothing is begun.
    shop.call(&["run", "@"]).exits(2).complains("there is no baseline").complains("imagedex baseline set");
    assert!(!shop.path().join("work/features").exists());
    shop.call(&["baseline", "set", "@"]).exits(2).complains("summary.json is missing");

    let text = std::fs::read_to_string(shop.pipeline()).expect("read");
    let (before, section) = text.split_once("[baseline]").expect("a section");
    std::fs::write(shop.pipeline(), before).expect("written");
    shop.call(&["run", "@"]).exits(0);
    shop.call(&["baseline", "set", "@"])
        .exits(0)
        .says("60 queries, 4 ways to search")
        .complains("once the pipeline file has a section");
    std::fs::write(shop.pipeline(), format!("{before}[baseline]{section}")).expect("written");

    // The same again holds; and a second baseline of it is the same file.
    shop.call(&["run", "@"]).exits(0).says("gate: 12 of 12 checks hold");
    let written = std::fs::read(shop.file()).expect("read");
    assert!(written.len() < 20_000, "{} bytes", written.len());
    shop.call(&["baseline", "set", "@"]).exits(0);
    assert_eq!(std::fs::read(shop.file()).expect("read"), written);

    // It was better: the run fails its gate, and says by how much.
    shop.rewrite(|json| {
        for cell in json["cells"].as_array_mut().expect("cells") {
            for value in cell["values"]["MAP"].as_array_mut().expect("values") {
                *value = (value.as_f64().expect("a number") + 0.05).into();
            }
        }
    });
    let said = shop.call(&["evaluate", "@"]).exits(1);
    said.says("gate FAILED: flat cosine MAP fell from the baseline's")
        .says("by more than 0.02 (95 % of the fall 0.05");
    // One class alone: the means stay within what is tolerated.
    std::fs::write(shop.file(), &written).expect("written");
    let ships = |json: &serde_json::Value| -> Vec<usize> {
        let ids = json["queries"]["held_out"].as_array().expect("ids");
        ids.iter()
            .enumerate()
            .filter(|(_, id)| id.as_str().expect("an id").starts_with("ship/"))
            .map(|(i, _)| i)
            .collect()
    };
    shop.rewrite(|json| {
        let ships = ships(json);
        for cell in json["cells"].as_array_mut().expect("cells") {
            for (i, value) in cell["values"]["MAP"].as_array_mut().expect("values").iter_mut().enumerate() {
                let change = if ships.contains(&i) { 0.24 } else { -0.12 };
                *value = (value.as_f64().expect("a number") + change).into();
            }
        }
    });
    shop.call(&["evaluate", "@"])
        .exits(1)
        .says("MAP of class ship fell from the baseline's")
        .says("by more than 0.2 (20 queries)");
}

#[test]
fn a_run_over_something_else_cannot_be_compared() {
    let shop = Shop::new("");
    shop.call(&["run", "@"]).exits(0);
    shop.call(&["baseline", "set", "@"]).exits(0);
    let text = std::fs::read_to_string(shop.pipeline()).expect("read");
    std::fs::write(shop.pipeline(), text + "[baseline]\n").expect("written");

    let broken = |from: &str, to: &str| {
        let text = std::fs::read_to_string(shop.file()).expect("read");
        assert!(text.contains(from), "{from}");
        std::fs::write(shop.file(), text.replacen(from, to, 1)).expect("written");
        text
    };
    let whole = broken("\"schema_version\":1", "\"schema_version\":9");
    shop.call(&["evaluate", "@"]).exits(4).complains("has layout 9, this program reads 1");
    std::fs::write(shop.file(), &whole[..whole.len() / 2]).expect("written");
    shop.call(&["evaluate", "@"]).exits(4).complains("cannot read baseline");
    std::fs::write(shop.file(), &whole).expect("written");
    shop.rewrite(|json| {
        json["cells"][0]["values"]["MAP"].as_array_mut().expect("values").pop();
    });
    shop.call(&["evaluate", "@"]).exits(4).complains("values of 60 held_out queries");
    std::fs::write(shop.file(), &whole).expect("written");

    shop.call(&[
        "run",
        "@",
        "--set",
        "model.pooling=avg",
        "--set",
        &format!("features.table={}", shop.path().join("avg").display()),
    ])
    .exits(4)
    .complains("the model or its settings is not what it was measured on");
    shop.call(&["run", "@", "--set", "evaluate.metrics=[\"cosine\"]"])
        .exits(4)
        .complains("this run evaluated 0");
    std::fs::remove_file(
        std::fs::read_dir(shop.path().join("gallery/ship"))
            .expect("listed")
            .next()
            .expect("a file")
            .expect("an entry")
            .path(),
    )
    .expect("removed");
    shop.call(&["run", "@"])
        .exits(4)
        .complains("the gallery is not what it was measured on")
        .complains("imagedex baseline set");
    // Who reads only the report or CI's tests is told as well.
    let report =
        |file: &str| std::fs::read_to_string(shop.path().join("work/report").join(file)).expect("read");
    let told = "the gallery is not what it was measured on";
    for file in ["report.md", "report.html", "summary.json", "junit.xml"] {
        assert!(report(file).contains(told), "{file}");
    }
    assert!(
        report("report.md").contains("## Gate: FAILED, the baseline does not fit"),
        "{}",
        report("report.md")
    );
    assert!(report("junit.xml").contains(r#"tests="1" failures="0" errors="1""#), "{}", report("junit.xml"));
    // Accepted, it holds again.
    shop.call(&["baseline", "set", "@"]).exits(0);
    shop.call(&["run", "@"]).exits(0);
}
