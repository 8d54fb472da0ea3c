//! Depthwise convolution by pieces of rows, for the kernels that networks use: 3 x 3 and 5 x 5, not dilated, with stride 1, and
//! their input gradients, with stride 2 too.
//!
//! The outputs of a piece stay in registers, and so do the taps of the kernel's row at hand: each vector that is read goes to
//! all outputs that want it. Padding is read from zeros, so that every output has all taps, row by row in the order in which
//! they are read. From row to row only what is new is looked up. (Forward with stride 2 shares too little: it was slower.)
//!
//! All slices have one length, that of the channels at hand, so that one check of the channel holds for every load. On aarch64
//! the taps are packed for some channels at a time: one address in the place of one a tap, for which there are no registers.

use std::ops::Range;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::{Depthwise, lanes};

/// Outputs of the longest piece: with a vector of the input and a row of taps they leave some of 16 registers.
const LONGEST: usize = 8;

/// Taps of a kernel's row, at most.
const TAPS: usize = 5;

/// Vectors of channels at once: NEON loads two with one instruction, and has registers for both. With AVX2's sixteen it took 1.5
/// times as long.
const WIDE: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };

/// Whether the taps are packed: NEON has no load of two vectors that adds a register to its address. With AVX2 the loops would
/// take 0.97 of their instructions, but what packs takes more than that saves.
const PACKED: bool = cfg!(target_arch = "aarch64");

/// Channels for which all pieces are done before the next.
const BLOCK: usize = if PACKED { 128 } else { ZEROS.len() };

/// What padding is read from, and the most channels.
static ZEROS: [f32; 2048] = [0.0; 2048];

/// Written positions along an axis that read the same taps: `first, first + step, …` (`count` of them). The first reads
/// from `pad` before the beginning on, the next from one further.
#[derive(Clone, Copy, Debug)]
struct Axis {
    first: usize,
    step: usize,
    count: usize,
    pad: isize,
    /// Taps in the order of what they read: `tap, tap - step, …` on the way back, else `0, 1, …`.
    tap: usize,
    taps: usize,
    back: bool,
    /// Lengths of the planes.
    written: usize,
    read: usize,
}

impl Axis {
    #[inline(always)]
    fn nth_tap(self, i: usize) -> usize {
        if self.back { self.tap - i * self.step } else { i }
    }

    /// Whether one piece has all outputs and reads one position of padding at each end.
    fn is_whole(self) -> bool {
        (1..=LONGEST).contains(&self.count) && self.read == self.count && self.pad == 1
    }
}

