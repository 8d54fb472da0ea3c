//! `accentor operators`: which ONNX operators run, train and take adapters.

use serde::Serialize;

use super::report;
use crate::onnx::operators::{FAMILIES, Family, Gradient, markdown};

/// List the ONNX operators that run, those with a gradient and those that take adapters
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor operators --markdown > docs/operators.md")]
pub(super) struct Args {
    /// As docs/operators.md has it
    #[arg(long)]
    markdown: bool,
    /// One JSON object on stdout
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Operators {
    families: &'static [Family],
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.json {
        return report::json(&Operators { families: FAMILIES });
    }
    if args.markdown {
        return report::line(markdown().trim_end());
    }
    for family in FAMILIES {
        report::line(&format!("{}:", family.title))?;
        for row in family.rows {
            let gradient = match row.gradient {
                Gradient::Full => "",
                Gradient::None => "no gradient",
                Gradient::Zero => "gradient zero",
                Gradient::Through(_) => "gradient to some inputs",
                Gradient::StraightThrough => "straight-through gradient",
            };
            let parts = [gradient, row.lora, row.note];
            let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
            report::line(format!("  {:24} {}", row.name, parts.join("; ")).trim_end())?;
        }
    }
    Ok(())
}
