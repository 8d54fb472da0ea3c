//! A training step and an inference call allocate nothing, on one thread and on two; nor does listening.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod recording;

use std::alloc::System;
use std::sync::Arc;

use accentor::features::{Clip, FrontEnd, Mfcc, Normalise};
use accentor::graph::Op;
use accentor::listen::{ListenSettings, Spotter, listen};
use accentor::source::{Heard, Sound, SourceError};
use accentor::{AdapterSpec, CacheFormat, CacheOptions, Model};
use recording::Recording;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// rayon's queue of calls from outside allocates once in 63 of them: many more steps than that are counted.
const STEPS: usize = 150;

/// A thread that starts or ends meanwhile, or gets its first job late, allocates its own state: what `f` itself allocates is
/// there each time.
const TRIES: usize = 5;

/// The fewest calls of the allocator, on all threads, during `f`.
fn allocations(mut f: impl FnMut()) -> usize {
    let count = || {
        let stats = ALLOCATOR.stats();
        stats.allocations + stats.reallocations
    };
    let mut least = usize::MAX;
    for _ in 0..TRIES {
        let before = count();
        f();
        least = least.min(count() - before);
        if least == 0 {
            break;
        }
    }
    least
}

/// Calls of a step, and of a call of inference merged and unmerged, after the first.
fn counted(model: &Model, threads: usize, options: &CacheOptions, steps: usize) -> [usize; 3] {
    let adapter = model.new_adapter(&AdapterSpec { rank: 2, alpha: 4.0, ..AdapterSpec::default() }, 0).unwrap();
    let mut examples = model.new_examples(1);
    let mut rng = fastrand::Rng::with_seed(0);
    for _ in 0..6 {
        let input: Vec<f32> = (0..examples.input_len()).map(|_| rng.f32()).collect();
        examples.push(&input, 0).unwrap();
    }
    let mut logits = vec![0.0; model.session(None).unwrap().classes()];
    let base = model.base().unwrap();
    let sessions = [model.session(Some(&adapter)).unwrap(), model.session_of(&base, Some(&adapter)).unwrap()];
    let inference = sessions.map(|session| {
        session.logits_into(examples.input(0, 0), &mut logits).unwrap();
        allocations(|| (0..6).for_each(|i| session.logits_into(examples.input(i, 0), &mut logits).unwrap()))
    });
    let mut trainer = model.trainer(adapter, threads).unwrap();
    let cached = trainer.cache_as(&examples, options).unwrap();
    let clips: Vec<_> = (0..6).map(|i| (cached.input(i, 0), cached.target(i))).collect();
    trainer.set_clip_norm(Some(1.0));
    let step = trainer.on_own_threads(|trainer| {
        trainer.step(&clips, 1e-3).unwrap();
        allocations(|| (0..steps).for_each(|_| assert!(trainer.step(&clips, 1e-3).unwrap().is_finite())))
    });
    [step, inference[0], inference[1]]
}

/// The same block again and again, with gaps between.
struct Loop {
    block: Vec<f32>,
    reads: usize,
}

impl Sound for Loop {
    fn rate_hz(&self) -> u32 {
        48_000
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        self.reads += 1;
        if self.reads.is_multiple_of(200) {
            return Ok(Heard::Gap { lost_samples: 480 });
        }
        let count = block.len().min(self.block.len());
        block[..count].copy_from_slice(&self.block[..count]);
        Ok(Heard::Samples(count))
    }
}

/// Calls of the audio path, from the samples to the words, after its first windows; and windows and gaps that it had.
fn streamed(model: &Model, sliding: bool) -> (usize, u64, u64) {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut sound = Loop { block: (0..700).map(|_| rng.f32() - 0.5).collect(), reads: 0 };
    let session = Arc::new(model.session(None).unwrap());
    let mut spotter = Spotter::new(model, session, sound.rate_hz(), &ListenSettings::default()).unwrap();
    assert_eq!(spotter.slides().is_ok(), sliding);
    let mut run = |reads: usize| {
        let mut left = reads;
        listen(&mut sound, &mut spotter, &mut |_, _| {
            left -= 1;
            left > 0
        })
        .unwrap();
    };
    run(300);
    let found = allocations(|| run(1000));
    assert_eq!(spotter.heard().silent_windows, 0);
    (found, spotter.heard().windows, spotter.heard().gaps)
}

