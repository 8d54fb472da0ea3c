//! Flags that several verbs share.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::board::{Found, Profile};
use crate::graph::Choice;
use crate::source::{Dataset, dataset};
use crate::{AdapterSpec, Augment, CacheFormat, CacheOptions, Model, ModelOptions, Recipe};

/// The model.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// The model: an .onnx file, or a model.toml (or its folder) that also names labels and front end
    #[arg(long, value_name = "MODEL")]
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) details: ModelDetails,
}

/// What a bare .onnx file does not say.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ModelDetails {
    /// Output to use, by name [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(super) output: Option<String>,
    /// Labels in the order of the scores, e.g. yes,no,stop [default: those of model.toml, else 0,1,2…]
    #[arg(long, value_delimiter = ',', value_name = "LABELS")]
    pub(super) labels: Vec<String>,
    /// Input shape with batch 1 first, e.g. 1,98,40, where the file leaves it open
    #[arg(long, value_delimiter = ',', value_name = "SHAPE")]
    pub(super) input_shape: Vec<usize>,
}

impl ModelDetails {
    /// Opens the model.
    pub(super) fn open(&self, model: &Path) -> anyhow::Result<Model> {
        let options = ModelOptions {
            output: self.output.clone(),
            labels: self.labels.clone(),
            input_shape: (!self.input_shape.is_empty()).then(|| self.input_shape.clone()),
            front_end: None,
        };
        Model::open_with(model, &options).with_context(|| format!("cannot open the model {}", model.display()))
    }
}

impl ModelArgs {
    /// Opens the model.
    pub(super) fn open(&self) -> anyhow::Result<Model> {
        self.details.open(&self.model)
    }
}

/// What to train.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct AdapterArgs {
    /// Rank of each low-rank pair (a layer that is narrower gets its own width)
    #[arg(long, default_value_t = 8)]
    pub(super) rank: usize,
    /// The pair counts alpha/rank [default: 2 * rank]
    #[arg(long)]
    pub(super) alpha: Option<f32>,
    /// Layers to adapt: auto (all but depthwise layers and embeddings), last-third (of those: an epoch runs only what lies
    /// behind), all, none (with --head), or a regular expression over node names
    #[arg(long, default_value = "auto", value_parser = parse_choice)]
    pub(super) sites: Choice,
    /// Train the last dense layer whole in place of a low-rank pair
    #[arg(long)]
    pub(super) head: bool,
}

fn parse_choice(text: &str) -> Result<Choice, String> {
    Choice::parse(text)
}

impl AdapterArgs {
    /// As the library takes it.
    pub(super) fn spec(&self) -> AdapterSpec {
        let alpha = self.alpha.unwrap_or(2.0 * self.rank as f32);
        AdapterSpec { rank: self.rank, alpha, sites: self.sites.clone(), head: self.head }
    }
}

/// How what the frozen layers give is kept.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CacheArgs {
    /// How what the frozen layers give for a clip is held: f32 is exact, f16 takes half the memory, int8 about a quarter
    #[arg(long, value_enum, default_value_t = FormatName::F32)]
    cache: FormatName,
    /// Keep it in a file in this folder in place of memory; the file has no name and goes with the program
    #[arg(long, value_name = "DIR")]
    cache_file: Option<PathBuf>,
}

/// `--cache`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormatName {
    F32,
    F16,
    Int8,
}

impl CacheArgs {
    /// As the library takes it.
    pub(super) fn options(&self) -> CacheOptions {
        let format = match self.cache {
            FormatName::F32 => CacheFormat::F32,
            FormatName::F16 => CacheFormat::F16,
            FormatName::Int8 => CacheFormat::Int8,
        };
        CacheOptions { format, folder: self.cache_file.clone() }
    }
}

/// Random changes to training clips and pictures.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Augmentation")]
pub(super) struct AugmentArgs {
    /// Versions of each clip or picture: itself and this many less one with random changes
    #[arg(long, value_name = "N")]
    pub(super) variants: Option<usize>,
    /// Move clips by up to this many milliseconds
    #[arg(long, value_name = "MS")]
    pub(super) shift_ms: Option<f32>,
    /// Play clips faster or slower by up to this fraction
    #[arg(long, value_name = "FRACTION")]
    pub(super) speed: Option<f32>,
    /// Make clips louder or softer by up to this many dB
    #[arg(long, value_name = "DB")]
    pub(super) gain_db: Option<f32>,
    /// Add noise at a signal-to-noise ratio of at least this many dB
    #[arg(long, value_name = "DB", allow_hyphen_values = true)]
    pub(super) noise_snr_db: Option<f32>,
    /// Mirror every other version of a picture
    #[arg(long)]
    pub(super) flip: bool,
    /// Move pictures by up to this many pixels
    #[arg(long, value_name = "PIXELS")]
    pub(super) shift_pixels: Option<usize>,
    /// Make pictures brighter or darker by up to this fraction
    #[arg(long, value_name = "FRACTION")]
    pub(super) brightness: Option<f32>,
}

impl AugmentArgs {
    /// The changes and the number of versions: as given, else the recipe for the model's kind of input.
    pub(super) fn augment(&self, kind: &str) -> (Augment, usize) {
        let recipe = Recipe::of(kind);
        let augment = Augment {
            shift_ms: self.shift_ms.unwrap_or(recipe.augment.shift_ms),
            speed: self.speed.unwrap_or(recipe.augment.speed),
            gain_db: self.gain_db.unwrap_or(recipe.augment.gain_db),
            noise_snr_db: self.noise_snr_db.or(recipe.augment.noise_snr_db),
            flip: self.flip,
            shift_pixels: self.shift_pixels.unwrap_or(recipe.augment.shift_pixels),
            brightness: self.brightness.unwrap_or(recipe.augment.brightness),
        };
        let variants = self.variants.unwrap_or(if augment == Augment::default() { 1 } else { recipe.variants });
        (augment, variants.max(1))
    }
}

/// Reads a dataset and says which flag named it if that fails.
pub(super) fn read_dataset(flag: &str, path: &Path) -> anyhow::Result<Dataset> {
    dataset(path).with_context(|| format!("cannot read {flag} {}", path.display()))
}

/// `--target-profile`: a name, a file, or `auto` for the board this runs on.
pub(super) fn target_profile(asked: &str) -> anyhow::Result<Profile> {
    if asked != "auto" {
        return Profile::load(asked).context("--target-profile");
    }
    let found = Found::read(Path::new("/"), std::env::consts::ARCH);
    found.profile()?.with_context(|| {
        format!("--target-profile auto: there is no profile for {}; give a name, or a .toml file", found.arch)
    })
}
