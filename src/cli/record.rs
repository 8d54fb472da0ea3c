//! `accentor record`: labelled clips from the microphone.

use std::path::PathBuf;

/// Record clips of a word: a beep before each, and those that are no good again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor record --label stop --count 5 --out my-clips\n  \
                        accentor adapt --model models/kws-commands --data my-clips --out my-accent")]
#[cfg_attr(not(feature = "mic"), allow(dead_code, reason = "flags that this build can only explain"))]
pub(super) struct Args {
    /// The word
    #[arg(long, value_name = "LABEL")]
    label: String,
    /// Clips to record
    #[arg(long, value_name = "N", default_value_t = 5)]
    count: usize,
    /// Folder of the labelled clips; they go to DIR/LABEL, and those that are there stay
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Microphone, as `accentor devices` names it [default: the default one]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// How long to listen for each clip; what is kept is the word with a tenth of a second around it
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Rate of the files
    #[arg(long, value_name = "HZ", default_value_t = 16_000)]
    rate_hz: u32,
    /// How often a clip that is no good is asked for again
    #[arg(long, value_name = "N", default_value_t = 4)]
    retries: usize,
    /// No beep
    #[arg(long)]
    quiet: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[cfg(not(feature = "mic"))]
pub(super) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!(super::devices::NOT_BUILT)
}

#[cfg(feature = "mic")]
pub(super) use with_microphone::run;

#[cfg(feature = "mic")]
mod with_microphone {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use anyhow::{Context, bail};
    use serde::Serialize;

    use super::super::report;
    use super::Args;
    use crate::features::likeness::{self, Spoken};
    use crate::source::microphone::{Microphone, beep};
    use crate::source::{Audio, Heard, Sample, Sound, quality, resample};

    /// The beep is over, and its echo, before the clip begins.
    const AFTER_BEEP: Duration = Duration::from_millis(150);

    /// `--json`.
    #[derive(Debug, Serialize)]
    struct Recorded {
        label: String,
        clips: Vec<Clip>,
        /// Clips that were asked for again.
        refused: usize,
    }

    #[derive(Debug, Serialize)]
    struct Clip {
        path: String,
        seconds: f64,
        /// Level of the loudest 20 ms.
        level_dbfs: f32,
    }

