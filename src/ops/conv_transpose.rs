//! Transposed convolution: the input gradient of a convolution, its mirror.
//!
//! ```text
//! y[q, o] = bias[o] + Σ_{p, k: q = p · stride + k · dilation − pad} Σ_c w[c, k, o] · x[p, c]
//! ```
//!
//! Source: ONNX ConvTranspose (the mirror is ONNX Conv from y to x with the same weight: its outputs are c, its inputs
//! o). So forward is the input gradient of the mirror, and the vjp its forward; the gradients of weight and factors are
//! those of the mirror with input and output gradient in each other's place. Positions of y that no tap reaches
//! (`output_padding`) are bias.
//!
//! | | shape |
//! |---|---|
//! | x | `[height, width, input channels]`, the output of the mirror |
//! | y | `[out_height, out_width, output channels]`, the input of the mirror |
//! | w, wt, a, bt | those of the mirror in [`super::conv`] |

use std::sync::Arc;

use super::conv::{Conv, ConvWeights};
use super::conv_geometry::ConvGeometry;
use super::unary::Activation;
use super::{Keeps, Operator};

/// A transposed convolution without its weights.
#[derive(Clone, Debug)]
pub struct ConvTranspose {
    mirror: Conv,
    /// `[output channels]`, or empty.
    bias: Vec<f32>,
}

impl ConvTranspose {
    /// `mirror` goes from y to x.
    pub fn new(mirror: ConvGeometry, bias: Vec<f32>) -> Self {
        Self { mirror: Conv::new(mirror, Activation::None), bias }
    }

    /// The convolution from y to x.
    pub fn mirror(&self) -> &Conv {
        &self.mirror
    }

    /// Values in the output.
    pub fn output_len(&self) -> usize {
        self.mirror.geometry.input_len()
    }

    /// Scratch values for [`ConvTranspose::input_gradient`].
    pub fn gradient_work(&self) -> usize {
        self.mirror.geometry.output_len() + self.mirror.work()
    }

    /// y = bias + the transposed convolution of x; `weights` without a bias.
    pub fn forward(&self, weights: &ConvWeights, x: &[f32], y: &mut [f32], work: &mut [f32]) {
        self.fill(y);
        self.mirror.input_gradient(weights, x, y, work, false);
    }

    /// y = bias.
    pub(super) fn fill(&self, y: &mut [f32]) {
        if self.bias.is_empty() {
            y.fill(0.0);
        } else {
            y.chunks_exact_mut(self.bias.len()).for_each(|y| y.copy_from_slice(&self.bias));
        }
    }

    /// dx += the mirror of dy.
    pub fn input_gradient(&self, weights: &ConvWeights, dy: &[f32], dx: &mut [f32], work: &mut [f32]) {
        let (z, work) = work.split_at_mut(dx.len());
        self.mirror.forward(weights, dy, z, &mut [], work);
        dx.iter_mut().zip(z).for_each(|(dx, z)| *dx += *z);
    }
}

/// A transposed convolution whose weights never change.
#[derive(Clone, Debug)]
pub struct FrozenConvTranspose {
    /// Sizes and bias.
    pub layer: ConvTranspose,
    /// Weights of the mirror, without a bias.
    pub weights: Arc<ConvWeights>,
}

impl Operator for FrozenConvTranspose {
    fn output_len(&self) -> usize {
        self.layer.output_len()
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward_work(&self) -> usize {
        self.layer.mirror.work()
    }

    fn vjp_work(&self) -> usize {
        self.layer.gradient_work()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], work: &mut [f32]) {
        self.layer.forward(&self.weights, x[0], y, work);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        if let Some(dx) = dx[0].as_deref_mut() {
            self.layer.input_gradient(&self.weights, dy, dx, work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, values};
    use super::*;

    /// Plain loops over the formula of ONNX ConvTranspose, channels last; `w` as the mirror has it.
    fn oracle(g: &ConvGeometry, x: &[f64], w: &[f32], bias: &[f32]) -> Vec<f64> {
        let mut y = vec![0.0; g.input_len()];
        for (i, y) in y.iter_mut().enumerate() {
            *y = bias.get(i % g.input_channels).copied().unwrap_or(0.0).into();
        }
        let (patch, inputs, outputs) = (g.patch(), g.group_inputs(), g.group_outputs());
        for p in 0..g.positions() {
            let at = [p / g.output[1], p % g.output[1]];
            for c in 0..g.output_channels {
                let group = c / outputs;
                for tap in 0..g.kernel[0] * g.kernel[1] {
                    let k = [tap / g.kernel[1], tap % g.kernel[1]];
                    let q = [0, 1]
                        .map(|d| (at[d] * g.stride[d] + k[d] * g.dilation[d]) as isize - g.pads_begin[d] as isize);
                    if (0..2).any(|d| q[d] < 0 || q[d] as usize >= g.input[d]) {
                        continue;
                    }
                    let to = (q[0] as usize * g.input[1] + q[1] as usize) * g.input_channels + group * inputs;
                    for o in 0..inputs {
                        let weight = w[(group * patch + tap * inputs + o) * outputs + c % outputs];
                        y[to + o] += x[p * g.output_channels + c] * f64::from(weight);
                    }
                }
            }
        }
        y
    }

    #[test]
    fn agrees_with_the_oracle() {
        // Mirror: y plane and channels, x plane and channels.
        let g = |input, o, output, c, kernel, stride, dilation, pads_begin, groups| ConvGeometry {
            input,
            input_channels: o,
            output,
            output_channels: c,
            kernel,
            stride,
            dilation,
            pads_begin,
            groups,
        };
        let geometries = [
            g([4, 5], 3, [4, 5], 2, [1, 1], [1, 1], [1, 1], [0, 0], 1),
            g([5, 6], 2, [3, 4], 3, [3, 3], [1, 1], [1, 1], [0, 0], 1),
            g([6, 7], 5, [3, 4], 4, [3, 2], [2, 2], [1, 1], [1, 1], 1), // padding on one side
            g([10, 9], 1, [3, 2], 2, [2, 2], [3, 4], [1, 1], [0, 0], 1), // stride above the kernel, output padding
            g([8, 9], 4, [3, 3], 6, [3, 3], [2, 2], [2, 1], [0, 0], 2), // dilation, groups
            g([1, 13], 17, [1, 6], 3, [1, 4], [1, 2], [1, 1], [0, 1], 1), // 1-D
            g([7, 7], 3, [3, 3], 3, [3, 3], [2, 2], [1, 1], [0, 0], 3), // depthwise
        ];
        for (index, g) in geometries.into_iter().enumerate() {
            let seed = index as u64;
            let bias = if index % 2 == 0 { values(9, g.input_channels) } else { vec![] };
            let w = values(50 + seed, g.groups * g.patch() * g.group_outputs());
            let mut weights = ConvWeights::new(&g, &w, Vec::new());
            weights.transpose(&g);
            let op =
                FrozenConvTranspose { layer: ConvTranspose::new(g.clone(), bias.clone()), weights: Arc::new(weights) };
            let x = values(seed, g.output_len());
            Case { op: &op, x: vec![x], oracle: &|x| oracle(&g, &x[0], &w, &bias) }.run();
        }
    }
}
