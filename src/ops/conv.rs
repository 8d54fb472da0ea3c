//! Convolution and dense layers: `y = act(W * x + b)`.
//!
//! ```text
//! y[p, o]  = act(b[o] + Σ_k w[k, o] · patch(x, p)[k])                          forward
//! dx       = patches-transposed of  dz[p, o] · w[k, o]                          input gradient, dz = dy · act'
//! dw[k, o] = Σ_p patch(x, p)[k] · dz[p, o]                                      weight gradient
//! W' = W + s·B·A:   da = s·(dz·B)ᵀ·patch(x),   db = s·dzᵀ·(patch(x)·Aᵀ)           LoRA gradients
//! ```
//!
//! Source: ONNX Conv, Gemm, MatMul; LoRA: Hu et al. 2021 (arXiv 2106.09685), eq. 3. A dense layer is a convolution
//! with a 1 x 1 kernel over a plane of `rows x 1`.
//!
//! | | shape |
//! |---|---|
//! | x | `[height, width, input_channels]` |
//! | y, dy | `[out_height, out_width, output_channels]` |
//! | w | `[groups][patch, group_outputs]`, patch = `[kernel_h, kernel_w, group_inputs]`; each group packed |
//! | wt | `[groups][group_outputs, patch]`; where the input gradient is a convolution, `[kernel_h, kernel_w, outputs, inputs]`, taps reversed; packed |
//! | a | `[rank, patch]`, rows of group g from `g * rank / groups` |
//! | bt | `[groups][rank / groups, group_outputs]` |
//!
//! A frozen layer saves nothing but the mask of a fused activation.
//!
//! With three taps and stride 1 along an axis, forward and input gradient may run by [`Winograd`], with transformed weights in the
//! place of `w` and `wt`. The other gradients take the taps one by one.

use std::ops::Range;
use std::sync::Arc;

use super::conv_geometry::ConvGeometry;
use super::rows::{self, Part, RowWindow};
use super::unary::Activation;
use super::{Keeps, MAX_INPUTS, Operator};
use crate::kernels::gemm::{
    Matrix, Start, Walk, gemm, gemm_from, gemm_packed, gemm_walk, pack, panels, transpose_packed,
};
use crate::kernels::winograd::{Pair, Winograd};

/// Output positions whose patches are in memory at a time: 128 rows of a patch of some hundred values stay in L2.
pub(super) const POSITIONS: usize = 128;

/// A row of taps with at least this many values is read where it stands; for shorter ones patches are written out.
const ROW: usize = 3;

/// Weights of a convolution as the kernels read them: packed ([`pack`]), but for the layers that read rows (depthwise,
/// recurrent, embeddings).
#[derive(Clone, Debug, Default)]
pub struct ConvWeights {
    /// `[groups][patch, group_outputs]`; empty in a frozen layer that reads `u`.
    pub w: Vec<f32>,
    /// `[groups][group_outputs, patch]`; empty where no input gradient is wanted, or `ut` is read.
    pub wt: Vec<f32>,
    /// `[output_channels]`, or empty.
    pub bias: Vec<f32>,
    /// `[4][patch / 3, outputs]` as [`Winograd::weights`] leaves it, where the layer is [`Conv::tiled`]; else empty.
    pub u: Vec<f32>,
    /// `[4][patch / 3, inputs]` as [`Winograd::mirror_weights`] leaves it, for the input gradient; else empty.
    pub ut: Vec<f32>,
}

impl ConvWeights {
    /// Packs `rows [groups][patch, group_outputs]`.
    pub fn new(g: &ConvGeometry, rows: &[f32], bias: Vec<f32>) -> Self {
        let mut w = vec![0.0; rows.len()];
        pack_groups(g, rows, &mut w);
        Self { w, bias, ..Self::default() }
    }

