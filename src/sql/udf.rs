//! Distances between two vectors as SQL functions: `cosine_similarity`, `dot_product`, `l1_distance`,
//! `l2_distance`.
//!
//! These are the raw values, not the scores of [`Metric::score`](crate::metric::Metric::score): for the
//! distances smaller is closer. Sums run in `f64`, from the first number to the last.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// All functions, for a session to register.
pub fn vector_functions() -> Vec<ScalarUDF> {
    let functions: [(&'static str, Kernel); 4] = [
        ("cosine_similarity", cosine_similarity),
        ("dot_product", |a, b| Some(dot(a, b))),
        ("l1_distance", |a, b| Some(a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum())),
        ("l2_distance", |a, b| Some(a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt())),
    ];
    functions
        .into_iter()
        .map(|(name, kernel)| {
            ScalarUDF::from(VectorFunction {
                name,
                kernel,
                signature: Signature::any(2, Volatility::Immutable),
            })
        })
        .collect()
}

/// Two vectors of one length → a value, or nothing where it is not defined.
type Kernel = fn(&[f64], &[f64]) -> Option<f64>;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Not defined for a vector of length zero.
fn cosine_similarity(a: &[f64], b: &[f64]) -> Option<f64> {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    (norms > 0.0).then(|| dot(a, b) / norms)
}

#[derive(Debug, Clone)]
struct VectorFunction {
    name: &'static str,
    kernel: Kernel,
    signature: Signature,
}

// The name says which kernel it is.
impl PartialEq for VectorFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for VectorFunction {}
impl std::hash::Hash for VectorFunction {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for VectorFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        for arg in args {
            let is_vector = match arg {
                DataType::Null => true,
                DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                    item.data_type().is_numeric() || item.data_type().is_null()
                }
                _ => false,
            };
            if !is_vector {
                return plan_err!("{} takes two lists of numbers, such as embedding, not {arg}", self.name);
            }
        }
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [a, b] = &args.args[..] else {
            return exec_err!("{} takes two vectors", self.name);
        };
        let is_constant = matches!((a, b), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let rows = if is_constant { 1 } else { args.number_rows };
        let (a, b) = (Vectors::new(a)?, Vectors::new(b)?);
        let mut values = Float64Array::builder(rows);
        for row in 0..rows {
            let value = match (a.get(row), b.get(row)) {
                (Some(a), Some(b)) if a.len() == b.len() => (self.kernel)(a, b),
                (Some(a), Some(b)) => {
                    return exec_err!(
                        "{}: vectors of {} and {} numbers cannot be compared",
                        self.name,
                        a.len(),
                        b.len()
                    );
                }
                _ => None,
            };
            values.append_option(value);
        }
        let values = values.finish();
        Ok(if is_constant {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&values, 0)?)
        } else {
            ColumnarValue::Array(Arc::new(values))
        })
    }
}

/// One argument as `f64` numbers: a column of vectors, or one vector for all rows.
struct Vectors {
    /// `LargeList<f64>`; empty for a NULL literal.
    lists: Option<ArrayRef>,
    is_scalar: bool,
}

impl Vectors {
    fn new(argument: &ColumnarValue) -> Result<Vectors> {
        let (array, is_scalar) = match argument {
            ColumnarValue::Array(array) => (array.clone(), false),
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
        };
        if array.data_type().is_null() {
            return Ok(Vectors { lists: None, is_scalar });
        }
        Ok(Vectors {
            lists: Some(cast(&array, &DataType::new_large_list(DataType::Float64, true))?),
            is_scalar,
        })
    }

    /// The vector of a row; nothing where it or one of its numbers is null.
    fn get(&self, row: usize) -> Option<&[f64]> {
        let lists = self.lists.as_ref()?.as_list::<i64>();
        let row = if self.is_scalar { 0 } else { row };
        let (start, end) = (lists.value_offsets()[row] as usize, lists.value_offsets()[row + 1] as usize);
        let numbers = lists.values().as_primitive::<Float64Type>();
        let has_null = numbers.nulls().is_some_and(|nulls| nulls.slice(start, end - start).null_count() > 0);
        (lists.is_valid(row) && !has_null).then(|| &numbers.values()[start..end])
    }
}
