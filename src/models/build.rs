//! Weights → ONNX files, the same bytes on every machine.
//!
//! One function draws the graph for both number formats: `fp32`, and `int8` as QDQ (quantise, dequantise) pairs around the
//! same nodes: 8-bit weights with one step per output channel, 8-bit inputs of every convolution with one step per tensor,
//! and the last convolution's result left in floats, which costs nothing on OpenVINO and gains most of what can be gained.
//! What a newcomer would get wrong:
//!
//! - Zero padding happens *after* the means are subtracted (as in Keras), so the means cannot be folded into the first
//!   convolution: a border pixel is the mean colour, not black.
//! - Keras' `pooling` with `include_top=False` acts after `block5_pool`, on 7 x 7, not on 14 x 14.
//! - The weights want BGR. The first kernel's input channels are flipped instead of the pixels.
//!
//! Outputs: `embedding`, `float32 [N, 512]`, of length 1, for other users of the file; and `pooled`, the same before
//! normalisation, which imagedex reads and normalises in `f64`, so that `normalize = none` needs no file of its own.

use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;

use super::calibrate::Ranges;
use super::card::Card;
use super::onnx::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, data_type,
};
use super::weights::{self, Conv, KERNEL};
use super::{ModelError, Pooling};

/// Mean of each channel over ImageNet, in RGB order: Keras' `preprocess_input` mode `caffe` (there as B, G, R).
const MEAN_RGB: [f32; 3] = [123.68, 116.779, 103.939];

/// What the int8 graph subtracts from the pixels, and the number in its fourth input channel. The grey is the middle of 8
/// bits; the constant makes the fourth channel's weights about as large as the others', so that one step serves all.
const GREY: u8 = 128;
const CONSTANT: u8 = 32;

/// Weights of one channel of a kernel.
const PLANE: usize = KERNEL * KERNEL;

/// Height and width of the input.
const SIDE: i64 = 224;

/// Length of a vector: channels of the last feature map.
const DIM: i64 = 512;

/// Exponent of the generalised mean, and the floor that keeps its root defined: the values that the authors start from
/// (Radenović, Tolias, Chum 2018).
const GEM_POWER: f32 = 3.0;
const GEM_FLOOR: f32 = 1e-6;

/// Opset 13 is the first with per-channel `DequantizeLinear`; IR version 8 is the newest that every runtime since 2021 reads.
const OPSET: i64 = 13;
const IR_VERSION: i64 = 8;

/// Greatest magnitude of a signed 8-bit weight; -128 stays unused, so that the range is symmetric.
const WEIGHT_LEVELS: f32 = 127.0;

/// How alike the inputs of two places of a 3 x 3 plane are, by the steps from one to the other, across and down: 0.65 to that power.
/// Between side neighbours 0.43 to 0.79 were measured, from layer to layer, on the photos that the ranges are from.
const LIKENESS: [f64; 5] = [1.0, 0.65, 0.4225, 0.274_625, 0.178_506_25];

/// Each weight is looked at so often, unless nothing changes any more; VGG16 takes six times at most.
const SWEEPS: usize = 10;

/// Steps of an unsigned 8-bit activation.
const LEVELS: f32 = 255.0;

const DOC: &str = "VGG16 without its classifier. Weights: Visual Geometry Group, University of Oxford, CC BY 4.0, \
                   trained on ImageNet; numbers as published with Keras. Input: uint8 RGB, [N, 224, 224, 3].";

/// A file that `build` made or found already right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub file: PathBuf,
    pub sha256: String,
    pub bytes: u64,
    /// False: it was there and right.
    pub made: bool,
}

