//! Elementwise functions whose slope is read from their input.
//!
//! | kind | y | slope |
//! |---|---|---|
//! | Erf | erf x | 2/√π e^(−x²) |
//! | Gelu | x Φ(x) | Φ(x) + x φ(x) |
//! | Gelu, tanh | x σ(2u), u = √(2/π) (x + 0.044715 x³) | σ + x σ (1 − σ) 2u′ |
//! | Swish | x σ(αx) | σ + αx σ (1 − σ) |
//! | Mish | x w, w = tanh(ln(1 + eˣ)) | w + x σ(x) (1 − w²) |
//! | HardSigmoid | min(max(αx + β, 0), 1) | α inside, else 0 |
//! | HardSwish | x min(max(x/6 + ½, 0), 1) | 0, x/3 + ½, 1 |
//! | Elu, Selu, Celu | γx for x > 0, else s (e^(x/w) − 1) | γ, s/w e^(x/w) |
//! | Softplus | ln(1 + eˣ) | σ(x) |
//! | Softsign | x / (1 + \|x\|) | 1 / (1 + \|x\|)² |
//! | ThresholdedRelu | x for x > α, else 0 | 1, 0 |
//! | Shrink | x + b for x < −λ, x − b for x > λ, else 0 | 1, 1, 0 |
//! | Sign, Ceil, Floor, Round | the sign (0 at 0); to whole numbers, Round to the even one at a tie | 0 |
//! | Sin, Cos, Tan | | cos x, −sin x, 1 + y² |
//! | Asin, Acos, Atan | | ±1 / √(1 − x²), 1 / (1 + x²) |
//! | Sinh, Cosh | | cosh x, sinh x |
//! | Asinh, Acosh, Atanh | | 1 / √(x² + 1), 1 / √(x² − 1), 1 / (1 − x²) |
//!
//! Formulas: the ONNX operators of the same names; φ, Φ: density and distribution of the normal. tanh u is nowhere
//! formed: (1 + tanh u) / 2 = σ(2u) does not cancel in the negative tail, nor does Φ(x) = erfc(−x/√2) / 2. At a kink
//! the slope is that of the flat side (of Elu: of the curved one), as in PyTorch. `x`, `y` are `[len]`; x is kept where
//! the slope is not 0 everywhere. Not a number gives not a number, except where the kind compares: ThresholdedRelu and
//! Shrink give 0.

use super::{Keeps, Operator};
use crate::kernels::elementary::{add_scaled as add, erf, erfc_scaled, exp, exp_m1, map, sigmoid};

/// Which function; see the table at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum FunctionKind {
    /// The error function.
    Erf,
    /// x Φ(x).
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// x σ(αx).
    Swish {
        /// Factor inside; 1 is SiLU.
        alpha: f32,
    },
    /// x tanh(softplus x).
    Mish,
    /// min(max(αx + β, 0), 1).
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// x min(max(x/6 + ½, 0), 1).
    HardSwish,
    /// `positive` · x, below 0 `scale` · (e^(x / `width`) − 1).
    Elu {
        /// Slope of the positive side.
        positive: f32,
        /// What the negative side goes down to.
        scale: f32,
        /// Width of the exponential.
        width: f32,
    },
    /// ln(1 + eˣ).
    Softplus,
    /// x / (1 + |x|).
    Softsign,
    /// x above alpha, else 0.
    ThresholdedRelu {
        /// Threshold.
        alpha: f32,
    },
    /// Towards 0 by `bias`, and 0 from −`lambda` to `lambda`.
    Shrink {
        /// Half width of the flat part.
        lambda: f32,
        /// What the others move by.
        bias: f32,
    },
    /// −1, 0 or 1.
    Sign,
    /// The next whole number up.
    Ceil,
    /// The next whole number down.
    Floor,
    /// The nearest whole number, the even one at a tie.
    Round,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// Arc sine.
    Asin,
    /// Arc cosine.
    Acos,
    /// Arc tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Inverse hyperbolic sine.
    Asinh,
    /// Inverse hyperbolic cosine.
    Acosh,
    /// Inverse hyperbolic tangent.
    Atanh,
}

