//! Lowers a graph to steps: chooses physical orders, packs constants, fuses bias, BatchNorm and activation.
//!
//! Convolutions and pools want channels last; a dense layer wants its features last; element-wise operators take what
//! comes; a transpose only relabels. Where two of these meet, a permutation is made, once a value and order.

mod conv_transpose;
mod integers;
mod norm;
mod quantise;
mod recurrent;
mod resize;
mod select;
mod shared;

use std::collections::HashMap;
use std::sync::Arc;

use self::integers::{InFile, Packed};
use self::shared::Sharing;
use super::program::{MaskedOp, PlanError, Program, SlotId, Step, StepKind};
use super::value_order::{Order, channels_last, permuted, physical, position, reshaped, row_major, same};
use crate::graph::{Graph, Node, NodeId, Op, Site, SiteKind, ValueId, Window};
use crate::kernels::winograd::Winograd;
use crate::lora::{Adaptation, Folded, SharedLayer, SharedWeights, SiteStep};
use crate::ops::Operator;
use crate::ops::batch_norm::{Affine, fold};
use crate::ops::binary::{Binary, BinaryKind};
use crate::ops::conv::{Conv, ConvWeights, FrozenConv};
use crate::ops::conv_geometry::ConvGeometry;
use crate::ops::depthwise::FrozenDepthwise;
use crate::ops::integer_conv::IntegerKernels;
use crate::ops::matmul::MatMul;
use crate::ops::movement::{Constant, Copy, Pad, Permute, Place, Slice};
use crate::ops::pool::{AveragePool, LpPool, MaxPool, Window as PoolWindow};
use crate::ops::reduce::Reduce;
use crate::ops::rows::axis_of_rows;
use crate::ops::softmax::Softmax;
use crate::ops::unary::{Activation, Unary, UnaryKind};

/// Where a value stands: its buffer and the physical order of its dimensions.
#[derive(Clone, Debug)]
struct Placed {
    slot: SlotId,
    order: Order,
}

/// Along which axes convolutions may take two outputs at a time ([`Winograd`]): a value then depends on where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tiling {
    /// The columns; rows have the same bits wherever they stand in a window.
    Columns,
    /// Either axis.
    All,
}

pub(super) struct Lowering<'a> {
    graph: &'a Graph,
    adapted: &'a [(Site, Adaptation)],
    slots: Vec<usize>,
    steps: Vec<Step>,
    sites: Vec<Option<SiteStep>>,
    /// Layers whose adapter comes with the call.
    shared: &'a [Site],
    shared_layers: Vec<Option<Arc<SharedLayer>>>,
    /// Packed weights by node, by whether the layer behind is folded in, and by the axis that is tiled: the copies of a node
    /// share them.
    packed: HashMap<(NodeId, bool, Option<usize>), Arc<ConvWeights>>,
    tiling: Tiling,
    placed: Vec<Option<Placed>>,
    permuted: HashMap<(ValueId, Order), SlotId>,
    fused: Vec<bool>,
    whole: Vec<SlotId>,
    output: ValueId,
}

impl<'a> Lowering<'a> {
    pub(super) fn new(graph: &'a Graph, adapted: &'a [(Site, Adaptation)]) -> Self {
        Self {
            graph,
            adapted,
            slots: Vec::new(),
            steps: Vec::new(),
            sites: vec![None; adapted.len()],
            shared: &[],
            shared_layers: Vec::new(),
            packed: HashMap::new(),
            tiling: Tiling::Columns,
            placed: vec![None; graph.values.len()],
            permuted: HashMap::new(),
            fused: vec![false; graph.nodes.len()],
            whole: Vec::new(),
            output: 0,
        }
    }

    pub(super) fn tiling(self, tiling: Tiling) -> Self {
        Self { tiling, ..self }
    }

    /// The axis along which a convolution takes two outputs at a time.
    fn tiled(&self, g: &ConvGeometry) -> Option<usize> {
        let may = |axis: &usize| match self.tiling {
            Tiling::Columns => *axis != axis_of_rows(g),
            Tiling::All => true,
        };
        [1, 0].into_iter().filter(may).find(|axis| Winograd::along(g, *axis).is_some_and(|layer| layer.pays()))
    }

    pub(super) fn run(mut self, input: ValueId, output: ValueId) -> Result<Program, PlanError> {
        self.output = output;
        let graph = self.graph;
        if graph.is_constant(output) {
            return Err(PlanError::Constant(graph.values[output].name.clone()));
        }
        let input_slot = self.slot(graph.values[input].len());
        self.placed[input] = Some(Placed { slot: input_slot, order: row_major(graph.values[input].shape.len()) });
        let needed = graph.ancestors(output);
        for (id, node) in graph.nodes.iter().enumerate() {
            if needed[id] && !self.fused[id] && !node.outputs.iter().all(|o| graph.is_constant(*o)) {
                self.node(id, node)?;
            }
        }
        let output = self.want(output, &row_major(graph.values[output].shape.len()))?;
        let channels = self.channels();
        let sites = self.sites.into_iter().collect::<Option<Vec<_>>>().ok_or(PlanError::NoSite)?;
        let (slots, steps, shared, whole) = (self.slots, self.steps, self.shared_layers, self.whole);
        Ok(Program { slots, steps, sites, shared, channels, whole, input: input_slot, output })
    }

