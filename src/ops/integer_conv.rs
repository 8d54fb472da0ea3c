//! Convolutions that run from their integers: larger kernels, groups, depthwise and transposed ones.
//!
//! Formulas and shapes as in [`super::conv`], [`super::depthwise`] and [`super::conv_transpose`], with
//! W[o, i, t] = (q[o, i, t] − z) · s as the file has it. A block of W is turned into packed floats, once a clip and
//! direction, and with a low-rank pair merged there: W + s·B·A. The sums are those of the layer in floats in the same order, so
//! that the result has its bits, unless floats take two outputs at a time ([`Conv::tiled`]).

use std::sync::Arc;

use super::conv::{Conv, POSITIONS, chunk_rows, chunks, mirror, plane};
use super::conv_geometry::ConvGeometry;
use super::conv_transpose::ConvTranspose;
use super::{Keeps, Operator};
use crate::kernels::depthwise;
use crate::kernels::gemm::{Matrix, Start, Walk, gemm, gemm_packed, panel, panels};
use crate::kernels::integer_taps::Taps;
use crate::kernels::integers::Integers;

/// Floats of a block: 1 MiB. A smaller block would have the patches of a clip written out more often.
const BLOCK: usize = 1 << 18;

/// The weight of a convolution in integers.
#[derive(Clone, Debug)]
pub struct IntegerKernels {
    /// `[outputs, group inputs · taps]`, rows of a group one behind the other.
    pub matrix: Arc<Integers>,
    /// `[outputs]`, or empty.
    pub bias: Vec<f32>,
}

/// A low-rank pair that is merged into blocks of floats.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// As `a` in [`super::conv`].
    pub a: &'a [f32],
    /// s·Bᵀ, as `bt` in [`super::conv`].
    pub bt: &'a [f32],
    /// Rank over all groups.
    pub rank: usize,
}

/// Columns of a block whose columns have `rows` values: whole panels.
fn block(rows: usize, columns: usize) -> usize {
    let panels = BLOCK / rows.max(1) / panel();
    (panels.max(1) * panel()).min(columns)
}

fn taps(g: &ConvGeometry) -> usize {
    g.kernel[0] * g.kernel[1]
}

impl IntegerKernels {
    /// Scratch values for a pass in either direction.
    pub fn work(&self, conv: &Conv) -> usize {
        let g = &conv.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let forward = block(patch, outputs) * patch;
        let back = taps(g) * outputs;
        conv.work() + forward.max(block(back, g.group_inputs()) * back)
    }

