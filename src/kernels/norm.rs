//! Normalisation of rows whose values stand side by side, in one pass over each row; formulas in [`crate::ops::norm`].
//!
//! Sums have sixteen chains on every machine, which are added in order: the same bits whatever the vectors.

use rten_simd::{Isa, SimdOp};

use super::on;

/// Chains of a sum; the widest vectors.
const LANES: usize = 16;

/// What of a row is kept for the way back, one value a row each.
#[derive(Debug)]
pub struct Statistics<'a> {
    /// Mean.
    pub mean: &'a mut [f32],
    /// Mean of what the mean leaves.
    pub correction: &'a mut [f32],
    /// Factor of the last term of dx.
    pub factor: &'a mut [f32],
    /// What x is multiplied with.
    pub r: &'a mut [f32],
}

/// y of rows of `count` values. `centred`: the mean is taken off. `factors` gives factor and r from the sum of the squares.
/// `scale` and `bias` are `[count]`, or empty.
pub fn forward(
    centred: bool,
    count: usize,
    x: &[f32],
    scale: &[f32],
    bias: &[f32],
    factors: impl Fn(f32) -> (f32, f32),
    kept: Statistics,
    y: &mut [f32],
) {
    on(false, Forward { centred, count, x, scale, bias, factors, kept, y });
}

/// Adds to dx; `kept [4 rows]` as [`Statistics`] in its order. `dy` becomes dy · scale.
pub fn vjp(centred: bool, count: usize, x: &[f32], scale: &[f32], kept: &[f32], dy: &mut [f32], dx: &mut [f32]) {
    on(false, Vjp { centred, count, x, scale, kept, dy, dx });
}

/// Σ f(a, b) over two slices of one length.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f(*a, *b);
    }
    lanes.iter().sum()
}

struct Forward<'a, F> {
    centred: bool,
    count: usize,
    x: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
    factors: F,
    kept: Statistics<'a>,
    y: &'a mut [f32],
}

impl<F: Fn(f32) -> (f32, f32)> SimdOp for Forward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { count, x, scale, bias, kept, .. } = self;
        let share = 1.0 / count as f32;
        for (row, (x, y)) in x.chunks_exact(count).zip(self.y.chunks_exact_mut(count)).enumerate() {
            let (mut mean, mut correction) = (0.0, 0.0);
            if self.centred {
                mean = sum(x, x, |x, _| x) * share;
                correction = sum(x, x, |x, _| x - mean) * share;
            }
            let total = sum(x, x, |x, _| {
                let left = x - mean - correction;
                left * left
            });
            let (factor, r) = (self.factors)(total);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean - correction) * r);
            if !scale.is_empty() {
                y.iter_mut().zip(scale).for_each(|(y, s)| *y *= s);
            }
            if !bias.is_empty() {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            (kept.mean[row], kept.correction[row], kept.factor[row], kept.r[row]) = (mean, correction, factor, r);
        }
    }
}

struct Vjp<'a> {
    centred: bool,
    count: usize,
    x: &'a [f32],
    scale: &'a [f32],
    kept: &'a [f32],
    dy: &'a mut [f32],
    dx: &'a mut [f32],
}

impl SimdOp for Vjp<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { count, x, scale, kept, .. } = self;
        let rows = kept.len() / 4;
        let values = x.chunks_exact(count).zip(self.dy.chunks_exact_mut(count)).zip(self.dx.chunks_exact_mut(count));
        for (row, ((x, dy), dx)) in values.enumerate() {
            let (mean, correction, factor, r) =
                (kept[row], kept[rows + row], kept[2 * rows + row], kept[3 * rows + row]);
            if !scale.is_empty() {
                dy.iter_mut().zip(scale).for_each(|(dy, s)| *dy *= s);
            }
            let inner = factor * sum(x, dy, |x, dy| dy * ((x - mean - correction) * r));
            let mean_dy = if self.centred { sum(dy, dy, |dy, _| dy) / count as f32 } else { 0.0 };
            for ((dx, dy), x) in dx.iter_mut().zip(dy.iter()).zip(x) {
                *dx += (dy - mean_dy - (x - mean - correction) * r * inner) * r;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f32 against f64, relative to 1 and to the factors of the result: a few roundings of values up to 5.
    const TOLERANCE: f64 = 4e-6;

    #[test]
    fn agrees_with_double_precision_on_every_token() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (count, centred) in [(1, true), (7, false), (16, true), (40, true), (64, true), (65, false), (192, true)] {
            let rows = 3;
            let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.f32() * 3.4 + 1.3).collect() };
            let (x, dy, scale, bias) = (random(rows * count), random(rows * count), random(count), random(count));
            let factors = |total: f32| (1.0 / count as f32, 1.0 / (total / count as f32 + 1e-3).sqrt());
            let run = |generic: bool| {
                let (mut y, mut kept) = (vec![0.0; x.len()], vec![0.0; 4 * rows]);
                let mut parts = kept.chunks_exact_mut(rows);
                let mut part = || parts.next().unwrap();
                let statistics = Statistics { mean: part(), correction: part(), factor: part(), r: part() };
                let (x, scale) = (&x[..], &scale[..]);
                on(generic, Forward { centred, count, x, scale, bias: &bias, factors, kept: statistics, y: &mut y });
                let (mut dx, mut dy) = (vec![0.5; x.len()], dy.clone());
                on(generic, Vjp { centred, count, x, scale, kept: &kept, dy: &mut dy, dx: &mut dx });
                (y, dx)
            };
            let (y, dx) = run(false);
            assert_eq!((&y, &dx), (&run(true).0, &run(true).1), "{count}");
            for row in 0..rows {
                let at = |i: usize| row * count + i;
                let real = |v: &[f32], i: usize| f64::from(v[i]);
                let mean = |f: &dyn Fn(usize) -> f64| (0..count).map(f).sum::<f64>() / count as f64;
                let mu = if centred { mean(&|i| real(&x, at(i))) } else { 0.0 };
                let r = 1.0 / (mean(&|i| (real(&x, at(i)) - mu).powi(2)) + 1e-3).sqrt();
                let normal = |i: usize| (real(&x, at(i)) - mu) * r;
                let g = |i: usize| real(&dy, at(i)) * real(&scale, i);
                let mean_g = if centred { mean(&g) } else { 0.0 };
                let inner = mean(&|i| g(i) * normal(i));
                for i in 0..count {
                    let expected_y = normal(i) * real(&scale, i) + real(&bias, i);
                    let expected_dx = 0.5 + (g(i) - mean_g - normal(i) * inner) * r;
                    for (found, expected, size) in [(y[at(i)], expected_y, r), (dx[at(i)], expected_dx, r * r)] {
                        let error = (f64::from(found) - expected).abs();
                        assert!(error <= TOLERANCE * (1.0 + size), "{count} {found} {expected}");
                    }
                }
            }
        }
    }
}
