//! Quantisation with straight-through gradients, and quantised weights that stay integers.
//!
//! | operator | y | dx += |
//! |---|---|---|
//! | Quantise | q = clamp(round(x / s) + z, low, high) | dy / s inside the range, else 0 |
//! | Dequantise | (x − z) · s | dy · s |
//! | Fake (both) | (q − z) · s | dy inside the range, else 0 |
//! | DynamicQuantise | as above, s and z from the range of x | dy / s; dy where both are one |
//!
//! Sources: ONNX QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear (rounding is half to even); the gradient is
//! the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) as PyTorch's `fake_quantize` has it: *inside* means
//! low ≤ round(x / s) + z ≤ high before clamping. In DynamicQuantise all x are inside, since the range is theirs, and s and
//! z count as constants.
//!
//! `x`, `y [outer, channels, inner]` with a scale and a zero point a channel. Integers are held as f32. One bit an element
//! is kept for what saturates. Not a number passes through forward and stops the gradient.

use std::sync::Arc;

use super::{Keeps, Operator};

/// Elements whose bits share one slot of `saved`.
const BITS: usize = 32;

/// Which half of a quantisation, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Real → integer.
    Quantise,
    /// Integer → real.
    Dequantise,
    /// Real → integer → real.
    Fake,
}

/// Scale and zero point for each channel, and what the integer type can hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// `[channels]`.
    pub scale: Arc<[f32]>,
    /// `[channels]`.
    pub zero_point: Arc<[f32]>,
    /// Least integer.
    pub low: f32,
    /// Greatest integer.
    pub high: f32,
}

/// Quantisation with constant scales.
#[derive(Clone, Debug)]
pub struct Quantise {
    half: Half,
    outer: usize,
    channels: usize,
    inner: usize,
    scales: Scales,
}

impl Quantise {
    /// On `[outer, channels, inner]`.
    pub fn new(half: Half, outer: usize, channels: usize, inner: usize, scales: Scales) -> Self {
        debug_assert!(scales.scale.len() == channels && scales.zero_point.len() == channels);
        Self { half, outer, channels, inner, scales }
    }

    /// Runs `f(range of elements, scale, zero point)` over the rows that share a scale.
    #[inline(always)]
    fn rows(&self, mut f: impl FnMut(std::ops::Range<usize>, f32, f32)) {
        let mut at = 0;
        for _ in 0..self.outer {
            for (scale, zero) in self.scales.scale.iter().zip(self.scales.zero_point.iter()) {
                f(at..at + self.inner, *scale, *zero);
                at += self.inner;
            }
        }
    }
}

impl Operator for Quantise {
    fn output_len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    fn keeps(&self) -> Keeps {
        let saved = if self.half == Half::Dequantise { 0 } else { self.output_len().div_ceil(BITS) };
        Keeps { saved, ..Keeps::default() }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        let Scales { low, high, .. } = self.scales;
        match self.half {
            Half::Quantise => {
                self.rows(|at, s, z| map(&x[at.clone()], &mut y[at], |x| rounded(x / s, low - z, high - z) + z))
            }
            Half::Dequantise => self.rows(|at, s, z| map(&x[at.clone()], &mut y[at], |x| (x - z) * s)),
            // The zero point is a whole number: taken off and added again it changes nothing.
            Half::Fake => {
                self.rows(|at, s, z| map(&x[at.clone()], &mut y[at], |x| rounded(x / s, low - z, high - z) * s))
            }
        }
        if saved.is_empty() {
            return;
        }
        let inside = |x: f32, s: f32, z: f32| {
            let (low, high) = (low - z, high - z);
            let rounded = rounded(x / s, low - 1.0, high + 1.0);
            rounded >= low && rounded <= high
        };
        if let ([s], [z]) = (&*self.scales.scale, &*self.scales.zero_point) {
            for (x, saved) in x.chunks(BITS).zip(saved) {
                let bits = x.iter().enumerate().fold(0, |bits, (i, x)| bits | u32::from(inside(*x, *s, *z)) << i);
                *saved = f32::from_bits(bits);
            }
            return;
        }
        let mut bits = 0u32;
        self.rows(|at, s, z| {
            for i in at {
                bits |= u32::from(inside(x[i], s, z)) << (i % BITS);
                if i % BITS == BITS - 1 {
                    saved[i / BITS] = f32::from_bits(bits);
                    bits = 0;
                }
            }
        });
        if !x.len().is_multiple_of(BITS) {
            saved[x.len() / BITS] = f32::from_bits(bits);
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        if self.half != Half::Dequantise {
            for (dy, saved) in dy.chunks_mut(BITS).zip(saved) {
                let bits = saved.to_bits();
                dy.iter_mut().enumerate().for_each(|(i, dy)| *dy = if bits & (1 << i) != 0 { *dy } else { 0.0 });
            }
        }
        match self.half {
            Half::Quantise => self.rows(|at, s, _| add(&mut dx[at.clone()], &dy[at], |dy| dy / s)),
            Half::Dequantise => self.rows(|at, s, _| add(&mut dx[at.clone()], &dy[at], |dy| dy * s)),
            Half::Fake => add(dx, dy, |dy| dy),
        }
    }
}

/// y = f(x).
#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x));
}

