//! Quantisation operators: their shapes and types, and the values of what they make of constants.
//!
//! tract's own rules for these are not used: its rounding multiplies by the reciprocal of the scale, and it knows
//! neither blocks, 16-bit integers, 16-bit scales nor most of `com.microsoft`. Sources: the ONNX operators; for
//! `com.microsoft`, ContribOperators.md of ONNX Runtime.

use std::collections::HashSet;
use std::sync::Arc;

use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::{OutletId, Tensor};

use super::attributes::{Attributes, axis};
use super::load::{Facts, to_f32, to_i64};
use crate::graph::{Constant, Quantisation, Spread};
use crate::kernels::integers::Integers;
use crate::ops::quantise::Scales;

/// The operators that are told here. DynamicQuantizeLinear is tract's own: its stand-in for an operator that it does not
/// know has one output.
pub(super) const OPERATORS: [&str; 18] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulNBits",
    "QGemm",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearAdd",
    "QLinearMul",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearSoftmax",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearConcat",
];

/// Facts of the outputs of `node`, where its inputs are known and its outputs are not; without their values for those
/// that are `held` as integers of 8 bits.
pub(super) fn facts_of(
    node: &NodeProto,
    facts: &Facts,
    held: &HashSet<String>,
) -> Option<Vec<(OutletId, InferenceFact)>> {
    let first = node.output.first()?;
    if !OPERATORS.contains(&node.op_type.as_str()) || facts.of(first).is_some() {
        return None;
    }
    let attributes = Attributes(node);
    let of = |i: usize| facts.of(node.input.get(i)?);
    let shape = |i: usize| of(i).map(|f| f.0);
    let dt = |i: usize| of(i).map(|f| f.1);
    let told = |dt: DatumType, shape: Vec<usize>| Some(vec![InferenceFact::dt_shape(dt, shape.as_slice())]);
    let found = match node.op_type.as_str() {
        "QuantizeLinear" => {
            let (x, _, value) = of(0)?;
            let dt = quantised_type(node, facts)?;
            let tensor = value.and_then(|v| quantised(node, facts, &v, dt));
            match tensor {
                Some(tensor) => Some(vec![tensor.into()]),
                None => told(dt, x),
            }
        }
        "DequantizeLinear" => {
            let (x, _, value) = of(0)?;
            let (integers, dt) = (dt(0)?, dt(1)?);
            let small = [DatumType::U8, DatumType::I8].contains(&integers) && dt == DatumType::F32;
            match value.filter(|_| !small || !held.contains(first)).and_then(|v| dequantised(node, facts, &v, dt)) {
                Some(tensor) => Some(vec![tensor.into()]),
                None => told(dt, x),
            }
        }
        "ConvInteger" => told(i32::datum_type(), window_shape(node, &shape(0)?, &shape(1)?)?),
        "QLinearConv" => told(dt(7)?, window_shape(node, &shape(0)?, &shape(3)?)?),
        "MatMulInteger" => told(i32::datum_type(), product_shape(&shape(0)?, &shape(1)?)?),
        "QLinearMatMul" => told(dt(7)?, product_shape(&shape(0)?, &shape(3)?)?),
        "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" => {
            told(f32::datum_type(), product_shape(&shape(0)?, &shape(1)?)?)
        }
        "MatMulNBits" => {
            let mut y = shape(0)?;
            *y.last_mut()? = usize::try_from(attributes.int("N")?).ok()?;
            told(dt(0)?, y)
        }
        "QGemm" => {
            let turned = |name: &str| attributes.int(name).unwrap_or(0) != 0;
            let (a, b) = (shape(0)?, shape(3)?);
            let y = vec![*a.get(usize::from(turned("transA")))?, *b.get(usize::from(!turned("transB")))?];
            // Without an output scale the result stays a float.
            told(dt(8).or(dt(7).map(|_| u8::datum_type())).unwrap_or(f32::datum_type()), y)
        }
        "QLinearAdd" | "QLinearMul" => told(dt(0)?, super::convert::broadcast(&shape(0)?, &shape(3)?)),
        "QLinearSigmoid" | "QLinearLeakyRelu" | "QLinearSoftmax" => told(dt(0)?, shape(0)?),
        "QLinearAveragePool" => {
            let x = shape(0)?;
            let kernel: Option<Vec<usize>> =
                attributes.ints("kernel_shape")?.iter().map(|k| usize::try_from(*k).ok()).collect();
            let mut weight = vec![*x.get(1)?, 1];
            weight.extend(kernel?);
            told(dt(0)?, window_shape(node, &x, &weight)?)
        }
        "QLinearGlobalAveragePool" => {
            let mut y = shape(0)?;
            let channels_last = attributes.int("channels_last").unwrap_or(0) != 0;
            let end = y.len() - usize::from(channels_last);
            y.get_mut(if channels_last { 1..end } else { 2..end })?.fill(1);
            told(dt(0)?, y)
        }
        "QLinearConcat" => {
            let mut y = shape(2)?;
            let at = axis(attributes.int("axis")?, y.len())?;
            for i in (5..node.input.len()).step_by(3) {
                y[at] += *shape(i)?.get(at)?;
            }
            told(dt(2)?, y)
        }
        _ => None,
    }?;
    let outputs = node.output.iter().filter(|o| !o.is_empty());
    outputs.zip(found).map(|(o, fact)| Some((facts.outlet(o)?, fact))).collect()
}

