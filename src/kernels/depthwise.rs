//! Depthwise convolution of one plane, channels last: each channel with its own taps.
//!
//! A vector of channels is the unit: the output vector stays in a register while the taps that fall inside the plane
//! are added in the order of the kernel.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::conv_geometry::ConvGeometry;

/// y = bias + conv(x), `x [height, width, channels]`, `w [kernel_h * kernel_w, channels]`, `y [out_h, out_w, channels]`.
///
/// An empty `bias` is zero.
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn forward(g: &ConvGeometry, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]) {
    Forward { g, x, w, bias, y }.dispatch();
}

/// dx += conv_transposed(dy): the input gradient, shapes as in [`forward`].
///
/// # Panics
/// If a slice is shorter than the geometry says.
pub fn input_gradient(g: &ConvGeometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    InputGradient { g, dy, w, dx }.dispatch();
}

struct Forward<'a> {
    g: &'a ConvGeometry,
    x: &'a [f32],
    w: &'a [f32],
    bias: &'a [f32],
    y: &'a mut [f32],
}

impl SimdOp for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let lanes = ops.len();
        let g = self.g;
        let channels = g.input_channels;
        for oy in 0..g.output[0] {
            let rows = g.taps(0, oy);
            for ox in 0..g.output[1] {
                let columns = g.taps(1, ox);
                let y = &mut self.y[(oy * g.output[1] + ox) * channels..][..channels];
                let mut c = 0;
                while c < channels {
                    let width = lanes.min(channels - c);
                    let full = width == lanes;
                    let mut acc =
                        if self.bias.is_empty() { ops.zero() } else { ops.load_pad(&self.bias[c..c + width]).0 };
                    for ky in rows.clone() {
                        let iy = g.position(0, oy, ky);
                        for kx in columns.clone() {
                            let ix = g.position(1, ox, kx);
                            let x = &self.x[(iy * g.input[1] + ix) * channels + c..][..width];
                            let w = &self.w[(ky * g.kernel[1] + kx) * channels + c..][..width];
                            let (x, w) =
                                if full { (ops.load(x), ops.load(w)) } else { (ops.load_pad(x).0, ops.load_pad(w).0) };
                            acc = ops.mul_add(x, w, acc);
                        }
                    }
                    if full {
                        ops.store(acc, &mut y[c..]);
                    } else {
                        y[c..].copy_from_slice(&acc.to_array().as_ref()[..width]);
                    }
                    c += width;
                }
            }
        }
    }
}

struct InputGradient<'a> {
    g: &'a ConvGeometry,
    dy: &'a [f32],
    w: &'a [f32],
    dx: &'a mut [f32],
}

impl SimdOp for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let lanes = ops.len();
        let g = self.g;
        let channels = g.input_channels;
        for oy in 0..g.output[0] {
            let rows = g.taps(0, oy);
            for ox in 0..g.output[1] {
                let columns = g.taps(1, ox);
                let dy = &self.dy[(oy * g.output[1] + ox) * channels..][..channels];
                let mut c = 0;
                while c < channels {
                    let width = lanes.min(channels - c);
                    let full = width == lanes;
                    let d = ops.load_pad(&dy[c..c + width]).0;
                    for ky in rows.clone() {
                        let iy = g.position(0, oy, ky);
                        for kx in columns.clone() {
                            let ix = g.position(1, ox, kx);
                            let dx = &mut self.dx[(iy * g.input[1] + ix) * channels + c..][..width];
                            let w = &self.w[(ky * g.kernel[1] + kx) * channels + c..][..width];
                            if full {
                                let sum = ops.mul_add(d, ops.load(w), ops.load(dx));
                                ops.store(sum, dx);
                            } else {
                                let sum = ops.mul_add(d, ops.load_pad(w).0, ops.load_pad(dx).0);
                                dx.copy_from_slice(&sum.to_array().as_ref()[..width]);
                            }
                        }
                    }
                    c += width;
                }
            }
        }
    }
}