/// The same of the daemon's audio path, with words, gaps and a new adapter in it; and the words.
#[cfg(all(feature = "serve", unix))]
fn daemons_path(model: &Model) -> (usize, usize) {
    use accentor::serve::{AudioPath, Config};
    let config: Config = toml::from_str("model = \"m\"\n[guard]\nambient_seconds = 5.0").unwrap();
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands/demo/us/test");
    let clips: Vec<Vec<f32>> = accentor::source::dataset(&demo).unwrap().examples[..40]
        .iter()
        .map(|example| match accentor::source::read(&example.path).unwrap() {
            accentor::source::Sample::Audio(clip) => accentor::source::resample(&clip, 16_000).unwrap().samples,
            other => panic!("{other:?}"),
        })
        .collect();
    let session = || Arc::new(model.session(None).unwrap());
    let (mut path, swap) = AudioPath::new(model, session(), 16_000, &config).unwrap();
    let rest = [0.0; 12_000];
    let mut words = 0;
    let mut hear = |path: &mut AudioPath| {
        for clip in &clips {
            clip.chunks(1024).for_each(|block| path.hear(block));
            rest.chunks(1024).for_each(|block| path.hear(block));
            while path.word().is_some() {
                words += 1;
            }
        }
        path.gap(100);
    };
    hear(&mut path);
    swap.to(session(), 1).unwrap();
    let found = allocations(|| hear(&mut path));
    assert_eq!(path.tag(), 1);
    (found, words)
}

// One test alone: the counter is of the process.
#[test]
fn a_step_and_a_call_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let own = Model::open(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands")).unwrap();
    for threads in [1, 2] {
        for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Int8] {
            for folder in [None, Some(folder.path().to_owned())] {
                let options = CacheOptions { format, folder };
                assert_eq!(counted(&own, threads, &options, STEPS), [0; 3], "{threads} threads, {options:?}");
            }
        }
    }
    // One that levels each window, and one whose windows are computed by their new rows.
    let clip = Clip { normalise: Normalise::None, ..Clip::default() };
    let front_end = FrontEnd::Mfcc(Mfcc { clip, ..Mfcc::default() });
    let slides = Model::from_graph(own.graph().clone(), own.labels().to_vec(), Some(&front_end)).unwrap();
    for (model, sliding) in [(&own, false), (&slides, true)] {
        let (found, windows, gaps) = streamed(model, sliding);
        assert_eq!(found, 0, "the audio path, sliding {sliding}");
        assert!(windows > 100 && gaps > 4, "{windows} windows, {gaps} gaps");
        #[cfg(all(feature = "serve", unix))]
        {
            let (found, words) = daemons_path(model);
            assert_eq!(found, 0, "the daemon's audio path, sliding {sliding}");
            assert!(sliding || words > 10, "{words} words");
        }
    }
    let (mut tried, mut wrong) = (0, Vec::new());
    for name in recording::names().into_iter().filter(|name| name.ends_with("-b3")) {
        let recording = Recording::read(&name);
        // A public model that lies in the shared folder, if there is one.
        let Some(path) = recording.onnx() else { continue };
        let model = recording.open(&path);
        // Operators of the other engine take and give vectors of their own.
        if model.graph().nodes.iter().any(|node| matches!(node.op, Op::Foreign(_))) {
            continue;
        }
        for threads in [1, 2] {
            let found = counted(&model, threads, &CacheOptions::default(), 5);
            if found != [0; 3] {
                wrong.push(format!("{name}, {threads} threads: step, merged, unmerged {found:?}"));
            }
        }
        tried += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 30, "only {tried} networks");
}
