//! An adapter in memory: a table of sites with their tensors in PEFT's shapes and the order of the ONNX file.

use ndarray::{ArrayView1, ArrayViewD};
use serde::{Deserialize, Serialize};

use super::Adaptation;
use crate::graph::{Choice, Graph, Head, Layout, Site, SiteKind, ValueId};

/// What to train.
#[derive(Clone, Debug)]
pub struct AdapterSpec {
    /// Rank of each low-rank pair; capped at a site's min(in, out).
    pub rank: usize,
    /// Scale numerator: the pair counts alpha/rank.
    pub alpha: f32,
    /// Which sites.
    pub sites: Choice,
    /// Whether the last dense layer is trained whole, in place of a low-rank pair.
    pub head: bool,
}

impl Default for AdapterSpec {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, sites: Choice::Auto, head: false }
    }
}

/// A trained change to a frozen base.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// sha256 of the base's ONNX file, in hex, where it is known; of a chain, that of its stages' sha256 in hex.
    pub base_sha256: Option<String>,
    /// The files of a chain, in its order.
    pub stages: Vec<StageBase>,
    /// File name of the base, for people.
    pub base_name: String,
    /// Rank asked for; a site may have less.
    pub rank: usize,
    /// Alpha asked for.
    pub alpha: f32,
    /// What it was trained on from: the sha256 of the parent adapter's tensors.
    pub parent: Option<String>,
    /// Clips that it was trained on.
    pub examples: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Labels in the order of the scores, if known.
    pub labels: Vec<String>,
    /// Where the labels are not those of the base: how it got the others.
    pub head: Option<Head>,
    /// The sites.
    pub sites: Vec<AdapterSite>,
}

/// An ONNX file of a chain, and which sites are in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageBase {
    /// File name.
    pub onnx: String,
    /// Its sha256 in hex.
    pub sha256: String,
    /// Keys of the adapter's sites in it.
    pub sites: Vec<String>,
}

/// One adapted layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSite {
    /// Module path or node name; the key in adapter files.
    pub key: String,
    /// ONNX node.
    pub node: String,
    /// ONNX initializer of the weight.
    pub initializer: String,
    /// ONNX initializer of the bias, if there is one.
    pub bias: Option<String>,
    /// How the file lays the weight out.
    pub layout: Layout,
    /// Shape of the weight in the file.
    pub weight_shape: Vec<usize>,
    /// Groups of a convolution; 1 for a dense layer.
    pub groups: usize,
    /// Factor that the node applies to its weight product (alpha of a Gemm).
    pub weight_scale: f32,
    /// The tensors.
    pub delta: Delta,
}

/// The tensors of a site.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// `W + (alpha / rank) · B·A`.
    LowRank {
        /// Rank over all groups.
        rank: usize,
        /// Scale numerator of this site.
        alpha: f32,
        /// A `[rank, in/groups(, kh, kw)]`.
        a: Vec<f32>,
        /// B `[out, rank/groups(, 1, 1)]`.
        b: Vec<f32>,
    },
    /// A scale and a shift a channel.
    ScaleShift {
        /// `[channels]`, 1 at the start.
        scale: Vec<f32>,
        /// `[channels]`, 0 at the start.
        shift: Vec<f32>,
    },
    /// The layer's own tensors, in the order of the file.
    Full {
        /// The weight.
        weight: Vec<f32>,
        /// The bias `[out]`, where the file has one.
        bias: Option<Vec<f32>>,
    },
}

