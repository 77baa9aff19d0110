//! The thirteen convolutions of VGG16, read from either of two files that hold the same untouched ImageNet numbers.
//!
//! - an ONNX file whose initialisers are named as `tf2onnx` names those of the Keras model (kernels already `OIHW`);
//! - Keras' own `vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5` (kernels `HWIO`, turned here).
//!
//! The trap: Keras trained on **BGR** pixels. Kernels are returned as they are stored; [`build`](super::build) flips the
//! input channels of the first one, so that the finished graph takes RGB.

use std::path::Path;

use prost::Message;

use super::ModelError;
use super::onnx::ModelProto;

/// Name, input channels and output channels of each 3 x 3 convolution, in order of computation
/// (Simonyan, Zisserman 2014, "Very deep convolutional networks for large-scale image recognition", table 1, D).
pub const LAYERS: [(&str, usize, usize); 13] = [
    ("block1_conv1", 3, 64),
    ("block1_conv2", 64, 64),
    ("block2_conv1", 64, 128),
    ("block2_conv2", 128, 128),
    ("block3_conv1", 128, 256),
    ("block3_conv2", 256, 256),
    ("block3_conv3", 256, 256),
    ("block4_conv1", 256, 512),
    ("block4_conv2", 512, 512),
    ("block4_conv3", 512, 512),
    ("block5_conv1", 512, 512),
    ("block5_conv2", 512, 512),
    ("block5_conv3", 512, 512),
];

/// Height and width of every kernel.
pub const KERNEL: usize = 3;

/// One convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    pub name: &'static str,
    pub inputs: usize,
    pub outputs: usize,
    /// `[outputs, inputs, 3, 3]`, row-major.
    pub kernel: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// Reads the convolutions in the order of [`LAYERS`]; the kind of file is told by its content.
pub fn read(path: &Path) -> Result<Vec<Conv>, ModelError> {
    let bytes = super::read_file(path)?;
    let result = if hdf5_pure::is_hdf5_bytes(&bytes) { from_keras(bytes) } else { from_onnx(&bytes) };
    result.map_err(|reason| ModelError::Weights { path: path.display().to_string(), reason })
}

fn from_onnx(bytes: &[u8]) -> Result<Vec<Conv>, String> {
    let model = ModelProto::decode(bytes).map_err(|error| format!("neither ONNX nor HDF5 ({error})"))?;
    let graph = model.graph.ok_or("it is neither HDF5 nor an ONNX file with a graph")?;
    let find = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name);
    LAYERS
        .iter()
        .map(|&(name, inputs, outputs)| {
            let tensor = |suffix: &str, shape: &[usize]| {
                let full = format!("functional_1/{name}_1/{suffix}");
                let tensor = find(&full).ok_or_else(|| format!("initialiser {full} is missing"))?;
                let fits = tensor
                    .dims
                    .iter()
                    .map(|&dim| usize::try_from(dim).ok())
                    .eq(shape.iter().map(|&dim| Some(dim)));
                tensor
                    .floats()
                    .filter(|_| fits)
                    .ok_or_else(|| format!("initialiser {full} is not float32 of shape {shape:?}"))
            };
            let kernel = tensor("convolution/ReadVariableOp:0", &[outputs, inputs, KERNEL, KERNEL])?;
            let bias = tensor("Squeeze:0", &[outputs])?;
            Ok(Conv { name, inputs, outputs, kernel, bias })
        })
        .collect()
}

/// Keras files of different ages nest and name the two datasets of a layer differently
/// (`block1_conv1/block1_conv1_W_1:0`, `block1_conv1/block1_conv1/kernel:0`); in each, the layer's group holds one
/// 4-dimensional dataset and one 1-dimensional one.
fn from_keras(bytes: Vec<u8>) -> Result<Vec<Conv>, String> {
    let file =
        hdf5_pure::File::from_bytes(bytes).map_err(|error| format!("not a readable HDF5 file: {error}"))?;
    let root = file.group("model_weights").unwrap_or_else(|_| file.root());
    LAYERS
        .iter()
        .map(|&(name, inputs, outputs)| {
            let group = root.group(name).map_err(|_| format!("group {name} is missing"))?;
            let mut found = Vec::new();
            collect(&group, &mut found).map_err(|error| format!("group {name}: {error}"))?;
            let take = |shape: &[u64]| {
                let mut fitting = found.iter().filter(|(own, _)| own == shape);
                match (fitting.next(), fitting.next()) {
                    (Some((_, values)), None) => Ok(values),
                    (None, _) => Err(format!("group {name} holds no dataset of shape {shape:?}")),
                    (Some(_), Some(_)) => {
                        Err(format!("group {name} holds several datasets of shape {shape:?}"))
                    }
                }
            };
            let (kernel_shape, bias_shape) =
                ([KERNEL as u64, KERNEL as u64, inputs as u64, outputs as u64], [outputs as u64]);
            let kernel = oihw(take(&kernel_shape)?, inputs, outputs);
            let bias = take(&bias_shape)?.clone();
            Ok(Conv { name, inputs, outputs, kernel, bias })
        })
        .collect()
}

/// Shapes and numbers of all datasets in a group and the groups inside it.
fn collect(group: &hdf5_pure::Group, found: &mut Vec<(Vec<u64>, Vec<f32>)>) -> Result<(), hdf5_pure::Error> {
    for name in group.datasets()? {
        let dataset = group.dataset(&name)?;
        found.push((dataset.shape()?, dataset.read_f32()?));
    }
    for name in group.groups()? {
        collect(&group.group(&name)?, found)?;
    }
    Ok(())
}

/// `[3, 3, inputs, outputs]` → `[outputs, inputs, 3, 3]`.
fn oihw(hwio: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let mut kernel = Vec::with_capacity(hwio.len());
    for output in 0..outputs {
        for input in 0..inputs {
            for place in 0..KERNEL * KERNEL {
                kernel.push(hwio[(place * inputs + input) * outputs + output]);
            }
        }
    }
    kernel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_turned_from_keras_order() {
        // Element (y, x, i, o) carries its own address as a number.
        let (inputs, outputs) = (2, 5);
        let mut hwio = Vec::new();
        for y in 0..3 {
            for x in 0..3 {
                for i in 0..inputs {
                    for o in 0..outputs {
                        hwio.push((y * 1000 + x * 100 + i * 10 + o) as f32);
                    }
                }
            }
        }
        let turned = oihw(&hwio, inputs, outputs);
        for (at, value) in turned.iter().enumerate() {
            let (o, i, y, x) = (at / 18, at / 9 % 2, at / 3 % 3, at % 3);
            assert_eq!(*value, (y * 1000 + x * 100 + i * 10 + o) as f32);
        }
    }

    #[test]
    fn a_file_that_holds_no_weights_is_named_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        for (content, reason) in [("plain text", "neither"), ("", "graph")] {
            let path = folder.path().join("weights.onnx");
            std::fs::write(&path, content).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains("weights.onnx") && message.contains(reason), "{message}");
        }
        let missing = read(&folder.path().join("none.onnx")).unwrap_err().to_string();
        assert!(missing.contains("none.onnx"), "{missing}");
    }

    #[test]
    fn a_keras_file_without_the_layers_says_which_one_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.h5");
        let mut builder = hdf5_pure::FileBuilder::new();
        builder.create_dataset("other").with_f32_data(&[1.0]);
        builder.write(&path).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("block1_conv1"), "{message}");
    }
}
