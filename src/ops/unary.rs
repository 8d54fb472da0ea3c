//! Elementwise functions of one input, and the activations that a convolution fuses.
//!
//! | kind | y | dx += dy · | kept |
//! |---|---|---|---|
//! | Relu | max(x, 0) | `y > 0` | y, or one bit an element |
//! | Clip | min(max(x, min), max) | `min < y < max` | y, or one bit an element |
//! | LeakyRelu | x if x > 0 else αx | 1 if x > 0 else α | one bit an element |
//! | Sigmoid | 1 / (1 + e⁻ˣ) | y (1 − y) | y |
//! | Tanh | tanh x | 1 − y² | y |
//! | Neg | −x | −1 | |
//! | Abs | \|x\| | sign x, 0 at 0 | x |
//! | Exp | eˣ | y | y |
//! | Log | ln x | 1 / x | x |
//! | Sqrt | √x | 1 / 2y | y |
//! | Reciprocal | 1 / x | −y² | y |
//!
//! Formulas: the ONNX operators of the same names. `x`, `y` are `[len]`. Not a number passes through forward for each
//! kind; where it comes out of Relu, Clip, LeakyRelu or Abs, the gradient is that of the flat (for LeakyRelu the
//! sloping) side. At the two bounds of Clip the gradient is 0, since y alone does not tell a bound from beyond it.

use std::ops::Range;
use std::sync::Arc;

use super::rows::{Part, RowWindow, scaled};
use super::{Keeps, Operator};
use crate::kernels::elementary::{exp, map, sigmoid, tanh};
use crate::kernels::mask::{self, Open};

/// What a convolution or a dense layer may apply to its output in place.
///
/// A mask is one bit an element, set where the activation is not flat ([`crate::kernels::mask`]).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// y = x.
    #[default]
    None,
    /// y = max(x, 0).
    Relu,
    /// y = min(max(x, min), max).
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound; it wins where it is below the lower one.
        max: f32,
    },
}

impl Activation {
    /// Applies the activation in place; not a number stays.
    pub fn apply(&self, y: &mut [f32]) {
        if let Some([low, high]) = self.bounds() {
            mask::clamp_in_place(low, high, y);
        }
    }

    /// The bounds between which it keeps its input.
    pub fn bounds(&self) -> Option<[f32; 2]> {
        match *self {
            Self::None => None,
            Self::Relu => Some([0.0, f32::INFINITY]),
            Self::Clip { min, max } => Some([min, max]),
        }
    }

    /// Where it is not flat.
    fn open(&self) -> Option<Open> {
        match *self {
            Self::None => None,
            Self::Relu => Some(Open { low: 0.0, high: None }),
            Self::Clip { min, max } => Some(Open { low: min, high: Some(max) }),
        }
    }

    /// Slots of `saved` for the mask of `len` elements; none for [`Activation::None`].
    pub fn mask_len(&self, len: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Relu | Self::Clip { .. } => mask::mask_len(len),
        }
    }

    /// Writes the mask of the activated output `y [len]` to `saved [mask_len(len)]`.
    pub fn save_mask(&self, y: &[f32], saved: &mut [f32]) {
        if let Some(open) = self.open() {
            mask::save(y, open, saved);
        }
    }

    /// Sets `dy [len]` to zero where the activation is flat: read from the activated output `y [len]` if it is not
    /// empty, else from the mask in `saved`.
    pub fn mask_gradient(&self, y: &[f32], saved: &[f32], dy: &mut [f32]) {
        match self.open() {
            None => {}
            Some(open) if !y.is_empty() => mask::stop_by_output(y, open, dy),
            Some(_) => mask::scale_by_bits(saved, 0.0, dy),
        }
    }
}

/// Which function; see the table at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum UnaryKind {
    /// max(x, 0).
    Relu,
    /// min(max(x, min), max).
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound; it wins where it is below the lower one.
        max: f32,
    },
    /// x if positive, else αx.
    LeakyRelu {
        /// Slope of the negative side.
        alpha: f32,
    },
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// −x.
    Neg,
    /// |x|.
    Abs,
    /// eˣ.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// 1 / x.
    Reciprocal,
}

