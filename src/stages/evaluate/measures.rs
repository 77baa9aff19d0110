//! The measures of one ranking against labels, and their means. docs/metrics.md states each with a worked example.
//!
//! A ranking is the relevance of each hit, best first. What a newcomer would get wrong: `recall@k` of
//! metric-learning papers is `hit@k` here; `R@k` is the share of all relevant pictures, which `min(1, k / relevant)`
//! bounds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the [`Measures`], shown by the name that reports print and pipeline files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Precision(usize),
    Hit(usize),
    Recall(usize),
    Ndcg(usize),
    Ap,
    ApAtR,
    RPrecision,
    Rr,
}

impl Measure {
    /// All that there are at these cut-offs.
    pub fn all(ks: &[usize]) -> Vec<Measure> {
        let at = [Measure::Precision, Measure::Hit, Measure::Recall, Measure::Ndcg];
        let at = at.into_iter().flat_map(|at| ks.iter().map(move |&k| at(k)));
        at.chain([Measure::Ap, Measure::ApAtR, Measure::RPrecision, Measure::Rr]).collect()
    }

    /// Its value, if its cut-off is one of the cut-offs.
    pub fn of(self, measures: &Measures) -> Option<f64> {
        Some(match self {
            Measure::Precision(k) => measures.at(k)?.precision,
            Measure::Hit(k) => measures.at(k)?.hit,
            Measure::Recall(k) => measures.at(k)?.recall,
            Measure::Ndcg(k) => measures.at(k)?.ndcg,
            Measure::Ap => measures.ap,
            Measure::ApAtR => measures.ap_at_r,
            Measure::RPrecision => measures.r_precision,
            Measure::Rr => measures.rr,
        })
    }
}

/// By the names of their means.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::Precision(k) => write!(f, "P@{k}"),
            Measure::Hit(k) => write!(f, "hit@{k}"),
            Measure::Recall(k) => write!(f, "R@{k}"),
            Measure::Ndcg(k) => write!(f, "nDCG@{k}"),
            Measure::Ap => f.write_str("MAP"),
            Measure::ApAtR => f.write_str("MAP@R"),
            Measure::RPrecision => f.write_str("R-prec"),
            Measure::Rr => f.write_str("MRR"),
        }
    }
}

/// The measures of one query, or their means over several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Average precision; its mean is MAP.
    #[serde(rename = "map")]
    pub ap: f64,
    /// Average precision within the first R hits, R = number of relevant pictures; its mean is MAP@R.
    #[serde(rename = "map_at_r")]
    pub ap_at_r: f64,
    /// Share of relevant pictures among the first R hits.
    pub r_precision: f64,
    /// 1 / rank of the first relevant hit, or 0; its mean is MRR.
    #[serde(rename = "mrr")]
    pub rr: f64,
    /// One entry for each cut-off, ascending.
    pub at: Vec<AtK>,
}

/// The measures of the first k hits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AtK {
    pub k: usize,
    /// Whether a relevant picture is among them: 1 or 0.
    pub hit: f64,
    /// Relevant hits / k, also where fewer than k hits exist.
    pub precision: f64,
    /// Relevant hits / relevant pictures.
    pub recall: f64,
    /// The greatest recall that k hits allow: min(1, k / relevant).
    pub recall_ceiling: f64,
    /// Discounted cumulative gain / that of an ideal ranking; gains 1 and 0, discount 1 / log2(rank + 1).
    pub ndcg: f64,
}

impl Measures {
    /// Of a ranking with `relevant` relevant pictures in all, of which some may not have been found.
    ///
    /// `relevant` is at least 1: a query without a relevant picture has no measures.
    pub fn of(ranked: &[bool], relevant: usize, ks: &[usize]) -> Measures {
        assert!(relevant > 0, "a query without a relevant picture has no measures");
        let of_all = relevant as f64;
        let mut found = 0;
        let (mut ap, mut ap_at_r, mut rr) = (0.0, 0.0, 0.0);
        for (rank, _) in (1..).zip(ranked).filter(|(_, is_relevant)| **is_relevant) {
            found += 1;
            let precision = f64::from(found) / rank as f64;
            ap += precision;
            if rank <= relevant {
                ap_at_r += precision;
            }
            if found == 1 {
                rr = 1.0 / rank as f64;
            }
        }
        let r_precision = count(ranked, relevant) as f64 / of_all;
        let at = ks.iter().map(|&k| AtK::of(ranked, relevant, k)).collect();
        Measures { ap: ap / of_all, ap_at_r: ap_at_r / of_all, r_precision, rr, at }
    }

