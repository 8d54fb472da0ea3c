//! Where the taps of a convolution fall: output position, tap and input position, with padding.
//!
//! For an axis: `input = output * stride + tap * dilation - pad_begin` (ONNX Conv). A 1-D convolution has height 1.

use std::ops::Range;

/// Values of a row below which a whole window is cleared before its rows are copied, not the padding of each row.
const SHORT: usize = 64;

/// Sizes of a convolution on one sample, channels last; `[height, width]` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Input plane.
    pub input: [usize; 2],
    /// Input channels, all groups together.
    pub input_channels: usize,
    /// Output plane; padding at the end follows from it.
    pub output: [usize; 2],
    /// Output channels, all groups together.
    pub output_channels: usize,
    /// Kernel.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Dilation.
    pub dilation: [usize; 2],
    /// Padding before the first row and column.
    pub pads_begin: [usize; 2],
    /// Groups; input and output channels are multiples of it.
    pub groups: usize,
}

impl ConvGeometry {
    /// A dense layer on `rows` rows: `[rows, inputs] -> [rows, outputs]`.
    pub fn dense(rows: usize, inputs: usize, outputs: usize) -> Self {
        Self {
            input: [rows, 1],
            input_channels: inputs,
            output: [rows, 1],
            output_channels: outputs,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pads_begin: [0, 0],
            groups: 1,
        }
    }

