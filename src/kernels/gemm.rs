//! Matrix product in register tiles: `C (+)= A·B`.
//!
//! A tile of `MR` rows and `NV` vectors of C stays in registers while the loop runs over `k`; each step loads `NV`
//! vectors of a row of B and broadcasts `MR` values of A (Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication", 2008). Weights are packed once ([`pack`]): panels of as many columns as a tile has stand row behind row,
//! so that the loop reads B in one stream; other matrices are read where they stand.
//! Each element of C is one chain of multiply-adds in the order of `k`: its value depends neither on the tile in
//! which it falls nor on the number of threads.
//!
//! Rows of A and steps of `k` may stand in two levels ([`Walk`]): a convolution reads its patches from the padded plane
//! where they stand, without writing them out ("implicit GEMM", Chetlur et al., "cuDNN: efficient primitives for deep
//! learning", arXiv 1410.0759).
//!
//! One dispatch a size of tile: with many sizes in one, LLVM stops inlining the SIMD loads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::{between, on};

/// What a tile of C starts from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// C = A·B.
    Zero,
    /// C += A·B.
    Add,
    /// C = bias + A·B, `bias` of length n, the same for each row.
    Bias(&'a [f32]),
}

/// Index i stands at `i % inner * step + i / inner * jump`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Indices of the inner level.
    pub inner: usize,
    /// Between two of them.
    pub step: usize,
    /// Between two of the outer level.
    pub jump: usize,
}

impl Walk {
    /// One level.
    pub fn even(step: usize) -> Self {
        Self { inner: usize::MAX, step, jump: 0 }
    }

    /// Where the indices from `i` on stand.
    #[inline(always)]
    fn places<const N: usize>(self, i: usize, places: &mut [usize; N]) {
        if i + N <= self.inner {
            for (r, place) in places.iter_mut().enumerate() {
                *place = (i + r) * self.step;
            }
            return;
        }
        let (mut inner, mut outer) = (i % self.inner, i / self.inner * self.jump);
        for place in places {
            *place = inner * self.step + outer;
            inner += 1;
            if inner == self.inner {
                (inner, outer) = (0, outer + self.jump);
            }
        }
    }

    #[cfg(test)]
    fn at(self, i: usize) -> usize {
        if i < self.inner { i * self.step } else { i % self.inner * self.step + i / self.inner * self.jump }
    }
}

/// How the rows of B stand.
#[derive(Clone, Copy, Debug)]
enum Rows {
    Walk(Walk),
    /// As [`pack`] leaves them; then the columns of A stand side by side.
    Packed,
}

/// Columns of a panel of packed weights: those of the main tile.
pub fn panel() -> usize {
    let lanes = lanes();
    wide(lanes) * lanes
}

/// Packs `b [k, n]`: column j goes to the panel j / [`panel`]; a panel is `[k, its columns]`, the last may be narrower. What
/// is packed has the length of `b`.
///
/// # Panics
/// If a slice is shorter than `k · n`.
pub fn pack(k: usize, n: usize, b: &[f32], packed: &mut [f32]) {
    for (columns, at) in panels(k, n) {
        let width = columns.len();
        for (row, to) in packed[at..at + k * width].chunks_exact_mut(width).enumerate() {
            to.copy_from_slice(&b[row * n + columns.start..][..width]);
        }
    }
}

/// The panels of a packed `[k, n]`: their columns, and where each begins.
pub fn panels(k: usize, n: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    let width = panel();
    (0..n).step_by(width).map(move |start| (start..n.min(start + width), start * k))
}

