//! Writing adapter folders.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use super::config::{Record, SiteRecord};
use super::shapes::{pair_tensors, transposed};
use super::{ADAPTER_CONFIG, ADAPTER_TENSORS, AdapterError, FORMAT_VERSION, NO_TARGETS, PREFIX};
use crate::graph::{Graph, Layout};
use crate::lora::{Adapter, AdapterSite, Delta};
use crate::store;

/// Writes `adapter` as a PEFT folder, whole or not at all; an older adapter folder of that name is replaced.
///
/// PEFT does not see the scales and shifts of depthwise layers in it: see [`write_whole`].
///
/// # Errors
/// [`AdapterError`] for an adapter that could not be read again, [`store::StoreError`] for what the disk refuses.
pub fn write(dir: &Path, adapter: &Adapter) -> Result<(), AdapterError> {
    write_files(dir, adapter, None)
}

/// As [`write()`], and depthwise layers also as whole layers, merged from the frozen weights of `graph`, so that PEFT
/// computes the same without accentor's bridge (where the module has a bias, and where no other layer's key ends in this
/// one's: PEFT could not tell them apart).
///
/// # Errors
/// As [`write()`].
pub fn write_whole(dir: &Path, adapter: &Adapter, graph: &Graph) -> Result<(), AdapterError> {
    write_files(dir, adapter, Some(graph))
}

fn write_files(dir: &Path, adapter: &Adapter, graph: Option<&Graph>) -> Result<(), AdapterError> {
    let (config, tensors) = encode(adapter, graph)?;
    Ok(store::write_folder(dir, &[(ADAPTER_CONFIG, config), (ADAPTER_TENSORS, tensors)])?)
}

impl Adapter {
    /// The two files of the adapter's folder with their names: configuration, then tensors.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn files(&self) -> Result<[(&'static str, Vec<u8>); 2], AdapterError> {
        let (config, tensors) = encode(self, None)?;
        Ok([(ADAPTER_CONFIG, config), (ADAPTER_TENSORS, tensors)])
    }

    /// sha256 of the adapter's tensor file, in hex: what a child names as its parent.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn sha256(&self) -> Result<String, AdapterError> {
        let digest = Sha256::digest(encode(self, None)?.1);
        Ok(digest.iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// The two files. The same adapter gives the same bytes.
fn encode(adapter: &Adapter, graph: Option<&Graph>) -> Result<(Vec<u8>, Vec<u8>), AdapterError> {
    if adapter.rank == 0 || !adapter.alpha.is_finite() {
        return Err(AdapterError::Rank { site: "all".to_owned(), rank: adapter.rank, groups: 1 });
    }
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut add =
        |name: String, shape: Vec<usize>, values: Vec<f32>| match tensors.insert(name.clone(), (shape, values)) {
            Some(_) => Err(AdapterError::Twice { name }),
            None => Ok(()),
        };
    let (mut targets, mut whole) = (Vec::new(), Vec::new());
    let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
    let mut records = Vec::new();
    for site in &adapter.sites {
        let dims = site.check()?;
        let name = |tensor: &str| format!("{PREFIX}{}.{tensor}", site.key);
        let mut record = SiteRecord::new(site);
        match &site.delta {
            Delta::LowRank { rank, alpha, a, b } => {
                targets.push(site.key.clone());
                if *rank != adapter.rank {
                    ranks.insert(exact_pattern(&site.key), (*rank).into());
                }
                if *alpha != adapter.alpha {
                    alphas.insert(exact_pattern(&site.key), number(*alpha));
                }
                (record.rank, record.alpha) = (Some(*rank), Some(*alpha));
                let [name_a, name_b] = pair_tensors(site.layout);
                add(name(&name_a), dims.a_shape(*rank), dims.widen_a(*rank, a))?;
                add(name(&name_b), dims.b_shape(*rank), b.clone())?;
            }
            Delta::ScaleShift { scale, shift } => {
                add(name("accentor_scale"), vec![scale.len()], scale.clone())?;
                add(name("accentor_shift"), vec![shift.len()], shift.clone())?;
                if let Some(graph) = graph.filter(|g| is_unmistakable(&site.key, adapter, g)) {
                    let weight = frozen(graph, &site.initializer, dims.weight, site)?;
                    let bias = site.bias.as_ref().map(|b| frozen(graph, b, dims.outputs, site)).transpose()?;
                    let per_channel = dims.weight / dims.outputs;
                    let weight = weight.iter().enumerate().map(|(i, w)| w * scale[i / per_channel]).collect();
                    let bias =
                        (0..dims.outputs).map(|c| bias.as_ref().map_or(0.0, |b| b[c]) * scale[c] + shift[c]).collect();
                    whole.push(site.key.clone());
                    add(name("weight"), dims.torch_shape(), weight)?;
                    add(name("bias"), vec![dims.outputs], bias)?;
                }
            }
            Delta::Full { weight, bias } => {
                whole.push(site.key.clone());
                let weight = match site.layout {
                    Layout::InOut => transposed(weight, dims.inputs, dims.outputs),
                    _ => weight.clone(),
                };
                add(name("weight"), dims.torch_shape(), weight)?;
                if let Some(bias) = bias {
                    add(name("bias"), vec![dims.outputs], bias.clone())?;
                }
            }
        }
        records.push(record);
    }
    let record = Record {
        format_version: if adapter.head.is_some() { FORMAT_VERSION } else { 1 },
        base_sha256: adapter.base_sha256.clone(),
        stages: adapter.stages.clone(),
        parent: adapter.parent.clone(),
        examples: adapter.examples,
        steps: adapter.steps,
        labels: adapter.labels.clone(),
        head: adapter.head.clone(),
        sites: records,
    };
    let targets = if targets.is_empty() { NO_TARGETS.into() } else { serde_json::Value::from(targets) };
    let config = serde_json::json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": adapter.base_name,
        "inference_mode": true,
        "r": adapter.rank,
        "lora_alpha": number(adapter.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": false,
        "target_modules": targets,
        "modules_to_save": if whole.is_empty() { serde_json::Value::Null } else { whole.into() },
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "accentor": record,
    });
    Ok((format!("{config:#}\n").into_bytes(), serialize(&tensors)?))
}