    /// The innermost dimension of each slot, of the first value that stands there; of a slot without one, all of it.
    fn channels(&self) -> Vec<usize> {
        let graph = self.graph;
        let inner = |value: ValueId, order: &[usize]| {
            physical(self.shape(value), order).into_iter().rev().find(|d| *d != 1).unwrap_or(1)
        };
        let mut channels: Vec<Option<usize>> = vec![None; self.slots.len()];
        let outputs = graph.nodes.iter().flat_map(|n| n.outputs.iter().copied());
        for value in graph.inputs.iter().copied().chain(outputs) {
            if let Some(placed) = &self.placed[value] {
                channels[placed.slot].get_or_insert_with(|| inner(value, &placed.order));
            }
        }
        for ((value, order), slot) in &self.permuted {
            channels[*slot] = Some(inner(*value, order));
        }
        channels.into_iter().zip(&self.slots).map(|(channels, len)| channels.unwrap_or(*len)).collect()
    }

    fn shape(&self, value: ValueId) -> &'a [usize] {
        &self.graph.values[value].shape
    }

    fn slot(&mut self, len: usize) -> SlotId {
        self.slots.push(len);
        self.slots.len() - 1
    }

    fn unsupported(&self, node: &Node, what: impl Into<String>) -> PlanError {
        PlanError::Unsupported { node: node.name.clone(), op: node.op_type.clone(), what: what.into() }
    }

    /// Adds a step that writes a new slot.
    fn step(&mut self, node: &Node, kind: StepKind, x: Vec<SlotId>, len: usize, multiply_adds: u64) -> SlotId {
        let y = self.slot(len);
        self.step_to(node, kind, x, y, multiply_adds);
        y
    }

    /// Adds a step that writes `y`. An operator never reads the same buffer twice: the second gets a copy.
    fn step_to(&mut self, node: &Node, kind: StepKind, mut x: Vec<SlotId>, y: SlotId, multiply_adds: u64) {
        let repeated = |x: &[SlotId]| (1..x.len()).find(|i| x[..*i].contains(&x[*i]));
        while let Some(again) = repeated(&x).filter(|_| !matches!(kind, StepKind::Foreign(_))) {
            let len = self.slots[x[again]];
            let copy: Arc<dyn Operator> = Arc::new(Copy::new(len));
            x[again] = self.step(node, StepKind::Op(copy), vec![x[again]], len, 0);
        }
        let (node, op_type) = (node.name.clone(), node.op_type.clone());
        self.steps.push(Step { node, op_type, kind, x, y: vec![y], multiply_adds });
    }

    fn op(&mut self, node: &Node, op: impl Operator + 'static, x: Vec<SlotId>) -> SlotId {
        let len = op.output_len();
        self.step(node, StepKind::Op(Arc::new(op)), x, len, 0)
    }

    fn place(&mut self, value: ValueId, slot: SlotId, order: Order) {
        self.placed[value] = Some(Placed { slot, order });
    }

    /// Where `value` stands; a constant is written to a buffer of its own.
    fn placed(&mut self, value: ValueId) -> Result<Placed, PlanError> {
        if let Some(placed) = &self.placed[value] {
            return Ok(placed.clone());
        }
        let v = &self.graph.values[value];
        let Some(constant) = v.values() else {
            let node = self.graph.producer(value).map(|id| &self.graph.nodes[id]);
            let (node, op) =
                node.map_or((v.name.clone(), String::from("input")), |n| (n.name.clone(), n.op_type.clone()));
            return Err(PlanError::Unsupported {
                node,
                op,
                what: "its output is not computed before it is read".into(),
            });
        };
        let op = Constant::new(constant);
        let slot = self.slot(v.len());
        let (node, op_type) = (v.name.clone(), String::from("Constant"));
        self.steps.push(Step {
            node,
            op_type,
            kind: StepKind::Op(Arc::new(op)),
            x: vec![],
            y: vec![slot],
            multiply_adds: 0,
        });
        let placed = Placed { slot, order: row_major(v.shape.len()) };
        self.placed[value] = Some(placed.clone());
        Ok(placed)
    }

    /// The buffer of `value` in `order`; a permutation is added where needed.
    fn want(&mut self, value: ValueId, order: &[usize]) -> Result<SlotId, PlanError> {
        let placed = self.placed(value)?;
        let shape = self.shape(value);
        if same(shape, &placed.order, order) {
            return Ok(placed.slot);
        }
        if let Some(slot) = self.permuted.get(&(value, order.to_vec())) {
            return Ok(*slot);
        }
        let from = physical(shape, &placed.order);
        let perm: Vec<usize> = order.iter().map(|d| position(&placed.order, *d)).collect();
        let op = Permute::new(&from, &perm);
        let node = Node {
            name: self.graph.values[value].name.clone(),
            op_type: "Permute".into(),
            op: Op::Reshape,
            inputs: vec![],
            outputs: vec![],
        };
        let slot = self.op(&node, op, vec![placed.slot]);
        self.permuted.insert((value, order.to_vec()), slot);
        Ok(slot)
    }

    /// [`Lowering::want`] for a value whose shape counts as if it had leading ones up to `order.len()`.
    fn want_broadcast(&mut self, value: ValueId, order: &[usize]) -> Result<(SlotId, Vec<usize>), PlanError> {
        let shape = self.shape(value);
        let lead = order.len() - shape.len();
        let own: Order = order.iter().filter(|d| **d >= lead).map(|d| d - lead).collect();
        let slot = self.want(value, &own)?;
        Ok((slot, physical(&leading_ones(shape, order.len()), order)))
    }

    fn node(&mut self, id: NodeId, node: &'a Node) -> Result<(), PlanError> {
        let graph = self.graph;
        if self.embedding(id, node)? || self.selection(node)? {
            return Ok(());
        }
        match &node.op {
            Op::Conv(window, groups) => self.conv(id, node, window, *groups),
            Op::MatMul | Op::Gemm { .. } if self.dense(id, node)? => Ok(()),
            Op::MatMul => self.matmul(node),
            Op::Gemm { .. } => self.gemm(node),
            Op::Binary(kind) => {
                if let Some((x, kind)) = self.clipping(node) {
                    return self.unary(node, kind, x);
                }
                let y = node.outputs[0];
                let (slot, order) = self.binary(node, *kind, node.inputs[0], node.inputs[1], self.shape(y))?;
                self.place(y, slot, order);
                Ok(())
            }
            Op::Unary(kind) => self.unary(node, *kind, node.inputs[0]),
            Op::BatchNormalization { epsilon } => {
                let (scale, shift) = self.batch_norm(node, *epsilon)?;
                let placed = self.placed(node.inputs[0])?;
                let sizes = physical(self.shape(node.inputs[0]), &placed.order);
                let at = if sizes.len() > 1 { position(&placed.order, 1) } else { 0 };
                let (outer, inner) = (sizes[..at].iter().product(), sizes[at + 1..].iter().product());
                let slot = self.op(node, Affine::new(outer, sizes[at], inner, scale, shift), vec![placed.slot]);
                self.place(node.outputs[0], slot, placed.order);
                Ok(())
            }
            Op::ConvTranspose(window, groups) => self.conv_transpose(id, node, window, *groups),
            Op::Resize(maps, fill) => self.resize(node, maps, *fill),
            Op::Norm(kind, axes, groups) => self.norm(node, *kind, axes, *groups),
            Op::Lrn(size, parameters) => self.lrn(node, *size, *parameters),
            Op::MaxPool(window) | Op::AveragePool(window, _) | Op::LpPool(window, _) => {
                let order = channels_last(self.shape(node.inputs[0]).len());
                let x = self.want(node.inputs[0], &order)?;
                let g = self.geometry(node, window, 1)?;
                let pool = PoolWindow {
                    input: g.input,
                    channels: g.input_channels,
                    kernel: g.kernel,
                    stride: g.stride,
                    dilation: g.dilation,
                    pads_begin: g.pads_begin,
                    output: g.output,
                };
                let slot = match &node.op {
                    Op::AveragePool(_, counted) => {
                        self.op(node, AveragePool::new(pool, *counted, window.pads_end), vec![x])
                    }
                    Op::LpPool(_, p) => self.op(node, LpPool::new(pool, *p), vec![x]),
                    _ => self.op(node, MaxPool::new(pool), vec![x]),
                };
                self.place(node.outputs[0], slot, order);
                Ok(())
            }
            Op::Reduce(kind, axes) => {
                let placed = self.placed(node.inputs[0])?;
                let shape = self.shape(node.inputs[0]);
                let at: Vec<usize> = axes.iter().map(|a| position(&placed.order, *a)).collect();
                let slot = self.op(node, Reduce::new(*kind, &physical(shape, &placed.order), &at), vec![placed.slot]);
                let kept = self.shape(node.outputs[0]).len() == shape.len();
                let order = if kept { placed.order } else { without(&placed.order, axes) };
                self.place(node.outputs[0], slot, order);
                Ok(())
            }
            Op::Reshape => {
                let (x, y) = (node.inputs[0], node.outputs[0]);
                let placed = self.placed(x)?;
                match reshaped(self.shape(x), &placed.order, self.shape(y)) {
                    Some(order) => self.place(y, placed.slot, order),
                    None => {
                        let slot = self.want(x, &row_major(self.shape(x).len()))?;
                        self.place(y, slot, row_major(self.shape(y).len()));
                    }
                }
                Ok(())
            }
            Op::Transpose(perm) => {
                let placed = self.placed(node.inputs[0])?;
                let order = placed.order.iter().map(|d| perm.iter().position(|p| p == d).unwrap_or(0)).collect();
                self.place(node.outputs[0], placed.slot, order);
                Ok(())
            }
            Op::Concat(axis) => {
                let lead = node.inputs.iter().copied().find(|i| !graph.is_constant(*i)).unwrap_or(node.inputs[0]);
                let order = self.placed(lead)?.order;
                let sizes = physical(self.shape(node.outputs[0]), &order);
                let at = position(&order, *axis);
                let y = self.slot(sizes.iter().product());
                let mut offset = 0;
                for input in &node.inputs {
                    let x = self.want(*input, &order)?;
                    let len = self.shape(*input)[*axis];
                    let op: Arc<dyn Operator> = Arc::new(Place::new(&sizes, at, offset, len));
                    self.step_to(node, StepKind::Op(op), vec![x], y, 0);
                    offset += len;
                }
                self.place(node.outputs[0], y, order);
                Ok(())
            }
            Op::Slice(starts, steps) => {
                let placed = self.placed(node.inputs[0])?;
                let order = placed.order;
                let starts: Vec<usize> = order.iter().map(|d| starts[*d]).collect();
                let steps: Vec<isize> = order.iter().map(|d| steps[*d]).collect();
                let from = physical(self.shape(node.inputs[0]), &order);
                let to = physical(self.shape(node.outputs[0]), &order);
                let slot = self.op(node, Slice::new(&from, &starts, &steps, &to), vec![placed.slot]);
                self.place(node.outputs[0], slot, order);
                Ok(())
            }
            Op::Pad(before, mode) => {
                let placed = self.placed(node.inputs[0])?;
                let order = placed.order;
                let from = physical(self.shape(node.inputs[0]), &order);
                let to = physical(self.shape(node.outputs[0]), &order);
                let before: Vec<isize> = order.iter().map(|d| before[*d]).collect();
                let after: Vec<isize> =
                    (0..from.len()).map(|i| to[i] as isize - from[i] as isize - before[i]).collect();
                let slot = self.op(node, Pad::new(&from, &before, &after, *mode), vec![placed.slot]);
                self.place(node.outputs[0], slot, order);
                Ok(())
            }
            Op::Softmax { axis, flatten, log } => {
                let mut placed = self.placed(node.inputs[0])?;
                let shape = self.shape(node.inputs[0]);
                let (outer, len, inner) = if *flatten {
                    placed.order = row_major(shape.len());
                    placed.slot = self.want(node.inputs[0], &placed.order)?;
                    (shape[..*axis].iter().product(), shape[*axis..].iter().product(), 1)
                } else {
                    let sizes = physical(shape, &placed.order);
                    let at = position(&placed.order, *axis);
                    (sizes[..at].iter().product(), sizes[at], sizes[at + 1..].iter().product())
                };
                let slot = self.op(node, Softmax::new(outer, len, inner, *log), vec![placed.slot]);
                self.place(node.outputs[0], slot, placed.order);
                Ok(())
            }
            Op::Recurrent(layer) => self.recurrent(id, node, layer),
            Op::Quantise(half, quantisation) => self.quantise(node, *half, quantisation),
            Op::DynamicQuantise(part) => self.dynamic_quantise(node, *part),
            Op::Foreign(foreign) => {
                let mut x = Vec::new();
                for input in &node.inputs {
                    x.push(self.want(*input, &row_major(self.shape(*input).len()))?);
                }
                let mut y = Vec::new();
                for output in &node.outputs {
                    let slot = self.slot(graph.values[*output].len());
                    if !graph.values[*output].element.is_float() {
                        self.whole.push(slot);
                    }
                    self.place(*output, slot, row_major(self.shape(*output).len()));
                    y.push(slot);
                }
                let (name, op_type) = (node.name.clone(), node.op_type.clone());
                self.steps.push(Step {
                    node: name,
                    op_type,
                    kind: StepKind::Foreign(foreign.clone()),
                    x,
                    y,
                    multiply_adds: 0,
                });
                Ok(())
            }
            _ => Err(self.unsupported(node, "the plan does not know it")),
        }
    }

    /// Sizes of a window over `[1, c, (h,) w]`.
    fn geometry(&self, node: &Node, window: &Window, groups: usize) -> Result<ConvGeometry, PlanError> {
        let (x, y) = (self.shape(node.inputs[0]), self.shape(node.outputs[0]));
        if !(3..=4).contains(&x.len()) || x.len() != y.len() {
            return Err(self.unsupported(node, format!("expected [1, c, w] or [1, c, h, w], found {x:?} -> {y:?}")));
        }
        if x[0] != 1 || y[0] != 1 {
            return Err(
                self.unsupported(node, format!("a batch of {} inside the network is not supported, found {x:?}", x[0]))
            );
        }
        let plane = |shape: &[usize]| if shape.len() == 3 { [1, shape[2]] } else { [shape[2], shape[3]] };
        Ok(ConvGeometry {
            input: plane(x),
            input_channels: x[1],
            output: plane(y),
            output_channels: y[1],
            kernel: window.kernel,
            stride: window.stride,
            dilation: window.dilation,
            pads_begin: window.pads_begin,
            groups,
        })
    }

    fn batch_norm(&self, node: &Node, epsilon: f32) -> Result<(Vec<f32>, Vec<f32>), PlanError> {
        let constants: Vec<_> = node.inputs[1..].iter().filter_map(|i| self.graph.values[*i].values()).collect();
        match &constants[..] {
            [gamma, beta, mean, variance] => Ok(fold(gamma, beta, mean, variance, epsilon)),
            _ => Err(self.unsupported(node, "scale, bias, mean and variance must be constants")),
        }
    }

    /// The only reader of `value`, unless the value itself is asked for.
    fn next(&self, value: ValueId) -> Option<NodeId> {
        if value == self.output { None } else { self.graph.only_consumer(value) }
    }

    fn unary(&mut self, node: &Node, kind: UnaryKind, x: ValueId) -> Result<(), PlanError> {
        let placed = self.placed(x)?;
        let len = self.slots[placed.slot];
        let unary = Unary::new(kind, len);
        let kind = match kind {
            UnaryKind::Relu | UnaryKind::Clip { .. } => StepKind::Masked(MaskedOp {
                bits: Arc::new(unary.clone()),
                output: Arc::new(unary.with_kept_output(true)),
            }),
            _ => StepKind::Op(Arc::new(unary)),
        };
        let slot = self.step(node, kind, vec![placed.slot], len, 0);
        self.place(node.outputs[0], slot, placed.order);
        Ok(())
    }

    /// What `node` is, with its input, where it is Relu or Clip, or Max or Min with one number: those are a Clip with one bound,
    /// which keeps a bit an element for its gradient and not its input.
    fn clipping(&self, node: &Node) -> Option<(ValueId, UnaryKind)> {
        let kind = match &node.op {
            Op::Unary(kind @ (UnaryKind::Relu | UnaryKind::Clip { .. })) => return Some((node.inputs[0], *kind)),
            Op::Binary(kind @ (BinaryKind::Max | BinaryKind::Min)) => *kind,
            _ => return None,
        };
        let (x, bound) = match node.inputs[..] {
            [x, bound] if self.graph.is_constant(bound) => (x, bound),
            [bound, x] if self.graph.is_constant(bound) => (x, bound),
            _ => return None,
        };
        if self.graph.is_constant(x) || self.shape(x) != self.shape(node.outputs[0]) {
            return None;
        }
        let values = self.graph.values[bound].values()?;
        match (&values[..], kind) {
            ([bound], _) if !bound.is_finite() => None,
            ([min], BinaryKind::Max) => Some((x, UnaryKind::Clip { min: *min, max: f32::INFINITY })),
            ([max], _) => Some((x, UnaryKind::Clip { min: f32::NEG_INFINITY, max: *max })),
            _ => None,
        }
    }

    /// Fuses a following Relu or Clip; returns it and the value that the layer now writes.
    fn fuse_activation(&mut self, y: ValueId) -> (Activation, ValueId) {
        let Some(next) = self.next(y) else { return (Activation::None, y) };
        let node = &self.graph.nodes[next];
        let activation = match self.clipping(node) {
            Some((x, UnaryKind::Relu)) if x == y => Activation::Relu,
            Some((x, UnaryKind::Clip { min, max })) if x == y && min < max => Activation::Clip { min, max },
            _ => return (Activation::None, y),
        };
        self.fused[next] = true;
        (activation, node.outputs[0])
    }

    fn conv(&mut self, id: NodeId, node: &'a Node, window: &Window, groups: usize) -> Result<(), PlanError> {
        let Some(layer) = self.graph.layer(id) else {
            return Err(self.unsupported(node, "its weight must be a constant of the file"));
        };
        let geometry = self.geometry(node, window, groups)?;
        let order = channels_last(self.shape(node.inputs[0]).len());
        let x = self.want(node.inputs[0], &order)?;
        let mut bias = match node.inputs.get(2) {
            Some(b) => match self.graph.values[*b].values().as_deref() {
                Some(bias) => bias.to_vec(),
                None => return Err(self.unsupported(node, "its bias must be a constant of the file")),
            },
            None => Vec::new(),
        };
        let depthwise = geometry.is_depthwise();
        let index = self.adapted_as(id);
        let mut y = node.outputs[0];
        let mut folded = None;
        if index.is_none()
            && let Some(next) = self.next(y)
            && let Op::BatchNormalization { epsilon } = self.graph.nodes[next].op
        {
            let (scale, shift) = self.batch_norm(&self.graph.nodes[next], epsilon)?;
            folded = Some(Arc::new(Folded { scale, shift }));
            self.fused[next] = true;
            y = self.graph.nodes[next].outputs[0];
        }
        let graph = self.graph;
        let integers = self.integers(&layer, &geometry, index).filter(|_| folded.is_none());
        let kernels = self.integer_kernels(&layer, &geometry, index).filter(|_| folded.is_none());
        let weights = match (integers, kernels, self.in_file(&layer, &geometry, index)) {
            (Some(integers), ..) => Packed::integers(integers, bias),
            (None, Some(matrix), _) => Packed::Kernels(Arc::new(IntegerKernels { matrix, bias })),
            (None, None, Some(file)) => Packed::InFile(file, bias),
            (None, None, None) => {
                Packed::Floats(self.pack((graph.original(id), folded.is_some()), &geometry, index, || {
                    let file = graph.values[layer.weight].values().unwrap_or_default();
                    let mut w = vec![0.0; file.len()];
                    if depthwise {
                        layer.weight_to_taps(&file, &mut w);
                    } else {
                        layer.weight_to_kernel(&file, &mut w);
                    }
                    let layer = |w: Vec<f32>, bias| {
                        if depthwise {
                            ConvWeights { w, bias, ..ConvWeights::default() }
                        } else {
                            ConvWeights::new(&geometry, &w, bias)
                        }
                    };
                    let Some(Folded { scale, shift }) = folded.as_deref() else { return layer(w, bias) };
                    let per_group = geometry.group_outputs();
                    for (at, w) in w.iter_mut().enumerate() {
                        let channel = if depthwise {
                            at % geometry.output_channels
                        } else {
                            at / (geometry.patch() * per_group) * per_group + at % per_group
                        };
                        *w *= scale[channel];
                    }
                    bias.resize(geometry.output_channels, 0.0);
                    bias.iter_mut().zip(scale.iter().zip(shift)).for_each(|(b, (s, t))| *b = *b * s + t);
                    layer(w, bias)
                }))
            }
        };
        let sharing = self.sharing(id, folded);
        let slot = self.layer(node, geometry.clone(), x, weights, 1.0, index, sharing, &mut y);
        self.place(y, slot, order);
        Ok(())
    }

    /// The adapted layer that node `id` is, or is a copy of.
    fn adapted_as(&self, id: NodeId) -> Option<usize> {
        let original = self.graph.original(id);
        self.adapted.iter().position(|(s, _)| s.node == original)
    }

    /// The weights of a layer as `build` packs them, the first time that they are asked for under `key`.
    fn pack(
        &mut self,
        key: (NodeId, bool),
        geometry: &ConvGeometry,
        index: Option<usize>,
        build: impl FnOnce() -> ConvWeights,
    ) -> Arc<ConvWeights> {
        let trains = !self.adapted.is_empty();
        let tiled = self.tiled(geometry);
        let pack = || {
            let mut weights = build();
            if index.is_none() && !geometry.is_depthwise() {
                let conv = Conv { tiled, ..Conv::new(geometry.clone(), Activation::None) };
                weights.derive(&conv, trains);
                // Where factors come with the call, one may be merged with the weights.
                if tiled.is_some() && self.shared.is_empty() {
                    weights.w = Vec::new();
                }
            }
            Arc::new(weights)
        };
        self.packed.entry((key.0, key.1, tiled)).or_insert_with(pack).clone()
    }

    /// Adds the step of a convolution or dense layer, with the activation behind `y` fused; `y` becomes what it writes.
    fn layer(
        &mut self,
        node: &Node,
        geometry: ConvGeometry,
        x: SlotId,
        weights: Packed,
        weight_scale: f32,
        index: Option<usize>,
        sharing: Option<Sharing>,
        y: &mut ValueId,
    ) -> SlotId {
        let (activation, written) = self.fuse_activation(*y);
        *y = written;
        let (len, multiply_adds) = (geometry.output_len(), geometry.multiply_adds());
        let depthwise = geometry.is_depthwise();
        let tiled = self.tiled(&geometry).filter(|_| matches!(weights, Packed::Floats(_)));
        let conv = Conv { tiled, ..Conv::new(geometry, activation) };
        let weights = match (weights, sharing) {
            (Packed::Floats(weights), Some(sharing)) => {
                let kind = if depthwise { SharedWeights::Depthwise } else { SharedWeights::Floats };
                return self.shared_layer(node, conv, x, kind(weights), weight_scale, sharing);
            }
            (Packed::Integers(weights), Some(sharing)) => {
                return self.shared_layer(node, conv, x, SharedWeights::Integers(weights), weight_scale, sharing);
            }
            (Packed::Floats(weights), None) => weights,
            (Packed::Integers(weights), None) => {
                return self.integer_layer(node, conv, x, weights, index, multiply_adds);
            }
            (Packed::Kernels(weights), _) => return self.integer_conv(node, conv, x, weights, index, multiply_adds),
            (Packed::InFile(InFile { file, index, rank, scale }, bias), _) => {
                self.sites[index] = Some(SiteStep::in_file(conv, file, bias, rank, scale));
                return self.step(node, StepKind::Site(index), vec![x], len, multiply_adds);
            }
        };
        if let Some(index) = index {
            let adaptation = self.adapted[index].1;
            self.sites[index] = Some(SiteStep::new(conv, depthwise, weights, weight_scale, adaptation));
            return self.step(node, StepKind::Site(index), vec![x], len, multiply_adds);
        }
        let kept = Conv { output_kept: true, ..conv.clone() };
        let (bits, output): (Arc<dyn Operator>, Arc<dyn Operator>) = if depthwise {
            (
                Arc::new(FrozenDepthwise { conv, weights: weights.clone() }),
                Arc::new(FrozenDepthwise { conv: kept, weights }),
            )
        } else {
            (Arc::new(FrozenConv { conv, weights: weights.clone() }), Arc::new(FrozenConv { conv: kept, weights }))
        };
        self.step(node, StepKind::Masked(MaskedOp { bits, output }), vec![x], len, multiply_adds)
    }

    /// A MatMul or Gemm with one constant matrix; false if it is none.
    fn dense(&mut self, id: NodeId, node: &'a Node) -> Result<bool, PlanError> {
        let Some(layer) = self.graph.layer(id) else { return Ok(false) };
        let weight_first = self.graph.is_constant(node.inputs[0]);
        let input = node.inputs[if weight_first { 1 } else { 0 }];
        let placed = self.placed(input)?;
        let rank = self.shape(input).len();
        let (alpha, trans_a) = match node.op {
            Op::Gemm { alpha, trans_a, .. } => (alpha, trans_a),
            _ => (1.0, false),
        };
        // The features must be the last dimension in memory; the order of the others does not matter.
        let features = if trans_a || (weight_first && rank > 1) { rank.saturating_sub(2) } else { rank - 1 };
        let mut order: Order = placed.order.iter().copied().filter(|d| *d != features).collect();
        order.push(features);
        let x = self.want(input, &order)?;
        let rows = self.graph.values[input].len() / layer.inputs.max(1);
        let geometry = ConvGeometry::dense(rows, layer.inputs, layer.outputs);

        let index = self.adapted_as(id);
        let whole = index.is_some_and(|i| self.adapted[i].1 == Adaptation::Full);
        let mut y = node.outputs[0];
        let mut bias = Vec::new();
        let mut rest = None;
        match node.op {
            Op::Gemm { beta, .. } => {
                if let Some(c) = node.inputs.get(2) {
                    let constant = self.graph.values[*c].values().filter(|c| c.len() == layer.outputs);
                    match constant {
                        Some(c) if beta == 1.0 && (!whole || layer_has_bias(self.graph, &layer)) => bias = c.to_vec(),
                        _ => rest = Some((*c, beta)),
                    }
                }
            }
            _ if !weight_first && y != self.output => {
                if let Some((add, b)) = self.graph.bias_after(id, layer.outputs)
                    && (!whole || layer_has_bias(self.graph, &layer))
                {
                    bias = self.graph.values[b].values().as_deref().unwrap_or_default().to_vec();
                    self.fused[add] = true;
                    y = self.graph.nodes[add].outputs[0];
                }
            }
            _ => {}
        }
        let graph = self.graph;
        let integers = self.integers(&layer, &geometry, index).filter(|_| alpha == 1.0);
        let weights = match (integers, self.in_file(&layer, &geometry, index).filter(|_| alpha == 1.0)) {
            (Some(integers), _) => Packed::integers(integers, bias),
            (None, Some(file)) => Packed::InFile(file, bias),
            (None, None) => Packed::Floats(self.pack((graph.original(id), !bias.is_empty()), &geometry, index, || {
                let file = graph.values[layer.weight].values().unwrap_or_default();
                let mut w = vec![0.0; file.len()];
                layer.weight_to_kernel(&file, &mut w);
                w.iter_mut().for_each(|w| *w *= alpha);
                ConvWeights::new(&geometry, &w, bias)
            })),
        };
        // The order of the output: as the input, with features in the place of features.
        let order: Order = match node.op {
            Op::Gemm { .. } => row_major(2),
            _ if rank == 1 => row_major(self.shape(y).len()),
            _ => order,
        };
        let sharing = self.sharing(id, None);
        if let Some((c, beta)) = rest {
            // The plan must not fuse the activation before the term is added.
            let product = self.layer_plain(node, geometry, x, weights, alpha, index, sharing);
            let slot = self.add_scaled(node, product, &row_major(2), c, beta, y)?;
            self.place(y, slot, row_major(2));
        } else {
            let slot = self.layer(node, geometry, x, weights, alpha, index, sharing, &mut y);
            self.place(y, slot, order);
        }
        Ok(true)
    }

    fn layer_plain(
        &mut self,
        node: &Node,
        geometry: ConvGeometry,
        x: SlotId,
        weights: Packed,
        weight_scale: f32,
        index: Option<usize>,
        sharing: Option<Sharing>,
    ) -> SlotId {
        let mut asked = self.output;
        self.layer(node, geometry, x, weights, weight_scale, index, sharing, &mut asked)
    }

    /// `product + beta · c` in `order`, with the shape of value `y`.
    fn add_scaled(
        &mut self,
        node: &Node,
        product: SlotId,
        order: &[usize],
        c: ValueId,
        beta: f32,
        y: ValueId,
    ) -> Result<SlotId, PlanError> {
        let shape = self.shape(y);
        let sizes = physical(shape, order);
        if let Some(values) = self.graph.values[c].values() {
            let own = leading_ones(self.shape(c), shape.len());
            let scaled: Vec<f32> = permuted(&values, &own, order).iter().map(|v| v * beta).collect();
            let op = Binary::with_constant(BinaryKind::Add, &sizes, scaled.into(), &physical(&own, order), false);
            return Ok(self.op(node, op, vec![product]));
        }
        let (mut c, c_sizes) = self.want_broadcast(c, order)?;
        if beta != 1.0 {
            let op =
                Binary::with_constant(BinaryKind::Mul, &c_sizes, vec![beta].into(), &vec![1; c_sizes.len()], false);
            c = self.op(node, op, vec![c]);
        }
        Ok(self.op(node, Binary::new(BinaryKind::Add, &sizes, &c_sizes), vec![product, c]))
    }

    /// A product of two activations.
    fn matmul(&mut self, node: &Node) -> Result<(), PlanError> {
        let (a, b, y) = (node.inputs[0], node.inputs[1], node.outputs[0]);
        let (mut a_shape, mut b_shape) = (self.shape(a).to_vec(), self.shape(b).to_vec());
        let (a, b) = (self.want(a, &row_major(a_shape.len()))?, self.want(b, &row_major(b_shape.len()))?);
        if a_shape.len() == 1 {
            a_shape.insert(0, 1);
        }
        if b_shape.len() == 1 {
            b_shape.push(1);
        }
        let op = MatMul::new(&a_shape, &b_shape);
        let len = op.output_len();
        let multiply_adds = len as u64 * a_shape[a_shape.len() - 1] as u64;
        let slot = self.step(node, StepKind::Op(Arc::new(op)), vec![a, b], len, multiply_adds);
        self.place(y, slot, row_major(self.shape(y).len()));
        Ok(())
    }

    /// A Gemm whose b is an activation.
    fn gemm(&mut self, node: &Node) -> Result<(), PlanError> {
        let Op::Gemm { alpha, beta, trans_a, trans_b } = node.op else { return Ok(()) };
        let (a, b, y) = (node.inputs[0], node.inputs[1], node.outputs[0]);
        let order = |transposed| if transposed { vec![1, 0] } else { vec![0, 1] };
        let (a_order, b_order) = (order(trans_a), order(trans_b));
        let (a_shape, b_shape) = (physical(self.shape(a), &a_order), physical(self.shape(b), &b_order));
        let (a, b) = (self.want(a, &a_order)?, self.want(b, &b_order)?);
        let op = MatMul::new(&a_shape, &b_shape);
        let len = op.output_len();
        let multiply_adds = len as u64 * a_shape[1] as u64;
        let mut slot = self.step(node, StepKind::Op(Arc::new(op)), vec![a, b], len, multiply_adds);
        if alpha != 1.0 {
            let sizes = self.shape(y);
            let op = Binary::with_constant(BinaryKind::Mul, sizes, vec![alpha].into(), &[1, 1], false);
            slot = self.op(node, op, vec![slot]);
        }
        if let Some(c) = node.inputs.get(2) {
            slot = self.add_scaled(node, slot, &row_major(2), *c, beta, y)?;
        }
        self.place(y, slot, row_major(2));
        Ok(())
    }

    fn binary(
        &mut self,
        node: &Node,
        kind: BinaryKind,
        a: ValueId,
        b: ValueId,
        shape: &[usize],
    ) -> Result<(SlotId, Order), PlanError> {
        let rank = shape.len();
        let graph = self.graph;
        // The order of the operand that has the output's shape, so that it need not be permuted.
        let lead = [a, b].into_iter().find(|v| !graph.is_constant(*v) && self.shape(*v) == shape);
        let order = match lead {
            Some(lead) => self.placed(lead)?.order,
            None => row_major(rank),
        };
        let constant = [b, a].into_iter().find(|v| graph.is_constant(*v));
        let slot = if let Some(constant) = constant {
            let other = if constant == b { a } else { b };
            let (x, x_sizes) = self.want_broadcast(other, &order)?;
            let own = leading_ones(self.shape(constant), rank);
            let values = permuted(graph.values[constant].values().as_deref().unwrap_or_default(), &own, &order);
            let first = constant != b;
            self.op(node, Binary::with_constant(kind, &x_sizes, values.into(), &physical(&own, &order), first), vec![x])
        } else {
            let (x, x_sizes) = self.want_broadcast(a, &order)?;
            let (z, z_sizes) = self.want_broadcast(b, &order)?;
            self.op(node, Binary::new(kind, &x_sizes, &z_sizes), vec![x, z])
        };
        Ok((slot, order))
    }
}

fn layer_has_bias(graph: &Graph, layer: &Site) -> bool {
    layer.kind == SiteKind::Dense && layer.bias.is_some_and(|b| graph.values[b].is_in_file())
}

fn leading_ones(shape: &[usize], rank: usize) -> Vec<usize> {
    let mut out = vec![1; rank - shape.len()];
    out.extend_from_slice(shape);
    out
}

/// `order` of a value after `axes` are taken out.
fn without(order: &[usize], axes: &[usize]) -> Order {
    order.iter().filter(|d| !axes.contains(d)).map(|d| d - axes.iter().filter(|a| *a < d).count()).collect()
}
