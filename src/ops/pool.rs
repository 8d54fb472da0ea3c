//! Pooling of planes, channels last.
//!
//! `x [height, width, channels]`, `y [output height, output width, channels]`; a 1-D pool has height 1. Tap k of output o
//! reads input o · stride + k · dilation − pad (ONNX MaxPool, AveragePool); taps outside the plane are left out.
//!
//! - Max: y = max x over the taps; dx\[winner\] += dy. The first of equal taps wins. Not a number wins over every
//!   number, as in PyTorch. Kept: the winner's tap, see [`crate::kernels::pool`].
//! - Average: y = Σ x / n; dx += dy / n for each tap. n counts the taps inside the plane, with `count_include_pad` those
//!   inside plane and padding. Positions that only `ceil_mode` reaches, beyond the end padding, are never counted.
//! - Lp: y = (Σ |x|ᵖ)^(1/p); dx += dy · sign(x) (|x| / y)^(p − 1), 0 where y is 0 (ONNX LpPool). Kept: x, y.
//!
//! An output without a tap in the plane is −∞ for max and 0 for the others, and has no gradient.

use std::ops::Range;
use std::sync::Arc;

use super::conv_geometry::ConvGeometry;
use super::rows::{self, Part, RowWindow};
use super::{Keeps, Operator};
use crate::kernels::pool::{average, average_gradient, maximum, maximum_gradient, winners_len};

/// Where the windows of a pool lie; `[height, width]` each.
///
/// Padding at the end and `ceil_mode` follow from the output size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Input plane.
    pub input: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Kernel.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Dilation.
    pub dilation: [usize; 2],
    /// Padding before the first row and column.
    pub pads_begin: [usize; 2],
    /// Output plane.
    pub output: [usize; 2],
}

impl Window {
    /// The same windows as those of a depthwise convolution.
    fn geometry(&self) -> ConvGeometry {
        ConvGeometry {
            input: self.input,
            input_channels: self.channels,
            output: self.output,
            output_channels: self.channels,
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            pads_begin: self.pads_begin,
            groups: self.channels,
        }
    }
}

/// Walks through the outputs: `begin(state, output offset, output position)`, then `tap(state, output offset, number of
/// the tap in the kernel, input offset)` for each tap in the plane, then `end(state, output offset)`.
#[inline(always)]
fn visit<S: ?Sized>(
    g: &ConvGeometry,
    state: &mut S,
    mut begin: impl FnMut(&mut S, usize, [usize; 2]),
    mut tap: impl FnMut(&mut S, usize, usize, usize),
    mut end: impl FnMut(&mut S, usize),
) {
    let channels = g.input_channels;
    for oy in 0..g.output[0] {
        let rows = g.taps(0, oy);
        for ox in 0..g.output[1] {
            let columns = g.taps(1, ox);
            let o = (oy * g.output[1] + ox) * channels;
            begin(state, o, [oy, ox]);
            for ky in rows.clone() {
                let line = g.position(0, oy, ky) * g.input[1];
                for kx in columns.clone() {
                    tap(state, o, ky * g.kernel[1] + kx, (line + g.position(1, ox, kx)) * channels);
                }
            }
            end(state, o);
        }
    }
}

/// The largest value of each window.
#[derive(Clone, Debug)]
pub struct MaxPool {
    geometry: ConvGeometry,
}

impl MaxPool {
    /// A pool over `window`.
    pub fn new(window: Window) -> Self {
        Self { geometry: window.geometry() }
    }
}

impl Operator for MaxPool {
    fn output_len(&self) -> usize {
        self.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        Keeps { saved: winners_len(&self.geometry), ..Keeps::default() }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], _work: &mut [f32]) {
        maximum(&self.geometry, x[0], y, saved);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        if let Some(dx) = dx[0].as_deref_mut() {
            maximum_gradient(&self.geometry, saved, dy, dx);
        }
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        rows::plane_window(&self.geometry, rows)
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        let (_, geometry) = rows::plane_part(&self.geometry, rows, range)?;
        Some(Arc::new(Self { geometry }))
    }
}