/// Writes the packed `[taps · outputs, inputs]` from the packed `[taps · inputs, outputs]`, taps in reverse.
///
/// # Panics
/// If a slice is too short.
pub fn transpose_packed(taps: usize, inputs: usize, outputs: usize, w: &[f32], wt: &mut [f32]) {
    for tap in 0..taps {
        let (from, to) = (tap * inputs, (taps - 1 - tap) * outputs);
        for (columns, at) in panels(taps * inputs, outputs) {
            let width = columns.len();
            for (rows, to_at) in panels(taps * outputs, inputs) {
                let height = rows.len();
                for (i, o) in columns.clone().enumerate() {
                    let wt = &mut wt[to_at + (to + o) * height..][..height];
                    let w = &w[at + (from + rows.start) * width + i..];
                    wt.iter_mut().zip(w.iter().step_by(width)).for_each(|(t, w)| *t = *w);
                }
            }
        }
    }
}

/// Where a matrix stands.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Its values; element (i, j) is the sum of the two walks.
    pub values: &'a [f32],
    /// Of the row.
    pub rows: Walk,
    /// Of the column.
    pub columns: Walk,
}

/// C += A·B for `A [m, k]`, `B [k, n]`, `C [m, n]`.
///
/// Element (i, p) of A is at `a[i * a_row + p * a_col]`; (p, j) of B at `b[p * b_row + j]`; (i, j) of C at
/// `c[i * c_row + j]`.
///
/// # Panics
/// If a slice is too short for its sizes.
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_row: usize,
    a_col: usize,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    gemm_from(Start::Add, m, n, k, a, a_row, a_col, b, b_row, c, c_row);
}

/// [`gemm`] with a choice of what C starts from.
///
/// # Panics
/// If a slice is too short for its sizes.
pub fn gemm_from(
    start: Start,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_row: usize,
    a_col: usize,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    let a = Matrix { values: a, rows: Walk::even(a_row), columns: Walk::even(a_col) };
    gemm_walk(start, m, n, k, a, b, Walk::even(b_row), c, c_row, None);
}

/// [`gemm_from`] with rows and steps of k in two levels; where both A's columns and B's rows have two, their inner levels
/// are the same. With `clamp`, C ends between the two bounds (lower first, so that the upper one wins; not a number stays).
///
/// # Panics
/// If a slice is too short for its sizes, or the inner levels differ.
pub fn gemm_walk(
    start: Start,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix,
    b: &[f32],
    b_rows: Walk,
    c: &mut [f32],
    c_row: usize,
    clamp: Option<[f32; 2]>,
) {
    product(start, m, n, k, a, b, Rows::Walk(b_rows), c, c_row, clamp, false);
}

/// [`gemm_walk`] with a packed B ([`pack`]); the values of a row of A stand side by side (`a.columns.step` is 1).
///
/// # Panics
/// If a slice is too short for its sizes, or A's columns stand elsewhere.
pub fn gemm_packed(
    start: Start,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix,
    b: &[f32],
    c: &mut [f32],
    c_row: usize,
    clamp: Option<[f32; 2]>,
) {
    product(start, m, n, k, a, b, Rows::Packed, c, c_row, clamp, false);
}

