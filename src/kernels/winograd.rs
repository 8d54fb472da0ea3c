//! Convolution with three taps along an axis, two outputs at a time: four products where there were six.
//!
//! ```text
//! v0 = d0 − d2   v1 = d1 + d2               v2 = d2 − d1               v3 = d1 − d3      of four inputs; the next tile begins two on
//! u0 = w0        u1 = (w0 + w1 + w2) / 2    u2 = (w0 − w1 + w2) / 2    u3 = w2           of three taps
//! y0 = m0 + m1 + m2          y1 = m1 − m2 − m3          m_p = Σ v_p · u_p over the channels and the taps of the other axis
//! ```
//!
//! Source: F(2, 3) of Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional
//! neural networks", arXiv 1509.09308, eq. 5 and 6. Along one axis alone: the sums over the other one stay inside the products.
//!
//! The input gradient is the convolution with reversed taps: `u0` and `u3` change places, `u1` and `u2` stay.
//!
//! A value depends on where it stands along the axis, even or odd, in its last bits; on nothing else. Not a number comes to the
//! outputs that read it and to no other; an infinity may come to them as not a number, as it is subtracted from itself.

use std::ops::{Range, RangeInclusive};

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::conv_geometry::ConvGeometry;
use super::gemm::{Matrix, Start, Walk, gemm_packed, panels, transpose_packed};
use super::{between, on};

/// Products a tile.
const POINTS: usize = 4;

/// Values that tiles are made from and become at a time: half an L2 of 512 KiB.
const VALUES: usize = 1 << 16;

/// Tiles at a time, whatever the channels.
const TILES: RangeInclusive<usize> = 32..=160;

/// Channels below which moving values takes longer than what is saved.
const CHANNELS: usize = 8;

/// A convolution of three taps along an axis.
#[derive(Clone, Copy, Debug)]
pub struct Winograd<'a> {
    g: &'a ConvGeometry,
    axis: usize,
}

/// Factors beside the weights of a layer, A of the same taps.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Columns of A.
    pub rank: usize,
    /// Aᵀ as [`Winograd::weights`] leaves it for as many outputs as there are ranks, `[4][patch / 3, rank]`.
    pub u: &'a [f32],
    /// Bᵀ `[rank, outputs]`, packed.
    pub b: &'a [f32],
}

impl<'a> Winograd<'a> {
    /// Along `axis` (0: rows, 1: columns), where this can be done.
    pub fn along(g: &'a ConvGeometry, axis: usize) -> Option<Self> {
        let other = 1 - axis;
        let taps = g.groups == 1 && g.kernel[axis] == 3 && g.stride[axis] == 1 && g.dilation[axis] == 1;
        // Whole rows make up the tiles along the rows.
        let whole = g.kernel[other] == 1 && g.stride[other] == 1 && g.pads_begin[other] == 0;
        let fits = axis == 1 || (whole && g.output[other] == g.input[other]);
        let some = g.output_len() > 0 && g.input_len() > 0;
        (taps && fits && some).then_some(Self { g, axis })
    }

    /// Whether it takes clearly less time than the products one by one: less than 5/6 of them are left, values move little
    /// beside them, stay near, and few lines are read again with the next ones.
    pub fn pays(&self) -> bool {
        let extent = self.g.output[self.axis];
        let channels = self.g.input_channels.min(self.g.output_channels);
        let (before, after) = (3 * extent, POINTS * extent.div_ceil(2));
        let (lines, inputs) = (self.chunk(), self.reads(self.chunk()));
        channels >= CHANNELS && 5 * before >= 6 * after && self.values(lines) <= 2 * VALUES && inputs <= 2 * lines + 2
    }

    /// Values that `lines` of tiles are made from and become.
    fn values(&self, lines: usize) -> usize {
        let channels = self.reads(lines) * self.g.input_channels + lines * self.g.output_channels;
        POINTS * self.tiles_a_line() * channels
    }

    /// Tiles side by side: a row of them along the columns, else those of as many columns as there are.
    fn tiles_a_line(&self) -> usize {
        if self.axis == 1 { self.g.output[1].div_ceil(2) } else { self.g.output[1] }
    }

    fn lines(&self) -> usize {
        if self.axis == 1 { self.g.output[0] } else { self.g.output[0].div_ceil(2) }
    }

