//! Recurrent layers: one step a node, with a site for each adapted weight.

use std::sync::Arc;

use super::Lowering;
use crate::graph::{Layout, Node, NodeId, RecurrentLayer, Site, ValueId};
use crate::ops::movement::Slice;
use crate::ops::recurrent::{Initial, Recurrent, Tensors};
use crate::ops::{MAX_WEIGHTS, Operator};
use crate::plan::program::{PlanError, StepKind};
use crate::plan::value_order::{Order, permuted, physical, row_major};

impl<'a> Lowering<'a> {
    pub(super) fn recurrent(&mut self, id: NodeId, node: &'a Node, layer: &'a RecurrentLayer) -> Result<(), PlanError> {
        let graph = self.graph;
        let constant = |at: Option<usize>| at.and_then(|at| graph.values[node.inputs[at]].values()).unwrap_or_default();
        // Steps first, then directions, then the batch: what the operator works in.
        let order = |rank: usize| -> Order {
            match (layer.batch_first, rank) {
                (true, 3) => vec![1, 0, 2],
                (true, 4) => vec![1, 2, 0, 3],
                _ => row_major(rank),
            }
        };
        let x_sizes = physical(self.shape(node.inputs[0]), &order(3));
        let [steps, batch, inputs] = x_sizes[..] else {
            return Err(self.unsupported(node, format!("expected x of rank 3, found {x_sizes:?}")));
        };
        let mut x = vec![self.want(node.inputs[0], &order(3))?];
        let mut initial = [Initial::Zero, Initial::Zero];
        for (initial, at) in initial.iter_mut().zip(layer.initial) {
            let Some(value) = at.map(|at| node.inputs[at]) else { continue };
            *initial = match graph.values[value].values().as_deref() {
                Some(values) if values.iter().all(|v| *v == 0.0) => Initial::Zero,
                Some(values) => Initial::Constant(permuted(values, self.shape(value), &order(3)).into()),
                None => {
                    x.push(self.want(value, &order(3))?);
                    Initial::Input(x.len() - 1)
                }
            };
        }
        let (w, r) = (constant(Some(RecurrentLayer::W)), constant(Some(RecurrentLayer::R)));
        let (bias, peepholes) = (constant(layer.bias), constant(layer.peepholes));
        let tensors = Tensors { w: &w, r: &r, bias: &bias, peepholes: &peepholes };
        let read = |value: &ValueId| *value == self.output || graph.consumers(*value).next().is_some();
        let outputs = layer.outputs.map(|at| at.map(|at| node.outputs[at]).filter(read));
        let last = outputs[1..].iter().any(Option::is_some);

        let sites: [Option<usize>; MAX_WEIGHTS] = std::array::from_fn(|slot| {
            let weight = node.inputs[if slot.is_multiple_of(2) { RecurrentLayer::W } else { RecurrentLayer::R }];
            let layout = Layout::Stacked { part: slot / 2 };
            let is = |s: &Site| s.node == graph.original(id) && s.weight == weight && s.layout == layout;
            self.adapted.iter().position(|(s, _)| is(s)).or_else(|| self.shared.iter().position(is))
        });
        let recurrence = layer.recurrence.clone();
        let op = Recurrent::new(recurrence, steps, batch, inputs, &tensors, !self.adapted.is_empty())
            .with_initial(initial)
            .with_last(last)
            .with_trained(sites.map(|site| site.is_some()));
        for (slot, site) in sites.iter().enumerate() {
            if let (Some(site), Some(weight)) = (site, op.weight(slot)) {
                self.hold(*site, steps * batch, weight.clone());
            }
        }

        let (len, multiply_adds) = (op.output_len(), op.multiply_adds());
        let (sequence, state) = (op.sequence_len(), op.state_len());
        let op = Arc::new(op);
        let kind = match sites.iter().any(Option::is_some) {
            true => StepKind::Weighted(op, sites),
            false => StepKind::Op(op),
        };
        let y = self.step(node, kind, x, len, multiply_adds);
        for (which, output) in outputs.into_iter().enumerate() {
            let Some(output) = output else { continue };
            let (start, own) = if which == 0 { (0, sequence) } else { (sequence + (which - 1) * state, state) };
            let slot = if own == len { y } else { self.op(node, Slice::new(&[len], &[start], &[1], &[own]), vec![y]) };
            self.place(output, slot, order(self.shape(output).len()));
        }
        Ok(())
    }
}
