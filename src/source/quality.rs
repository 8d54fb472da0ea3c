//! Levels of sound, and what is wrong with a recorded clip.
//!
//! The limits were tried on the 2,000 real recordings of the Free Spoken Digit Dataset, which somebody listened to and kept:
//! docs/microphone.md has how many of them each check would have refused.

use std::fmt;
use std::ops::Range;

use super::Audio;

/// Stretches a second over which a level is measured: 20 ms each.
const LEVELS_A_SECOND: u32 = 50;

/// Stretches a second by which voice is found: 10 ms each.
const FRAMES_A_SECOND: u32 = 100;

/// A frame is voice from this many times the noise between words on (10 dB) …
const OVER_NOISE: f32 = 10.0;

/// … and not where it is this much softer than the loudest one (30 dB): breath and room.
const UNDER_LOUDEST: f32 = 1e-3;

/// Noise that is less than this much below the loudest frame (10 dB) is not noise: a clip without pauses.
const NOISE_AT_MOST: f32 = 0.1;

/// Frames that are kept before and behind the voice: soft beginnings and ends of words.
const MARGIN: usize = 10;

/// A voiced part below this is no word, in ms: "up" and "it" take 120 and more.
const SHORTEST_MS: u32 = 100;

/// Softest loudest 20 ms, in dB of full scale: 16 bits have 46 dB below it.
pub(crate) const SOFTEST_DBFS: f32 = -45.0;

/// From this magnitude on a sample is at the stop.
const AT_STOP: f32 = 0.995;

/// So many samples in a row at the stop are cut off; a loud peak that was not has one or two.
const CUT_OFF: usize = 4;

/// Share of the voiced samples that may be cut off.
const CLIPPED_SHARE: f32 = 1e-3;

/// What is wrong with a clip.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// Nothing but noise, or a voice too far away.
    Quiet {
        /// Level of the loudest 20 ms, in dB of full scale.
        dbfs: f32,
    },
    /// The voiced part is too short for a word.
    Short {
        /// Its length, in ms.
        ms: u32,
    },
    /// Peaks are cut off.
    Clipped {
        /// Share of the voiced samples.
        share: f32,
    },
    /// The voice is there from the beginning on, or up to the end.
    CutOff,
    /// Another word than in the other clips, or said in another way.
    Unlike {
        /// How many times as far from the others as they are from each other.
        ratio: f32,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quiet { dbfs } if *dbfs < -90.0 => f.write_str("silence: is the microphone muted?"),
            Self::Quiet { dbfs } => write!(
                f,
                "too soft ({dbfs:.0} dB of full scale, at least {SOFTEST_DBFS:.0} are needed): speak louder or closer, or turn \
                 the microphone up"
            ),
            Self::Short { ms } => {
                write!(f, "no word in it ({ms} ms of sound, at least {SHORTEST_MS} are needed): speak after the beep")
            }
            Self::Clipped { share } => {
                write!(
                    f,
                    "too loud ({:.1}% of it is cut off): turn the microphone down or go farther away",
                    share * 100.0
                )
            }
            Self::CutOff => f.write_str("the word is cut off: begin after the beep, and be done before the end"),
            Self::Unlike { ratio } => {
                write!(
                    f,
                    "unlike the others ({ratio:.1} times as far from them as they are from each other): was it the same word?"
                )
            }
        }
    }
}

/// The mean square of a sound at a level in dB of full scale.
pub fn power(dbfs: f32) -> f32 {
    10f32.powf(dbfs / 10.0)
}

/// The level of a mean square, in dB of full scale; of silence, minus infinity.
pub fn dbfs(power: f32) -> f32 {
    10.0 * power.log10()
}

/// The mean square of the loudest 20 ms.
pub fn loudest_power(samples: &[f32], rate_hz: u32) -> f32 {
    samples.chunks((rate_hz / LEVELS_A_SECOND).max(1) as usize).map(mean_square).fold(0.0, f32::max)
}

fn mean_square(samples: &[f32]) -> f32 {
    super::dot(samples, samples) / samples.len().max(1) as f32
}

/// The part of the clip that is louder than its noise, without margins; empty where none is.
///
/// The noise is what a tenth of the frames is softer than.
pub fn voiced(audio: &Audio) -> Range<usize> {
    match utterances(audio, usize::MAX).first() {
        Some(whole) => whole.clone(),
        None => 0..0,
    }
}

/// The voiced parts of a clip, as in [`voiced`], cut where the voice rests for `pause_ms` and more.
pub fn utterances(audio: &Audio, pause_ms: usize) -> Vec<Range<usize>> {
    let frame = (audio.rate_hz / FRAMES_A_SECOND).max(1) as usize;
    let powers: Vec<f32> = audio.samples.chunks_exact(frame).map(mean_square).collect();
    let mut sorted = powers.clone();
    sorted.sort_by(f32::total_cmp);
    let (Some(noise), Some(loudest)) = (sorted.get(sorted.len() / 10), sorted.last()) else { return Vec::new() };
    let threshold = (noise * OVER_NOISE).min(loudest * NOISE_AT_MOST).max(loudest * UNDER_LOUDEST);
    let pause = pause_ms / (1000 / FRAMES_A_SECOND) as usize;
    let mut found: Vec<Range<usize>> = Vec::new();
    let voice = |(_, power): &(usize, &f32)| **power > 0.0 && **power >= threshold;
    for (at, _) in powers.iter().enumerate().filter(voice) {
        let samples = at * frame..(at + 1) * frame;
        match found.last_mut() {
            Some(last) if at - last.end / frame < pause => last.end = samples.end,
            _ => found.push(samples),
        }
    }
    found
}

