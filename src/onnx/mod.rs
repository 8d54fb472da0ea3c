//! ONNX files: the only place that knows tract and protobuf.
//!
//! tract decodes the file, infers types and shapes and folds constants; the nodes of the file are lowered to
//! [`crate::graph`] one by one. [`wire`] writes merged weights back without decoding the rest.

pub mod operators;
pub mod wire;

#[cfg(feature = "onnx")]
mod attributes;
#[cfg(feature = "onnx")]
mod convert;
#[cfg(feature = "onnx")]
mod foreign;
#[cfg(feature = "onnx")]
mod infer;
#[cfg(feature = "onnx")]
mod load;
#[cfg(feature = "onnx")]
mod memory;
#[cfg(feature = "onnx")]
mod quantised;
#[cfg(feature = "onnx")]
mod types;

#[cfg(feature = "onnx")]
pub use load::{LoadOptions, load, load_bytes};

use std::path::PathBuf;

/// Why an ONNX file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file cannot be opened.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not an ONNX file, or a damaged one.
    #[error("not a readable ONNX model: {0}; check that the file is complete (its sha256) and ends in .onnx")]
    Malformed(String),
    /// A node refers to data that cannot be had.
    #[error("tensor `{tensor}` is stored outside the model file: {reason}")]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// An input or output that the model does not have.
    #[error("the model has no {what} `{name}`; it has {found:?}")]
    NoSuchTensor {
        /// `input` or `output`.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// What there is.
        found: Vec<String>,
    },
    /// More inputs than one.
    #[error("the model has {} inputs ({found:?}); accentor feeds one: fix the others in the file, or name one with `input`", found.len())]
    Inputs {
        /// Their names.
        found: Vec<String>,
    },
    /// Dimensions that the file leaves open.
    #[error("input `{input}` has free dimensions {shape:?}: give `input_shape` in model.toml, batch 1 first")]
    FreeShape {
        /// The input.
        input: String,
        /// Its shape, free dimensions by name.
        shape: Vec<String>,
    },
    /// A node that cannot be used.
    #[error("node `{node}` ({op}): {what}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// What is wrong, and what would do.
        what: String,
    },
    /// More than the limit of a load.
    #[error(
        "the tensors of the model take {} MiB, more than the {} MiB that a load may take ({largest}); \
         give a smaller input shape, or free memory",
        .bytes >> 20, .limit >> 20
    )]
    Memory {
        /// Bytes of all tensors for one sample.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
        /// Where most of them are.
        largest: String,
    },
    /// Shapes or types cannot be inferred.
    #[error("types and shapes of the model cannot be inferred: {0}")]
    Analysis(String),
}
