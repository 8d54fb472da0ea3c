//! `accentor listen`: words in sound as it comes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use serde::Serialize;

use super::options::ModelArgs;
use super::report;
use crate::listen::{DetectorSettings, Event, Heard, ListenSettings, Spotter, listen};
use crate::source::{ClipSound, PcmSound, Sample, Sound};

/// Hear words in a microphone, a sound file or a pipe
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  accentor listen --model models/kws-commands --adapter my-accent
  accentor listen --model models/kws-commands --input recording.wav --json
  arecord -q -t raw -f S16_LE -r 16000 | accentor listen --model models/kws-commands --input -")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Adapter folder [default: the frozen model]
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// A .wav or .flac file, - for raw samples on stdin (16 bits, little-endian), or a device that `accentor devices` names
    /// [default: the default microphone]
    #[arg(long, value_name = "FILE|-|DEVICE")]
    input: Option<String>,
    /// Rate of the raw samples on stdin [default: that of the model]
    #[arg(long, value_name = "HZ")]
    rate_hz: Option<u32>,
    /// Channels of the raw samples on stdin
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: u16,
    /// A word is there when its averaged score reaches this: one number for all, or LABEL=NUMBER for one; may be given often
    #[arg(long, value_name = "[LABEL=]SCORE", default_values_t = [format!("{}", DetectorSettings::default().threshold)])]
    threshold: Vec<String>,
    /// From one window to the next
    #[arg(long, value_name = "MS", default_value_t = ListenSettings::default().hop_ms)]
    hop_ms: u32,
    /// Windows that scores are averaged over
    #[arg(long, value_name = "N", default_value_t = DetectorSettings::default().smoothing_windows)]
    smooth: usize,
    /// For so long after a word no other one is taken
    #[arg(long, value_name = "MS", default_value_t = DetectorSettings::default().refractory_ms)]
    refractory_ms: u32,
    /// Windows that are softer than this everywhere are silence, in dB of full scale
    #[arg(long, value_name = "DB", default_value_t = ListenSettings::default().gate_dbfs, allow_hyphen_values = true)]
    gate_db: f32,
    /// How much sound of a microphone may wait for the model; what comes beyond that is lost, and reported
    /// [default: 65,535 samples]
    #[arg(long, value_name = "MS")]
    ring_ms: Option<u32>,
    /// Stop after so many seconds of sound
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// One JSON object a line on stdout, for each word and gap, and one at the end
    #[arg(long)]
    json: bool,
}

/// A line of `--json`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Detected {
        label: &'a str,
        score: f32,
        at_seconds: f64,
    },
    Gap {
        lost_seconds: f64,
        at_seconds: f64,
    },
    End {
        seconds: f64,
        #[serde(flatten)]
        heard: Heard,
    },
}

impl Args {
    fn settings(&self) -> anyhow::Result<ListenSettings> {
        let mut detector = DetectorSettings {
            smoothing_windows: self.smooth,
            refractory_ms: self.refractory_ms,
            ..DetectorSettings::default()
        };
        for text in &self.threshold {
            let (label, number) = match text.rsplit_once('=') {
                Some((label, number)) => (Some(label), number),
                None => (None, text.as_str()),
            };
            let number = number.trim().parse().with_context(|| {
                format!("--threshold {text}: expected a number such as 0.8, or a label and a number such as stop=0.9")
            })?;
            match label {
                Some(label) => {
                    detector.thresholds.insert(label.trim().into(), number);
                }
                None => detector.threshold = number,
            }
        }
        Ok(ListenSettings { hop_ms: self.hop_ms, gate_dbfs: self.gate_db, detector })
    }

    /// The sound to listen to, and whether it is a clip.
    fn sound(&self, rate_hz: u32) -> anyhow::Result<(Box<dyn Sound>, bool)> {
        match self.input.as_deref() {
            Some("-") => {
                let rate_hz = self.rate_hz.unwrap_or(rate_hz);
                Ok((Box::new(PcmSound::new(std::io::stdin().lock(), rate_hz, self.channels)?), false))
            }
            Some(name) if is_file(name) => match crate::source::read(Path::new(name))? {
                Sample::Audio(clip) => Ok((Box::new(ClipSound::new(clip)), true)),
                other => bail!("{name}: expected a sound file (.wav, .flac), found {}", other.kind()),
            },
            device => {
                let ring_samples = self.ring_ms.map(|ms| (u64::from(ms) * u64::from(rate_hz) / 1000) as usize);
                Ok((super::devices::open(device, rate_hz, ring_samples)?, false))
            }
        }
    }
}

/// Whether the input is meant as a file: it is there, or is called as one.
fn is_file(name: &str) -> bool {
    let path = Path::new(name);
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    path.is_file() || ["wav", "flac"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let model = args.model.open()?;
    let adapter = args.adapter.as_deref().map(|a| model.read_adapter(a)).transpose()?;
    // With the classes that the adapter added.
    let model = match &adapter {
        Some(adapter) => model.for_adapter(adapter)?.into_owned(),
        None => model,
    };
    let session = Arc::new(model.session(adapter.as_ref())?);
    let Some((rate_hz, _)) = model.extractor().sound() else {
        bail!("{} takes no sound: its front end is `{}`", args.model.model.display(), model.front_end());
    };
    let (mut sound, clip) = args.sound(rate_hz)?;
    let mut spotter = Spotter::new(&model, session, sound.rate_hz(), &settings)?;
    if clip {
        spotter.lead_in()?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    super::watch::interrupt(&stop)?;
    if !clip && !args.json {
        report::note("listening; Ctrl-C ends it");
    }
    let mut failed = Ok(());
    // Counted in blocks, so that a stream without words ends too.
    let (mut blocks_seconds, limit) = (0.0, args.seconds.unwrap_or(f64::INFINITY));
    let result = listen(sound.as_mut(), &mut spotter, &mut |event, seconds| {
        blocks_seconds = seconds;
        failed = match event {
            Event::Detected(found) => {
                let label = &model.labels()[found.label];
                show(args.json, &Line::Detected { label, score: found.score, at_seconds: found.at_seconds })
            }
            Event::Gap { lost_seconds, at_seconds } => show(args.json, &Line::Gap { lost_seconds, at_seconds }),
            Event::Idle => Ok(()),
        };
        failed.is_ok() && seconds < limit && !stop.load(Ordering::Relaxed)
    });
    failed?;
    result?;
    show(args.json, &Line::End { seconds: blocks_seconds, heard: spotter.heard() })
}

/// A line on stdout for results, on stderr for what else there is to say.
fn show(json: bool, line: &Line) -> anyhow::Result<()> {
    if json {
        return report::json(line);
    }
    match line {
        Line::Detected { label, score, at_seconds } => {
            report::line(&format!("{at_seconds:9.2} s  {label}  {score:.3}"))
        }
        Line::Gap { lost_seconds, at_seconds } => {
            let lost = match *lost_seconds {
                0.0 => String::from("an unknown length of it"),
                known => format!("{known:.3} s"),
            };
            report::note(&format!("{at_seconds:9.2} s  sound was lost: {lost}"));
            Ok(())
        }
        Line::End { seconds, heard } => {
            let words = heard.detections;
            let gaps = match heard.gaps {
                0 => String::from("no gaps"),
                gaps => format!("{gaps} gaps, {:.3} s lost", heard.lost_seconds),
            };
            report::note(&format!("{words} words in {seconds:.1} s of sound, {gaps}"));
            Ok(())
        }
    }
}
