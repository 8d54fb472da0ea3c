//! ONNX nodes → graph nodes, one by one, for opsets 7 and up.

mod center;
mod contrib;
mod conv_transpose;
mod einsum;
mod elementwise;
mod norm;
mod quantised;
mod recurrent;
mod resize;
mod select;
mod window;

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};
use tract_onnx::tract_hir::internal::Tensor;

use super::OnnxError;
use super::attributes::{Attributes, axis};
use super::foreign::TractNode;
use super::load::{Facts, Names, brief, is_possible, to_i64, value};
use super::operators::find;
use crate::graph::{Element, Graph, Node, Op, Source, Value, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::movement::PadMode;
use crate::ops::reduce::ReduceKind;
use crate::ops::unary::UnaryKind;

pub(super) use resize::resized;

const CONTROL_FLOW: &str =
    "nodes with a graph inside (If, Loop, Scan) are not supported; export the model without control flow";

pub(super) struct Converter<'a> {
    facts: &'a Facts<'a>,
    opset: i64,
    proto: &'a ModelProto,
    graph: Graph,
    names: Names,
    /// Constant values as tract has them, for shapes, axes and the like.
    constants: HashMap<ValueId, Arc<Tensor>>,
    rescaled: quantised::Rescaled,
}

impl<'a> Converter<'a> {
    pub(super) fn new(facts: &'a Facts<'a>, opset: i64, proto: &'a ModelProto) -> Self {
        let rescaled = proto.graph.as_ref().map(|g| quantised::Rescaled::find(g, facts)).unwrap_or_default();
        let (graph, names, constants) = (Graph::default(), Names::new(), HashMap::new());
        Self { facts, opset, proto, graph, names, constants, rescaled }
    }

    /// The graph; `outputs` are the names asked for.
    pub(super) fn finish(mut self, outputs: &[String]) -> Graph {
        self.drop_integers(outputs);
        self.graph
    }

    pub(super) fn run(&mut self, file: &GraphProto, input: &str) -> Result<(), OnnxError> {
        for tensor in &file.initializer {
            self.add_value(&tensor.name, true)?;
        }
        for info in &file.input {
            if !self.names.contains_key(&info.name) {
                self.add_value(&info.name, false)?;
            }
        }
        self.graph.inputs = vec![self.names[input]];
        for node in &file.node {
            self.node(node)?;
        }
        Ok(())
    }

    fn add_value(&mut self, name: &str, stored: bool) -> Result<ValueId, OnnxError> {
        let unknown = || {
            OnnxError::Analysis(format!(
                "shape or type of tensor `{name}` stays unknown; fix the input shape in model.toml"
            ))
        };
        let (shape, dt, constant) = self.facts.of(name).ok_or_else(unknown)?;
        let dims: Option<Vec<i64>> = shape.iter().map(|d| i64::try_from(*d).ok()).collect();
        if !dims.is_some_and(|d| is_possible(&d)) {
            let what = format!(
                "tensor `{name}` would have shape {shape:?}, which no memory holds; give a smaller input shape"
            );
            return Err(OnnxError::Analysis(what));
        }
        // A string or other non-numeric constant has no f32 form; it stays an activation that nothing reads.
        self.graph.values.push(value(name, shape, dt, constant.as_deref(), stored));
        let id = self.graph.values.len() - 1;
        self.names.insert(name.into(), id);
        if let Some(constant) = constant {
            self.constants.insert(id, constant);
        }
        Ok(id)
    }

