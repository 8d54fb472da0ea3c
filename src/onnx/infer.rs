//! Types and shapes that tract leaves unknown.
//!
//! tract's analysis runs over the whole file. A node that its parser refuses is set aside as an unknown operator and a
//! node whose rules fail is passed over; where the inputs of such a node are known, the shape rules here (ONNX
//! operator schemas, opsets 7 to 24) say what it gives, and the analysis goes on from there until nothing changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::{ParseResult, ParsingContext};
use tract_onnx::pb::{ModelProto, NodeProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::{Factoid, InferenceModelExt};
use tract_onnx::tract_hir::internal::Tensor;

use super::attributes::{Attributes, axis};
use super::load::{Facts, brief, is_possible, to_f32, to_i64};
use super::{OnnxError, memory, quantised};

/// Operators that tract must not fold, for it reads them otherwise than ONNX says: Celu of 16 bits and Swish without
/// alpha, SpaceToDepth without its mode, recurrent layers in the other direction, shifts by more than the width.
pub(super) const OWN: [&str; 7] = ["BitShift", "Celu", "GRU", "LSTM", "RNN", "SpaceToDepth", "Swish"];

/// Shape and element type.
type Fact = (Vec<usize>, DatumType);

/// The analysed model, and why tract refused the nodes that it did not take, by their first output.
pub(super) struct Analysis {
    pub(super) parsed: ParseResult,
    pub(super) refused: HashMap<String, String>,
}

impl Analysis {
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts { model: &self.parsed.model, outlets: &self.parsed.outlets_by_name, refused: &self.refused }
    }
}

/// Parses and analyses the model of one sample.
pub(super) fn analyse(
    onnx: &Onnx,
    proto: &mut ModelProto,
    folder: Option<&str>,
    opset: i64,
    limit: u64,
) -> Result<Analysis, OnnxError> {
    let aside = refused(onnx, proto, folder, opset);
    let analysis = analyse_without(onnx, proto, folder, (opset, limit), &aside)?;
    // tract folds a largest or smallest value of nothing but infinities, or of nothing at all, to a finite one.
    let folded = |name: &String| analysis.facts().of(name).and_then(|(_, _, value)| value);
    let nodes = proto.graph.iter().flat_map(|g| &g.node).enumerate();
    let extremes = nodes.filter(|(_, n)| ["ReduceMax", "ReduceMin"].contains(&n.op_type.as_str()));
    let wrong = extremes.filter(|(_, n)| n.output.first().and_then(folded).is_some_and(|v| holds_start(&v)));
    let wrong: Vec<_> = wrong.map(|(at, _)| (at, String::from("a value of no numbers"))).collect();
    if wrong.is_empty() {
        return Ok(analysis);
    }
    let mut analysis = analyse_without(onnx, proto, folder, (opset, limit), &[&aside[..], &wrong].concat())?;
    let nodes = proto.graph.iter().flat_map(|g| &g.node).collect::<Vec<_>>();
    for (at, _) in wrong {
        nodes[at].output.iter().for_each(|output| drop(analysis.refused.remove(output)));
    }
    Ok(analysis)
}

