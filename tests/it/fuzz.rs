//! The fuzz targets (fuzz/targets.rs) on what they begin with, on damaged copies of it, and on every input that once broke one.

#[path = "../../fuzz/targets.rs"]
mod targets;

use targets::{TARGETS, Target};

/// The seeds, each cut short and with single bytes changed, the same in every run.
#[test]
fn every_target_keeps_its_promise_on_its_seeds_and_on_damaged_ones() {
    for Target { name, run, seeds } in TARGETS {
        let seeds = seeds();
        assert!(!seeds.is_empty(), "{name}");
        run(b"");
        for seed in &seeds {
            run(seed);
            let mut random = fastrand::Rng::with_seed(seed.len() as u64);
            for _ in 0..6 {
                let mut damaged = seed[..seed.len() - random.usize(..seed.len() / 2 + 1)].to_vec();
                for _ in 0..random.usize(..4) {
                    if !damaged.is_empty() {
                        let place = random.usize(..damaged.len());
                        damaged[place] = random.u8(..);
                    }
                }
                run(&damaged);
            }
        }
    }
}

/// The reader's arithmetic went below zero, and it panicked.
#[test]
fn a_parquet_manifest_whose_footer_is_longer_than_it_breaks_nothing() {
    let target = TARGETS.iter().find(|target| target.name == "manifest").expect("the target");
    let mut input = (target.seeds)().pop().expect("the Parquet one");
    let end = input.len();
    assert_eq!((input[0], &input[end - 4..]), (2, &b"PAR1"[..]));
    input[end - 8..end - 4].copy_from_slice(&u32::to_le_bytes(end as u32));
    (target.run)(&input);
}
