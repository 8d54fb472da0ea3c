//! Convolutions and pools: their windows, in any number of dimensions, and what has a batch of its own.
//!
//! A plan works on one plane `[1, c, h, w]`. A pool looks at each channel alone and its window is a product of axes, so that
//! a batch counts as channels and a pool over more than two axes is one over the last two, then one over each before
//! them: max of max, mean of means (the number of values is a product too), norm of norms.
//!
//! A convolution of a batch is one over a plane with the samples below each other, each padded to a multiple of the
//! stride that no window leaves; the rows between the samples are then cut out.

use tract_onnx::pb::NodeProto;

use super::Converter;
use crate::graph::{Op, ValueId, Window};
use crate::onnx::OnnxError;
use crate::onnx::attributes::Attributes;
use crate::ops::movement::PadMode;

/// The largest kernel, step or padding: no plane of a model has sides as long.
const MAX_EXTENT: usize = 1 << 24;

/// Sizes that an attribute states; what is negative is more than any.
pub(super) fn extents(given: Option<&[i64]>) -> Vec<usize> {
    given.unwrap_or_default().iter().map(|v| usize::try_from(*v).unwrap_or(usize::MAX)).collect()
}

/// A window in any number of dimensions.
struct Sides {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    begin: Vec<usize>,
    end: Vec<usize>,
}

impl Sides {
    /// The part of it along these axes; height 1 where there is none.
    fn along(&self, height: Option<usize>, width: Option<usize>) -> Window {
        let two = |sides: &[usize], none: usize| [height, width].map(|at| at.map_or(none, |at| sides[at]));
        Window {
            kernel: two(&self.kernel, 1),
            stride: two(&self.stride, 1),
            dilation: two(&self.dilation, 1),
            pads_begin: two(&self.begin, 0),
            pads_end: two(&self.end, 0),
        }
    }
}

