//! What PyTorch recorded, read back, and the deterministic tensors it started from: tests/reference/README.md.
// What a test reads is the project's own: a failure there is a failure of the test.
#![allow(clippy::unwrap_used)]
// Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use accentor::graph::SiteKind;
use accentor::lora::{AdapterSite, Delta};
use accentor::train::{Clip, OptimiserKind};
use accentor::{Adapter, AdapterSpec, Cached, Examples, Model, ModelOptions, Trainer};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// A recording: a network, a batch, a start, and what PyTorch computes from them in f64.
pub(crate) struct Recording {
    /// File name without `.safetensors`.
    pub(crate) name: String,
    pub(crate) meta: Meta,
    tensors: HashMap<String, Vec<f32>>,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Meta {
    pub(crate) net: String,
    pub(crate) shared: bool,
    pub(crate) batch: usize,
    seed: u64,
    pub(crate) head: Option<String>,
    rank: usize,
    alpha: f32,
    pub(crate) input: Generated,
    pub(crate) output: String,
    pub(crate) loss: String,
    sgd: Sgd,
    adamw: AdamW,
    pub(crate) sites: Vec<RecordedSite>,
}

/// A tensor of the generator, or one of the file.
#[derive(Clone, Deserialize)]
pub(crate) struct Generated {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    scale: Option<f32>,
    offset: Option<f32>,
    /// Rounded down: an input of whole numbers.
    #[serde(default)]
    whole: bool,
}

#[derive(Clone, Deserialize)]
struct Sgd {
    lr: f32,
    momentum: f32,
    #[serde(default)]
    weight_decay: f32,
}

#[derive(Clone, Deserialize)]
struct AdamW {
    lr: f32,
    betas: [f32; 2],
    eps: f32,
    weight_decay: f32,
}

#[derive(Clone, Deserialize)]
pub(crate) struct RecordedSite {
    pub(crate) site: String,
    initializer: String,
    kind: String,
    rank: usize,
    alpha: f32,
    by: String,
    pub(crate) params: Vec<Generated>,
}

/// The two optimisers that were recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recorded {
    Sgd,
    AdamW,
}

/// `tests/data`.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The folder of the models of CATALOGUE.md, where there is one: `$ACCENTOR_SHARED/models`, else `../shared/models`.
pub(crate) fn shared_models() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("ACCENTOR_SHARED").map_or_else(beside, PathBuf::from).join("models");
    folder.is_dir().then_some(folder)
}

