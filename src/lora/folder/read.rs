//! Reading adapter folders, accentor's own and those that PEFT trained.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::bind::{find, nearest};
use super::config::{BASE_CHANGING, Kind, LayoutName, Pairs, PeftConfig, Record, SiteRecord, UNSUPPORTED};
use super::files::{Tensor, key_of, read_file, tensors_of};
use super::shapes::{Dims, pair_tensors, transposed};
use super::{ADAPTER_CONFIG, ADAPTER_TENSORS, AdapterError, FORMAT_VERSION, PREFIX};
use crate::graph::{Graph, Layout, Site, SiteKind, ValueId};
use crate::lora::{Adapter, AdapterSite, Delta};
use crate::store;

/// How far a whole depthwise weight of PyTorch may be from a multiple of the frozen one, relative to its largest value.
const DEPTHWISE_TOLERANCE: f64 = 1e-5;

/// Reads an adapter folder that accentor wrote.
///
/// # Errors
/// [`AdapterError`]: missing, damaged or foreign files, tensors that do not fit the table. [`AdapterError::Plain`] for
/// a folder that was trained in PyTorch: [`load`] reads both kinds.
pub fn read(dir: &Path) -> Result<Adapter, AdapterError> {
    Folder::open(dir)?.own_adapter()
}

impl Adapter {
    /// The adapter of the two files that [`Adapter::files`] gave; `name` stands for them in errors.
    ///
    /// # Errors
    /// As [`read`].
    pub fn from_files(name: &Path, config: &[u8], tensors: &[u8]) -> Result<Self, AdapterError> {
        Folder::of(name, config, tensors)?.own_adapter()
    }
}

/// Reads an adapter folder of PEFT without accentor's table and matches its tensors to `sites` (all of `graph`) by key.
///
/// # Errors
/// [`AdapterError`]: missing, damaged or foreign files, settings that have no counterpart here, tensors that fit no site.
pub fn read_peft(dir: &Path, graph: &Graph, sites: &[Site]) -> Result<Adapter, AdapterError> {
    Folder::open(dir)?.plain_adapter(graph, sites)
}

/// Reads an adapter folder of either kind and binds it to its base: the adapter, and the graph's site for each of its
/// sites. `sites` are all of `graph`; `base_sha256` is that of the ONNX file, where it is known.
///
/// # Errors
/// As [`read`], [`read_peft`] and [`Adapter::bind`].
pub fn load(
    dir: &Path,
    graph: &Graph,
    sites: &[Site],
    base_sha256: Option<&str>,
) -> Result<(Adapter, Vec<Site>), AdapterError> {
    let folder = Folder::open(dir)?;
    let adapter = match folder.config.accentor.clone() {
        Some(table) => folder.adapter(table)?,
        None => folder.plain_adapter(graph, sites)?,
    };
    let bound = adapter.bind(graph, sites, base_sha256)?;
    Ok((adapter, bound))
}

