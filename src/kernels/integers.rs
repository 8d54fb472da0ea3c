//! Matrices of small whole numbers with scales: weights as a quantised file has them.
//!
//! w[r, c] = (q[r, c] − z) · s, with one s and z for each block of rows and columns (ONNX DequantizeLinear; MatMulNBits of
//! ONNX Runtime). A product turns one tile of the matrix after the other into floats, in a buffer that stays in L2, and adds
//! its part to C. Each element of C is one chain of multiply-adds in the order of k as in [`super::gemm`], so that the
//! result has the bits of the product with the whole matrix as floats.

use std::ops::Range;
use std::sync::Arc;

use rten_simd::{Isa, SimdOp};

use super::gemm::{Matrix, Start, Walk, gemm_packed, panel};

/// Steps of k in a tile.
const DEPTH: usize = 256;
/// Columns of a tile: with [`DEPTH`], 128 KiB of floats.
const WIDTH: usize = 128;
/// Rows of the matrix that are turned into columns of a tile at a time: half a cache line of each row of the tile.
const LINES: usize = 8;

/// Whole numbers of 2, 4 or 8 bits without sign, and what makes them real.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    rows: usize,
    columns: usize,
    bits: usize,
    row_bytes: usize,
    /// Row-major, the low bits of a byte first; a row ends with whole bytes.
    data: Arc<[u8]>,
    /// Row-major over blocks.
    scales: Arc<[f32]>,
    /// As the scales, or one for all.
    zeros: Arc<[f32]>,
    /// Rows and columns that share a scale.
    block: [usize; 2],
}

impl Integers {
    /// Plain numbers: scale 1, zero point 0. None if `data` does not hold `rows` rows of `row_bytes` bytes.
    pub fn new(rows: usize, columns: usize, bits: usize, row_bytes: usize, data: Arc<[u8]>) -> Option<Self> {
        let fits = [2, 4, 8].contains(&bits)
            && columns.checked_mul(bits)?.div_ceil(8) <= row_bytes
            && rows.checked_mul(row_bytes)? == data.len();
        let (scales, zeros, block) = ([1.0].into(), [0.0].into(), [rows.max(1), columns.max(1)]);
        fits.then_some(Self { rows, columns, bits, row_bytes, data, scales, zeros, block })
    }

    /// The same numbers with other scales, and zero points that are taken off before those that it has. None if there
    /// is not one scale for each block, or not as many zero points, or one.
    pub fn scaled(&self, block: [usize; 2], scales: Arc<[f32]>, zeros: &[f32]) -> Option<Self> {
        let [own] = *self.zeros else { return None };
        let blocks = self.rows.div_ceil(block[0].max(1)) * self.columns.div_ceil(block[1].max(1));
        if block.contains(&0) || scales.len() != blocks || (zeros.len() != blocks && zeros.len() != 1) {
            return None;
        }
        let same = zeros.iter().all(|z| *z == zeros[0]);
        let zeros = zeros.iter().take(if same { 1 } else { blocks }).map(|z| z + own).collect();
        Some(Self { block, scales, zeros, ..self.clone() })
    }

    /// Plain numbers of 8 bits in 4, where all lie that near together.
    pub fn narrowed(self) -> Self {
        let (Some(low), Some(high)) = (self.data.iter().min().copied(), self.data.iter().max()) else { return self };
        if self.bits != 8 || self.row_bytes != self.columns || high - low > 15 {
            return self;
        }
        let row_bytes = self.columns.div_ceil(2);
        let pair = |b: &[u8]| (b[0] - low) | b.get(1).map_or(0, |b| (b - low) << 4);
        let data = self.data.chunks_exact(self.columns).flat_map(|row| row.chunks(2).map(pair)).collect();
        let zeros = self.zeros.iter().map(|z| z - f32::from(low)).collect();
        Self { bits: 4, row_bytes, data, zeros, ..self }
    }

