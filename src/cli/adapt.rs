//! `accentor adapt`: teaches the model from labelled clips or pictures.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

use super::options::{AdapterArgs, AugmentArgs, CacheArgs, ModelArgs, ModelDetails, read_dataset, target_profile};
use super::watch::{BudgetArgs, CheckpointArgs, Conducted, Watch, Watched};
use super::{memory, report};
use crate::board::Profile;
use crate::graph::Head;
use crate::source::Dataset;
use crate::train::{Evaluation, Examples, OptimiserKind, RateTrial, Schedule, Splits, TrainConfig, TrainError};
use crate::{Adapter, Augment, CacheOptions, Cached, Model, Recipe, Trainer};

/// Teach the model from labelled examples and write an adapter
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    accentor adapt --model models/kws-commands --data my-clips --out my-accent\n  \
    accentor adapt --model net.onnx --labels cat,dog --data train.csv --eval test.csv --out porch-camera --lr auto\n  \
    accentor adapt --model models/kws-commands --data new-word --new-labels --replay old-words --out eleven-words\n  \
    accentor adapt --model net.onnx --new-head embedding --data digits --out digits --sites none\n  \
    accentor adapt --model models/kws-commands --data my-clips --out my-accent --checkpoint run --max-temperature 75\n\n\
    DATA is a folder with a folder a label, or a CSV with the columns path,label. --eval and --guard are only\n\
    reported: nothing is chosen by them.\n\n\
    New words: --new-labels gives the last layer a row for each label that the model lacks; clips of the old words in\n\
    --replay keep it from forgetting them. --new-head puts a fresh layer on a tensor of the file and forgets the old\n\
    labels. Labels and layer are in the adapter: eval, predict and merge take them from there.")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Labelled examples to learn from
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// Folder for the adapter; replaced when the new one is complete
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Examples for early stop and for --lr auto
    #[arg(long, value_name = "DATA")]
    valid: Option<PathBuf>,
    /// Examples to report accuracy on, before and after
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Examples mixed into training, so that what they hold is not forgotten [default: those of model.toml, if it names any]
    #[arg(long, value_name = "DATA")]
    replay: Option<PathBuf>,
    /// Examples that must not get worse: reported before and after [default: those of model.toml, if it names any]
    #[arg(long, value_name = "DATA")]
    guard: Option<PathBuf>,
    /// Labels of --data that the model lacks become new classes of its last layer
    #[arg(long, conflicts_with = "new_head")]
    new_labels: bool,
    /// Train a fresh dense layer on this tensor of the file, e.g. embedding, for the labels of --data and --replay (or
    /// those of --labels, in that order)
    #[arg(long, value_name = "TENSOR")]
    new_head: Option<String>,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    augment: AugmentArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The model with the classes to be learnt.
    fn open(&self) -> anyhow::Result<Model> {
        let labels_of = |flag: &str, path: &Path| Ok::<_, anyhow::Error>(read_dataset(flag, path)?.labels());
        let data = labels_of("--data", &self.data);
        if let Some(tensor) = &self.new_head {
            // The labels are those of the new head, not of the file's own scores.
            let details = ModelDetails { labels: Vec::new(), ..self.model.details.clone() };
            let model = details.open(&self.model.model)?;
            let mut labels = self.model.details.labels.clone();
            if labels.is_empty() {
                labels = data?;
                if let Some(replay) = &self.replay {
                    labels.extend(labels_of("--replay", replay)?);
                }
                labels.sort();
                labels.dedup();
            }
            return model.with_new_head(tensor, labels).context("--new-head");
        }
        let model = self.model.open()?;
        if !self.new_labels {
            return Ok(model);
        }
        let new: Vec<String> = data?.into_iter().filter(|l| model.label_index(l).is_none()).collect();
        if new.is_empty() {
            report::note("--new-labels: the model has all labels of --data already");
            return Ok(model);
        }
        model.extended(&new).context("--new-labels")
    }
}

