//! Means of windows, channels last, and their gradient; formulas in [`crate::ops::pool`].

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::conv_geometry::ConvGeometry;

/// y = factor · Σ x over the taps of each output that lie in the plane; `factor` is asked for the output's row and column.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn average(g: &ConvGeometry, factor: impl Fn([usize; 2]) -> f32, x: &[f32], y: &mut [f32]) {
    Average { g, factor, x, y }.dispatch();
}

/// dx += factor · dy at each tap. `dy` becomes factor · dy.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn average_gradient(g: &ConvGeometry, factor: impl Fn([usize; 2]) -> f32, dy: &mut [f32], dx: &mut [f32]) {
    AverageGradient { g, factor, dy, dx }.dispatch();
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

#[inline(always)]
fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|v| *v *= factor);
}

struct Average<'a, F> {
    g: &'a ConvGeometry,
    factor: F,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<F: Fn([usize; 2]) -> f32> SimdOp for Average<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let (g, channels) = (self.g, self.g.input_channels);
        let mut outputs = self.y.chunks_exact_mut(channels.max(1));
        for oy in 0..g.output[0] {
            for (ox, y) in (0..g.output[1]).zip(&mut outputs) {
                let factor = (self.factor)([oy, ox]);
                let c = blocks::<I, 8>(isa, g, [oy, ox], factor, self.x, 0, y);
                let c = blocks::<I, 1>(isa, g, [oy, ox], factor, self.x, c, y);
                for c in c..channels {
                    let mut sum = 0.0;
                    taps(g, [oy, ox], |at| sum += self.x[at * channels + c]);
                    y[c] = sum * factor;
                }
            }
        }
    }
}

/// The means of channels from `c` on, `NV` vectors at once, as long as there are so many; the channel behind them.
#[inline(always)]
fn blocks<I: Isa, const NV: usize>(
    isa: I,
    g: &ConvGeometry,
    output: [usize; 2],
    factor: f32,
    x: &[f32],
    mut c: usize,
    y: &mut [f32],
) -> usize {
    let ops = isa.f32();
    let (lanes, channels) = (ops.len(), y.len());
    let factor = ops.splat(factor);
    while c + NV * lanes <= channels {
        let mut sums = [ops.zero(); NV];
        taps(g, output, |at| {
            let x = &x[at * channels + c..][..NV * lanes];
            for v in 0..NV {
                sums[v] = ops.add(sums[v], ops.load(&x[v * lanes..]));
            }
        });
        let y = &mut y[c..c + NV * lanes];
        for v in 0..NV {
            ops.store(ops.mul(sums[v], factor), &mut y[v * lanes..]);
        }
        c += NV * lanes;
    }
    c
}

/// The positions in the plane that an output reads, in the order of the kernel.
#[inline(always)]
fn taps(g: &ConvGeometry, [oy, ox]: [usize; 2], mut tap: impl FnMut(usize)) {
    for ky in g.taps(0, oy) {
        let line = g.position(0, oy, ky) * g.input[1];
        for kx in g.taps(1, ox) {
            tap(line + g.position(1, ox, kx));
        }
    }
}

struct AverageGradient<'a, F> {
    g: &'a ConvGeometry,
    factor: F,
    dy: &'a mut [f32],
    dx: &'a mut [f32],
}

impl<F: Fn([usize; 2]) -> f32> SimdOp for AverageGradient<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let (g, channels) = (self.g, self.g.input_channels);
        let mut outputs = self.dy.chunks_exact_mut(channels.max(1));
        for oy in 0..g.output[0] {
            for (ox, dy) in (0..g.output[1]).zip(&mut outputs) {
                scale(dy, (self.factor)([oy, ox]));
                taps(g, [oy, ox], |at| add(&mut self.dx[at * channels..][..channels], dy));
            }
        }
    }
}