/// Builds every file of the card into `models_dir`, each written under another name and renamed when complete.
///
/// Files that are already right are left alone. A file whose SHA-256 is not the card's is not kept: [`ModelError::Built`]
/// lists each of them with both sums.
pub fn build(
    card: &Card,
    weights: &Path,
    ranges: &Ranges,
    models_dir: &Path,
) -> Result<Vec<Built>, ModelError> {
    let io = |path: &Path, error: std::io::Error| ModelError::Write {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    if card.weights.is_none() {
        return Err(ModelError::Choice {
            card: card.name.clone(),
            reason: "its files are not built: it has no [weights]".into(),
        });
    }
    std::fs::create_dir_all(models_dir).map_err(|error| io(models_dir, error))?;
    let mut convs = None;
    let (mut built, mut wrong) = (Vec::new(), Vec::new());
    for entry in &card.files {
        let path = models_dir.join(&entry.file);
        if path.is_file() && super::sha256_of(&path)? == entry.sha256 {
            let bytes = std::fs::metadata(&path).map_err(|error| io(&path, error))?.len();
            built.push(Built { file: path, sha256: entry.sha256.clone(), bytes, made: false });
            continue;
        }
        let convs = match &convs {
            Some(convs) => convs,
            None => convs.insert(weights::read(weights)?),
        };
        let ranges = match entry.format {
            super::card::Format::Fp32 => None,
            super::card::Format::Int8 => Some(ranges),
        };
        let bytes = graph(convs, entry.pooling, ranges, Taps::No)?.encode_to_vec();
        let sha256 = super::sha256_hex(&bytes);
        if sha256 != entry.sha256 {
            wrong.push(format!("{} has sha256 {sha256}, the card says {}", entry.file, entry.sha256));
            continue;
        }
        let mut file =
            crate::stages::report::temporary_in(models_dir).map_err(|error| io(models_dir, error))?;
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(|error| io(&path, error))?;
        file.persist(&path).map_err(|error| io(&path, error.error))?;
        built.push(Built { file: path, sha256, bytes: bytes.len() as u64, made: true });
    }
    if wrong.is_empty() {
        Ok(built)
    } else {
        Err(ModelError::Built { card: card.name.clone(), wrong: wrong.join("; ") })
    }
}

/// Whether the graph also returns what calibration wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taps {
    No,
    /// One more output per convolution: the greatest value after its ReLU, over the whole batch, a scalar named as the layer.
    Maxima,
}

/// The whole network. With `ranges` it is the int8 one.
pub(super) fn graph(
    convs: &[Conv],
    pooling: Pooling,
    ranges: Option<&Ranges>,
    taps: Taps,
) -> Result<ModelProto, ModelError> {
    let mut draw = Drawing::default();
    // The cheap order: one byte per channel is moved, not four.
    let planar =
        draw.node("Transpose", &["images"], "planar", vec![AttributeProto::ints("perm", &[0, 3, 1, 2])]);
    // `step` is that of the 8-bit numbers in `x`; none in the float graph and after the last convolution.
    let (mut x, mut step) = match ranges {
        None => (draw.centred(&planar), None),
        Some(_) => (draw.centred_at_grey(&planar), Some(1.0)),
    };

    for (i, conv) in convs.iter().enumerate() {
        let name = conv.name;
        let kernel = match (i, ranges) {
            (0, None) => flip_inputs(conv),
            (0, Some(_)) => with_constant_channel(&flip_inputs(conv)),
            _ => conv.kernel.clone(),
        };
        let (kernel, bias) = draw.parameters(conv, &kernel, step);
        let attributes = vec![
            AttributeProto::ints("kernel_shape", &[KERNEL as i64; 2]),
            AttributeProto::ints("pads", &[1; 4]),
            AttributeProto::ints("strides", &[1; 2]),
        ];
        let sum = draw.node("Conv", &[&x, &kernel, &bias], &format!("{name}_sum"), attributes);
        x = draw.node("Relu", &[&sum], &format!("{name}_relu"), vec![]);
        if taps == Taps::Maxima {
            let keep = AttributeProto::int("keepdims", 0);
            draw.node("ReduceMax", &[&x], name, vec![keep]);
            draw.outputs.push(ValueInfoProto::tensor(name, data_type::FLOAT, vec![]));
        }
        step = match ranges {
            Some(ranges) if i + 1 < convs.len() => Some(ranges.max(name)? / LEVELS),
            _ => None,
        };
        if let Some(step) = step {
            x = draw.quantised(&x, step);
        }
        let block_ends = convs.get(i + 1).is_none_or(|next| next.name[..6] != name[..6]);
        if block_ends {
            let window =
                vec![AttributeProto::ints("kernel_shape", &[2; 2]), AttributeProto::ints("strides", &[2; 2])];
            x = draw.node("MaxPool", &[&x], &format!("{}_pool", &name[..6]), window);
            // The greatest of some 8-bit numbers is one of them, so this pair changes nothing; it lets the runtime pool bytes.
            if let Some(step) = step {
                x = draw.quantised(&x, step);
            }
        }
    }

    let pooled = draw.pooled(&x, pooling);
    let flat = AttributeProto::int("axis", 1);
    draw.node("Flatten", &[&pooled], "pooled", vec![flat]);
    draw.initializers.push(TensorProto::f32("least_length", &[], &[1e-12]));
    let over_channels = vec![AttributeProto::ints("axes", &[1]), AttributeProto::int("keepdims", 1)];
    let length = draw.node("ReduceL2", &["pooled"], "length", over_channels);
    let length = draw.node("Max", &[&length, "least_length"], "positive_length", vec![]);
    draw.node("Div", &["pooled", &length], "embedding", vec![]);

    let vector = || vec![Dimension::symbol("N"), Dimension::fixed(DIM)];
    let mut output = vec![
        ValueInfoProto::tensor("embedding", data_type::FLOAT, vector()),
        ValueInfoProto::tensor("pooled", data_type::FLOAT, vector()),
    ];
    output.append(&mut draw.outputs);
    let pixels =
        vec![Dimension::symbol("N"), Dimension::fixed(SIDE), Dimension::fixed(SIDE), Dimension::fixed(3)];
    let graph = GraphProto {
        node: draw.nodes,
        name: "vgg16".into(),
        initializer: draw.initializers,
        input: vec![ValueInfoProto::tensor("images", data_type::UINT8, pixels)],
        output,
    };
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: "imagedex".into(),
        doc_string: DOC.into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
    })
}