/// Whether `modules_to_save` can name this layer alone: PEFT takes every module whose path ends in the same letters.
fn is_unmistakable(key: &str, adapter: &Adapter, graph: &Graph) -> bool {
    let modules = graph.values.iter().filter_map(|v| v.name.strip_suffix(".weight"));
    let others = modules.chain(adapter.sites.iter().map(|s| s.key.as_str()));
    !others.filter(|o| *o != key).any(|o| o.ends_with(key))
}

/// A frozen tensor of the base.
fn frozen(graph: &Graph, name: &str, len: usize, site: &AdapterSite) -> Result<Arc<[f32]>, AdapterError> {
    let value = graph.value_named(name).and_then(|v| graph.values[v].values());
    value.filter(|v| v.len() == len).ok_or_else(|| AdapterError::NoSite { site: site.key.clone(), nearest: None })
}

fn serialize(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Result<Vec<u8>, AdapterError> {
    let damaged =
        |e: safetensors::SafeTensorError| AdapterError::Damaged { path: ADAPTER_TENSORS.into(), reason: e.to_string() };
    let bytes: Vec<Vec<u8>> = tensors.values().map(|(_, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(damaged)?))
    });
    let views = views.collect::<Result<Vec<_>, AdapterError>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(damaged)
}

/// Whole where it is, so that Python reads an int.
fn number(value: f32) -> serde_json::Value {
    if value.fract() == 0.0 && value.abs() < 1e9 { (value as i64).into() } else { value.into() }
}

/// The regular expression, for PEFT's `(.*\.)?(PATTERN)$`, that only the module path `key` matches.
pub(super) fn exact_pattern(key: &str) -> String {
    let mut pattern = String::from("^");
    for c in key.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
