//! A frozen model ready for use: graph, ending, labels, front end.

mod head;
mod listener;
mod recipe;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::features::{Augment, Extractor, FeatureError, FrontEnd, Stream};
#[cfg(feature = "onnx")]
use crate::graph::{Chain, Frames, Link};
use crate::graph::{ChainError, Choice, Ending, Graph, Head, HeadError, Site, Stage, ValueId, choose};
use crate::lora::merge::{MergeError, Merged};
use crate::lora::{Adapter, AdapterError, AdapterSpec, StageBase};
use crate::manifest::{Manifest, ManifestError};
use crate::onnx::OnnxError;
use crate::plan::PlanError;
use crate::session::{Base, Session};
use crate::source::{Dataset, Sample, SourceError};
use crate::train::{Examples, TrainError, Trainer};

pub use listener::Listener;
pub use recipe::Recipe;
#[cfg(all(feature = "serve", unix))]
pub(crate) use recipe::SHIFT_MS;

/// Why a model cannot be opened or fed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The ONNX file.
    #[error("{path}: {source}")]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: OnnxError,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Stages that do not fit together.
    #[error(transparent)]
    Chain(Box<ChainError>),
    /// A file of a chain that cannot be read with what it is fed.
    #[error("{source} (stage {index}, fed {fed:?})")]
    Stage {
        /// Its place, from 1.
        index: usize,
        /// Shape of what the stage before it gives.
        fed: Vec<usize>,
        /// What is wrong.
        source: Box<ModelError>,
    },
    /// One file was asked of a chain.
    #[error(
        "the model is a chain of {stages} ONNX files, which cannot be merged into one: name a folder for the merged files \
         and their manifest (in the library, `Model::merge_stages`)"
    )]
    OneOfMany {
        /// Its stages.
        stages: usize,
    },
    /// A chain whose head an adapter changed.
    #[error(
        "the adapter has labels of its own, which cannot be merged into the files of a chain; \
         use it as it is, with --adapter"
    )]
    ChainHead,
    /// An adapter whose classes are not those of the base that it is to share.
    #[error("the adapter has classes of its own: make a base for it with `Model::for_adapter` and `Model::base`")]
    OtherClasses,
    /// The front end.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// A sample file.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A sample that cannot be turned into the model's input.
    #[error("{path}: {source}")]
    Sample {
        /// The file.
        path: PathBuf,
        /// Why.
        source: FeatureError,
    },
    /// The network.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Merging.
    #[error(transparent)]
    Merge(Box<MergeError>),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Label count and score count differ.
    #[error(
        "{found} labels for {scores} scores of output `{output}`: give one label a score, in the order of the scores"
    )]
    Labels {
        /// Labels given.
        found: usize,
        /// Scores of the model.
        scores: usize,
        /// The output.
        output: String,
    },
    /// A label of the data that the model lacks.
    #[error("{path}: the model has no label `{label}`{nearest}; it has {}; rename the folder, leave these clips out, or teach it as a new one with `adapt --new-labels`", labels.join(", "))]
    UnknownLabel {
        /// The file that carries it.
        path: PathBuf,
        /// The label.
        label: String,
        /// A hint at one that is spelled alike.
        nearest: String,
        /// What the model has.
        labels: Vec<String>,
    },
    /// Other classes than the file has.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A label of a head that is there already.
    #[error("the label `{label}` is there twice; give every class its own name")]
    LabelTwice {
        /// The label.
        label: String,
    },
}

impl From<ChainError> for ModelError {
    fn from(error: ChainError) -> Self {
        Self::Chain(Box::new(error))
    }
}

impl From<MergeError> for ModelError {
    fn from(error: MergeError) -> Self {
        Self::Merge(Box::new(error))
    }
}

