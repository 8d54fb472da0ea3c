//! Where: y = a where the condition is not 0, else b.
//!
//! da += dy where the condition is not 0, db += dy where it is; an operand that was broadcast gets the sum over where it
//! went. The condition has no gradient. Formula: ONNX Where, with numpy broadcasting of all three. Each of the three is
//! an activation or a constant; only a condition that is an activation is kept.

use std::sync::Arc;

use super::movement::{Dim, collapse, strides, walk};
use super::{Keeps, MAX_INPUTS, Operator};

/// The condition, a and b.
const OPERANDS: usize = 3;
/// Partial sums of a row that is reduced to one value.
const LANES: usize = 16;

/// A choice between two operands, element by element.
#[derive(Clone, Debug)]
pub struct Select {
    output_shape: Vec<usize>,
    /// Loops around the row; condition, a, b.
    outer: Vec<Dim<OPERANDS>>,
    /// Output values in a row.
    row: usize,
    /// How far each operand moves along the row: 0 or 1.
    steps: [usize; OPERANDS],
    constants: [Option<Arc<[f32]>>; OPERANDS],
}

impl Select {
    /// Shapes and, where they are constant, values of condition, a and b. The inputs are those that are not constant.
    pub fn new(shapes: [&[usize]; OPERANDS], constants: [Option<Arc<[f32]>>; OPERANDS]) -> Self {
        let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
        let size = |shape: &[usize], d: usize| (d + shape.len()).checked_sub(rank).map_or(1, |d| shape[d]);
        let stride = |shape: &[usize], d: usize| match size(shape, d) {
            1 => 0,
            _ => strides(shape)[d + shape.len() - rank],
        };
        let output_shape: Vec<usize> =
            (0..rank).map(|d| shapes.iter().map(|s| size(s, d)).find(|s| *s != 1).unwrap_or(1)).collect();
        let dims = (0..rank).map(|d| Dim { size: output_shape[d], strides: shapes.map(|s| stride(s, d)) });
        let mut outer = collapse(dims);
        let (row, steps) = match outer.pop() {
            Some(last) => (last.size, last.strides.map(|s| usize::from(s != 0))),
            None => (1, [0; OPERANDS]),
        };
        Self { output_shape, outer, row, steps, constants }
    }

    /// The input that an operand is; none if it is constant.
    fn input(&self, operand: usize) -> Option<usize> {
        let before = self.constants[..operand].iter().filter(|c| c.is_none()).count();
        self.constants[operand].is_none().then_some(before)
    }

    fn operand<'a>(&'a self, operand: usize, x: &[&'a [f32]]) -> &'a [f32] {
        match (&self.constants[operand], self.input(operand)) {
            (Some(constant), _) => constant,
            (None, input) => x[input.unwrap_or(0)],
        }
    }
}

impl Operator for Select {
    fn output_len(&self) -> usize {
        self.output_shape.iter().product()
    }

    fn keeps(&self) -> Keeps {
        let mut keeps = Keeps::default();
        keeps.x[0] = self.input(0).is_some();
        keeps
    }

    fn differentiates(&self) -> [bool; MAX_INPUTS] {
        let mut out = [true; MAX_INPUTS];
        out[0] = self.input(0).is_none();
        out
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        if self.output_len() == 0 {
            return;
        }
        let [c, a, b] = [0, 1, 2].map(|o| self.operand(o, x));
        let steps = self.steps;
        let mut rows = y.chunks_exact_mut(self.row);
        walk(&self.outer, [0; OPERANDS], &mut |[co, ao, bo]| {
            let Some(y) = rows.next() else { return };
            for (i, y) in y.iter_mut().enumerate() {
                let open = c[co + i * steps[0]] != 0.0;
                *y = if open { a[ao + i * steps[1]] } else { b[bo + i * steps[2]] };
            }
        });
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        if self.output_len() == 0 {
            return;
        }
        let c = self.operand(0, x);
        for side in [1, 2] {
            let Some(d) = self.input(side).and_then(|input| dx[input].as_deref_mut()) else { continue };
            let step = self.steps[0];
            let pass = |dy: f32, at: usize| if (c[at] != 0.0) == (side == 1) { dy } else { 0.0 };
            let mut rows = dy.chunks_exact(self.row);
            walk(&self.outer, [0; OPERANDS], &mut |offsets| {
                let Some(dy) = rows.next() else { return };
                let (co, to) = (offsets[0], offsets[side]);
                if self.steps[side] == 1 {
                    for (i, (d, dy)) in d[to..to + dy.len()].iter_mut().zip(dy).enumerate() {
                        *d += pass(*dy, co + i * step);
                    }
                } else {
                    let mut sums = [0.0; LANES];
                    for (i, dy) in dy.iter().enumerate() {
                        sums[i % LANES] += pass(*dy, co + i * step);
                    }
                    d[to] += sums.iter().sum::<f32>();
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, indices, offset, values};
    use super::*;

    fn check(shapes: [&[usize]; OPERANDS]) {
        let data: Vec<Vec<f32>> = (0..OPERANDS)
            .map(|o| {
                let mut v = values(o as u64, shapes[o].iter().product());
                if o == 0 {
                    v.iter_mut().for_each(|v| *v = f32::from(*v > 0.0));
                }
                v
            })
            .collect();
        for set in 0..8usize {
            let constant = |o: usize| set >> o & 1 == 1;
            let constants = [0, 1, 2].map(|o| constant(o).then(|| data[o].clone().into()));
            let op = Select::new(shapes, constants);
            let given: Vec<usize> = (0..OPERANDS).filter(|o| !constant(*o)).collect();
            let outputs = indices(&op.output_shape);
            let oracle = |x: &[Vec<f64>]| {
                let value = |o: usize, index: &[usize]| {
                    let at = offset(index, shapes[o]);
                    given.iter().position(|g| *g == o).map_or(f64::from(data[o][at]), |i| x[i][at])
                };
                // Differences move the condition, too: it stays on its side of a half.
                outputs.iter().map(|i| value(if value(0, i) > 0.5 { 1 } else { 2 }, i)).collect()
            };
            // The gradient of the condition is never asked for; the check asks for every one, and 0 is added.
            Case { op: &op, x: given.iter().map(|g| data[*g].clone()).collect(), oracle: &oracle }.run();
            assert_eq!(op.keeps().x[0], !constant(0));
            assert_eq!(op.differentiates()[0], constant(0));
        }
    }

    #[test]
    fn agrees_with_the_oracle_for_every_broadcast() {
        check([&[2, 3, 5], &[2, 3, 5], &[2, 3, 5]]);
        check([&[3, 1], &[2, 1, 5], &[1]]);
        check([&[], &[2, 3], &[3]]);
        check([&[1, 1, 37], &[2, 3, 1], &[2, 1, 37]]);
        check([&[2, 3, 1, 1], &[4, 5], &[]]);
        check([&[], &[], &[]]);
        check([&[0, 3], &[3], &[1, 3]]);
    }
}
