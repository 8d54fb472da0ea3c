//! Matrix product in register tiles: `C (+)= A·B`.
//!
//! A tile of `MR` rows and `NV` vectors of C stays in registers while the loop runs over `k`; each step loads `NV`
//! vectors of a row of B and broadcasts `MR` values of A (Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication", 2008, without the packing: our B panels are weights of some kilobytes that stay in L1 and L2).
//! Each element of C is one chain of multiply-adds in the order of `k`: its value depends neither on the tile in
//! which it falls nor on the number of threads.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

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
    if m == 0 || n == 0 {
        return;
    }
    let op = Gemm { start, m, n, k, a, a_row, a_col, b, b_row, c, c_row };
    op.dispatch();
}

struct Gemm<'a> {
    start: Start<'a>,
    m: usize,
    n: usize,
    k: usize,
    a: &'a [f32],
    a_row: usize,
    a_col: usize,
    b: &'a [f32],
    b_row: usize,
    c: &'a mut [f32],
    c_row: usize,
}

impl SimdOp for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(mut self, isa: I) {
        // Register budget: 32 vectors of 16 lanes (AVX-512), 16 of 8 (AVX2), 32 of 4 (NEON).
        match isa.f32().len() {
            16 => self.panels::<I, 6, 4>(isa),
            8 => self.panels::<I, 6, 2>(isa),
            _ => self.panels::<I, 5, 4>(isa),
        }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn panels<I: Isa, const MR: usize, const NV: usize>(&mut self, isa: I) {
        let lanes = isa.f32().len();
        let mut j = 0;
        while self.n - j >= NV * lanes {
            self.rows::<I, MR, NV, false>(isa, j);
            j += NV * lanes;
        }
        if NV > 2 && self.n - j >= 2 * lanes {
            self.rows::<I, MR, 2, false>(isa, j);
            j += 2 * lanes;
        }
        while self.n - j >= lanes {
            self.rows::<I, MR, 1, false>(isa, j);
            j += lanes;
        }
        if j < self.n {
            self.rows::<I, MR, 1, true>(isa, j);
        }
    }

    #[inline(always)]
    fn rows<I: Isa, const MR: usize, const NV: usize, const TAIL: bool>(&mut self, isa: I, j: usize) {
        let mut i = 0;
        while self.m - i >= MR {
            self.tile::<I, MR, NV, TAIL>(isa, i, j);
            i += MR;
        }
        if self.m - i >= 3 {
            self.tile::<I, 3, NV, TAIL>(isa, i, j);
            i += 3;
        }
        while i < self.m {
            self.tile::<I, 1, NV, TAIL>(isa, i, j);
            i += 1;
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const MR: usize, const NV: usize, const TAIL: bool>(&mut self, isa: I, i: usize, j: usize) {
        let ops = isa.f32();
        let lanes = ops.len();
        let width = if TAIL { self.n - j } else { NV * lanes };
        let mut acc = [[ops.zero(); NV]; MR];
        match self.start {
            Start::Zero => {}
            Start::Add => {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let row = &self.c[(i + r) * self.c_row + j..][..width];
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
        let k = self.k;
        if k > 0 && self.a_col == 1 {
            let mut rows = [&self.a[..0]; MR];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = &self.a[(i + r) * self.a_row..][..k];
            }
            for p in 0..k {
                let b = &self.b[p * self.b_row + j..][..width];
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
        } else {
            for p in 0..k {
                let b = &self.b[p * self.b_row + j..][..width];
                let mut bv = [ops.zero(); NV];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = if TAIL { ops.load_pad(b).0 } else { ops.load(&b[v * lanes..]) };
                }
                for r in 0..MR {
                    let a = ops.splat(self.a[(i + r) * self.a_row + p * self.a_col]);
                    for v in 0..NV {
                        acc[r][v] = ops.mul_add(a, bv[v], acc[r][v]);
                    }
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let row = &mut self.c[(i + r) * self.c_row + j..][..width];
            for (v, acc) in acc.iter().enumerate() {
                if TAIL {
                    let values = acc.to_array();
                    row.copy_from_slice(&values.as_ref()[..width]);
                } else {
                    ops.store(*acc, &mut row[v * lanes..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rten_simd::isa::GenericIsa;

    /// Relative to Σ|a·b|: k ≤ 40 roundings of 2⁻²⁴ each, with room for the last addition.
    const RELATIVE: f64 = 4e-6;

    fn values(seed: u64, n: usize) -> Vec<f32> {
        let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((s >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
            })
            .collect()
    }

    fn check(m: usize, n: usize, k: usize, transposed: bool, generic: bool) {
        let a = values(1, m * k + 3);
        let b = values(2, k * (n + 2) + 1);
        let bias = values(3, n);
        let (a_row, a_col) = if transposed { (1, m) } else { (k, 1) };
        for start in [Start::Zero, Start::Add, Start::Bias(&bias)] {
            let c0 = values(4, m * (n + 1) + 1);
            let mut c = c0.clone();
            let op = Gemm {
                start,
                m,
                n,
                k,
                a: &a[1..],
                a_row,
                a_col,
                b: &b[1..],
                b_row: n + 2,
                c: &mut c[1..],
                c_row: n + 1,
            };
            if m > 0 && n > 0 {
                if generic { op.eval(GenericIsa::new()) } else { op.dispatch() }
            }
            let mut expected = c0.clone();
            for i in 0..m {
                for j in 0..n {
                    let mut sum = match start {
                        Start::Zero => 0.0,
                        Start::Add => c0[1 + i * (n + 1) + j] as f64,
                        Start::Bias(bias) => bias[j] as f64,
                    };
                    for p in 0..k {
                        sum += a[1 + i * a_row + p * a_col] as f64 * b[1 + p * (n + 2) + j] as f64;
                    }
                    expected[1 + i * (n + 1) + j] = sum as f32;
                }
            }
            for (got, want) in c.iter().zip(&expected) {
                assert!(((got - want).abs() as f64) <= RELATIVE * (k as f64 + 1.0), "{m}x{n}x{k}: {got} {want}");
            }
        }
    }

    #[test]
    fn agrees_with_the_oracle_for_all_remainders() {
        for generic in [false, true] {
            for m in [0, 1, 2, 3, 5, 6, 7, 11, 13] {
                for n in (0..=68).chain([127, 129]) {
                    check(m, n, 5, false, generic);
                    check(m, n, 3, true, generic);
                }
            }
            for k in [0, 1, 2, 40] {
                check(7, 19, k, false, generic);
                check(7, 19, k, true, generic);
            }
        }
    }
}
