//! RNN, GRU and LSTM over a whole sequence, by back-propagation through time.
//!
//! With a_t = Wᵀ x_t + Wb and n the hidden size (ONNX RNN, GRU, LSTM, opset 7 to 22; ⊙ element by element):
//!
//! ```text
//! RNN   h_t = f(a_t + R h_{t−1} + Rb)
//! GRU   z, r = f(a_t + R h_{t−1} + Rb)
//!       n    = g(a_t + R (r ⊙ h_{t−1}) + Rb)            linear_before_reset = 0
//!       n    = g(a_t + r ⊙ (R h_{t−1} + Rb))            linear_before_reset = 1
//!       h_t  = (1 − z) ⊙ n + z ⊙ h_{t−1}
//! LSTM  i, f = f(a_t + R h_{t−1} + Rb + P ⊙ c_{t−1})    f = 1 − i with input_forget
//!       c    = g(a_t + R h_{t−1} + Rb)
//!       c_t  = f ⊙ c_{t−1} + i ⊙ c
//!       o    = f(a_t + R h_{t−1} + Rb + P ⊙ c_t)
//!       h_t  = o ⊙ h(c_t)
//! ```
//!
//! Back (Werbos 1990, "Backpropagation through time"): step by step from the end, dh_{t−1} and dc_{t−1} through the gates;
//! then, over all steps at once, dx += da·W, dW += daᵀ·x and dR += daᵀ·h_{t−1}.
//!
//! | | shape |
//! |---|---|
//! | x | `[steps, batch, inputs]` |
//! | initial h and c | `[directions, batch, hidden]` |
//! | y | Y `[steps, directions, batch, hidden]`, then, if asked for, the last h and the last c `[directions, batch, hidden]` |
//! | w, r | `[inputs, gates·hidden]`, `[hidden, gates·hidden]` a direction; gates in ONNX's order: GRU z r n, LSTM i o f c |
//! | saved | a direction: gates `[steps, batch, gates·hidden]`; then LSTM c, or GRU (linear_before_reset) R h + Rb `[steps, batch, hidden]` |
//!
//! x is kept where W is trained; y where R is trained, and by a GRU; initial states where their step needs them.

mod cell;
mod gate;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::cell::{Around, State};
pub use self::gate::Gate;
use super::conv::{ConvWeights, transpose};
use super::integer_conv::Pair;
use super::{Held, HeldPair, Keeps, MAX_INPUTS, MAX_WEIGHTS, Operator, WeightGradients, Weighted, Weights};
use crate::kernels::gemm::{Start, gemm, gemm_from};
use crate::kernels::integers::Integers;

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// One gate.
    Rnn,
    /// Update, reset and new gate.
    Gru {
        /// Whether the reset gate is applied behind the recurrent product, as cuDNN and PyTorch do.
        linear_before_reset: bool,
    },
    /// Input, output, forget and cell gate.
    Lstm {
        /// Whether the forget gate is one minus the input gate.
        input_forget: bool,
    },
}

impl Cell {
    /// Gates, each `hidden` wide.
    pub fn gates(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru { .. } => 3,
            Self::Lstm { .. } => 4,
        }
    }

    /// Functions that a direction names.
    pub fn functions(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru { .. } => 2,
            Self::Lstm { .. } => 3,
        }
    }

    fn has_cell_state(self) -> bool {
        matches!(self, Self::Lstm { .. })
    }

    fn keeps_product(self) -> bool {
        matches!(self, Self::Gru { linear_before_reset: true })
    }
}

/// A recurrent layer without weights and sizes of its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrence {
    /// Which cell.
    pub cell: Cell,
    /// Hidden size.
    pub hidden: usize,
    /// One or two directions: whether each runs from the end.
    pub reverse: Vec<bool>,
    /// f, g and h of each direction; those that the cell lacks do not count.
    pub functions: Vec<[Gate; 3]>,
    /// Bound on what goes into the gates' functions.
    pub clip: Option<f32>,
}

/// The state before the first step.
#[derive(Clone, Debug, Default)]
pub enum Initial {
    /// Zero.
    #[default]
    Zero,
    /// `[directions, batch, hidden]`.
    Constant(Arc<[f32]>),
    /// The input of that index.
    Input(usize),
}

/// A frozen weight of a direction.
#[derive(Clone, Debug)]
enum Weight {
    Floats(Arc<ConvWeights>),
    /// `[directions · gates · hidden, inputs]`, and the first row of this direction. Floats once a pass.
    Integers(Arc<Integers>, usize),
}