/// The mean of each window.
#[derive(Clone, Debug)]
pub struct AveragePool {
    geometry: ConvGeometry,
    /// The divisor n is the product of these for the output's row and column.
    counts: [Vec<usize>; 2],
}

impl AveragePool {
    /// A pool over `window`; `pads_end` only matters with `count_include_pad`.
    pub fn new(window: Window, count_include_pad: bool, pads_end: [usize; 2]) -> Self {
        let geometry = window.geometry();
        let padded = ConvGeometry {
            input: [0, 1].map(|axis| window.pads_begin[axis] + window.input[axis] + pads_end[axis]),
            pads_begin: [0, 0],
            ..geometry.clone()
        };
        let counted = if count_include_pad { &padded } else { &geometry };
        let counts = [0, 1].map(|axis| (0..window.output[axis]).map(|o| counted.taps(axis, o).len()).collect());
        Self { geometry, counts }
    }

    fn factor(counts: &[Vec<usize>; 2], [oy, ox]: [usize; 2]) -> f32 {
        match counts[0][oy] * counts[1][ox] {
            0 => 0.0,
            n => 1.0 / n as f32,
        }
    }
}

impl Operator for AveragePool {
    fn output_len(&self) -> usize {
        self.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        average(&self.geometry, |position| Self::factor(&self.counts, position), x[0], y);
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
        average_gradient(&self.geometry, |position| Self::factor(&self.counts, position), dy, dx);
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        rows::plane_window(&self.geometry, rows)
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        let (axis, geometry) = rows::plane_part(&self.geometry, rows, range.clone())?;
        let mut counts = self.counts.clone();
        counts[axis] = counts[axis][range].to_vec();
        Some(Arc::new(Self { geometry, counts }))
    }
}

/// The norm of each window.
#[derive(Clone, Debug)]
pub struct LpPool {
    geometry: ConvGeometry,
    p: i32,
}

impl LpPool {
    /// A pool over `window` with p at least 1.
    pub fn new(window: Window, p: i32) -> Self {
        debug_assert!(p > 0);
        Self { geometry: window.geometry(), p }
    }
}

