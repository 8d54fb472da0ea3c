//! Product of two activations, batched: attention scores and the like.
//!
//! Y = A·B for each batch, `a [..., m, k]`, `b [..., k, n]`, `y [..., m, n]`; the batch dimensions broadcast as in numpy
//! (ONNX MatMul). dA += dY·Bᵀ, dB += Aᵀ·dY, summed over the batches that share a matrix. A and B are kept. Products with
//! a frozen weight are dense layers, see the convolution.

use super::movement::{Dim, collapse, strides, walk};
use super::{Keeps, Operator};
use crate::kernels::gemm::gemm;

/// A batched matrix product of two activations.
#[derive(Clone, Debug)]
pub struct MatMul {
    m: usize,
    n: usize,
    k: usize,
    output_shape: Vec<usize>,
    /// Loops over batches; tensors a, b, y.
    batches: Vec<Dim<3>>,
}

impl MatMul {
    /// Shapes of rank 2 and more.
    pub fn new(a_shape: &[usize], b_shape: &[usize]) -> Self {
        debug_assert!(a_shape.len() >= 2 && b_shape.len() >= 2);
        let (a_batch, [m, k]) = split(a_shape);
        let (b_batch, [_b_k, n]) = split(b_shape);
        debug_assert!(k == _b_k, "{a_shape:?} times {b_shape:?}");
        let rank = a_batch.len().max(b_batch.len());
        let size = |batch: &[usize], d: usize| (d + batch.len()).checked_sub(rank).map_or(1, |d| batch[d]);
        let stride = |batch: &[usize], d: usize, matrix: usize| match size(batch, d) {
            1 => 0,
            _ => strides(batch)[d + batch.len() - rank] * matrix as isize,
        };
        let mut output_shape: Vec<usize> = (0..rank)
            .map(|d| match size(a_batch, d) {
                1 => size(b_batch, d),
                a => a,
            })
            .collect();
        let y_strides = strides(&output_shape);
        let dim = |d: usize| Dim {
            size: output_shape[d],
            strides: [stride(a_batch, d, m * k), stride(b_batch, d, k * n), y_strides[d] * (m * n) as isize],
        };
        let mut batches = collapse((0..rank).map(dim));
        output_shape.extend([m, n]);
        // One B for a run of A: the run is one taller A.
        let tall = batches.pop_if(|dim| dim.strides[1] == 0 && dim.strides[0] == (m * k) as isize);
        let m = m * tall.map_or(1, |dim| dim.size);
        Self { m, n, k, output_shape, batches }
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }
}

fn split(shape: &[usize]) -> (&[usize], [usize; 2]) {
    shape.split_last_chunk().map_or((&[], [1, 1]), |(batch, matrix)| (batch, *matrix))
}

impl Operator for MatMul {
    fn output_len(&self) -> usize {
        self.output_shape.iter().product()
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [true, true, false], ..Keeps::default() }
    }

    /// Bᵀ of one batch.
    fn vjp_work(&self) -> usize {
        self.n * self.k
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let Self { m, n, k, .. } = *self;
        y.fill(0.0);
        if m * n * k == 0 {
            return;
        }
        walk(&self.batches, [0; 3], &mut |[a, b, o]| {
            gemm(m, n, k, &x[0][a..][..m * k], k, 1, &x[1][b..][..k * n], n, &mut y[o..][..m * n], n);
        });
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let Self { m, n, k, .. } = *self;
        if m * n * k == 0 {
            return;
        }
        let [da, db] = dx else { return };
        if let Some(da) = da.as_deref_mut() {
            let work = &mut work[..n * k];
            let mut transposed = None;
            walk(&self.batches, [0; 3], &mut |[a, b, o]| {
                if transposed.replace(b) != Some(b) {
                    for (p, b) in x[1][b..][..k * n].chunks_exact(n).enumerate() {
                        for (work, b) in work[p..].iter_mut().step_by(k).zip(b) {
                            *work = *b;
                        }
                    }
                }
                gemm(m, k, n, &dy[o..][..m * n], n, 1, work, k, &mut da[a..][..m * k], k);
            });
        }
        if let Some(db) = db.as_deref_mut() {
            walk(&self.batches, [0; 3], &mut |[a, b, o]| {
                gemm(k, n, m, &x[0][a..][..m * k], 1, k, &dy[o..][..m * n], n, &mut db[b..][..k * n], n);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, indices, offset, values};
    use super::*;

    fn check(a_shape: &[usize], b_shape: &[usize]) {
        let op = MatMul::new(a_shape, b_shape);
        let k = a_shape[a_shape.len() - 1];
        let oracle = |x: &[Vec<f64>]| {
            let outputs = indices(op.output_shape());
            let y = outputs.iter().map(|index| {
                let (batch, [i, j]) = index.split_last_chunk().expect("rank 2");
                let (a_shape, _) = a_shape.split_last_chunk::<2>().expect("rank 2");
                let (b_shape, _) = b_shape.split_last_chunk::<2>().expect("rank 2");
                let (m, n) = (op.output_shape()[batch.len()], op.output_shape()[batch.len() + 1]);
                let a = offset(&batch[batch.len() - a_shape.len()..], a_shape) * m * k + i * k;
                let b = offset(&batch[batch.len() - b_shape.len()..], b_shape) * k * n + j;
                (0..k).map(|p| x[0][a + p] * x[1][b + p * n]).sum()
            });
            y.collect()
        };
        let len = |shape: &[usize]| shape.iter().product();
        Case { op: &op, x: vec![values(1, len(a_shape)), values(2, len(b_shape))], oracle: &oracle }.run();
    }

    #[test]
    fn agrees_with_the_oracle() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (1, 9, 2), (8, 1, 17), (6, 4, 1), (0, 3, 2), (2, 0, 3), (2, 3, 0)] {
            check(&[m, k], &[k, n]);
            check(&[3, m, k], &[3, k, n]);
            check(&[3, m, k], &[k, n]);
            check(&[m, k], &[2, k, n]);
        }
    }

    #[test]
    fn batches_broadcast() {
        check(&[2, 3, 4, 5], &[2, 3, 5, 2]);
        check(&[2, 1, 4, 5], &[3, 5, 2]);
        check(&[3, 4, 5], &[2, 1, 5, 2]);
        check(&[2, 3, 4, 5], &[2, 1, 5, 2]);
        check(&[2, 1, 4, 5], &[2, 3, 5, 2]);
        check(&[1, 3, 4, 5], &[2, 1, 5, 2]);
        check(&[2, 3, 4, 5], &[1, 1, 5, 2]);
        check(&[2, 1, 3, 2, 3], &[1, 2, 1, 3, 2]);
        check(&[0, 4, 5], &[1, 5, 2]);
    }
}
