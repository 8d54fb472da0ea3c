//! Elementwise functions of two operands with numpy broadcasting.
//!
//! | kind | y | da += dy · | db += dy · | kept |
//! |---|---|---|---|---|
//! | Add | a + b | 1 | 1 | |
//! | Sub | a − b | 1 | −1 | |
//! | Mul | a · b | b | a | the other operand |
//! | Div | a / b | 1 / b | −a / b² | b; a for db |
//! | Max, Min | the larger, the smaller | 1 where taken, ½ at a tie | the same | both |
//! | PRelu | a for a > 0, else ab | 1, b | 0, a | both |
//! | Pow | aᵇ | b aᵇ⁻¹, 0 for b = 0 | aᵇ ln a, 0 for a = 0 and b ≥ 0 | both |
//!
//! Formulas: ONNX operators of the same names, "Multidirectional broadcasting"; ties, and Pow at its edges, as in
//! PyTorch (`torch.maximum`, `torch.pow`). A constant operand has no gradient and is never kept. Max and Min give not
//! a number if either operand is; then neither has a gradient.
//!
//! Shapes are padded on the left with 1 to one rank. The gradient of a broadcast operand is the sum over where it went,
//! in row-major order of the output.

use std::ops::Range;
use std::sync::Arc;

use super::movement::{Dim, collapse, strides, walk};
use super::rows::{Part, RowWindow, scaled};
use super::{Keeps, Operator};

/// Partial sums of a row that is reduced to one value.
const LANES: usize = 16;

/// Which function; see the table at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BinaryKind {
    /// a + b.
    Add,
    /// a − b.
    Sub,
    /// a · b.
    Mul,
    /// a / b.
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
    /// a to the power of b.
    Pow,
    /// a where it is positive, else a · b.
    PRelu,
}

/// A function of two activations, or of an activation and a constant.
#[derive(Clone, Debug)]
pub struct Binary {
    kind: BinaryKind,
    output_shape: Vec<usize>,
    /// Loops around the row; operands a and b.
    outer: Vec<Dim<2>>,
    /// Output values in a row.
    row: usize,
    /// Whether a and b vary along the row; else they stand still. At least one varies.
    varies: [bool; 2],
    /// The constant operand: which one, and its values.
    constant: Option<(usize, Arc<[f32]>)>,
}

impl Binary {
    /// Of two activations.
    pub fn new(kind: BinaryKind, a_shape: &[usize], b_shape: &[usize]) -> Self {
        let rank = a_shape.len().max(b_shape.len());
        let size = |shape: &[usize], d: usize| (d + shape.len()).checked_sub(rank).map_or(1, |d| shape[d]);
        let stride = |shape: &[usize], d: usize| match size(shape, d) {
            1 => 0,
            _ => strides(shape)[d + shape.len() - rank],
        };
        let output_shape: Vec<usize> = (0..rank)
            .map(|d| match (size(a_shape, d), size(b_shape, d)) {
                (1, b) => b,
                (a, _b) => {
                    debug_assert!(_b == 1 || _b == a, "{a_shape:?} and {b_shape:?} do not broadcast");
                    a
                }
            })
            .collect();
        let mut outer = collapse(
            (0..rank).map(|d| Dim { size: output_shape[d], strides: [stride(a_shape, d), stride(b_shape, d)] }),
        );
        let (row, varies) = match outer.pop() {
            Some(last) => (last.size, last.strides.map(|stride| stride != 0)),
            None => (1, [true, true]),
        };
        Self { kind, output_shape, outer, row, varies, constant: None }
    }

