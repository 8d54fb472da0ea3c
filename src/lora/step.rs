//! A site in the plan: the frozen layer, what adapts it, and the gradients of that.
//!
//! Training runs through the merged weight: `W' = W + s·B·A` is rebuilt once a step, so forward and input gradient
//! cost what the frozen layer costs; extra are the two factor gradients (DESIGN decision 6). They take the cheaper of
//! two forms: r-wide products a clip (`2·r·(patch + out)` multiply-adds a position), or one `dW` (`patch·out`), which
//! is projected on A and B once a step.

use std::ops::Range;
use std::sync::Arc;

use super::integers::Beside;
use crate::kernels::depthwise;
use crate::kernels::gemm::{gemm, panels};
use crate::ops::conv::{Conv, ConvWeights, Factors, FileMatrix, pack_groups, transpose, unpack_groups};
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::integer_conv::IntegerKernels;
use crate::ops::integer_dense::IntegerWeights;
use crate::ops::rows::RowWindow;
use crate::ops::unary::Activation;
use crate::ops::{Held, Keeps};

/// What a multiply-add of an r-wide product takes, against one of a dW: 0.75 to 1.39, in the middle 1.13, on fifteen layers of the
/// networks of docs/performance.md (AVX2, rank 8).
const NARROW_COST: f32 = 1.15;

/// How a site is adapted, with what that needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adaptation {
    /// `W + scale · B·A`; `rank` over all groups.
    LowRank {
        /// Rank.
        rank: usize,
        /// alpha / r.
        scale: f32,
    },
    /// `scale[c] · (W * x + b)[c] + shift[c]`.
    ScaleShift,
    /// The weight itself, and the bias where the layer has one.
    Full,
}

/// One adapted layer of a plan.
#[derive(Clone, Debug)]
pub struct SiteStep {
    conv: Conv,
    plain: Conv,
    depthwise: bool,
    /// The layer, where it is a transposed convolution: then `conv` is its mirror, which goes from output to input.
    transposed: Option<ConvTranspose>,
    frozen: Arc<ConvWeights>,
    /// The frozen weight as the file has it; then `frozen` has the bias only.
    file: Option<FileMatrix>,
    weight_scale: f32,
    adaptation: Adaptation,
    /// One of several weights of a step, which runs itself.
    held: bool,
    /// The layer in integers; then there is neither `frozen` nor a merged weight.
    beside: Option<Box<Beside>>,
}

/// Weights of a site for the parameters of this step.
#[derive(Clone, Debug, Default)]
pub struct SiteWeights {
    pub(super) weights: ConvWeights,
    pub(super) factors: Factors,
    pub(super) scratch: Vec<f32>,
    /// Of a weight in integers that a step holds: what is merged by that step.
    pub(super) pair: Option<Beside>,
}

impl SiteWeights {
    /// What a step that holds the weight runs with.
    pub fn held(&self) -> Held<'_> {
        match self.pair.as_ref().and_then(|pair| pair.held_pair(&self.factors, &self.scratch)) {
            Some(pair) => Held::Pair(pair),
            None => Held::Merged(&self.weights),
        }
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        let ConvWeights { w, wt, bias, u, ut } = &self.weights;
        let all = [w, wt, bias, u, ut, &self.factors.a_t, &self.factors.b, &self.factors.u, &self.scratch];
        all.map(Vec::len).iter().sum::<usize>() * size_of::<f32>()
    }
}

impl SiteStep {
    /// `frozen.w` is packed as [`crate::ops::conv`] says, or `[taps, channels]` where `depthwise`; it already carries
    /// `weight_scale` (alpha of a Gemm), which the adapter's delta gets too.
    pub fn new(
        conv: Conv,
        depthwise: bool,
        frozen: Arc<ConvWeights>,
        weight_scale: f32,
        adaptation: Adaptation,
    ) -> Self {
        let plain = Conv { activation: Activation::None, ..conv.clone() };
        let (transposed, file, held, beside) = (None, None, false, None);
        Self { conv, plain, depthwise, transposed, frozen, file, weight_scale, adaptation, held, beside }
    }

    /// A pointwise layer with a low-rank pair; its frozen weight is packed anew for each merge, so that it is in memory once.
    pub fn in_file(conv: Conv, file: FileMatrix, bias: Vec<f32>, rank: usize, scale: f32) -> Self {
        debug_assert!(conv.geometry.is_pointwise() && conv.geometry.groups == 1);
        let frozen = Arc::new(ConvWeights { bias, ..ConvWeights::default() });
        Self { file: Some(file), ..Self::new(conv, false, frozen, 1.0, Adaptation::LowRank { rank, scale }) }
    }