/// [`gemm_walk`]; `generic` takes the token without SIMD, for the tests.
fn product(
    start: Start,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix,
    b: &[f32],
    b_rows: Rows,
    c: &mut [f32],
    c_row: usize,
    clamp: Option<[f32; 2]>,
    generic: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let lanes = if cfg!(test) && generic { on(true, Lanes) } else { lanes() };
    let wide = wide(lanes);
    let (b_rows, panel) = match b_rows {
        Rows::Walk(walk) => (walk, usize::MAX),
        Rows::Packed => (Walk::even(0), wide * lanes),
    };
    assert!(panel == usize::MAX || a.columns.step == 1, "packed weights want the values of a row side by side");
    let one_level = |walk: Walk| walk.inner >= k;
    let inner = a.columns.inner.min(b_rows.inner).min(k).max(1);
    let fits = |walk: Walk| one_level(walk) || walk.inner == inner;
    assert!(fits(a.columns) && fits(b_rows) && k.is_multiple_of(inner), "the levels of k differ");
    // A walk of one level takes the levels of the other.
    let jump = |walk: Walk| if one_level(walk) { walk.step * inner } else { walk.jump };
    let size = Sizes {
        start,
        n,
        k,
        from: 0,
        outer: k / inner,
        inner,
        a: a.values,
        a_rows: a.rows,
        a_col: a.columns.step,
        a_jump: jump(a.columns),
        b,
        b_row: b_rows.step,
        b_jump: jump(b_rows),
        panel,
        c_row,
        clamp,
        generic,
        lanes,
    };
    if panel == usize::MAX {
        return tiles(&size, c, m, wide);
    }
    // What a tile reads of a panel stays in L1 while the rows go by.
    let steps = (L1 / panel).max(1);
    if size.outer == 1 {
        for piece in even_pieces(size.inner, steps) {
            let a = a.values.get(piece.start..).unwrap_or_default();
            tiles(&Sizes { a, inner: piece.len(), ..size.piece(piece) }, c, m, wide);
        }
    } else {
        for piece in even_pieces(size.outer, (steps / inner).max(1)) {
            let a = a.values.get(piece.start * size.a_jump..).unwrap_or_default();
            let outer = piece.len();
            tiles(&Sizes { a, outer, ..size.piece(piece.start * inner..piece.end * inner) }, c, m, wide);
        }
    }
}

/// Values of a panel that stay in an L1 of 32 KiB.
const L1: usize = 8192;

/// As few ranges of at most `most` as make up `total`, of nearly one length; one empty range of nothing.
fn even_pieces(total: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = total.div_ceil(most).max(1);
    (0..pieces).map(move |piece| total * piece / pieces..total * (piece + 1) / pieces)
}

/// All of C in tiles.
fn tiles(size: &Sizes, c: &mut [f32], m: usize, wide: usize) {
    let lanes = size.lanes;
    let (rows, wide) = match lanes {
        4 if size.is_outer() => (8, 2),
        4 if size.rows_stand_in_fours() => (4, wide),
        _ => (main_rows(lanes), wide),
    };
    let mut columns = 0..size.n;
    // Tiles of one row less make up for what is left of the rows: few rows have too few chains of multiply-adds.
    let less = (rows - m % rows) % rows;
    if rows == main_rows(lanes) && less > 1 && less * (rows - 1) <= m {
        columns.start = size.n / (wide * lanes) * (wide * lanes);
        let main = m - less * (rows - 1);
        block(size, c, 0..main, 0..columns.start, rows, wide);
        block(size, c, main..m, 0..columns.start, rows - 1, wide);
    }
    let mut main = m - m % rows;
    cover(size, c, 0..main, columns.clone(), rows, wide);
    if m - main == 7 {
        cover(size, c, main..main + 4, columns.clone(), 4, wide);
        main += 4;
    }
    let widest = match m - main {
        1 if lanes == 8 => 8,
        1..=3 => 4,
        _ => wide,
    };
    cover(size, c, main..m, columns, m - main, widest);
}

/// Vectors of the main tile: with its rows, 12 accumulators of the 16 registers of AVX2, up to 24 of 32 elsewhere.
fn wide(lanes: usize) -> usize {
    if lanes == 8 { 2 } else { 4 }
}

/// Rows of the main tile. With four lanes its 20 accumulators, 4 vectors of B and 5 of A leave some of 32 registers; 6 rows do
/// not (seen in the assembly for NEON).
fn main_rows(lanes: usize) -> usize {
    if lanes == 4 { 5 } else { 6 }
}

/// All `columns` of `rows`, in tiles of `mr` rows: the widest first.
fn cover(size: &Sizes, c: &mut [f32], rows: Range<usize>, columns: Range<usize>, mr: usize, widest: usize) {
    if rows.is_empty() {
        return;
    }
    let (mut j, mut nv) = (columns.start, widest);
    while nv > 0 {
        let end = j + (columns.end - j) / (nv * size.lanes) * (nv * size.lanes);
        block(size, c, rows.clone(), j..end, mr, nv);
        j = end;
        nv /= 2;
    }
    block(size, c, rows, j..columns.end, mr, 0);
}

