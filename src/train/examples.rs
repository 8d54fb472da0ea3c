//! Labelled model inputs in memory.

use super::TrainError;

/// Model inputs of one length with their label indices, one or more variants (augmented copies) each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    inputs: Vec<f32>,
    len: usize,
    variants: usize,
    targets: Vec<usize>,
}

impl Examples {
    /// No examples yet; each will have `variants` inputs of `len` values.
    pub fn new(len: usize, variants: usize) -> Self {
        Self { inputs: Vec::new(), len, variants: variants.max(1), targets: Vec::new() }
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
        self.inputs.extend_from_slice(inputs);
        self.targets.push(target);
        Ok(())
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

    /// Inputs an example has.
    pub fn variants(&self) -> usize {
        self.variants
    }

    /// Input `variant` of example `index`.
    pub fn input(&self, index: usize, variant: usize) -> &[f32] {
        let at = (index * self.variants + variant % self.variants) * self.len;
        &self.inputs[at..at + self.len]
    }

    /// Label index of example `index`.
    pub fn target(&self, index: usize) -> usize {
        self.targets[index]
    }

    /// Label indices.
    pub fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// The examples at `indices`.
    pub fn subset(&self, indices: &[usize]) -> Self {
        let mut out = Self::new(self.len, self.variants);
        for index in indices {
            let at = index * self.variants * self.len;
            out.inputs.extend_from_slice(&self.inputs[at..at + self.variants * self.len]);
            out.targets.push(self.targets[*index]);
        }
        out
    }

    /// The same examples with other inputs, made by `f` from each input.
    pub(crate) fn map<E>(&self, len: usize, mut f: impl FnMut(&[f32], &mut [f32]) -> Result<(), E>) -> Result<Self, E> {
        let mut inputs = vec![0.0; self.len() * self.variants * len];
        for (i, out) in inputs.chunks_exact_mut(len.max(1)).enumerate() {
            f(&self.inputs[i * self.len..(i + 1) * self.len], out)?;
        }
        Ok(Self { inputs, len, variants: self.variants, targets: self.targets.clone() })
    }
}