/// An elementwise function, `x [len] -> y [len]`.
#[derive(Clone, Debug)]
pub struct Unary {
    kind: UnaryKind,
    len: usize,
    kept_output: bool,
}

impl Unary {
    /// The function on `len` values.
    pub fn new(kind: UnaryKind, len: usize) -> Self {
        Self { kind, len, kept_output: false }
    }

    /// Whether someone keeps the output anyway: then Relu and Clip read their mask from it and save nothing.
    pub fn with_kept_output(mut self, kept: bool) -> Self {
        self.kept_output = kept;
        self
    }

    /// Relu and Clip, which share the code of the fused activations.
    fn activation(&self) -> Activation {
        match self.kind {
            UnaryKind::Relu => Activation::Relu,
            UnaryKind::Clip { min, max } => Activation::Clip { min, max },
            _ => Activation::None,
        }
    }

    /// dx of Relu, Clip and LeakyRelu: added, or written where it is the `first` term.
    fn straight(&self, y: &[f32], saved: &[f32], dy: &[f32], dx: &mut [f32], first: bool) {
        let slope = if let UnaryKind::LeakyRelu { alpha } = self.kind { alpha } else { 0.0 };
        match self.activation().open() {
            Some(open) if self.kept_output => mask::add_by_output(y, open, dy, dx, first),
            _ => mask::add_by_bits(saved, slope, dy, dx, first),
        }
    }
}

/// dx += f(dy, kept), `kept` being x or y.
#[inline(always)]
fn add(dx: &mut [f32], dy: &[f32], kept: &[f32], f: impl Fn(f32, f32) -> f32) {
    for ((dx, dy), kept) in dx.iter_mut().zip(dy).zip(kept) {
        *dx += f(*dy, *kept);
    }
}

