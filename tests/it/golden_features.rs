//! The original program's features, against ours: `../shared/data/seed/train.h5`, written by Keras.

use std::path::Path;

use imagedex::embedders::Embedder;
use imagedex::models::card::ModelChoice;
use imagedex::models::{Precision, Provider, Resize};
use imagedex::stages::decode::{self, DecodeOptions};
use imagedex::stages::preprocess;

use crate::models::{arms, batch, load};
use crate::support::shared;

/// What the model sees of a file: decoded and resized as a run does it.
fn pixels(path: &Path) -> Vec<u8> {
    let image = decode::decode(&std::fs::read(path).unwrap(), &DecodeOptions::default()).unwrap();
    preprocess::resize(&image, 224, Resize::Nearest).unwrap()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum();
    let length = |sum: f64| sum.sqrt();
    let a = length(a.iter().map(|&a| f64::from(a).powi(2)).sum());
    dot / a / length(b.iter().map(|b| b * b).sum())
}

/// Normalised vectors of many pictures.
fn embed(embedder: &mut dyn Embedder, pictures: &[Vec<u8>]) -> Vec<Vec<f32>> {
    let dim = embedder.spec().dim;
    let batches = pictures
        .chunks(embedder.spec().batch)
        .map(|chunk| chunk.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let vectors: Vec<f32> = batches
        .collect::<Vec<_>>()
        .iter()
        .flat_map(|chunk| embedder.embed(batch(chunk)).unwrap().vectors)
        .collect();
    vectors.chunks(dim).map(<[f32]>::to_vec).collect()
}

#[test]
fn features_are_those_of_the_original_program() {
    let Some(seed) = shared("seed") else { return };
    let file = hdf5_pure::File::open(seed.join("train.h5")).unwrap();
    let features = file.dataset("dataset_1").unwrap().read_f64().unwrap();
    let names: Vec<String> = file.dataset("dataset_2").unwrap().read_string().unwrap();
    let names: Vec<_> = names.iter().map(|name| name.trim_end_matches('\0')).collect();
    assert_eq!((names.len(), features.len()), (26, 26 * 512));
    let pictures: Vec<_> = names.iter().map(|name| pixels(&seed.join("train").join(name))).collect();

    for (precision, provider) in arms() {
        let choice = ModelChoice { precision, provider, ..Default::default() };
        let vectors = embed(&mut load(&choice, 2), &pictures);
        let cosines: Vec<_> =
            vectors.iter().zip(features.chunks(512)).map(|(ours, theirs)| cosine(ours, theirs)).collect();
        for (name, cosine) in names.iter().zip(&cosines) {
            // Colour files of Caltech-101: their chroma was upsampled by another JPEG decoder when train.h5 was written.
            let other_decoder = name.starts_with("00") && *name != "002_anchor_image_0003.jpg";
            let least = match (precision, other_decoder) {
                (Precision::Fp32, false) => 0.999_999,
                (Precision::Fp32, true) | (Precision::Bf16, _) => 0.9995,
                (Precision::Int8, _) => 0.998,
            };
            assert!(
                *cosine >= least,
                "{precision} on {provider}: {name} has cosine {cosine}, less than {least}"
            );
        }
        let least = cosines.iter().copied().fold(1.0, f64::min);
        let mean = cosines.iter().sum::<f64>() / 26.0;
        println!("{precision:<5} {provider:<9} cosine to train.h5: mean {mean:.7}, least {least:.7}");
    }
}

#[test]
fn int8_agrees_with_fp32_on_shop_photos() {
    let Some(grocery) = shared("grocery") else { return };
    // Every 30th of the 1,215 pictures; the whole set gives the same picture and takes minutes.
    let list = std::fs::read_to_string(grocery.join("list.txt")).unwrap();
    let pictures: Vec<_> = list.lines().step_by(30).map(|line| pixels(&grocery.join(line.trim()))).collect();
    let choice = ModelChoice { precision: Precision::Fp32, provider: Provider::Cpu, ..Default::default() };
    let exact = embed(&mut load(&choice, 2), &pictures);
    for (precision, provider) in arms().into_iter().filter(|(precision, _)| *precision == Precision::Int8) {
        let vectors =
            embed(&mut load(&ModelChoice { precision, provider, ..Default::default() }, 2), &pictures);
        let wide = |vector: &Vec<f32>| vector.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let cosines: Vec<_> =
            vectors.iter().zip(&exact).map(|(int8, fp32)| cosine(int8, &wide(fp32))).collect();
        let least = cosines.iter().copied().fold(1.0, f64::min);
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        println!(
            "int8 on {provider}: cosine to fp32 over {} pictures: mean {mean:.6}, least {least:.6}",
            cosines.len()
        );
        assert!(mean >= 0.9995 && least >= 0.9985, "int8 on {provider}: mean {mean}, least {least}");
    }
}
