//! What an input said last: its sound, its words, and a window without words. Only in memory.

use std::ops::Range;
use std::time::Instant;

use crate::listen::{Detection, Heard};
use crate::source::Audio;

/// Words that feedback may still name.
const WORDS: usize = 32;
/// A word is heard up to so long after it began, and its scores fall so long after: no window in between is without words.
const AROUND_WORD_SECONDS: f64 = 2.0;

/// From this share of its threshold on a word is a near miss.
const NEAR_SHARE: f32 = 0.6;

/// A word that was heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Word {
    /// Number of its event; 0: none yet.
    pub(super) id: u64,
    /// Its index in the order of the labels.
    pub(super) label: usize,
    pub(super) score: f32,
    /// The end of its window, in samples of the input, lost ones included.
    pub(super) end: u64,
    /// The adapter that heard it.
    pub(super) tag: u64,
    /// Those of the window in which it was taken.
    pub(super) features: Vec<f32>,
    /// The example that was made of it.
    pub(super) example: Option<u64>,
}

/// A word that fell short of its threshold by little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Near {
    pub(super) label: usize,
    /// Its averaged score as a part of its threshold.
    pub(super) share: f32,
    /// The end of its window.
    pub(super) end: u64,
}

/// A window without words, drawn at random from a stretch of the sound.
#[derive(Debug, Default)]
struct Ambient {
    /// Windows of the stretch so far.
    seen: u64,
    /// When the stretch began.
    from: u64,
    /// When the window ended.
    end: u64,
    features: Vec<f32>,
    /// Windows up to here are too close to a word.
    after: u64,
}

/// Memory of one input. Nothing is allocated after it is made.
#[derive(Debug)]
pub(super) struct Recent {
    rate_hz: u32,
    /// A ring.
    sound: Vec<i16>,
    /// Samples since the beginning, lost ones included.
    end: u64,
    /// Where sound without a gap begins.
    whole_from: u64,
    words: Vec<Word>,
    next: usize,
    near: Option<Near>,
    ambient: Ambient,
    /// Samples of a stretch of which one window is drawn; 0: none is.
    ambient_samples: u64,
    rng: fastrand::Rng,
    pub(super) heard: Heard,
    pub(super) tag: u64,
    pub(super) ended: bool,
    /// When the last sound came.
    pushed: Option<Instant>,
    /// Words that nobody could be told of.
    pub(super) lost: u64,
}

impl Recent {
    pub(super) fn new(rate_hz: u32, seconds: f64, ambient_seconds: f64, features: usize, seed: u64) -> Self {
        let samples = |seconds: f64| seconds * f64::from(rate_hz);
        Self {
            rate_hz,
            sound: vec![0; (samples(seconds) as usize).max(1)],
            end: 0,
            whole_from: 0,
            words: vec![Word { features: vec![0.0; features], ..Word::default() }; WORDS],
            next: 0,
            near: None,
            ambient: Ambient { features: vec![0.0; features], ..Ambient::default() },
            ambient_samples: samples(ambient_seconds) as u64,
            rng: fastrand::Rng::with_seed(seed),
            heard: Heard::default(),
            tag: 0,
            ended: false,
            pushed: None,
            lost: 0,
        }
    }

    pub(super) fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Samples since the beginning, lost ones included.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn push(&mut self, block: &[f32]) {
        self.pushed = Some(Instant::now());
        let len = self.sound.len() as u64;
        for value in block {
            self.sound[(self.end % len) as usize] = (value * 32768.0) as i16;
            self.end += 1;
        }
    }

    pub(super) fn gap(&mut self, lost_samples: u64) {
        self.end += lost_samples;
        self.whole_from = self.end;
    }

    pub(super) fn word(&mut self, id: u64, found: &Detection, tag: u64, features: &[f32]) {
        let end = self.samples(found.at_seconds);
        let word = &mut self.words[self.next];
        (word.id, word.label, word.score, word.end, word.tag) = (id, found.label, found.score, end, tag);
        word.example = None;
        word.features.copy_from_slice(features);
        self.next = (self.next + 1) % WORDS;
        self.no_ambient_around(end);
    }

    /// An example was made of a word.
    pub(super) fn taken(&mut self, id: u64, example: u64) {
        self.words.iter_mut().filter(|word| word.id == id).for_each(|word| word.example = Some(example));
    }

    /// Whether the last sound came longer ago than that.
    pub(super) fn is_stale(&self, seconds: f64) -> bool {
        self.ended || self.pushed.is_none_or(|at| at.elapsed().as_secs_f64() > seconds)
    }

    /// There was a word that ended about here.
    pub(super) fn no_ambient_around(&mut self, end: u64) {
        let around = self.samples(AROUND_WORD_SECONDS);
        self.ambient.after = end + around;
        if self.ambient.seen > 0 && self.ambient.end + around > end {
            self.ambient.seen = 0;
        }
    }

    /// The last word that fell short of its threshold by little.
    pub(super) fn near(&self) -> Option<Near> {
        self.near
    }

