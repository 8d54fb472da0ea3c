//! Resizing along axes: a constant sparse linear map for each.
//!
//! y\[o\] = Σ_t w\[o, t\] · x\[i\[o, t\]\] along each resized axis, one axis after the other (ONNX Resize is separable);
//! dx\[i\[o, t\]\] += w\[o, t\] · dy\[o\]. The taps hold what tells the modes apart, so forward and vjp are exact for each:
//!
//! | mode | taps of output o, whose place in x is u(o) |
//! |---|---|
//! | Nearest | one, u rounded |
//! | Linear | the two about u, weights by distance |
//! | Cubic | the four about u (Keys 1981, "Cubic convolution interpolation for digital image processing") |
//! | Linear, Cubic with antialias | all that a kernel widened by 1 / scale reaches, weights with sum 1 |
//!
//! u(o) and the weights: ONNX Resize, opsets 10 to 19, and its function in `onnx.reference`. Taps outside x take the value
//! at the border, or none with `exclude_outside`, and the rest is scaled to sum 1. Nothing is kept.

use super::{Keeps, Operator};

/// How values between the places of x are found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Interpolation {
    /// The nearest value.
    Nearest(Rounding),
    /// Between the two neighbours.
    Linear,
    /// Between four neighbours.
    Cubic {
        /// The coefficient a of the kernel.
        a: f64,
    },
}

/// Which of two neighbours is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rounding {
    /// The nearer, the left one in the middle.
    PreferFloor,
    /// The nearer, the right one in the middle.
    PreferCeil,
    /// The left one.
    Floor,
    /// The right one.
    Ceil,
}

/// How places of y are places of x.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Coordinates {
    /// (o + ½) / scale − ½.
    HalfPixel,
    /// The same about the middle of both.
    HalfPixelSymmetric,
    /// The same, −½ for a single output.
    PytorchHalfPixel,
    /// (o + ½) / scale: TensorFlow 1 for nearest neighbours.
    TfHalfPixelForNearest,
    /// First on first, last on last.
    AlignCorners,
    /// o / scale.
    Asymmetric,
    /// From and to these parts of x; what lies outside x is not x.
    Crop(f64, f64),
}

/// All about a resize that is the same for each axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Between the places.
    pub interpolation: Interpolation,
    /// Where the places are.
    pub coordinates: Coordinates,
    /// Whether taps outside x are left out.
    pub exclude_outside: bool,
    /// Whether the kernel is widened when x shrinks.
    pub antialias: bool,
}

/// The map along one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct AxisMap {
    input: usize,
    /// Taps of output o are `taps[starts[o]..starts[o + 1]]`: index and weight.
    starts: Vec<usize>,
    taps: Vec<(usize, f32)>,
}

impl AxisMap {
    /// From `input` to `output` values by `scale`, which is about their quotient.
    pub fn new(rule: &Rule, input: usize, output: usize, scale: f64) -> Self {
        let (mut starts, mut taps) = (vec![0], Vec::new());
        for o in 0..output {
            if input > 0
                && let Some(u) = place(rule.coordinates, o as f64, input as f64, output as f64, scale)
            {
                push_taps(rule, u, input, scale, &mut taps);
            }
            starts.push(taps.len());
        }
        Self { input, starts, taps }
    }