/// `[.., m, k] x [.., k, n]`.
fn product_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let (left, right) = (a.len() == 1, b.len() == 1);
    let a = if left { [&[1], a].concat() } else { a.to_vec() };
    let b = if right { [b, &[1]].concat() } else { b.to_vec() };
    let (m, n) = (a.len().checked_sub(2)?, b.len().checked_sub(2)?);
    if a[m + 1] != b[n] {
        return None;
    }
    let mut y = super::convert::broadcast(&a[..m], &b[..n]);
    if !left {
        y.push(a[m]);
    }
    if !right {
        y.push(b[n + 1]);
    }
    Some(y)
}

/// Output of a convolution or pool over `x [n, c, …]` with `weight [out, in, …]`.
fn window_shape(node: &NodeProto, x: &[usize], weight: &[usize]) -> Option<Vec<usize>> {
    let attributes = Attributes(node);
    let n = x.len().checked_sub(2)?;
    if weight.len() != x.len() {
        return None;
    }
    let list = |name: &str, default: i64, len: usize| {
        let given = attributes.ints(name).filter(|l| !l.is_empty()).map_or(vec![default; len], <[i64]>::to_vec);
        (given.len() == len).then_some(given)
    };
    let (strides, dilations, pads) = (list("strides", 1, n)?, list("dilations", 1, n)?, list("pads", 0, 2 * n)?);
    let auto = attributes.string("auto_pad").unwrap_or("NOTSET");
    let ceil = attributes.int("ceil_mode").unwrap_or(0) != 0;
    let mut y = vec![x[0], weight[0]];
    for d in 0..n {
        let (size, stride) = (x[d + 2] as i64, strides[d]);
        if stride < 1 || dilations[d] < 1 {
            return None;
        }
        let reach = (weight[d + 2] as i64 - 1) * dilations[d] + 1;
        let padded = size + if auto == "VALID" { 0 } else { pads[d] + pads[d + n] };
        let out = match auto {
            "SAME_UPPER" | "SAME_LOWER" => (size + stride - 1) / stride,
            _ if ceil => {
                let out = (padded - reach + stride - 1).div_euclid(stride) + 1;
                // A window does not start in the padding behind.
                if (out - 1) * stride >= size + pads[d] { out - 1 } else { out }
            }
            _ => (padded - reach).div_euclid(stride) + 1,
        };
        y.push(usize::try_from(out).ok().filter(|o| *o > 0)?);
    }
    Some(y)
}

/// Least and greatest value of an integer type that activations are quantised to.
fn integer_range(dt: DatumType) -> Option<(f32, f32)> {
    Some(match dt {
        DatumType::U8 => (0.0, 255.0),
        DatumType::I8 => (-128.0, 127.0),
        DatumType::U16 => (0.0, 65535.0),
        DatumType::I16 => (-32768.0, 32767.0),
        DatumType::I32 => (i32::MIN as f32, i32::MAX as f32),
        _ => return None,
    })
}