impl Operator for LpPool {
    fn output_len(&self) -> usize {
        self.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [true, false, false], y: true, saved: 0 }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let (x, channels) = (x[0], self.geometry.input_channels);
        visit(
            &self.geometry,
            y,
            |y, o, _| y[o..o + channels].fill(0.0),
            |y, o, _, i| {
                for (y, x) in y[o..o + channels].iter_mut().zip(&x[i..i + channels]) {
                    *y += x.abs().powi(self.p);
                }
            },
            |y, o| {
                for y in &mut y[o..o + channels] {
                    *y = if self.p == 2 { y.sqrt() } else { y.powf(1.0 / self.p as f32) };
                }
            },
        );
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        let (x, channels) = (x[0], self.geometry.input_channels);
        visit(
            &self.geometry,
            dx,
            |_, _, _| {},
            |dx, o, _, i| {
                for c in 0..channels {
                    let (x, y) = (x[i + c], y[o + c]);
                    if y != 0.0 && x != 0.0 {
                        dx[i + c] += dy[o + c] * x.signum() * (x.abs() / y).powi(self.p - 1);
                    }
                }
            },
            |_, _| {},
        );
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        rows::plane_window(&self.geometry, rows)
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        let (_, geometry) = rows::plane_part(&self.geometry, rows, range)?;
        Some(Arc::new(Self { geometry, p: self.p }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, distinct, values};
    use super::*;

    const CHANNELS: [usize; 4] = [1, 3, 5, 17];

    /// Windows with one channel: input, kernel, stride, dilation, pads before, output.
    fn windows() -> Vec<Window> {
        let window = |input, kernel, stride, dilation, pads_begin, output| Window {
            input,
            channels: 1,
            kernel,
            stride,
            dilation,
            pads_begin,
            output,
        };
        vec![
            window([4, 6], [2, 2], [2, 2], [1, 1], [0, 0], [2, 3]),
            // Stride larger than the kernel.
            window([7, 8], [2, 1], [3, 4], [1, 1], [0, 0], [2, 2]),
            // Overlapping, padded on all sides.
            window([4, 5], [3, 3], [1, 1], [1, 1], [1, 1], [4, 5]),
            // Padded on one side, before and behind.
            window([4, 5], [3, 2], [2, 2], [1, 1], [1, 0], [2, 2]),
            window([4, 5], [3, 2], [2, 2], [1, 1], [0, 0], [2, 3]),
            // Dilated.
            window([7, 6], [3, 2], [1, 1], [2, 3], [0, 0], [3, 3]),
            window([5, 5], [3, 3], [2, 2], [2, 2], [2, 1], [3, 2]),
            // ceil_mode: the last window hangs over the end.
            window([6, 7], [3, 3], [2, 2], [1, 1], [0, 0], [3, 3]),
            // ceil_mode over end padding of 1.
            window([5, 6], [2, 2], [3, 3], [1, 1], [1, 1], [3, 3]),
            // One dimension.
            window([1, 9], [1, 3], [1, 2], [1, 1], [0, 1], [1, 5]),
            // The whole plane.
            window([5, 4], [5, 4], [1, 1], [1, 1], [0, 0], [1, 1]),
            // The last column has no tap in the plane.
            window([2, 2], [1, 1], [1, 2], [1, 1], [0, 0], [2, 2]),
            // Nothing.
            window([0, 3], [2, 2], [1, 1], [1, 1], [0, 0], [0, 2]),
        ]
    }

    /// The taps of an output in the plane, and how many lie in the plane with `pads_end`: from the formula, in
    /// signed numbers.
    fn taps(w: &Window, o: [usize; 2], pads_end: [usize; 2]) -> (Vec<usize>, usize) {
        let (mut inside, mut padded) = (Vec::new(), 0);
        for ky in 0..w.kernel[0] {
            for kx in 0..w.kernel[1] {
                let k = [ky, kx];
                let at =
                    [0, 1].map(|a| (o[a] * w.stride[a] + k[a] * w.dilation[a]) as isize - w.pads_begin[a] as isize);
                if (0..2).all(|a| at[a] >= 0 && at[a] < w.input[a] as isize) {
                    inside.push(at[0] as usize * w.input[1] + at[1] as usize);
                }
                padded += usize::from((0..2).all(|a| at[a] < (w.input[a] + pads_end[a]) as isize));
            }
        }
        (inside, padded)
    }

    fn pooled(w: &Window, x: &[f64], pads_end: [usize; 2], pool: impl Fn(Vec<f64>, usize) -> f64) -> Vec<f64> {
        let mut y = Vec::new();
        for oy in 0..w.output[0] {
            for ox in 0..w.output[1] {
                let (inside, padded) = taps(w, [oy, ox], pads_end);
                for c in 0..w.channels {
                    y.push(pool(inside.iter().map(|at| x[at * w.channels + c]).collect(), padded));
                }
            }
        }
        y
    }

    #[test]
    fn max_agrees_with_the_oracle() {
        for window in windows() {
            for channels in CHANNELS {
                let window = Window { channels, ..window.clone() };
                let op = MaxPool::new(window.clone());
                let x = distinct(9, window.input[0] * window.input[1] * channels);
                let oracle = |x: &[Vec<f64>]| {
                    pooled(&window, &x[0], [0, 0], |taps, _| taps.into_iter().fold(f64::NEG_INFINITY, f64::max))
                };
                let case = Case { op: &op, x: vec![x], oracle: &oracle };
                // An output of −∞ has no difference quotient; the gradient of the rest is checked below.
                let (y, _) = case.forward();
                if y.iter().all(|y| y.is_finite()) {
                    case.run();
                }
            }
        }
    }

    #[test]
    fn an_output_without_taps_has_no_gradient() {
        let window = windows().remove(11);
        let op = MaxPool::new(window.clone());
        let (mut y, mut saved) = ([0.0; 4], vec![0.0; op.keeps().saved]);
        op.forward(&[&[1.0, 2.0, 3.0, 4.0]], &mut y, &mut saved, &mut []);
        assert_eq!(y, [1.0, f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY]);
        let mut dx = [0.0; 4];
        op.vjp(&[&[]], &[], &saved, &mut [1.0, 2.0, 3.0, 4.0], &mut [Some(&mut dx)], &mut []);
        assert_eq!(dx, [1.0, 0.0, 3.0, 0.0]);
        AveragePool::new(window, false, [0, 0]).forward(&[&[1.0, 2.0, 3.0, 4.0]], &mut y, &mut [], &mut []);
        assert_eq!(y, [1.0, 0.0, 3.0, 0.0]);
    }

    #[test]
    fn a_large_kernel_keeps_wide_winners() {
        let window = Window {
            input: [20, 15],
            channels: 3,
            kernel: [20, 15],
            stride: [1, 1],
            dilation: [1, 1],
            pads_begin: [0, 0],
            output: [1, 1],
        };
        let (op, x) = (MaxPool::new(window), distinct(2, 900));
        let (mut y, mut saved) = ([0.0; 3], vec![f32::NAN; op.keeps().saved]);
        op.forward(&[&x], &mut y, &mut saved, &mut []);
        let mut dx = vec![0.0; 900];
        op.vjp(&[&[]], &[], &saved, &mut [1.0, 2.0, 3.0], &mut [Some(&mut dx)], &mut []);
        for c in 0..3 {
            let winners: Vec<usize> = (0..300).filter(|p| dx[p * 3 + c] != 0.0).collect();
            assert_eq!(winners.len(), 1);
            assert_eq!(x[winners[0] * 3 + c], y[c]);
            assert_eq!(dx[winners[0] * 3 + c], (c + 1) as f32);
        }
    }

    #[test]
    fn the_first_of_equals_and_not_a_number_win() {
        let window = Window {
            input: [1, 3],
            channels: 2,
            kernel: [1, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pads_begin: [0, 0],
            output: [1, 1],
        };
        let op = MaxPool::new(window);
        let (mut y, mut saved) = ([0.0; 2], vec![f32::NAN; op.keeps().saved]);
        op.forward(&[&[1.0, 5.0, 1.0, f32::NAN, 1.0, 7.0]], &mut y, &mut saved, &mut []);
        assert_eq!(y[0], 1.0);
        assert!(y[1].is_nan());
        let mut dx = [0.0; 6];
        op.vjp(&[&[]], &[], &saved, &mut [1.0, 1.0], &mut [Some(&mut dx)], &mut []);
        assert_eq!(dx, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn average_agrees_with_the_oracle() {
        for window in windows() {
            for channels in CHANNELS {
                let window = Window { channels, ..window.clone() };
                let x = values(9, window.input[0] * window.input[1] * channels);
                for (include, pads_end) in [(false, [0, 0]), (true, [0, 0]), (true, [1, 1]), (true, [0, 1])] {
                    let op = AveragePool::new(window.clone(), include, pads_end);
                    let mean = |taps: Vec<f64>, padded: usize| match taps.len() {
                        0 => 0.0,
                        n => taps.iter().sum::<f64>() / if include { padded } else { n } as f64,
                    };
                    let oracle = |x: &[Vec<f64>]| pooled(&window, &x[0], pads_end, mean);
                    Case { op: &op, x: vec![x.clone()], oracle: &oracle }.run();
                }
            }
        }
    }

    #[test]
    fn norms_agree_with_the_oracle() {
        for p in [1, 2, 3] {
            for window in windows() {
                let window = Window { channels: 3, ..window };
                let op = LpPool::new(window.clone(), p);
                let norm = |x: Vec<f64>, _| x.iter().map(|x| x.abs().powi(p)).sum::<f64>().powf(1.0 / f64::from(p));
                let oracle = |x: &[Vec<f64>]| pooled(&window, &x[0], [0, 0], norm);
                // Near zero a norm bends within the steps of the difference.
                let x = values(3, op.geometry.input_len()).iter().map(|v| v + 0.25f32.copysign(*v)).collect();
                Case { op: &op, x: vec![x], oracle: &oracle }.run();
            }
        }
    }
}
