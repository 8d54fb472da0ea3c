//! Operators that an exporter spelled out: recognised, and with the same numbers as the primitives.
#![allow(clippy::unwrap_used)]

use accentor::graph::{Element, Graph, Node, Op, Value, ValueId};
use accentor::ops::binary::BinaryKind::{self, Add, Div, Mul, Pow, Sub};
use accentor::ops::function::FunctionKind;
use accentor::ops::reduce::ReduceKind;
use accentor::ops::unary::UnaryKind;
use accentor::plan::{Plan, Program};

/// Of the largest value: a dozen roundings of 2⁻²⁴ in either way of writing.
const RELATIVE: f32 = 2e-6;
const SHAPE: [usize; 3] = [1, 5, 7];

/// A graph in the making; methods give the value that they add.
#[derive(Default)]
struct Net(Graph);

impl Net {
    fn new() -> (Self, ValueId) {
        let mut net = Self::default();
        let x = net.value(&SHAPE, None);
        net.0.inputs.push(x);
        (net, x)
    }

    fn value(&mut self, shape: &[usize], constant: Option<Vec<f32>>) -> ValueId {
        self.0.values.push(Value {
            name: format!("v{}", self.0.values.len()),
            shape: shape.to_vec(),
            element: Element::F32,
            constant: constant.map(Into::into),
            stored: false,
            source: None,
            quantised: None,
        });
        self.0.values.len() - 1
    }

    fn constant(&mut self, value: f32) -> ValueId {
        self.value(&[], Some(vec![value]))
    }

    /// Seven constants about `centre`.
    fn row(&mut self, centre: f32) -> ValueId {
        self.value(&[7], Some((0..7).map(|i| centre + 0.1 * i as f32 - 0.3).collect()))
    }

    fn node(&mut self, op: Op, inputs: &[ValueId], shape: &[usize]) -> ValueId {
        let y = self.value(shape, None);
        let name = format!("n{}", self.0.nodes.len());
        self.0.nodes.push(Node { name, op_type: "Primitive".into(), op, inputs: inputs.to_vec(), outputs: vec![y] });
        y
    }

    fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> ValueId {
        let longer = if self.0.values[a].len() < self.0.values[b].len() { b } else { a };
        let shape = self.0.values[longer].shape.clone();
        self.node(Op::Binary(kind), &[a, b], &shape)
    }

    fn scalar(&mut self, kind: BinaryKind, a: ValueId, b: f32) -> ValueId {
        let b = self.constant(b);
        self.binary(kind, a, b)
    }

    fn unary(&mut self, kind: UnaryKind, x: ValueId) -> ValueId {
        let shape = self.0.values[x].shape.clone();
        self.node(Op::Unary(kind), &[x], &shape)
    }

    fn function(&mut self, kind: FunctionKind, x: ValueId) -> ValueId {
        let shape = self.0.values[x].shape.clone();
        self.node(Op::Function(kind), &[x], &shape)
    }

    fn reduce(&mut self, kind: ReduceKind, x: ValueId) -> ValueId {
        self.node(Op::Reduce(kind, vec![2]), &[x], &[1, 5, 1])
    }

    /// x − mean, and the mean of its square.
    fn moments(&mut self, x: ValueId) -> (ValueId, ValueId) {
        let mean = self.reduce(ReduceKind::Mean, x);
        let d = self.binary(Sub, x, mean);
        let square = self.scalar(Pow, d, 2.0);
        (d, self.reduce(ReduceKind::Mean, square))
    }

    fn affine(&mut self, x: ValueId) -> ValueId {
        let (scale, bias) = (self.row(1.0), self.row(0.0));
        let scaled = self.binary(Mul, x, scale);
        self.binary(Add, scaled, bias)
    }
}