/// √(2/π) and the cubic term of the approximation of Gelu (Hendrycks and Gimpel, 2016).
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

/// Φ(x) and e^(−x²/2).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let density = exp(-0.5 * x * x);
    let tail = 0.5 * density * erfc_scaled(x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    (if x < 0.0 { tail } else { 1.0 - tail }, density)
}

/// σ(2u) and 2u′ of the approximation of Gelu.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let square = x * x;
    let twice = 2.0 * GELU.0 * x * (1.0 + GELU.1 * square);
    (sigmoid(twice), 2.0 * GELU.0 * (1.0 + 3.0 * GELU.1 * square))
}

/// tanh(ln(1 + eˣ)) and 1 minus it.
#[inline(always)]
fn tanh_softplus(x: f32) -> (f32, f32) {
    let t = exp(-x.abs());
    // Of (e² + 2e) / (e² + 2e + 2) with e = eˣ; above 0 both sides are divided by e².
    let square = t * t;
    let (over, rest) = if x < 0.0 { (square + 2.0 * t, 2.0) } else { (1.0 + 2.0 * t, 2.0 * square) };
    (over / (over + rest), rest / (over + rest))
}

#[inline(always)]
fn hard_swish(x: f32) -> f32 {
    if x <= -3.0 {
        0.0
    } else if x >= 3.0 {
        x
    } else {
        x * (x / 6.0 + 0.5)
    }
}

/// min(max(y, 0), 1); not a number stays.
#[inline(always)]
fn unit(y: f32) -> f32 {
    let y = if y < 0.0 { 0.0 } else { y };
    if y > 1.0 { 1.0 } else { y }
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}

/// An elementwise function, `x [len] -> y [len]`.
#[derive(Clone, Debug)]
pub struct Function {
    kind: FunctionKind,
    len: usize,
}

impl Function {
    /// The function on `len` values.
    pub fn new(kind: FunctionKind, len: usize) -> Self {
        Self { kind, len }
    }
}

impl FunctionKind {
    /// Whether its slope is 0 everywhere.
    pub fn is_flat(self) -> bool {
        matches!(self, Self::Sign | Self::Ceil | Self::Floor | Self::Round)
    }
}