/// How to train.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Training")]
pub(super) struct TrainingArgs {
    /// Passes over the data [default: 30 for sound, 40 for the rest]
    #[arg(long)]
    pub(super) epochs: Option<usize>,
    /// Peak learning rate, or auto: short trials on cross-validation inside the data (or on --valid) [default: 1e-2 for
    /// sound; 3e-3 for the rest, for layers of a network with LayerNormalization and for models of one score]
    #[arg(long, value_name = "X|auto", value_parser = parse_rate)]
    pub(super) lr: Option<Rate>,
    /// Clips a step
    #[arg(long, default_value_t = 16)]
    pub(super) batch: usize,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Threads; the result does not depend on it [default: those of --target-profile, else 1]
    #[arg(long)]
    pub(super) threads: Option<usize>,
    /// Budgets of a kind of board: a name such as rpi4, a .toml file as in targets/, or auto for the board this runs on
    #[arg(long, value_name = "NAME|FILE|auto")]
    pub(super) target_profile: Option<String>,
    /// How the rate moves
    #[arg(long, value_enum, default_value_t = ScheduleName::OneCycle)]
    pub(super) schedule: ScheduleName,
    /// Share of the steps in which the rate rises
    #[arg(long, default_value_t = 0.3)]
    pub(super) warmup: f32,
    /// Optimiser
    #[arg(long, value_enum, default_value_t = OptimiserName::Adamw)]
    pub(super) optimiser: OptimiserName,
    /// Weight decay
    #[arg(long, default_value_t = 0.01)]
    pub(super) weight_decay: f32,
    /// Momentum of sgd
    #[arg(long, default_value_t = 0.9)]
    pub(super) momentum: f32,
    /// Largest norm of the gradient
    #[arg(long, value_name = "NORM")]
    pub(super) clip_norm: Option<f32>,
    /// Label smoothing [default: 0.1 for sound, 0 for the rest]
    #[arg(long)]
    pub(super) label_smoothing: Option<f32>,
    /// Epochs without a better validation loss after which training ends
    #[arg(long, default_value_t = 10)]
    pub(super) patience: usize,
}

/// `--lr`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rate {
    Auto,
    Fixed(f32),
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "auto" {
        return Ok(Rate::Auto);
    }
    match text.parse::<f32>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(Rate::Fixed(rate)),
        _ => Err("expected a positive number such as 5e-3, or auto".into()),
    }
}

/// `--schedule`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum ScheduleName {
    OneCycle,
    Cosine,
    Constant,
}

/// `--optimiser`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum OptimiserName {
    Adamw,
    Sgd,
}

impl TrainingArgs {
    /// The board's profile, where one is asked for.
    pub(super) fn profile(&self) -> anyhow::Result<Option<Profile>> {
        self.target_profile.as_deref().map(target_profile).transpose()
    }

    /// Threads: as given, else the profile's.
    pub(super) fn threads(&self, profile: Option<&Profile>) -> usize {
        self.threads.or(profile.map(|p| p.train_threads)).unwrap_or(1)
    }

    /// Whether the rate is to be found by trials.
    pub(super) fn automatic(&self) -> bool {
        matches!(self.lr, Some(Rate::Auto))
    }

    pub(super) fn config(&self, kind: &str) -> TrainConfig {
        let recipe = Recipe::of(kind);
        let adamw = OptimiserKind::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: self.weight_decay };
        TrainConfig {
            epochs: self.epochs.unwrap_or(recipe.epochs),
            batch: self.batch,
            rate: match self.lr {
                Some(Rate::Fixed(rate)) => rate,
                _ => recipe.rate,
            },
            schedule: match self.schedule {
                ScheduleName::OneCycle => Schedule::OneCycle { warmup: self.warmup },
                ScheduleName::Cosine => Schedule::Cosine { warmup: self.warmup },
                ScheduleName::Constant => Schedule::Constant,
            },
            optimiser: match self.optimiser {
                OptimiserName::Adamw => adamw,
                OptimiserName::Sgd => OptimiserKind::Sgd { momentum: self.momentum, weight_decay: self.weight_decay },
            },
            clip_norm: self.clip_norm,
            smoothing: self.label_smoothing.unwrap_or(recipe.smoothing),
            patience: Some(self.patience),
            seed: self.seed,
            ..TrainConfig::default()
        }
    }
}

