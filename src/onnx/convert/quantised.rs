//! Quantised nodes → floats between the two halves of a quantisation.
//!
//! An operator on integers becomes the float operator between a dequantisation of what it reads and a quantisation of
//! what it writes; its weight is the real one, (q − z) · s, so that an adapter on it means what it means on a float
//! layer. The float product differs from the integer one by roundings of 2⁻²⁴ of its terms, far less than half a quantum, so
//! that a result differs from an integer engine's by one quantum at most, where it lies that near to a tie.
//!
//! `MatMulInteger → Cast → Mul(scales)`, as dynamic quantisation leaves it, becomes one float product for the same reason.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::prelude::DatumType;

use super::Converter;
use super::window::extents;
use crate::graph::{Constant, Element, Op, Quantisation, Quantised, Spread, Value, ValueId};
use crate::kernels::integers::Integers;
use crate::onnx::OnnxError;
use crate::onnx::attributes::{Attributes, axis};
use crate::onnx::load::{Facts, to_f32, to_i64};
use crate::onnx::quantised::{OPERATORS, quantisation, real_integers, stated};
use crate::ops::binary::BinaryKind;
use crate::ops::quantise::{DynamicPart, Half, Scales};
use crate::ops::reduce::ReduceKind;
use crate::ops::unary::UnaryKind;

/// Operators that only move or choose elements: of quantised values they make quantised values.
const MOVES: [&str; 26] = [
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Dropout",
    "Transpose",
    "Concat",
    "Slice",
    "Split",
    "Gather",
    "GatherElements",
    "Pad",
    "MaxPool",
    "GlobalMaxPool",
    "ReduceMax",
    "ReduceMin",
    "Max",
    "Min",
    "Relu",
    "Clip",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "Resize",
];

/// Products of integers that a Cast and a Mul turn into real ones at once.
#[derive(Default)]
pub(super) struct Rescaled {
    /// By the output of the Mul: the node of the product, and which input of the Mul the scales are.
    by_output: HashMap<String, (NodeProto, usize)>,
    /// Outputs of the product and of the Cast, which nothing else reads.
    inner: HashSet<String>,
}

impl Rescaled {
    pub(super) fn find(file: &GraphProto, facts: &Facts) -> Self {
        let mut found = Self::default();
        let asked = |name: &String| file.output.iter().any(|o| o.name == *name);
        let only_reader = |name: &String| {
            let mut readers = file.node.iter().filter(|n| n.input.contains(name));
            let first = readers.next().filter(|_| !asked(name))?;
            readers.next().is_none().then_some(first)
        };
        let known = |name: &String| facts.of(name).is_some_and(|f| f.2.is_some());
        for node in file.node.iter().filter(|n| ["MatMulInteger", "ConvInteger"].contains(&n.op_type.as_str())) {
            let chain = || {
                let cast = only_reader(node.output.first()?).filter(|n| n.op_type == "Cast")?;
                let mul = only_reader(cast.output.first()?).filter(|n| n.op_type == "Mul")?;
                let at = mul.input.iter().position(|i| *i != cast.output[0])?;
                let scales = &mul.input[at];
                let constant = known(node.input.get(1)?) && node.input.get(3).is_none_or(|z| z.is_empty() || known(z));
                let of_data = || {
                    let of = file.node.iter().find(|n| n.output.contains(scales))?;
                    let dynamic = file.node.iter().find(|n| n.output.first() == node.input.first())?;
                    let scale = dynamic.output.get(1).filter(|_| dynamic.op_type == "DynamicQuantizeLinear")?;
                    let other = of.input.iter().find(|i| *i != scale)?;
                    (of.op_type == "Mul" && of.input.contains(scale) && known(other)).then_some(())
                };
                (constant && (known(scales) || of_data().is_some())).then_some((cast, mul, at))
            };
            if let Some((cast, mul, at)) = chain() {
                found.inner.extend([node.output[0].clone(), cast.output[0].clone()]);
                found.by_output.insert(mul.output[0].clone(), (node.clone(), at));
            }
        }
        found
    }
}

