//! `accentor devices`: what can be listened to.

#[cfg(feature = "mic")]
use super::report;
use crate::source::Sound;
#[cfg(feature = "mic")]
use crate::source::microphone::{self, Microphone};

/// List microphones with the formats that they give
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor devices")]
pub(super) struct Args {
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What a build without the microphone says to those who ask for one.
#[cfg(not(feature = "mic"))]
pub(super) const NOT_BUILT: &str = "this accentor is built without the microphone; build it with `cargo install accentor --features mic` (needs \
     libasound2-dev on Linux)";

#[cfg(not(feature = "mic"))]
pub(super) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!(NOT_BUILT)
}

/// Opens a microphone by the name that `accentor devices` gives it, or the default one.
#[cfg(not(feature = "mic"))]
pub(super) fn open(
    device: Option<&str>,
    _rate_hz: u32,
    _ring_samples: Option<usize>,
) -> anyhow::Result<Box<dyn Sound>> {
    match device {
        Some(name) => anyhow::bail!("{name}: there is no such file, and {NOT_BUILT}"),
        None => anyhow::bail!("{NOT_BUILT}; --input FILE.wav and --input - work without"),
    }
}

#[cfg(feature = "mic")]
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let devices = microphone::devices()?;
    if args.json {
        return report::json(&Devices { devices });
    }
    for device in &devices {
        let mark = if device.default { "  (the default)" } else { "" };
        report::line(&format!("{}{mark}", device.name))?;
        if !device.description.is_empty() {
            report::line(&format!("    {}", device.description))?;
        }
        for format in &device.formats {
            let range = |[low, high]: [u32; 2]| if low == high { low.to_string() } else { format!("{low}-{high}") };
            let (channels, rates) = (range(format.channels.map(u32::from)), range(format.rates_hz));
            report::line(&format!("    {channels} channels, {rates} Hz, {}", format.samples.join(" ")))?;
        }
        if let Some(problem) = &device.problem {
            report::line(&format!("    cannot be opened now: {problem}"))?;
        }
    }
    if devices.iter().all(|device| device.formats.is_empty()) {
        report::note(
            "no microphone can be opened: plug one in, look with `arecord -l` whether the system sees it, and be in the \
             group `audio`",
        );
    }
    Ok(())
}

/// `--json`.
#[cfg(feature = "mic")]
#[derive(Debug, serde::Serialize)]
struct Devices {
    devices: Vec<microphone::Device>,
}

/// Opens a microphone by the name that `accentor devices` gives it, or the default one.
#[cfg(feature = "mic")]
pub(super) fn open(device: Option<&str>, rate_hz: u32, ring_samples: Option<usize>) -> anyhow::Result<Box<dyn Sound>> {
    Ok(Box::new(Microphone::open(device, rate_hz, ring_samples)?))
}