/// Tiles of fewer vectors than this take 8 rows.
fn narrow(lanes: usize) -> usize {
    if lanes == 4 { 3 } else { 2 }
}

/// Tiles of `mr` rows and `nv` vectors (0: less than one) over `rows` and `columns`. One vector alone takes 8 rows: as many
/// chains of multiply-adds as hide their latency, and not more rows of A than there are registers for their places.
fn block(size: &Sizes, c: &mut [f32], rows: Range<usize>, columns: Range<usize>, mr: usize, nv: usize) {
    if columns.is_empty() || rows.is_empty() {
        return;
    }
    let (mut rows, mut mr) = (rows, mr);
    if nv < narrow(size.lanes) && mr == main_rows(size.lanes) {
        let end = rows.start + rows.len() / 8 * 8;
        match nv {
            0 => run::<8, 1, true>(size, c, rows.start..end, columns.clone()),
            1 => run::<8, 1, false>(size, c, rows.start..end, columns.clone()),
            _ => run::<8, 2, false>(size, c, rows.start..end, columns.clone()),
        }
        rows.start = end;
        mr = rows.len();
        if mr == 0 {
            return;
        }
        if mr > 6 {
            block(size, c, rows.start + 4..rows.end, columns.clone(), mr - 4, nv);
            (rows.end, mr) = (rows.start + 4, 4);
        }
    }
    match (mr, nv) {
        (8, 2) => run::<8, 2, false>(size, c, rows, columns),
        (8, 1) => run::<8, 1, false>(size, c, rows, columns),
        (8, _) => run::<8, 1, true>(size, c, rows, columns),
        (6, 4) => run::<6, 4, false>(size, c, rows, columns),
        (5, 4) => run::<5, 4, false>(size, c, rows, columns),
        (4, 4) => run::<4, 4, false>(size, c, rows, columns),
        (3, 4) => run::<3, 4, false>(size, c, rows, columns),
        (2, 4) => run::<2, 4, false>(size, c, rows, columns),
        (1, 8) => run::<1, 8, false>(size, c, rows, columns),
        (1, 4) => run::<1, 4, false>(size, c, rows, columns),
        (6, 2) => run::<6, 2, false>(size, c, rows, columns),
        (5, 2) => run::<5, 2, false>(size, c, rows, columns),
        (4, 2) => run::<4, 2, false>(size, c, rows, columns),
        (3, 2) => run::<3, 2, false>(size, c, rows, columns),
        (2, 2) => run::<2, 2, false>(size, c, rows, columns),
        (1, 2) => run::<1, 2, false>(size, c, rows, columns),
        (6, 1) => run::<6, 1, false>(size, c, rows, columns),
        (5, 1) => run::<5, 1, false>(size, c, rows, columns),
        (4, 1) => run::<4, 1, false>(size, c, rows, columns),
        (3, 1) => run::<3, 1, false>(size, c, rows, columns),
        (2, 1) => run::<2, 1, false>(size, c, rows, columns),
        (1, 1) => run::<1, 1, false>(size, c, rows, columns),
        (6, _) => run::<6, 1, true>(size, c, rows, columns),
        (5, _) => run::<5, 1, true>(size, c, rows, columns),
        (4, _) => run::<4, 1, true>(size, c, rows, columns),
        (3, _) => run::<3, 1, true>(size, c, rows, columns),
        (2, _) => run::<2, 1, true>(size, c, rows, columns),
        _ => run::<1, 1, true>(size, c, rows, columns),
    }
}

