//! Operators by rows: which rows of the input a row of the output reads, and the operator for some rows alone.
//!
//! A value whose rows stand one behind the other in memory, `[rows, row]`, is windowed by a row map: row o of the output reads
//! rows `o · stride + t · dilation − pad` of each input, t below `taps`; rows outside are padding. What a plan does with
//! that: `src/plan/sliding.rs`.

use std::ops::Range;
use std::sync::Arc;

use super::Operator;
use super::conv_geometry::ConvGeometry;

/// How the rows of an output read those of the inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowWindow {
    /// Rows of the output.
    pub rows: usize,
    /// Rows that each reads, padding included.
    pub taps: usize,
    /// Rows of the input between two of the output.
    pub stride: usize,
    /// Rows between two taps.
    pub dilation: usize,
    /// Padding before the first row.
    pub pad: usize,
}

impl RowWindow {
    /// Each row of the output reads the same row of the inputs.
    pub fn each(rows: usize) -> Self {
        Self { rows, taps: 1, stride: 1, dilation: 1, pad: 0 }
    }

    /// Rows of an input of `rows` that rows `range` of the output read, padding left out.
    pub fn reads(&self, range: Range<usize>, rows: usize) -> Range<usize> {
        let end = (range.end.max(1) - 1) * self.stride + self.taps.saturating_sub(1) * self.dilation + 1;
        let first = (range.start * self.stride).saturating_sub(self.pad).min(rows);
        first..end.saturating_sub(self.pad).clamp(first, rows)
    }

    /// Rows of the output that read nothing but rows `within` of the input.
    pub fn inside(&self, within: Range<usize>) -> Range<usize> {
        let reach = self.taps.saturating_sub(1) * self.dilation + 1;
        let first = (within.start + self.pad).div_ceil(self.stride);
        let end = (within.end + self.pad).checked_sub(reach).map_or(0, |last| last / self.stride + 1).min(self.rows);
        first.min(end)..end
    }
}

/// An operator for some rows of its output, on the rows of its inputs that these read.
pub type Part = Option<Arc<dyn Operator>>;

/// The axis of a plane that its rows in memory are: the first one, or the second where the plane is one line.
pub(crate) fn axis_of_rows(g: &ConvGeometry) -> usize {
    let line = g.input[0] == 1 && g.output[0] == 1 && g.kernel[0] == 1 && g.pads_begin[0] == 0;
    usize::from(line)
}

/// That axis, where it has so many `rows`.
fn axis(g: &ConvGeometry, rows: usize) -> Option<usize> {
    let axis = axis_of_rows(g);
    (g.input[axis] == rows && (rows > 1 || axis == 1)).then_some(axis)
}

/// The map of a plane whose `rows` are its own.
pub fn plane_window(g: &ConvGeometry, rows: usize) -> Option<RowWindow> {
    let axis = axis(g, rows)?;
    let (taps, stride, dilation, pad) = (g.kernel[axis], g.stride[axis], g.dilation[axis], g.pads_begin[axis]);
    Some(RowWindow { rows: g.output[axis], taps, stride, dilation, pad })
}

/// The plane for rows `range` of the output; none where these read padding only.
pub fn plane_part(g: &ConvGeometry, rows: usize, range: Range<usize>) -> Option<(usize, ConvGeometry)> {
    let axis = axis(g, rows)?;
    let read = plane_window(g, rows)?.reads(range.clone(), rows);
    if read.is_empty() || range.is_empty() {
        return None;
    }
    let mut part = g.clone();
    part.input[axis] = read.len();
    part.output[axis] = range.len();
    part.pads_begin[axis] = g.pads_begin[axis].saturating_sub(range.start * g.stride[axis]);
    Some((axis, part))
}

/// Positions a row of a layer without a window, where there are as many in each.
fn positions_a_row(g: &ConvGeometry, rows: usize) -> Option<usize> {
    (g.is_pointwise() && rows > 0 && g.positions().is_multiple_of(rows)).then(|| g.positions() / rows)
}

/// The map of a convolution or dense layer.
pub fn conv_window(g: &ConvGeometry, rows: usize) -> Option<RowWindow> {
    positions_a_row(g, rows).map(|_| RowWindow::each(rows)).or_else(|| plane_window(g, rows))
}

/// A convolution or dense layer for rows `range` of the output.
pub fn conv_part(g: &ConvGeometry, rows: usize, range: Range<usize>) -> Option<ConvGeometry> {
    match positions_a_row(g, rows) {
        Some(positions) => {
            let plane = [positions * range.len(), 1];
            Some(ConvGeometry { input: plane, output: plane, ..g.clone() })
        }
        None => plane_part(g, rows, range).map(|(_, part)| part),
    }
}

/// `len` values of `rows` rows, cut to `part` rows; none where rows are no whole number of values.
pub(super) fn scaled(len: usize, rows: usize, part: usize) -> Option<usize> {
    (rows > 0 && len.is_multiple_of(rows)).then(|| len / rows * part)
}

#[cfg(test)]
mod tests {
    use super::super::batch_norm::Affine;
    use super::super::binary::{Binary, BinaryKind};
    use super::super::conv::{Conv, ConvWeights, FrozenConv};
    use super::super::depthwise::FrozenDepthwise;
    use super::super::pool::{AveragePool, LpPool, MaxPool, Window};
    use super::super::unary::{Activation, Unary, UnaryKind};
    use super::*;

