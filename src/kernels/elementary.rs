//! Exponential and error function without a branch or a call, so that loops over them become vector code.
//!
//! | function | how | error |
//! |---|---|---|
//! | [`exp`] | 2ⁿ·eʳ with \|r\| ≤ ln 2 / 2 in two parts (Cody and Waite), Taylor series of eʳ to r⁷ | 2 ULP |
//! | [`exp_m1`] | the same series without its 1 where it is enough, else eˣ − 1 | 3 ULP |
//! | [`sigmoid`] | from e^−\|x\| | 3 ULP |
//! | [`tanh`] | from e^(−2\|x\|) − 1 | 5 ULP |
//! | [`erfc_scaled`] | e^(z²)·erfc z as t·P(t), t = 1 / (1 + z/2): the variable of W. J. Cody, Math. Comp. 23 (1969) | 4 ULP |
//! | [`erf`] | x·P(x²) up to 0.85, 1 − e^(−x²)·erfcx x beyond | 3 ULP |
//!
//! The polynomials of the last two are least-maximum fits of the relative error, made against 40 digits.

use rten_simd::{Isa, SimdOp};

/// 1.5·2²³: added and taken away, it rounds to a whole number, which the low bits of the sum hold.
const ROUND: f32 = 12_582_912.0;
/// Above the logarithm of the largest finite value, and below that of the smallest: beyond these eˣ is ∞ and 0.
const EXP_RANGE: (f32, f32) = (-104.0, 89.0);
/// ln 2 with the last 12 bits cut off, so that n times it is exact, and what is missing.
const LN_2: (f32, f32) = (0.693_145_75, 1.428_606_8e-6);
/// 1 / k! for k = 2 …
const INVERSE_FACTORIALS: [f32; 6] = [1.0 / 2.0, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];
/// Where the series of eˣ − 1 is enough.
const EXP_M1_SERIES: f32 = 0.35;

/// P of [`erfc_scaled`], lowest power first; for z up to 10.5, where erfc z is no f32 any more.
const ERFC: [f32; 11] = [
    2.820_892e-1,
    2.822_368e-1,
    2.453_359e-1,
    1.847_006_2e-1,
    5.808_983_6e-2,
    2.779_959e-2,
    -9.899_101e-3,
    -3.022_706_6e-1,
    3.898_973_4e-1,
    -1.942_973_4e-1,
    3.631_780_3e-2,
];
/// P of [`erf`] up to [`ERF_SERIES`], lowest power first.
const ERF: [f32; 6] =
    [std::f32::consts::FRAC_2_SQRT_PI, -3.761_257_2e-1, 1.128_271_7e-1, -2.680_254_8e-2, 5.051_094_4e-3, -6.315_127e-4];
/// Where the odd polynomial of erf ends.
const ERF_SERIES: f32 = 0.85;

#[inline(always)]
fn horner(coefficients: &[f32], x: f32) -> f32 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

/// eˣ; not a number stays.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(EXP_RANGE.0, EXP_RANGE.1);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let y = 1.0 + (r + r * r * horner(&INVERSE_FACTORIALS, r));
    // In two halves: 2ⁿ itself may be no f32.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// eˣ − 1 without cancellation about 0.
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let series = x + x * x * horner(&INVERSE_FACTORIALS, x);
    let far = exp(x) - 1.0;
    if x.abs() < EXP_M1_SERIES { series } else { far }
}

/// 1 / (1 + e⁻ˣ); the exponential is of −|x| and never overflows.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let t = exp(-x.abs());
    (if x < 0.0 { t } else { 1.0 }) / (1.0 + t)
}

/// Hyperbolic tangent, which neither cancels about 0 nor overflows.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let t = exp_m1(-2.0 * x.abs());
    (-t / (2.0 + t)).copysign(x)
}

/// e^(z²)·erfc z for z ≥ 0.
#[inline(always)]
pub fn erfc_scaled(z: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * z);
    t * horner(&ERFC, t)
}

/// The error function, 2/√π ∫₀ˣ e^(−t²) dt.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (z, square) = (x.abs(), x * x);
    let near = x * horner(&ERF, square.min(1.0));
    let far = (1.0 - exp(-square) * erfc_scaled(z)).copysign(x);
    if z < ERF_SERIES { near } else { far }
}

