//! Resizes, in whatever order the value stands.

use super::Lowering;
use crate::graph::Node;
use crate::ops::resize::{AxisMap, Resize};
use crate::plan::program::PlanError;
use crate::plan::value_order::{physical, position};

impl Lowering<'_> {
    pub(super) fn resize(&mut self, node: &Node, maps: &[(usize, AxisMap)], fill: f32) -> Result<(), PlanError> {
        let placed = self.placed(node.inputs[0])?;
        let sizes = physical(self.shape(node.inputs[0]), &placed.order);
        let maps: Vec<_> = maps.iter().map(|(axis, map)| (position(&placed.order, *axis), map.clone())).collect();
        let slot = self.op(node, Resize::new(&sizes, &maps, fill), vec![placed.slot]);
        self.place(node.outputs[0], slot, placed.order);
        Ok(())
    }
}