    /// Values on this axis of y.
    pub fn output(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether y is x along this axis.
    pub fn is_identity(&self) -> bool {
        self.input == self.output() && (0..self.input).all(|o| self.of(o) == [(o, 1.0)])
    }

    fn of(&self, o: usize) -> &[(usize, f32)] {
        &self.taps[self.starts[o]..self.starts[o + 1]]
    }
}

/// u(o), or None where y has no place in x.
fn place(coordinates: Coordinates, o: f64, input: f64, output: f64, scale: f64) -> Option<f64> {
    // ONNX reckons with the width before it is rounded down.
    let width = scale * input;
    Some(match coordinates {
        Coordinates::HalfPixel => (o + 0.5) / scale - 0.5,
        Coordinates::HalfPixelSymmetric => input / 2.0 * (1.0 - output / width) + (o + 0.5) / scale - 0.5,
        Coordinates::PytorchHalfPixel if width == 1.0 => -0.5,
        Coordinates::PytorchHalfPixel => (o + 0.5) / scale - 0.5,
        Coordinates::TfHalfPixelForNearest => (o + 0.5) / scale,
        Coordinates::AlignCorners if width == 1.0 => 0.0,
        Coordinates::AlignCorners => o * (input - 1.0) / (width - 1.0),
        Coordinates::Asymmetric => o / scale,
        Coordinates::Crop(start, end) => {
            let part = (end - start) * (input - 1.0);
            let along = if width == 1.0 { part / 2.0 } else { o * part / (width - 1.0) };
            let u = along + start * (input - 1.0);
            return (0.0..=input - 1.0).contains(&u).then_some(u);
        }
    })
}

/// Appends the taps at `u`.
fn push_taps(rule: &Rule, u: f64, input: usize, scale: f64, taps: &mut Vec<(usize, f32)>) {
    let clamp = |i: f64| i.clamp(0.0, input as f64 - 1.0) as usize;
    let left = u.floor();
    // A place on a value counts as right beside the value before it.
    let ratio = if u == left { 1.0 } else { u - left };
    let shrink = scale.min(1.0);
    let (mut weights, antialias): (Vec<f64>, bool) = match rule.interpolation {
        Interpolation::Nearest(rounding) => {
            let right = match rounding {
                Rounding::PreferFloor => ratio > 0.5,
                Rounding::PreferCeil => ratio >= 0.5,
                Rounding::Floor => false,
                Rounding::Ceil => true,
            };
            let nearest = if u != left && right { left + 1.0 } else { left };
            taps.push((clamp(nearest), 1.0));
            return;
        }
        Interpolation::Linear if rule.antialias => {
            let start = (-1.0 / shrink).floor() + 1.0;
            let count = (2.0 - 2.0 * start) as usize;
            ((0..count).map(|i| (1.0 - ((start + i as f64 - ratio) * shrink).abs()).max(0.0)).collect(), true)
        }
        Interpolation::Linear => (vec![1.0 - ratio, ratio], false),
        Interpolation::Cubic { a } if rule.antialias => {
            let start = (-2.0 / shrink).floor() + 1.0;
            let count = (2.0 - 2.0 * start) as usize;
            ((0..count).map(|i| cubic(a, (start + i as f64 - ratio) * shrink)).collect(), true)
        }
        Interpolation::Cubic { a } => {
            ([ratio + 1.0, ratio, 1.0 - ratio, 2.0 - ratio].map(|distance| cubic(a, distance)).to_vec(), false)
        }
    };
    let normalise = |weights: &mut Vec<f64>| {
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
    };
    if antialias {
        normalise(&mut weights);
    }
    let half = (weights.len() / 2) as f64;
    let start = left - half + if u == left { 0.0 } else { 1.0 };
    let at = |i: usize| start + i as f64;
    if rule.exclude_outside {
        for (i, weight) in weights.iter_mut().enumerate() {
            if at(i) < 0.0 || at(i) >= input as f64 {
                *weight = 0.0;
            }
        }
        normalise(&mut weights);
    }
    let first = taps.len();
    let mut exact: Vec<(usize, f64)> = Vec::new();
    for (i, weight) in weights.into_iter().enumerate() {
        let index = clamp(at(i));
        match exact.last_mut() {
            Some((last, sum)) if *last == index => *sum += weight,
            _ => exact.push((index, weight)),
        }
    }
    taps.extend(exact.into_iter().map(|(index, weight)| (index, weight as f32)).filter(|(_, w)| *w != 0.0));
    debug_assert!(taps[first..].iter().all(|(index, _)| *index < input));
}

/// Keys' kernel at `distance`.
fn cubic(a: f64, distance: f64) -> f64 {
    let d = distance.abs();
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    } else {
        0.0
    }
}

/// A map along one axis of `[outer, input, inner]`.
#[derive(Clone, Debug)]
struct Pass {
    outer: usize,
    inner: usize,
    map: AxisMap,
}

impl Pass {
    fn output_len(&self) -> usize {
        self.outer * self.map.output() * self.inner
    }

    /// y = M x.
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let inner = self.inner;
        y.fill(0.0);
        for at in 0..self.outer {
            let x = &x[at * self.map.input * inner..];
            for o in 0..self.map.output() {
                let y = &mut y[(at * self.map.output() + o) * inner..][..inner];
                for (i, weight) in self.map.of(o) {
                    y.iter_mut().zip(&x[i * inner..][..inner]).for_each(|(y, x)| *y += weight * x);
                }
            }
        }
    }

    /// dx += Mᵀ dy.
    fn transpose(&self, dy: &[f32], dx: &mut [f32]) {
        let inner = self.inner;
        for at in 0..self.outer {
            let dx = &mut dx[at * self.map.input * inner..];
            for o in 0..self.map.output() {
                let dy = &dy[(at * self.map.output() + o) * inner..][..inner];
                for (i, weight) in self.map.of(o) {
                    dx[i * inner..][..inner].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += weight * dy);
                }
            }
        }
    }
}

/// A resize of a row-major tensor.
#[derive(Clone, Debug)]
pub struct Resize {
    output_len: usize,
    passes: Vec<Pass>,
    /// What stands where y has no place in x, and where that is.
    fill: f32,
    outside: Vec<usize>,
}