/// What the command line or a caller may say about a bare `.onnx` file.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// The output to use, by name; the first without.
    pub output: Option<String>,
    /// Labels in the order of the scores; `0`, `1`, … without.
    pub labels: Vec<String>,
    /// Shape of the input with batch 1 first, where the file leaves it open.
    pub input_shape: Option<Vec<usize>>,
    /// Front end; guessed from the input's shape without.
    pub front_end: Option<FrontEnd>,
}

/// A frozen model: what the file computes, how it is fed, and what its scores mean.
#[derive(Clone, Debug)]
pub struct Model {
    graph: Arc<Graph>,
    input: ValueId,
    output: ValueId,
    ending: Ending,
    labels: Vec<String>,
    extractor: Arc<Extractor>,
    kind: &'static str,
    sha256: Option<String>,
    path: PathBuf,
    manifest: Option<Manifest>,
    chain: Option<Arc<Stages>>,
    head: Option<Head>,
    /// The model without its head.
    base: Option<Arc<Model>>,
}

/// The parts of a model that is a chain.
#[derive(Debug)]
struct Stages {
    stages: Vec<Stage>,
    files: Vec<StageBase>,
}

/// A stage's ONNX file after merging.
#[derive(Clone, Debug)]
pub struct MergedStage {
    /// Its file name, different from that of every other stage.
    pub name: String,
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// Layers merged into it; with 0 the bytes are those of the frozen file.
    pub sites: usize,
    /// What had to be added to the file.
    pub notes: Vec<String>,
}

#[cfg(feature = "onnx")]
fn load_file(onnx: &Path, options: &crate::onnx::LoadOptions) -> Result<(Graph, String), ModelError> {
    let wrong = |source| ModelError::Onnx { path: onnx.to_owned(), source };
    let graph = crate::onnx::load(onnx, options).map_err(wrong)?;
    let read = |source| OnnxError::Read { path: onnx.to_owned(), source };
    let sha256 = crate::manifest::sha256_hex(onnx).map_err(|e| wrong(read(e)))?;
    Ok((graph, sha256))
}