    /// The label that is closest to its threshold in the window that ends now.
    pub(super) fn closest(&mut self, label: usize, share: f32) {
        let fades = self.samples(AROUND_WORD_SECONDS);
        let better = self.near.is_none_or(|near| share > near.share || near.end + fades < self.end);
        if (NEAR_SHARE..1.0).contains(&share) && better {
            self.near = Some(Near { label, share, end: self.end });
        }
    }

    /// A window that was neither silent nor a word; it ends now.
    pub(super) fn window(&mut self, features: &[f32]) {
        if self.ambient_samples == 0 || self.end < self.ambient.after || self.ambient_is_drawn() {
            return;
        }
        self.ambient.seen += 1;
        if self.rng.u64(0..self.ambient.seen) == 0 {
            self.ambient.end = self.end;
            self.ambient.features.copy_from_slice(features);
        }
    }

    fn ambient_is_drawn(&self) -> bool {
        self.ambient.seen > 0 && self.end - self.ambient.from >= self.ambient_samples
    }

    /// The window without words of the last stretch, once feedback could have said that there was one.
    pub(super) fn take_ambient(&mut self, after_seconds: f64) -> Option<Vec<f32>> {
        if !self.ambient_is_drawn() || self.end - self.ambient.end < self.samples(after_seconds) {
            return None;
        }
        self.ambient.seen = 0;
        self.ambient.from = self.end;
        Some(self.ambient.features.clone())
    }

    /// The word with that number, or the last one.
    pub(super) fn find(&self, id: Option<u64>) -> Option<&Word> {
        let known = self.words.iter().filter(|word| word.id > 0 && id.is_none_or(|id| word.id == id));
        known.max_by_key(|word| word.id)
    }

    /// Sound without a gap between two places, as much of it as is still there.
    pub(super) fn sound(&self, range: Range<u64>) -> Audio {
        let len = self.sound.len() as u64;
        let from = range.start.max(self.whole_from).max(self.end.saturating_sub(len));
        let to = range.end.min(self.end);
        let samples = (from..to).map(|at| f32::from(self.sound[(at % len) as usize]) / 32768.0).collect();
        Audio { samples, rate_hz: self.rate_hz }
    }

    pub(super) fn samples(&self, seconds: f64) -> u64 {
        (seconds * f64::from(self.rate_hz)).round().max(0.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent() -> Recent {
        Recent::new(1000, 2.0, 10.0, 2, 0)
    }

    fn detection(label: usize, at_seconds: f64) -> Detection {
        Detection { label, score: 0.9, at_seconds }
    }

    #[test]
    fn the_last_seconds_are_there_and_no_gap_is_glued_over() {
        let mut recent = recent();
        for block in 0..50 {
            recent.push(&vec![block as f32 / 100.0; 100]);
        }
        assert_eq!(recent.end(), 5000);
        let sound = recent.sound(0..u64::MAX);
        assert_eq!((sound.samples.len(), sound.rate_hz), (2000, 1000));
        assert!((sound.samples[0] - 0.3).abs() < 1e-4 && (sound.samples[1999] - 0.49).abs() < 1e-4);
        recent.gap(500);
        recent.push(&[0.5; 300]);
        assert_eq!(recent.sound(0..u64::MAX).samples.len(), 300);
        assert_eq!(recent.sound(0..5000).samples.len(), 0);
        assert_eq!(recent.sound(5600..5700).samples.len(), 100);
    }

    #[test]
    fn feedback_names_a_word_or_the_last() {
        let mut recent = recent();
        assert!(recent.find(None).is_none());
        for id in 1..=40 {
            recent.word(id, &detection(id as usize % 3, id as f64), 7, &[id as f32, 0.0]);
        }
        let last = recent.find(None).unwrap();
        assert_eq!((last.id, last.end, last.tag, last.features[0]), (40, 40_000, 7, 40.0));
        assert_eq!(recent.find(Some(9)).unwrap().label, 0);
        assert!(recent.find(Some(8)).is_none() && recent.find(Some(41)).is_none());
    }

    #[test]
    fn a_window_without_words_is_drawn_and_none_near_a_word() {
        let mut recent = recent();
        let listen = |recent: &mut Recent, seconds: usize, value: f32| {
            for _ in 0..seconds * 10 {
                recent.push(&[0.1; 100]);
                recent.window(&[value, value]);
            }
        };
        listen(&mut recent, 9, 1.0);
        assert_eq!(recent.take_ambient(0.0), None);
        listen(&mut recent, 1, 1.0);
        assert_eq!(recent.take_ambient(60.0), None);
        assert_eq!(recent.take_ambient(0.0), Some(vec![1.0, 1.0]));
        assert_eq!(recent.take_ambient(0.0), None);
        // A word: what was drawn before it goes, and windows behind it are passed over for a while.
        listen(&mut recent, 1, 2.0);
        recent.word(1, &detection(0, 11.0), 0, &[0.0; 2]);
        listen(&mut recent, 1, 3.0);
        listen(&mut recent, 10, 4.0);
        assert_eq!(recent.take_ambient(0.0), Some(vec![4.0, 4.0]));
    }
}
