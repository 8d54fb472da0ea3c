//! Shapes of a site's tensors in memory and in the file, and what they must hold.

use super::AdapterError;
use crate::graph::Layout;
use crate::lora::{AdapterSite, Delta};

/// Sizes of a site's layer, from its table entry or its graph site.
pub(super) struct Dims {
    pub(super) outputs: usize,
    /// Inputs of a group.
    pub(super) inputs: usize,
    pub(super) groups: usize,
    /// Kernel dimensions of a convolution.
    pub(super) kernel: Option<Vec<usize>>,
    pub(super) weight: usize,
}

impl Dims {
    pub(super) fn new(shape: &[usize], layout: Layout, groups: usize) -> Option<Self> {
        let mut weight = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n > 0)?;
        let (outputs, inputs, kernel) = match (layout, shape) {
            (Layout::OutInKernel, [out, inputs, kernel @ ..]) if !kernel.is_empty() => {
                (*out, *inputs, Some(kernel.to_vec()))
            }
            (Layout::InOut | Layout::Rows, [inputs, out]) | (Layout::OutIn, [out, inputs]) if groups == 1 => {
                (*out, *inputs, None)
            }
            (Layout::Stacked { part }, [parts, out, inputs]) if groups == 1 && part < *parts => {
                weight /= parts;
                (*out, *inputs, None)
            }
            _ => return None,
        };
        inputs.checked_mul(groups)?;
        (groups > 0 && outputs % groups == 0).then_some(Self { outputs, inputs, groups, kernel, weight })
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel.as_ref().map_or(1, |k| k.iter().product())
    }

    /// Shape of A in the file: PEFT's, over the inputs of all groups.
    pub(super) fn a_shape(&self, rank: usize) -> Vec<usize> {
        let mut shape = vec![rank, self.inputs * self.groups];
        shape.extend(self.kernel.iter().flatten());
        shape
    }

    pub(super) fn b_shape(&self, rank: usize) -> Vec<usize> {
        let mut shape = vec![self.outputs, rank / self.groups];
        shape.extend(self.kernel.iter().flatten().map(|_| 1));
        shape
    }

    /// Values in A and in B in memory, or None where they do not fit into a number.
    pub(super) fn pair_lens(&self, rank: usize) -> Option<(usize, usize)> {
        let a = rank.checked_mul(self.inputs)?.checked_mul(self.taps())?;
        a.checked_mul(self.groups)?;
        Some((a, (rank / self.groups).checked_mul(self.outputs)?))
    }

    /// Shape of the whole weight in PyTorch.
    pub(super) fn torch_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.outputs, self.inputs];
        shape.extend(self.kernel.iter().flatten());
        shape
    }

    /// A of a file as it is in memory, or None if a row reads inputs outside its group.
    pub(super) fn narrow_a(&self, rank: usize, file: Vec<f32>) -> Option<Vec<f32>> {
        if self.groups == 1 {
            return Some(file);
        }
        let own = self.inputs * self.taps();
        let mut a = Vec::with_capacity(file.len() / self.groups);
        for (row, values) in file.chunks_exact(own * self.groups).enumerate() {
            for (group, values) in values.chunks_exact(own).enumerate() {
                if group == row / (rank / self.groups) {
                    a.extend_from_slice(values);
                } else if values.iter().any(|v| *v != 0.0) {
                    return None;
                }
            }
        }
        Some(a)
    }

    /// The inverse of [`Dims::narrow_a`].
    pub(super) fn widen_a(&self, rank: usize, a: &[f32]) -> Vec<f32> {
        let own = self.inputs * self.taps();
        let mut file = vec![0.0; a.len() * self.groups];
        for (row, values) in a.chunks_exact(own).enumerate() {
            let group = row / (rank / self.groups);
            file[(row * self.groups + group) * own..][..own].copy_from_slice(values);
        }
        file
    }
}

/// Names of the tensors of a pair, behind the key: PEFT's low-rank modules have a `weight`, those of embeddings are tensors.
pub(super) fn pair_tensors(layout: Layout) -> [String; 2] {
    layout.pair_names().map(|name| if layout == Layout::Rows { name.to_owned() } else { format!("{name}.weight") })
}

/// `[rows, columns]` to `[columns, rows]`.
pub(super) fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}

impl AdapterSite {
    pub(super) fn dims(&self) -> Result<Dims, AdapterError> {
        Dims::new(&self.weight_shape, self.layout, self.groups).ok_or_else(|| AdapterError::Shape {
            site: self.key.clone(),
            tensor: "the weight".to_owned(),
            expected: Vec::new(),
            found: self.weight_shape.clone(),
        })
    }

    /// Lengths, rank and values of the tensors.
    pub(super) fn check(&self) -> Result<Dims, AdapterError> {
        let dims = self.dims()?;
        let shape = |tensor: &str, expected: usize, found: usize| match expected == found {
            true => Ok(()),
            false => Err(AdapterError::Shape {
                site: self.key.clone(),
                tensor: tensor.to_owned(),
                expected: vec![expected],
                found: vec![found],
            }),
        };
        let finite = |tensor: &str, values: &[f32]| match values.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => Err(AdapterError::NotFinite { site: self.key.clone(), tensor: tensor.to_owned() }),
        };
        finite("weight_scale", &[self.weight_scale])?;
        match &self.delta {
            Delta::LowRank { rank, alpha, a, b } => {
                let lens = dims.pair_lens(*rank).filter(|_| *rank > 0 && rank % dims.groups == 0);
                let (a_len, b_len) =
                    lens.ok_or(AdapterError::Rank { site: self.key.clone(), rank: *rank, groups: dims.groups })?;
                if a_len != b_len && a.len() == b_len && b.len() == a_len {
                    return Err(AdapterError::Swapped {
                        site: self.key.clone(),
                        a: vec![a.len()],
                        b: vec![b.len()],
                        expected_a: vec![a_len],
                        expected_b: vec![b_len],
                    });
                }
                shape("A", a_len, a.len())?;
                shape("B", b_len, b.len())?;
                finite("alpha", &[*alpha])?;
                finite("A", a)?;
                finite("B", b)?;
            }
            Delta::ScaleShift { scale, shift } => {
                shape("scale", dims.outputs, scale.len())?;
                shape("shift", dims.outputs, shift.len())?;
                finite("scale", scale)?;
                finite("shift", shift)?;
            }
            Delta::Full { weight, bias } => {
                shape("weight", dims.weight, weight.len())?;
                finite("weight", weight)?;
                if let Some(bias) = bias {
                    shape("bias", dims.outputs, bias.len())?;
                    finite("bias", bias)?;
                }
            }
        }
        Ok(dims)
    }
}
