//! Words in streams: the library's path from sound to events, and `accentor listen` on files and pipes.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use accentor::listen::{Detection, DetectorSettings, Event, ListenSettings, Spotter, listen};
use accentor::source::{Audio, ClipSound, Heard, PcmSound, Sample, Sound, SourceError, resample, wav_bytes};
use accentor::{Model, source};

const KWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kws-commands");
const RATE_HZ: u32 = 16_000;

/// Seconds of faint noise before each word and behind the last.
const PAUSE_SECONDS: f64 = 1.2;

/// A word is where it was said if it is detected from the beginning of its clip to this many seconds after its end: the
/// window is a second, and scores are averaged.
const LATE_SECONDS: f64 = 1.0;

/// The built-in model learned with label smoothing; of 40 single clips it takes 31 with this.
const THRESHOLD: f32 = 0.5;

fn kws() -> Model {
    Model::open(KWS).unwrap()
}

fn clip(path: &Path) -> Audio {
    match source::read(path).unwrap() {
        Sample::Audio(audio) => resample(&audio, RATE_HZ).unwrap(),
        other => panic!("{}: {other:?}", path.display()),
    }
}

/// Words said one after the other, with faint noise between, and where each is, in seconds.
struct Speech {
    samples: Vec<f32>,
    words: Vec<(String, f64, f64)>,
}

fn speech(clips_a_word: usize) -> Speech {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut speech = Speech { samples: Vec::new(), words: Vec::new() };
    let pause = (PAUSE_SECONDS * f64::from(RATE_HZ)) as usize;
    let data = source::dataset(&Path::new(KWS).join("demo/us/test")).unwrap();
    let labels = data.labels();
    let mut examples: Vec<_> =
        labels.iter().flat_map(|l| data.examples.iter().filter(move |e| e.label == *l).take(clips_a_word)).collect();
    rng.shuffle(&mut examples);
    for example in examples {
        speech.samples.extend((0..pause).map(|_| (rng.f32() - 0.5) * 1e-3));
        let start = speech.samples.len();
        speech.samples.extend(clip(&example.path).samples);
        let seconds = |samples: usize| samples as f64 / f64::from(RATE_HZ);
        speech.words.push((example.label.clone(), seconds(start), seconds(speech.samples.len())));
    }
    speech.samples.extend((0..pause).map(|_| (rng.f32() - 0.5) * 1e-3));
    speech
}

/// Words that were heard, and detections that were no word that was said there.
fn heard(speech: &Speech, found: &[(String, f64)]) -> (usize, usize) {
    let fits = |word: &(String, f64, f64), found: &(String, f64)| {
        word.0 == found.0 && (word.1..word.2 + LATE_SECONDS).contains(&found.1)
    };
    let heard = speech.words.iter().filter(|word| found.iter().any(|found| fits(word, found))).count();
    let wrong = found.iter().filter(|found| !speech.words.iter().any(|word| fits(word, found))).count();
    (heard, wrong)
}

fn spotter(model: &Model, rate_hz: u32) -> Spotter {
    let session = Arc::new(model.session(None).unwrap());
    let detector = DetectorSettings { threshold: THRESHOLD, ..DetectorSettings::default() };
    Spotter::new(model, session, rate_hz, &ListenSettings { detector, ..ListenSettings::default() }).unwrap()
}

fn events(sound: &mut dyn Sound, spotter: &mut Spotter) -> Vec<Event> {
    let mut events = Vec::new();
    listen(sound, spotter, &mut |event, _| {
        if event != Event::Idle {
            events.push(event);
        }
        true
    })
    .unwrap();
    events
}

fn detections(events: &[Event]) -> Vec<Detection> {
    let detected = |event: &Event| if let Event::Detected(found) = event { Some(*found) } else { None };
    events.iter().filter_map(detected).collect()
}

