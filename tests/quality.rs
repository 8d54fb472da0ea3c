//! The checks of recorded clips on real recordings: how many good ones they refuse, and how many bad ones they find. Needs
//! the shared folder's fsdd; says so where that is absent.
#![cfg(feature = "audio-files")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use accentor::features::likeness::{Spoken, unlike};
use accentor::source::quality::{self, Problem};
use accentor::source::{self, Audio, Sample};

/// Clips of a speaker and digit, as `digit_speaker_number.wav` has it.
type Takes = BTreeMap<(String, String), Vec<Audio>>;

fn recordings() -> Option<Takes> {
    let shared = std::env::var_os("ACCENTOR_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let mut paths: Vec<_> = shared.join("data/fsdd").read_dir().ok()?.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut takes = Takes::new();
    for path in paths {
        let Some(stem) = path.file_stem().and_then(|s| s.to_str()).filter(|_| path.extension() == Some("wav".as_ref()))
        else {
            continue;
        };
        let mut parts = stem.split('_').map(String::from);
        let (Some(digit), Some(speaker)) = (parts.next(), parts.next()) else { continue };
        let Sample::Audio(audio) = source::read(&path).unwrap() else { panic!("{}", path.display()) };
        takes.entry((speaker, digit)).or_default().push(audio);
    }
    Some(takes)
}

/// As a recording that was not cut yet: half a second of faint noise on both sides.
fn uncut(audio: &Audio, rng: &mut fastrand::Rng) -> Audio {
    let mut noise = || (0..audio.rate_hz / 2).map(|_| (rng.f32() - 0.5) * 1e-3).collect::<Vec<_>>();
    let (before, after) = (noise(), noise());
    Audio { samples: [before, audio.samples.clone(), after].concat(), rate_hz: audio.rate_hz }
}

#[test]
fn good_recordings_pass_and_bad_ones_do_not() {
    let Some(takes) = recordings() else {
        println!("skipped: the shared folder with fsdd is not there");
        return;
    };
    let mut rng = fastrand::Rng::with_seed(0);
    let (mut count, mut refused) = (0, BTreeMap::<&str, usize>::new());
    let mut found = [0; 3];
    for audio in takes.values().flatten() {
        count += 1;
        let clip = uncut(audio, &mut rng);
        for problem in quality::problems(&clip) {
            let name = match problem {
                Problem::Quiet { .. } => "quiet",
                Problem::Short { .. } => "short",
                Problem::Clipped { .. } => "clipped",
                Problem::CutOff => "cut off",
                _ => "other",
            };
            *refused.entry(name).or_default() += 1;
        }
        let has = |clip: &Audio, wanted: fn(&Problem) -> bool| usize::from(quality::problems(clip).iter().any(wanted));
        // Turned up until the loudest peak would be at twice full scale; begun in the middle of the word; 50 dB softer.
        let top = clip.samples.iter().fold(0.0f32, |top, value| top.max(value.abs()));
        let changed = |of: &mut dyn FnMut(f32) -> f32| Audio {
            samples: clip.samples.iter().map(|value| of(*value)).collect(),
            rate_hz: clip.rate_hz,
        };
        found[0] += has(&changed(&mut |v| (v * 2.0 / top).clamp(-1.0, 1.0)), |p| matches!(p, Problem::Clipped { .. }));
        let voice = quality::voiced(&clip);
        let late = Audio { samples: clip.samples[(voice.start + voice.end) / 2..].to_vec(), rate_hz: clip.rate_hz };
        found[1] += has(&late, |p| matches!(p, Problem::CutOff));
        found[2] += has(&changed(&mut |v| v * 3e-3), |p| matches!(p, Problem::Quiet { .. }));
    }
    println!(
        "{count} clips, refused {refused:?}; found: clipped {}, cut off {}, quiet {}",
        found[0], found[1], found[2]
    );
    assert!(refused.values().sum::<usize>() * 100 <= count * 3, "{refused:?} of {count}");
    assert!(found.iter().all(|found| found * 100 >= count * 85), "{found:?} of {count}");
}

#[test]
fn another_word_is_unlike_the_others() {
    let Some(takes) = recordings() else {
        println!("skipped: the shared folder with fsdd is not there");
        return;
    };
    let mut rng = fastrand::Rng::with_seed(0);
    // The first takes are what is adapted with elsewhere; ten a word are enough here.
    let spoken: BTreeMap<_, Vec<Spoken>> = takes
        .iter()
        .map(|(key, clips)| (key, clips.iter().take(10).map(|clip| Spoken::of(clip).unwrap()).collect()))
        .collect();
    for size in [3, 5] {
        let (mut sets, mut alarms, mut found) = (0, 0, 0);
        for ((speaker, digit), clips) in &spoken {
            for _ in 0..5 {
                let mut set = rng.choose_multiple(clips.iter(), size);
                alarms += usize::from(unlike(&set.iter().map(|c| (*c).clone()).collect::<Vec<_>>()).is_some());
                let others = spoken.iter().filter(|((s, d), _)| s == speaker && d != digit);
                let (_, other) = rng.choose_multiple(others, 1)[0];
                set[0] = rng.choose_multiple(other.iter(), 1)[0];
                let odd = unlike(&set.iter().map(|c| (*c).clone()).collect::<Vec<_>>());
                found += usize::from(odd.is_some_and(|(place, _)| place == 0));
                sets += 1;
            }
        }
        println!("{sets} sets of {size}: {alarms} alarms at good ones, another word found in {found}");
        assert!(alarms * 100 <= sets * 5, "{alarms} of {sets} sets of {size}");
        assert!(found * 100 >= sets * 35, "{found} of {sets} sets of {size}");
    }
}
