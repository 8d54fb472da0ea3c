//! An adapted layer that runs from its integers.
//!
//! A dense or pointwise one has the pair beside it: y = act(x·W + b + s·(x·Aᵀ)·Bᵀ), as in QLoRA (Dettmers et al. 2023, arXiv
//! 2305.14314): no merged weight, which would be as large as the weight in floats. It costs `2·r·(in + out)` multiply-adds a
//! position more than the merged form, half of them forward: 4% of a layer of 768 x 768 with rank 8.
//!
//! Other convolutions merge it into each block of floats, `r·patch·out` multiply-adds a clip and direction, and so have the
//! bits of the merged layer in floats that is not [`Conv::tiled`].

use std::sync::Arc;

use crate::kernels::gemm::{Start, gemm, gemm_from};
use crate::ops::HeldPair;
use crate::ops::conv::{Conv, Factors, transpose};
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::integer_conv::{IntegerKernels, Pair};
use crate::ops::integer_dense::IntegerWeights;
use crate::ops::unary::Activation;

/// Positions whose r-wide products are in memory at a time.
const POSITIONS: usize = 128;

/// How the layer runs.
#[derive(Clone, Debug)]
enum Form {
    /// Dense or pointwise, the pair beside it.
    Dense(Arc<IntegerWeights>),
    /// A convolution, the pair merged into its blocks.
    Conv(Arc<IntegerKernels>),
    /// A transposed one; the convolution is its mirror.
    Transposed(ConvTranspose, Arc<IntegerKernels>),
    /// One of several weights of a step, which runs itself.
    Held,
}

/// A layer in integers with a low-rank pair.
#[derive(Clone, Debug)]
pub(super) struct Beside {
    plain: Conv,
    form: Form,
    rank: usize,
    scale: f32,
}

impl Beside {
    pub(super) fn dense(conv: &Conv, weights: Arc<IntegerWeights>, rank: usize, scale: f32) -> Self {
        Self::new(conv, Form::Dense(weights), rank, scale)
    }

    pub(super) fn conv(conv: &Conv, weights: Arc<IntegerKernels>, rank: usize, scale: f32) -> Self {
        Self::new(conv, Form::Conv(weights), rank, scale)
    }

    pub(super) fn transposed(layer: ConvTranspose, weights: Arc<IntegerKernels>, rank: usize, scale: f32) -> Self {
        Self::new(&layer.mirror().clone(), Form::Transposed(layer, weights), rank, scale)
    }

    pub(super) fn held(conv: &Conv, rank: usize, scale: f32) -> Self {
        Self::new(conv, Form::Held, rank, scale)
    }

    /// The pair of a weight that a step holds.
    pub(super) fn held_pair<'a>(&self, factors: &'a Factors, scaled: &'a [f32]) -> Option<HeldPair<'a>> {
        let pair = self.pair(scaled)?;
        matches!(self.form, Form::Held).then_some(HeldPair { pair, factors, scale: self.scale })
    }

    fn new(conv: &Conv, form: Form, rank: usize, scale: f32) -> Self {
        Self { plain: Conv { activation: Activation::None, ..conv.clone() }, form, rank, scale }
    }

    pub(super) fn forward_work(&self) -> usize {
        match &self.form {
            Form::Dense(weights) => weights.work().max(self.plain.low_rank_work(self.rank)),
            Form::Conv(weights) => weights.work(&self.plain),
            Form::Transposed(layer, weights) => layer.integer_work(weights),
            Form::Held => 0,
        }
    }

    pub(super) fn vjp_work(&self) -> usize {
        if matches!(self.form, Form::Held) {
            return 0;
        }
        self.forward_work().max(POSITIONS * self.rank).max(self.plain.low_rank_work(self.rank))
    }

    /// Values of A, over all groups.
    fn a_len(&self) -> usize {
        self.rank * self.plain.geometry.patch()
    }

    /// Values of B, over all groups.
    fn b_len(&self) -> usize {
        let g = &self.plain.geometry;
        self.rank / g.groups * g.output_channels
    }