fn labelled(model: &Model, events: &[Event]) -> Vec<(String, f64)> {
    detections(events).iter().map(|d| (model.labels()[d.label].clone(), d.at_seconds)).collect()
}

#[test]
fn words_are_heard_where_they_were_said() {
    let (model, speech) = (kws(), speech(4));
    let at_model_rate = Audio { samples: speech.samples.clone(), rate_hz: RATE_HZ };
    let of = |rate_hz: u32| {
        let mut spotter = spotter(&model, rate_hz);
        let mut sound = ClipSound::new(resample(&at_model_rate, rate_hz).unwrap());
        let found = labelled(&model, &events(&mut sound, &mut spotter));
        let (heard, wrong) = heard(&speech, &found);
        println!("{rate_hz} Hz: {heard} of {} words heard, {wrong} wrong", speech.words.len());
        assert!(heard * 100 >= speech.words.len() * 75, "{heard} of {} at {rate_hz} Hz", speech.words.len());
        assert!(wrong * 100 <= speech.words.len() * 10, "{wrong} wrong of {} at {rate_hz} Hz", speech.words.len());
        let said = spotter.heard();
        assert_eq!((said.detections as usize, said.gaps), (found.len(), 0));
        assert!(said.silent_windows > 0 && said.silent_windows < said.windows);
    };
    of(RATE_HZ);
    of(48_000);
}

#[test]
fn blocks_of_any_size_give_the_same_words() {
    let (model, speech) = (kws(), speech(1));
    let mut whole = spotter(&model, RATE_HZ);
    let mut block = speech.samples.as_slice();
    let mut expected = Vec::new();
    while let Some(found) = whole.next(&mut block).unwrap() {
        expected.push(found);
    }
    assert!(expected.len() > 3, "{expected:?}");
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut pieces, mut at, mut found) = (spotter(&model, RATE_HZ), 0, Vec::new());
    while at < speech.samples.len() {
        let end = speech.samples.len().min(at + rng.usize(0..700));
        let mut block = &speech.samples[at..end];
        while let Some(detection) = pieces.next(&mut block).unwrap() {
            found.push(detection);
        }
        at = end;
    }
    assert_eq!(found, expected);
    assert_eq!(pieces.heard(), whole.heard());
}

/// A clip with a part that is lost.
struct Broken {
    before: ClipSound,
    lost_samples: Option<u64>,
    after: ClipSound,
}

impl Sound for Broken {
    fn rate_hz(&self) -> u32 {
        self.before.rate_hz()
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        match self.before.read(block)? {
            Heard::End => match self.lost_samples.take() {
                Some(lost_samples) => Ok(Heard::Gap { lost_samples }),
                None => self.after.read(block),
            },
            heard => Ok(heard),
        }
    }
}