    /// Fills from `w` what `conv` reads beside it: for the forward pass, and with `backward` for the input gradient. Room is made
    /// the first time.
    pub fn derive(&mut self, conv: &Conv, backward: bool) {
        if let Some(layer) = conv.tiles(&conv.geometry) {
            self.u.resize(layer.weights_len(), 0.0);
            layer.weights(&self.w, &mut self.u);
            if backward && conv.tiles_back() {
                self.ut.resize(layer.weights_len(), 0.0);
                return layer.mirror_weights(&self.u, &mut self.ut);
            }
        }
        if backward {
            self.transpose(&conv.geometry);
        }
    }

    /// Fills the packed `wt` from the packed `w`.
    pub fn transpose(&mut self, g: &ConvGeometry) {
        let (patch, outputs) = (g.patch(), g.group_outputs());
        self.wt.resize(self.w.len(), 0.0);
        // As a convolution, the way back has its taps in reverse; as a product it takes them as one.
        let taps = if mirror(g).is_some() { g.kernel[0] * g.kernel[1] } else { 1 };
        let inputs = patch / taps.max(1);
        for (w, wt) in groups(g, &self.w).zip(self.wt.chunks_exact_mut((patch * outputs).max(1))) {
            transpose_packed(taps, inputs, outputs, w, wt);
        }
    }
}

/// The matrices of each group.
fn groups<'a>(g: &ConvGeometry, w: &'a [f32]) -> std::slice::ChunksExact<'a, f32> {
    w.chunks_exact((g.patch() * g.group_outputs()).max(1))
}

/// Packs the matrix of each group.
pub(crate) fn pack_groups(g: &ConvGeometry, rows: &[f32], packed: &mut [f32]) {
    let len = (g.patch() * g.group_outputs()).max(1);
    for (rows, packed) in groups(g, rows).zip(packed.chunks_exact_mut(len)) {
        pack(g.patch(), g.group_outputs(), rows, packed);
    }
}

/// Undoes [`pack_groups`].
pub(crate) fn unpack_groups(g: &ConvGeometry, packed: &[f32], rows: &mut [f32]) {
    let (patch, outputs) = (g.patch(), g.group_outputs());
    for (packed, rows) in groups(g, packed).zip(rows.chunks_exact_mut((patch * outputs).max(1))) {
        for (columns, at) in panels(patch, outputs) {
            for (row, from) in packed[at..at + patch * columns.len()].chunks_exact(columns.len()).enumerate() {
                rows[row * outputs + columns.start..][..columns.len()].copy_from_slice(from);
            }
        }
    }
}

/// The convolution by which the input gradient runs, where it can: with a kernel of more than one tap, stride 1.
pub(super) fn mirror(g: &ConvGeometry) -> Option<ConvGeometry> {
    (!g.is_pointwise() && g.kernel != [1, 1]).then(|| g.mirrored()).flatten().filter(in_place)
}

/// Whether patches are read from the padded plane where they stand.
fn in_place(g: &ConvGeometry) -> bool {
    !g.is_pointwise() && g.taps_stand_together() && g.kernel[1] * g.input_channels >= ROW
}

/// Writes the transpose of `x [rows, columns]` to `y [columns, rows]`.
pub(crate) fn transpose(x: &[f32], rows: usize, columns: usize, y: &mut [f32]) {
    for (i, row) in x.chunks_exact(columns.max(1)).take(rows).enumerate() {
        for (j, value) in row.iter().enumerate() {
            y[j * rows + i] = *value;
        }
    }
}

/// The weight of a dense or pointwise layer as the file has it.
#[derive(Clone, Debug)]
pub struct FileMatrix {
    /// Shared with the graph.
    pub values: Arc<[f32]>,
    /// `[outputs, inputs]`; else `[inputs, outputs]`.
    pub outputs_first: bool,
}

impl FileMatrix {
    /// Writes it packed.
    pub fn pack(&self, inputs: usize, outputs: usize, packed: &mut [f32]) {
        if !self.outputs_first {
            return pack(inputs, outputs, &self.values, packed);
        }
        for (columns, at) in panels(inputs, outputs) {
            let width = columns.len();
            let rows = self.values[columns.start * inputs..].chunks_exact(inputs.max(1));
            for (i, row) in rows.take(width).enumerate() {
                packed[at + i..].iter_mut().step_by(width).zip(row).for_each(|(p, w)| *p = *w);
            }
        }
    }
}

