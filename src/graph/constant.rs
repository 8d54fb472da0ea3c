//! Data of a constant: floats, or the integers of the file with their scales.

use std::sync::Arc;

use crate::kernels::integers::Integers;

/// Data of a constant tensor, row-major.
#[derive(Clone, Debug)]
pub enum Constant {
    /// As floats.
    Floats(Arc<[f32]>),
    /// As integers with scales; floats are made of them where they are needed.
    Integers(Arc<Integers>),
    /// As the transpose of a matrix of integers.
    TurnedIntegers(Arc<Integers>),
}

impl Constant {
    /// The values as floats; made anew each time where they are held as integers.
    pub fn values(&self) -> Arc<[f32]> {
        match self {
            Self::Floats(values) => values.clone(),
            Self::Integers(integers) => integers.values().into(),
            Self::TurnedIntegers(integers) => integers.turned_values().into(),
        }
    }

    /// The integers, and whether the tensor is their transpose.
    pub fn integers(&self) -> Option<(&Arc<Integers>, bool)> {
        match self {
            Self::Floats(_) => None,
            Self::Integers(integers) => Some((integers, false)),
            Self::TurnedIntegers(integers) => Some((integers, true)),
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Floats(values) => values.len() * size_of::<f32>(),
            Self::Integers(integers) | Self::TurnedIntegers(integers) => integers.bytes(),
        }
    }
}

impl From<Arc<[f32]>> for Constant {
    fn from(values: Arc<[f32]>) -> Self {
        Self::Floats(values)
    }
}

impl From<Vec<f32>> for Constant {
    fn from(values: Vec<f32>) -> Self {
        Self::Floats(values.into())
    }
}

impl<const N: usize> From<[f32; N]> for Constant {
    fn from(values: [f32; N]) -> Self {
        Self::Floats(values.into())
    }
}