    /// What the pair adds to a forward pass, and again to the input gradient.
    pub(super) fn multiply_adds(&self) -> u64 {
        let g = &self.plain.geometry;
        match self.form {
            Form::Dense(_) => (self.rank * (g.input_channels + g.output_channels) * g.positions()) as u64,
            // A look-up multiplies nothing.
            Form::Held if g.positions() == 0 => 0,
            _ => (self.rank / g.groups * g.patch() * g.output_channels) as u64,
        }
    }

    /// Room for the factors, for s·Bᵀ and, behind it, s·A, or A where the pair is merged.
    pub(super) fn room(&self) -> (Factors, Vec<f32>) {
        let (a, b) = (self.a_len(), self.b_len());
        (Factors { a_t: vec![0.0; a], b: vec![0.0; b], ..Factors::default() }, vec![0.0; a + b])
    }

    pub(super) fn prepare(&self, params: &[f32], factors: &mut Factors, scaled: &mut [f32]) {
        let g = &self.plain.geometry;
        let (patch, outputs, rank) = (g.patch(), g.group_outputs(), self.rank / g.groups);
        let (a, bt) = params.split_at(self.a_len());
        for group in 0..g.groups {
            let (a_at, b_at) = (group * rank * patch, group * rank * outputs);
            transpose(&a[a_at..], rank, patch, &mut factors.a_t[a_at..]);
            transpose(&bt[b_at..], rank, outputs, &mut factors.b[b_at..]);
        }
        let (bt_scaled, a_scaled) = scaled.split_at_mut(bt.len());
        bt_scaled.iter_mut().zip(bt).for_each(|(s, p)| *s = p * self.scale);
        let of_a = if matches!(self.form, Form::Dense(_)) { self.scale } else { 1.0 };
        a_scaled.iter_mut().zip(a).for_each(|(s, p)| *s = p * of_a);
    }

