//! The few ONNX messages that a convolutional network needs, as `prost` structs.
//!
//! Field numbers and enum values are those of `onnx/onnx.proto` (ONNX IR version 8). A newcomer would reach for the whole
//! schema; fields that are absent here are skipped on reading, which is all that the weights' source file asks for.
//! Encoding writes fields in the order of their numbers, so the same graph gives the same bytes on every machine.

use prost::Message;

/// `TensorProto.DataType`: the element types used here.
pub mod data_type {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
}

/// `AttributeProto.AttributeType`: the kinds used here.
mod attribute_type {
    pub const INT: i32 = 2;
    pub const INTS: i32 = 7;
}

#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "6")]
    pub doc_string: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    /// Empty: the standard operators.
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

impl AttributeProto {
    pub fn int(name: &str, value: i64) -> Self {
        Self { name: name.into(), i: value, ints: Vec::new(), r#type: attribute_type::INT }
    }

    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self { name: name.into(), i: 0, ints: values.to_vec(), r#type: attribute_type::INTS }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    pub name: String,
    /// Little-endian elements, row-major.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

impl TensorProto {
    fn raw(name: &str, dims: &[i64], data_type: i32, raw_data: Vec<u8>) -> Self {
        Self { dims: dims.to_vec(), data_type, float_data: Vec::new(), name: name.into(), raw_data }
    }

    pub fn f32(name: &str, dims: &[i64], values: &[f32]) -> Self {
        Self::raw(name, dims, data_type::FLOAT, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn i32(name: &str, dims: &[i64], values: &[i32]) -> Self {
        Self::raw(name, dims, data_type::INT32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn i64(name: &str, dims: &[i64], values: &[i64]) -> Self {
        Self::raw(name, dims, data_type::INT64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn i8(name: &str, dims: &[i64], values: &[i8]) -> Self {
        Self::raw(name, dims, data_type::INT8, values.iter().map(|value| value.to_le_bytes()[0]).collect())
    }

    pub fn u8(name: &str, dims: &[i64], values: &[u8]) -> Self {
        Self::raw(name, dims, data_type::UINT8, values.to_vec())
    }

    /// The numbers of a float tensor, whichever of the two fields holds them; `None` where they do not match the shape.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let len: i64 = self.dims.iter().try_fold(1i64, |product, &dim| product.checked_mul(dim))?;
        let values: Vec<f32> = if self.raw_data.is_empty() {
            self.float_data.clone()
        } else {
            let (words, rest) = self.raw_data.as_chunks::<4>();
            rest.is_empty().then(|| words.iter().map(|&word| f32::from_le_bytes(word)).collect())?
        };
        (self.data_type == data_type::FLOAT && usize::try_from(len) == Ok(values.len())).then_some(values)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// Absent: the shape is not known.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// `TensorShapeProto.Dimension`: a number, a name, or neither (not known).
#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

impl Dimension {
    pub fn fixed(value: i64) -> Self {
        Self { dim_value: Some(value), dim_param: None }
    }

    pub fn symbol(name: &str) -> Self {
        Self { dim_value: None, dim_param: Some(name.into()) }
    }
}

impl ValueInfoProto {
    /// A tensor of known rank.
    pub fn tensor(name: &str, elem_type: i32, dim: Vec<Dimension>) -> Self {
        let tensor_type = Some(TensorType { elem_type, shape: Some(TensorShapeProto { dim }) });
        Self { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    }
}

/// A model file without its weights: enough to check inputs and outputs before a runtime is loaded.
#[derive(Clone, PartialEq, Message)]
pub struct ModelHeader {
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphHeader>,
}

/// A graph's inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub struct GraphHeader {
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_survives_encoding() {
        let tensor = TensorProto::f32("w", &[2, 3], &[1.0, -2.5, 0.0, f32::MIN_POSITIVE, 4.0, 5.0]);
        let read = TensorProto::decode(tensor.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read.floats(), Some(vec![1.0, -2.5, 0.0, f32::MIN_POSITIVE, 4.0, 5.0]));
    }

    #[test]
    fn a_tensor_that_does_not_match_its_shape_has_no_numbers() {
        let mut tensor = TensorProto::f32("w", &[2, 2], &[1.0, 2.0, 3.0]);
        assert_eq!(tensor.floats(), None);
        tensor.dims = vec![3];
        tensor.raw_data.pop();
        assert_eq!(tensor.floats(), None);
        tensor.dims = vec![i64::MAX, i64::MAX];
        assert_eq!(tensor.floats(), None);
    }

    #[test]
    fn a_header_reads_what_the_whole_model_says() {
        let input = ValueInfoProto::tensor(
            "images",
            data_type::UINT8,
            vec![Dimension::symbol("N"), Dimension::fixed(3)],
        );
        let graph = GraphProto {
            node: vec![NodeProto { op_type: "Relu".into(), ..Default::default() }],
            initializer: vec![TensorProto::u8("z", &[], &[0])],
            input: vec![input.clone()],
            ..Default::default()
        };
        let model = ModelProto { ir_version: 8, graph: Some(graph), ..Default::default() };
        let header = ModelHeader::decode(model.encode_to_vec().as_slice()).unwrap();
        assert_eq!(header.graph.unwrap().input, vec![input]);
    }
}