/// What a run found, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) trainable_parameters: usize,
    pub(super) adapter_bytes: u64,
    pub(super) examples: usize,
    pub(super) steps: usize,
    pub(super) epochs: usize,
    pub(super) kept_epoch: usize,
    pub(super) learning_rate: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rate_trials: Vec<RateTrial>,
    pub(super) losses: Vec<f32>,
    pub(super) cancelled: bool,
    #[serde(flatten)]
    pub(super) watched: Watched,
    pub(super) threads: usize,
    /// The board's profile, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_profile: Option<String>,
    /// Classes that the file lacks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) new_labels: Vec<String>,
    pub(super) seconds: f64,
    pub(super) peak_rss_bytes: u64,
    pub(super) evaluated_on: &'static str,
    pub(super) before: Evaluation,
    pub(super) after: Evaluation,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guard: Option<BeforeAfter>,
    pub(super) out: String,
}

/// Two evaluations of the same data.
#[derive(Debug, Serialize)]
pub(super) struct BeforeAfter {
    pub(super) before: Evaluation,
    pub(super) after: Evaluation,
}

/// Labelled examples: in memory, or in the files that they are read from one by one.
#[derive(Clone)]
pub(super) enum Clips {
    Read(Examples),
    Files { flag: &'static str, path: PathBuf, data: Dataset, augment: Augment, variants: usize, seed: u64 },
}

impl Clips {
    fn read(&self) -> Option<&Examples> {
        match self {
            Self::Read(examples) => Some(examples),
            Self::Files { .. } => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Read(examples) => examples.len(),
            Self::Files { data, .. } => data.examples.len(),
        }
    }

    /// The label of all, where there is but one.
    fn one_label(&self, model: &Model) -> Option<String> {
        match self {
            Self::Read(examples) => {
                let (first, rest) = examples.targets().split_first()?;
                rest.iter().all(|t| t == first).then(|| model.labels()[*first].clone())
            }
            Self::Files { data, .. } => data.labels().pop().filter(|_| data.labels().len() == 1),
        }
    }

    /// Runs the frozen prefix on them.
    fn cache(self, model: &Model, trainer: &mut Trainer, options: &CacheOptions) -> anyhow::Result<Cached> {
        match self {
            Self::Read(examples) => Ok(trainer.cache_as(&examples, options)?),
            Self::Files { flag, path, data, augment, variants, seed } => {
                let mut writer = trainer.cache_writer(variants, data.examples.len(), options)?;
                model
                    .each_example(&data, &augment, variants, seed, |inputs, target| Ok(writer.push(inputs, target)?))
                    .with_context(|| format!("in {flag} {}", path.display()))?;
                Ok(writer.finish())
            }
        }
    }
}

/// The data of a run.
pub(super) struct Material {
    pub(super) train: Clips,
    pub(super) valid: Option<Examples>,
    pub(super) replay: Option<Clips>,
    pub(super) cache: CacheOptions,
}

/// What training gave.
pub(super) struct Trained {
    pub(super) adapter: Adapter,
    pub(super) conducted: Conducted,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    crate::store::check_folder(&args.out).context("--out")?;
    let profile = args.training.profile()?;
    let threads = args.training.threads(profile.as_ref());
    let watch = Watch::new(started, &args.budget, &args.checkpoint, profile.as_ref(), &args.out)?;
    let model = args.open()?;
    let kind = model.front_end();
    let (augment, variants) = args.augment.augment(kind);
    augment.check()?;
    let mut config = args.training.config(kind);
    if args.training.lr.is_none() {
        config.rate = model.recipe(&args.adapter.sites).rate;
    }
    config.check()?;
    let mut adapter = model.new_adapter(&args.adapter.spec(), args.training.seed)?;