/// The type that a QuantizeLinear writes: that of the zero point, of the attribute, or 8 bits without sign.
fn quantised_type(node: &NodeProto, facts: &Facts) -> Option<DatumType> {
    use tract_onnx::pb::tensor_proto::DataType;
    if let Some(zero) = node.input.get(2).filter(|z| !z.is_empty()) {
        return facts.of(zero).map(|f| f.1);
    }
    match Attributes(node).int("output_dtype").filter(|t| *t != 0) {
        Some(t) => DatumType::try_from(DataType::try_from(i32::try_from(t).ok()?).ok()?).ok(),
        None => Some(u8::datum_type()),
    }
}

/// Scales and zero points as constants over a tensor of `shape`; none if they do not fit it.
pub(super) fn quantisation(
    shape: &[usize],
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    along: Option<i64>,
    block: usize,
    integers: DatumType,
) -> Option<Quantisation> {
    let (low, high) = integer_range(integers)?;
    let values = to_f32(scale)?;
    let zeros = match zero_point {
        Some(zero) => to_i64(zero)?.iter().map(|z| *z as f32).collect(),
        None => vec![0.0; values.len()],
    };
    let zeros = if zeros.len() == 1 { vec![zeros[0]; values.len()] } else { zeros };
    if zeros.len() != values.len() {
        return None;
    }
    let made = |scale, zero_point: Vec<f32>, spread| {
        Some(Quantisation { scales: Scales { scale, zero_point: zero_point.into(), low, high }, spread })
    };
    if values.len() == 1 && block == 0 {
        return made(values, zeros, Spread::Tensor);
    }
    let at = axis(along?, shape.len())?;
    if block == 0 {
        return if values.len() == shape[at] { made(values, zeros, Spread::Axis(at)) } else { None };
    }
    let (blocks, inner) = (shape[at].div_ceil(block), shape[at + 1..].iter().product::<usize>());
    let outer: usize = shape[..at].iter().product();
    if values.len() != outer * blocks * inner {
        return None;
    }
    let index = |i: usize| {
        let (o, c) = (i / (inner * shape[at]), i / inner % shape[at]);
        (o * blocks + c / block) * inner + i % inner
    };
    let n: usize = shape.iter().product();
    made((0..n).map(|i| values[index(i)]).collect(), (0..n).map(|i| zeros[index(i)]).collect(), Spread::Each)
}

impl Quantisation {
    /// Scale and zero point of element `i` of a row-major tensor of `shape`.
    fn of(&self, shape: &[usize], i: usize) -> (f32, f32) {
        let at = match self.spread {
            Spread::Tensor => 0,
            Spread::Axis(axis) => i / shape[axis + 1..].iter().product::<usize>() % shape[axis],
            Spread::Each => i,
        };
        (self.scales.scale[at], self.scales.zero_point[at])
    }

    /// Real values of integers: (q − z) · s, as floats of 32 bits.
    pub(super) fn real(&self, shape: &[usize], integers: &[i64]) -> Vec<f32> {
        let real = |(i, q): (usize, &i64)| {
            let (s, z) = self.of(shape, i);
            (*q as f64 - f64::from(z)) as f32 * s
        };
        integers.iter().enumerate().map(real).collect()
    }
}

/// A tensor of 8-bit integers as it is; none for another type, for a number alone and for an empty tensor.
pub(super) fn bytes(tensor: &Tensor) -> Option<Constant> {
    let plain = tensor.try_as_plain_ram().ok()?;
    let rows = *tensor.shape().first()?;
    let columns: usize = tensor.shape()[1..].iter().product();
    if rows * columns == 0 {
        return None;
    }
    let made = |data: Arc<[u8]>| Integers::new(rows, columns, 8, columns, data);
    let integers = match tensor.datum_type() {
        DatumType::U8 => made(plain.as_slice::<u8>().ok()?.into()),
        DatumType::I8 => {
            let shifted = plain.as_slice::<i8>().ok()?.iter().map(|q| q.cast_unsigned() ^ 0x80).collect();
            made(shifted)?.scaled([rows, columns], [1.0].into(), &[128.0])
        }
        _ => None,
    };
    Some(Constant::Integers(Arc::new(integers?)))
}