fn run<const MR: usize, const NV: usize, const TAIL: bool>(
    size: &Sizes,
    c: &mut [f32],
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let width = if TAIL { columns.len() } else { NV * size.lanes };
    let streams = size.a_col == 1 && !TAIL;
    let outer = size.is_outer() && size.a_col >= MR && size.b_row >= width && !TAIL;
    if outer {
        on(size.generic, Tiles::<MR, NV, TAIL, OUTER> { size, c, rows, columns });
    } else if streams && size.gathers() && size.columns(columns.start).row == width {
        on(size.generic, Tiles::<MR, NV, TAIL, GATHER> { size, c, rows, columns });
    } else if streams && size.panel < width {
        on(size.generic, Tiles::<MR, NV, TAIL, PANELS> { size, c, rows, columns });
    } else if streams && size.columns(columns.start).row == width {
        on(size.generic, Tiles::<MR, NV, TAIL, STREAM> { size, c, rows, columns });
    } else {
        on(size.generic, Tiles::<MR, NV, TAIL, WALK> { size, c, rows, columns });
    }
}

/// B as its walk says.
const WALK: u8 = 0;
/// The rows of B that a tile reads stand one behind the other: one stream without a check a step.
const STREAM: u8 = 1;
/// Several full panels side by side.
const PANELS: u8 = 2;
/// The rows of A side by side, one step behind the other as the rows of B: a sum of outer products.
const OUTER: u8 = 3;
/// A [`STREAM`] with so short an inner level that the place of each step, with four lanes of each four, is looked up in a
/// table.
const GATHER: u8 = 4;

/// Places in the table of a [`GATHER`].
const PLACES: usize = 128;

/// Steps of k that a [`GATHER`] looks up at once.
#[inline(always)]
fn steps_a_place(lanes: usize) -> usize {
    if lanes == 4 { 4 } else { 1 }
}

/// [`Lanes`], asked once: a dispatch takes longer.
pub(super) fn lanes() -> usize {
    static LANES: AtomicUsize = AtomicUsize::new(0);
    match LANES.load(Ordering::Relaxed) {
        0 => {
            let lanes = Lanes.dispatch();
            LANES.store(lanes, Ordering::Relaxed);
            lanes
        }
        lanes => lanes,
    }
}

/// Lanes of the instruction set that a dispatch takes.
struct Lanes;

impl SimdOp for Lanes {
    type Output = usize;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> usize {
        isa.f32().len()
    }
}

/// A product without its C.
#[derive(Clone, Copy)]
struct Sizes<'a> {
    start: Start<'a>,
    n: usize,
    /// Rows of B, and the first of those that are taken now.
    k: usize,
    from: usize,
    /// How many are taken, in two levels.
    outer: usize,
    inner: usize,
    a: &'a [f32],
    a_rows: Walk,
    a_col: usize,
    a_jump: usize,
    b: &'a [f32],
    b_row: usize,
    b_jump: usize,
    /// Columns of a panel, where B is packed; else more than there are.
    panel: usize,
    c_row: usize,
    clamp: Option<[f32; 2]>,
    generic: bool,
    lanes: usize,
}

/// B from one column on.
#[derive(Clone, Copy)]
struct Columns<'a> {
    b: &'a [f32],
    row: usize,
    jump: usize,
}

impl<'a> Sizes<'a> {
    /// Whether a step of k is an outer product of values that stand side by side.
    fn is_outer(&self) -> bool {
        self.a_col > 1 && self.a_rows.step == 1 && self.a_rows.inner == usize::MAX && self.panel == usize::MAX
    }

    /// Whether a tile of four rows reads four values of A side by side at each step.
    fn rows_stand_in_fours(&self) -> bool {
        self.a_col > 1 && self.a_rows.step == 1 && self.a_rows.inner.is_multiple_of(4)
    }

    /// Whether steps of k stand in short pieces, with four lanes in fours.
    fn gathers(&self) -> bool {
        let each = steps_a_place(self.lanes);
        let short = self.inner < 16 && self.outer * self.inner <= PLACES;
        self.outer > 1 && short && self.panel != usize::MAX && self.inner.is_multiple_of(each)
    }

