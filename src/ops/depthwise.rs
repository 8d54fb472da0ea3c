//! Depthwise convolution: each channel has a kernel of its own.
//!
//! ```text
//! y[p, c]  = act(b[c] + Σ_t w[t, c] · x[p·stride + t·dilation - pad, c])
//! dx       = the same taps, transposed
//! ```
//!
//! Source: ONNX Conv with `group = channels`. Shapes: x `[height, width, channels]`, w `[taps, channels]`,
//! y `[out_height, out_width, channels]`. Saves nothing but the mask of a fused activation. What an adapter changes
//! here is a scale and a shift a channel, see [`crate::lora`].

use std::ops::Range;
use std::sync::Arc;

use super::conv::{Conv, ConvWeights};
use super::rows::{self, Part, RowWindow};
use super::{Keeps, Operator};
use crate::kernels::depthwise;

/// A depthwise convolution whose weights never change; `weights.w` is `[taps, channels]`, `weights.wt` is unused.
#[derive(Clone, Debug)]
pub struct FrozenDepthwise {
    /// Sizes and activation; `groups == input_channels == output_channels`.
    pub conv: Conv,
    /// Weights.
    pub weights: Arc<ConvWeights>,
}

/// y = act(bias + conv(x)), with weights from outside.
pub fn forward(conv: &Conv, weights: &ConvWeights, x: &[f32], y: &mut [f32], saved: &mut [f32]) {
    depthwise::forward(&conv.geometry, x, &weights.w, &weights.bias, conv.activation.bounds(), y);
    if !saved.is_empty() {
        conv.activation.save_mask(y, saved);
    }
}

impl Operator for FrozenDepthwise {
    fn output_len(&self) -> usize {
        self.conv.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        self.conv.keeps()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], _work: &mut [f32]) {
        forward(&self.conv, &self.weights, x[0], y, saved);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        self.conv.activation_gradient(y, saved, dy);
        if let Some(dx) = &mut dx[0] {
            depthwise::input_gradient(&self.conv.geometry, dy, &self.weights.w, dx, false);
        }
    }

    fn vjp_first(&self, _x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], _work: &mut [f32]) {
        self.conv.activation_gradient(y, saved, dy);
        depthwise::input_gradient(&self.conv.geometry, dy, &self.weights.w, dx, true);
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        rows::conv_window(&self.conv.geometry, rows)
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        let conv = self.conv.part(rows, range)?;
        Some(Arc::new(Self { conv, weights: self.weights.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::Case;
    use crate::ops::conv_geometry::ConvGeometry;
    use crate::ops::unary::Activation;

    fn oracle(g: &ConvGeometry, x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
        let channels = g.input_channels;
        let mut y = vec![0.0; g.output_len()];
        for (at, y) in y.iter_mut().enumerate() {
            let (p, c) = (at / channels, at % channels);
            let (oy, ox) = (p / g.output[1], p % g.output[1]);
            *y = bias.get(c).copied().unwrap_or(0.0);
            for t in 0..g.kernel[0] * g.kernel[1] {
                let (ky, kx) = (t / g.kernel[1], t % g.kernel[1]);
                let iy = (oy * g.stride[0] + ky * g.dilation[0]) as isize - g.pads_begin[0] as isize;
                let ix = (ox * g.stride[1] + kx * g.dilation[1]) as isize - g.pads_begin[1] as isize;
                if (0..g.input[0] as isize).contains(&iy) && (0..g.input[1] as isize).contains(&ix) {
                    *y += w[t * channels + c] * x[(iy as usize * g.input[1] + ix as usize) * channels + c];
                }
            }
        }
        y
    }

    #[test]
    fn against_oracle_and_central_differences() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect() };
        // Every width around the tiles of three and five taps.
        let windows = (1..10).flat_map(|width| {
            [
                ([4, width], [4, width], [3, 3], [1, 1], [1, 1], [1, 1]),
                ([3, width], [5, width], [2, 3], [1, 1], [1, 1], [2, 0]), // padding on one side
                ([4, width], [4, width], [5, 5], [1, 1], [1, 1], [2, 2]),
                ([2, width], [8, width + 8], [3, 3], [1, 1], [1, 1], [4, 5]), // positions without a tap
            ]
        });
        for channels in [2, 3, 7, 16, 17, 33] {
            // The work grows with the square of the channels; the widest tiles depend on them and on the width, not on the kernel.
            let windows = windows.clone().filter(|window| channels < 33 || window.0 == window.1 && window.2 == [3, 3]);
            for (input, output, kernel, stride, dilation, pads) in windows.chain([
                ([5, 4], [5, 4], [3, 3], [1, 1], [1, 1], [1, 1]),
                ([7, 6], [4, 3], [3, 3], [2, 2], [1, 1], [1, 1]),
                ([7, 7], [2, 2], [2, 2], [4, 4], [1, 1], [0, 0]),
                ([9, 5], [5, 5], [5, 3], [1, 1], [1, 2], [0, 2]),
                ([1, 20], [1, 10], [1, 5], [1, 2], [1, 1], [0, 2]),
                ([3, 3], [3, 19], [3, 3], [1, 1], [1, 1], [1, 18]),
                ([2, 3], [9, 12], [3, 3], [2, 2], [1, 1], [16, 20]),
            ]) {
                let g = ConvGeometry {
                    input,
                    input_channels: channels,
                    output,
                    output_channels: channels,
                    kernel,
                    stride,
                    dilation,
                    pads_begin: pads,
                    groups: channels,
                };
                let weights = ConvWeights {
                    w: values(kernel[0] * kernel[1] * channels),
                    bias: values(channels),
                    ..ConvWeights::default()
                };
                let w: Vec<f64> = weights.w.iter().map(|v| *v as f64).collect();
                let bias: Vec<f64> = weights.bias.iter().map(|v| *v as f64).collect();
                let op = FrozenDepthwise { conv: Conv::new(g.clone(), Activation::None), weights: Arc::new(weights) };
                let x = values(g.input_len());
                Case { op: &op, x: vec![x], oracle: &|x| oracle(&g, &x[0], &w, &bias) }.run();
            }
        }
    }
}