/// [`analyse`] with these nodes taken as unknown operators.
fn analyse_without(
    onnx: &Onnx,
    proto: &mut ModelProto,
    folder: Option<&str>,
    (opset, limit): (i64, u64),
    aside: &[(usize, String)],
) -> Result<Analysis, OnnxError> {
    // An operator under a name that tract does not know is taken as it is, with unknown outputs.
    let mut names = Vec::new();
    let nodes = |proto: &mut ModelProto| proto.graph.take().unwrap_or_default();
    let mut graph = nodes(proto);
    for (at, _) in aside {
        names.push(std::mem::replace(&mut graph.node[*at].op_type, "(refused)".into()));
    }
    proto.graph = Some(graph);
    let parsed = onnx.parse(proto, folder);
    let mut graph = nodes(proto);
    for ((at, _), name) in aside.iter().zip(names) {
        graph.node[*at].op_type = name;
    }
    let output = |at: usize| graph.node[at].output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
    let refused = aside.iter().map(|(at, why)| (output(*at), why.clone())).collect();
    let mut analysis = Analysis { parsed: parsed.map_err(|e| OnnxError::Malformed(brief(&e)))?, refused };
    if let Some(name) = analysis.parsed.unresolved_inputs.first() {
        return Err(OnnxError::Malformed(format!("tensor `{name}` is read but nothing gives it")));
    }
    memory::guard(&mut analysis.parsed.model, limit);
    let mut failed = analysis.parsed.model.analyse(true).err();
    let mut set = HashSet::new();
    let held = quantised::held(&graph);
    loop {
        let before = set.len();
        for node in &graph.node {
            let facts = analysis.facts();
            let outlet = |name: &str| analysis.parsed.outlets_by_name.get(name).copied();
            let shaped =
                |(name, fact): (&str, Fact)| Some((outlet(name)?, InferenceFact::dt_shape(fact.1, fact.0.as_slice())));
            let mut told: Vec<_> = unknown(node, opset, &facts).into_iter().filter_map(shaped).collect();
            told.extend(quantised::facts_of(node, &facts, &held).unwrap_or_default());
            for (outlet, fact) in told {
                let model = &mut analysis.parsed.model;
                let unified = model.outlet_fact(outlet).ok().and_then(|found| found.unify(&fact).ok());
                if let Some(unified) = unified
                    && set.insert(outlet)
                {
                    model.set_outlet_fact(outlet, unified).map_err(|e| OnnxError::Analysis(brief(&e)))?;
                }
            }
        }
        if set.len() == before {
            break;
        }
        failed = analysis.parsed.model.analyse(true).err();
    }
    if let Some(error) = failed {
        let facts = analysis.facts();
        let known = |node: &NodeProto| node.output.first().is_none_or(|o| o.is_empty() || facts.of(o).is_some());
        if !graph.node.iter().all(known) {
            return Err(OnnxError::Analysis(brief(&error)));
        }
    }
    proto.graph = Some(graph);
    Ok(analysis)
}

/// Nodes that tract's parser does not take, and why.
fn refused(onnx: &Onnx, proto: &ModelProto, folder: Option<&str>, opset: i64) -> Vec<(usize, String)> {
    let Some(graph) = proto.graph.as_ref() else { return Vec::new() };
    let context = ParsingContext {
        onnx_operator_set_version: opset,
        framework: onnx,
        model: proto,
        parent_graphs: vec![graph],
        model_dir: folder,
        template: InferenceModel::default(),
    };
    let why = |node: &NodeProto| {
        let known = onnx.op_register.0.get(&node.op_type)?;
        if node.op_type == "Constant" || Attributes(node).has_graph() {
            return None;
        }
        // tract gives such a pool the shape of one without dilations.
        let dilated = Attributes(node).ints("dilations").is_some_and(|d| d.iter().any(|d| *d != 1));
        if node.op_type == "AveragePool" && dilated {
            return Some("dilations".into());
        }
        known(&context, node).err().map(|e| brief(&e))
    };
    graph.node.iter().enumerate().filter_map(|(at, node)| Some((at, why(node)?))).collect()
}

/// What the rules say about the outputs of `node` that are unknown.
fn unknown<'a>(node: &'a NodeProto, opset: i64, facts: &Facts) -> Vec<(&'a str, Fact)> {
    let is_open = |name: &String| !name.is_empty() && facts.of(name).is_none();
    if !node.output.iter().any(is_open) {
        return Vec::new();
    }
    let input = |name: &String| {
        let (shape, dt, value) = facts.of(name)?;
        Some(Input { shape, dt, value })
    };
    let inputs = node.input.iter().map(|name| if name.is_empty() { None } else { input(name) }).collect();
    let given = Known { node, opset, inputs }.outputs().unwrap_or_default();
    let possible = |(_, fact): &(&String, Fact)| {
        let dims: Option<Vec<i64>> = fact.0.iter().map(|d| i64::try_from(*d).ok()).collect();
        dims.is_some_and(|d| is_possible(&d))
    };
    let open = node.output.iter().zip(given).filter(|(name, _)| is_open(name)).filter(possible);
    open.map(|(name, fact)| (name.as_str(), fact)).collect()
}

struct Input {
    shape: Vec<usize>,
    dt: DatumType,
    value: Option<Arc<Tensor>>,
}

/// A node with what is known about its inputs: nothing where one is absent or still unknown.
struct Known<'a> {
    node: &'a NodeProto,
    opset: i64,
    inputs: Vec<Option<Input>>,
}

