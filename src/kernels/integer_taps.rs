//! Kernels of a convolution that are held as integers: parts of them as packed floats.
//!
//! The file has `[outputs, inputs, taps]`. Forward reads `[taps, inputs]` rows and a column an output, the way back a column an
//! input; each is written in the panels of [`super::gemm::pack`], so that a product has the bits of the one with the whole
//! weight in floats.

use std::ops::Range;

use rten_simd::{Isa, SimdOp};

use super::gemm::panels;
use super::integers::Integers;

/// Values of a row of the file that are turned at a time.
const LINE: usize = 256;
/// Rows of the file that become columns at a time: half a cache line of each row that is written.
const LINES: usize = 8;

/// The kernels of one group.
#[derive(Clone, Copy, Debug)]
pub struct Taps<'a> {
    /// `[all outputs, inputs · taps]`.
    pub integers: &'a Integers,
    /// First row of the group.
    pub first: usize,
    /// Outputs of the group.
    pub outputs: usize,
    /// Inputs of the group.
    pub inputs: usize,
    /// Taps.
    pub taps: usize,
}

impl Taps<'_> {
    /// Packed `[taps · inputs, outputs.len()]`.
    ///
    /// # Panics
    /// If `out` is shorter.
    pub fn columns(self, outputs: Range<usize>, out: &mut [f32]) {
        Columns { of: self, outputs, out }.dispatch();
    }

    /// Packed `[outputs, inputs.len()]` for each tap, one behind the other; with `mirrored` packed
    /// `[taps · outputs, inputs.len()]`, the last tap first.
    ///
    /// # Panics
    /// If `out` is shorter.
    pub fn rows(self, inputs: Range<usize>, mirrored: bool, out: &mut [f32]) {
        Rows { of: self, inputs, mirrored, out }.dispatch();
    }

    /// `[taps, outputs]` of kernels with one input (depthwise).
    ///
    /// # Panics
    /// If `out` is shorter.
    pub fn depthwise(self, out: &mut [f32]) {
        Depthwise { of: self, out }.dispatch();
    }
}

/// Inputs and taps that stand side by side in the file, at most [`LINE`] values.
#[inline(always)]
fn parts(inputs: Range<usize>, taps: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let (inner, step) = (taps.clamp(1, LINE), (LINE / taps.max(1)).max(1));
    inputs.clone().step_by(step).flat_map(move |i| {
        let end = inputs.end.min(i + step);
        (0..taps).step_by(inner).map(move |t| (i..end, t..taps.min(t + inner)))
    })
}

struct Columns<'a> {
    of: Taps<'a>,
    outputs: Range<usize>,
    out: &'a mut [f32],
}

