//! What is in use, what is on trial, and what is being learnt.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::super::Message;
use super::super::learner::{Ended, Job, Learner, Plan};
use super::super::protocol::Event;
use super::feedback::{TAUGHT, origin};
use super::{Daemon, unix_seconds};
use crate::gate::{Calibration, Examined, Observation, Outcome, Rate, Thresholds, Trial};
use crate::listen::DetectorSettings;
use crate::lora::Adapter;
use crate::session::Session;
use crate::store::{ADAPTER_CONFIG, ADAPTER_TENSORS, Disk, Example, Life, Number};

/// The file of an adapter in the store that says how to listen with it.
const CALIBRATION: &str = "calibration.json";
/// Names in the store.
const TRAINING: &str = "training";
const TRIAL: &str = "trial";
const RATE: &str = "rate";
/// First letters of the names of a training's parts.
const PARTS: [&str; 2] = ["done-", "run-"];

/// What is in use.
#[derive(Debug)]
pub(super) struct Live {
    /// None: the frozen model.
    pub(super) number: Option<Number>,
    adapter: Option<Adapter>,
    session: Arc<Session>,
    detector: DetectorSettings,
    /// How often it woke the device.
    rate: Rate,
}

impl Live {
    pub(super) fn frozen(session: Arc<Session>, detector: DetectorSettings) -> Self {
        Self { number: None, adapter: None, session, detector, rate: Rate::default() }
    }
}

/// Why an adapter is not in use.
enum Unusable {
    /// The disk does not give it; another time it may.
    Now(String),
    /// It does not fit.
    Ever(String),
}

/// An adapter on trial.
#[derive(Debug)]
pub(super) struct Watched {
    number: Number,
    /// The adapter before it.
    before: Arc<Session>,
    trial: Trial,
}

impl Watched {
    pub(super) fn explain(&self) -> String {
        self.trial.explain()
    }
}

/// A trial as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct TrialState {
    number: Number,
    trial: Trial,
}

/// How often an adapter woke the device, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct RateState {
    number: Option<Number>,
    rate: Rate,
}

impl<D: Disk> Daemon<D> {
    /// Listens with the newest adapter that is to be in use and can be; what cannot is taken back.
    pub(super) fn use_what_is_live(&mut self) {
        let lives = |life| move |(number, g): (&Number, &crate::store::Generation)| (g.life == life).then_some(*number);
        let adapters = self.store.adapters();
        let mut candidates: Vec<Number> = adapters.iter().rev().filter_map(lives(Life::Trial)).collect();
        candidates.extend(adapters.iter().rev().filter_map(lives(Life::Confirmed)));
        candidates.retain(|number| self.unwritten.get(number).is_none_or(|(life, _)| *life != Life::RolledBack));
        let mut found = None;
        for number in candidates {
            match self.load(number) {
                Ok(live) => {
                    found = Some(live);
                    break;
                }
                Err(Unusable::Now(why)) => warn!(number, why, "an adapter cannot be read now"),
                Err(Unusable::Ever(why)) => {
                    // Why is in the history: a word may stand in it.
                    warn!(number, "an adapter cannot be used");
                    let note = format!("cannot be used: {why}");
                    let advanced = self.store.advance(number, Life::RolledBack, &note, unix_seconds());
                    self.stored(advanced);
                }
            }
        }
        let live = found.unwrap_or_else(|| Live::frozen(self.base.clone(), self.config.listen.detector.clone()));
        let rate = self.store.state(RATE).and_then(|bytes| serde_json::from_slice::<RateState>(&bytes).ok());
        let rate = match rate.filter(|rate| rate.number == live.number) {
            Some(kept) if self.live.number != live.number || self.live.rate == Rate::default() => kept.rate,
            _ if self.live.number == live.number => self.live.rate,
            _ => Rate::default(),
        };
        self.live = Live { rate, ..live };
        self.swap();
    }

    /// Has every ear listen with what is live from its next window on.
    fn swap(&mut self) {
        let tag = self.live.number.unwrap_or(0);
        for stream in &self.streams {
            match stream.line.preparer.prepare(self.live.session.clone(), &self.live.detector, tag) {
                Ok(prepared) => stream.line.send(prepared),
                Err(error) => warn!(%error, "an input keeps the adapter that it has"),
            }
        }
        info!(adapter = self.live.number, "in use from the next window on");
    }

