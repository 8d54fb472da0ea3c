//! `accentor demo`: the main job on what is built in: one accent is taught to models/kws-commands, and what that did
//! to the other accents is shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

use super::adapt::{BeforeAfter, Clips, Material, Outcome, Trained, TrainingArgs, folder_bytes, train_adapter};
use super::options::{AdapterArgs, AugmentArgs, read_dataset};
use super::watch::{Conducted, Watch};
use super::{memory, report};
use crate::{Augment, CacheOptions, Model, Session};

/// The manifest, the ONNX file and the clips of models/kws-commands: name and bytes of each; none without the feature
/// `demo-files`.
static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/demo_files.rs"));

/// Where a package has them, from the folder of the binary.
const INSTALLED: &str = "../share/accentor/models/kws-commands";

/// The voices that the base knows, which must not be forgotten.
const US: &str = "us";

/// Teach the built-in keyword model an accent that it never heard
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  accentor demo\n  accentor demo --accent scotland --out my-adapter\n\n\
    Five clips a word in the accent, mixed with five a word in US voices, teach ten words. Accuracy is on clips in\n\
    voices that neither training nor adaptation heard. All clips are synthetic, see models/kws-commands/README.md.")]
pub(super) struct Args {
    /// The accent to teach
    #[arg(long, default_value = "caribbean")]
    accent: String,
    /// Folder for the adapter [default: none is kept]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    augment: AugmentArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct DemoOutcome {
    accent: String,
    #[serde(flatten)]
    outcome: Outcome,
    others: BTreeMap<String, BeforeAfter>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let folder = Files::get()?;
    let demo = folder.path().join("demo");
    let accents = accents(&demo)?;
    if !accents.contains(&args.accent) || args.accent == US {
        let others: Vec<&str> = accents.iter().map(String::as_str).filter(|a| *a != US).collect();
        bail!("there are no clips of the accent `{}`; there are {}", args.accent, others.join(", "));
    }
    let profile = args.training.profile()?;
    let threads = args.training.threads(profile.as_ref());
    let model = Model::open(folder.path())?;
    let (augment, variants) = args.augment.augment(model.front_end());
    augment.check()?;
    let read = |path: &Path, augment: &Augment, variants: usize| -> anyhow::Result<_> {
        let data = read_dataset("the built-in clips", path)?;
        Ok(model.examples(&data, augment, variants, args.training.seed)?)
    };
    let config = args.training.config(model.front_end());
    config.check()?;
    let train = read(&demo.join(&args.accent).join("adapt"), &augment, variants)?;
    let replay = read(&demo.join(US).join("replay"), &augment, variants)?;
    let mut tests = BTreeMap::new();
    for accent in &accents {
        tests.insert(accent.clone(), read(&demo.join(accent).join("test"), &Augment::default(), 1)?);
    }
    let evaluate = |session: &Session| -> anyhow::Result<BTreeMap<String, _>> {
        tests.iter().map(|(accent, clips)| Ok((accent.clone(), session.evaluate(model.labels(), clips)?))).collect()
    };
    let mut before = evaluate(&model.session(None)?)?;

    let adapter = model.new_adapter(&args.adapter.spec(), args.training.seed)?;
    let examples = train.len();
    let material = Material {
        train: Clips::Read(train),
        valid: None,
        replay: Some(Clips::Read(replay)),
        cache: CacheOptions::default(),
    };
    let automatic = args.training.automatic();
    let Trained { adapter, conducted: Conducted { report: fit, rate, trials, watched } } =
        train_adapter(&model, adapter, &config, automatic, material, threads, &Watch::plain(profile.as_ref()))?;
    let mut after = evaluate(&model.session(Some(&adapter))?)?;
    let scratch = tempfile::tempdir().context("cannot make a folder for the adapter; set TMPDIR")?;
    let out = args.out.clone().unwrap_or_else(|| scratch.path().join("adapter"));
    model.write_adapter(&out, &adapter)?;

    let outcome = Outcome {
        trainable_parameters: adapter.parameters(),
        adapter_bytes: folder_bytes(&out),
        examples,
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
        new_labels: Vec::new(),
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_bytes: memory::peak_rss_bytes(),
        evaluated_on: "eval",
        before: before.remove(&args.accent).unwrap_or_default(),
        after: after.remove(&args.accent).unwrap_or_default(),
        guard: None,
        out: args.out.as_ref().map_or(String::new(), |o| o.display().to_string()),
    };
    let others = before
        .into_iter()
        .filter_map(|(accent, before)| after.remove(&accent).map(|after| (accent, BeforeAfter { before, after })))
        .collect();
    let demo = DemoOutcome { accent: args.accent.clone(), outcome, others };
    if args.json { report::json(&demo) } else { print(&demo) }
}

fn accents(demo: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(demo).with_context(|| format!("cannot read {}", demo.display()))?;
    let mut accents: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    accents.sort();
    Ok(accents)
}

/// The folder with the demo's files.
enum Files {
    Unpacked(tempfile::TempDir),
    Installed(PathBuf),
}

impl Files {
    /// Those in the binary, else those of the package.
    fn get() -> anyhow::Result<Self> {
        if !FILES.is_empty() {
            return Ok(Self::Unpacked(unpack()?));
        }
        let binary = std::env::current_exe().context("cannot find this binary")?;
        let folder = binary.parent().unwrap_or(Path::new("")).join(INSTALLED);
        if !folder.join("demo").is_dir() {
            bail!("{} is not there: it comes with the package, or build with the feature demo-files", folder.display());
        }
        Ok(Self::Installed(folder))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Unpacked(folder) => folder.path(),
            Self::Installed(folder) => folder,
        }
    }
}

/// The built-in files in a folder of their own, which goes when the demo ends.
fn unpack() -> anyhow::Result<tempfile::TempDir> {
    let folder =
        tempfile::tempdir().context("cannot make a folder for the demo's clips; set TMPDIR to one with 5 MB free")?;
    for (name, bytes) in FILES {
        let path = folder.path().join(name);
        let parent = path.parent().unwrap_or(folder.path());
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes));
        written.with_context(|| format!("cannot write {}; set TMPDIR to a folder with 5 MB free", path.display()))?;
    }
    Ok(folder)
}

fn print(demo: &DemoOutcome) -> anyhow::Result<()> {
    let o = &demo.outcome;
    report::line(&format!("taught {} from {} clips; accuracy on voices never heard:", demo.accent, o.examples))?;
    report::line(&format!("  {:16} {:>6} -> {:>6}", "", "before", "after"))?;
    let row = |name: &str, before: f64, after: f64, mark: &str| {
        report::line(&format!("  {name:16} {:5.1}% -> {:5.1}%{mark}", before * 100.0, after * 100.0))
    };
    row(&demo.accent, o.before.accuracy, o.after.accuracy, "   the accent taught")?;
    for (accent, e) in &demo.others {
        let mark = if accent == US { "   what the base knew" } else { "" };
        row(accent, e.before.accuracy, e.after.accuracy, mark)?;
    }
    report::line(&format!(
        "{} trained values in {} steps, adapter {:.1} KB, {:.1} s in all, peak memory {:.1} MiB",
        o.trainable_parameters,
        o.steps,
        o.adapter_bytes as f64 / 1000.0,
        o.seconds,
        o.peak_rss_bytes as f64 / 1048576.0
    ))?;
    if let Some(name) = &o.target_profile {
        report::line(&format!("target profile {name}: {} threads", o.threads))?;
    }
    if !o.out.is_empty() {
        report::line(&format!("adapter: {}", o.out))?;
    }
    Ok(())
}