impl Depthwise<'_> {
    /// Does the whole of it, or says that it is not of this kind.
    pub(super) fn lines(&self, to: &mut [f32]) -> bool {
        let g = self.g;
        let channels = g.input_channels;
        let stride = g.stride[0];
        let square = g.kernel == [3, 3] || g.kernel == [5, 5];
        if !square || g.dilation != [1, 1] || g.stride != [stride; 2] || stride > if self.back { 2 } else { 1 } {
            return false;
        }
        if channels > ZEROS.len() || !channels.is_multiple_of(WIDE * lanes()) {
            return false;
        }
        for row_phase in 0..stride {
            for column_phase in 0..stride {
                let (rows, columns) = (self.axis(0, row_phase), self.axis(1, column_phase));
                match (rows.taps, columns.taps) {
                    (1, 1) => self.pieces::<1, 1>(rows, columns, to),
                    (1, 2) => self.pieces::<1, 2>(rows, columns, to),
                    (2, 1) => self.pieces::<2, 1>(rows, columns, to),
                    (2, 2) => self.pieces::<2, 2>(rows, columns, to),
                    (2, 3) => self.pieces::<2, 3>(rows, columns, to),
                    (3, 2) => self.pieces::<3, 2>(rows, columns, to),
                    (3, 3) if columns.is_whole() => self.whole_rows(rows, columns, to),
                    (3, 3) => self.pieces::<3, 3>(rows, columns, to),
                    _ => self.pieces::<5, 5>(rows, columns, to),
                }
            }
        }
        true
    }

    /// Written positions `phase, phase + stride, …` on the way back; forward all of them.
    fn axis(&self, axis: usize, phase: usize) -> Axis {
        let g = self.g;
        let (kernel, stride, pad) = (g.kernel[axis], g.stride[axis], g.pads_begin[axis]);
        let (written, read) = (self.plane(true)[axis], self.plane(false)[axis]);
        let back = self.back;
        if !back {
            return Axis {
                first: 0,
                step: 1,
                count: written,
                pad: pad as isize,
                tap: 0,
                taps: kernel,
                back,
                written,
                read,
            };
        }
        // Position o reads (o + pad - t) / stride by each tap t that leaves no rest: the last tap reads first.
        let rest = (phase + pad) % stride;
        let taps = (kernel - rest).div_ceil(stride);
        let tap = rest + (taps - 1) * stride;
        let reads = (phase + pad) as isize - tap as isize;
        let count = written.saturating_sub(phase).div_ceil(stride);
        Axis { first: phase, step: stride, count, pad: -reads / stride as isize, tap, taps, back, written, read }
    }

    /// Rows in pieces of one length or of two neighbouring ones.
    fn pieces<const KY: usize, const KX: usize>(&self, rows: Axis, columns: Axis, to: &mut [f32]) {
        let pieces = columns.count.div_ceil(LONGEST);
        if rows.count == 0 || pieces == 0 {
            return;
        }
        let (short, longer) = (columns.count / pieces, columns.count % pieces);
        for (length, first, count) in [(short + 1, 0, longer), (short, longer * (short + 1), pieces - longer)] {
            if count == 0 {
                continue;
            }
            match length {
                1 => self.piece::<KY, KX, 1>(rows, columns, first, count, to),
                2 => self.piece::<KY, KX, 2>(rows, columns, first, count, to),
                3 => self.piece::<KY, KX, 3>(rows, columns, first, count, to),
                4 => self.piece::<KY, KX, 4>(rows, columns, first, count, to),
                5 => self.piece::<KY, KX, 5>(rows, columns, first, count, to),
                6 => self.piece::<KY, KX, 6>(rows, columns, first, count, to),
                7 => self.piece::<KY, KX, 7>(rows, columns, first, count, to),
                _ => self.piece::<KY, KX, 8>(rows, columns, first, count, to),
            }
        }
    }

    fn piece<const KY: usize, const KX: usize, const T: usize>(
        &self,
        rows: Axis,
        columns: Axis,
        first: usize,
        count: usize,
        to: &mut [f32],
    ) {
        Pieces::<KY, KX, T, false> { of: self, rows, columns, first, count, to }.dispatch();
    }

    /// Rows of 3 x 3 that are one piece and have a column of padding at each end, which would be read in vain.
    fn whole_rows(&self, rows: Axis, columns: Axis, to: &mut [f32]) {
        match columns.count {
            1 => self.whole_row::<1>(rows, columns, to),
            2 => self.whole_row::<2>(rows, columns, to),
            3 => self.whole_row::<3>(rows, columns, to),
            4 => self.whole_row::<4>(rows, columns, to),
            5 => self.whole_row::<5>(rows, columns, to),
            6 => self.whole_row::<6>(rows, columns, to),
            7 => self.whole_row::<7>(rows, columns, to),
            _ => self.whole_row::<8>(rows, columns, to),
        }
    }

    fn whole_row<const T: usize>(&self, rows: Axis, columns: Axis, to: &mut [f32]) {
        Pieces::<3, 3, T, true> { of: self, rows, columns, first: 0, count: 1, to }.dispatch();
    }
}

/// `count` pieces of `T` outputs in each row, from the output with index `first` on; `WHOLE`: the first and the last column that
/// they read are padding.
struct Pieces<'a, 'b, const KY: usize, const KX: usize, const T: usize, const WHOLE: bool> {
    of: &'a Depthwise<'b>,
    rows: Axis,
    columns: Axis,
    first: usize,
    count: usize,
    to: &'a mut [f32],
}

/// Vectors that a row of a piece reads, at most.
const READ: usize = LONGEST + TAPS - 1;

impl<const KY: usize, const KX: usize, const T: usize, const WHOLE: bool> SimdOp for Pieces<'_, '_, KY, KX, T, WHOLE> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(mut self, isa: I) {
        let channels = self.of.g.input_channels;
        let mut packed = [[[0.0; if PACKED { BLOCK } else { 0 }]; KX]; KY];
        let packed = packed.as_flattened_mut().as_flattened_mut();
        for start in (0..channels).step_by(BLOCK) {
            self.block(isa, start..channels.min(start + BLOCK), packed);
        }
    }
}

/// The columns that a piece reads, counted from its leftmost; with `WHOLE` without the padding at both ends.
#[inline(always)]
fn taken<const KX: usize, const T: usize, const WHOLE: bool>() -> Range<usize> {
    usize::from(WHOLE)..T + KX - 1 - usize::from(WHOLE)
}