impl Delta {
    /// Trainable values.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|t| t.len()).sum()
    }

    /// The tensors in their fixed order.
    pub fn tensors(&self) -> Vec<&[f32]> {
        match self {
            Delta::LowRank { a, b, .. } => vec![a, b],
            Delta::ScaleShift { scale, shift } => vec![scale, shift],
            Delta::Full { weight, bias: Some(bias) } => vec![weight, bias],
            Delta::Full { weight, bias: None } => vec![weight],
        }
    }

    /// How the plan adapts the site.
    pub fn adaptation(&self) -> Adaptation {
        match self {
            Delta::LowRank { rank, alpha, .. } => Adaptation::LowRank { rank: *rank, scale: alpha / *rank as f32 },
            Delta::ScaleShift { .. } => Adaptation::ScaleShift,
            Delta::Full { .. } => Adaptation::Full,
        }
    }

    /// Copies the tensors to the flat parameters of a [`super::SiteStep`].
    pub fn to_parameters(&self, site: &Site, params: &mut [f32]) {
        match self {
            Delta::LowRank { a, b, .. } => {
                let (pa, pb) = params.split_at_mut(a.len());
                site.a_to_kernel(a, pa);
                site.b_to_kernel(b, pb);
            }
            Delta::ScaleShift { scale, shift } => {
                let (ps, ph) = params.split_at_mut(scale.len());
                ps.copy_from_slice(scale);
                ph.copy_from_slice(shift);
            }
            Delta::Full { weight, bias } => {
                let (pw, pb) = params.split_at_mut(weight.len());
                site.weight_to_kernel(weight, pw);
                if let Some(bias) = bias {
                    pb.copy_from_slice(bias);
                }
            }
        }
    }

    /// The inverse of [`Delta::to_parameters`]; also serves for gradients.
    pub fn from_parameters(&mut self, site: &Site, params: &[f32]) {
        match self {
            Delta::LowRank { a, b, .. } => {
                let (pa, pb) = params.split_at(a.len());
                site.a_to_file(pa, a);
                site.b_to_file(pb, b);
            }
            Delta::ScaleShift { scale, shift } => {
                let (ps, ph) = params.split_at(scale.len());
                scale.copy_from_slice(ps);
                shift.copy_from_slice(ph);
            }
            Delta::Full { weight, bias } => {
                let (pw, pb) = params.split_at(weight.len());
                site.weight_to_file(pw, weight);
                if let Some(bias) = bias {
                    bias.copy_from_slice(pb);
                }
            }
        }
    }
}

impl AdapterSite {
    /// The weight and bias that the file would have with the adapter merged; the bias only where the adapter changes
    /// it. `weight` and `bias` are the frozen ones.
    pub fn merged(&self, site: &Site, weight: &[f32], bias: Option<&[f32]>) -> (Vec<f32>, Option<Vec<f32>>) {
        match &self.delta {
            Delta::Full { weight, bias } => (weight.clone(), bias.clone()),
            Delta::ScaleShift { scale, shift } => {
                let per_output = weight.len() / scale.len();
                let merged = weight.iter().enumerate().map(|(i, w)| w * scale[i / per_output]).collect();
                let bias = (0..scale.len()).map(|c| bias.map_or(0.0, |b| b[c]) * scale[c] + shift[c]).collect();
                (merged, Some(bias))
            }
            Delta::LowRank { rank, alpha, a, b } => {
                let (patch, outputs) = (site.patch(), site.outputs / site.groups);
                let per_group = rank / site.groups;
                let mut kernel_a = vec![0.0; a.len()];
                let mut kernel_b = vec![0.0; b.len()];
                site.a_to_kernel(a, &mut kernel_a);
                site.b_to_kernel(b, &mut kernel_b);
                let mut kernel = vec![0.0; site.groups * patch * outputs];
                site.weight_to_kernel(weight, &mut kernel);
                let scale = *alpha as f64 / *rank as f64;
                for group in 0..site.groups {
                    for k in 0..patch {
                        for o in 0..outputs {
                            let at = (group * patch + k) * outputs + o;
                            let product: f64 = (0..per_group)
                                .map(|j| {
                                    let row = group * per_group + j;
                                    kernel_a[row * patch + k] as f64 * kernel_b[row * outputs + o] as f64
                                })
                                .sum();
                            kernel[at] = (kernel[at] as f64 + scale * product) as f32;
                        }
                    }
                }
                // Other parts of a stacked weight stay.
                let mut merged = weight.to_vec();
                site.weight_to_file(&kernel, &mut merged);
                (merged, None)
            }
        }
    }
}

