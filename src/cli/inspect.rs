//! `accentor inspect`: what is in a model, where adapters may sit, what training will cost.

mod dry_run;
mod layout;
mod picture;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use self::dry_run::{DryRun, dry_run};
use self::picture::thousands;
use super::options::{AdapterArgs, CacheArgs, ModelDetails};
use super::report;
use crate::graph::{Choice, Graph, NodeId, Site, SiteKind, ValueId};
use crate::{AdapterSpec, Model, Recipe};

/// Show what is in a model, where adapters may sit and what training will cost
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  accentor inspect models/kws-commands --rank 4\n  \
    accentor inspect net.onnx --clips 200 --threads 4 --svg net.svg\n\n\
    Memory and times are of a dry run: some steps on random input, on this machine. Memory counts --clips clips with the\n\
    variants that adapt makes of each.")]
pub(super) struct Args {
    /// The model: an .onnx file, or a model.toml (or its folder)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    details: ModelDetails,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Clips to train on, replay among them, for the memory that adapt will take
    #[arg(long, default_value_t = 100)]
    clips: usize,
    /// Versions of each clip [default: as adapt makes them]
    #[arg(long, value_name = "N")]
    variants: Option<usize>,
    /// Clips a step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Draw the network: prefix, suffix, sites, and what has no gradient
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
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
    recommendation: Recommendation,
    no_gradient: Vec<NoGradient>,
    training: Option<Cost>,
    cannot_train: Option<String>,
    multiply_adds: u64,
    inference_arena_bytes: usize,
    arena_bytes: usize,
    /// Constants as they are held: those of a quantised base as integers.
    constant_bytes: usize,
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
    /// The node without a gradient that stands behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<String>,
}

/// What `--sites auto` takes, and why.
#[derive(Debug, Serialize)]
struct Recommendation {
    sites: &'static str,
    taken: usize,
    reason: String,
}

#[derive(Debug, Serialize)]
struct NoGradient {
    node: String,
    op: String,
    why: String,
    /// Layers before it that can take no adapter for that.
    blocks: Vec<String>,
    /// The nodes that read it.
    behind: Vec<String>,
}

/// What training costs.
#[derive(Debug, Serialize)]
struct Cost {
    /// Of one arena; each thread has one, whatever the batch.
    arena_bytes: usize,
    /// The inputs of the adapted layers and the largest live pair, of one clip.
    arena_bound_bytes: usize,
    threads: usize,
    saved_bytes: usize,
    cached_bytes_per_clip: usize,
    /// Where the frozen prefix ends.
    cut: Vec<TensorInfo>,
    prefix_multiply_adds: u64,
    suffix_multiply_adds: u64,
    backward_multiply_adds: u64,
    /// Of a step, by its batch.
    step_multiply_adds: u64,
    /// Of a step on cached features with `--sites last-third`; none where that cannot be trained.
    last_third_step_multiply_adds: Option<u64>,
    batch: usize,
    #[serde(flatten)]
    measured: DryRun,
    clips: usize,
    variants: usize,
    /// What adapt takes where `--lr` names none.
    learning_rate: f32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(svg) = &args.svg {
        crate::store::check_file(svg).context("--svg")?;
    }
    let model = args.details.open(&args.model)?;
    let inspection = inspect(&model, args)?;
    if let Some(svg) = &args.svg {
        crate::store::write_file(svg, picture(&model, args, &inspection).as_bytes())?;
    }
    if args.json { report::json(&inspection) } else { print(&inspection) }
}