impl<const KY: usize, const KX: usize, const T: usize, const WHOLE: bool> Pieces<'_, '_, KY, KX, T, WHOLE> {
    /// All pieces for the channels of `block`; `packed` has room for its taps by groups of channels that are taken at once.
    #[inline(always)]
    fn block<I: Isa>(&mut self, isa: I, block: Range<usize>, packed: &mut [f32]) {
        let Self { of, rows, columns, .. } = *self;
        let channels = of.g.input_channels;
        let len = block.len();
        let mut taps = [[&of.w[..0]; KX]; KY];
        for ky in 0..KY {
            for kx in 0..KX {
                let tap = rows.nth_tap(ky) * of.g.kernel[1] + columns.nth_tap(kx);
                taps[ky][kx] = &of.w[tap * channels + block.start..][..len];
                let width = WIDE * isa.f32().len();
                let groups = packed.chunks_exact_mut(KY * KX * width).zip(taps[ky][kx].chunks_exact(width));
                for (packed, taps) in groups {
                    packed[(ky * KX + kx) * width..][..width].copy_from_slice(taps);
                }
            }
        }
        let zeros = &ZEROS[..len];
        let bias = if of.bias.is_empty() { zeros } else { &of.bias[block.start..][..len] };
        let from = Plane { values: of.from, channels, start: block.start, zeros, rows, columns };
        for piece in 0..self.count {
            let first = self.first + piece * T;
            let left = first as isize - columns.pad;
            // Before the first row: what its upper rows of taps read, one place too low.
            let mut read = [[zeros; READ]; KY];
            for ky in 1..KY {
                from.vectors::<KX, T, WHOLE>(ky as isize - 1 - rows.pad, left, &mut read[ky]);
            }
            for row in 0..rows.count {
                for ky in 1..KY {
                    for i in taken::<KX, T, WHOLE>() {
                        read[ky - 1][i] = read[ky][i];
                    }
                }
                let y = (row + KY - 1) as isize - rows.pad;
                from.vectors::<KX, T, WHOLE>(y, left, &mut read[KY - 1]);
                let y = rows.first + row * rows.step;
                let x = columns.first + first * columns.step;
                let mut rest = &mut self.to[(y * columns.written + x) * channels..];
                let mut written: [&mut [f32]; T] = std::array::from_fn(|_| Default::default());
                for t in 0..T {
                    let here;
                    (here, rest) = rest.split_at_mut(channels);
                    written[t] = &mut here[block.start..][..len];
                    rest = rest.get_mut((columns.step - 1) * channels..).unwrap_or_default();
                }
                piece_of::<I, KY, KX, T, WHOLE>(isa, of, bias, &taps, packed, &read, &mut written);
            }
        }
    }
}

/// The plane that is read: as many channels as there are `zeros`, from `start` on.
struct Plane<'a> {
    values: &'a [f32],
    channels: usize,
    start: usize,
    zeros: &'a [f32],
    rows: Axis,
    columns: Axis,
}