fn run(graph: &Graph) -> Vec<f32> {
    let program = Program::new(graph, graph.inputs[0], graph.outputs[0], &[]).unwrap();
    let plan = Plan::new(&program, &[program.input], &[program.output], false).unwrap();
    let x: Vec<f32> = (0..35).map(|i| ((i * 37) % 23) as f32 / 7.0 - 1.3).collect();
    let mut arena = vec![0.0; plan.arena_len()];
    plan.forward(&[], &mut arena, &x).unwrap();
    plan.output(&arena, 0).to_vec()
}

/// Recognises `net`, which ends in `y`, as `operators`, with the same numbers and the last node's name.
fn check(mut net: Net, y: ValueId, operators: &[&str]) {
    net.0.outputs.push(y);
    let (before, last) = (run(&net.0), net.0.nodes.last().unwrap().name.clone());
    net.0.recognise();
    let found: Vec<&str> = net.0.nodes.iter().map(|n| n.op_type.as_str()).collect();
    assert_eq!(found, operators);
    assert_eq!(net.0.nodes.last().unwrap().name, last);
    let largest = before.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    for (a, b) in before.iter().zip(run(&net.0)) {
        assert!((a - b).abs() <= RELATIVE * largest, "{a} written out, {b} recognised");
    }
}

#[test]
fn layer_normalisation() {
    // torch before opset 17: Div by Sqrt.
    let (mut net, x) = Net::new();
    let (d, variance) = net.moments(x);
    let sum = net.scalar(Add, variance, 1e-5);
    let root = net.unary(UnaryKind::Sqrt, sum);
    let normal = net.binary(Div, d, root);
    let y = net.affine(normal);
    check(net, y, &["LayerNormalization"]);

    // Mul by Reciprocal, the square as a product, x − mean written twice.
    let (mut net, x) = Net::new();
    let mean = net.reduce(ReduceKind::Mean, x);
    let (d, again) = (net.binary(Sub, x, mean), net.binary(Sub, x, mean));
    let square = net.binary(Mul, again, again);
    let variance = net.reduce(ReduceKind::Mean, square);
    let epsilon = net.constant(1e-3);
    let sum = net.binary(Add, epsilon, variance);
    let root = net.unary(UnaryKind::Sqrt, sum);
    let inverse = net.unary(UnaryKind::Reciprocal, root);
    let y = net.binary(Mul, inverse, d);
    check(net, y, &["LayerNormalization"]);

    // TensorFlow: x·r + (β − mean·r).
    let (mut net, x) = Net::new();
    let mean = net.reduce(ReduceKind::Mean, x);
    let d = net.binary(Sub, x, mean);
    let square = net.binary(Mul, d, d);
    let variance = net.reduce(ReduceKind::Mean, square);
    let sum = net.scalar(Add, variance, 1e-3);
    let root = net.unary(UnaryKind::Sqrt, sum);
    let inverse = net.unary(UnaryKind::Reciprocal, root);
    let (scale, beta) = (net.row(1.0), net.row(0.0));
    let r = net.node(Op::Binary(Mul), &[inverse, scale], &SHAPE);
    let scaled = net.binary(Mul, x, r);
    let shift = net.node(Op::Binary(Mul), &[mean, r], &SHAPE);
    let rest = net.binary(Sub, beta, shift);
    let y = net.binary(Add, scaled, rest);
    check(net, y, &["LayerNormalization"]);
}

#[test]
fn rms_normalisation() {
    for inverse in [false, true] {
        let (mut net, x) = Net::new();
        let square = net.scalar(Pow, x, 2.0);
        let mean = net.reduce(ReduceKind::Mean, square);
        let sum = net.scalar(Add, mean, 1e-6);
        let normal = if inverse {
            let r = net.scalar(Pow, sum, -0.5);
            net.binary(Mul, x, r)
        } else {
            let root = net.scalar(Pow, sum, 0.5);
            net.binary(Div, x, root)
        };
        let scale = net.row(1.0);
        let y = net.binary(Mul, scale, normal);
        check(net, y, &["RMSNormalization"]);
    }
}