fn inspect(model: &Model, args: &Args) -> anyhow::Result<Inspection> {
    let graph = model.graph();
    let spec = args.adapter.spec();
    let sites = model.sites();
    let chosen = model.chosen_sites(&spec.sites);
    let logits = model.ending().logits;
    let blocked = graph.blocked(logits);
    let name = |id: NodeId| graph.nodes[id].name.clone();
    let mut operators = BTreeMap::new();
    let originals = || graph.nodes.iter().enumerate().filter(|(id, _)| !graph.copies.contains_key(id)).map(|(_, n)| n);
    originals().for_each(|n| *operators.entry(n.op_type.clone()).or_insert(0) += 1);
    let variants = args.variants.unwrap_or_else(|| Recipe::of(model.front_end()).versions()).max(1);
    let (training, cannot_train, trainable) = match cost(model, args, &chosen, variants) {
        Ok((cost, trainable)) => (Some(cost), None, trainable),
        Err(error) => (None, Some(error.to_string()), 0),
    };
    let session = model.session(None)?;
    let inference_arena_bytes = session.arena_bytes();
    let site = |s: &Site| SiteInfo {
        node: name(s.node),
        key: s.key.clone(),
        kind: kind(s).into(),
        weight: graph.values[s.weight].shape.clone(),
        rank: if s.kind == SiteKind::Depthwise { 0 } else { s.capped_rank(spec.rank.max(1)) },
        parameters: s.parameters(spec.rank.max(1)),
        chosen: chosen.iter().any(|c| c.key == s.key),
        blocked_by: blocked.iter().find(|(_, before)| before.contains(&s.node)).map(|(id, _)| name(*id)),
    };
    let shape = |of: &crate::graph::Graph, id: Option<&ValueId>| id.map(|id| of.values[*id].shape.clone());
    let stage = |s: &crate::graph::Stage| StageInfo {
        name: s.name.clone(),
        takes: shape(&s.graph, s.graph.inputs.first()).unwrap_or_default(),
        gives: shape(&s.graph, s.graph.outputs.first()).unwrap_or_default(),
        windows: s.windows,
    };
    let no_gradient = blocked.iter().map(|(id, before)| NoGradient {
        node: name(*id),
        op: graph.nodes[*id].op_type.clone(),
        why: format!("{} runs through tract's operator, which has none", graph.nodes[*id].op_type),
        blocks: sites.iter().filter(|s| before.contains(&s.node)).map(|s| name(s.node)).collect(),
        behind: graph.nodes[*id].outputs.iter().flat_map(|o| graph.consumers(*o)).map(name).collect(),
    });
    Ok(Inspection {
        stages: model.stages().iter().map(stage).collect(),
        inputs: graph.inputs.iter().map(|id| tensor(graph, *id)).collect(),
        outputs: graph.outputs.iter().map(|id| tensor(graph, *id)).collect(),
        operators,
        ending: format!("{:?}", model.ending().kind),
        logits: graph.values[logits].name.clone(),
        front_end: model.front_end().into(),
        labels: model.labels().to_vec(),
        sites: sites.iter().map(site).collect(),
        chosen: chosen.len(),
        trainable_parameters: trainable,
        recommendation: recommendation(model, &sites, &blocked),
        no_gradient: no_gradient.collect(),
        arena_bytes: training.as_ref().map_or(inference_arena_bytes, |t| t.arena_bytes),
        training,
        cannot_train,
        multiply_adds: session.multiply_adds(),
        inference_arena_bytes,
        constant_bytes: graph.constant_bytes(),
    })
}

fn tensor(graph: &Graph, id: ValueId) -> TensorInfo {
    TensorInfo { name: graph.values[id].name.clone(), shape: graph.values[id].shape.clone() }
}

fn kind(site: &Site) -> &'static str {
    match site.kind {
        SiteKind::Conv => "conv",
        SiteKind::ConvTranspose => "conv_transpose",
        SiteKind::Dense => "dense",
        SiteKind::Depthwise => "depthwise",
        SiteKind::Recurrent => "recurrent",
        SiteKind::Embedding => "embedding",
    }
}

