//! Normalisation by statistics of the sample itself, over any axes.
//!
//! y = x̂ · scale + bias, with x̂ from the values that share a statistic:
//!
//! | kind | x̂ | dx += r · | source |
//! |---|---|---|---|
//! | Standard | (x − μ) · r, r = 1 / √(σ² + ε) | g − mean(g) − x̂ · mean(g x̂) | ONNX LayerNormalization, InstanceNormalization, GroupNormalization |
//! | Deviation | (x − μ) · r, r = 1 / (σ + ε) | g − mean(g) − x̂ · mean(g x̂) / (σ r) | ONNX MeanVarianceNormalization |
//! | RootMeanSquare | x · r, r = 1 / √(mean(x²) + ε) | g − x̂ · mean(g x̂) | ONNX RMSNormalization |
//! | L1 | x · r, r = 1 / Σ\|x\| | g − sign(x) · Σ g x̂ | ONNX LpNormalization, p = 1 |
//! | L2 | x · r, r = 1 / √Σx² | g − x̂ · Σ g x̂ | ONNX LpNormalization, p = 2 |
//!
//! with g = dy · scale. Layer normalisation: Ba, Kiros and Hinton 2016 (arXiv 1607.06450), eq. 3; instance: Ulyanov et
//! al. 2016 (1607.08022); group: Wu and He 2018 (1803.08494); RMS: Zhang and Sennrich 2019 (1910.07467).
//!
//! `x`, `y` have the shape that the operator is built with; `scale` and `bias` are constants that broadcast to it. The
//! mean is corrected by the mean of what it leaves, and the variance is that of the corrected values: a mean that is
//! much larger than σ costs no digits. Where all values of a norm are zero (L1, L2) or equal (Deviation with ε = 0),
//! y is bias and has no gradient. Kept: x, and μ in two parts, r and the factor of the last term, one each a statistic.

use super::movement::{Dim, collapse, strides, walk};
use super::reduce::{Reduce, ReduceKind};
use super::{Keeps, Operator};
use crate::kernels::norm;

/// Which statistics; see the table at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum NormKind {
    /// Mean and variance, ε under the root.
    Standard {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Mean and standard deviation, ε beside the root.
    Deviation {
        /// Added to the standard deviation.
        epsilon: f32,
    },
    /// The mean of the squares.
    RootMeanSquare {
        /// Added to the mean of the squares.
        epsilon: f32,
    },
    /// The sum of the magnitudes.
    L1,
    /// The root of the sum of the squares.
    L2,
}

impl NormKind {
    /// Whether the mean is taken off.
    fn centred(self) -> bool {
        matches!(self, Self::Standard { .. } | Self::Deviation { .. })
    }
}

/// A constant that broadcasts to the shape of x.
#[derive(Clone, Debug)]
struct Affine {
    values: Vec<f32>,
    /// Loops over x, the statistics and this.
    dims: Vec<Dim<3>>,
}

/// A normalisation of a row-major tensor.
#[derive(Clone, Debug)]
pub struct Norm {
    kind: NormKind,
    len: usize,
    /// Number of statistics, and values in each.
    rows: usize,
    count: usize,
    shape: Vec<usize>,
    axes: Vec<usize>,
    /// Loops over x and the statistics.
    dims: Vec<Dim<2>>,
    sum: Reduce,
    square: Reduce,
    scale: Option<Affine>,
    bias: Option<Affine>,
}

/// Loops over tensors of one rank; sizes of 1 stand still.
fn loops<const N: usize>(shape: &[usize], others: [&[usize]; N]) -> Vec<Dim<N>> {
    let all = others.map(strides);
    collapse((0..shape.len()).map(|d| Dim {
        size: shape[d],
        strides: std::array::from_fn(|t| if others[t][d] == 1 { 0 } else { all[t][d] }),
    }))
}

