//! Activations of straight pieces (Relu, Clip, LeakyRelu), and the bits that remember on which side of a kink a value was.
//!
//! Bit `v` of word `l` belongs to element `v · lanes + l` of its block of `32 · lanes` elements: so bits are gathered and
//! spread by whole vectors. The words are only moved, never calculated with as floats, and are read on the machine that
//! wrote them.

use rten_simd::isa::GenericIsa;
use rten_simd::ops::{BitOps, MaskOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

/// Bits of a word.
const BITS: usize = 32;

/// Lanes of the widest vectors: room is counted for these.
const WIDEST: usize = 16;

/// Where an activation is not flat: strictly between two bounds. Not a number is outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Open {
    /// Lower bound.
    pub low: f32,
    /// Upper bound, if there is one.
    pub high: Option<f32>,
}

impl Open {
    #[inline(always)]
    fn holds<I: Isa>(self, isa: I, x: I::F32) -> I::M32 {
        let ops = isa.f32();
        let above = ops.gt(x, ops.splat(self.low));
        match self.high {
            Some(high) => isa.m32().and(above, ops.lt(x, ops.splat(high))),
            None => above,
        }
    }
}

/// Words for the bits of `len` elements.
pub fn mask_len(len: usize) -> usize {
    len.div_ceil(BITS * WIDEST) * WIDEST
}

/// Writes a bit an element of `values [len]` to `saved [mask_len(len)]`: whether `open` holds.
pub fn save(values: &[f32], open: Open, saved: &mut [f32]) {
    on(false, Save { values, open, saved });
}

/// What comes of `dy [len]`: it stays where the bit in `saved` is set, elsewhere it is multiplied by `slope`; zero also
/// stops infinities.
pub fn scale_by_bits(saved: &[f32], slope: f32, dy: &mut [f32]) {
    on(false, ByBits { saved, slope, dy });
}

/// [`scale_by_bits`] to `dx [len]`: added, or written where it is the `first` term.
pub fn add_by_bits(saved: &[f32], slope: f32, dy: &[f32], dx: &mut [f32], first: bool) {
    on(false, AddByBits { saved, slope, dy, dx, first });
}

/// Sets `dy [len]` to zero where `open` does not hold for `y [len]`.
pub fn stop_by_output(y: &[f32], open: Open, dy: &mut [f32]) {
    on(false, ByOutput { y, open, dy });
}

/// [`stop_by_output`] to `dx [len]`: added, or written where it is the `first` term.
pub fn add_by_output(y: &[f32], open: Open, dy: &[f32], dx: &mut [f32], first: bool) {
    on(false, AddByOutput { y, open, dy, dx, first });
}

/// y = min(max(x, low), high) for `x`, `y` of one length; not a number stays, the upper bound wins.
pub fn clamp(x: &[f32], low: f32, high: f32, y: &mut [f32]) {
    on(false, Clamp { x, low, high, y });
}

/// [`clamp`] in place.
pub fn clamp_in_place(low: f32, high: f32, y: &mut [f32]) {
    on(false, ClampInPlace { low, high, y });
}

/// y = x where x is positive, else αx.
pub fn leaky(x: &[f32], alpha: f32, y: &mut [f32]) {
    on(false, Leaky { x, alpha, y });
}

/// `generic` takes the token without SIMD, for the tests.
fn on<O: SimdOp>(generic: bool, op: O) -> O::Output {
    if generic { op.eval(GenericIsa::new()) } else { op.dispatch() }
}

/// Values at `at`, padded with zeros where fewer are left than a vector has.
#[inline(always)]
fn load<I: Isa>(isa: I, x: &[f32], at: usize) -> I::F32 {
    let ops = isa.f32();
    match x.get(at..at + ops.len()) {
        Some(x) => ops.load(x),
        None => ops.load_pad(&x[at..]).0,
    }
}

/// Writes as many values of `new` as are left behind `at`.
#[inline(always)]
fn store<I: Isa>(isa: I, new: I::F32, y: &mut [f32], at: usize) {
    let ops = isa.f32();
    if let Some(y) = y.get_mut(at..at + ops.len()) {
        ops.store(new, y);
    } else {
        let y = &mut y[at..];
        y.copy_from_slice(&new.to_array().as_ref()[..y.len()]);
    }
}

