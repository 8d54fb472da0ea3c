//! Operators that an exporter spelled out as primitives, put back together.
//!
//! | found | becomes |
//! |---|---|
//! | (x − mean) / √(mean((x − mean)²) + ε), also with Mul by Reciprocal, Pow, `x·r + (β − mean·r)` | LayerNormalization |
//! | x / √(mean(x²) + ε) | RMSNormalization |
//! | a constant Mul and Add behind either | its scale and bias |
//! | x · ½ · (1 + erf(x / √2)), x · ½ · (1 + tanh(√(2/π)(x + 0.044715 x³))), factors in any order | Gelu |
//! | eˣ / Σeˣ, with the maximum taken off x or not | Softmax |
//! | x − max − ln Σ e^(x − max) | LogSoftmax |
//!
//! A pattern is replaced only if nothing else reads what lies inside it and no inner value is an output. What replaces
//! it has the name of the last node, and stands in its place.

use std::collections::BTreeSet;

use super::{Graph, Node, NodeId, Op, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::function::FunctionKind;
use crate::ops::norm::NormKind;
use crate::ops::reduce::ReduceKind;
use crate::ops::unary::UnaryKind;

/// What a constant of a formula may be off, relative: it is rounded to f32, or is the quotient of two such.
const CONSTANT_RELATIVE: f32 = 1e-6;
/// √(2/π), and the cubic term, of the approximation of Gelu (Hendrycks and Gimpel 2016, arXiv 1606.08415).
const GELU_FACTOR: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

/// A pattern: what replaces the last of its nodes, and the nodes.
struct Found {
    op: Op,
    op_type: &'static str,
    inputs: Vec<ValueId>,
    nodes: Vec<NodeId>,
}

/// The graph with what is looked up often.
struct Matcher<'a> {
    graph: &'a Graph,
    producer: Vec<Option<NodeId>>,
    readers: Vec<Vec<NodeId>>,
}

/// Nodes on the way of a match; dropped with it where it fails.
type Trail = Vec<NodeId>;

impl Graph {
    /// Replaces every pattern; the values inside stay without a writer or a reader.
    pub fn recognise(&mut self) {
        // Each round takes at least one node away, so this ends.
        let mut from = 0;
        while let Some((at, found)) = self.next_pattern(from) {
            let node = &self.nodes[at];
            let whole = Node {
                name: node.name.clone(),
                op_type: found.op_type.into(),
                op: found.op,
                inputs: found.inputs,
                outputs: node.outputs.clone(),
            };
            self.nodes[at] = whole;
            // A node can have been met on two ways.
            let gone: BTreeSet<NodeId> = found.nodes.into_iter().filter(|id| *id != at).collect();
            from = at + 1 - gone.iter().filter(|id| **id < at).count();
            let mut id = 0;
            self.nodes.retain(|_| {
                id += 1;
                !gone.contains(&(id - 1))
            });
        }
    }

    fn next_pattern(&self, from: usize) -> Option<(NodeId, Found)> {
        let matcher = Matcher::new(self);
        (from..self.nodes.len()).find_map(|at| Some((at, matcher.pattern(at)?)))
    }
}

