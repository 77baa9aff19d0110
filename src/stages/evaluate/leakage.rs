//! Pictures that are among the queries and in the gallery as well: what flatters every figure.
//!
//! Two pictures are *twins* by the strongest of three signs: the same bytes, the same decoded pixels, or near duplicates (saved
//! again with other settings, slightly changed): perceptual hash and features must both be close, since either alone takes
//! pictures of like subjects for the same picture.
//!
//! What is taken out for the adjusted figures: from held-out evaluation, every gallery picture that is a twin of any query, for
//! all queries, as if it had never been in the gallery; from leave-one-out, where each picture is query and gallery in one, the
//! twins of the query at hand.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Mode;
use super::relevance::{Gallery, Judgement};
use crate::engines::EngineError;
use crate::stages::decode::Picture;

/// Near duplicates differ in at most so many of the 64 bits of their perceptual hashes…
pub const NEAR_BITS: u32 = 8;
/// … and the cosine of their features is at least this. Both were set on the grocery photos saved again as JPEG of quality 60:
/// docs/metrics.md has the figures, and the command that prints them.
pub const NEAR_COSINE: f64 = 0.94;
/// Twins of one query that are kept; a folder of thousands of equal pictures has millions of pairs.
const MOST_TWINS: usize = 1_000;
/// Pairs that a report lists.
const LISTED: usize = 1_000;

/// How two pictures are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sameness {
    /// The files are equal.
    Bytes,
    /// The files differ, what is decoded from them does not.
    Pixels,
    /// The same picture to the eye.
    Near,
}

impl Sameness {
    pub const ALL: [Sameness; 3] = [Sameness::Bytes, Sameness::Pixels, Sameness::Near];

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Sameness::Bytes => "same bytes",
            Sameness::Pixels => "same pixels",
            Sameness::Near => "near duplicate",
        }
    }
}

/// What was found of one mode.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Leakage {
    /// For each kind in which there are any.
    pub kinds: Vec<LeakedKind>,
    /// The first [`LISTED`], by query, the strongest first.
    pub pairs: Vec<TwinPair>,
    pub pairs_in_all: usize,
    /// Queries and gallery pictures of which no hash is known (vectors that were imported without them): their twins cannot be
    /// found.
    #[serde(default)]
    pub unhashed: usize,
    /// Queries and gallery pictures.
    #[serde(default)]
    pub looked_through: usize,
}

/// One kind of twins. A pair counts for its strongest sign alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakedKind {
    pub kind: Sameness,
    /// Queries that have such a twin in the gallery, and gallery pictures that are one.
    pub queries: usize,
    pub gallery: usize,
    pub pairs: usize,
}

/// A query and its twin in the gallery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TwinPair {
    pub query: String,
    pub gallery: String,
    pub kind: Sameness,
    /// Bits of the perceptual hashes that differ, of 64.
    pub bits: u32,
    /// Cosine of the features.
    pub cosine: f64,
    /// Whether the two have different labels: at most one of them is right.
    pub labels_differ: bool,
}

/// The same picture under different labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelError {
    pub kind: Sameness,
    /// `split/id`, ascending.
    pub pictures: Vec<String>,
    /// Ascending.
    pub labels: Vec<String>,
}

/// A gallery picture that is a twin of a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Twin {
    pub row: u32,
    pub kind: Sameness,
    bits: u32,
    cosine: f64,
}

/// The twins of all queries of a mode.
pub struct Twins {
    mode: Mode,
    of_query: Vec<Vec<Twin>>,
    /// Gallery pictures that are copies of any query, and those that are copies or near duplicates: rows, ascending.
    copies: Vec<u32>,
    all: Vec<u32>,
    unhashed: usize,
}

