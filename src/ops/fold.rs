//! Reductions whose gradient looks at all values that are reduced to one: log-sum-exp and the product.
//!
//! | kind | y | dx += dy · | kept |
//! |---|---|---|---|
//! | LogSumExp | m + ln Σ e^(x − m), m = max x | e^(x − y) | x, y |
//! | Prod | Π x | the product of the others | x |
//!
//! Formulas: ONNX ReduceLogSumExp, ReduceProd. An infinite m stands for itself: the sum of nothing but e^−∞ is −∞, and
//! has no gradient. Products are f64, so that y may be too large or too small for its factors' gradients. Of nothing,
//! the product is 1 and the log-sum-exp −∞.

use super::movement::{Dim, collapse, strides, walk};
use super::{Keeps, Operator};

/// Which reduction; see the table at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FoldKind {
    /// ln Σ eˣ.
    LogSumExp,
    /// Π x.
    Prod,
}

/// A reduction of a row-major tensor.
#[derive(Clone, Debug)]
pub struct Fold {
    kind: FoldKind,
    output_len: usize,
    /// Loops over what stays; x and y.
    kept: Vec<Dim<2>>,
    /// Loops over what is reduced; x.
    reduced: Vec<Dim<1>>,
}

impl Fold {
    /// `axes` may come in any order; none reduces nothing.
    pub fn new(kind: FoldKind, shape: &[usize], axes: &[usize]) -> Self {
        let one = |d: usize| if axes.contains(&d) { 1 } else { shape[d] };
        let y_shape: Vec<usize> = (0..shape.len()).map(one).collect();
        let (x_strides, y_strides) = (strides(shape), strides(&y_shape));
        let stays = (0..shape.len()).filter(|d| !axes.contains(d));
        let goes = (0..shape.len()).filter(|d| axes.contains(d));
        Self {
            kind,
            output_len: y_shape.iter().product(),
            kept: collapse(stays.map(|d| Dim { size: shape[d], strides: [x_strides[d], y_strides[d]] })),
            reduced: collapse(goes.map(|d| Dim { size: shape[d], strides: [x_strides[d]] })),
        }
    }

    /// Calls `f` with the offset of each y and of the first x that is reduced to it.
    fn groups(&self, mut f: impl FnMut(usize, usize)) {
        walk(&self.kept, [0; 2], &mut |[x, y]| f(x, y));
    }

    /// Calls `f` with the offset of each x of a group.
    fn group(&self, first: usize, mut f: impl FnMut(usize)) {
        walk(&self.reduced, [first], &mut |[x]| f(x));
    }
}

impl Operator for Fold {
    fn output_len(&self) -> usize {
        self.output_len
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [true, false, false], y: self.kind == FoldKind::LogSumExp, saved: 0 }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        self.groups(|first, to| match self.kind {
            FoldKind::LogSumExp => {
                let mut max = f32::NEG_INFINITY;
                self.group(first, |i| max = if x[i] > max || x[i].is_nan() { x[i] } else { max });
                y[to] = if max.is_finite() {
                    let mut sum = 0.0;
                    self.group(first, |i| sum += f64::from(x[i] - max).exp());
                    (f64::from(max) + sum.ln()) as f32
                } else {
                    max
                };
            }
            FoldKind::Prod => {
                let mut product = 1.0;
                self.group(first, |i| product *= f64::from(x[i]));
                y[to] = product as f32;
            }
        });
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        let x = x[0];
        self.groups(|first, to| match self.kind {
            FoldKind::LogSumExp if y[to] == f32::NEG_INFINITY => {}
            FoldKind::LogSumExp => self.group(first, |i| dx[i] += dy[to] * (x[i] - y[to]).exp()),
            FoldKind::Prod => {
                let (mut zeros, mut product) = (0, 1.0);
                self.group(first, |i| match x[i] == 0.0 {
                    true => zeros += 1,
                    false => product *= f64::from(x[i]),
                });
                let d = f64::from(dy[to]);
                match zeros {
                    0 => self.group(first, |i| dx[i] += (d * (product / f64::from(x[i]))) as f32),
                    1 => self.group(first, |i| {
                        if x[i] == 0.0 {
                            dx[i] += (d * product) as f32;
                        }
                    }),
                    _ => {}
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, indices, offset, values, values_in};
    use super::*;

    const KINDS: [FoldKind; 2] = [FoldKind::LogSumExp, FoldKind::Prod];

    fn check(kind: FoldKind, shape: &[usize], axes: &[usize], x: Vec<f32>) {
        let op = Fold::new(kind, shape, axes);
        let kept: Vec<usize> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
        let inputs = indices(shape);
        let oracle = |x: &[Vec<f64>]| {
            let mut groups = vec![Vec::new(); kept.iter().product()];
            for (x, index) in x[0].iter().zip(&inputs) {
                groups[offset(index, &kept)].push(*x);
            }
            let fold = |group: &Vec<f64>| match kind {
                FoldKind::LogSumExp => group.iter().map(|x| x.exp()).sum::<f64>().ln(),
                FoldKind::Prod => group.iter().product(),
            };
            groups.iter().map(fold).collect()
        };
        Case { op: &op, x: vec![x], oracle: &oracle }.run();
    }

    #[test]
    fn agrees_with_the_oracle_for_every_set_of_axes() {
        for kind in KINDS {
            for shape in [[2, 3, 2, 3], [3, 1, 4, 2]] {
                for set in 0..16 {
                    let axes: Vec<usize> = (0..4).rev().filter(|d| set >> d & 1 == 1).collect();
                    check(kind, &shape, &axes, values_in(4, shape.iter().product(), 0.5, 1.5));
                }
            }
            check(kind, &[], &[], vec![0.5]);
            check(kind, &[7, 3], &[0], values(4, 21));
            check(kind, &[0, 3], &[1], vec![]);
        }
    }

    #[test]
    fn zeros_of_a_product() {
        check(FoldKind::Prod, &[3, 4], &[1], vec![0.0, 2.0, 3.0, 0.5, 0.0, 0.0, 1.0, 2.0, 1.0, 2.0, 0.0, -1.0]);
    }

    #[test]
    fn extreme_values_stay_finite() {
        let run = |kind, x: &[f32]| {
            let op = Fold::new(kind, &[x.len()], &[0]);
            let (mut y, mut dx) = ([0.0], vec![0.0; x.len()]);
            op.forward(&[x], &mut y, &mut [], &mut []);
            op.vjp(&[x], &y, &[], &mut [1.0], &mut [Some(&mut dx)], &mut []);
            (y[0], dx)
        };
        let inf = f32::INFINITY;
        assert_eq!(run(FoldKind::LogSumExp, &[1e4, 1e4 - 200.0]), (1e4, vec![1.0, 0.0]));
        assert_eq!(run(FoldKind::LogSumExp, &[-1e30, -1e30, -inf]).0, -1e30);
        assert_eq!(run(FoldKind::LogSumExp, &[-inf, -inf]), (-inf, vec![0.0, 0.0]));
        assert_eq!(run(FoldKind::LogSumExp, &[inf, 0.0]).0, inf);
        assert_eq!(run(FoldKind::Prod, &[1e30, 1e30, 1e-30]), (1e30, vec![1.0, 1.0, inf]));
        for kind in KINDS {
            assert!(run(kind, &[1.0, f32::NAN]).0.is_nan());
        }
    }
}
