//! The examples of docs/operations, each held to what its own tool says of it. `make setup-operations` brings the tools.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Shop, cache, imagedex, root};

fn example(name: &str) -> PathBuf {
    root().join("docs/operations").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program of set-up, or `None`, said loudly; in CI it must be there.
fn tool(name: &str) -> Option<Command> {
    let file = cache().join("operations").join(name);
    if file.is_file() {
        return Some(Command::new(file));
    }
    let missing = format!("{} is missing: run `make setup-operations`", file.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}; CI does not skip");
    eprintln!("\n*** SKIPPED: {missing}, so this test checked nothing ***\n");
    None
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("it starts");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}\n{}{}", said(&output.stdout), said(&output.stderr));
    output
}

/// Six pictures; every kind of metric is written.
fn shop() -> Shop {
    let shop = Shop::new();
    for seed in 0..6 {
        let class = if seed < 3 { "stripes" } else { "waves" };
        shop.picture(&format!("gallery/{class}/{seed}.png"), seed * 7 + 1);
    }
    shop.pipeline(
        "[input]\ngallery = 'gallery'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n\
         [gate.cosine]\n'P@1' = 0.0\n[report]\nprometheus = 'shop.prom'\n",
    );
    shop
}

#[test]
fn the_line_of_cron_runs_and_says_how_it_ended() {
    let text = read(&example("imagedex.cron"));
    let line = text.lines().find(|line| line.starts_with(|c: char| c.is_ascii_digit())).expect("a job");
    let fields: Vec<&str> = line.splitn(7, ' ').collect();
    assert_eq!((&fields[..6], line.contains('%')), (&["30", "2", "*", "*", "*", "imagedex"][..], false));
    // Where cron would find them: the program, and a logger that keeps what it hears.
    let shop = shop();
    let bin = shop.path("bin");
    std::fs::create_dir(&bin).expect("writable");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imagedex"), bin.join("imagedex")).expect("linked");
    let heard = shop.path("heard");
    let logger = format!(
        "#!/bin/bash\n[ \"$1\" = -t ] || exit 9\nshift 2\nif [ $# -gt 0 ]; then echo \"$@\"; else cat; fi >> '{}'\n",
        heard.display()
    );
    std::fs::write(bin.join("logger"), logger).expect("writable");
    succeeds(Command::new("chmod").arg("+x").arg(bin.join("logger")));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a path"));
    let pipeline = shop.path("shop.toml").display().to_string();
    let run = |pipeline: &str| {
        let job = fields[6].replace("/etc/imagedex/shop.toml", pipeline);
        succeeds(
            Command::new("/bin/bash").args(["-c", &job]).env("PATH", &path).env("IMAGEDEX_CACHE", cache()),
        );
        read(&heard)
    };
    assert!(run(&pipeline).ends_with("ended with 0\n"), "{}", read(&heard));
    let heard = run("nowhere.toml");
    assert!(heard.ends_with("ended with 2\n") && heard.contains("nowhere.toml"), "{heard}");
}

#[test]
fn systemd_takes_service_and_timer() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "systemd-analyze is missing, and CI does not skip");
        eprintln!("\n*** SKIPPED: systemd-analyze is missing, so this test checked nothing ***\n");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["imagedex.service", "imagedex.timer"] {
        // The program must be where the unit says, so it is told where this one is.
        let text = read(&example(name)).replace("/usr/local/bin/imagedex", env!("CARGO_BIN_EXE_imagedex"));
        std::fs::write(folder.path().join(name), text).expect("writable");
    }
    let verify = |name: &str| {
        let output = succeeds(Command::new("systemd-analyze").arg("verify").arg(folder.path().join(name)));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for name in ["imagedex.service", "imagedex.timer"] {
        // Warnings, such as an unknown key, do not change its exit code. What it says of other units is not ours.
        let said = verify(name);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("imagedex")).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
    std::fs::write(folder.path().join("imagedex.timer"), "[Timer]\nOnCalender=daily\nOnCalendar=daily\n")
        .expect("writable");
    assert!(verify("imagedex.timer").contains("OnCalender"), "it would have said so");
}