struct Map<'a, F> {
    x: &'a [f32],
    y: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32) -> f32> SimdOp for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = (self.f)(*x);
        }
    }
}

/// y = f(x), as vector code of the machine.
#[inline(always)]
pub fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    Map { x, y, f }.dispatch();
}

struct AddScaled<'a, F> {
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    slope: F,
}

impl<F: Fn(f32) -> f32> SimdOp for AddScaled<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        for ((dx, dy), x) in self.dx.iter_mut().zip(self.dy).zip(self.x) {
            *dx += dy * (self.slope)(*x);
        }
    }
}

/// dx += dy · slope(x), as vector code of the machine.
#[inline(always)]
pub fn add_scaled(x: &[f32], dy: &[f32], dx: &mut [f32], slope: impl Fn(f32) -> f32) {
    AddScaled { x, dy, dx, slope }.dispatch();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative distance of two neighbours.
    const ULP: f64 = f32::EPSILON as f64;

    fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=20_000).map(move |i| from + (to - from) * (i as f32 / 20_000.0))
    }

    fn close(what: &str, x: f32, got: f32, expected: f64, relative: f64) {
        let error = (f64::from(got) - expected).abs();
        let allowed = relative * expected.abs() + f64::from(f32::MIN_POSITIVE);
        assert!(error <= allowed, "{what} {x}: {got:e}, expected {expected:e}");
    }

    /// ∫ by Simpson's rule in f64.
    fn erf_oracle(x: f64) -> f64 {
        let n = 2000;
        let f = |i: usize| (-(x * i as f64 / n as f64).powi(2)).exp();
        let inner: f64 = (1..n).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        (f(0) + f(n) + inner) * x / n as f64 / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
    }

    /// The continued fraction of Laplace, from z = 1.5 on.
    fn erfc_scaled_oracle(z: f64) -> f64 {
        let fraction = (1..200).rev().fold(z, |f, k| z + k as f64 / 2.0 / f);
        1.0 / (fraction * std::f64::consts::PI.sqrt())
    }

    #[test]
    fn agrees_with_double_precision() {
        for x in sweep(-87.0, 88.7) {
            close("exp", x, exp(x), f64::from(x).exp(), 2.0 * ULP);
            close("sigmoid", x, sigmoid(x), 1.0 / (1.0 + (-f64::from(x)).exp()), 3.0 * ULP);
        }
        for x in sweep(-1.0, 1.0).chain(sweep(-20.0, 20.0)) {
            close("exp_m1", x, exp_m1(x), f64::from(x).exp_m1(), 3.0 * ULP);
            close("tanh", x, tanh(x), f64::from(x).tanh(), 5.0 * ULP);
        }
        for x in sweep(-4.0, 4.0).step_by(10) {
            close("erf", x, erf(x), erf_oracle(x.into()), 3.0 * ULP);
        }
        for z in sweep(1.5, 10.5) {
            close("erfc_scaled", z, erfc_scaled(z), erfc_scaled_oracle(z.into()), 4.0 * ULP);
        }
        for z in sweep(0.0, 1.5).step_by(10) {
            let z64 = f64::from(z);
            close("erfc_scaled", z, erfc_scaled(z), (z64 * z64).exp() * (1.0 - erf_oracle(z64)), 4.0 * ULP);
        }
    }

    #[test]
    fn edges() {
        let inf = f32::INFINITY;
        assert_eq!([exp(0.0), exp(-inf), exp(inf), exp(-200.0), exp(200.0)], [1.0, 0.0, inf, 0.0, inf]);
        assert!(exp(-103.0) > 0.0 && exp(-103.0) < 3e-45);
        assert_eq!([sigmoid(-inf), sigmoid(inf), sigmoid(0.0)], [0.0, 1.0, 0.5]);
        assert_eq!([exp_m1(-inf), exp_m1(inf), exp_m1(0.0), exp_m1(1e-30)], [-1.0, inf, 0.0, 1e-30]);
        assert_eq!([tanh(-inf), tanh(inf), tanh(0.0)], [-1.0, 1.0, 0.0]);
        assert_eq!([erf(-inf), erf(inf), erf(0.0), erf(-9.0)], [-1.0, 1.0, 0.0, -1.0]);
        assert!([exp, exp_m1, sigmoid, tanh, erf].iter().all(|f| f(f32::NAN).is_nan()));
    }
}
