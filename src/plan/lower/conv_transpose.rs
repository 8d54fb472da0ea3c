//! Transposed convolutions, frozen or adapted.

use std::sync::Arc;

use super::Lowering;
use crate::graph::{Node, NodeId, Window};
use crate::lora::{Adaptation, SharedWeights, SiteStep};
use crate::ops::conv::{Conv, ConvWeights};
use crate::ops::conv_geometry::ConvGeometry;
use crate::ops::conv_transpose::{ConvTranspose, FrozenConvTranspose};
use crate::ops::integer_conv::{FrozenIntegerTranspose, IntegerKernels};
use crate::ops::unary::Activation;
use crate::plan::program::{PlanError, StepKind};
use crate::plan::value_order::channels_last;

impl Lowering<'_> {
    pub(super) fn conv_transpose(
        &mut self,
        id: NodeId,
        node: &Node,
        window: &Window,
        groups: usize,
    ) -> Result<(), PlanError> {
        let Some(layer) = self.graph.layer(id) else {
            return Err(self.unsupported(node, "its weight must be a constant of the file"));
        };
        let forward = self.geometry(node, window, groups)?;
        let mirror = ConvGeometry {
            input: forward.output,
            input_channels: forward.output_channels,
            output: forward.input,
            output_channels: forward.input_channels,
            ..forward
        };
        let bias = match node.inputs.get(2) {
            Some(b) => match self.graph.values[*b].values().as_deref() {
                Some(bias) => bias.to_vec(),
                None => return Err(self.unsupported(node, "its bias must be a constant of the file")),
            },
            None => Vec::new(),
        };
        let index = self.adapted_as(id);
        if let Some(matrix) = self.integer_kernels(&layer, &mirror, index) {
            let weights = Arc::new(IntegerKernels { matrix, bias: Vec::new() });
            let order = channels_last(self.shape(node.inputs[0]).len());
            let x = self.want(node.inputs[0], &order)?;
            let multiply_adds = mirror.multiply_adds();
            let layer = ConvTranspose::new(mirror, bias);
            let len = layer.output_len();
            let kind = match index.map(|i| (i, self.adapted[i].1)) {
                Some((index, Adaptation::LowRank { rank, scale })) => {
                    self.sites[index] = Some(SiteStep::integer_transpose(layer, weights, rank, scale));
                    StepKind::Site(index)
                }
                _ => StepKind::Op(Arc::new(FrozenIntegerTranspose { layer, weights })),
            };
            let slot = self.step(node, kind, vec![x], len, multiply_adds);
            self.place(node.outputs[0], slot, order);
            return Ok(());
        }
        let graph = self.graph;
        let pack = || {
            let file = graph.values[layer.weight].values().unwrap_or_default();
            let mut rows = vec![0.0; file.len()];
            layer.weight_to_kernel(&file, &mut rows);
            let mut weights = ConvWeights::new(&mirror, &rows, Vec::new());
            weights.transpose(&mirror);
            Arc::new(weights)
        };
        let weights = self.packed.entry((graph.original(id), false, None)).or_insert_with(pack).clone();

        let order = channels_last(self.shape(node.inputs[0]).len());
        let x = self.want(node.inputs[0], &order)?;
        let multiply_adds = mirror.multiply_adds();
        let layer = ConvTranspose::new(mirror, bias);
        let len = layer.output_len();
        if let Some(sharing) = self.sharing(id, None) {
            let geometry = layer.mirror().geometry.clone();
            let conv = Conv::new(geometry, Activation::None);
            let weights = SharedWeights::Transposed(layer, weights);
            let slot = self.shared_layer(node, conv, x, weights, 1.0, sharing);
            self.place(node.outputs[0], slot, order);
            return Ok(());
        }
        let kind = match index {
            Some(index) => {
                self.sites[index] = Some(SiteStep::transposed(layer, weights, self.adapted[index].1));
                StepKind::Site(index)
            }
            None => StepKind::Op(Arc::new(FrozenConvTranspose { layer, weights })),
        };
        let slot = self.step(node, kind, vec![x], len, multiply_adds);
        self.place(node.outputs[0], slot, order);
        Ok(())
    }
}