impl Resize {
    /// The maps go along these axes of `shape`, each at most once; `fill` stands where y has no place in x.
    pub fn new(shape: &[usize], maps: &[(usize, AxisMap)], fill: f32) -> Self {
        let mut sizes = shape.to_vec();
        let mut passes = Vec::new();
        for (axis, map) in maps.iter().filter(|(_, map)| !map.is_identity()) {
            debug_assert_eq!(sizes[*axis], map.input);
            let (outer, inner) = (sizes[..*axis].iter().product(), sizes[axis + 1..].iter().product());
            sizes[*axis] = map.output();
            passes.push(Pass { outer, inner, map: map.clone() });
        }
        let output_len = sizes.iter().product();
        let mut outside = Vec::new();
        for (axis, map) in maps {
            let inner: usize = sizes[axis + 1..].iter().product();
            let is_outside = |i: &usize| map.of(i / inner % map.output()).is_empty();
            if (0..map.output()).any(|o| map.of(o).is_empty()) {
                outside.extend((0..output_len).filter(is_outside));
            }
        }
        Self { output_len, passes, fill, outside }
    }

    /// The largest of what lies between two passes.
    fn between(&self) -> usize {
        self.passes.iter().rev().skip(1).map(Pass::output_len).max().unwrap_or(0)
    }
}