#[test]
fn a_gap_is_told_and_not_glued_over() {
    let (model, word) = (kws(), clip(&first_clip("stop")));
    let half = word.samples.len() / 2;
    let silence = vec![0.0; RATE_HZ as usize];
    let sound = |samples: Vec<f32>| ClipSound::new(Audio { samples, rate_hz: RATE_HZ });
    let whole = || sound([&silence[..], &word.samples, &silence].concat());
    let mut ear = spotter(&model, RATE_HZ);
    let once = labelled(&model, &events(&mut whole(), &mut ear));
    assert_eq!(once.len(), 1, "{once:?}");

    // The same samples with a break in the middle of the word: glued they would be the word.
    let mut broken = Broken {
        before: sound([&silence[..], &word.samples[..half]].concat()),
        lost_samples: Some(u64::from(3 * RATE_HZ)),
        after: sound([&word.samples[half..], &silence].concat()),
    };
    let mut ear = spotter(&model, RATE_HZ);
    let found = events(&mut broken, &mut ear);
    let at_seconds = 1.0 + half as f64 / f64::from(RATE_HZ);
    assert!(found.contains(&Event::Gap { lost_seconds: 3.0, at_seconds }), "{found:?}");
    assert!(!labelled(&model, &found).iter().any(|(label, _)| label == "stop"), "{found:?}");
    assert_eq!((ear.heard().gaps, ear.heard().lost_seconds), (1, 3.0));

    // And a word behind a gap is where it was said.
    let mut broken =
        Broken { before: sound(silence.clone()), lost_samples: Some(u64::from(5 * RATE_HZ)), after: whole() };
    let found = labelled(&model, &events(&mut broken, &mut spotter(&model, RATE_HZ)));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, once[0].0);
    assert!((found[0].1 - once[0].1 - 6.0).abs() < 0.11, "{found:?} and {once:?}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let model = kws();
    let session = Arc::new(model.session(None).unwrap());
    let wrong = |settings: ListenSettings, rate_hz| {
        Spotter::new(&model, session.clone(), rate_hz, &settings).unwrap_err().to_string()
    };
    assert!(wrong(ListenSettings { hop_ms: 0, ..ListenSettings::default() }, RATE_HZ).contains("hop_ms"));
    assert!(wrong(ListenSettings::default(), 10).contains("10 Hz"));
    let detector = DetectorSettings { threshold: 2.0, ..DetectorSettings::default() };
    assert!(wrong(ListenSettings { detector, ..ListenSettings::default() }, RATE_HZ).contains("threshold"));
    let more = model.extended(&[String::from("computer")]).unwrap();
    let error = Spotter::new(&more, session, RATE_HZ, &ListenSettings::default()).unwrap_err().to_string();
    assert!(error.contains("11 labels") && error.contains("for_adapter"), "{error}");
}

fn first_clip(label: &str) -> PathBuf {
    let folder = Path::new(KWS).join("demo/us/test").join(label);
    let mut paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.swap_remove(0)
}

