//! Weights between the order of the file and the order of the kernels.
//!
//! Kernel order is `[groups][patch, group_outputs]` with patch = `[kh, kw, group_inputs]`, see [`crate::ops::conv`].

use super::{Layout, Site};

impl Site {
    /// For each element of the weight in kernel order, where it stands in the file.
    fn file_index(&self, group: usize, tap: usize, input: usize, output: usize) -> usize {
        let taps = self.kernel[0] * self.kernel[1];
        let outputs = self.outputs / self.groups;
        match self.layout {
            Layout::OutInKernel => ((group * outputs + output) * (self.inputs / self.groups) + input) * taps + tap,
            Layout::InOut | Layout::Rows => input * self.outputs + output,
            Layout::OutIn => output * self.inputs + input,
            Layout::Stacked { part } => (part * self.outputs + output) * self.inputs + input,
        }
    }

    fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        let (taps, inputs) = (self.kernel[0] * self.kernel[1], self.inputs / self.groups);
        let mut at = 0;
        for group in 0..self.groups {
            for tap in 0..taps {
                for input in 0..inputs {
                    for output in 0..self.outputs / self.groups {
                        f(at, self.file_index(group, tap, input, output));
                        at += 1;
                    }
                }
            }
        }
    }

    /// The weight in kernel order.
    pub fn weight_to_kernel(&self, file: &[f32], kernel: &mut [f32]) {
        self.for_each(|at, from| kernel[at] = file[from]);
    }

    /// The weight in the order of the file; of a stacked tensor, its own part of it.
    pub fn weight_to_file(&self, kernel: &[f32], file: &mut [f32]) {
        self.for_each(|at, to| file[to] = kernel[at]);
    }

    /// A depthwise weight as `[taps, channels]`.
    pub fn weight_to_taps(&self, file: &[f32], kernel: &mut [f32]) {
        let taps = self.kernel[0] * self.kernel[1];
        for (c, weights) in file.chunks_exact(taps).enumerate() {
            for (t, w) in weights.iter().enumerate() {
                kernel[t * self.outputs + c] = *w;
            }
        }
    }

    /// A `[rank, in/groups, taps]` as `[rank, taps, in/groups]`.
    pub fn a_to_kernel(&self, file: &[f32], kernel: &mut [f32]) {
        swap_last(file, self.inputs / self.groups, self.kernel[0] * self.kernel[1], kernel);
    }

    /// The inverse of [`Site::a_to_kernel`].
    pub fn a_to_file(&self, kernel: &[f32], file: &mut [f32]) {
        swap_last(kernel, self.kernel[0] * self.kernel[1], self.inputs / self.groups, file);
    }

    /// B `[out, rank/groups]` as `[groups][rank/groups, out/groups]`.
    pub fn b_to_kernel(&self, file: &[f32], kernel: &mut [f32]) {
        let outputs = self.outputs / self.groups;
        let rank = file.len() / self.outputs;
        for (f, k) in file.chunks_exact(outputs * rank).zip(kernel.chunks_exact_mut(outputs * rank)) {
            swap_last(f, outputs, rank, k);
        }
    }

    /// The inverse of [`Site::b_to_kernel`].
    pub fn b_to_file(&self, kernel: &[f32], file: &mut [f32]) {
        let outputs = self.outputs / self.groups;
        let rank = kernel.len() / self.outputs;
        for (k, f) in kernel.chunks_exact(outputs * rank).zip(file.chunks_exact_mut(outputs * rank)) {
            swap_last(k, rank, outputs, f);
        }
    }
}

/// `[…, rows, columns]` to `[…, columns, rows]`.
fn swap_last(x: &[f32], rows: usize, columns: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(rows * columns).zip(y.chunks_exact_mut(rows * columns)) {
        for i in 0..rows {
            for j in 0..columns {
                y[j * rows + i] = x[i * columns + j];
            }
        }
    }
}
