//! Normalisations: those of the standard, and what ONNX Runtime's optimisers make of them (domain com.microsoft).

use tract_onnx::pb::NodeProto;

use super::{Converter, broadcast};
use crate::graph::{Op, Value, ValueId};
use crate::onnx::OnnxError;
use crate::onnx::attributes::{Attributes, axis};
use crate::ops::binary::BinaryKind;
use crate::ops::norm::NormKind;
use crate::ops::reduce::ReduceKind;
use crate::ops::unary::UnaryKind;

/// Added to the standard deviation by the function body of ONNX MeanVarianceNormalization.
const DEVIATION_EPSILON: f32 = 1e-9;
/// Default of ONNX Runtime's SkipLayerNormalization.
const SKIP_EPSILON: f32 = 1e-12;

impl Converter<'_> {
    /// Lowers a normalisation; false if the node is none, or has an output that only training needs.
    pub(super) fn lower_norm(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(y)) = (input(0), outputs.first().copied()) else { return Ok(false) };
        let shape = self.shape(x);
        let rank = shape.len();
        let epsilon = |default: f32| attributes.float("epsilon").unwrap_or(default);
        let out_of_range = |what: &str| self.error(node, format!("its {what} does not fit input {shape:?}"));
        let axis_or =
            |default: i64| axis(attributes.int("axis").unwrap_or(default), rank).ok_or_else(|| out_of_range("axis"));
        match node.op_type.as_str() {
            "LayerNormalization" if self.reads_statistics(node) => {
                let axes: Vec<usize> = (axis_or(-1)?..rank).collect();
                self.push_statistics(node, name, x, &axes, epsilon(1e-5));
                let kind = NormKind::Standard { epsilon: epsilon(1e-5) };
                self.push_norm(node, name, (kind, axes, 1), x, [input(1), input(2)], y)?;
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization"
                if !self.reads_statistics(node) =>
            {
                let axes = (axis_or(-1)?..rank).collect();
                let kind = match node.op_type.as_str() {
                    "LayerNormalization" => NormKind::Standard { epsilon: epsilon(1e-5) },
                    _ => NormKind::RootMeanSquare { epsilon: epsilon(1e-5) },
                };
                self.push_norm(node, name, (kind, axes, 1), x, [input(1), input(2)], y)?;
            }
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
                return self.skip_norm(node, name, inputs, y, epsilon(SKIP_EPSILON));
            }
            "InstanceNormalization" if rank >= 2 => {
                let kind = NormKind::Standard { epsilon: epsilon(1e-5) };
                let (scale, bias) =
                    (self.per_channel(node, input(1), &shape, 1)?, self.per_channel(node, input(2), &shape, 1)?);
                self.push_norm(node, name, (kind, (2..rank).collect(), 1), x, [scale, bias], y)?;
            }
            "GroupNormalization" if rank >= 2 => {
                let groups = attributes.int("num_groups").and_then(|g| usize::try_from(g).ok()).unwrap_or(0);
                if groups == 0 || !shape[1].is_multiple_of(groups) {
                    return Err(out_of_range(&format!("number of groups, {groups},")));
                }
                let kind = NormKind::Standard { epsilon: epsilon(1e-5) };
                let (scale, bias) = (
                    self.per_channel(node, input(1), &shape, groups)?,
                    self.per_channel(node, input(2), &shape, groups)?,
                );
                self.push_norm(node, name, (kind, (1..rank).collect(), groups), x, [scale, bias], y)?;
            }
            "LpNormalization" => {
                let kind = match attributes.int("p").unwrap_or(2) {
                    1 => NormKind::L1,
                    2 => NormKind::L2,
                    p => return Err(self.error(node, format!("p is {p}, expected 1 or 2"))),
                };
                self.push_norm(node, name, (kind, vec![axis_or(-1)?], 1), x, [None, None], y)?;
            }
            "MeanVarianceNormalization" => {
                let axes = attributes.ints("axes").unwrap_or(&[0, 2, 3]).to_vec();
                let kind = NormKind::Deviation { epsilon: DEVIATION_EPSILON };
                let axes = self.axes(node, Some(axes), rank)?;
                self.push_norm(node, name, (kind, axes, 1), x, [None, None], y)?;
            }
            "LRN" if rank >= 2 => {
                let size = attributes.int("size").and_then(|s| usize::try_from(s).ok()).filter(|s| *s > 0);
                let size = size.ok_or_else(|| out_of_range("size"))?;
                let float = |name: &str, default: f32| attributes.float(name).unwrap_or(default);
                let parameters = [float("alpha", 1e-4), float("beta", 0.75), float("bias", 1.0)];
                self.push(node, name, Op::Lrn(size, parameters), vec![x], y);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether anything reads the mean or the deviation that the node gives beside its output.
    fn reads_statistics(&self, node: &NodeProto) -> bool {
        let given: Vec<&String> = node.output.iter().skip(1).take(2).filter(|o| !o.is_empty()).collect();
        let graph = self.proto.graph.as_ref();
        let inputs = graph.iter().flat_map(|g| &g.node).flat_map(|n| &n.input);
        let outputs = graph.iter().flat_map(|g| &g.output).map(|o| &o.name);
        inputs.chain(outputs).any(|name| given.contains(&name))
    }

    /// Mean and 1/√(variance + ε), which a LayerNormalization has as further outputs.
    fn push_statistics(&mut self, node: &NodeProto, name: &str, x: ValueId, axes: &[usize], epsilon: f32) {
        let output = |i: usize| node.output.get(i).filter(|o| !o.is_empty()).and_then(|o| self.names.get(o).copied());
        let (mean, deviation) = (output(1), output(2));
        let shape = self.shape(x);
        let row: Vec<usize> = shape.iter().enumerate().map(|(d, n)| if axes.contains(&d) { 1 } else { *n }).collect();
        let part = |what: &str| format!("{name}~{what}");
        let average = || Op::Reduce(ReduceKind::Mean, axes.to_vec());
        let mean = mean.unwrap_or_else(|| self.temporary(node, name, row.clone(), x));
        self.push(node, &part("mean"), average(), vec![x], mean);
        let Some(deviation) = deviation else { return };
        let centred = self.temporary(node, name, shape.clone(), x);
        self.push(node, &part("centred"), Op::Binary(BinaryKind::Sub), vec![x, mean], centred);
        let square = self.temporary(node, name, shape, x);
        self.push(node, &part("square"), Op::Binary(BinaryKind::Mul), vec![centred, centred], square);
        let [variance, sum, root] = std::array::from_fn(|_| self.temporary(node, name, row.clone(), x));
        self.push(node, &part("variance"), average(), vec![square], variance);
        let epsilon = self.new_constant(node, name, vec![1], vec![epsilon]);
        self.push(node, &part("sum"), Op::Binary(BinaryKind::Add), vec![variance, epsilon], sum);
        self.push(node, &part("root"), Op::Unary(UnaryKind::Sqrt), vec![sum], root);
        self.push(node, &part("deviation"), Op::Unary(UnaryKind::Reciprocal), vec![root], deviation);
    }

    /// Layer normalisation of the sum of two activations and a bias.
    fn skip_norm(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
        epsilon: f32,
    ) -> Result<bool, OnnxError> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let output = |i: usize| node.output.get(i).filter(|o| !o.is_empty());
        let (Some(x), Some(skip)) = (input(0), input(1)) else { return Ok(false) };
        if self.reads_statistics(node) {
            return Ok(false);
        }
        let simple = node.op_type == "SkipSimplifiedLayerNormalization";
        let (beta, bias) = if simple { (None, input(3)) } else { (input(3), input(4)) };
        let terms: Vec<ValueId> = std::iter::once(skip).chain(bias).collect();
        let asked = output(3).and_then(|o| self.names.get(o).copied());
        let mut sum = x;
        for (i, term) in terms.iter().enumerate() {
            let shape = broadcast(&self.shape(sum), &self.shape(*term));
            let asked = asked.filter(|_| i + 1 == terms.len());
            let out = asked.unwrap_or_else(|| self.temporary(node, name, shape, x));
            self.push(node, &format!("{name}~{i}"), Op::Binary(BinaryKind::Add), vec![sum, *term], out);
            sum = out;
        }
        let kind = if simple { NormKind::RootMeanSquare { epsilon } } else { NormKind::Standard { epsilon } };
        let Some(last) = self.shape(sum).len().checked_sub(1) else { return Ok(false) };
        self.push_norm(node, name, (kind, vec![last], 1), sum, [input(2), beta], y)?;
        Ok(true)
    }

    /// A scale or bias of `[channels]` (or `[groups]`: opset 18) in the form `[channels, 1, …]` that broadcasts.
    fn per_channel(
        &mut self,
        node: &NodeProto,
        value: Option<ValueId>,
        x: &[usize],
        groups: usize,
    ) -> Result<Option<ValueId>, OnnxError> {
        let Some(value) = value else { return Ok(None) };
        let channels = x[1];
        let mut shape = vec![1; x.len() - 1];
        shape[0] = channels;
        let found = self.graph.values[value].len();
        let constant = self.graph.values[value].values();
        let repeat = match found {
            _ if found == channels => 1,
            _ if found == groups && constant.is_some() => channels / groups,
            _ => {
                let what = format!("its scale and bias have {found} values, expected {channels}, one a channel");
                return Err(self.error(node, what));
            }
        };
        let name = format!("{}~{}", self.graph.values[value].name, self.graph.values.len());
        let Some(constant) = constant else {
            let turned = self.temporary(node, &name, shape, value);
            self.push(node, &name, Op::Reshape, vec![value], turned);
            return Ok(Some(turned));
        };
        let values: Vec<f32> = constant.iter().flat_map(|v| std::iter::repeat_n(*v, repeat)).collect();
        let element = self.graph.values[value].element;
        self.graph.values.push(Value {
            name,
            shape,
            element,
            constant: Some(values.into()),
            stored: false,
            source: None,
            quantised: None,
        });
        Ok(Some(self.graph.values.len() - 1))
    }

    /// A normalisation (kind, axes, groups) with scale and bias inside where they are constants, behind it where not.
    fn push_norm(
        &mut self,
        node: &NodeProto,
        name: &str,
        (kind, axes, groups): (NormKind, Vec<usize>, usize),
        x: ValueId,
        [scale, bias]: [Option<ValueId>; 2],
        y: ValueId,
    ) -> Result<(), OnnxError> {
        let shape = self.shape(x);
        for constant in [scale, bias].into_iter().flatten() {
            if broadcast(&shape, &self.shape(constant)) != shape {
                let what = format!("scale or bias {:?} does not broadcast to {shape:?}", self.shape(constant));
                return Err(self.error(node, what));
            }
        }
        let op = Op::Norm(kind, axes, groups);
        let constant = |v: &ValueId| self.graph.is_constant(*v);
        if scale.iter().chain(&bias).all(constant) && (scale.is_some() || bias.is_none()) {
            let inputs = [Some(x), scale, bias].into_iter().flatten().collect();
            self.push(node, name, op, inputs, y);
            return Ok(());
        }
        let mut value = self.temporary(node, name, shape.clone(), x);
        self.push(node, name, op, vec![x], value);
        let after: Vec<_> = [(BinaryKind::Mul, scale), (BinaryKind::Add, bias)]
            .into_iter()
            .filter_map(|(kind, operand)| Some((kind, operand?)))
            .collect();
        for (i, (kind, operand)) in after.iter().enumerate() {
            let last = i + 1 == after.len();
            let out = if last { y } else { self.temporary(node, name, shape.clone(), x) };
            self.push(node, &format!("{name}~{i}"), Op::Binary(*kind), vec![value, *operand], out);
            value = out;
        }
        Ok(())
    }
}
