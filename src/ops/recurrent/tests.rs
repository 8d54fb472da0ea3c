use std::cell::Cell as Shared;

use super::super::check::{Case, KINK_MARGIN, values, values_in};
use super::*;

/// ONNX's formulas in f64 on tensors in the order of the file: y as [`Recurrent`] writes it.
struct Oracle {
    recurrence: Recurrence,
    steps: usize,
    batch: usize,
    inputs: usize,
    bias: Vec<f32>,
    peepholes: Vec<f32>,
    last: bool,
    /// The least distance of an argument from a kink of its function so far.
    margin: Shared<f64>,
}

fn kinks(gate: Gate, clip: Option<f32>) -> Vec<f32> {
    let mut kinks = match gate {
        Gate::Relu | Gate::LeakyRelu { .. } | Gate::Elu { .. } | Gate::Softsign => vec![0.0],
        Gate::ThresholdedRelu { alpha } => vec![alpha],
        Gate::HardSigmoid { alpha, beta } => vec![-beta / alpha, (1.0 - beta) / alpha],
        _ => vec![],
    };
    kinks.extend(clip.into_iter().flat_map(|clip| [-clip, clip]));
    kinks
}

fn function(gate: Gate, clip: Option<f32>, x: f64) -> f64 {
    let x = clip.map_or(x, |clip| x.clamp(-f64::from(clip), f64::from(clip)));
    match gate {
        Gate::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Gate::Tanh => x.tanh(),
        Gate::Relu => x.max(0.0),
        Gate::Affine { alpha, beta } => f64::from(alpha) * x + f64::from(beta),
        Gate::LeakyRelu { alpha } => {
            if x > 0.0 {
                x
            } else {
                f64::from(alpha) * x
            }
        }
        Gate::ThresholdedRelu { alpha } => {
            if x > f64::from(alpha) {
                x
            } else {
                0.0
            }
        }
        Gate::ScaledTanh { alpha, beta } => f64::from(alpha) * (f64::from(beta) * x).tanh(),
        Gate::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        Gate::Elu { alpha } => {
            if x > 0.0 {
                x
            } else {
                f64::from(alpha) * (x.exp() - 1.0)
            }
        }
        Gate::Softsign => x / (1.0 + x.abs()),
        Gate::Softplus => (1.0 + x.exp()).ln(),
    }
}

