//! Batch normalisation at inference: a scale and a shift for each channel.
//!
//! y = (x − mean) / √(var + ε) · γ + β with stored mean and variance (Ioffe and Szegedy, "Batch Normalization", 2015,
//! algorithm 2; ONNX BatchNormalization with `training_mode = 0`), which is y = scale · x + shift with
//! scale = γ / √(var + ε), shift = β − mean · scale.
//!
//! `x`, `y [outer, channels, inner]`; inner is 1 for channels last. dx += dy · scale. Nothing is kept.

use std::ops::Range;
use std::sync::Arc;

use super::rows::{Part, RowWindow, scaled};
use super::{Keeps, Operator};

/// `(scale, shift)` of a batch normalisation, one of each a channel, calculated in f64 and rounded once.
pub fn fold(gamma: &[f32], beta: &[f32], mean: &[f32], var: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    debug_assert!(beta.len() == gamma.len() && mean.len() == gamma.len() && var.len() == gamma.len());
    let parameters = gamma.iter().zip(beta).zip(mean).zip(var);
    parameters
        .map(|(((gamma, beta), mean), var)| {
            let scale = f64::from(*gamma) / (f64::from(*var) + f64::from(epsilon)).sqrt();
            (scale as f32, (f64::from(*beta) - f64::from(*mean) * scale) as f32)
        })
        .unzip()
}

/// y = x · scale\[c\] + shift\[c\] on `[outer, channels, inner]`.
#[derive(Clone, Debug)]
pub struct Affine {
    outer: usize,
    channels: usize,
    inner: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    /// `scale [channels]`, `shift [channels]`.
    pub fn new(outer: usize, channels: usize, inner: usize, scale: Vec<f32>, shift: Vec<f32>) -> Self {
        debug_assert!(scale.len() == channels && shift.len() == channels);
        Self { outer, channels, inner, scale, shift }
    }
}

impl Operator for Affine {
    fn output_len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        if self.output_len() == 0 {
            return;
        }
        if self.inner == 1 {
            for (y, x) in y.chunks_exact_mut(self.channels).zip(x.chunks_exact(self.channels)) {
                for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(&self.scale).zip(&self.shift) {
                    *y = x * scale + shift;
                }
            }
        } else {
            let parameters = self.scale.iter().zip(&self.shift).cycle();
            for ((y, x), (scale, shift)) in
                y.chunks_exact_mut(self.inner).zip(x.chunks_exact(self.inner)).zip(parameters)
            {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = x * scale + shift;
                }
            }
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        if self.output_len() == 0 {
            return;
        }
        if self.inner == 1 {
            for (dx, dy) in dx.chunks_exact_mut(self.channels).zip(dy.chunks_exact(self.channels)) {
                for ((dx, dy), scale) in dx.iter_mut().zip(dy).zip(&self.scale) {
                    *dx += dy * scale;
                }
            }
        } else {
            let scales = self.scale.iter().cycle();
            for ((dx, dy), scale) in dx.chunks_exact_mut(self.inner).zip(dy.chunks_exact(self.inner)).zip(scales) {
                for (dx, dy) in dx.iter_mut().zip(dy) {
                    *dx += dy * scale;
                }
            }
        }
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        scaled(self.outer, rows, rows).map(|_| RowWindow::each(rows))
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        Some(Arc::new(Self { outer: scaled(self.outer, rows, range.len())?, ..self.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, close, values, values_in};
    use super::*;

    #[test]
    fn agrees_with_the_oracle() {
        for outer in [0, 1, 3] {
            for channels in [0, 1, 3, 17] {
                for inner in [0, 1, 5] {
                    let (scale, shift) = (values(1, channels), values(2, channels));
                    let op = Affine::new(outer, channels, inner, scale.clone(), shift.clone());
                    let oracle = |x: &[Vec<f64>]| {
                        let channel = |i: usize| i / inner % channels;
                        let y = x[0].iter().enumerate();
                        y.map(|(i, x)| x * f64::from(scale[channel(i)]) + f64::from(shift[channel(i)])).collect()
                    };
                    Case { op: &op, x: vec![values(3, outer * channels * inner)], oracle: &oracle }.run();
                }
            }
        }
    }

    #[test]
    fn folds_the_formula() {
        let (gamma, beta, mean, var) = (values(1, 9), values(2, 9), values(3, 9), values_in(4, 9, 1e-6, 3.0));
        let epsilon = 1e-3f32;
        let (scale, shift) = fold(&gamma, &beta, &mean, &var, epsilon);
        let x = 0.7f64;
        let y: Vec<f32> = scale.iter().zip(&shift).map(|(a, b)| (x * f64::from(*a) + f64::from(*b)) as f32).collect();
        let expected = |c: usize| {
            let normal = (x - f64::from(mean[c])) / (f64::from(var[c]) + f64::from(epsilon)).sqrt();
            normal * f64::from(gamma[c]) + f64::from(beta[c])
        };
        close(&y, &(0..9).map(expected).collect::<Vec<_>>(), "fold");
    }
}
