//! The hits of one search → [`Outcome`]: which of them count, which are right, and what that makes of each measure.

use std::collections::HashSet;

use super::leakage::{Sameness, Twins};
use super::measures::{Measures, TieAtK};
use super::per_query::QueryState;
use super::ranking::{self, Ranked};
use super::relevance::{Gallery, Judgement};

/// What hits are judged by; the same for all queries of a mode.
pub struct Judge<'a> {
    pub gallery: &'a Gallery<'a>,
    pub twins: &'a Twins,
    /// Cut-offs, ascending.
    pub ks: &'a [usize],
    /// Whether outcomes keep their whole rankings.
    pub keep_whole: bool,
}

/// What one search came to.
pub struct Outcome {
    /// Nothing for queries without a relevant picture or without a label.
    pub measures: Option<Measures>,
    pub ties: Vec<TieAtK>,
    pub first_relevant_rank: Option<usize>,
    /// The first hits, some more than the greatest cut-off.
    pub top: Ranked,
    /// All hits that count, where somebody wants them.
    pub whole: Option<Ranked>,
    pub repeated: usize,
    /// With all pictures, without copies, without near duplicates; nothing where nothing leaked.
    pub adjusted: [Option<Measures>; 3],
}

impl Judge<'_> {
    /// Judges the hits of query number `query`.
    pub fn judge(&self, query: usize, judgement: &Judgement, mut all: Ranked) -> Outcome {
        let found = all.len();
        if all.len() > self.gallery.pictures.len() / 64 {
            let mut seen = vec![false; self.gallery.pictures.len()];
            all.retain(|(row, _)| !std::mem::replace(&mut seen[*row as usize], true));
        } else {
            // A few hits in a large gallery.
            let mut seen = HashSet::with_capacity(all.len());
            all.retain(|(row, _)| seen.insert(*row));
        }
        let repeated = found - all.len();
        let adjusted = self.adjusted(query, judgement, &all);
        let mut ranked = all;
        ranked.retain(|(row, _)| judgement.excluded.binary_search(row).is_err());
        let relevant = self.relevance(judgement, &ranked);
        let scores: Vec<f32> = ranked.iter().map(|(_, score)| *score).collect();
        let most_k = self.ks.last().copied().unwrap_or(1);
        let whole = self.keep_whole.then(|| ranked.clone());
        ranked.truncate(most_k.max(ranking::COMPARED) + ranking::MARGIN);
        // Kept for each query of the mode, where a whole ranking's room is half a megabyte in a gallery of 60,000.
        ranked.shrink_to_fit();
        let has_measures = judgement.state() == QueryState::Evaluated;
        Outcome {
            measures: has_measures.then(|| Measures::of(&relevant, judgement.relevant, self.ks)),
            ties: self.ks.iter().map(|&k| TieAtK::of(&relevant, &scores, k)).collect(),
            first_relevant_rank: relevant.iter().position(|is_relevant| *is_relevant).map(|i| i + 1),
            top: ranked,
            whole,
            repeated,
            adjusted,
        }
    }

    /// Which hits are right.
    fn relevance(&self, judgement: &Judgement, ranked: &Ranked) -> Vec<bool> {
        let is_relevant = |row| judgement.class.is_some_and(|class| self.gallery.is_of(row, class));
        ranked.iter().map(|(row, _)| is_relevant(*row)).collect()
    }

    /// The measures as if other pictures had been in the gallery.
    fn adjusted(&self, query: usize, judgement: &Judgement, all: &Ranked) -> [Option<Measures>; 3] {
        let (Some(class), false) = (judgement.class, self.twins.is_empty()) else {
            return [None, None, None];
        };
        let itself: Vec<u32> = judgement.itself.into_iter().collect();
        let without = |gone: &[u32]| {
            let gone: Vec<u32> = {
                let mut rows = [gone, &itself].concat();
                rows.sort_unstable();
                rows.dedup();
                rows
            };
            let left = self.gallery.relevant(class, &gone);
            let ranked: Ranked =
                all.iter().copied().filter(|(row, _)| gone.binary_search(row).is_err()).collect();
            (left > 0).then(|| Measures::of(&self.relevance(judgement, &ranked), left, self.ks))
        };
        [
            without(&[]),
            without(&self.twins.rows_out(query, Sameness::Pixels)),
            without(&self.twins.rows_out(query, Sameness::Near)),
        ]
    }
}