    /// Lines at a time, of nearly one number.
    fn chunk(&self) -> usize {
        // Whatever the outputs: of a pair of factors, room for the largest rank is room for all.
        let channels = 2 * self.g.input_channels;
        let tiles = (VALUES / (POINTS * channels)).clamp(*TILES.start(), *TILES.end());
        let most = tiles.div_ceil(self.tiles_a_line());
        self.lines().div_ceil(self.lines().div_ceil(most))
    }

    /// Lines of inputs that `lines` of tiles read.
    fn reads(&self, lines: usize) -> usize {
        let g = self.g;
        if self.axis == 1 { (lines - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1 } else { lines }
    }

    /// Values of a position of the axis: of its channels, and along the rows of all columns.
    fn run(&self, channels: usize) -> usize {
        if self.axis == 1 { channels } else { self.g.input[1] * channels }
    }

    /// Scratch values for [`Winograd::convolve`].
    pub fn work_len(&self) -> usize {
        self.values(self.chunk()) + self.run(self.g.input_channels) + self.run(self.g.output_channels)
    }

    /// Scratch values for [`Winograd::convolve_beside`] with ranks up to `rank`.
    pub fn beside_work_len(&self, rank: usize) -> usize {
        let more = rank.saturating_sub(self.g.output_channels);
        let tiles = self.chunk() * self.tiles_a_line();
        self.work_len() + POINTS * tiles * more + self.run(more) + 2 * tiles * rank
    }

    /// Steps of a product: the channels and the taps of the other axis.
    fn steps(&self) -> usize {
        self.g.patch() / 3
    }

    /// Values of transformed weights.
    pub fn weights_len(&self) -> usize {
        POINTS * self.steps() * self.g.output_channels
    }

    /// Writes `u [4][patch / 3, outputs]` from `w [patch, outputs]`, both packed ([`super::gemm::pack`]).
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn weights(&self, w: &[f32], u: &mut [f32]) {
        let (steps, outputs) = (self.steps(), self.g.output_channels);
        let [u0, u1, u2, u3] = quarters(&mut u[..self.weights_len()]);
        // Taps of the axis stand one behind the other; in between are those of the columns, if they are not the axis.
        let (outer, inner) = if self.axis == 1 { (self.g.kernel[0], self.g.input_channels) } else { (1, steps) };
        for (columns, at) in panels(steps, outputs) {
            let block = inner * columns.len();
            for tap in 0..outer {
                let w = &w[3 * (at + tap * block)..][..3 * block];
                let place = at + tap * block..at + (tap + 1) * block;
                let (w0, w) = w.split_at(block);
                let (w1, w2) = w.split_at(block);
                u0[place.clone()].copy_from_slice(w0);
                u3[place.clone()].copy_from_slice(w2);
                let sums = u1[place.clone()].iter_mut().zip(&mut u2[place]);
                for ((w0, w1), (w2, (u1, u2))) in w0.iter().zip(w1).zip(w2.iter().zip(sums)) {
                    (*u1, *u2) = (0.5 * (w0 + w1 + w2), 0.5 * (w0 - w1 + w2));
                }
            }
        }
    }

    /// Writes the transformed weights of the way back, `ut [4][patch / 3, inputs]` of the mirrored convolution, from `u`.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn mirror_weights(&self, u: &[f32], ut: &mut [f32]) {
        let (steps, inputs, outputs) = (self.steps(), self.g.input_channels, self.g.output_channels);
        let taps = steps / inputs;
        let matrix = steps * outputs;
        for (from, ut) in [3, 1, 2, 0].into_iter().zip(ut[..POINTS * matrix].chunks_exact_mut(matrix)) {
            transpose_packed(taps, inputs, outputs, &u[from * matrix..][..matrix], ut);
        }
    }