impl Weight {
    /// The weight, or its transpose for the way `back`, with what an adapter makes of it.
    fn floats<'a>(&'a self, width: usize, back: bool, held: Option<Held<'a>>, room: &'a mut [f32]) -> &'a [f32] {
        let (integers, first) = match (self, held) {
            (Self::Floats(_), Some(Held::Merged(weights))) => return if back { &weights.wt } else { &weights.w },
            (Self::Floats(weights), _) => return if back { &weights.wt } else { &weights.w },
            (Self::Integers(integers, first), _) => (integers, *first),
        };
        let from = integers.columns();
        let room = &mut room[..from * width];
        let rows = first..first + width;
        if back {
            integers.rows_to(rows, room);
        } else {
            integers.turned_rows_to(rows, room);
        }
        if let Some(Held::Pair(HeldPair { pair: Pair { a, bt, rank }, .. })) = held {
            if back {
                gemm(width, from, rank, bt, 1, width, a, from, room, from);
            } else {
                gemm(from, width, rank, a, 1, from, bt, width, room, width);
            }
        }
        room
    }
}

/// Weights of a direction and what belongs to them.
#[derive(Clone, Debug)]
struct Direction {
    w: Weight,
    r: Weight,
    /// Wb + Rb, without the part that stands in `product_bias`.
    bias: Vec<f32>,
    product_bias: Vec<f32>,
    peepholes: Vec<f32>,
}

/// Weights in integers: `w` and `r` of [`Tensors`], a row an output.
pub type IntegerTensors = [Option<Arc<Integers>>; 2];

/// Tensors of the file, as ONNX lays them out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tensors<'a> {
    /// `[directions, gates·hidden, inputs]`.
    pub w: &'a [f32],
    /// `[directions, gates·hidden, hidden]`.
    pub r: &'a [f32],
    /// `[directions, 2·gates·hidden]`, or empty.
    pub bias: &'a [f32],
    /// `[directions, 3·hidden]`, or empty.
    pub peepholes: &'a [f32],
}

/// A recurrent layer over `steps` steps.
#[derive(Clone, Debug)]
pub struct Recurrent {
    recurrence: Recurrence,
    steps: usize,
    batch: usize,
    inputs: usize,
    directions: Vec<Direction>,
    initial: [Initial; 2],
    last: bool,
    trained: [bool; MAX_WEIGHTS],
    /// The largest rank of a pair on weights in integers.
    rank: usize,
}

impl Recurrent {
    /// From zero states, giving Y alone. `backward` false leaves out what only the way back reads.
    ///
    /// # Panics
    /// If bias or peepholes have another length than their shape says.
    pub fn new(
        recurrence: Recurrence,
        steps: usize,
        batch: usize,
        inputs: usize,
        tensors: &Tensors,
        backward: bool,
    ) -> Self {
        let n = recurrence.hidden;
        let width = recurrence.cell.gates() * n;
        let matrix = |file: &[f32], d: usize, from: usize| {
            // Empty where it is held in integers.
            let Some(file) = file.get(d * width * from..(d + 1) * width * from) else { return Arc::default() };
            let mut weights = ConvWeights { w: vec![0.0; from * width], ..ConvWeights::default() };
            transpose(file, width, from, &mut weights.w);
            if backward {
                weights.wt = file.to_vec();
            }
            Arc::new(weights)
        };
        let direction = |d: usize| {
            let mut bias = vec![0.0; width];
            let mut product_bias = vec![0.0; if recurrence.cell.keeps_product() { n } else { 0 }];
            if !tensors.bias.is_empty() {
                let (input, recurrent) = tensors.bias[d * 2 * width..][..2 * width].split_at(width);
                bias.copy_from_slice(input);
                let behind = width - product_bias.len();
                bias.iter_mut().zip(&recurrent[..behind]).for_each(|(b, r)| *b += r);
                product_bias.copy_from_slice(&recurrent[behind..]);
            }
            Direction {
                w: Weight::Floats(matrix(tensors.w, d, inputs)),
                r: Weight::Floats(matrix(tensors.r, d, n)),
                bias,
                product_bias,
                peepholes: if tensors.peepholes.is_empty() {
                    Vec::new()
                } else {
                    tensors.peepholes[d * 3 * n..][..3 * n].to_vec()
                },
            }
        };
        let directions = (0..recurrence.reverse.len()).map(direction).collect();
        let (initial, trained) = Default::default();
        Self { recurrence, steps, batch, inputs, directions, initial, last: false, trained, rank: 0 }
    }

