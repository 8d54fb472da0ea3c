//! The gradient check: an operator against an f64 oracle of its formula.
//!
//! The oracle is the forward formula alone; its gradient comes from central differences, so that no derivative is
//! trusted twice. [`Case::run`] holds an operator to the whole contract of [`Operator`]: forward, gradient, adding instead
//! of overwriting, unwanted gradients, and using only what it declares.

use super::Operator;

/// Forward error relative to the largest magnitude of the output: some roundings of 2⁻²⁴ = 6e-8 each, and the single
/// ULP of the exponentials; sums in these tests have at most some hundred terms.
pub(crate) const FORWARD_RELATIVE: f64 = 1e-6;

/// ‖g − g*‖₂ / ‖g*‖₂: the same roundings, averaged by the norm.
pub(crate) const GRADIENT_RELATIVE: f64 = 1e-6;

/// Step h of the differences. The four-point stencil truncates at h⁴/30 · f⁽⁵⁾ = 3e-14 · f⁽⁵⁾ and rounds at
/// 2⁻⁵³ · |Σ dy·y| · 1.5/h = 2e-13 · |Σ dy·y|: both below [`DIFFERENCE_ERROR`] for inputs about 1.
const STEP: f64 = 1e-3;

/// Absolute error of a difference quotient, which matters where the gradient is zero.
const DIFFERENCE_ERROR: f64 = 1e-8;

/// The least distance of an input from a kink: more than the 2 steps that the stencil reaches.
pub(crate) const KINK_MARGIN: f32 = 1e-2;

/// An operator, its inputs and its formula.
pub(crate) struct Case<'a> {
    /// The operator.
    pub(crate) op: &'a dyn Operator,
    /// Its inputs; away from kinks by [`KINK_MARGIN`].
    pub(crate) x: Vec<Vec<f32>>,
    /// y from x, from the formula, in f64.
    pub(crate) oracle: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
}

impl Case<'_> {
    /// Checks everything.
    ///
    /// # Panics
    /// If the operator breaks its contract.
    pub(crate) fn run(&self) {
        let (y, saved) = self.forward();
        // Of both signs, with a mean: the gradient of something broadcast must not cancel to less than its rounding.
        let dy = values_in(0xd1, y.len(), -0.5, 1.5);
        let expected = self.differences(&dy);
        let wanted: &[&[bool]] = match self.x.len() {
            0 => &[],
            1 => &[&[true], &[false]],
            2 => &[&[true, true], &[true, false], &[false, true], &[false, false]],
            _ => &[&[true; 3], &[true, false, false], &[false, true, false], &[false, false, true], &[false; 3]],
        };
        let mut whole = Vec::new();
        for wanted in wanted {
            let zeros: Vec<Vec<f32>> = self.x.iter().map(|x| vec![0.0; x.len()]).collect();
            let got = self.vjp(&y, &saved, &dy, zeros, wanted);
            let filled: Vec<Vec<f32>> = (0..).zip(&self.x).map(|(i, x)| values(0xadd + i, x.len())).collect();
            let added = self.vjp(&y, &saved, &dy, filled.clone(), wanted);
            if whole.is_empty() {
                whole.clone_from(&got);
            }
            for i in (0..self.x.len()).filter(|i| wanted[*i]) {
                close_norm(&got[i], &expected[i], &format!("gradient of input {i}"));
                assert_eq!(got[i], whole[i], "the gradient of input {i} depends on which others are wanted");
                if let ([_], [whole]) = (self.x.as_slice(), whole.as_slice()) {
                    assert_eq!(self.vjp_first(&y, &saved, &dy), *whole, "a first gradient is written");
                }
                let sums: Vec<f64> =
                    filled[i].iter().zip(&got[i]).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
                close(&added[i], &sums, "a gradient is added, not written");
            }
        }
    }

    /// Checks forward with and without saving; gives y and what was saved.
    pub(crate) fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let x: Vec<&[f32]> = self.x.iter().map(Vec::as_slice).collect();
        let run = |saved: &mut [f32]| {
            let mut y = vec![f32::NAN; self.op.output_len()];
            let mut work = vec![f32::NAN; self.op.forward_work()];
            self.op.forward(&x, &mut y, saved, &mut work);
            y
        };
        let mut saved = vec![f32::NAN; self.op.keeps().saved];
        let y = run(&mut saved);
        assert_eq!(bits(&y), bits(&run(&mut [])), "inference differs from training");
        let x: Vec<Vec<f64>> = self.x.iter().map(|x| x.iter().map(|x| f64::from(*x)).collect()).collect();
        close(&y, &(self.oracle)(&x), "forward");
        (y, saved)
    }

    /// One vjp that is given only what the operator declares; `dx` is what the gradients are added to.
    pub(crate) fn vjp(
        &self,
        y: &[f32],
        saved: &[f32],
        dy: &[f32],
        mut dx: Vec<Vec<f32>>,
        wanted: &[bool],
    ) -> Vec<Vec<f32>> {
        let keeps = self.op.keeps();
        let x: Vec<&[f32]> =
            self.x.iter().zip(keeps.x).map(|(x, kept)| if kept { x.as_slice() } else { &[] }).collect();
        let mut work = vec![f32::NAN; self.op.vjp_work()];
        let mut slots: Vec<Option<&mut [f32]>> =
            dx.iter_mut().zip(wanted).map(|(dx, wanted)| wanted.then_some(dx.as_mut_slice())).collect();
        let y = if keeps.y { y } else { &[] };
        self.op.vjp(&x, y, saved, &mut dy.to_vec(), &mut slots, &mut work);
        dx
    }

    /// [`Operator::vjp_first`] on a gradient that holds anything.
    fn vjp_first(&self, y: &[f32], saved: &[f32], dy: &[f32]) -> Vec<f32> {
        let keeps = self.op.keeps();
        let x = if keeps.x[0] { self.x[0].as_slice() } else { &[] };
        let y = if keeps.y { y } else { &[] };
        let mut work = vec![f32::NAN; self.op.vjp_work()];
        let mut dx = vec![f32::NAN; self.x[0].len()];
        self.op.vjp_first(x, y, saved, &mut dy.to_vec(), &mut dx, &mut work);
        dx
    }

    /// The gradient of Σ dy·y by the four-point central difference (Abramowitz and Stegun, 25.3.6).
    fn differences(&self, dy: &[f32]) -> Vec<Vec<f64>> {
        let mut x: Vec<Vec<f64>> = self.x.iter().map(|x| x.iter().map(|x| f64::from(*x)).collect()).collect();
        let mut out: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        for t in 0..x.len() {
            for i in 0..x[t].len() {
                let centre = x[t][i];
                for (steps, weight) in [(-2.0, 1.0), (-1.0, -8.0), (1.0, 8.0), (2.0, -1.0)] {
                    x[t][i] = centre + steps * STEP;
                    let y = (self.oracle)(&x);
                    let sum: f64 = y.iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum();
                    out[t][i] += weight * sum / (12.0 * STEP);
                }
                x[t][i] = centre;
            }
        }
        out
    }
}

