//! Operators that only move values: transpose, slice, pad, one part of a concatenation, copy, constant.
//!
//! Each output value is one input value or a constant, y\[o\] = x\[f(o)\]; so dx\[f(o)\] += dy\[o\]. Nothing is kept.
//! Formulas: ONNX Transpose, Slice, Pad, Concat, Identity. All shapes are physical and row-major.

use std::sync::Arc;

use super::{Keeps, Operator};

/// A loop over one dimension: how many steps, and how far each of `N` tensors moves with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dim<const N: usize> {
    /// Steps.
    pub(super) size: usize,
    /// Values that each tensor moves a step; 0 where it is broadcast or reduced.
    pub(super) strides: [isize; N],
}

/// The same loops with dimensions of size 1 dropped and neighbours joined where every tensor runs through both in one.
pub(super) fn collapse<const N: usize>(dims: impl IntoIterator<Item = Dim<N>>) -> Vec<Dim<N>> {
    let mut out: Vec<Dim<N>> = Vec::new();
    for dim in dims {
        if dim.size == 1 {
            continue;
        }
        match out.last_mut() {
            Some(last) if (0..N).all(|t| last.strides[t] == dim.strides[t] * dim.size as isize) => {
                *last = Dim { size: last.size * dim.size, strides: dim.strides };
            }
            _ => out.push(dim),
        }
    }
    out
}

/// Calls `f` with the offset of each tensor, in row-major order of the loops.
pub(super) fn walk<const N: usize, F: FnMut([usize; N])>(dims: &[Dim<N>], at: [usize; N], f: &mut F) {
    let Some((dim, rest)) = dims.split_first() else { return f(at) };
    for step in 0..dim.size {
        let mut at = at;
        for t in 0..N {
            at[t] = at[t].wrapping_add_signed(dim.strides[t].wrapping_mul(step as isize));
        }
        walk(rest, at, f);
    }
}

/// Row-major strides of `shape`.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d] as isize;
    }
    strides
}

/// y = x.
#[inline(always)]
fn copy(y: &mut [f32], x: &[f32]) {
    y.copy_from_slice(x);
}

/// dx += dy.
#[inline(always)]
fn add(dx: &mut [f32], dy: &[f32]) {
    for (dx, dy) in dx.iter_mut().zip(dy) {
        *dx += dy;
    }
}

/// Transposition: dimension i of y is dimension `perm[i]` of x.
#[derive(Clone, Debug)]
pub struct Permute {
    len: usize,
    /// Loops around the kernel; tensors x and y.
    outer: Vec<Dim<2>>,
    kernel: PermuteKernel,
}

#[derive(Clone, Copy, Debug)]
enum PermuteKernel {
    /// Values in one run in both tensors.
    Rows(usize),
    /// y\[r, c\] = x\[c, r\]: x moves by 1 with r, y by 1 with c.
    Transpose { rows: usize, columns: usize, x_column: usize, y_row: usize },
}

/// Side of the square that is transposed at once: 16 lines of 64 bytes each way stay in L1.
const BLOCK: usize = 16;

impl Permute {
    /// `shape` is that of x; `perm` has each of its dimensions once.
    pub fn new(shape: &[usize], perm: &[usize]) -> Self {
        debug_assert!(shape.len() == perm.len());
        let x_strides = strides(shape);
        let y_shape: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
        let y_strides = strides(&y_shape);
        let dims = perm.iter().enumerate();
        let mut outer = collapse(dims.map(|(i, p)| Dim { size: shape[*p], strides: [x_strides[*p], y_strides[i]] }));
        let kernel = match outer.pop() {
            None => PermuteKernel::Rows(1),
            Some(last) if last.strides[0] == 1 => PermuteKernel::Rows(last.size),
            Some(last) => match outer.iter().position(|dim| dim.strides[0] == 1) {
                Some(at) => {
                    let row = outer.remove(at);
                    PermuteKernel::Transpose {
                        rows: row.size,
                        columns: last.size,
                        x_column: last.strides[0] as usize,
                        y_row: row.strides[1] as usize,
                    }
                }
                // Only with a dimension of size 0, where nothing runs.
                None => PermuteKernel::Rows(0),
            },
        };
        Self { len: shape.iter().product(), outer, kernel }
    }
}

