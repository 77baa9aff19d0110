//! Exact search in memory: every query is compared with every picture. The default engine, and the ground truth that
//! approximate engines are measured against.
//!
//! What a newcomer would get wrong: trusting the fast scan. It runs in `f32` with whatever instruction set the machine
//! has, so its last bits differ between machines. It only picks candidates, [`SPARE`] more than wanted. Those are
//! scored again in `f64`, and the answer stands only if no row that was left out could, by the error bound of the
//! scan, reach the last place; otherwise all rows are scored in `f64`. So the hits, their order and their scores are
//! the same on every machine, with every kernel and on any number of threads.

use std::borrow::Cow;
use std::collections::{BTreeMap, BinaryHeap};
use std::iter::Peekable;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::aligned::AlignedLanes;
use super::kernels::{self, Kernel, LANES, Lanes, Sum};
use super::{EngineError, Footprint, Hit, Query, Ranker, Searcher, TakeRanking, VectorIndex};
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;

/// Candidates kept beyond `k`, so that near-ties at the last place seldom cost a second scan.
const SPARE: usize = 6;
/// Queries that share one pass over the rows: 64 x 512 numbers are 128 KB, which fit a core's second cache level.
const TILE: usize = 64;
/// Rows per call of a kernel.
const BLOCK: usize = 64;
/// Vectors that share one pass in `f64`: twice the bytes.
const EXACT_TILE: usize = 32;
/// Keys of whole rankings that a thread has at once, of which each query has one for each row: 64 MB.
const KEYS_AT_ONCE: usize = 8 << 20;
/// Rows per call of an exact kernel, for which it widens the queries anew.
const EXACT_BLOCK: usize = 1024;
/// Norms between which neither a product nor a square of `f32` numbers overflows or vanishes.
const SAFE_NORMS: std::ops::RangeInclusive<f64> = 1e-15..=1e15;

/// The pictures in memory: 4 bytes a number, once; twice while a commit merges changes in.
///
/// Cosine is 0 on the score scale (the furthest) where either vector is all zeros: it has no direction.
#[derive(Debug)]
pub struct Flat {
    non_negative: bool,
    kernel: Kernel,
    table: Option<Table>,
    /// What changed since the last commit: a new vector, or a removal.
    pending: BTreeMap<String, Option<Vec<f32>>>,
}

impl Flat {
    /// An engine without an index. `non_negative` as in [`Metric::score`].
    pub fn new(non_negative: bool) -> Flat {
        Flat::with_kernel(non_negative, Kernel::best())
    }

    /// The same with a kernel of choice. The answers do not depend on it; tests show that.
    pub fn with_kernel(non_negative: bool, kernel: Kernel) -> Flat {
        Flat { non_negative, kernel, table: None, pending: BTreeMap::new() }
    }

    fn table(&self) -> Result<&Table, EngineError> {
        self.table.as_ref().ok_or_else(|| failed("it holds no index yet; create one first"))
    }
}

fn failed(reason: &str) -> EngineError {
    EngineError::Failed { engine: "flat".to_owned(), reason: reason.to_owned() }
}

impl Searcher for Flat {
    fn name(&self) -> &str {
        "flat"
    }

    fn supports(&self, _metric: Metric) -> bool {
        true
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        Ok(self.search_many(std::slice::from_ref(query))?.pop().unwrap_or_default())
    }

    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let table = self.table()?;
        let hits: Vec<OnceLock<Vec<Hit>>> = queries.iter().map(|_| OnceLock::new()).collect();
        self.each_keys(queries, &|i, keys| {
            hits[i].get_or_init(|| table.hits(&keys));
        })?;
        Ok(hits.into_iter().map(|hits| hits.into_inner().unwrap_or_default()).collect())
    }

    fn ranker(&self) -> Option<&dyn Ranker> {
        Some(self)
    }
}

impl Ranker for Flat {
    fn ids(&self) -> &[String] {
        self.table.as_ref().map(|table| table.ids.as_slice()).unwrap_or_default()
    }

    fn rank_each(&self, queries: &[Query], take: &TakeRanking) -> Result<(), EngineError> {
        self.each_keys(queries, &|i, keys| {
            take(i, keys.iter().map(|key| (key.row() as u32, key.value())).collect());
        })
    }
}