    /// Runs from these weights in integers, whose floats [`Recurrent::new`] need not have got.
    pub fn with_integers(mut self, integers: &IntegerTensors) -> Self {
        let width = self.width();
        for (d, direction) in self.directions.iter_mut().enumerate() {
            for (weight, held) in [&mut direction.w, &mut direction.r].into_iter().zip(integers) {
                if let Some(held) = held {
                    *weight = Weight::Integers(held.clone(), d * width);
                }
            }
        }
        self
    }

    /// Starts from these states, hidden and cell.
    pub fn with_initial(self, initial: [Initial; 2]) -> Self {
        Self { initial, ..self }
    }

    /// Whether the last states come behind Y.
    pub fn with_last(self, last: bool) -> Self {
        Self { last, ..self }
    }

    /// Which of the weights are trained: [`Recurrent::weight`] has their order.
    pub fn with_trained(self, trained: [bool; MAX_WEIGHTS]) -> Self {
        Self { trained, ..self }
    }

    /// The largest rank of the pairs that weights in integers get.
    pub fn with_rank(self, rank: usize) -> Self {
        Self { rank, ..self }
    }

    /// Frozen weight `index` in floats: input and recurrent weight of the first direction, then of the second.
    pub fn weight(&self, index: usize) -> Option<Arc<ConvWeights>> {
        let direction = self.directions.get(index / 2)?;
        match if index.is_multiple_of(2) { &direction.w } else { &direction.r } {
            Weight::Floats(weights) => Some(weights.clone()),
            Weight::Integers(..) => None,
        }
    }

    /// Floats that a pass makes of weights in integers, one tensor at a time.
    fn room(&self) -> usize {
        let of = |weight: &Weight| match weight {
            Weight::Floats(_) => 0,
            Weight::Integers(integers, _) => integers.columns() * self.width(),
        };
        self.directions.iter().map(|d| of(&d.w).max(of(&d.r))).max().unwrap_or(0)
    }

    /// Multiply-adds of a forward pass.
    pub fn multiply_adds(&self) -> u64 {
        let n = self.recurrence.hidden;
        (self.directions.len() * self.rows() * self.width() * (self.inputs + n)) as u64
    }

    /// Values of Y.
    pub fn sequence_len(&self) -> usize {
        self.steps * self.state_len()
    }

    /// Values of the last h, and of the last c.
    pub fn state_len(&self) -> usize {
        self.directions.len() * self.batch * self.recurrence.hidden
    }

    fn rows(&self) -> usize {
        self.steps * self.batch
    }

    fn width(&self) -> usize {
        self.recurrence.cell.gates() * self.recurrence.hidden
    }

    /// Values of one state of one direction.
    fn one(&self) -> usize {
        self.batch * self.recurrence.hidden
    }

    /// Values of what is saved a step besides the gates.
    fn beside(&self) -> usize {
        let cell = self.recurrence.cell;
        if cell.has_cell_state() || cell.keeps_product() { self.rows() * self.recurrence.hidden } else { 0 }
    }

    fn saved_len(&self) -> usize {
        self.rows() * self.width() + self.beside()
    }

    /// The steps of direction `d` in its order: the step, and the one before it.
    fn order(&self, d: usize) -> impl DoubleEndedIterator<Item = (usize, Option<usize>)> + use<> {
        let (steps, reverse) = (self.steps, self.recurrence.reverse[d]);
        let at = move |i: usize| if reverse { steps - 1 - i } else { i };
        (0..steps).map(move |i| (at(i), i.checked_sub(1).map(at)))
    }

    /// Where h of step `t` and direction `d` stands in y.
    fn place(&self, t: usize, d: usize) -> std::ops::Range<usize> {
        let start = (t * self.directions.len() + d) * self.one();
        start..start + self.one()
    }

    /// Initial state `which` of direction `d`; none for zero.
    fn start<'a>(&'a self, which: usize, d: usize, x: &[&'a [f32]]) -> Option<&'a [f32]> {
        let all = match &self.initial[which] {
            Initial::Zero => return None,
            Initial::Constant(values) => values,
            Initial::Input(index) => x[*index],
        };
        Some(&all[d * self.one()..][..self.one()])
    }

    fn around<'a>(&'a self, r: &'a [f32], d: usize) -> Around<'a> {
        let direction = &self.directions[d];
        Around {
            recurrence: &self.recurrence,
            direction: d,
            batch: self.batch,
            r,
            product_bias: &direction.product_bias,
            peepholes: &direction.peepholes,
        }
    }
}

impl Operator for Recurrent {
    fn output_len(&self) -> usize {
        let states = if self.recurrence.cell.has_cell_state() { 2 } else { 1 };
        self.sequence_len() + if self.last { states * self.state_len() } else { 0 }
    }