/// dx += f(dy).
#[inline(always)]
fn add(dx: &mut [f32], dy: &[f32], f: impl Fn(f32) -> f32) {
    dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += f(*dy));
}

/// 1.5 · 2²³: a float beside it has no fraction, so that adding it rounds to a whole number, half to even.
const ROUNDER: f32 = 12_582_912.0;
/// The largest magnitude that [`ROUNDER`] rounds.
const ROUNDED: f32 = 4_194_304.0;

/// `x` within the whole numbers `low` and `high`, rounded half to even. The addition is many times faster than the call that
/// rounding is on processors without an instruction for it.
#[inline(always)]
fn rounded(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    let x = if x > high { high } else { x };
    if low < -ROUNDED || high > ROUNDED { x.round_ties_even() } else { (x + ROUNDER) - ROUNDER }
}

/// What of a quantisation to 8 bits without sign, with the range of the data, is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicPart {
    /// The integers.
    Integers,
    /// The scale, one value.
    Scale,
    /// The zero point, one value.
    ZeroPoint,
    /// Quantised and back.
    Fake,
}

/// Quantisation of `x [len]` to 8 bits without sign: s = (max(x, 0) − min(x, 0)) / 255, z = round(−min(x, 0) / s).
#[derive(Clone, Debug)]
pub struct DynamicQuantise {
    part: DynamicPart,
    len: usize,
}

impl DynamicQuantise {
    /// On `len` values.
    pub fn new(part: DynamicPart, len: usize) -> Self {
        Self { part, len }
    }
}

/// Scale and zero point for the range of `x`. All zero has scale 1: any would do.
fn range(x: &[f32]) -> (f32, f32) {
    let (min, max) = x.iter().fold((0.0f32, 0.0f32), |(min, max), x| (min.min(*x), max.max(*x)));
    let scale = if max == min { 1.0 } else { (max - min) / 255.0 };
    (scale, (-min / scale).round_ties_even().clamp(0.0, 255.0))
}

impl Operator for DynamicQuantise {
    fn output_len(&self) -> usize {
        match self.part {
            DynamicPart::Integers | DynamicPart::Fake => self.len,
            DynamicPart::Scale | DynamicPart::ZeroPoint => 1,
        }
    }