    /// An adapter of the store, ready to be used.
    fn load(&self, number: Number) -> Result<Live, Unusable> {
        let files = self.store.adapter_files(number).map_err(|e| Unusable::Now(e.to_string()))?;
        self.made_of(number, &files).map_err(Unusable::Ever)
    }

    fn made_of(&self, number: Number, files: &[(String, Vec<u8>)]) -> Result<Live, String> {
        let file = |name: &str| {
            let found = files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice());
            found.ok_or_else(|| format!("it has no {name}"))
        };
        let name = format!("adapter {number}");
        let adapter = Adapter::from_files(Path::new(&name), file(ADAPTER_CONFIG)?, file(ADAPTER_TENSORS)?);
        let adapter = adapter.map_err(|e| e.to_string())?;
        let calibration: Calibration =
            serde_json::from_slice(file(CALIBRATION)?).map_err(|e| format!("{CALIBRATION}: {e}"))?;
        let session = Arc::new(self.model.session(Some(&adapter)).map_err(|e| e.to_string())?);
        let detector = self.detector(&calibration);
        detector.of_labels(self.model.labels()).map_err(|e| e.to_string())?;
        Ok(Live { number: Some(number), adapter: Some(adapter), session, detector, rate: Rate::default() })
    }

    /// How to listen with an adapter: as its gate found, but for what the owner's config says of single words.
    fn detector(&self, calibration: &Calibration) -> DetectorSettings {
        let own = &self.config.listen.detector;
        let mut thresholds = calibration.thresholds.clone();
        thresholds.extend(own.thresholds.iter().map(|(label, threshold)| (label.clone(), *threshold)));
        DetectorSettings { threshold: calibration.threshold, thresholds, ..own.clone() }
    }

    /// The one that comes back if the trial fails.
    fn fallback(&self) -> (Arc<Session>, f32) {
        let confirmed = self.store.adapters().iter().rev().filter(|(_, g)| g.life == Life::Confirmed);
        let loaded = confirmed.map(|(number, _)| *number).find_map(|number| self.load(number).ok());
        match loaded {
            Some(live) => (live.session, live.detector.threshold),
            None => (self.base.clone(), self.config.listen.detector.threshold),
        }
    }

    /// Watches the adapter in use, if it is on trial; from where the watch was before a restart.
    pub(super) fn begin_trial_again(&mut self) {
        let on_trial = |number: &Number| self.store.adapters().get(number).is_some_and(|g| g.life == Life::Trial);
        let Some(number) = self.live.number.filter(on_trial) else { return };
        let kept = self.store.state(TRIAL).and_then(|bytes| serde_json::from_slice::<TrialState>(&bytes).ok());
        let (before, threshold) = self.fallback();
        let trial = match kept.filter(|kept| kept.number == number) {
            Some(kept) => kept.trial,
            None => {
                let thresholds = Thresholds { trial: self.live.detector.threshold, before: threshold };
                self.new_trial(thresholds, Rate::default())
            }
        };
        self.trial = Some(Watched { number, before, trial });
    }

    fn new_trial(&self, thresholds: Thresholds, rate: Rate) -> Trial {
        let ignored = self.config.listen.detector.ignored.iter().filter_map(|label| self.model.label_index(label));
        Trial::new(&self.config.trial, thresholds, rate).ignoring(ignored.collect())
    }

    /// Tells the trial what happened, and does what it says.
    pub(super) fn watch(&mut self, observation: Observation) {
        let Some(watched) = &mut self.trial else { return };
        let Some(outcome) = watched.trial.observe(observation) else { return };
        let number = watched.number;
        match outcome {
            Outcome::Confirm(why) => self.confirm_adapter(number, &why),
            Outcome::RollBack(why) => self.take_back(number, &why),
        }
    }

    /// A wake, scored by both adapters.
    pub(super) fn watch_wake(&mut self, tag: u64, features: &[f32]) {
        let Some(watched) = &self.trial else {
            self.live.rate.wakes += 1;
            return;
        };
        // One that was heard before the swap says nothing.
        if watched.number != tag {
            return;
        }
        if let (Ok(trial), Ok(before)) = (self.live.session.scores(features), watched.before.scores(features)) {
            self.watch(Observation::Wake { trial: &trial, before: &before });
        }
    }

    /// A word that was not heard, scored by both adapters.
    pub(super) fn watch_missed(&mut self, label: usize, features: &[f32]) {
        let Some(watched) = &self.trial else { return };
        if let (Ok(trial), Ok(before)) = (self.live.session.scores(features), watched.before.scores(features)) {
            self.watch(Observation::Missed { label, trial: &trial, before: &before });
        }
    }

    /// Counts the sound that was listened to since the last look.
    pub(super) fn listened(&mut self) {
        let mut windows = 0;
        for stream in &mut self.streams {
            // A night in which nobody speaks is no sign of anything.
            let heard = stream.line.recent().heard;
            let now = heard.windows - heard.silent_windows;
            windows += now - std::mem::replace(&mut stream.counted, now);
        }
        let seconds = windows as f64 * f64::from(self.config.listen.hop_ms) / 1000.0;
        if self.trial.is_some() {
            self.watch(Observation::Listened(seconds));
        } else {
            self.live.rate.seconds += seconds;
        }
        self.write_late();
    }

    fn confirm_adapter(&mut self, number: Number, why: &str) {
        self.trial = None;
        self.advance(number, Life::Confirmed, why);
        info!(number, "confirmed");
        self.tell(&Event::Confirmed { adapter: number, why: why.into() });
    }

    fn take_back(&mut self, number: Number, why: &str) {
        self.trial = None;
        self.advance(number, Life::RolledBack, why);
        self.use_what_is_live();
        self.begin_trial_again();
        info!(number, now = self.live.number, "taken back");
        self.tell(&Event::RolledBack { adapter: number, why: why.into(), now: self.live.number });
    }

    /// Moves an adapter on. A disk that cannot be written changes nothing about what is in use; it is written when it can be.
    fn advance(&mut self, number: Number, life: Life, why: &str) {
        let advanced = self.store.advance(number, life, why, unix_seconds());
        if self.stored(advanced).is_none() {
            self.unwritten.insert(number, (life, why.to_owned()));
        } else {
            self.unwritten.remove(&number);
            let removed = self.store.remove_state(TRIAL);
            self.stored(removed);
        }
    }

    fn write_late(&mut self) {
        let due = self.wrote_late.is_none_or(|at| at.elapsed() >= Duration::from_secs(5));
        if due && !self.unwritten.is_empty() {
            self.wrote_late = Some(Instant::now());
            for (number, (life, why)) in self.unwritten.clone() {
                self.advance(number, life, &why);
            }
        }
    }

    pub(super) fn accept(&mut self) -> Result<String, String> {
        let number = self.trial.as_ref().map(|w| w.number).ok_or("no adapter is on trial")?;
        self.confirm_adapter(number, "its owner took it");
        Ok(format!("adapter {number} is confirmed{}", self.not_written(number)))
    }

    pub(super) fn roll_back(&mut self, why: String) -> Result<String, String> {
        let number = self.live.number.ok_or("the frozen model is in use; there is nothing to take back")?;
        self.take_back(number, &why);
        let late = self.not_written(number);
        Ok(match self.live.number {
            Some(now) => format!("adapter {number} is taken back; adapter {now} is in use{late}"),
            None => format!("adapter {number} is taken back; the frozen model is in use{late}"),
        })
    }

    /// What an answer has to say where the disk could not be written.
    fn not_written(&self, number: Number) -> &'static str {
        if self.unwritten.contains_key(&number) {
            "; the disk cannot be written, and a restart may undo it"
        } else {
            ""
        }
    }

    /// Examples that no training has seen.
    pub(super) fn new_examples(&self) -> Vec<Number> {
        // A candidate that a crash left behind was never judged.
        let judged = self.store.adapters().values().filter(|g| g.life != Life::Candidate);
        let seen: HashSet<Number> = judged.flat_map(|g| g.examples.iter().copied()).collect();
        self.taught().into_iter().filter(|number| !seen.contains(number)).collect()
    }

    /// Examples of words of the model that its owner taught.
    fn taught(&self) -> Vec<Number> {
        let taught = |info: &crate::store::ExampleInfo| {
            TAUGHT.contains(&info.origin.as_str()) && self.model.label_index(&info.label).is_some()
        };
        self.store.examples().filter(|(_, info)| taught(info)).map(|(number, _)| number).collect()
    }

    /// What a training would be made of now.
    fn plan(&self) -> Result<Plan, String> {
        let adapters = self.store.adapters();
        let confirmed = adapters.iter().rev().find(|(_, g)| g.life == Life::Confirmed);
        let trusted: HashSet<Number> = confirmed.iter().flat_map(|(_, g)| g.examples.iter().copied()).collect();
        // Those of an adapter that was in use and taken back are not learnt from again.
        let taken_back = adapters.values().filter(|g| g.life == Life::RolledBack && !g.files.is_empty());
        let spoilt: HashSet<Number> = taken_back.flat_map(|g| g.examples.iter().copied()).collect();
        let (mut owner, fresh): (Vec<Number>, Vec<Number>) = self
            .taught()
            .into_iter()
            .filter(|n| trusted.contains(n) || !spoilt.contains(n))
            .partition(|n| trusted.contains(n));
        let earlier = owner.len();
        if fresh.is_empty() {
            return Err("there is nothing new to learn from".into());
        }
        owner.extend(fresh);
        let guards = self.numbers(|info| info.origin == origin::GUARD && self.model.label_index(&info.label).is_some());
        let ambient = self.numbers(|info| info.label.is_empty());
        Ok(Plan { owner, earlier, guards, ambient, before: self.live.number })
    }

    fn numbers(&self, which: impl Fn(&crate::store::ExampleInfo) -> bool) -> Vec<Number> {
        self.store.examples().filter(|(_, info)| which(info)).map(|(number, _)| number).collect()
    }

    pub(super) fn train_if_due(&mut self, now: Instant) {
        let learn = &self.config.learn;
        let busy = self.learner.is_some() || self.trial.is_some() || self.enrolment.is_some();
        let quiet = Duration::from_secs_f64(learn.quiet_seconds);
        let due = !busy && learn.automatic && self.last_feedback.is_none_or(|at| now - at >= quiet);
        if !due {
            return;
        }
        let new = self.new_examples().len();
        if new >= learn.examples && self.failed_with != Some(new) {
            // What comes in the way is told as an event.
            if let Err(why) = self.train() {
                self.failed_with = Some(new);
                self.tell(&Event::Refused { why });
            }
        }
    }

    pub(super) fn train(&mut self) -> Result<String, String> {
        if self.learner.is_some() {
            return Err("it is training already".into());
        }
        if let Some(watched) = &self.trial {
            return Err(format!(
                "adapter {} is on trial: one update at a time (accept it, or roll it back)",
                watched.number
            ));
        }
        let plan = self.plan()?;
        let bytes = serde_json::to_vec(&plan).map_err(|e| e.to_string())?;
        // Without a disk it trains all the same, and begins anew after a restart.
        let kept = self.store.set_state(TRAINING, &bytes);
        self.stored(kept);
        let examples = plan.owner.len();
        self.start_training(plan, BTreeMap::new())?;
        self.tell(&Event::Learning { examples });
        Ok(format!("training on {examples} examples"))
    }

    fn start_training(&mut self, plan: Plan, done: BTreeMap<String, Vec<u8>>) -> Result<(), String> {
        let read = |numbers: &[Number]| -> Result<Vec<Example>, String> {
            numbers.iter().map(|n| self.store.example(*n).map_err(|e| e.to_string())).collect()
        };
        let job = Job {
            owner: read(&plan.owner)?,
            guards: read(&plan.guards)?,
            ambient: read(&plan.ambient)?,
            before: self.live.adapter.clone(),
            learn: self.config.learn.clone(),
            gate: self.config.gate.clone(),
            plan,
            done,
        };
        info!(examples = job.owner.len(), earlier = job.plan.earlier, resumed = !job.done.is_empty(), "training");
        let learner = Learner::start(self.model.clone(), job, self.to.clone()).map_err(|e| e.to_string())?;
        self.learner = Some(learner);
        Ok(())
    }

    /// Goes on with a training that an earlier process began.
    pub(super) fn go_on_training(&mut self) {
        self.begin_trial_again();
        let plan = self.store.state(TRAINING).and_then(|bytes| serde_json::from_slice::<Plan>(&bytes).ok());
        let Some(plan) = plan.filter(|plan| plan.before == self.live.number && self.trial.is_none()) else {
            return self.clear_training();
        };
        let names = self.store.state_names().unwrap_or_default();
        let parts = names.into_iter().filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
        let done = parts.filter_map(|name| Some((name.clone(), self.store.state(&name)?))).collect();
        if self.start_training(plan, done).is_err() {
            self.clear_training();
        }
    }

    /// Ends a training; nothing of it stays. What else came meanwhile is to be taken by the caller.
    pub(super) fn stop_training(&mut self) -> Vec<Message> {
        let Some(learner) = self.learner.take() else { return Vec::new() };
        learner.stop();
        let mut others = Vec::new();
        while !learner.is_finished() {
            match self.from.recv_timeout(Duration::from_millis(20)) {
                Ok(Message::Keep { .. } | Message::Learnt(_)) | Err(_) => {}
                Ok(other) => others.push(other),
            }
        }
        while let Ok(message) = self.from.try_recv() {
            match message {
                Message::Keep { .. } | Message::Learnt(_) => {}
                other => others.push(other),
            }
        }
        self.clear_training();
        others
    }

    fn clear_training(&mut self) {
        for name in self.store.state_names().unwrap_or_default() {
            if name == TRAINING || PARTS.iter().any(|part| name.starts_with(part)) {
                let removed = self.store.remove_state(&name);
                self.stored(removed);
            }
        }
    }

    /// A training ended.
    pub(super) fn learnt(&mut self, plan: &Plan, ended: Ended) {
        self.learner = None;
        match ended {
            // It goes on after the next start.
            Ended::Stopped => {}
            Ended::Failed(why) => {
                self.clear_training();
                self.failed_with = Some(self.new_examples().len());
                // Why is in the event: a word may stand in it, which is nothing for a log.
                warn!("training failed");
                self.tell(&Event::Refused { why });
            }
            Ended::Examined(examined) => {
                let there = |number: &Number| self.store.examples().any(|(n, _)| n == *number);
                // What was forgotten or taken back meanwhile is in it.
                if plan.before != self.live.number || self.trial.is_some() || !plan.owner.iter().all(there) {
                    info!("a training is of no use any more");
                    return self.clear_training();
                }
                if let Err(why) = self.judged(plan, &examined) {
                    self.failed_with = Some(self.new_examples().len());
                    self.tell(&Event::Refused { why });
                }
                self.clear_training();
            }
        }
    }

    /// A candidate is kept with its verdict, and goes on trial where the gate says so.
    fn judged(&mut self, plan: &Plan, Examined { adapter, verdict }: &Examined) -> Result<(), String> {
        let why = verdict.reasons.join("; ");
        let mut files = Vec::new();
        if verdict.admitted {
            let calibration = serde_json::to_vec(&verdict.calibration).map_err(|e| e.to_string())?;
            files.extend(adapter.files().map_err(|e| e.to_string())?);
            files.push((CALIBRATION, calibration));
        }
        // Guards were replayed, and ambient windows set its threshold: what is forgotten of them takes it along.
        let learnt_from = [&plan.owner[..], &plan.guards, &plan.ambient].concat();
        let kept = self.store.add_adapter(&files, learnt_from, &why, unix_seconds());
        let number = self.stored(kept).ok_or("the disk cannot be written; what is in use stays")?;
        info!(number, admitted = verdict.admitted, "the gate has judged");
        if !verdict.admitted {
            let advanced = self.store.advance(number, Life::RolledBack, "not taken", unix_seconds());
            self.stored(advanced);
            return Err(why);
        }
        let advanced = self.store.advance(number, Life::Trial, "in use, and watched", unix_seconds());
        self.stored(advanced).ok_or("the disk cannot be written; what is in use stays")?;
        let (rate, before_threshold, before) =
            (self.live.rate, self.live.detector.threshold, self.live.session.clone());
        self.use_what_is_live();
        if self.live.number != Some(number) {
            return Err("the update could not be used".into());
        }
        let thresholds = Thresholds { trial: self.live.detector.threshold, before: before_threshold };
        self.trial = Some(Watched { number, before, trial: self.new_trial(thresholds, rate) });
        self.note_down();
        self.tell(&Event::Trial { adapter: number, why });
        Ok(())
    }

    /// Writes down how the trial goes, or how often the device wakes.
    pub(super) fn note_down(&mut self) {
        let (name, state) = match &self.trial {
            Some(Watched { number, trial, .. }) => {
                (TRIAL, serde_json::to_vec(&TrialState { number: *number, trial: trial.clone() }))
            }
            None => (RATE, serde_json::to_vec(&RateState { number: self.live.number, rate: self.live.rate })),
        };
        let Ok(state) = state else { return };
        if self.store.state(name).as_ref() != Some(&state) {
            let kept = self.store.set_state(name, &state);
            self.stored(kept);
        }
    }
}