/// Names of all recordings, sorted.
pub(crate) fn names() -> Vec<String> {
    let files = fs::read_dir(data().join("reference")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter_map(|f| f.strip_suffix(".safetensors").map(str::to_owned)).collect();
    names.sort();
    names
}

impl Recording {
    pub(crate) fn read(name: &str) -> Self {
        let path = data().join(format!("reference/{name}.safetensors"));
        let bytes = fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let meta = serde_json::from_str(&header.metadata().as_ref().unwrap()["meta"]).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = tensors.iter().filter(|(_, t)| t.dtype() == Dtype::F32).map(|(name, t)| {
            let values = t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (name.to_owned(), values)
        });
        let labels = tensors.tensor("labels").unwrap();
        let labels = labels.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect();
        let tensors = floats.chain([("labels".to_owned(), labels)]).collect();
        Self { name: name.to_owned(), meta, tensors }
    }

    /// The ONNX file; none if it is one of the shared models and those are not here.
    pub(crate) fn onnx(&self) -> Option<PathBuf> {
        let net = &self.meta.net;
        if self.meta.shared {
            Some(shared_models()?.join(net))
        } else if net.starts_with("exports/") {
            Some(data().join(net))
        } else {
            Some(data().join("reference/nets").join(net))
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> &[f32] {
        let tensor = self.tensors.get(name);
        tensor.unwrap_or_else(|| panic!("{} has no tensor `{name}`", self.name))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Opens `onnx` on the recorded output, with the shape of one recorded sample.
    pub(crate) fn open(&self, onnx: &Path) -> Model {
        self.open_as(onnx, self.meta.input.shape.clone(), &self.meta.output)
    }

    /// [`Recording::open`] where the file's input has another shape or its output another name.
    pub(crate) fn open_as(&self, onnx: &Path, mut shape: Vec<usize>, output: &str) -> Model {
        shape[0] = 1;
        let output = Some(output.to_owned());
        let options = ModelOptions { output, input_shape: Some(shape), ..ModelOptions::default() };
        Model::open_with(onnx, &options).unwrap_or_else(|e| panic!("{}: {e}", onnx.display()))
    }

    /// An adapter tensor as the generator gives it for this recording.
    fn generate(&self, tensor: &Generated) -> Vec<f32> {
        let (scale, offset) = (tensor.scale.unwrap(), tensor.offset.unwrap());
        let mut values = generate(&tensor.name, self.meta.seed, tensor.shape.iter().product(), scale, offset);
        if tensor.whole {
            values.iter_mut().for_each(|v| *v = v.floor());
        }
        values
    }

    /// The recorded input: `x` of the generator, whatever the file calls it.
    pub(crate) fn inputs(&self) -> Vec<f32> {
        self.generate(&Generated { name: String::from("x"), ..self.meta.input.clone() })
    }

    /// The recorded input with its labels.
    pub(crate) fn examples(&self) -> Examples {
        // Drawn under this name, whatever the file calls its input.
        let x = self.generate(&Generated { name: "x".into(), ..self.meta.input.clone() });
        let len = x.len() / self.meta.batch;
        let mut examples = Examples::new(len, 1);
        for (x, label) in x.chunks_exact(len).zip(self.labels()) {
            examples.push(x, label).unwrap();
        }
        examples
    }

    /// The recorded labels, checked against the generator.
    pub(crate) fn labels(&self) -> Vec<usize> {
        let recorded: Vec<usize> = self.tensor("labels").iter().map(|l| *l as usize).collect();
        let scores = self.tensor("logits").len() / self.meta.batch;
        let expected: Vec<usize> = splitmix64("labels", self.meta.seed)
            .take(self.meta.batch)
            .map(|z| (z % scores.max(2) as u64) as usize)
            .collect();
        assert_eq!(recorded, expected, "{}: labels", self.name);
        recorded
    }

    /// The recorded start on `model`, whose sites must have the recorded keys and kinds.
    pub(crate) fn start(&self, model: &Model) -> Adapter {
        let sites = model.sites();
        let found: Vec<_> = sites.iter().map(|s| (s.key.as_str(), kind(s.kind))).collect();
        let recorded: Vec<_> = self.meta.sites.iter().map(|s| (s.site.as_str(), family(&s.kind))).collect();
        assert_eq!(found, recorded, "{}: sites", self.name);
        self.adapter(model, |key| self.meta.sites.iter().find(|s| s.site == key))
    }

    /// An adapter on every site of `model` for which `recorded` names the recorded site to start from.
    pub(crate) fn adapter<'a>(&'a self, model: &Model, recorded: impl Fn(&str) -> Option<&'a RecordedSite>) -> Adapter {
        let spec = AdapterSpec { rank: self.meta.rank, alpha: self.meta.alpha, ..AdapterSpec::default() };
        let mut adapter = model.new_adapter(&spec, 0).unwrap();
        let sites = model.sites();
        let with = sites.iter().filter_map(|site| Some((site, recorded(&site.key)?)));
        adapter.sites = with.map(|(site, r)| AdapterSite::new(model.graph(), site, self.delta(model, r))).collect();
        adapter
    }

    fn delta(&self, model: &Model, site: &RecordedSite) -> Delta {
        let value = |i: usize| self.generate(&site.params[i]);
        let of_file = |i: usize| {
            let name = site.params[i].name.rsplit_once('.').unwrap().1;
            let graph = model.graph();
            let bound = model.sites().into_iter().find(|s| s.key == site.site).unwrap();
            let value = if name == "bias" { bound.bias.unwrap() } else { bound.weight };
            graph.values[value].values().as_deref().unwrap().to_vec()
        };
        match site.by.as_str() {
            "channel" => Delta::ScaleShift { scale: value(0), shift: value(1) },
            "head" => Delta::Full { weight: of_file(0), bias: (site.params.len() > 1).then(|| of_file(1)) },
            _ => Delta::LowRank { rank: site.rank, alpha: site.alpha, a: value(0), b: value(1) },
        }
    }

    /// The recorded gradients of a site, in the order of [`Delta::tensors`], with their names.
    pub(crate) fn gradients<'a>(&'a self, site: &'a RecordedSite) -> impl Iterator<Item = (String, &'a [f32])> {
        site.params.iter().map(|p| {
            let name = format!("grad.{}", p.name);
            let values = self.tensor(&name);
            (name, values)
        })
    }

    /// The recorded optimiser, its rate and the ten losses that it gave.
    pub(crate) fn training(&self, which: Recorded) -> (OptimiserKind, f32, &[f32]) {
        let Meta { sgd, adamw, .. } = &self.meta;
        match which {
            Recorded::Sgd => {
                let kind = OptimiserKind::Sgd { momentum: sgd.momentum, weight_decay: sgd.weight_decay };
                (kind, sgd.lr, self.tensor("sgd.losses"))
            }
            Recorded::AdamW => {
                let [beta1, beta2] = adamw.betas;
                let kind = OptimiserKind::AdamW { beta1, beta2, epsilon: adamw.eps, weight_decay: adamw.weight_decay };
                (kind, adamw.lr, self.tensor("adamw.losses"))
            }
        }
    }
}

/// All examples as one batch.
pub(crate) fn batch(cached: &Cached) -> Vec<Clip<'_>> {
    (0..cached.len()).map(|i| (cached.input(i, 0), cached.target(i))).collect()
}

/// The losses before each of `steps` steps on one batch, at a constant rate.
pub(crate) fn losses(trainer: &mut Trainer, clips: &[Clip], kind: OptimiserKind, rate: f32, steps: usize) -> Vec<f32> {
    trainer.set_optimiser(kind);
    (0..steps).map(|_| trainer.step(clips, rate).unwrap()).collect()
}

/// ‖found − expected‖₂ / ‖expected‖₂.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<f64> = found.iter().zip(expected).map(|(f, e)| *f as f64 - *e as f64).collect();
    norm(&difference) / norm(&expected.iter().map(|e| *e as f64).collect::<Vec<_>>())
}

