//! What its owner says: right, wrong, missed, and clips of a word.

use std::time::{Duration, Instant};

use tracing::info;

use super::super::clips::{self, Found, NoClip};
use super::super::protocol::Event;
use super::{Daemon, unix_seconds};
use crate::features::likeness::{Spoken, unlike};
use crate::gate::Observation;
use crate::graph::Choice;
use crate::listen::NOT_WORDS;
use crate::source::{Audio, Sample, quality};
use crate::store::{Disk, Example, ExampleInfo, Forget};

/// Where an example came from.
pub(super) mod origin {
    pub(in super::super) const ENROLLED: &str = "enrolled";
    pub(in super::super) const CORRECTED: &str = "corrected";
    pub(in super::super) const CONFIRMED: &str = "confirmed";
    pub(in super::super) const MISSED: &str = "missed";
    pub(in super::super) const FALSE_WAKE: &str = "false_wake";
    pub(in super::super) const SELF: &str = "self";
    pub(in super::super) const GUARD: &str = "guard";
    pub(in super::super) const AMBIENT: &str = "ambient";
}

/// What an update learns from.
pub(super) const TAUGHT: [&str; 6] =
    [origin::ENROLLED, origin::CORRECTED, origin::CONFIRMED, origin::MISSED, origin::FALSE_WAKE, origin::SELF];

/// Words that wait to become guards, at most.
const GUARDED: usize = 32;
/// A word said again within so long of a near miss is what was meant.
const SAID_AGAIN_SECONDS: f64 = 5.0;
/// Clips that one enrolment may ask for.
const CLIPS: usize = 50;

/// Clips that are being taken.
#[derive(Debug)]
pub(super) struct Enrolment {
    label: String,
    left: usize,
    stream: Option<String>,
    /// Of each input, how far it was listened to.
    from: Vec<u64>,
    spoken: Vec<Spoken>,
    until: Instant,
}

/// A word that becomes a guard unless its owner says that it was another.
#[derive(Debug)]
pub(super) struct Guarded {
    id: u64,
    label: usize,
    features: Vec<f32>,
    until: Instant,
}

/// The word that feedback is about.
struct Said {
    stream: usize,
    id: u64,
    label: usize,
    end: u64,
    features: Vec<f32>,
    /// The example that was made of it.
    example: Option<u64>,
    /// Whether it is the last one of all inputs.
    last: bool,
}

impl<D: Disk> Daemon<D> {
    /// A word was heard: told, watched, perhaps kept as a guard.
    pub(super) fn heard(&mut self, stream: usize, id: u64, label: usize, score: f32, at_seconds: f64, tag: u64) {
        let Some(name) = self.model.labels().get(label).cloned() else { return };
        let adapter = (tag != 0).then_some(tag);
        self.tell(&Event::Detected { id, stream: self.name(stream), label: name.clone(), score, at_seconds, adapter });
        let window = self.window(stream);
        let (features, again) = {
            let recent = self.streams[stream].line.recent();
            let features = recent.find(Some(id)).map(|word| word.features.clone());
            let (end, again) = (recent.samples(at_seconds), recent.samples(SAID_AGAIN_SECONDS));
            let near = recent.near().filter(|near| near.label == label).map(|near| near.end);
            (features, near.filter(|near| near + window < end && near + again > end))
        };
        let Some(features) = features else { return };
        self.watch_wake(tag, &features);
        if let Ok(scores) = self.base.scores(&features)
            && scores.get(label).is_some_and(|s| *s >= self.config.guard.score)
            && self.guarded.len() < GUARDED
        {
            let until = Instant::now() + Duration::from_secs_f64(self.config.trial.feedback_seconds);
            self.guarded.push(Guarded { id, label, features, until });
        }
        if let Some(near) = again.filter(|_| self.config.feedback.self_label) {
            let found = clips::heard(&self.streams[stream].line.recent(), near, window);
            if let Ok(found) = found {
                // Nobody asked for it: what the disk says is in the status.
                let _ = self.keep_clip(&name, origin::SELF, &found.clip);
            }
        }
    }

    /// Samples of a window, at the input's rate. Not to be called while the input's memory is locked.
    fn window(&self, stream: usize) -> u64 {
        let recent = self.streams[stream].line.recent();
        let (rate_hz, samples) = self.model.extractor().sound().unwrap_or((1, 0));
        recent.samples(samples as f64 / f64::from(rate_hz))
    }

