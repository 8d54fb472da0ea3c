//! Quantisation of activations: both halves as one operator where nothing stands between them.

use super::Lowering;
use crate::graph::{Node, Op, Quantisation, Spread};
use crate::ops::quantise::{DynamicPart, DynamicQuantise, Half, Quantise, Scales};
use crate::plan::PlanError;
use crate::plan::value_order::{permuted, physical, position};

impl Lowering<'_> {
    pub(super) fn quantise(&mut self, node: &Node, half: Half, quantisation: &Quantisation) -> Result<(), PlanError> {
        let (mut half, mut y) = (half, node.outputs[0]);
        if half == Half::Quantise
            && let Some(next) = self.next(y)
            && let Op::Quantise(Half::Dequantise, other) = &self.graph.nodes[next].op
            && same_integers(quantisation, other)
        {
            self.fused[next] = true;
            (half, y) = (Half::Fake, self.graph.nodes[next].outputs[0]);
        }
        let placed = self.placed(node.inputs[0])?;
        let sizes = physical(self.shape(node.inputs[0]), &placed.order);
        let len = sizes.iter().product();
        let Scales { scale, zero_point, low, high } = quantisation.scales.clone();
        let op = match quantisation.spread {
            Spread::Tensor => Quantise::new(half, 1, 1, len, quantisation.scales.clone()),
            Spread::Axis(axis) => {
                let at = position(&placed.order, axis);
                let (outer, inner) = (sizes[..at].iter().product(), sizes[at + 1..].iter().product());
                Quantise::new(half, outer, sizes[at], inner, quantisation.scales.clone())
            }
            Spread::Each => {
                let shape = self.shape(node.inputs[0]);
                let scale = permuted(&scale, shape, &placed.order).into();
                let zero_point = permuted(&zero_point, shape, &placed.order).into();
                Quantise::new(half, 1, len, 1, Scales { scale, zero_point, low, high })
            }
        };
        let slot = self.op(node, op, vec![placed.slot]);
        self.place(y, slot, placed.order);
        Ok(())
    }

    pub(super) fn dynamic_quantise(&mut self, node: &Node, part: DynamicPart) -> Result<(), PlanError> {
        let placed = self.placed(node.inputs[0])?;
        let slot = self.op(node, DynamicQuantise::new(part, self.slots[placed.slot]), vec![placed.slot]);
        let order = match part {
            DynamicPart::Integers | DynamicPart::Fake => placed.order,
            DynamicPart::Scale | DynamicPart::ZeroPoint => (0..self.shape(node.outputs[0]).len()).collect(),
        };
        self.place(node.outputs[0], slot, order);
        Ok(())
    }
}

/// Whether what one wrote the other reads with the same scales; a dequantisation does not know the range.
fn same_integers(a: &Quantisation, b: &Quantisation) -> bool {
    a.spread == b.spread && a.scales.scale == b.scales.scale && a.scales.zero_point == b.scales.zero_point
}