/// The clip cut to its voiced part and a tenth of a second on both sides.
pub fn trimmed(audio: &Audio) -> Audio {
    let margin = MARGIN * (audio.rate_hz / FRAMES_A_SECOND).max(1) as usize;
    let voice = voiced(audio);
    let end = (voice.end + margin).min(audio.samples.len());
    Audio { samples: audio.samples[voice.start.saturating_sub(margin)..end].to_vec(), rate_hz: audio.rate_hz }
}

/// What is wrong with a clip by itself, before it is trimmed.
pub fn problems(audio: &Audio) -> Vec<Problem> {
    let level = dbfs(loudest_power(&audio.samples, audio.rate_hz));
    if level < SOFTEST_DBFS || level.is_nan() {
        return vec![Problem::Quiet { dbfs: level }];
    }
    let voice = voiced(audio);
    let ms = (voice.len() as u64 * 1000 / u64::from(audio.rate_hz.max(1))) as u32;
    let mut found = Vec::new();
    if ms < SHORTEST_MS {
        found.push(Problem::Short { ms });
    }
    let frame = (audio.rate_hz / FRAMES_A_SECOND).max(1) as usize;
    if voice.start < frame || voice.end + 2 * frame > audio.samples.len() {
        found.push(Problem::CutOff);
    }
    let stopped = audio.samples.chunk_by(|a, b| at_stop(*a) == at_stop(*b) && a.signum() == b.signum());
    let cut: usize = stopped.filter(|run| run.len() >= CUT_OFF && at_stop(run[0])).map(<[f32]>::len).sum();
    let share = cut as f32 / voice.len().max(1) as f32;
    if share > CLIPPED_SHARE {
        found.push(Problem::Clipped { share });
    }
    found
}

fn at_stop(sample: f32) -> bool {
    sample.abs() >= AT_STOP
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE_HZ: u32 = 16_000;

    /// Two seconds of faint noise with a tone of this length and amplitude from 0.5 s on.
    fn clip(tone_ms: usize, amplitude: f32) -> Audio {
        let mut rng = fastrand::Rng::with_seed(1);
        let tone = 8_000..8_000 + tone_ms * 16;
        let at = |n: usize| {
            let noise = (rng.f32() - 0.5) * 2e-3;
            let tone = if tone.contains(&n) { amplitude * (n as f32 * 0.3).sin() } else { 0.0 };
            (noise + tone).clamp(-1.0, 1.0)
        };
        Audio { samples: (0..32_000).map(at).collect(), rate_hz: RATE_HZ }
    }

    #[test]
    fn a_good_clip_is_trimmed_and_has_no_problem() {
        let clip = clip(400, 0.3);
        assert_eq!(problems(&clip), []);
        assert_eq!(voiced(&clip), 8_000..14_400);
        let cut = trimmed(&clip);
        assert_eq!(cut.samples[..], clip.samples[6_400..16_000]);
    }

    #[test]
    fn each_problem_is_found() {
        let kinds = |audio: &Audio| problems(audio).iter().map(std::mem::discriminant).collect::<Vec<_>>();
        let kind = |problem: Problem| std::mem::discriminant(&problem);
        let quiet = kind(Problem::Quiet { dbfs: 0.0 });
        assert_eq!(kinds(&clip(400, 0.004)), [quiet]);
        assert_eq!(kinds(&Audio { samples: vec![0.0; 32_000], rate_hz: RATE_HZ }), [quiet]);
        assert_eq!(kinds(&Audio { samples: vec![], rate_hz: RATE_HZ }), [quiet]);
        assert_eq!(kinds(&clip(60, 0.3)), [kind(Problem::Short { ms: 0 })]);
        assert_eq!(kinds(&clip(400, 1.3)), [kind(Problem::Clipped { share: 0.0 })]);
        assert_eq!(kinds(&clip(400, 0.99)), []);
        assert_eq!(kinds(&clip(1_600, 0.3)), [kind(Problem::CutOff)]);
        let mut late = clip(400, 0.3);
        late.samples.drain(..9_000);
        assert_eq!(kinds(&late), [kind(Problem::CutOff)]);
    }

    #[test]
    fn two_words_are_told_apart_by_the_pause_between_them() {
        let mut both = clip(400, 0.3);
        both.samples.extend(clip(300, 0.1).samples);
        // A closure within a word.
        both.samples[10_000..11_600].fill(1e-4);
        assert_eq!(utterances(&both, 250), [8_000..14_400, 40_000..44_800]);
        assert_eq!(utterances(&both, 50), [8_000..10_080, 11_520..14_400, 40_000..44_800]);
        assert_eq!(voiced(&both), 8_000..44_800);
        assert_eq!(utterances(&Audio { samples: vec![0.0; 32_000], rate_hz: RATE_HZ }, 250), []);
    }

    #[test]
    fn levels() {
        assert!((dbfs(power(-37.0)) + 37.0).abs() < 1e-3);
        let sine = Audio { samples: (0..1600).map(|n| (n as f32 * 0.3).sin()).collect(), rate_hz: RATE_HZ };
        assert!((dbfs(loudest_power(&sine.samples, RATE_HZ)) + 3.01).abs() < 0.1);
        assert_eq!(dbfs(loudest_power(&[], RATE_HZ)), f32::NEG_INFINITY);
    }
}