    let plain = Augment::default();
    let read =
        |flag: &str, path: &Option<PathBuf>, augment: &Augment, variants: usize| -> anyhow::Result<Option<Examples>> {
            let Some(path) = path else { return Ok(None) };
            let data = read_dataset(flag, path)?;
            Ok(Some(
                model
                    .examples(&data, augment, variants, args.training.seed)
                    .with_context(|| format!("in {flag} {}", path.display()))?,
            ))
        };
    // Where the cache is in a file, clips that are only trained on are not held in memory either.
    let held = args.cache.options().folder.is_none()
        || (args.eval.is_none() && args.valid.is_none())
        || model.head().is_some();
    let clips = |flag: &'static str, path: &Option<PathBuf>| -> anyhow::Result<Option<Clips>> {
        let Some(path) = path.clone() else { return Ok(None) };
        if held {
            return Ok(read(flag, &Some(path), &augment, variants)?.map(Clips::Read));
        }
        let (data, augment, seed) = (read_dataset(flag, &path)?, augment.clone(), args.training.seed);
        Ok(Some(Clips::Files { flag, path, data, augment, variants, seed }))
    };
    let Some(train) = clips("--data", &Some(args.data.clone()))? else { bail!("no data") };
    let said = |of: fn(&crate::Manifest) -> &Option<PathBuf>| model.manifest().and_then(|m| of(m).clone());
    let replay = args.replay.clone().or_else(|| said(|m| &m.replay));
    let replay = clips("--replay", &replay)?;
    let valid = read("--valid", &args.valid, &plain, 1)?;
    let eval = read("--eval", &args.eval, &plain, 1)?;
    let guard = args.guard.clone().or_else(|| said(|m| &m.guard));
    let guard = read("--guard", &guard, &plain, 1)?;
    if model.head() == Some(&Head::Extended)
        && let (Some(train), Some(replay)) = (train.read(), replay.as_ref().and_then(Clips::read))
    {
        // An old label is heard as often as a new one: else the new ones would be the likelier answer to anything.
        let labels = |e: &Examples| e.targets().iter().collect::<BTreeSet<_>>().len() as f32;
        config.replay = config.replay.max(labels(replay) / labels(train).max(1.0));
    }
    if replay.is_none() {
        check_classes(&model, &train)?;
    }

    let (evaluated_on, measured) = match (&eval, &valid) {
        (Some(eval), _) => ("eval", eval),
        (None, Some(valid)) => ("valid", valid),
        (None, None) => ("data", train.read().context("no data")?),
    };
    let sets: Vec<&Examples> = [Some(&train), replay.as_ref()].into_iter().flatten().filter_map(Clips::read).collect();
    model.start_head(&mut adapter, &sets)?;
    let frozen = match model.head() {
        // The old labels mean nothing: what is there before is the new head as it starts.
        Some(Head::New { .. }) => model.session(Some(&adapter))?,
        _ => model.frozen().session(None)?,
    };
    let before = frozen.evaluate(model.labels(), measured)?;
    let guard_before = guard.as_ref().map(|g| frozen.evaluate(model.labels(), g)).transpose()?;
    drop(frozen);

    let material = Material { train: train.clone(), valid: valid.clone(), replay, cache: args.cache.options() };
    let automatic = args.training.automatic();
    let Trained { adapter, conducted } = train_adapter(&model, adapter, &config, automatic, material, threads, &watch)?;