impl Oracle {
    /// `w [directions, gates·hidden, inputs]`, `r`, the states before `[directions, batch, hidden]`.
    fn y(&self, x: &[f64], w: &[f64], r: &[f64], h0: &[f64], c0: &[f64]) -> Vec<f64> {
        let Self { recurrence, steps, batch, inputs, .. } = self;
        let function = |gate: Gate, clip: Option<f32>, x: f64| {
            for kink in kinks(gate, clip) {
                self.margin.set(self.margin.get().min((x - f64::from(kink)).abs()));
            }
            function(gate, clip, x)
        };
        let (n, gates, clip) = (recurrence.hidden, recurrence.cell.gates(), recurrence.clip);
        let (width, directions) = (gates * n, recurrence.reverse.len());
        let mut y = vec![0.0; steps * directions * batch * n];
        let (mut last_h, mut last_c) = (Vec::new(), Vec::new());
        for d in 0..directions {
            let [f, g, h] = recurrence.functions[d];
            let bias = |row: usize, recurrent: bool| {
                let at = (2 * d + usize::from(recurrent)) * width + row;
                self.bias.get(at).map_or(0.0, |b| f64::from(*b))
            };
            let peephole =
                |which: usize, k: usize| self.peepholes.get((3 * d + which) * n + k).map_or(0.0, |p| f64::from(*p));
            for b in 0..*batch {
                let mut hidden = h0[(d * batch + b) * n..][..n].to_vec();
                let mut cell = c0[(d * batch + b) * n..][..n].to_vec();
                for i in 0..*steps {
                    let t = if recurrence.reverse[d] { steps - 1 - i } else { i };
                    let row = |gate: usize, k: usize| gate * n + k;
                    let from_x = |gate: usize, k: usize| {
                        let w = &w[(d * width + row(gate, k)) * inputs..][..*inputs];
                        let x = &x[(t * batch + b) * inputs..][..*inputs];
                        w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias(row(gate, k), false)
                    };
                    let from_h = |gate: usize, k: usize, hidden: &[f64]| {
                        let r = &r[(d * width + row(gate, k)) * n..][..n];
                        r.iter().zip(hidden).map(|(r, h)| r * h).sum::<f64>() + bias(row(gate, k), true)
                    };
                    let both = |gate: usize, k: usize| from_x(gate, k) + from_h(gate, k, &hidden);
                    (hidden, cell) = match recurrence.cell {
                        Cell::Rnn => ((0..n).map(|k| function(f, clip, both(0, k))).collect(), cell.clone()),
                        Cell::Gru { linear_before_reset } => {
                            let update: Vec<f64> = (0..n).map(|k| function(f, clip, both(0, k))).collect();
                            let reset: Vec<f64> = (0..n).map(|k| function(f, clip, both(1, k))).collect();
                            let held: Vec<f64> = (0..n).map(|k| reset[k] * hidden[k]).collect();
                            let new = |k: usize| {
                                let recurrent = match linear_before_reset {
                                    true => reset[k] * from_h(2, k, &hidden),
                                    false => from_h(2, k, &held),
                                };
                                function(g, clip, from_x(2, k) + recurrent)
                            };
                            let next = |k: usize| (1.0 - update[k]) * new(k) + update[k] * hidden[k];
                            ((0..n).map(next).collect(), cell.clone())
                        }
                        Cell::Lstm { input_forget } => {
                            let next_cell = |k: usize| {
                                let input = function(f, clip, both(0, k) + peephole(0, k) * cell[k]);
                                let forget = match input_forget {
                                    true => 1.0 - input,
                                    false => function(f, clip, both(2, k) + peephole(2, k) * cell[k]),
                                };
                                forget * cell[k] + input * function(g, clip, both(3, k))
                            };
                            let after: Vec<f64> = (0..n).map(next_cell).collect();
                            let next = |k: usize| {
                                function(f, clip, both(1, k) + peephole(1, k) * after[k]) * function(h, None, after[k])
                            };
                            ((0..n).map(next).collect(), after.clone())
                        }
                    };
                    y[((t * directions + d) * batch + b) * n..][..n].copy_from_slice(&hidden);
                }
                last_h.extend(hidden);
                last_c.extend(cell);
            }
        }
        if self.last {
            y.extend(last_h);
            if recurrence.cell.has_cell_state() {
                y.extend(last_c);
            }
        }
        y
    }
}

const CELLS: [Cell; 5] = [
    Cell::Rnn,
    Cell::Gru { linear_before_reset: false },
    Cell::Gru { linear_before_reset: true },
    Cell::Lstm { input_forget: false },
    Cell::Lstm { input_forget: true },
];

fn functions(cell: Cell) -> [Gate; 3] {
    match cell {
        Cell::Rnn => [Gate::Tanh; 3],
        _ => [Gate::Sigmoid, Gate::Tanh, Gate::Tanh],
    }
}

/// A layer whose weights are inputs of the operator, in the order of the file, so that [`Case`] checks their gradients:
/// x, then all of W and R as one.
#[derive(Debug)]
struct Trained(Recurrent);

impl Trained {
    fn weights(&self, all: &[f32]) -> Vec<ConvWeights> {
        let layer = &self.0;
        let (width, n, directions) = (layer.width(), layer.recurrence.hidden, layer.directions.len());
        let (w, r) = all.split_at(directions * width * layer.inputs);
        let matrix = |file: &[f32], from: usize| {
            let mut weights = ConvWeights { w: vec![0.0; file.len()], wt: file.to_vec(), ..ConvWeights::default() };
            transpose(file, width, from, &mut weights.w);
            weights
        };
        let pair = |d: usize| {
            let (a, b) = (width * layer.inputs, width * n);
            [matrix(&w[d * a..][..a], layer.inputs), matrix(&r[d * b..][..b], n)]
        };
        (0..directions).flat_map(pair).collect()
    }
}

fn handed(weights: &[ConvWeights]) -> Weights<'_> {
    let mut out = Weights::default();
    out.iter_mut().zip(weights).for_each(|(o, w)| *o = Some(Held::Merged(w)));
    out
}

impl Operator for Trained {
    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn keeps(&self) -> Keeps {
        let keeps = self.0.keeps();
        Keeps { x: [keeps.x[0], true, false], ..keeps }
    }

