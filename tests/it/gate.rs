//! Minimum values from the pipeline file to the exit code.

use crate::support::Shop;

const INPUT: &str = "[input]\ngallery = 'gallery'\n";

/// Two classes of three, each picture a query among the others: whatever the features, one hit is at most half of the
/// two relevant pictures, and ten hits are all pictures.
fn shop(gate: &str) -> Shop {
    let shop = Shop::new();
    for seed in 0..6 {
        let class = if seed < 3 { "stripes" } else { "waves" };
        shop.picture(&format!("gallery/{class}/{seed}.png"), seed * 7 + 1);
    }
    shop.pipeline(&format!("{INPUT}{gate}"));
    shop
}

fn report(shop: &Shop, file: &str) -> String {
    std::fs::read_to_string(shop.path("runs/shop/report").join(file)).expect("a report")
}

#[test]
fn a_gate_that_fails_is_told_everywhere_and_ends_with_1() {
    let shop =
        shop("[gate.cosine]\n'R@1' = 0.6\n'hit@10' = 1\n'engine recall@10' = 1\n[gate.l1]\n'R@1' = 0.7\n");
    let said = shop.imagedex("run").exits(1);
    let sentence = said.out.lines().find(|line| line.starts_with("gate")).expect("a sentence").to_owned();
    assert!(sentence.starts_with("gate FAILED: flat cosine R@1 0."), "{sentence}");
    assert!(sentence.contains(" is below 0.6; flat l1 R@1 0."), "{sentence}");
    assert!(sentence.ends_with(" is below 0.7"), "{sentence}");
    assert_eq!(shop.run_json()["exit_code"], 1);

    let summary: serde_json::Value = serde_json::from_str(&report(&shop, "summary.json")).expect("JSON");
    let checks = summary["gate"]["checks"].as_array().expect("checks");
    let of = |check: &serde_json::Value| {
        let text = |key: &str| check[key].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {} {}",
            text("engine"),
            text("mode"),
            text("metric"),
            text("measure"),
            check["passed"]
        )
    };
    assert_eq!(
        checks.iter().map(of).collect::<Vec<_>>(),
        [
            "flat leave_one_out cosine R@1 false",
            "flat leave_one_out cosine engine recall@10 true",
            "flat leave_one_out cosine hit@10 true",
            "flat leave_one_out l1 R@1 false",
        ]
    );
    let markdown = report(&shop, "report.md");
    assert!(markdown.contains("## Gate: FAILED, 2 of 4 checks\n\n- **flat cosine R&#64;1 0."), "{markdown}");
    assert!(
        markdown.contains("| flat, leave\\_one\\_out: cosine hit&#64;10 | 1.0000 | 1 | yes |"),
        "{markdown}"
    );

    shop.imagedex("report").exits(0).says(&sentence);
    shop.imagedex("evaluate").exits(1).says(&sentence);
    shop.pipeline(&format!("{INPUT}[gate.cosine]\n'R@1' = 0\n'hit@10' = 1\n"));
    shop.imagedex("evaluate").exits(0).says("gate: 2 of 2 checks hold\n");
    shop.imagedex("run").exits(0);
    shop.pipeline(INPUT);
    let said = shop.imagedex("run").exits(0);
    assert!(!said.out.contains("gate"), "{}", said.out);
    assert!(!report(&shop, "summary.json").contains("\"gate\""));
}

#[test]
fn a_gate_on_queries_that_cannot_be_evaluated_fails() {
    let shop = shop("label = 'none'\n[gate.cosine]\n'P@1' = 0\n");
    shop.imagedex("run").exits(1).says("flat cosine P@1 was not measured: no query could be evaluated");
}

#[test]
fn a_gate_that_cannot_be_checked_is_refused_before_any_work() {
    for (gate, complaint) in [
        (
            "[gate.cosine]\n'P@2' = 0.6\n",
            "shop.toml: gate.cosine.\"P@2\": 2 is not one of evaluate.k = [1, 5, 10]",
        ),
        (
            "[gate.cosine]\n'precison@1' = 0.6\n",
            "gate.cosine.\"precison@1\": no such measure; known here: P@1",
        ),
        ("[gate.cosine]\n'P@1' = 60\n", "gate.cosine.\"P@1\": 60 is not between 0 and 1"),
        ("[gate.manhattan]\n'P@1' = 0.6\n", "shop.toml:3: unknown key `manhattan`; known here: cosine"),
        (
            "[evaluate]\nmetrics = ['l2']\n[gate.l1]\nMAP = 0.6\n",
            "gate.l1: not one of evaluate.metrics = [l2]",
        ),
    ] {
        let shop = shop(gate);
        shop.imagedex("run").exits(2).complains(complaint);
        assert!(!shop.path("runs").exists(), "nothing was begun");
    }
}
