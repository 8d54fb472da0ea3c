//! A dense layer that runs from its integers: `y = act(x · W + b)`, W[i, o] = (q[i, o] − z) · s.
//!
//! Shapes as in [`super::conv`], with a 1 x 1 kernel, stride 1 and one group. W is turned into floats tile by tile, once
//! a clip and direction; the result has the bits of the layer with the whole W in floats.

use std::sync::Arc;

use super::conv::Conv;
use super::{Keeps, Operator};
use crate::kernels::gemm::Start;
use crate::kernels::integers::Integers;

/// The weight of a dense layer in integers.
#[derive(Clone, Debug)]
pub struct IntegerWeights {
    /// `[inputs, outputs]`, or `[outputs, inputs]` where `turned`.
    pub matrix: Arc<Integers>,
    /// Whether each row is an output.
    pub turned: bool,
    /// `[outputs]`, or empty.
    pub bias: Vec<f32>,
}

impl IntegerWeights {
    /// Scratch values for [`IntegerWeights::forward`] and [`IntegerWeights::input_gradient`].
    pub fn work(&self) -> usize {
        self.matrix.product_work()
    }

    /// y = bias + x · W, held between the two bounds of `clamp`.
    pub fn forward(&self, conv: &Conv, x: &[f32], y: &mut [f32], clamp: Option<[f32; 2]>, work: &mut [f32]) {
        let g = &conv.geometry;
        let start = if self.bias.is_empty() { Start::Zero } else { Start::Bias(&self.bias) };
        let (m, inputs, outputs) = (g.positions(), g.input_channels, g.output_channels);
        self.matrix.product(self.turned, start, m, x, inputs, y, outputs, clamp, work);
    }

    /// dx += dz · Wᵀ; `first`: dx is written, not added to.
    pub fn input_gradient(&self, conv: &Conv, dz: &[f32], dx: &mut [f32], first: bool, work: &mut [f32]) {
        let g = &conv.geometry;
        let start = if first { Start::Zero } else { Start::Add };
        let (m, inputs, outputs) = (g.positions(), g.input_channels, g.output_channels);
        self.matrix.product(!self.turned, start, m, dz, outputs, dx, inputs, None, work);
    }
}

/// A dense layer whose weights never change.
#[derive(Clone, Debug)]
pub struct FrozenIntegers {
    /// Sizes and activation.
    pub conv: Conv,
    /// Weights.
    pub weights: Arc<IntegerWeights>,
}

impl Operator for FrozenIntegers {
    fn output_len(&self) -> usize {
        self.conv.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        self.conv.keeps()
    }

    fn forward_work(&self) -> usize {
        self.weights.work()
    }

    fn vjp_work(&self) -> usize {
        self.weights.work()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        self.weights.forward(&self.conv, x[0], y, self.conv.activation.bounds(), work);
        if !saved.is_empty() {
            self.conv.activation.save_mask(y, saved);
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        if let Some(dx) = dx[0].as_deref_mut() {
            self.conv.activation_gradient(y, saved, dy);
            self.weights.input_gradient(&self.conv, dy, dx, false, work);
        }
    }

    fn vjp_first(&self, _x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], work: &mut [f32]) {
        self.conv.activation_gradient(y, saved, dy);
        self.weights.input_gradient(&self.conv, dy, dx, true, work);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::values;
    use super::*;
    use crate::ops::conv::{ConvWeights, FrozenConv};
    use crate::ops::conv_geometry::ConvGeometry;
    use crate::ops::unary::Activation;

    /// A weight in 8 bits, one scale an output, and the same layer in floats.
    fn layers(m: usize, k: usize, n: usize, turned: bool, biased: bool) -> (FrozenIntegers, FrozenConv) {
        let (rows, columns) = if turned { (n, k) } else { (k, n) };
        let data: Vec<u8> = values(1, k * n).iter().map(|v| (v * 100.0 + 128.0) as u8).collect();
        let block = if turned { [1, columns] } else { [rows, 1] };
        let plain = Integers::new(rows, columns, 8, columns, data.into()).unwrap();
        let matrix = Arc::new(plain.scaled(block, values(2, n).into(), &[128.0]).unwrap());
        let bias = if biased { values(3, n) } else { Vec::new() };
        let geometry = ConvGeometry::dense(m, k, n);
        let w = if turned { matrix.turned_values() } else { matrix.values() };
        let mut floats = ConvWeights::new(&geometry, &w, bias.clone());
        floats.transpose(&geometry);
        let conv = Conv::new(geometry, Activation::Relu);
        let weights = Arc::new(IntegerWeights { matrix, turned, bias });
        (FrozenIntegers { conv: conv.clone(), weights }, FrozenConv { conv, weights: Arc::new(floats) })
    }

    fn run(op: &impl Operator, x: &[f32], dy: &[f32], first: bool) -> [Vec<f32>; 3] {
        let mut y = vec![f32::NAN; op.output_len()];
        let mut saved = vec![f32::NAN; op.keeps().saved];
        op.forward(&[x], &mut y, &mut saved, &mut vec![f32::NAN; op.forward_work()]);
        let (mut dy, mut dx, mut work) = (dy.to_vec(), values(4, x.len()), vec![f32::NAN; op.vjp_work()]);
        match first {
            true => op.vjp_first(&[], &[], &saved, &mut dy, &mut dx, &mut work),
            false => op.vjp(&[&[]], &[], &saved, &mut dy, &mut [Some(&mut dx)], &mut work),
        }
        [y, saved, dx]
    }

    #[test]
    fn has_the_bits_of_the_layer_in_floats() {
        for (m, k, n) in [(1, 1, 1), (5, 3, 7), (2, 300, 33), (7, 33, 300), (13, 257, 130)] {
            for turned in [false, true] {
                for biased in [false, true] {
                    let (integers, floats) = layers(m, k, n, turned, biased);
                    let (x, dy) = (values(5, m * k), values(6, m * n));
                    for first in [false, true] {
                        let bits = |r: [Vec<f32>; 3]| r.map(|v| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                        assert_eq!(bits(run(&integers, &x, &dy, first)), bits(run(&floats, &x, &dy, first)));
                    }
                }
            }
        }
    }
}
