//! One function over a block of rows, for one sum and one instruction set.

/// `$name(queries, rows, width, stride, out)`: the sum of every query with every row, each a vector of `width` chunks; that of query
/// q and row r becomes `out[q * stride + r]`. Works on tiles of `$q` queries x `$r` rows whose running sums stay in registers; what
/// is left over at the edges is done one by one. The module around it says what `zero`, `load` and `total` are.
macro_rules! block {
    ($name:ident, $features:literal, $chunk:ty => $out:ty, $q:literal x $r:literal, |$acc:ident, $a:ident, $b:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        fn $name(queries: &[$chunk], rows: &[$chunk], width: usize, stride: usize, out: &mut [$out]) {
            let (query_count, row_count) = (queries.len() / width, rows.len() / width);
            let mut r = 0;
            while r < row_count {
                let tall = if row_count - r >= $r { $r } else { 1 };
                let mut q = 0;
                while q < query_count {
                    let wide = if query_count - q >= $q { $q } else { 1 };
                    let (queries, rows) = (&queries[q * width..], &rows[r * width..]);
                    let out = &mut out[q * stride + r..];
                    match (wide, tall) {
                        (1, 1) => tile::<1, 1>(queries, rows, width, stride, out),
                        (1, _) => tile::<1, $r>(queries, rows, width, stride, out),
                        (_, 1) => tile::<$q, 1>(queries, rows, width, stride, out),
                        (_, _) => tile::<$q, $r>(queries, rows, width, stride, out),
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
                stride: usize,
                out: &mut [$out],
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
                        out[q * stride + r] = total(acc[q][r]);
                    }
                }
            }
        }
    };
}

pub(super) use block;
