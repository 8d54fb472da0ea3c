//! Softmax and log-softmax over one axis.
//!
//! Softmax: yᵢ = e^(xᵢ − m) / Σ e^(xⱼ − m) with m = max x; dx += y (dy − Σ dy y).
//! LogSoftmax: yᵢ = xᵢ − m − ln Σ e^(xⱼ − m); dx += dy − e^y Σ dy. (ONNX Softmax, LogSoftmax since opset 13.)
//!
//! `x`, `y [outer, len, inner]`, the axis in the middle. y is kept. Sums are f64. A row that holds not a number or +∞, or
//! nothing but −∞, is not a number throughout; it passes no gradient back where none comes, as behind a mask.

use rten_simd::{Isa, SimdOp};

use super::{Keeps, Operator};
use crate::kernels::elementary::exp;

/// Partial sums and maxima of a row, whatever the machine: the same order of summation everywhere.
const LANES: usize = 16;

/// Folds a row in [`LANES`] parts, then the parts; `f` gives the term of an index.
#[inline(always)]
fn fold<T: Copy>(len: usize, start: T, term: impl Fn(usize) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut parts = [start; LANES];
    let whole = len - len % LANES;
    for from in (0..whole).step_by(LANES) {
        for (lane, part) in parts.iter_mut().enumerate() {
            *part = join(*part, term(from + lane));
        }
    }
    let rest = (whole..len).fold(start, |sum, i| join(sum, term(i)));
    parts.into_iter().fold(rest, join)
}

/// Softmax of each row of `len` values.
struct Rows<'a> {
    len: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl SimdOp for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let len = self.len;
        for (x, y) in self.x.chunks_exact(len).zip(self.y.chunks_exact_mut(len)) {
            let max = fold(len, f32::NEG_INFINITY, |i| x[i], |max, x| if x > max { x } else { max });
            for (y, x) in y.iter_mut().zip(x) {
                *y = exp(x - max);
            }
            let factor = (1.0 / fold(len, 0.0, |i| f64::from(y[i]), |sum, y| sum + y)) as f32;
            for y in y {
                *y *= factor;
            }
        }
    }
}

/// dx += y (dy − Σ dy y) of each row of `len` values.
struct RowGradients<'a> {
    len: usize,
    y: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl SimdOp for RowGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let len = self.len;
        let rows = self.y.chunks_exact(len).zip(self.dy.chunks_exact(len));
        for ((y, dy), dx) in rows.zip(self.dx.chunks_exact_mut(len)) {
            let sum = fold(len, 0.0, |i| f64::from(dy[i]) * f64::from(y[i]), |sum, term| sum + term) as f32;
            if sum.is_nan() && dy.iter().all(|d| *d == 0.0) {
                continue;
            }
            for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
                *dx += y * (dy - sum);
            }
        }
    }
}

/// Softmax or log-softmax along the middle of `[outer, len, inner]`.
#[derive(Clone, Debug)]
pub struct Softmax {
    outer: usize,
    len: usize,
    inner: usize,
    log: bool,
}

impl Softmax {
    /// With `log`, the logarithm of the softmax.
    pub fn new(outer: usize, len: usize, inner: usize, log: bool) -> Self {
        Self { outer, len, inner, log }
    }

    /// Whether each line is one run of values, and there are any.
    fn in_rows(&self) -> bool {
        self.inner == 1 && self.len > 0 && !self.log
    }

    /// The first offset of each line along the axis.
    fn lines(&self) -> impl Iterator<Item = usize> {
        let (outer, inner, block) = (self.outer, self.inner, self.len * self.inner);
        let outer = if self.len == 0 { 0 } else { outer };
        (0..outer).flat_map(move |o| (0..inner).map(move |i| o * block + i))
    }
}

impl Operator for Softmax {
    fn output_len(&self) -> usize {
        self.outer * self.len * self.inner
    }

    fn keeps(&self) -> Keeps {
        Keeps { y: true, ..Keeps::default() }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        if self.in_rows() {
            return Rows { len: self.len, x: x[0], y }.dispatch();
        }
        let span = self.len.saturating_sub(1) * self.inner + 1;
        for from in self.lines() {
            let line = || x[0][from..from + span].iter().step_by(self.inner);
            let out = y[from..from + span].iter_mut().step_by(self.inner);
            let max = line().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
            if self.log {
                let sum: f64 = line().map(|x| f64::from(exp(x - max))).sum();
                let log_sum = sum.ln();
                for (y, x) in out.zip(line()) {
                    *y = (f64::from(x - max) - log_sum) as f32;
                }
            } else {
                let mut sum = 0.0;
                for (y, x) in out.zip(line()) {
                    *y = exp(x - max);
                    sum += f64::from(*y);
                }
                let factor = (1.0 / sum) as f32;
                for y in y[from..from + span].iter_mut().step_by(self.inner) {
                    *y *= factor;
                }
            }
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        if self.in_rows() {
            return RowGradients { len: self.len, y, dy, dx }.dispatch();
        }
        let span = self.len.saturating_sub(1) * self.inner + 1;
        for from in self.lines() {
            let dx = dx[from..from + span].iter_mut().step_by(self.inner);
            let lines = || {
                let dy = dy[from..from + span].iter().step_by(self.inner);
                dy.zip(y[from..from + span].iter().step_by(self.inner))
            };
            if self.log {
                let sum = lines().map(|(dy, _)| f64::from(*dy)).sum::<f64>() as f32;
                for (dx, (dy, y)) in dx.zip(lines()) {
                    *dx += dy - exp(*y) * sum;
                }
            } else {
                let sum = lines().map(|(dy, y)| f64::from(*dy) * f64::from(*y)).sum::<f64>() as f32;
                for (dx, (dy, y)) in dx.zip(lines()) {
                    *dx += y * (dy - sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, values, values_in};
    use super::*;

    fn check(outer: usize, len: usize, inner: usize, log: bool, x: Vec<f32>, gradient: bool) {
        let op = Softmax::new(outer, len, inner, log);
        let oracle = |x: &[Vec<f64>]| {
            let mut y = vec![0.0; x[0].len()];
            for o in 0..outer {
                for i in 0..inner {
                    let at = |l: usize| (o * len + l) * inner + i;
                    let max = (0..len).map(|l| x[0][at(l)]).fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = (0..len).map(|l| (x[0][at(l)] - max).exp()).sum();
                    for l in 0..len {
                        let z = x[0][at(l)] - max;
                        y[at(l)] = if log { z - sum.ln() } else { z.exp() / sum };
                    }
                }
            }
            y
        };
        let case = Case { op: &op, x: vec![x], oracle: &oracle };
        if gradient { case.run() } else { drop(case.forward()) }
    }

    #[test]
    fn agrees_with_the_oracle() {
        for log in [false, true] {
            for outer in [0, 1, 3] {
                for len in [0, 1, 2, 7, 12, 33] {
                    for inner in [0, 1, 5] {
                        check(outer, len, inner, log, values_in(5, outer * len * inner, -3.0, 3.0), true);
                    }
                }
            }
        }
    }

    #[test]
    fn large_magnitudes_do_not_overflow() {
        for log in [false, true] {
            for inner in [1, 5] {
                let x = values(6, 2 * 9 * inner).iter().map(|x| (x * 1e4).round()).collect();
                check(2, 9, inner, log, x, false);
            }
            check(1, 3, 1, log, vec![1.5e38, -1.5e38, 0.0], false);
        }
        check(1, 3, 1, false, vec![3e38, -3e38, 0.0], false);
        check(1, 3, 1, false, vec![f32::NEG_INFINITY, 0.0, 1.0], false);
    }
}