    /// The mean of each measure, or nothing of nothing. Sums go from first to last, so equal input gives equal bits.
    pub fn mean<'a>(of: impl IntoIterator<Item = &'a Measures>) -> Option<Measures> {
        let mut count = 0.0;
        let mut sum: Option<Measures> = None;
        for measures in of {
            count += 1.0;
            sum = Some(match sum {
                None => measures.clone(),
                Some(sum) => sum.zip(measures, |a, b| a + b),
            });
        }
        sum.map(|sum| sum.zip(&sum, |sum, _| sum / count))
    }

    /// All of them in a row; [`Measures::with_values`] reads it back.
    pub fn values(&self) -> Vec<f64> {
        let at = self.at.iter().flat_map(|at| [at.hit, at.precision, at.recall, at.recall_ceiling, at.ndcg]);
        [self.ap, self.ap_at_r, self.r_precision, self.rr].into_iter().chain(at).collect()
    }

    /// The same cut-offs with other values, in the order of [`Measures::values`].
    pub fn with_values(&self, values: &[f64]) -> Measures {
        let mut values = values.iter().copied();
        let mut next = || values.next().unwrap_or_default();
        Measures {
            ap: next(),
            ap_at_r: next(),
            r_precision: next(),
            rr: next(),
            at: self
                .at
                .iter()
                .map(|at| AtK {
                    k: at.k,
                    hit: next(),
                    precision: next(),
                    recall: next(),
                    recall_ceiling: next(),
                    ndcg: next(),
                })
                .collect(),
        }
    }

    /// Each measure times `factor`.
    pub fn scaled(&self, factor: f64) -> Measures {
        self.zip(self, |measure, _| measure * factor)
    }

    /// The measures of cut-off `k`, if it is one of the cut-offs.
    pub fn at(&self, k: usize) -> Option<&AtK> {
        self.at.iter().find(|at| at.k == k)
    }

    fn zip(&self, other: &Measures, f: impl Fn(f64, f64) -> f64) -> Measures {
        let at = self.at.iter().zip(&other.at).map(|(a, b)| AtK {
            k: a.k,
            hit: f(a.hit, b.hit),
            precision: f(a.precision, b.precision),
            recall: f(a.recall, b.recall),
            recall_ceiling: f(a.recall_ceiling, b.recall_ceiling),
            ndcg: f(a.ndcg, b.ndcg),
        });
        Measures {
            ap: f(self.ap, other.ap),
            ap_at_r: f(self.ap_at_r, other.ap_at_r),
            r_precision: f(self.r_precision, other.r_precision),
            rr: f(self.rr, other.rr),
            at: at.collect(),
        }
    }
}

impl AtK {
    fn of(ranked: &[bool], relevant: usize, k: usize) -> AtK {
        let found = count(ranked, k);
        let discount = |rank: usize| 1.0 / (rank as f64 + 1.0).log2();
        let gain: f64 = (1..=k)
            .zip(ranked)
            .filter(|(_, is_relevant)| **is_relevant)
            .map(|(rank, _)| discount(rank))
            .sum();
        let ideal: f64 = (1..=k.min(relevant)).map(discount).sum();
        AtK {
            k,
            hit: if found > 0 { 1.0 } else { 0.0 },
            precision: found as f64 / k as f64,
            recall: found as f64 / relevant as f64,
            recall_ceiling: (k as f64 / relevant as f64).min(1.0),
            ndcg: gain / ideal,
        }
    }
}

/// Relevant hits among the first `k`.
fn count(ranked: &[bool], k: usize) -> usize {
    ranked.iter().take(k).filter(|is_relevant| **is_relevant).count()
}

/// A measure over all orders of the hits that tie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    pub worst: f64,
    /// The mean over all orders, each as likely as any other.
    pub expected: f64,
    pub best: f64,
}

/// What ties do to the first k hits of one query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TieAtK {
    /// Whether hits k and k + 1 tie, so that another order would give other first k hits.
    pub crosses: bool,
    pub hit: Bounds,
    pub precision: Bounds,
}

