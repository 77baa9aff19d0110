//! The greatest activation of each convolution over some photos: what an 8-bit number has to span.
//!
//! Measured once and committed (`models/vgg16.int8.toml`), because the `int8` files must be the same bytes on every machine.
//! Minima need no measuring: after ReLU they are 0. Values are rounded *up* to four significant digits, so that the last
//! bits of another machine's arithmetic leave the file as it is, and no photo of the set is clipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::value::TensorRef;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::build::{self, Taps};
use super::weights::{self, LAYERS};
use super::{ModelError, Pooling};
use crate::embedders::Runtime;
use crate::embedders::onnx::environment;

/// Height and width of the pictures that [`calibrate`] takes.
pub const SIDE: usize = 224;

/// The committed file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    /// Number of pictures that it was measured on.
    pub pictures: usize,
    /// Greatest value after the ReLU of each layer, by the layer's name.
    pub max: BTreeMap<String, f64>,
}

impl Ranges {
    /// The ranges that the card of VGG16 was made with.
    pub fn shipped() -> Result<Ranges, ModelError> {
        Ranges::parse(include_str!("../../models/vgg16.int8.toml"), Path::new("vgg16.int8.toml"))
    }

    /// Reads a ranges file; every layer must be there, with a number above zero.
    pub fn load(path: &Path) -> Result<Ranges, ModelError> {
        let text = std::fs::read_to_string(path).map_err(|error| ModelError::Ranges {
            path: path.display().to_string(),
            reason: format!("cannot be read: {error}"),
        })?;
        Ranges::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Ranges, ModelError> {
        let wrong = |reason: String| ModelError::Ranges { path: path.display().to_string(), reason };
        let ranges: Ranges =
            toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        for (layer, _, _) in LAYERS {
            ranges.max(layer).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(ranges)
    }

    /// The greatest value of a layer.
    pub(super) fn max(&self, layer: &str) -> Result<f32, ModelError> {
        match self.max.get(layer) {
            Some(&max) if max.is_finite() && max > 0.0 => Ok(max as f32),
            found => Err(ModelError::Range { layer: layer.into(), found: format!("{found:?}") }),
        }
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# Greatest activation after the ReLU of each layer, rounded up to four digits; the least is 0.\n\
             # Made by `imagedex models calibrate`; the int8 files, and so their sums in the card, depend on it.\n\
             pictures = {}\n\n[max]\n",
            self.pictures
        );
        for (layer, max) in &self.max {
            text += &format!("{layer} = {max:?}\n");
        }
        text
    }
}

/// The picture files of a folder (`.jpg`, `.jpeg`, `.png`), sorted by name.
pub fn pictures(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let wrong = |reason: String| ModelError::Calibration { what: folder.display().to_string(), reason };
    let entries = std::fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let is_picture = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        ["jpg", "jpeg", "png"].iter().any(|known| extension == *known)
    };
    let mut paths: Vec<_> = entries
        .map_err(|error| wrong(error.to_string()))?
        .into_iter()
        .map(|entry| entry.path())
        .filter(is_picture)
        .collect();
    paths.sort();
    if paths.is_empty() { Err(wrong("it holds no .jpg or .png pictures".into())) } else { Ok(paths) }
}

/// Runs the `fp32` network over all pictures and keeps each layer's greatest activation.
///
/// `read` gives the pixels of a file as the card wants them: `u8 [224, 224, 3]`, RGB, resized with the card's filter.
pub fn calibrate(
    weights: &Path,
    pictures: &[PathBuf],
    read: impl Fn(&Path) -> Result<Vec<u8>, String>,
    runtime: &Runtime,
) -> Result<Ranges, ModelError> {
    let failed = |error: ort::Error| ModelError::Calibration {
        what: "onnx runtime".into(),
        reason: error.to_string(),
    };
    let convs = weights::read(weights)?;
    let model = build::graph(&convs, Pooling::Max, None, Taps::Maxima)?.encode_to_vec();
    drop(convs);
    let mut session = environment(&runtime.library)
        .map_err(|error| ModelError::Calibration { what: "onnx runtime".into(), reason: error.to_string() })
        .and_then(|environment| {
            let builder = Session::builder(environment).map_err(failed)?;
            let mut builder =
                builder.with_intra_threads(runtime.threads).map_err(|error| failed(error.into()))?;
            builder.commit_from_memory(&model).map_err(failed)
        })?;
    let mut greatest: BTreeMap<String, f32> = BTreeMap::new();
    for path in pictures {
        let wrong = |reason: String| ModelError::Calibration { what: path.display().to_string(), reason };
        let pixels = read(path).map_err(wrong)?;
        if pixels.len() != SIDE * SIDE * 3 {
            return Err(wrong(format!("{} bytes of pixels instead of {SIDE} x {SIDE} x 3", pixels.len())));
        }
        let input = TensorRef::from_array_view(([1, SIDE, SIDE, 3], &*pixels)).map_err(failed)?;
        let outputs = session.run(ort::inputs!["images" => input]).map_err(failed)?;
        for (layer, _, _) in LAYERS {
            let value: f32 = outputs[layer].try_extract_scalar().map_err(failed)?;
            let known = greatest.entry(layer.into()).or_insert(0.0);
            *known = known.max(value);
        }
    }
    let max = greatest.into_iter().map(|(layer, value)| (layer, round_up(f64::from(value)))).collect();
    Ok(Ranges { pictures: pictures.len(), max })
}

/// Up to four significant digits.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    // Decimal exponent of the fourth digit; dividing by a power of ten keeps what is printed short (949.3, not 949.3000000001).
    let places = 3 - value.log10().floor() as i32;
    if places >= 0 {
        (value * 10f64.powi(places)).ceil() / 10f64.powi(places)
    } else {
        (value / 10f64.powi(-places)).ceil() * 10f64.powi(-places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_up_to_four_digits() {
        for (value, rounded) in [
            (949.214, 949.3),
            (20520.289, 20530.0),
            (0.001_234_1, 0.001_235),
            (1000.0, 1000.0),
            (9999.5, 10000.0),
            (0.0, 0.0),
        ] {
            assert_eq!(round_up(value), rounded);
        }
    }

    #[test]
    fn a_ranges_file_reads_back_and_a_missing_layer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranges.toml");
        let max =
            LAYERS.iter().enumerate().map(|(i, (layer, _, _))| ((*layer).into(), i as f64 + 0.5)).collect();
        let mut ranges = Ranges { pictures: 20, max };
        std::fs::write(&path, ranges.to_toml()).unwrap();
        assert_eq!(Ranges::load(&path).unwrap(), ranges);

        ranges.max.insert("block3_conv1".into(), -1.0);
        std::fs::write(&path, ranges.to_toml()).unwrap();
        let message = Ranges::load(&path).unwrap_err().to_string();
        assert!(message.contains("ranges.toml") && message.contains("block3_conv1"), "{message}");
    }

    #[test]
    fn a_folder_without_pictures_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes.txt"), "").unwrap();
        assert!(pictures(folder.path()).unwrap_err().to_string().contains("no .jpg"));
        for name in ["b.JPG", "a.png"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(
            pictures(folder.path()).unwrap(),
            [folder.path().join("a.png"), folder.path().join("b.JPG")]
        );
    }
}
