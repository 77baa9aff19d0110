//! Sums over pairs of vectors: dot product, L1 and squared L2, for whole blocks of rows at a time.
//!
//! Each sum exists three times: a *naive* twin in `f64` that says what is meant, an *exact* one in `f64` whose order
//! of additions is fixed, and a *fast* one in `f32`.
//! The exact one gives the same bits on every machine. The fast one differs in the last bits between instruction sets, so nothing that a user sees may depend
//! on it; [`super::flat`] uses it only to leave out rows that cannot be among the nearest.
//!
//! What a newcomer would get wrong: choosing the instruction set per vector. A [`Kernel`] is chosen once per index
//! and runs over a block of rows inside one function compiled for that instruction set; a call per vector, or
//! `mul_add` outside such a function (a call into libm), is several times slower.

#[cfg(target_arch = "x86_64")]
mod block;
mod exact;
mod fast;

use std::borrow::Cow;

pub use exact::exact_error;
pub use fast::fast_error;

/// Numbers per [`Lanes`].
pub const LANES: usize = 16;

/// Sixteen numbers: one AVX-512 register, two of AVX2, four of SSE or NEON. A vector of `dim` numbers takes
/// [`width`]`(dim)` of them, filled up with zeros, which change none of the three sums.
pub type Lanes = [f32; LANES];

/// How many [`Lanes`] a vector of `dim` numbers takes.
pub fn width(dim: usize) -> usize {
    dim.div_ceil(LANES)
}

/// Vectors of `dim` numbers, shape `[n, dim]`, as lanes of shape `[n, width(dim)]`; copied only where they need filling up.
pub fn lanes(vectors: &[f32], dim: usize) -> Cow<'_, [Lanes]> {
    let (whole, rest) = vectors.as_chunks::<LANES>();
    if dim.is_multiple_of(LANES) && rest.is_empty() {
        return Cow::Borrowed(whole);
    }
    let rows = vectors.chunks_exact(dim.max(1));
    Cow::Owned(rows.flat_map(|row| row.chunks(LANES).map(filled_up)).collect())
}

fn filled_up(part: &[f32]) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes[..part.len()].copy_from_slice(part);
    lanes
}

/// A sum over the pairs of numbers of two vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// Σ a·b
    Dot,
    /// Σ |a − b|
    L1,
    /// Σ (a − b)²
    SquaredL2,
}

impl Sum {
    pub const ALL: [Sum; 3] = [Sum::Dot, Sum::L1, Sum::SquaredL2];
}

/// What each sum means, as one would write it down: `f64`, from first to last.
pub fn naive(sum: Sum, a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    match sum {
        Sum::Dot => pairs.map(|(a, b)| a * b).sum(),
        Sum::L1 => pairs.map(|(a, b)| (a - b).abs()).sum(),
        Sum::SquaredL2 => pairs.map(|(a, b)| (a - b) * (a - b)).sum(),
    }
}

/// An instruction set that this processor has. There is no way to make one that it lacks: that is what the calls
/// of functions compiled for it rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// All that this processor can run, the fastest first; the last is always the portable one.
    pub fn available() -> Vec<Kernel> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                kernels.push(Kernel(Set::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kernels.push(Kernel(Set::Avx2));
            }
        }
        kernels.push(Kernel::portable());
        kernels
    }

    /// The fastest that this processor can run.
    pub fn best() -> Kernel {
        Kernel::available().first().copied().unwrap_or(Kernel::portable())
    }

    /// The one without `std::arch`.
    pub fn portable() -> Kernel {
        Kernel(Set::Portable)
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            Set::Portable => "portable",
        }
    }

    /// The sum of every query with every row, in `f32`.
    ///
    /// `queries` is `[q, width]`, `rows` is `[r, width]`, `out` becomes `[q, r]`. Rows are read once for all queries.
    pub fn fast(self, sum: Sum, queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f32]) {
        check_shapes(queries, rows, width, out.len());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Set::Avx512` is made only in `available`, after AVX-512F was detected.
            Set::Avx512 => unsafe { fast::avx512::sums(sum, queries, rows, width, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Set::Avx2` is made only in `available`, after AVX2 and FMA were detected.
            Set::Avx2 => unsafe { fast::avx2::sums(sum, queries, rows, width, out) },
            Set::Portable => fast::portable::sums(sum, queries, rows, width, out),
        }
    }

    /// The sum of every query with every row, in `f64`, the same bits on every machine.
    ///
    /// Shapes as in [`Kernel::fast`].
    pub fn exact(self, sum: Sum, queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f64]) {
        check_shapes(queries, rows, width, out.len());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Set::Avx512` is made only in `available`, after AVX-512F was detected.
            Set::Avx512 => unsafe { exact::avx512::sums(sum, queries, rows, width, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Set::Avx2` is made only in `available`, after AVX2 and FMA were detected.
            Set::Avx2 => unsafe { exact::avx2::sums(sum, queries, rows, width, out) },
            Set::Portable => exact::portable::sums(sum, queries, rows, width, out),
        }
    }
}