    /// One of the weights that a [`crate::ops::Weighted`] operator holds: that runs with [`SiteWeights::held`] and
    /// adds a whole dW to the accumulators, which is projected on A and B once a step. `conv` says the sizes.
    pub fn held(conv: Conv, frozen: Arc<ConvWeights>, adaptation: Adaptation) -> Self {
        Self { held: true, ..Self::new(conv, false, frozen, 1.0, adaptation) }
    }

    /// A dense layer in integers with a low-rank pair of that rank and scale.
    pub fn integers(conv: Conv, weights: Arc<IntegerWeights>, rank: usize, scale: f32) -> Self {
        let beside = Beside::dense(&conv, weights, rank, scale);
        Self::in_integers(conv, beside, rank, scale)
    }

    /// Another convolution in integers with a low-rank pair of that rank and scale.
    pub fn integer_kernels(conv: Conv, weights: Arc<IntegerKernels>, rank: usize, scale: f32) -> Self {
        let beside = Beside::conv(&conv, weights, rank, scale);
        Self::in_integers(conv, beside, rank, scale)
    }

    /// A transposed convolution in integers with a low-rank pair of that rank and scale.
    pub fn integer_transpose(layer: ConvTranspose, weights: Arc<IntegerKernels>, rank: usize, scale: f32) -> Self {
        let beside = Beside::transposed(layer.clone(), weights, rank, scale);
        let conv = layer.mirror().clone();
        Self { transposed: Some(layer), ..Self::in_integers(conv, beside, rank, scale) }
    }

    /// [`SiteStep::held`] for a weight in integers with a low-rank pair, whose own gradients the operator adds.
    pub fn held_integers(conv: Conv, rank: usize, scale: f32) -> Self {
        let beside = Beside::held(&conv, rank, scale);
        Self { held: true, ..Self::in_integers(conv, beside, rank, scale) }
    }

    fn in_integers(conv: Conv, beside: Beside, rank: usize, scale: f32) -> Self {
        let adaptation = Adaptation::LowRank { rank, scale };
        Self { beside: Some(Box::new(beside)), ..Self::new(conv, false, Arc::default(), 1.0, adaptation) }
    }

    /// A transposed convolution with a low-rank pair; `frozen` are the weights of its mirror, without a bias.
    pub fn transposed(layer: ConvTranspose, frozen: Arc<ConvWeights>, adaptation: Adaptation) -> Self {
        debug_assert!(matches!(adaptation, Adaptation::LowRank { .. }));
        Self { transposed: Some(layer.clone()), ..Self::new(layer.mirror().clone(), false, frozen, 1.0, adaptation) }
    }

    /// The layer without its weights.
    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    pub(crate) fn set_output_kept(&mut self, kept: bool) {
        self.conv.output_kept = kept;
    }

    /// Values in the output.
    pub fn output_len(&self) -> usize {
        self.transposed.as_ref().map_or(self.conv.geometry.output_len(), ConvTranspose::output_len)
    }

    /// The input, once, and what the activation needs.
    pub fn keeps(&self) -> Keeps {
        Keeps { x: [true, false, false], ..self.conv.keeps() }
    }

    /// Trainable values.
    pub fn parameters(&self) -> usize {
        let g = &self.conv.geometry;
        match self.adaptation {
            Adaptation::LowRank { rank, .. } => rank * g.patch() + rank / g.groups * g.output_channels,
            Adaptation::ScaleShift => 2 * g.output_channels,
            Adaptation::Full => self.frozen.w.len() + self.frozen.bias.len(),
        }
    }

    /// Values of the weight.
    fn weight_len(&self) -> usize {
        self.conv.geometry.patch() * self.conv.geometry.output_channels
    }

    /// Writes the frozen weight.
    fn restore(&self, w: &mut [f32]) {
        match &self.file {
            Some(file) => file.pack(self.conv.geometry.patch(), self.conv.geometry.output_channels, w),
            None => w.copy_from_slice(&self.frozen.w),
        }
    }

    /// Whether the weights are packed: those that a convolution or dense layer reads.
    fn packed(&self) -> bool {
        !self.depthwise && !self.held
    }

