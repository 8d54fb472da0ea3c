//! `accentor init`: writes a commented model.toml beside an ONNX file.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Serialize;

use super::options::ModelDetails;
use super::report;
use crate::FrontEnd;
use crate::manifest::{FILE_NAME, Manifest};

/// Write a commented model.toml: layout guessed, labels to fill in
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor init my-model.onnx\n\n\
    Several ONNX files one behind the other (spectrum, embedding, head) are one model too: the file written shows how,\n\
    under [[stage]].")]
pub(super) struct Args {
    /// The ONNX file
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    #[command(flatten)]
    details: ModelDetails,
    /// Where to write it [default: model.toml beside the ONNX file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    out: String,
    front_end: &'static str,
    classes: usize,
    next: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.details.open(&args.model)?;
    let folder = args.model.parent().unwrap_or_else(|| "".as_ref());
    let out = args.out.clone().unwrap_or_else(|| folder.join(FILE_NAME));
    if out.exists() && !args.force {
        bail!("{} is there already; --force replaces it", out.display());
    }
    let graph = model.graph();
    let input = &graph.values[model.input()];
    // The ONNX file is named relative to where the manifest will stand.
    let beside = out.parent() == args.model.parent();
    let onnx = if beside {
        args.model.file_name().map(PathBuf::from).unwrap_or_default()
    } else {
        std::fs::canonicalize(&args.model).with_context(|| args.model.display().to_string())?
    };
    let front_end = FrontEnd::default_for(&input.shape);
    let kind = front_end.kind();
    let manifest = Manifest {
        onnx,
        sha256: model.sha256().map(str::to_owned),
        input: Some(input.name.clone()),
        output: Some(graph.values[model.output()].name.clone()),
        input_shape: (!args.details.input_shape.is_empty()).then(|| args.details.input_shape.clone()),
        labels: args.details.labels.clone(),
        front_end: Some(front_end),
        ..Manifest::default()
    };
    let classes = graph.values[model.ending().logits].len();
    crate::store::write_file(&out, manifest.to_commented_toml(Some(classes)).as_bytes())?;
    let next = format!("accentor adapt --model {} --data YOUR-CLIPS --out my-adapter", out.display());
    let outcome = Outcome { out: out.display().to_string(), front_end: kind, classes, next };
    if args.json {
        return report::json(&outcome);
    }
    report::line(&format!("{}: front end {kind} (guessed from the input's shape), {classes} scores", outcome.out))?;
    report::line("fill in the labels in the order of the scores, check [front_end], then run")?;
    report::line(&format!("  {}", outcome.next))
}