    /// y = start + w * x with the transformed weights of [`Winograd::weights`]; with `clamp`, y ends between the two bounds.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn convolve(
        &self,
        start: Start,
        x: &[f32],
        u: &[f32],
        y: &mut [f32],
        clamp: Option<[f32; 2]>,
        work: &mut [f32],
    ) {
        self.run_on(start, x, u, None, y, clamp, work, false);
    }

    /// [`Winograd::convolve`] with a pair of factors added: y = start + w * x + (a * x)·Bᵀ.
    ///
    /// # Panics
    /// If a slice is too short; [`Winograd::beside_work_len`] says how long `work` is.
    pub fn convolve_beside(
        &self,
        start: Start,
        x: &[f32],
        u: &[f32],
        pair: Pair,
        y: &mut [f32],
        clamp: Option<[f32; 2]>,
        work: &mut [f32],
    ) {
        self.run_on(start, x, u, Some(pair), y, clamp, work, false);
    }

    fn run_on(
        &self,
        start: Start,
        x: &[f32],
        u: &[f32],
        pair: Option<Pair>,
        y: &mut [f32],
        clamp: Option<[f32; 2]>,
        work: &mut [f32],
        generic: bool,
    ) {
        let (g, tiles) = (self.g, self.tiles_a_line());
        let (inputs, outputs) = (g.input_channels, g.output_channels);
        let (zeros, work) = work.split_at_mut(self.run(inputs));
        let (spare, work) = work.split_at_mut(self.run(outputs.max(pair.map_or(0, |pair| pair.rank))));
        zeros.fill(0.0);
        let (x, chunk) = (&x[..g.input_len()], self.chunk());
        for first in (0..self.lines()).step_by(chunk) {
            let lines = first..(first + chunk).min(self.lines());
            let (v, work) = work.split_at_mut(POINTS * self.reads(lines.len()) * tiles * inputs);
            on(generic, Inputs { layer: *self, lines: lines.clone(), x, zeros, v });
            let rows = if self.axis == 1 { lines.clone() } else { 2 * lines.start..(2 * lines.end).min(g.output[0]) };
            let positions = rows.len() * g.output[1];
            let y = &mut y[rows.start * g.output[1] * outputs..][..positions * outputs];
            let Some(Pair { rank, u: a, b }) = pair else {
                self.multiply(start, lines.len(), v, u, outputs, y, clamp, spare, work, generic);
                continue;
            };
            let (h, work) = work.split_at_mut(positions * rank);
            self.multiply(Start::Zero, lines.len(), v, a, rank, h, None, spare, work, generic);
            let h = Matrix { values: h, rows: Walk::even(rank), columns: Walk::even(1) };
            gemm_packed(start, positions, outputs, rank, h, b, y, outputs, None);
            self.multiply(Start::Add, lines.len(), v, u, outputs, y, clamp, spare, work, generic);
        }
    }

    /// y of `lines` of tiles, with as many `outputs` as `u` makes of `v`.
    fn multiply(
        &self,
        start: Start,
        lines: usize,
        v: &[f32],
        u: &[f32],
        outputs: usize,
        y: &mut [f32],
        clamp: Option<[f32; 2]>,
        spare: &mut [f32],
        m: &mut [f32],
        generic: bool,
    ) {
        let (g, tiles, steps) = (self.g, self.tiles_a_line(), self.steps());
        let inputs = g.input_channels;
        let (v_len, m_len) = (v.len() / POINTS, lines * tiles * outputs);
        let m = &mut m[..POINTS * m_len];
        let jump = tiles * inputs;
        let skips = self.axis == 1 && g.stride[0] > 1;
        let rows =
            if skips { Walk { inner: tiles, step: inputs, jump: g.stride[0] * jump } } else { Walk::even(inputs) };
        let columns = Walk { inner: inputs, step: 1, jump: g.dilation[0] * jump };
        for (point, m) in m.chunks_exact_mut(m_len).enumerate() {
            let a = Matrix { values: &v[point * v_len..][..v_len], rows, columns };
            let u = &u[point * steps * outputs..][..steps * outputs];
            // The bias goes to both outputs with m1.
            let start = match start {
                Start::Bias(bias) if point == 1 => Start::Bias(bias),
                _ => Start::Zero,
            };
            gemm_packed(start, lines * tiles, outputs, steps, a, u, m, outputs, None);
        }
        let (add, spare) = (matches!(start, Start::Add), &mut spare[..self.run(outputs)]);
        on(generic, Outputs { layer: *self, add, clamp, m, spare, y });
    }
}

#[inline(always)]
fn quarters(values: &mut [f32]) -> [&mut [f32]; POINTS] {
    let (low, high) = values.split_at_mut(values.len() / 2);
    let ((a, b), (c, d)) = (low.split_at_mut(low.len() / 2), high.split_at_mut(high.len() / 2));
    [a, b, c, d]
}

