//! `accentor eval`: accuracy, per class, confusion.

use std::path::PathBuf;

use anyhow::Context;

use super::options::{ModelArgs, read_dataset};
use super::report;
use crate::Augment;

/// Measure accuracy on labelled examples
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor eval --model models/kws-commands --adapter my-accent --data test-clips")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Adapter folder [default: the frozen model]
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Labelled examples: a folder with a folder a label, or a CSV with the columns path,label
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    let adapter = args.adapter.as_deref().map(|a| model.read_adapter(a)).transpose()?;
    // With the classes that the adapter added.
    let model = match &adapter {
        Some(adapter) => model.for_adapter(adapter)?.into_owned(),
        None => model,
    };
    let data = read_dataset("--data", &args.data)?;
    let examples = model
        .examples(&data, &Augment::default(), 1, 0)
        .with_context(|| format!("in --data {}", args.data.display()))?;
    let session = model.session(adapter.as_ref())?;
    let evaluation = session.evaluate(model.labels(), &examples)?;
    if args.json { report::json(&evaluation) } else { report::evaluation(&evaluation, model.labels()) }
}