    /// The same numbers as a matrix of another shape; none where that has another number of elements, or where a scale would be
    /// shared by what is no block of it.
    pub fn reshaped(&self, rows: usize, columns: usize) -> Option<Self> {
        if (rows, columns) == (self.rows, self.columns) {
            return Some(self.clone());
        }
        let [down, along] = self.block;
        if rows.checked_mul(columns)? != self.rows * self.columns || columns == 0 || self.columns == 0 {
            return None;
        }
        // Rows of the new shape that make one of the old.
        let split = self.columns / columns;
        if !self.columns.is_multiple_of(columns) {
            return None;
        }
        let across = self.columns.div_ceil(along);
        let one = down >= self.rows && along >= self.columns;
        if !one && along < self.columns && !along.is_multiple_of(columns) {
            return None;
        }
        // One scale for all, or one a row.
        let block = if one { [rows, columns] } else { [1, columns] };
        let of = |row: usize| row / split / down * across + row % split * columns / along;
        let blocks = rows.div_ceil(block[0]);
        let spread = |values: &[f32]| -> Arc<[f32]> {
            if values.len() == 1 { values.into() } else { (0..blocks).map(|at| values[of(at)]).collect() }
        };
        let (scales, zeros) = ((0..blocks).map(|at| self.scales[of(at)]).collect(), spread(&self.zeros));
        let whole = self.row_bytes * 8 == self.columns * self.bits && (columns * self.bits).is_multiple_of(8);
        let (bits, row_bytes, data) = if whole {
            (self.bits, columns * self.bits / 8, self.data.clone())
        } else {
            // A row that ends inside a byte: a byte a number.
            let number = |(r, c): (usize, usize)| {
                let at = c * self.bits;
                self.data[r * self.row_bytes + at / 8] >> (at % 8) & (u8::MAX >> (8 - self.bits))
            };
            let places = (0..self.rows).flat_map(|r| (0..self.columns).map(move |c| (r, c)));
            (8, columns, places.map(number).collect())
        };
        Some(Self { rows, columns, bits, row_bytes, data, scales, zeros, block })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.data.len() + (self.scales.len() + self.zeros.len()) * size_of::<f32>()
    }