/// Nodes and constants, as they are added.
#[derive(Default)]
struct Drawing {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    outputs: Vec<ValueInfoProto>,
}

impl Drawing {
    /// Adds a node with one output, which also names the node; returns the output's name.
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            name: output.into(),
            op_type: op.into(),
            attribute,
        });
        output.into()
    }

    /// Pixels minus the means, as floats.
    fn centred(&mut self, planar: &str) -> String {
        let to_float = AttributeProto::int("to", i64::from(data_type::FLOAT));
        let float = self.node("Cast", &[planar], "float", vec![to_float]);
        self.initializers.push(TensorProto::f32("mean", &[1, 3, 1, 1], &MEAN_RGB));
        self.node("Sub", &[&float, "mean"], "centred", vec![])
    }

    /// Pixels minus [`GREY`], which 8 bits hold exactly, and a fourth channel that is [`CONSTANT`] everywhere.
    ///
    /// Pixels minus the *means* are no whole numbers; rounding them costs more accuracy than any other layer. So the rest of
    /// each mean is left to the first kernel: it weighs the constant channel. Outside the picture that channel is 0 like
    /// the others, so the zero padding is still Keras'.
    fn centred_at_grey(&mut self, planar: &str) -> String {
        // One channel more behind the three: begins and ends of the axes N, C, H, W.
        self.initializers.push(TensorProto::i64("one_channel_more", &[8], &[0, 0, 0, 0, 0, 1, 0, 0]));
        self.initializers.push(TensorProto::u8("constant", &[], &[GREY + CONSTANT]));
        self.initializers.push(TensorProto::f32("pixel_scale", &[], &[1.0]));
        self.initializers.push(TensorProto::u8("pixel_zero", &[], &[GREY]));
        let four = self.node("Pad", &[planar, "one_channel_more", "constant"], "with_constant", vec![]);
        self.node("DequantizeLinear", &[&four, "pixel_scale", "pixel_zero"], "centred", vec![])
    }

    /// Rounds `x`, which is never negative, to 8 unsigned bits: one step for the whole tensor, zero point 0.
    fn quantised(&mut self, x: &str, step: f32) -> String {
        let (scale, point) = (format!("{x}_scale"), format!("{x}_zero"));
        self.initializers.push(TensorProto::f32(&scale, &[], &[step]));
        self.initializers.push(TensorProto::u8(&point, &[], &[0]));
        let bytes = self.node("QuantizeLinear", &[x, &scale, &point], &format!("{x}_q"), vec![]);
        self.node("DequantizeLinear", &[&bytes, &scale, &point], &format!("{x}_dq"), vec![])
    }

    /// Kernel and bias of a convolution: floats where its input is float (`input_step` is `None`), else 8-bit weights with
    /// one step per output channel and 32-bit biases in units of the products' step.
    fn parameters(&mut self, conv: &Conv, kernel: &[f32], input_step: Option<f32>) -> (String, String) {
        let (outputs, inputs) = (conv.outputs as i64, (kernel.len() / (conv.outputs * PLANE)) as i64);
        let shape = [outputs, inputs, KERNEL as i64, KERNEL as i64];
        let (w, b) = (format!("{}_kernel", conv.name), format!("{}_bias", conv.name));
        let Some(input_step) = input_step else {
            self.initializers.push(TensorProto::f32(&w, &shape, kernel));
            self.initializers.push(TensorProto::f32(&b, &[outputs], &conv.bias));
            return (w, b);
        };
        let (steps, weights) = quantise_kernel(kernel, conv.outputs);
        let sum_steps: Vec<f32> = steps.iter().map(|step| step * input_step).collect();
        let biases: Vec<i32> = conv
            .bias
            .iter()
            .zip(&sum_steps)
            .map(|(bias, step)| (bias / step).round_ties_even() as i32)
            .collect();
        let integers = [
            TensorProto::i8(&format!("{w}_q"), &shape, &weights),
            TensorProto::i32(&format!("{b}_q"), &[outputs], &biases),
        ];
        let zeros = [
            TensorProto::i8(&format!("{w}_zero"), &[outputs], &vec![0; conv.outputs]),
            TensorProto::i32(&format!("{b}_zero"), &[outputs], &vec![0; conv.outputs]),
        ];
        for ((name, steps), (integers, zeros)) in
            [(&w, steps), (&b, sum_steps)].into_iter().zip(integers.into_iter().zip(zeros))
        {
            let scale = format!("{name}_scale");
            let inputs = [integers.name.clone(), scale.clone(), zeros.name.clone()];
            self.initializers.extend([integers, TensorProto::f32(&scale, &[outputs], &steps), zeros]);
            let per_output = AttributeProto::int("axis", 0);
            self.node("DequantizeLinear", &inputs.each_ref().map(String::as_str), name, vec![per_output]);
        }
        (w, b)
    }

    /// `[N, 512, 7, 7]` → `[N, 512, 1, 1]`.
    ///
    /// [`Pooling::Model`] is refused before: a card with weights to build from names the poolings of its files.
    fn pooled(&mut self, x: &str, pooling: Pooling) -> String {
        match pooling {
            Pooling::Max | Pooling::Model => self.node("GlobalMaxPool", &[x], "peak", vec![]),
            Pooling::Avg => self.node("GlobalAveragePool", &[x], "mean_of_map", vec![]),
            Pooling::Gem => {
                self.initializers.push(TensorProto::f32("gem_floor", &[], &[GEM_FLOOR]));
                self.initializers.push(TensorProto::f32("gem_power", &[], &[GEM_POWER]));
                self.initializers.push(TensorProto::f32("gem_root", &[], &[1.0 / GEM_POWER]));
                let x = self.node("Max", &[x, "gem_floor"], "gem_floored", vec![]);
                let x = self.node("Pow", &[&x, "gem_power"], "gem_cubes", vec![]);
                let x = self.node("GlobalAveragePool", &[&x], "gem_mean", vec![]);
                self.node("Pow", &[&x, "gem_root"], "gem", vec![])
            }
        }
    }
}

