//! Sums over pairs of vectors: dot product, L1 and squared L2, for whole blocks of rows at a time.
//!
//! Each sum exists three times: a *naive* twin in `f64` that says what is meant, an *exact* one in `f64` whose order
//! of additions is fixed (sixteen lanes, then the lanes from first to last), and a *fast* one in `f32`.
//! The exact one gives the same bits on every machine: the compiler may widen it to AVX-512 but never reorders or
//! fuses it. The fast one differs in the last bits between instruction sets, so nothing that a user sees may depend
//! on it; [`super::flat`] uses it only to leave out rows that cannot be among the nearest.
//!
//! What a newcomer would get wrong: choosing the instruction set per vector. A [`Kernel`] is chosen once per index
//! and runs over a block of rows inside one function compiled for that instruction set; a call per vector, or
//! `mul_add` outside such a function (a call into libm), is several times slower.

use std::borrow::Cow;

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
            Set::Avx512 => unsafe {
                match sum {
                    Sum::Dot => avx512::dot(queries, rows, width, out),
                    Sum::L1 => avx512::l1(queries, rows, width, out),
                    Sum::SquaredL2 => avx512::squared_l2(queries, rows, width, out),
                }
            },
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => {
                let queries = queries.as_flattened().as_chunks().0;
                let rows = rows.as_flattened().as_chunks().0;
                // SAFETY: `Set::Avx2` is made only in `available`, after AVX2 and FMA were detected.
                unsafe {
                    match sum {
                        Sum::Dot => avx2::dot(queries, rows, 2 * width, out),
                        Sum::L1 => avx2::l1(queries, rows, 2 * width, out),
                        Sum::SquaredL2 => avx2::squared_l2(queries, rows, 2 * width, out),
                    }
                }
            }
            Set::Portable => match sum {
                Sum::Dot => portable::dot(queries, rows, width, out),
                Sum::L1 => portable::l1(queries, rows, width, out),
                Sum::SquaredL2 => portable::squared_l2(queries, rows, width, out),
            },
        }
    }

    /// The sum of one query with every row, in `f64`, the same bits on every machine.
    ///
    /// `query` is `[width]`, `rows` is `[r, width]`, `out` becomes `[r]`.
    pub fn exact(self, sum: Sum, query: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f64]) {
        assert_eq!(query.len(), width, "one query");
        check_shapes(query, rows, width, out.len());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Set::Avx512` is made only in `available`, after AVX-512F was detected.
            Set::Avx512 => unsafe { exact_avx512(sum, query, rows, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Set::Avx2` is made only in `available`, after AVX2 was detected.
            Set::Avx2 => unsafe { exact_avx2(sum, query, rows, out) },
            Set::Portable => exact_rows(sum, query, rows, out),
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

/// How far a fast sum can be from the true one, as a share of Σ|terms|, for vectors of `dim` numbers.
///
/// Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2: n·u for the longest chain of n roundings.
/// The longest here is AVX2's, `dim / 8` additions in a lane, then those of the lanes and the rounding of each term;
/// doubled for the terms of second order and for what callers multiply by.
pub fn fast_error(dim: usize) -> f64 {
    const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;
    2.0 * (2.0 * width(dim) as f64 + 24.0) * UNIT_ROUNDOFF
}

/// The body of [`Kernel::exact`], inlined into one function per instruction set.
#[inline(always)]
fn exact_rows(sum: Sum, query: &[Lanes], rows: &[Lanes], out: &mut [f64]) {
    macro_rules! each_row {
        (|$a:ident, $b:ident| $term:expr) => {
            for (row, out) in rows.chunks_exact(query.len()).zip(out) {
                let mut acc = [0.0f64; LANES];
                for (a, b) in query.iter().zip(row) {
                    for lane in 0..LANES {
                        let ($a, $b) = (f64::from(a[lane]), f64::from(b[lane]));
                        acc[lane] += $term;
                    }
                }
                *out = acc.iter().sum();
            }
        };
    }
    match sum {
        Sum::Dot => each_row!(|a, b| a * b),
        Sum::L1 => each_row!(|a, b| (a - b).abs()),
        Sum::SquaredL2 => each_row!(|a, b| (a - b) * (a - b)),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn exact_avx512(sum: Sum, query: &[Lanes], rows: &[Lanes], out: &mut [f64]) {
    exact_rows(sum, query, rows, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn exact_avx2(sum: Sum, query: &[Lanes], rows: &[Lanes], out: &mut [f64]) {
    exact_rows(sum, query, rows, out);
}

/// One function over a block, for one sum and one instruction set. It works on tiles of `$q` queries x `$r` rows whose
/// running sums stay in registers; what is left over at the edges is done one by one.
#[cfg(target_arch = "x86_64")]
macro_rules! block {
    ($name:ident, $features:literal, $chunk:ty, $q:literal x $r:literal, |$acc:ident, $a:ident, $b:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        pub fn $name(queries: &[$chunk], rows: &[$chunk], width: usize, out: &mut [f32]) {
            let (query_count, row_count) = (queries.len() / width, rows.len() / width);
            let mut r = 0;
            while r < row_count {
                let tall = if row_count - r >= $r { $r } else { 1 };
                let mut q = 0;
                while q < query_count {
                    let wide = if query_count - q >= $q { $q } else { 1 };
                    let (queries, rows) = (&queries[q * width..], &rows[r * width..]);
                    let out = &mut out[q * row_count + r..];
                    match (wide, tall) {
                        (1, 1) => tile::<1, 1>(queries, rows, width, row_count, out),
                        (1, _) => tile::<1, $r>(queries, rows, width, row_count, out),
                        (_, 1) => tile::<$q, 1>(queries, rows, width, row_count, out),
                        (_, _) => tile::<$q, $r>(queries, rows, width, row_count, out),
                    }
                    q += wide;
                }
                r += tall;
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn tile<const Q: usize, const R: usize>(
                queries: &[$chunk],
                rows: &[$chunk],
                width: usize,
                row_count: usize,
                out: &mut [f32],
            ) {
                let mut acc = [[zero(); R]; Q];
                let (queries, rows) = (&queries[..Q * width], &rows[..R * width]);
                for i in 0..width {
                    let mut row = [zero(); R];
                    for r in 0..R {
                        row[r] = load(&rows[r * width + i]);
                    }
                    for q in 0..Q {
                        let $a = load(&queries[q * width + i]);
                        for r in 0..R {
                            let ($acc, $b) = (acc[q][r], row[r]);
                            acc[q][r] = $step;
                        }
                    }
                }
                for q in 0..Q {
                    for r in 0..R {
                        out[q * row_count + r] = total(acc[q][r]);
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(lanes: &[f32; 16]) -> __m512 {
        // SAFETY: the reference guarantees 16 readable floats; `loadu` asks for no alignment.
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total(lanes: __m512) -> f32 {
        _mm512_reduce_add_ps(lanes)
    }

    // 16 running sums, 4 rows and a query number: 21 of 32 registers.
    block!(dot, "avx512f", [f32; 16], 4 x 4, |acc, a, b| _mm512_fmadd_ps(a, b, acc));
    block!(l1, "avx512f", [f32; 16], 4 x 4, |acc, a, b| _mm512_add_ps(acc, _mm512_abs_ps(_mm512_sub_ps(a, b))));
    block!(squared_l2, "avx512f", [f32; 16], 4 x 4, |acc, a, b| {
        let difference = _mm512_sub_ps(a, b);
        _mm512_fmadd_ps(difference, difference, acc)
    });
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load(lanes: &[f32; 8]) -> __m256 {
        // SAFETY: the reference guarantees 8 readable floats; `loadu` asks for no alignment.
        unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn total(lanes: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn abs(lanes: __m256) -> __m256 {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), lanes)
    }

    // 8 running sums, 4 rows and a query number: 13 of 16 registers, room for a difference.
    block!(dot, "avx2,fma", [f32; 8], 2 x 4, |acc, a, b| _mm256_fmadd_ps(a, b, acc));
    block!(l1, "avx2,fma", [f32; 8], 2 x 4, |acc, a, b| _mm256_add_ps(acc, abs(_mm256_sub_ps(a, b))));
    block!(squared_l2, "avx2,fma", [f32; 8], 2 x 4, |acc, a, b| {
        let difference = _mm256_sub_ps(a, b);
        _mm256_fmadd_ps(difference, difference, acc)
    });
}

/// Plain loops over independent lanes, which compilers turn into SSE or NEON.
mod portable {
    use super::{LANES, Lanes};

    macro_rules! block {
        ($name:ident, |$a:ident, $b:ident| $term:expr) => {
            pub fn $name(queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f32]) {
                let row_count = rows.len() / width;
                for (r, row) in rows.chunks_exact(width).enumerate() {
                    for (q, query) in queries.chunks_exact(width).enumerate() {
                        let mut acc = [0.0f32; LANES];
                        for (a, b) in query.iter().zip(row) {
                            for lane in 0..LANES {
                                let ($a, $b) = (a[lane], b[lane]);
                                acc[lane] += $term;
                            }
                        }
                        out[q * row_count + r] = acc.iter().sum();
                    }
                }
            }
        };
    }

    block!(dot, |a, b| a * b);
    block!(l1, |a, b| (a - b).abs());
    block!(squared_l2, |a, b| (a - b) * (a - b));
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
                    for (query, out) in query_lanes.chunks(width).zip(exact.chunks_mut(row_count)) {
                        kernel.exact(sum, query, &row_lanes, width, out);
                    }
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
