//! Reductions over any set of axes.
//!
//! | kind | y | dx += dy · | kept |
//! |---|---|---|---|
//! | Sum | Σ x | 1 | |
//! | Mean | Σ x / n | 1 / n | |
//! | Max, Min | the largest, the smallest | 1 / ties where x = y | x, y |
//! | SumSquare | Σ x² | 2x | x |
//! | L1 | Σ \|x\| | sign x, 0 at 0 | x |
//! | L2 | √Σ x² | x / y, 0 at y = 0 | x, y |
//!
//! Formulas: ONNX ReduceSum, … ; ties as `torch.amax`. Max and Min give not a number if any value is. Whether the reduced
//! axes stay as 1 changes no value and is not known here. Sums are f32 in blocks: a value passes through at most about
//! 32 + n / 32 additions (over a row: 64 + n / 1024), so that the error of a global average of a large plane stays at some ULP.

use super::movement::{Dim, collapse, strides, walk};
use super::{Keeps, Operator};

/// Which reduction; see the table at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReduceKind {
    /// Σ x / n.
    Mean,
    /// Σ x.
    Sum,
    /// The largest value.
    Max,
    /// The smallest value.
    Min,
    /// Σ x².
    SumSquare,
    /// Σ |x|.
    L1,
    /// √Σ x².
    L2,
}

/// Rows that are summed before their sum is added to the total.
const BLOCK_ROWS: usize = 32;
/// Partial results along a row.
const LANES: usize = 16;
/// Values of a row that are reduced before their result is joined with the total.
const BLOCK_ROW: usize = 64 * LANES;

/// A reduction of a row-major tensor.
#[derive(Clone, Debug)]
pub struct Reduce {
    kind: ReduceKind,
    output_len: usize,
    /// Values that each output is reduced from.
    count: usize,
    /// Loops around the kernel; tensors x and y.
    outer: Vec<Dim<2>>,
    kernel: Kernel,
}

#[derive(Clone, Copy, Debug)]
enum Kernel {
    /// x `[n]` to one value.
    Row(usize),
    /// x `[rows, n]` to `[n]`.
    Columns { rows: usize, n: usize },
}

impl Reduce {
    /// `axes` may come in any order; none reduces nothing.
    pub fn new(kind: ReduceKind, shape: &[usize], axes: &[usize]) -> Self {
        debug_assert!(axes.iter().all(|axis| *axis < shape.len()));
        let kept: Vec<usize> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
        let (x_strides, y_strides) = (strides(shape), strides(&kept));
        let mut outer = collapse((0..shape.len()).map(|d| Dim {
            size: shape[d],
            strides: [x_strides[d], if axes.contains(&d) { 0 } else { y_strides[d] }],
        }));
        let kernel = match outer.pop() {
            None => Kernel::Row(1),
            Some(last) if last.strides[1] == 0 => Kernel::Row(last.size),
            Some(last) => match outer.pop_if(|dim| dim.strides[1] == 0) {
                Some(rows) => Kernel::Columns { rows: rows.size, n: last.size },
                None => Kernel::Columns { rows: 1, n: last.size },
            },
        };
        Self {
            kind,
            output_len: kept.iter().product(),
            count: (0..shape.len()).filter(|d| axes.contains(d)).map(|d| shape[d]).product(),
            outer,
            kernel,
        }
    }

    /// y = join of `map(x)` over what is reduced, from `start` on.
    fn fold(
        &self,
        x: &[f32],
        y: &mut [f32],
        work: &mut [f32],
        start: f32,
        map: impl Fn(f32) -> f32,
        join: impl Fn(f32, f32) -> f32,
    ) {
        y.fill(start);
        walk(&self.outer, [0; 2], &mut |[xo, yo]| match self.kernel {
            Kernel::Row(n) => {
                for block in x[xo..xo + n].chunks(BLOCK_ROW) {
                    y[yo] = join(y[yo], fold_row(block, start, &map, &join));
                }
            }
            Kernel::Columns { rows, n } => {
                let y = &mut y[yo..yo + n];
                if rows <= BLOCK_ROWS {
                    return fold_rows(&x[xo..xo + rows * n], y, &map, &join);
                }
                for block in x[xo..xo + rows * n].chunks((BLOCK_ROWS * n).max(1)) {
                    let work = &mut work[..n];
                    work.fill(start);
                    fold_rows(block, work, &map, &join);
                    for (y, work) in y.iter_mut().zip(work) {
                        *y = join(*y, *work);
                    }
                }
            }
        });
    }

