//! Adapters: which sites, the matrices in PEFT's shapes, how they start, and their files.
//!
//! | site | tensors | effective weight |
//! |---|---|---|
//! | dense | A `[r, in]`, B `[out, r]` | `W + (alpha/r)·B·A` |
//! | convolution | A `[r, in/groups, kh, kw]`, B `[out, r/groups, 1, 1]` | the same, a group at a time |
//! | depthwise | scale `[channels]`, shift `[channels]` | `scale·W`, bias `scale·b + shift` |
//! | trained head | weight and bias as the file has them | themselves |
//!
//! Source: Hu et al. 2021 (arXiv 2106.09685); the convolution form is that of PEFT's `LoraConv2d`.

mod adapter;
mod folder;
mod integers;
pub mod merge;
mod shared;
mod step;

pub use adapter::{Adapter, AdapterSite, AdapterSpec, Delta, StageBase};
pub use folder::{AdapterError, load, read, read_peft, write, write_whole};
pub use shared::{Folded, SharedLayer, SharedWeights};
pub use step::{Adaptation, SiteStep, SiteWeights};
