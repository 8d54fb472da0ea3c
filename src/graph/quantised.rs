//! Quantised tensors: how the file holds a weight as integers, and how activations are rounded.

use super::Value;
use crate::ops::quantise::Scales;

/// Scales and zero points of a quantised tensor, and which element they are for.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantisation {
    /// One or more, as `spread` says.
    pub scales: Scales,
    /// Which element has which.
    pub spread: Spread,
}

/// Which of the scales an element has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One for all.
    Tensor,
    /// One for each index along this logical axis.
    Axis(usize),
    /// One for each element, row-major.
    Each,
}

/// What a file has in place of a float weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantised {
    /// The tensor that was quantised.
    pub tensor: String,
    /// A float tensor beside it: its scale.
    pub scale: String,
    /// The output of the file's node that reads the integers itself; none where a DequantizeLinear gives the weight.
    pub inside: Option<String>,
}

impl Quantised {
    /// The name that the float tensor had: quantisers append `_quantized`.
    pub fn float_name(&self) -> &str {
        self.tensor.strip_suffix("_quantized").unwrap_or(&self.tensor)
    }
}

impl Value {
    /// Whether the file has its data, as they are or as integers, so that `merge` can replace them.
    pub fn is_in_file(&self) -> bool {
        self.stored || self.quantised.is_some()
    }
}
