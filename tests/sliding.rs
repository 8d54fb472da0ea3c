//! Windows that overlap: computed by their new rows they have the bits of the whole window, whatever came before.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod recording;

use std::path::Path;
use std::sync::Arc;

use accentor::features::{Clip, FrontEnd, Mfcc, NoOverlap, Normalise};
use accentor::listen::{ListenSettings, Spotter};
use accentor::lora::Delta;
use accentor::plan::{Plan, Program, Sliding};
use accentor::{Adapter, AdapterSpec, Listener, Model, Session, Whole};

fn kws() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands")).unwrap()
}

/// The keyword model with a front end that levels nothing.
fn unlevelled() -> Model {
    let model = kws();
    let clip = Clip { normalise: Normalise::None, ..Clip::default() };
    let front_end = FrontEnd::Mfcc(Mfcc { clip, ..Mfcc::default() });
    Model::from_graph(model.graph().clone(), model.labels().to_vec(), Some(&front_end)).unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|i| (rng.f32() * 2.0 - 1.0) * (0.2 + (i as f32 / 5000.0).sin().abs())).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// An adapter that changes the answers.
fn shaken(model: &Model, seed: u64) -> Adapter {
    let mut adapter = model.new_adapter(&AdapterSpec { rank: 2, ..AdapterSpec::default() }, seed).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    for site in &mut adapter.sites {
        if let Delta::LowRank { b, .. } = &mut site.delta {
            b.iter_mut().for_each(|b| *b += (rng.f32() - 0.5) * 0.2);
        }
    }
    adapter
}

/// Every window of a stream against the whole network, with a window passed over and with a gap; the multiply-adds of a
/// window over those of a whole one, where any slides.
fn windows(model: &Model, rows: usize, hop: usize) -> Option<f64> {
    let program = Program::new(model.graph(), model.input(), model.ending().logits, &[]).unwrap();
    let whole = Plan::new(&program, &[program.input], &[program.output], false).unwrap();
    let sliding = Sliding::new(&program, rows, hop).ok()?;
    let (mut state, mut arena) = (sliding.state(), vec![0.0; whole.arena_len()]);
    let row = whole.input_len() / rows;
    let input = noise((rows + 24 * hop) * row, 3);
    for window in 0..24 {
        let window_rows = &input[window * hop * row..][..rows * row];
        match window {
            9 => state.skip(),
            16 => state.reset(),
            _ => {
                whole.forward(&[], &mut arena, window_rows).unwrap();
                let found = sliding.run(&[], &mut state, window_rows).unwrap();
                assert!(bits(found) == bits(whole.output(&arena, 0)), "hop {hop}, window {window}");
            }
        }
    }
    let share = sliding.multiply_adds() as f64 / whole.multiply_adds() as f64;
    println!(
        "hop {hop} of {rows}: {share:.3} of the multiply-adds, {} turns, {} bytes",
        sliding.turns(),
        sliding.state_bytes()
    );
    Some(share)
}

#[test]
fn rows_of_the_keyword_model_have_the_bits_of_the_whole_window() {
    let shares: Vec<_> = (1..49).map(|hop| windows(&kws(), 49, hop)).collect();
    assert!(shares[0].is_some() && shares[1].is_some() && shares[4].is_some(), "{shares:?}");
    assert!(shares[1].unwrap() < 0.6, "{shares:?}");
    assert!(shares.last().unwrap().is_none());
}

#[test]
fn public_networks_have_the_bits_of_the_whole_window() {
    for (name, rows, hops, most) in
        [("dscnn_kws", 49, [2, 4, 5], [0.6, 0.7, 1.0]), ("speech_embedding_96", 76, [8, 16, 5], [0.15, 0.3, 1.0])]
    {
        let Some(path) = recording::shared_models().map(|folder| folder.join(format!("{name}.onnx"))) else { return };
        let model = Model::open(path).unwrap();
        for (hop, most) in hops.into_iter().zip(most) {
            let share = windows(&model, rows, hop).unwrap();
            assert!(share < most, "{name}, hop {hop}: {share}");
        }
    }
}

/// The windows of `samples` in blocks, with a gap in the middle: every one against the session on the features.
fn listened(listener: &mut Listener, session: &Session, samples: &[f32]) -> usize {
    let mut windows = 0;
    for half in samples.chunks(samples.len() / 2) {
        for block in half.chunks(700) {
            let mut block = block;
            while let Some(scores) = listener.next(&mut block).unwrap().map(bits) {
                let whole = session.scores(listener.stream().features()).unwrap();
                assert!(scores == bits(&whole), "window {windows}");
                windows += 1;
            }
        }
        listener.reset();
    }
    windows
}

#[test]
fn a_listener_slides_with_merged_and_with_shared_adapters() {
    let model = unlevelled();
    let adapters = [shaken(&model, 1), shaken(&model, 2)];
    let base = model.base().unwrap();
    let samples = noise(120_000, 4);
    for hop_samples in [640, 1600] {
        for session in [
            model.session(None).unwrap(),
            model.session(Some(&adapters[0])).unwrap(),
            model.session_of(&base, None).unwrap(),
            model.session_of(&base, Some(&adapters[1])).unwrap(),
        ] {
            let session = Arc::new(session);
            let mut listener = model.listener(session.clone(), hop_samples).unwrap();
            let slides = listener.slides().unwrap();
            assert!(slides.multiply_adds < slides.whole_multiply_adds && slides.state_bytes > 0, "{slides:?}");
            assert!(listened(&mut listener, &session, &samples) > 40);
            // Another adapter in the middle of a stream.
            session.swap(&mut model.session(Some(&adapters[1])).unwrap()).unwrap();
            assert!(listened(&mut listener, &session, &samples) > 40);
        }
    }
}

#[test]
fn two_streams_share_a_session() {
    let model = unlevelled();
    let session = Arc::new(model.session(None).unwrap());
    let mut listeners = [640, 640].map(|hop| model.listener(session.clone(), hop).unwrap());
    let sounds = [noise(40_000, 5), noise(40_000, 6)];
    for at in (0..40_000).step_by(500) {
        for (listener, sound) in listeners.iter_mut().zip(&sounds) {
            let mut block = &sound[at..at + 500];
            while let Some(scores) = listener.next(&mut block).unwrap().map(bits) {
                assert!(scores == bits(&session.scores(listener.stream().features()).unwrap()), "at {at}");
            }
        }
    }
}

#[test]
fn what_cannot_slide_says_why() {
    let model = kws();
    let session = Arc::new(model.session(None).unwrap());
    let listener = model.listener(session.clone(), 1600).unwrap();
    assert!(matches!(listener.slides(), Err(Whole::FrontEnd(NoOverlap::Normalised))));
    let spotter = Spotter::new(&model, session, 16_000, &ListenSettings::default()).unwrap();
    assert!(spotter.slides().unwrap_err().to_string().contains("normalise"));

    let model = unlevelled();
    let session = Arc::new(model.session(None).unwrap());
    let slides = |hop| model.listener(session.clone(), hop).unwrap().slides();
    assert!(matches!(slides(1000), Err(Whole::FrontEnd(NoOverlap::Hop { hop_samples: 1000, frame_hop_samples: 320 }))));
    assert!(matches!(slides(16_000), Err(Whole::FrontEnd(NoOverlap::Apart { .. }))));
    let error = slides(320 * 47).unwrap_err();
    assert!(matches!(error, Whole::Network(_)) && error.to_string().contains("hop"), "{error}");
}