impl<'a> Plane<'a> {
    /// What a piece reads of row `y`, from column `left` on.
    #[inline(always)]
    fn vectors<const KX: usize, const T: usize, const WHOLE: bool>(
        &self,
        y: isize,
        left: isize,
        read: &mut [&'a [f32]; READ],
    ) {
        let (channels, width) = (self.channels, self.columns.read);
        let line = match usize::try_from(y) {
            Ok(y) if y < self.rows.read => &self.values[y * width * channels..][..width * channels],
            _ => &[],
        };
        for i in taken::<KX, T, WHOLE>() {
            let x = if WHOLE { i - 1 } else { left.wrapping_add_unsigned(i) as usize };
            let inside = WHOLE || x < width;
            let rest = if inside { line.get(x * channels + self.start..).unwrap_or_default() } else { &[] };
            read[i] = rest.get(..self.zeros.len()).unwrap_or(self.zeros);
        }
    }
}

/// `T` outputs, for the channels of `bias`: `read [KY][..]` and `taps [KY][KX]` are the vectors that they take.
#[inline(always)]
fn piece_of<I: Isa, const KY: usize, const KX: usize, const T: usize, const WHOLE: bool>(
    isa: I,
    of: &Depthwise,
    bias: &[f32],
    taps: &[[&[f32]; KX]; KY],
    mut packed: &[f32],
    read: &[[&[f32]; READ]; KY],
    to: &mut [&mut [f32]; T],
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let (first, clamped) = (of.first, of.clamp.is_some());
    let [low, high] = of.clamp.unwrap_or_default();
    let (low, high) = (ops.splat(low), ops.splat(high));
    let mut c = 0;
    while c + WIDE * lanes <= bias.len() {
        let group;
        (group, packed) = packed.split_at(if PACKED { KY * KX * WIDE * lanes } else { 0 });
        let all = c..c + WIDE * lanes;
        let mut acc = [vectors_of(isa, &bias[all.clone()]); T];
        if !first {
            for t in 0..T {
                acc[t] = vectors_of(isa, &to[t][all.clone()]);
            }
        }
        for ky in 0..KY {
            let mut w = [[ops.zero(); WIDE]; KX];
            for kx in 0..KX {
                let taps = if PACKED { &group[(ky * KX + kx) * WIDE * lanes..] } else { &taps[ky][kx][all.clone()] };
                w[kx] = vectors_of(isa, taps);
            }
            for i in taken::<KX, T, WHOLE>() {
                let x = vectors_of(isa, &read[ky][i][all.clone()]);
                for kx in 0..KX {
                    if i >= kx && i - kx < T {
                        for v in 0..WIDE {
                            acc[i - kx][v] = ops.mul_add(x[v], w[kx][v], acc[i - kx][v]);
                        }
                    }
                }
            }
        }
        if clamped {
            for acc in acc.as_flattened_mut() {
                *acc = super::between(isa, low, high, *acc);
            }
        }
        for t in 0..T {
            let to = &mut to[t][all.clone()];
            for v in 0..WIDE {
                ops.store(acc[t][v], &mut to[v * lanes..]);
            }
        }
        c += WIDE * lanes;
    }
}

#[inline(always)]
fn vectors_of<I: Isa>(isa: I, values: &[f32]) -> [I::F32; WIDE] {
    let ops = isa.f32();
    let mut vectors = [ops.zero(); WIDE];
    for v in 0..WIDE {
        vectors[v] = ops.load(&values[v * ops.len()..]);
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::conv_geometry::ConvGeometry;

    /// Sums of at most 25 products of values below one.
    const TOLERANCE: f32 = 1e-5;

    fn random(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
    }

    /// Both ways against the loop for every kernel, over widths that give all lengths of pieces.
    #[test]
    fn agrees_with_the_general_loop() {
        let mut seen = 0;
        for (kernel, stride, width) in
            [3, 5].into_iter().flat_map(|k| (1..=2).flat_map(move |s| (1..21).map(move |w| (k, s, w))))
        {
            for (pad, channels) in (0..=kernel).flat_map(|pad| [16, 144].map(|channels| (pad, channels))) {
                let input = [width % 6 + kernel, width + kernel - 1];
                // One row and column fewer than fit: what is left of the input is read by nobody.
                let cut = usize::from(width % 3 == 0);
                let out = |n: usize| ((n + 2 * pad - kernel) / stride + 1).saturating_sub(cut).max(1);
                let g = ConvGeometry {
                    input,
                    input_channels: channels,
                    output: input.map(out),
                    output_channels: channels,
                    kernel: [kernel; 2],
                    stride: [stride; 2],
                    dilation: [1, 1],
                    pads_begin: [pad, pad],
                    groups: channels,
                };
                let w = random(1, kernel * kernel * channels);
                let bias = random(2, channels);
                for (back, first, clamp) in
                    [(false, true, None), (false, true, Some([-0.5, 0.75])), (true, true, None), (true, false, None)]
                {
                    let (from, to) =
                        if back { (g.output_len(), g.input_len()) } else { (g.input_len(), g.output_len()) };
                    let from = random(3, from);
                    let start = random(4, to);
                    let bias = if back { &[][..] } else { &bias };
                    let job = Depthwise { g: &g, from: &from, w: &w, bias, clamp, back, first };
                    let (mut got, mut want) = (start.clone(), start);
                    job.runs(&mut want);
                    if !job.lines(&mut got) {
                        assert!(!back && stride > 1, "{g:?} back {back}");
                        continue;
                    }
                    seen += 1;
                    for (got, want) in got.iter().zip(&want) {
                        assert!((got - want).abs() <= TOLERANCE, "{g:?} back {back} first {first}: {got} for {want}");
                    }
                }
            }
        }
        assert!(seen > 1000, "{seen}");
    }
}