impl Known<'_> {
    /// The outputs in the order of the operator's schema, as many of them as the rule knows.
    fn outputs(&self) -> Option<Vec<Fact>> {
        let x = self.input(0)?;
        let same = || (x.shape.clone(), x.dt);
        let shaped = |shape: Option<Vec<usize>>| Some(vec![(shape?, x.dt)]);
        match self.node.op_type.as_str() {
            "Abs"
            | "Acos"
            | "Acosh"
            | "Asin"
            | "Asinh"
            | "Atan"
            | "Atanh"
            | "BatchNormalization"
            | "BitwiseNot"
            | "Ceil"
            | "Celu"
            | "Clip"
            | "Cos"
            | "Cosh"
            | "CumSum"
            | "Dropout"
            | "Elu"
            | "Erf"
            | "Exp"
            | "FastGelu"
            | "BiasGelu"
            | "Floor"
            | "Gelu"
            | "GroupNorm"
            | "GroupNormalization"
            | "HardSigmoid"
            | "HardSwish"
            | "Hardmax"
            | "Identity"
            | "InstanceNormalization"
            | "LRN"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "LpNormalization"
            | "MeanVarianceNormalization"
            | "Mish"
            | "Neg"
            | "PRelu"
            | "QuickGelu"
            | "Reciprocal"
            | "Relu"
            | "ReverseSequence"
            | "Round"
            | "Rsqrt"
            | "Selu"
            | "Shrink"
            | "Sigmoid"
            | "Sign"
            | "Sin"
            | "Sinh"
            | "Softmax"
            | "Softplus"
            | "Softsign"
            | "Sqrt"
            | "Swish"
            | "Tan"
            | "Tanh"
            | "ThresholdedRelu"
            | "Trilu" => Some(vec![same()]),
            "Bernoulli" if self.attributes().int("dtype").is_none() => Some(vec![same()]),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                let from = axis(self.attributes().int("axis").unwrap_or(-1), x.shape.len())?;
                let row = (normalised(&x.shape, from), f32::datum_type());
                Some(vec![same(), row.clone(), row])
            }
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
                let row = (normalised(&x.shape, x.shape.len().checked_sub(1)?), f32::datum_type());
                Some(vec![same(), row.clone(), row, same()])
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Max" | "Min" | "Sum" | "Mean" | "BitShift"
            | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => shaped(self.broadcast(0)),
            "And" | "Or" | "Xor" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" => {
                Some(vec![(self.broadcast(0)?, bool::datum_type())])
            }
            "Where" => Some(vec![(self.broadcast(0)?, self.input(1)?.dt)]),
            "Pad" => shaped(self.pad()),
            "CenterCropPad" => shaped(self.center_crop_pad()),
            "MaxPool" => {
                let y = self.pool()?;
                Some(vec![(y.clone(), x.dt), (y, i64::datum_type())])
            }
            "AveragePool" | "LpPool" => shaped(self.pool()),
            "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool" => {
                let plane = x.shape.len().checked_sub(2)?;
                shaped(Some([&x.shape[..2], &vec![1; plane]].concat()))
            }
            "Conv" | "FusedConv" => shaped(self.conv()),
            "ConvTranspose" => shaped(self.conv_transpose()),
            "Resize" => shaped(self.resize()),
            "Upsample" => shaped(self.upsample()),
            "DepthToSpace" => {
                let [n, c, h, w] = self.plane()?;
                let b = self.block()?;
                shaped(Some(vec![n, c.checked_div(b.checked_mul(b)?)?, h.checked_mul(b)?, w.checked_mul(b)?]))
            }
            "SpaceToDepth" => {
                let [n, c, h, w] = self.plane()?;
                let b = self.block()?;
                shaped(Some(vec![n, c.checked_mul(b)?.checked_mul(b)?, h.checked_div(b)?, w.checked_div(b)?]))
            }
            "GridSample" => {
                let grid = &self.input(1)?.shape;
                let plane = grid.get(1..grid.len().checked_sub(1)?)?;
                shaped(Some([x.shape.get(..2)?, plane].concat()))
            }
            "AffineGrid" => {
                let size = self.sizes(1)?;
                let [n, _, plane @ ..] = size.as_slice() else { return None };
                shaped(Some([&[*n], plane, &[plane.len()]].concat()))
            }
            "Col2Im" => {
                let (image, block) = (self.sizes(1)?, self.sizes(2)?);
                let c = x.shape.get(1)?.checked_div(block.iter().product())?;
                shaped(Some([&[x.shape[0], c], image.as_slice()].concat()))
            }
            "RoiAlign" => {
                let size = |name: &str| usize::try_from(self.attributes().int(name).unwrap_or(1)).ok();
                let rois = *self.input(1)?.shape.first()?;
                shaped(Some(vec![rois, *x.shape.get(1)?, size("output_height")?, size("output_width")?]))
            }
            "Det" => shaped(Some(x.shape[..x.shape.len().checked_sub(2)?].to_vec())),
            "FusedMatMul" => shaped(self.fused_matmul()),
            "GRU" | "LSTM" | "RNN" => self.recurrent(),
            "ReduceMax" | "ReduceMin" => shaped(self.reduced()),
            _ => None,
        }
    }

    fn attributes(&self) -> Attributes<'_> {
        Attributes(self.node)
    }

    fn input(&self, i: usize) -> Option<&Input> {
        self.inputs.get(i)?.as_ref()
    }

    /// Whether the node has that input, known or not.
    fn has(&self, i: usize) -> bool {
        self.node.input.get(i).is_some_and(|name| !name.is_empty())
    }

    fn ints(&self, i: usize) -> Option<Vec<i64>> {
        to_i64(self.input(i)?.value.as_deref()?)
    }

    fn sizes(&self, i: usize) -> Option<Vec<usize>> {
        self.ints(i)?.into_iter().map(|d| usize::try_from(d).ok()).collect()
    }

    fn block(&self) -> Option<usize> {
        usize::try_from(self.attributes().int("blocksize")?).ok().filter(|b| *b > 0)
    }

    fn plane(&self) -> Option<[usize; 4]> {
        self.input(0)?.shape.as_slice().try_into().ok()
    }

    /// The shape of all inputs from `first` on, broadcast; all must be known.
    fn broadcast(&self, first: usize) -> Option<Vec<usize>> {
        let mut out: Vec<usize> = Vec::new();
        for input in self.inputs.get(first..)? {
            let shape = &input.as_ref()?.shape;
            let rank = out.len().max(shape.len());
            let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
            let pairs = (0..rank).map(|i| (at(&out, i), at(shape, i)));
            out =
                pairs.map(|(a, b)| (a == b || b == 1).then_some(a).or((a == 1).then_some(b))).collect::<Option<_>>()?;
        }
        Some(out)
    }

    fn axes(&self, given: Option<Vec<i64>>, rank: usize) -> Option<Vec<usize>> {
        given.map_or_else(|| Some((0..rank).collect()), |axes| axes.iter().map(|a| axis(*a, rank)).collect())
    }

    /// Pad, also with an `axes` input (opset 18).
    fn pad(&self) -> Option<Vec<usize>> {
        let mut shape = self.input(0)?.shape.clone();
        let pads = match self.attributes().ints("pads").filter(|_| self.opset < 11) {
            Some(pads) => pads.to_vec(),
            None => self.ints(1)?,
        };
        let axes = if self.has(3) { Some(self.ints(3)?) } else { None };
        let axes = self.axes(axes, shape.len())?;
        for (i, axis) in axes.iter().enumerate() {
            let size = i64::try_from(shape[*axis]).ok()?;
            let padded = size.checked_add(*pads.get(i)?)?.checked_add(*pads.get(i + axes.len())?)?;
            shape[*axis] = usize::try_from(padded).ok()?;
        }
        Some(shape)
    }

    fn center_crop_pad(&self) -> Option<Vec<usize>> {
        let mut shape = self.input(0)?.shape.clone();
        let sizes = self.sizes(1)?;
        let axes = self.axes(self.attributes().ints("axes").map(<[i64]>::to_vec), shape.len())?;
        for (axis, size) in axes.iter().zip(sizes) {
            shape[*axis] = size;
        }
        Some(shape)
    }

    /// A list of `n` sizes in an attribute.
    fn list(&self, name: &str, n: usize, default: usize) -> Option<Vec<usize>> {
        let Some(given) = self.attributes().ints(name).filter(|l| !l.is_empty()) else { return Some(vec![default; n]) };
        let list: Option<Vec<usize>> = given.iter().map(|v| usize::try_from(*v).ok()).collect();
        list.filter(|l| l.len() == n)
    }

    fn windows(&self, kernel: &[usize]) -> Option<Vec<usize>> {
        let x = &self.input(0)?.shape;
        let n = x.len().checked_sub(2)?;
        let (stride, dilation) = (self.list("strides", n, 1)?, self.list("dilations", n, 1)?);
        let pads = self.list("pads", 2 * n, 0)?;
        let attributes = self.attributes();
        let auto = attributes.string("auto_pad").unwrap_or("NOTSET");
        let ceil = attributes.int("ceil_mode").unwrap_or(0) != 0;
        let size = |d: usize| {
            let (x, stride) = (x[d + 2], stride[d]);
            let (begin, end) = if auto == "NOTSET" { (pads[d], pads[n + d]) } else { (0, 0) };
            if stride == 0 || *kernel.get(d)? == 0 {
                return None;
            }
            if auto.starts_with("SAME") {
                return Some(x.div_ceil(stride));
            }
            let room = x.checked_add(begin)?.checked_add(end)?;
            let room = room.checked_sub((kernel[d] - 1).checked_mul(dilation[d])?.checked_add(1)?)?;
            if !ceil {
                return Some(room / stride + 1);
            }
            // A window that would start in the padding at the end is left out.
            let y = room.div_ceil(stride) + 1;
            Some(if (y - 1) * stride >= x + begin { y - 1 } else { y })
        };
        (0..n).map(size).collect()
    }

    fn pool(&self) -> Option<Vec<usize>> {
        let x = &self.input(0)?.shape;
        let n = x.len().checked_sub(2)?;
        let kernel = self.list("kernel_shape", n, 0)?;
        Some([&x[..2], self.windows(&kernel)?.as_slice()].concat())
    }

    fn conv(&self) -> Option<Vec<usize>> {
        let (x, w) = (&self.input(0)?.shape, &self.input(1)?.shape);
        let groups = usize::try_from(self.attributes().int("group").unwrap_or(1)).ok()?;
        let fits = x.len() == w.len() && x.len() > 2 && w[1].checked_mul(groups) == Some(x[1]);
        fits.then_some(())?;
        Some([&[x[0], w[0]], self.windows(&w[2..])?.as_slice()].concat())
    }

    fn conv_transpose(&self) -> Option<Vec<usize>> {
        let (x, w) = (&self.input(0)?.shape, &self.input(1)?.shape);
        if x.len() != w.len() || x.len() < 3 || w[0] != x[1] {
            return None;
        }
        let attributes = self.attributes();
        let n = x.len() - 2;
        let groups = usize::try_from(attributes.int("group").unwrap_or(1)).ok()?;
        let mut y = vec![x[0], w[1].checked_mul(groups)?];
        if attributes.ints("output_shape").is_some_and(|s| !s.is_empty()) {
            let given = attributes.ints("output_shape")?;
            // The whole shape or that of the plane alone.
            let plane = given.get(given.len().checked_sub(n)?..)?;
            y.extend(plane.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<_>>>()?);
            return Some(y);
        }
        let (stride, dilation) = (self.list("strides", n, 1)?, self.list("dilations", n, 1)?);
        let (pads, extra) = (self.list("pads", 2 * n, 0)?, self.list("output_padding", n, 0)?);
        let auto = attributes.string("auto_pad").unwrap_or("NOTSET");
        for d in 0..n {
            let reach = w[d + 2].checked_sub(1)?.checked_mul(dilation[d])?.checked_add(1)?;
            let full = x[d + 2].checked_sub(1)?.checked_mul(stride[d])?.checked_add(reach)?.checked_add(extra[d])?;
            y.push(match auto {
                "SAME_UPPER" | "SAME_LOWER" => x[d + 2].checked_mul(stride[d])?,
                "NOTSET" => full.checked_sub(pads[d])?.checked_sub(pads[n + d])?,
                _ => full,
            });
        }
        Some(y)
    }

    fn resize(&self) -> Option<Vec<usize>> {
        let x = &self.input(0)?.shape;
        let (scales, sizes) = if self.opset < 11 { (1, usize::MAX) } else { (2, 3) };
        let axes = self.attributes().ints("axes").filter(|_| self.opset >= 18).map(<[i64]>::to_vec);
        let axes = self.axes(axes, x.len())?;
        if self.has(sizes) {
            let sizes = self.sizes(sizes)?;
            let policy = self.attributes().string("keep_aspect_ratio_policy").unwrap_or("stretch");
            return super::convert::resized(x, &axes, &sizes, policy);
        }
        let scales = to_f32(self.input(scales)?.value.as_deref()?)?;
        scaled(x, &axes, &scales)
    }

    fn upsample(&self) -> Option<Vec<usize>> {
        let x = &self.input(0)?.shape;
        let axes: Vec<usize> = (0..x.len()).collect();
        let attribute = self.attributes().get("scales").map(|a| a.floats.as_slice());
        match attribute.filter(|_| self.opset < 9) {
            Some(scales) => scaled(x, &axes, scales),
            None => scaled(x, &axes, &to_f32(self.input(1)?.value.as_deref()?)?),
        }
    }

    /// Y, and the last state of each direction.
    fn recurrent(&self) -> Option<Vec<Fact>> {
        let (x, w, r) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let (&[first, second, _], &[directions, ..], &[.., hidden]) = (&x.shape[..], &w.shape[..], &r.shape[..]) else {
            return None;
        };
        let batch_first = self.attributes().int("layout").unwrap_or(0) != 0;
        let (y, last) = match batch_first {
            true => (vec![first, second, directions, hidden], vec![first, directions, hidden]),
            false => (vec![first, directions, second, hidden], vec![directions, second, hidden]),
        };
        Some([y, last.clone(), last].map(|shape| (shape, x.dt)).to_vec())
    }

    fn reduced(&self) -> Option<Vec<usize>> {
        let x = &self.input(0)?.shape;
        let attribute = self.attributes().ints("axes").map(<[i64]>::to_vec);
        let given = if self.has(1) { Some(self.ints(1)?) } else { attribute };
        let axes = match given.filter(|axes| !axes.is_empty()) {
            Some(axes) => self.axes(Some(axes), x.len())?,
            None if self.attributes().int("noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
            None => (0..x.len()).collect(),
        };
        let keep = self.attributes().int("keepdims").unwrap_or(1) != 0;
        let sizes = x.iter().enumerate().filter(|(d, _)| keep || !axes.contains(d));
        Some(sizes.map(|(d, size)| if axes.contains(&d) { 1 } else { *size }).collect())
    }

    fn fused_matmul(&self) -> Option<Vec<usize>> {
        let attributes = self.attributes();
        let matrix = |i: usize, flag: &str| {
            let mut shape = self.input(i)?.shape.clone();
            let rank = shape.len();
            if attributes.int(flag).unwrap_or(0) != 0 {
                shape.swap(rank.checked_sub(2)?, rank - 1);
            }
            (rank >= 2).then_some(shape)
        };
        let (a, b) = (matrix(0, "transA")?, matrix(1, "transB")?);
        let fits = a.len() == b.len() && a[a.len() - 1] == b[b.len() - 2] && a[..a.len() - 2] == b[..b.len() - 2];
        fits.then(|| [&a[..a.len() - 1], &b[b.len() - 1..]].concat())
    }
}

/// Whether a tensor holds the value that tract's reductions start from, where ONNX starts from infinity.
fn holds_start(tensor: &Tensor) -> bool {
    let float = tensor.datum_type().is_float();
    float && to_f32(tensor).is_some_and(|v| v.iter().any(|v| v.abs() == f32::MAX))
}

fn scaled(x: &[usize], axes: &[usize], scales: &[f32]) -> Option<Vec<usize>> {
    if axes.len() != scales.len() || scales.iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return None;
    }
    let mut shape = x.to_vec();
    for (axis, scale) in axes.iter().zip(scales) {
        shape[*axis] = (x[*axis] as f64 * f64::from(*scale)).floor() as usize;
    }
    Some(shape)
}

/// `shape` with the axes from `from` on reduced to one.
fn normalised(shape: &[usize], from: usize) -> Vec<usize> {
    shape.iter().enumerate().map(|(d, size)| if d < from { *size } else { 1 }).collect()
}
