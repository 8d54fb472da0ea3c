//! The functions that a gate may apply: ONNX's `activations` of RNN, GRU and LSTM.
//!
//! | gate | y | dy/dx, from y |
//! |---|---|---|
//! | Sigmoid | 1 / (1 + e⁻ˣ) | y (1 − y) |
//! | Tanh | tanh x | 1 − y² |
//! | Relu | max(x, 0) | `y > 0` |
//! | Affine | αx + β | α |
//! | LeakyRelu | x if x > 0 else αx, α ≥ 0 | 1 if y > 0 else α |
//! | ThresholdedRelu | x if x > α else 0, α ≥ 0 | `y > α` |
//! | ScaledTanh | α tanh βx, α ≠ 0 | β (α − y²/α) |
//! | HardSigmoid | min(max(αx + β, 0), 1) | α if 0 < y < 1 |
//! | Elu | x if x > 0 else α (eˣ − 1), α ≥ 0 | 1 if y > 0 else y + α |
//! | Softsign | x / (1 + \|x\|) | (1 − \|y\|)² |
//! | Softplus | ln(1 + eˣ) | 1 − e⁻ʸ |
//!
//! With a `clip`, x is cut to ±clip first; the slope is 0 where that happened, which y tells: it has the value of a bound.

use rten_simd::{Isa, SimdOp};

use crate::kernels::elementary::{exp, exp_m1, sigmoid, tanh};

/// A function of a gate, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Gate {
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// max(x, 0).
    Relu,
    /// αx + β.
    Affine {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// x if positive, else αx.
    LeakyRelu {
        /// Slope of the negative side, at least 0.
        alpha: f32,
    },
    /// x above α, else 0.
    ThresholdedRelu {
        /// Threshold, at least 0.
        alpha: f32,
    },
    /// α tanh βx.
    ScaledTanh {
        /// Height, not 0.
        alpha: f32,
        /// Factor of x.
        beta: f32,
    },
    /// αx + β, cut to 0 .. 1.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// x if positive, else α (eˣ − 1).
    Elu {
        /// Depth of the negative side, at least 0.
        alpha: f32,
    },
    /// x / (1 + |x|).
    Softsign,
    /// ln(1 + eˣ).
    Softplus,
}

/// x = f(x), as vector code of the machine.
struct Map<'a, F> {
    x: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32) -> f32> SimdOp for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        for x in self.x {
            *x = (self.f)(*x);
        }
    }
}

#[inline(always)]
fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    Map { x, f }.dispatch();
}

/// d *= slope(y).
#[inline(always)]
fn scale(y: &[f32], d: &mut [f32], slope: impl Fn(f32) -> f32) {
    for (d, y) in d.iter_mut().zip(y) {
        *d *= slope(*y);
    }
}

impl Gate {
    /// x becomes y, cut to ±`clip` first.
    pub fn apply(self, clip: Option<f32>, x: &mut [f32]) {
        if let Some(clip) = clip {
            map(x, |x| x.clamp(-clip, clip));
        }
        match self {
            Self::Sigmoid => map(x, sigmoid),
            Self::Tanh => map(x, tanh),
            Self::Relu => map(x, |x| if x < 0.0 { 0.0 } else { x }),
            Self::Affine { alpha, beta } => map(x, |x| alpha * x + beta),
            Self::LeakyRelu { alpha } => map(x, |x| if x < 0.0 { alpha * x } else { x }),
            Self::ThresholdedRelu { alpha } => map(x, |x| if x <= alpha { 0.0 } else { x }),
            Self::ScaledTanh { alpha, beta } => map(x, |x| alpha * tanh(beta * x)),
            Self::HardSigmoid { alpha, beta } => map(x, |x| (alpha * x + beta).clamp(0.0, 1.0)),
            Self::Elu { alpha } => map(x, |x| if x < 0.0 { alpha * exp_m1(x) } else { x }),
            Self::Softsign => map(x, |x| x / (1.0 + x.abs())),
            Self::Softplus => map(x, |x| x.max(0.0) + exp(-x.abs()).ln_1p()),
        }
    }

    /// d becomes d · dy/dx.
    pub fn gradient(self, clip: Option<f32>, y: &[f32], d: &mut [f32]) {
        match self {
            Self::Sigmoid => scale(y, d, |y| y * (1.0 - y)),
            Self::Tanh => scale(y, d, |y| 1.0 - y * y),
            Self::Relu => scale(y, d, |y| if y > 0.0 { 1.0 } else { 0.0 }),
            Self::Affine { alpha, .. } => scale(y, d, |_| alpha),
            Self::LeakyRelu { alpha } => scale(y, d, |y| if y > 0.0 { 1.0 } else { alpha }),
            Self::ThresholdedRelu { alpha } => scale(y, d, |y| if y > alpha { 1.0 } else { 0.0 }),
            Self::ScaledTanh { alpha, beta } => scale(y, d, |y| beta * (alpha - y * y / alpha)),
            Self::HardSigmoid { alpha, .. } => scale(y, d, |y| if y > 0.0 && y < 1.0 { alpha } else { 0.0 }),
            Self::Elu { alpha } => scale(y, d, |y| if y > 0.0 { 1.0 } else { y + alpha }),
            Self::Softsign => scale(y, d, |y| (1.0 - y.abs()) * (1.0 - y.abs())),
            Self::Softplus => scale(y, d, |y| -exp_m1(-y)),
        }
        if let Some(clip) = clip {
            let mut bounds = [-clip, clip];
            self.apply(None, &mut bounds);
            scale(y, d, |y| if bounds.contains(&y) { 0.0 } else { 1.0 });
        }
    }
}
