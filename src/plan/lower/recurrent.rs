//! Recurrent layers: one step a node, with a site for each adapted weight.

use std::sync::Arc;

use super::Lowering;
use crate::graph::{Layout, Node, NodeId, RecurrentLayer, Site, ValueId};
use crate::lora::{Adaptation, SiteStep};
use crate::ops::conv::Conv;
use crate::ops::conv_geometry::ConvGeometry;
use crate::ops::movement::Slice;
use crate::ops::recurrent::{Initial, IntegerTensors, Recurrent, Tensors};
use crate::ops::unary::Activation;
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
        let (bias, peepholes) = (constant(layer.bias), constant(layer.peepholes));
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
        let integers: IntegerTensors = [RecurrentLayer::W, RecurrentLayer::R].map(|at| {
            let own = sites.iter().skip(at - RecurrentLayer::W).step_by(2).flatten();
            self.integer_rows(node.inputs[at], own)
        });
        let [w, r] = [(&integers[0], RecurrentLayer::W), (&integers[1], RecurrentLayer::R)]
            .map(|(held, at)| if held.is_some() { Arc::default() } else { constant(Some(at)) });
        let rank = sites.iter().flatten().map(|site| match self.adapted.get(*site) {
            Some((_, Adaptation::LowRank { rank, .. })) if integers.iter().any(Option::is_some) => *rank,
            _ => 0,
        });
        let rank = rank.max().unwrap_or(0);
        let tensors = Tensors { w: &w, r: &r, bias: &bias, peepholes: &peepholes };
        let op = Recurrent::new(recurrence, steps, batch, inputs, &tensors, !self.adapted.is_empty())
            .with_integers(&integers)
            .with_rank(rank)
            .with_initial(initial)
            .with_last(last)
            .with_trained(sites.map(|site| site.is_some()));
        for (slot, site) in sites.iter().enumerate() {
            let Some(site) = site else { continue };
            match (op.weight(slot), self.adapted.get(*site)) {
                (Some(weight), _) => {
                    self.hold(*site, steps * batch, weight);
                }
                (None, Some((bound, Adaptation::LowRank { rank, scale }))) => {
                    let geometry = ConvGeometry::dense(steps * batch, bound.inputs, bound.outputs);
                    let conv = Conv::new(geometry, Activation::None);
                    self.sites[*site] = Some(SiteStep::held_integers(conv, *rank, *scale));
                }
                (None, _) => {}
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