impl Operator for Permute {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        if self.len == 0 {
            return;
        }
        match self.kernel {
            PermuteKernel::Rows(n) => {
                walk(&self.outer, [0; 2], &mut |[xo, yo]| copy(&mut y[yo..yo + n], &x[xo..xo + n]));
            }
            PermuteKernel::Transpose { rows, columns, x_column, y_row } => {
                walk(&self.outer, [0; 2], &mut |[xo, yo]| {
                    if columns < BLOCK {
                        return few_columns(rows, columns, &x[xo..], x_column, &mut y[yo..], y_row);
                    }
                    blocks(rows, columns, |r, rn, c, cn| {
                        for r in r..r + rn {
                            let y = &mut y[yo + r * y_row + c..][..cn];
                            let x = x[xo + c * x_column + r..].iter().step_by(x_column);
                            for (y, x) in y.iter_mut().zip(x) {
                                *y = *x;
                            }
                        }
                    });
                });
            }
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        if self.len == 0 {
            return;
        }
        match self.kernel {
            PermuteKernel::Rows(n) => {
                walk(&self.outer, [0; 2], &mut |[xo, yo]| add(&mut dx[xo..xo + n], &dy[yo..yo + n]));
            }
            PermuteKernel::Transpose { rows, columns, x_column, y_row } => {
                walk(&self.outer, [0; 2], &mut |[xo, yo]| {
                    blocks(rows, columns, |r, rn, c, cn| {
                        for c in c..c + cn {
                            let dx = &mut dx[xo + c * x_column + r..][..rn];
                            let dy = dy[yo + r * y_row + c..].iter().step_by(y_row);
                            for (dx, dy) in dx.iter_mut().zip(dy) {
                                *dx += dy;
                            }
                        }
                    });
                });
            }
        }
    }
}

/// y\[r, c\] = x\[c, r\] for so few columns, as those of a picture's colours, that the inner loop runs along the rows.
fn few_columns(rows: usize, columns: usize, x: &[f32], x_column: usize, y: &mut [f32], y_row: usize) {
    for r in (0..rows).step_by(BLOCK * BLOCK) {
        let rows = (BLOCK * BLOCK).min(rows - r);
        for c in 0..columns {
            let y = y[r * y_row + c..].iter_mut().step_by(y_row);
            y.zip(&x[c * x_column + r..][..rows]).for_each(|(y, x)| *y = *x);
        }
    }
}

/// Calls `f(row, rows, column, columns)` for each block of a matrix.
#[inline(always)]
fn blocks(rows: usize, columns: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    for r in (0..rows).step_by(BLOCK) {
        for c in (0..columns).step_by(BLOCK) {
            f(r, BLOCK.min(rows - r), c, BLOCK.min(columns - c));
        }
    }
}

/// A slice with steps: y\[i, …\] = x\[start + i · step, …\].
#[derive(Clone, Debug)]
pub struct Slice {
    len: usize,
    start: usize,
    /// Loops around the row; tensors x and y.
    outer: Vec<Dim<2>>,
    row: usize,
    /// Values that x moves a value of the row.
    step: isize,
}

impl Slice {
    /// One start, step and output size for each dimension of x; starts are resolved (not negative), steps not 0.
    pub fn new(shape: &[usize], starts: &[usize], steps: &[isize], out_shape: &[usize]) -> Self {
        debug_assert!(shape.len() == starts.len() && shape.len() == steps.len() && shape.len() == out_shape.len());
        let (x_strides, y_strides) = (strides(shape), strides(out_shape));
        let mut outer = collapse(
            (0..shape.len()).map(|d| Dim { size: out_shape[d], strides: [x_strides[d] * steps[d], y_strides[d]] }),
        );
        let (row, step) = outer.pop().map_or((1, 1), |last| (last.size, last.strides[0]));
        let start = starts.iter().zip(&x_strides).map(|(start, stride)| start * *stride as usize).sum();
        Self { len: out_shape.iter().product(), start, outer, row, step }
    }
}

impl Operator for Slice {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let (x, n) = (x[0], self.row);
        if self.len == 0 {
            return;
        }
        walk(&self.outer, [self.start, 0], &mut |[xo, yo]| {
            if self.step == 1 {
                copy(&mut y[yo..yo + n], &x[xo..xo + n]);
            } else {
                for (i, y) in y[yo..yo + n].iter_mut().enumerate() {
                    *y = x[xo.wrapping_add_signed(i as isize * self.step)];
                }
            }
        });
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        if self.len == 0 {
            return;
        }
        let n = self.row;
        walk(&self.outer, [self.start, 0], &mut |[xo, yo]| {
            if self.step == 1 {
                add(&mut dx[xo..xo + n], &dy[yo..yo + n]);
            } else {
                for (i, dy) in dy[yo..yo + n].iter().enumerate() {
                    dx[xo.wrapping_add_signed(i as isize * self.step)] += dy;
                }
            }
        });
    }
}