impl Norm {
    /// Statistics over `axes` of `shape`.
    pub fn new(kind: NormKind, shape: &[usize], axes: &[usize]) -> Self {
        debug_assert!(axes.iter().all(|axis| *axis < shape.len()));
        let kept: Vec<usize> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
        let square = if kind == NormKind::L1 { ReduceKind::L1 } else { ReduceKind::SumSquare };
        Self {
            kind,
            len: shape.iter().product(),
            rows: kept.iter().product(),
            count: (0..shape.len()).filter(|d| axes.contains(d)).map(|d| shape[d]).product(),
            dims: loops(shape, [shape, &kept]),
            sum: Reduce::new(ReduceKind::Sum, shape, axes),
            square: Reduce::new(square, shape, axes),
            shape: shape.to_vec(),
            axes: axes.to_vec(),
            scale: None,
            bias: None,
        }
    }

    fn affine(&self, values: Vec<f32>, shape: &[usize]) -> Affine {
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        let axes = &self.axes;
        let kept: Vec<usize> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { self.shape[d] }).collect();
        Affine { values, dims: loops(&self.shape, [&self.shape, &kept, shape]) }
    }

    /// Multiplied with x̂; `shape` has the rank of x, and 1 where it is broadcast.
    #[must_use]
    pub fn with_scale(mut self, values: Vec<f32>, shape: &[usize]) -> Self {
        self.scale = Some(self.affine(values, shape));
        self
    }

    /// Added in the end; `shape` as in [`Norm::with_scale`].
    #[must_use]
    pub fn with_bias(mut self, values: Vec<f32>, shape: &[usize]) -> Self {
        self.bias = Some(self.affine(values, shape));
        self
    }

    /// Whether each statistic is of values that stand side by side, and the constants go along with these; their values.
    fn in_rows(&self) -> Option<[&[f32]; 2]> {
        let [count, rows] = [self.count, self.rows];
        let stands = |dims: &[Dim<2>]| match dims {
            [inner] => rows == 1 && inner.size == count && inner.strides == [1, 0],
            [outer, inner] => outer.strides == [count as isize, 1] && inner.size == count && inner.strides == [1, 0],
            _ => false,
        };
        let along = |affine: &'_ Option<Affine>| match affine {
            None => true,
            Some(Affine { dims, .. }) => match &dims[..] {
                [inner] => inner.strides[2] == 1,
                [outer, inner] => outer.strides[2] == 0 && inner.size == count && inner.strides[2] == 1,
                _ => false,
            },
        };
        let fits = self.kind != NormKind::L1 && stands(&self.dims) && along(&self.scale) && along(&self.bias);
        fits.then(|| [&self.scale, &self.bias].map(|a| a.as_ref().map_or(&[][..], |a| &a.values[..])))
    }

    /// Factor of the last term of dx, and r, from σ² (or mean or sum of what is squared or made positive).
    fn factors(&self, total: f32) -> (f32, f32) {
        let mean = total / self.count as f32;
        let inverse = |v: f32| if v == 0.0 { 0.0 } else { 1.0 / v };
        match self.kind {
            NormKind::Standard { epsilon } | NormKind::RootMeanSquare { epsilon } => {
                (1.0 / self.count as f32, 1.0 / (mean + epsilon).sqrt())
            }
            NormKind::Deviation { epsilon } => {
                let deviation = mean.sqrt();
                let r = inverse(deviation + epsilon);
                (inverse(deviation * r) / self.count as f32, r)
            }
            NormKind::L1 => (1.0, inverse(total)),
            NormKind::L2 => (1.0, inverse(total.sqrt())),
        }
    }
}

/// Calls `f` with x, the statistic and the constant of each element, in the order of x.
#[inline(always)]
fn each(dims: &[Dim<3>], mut f: impl FnMut(usize, usize, usize)) {
    let Some((last, outer)) = dims.split_last() else { return f(0, 0, 0) };
    let [_, row, other] = last.strides.map(|s| s as usize);
    // Each form is a loop of its own, so that what stands still stays in a register.
    walk(outer, [0; 3], &mut |[x, s, c]| match (row, other) {
        (0, 0) => (0..last.size).for_each(|i| f(x + i, s, c)),
        (0, 1) => (0..last.size).for_each(|i| f(x + i, s, c + i)),
        (1, 0) => (0..last.size).for_each(|i| f(x + i, s + i, c)),
        (1, 1) => (0..last.size).for_each(|i| f(x + i, s + i, c + i)),
        _ => (0..last.size).for_each(|i| f(x + i, s + i * row, c + i * other)),
    });
}

