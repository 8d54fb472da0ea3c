//! Means and largest values of windows, channels last, and their gradients; formulas in [`crate::ops::pool`].
//!
//! The winner of a maximum is kept as the number of its tap, in fields of as many bits as that needs (1, 2, 4, 8, 16, 32). Each
//! vector of channels of each output position has a field in every word of a vector of words; the words are only moved,
//! never calculated with as floats, and are read on the machine that wrote them.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::conv_geometry::ConvGeometry;
use super::mask::{load, store};

/// y = factor · Σ x over the taps of each output that lie in the plane; `factor` is asked for the output's row and column.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn average(g: &ConvGeometry, factor: impl Fn([usize; 2]) -> f32, x: &[f32], y: &mut [f32]) {
    Average { g, factor, x, y }.dispatch();
}

/// dx += factor · dy at each tap. `dy` becomes factor · dy.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn average_gradient(g: &ConvGeometry, factor: impl Fn([usize; 2]) -> f32, dy: &mut [f32], dx: &mut [f32]) {
    AverageGradient { g, factor, dy, dx }.dispatch();
}

/// y = max x over the taps of each output that lie in the plane, −∞ where there are none. The first of equal taps wins, not a
/// number wins over every number. Unless it is empty, `winners [winners_len(g)]` remembers which.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn maximum(g: &ConvGeometry, x: &[f32], y: &mut [f32], winners: &mut [f32]) {
    if winners.is_empty() {
        Maximum::<false> { g, x, y, winners }.dispatch();
    } else {
        Maximum::<true> { g, x, y, winners }.dispatch();
    }
}

/// dx += dy at the winner of each output, as [`maximum`] left them.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn maximum_gradient(g: &ConvGeometry, winners: &[f32], dy: &[f32], dx: &mut [f32]) {
    MaximumGradient { g, winners, dy, dx }.dispatch();
}

/// Words for the winners of [`maximum`], whatever the length of a vector.
pub fn winners_len(g: &ConvGeometry) -> usize {
    let fields = WORD / field_bits(g) as usize;
    let words = |lanes: usize| (g.positions() * g.input_channels.div_ceil(lanes)).div_ceil(fields) * lanes;
    [4, 8, 16].into_iter().map(words).max().unwrap_or(0)
}

/// Bits of a word.
const WORD: usize = 32;

/// Bits that the number of a tap takes.
fn field_bits(g: &ConvGeometry) -> u32 {
    let last = (g.kernel[0] * g.kernel[1]).saturating_sub(1);
    (usize::BITS - last.leading_zeros()).max(1).next_power_of_two()
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

#[inline(always)]
fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|v| *v *= factor);
}

struct Average<'a, F> {
    g: &'a ConvGeometry,
    factor: F,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<F: Fn([usize; 2]) -> f32> SimdOp for Average<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let (g, channels) = (self.g, self.g.input_channels);
        let mut outputs = self.y.chunks_exact_mut(channels.max(1));
        for oy in 0..g.output[0] {
            for (ox, y) in (0..g.output[1]).zip(&mut outputs) {
                let factor = (self.factor)([oy, ox]);
                let c = blocks::<I, 8>(isa, g, [oy, ox], factor, self.x, 0, y);
                let c = blocks::<I, 1>(isa, g, [oy, ox], factor, self.x, c, y);
                for c in c..channels {
                    let mut sum = 0.0;
                    taps(g, [oy, ox], |_, at| sum += self.x[at * channels + c]);
                    y[c] = sum * factor;
                }
            }
        }
    }
}

/// The means of channels from `c` on, `NV` vectors at once, as long as there are so many; the channel behind them.
#[inline(always)]
fn blocks<I: Isa, const NV: usize>(
    isa: I,
    g: &ConvGeometry,
    output: [usize; 2],
    factor: f32,
    x: &[f32],
    mut c: usize,
    y: &mut [f32],
) -> usize {
    let ops = isa.f32();
    let (lanes, channels) = (ops.len(), y.len());
    let factor = ops.splat(factor);
    while c + NV * lanes <= channels {
        let mut sums = [ops.zero(); NV];
        taps(g, output, |_, at| {
            let x = &x[at * channels + c..][..NV * lanes];
            for v in 0..NV {
                sums[v] = ops.add(sums[v], ops.load(&x[v * lanes..]));
            }
        });
        let y = &mut y[c..c + NV * lanes];
        for v in 0..NV {
            ops.store(ops.mul(sums[v], factor), &mut y[v * lanes..]);
        }
        c += NV * lanes;
    }
    c
}