/// What stands in the padding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PadMode {
    /// A value.
    Constant(f32),
    /// The input mirrored at its first and last value, which are not repeated.
    Reflect,
    /// The first or last value.
    Edge,
    /// The input again from its other end.
    Wrap,
}

/// Padding; a negative pad crops, and does so before anything is mirrored or repeated.
#[derive(Clone, Debug)]
pub struct Pad {
    output_shape: Vec<usize>,
    /// Value of the constant mode.
    value: f32,
    /// The dimensions up to the last padded one.
    dims: Vec<PadDim>,
    /// Values in the dimensions behind, which move together.
    inner: usize,
}

#[derive(Clone, Debug)]
struct PadDim {
    /// Values of x a step.
    x_stride: usize,
    /// Values of y a step.
    y_stride: usize,
    /// The positions of y that are a run of x, with the position where the run starts in x.
    run: std::ops::Range<usize>,
    run_from: usize,
    /// The position in x of each position of y; `None` is the constant.
    from: Vec<Option<usize>>,
}

impl Pad {
    /// One pad before and after for each dimension of x.
    pub fn new(shape: &[usize], before: &[isize], after: &[isize], mode: PadMode) -> Self {
        debug_assert!(shape.len() == before.len() && shape.len() == after.len());
        let padded = (0..shape.len()).rfind(|d| before[*d] != 0 || after[*d] != 0).map_or(0, |d| d + 1);
        let output_shape: Vec<usize> = (0..shape.len())
            .map(|d| shape[d].saturating_add_signed(before[d]).saturating_add_signed(after[d]))
            .collect();
        let (x_strides, y_strides) = (strides(shape), strides(&output_shape));
        let dims = (0..padded).map(|d| PadDim {
            x_stride: x_strides[d] as usize,
            y_stride: y_strides[d] as usize,
            ..PadDim::new(shape[d], before[d], after[d], output_shape[d], mode)
        });
        Self {
            dims: dims.collect(),
            value: if let PadMode::Constant(value) = mode { value } else { 0.0 },
            inner: shape[padded..].iter().product(),
            output_shape,
        }
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// Calls `f(x_from, y_from, n)` for each run of n values; no x where the constant stands.
    fn runs<F: FnMut(Option<usize>, usize, usize)>(&self, dims: &[PadDim], xo: Option<usize>, yo: usize, f: &mut F) {
        let Some((dim, rest)) = dims.split_first() else { return f(xo, yo, self.inner) };
        let mut o = 0;
        while o < dim.from.len() {
            let yo = yo + o * dim.y_stride;
            match xo {
                Some(xo) if rest.is_empty() && o == dim.run.start && !dim.run.is_empty() => {
                    f(Some(xo + dim.run_from * dim.x_stride), yo, dim.run.len() * self.inner);
                    o = dim.run.end;
                }
                _ => {
                    let xo = xo.zip(dim.from[o]).map(|(xo, from)| xo + from * dim.x_stride);
                    self.runs(rest, xo, yo, f);
                    o += 1;
                }
            }
        }
    }
}

impl PadDim {
    fn new(size: usize, before: isize, after: isize, output: usize, mode: PadMode) -> Self {
        let cut = before.min(0).unsigned_abs();
        let kept = size.saturating_sub(cut + after.min(0).unsigned_abs());
        let pad = before.max(0);
        let last = kept as isize - 1;
        let from = |o: usize| {
            let i = o as isize - pad;
            let i = match mode {
                _ if last < 0 => return None,
                _ if (0..=last).contains(&i) => i,
                PadMode::Constant(_) => return None,
                PadMode::Edge => i.clamp(0, last),
                PadMode::Wrap => i.rem_euclid(last + 1),
                PadMode::Reflect if last == 0 => 0,
                PadMode::Reflect => last - (i.rem_euclid(2 * last) - last).abs(),
            };
            Some(i as usize + cut)
        };
        let start = pad as usize;
        Self {
            x_stride: 1,
            y_stride: 1,
            run: start.min(output)..(start + kept).min(output),
            run_from: cut,
            from: (0..output).map(from).collect(),
        }
    }
}

impl Operator for Pad {
    fn output_len(&self) -> usize {
        self.output_shape.iter().product()
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let x = x[0];
        self.runs(&self.dims, Some(0), 0, &mut |xo, yo, n| match xo {
            Some(xo) => copy(&mut y[yo..yo + n], &x[xo..xo + n]),
            None => y[yo..yo + n].fill(self.value),
        });
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        self.runs(&self.dims, Some(0), 0, &mut |xo, yo, n| {
            if let Some(xo) = xo {
                add(&mut dx[xo..xo + n], &dy[yo..yo + n]);
            }
        });
    }
}

/// One part of a concatenation: the input is the part, the output the whole.
///
/// Unlike every other operator, `forward` writes **only its own region** of `y` and leaves the rest to the other parts,
/// and `vjp` reads (and overwrites) nothing of `dy` outside that region: a concatenation of n parts is n operators
/// on the same `y` and the same `dy`.
#[derive(Clone, Debug)]
pub struct Place {
    outer: usize,
    /// Values between the starts of two rows of the whole.
    whole: usize,
    /// Values of the whole before the part.
    before: usize,
    /// Values in a row of the part.
    part: usize,
}

impl Place {
    /// The part takes `len_along_axis` positions of `axis` from `offset` on.
    pub fn new(output_shape: &[usize], axis: usize, offset: usize, len_along_axis: usize) -> Self {
        debug_assert!(offset + len_along_axis <= output_shape[axis]);
        let inner: usize = output_shape[axis + 1..].iter().product();
        Self {
            outer: output_shape[..axis].iter().product(),
            whole: output_shape[axis] * inner,
            before: offset * inner,
            part: len_along_axis * inner,
        }
    }
}

impl Operator for Place {
    fn output_len(&self) -> usize {
        self.outer * self.whole
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        for row in 0..self.outer {
            let y = &mut y[row * self.whole + self.before..][..self.part];
            copy(y, &x[0][row * self.part..][..self.part]);
        }
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let Some(dx) = dx[0].as_deref_mut() else { return };
        for row in 0..self.outer {
            let dy = &dy[row * self.whole + self.before..][..self.part];
            add(&mut dx[row * self.part..][..self.part], dy);
        }
    }
}

/// y = x, for a reshape whose buffer cannot be shared.
#[derive(Clone, Debug)]
pub struct Copy {
    len: usize,
}

impl Copy {
    /// A copy of `len` values.
    pub fn new(len: usize) -> Self {
        Self { len }
    }
}

impl Operator for Copy {
    fn output_len(&self) -> usize {
        self.len
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        copy(&mut y[..self.len], &x[0][..self.len]);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        if let Some(dx) = dx[0].as_deref_mut() {
            add(dx, dy);
        }
    }
}

/// y = values; no input, so no gradient.
#[derive(Clone, Debug)]
pub struct Constant {
    values: Arc<[f32]>,
}

impl Constant {
    /// The values, which the model owns too.
    pub fn new(values: Arc<[f32]>) -> Self {
        Self { values }
    }
}

impl Operator for Constant {
    fn output_len(&self) -> usize {
        self.values.len()
    }

    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward(&self, _x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        copy(y, &self.values);
    }

