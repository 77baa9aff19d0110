//! Intervals and tests equal scipy's on the same draws: tests/python/statistics.py repeats ours in numpy and hands them to scipy.

use imagedex::stages::evaluate::{
    Contender, DRAWS, Measure, Measures, Table, all_pairs, bootstrap, bootstrap_by_class, wilson,
};
use serde_json::{Value, json};

use crate::readers::{python, run_python};

/// Values of one query: skewed, and a share of hits. Their sums are exact, whatever the order: which draws equal the mean is
/// then no matter of rounding.
fn values(random: &mut fastrand::Rng) -> [f64; 2] {
    let skewed = (random.f64().powi(3) * 2_f64.powi(20)).round() / 2_f64.powi(20);
    [skewed, f64::from(u8::from(random.f64() < 0.3))]
}

fn measures([ap, hit]: [f64; 2]) -> Measures {
    let mut measures = Measures::of(&[true], 1, &[1]);
    (measures.ap, measures.at[0].precision) = (ap, hit);
    measures
}

#[test]
fn intervals_and_tests_are_scipys_on_the_same_draws() {
    let Some(python) = python() else { return };
    let mut random = fastrand::Rng::with_seed(11);
    let mut cases = Vec::new();
    for n in [2, 5, 12, 40, 150] {
        let a: Vec<[f64; 2]> = (0..n).map(|_| values(&mut random)).collect();
        // Mostly like the first, so that some differences are 0.
        let b: Vec<[f64; 2]> =
            a.iter().map(|row| if random.f64() < 0.4 { *row } else { values(&mut random) }).collect();
        let intervals = bootstrap(&Table::new(a.iter().map(<[f64; 2]>::as_slice)));
        let (of_a, of_b): (Vec<Measures>, Vec<Measures>) =
            (a.iter().copied().map(measures).collect(), b.iter().copied().map(measures).collect());
        let (a_refs, b_refs): (Vec<&Measures>, Vec<&Measures>) =
            (of_a.iter().collect(), of_b.iter().collect());
        let contenders =
            [Contender { name: "a", queries: &a_refs }, Contender { name: "b", queries: &b_refs }];
        let compared = all_pairs(&contenders, &[Measure::Ap, Measure::Precision(1)]);
        let hits = a.iter().filter(|row| row[1] > 0.0).count();
        let share = wilson(hits, n);
        for column in 0..2 {
            cases.push(json!({
                "a": a.iter().map(|row| row[column]).collect::<Vec<_>>(),
                "b": b.iter().map(|row| row[column]).collect::<Vec<_>>(),
                "draws": DRAWS,
                "interval": intervals[column],
                "comparison": compared[column],
                "wilson": (column == 1).then_some(share),
            }));
        }
    }
    // Means over classes, of very different sizes; one of them has a single query.
    for sizes in [vec![1, 4, 7], vec![20, 3, 1, 16]] {
        let n: usize = sizes.iter().sum();
        let rows: Vec<[f64; 1]> = (0..n).map(|_| [values(&mut random)[0]]).collect();
        let mut ranges = Vec::new();
        for size in &sizes {
            let next = ranges.last().map_or(0, |range: &std::ops::Range<usize>| range.end);
            ranges.push(next..next + size);
        }
        let class_of = |i| ranges.iter().position(|range| range.contains(&i));
        let table = Table::new(rows.iter().map(<[f64; 1]>::as_slice));
        cases.push(json!({
            "values": rows.iter().map(|row| row[0]).collect::<Vec<_>>(),
            "classes": (0..n).map(class_of).collect::<Vec<_>>(),
            "draws": DRAWS,
            "interval": bootstrap_by_class(&table, &ranges)[0],
        }));
    }
    let input = cases.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let checked = run_python(&python, "statistics.py", &[], std::path::Path::new("."), &input);
    assert_eq!(checked.len(), cases.len());
    for (case, checked) in cases.iter().zip(&checked) {
        for (name, difference) in checked.as_object().unwrap() {
            let difference = difference.as_f64().unwrap_or(f64::INFINITY);
            assert!(difference < 1e-9, "{name} differs by {difference} in {case}");
        }
    }
}