    fn keeps(&self) -> Keeps {
        let trained = |tensor: usize| (0..self.directions.len()).any(|d| self.trained[2 * d + tensor]);
        let hidden = trained(1) || matches!(self.recurrence.cell, Cell::Gru { .. });
        let mut x = [false; MAX_INPUTS];
        x[0] = trained(0);
        for (initial, kept) in self.initial.iter().zip([hidden, self.recurrence.cell.has_cell_state()]) {
            if let Initial::Input(index) = initial {
                x[*index] = kept;
            }
        }
        Keeps { x, y: hidden, saved: self.directions.len() * self.saved_len() }
    }

    /// The floats of a weight in integers, what would be saved of one direction, the states of a step, and the recurrent product of one.
    fn forward_work(&self) -> usize {
        self.room() + self.saved_len() + 2 * self.one() + self.batch * self.width()
    }

    /// The floats of a weight in integers, r-wide products; of one direction: da, the gradient of the recurrent product, h one step back, dh, dc and one state of scratch.
    fn vjp_work(&self) -> usize {
        self.room() + self.rows() * (self.width() + 2 * self.recurrence.hidden + 2 * self.rank) + 4 * self.one()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        self.forward_with(&Weights::default(), x, y, saved, work);
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
        self.vjp_with(&Weights::default(), WeightGradients::default(), x, y, saved, dy, dx, work);
    }
}

impl Weighted for Recurrent {
    fn forward_with(&self, weights: &Weights, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        let (rows, width, one) = (self.rows(), self.width(), self.one());
        let (room, work) = work.split_at_mut(self.room());
        let (unsaved, work) = work.split_at_mut(self.saved_len());
        let (hidden, work) = work.split_at_mut(one);
        let (cell, work) = work.split_at_mut(one);
        for (d, direction) in self.directions.iter().enumerate() {
            let saved = match saved.get_mut(d * self.saved_len()..(d + 1) * self.saved_len()) {
                Some(saved) if !saved.is_empty() => saved,
                _ => &mut *unsaved,
            };
            let (gates, beside) = saved.split_at_mut(rows * width);
            let w = direction.w.floats(width, false, weights[2 * d], room);
            let start = Start::Bias(&direction.bias);
            gemm_from(start, rows, width, self.inputs, x[0], self.inputs, 1, w, width, gates, width);
            for (which, state) in [&mut *hidden, &mut *cell].into_iter().enumerate() {
                match self.start(which, d, x) {
                    Some(start) => state.copy_from_slice(start),
                    None => state.fill(0.0),
                }
            }
            let around = self.around(direction.r.floats(width, false, weights[2 * d + 1], room), d);
            for (t, _) in self.order(d) {
                let gates = &mut gates[t * self.batch * width..][..self.batch * width];
                let product: &mut [f32] =
                    if self.recurrence.cell.keeps_product() { &mut beside[t * one..][..one] } else { &mut [] };
                around.forward(gates, hidden, cell, product, work);
                y[self.place(t, d)].copy_from_slice(hidden);
                if self.recurrence.cell.has_cell_state() {
                    beside[t * one..][..one].copy_from_slice(cell);
                }
            }
            if self.last {
                let last = &mut y[self.sequence_len()..];
                last[d * one..][..one].copy_from_slice(hidden);
                if self.recurrence.cell.has_cell_state() {
                    last[self.state_len() + d * one..][..one].copy_from_slice(cell);
                }
            }
        }
    }