    fn vjp(
        &self,
        _x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        _dy: &mut [f32],
        _dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
    }
}

/// A row-major constant of `shape` with its dimensions in `order`: position i is dimension `order[i]`.
pub(crate) fn permuted(values: &[f32], shape: &[usize], order: &[usize]) -> Vec<f32> {
    let mut strides = vec![1usize; shape.len()];
    for d in (0..shape.len().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * shape[d + 1];
    }
    let sizes: Vec<usize> = order.iter().map(|d| shape[*d]).collect();
    let mut out = Vec::with_capacity(values.len());
    let mut index = vec![0usize; order.len()];
    for _ in 0..values.len() {
        out.push(values[index.iter().zip(order).map(|(i, d)| i * strides[*d]).sum::<usize>()]);
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < sizes[d] {
                break;
            }
            index[d] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, bits, indices, offset, values};
    use super::*;

    fn len(shape: &[usize]) -> usize {
        shape.iter().product()
    }

    /// Checks an operator that moves values: `from` gives the input index of an output index, or a constant.
    fn check(op: &dyn Operator, shape: &[usize], out: &[usize], from: impl Fn(&[usize]) -> Result<Vec<usize>, f64>) {
        let outputs = indices(out);
        let oracle = |x: &[Vec<f64>]| {
            let value = |o: &Vec<usize>| from(o).map_or_else(|constant| constant, |i| x[0][offset(&i, shape)]);
            outputs.iter().map(value).collect()
        };
        Case { op, x: vec![values(8, len(shape))], oracle: &oracle }.run();
    }

    fn permutations(rank: usize) -> Vec<Vec<usize>> {
        if rank == 0 {
            return vec![vec![]];
        }
        let shorter = permutations(rank - 1);
        let with = |p: &Vec<usize>| {
            let p = p.clone();
            (0..rank).map(move |at| {
                let mut p = p.clone();
                p.insert(at, rank - 1);
                p
            })
        };
        shorter.iter().flat_map(with).collect()
    }

    fn check_permute(shape: &[usize], perm: &[usize]) {
        let op = Permute::new(shape, perm);
        let out: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
        check(&op, shape, &out, |o| {
            let mut i = vec![0; shape.len()];
            perm.iter().zip(o).for_each(|(p, o)| i[*p] = *o);
            Ok(i)
        });
    }

    #[test]
    fn permute_agrees_with_the_oracle() {
        for perm in permutations(3) {
            for shape in [[2, 3, 5], [1, 7, 4], [5, 1, 1], [3, 17, 2], [2, 0, 3]] {
                check_permute(&shape, &perm);
            }
        }
        for perm in permutations(4) {
            check_permute(&[2, 3, 4, 5], &perm);
            check_permute(&[2, 1, 3, 2], &perm);
        }
        check_permute(&[], &[]);
        check_permute(&[5], &[0]);
        check_permute(&[17, 19], &[1, 0]);
        check_permute(&[2, 3, 2, 3, 2], &[4, 2, 0, 3, 1]);
        check_permute(&[2, 3, 2, 1, 2, 2], &[0, 5, 3, 1, 4, 2]);
    }

    fn check_slice(shape: &[usize], starts: &[usize], steps: &[isize], out: &[usize]) {
        let op = Slice::new(shape, starts, steps, out);
        let at = |o: usize, d: usize| (starts[d] as isize + o as isize * steps[d]) as usize;
        check(&op, shape, out, |o| Ok(o.iter().enumerate().map(|(d, o)| at(*o, d)).collect()));
    }

    #[test]
    fn slice_agrees_with_the_oracle() {
        check_slice(&[], &[], &[], &[]);
        check_slice(&[9], &[2], &[1], &[5]);
        check_slice(&[9], &[8], &[-1], &[9]);
        check_slice(&[9], &[7], &[-3], &[3]);
        check_slice(&[9], &[1], &[4], &[2]);
        check_slice(&[9], &[3], &[1], &[0]);
        check_slice(&[3, 5], &[0, 0], &[1, 1], &[3, 5]);
        check_slice(&[3, 5], &[2, 4], &[-1, -1], &[3, 5]);
        check_slice(&[3, 5], &[1, 0], &[1, 1], &[2, 5]);
        check_slice(&[3, 5], &[0, 1], &[2, 1], &[2, 3]);
        check_slice(&[3, 5], &[2, 0], &[-2, 2], &[2, 3]);
        check_slice(&[3, 4, 5], &[0, 3, 1], &[1, -1, 1], &[3, 2, 4]);
        check_slice(&[3, 4, 5], &[1, 0, 4], &[1, 2, -4], &[1, 2, 2]);
        check_slice(&[2, 3, 4, 5], &[1, 2, 0, 0], &[-1, -2, 1, 1], &[2, 2, 4, 5]);
        check_slice(&[2, 0, 4], &[0, 0, 0], &[1, 1, 1], &[2, 0, 3]);
    }

    fn check_pad(shape: &[usize], before: &[isize], after: &[isize], mode: PadMode) {
        let op = Pad::new(shape, before, after, mode);
        let out: Vec<usize> =
            (0..shape.len()).map(|d| (shape[d] as isize + before[d] + after[d]).max(0) as usize).collect();
        assert_eq!(op.output_shape(), out);
        check(&op, shape, &out, |o| {
            (0..shape.len())
                .map(|d| {
                    // By walking, one position at a time, from the kept region.
                    let (first, last) = (-before[d].min(0), shape[d] as isize - 1 + after[d].min(0));
                    let mut i = o[d] as isize - before[d];
                    if (first..=last).contains(&i) {
                        return Ok(i as usize);
                    }
                    let constant = if let PadMode::Constant(value) = mode { f64::from(value) } else { 0.0 };
                    if first > last || matches!(mode, PadMode::Constant(_)) {
                        return Err(constant);
                    }
                    while !(first..=last).contains(&i) {
                        i = match mode {
                            PadMode::Edge => i.clamp(first, last),
                            PadMode::Wrap if i < first => i + (last - first + 1),
                            PadMode::Wrap => i - (last - first + 1),
                            _ if first == last => first,
                            _ if i < first => 2 * first - i,
                            _ => 2 * last - i,
                        };
                    }
                    Ok(i as usize)
                })
                .collect()
        });
    }

    #[test]
    fn pad_agrees_with_the_oracle() {
        for mode in [PadMode::Constant(0.5), PadMode::Reflect, PadMode::Edge, PadMode::Wrap] {
            check_pad(&[], &[], &[], mode);
            check_pad(&[5], &[0], &[0], mode);
            check_pad(&[5], &[2], &[3], mode);
            check_pad(&[5], &[7], &[11], mode);
            check_pad(&[1], &[2], &[2], mode);
            check_pad(&[5], &[-1], &[-2], mode);
            check_pad(&[5], &[-2], &[3], mode);
            check_pad(&[5], &[2], &[-1], mode);
            check_pad(&[5], &[-2], &[-3], mode);
            check_pad(&[3, 4], &[1, 0], &[0, 2], mode);
            check_pad(&[3, 4, 3], &[1, 2, 0], &[1, 0, 0], mode);
            check_pad(&[3, 4, 3], &[0, 1, 1], &[2, -1, 1], mode);
            check_pad(&[3, 4, 3], &[0, 0, 0], &[1, 0, 0], mode);
            check_pad(&[2, 3, 2, 3], &[0, 1, 0, 1], &[1, -1, 0, 2], mode);
            check_pad(&[2, 0, 3], &[1, 0, 1], &[0, 0, 0], mode);
        }
        check_pad(&[2, 0, 3], &[1, 2, 1], &[0, 1, 0], PadMode::Constant(1.5));
        check_pad(&[3, 0], &[0, 2], &[0, 1], PadMode::Constant(1.5));
    }

    #[test]
    fn parts_fill_the_whole() {
        for (shape, axis) in [(vec![7], 0), (vec![3, 7, 2], 1), (vec![7, 2, 3], 0), (vec![2, 3, 7], 2)] {
            let sizes = [2, 0, 4, 1];
            let (mut y, dy) = (vec![f32::NAN; len(&shape)], values(20, len(&shape)));
            let mut offset = 0;
            for (seed, size) in (0..).zip(sizes) {
                let part_shape: Vec<usize> =
                    shape.iter().enumerate().map(|(d, n)| if d == axis { size } else { *n }).collect();
                let (x, op) = (values(seed, len(&part_shape)), Place::new(&shape, axis, offset, size));
                let before = y.clone();
                op.forward(&[&x], &mut y, &mut [], &mut []);
                // Only the region of this part may be read: everything else is poison.
                let mut poisoned = vec![f32::NAN; dy.len()];
                let mut dx = values(30, x.len());
                let mut expected = dx.clone();
                for (i, index) in indices(&shape).iter().enumerate() {
                    let Some(along) = index[axis].checked_sub(offset).filter(|along| *along < size) else {
                        assert_eq!(y[i].to_bits(), before[i].to_bits(), "outside the region");
                        continue;
                    };
                    let mut at = index.clone();
                    at[axis] = along;
                    let from = at.iter().zip(&part_shape).fold(0, |from, (i, n)| from * n + i);
                    assert_eq!(y[i], x[from]);
                    poisoned[i] = dy[i];
                    expected[from] += dy[i];
                }
                op.vjp(&[&[]], &[], &[], &mut poisoned, &mut [Some(&mut dx)], &mut []);
                assert_eq!(bits(&dx), bits(&expected));
                op.vjp(&[&[]], &[], &[], &mut poisoned, &mut [None], &mut []);
                offset += size;
            }
            assert!(y.iter().all(|y| !y.is_nan()), "every value has a part");
        }
    }

    #[test]
    fn copy_and_constant_agree_with_the_oracle() {
        for n in [0, 1, 37] {
            Case { op: &Copy::new(n), x: vec![values(1, n)], oracle: &|x| x[0].clone() }.run();
            let held = values(2, n);
            let oracle = |_: &[Vec<f64>]| held.iter().map(|v| f64::from(*v)).collect();
            Case { op: &Constant::new(held.clone().into()), x: vec![], oracle: &oracle }.run();
        }
    }
}
