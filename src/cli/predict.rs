//! `accentor predict`: top labels with scores.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use super::options::ModelArgs;
use super::report;

/// Label clips, pictures or tensors
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor predict --model models/kws-commands --adapter my-accent clip.wav")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Adapter folder [default: the frozen model]
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// How many labels to show for each input
    #[arg(long, default_value_t = 3)]
    top: usize,
    /// Files: wav, flac, png, jpg, npy
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Predictions {
    predictions: Vec<Prediction>,
}

#[derive(Debug, Serialize)]
struct Prediction {
    input: String,
    labels: Vec<Scored>,
}

#[derive(Debug, Serialize)]
struct Scored {
    label: String,
    score: f32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    let adapter = args.adapter.as_deref().map(|a| model.read_adapter(a)).transpose()?;
    // With the classes that the adapter added.
    let model = match &adapter {
        Some(adapter) => model.for_adapter(adapter)?.into_owned(),
        None => model,
    };
    let session = model.session(adapter.as_ref())?;
    let mut predictions = Vec::new();
    for input in &args.inputs {
        let sample = crate::source::read(input)?;
        let features = model.features(&sample).with_context(|| input.display().to_string())?;
        let scores = session.scores(&features)?;
        let mut labels: Vec<Scored> = model
            .labels()
            .iter()
            .zip(&scores)
            .map(|(label, score)| Scored { label: label.clone(), score: *score })
            .collect();
        labels.sort_by(|a, b| b.score.total_cmp(&a.score));
        labels.truncate(args.top.max(1));
        predictions.push(Prediction { input: input.display().to_string(), labels });
    }
    if args.json {
        return report::json(&Predictions { predictions });
    }
    for prediction in predictions {
        let labels: Vec<String> = prediction.labels.iter().map(|l| format!("{} {:.3}", l.label, l.score)).collect();
        report::line(&format!("{}: {}", prediction.input, labels.join(", ")))?;
    }
    Ok(())
}
