//! Training in the background: a candidate and its folds, under the governor, preempted at any step and resumed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::config::Learn;
use super::{Message, ServeError};
use crate::features::Augment;
use crate::gate::{Evidence, Examined, GateError, GateSettings, examine};
use crate::graph::Choice;
use crate::lora::{Adapter, AdapterSpec};
use crate::model::{Model, ModelError};
use crate::source::{Dataset, dataset};
use crate::store::{Example, Number};
use crate::train::{Cached, Checkpoint, Examples, Governor, Splits, SystemSensors, TrainConfig, TrainError, Verdict};

/// The longest sleep without a look at whether to stop.
const NAP: Duration = Duration::from_millis(50);

/// What a training is made of; with the same one it ends with the same adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The owner's examples, the earlier ones first.
    pub(super) owner: Vec<Number>,
    /// How many of them a confirmed adapter learnt from.
    pub(super) earlier: usize,
    pub(super) guards: Vec<Number>,
    pub(super) ambient: Vec<Number>,
    /// The adapter in use when it began.
    pub(super) before: Option<Number>,
}

/// A training with all that it needs.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) plan: Plan,
    pub(super) owner: Vec<Example>,
    pub(super) guards: Vec<Example>,
    pub(super) ambient: Vec<Example>,
    pub(super) before: Option<Adapter>,
    pub(super) learn: Learn,
    pub(super) gate: GateSettings,
    /// What an earlier process had done of it, by name.
    pub(super) done: BTreeMap<String, Vec<u8>>,
}

/// How a training ended.
#[derive(Debug)]
pub(super) enum Ended {
    Examined(Box<Examined>),
    /// It was told to stop, and goes on from where it was.
    Stopped,
    Failed(String),
}

/// A training that runs.
#[derive(Debug)]
pub(super) struct Learner {
    stop: Arc<AtomicBool>,
    progress: Arc<Mutex<String>>,
    thread: std::thread::JoinHandle<()>,
}

