//! Sound of any rate → words, block by block.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Detection, Detector, DetectorSettings, ListenError};
use crate::features::{NoOverlap, Stream};
use crate::model::{Model, ModelError};
use crate::session::{Session, Slides, StreamSession, Whole};
use crate::source::{Resampler, quality};

/// How sound is listened to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// From one window to the next, in ms.
    pub hop_ms: u32,
    /// Windows whose loudest 20 ms are below this level, in dB of full scale, are silence: the model is not asked, all scores are 0.
    pub gate_dbfs: f32,
    /// When a word counts as said.
    pub detector: DetectorSettings,
}

impl Default for ListenSettings {
    fn default() -> Self {
        Self { hop_ms: 100, gate_dbfs: -50.0, detector: DetectorSettings::default() }
    }
}

/// What one stream was listened to so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Heard {
    /// Windows that were full.
    pub windows: u64,
    /// Of these, those that the gate held back.
    pub silent_windows: u64,
    /// Words.
    pub detections: u64,
    /// Breaks in the sound.
    pub gaps: u64,
    /// Seconds that are known to be lost in them.
    pub lost_seconds: f64,
}

/// What a [`Spotter`] answers with, ready to be taken over between two windows. Planning takes milliseconds and memory: another thread does it.
#[derive(Debug)]
pub struct Prepared {
    session: StreamSession,
    thresholds: Vec<f32>,
    tag: u64,
}

/// Makes what one spotter can take over, on any thread.
#[derive(Clone, Debug)]
pub struct Preparer {
    overlap: Result<[usize; 2], NoOverlap>,
    labels: Vec<String>,
    values: usize,
}

impl Preparer {
    /// A session of the spotter's model, thresholds, and a number by which the caller knows them.
    ///
    /// # Errors
    /// As [`Spotter::new`].
    pub fn prepare(
        &self,
        session: Arc<Session>,
        settings: &DetectorSettings,
        tag: u64,
    ) -> Result<Prepared, ListenError> {
        check_session(&session, self.values, &self.labels)?;
        let thresholds = settings.of_labels(&self.labels)?;
        // What a session allocates in its first call is allocated here.
        let mut scores = vec![0.0; self.labels.len()];
        session.scores_into(&vec![0.0; self.values], &mut scores).map_err(ModelError::from)?;
        Ok(Prepared { session: StreamSession::with_overlap(session, self.overlap.clone()), thresholds, tag })
    }
}

fn check_session(session: &Session, expected: usize, labels: &[String]) -> Result<(), ListenError> {
    let (found, scores) = (session.input_len(), session.classes());
    if expected == found && scores.max(2) == labels.len() {
        return Ok(());
    }
    Err(ListenError::Session { expected, found, labels: labels.len(), scores })
}

/// A keyword spotter for one stream of sound. Nothing is allocated once its session was called.
///
/// The session may be shared, and swapped at any time ([`Session::swap`]).
#[derive(Debug)]
pub struct Spotter {
    source_hz: u32,
    resampler: Resampler,
    /// Samples of the resampler's output that the stream has.
    taken: usize,
    stream: Stream,
    session: StreamSession,
    /// That of the [`Prepared`] in use, 0 at the beginning.
    tag: u64,
    labels: Vec<String>,
    scores: Vec<f32>,
    /// Squared amplitude below which a window is silence.
    gate: f32,
    detector: Detector,
    /// Samples at the model's rate since the beginning; negative in the silence before it.
    position: i64,
    heard: Heard,
}

impl Spotter {
    /// Listens with `session`, which is of `model`, to sound of `source_hz`.
    ///
    /// # Errors
    /// A front end of pictures or tensors, a rate that is not believed, a session of another model, a setting out of range.
    pub fn new(
        model: &Model,
        session: Arc<Session>,
        source_hz: u32,
        settings: &ListenSettings,
    ) -> Result<Self, ListenError> {
        let rate_hz = model.extractor().sound().map(|(rate_hz, _)| rate_hz);
        let hop = u64::from(settings.hop_ms) * u64::from(rate_hz.unwrap_or(0)) / 1000;
        if rate_hz.is_some() && hop == 0 {
            let (expected, found) = ("1 ms or more, and at least a sample", settings.hop_ms.to_string());
            return Err(ListenError::Setting { what: "hop_ms", expected, found });
        }
        // Of a model that hears nothing the error says so; the hop does not matter then.
        let stream = model.stream(hop.max(1) as usize).map_err(ModelError::from)?;
        check_session(&session, model.extractor().values(), model.labels())?;
        Ok(Self {
            source_hz,
            resampler: Resampler::new(source_hz, stream.rate_hz())?,
            taken: 0,
            scores: vec![0.0; model.labels().len()],
            gate: quality::power(settings.gate_dbfs),
            detector: Detector::new(model.labels(), &settings.detector)?,
            session: StreamSession::new(session, &stream),
            tag: 0,
            labels: model.labels().to_vec(),
            stream,
            position: 0,
            heard: Heard::default(),
        })
    }