/// The pictures of an engine in memory by number, ids ascending.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub ids: &'a [String],
    pub dim: usize,
    /// `[ids.len(), stride]`, filled up with zeros from `dim` on.
    pub vectors: &'a [f32],
    pub stride: usize,
}

/// For engines that keep the pictures here and find candidates among them their own way.
impl Flat {
    pub(super) fn rows(&self) -> Result<Rows<'_>, EngineError> {
        let table = self.table()?;
        let stride = table.width * LANES;
        Ok(Rows { ids: &table.ids, dim: table.dim, vectors: table.rows.as_flattened(), stride })
    }

    /// Whether all vectors have length 1, to what `f32` can hold.
    pub(super) fn is_unit(&self) -> bool {
        self.table.as_ref().is_some_and(|table| table.norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5))
    }

    /// Whether the next commit changes anything.
    pub(super) fn has_changes(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Refuses what [`Searcher::search`] would refuse. Says whether the query has a nearest picture at all: by cosine a vector of
    /// zeros has none, and its hits are the first ids.
    pub(super) fn has_nearest(&self, query: &Query) -> Result<bool, EngineError> {
        let prepared = self.table()?.prepare(query, self.kernel)?;
        Ok(query.metric != Metric::Cosine || prepared.norm > 0.0)
    }

    /// The `k` best of these rows: exact scores, ties by id.
    pub(super) fn best_among(
        &self,
        query: &Query,
        rows: impl Iterator<Item = usize>,
    ) -> Result<Vec<Hit>, EngineError> {
        let table = self.table()?;
        let prepared = table.prepare(query, self.kernel)?;
        let search = Search { table, kernel: self.kernel, non_negative: self.non_negative };
        let mut keys: Vec<Key> = rows.map(|row| search.exact_key(&prepared, row)).collect();
        sort_and_cut(&mut keys, prepared.k);
        Ok(table.hits(&keys))
    }
}

impl Flat {
    /// Hands the best rows of each query to `take`.
    fn each_keys(&self, queries: &[Query], take: &TakeKeys) -> Result<(), EngineError> {
        let table = self.table()?;
        let prepared =
            queries.iter().map(|query| table.prepare(query, self.kernel)).collect::<Result<Vec<_>, _>>()?;
        let search = Search { table, kernel: self.kernel, non_negative: self.non_negative };
        let (fast, mut full): (Vec<usize>, Vec<usize>) =
            (0..prepared.len()).partition(|&i| search.suits_fast_scan(&prepared[i]));

        for metric in Metric::ALL {
            let of_metric: Vec<usize> =
                fast.iter().copied().filter(|&i| prepared[i].metric == metric).collect();
            if of_metric.is_empty() {
                continue;
            }
            let asked: Vec<&Prepared> = of_metric.iter().map(|&i| &prepared[i]).collect();
            for (i, keys) in of_metric.into_iter().zip(search.nearest(metric, &asked)) {
                match keys {
                    Some(keys) => take(i, keys),
                    None => full.push(i),
                }
            }
        }
        search.rank(&full.iter().map(|&i| (i, &prepared[i])).collect::<Vec<_>>(), take);
        Ok(())
    }
}

impl VectorIndex for Flat {
    fn create(&mut self, dim: usize) -> Result<(), EngineError> {
        if dim == 0 {
            return Err(failed("vectors need at least one number"));
        }
        self.pending.clear();
        self.table = Some(Table::empty(dim));
        Ok(())
    }