    /// dx += dy · factor.
    fn spread(&self, dy: &[f32], dx: &mut [f32], factor: f32) {
        walk(&self.outer, [0; 2], &mut |[xo, yo]| match self.kernel {
            Kernel::Row(n) => {
                let d = dy[yo] * factor;
                for dx in &mut dx[xo..xo + n] {
                    *dx += d;
                }
            }
            Kernel::Columns { rows, n } => {
                for dx in dx[xo..xo + rows * n].chunks_exact_mut(n.max(1)) {
                    for (dx, dy) in dx.iter_mut().zip(&dy[yo..yo + n]) {
                        *dx += dy * factor;
                    }
                }
            }
        });
    }

    /// Calls `f` with the offset of each x and of the y that it goes to.
    fn visit(&self, mut f: impl FnMut(usize, usize)) {
        walk(&self.outer, [0; 2], &mut |[xo, yo]| match self.kernel {
            Kernel::Row(n) => (0..n).for_each(|i| f(xo + i, yo)),
            Kernel::Columns { rows, n } => {
                for row in 0..rows {
                    (0..n).for_each(|i| f(xo + row * n + i, yo + i));
                }
            }
        });
    }
}

#[inline(always)]
fn fold_row(x: &[f32], start: f32, map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, map(*x));
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, map(*x));
    }
    lanes.into_iter().fold(start, join)
}

#[inline(always)]
fn fold_rows(x: &[f32], y: &mut [f32], map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) {
    for x in x.chunks_exact(y.len().max(1)) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = join(*y, map(*x));
        }
    }
}

impl Operator for Reduce {
    fn output_len(&self) -> usize {
        self.output_len
    }

    fn keeps(&self) -> Keeps {
        let (x, y) = match self.kind {
            ReduceKind::Mean | ReduceKind::Sum => (false, false),
            ReduceKind::SumSquare | ReduceKind::L1 => (true, false),
            ReduceKind::Max | ReduceKind::Min | ReduceKind::L2 => (true, true),
        };
        Keeps { x: [x, false, false], y, saved: 0 }
    }

    /// The sums of one block of rows.
    fn forward_work(&self) -> usize {
        match self.kernel {
            Kernel::Columns { rows, n } if rows > BLOCK_ROWS => n,
            _ => 0,
        }
    }