impl Converter<'_> {
    /// Kernel, stride, dilation and padding of a convolution or pool in one or two dimensions; a 1-D window gets height 1.
    pub(super) fn window(
        &self,
        node: &NodeProto,
        kernel: &[usize],
        x: &[usize],
        y: &[usize],
    ) -> Result<Window, OnnxError> {
        let sides = self.sides(node, kernel, x, y)?;
        let n = sides.kernel.len();
        Ok(sides.along(n.checked_sub(2), n.checked_sub(1)))
    }

    fn sides(&self, node: &NodeProto, kernel: &[usize], x: &[usize], y: &[usize]) -> Result<Sides, OnnxError> {
        let attributes = Attributes(node);
        let n = x.len().saturating_sub(2);
        let list = |name: &str, n: usize, default: usize| match extents(attributes.ints(name)) {
            given if given.is_empty() => vec![default; n],
            given => given,
        };
        let (stride, dilation, pads) = (list("strides", n, 1), list("dilations", n, 1), list("pads", 2 * n, 0));
        let lists = [kernel, &stride, &dilation, &pads];
        if n == 0
            || [kernel.len(), stride.len(), dilation.len(), pads.len(), y.len()] != [n, n, n, 2 * n, n + 2]
            || lists.into_iter().flatten().any(|v| *v > MAX_EXTENT)
        {
            let what = format!(
                "kernel {kernel:?}, strides {stride:?}, dilations {dilation:?}, pads {pads:?} do not fit {x:?}"
            );
            return Err(self.error(node, what));
        }
        if kernel.iter().chain(&stride).chain(&dilation).any(|v| *v == 0) {
            return Err(self.error(node, "kernel, strides and dilations must be at least 1"));
        }
        let (mut begin, mut end) = (pads[..n].to_vec(), pads[n..].to_vec());
        let auto = attributes.string("auto_pad").unwrap_or("NOTSET");
        for d in 0..n {
            let reach = (kernel[d] - 1) * dilation[d] + 1;
            let total = ((y[d + 2].max(1) - 1) * stride[d] + reach).saturating_sub(x[d + 2]);
            match auto {
                "SAME_UPPER" => (begin[d], end[d]) = (total / 2, total - total / 2),
                "SAME_LOWER" => (begin[d], end[d]) = (total - total / 2, total / 2),
                "VALID" => (begin[d], end[d]) = (0, 0),
                _ => {}
            }
            if node.op_type.contains("Conv") && reach > x[d + 2] + begin[d] + end[d] {
                let what = format!("its kernel reaches over {reach} values, more than {x:?} has; give a longer input");
                return Err(self.error(node, what));
            }
        }
        Ok(Sides { kernel: kernel.to_vec(), stride, dilation, begin, end })
    }

    /// Lowers a pool of which only the values are asked for.
    pub(super) fn lower_pool(
        &mut self,
        node: &NodeProto,
        name: &str,
        x: ValueId,
        outputs: &[ValueId],
    ) -> Result<bool, OnnxError> {
        let [y] = *outputs else { return Ok(false) };
        let attributes = Attributes(node);
        let (from, to) = (self.shape(x), self.shape(y));
        let sides = self.sides(node, &extents(attributes.ints("kernel_shape")), &from, &to)?;
        let counted = attributes.int("count_include_pad").unwrap_or(0) != 0;
        let p = i32::try_from(attributes.int("p").unwrap_or(2)).ok().filter(|p| *p > 0);
        let p = p.ok_or_else(|| self.error(node, "its p must be 1 or more"))?;
        let pool = |window: Window| match node.op_type.as_str() {
            "MaxPool" => Op::MaxPool(window),
            "LpPool" => Op::LpPool(window, p),
            _ => Op::AveragePool(window, counted),
        };
        let (sizes, out) = (&from[2..], &to[2..]);
        let last = sizes.len() - 1;
        if from[0] == 1 && to[0] == 1 && last < 2 {
            self.push(node, name, pool(sides.along(last.checked_sub(1), Some(last))), vec![x], y);
            return Ok(true);
        }
        if from[..2] != to[..2] {
            return Err(self.error(node, format!("{from:?} does not give {to:?}")));
        }
        // The last two axes, then the others one by one from the back.
        let pair = (last.checked_sub(1), Some(last));
        let axes = std::iter::once(pair).chain((0..last.saturating_sub(1)).rev().map(|a| (Some(a), None)));
        let mut value = x;
        for (i, (height, width)) in axes.enumerate() {
            let first = height.unwrap_or(last);
            let rows = height.map_or(1, |a| sizes[a]);
            let channels: usize = from[..2].iter().chain(&sizes[..first]).product();
            let behind =
                |sizes: &[usize]| if width.is_some() { sizes[last] } else { out[first + 1..].iter().product() };
            let own = |part: &str| format!("{name}~{i}{part}");
            let plane = self.temporary(node, &own("plane"), vec![1, channels, rows, behind(sizes)], x);
            self.push(node, &own("~plane"), Op::Reshape, vec![value], plane);
            let pooled = vec![1, channels, height.map_or(1, |a| out[a]), behind(out)];
            let pooled = self.temporary(node, &own("pool"), pooled, x);
            let own = if i == 0 { name.to_owned() } else { own("") };
            self.push(node, &own, pool(sides.along(height, width)), vec![plane], pooled);
            value = pooled;
        }
        self.push(node, &format!("{name}~whole"), Op::Reshape, vec![value], y);
        Ok(true)
    }

    /// A convolution of `[x, weight, bias]`, of a batch too.
    pub(super) fn push_conv(
        &mut self,
        node: &NodeProto,
        name: &str,
        (mut window, groups): (Window, usize),
        inputs: &[ValueId],
        y: ValueId,
    ) {
        let (n, rows, stride) = (self.shape(inputs[0])[0], rows(&self.shape(y)), window.stride[0]);
        if n == 1 {
            return self.push(node, name, Op::Conv(window, groups), inputs.to_vec(), y);
        }
        let reach = (window.kernel[0] - 1) * window.dilation[0] + 1;
        let side = ((rows.max(1) - 1) * stride + reach).next_multiple_of(stride);
        let x = self.stacked(node, name, inputs[0], window.pads_begin[0], side);
        (window.pads_begin[0], window.pads_end[0]) = (0, reach.saturating_sub(stride));
        let inputs = [&[x], &inputs[1..]].concat();
        self.push_stacked(node, name, Op::Conv(window, groups), inputs, (side / stride, 0), y);
    }

    /// [`Converter::push_conv`] for a transposed convolution.
    pub(super) fn push_conv_transpose(
        &mut self,
        node: &NodeProto,
        name: &str,
        (mut window, groups): (Window, usize),
        inputs: Vec<ValueId>,
        y: ValueId,
    ) {
        let shape = self.shape(inputs[0]);
        let (n, stride, first) = (shape[0], window.stride[0], window.pads_begin[0]);
        if n == 1 {
            return self.push(node, name, Op::ConvTranspose(window, groups), inputs, y);
        }
        let reach = (window.kernel[0] - 1) * window.dilation[0] + 1;
        let written = (rows(&shape).max(1) - 1) * stride + reach;
        let side = written.max(first + rows(&self.shape(y))).div_ceil(stride);
        let x = self.stacked(node, name, inputs[0], 0, side);
        (window.pads_begin[0], window.pads_end[0]) = (0, reach.saturating_sub(stride));
        let inputs = [&[x], &inputs[1..]].concat();
        self.push_stacked(node, name, Op::ConvTranspose(window, groups), inputs, (side * stride, first), y);
    }

    /// x `[n, c, (h,) w]` as one plane `[1, c, n · side, w]`: each sample with so many rows of zeros before it, and cut or
    /// padded to `side` rows.
    fn stacked(&mut self, node: &NodeProto, name: &str, x: ValueId, before: usize, side: usize) -> ValueId {
        let shape = self.shape(x);
        let (n, c, w) = (shape[0], shape[1], shape[shape.len() - 1]);
        let pad = Op::Pad(vec![0, 0, before as isize, 0], PadMode::Constant(0.0));
        let mut value = x;
        for (what, op, shape) in [
            ("rows", Op::Reshape, vec![n, c, rows(&shape), w]),
            ("pad", pad, vec![n, c, side, w]),
            ("turn", Op::Transpose(vec![1, 0, 2, 3]), vec![c, n, side, w]),
            ("plane", Op::Reshape, vec![1, c, n * side, w]),
        ] {
            let next = self.temporary(node, name, shape, x);
            self.push(node, &format!("{name}~{what}"), op, vec![value], next);
            value = next;
        }
        value
    }

    /// What `op` gives for stacked samples, `side` rows each, and y: the rows of each from `first` on.
    fn push_stacked(
        &mut self,
        node: &NodeProto,
        name: &str,
        op: Op,
        inputs: Vec<ValueId>,
        (side, first): (usize, usize),
        y: ValueId,
    ) {
        let (like, shape) = (inputs[0], self.shape(y));
        let (n, o, w) = (shape[0], shape[1], shape[shape.len() - 1]);
        let mut value = self.temporary(node, name, vec![1, o, n * side, w], like);
        self.push(node, name, op, inputs, value);
        for (what, op, shape) in [
            ("samples", Op::Reshape, vec![o, n, side, w]),
            ("cut", Op::Slice(vec![0, 0, first, 0], vec![1; 4]), vec![o, n, rows(&shape), w]),
            ("back", Op::Transpose(vec![1, 0, 2, 3]), vec![n, o, rows(&shape), w]),
        ] {
            let next = self.temporary(node, name, shape, like);
            self.push(node, &format!("{name}~{what}"), op, vec![value], next);
            value = next;
        }
        self.push(node, &format!("{name}~whole"), Op::Reshape, vec![value], y);
    }
}

/// Rows of `[n, c, h, w]`; a line `[n, c, w]` has one.
fn rows(shape: &[usize]) -> usize {
    if shape.len() == 4 { shape[2] } else { 1 }
}