/// LoRA factors as the gradient kernels read them.
#[derive(Clone, Debug, Default)]
pub struct Factors {
    /// Aᵀ: `[groups][patch, rank / groups]`.
    pub a_t: Vec<f32>,
    /// B: `[groups][group_outputs, rank / groups]`.
    pub b: Vec<f32>,
    /// Aᵀ as [`Winograd::weights`] leaves it, for [`Conv::forward_beside`] of a [`Conv::tiled`] layer; else empty.
    pub u: Vec<f32>,
}

/// A convolution without its weights.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Sizes.
    pub geometry: ConvGeometry,
    /// Fused activation.
    pub activation: Activation,
    /// Whether the plan keeps the output anyway, so that the mask of the activation is read from it.
    pub output_kept: bool,
    /// The axis along which [`Winograd`] takes two outputs at a time, if it does.
    pub tiled: Option<usize>,
}

impl Conv {
    /// The layer with its products one by one.
    pub fn new(geometry: ConvGeometry, activation: Activation) -> Self {
        Self { geometry, activation, output_kept: false, tiled: None }
    }

    /// `g`, this layer or its mirror, along the axis that is tiled.
    fn tiles<'a>(&self, g: &'a ConvGeometry) -> Option<Winograd<'a>> {
        Winograd::along(g, self.tiled?)
    }

    /// Whether the input gradient takes two at a time too.
    fn tiles_back(&self) -> bool {
        mirror(&self.geometry).is_some_and(|g| self.tiles(&g).is_some())
    }

    /// What the gradient of the activation needs.
    pub fn keeps(&self) -> Keeps {
        let masked = !matches!(self.activation, Activation::None);
        Keeps {
            x: [false; MAX_INPUTS],
            y: masked && self.output_kept,
            saved: if masked && !self.output_kept { self.activation.mask_len(self.geometry.output_len()) } else { 0 },
        }
    }

    /// See [`Operator::row_window`]; none where a value depends on its place along the rows.
    pub fn row_window(&self, rows: usize) -> Option<RowWindow> {
        let tiled = self.tiled == Some(rows::axis_of_rows(&self.geometry));
        (!tiled).then(|| rows::conv_window(&self.geometry, rows)).flatten()
    }

    /// The layer for rows `range` of the output, see [`rows::conv_part`].
    pub fn part(&self, rows: usize, range: Range<usize>) -> Option<Self> {
        let geometry = rows::conv_part(&self.geometry, rows, range)?;
        Some(Self { geometry, ..self.clone() })
    }

    /// Output positions at a time; whole rows where patches are read in place.
    pub(super) fn chunk(&self) -> usize {
        let g = &self.geometry;
        if in_place(g) { chunk_rows(g) * g.output[1] } else { POSITIONS.min(g.positions()) }
    }

    /// Scratch values for [`Conv::forward`] and [`Conv::input_gradient`].
    pub fn work(&self) -> usize {
        let g = &self.geometry;
        if g.is_pointwise() {
            return 0;
        }
        let patches = if in_place(g) { window_len(g) } else { self.chunk() * g.patch() };
        let back = match mirror(g) {
            Some(mirror) => window_len(&mirror),
            None => POSITIONS.min(g.positions()) * g.patch(),
        };
        let tiled = |g: &ConvGeometry| self.tiles(g).map_or(0, |layer| layer.work_len());
        let tiled = tiled(g).max(mirror(g).as_ref().map_or(0, tiled));
        patches.max(back).max(tiled)
    }

    /// Scratch values for [`Conv::low_rank_gradient`] with `rank`.
    pub fn low_rank_work(&self, rank: usize) -> usize {
        let rank = rank / self.geometry.groups;
        self.work() + 2 * self.chunk() * rank + self.turned_len(rank)
    }

    /// Values of a factor gradient that is summed as `[patch, rank]` first: where fewer values of a patch stand side by side than
    /// there are ranks, and than a vector of eight has lanes.
    fn turned_len(&self, rank: usize) -> usize {
        let g = &self.geometry;
        let together = g.kernel[1] * g.input_channels;
        if in_place(g) && together < rank.min(8) { g.patch() * rank } else { 0 }
    }

    /// y = act(bias + W * x).
    pub fn forward(&self, weights: &ConvWeights, x: &[f32], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        let g = &self.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let clamp = self.activation.bounds();
        let start = |group: usize| match weights.bias.get(group * outputs..(group + 1) * outputs) {
            Some(bias) => Start::Bias(bias),
            None => Start::Zero,
        };
        if let Some(layer) = self.tiles(g).filter(|_| !weights.u.is_empty()) {
            layer.convolve(start(0), x, &weights.u, y, clamp, work);
        } else if in_place(g) {
            convolve(g, start(0), x, &weights.w, y, clamp, work);
        } else {
            let step = if g.is_pointwise() { g.positions() } else { self.chunk() };
            for (group, w) in groups(g, &weights.w).enumerate() {
                for range in chunks(g.positions(), step) {
                    let y = &mut y[range.start * g.output_channels + group * outputs..];
                    let rows = range.len();
                    let patches = self.patches(x, group, range, work);
                    gemm_packed(start(group), rows, outputs, patch, patches, w, y, g.output_channels, clamp);
                }
            }
        }
        if !saved.is_empty() {
            self.activation.save_mask(y, saved);
        }
    }

    /// y += (patch(x)·Aᵀ)·Bᵀ for an adapter that is not merged; `bt` carries the scale, `a_t` is as in [`Factors`]. Comes
    /// between [`Conv::forward`] without an activation and the activation.
    pub fn low_rank_forward(&self, a_t: &[f32], bt: &[f32], rank: usize, x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let g = &self.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let rank = rank / g.groups;
        let (h, work) = work.split_at_mut(self.chunk() * rank);
        for group in 0..g.groups {
            let a_t = &a_t[group * patch * rank..][..patch * rank];
            let bt = &bt[group * rank * outputs..][..rank * outputs];
            for range in chunks(g.positions(), self.chunk()) {
                let rows = range.len();
                let patches = self.patches(x, group, range.clone(), work);
                gemm_walk(Start::Zero, rows, rank, patch, patches, a_t, Walk::even(rank), h, rank, None);
                let y = &mut y[range.start * g.output_channels + group * outputs..];
                gemm(rows, outputs, rank, h, rank, 1, bt, outputs, y, g.output_channels);
            }
        }
    }

    /// Scratch values for [`Conv::forward_beside`] with ranks up to `rank`.
    pub fn beside_work(&self, rank: usize) -> usize {
        match self.tiles(&self.geometry) {
            Some(layer) => self.work().max(layer.beside_work_len(rank)),
            None => self.work() + self.chunk() * rank / self.geometry.groups,
        }
    }

    /// Fills what [`Conv::forward_beside`] reads of the packed `a_t` of a tiled layer.
    pub(crate) fn derive_factors(&self, factors: &mut Factors, rank: usize) {
        let g = ConvGeometry { output_channels: rank, ..self.geometry.clone() };
        if let Some(layer) = self.tiles(&g) {
            factors.u.resize(layer.weights_len(), 0.0);
            layer.weights(&factors.a_t, &mut factors.u);
        }
    }

    /// y = act(bias + W * x + (patch(x)·Aᵀ)·Bᵀ), `factors` packed: Aᵀ `[groups][patch, rank / groups]` and Bᵀ
    /// `[groups][rank / groups, group_outputs]`. Without `weights`, y holds the first two terms.
    pub fn forward_beside(
        &self,
        weights: Option<&ConvWeights>,
        factors: &Factors,
        rank: usize,
        x: &[f32],
        y: &mut [f32],
        work: &mut [f32],
    ) {
        let g = &self.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let rank = rank / g.groups;
        let clamp = self.activation.bounds();
        if let (Some(weights), Some(layer)) = (weights, self.tiles(g)) {
            let start = if weights.bias.is_empty() { Start::Zero } else { Start::Bias(&weights.bias) };
            let pair = Pair { rank, u: &factors.u, b: &factors.b };
            return layer.convolve_beside(start, x, &weights.u, pair, y, clamp, work);
        }
        let (h, work) = work.split_at_mut(self.chunk() * rank);
        for group in 0..g.groups {
            let a_t = &factors.a_t[group * patch * rank..][..patch * rank];
            let bt = &factors.b[group * rank * outputs..][..rank * outputs];
            for range in chunks(g.positions(), self.chunk()) {
                let rows = range.len();
                let y = &mut y[range.start * g.output_channels + group * outputs..];
                let patches = self.patches(x, group, range, work);
                if let Some(weights) = weights {
                    let w = &weights.w[group * patch * outputs..][..patch * outputs];
                    let start = match weights.bias.get(group * outputs..(group + 1) * outputs) {
                        Some(bias) => Start::Bias(bias),
                        None => Start::Zero,
                    };
                    gemm_packed(start, rows, outputs, patch, patches, w, y, g.output_channels, None);
                }
                gemm_packed(Start::Zero, rows, rank, patch, patches, a_t, h, rank, None);
                let h = Matrix { values: h, rows: Walk::even(rank), columns: Walk::even(1) };
                gemm_packed(Start::Add, rows, outputs, rank, h, bt, y, g.output_channels, clamp);
            }
        }
    }

    /// dy becomes dz: zero where the activation is flat.
    pub fn activation_gradient(&self, y: &[f32], saved: &[f32], dy: &mut [f32]) {
        if !matches!(self.activation, Activation::None) {
            self.activation.mask_gradient(y, saved, dy);
        }
    }

    /// dx += transposed convolution of dz; `first`: dx is written, not added to.
    pub fn input_gradient(&self, weights: &ConvWeights, dz: &[f32], dx: &mut [f32], work: &mut [f32], first: bool) {
        let g = &self.geometry;
        let (patch, inputs, outputs) = (g.patch(), g.group_inputs(), g.group_outputs());
        if let Some(mirror) = mirror(g) {
            let start = if first { Start::Zero } else { Start::Add };
            if let Some(layer) = self.tiles(&mirror).filter(|_| !weights.ut.is_empty()) {
                return layer.convolve(start, dz, &weights.ut, dx, None, work);
            }
            return convolve(&mirror, start, dz, &weights.wt, dx, None, work);
        }
        if first && !g.is_pointwise() {
            dx.fill(0.0);
        }
        for group in 0..g.groups {
            let wt = &weights.wt[group * patch * outputs..][..patch * outputs];
            if g.is_pointwise() {
                let dz = &dz[group * outputs..];
                let dx = &mut dx[group * inputs..];
                let start = if first { Start::Zero } else { Start::Add };
                let dz = Matrix { values: dz, rows: Walk::even(g.output_channels), columns: Walk::even(1) };
                gemm_packed(start, g.positions(), patch, outputs, dz, wt, dx, g.input_channels, None);
                continue;
            }
            for range in chunks(g.positions(), POSITIONS) {
                let col = &mut work[..range.len() * patch];
                let dz = &dz[range.start * g.output_channels + group * outputs..];
                let dz = Matrix { values: dz, rows: Walk::even(g.output_channels), columns: Walk::even(1) };
                gemm_packed(Start::Zero, range.len(), patch, outputs, dz, wt, col, patch, None);
                g.add_patches(col, group, range, dx);
            }
        }
    }

    /// dw += Σ patch(x)ᵀ·dz, `dw [groups][patch, group_outputs]`.
    pub fn weight_gradient(&self, x: &[f32], dz: &[f32], dw: &mut [f32], work: &mut [f32]) {
        let g = &self.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        for group in 0..g.groups {
            let dw = &mut dw[group * patch * outputs..][..patch * outputs];
            for range in chunks(g.positions(), self.chunk()) {
                let patches = self.patches(x, group, range.clone(), work);
                let dz = &dz[range.start * g.output_channels + group * outputs..];
                // The taps of one row of the kernel at a time: they stand side by side.
                for (taps, offset) in tap_rows(patches.columns, patch) {
                    let columns =
                        Matrix { values: &patches.values[offset..], rows: Walk::even(1), columns: patches.rows };
                    let dw = &mut dw[taps.start * outputs..];
                    let dz_rows = Walk::even(g.output_channels);
                    gemm_walk(Start::Add, taps.len(), outputs, range.len(), columns, dz, dz_rows, dw, outputs, None);
                }
            }
        }
    }

    /// da += s·(dz·B)ᵀ·patch(x) and dbt += s·(patch(x)·Aᵀ)ᵀ·dz, shapes as `a` and `bt` in the head of this file.
    pub fn low_rank_gradient(
        &self,
        factors: &Factors,
        rank: usize,
        scale: f32,
        x: &[f32],
        dz: &[f32],
        da: &mut [f32],
        dbt: &mut [f32],
        work: &mut [f32],
    ) {
        let g = &self.geometry;
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let rank = rank / g.groups;
        let (narrow, work) = work.split_at_mut(2 * self.chunk() * rank);
        let (h, e) = narrow.split_at_mut(self.chunk() * rank);
        let (turned, work) = work.split_at_mut(self.turned_len(rank));
        for group in 0..g.groups {
            let a_t = &factors.a_t[group * patch * rank..][..patch * rank];
            let b = &factors.b[group * outputs * rank..][..outputs * rank];
            let da = &mut da[group * rank * patch..][..rank * patch];
            let dbt = &mut dbt[group * rank * outputs..][..rank * outputs];
            for range in chunks(g.positions(), self.chunk()) {
                let rows = range.len();
                let patches = self.patches(x, group, range.clone(), work);
                let dz = &dz[range.start * g.output_channels + group * outputs..];
                let (h, e) = (&mut h[..rows * rank], &mut e[..rows * rank]);
                gemm_walk(Start::Zero, rows, rank, patch, patches, a_t, Walk::even(rank), h, rank, None);
                gemm_from(Start::Zero, rows, rank, outputs, dz, g.output_channels, 1, b, rank, e, rank);
                h.iter_mut().chain(e.iter_mut()).for_each(|v| *v *= scale);
                for (k, turned) in turned.chunks_exact_mut(rank.max(1)).enumerate() {
                    turned.iter_mut().zip(da[k..].iter().step_by(patch)).for_each(|(t, da)| *t = *da);
                }
                for (taps, offset) in tap_rows(patches.columns, patch) {
                    let col = &patches.values[offset..];
                    if turned.is_empty() {
                        let e = Matrix { values: e, rows: Walk::even(1), columns: Walk::even(rank) };
                        let da = &mut da[taps.start..];
                        gemm_walk(Start::Add, rank, taps.len(), rows, e, col, patches.rows, da, patch, None);
                    } else {
                        // The other way round, where vectors along the taps would not be full.
                        let col = Matrix { values: col, rows: Walk::even(1), columns: patches.rows };
                        let da = &mut turned[taps.start * rank..];
                        gemm_walk(Start::Add, taps.len(), rank, rows, col, e, Walk::even(rank), da, rank, None);
                    }
                }
                for (k, turned) in turned.chunks_exact(rank.max(1)).enumerate() {
                    da[k..].iter_mut().step_by(patch).zip(turned).for_each(|(da, t)| *da = *t);
                }
                gemm(rank, outputs, rows, h, 1, rank, dz, g.output_channels, dbt, outputs);
            }
        }
    }

    /// db += Σ_p dz[p, :].
    pub fn bias_gradient(&self, dz: &[f32], db: &mut [f32]) {
        for row in dz.chunks_exact(self.geometry.output_channels) {
            for (db, d) in db.iter_mut().zip(row) {
                *db += d;
            }
        }
    }

    /// Patches of `range` as rows: where they stand if the layer is pointwise or [`in_place`], else written out.
    pub(super) fn patches<'a>(
        &self,
        x: &'a [f32],
        group: usize,
        range: std::ops::Range<usize>,
        work: &'a mut [f32],
    ) -> Matrix<'a> {
        let g = &self.geometry;
        if g.is_pointwise() {
            let values = &x[range.start * g.input_channels + group * g.group_inputs()..];
            return Matrix { values, rows: Walk::even(g.input_channels), columns: Walk::even(1) };
        }
        if in_place(g) {
            return plane(g, x, range, work);
        }
        let patch = g.patch();
        let col = &mut work[..range.len() * patch];
        g.patches(x, group, range, col);
        Matrix { values: col, rows: Walk::even(patch), columns: Walk::even(1) }
    }
}

