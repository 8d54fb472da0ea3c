//! `accentor merge`: writes an ONNX file with the adapter in its weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::options::ModelArgs;
use super::report;

/// Write an ONNX file with the adapter merged into its weights
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  accentor merge --model models/kws-commands --adapter my-accent --out merged.onnx\n\n\
    Every byte but the payload of the adapted weights is copied. The frozen file stays: to unmerge, use it."
)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The ONNX file to write
    #[arg(long, value_name = "MERGED.onnx")]
    out: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    out: String,
    bytes: usize,
    sites: usize,
    notes: Vec<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    crate::store::check_file(&args.out).context("--out")?;
    let model = args.model.open()?;
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if real(&args.out).is_some_and(|out| Some(out) == real(model.path())) {
        bail!("--out {} is the frozen model itself, which adapters belong to: name another file", args.out.display());
    }
    let adapter = model.read_adapter(&args.adapter)?;
    let merged = model.merge(&adapter)?;
    crate::store::write_file(&args.out, &merged.bytes)?;
    let out = args.out.display().to_string();
    let outcome = Outcome { out, bytes: merged.bytes.len(), sites: adapter.sites.len(), notes: merged.notes };
    if args.json {
        return report::json(&outcome);
    }
    report::line(&format!("{}: {} bytes, {} layers merged", outcome.out, outcome.bytes, outcome.sites))?;
    outcome.notes.iter().try_for_each(|note| report::line(&format!("  {note}")))
}
