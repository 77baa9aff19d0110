//! `imagedex plan`, as a person and a program see it.

use std::collections::HashSet;

use serde_json::Value;

use crate::support::{Said, imagedex};

fn plan(args: &[&str]) -> Said {
    imagedex(["plan"].iter().chain(args))
}

const USUAL: [&str; 4] = ["--pictures", "1e8", "--queries-per-second", "50"];

#[test]
fn each_line_of_the_table_names_its_basis_and_its_sources() {
    let said = plan(&USUAL)
        .exits(0)
        .says("100,000,000 pictures")
        .says("extract, VGG16 int8")
        .says("make bench-es-sizing")
        .says("make bench-peers-embed");
    let head = said.out.lines().find(|line| line.starts_with("search in Elasticsearch")).expect("a heading");
    assert_eq!(head.split_whitespace().skip(3).collect::<Vec<_>>(), ["exact", "int8_hnsw", "bbq_hnsw"]);
    let sources = said.out.lines().filter(|line| line.starts_with('[')).count();
    let lines: Vec<&str> = said.out.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(lines.len() > 20 && sources > 5, "{}", said.out);
    for line in lines {
        assert!(["measured", "proportional", "reasoned"].iter().any(|basis| line.contains(basis)), "{line}");
        let (_, numbers) = line.strip_suffix(']').expect(line).rsplit_once('[').expect(line);
        for number in numbers.split(", ") {
            assert!((1..=sources).contains(&number.parse().expect(line)), "{line}");
        }
    }
}

#[test]
fn however_large_the_numbers_columns_stay_apart() {
    let options = "exact,hnsw,int8_hnsw,int4_hnsw,bbq_hnsw";
    let said =
        plan(&["--pictures", "1e12", "--queries-per-second", "1e7", "--index-options", options]).exits(0);
    let (_, search) = said.out.split_once("search in Elasticsearch  ").expect("a heading");
    let lines: Vec<&str> = search.lines().skip(1).take_while(|line| !line.is_empty()).collect();
    assert!(lines.len() > 20, "{}", said.out);
    for line in lines {
        let cells = line.split("  ").filter(|cell| !cell.trim().is_empty()).count();
        assert_eq!(cells, 1 + options.split(',').count() + 1, "{line}");
    }
}

#[test]
fn the_json_says_the_same_and_adds_up() {
    let args =
        ["--json", "--replicas", "2", "--index-options", "hnsw,bbq_hnsw,hnsw", "--memory-per-node", "128GB"];
    let said = plan(&[&USUAL[..], &args].concat()).exits(0);
    let plan: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((&plan["wish"]["pictures"], &plan["model"]), (&1e8.into(), &"VGG16".into()));
    let mut lines = HashSet::new();
    for line in plan["extract"].as_array().expect("a list") {
        let (name, machine) = (&line["name"], &line["machine"]);
        assert_eq!(machine.is_string(), line["unit"] != "B", "{line}");
        assert!(lines.insert((name.to_string(), machine.to_string())), "{line}");
    }
    let options: Vec<&Value> = plan["search"].as_array().expect("a list").iter().collect();
    let names: Vec<&Value> = options.iter().map(|option| &option["index_option"]).collect();
    assert_eq!(names, ["hnsw", "bbq_hnsw"]);
    for option in options {
        let value = |name: &str| {
            let lines = option["lines"].as_array().expect("a list");
            let line = lines.iter().find(|line| line["name"] == name).expect(name);
            assert!(line["source"].as_str().is_some_and(|source| !source.is_empty()), "{line}");
            line["value"].as_f64().expect(name)
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b, "{a} {b}");
        close(value("disk_primary"), value("disk_a_document") * 1e8);
        close(value("disk_all"), value("disk_primary") * 3.0);
        close(value("memory_all"), value("memory_a_document") * 3e8);
        close(value("heap"), 31.0 * 1024.0f64.powi(3));
        close(value("cache"), (128e9 - value("heap")) * 0.85);
        close(value("cores"), value("core_ms_a_query") / 1e3 * 50.0 / 0.5);
        let by = ["nodes_by_memory", "nodes_by_disk", "nodes_by_shards", "nodes_by_cores"];
        let most = by.map(value).into_iter().fold(0.0, f64::max);
        assert_eq!(value("copies"), 3.0);
        assert_eq!(value("nodes"), (most + 1.0).max(3.0));
        assert_eq!(value("nodes_by_cores"), (value("cores") / 16.0).ceil());
    }
}

#[test]
fn what_no_plan_can_be_made_for_is_refused_with_one_error() {
    for (flag, value) in [
        ("--pictures", "0"),
        ("--pictures", "-5"),
        ("--pictures", "NaN"),
        ("--pictures", "inf"),
        ("--pictures", "1e30"),
        ("--queries-per-second", "0"),
        ("--queries-per-second", "-1"),
        ("--queries-per-second", "NaN"),
        ("--queries-per-second", "1e-300"),
        ("--dimensions", "0"),
        ("--dimensions", "5000"),
        ("--cores-per-node", "0"),
        ("--memory-per-node", "64"),
        ("--memory-per-node", "0GB"),
        ("--replicas", "-1"),
        ("--index-options", "int8"),
        ("--precision", "fp16"),
    ] {
        let kept = USUAL.chunks(2).filter(|pair| pair[0] != flag).flatten().copied();
        let given = format!("{flag}={value}");
        let args: Vec<&str> = kept.chain([given.as_str()]).collect();
        let said = plan(&args).exits(2).complains(flag).complains(value);
        assert_eq!((said.err.matches("error:").count(), said.out.as_str()), (1, ""), "{}", said.err);
    }
    plan(&["--pictures", "10"]).exits(2).complains("--queries-per-second");
}

#[test]
fn vectors_that_elasticsearch_refuses_get_no_plan() {
    for (dimensions, option) in [("32", "bbq_hnsw"), ("511", "int4_hnsw")] {
        let args = ["--dimensions", dimensions, "--index-options", option];
        let said = plan(&[&USUAL[..], &args].concat()).exits(2).complains("--dimensions").complains(option);
        assert_eq!(said.out, "");
    }
    plan(&[&USUAL[..], &["--dimensions", "32", "--index-options", "exact,int4_hnsw"]].concat()).exits(0);
}