    /// Takes samples from the front of `block` until a word is there; None when the block is used up.
    ///
    /// # Errors
    /// Samples so large that a feature is not finite: the window is passed over. An operator of the other engine that
    /// fails.
    pub fn next(&mut self, block: &mut &[f32]) -> Result<Option<Detection>, ListenError> {
        loop {
            let output = self.resampler.output();
            let mut rest = &output[self.taken..];
            if rest.is_empty() {
                self.taken = 0;
                if !self.resampler.take(block) {
                    return Ok(None);
                }
                continue;
            }
            let full = self.stream.next(&mut rest).map(|features| features.is_some());
            let count = output.len() - rest.len() - self.taken;
            self.taken += count;
            self.position += count as i64;
            if full.is_err() {
                self.session.skip();
            }
            if full.map_err(ModelError::from)?
                && let Some(detection) = self.window()?
            {
                self.heard.detections += 1;
                return Ok(Some(detection));
            }
        }
    }

    /// Scores the window that is full.
    fn window(&mut self) -> Result<Option<Detection>, ListenError> {
        self.heard.windows += 1;
        let rate_hz = self.stream.rate_hz();
        if quality::loudest_power(self.stream.window(), rate_hz) < self.gate {
            self.heard.silent_windows += 1;
            self.session.skip();
            self.scores.fill(0.0);
        } else {
            self.session.scores_into(self.stream.features(), &mut self.scores).map_err(ModelError::from)?;
        }
        Ok(self.detector.push(&self.scores, self.position as f64 / f64::from(rate_hz)))
    }

    /// Makes what [`Spotter::adopt`] takes.
    pub fn preparer(&self) -> Preparer {
        Preparer { overlap: self.stream.overlap(), labels: self.labels.clone(), values: self.stream.features().len() }
    }

    /// Answers with `prepared` from the next window on; what it answered with before is in `prepared` then, to be dropped where there
    /// is time. No sound is lost, no window is scored by both, and nothing is allocated.
    pub fn adopt(&mut self, prepared: &mut Prepared) {
        std::mem::swap(&mut self.session, &mut prepared.session);
        std::mem::swap(&mut self.tag, &mut prepared.tag);
        self.detector.swap_thresholds(&mut prepared.thresholds);
    }

    /// The number of what scored the last window.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The scores of the last window, not averaged; zeros where the gate held it back.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The features of the last window.
    pub fn features(&self) -> &[f32] {
        self.stream.features()
    }

    /// Sound was lost, `lost_samples` of it at the source's rate as far as that is known (0 where it is not): what comes
    /// next is not glued to what came before, and the next window is full when all of it came after the gap.
    pub fn gap(&mut self, lost_samples: u64) {
        let seconds = lost_samples as f64 / f64::from(self.source_hz);
        self.heard.gaps += 1;
        self.heard.lost_seconds += seconds;
        self.position += (seconds * f64::from(self.stream.rate_hz())).round() as i64;
        self.resampler.reset();
        self.stream.reset();
        self.session.reset();
        self.detector.reset();
        self.taken = 0;
    }

    /// Begins with a window of silence before the sound, so that a word at the very beginning of a clip is heard in every
    /// place of the window. To be called first.
    ///
    /// # Errors
    /// As [`Spotter::next`].
    pub fn lead_in(&mut self) -> Result<(), ListenError> {
        let zeros = [0.0; 256];
        let mut left = self.stream.window_samples();
        self.position = -(left as i64);
        while left > 0 {
            let mut rest = &zeros[..left.min(zeros.len())];
            left -= rest.len();
            while !rest.is_empty() {
                if self.stream.next(&mut rest).map_err(ModelError::from)?.is_some() {
                    self.heard.windows += 1;
                    self.heard.silent_windows += 1;
                    self.session.skip();
                }
            }
        }
        self.position = 0;
        Ok(())
    }

    /// Seconds of sound since the beginning, lost sound included.
    pub fn seconds(&self) -> f64 {
        self.position as f64 / f64::from(self.stream.rate_hz())
    }

    /// Samples of a window at the source's rate, rounded up.
    pub fn window_source_samples(&self) -> usize {
        let samples = self.stream.window_samples() as u64 * u64::from(self.source_hz);
        samples.div_ceil(self.stream.rate_hz().into()) as usize
    }

    /// How a window is computed from those before it, and what that saves and takes.
    ///
    /// # Errors
    /// Why each window is computed whole.
    pub fn slides(&self) -> Result<Slides, Whole> {
        self.session.slides()
    }

    /// What was heard so far.
    pub fn heard(&self) -> Heard {
        self.heard
    }

    /// The averaged scores of the last window.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }
}