    #[inline(always)]
    fn columns(&self, j: usize) -> Columns<'a> {
        if self.panel == usize::MAX {
            return Columns { b: self.b.get(j..).unwrap_or_default(), row: self.b_row, jump: self.b_jump };
        }
        let first = j / self.panel * self.panel;
        let row = self.panel.min(self.n - first);
        let at = first * self.k + self.from * row + (j - first);
        Columns { b: self.b.get(at..).unwrap_or_default(), row, jump: row * self.inner }
    }

    /// The steps `piece` of k: C starts with the first and is clamped with the last.
    fn piece(self, piece: Range<usize>) -> Self {
        let start = if piece.start == 0 { self.start } else { Start::Add };
        let clamp = self.clamp.filter(|_| piece.end == self.k);
        Self { from: piece.start, start, clamp, ..self }
    }
}

struct Tiles<'a, const MR: usize, const NV: usize, const TAIL: bool, const KIND: u8> {
    size: &'a Sizes<'a>,
    c: &'a mut [f32],
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<const MR: usize, const NV: usize, const TAIL: bool, const KIND: u8> SimdOp for Tiles<'_, MR, NV, TAIL, KIND> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let width = if TAIL { self.columns.len() } else { NV * isa.f32().len() };
        let mut places = [0; PLACES];
        if KIND == GATHER {
            let Sizes { outer, inner, a_jump, .. } = *self.size;
            let each = steps_a_place(isa.f32().len());
            for s in 0..outer {
                for p in 0..inner / each {
                    places[s * (inner / each) + p] = s * a_jump + each * p;
                }
            }
        }
        let mut j = self.columns.start;
        while j < self.columns.end {
            let columns = self.size.columns(j);
            let mut i = self.rows.start;
            while i < self.rows.end {
                tile::<I, MR, NV, TAIL, KIND>(isa, self.size, &places, columns, self.c, i, j, width);
                i += MR;
            }
            j += width;
        }
    }
}

/// One of four lanes in all of them: with NEON the multiply-add itself takes a lane.
#[inline(always)]
fn lane<I: Isa>(isa: I, x: I::F32, lane: usize) -> I::F32 {
    let ops = isa.f32();
    match lane {
        0 => ops.broadcast_lane::<0>(x),
        1 => ops.broadcast_lane::<1>(x),
        2 => ops.broadcast_lane::<2>(x),
        _ => ops.broadcast_lane::<3>(x),
    }
}

/// Rows of B that stand one behind the other, four an item, for tiles of `NV` vectors of four lanes: an item is sixteen times
/// `NV` values in a row, whatever its form says.
#[inline(always)]
fn four_steps<const NV: usize>(b: &[f32]) -> &[[[f32; 16]; NV]] {
    b.as_chunks::<16>().0.as_chunks().0
}

/// Adds four steps of k with four lanes: of `a` a vector a row, of `b` four rows.
#[inline(always)]
fn by_lane<I: Isa, const MR: usize, const NV: usize>(
    isa: I,
    a: &[I::F32; MR],
    b: &[f32],
    acc: &mut [[I::F32; NV]; MR],
) {
    let ops = isa.f32();
    let lanes = ops.len();
    for step in 0..4 {
        let mut bv = [ops.zero(); NV];
        for v in 0..NV {
            bv[v] = ops.load(&b[(step * NV + v) * lanes..]);
        }
        for r in 0..MR {
            let a = lane(isa, a[r], step);
            for v in 0..NV {
                acc[r][v] = ops.mul_add(a, bv[v], acc[r][v]);
            }
        }
    }
}

