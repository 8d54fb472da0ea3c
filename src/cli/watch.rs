//! How a training run is watched over: progress, Ctrl-C, budgets, and the checkpoint that it goes on from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::report;
use crate::board::Profile;
use crate::train::{
    Checkpoint, Fingerprint, Governor, Limits, OnBattery, Reason, Run, SystemSensors, TrainError, Verdict,
};
use crate::{Splits, TrainConfig, Trainer};

/// Exit code of a run that stopped and can go on.
pub(super) const STOPPED: u8 = 4;
/// The file in the folder of `--checkpoint`.
const CHECKPOINT: &str = "adapt.checkpoint";
/// How long a signal may wait for a run that rests.
const NAP: Duration = Duration::from_millis(50);

/// Checkpoints of a run.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Stop and go on")]
pub(super) struct CheckpointArgs {
    /// Folder in which the run is written down as it goes. Stopped by Ctrl-C, SIGTERM, a budget or a power cut, the same
    /// command goes on from there, with the result of a run that was never stopped; at the end the file is removed
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// How often it is written: every so many seconds (60s) or steps (200)
    #[arg(long, value_name = "TIME|STEPS", default_value = "60s", value_parser = parse_every, requires = "checkpoint")]
    checkpoint_every: Every,
}

/// `--checkpoint-every`.
#[derive(Clone, Copy, Debug)]
enum Every {
    Time(Duration),
    Steps(usize),
}

fn parse_every(text: &str) -> Result<Every, String> {
    let wrong = || "expected seconds such as 60s, or steps such as 200".to_owned();
    match text.strip_suffix('s') {
        Some(seconds) => {
            let seconds: f64 = seconds.parse().map_err(|_| wrong())?;
            Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero()).map(Every::Time).ok_or_else(wrong)
        }
        None => text.parse().ok().filter(|n| *n > 0).map(Every::Steps).ok_or_else(wrong),
    }
}

/// What a run may take. Time, memory and temperature are those of --target-profile where one is named.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Budgets")]
pub(super) struct BudgetArgs {
    /// End training when the program has run for so many seconds [default: that of --target-profile]
    #[arg(long, value_name = "SECONDS")]
    max_seconds: Option<f64>,
    /// Train in this share of the time and rest in between, e.g. 0.5
    #[arg(long, value_name = "SHARE")]
    cpu_share: Option<f32>,
    /// Rest while other programs have a load average above this
    #[arg(long, value_name = "LOAD")]
    max_load: Option<f64>,
    /// End training when the program holds more MiB of memory [default: that of --target-profile]
    #[arg(long, value_name = "MIB")]
    max_memory_mib: Option<f64>,
    /// Rest when the processor reaches so many °C, until it has 5 less [default: that of --target-profile]
    #[arg(long, value_name = "CELSIUS")]
    max_temperature: Option<f32>,
    /// On battery: go on, pause until there is mains power, stop, or go on while so many percent are left, e.g. 40
    #[arg(long, value_name = "go|pause|stop|PERCENT", default_value = "go", value_parser = parse_battery)]
    on_battery: OnBattery,
}

fn parse_battery(text: &str) -> Result<OnBattery, String> {
    match text {
        "go" => Ok(OnBattery::Go),
        "pause" => Ok(OnBattery::Pause),
        "stop" => Ok(OnBattery::Stop),
        percent => match percent.trim_end_matches('%').parse::<u8>() {
            Ok(percent) if percent <= 100 => Ok(OnBattery::Above(percent)),
            _ => Err("expected go, pause, stop, or 0 to 100 percent".into()),
        },
    }
}

impl BudgetArgs {
    /// As given, else those of the board.
    fn limits(&self, profile: Option<&Profile>) -> Limits {
        let board = profile.map(Limits::from).unwrap_or_default();
        Limits {
            seconds: self.max_seconds.or(board.seconds),
            cpu_share: self.cpu_share,
            load: self.max_load,
            memory_mib: self.max_memory_mib.or(board.memory_mib),
            temperature_c: self.max_temperature.or(board.temperature_c),
            temperature_resume_c: if self.max_temperature.is_some() { None } else { board.temperature_resume_c },
            on_battery: self.on_battery,
        }
    }
}

