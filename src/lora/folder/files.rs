//! The bytes of the two files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};
use serde::de::IgnoredAny;

use super::config::Pairs;
use super::{AdapterError, PREFIX};
use crate::onnx::wire::f16_value;

/// Larger files are refused unread: an adapter is smaller than its base.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// A tensor of the file, as f32.
pub(super) struct Tensor {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, AdapterError> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    result.map_err(|source| AdapterError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(AdapterError::Damaged { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Reads the tensors in `bytes`, which `path` names in errors.
pub(super) fn tensors_of(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, Tensor>, AdapterError> {
    let damaged = |reason: String| AdapterError::Damaged { path: path.to_owned(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;
    if let Some(name) = repeated_name(bytes) {
        return Err(damaged(format!("it has tensor `{name}` twice")));
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => view.data().chunks_exact(2).map(|b| f16_value(u16::from_le_bytes([b[0], b[1]]))).collect(),
            Dtype::BF16 => view.data().chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
            Dtype::F64 => {
                let value = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
                view.data().chunks_exact(8).map(value).collect()
            }
            other => return Err(damaged(format!("tensor `{name}` is {other:?}; expected F32, F16, BF16 or F64"))),
        };
        if values.iter().any(|v| !v.is_finite()) {
            let tensor = name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
            return Err(AdapterError::NotFinite { site: key_of(name).to_owned(), tensor });
        }
        tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), values });
    }
    Ok(tensors)
}

/// A name that the header has twice; the safetensors reader would take one of the two.
fn repeated_name(bytes: &[u8]) -> Option<String> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    let Pairs(names) = serde_json::from_slice::<Pairs<IgnoredAny>>(header).ok()?;
    let mut seen = BTreeSet::new();
    names.into_iter().map(|(name, _)| name).find(|name| !seen.insert(name.clone()))
}

/// The key in a tensor's name: without PEFT's prefix and the tensor's own name.
pub(super) fn key_of(tensor: &str) -> &str {
    let path = tensor.strip_prefix(PREFIX).unwrap_or(tensor);
    let own = [
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_embedding_A",
        ".lora_embedding_B",
        ".accentor_scale",
        ".accentor_shift",
        ".weight",
        ".bias",
    ];
    own.iter().find_map(|o| path.strip_suffix(o)).unwrap_or(path)
}
