//! One file's way from bytes to model input, on one thread: decoding by format, then each resize filter; then the whole
//! way of real photos, where `../shared/data/grocery` is there.

use std::hint::black_box;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::{DynamicImage, ImageFormat, RgbImage};
use imagedex::models::Resize;
use imagedex::stages::decode::{self, DecodeOptions};
use imagedex::stages::preprocess;

/// A picture of 500 x 375 pixels, as large as those of Pascal VOC, with enough detail to cost a decoder something.
fn photo() -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(500, 375, |x, y| {
        let wave = |a: u32, b: u32| ((x * a + y * b + (x * y) / 7) % 256) as u8;
        image::Rgb([wave(3, 1), wave(1, 2), wave(2, 5)])
    }))
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode 500 x 375");
    group.throughput(Throughput::Elements(1));
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        let mut bytes = Cursor::new(Vec::new());
        photo().write_to(&mut bytes, format).expect("encodes");
        let bytes = bytes.into_inner();
        let options = DecodeOptions::default();
        group.bench_function(format!("{format:?}"), |bencher| {
            bencher.iter(|| decode::decode(black_box(&bytes), &options).expect("decodes"));
        });
    }
    group.finish();
}

fn resizing(criterion: &mut Criterion) {
    let mut bytes = Cursor::new(Vec::new());
    photo().write_to(&mut bytes, ImageFormat::Bmp).expect("encodes");
    let image = decode::decode(&bytes.into_inner(), &DecodeOptions::default()).expect("decodes");
    let mut group = criterion.benchmark_group("500 x 375 to 224 x 224");
    group.throughput(Throughput::Elements(1));
    for filter in [Resize::Nearest, Resize::Bilinear, Resize::Bicubic, Resize::Lanczos] {
        group.bench_function(filter.name(), |bencher| {
            bencher.iter(|| preprocess::resize(black_box(&image), 224, filter).expect("resizes"));
        });
    }
    group.bench_function("dhash", |bencher| bencher.iter(|| decode::dhash(black_box(&image))));
    group.finish();
}

/// The first photos of a shop, as files: what one thread of the pipeline does with each.
fn photos(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/grocery/dataset/train");
    let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(&folder)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect();
    paths.sort();
    paths.truncate(100);
    if paths.is_empty() {
        eprintln!("no photos in {}: the benchmark of real files is left out", folder.display());
        return;
    }
    let files: Vec<Vec<u8>> = paths.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    let mut group = criterion.benchmark_group("grocery photos");
    group.throughput(Throughput::Elements(files.len() as u64)).sample_size(10);
    let options = DecodeOptions::default();
    group.bench_function("decode", |bencher| {
        bencher
            .iter(|| files.iter().filter(|bytes| decode::decode(black_box(bytes), &options).is_ok()).count());
    });
    group.bench_function("decode, hash and resize (nearest)", |bencher| {
        bencher.iter(|| {
            for bytes in &files {
                let image = decode::decode(bytes, &options).expect("decodes");
                black_box(decode::dhash(&image));
                black_box(preprocess::resize(&image, 224, Resize::Nearest).expect("resizes"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, decoding, resizing, photos);
criterion_main!(benches);