impl Model {
    /// Opens an `.onnx` file, a `model.toml`, or a folder that holds one.
    ///
    /// # Errors
    /// Whatever is wrong with the file, named with its cure.
    #[cfg(feature = "onnx")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::open_with(path, &ModelOptions::default())
    }

    /// [`Model::open`] with what a bare `.onnx` file does not say; a manifest's own fields give way to `options`.
    ///
    /// # Errors
    /// As [`Model::open`].
    #[cfg(feature = "onnx")]
    pub fn open_with(path: impl AsRef<Path>, options: &ModelOptions) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let is_onnx = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
        let manifest = if is_onnx { None } else { Some(Manifest::read(path)?) };
        if let Some(manifest) = &manifest {
            manifest.check_sha256()?;
        }
        if let Some(manifest) = manifest.as_ref().filter(|m| !m.stages.is_empty()) {
            return Self::open_chain(path, manifest, options);
        }
        let onnx = manifest.as_ref().map_or(path, |m| m.onnx.as_path());
        let said = manifest.clone().unwrap_or_default();
        let output = options.output.clone().or(said.output);
        let front_end = options.front_end.clone().or(said.front_end);
        let load = crate::onnx::LoadOptions {
            input: said.input,
            input_shape: options.input_shape.clone().or(said.input_shape),
            fed: front_end.as_ref().and_then(FrontEnd::fixed_shape),
            outputs: output.into_iter().collect(),
            ..Default::default()
        };
        let (graph, sha256) = load_file(onnx, &load)?;
        let labels = if options.labels.is_empty() { said.labels } else { options.labels.clone() };
        let mut model = Self::from_graph(graph, labels, front_end.as_ref())?;
        model.sha256 = Some(sha256);
        model.path = onnx.to_owned();
        model.manifest = manifest;
        Ok(model)
    }

    /// The stages of a manifest as one model; `options` speak of the whole: its input, and the last stage's output.
    #[cfg(feature = "onnx")]
    fn open_chain(path: &Path, manifest: &Manifest, options: &ModelOptions) -> Result<Self, ModelError> {
        let front_end = options.front_end.as_ref().or(manifest.front_end.as_ref());
        let input_shape = options.input_shape.clone().or_else(|| manifest.input_shape.clone());
        let mut chain = Chain::new(input_shape.or_else(|| front_end?.fixed_shape()).as_deref());
        let mut files = Vec::new();
        for (index, stage) in manifest.stages.iter().enumerate() {
            let frames = stage.window.map(|window| Frames { window, hop: stage.hop.unwrap_or(window) });
            let asked = options.output.as_ref().filter(|_| index + 1 == manifest.stages.len());
            let load = crate::onnx::LoadOptions {
                input: stage.input.clone(),
                input_shape: stage.input_shape.clone(),
                fed: chain.offers(frames),
                outputs: asked.or(stage.output.as_ref()).cloned().into_iter().collect(),
                ..Default::default()
            };
            let (graph, sha256) = load_file(&stage.onnx, &load).map_err(|error| match load.fed.clone() {
                Some(fed) => ModelError::Stage { index: index + 1, fed, source: Box::new(error) },
                None => error,
            })?;
            let name = stage.onnx.file_name().and_then(|n| n.to_str()).unwrap_or("stage").to_owned();
            let (scale, offset) = (stage.scale as f32, stage.offset as f32);
            chain.push(&name, graph, &Link { frames, scale, offset, frozen: stage.frozen })?;
            files.push(StageBase { onnx: name, sha256, sites: Vec::new() });
        }
        let (graph, stages) = chain.finish();
        let labels = if options.labels.is_empty() { manifest.labels.clone() } else { options.labels.clone() };
        let mut model = Self::from_graph(graph, labels, front_end)?;
        let sums: Vec<&str> = files.iter().map(|file| file.sha256.as_str()).collect();
        model.sha256 = Some(crate::manifest::sha256_hex_of(sums.join("\n").as_bytes()));
        model.path = path.to_owned();
        model.manifest = Some(manifest.clone());
        model.chain = Some(Arc::new(Stages { stages, files }));
        Ok(model)
    }

    /// A model from a graph in memory: its first input and first output.
    ///
    /// # Errors
    /// Labels that do not fit the scores, a front end that does not fit the input, a constant output.
    pub fn from_graph(graph: Graph, labels: Vec<String>, front_end: Option<&FrontEnd>) -> Result<Self, ModelError> {
        let constant = || PlanError::Constant(String::from("(none)"));
        let (input, output) = match (graph.inputs.first(), graph.outputs.first()) {
            (Some(input), Some(output)) => (*input, *output),
            _ => return Err(constant().into()),
        };
        if graph.is_constant(output) {
            return Err(PlanError::Constant(graph.values[output].name.clone()).into());
        }
        let ending = Ending::of(&graph, output);
        let scores = graph.values[ending.logits].len();
        let labels = match (labels.len(), scores) {
            (0, 1) => vec![String::from("0"), String::from("1")],
            (0, n) => (0..n).map(|i| i.to_string()).collect(),
            // One score: is it the word? The other label is everything else.
            (1, 1) => vec![String::from("_other_"), labels[0].clone()],
            (2, 1) => labels,
            (found, n) if found == n => labels,
            (found, scores) => {
                return Err(ModelError::Labels { found, scores, output: graph.values[output].name.clone() });
            }
        };
        let shape = &graph.values[input].shape;
        let front_end = front_end.cloned().unwrap_or_else(|| FrontEnd::default_for(shape));
        let extractor = front_end.build(shape)?;
        Ok(Self {
            graph: Arc::new(graph),
            input,
            output,
            ending,
            labels,
            extractor: Arc::new(extractor),
            kind: front_end.kind(),
            sha256: None,
            path: PathBuf::new(),
            manifest: None,
            chain: None,
            head: None,
            base: None,
        })
    }

    /// The network.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The fed input.
    pub fn input(&self) -> ValueId {
        self.input
    }

    /// Shape of the fed input, batch 1 first.
    pub fn input_shape(&self) -> &[usize] {
        &self.graph.values[self.input].shape
    }

    /// The output in use.
    pub fn output(&self) -> ValueId {
        self.output
    }

    /// Where the loss sits.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// Class names in the order of the scores; of a one-score model, "no" and "yes".
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// sha256 of the ONNX file in hex, if it came from one; of a chain, that of the lines of its stages' sha256.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// The ONNX file, if it came from one; of a chain, its manifest.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest, if it came with one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The stages of a chain in their order; none of a model that is one file.
    pub fn stages(&self) -> &[Stage] {
        self.chain.as_ref().map_or(&[], |chain| &chain.stages)
    }

    /// Turns samples into model inputs.
    pub fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    /// The front end for sound as it comes: the features of a window every `hop_samples`.
    ///
    /// # Errors
    /// A front end of pictures or tensors; a hop of 0.
    pub fn stream(&self, hop_samples: usize) -> Result<Stream, FeatureError> {
        Stream::new(self.extractor.clone(), hop_samples)
    }

    /// Kind of the front end, as [`FrontEnd::KINDS`] has it.
    pub fn front_end(&self) -> &'static str {
        self.kind
    }

    /// Every layer that an adapter could change.
    pub fn sites(&self) -> Vec<Site> {
        self.graph.sites(self.ending.logits)
    }

    /// The sites that `choice` takes: of `auto` and `last-third`, those that a gradient reaches.
    pub fn chosen_sites(&self, choice: &Choice) -> Vec<Site> {
        let mut sites = self.sites();
        if matches!(choice, Choice::Auto | Choice::LastThird) {
            let blocked = self.graph.blocked(self.ending.logits);
            sites.retain(|site| !blocked.iter().any(|(_, before)| before.contains(&site.node)));
        }
        choose(&self.graph, &sites, choice)
    }

    /// A fresh adapter for the layers that `spec` chooses; with it the model computes what the file computes.
    ///
    /// # Errors
    /// Rank 0, or a choice that no layer fits.
    pub fn new_adapter(&self, spec: &AdapterSpec, seed: u64) -> Result<Adapter, ModelError> {
        if spec.rank == 0 {
            return Err(TrainError::RankZero.into());
        }
        if !(spec.alpha > 0.0 && spec.alpha.is_finite()) {
            let (found, cure) = (spec.alpha.to_string(), "use a positive number; twice the rank is the default");
            return Err(TrainError::Setting { what: "alpha", found, cure }.into());
        }
        // Classes that the file lacks are in a layer that the adapter carries whole.
        let spec = &AdapterSpec { head: spec.head || self.head.is_some(), ..spec.clone() };
        let sites = self.sites();
        let chosen = self.chosen_sites(&spec.sites);
        if chosen.is_empty() && !spec.head {
            let reason = if sites.is_empty() {
                "the model has no convolution, dense or recurrent layer with a constant weight before its output"
            } else if let (Choice::Auto, Some((node, _))) = (&spec.sites, self.graph.blocked(self.ending.logits).last())
            {
                let node = &self.graph.nodes[*node];
                let what =
                    format!("no gradient passes node `{}` ({}), and no site lies behind it", node.name, node.op_type);
                return Err(TrainError::NoSite(what).into());
            } else {
                "--sites matches none"
            };
            return Err(TrainError::NoSite(reason.into()).into());
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut adapter = Adapter::new(&self.graph, self.ending.logits, &chosen, spec, &mut rng);
        if adapter.sites.is_empty() {
            return Err(TrainError::NoSite("the model has no dense layer to train as its head".into()).into());
        }
        adapter.base_sha256 = self.sha256.clone();
        adapter.base_name = self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default().into();
        adapter.labels = self.labels.clone();
        adapter.stages = self.stage_bases(&chosen_sites(&adapter, &sites));
        adapter.head = self.head.clone();
        Ok(adapter)
    }

    /// Whether the adapter belongs to this model; of a chain, file by file, as far as it names them.
    fn check_base(&self, adapter: &Adapter) -> Result<(), AdapterError> {
        if let Some(chain) = &self.chain {
            for (expected, found) in adapter.stages.iter().zip(&chain.files) {
                if !expected.sha256.eq_ignore_ascii_case(&found.sha256) {
                    let (name, expected, found) =
                        (expected.onnx.clone(), expected.sha256.clone(), found.sha256.clone());
                    return Err(AdapterError::WrongBase { name, expected, found });
                }
            }
        }
        adapter.check_base(self.sha256.as_deref())
    }

    /// The files of a chain with the keys of those of `sites` that are in each.
    fn stage_bases(&self, sites: &[Site]) -> Vec<StageBase> {
        let Some(chain) = &self.chain else { return Vec::new() };
        let of = |stage: &Stage| {
            sites.iter().filter(|site| stage.site(site).is_some()).map(|site| site.key.clone()).collect()
        };
        let both = chain.stages.iter().zip(&chain.files);
        both.map(|(stage, file)| StageBase { sites: of(stage), ..file.clone() }).collect()
    }

    /// A trainer that goes on from `adapter`.
    ///
    /// # Errors
    /// An adapter of another base, a gradient that cannot pass, threads that cannot start.
    pub fn trainer(&self, adapter: Adapter, threads: usize) -> Result<Trainer, ModelError> {
        let model = self.for_adapter(&adapter)?;
        let sites = model.bind(&adapter)?;
        Ok(Trainer::new(&model.graph, model.input, model.ending, adapter, sites, threads)?)
    }

    fn bind(&self, adapter: &Adapter) -> Result<Vec<Site>, ModelError> {
        self.check_base(adapter)?;
        Ok(adapter.bind(&self.graph, &self.sites(), self.sha256.as_deref())?)
    }

    /// Reads an adapter folder and checks that it belongs to this model.
    ///
    /// # Errors
    /// A damaged folder, an adapter of another base.
    pub fn read_adapter(&self, folder: &Path) -> Result<Adapter, ModelError> {
        let adapter = match crate::lora::read(folder) {
            // Trained in PyTorch: only the base says what its tensors are.
            Err(AdapterError::Plain { .. }) => {
                let (adapter, sites) = crate::lora::load(folder, &self.graph, &self.sites(), self.sha256.as_deref())?;
                return Ok(Adapter { stages: self.stage_bases(&sites), ..adapter });
            }
            read => read?,
        };
        self.for_adapter(&adapter)?.bind(&adapter)?;
        Ok(adapter)
    }

    /// Writes an adapter folder, whole or not at all: PEFT's two files, with the merged layers that PEFT needs beside.
    ///
    /// # Errors
    /// A folder that cannot be written, an adapter of another base.
    pub fn write_adapter(&self, folder: &Path, adapter: &Adapter) -> Result<(), ModelError> {
        let model = self.for_adapter(adapter)?;
        model.bind(adapter)?;
        Ok(crate::lora::write_whole(folder, adapter, &model.graph)?)
    }

    /// The ONNX file that computes by itself what this model and the adapter compute together.
    ///
    /// # Errors
    /// An adapter of another base, an ONNX file that is no longer there or another, a weight that cannot be changed for one
    /// node alone.
    pub fn merge(&self, adapter: &Adapter) -> Result<Merged, ModelError> {
        if !self.stages().is_empty() {
            return Err(ModelError::OneOfMany { stages: self.stages().len() });
        }
        let model = self.for_adapter(adapter)?;
        let sites = model.bind(adapter)?;
        let bytes = read_onnx(&self.path)?;
        let Some(head) = &model.head else {
            return Ok(crate::lora::merge::merge(&bytes, &model.graph, adapter, &sites)?);
        };
        let frozen = model.frozen();
        let widened = crate::lora::merge::with_head(&bytes, &frozen.graph, &model.graph, head, frozen.output)?;
        let merged = crate::lora::merge::merge(&widened.bytes, &model.graph, adapter, &sites)?;
        Ok(Merged { notes: [widened.notes, merged.notes].concat(), ..merged })
    }

    /// [`Model::merge`] for a chain: the file of every stage, in their order, and a manifest for the folder that they go
    /// to.
    ///
    /// # Errors
    /// As [`Model::merge`].
    pub fn merge_stages(&self, adapter: &Adapter) -> Result<(Vec<MergedStage>, Manifest), ModelError> {
        if adapter.head.is_some() {
            return Err(ModelError::ChainHead);
        }
        let bound = self.bind(adapter)?;
        let mut manifest = self.manifest.clone().unwrap_or_default();
        let mut merged = Vec::new();
        for (stage, said) in self.stages().iter().zip(&mut manifest.stages) {
            let bytes = read_onnx(&said.onnx)?;
            let here = adapter.sites.iter().zip(&bound);
            let (mut own, mut sites) = (Adapter { sites: Vec::new(), ..adapter.clone() }, Vec::new());
            for (of_adapter, site) in here.filter_map(|(a, site)| Some((a, stage.site(site)?))) {
                own.sites.push(crate::lora::AdapterSite::new(&stage.graph, &site, of_adapter.delta.clone()));
                sites.push(site);
            }
            let Merged { bytes, notes } = match sites.is_empty() {
                true => Merged { bytes, notes: Vec::new() },
                false => crate::lora::merge::merge(&bytes, &stage.graph, &own, &sites)?,
            };
            let name = format!("{}.onnx", stage.name);
            said.onnx = PathBuf::from(&name);
            said.sha256 = Some(crate::manifest::sha256_hex_of(&bytes));
            merged.push(MergedStage { name, bytes, sites: sites.len(), notes });
        }
        Ok((merged, manifest))
    }

    /// Inference with an adapter merged in memory, or without.
    ///
    /// # Errors
    /// An adapter of another base.
    pub fn session(&self, adapter: Option<&Adapter>) -> Result<Session, ModelError> {
        let Some(adapter) = adapter else {
            return Ok(Session::new(&self.graph, self.input, self.ending, None)?);
        };
        let model = self.for_adapter(adapter)?;
        let bound = Some((adapter, model.bind(adapter)?));
        Ok(Session::new(&model.graph, model.input, model.ending, bound)?)
    }

    /// The frozen model for many adapters, see [`Model::session_of`].
    ///
    /// # Errors
    /// A network that cannot be planned.
    pub fn base(&self) -> Result<Base, ModelError> {
        Ok(Base::new(&self.graph, self.input, self.ending, self.sites())?)
    }

    /// Inference on `base`, which this model gave, with an adapter's factors beside the shared weights, or without:
    /// cheap to make and to hold, a little slower a call than [`Model::session`]. An adapter with labels of its own wants the
    /// base of [`Model::for_adapter`].
    ///
    /// # Errors
    /// An adapter of another base or with other classes.
    pub fn session_of(&self, base: &Base, adapter: Option<&Adapter>) -> Result<Session, ModelError> {
        let Some(adapter) = adapter else { return Ok(base.session(None)?) };
        if adapter.head != self.head {
            return Err(ModelError::OtherClasses);
        }
        Ok(base.session(Some((adapter, self.bind(adapter)?)))?)
    }

    /// The index of a label in the order of the scores.
    pub fn label_index(&self, label: &str) -> Option<usize> {
        self.labels.iter().position(|l| l == label)
    }

    /// No examples yet, each to have `variants` inputs of this model: for a caller with a front end of their own.
    pub fn new_examples(&self, variants: usize) -> Examples {
        Examples::with_shape(self.input_shape(), variants)
    }

    /// Reads every file of a dataset and turns it into model inputs: the clip as it is, and `variants - 1` augmented
    /// copies of it, drawn from `seed` and the clip's place.
    ///
    /// # Errors
    /// A file that cannot be read or does not fit the model, a label that the model lacks.
    pub fn examples(
        &self,
        data: &Dataset,
        augment: &Augment,
        variants: usize,
        seed: u64,
    ) -> Result<Examples, ModelError> {
        let mut out = self.new_examples(variants);
        self.each_example(data, augment, variants, seed, |inputs, target| Ok(out.push(inputs, target)?))?;
        Ok(out)
    }

    /// [`Model::examples`] one by one, for a dataset that memory does not hold: `take` gets the inputs of each, one variant
    /// behind the other, and its label index.
    ///
    /// # Errors
    /// As [`Model::examples`], and those of `take`.
    pub fn each_example(
        &self,
        data: &Dataset,
        augment: &Augment,
        variants: usize,
        seed: u64,
        mut take: impl FnMut(&[f32], usize) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        for (index, example) in data.examples.iter().enumerate() {
            let target =
                self.label_index(&example.label).ok_or_else(|| self.unknown_label(&example.path, &example.label))?;
            let sample = crate::source::read(&example.path)?;
            let wrong = |source| ModelError::Sample { path: example.path.clone(), source };
            let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64);
            let inputs = self.versions(&sample, augment, variants, &mut rng).map_err(wrong)?;
            take(&inputs, target)?;
        }
        Ok(())
    }

    /// The model input of one sample. A tensor that has the shape of the input already is taken as it is, whatever the
    /// front end.
    ///
    /// # Errors
    /// A sample that does not fit the front end.
    pub fn features(&self, sample: &Sample) -> Result<Vec<f32>, ModelError> {
        Ok(self.versions(sample, &Augment::default(), 1, &mut fastrand::Rng::with_seed(0))?)
    }

    /// The inputs of one sample: as it is, and `variants - 1` augmented.
    pub(crate) fn versions(
        &self,
        sample: &Sample,
        augment: &Augment,
        variants: usize,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<f32>, FeatureError> {
        let shape = &self.graph.values[self.input].shape;
        if let Sample::Tensor(tensor) = sample
            && self.kind != "tensor"
            && (tensor.shape == *shape || shape.first() == Some(&1) && tensor.shape == shape[1..])
        {
            return Ok(tensor.values.repeat(variants));
        }
        let mut inputs = self.extractor.features(sample)?;
        for copy in 1..variants {
            let augment = Augment { flip: augment.flip && copy % 2 == 1, ..augment.clone() };
            inputs.extend(self.extractor.augmented(sample, &augment, rng)?);
        }
        Ok(inputs)
    }

    fn unknown_label(&self, path: &Path, label: &str) -> ModelError {
        let plain = |text: &str| text.trim().to_lowercase();
        let same = self.labels.iter().map(String::as_str).find(|l| plain(l) == plain(label));
        let known: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        let near = same.or_else(|| crate::features::nearest(&plain(label), &known));
        let nearest = near.map(|l| format!(" (did you mean `{l}`?)")).unwrap_or_default();
        let mut labels: Vec<String> = self.labels.iter().take(20).cloned().collect();
        if self.labels.len() > labels.len() {
            labels.push(format!("… ({} in all)", self.labels.len()));
        }
        ModelError::UnknownLabel { path: path.into(), label: label.into(), nearest, labels }
    }
}

fn read_onnx(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| {
        let path = path.to_owned();
        ModelError::Onnx { path: path.clone(), source: OnnxError::Read { path, source } }
    })
}

/// The sites that a fresh adapter was made for, its head included.
fn chosen_sites(adapter: &Adapter, sites: &[Site]) -> Vec<Site> {
    sites.iter().filter(|site| adapter.sites.iter().any(|a| a.key == site.key)).cloned().collect()
}