/// y = start + w * x for a layer whose patches are read [`in_place`].
fn convolve(
    g: &ConvGeometry,
    start: Start,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    clamp: Option<[f32; 2]>,
    work: &mut [f32],
) {
    let outputs = g.output_channels;
    for range in chunks(g.positions(), chunk_rows(g) * g.output[1]) {
        let rows = range.len();
        let y = &mut y[range.start * outputs..];
        let patches = plane(g, x, range, work);
        gemm_packed(start, rows, outputs, g.patch(), patches, w, y, outputs, clamp);
    }
}

/// The patches of whole rows of output positions in the padded plane that they read: x itself where it needs no padding.
pub(super) fn plane<'a>(
    g: &ConvGeometry,
    x: &'a [f32],
    range: std::ops::Range<usize>,
    work: &'a mut [f32],
) -> Matrix<'a> {
    let row = range.start / g.output[1];
    let window = g.window(range.len() / g.output[1]);
    let (values, width) = match g.inside(row, window) {
        Some(first) => (&x[first * g.input[1] * g.input_channels..], g.input[1]),
        None => {
            let values = &mut work[..window[0] * window[1] * g.input_channels];
            g.pad_window(x, row, window, values);
            (&*values, window[1])
        }
    };
    let line = width * g.input_channels;
    let rows = Walk { inner: g.output[1], step: g.stride[1] * g.input_channels, jump: g.stride[0] * line };
    let columns = Walk { inner: g.kernel[1] * g.input_channels, step: 1, jump: g.dilation[0] * line };
    Matrix { values, rows, columns }
}