/// The real values of the 8-bit integers `x`, a tensor of `shape`, held as integers; none where the scales are for more
/// than a block of rows and columns, counted as in [`bytes`].
pub(super) fn real_integers(
    x: &Constant,
    shape: &[usize],
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    along: Option<i64>,
    block: usize,
) -> Option<Constant> {
    let Constant::Integers(integers) = x else { return None };
    let [rows, columns] = [integers.rows(), integers.columns()];
    let scales = to_f32(scale)?;
    let zeros = match zero_point {
        Some(zero) => to_i64(zero)?.iter().map(|z| *z as f32).collect(),
        None => vec![0.0],
    };
    let shared = match (scales.len(), along.and_then(|a| axis(a, shape.len()))) {
        (1, _) if block == 0 => [rows, columns],
        (n, Some(0)) if block == 0 && n == rows => [1, columns],
        (n, Some(1)) if block == 0 && shape.get(1) == Some(&n) && shape[0] == rows && columns > 0 => {
            [rows, columns / n]
        }
        (_, Some(0)) if block > 0 && shape.len() == 2 => [block, 1],
        (_, Some(1)) if block > 0 && shape.len() == 2 => [1, block],
        _ => return None,
    };
    let narrow = Integers::clone(integers).narrowed();
    narrow.scaled(shared, scales, &zeros).map(|real| Constant::Integers(Arc::new(real)))
}

/// Weights of DequantizeLinear that only layers read, by name: they are not told to tract, which would hold their floats.
pub(super) fn held(graph: &GraphProto) -> HashSet<String> {
    let mut held = HashSet::new();
    for node in graph.node.iter().filter(|n| n.op_type == "DequantizeLinear") {
        let Some(y) = node.output.first() else { continue };
        let is_weight = |n: &NodeProto| {
            let at = n.input.iter().position(|i| i == y);
            match n.op_type.as_str() {
                "Conv" | "ConvTranspose" | "Gemm" => at == Some(1),
                "Gather" => at == Some(0),
                "RNN" | "GRU" | "LSTM" => at == Some(1) || at == Some(2),
                "MatMul" => at.is_some(),
                _ => false,
            }
        };
        let inner = |n: &NodeProto| n.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        let mut readers = graph.node.iter().filter(|n| n.input.contains(y)).peekable();
        let asked = graph.output.iter().any(|o| o.name == *y) || graph.node.iter().any(inner);
        if !asked && readers.peek().is_some() && readers.all(is_weight) {
            held.insert(y.clone());
        }
    }
    held
}

/// The quantisation that a QuantizeLinear or DequantizeLinear states for a tensor of `shape`.
pub(super) fn stated(node: &NodeProto, facts: &Facts, shape: &[usize], integers: DatumType) -> Option<Quantisation> {
    let attributes = Attributes(node);
    let scale = facts.of(node.input.get(1)?)?.2?;
    let zero = match node.input.get(2).filter(|z| !z.is_empty()) {
        Some(zero) => Some(facts.of(zero)?.2?),
        None => None,
    };
    let block = usize::try_from(attributes.int("block_size").unwrap_or(0)).ok()?;
    quantisation(shape, &scale, zero.as_deref(), Some(attributes.int("axis").unwrap_or(1)), block, integers)
}

/// The integers that a QuantizeLinear makes of a constant.
fn quantised(node: &NodeProto, facts: &Facts, x: &Tensor, dt: DatumType) -> Option<Tensor> {
    let stated = stated(node, facts, x.shape(), dt)?;
    let Scales { low, high, .. } = stated.scales;
    let real = to_f32(x)?;
    let integer = |(i, v): (usize, &f32)| {
        let (s, z) = stated.of(x.shape(), i);
        ((v / s).round_ties_even() + z).clamp(low, high) as i64
    };
    let integers: Vec<i64> = real.iter().enumerate().map(integer).collect();
    Tensor::from_shape(x.shape(), &integers).ok()?.cast_to_dt(dt).ok().map(|t| t.into_owned())
}

/// The real values that a DequantizeLinear makes of a constant, in the type of its scale.
fn dequantised(node: &NodeProto, facts: &Facts, x: &Tensor, dt: DatumType) -> Option<Tensor> {
    let stated = stated(node, facts, x.shape(), x.datum_type())?;
    let real = stated.real(x.shape(), &to_i64(x)?);
    Tensor::from_shape(x.shape(), &real).ok()?.cast_to_dt(dt).ok().map(|t| t.into_owned())
}
