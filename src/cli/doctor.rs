//! `accentor doctor`: the board that this runs on, the profile that fits it, and what to change.

use std::path::PathBuf;

use serde::Serialize;

use super::report;
use crate::board::{Found, Profile, simd};

/// Say what this board is, which profile fits it, and what to change
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  accentor doctor\n  accentor doctor --json\n\n\
    Reads /proc, /sys, /dev and /etc and changes nothing. What is not there is `not found`.")]
pub(super) struct Args {
    /// Read the system in this folder, such as a copy of another board's /proc, /sys and /etc
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    version: &'static str,
    #[serde(flatten)]
    found: Found,
    simd: &'static str,
    profile: Option<Profile>,
    advice: Vec<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let found = Found::read(&args.root, std::env::consts::ARCH);
    let profile = found.profile()?;
    let advice = found.advice(profile.as_ref(), simd())?;
    let outcome = Outcome { version: env!("CARGO_PKG_VERSION"), found, simd: simd(), profile, advice };
    if args.json { report::json(&outcome) } else { print(&outcome) }
}

fn print(o: &Outcome) -> anyhow::Result<()> {
    let f = &o.found;
    let row = |name: &str, value: Option<String>| {
        report::line(&format!("{name:12} {}", value.unwrap_or_else(|| "not found".into())))
    };
    row("accentor", Some(format!("{} for {}, kernels on {}", o.version, f.arch, vectors(o.simd))))?;
    row("board", f.model.clone())?;
    let clock = f.clock_mhz.map_or(String::new(), |mhz| format!(", up to {mhz} MHz"));
    let governor = f.governor.as_ref().map_or(String::new(), |g| format!(", governor {g}"));
    row("cores", f.cpu.as_ref().map(|cpu| format!("{} x {cpu}{clock}{governor}", f.cores)))?;
    let left = f.memory_available_mib.map_or(String::new(), |mib| format!(", {mib} MiB left"));
    row("memory", f.memory_mib.map(|mib| format!("{mib} MiB{left}")))?;
    row("temperature", f.temperature_c.map(|c| format!("{c:.1} °C")))?;
    row("system", f.system.clone())?;
    row("glibc", f.glibc.clone())?;
    let cards: Vec<String> = f
        .sound_cards
        .iter()
        .map(|c| format!("hw:{} {}{}", c.index, c.name, if c.captures { " (records)" } else { "" }))
        .collect();
    row("sound", (!cards.is_empty()).then(|| cards.join("; ")))?;
    let chips: Vec<String> = f.gpio_chips.iter().map(|c| c.display().to_string()).collect();
    row("gpio", (!chips.is_empty()).then(|| chips.join(" ")))?;
    match &o.profile {
        Some(p) => row(
            "profile",
            Some(format!(
                "{} ({}): {} of {} threads, {} MiB, {} s, pause at {} °C",
                p.name,
                p.board,
                p.train_threads,
                p.cores.max(f.cores),
                p.memory_mib,
                p.seconds,
                p.temperature_pause_c
            )),
        )?,
        None => row("profile", Some(format!("none for {}", f.arch)))?,
    }
    if o.advice.is_empty() {
        return report::line("nothing to change");
    }
    report::line("to change:")?;
    o.advice.iter().try_for_each(|a| report::line(&format!("  - {a}")))
}

/// `NEON`, or that there are none.
fn vectors(simd: &str) -> &str {
    if simd == "none" { "no vector instructions" } else { simd }
}
