//! Sums in `f64`, the same bits on every machine.
//!
//! The order of additions is fixed: number i goes into running sum i mod 8, in turn; then the eight are added in halves, i and i + 4,
//! i and i + 2, i and i + 1. A product of two `f32` numbers is exact in `f64`, so that a dot product may be fused or not;
//! squares of differences are not exact, so they never are.
//!
//! Numbers are widened once for a block, not once for each pair: 64 rows of 512 numbers are 256 KB.

use super::{LANES, Lanes, Sum};

/// Numbers that are added up side by side: one AVX-512 register, two of AVX2, four of SSE or NEON.
type Wide = [f64; 8];
const WIDE: usize = 8;
/// Rows that are widened at once.
const BLOCK: usize = 64;

/// How far a squared distance that is made from an exact dot product can be from the exact sum of squares, as a share of
/// |a|² + |b|², for vectors of `dim` numbers.
///
/// Higham as at [`fast_error`](super::fast_error): n·u with the longest chain of n roundings, `dim / 8` and a few more. Dot product
/// and both squared lengths are off by that share of at most |a|² + |b|² together, the sum of squares by twice as much;
/// doubled for the terms of second order.
pub fn exact_error(dim: usize) -> f64 {
    const UNIT_ROUNDOFF: f64 = f64::EPSILON / 2.0;
    8.0 * (dim.div_ceil(WIDE) as f64 + 16.0) * UNIT_ROUNDOFF
}

/// Inlined into functions for each instruction set.
#[inline(always)]
fn widen(lanes: &[Lanes], wide: &mut Vec<Wide>) {
    let halves = lanes.as_flattened().as_chunks::<WIDE>().0;
    wide.resize(halves.len(), [0.0; WIDE]);
    for (wide, half) in wide.iter_mut().zip(halves) {
        for i in 0..WIDE {
            wide[i] = f64::from(half[i]);
        }
    }
}

/// `sums(sum, queries, rows, width, out)`, as [`Kernel::exact`](super::Kernel::exact) has it, from the module's functions over a block.
macro_rules! sums {
    ($(#[$feature:meta])?) => {
        $(#[$feature])?
        pub fn sums(sum: super::Sum, queries: &[super::Lanes], rows: &[super::Lanes], width: usize, out: &mut [f64]) {
            let (mut wide_queries, mut wide_rows) = (Vec::new(), Vec::new());
            super::widen(queries, &mut wide_queries);
            let (row_count, wide) = (rows.len() / width, width * super::LANES / super::WIDE);
            for (block, rows) in rows.chunks(super::BLOCK * width).enumerate() {
                super::widen(rows, &mut wide_rows);
                let out = &mut out[block * super::BLOCK..];
                match sum {
                    super::Sum::Dot => dot(&wide_queries, &wide_rows, wide, row_count, out),
                    super::Sum::L1 => l1(&wide_queries, &wide_rows, wide, row_count, out),
                    super::Sum::SquaredL2 => squared_l2(&wide_queries, &wide_rows, wide, row_count, out),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use std::arch::x86_64::*;

    use super::super::block::block;
    use super::Wide;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> __m512d {
        _mm512_setzero_pd()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(wide: &Wide) -> __m512d {
        // SAFETY: the reference guarantees 8 readable numbers; `loadu` asks for no alignment.
        unsafe { _mm512_loadu_pd(wide.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total(wide: __m512d) -> f64 {
        let four = _mm256_add_pd(_mm512_castpd512_pd256(wide), _mm512_extractf64x4_pd::<1>(wide));
        let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
        _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
    }

    // 16 running sums, 4 rows and a query number: 21 of 32 registers.
    block!(dot, "avx512f", Wide => f64, 4 x 4, |acc, a, b| _mm512_fmadd_pd(a, b, acc));
    block!(l1, "avx512f", Wide => f64, 4 x 4, |acc, a, b| _mm512_add_pd(acc, _mm512_abs_pd(_mm512_sub_pd(a, b))));
    block!(squared_l2, "avx512f", Wide => f64, 4 x 4, |acc, a, b| {
        let difference = _mm512_sub_pd(a, b);
        _mm512_add_pd(acc, _mm512_mul_pd(difference, difference))
    });
    sums!(#[target_feature(enable = "avx512f")]);
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use std::arch::x86_64::*;

    use super::super::block::block;
    use super::Wide;

    /// Numbers 0 to 3 and 4 to 7.
    #[derive(Clone, Copy)]
    struct Halves(__m256d, __m256d);

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn zero() -> Halves {
        Halves(_mm256_setzero_pd(), _mm256_setzero_pd())
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load(wide: &Wide) -> Halves {
        // SAFETY: the reference guarantees 8 readable numbers; `loadu` asks for no alignment.
        unsafe { Halves(_mm256_loadu_pd(wide.as_ptr()), _mm256_loadu_pd(wide[4..].as_ptr())) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn total(wide: Halves) -> f64 {
        let four = _mm256_add_pd(wide.0, wide.1);
        let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
        _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn size(a: __m256d, b: __m256d) -> __m256d {
        _mm256_andnot_pd(_mm256_set1_pd(-0.0), _mm256_sub_pd(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn square(a: __m256d, b: __m256d) -> __m256d {
        let difference = _mm256_sub_pd(a, b);
        _mm256_mul_pd(difference, difference)
    }

    // 8 registers of running sums, 4 of rows and 2 of a query: 14 of 16.
    block!(dot, "avx2,fma", Wide => f64, 2 x 2, |acc, a, b| {
        Halves(_mm256_fmadd_pd(a.0, b.0, acc.0), _mm256_fmadd_pd(a.1, b.1, acc.1))
    });
    block!(l1, "avx2,fma", Wide => f64, 2 x 2, |acc, a, b| {
        Halves(_mm256_add_pd(acc.0, size(a.0, b.0)), _mm256_add_pd(acc.1, size(a.1, b.1)))
    });
    block!(squared_l2, "avx2,fma", Wide => f64, 2 x 2, |acc, a, b| {
        Halves(_mm256_add_pd(acc.0, square(a.0, b.0)), _mm256_add_pd(acc.1, square(a.1, b.1)))
    });
    sums!(#[target_feature(enable = "avx2,fma")]);
}

/// Plain loops over independent numbers, which compilers turn into SSE or NEON.
pub mod portable {
    use super::{WIDE, Wide};

    macro_rules! block {
        ($name:ident, |$a:ident, $b:ident| $term:expr) => {
            fn $name(queries: &[Wide], rows: &[Wide], width: usize, stride: usize, out: &mut [f64]) {
                for (r, row) in rows.chunks_exact(width).enumerate() {
                    for (q, query) in queries.chunks_exact(width).enumerate() {
                        let mut acc = [0.0; WIDE];
                        for (a, b) in query.iter().zip(row) {
                            for i in 0..WIDE {
                                let ($a, $b) = (a[i], b[i]);
                                acc[i] += $term;
                            }
                        }
                        out[q * stride + r] = total(acc);
                    }
                }
            }
        };
    }

    fn total(acc: Wide) -> f64 {
        let four = [acc[0] + acc[4], acc[1] + acc[5], acc[2] + acc[6], acc[3] + acc[7]];
        (four[0] + four[2]) + (four[1] + four[3])
    }

    block!(dot, |a, b| a * b);
    block!(l1, |a, b| (a - b).abs());
    block!(squared_l2, |a, b| (a - b) * (a - b));
    sums!();
}