fn cost(model: &Model, args: &Args, chosen: &[Site], variants: usize) -> anyhow::Result<(Cost, usize)> {
    let adapter = model.new_adapter(&args.adapter.spec(), 0)?;
    let adapted: Vec<NodeId> = adapter
        .sites
        .iter()
        .filter_map(|s| model.sites().into_iter().find(|m| m.key == s.key).map(|m| m.node))
        .chain(chosen.iter().map(|s| s.node))
        .collect();
    let mut trainer = model.trainer(adapter, args.threads)?;
    let batch = args.batch.max(1);
    let (plan, prefix) = (trainer.plan(), trainer.prefix());
    let (suffix, backward) = (plan.multiply_adds(), plan.backward_multiply_adds());
    let cache = args.cache.options();
    let cost = Cost {
        arena_bytes: trainer.arena_bytes(),
        arena_bound_bytes: trainer.arena_bound_bytes(),
        threads: args.threads,
        saved_bytes: plan.saved_len() * 4,
        cached_bytes_per_clip: trainer.cached_bytes(cache.format),
        cut: cut(model.graph(), &adapted, model.ending().logits),
        prefix_multiply_adds: prefix.map_or(0, |p| p.multiply_adds()),
        suffix_multiply_adds: suffix,
        backward_multiply_adds: backward,
        step_multiply_adds: batch as u64 * (suffix + backward),
        last_third_step_multiply_adds: None,
        batch,
        measured: dry_run(model, &mut trainer, batch, args.threads, args.clips * variants, &cache)?,
        clips: args.clips,
        variants,
        learning_rate: model.recipe(&args.adapter.sites).rate,
    };
    let parameters = trainer.parameters();
    // Behind the dry run, whose memory it is not part of.
    drop(trainer);
    let third = AdapterSpec { sites: Choice::LastThird, ..args.adapter.spec() };
    let third = model.new_adapter(&third, 0).and_then(|adapter| model.trainer(adapter, 1)).ok();
    let clip = third.map(|t| t.plan().multiply_adds() + t.plan().backward_multiply_adds());
    Ok((Cost { last_third_step_multiply_adds: clip.map(|clip| batch as u64 * clip), ..cost }, parameters))
}

/// The values that the frozen prefix hands over: not behind an adapted node, read by one that is or is adapted.
fn cut(graph: &Graph, adapted: &[NodeId], logits: ValueId) -> Vec<TensorInfo> {
    let needed = graph.ancestors(logits);
    let mut behind = vec![false; graph.values.len()];
    let mut found: Vec<ValueId> = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate().filter(|(id, _)| needed[*id]) {
        if adapted.contains(&id) || node.inputs.iter().any(|i| behind[*i]) {
            node.outputs.iter().for_each(|o| behind[*o] = true);
            let read = node.inputs.iter().filter(|i| !behind[**i] && !graph.is_constant(**i));
            read.for_each(|i| {
                if !found.contains(i) {
                    found.push(*i)
                }
            });
        }
    }
    found.into_iter().map(|id| tensor(graph, id)).collect()
}

fn recommendation(model: &Model, sites: &[Site], blocked: &[(NodeId, Vec<NodeId>)]) -> Recommendation {
    let taken = model.chosen_sites(&Choice::Auto).len();
    let out = sites.iter().filter(|s| blocked.iter().any(|(_, before)| before.contains(&s.node))).count();
    let depthwise = sites.iter().filter(|s| s.kind == SiteKind::Depthwise).count();
    let mut reason = String::from("every convolution, dense and recurrent layer that a gradient reaches");
    if out > 0 {
        reason += &format!("; {out} lie before an operator without a gradient");
    }
    if depthwise > 0 {
        reason += &format!(
            "; {depthwise} depthwise layers are left out, a scale and a shift of which gains little (--sites all)"
        );
    }
    Recommendation { sites: "auto", taken, reason }
}