    fn group<'a>(&'a self, g: &ConvGeometry, group: usize) -> Taps<'a> {
        let outputs = g.group_outputs();
        Taps { integers: &self.matrix, first: group * outputs, outputs, inputs: g.group_inputs(), taps: taps(g) }
    }

    /// y = bias + (W + the pair) * x, held between the two bounds of `clamp`.
    pub fn forward(
        &self,
        conv: &Conv,
        pair: Option<Pair>,
        x: &[f32],
        y: &mut [f32],
        clamp: Option<[f32; 2]>,
        work: &mut [f32],
    ) {
        let g = &conv.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let (work, floats) = work.split_at_mut(conv.work());
        let step = if g.is_pointwise() { g.positions() } else { conv.chunk() };
        for group in 0..g.groups {
            for columns in chunks(outputs, block(patch, outputs)) {
                let w = &mut floats[..patch * columns.len()];
                self.group(g, group).columns(columns.clone(), w);
                if let Some(Pair { a, bt, rank }) = pair {
                    let rank = rank / g.groups;
                    let a = &a[group * rank * patch..][..rank * patch];
                    let bt = &bt[group * rank * outputs..][..rank * outputs];
                    for (own, at) in panels(patch, columns.len()) {
                        let (width, b) = (own.len(), &bt[(columns.start + own.start).min(bt.len())..]);
                        gemm(patch, width, rank, a, 1, patch, b, outputs, &mut w[at..], width);
                    }
                }
                let first = group * outputs + columns.start;
                let start = match self.bias.get(first..first + columns.len()) {
                    Some(bias) => Start::Bias(bias),
                    None => Start::Zero,
                };
                for range in chunks(g.positions(), step) {
                    let y = &mut y[range.start * g.output_channels + first..];
                    let rows = range.len();
                    let patches = conv.patches(x, group, range, work);
                    gemm_packed(start, rows, columns.len(), patch, patches, w, y, g.output_channels, clamp);
                }
            }
        }
    }

    /// dx += the transposed convolution of dz with W + the pair; `first`: dx is written, not added to.
    pub fn input_gradient(
        &self,
        conv: &Conv,
        pair: Option<Pair>,
        dz: &[f32],
        dx: &mut [f32],
        first: bool,
        work: &mut [f32],
    ) {
        let g = &conv.geometry;
        let (patch, inputs, outputs, taps) = (g.patch(), g.group_inputs(), g.group_outputs(), taps(g));
        let (work, floats) = work.split_at_mut(conv.work());
        let mirror = mirror(g);
        let size = block(taps * outputs, inputs);
        let direct = mirror.is_some() || g.is_pointwise();
        if first && !direct {
            dx.fill(0.0);
        }
        let start = if first { Start::Zero } else { Start::Add };
        // Rows of the weight of `group` and the inputs `columns`, in blocks of a tap or all of them.
        let fill = |group: usize, columns: std::ops::Range<usize>, floats: &mut [f32]| {
            self.group(g, group).rows(columns.clone(), mirror.is_some(), floats);
            let Some(Pair { a, bt, rank }) = pair else { return };
            let rank = rank / g.groups;
            let a = &a[group * rank * patch..][..rank * patch];
            let bt = &bt[group * rank * outputs..][..rank * outputs];
            for tap in 0..taps {
                let panel_rows = if mirror.is_some() { taps * outputs } else { outputs };
                for (own, at) in panels(panel_rows, columns.len()) {
                    let width = own.len();
                    let to = match mirror.is_some() {
                        true => at + (taps - 1 - tap) * outputs * width,
                        false => tap * outputs * columns.len() + at,
                    };
                    let a = &a[(tap * inputs + columns.start + own.start).min(a.len())..];
                    gemm(outputs, width, rank, bt, 1, outputs, a, patch, &mut floats[to..], width);
                }
            }
        };
        for group in 0..g.groups {
            if direct {
                for columns in chunks(inputs, size) {
                    let w = &mut floats[..taps * outputs * columns.len()];
                    fill(group, columns.clone(), w);
                    let dx = &mut dx[group * inputs + columns.start..];
                    let Some(mirror) = &mirror else {
                        let dz = dz_rows(g, dz, group, 0);
                        gemm_packed(start, g.positions(), columns.len(), outputs, dz, w, dx, g.input_channels, None);
                        continue;
                    };
                    for range in chunks(mirror.positions(), chunk_rows(mirror) * mirror.output[1]) {
                        let (rows, channels) = (range.len(), g.input_channels);
                        let dx = &mut dx[range.start * channels..];
                        let patches = plane(mirror, dz, range, work);
                        gemm_packed(start, rows, columns.len(), taps * outputs, patches, w, dx, channels, None);
                    }
                }
                continue;
            }
            if size == inputs {
                fill(group, 0..inputs, &mut floats[..patch * outputs]);
            }
            for range in chunks(g.positions(), POSITIONS) {
                let col = &mut work[..range.len() * patch];
                for columns in chunks(inputs, size) {
                    let (n, len) = (columns.len(), outputs * columns.len());
                    if size < inputs {
                        fill(group, columns.clone(), &mut floats[..taps * len]);
                    }
                    for tap in 0..taps {
                        let (w, col) = (&floats[tap * len..][..len], &mut col[tap * inputs + columns.start..]);
                        let dz = dz_rows(g, dz, group, range.start);
                        gemm_packed(Start::Zero, range.len(), n, outputs, dz, w, col, patch, None);
                    }
                }
                g.add_patches(col, group, range, dx);
            }
        }
    }
}

/// Rows of dz from a position on, the outputs of one group.
fn dz_rows<'a>(g: &ConvGeometry, dz: &'a [f32], group: usize, position: usize) -> Matrix<'a> {
    let values = &dz[position * g.output_channels + group * g.group_outputs()..];
    Matrix { values, rows: Walk::even(g.output_channels), columns: Walk::even(1) }
}

/// A convolution whose weights never change.
#[derive(Clone, Debug)]
pub struct FrozenIntegerConv {
    /// Sizes and activation.
    pub conv: Conv,
    /// Weights.
    pub weights: Arc<IntegerKernels>,
}

impl FrozenIntegerConv {
    /// The weight of a depthwise layer as its kernel reads it.
    fn depthwise<'a>(&self, work: &'a mut [f32]) -> &'a [f32] {
        let g = &self.conv.geometry;
        let (taps, outputs) = (taps(g), g.output_channels);
        let w = &mut work[..taps * outputs];
        Taps { integers: &self.weights.matrix, first: 0, outputs, inputs: 1, taps }.depthwise(w);
        w
    }

    fn back(&self, y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], first: bool, work: &mut [f32]) {
        self.conv.activation_gradient(y, saved, dy);
        if self.conv.geometry.is_depthwise() {
            return depthwise::input_gradient(&self.conv.geometry, dy, self.depthwise(work), dx, first);
        }
        self.weights.input_gradient(&self.conv, None, dy, dx, first, work);
    }
}

