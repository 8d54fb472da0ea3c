//! One time step of a cell, forward and back. Rows are clips: `gates [batch, gates·hidden]`, all else `[batch, hidden]`.

use super::{Cell, Recurrence};
use crate::kernels::gemm::{Start, gemm, gemm_from};

/// What a step works with besides the state: the recurrent weight, and what belongs to its direction.
pub(super) struct Around<'a> {
    pub(super) recurrence: &'a Recurrence,
    pub(super) direction: usize,
    pub(super) batch: usize,
    /// Forward as `r`, on the way back its transpose.
    pub(super) r: &'a [f32],
    /// Bias of the recurrent product of a GRU with `linear_before_reset`, else empty.
    pub(super) product_bias: &'a [f32],
    /// Peepholes i, o, f, each `[hidden]`; or empty.
    pub(super) peepholes: &'a [f32],
}

impl Around<'_> {
    fn peephole(&self, index: usize) -> Option<&[f32]> {
        let hidden = self.recurrence.hidden;
        self.peepholes.get(index * hidden..(index + 1) * hidden)
    }

    /// One step: `gates` come with the input product and leave activated, `hidden` and `cell` go from the state before to the
    /// state after; `product` gets the recurrent product of a GRU with `linear_before_reset`; `work` is `[batch, gates·hidden]`.
    pub(super) fn forward(
        &self,
        gates: &mut [f32],
        hidden: &mut [f32],
        cell: &mut [f32],
        product: &mut [f32],
        work: &mut [f32],
    ) {
        let n = self.recurrence.hidden;
        let (functions, clip) = (&self.recurrence.functions[self.direction], self.recurrence.clip);
        match self.recurrence.cell {
            Cell::Rnn => {
                gemm(self.batch, n, n, hidden, n, 1, self.r, n, gates, n);
                functions[0].apply(clip, gates);
                hidden.copy_from_slice(gates);
            }
            Cell::Lstm { input_forget } => {
                gemm(self.batch, 4 * n, n, hidden, n, 1, self.r, 4 * n, gates, 4 * n);
                let rows = gates.chunks_exact_mut(4 * n).zip(hidden.chunks_exact_mut(n).zip(cell.chunks_exact_mut(n)));
                for (gates, (hidden, cell)) in rows {
                    let [input, output, forget, new] = quarters(gates, n);
                    for (index, gate) in [(0, &mut *input), (2, &mut *forget)] {
                        if let Some(p) = self.peephole(index) {
                            add_product(gate, p, cell);
                        }
                        functions[0].apply(clip, gate);
                    }
                    functions[1].apply(clip, new);
                    if input_forget {
                        forget.iter_mut().zip(&*input).for_each(|(f, i)| *f = 1.0 - i);
                    }
                    for k in 0..n {
                        cell[k] = forget[k] * cell[k] + input[k] * new[k];
                    }
                    if let Some(p) = self.peephole(1) {
                        add_product(output, p, cell);
                    }
                    functions[0].apply(clip, output);
                    hidden.copy_from_slice(cell);
                    functions[2].apply(None, hidden);
                    hidden.iter_mut().zip(&*output).for_each(|(h, o)| *h *= o);
                }
            }
            Cell::Gru { linear_before_reset } => {
                if linear_before_reset {
                    let start = Start::Zero;
                    gemm_from(start, self.batch, 3 * n, n, hidden, n, 1, self.r, 3 * n, work, 3 * n);
                } else {
                    gemm(self.batch, 2 * n, n, hidden, n, 1, self.r, 3 * n, gates, 3 * n);
                }
                for (b, gates) in gates.chunks_exact_mut(3 * n).enumerate() {
                    let (update_reset, new) = gates.split_at_mut(2 * n);
                    if linear_before_reset {
                        let (work, own) = (&work[b * 3 * n..][..3 * n], &mut product[b * n..][..n]);
                        update_reset.iter_mut().zip(work).for_each(|(g, w)| *g += w);
                        for k in 0..n {
                            own[k] = work[2 * n + k] + self.product_bias[k];
                        }
                        functions[0].apply(clip, update_reset);
                        add_product(new, &update_reset[n..], own);
                    } else {
                        functions[0].apply(clip, update_reset);
                        for k in 0..n {
                            work[b * n + k] = update_reset[n + k] * hidden[b * n + k];
                        }
                    }
                }
                if !linear_before_reset {
                    let (r, new) = (&self.r[2 * n..], &mut gates[2 * n..]);
                    gemm(self.batch, n, n, work, n, 1, r, 3 * n, new, 3 * n);
                }
                for (gates, hidden) in gates.chunks_exact_mut(3 * n).zip(hidden.chunks_exact_mut(n)) {
                    let (update_reset, new) = gates.split_at_mut(2 * n);
                    functions[1].apply(clip, new);
                    for k in 0..n {
                        hidden[k] = (1.0 - update_reset[k]) * new[k] + update_reset[k] * hidden[k];
                    }
                }
            }
        }
    }

    /// The way back through one step: `dh` and `dc` go from the gradients of the state after to those of the state before,
    /// `dgates` and, of a GRU with `linear_before_reset`, `dproduct` are written.
    pub(super) fn backward(
        &self,
        state: &State,
        dh: &mut [f32],
        dc: &mut [f32],
        dgates: &mut [f32],
        dproduct: &mut [f32],
        work: &mut [f32],
    ) {
        let n = self.recurrence.hidden;
        let (functions, clip) = (&self.recurrence.functions[self.direction], self.recurrence.clip);
        match self.recurrence.cell {
            Cell::Rnn => {
                dgates.copy_from_slice(dh);
                functions[0].gradient(clip, state.gates, dgates);
                gemm_from(Start::Zero, self.batch, n, n, dgates, n, 1, self.r, n, dh, n);
            }
            Cell::Lstm { input_forget } => {
                for b in 0..self.batch {
                    let row = b * n..(b + 1) * n;
                    let (before, after) = (&state.cell_before[row.clone()], &state.cell[row.clone()]);
                    let (dh, dc) = (&dh[row.clone()], &mut dc[row.clone()]);
                    let gates = &state.gates[b * 4 * n..][..4 * n];
                    let (input, rest) = gates.split_at(n);
                    let (output, rest) = rest.split_at(n);
                    let (forget, new) = rest.split_at(n);
                    let [dinput, doutput, dforget, dnew] = quarters(&mut dgates[b * 4 * n..][..4 * n], n);
                    let squashed = &mut work[..n];
                    squashed.copy_from_slice(after);
                    functions[2].apply(None, squashed);
                    for k in 0..n {
                        doutput[k] = dh[k] * squashed[k];
                        // Held here until the slope of the output function is on it.
                        dnew[k] = dh[k] * output[k];
                    }
                    functions[2].gradient(None, squashed, dnew);
                    functions[0].gradient(clip, output, doutput);
                    for k in 0..n {
                        dc[k] += dnew[k];
                    }
                    if let Some(p) = self.peephole(1) {
                        add_product(dc, p, doutput);
                    }
                    for k in 0..n {
                        dinput[k] = dc[k] * new[k];
                        dforget[k] = dc[k] * before[k];
                        dnew[k] = dc[k] * input[k];
                        dc[k] *= forget[k];
                    }
                    if input_forget {
                        dinput.iter_mut().zip(&*dforget).for_each(|(i, f)| *i -= f);
                        dforget.fill(0.0);
                    } else {
                        functions[0].gradient(clip, forget, dforget);
                    }
                    functions[0].gradient(clip, input, dinput);
                    functions[1].gradient(clip, new, dnew);
                    for (index, dgate) in [(0, &*dinput), (2, &*dforget)] {
                        if let Some(p) = self.peephole(index) {
                            add_product(dc, p, dgate);
                        }
                    }
                }
                gemm_from(Start::Zero, self.batch, n, 4 * n, dgates, 4 * n, 1, self.r, n, dh, n);
            }
            Cell::Gru { linear_before_reset } => {
                for b in 0..self.batch {
                    let row = b * n..(b + 1) * n;
                    let (before, dh) = (&state.hidden_before[row.clone()], &mut dh[row.clone()]);
                    let gates = &state.gates[b * 3 * n..][..3 * n];
                    let (update, rest) = gates.split_at(n);
                    let (reset, new) = rest.split_at(n);
                    let (dupdate, rest) = dgates[b * 3 * n..][..3 * n].split_at_mut(n);
                    let (dreset, dnew) = rest.split_at_mut(n);
                    for k in 0..n {
                        dupdate[k] = dh[k] * (before[k] - new[k]);
                        dnew[k] = dh[k] * (1.0 - update[k]);
                        dh[k] *= update[k];
                    }
                    functions[0].gradient(clip, update, dupdate);
                    functions[1].gradient(clip, new, dnew);
                    if linear_before_reset {
                        let (product, dproduct) = (&state.product[row.clone()], &mut dproduct[row]);
                        for k in 0..n {
                            dreset[k] = dnew[k] * product[k];
                            dproduct[k] = dnew[k] * reset[k];
                        }
                        functions[0].gradient(clip, reset, dreset);
                    }
                }
                let (r_gates, r_new) = self.r.split_at(2 * n * n);
                if linear_before_reset {
                    gemm(self.batch, n, n, dproduct, n, 1, r_new, n, dh, n);
                } else {
                    // Of the reset state, which the new gate reads.
                    let dreset_state = &mut work[..self.batch * n];
                    let dnew = &dgates[2 * n..];
                    gemm_from(Start::Zero, self.batch, n, n, dnew, 3 * n, 1, r_new, n, dreset_state, n);
                    for b in 0..self.batch {
                        let reset = &state.gates[b * 3 * n + n..][..n];
                        let dreset = &mut dgates[b * 3 * n + n..][..n];
                        let row = b * n..(b + 1) * n;
                        let (before, d) = (&state.hidden_before[row.clone()], &dreset_state[row.clone()]);
                        let dh = &mut dh[row];
                        for k in 0..n {
                            dreset[k] = d[k] * before[k];
                            dh[k] += d[k] * reset[k];
                        }
                        functions[0].gradient(clip, reset, dreset);
                    }
                }
                gemm(self.batch, n, 2 * n, dgates, 3 * n, 1, r_gates, n, dh, n);
            }
        }
    }
}

/// What forward saved of one step, and the states before it.
pub(super) struct State<'a> {
    pub(super) gates: &'a [f32],
    pub(super) hidden_before: &'a [f32],
    /// LSTM, else empty.
    pub(super) cell_before: &'a [f32],
    /// LSTM, else empty.
    pub(super) cell: &'a [f32],
    /// GRU with `linear_before_reset`, else empty.
    pub(super) product: &'a [f32],
}

/// y += a · b.
fn add_product(y: &mut [f32], a: &[f32], b: &[f32]) {
    for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
        *y += a * b;
    }
}

fn quarters(x: &mut [f32], n: usize) -> [&mut [f32]; 4] {
    let (first, rest) = x.split_at_mut(n);
    let (second, rest) = rest.split_at_mut(n);
    let (third, fourth) = rest.split_at_mut(n);
    [first, second, third, fourth]
}