    /// The pair that is merged.
    fn pair<'a>(&self, scaled: &'a [f32]) -> Option<Pair<'a>> {
        let (bt, a) = scaled.split_at(self.b_len());
        Some(Pair { a, bt, rank: self.rank })
    }

    /// y before the activation.
    pub(super) fn forward(&self, factors: &Factors, scaled: &[f32], x: &[f32], y: &mut [f32], work: &mut [f32]) {
        match &self.form {
            Form::Dense(weights) => {
                weights.forward(&self.plain, x, y, None, work);
                let bt = &scaled[..self.b_len()];
                self.plain.low_rank_forward(&factors.a_t, bt, self.rank, x, y, work);
            }
            Form::Conv(weights) => weights.forward(&self.plain, self.pair(scaled), x, y, None, work),
            Form::Transposed(layer, weights) => layer.forward_integers(weights, self.pair(scaled), x, y, work),
            Form::Held => {}
        }
    }

    /// dx += dz·Wᵀ + s·(dz·B)·A; `first`: dx is written, not added to.
    pub(super) fn input_gradient(
        &self,
        factors: &Factors,
        scaled: &[f32],
        dz: &[f32],
        dx: &mut [f32],
        first: bool,
        work: &mut [f32],
    ) {
        let weights = match &self.form {
            Form::Dense(weights) => weights,
            Form::Conv(weights) => {
                return weights.input_gradient(&self.plain, self.pair(scaled), dz, dx, first, work);
            }
            Form::Transposed(layer, weights) => {
                if first {
                    dx.fill(0.0);
                }
                return layer.input_gradient_integers(weights, self.pair(scaled), dz, dx, work);
            }
            Form::Held => return,
        };
        let g = &self.plain.geometry;
        let (inputs, outputs, rank) = (g.input_channels, g.output_channels, self.rank);
        weights.input_gradient(&self.plain, dz, dx, first, work);
        let a = &scaled[rank * outputs..];
        for (dz, dx) in dz.chunks(POSITIONS * outputs).zip(dx.chunks_mut(POSITIONS * inputs)) {
            let rows = dz.len() / outputs;
            let e = &mut work[..rows * rank];
            gemm_from(Start::Zero, rows, rank, outputs, dz, outputs, 1, &factors.b, rank, e, rank);
            gemm(rows, inputs, rank, e, rank, 1, a, inputs, dx, inputs);
        }
    }

    /// Adds the gradients of the pair to `accumulators`.
    pub(super) fn factor_gradients(
        &self,
        factors: &Factors,
        x: &[f32],
        dz: &[f32],
        accumulators: &mut [f32],
        work: &mut [f32],
    ) {
        let (da, dbt) = accumulators.split_at_mut(self.a_len());
        // A transposed convolution is the way back of its mirror.
        let (x, dz) = if matches!(self.form, Form::Transposed(..)) { (dz, x) } else { (x, dz) };
        self.plain.low_rank_gradient(factors, self.rank, self.scale, x, dz, da, dbt, work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::integers::Integers;
    use crate::lora::{Adaptation, SiteStep};
    use crate::ops::check::values;
    use crate::ops::conv::ConvWeights;
    use crate::ops::conv_geometry::ConvGeometry;

    /// Relative to the norm of the tensor: sums of some hundred products in f32, in another order than the merged form.
    const RELATIVE: f64 = 1e-5;

    fn close(got: &[f32], want: &[f32], what: &str) {
        let square = |v: f32| f64::from(v) * f64::from(v);
        let norm = want.iter().map(|w| square(*w)).sum::<f64>().sqrt();
        let error = got.iter().zip(want).map(|(g, w)| square(g - w)).sum::<f64>().sqrt();
        assert!(norm > 0.0 && error < RELATIVE * norm, "{what}: {error:e} of {norm:e}");
    }

    /// y, dx (what was there before, and with `first` not) and the gradient of the parameters, of work space that nobody filled.
    fn outcome(step: &SiteStep, params: &[f32], [x, dy, before]: [&[f32]; 3], first: bool) -> [Vec<f32>; 3] {
        let mut site = step.weights();
        step.prepare(params, &mut site, true);
        let mut y = vec![f32::NAN; step.output_len()];
        let mut saved = vec![f32::NAN; step.keeps().saved];
        step.forward(&site, x, &mut y, &mut saved, &mut vec![f32::NAN; step.forward_work()]);
        let mut work = vec![f32::NAN; step.vjp_work()];
        let (mut dy, mut dx) = (dy.to_vec(), before.to_vec());
        let mut sums = vec![0.0; step.accumulators()];
        step.vjp(&site, x, &[], &saved, &mut dy, Some(&mut dx), first, &mut sums, &mut work);
        let mut gradient = values(7, params.len());
        step.finish(params, &mut site, &sums, &mut gradient);
        [y, dx, gradient]
    }

    #[test]
    fn agrees_with_the_merged_form() {
        for (m, k, n, rank, turned) in [(1, 300, 140, 4, true), (3, 40, 260, 8, false), (150, 70, 30, 2, true)] {
            let (rows, columns) = if turned { (n, k) } else { (k, n) };
            let data: Vec<u8> = values(1, k * n).iter().map(|v| (v * 100.0 + 128.0) as u8).collect();
            let plain = Integers::new(rows, columns, 8, columns, data.into()).unwrap();
            let matrix = Arc::new(plain.scaled([rows, columns], [1e-3].into(), &[128.0]).unwrap());
            let bias = values(2, n);
            let w = if turned { matrix.turned_values() } else { matrix.values() };
            let geometry = ConvGeometry::dense(m, k, n);
            let floats = ConvWeights::new(&geometry, &w, bias.clone());
            let conv = Conv::new(geometry, Activation::Relu);
            let weights = Arc::new(IntegerWeights { matrix, turned, bias });
            let beside = SiteStep::integers(conv.clone(), weights, rank, 0.5);
            let adaptation = Adaptation::LowRank { rank, scale: 0.5 };
            let merged = SiteStep::new(conv, false, Arc::new(floats), 1.0, adaptation);
            assert_eq!(beside.parameters(), merged.parameters());
            let params: Vec<f32> = values(3, beside.parameters()).iter().map(|v| v * 0.1).collect();
            let (x, dy, before) = (values(4, m * k), values(5, m * n), values(6, m * k));
            for first in [false, true] {
                let run = |step| outcome(step, &params, [&x, &dy, &before], first);
                let (got, want) = (run(&beside), run(&merged));
                for (what, (got, want)) in ["y", "dx", "gradient"].iter().zip(got.iter().zip(&want)) {
                    close(got, want, what);
                }
            }
        }
    }

    /// Of a larger kernel, of groups and of a transposed convolution.
    #[test]
    fn merged_blocks_have_the_bits_of_the_merged_layer() {
        for (groups, stride, transposed) in [(1, 1, false), (1, 2, false), (2, 1, false), (1, 2, true), (2, 1, true)] {
            let (inputs, outputs, taps, rank) = (6, 10, 9, 4);
            let geometry = ConvGeometry {
                input: [8, 6],
                input_channels: inputs,
                output: [8usize.div_ceil(stride), 6usize.div_ceil(stride)],
                output_channels: outputs,
                kernel: [3, 3],
                stride: [stride; 2],
                dilation: [1, 1],
                pads_begin: [1, 1],
                groups,
            };
            let patch = geometry.patch();
            let data: Vec<u8> = values(1, outputs * patch).iter().map(|v| (v * 100.0 + 128.0) as u8).collect();
            let plain = Integers::new(outputs, patch, 8, patch, data.into()).unwrap();
            let matrix = Arc::new(plain.scaled([outputs, patch], [1e-3].into(), &[128.0]).unwrap());
            let (file, own, each) = (matrix.values(), outputs / groups, inputs / groups);
            let at = |g: usize, k: usize, o: usize| ((g * own + o) * each + k % each) * taps + k / each;
            let row = |g: usize, k: usize| (0..own).map(move |o| (g, k, o));
            let places = (0..groups).flat_map(|g| (0..patch).flat_map(move |k| row(g, k)));
            let rows: Vec<f32> = places.map(|(g, k, o)| file[at(g, k, o)]).collect();
            let adaptation = Adaptation::LowRank { rank, scale: 0.5 };
            let (bias, x_len, y_len) = match transposed {
                true => (values(2, inputs), geometry.output_len(), geometry.input_len()),
                false => (values(2, outputs), geometry.input_len(), geometry.output_len()),
            };
            let (integers, floats) = if transposed {
                let layer = ConvTranspose::new(geometry.clone(), bias);
                let kernels = Arc::new(IntegerKernels { matrix, bias: Vec::new() });
                let packed = Arc::new(ConvWeights::new(&geometry, &rows, Vec::new()));
                let integers = SiteStep::integer_transpose(layer.clone(), kernels, rank, 0.5);
                (integers, SiteStep::transposed(layer, packed, adaptation))
            } else {
                let packed = Arc::new(ConvWeights::new(&geometry, &rows, bias.clone()));
                let conv = Conv::new(geometry, Activation::Relu);
                let kernels = Arc::new(IntegerKernels { matrix, bias });
                let integers = SiteStep::integer_kernels(conv.clone(), kernels, rank, 0.5);
                (integers, SiteStep::new(conv, false, packed, 1.0, adaptation))
            };
            let params: Vec<f32> = values(3, integers.parameters()).iter().map(|v| v * 0.1).collect();
            let (x, dy, before) = (values(4, x_len), values(5, y_len), values(6, x_len));
            let run = |step| outcome(step, &params, [&x, &dy, &before], false);
            let ([y, dx, gradient], [y_floats, dx_floats, gradient_floats]) = (run(&integers), run(&floats));
            assert!(y == y_floats && dx == dx_floats, "{groups} {stride} {transposed}");
            close(&gradient, &gradient_floats, "gradient");
        }
    }
}