/// BGR → RGB: the input channels of a kernel in reverse order.
fn flip_inputs(conv: &Conv) -> Vec<f32> {
    conv.kernel
        .chunks_exact(conv.inputs * PLANE)
        .flat_map(|output| output.chunks_exact(PLANE).rev().flatten().copied())
        .collect()
}

/// The first kernel, RGB, with a fourth input channel for [`Drawing::centred_at_grey`]: the three others times what is
/// missing from the grey to their means.
fn with_constant_channel(rgb_kernel: &[f32]) -> Vec<f32> {
    let mut kernel = Vec::with_capacity(rgb_kernel.len() / 3 * 4);
    for output in rgb_kernel.chunks_exact(3 * PLANE) {
        kernel.extend_from_slice(output);
        for place in 0..PLANE {
            let shift =
                |channel: usize| output[channel * PLANE + place] * (f32::from(GREY) - MEAN_RGB[channel]);
            kernel.push((shift(0) + shift(1) + shift(2)) / f32::from(CONSTANT));
        }
    }
    kernel
}

/// The step of each output channel and the weights in these steps.
fn quantise_kernel(kernel: &[f32], outputs: usize) -> (Vec<f32>, Vec<i8>) {
    let mut steps = Vec::with_capacity(outputs);
    let mut weights = Vec::with_capacity(kernel.len());
    for channel in kernel.chunks_exact(kernel.len() / outputs) {
        let greatest = channel.iter().fold(0f32, |greatest, weight| greatest.max(weight.abs()));
        // A channel of zeros needs some step; any will do.
        let step = if greatest > 0.0 { greatest / WEIGHT_LEVELS } else { 1.0 };
        steps.push(step);
        for plane in channel.as_chunks::<PLANE>().0 {
            weights.extend(round_together(&plane.map(|weight| f64::from(weight) / f64::from(step))));
        }
    }
    (steps, weights)
}

