//! Expand and Tile: y\[i\] = x\[i mod size of x\] along each dimension.
//!
//! dx gets the sum over where each value went. Formulas: ONNX Expand (a dimension of size 1 grows) and Tile (any). Shapes are
//! physical, of one rank, row-major. Nothing is kept.

use super::movement::{Dim, collapse, strides, walk};
use super::{Keeps, Operator};

/// Partial sums of a row that comes from one value.
const LANES: usize = 16;

/// A tensor repeated along some of its dimensions.
#[derive(Clone, Debug)]
pub struct Repeat {
    len: usize,
    /// Loops around the row; tensors x and y.
    outer: Vec<Dim<2>>,
    row: usize,
    /// Whether x runs along the row; else it stands still.
    runs: bool,
}

impl Repeat {
    /// Each size of y is a multiple of that of x.
    pub fn new(shape: &[usize], output_shape: &[usize]) -> Self {
        debug_assert!(shape.len() == output_shape.len());
        let (x_strides, y_strides) = (strides(shape), strides(output_shape));
        let mut dims = Vec::new();
        for d in 0..shape.len() {
            let (size, stride) = (shape[d], y_strides[d]);
            let times = output_shape[d] / size.max(1);
            dims.push(Dim { size: times, strides: [0, stride * size as isize] });
            dims.push(Dim { size, strides: [x_strides[d], stride] });
        }
        let mut outer = collapse(dims);
        let (row, runs) = outer.pop().map_or((1, true), |last| (last.size, last.strides[0] != 0));
        Self { len: output_shape.iter().product(), outer, row, runs }
    }
}

impl Operator for Repeat {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        if self.len == 0 {
            return;
        }
        let n = self.row;
        walk(&self.outer, [0; 2], &mut |[xo, yo]| match self.runs {
            true => y[yo..yo + n].copy_from_slice(&x[0][xo..xo + n]),
            false => y[yo..yo + n].fill(x[0][xo]),
        });
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
        if self.len == 0 {
            return;
        }
        let n = self.row;
        walk(&self.outer, [0; 2], &mut |[xo, yo]| {
            let dy = &dy[yo..yo + n];
            if self.runs {
                for (dx, dy) in dx[xo..xo + n].iter_mut().zip(dy) {
                    *dx += dy;
                }
            } else {
                let mut sums = [0.0; LANES];
                for dy in dy.chunks(LANES) {
                    for (sum, dy) in sums.iter_mut().zip(dy) {
                        *sum += dy;
                    }
                }
                dx[xo] += sums.iter().sum::<f32>();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, indices, offset, values};
    use super::*;

    fn check(shape: &[usize], output_shape: &[usize]) {
        let op = Repeat::new(shape, output_shape);
        let outputs = indices(output_shape);
        let oracle = |x: &[Vec<f64>]| {
            let from = |index: &[usize]| -> Vec<usize> { index.iter().zip(shape).map(|(i, s)| i % s).collect() };
            outputs.iter().map(|index| x[0][offset(&from(index), shape)]).collect()
        };
        Case { op: &op, x: vec![values(3, shape.iter().product())], oracle: &oracle }.run();
    }

    #[test]
    fn agrees_with_the_oracle() {
        check(&[], &[]);
        check(&[1], &[37]);
        check(&[3], &[3]);
        check(&[3], &[12]);
        check(&[1, 1, 5], &[2, 3, 5]);
        check(&[2, 1, 5], &[2, 3, 5]);
        check(&[2, 3, 1], &[2, 3, 20]);
        check(&[2, 3, 2], &[4, 9, 6]);
        check(&[1, 3, 1, 2], &[2, 3, 4, 2]);
        check(&[2, 3], &[0, 3]);
        check(&[2, 0], &[4, 0]);
    }
}