    /// Whether gradients are summed as one dW and projected at the end of the step.
    fn projects(&self) -> bool {
        let g = &self.conv.geometry;
        match self.adaptation {
            _ if self.beside.is_some() => false,
            Adaptation::LowRank { .. } if self.held => true,
            Adaptation::LowRank { rank, .. } => {
                let narrow = 2 * (rank / g.groups) * (g.patch() + g.group_outputs());
                narrow as f32 * NARROW_COST >= (g.patch() * g.group_outputs()) as f32
            }
            _ => false,
        }
    }

    /// Values that a clip's gradients are added to.
    pub fn accumulators(&self) -> usize {
        if self.projects() { self.weight_len() } else { self.parameters() }
    }

    /// Scratch values for the forward pass.
    pub fn forward_work(&self) -> usize {
        if let Some(beside) = &self.beside {
            return beside.forward_work();
        }
        match self.adaptation {
            _ if self.depthwise => 0,
            Adaptation::LowRank { rank, .. } => self.conv.low_rank_work(rank),
            _ => self.conv.work(),
        }
    }

    /// Scratch values for the backward pass.
    pub fn vjp_work(&self) -> usize {
        if let Some(beside) = &self.beside {
            return beside.vjp_work();
        }
        match self.adaptation {
            Adaptation::LowRank { rank, .. } => {
                let gradient = self.transposed.as_ref().map_or(0, ConvTranspose::gradient_work);
                self.conv.low_rank_work(rank).max(gradient)
            }
            Adaptation::ScaleShift => self.output_len() + self.forward_work(),
            Adaptation::Full => self.conv.work(),
        }
    }

    /// Multiply-adds of a forward pass, and of what a training step adds to it (input gradient and factor gradients).
    pub fn multiply_adds(&self) -> (u64, u64) {
        let g = &self.conv.geometry;
        let forward = g.multiply_adds();
        let extra = match self.adaptation {
            Adaptation::LowRank { rank, .. } if !self.projects() => {
                2 * (rank / g.groups) as u64 * g.positions() as u64 * (g.patch() * g.groups + g.output_channels) as u64
            }
            _ => forward,
        };
        let (forward, extra) = match self.beside.as_ref().map(|b| b.multiply_adds()) {
            Some(pair) => (forward + pair, extra + pair),
            None => (forward, extra),
        };
        (forward, extra)
    }

    /// The parameters with which the layer is as the file has it, except that A is left to the caller.
    pub fn identity(&self, params: &mut [f32]) {
        match self.adaptation {
            Adaptation::LowRank { .. } => params.fill(0.0),
            Adaptation::ScaleShift => {
                let (scale, shift) = params.split_at_mut(self.conv.geometry.output_channels);
                scale.fill(1.0);
                shift.fill(0.0);
            }
            Adaptation::Full => {
                let (w, bias) = params.split_at_mut(self.frozen.w.len());
                if self.packed() {
                    unpack_groups(&self.conv.geometry, &self.frozen.w, w);
                } else {
                    w.copy_from_slice(&self.frozen.w);
                }
                w.iter_mut().for_each(|w| *w /= self.weight_scale);
                bias.copy_from_slice(&self.frozen.bias);
            }
        }
    }

    /// Room for the weights of a step.
    pub fn weights(&self) -> SiteWeights {
        let mut out = SiteWeights { weights: (*self.frozen).clone(), ..SiteWeights::default() };
        if let Some(beside) = &self.beside {
            (out.factors, out.scratch) = beside.room();
            out.pair = self.held.then(|| Beside::clone(beside));
            return out;
        }
        out.weights.w.resize(self.weight_len(), 0.0);
        if self.held {
            out.weights.wt.resize(self.weight_len(), 0.0);
        }
        let g = &self.conv.geometry;
        match self.adaptation {
            Adaptation::LowRank { rank, .. } => {
                out.factors.a_t.resize(rank * g.patch(), 0.0);
                out.factors.b.resize(rank / g.groups * g.output_channels, 0.0);
                // B, scaled, for a merge; the dW of one group, turned, for a projection.
                let projected = if self.projects() { g.patch() * g.group_outputs() } else { 0 };
                out.scratch.resize(projected.max(out.factors.b.len()), 0.0);
            }
            Adaptation::ScaleShift => out.weights.bias.resize(g.output_channels, 0.0),
            Adaptation::Full => {}
        }
        out
    }