/// Adds the product of `MR` values of A with `NV` vectors of B.
#[inline(always)]
fn outer_product<I: Isa, const MR: usize, const NV: usize>(isa: I, b: &[f32], a: &[f32], acc: &mut [[I::F32; NV]; MR]) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut bv = [ops.zero(); NV];
    for v in 0..NV {
        bv[v] = ops.load(&b[v * lanes..]);
    }
    let mut fours = [ops.zero(); 2];
    if lanes == 4 {
        for q in 0..MR / 4 {
            fours[q] = ops.load(&a[4 * q..]);
        }
    }
    for r in 0..MR {
        let a = if lanes == 4 && r / 4 < MR / 4 { lane(isa, fours[r / 4], r % 4) } else { ops.splat(a[r]) };
        for v in 0..NV {
            acc[r][v] = ops.mul_add(a, bv[v], acc[r][v]);
        }
    }
}

/// `inner` values of each row, from `at` behind its base.
#[inline(always)]
fn rows_of<'a, const MR: usize>(a: &'a [f32], bases: &[usize; MR], at: usize, inner: usize) -> [&'a [f32]; MR] {
    let mut rows = [&a[..0]; MR];
    for (row, base) in rows.iter_mut().zip(bases) {
        *row = &a[base + at..][..inner];
    }
    rows
}