fn picture(model: &Model, args: &Args, i: &Inspection) -> String {
    let chosen = model.chosen_sites(&args.adapter.sites);
    let no_gradient: Vec<NodeId> = model.graph().blocked(model.ending().logits).iter().map(|(id, _)| *id).collect();
    let file = model.path().file_name().and_then(|n| n.to_str()).unwrap_or("model");
    let name = model.manifest().and_then(|m| m.name.clone()).unwrap_or_else(|| file.to_owned());
    let summary = format!(
        "{} multiply-adds a pass; {} of {} layers adapted, {} values at rank {}",
        thousands(i.multiply_adds as usize),
        i.chosen,
        i.sites.len(),
        thousands(i.trainable_parameters),
        args.adapter.rank
    );
    picture::svg(&picture::Subject {
        graph: model.graph(),
        logits: model.ending().logits,
        name,
        chosen: &chosen,
        rank: args.adapter.rank.max(1),
        no_gradient: &no_gradient,
        summary,
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
        "{} multiply-adds a forward pass, constants {:.1} KiB, arena {:.1} KiB",
        thousands(i.multiply_adds as usize),
        i.constant_bytes as f64 / 1024.0,
        i.inference_arena_bytes as f64 / 1024.0
    ))?;
    report::line(&format!("sites ({} of {} chosen):", i.chosen, i.sites.len()))?;
    for s in &i.sites {
        let mark = match (s.chosen, &s.blocked_by) {
            (true, _) => '*',
            (false, Some(_)) => '-',
            _ => ' ',
        };
        report::line(&format!(
            "  {mark} {:9} {:?} rank {} -> {} values   {}",
            s.kind, s.weight, s.rank, s.parameters, s.node
        ))?;
    }
    for n in &i.no_gradient {
        let blocks = match n.blocks.as_slice() {
            [] => String::from("blocks no site"),
            [first @ .., last] if first.len() < 3 => {
                format!("blocks {}", [first, std::slice::from_ref(last)].concat().join(", "))
            }
            [first, .., last] => format!("blocks {} sites, {first} to {last}", n.blocks.len()),
            [one] => format!("blocks {one}"),
        };
        report::line(&format!("no gradient: {} ({}; behind it {}): {blocks}", n.node, n.why, n.behind.join(", ")))?;
    }
    let r = &i.recommendation;
    report::line(&format!("recommended: --sites {}, {} sites: {}", r.sites, r.taken, r.reason))?;
    if let Some(t) = &i.training {
        let cut: Vec<String> = t.cut.iter().map(|c| format!("`{}` {:?}", c.name, c.shape)).collect();
        report::line(&format!(
            "training: {} values; arena {:.1} KiB a thread ({:.1} KiB for the adapted layers' inputs and the largest pair \
             beside them; {:.1} KiB saved for backward)",
            thousands(i.trainable_parameters),
            t.arena_bytes as f64 / 1024.0,
            t.arena_bound_bytes as f64 / 1024.0,
            t.saved_bytes as f64 / 1024.0,
        ))?;
        let ends = if t.prefix_multiply_adds == 0 { "nothing to compute" } else { "run once a clip" };
        report::line(&format!(
            "  frozen prefix up to {}: {ends}, {} multiply-adds, {:.1} KiB cached",
            cut.join(", "),
            thousands(t.prefix_multiply_adds as usize),
            t.cached_bytes_per_clip as f64 / 1024.0
        ))?;
        report::line(&format!(
            "  a step of {} clips: {} multiply-adds ({} forward and {} back a clip), {:.2} ms here on {} thread(s)",
            t.batch,
            thousands(t.step_multiply_adds as usize),
            thousands(t.suffix_multiply_adds as usize),
            thousands(t.backward_multiply_adds as usize),
            t.measured.step_ms,
            t.threads
        ))?;
        if let Some(third) = t.last_third_step_multiply_adds.filter(|third| *third < t.step_multiply_adds) {
            report::line(&format!(
                "  on cached features with --sites last-third: {} multiply-adds, {:.1} times less",
                thousands(third as usize),
                t.step_multiply_adds as f64 / third as f64
            ))?;
        }
        report::line(&format!(
            "  adapt on {} clips in {} version(s): about {:.1} MiB of memory, rate {:e}",
            t.clips,
            t.variants,
            t.measured.peak_rss_bytes as f64 / 1048576.0,
            t.learning_rate
        ))?;
    }
    i.cannot_train.iter().try_for_each(|why| report::line(&format!("cannot train: {why}")))
}