    fn forward_work(&self) -> usize {
        self.0.forward_work()
    }

    fn vjp_work(&self) -> usize {
        self.0.vjp_work()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        self.0.forward_with(&handed(&self.weights(x[1])), &x[..1], y, saved, work);
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let weights = self.weights(x[1]);
        let width = self.0.width();
        let [dx, dall] = dx else { unreachable!() };
        let mut gradients: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; w.w.len()]).collect();
        let mut dw = WeightGradients::default();
        dw.iter_mut().zip(&mut gradients).for_each(|(dw, g)| *dw = dall.is_some().then_some(g));
        let dx = dx.as_deref_mut();
        self.0.vjp_with(&handed(&weights), dw, &x[..1], y, saved, dy, &mut [dx], work);
        if let Some(dall) = dall {
            let mut at = 0;
            for tensor in 0..2 {
                for gradient in gradients.iter().skip(tensor).step_by(2) {
                    let mut file = vec![0.0; gradient.len()];
                    transpose(gradient, gradient.len() / width, width, &mut file);
                    dall[at..][..file.len()].iter_mut().zip(&file).for_each(|(d, f)| *d += f);
                    at += file.len();
                }
            }
        }
    }
}

/// One layer against the oracle, three ways: its weights trained, its initial states inputs, everything frozen and constant.
fn check(
    recurrence: &Recurrence,
    steps: usize,
    batch: usize,
    inputs: usize,
    biased: bool,
    peepholes: bool,
    last: bool,
) {
    let taken = (0..).find(|seed| check_seed(*seed, recurrence, [steps, batch, inputs], biased, peepholes, last));
    assert!(taken.is_some());
}

/// False, without a check, if one of the functions would be too near a kink.
fn check_seed(
    seed: u64,
    recurrence: &Recurrence,
    [steps, batch, inputs]: [usize; 3],
    biased: bool,
    peepholes: bool,
    last: bool,
) -> bool {
    let values = |name: u64, n: usize| values(100 * seed + name, n);
    let values_in = |name: u64, n: usize, low: f32, high: f32| values_in(100 * seed + name, n, low, high);
    let (n, directions) = (recurrence.hidden, recurrence.reverse.len());
    let width = recurrence.cell.gates() * n;
    // As trained layers have them: gates that saturate would lose digits of their slopes, which come from their outputs.
    let bound = 1.2 / (inputs as f32).sqrt();
    let w = values_in(1, directions * width * inputs, -bound, bound);
    let r = values_in(2, directions * width * n, -0.7, 0.7);
    let bias = values(3, if biased { directions * 2 * width } else { 0 });
    let peepholes = values(4, if peepholes { directions * 3 * n } else { 0 });
    let tensors = Tensors { w: &w, r: &r, bias: &bias, peepholes: &peepholes };
    let layer = || Recurrent::new(recurrence.clone(), steps, batch, inputs, &tensors, true).with_last(last);
    let x = values(5, steps * batch * inputs);
    let states = directions * batch * n;
    let (h0, c0) = (values(6, states), values(7, states));
    let oracle = Oracle {
        recurrence: recurrence.clone(),
        steps,
        batch,
        inputs,
        bias: bias.clone(),
        peepholes: peepholes.clone(),
        last,
        margin: Shared::new(f64::INFINITY),
    };
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|v| f64::from(*v)).collect() };
    let (zero, w64, r64) = (vec![0.0; states], wide(&w), wide(&r));
    for h in [&zero, &wide(&h0)] {
        for c in [&zero, &wide(&c0)] {
            oracle.y(&wide(&x), &w64, &r64, h, c);
        }
    }
    if oracle.margin.get() < f64::from(KINK_MARGIN) {
        return false;
    }

    let mut trained = [false; MAX_WEIGHTS];
    trained[..2 * directions].fill(true);
    let op = Trained(layer().with_trained(trained));
    let all = [w.clone(), r.clone()].concat();
    let split = w.len();
    let of_weights = |x: &[Vec<f64>]| oracle.y(&x[0], &x[1][..split], &x[1][split..], &zero, &zero);
    Case { op: &op, x: vec![x.clone(), all], oracle: &of_weights }.run();

    if recurrence.cell.has_cell_state() {
        let op = layer().with_initial([Initial::Input(1), Initial::Input(2)]);
        let of_states = |x: &[Vec<f64>]| oracle.y(&x[0], &w64, &r64, &x[1], &x[2]);
        Case { op: &op, x: vec![x.clone(), h0.clone(), c0.clone()], oracle: &of_states }.run();
        // The cell state alone.
        let op = layer().with_initial([Initial::Zero, Initial::Input(1)]);
        let of_cell = |x: &[Vec<f64>]| oracle.y(&x[0], &w64, &r64, &zero, &x[1]);
        Case { op: &op, x: vec![x.clone(), c0.clone()], oracle: &of_cell }.run();
    } else {
        let op = layer().with_initial([Initial::Input(1), Initial::Zero]);
        let of_state = |x: &[Vec<f64>]| oracle.y(&x[0], &w64, &r64, &x[1], &zero);
        Case { op: &op, x: vec![x.clone(), h0.clone()], oracle: &of_state }.run();
    }

    let constant = [Initial::Constant(h0.clone().into()), Initial::Constant(c0.clone().into())];
    let (h64, c64) = (wide(&h0), wide(&c0));
    let op = layer().with_initial(constant);
    let frozen = |x: &[Vec<f64>]| oracle.y(&x[0], &w64, &r64, &h64, &c64);
    Case { op: &op, x: vec![x], oracle: &frozen }.run();
    true
}

