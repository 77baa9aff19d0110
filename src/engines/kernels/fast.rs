//! Sums in `f32`: whatever order of additions an instruction set is fastest with.

use super::{Lanes, Sum, width};

/// How far a fast sum can be from the true one, as a share of Σ|terms|, for vectors of `dim` numbers.
///
/// Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2: n·u for the longest chain of n roundings.
/// The longest here is AVX2's, `dim / 8` additions in a lane, then those of the lanes and the rounding of each term;
/// doubled for the terms of second order and for what callers multiply by.
pub fn fast_error(dim: usize) -> f64 {
    const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;
    2.0 * (2.0 * width(dim) as f64 + 24.0) * UNIT_ROUNDOFF
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use std::arch::x86_64::*;

    use super::super::block::block;
    use super::{Lanes, Sum};

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
    block!(dot, "avx512f", [f32; 16] => f32, 4 x 4, |acc, a, b| _mm512_fmadd_ps(a, b, acc));
    block!(l1, "avx512f", [f32; 16] => f32, 4 x 4, |acc, a, b| _mm512_add_ps(acc, _mm512_abs_ps(_mm512_sub_ps(a, b))));
    block!(squared_l2, "avx512f", [f32; 16] => f32, 4 x 4, |acc, a, b| {
        let difference = _mm512_sub_ps(a, b);
        _mm512_fmadd_ps(difference, difference, acc)
    });

    #[target_feature(enable = "avx512f")]
    pub fn sums(sum: Sum, queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f32]) {
        let stride = rows.len() / width;
        match sum {
            Sum::Dot => dot(queries, rows, width, stride, out),
            Sum::L1 => l1(queries, rows, width, stride, out),
            Sum::SquaredL2 => squared_l2(queries, rows, width, stride, out),
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use std::arch::x86_64::*;

    use super::super::block::block;
    use super::{Lanes, Sum};

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
    block!(dot, "avx2,fma", [f32; 8] => f32, 2 x 4, |acc, a, b| _mm256_fmadd_ps(a, b, acc));
    block!(l1, "avx2,fma", [f32; 8] => f32, 2 x 4, |acc, a, b| _mm256_add_ps(acc, abs(_mm256_sub_ps(a, b))));
    block!(squared_l2, "avx2,fma", [f32; 8] => f32, 2 x 4, |acc, a, b| {
        let difference = _mm256_sub_ps(a, b);
        _mm256_fmadd_ps(difference, difference, acc)
    });

    #[target_feature(enable = "avx2,fma")]
    pub fn sums(sum: Sum, queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f32]) {
        let stride = rows.len() / width;
        let (queries, rows, width) = (halves(queries), halves(rows), 2 * width);
        match sum {
            Sum::Dot => dot(queries, rows, width, stride, out),
            Sum::L1 => l1(queries, rows, width, stride, out),
            Sum::SquaredL2 => squared_l2(queries, rows, width, stride, out),
        }
    }

    fn halves(lanes: &[Lanes]) -> &[[f32; 8]] {
        lanes.as_flattened().as_chunks().0
    }
}

/// Plain loops over independent lanes, which compilers turn into SSE or NEON.
pub mod portable {
    use super::super::LANES;
    use super::{Lanes, Sum};

    macro_rules! block {
        ($name:ident, |$a:ident, $b:ident| $term:expr) => {
            fn $name(queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f32]) {
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

    pub fn sums(sum: Sum, queries: &[Lanes], rows: &[Lanes], width: usize, out: &mut [f32]) {
        match sum {
            Sum::Dot => dot(queries, rows, width, out),
            Sum::L1 => l1(queries, rows, width, out),
            Sum::SquaredL2 => squared_l2(queries, rows, width, out),
        }
    }
}
