//! Activations of straight pieces (Relu, Clip, LeakyRelu), and the bits that remember on which side of a kink a value was.
//!
//! Bit `31 - v` of word `l` belongs to element `v · lanes + l` of its block of `32 · lanes` elements: so bits are
//! gathered and spread by whole vectors, and the next one to read is the sign. The words are only moved, never calculated with
//! as floats, and are read on the machine that wrote them.
//!
//! Where a value is masked in place on x86-64, zero is added first: otherwise LLVM stores through a mask, which costs some
//! twenty cycles a vector on AMD's Zen (seen in the profile of a DS-CNN).

use rten_simd::ops::{BitOps, IntOps, MaskOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::on;

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
    /// `HIGH`: there is an upper bound.
    #[inline(always)]
    fn holds<I: Isa, const HIGH: bool>(self, isa: I, x: I::F32) -> I::M32 {
        let ops = isa.f32();
        let above = ops.gt(x, ops.splat(self.low));
        match self.high {
            Some(high) if HIGH => isa.m32().and(above, ops.lt(x, ops.splat(high))),
            _ => above,
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

/// The leading values, padded with zeros where fewer are left than a vector has.
#[inline(always)]
pub(super) fn load<I: Isa>(isa: I, x: &[f32]) -> I::F32 {
    let ops = isa.f32();
    if x.len() >= ops.len() { ops.load(x) } else { ops.load_pad(x).0 }
}

/// Writes as many values of `new` as there is room for.
#[inline(always)]
pub(super) fn store<I: Isa>(isa: I, new: I::F32, y: &mut [f32]) {
    let ops = isa.f32();
    if y.len() >= ops.len() {
        ops.store(new, y);
    } else {
        y.copy_from_slice(&new.to_array().as_ref()[..y.len()]);
    }
}

/// A value of the result from one of each operand, by whole vectors.
trait Map: Copy {
    /// `y` is what stands where the result goes.
    fn of<I: Isa>(self, isa: I, a: I::F32, b: I::F32, y: I::F32) -> I::F32;
}

/// Vectors of a turn of a loop: NEON loads and stores two with one instruction, and what the loop itself takes counts.
const TURN: usize = 8;

/// `y = map(a, b, y)` for slices of one length. Whole turns first: their loads need no check.
#[inline(always)]
fn map<I: Isa>(isa: I, map: impl Map, a: &[f32], b: &[f32], y: &mut [f32]) {
    let ops = isa.f32();
    let lanes = ops.len();
    let turn = TURN * lanes;
    let (mut a, mut b, mut y) = (a.chunks_exact(turn), b.chunks_exact(turn), y.chunks_exact_mut(turn));
    for ((a, b), y) in (&mut a).zip(&mut b).zip(&mut y) {
        let mut new = [ops.zero(); TURN];
        for v in 0..TURN {
            let at = v * lanes;
            new[v] = map.of(isa, ops.load(&a[at..]), ops.load(&b[at..]), ops.load(&y[at..]));
        }
        store_turn(isa, new, y);
    }
    let (a, b, y) = (a.remainder(), b.remainder(), y.into_remainder());
    for ((a, b), y) in a.chunks(lanes).zip(b.chunks(lanes)).zip(y.chunks_mut(lanes)) {
        store(isa, map.of(isa, load(isa, a), load(isa, b), load(isa, y)), y);
    }
}

/// [`map`] in place.
#[inline(always)]
fn map_in_place<I: Isa>(isa: I, map: impl Map, y: &mut [f32]) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut turns = y.chunks_exact_mut(TURN * lanes);
    for y in &mut turns {
        let mut new = [ops.zero(); TURN];
        for v in 0..TURN {
            let value = ops.load(&y[v * lanes..]);
            new[v] = map.of(isa, value, value, value);
        }
        store_turn(isa, new, y);
    }
    for y in turns.into_remainder().chunks_mut(lanes) {
        let value = load(isa, y);
        store(isa, map.of(isa, value, value, value), y);
    }
}

#[inline(always)]
fn store_turn<I: Isa>(isa: I, new: [I::F32; TURN], y: &mut [f32]) {
    let ops = isa.f32();
    for v in 0..TURN {
        ops.store(new[v], &mut y[v * ops.len()..]);
    }
}

/// `dy`, so that LLVM does not store it through a mask; on x86-64 a negative zero loses its sign.
#[inline(always)]
fn unmasked<I: Isa>(isa: I, dy: I::F32) -> I::F32 {
    if cfg!(target_arch = "x86_64") { isa.f32().add(dy, isa.f32().zero()) } else { dy }
}

/// `value`, or `value · slope` where `open` is not set.
#[inline(always)]
fn sloped<I: Isa>(isa: I, slope: f32, value: I::F32, open: I::M32) -> I::F32 {
    let ops = isa.f32();
    let off = if slope == 0.0 { ops.zero() } else { ops.mul(value, ops.splat(slope)) };
    ops.select(value, off, open)
}

/// Which elements of the vector whose bits are next are open; then the bits of the one behind it are next.
#[inline(always)]
fn take_bits<I: Isa>(isa: I, set: &mut I::I32) -> I::M32 {
    let words = isa.i32();
    let open = words.gt(words.zero(), *set);
    *set = words.shift_left::<1>(*set);
    open
}

/// Puts the bits of a vector behind those that are there.
#[inline(always)]
fn put_bits<I: Isa, const HIGH: bool>(isa: I, open: Open, x: I::F32, set: &mut I::I32) {
    let words = isa.i32();
    // A set lane of a mask is minus one: taken away it sets the lowest bit.
    let open = words.select(words.splat(-1), words.zero(), open.holds::<I, HIGH>(isa, x));
    *set = words.sub(words.shift_left::<1>(*set), open);
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
        // Two loops: a mask that is made on two ways is narrowed and widened again.
        match self.open.high {
            None => save_bits::<I, false>(isa, self),
            Some(_) => save_bits::<I, true>(isa, self),
        }
    }
}

#[inline(always)]
fn save_bits<I: Isa, const HIGH: bool>(isa: I, save: Save) {
    let (floats, words) = (isa.f32(), isa.i32());
    let lanes = floats.len();
    for (values, saved) in save.values.chunks(BITS * lanes).zip(save.saved.chunks_exact_mut(lanes)) {
        let mut set = words.zero();
        let turns = values.chunks_exact(TURN * lanes);
        let rest = turns.remainder();
        for turn in turns {
            for v in 0..TURN {
                put_bits::<I, HIGH>(isa, save.open, floats.load(&turn[v * lanes..]), &mut set);
            }
        }
        for x in rest.chunks(lanes) {
            put_bits::<I, HIGH>(isa, save.open, load(isa, x), &mut set);
        }
        for _ in values.len().div_ceil(lanes)..BITS {
            set = words.shift_left::<1>(set);
        }
        floats.store(set.reinterpret_cast(), saved);
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
        let ops = isa.f32();
        let lanes = ops.len();
        for (dy, saved) in self.dy.chunks_mut(BITS * lanes).zip(self.saved.chunks_exact(lanes)) {
            let mut set: I::I32 = ops.load(saved).reinterpret_cast();
            let mut turns = dy.chunks_exact_mut(TURN * lanes);
            for dy in &mut turns {
                let mut new = [ops.zero(); TURN];
                for v in 0..TURN {
                    let value = unmasked(isa, ops.load(&dy[v * lanes..]));
                    new[v] = sloped(isa, self.slope, value, take_bits(isa, &mut set));
                }
                store_turn(isa, new, dy);
            }
            for dy in turns.into_remainder().chunks_mut(lanes) {
                let value = unmasked(isa, load(isa, dy));
                store(isa, sloped(isa, self.slope, value, take_bits(isa, &mut set)), dy);
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
        let (ops, slope, first) = (isa.f32(), self.slope, self.first);
        let lanes = ops.len();
        let blocks = self.dy.chunks(BITS * lanes).zip(self.dx.chunks_mut(BITS * lanes));
        for ((dy, dx), saved) in blocks.zip(self.saved.chunks_exact(lanes)) {
            let mut set: I::I32 = ops.load(saved).reinterpret_cast();
            let (mut from, mut to) = (dy.chunks_exact(TURN * lanes), dx.chunks_exact_mut(TURN * lanes));
            for (dy, dx) in (&mut from).zip(&mut to) {
                let mut new = [ops.zero(); TURN];
                for v in 0..TURN {
                    let at = v * lanes;
                    let term = sloped(isa, slope, ops.load(&dy[at..]), take_bits(isa, &mut set));
                    new[v] = if first { term } else { ops.add(ops.load(&dx[at..]), term) };
                }
                store_turn(isa, new, dx);
            }
            for (dy, dx) in from.remainder().chunks(lanes).zip(to.into_remainder().chunks_mut(lanes)) {
                let term = sloped(isa, slope, load(isa, dy), take_bits(isa, &mut set));
                store(isa, if first { term } else { ops.add(load(isa, dx), term) }, dx);
            }
        }
    }
}

/// dy where y is open, with `ADD` added to what is there.
#[derive(Clone, Copy)]
struct Opened<const HIGH: bool, const ADD: bool>(Open);

impl<const HIGH: bool, const ADD: bool> Map for Opened<HIGH, ADD> {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, y: I::F32, dy: I::F32, dx: I::F32) -> I::F32 {
        let ops = isa.f32();
        let dy = if ADD { dy } else { unmasked(isa, dy) };
        let term = ops.select(dy, ops.zero(), self.0.holds::<I, HIGH>(isa, y));
        if ADD { ops.add(dx, term) } else { term }
    }
}

/// [`Opened`] of what stands there.
#[derive(Clone, Copy)]
struct OpenedHere<const HIGH: bool>(Open);

impl<const HIGH: bool> Map for OpenedHere<HIGH> {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, y: I::F32, _: I::F32, dy: I::F32) -> I::F32 {
        Opened::<HIGH, false>(self.0).of(isa, y, dy, dy)
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
        match self.open.high {
            None => map(isa, OpenedHere::<false>(self.open), self.y, self.y, self.dy),
            Some(_) => map(isa, OpenedHere::<true>(self.open), self.y, self.y, self.dy),
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
        let Self { y, open, dy, dx, first } = self;
        match (open.high, first) {
            (None, true) => map(isa, Opened::<false, false>(open), y, dy, dx),
            (None, false) => map(isa, Opened::<false, true>(open), y, dy, dx),
            (Some(_), true) => map(isa, Opened::<true, false>(open), y, dy, dx),
            (Some(_), false) => map(isa, Opened::<true, true>(open), y, dy, dx),
        }
    }
}

/// Not a number stays: [`NumOps::min`] and `max` of the token without SIMD lose it on aarch64.
#[derive(Clone, Copy)]
struct Between {
    low: f32,
    high: f32,
}

impl Map for Between {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, x: I::F32, _: I::F32, _: I::F32) -> I::F32 {
        let ops = isa.f32();
        let (low, high) = (ops.splat(self.low), ops.splat(self.high));
        let x = ops.select(low, x, ops.lt(x, low));
        ops.select(high, x, ops.gt(x, high))
    }
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
        map(isa, Between { low: self.low, high: self.high }, self.x, self.x, self.y);
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
        map_in_place(isa, Between { low: self.low, high: self.high }, self.y);
    }
}

/// x where it is positive, else this times x.
#[derive(Clone, Copy)]
struct Slope(f32);

impl Map for Slope {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, x: I::F32, _: I::F32, _: I::F32) -> I::F32 {
        let ops = isa.f32();
        ops.select(x, ops.mul(x, ops.splat(self.0)), ops.gt(x, ops.zero()))
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
        map(isa, Slope(self.alpha), self.x, self.x, self.y);
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
