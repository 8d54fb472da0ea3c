//! SIMD kernels, one file a family: slices in, slices out, no allocation, no threads.
//!
//! Every kernel is written once, generic over the token of `rten-simd`; the token is picked once a call. The scalar
//! oracle stands beside each kernel in its tests, which run for the token of this machine and for the generic one.

pub mod affine;
pub mod conv_geometry;
pub mod depthwise;
pub mod elementary;
pub mod gemm;
pub mod half;
pub mod integer_taps;
pub mod integers;
pub mod mask;
pub mod norm;
pub mod pool;
pub mod winograd;

use rten_simd::isa::GenericIsa;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

/// `generic` takes the token without SIMD, for the tests.
fn on<O: SimdOp>(generic: bool, op: O) -> O::Output {
    if cfg!(test) && generic { op.eval(GenericIsa::new()) } else { op.dispatch() }
}

/// `x` between two bounds, lower first; not a number stays.
#[inline(always)]
fn between<I: Isa>(isa: I, low: I::F32, high: I::F32, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    // Where one is not a number, AVX gives the second operand and NEON not a number; the token without SIMD, which has four
    // lanes too, gives the other one.
    if isa.f32().len() > 4 || cfg!(target_arch = "aarch64") {
        ops.min(high, ops.max(low, x))
    } else {
        let bounded = ops.select(low, x, ops.lt(x, low));
        ops.select(high, bounded, ops.gt(bounded, high))
    }
}
