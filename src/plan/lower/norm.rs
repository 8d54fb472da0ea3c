//! Normalisations, in whatever order the value stands.

use super::{Lowering, leading_ones};
use crate::graph::Node;
use crate::ops::lrn::Lrn;
use crate::ops::norm::{Norm, NormKind};
use crate::plan::program::PlanError;
use crate::plan::value_order::{permuted, physical, position};

impl Lowering<'_> {
    pub(super) fn norm(&mut self, node: &Node, kind: NormKind, axes: &[usize], groups: usize) -> Result<(), PlanError> {
        let (x, y) = (node.inputs[0], node.outputs[0]);
        let placed = self.placed(x)?;
        let (shape, order) = (self.shape(x), &placed.order);
        let channels = if groups > 1 { Some(position(order, 1)) } else { None };
        // Channels in groups are two dimensions, groups outside.
        let split = |mut sizes: Vec<usize>| {
            if let Some(at) = channels {
                let outer = if sizes[at] == 1 { 1 } else { groups };
                sizes[at] /= outer;
                sizes.insert(at, outer);
            }
            sizes
        };
        let at = |axis: &usize| {
            let at = position(order, *axis);
            if channels.is_some_and(|c| at >= c) { at + 1 } else { at }
        };
        let axes: Vec<usize> = axes.iter().map(at).collect();
        let mut op = Norm::new(kind, &split(physical(shape, order)), &axes);
        for (i, constant) in node.inputs[1..].iter().enumerate() {
            let Some(values) = self.graph.values[*constant].values() else {
                return Err(self.unsupported(node, "its scale and bias must be constants"));
            };
            let own = leading_ones(self.shape(*constant), shape.len());
            let (values, sizes) = (permuted(&values, &own, order), split(physical(&own, order)));
            op = if i == 0 { op.with_scale(values, &sizes) } else { op.with_bias(values, &sizes) };
        }
        let slot = self.op(node, op, vec![placed.slot]);
        self.place(y, slot, placed.order);
        Ok(())
    }

    pub(super) fn lrn(&mut self, node: &Node, size: usize, [alpha, beta, bias]: [f32; 3]) -> Result<(), PlanError> {
        let placed = self.placed(node.inputs[0])?;
        let sizes = physical(self.shape(node.inputs[0]), &placed.order);
        let at = position(&placed.order, 1);
        let (outer, inner) = (sizes[..at].iter().product(), sizes[at + 1..].iter().product());
        let slot = self.op(node, Lrn::new(outer, sizes[at], inner, size, alpha, beta, bias), vec![placed.slot]);
        self.place(node.outputs[0], slot, placed.order);
        Ok(())
    }
}