impl SimdOp for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { of, outputs, out } = self;
        let Taps { integers, first, inputs, taps, .. } = of;
        let mut lines = [[0.0; LINE]; LINES];
        for (columns, at) in panels(taps * inputs, outputs.len()) {
            let width = columns.len();
            for j in columns.clone().step_by(LINES) {
                let count = LINES.min(columns.end - j);
                let out = &mut out[at + j - columns.start..];
                for (i, t) in parts(0..inputs, taps) {
                    let from = i.start * taps + t.start;
                    let len = i.len() * t.len();
                    for (line, row) in lines.iter_mut().zip(first + outputs.start + j..).take(count) {
                        integers.read(row, from..from + len, &mut line[..len]);
                    }
                    for (tap, start) in t.clone().zip(0..) {
                        for (n, input) in i.clone().enumerate() {
                            let place = start + n * t.len();
                            let out = &mut out[(tap * inputs + input) * width..];
                            if count == LINES {
                                for (out, line) in out[..LINES].iter_mut().zip(&lines) {
                                    *out = line[place];
                                }
                            } else {
                                for (out, line) in out.iter_mut().zip(&lines[..count]) {
                                    *out = line[place];
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

struct Rows<'a> {
    of: Taps<'a>,
    inputs: Range<usize>,
    mirrored: bool,
    out: &'a mut [f32],
}

impl SimdOp for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { of, inputs, mirrored, out } = self;
        let Taps { integers, first, outputs, taps, .. } = of;
        let mut line = [0.0; LINE];
        let panel_rows = if mirrored { taps * outputs } else { outputs };
        for output in 0..outputs {
            for (columns, at) in panels(panel_rows, inputs.len()) {
                let width = columns.len();
                for (i, t) in parts(inputs.start + columns.start..inputs.start + columns.end, taps) {
                    let from = i.start * taps + t.start;
                    let line = &mut line[..i.len() * t.len()];
                    integers.read(first + output, from..from + line.len(), line);
                    let column = i.start - inputs.start - columns.start;
                    for (tap, start) in t.clone().zip(0..) {
                        let to = match mirrored {
                            true => at + ((taps - 1 - tap) * outputs + output) * width,
                            false => tap * outputs * inputs.len() + at + output * width,
                        };
                        let to = &mut out[to + column..][..i.len()];
                        to.iter_mut().zip(line[start..].iter().step_by(t.len())).for_each(|(to, v)| *to = *v);
                    }
                }
            }
        }
    }
}

struct Depthwise<'a> {
    of: Taps<'a>,
    out: &'a mut [f32],
}

impl SimdOp for Depthwise<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { of: Taps { integers, first, outputs, taps, .. }, out } = self;
        let mut line = [0.0; LINE];
        for output in 0..outputs {
            for (_, t) in parts(0..1, taps) {
                let line = &mut line[..t.len()];
                integers.read(first + output, t.clone(), line);
                let to = out[t.start * outputs + output..].iter_mut().step_by(outputs);
                to.zip(line).for_each(|(to, v)| *to = *v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gemm::pack;

    #[test]
    fn parts_have_the_values_and_places_of_the_packed_weight() {
        for (groups, outputs, inputs, taps) in
            [(1, 1, 1, 1), (1, 5, 3, 9), (2, 33, 7, 4), (3, 8, 40, 9), (1, 17, 2, 300), (4, 9, 1, 25)]
        {
            let (rows, columns) = (groups * outputs, inputs * taps);
            let mut rng = fastrand::Rng::with_seed(1);
            let data = (0..rows * columns).map(|_| rng.u8(..)).collect();
            let scales = (0..rows).map(|_| rng.f32()).collect();
            let plain = Integers::new(rows, columns, 8, columns, data).unwrap();
            let integers = plain.scaled([1, columns], scales, &[128.0]).unwrap();
            let w = integers.values();
            let at = |first: usize, o: usize, i: usize, t: usize| w[((first + o) * inputs + i) * taps + t];
            for first in (0..rows).step_by(outputs) {
                let of = Taps { integers: &integers, first, outputs, inputs, taps };
                for own in [0..outputs, outputs / 2..outputs] {
                    let (k, n) = (taps * inputs, own.len());
                    let row = |k: usize| own.clone().map(move |o| at(first, o, k % inputs, k / inputs));
                    let flat: Vec<f32> = (0..k).flat_map(row).collect();
                    let (mut got, mut expected) = (vec![f32::NAN; k * n], vec![0.0; k * n]);
                    of.columns(own.clone(), &mut got);
                    pack(k, n, &flat, &mut expected);
                    assert_eq!(got, expected);
                }
                for own in [0..inputs, inputs / 2..inputs] {
                    let n = own.len();
                    let row = |t: usize, o: usize| own.clone().map(move |i| at(first, o, i, t));
                    let (mut got, mut expected) = (vec![f32::NAN; taps * outputs * n], vec![0.0; taps * outputs * n]);
                    of.rows(own.clone(), false, &mut got);
                    for t in 0..taps {
                        let flat: Vec<f32> = (0..outputs).flat_map(|o| row(t, o)).collect();
                        pack(outputs, n, &flat, &mut expected[t * outputs * n..]);
                    }
                    assert_eq!(got, expected);
                    let flat: Vec<f32> =
                        (0..taps).rev().flat_map(|t| (0..outputs).flat_map(move |o| row(t, o))).collect();
                    of.rows(own.clone(), true, &mut got);
                    pack(taps * outputs, n, &flat, &mut expected);
                    assert_eq!(got, expected);
                }
                if inputs == 1 {
                    let mut got = vec![f32::NAN; taps * outputs];
                    of.depthwise(&mut got);
                    let expected: Vec<f32> =
                        (0..taps).flat_map(|t| (0..outputs).map(move |o| at(first, o, 0, t))).collect();
                    assert_eq!(got, expected);
                }
            }
        }
    }
}
