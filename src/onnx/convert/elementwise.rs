//! Functions of one input, PRelu, Mean, and reductions.

use tract_onnx::pb::NodeProto;

use super::super::OnnxError;
use super::super::attributes::Attributes;
use super::{Converter, broadcast};
use crate::graph::{Op, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::fold::FoldKind;
use crate::ops::function::FunctionKind;
use crate::ops::reduce::ReduceKind;
use crate::ops::unary::UnaryKind;

/// Defaults of Selu (Klambauer et al., 2017), as ONNX has them.
const SELU: (f32, f32) = (1.673_263_2, 1.050_701);

impl Converter<'_> {
    /// Lowers the operators of this file; false for another one, or one that must run through tract.
    pub(super) fn lower_elementwise(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let present: Vec<ValueId> = inputs.iter().flatten().copied().collect();
        let Some(x) = inputs.first().copied().flatten() else { return Ok(false) };
        let float = |name: &str, default: f32| attributes.float(name).unwrap_or(default);
        let kind = match node.op_type.as_str() {
            "Erf" => FunctionKind::Erf,
            "Gelu" => match attributes.string("approximate").unwrap_or("none") {
                "none" => FunctionKind::Gelu,
                "tanh" => FunctionKind::GeluTanh,
                other => return Err(self.error(node, format!("approximate is `{other}`, expected none or tanh"))),
            },
            "Swish" => FunctionKind::Swish { alpha: float("alpha", 1.0) },
            "Mish" => FunctionKind::Mish,
            "HardSigmoid" => FunctionKind::HardSigmoid { alpha: float("alpha", 0.2), beta: float("beta", 0.5) },
            "HardSwish" => FunctionKind::HardSwish,
            "Elu" => FunctionKind::Elu { positive: 1.0, scale: float("alpha", 1.0), width: 1.0 },
            "Selu" => {
                let (alpha, gamma) = (float("alpha", SELU.0), float("gamma", SELU.1));
                FunctionKind::Elu { positive: gamma, scale: alpha * gamma, width: 1.0 }
            }
            "Celu" => {
                let alpha = float("alpha", 1.0);
                FunctionKind::Elu { positive: 1.0, scale: alpha, width: alpha }
            }
            "Softplus" => FunctionKind::Softplus,
            "Softsign" => FunctionKind::Softsign,
            "ThresholdedRelu" => FunctionKind::ThresholdedRelu { alpha: float("alpha", 1.0) },
            "Shrink" => FunctionKind::Shrink { lambda: float("lambd", 0.5), bias: float("bias", 0.0) },
            "Sign" => FunctionKind::Sign,
            "Ceil" => FunctionKind::Ceil,
            "Floor" => FunctionKind::Floor,
            "Round" => FunctionKind::Round,
            "Sin" => FunctionKind::Sin,
            "Cos" => FunctionKind::Cos,
            "Tan" => FunctionKind::Tan,
            "Asin" => FunctionKind::Asin,
            "Acos" => FunctionKind::Acos,
            "Atan" => FunctionKind::Atan,
            "Sinh" => FunctionKind::Sinh,
            "Cosh" => FunctionKind::Cosh,
            "Asinh" => FunctionKind::Asinh,
            "Acosh" => FunctionKind::Acosh,
            "Atanh" => FunctionKind::Atanh,
            "PRelu" => {
                let fits = present.len() == 2 && broadcast(&self.shape(x), &self.shape(present[1])) == self.shape(x);
                if !fits {
                    let shapes: Vec<Vec<usize>> = present.iter().map(|v| self.shape(*v)).collect();
                    return Err(self.error(node, format!("the slope does not broadcast to x: shapes {shapes:?}")));
                }
                self.push(node, name, Op::Binary(BinaryKind::PRelu), present, y);
                return Ok(true);
            }
            "Mean" => {
                let count = present.len();
                if count == 1 {
                    self.push(node, name, Op::Reshape, present, y);
                    return Ok(true);
                }
                let sum = self.temporary(node, name, self.shape(y), y);
                self.variadic(node, &format!("{name}~sum"), BinaryKind::Add, &present, sum);
                let share = self.new_constant(node, name, vec![], vec![1.0 / count as f32]);
                self.push(node, name, Op::Binary(BinaryKind::Mul), vec![sum, share], y);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.push(node, name, Op::Function(kind), vec![x], y);
        Ok(true)
    }

    /// Lowers ReduceMean and its kin.
    pub(super) fn lower_reduction(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let Some(x) = inputs.first().copied().flatten() else { return Ok(false) };
        let rank = self.shape(x).len();
        let kind = match node.op_type.as_str() {
            "ReduceMean" => Op::Reduce(ReduceKind::Mean, vec![]),
            "ReduceSum" | "ReduceLogSum" => Op::Reduce(ReduceKind::Sum, vec![]),
            "ReduceMax" => Op::Reduce(ReduceKind::Max, vec![]),
            "ReduceMin" => Op::Reduce(ReduceKind::Min, vec![]),
            "ReduceL1" => Op::Reduce(ReduceKind::L1, vec![]),
            "ReduceL2" => Op::Reduce(ReduceKind::L2, vec![]),
            "ReduceSumSquare" => Op::Reduce(ReduceKind::SumSquare, vec![]),
            "ReduceLogSumExp" => Op::Fold(FoldKind::LogSumExp, vec![]),
            "ReduceProd" => Op::Fold(FoldKind::Prod, vec![]),
            _ => return Ok(false),
        };
        let given = match inputs.get(1).copied().flatten() {
            Some(id) => match self.ints(Some(id)) {
                Some(axes) => Some(axes),
                None => return Ok(false),
            },
            None => attributes.ints("axes").map(<[i64]>::to_vec),
        };
        let given = given.filter(|axes| !axes.is_empty());
        // Without axes nothing is reduced, but a square is still a square.
        let none = given.is_none() && attributes.int("noop_with_empty_axes").unwrap_or(0) != 0;
        if none && self.shape(y) != self.shape(x) {
            return Ok(false);
        }
        let at = if none { vec![] } else { self.axes(node, given, rank)? };
        let log = node.op_type == "ReduceLogSum";
        let out = if log { self.temporary(node, name, self.shape(y), y) } else { y };
        let op = match kind {
            Op::Reduce(ReduceKind::Mean | ReduceKind::Sum | ReduceKind::Max | ReduceKind::Min, _) if at.is_empty() => {
                Op::Reshape
            }
            Op::Reduce(kind, _) => Op::Reduce(kind, at),
            Op::Fold(kind, _) => Op::Fold(kind, at),
            other => other,
        };
        self.push(node, &if log { format!("{name}~sum") } else { name.to_owned() }, op, vec![x], out);
        if log {
            self.push(node, name, Op::Unary(UnaryKind::Log), vec![out], y);
        }
        Ok(true)
    }
}