impl Operator for Unary {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        let input = Keeps { x: [true, false, false], ..Keeps::default() };
        let output = Keeps { y: true, ..Keeps::default() };
        match self.kind {
            UnaryKind::Relu | UnaryKind::Clip { .. } if self.kept_output => output,
            UnaryKind::Relu | UnaryKind::Clip { .. } | UnaryKind::LeakyRelu { .. } => {
                Keeps { saved: mask::mask_len(self.len), ..Keeps::default() }
            }
            UnaryKind::Neg => Keeps::default(),
            UnaryKind::Abs | UnaryKind::Log => input,
            UnaryKind::Sigmoid | UnaryKind::Tanh | UnaryKind::Exp | UnaryKind::Sqrt | UnaryKind::Reciprocal => output,
        }
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        match self.kind {
            UnaryKind::Relu => mask::clamp(x, 0.0, f32::INFINITY, y),
            UnaryKind::Clip { min, max } => mask::clamp(x, min, max, y),
            UnaryKind::LeakyRelu { alpha } => mask::leaky(x, alpha, y),
            UnaryKind::Sigmoid => map(x, y, sigmoid),
            UnaryKind::Tanh => map(x, y, tanh),
            UnaryKind::Neg => map(x, y, |x| -x),
            UnaryKind::Abs => map(x, y, f32::abs),
            UnaryKind::Exp => map(x, y, exp),
            UnaryKind::Log => map(x, y, f32::ln),
            UnaryKind::Sqrt => map(x, y, f32::sqrt),
            UnaryKind::Reciprocal => map(x, y, |x| 1.0 / x),
        }
        if !saved.is_empty() {
            match self.kind {
                UnaryKind::LeakyRelu { .. } => mask::save(x, Open { low: 0.0, high: None }, saved),
                _ => self.activation().save_mask(y, saved),
            }
        }
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        match self.kind {
            UnaryKind::Relu | UnaryKind::Clip { .. } | UnaryKind::LeakyRelu { .. } => {
                self.straight(y, saved, dy, dx, false);
            }
            UnaryKind::Sigmoid => add(dx, dy, y, |dy, y| dy * (y * (1.0 - y))),
            UnaryKind::Tanh => add(dx, dy, y, |dy, y| dy * (1.0 - y * y)),
            UnaryKind::Neg => add(dx, dy, dy, |dy, _| -dy),
            UnaryKind::Abs => add(dx, dy, x[0], |dy, x| {
                if x > 0.0 {
                    dy
                } else if x < 0.0 {
                    -dy
                } else {
                    0.0
                }
            }),
            UnaryKind::Exp => add(dx, dy, y, |dy, y| dy * y),
            UnaryKind::Log => add(dx, dy, x[0], |dy, x| dy / x),
            // Silence gives √0, which a floor behind it (Max, Clip) hides: a gradient of zero stays zero there.
            UnaryKind::Sqrt => add(dx, dy, y, |dy, y| if dy == 0.0 { 0.0 } else { dy / (2.0 * y) }),
            UnaryKind::Reciprocal => add(dx, dy, y, |dy, y| -dy * (y * y)),
        }
    }

    fn vjp_first(&self, x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], work: &mut [f32]) {
        if matches!(self.kind, UnaryKind::Relu | UnaryKind::Clip { .. } | UnaryKind::LeakyRelu { .. }) {
            return self.straight(y, saved, dy, dx, true);
        }
        dx.fill(0.0);
        self.vjp(&[x], y, saved, dy, &mut [Some(dx)], work);
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        scaled(self.len, rows, rows).map(|_| RowWindow::each(rows))
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        Some(Arc::new(Self { len: scaled(self.len, rows, range.len())?, ..self.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, away_from, values, values_in};
    use super::*;

    const KINDS: [UnaryKind; 13] = [
        UnaryKind::Relu,
        UnaryKind::Clip { min: 0.0, max: 0.5 },
        UnaryKind::Clip { min: -0.25, max: f32::INFINITY },
        UnaryKind::LeakyRelu { alpha: 0.1 },
        UnaryKind::LeakyRelu { alpha: -0.5 },
        UnaryKind::Sigmoid,
        UnaryKind::Tanh,
        UnaryKind::Neg,
        UnaryKind::Abs,
        UnaryKind::Exp,
        UnaryKind::Log,
        UnaryKind::Sqrt,
        UnaryKind::Reciprocal,
    ];

    fn oracle(kind: UnaryKind, x: f64) -> f64 {
        match kind {
            UnaryKind::Relu => x.max(0.0),
            UnaryKind::Clip { min, max } => x.max(min.into()).min(max.into()),
            UnaryKind::LeakyRelu { alpha } => x * if x > 0.0 { 1.0 } else { f64::from(alpha) },
            UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryKind::Tanh => x.tanh(),
            UnaryKind::Neg => -x,
            UnaryKind::Abs => x.abs(),
            UnaryKind::Exp => x.exp(),
            UnaryKind::Log => x.ln(),
            UnaryKind::Sqrt => x.sqrt(),
            UnaryKind::Reciprocal => 1.0 / x,
        }
    }

    fn forward(kind: UnaryKind, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        Unary::new(kind, x.len()).forward(&[x], &mut y, &mut [], &mut []);
        y
    }

    #[test]
    fn agrees_with_the_oracle_for_every_length() {
        for kind in KINDS {
            for len in 0..=70 {
                let x = match kind {
                    UnaryKind::Log | UnaryKind::Sqrt | UnaryKind::Reciprocal => values_in(7, len, 0.5, 2.0),
                    _ => away_from(values(7, len), &[0.0, 0.5, -0.25]),
                };
                for kept in [false, true] {
                    let op = Unary::new(kind, len).with_kept_output(kept);
                    let oracle = |x: &[Vec<f64>]| x[0].iter().map(|x| oracle(kind, *x)).collect();
                    Case { op: &op, x: vec![x.clone()], oracle: &oracle }.run();
                }
            }
        }
    }

    #[test]
    fn fused_activations_agree_with_the_operators() {
        for len in 0..=70 {
            let x = values(3, len);
            for (activation, kind) in [
                (Activation::Relu, UnaryKind::Relu),
                (Activation::Clip { min: -0.3, max: 0.6 }, UnaryKind::Clip { min: -0.3, max: 0.6 }),
            ] {
                let mut y = x.clone();
                activation.apply(&mut y);
                assert_eq!(y, forward(kind, &x));
                let mut saved = vec![f32::NAN; activation.mask_len(len)];
                activation.save_mask(&y, &mut saved);
                let (mut from_y, mut from_mask) = (values(4, len), values(4, len));
                activation.mask_gradient(&y, &[], &mut from_y);
                activation.mask_gradient(&[], &saved, &mut from_mask);
                assert_eq!(from_y, from_mask);
                let (op, mut dx) = (Unary::new(kind, len), vec![0.0; len]);
                op.vjp(&[&[]], &[], &saved, &mut values(4, len), &mut [Some(&mut dx)], &mut []);
                assert_eq!(from_y, dx);
            }
        }
        let (mut y, mut dy) = (values(1, 5), values(2, 5));
        Activation::None.apply(&mut y);
        Activation::None.save_mask(&y, &mut []);
        Activation::None.mask_gradient(&[], &[], &mut dy);
        assert_eq!((y, dy, Activation::None.mask_len(5)), (values(1, 5), values(2, 5), 0));
    }

    #[test]
    fn not_a_number_passes_and_infinities_keep_their_limits() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for kind in KINDS {
            assert!(forward(kind, &[nan; 33]).iter().all(|y| y.is_nan()), "{kind:?}");
        }
        let edges = [-inf, -1e4, -100.0, 0.0, 100.0, 1e4, inf];
        let clip = UnaryKind::Clip { min: 0.0, max: 6.0 };
        assert_eq!(forward(UnaryKind::Relu, &edges), [0.0, 0.0, 0.0, 0.0, 100.0, 1e4, inf]);
        assert_eq!(forward(clip, &edges), [0.0, 0.0, 0.0, 0.0, 6.0, 6.0, 6.0]);
        assert_eq!(forward(UnaryKind::Tanh, &edges), [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(forward(UnaryKind::Exp, &[-inf, 0.0, inf]), [0.0, 1.0, inf]);
        assert_eq!(forward(UnaryKind::Log, &[0.0, 1.0, inf]), [-inf, 0.0, inf]);
        assert_eq!(forward(UnaryKind::Reciprocal, &[0.0, inf]), [inf, 0.0]);
        let y = forward(UnaryKind::Sigmoid, &[-inf, -1e4, -80.0, 0.0, 80.0, inf]);
        assert_eq!((y[0], y[1], y[3], y[4], y[5]), (0.0, 0.0, 0.5, 1.0, 1.0));
        assert!((f64::from(y[2]) / (-80f64).exp() - 1.0).abs() < 1e-6, "the lower tail is exact");
        assert_eq!(forward(UnaryKind::Clip { min: 2.0, max: 1.0 }, &[0.0, 1.5, 3.0]), [1.0; 3]);
    }

    #[test]
    fn a_gradient_of_zero_passes_the_root_of_zero() {
        let op = Unary::new(UnaryKind::Sqrt, 3);
        let mut dx = [1.0, 1.0, 1.0];
        let y = [0.0, 0.0, 2.0];
        op.vjp(&[&[]], &y, &y, &mut [0.0, 3.0, 8.0], &mut [Some(&mut dx)], &mut []);
        assert_eq!(dx, [1.0, f32::INFINITY, 3.0]);
    }

    #[test]
    fn the_mask_stops_what_is_not_finite() {
        let y = [0.0, f32::NAN, 1.0];
        let mut saved = vec![f32::NAN; Activation::Relu.mask_len(3)];
        Activation::Relu.save_mask(&y, &mut saved);
        let mut dy = [f32::INFINITY, f32::NAN, f32::INFINITY];
        Activation::Relu.mask_gradient(&[], &saved, &mut dy);
        assert_eq!(dy, [0.0, 0.0, f32::INFINITY]);
    }
}