impl Operator for FrozenIntegerConv {
    fn output_len(&self) -> usize {
        self.conv.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        self.conv.keeps()
    }

    fn forward_work(&self) -> usize {
        let g = &self.conv.geometry;
        if g.is_depthwise() { taps(g) * g.output_channels } else { self.weights.work(&self.conv) }
    }

    fn vjp_work(&self) -> usize {
        self.forward_work()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        let clamp = self.conv.activation.bounds();
        if self.conv.geometry.is_depthwise() {
            let w = self.depthwise(work);
            depthwise::forward(&self.conv.geometry, x[0], w, &self.weights.bias, clamp, y);
        } else {
            self.weights.forward(&self.conv, None, x[0], y, clamp, work);
        }
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
            self.back(y, saved, dy, dx, false, work);
        }
    }

    fn vjp_first(&self, _x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], work: &mut [f32]) {
        self.back(y, saved, dy, dx, true, work);
    }
}

impl ConvTranspose {
    /// Scratch values for [`ConvTranspose::forward_integers`] and [`ConvTranspose::input_gradient_integers`].
    pub fn integer_work(&self, weights: &IntegerKernels) -> usize {
        self.mirror().geometry.output_len() + weights.work(self.mirror())
    }

    /// y = bias + the transposed convolution of x with W + the pair.
    pub fn forward_integers(
        &self,
        weights: &IntegerKernels,
        pair: Option<Pair>,
        x: &[f32],
        y: &mut [f32],
        work: &mut [f32],
    ) {
        self.fill(y);
        weights.input_gradient(self.mirror(), pair, x, y, false, work);
    }

    /// dx += the mirror of dy with W + the pair.
    pub fn input_gradient_integers(
        &self,
        weights: &IntegerKernels,
        pair: Option<Pair>,
        dy: &[f32],
        dx: &mut [f32],
        work: &mut [f32],
    ) {
        let (z, work) = work.split_at_mut(dx.len());
        weights.forward(self.mirror(), pair, dy, z, None, work);
        dx.iter_mut().zip(z).for_each(|(dx, z)| *dx += *z);
    }
}

/// A transposed convolution whose weights never change.
#[derive(Clone, Debug)]
pub struct FrozenIntegerTranspose {
    /// Sizes and bias.
    pub layer: ConvTranspose,
    /// Weights of the mirror, without a bias.
    pub weights: Arc<IntegerKernels>,
}

