//! Depthwise convolution of one plane, channels last: each channel with its own taps.
//!
//! A vector of channels is the unit. The outputs of a row that read the same taps (all but those at the border) form a
//! `Run`; a tile of a run stays in registers while the taps are added in the order of the kernel. The input gradient is
//! the same loop with the roles of the planes exchanged: input positions of one phase of the stride form the runs.
//! Each output is one chain of multiply-adds in the order of the kernel, whatever tile it falls in.
//!
//! Rows form runs in the same way, so that the places of the taps are worked out once a run. The common kernels have a loop of
//! their own (`depthwise/lines.rs`).
//!
//! Tiles of one size are walked through all rows in one dispatch: with more than one size of tile in a dispatch LLVM stops
//! inlining the SIMD loads, which made it several times slower.

mod lines;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::between;
use super::conv_geometry::ConvGeometry;
use super::gemm::lanes;

/// y = bias + conv(x), `x [height, width, channels]`, `w [kernel_h * kernel_w, channels]`, `y [out_h, out_w, channels]`.
///
/// An empty `bias` is zero. With `clamp`, y ends between the two bounds (lower first; not a number stays).
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn forward(g: &ConvGeometry, x: &[f32], w: &[f32], bias: &[f32], clamp: Option<[f32; 2]>, y: &mut [f32]) {
    Depthwise { g, from: x, w, bias, clamp, back: false, first: true }.run(y);
}

/// dx += conv_transposed(dy): the input gradient, shapes as in [`forward`]; `first`: dx is written, not added to.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn input_gradient(g: &ConvGeometry, dy: &[f32], w: &[f32], dx: &mut [f32], first: bool) {
    Depthwise { g, from: dy, w, bias: &[], clamp: None, back: true, first }.run(dx);
}

/// Written positions `first, first + phases, …` (`count` of them) that read the same taps.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    first: usize,
    count: usize,
    taps: Taps,
}

/// Taps `tap, tap + tap_step, …` (`count` of them), and the read position of each: `at, at + at_step, …`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Taps {
    tap: usize,
    tap_step: usize,
    count: usize,
    at: usize,
    at_step: isize,
}

impl Taps {
    /// Tap `i` and the position that it reads.
    #[inline(always)]
    fn nth(self, i: usize) -> (usize, usize) {
        (self.tap + i * self.tap_step, self.at.wrapping_add_signed(i as isize * self.at_step))
    }

    /// Whether these are the taps of a position whose neighbour `step` before it has `before`.
    fn follow(self, before: Self, step: usize) -> bool {
        self == Self { at: before.at + step, ..before } || (self.count == 0 && before.count == 0)
    }
}

/// Positions times vectors of channels: at most 12 accumulators, of the 16 registers of AVX2; 24 of the 32 of NEON.
const WIDE: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };

struct Depthwise<'a> {
    g: &'a ConvGeometry,
    /// Read: x, or dy on the way back.
    from: &'a [f32],
    w: &'a [f32],
    bias: &'a [f32],
    clamp: Option<[f32; 2]>,
    /// From dy to dx.
    back: bool,
    /// Writes; else adds to what is there.
    first: bool,
}