/// `value`, or `value · slope` where `open` is not set.
#[inline(always)]
fn sloped<I: Isa>(isa: I, slope: f32, value: I::F32, open: I::M32) -> I::F32 {
    let ops = isa.f32();
    let off = if slope == 0.0 { ops.zero() } else { ops.mul(value, ops.splat(slope)) };
    ops.select(value, off, open)
}

/// Which elements of the vector whose bit in each word is `bit` are open.
#[inline(always)]
fn open_bits<I: Isa>(isa: I, set: I::I32, bit: i32) -> I::M32 {
    let words = isa.i32();
    let bits = words.splat(bit);
    words.eq(words.and(set, bits), bits)
}

struct Save<'a> {
    values: &'a [f32],
    open: Open,
    saved: &'a mut [f32],
}

impl SimdOp for Save<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let (floats, words) = (isa.f32(), isa.i32());
        let lanes = floats.len();
        for (values, saved) in self.values.chunks(BITS * lanes).zip(self.saved.chunks_exact_mut(lanes)) {
            let (mut set, mut bit) = (words.zero(), 1i32);
            for at in (0..values.len()).step_by(lanes) {
                let open = self.open.holds(isa, load(isa, values, at));
                set = words.or(set, words.select(words.splat(bit), words.zero(), open));
                bit = bit.wrapping_shl(1);
            }
            floats.store(set.reinterpret_cast(), saved);
        }
    }
}

struct ByBits<'a> {
    saved: &'a [f32],
    slope: f32,
    dy: &'a mut [f32],
}

impl SimdOp for ByBits<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let lanes = isa.f32().len();
        for (dy, saved) in self.dy.chunks_mut(BITS * lanes).zip(self.saved.chunks_exact(lanes)) {
            let set: I::I32 = isa.f32().load(saved).reinterpret_cast();
            let mut bit = 1i32;
            for at in (0..dy.len()).step_by(lanes) {
                let term = sloped(isa, self.slope, load(isa, dy, at), open_bits(isa, set, bit));
                store(isa, term, dy, at);
                bit = bit.wrapping_shl(1);
            }
        }
    }
}

struct AddByBits<'a> {
    saved: &'a [f32],
    slope: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    first: bool,
}

impl SimdOp for AddByBits<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let lanes = ops.len();
        let blocks = self.dy.chunks(BITS * lanes).zip(self.dx.chunks_mut(BITS * lanes));
        for ((dy, dx), saved) in blocks.zip(self.saved.chunks_exact(lanes)) {
            let set: I::I32 = ops.load(saved).reinterpret_cast();
            let mut bit = 1i32;
            for at in (0..dx.len()).step_by(lanes) {
                let term = sloped(isa, self.slope, load(isa, dy, at), open_bits(isa, set, bit));
                let sum = if self.first { term } else { ops.add(load(isa, dx, at), term) };
                store(isa, sum, dx, at);
                bit = bit.wrapping_shl(1);
            }
        }
    }
}

struct ByOutput<'a> {
    y: &'a [f32],
    open: Open,
    dy: &'a mut [f32],
}

impl SimdOp for ByOutput<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for at in (0..self.dy.len()).step_by(isa.f32().len()) {
            let open = self.open.holds(isa, load(isa, self.y, at));
            store(isa, sloped(isa, 0.0, load(isa, self.dy, at), open), self.dy, at);
        }
    }
}

struct AddByOutput<'a> {
    y: &'a [f32],
    open: Open,
    dy: &'a [f32],
    dx: &'a mut [f32],
    first: bool,
}

impl SimdOp for AddByOutput<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for at in (0..self.dx.len()).step_by(isa.f32().len()) {
            let open = self.open.holds(isa, load(isa, self.y, at));
            let term = sloped(isa, 0.0, load(isa, self.dy, at), open);
            let sum = if self.first { term } else { isa.f32().add(load(isa, self.dx, at), term) };
            store(isa, sum, self.dx, at);
        }
    }
}

#[inline(always)]
fn between<I: Isa>(isa: I, x: I::F32, low: f32, high: f32) -> I::F32 {
    let ops = isa.f32();
    let (low, high) = (ops.splat(low), ops.splat(high));
    let x = ops.select(low, x, ops.lt(x, low));
    ops.select(high, x, ops.gt(x, high))
}

struct Clamp<'a> {
    x: &'a [f32],
    low: f32,
    high: f32,
    y: &'a mut [f32],
}

