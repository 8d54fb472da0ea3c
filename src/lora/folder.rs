//! Adapter folders: PEFT's two files, written and read, and bound to the base that they belong to.
//!
//! | in `adapter_model.safetensors` | shape | of |
//! |---|---|---|
//! | `base_model.model.<key>.lora_A.weight` | dense `[r, in]`, convolution `[r, in, kh, kw]` | low-rank pair |
//! | `base_model.model.<key>.lora_B.weight` | dense `[out, r]`, convolution `[out, r/groups, 1, 1]` | low-rank pair |
//! | `base_model.model.<key>.weight`, `.bias` | PyTorch's: dense `[out, in]`, `[out]` | trained whole |
//! | `base_model.model.<key>.accentor_scale`, `.accentor_shift` | `[channels]` | depthwise |
//! | the same two names, `<key>` a recurrent node's name with `.W` or `.R` (`_reverse`: second direction) | A `[r, in]` or `[r, hidden]`, B `[gates·hidden, r]` in ONNX's order of the gates | low-rank pair of one direction |
//!
//! - `<key>` is [`crate::graph::Site::key`] as it is; PyTorch reads its dots as levels of modules, any other character may
//!   stand in a name.
//! - PEFT 0.21 gives the A of a grouped convolution all input channels. So does the file, with zeros outside a row's own
//!   group; in memory A is `[r, in/groups, kh, kw]`. A file with anything else there is refused: it is no grouped layer.
//! - Whole layers are listed in `modules_to_save`. Depthwise layers too, if written by [`write_whole`], which adds their
//!   merged weight and bias for PEFT; accentor reads the scale and the shift.
//! - `rank_pattern` and `alpha_pattern` hold the sites that differ from `r` and `lora_alpha`. PEFT takes their keys as
//!   regular expressions for the end of a module path, first match wins: ours are escaped and begin with `^`, so each
//!   fits one module.
//! - PEFT cannot load the pairs of recurrent layers from here: it has them as `target_parameters` of the PyTorch module, under
//!   names and in an order of the gates that no ONNX file keeps. `merge` carries them to any runtime.
//! - `adapter_config.json` has one object that PEFT ignores (it warns), `accentor`: format version, sha256 of the base,
//!   parent, counts, labels, and a table of the sites. Without it, a folder is one that was trained in PyTorch: its
//!   tensors are matched to the sites by key.

mod bind;
mod config;
mod files;
mod read;
mod shapes;
mod write;

use std::io;
use std::path::PathBuf;

pub use read::{load, read, read_peft};
pub use write::{write, write_whole};

use crate::store::{ADAPTER_CONFIG, ADAPTER_TENSORS, StoreError};

/// Readers take every version up to it; an adapter that says nothing new is written as the version that could say it.
/// Version 2 added the head.
const FORMAT_VERSION: u64 = 2;
/// PEFT's name for the wrapped model.
const PREFIX: &str = "base_model.model.";
/// What PEFT takes as "no module has a low-rank pair".
const NO_TARGETS: &str = "dummy-target-modules";

/// Why an adapter could not be written, read or bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The folder could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read.
    #[error("cannot read {path}: {source}; an adapter is a folder with {ADAPTER_CONFIG} and {ADAPTER_TENSORS}")]
    Read {
        /// File.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that is not what its name says.
    #[error("{path} is damaged or not of an adapter: {reason}; train again, or take the folder from a backup")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Written by a later accentor.
    #[error("{path} has format version {found}, this accentor reads up to {FORMAT_VERSION}: update accentor")]
    Version {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// A folder without accentor's table, read without the base.
    #[error(
        "{path} has no `accentor` table: it was trained in PyTorch and can only be read together with its base (lora::load)"
    )]
    Plain {
        /// File.
        path: PathBuf,
    },
    /// Something of PEFT that has no counterpart here.
    #[error(
        "{path}: {what} is not supported; train in PEFT with LoraConfig(target_modules=…, modules_to_save=…) and its defaults"
    )]
    Unsupported {
        /// File.
        path: PathBuf,
        /// The setting.
        what: String,
    },
    /// A tensor that should be there.
    #[error("{path} lacks `{tensor}`, which site `{site}` needs; the folder is incomplete: write it again")]
    MissingTensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Site.
        site: String,
    },
    /// A tensor that belongs to no site.
    #[error("{path} has `{tensor}`, which belongs to no site of the adapter{}", nearest_text(.nearest))]
    UnexpectedTensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Key of the site that is named most alike.
        nearest: Option<String>,
    },
    /// A tensor of another shape.
    #[error(
        "site `{site}`: {tensor} has shape {found:?}, expected {expected:?}; the adapter is for another base or was changed"
    )]
    Shape {
        /// Site.
        site: String,
        /// Tensor.
        tensor: String,
        /// By the base.
        expected: Vec<usize>,
        /// In the adapter.
        found: Vec<usize>,
    },
    /// A has the shape of B, or its dimensions are exchanged.
    #[error(
        "site `{site}`: A is {a:?} and B is {b:?}, expected A {expected_a:?} and B {expected_b:?}: \
         they look swapped or transposed; A goes from the input to the rank, B from the rank to the output"
    )]
    Swapped {
        /// Site.
        site: String,
        /// Shape of A found.
        a: Vec<usize>,
        /// Shape of B found.
        b: Vec<usize>,
        /// Shape of A by the base.
        expected_a: Vec<usize>,
        /// Shape of B by the base.
        expected_b: Vec<usize>,
    },
    /// NaN or infinite.
    #[error("site `{site}`: {tensor} has a value that is infinite or not a number; train again with a lower --lr")]
    NotFinite {
        /// Site.
        site: String,
        /// Tensor.
        tensor: String,
    },
    /// A rank that cannot be.
    #[error(
        "site `{site}` has rank {rank}; expected at least 1 and a multiple of its {groups} groups: train with --rank {groups} or more"
    )]
    Rank {
        /// Site.
        site: String,
        /// Rank.
        rank: usize,
        /// Groups of the layer.
        groups: usize,
    },
    /// Another base.
    #[error(
        "the adapter was trained on `{name}` (sha256 {expected}), this model has sha256 {found}: \
         use it with that model, or train one for this model with `accentor adapt`"
    )]
    WrongBase {
        /// Name of its base.
        name: String,
        /// sha256 of its base.
        expected: String,
        /// sha256 of the model given.
        found: String,
    },
    /// A site that the model does not have.
    #[error("the model has no site `{site}`{}; `accentor inspect` lists them", nearest_text(.nearest))]
    NoSite {
        /// Key in the adapter.
        site: String,
        /// Key of the site that is named most alike.
        nearest: Option<String>,
    },
    /// Two sites with one name, or two tensors.
    #[error("the adapter has `{name}` twice; each site has its own key")]
    Twice {
        /// Key or tensor.
        name: String,
    },
    /// A site that is another layer in this model.
    #[error(
        "site `{site}`: its {what} is {found} in this model, the adapter was trained with {expected}; use it with the model that it was trained on"
    )]
    Mismatch {
        /// Site.
        site: String,
        /// What differs.
        what: &'static str,
        /// In the adapter.
        expected: String,
        /// In the model.
        found: String,
    },
}

fn nearest_text(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!(" (nearest: `{n}`)")).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests;