    /// The real values, row-major.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        for (row, out) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.read(row, 0..self.columns, out);
        }
        out
    }

    /// The real values of the transpose, row-major.
    pub fn turned_values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        self.tile(0..self.columns, 0..self.rows, true, self.rows, &mut out);
        out
    }

    /// The real values of some rows, row-major.
    ///
    /// # Panics
    /// If `out` is shorter.
    pub fn rows_to(&self, rows: Range<usize>, out: &mut [f32]) {
        self.tile(rows, 0..self.columns, false, self.columns, out);
    }

    /// The transpose of [`Integers::rows_to`].
    ///
    /// # Panics
    /// If `out` is shorter.
    pub fn turned_rows_to(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = rows.len();
        self.tile(0..self.columns, rows, true, width, out);
    }

    /// The real values of a part of a row.
    #[inline(always)]
    pub(super) fn read(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let line = &self.data[row * self.row_bytes..][..self.row_bytes];
        match self.bits {
            8 => out.iter_mut().zip(&line[columns.clone()]).for_each(|(o, b)| *o = f32::from(*b)),
            4 if columns.start.is_multiple_of(2) => {
                let bytes = &line[columns.start / 2..];
                let (pairs, rest) = out.as_chunks_mut::<2>();
                for (pair, byte) in pairs.iter_mut().zip(bytes) {
                    *pair = [f32::from(byte & 15), f32::from(byte >> 4)];
                }
                if let ([last], Some(byte)) = (rest, bytes.get(columns.len() / 2)) {
                    *last = f32::from(byte & 15);
                }
            }
            bits => {
                let mask = (1u8 << bits) - 1;
                for (o, c) in out.iter_mut().zip(columns.clone()) {
                    *o = f32::from(line[c * bits / 8] >> (c * bits % 8) & mask);
                }
            }
        }
        let [down, along] = self.block;
        let first = row / down * self.columns.div_ceil(along);
        let zero = |at: usize| if let [zero] = *self.zeros { zero } else { self.zeros[at] };
        if along == 1 {
            let scales = &self.scales[first + columns.start..][..out.len()];
            if let [zero] = *self.zeros {
                out.iter_mut().zip(scales).for_each(|(o, s)| *o = (*o - zero) * s);
            } else {
                let zeros = &self.zeros[first + columns.start..][..out.len()];
                out.iter_mut().zip(scales).zip(zeros).for_each(|((o, s), z)| *o = (*o - z) * s);
            }
            return;
        }
        let (mut at, mut rest) = (columns.start, out);
        while !rest.is_empty() {
            let block = at / along;
            let (own, behind) = rest.split_at_mut(rest.len().min((block + 1) * along - at));
            let (s, z) = (self.scales[first + block], zero(first + block));
            own.iter_mut().for_each(|o| *o = (*o - z) * s);
            at += own.len();
            rest = behind;
        }
    }

    /// Rows `depth` and columns `width` as floats, of the transpose where `turned`; in panels of so many columns, each
    /// row-major and of all rows.
    fn tile(&self, depth: Range<usize>, width: Range<usize>, turned: bool, panel: usize, out: &mut [f32]) {
        Tile { of: self, depth, width, turned, panel: panel.max(1), out }.dispatch();
    }

    /// Scratch values for [`Integers::product`].
    pub fn product_work(&self) -> usize {
        let tile = |k: usize, n: usize| k.min(DEPTH) * n.min(WIDTH);
        tile(self.rows, self.columns).max(tile(self.columns, self.rows))
    }

    /// C = start + A·B for `m` rows of A, which stand `a_row` apart; B is this matrix, or its transpose where `turned`. With
    /// `clamp`, C ends between the two bounds.
    pub fn product(
        &self,
        turned: bool,
        start: Start,
        m: usize,
        a: &[f32],
        a_row: usize,
        c: &mut [f32],
        c_row: usize,
        clamp: Option<[f32; 2]>,
        work: &mut [f32],
    ) {
        let (k, n) = if turned { (self.columns, self.rows) } else { (self.rows, self.columns) };
        if m == 0 {
            return;
        }
        for j in (0..n).step_by(WIDTH) {
            let width = j..(j + WIDTH).min(n);
            for p in (0..k.max(1)).step_by(DEPTH) {
                let depth = p..(p + DEPTH).min(k);
                let start = match start {
                    _ if p > 0 => Start::Add,
                    Start::Bias(bias) => Start::Bias(&bias[width.clone()]),
                    start => start,
                };
                let tile = &mut work[..depth.len() * width.len()];
                self.tile(depth.clone(), width.clone(), turned, panel(), tile);
                let a = Matrix { values: &a[p..], rows: Walk::even(a_row), columns: Walk::even(1) };
                let clamp = clamp.filter(|_| depth.end == k);
                gemm_packed(start, m, width.len(), depth.len(), a, tile, &mut c[j..], c_row, clamp);
            }
        }
    }
}

/// [`Integers::tile`], with the instructions that the processor has.
struct Tile<'a> {
    of: &'a Integers,
    depth: Range<usize>,
    width: Range<usize>,
    turned: bool,
    panel: usize,
    out: &'a mut [f32],
}