impl TieAtK {
    /// Of a ranking and its scores, descending. The tie that reaches over rank k has `m` hits, `r` of them relevant;
    /// the first k hits take `c` of the `m`.
    pub fn of(ranked: &[bool], scores: &[f32], k: usize) -> TieAtK {
        let crosses = k < scores.len() && scores[k - 1] == scores[k];
        let (from, to) = if crosses {
            let tied = scores[k];
            (scores.partition_point(|score| *score > tied), scores.partition_point(|score| *score >= tied))
        } else {
            (k.min(ranked.len()), k.min(ranked.len()))
        };
        let before = count(ranked, from);
        let (m, r) = (to - from, count(&ranked[from..], to - from));
        let c = if crosses { k - from } else { 0 };
        let (worst, best) = (before + c.saturating_sub(m - r), before + c.min(r));
        let share = if crosses { c as f64 / m as f64 } else { 0.0 };
        let expected = before as f64 + share * r as f64;
        let hit = |found: usize| if found > 0 { 1.0 } else { 0.0 };
        // With nothing found before the tie: 1 - (ways to take c of the m - r irrelevant) / (ways to take c of m).
        let missed: f64 = (0..c).map(|i| (m - r).saturating_sub(i) as f64 / (m - i) as f64).product();
        let expected_hit = if before > 0 { 1.0 } else { 1.0 - missed };
        let of_k = |found: f64| found / k as f64;
        TieAtK {
            crosses,
            hit: Bounds { worst: hit(worst), expected: expected_hit, best: hit(best) },
            precision: Bounds {
                worst: of_k(worst as f64),
                expected: of_k(expected),
                best: of_k(best as f64),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A ranking written as `1` for relevant and `0` for not.
    fn ranking(text: &str) -> Vec<bool> {
        text.chars().map(|c| c == '1').collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} for {b}");
    }

    /// The worked example of docs/metrics.md: relevant at ranks 2 and 5, three relevant in all.
    #[test]
    fn the_worked_example() {
        let measures = Measures::of(&ranking("01001"), 3, &[1, 2, 5]);
        close(measures.ap, (1.0 / 2.0 + 2.0 / 5.0) / 3.0);
        close(measures.ap_at_r, (1.0 / 2.0) / 3.0);
        close(measures.r_precision, 1.0 / 3.0);
        close(measures.rr, 0.5);
        let [one, two, five] = &measures.at[..] else { panic!("three cut-offs") };
        assert_eq!((one.hit, one.precision, one.recall, one.ndcg), (0.0, 0.0, 0.0, 0.0));
        assert_eq!((two.hit, two.precision), (1.0, 0.5));
        close(two.recall, 1.0 / 3.0);
        close(two.recall_ceiling, 2.0 / 3.0);
        close(two.ndcg, (1.0 / 3f64.log2()) / (1.0 + 1.0 / 3f64.log2()));
        close(five.precision, 0.4);
        close(five.recall, 2.0 / 3.0);
        close(five.recall_ceiling, 1.0);
        close(five.ndcg, (1.0 / 3f64.log2() + 1.0 / 6f64.log2()) / (1.0 + 1.0 / 3f64.log2() + 0.5));
    }

    #[test]
    fn precision_divides_by_k_where_fewer_hits_exist() {
        let measures = Measures::of(&ranking("11"), 2, &[10]);
        close(measures.at[0].precision, 0.2);
        close(measures.at[0].ndcg, 1.0);
        close(Measures::of(&[], 2, &[10]).ap, 0.0);
    }

    #[test]
    fn means_are_means() {
        let (a, b) = (Measures::of(&ranking("1"), 1, &[1]), Measures::of(&ranking("01"), 1, &[1]));
        let mean = Measures::mean([&a, &b]).expect("of two");
        assert_eq!((mean.ap, mean.rr, mean.at[0].hit), (0.75, 0.75, 0.5));
        assert_eq!(Measures::mean([]), None);
    }

    struct Judged {
        ranked: &'static str,
        relevant: usize,
        ap: f64,
        r_precision: f64,
        rr: f64,
        hit: [f64; 3],
        precision: [f64; 3],
        recall: [f64; 3],
        ndcg: [f64; 3],
    }

    /// Computed by trec_eval itself, through the Python package pytrec_eval-terrier 0.5.11: `map`, `Rprec`,
    /// `recip_rank`, and `success`, `P`, `recall`, `ndcg_cut` at 1, 5 and 10. Its scores were made from ranks, since it
    /// breaks ties by document id descending.
    #[rustfmt::skip]
    #[expect(clippy::approx_constant, reason = "figures of another program, as it printed them")]
    const TREC_EVAL: [Judged; 10] = [
        Judged { ranked: "1", relevant: 1, ap: 1.0, r_precision: 1.0, rr: 1.0, hit: [1.0, 1.0, 1.0], precision: [1.0, 0.2, 0.1], recall: [1.0, 1.0, 1.0], ndcg: [1.0, 1.0, 1.0] },
        Judged { ranked: "01001", relevant: 2, ap: 0.45, r_precision: 0.5, rr: 0.5, hit: [0.0, 1.0, 1.0], precision: [0.0, 0.4, 0.2], recall: [0.0, 1.0, 1.0], ndcg: [0.0, 0.6240505200038379, 0.6240505200038379] },
        Judged { ranked: "000000001000", relevant: 1, ap: 0.1111111111111111, r_precision: 0.0, rr: 0.1111111111111111, hit: [0.0, 0.0, 1.0], precision: [0.0, 0.0, 0.1], recall: [0.0, 0.0, 1.0], ndcg: [0.0, 0.0, 0.3010299956639812] },
        Judged { ranked: "010000000000", relevant: 3, ap: 0.16666666666666666, r_precision: 0.3333333333333333, rr: 0.5, hit: [0.0, 1.0, 1.0], precision: [0.0, 0.2, 0.1], recall: [0.0, 0.3333333333333333, 0.3333333333333333], ndcg: [0.0, 0.2960819109658652, 0.2960819109658652] },
        Judged { ranked: "111111111111", relevant: 12, ap: 1.0, r_precision: 1.0, rr: 1.0, hit: [1.0, 1.0, 1.0], precision: [1.0, 1.0, 1.0], recall: [0.08333333333333333, 0.4166666666666667, 0.8333333333333334], ndcg: [1.0, 1.0, 1.0] },
        Judged { ranked: "00010001011001000011", relevant: 7, ap: 0.3123669563519188, r_precision: 0.14285714285714285, rr: 0.25, hit: [0.0, 1.0, 1.0], precision: [0.0, 0.2, 0.3], recall: [0.0, 0.14285714285714285, 0.42857142857142855], ndcg: [0.0, 0.14606834984270645, 0.28455370088225] },
        Judged { ranked: "00010010000100000000", relevant: 6, ap: 0.13095238095238096, r_precision: 0.16666666666666666, rr: 0.25, hit: [0.0, 1.0, 1.0], precision: [0.0, 0.2, 0.2], recall: [0.0, 0.16666666666666666, 0.3333333333333333], ndcg: [0.0, 0.14606834984270645, 0.23119123707664177] },
        Judged { ranked: "000", relevant: 4, ap: 0.0, r_precision: 0.0, rr: 0.0, hit: [0.0, 0.0, 0.0], precision: [0.0, 0.0, 0.0], recall: [0.0, 0.0, 0.0], ndcg: [0.0, 0.0, 0.0] },
        Judged { ranked: "001011000010000111010111010111", relevant: 15, ap: 0.41747262733086, r_precision: 0.26666666666666666, rr: 0.3333333333333333, hit: [0.0, 1.0, 1.0], precision: [0.0, 0.4, 0.3], recall: [0.0, 0.13333333333333333, 0.2], ndcg: [0.0, 0.30078518014914984, 0.2735872697693364] },
        Judged { ranked: "000000000000", relevant: 2, ap: 0.0, r_precision: 0.0, rr: 0.0, hit: [0.0, 0.0, 0.0], precision: [0.0, 0.0, 0.0], recall: [0.0, 0.0, 0.0], ndcg: [0.0, 0.0, 0.0] },
    ];

    #[test]
    fn every_measure_agrees_with_trec_eval() {
        for judged in TREC_EVAL {
            let measures = Measures::of(&ranking(judged.ranked), judged.relevant, &[1, 5, 10]);
            close(measures.ap, judged.ap);
            close(measures.r_precision, judged.r_precision);
            close(measures.rr, judged.rr);
            for (i, at) in measures.at.iter().enumerate() {
                close(at.hit, judged.hit[i]);
                close(at.precision, judged.precision[i]);
                close(at.recall, judged.recall[i]);
                close(at.ndcg, judged.ndcg[i]);
            }
        }
    }

    #[test]
    fn ties_give_the_range_over_all_orders() {
        // Ranks 2 to 5 tie, two of the four are relevant, and the first three hits take two of them.
        let scores = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1];
        let tie = TieAtK::of(&ranking("001010"), &scores, 3);
        assert!(tie.crosses);
        close(tie.precision.worst, 0.0);
        close(tie.precision.expected, 1.0 / 3.0);
        close(tie.precision.best, 2.0 / 3.0);
        // 1 - (2 ways to take irrelevant, 1 of 6 pairs).
        close(tie.hit.expected, 5.0 / 6.0);
        assert_eq!((tie.hit.worst, tie.hit.best), (0.0, 1.0));

        // Relevant before the tie: a hit whatever the order.
        let tie = TieAtK::of(&ranking("101010"), &scores, 2);
        assert_eq!((tie.hit.worst, tie.hit.expected, tie.hit.best), (1.0, 1.0, 1.0));
        close(tie.precision.expected, (1.0 + 2.0 / 4.0) / 2.0);
        // Three of the four places: at least one relevant.
        close(TieAtK::of(&ranking("001010"), &scores, 4).precision.worst, 1.0 / 4.0);
    }

    #[test]
    fn without_a_tie_across_rank_k_all_three_are_the_measure() {
        for k in [1, 5, 6, 10] {
            let scores = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1];
            let tie = TieAtK::of(&ranking("001010"), &scores, k);
            let at = &Measures::of(&ranking("001010"), 2, &[k]).at[0];
            assert!(!tie.crosses, "{k}");
            for (bounds, measure) in [(tie.hit, at.hit), (tie.precision, at.precision)] {
                assert_eq!((bounds.worst, bounds.expected, bounds.best), (measure, measure, measure), "{k}");
            }
        }
    }