/// A run that stopped where it can go on; said as a note, not as an error.
#[derive(Debug, thiserror::Error)]
#[error("stopped at step {step}: {reason}; {} has the run: the same command goes on from there", .folder.display())]
pub(super) struct Stopped {
    step: usize,
    reason: String,
    folder: PathBuf,
}

/// What is watched.
#[derive(Debug)]
pub(super) struct Watch {
    started: Instant,
    limits: Limits,
    checkpoint: Option<(PathBuf, Every)>,
}

/// What happened beside the training, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Watched {
    /// Time at rest for the budgets.
    pub(super) paused_seconds: f64,
    /// The same by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) pauses: BTreeMap<&'static str, f64>,
    /// The budget that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ended_by: Option<&'static str>,
    /// The step of the checkpoint that it went on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resumed_at_step: Option<usize>,
}

/// How the steps ended.
enum End {
    Done,
    Signal,
    Budget(Reason),
}

impl Watch {
    /// The board's budgets, no checkpoint.
    pub(super) fn plain(profile: Option<&Profile>) -> Self {
        let limits = profile.map(Limits::from).unwrap_or_default();
        Self { started: Instant::now(), limits, checkpoint: None }
    }

    /// `out` is the adapter's folder, which holds nothing else.
    pub(super) fn new(
        started: Instant,
        budget: &BudgetArgs,
        checkpoint: &CheckpointArgs,
        profile: Option<&Profile>,
        out: &Path,
    ) -> anyhow::Result<Self> {
        let limits = budget.limits(profile);
        limits.check()?;
        let watch = Self {
            started,
            limits,
            checkpoint: checkpoint.checkpoint.clone().map(|folder| (folder, checkpoint.checkpoint_every)),
        };
        if let Some((folder, _)) = &watch.checkpoint {
            let whole = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            if whole(folder).starts_with(whole(out)) {
                bail!("--checkpoint {}: it is in the adapter's folder; choose another", folder.display());
            }
            crate::store::check_file(&folder.join(CHECKPOINT)).context("--checkpoint")?;
        }
        Ok(watch)
    }

