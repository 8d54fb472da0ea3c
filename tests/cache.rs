//! What the frozen prefix gives, held in each format and place: what comes back, and what is learnt from it.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod scene;

use accentor::graph::Choice;
use accentor::train::{ClipInput, TrainError};
use accentor::{AdapterSpec, CacheFormat, CacheOptions, Cached, Examples, Model, Splits, TrainConfig, Trainer};
use scene::{Scene, kws};

/// 2⁻¹¹: half of the last of eleven bits.
const F16: f32 = 1.0 / 2048.0;
/// Half a step of 255 over the range of a channel, which is no more than that of the clip.
const INT8: f32 = 1.0 / 510.0;
/// Roundings of the scale and of the sum, against the range.
const ROUNDING: f32 = 1e-6;

/// The last layers of our own model, and the clips of its demo.
struct Case {
    model: Model,
    clips: Examples,
}

impl Case {
    fn new() -> Self {
        let model = Model::open(kws()).unwrap();
        let data = accentor::source::dataset(&kws().join("demo/scotland/adapt")).unwrap();
        let augment = accentor::Augment { shift_ms: 60.0, ..accentor::Augment::default() };
        let clips = model.examples(&data, &augment, 2, 0).unwrap();
        Self { model, clips }
    }

    fn trainer(&self, sites: &str, threads: usize) -> Trainer {
        let spec = AdapterSpec { rank: 4, alpha: 8.0, sites: Choice::parse(sites).unwrap(), head: false };
        self.model.trainer(self.model.new_adapter(&spec, 0).unwrap(), threads).unwrap()
    }
}

const SUFFIX: &str = "blocks.3|head";
const FORMATS: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Int8];

fn options(format: CacheFormat) -> CacheOptions {
    CacheOptions { format, folder: None }
}

fn in_file(format: CacheFormat, scene: &Scene) -> CacheOptions {
    CacheOptions { format, folder: Some(scene.folder.path().to_owned()) }
}

fn fit(trainer: &mut Trainer, cached: &Cached) -> Vec<f32> {
    let config = TrainConfig { epochs: 3, ..TrainConfig::default() };
    let splits = Splits { train: cached, replay: None, valid: Some(cached) };
    trainer.fit(&config, splits, &mut |_| true).unwrap();
    trainer.snapshot()
}

#[test]
fn each_format_gives_back_what_it_promises() {
    let case = Case::new();
    let mut trainer = case.trainer(SUFFIX, 1);
    assert!(trainer.prefix().is_some());
    let exact = trainer.cache(&case.clips).unwrap();
    let [f32s, halves, bytes] = FORMATS.map(|format| trainer.cached_bytes(format));
    assert_eq!((f32s, halves), (4 * trainer.cached_len(), 2 * trainer.cached_len()));
    // Eight bytes more a channel, of which each has 125 values.
    assert!(bytes * 4 < f32s + f32s / 10, "{bytes} of {f32s}");
    for format in FORMATS {
        let cached = trainer.cache_as(&case.clips, &options(format)).unwrap();
        assert_eq!(cached.bytes(), (2 * case.clips.len() * trainer.cached_bytes(format)) as u64);
        for index in 0..case.clips.len() {
            for variant in 0..2 {
                let (x, y) = (exact.values(index, variant).unwrap(), cached.values(index, variant).unwrap());
                let range = x.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
                for (x, y) in x.iter().zip(&y) {
                    let bound = match format {
                        CacheFormat::F32 => 0.0,
                        CacheFormat::F16 => F16 * x.abs() + f32::EPSILON * range,
                        CacheFormat::Int8 => (INT8 + ROUNDING) * range,
                    };
                    assert!((x - y).abs() <= bound, "{format}: {x} became {y}, of a range of {range}");
                }
            }
        }
    }
}

#[test]
fn f32_is_what_the_prefix_gives_bit_by_bit() {
    let case = Case::new();
    let mut trainer = case.trainer(SUFFIX, 1);
    let cached = trainer.cache(&case.clips).unwrap();
    let prefix = trainer.prefix().unwrap();
    let mut arena = vec![0.0; prefix.arena_len()];
    let mut expected = vec![0.0; prefix.output_len()];
    for index in 0..case.clips.len() {
        prefix.forward(&[], &mut arena, case.clips.input(index, 1)).unwrap();
        prefix.copy_outputs(&arena, &mut expected);
        assert_eq!(cached.values(index, 1).unwrap(), expected);
    }
}

#[test]
fn a_cache_teaches_the_same_whatever_the_place_and_the_threads() {
    let (case, scene) = (Case::new(), Scene::new());
    for sites in [SUFFIX, "auto"] {
        for format in FORMATS {
            let learnt = |options: &CacheOptions, threads: usize| {
                let mut trainer = case.trainer(sites, threads);
                let cached = trainer.cache_as(&case.clips, options).unwrap();
                fit(&mut trainer, &cached)
            };
            let expected = learnt(&options(format), 1);
            assert_eq!(learnt(&options(format), 2), expected, "{sites} {format}: 2 threads");
            assert_eq!(learnt(&in_file(format, &scene), 1), expected, "{sites} {format}: in a file");
            assert_eq!(learnt(&in_file(format, &scene), 4), expected, "{sites} {format}: in a file, 4 threads");
        }
    }
    assert_eq!(std::fs::read_dir(scene.folder.path()).unwrap().count(), 0, "the file has no name");
}

