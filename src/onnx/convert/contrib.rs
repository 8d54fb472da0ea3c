//! Gelu and its kin as ONNX Runtime's optimisers write them (domain com.microsoft).

use tract_onnx::pb::NodeProto;

use super::{Converter, broadcast};
use crate::graph::{Op, ValueId};
use crate::onnx::OnnxError;
use crate::onnx::attributes::Attributes;
use crate::ops::binary::BinaryKind;
use crate::ops::function::FunctionKind;

/// Default of QuickGelu.
const QUICK_ALPHA: f32 = 1.702;

impl Converter<'_> {
    /// Lowers an operator of domain com.microsoft; false for one that must run through tract.
    pub(super) fn lower_contrib(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> Result<bool, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(y)) = (input(0), outputs.first().copied()) else { return Ok(false) };
        let kind = match node.op_type.as_str() {
            "Gelu" | "BiasGelu" => FunctionKind::Gelu,
            "FastGelu" => FunctionKind::GeluTanh,
            "QuickGelu" => FunctionKind::Swish { alpha: Attributes(node).float("alpha").unwrap_or(QUICK_ALPHA) },
            _ => return self.lower_norm(node, name, inputs, outputs),
        };
        let mut from = x;
        if let Some(bias) = input(1) {
            from = self.temporary(node, name, broadcast(&self.shape(x), &self.shape(bias)), x);
            self.push(node, &format!("{name}~bias"), Op::Binary(BinaryKind::Add), vec![x, bias], from);
        }
        self.push(node, name, Op::Function(kind), vec![from], y);
        Ok(true)
    }
}