impl Twins {
    /// Of the queries, in their order. Errors: of reading the gallery.
    pub fn find(mode: Mode, gallery: &Gallery, queries: &[Judgement]) -> Result<Twins, EngineError> {
        let pictures = gallery.pictures;
        let mut numbers = Numbers::default();
        let signs: Vec<Signs> = pictures.iter().map(|picture| numbers.signs(picture)).collect();
        let asked: Vec<Signs> = queries.iter().map(|query| numbers.signs(query.picture)).collect();
        let mut of_query: Vec<Vec<Twin>> = vec![Vec::new(); queries.len()];
        gallery.rows.each_tile(|first, tile| {
            let signs = &signs[first..first + tile.len()];
            let twin = |query: &Judgement, own: &Signs, i: usize| {
                let (row, other) = (first + i, &signs[i]);
                let bits = (own.dhash ^ other.dhash).count_ones();
                let kind = own.sameness(other, bits)?;
                if mode == Mode::LeaveOneOut && pictures[row].id == query.id {
                    return None;
                }
                let cosine = cosine(query.vector, tile.vector(i));
                (kind != Sameness::Near || cosine >= NEAR_COSINE).then_some(Twin {
                    row: row as u32,
                    kind,
                    bits,
                    cosine,
                })
            };
            of_query.par_iter_mut().zip(queries).zip(&asked).for_each(|((twins, query), own)| {
                let room = MOST_TWINS - twins.len();
                twins.extend((0..tile.len()).filter_map(|i| twin(query, own, i)).take(room));
            });
        })?;
        let mut of_row: Vec<Option<Sameness>> = vec![None; pictures.len()];
        for twin in of_query.iter().flatten() {
            let sign = &mut of_row[twin.row as usize];
            *sign = Some(sign.map_or(twin.kind, |found| found.min(twin.kind)));
        }
        let rows = |weakest: Sameness| -> Vec<u32> {
            let rows = (0u32..).zip(&of_row);
            rows.filter(|(_, kind)| kind.is_some_and(|kind| kind <= weakest)).map(|(row, _)| row).collect()
        };
        let all_signs = signs.iter().chain(asked.iter().filter(|_| mode == Mode::HeldOut));
        let unhashed = all_signs.filter(|signs| signs.are_unknown()).count();
        Ok(Twins { mode, of_query, copies: rows(Sameness::Pixels), all: rows(Sameness::Near), unhashed })
    }

    pub fn is_empty(&self) -> bool {
        self.of_query.iter().all(Vec::is_empty)
    }

    /// The greatest number of twins of a query.
    pub fn most(&self) -> usize {
        self.of_query.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The rows that query number `query` is not to see where twins down to `weakest` are taken out: ascending.
    pub fn rows_out(&self, query: usize, weakest: Sameness) -> Cow<'_, [u32]> {
        match (self.mode, weakest) {
            (Mode::HeldOut, Sameness::Near) => (&self.all).into(),
            (Mode::HeldOut, _) => (&self.copies).into(),
            (Mode::LeaveOneOut, _) => {
                let twins = self.of_query[query].iter().filter(|twin| twin.kind <= weakest);
                twins.map(|twin| twin.row).collect::<Vec<_>>().into()
            }
        }
    }

    /// What a report says of them.
    pub fn leakage(&self, gallery: &Gallery, queries: &[Judgement]) -> Leakage {
        let kinds = Sameness::ALL.into_iter().filter_map(|kind| {
            let of_kind = |twins: &[Twin]| twins.iter().filter(|twin| twin.kind == kind).count();
            let rows: BTreeSet<u32> = self
                .of_query
                .iter()
                .flatten()
                .filter(|twin| twin.kind == kind)
                .map(|twin| twin.row)
                .collect();
            let found = LeakedKind {
                kind,
                queries: self.of_query.iter().filter(|twins| of_kind(twins) > 0).count(),
                gallery: rows.len(),
                pairs: self.of_query.iter().map(|twins| of_kind(twins)).sum(),
            };
            (found.pairs > 0).then_some(found)
        });
        let pair = |(query, twin): (&Judgement, &Twin)| {
            let picture = &gallery.pictures[twin.row as usize];
            TwinPair {
                query: query.id.to_owned(),
                gallery: picture.id.clone(),
                kind: twin.kind,
                bits: twin.bits,
                cosine: twin.cosine,
                labels_differ: query.label.is_some()
                    && picture.label.is_some()
                    && query.label != picture.label.as_deref(),
            }
        };
        let mut pairs: Vec<(&Judgement, &Twin)> = queries
            .iter()
            .zip(&self.of_query)
            .flat_map(|(query, twins)| twins.iter().map(move |twin| (query, twin)))
            .collect();
        // In leave-one-out each pair is found from both its ends.
        if self.mode == Mode::LeaveOneOut {
            pairs.retain(|(query, twin)| query.id < gallery.pictures[twin.row as usize].id.as_str());
        }
        let id = |twin: &Twin| gallery.pictures[twin.row as usize].id.as_str();
        pairs.sort_by(|(a, a_twin), (b, b_twin)| {
            (a_twin.kind, a.id, id(a_twin)).cmp(&(b_twin.kind, b.id, id(b_twin)))
        });
        Leakage {
            kinds: kinds.collect(),
            pairs_in_all: pairs.len(),
            pairs: pairs.into_iter().take(LISTED).map(pair).collect(),
            unhashed: self.unhashed,
            looked_through: gallery.pictures.len()
                + if self.mode == Mode::HeldOut { queries.len() } else { 0 },
        }
    }
}