    /// All of the batch or, on an error, nothing of it.
    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError> {
        let dim = self.table()?.dim;
        if batch.is_empty() {
            return Ok(());
        }
        if batch.dim != dim {
            return Err(EngineError::WrongDimension { expected: dim, got: batch.dim });
        }
        for (i, picture) in batch.pictures.iter().enumerate() {
            if !is_finite(batch.vector(i)) {
                return Err(EngineError::NotFinite { id: picture.id.clone() });
            }
        }
        for (i, picture) in batch.pictures.iter().enumerate() {
            self.pending.insert(picture.id.clone(), Some(batch.vector(i).to_vec()));
        }
        Ok(())
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError> {
        self.table()?;
        self.pending.extend(ids.iter().map(|id| (id.clone(), None)));
        Ok(())
    }

    fn commit(&mut self) -> Result<u64, EngineError> {
        let changes = std::mem::take(&mut self.pending);
        let table = self.table()?;
        if changes.is_empty() {
            return Ok(table.len() as u64);
        }
        // Keys hold a row's number in 32 bits.
        if u32::try_from(table.len() + changes.len()).is_err() {
            return Err(failed("it holds at most 2^32 - 1 pictures"));
        }
        let merged = table.merged(changes, self.kernel);
        let count = merged.len() as u64;
        self.table = Some(merged);
        Ok(count)
    }

    fn arms(&self) -> Vec<&dyn Searcher> {
        vec![self]
    }

    fn footprint(&self) -> Footprint {
        let bytes = self.table.as_ref().map_or(0, |table| {
            let ids: usize = table.ids.iter().map(|id| id.capacity() + size_of::<String>()).sum();
            ids + table.rows.bytes()
                + size_of_val(table.norms.as_slice())
                + size_of_val(table.inverse_norms.as_slice())
        });
        Footprint { memory: Some(bytes as u64), disk: None }
    }
}

/// The nearest pictures of a gallery that comes in parts, each let go of before the next: it may be larger than memory.
#[derive(Debug)]
pub struct Nearest<'a> {
    query: Query<'a>,
    flat: Flat,
    hits: Vec<Hit>,
}

impl<'a> Nearest<'a> {
    /// `non_negative` as in [`Metric::score`].
    pub fn of(query: Query<'a>, non_negative: bool) -> Nearest<'a> {
        Nearest { query, flat: Flat::new(non_negative), hits: Vec::new() }
    }

    /// Looks at some pictures, none of which it has seen before.
    pub fn look_at(&mut self, part: &EmbeddingBatch) -> Result<(), EngineError> {
        self.flat.create(part.dim)?;
        self.flat.upsert(part)?;
        self.flat.commit()?;
        self.hits.extend(self.flat.search(&self.query)?);
        self.hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        self.hits.truncate(self.query.k);
        Ok(())
    }

    /// The nearest of all that were looked at: the hits that [`Flat`] would give, had it held them at once.
    pub fn hits(self) -> Vec<Hit> {
        self.hits
    }
}

fn is_finite(vector: &[f32]) -> bool {
    vector.iter().all(|x| x.is_finite())
}

/// What is searchable: rows by id ascending, so that of two equal scores the lower row goes first.
#[derive(Debug)]
struct Table {
    dim: usize,
    width: usize,
    ids: Vec<String>,
    /// `[ids.len(), width]`
    rows: AlignedLanes,
    /// L2 norm of each row.
    norms: Vec<f64>,
    /// `1 / norm`, or 0 for a row of zeros.
    inverse_norms: Vec<f32>,
    /// The greatest norm.
    longest: f64,
    /// Whether all norms are 0 or within [`SAFE_NORMS`].
    safe: bool,
}

impl Table {
    fn empty(dim: usize) -> Table {
        Table {
            dim,
            width: kernels::width(dim),
            ids: Vec::new(),
            rows: AlignedLanes::default(),
            norms: Vec::new(),
            inverse_norms: Vec::new(),
            longest: 0.0,
            safe: true,
        }
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn row(&self, i: usize) -> &[Lanes] {
        &self.rows[i * self.width..(i + 1) * self.width]
    }

    /// This table with the changes applied, in one pass over both, each by id ascending.
    fn merged(&self, changes: BTreeMap<String, Option<Vec<f32>>>, kernel: Kernel) -> Table {
        let mut table = Table::empty(self.dim);
        let most = self.len() + changes.len();
        table.ids.reserve_exact(most);
        table.rows = AlignedLanes::with_capacity(most * self.width);
        let mut old = self.ids.iter().enumerate().peekable();
        for (id, change) in changes {
            table.copy_while(self, &mut old, |old_id| *old_id < id);
            old.next_if(|(_, old_id)| **old_id == id);
            if let Some(vector) = change {
                table.rows.extend_from_slice(&kernels::lanes(&vector, self.dim));
                table.ids.push(id);
            }
        }
        table.copy_while(self, &mut old, |_| true);
        table.measure(kernel);
        table
    }

    fn copy_while<'a>(
        &mut self,
        from: &Table,
        old: &mut Peekable<impl Iterator<Item = (usize, &'a String)>>,
        wanted: impl Fn(&String) -> bool,
    ) {
        while let Some((i, id)) = old.next_if(|(_, id)| wanted(id)) {
            self.rows.extend_from_slice(from.row(i));
            self.ids.push(id.clone());
        }
    }

    /// Computes the norms.
    fn measure(&mut self, kernel: Kernel) {
        let norm = |row: &[Lanes]| norm(row, kernel);
        self.norms = self.rows.par_chunks_exact(self.width).map(norm).collect();
        self.inverse_norms =
            self.norms.iter().map(|&n| if n > 0.0 { (1.0 / n) as f32 } else { 0.0 }).collect();
        self.longest = self.norms.iter().copied().fold(0.0, f64::max);
        self.safe = self.norms.iter().all(|n| *n == 0.0 || SAFE_NORMS.contains(n));
    }

    fn prepare<'a>(&self, query: &Query<'a>, kernel: Kernel) -> Result<Prepared<'a>, EngineError> {
        if query.k == 0 {
            return Err(EngineError::ZeroK);
        }
        if query.vector.len() != self.dim {
            return Err(EngineError::WrongDimension { expected: self.dim, got: query.vector.len() });
        }
        if !is_finite(query.vector) {
            return Err(EngineError::NotFinite { id: "(query)".to_owned() });
        }
        let vector = kernels::lanes(query.vector, self.dim);
        let norm = norm(&vector, kernel);
        Ok(Prepared { source: query.vector, vector, norm, k: query.k.min(self.len()), metric: query.metric })
    }