/// Writes v of some lines of tiles.
struct Inputs<'a> {
    layer: Winograd<'a>,
    lines: Range<usize>,
    x: &'a [f32],
    /// As many as a position of the axis has values.
    zeros: &'a [f32],
    v: &'a mut [f32],
}

impl SimdOp for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self { layer, lines, x, zeros, v } = self;
        let (g, run) = (layer.g, zeros.len());
        let v = quarters(v);
        if layer.axis == 0 {
            return line(isa, x, zeros, g.pads_begin[0], lines, v);
        }
        let tiles = layer.tiles_a_line();
        let row = g.input[1] * run;
        let [v0, v1, v2, v3] = v.map(|v| v.chunks_exact_mut(tiles * run));
        let rows = v0.zip(v1).zip(v2.zip(v3));
        for (index, ((v0, v1), (v2, v3))) in rows.enumerate() {
            let y = (lines.start * g.stride[0] + index).checked_sub(g.pads_begin[0]).filter(|y| *y < g.input[0]);
            match y {
                Some(y) => line(isa, &x[y * row..][..row], zeros, g.pads_begin[1], 0..tiles, [v0, v1, v2, v3]),
                None => [v0, v1, v2, v3].into_iter().for_each(|v| v.fill(0.0)),
            }
        }
    }
}

/// v of `tiles` along an axis that begins with x behind `pad` positions of zeros; as many values a position as there are `zeros`.
#[inline(always)]
fn line<I: Isa>(isa: I, x: &[f32], zeros: &[f32], pad: usize, tiles: Range<usize>, v: [&mut [f32]; POINTS]) {
    let run = zeros.len();
    let [v0, v1, v2, v3] = v.map(|v| v.chunks_exact_mut(run));
    let places = v0.zip(v1).zip(v2.zip(v3));
    for (tile, ((v0, v1), (v2, v3))) in tiles.zip(places) {
        let v = [v0, v1, v2, v3];
        let whole = (2 * tile).checked_sub(pad).and_then(|at| x.get(at * run..(at + 4) * run));
        if let Some(d) = whole {
            let (low, high) = d.split_at(2 * run);
            let ((d0, d1), (d2, d3)) = (low.split_at(run), high.split_at(run));
            inputs(isa, [d0, d1, d2, d3], v);
        } else {
            let position = |j: usize| {
                let at = (2 * tile + j).checked_sub(pad);
                at.and_then(|at| x.get(at * run..(at + 1) * run)).unwrap_or(zeros)
            };
            inputs(isa, [position(0), position(1), position(2), position(3)], v);
        }
    }
}

/// Four slices in step.
macro_rules! in_step {
    ($a:expr, $b:expr, $c:expr, $d:expr) => {
        $a.zip($b).zip($c.zip($d))
    };
}

#[inline(always)]
fn inputs<I: Isa>(isa: I, d: [&[f32]; POINTS], v: [&mut [f32]; POINTS]) {
    let ops = isa.f32();
    let lanes = ops.len();
    let main = v[0].len() / lanes * lanes;
    let [(d0, e0), (d1, e1), (d2, e2), (d3, e3)] = d.map(|d| d.split_at(main));
    let [(v0, w0), (v1, w1), (v2, w2), (v3, w3)] = v.map(|v| v.split_at_mut(main));
    let from = in_step!(d0.chunks_exact(lanes), d1.chunks_exact(lanes), d2.chunks_exact(lanes), d3.chunks_exact(lanes));
    let to = in_step!(
        v0.chunks_exact_mut(lanes),
        v1.chunks_exact_mut(lanes),
        v2.chunks_exact_mut(lanes),
        v3.chunks_exact_mut(lanes)
    );
    for (((d0, d1), (d2, d3)), ((v0, v1), (v2, v3))) in from.zip(to) {
        let (d0, d1, d2, d3) = (ops.load(d0), ops.load(d1), ops.load(d2), ops.load(d3));
        ops.store(ops.sub(d0, d2), v0);
        ops.store(ops.add(d1, d2), v1);
        ops.store(ops.sub(d2, d1), v2);
        ops.store(ops.sub(d1, d3), v3);
    }
    let from = in_step!(e0.iter(), e1.iter(), e2.iter(), e3.iter());
    let to = in_step!(w0.iter_mut(), w1.iter_mut(), w2.iter_mut(), w3.iter_mut());
    for (((d0, d1), (d2, d3)), ((v0, v1), (v2, v3))) in from.zip(to) {
        (*v0, *v1, *v2, *v3) = (d0 - d2, d1 + d2, d2 - d1, d1 - d3);
    }
}