    /// Runs `run` to its end, or until it is stopped; the trainer then has the adapter.
    pub(super) fn conduct(
        &self,
        trainer: &mut Trainer,
        config: &TrainConfig,
        automatic: bool,
        splits: Splits,
    ) -> anyhow::Result<Conducted> {
        let mut run = Run::new(trainer, config, automatic, splits)?;
        let stop = Arc::new(AtomicBool::new(false));
        interrupt(&stop)?;
        let mut watched = Watched::default();
        let mut book = None;
        if let Some((folder, every)) = &self.checkpoint {
            let path = folder.join(CHECKPOINT);
            let fingerprint = run.fingerprint(trainer)?;
            if let Some(checkpoint) = Checkpoint::read(&path)? {
                run.resume(trainer, &checkpoint, &fingerprint).with_context(|| path.display().to_string())?;
                watched.resumed_at_step = Some(checkpoint.steps());
                report::note(&format!("going on at step {} of the run in {}", checkpoint.steps(), folder.display()));
            }
            book = Some(Book { path, fingerprint, every: *every, at: Instant::now(), steps: 0 });
        }
        let mut governor = Governor::new(self.limits, SystemSensors::default())?;
        for limit in governor.blind() {
            report::note(&format!("this machine does not say its {limit}: the limit has no effect"));
        }
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("{msg:24} {bar:32} {pos}/{len} steps, {elapsed}");
        bar.set_style(style.context("the progress bar's template")?);
        let end = trainer.on_own_threads(|trainer| {
            let mut resting = "";
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Ok(End::Signal);
                }
                match governor.check(self.started.elapsed()) {
                    Verdict::Go => resting = "",
                    Verdict::Stop(reason) => return Ok(End::Budget(reason)),
                    Verdict::Pause(reason, wait) => {
                        if reason != Reason::Share && resting != reason.name() {
                            resting = reason.name();
                            report::note(&format!("resting: {reason}"));
                        }
                        rest(wait, &stop);
                        continue;
                    }
                }
                let more = run.step(trainer)?;
                if let Some(book) = &mut book {
                    book.keep(&run, trainer);
                }
                if !more {
                    return Ok::<_, TrainError>(End::Done);
                }
                show(&bar, &run);
            }
        })?;
        bar.finish_and_clear();
        // From here on a signal ends the program.
        stop.store(true, Ordering::Relaxed);
        let reason = match &end {
            End::Done => None,
            End::Signal => Some("it was told to".to_owned()),
            End::Budget(reason) => Some(reason.to_string()),
        };
        if let Some(reason) = reason {
            if let (Some(book), Some((folder, _))) = (&book, &self.checkpoint) {
                book.write(&run, trainer)?;
                return Err(Stopped { step: run.report().steps, reason, folder: folder.clone() }.into());
            }
            run.end(trainer)?;
            report::note(&format!("stopped ({reason}): the adapter is kept as it is now"));
        }
        watched.ended_by = match end {
            End::Budget(reason) => Some(reason.name()),
            End::Done | End::Signal => None,
        };
        watched.pauses = governor.paused().iter().map(|(name, time)| (*name, time.as_secs_f64())).collect();
        watched.paused_seconds = watched.pauses.values().sum::<f64>() + 0.0;
        Ok(Conducted { report: run.report().clone(), rate: run.rate(), trials: run.trials().to_vec(), watched })
    }

    /// Removes the checkpoint of a run whose adapter is on the disk.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        let Some((folder, _)) = &self.checkpoint else { return Ok(()) };
        let path = folder.join(CHECKPOINT);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the finished run {}", path.display()));
            }
            _ => {}
        }
        // What a run that was killed in the middle of a write left of it.
        let begun = format!(".{CHECKPOINT}.");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&begun) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        // It stays where there is something else in it.
        let _ = std::fs::remove_dir(folder);
        Ok(())
    }
}

/// What a run gave beside the adapter.
pub(super) struct Conducted {
    pub(super) report: crate::train::FitReport,
    pub(super) rate: f32,
    pub(super) trials: Vec<crate::train::RateTrial>,
    pub(super) watched: Watched,
}

/// Where and when a run is written down.
struct Book {
    path: PathBuf,
    fingerprint: Fingerprint,
    every: Every,
    /// When it was last written.
    at: Instant,
    /// Steps since then.
    steps: usize,
}

impl Book {
    /// Writes if it is time. A disk that is full now does not end the training.
    fn keep(&mut self, run: &Run, trainer: &Trainer) {
        self.steps += 1;
        let due = match self.every {
            Every::Time(time) => self.at.elapsed() >= time,
            Every::Steps(steps) => self.steps >= steps,
        };
        if due {
            if let Err(error) = self.write(run, trainer) {
                report::note(&format!("{error:#}; training goes on"));
            }
            (self.at, self.steps) = (Instant::now(), 0);
        }
    }

    fn write(&self, run: &Run, trainer: &Trainer) -> anyhow::Result<()> {
        run.checkpoint(trainer, &self.fingerprint).write(&self.path).context("--checkpoint")
    }
}

fn show(bar: &ProgressBar, run: &Run) {
    let p = run.progress();
    if let Some((trial, of)) = run.searching() {
        bar.set_message(format!("finding the rate, {trial}/{of}"));
        return;
    }
    bar.set_length(p.steps as u64);
    bar.set_position(p.step as u64);
    bar.set_message(format!("epoch {}/{} loss {:.4}", p.epoch, p.epochs, p.loss));
}

/// Sleeps, but not through a signal.
fn rest(wait: Duration, stop: &AtomicBool) {
    let until = Instant::now() + wait;
    while !stop.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(NAP));
    }
}

/// The first Ctrl-C or SIGTERM sets `stop`; one that comes when it is set ends the process.
pub(super) fn interrupt(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .context("cannot listen for Ctrl-C")?;
    }
    Ok(())
}
