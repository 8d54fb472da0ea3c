//! Layers whose adapter comes with the call, and weights that a step holds.

use std::sync::Arc;

use super::Lowering;
use crate::graph::{Node, NodeId, Site};
use crate::lora::{Folded, SharedLayer, SharedWeights, SiteStep};
use crate::ops::conv::{Conv, ConvWeights};
use crate::ops::conv_geometry::ConvGeometry;
use crate::ops::unary::Activation;
use crate::plan::program::{SlotId, StepKind};

/// Where a layer stands among the shared ones, and what is folded into it.
pub(super) struct Sharing {
    pub(super) index: usize,
    pub(super) folded: Option<Arc<Folded>>,
}

impl<'a> Lowering<'a> {
    /// Leaves these sites to the calls.
    pub(in crate::plan) fn shared(self, sites: &'a [Site]) -> Self {
        Self { shared: sites, shared_layers: vec![None; sites.len()], ..self }
    }

    /// How node `id`, or the node that it is a copy of, is shared.
    pub(super) fn sharing(&self, id: NodeId, folded: Option<Arc<Folded>>) -> Option<Sharing> {
        let original = self.graph.original(id);
        self.shared.iter().position(|site| site.node == original).map(|index| Sharing { index, folded })
    }

    /// Adds the step of a shared layer.
    pub(super) fn shared_layer(
        &mut self,
        node: &Node,
        conv: Conv,
        x: SlotId,
        weights: SharedWeights,
        weight_scale: f32,
        Sharing { index, folded }: Sharing,
    ) -> SlotId {
        let multiply_adds = conv.geometry.multiply_adds();
        let layer = Arc::new(SharedLayer::new(conv, weights, weight_scale, folded));
        self.shared_layers[index] = Some(layer.clone());
        let len = layer.output_len();
        self.step(node, StepKind::Shared(index, layer), vec![x], len, multiply_adds)
    }

    /// Notes the weight of site `index`, which a step of `positions` holds; its inputs and outputs.
    pub(super) fn hold(&mut self, index: usize, positions: usize, weight: Arc<ConvWeights>) -> (usize, usize) {
        let site = self.adapted.get(index).map_or_else(|| &self.shared[index], |(site, _)| site);
        let geometry = ConvGeometry::dense(positions, site.inputs, site.outputs);
        let conv = Conv::new(geometry, Activation::None);
        match self.adapted.get(index) {
            Some((_, adaptation)) => self.sites[index] = Some(SiteStep::held(conv, weight, *adaptation)),
            None => {
                let layer = SharedLayer::new(conv, SharedWeights::Held(weight), 1.0, None);
                self.shared_layers[index] = Some(Arc::new(layer));
            }
        }
        (site.inputs, site.outputs)
    }
}