    /// Whether each output position reads just the input position of the same index.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pads_begin == [0, 0] && self.input == self.output
    }

    /// Whether each channel is a group of its own with one output.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.input_channels && self.groups == self.output_channels && self.groups > 1
    }

    /// Values in the input.
    pub fn input_len(&self) -> usize {
        self.input[0] * self.input[1] * self.input_channels
    }

    /// Output positions.
    pub fn positions(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Values in the output.
    pub fn output_len(&self) -> usize {
        self.positions() * self.output_channels
    }

    /// Input channels of a group.
    pub fn group_inputs(&self) -> usize {
        self.input_channels / self.groups
    }

    /// Output channels of a group.
    pub fn group_outputs(&self) -> usize {
        self.output_channels / self.groups
    }

    /// Values that one output of a group reads: taps times input channels of the group.
    pub fn patch(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.group_inputs()
    }

    /// Multiply-adds of a forward pass.
    pub fn multiply_adds(&self) -> u64 {
        self.positions() as u64 * self.output_channels as u64 * self.patch() as u64
    }

    /// The taps of `axis` that fall inside the input for output position `o`.
    #[inline(always)]
    pub fn taps(&self, axis: usize, o: usize) -> Range<usize> {
        let (stride, dilation, pad) = (self.stride[axis], self.dilation[axis], self.pads_begin[axis]);
        let origin = o * stride;
        let first = if origin >= pad { 0 } else { (pad - origin).div_ceil(dilation) };
        let room = self.input[axis] + pad;
        let last = if room > origin { (room - origin).div_ceil(dilation) } else { 0 };
        first..last.min(self.kernel[axis]).max(first)
    }

    /// The input position that `tap` of output position `o` reads; the tap must be one of [`ConvGeometry::taps`].
    #[inline(always)]
    pub fn position(&self, axis: usize, o: usize, tap: usize) -> usize {
        o * self.stride[axis] + tap * self.dilation[axis] - self.pads_begin[axis]
    }

    /// Whether the taps of a kernel row read values that stand side by side.
    pub fn taps_stand_together(&self) -> bool {
        self.groups == 1 && (self.dilation[1] == 1 || self.kernel[1] == 1)
    }

    /// Rows and columns that `rows` rows of output read, padding included.
    pub fn window(&self, rows: usize) -> [usize; 2] {
        let reach =
            |axis: usize, n: usize| (n - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1;
        [reach(0, rows), reach(1, self.output[1])]
    }

    /// The first of the input rows that output rows from `row` on read, if `window` has no padding in it.
    pub fn inside(&self, row: usize, window: [usize; 2]) -> Option<usize> {
        let first = (row * self.stride[0]).checked_sub(self.pads_begin[0])?;
        let fits = first + window[0] <= self.input[0] && self.pads_begin[1] == 0 && window[1] <= self.input[1];
        fits.then_some(first)
    }

    /// Writes what output rows from `row` on read to `plane [window, input_channels]`, padding as zero.
    pub fn pad_window(&self, x: &[f32], row: usize, window: [usize; 2], plane: &mut [f32]) {
        let (channels, width) = (self.input_channels, self.input[1]);
        let left = self.pads_begin[1].min(window[1]);
        let inside = width.min(window[1] - left);
        // Of short rows a call for each side of padding takes longer than zeros for all.
        let short = inside * channels < SHORT;
        if short {
            plane[..window[0] * window[1] * channels].fill(0.0);
        }
        for (index, line) in plane.chunks_exact_mut((window[1] * channels).max(1)).take(window[0]).enumerate() {
            match (row * self.stride[0] + index).checked_sub(self.pads_begin[0]).filter(|y| *y < self.input[0]) {
                Some(y) => {
                    let (before, rest) = line.split_at_mut(left * channels);
                    let (middle, after) = rest.split_at_mut(inside * channels);
                    middle.copy_from_slice(&x[y * width * channels..][..inside * channels]);
                    if !short {
                        before.fill(0.0);
                        after.fill(0.0);
                    }
                }
                None if short => {}
                None => line.fill(0.0),
            }
        }
    }

    /// The convolution that turns dz into dx: taps in reverse order, padded so that each input position is covered. Only
    /// with stride 1 and no more padding than the kernel reaches.
    pub fn mirrored(&self) -> Option<Self> {
        let reach = |axis: usize| (self.kernel[axis] - 1) * self.dilation[axis];
        let fits = |axis: usize| self.stride[axis] == 1 && self.pads_begin[axis] <= reach(axis);
        (fits(0) && fits(1)).then(|| Self {
            input: self.output,
            input_channels: self.output_channels,
            output: self.input,
            output_channels: self.input_channels,
            pads_begin: [reach(0) - self.pads_begin[0], reach(1) - self.pads_begin[1]],
            ..self.clone()
        })
    }

    /// Writes the patches of output positions `range` for `group` to `col [range, patch]`, taps outside as zero.
    pub fn patches(&self, x: &[f32], group: usize, range: Range<usize>, col: &mut [f32]) {
        let (width, channels, inputs) = (self.input[1], self.input_channels, self.group_inputs());
        let patch = self.patch();
        let together = self.taps_stand_together();
        for (index, o) in range.enumerate() {
            let (oy, ox) = (o / self.output[1], o % self.output[1]);
            let row = &mut col[index * patch..][..patch];
            let (rows, columns) = (self.taps(0, oy), self.taps(1, ox));
            if rows.len() < self.kernel[0] || columns.len() < self.kernel[1] {
                row.fill(0.0);
            }
            for ky in rows {
                let line = self.position(0, oy, ky) * width;
                if together && !columns.is_empty() {
                    let from = (line + self.position(1, ox, columns.start)) * channels;
                    let to = (ky * self.kernel[1] + columns.start) * inputs;
                    let len = columns.len() * inputs;
                    copy(&x[from..from + len], &mut row[to..to + len]);
                    continue;
                }
                for kx in columns.clone() {
                    let from = (line + self.position(1, ox, kx)) * channels + group * inputs;
                    let to = (ky * self.kernel[1] + kx) * inputs;
                    copy(&x[from..from + inputs], &mut row[to..to + inputs]);
                }
            }
        }
    }

    /// Adds patches back to where they came from: the transpose of [`ConvGeometry::patches`].
    pub fn add_patches(&self, col: &[f32], group: usize, range: Range<usize>, dx: &mut [f32]) {
        let (width, channels, inputs) = (self.input[1], self.input_channels, self.group_inputs());
        let patch = self.patch();
        let together = self.taps_stand_together();
        for (index, o) in range.enumerate() {
            let (oy, ox) = (o / self.output[1], o % self.output[1]);
            let row = &col[index * patch..][..patch];
            let columns = self.taps(1, ox);
            for ky in self.taps(0, oy) {
                let line = self.position(0, oy, ky) * width;
                if together && !columns.is_empty() {
                    let to = (line + self.position(1, ox, columns.start)) * channels;
                    let from = (ky * self.kernel[1] + columns.start) * inputs;
                    let len = columns.len() * inputs;
                    dx[to..to + len].iter_mut().zip(&row[from..from + len]).for_each(|(dx, d)| *dx += d);
                    continue;
                }
                for kx in columns.clone() {
                    let to = (line + self.position(1, ox, kx)) * channels + group * inputs;
                    let from = (ky * self.kernel[1] + kx) * inputs;
                    for (dx, d) in dx[to..to + inputs].iter_mut().zip(&row[from..from + inputs]) {
                        *dx += d;
                    }
                }
            }
        }
    }
}

/// Copies a few values: a call of memcpy for four of them takes longer than the values.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    #[inline(always)]
    fn fixed<const N: usize>(from: &[f32], to: &mut [f32]) {
        if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut::<N>()) {
            *to = *from;
        }
    }
    match from.len() {
        1 => fixed::<1>(from, to),
        2 => fixed::<2>(from, to),
        3 => fixed::<3>(from, to),
        4 => fixed::<4>(from, to),
        5 => fixed::<5>(from, to),
        6 => fixed::<6>(from, to),
        7 => fixed::<7>(from, to),
        8 => fixed::<8>(from, to),
        _ => to.copy_from_slice(from),
    }
}
