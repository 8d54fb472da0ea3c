//! A word in the sound of the last seconds.

use std::ops::Range;

use super::recent::Recent;
use crate::model::SHIFT_MS;
use crate::source::{Audio, quality};

/// A voice that rests for so long has ended its word; within "six" or "eight" it rests for 150 ms at most.
const PAUSE_MS: usize = 250;
/// What stands around a word in its clip at least, as in `record`; the room's own sound up to a whole window teaches the model what it
/// will hear.
const MARGIN_SECONDS: f64 = 0.1;
/// A voice that is shorter is a click.
const SHORTEST_SECONDS: f64 = 0.06;
/// A word may have begun so long before its window, and may end so long behind it.
const BEYOND_SECONDS: f64 = 0.4;
/// A word is over when the voice rested for so long.
const OVER_SECONDS: f64 = 0.35;

/// A clip, and where its voice ends in the input's samples.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) clip: Audio,
    pub(super) end: u64,
}

/// Why there is no clip.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum NoClip {
    #[error("its sound is no longer in memory: say so within feedback.recent_seconds")]
    Gone,
    #[error("{0}")]
    Problem(String),
}

/// The word that was heard in the window of `window` samples that ends at `end`.
pub(super) fn heard(recent: &Recent, end: u64, window: u64) -> Result<Found, NoClip> {
    let beyond = recent.samples(BEYOND_SECONDS);
    let (from, center) = (end.saturating_sub(window + beyond), end.saturating_sub(window / 2));
    let range = from..end + beyond;
    let audio = recent.sound(range.clone());
    if (audio.samples.len() as u64) < window.min(end) {
        return Err(NoClip::Gone);
    }
    let start = end.saturating_add(beyond).min(recent.end()) - audio.samples.len() as u64;
    let away = |u: &Range<usize>| {
        let (from, to) = (start + u.start as u64, start + u.end as u64);
        if (from..to).contains(&center) { 0 } else { from.abs_diff(center).min(to.abs_diff(center)) }
    };
    let words = quality::utterances(&audio, PAUSE_MS);
    let word =
        words.iter().filter(|u| u.len() as u64 >= recent.samples(SHORTEST_SECONDS)).min_by_key(|u| (away(u), u.start));
    cut(&audio, start, &words, word, window)
}

/// The last word that ended in a stretch.
pub(super) fn last(recent: &Recent, range: Range<u64>, window: u64) -> Result<Found, NoClip> {
    let (audio, words, start) = words(recent, range);
    cut(&audio, start, &words, words.last(), window)
}

/// The first word in a stretch that is over.
pub(super) fn first_over(recent: &Recent, range: Range<u64>, window: u64) -> Option<Result<Found, NoClip>> {
    let (audio, words, start) = words(recent, range.clone());
    let word = words.first()?;
    let over = start + word.end as u64 + recent.samples(OVER_SECONDS) <= range.end.min(recent.end());
    over.then(|| cut(&audio, start, &words, Some(word), window))
}

fn words(recent: &Recent, range: Range<u64>) -> (Audio, Vec<Range<usize>>, u64) {
    let end = range.end.min(recent.end());
    let audio = recent.sound(range);
    let start = end.saturating_sub(audio.samples.len() as u64);
    let level = quality::dbfs(quality::loudest_power(&audio.samples, audio.rate_hz));
    // In silence every breath is a voice.
    let words = if level < quality::SOFTEST_DBFS { Vec::new() } else { quality::utterances(&audio, PAUSE_MS) };
    let words = words.into_iter().filter(|u| u.len() as u64 >= recent.samples(SHORTEST_SECONDS)).collect();
    (audio, words, start)
}

fn cut(
    audio: &Audio,
    start: u64,
    words: &[Range<usize>],
    word: Option<&Range<usize>>,
    window: u64,
) -> Result<Found, NoClip> {
    let silence = || NoClip::Problem("there is no word in it".into());
    let word = word.ok_or_else(silence)?;
    let samples = |seconds: f64| (seconds * f64::from(audio.rate_hz)) as usize;
    // With more around it a clip says something of its noise, with less only of the word itself: cut off it is in both.
    let around = |margin: usize| {
        let (mut from, mut to) = (word.start.saturating_sub(margin), (word.end + margin).min(audio.samples.len()));
        for other in words {
            if other.end <= word.start {
                from = from.max((other.end + word.start) / 2);
            } else if other.start >= word.end {
                to = to.min((other.start + word.end) / 2);
            }
        }
        Audio { samples: audio.samples[from..to].to_vec(), rate_hz: audio.rate_hz }
    };
    let least = samples(MARGIN_SECONDS);
    let wrong = quality::problems(&around(least)).into_iter().find(|p| !matches!(p, quality::Problem::CutOff));
    if let Some(problem) = wrong {
        return Err(NoClip::Problem(problem.to_string()));
    }
    // As much as it is moved when it is taught stands at both ends too.
    let whole = window as usize + 2 * samples(f64::from(SHIFT_MS) / 1000.0);
    let clip = around(least.max(whole.saturating_sub(word.len()) / 2));
    Ok(Found { clip, end: start + word.end as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE_HZ: u32 = 16_000;

    /// Ten seconds of faint noise with words of 400 ms that begin at these seconds.
    fn recent(words: &[f64]) -> Recent {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut samples: Vec<f32> = (0..160_000).map(|_| (rng.f32() - 0.5) * 2e-3).collect();
        for word in words {
            let from = (word * f64::from(RATE_HZ)) as usize;
            for (n, value) in samples[from..from + 6_400].iter_mut().enumerate() {
                *value += 0.3 * (n as f32 * 0.3).sin();
            }
        }
        let mut recent = Recent::new(RATE_HZ, 8.0, 0.0, 1, 0);
        recent.push(&samples);
        recent
    }

    fn at(seconds: f64) -> u64 {
        (seconds * f64::from(RATE_HZ)) as u64
    }

    #[test]
    fn the_word_of_a_window_is_found_among_others() {
        let recent = recent(&[4.0, 5.0, 6.0, 9.0]);
        // A window of a second around the word at 5.
        let found = heard(&recent, at(5.7), at(1.0)).unwrap();
        assert!(found.end.abs_diff(at(5.4)) < 400, "{}", found.end);
        // Halfway to its neighbours.
        assert!((found.clip.samples.len() as f64 / 16_000.0 - 1.0).abs() < 0.05);
        assert_eq!(heard(&recent, at(1.0), at(1.0)), Err(NoClip::Gone));
        assert!(matches!(heard(&recent, at(8.0), at(0.5)), Err(NoClip::Problem(_))));
    }

    #[test]
    fn the_last_word_and_the_first_that_is_over() {
        let recent = recent(&[4.0, 6.0, 9.5]);
        let found = last(&recent, at(3.0)..at(8.0), at(1.0)).unwrap();
        assert!(found.end.abs_diff(at(6.4)) < 400);
        assert!((found.clip.samples.len() as f64 / 16_000.0 - 1.12).abs() < 0.05);
        let first = first_over(&recent, at(3.0)..at(10.0), at(1.0)).unwrap().unwrap();
        assert!(first.end.abs_diff(at(4.4)) < 400);
        // The one at the end may go on.
        assert!(first_over(&recent, at(7.0)..at(10.0), at(1.0)).is_none());
        assert!(matches!(last(&recent, at(7.0)..at(9.0), at(1.0)), Err(NoClip::Problem(_))));
    }
}