    /// Rebuilds `out` from the parameters: merges, transposes, no allocation. `backward` false leaves out what only
    /// the backward pass reads.
    pub fn prepare(&self, params: &[f32], out: &mut SiteWeights, backward: bool) {
        if let Some(beside) = &self.beside {
            return beside.prepare(params, &mut out.factors, &mut out.scratch);
        }
        let g = &self.conv.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        match self.adaptation {
            Adaptation::LowRank { rank, scale } => {
                let (a, bt) = params.split_at(rank * patch);
                let rank = rank / g.groups;
                self.restore(&mut out.weights.w);
                let factor = scale * self.weight_scale;
                out.scratch.iter_mut().zip(bt).for_each(|(s, b)| *s = b * factor);
                for group in 0..g.groups {
                    let a = &a[group * rank * patch..][..rank * patch];
                    let b = &out.scratch[group * rank * outputs..][..rank * outputs];
                    let w = &mut out.weights.w[group * patch * outputs..][..patch * outputs];
                    if self.packed() {
                        for (columns, at) in panels(patch, outputs) {
                            let (width, b) = (columns.len(), &b[columns.start..]);
                            gemm(patch, width, rank, a, 1, patch, b, outputs, &mut w[at..], width);
                        }
                    } else {
                        gemm(patch, outputs, rank, a, 1, patch, b, outputs, w, outputs);
                    }
                    if backward {
                        let bt = &bt[group * rank * outputs..][..rank * outputs];
                        transpose(a, rank, patch, &mut out.factors.a_t[group * rank * patch..]);
                        transpose(bt, rank, outputs, &mut out.factors.b[group * rank * outputs..]);
                    }
                }
            }
            Adaptation::ScaleShift => {
                let (scale, shift) = params.split_at(g.output_channels);
                if self.depthwise {
                    for (row, frozen) in
                        out.weights.w.chunks_exact_mut(scale.len()).zip(self.frozen.w.chunks_exact(scale.len()))
                    {
                        row.iter_mut().zip(frozen).zip(scale).for_each(|((w, f), s)| *w = f * s);
                    }
                } else {
                    for (group, scale) in scale.chunks_exact(outputs).enumerate() {
                        for (columns, at) in panels(patch, outputs) {
                            let place = group * patch * outputs + at..;
                            let rows = out.weights.w[place.clone()].chunks_exact_mut(columns.len());
                            let frozen = self.frozen.w[place].chunks_exact(columns.len());
                            for (row, frozen) in rows.zip(frozen).take(patch) {
                                let scale = &scale[columns.clone()];
                                row.iter_mut().zip(frozen).zip(scale).for_each(|((w, f), s)| *w = f * s);
                            }
                        }
                    }
                }
                for (c, bias) in out.weights.bias.iter_mut().enumerate() {
                    *bias = self.frozen.bias.get(c).copied().unwrap_or(0.0) * scale[c] + shift[c];
                }
            }
            Adaptation::Full => {
                let (w, bias) = params.split_at(self.frozen.w.len());
                if self.packed() {
                    pack_groups(g, w, &mut out.weights.w);
                } else {
                    out.weights.w.copy_from_slice(w);
                }
                out.weights.w.iter_mut().for_each(|w| *w *= self.weight_scale);
                out.weights.bias.copy_from_slice(bias);
            }
        }
        if self.packed() {
            out.weights.derive(&self.conv, backward || self.transposed.is_some());
        } else if backward && self.held {
            transpose(&out.weights.w, patch, outputs, &mut out.weights.wt);
        }
    }

    /// See [`crate::ops::Operator::row_window`].
    pub fn row_window(&self, rows: usize) -> Option<RowWindow> {
        let own = self.beside.is_none() && self.transposed.is_none() && !self.held;
        own.then(|| self.conv.row_window(rows)).flatten()
    }

    /// The layer for rows `range` of the output, with the same [`SiteWeights`]; see [`crate::ops::Operator::part`].
    pub fn part(&self, rows: usize, range: Range<usize>) -> Option<Self> {
        self.row_window(rows)?;
        let (conv, plain) = (self.conv.part(rows, range.clone())?, self.plain.part(rows, range)?);
        Some(Self { conv, plain, ..self.clone() })
    }

    /// y = layer(x) with the prepared weights.
    pub fn forward(&self, site: &SiteWeights, x: &[f32], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        if let Some(beside) = &self.beside {
            beside.forward(&site.factors, &site.scratch, x, y, work);
            self.conv.activation.apply(y);
            if !saved.is_empty() {
                self.conv.activation.save_mask(y, saved);
            }
            return;
        }
        if let Some(layer) = &self.transposed {
            layer.forward(&site.weights, x, y, work);
        } else if self.depthwise {
            crate::ops::depthwise::forward(&self.conv, &site.weights, x, y, saved);
        } else {
            self.conv.forward(&site.weights, x, y, saved, work);
        }
    }

