//! Local response normalisation across channels (Krizhevsky, Sutskever and Hinton 2012, section 3.3; ONNX LRN).
//!
//! y\[c\] = x\[c\] · s\[c\]^−β with s\[c\] = k + α / size · Σ x\[j\]², j from c − ⌊(size − 1) / 2⌋ to
//! c + ⌈(size − 1) / 2⌉ inside the channels.
//!
//! dx\[i\] += dy\[i\] · s\[i\]^−β − 2αβ / size · x\[i\] · Σ dy\[c\] x\[c\] s\[c\]^−(β + 1), over the c whose sum has i.
//!
//! `x`, `y [outer, channels, inner]`; inner is 1 for channels last. Kept: x.

use super::{Keeps, Operator};

/// Local response normalisation on `[outer, channels, inner]`.
#[derive(Clone, Debug)]
pub struct Lrn {
    outer: usize,
    channels: usize,
    inner: usize,
    size: usize,
    alpha: f32,
    beta: f32,
    bias: f32,
}

impl Lrn {
    /// Sums over `size` channels; `alpha`, `beta` and `bias` (k) as in the formula.
    pub fn new(outer: usize, channels: usize, inner: usize, size: usize, alpha: f32, beta: f32, bias: f32) -> Self {
        debug_assert!(size > 0);
        Self { outer, channels, inner, size, alpha, beta, bias }
    }

    /// The channels that `channel` sums over.
    fn window(&self, channel: usize) -> std::ops::Range<usize> {
        channel.saturating_sub((self.size - 1) / 2)..(channel + self.size / 2 + 1).min(self.channels)
    }

    /// The channels whose sum has `channel`.
    fn readers(&self, channel: usize) -> std::ops::Range<usize> {
        channel.saturating_sub(self.size / 2)..(channel + (self.size - 1) / 2 + 1).min(self.channels)
    }

    /// s of `channel`; `x` starts at channel 0.
    fn sum(&self, x: &[f32], channel: usize) -> f32 {
        let squares: f32 = self.window(channel).map(|j| x[j * self.inner] * x[j * self.inner]).sum();
        self.bias + self.alpha / self.size as f32 * squares
    }

    /// The offset of channel 0 of each position.
    fn positions(&self) -> impl Iterator<Item = usize> + use<> {
        let (row, inner) = (self.channels * self.inner, self.inner);
        (0..self.outer).flat_map(move |o| (0..inner).map(move |i| o * row + i))
    }
}

impl Operator for Lrn {
    fn output_len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [true, false, false], ..Keeps::default() }
    }

    /// s^−β, and dy · x · s^−(β + 1), of one position.
    fn vjp_work(&self) -> usize {
        2 * self.channels
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        if self.channels == 0 {
            return;
        }
        for at in self.positions() {
            let x = &x[0][at..];
            for c in 0..self.channels {
                y[at + c * self.inner] = x[c * self.inner] * self.sum(x, c).powf(-self.beta);
            }
        }
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        if self.channels == 0 {
            return;
        }
        let (power, products) = work.split_at_mut(self.channels);
        let factor = 2.0 * self.alpha * self.beta / self.size as f32;
        for at in self.positions() {
            let x = &x[0][at..];
            for c in 0..self.channels {
                let (i, s) = (c * self.inner, self.sum(x, c));
                power[c] = s.powf(-self.beta);
                products[c] = dy[at + i] * x[i] * (power[c] / s);
            }
            for c in 0..self.channels {
                let i = c * self.inner;
                let sum: f32 = self.readers(c).map(|j| products[j]).sum();
                dx[at + i] += dy[at + i] * power[c] - factor * x[i] * sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, values};
    use super::*;

    #[test]
    fn agrees_with_the_oracle() {
        for (outer, channels, inner) in [(1, 1, 1), (3, 7, 1), (2, 5, 3), (1, 17, 2), (0, 3, 2), (2, 0, 2)] {
            for size in [1, 2, 3, 4, 5, 40] {
                let (alpha, beta, bias) = (0.5f32, 0.75f32, 1.5f32);
                let op = Lrn::new(outer, channels, inner, size, alpha, beta, bias);
                let oracle = |x: &[Vec<f64>]| {
                    let mut y = x[0].clone();
                    for o in 0..outer {
                        for c in 0..channels {
                            for i in 0..inner {
                                let at = |c: usize| (o * channels + c) * inner + i;
                                let first = c as isize - (size as isize - 1) / 2;
                                let squares: f64 = (first..first + size as isize)
                                    .filter(|j| (0..channels as isize).contains(j))
                                    .map(|j| x[0][at(j as usize)].powi(2))
                                    .sum();
                                let s = f64::from(bias) + f64::from(alpha) / size as f64 * squares;
                                y[at(c)] = x[0][at(c)] * s.powf(-f64::from(beta));
                            }
                        }
                    }
                    y
                };
                Case { op: &op, x: vec![values(3, op.output_len())], oracle: &oracle }.run();
            }
        }
    }
}