impl Learner {
    /// Starts; `to` gets what is to be kept, and at the end [`Message::Learnt`].
    ///
    /// # Errors
    /// Settings that make no sense, a system without another thread.
    pub(super) fn start(model: Arc<Model>, job: Job, to: SyncSender<Message>) -> Result<Self, ServeError> {
        let (threads, limits) = job.learn.limits()?;
        let governor = Governor::new(limits, SystemSensors::default()).map_err(ModelError::from)?;
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(String::new())));
        let (inner_stop, inner_progress) = (stop.clone(), progress.clone());
        let body = move || {
            let plan = job.plan.clone();
            let mut training = Training {
                model: &model,
                threads,
                governor,
                started: Instant::now(),
                trainings: 0,
                stop: &inner_stop,
                progress: &inner_progress,
                to: &to,
                job,
            };
            let ended = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| training.run())) {
                Ok(Ok(examined)) => Ended::Examined(Box::new(examined)),
                Ok(Err(GateError::Training(LearnError::Stopped))) => Ended::Stopped,
                Ok(Err(error)) => Ended::Failed(error.to_string()),
                Err(_) => Ended::Failed("the training broke down; please report this".into()),
            };
            // The daemon may be gone.
            let _ = to.send(Message::Learnt(Box::new((plan, ended))));
        };
        let thread = std::thread::Builder::new().name("learn".into()).spawn(body);
        let thread = thread.map_err(|source| ServeError::Thread { source })?;
        Ok(Self { stop, progress, thread })
    }

    /// How far it is, in words.
    pub(super) fn progress(&self) -> String {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops at the next step; what is done stays.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Why a candidate was not trained.
#[derive(Debug, thiserror::Error)]
enum LearnError {
    #[error("stopped")]
    Stopped,
    #[error("its budget is used up: {0}")]
    Budget(String),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Source(#[from] crate::source::SourceError),
}

struct Training<'a> {
    model: &'a Model,
    threads: usize,
    governor: Governor<SystemSensors>,
    started: Instant,
    trainings: usize,
    stop: &'a AtomicBool,
    progress: &'a Mutex<String>,
    to: &'a SyncSender<Message>,
    job: Job,
}

impl Training<'_> {
    fn run(&mut self) -> Result<Examined, GateError<LearnError>> {
        let versions = self.model.recipe(&self.sites()).versions();
        let owner = self.examples(&self.job.owner, versions).map_err(GateError::Training)?;
        let (replay, guard) = self.others().map_err(GateError::Training)?;
        let ambient = self.ambient()?;
        let evidence = Evidence { owner: &owner, earlier: self.job.plan.earlier, guard: &guard, ambient: &ambient };
        let (before, gate) = (self.job.before.clone(), self.job.gate.clone());
        let model = self.model;
        examine(model, before.as_ref(), &evidence, &gate, &mut |indices| self.train(&owner, &replay, indices))
    }

    /// The stored examples whose words the model knows.
    fn examples(&self, stored: &[Example], versions: usize) -> Result<Examples, LearnError> {
        let mut out = self.model.new_examples(versions);
        for example in stored {
            if let Some(target) = self.model.label_index(&example.info.label) {
                out.push(&filled(&example.features, versions * self.model.extractor().values()), target)?;
            }
        }
        Ok(out)
    }

    fn ambient(&self) -> Result<Examples, TrainError> {
        let mut out = self.model.new_examples(1);
        self.job.ambient.iter().try_for_each(|e| out.push(&e.features, 0))?;
        Ok(out)
    }

    /// What is mixed into training, and what an update must not break: of other voices both, and no clip in both.
    fn others(&self) -> Result<(Examples, Examples), LearnError> {
        let manifest = self.model.manifest();
        let read = |path: Option<&std::path::PathBuf>| path.map(|path| dataset(path)).transpose();
        let replay = read(manifest.and_then(|m| m.replay.as_ref()))?;
        let guard = read(manifest.and_then(|m| m.guard.as_ref()))?;
        let recipe = self.model.recipe(&self.sites());
        let seed = self.job.learn.seed;
        let load = |data: &Dataset, versions: usize| {
            self.model.examples(data, &recipe.augment, versions, seed).map_err(LearnError::from)
        };
        let plain = |data: &Dataset| self.model.examples(data, &Augment::default(), 1, seed).map_err(LearnError::from);
        let (replay, guard) = match (replay, guard) {
            (Some(replay), Some(guard)) => (Some(replay), Some(guard)),
            (Some(both), None) | (None, Some(both)) => {
                let (one, other) = halves(both);
                (Some(one), Some(other))
            }
            (None, None) => (None, None),
        };
        // What the device heard itself stands in where the manifest names nothing.
        let (own_replay, own_guard) = halves_of(&self.job.guards);
        let replay = match replay {
            Some(data) => load(&data, recipe.versions())?,
            None => self.examples(&own_replay, 1)?,
        };
        let guard = match guard {
            Some(data) => plain(&data)?,
            None => self.examples(&own_guard, 1)?,
        };
        Ok((replay, guard))
    }

    fn sites(&self) -> Choice {
        Choice::parse(&self.job.learn.sites).unwrap_or(Choice::Auto)
    }

    fn config(&self) -> TrainConfig {
        let learn = &self.job.learn;
        let recipe = self.model.recipe(&self.sites());
        let config = recipe.config(learn.seed);
        TrainConfig { epochs: learn.epochs.unwrap_or(config.epochs), rate: learn.rate.unwrap_or(config.rate), ..config }
    }

    /// Name of a part of this job: the same clips, settings and replay give the same one.
    fn name(&self, indices: &[usize]) -> String {
        let learn = Learn { checkpoint_seconds: 0.0, cpu_share: 0.0, ..self.job.learn.clone() };
        let identity = format!("{:?} {learn:?} {indices:?} {:?}", self.job.plan, self.model.sha256());
        Sha256::digest(identity).iter().take(8).map(|b| format!("{b:02x}")).collect()
    }

    /// Trains on some of the owner's examples, from the same beginning each time.
    fn train(&mut self, owner: &Examples, replay: &Examples, indices: &[usize]) -> Result<Adapter, LearnError> {
        self.trainings += 1;
        let name = self.name(indices);
        let (done, resting) = (format!("done-{name}"), format!("run-{name}"));
        if let Some(adapter) = self.job.done.get(&done).and_then(|bytes| unpacked(bytes)) {
            return Ok(adapter);
        }
        let mut some = self.model.new_examples(owner.variants());
        for index in indices {
            let inputs: Vec<f32> = (0..owner.variants()).flat_map(|v| owner.input(*index, v).iter().copied()).collect();
            some.push(&inputs, owner.target(*index))?;
        }
        let one_label = some.targets().windows(2).all(|two| two[0] == two[1]);
        if replay.is_empty() && one_label {
            let label = some.targets().first().map(|t| self.model.labels()[*t].clone()).unwrap_or_default();
            return Err(TrainError::OneClass { label, count: some.len() }.into());
        }
        let learn = &self.job.learn;
        let spec = AdapterSpec { rank: learn.rank, alpha: 2.0 * learn.rank as f32, sites: self.sites(), head: false };
        let adapter = self.model.new_adapter(&spec, learn.seed)?;
        let mut trainer = self.model.trainer(adapter, self.threads)?;
        let train: Cached = trainer.cache(&some)?;
        let replay = if replay.is_empty() { None } else { Some(trainer.cache(replay)?) };
        let splits = Splits { train: &train, replay: replay.as_ref(), valid: None };
        let config = self.config();
        let mut run = crate::train::Run::new(&mut trainer, &config, false, splits)?;
        let fingerprint = run.fingerprint(&trainer)?;
        if let Some(Ok(checkpoint)) = self.job.done.get(&resting).map(|bytes| Checkpoint::from_bytes(bytes)) {
            // One that does not fit is of no use: it begins anew.
            if run.resume(&mut trainer, &checkpoint, &fingerprint).is_err() {
                run = crate::train::Run::new(&mut trainer, &config, false, splits)?;
            }
        }
        let every = Duration::from_secs_f64(self.job.learn.checkpoint_seconds);
        let mut written = (Instant::now(), 0);
        trainer.on_own_threads(|trainer| {
            loop {
                let stopped = self.stop.load(Ordering::Relaxed);
                let step = run.progress().step;
                // While it rests there is nothing new to write.
                if stopped || written.0.elapsed() >= every && step != written.1 {
                    self.keep(&resting, run.checkpoint(trainer, &fingerprint).to_bytes());
                    written = (Instant::now(), step);
                }
                if stopped {
                    return Err(LearnError::Stopped);
                }
                match self.governor.check(self.started.elapsed()) {
                    Verdict::Go => {}
                    Verdict::Stop(reason) => return Err(LearnError::Budget(reason.to_string())),
                    Verdict::Pause(reason, wait) => {
                        self.say(format!("training {}, resting: {reason}", self.trainings));
                        std::thread::sleep(wait.min(NAP));
                        continue;
                    }
                }
                if !run.step(trainer)? {
                    return Ok(());
                }
                let p = run.progress();
                self.say(format!("training {}, step {} of {}", self.trainings, p.step, p.steps));
            }
        })?;
        let adapter = trainer.adapter();
        self.keep(&done, packed(&adapter)?);
        Ok(adapter)
    }

    fn keep(&self, name: &str, bytes: Vec<u8>) {
        // The daemon may be gone.
        let _ = self.to.send(Message::Keep { name: name.to_owned(), bytes });
    }

    fn say(&self, text: String) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// The versions of an example, over again where there are fewer: of a wake there is the one window that was heard.
fn filled(features: &[f32], len: usize) -> Vec<f32> {
    features.iter().copied().cycle().take(len).collect()
}

/// Every other example of each word.
fn halves_of(stored: &[Example]) -> (Vec<Example>, Vec<Example>) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for example in stored {
        let count = seen.entry(&example.info.label).or_default();
        if count.is_multiple_of(2) {
            one.push(example.clone())
        } else {
            other.push(example.clone())
        }
        *count += 1;
    }
    (one, other)
}

/// Every other clip of each word.
fn halves(data: Dataset) -> (Dataset, Dataset) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let (one, other) = data.examples.into_iter().partition(|example| {
        let count = seen.entry(example.label.clone()).or_default();
        *count += 1;
        *count % 2 == 1
    });
    (Dataset { examples: one }, Dataset { examples: other })
}

/// An adapter's two files in one: the length of the first, then both.
pub(super) fn packed(adapter: &Adapter) -> Result<Vec<u8>, ModelError> {
    let [(_, config), (_, tensors)] = adapter.files()?;
    let mut out = (config.len() as u64).to_le_bytes().to_vec();
    out.extend(config);
    out.extend(tensors);
    Ok(out)
}

fn unpacked(bytes: &[u8]) -> Option<Adapter> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (config, tensors) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Adapter::from_files("training".as_ref(), config, tensors).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_window_takes_no_version_of_the_others() {
        assert_eq!(filled(&[1.0, 2.0], 6), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        assert_eq!(filled(&[1.0, 2.0, 3.0, 4.0], 4), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(filled(&[1.0, 2.0, 3.0, 4.0], 2), [1.0, 2.0]);
        // A damaged one is refused by its length.
        assert!(filled(&[], 4).is_empty());
    }
}