    /// Adds to the accumulators and to `dx`, which is written where this is its `first` term.
    pub fn vjp(
        &self,
        site: &SiteWeights,
        x: &[f32],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: Option<&mut [f32]>,
        first: bool,
        accumulators: &mut [f32],
        work: &mut [f32],
    ) {
        let g = &self.conv.geometry;
        self.conv.activation_gradient(y, saved, dy);
        if let Some(beside) = &self.beside {
            if let Some(dx) = dx {
                beside.input_gradient(&site.factors, &site.scratch, dy, dx, first, work);
            }
            return beside.factor_gradients(&site.factors, x, dy, accumulators, work);
        }
        if let Some(dx) = dx {
            if let Some(layer) = &self.transposed {
                if first {
                    dx.fill(0.0);
                }
                layer.input_gradient(&site.weights, dy, dx, work);
            } else if self.depthwise {
                depthwise::input_gradient(g, dy, &site.weights.w, dx, first);
            } else {
                self.conv.input_gradient(&site.weights, dy, dx, work, first);
            }
        }
        // A transposed convolution is the way back of its mirror: what comes in there is dy here.
        let (from, to): (&[f32], &[f32]) = if self.transposed.is_some() { (dy, x) } else { (x, dy) };
        match self.adaptation {
            Adaptation::LowRank { .. } if self.projects() => self.conv.weight_gradient(from, to, accumulators, work),
            Adaptation::LowRank { rank, scale } => {
                let (da, dbt) = accumulators.split_at_mut(rank * g.patch());
                let factor = scale * self.weight_scale;
                self.conv.low_rank_gradient(&site.factors, rank, factor, from, to, da, dbt, work);
            }
            Adaptation::ScaleShift => {
                let (z, work) = work.split_at_mut(self.output_len());
                if self.depthwise {
                    depthwise::forward(g, x, &self.frozen.w, &self.frozen.bias, None, z);
                } else {
                    self.plain.forward(&self.frozen, x, z, &mut [], work);
                }
                let (dscale, dshift) = accumulators.split_at_mut(g.output_channels);
                for (dz, z) in dy.chunks_exact(g.output_channels).zip(z.chunks_exact(g.output_channels)) {
                    for (c, (d, z)) in dz.iter().zip(z).enumerate() {
                        dscale[c] += d * z;
                        dshift[c] += d;
                    }
                }
            }
            Adaptation::Full => {
                let (dw, dbias) = accumulators.split_at_mut(self.frozen.w.len());
                self.conv.weight_gradient(x, dy, dw, work);
                if !dbias.is_empty() {
                    self.conv.bias_gradient(dy, dbias);
                }
            }
        }
    }

    /// Adds the gradients of the parameters from the accumulators of a step.
    pub fn finish(&self, params: &[f32], site: &mut SiteWeights, accumulators: &[f32], gradient: &mut [f32]) {
        let g = &self.conv.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        match self.adaptation {
            Adaptation::LowRank { rank, scale } if self.projects() => {
                let (a, bt) = params.split_at(rank * patch);
                let (da, dbt) = gradient.split_at_mut(rank * patch);
                let (rank, factor) = (rank / g.groups, scale * self.weight_scale);
                let dwt = &mut site.scratch[..patch * outputs];
                for group in 0..g.groups {
                    let dw = &accumulators[group * patch * outputs..][..patch * outputs];
                    let a = &a[group * rank * patch..][..rank * patch];
                    let bt = &bt[group * rank * outputs..][..rank * outputs];
                    transpose(dw, patch, outputs, dwt);
                    dwt.iter_mut().for_each(|d| *d *= factor);
                    let da = &mut da[group * rank * patch..][..rank * patch];
                    gemm(rank, patch, outputs, bt, outputs, 1, dwt, patch, da, patch);
                    dwt.iter_mut().zip(dw).for_each(|(t, d)| *t = d * factor);
                    let dbt = &mut dbt[group * rank * outputs..][..rank * outputs];
                    gemm(rank, outputs, patch, a, patch, 1, dwt, outputs, dbt, outputs);
                }
            }
            Adaptation::Full => {
                let (w, bias) = accumulators.split_at(self.frozen.w.len());
                let (dw, dbias) = gradient.split_at_mut(self.frozen.w.len());
                dw.iter_mut().zip(w).for_each(|(g, a)| *g += a * self.weight_scale);
                dbias.iter_mut().zip(bias).for_each(|(g, a)| *g += a);
            }
            _ => gradient.iter_mut().zip(accumulators).for_each(|(g, a)| *g += a),
        }
    }
}
