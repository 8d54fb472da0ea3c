//! `accentor merge`: writes an ONNX file with the adapter in its weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::options::ModelArgs;
use super::report;
use crate::manifest::{FILE_NAME, sha256_hex};
use crate::{FrontEnd, Manifest, Model};

/// Write an ONNX file with the adapter merged into its weights
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  accentor merge --model models/kws-commands --adapter my-accent --out merged.onnx\n\n\
    Every byte but the payload of the adapted weights is copied. The frozen file stays: to unmerge, use it.\n\n\
    Where the adapter has new labels the last layer gets their rows (or the model a new output), and MERGED.toml beside\n\
    MERGED.onnx names them: give that to the other verbs as the model.\n\n\
    Of a model.toml with several [[stage]], --out names a folder: every stage's file and a model.toml go there."
)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The ONNX file to write; a folder for a model of several stages
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
    /// Written where the adapter has labels of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    if !model.stages().is_empty() {
        return merge_stages(&model, args);
    }
    crate::store::check_file(&args.out).context("--out")?;
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if real(&args.out).is_some_and(|out| Some(out) == real(model.path())) {
        bail!("--out {} is the frozen model itself, which adapters belong to: name another file", args.out.display());
    }
    let adapter = model.read_adapter(&args.adapter)?;
    let merged = model.merge(&adapter)?;
    crate::store::write_file(&args.out, &merged.bytes)?;
    let mut notes = merged.notes;
    let manifest = match adapter.head {
        Some(_) => Some(write_manifest(&*model.for_adapter(&adapter)?, &args.out)?),
        None => None,
    };
    if let Some(manifest) = &manifest {
        notes.push(format!("the new labels are in {manifest}: --model {manifest}"));
    }
    let out = args.out.display().to_string();
    let outcome = Outcome { out, bytes: merged.bytes.len(), sites: adapter.sites.len(), notes, manifest };
    if args.json {
        return report::json(&outcome);
    }
    report::line(&format!("{}: {} bytes, {} layers merged", outcome.out, outcome.bytes, outcome.sites))?;
    outcome.notes.iter().try_for_each(|note| report::line(&format!("  {note}")))
}

/// A folder with the file of every stage and a manifest.
fn merge_stages(model: &Model, args: &Args) -> anyhow::Result<()> {
    if args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
        return Err(crate::ModelError::OneOfMany { stages: model.stages().len() })
            .with_context(|| format!("--out {}", args.out.display()));
    }
    crate::store::check_folder(&args.out).context("--out")?;
    let adapter = model.read_adapter(&args.adapter)?;
    let (stages, mut manifest) = model.merge_stages(&adapter)?;
    for data in [&mut manifest.guard, &mut manifest.replay].into_iter().flatten() {
        *data = std::fs::canonicalize(&*data).with_context(|| data.display().to_string())?;
    }
    let classes = model.graph().values[model.ending().logits].len();
    let text = manifest.to_commented_toml(Some(classes)).into_bytes();
    let (mut files, mut notes, mut bytes, mut lines) = (vec![(FILE_NAME, text)], Vec::new(), 0, Vec::new());
    for stage in &stages {
        lines.push(format!("{}: {} bytes, {} layers merged", stage.name, stage.bytes.len(), stage.sites));
        notes.extend(stage.notes.iter().map(|note| format!("{}: {note}", stage.name)));
        bytes += stage.bytes.len();
        files.push((&stage.name, stage.bytes.clone()));
    }
    crate::store::write_folder(&args.out, &files)?;
    let out = args.out.display().to_string();
    let outcome = Outcome { out, bytes, sites: adapter.sites.len(), notes, manifest: None };
    if args.json {
        return report::json(&outcome);
    }
    report::line(&format!("{}: {} files and {FILE_NAME}", outcome.out, stages.len()))?;
    lines.iter().chain(&outcome.notes).try_for_each(|line| report::line(&format!("  {line}")))
}

/// A manifest with the labels of `model` beside the merged file.
fn write_manifest(model: &Model, onnx: &Path) -> anyhow::Result<String> {
    let graph = model.graph();
    let input = &graph.values[model.input()];
    let said = model.manifest().cloned().unwrap_or_default();
    let here = |path: Option<PathBuf>| path.map(|p| std::fs::canonicalize(&p).unwrap_or(p));
    let manifest = Manifest {
        onnx: onnx.file_name().map(PathBuf::from).unwrap_or_default(),
        sha256: Some(sha256_hex(onnx).with_context(|| onnx.display().to_string())?),
        fetch: None,
        input: Some(input.name.clone()),
        output: Some(graph.values[model.output()].name.clone()),
        labels: model.labels().to_vec(),
        guard: here(said.guard.clone()),
        replay: here(said.replay.clone()),
        front_end: said.front_end.clone().or_else(|| Some(FrontEnd::default_for(&input.shape))),
        ..said
    };
    let path = onnx.with_extension("toml");
    crate::store::write_file(&path, manifest.to_commented_toml(None).as_bytes())?;
    Ok(path.display().to_string())
}