impl<'a> Matcher<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut producer = vec![None; graph.values.len()];
        let mut readers = vec![Vec::new(); graph.values.len()];
        for (id, node) in graph.nodes.iter().enumerate() {
            node.outputs.iter().for_each(|o| producer[*o] = Some(id));
            node.inputs.iter().for_each(|i| readers[*i].push(id));
        }
        Self { graph, producer, readers }
    }

    /// The pattern that ends in node `at`.
    fn pattern(&self, at: NodeId) -> Option<Found> {
        let found = self
            .affine(at)
            .or_else(|| self.folded_norm(at))
            .or_else(|| self.norm(at))
            .or_else(|| self.softmax(at))
            .or_else(|| self.log_softmax(at))
            .or_else(|| self.gelu(at))?;
        self.is_closed(&found.nodes, at).then_some(found)
    }

    /// Whether what lies inside `nodes`, which end in `last`, is read by no other and is no output.
    fn is_closed(&self, nodes: &[NodeId], last: NodeId) -> bool {
        nodes
            .iter()
            .filter(|id| **id != last)
            .flat_map(|id| &self.graph.nodes[*id].outputs)
            .all(|value| !self.graph.outputs.contains(value) && self.readers[*value].iter().all(|r| nodes.contains(r)))
    }

    fn shape(&self, value: ValueId) -> &'a [usize] {
        &self.graph.values[value].shape
    }

    /// The value of a constant with one element.
    fn scalar(&self, value: ValueId) -> Option<f32> {
        let value = &self.graph.values[value];
        if value.len() == 1 { value.values()?.first().copied() } else { None }
    }

    fn writer(&self, value: ValueId) -> Option<(NodeId, &'a Node)> {
        self.producer[value].map(|id| (id, &self.graph.nodes[id]))
    }

    /// The operands of the Binary that gives `value`.
    fn binary(&self, value: ValueId, kind: BinaryKind, trail: &mut Trail) -> Option<(ValueId, ValueId)> {
        let (id, node) = self.writer(value)?;
        match (&node.op, node.inputs.as_slice()) {
            (Op::Binary(found), [a, b]) if *found == kind => {
                trail.push(id);
                Some((*a, *b))
            }
            _ => None,
        }
    }

    /// A Binary of a value and a scalar, in either order.
    fn with_scalar(&self, value: ValueId, kind: BinaryKind, trail: &mut Trail) -> Option<(ValueId, f32)> {
        let (a, b) = self.binary(value, kind, trail)?;
        self.scalar(b).map(|c| (a, c)).or_else(|| Some((b, self.scalar(a)?)))
    }

    fn unary(&self, value: ValueId, kind: UnaryKind, trail: &mut Trail) -> Option<ValueId> {
        let (id, node) = self.writer(value)?;
        match &node.op {
            Op::Unary(found) if *found == kind => {
                trail.push(id);
                node.inputs.first().copied()
            }
            _ => None,
        }
    }

    /// What is reduced with its axes kept, and the axes.
    fn reduced(&self, value: ValueId, kind: ReduceKind, trail: &mut Trail) -> Option<(ValueId, Vec<usize>)> {
        let (id, node) = self.writer(value)?;
        let Op::Reduce(found, axes) = &node.op else { return None };
        let x = *node.inputs.first()?;
        if *found != kind || self.shape(x).len() != self.shape(value).len() {
            return None;
        }
        trail.push(id);
        Some((x, axes.clone()))
    }

    /// u where `value` is u².
    fn square(&self, value: ValueId, trail: &mut Trail) -> Option<ValueId> {
        let mark = trail.len();
        if let Some((u, exponent)) = self.binary(value, BinaryKind::Pow, trail)
            && self.scalar(exponent) == Some(2.0)
        {
            return Some(u);
        }
        trail.truncate(mark);
        let (a, b) = self.binary(value, BinaryKind::Mul, trail)?;
        (a == b).then_some(a)
    }

    /// u and ε where `value` is √(u + ε), or 1 / √(u + ε) with `inverse`.
    fn root(&self, value: ValueId, inverse: bool, trail: &mut Trail) -> Option<(ValueId, f32)> {
        let mark = trail.len();
        if let Some((sum, exponent)) = self.binary(value, BinaryKind::Pow, trail)
            && self.scalar(exponent) == Some(if inverse { -0.5 } else { 0.5 })
        {
            return self.with_scalar(sum, BinaryKind::Add, trail);
        }
        trail.truncate(mark);
        if !inverse {
            let sum = self.unary(value, UnaryKind::Sqrt, trail)?;
            return self.with_scalar(sum, BinaryKind::Add, trail);
        }
        if let Some(root) = self.unary(value, UnaryKind::Reciprocal, trail) {
            return self.root(root, false, trail);
        }
        let (one, root) = self.binary(value, BinaryKind::Div, trail)?;
        (self.scalar(one) == Some(1.0)).then_some(())?;
        self.root(root, false, trail)
    }

    /// x and its mean where `value` is x − mean.
    fn centred(&self, value: ValueId, trail: &mut Trail) -> Option<(ValueId, Vec<usize>)> {
        let (x, mean) = self.binary(value, BinaryKind::Sub, trail)?;
        let (of, axes) = self.reduced(mean, ReduceKind::Mean, trail)?;
        (of == x).then_some((x, axes))
    }

    /// The kind, x and axes where the mean of the squares, `mean`, is the variance of x or the mean of x².
    fn moment(&self, mean: ValueId, epsilon: f32, trail: &mut Trail) -> Option<(NormKind, ValueId, Vec<usize>)> {
        let (square, axes) = self.reduced(mean, ReduceKind::Mean, trail)?;
        let u = self.square(square, trail)?;
        let mark = trail.len();
        if let Some((x, over)) = self.centred(u, trail)
            && over == axes
        {
            return Some((NormKind::Standard { epsilon }, x, axes));
        }
        trail.truncate(mark);
        Some((NormKind::RootMeanSquare { epsilon }, u, axes))
    }

    /// `numerator` divided by the root of a moment of x: the normalisation of x.
    fn norm_of(&self, numerator: ValueId, root: ValueId, inverse: bool, mut trail: Trail) -> Option<Found> {
        let (mean, epsilon) = self.root(root, inverse, &mut trail)?;
        let (kind, x, axes) = self.moment(mean, epsilon, &mut trail)?;
        let op_type = match kind {
            NormKind::Standard { .. } => {
                let (of, over) = self.centred(numerator, &mut trail)?;
                (of == x && over == axes).then_some("LayerNormalization")?
            }
            _ => (numerator == x).then_some("RMSNormalization")?,
        };
        Some(Found { op: Op::Norm(kind, axes, 1), op_type, inputs: vec![x], nodes: trail })
    }

    fn norm(&self, at: NodeId) -> Option<Found> {
        let y = *self.graph.nodes[at].outputs.first()?;
        let mut trail = Trail::new();
        if let Some((numerator, root)) = self.binary(y, BinaryKind::Div, &mut trail) {
            return self.norm_of(numerator, root, false, trail);
        }
        let (a, b) = self.binary(y, BinaryKind::Mul, &mut trail)?;
        self.norm_of(a, b, true, trail.clone()).or_else(|| self.norm_of(b, a, true, trail))
    }

    /// A constant that broadcasts to the shape of `x`.
    fn constant_like(&self, value: ValueId, x: ValueId) -> bool {
        let (own, shape) = (self.shape(value), self.shape(x));
        let fits = |(own, size): (&usize, &usize)| *own == 1 || own == size;
        self.graph.is_constant(value) && own.len() <= shape.len() && own.iter().rev().zip(shape.iter().rev()).all(fits)
    }

    /// A constant Mul or Add behind a normalisation that has none yet.
    fn affine(&self, at: NodeId) -> Option<Found> {
        let node = &self.graph.nodes[at];
        let (Op::Binary(kind @ (BinaryKind::Mul | BinaryKind::Add)), [a, b]) = (&node.op, node.inputs.as_slice())
        else {
            return None;
        };
        let (value, constant) = if self.graph.is_constant(*b) { (*a, *b) } else { (*b, *a) };
        let (id, norm) = self.writer(value)?;
        let Op::Norm(..) = &norm.op else { return None };
        let wanted = if *kind == BinaryKind::Mul { 1 } else { 2 };
        if norm.inputs.len() != wanted || !self.constant_like(constant, value) {
            return None;
        }
        let inputs = norm.inputs.iter().copied().chain([constant]).collect();
        let op_type = if norm.op_type == "RMSNormalization" { "RMSNormalization" } else { "LayerNormalization" };
        Some(Found { op: norm.op.clone(), op_type, inputs, nodes: vec![id, at] })
    }

    /// x·r + (β − mean·r) with r = γ / √(σ² + ε): what TensorFlow makes of layer normalisation.
    fn folded_norm(&self, at: NodeId) -> Option<Found> {
        let y = *self.graph.nodes[at].outputs.first()?;
        let mut trail = Trail::new();
        let (a, b) = self.binary(y, BinaryKind::Add, &mut trail)?;
        let sides = |(product, rest): (ValueId, ValueId)| {
            let mut trail = trail.clone();
            let (beta, shift) = self.binary(rest, BinaryKind::Sub, &mut trail)?;
            self.graph.is_constant(beta).then_some(())?;
            let (p, q) = self.binary(product, BinaryKind::Mul, &mut trail)?;
            let (s, t) = self.binary(shift, BinaryKind::Mul, &mut trail)?;
            // The factor that both products have.
            let (x, mean, r) = [(p, s, q, t), (p, t, q, s), (q, s, p, t), (q, t, p, s)]
                .into_iter()
                .find_map(|(x, mean, r, again)| (r == again).then_some((x, mean, r)))?;
            let (of, axes) = self.reduced(mean, ReduceKind::Mean, &mut trail)?;
            let mark = trail.len();
            let scaled = self.binary(r, BinaryKind::Mul, &mut trail).and_then(|(a, b)| {
                let pair = |root: ValueId, scale: ValueId| self.graph.is_constant(scale).then_some((root, scale));
                pair(a, b).or_else(|| pair(b, a))
            });
            let (root, scale) = match scaled {
                Some((root, scale)) => (root, scale),
                None => {
                    trail.truncate(mark);
                    return None;
                }
            };
            let (variance, epsilon) = self.root(root, true, &mut trail)?;
            let (kind, again, over) = self.moment(variance, epsilon, &mut trail)?;
            let same = of == x && again == x && over == axes && matches!(kind, NormKind::Standard { .. });
            let fits = same && self.constant_like(scale, x) && self.constant_like(beta, x);
            fits.then(|| Found {
                op: Op::Norm(kind, axes, 1),
                op_type: "LayerNormalization",
                inputs: vec![x, scale, beta],
                nodes: trail,
            })
        };
        sides((a, b)).or_else(|| sides((b, a)))
    }

    /// x and the axis where `value` is eˣ, or e^(x − max), and `sum` is its sum.
    fn exponentials(&self, value: ValueId, sum: ValueId, trail: &mut Trail) -> Option<(ValueId, usize)> {
        let (of, axes) = self.reduced(sum, ReduceKind::Sum, trail)?;
        let u = self.unary(value, UnaryKind::Exp, trail)?;
        let [axis] = axes[..] else { return None };
        (of == value).then_some(())?;
        Some((self.without_max(u, axis, trail), axis))
    }

    /// x where `value` is x − max over `axis`, else `value`.
    fn without_max(&self, value: ValueId, axis: usize, trail: &mut Trail) -> ValueId {
        let mark = trail.len();
        if let Some((x, max)) = self.binary(value, BinaryKind::Sub, trail)
            && self.reduced(max, ReduceKind::Max, trail) == Some((x, vec![axis]))
        {
            return x;
        }
        trail.truncate(mark);
        value
    }

    fn softmax(&self, at: NodeId) -> Option<Found> {
        let y = *self.graph.nodes[at].outputs.first()?;
        let found = |trail: Trail, (x, axis)| Found {
            op: Op::Softmax { axis, flatten: false, log: false },
            op_type: "Softmax",
            inputs: vec![x],
            nodes: trail,
        };
        let mut trail = Trail::new();
        if let Some((value, sum)) = self.binary(y, BinaryKind::Div, &mut trail) {
            let parts = self.exponentials(value, sum, &mut trail)?;
            return Some(found(trail, parts));
        }
        let (a, b) = self.binary(y, BinaryKind::Mul, &mut trail)?;
        [(a, b), (b, a)].into_iter().find_map(|(value, inverse)| {
            let mut trail = trail.clone();
            let sum = self.unary(inverse, UnaryKind::Reciprocal, &mut trail)?;
            let parts = self.exponentials(value, sum, &mut trail)?;
            Some(found(trail, parts))
        })
    }

    fn log_softmax(&self, at: NodeId) -> Option<Found> {
        let y = *self.graph.nodes[at].outputs.first()?;
        let mut trail = Trail::new();
        let (d, log) = self.binary(y, BinaryKind::Sub, &mut trail)?;
        let sum = self.unary(log, UnaryKind::Log, &mut trail)?;
        let (_, node) = self.writer(sum)?;
        let value = *node.inputs.first()?;
        let (x, axis) = self.exponentials(value, sum, &mut trail)?;
        // The exponentials are of d itself.
        let read = self.writer(value).and_then(|(_, node)| node.inputs.first().copied());
        (read == Some(d)).then(|| Found {
            op: Op::Softmax { axis, flatten: false, log: true },
            op_type: "LogSoftmax",
            inputs: vec![x],
            nodes: trail,
        })
    }

    /// Takes a product apart: its constant, and its other factors. Below the top only products that nothing else reads.
    fn factors(&self, value: ValueId, top: bool, product: &mut Product, trail: &mut Trail) {
        if let Some(constant) = self.scalar(value) {
            product.constant *= constant;
            return;
        }
        let mark = trail.len();
        if top || self.readers[value].len() == 1 {
            if let Some((a, b)) = self.binary(value, BinaryKind::Mul, trail) {
                self.factors(a, false, product, trail);
                self.factors(b, false, product, trail);
                return;
            }
            if let Some((a, b)) = self.binary(value, BinaryKind::Div, trail)
                && let Some(divisor) = self.scalar(b)
            {
                product.constant /= divisor;
                self.factors(a, false, product, trail);
                return;
            }
            trail.truncate(mark);
            if let Some((base, exponent)) = self.binary(value, BinaryKind::Pow, trail)
                && let Some(times) = [2, 3].into_iter().find(|n| self.scalar(exponent) == Some(*n as f32))
            {
                product.factors.extend(std::iter::repeat_n(base, times));
                return;
            }
            trail.truncate(mark);
        }
        product.factors.push(value);
    }

    /// Whether `value` is `constant` · xⁿ.
    fn is_power(&self, value: ValueId, constant: f32, x: ValueId, n: usize, trail: &mut Trail) -> bool {
        let mut product = Product::default();
        self.factors(value, true, &mut product, trail);
        product.is(constant) && product.factors == vec![x; n]
    }

    /// Whether `value` is √(2/π) (x + 0.044715 x³).
    fn is_gelu_argument(&self, value: ValueId, x: ValueId, trail: &mut Trail) -> bool {
        let mut product = Product::default();
        self.factors(value, true, &mut product, trail);
        if !product.is(GELU_FACTOR) {
            return false;
        }
        match product.factors[..] {
            [sum] => match self.binary(sum, BinaryKind::Add, trail) {
                Some((a, cube)) if a == x => self.is_power(cube, GELU_CUBE, x, 3, trail),
                Some((cube, a)) if a == x => self.is_power(cube, GELU_CUBE, x, 3, trail),
                _ => false,
            },
            [a, b] if a == x || b == x => {
                let sum = if a == x { b } else { a };
                match self.with_scalar(sum, BinaryKind::Add, trail) {
                    Some((square, 1.0)) => self.is_power(square, GELU_CUBE, x, 2, trail),
                    _ => false,
                }
            }
            _ => false,
        }
    }

    fn gelu(&self, at: NodeId) -> Option<Found> {
        let y = *self.graph.nodes[at].outputs.first()?;
        let (mut trail, mut product) = (Trail::new(), Product::default());
        self.factors(y, true, &mut product, &mut trail);
        let [a, b] = product.factors[..] else { return None };
        if !product.is(0.5) {
            return None;
        }
        [(a, b), (b, a)].into_iter().find_map(|(x, sum)| {
            let mut trail = trail.clone();
            let (curve, one) = self.with_scalar(sum, BinaryKind::Add, &mut trail)?;
            let (id, node) = self.writer(curve)?;
            trail.push(id);
            let argument = *node.inputs.first()?;
            let kind = match node.op {
                Op::Function(FunctionKind::Erf) => self
                    .is_power(argument, std::f32::consts::FRAC_1_SQRT_2, x, 1, &mut trail)
                    .then_some(FunctionKind::Gelu),
                Op::Unary(UnaryKind::Tanh) => {
                    self.is_gelu_argument(argument, x, &mut trail).then_some(FunctionKind::GeluTanh)
                }
                _ => None,
            }?;
            let found = Found { op: Op::Function(kind), op_type: "Gelu", inputs: vec![x], nodes: trail };
            (one == 1.0).then_some(found)
        })
    }
}

/// A product taken apart.
struct Product {
    constant: f32,
    factors: Vec<ValueId>,
}

impl Default for Product {
    fn default() -> Self {
        Self { constant: 1.0, factors: Vec::new() }
    }
}

impl Product {
    fn is(&self, constant: f32) -> bool {
        (self.constant - constant).abs() <= CONSTANT_RELATIVE * constant
    }
}