/// Largest |found − expected| over the largest |expected|.
pub(crate) fn largest_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0, |a: f64, v| if v.is_finite() { a.max(v.abs()) } else { f64::INFINITY })
    };
    let difference = largest(&mut found.iter().zip(expected).map(|(f, e)| *f as f64 - *e as f64));
    difference / largest(&mut expected.iter().map(|e| *e as f64))
}

/// The largest of each loss's own relative error.
pub(crate) fn loss_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| largest_error(&[*f], &[*e])).fold(0.0, f64::max)
}

/// ‖x‖₂.
pub(crate) fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn kind(kind: SiteKind) -> &'static str {
    match kind {
        SiteKind::Conv => "conv",
        SiteKind::Depthwise => "depthwise",
        SiteKind::ConvTranspose => "conv_transpose",
        SiteKind::Dense => "dense",
        SiteKind::Recurrent => "recurrent",
        SiteKind::Embedding => "embedding",
        _ => "unknown",
    }
}

fn family(recorded: &str) -> &str {
    match recorded {
        "gemm" | "matmul" | "matmul_left" => "dense",
        other => other,
    }
}

/// The generator of tests/reference/README.md.
pub(crate) fn generate(name: &str, seed: u64, count: usize, scale: f32, offset: f32) -> Vec<f32> {
    let unit = |z: u64| (z >> 40) as f32 / 8_388_608.0 - 1.0;
    splitmix64(name, seed).take(count).map(|z| unit(z) * scale + offset).collect()
}

fn splitmix64(name: &str, seed: u64) -> impl Iterator<Item = u64> {
    let fnv1a64 = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a64) ^ seed;
    (1u64..).map(move |i| {
        let s = state.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let s = (s ^ (s >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let s = (s ^ (s >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        s ^ (s >> 31)
    })
}

/// Whether two lists of keys have the same members.
pub(crate) fn same_members<'a>(a: impl Iterator<Item = &'a str>, b: impl Iterator<Item = &'a str>) -> bool {
    a.collect::<BTreeSet<_>>() == b.collect::<BTreeSet<_>>()
}