    fn keeps(&self) -> Keeps {
        Keeps { saved: usize::from(self.part == DynamicPart::Integers), ..Keeps::default() }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], _work: &mut [f32]) {
        let (s, z) = range(x[0]);
        let centred = |x: f32| rounded(x / s, -z, 255.0 - z);
        match self.part {
            DynamicPart::Integers => map(x[0], y, |x| centred(x) + z),
            DynamicPart::Fake => map(x[0], y, |x| centred(x) * s),
            DynamicPart::Scale => y[0] = s,
            DynamicPart::ZeroPoint => y[0] = z,
        }
        if let [saved] = saved {
            *saved = s;
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        match self.part {
            DynamicPart::Integers => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy / saved[0]),
            DynamicPart::Fake => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy),
            DynamicPart::Scale | DynamicPart::ZeroPoint => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, close, values, values_in};
    use super::*;

    fn scales(channels: usize, low: f32, high: f32) -> Scales {
        Scales {
            scale: (0..channels).map(|c| 0.01 + 0.004 * c as f32).collect(),
            zero_point: (0..channels).map(|c| (c * 7 % 5) as f32 - 2.0).collect(),
            low,
            high,
        }
    }

    /// Forward against the formula in f64, the gradient against dy, dy / s or dy · s where inside; it adds.
    fn check(half: Half, outer: usize, channels: usize, inner: usize, low: f32, high: f32) {
        let scales = scales(channels, low, high);
        let n = outer * channels * inner;
        let integers: Vec<f32> = values_in(5, n, low, high).iter().map(|v| v.round()).collect();
        let x = if half == Half::Dequantise { integers } else { values(5, n) };
        let of = |i: usize| {
            let c = i / inner % channels;
            (scales.scale[c], scales.zero_point[c])
        };
        // The quotient is rounded to f32 before it is rounded to an integer, as in ONNX Runtime.
        let raw = |i: usize| f64::from((x[i] / of(i).0).round_ties_even()) + f64::from(of(i).1);
        let (low, high) = (f64::from(low), f64::from(high));
        let back = |i: usize, q: f64| (q - f64::from(of(i).1)) * f64::from(of(i).0);
        let expected: Vec<f64> = (0..n)
            .map(|i| match half {
                Half::Quantise => raw(i).clamp(low, high),
                Half::Dequantise => back(i, x[i].into()),
                Half::Fake => back(i, raw(i).clamp(low, high)),
            })
            .collect();
        let op = Quantise::new(half, outer, channels, inner, scales.clone());
        let case = Case { op: &op, x: vec![x.clone()], oracle: &|_| expected.clone() };
        let (y, saved) = case.forward();
        let (dy, before) = (values(6, n), values(7, n));
        for wanted in [true, false] {
            let dx = case.vjp(&y, &saved, &dy, vec![before.clone()], &[wanted]);
            let gradient = |i: usize| {
                let inside = raw(i) >= low && raw(i) <= high;
                f64::from(dy[i])
                    * match half {
                        Half::Dequantise => f64::from(of(i).0),
                        _ if !inside => 0.0,
                        Half::Quantise => 1.0 / f64::from(of(i).0),
                        Half::Fake => 1.0,
                    }
            };
            let expected: Vec<f64> =
                (0..n).map(|i| f64::from(before[i]) + if wanted { gradient(i) } else { 0.0 }).collect();
            close(&dx[0], &expected, "gradient");
        }
    }

    #[test]
    fn agrees_with_the_formula_for_every_length_and_layout() {
        for half in [Half::Quantise, Half::Dequantise, Half::Fake] {
            for (low, high) in [(-128.0, 127.0), (0.0, 255.0), (-8.0, 7.0), (-32768.0, 32767.0)] {
                for len in 0..=70 {
                    check(half, 1, 1, len, low, high);
                }
                for (outer, channels, inner) in [(1, 5, 1), (7, 5, 1), (2, 3, 11), (3, 40, 1), (1, 64, 2), (0, 3, 4)] {
                    check(half, outer, channels, inner, low, high);
                }
            }
        }
    }

    #[test]
    fn ties_round_to_even_and_the_range_saturates() {
        let scales = |z: f32, low, high| Scales { scale: vec![1.0].into(), zero_point: vec![z].into(), low, high };
        let quantise = |x: &[f32], scales: Scales| {
            let mut y = vec![f32::NAN; x.len()];
            Quantise::new(Half::Quantise, 1, 1, x.len(), scales).forward(&[x], &mut y, &mut [], &mut []);
            y
        };
        let x = [-0.5, 0.5, 1.5, 2.5, -1.5, -2.5, 1e9, -1e9, f32::INFINITY];
        assert_eq!(quantise(&x, scales(0.0, -128.0, 127.0)), [0.0, 0.0, 2.0, 2.0, -2.0, -2.0, 127.0, -128.0, 127.0]);
        // An odd zero point comes after the rounding.
        assert_eq!(quantise(&x[..6], scales(1.0, 0.0, 255.0)), [1.0, 1.0, 3.0, 3.0, 0.0, 0.0]);
        assert!(quantise(&[f32::NAN], scales(0.0, 0.0, 255.0))[0].is_nan());
    }

    #[test]
    fn rounding_by_addition_is_rounding_to_even() {
        for x in (-70000..70000).map(|i| i as f32 / 8.0) {
            assert_eq!(rounded(x, -32768.0, 32767.0), x.clamp(-32768.0, 32767.0).round_ties_even(), "{x}");
        }
        assert_eq!(rounded(3e9, i32::MIN as f32, i32::MAX as f32), i32::MAX as f32);
        assert_eq!(rounded(8_388_609.0, i32::MIN as f32, i32::MAX as f32), 8_388_609.0);
    }

    #[test]
    fn the_bounds_themselves_are_inside() {
        let scales = Scales { scale: vec![0.5].into(), zero_point: vec![3.0].into(), low: 0.0, high: 15.0 };
        let op = Quantise::new(Half::Fake, 1, 1, 6, scales);
        // Quantised, before clamping: 0, −1, 0 (a tie to even), 15, 16, NaN.
        let x = [-1.5, -2.0, -1.6, 6.2, 6.5, f32::NAN];
        let (mut y, mut saved, mut dx) = ([0.0; 6], [f32::NAN; 1], [0.0; 6]);
        op.forward(&[&x], &mut y, &mut saved, &mut []);
        assert_eq!(y[..5], [-1.5, -1.5, -1.5, 6.0, 6.0]);
        op.vjp(&[&[]], &[], &saved, &mut [1.0; 6], &mut [Some(&mut dx)], &mut []);
        assert_eq!(dx, [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_range_of_the_data_is_quantised() {
        // The examples of the ONNX operator's documentation.
        let x = [0.0f32, 2.0, -3.0, -2.5, 1.34, 0.5];
        let run = |part, x: &[f32]| {
            let op = DynamicQuantise::new(part, x.len());
            let mut y = vec![f32::NAN; op.output_len()];
            op.forward(&[x], &mut y, &mut vec![0.0; op.keeps().saved], &mut []);
            y
        };
        assert_eq!(run(DynamicPart::Integers, &x), [153.0, 255.0, 0.0, 26.0, 221.0, 179.0]);
        assert_eq!(run(DynamicPart::Scale, &x), [5.0 / 255.0]);
        assert_eq!(run(DynamicPart::ZeroPoint, &x), [153.0]);
        assert_eq!(run(DynamicPart::ZeroPoint, &[-1.0, -2.1, -4.0]), [255.0]);
        assert_eq!(run(DynamicPart::Fake, &[0.0; 3]), [0.0; 3]);
        assert!(run(DynamicPart::Integers, &[]).is_empty());
        for part in [DynamicPart::Integers, DynamicPart::Fake, DynamicPart::Scale, DynamicPart::ZeroPoint] {
            let op = DynamicQuantise::new(part, 6);
            let (mut y, mut saved) = (vec![0.0; op.output_len()], vec![0.0; op.keeps().saved]);
            op.forward(&[&x], &mut y, &mut saved, &mut []);
            let (mut dy, mut dx) = (vec![2.0; y.len()], vec![1.0f32; 6]);
            op.vjp(&[&[]], &[], &saved, &mut dy, &mut [Some(&mut dx)], &mut []);
            let expected = match part {
                DynamicPart::Integers => 1.0 + 2.0 * 255.0 / 5.0,
                DynamicPart::Fake => 3.0,
                _ => 1.0,
            };
            close(&dx, &[expected; 6], "gradient");
        }
    }
}
