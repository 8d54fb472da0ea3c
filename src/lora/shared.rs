//! A frozen layer that many adapters share: every call brings the adapter that it runs with, or none.
//!
//! ```text
//! y = act(b + x·W + (x·Aᵀ)·(s·Bᵀ))
//! ```
//!
//! W is there once, packed and with a BatchNorm behind it folded in; an adapter is its two factors (Hu et al. 2021, arXiv 2106.09685), `s` with the scale of that
//! BatchNorm. They cost `r·(patch + out)` multiply-adds a position; a site that an adapter lacks costs nothing. Where there is no pair (scale and shift, a
//! whole head) or it is no cheaper than the layer (rank over [`MAX_RANK`]; transposed convolutions, recurrent layers, embeddings), the adapter has a
//! weight of its own, merged.

use std::ops::Range;
use std::sync::Arc;

use super::{Adaptation, Delta, SiteStep, SiteWeights};
use crate::graph::Site;
use crate::ops::conv::{Conv, ConvWeights, Factors, pack_groups, transpose};
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::integer_dense::IntegerWeights;
use crate::ops::rows::RowWindow;

/// Ranks a group up to here run beside the frozen weight: 128 positions of them stay in L1.
const MAX_RANK: usize = 64;

/// Scale and shift of a BatchNorm that is folded into the layer before it.
#[derive(Clone, Debug)]
pub struct Folded {
    /// `[channels]`
    pub scale: Vec<f32>,
    /// `[channels]`
    pub shift: Vec<f32>,
}

/// The frozen weights of a layer.
#[derive(Clone, Debug)]
pub enum SharedWeights {
    /// Packed.
    Floats(Arc<ConvWeights>),
    /// `[taps, channels]`
    Depthwise(Arc<ConvWeights>),
    /// Of a dense layer.
    Integers(Arc<IntegerWeights>),
    /// Of the mirror of a transposed convolution.
    Transposed(ConvTranspose, Arc<ConvWeights>),
    /// One of several of a step that runs itself.
    Held(Arc<ConvWeights>),
}

/// A frozen layer whose adapter comes with the call.
#[derive(Clone, Debug)]
pub struct SharedLayer {
    conv: Conv,
    weights: SharedWeights,
    /// Alpha of a Gemm; the weights carry it already.
    weight_scale: f32,
    folded: Option<Arc<Folded>>,
}

impl SharedLayer {
    /// `weights` carry `weight_scale` and what is `folded`.
    pub fn new(conv: Conv, weights: SharedWeights, weight_scale: f32, folded: Option<Arc<Folded>>) -> Self {
        Self { conv, weights, weight_scale, folded }
    }

    /// Values in the output.
    pub fn output_len(&self) -> usize {
        match &self.weights {
            SharedWeights::Transposed(layer, _) => layer.output_len(),
            _ => self.conv.geometry.output_len(),
        }
    }

    /// The rank over all groups up to which a pair runs beside the frozen weight; 0 where none does.
    fn max_rank(&self) -> usize {
        let g = &self.conv.geometry;
        match &self.weights {
            SharedWeights::Floats(_) | SharedWeights::Integers(_) => {
                g.patch().min(g.group_outputs()).min(MAX_RANK) * g.groups
            }
            _ => 0,
        }
    }

    /// Scratch values for [`SharedLayer::forward`], whatever the adapter.
    pub fn forward_work(&self) -> usize {
        match &self.weights {
            SharedWeights::Depthwise(_) | SharedWeights::Held(_) => 0,
            SharedWeights::Floats(_) | SharedWeights::Transposed(..) => self.conv.beside_work(self.max_rank()),
            SharedWeights::Integers(weights) => weights.work().max(self.conv.beside_work(self.max_rank())),
        }
    }

    /// An adapter's tensors as a call takes them. [`SiteWeights::default`] stands for none.
    pub fn load(&self, site: &Site, delta: &Delta) -> SiteWeights {
        let g = &self.conv.geometry;
        let mut params = vec![0.0; delta.parameters()];
        delta.to_parameters(site, &mut params);
        let outputs = g.group_outputs();
        // Channel of element `at` of `[groups][rows, group_outputs]`.
        let channel = |at: usize, rows: usize| at / (rows * outputs).max(1) * outputs + at % outputs;
        match delta {
            Delta::LowRank { rank, .. } => {
                let adaptation = delta.adaptation();
                let (a, bt) = params.split_at_mut(rank * g.patch());
                if let Some(folded) = &self.folded {
                    let per_group = rank / g.groups;
                    bt.iter_mut().enumerate().for_each(|(at, b)| *b *= folded.scale[channel(at, per_group)]);
                }
                match adaptation {
                    Adaptation::LowRank { scale, .. } if *rank <= self.max_rank() => {
                        self.beside(a, bt, *rank, scale * self.weight_scale)
                    }
                    _ => self.merged(adaptation, &params),
                }
            }
            Delta::ScaleShift { scale, .. } => {
                if let Some(folded) = &self.folded {
                    // The bias is s·b + t, wanted is s·(scale·b + shift) + t.
                    for (c, shift) in params[scale.len()..].iter_mut().enumerate() {
                        *shift = folded.scale[c] * *shift + folded.shift[c] * (1.0 - scale[c]);
                    }
                }
                self.merged(Adaptation::ScaleShift, &params)
            }
            Delta::Full { weight, bias } => {
                let frozen = self.floats();
                let (w, b) = params.split_at_mut(weight.len());
                let mut b = if bias.is_some() { b.to_vec() } else { frozen.bias.clone() };
                if let Some(folded) = &self.folded {
                    w.iter_mut().enumerate().for_each(|(at, w)| *w *= folded.scale[channel(at, g.patch())]);
                    if bias.is_some() {
                        let folded = folded.scale.iter().zip(&folded.shift);
                        b.iter_mut().zip(folded).for_each(|(b, (scale, shift))| *b = *b * scale + shift);
                    }
                }
                let mut out = SiteWeights::default();
                out.weights.w = vec![0.0; w.len()];
                match &self.weights {
                    SharedWeights::Depthwise(_) | SharedWeights::Held(_) => out.weights.w.copy_from_slice(w),
                    _ => pack_groups(g, w, &mut out.weights.w),
                }
                out.weights.w.iter_mut().for_each(|w| *w *= self.weight_scale);
                out.weights.bias = b;
                out
            }
        }
    }