impl Operator for Resize {
    fn output_len(&self) -> usize {
        self.output_len
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward_work(&self) -> usize {
        2 * self.between()
    }

    fn vjp_work(&self) -> usize {
        2 * self.between()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], work: &mut [f32]) {
        let x = x[0];
        let (mut from, mut to) = work.split_at_mut(self.between());
        match self.passes.as_slice() {
            [] => y.copy_from_slice(x),
            [only] => only.forward(x, y),
            [first, middle @ .., last] => {
                first.forward(x, &mut from[..first.output_len()]);
                for pass in middle {
                    pass.forward(from, &mut to[..pass.output_len()]);
                    std::mem::swap(&mut from, &mut to);
                }
                last.forward(from, y);
            }
        }
        self.outside.iter().for_each(|i| y[*i] = self.fill);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        let (mut from, mut to) = work.split_at_mut(self.between());
        let passes = self.passes.as_slice();
        match passes {
            [] => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy),
            [only] => only.transpose(dy, dx),
            [first, middle @ .., last] => {
                let before = |i: usize| passes[i].output_len();
                let len = before(middle.len());
                from[..len].fill(0.0);
                last.transpose(dy, &mut from[..len]);
                for (i, pass) in middle.iter().enumerate().rev() {
                    to[..before(i)].fill(0.0);
                    pass.transpose(from, &mut to[..before(i)]);
                    std::mem::swap(&mut from, &mut to);
                }
                first.transpose(from, dx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, indices, values};
    use super::*;

    const RULE: Rule = Rule {
        interpolation: Interpolation::Linear,
        coordinates: Coordinates::HalfPixel,
        exclude_outside: false,
        antialias: false,
    };

    const COORDINATES: [Coordinates; 8] = [
        Coordinates::HalfPixel,
        Coordinates::HalfPixelSymmetric,
        Coordinates::PytorchHalfPixel,
        Coordinates::TfHalfPixelForNearest,
        Coordinates::AlignCorners,
        Coordinates::Asymmetric,
        Coordinates::Crop(0.2, 0.7),
        Coordinates::Crop(-0.3, 1.2),
    ];

    /// A value of the interpolation written as one formula: Σ over all i of kernel(i − u), x at the border outside.
    fn sample(rule: &Rule, x: &[f64], u: f64, scale: f64) -> f64 {
        let n = x.len() as i64;
        let at = |i: i64| x[i.clamp(0, n - 1) as usize];
        let shrink = if rule.antialias { scale.min(1.0) } else { 1.0 };
        let kernel = |d: f64| match rule.interpolation {
            Interpolation::Cubic { a } => {
                let d = (d * shrink).abs();
                match d {
                    d if d <= 1.0 => (a + 2.0) * d.powi(3) - (a + 3.0) * d.powi(2) + 1.0,
                    d if d < 2.0 => a * d.powi(3) - 5.0 * a * d.powi(2) + 8.0 * a * d - 4.0 * a,
                    _ => 0.0,
                }
            }
            _ => (1.0 - (d * shrink).abs()).max(0.0),
        };
        if let Interpolation::Nearest(rounding) = rule.interpolation {
            let i = match rounding {
                Rounding::PreferFloor => (u - 0.5).ceil(),
                Rounding::PreferCeil => (u + 0.5).floor(),
                Rounding::Floor => u.floor(),
                Rounding::Ceil => u.ceil(),
            };
            return at(i as i64);
        }
        let reach = -20..n + 20;
        let counted = |i: &i64| !rule.exclude_outside || (0..n).contains(i);
        let weight: f64 = reach.clone().filter(counted).map(|i| kernel(i as f64 - u)).sum();
        reach.filter(counted).map(|i| kernel(i as f64 - u) * at(i)).sum::<f64>() / weight
    }

    fn check(rule: &Rule, shape: &[usize], resized: &[(usize, usize, f64)]) {
        let fill = 2.5;
        let maps: Vec<(usize, AxisMap)> = resized
            .iter()
            .map(|(axis, output, scale)| (*axis, AxisMap::new(rule, shape[*axis], *output, *scale)))
            .collect();
        let op = Resize::new(shape, &maps, fill);
        let oracle = |x: &[Vec<f64>]| {
            let (mut values, mut sizes) = (x[0].clone(), shape.to_vec());
            for (axis, output, scale) in resized {
                let (from, mut to) = (sizes.clone(), sizes.clone());
                to[*axis] = *output;
                let inner: usize = from[axis + 1..].iter().product();
                let y = indices(&to).into_iter().map(|index| {
                    let flat =
                        |sizes: &[usize], index: &[usize]| index.iter().zip(sizes).fold(0, |at, (i, n)| at * n + i);
                    let mut first = index.clone();
                    first[*axis] = 0;
                    let start = flat(&from, &first);
                    let line: Vec<f64> = (0..from[*axis]).map(|i| values[start + i * inner]).collect();
                    let (o, n) = (index[*axis] as f64, from[*axis] as f64);
                    match place(rule.coordinates, o, n, *output as f64, *scale) {
                        Some(u) => sample(rule, &line, u, *scale),
                        None => f64::NAN,
                    }
                });
                values = y.collect();
                sizes = to;
            }
            values.into_iter().map(|v| if v.is_nan() { fill.into() } else { v }).collect()
        };
        let x = values(3, shape.iter().product());
        Case { op: &op, x: vec![x], oracle: &oracle }.run();
    }

    #[test]
    fn agrees_with_the_oracle_for_every_mode() {
        let interpolations = [
            Interpolation::Nearest(Rounding::PreferFloor),
            Interpolation::Nearest(Rounding::PreferCeil),
            Interpolation::Nearest(Rounding::Floor),
            Interpolation::Nearest(Rounding::Ceil),
            Interpolation::Linear,
            Interpolation::Cubic { a: -0.75 },
            Interpolation::Cubic { a: -0.5 },
        ];
        for interpolation in interpolations {
            for coordinates in COORDINATES {
                for exclude_outside in [false, true] {
                    let rule = Rule { interpolation, coordinates, exclude_outside, antialias: false };
                    check(&rule, &[2, 5, 3, 2], &[(1, 9, 9.0 / 5.0), (2, 2, 0.8)]);
                    check(&rule, &[7], &[(0, 3, 0.45)]);
                }
            }
        }
    }

    #[test]
    fn antialias_widens_the_kernel() {
        for interpolation in [Interpolation::Linear, Interpolation::Cubic { a: -0.75 }] {
            for exclude_outside in [false, true] {
                let rule = Rule { interpolation, exclude_outside, antialias: true, ..RULE };
                check(&rule, &[2, 9, 7], &[(1, 4, 4.0 / 9.0), (2, 3, 0.5)]);
                check(&rule, &[3, 4], &[(1, 9, 9.0 / 4.0)]);
            }
        }
    }

    #[test]
    fn three_axes_no_axis_and_empty_tensors() {
        check(&RULE, &[3, 4, 5], &[(0, 5, 5.0 / 3.0), (1, 2, 0.5), (2, 5, 1.0)]);
        check(&RULE, &[3, 4, 5, 2], &[(0, 5, 5.0 / 3.0), (1, 2, 0.5), (2, 7, 1.4), (3, 3, 1.5)]);
        check(&RULE, &[3, 4], &[]);
        check(&RULE, &[0, 4], &[(1, 8, 2.0)]);
        check(&RULE, &[3, 4], &[(1, 0, 0.1)]);
    }

    #[test]
    fn coordinates_of_the_specification() {
        let u = |coordinates, o, input: f64, output, scale| place(coordinates, o, input, output, scale).unwrap();
        assert_eq!(u(Coordinates::HalfPixel, 1.0, 4.0, 8.0, 2.0), 0.25);
        assert_eq!(u(Coordinates::AlignCorners, 7.0, 4.0, 8.0, 2.0), 3.0);
        assert_eq!(u(Coordinates::Asymmetric, 3.0, 4.0, 8.0, 2.0), 1.5);
        assert_eq!(u(Coordinates::PytorchHalfPixel, 0.0, 4.0, 1.0, 0.25), -0.5);
        assert_eq!(place(Coordinates::Crop(-1.0, 1.0), 0.0, 4.0, 8.0, 2.0), None);
    }
}