fn check_shapes(queries: &[Lanes], rows: &[Lanes], width: usize, out: usize) {
    assert!(
        width > 0 && queries.len().is_multiple_of(width) && rows.len().is_multiple_of(width),
        "whole vectors"
    );
    assert_eq!(out, (queries.len() / width) * (rows.len() / width), "one place for each pair");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Σ|terms| of the sum: the scale that its rounding errors are measured on.
    fn scale(sum: Sum, a: &[f32], b: &[f32]) -> f64 {
        let size = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
        if sum == Sum::Dot { naive(sum, &size(a), &size(b)) } else { naive(sum, a, b) }
    }

    /// Queries and rows of one dimension: any count, so that every edge of a tile is met; large and tiny numbers,
    /// zeros, and a row that is nearly a query.
    fn vectors() -> impl Strategy<Value = (usize, Vec<f32>, Vec<f32>)> {
        let number =
            prop_oneof![4 => -2.0f32..2.0, 1 => -1.0e4f32..1.0e4, 1 => -1.0e-6f32..1.0e-6, 1 => Just(0.0)];
        (1usize..70, 1usize..8, 1usize..11).prop_flat_map(move |(dim, queries, rows)| {
            let vectors = |n: usize| prop::collection::vec(number.clone(), n * dim);
            (Just(dim), vectors(queries), vectors(rows)).prop_map(|(dim, queries, mut rows)| {
                rows[..dim].iter_mut().zip(&queries).for_each(|(row, query)| *row = query * (1.0 + 3.0e-7));
                (dim, queries, rows)
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_kernel_agrees_with_its_naive_twin((dim, queries, rows) in vectors()) {
            let (query_lanes, row_lanes, width) = (lanes(&queries, dim), lanes(&rows, dim), width(dim));
            let row_count = rows.len() / dim;
            for sum in Sum::ALL {
                let mut exact_bits: Option<Vec<u64>> = None;
                for kernel in Kernel::available() {
                    let mut fast = vec![0.0; queries.len() / dim * row_count];
                    kernel.fast(sum, &query_lanes, &row_lanes, width, &mut fast);
                    let mut exact = vec![0.0; fast.len()];
                    kernel.exact(sum, &query_lanes, &row_lanes, width, &mut exact);
                    for (q, query) in queries.chunks(dim).enumerate() {
                        for (r, row) in rows.chunks(dim).enumerate() {
                            let (fast, exact) = (fast[q * row_count + r], exact[q * row_count + r]);
                            let (meant, scale) = (naive(sum, query, row), scale(sum, query, row));
                            prop_assert!((exact - meant).abs() <= 1e-13 * scale, "{} {sum:?}: {exact} for {meant}", kernel.name());
                            let off = (f64::from(fast) - meant).abs();
                            prop_assert!(off <= fast_error(dim) * scale + 1e-40, "{} {sum:?}: {fast} for {meant}", kernel.name());
                        }
                    }
                    let bits: Vec<u64> = exact.iter().map(|x| x.to_bits()).collect();
                    prop_assert_eq!(exact_bits.get_or_insert(bits.clone()), &bits);
                }
            }
        }
    }

    #[test]
    fn vectors_are_filled_up_with_zeros() {
        assert_eq!(lanes(&[1.0; 32], 16).len(), 2);
        let filled = lanes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        assert_eq!(filled.len(), 2);
        assert_eq!(filled[1][..4], [4.0, 5.0, 6.0, 0.0]);
    }

    #[test]
    fn the_portable_kernel_is_always_there() {
        assert_eq!(Kernel::available().last(), Some(&Kernel::portable()));
        assert_eq!(Kernel::available().first(), Some(&Kernel::best()));
    }
}