/// Calls `f` with x and the statistic of each element.
#[inline(always)]
fn each_row(dims: &[Dim<2>], mut f: impl FnMut(usize, usize)) {
    let Some((last, outer)) = dims.split_last() else { return f(0, 0) };
    let row = last.strides[1] as usize;
    walk(outer, [0; 2], &mut |[x, s]| match row {
        0 => (0..last.size).for_each(|i| f(x + i, s)),
        _ => (0..last.size).for_each(|i| f(x + i, s + i * row)),
    });
}

impl Operator for Norm {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [true, false, false], y: false, saved: 4 * self.rows }
    }

    fn forward_work(&self) -> usize {
        4 * self.rows + self.sum.forward_work().max(self.square.forward_work())
    }

    /// g x̂, and the two sums of each statistic.
    fn vjp_work(&self) -> usize {
        self.len + 2 * self.rows + self.sum.forward_work()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]) {
        let x = x[0];
        if self.len == 0 {
            return;
        }
        let rows = self.rows;
        let (statistics, work) = work.split_at_mut(4 * rows);
        let (mean, rest) = statistics.split_at_mut(rows);
        let (correction, rest) = rest.split_at_mut(rows);
        let (factor, r) = rest.split_at_mut(rows);
        if let Some([scale, bias]) = self.in_rows() {
            let kept = norm::Statistics { mean, correction, factor, r };
            let factors = |total| self.factors(total);
            norm::forward(self.kind.centred(), self.count, x, scale, bias, factors, kept, y);
            if !saved.is_empty() {
                saved.copy_from_slice(statistics);
            }
            return;
        }
        mean.fill(0.0);
        correction.fill(0.0);
        if self.kind.centred() {
            let scale = 1.0 / self.count as f32;
            self.sum.forward(&[x], mean, &mut [], work);
            mean.iter_mut().for_each(|m| *m *= scale);
            each_row(&self.dims, |i, s| y[i] = x[i] - mean[s]);
            self.sum.forward(&[y], correction, &mut [], work);
            correction.iter_mut().for_each(|c| *c *= scale);
            each_row(&self.dims, |i, s| y[i] -= correction[s]);
        } else {
            y.copy_from_slice(x);
        }
        self.square.forward(&[y], r, &mut [], work);
        for (factor, r) in factor.iter_mut().zip(r.iter_mut()) {
            (*factor, *r) = self.factors(*r);
        }
        each_row(&self.dims, |i, s| y[i] *= r[s]);
        if let Some(scale) = &self.scale {
            each(&scale.dims, |i, _, c| y[i] *= scale.values[c]);
        }
        if let Some(bias) = &self.bias {
            each(&bias.dims, |i, _, c| y[i] += bias.values[c]);
        }
        if !saved.is_empty() {
            saved.copy_from_slice(statistics);
        }
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        _y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        let x = x[0];
        if self.len == 0 {
            return;
        }
        if let Some([scale, _]) = self.in_rows() {
            return norm::vjp(self.kind.centred(), self.count, x, scale, saved, dy, dx);
        }
        let rows = self.rows;
        let (mean, correction) = (&saved[..rows], &saved[rows..2 * rows]);
        let (factor, r) = (&saved[2 * rows..3 * rows], &saved[3 * rows..]);
        let (product, work) = work.split_at_mut(self.len);
        let (sums, work) = work.split_at_mut(2 * rows);
        let (sum, inner) = sums.split_at_mut(rows);
        if let Some(scale) = &self.scale {
            each(&scale.dims, |i, _, c| dy[i] *= scale.values[c]);
        }
        let centred = self.kind.centred();
        let normal = |i: usize, s: usize| {
            if centred { (x[i] - mean[s] - correction[s]) * r[s] } else { x[i] * r[s] }
        };
        each_row(&self.dims, |i, s| product[i] = dy[i] * normal(i, s));
        self.sum.forward(&[product], inner, &mut [], work);
        inner.iter_mut().zip(factor).for_each(|(inner, factor)| *inner *= factor);
        sum.fill(0.0);
        if centred {
            self.sum.forward(&[dy], sum, &mut [], work);
            sum.iter_mut().for_each(|s| *s /= self.count as f32);
        }
        if self.kind == NormKind::L1 {
            let sign = |x: f32| if x == 0.0 { 0.0 } else { x.signum() };
            each_row(&self.dims, |i, s| dx[i] += (dy[i] - sign(x[i]) * inner[s]) * r[s]);
        } else {
            each_row(&self.dims, |i, s| dx[i] += (dy[i] - sum[s] - normal(i, s) * inner[s]) * r[s]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, away_from, close, indices, offset, values, values_in};
    use super::*;

    const KINDS: [NormKind; 8] = [
        NormKind::Standard { epsilon: 1e-5 },
        NormKind::Standard { epsilon: 0.1 },
        NormKind::Deviation { epsilon: 1e-9 },
        NormKind::Deviation { epsilon: 0.1 },
        NormKind::RootMeanSquare { epsilon: 1e-6 },
        NormKind::RootMeanSquare { epsilon: 0.1 },
        NormKind::L1,
        NormKind::L2,
    ];

    fn normalise(kind: NormKind, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let square = x.iter().map(|x| x * x).sum::<f64>();
        let (mean, divisor) = match kind {
            NormKind::Standard { epsilon } => (mean, (variance + f64::from(epsilon)).sqrt()),
            NormKind::Deviation { epsilon } => (mean, variance.sqrt() + f64::from(epsilon)),
            NormKind::RootMeanSquare { epsilon } => (0.0, (square / n + f64::from(epsilon)).sqrt()),
            NormKind::L1 => (0.0, x.iter().map(|x| x.abs()).sum::<f64>()),
            NormKind::L2 => (0.0, square.sqrt()),
        };
        x.iter().map(|x| (x - mean) / divisor).collect()
    }

    /// The formula, with `scale` and `bias` of shape `broadcast`.
    fn oracle(
        kind: NormKind,
        shape: &[usize],
        axes: &[usize],
        x: &[f64],
        affine: Option<(&[f32], &[f32], &[usize])>,
    ) -> Vec<f64> {
        let kept: Vec<usize> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
        let inputs = indices(shape);
        let mut groups = vec![Vec::new(); kept.iter().product()];
        for (i, index) in inputs.iter().enumerate() {
            groups[offset(index, &kept)].push(i);
        }
        let mut y = vec![0.0; x.len()];
        for group in groups {
            let values: Vec<f64> = group.iter().map(|i| x[*i]).collect();
            for (i, value) in group.iter().zip(normalise(kind, &values)) {
                y[*i] = value;
            }
        }
        if let Some((scale, bias, broadcast)) = affine {
            for (y, index) in y.iter_mut().zip(&inputs) {
                let at = offset(index, broadcast);
                *y = *y * f64::from(scale[at]) + f64::from(bias[at]);
            }
        }
        y
    }

    fn check(kind: NormKind, shape: &[usize], axes: &[usize], broadcast: Option<&[usize]>) {
        let n = broadcast.map_or(0, |shape| shape.iter().product());
        let (scale, bias) = (values_in(7, n, 0.5, 1.5), values(8, n));
        let mut op = Norm::new(kind, shape, axes);
        if let Some(broadcast) = broadcast {
            op = op.with_scale(scale.clone(), broadcast).with_bias(bias.clone(), broadcast);
        }
        let affine = broadcast.map(|shape| (scale.as_slice(), bias.as_slice(), shape));
        let x = away_from(values(3, shape.iter().product()), &[0.0]);
        let oracle = |x: &[Vec<f64>]| oracle(kind, shape, axes, &x[0], affine);
        Case { op: &op, x: vec![x], oracle: &oracle }.run();
    }

    #[test]
    fn agrees_with_the_oracle_for_every_set_of_axes() {
        // x̂ of one or two values is a constant but for ε: the terms of its gradient cancel to their rounding.
        for kind in KINDS {
            for shape in [[2, 3, 4, 5], [3, 1, 4, 7]] {
                for set in 1..16 {
                    let axes: Vec<usize> = (0..4).filter(|d| set >> d & 1 == 1).collect();
                    if axes.iter().map(|a| shape[*a]).product::<usize>() > 2 {
                        check(kind, &shape, &axes, None);
                    }
                }
            }
        }
    }

    #[test]
    fn scale_and_bias_broadcast() {
        for kind in KINDS {
            check(kind, &[5, 17], &[1], Some(&[1, 17])); // layer
            check(kind, &[5, 17], &[1], Some(&[5, 1]));
            check(kind, &[3, 4, 5], &[1, 2], Some(&[1, 4, 5]));
            check(kind, &[1, 3, 5, 7], &[1, 2], Some(&[1, 1, 1, 7])); // instance, channels last
            check(kind, &[1, 7, 3, 5], &[2, 3], Some(&[1, 7, 1, 1])); // instance, channels first
            check(kind, &[1, 3, 5, 2, 4], &[1, 2, 4], Some(&[1, 1, 1, 2, 4])); // two groups of four, channels last
            check(kind, &[1, 2, 4, 3, 5], &[2, 3, 4], Some(&[1, 2, 4, 1, 1]));
            check(kind, &[3, 4], &[0], Some(&[1, 1]));
        }
    }

    #[test]
    fn a_mean_far_above_the_deviation_costs_no_digits() {
        let n = 4000;
        for (shape, axis) in [([n, 3], 0), ([3, n], 1)] {
            let x: Vec<f32> = values(5, 3 * n).iter().map(|v| 1000.0 + v).collect();
            let op = Norm::new(NormKind::Standard { epsilon: 1e-5 }, &shape, &[axis]);
            let (mut y, mut work) = (vec![0.0; x.len()], vec![f32::NAN; op.forward_work()]);
            op.forward(&[&x], &mut y, &mut [], &mut work);
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            close(&y, &oracle(op.kind, &shape, &[axis], &x, None), "far from zero");
        }
    }

    #[test]
    fn nothing_to_divide_by_gives_zero() {
        for kind in [NormKind::L1, NormKind::L2, NormKind::Deviation { epsilon: 0.0 }] {
            let op = Norm::new(kind, &[2, 3], &[1]);
            let x = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0];
            let (mut y, mut saved) = ([f32::NAN; 6], vec![0.0; op.keeps().saved]);
            op.forward(&[&x], &mut y, &mut saved, &mut vec![0.0; op.forward_work()]);
            assert_eq!(y[..3], [0.0; 3]);
            let mut dx = [0.0; 6];
            op.vjp(
                &[&x],
                &[],
                &saved,
                &mut [1.0, 2.0, 3.0, 3.0, 2.0, 0.0],
                &mut [Some(&mut dx)],
                &mut vec![0.0; op.vjp_work()],
            );
            assert_eq!(dx[..3], [0.0; 3]);
            assert!(dx[3..].iter().all(|d| d.is_finite()) && dx[3] != 0.0, "{dx:?}");
        }
    }

    #[test]
    fn empty_tensors_do_not_panic() {
        for shape in [[0, 3], [3, 0]] {
            for axis in [0, 1] {
                for kind in KINDS {
                    let op = Norm::new(kind, &shape, &[axis]);
                    let case = Case { op: &op, x: vec![vec![]], oracle: &|_| Vec::new() };
                    case.run();
                }
            }
        }
    }
}