/// Rows of output at a time.
pub(super) fn chunk_rows(g: &ConvGeometry) -> usize {
    POSITIONS.div_ceil(g.output[1].max(1)).min(g.output[0])
}

fn window_len(g: &ConvGeometry) -> usize {
    let window = g.window(chunk_rows(g));
    window[0] * window[1] * g.input_channels
}

/// The values of a patch in pieces that stand side by side, and where each begins.
fn tap_rows(columns: Walk, patch: usize) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
    let inner = columns.inner.min(patch).max(1);
    chunks(patch, inner).map(move |taps| {
        let offset = taps.start / inner * columns.jump;
        (taps, offset)
    })
}

pub(super) fn chunks(total: usize, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..total).step_by(size.max(1)).map(move |start| start..(start + size).min(total))
}

/// A convolution whose weights never change.
#[derive(Clone, Debug)]
pub struct FrozenConv {
    /// Sizes and activation.
    pub conv: Conv,
    /// Weights.
    pub weights: Arc<ConvWeights>,
}

impl Operator for FrozenConv {
    fn output_len(&self) -> usize {
        self.conv.geometry.output_len()
    }

    fn keeps(&self) -> Keeps {
        self.conv.keeps()
    }

    fn forward_work(&self) -> usize {
        self.conv.work()
    }

    fn vjp_work(&self) -> usize {
        self.conv.work()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        self.conv.forward(&self.weights, x[0], y, saved, work);
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
        self.conv.activation_gradient(y, saved, dy);
        if let Some(dx) = &mut dx[0] {
            self.conv.input_gradient(&self.weights, dy, dx, work, false);
        }
    }

    fn vjp_first(&self, _x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], work: &mut [f32]) {
        self.conv.activation_gradient(y, saved, dy);
        self.conv.input_gradient(&self.weights, dy, dx, work, true);
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        self.conv.row_window(rows)
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        let conv = self.conv.part(rows, range)?;
        Some(Arc::new(Self { conv, weights: self.weights.clone() }))
    }
}

#[cfg(test)]
mod tests;
