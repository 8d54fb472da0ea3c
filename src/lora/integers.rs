//! An adapted dense layer that runs from its integers, with the pair beside them.
//!
//! y = act(x·W + b + s·(x·Aᵀ)·Bᵀ), as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314): no merged weight, which would be
//! as large as the weight in floats. It costs `2·r·(in + out)` multiply-adds a position more than the merged form, half of
//! them forward: 4% of a layer of 768 x 768 with rank 8.

use std::sync::Arc;

use crate::kernels::gemm::{Start, gemm, gemm_from};
use crate::ops::conv::{Conv, Factors, transpose};
use crate::ops::integer_dense::IntegerWeights;
use crate::ops::unary::Activation;

/// Positions whose r-wide products are in memory at a time.
const POSITIONS: usize = 128;

/// A dense layer in integers with a low-rank pair.
#[derive(Clone, Debug)]
pub(super) struct Beside {
    plain: Conv,
    weights: Arc<IntegerWeights>,
    rank: usize,
    scale: f32,
}

impl Beside {
    pub(super) fn new(conv: &Conv, weights: Arc<IntegerWeights>, rank: usize, scale: f32) -> Self {
        Self { plain: Conv { activation: Activation::None, ..conv.clone() }, weights, rank, scale }
    }

    pub(super) fn forward_work(&self) -> usize {
        self.weights.work().max(self.plain.low_rank_work(self.rank))
    }

    pub(super) fn vjp_work(&self) -> usize {
        self.forward_work().max(POSITIONS * self.rank)
    }

    /// What the pair adds to a forward pass, and again to the input gradient.
    pub(super) fn multiply_adds(&self) -> u64 {
        let g = &self.plain.geometry;
        (self.rank * (g.input_channels + g.output_channels) * g.positions()) as u64
    }

    /// Room for the factors, for s·Bᵀ and, behind it, s·A.
    pub(super) fn room(&self) -> (Factors, Vec<f32>) {
        let g = &self.plain.geometry;
        let (a, b) = (self.rank * g.input_channels, self.rank * g.output_channels);
        (Factors { a_t: vec![0.0; a], b: vec![0.0; b] }, vec![0.0; a + b])
    }

    pub(super) fn prepare(&self, params: &[f32], factors: &mut Factors, scaled: &mut [f32]) {
        let g = &self.plain.geometry;
        let (a, bt) = params.split_at(self.rank * g.input_channels);
        transpose(a, self.rank, g.input_channels, &mut factors.a_t);
        transpose(bt, self.rank, g.output_channels, &mut factors.b);
        scaled.iter_mut().zip(bt.iter().chain(a)).for_each(|(s, p)| *s = p * self.scale);
    }

    /// y before the activation.
    pub(super) fn forward(&self, factors: &Factors, scaled: &[f32], x: &[f32], y: &mut [f32], work: &mut [f32]) {
        self.weights.forward(&self.plain, x, y, None, work);
        let bt = &scaled[..self.rank * self.plain.geometry.output_channels];
        self.plain.low_rank_forward(&factors.a_t, bt, self.rank, x, y, work);
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
        let g = &self.plain.geometry;
        let (inputs, outputs, rank) = (g.input_channels, g.output_channels, self.rank);
        self.weights.input_gradient(&self.plain, dz, dx, first, work);
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
        let (da, dbt) = accumulators.split_at_mut(self.rank * self.plain.geometry.input_channels);
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
            let conv = Conv { geometry, activation: Activation::Relu, output_kept: false };
            let weights = Arc::new(IntegerWeights { matrix, turned, bias });
            let beside = SiteStep::integers(conv.clone(), weights, rank, 0.5);
            let adaptation = Adaptation::LowRank { rank, scale: 0.5 };
            let merged = SiteStep::new(conv, false, Arc::new(floats), 1.0, adaptation);
            assert_eq!(beside.parameters(), merged.parameters());
            let params: Vec<f32> = values(3, beside.parameters()).iter().map(|v| v * 0.1).collect();
            let (x, dy, before) = (values(4, m * k), values(5, m * n), values(6, m * k));
            let run = |step: &SiteStep, first: bool| {
                let mut site = step.weights();
                step.prepare(&params, &mut site, true);
                let mut y = vec![f32::NAN; step.output_len()];
                let mut saved = vec![f32::NAN; step.keeps().saved];
                step.forward(&site, &x, &mut y, &mut saved, &mut vec![f32::NAN; step.forward_work()]);
                let mut work = vec![f32::NAN; step.vjp_work()];
                let (mut dy, mut dx) = (dy.clone(), before.clone());
                let mut sums = vec![0.0; step.accumulators()];
                step.vjp(&site, &x, &[], &saved, &mut dy, Some(&mut dx), first, &mut sums, &mut work);
                let mut gradient = values(7, params.len());
                step.finish(&params, &mut site, &sums, &mut gradient);
                [y, dx, gradient]
            };
            for first in [false, true] {
                let (got, want) = (run(&beside, first), run(&merged, first));
                for (what, (got, want)) in ["y", "dx", "gradient"].iter().zip(got.iter().zip(&want)) {
                    close(got, want, what);
                }
            }
        }
    }
}