/// Bounds that no value lies outside of.
const EVERYTHING: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

/// Writes y of some lines of tiles, or adds to it.
struct Outputs<'a> {
    layer: Winograd<'a>,
    add: bool,
    clamp: Option<[f32; 2]>,
    m: &'a [f32],
    /// Stands for the second output of a tile that has one only.
    spare: &'a mut [f32],
    y: &'a mut [f32],
}

impl SimdOp for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        match (self.add, self.clamp) {
            (true, None) => self.write::<I, true, false>(isa, EVERYTHING),
            (true, Some(bounds)) => self.write::<I, true, true>(isa, bounds),
            (false, bounds) => self.write::<I, false, true>(isa, bounds.unwrap_or(EVERYTHING)),
        }
    }
}

impl Outputs<'_> {
    #[inline(always)]
    fn write<I: Isa, const ADD: bool, const CLAMP: bool>(self, isa: I, bounds: [f32; 2]) {
        let Self { layer, m, spare, y, .. } = self;
        let (run, quarter) = (spare.len(), m.len() / POINTS);
        // Along the columns a row may end in half a tile, along the rows only the plane.
        let line = if layer.axis == 1 { layer.g.output[1] * run } else { y.len() };
        let mut products = in_step!(
            m[..quarter].chunks_exact(run),
            m[quarter..].chunks_exact(run),
            m[2 * quarter..].chunks_exact(run),
            m[3 * quarter..].chunks_exact(run)
        );
        for y in y.chunks_exact_mut(line) {
            for (y, ((m0, m1), (m2, m3))) in y.chunks_mut(2 * run).zip(&mut products) {
                let (y0, y1) = y.split_at_mut(run);
                let y1 = if y1.is_empty() { &mut *spare } else { y1 };
                outputs::<I, ADD, CLAMP>(isa, [m0, m1, m2, m3], bounds, y0, y1);
            }
        }
    }
}

#[inline(always)]
fn outputs<I: Isa, const ADD: bool, const CLAMP: bool>(
    isa: I,
    m: [&[f32]; POINTS],
    bounds: [f32; 2],
    y0: &mut [f32],
    y1: &mut [f32],
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let [low, high] = bounds.map(|bound| ops.splat(bound));
    let main = y0.len() / lanes * lanes;
    let [(m0, n0), (m1, n1), (m2, n2), (m3, n3)] = m.map(|m| m.split_at(main));
    let ((y0, z0), (y1, z1)) = (y0.split_at_mut(main), y1.split_at_mut(main));
    let from = in_step!(m0.chunks_exact(lanes), m1.chunks_exact(lanes), m2.chunks_exact(lanes), m3.chunks_exact(lanes));
    let to = y0.chunks_exact_mut(lanes).zip(y1.chunks_exact_mut(lanes));
    for (((m0, m1), (m2, m3)), (y0, y1)) in from.zip(to) {
        let (m0, m1, m2, m3) = (ops.load(m0), ops.load(m1), ops.load(m2), ops.load(m3));
        let mut sums = [ops.add(ops.add(m0, m1), m2), ops.sub(ops.sub(m1, m2), m3)];
        if ADD {
            sums = [ops.add(ops.load(y0), sums[0]), ops.add(ops.load(y1), sums[1])];
        }
        if CLAMP {
            sums = [between(isa, low, high, sums[0]), between(isa, low, high, sums[1])];
        }
        ops.store(sums[0], y0);
        ops.store(sums[1], y1);
    }
    let from = in_step!(n0.iter(), n1.iter(), n2.iter(), n3.iter());
    for (((m0, m1), (m2, m3)), (y0, y1)) in from.zip(z0.iter_mut().zip(z1.iter_mut())) {
        let mut sums = [m0 + m1 + m2, m1 - m2 - m3];
        if ADD {
            sums = [*y0 + sums[0], *y1 + sums[1]];
        }
        if CLAMP {
            // As `between`: lower first, not a number stays.
            sums = sums.map(|y| if y < bounds[0] { bounds[0] } else { y });
            sums = sums.map(|y| if y > bounds[1] { bounds[1] } else { y });
        }
        [*y0, *y1] = sums;
    }
}

#[cfg(test)]
mod tests;
