//! Layers whose weights stay as the file has them: integers, and floats that a merge packs.

use std::sync::Arc;

use super::Lowering;
use crate::graph::{Constant, Layout, Node, Site, ValueId};
use crate::kernels::integers::Integers;
use crate::lora::{Adaptation, SiteStep};
use crate::ops::Operator;
use crate::ops::conv::{Conv, ConvWeights, FileMatrix};
use crate::ops::conv_geometry::ConvGeometry;
use crate::ops::integer_conv::{FrozenIntegerConv, IntegerKernels};
use crate::ops::integer_dense::{FrozenIntegers, IntegerWeights};
use crate::plan::program::{MaskedOp, SlotId, StepKind};

/// With fewer weights than this (256 KiB of floats) an adapted layer is merged in floats, and any but a dense one has them: that
/// is faster, and there is little to save.
const FLOATS_BELOW: usize = 1 << 16;

/// Weights of a layer as its kernels read them.
pub(super) enum Packed {
    Floats(Arc<ConvWeights>),
    Integers(Arc<IntegerWeights>),
    Kernels(Arc<IntegerKernels>),
    /// With the bias.
    InFile(InFile, Vec<f32>),
}

/// An adapted layer whose frozen weight is not packed.
pub(super) struct InFile {
    pub(super) file: FileMatrix,
    pub(super) index: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
}

impl Packed {
    pub(super) fn integers((matrix, turned): (Arc<Integers>, bool), bias: Vec<f32>) -> Self {
        Self::Integers(Arc::new(IntegerWeights { matrix, turned, bias }))
    }
}

impl Lowering<'_> {
    /// The weight of a dense layer that runs from its integers, and whether each row of them is an output.
    pub(super) fn integers(
        &self,
        layer: &Site,
        geometry: &ConvGeometry,
        index: Option<usize>,
    ) -> Option<(Arc<Integers>, bool)> {
        if !geometry.is_pointwise() || geometry.groups != 1 || !index.is_none_or(|i| self.runs_beside(i)) {
            return None;
        }
        let (matrix, turned) = self.graph.values[layer.weight].constant.as_ref().and_then(Constant::integers)?;
        Some((matrix.clone(), turned != (layer.layout != Layout::InOut)))
    }

    /// A pointwise layer with a low-rank pair, if the graph has the floats of its weight.
    pub(super) fn in_file(&self, layer: &Site, geometry: &ConvGeometry, index: Option<usize>) -> Option<InFile> {
        let index = index.filter(|_| geometry.is_pointwise() && geometry.groups == 1)?;
        let Adaptation::LowRank { rank, scale } = self.adapted[index].1 else { return None };
        let Some(Constant::Floats(values)) = &self.graph.values[layer.weight].constant else { return None };
        let file = FileMatrix { values: values.clone(), outputs_first: layer.layout != Layout::InOut };
        Some(InFile { file, index, rank, scale })
    }

    /// Whether adapted layer `index` has its pair beside integers: what is small is merged, which is faster, and what is
    /// trained as a whole becomes floats.
    fn runs_beside(&self, index: usize) -> bool {
        let (site, adaptation) = &self.adapted[index];
        matches!(adaptation, Adaptation::LowRank { .. }) && site.inputs * site.outputs >= FLOATS_BELOW
    }

    /// The weight of a larger, grouped, depthwise or transposed convolution that runs from its integers.
    pub(super) fn integer_kernels(
        &self,
        layer: &Site,
        geometry: &ConvGeometry,
        index: Option<usize>,
    ) -> Option<Arc<Integers>> {
        let len = geometry.patch() * geometry.output_channels;
        let adapted = index.map(|i| self.adapted[i].1);
        let pair = |adaptation| matches!(adaptation, Adaptation::LowRank { .. }) && !geometry.is_depthwise();
        let shared = self.shared.iter().any(|site| site.weight == layer.weight);
        if shared || len < FLOATS_BELOW || layer.layout != Layout::OutInKernel || !adapted.is_none_or(pair) {
            return None;
        }
        let (matrix, turned) = self.graph.values[layer.weight].constant.as_ref().and_then(Constant::integers)?;
        let fits = !turned && matrix.rows() == geometry.output_channels && matrix.columns() == geometry.patch();
        fits.then(|| matrix.clone())
    }

    /// The weight of a recurrent layer or an embedding that runs from its integers, a row for each combination of all dimensions
    /// but the last; `sites` are the adapted layers that read it.
    pub(super) fn integer_rows<'b>(
        &self,
        weight: ValueId,
        mut sites: impl Iterator<Item = &'b usize>,
    ) -> Option<Arc<Integers>> {
        let value = &self.graph.values[weight];
        let columns = *value.shape.last()?;
        let pairs = sites.all(|site| matches!(self.adapted.get(*site), Some((_, Adaptation::LowRank { .. }))));
        if !pairs || value.len() < FLOATS_BELOW {
            return None;
        }
        let (matrix, _) = value.constant.as_ref().and_then(Constant::integers).filter(|(_, turned)| !turned)?;
        matrix.reshaped(value.len() / columns, columns).map(Arc::new)
    }

    /// Adds the step of a convolution with integer weights.
    pub(super) fn integer_conv(
        &mut self,
        node: &Node,
        conv: Conv,
        x: SlotId,
        weights: Arc<IntegerKernels>,
        index: Option<usize>,
        multiply_adds: u64,
    ) -> SlotId {
        let len = conv.geometry.output_len();
        if let Some((index, Adaptation::LowRank { rank, scale })) = index.map(|i| (i, self.adapted[i].1)) {
            self.sites[index] = Some(SiteStep::integer_kernels(conv, weights, rank, scale));
            return self.step(node, StepKind::Site(index), vec![x], len, multiply_adds);
        }
        let kept = Conv { output_kept: true, ..conv.clone() };
        let bits: Arc<dyn Operator> = Arc::new(FrozenIntegerConv { conv, weights: weights.clone() });
        let output: Arc<dyn Operator> = Arc::new(FrozenIntegerConv { conv: kept, weights });
        self.step(node, StepKind::Masked(MaskedOp { bits, output }), vec![x], len, multiply_adds)
    }

    /// Adds the step of a layer with integer weights.
    pub(super) fn integer_layer(
        &mut self,
        node: &Node,
        conv: Conv,
        x: SlotId,
        weights: Arc<IntegerWeights>,
        index: Option<usize>,
        multiply_adds: u64,
    ) -> SlotId {
        let len = conv.geometry.output_len();
        if let Some((index, Adaptation::LowRank { rank, scale })) = index.map(|i| (i, self.adapted[i].1)) {
            self.sites[index] = Some(SiteStep::integers(conv, weights, rank, scale));
            return self.step(node, StepKind::Site(index), vec![x], len, multiply_adds);
        }
        let kept = Conv { output_kept: true, ..conv.clone() };
        let bits: Arc<dyn Operator> = Arc::new(FrozenIntegers { conv, weights: weights.clone() });
        let output: Arc<dyn Operator> = Arc::new(FrozenIntegers { conv: kept, weights });
        self.step(node, StepKind::Masked(MaskedOp { bits, output }), vec![x], len, multiply_adds)
    }
}