    fn hits(&self, keys: &[Key]) -> Vec<Hit> {
        keys.iter().map(|key| Hit { id: self.ids[key.row()].clone(), score: key.value() }).collect()
    }
}

fn norm(vector: &[Lanes], kernel: Kernel) -> f64 {
    let mut squared = [0.0];
    kernel.exact(Sum::Dot, vector, vector, vector.len(), &mut squared);
    squared[0].sqrt()
}

/// A checked query.
struct Prepared<'a> {
    /// As it was given.
    source: &'a [f32],
    vector: Cow<'a, [Lanes]>,
    norm: f64,
    /// At most the number of rows.
    k: usize,
    metric: Metric,
}

/// A row with its score, or its closeness in a fast scan, as one number: less is better. Greater values come first, of
/// equal values the lower row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    /// `value` is not NaN; -0 counts as 0.
    fn new(value: f32, row: usize) -> Key {
        let bits = (value + 0.0).to_bits();
        // IEEE 754 numbers in the order of unsigned integers: flip all bits of negatives, the sign of the others.
        let ascending = if bits >> 31 == 1 { !bits } else { bits ^ (1 << 31) };
        Key(u64::from(!ascending) << 32 | row as u64)
    }

    /// Less for a greater value.
    fn descending_value(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn row(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn value(self) -> f32 {
        let ascending = !self.descending_value();
        f32::from_bits(if ascending >> 31 == 1 { ascending ^ (1 << 31) } else { !ascending })
    }
}

/// The best keys seen so far, the worst of them on top.
struct Best {
    room: usize,
    keys: BinaryHeap<Key>,
    /// The worst value kept, once there is no more room: what is below need not be offered.
    floor: f32,
}

impl Best {
    fn new(room: usize) -> Best {
        Best { room, keys: BinaryHeap::with_capacity(room + 1), floor: f32::NEG_INFINITY }
    }

    fn offer(&mut self, key: Key) {
        if self.keys.len() < self.room {
            self.keys.push(key);
        } else if let Some(mut worst) = self.keys.peek_mut()
            && key < *worst
        {
            *worst = key;
        }
        if self.keys.len() == self.room {
            self.floor = self.keys.peek().map_or(self.floor, |worst| worst.value());
        }
    }
}

fn sum_of(metric: Metric) -> Sum {
    match metric {
        Metric::Cosine | Metric::DotProduct => Sum::Dot,
        Metric::L1 => Sum::L1,
        Metric::L2 => Sum::SquaredL2,
    }
}

/// Takes the best rows of the query at a place, best first.
type TakeKeys<'a> = dyn Fn(usize, Vec<Key>) + Sync + 'a;

/// One call of `search_many`.
struct Search<'a> {
    table: &'a Table,
    kernel: Kernel,
    non_negative: bool,
}

