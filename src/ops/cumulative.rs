//! Cumulative sum along one axis.
//!
//! yₜ = Σ xₛ over s ≤ t; s < t if exclusive; s ≥ t (s > t) if in reverse. dxₜ is the sum of dy the other way round.
//! Formula: ONNX CumSum. `x`, `y [outer, len, inner]`, the axis in the middle. Nothing is kept.

use super::{Keeps, Operator};

/// A running sum along the middle of `[outer, len, inner]`.
#[derive(Clone, Debug)]
pub struct CumSum {
    outer: usize,
    len: usize,
    inner: usize,
    exclusive: bool,
    reverse: bool,
}

impl CumSum {
    /// `exclusive` leaves a value out of its own sum; `reverse` sums from the end.
    pub fn new(outer: usize, len: usize, inner: usize, exclusive: bool, reverse: bool) -> Self {
        Self { outer, len, inner, exclusive, reverse }
    }

    /// Calls `put(offset, sum)` with each running sum of `x`, from the end if `reverse`.
    fn sums(&self, x: &[f32], reverse: bool, mut put: impl FnMut(usize, f32)) {
        for outer in 0..self.outer {
            for inner in 0..self.inner {
                let mut sum = 0.0f64;
                for step in 0..self.len {
                    let t = if reverse { self.len - 1 - step } else { step };
                    let at = (outer * self.len + t) * self.inner + inner;
                    let before = sum;
                    sum += f64::from(x[at]);
                    put(at, if self.exclusive { before } else { sum } as f32);
                }
            }
        }
    }
}

impl Operator for CumSum {
    fn output_len(&self) -> usize {
        self.outer * self.len * self.inner
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        self.sums(x[0], self.reverse, |at, sum| y[at] = sum);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        self.sums(dy, !self.reverse, |at, sum| dx[at] += sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, values};
    use super::*;

    #[test]
    fn agrees_with_the_oracle() {
        for (outer, len, inner) in [(1, 1, 1), (2, 7, 3), (3, 5, 1), (1, 33, 2), (0, 3, 2), (2, 0, 2)] {
            for exclusive in [false, true] {
                for reverse in [false, true] {
                    let op = CumSum::new(outer, len, inner, exclusive, reverse);
                    let oracle = |x: &[Vec<f64>]| {
                        let mut y = Vec::new();
                        for o in 0..outer {
                            for t in 0..len {
                                for i in 0..inner {
                                    let counts = |s: &usize| {
                                        let (s, t) = if reverse { (t, *s) } else { (*s, t) };
                                        s < t || (s == t && !exclusive)
                                    };
                                    y.push((0..len).filter(counts).map(|s| x[0][(o * len + s) * inner + i]).sum());
                                }
                            }
                        }
                        y
                    };
                    Case { op: &op, x: vec![values(5, outer * len * inner)], oracle: &oracle }.run();
                }
            }
        }
    }
}