impl SimdOp for Clamp<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for at in (0..self.y.len()).step_by(isa.f32().len()) {
            store(isa, between(isa, load(isa, self.x, at), self.low, self.high), self.y, at);
        }
    }
}

struct ClampInPlace<'a> {
    low: f32,
    high: f32,
    y: &'a mut [f32],
}

impl SimdOp for ClampInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for at in (0..self.y.len()).step_by(isa.f32().len()) {
            store(isa, between(isa, load(isa, self.y, at), self.low, self.high), self.y, at);
        }
    }
}

struct Leaky<'a> {
    x: &'a [f32],
    alpha: f32,
    y: &'a mut [f32],
}

impl SimdOp for Leaky<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        for at in (0..self.y.len()).step_by(ops.len()) {
            let x = load(isa, self.x, at);
            store(isa, ops.select(x, ops.mul(x, ops.splat(self.alpha)), ops.gt(x, ops.zero())), self.y, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut values: Vec<f32> = (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect();
        for (i, special) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 0.5, -0.25].into_iter().enumerate() {
            if let Some(value) = values.get_mut(i * 7 + 3) {
                *value = special;
            }
        }
        values
    }

    fn same(got: &[f32], want: impl Iterator<Item = f32>, what: &str) {
        let want: Vec<f32> = want.collect();
        assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()), "{what}");
        assert_eq!(got.len(), want.len(), "{what}");
    }

    /// Every length around the vectors and the blocks of bits, for both tokens, against plain scalar code.
    #[test]
    fn agrees_with_scalar_code_for_every_length() {
        let lens = (0..70).chain([127, 128, 129, 255, 256, 257, 300, 511, 512, 513, 1100]);
        for (len, generic) in lens.flat_map(|len| [(len, false), (len, true)]) {
            for (low, high) in [(0.0, None), (-0.25, Some(0.5)), (0.0, Some(6.0))] {
                let open = Open { low, high };
                let (y, dy, dx) = (values(1, len), values(2, len), values(3, len));
                let is_open = |y: f32| y > low && high.is_none_or(|high| y < high);
                let mut saved = vec![f32::NAN; mask_len(len)];
                on(generic, Save { values: &y, open, saved: &mut saved });
                for slope in [0.0, 0.2] {
                    let term = |i: usize| {
                        if is_open(y[i]) {
                            dy[i]
                        } else if slope == 0.0 {
                            0.0
                        } else {
                            dy[i] * slope
                        }
                    };
                    let mut got = dy.clone();
                    on(generic, ByBits { saved: &saved, slope, dy: &mut got });
                    same(&got, (0..len).map(term), "by bits");
                    for first in [false, true] {
                        let mut got = dx.clone();
                        on(generic, AddByBits { saved: &saved, slope, dy: &dy, dx: &mut got, first });
                        let want = (0..len).map(|i| if first { term(i) } else { dx[i] + term(i) });
                        same(&got, want, "add by bits");
                    }
                }
                let stopped = |i: usize| if is_open(y[i]) { dy[i] } else { 0.0 };
                let mut got = dy.clone();
                on(generic, ByOutput { y: &y, open, dy: &mut got });
                same(&got, (0..len).map(stopped), "by output");
                for first in [false, true] {
                    let mut got = dx.clone();
                    on(generic, AddByOutput { y: &y, open, dy: &dy, dx: &mut got, first });
                    let want = (0..len).map(|i| if first { stopped(i) } else { dx[i] + stopped(i) });
                    same(&got, want, "add by output");
                }
                let high = high.unwrap_or(f32::INFINITY);
                let clamped = |x: f32| {
                    let x = if x < low { low } else { x };
                    if x > high { high } else { x }
                };
                let (mut got, mut in_place) = (vec![0.0; len], y.clone());
                on(generic, Clamp { x: &y, low, high, y: &mut got });
                on(generic, ClampInPlace { low, high, y: &mut in_place });
                same(&got, y.iter().map(|x| clamped(*x)), "clamp");
                same(&in_place, y.iter().map(|x| clamped(*x)), "clamp in place");
            }
            let x = values(4, len);
            let mut got = vec![0.0; len];
            on(generic, Leaky { x: &x, alpha: 0.2, y: &mut got });
            same(&got, x.iter().map(|x| if *x > 0.0 { *x } else { x * 0.2 }), "leaky");
        }
    }
}
