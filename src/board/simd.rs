//! The vector instructions that the kernels take here.

use rten_simd::ops::BitOps;
use rten_simd::{Isa, SimdOp};

struct Lanes;

impl SimdOp for Lanes {
    type Output = usize;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> usize {
        isa.f32().len()
    }
}

/// What the kernels run on here, by the token that `rten-simd` picks: the answer of the program, not of /proc/cpuinfo.
#[must_use]
pub fn simd() -> &'static str {
    match Lanes.dispatch() {
        16 => "AVX-512",
        8 => "AVX2",
        _ if cfg!(target_arch = "aarch64") => "NEON",
        _ => "none",
    }
}