/// Rounds the weights of one plane so that their errors cancel: with `e` the errors and `R` how alike their inputs are, to a low
/// `sum of e[i] * R[i][j] * e[j]`, one weight after the other, over and over.
///
/// Neighbouring inputs are alike, so errors of neighbouring weights add up, which rounding each to the nearest leaves to chance. Sums and
/// products in a fixed order, so the same on every machine.
fn round_together(exact: &[f64; PLANE]) -> [i8; PLANE] {
    let levels = f64::from(WEIGHT_LEVELS);
    let round = |x: f64| x.round_ties_even().clamp(-levels, levels);
    let likeness =
        |a: usize, b: usize| LIKENESS[(a / KERNEL).abs_diff(b / KERNEL) + (a % KERNEL).abs_diff(b % KERNEL)];
    let mut rounded = exact.map(round);
    for _ in 0..SWEEPS {
        let before = rounded;
        for at in 0..PLANE {
            let mut others = 0.0;
            for other in (0..PLANE).filter(|&other| other != at) {
                others += likeness(at, other) * (rounded[other] - exact[other]);
            }
            rounded[at] = round(exact[at] - others);
        }
        if rounded == before {
            break;
        }
    }
    rounded.map(|weight| weight as i8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_rounded_to_127_steps_of_each_output() {
        let mut kernel = [0.0; 2 * PLANE];
        kernel[4] = -2.54;
        let (steps, weights) = quantise_kernel(&kernel, 2);
        assert!((steps[0] - 0.02).abs() < 1e-8 && steps[1] == 1.0, "{steps:?}");
        let mut expected = [0; 2 * PLANE];
        expected[4] = -127;
        assert_eq!(weights, expected);
    }

    /// As the reference in numpy has it.
    #[test]
    fn errors_of_neighbouring_weights_cancel() {
        assert_eq!(round_together(&[0.4; PLANE]), [0, 1, 0, 1, 0, 0, 0, 0, 1]);
        let exact = [127.0, 1.45, -2.4, 3.3, 0.6, -0.45, 10.5, 7.2, -126.7];
        assert_eq!(round_together(&exact), [127, 1, -2, 3, 1, -1, 11, 7, -127]);
    }

    /// The int8 graph's first layer has to see the very numbers that the float one sees.
    #[test]
    fn grey_and_the_constant_channel_together_are_the_means() {
        let kernel: Vec<f32> = (0..2 * 3 * PLANE).map(|i| (i as f32 * 0.7).sin()).collect();
        let four = with_constant_channel(&kernel);
        let pixel = [200.0, 17.0, 90.0];
        for output in 0..2 {
            for place in 0..PLANE {
                let weight = |channel: usize| kernel[(output * 3 + channel) * PLANE + place];
                let expected: f32 = (0..3).map(|c| weight(c) * (pixel[c] - MEAN_RGB[c])).sum();
                let weight = |channel: usize| four[(output * 4 + channel) * PLANE + place];
                let grey: f32 = (0..3).map(|c| weight(c) * (pixel[c] - f32::from(GREY))).sum();
                let found = grey + weight(3) * f32::from(CONSTANT);
                assert!((found - expected).abs() < 1e-3, "{found} {expected}");
            }
        }
    }

    #[test]
    fn the_first_kernel_takes_rgb() {
        let kernel = (0..2 * 3 * PLANE).map(|i| i as f32).collect();
        let conv = Conv { name: "c", inputs: 3, outputs: 2, kernel, bias: vec![0.0; 2] };
        let flipped = flip_inputs(&conv);
        assert_eq!([flipped[0], flipped[9], flipped[18], flipped[27]], [18.0, 9.0, 0.0, 45.0]);
        assert_eq!(flipped[26], 8.0);
    }
}