    /// The node's name; that of its first output where it has none.
    fn name(node: &NodeProto) -> String {
        let first = node.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str);
        if node.name.is_empty() { first.to_owned() } else { node.name.clone() }
    }

    fn error(&self, node: &NodeProto, what: impl Into<String>) -> OnnxError {
        OnnxError::Node { node: Self::name(node), op: node.op_type.clone(), what: what.into() }
    }

    fn node(&mut self, node: &NodeProto) -> Result<(), OnnxError> {
        let name = Self::name(node);
        let mut outputs = Vec::new();
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            let stored = node.op_type == "Constant";
            match self.add_value(output, stored) {
                Ok(id) => outputs.push(id),
                // An unused second output (a dropout mask) may stay unknown.
                Err(_) if !outputs.is_empty() => break,
                Err(_) if Attributes(node).has_graph() => return Err(self.error(node, CONTROL_FLOW)),
                Err(e) => return Err(self.untold(node, output).unwrap_or(e)),
            }
        }
        let inputs: Vec<Option<ValueId>> = node.input.iter().map(|i| self.names.get(i).copied()).collect();
        if outputs.is_empty() || outputs.iter().all(|o| self.graph.is_constant(*o)) {
            if let ([y], Some(Some(x))) = (outputs.as_slice(), inputs.first()) {
                self.graph.values[*y].source = self.source(node, *x);
                self.graph.values[*y].quantised = self.quantised_constant(node, *x);
            }
            return Ok(());
        }
        if self.lower_quantised(node, &name, &inputs, &outputs)? {
            return Ok(());
        }
        let standard = node.domain.is_empty() || node.domain == "ai.onnx";
        let float = outputs.first().is_some_and(|o| self.graph.values[*o].element.is_float());
        let lowered = match node.domain.as_str() {
            _ if !float && !self.is_exact(node, &inputs) => false,
            _ if standard => self.lower(node, &name, &inputs, &outputs)?,
            "com.microsoft" => self.lower_contrib(node, &name, &inputs, &outputs)?,
            _ => false,
        };
        if !lowered {
            self.foreign(node, name, &inputs, outputs)?;
        }
        Ok(())
    }

    /// Where a weight comes from that stands behind Identity, a Cast to a wider float, or the transpose of a matrix.
    fn source(&self, node: &NodeProto, x: ValueId) -> Option<Source> {
        let matrix = self.graph.values[x].shape.len() == 2;
        let perm = Attributes(node).ints("perm");
        let transposed = match node.op_type.as_str() {
            "Identity" => false,
            "Cast" if self.graph.values[x].element.is_float() && self.is_wider(node) => false,
            "Transpose" if matrix => perm.is_none_or(|p| p == [1, 0]),
            _ => return None,
        };
        let behind = self.graph.values[x].source;
        let value = behind.map_or(x, |s| s.value);
        Some(Source { value, transposed: transposed != behind.is_some_and(|s| s.transposed) })
    }

    /// Whether a Cast keeps every value: to 32 bits or more.
    fn is_wider(&self, node: &NodeProto) -> bool {
        use tract_onnx::pb::tensor_proto::DataType;
        Attributes(node).int("to").is_some_and(|to| [DataType::Float as i64, DataType::Double as i64].contains(&to))
    }

    /// Why nothing is known about a node: an operator that neither the loader nor tract knows, or one in a form that
    /// tract does not take.
    fn untold(&self, node: &NodeProto, output: &str) -> Option<OnnxError> {
        let what = match self.facts.refused(output) {
            Some(why) => format!("this form of the operator is not supported: {why}"),
            None if !tract_onnx::onnx().op_register.0.contains_key(&node.op_type) => {
                match find(&node.domain, &node.op_type).map(|row| row.note) {
                    Some(note) => format!("this form of the operator is not supported; what is: {note}"),
                    None => "the loader does not know this operator; export the model with standard operators".into(),
                }
            }
            None => return None,
        };
        Some(self.error(node, what))
    }

    fn foreign(
        &mut self,
        node: &NodeProto,
        name: String,
        inputs: &[Option<ValueId>],
        outputs: Vec<ValueId>,
    ) -> Result<(), OnnxError> {
        if Attributes(node).has_graph() {
            return Err(self.error(node, CONTROL_FLOW));
        }
        let mut activations = Vec::new();
        let mut constants = Vec::new();
        let mut ids = Vec::new();
        for (text, id) in node.input.iter().zip(inputs) {
            let Some(id) = id else { continue };
            // What is held as integers is not among tract's constants.
            let held =
                || self.graph.values[*id].values().map(|v| Tensor::from_shape(&self.shape(*id), &v).map(Arc::new));
            if let Some(constant) = self.constants.get(id).cloned().map(Ok).or_else(held) {
                if !constants.iter().any(|(n, _): &(String, Arc<Tensor>)| n == text) {
                    constants.push((text.clone(), constant.map_err(|e| self.error(node, brief(&e)))?));
                }
            } else if !ids.contains(id) {
                let (shape, dt, _) = self.facts.of(text).ok_or_else(|| self.error(node, "its input is unknown"))?;
                activations.push((text.clone(), shape, dt));
                ids.push(*id);
            }
        }
        if node.op_type == "BitShift" && !self.shifts_inside(inputs.get(1).copied().flatten()) {
            return Err(self.error(node, "it must shift by a constant from 0 to 7 bits; export the model without it"));
        }
        if let Some(error) = node.output.iter().find(|o| !o.is_empty()).and_then(|o| self.untold(node, o)) {
            return Err(error);
        }
        let sizes = outputs.iter().map(|y| self.graph.values[*y].len()).collect();
        let built = TractNode::new(node, self.proto, &activations, &constants, sizes);
        let op = built.map_err(|e| self.error(node, format!("this operator cannot run: {e}")))?;
        let op_type = node.op_type.clone();
        self.graph.nodes.push(Node { name, op_type, op: Op::Foreign(Arc::new(op)), inputs: ids, outputs });
        Ok(())
    }

    fn push(&mut self, node: &NodeProto, name: &str, op: Op, inputs: Vec<ValueId>, output: ValueId) {
        self.graph.nodes.push(Node {
            name: name.into(),
            op_type: node.op_type.clone(),
            op,
            inputs,
            outputs: vec![output],
        });
    }

    fn shape(&self, value: ValueId) -> Vec<usize> {
        self.graph.values[value].shape.clone()
    }

    fn ints(&self, value: Option<ValueId>) -> Option<Vec<i64>> {
        to_i64(self.constants.get(&value?)?)
    }

    fn scalar(&self, value: Option<ValueId>) -> Option<f32> {
        self.graph.values[value?].values().as_deref()?.first().copied()
    }

    /// Lowers a node of the standard domain; false if it must run through tract.
    fn lower(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let y = outputs[0];
        let input = |i: usize| inputs.get(i).copied().flatten();
        let Some(x) = input(0) else { return Ok(false) };
        let x_shape = self.shape(x);
        let rank = x_shape.len();
        let present: Vec<ValueId> = inputs.iter().flatten().copied().collect();
        let unary = |kind| Op::Unary(kind);
        let op = match node.op_type.as_str() {
            "Conv" => {
                let Some(weight) = input(1).map(|w| self.shape(w)) else {
                    return Err(self.error(node, "it has no weight; export the model again"));
                };
                let constant = present[1..].iter().all(|i| self.graph.is_constant(*i));
                if !(3..=4).contains(&rank) || weight.len() != rank || !constant {
                    return Ok(false);
                }
                let kernel: Vec<usize> = weight[2..].to_vec();
                let groups = usize::try_from(attributes.int("group").unwrap_or(1)).unwrap_or(0).max(1);
                let fits = weight[0].is_multiple_of(groups) && weight[1].checked_mul(groups) == Some(x_shape[1]);
                if !fits {
                    return Err(self.error(
                        node,
                        format!("weight {weight:?} with {groups} groups does not fit input {x_shape:?}"),
                    ));
                }
                let window = self.window(node, &kernel, &x_shape, &self.shape(y))?;
                self.push_conv(node, name, (window, groups), &present, y);
                return Ok(true);
            }
            "MatMul" => Op::MatMul,
            "Gemm" => Op::Gemm {
                alpha: attributes.float("alpha").unwrap_or(1.0),
                beta: attributes.float("beta").unwrap_or(1.0),
                trans_a: attributes.int("transA").unwrap_or(0) != 0,
                trans_b: attributes.int("transB").unwrap_or(0) != 0,
            },
            "Add" => Op::Binary(BinaryKind::Add),
            "Sub" => Op::Binary(BinaryKind::Sub),
            "Mul" => Op::Binary(BinaryKind::Mul),
            "Div" => Op::Binary(BinaryKind::Div),
            "Pow" => Op::Binary(BinaryKind::Pow),
            "Max" | "Min" | "Sum" => {
                let kind = match node.op_type.as_str() {
                    "Max" => BinaryKind::Max,
                    "Min" => BinaryKind::Min,
                    _ => BinaryKind::Add,
                };
                self.variadic(node, name, kind, &present, y);
                return Ok(true);
            }
            "BatchNormalization" => {
                let constant = present.len() == 5 && present[1..].iter().all(|i| self.graph.is_constant(*i));
                if !constant || attributes.int("training_mode").unwrap_or(0) != 0 {
                    return Err(self.error(
                        node,
                        "only inference with constant statistics is supported; export the model in evaluation mode",
                    ));
                }
                Op::BatchNormalization { epsilon: attributes.float("epsilon").unwrap_or(1e-5) }
            }
            "Relu" => unary(UnaryKind::Relu),
            "LeakyRelu" => unary(UnaryKind::LeakyRelu { alpha: attributes.float("alpha").unwrap_or(0.01) }),
            "Sigmoid" => unary(UnaryKind::Sigmoid),
            "Tanh" => unary(UnaryKind::Tanh),
            "Neg" => unary(UnaryKind::Neg),
            "Abs" => unary(UnaryKind::Abs),
            "Exp" => unary(UnaryKind::Exp),
            "Log" => unary(UnaryKind::Log),
            "Sqrt" => unary(UnaryKind::Sqrt),
            "Reciprocal" => unary(UnaryKind::Reciprocal),
            "Clip" => {
                let bound = |i: usize, attribute: &str, open: f32| match input(i) {
                    Some(id) => self.scalar(Some(id)),
                    None => Some(attributes.float(attribute).unwrap_or(open)),
                };
                let (Some(min), Some(max)) = (bound(1, "min", f32::NEG_INFINITY), bound(2, "max", f32::INFINITY))
                else {
                    return Ok(false);
                };
                unary(UnaryKind::Clip { min, max })
            }
            "MaxPool" | "AveragePool" | "LpPool" => return self.lower_pool(node, name, x, outputs),
            "GlobalAveragePool" => Op::Reduce(ReduceKind::Mean, (2..rank).collect()),
            "GlobalLpPool" => match attributes.int("p").unwrap_or(2) {
                1 => Op::Reduce(ReduceKind::L1, (2..rank).collect()),
                2 => Op::Reduce(ReduceKind::L2, (2..rank).collect()),
                _ => return Ok(false),
            },
            "GlobalMaxPool" => Op::Reduce(ReduceKind::Max, (2..rank).collect()),
            "Dropout" if self.drops(inputs) => {
                return Err(self.error(node, "it drops values as in training; export the model in evaluation mode"));
            }
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Dropout" => {
                let asked = (node.op_type == "Reshape").then(|| self.ints(input(1))).flatten();
                let given = self.shape(y);
                let fits = |asked: &Vec<i64>| {
                    let same = |(asked, given): (&i64, &usize)| *asked == *given as i64 || [-1, 0].contains(asked);
                    let open = asked.iter().filter(|d| **d == -1).count();
                    open <= 1 && asked.len() == given.len() && asked.iter().zip(&given).all(same)
                };
                if asked.as_ref().is_some_and(|asked| !fits(asked)) {
                    return Err(
                        self.error(node, format!("{x_shape:?} cannot have the shape {:?}", asked.unwrap_or_default()))
                    );
                }
                if self.graph.values[x].len() != self.graph.values[y].len() {
                    let what = format!("{x_shape:?} does not have as many values as {:?}", self.shape(y));
                    return Err(self.error(node, what));
                }
                if let (Some(mask), "Dropout") = (outputs.get(1), node.op_type.as_str()) {
                    // Nothing is dropped.
                    let ones = vec![1.0; self.graph.values[*mask].len()];
                    self.graph.values[*mask].constant = Some(ones.into());
                }
                Op::Reshape
            }
            "Cast" | "CastLike" => {
                // Whole numbers and truth values are held as f32 already.
                Op::Reshape
            }
            "Transpose" => {
                let perm = match attributes.ints("perm") {
                    Some(perm) => perm.iter().map(|p| *p as usize).collect(),
                    None => (0..rank).rev().collect(),
                };
                Op::Transpose(perm)
            }
            "Concat" => {
                let at = axis(attributes.int("axis").unwrap_or(1), self.shape(y).len());
                Op::Concat(at.ok_or_else(|| self.error(node, "its axis is out of range"))?)
            }
            "Slice" => match self.slice(node, &attributes, inputs, &x_shape)? {
                Some(op) => op,
                None => return Ok(false),
            },
            "Split" => {
                let at = axis(attributes.int("axis").unwrap_or(0), rank)
                    .ok_or_else(|| self.error(node, "its axis is out of range"))?;
                let mut start = 0;
                for (part, output) in outputs.iter().enumerate() {
                    let mut starts = vec![0; rank];
                    starts[at] = start;
                    start += self.shape(*output)[at];
                    let name = if part == 0 { name.to_owned() } else { format!("{name}~{part}") };
                    self.push(node, &name, Op::Slice(starts, vec![1; rank]), vec![x], *output);
                }
                return Ok(true);
            }
            "Gather" => {
                // One index along an axis is a slice.
                let at = axis(attributes.int("axis").unwrap_or(0), rank)
                    .ok_or_else(|| self.error(node, "its axis is out of range"))?;
                let indices = self.ints(input(1)).filter(|i| i.len() == 1);
                let Some(index) = indices.and_then(|i| axis(i[0], x_shape[at])) else {
                    return self.lower_selection(node, name, inputs, y);
                };
                let mut starts = vec![0; rank];
                starts[at] = index;
                let mut shape = x_shape;
                shape[at] = 1;
                let cut = self.temporary(node, name, shape, x);
                self.push(node, &format!("{name}~0"), Op::Slice(starts, vec![1; rank]), vec![x], cut);
                self.push(node, name, Op::Reshape, vec![cut], y);
                return Ok(true);
            }
            "Pad" => match self.pad(node, &attributes, inputs, rank)? {
                Some(op) => op,
                None => return Ok(false),
            },
            "Softmax" | "LogSoftmax" => {
                let flatten = self.opset < 13;
                let at = attributes.int("axis").unwrap_or(if flatten { 1 } else { -1 });
                let axis = axis(at, rank.max(1)).ok_or_else(|| self.error(node, "its axis is out of range"))?;
                Op::Softmax { axis, flatten, log: node.op_type == "LogSoftmax" }
            }
            _ => {
                return Ok(self.lower_elementwise(node, name, inputs, y)?
                    || self.lower_reduction(node, name, inputs, y)?
                    || self.lower_selection(node, name, inputs, y)?
                    || self.lower_einsum(node, name, inputs, y)?
                    || self.lower_recurrent(node, name, inputs, outputs)?
                    || self.lower_norm(node, name, inputs, outputs)?
                    || self.lower_conv_transpose(node, name, inputs, y)?
                    || self.lower_resize(node, name, inputs, y)?
                    || self.lower_center_crop_pad(node, name, inputs, y)?);
            }
        };
        let takes = match &op {
            Op::Reshape | Op::Unary(_) | Op::Reduce(..) | Op::Slice(..) | Op::Pad(..) => vec![x],
            _ => present,
        };
        self.push(node, name, op, takes, y);
        Ok(true)
    }

    /// Whether every shift is one that each integer has: tract takes the others modulo the width.
    fn shifts_inside(&self, shift: Option<ValueId>) -> bool {
        self.ints(shift).is_some_and(|shifts| shifts.iter().all(|s| (0..8).contains(s)))
    }

    /// Whether a node on whole numbers or truth values that tract does not take is computed here just as well.
    fn is_exact(&self, node: &NodeProto, inputs: &[Option<ValueId>]) -> bool {
        let Some(x) = inputs.first().copied().flatten().map(|x| &self.graph.values[x]) else { return false };
        match node.op_type.as_str() {
            "Pad" => x.element == Element::Integer,
            "ReduceMax" | "ReduceMin" => x.element == Element::Bool && !x.is_empty(),
            _ => false,
        }
    }

    /// Whether a Dropout is in training mode, or may be, with a ratio that is not 0.
    fn drops(&self, inputs: &[Option<ValueId>]) -> bool {
        let is_zero = |i: usize| inputs.get(i).copied().flatten().map(|id| self.scalar(Some(id)) == Some(0.0));
        is_zero(2) == Some(false) && is_zero(1) != Some(true)
    }

    /// A value between two nodes that one ONNX node becomes.
    fn temporary(&mut self, node: &NodeProto, name: &str, shape: Vec<usize>, like: ValueId) -> ValueId {
        let element = self.graph.values[like].element;
        let name = format!("{name}~{}~{}", node.op_type, self.graph.values.len());
        self.graph.values.push(Value {
            name,
            shape,
            element,
            constant: None,
            stored: false,
            source: None,
            quantised: None,
        });
        self.graph.values.len() - 1
    }

    /// A constant that the file does not have.
    fn new_constant(&mut self, node: &NodeProto, name: &str, shape: Vec<usize>, values: Vec<f32>) -> ValueId {
        let name = format!("{name}~{}~{}", node.op_type, self.graph.values.len());
        let (element, constant) = (Element::F32, Some(values.into()));
        self.graph.values.push(Value { name, shape, element, constant, stored: false, source: None, quantised: None });
        self.graph.values.len() - 1
    }

    /// Max, Min and Sum of any number of inputs, two at a time from the left.
    fn variadic(&mut self, node: &NodeProto, name: &str, kind: BinaryKind, inputs: &[ValueId], y: ValueId) {
        let [first, rest @ ..] = inputs else { return };
        if rest.is_empty() {
            return self.push(node, name, Op::Reshape, vec![*first], y);
        }
        let mut left = *first;
        for (i, right) in rest.iter().enumerate() {
            let last = i + 1 == rest.len();
            let shape = broadcast(&self.shape(left), &self.shape(*right));
            let out = if last { y } else { self.temporary(node, name, shape, left) };
            let part = if last { name.to_owned() } else { format!("{name}~{i}") };
            self.push(node, &part, Op::Binary(kind), vec![left, *right], out);
            left = out;
        }
    }

    fn axes(&self, node: &NodeProto, given: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OnnxError> {
        let Some(given) = given else { return Ok((0..rank).collect()) };
        let axes: Option<Vec<usize>> = given.iter().map(|a| axis(*a, rank)).collect();
        axes.ok_or_else(|| self.error(node, format!("axes {given:?} do not fit rank {rank}")))
    }

    fn slice(
        &self,
        node: &NodeProto,
        attributes: &Attributes,
        inputs: &[Option<ValueId>],
        shape: &[usize],
    ) -> Result<Option<Op>, OnnxError> {
        let rank = shape.len();
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (starts, axes, steps) = if self.opset < 10 {
            (attributes.ints("starts").map(<[i64]>::to_vec), attributes.ints("axes").map(<[i64]>::to_vec), None)
        } else {
            let given = |i: usize| input(i).map(|id| self.ints(Some(id)));
            // A start or step that is only known at run time cannot be planned.
            if [3, 4].iter().any(|i| given(*i) == Some(None)) {
                return Ok(None);
            }
            (self.ints(input(1)), given(3).flatten(), given(4).flatten())
        };
        let Some(starts) = starts else { return Ok(None) };
        let axes = match axes {
            Some(axes) => self.axes(node, Some(axes), rank)?,
            None => (0..starts.len()).collect(),
        };
        let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
        if axes.len() != starts.len()
            || steps.len() != starts.len()
            || steps.contains(&0)
            || axes.iter().any(|a| *a >= rank)
        {
            return Err(
                self.error(node, format!("starts {starts:?}, axes {axes:?} and steps {steps:?} do not fit {shape:?}"))
            );
        }
        let (mut first, mut step) = (vec![0usize; rank], vec![1isize; rank]);
        for ((start, axis), by) in starts.iter().zip(&axes).zip(&steps) {
            let size = shape[*axis] as i64;
            let from = if *start < 0 { start.saturating_add(size) } else { *start };
            let last = if *by > 0 { size } else { size - 1 };
            first[*axis] = from.clamp(0, last.max(0)) as usize;
            step[*axis] = *by as isize;
        }
        Ok(Some(Op::Slice(first, step)))
    }

    fn pad(
        &self,
        node: &NodeProto,
        attributes: &Attributes,
        inputs: &[Option<ValueId>],
        rank: usize,
    ) -> Result<Option<Op>, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (pads, fill) = if self.opset < 11 {
            let pads = attributes.ints("pads").or(attributes.ints("paddings")).map(<[i64]>::to_vec);
            (pads, attributes.float("value").unwrap_or(0.0))
        } else {
            let fill = match input(2) {
                Some(id) => match self.scalar(Some(id)) {
                    Some(fill) => fill,
                    None => return Ok(None),
                },
                None => 0.0,
            };
            (self.ints(input(1)), fill)
        };
        let Some(pads) = pads else { return Ok(None) };
        let axes = match input(3) {
            Some(id) => match self.ints(Some(id)) {
                Some(axes) => self.axes(node, Some(axes), rank)?,
                None => return Ok(None),
            },
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(self.error(node, format!("{} pads for {} axes", pads.len(), axes.len())));
        }
        let mode = match attributes.string("mode").unwrap_or("constant") {
            "reflect" => PadMode::Reflect,
            "edge" => PadMode::Edge,
            "wrap" => PadMode::Wrap,
            _ => PadMode::Constant(fill),
        };
        let mut before = vec![0isize; rank];
        axes.iter().zip(&pads).for_each(|(a, p)| before[*a] = *p as isize);
        Ok(Some(Op::Pad(before, mode)))
    }
}

pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank).map(|i| if at(a, i) == 1 { at(b, i) } else { at(a, i) }).collect()
}