impl Search<'_> {
    /// Whether an `f32` scan saves work and cannot overflow: not where most rows are wanted anyway.
    fn suits_fast_scan(&self, query: &Prepared) -> bool {
        let few = (query.k + SPARE) * 4 <= self.table.len();
        few && self.table.safe && SAFE_NORMS.contains(&query.norm)
    }

    /// The exact score of `row`, given the exact sum.
    fn score(&self, query: &Prepared, row: usize, sum: f64) -> f32 {
        let raw = match query.metric {
            Metric::Cosine => {
                let norms = query.norm * self.table.norms[row];
                if norms == 0.0 {
                    return 0.0;
                }
                (sum / norms).clamp(-1.0, 1.0)
            }
            Metric::DotProduct | Metric::L1 => sum,
            Metric::L2 => sum.sqrt(),
        };
        query.metric.score(raw, self.non_negative) as f32
    }

    /// The `k` best rows of each query, all rows scored in `f64`; each query with its place.
    fn rank(&self, queries: &[(usize, &Prepared)], take: &TakeKeys) {
        let of_vector: Vec<&[(usize, &Prepared)]> =
            queries.chunk_by(|(_, a), (_, b)| std::ptr::eq(a.source, b.source)).collect();
        let metrics = of_vector.iter().map(|of_vector| of_vector.len()).max().unwrap_or(1);
        // Vectors that share a pass over the rows; fewer where there would not be work for every thread.
        let most = (KEYS_AT_ONCE / (self.table.len() * metrics).max(1)).clamp(1, EXACT_TILE);
        let tile = of_vector.len().div_ceil(rayon::current_num_threads()).clamp(1, most);
        of_vector.par_chunks(tile).for_each(|of_vector| self.rank_tile(of_vector, take));
    }

    fn rank_tile(&self, of_vector: &[&[(usize, &Prepared)]], take: &TakeKeys) {
        let width = self.table.width;
        let queries = || of_vector.iter().flat_map(|queries| queries.iter());
        let asks = |metric: Metric| queries().any(|(_, query)| query.metric == metric);
        // L2 follows from the dot product, where that is there.
        let dot = asks(Metric::Cosine) || asks(Metric::DotProduct);
        let needed = [dot.then_some(Sum::Dot), asks(Metric::L1).then_some(Sum::L1)];
        let needed = needed.into_iter().chain([(asks(Metric::L2) && !dot).then_some(Sum::SquaredL2)]);
        let needed: Vec<Sum> = needed.flatten().collect();

        let vectors: Vec<Lanes> = of_vector
            .iter()
            .filter_map(|of| of.first())
            .flat_map(|(_, query)| query.vector.iter().copied())
            .collect();
        let mut keys: Vec<Vec<Key>> = queries().map(|_| Vec::with_capacity(self.table.len())).collect();
        let mut sums = vec![0.0; of_vector.len() * EXACT_BLOCK];
        for (block, rows) in self.table.rows.chunks(EXACT_BLOCK * width).enumerate() {
            let (first, count) = (block * EXACT_BLOCK, rows.len() / width);
            let sums = &mut sums[..of_vector.len() * count];
            for &sum in &needed {
                self.kernel.exact(sum, &vectors, rows, width, sums);
                let of_query = of_vector.iter().zip(sums.chunks_exact(count));
                let of_query =
                    of_query.flat_map(|(queries, sums)| queries.iter().map(move |(_, query)| (query, sums)));
                for ((query, sums), keys) in of_query.zip(&mut keys) {
                    let rows = (first..).zip(sums);
                    if sum_of(query.metric) == sum {
                        keys.extend(rows.map(|(row, &sum)| Key::new(self.score(query, row, sum), row)));
                    } else if sum == Sum::Dot && query.metric == Metric::L2 {
                        keys.extend(rows.map(|(row, &dot)| Key::new(self.l2_score(query, row, dot), row)));
                    }
                }
            }
        }
        for ((i, query), mut keys) in queries().zip(keys) {
            if query.k < keys.len() {
                sort_and_cut(&mut keys, query.k);
            } else {
                // The rows of equal values stay in their order.
                radsort::sort_by_key(&mut keys, |key| key.descending_value());
            }
            take(*i, keys);
        }
    }

    /// The exact L2 score of `row`, given the exact dot product: |a - b|² = |a|² + |b|² - 2 a·b, where its error cannot reach the
    /// score's last bit; else from the differences.
    fn l2_score(&self, query: &Prepared, row: usize, dot: f64) -> f32 {
        let squares = query.norm * query.norm + self.table.norms[row] * self.table.norms[row];
        let (about, error) = (squares - 2.0 * dot, kernels::exact_error(self.table.dim) * squares);
        // The score falls with the distance, and so does what rounding makes of it: between equal ends all is equal.
        let (nearest, furthest) = (
            self.score(query, row, (about - error).max(0.0)),
            self.score(query, row, (about + error).max(0.0)),
        );
        if nearest == furthest { nearest } else { self.exact_key(query, row).value() }
    }

    /// The `k` best rows of each query through the fast scan, or `None` where its error bound leaves a doubt.
    fn nearest(&self, metric: Metric, queries: &[&Prepared]) -> Vec<Option<Vec<Key>>> {
        let tiles = queries.len().div_ceil(TILE);
        // Four pieces of work for each thread, so that a late one costs little; no piece smaller than a block.
        let parts =
            (4 * rayon::current_num_threads()).div_ceil(tiles).clamp(1, self.table.len().div_ceil(BLOCK));
        let part = self.table.len().div_ceil(parts).next_multiple_of(BLOCK);
        let ranges: Vec<Range<usize>> = (0..self.table.len())
            .step_by(part)
            .map(|from| from..(from + part).min(self.table.len()))
            .collect();
        let work: Vec<(&[&Prepared], Range<usize>)> = queries
            .chunks(TILE)
            .flat_map(|tile| ranges.iter().map(move |range| (tile, range.clone())))
            .collect();
        let scanned: Vec<Vec<Best>> =
            work.into_par_iter().map(|(tile, range)| self.scan(metric, tile, range)).collect();

        let mut candidates: Vec<Best> = queries.iter().map(|query| Best::new(query.k + SPARE)).collect();
        for (tile, parts) in candidates.chunks_mut(TILE).zip(scanned.chunks(ranges.len())) {
            for part in parts {
                for (best, of_part) in tile.iter_mut().zip(part) {
                    of_part.keys.iter().for_each(|&key| best.offer(key));
                }
            }
        }
        queries.par_iter().zip(candidates).map(|(query, best)| self.settle(query, best)).collect()
    }

    /// The closest rows of one range, for a tile of queries.
    fn scan(&self, metric: Metric, queries: &[&Prepared], range: Range<usize>) -> Vec<Best> {
        let width = self.table.width;
        let mut vectors = AlignedLanes::with_capacity(queries.len() * width);
        queries.iter().for_each(|query| vectors.extend_from_slice(&query.vector));
        let inverse_norms: Vec<f32> = queries.iter().map(|query| (1.0 / query.norm) as f32).collect();
        let mut best: Vec<Best> = queries.iter().map(|query| Best::new(query.k + SPARE)).collect();
        let mut sums = vec![0.0; queries.len() * BLOCK];
        for first in range.clone().step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(range.end);
            let sums = &mut sums[..queries.len() * rows.len()];
            let lanes = &self.table.rows[rows.start * width..rows.end * width];
            self.kernel.fast(sum_of(metric), &vectors, lanes, width, sums);
            for (q, (sums, best)) in sums.chunks_exact_mut(rows.len()).zip(&mut best).enumerate() {
                match metric {
                    Metric::Cosine => {
                        for (sum, inverse_norm) in
                            sums.iter_mut().zip(&self.table.inverse_norms[rows.clone()])
                        {
                            // A row of zeros scores 0, like a cosine of -1.
                            *sum = if *inverse_norm == 0.0 {
                                -1.0
                            } else {
                                *sum * inverse_norms[q] * inverse_norm
                            };
                        }
                    }
                    Metric::DotProduct => {}
                    Metric::L1 | Metric::L2 => sums.iter_mut().for_each(|sum| *sum = -*sum),
                }
                for (row, &closeness) in rows.clone().zip(sums.iter()) {
                    if closeness >= best.floor {
                        best.offer(Key::new(closeness, row));
                    }
                }
            }
        }
        best
    }

    /// Scores the candidates in `f64`; `None` where a row that is not among them could belong to the `k` best.
    fn settle(&self, query: &Prepared, candidates: Best) -> Option<Vec<Key>> {
        let left_out = self.table.len() - candidates.keys.len();
        let closeness = f64::from(candidates.keys.peek()?.value());
        let mut keys: Vec<Key> = candidates.keys.iter().map(|key| self.exact_key(query, key.row())).collect();
        sort_and_cut(&mut keys, query.k);
        let last = keys.last()?.value();
        (left_out == 0 || self.best_possible(query, closeness) < last).then_some(keys)
    }

    fn exact_key(&self, query: &Prepared, row: usize) -> Key {
        let mut sum = [0.0];
        let numbers = self.table.row(row);
        self.kernel.exact(sum_of(query.metric), &query.vector, numbers, self.table.width, &mut sum);
        Key::new(self.score(query, row, sum[0]), row)
    }

    /// The greatest score that a row can have whose closeness in the fast scan is at most `closeness`.
    fn best_possible(&self, query: &Prepared, closeness: f64) -> f32 {
        /// Far more than what vanishing products can add up to, far less than what changes a score.
        const VANISHED: f64 = 1e-36;
        let error = kernels::fast_error(self.table.dim);
        let raw = match query.metric {
            Metric::Cosine => (closeness + error).min(1.0),
            Metric::DotProduct => closeness + error * query.norm * self.table.longest + VANISHED,
            Metric::L1 => (-closeness * (1.0 - error) - VANISHED).max(0.0),
            Metric::L2 => (-closeness * (1.0 - error) - VANISHED).max(0.0).sqrt(),
        };
        query.metric.score(raw, self.non_negative) as f32
    }
}