impl SimdOp for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { of, depth, width, turned, panel, out } = self;
        let (k, n) = (depth.len(), width.len());
        // Whole panels before column j, and the columns of its own.
        let place = |j: usize| (j / panel * panel, panel.min(n - j / panel * panel));
        if !turned {
            let mut line = [0.0; WIDTH];
            for start in (0..n).step_by(WIDTH) {
                let columns = start..(start + WIDTH).min(n);
                for (p, row) in depth.clone().enumerate() {
                    let line = &mut line[..columns.len()];
                    of.read(row, width.start + columns.start..width.start + columns.end, line);
                    let mut j = columns.start;
                    while j < columns.end {
                        let (first, own) = place(j);
                        let end = columns.end.min(first + own);
                        let to = &mut out[first * k + p * own + (j - first)..][..end - j];
                        to.copy_from_slice(&line[j - columns.start..end - columns.start]);
                        j = end;
                    }
                }
            }
            return;
        }
        let mut lines = [[0.0; DEPTH]; LINES];
        for part in (0..k).step_by(DEPTH) {
            let part = part..(part + DEPTH).min(k);
            let mut j = 0;
            while j < n {
                let (first, own) = place(j);
                let count = LINES.min(first + own - j);
                for (line, row) in lines.iter_mut().zip(width.start + j..).take(count) {
                    let line = &mut line[..part.len()];
                    of.read(row, depth.start + part.start..depth.start + part.end, line);
                }
                let out = &mut out[first * k + part.start * own + (j - first)..];
                if count == LINES {
                    for p in 0..part.len() {
                        let out = &mut out[p * own..][..LINES];
                        for (out, line) in out.iter_mut().zip(&lines) {
                            *out = line[p];
                        }
                    }
                } else {
                    for (r, line) in lines.iter().take(count).enumerate() {
                        for (p, value) in line[..part.len()].iter().enumerate() {
                            out[p * own + r] = *value;
                        }
                    }
                }
                j += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gemm::gemm_from;

    fn numbers(seed: u64, n: usize, below: u64) -> Vec<u64> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..n).map(|_| rng.u64(0..below)).collect()
    }

    fn floats(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
    }

    /// A matrix of random numbers, and its real values by the formula.
    fn example(rows: usize, columns: usize, bits: usize, block: [usize; 2], one_zero: bool) -> (Integers, Vec<f32>) {
        let q = numbers(1, rows * columns, 1 << bits);
        let row_bytes = (columns * bits).div_ceil(8) + 1;
        let mut data = vec![0u8; rows * row_bytes];
        for (i, q) in q.iter().enumerate() {
            let (r, c) = (i / columns, i % columns);
            data[r * row_bytes + c * bits / 8] |= (*q as u8) << (c * bits % 8);
        }
        let across = columns.div_ceil(block[1]);
        let blocks = rows.div_ceil(block[0]) * across;
        let scales = floats(2, blocks);
        let zeros: Vec<f32> =
            if one_zero { vec![3.0] } else { numbers(3, blocks, 1 << bits).iter().map(|z| *z as f32).collect() };
        let plain = Integers::new(rows, columns, bits, row_bytes, data.into()).unwrap();
        let real = |i: usize| {
            let at = i / columns / block[0] * across + i % columns / block[1];
            (q[i] as f32 - zeros[at % zeros.len()]) * scales[at]
        };
        let expected = (0..rows * columns).map(real).collect();
        (plain.scaled(block, scales.into(), &zeros).unwrap(), expected)
    }

    #[test]
    fn values_are_those_of_the_formula() {
        for bits in [2, 4, 8] {
            for (rows, columns) in [(1, 1), (3, 5), (5, 3), (9, 64), (17, 300), (300, 17), (0, 4)] {
                for block in [[rows.max(1), columns], [1, columns], [rows.max(1), 1], [1, 16], [2, 1], [2, 3]] {
                    for one_zero in [true, false] {
                        let (matrix, expected) = example(rows, columns, bits, block, one_zero);
                        assert_eq!(matrix.values(), expected, "{bits} {rows}x{columns} {block:?}");
                        let turned: Vec<f32> =
                            (0..rows * columns).map(|i| expected[i % rows * columns + i / rows]).collect();
                        assert_eq!(matrix.turned_values(), turned, "{bits} {rows}x{columns} {block:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_have_the_bits_of_the_float_product() {
        for (rows, columns) in [(1, 1), (7, 5), (40, 130), (300, 33), (257, 129), (520, 260)] {
            for (bits, block) in [(4, [rows, 1]), (8, [rows, columns]), (4, [1, 32]), (2, [1, columns])] {
                let (matrix, _) = example(rows, columns, bits, block, false);
                for turned in [false, true] {
                    let (k, n) = if turned { (columns, rows) } else { (rows, columns) };
                    let b = if turned { matrix.turned_values() } else { matrix.values() };
                    for m in [0, 1, 5, 14] {
                        let (a, bias, c0) = (floats(4, m * (k + 1) + 1), floats(5, n), floats(6, m * (n + 2)));
                        for start in [Start::Zero, Start::Add, Start::Bias(&bias)] {
                            for clamp in [None, Some([0.0, 0.5])] {
                                let (mut got, mut expected) = (c0.clone(), c0.clone());
                                let mut work = vec![f32::NAN; matrix.product_work()];
                                matrix.product(turned, start, m, &a, k + 1, &mut got, n + 2, clamp, &mut work);
                                gemm_from(start, m, n, k, &a, k + 1, 1, &b, n, &mut expected, n + 2);
                                if let (Some([low, high]), true) = (clamp, m > 0) {
                                    let rows = expected.chunks_mut(n + 2);
                                    rows.for_each(|row| row[..n].iter_mut().for_each(|v| *v = v.max(low).min(high)));
                                }
                                assert_eq!(got, expected, "{m}x{n}x{k} {bits} bits {block:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_that_lie_together_take_half_a_byte() {
        for columns in [1, 6, 7] {
            let data: Vec<u8> = numbers(7, 3 * columns, 16).iter().map(|q| *q as u8 + 121).collect();
            let plain = Integers::new(3, columns, 8, columns, data.into()).unwrap();
            let narrow = plain.clone().narrowed();
            assert_eq!(narrow.values(), plain.values());
            assert_eq!(narrow.data.len(), 3 * columns.div_ceil(2));
            let scales: Arc<[f32]> = floats(8, 3).into();
            let scaled =
                |m: &Integers| m.scaled([1, columns], scales.clone(), &[128.0, 127.0, 126.0]).unwrap().values();
            assert_eq!(scaled(&narrow), scaled(&plain));
        }
        let wide = Integers::new(1, 2, 8, 2, [0, 16].into()).unwrap();
        assert_eq!(wide.clone().narrowed(), wide);
    }

    #[test]
    fn another_shape_has_the_same_values() {
        for bits in [2, 4, 8] {
            for (block, one_zero) in [([2, 24], true), ([1, 24], false), ([2, 6], false), ([1, 12], true)] {
                let (matrix, expected) = example(2, 24, bits, block, one_zero);
                for (rows, columns) in [(2, 24), (8, 6), (16, 3), (48, 1)] {
                    assert_eq!(matrix.reshaped(rows, columns).unwrap().values(), expected, "{bits} {block:?} {rows}");
                }
            }
        }
        assert!(example(2, 24, 8, [1, 24], true).0.reshaped(3, 16).is_none());
        assert!(example(2, 24, 8, [1, 4], true).0.reshaped(8, 6).is_none());
    }

    #[test]
    fn what_does_not_fit_is_none() {
        assert!(Integers::new(2, 3, 8, 3, [0; 5].into()).is_none());
        assert!(Integers::new(2, 3, 8, 2, [0; 4].into()).is_none());
        assert!(Integers::new(1, 3, 3, 3, [0; 3].into()).is_none());
        let plain = Integers::new(2, 3, 8, 3, [0; 6].into()).unwrap();
        assert!(plain.scaled([1, 3], [1.0].into(), &[0.0]).is_none());
        assert!(plain.scaled([1, 0], [1.0].into(), &[0.0]).is_none());
        assert!(plain.scaled([1, 3], [1.0, 1.0].into(), &[0.0; 3]).is_none());
    }
}
