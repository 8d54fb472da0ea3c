//! Many adapters on one base, and adapters that change while others call.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod recording;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use accentor::graph::{Choice, SiteKind};
use accentor::lora::Delta;
use accentor::source::{Audio, Sample};
use accentor::{Adapter, AdapterSpec, Model, Session};
use recording::{Recording, largest_error};

/// Relative, of the largest logit: the pair is summed by itself, in another order than in a merged weight, over some ten layers.
const TOLERANCE: f64 = 2e-5;

fn kws() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands")).unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

/// An adapter that changes the answers.
fn trained(model: &Model, spec: &AdapterSpec, seed: u64) -> Adapter {
    let mut adapter = model.new_adapter(spec, seed).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut shake = |values: &mut Vec<f32>| values.iter_mut().for_each(|v| *v += (rng.f32() - 0.5) * 0.2);
    for site in &mut adapter.sites {
        match &mut site.delta {
            Delta::LowRank { b, .. } => shake(b),
            Delta::ScaleShift { scale, shift } => [scale, shift].into_iter().for_each(&mut shake),
            Delta::Full { weight, bias } => [Some(weight), bias.as_mut()].into_iter().flatten().for_each(&mut shake),
        }
    }
    adapter
}

fn sites(pattern: &str) -> AdapterSpec {
    AdapterSpec { sites: Choice::parse(pattern).unwrap(), ..AdapterSpec::default() }
}

#[test]
fn every_recording_runs_beside_the_shared_weights() {
    let mut kinds = Vec::new();
    for name in recording::names().into_iter().filter(|name| name.ends_with("-b3")) {
        let recording = Recording::read(&name);
        if recording.meta.shared {
            continue;
        }
        let model = recording.open(&recording.onnx().unwrap());
        let (start, base, examples) = (recording.start(&model), model.base().unwrap(), recording.examples());
        let frozen = (model.session(None).unwrap(), model.session_of(&base, None).unwrap());
        let adapted = (model.session(Some(&start)).unwrap(), model.session_of(&base, Some(&start)).unwrap());
        for i in 0..examples.len() {
            let logits = |session: &Session| session.logits(examples.input(i, 0)).unwrap();
            assert_eq!(logits(&frozen.0), logits(&frozen.1), "{name}");
            let (expected, found) = (logits(&adapted.0), logits(&adapted.1));
            assert!(largest_error(&found, &expected) < TOLERANCE, "{name}: {}", largest_error(&found, &expected));
            assert!(largest_error(&found, &logits(&frozen.0)) > 100.0 * TOLERANCE, "{name}: the adapter does nothing");
        }
        kinds.extend(model.sites().iter().map(|site| site.kind));
    }
    for kind in [SiteKind::Conv, SiteKind::Dense, SiteKind::Depthwise, SiteKind::Recurrent, SiteKind::Embedding] {
        assert!(kinds.contains(&kind), "no recording has a {kind:?}");
    }
}

#[test]
fn adapters_of_other_sites_and_ranks_share_one_base() {
    let model = kws();
    let base = model.base().unwrap();
    let keys: Vec<String> = model.sites().into_iter().map(|site| site.key).collect();
    let one = |key: &str| sites(&format!("^{}$", key.replace('.', "\\.")));
    let mut adapters = vec![
        trained(&model, &AdapterSpec::default(), 1),
        trained(&model, &AdapterSpec { rank: 1, alpha: 2.0, ..AdapterSpec::default() }, 2),
        trained(&model, &AdapterSpec { rank: 1000, ..AdapterSpec::default() }, 3),
        trained(&model, &AdapterSpec { head: true, ..AdapterSpec::default() }, 4),
        trained(&model, &AdapterSpec { head: true, sites: Choice::None, ..AdapterSpec::default() }, 5),
    ];
    adapters.extend(keys.iter().enumerate().map(|(i, key)| trained(&model, &one(key), 10 + i as u64)));
    let sessions: Vec<(Session, Session)> = adapters
        .iter()
        .map(|adapter| (model.session(Some(adapter)).unwrap(), model.session_of(&base, Some(adapter)).unwrap()))
        .collect();
    let frozen = (model.session(None).unwrap(), model.session_of(&base, None).unwrap());
    for seed in 0..4 {
        let x = noise(frozen.0.input_len(), seed);
        for (i, (merged, beside)) in sessions.iter().enumerate() {
            let error = largest_error(&beside.logits(&x).unwrap(), &merged.logits(&x).unwrap());
            assert!(error < TOLERANCE, "adapter {i}: {error}");
            assert_eq!(frozen.0.logits(&x).unwrap(), frozen.1.logits(&x).unwrap(), "none, between the others");
        }
    }
    assert_eq!(frozen.1.own_bytes(), 0);
    let values = adapters[0].parameters() * size_of::<f32>();
    // A depthwise layer's own taps are nine of its scale.
    assert!(sessions[0].1.own_bytes() < 3 * values, "{} bytes for {values}", sessions[0].1.own_bytes());
    assert!(sessions[0].1.multiply_adds() > frozen.1.multiply_adds());
}