/// What tells pictures apart, in numbers that compare quickly. 0 is unknown, and equals nothing.
#[derive(Debug, Clone, Copy)]
struct Signs {
    bytes: u32,
    pixels: u32,
    dhash: u64,
    /// Vectors that were imported come without a perceptual hash.
    has_dhash: bool,
}

impl Signs {
    fn are_unknown(&self) -> bool {
        self.bytes == 0 && self.pixels == 0 && !self.has_dhash
    }

    fn sameness(&self, other: &Signs, bits: u32) -> Option<Sameness> {
        if self.bytes != 0 && self.bytes == other.bytes {
            Some(Sameness::Bytes)
        } else if self.pixels != 0 && self.pixels == other.pixels {
            Some(Sameness::Pixels)
        } else {
            (bits <= NEAR_BITS && self.has_dhash && other.has_dhash).then_some(Sameness::Near)
        }
    }
}

/// Numbers for texts, from 1 on.
#[derive(Default)]
struct Numbers<'a> {
    of: HashMap<&'a str, u32>,
}

impl<'a> Numbers<'a> {
    fn number(&mut self, text: &'a str) -> u32 {
        let next = self.of.len() as u32 + 1;
        if text.is_empty() { 0 } else { *self.of.entry(text).or_insert(next) }
    }

    fn signs(&mut self, picture: &'a Picture) -> Signs {
        Signs {
            bytes: self.number(&picture.sha256),
            pixels: self.number(&picture.pixel_sha256),
            dhash: picture.dhash,
            has_dhash: picture.width > 0,
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// Pictures of these sets that are equal and labelled differently; one entry for each picture.
pub fn label_errors(sets: &[&[Picture]]) -> Vec<LabelError> {
    let pictures = || sets.iter().copied().flatten();
    let mut errors = Vec::new();
    let mut said = BTreeSet::new();
    for (kind, hash) in [
        (Sameness::Bytes, (|picture: &Picture| picture.sha256.as_str()) as fn(&Picture) -> &str),
        (Sameness::Pixels, |picture: &Picture| picture.pixel_sha256.as_str()),
    ] {
        let mut groups: BTreeMap<&str, Vec<&Picture>> = BTreeMap::new();
        for picture in pictures().filter(|picture| picture.label.is_some() && !hash(picture).is_empty()) {
            groups.entry(hash(picture)).or_default().push(picture);
        }
        for group in groups.into_values() {
            let labels: BTreeSet<String> = group.iter().filter_map(|picture| picture.label.clone()).collect();
            let names: BTreeSet<String> =
                group.iter().map(|picture| format!("{}/{}", picture.split.name(), picture.id)).collect();
            // Equal bytes are equal pixels: said once.
            if labels.len() > 1 && said.insert(names.clone()) {
                let (pictures, labels) = (names.into_iter().collect(), labels.into_iter().collect());
                errors.push(LabelError { kind, pictures, labels });
            }
        }
    }
    errors.sort_by(|a, b| a.pictures.cmp(&b.pictures));
    errors
}
