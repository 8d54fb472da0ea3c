//! Steps of what chooses, repeats and indexes.

use std::sync::Arc;

use super::super::program::{PlanError, SlotId, StepKind};
use super::super::value_order::{Order, permuted, physical, position, row_major};
use super::{Lowering, leading_ones, without};
use crate::graph::{Indexing, Node, NodeId, Op, ValueId};
use crate::lora::{Adaptation, SiteStep};
use crate::ops::conv::{Conv, ConvWeights};
use crate::ops::conv_geometry::ConvGeometry;
use crate::ops::cumulative::CumSum;
use crate::ops::embedding::Embedding;
use crate::ops::fold::Fold;
use crate::ops::function::Function;
use crate::ops::index::{Gather, Places, Scatter};
use crate::ops::repeat::Repeat;
use crate::ops::select::Select;
use crate::ops::unary::Activation;
use crate::ops::{MAX_WEIGHTS, Operator};

impl Lowering<'_> {
    /// Lowers the operators of this file; false for another one.
    pub(super) fn selection(&mut self, node: &Node) -> Result<bool, PlanError> {
        let y = node.outputs[0];
        let (slot, order) = match &node.op {
            Op::Function(kind) => {
                let placed = self.placed(node.inputs[0])?;
                let function = Function::new(*kind, self.slots[placed.slot]);
                (self.op(node, function, vec![placed.slot]), placed.order)
            }
            Op::Where => self.choice(node)?,
            Op::Repeat => {
                let mut placed = self.placed(node.inputs[0])?;
                let shape = self.shape(y);
                let lead = shape.len() - self.shape(node.inputs[0]).len();
                placed.order = (0..lead).chain(placed.order.iter().map(|d| d + lead)).collect();
                let from = physical(&leading_ones(self.shape(node.inputs[0]), shape.len()), &placed.order);
                let op = Repeat::new(&from, &physical(shape, &placed.order));
                (self.op(node, op, vec![placed.slot]), placed.order)
            }
            Op::CumSum { axis, exclusive, reverse } => {
                let placed = self.placed(node.inputs[0])?;
                let sizes = physical(self.shape(y), &placed.order);
                let at = position(&placed.order, *axis);
                let (outer, inner) = (sizes[..at].iter().product(), sizes[at + 1..].iter().product());
                let op = CumSum::new(outer, sizes[at], inner, *exclusive, *reverse);
                (self.op(node, op, vec![placed.slot]), placed.order)
            }
            Op::Fold(kind, axes) => {
                let placed = self.placed(node.inputs[0])?;
                let shape = self.shape(node.inputs[0]);
                let at: Vec<usize> = axes.iter().map(|a| position(&placed.order, *a)).collect();
                let op = Fold::new(*kind, &physical(shape, &placed.order), &at);
                let slot = self.op(node, op, vec![placed.slot]);
                let kept = self.shape(y).len() == shape.len();
                (slot, if kept { placed.order } else { without(&placed.order, axes) })
            }
            Op::Gather(indexing) => self.gather(node, *indexing)?,
            Op::Scatter { indexing, add } => self.scatter(node, *indexing, *add)?,
            _ => return Ok(false),
        };
        self.place(y, slot, order);
        Ok(true)
    }

    /// An adapted embedding; false for another node.
    pub(super) fn embedding(&mut self, id: NodeId, node: &Node) -> Result<bool, PlanError> {
        let Op::Gather(Indexing::Axis(axis)) = &node.op else { return Ok(false) };
        let shared = || self.sharing(id, None).map(|sharing| sharing.index);
        let index = self.adapted_as(id).or_else(shared);
        let integers = if *axis == 0 { self.integer_rows(node.inputs[0], index.iter()) } else { None };
        if let Some(matrix) = integers.filter(|m| m.rows() == self.shape(node.inputs[0])[0]) {
            let indices = node.inputs[1];
            let x = self.want(indices, &row_major(self.shape(indices).len()))?;
            let (rows, width) = (matrix.rows(), matrix.columns());
            let op = Embedding::of_integers(self.graph.values[indices].len(), matrix);
            let len = op.output_len();
            let mut sites = [None; MAX_WEIGHTS];
            sites[0] = index;
            let kind = match index.map(|i| (i, self.adapted[i].1)) {
                Some((index, Adaptation::LowRank { rank, scale })) => {
                    let geometry = ConvGeometry::dense(0, rows, width);
                    let conv = Conv::new(geometry, Activation::None);
                    self.sites[index] = Some(SiteStep::held_integers(conv, rank, scale));
                    StepKind::Weighted(Arc::new(op), sites)
                }
                _ => StepKind::Op(Arc::new(op)),
            };
            let slot = self.step(node, kind, vec![x], len, 0);
            let y = node.outputs[0];
            self.place(y, slot, row_major(self.shape(y).len()));
            return Ok(true);
        }
        let Some(site) = index else { return Ok(false) };
        let (indices, y) = (node.inputs[1], node.outputs[0]);
        let weight = self.constant(node.inputs[0]).unwrap_or_default().to_vec();
        let weight = Arc::new(ConvWeights { w: weight, ..ConvWeights::default() });
        // No positions: a look-up multiplies nothing.
        let (inputs, outputs) = self.hold(site, 0, weight.clone());
        let op = Embedding::new(inputs, outputs, self.graph.values[indices].len(), weight);
        let x = self.want(indices, &row_major(self.shape(indices).len()))?;
        let len = op.output_len();
        let mut sites = [None; MAX_WEIGHTS];
        sites[0] = Some(site);
        let slot = self.step(node, StepKind::Weighted(Arc::new(op), sites), vec![x], len, 0);
        self.place(y, slot, row_major(self.shape(y).len()));
        Ok(true)
    }

    fn constant(&self, value: ValueId) -> Option<Arc<[f32]>> {
        self.graph.values[value].values()
    }

    fn choice(&mut self, node: &Node) -> Result<(SlotId, Order), PlanError> {
        let shape = self.shape(node.outputs[0]);
        let operands = [node.inputs[0], node.inputs[1], node.inputs[2]];
        // The order of an operand that has the output's shape, a value before the condition.
        let whole = |v: &ValueId| self.constant(*v).is_none() && self.shape(*v) == shape;
        let order = match [operands[1], operands[2], operands[0]].into_iter().find(whole) {
            Some(lead) => self.placed(lead)?.order,
            None => row_major(shape.len()),
        };
        let own = operands.map(|v| leading_ones(self.shape(v), shape.len()));
        let mut constants = [None, None, None];
        let mut x = Vec::new();
        for (i, value) in operands.into_iter().enumerate() {
            match self.constant(value) {
                Some(values) => constants[i] = Some(permuted(&values, &own[i], &order).into()),
                None => x.push(self.want_broadcast(value, &order)?.0),
            }
        }
        let sizes = own.map(|o| physical(&o, &order));
        let op = Select::new([&sizes[0], &sizes[1], &sizes[2]], constants);
        Ok((self.op(node, op, x), order))
    }

    /// The places that the indices of `node` name in data of these physical sizes, and the slot of the indices where they
    /// are no constant.
    fn places(&mut self, mut places: Places, indices: ValueId) -> Result<(Places, Option<SlotId>), PlanError> {
        match self.constant(indices) {
            Some(values) => {
                places.fix(&values.iter().map(|v| *v as i64).collect::<Vec<_>>());
                Ok((places, None))
            }
            None => {
                let slot = self.want(indices, &row_major(self.shape(indices).len()))?;
                Ok((places, Some(slot)))
            }
        }
    }

    fn new_places(&self, indexing: Indexing, data: &[usize], indices: &[usize]) -> Places {
        match indexing {
            Indexing::Axis(axis) => {
                let (outer, inner) = (data[..axis].iter().product(), data[axis + 1..].iter().product());
                Places::along_axis(outer, data[axis], inner, indices.iter().product())
            }
            Indexing::Elements(axis) => Places::elements(data, indices, axis),
            Indexing::Tuples(batch_dims) => {
                let (depth, tuples) = indices.split_last().map_or((0, 1), |(d, rest)| (*d, rest.iter().product()));
                Places::tuples(data, batch_dims, depth, tuples)
            }
        }
    }

    fn gather(&mut self, node: &Node, indexing: Indexing) -> Result<(SlotId, Order), PlanError> {
        let (data, indices) = (node.inputs[0], node.inputs[1]);
        let rank = self.shape(data).len();
        let constant = self.constant(data);
        let (from, order, at) = match indexing {
            // Whatever order the data stands in, with the dimensions of the indices where the axis was.
            Indexing::Axis(axis) => {
                let from = if constant.is_some() { row_major(rank) } else { self.placed(data)?.order };
                let more = self.shape(indices).len();
                let mut order = Vec::new();
                for d in &from {
                    match d.cmp(&axis) {
                        std::cmp::Ordering::Less => order.push(*d),
                        std::cmp::Ordering::Equal => order.extend(axis..axis + more),
                        std::cmp::Ordering::Greater => order.push(d + more - 1),
                    }
                }
                let at = Indexing::Axis(position(&from, axis));
                (from, order, at)
            }
            _ => (row_major(rank), row_major(self.shape(node.outputs[0]).len()), indexing),
        };
        let places = self.new_places(at, &physical(self.shape(data), &from), self.shape(indices));
        let mut x = match constant {
            Some(_) => vec![],
            None => vec![self.want(data, &from)?],
        };
        let (places, slot) = self.places(places, indices)?;
        x.extend(slot);
        Ok((self.op(node, Gather::new(places, constant), x), order))
    }

    fn scatter(&mut self, node: &Node, indexing: Indexing, add: bool) -> Result<(SlotId, Order), PlanError> {
        let [data, indices, updates] = [node.inputs[0], node.inputs[1], node.inputs[2]];
        let places = self.new_places(indexing, self.shape(data), self.shape(indices));
        let (places, slot) = self.places(places, indices)?;
        let mut x = Vec::new();
        for value in [data, indices, updates] {
            match (self.constant(value), value == indices) {
                (Some(_), _) => {}
                (None, true) => x.extend(slot),
                (None, false) => x.push(self.want(value, &row_major(self.shape(value).len()))?),
            }
        }
        let op: Arc<dyn Operator> = Arc::new(Scatter::new(places, self.constant(data), self.constant(updates), add));
        let len = op.output_len();
        let slot = self.step(node, StepKind::Op(op), x, len, 0);
        Ok((slot, row_major(self.shape(data).len())))
    }
}