impl Depthwise<'_> {
    /// Writes y, or adds to dx on the way back.
    fn run(self, to: &mut [f32]) {
        if !self.lines(to) {
            self.runs(to);
        }
    }

    fn runs(&self, to: &mut [f32]) {
        let mut next = 0;
        while let Some(run) = self.run_from(1, &mut next) {
            let mut done = 0;
            while done < run.count {
                done += match run.count - done {
                    6.. => self.tiles::<6, { 2 * WIDE }>(run, done, to),
                    4.. => self.tiles::<4, { 2 * WIDE }>(run, done, to),
                    3 => self.tiles::<3, { 4 * WIDE }>(run, done, to),
                    2 => self.tiles::<2, { 4 * WIDE }>(run, done, to),
                    _ => self.tiles::<1, { 8 * WIDE }>(run, done, to),
                };
            }
        }
    }

    /// As many tiles of `T` positions as the run has from its position `done` on, in every row, `NV` vectors of channels at
    /// a time.
    fn tiles<const T: usize, const NV: usize>(&self, run: Run, done: usize, to: &mut [f32]) -> usize {
        let end = run.count - (run.count - done) % T;
        Tiles::<T, NV> { of: self, run, done, end, to }.dispatch();
        end - done
    }

    /// The written plane, or the read one.
    #[inline(always)]
    fn plane(&self, written: bool) -> [usize; 2] {
        if written != self.back { self.g.output } else { self.g.input }
    }

    /// Written positions that are one apart in the pattern of taps.
    #[inline(always)]
    fn phases(&self, axis: usize) -> usize {
        if self.back { self.g.stride[axis] } else { 1 }
    }

    /// Read positions between two written ones.
    #[inline(always)]
    fn step(&self, axis: usize) -> usize {
        if self.back { 1 } else { self.g.stride[axis] }
    }

    /// The taps of written position `o`.
    #[inline(always)]
    fn taps(&self, axis: usize, o: usize) -> Taps {
        let g = self.g;
        let (kernel, stride, dilation, pad) = (g.kernel[axis], g.stride[axis], g.dilation[axis], g.pads_begin[axis]);
        if !self.back {
            let range = g.taps(axis, o);
            let at = if range.is_empty() { 0 } else { g.position(axis, o, range.start) };
            return Taps { tap: range.start, tap_step: 1, count: range.len(), at, at_step: dilation as isize };
        }
        // Output position q reads o by tap t where q·stride = o + pad − t·dilation.
        let read = |t: usize| {
            let at = (o + pad).checked_sub(t * dilation)?;
            (at.is_multiple_of(stride) && at / stride < g.output[axis]).then_some(at / stride)
        };
        let mut taps = Taps::default();
        for (t, at) in (0..kernel).filter_map(|t| Some((t, read(t)?))) {
            match taps.count {
                0 => (taps.tap, taps.at) = (t, at),
                1 => (taps.tap_step, taps.at_step) = (t - taps.tap, at as isize - taps.at as isize),
                _ => {}
            }
            taps.count += 1;
        }
        taps
    }

    /// The run along `axis` that starts at the lowest position from `next` on that none covers yet; phases come one after the
    /// other, `next` counting through all of them.
    #[inline(always)]
    fn run_from(&self, axis: usize, next: &mut usize) -> Option<Run> {
        let width = self.plane(true)[axis];
        let phases = self.phases(axis);
        let each = width.div_ceil(phases);
        let place = |n: usize| (n / each, n % each);
        loop {
            let (phase, index) = place(*next);
            if phase >= phases {
                return None;
            }
            let first = phase + index * phases;
            if first >= width {
                *next = (phase + 1) * each;
                continue;
            }
            let taps = self.taps(axis, first);
            let mut run = Run { first, count: 1, taps };
            let mut last = taps;
            while first + run.count * phases < width {
                let now = self.taps(axis, first + run.count * phases);
                if !now.follow(last, self.step(axis)) {
                    break;
                }
                last = now;
                run.count += 1;
            }
            *next += run.count;
            return Some(run);
        }
    }
}

/// Taps of a tile: where its weights stand, and what its first position reads.
#[derive(Clone, Copy, Debug, Default)]
struct Tap {
    w: usize,
    from: usize,
}

/// Taps that are added in one go; a larger kernel takes several.
const TAPS: usize = 32;

struct Tiles<'a, 'b, const T: usize, const NV: usize> {
    of: &'a Depthwise<'b>,
    run: Run,
    done: usize,
    end: usize,
    to: &'a mut [f32],
}