#[inline(always)]
fn tile<I: Isa, const MR: usize, const NV: usize, const TAIL: bool, const KIND: u8>(
    isa: I,
    size: &Sizes,
    places: &[usize; PLACES],
    columns: Columns,
    c: &mut [f32],
    i: usize,
    j: usize,
    width: usize,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let Sizes { start, k, outer, inner, a, a_rows, a_col, a_jump, panel, c_row, clamp, .. } = *size;
    let Columns { b, row: b_row, jump: b_jump } = columns;
    let mut acc = [[ops.zero(); NV]; MR];
    match start {
        Start::Zero => {}
        Start::Add => {
            for (r, acc) in acc.iter_mut().enumerate() {
                let row = &c[(i + r) * c_row + j..][..width];
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = if TAIL { ops.load_pad(row).0 } else { ops.load(&row[v * lanes..]) };
                }
            }
        }
        Start::Bias(bias) => {
            let row = &bias[j..][..width];
            for v in 0..NV {
                let start = if TAIL { ops.load_pad(row).0 } else { ops.load(&row[v * lanes..]) };
                for acc in acc.iter_mut() {
                    acc[v] = start;
                }
            }
        }
    }
    let mut bases = [0; MR];
    a_rows.places(i, &mut bases);
    if KIND == GATHER {
        let steps = outer * inner;
        let each = steps_a_place(lanes);
        let count = steps / each;
        let rows = rows_of::<MR>(a, &bases, 0, places[count - 1] + each);
        if lanes == 4 {
            for (place, b) in places[..count].iter().zip(&four_steps::<NV>(b)[..count]) {
                let mut av = [ops.zero(); MR];
                for r in 0..MR {
                    av[r] = ops.load(&rows[r][*place..]);
                }
                by_lane(isa, &av, b.as_flattened(), &mut acc);
            }
        }
        let ones = if lanes == 4 { 0 } else { count };
        for (place, b) in places[..ones].iter().zip(b[..ones * width].chunks_exact(width)) {
            let mut bv = [ops.zero(); NV];
            for (v, bv) in bv.iter_mut().enumerate() {
                *bv = ops.load(&b[v * lanes..]);
            }
            for r in 0..MR {
                let a = ops.splat(rows[r][*place]);
                for v in 0..NV {
                    acc[r][v] = ops.mul_add(a, bv[v], acc[r][v]);
                }
            }
        }
    }
    let outer = if KIND == GATHER { 0 } else { outer };
    for s in 0..outer {
        let b = &b[s * b_jump..];
        if KIND == STREAM {
            let rows = rows_of::<MR>(a, &bases, s * a_jump, inner);
            let quads = if lanes == 4 { inner / 4 } else { 0 };
            let mut fours: [&[[f32; 4]]; MR] = [&[]; MR];
            for r in 0..MR {
                fours[r] = &rows[r].as_chunks().0[..quads];
            }
            let steps = &four_steps::<NV>(b)[..quads];
            for q in 0..quads {
                let mut av = [ops.zero(); MR];
                for r in 0..MR {
                    av[r] = ops.load(&fours[r][q]);
                }
                by_lane(isa, &av, steps[q].as_flattened(), &mut acc);
            }
            let left = if 4 * quads < inner { &b[4 * quads * width..inner * width] } else { &[] };
            // Counted by a row of A too, or else each step is checked against its length.
            for ((p, _), b) in rows[0][4 * quads..].iter().enumerate().zip(left.chunks_exact(width)) {
                let mut bv = [ops.zero(); NV];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = ops.load(&b[v * lanes..]);
                }
                for r in 0..MR {
                    let a = ops.splat(rows[r][4 * quads + p]);
                    for v in 0..NV {
                        acc[r][v] = ops.mul_add(a, bv[v], acc[r][v]);
                    }
                }
            }
        } else if KIND == OUTER {
            let a = &a[bases[0] + s * a_jump..];
            // The last step may be the end of both slices.
            let (before, last) = (inner - 1, (inner - 1) * b_row);
            for (b, a) in b[..last].chunks_exact(b_row).zip(a[..before * a_col].chunks_exact(a_col)) {
                outer_product(isa, &b[..width], &a[..MR], &mut acc);
            }
            outer_product(isa, &b[last..][..width], &a[before * a_col..][..MR], &mut acc);
        } else if KIND == PANELS {
            let rows = rows_of::<MR>(a, &bases, s * a_jump, inner);
            for p in 0..inner {
                for v in 0..NV {
                    let at = v * lanes / panel * (panel * k) + v * lanes % panel;
                    let bv = ops.load(&b[at + p * b_row..]);
                    for r in 0..MR {
                        acc[r][v] = ops.mul_add(ops.splat(rows[r][p]), bv, acc[r][v]);
                    }
                }
            }
        } else if a_col == 1 {
            let rows = rows_of::<MR>(a, &bases, s * a_jump, inner);
            for p in 0..inner {
                let b = &b[p * b_row..][..width];
                let mut bv = [ops.zero(); NV];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = if TAIL { ops.load_pad(b).0 } else { ops.load(&b[v * lanes..]) };
                }
                for r in 0..MR {
                    let a = ops.splat(rows[r][p]);
                    for v in 0..NV {
                        acc[r][v] = ops.mul_add(a, bv[v], acc[r][v]);
                    }
                }
            }
        } else if (1..MR).all(|r| bases[r] == bases[0] + r) {
            // Rows of A side by side: the values of one step are read as one slice.
            for p in 0..inner {
                let b = &b[p * b_row..][..width];
                let a = &a[bases[0] + s * a_jump + p * a_col..][..MR];
                if TAIL {
                    let bv = ops.load_pad(b).0;
                    for r in 0..MR {
                        acc[r][0] = ops.mul_add(ops.splat(a[r]), bv, acc[r][0]);
                    }
                } else {
                    outer_product(isa, b, a, &mut acc);
                }
            }
        } else {
            for p in 0..inner {
                let b = &b[p * b_row..][..width];
                for r in 0..MR {
                    let a = ops.splat(a[bases[r] + s * a_jump + p * a_col]);
                    for v in 0..NV {
                        let bv = if TAIL { ops.load_pad(b).0 } else { ops.load(&b[v * lanes..]) };
                        acc[r][v] = ops.mul_add(a, bv, acc[r][v]);
                    }
                }
            }
        }
    }
    if let Some([low, high]) = clamp {
        let (low, high) = (ops.splat(low), ops.splat(high));
        for acc in &mut acc {
            for acc in acc.iter_mut() {
                *acc = between(isa, low, high, *acc);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let row = &mut c[(i + r) * c_row + j..][..width];
        for (v, acc) in acc.iter().enumerate() {
            if TAIL {
                row.copy_from_slice(&acc.to_array().as_ref()[..width]);
            } else {
                ops.store(*acc, &mut row[v * lanes..]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
