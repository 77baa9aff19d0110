//! The tests' small language: where things are, and how the program is run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The cache that `make setup` fills. Tests need it: they run the real model.
pub fn cache() -> PathBuf {
    let cache = std::env::var_os("IMAGEDEX_CACHE").map_or_else(|| root().join(".cache"), PathBuf::from);
    assert!(cache.join("models").is_dir(), "{} is not filled: run `make setup`", cache.display());
    cache
}

/// A folder of the shared test data, or `None`, said loudly, where it is absent. In CI it must be there.
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder = root().join("../shared/data").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI does not skip", folder.display());
    eprintln!("\n*** SKIPPED: {} is missing, so this test checked nothing ***\n", folder.display());
    None
}

/// A run of the program, and what it said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Fails the test unless the program ended with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Said {
        assert_eq!(self.code, code, "\n--- standard output\n{}\n--- standard error\n{}", self.out, self.err);
        self
    }

    /// Fails the test unless standard error holds `text`.
    #[track_caller]
    pub fn complains(self, text: &str) -> Said {
        assert!(self.err.contains(text), "expected `{text}` in\n{}", self.err);
        self
    }

    /// Fails the test unless standard output holds `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Said {
        assert!(self.out.contains(text), "expected `{text}` in\n{}", self.out);
        self
    }
}

/// Runs the program with the cache of this project.
pub fn imagedex<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagedex"));
    command.args(args).env("IMAGEDEX_CACHE", cache()).env_remove("IMAGEDEX_PIPELINE");
    // In CI the tests' own step has one.
    command.env_remove("GITHUB_STEP_SUMMARY");
    said(command.output().expect("the program starts"))
}

/// What a finished process said.
pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A temporary work place: pictures, a pipeline file, and what runs leave.
pub struct Shop {
    folder: tempfile::TempDir,
}

impl Shop {
    /// An empty gallery, an empty query folder, and a pipeline over them.
    pub fn new() -> Shop {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shop = Shop { folder };
        shop.pipeline("[input]\ngallery = 'gallery'\nqueries = 'queries'\n");
        shop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the pipeline file.
    pub fn pipeline(&self, text: &str) {
        std::fs::write(self.path("shop.toml"), text).expect("writable");
    }

    /// Draws a picture of 64 x 48 pixels; another `seed` gives another picture.
    pub fn picture(&self, name: &str, seed: u32) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("has a folder")).expect("writable");
        let image = image::RgbImage::from_fn(64, 48, |x, y| {
            let wave = |phase: u32| ((x * (3 + seed % 5) + y * (5 + seed % 7) + phase * seed) % 256) as u8;
            image::Rgb([wave(7), wave(31), wave(67)])
        });
        image.save(path).expect("writable");
    }

    /// Runs a command on the pipeline file.
    pub fn imagedex(&self, command: &str) -> Said {
        imagedex([command.into(), self.path("shop.toml").into_os_string()])
    }

    /// The books of the last run.
    pub fn run_json(&self) -> serde_json::Value {
        let path = self.path("runs/shop/run.json");
        serde_json::from_slice(&std::fs::read(path).expect("run.json")).expect("JSON")
    }
}