#[test]
fn github_and_kubernetes_take_theirs() {
    let Some(mut schema) = tool("python/bin/check-jsonschema") else { return };
    succeeds(
        schema.args(["--builtin-schema", "vendor.github-workflows"]).arg(example("github-workflow.yml")),
    );
    let Some(mut kubernetes) = tool("python/bin/kubernetes-validate") else { return };
    succeeds(kubernetes.arg("--strict").arg(example("kubernetes-cronjob.yaml")));
    // They would have said so.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wrong = |name: &str, from: &str, to: &str| {
        let (text, file) = (read(&example(name)), folder.path().join(name));
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replace(from, to)).expect("writable");
        file
    };
    let (Some(mut schema), Some(mut kubernetes)) =
        (tool("python/bin/check-jsonschema"), tool("python/bin/kubernetes-validate"))
    else {
        return;
    };
    schema.args(["--builtin-schema", "vendor.github-workflows"]);
    let file = wrong("github-workflow.yml", "timeout-minutes: 60", "timeout: 60");
    assert!(!schema.arg(file).output().expect("it starts").status.success());
    let file = wrong("kubernetes-cronjob.yaml", "backoffLimit", "backOffLimit");
    assert!(!kubernetes.arg("--strict").arg(file).output().expect("it starts").status.success());
}

#[test]
fn alerts_fire_and_ask_for_metrics_that_a_run_writes() {
    let Some(mut promtool) = tool("bin/promtool") else { return };
    succeeds(promtool.args(["check", "rules"]).arg(example("alerts.yml")));
    succeeds(Command::new(promtool.get_program()).args(["test", "rules"]).arg(example("alerts.test.yml")));
    let shop = shop();
    shop.imagedex("run").exits(0);
    let file = shop.path("shop.prom");
    let metrics = read(&file);
    let mut check = Command::new(promtool.get_program());
    succeeds(check.args(["check", "metrics"]).stdin(std::fs::File::open(&file).expect("the metrics")));
    let words = |text: &str| -> BTreeSet<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with("imagedex_"));
        words.map(str::to_owned).collect()
    };
    let (asked, written) = (words(&read(&example("alerts.yml"))), words(&metrics));
    assert!(asked.len() >= 4 && asked.is_subset(&written), "{asked:?}\n{written:?}");
    // And every alert has a test.
    let (rules, tests) = (read(&example("alerts.yml")), read(&example("alerts.test.yml")));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
    }
    // Each leads to a chapter of the runbook.
    let manual = read(&root().join("docs/operations.md"));
    let anchors: Vec<String> = manual
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches(['#', ' ']).to_lowercase().replace(':', "").replace(' ', "-"))
        .collect();
    for anchor in rules.lines().filter_map(|line| line.split_once("runbook: docs/operations.md#")) {
        assert!(anchors.iter().any(|known| known == anchor.1), "{} is none of {anchors:?}", anchor.1);
    }
}

#[test]
fn messages_in_json_have_the_fields_of_the_sample() {
    let manual = read(&root().join("docs/operations.md"));
    let sample = manual.split("```json\n").nth(1).and_then(|rest| rest.lines().next()).expect("a sample");
    let shop = shop();
    std::fs::write(shop.path("gallery/waves/broken.png"), "no picture").expect("writable");
    let file = shop.path("shop.toml").display().to_string();
    let said = imagedex(["run", &file, "--log-format", "json", "--set", "input.max_failures=0"]).exits(3);
    let keys = |line: &str| -> (Vec<String>, Vec<String>) {
        let value: Value = serde_json::from_str(line).expect("JSON");
        let of = |value: &Value| value.as_object().expect("an object").keys().cloned().collect();
        (of(&value), of(&value["fields"]))
    };
    let lines: Vec<&str> = said.err.lines().collect();
    assert!(lines.len() >= 2, "{}", said.err);
    for line in &lines {
        assert_eq!(keys(line), keys(sample), "{line}");
    }
    assert!(lines.iter().any(|line| line.contains("\"level\":\"ERROR\"")), "{}", said.err);
    let doctor = shop.imagedex("doctor");
    assert_eq!(doctor.code, 0, "{}{}", doctor.out, doctor.err);
}