fn sort_and_cut(keys: &mut Vec<Key>, k: usize) {
    if k < keys.len() {
        keys.select_nth_unstable(k);
        keys.truncate(k);
    }
    keys.sort_unstable();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_sort_by_value_descending_then_row(a in -2.0f32..2.0, b in -2.0f32..2.0, i in 0usize..9, j in 0usize..9) {
            let by_hand = b.total_cmp(&a).then(i.cmp(&j));
            prop_assert_eq!(Key::new(a, i).cmp(&Key::new(b, j)), by_hand);
            prop_assert_eq!((Key::new(a, i).value(), Key::new(a, i).row()), (a, i));
        }
    }

    fn of(rows: &[Vec<f32>]) -> Flat {
        let mut flat = Flat::new(false);
        flat.create(rows[0].len()).expect("a dimension");
        flat.pending.extend(rows.iter().enumerate().map(|(i, row)| (format!("{i:03}"), Some(row.clone()))));
        flat.commit().expect("committed");
        flat
    }

    fn whole_rankings(flat: &Flat, vector: &[f32], metrics: &[Metric]) -> Vec<Vec<(u32, u32)>> {
        let k = flat.ids().len();
        let queries: Vec<Query> = metrics.iter().map(|&metric| Query { vector, k, metric }).collect();
        let found: Vec<OnceLock<Vec<(u32, u32)>>> = queries.iter().map(|_| OnceLock::new()).collect();
        flat.rank_each(&queries, &|i, ranked| {
            found[i].get_or_init(|| ranked.iter().map(|(row, score)| (*row, score.to_bits())).collect());
        })
        .expect("ranked");
        found.into_iter().map(|found| found.into_inner().expect("each is handed over")).collect()
    }

    proptest! {
        /// L2 is then made from the dot product. Rows a hair's breadth from the query are where its digits cancel.
        #[test]
        fn metrics_that_share_sums_rank_as_each_alone(
            query in prop::collection::vec(-2.0f32..2.0, 1..70),
            rows in prop::collection::vec((-1e-3f32..1e-3, -20i32..10), 1..60),
            scale in -8i32..8,
        ) {
            let query: Vec<f32> = query.iter().map(|x| x * 10f32.powi(scale)).collect();
            let rows: Vec<Vec<f32>> = rows
                .iter()
                .map(|(step, size)| {
                    let size = 2f32.powi(*size);
                    query.iter().enumerate().map(|(i, x)| x + x * step * size * (i % 7) as f32).collect()
                })
                .collect();
            let flat = of(&rows);
            let together = whole_rankings(&flat, &query, &Metric::ALL);
            for (metric, ranking) in Metric::ALL.iter().zip(together) {
                prop_assert_eq!(&ranking, &whole_rankings(&flat, &query, &[*metric])[0], "{}", metric);
            }
        }
    }

    #[test]
    fn minus_zero_and_zero_are_one_value() {
        assert_eq!(Key::new(-0.0, 3), Key::new(0.0, 3));
    }
}