    // Before it is measured: a signal from here on costs the report only.
    model.write_adapter(&args.out, &adapter)?;
    let session = model.session(Some(&adapter))?;
    let after = session.evaluate(model.labels(), measured)?;
    let guard = match (&guard, guard_before) {
        (Some(g), Some(before)) => Some(BeforeAfter { before, after: session.evaluate(model.labels(), g)? }),
        _ => None,
    };
    watch.finish()?;
    let Conducted { report: fit, rate, trials, watched } = conducted;
    let outcome = Outcome {
        trainable_parameters: adapter.parameters(),
        adapter_bytes: folder_bytes(&args.out),
        examples: train.len(),
        steps: fit.steps,
        epochs: fit.epochs,
        kept_epoch: fit.kept_epoch,
        learning_rate: rate,
        rate_trials: trials,
        losses: fit.losses,
        cancelled: fit.cancelled,
        watched,
        threads,
        target_profile: profile.map(|p| p.name),
        new_labels: match model.head() {
            Some(Head::New { .. }) => model.labels().to_vec(),
            Some(Head::Extended) => model.labels()[model.frozen().labels().len()..].to_vec(),
            None => Vec::new(),
        },
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_bytes: memory::peak_rss_bytes(),
        evaluated_on,
        before,
        after,
        guard,
        out: args.out.display().to_string(),
    };
    if args.json { report::json(&outcome) } else { print(&outcome) }
}

/// Caches the frozen prefix, finds the rate if asked, trains.
pub(super) fn train_adapter(
    model: &Model,
    adapter: Adapter,
    config: &TrainConfig,
    automatic: bool,
    material: Material,
    threads: usize,
    watch: &Watch,
) -> anyhow::Result<Trained> {
    let mut trainer = model.trainer(adapter, threads)?;
    let mut cache = |clips: Clips| clips.cache(model, &mut trainer, &material.cache);
    let train = cache(material.train)?;
    let valid = material.valid.map(Clips::Read).map(&mut cache).transpose()?;
    let replay = material.replay.map(&mut cache).transpose()?;
    let splits = Splits { train: &train, replay: replay.as_ref(), valid: valid.as_ref() };

    let conducted = watch.conduct(&mut trainer, config, automatic, splits)?;
    Ok(Trained { adapter: trainer.adapter(), conducted })
}

/// One class alone teaches the model to say that class always.
fn check_classes(model: &Model, train: &Clips) -> Result<(), TrainError> {
    match train.one_label(model) {
        _ if train.len() == 0 => Err(TrainError::Empty),
        Some(label) => Err(TrainError::OneClass { label, count: train.len() }),
        None => Ok(()),
    }
}

pub(super) fn folder_bytes(folder: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum()
}

fn print(o: &Outcome) -> anyhow::Result<()> {
    report::line(&format!(
        "{} trained values in {} steps ({} epochs, rate {:e}), {:.1} s, peak memory {:.1} MiB",
        o.trainable_parameters,
        o.steps,
        o.epochs,
        o.learning_rate,
        o.seconds,
        o.peak_rss_bytes as f64 / 1048576.0
    ))?;
    if let Some(name) = &o.target_profile {
        report::line(&format!("target profile {name}: {} threads", o.threads))?;
    }
    if o.watched.paused_seconds > 0.0 {
        let rests: Vec<String> = o.watched.pauses.iter().map(|(why, s)| format!("{why} {s:.1} s")).collect();
        report::line(&format!("rested: {}", rests.join(", ")))?;
    }
    if !o.new_labels.is_empty() {
        report::line(&format!("new labels: {}", o.new_labels.join(", ")))?;
    }
    let on = if o.evaluated_on == "data" { "the training data (give --eval for others)" } else { o.evaluated_on };
    report::line(&format!("on {on}: {} -> {}", report::accuracy(&o.before), report::accuracy(&o.after)))?;
    if let Some(guard) = &o.guard {
        report::line(&format!("on guard: {} -> {}", report::accuracy(&guard.before), report::accuracy(&guard.after)))?;
    }
    report::line(&format!("adapter: {} ({:.1} KB)", o.out, o.adapter_bytes as f64 / 1000.0))
}