impl<const T: usize, const NV: usize> SimdOp for Tiles<'_, '_, T, NV> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Depthwise { g, from, w, bias, clamp, first, .. } = *self.of;
        let lanes = isa.f32().len();
        let channels = g.input_channels;
        let (written, read) = (self.of.plane(true), self.of.plane(false));
        let (to_step, from_step) = (self.of.phases(1) * channels, self.of.step(1) * channels);
        let mut taps = [Tap::default(); TAPS];
        let mut next = 0;
        while let Some(rows) = self.of.run_from(0, &mut next) {
            let count = rows.taps.count * self.run.taps.count;
            let (mut start, mut at) = (0, [0, 0]);
            // Once at least: without a tap the bias still stands.
            while start == 0 || start < count {
                let end = count.min(start + TAPS);
                for tap in &mut taps[..end - start] {
                    let ((ky, iy), (kx, ix)) = (rows.taps.nth(at[0]), self.run.taps.nth(at[1]));
                    let from = (iy * read[1] + ix) * channels;
                    *tap = Tap { w: (ky * g.kernel[1] + kx) * channels, from };
                    at = if at[1] + 1 < self.run.taps.count { [at[0], at[1] + 1] } else { [at[0] + 1, 0] };
                }
                let taps = &taps[..end - start];
                let bias = if first && start == 0 { Some(bias) } else { None };
                let clamp = clamp.filter(|_| end == count);
                for row in 0..rows.count {
                    let line = ((rows.first + row * self.of.phases(0)) * written[1] + self.run.first) * channels;
                    let from_line = row * self.of.step(0) * read[1] * channels;
                    let mut done = self.done;
                    while done < self.end {
                        let to = &mut self.to[line + done * to_step..];
                        // Padding wider than the kernel: positions without a tap, past what is read.
                        let from = if count == 0 { &[] } else { &from[from_line + done * from_step..] };
                        let mut c = 0;
                        while channels - c >= NV * lanes {
                            tile::<I, T, NV, false>(
                                isa, c, channels, taps, bias, w, from, from_step, to, to_step, clamp,
                            );
                            c += NV * lanes;
                        }
                        while NV > 1 && channels - c >= lanes {
                            tile::<I, T, 1, false>(
                                isa, c, channels, taps, bias, w, from, from_step, to, to_step, clamp,
                            );
                            c += lanes;
                        }
                        if c < channels {
                            tile::<I, T, 1, true>(isa, c, channels, taps, bias, w, from, from_step, to, to_step, clamp);
                        }
                        done += T;
                    }
                }
                start = end.max(1);
            }
        }
    }
}

/// `T` positions for `NV` vectors of channels from `c` on; `bias` none: adds to what is there.
#[inline(always)]
fn tile<I: Isa, const T: usize, const NV: usize, const TAIL: bool>(
    isa: I,
    c: usize,
    channels: usize,
    taps: &[Tap],
    bias: Option<&[f32]>,
    w: &[f32],
    from: &[f32],
    from_step: usize,
    to: &mut [f32],
    to_step: usize,
    clamp: Option<[f32; 2]>,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let width = if TAIL { channels - c } else { NV * lanes };
    let to = &mut to[c..][..(T - 1) * to_step + width];
    let mut acc = [[ops.zero(); NV]; T];
    for t in 0..T {
        let start = match bias {
            None => &to[t * to_step..][..width],
            Some([]) => continue,
            Some(bias) => &bias[c..][..width],
        };
        for v in 0..NV {
            acc[t][v] = if TAIL { ops.load_pad(start).0 } else { ops.load(&start[v * lanes..]) };
        }
    }
    if cfg!(target_arch = "aarch64") && !TAIL {
        for tap in taps {
            let w = &w[tap.w + c..][..width];
            let from = &from[tap.from + c..][..(T - 1) * from_step + width];
            // One base a position: so LLVM loads two vectors at a time.
            for t in 0..T {
                let x = &from[t * from_step..][..width];
                for v in 0..NV {
                    acc[t][v] = ops.mul_add(ops.load(&x[v * lanes..]), ops.load(&w[v * lanes..]), acc[t][v]);
                }
            }
        }
    } else if !taps.is_empty() {
        // Of one length, so that one check a tap holds for all of them.
        let len = from.len() - c - (T - 1) * from_step;
        let mut positions = [&from[..0]; T];
        for t in 0..T {
            positions[t] = &from[c + t * from_step..][..len];
        }
        for tap in taps {
            let w = &w[tap.w + c..][..width];
            for v in 0..NV {
                let w = if TAIL { ops.load_pad(w).0 } else { ops.load(&w[v * lanes..]) };
                for t in 0..T {
                    let x = &positions[t][tap.from..][..width];
                    let x = if TAIL { ops.load_pad(x).0 } else { ops.load(&x[v * lanes..]) };
                    acc[t][v] = ops.mul_add(x, w, acc[t][v]);
                }
            }
        }
    }
    if let Some([low, high]) = clamp {
        let (low, high) = (ops.splat(low), ops.splat(high));
        for t in 0..T {
            for v in 0..NV {
                acc[t][v] = between(isa, low, high, acc[t][v]);
            }
        }
    }
    for t in 0..T {
        let to = &mut to[t * to_step..][..width];
        for v in 0..NV {
            if TAIL {
                to.copy_from_slice(&acc[t][v].to_array().as_ref()[..width]);
            } else {
                ops.store(acc[t][v], &mut to[v * lanes..]);
            }
        }
    }
}