/// The bits of each value: equality that knows not-a-number.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Each value within [`FORWARD_RELATIVE`] of the largest finite magnitude; infinities and not-a-numbers as expected.
pub(crate) fn close(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let largest = expected.iter().filter(|e| e.is_finite()).fold(0.0f64, |max, e| max.max(e.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        let same = f64::from(*got) == *expected || (got.is_nan() && expected.is_nan());
        assert!(same || error <= FORWARD_RELATIVE * largest, "{what}: {got} at {i}, expected {expected}");
    }
}

/// ‖got − expected‖₂ within [`GRADIENT_RELATIVE`] of ‖expected‖₂.
pub(crate) fn close_norm(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let square: f64 = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
    let norm = expected.iter().map(|e| e * e).sum::<f64>().sqrt();
    let allowed = GRADIENT_RELATIVE * norm + DIFFERENCE_ERROR * (got.len() as f64).sqrt();
    assert!(square.sqrt() <= allowed, "{what}: error {:e}, norm {norm:e}: {got:?} {expected:?}", square.sqrt());
}

/// Numbers in −1 .. 1, the same for the same seed (Knuth's linear congruential generator, MMIX).
pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    next();
    (0..n).map(|_| next()).collect()
}

/// [`values`], scaled to `low .. high`.
pub(crate) fn values_in(seed: u64, n: usize, low: f32, high: f32) -> Vec<f32> {
    values(seed, n).into_iter().map(|v| low + (v + 1.0) * 0.5 * (high - low)).collect()
}

/// Moves values off the kinks, to [`KINK_MARGIN`] from them.
pub(crate) fn away_from(mut values: Vec<f32>, kinks: &[f32]) -> Vec<f32> {
    for value in &mut values {
        for kink in kinks {
            if (*value - kink).abs() < KINK_MARGIN {
                *value = if *value < *kink { kink - KINK_MARGIN } else { kink + KINK_MARGIN };
            }
        }
    }
    values
}

/// Values about zero of which no two are closer than [`KINK_MARGIN`], in random order.
pub(crate) fn distinct(seed: u64, n: usize) -> Vec<f32> {
    let mut keyed: Vec<(f32, usize)> = values(seed, n).into_iter().zip(0..).collect();
    keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
    keyed.iter().map(|(_, i)| (*i as f32 - n as f32 / 2.0) * 2.0 * KINK_MARGIN).collect()
}

/// The index of each position of `shape`, in row-major order: what the oracles run over.
pub(crate) fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let n = shape.iter().product();
    let index = |mut flat: usize| {
        let mut index = vec![0; shape.len()];
        for d in (0..shape.len()).rev() {
            index[d] = flat % shape[d];
            flat /= shape[d];
        }
        index
    };
    (0..n).map(index).collect()
}

/// The offset of an index in `shape`, row-major; an axis of size 1 is broadcast.
pub(crate) fn offset(index: &[usize], shape: &[usize]) -> usize {
    let lead = index.len() - shape.len();
    index[lead..].iter().zip(shape).fold(0, |at, (i, size)| at * size + if *size == 1 { 0 } else { *i })
}

/// A tiny square, to check the check.
#[derive(Debug)]
struct Broken {
    scale: f32,
    overwrites: bool,
}

impl Operator for Broken {
    fn output_len(&self) -> usize {
        3
    }

    fn keeps(&self) -> super::Keeps {
        super::Keeps { x: [true, false, false], ..super::Keeps::default() }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x[0]) {
            *y = x * x;
        }
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
        let Some(dx) = dx[0].as_deref_mut() else { return };
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x[0]) {
            let before = if self.overwrites { 0.0 } else { *dx };
            *dx = before + self.scale * *dy * x;
        }
    }
}

fn check_square(scale: f32, overwrites: bool) {
    let op = Broken { scale, overwrites };
    Case { op: &op, x: vec![values(1, 3)], oracle: &|x| x[0].iter().map(|x| x * x).collect() }.run();
}

#[test]
fn accepts_a_right_gradient() {
    check_square(2.0, false);
}

#[test]
#[should_panic(expected = "gradient of input 0")]
fn notices_a_wrong_gradient() {
    check_square(2.0 * (1.0 + 1e-5), false);
}

#[test]
#[should_panic(expected = "added, not written")]
fn notices_an_overwritten_gradient() {
    check_square(2.0, true);
}
