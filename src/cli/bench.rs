//! `accentor bench`: time of inference and of a training step, memory of training.

use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::options::{AdapterArgs, ModelArgs};
use super::{memory, report};
use crate::train::Clip;
use crate::{Adapter, Model, Session};

/// Time inference and a training step on random input, and measure memory
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  accentor bench --model models/kws-commands --batch 16 --threads 1\n  \
    accentor bench --model models/kws-commands --sites last-third\n\n\
    A step runs on cached features: what lies before the lowest adapted layer is not part of it.\n\
    Times are minimum and median in ms over --steps runs of a whole batch; memory is the peak of a process that only trains.")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Clips a step and a timed inference
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Timed runs of each
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Only train, and print this process's peak memory
    #[arg(long, hide = true)]
    only_train: bool,
    /// Only infer, with an adapter merged
    #[arg(long, hide = true)]
    only_infer: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Timing {
    min: f64,
    median: f64,
}

#[derive(Debug, Serialize)]
struct Outcome {
    batch: usize,
    threads: usize,
    infer_ms: Timing,
    infer_merged_ms: Timing,
    infer_unmerged_ms: Timing,
    step_ms: Timing,
    trainable_parameters: usize,
    arena_bytes: usize,
    peak_rss_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    peak_rss_bytes: u64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    let adapter = model.new_adapter(&args.adapter.spec(), 0)?;
    let len = model.graph().values[model.input()].len();
    let batch = args.batch.max(1);
    let mut rng = fastrand::Rng::with_seed(0);
    if args.only_train {
        train(&model, adapter, args, 3.min(args.steps.max(1)))?;
        return report::json(&Memory { peak_rss_bytes: memory::peak_rss_bytes() });
    }
    let inputs: Vec<f32> = (0..len * batch).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let infer = |session: Session| -> anyhow::Result<Timing> {
        timed(args.steps, || {
            inputs.chunks_exact(len).try_for_each(|input| session.logits(input).map(|_| ())).map_err(Into::into)
        })
    };
    if args.only_infer {
        infer(model.session(Some(&adapter))?)?;
        return report::json(&Memory { peak_rss_bytes: memory::peak_rss_bytes() });
    }
    let infer_ms = infer(model.session(None)?)?;
    let infer_merged_ms = infer(model.session(Some(&adapter))?)?;
    let infer_unmerged_ms = infer(model.session_of(&model.base()?, Some(&adapter))?)?;
    let (step_ms, arena_bytes, trainable_parameters) = train(&model, adapter, args, args.steps)?;
    let outcome = Outcome {
        batch,
        threads: args.threads,
        infer_ms,
        infer_merged_ms,
        infer_unmerged_ms,
        step_ms,
        trainable_parameters,
        arena_bytes,
        peak_rss_bytes: child_peak()?,
    };
    if args.json {
        return report::json(&outcome);
    }
    report::line(&format!(
        "batch {batch}, {} thread(s), {} runs, random input; ms: minimum (median)",
        args.threads, args.steps
    ))?;
    let show = |t: &Timing| format!("{:.3} ({:.3})", t.min, t.median);
    report::line(&format!("inference              {}", show(&outcome.infer_ms)))?;
    report::line(&format!("  adapter merged       {}", show(&outcome.infer_merged_ms)))?;
    report::line(&format!("  adapter beside       {}", show(&outcome.infer_unmerged_ms)))?;
    report::line(&format!("training step          {}", show(&outcome.step_ms)))?;
    report::line(&format!(
        "{trainable_parameters} trained values; arena {:.2} MiB a thread, peak memory of training {:.1} MiB",
        arena_bytes as f64 / 1048576.0,
        outcome.peak_rss_bytes as f64 / 1048576.0
    ))
}

fn train(model: &Model, adapter: Adapter, args: &Args, steps: usize) -> anyhow::Result<(Timing, usize, usize)> {
    let mut trainer = model.trainer(adapter, args.threads)?;
    let (len, classes) = (trainer.cached_len(), trainer.classes().max(2));
    let mut rng = fastrand::Rng::with_seed(1);
    let batch = args.batch.max(1);
    let inputs: Vec<f32> = (0..len * batch).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let clips: Vec<Clip> = inputs.chunks_exact(len).enumerate().map(|(i, x)| (x.into(), i % classes)).collect();
    let timing = timed(steps, || trainer.step(&clips, 1e-4).map(|_| ()).map_err(Into::into))?;
    Ok((timing, trainer.arena_bytes(), trainer.parameters()))
}

/// Minimum and median of `runs` calls, after two that do not count.
fn timed(runs: usize, mut f: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Timing> {
    f()?;
    f()?;
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        f()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(Timing { min: times[0], median: times[times.len() / 2] })
}

/// Peak memory of the same training in a process of its own.
fn child_peak() -> anyhow::Result<u64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(program).args(std::env::args_os().skip(1)).arg("--only-train").output();
    let output = output.context("cannot start the process that measures memory")?;
    let memory: Memory = serde_json::from_slice(&output.stdout).context("the process that measures memory failed")?;
    Ok(memory.peak_rss_bytes)
}
