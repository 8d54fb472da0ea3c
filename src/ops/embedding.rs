//! Embedding: rows of a matrix by index, with a gradient for the matrix.
//!
//! W `[rows, width]`, indices `[count]`, y `[count, width]`: y\[i\] = W\[indexᵢ\], dW\[indexᵢ\] += dy\[i\]: rows that no
//! index names get no gradient. Indices are whole numbers as f32, as in [`super::index`], and have no gradient.
//!
//! Formula: ONNX Gather on axis 0.

use std::sync::Arc;

use super::conv::ConvWeights;
use super::index::Places;
use super::integer_conv::Pair;
use super::{Held, HeldPair, Keeps, MAX_INPUTS, Operator, WeightGradients, Weighted, Weights};
use crate::kernels::gemm::gemm;
use crate::kernels::integers::Integers;

/// The matrix.
#[derive(Clone, Debug)]
enum Table {
    Floats(Arc<ConvWeights>),
    /// `[rows, width]`: the rows that are read become floats.
    Integers(Arc<Integers>),
}

/// Rows of a matrix that an adapter may change. Input: the indices.
#[derive(Clone, Debug)]
pub struct Embedding {
    places: Places,
    table: Table,
}

impl Embedding {
    /// `count` rows of `weight` `[rows, width]`.
    pub fn new(rows: usize, width: usize, count: usize, weight: Arc<ConvWeights>) -> Self {
        debug_assert_eq!(weight.w.len(), rows * width);
        Self { places: Places::along_axis(1, rows, width, count), table: Table::Floats(weight) }
    }

    /// `count` rows of a matrix of integers. An adapter gives its pair.
    pub fn of_integers(count: usize, matrix: Arc<Integers>) -> Self {
        let places = Places::along_axis(1, matrix.rows(), matrix.columns(), count);
        Self { places, table: Table::Integers(matrix) }
    }
}

impl Operator for Embedding {
    fn output_len(&self) -> usize {
        self.places.sizes().iter().product()
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [true, false, false], ..Keeps::default() }
    }

    fn differentiates(&self) -> [bool; MAX_INPUTS] {
        [false; MAX_INPUTS]
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        self.forward_with(&Weights::default(), x, y, saved, work);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        _dy: &mut [f32],
        _dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
    }
}

impl Weighted for Embedding {
    fn forward_with(&self, weights: &Weights, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let [_, width] = self.places.sizes();
        for (i, y) in y.chunks_exact_mut(width.max(1)).enumerate() {
            let Some(place) = self.places.of(i, x[0]) else {
                y.fill(f32::NAN);
                continue;
            };
            match (&self.table, weights[0]) {
                (Table::Floats(_), Some(Held::Merged(weight))) => y.copy_from_slice(&weight.w[place..place + width]),
                (Table::Floats(weight), _) => y.copy_from_slice(&weight.w[place..place + width]),
                (Table::Integers(matrix), held) => {
                    let row = place / width;
                    matrix.rows_to(row..row + 1, y);
                    if let Some(Held::Pair(HeldPair { pair: Pair { a, bt, rank }, .. })) = held {
                        gemm(1, width, rank, &a[row..], 0, matrix.rows(), bt, width, y, width);
                    }
                }
            }
        }
    }

    fn vjp_with(
        &self,
        weights: &Weights,
        mut dw: WeightGradients,
        x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        _dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dw) = dw[0].as_deref_mut() else { return };
        let [_, width] = self.places.sizes();
        for (i, dy) in dy.chunks_exact(width.max(1)).enumerate() {
            let Some(place) = self.places.of(i, x[0]) else { continue };
            if let Some(Held::Pair(HeldPair { pair: Pair { a, bt, rank }, scale, .. })) = weights[0] {
                let (row, rows) = (place / width, a.len() / rank.max(1));
                let (da, dbt) = dw.split_at_mut(a.len());
                for r in 0..rank {
                    let (bt, dbt) = (&bt[r * width..][..width], &mut dbt[r * width..][..width]);
                    da[r * rows + row] += bt.iter().zip(dy).map(|(b, d)| b * d).sum::<f32>();
                    let a = a[r * rows + row] * scale;
                    dbt.iter_mut().zip(dy).for_each(|(dbt, d)| *dbt += a * d);
                }
                continue;
            }
            for (dw, dy) in dw[place..place + width].iter_mut().zip(dy) {
                *dw += dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, values};
    use super::*;

    #[test]
    fn rows_and_their_gradients_agree_with_the_oracle() {
        for (rows, width, index) in [(5, 3, &[1i64, 4, -5, 1, 0, -1][..]), (1, 4, &[0]), (3, 1, &[2, 2]), (4, 2, &[])] {
            let weight = values(1, rows * width);
            let held = Arc::new(ConvWeights { w: weight.clone(), ..ConvWeights::default() });
            let op = Embedding::new(rows, width, index.len(), held);
            let x: Vec<f32> = index.iter().map(|i| *i as f32).collect();
            let row = |i: &i64| if *i < 0 { (i + rows as i64) as usize } else { *i as usize };
            let oracle = |_: &[Vec<f64>]| {
                let of = |i: &i64| weight[row(i) * width..][..width].iter().map(|w| f64::from(*w)).collect::<Vec<_>>();
                index.iter().flat_map(of).collect()
            };
            Case { op: &op, x: vec![x.clone()], oracle: &oracle }.forward();

            // dW is that of Σ dy·y, which is linear in W: each term once, added to what stands there.
            let mut dy = values(2, index.len() * width);
            let start = values(3, rows * width);
            let mut expected: Vec<f32> = start.clone();
            for (i, dy) in index.iter().zip(dy.chunks_exact(width)) {
                expected[row(i) * width..][..width].iter_mut().zip(dy).for_each(|(e, d)| *e += d);
            }
            let mut dw = start;
            let gradients = [Some(dw.as_mut_slice()), None, None, None];
            op.vjp_with(&Weights::default(), gradients, &[&x], &[], &[], &mut dy, &mut [None], &mut []);
            assert_eq!(dw, expected);
        }
    }

    #[test]
    fn other_weights_take_the_place_of_its_own() {
        let held = Arc::new(ConvWeights { w: values(1, 6), ..ConvWeights::default() });
        let other = ConvWeights { w: values(2, 6), ..ConvWeights::default() };
        let op = Embedding::new(3, 2, 2, held);
        let mut y = [0.0; 4];
        op.forward_with(&[Some(Held::Merged(&other)), None, None, None], &[&[2.0, 9.0]], &mut y, &mut [], &mut []);
        assert!(y[..2] == other.w[4..] && y[2..].iter().all(|y| y.is_nan()));
    }
}
