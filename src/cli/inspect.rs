//! `accentor inspect`: what is in a model, where adapters may sit, what training will cost.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::options::{AdapterArgs, ModelDetails};
use super::report;
use crate::Model;
use crate::graph::{Op, SiteKind, ValueId, choose};

/// Show what is in a model, where adapters may sit and what training will cost
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor inspect models/kws-commands --rank 4")]
pub(super) struct Args {
    /// The model: an .onnx file, or a model.toml (or its folder)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    details: ModelDetails,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Inspection {
    stages: Vec<StageInfo>,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    operators: BTreeMap<String, usize>,
    ending: String,
    logits: String,
    front_end: String,
    labels: Vec<String>,
    sites: Vec<SiteInfo>,
    chosen: usize,
    trainable_parameters: usize,
    no_gradient: Vec<NoGradient>,
    training: Option<Cost>,
    cannot_train: Option<String>,
    multiply_adds: u64,
    inference_arena_bytes: usize,
    arena_bytes: usize,
}

#[derive(Debug, Serialize)]
struct TensorInfo {
    name: String,
    shape: Vec<usize>,
}

/// A file of a chain.
#[derive(Debug, Serialize)]
struct StageInfo {
    name: String,
    takes: Vec<usize>,
    gives: Vec<usize>,
    windows: usize,
}

#[derive(Debug, Serialize)]
struct SiteInfo {
    node: String,
    key: String,
    kind: String,
    weight: Vec<usize>,
    rank: usize,
    parameters: usize,
    chosen: bool,
}

#[derive(Debug, Serialize)]
struct NoGradient {
    node: String,
    op: String,
}

/// What a step costs for one clip.
#[derive(Debug, Serialize)]
struct Cost {
    arena_bytes: usize,
    saved_bytes: usize,
    cached_bytes_per_clip: usize,
    prefix_multiply_adds: u64,
    suffix_multiply_adds: u64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.details.open(&args.model)?;
    let inspection = inspect(&model, args)?;
    if args.json { report::json(&inspection) } else { print(&inspection) }
}

fn inspect(model: &Model, args: &Args) -> anyhow::Result<Inspection> {
    let graph = model.graph();
    let spec = args.adapter.spec();
    let sites = model.sites();
    let chosen = choose(graph, &sites, &spec.sites);
    let tensor =
        |id: &ValueId| TensorInfo { name: graph.values[*id].name.clone(), shape: graph.values[*id].shape.clone() };
    let mut operators = BTreeMap::new();
    let originals = || graph.nodes.iter().enumerate().filter(|(id, _)| !graph.copies.contains_key(id)).map(|(_, n)| n);
    originals().for_each(|n| *operators.entry(n.op_type.clone()).or_insert(0) += 1);
    let (training, cannot_train, trainable) = match model.new_adapter(&spec, 0).and_then(|a| model.trainer(a, 1)) {
        Ok(trainer) => {
            let (plan, prefix) = (trainer.plan(), trainer.prefix());
            let cost = Cost {
                arena_bytes: trainer.arena_bytes(),
                saved_bytes: plan.saved_len() * 4,
                cached_bytes_per_clip: trainer.cached_len() * 4,
                prefix_multiply_adds: prefix.map_or(0, |p| p.multiply_adds()),
                suffix_multiply_adds: plan.multiply_adds(),
            };
            (Some(cost), None, trainer.parameters())
        }
        Err(error) => (None, Some(error.to_string()), 0),
    };
    let session = model.session(None)?;
    let inference_arena_bytes = session.arena_bytes();
    let arena_bytes = training.as_ref().map_or(inference_arena_bytes, |t| t.arena_bytes);
    let multiply_adds = session.multiply_adds();
    let foreign = originals().filter(|n| matches!(n.op, Op::Foreign(_)));
    let site = |s: &crate::graph::Site| SiteInfo {
        node: graph.nodes[s.node].name.clone(),
        key: s.key.clone(),
        kind: match s.kind {
            SiteKind::Conv => "conv",
            SiteKind::ConvTranspose => "conv_transpose",
            SiteKind::Dense => "dense",
            SiteKind::Depthwise => "depthwise",
            SiteKind::Recurrent => "recurrent",
        }
        .into(),
        weight: graph.values[s.weight].shape.clone(),
        rank: if s.kind == SiteKind::Depthwise { 0 } else { s.capped_rank(spec.rank.max(1)) },
        parameters: s.parameters(spec.rank.max(1)),
        chosen: chosen.iter().any(|c| c.key == s.key),
    };
    let shape = |of: &crate::graph::Graph, id: Option<&ValueId>| id.map(|id| of.values[*id].shape.clone());
    let stage = |s: &crate::graph::Stage| StageInfo {
        name: s.name.clone(),
        takes: shape(&s.graph, s.graph.inputs.first()).unwrap_or_default(),
        gives: shape(&s.graph, s.graph.outputs.first()).unwrap_or_default(),
        windows: s.windows,
    };
    Ok(Inspection {
        stages: model.stages().iter().map(stage).collect(),
        inputs: graph.inputs.iter().map(tensor).collect(),
        outputs: graph.outputs.iter().map(tensor).collect(),
        operators,
        ending: format!("{:?}", model.ending().kind),
        logits: graph.values[model.ending().logits].name.clone(),
        front_end: model.front_end().into(),
        labels: model.labels().to_vec(),
        sites: sites.iter().map(site).collect(),
        chosen: chosen.len(),
        trainable_parameters: trainable,
        no_gradient: foreign.map(|n| NoGradient { node: n.name.clone(), op: n.op_type.clone() }).collect(),
        training,
        cannot_train,
        multiply_adds,
        inference_arena_bytes,
        arena_bytes,
    })
}