    /// Of an activation and a constant, which is the first operand if `constant_first`.
    pub fn with_constant(
        kind: BinaryKind,
        x_shape: &[usize],
        constant: Arc<[f32]>,
        constant_shape: &[usize],
        constant_first: bool,
    ) -> Self {
        debug_assert!(constant.len() == constant_shape.iter().product::<usize>());
        let binary = match constant_first {
            true => Self::new(kind, constant_shape, x_shape),
            false => Self::new(kind, x_shape, constant_shape),
        };
        Self { constant: Some((usize::from(!constant_first), constant)), ..binary }
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn operands<'a>(&'a self, x: &[&'a [f32]]) -> [&'a [f32]; 2] {
        match &self.constant {
            None => [x[0], x[1]],
            Some((0, constant)) => [constant, x[0]],
            Some((_, constant)) => [x[0], constant],
        }
    }

    /// The operator on `part` of `rows` rows; none where an activation is the same for all rows, or a constant is not.
    fn cut(&self, rows: usize, part: usize) -> Option<Self> {
        let moves = match self.outer.first() {
            Some(dim) => dim.strides.map(|stride| stride != 0),
            None => self.varies,
        };
        if (0..2).any(|side| moves[side] != self.input(side).is_some()) {
            return None;
        }
        let mut cut = self.clone();
        match cut.outer.first_mut() {
            Some(dim) => dim.size = scaled(dim.size, rows, part)?,
            None => cut.row = scaled(cut.row, rows, part)?,
        }
        cut.output_shape = vec![scaled(self.output_shape.iter().product(), rows, part)?];
        Some(cut)
    }

    /// The input that operand `side` is; none if it is the constant.
    fn input(&self, side: usize) -> Option<usize> {
        match self.constant {
            None => Some(side),
            Some((constant, _)) => (constant != side).then_some(0),
        }
    }

    fn map(&self, operands: [&[f32]; 2], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
        match self.varies {
            [true, true] => self.map_rows::<true, true>(operands, y, f),
            [true, false] => self.map_rows::<true, false>(operands, y, f),
            [false, _] => self.map_rows::<false, true>(operands, y, f),
        }
    }

    /// y = f(a, b), `A` and `B` saying which operand varies along the row.
    fn map_rows<const A: bool, const B: bool>(&self, [a, b]: [&[f32]; 2], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
        let n = self.row;
        let mut rows = y.chunks_exact_mut(n);
        walk(&self.outer, [0; 2], &mut |[ao, bo]| {
            let Some(y) = rows.next() else { return };
            let (a, b) = (row::<A>(a, ao, n), row::<B>(b, bo, n));
            for (i, y) in y.iter_mut().enumerate() {
                *y = f(at::<A>(a, i), at::<B>(b, i));
            }
        });
    }

    fn pull(&self, side: usize, operands: [&[f32]; 2], dy: &[f32], d: &mut [f32], f: impl Fn(f32, f32, f32) -> f32) {
        match (self.varies, side) {
            ([true, true], 0) => self.pull_rows::<true, true, 0>(operands, dy, d, f),
            ([true, true], _) => self.pull_rows::<true, true, 1>(operands, dy, d, f),
            ([true, false], 0) => self.pull_rows::<true, false, 0>(operands, dy, d, f),
            ([true, false], _) => self.pull_rows::<true, false, 1>(operands, dy, d, f),
            ([false, _], 0) => self.pull_rows::<false, true, 0>(operands, dy, d, f),
            ([false, _], _) => self.pull_rows::<false, true, 1>(operands, dy, d, f),
        }
    }

    /// d += Σ f(dy, a, b) for the operand `SIDE`.
    fn pull_rows<const A: bool, const B: bool, const SIDE: usize>(
        &self,
        [a, b]: [&[f32]; 2],
        dy: &[f32],
        d: &mut [f32],
        f: impl Fn(f32, f32, f32) -> f32,
    ) {
        let n = self.row;
        let mut rows = dy.chunks_exact(n);
        walk(&self.outer, [0; 2], &mut |[ao, bo]| {
            let Some(dy) = rows.next() else { return };
            let (a, b) = (row::<A>(a, ao, n), row::<B>(b, bo, n));
            let (varies, to) = if SIDE == 0 { (A, ao) } else { (B, bo) };
            if varies {
                for (i, (d, dy)) in d[to..to + n].iter_mut().zip(dy).enumerate() {
                    *d += f(*dy, at::<A>(a, i), at::<B>(b, i));
                }
            } else {
                let mut sums = [0.0; LANES];
                for (first, dy) in (0..n).step_by(LANES).zip(dy.chunks(LANES)) {
                    for (l, (sum, dy)) in sums.iter_mut().zip(dy).enumerate() {
                        *sum += f(*dy, at::<A>(a, first + l), at::<B>(b, first + l));
                    }
                }
                d[to] += sums.iter().sum::<f32>();
            }
        });
    }
}

#[inline(always)]
fn row<const VARIES: bool>(values: &[f32], from: usize, n: usize) -> &[f32] {
    &values[from..from + if VARIES { n } else { 1 }]
}

#[inline(always)]
fn at<const VARIES: bool>(row: &[f32], i: usize) -> f32 {
    row[if VARIES { i } else { 0 }]
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// dy if `a` won against `b`, half of it at a tie.
#[inline(always)]
fn share(dy: f32, wins: bool, ties: bool) -> f32 {
    if wins {
        dy
    } else if ties {
        0.5 * dy
    } else {
        0.0
    }
}

#[inline(always)]
fn pow(a: f32, b: f32) -> f32 {
    if b == 2.0 { a * a } else { a.powf(b) }
}

impl Operator for Binary {
    fn output_len(&self) -> usize {
        self.output_shape.iter().product()
    }

    fn keeps(&self) -> Keeps {
        let wanted = [self.input(0).is_some(), self.input(1).is_some()];
        let needed = match self.kind {
            BinaryKind::Add | BinaryKind::Sub => [false, false],
            BinaryKind::Mul => [wanted[1], wanted[0]],
            BinaryKind::Div => [wanted[1], true],
            BinaryKind::Max | BinaryKind::Min | BinaryKind::Pow | BinaryKind::PRelu => [true, true],
        };
        let mut keeps = Keeps::default();
        for side in 0..2 {
            if let Some(input) = self.input(side) {
                keeps.x[input] = needed[side];
            }
        }
        keeps
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        if self.output_len() == 0 {
            return;
        }
        let operands = self.operands(x);
        match self.kind {
            BinaryKind::Add => self.map(operands, y, |a, b| a + b),
            BinaryKind::Sub => self.map(operands, y, |a, b| a - b),
            BinaryKind::Mul => self.map(operands, y, |a, b| a * b),
            BinaryKind::Div => self.map(operands, y, |a, b| a / b),
            BinaryKind::Max => self.map(operands, y, max),
            BinaryKind::Min => self.map(operands, y, min),
            BinaryKind::Pow => self.map(operands, y, pow),
            BinaryKind::PRelu => self.map(operands, y, |a, b| if a > 0.0 { a } else { a * b }),
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
        if self.output_len() == 0 {
            return;
        }
        let dy = &*dy;
        // An operand that is not kept is not needed: dy, which is at least as long, stands in for it and is not read.
        let operands = self.operands(x).map(|operand| if operand.is_empty() { dy } else { operand });
        for side in 0..2 {
            let Some(d) = self.input(side).and_then(|input| dx[input].as_deref_mut()) else { continue };
            match (self.kind, side) {
                (BinaryKind::Add, _) | (BinaryKind::Sub, 0) => self.pull(side, operands, dy, d, |dy, _, _| dy),
                (BinaryKind::Sub, _) => self.pull(side, operands, dy, d, |dy, _, _| -dy),
                (BinaryKind::Mul, 0) => self.pull(side, operands, dy, d, |dy, _, b| dy * b),
                (BinaryKind::Mul, _) => self.pull(side, operands, dy, d, |dy, a, _| dy * a),
                (BinaryKind::Div, 0) => self.pull(side, operands, dy, d, |dy, _, b| dy / b),
                (BinaryKind::Div, _) => self.pull(side, operands, dy, d, |dy, a, b| -dy * (a / b) / b),
                (BinaryKind::Max, 0) | (BinaryKind::Min, 1) => {
                    self.pull(side, operands, dy, d, |dy, a, b| share(dy, a > b, a == b));
                }
                (BinaryKind::Max, _) | (BinaryKind::Min, _) => {
                    self.pull(side, operands, dy, d, |dy, a, b| share(dy, a < b, a == b));
                }
                (BinaryKind::PRelu, 0) => {
                    self.pull(side, operands, dy, d, |dy, a, b| if a > 0.0 { dy } else { dy * b })
                }
                (BinaryKind::PRelu, _) => {
                    self.pull(side, operands, dy, d, |dy, a, _| if a > 0.0 { 0.0 } else { dy * a })
                }
                (BinaryKind::Pow, 0) => {
                    self.pull(side, operands, dy, d, |dy, a, b| if b == 0.0 { 0.0 } else { dy * b * pow(a, b - 1.0) });
                }
                (BinaryKind::Pow, _) => {
                    self.pull(
                        side,
                        operands,
                        dy,
                        d,
                        |dy, a, b| {
                            if a == 0.0 && b >= 0.0 { 0.0 } else { dy * pow(a, b) * a.ln() }
                        },
                    )
                }
            }
        }
    }

    fn row_window(&self, rows: usize) -> Option<RowWindow> {
        self.cut(rows, rows).map(|_| RowWindow::each(rows))
    }

    fn part(&self, rows: usize, range: Range<usize>) -> Part {
        Some(Arc::new(self.cut(rows, range.len())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, KINK_MARGIN, away_from, bits, indices, offset, values, values_in};
    use super::*;

    const KINDS: [BinaryKind; 8] = [
        BinaryKind::Add,
        BinaryKind::Sub,
        BinaryKind::Mul,
        BinaryKind::Div,
        BinaryKind::Max,
        BinaryKind::Min,
        BinaryKind::Pow,
        BinaryKind::PRelu,
    ];

    /// Pairs of shapes: each position of a broadcast, on either side, for ranks 0 to 5.
    const SHAPES: [(&[usize], &[usize]); 26] = [
        (&[], &[]),
        (&[1], &[]),
        (&[0], &[1]),
        (&[37], &[37]),
        (&[37], &[]),
        (&[33], &[1]),
        (&[3, 5], &[5]),
        (&[3, 5], &[3, 1]),
        (&[3, 1], &[1, 5]),
        (&[3, 5], &[1, 1]),
        (&[0, 5], &[5]),
        (&[2, 0], &[2, 1]),
        (&[2, 3, 17], &[17]),
        (&[2, 3, 17], &[3, 17]),
        (&[2, 3, 17], &[2, 3, 1]),
        (&[2, 3, 17], &[2, 1, 17]),
        (&[2, 3, 17], &[2, 1, 1]),
        (&[2, 3, 17], &[1, 3, 1]),
        (&[2, 1, 5], &[3, 1]),
        (&[2, 3, 4, 5], &[2, 1, 4, 1]),
        (&[2, 3, 4, 5], &[3, 1, 5]),
        (&[1, 3, 1, 5], &[2, 1, 4, 1]),
        (&[2, 2, 2, 3, 2], &[2, 1, 2, 1, 2]),
        (&[2, 2, 2, 3, 2], &[2, 1, 3, 1]),
        (&[1, 2, 1, 3, 1], &[2, 1, 2, 1, 2]),
        (&[2, 1, 2, 1, 2, 1], &[1, 2, 1, 2, 1, 2]),
    ];

    fn oracle(kind: BinaryKind, a: f64, b: f64) -> f64 {
        match kind {
            BinaryKind::Add => a + b,
            BinaryKind::Sub => a - b,
            BinaryKind::Mul => a * b,
            BinaryKind::Div => a / b,
            BinaryKind::Max => a.max(b),
            BinaryKind::Min => a.min(b),
            BinaryKind::Pow => a.powf(b),
            BinaryKind::PRelu => a * if a > 0.0 { 1.0 } else { b },
        }
    }

    /// Operands inside the domain of `kind`; for Max and Min on two grids that never meet.
    fn operands(kind: BinaryKind, lens: [usize; 2]) -> [Vec<f32>; 2] {
        let grid = |seed, n, shift| {
            values(seed, n).into_iter().map(move |v| ((v * 20.0).round() + shift) * 4.0 * KINK_MARGIN).collect()
        };
        match kind {
            BinaryKind::Max | BinaryKind::Min => [grid(1, lens[0], 0.0), grid(2, lens[1], 0.5)],
            BinaryKind::Pow => [values_in(1, lens[0], 0.5, 1.5), values_in(2, lens[1], -1.5, 2.5)],
            BinaryKind::Div => [values_in(1, lens[0], -0.5, 1.5), values_in(2, lens[1], 0.5, 2.0)],
            _ => [away_from(values_in(1, lens[0], -0.5, 1.5), &[0.0]), values_in(2, lens[1], -0.5, 1.5)],
        }
    }

    #[test]
    fn agrees_with_the_oracle_for_every_broadcast() {
        let pairs = SHAPES.into_iter().chain(SHAPES.into_iter().map(|(a, b)| (b, a)));
        for (a_shape, b_shape) in pairs {
            for kind in KINDS {
                let [a, b] = operands(kind, [a_shape, b_shape].map(|shape| shape.iter().product()));
                let op = Binary::new(kind, a_shape, b_shape);
                let outputs = indices(op.output_shape());
                let oracle = |a: &[f64], b: &[f64]| {
                    let at = |i: &Vec<usize>| oracle(kind, a[offset(i, a_shape)], b[offset(i, b_shape)]);
                    outputs.iter().map(at).collect()
                };
                let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let (wide_a, wide_b) = (wide(&a), wide(&b));
                Case { op: &op, x: vec![a.clone(), b.clone()], oracle: &|x| oracle(&x[0], &x[1]) }.run();

                let constant: Arc<[f32]> = b.clone().into();
                let op = Binary::with_constant(kind, a_shape, constant, b_shape, false);
                Case { op: &op, x: vec![a.clone()], oracle: &|x| oracle(&x[0], &wide_b) }.run();

                let op = Binary::with_constant(kind, b_shape, a.into(), a_shape, true);
                Case { op: &op, x: vec![b], oracle: &|x| oracle(&wide_a, &x[0]) }.run();
            }
        }
    }

    fn both(kind: BinaryKind, a: &[f32], b: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let op = Binary::new(kind, &[a.len()], &[b.len()]);
        let (mut y, mut da, mut db) = (vec![0.0; a.len()], vec![0.0; a.len()], vec![0.0; a.len()]);
        op.forward(&[a, b], &mut y, &mut [], &mut []);
        op.vjp(&[a, b], &[], &[], &mut vec![1.0; a.len()], &mut [Some(&mut da), Some(&mut db)], &mut []);
        (y, da, db)
    }

    #[test]
    fn a_tie_is_split_and_not_a_number_passes() {
        let nan = f32::NAN;
        for kind in [BinaryKind::Max, BinaryKind::Min] {
            let (y, da, db) = both(kind, &[1.0, nan, 1.0, nan], &[1.0, 1.0, nan, nan]);
            assert_eq!(y[0], 1.0);
            assert!(y[1..].iter().all(|y| y.is_nan()));
            assert_eq!((da, db), (vec![0.5, 0.0, 0.0, 0.0], vec![0.5, 0.0, 0.0, 0.0]));
        }
    }

    #[test]
    fn pow_is_finite_at_its_edges() {
        let (y, da, db) = both(BinaryKind::Pow, &[0.0, 0.0, 0.0, -2.0, -3.0], &[0.0, 1.0, 2.0, 2.0, 3.0]);
        assert_eq!(y, [1.0, 0.0, 0.0, 4.0, -27.0]);
        assert_eq!(da, [0.0, 1.0, 0.0, -4.0, 27.0]);
        assert_eq!(db[..3], [0.0; 3]);
    }

    #[test]
    fn only_what_is_needed_is_kept() {
        let pair = |op: Binary| [op.keeps().x[0], op.keeps().x[1]];
        let keeps = |kind| pair(Binary::new(kind, &[3], &[3]));
        let with = |kind, first| pair(Binary::with_constant(kind, &[3], [1.0; 3].into(), &[3], first));
        assert_eq!((keeps(BinaryKind::Add), keeps(BinaryKind::Mul)), ([false; 2], [true; 2]));
        assert_eq!((with(BinaryKind::Mul, false), with(BinaryKind::Mul, true)), ([false; 2], [false; 2]));
        assert_eq!((with(BinaryKind::Div, false), with(BinaryKind::Div, true)), ([false; 2], [true, false]));
        assert_eq!(with(BinaryKind::Max, false), [true, false]);
    }

    #[test]
    fn a_repeated_run_gives_the_same_bits() {
        let (a, b) = (values(1, 6 * 35), values(2, 35));
        let op = Binary::new(BinaryKind::Mul, &[6, 35], &[35]);
        let run = || {
            let mut db = vec![0.0; 35];
            op.vjp(&[&a, &b], &[], &[], &mut values(3, 6 * 35), &mut [None, Some(&mut db)], &mut []);
            bits(&db)
        };
        assert_eq!(run(), run());
    }
}