    /// Every order of a small tie, counted out.
    #[test]
    fn expected_values_are_means_over_orders() {
        let (scores, relevant) = ([1.0f32, 0.5, 0.5, 0.5, 0.5], [false, true, false, true, false]);
        let k = 3;
        let (mut hits, mut precisions, mut orders) = (0.0, 0.0, 0.0);
        for a in 1..5 {
            for b in (1..5).filter(|b| *b != a) {
                let found = usize::from(relevant[0]) + usize::from(relevant[a]) + usize::from(relevant[b]);
                hits += f64::from(u8::from(found > 0));
                precisions += found as f64 / k as f64;
                orders += 1.0;
            }
        }
        let tie = TieAtK::of(&relevant, &scores, k);
        close(tie.hit.expected, hits / orders);
        close(tie.precision.expected, precisions / orders);
    }

    proptest! {
        /// Between 0 and 1, no measure above what it cannot exceed, and none that falls with k where it must not.
        #[test]
        fn measures_stay_within_their_bounds(ranked in vec(any::<bool>(), 0..40), unfound in 0usize..9) {
            let relevant = ranked.iter().filter(|r| **r).count() + unfound;
            prop_assume!(relevant > 0);
            let measures = Measures::of(&ranked, relevant, &[1, 2, 5, 10, 50]);
            for value in measures.values() {
                prop_assert!((0.0..=1.0).contains(&value), "{measures:?}");
            }
            prop_assert!(measures.ap_at_r <= measures.ap + 1e-12);
            prop_assert!(measures.ap_at_r <= measures.r_precision + 1e-12);
            for at in &measures.at {
                prop_assert!(at.recall <= at.recall_ceiling + 1e-12);
                prop_assert!(at.precision <= at.hit && at.recall <= at.hit);
            }
            for pair in measures.at.windows(2) {
                prop_assert!(pair[0].hit <= pair[1].hit && pair[0].recall <= pair[1].recall);
                prop_assert!(pair[0].recall_ceiling <= pair[1].recall_ceiling);
            }
            let perfect = Measures::of(&vec![true; relevant], relevant, &[1, 50]);
            prop_assert!([perfect.ap, perfect.ap_at_r, perfect.r_precision, perfect.rr].iter().all(|one| (one - 1.0).abs() < 1e-12));
        }

        /// A relevant picture that moves up harms no measure; irrelevant ones behind all hits change none.
        #[test]
        fn a_better_ranking_has_no_lower_measure(ranked in vec(any::<bool>(), 2..40), at in any::<Index>(), more in 0usize..9) {
            let relevant = ranked.iter().filter(|r| **r).count();
            prop_assume!(relevant > 0);
            let ks = [1, 2, 5, 10, 50];
            let before = Measures::of(&ranked, relevant, &ks);
            let mut better = ranked.clone();
            let at = at.index(ranked.len() - 1);
            if better[at + 1] && !better[at] {
                better.swap(at, at + 1);
            }
            let after = Measures::of(&better, relevant, &ks);
            for (before, after) in before.values().into_iter().zip(after.values()) {
                prop_assert!(after >= before - 1e-12, "{ranked:?} {better:?}");
            }
            let mut longer = ranked.clone();
            longer.extend(std::iter::repeat_n(false, more));
            prop_assert_eq!(Measures::of(&longer, relevant, &ks).values(), before.values());
        }
    }
}
