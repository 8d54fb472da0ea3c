//! Labelled model inputs in memory.

use std::sync::Arc;

use ndarray::{ArrayView, ArrayViewD, Dimension};

use super::TrainError;

/// Model inputs of one length with their label indices, one or more variants (augmented copies) each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    /// Shared by clones, and by a cache where nothing is frozen.
    inputs: Arc<Vec<f32>>,
    shape: Vec<usize>,
    len: usize,
    variants: usize,
    targets: Vec<usize>,
}

impl Examples {
    /// No examples yet; each will have `variants` inputs of `len` values.
    pub fn new(len: usize, variants: usize) -> Self {
        Self::with_shape(&[len], variants)
    }

    /// No examples yet; each will have `variants` inputs of this shape. [`crate::Model::new_examples`] knows the model's.
    pub fn with_shape(shape: &[usize], variants: usize) -> Self {
        let len = shape.iter().product();
        Self { inputs: Arc::default(), shape: shape.into(), len, variants: variants.max(1), targets: Vec::new() }
    }

    /// Adds an example: its variants one behind the other.
    ///
    /// # Errors
    /// A wrong length, or a value that is not finite.
    pub fn push(&mut self, inputs: &[f32], target: usize) -> Result<(), TrainError> {
        if inputs.len() != self.len * self.variants {
            return Err(TrainError::Length { expected: self.len * self.variants, found: inputs.len() });
        }
        if inputs.iter().any(|v| !v.is_finite()) {
            return Err(TrainError::NotFinite { index: self.targets.len() });
        }
        Arc::make_mut(&mut self.inputs).extend_from_slice(inputs);
        self.targets.push(target);
        Ok(())
    }

    /// Adds an example from an array in the shape of an input, dimensions of 1 aside; where there are several variants
    /// they are its first dimension.
    ///
    /// # Errors
    /// Another shape, or a value that is not finite.
    pub fn push_array<D: Dimension>(&mut self, inputs: ArrayView<f32, D>, target: usize) -> Result<(), TrainError> {
        let mut expected = self.shape.clone();
        if self.variants > 1 {
            expected.insert(0, self.variants);
        }
        self.push(&row_major(inputs, &expected)?, target)
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Values of one input.
    pub fn input_len(&self) -> usize {
        self.len
    }

    /// Shape of one input.
    pub fn input_shape(&self) -> &[usize] {
        &self.shape
    }

    /// Inputs an example has.
    pub fn variants(&self) -> usize {
        self.variants
    }

    /// Input `variant` of example `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Examples::len`].
    pub fn input(&self, index: usize, variant: usize) -> &[f32] {
        let at = (index * self.variants + variant % self.variants) * self.len;
        &self.inputs[at..at + self.len]
    }

    /// All variants of example `index`, one behind the other.
    pub(super) fn example(&self, index: usize) -> &[f32] {
        let len = self.variants * self.len;
        &self.inputs[index * len..][..len]
    }

    /// [`Examples::input`] as an array in the shape of an input.
    ///
    /// # Panics
    /// As [`Examples::input`].
    pub fn input_array(&self, index: usize, variant: usize) -> ArrayViewD<'_, f32> {
        let input = self.input(index, variant);
        ArrayViewD::from_shape(self.shape.as_slice(), input).expect("an input has the values of its shape")
    }

    /// Label index of example `index`.
    pub fn target(&self, index: usize) -> usize {
        self.targets[index]
    }

    /// Label indices.
    pub fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// All inputs, one behind the other.
    pub(super) fn inputs(&self) -> &Arc<Vec<f32>> {
        &self.inputs
    }
}

/// The values of an array in row-major order, if it has the expected shape, dimensions of 1 aside.
pub(crate) fn row_major<D: Dimension>(array: ArrayView<f32, D>, expected: &[usize]) -> Result<Vec<f32>, TrainError> {
    let wide = |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|d| *d != 1).collect() };
    if wide(array.shape()) != wide(expected) {
        return Err(TrainError::Shape { expected: expected.into(), found: array.shape().into() });
    }
    Ok(array.iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, Array4};

    use super::*;

    #[test]
    fn arrays_of_the_input_shape_are_taken() {
        let mut examples = Examples::with_shape(&[1, 2, 3, 1], 1);
        let array = Array2::from_shape_fn((2, 3), |(i, j)| (10 * i + j) as f32);
        examples.push_array(array.view(), 0).unwrap();
        // Column-major in memory, row-major as an input.
        let columns = Array2::from_shape_fn((3, 2), |(j, i)| (10 * i + j) as f32).reversed_axes();
        examples.push_array(columns.view(), 1).unwrap();
        examples.push_array(Array4::zeros((1, 2, 3, 1)).view(), 2).unwrap();
        assert_eq!(examples.input(0, 0), [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
        assert_eq!(examples.input(1, 0), examples.input(0, 0));
        assert_eq!(examples.input_array(0, 0).shape(), [1, 2, 3, 1]);

        let error = examples.push_array(array.t(), 0).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 3, 1]") && error.contains("[3, 2]"), "{error}");
        assert!(examples.push_array(array.mapv(|v| v / 0.0).view(), 0).is_err());
        assert_eq!(examples.len(), 3);
    }

    #[test]
    fn variants_are_the_first_dimension() {
        let mut examples = Examples::with_shape(&[1, 2, 3], 4);
        examples.push_array(Array3::from_shape_fn((4, 2, 3), |(v, ..)| v as f32).view(), 0).unwrap();
        assert_eq!(examples.input(0, 3), [3.0; 6]);
        assert!(examples.push_array(Array2::zeros((2, 3)).view(), 0).is_err());
    }
}