    /// The way from the microphone to good clips.
    struct Recorder<'a> {
        args: &'a Args,
        microphone: Microphone,
        stop: Arc<AtomicBool>,
        refused: usize,
        /// There is an output for beeps.
        tone: bool,
    }

    pub(in super::super) fn run(args: &Args) -> anyhow::Result<()> {
        check(args)?;
        let folder = args.out.join(&args.label);
        let (mut spoken, taken) = earlier(&folder)?;
        let earlier = spoken.len();
        let stop = Arc::new(AtomicBool::new(false));
        super::super::watch::interrupt(&stop)?;
        let microphone = Microphone::open(args.device.as_deref(), args.rate_hz, None)?;
        let mut recorder = Recorder { args, microphone, stop, refused: 0, tone: !args.quiet };
        let mut clips = Vec::new();
        while clips.len() < args.count {
            let Some(clip) = recorder.clip(clips.len() + 1)? else { break };
            spoken.push(Spoken::of(&clip)?);
            clips.push(clip);
        }
        // Which one is unlike the others shows when all are there; it is asked for again once.
        let mut again = Vec::new();
        while !recorder.stopped()
            && let Some((place, ratio)) = likeness::unlike(&spoken)
        {
            let problem = quality::Problem::Unlike { ratio };
            let Some(clip) = place.checked_sub(earlier).filter(|clip| !again.contains(clip)) else {
                report::note(&format!("kept all the same: clip {} is {problem}", place + 1));
                break;
            };
            report::note(&format!("clip {} is {problem}", clip + 1));
            recorder.refused += 1;
            again.push(clip);
            let Some(better) = recorder.clip(clip + 1)? else { break };
            spoken[place] = Spoken::of(&better)?;
            clips[clip] = better;
        }
        let mut written = Vec::new();
        for (clip, number) in clips.iter().zip((1..).filter(|number| !taken.contains(number))) {
            let path = folder.join(format!("{number:03}.wav"));
            let bytes = crate::source::wav_bytes(clip).with_context(|| path.display().to_string())?;
            crate::store::write_file(&path, &bytes)?;
            written.push(Clip {
                path: path.display().to_string(),
                seconds: clip.samples.len() as f64 / f64::from(clip.rate_hz),
                level_dbfs: quality::dbfs(quality::loudest_power(&clip.samples, clip.rate_hz)),
            });
        }
        let stopped = recorder.stopped() && written.len() < args.count;
        if args.json {
            report::json(&Recorded { label: args.label.clone(), clips: written, refused: recorder.refused })?;
        } else {
            for clip in &written {
                report::line(&format!(
                    "{}  {:.2} s, {:.0} dB of full scale",
                    clip.path, clip.seconds, clip.level_dbfs
                ))?;
            }
        }
        if stopped {
            bail!("stopped before all clips were there; those above are kept");
        }
        Ok(())
    }

    fn check(args: &Args) -> anyhow::Result<()> {
        if !(0.3..=60.0).contains(&args.seconds) {
            bail!("--seconds {}: expected 0.3 to 60", args.seconds);
        }
        let label = Path::new(&args.label);
        if args.label.starts_with('.')
            || label.components().count() != 1
            || label.file_name().is_none_or(|n| n != label)
        {
            bail!("--label {}: expected a word that can be the name of a folder", args.label);
        }
        Ok(())
    }

    /// The clips of the label that are there already, and the numbers that are taken.
    fn earlier(folder: &Path) -> anyhow::Result<(Vec<Spoken>, Vec<usize>)> {
        let (mut spoken, mut taken) = (Vec::new(), Vec::new());
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok((spoken, taken)) };
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            taken.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<usize>().ok()));
            if let Ok(Sample::Audio(clip)) = crate::source::read(&path) {
                spoken.push(Spoken::of(&clip)?);
            }
        }
        Ok((spoken, taken))
    }

    impl Recorder<'_> {
        fn stopped(&self) -> bool {
            self.stop.load(Ordering::Relaxed)
        }

        /// A clip that is good by itself, trimmed; none after Ctrl-C.
        fn clip(&mut self, number: usize) -> anyhow::Result<Option<Audio>> {
            for _ in 0..=self.args.retries {
                report::note(&format!("{} of {}: say \"{}\" after the beep", number, self.args.count, self.args.label));
                self.beep();
                let recorded = self.record()?;
                if self.stopped() {
                    return Ok(None);
                }
                let problem = match &recorded {
                    None => String::from("sound was lost on the way: is the machine busy?"),
                    Some(clip) => match quality::problems(clip).first() {
                        None => return Ok(Some(quality::trimmed(&resample(clip, self.args.rate_hz)?))),
                        Some(problem) => problem.to_string(),
                    },
                };
                report::note(&format!("again: {problem}"));
                self.refused += 1;
            }
            bail!("no good clip of \"{}\" in {} tries; nothing was written", self.args.label, self.args.retries + 1)
        }

        /// A tone, or the terminal's bell where there is no output.
        fn beep(&mut self) {
            if self.tone && beep().is_err() {
                self.tone = false;
            }
            if !self.tone && !self.args.quiet {
                report::bell();
            }
            std::thread::sleep(AFTER_BEEP);
        }

        /// What the microphone gives from now on; none with a gap in it.
        fn record(&mut self) -> anyhow::Result<Option<Audio>> {
            let rate_hz = self.microphone.rate_hz();
            let mut samples = vec![0.0; (self.args.seconds * f64::from(rate_hz)) as usize];
            self.microphone.skip();
            let (mut filled, mut waits) = (0, 0);
            while filled < samples.len() && !self.stopped() {
                match self.microphone.read(&mut samples[filled..])? {
                    Heard::Samples(count) => (filled, waits) = (filled + count, 0),
                    Heard::Gap { .. } if filled > 0 => return Ok(None),
                    Heard::Gap { .. } => {}
                    Heard::Nothing if waits < 50 => waits += 1,
                    Heard::Nothing | Heard::End => {
                        bail!(
                            "{}: it gives no sound; look with `accentor devices` for another",
                            self.microphone.device()
                        )
                    }
                }
            }
            samples.truncate(filled);
            Ok(Some(Audio { samples, rate_hz }))
        }
    }
}
