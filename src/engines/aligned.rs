//! Rows in memory as the processor likes them: each [`Lanes`] on one cache line, and large pages, so that one long scan does
//! not spend its time on looking pages up.

use std::ops::Deref;

use super::kernels::Lanes;

/// Sixteen numbers on a cache line of their own: a register of AVX-512 is read at once.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line(Lanes);

/// A growing list of [`Lanes`].
#[derive(Debug, Default)]
pub struct AlignedLanes {
    lines: Vec<Line>,
}

impl AlignedLanes {
    /// With room for `count` of them.
    pub fn with_capacity(count: usize) -> AlignedLanes {
        let mut lines = Vec::new();
        lines.reserve_exact(count);
        let lanes = AlignedLanes { lines };
        lanes.advise_large_pages();
        lanes
    }

    pub fn extend_from_slice(&mut self, lanes: &[Lanes]) {
        self.lines.extend(lanes.iter().copied().map(Line));
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Asks for large pages where the system gives them on request, as numpy does: 2 MB instead of 4 KB on Linux. Nothing depends on
    /// the answer but speed.
    #[cfg(target_os = "linux")]
    fn advise_large_pages(&self) {
        const LARGE: usize = 2 << 20;
        let start = self.lines.as_ptr() as usize;
        let end = start + self.lines.capacity() * size_of::<Line>();
        let (first, last) = (start.next_multiple_of(LARGE), end / LARGE * LARGE);
        if first < last {
            // SAFETY: the range lies within memory that this list owns, and the advice changes no byte of it.
            unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn advise_large_pages(&self) {}
}

impl Deref for AlignedLanes {
    type Target = [Lanes];

    fn deref(&self) -> &[Lanes] {
        // SAFETY: a `Line` is one `Lanes` and nothing else (`repr(C)`, 64 bytes of 64), so as many of these lie at the same place;
        // the reference lives as long as that to the list.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast::<Lanes>(), self.lines.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_on_cache_lines() {
        for count in [0, 1, 5, 100_000] {
            let rows: Vec<Lanes> = (0..count).map(|i| [i as f32; 16]).collect();
            let mut lanes = AlignedLanes::with_capacity(count);
            rows.chunks(7).for_each(|rows| lanes.extend_from_slice(rows));
            assert!(lanes[..] == rows[..]);
            assert_eq!(lanes.as_ptr() as usize % 64, 0);
            assert_eq!(lanes.bytes(), count * 64);
        }
    }
}