impl Converter<'_> {
    /// Lowers what has to do with quantisation; false for everything else, and for what must run through tract.
    pub(super) fn lower_quantised(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> Result<bool, OnnxError> {
        if node.output.first().is_some_and(|o| self.rescaled.inner.contains(o)) {
            return Ok(true);
        }
        if let Some((product, at)) = node.output.first().and_then(|o| self.rescaled.by_output.get(o)).cloned() {
            return self.rescaled_product(node, &product, at, outputs[0]);
        }
        let input = |i: usize| inputs.get(i).copied().flatten();
        let Some(x) = input(0) else { return Ok(false) };
        if MOVES.contains(&node.op_type.as_str()) && self.graph.values[x].element == Element::Quantised {
            outputs.iter().for_each(|y| self.graph.values[*y].element = Element::Quantised);
            return Ok(false);
        }
        if !OPERATORS.contains(&node.op_type.as_str()) && node.op_type != "DynamicQuantizeLinear" {
            return Ok(false);
        }
        let y = outputs[0];
        let attributes = Attributes(node);
        let done = match node.op_type.as_str() {
            "QuantizeLinear" => self.stated(node, x, y).map(|q| {
                self.push(node, name, Op::Quantise(Half::Quantise, q), vec![x], y);
                self.graph.values[y].element = Element::Quantised;
            }),
            "DequantizeLinear" if self.graph.is_constant(x) => self.dequantised_constant(node, x, y)?,
            "DequantizeLinear" => match self.stated(node, x, x) {
                Some(q) => {
                    self.push(node, name, Op::Quantise(Half::Dequantise, q), vec![x], y);
                    Some(())
                }
                None if attributes.int("block_size").unwrap_or(0) == 0 => {
                    self.real_of_data(node, name, x, input(1), input(2), Some(y)).map(|_| ())
                }
                None => None,
            },
            "DynamicQuantizeLinear" => {
                for (part, y) in
                    [DynamicPart::Integers, DynamicPart::Scale, DynamicPart::ZeroPoint].into_iter().zip(outputs)
                {
                    let name = if part == DynamicPart::Integers { name.to_owned() } else { format!("{name}~{part:?}") };
                    self.push(node, &name, Op::DynamicQuantise(part), vec![x], *y);
                    self.graph.values[*y].element = Element::Quantised;
                }
                Some(())
            }
            "QLinearConv" => self.q_conv(node, name, inputs, y)?,
            "ConvInteger" | "MatMulInteger" => self.integer_product(node, name, inputs, y)?,
            "QLinearMatMul" => {
                let last = input(3).map(|b| self.shape(b).len() as i64 - 1);
                let a = self.real(node, name, "a", [input(0), input(1), input(2)], None);
                let b = self.real(node, name, "b", [input(3), input(4), input(5)], last);
                a.zip(b)
                    .and_then(|(a, b)| self.then_quantise(node, name, Op::MatMul, vec![a, b], [input(6), input(7)], y))
            }
            "QGemm" => self.q_gemm(node, name, inputs, y),
            "MatMulIntegerToFloat" => {
                let a = self.real(node, name, "a", [input(0), input(2), input(4)], None);
                let b = self.real(node, name, "b", [input(1), input(3), input(5)], Some(-1));
                a.zip(b).map(|(a, b)| self.then_add(node, name, vec![a, b], input(6), y))
            }
            "DynamicQuantizeMatMul" => {
                let b = self.real(node, name, "b", [input(1), input(2), input(3)], Some(-1));
                b.map(|b| {
                    let a = self.float(node, name, "a", self.shape(x));
                    self.push(node, &format!("{name}~a"), Op::DynamicQuantise(DynamicPart::Fake), vec![x], a);
                    self.then_add(node, name, vec![a, b], input(4), y);
                })
            }
            "MatMulNBits" => self.blocked_bits(node, name, inputs, y)?,
            "QLinearAdd" | "QLinearMul" => {
                let kind = if node.op_type == "QLinearAdd" { BinaryKind::Add } else { BinaryKind::Mul };
                let a = self.real(node, name, "a", [input(0), input(1), input(2)], None);
                let b = self.real(node, name, "b", [input(3), input(4), input(5)], None);
                let output = [input(6), input(7)];
                a.zip(b).and_then(|(a, b)| self.then_quantise(node, name, Op::Binary(kind), vec![a, b], output, y))
            }
            "QLinearConcat" => {
                let rank = self.shape(y).len();
                let at = attributes.int("axis").and_then(|a| axis(a, rank));
                let parts: Option<Vec<ValueId>> = (2..inputs.len())
                    .step_by(3)
                    .map(|i| {
                        self.real(node, name, &format!("x{}", i / 3), [input(i), input(i + 1), input(i + 2)], None)
                    })
                    .collect();
                at.zip(parts)
                    .and_then(|(at, p)| self.then_quantise(node, name, Op::Concat(at), p, [input(0), input(1)], y))
            }
            _ => self.q_unary(node, name, inputs, y)?,
        };
        Ok(done.is_some())
    }

    /// Sigmoid, LeakyRelu, Softmax and average pools on integers: x, its scale and zero point, those of y.
    fn q_unary(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<Option<()>, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let Some(x) = input(0) else { return Ok(None) };
        let attributes = Attributes(node);
        let (shape, rank) = (self.shape(x), self.shape(x).len());
        let channels_last = attributes.int("channels_last").unwrap_or(0) != 0;
        let op = match node.op_type.as_str() {
            "QLinearSigmoid" => Op::Unary(UnaryKind::Sigmoid),
            "QLinearLeakyRelu" => Op::Unary(UnaryKind::LeakyRelu { alpha: attributes.float("alpha").unwrap_or(0.01) }),
            "QLinearGlobalAveragePool" if channels_last && rank > 0 => {
                Op::Reduce(ReduceKind::Mean, (1..rank - 1).collect())
            }
            "QLinearGlobalAveragePool" => Op::Reduce(ReduceKind::Mean, (2..rank).collect()),
            "QLinearAveragePool" if !channels_last && (3..=4).contains(&rank) => {
                let window = self.window(node, &extents(attributes.ints("kernel_shape")), &shape, &self.shape(y))?;
                Op::AveragePool(window, attributes.int("count_include_pad").unwrap_or(0) != 0)
            }
            "QLinearSoftmax" => {
                let flatten = attributes.int("opset").unwrap_or(self.opset) < 13;
                let at = axis(attributes.int("axis").unwrap_or(if flatten { 1 } else { -1 }), rank.max(1));
                let Some(axis) = at else { return Err(self.error(node, "its axis is out of range")) };
                Op::Softmax { axis, flatten, log: false }
            }
            _ => return Ok(None),
        };
        let real = self.real(node, name, "x", [input(0), input(1), input(2)], None);
        Ok(real.and_then(|x| self.then_quantise(node, name, op, vec![x], [input(3), input(4)], y)))
    }

    fn stated(&self, node: &NodeProto, x: ValueId, integers: ValueId) -> Option<Quantisation> {
        let name = &self.graph.values[integers].name;
        stated(node, self.facts, &self.shape(x), self.facts.of(name)?.1)
    }

    /// A float between two nodes that `node` becomes.
    fn float(&mut self, node: &NodeProto, name: &str, part: &str, shape: Vec<usize>) -> ValueId {
        let id = self.temporary(node, &format!("{name}~{part}"), shape, 0);
        self.graph.values[id].element = Element::F32;
        id
    }

    /// The real values of an integer operand `[x, scale, zero point]`: a dequantised activation, or a constant. `along` is
    /// the axis of scales that are more than one.
    fn real(
        &mut self,
        node: &NodeProto,
        name: &str,
        part: &str,
        [x, scale, zero]: [Option<ValueId>; 3],
        along: Option<i64>,
    ) -> Option<ValueId> {
        let (x, scale) = (x?, scale?);
        let shape = self.shape(x);
        let Some(scales) = self.scales(&shape, x, scale, zero, along) else {
            return self.real_of_data(node, &format!("{name}~{part}"), x, Some(scale), zero, None);
        };
        if self.constants.contains_key(&x) {
            let values = self.real_values(x, scale, zero, along, 0, &scales)?;
            let scale = self.graph.values[scale].name.clone();
            return Some(self.real_constant(node, x, &scale, values, shape));
        }
        let y = self.float(node, name, part, shape);
        self.push(node, &format!("{name}~{part}"), Op::Quantise(Half::Dequantise, scales), vec![x], y);
        Some(y)
    }

    /// A constant that the file has as integers `of`, which `node` reads itself.
    fn real_constant(
        &mut self,
        node: &NodeProto,
        of: ValueId,
        scale: &str,
        values: Constant,
        shape: Vec<usize>,
    ) -> ValueId {
        let tensor = self.graph.values[of].name.clone();
        let quantised = Quantised { tensor: tensor.clone(), scale: scale.into(), inside: node.output.first().cloned() };
        self.graph.values.push(Value {
            name: format!("{tensor}~{}", node.output.first().map_or("", String::as_str)),
            shape,
            element: Element::F32,
            constant: Some(values),
            stored: false,
            source: None,
            quantised: Some(quantised),
        });
        self.graph.values.len() - 1
    }

    /// The real values of the constant `x`, held as integers where they are of 8 bits or fewer.
    fn real_values(
        &self,
        x: ValueId,
        scale: ValueId,
        zero: Option<ValueId>,
        along: Option<i64>,
        block: usize,
        scales: &Quantisation,
    ) -> Option<Constant> {
        let shape = self.shape(x);
        let zero = match zero {
            Some(zero) => Some(self.constants.get(&zero)?.as_ref()),
            None => None,
        };
        let held = || {
            let integers = self.graph.values[x].constant.as_ref()?;
            real_integers(integers, &shape, self.constants.get(&scale)?, zero, along, block)
        };
        held().or_else(|| Some(scales.real(&shape, &to_i64(self.constants.get(&x)?)?).into()))
    }

    /// A weight whose floats tract was not told.
    fn dequantised_constant(&mut self, node: &NodeProto, x: ValueId, y: ValueId) -> Result<Option<()>, OnnxError> {
        let attributes = Attributes(node);
        let id = |i: usize| node.input.get(i).filter(|n| !n.is_empty()).and_then(|n| self.names.get(n)).copied();
        let made = || {
            let block = usize::try_from(attributes.int("block_size").unwrap_or(0)).ok()?;
            let along = Some(attributes.int("axis").unwrap_or(1));
            self.real_values(x, id(1)?, id(2), along, block, &self.stated(node, x, x)?)
        };
        let values = made()
            .ok_or_else(|| self.error(node, "its scale and zero point must be constants that fit its integers"))?;
        self.graph.values[y].constant = Some(values);
        self.graph.values[y].quantised = self.quantised_constant(node, x);
        Ok(Some(()))
    }

    /// Constant scale and zero point of the integers of `x`.
    fn scales(
        &self,
        shape: &[usize],
        x: ValueId,
        scale: ValueId,
        zero: Option<ValueId>,
        along: Option<i64>,
    ) -> Option<Quantisation> {
        let integers = self.facts.of(&self.graph.values[x].name)?.1;
        let zero = match zero {
            Some(zero) => Some(self.constants.get(&zero)?.as_ref()),
            None => None,
        };
        quantisation(shape, self.constants.get(&scale)?, zero, along, 0, integers)
    }

    /// (x − zero) · scale where these are computed by the model; written to `y`, or to a new value.
    fn real_of_data(
        &mut self,
        node: &NodeProto,
        name: &str,
        x: ValueId,
        scale: Option<ValueId>,
        zero: Option<ValueId>,
        y: Option<ValueId>,
    ) -> Option<ValueId> {
        let scale = scale?;
        if self.graph.is_constant(x) || [Some(scale), zero].iter().flatten().any(|v| self.graph.values[*v].len() != 1) {
            return None;
        }
        // Both halves at once where the range is that of the data.
        let dynamic = |v: ValueId, part: DynamicPart| {
            let node = &self.graph.nodes[self.graph.producer(v)?];
            matches!(&node.op, Op::DynamicQuantise(p) if *p == part).then(|| node.inputs[0])
        };
        let of = dynamic(x, DynamicPart::Integers);
        let same = of.is_some()
            && dynamic(scale, DynamicPart::Scale) == of
            && zero.and_then(|z| dynamic(z, DynamicPart::ZeroPoint)) == of;
        let shape = self.shape(x);
        let y = y.unwrap_or_else(|| self.float(node, name, "real", shape.clone()));
        if let (Some(of), true) = (of, same) {
            self.push(node, name, Op::DynamicQuantise(DynamicPart::Fake), vec![of], y);
            return Some(y);
        }
        let mut from = x;
        if let Some(zero) = zero {
            from = self.float(node, name, "centred", shape);
            self.push(node, &format!("{name}~centred"), Op::Binary(BinaryKind::Sub), vec![x, zero], from);
        }
        self.push(node, name, Op::Binary(BinaryKind::Mul), vec![from, scale], y);
        Some(y)
    }

    /// `op` on floats, and the quantisation of what it gives with the constants `[scale, zero point]`.
    fn then_quantise(
        &mut self,
        node: &NodeProto,
        name: &str,
        op: Op,
        inputs: Vec<ValueId>,
        [scale, zero]: [Option<ValueId>; 2],
        y: ValueId,
    ) -> Option<()> {
        let scales = self.scales(&self.shape(y), y, scale?, zero, None)?;
        let real = self.float(node, name, "y", self.shape(y));
        self.push(node, name, op, inputs, real);
        self.push(node, &format!("{name}~y"), Op::Quantise(Half::Quantise, scales), vec![real], y);
        self.graph.values[y].element = Element::Quantised;
        Some(())
    }

    /// A product of floats, and the sum with a bias if there is one.
    fn then_add(&mut self, node: &NodeProto, name: &str, inputs: Vec<ValueId>, bias: Option<ValueId>, y: ValueId) {
        let Some(bias) = bias else { return self.push(node, name, Op::MatMul, inputs, y) };
        let product = self.float(node, name, "product", self.shape(y));
        self.push(node, name, Op::MatMul, inputs, product);
        self.push(node, &format!("{name}~bias"), Op::Binary(BinaryKind::Add), vec![product, bias], y);
    }

    /// QLinearConv: x, its scale and zero point, w, its, those of y, and B of 32 bits with scale x_scale · w_scale.
    fn q_conv(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<Option<()>, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(w)) = (input(0), input(3)) else { return Ok(None) };
        let Some(op) = self.convolution(node, x, w, y)? else { return Ok(None) };
        let made = || -> Option<(f32, Vec<f32>)> {
            Some((self.scalar(input(1))?, to_f32(self.constants.get(&input(4)?)?)?.to_vec()))
        };
        let Some((x_scale, w_scale)) = made() else { return Ok(None) };
        let mut reads = Vec::new();
        let a = self.real(node, name, "x", [input(0), input(1), input(2)], None);
        let b = self.real(node, name, "w", [input(3), input(4), input(5)], Some(0));
        let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
        reads.extend([a, b]);
        if let Some(bias) = input(8) {
            let scales: Vec<f32> = w_scale.iter().map(|w| w * x_scale).collect();
            match self.real_bias(node, bias, input(4), &scales) {
                Some(bias) => reads.push(bias),
                None => return Ok(None),
            }
        }
        Ok(self.then_quantise(node, name, op, reads, [input(6), input(7)], y))
    }

    /// A bias of 32 bits with one scale, or one for each.
    fn real_bias(
        &mut self,
        node: &NodeProto,
        bias: ValueId,
        beside: Option<ValueId>,
        scales: &[f32],
    ) -> Option<ValueId> {
        let integers = to_i64(self.constants.get(&bias)?)?;
        let real = |(i, b): (usize, &i64)| *b as f32 * scales[i % scales.len()];
        let values: Vec<f32> = integers.iter().enumerate().map(real).collect();
        let beside = self.graph.values[beside?].name.clone();
        let shape = self.shape(bias);
        Some(self.real_constant(node, bias, &beside, values.into(), shape))
    }

    fn convolution(&self, node: &NodeProto, x: ValueId, w: ValueId, y: ValueId) -> Result<Option<Op>, OnnxError> {
        let (x_shape, weight) = (self.shape(x), self.shape(w));
        if !(3..=4).contains(&x_shape.len()) || weight.len() != x_shape.len() || !self.graph.is_constant(w) {
            return Ok(None);
        }
        let groups = usize::try_from(Attributes(node).int("group").unwrap_or(1)).unwrap_or(0).max(1);
        if !weight[0].is_multiple_of(groups) || weight[1].checked_mul(groups) != Some(x_shape[1]) {
            let what = format!("weight {weight:?} with {groups} groups does not fit input {x_shape:?}");
            return Err(self.error(node, what));
        }
        Ok(Some(Op::Conv(self.window(node, &weight[2..], &x_shape, &self.shape(y))?, groups)))
    }

    /// QGemm: A, its scale and zero point, B, its, C of 32 bits with scale alpha · a_scale · b_scale, and those of y.
    fn q_gemm(&mut self, node: &NodeProto, name: &str, inputs: &[Option<ValueId>], y: ValueId) -> Option<()> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let attributes = Attributes(node);
        let turned = |name: &str| attributes.int(name).unwrap_or(0) != 0;
        let (alpha, trans_a, trans_b) = (attributes.float("alpha").unwrap_or(1.0), turned("transA"), turned("transB"));
        let a_scale = self.scalar(input(1))?;
        let b_scale = to_f32(self.constants.get(&input(4)?)?)?;
        let a = self.real(node, name, "a", [input(0), input(1), input(2)], None)?;
        let b = self.real(node, name, "b", [input(3), input(4), input(5)], Some(i64::from(!trans_b)))?;
        let mut reads = vec![a, b];
        if let Some(c) = input(6) {
            let scales: Vec<f32> = b_scale.iter().map(|b| alpha * a_scale * b).collect();
            reads.push(self.real_bias(node, c, input(4), &scales)?);
        }
        let op = Op::Gemm { alpha, beta: 1.0, trans_a, trans_b };
        match input(7) {
            Some(_) => self.then_quantise(node, name, op, reads, [input(7), input(8)], y),
            None => {
                self.push(node, name, op, reads, y);
                Some(())
            }
        }
    }

    /// ConvInteger and MatMulInteger whose result is not rescaled at once: integers throughout, and no place for an
    /// adapter, which would have to know the scale.
    fn integer_product(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<Option<()>, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(a), Some(b)) = (input(0), input(1)) else { return Ok(None) };
        let op = match node.op_type.as_str() {
            "ConvInteger" => match self.convolution(node, a, b, y)? {
                Some(op) => op,
                None => return Ok(None),
            },
            _ => Op::MatMul,
        };
        let row = |v: ValueId, last: i64| if self.shape(v).len() > 1 { last } else { 0 };
        let along = if matches!(op, Op::MatMul) { [row(a, -2), row(b, -1)] } else { [1, 0] };
        let mut reads = Vec::new();
        for (i, along) in [0, 1].into_iter().zip(along) {
            let (value, zero) = ([a, b][i], input(i + 2));
            let Some(centred) = self.centred(node, name, ["a", "b"][i], value, zero, along) else { return Ok(None) };
            reads.push(centred);
        }
        self.push(node, name, op, reads, y);
        self.graph.values[y].element = Element::Quantised;
        Ok(Some(()))
    }

    /// Integers less their zero point.
    fn centred(
        &mut self,
        node: &NodeProto,
        name: &str,
        part: &str,
        x: ValueId,
        zero: Option<ValueId>,
        along: i64,
    ) -> Option<ValueId> {
        let shape = self.shape(x);
        let Some(zero) = zero else { return Some(x) };
        let Some(zeros) = self.constants.get(&zero).and_then(|z| to_f32(z)) else {
            let y = self.float(node, name, part, shape);
            let one = self.graph.values[zero].len() == 1;
            self.push(node, &format!("{name}~{part}"), Op::Binary(BinaryKind::Sub), vec![x, zero], y);
            return one.then_some(y);
        };
        let spread = if zeros.len() == 1 { Spread::Tensor } else { Spread::Axis(axis(along, shape.len())?) };
        let scale = vec![1.0; zeros.len()].into();
        let scales = Scales { scale, zero_point: zeros, low: f32::NEG_INFINITY, high: f32::INFINITY };
        let centred = Quantisation { scales, spread };
        let y = self.float(node, name, part, shape.clone());
        match self.constants.get(&x) {
            Some(integers) => {
                let floats = || Some(centred.real(&shape, &to_i64(integers)?).into());
                let one = tract_onnx::prelude::tensor1(&vec![1.0f32; centred.scales.scale.len()]);
                let zero = self.constants.get(&zero).map(Arc::as_ref);
                let held = |x: &Constant| real_integers(x, &shape, &one, zero, Some(along), 0);
                let values = self.graph.values[x].constant.as_ref().and_then(held).or_else(floats)?;
                self.graph.values[y].constant = Some(values);
            }
            None => self.push(node, &format!("{name}~{part}"), Op::Quantise(Half::Dequantise, centred), vec![x], y),
        }
        Some(y)
    }

    /// A product of integers with the Cast and the Mul behind it, as one product of real values. `at` is the input of `mul`
    /// that holds the scales.
    fn rescaled_product(
        &mut self,
        mul: &NodeProto,
        product: &NodeProto,
        at: usize,
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let name = Self::name(product);
        let id = |name: Option<&String>| name.and_then(|n| self.names.get(n)).copied();
        let (x, w) = (id(product.input.first()), id(product.input.get(1)));
        let (x_zero, w_zero) = (id(product.input.get(2)), id(product.input.get(3)));
        let (Some(x), Some(w)) = (x, w) else { return Ok(false) };
        let lost = || self.error(product, "its scales are not constants of one value or one a column");
        // The scales: all constant, or those of the data times a constant.
        let mut x_scale = None;
        let mut beside = mul.input[at].clone();
        if id(Some(&beside)).is_none_or(|s| !self.constants.contains_key(&s)) {
            let of = self.proto.graph.iter().flat_map(|g| &g.node).find(|n| n.output.contains(&beside));
            let is_constant = |name: &&String| id(Some(name)).is_some_and(|s| self.constants.contains_key(&s));
            let constant = of.and_then(|n| n.input.iter().find(is_constant)).ok_or_else(lost)?.clone();
            x_scale = of.and_then(|n| n.input.iter().find(|i| **i != constant)).and_then(|i| id(Some(i)));
            beside = constant;
        }
        let scales = id(Some(&beside)).and_then(|s| self.constants.get(&s)).and_then(|s| to_f32(s)).ok_or_else(lost)?;
        let shape = self.shape(w);
        let conv = product.op_type == "ConvInteger";
        let columns = if conv { shape.first() } else { shape.last() };
        if scales.len() != 1 && (columns != Some(&scales.len()) || shape.len() < 2) {
            return Err(lost());
        }
        let along = if conv { 0 } else { -1 };
        let zero = match w_zero {
            Some(zero) => Some(self.constants.get(&zero).ok_or_else(lost)?.clone()),
            None => None,
        };
        let integers = self.constants.get(&w).ok_or_else(lost)?.clone();
        let spread =
            tract_onnx::tract_hir::internal::Tensor::from_shape(&[scales.len()], &scales).map_err(|_| lost())?;
        let fits = |spread: &_| quantisation(&shape, spread, zero.as_deref(), Some(along), 0, integers.datum_type());
        let held = |constant: &Constant| real_integers(constant, &shape, &spread, zero.as_deref(), Some(along), 0);
        let floats = || Some(fits(&spread)?.real(&shape, &to_i64(&integers)?).into());
        let values = self.graph.values[w].constant.as_ref().and_then(held).or_else(floats).ok_or_else(lost)?;
        let x_real = match x_scale {
            Some(scale) => self.real_of_data(product, &format!("{name}~a"), x, Some(scale), x_zero, None),
            None => self.centred(product, &name, "a", x, x_zero, 0),
        };
        let x_real = x_real.ok_or_else(|| self.error(product, "the scale of its input is not one value"))?;
        let w_real = self.real_constant(mul, w, &beside, values, shape);
        let op = if conv { self.convolution(product, x, w_real, y)? } else { Some(Op::MatMul) };
        let Some(op) = op else { return Err(self.error(product, "its weight must be a constant matrix or kernel")) };
        self.push(product, &name, op, vec![x_real, w_real], y);
        Ok(true)
    }

    /// MatMulNBits: A, B `[N, blocks, bytes]` with 2, 4 or 8 bits a weight, scales a block, zero points, no permutation, bias.
    fn blocked_bits(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<Option<()>, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let attributes = Attributes(node);
        let size = |name: &str, default: i64| usize::try_from(attributes.int(name).unwrap_or(default)).unwrap_or(0);
        let (k, n, bits, block) = (size("K", 0), size("N", 0), size("bits", 4), size("block_size", 0));
        let (Some(a), Some(b), Some(scale)) = (input(0), input(1), input(2)) else { return Ok(None) };
        if ![2, 4, 8].contains(&bits) || k == 0 || n == 0 || block * bits < 8 || self.shape(a).last() != Some(&k) {
            let what = format!("K {k}, N {n}, {bits} bits in blocks of {block} do not fit input {:?}", self.shape(a));
            return Err(self.error(node, what));
        }
        if input(4).is_some() {
            return Err(self.error(node, "its g_idx is not supported; export the model without it"));
        }
        let (Some(packed), Some(scales)) = (self.constants.get(&b), self.constants.get(&scale)) else {
            return Ok(None);
        };
        let blocks = k.div_ceil(block);
        let unknown = || self.error(node, "its weights and scales do not fit K, N and the block size");
        let scales = to_f32(scales).ok_or_else(unknown)?;
        let packed: Arc<[u8]> =
            packed.try_as_plain_ram().ok().and_then(|p| p.as_slice::<u8>().ok()).ok_or_else(unknown)?.into();
        let small = |bytes: &[i64], i: usize| bytes[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1);
        let (row, zero_row) = (block * bits / 8, (blocks * bits).div_ceil(8));
        let zeros: Vec<f32> = match input(3) {
            None => vec![(1 << (bits - 1)) as f32; n * blocks],
            Some(zero) => {
                let Some(tensor) = self.constants.get(&zero) else { return Ok(None) };
                if tensor.datum_type() == DatumType::U8 {
                    let bytes = to_i64(tensor).filter(|z| z.len() == n * zero_row).ok_or_else(unknown)?;
                    let zero = |at: usize| small(&bytes[at / blocks * zero_row..], at % blocks) as f32;
                    (0..n * blocks).map(zero).collect()
                } else {
                    to_f32(tensor).ok_or_else(unknown)?.to_vec()
                }
            }
        };
        let integers = Integers::new(n, k, bits, blocks * row, packed);
        let real = integers.and_then(|i| i.scaled([1, block], scales, &zeros)).ok_or_else(unknown)?;
        let scale = self.graph.values[scale].name.clone();
        let w = self.real_constant(node, b, &scale, Constant::TurnedIntegers(Arc::new(real)), vec![k, n]);
        self.then_add(node, name, vec![a, w], input(5), y);
        Ok(Some(()))
    }

    /// Lets go of what nothing reads any more: the integers whose real values a layer has, and their scales.
    pub(super) fn drop_integers(&mut self, outputs: &[String]) {
        let mut read: Vec<bool> = self.graph.values.iter().map(|v| outputs.contains(&v.name)).collect();
        self.graph.nodes.iter().flat_map(|n| &n.inputs).for_each(|i| read[*i] = true);
        let quantised = self.graph.values.iter().filter_map(|v| v.quantised.as_ref());
        let named: HashSet<String> = quantised.flat_map(|q| [q.scale.clone(), q.tensor.clone()]).collect();
        for (value, read) in self.graph.values.iter_mut().zip(read) {
            // A zero point is 8-bit integers too; whole numbers of 64 bits are shapes, which merging may have to change.
            let small = value.constant.as_ref().is_some_and(|c| c.integers().is_some());
            if !read && (named.contains(&value.name) || value.element == Element::Integer && small) {
                value.constant = None;
            }
        }
    }

    /// Where the constant that `node` gives has its integers in the file.
    pub(super) fn quantised_constant(&self, node: &NodeProto, x: ValueId) -> Option<Quantised> {
        let scale = node.input.get(1)?.clone();
        let before = self.graph.values[x].quantised.as_ref();
        let tensor = before.map_or_else(|| self.graph.values[x].name.clone(), |q| q.tensor.clone());
        let is = ["QuantizeLinear", "DequantizeLinear"].contains(&node.op_type.as_str());
        is.then_some(Quantised { tensor, scale, inside: None })
    }
}