impl AdapterSite {
    /// The tensors with their names: `lora_A` `[rank, in/groups(, kh, kw)]` and `lora_B` `[out, rank/groups(, 1, 1)]`, of an
    /// embedding `lora_embedding_A` `[rank, rows]` and `lora_embedding_B` `[width, rank]`, `accentor_scale` and `accentor_shift` `[channels]`, or `weight` in the file's shape and `bias` `[out]`. Values that
    /// do not fit the site's shape come in one dimension.
    pub fn arrays(&self) -> Vec<(&'static str, ArrayViewD<'_, f32>)> {
        let view = |shape: &[usize], values| -> ArrayViewD<'_, f32> {
            ArrayViewD::from_shape(shape, values).unwrap_or_else(|_| ArrayView1::from(values).into_dyn())
        };
        match &self.delta {
            Delta::LowRank { rank, a, b, .. } => {
                let (outputs, inputs) = match (self.layout, self.weight_shape.as_slice()) {
                    (Layout::InOut | Layout::Rows, [inputs, outputs]) => (*outputs, vec![*inputs]),
                    (_, [outputs, inputs @ ..]) => (*outputs, inputs.to_vec()),
                    _ => (0, Vec::new()),
                };
                let of_a: Vec<usize> = [*rank].into_iter().chain(inputs.iter().copied()).collect();
                let mut of_b = vec![outputs, rank / self.groups.max(1)];
                of_b.extend(inputs.iter().skip(1).map(|_| 1));
                let [name_a, name_b] = self.layout.pair_names();
                vec![(name_a, view(&of_a, a)), (name_b, view(&of_b, b))]
            }
            Delta::ScaleShift { scale, shift } => {
                vec![("accentor_scale", view(&[scale.len()], scale)), ("accentor_shift", view(&[shift.len()], shift))]
            }
            Delta::Full { weight, bias } => {
                let weight = ("weight", view(&self.weight_shape, weight));
                [Some(weight), bias.as_ref().map(|b| ("bias", view(&[b.len()], b)))].into_iter().flatten().collect()
            }
        }
    }
}

impl Adapter {
    /// A fresh adapter: A uniform in ±1/√fan_in (Kaiming-uniform with a = √5, as PEFT), B zero; of an embedding A zero and
    /// B normal, as PEFT; scale one, shift zero; a trained head starts from the file. With these the model computes what the file computes.
    pub fn new(graph: &Graph, output: ValueId, sites: &[Site], spec: &AdapterSpec, rng: &mut fastrand::Rng) -> Self {
        let head = if spec.head { graph.head_site(output) } else { None };
        let mut chosen: Vec<&Site> = sites.iter().collect();
        if let Some(head) = &head
            && !chosen.iter().any(|s| s.node == head.node)
        {
            chosen.push(head);
        }
        let sites = chosen
            .into_iter()
            .map(|site| {
                let delta = if head.as_ref().is_some_and(|h| h.node == site.node) {
                    Delta::Full { weight: constant(graph, site.weight), bias: site.bias.map(|b| constant(graph, b)) }
                } else if site.kind == SiteKind::Depthwise {
                    Delta::ScaleShift { scale: vec![1.0; site.outputs], shift: vec![0.0; site.outputs] }
                } else {
                    let rank = site.capped_rank(spec.rank);
                    let mut a = vec![0.0; rank * site.patch()];
                    let mut b = vec![0.0; rank / site.groups * site.outputs];
                    if site.kind == SiteKind::Embedding {
                        b.iter_mut().for_each(|b| *b = normal(rng));
                    } else {
                        let bound = 1.0 / (site.patch() as f32).sqrt();
                        a.iter_mut().for_each(|a| *a = (rng.f32() * 2.0 - 1.0) * bound);
                    }
                    Delta::LowRank { rank, alpha: spec.alpha * rank as f32 / spec.rank as f32, a, b }
                };
                AdapterSite::new(graph, site, delta)
            })
            .collect();
        Self {
            base_sha256: None,
            stages: Vec::new(),
            base_name: String::new(),
            rank: spec.rank,
            alpha: spec.alpha,
            parent: None,
            examples: 0,
            steps: 0,
            labels: Vec::new(),
            head: None,
            sites,
        }
    }

    /// Trainable values.
    pub fn parameters(&self) -> usize {
        self.sites.iter().map(|s| s.delta.parameters()).sum()
    }
}

impl AdapterSite {
    /// Binds `delta` to `site`.
    pub fn new(graph: &Graph, site: &Site, delta: Delta) -> Self {
        let weight_scale = match graph.nodes[site.node].op {
            crate::graph::Op::Gemm { alpha, .. } => alpha,
            _ => 1.0,
        };
        Self {
            key: site.key.clone(),
            node: graph.nodes[site.node].name.clone(),
            initializer: graph.values[site.weight].name.clone(),
            bias: site.bias.map(|b| graph.values[b].name.clone()),
            layout: site.layout,
            weight_shape: graph.values[site.weight].shape.clone(),
            groups: site.groups,
            weight_scale,
            delta,
        }
    }
}

/// Standard normal, by Box and Muller (1958).
fn normal(rng: &mut fastrand::Rng) -> f32 {
    let (radius, angle) = ((-2.0 * (1.0 - rng.f64()).ln()).sqrt(), std::f64::consts::TAU * rng.f64());
    (radius * angle.cos()) as f32
}

fn constant(graph: &Graph, value: ValueId) -> Vec<f32> {
    graph.values[value].values().as_deref().unwrap_or_default().to_vec()
}