impl Operator for Function {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [!self.kind.is_flat(), false, false], ..Keeps::default() }
    }

    fn differentiates(&self) -> [bool; super::MAX_INPUTS] {
        [!self.kind.is_flat(); super::MAX_INPUTS]
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        match self.kind {
            FunctionKind::Erf => map(x, y, erf),
            FunctionKind::Gelu => map(x, y, |x| x * normal(x).0),
            FunctionKind::GeluTanh => map(x, y, |x| x * gelu_tanh(x).0),
            FunctionKind::Swish { alpha } => map(x, y, |x| x * sigmoid(alpha * x)),
            FunctionKind::Mish => map(x, y, |x| x * tanh_softplus(x).0),
            FunctionKind::HardSigmoid { alpha, beta } => map(x, y, |x| unit(alpha * x + beta)),
            FunctionKind::HardSwish => map(x, y, hard_swish),
            FunctionKind::Elu { positive, scale, width } => {
                map(x, y, |x| if x > 0.0 { positive * x } else { scale * exp_m1(x / width) });
            }
            FunctionKind::Softplus => map(x, y, |x| x.max(0.0) + exp(-x.abs()).ln_1p()),
            FunctionKind::Softsign => map(x, y, |x| x / (1.0 + x.abs())),
            FunctionKind::ThresholdedRelu { alpha } => map(x, y, |x| if x > alpha { x } else { 0.0 }),
            FunctionKind::Shrink { lambda, bias } => map(x, y, |x| {
                if x < -lambda {
                    x + bias
                } else if x > lambda {
                    x - bias
                } else {
                    0.0
                }
            }),
            FunctionKind::Sign => map(x, y, sign),
            FunctionKind::Ceil => map(x, y, f32::ceil),
            FunctionKind::Floor => map(x, y, f32::floor),
            FunctionKind::Round => map(x, y, f32::round_ties_even),
            FunctionKind::Sin => map(x, y, f32::sin),
            FunctionKind::Cos => map(x, y, f32::cos),
            FunctionKind::Tan => map(x, y, f32::tan),
            FunctionKind::Asin => map(x, y, f32::asin),
            FunctionKind::Acos => map(x, y, f32::acos),
            FunctionKind::Atan => map(x, y, f32::atan),
            FunctionKind::Sinh => map(x, y, f32::sinh),
            FunctionKind::Cosh => map(x, y, f32::cosh),
            FunctionKind::Asinh => map(x, y, f32::asinh),
            FunctionKind::Acosh => map(x, y, f32::acosh),
            FunctionKind::Atanh => map(x, y, f32::atanh),
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
        let x = x[0];
        match self.kind {
            FunctionKind::Erf => add(x, dy, dx, |x| std::f32::consts::FRAC_2_SQRT_PI * exp(-x * x)),
            FunctionKind::Gelu => {
                let height = std::f32::consts::FRAC_2_SQRT_PI * 0.5 * std::f32::consts::FRAC_1_SQRT_2;
                add(x, dy, dx, |x| {
                    let (below, density) = normal(x);
                    below + x * (density * height)
                });
            }
            FunctionKind::GeluTanh => add(x, dy, dx, |x| {
                let (s, twice) = gelu_tanh(x);
                s + x * s * (1.0 - s) * twice
            }),
            FunctionKind::Swish { alpha } => add(x, dy, dx, |x| {
                let s = sigmoid(alpha * x);
                s + alpha * x * s * (1.0 - s)
            }),
            FunctionKind::Mish => add(x, dy, dx, |x| {
                let (w, rest) = tanh_softplus(x);
                w + x * sigmoid(x) * rest * (1.0 + w)
            }),
            FunctionKind::HardSigmoid { alpha, beta } => add(x, dy, dx, |x| {
                let y = alpha * x + beta;
                if y > 0.0 && y < 1.0 { alpha } else { 0.0 }
            }),
            FunctionKind::HardSwish => add(x, dy, dx, |x| {
                if x <= -3.0 {
                    0.0
                } else if x >= 3.0 {
                    1.0
                } else {
                    x / 3.0 + 0.5
                }
            }),
            FunctionKind::Elu { positive, scale, width } => {
                add(x, dy, dx, |x| if x > 0.0 { positive } else { scale / width * exp(x / width) });
            }
            FunctionKind::Softplus => add(x, dy, dx, sigmoid),
            FunctionKind::Softsign => add(x, dy, dx, |x| 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs()))),
            FunctionKind::ThresholdedRelu { alpha } => add(x, dy, dx, |x| if x > alpha { 1.0 } else { 0.0 }),
            FunctionKind::Shrink { lambda, .. } => {
                add(x, dy, dx, |x| if x < -lambda || x > lambda { 1.0 } else { 0.0 });
            }
            FunctionKind::Sign | FunctionKind::Ceil | FunctionKind::Floor | FunctionKind::Round => {}
            FunctionKind::Sin => add(x, dy, dx, f32::cos),
            FunctionKind::Cos => add(x, dy, dx, |x| -x.sin()),
            FunctionKind::Tan => add(x, dy, dx, |x| 1.0 + x.tan() * x.tan()),
            FunctionKind::Asin => add(x, dy, dx, |x| 1.0 / ((1.0 - x) * (1.0 + x)).sqrt()),
            FunctionKind::Acos => add(x, dy, dx, |x| -1.0 / ((1.0 - x) * (1.0 + x)).sqrt()),
            FunctionKind::Atan => add(x, dy, dx, |x| 1.0 / (1.0 + x * x)),
            FunctionKind::Sinh => add(x, dy, dx, f32::cosh),
            FunctionKind::Cosh => add(x, dy, dx, f32::sinh),
            FunctionKind::Asinh => add(x, dy, dx, |x| 1.0 / x.hypot(1.0)),
            FunctionKind::Acosh => add(x, dy, dx, |x| 1.0 / ((x - 1.0).sqrt() * (x + 1.0).sqrt())),
            FunctionKind::Atanh => add(x, dy, dx, |x| 1.0 / ((1.0 - x) * (1.0 + x))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, away_from, values_in};
    use super::*;

    const KINDS: [FunctionKind; 31] = [
        FunctionKind::Erf,
        FunctionKind::Gelu,
        FunctionKind::GeluTanh,
        FunctionKind::Swish { alpha: 1.0 },
        FunctionKind::Swish { alpha: -1.7 },
        FunctionKind::Mish,
        FunctionKind::HardSigmoid { alpha: 0.2, beta: 0.5 },
        FunctionKind::HardSigmoid { alpha: -0.5, beta: 0.25 },
        FunctionKind::HardSwish,
        FunctionKind::Elu { positive: 1.0, scale: 0.75, width: 1.0 },
        FunctionKind::Elu { positive: 1.0507, scale: 1.758_1, width: 1.0 },
        FunctionKind::Elu { positive: 1.0, scale: 0.5, width: 0.5 },
        FunctionKind::Softplus,
        FunctionKind::Softsign,
        FunctionKind::ThresholdedRelu { alpha: 0.5 },
        FunctionKind::Shrink { lambda: 0.5, bias: 0.25 },
        FunctionKind::Sign,
        FunctionKind::Ceil,
        FunctionKind::Floor,
        FunctionKind::Round,
        FunctionKind::Sin,
        FunctionKind::Cos,
        FunctionKind::Tan,
        FunctionKind::Asin,
        FunctionKind::Acos,
        FunctionKind::Atan,
        FunctionKind::Sinh,
        FunctionKind::Cosh,
        FunctionKind::Asinh,
        FunctionKind::Acosh,
        FunctionKind::Atanh,
    ];

    /// By its series, which f64 carries to 4.
    fn erf_oracle(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn oracle(kind: FunctionKind, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match kind {
            FunctionKind::Erf => erf_oracle(x),
            FunctionKind::Gelu => 0.5 * x * (1.0 + erf_oracle(x * std::f64::consts::FRAC_1_SQRT_2)),
            FunctionKind::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            FunctionKind::Swish { alpha } => x * sigmoid(f64::from(alpha) * x),
            FunctionKind::Mish => x * x.exp().ln_1p().tanh(),
            FunctionKind::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            FunctionKind::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            FunctionKind::Elu { positive, scale, width } => {
                if x > 0.0 {
                    f64::from(positive) * x
                } else {
                    f64::from(scale) * ((x / f64::from(width)).exp() - 1.0)
                }
            }
            FunctionKind::Softplus => x.exp().ln_1p(),
            FunctionKind::Softsign => x / (1.0 + x.abs()),
            FunctionKind::ThresholdedRelu { alpha } => {
                if x > f64::from(alpha) {
                    x
                } else {
                    0.0
                }
            }
            FunctionKind::Shrink { lambda, bias } => {
                if x.abs() > f64::from(lambda) {
                    x - x.signum() * f64::from(bias)
                } else {
                    0.0
                }
            }
            FunctionKind::Sign => x.signum(),
            FunctionKind::Ceil => x.ceil(),
            FunctionKind::Floor => x.floor(),
            FunctionKind::Round => x.round_ties_even(),
            FunctionKind::Sin => x.sin(),
            FunctionKind::Cos => x.cos(),
            FunctionKind::Tan => x.tan(),
            FunctionKind::Asin => x.asin(),
            FunctionKind::Acos => x.acos(),
            FunctionKind::Atan => x.atan(),
            FunctionKind::Sinh => x.sinh(),
            FunctionKind::Cosh => x.cosh(),
            FunctionKind::Asinh => x.asinh(),
            FunctionKind::Acosh => x.acosh(),
            FunctionKind::Atanh => x.atanh(),
        }
    }

    fn inputs(kind: FunctionKind, len: usize) -> Vec<f32> {
        let kinks: &[f32] = match kind {
            FunctionKind::HardSigmoid { beta: 0.5, .. } => &[-2.5, 2.5],
            FunctionKind::HardSigmoid { .. } => &[0.5, -1.5],
            FunctionKind::HardSwish => &[-3.0, 3.0],
            FunctionKind::ThresholdedRelu { .. } | FunctionKind::Shrink { .. } => &[-0.5, 0.5],
            FunctionKind::Round => &[-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5],
            _ => &[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0],
        };
        match kind {
            FunctionKind::Asin | FunctionKind::Acos | FunctionKind::Atanh => values_in(9, len, -0.9, 0.9),
            FunctionKind::Acosh => values_in(9, len, 1.25, 4.0),
            FunctionKind::Tan => values_in(9, len, -1.3, 1.3),
            _ => away_from(values_in(9, len, -4.0, 4.0), kinks),
        }
    }

    #[test]
    fn agrees_with_the_oracle_for_every_length() {
        for kind in KINDS {
            for len in [0, 1, 2, 3, 5, 8, 15, 16, 17, 33, 64] {
                let op = Function::new(kind, len);
                let oracle = |x: &[Vec<f64>]| x[0].iter().map(|x| oracle(kind, *x)).collect();
                Case { op: &op, x: vec![inputs(kind, len)], oracle: &oracle }.run();
            }
        }
    }

    fn run(kind: FunctionKind, x: f32) -> (f32, f32) {
        let (mut y, mut dx) = ([0.0], [0.0]);
        let op = Function::new(kind, 1);
        op.forward(&[&[x]], &mut y, &mut [], &mut []);
        op.vjp(&[&[x]], &[], &[], &mut [1.0], &mut [Some(&mut dx)], &mut []);
        (y[0], dx[0])
    }

    #[test]
    fn tails_are_finite_and_keep_their_limits() {
        for kind in KINDS {
            if matches!(
                kind,
                FunctionKind::Asin
                    | FunctionKind::Acos
                    | FunctionKind::Atanh
                    | FunctionKind::Acosh
                    | FunctionKind::Sinh
                    | FunctionKind::Cosh
            ) {
                continue;
            }
            for x in [-1e4, -200.0, -100.0, -30.0, 30.0, 100.0, 200.0, 1e4f32] {
                let (y, dx) = run(kind, x);
                assert!(y.is_finite() && dx.is_finite(), "{kind:?} at {x}: {y}, slope {dx}");
            }
        }
        for kind in [FunctionKind::Gelu, FunctionKind::GeluTanh, FunctionKind::Swish { alpha: 1.0 }, FunctionKind::Mish]
        {
            assert_eq!(run(kind, 1e4), (1e4, 1.0), "{kind:?}");
            assert_eq!(run(kind, -1e4).0.abs(), 0.0, "{kind:?}");
        }
        // No cancellation: −5 Φ(−5) to single precision, from 40 digits.
        let (y, _) = run(FunctionKind::Gelu, -5.0);
        assert!((f64::from(y) / -1.433_257_859_4e-6 - 1.0).abs() < 1e-6, "{y:e}");
    }

    #[test]
    fn kinks_ties_and_not_a_number() {
        assert_eq!(run(FunctionKind::HardSwish, -3.0), (0.0, 0.0));
        assert_eq!(run(FunctionKind::HardSwish, f32::NEG_INFINITY), (0.0, 0.0));
        assert_eq!(run(FunctionKind::HardSigmoid { alpha: 0.5, beta: 0.5 }, 1.0), (1.0, 0.0));
        assert_eq!(run(FunctionKind::Elu { positive: 1.0, scale: 2.0, width: 1.0 }, 0.0), (0.0, 2.0));
        assert_eq!(run(FunctionKind::Shrink { lambda: 0.5, bias: 0.1 }, 0.5), (0.0, 0.0));
        for (x, y) in [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, 0.0), (-1.5, -2.0)] {
            assert_eq!(run(FunctionKind::Round, x), (y, 0.0));
        }
        assert_eq!(run(FunctionKind::Sign, 0.0), (0.0, 0.0));
        for kind in KINDS {
            let compares = matches!(kind, FunctionKind::ThresholdedRelu { .. } | FunctionKind::Shrink { .. });
            assert!(compares || run(kind, f32::NAN).0.is_nan(), "{kind:?}");
        }
    }
}
