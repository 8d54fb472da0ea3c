//! What goes to the terminal: results on stdout, everything else on stderr.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;

use anyhow::Context;
use serde::Serialize;

use crate::train::Evaluation;

/// One JSON object on stdout.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(value).context("cannot write the result as JSON")?;
    line(&text)
}

/// A line on stdout; a reader that went away is not an error of ours.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

/// A line on stderr.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The terminal's bell.
#[cfg(feature = "mic")]
pub(super) fn bell() {
    let _ = write!(std::io::stderr().lock(), "\x07");
}

/// The end of a run that failed.
pub(super) fn error(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // An error that is shown through another already says what its source says.
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    note(&format!("error: {text}"));
}

/// Help, version and usage errors as clap words them.
pub(super) fn clap(error: &clap::Error) {
    let _ = error.print();
}

/// `83.3% (10 of 12)`.
pub(super) fn accuracy(e: &Evaluation) -> String {
    format!("{:.1}% ({} of {})", e.accuracy * 100.0, e.correct, e.samples)
}

/// Accuracy, classes and confusion as text.
pub(super) fn evaluation(e: &Evaluation, labels: &[String]) -> anyhow::Result<()> {
    line(&format!("accuracy {}", accuracy(e)))?;
    let width = e.per_class.iter().map(|c| c.label.chars().count()).max().unwrap_or(0);
    for class in &e.per_class {
        let index = labels.iter().position(|l| *l == class.label).unwrap_or(0);
        let mut mistaken: Vec<(usize, &String)> = e.confusion[index]
            .iter()
            .enumerate()
            .filter(|(k, count)| *k != index && **count > 0)
            .map(|(k, count)| (*count, &labels[k]))
            .collect();
        mistaken.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let mistaken: Vec<String> = mistaken.iter().take(4).map(|(count, l)| format!("{l} {count}")).collect();
        let tail = if mistaken.is_empty() { String::new() } else { format!("   taken for {}", mistaken.join(", ")) };
        line(&format!("  {:width$}  {:>4} of {:<4}{tail}", class.label, class.correct, class.samples))?;
    }
    Ok(())
}
