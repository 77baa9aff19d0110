//! How many instructions the inner loops take: the same on a busy machine, so that a regression shows on any.
//!
//! benches/instructions.sh names one case after another and runs it under callgrind, which counts what [`measured`] does; by itself it
//! runs all cases and says their names. Valgrind knows AVX2 and no wider vectors, so that kernel is counted whatever the machine has.

use std::hint::black_box;
use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};
use imagedex::engines::flat::Flat;
use imagedex::engines::kernels::{self, Kernel, Sum};
use imagedex::engines::{Query, Searcher, VectorIndex};
use imagedex::metric::Metric;
use imagedex::models::Resize;
use imagedex::stages::decode::{self, DecodeOptions, Picture};
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::preprocess;
use imagedex::stages::scan::Split;

const DIM: usize = 512;
const ROWS: usize = 1_024;

fn main() {
    // Only this thread is counted.
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build_global()
        .expect("the first pool");
    distances();
    searches();
    pictures();
}

/// The unit that is counted. Its name is known to benches/instructions.sh.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
    // A last call would become a jump, and the function never be left.
    black_box(());
}

fn case(name: &str, mut work: impl FnMut()) {
    // Cargo hands over a `--bench`.
    if std::env::args().skip(1).any(|wanted| !wanted.starts_with('-') && wanted != name) {
        return;
    }
    // What is done once, such as finding out what the processor can do, is not counted.
    work();
    println!("{name}");
    measured(&mut work);
}

fn distances() {
    let kernel = Kernel::best();
    let (gallery, queries) = (numbers(ROWS * DIM, 1), numbers(64 * DIM, 2));
    let (rows, width) = (kernels::lanes(&gallery, DIM), kernels::width(DIM));
    for sum in Sum::ALL {
        for count in [1, 64] {
            let queries = kernels::lanes(&queries[..count * DIM], DIM);
            let mut out = vec![0.0; count * ROWS];
            case(&format!("{sum:?}, f32, {count} x {ROWS}"), || {
                kernel.fast(sum, &queries, &rows, width, black_box(&mut out));
            });
        }
        let queries = kernels::lanes(&queries[..32 * DIM], DIM);
        let mut out = vec![0.0; 32 * ROWS];
        case(&format!("{sum:?}, f64, 32 x {ROWS}"), || {
            kernel.exact(sum, &queries, &rows, width, black_box(&mut out));
        });
    }
}

fn searches() {
    let mut flat = Flat::new(true);
    flat.create(DIM).expect("an index");
    flat.upsert(&batch(ROWS)).expect("rows");
    flat.commit().expect("searchable");
    let asked = numbers(16 * DIM, 3);
    for (name, k) in [("ten nearest", 10), ("whole rankings", ROWS)] {
        let vectors = asked.chunks_exact(DIM);
        let queries: Vec<Query> = vectors
            .flat_map(|vector| Metric::ALL.into_iter().map(move |metric| Query { vector, k, metric }))
            .collect();
        case(&format!("{name}, 16 x 4 metrics"), || {
            flat.ranker()
                .expect("numbers")
                .rank_each(&queries, &|_, ranked| {
                    black_box(ranked);
                })
                .expect("ranked");
        });
    }
}

fn pictures() {
    let photo = DynamicImage::ImageRgb8(RgbImage::from_fn(500, 375, |x, y| {
        let wave = |a: u32, b: u32| ((x * a + y * b + (x * y) / 7) % 256) as u8;
        image::Rgb([wave(3, 1), wave(1, 2), wave(2, 5)])
    }));
    let options = DecodeOptions::default();
    for format in [ImageFormat::Jpeg, ImageFormat::Png] {
        let mut bytes = Cursor::new(Vec::new());
        photo.write_to(&mut bytes, format).expect("encodes");
        let bytes = bytes.into_inner();
        case(&format!("decode 500 x 375 {format:?}"), || {
            black_box(decode::decode(black_box(&bytes), &options).expect("decodes"));
        });
    }
    let mut bytes = Cursor::new(Vec::new());
    photo.write_to(&mut bytes, ImageFormat::Bmp).expect("encodes");
    let image = decode::decode(&bytes.into_inner(), &options).expect("decodes");
    for filter in [Resize::Nearest, Resize::Bilinear] {
        case(&format!("500 x 375 to 224 x 224, {}", filter.name()), || {
            black_box(preprocess::resize(black_box(&image), 224, filter).expect("resizes"));
        });
    }
    case("dhash of 500 x 375", || {
        black_box(decode::dhash(black_box(&image)));
    });
}

fn batch(count: usize) -> EmbeddingBatch {
    let picture = |i: usize| Picture {
        id: format!("{i:07}"),
        split: Split::Gallery,
        label: None,
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 1,
        height: 1,
        format: "png".to_owned(),
    };
    EmbeddingBatch {
        dim: DIM,
        pictures: (0..count).map(picture).collect(),
        vectors: numbers(count * DIM, 4),
        ..EmbeddingBatch::default()
    }
}

/// Numbers from 0 to 1 by a linear congruential generator (Knuth's MMIX constants).
fn numbers(count: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}