impl Operator for FrozenIntegerTranspose {
    fn output_len(&self) -> usize {
        self.layer.output_len()
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward_work(&self) -> usize {
        self.layer.integer_work(&self.weights)
    }

    fn vjp_work(&self) -> usize {
        self.layer.integer_work(&self.weights)
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], work: &mut [f32]) {
        self.layer.forward_integers(&self.weights, None, x[0], y, work);
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
            self.layer.input_gradient_integers(&self.weights, None, dy, dx, work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::values;
    use super::*;
    use crate::ops::conv::{ConvWeights, FrozenConv};
    use crate::ops::conv_transpose::FrozenConvTranspose;
    use crate::ops::depthwise::FrozenDepthwise;
    use crate::ops::unary::Activation;

    #[rustfmt::skip]
    fn geometries() -> Vec<ConvGeometry> {
        let g = |input, channels, output, out, kernel, stride, dilation, pads_begin, groups| ConvGeometry {
            input, input_channels: channels, output, output_channels: out, kernel, stride, dilation, pads_begin, groups,
        };
        vec![
            g([14, 13], 3, [14, 13], 5, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            g([9, 8], 4, [5, 4], 6, [1, 1], [2, 2], [1, 1], [0, 0], 1),
            g([9, 11], 2, [4, 3], 3, [3, 5], [2, 3], [1, 1], [0, 1], 1),
            g([1, 20], 3, [1, 18], 2, [1, 2], [1, 1], [1, 2], [0, 0], 1),
            g([7, 5], 6, [7, 5], 4, [3, 3], [1, 1], [1, 1], [1, 1], 2),
            g([6, 4], 6, [6, 4], 9, [1, 1], [1, 1], [1, 1], [0, 0], 3),
            // More than a block of floats, forward and back.
            g([3, 3], 96, [3, 3], 400, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            g([5, 3], 700, [3, 2], 60, [3, 3], [2, 2], [1, 1], [1, 1], 1),
            g([7, 8], 5, [7, 8], 5, [3, 3], [1, 1], [1, 1], [1, 1], 5),
        ]
    }

    /// A weight in 8 bits, one scale an output, and the same in floats, in kernel order.
    fn weight(g: &ConvGeometry) -> (Arc<Integers>, Vec<f32>) {
        let (outputs, patch) = (g.output_channels, g.patch());
        let data: Vec<u8> = values(1, outputs * patch).iter().map(|v| (v * 100.0 + 128.0) as u8).collect();
        let scales: Vec<f32> = values(2, outputs).iter().map(|s| s * 0.02).collect();
        let plain = Integers::new(outputs, patch, 8, patch, data.into()).unwrap();
        let matrix = plain.scaled([1, patch], scales.into(), &[128.0]).unwrap();
        let (file, inputs, taps, own) = (matrix.values(), g.group_inputs(), taps(g), g.group_outputs());
        let mut rows = Vec::new();
        if g.is_depthwise() {
            rows.extend((0..taps).flat_map(|t| (0..outputs).map(move |o| (o, t))).map(|(o, t)| file[o * taps + t]));
            return (Arc::new(matrix), rows);
        }
        for group in 0..g.groups {
            for k in 0..patch {
                let at = |o: usize| ((group * own + o) * inputs + k % inputs) * taps + k / inputs;
                rows.extend((0..own).map(|o| file[at(o)]));
            }
        }
        (Arc::new(matrix), rows)
    }

    fn run(op: &dyn Operator, x: &[f32], dy: &[f32], first: bool) -> Vec<u32> {
        let mut y = vec![f32::NAN; op.output_len()];
        let mut saved = vec![f32::NAN; op.keeps().saved];
        op.forward(&[x], &mut y, &mut saved, &mut vec![f32::NAN; op.forward_work()]);
        let (mut dy, mut dx, mut work) = (dy.to_vec(), values(4, x.len()), vec![f32::NAN; op.vjp_work()]);
        match first {
            true => op.vjp_first(&[], &[], &saved, &mut dy, &mut dx, &mut work),
            false => op.vjp(&[&[]], &[], &saved, &mut dy, &mut [Some(&mut dx)], &mut work),
        }
        [y, saved, dx].concat().iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn has_the_bits_of_the_layer_in_floats() {
        for g in geometries() {
            for biased in [false, true] {
                let (matrix, rows) = weight(&g);
                let bias = if biased { values(3, g.output_channels) } else { Vec::new() };
                let conv = Conv::new(g.clone(), Activation::Relu);
                let weights = Arc::new(IntegerKernels { matrix: matrix.clone(), bias: bias.clone() });
                let (x, dy) = (values(5, g.input_len()), values(6, g.output_len()));
                let integers = FrozenIntegerConv { conv: conv.clone(), weights };
                let floats: Box<dyn Operator> = if g.is_depthwise() {
                    Box::new(FrozenDepthwise {
                        conv,
                        weights: Arc::new(ConvWeights { w: rows, bias, ..ConvWeights::default() }),
                    })
                } else {
                    let mut weights = ConvWeights::new(&g, &rows, bias);
                    weights.transpose(&g);
                    Box::new(FrozenConv { conv, weights: Arc::new(weights) })
                };
                for first in [false, true] {
                    assert_eq!(run(&integers, &x, &dy, first), run(&*floats, &x, &dy, first), "{g:?}");
                }
            }
        }
    }

    #[test]
    fn a_transposed_convolution_has_the_bits_of_that_in_floats() {
        for g in geometries().into_iter().filter(|g| !g.is_depthwise()) {
            let (matrix, rows) = weight(&g);
            let mut weights = ConvWeights::new(&g, &rows, Vec::new());
            weights.transpose(&g);
            let layer = ConvTranspose::new(g.clone(), values(3, g.input_channels));
            let (x, dy) = (values(5, g.output_len()), values(6, g.input_len()));
            let kernels = Arc::new(IntegerKernels { matrix, bias: Vec::new() });
            let integers = FrozenIntegerTranspose { layer: layer.clone(), weights: kernels };
            let floats = FrozenConvTranspose { layer, weights: Arc::new(weights) };
            for first in [false, true] {
                assert_eq!(run(&integers, &x, &dy, first), run(&floats, &x, &dy, first), "{g:?}");
            }
        }
    }
}
