//! ConvTranspose.

use tract_onnx::pb::NodeProto;

use super::Converter;
use crate::graph::{ValueId, Window};
use crate::onnx::OnnxError;
use crate::onnx::attributes::Attributes;

impl Converter<'_> {
    /// Lowers a ConvTranspose in one or two dimensions with a constant weight; false for another node.
    pub(super) fn lower_conv_transpose(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(w)) = (input(0), input(1)) else { return Ok(false) };
        if node.op_type != "ConvTranspose" {
            return Ok(false);
        }
        let (x_shape, w_shape, y_shape) = (self.shape(x), self.shape(w), self.shape(y));
        let rank = x_shape.len();
        let constant = [Some(w), input(2)].into_iter().flatten().all(|i| self.graph.is_constant(i));
        if !(3..=4).contains(&rank) || w_shape.len() != rank || !constant {
            return Ok(false);
        }
        let attributes = Attributes(node);
        let groups = usize::try_from(attributes.int("group").unwrap_or(1)).unwrap_or(0).max(1);
        let bias = input(2).map(|b| self.shape(b).iter().product::<usize>());
        if y_shape.len() != rank
            || w_shape[0] != x_shape[1]
            || !w_shape[0].is_multiple_of(groups)
            || w_shape[1] * groups != y_shape[1]
            || bias.is_some_and(|b| b != y_shape[1])
        {
            let what = format!("weight {w_shape:?} with {groups} groups does not fit {x_shape:?} to {y_shape:?}");
            return Err(self.error(node, what));
        }
        let n = rank - 2;
        let list = |name: &str, default: usize, n: usize| -> Option<Vec<usize>> {
            let given = attributes.ints(name).filter(|l| !l.is_empty());
            let list = given.map_or_else(
                || Some(vec![default; n]),
                |l| l.iter().map(|v| usize::try_from(*v).ok()).collect::<Option<Vec<_>>>(),
            );
            list.filter(|l| l.len() == n)
        };
        let lists = (|| {
            let (stride, dilation) = (list("strides", 1, n)?, list("dilations", 1, n)?);
            let (pads, extra) = (list("pads", 0, 2 * n)?, list("output_padding", 0, n)?);
            (!stride.contains(&0) && !dilation.contains(&0)).then_some((stride, dilation, pads, extra))
        })();
        let Some((stride, dilation, pads, extra)) = lists else {
            let what = format!("strides, dilations, pads or output_padding are wrong for {n} dimensions");
            return Err(self.error(node, what));
        };
        let auto = attributes.string("auto_pad").unwrap_or("NOTSET");
        let asked = attributes.ints("output_shape").is_some_and(|s| !s.is_empty());
        let (mut begin, mut end) = (pads[..n].to_vec(), pads[n..].to_vec());
        for d in 0..n {
            if !asked && !auto.starts_with("SAME") {
                if auto == "VALID" {
                    (begin[d], end[d]) = (0, 0);
                }
                continue;
            }
            // The padding follows from the output size; the odd one goes to the end for SAME_UPPER.
            let reach = w_shape[d + 2].saturating_sub(1) * dilation[d] + 1;
            let full = x_shape[d + 2].saturating_sub(1) * stride[d] + reach + extra[d];
            let total = full.saturating_sub(y_shape[d + 2]);
            let (less, more) = (total / 2, total - total / 2);
            (begin[d], end[d]) = if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
        }
        let two = |v: &[usize], first: usize| if n == 1 { [first, v[0]] } else { [v[0], v[1]] };
        let window = Window {
            kernel: two(&w_shape[2..], 1),
            stride: two(&stride, 1),
            dilation: two(&dilation, 1),
            pads_begin: two(&begin, 0),
            pads_end: two(&end, 0),
        };
        let takes = [Some(x), Some(w), input(2)].into_iter().flatten().collect();
        self.push_conv_transpose(node, name, (window, groups), takes, y);
        Ok(true)
    }
}