/// The taps of an output that lie in the plane, in the order of the kernel: their numbers and positions.
#[inline(always)]
fn taps(g: &ConvGeometry, [oy, ox]: [usize; 2], mut tap: impl FnMut(usize, usize)) {
    for ky in g.taps(0, oy) {
        let line = g.position(0, oy, ky) * g.input[1];
        for kx in g.taps(1, ox) {
            tap(ky * g.kernel[1] + kx, line + g.position(1, ox, kx));
        }
    }
}

struct AverageGradient<'a, F> {
    g: &'a ConvGeometry,
    factor: F,
    dy: &'a mut [f32],
    dx: &'a mut [f32],
}

impl<F: Fn([usize; 2]) -> f32> SimdOp for AverageGradient<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let (g, channels) = (self.g, self.g.input_channels);
        let mut outputs = self.dy.chunks_exact_mut(channels.max(1));
        for oy in 0..g.output[0] {
            for (ox, dy) in (0..g.output[1]).zip(&mut outputs) {
                scale(dy, (self.factor)([oy, ox]));
                taps(g, [oy, ox], |_, at| add(&mut self.dx[at * channels..][..channels], dy));
            }
        }
    }
}

struct Maximum<'a, const KEEP: bool> {
    g: &'a ConvGeometry,
    x: &'a [f32],
    y: &'a mut [f32],
    winners: &'a mut [f32],
}

impl<const KEEP: bool> SimdOp for Maximum<'_, KEEP> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let (floats, words) = (isa.f32(), isa.i32());
        let (lanes, g, channels, bits) = (floats.len(), self.g, self.g.input_channels, field_bits(self.g));
        let mut outputs = self.y.chunks_exact_mut(channels.max(1));
        let mut winners = self.winners.chunks_exact_mut(lanes);
        let (mut set, mut shift) = (words.zero(), 0);
        for oy in 0..g.output[0] {
            for (ox, y) in (0..g.output[1]).zip(&mut outputs) {
                let first = g.taps(0, oy).start * g.kernel[1] + g.taps(1, ox).start;
                for (block, y) in y.chunks_mut(lanes).enumerate() {
                    let mut largest = floats.splat(f32::NEG_INFINITY);
                    let mut winner = words.splat(field(first, shift));
                    taps(g, [oy, ox], |tap, at| {
                        let x = load(isa, &self.x[at * channels + block * lanes..][..y.len()]);
                        let (more, number) = (floats.gt(x, largest), floats.eq(x, x));
                        largest = floats.select(floats.select(x, largest, more), x, number);
                        if KEEP {
                            let tap = words.splat(field(tap, shift));
                            winner = words.select(words.select(tap, winner, more), tap, number);
                        }
                    });
                    store(isa, largest, y);
                    if KEEP {
                        set = words.or(set, winner);
                        shift += bits;
                        if shift as usize == WORD {
                            if let Some(winners) = winners.next() {
                                floats.store(set.reinterpret_cast(), winners);
                            }
                            (set, shift) = (words.zero(), 0);
                        }
                    }
                }
            }
        }
        if let Some(winners) = winners.next().filter(|_| shift > 0) {
            floats.store(set.reinterpret_cast(), winners);
        }
    }
}

/// The number of a tap where its field is.
#[inline(always)]
fn field(tap: usize, shift: u32) -> i32 {
    (tap as i32).wrapping_shl(shift)
}

struct MaximumGradient<'a> {
    g: &'a ConvGeometry,
    winners: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl SimdOp for MaximumGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let (floats, words) = (isa.f32(), isa.i32());
        let (lanes, g, channels, bits) = (floats.len(), self.g, self.g.input_channels, field_bits(self.g));
        let mut outputs = self.dy.chunks_exact(channels.max(1));
        let mut winners = self.winners.chunks_exact(lanes);
        let (mut set, mut shift) = (words.zero(), 0);
        for oy in 0..g.output[0] {
            for (ox, dy) in (0..g.output[1]).zip(&mut outputs) {
                for (block, dy) in dy.chunks(lanes).enumerate() {
                    if shift == 0 {
                        set = winners.next().map_or(words.zero(), |winners| floats.load(winners).reinterpret_cast());
                    }
                    let mine = words.and(set, words.splat(((u32::MAX >> (WORD as u32 - bits)) << shift) as i32));
                    let values = load(isa, dy);
                    taps(g, [oy, ox], |tap, at| {
                        let dx = &mut self.dx[at * channels + block * lanes..][..dy.len()];
                        let won = words.eq(mine, words.splat(field(tap, shift)));
                        store(isa, floats.add(load(isa, dx), floats.select(values, floats.zero(), won)), dx);
                    });
                    shift = (shift + bits) % WORD as u32;
                }
            }
        }
    }
}