/// The two files of a folder, decoded.
struct Folder {
    config_path: PathBuf,
    tensors_path: PathBuf,
    config: PeftConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Folder {
    fn open(dir: &Path) -> Result<Self, AdapterError> {
        store::recover(dir)?;
        let read = |name: &str| read_file(&dir.join(name));
        Self::of(dir, &read(ADAPTER_CONFIG)?, &read(ADAPTER_TENSORS)?)
    }

    /// The folder `dir` by the content of its two files.
    fn of(dir: &Path, config: &[u8], tensors: &[u8]) -> Result<Self, AdapterError> {
        let (config_path, tensors_path) = (dir.join(ADAPTER_CONFIG), dir.join(ADAPTER_TENSORS));
        let damaged = |reason: String| AdapterError::Damaged { path: config_path.clone(), reason };
        let config: PeftConfig = serde_json::from_slice(config).map_err(|e| damaged(e.to_string()))?;
        match config.peft_type.as_deref() {
            Some("LORA") => {}
            Some(other) => {
                return Err(AdapterError::Unsupported {
                    path: config_path,
                    what: format!("peft_type `{other}` (expected `LORA`)"),
                });
            }
            None => return Err(damaged("it has no `peft_type`; expected \"LORA\"".to_owned())),
        }
        let tensors = tensors_of(tensors, &tensors_path)?;
        Ok(Self { config_path, tensors_path, config, tensors })
    }

    /// What accentor wrote.
    fn own_adapter(self) -> Result<Adapter, AdapterError> {
        match self.config.accentor.clone() {
            Some(table) => self.adapter(table),
            None => Err(AdapterError::Plain { path: self.config_path }),
        }
    }

    fn damaged(&self, reason: impl fmt::Display) -> AdapterError {
        AdapterError::Damaged { path: self.config_path.clone(), reason: reason.to_string() }
    }

    /// Takes `base_model.model.<key>.<tensor>` out.
    fn take(&mut self, key: &str, tensor: &str) -> Result<Tensor, AdapterError> {
        let name = format!("{PREFIX}{key}.{tensor}");
        let missing = || AdapterError::MissingTensor {
            path: self.tensors_path.clone(),
            tensor: name.clone(),
            site: key.to_owned(),
        };
        self.tensors.remove(&name).ok_or_else(missing)
    }

    fn take_shape(&mut self, key: &str, tensor: &str, expected: Vec<usize>) -> Result<Vec<f32>, AdapterError> {
        let found = self.take(key, tensor)?;
        if found.shape != expected {
            return Err(AdapterError::Shape {
                site: key.to_owned(),
                tensor: tensor.to_owned(),
                expected,
                found: found.shape,
            });
        }
        Ok(found.values)
    }

    /// A and B in memory.
    fn take_pair(
        &mut self,
        key: &str,
        rank: usize,
        layout: Layout,
        dims: &Dims,
    ) -> Result<(Vec<f32>, Vec<f32>), AdapterError> {
        let [a, b] = pair_tensors(layout);
        let (a, b) = (self.take(key, &a)?, self.take(key, &b)?);
        let bad_rank = AdapterError::Rank { site: key.to_owned(), rank, groups: dims.groups };
        if rank == 0 || !rank.is_multiple_of(dims.groups) || dims.pair_lens(rank).is_none() {
            return Err(bad_rank);
        }
        let (expected_a, expected_b) = (dims.a_shape(rank), dims.b_shape(rank));
        let turned = |shape: &[usize]| {
            let mut shape = shape.to_vec();
            shape.swap(0, 1);
            shape
        };
        let swapped = a.shape == expected_b && b.shape == expected_a;
        let transposed = a.shape == turned(&expected_a) || b.shape == turned(&expected_b);
        if (&a.shape, &b.shape) != (&expected_a, &expected_b) && (swapped || transposed) {
            return Err(AdapterError::Swapped { site: key.to_owned(), a: a.shape, b: b.shape, expected_a, expected_b });
        }
        for (tensor, found, expected) in [("A", &a.shape, &expected_a), ("B", &b.shape, &expected_b)] {
            if found != expected {
                let (expected, found) = (expected.clone(), found.clone());
                return Err(AdapterError::Shape { site: key.to_owned(), tensor: tensor.to_owned(), expected, found });
            }
        }
        let Some(a) = dims.narrow_a(rank, a.values) else {
            let what =
                format!("A of site `{key}`, which reads inputs outside its group (PEFT cannot merge it either),");
            return Err(AdapterError::Unsupported { path: self.tensors_path.clone(), what });
        };
        Ok((a, b.values))
    }

    /// A whole weight in the order of the ONNX file.
    fn take_weight(&mut self, key: &str, layout: Layout, dims: &Dims) -> Result<Vec<f32>, AdapterError> {
        let weight = self.take_shape(key, "weight", dims.torch_shape())?;
        Ok(match layout {
            Layout::InOut => transposed(&weight, dims.outputs, dims.inputs),
            _ => weight,
        })
    }

    fn has(&self, key: &str, tensor: &str) -> bool {
        self.tensors.contains_key(&format!("{PREFIX}{key}.{tensor}"))
    }

    /// Nothing may be left when every site has its tensors.
    fn check_empty(&self, keys: &[&str]) -> Result<(), AdapterError> {
        let Some(tensor) = self.tensors.keys().next() else { return Ok(()) };
        let nearest = nearest(key_of(tensor), keys.iter().copied());
        Err(AdapterError::UnexpectedTensor { path: self.tensors_path.clone(), tensor: tensor.clone(), nearest })
    }

    /// By accentor's table.
    fn adapter(mut self, table: serde_json::Value) -> Result<Adapter, AdapterError> {
        match table.get("format_version").and_then(serde_json::Value::as_u64) {
            Some(1..=FORMAT_VERSION) => {}
            Some(found) => return Err(AdapterError::Version { path: self.config_path, found }),
            None => return Err(self.damaged("the `accentor` table has no `format_version`")),
        }
        let record: Record = serde_json::from_value(table).map_err(|e| self.damaged(e))?;
        let (Some(rank @ 1..), Some(alpha)) = (self.config.r, self.config.lora_alpha) else {
            return Err(self.damaged("`r` (at least 1) or `lora_alpha` is missing"));
        };
        let mut sites = Vec::new();
        for site in record.sites {
            if sites.iter().any(|s: &AdapterSite| s.key == site.key) {
                return Err(AdapterError::Twice { name: site.key });
            }
            sites.push(self.site(site)?);
        }
        let keys: Vec<&str> = sites.iter().map(|s| s.key.as_str()).collect();
        self.check_empty(&keys)?;
        Ok(Adapter {
            base_sha256: record.base_sha256,
            stages: record.stages,
            base_name: self.config.base_model_name_or_path.unwrap_or_default(),
            rank,
            alpha,
            parent: record.parent,
            examples: record.examples,
            steps: record.steps,
            labels: record.labels,
            head: record.head,
            sites,
        })
    }

    fn site(&mut self, record: SiteRecord) -> Result<AdapterSite, AdapterError> {
        let mut site = AdapterSite {
            key: record.key,
            node: record.node,
            initializer: record.initializer,
            bias: record.bias,
            layout: match record.layout {
                LayoutName::OutInKernel => Layout::OutInKernel,
                LayoutName::InOut => Layout::InOut,
                LayoutName::OutIn => Layout::OutIn,
                LayoutName::Stacked { part } => Layout::Stacked { part },
                LayoutName::Rows => Layout::Rows,
            },
            weight_shape: record.shape,
            groups: record.groups,
            weight_scale: record.weight_scale,
            delta: Delta::ScaleShift { scale: Vec::new(), shift: Vec::new() },
        };
        let dims = site.dims()?;
        let key = site.key.as_str();
        site.delta = match record.kind {
            Kind::LowRank => {
                let (Some(rank), Some(alpha)) = (record.rank, record.alpha) else {
                    return Err(self.damaged(format!("site `{key}` has no `rank` or no `alpha`")));
                };
                let (a, b) = self.take_pair(key, rank, site.layout, &dims)?;
                Delta::LowRank { rank, alpha, a, b }
            }
            Kind::ScaleShift => {
                let scale = self.take_shape(key, "accentor_scale", vec![dims.outputs])?;
                let shift = self.take_shape(key, "accentor_shift", vec![dims.outputs])?;
                // The whole layer beside them is for PEFT.
                for tensor in ["weight", "bias"] {
                    self.tensors.remove(&format!("{PREFIX}{key}.{tensor}"));
                }
                Delta::ScaleShift { scale, shift }
            }
            Kind::Whole => {
                let weight = self.take_weight(key, site.layout, &dims)?;
                let bias =
                    self.has(key, "bias").then(|| self.take_shape(key, "bias", vec![dims.outputs])).transpose()?;
                Delta::Full { weight, bias }
            }
        };
        site.check()?;
        Ok(site)
    }

    /// By the names of the tensors.
    fn plain_adapter(mut self, graph: &Graph, sites: &[Site]) -> Result<Adapter, AdapterError> {
        self.check_settings()?;
        let (Some(rank @ 1..), Some(alpha)) = (self.config.r, self.config.lora_alpha) else {
            return Err(self.damaged("`r` (at least 1) or `lora_alpha` is missing"));
        };
        let ranks = Patterns::new(self.config.rank_pattern.take()).map_err(|e| self.damaged(e))?;
        let alphas = Patterns::new(self.config.alpha_pattern.take()).map_err(|e| self.damaged(e))?;
        let mut keys: BTreeSet<String> = BTreeSet::new();
        for tensor in self.tensors.keys() {
            match tensor.strip_prefix(PREFIX) {
                Some(_) => keys.insert(key_of(tensor).to_owned()),
                None => return Err(self.damaged(format!("tensor `{tensor}` does not begin with `{PREFIX}`"))),
            };
        }
        if let Some(key) = keys.iter().find(|k| !sites.iter().any(|s| s.key == **k)) {
            find(sites, key)?;
        }
        if let Some(module) =
            self.config.modules_to_save.iter().flatten().find(|m| !keys.iter().any(|k| k.ends_with(m.as_str())))
        {
            let tensor = format!("{PREFIX}{module}.weight");
            return Err(AdapterError::MissingTensor { path: self.tensors_path, tensor, site: module.clone() });
        }
        let mut found = Vec::new();
        for site in sites.iter().filter(|s| keys.contains(&s.key)) {
            let shape = &graph.values[site.weight].shape;
            let delta = Delta::ScaleShift { scale: Vec::new(), shift: Vec::new() };
            let mut of_adapter = AdapterSite::new(graph, site, delta);
            let dims = Dims::new(shape, site.layout, site.groups);
            let dims = dims.ok_or_else(|| self.damaged(format!("site `{}` has weight shape {shape:?}", site.key)))?;
            let is_pair = pair_tensors(site.layout).iter().any(|t| self.has(&site.key, t));
            of_adapter.delta = if is_pair && site.kind == SiteKind::Depthwise {
                let what =
                    format!("a low-rank pair on the depthwise layer `{}` (list it in modules_to_save)", site.key);
                return Err(AdapterError::Unsupported { path: self.config_path, what });
            } else if is_pair {
                let rank = ranks.get(&site.key).unwrap_or(rank);
                let alpha = alphas.get(&site.key).unwrap_or(alpha);
                // Rank-stabilised LoRA counts alpha/√r.
                let factor = if self.config.use_rslora == Some(true) { (rank as f32).sqrt() } else { 1.0 };
                let (a, b) = self.take_pair(&site.key, rank, site.layout, &dims)?;
                Delta::LowRank { rank, alpha: alpha * factor, a, b }
            } else {
                self.whole(graph, site, &dims)?
            };
            of_adapter.check()?;
            found.push(of_adapter);
        }
        let keys: Vec<&str> = found.iter().map(|s| s.key.as_str()).collect();
        self.check_empty(&keys)?;
        if found.is_empty() {
            return Err(AdapterError::Damaged { path: self.tensors_path, reason: "it has no tensors".to_owned() });
        }
        Ok(Adapter {
            base_sha256: None,
            stages: Vec::new(),
            base_name: self.config.base_model_name_or_path.unwrap_or_default(),
            rank,
            alpha,
            parent: None,
            examples: 0,
            steps: 0,
            labels: Vec::new(),
            head: None,
            sites: found,
        })
    }

    fn check_settings(&self) -> Result<(), AdapterError> {
        let unsupported = |what: String| Err(AdapterError::Unsupported { path: self.config_path.clone(), what });
        for name in UNSUPPORTED {
            let set = match self.config.rest.get(name) {
                None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => false,
                Some(serde_json::Value::Array(list)) => !list.is_empty(),
                Some(serde_json::Value::Object(map)) => !map.is_empty(),
                Some(_) => true,
            };
            if set {
                return unsupported(format!("`{name}`"));
            }
        }
        match self.config.bias.as_deref() {
            None | Some("none") => {}
            Some(other) => return unsupported(format!("`bias` = `{other}` (expected `none`)")),
        }
        if let Some(init) = self.config.init_lora_weights.as_ref().and_then(|i| i.as_str())
            && BASE_CHANGING.iter().any(|b| init.starts_with(b))
        {
            return unsupported(format!("`init_lora_weights` = `{init}`, which changes the base,"));
        }
        Ok(())
    }

    /// A layer of `modules_to_save`.
    fn whole(&mut self, graph: &Graph, site: &Site, dims: &Dims) -> Result<Delta, AdapterError> {
        let key = site.key.as_str();
        let weight = self.take_weight(key, site.layout, dims)?;
        let mut bias = self.has(key, "bias").then(|| self.take_shape(key, "bias", vec![dims.outputs])).transpose()?;
        let constant = |v: ValueId| graph.values[v].values().unwrap_or_default();
        if site.kind == SiteKind::Depthwise {
            return self.scale_shift(
                key,
                dims,
                &constant(site.weight),
                site.bias.map(constant).as_deref(),
                &weight,
                bias.as_deref(),
            );
        }
        match (&bias, site.bias) {
            (None, Some(_)) => {
                let tensor = format!("{PREFIX}{key}.bias");
                return Err(AdapterError::MissingTensor {
                    path: self.tensors_path.clone(),
                    tensor,
                    site: key.to_owned(),
                });
            }
            (Some(values), None) if values.iter().any(|v| *v != 0.0) => {
                let what = format!("a bias on `{key}`, which has none in the ONNX file,");
                return Err(AdapterError::Unsupported { path: self.tensors_path.clone(), what });
            }
            (Some(_), None) => bias = None,
            _ => {}
        }
        Ok(Delta::Full { weight, bias })
    }

    /// A whole depthwise layer as scale and shift, if it is a multiple of the frozen one a channel.
    fn scale_shift(
        &self,
        key: &str,
        dims: &Dims,
        frozen: &[f32],
        frozen_bias: Option<&[f32]>,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Delta, AdapterError> {
        let per_channel = dims.weight / dims.outputs;
        let (mut scale, mut shift) = (Vec::new(), Vec::new());
        for (c, (w, new)) in frozen.chunks_exact(per_channel).zip(weight.chunks_exact(per_channel)).enumerate() {
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let square = dot(w, w);
            let s = if square > 0.0 { dot(w, new) / square } else { 1.0 };
            let largest = new.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
            let error = w.iter().zip(new).map(|(w, n)| (s * f64::from(*w) - f64::from(*n)).abs()).fold(0.0, f64::max);
            if error > DEPTHWISE_TOLERANCE * largest {
                let what = format!("the depthwise layer `{key}`, which is not the frozen one times a scale a channel,");
                return Err(AdapterError::Unsupported { path: self.tensors_path.clone(), what });
            }
            let at = |bias: Option<&[f32]>| bias.and_then(|b| b.get(c)).copied().unwrap_or(0.0);
            scale.push(s as f32);
            shift.push((f64::from(at(bias)) - s * f64::from(at(frozen_bias))) as f32);
        }
        Ok(Delta::ScaleShift { scale, shift })
    }
}

/// `rank_pattern` or `alpha_pattern`, matched as PEFT's `get_pattern_key` does: first match wins.
struct Patterns<V>(Vec<(regex_lite::Regex, V)>);

impl<V: Copy> Patterns<V> {
    fn new(pairs: Option<Pairs<V>>) -> Result<Self, String> {
        let compile = |(pattern, value): (String, V)| {
            let regex = regex_lite::Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            regex.map(|r| (r, value)).map_err(|e| format!("pattern `{pattern}`: {e}"))
        };
        pairs.map_or_else(Vec::new, |p| p.0).into_iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    fn get(&self, key: &str) -> Option<V> {
        self.0.iter().find(|(regex, _)| regex.is_match(key)).map(|(_, value)| *value)
    }
}