fn print(i: &Inspection) -> anyhow::Result<()> {
    for (what, tensors) in [("input ", &i.inputs), ("output", &i.outputs)] {
        for t in tensors {
            report::line(&format!("{what} {} {:?}", t.name, t.shape))?;
        }
    }
    for stage in &i.stages {
        let times = if stage.windows == 1 { String::new() } else { format!(", over {} windows", stage.windows) };
        report::line(&format!("stage  {} {:?} -> {:?}{times}", stage.name, stage.takes, stage.gives))?;
    }
    report::line(&format!("front end {}, ending {} (the loss sits on `{}`)", i.front_end, i.ending, i.logits))?;
    let operators: Vec<String> = i.operators.iter().map(|(op, n)| format!("{op} {n}")).collect();
    report::line(&format!("operators: {}", operators.join(", ")))?;
    report::line(&format!(
        "{} multiply-adds a forward pass, arena {:.1} KiB",
        i.multiply_adds,
        i.inference_arena_bytes as f64 / 1024.0
    ))?;
    report::line(&format!("sites ({} of {} chosen):", i.chosen, i.sites.len()))?;
    for s in &i.sites {
        let mark = if s.chosen { '*' } else { ' ' };
        // Several sites of one node are told apart by their keys.
        let name = if i.sites.iter().filter(|o| o.node == s.node).count() > 1 { &s.key } else { &s.node };
        report::line(&format!(
            "  {mark} {:9} {:?} rank {} -> {} values   {name}",
            s.kind, s.weight, s.rank, s.parameters
        ))?;
    }
    for n in &i.no_gradient {
        report::line(&format!("no gradient: {} ({}) runs through tract's operator", n.node, n.op))?;
    }
    if let Some(t) = &i.training {
        report::line(&format!(
            "training: {} values; arena {:.1} KiB a thread ({:.1} KiB saved for backward), {:.1} KiB cached a clip;",
            i.trainable_parameters,
            t.arena_bytes as f64 / 1024.0,
            t.saved_bytes as f64 / 1024.0,
            t.cached_bytes_per_clip as f64 / 1024.0
        ))?;
        report::line(&format!(
            "  frozen prefix {} multiply-adds, once a clip; adapted suffix {}, every epoch",
            t.prefix_multiply_adds, t.suffix_multiply_adds
        ))?;
    }
    i.cannot_train.iter().try_for_each(|why| report::line(&format!("cannot train: {why}")))
}