    fn vjp_with(
        &self,
        weights: &Weights,
        mut dw: WeightGradients,
        x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let (rows, width, one, n) = (self.rows(), self.width(), self.one(), self.recurrence.hidden);
        let cell = self.recurrence.cell;
        let (room, work) = work.split_at_mut(self.room());
        let (narrow, work) = work.split_at_mut(2 * rows * self.rank);
        let (da, work) = work.split_at_mut(rows * width);
        let (dproduct, work) = work.split_at_mut(rows * n);
        let (before, work) = work.split_at_mut(rows * n);
        let (dh, work) = work.split_at_mut(one);
        let (dc, work) = work.split_at_mut(one);
        let (zeros, work) = work.split_at_mut(one);
        zeros.fill(0.0);
        for (d, direction) in self.directions.iter().enumerate() {
            let (gates, beside) = saved[d * self.saved_len()..][..self.saved_len()].split_at(rows * width);
            let at = |values: &'_ [f32], t: usize| t * one..t * one + if values.is_empty() { 0 } else { one };
            dh.fill(0.0);
            dc.fill(0.0);
            if self.last {
                let last = &dy[self.sequence_len()..];
                dh.copy_from_slice(&last[d * one..][..one]);
                if cell.has_cell_state() {
                    dc.copy_from_slice(&last[self.state_len() + d * one..][..one]);
                }
            }
            let around = self.around(direction.r.floats(width, true, weights[2 * d + 1], room), d);
            for (t, earlier) in self.order(d).rev() {
                dh.iter_mut().zip(&dy[self.place(t, d)]).for_each(|(dh, dy)| *dh += dy);
                let start = |which: usize| self.start(which, d, x).unwrap_or(&*zeros);
                let none: &[f32] = &[];
                let state = State {
                    gates: &gates[t * self.batch * width..][..self.batch * width],
                    hidden_before: match earlier {
                        _ if y.is_empty() => none,
                        Some(earlier) => &y[self.place(earlier, d)],
                        None => start(0),
                    },
                    cell_before: match earlier {
                        _ if !cell.has_cell_state() => none,
                        Some(earlier) => &beside[at(beside, earlier)],
                        None => start(1),
                    },
                    cell: if cell.has_cell_state() { &beside[at(beside, t)] } else { none },
                    product: if cell.keeps_product() { &beside[at(beside, t)] } else { none },
                };
                if !y.is_empty() {
                    before[t * one..][..one].copy_from_slice(state.hidden_before);
                }
                let da = &mut da[t * self.batch * width..][..self.batch * width];
                around.backward(&state, dh, dc, da, &mut dproduct[t * one..][..one], work);
            }
            for (initial, d_state) in self.initial.iter().zip([&*dh, &*dc]) {
                if let Initial::Input(index) = initial
                    && let Some(dx) = dx[*index].as_deref_mut()
                {
                    dx[d * one..][..one].iter_mut().zip(d_state).for_each(|(dx, d)| *dx += d);
                }
            }
            if let Some(dx) = dx[0].as_deref_mut() {
                let w = direction.w.floats(width, true, weights[2 * d], room);
                gemm(rows, self.inputs, width, da, width, 1, w, self.inputs, dx, self.inputs);
            }
            if let (Some(dw), Some(Held::Pair(pair))) = (dw[2 * d].as_deref_mut(), weights[2 * d]) {
                let (x, dz) = ((x[0], self.inputs, self.inputs), (&*da, width, width));
                pair.add_gradients(rows, x, dz, 0..width, dw, narrow);
            } else if let Some(dw) = dw[2 * d].as_deref_mut() {
                gemm(self.inputs, width, rows, x[0], 1, self.inputs, da, width, dw, width);
            }
            if let (Some(dr), Some(Held::Pair(pair))) = (dw[2 * d + 1].as_deref_mut(), weights[2 * d + 1]) {
                let Cell::Gru { linear_before_reset } = cell else {
                    pair.add_gradients(rows, (&*before, n, n), (&*da, width, width), 0..width, dr, narrow);
                    continue;
                };
                pair.add_gradients(rows, (&*before, n, n), (&*da, 2 * n, width), 0..2 * n, dr, narrow);
                if linear_before_reset {
                    pair.add_gradients(rows, (&*before, n, n), (&*dproduct, n, n), 2 * n..width, dr, narrow);
                } else {
                    reset(before, gates, n, width);
                    pair.add_gradients(rows, (&*before, n, n), (&da[2 * n..], n, width), 2 * n..width, dr, narrow);
                }
            } else if let Some(dr) = dw[2 * d + 1].as_deref_mut() {
                let Cell::Gru { linear_before_reset } = cell else {
                    gemm(n, width, rows, before, 1, n, da, width, dr, width);
                    continue;
                };
                gemm(n, 2 * n, rows, before, 1, n, da, width, dr, width);
                if linear_before_reset {
                    gemm(n, n, rows, before, 1, n, dproduct, n, &mut dr[2 * n..], width);
                } else {
                    reset(before, gates, n, width);
                    gemm(n, n, rows, before, 1, n, &da[2 * n..], width, &mut dr[2 * n..], width);
                }
            }
        }
    }
}

/// The states before each step times the reset gate.
fn reset(before: &mut [f32], gates: &[f32], n: usize, width: usize) {
    for (before, gates) in before.chunks_exact_mut(n).zip(gates.chunks_exact(width)) {
        before.iter_mut().zip(&gates[n..2 * n]).for_each(|(b, r)| *b *= r);
    }
}