#[test]
fn clips_of_a_cache_and_values_are_the_same_to_a_step() {
    let case = Case::new();
    let mut trainer = case.trainer(SUFFIX, 2);
    let cached = trainer.cache(&case.clips).unwrap();
    let values: Vec<Vec<f32>> = (0..9).map(|i| cached.values(i, 0).unwrap()).collect();
    let slices: Vec<(&[f32], usize)> = values.iter().enumerate().map(|(i, v)| (&v[..], cached.target(i))).collect();
    let clips: Vec<(ClipInput, usize)> = (0..9).map(|i| (cached.input(i, 0), cached.target(i))).collect();
    let loss = trainer.gradient(&slices).unwrap();
    let gradient = trainer.gradient_values().to_vec();
    assert_eq!(trainer.gradient(&clips).unwrap(), loss);
    assert_eq!(trainer.gradient_values(), gradient);
    // Of another cut, even one with as many values, nothing is taken.
    let other = case.trainer("auto", 1).cache(&case.clips).unwrap();
    assert!(matches!(trainer.logits(other.input(0, 0)), Err(TrainError::Uncached { .. })));
}

#[test]
fn what_cannot_be_held_is_an_error() {
    let case = Case::new();
    let mut trainer = case.trainer("auto", 1);
    let mut clips = case.model.new_examples(1);
    clips.push(&vec![1e6; clips.input_len()], 0).unwrap();
    let error = trainer.cache_as(&clips, &options(CacheFormat::F16)).unwrap_err().to_string();
    assert!(error.contains("1e6") && error.contains("--cache f32"), "{error}");
    assert!(trainer.cache_as(&clips, &options(CacheFormat::Int8)).is_ok());
    let nowhere = CacheOptions { format: CacheFormat::F32, folder: Some("no/such/folder".into()) };
    let error = trainer.cache_as(&clips, &nowhere).unwrap_err().to_string();
    assert!(error.contains("no/such/folder") && error.contains("name another folder"), "{error}");
}

/// The shell's limit on the size of a file stands for a full disk: a write comes back with an error.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_cure() {
    let scene = Scene::new();
    let data = format!("--data {0}/scotland/adapt", kws().join("demo").display());
    let line = format!("adapt --model KWS {data} --sites last-third --cache-file . --out x");
    let output = scene.shell("trap '' XFSZ; ulimit -f 64; exec \"$@\"", &line);
    scene::says(&output, 1, &line, &["cannot write a cache of", "free that much", "--cache int8"]);
}

#[test]
fn adapt_learns_the_same_from_a_cache_in_a_file() {
    let scene = Scene::new();
    let demo = kws().join("demo");
    let demo = demo.display();
    let run = |more: &str, out: &str| {
        let data = format!("--data {demo}/scotland/adapt --replay {demo}/us/replay --eval {demo}/scotland/test");
        scene.json(&format!("adapt --model KWS {data} --sites last-third --epochs 2 --variants 2 --out {out} {more}"));
        std::fs::read(scene.path(out).join("adapter_model.safetensors")).unwrap()
    };
    for format in ["f32", "f16", "int8"] {
        let memory = run(&format!("--cache {format}"), "memory");
        assert_eq!(run(&format!("--cache {format} --cache-file ."), "file"), memory, "{format}");
    }
    scene.fails(
        1,
        &format!("adapt --model KWS --data {demo}/scotland/adapt --cache-file nowhere --out x"),
        &["nowhere", "name another folder"],
    );
}

#[test]
fn inspect_counts_the_cache() {
    let scene = Scene::new();
    let cached = |line: &str| {
        let told = scene.json(&format!("inspect KWS --sites last-third --clips 2000 {line}"));
        let training = &told["training"];
        (training["cached_bytes_per_clip"].as_u64().unwrap(), training["peak_rss_bytes"].as_u64().unwrap())
    };
    let [exact, half, bytes] = ["f32", "f16", "int8"].map(|format| cached(&format!("--cache {format}")));
    assert_eq!(exact.0, 2 * half.0);
    assert!(bytes.0 < half.0 && bytes.1 < half.1 && half.1 < exact.1);
    assert!(cached("--cache-file .").1 < bytes.1);
    let all = scene.json("inspect KWS");
    let (all, third) = (&all["training"]["step_multiply_adds"], &all["training"]["last_third_step_multiply_adds"]);
    assert!(all.as_u64().unwrap() > 3 * third.as_u64().unwrap(), "{all} {third}");
}