    /// The pair alone: packed, B with the scale.
    fn beside(&self, a: &[f32], bt: &[f32], rank: usize, scale: f32) -> SiteWeights {
        let g = &self.conv.geometry;
        let (patch, outputs, rank) = (g.patch(), g.group_outputs(), rank / g.groups);
        let mut factors = Factors { a_t: vec![0.0; a.len()], b: vec![0.0; bt.len()], ..Factors::default() };
        let mut turned = vec![0.0; rank * patch];
        for (a, packed) in a.chunks_exact(rank * patch).zip(factors.a_t.chunks_exact_mut(rank * patch)) {
            transpose(a, rank, patch, &mut turned);
            crate::kernels::gemm::pack(patch, rank, &turned, packed);
        }
        for (b, packed) in bt.chunks_exact(rank * outputs).zip(factors.b.chunks_exact_mut(rank * outputs)) {
            crate::kernels::gemm::pack(rank, outputs, b, packed);
        }
        factors.b.iter_mut().for_each(|b| *b *= scale);
        self.conv.derive_factors(&mut factors, rank);
        SiteWeights { factors, ..SiteWeights::default() }
    }

    /// The frozen weights with the adapter in them.
    fn merged(&self, adaptation: Adaptation, params: &[f32]) -> SiteWeights {
        let frozen = self.floats();
        let step = match &self.weights {
            SharedWeights::Transposed(layer, _) => SiteStep::transposed(layer.clone(), frozen, adaptation),
            SharedWeights::Held(_) => SiteStep::held(self.conv.clone(), frozen, adaptation),
            kind => {
                let depthwise = matches!(kind, SharedWeights::Depthwise(_));
                SiteStep::new(self.conv.clone(), depthwise, frozen, self.weight_scale, adaptation)
            }
        };
        let mut out = step.weights();
        step.prepare(params, &mut out, false);
        let SiteWeights { mut weights, .. } = out;
        if !matches!(self.weights, SharedWeights::Transposed(..)) {
            weights.wt = Vec::new();
        }
        SiteWeights { weights, ..SiteWeights::default() }
    }

    fn floats(&self) -> Arc<ConvWeights> {
        match &self.weights {
            SharedWeights::Floats(weights)
            | SharedWeights::Depthwise(weights)
            | SharedWeights::Transposed(_, weights)
            | SharedWeights::Held(weights) => weights.clone(),
            SharedWeights::Integers(weights) => {
                let w = if weights.turned { weights.matrix.turned_values() } else { weights.matrix.values() };
                Arc::new(ConvWeights::new(&self.conv.geometry, &w, weights.bias.clone()))
            }
        }
    }

    /// Multiply-adds that `adapter` adds to a forward pass.
    pub fn added_multiply_adds(&self, adapter: &SiteWeights) -> u64 {
        ((adapter.factors.a_t.len() + adapter.factors.b.len()) * self.conv.geometry.positions()) as u64
    }

    /// See [`crate::ops::Operator::row_window`].
    pub fn row_window(&self, rows: usize) -> Option<RowWindow> {
        let floats = matches!(self.weights, SharedWeights::Floats(_) | SharedWeights::Depthwise(_));
        floats.then(|| self.conv.row_window(rows)).flatten()
    }

    /// The layer for rows `range` of the output, with the same adapter; see [`crate::ops::Operator::part`].
    pub fn part(&self, rows: usize, range: Range<usize>) -> Option<Self> {
        self.row_window(rows)?;
        Some(Self { conv: self.conv.part(rows, range)?, ..self.clone() })
    }

    /// y = layer(x) with what `adapter` holds for it.
    pub fn forward(&self, adapter: &SiteWeights, x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let rank = adapter.factors.a_t.len() / self.conv.geometry.patch().max(1);
        let own = !adapter.weights.w.is_empty();
        match &self.weights {
            SharedWeights::Floats(frozen) if rank > 0 => {
                self.conv.forward_beside(Some(frozen), &adapter.factors, rank, x, y, work);
            }
            SharedWeights::Integers(frozen) if rank > 0 => {
                frozen.forward(&self.conv, x, y, None, work);
                self.conv.forward_beside(None, &adapter.factors, rank, x, y, work);
            }
            SharedWeights::Integers(frozen) if !own => {
                frozen.forward(&self.conv, x, y, self.conv.activation.bounds(), work);
            }
            SharedWeights::Integers(_) => self.conv.forward(&adapter.weights, x, y, &mut [], work),
            SharedWeights::Floats(frozen) => {
                self.conv.forward(if own { &adapter.weights } else { frozen }, x, y, &mut [], work);
            }
            SharedWeights::Depthwise(frozen) => {
                let weights = if own { &adapter.weights } else { frozen };
                crate::ops::depthwise::forward(&self.conv, weights, x, y, &mut []);
            }
            SharedWeights::Transposed(layer, frozen) => {
                layer.forward(if own { &adapter.weights } else { frozen }, x, y, work);
            }
            SharedWeights::Held(_) => {}
        }
    }
}
