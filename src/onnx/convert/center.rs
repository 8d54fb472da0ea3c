//! CenterCropPad.

use tract_onnx::pb::NodeProto;

use super::Converter;
use crate::graph::{Op, ValueId};
use crate::onnx::OnnxError;
use crate::ops::movement::PadMode;

impl Converter<'_> {
    /// Lowers CenterCropPad: what is too long is cut, then what is too short is padded with zeros; an odd one is at
    /// the end. The shape is that of `y`.
    pub(super) fn lower_center_crop_pad(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let Some(x) = inputs.first().copied().flatten() else { return Ok(false) };
        let (from, to) = (self.shape(x), self.shape(y));
        if node.op_type != "CenterCropPad" || from.len() != to.len() {
            return Ok(false);
        }
        let pairs = || from.iter().zip(&to);
        let cut: Vec<usize> = pairs().map(|(from, to)| *from.min(to)).collect();
        let starts = pairs().map(|(from, to)| from.saturating_sub(*to) / 2).collect();
        let before = pairs().map(|(from, to)| (to.saturating_sub(*from) / 2) as isize).collect();
        let middle = self.temporary(node, name, cut, x);
        self.push(node, &format!("{name}~0"), Op::Slice(starts, vec![1; from.len()]), vec![x], middle);
        self.push(node, name, Op::Pad(before, PadMode::Constant(0.0)), vec![middle], y);
        Ok(true)
    }
}