/// Lines of stdout, whether it went well, and stderr.
fn accentor(arguments: &[&str], stdin: &[u8]) -> (Vec<String>, bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_accentor"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    // A child that ends early does not take all of it.
    let fed = std::thread::spawn(move || drop(to.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    fed.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let lines = text(output.stdout).lines().map(String::from).collect();
    (lines, output.status.success(), text(output.stderr))
}

#[test]
fn the_command_line_hears_files_and_pipes_alike() {
    let speech = speech(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("speech.wav");
    let audio = Audio { samples: speech.samples.clone(), rate_hz: RATE_HZ };
    let wav = wav_bytes(&audio).unwrap();
    std::fs::write(&path, &wav).unwrap();
    let raw = &wav[44..];
    let path = path.to_str().unwrap();
    let (of_file, ok, stderr) =
        accentor(&["listen", "--model", KWS, "--input", path, "--threshold", "0.5", "--json"], &[]);
    assert!(ok, "{stderr}");
    let (of_pipe, ok, stderr) =
        accentor(&["listen", "--model", KWS, "--input", "-", "--threshold", "0.5", "--json"], raw);
    assert!(ok, "{stderr}");
    let parsed = |lines: &[String]| -> Vec<serde_json::Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let detected = |lines: &[serde_json::Value]| -> Vec<(String, f64)> {
        let detected = lines.iter().filter(|line| line["event"] == "detected");
        detected.map(|l| (l["label"].as_str().unwrap().into(), l["at_seconds"].as_f64().unwrap())).collect()
    };
    let (of_file, of_pipe) = (parsed(&of_file), parsed(&of_pipe));
    // A clip begins with a window of silence, a pipe does not; in both the speech begins with more than a second of noise.
    assert_eq!(detected(&of_file), detected(&of_pipe));
    let end = of_pipe.last().unwrap();
    assert_eq!(end["event"], "end");
    assert_eq!(end["detections"].as_u64().unwrap() as usize, detected(&of_pipe).len());
    assert_eq!(end["gaps"], 0);
    let (heard, wrong) = heard(&speech, &detected(&of_pipe));
    assert!(heard >= 5 && wrong <= 3, "{heard} heard, {wrong} wrong");

    let stereo: Vec<u8> = raw.chunks_exact(2).flat_map(|sample| [sample, sample].concat()).collect();
    let (of_stereo, ok, stderr) = accentor(
        &[
            "listen",
            "--model",
            KWS,
            "--input",
            "-",
            "--threshold",
            "0.5",
            "--json",
            "--channels",
            "2",
            "--seconds",
            "10",
        ],
        &stereo,
    );
    assert!(ok, "{stderr}");
    let ten = detected(&of_pipe).into_iter().filter(|(_, at)| *at < 10.0).collect::<Vec<_>>();
    assert_eq!(detected(&parsed(&of_stereo))[..ten.len()], ten);

    // A threshold that nothing reaches for one word.
    let (label, _) = detected(&of_pipe)[0].clone();
    let high = format!("{label}=1");
    let (fewer, ok, stderr) =
        accentor(&["listen", "--model", KWS, "--input", path, "--threshold", "0.5", "--threshold", &high], &[]);
    assert!(ok, "{stderr}");
    assert!(stderr.contains("no gaps"), "{stderr}");
    assert!(!fewer.is_empty() && fewer.iter().all(|line| !line.contains(&format!("  {label}  "))), "{fewer:?}");
}

#[test]
fn short_clips_are_heard_whole() {
    let mut heard = 0;
    for label in ["down", "left", "no", "right", "stop", "yes"] {
        let path = first_clip(label);
        let (lines, ok, stderr) =
            accentor(&["listen", "--model", KWS, "--input", path.to_str().unwrap(), "--threshold", "0.5"], &[]);
        assert!(ok, "{stderr}");
        heard += usize::from(lines.iter().any(|line| line.contains(label)));
    }
    assert!(heard >= 3, "{heard} of 6");
}

#[test]
fn the_command_line_names_what_is_wrong() {
    for (arguments, why) in [
        (&["--input", "nothing.wav"][..], "nothing.wav"),
        (&["--input", "-", "--rate-hz", "3"], "found 3 Hz"),
        (&["--input", "-", "--channels", "0"], "found 0"),
        (&["--input", "-", "--threshold", "loud"], "--threshold loud"),
        (&["--input", "-", "--threshold", "stopp=0.5"], "`stopp`"),
        (&["--input", "-", "--threshold", "7"], "found 7"),
        (&["--input", "-", "--hop-ms", "0"], "hop_ms"),
        (&["--input", "-", "--smooth", "0"], "smoothing_windows"),
    ] {
        let (_, ok, stderr) = accentor(&[&["listen", "--model", KWS], arguments].concat(), &[]);
        assert!(!ok && stderr.contains(why), "{arguments:?}: {stderr}");
    }
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let (_, ok, stderr) = accentor(&["listen", "--model", KWS, "--input", readme], &[]);
    assert!(!ok && stderr.contains("Cargo.toml"), "{stderr}");
    #[cfg(not(feature = "mic"))]
    for arguments in [&["devices"][..], &["record", "--label", "a", "--out", "b"], &["listen", "--model", KWS]] {
        let (_, ok, stderr) = accentor(arguments, &[]);
        assert!(!ok && stderr.contains("--features mic"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_pipe_of_another_rate_is_the_same_speech() {
    let (model, speech) = (kws(), speech(1));
    let audio = Audio { samples: speech.samples.clone(), rate_hz: RATE_HZ };
    let wav = wav_bytes(&resample(&audio, 44_100).unwrap()).unwrap();
    let mut sound = PcmSound::new(&wav[44..], 44_100, 1).unwrap();
    let found = labelled(&model, &events(&mut sound, &mut spotter(&model, 44_100)));
    let (heard, wrong) = heard(&speech, &found);
    assert!(heard >= 5 && wrong <= 3, "{heard} heard, {wrong} wrong");
}