    /// Every range of rows against the same rows of the whole, bit for bit.
    fn check(op: &dyn Operator, rows: usize, row: usize, inputs: usize) {
        let mut rng = fastrand::Rng::with_seed(5);
        let x: Vec<Vec<f32>> = (0..inputs).map(|_| (0..rows * row).map(|_| rng.f32() - 0.5).collect()).collect();
        let run = |op: &dyn Operator, x: &[&[f32]]| {
            let (mut y, mut work) = (vec![f32::NAN; op.output_len()], vec![f32::NAN; op.forward_work()]);
            op.forward(x, &mut y, &mut [], &mut work);
            y
        };
        let whole = run(op, &x.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let window = op.row_window(rows).unwrap();
        assert_eq!(whole.len() % window.rows, 0, "{op:?}");
        let y_row = whole.len() / window.rows;
        for start in 0..window.rows {
            for end in start + 1..=window.rows {
                let read = window.reads(start..end, rows);
                let Some(part) = op.part(rows, start..end) else {
                    assert!(read.is_empty(), "{op:?}");
                    continue;
                };
                let x: Vec<&[f32]> = x.iter().map(|x| &x[read.start * row..read.end * row]).collect();
                let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let found = bits(&run(&*part, &x));
                assert!(found == bits(&whole[start * y_row..end * y_row]), "{op:?}, rows {start}..{end}");
            }
        }
    }

    #[test]
    fn parts_have_the_bits_of_the_whole() {
        let mut rng = fastrand::Rng::with_seed(6);
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.f32() - 0.5).collect() };
        for (input, output, kernel, stride, dilation, pads_begin) in [
            ([9, 5], [9, 5], [3, 3], [1, 1], [1, 1], [1, 1]),
            ([9, 5], [5, 3], [3, 3], [2, 2], [1, 1], [1, 1]),
            ([11, 4], [6, 2], [10, 4], [2, 2], [1, 1], [4, 1]),
            ([9, 5], [5, 3], [5, 2], [1, 1], [1, 2], [0, 0]),
            ([9, 5], [7, 5], [3, 1], [1, 1], [2, 1], [1, 0]),
            ([1, 12], [1, 6], [1, 5], [1, 2], [1, 1], [0, 2]),
            ([9, 5], [9, 5], [1, 1], [1, 1], [1, 1], [0, 0]),
            ([4, 3], [9, 3], [2, 1], [1, 1], [1, 1], [3, 0]), // rows of padding alone
        ] {
            for (channels, groups) in [(1, 1), (3, 3), (16, 16), (16, 1), (6, 2)] {
                let g = ConvGeometry {
                    input,
                    input_channels: channels,
                    output,
                    output_channels: channels,
                    kernel,
                    stride,
                    dilation,
                    pads_begin,
                    groups,
                };
                let conv = Conv::new(g.clone(), Activation::Relu);
                let w = values(kernel[0] * kernel[1] * channels * g.group_inputs());
                let bias = values(channels);
                let (rows, row) = if input[0] == 1 { (input[1], channels) } else { (input[0], input[1] * channels) };
                if g.is_depthwise() {
                    let weights = Arc::new(ConvWeights { w, bias, ..ConvWeights::default() });
                    check(&FrozenDepthwise { conv, weights }, rows, row, 1);
                } else {
                    let weights = ConvWeights::new(&g, &w, bias);
                    check(&FrozenConv { conv: conv.clone(), weights: Arc::new(weights.clone()) }, rows, row, 1);
                    for axis in [0, 1] {
                        let conv = Conv { tiled: Some(axis), ..conv.clone() };
                        let mut weights = weights.clone();
                        weights.derive(&conv, false);
                        let tiled = !weights.u.is_empty();
                        if tiled {
                            weights.w = Vec::new();
                        }
                        let op = FrozenConv { conv, weights: Arc::new(weights) };
                        if axis == axis_of_rows(&g) {
                            assert!(op.row_window(rows).is_none());
                        } else if tiled {
                            check(&op, rows, row, 1);
                        }
                    }
                }
                let window = Window { input, channels, kernel, stride, dilation, pads_begin, output };
                check(&MaxPool::new(window.clone()), rows, row, 1);
                check(&LpPool::new(window.clone(), 2), rows, row, 1);
                for counted in [false, true] {
                    check(&AveragePool::new(window.clone(), counted, [1, 0]), rows, row, 1);
                }
            }
        }
        check(&Unary::new(UnaryKind::Tanh, 7 * 13), 7, 13, 1);
        check(&Affine::new(14, 3, 5, values(3), values(3)), 7, 30, 1);
        check(&Binary::new(BinaryKind::Add, &[7, 4, 3], &[7, 4, 3]), 7, 12, 2);
        check(&Binary::with_constant(BinaryKind::Mul, &[7, 4, 3], values(3).into(), &[3], false), 7, 12, 1);
        check(&Binary::with_constant(BinaryKind::Sub, &[7, 4, 3], values(1).into(), &[1], true), 7, 12, 1);
        check(&Binary::with_constant(BinaryKind::Add, &[1, 7, 4, 3], values(4).into(), &[4, 1], false), 7, 12, 1);
        let varies = Binary::with_constant(BinaryKind::Add, &[7, 4], values(28).into(), &[7, 4], false);
        assert!(varies.row_window(7).is_none());
    }

    #[test]
    fn windows_say_what_is_read() {
        let window = RowWindow { rows: 25, taps: 10, stride: 2, dilation: 1, pad: 4 };
        assert_eq!(window.reads(0..1, 49), 0..6);
        assert_eq!(window.reads(24..25, 49), 44..49);
        assert_eq!(window.inside(0..49), 2..22);
        for o in 0..25 {
            let first = o * 2;
            let inside = first >= 4 && first - 4 + 10 <= 49;
            assert_eq!(inside, (2..22).contains(&o), "{o}");
        }
        assert_eq!(RowWindow { rows: 3, taps: 9, stride: 1, dilation: 1, pad: 0 }.inside(0..5), 0..0);
    }
}