    fn said(&self, event: Option<u64>) -> Result<Said, String> {
        let mut found: Option<Said> = None;
        let mut last = 0;
        for (stream, of) in self.streams.iter().enumerate() {
            let recent = of.line.recent();
            last = last.max(recent.find(None).map_or(0, |w| w.id));
            if let Some(word) = recent.find(event)
                && found.as_ref().is_none_or(|f| f.id < word.id)
            {
                let features = word.features.clone();
                let (id, label, end, example) = (word.id, word.label, word.end, word.example);
                found = Some(Said { stream, id, label, end, features, example, last: false });
            }
        }
        match (found, event) {
            (Some(found), _) => Ok(Said { last: found.id == last, ..found }),
            (None, Some(id)) => Err(format!("there is no word with number {id} any more")),
            (None, None) => Err("no word was heard yet".into()),
        }
    }

    /// Remembers the example of a word.
    fn taken(&mut self, said: &Said, number: u64) {
        self.streams[said.stream].line.recent().taken(said.id, number);
    }

    fn known(&self, label: &str) -> Result<usize, String> {
        self.model.label_index(label).ok_or_else(|| {
            let labels = self.model.labels().join(", ");
            format!("the model has no word `{label}`; it has {labels} (new ones: `accentor adapt --new-labels`)")
        })
    }

    fn clip_of(&self, said: &Said) -> Result<Found, NoClip> {
        let window = self.window(said.stream);
        clips::heard(&self.streams[said.stream].line.recent(), said.end, window)
    }