fn plain(cell: Cell, hidden: usize, reverse: &[bool]) -> Recurrence {
    let functions = vec![functions(cell); reverse.len()];
    Recurrence { cell, hidden, reverse: reverse.to_vec(), functions, clip: None }
}

#[test]
fn every_cell_and_direction_agrees_with_the_oracle() {
    for cell in CELLS {
        for reverse in [&[false][..], &[true], &[false, true]] {
            check(&plain(cell, 3, reverse), 4, 2, 2, true, false, true);
        }
        check(&plain(cell, 2, &[false]), 3, 1, 3, false, false, false);
        check(&plain(cell, 1, &[false, true]), 2, 3, 1, true, false, true);
        check(&plain(cell, 5, &[false]), 2, 1, 17, true, false, false);
    }
}

#[test]
fn peepholes_agree_with_the_oracle() {
    for input_forget in [false, true] {
        check(&plain(Cell::Lstm { input_forget }, 3, &[false, true]), 3, 2, 2, true, true, true);
    }
}

/// Smooth functions of every kind, and a clip that cuts some of the gates and none within reach of the differences.
#[test]
fn every_function_and_clip_agree_with_the_oracle() {
    let kinds = [
        Gate::Affine { alpha: 0.4, beta: 0.1 },
        Gate::LeakyRelu { alpha: 0.2 },
        Gate::ScaledTanh { alpha: 0.8, beta: 0.7 },
        Gate::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Gate::Elu { alpha: 0.9 },
        Gate::Softsign,
        Gate::Softplus,
        Gate::Relu,
        Gate::ThresholdedRelu { alpha: 0.1 },
        Gate::Sigmoid,
        Gate::Tanh,
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        for cell in CELLS {
            let second = kinds[(i + 3) % kinds.len()];
            let functions = vec![[kind, second, kind]; 1];
            let recurrence = Recurrence { cell, hidden: 2, reverse: vec![false], functions, clip: None };
            check(&recurrence, 3, 1, 2, true, false, true);
        }
    }
    for cell in CELLS {
        check(&Recurrence { clip: Some(0.6), ..plain(cell, 3, &[false, true]) }, 4, 1, 2, true, false, true);
    }
}

#[test]
fn no_steps_hand_on_the_initial_state() {
    let cell = Cell::Lstm { input_forget: false };
    let (w, r) = (values(1, 16), values(2, 16));
    let tensors = Tensors { w: &w, r: &r, ..Tensors::default() };
    let initial = [Initial::Input(1), Initial::Input(2)];
    let op = Recurrent::new(plain(cell, 2, &[false]), 0, 1, 2, &tensors, true).with_initial(initial).with_last(true);
    let oracle = |x: &[Vec<f64>]| [x[1].clone(), x[2].clone()].concat();
    Case { op: &op, x: vec![vec![], values(3, 2), values(4, 2)], oracle: &oracle }.run();
}
