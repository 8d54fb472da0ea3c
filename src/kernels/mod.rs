//! SIMD kernels, one file a family: slices in, slices out, no allocation, no threads.
//!
//! Every kernel is written once, generic over the token of `rten-simd`; the token is picked once a call. The scalar
//! oracle stands beside each kernel in its tests, which run for the token of this machine and for the generic one.

pub mod conv_geometry;
pub mod depthwise;
pub mod elementary;
pub mod gemm;
pub mod integer_taps;
pub mod integers;
pub mod mask;
pub mod norm;