#[test]
fn an_adapter_with_its_own_classes_wants_its_own_base() {
    let model = kws();
    let wider = model.extended(&[String::from("computer")]).unwrap();
    let adapter = trained(&wider, &AdapterSpec::default(), 1);
    assert!(model.session_of(&model.base().unwrap(), Some(&adapter)).is_err());
    let own = model.for_adapter(&adapter).unwrap();
    let beside = own.session_of(&own.base().unwrap(), Some(&adapter)).unwrap();
    let merged = model.session(Some(&adapter)).unwrap();
    let x = noise(merged.input_len(), 1);
    assert!(largest_error(&beside.logits(&x).unwrap(), &merged.logits(&x).unwrap()) < TOLERANCE);

    let mut beside = beside;
    assert!(model.session(None).unwrap().swap(&mut beside).is_err(), "11 scores for 10");
}

#[test]
fn answers_are_those_of_one_adapter_while_it_is_swapped() {
    const SWAPS: usize = 1000;
    let model = kws();
    let base = model.base().unwrap();
    let adapters = [trained(&model, &AdapterSpec::default(), 1), trained(&model, &AdapterSpec::default(), 2)];
    let x = noise(model.new_examples(1).input_len(), 7);
    // Merged, and beside one base: both kinds of session are swapped.
    for merged in [true, false] {
        let open = |adapter| match merged {
            true => model.session(Some(adapter)).unwrap(),
            false => model.session_of(&base, Some(adapter)).unwrap(),
        };
        let answers = [&adapters[0], &adapters[1]].map(|adapter| open(adapter).scores(&x).unwrap());
        assert_ne!(answers[0], answers[1]);
        let (session, mut other) = (open(&adapters[0]), open(&adapters[1]));
        let (done, seen) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
        let calls = || seen.iter().map(|seen| seen.load(Ordering::Relaxed)).sum::<usize>();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut scores = vec![0.0; session.classes()];
                    while !done.load(Ordering::Relaxed) {
                        session.scores_into(&x, &mut scores).unwrap();
                        let which = answers.iter().position(|answer| *answer == scores).expect("one of the two");
                        seen[which].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for swap in 0..SWAPS {
                // Some calls begin between two swaps.
                let before = calls();
                while swap % 7 == 0 && calls() < before + 3 {
                    std::thread::yield_now();
                }
                session.swap(&mut other).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) > 10), "both were heard: {seen:?}");
        assert_eq!(session.scores(&x).unwrap(), answers[SWAPS % 2]);
    }
}

#[test]
fn a_listener_scores_each_window_as_a_clip() {
    const HOP: usize = 1600;
    let model = kws();
    let adapter = trained(&model, &AdapterSpec::default(), 1);
    let session = Arc::new(model.session_of(&model.base().unwrap(), Some(&adapter)).unwrap());
    let sound: Vec<f32> = noise(30_000, 3).iter().enumerate().map(|(i, v)| v * (i as f32 / 30_000.0)).collect();
    let window = |k: usize| {
        let samples = sound[k * HOP..k * HOP + 16_000].to_vec();
        session.scores(&model.features(&Sample::Audio(Audio { samples, rate_hz: 16_000 })).unwrap()).unwrap()
    };
    let mut listener = model.listener(session.clone(), HOP).unwrap();
    assert!(!listener.stream().keeps_frames(), "divided by the largest sample of the window");
    let mut heard = 0;
    for block in sound.chunks(700) {
        let mut rest = block;
        while let Some(scores) = listener.next(&mut rest).unwrap() {
            assert_eq!(scores, window(heard));
            heard += 1;
        }
    }
    assert_eq!(heard, (30_000 - 16_000) / HOP + 1);
    assert!(model.listener(session, 0).is_err());
}