    /// The number of ties of each output.
    fn vjp_work(&self) -> usize {
        match self.kind {
            ReduceKind::Max | ReduceKind::Min => self.output_len,
            _ => 0,
        }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], work: &mut [f32]) {
        let x = x[0];
        let sum = |a, b| a + b;
        match self.kind {
            ReduceKind::Sum | ReduceKind::Mean => self.fold(x, y, work, 0.0, |x| x, sum),
            ReduceKind::SumSquare | ReduceKind::L2 => self.fold(x, y, work, 0.0, |x| x * x, sum),
            ReduceKind::L1 => self.fold(x, y, work, 0.0, f32::abs, sum),
            ReduceKind::Max => {
                self.fold(x, y, work, f32::NEG_INFINITY, |x| x, |a, b| if b > a || b.is_nan() { b } else { a });
            }
            ReduceKind::Min => {
                self.fold(x, y, work, f32::INFINITY, |x| x, |a, b| if b < a || b.is_nan() { b } else { a });
            }
        }
        match self.kind {
            ReduceKind::Mean => {
                let factor = 1.0 / self.count as f32;
                y.iter_mut().for_each(|y| *y *= factor);
            }
            ReduceKind::L2 => y.iter_mut().for_each(|y| *y = y.sqrt()),
            _ => {}
        }
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        let x = x[0];
        match self.kind {
            ReduceKind::Sum => self.spread(dy, dx, 1.0),
            ReduceKind::Mean => self.spread(dy, dx, 1.0 / self.count as f32),
            ReduceKind::SumSquare => self.visit(|i, o| dx[i] += 2.0 * x[i] * dy[o]),
            ReduceKind::L1 => self.visit(|i, o| {
                if x[i] != 0.0 {
                    dx[i] += dy[o] * x[i].signum();
                }
            }),
            ReduceKind::L2 => self.visit(|i, o| {
                if y[o] != 0.0 {
                    dx[i] += dy[o] * (x[i] / y[o]);
                }
            }),
            ReduceKind::Max | ReduceKind::Min => {
                let ties = &mut work[..self.output_len];
                ties.fill(0.0);
                self.visit(|i, o| ties[o] += f32::from(x[i] == y[o]));
                self.visit(|i, o| {
                    if x[i] == y[o] {
                        dx[i] += dy[o] / ties[o];
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, away_from, close, distinct, indices, offset, values};
    use super::*;

    const KINDS: [ReduceKind; 7] = [
        ReduceKind::Mean,
        ReduceKind::Sum,
        ReduceKind::Max,
        ReduceKind::Min,
        ReduceKind::SumSquare,
        ReduceKind::L1,
        ReduceKind::L2,
    ];

    fn oracle(kind: ReduceKind, values: &[f64]) -> f64 {
        let sum = |f: fn(f64) -> f64| values.iter().map(|v| f(*v)).sum::<f64>();
        match kind {
            ReduceKind::Mean => sum(|v| v) / values.len() as f64,
            ReduceKind::Sum => sum(|v| v),
            ReduceKind::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ReduceKind::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
            ReduceKind::SumSquare => sum(|v| v * v),
            ReduceKind::L1 => sum(f64::abs),
            ReduceKind::L2 => sum(|v| v * v).sqrt(),
        }
    }

    fn check(kind: ReduceKind, shape: &[usize], axes: &[usize], gradient: bool) {
        let op = Reduce::new(kind, shape, axes);
        let kept: Vec<usize> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
        let inputs = indices(shape);
        let oracle = |x: &[Vec<f64>]| {
            let mut groups = vec![Vec::new(); kept.iter().product()];
            for (x, index) in x[0].iter().zip(&inputs) {
                groups[offset(index, &kept)].push(*x);
            }
            groups.iter().map(|group| oracle(kind, group)).collect()
        };
        let x = match kind {
            ReduceKind::Max | ReduceKind::Min => distinct(4, inputs.len()),
            _ => away_from(values(4, inputs.len()), &[0.0]),
        };
        let case = Case { op: &op, x: vec![x], oracle: &oracle };
        if gradient { case.run() } else { drop(case.forward()) }
    }

    #[test]
    fn agrees_with_the_oracle_for_every_set_of_axes() {
        for kind in KINDS {
            for shape in [[2, 3, 2, 5], [3, 1, 4, 2], [1, 2, 3, 1]] {
                for set in 0..16 {
                    let axes: Vec<usize> = (0..4).rev().filter(|d| set >> d & 1 == 1).collect();
                    check(kind, &shape, &axes, true);
                }
            }
            check(kind, &[], &[], true);
            check(kind, &[37], &[0], true);
            check(kind, &[2, 3, 2, 2, 3], &[0, 2, 4], true);
        }
    }

    #[test]
    fn blocks_join() {
        for kind in KINDS {
            check(kind, &[67, 3], &[0], true);
            check(kind, &[2, 33, 5], &[1], true);
            check(kind, &[2, 2500], &[1], false);
        }
    }

    #[test]
    fn empty_tensors_do_not_panic() {
        for kind in KINDS {
            for shape in [[0, 3, 2], [2, 0, 3], [2, 3, 0]] {
                for set in 0..8 {
                    let axes: Vec<usize> = (0..3).filter(|d| set >> d & 1 == 1).collect();
                    check(kind, &shape, &axes, false);
                }
            }
        }
    }

    #[test]
    fn a_large_mean_is_accurate() {
        let n = 112 * 112;
        let x = vec![0.1f32; n * 3];
        for (shape, axis) in [([n, 3], 0), ([3, n], 1)] {
            let op = Reduce::new(ReduceKind::Mean, &shape, &[axis]);
            let (mut y, mut work) = ([0.0; 3], vec![f32::NAN; op.forward_work()]);
            op.forward(&[&x], &mut y, &mut [], &mut work);
            close(&y, &[f64::from(0.1f32); 3], "mean of equal values");
        }
    }

    #[test]
    fn ties_share_and_not_a_number_passes() {
        let op = Reduce::new(ReduceKind::Max, &[4], &[0]);
        let x = [1.0, 2.0, 2.0, 0.0];
        let (mut y, mut dx, mut work) = ([0.0], [0.0; 4], [f32::NAN]);
        op.forward(&[&x], &mut y, &mut [], &mut []);
        op.vjp(&[&x], &y, &[], &mut [1.0], &mut [Some(&mut dx)], &mut work);
        assert_eq!(dx, [0.0, 0.5, 0.5, 0.0]);
        for kind in KINDS {
            for at in 0..40 {
                let mut x = values(1, 40);
                x[at] = f32::NAN;
                for (shape, axis) in [([1, 40], 1), ([40, 1], 0)] {
                    let op = Reduce::new(kind, &shape, &[axis]);
                    let mut y = [0.0];
                    op.forward(&[&x], &mut y, &mut [], &mut vec![0.0; op.forward_work()]);
                    assert!(y[0].is_nan(), "{kind:?}");
                }
            }
        }
    }
}