    /// Keeps a clip as an example.
    fn keep_clip(&mut self, label: &str, origin: &str, clip: &Audio) -> Result<u64, String> {
        let recipe = self.model.recipe(&Choice::parse(&self.config.learn.sites).unwrap_or(Choice::Auto));
        let count = self.store.examples().count() as u64;
        let mut rng = fastrand::Rng::with_seed(self.config.learn.seed ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let sample = Sample::Audio(clip.clone());
        let features = self.model.versions(&sample, &recipe.augment, recipe.versions(), &mut rng);
        let features = features.map_err(|e| e.to_string())?;
        let sound = clip.samples.iter().map(|v| (v * 32768.0) as i16).collect();
        self.keep_example(label, origin, features, sound, clip.rate_hz)
    }

    fn keep_example(
        &mut self,
        label: &str,
        origin: &str,
        features: Vec<f32>,
        sound: Vec<i16>,
        rate_hz: u32,
    ) -> Result<u64, String> {
        let info = ExampleInfo {
            label: label.into(),
            origin: origin.into(),
            at: unix_seconds(),
            features: features.len(),
            samples: sound.len(),
            rate_hz,
        };
        let kept = self.store.add_example(&Example { info, features, sound });
        let why = kept.as_ref().err().map(ToString::to_string);
        match self.stored(kept) {
            Some(number) => {
                info!(number, origin, "an example was kept");
                Ok(number)
            }
            None => Err(why.unwrap_or_default()),
        }
    }

    fn feedback(&mut self) {
        self.last_feedback = Some(Instant::now());
    }

    pub(super) fn confirm(&mut self, event: Option<u64>) -> Result<String, String> {
        let said = self.said(event)?;
        self.feedback();
        if said.last {
            self.watch(Observation::Confirmed);
        }
        if let Some(number) = said.example {
            return Ok(format!("example {number} is of it already"));
        }
        let label = self.model.labels()[said.label].clone();
        let kept = self.store.examples().filter(|(_, e)| e.label == label && e.origin == origin::CONFIRMED).count();
        if kept >= self.config.guard.of_each {
            return Ok(format!("noted; {kept} confirmed examples of it are kept already"));
        }
        let found = self.clip_of(&said).map_err(|e| format!("noted, but not kept: {e}"))?;
        let number = self.keep_clip(&label, origin::CONFIRMED, &found.clip)?;
        self.taken(&said, number);
        Ok(format!("example {number} of `{label}`"))
    }

    pub(super) fn correct(&mut self, label: &str, event: Option<u64>) -> Result<String, String> {
        let index = self.known(label)?;
        let said = self.said(event)?;
        self.feedback();
        self.guarded.retain(|g| g.id != said.id);
        if said.last {
            self.watch(if index == said.label { Observation::Confirmed } else { Observation::Corrected(index) });
        }
        let found = self.clip_of(&said).map_err(|e| format!("noted, but not kept: {e}"))?;
        let number = self.keep_clip(label, origin::CORRECTED, &found.clip)?;
        self.taken(&said, number);
        // The last word counts; the one before goes when this one is on the disk.
        let Some(earlier) = said.example.filter(|earlier| self.new_examples().contains(earlier)) else {
            return Ok(format!("example {number} of `{label}`"));
        };
        let removed = self.store.remove_example(earlier);
        self.stored(removed);
        Ok(format!("example {number} of `{label}`, in the place of example {earlier}"))
    }

    /// Nothing was said: what the model calls anything else, if it has a name for it.
    pub(super) fn false_wake(&mut self, event: Option<u64>) -> Result<String, String> {
        let other = self.model.labels().iter().find(|l| NOT_WORDS[1..].contains(&l.as_str())).cloned();
        self.wrong(event, other)
    }

    /// The last word was none, or another one that nobody names: sound that no threshold may let through.
    pub(super) fn wrong(&mut self, event: Option<u64>, label: Option<String>) -> Result<String, String> {
        let said = self.said(event)?;
        self.feedback();
        self.guarded.retain(|g| g.id != said.id);
        if said.last {
            self.watch(Observation::FalseWake);
        }
        let number = self.keep_example(&label.unwrap_or_default(), origin::FALSE_WAKE, said.features, Vec::new(), 0)?;
        Ok(format!("example {number} of what is no word"))
    }

    pub(super) fn missed(&mut self, label: &str, stream: Option<&str>) -> Result<String, String> {
        let index = self.known(label)?;
        let mut best: Option<(usize, Found, f32)> = None;
        let mut why = format!("there is no input `{}`", stream.unwrap_or_default());
        for (at, of) in self.streams.iter().enumerate().filter(|(_, s)| stream.is_none_or(|n| n == s.input.name)) {
            let window = self.window(at);
            let mut recent = of.line.recent();
            if recent.is_stale(self.config.feedback.missed_seconds) {
                why = format!("input `{}` gives no sound", of.input.name);
                continue;
            }
            let end = recent.end();
            let from = end.saturating_sub(recent.samples(self.config.feedback.missed_seconds));
            match clips::last(&recent, from..end, window) {
                Ok(found) => {
                    recent.no_ambient_around(found.end);
                    let level = quality::loudest_power(&found.clip.samples, found.clip.rate_hz);
                    if best.as_ref().is_none_or(|b| b.2 < level) {
                        best = Some((at, found, level));
                    }
                }
                Err(error) => why = format!("in the last {} s: {error}", self.config.feedback.missed_seconds),
            }
        }
        let (_, found, _) = best.ok_or(why)?;
        self.feedback();
        if let Ok(features) = self.model.features(&Sample::Audio(found.clip.clone())) {
            self.watch_missed(index, &features);
        }
        let number = self.keep_clip(label, origin::MISSED, &found.clip)?;
        Ok(format!("example {number} of `{label}`"))
    }

    pub(super) fn enrol(&mut self, label: &str, count: usize, stream: Option<String>) -> Result<String, String> {
        self.known(label)?;
        if !(1..=CLIPS).contains(&count) {
            return Err(format!("expected 1 to {CLIPS} clips, found {count}"));
        }
        if let Some(name) = stream.as_ref().filter(|name| self.streams.iter().all(|s| s.input.name != **name)) {
            return Err(format!("there is no input `{name}`"));
        }
        self.end_enrolment("another enrolment began");
        let seconds = self.config.feedback.enrol_seconds;
        self.enrolment = Some(Enrolment {
            label: label.into(),
            left: count,
            stream,
            from: self.streams.iter().map(|s| s.line.recent().end()).collect(),
            spoken: Vec::new(),
            until: Instant::now() + Duration::from_secs_f64(seconds),
        });
        Ok(format!("say `{label}` {count} times, with a pause between; for {seconds} s from now"))
    }

    /// Tells whoever waits for clips that no more are taken.
    fn end_enrolment(&mut self, why: &str) {
        if let Some(enrolment) = self.enrolment.take() {
            self.tell(&Event::Clip { label: enrolment.label, left: 0, refused: Some(why.into()) });
        }
    }

    /// Takes the clips that were said since the last look.
    pub(super) fn go_on_enrolling(&mut self, now: Instant) {
        let Some(mut enrolment) = self.enrolment.take() else { return };
        for index in 0..self.streams.len() {
            if enrolment.stream.as_ref().is_some_and(|name| *name != self.streams[index].input.name) {
                continue;
            }
            let window = self.window(index);
            while enrolment.left > 0 {
                let mut recent = self.streams[index].line.recent();
                let end = recent.end();
                let Some(found) = clips::first_over(&recent, enrolment.from[index]..end, window) else { break };
                let taken = match found {
                    Ok(found) => {
                        recent.no_ambient_around(found.end);
                        enrolment.from[index] = found.end + recent.samples(0.1);
                        Ok(found.clip)
                    }
                    Err(error) => {
                        // What is wrong with it is over when it is.
                        enrolment.from[index] = end;
                        Err(error.to_string())
                    }
                };
                drop(recent);
                // One voice in two rooms is one clip.
                for (other, stream) in self.streams.iter().enumerate().filter(|(other, _)| *other != index) {
                    enrolment.from[other] = stream.line.recent().end();
                }
                let refused = taken.and_then(|clip| self.enrolled(&mut enrolment, &clip)).err();
                self.feedback();
                enrolment.left -= usize::from(refused.is_none());
                self.tell(&Event::Clip { label: enrolment.label.clone(), left: enrolment.left, refused });
            }
        }
        if enrolment.left > 0 && now < enrolment.until {
            self.enrolment = Some(enrolment);
        } else if enrolment.left > 0 {
            let refused = Some("its time is over; what was taken is kept".into());
            self.tell(&Event::Clip { label: enrolment.label, left: 0, refused });
        }
    }

    fn enrolled(&mut self, enrolment: &mut Enrolment, clip: &Audio) -> Result<(), String> {
        let spoken = Spoken::of(clip).map_err(|e| e.to_string())?;
        enrolment.spoken.push(spoken);
        let last = enrolment.spoken.len() - 1;
        let kept = match unlike(&enrolment.spoken) {
            Some((place, ratio)) if place == last => Err(quality::Problem::Unlike { ratio }.to_string()),
            _ => self.keep_clip(&enrolment.label, origin::ENROLLED, clip).map(|_| ()),
        };
        if kept.is_err() {
            enrolment.spoken.pop();
        }
        kept
    }

    /// Words that nobody contradicted become guards.
    pub(super) fn keep_guards(&mut self, now: Instant) {
        let (due, rest) = std::mem::take(&mut self.guarded).into_iter().partition(|g: &Guarded| g.until <= now);
        self.guarded = rest;
        for Guarded { label, features, .. } in due {
            let label = self.model.labels()[label].clone();
            let kept = self.store.examples().filter(|(_, e)| e.label == label && e.origin == origin::GUARD).count();
            if kept < self.config.guard.of_each {
                let _ = self.keep_example(&label, origin::GUARD, features, Vec::new(), 0);
            }
        }
    }

    /// Windows without words are kept, once feedback could have said that there was one.
    pub(super) fn keep_ambient(&mut self) {
        let after = self.config.feedback.missed_seconds;
        for index in 0..self.streams.len() {
            let drawn = self.streams[index].line.recent().take_ambient(after);
            let kept = || self.store.examples().filter(|(_, e)| e.origin == origin::AMBIENT).count();
            if let Some(features) = drawn.filter(|_| kept() < self.config.guard.ambient) {
                let _ = self.keep_example("", origin::AMBIENT, features, Vec::new(), 0);
            }
        }
    }

    pub(super) fn forget(&mut self, label: Option<&str>, example: Option<u64>, all: bool) -> Result<String, String> {
        let what = match (label, example, all) {
            (Some(label), None, false) => Forget::Label(label),
            (None, Some(number), false) => Forget::Example(number),
            (None, None, true) => Forget::All,
            _ => return Err("name a word, an example, or everything".into()),
        };
        let others = self.stop_training();
        let gone = self.store.forget(what).map_err(|e| e.to_string());
        // Whatever was erased by then is not in use any more.
        self.end_enrolment("what was taken is forgotten");
        self.guarded.clear();
        self.failed_with = None;
        self.trial = None;
        self.use_what_is_live();
        self.begin_trial_again();
        others.into_iter().for_each(|message| self.take(message));
        let gone = gone?;
        info!(files = gone, "forgotten");
        Ok(format!("{gone} files erased, and every adapter that learnt from them"))
    }
}