#[test]
fn gelu() {
    // torch: x · (1 + erf(x / √2)) · ½.
    let (mut net, x) = Net::new();
    let u = net.scalar(Div, x, std::f32::consts::SQRT_2);
    let e = net.function(FunctionKind::Erf, u);
    let sum = net.scalar(Add, e, 1.0);
    let product = net.binary(Mul, x, sum);
    let y = net.scalar(Mul, product, 0.5);
    check(net, y, &["Gelu"]);

    // ½ x first, and Mul by 1 / √2.
    let (mut net, x) = Net::new();
    let half = net.scalar(Mul, x, 0.5);
    let u = net.scalar(Mul, x, std::f32::consts::FRAC_1_SQRT_2);
    let e = net.function(FunctionKind::Erf, u);
    let sum = net.scalar(Add, e, 1.0);
    let y = net.binary(Mul, half, sum);
    check(net, y, &["Gelu"]);

    // The tanh form with the cube as Pow, and as products.
    for written in 0..3 {
        let (mut net, x) = Net::new();
        let argument = match written {
            0 => {
                let cube = net.scalar(Pow, x, 3.0);
                let part = net.scalar(Mul, cube, 0.044_715);
                let sum = net.binary(Add, x, part);
                net.scalar(Mul, sum, 0.797_884_6)
            }
            1 => {
                let square = net.binary(Mul, x, x);
                let cube = net.binary(Mul, square, x);
                let part = net.scalar(Mul, cube, 0.044_715);
                let sum = net.binary(Add, part, x);
                net.scalar(Mul, sum, 0.797_884_6)
            }
            _ => {
                let square = net.binary(Mul, x, x);
                let part = net.scalar(Mul, square, 0.044_715);
                let sum = net.scalar(Add, part, 1.0);
                let scaled = net.scalar(Mul, x, 0.797_884_6);
                net.binary(Mul, scaled, sum)
            }
        };
        let t = net.unary(UnaryKind::Tanh, argument);
        let sum = net.scalar(Add, t, 1.0);
        let half = net.scalar(Mul, sum, 0.5);
        let y = net.binary(Mul, x, half);
        check(net, y, &["Gelu"]);
    }
}

#[test]
fn softmax() {
    for written in 0..4 {
        let (mut net, x) = Net::new();
        let d = match written {
            0 => x,
            _ => {
                let max = net.reduce(ReduceKind::Max, x);
                net.binary(Sub, x, max)
            }
        };
        let e = net.unary(UnaryKind::Exp, d);
        let sum = net.reduce(ReduceKind::Sum, e);
        let (y, operator) = match written {
            3 => {
                let log = net.unary(UnaryKind::Log, sum);
                (net.binary(Sub, d, log), "LogSoftmax")
            }
            2 => {
                let inverse = net.unary(UnaryKind::Reciprocal, sum);
                (net.binary(Mul, e, inverse), "Softmax")
            }
            _ => (net.binary(Div, e, sum), "Softmax"),
        };
        check(net, y, &[operator]);
    }
}

#[test]
fn what_others_read_stays() {
    // The variance is an output too, or read by another node.
    for output in [true, false] {
        let (mut net, x) = Net::new();
        let (d, variance) = net.moments(x);
        let sum = net.scalar(Add, variance, 1e-5);
        let root = net.unary(UnaryKind::Sqrt, sum);
        let mut y = net.binary(Div, d, root);
        if output {
            net.0.outputs = vec![y, variance];
        } else {
            y = net.binary(Add, y, variance);
            net.0.outputs = vec![y];
        }
        let nodes = net.0.nodes.len();
        net.0.recognise();
        assert_eq!(net.0.nodes.len(), nodes);
    }
    // A factor that is none of the formula's.
    let (mut net, x) = Net::new();
    let u = net.scalar(Div, x, 1.5);
    let e = net.function(FunctionKind::Erf, u);
    let sum = net.scalar(Add, e, 1.0);
    let product = net.binary(Mul, x, sum);
    let y = net.scalar(Mul, product, 0.5);
    net.0.outputs.push(y);
    net.0.recognise();
    assert_eq!(net.0.nodes.len(), 5);
}
