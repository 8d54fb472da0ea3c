//! The gate and a trial on clips of the demo: an accent that is learnt, labels that are wrong, and noise.
#![cfg(all(feature = "onnx", feature = "audio-files"))]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use accentor::gate::{
    Evidence, Examined, GateError, GateSettings, Observation, Outcome, Rate, Thresholds, Trial, TrialSettings, examine,
};
use accentor::source::{Dataset, dataset};
use accentor::{Adapter, AdapterSpec, Augment, Examples, Model, ModelError, Splits, TrainConfig};

/// Clips of each word that are taught.
const TAUGHT: usize = 3;

fn kws() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands")
}

struct Home {
    model: Model,
    replay: Examples,
    guard: Examples,
    ambient: Examples,
}

/// `count` clips of each word of a folder of the demo.
fn clips(folder: &str, count: usize) -> Dataset {
    let all = dataset(&kws().join("demo").join(folder)).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    let few = all.examples.into_iter().filter(|e| {
        let number: &mut usize = seen.entry(e.label.clone()).or_default();
        *number += 1;
        *number <= count
    });
    Dataset { examples: few.collect() }
}

impl Home {
    fn new() -> Self {
        let model = Model::open(kws()).unwrap();
        let plain = |data: &Dataset| model.examples(data, &Augment::default(), 1, 0).unwrap();
        let mut rng = fastrand::Rng::with_seed(5);
        let mut ambient = model.new_examples(1);
        (0..30).for_each(|_| ambient.push(&noise(&model, &mut rng), 0).unwrap());
        let (replay, guard) = (plain(&clips("us/replay", 4)), plain(&clips("us/test", 4)));
        Self { model, replay, guard, ambient }
    }

    fn train(&self, owner: &Examples, indices: &[usize]) -> Result<Adapter, ModelError> {
        let mut some = self.model.new_examples(1);
        indices.iter().try_for_each(|i| some.push(owner.input(*i, 0), owner.target(*i)))?;
        let mut trainer = self.model.trainer(self.model.new_adapter(&AdapterSpec::default(), 0)?, 1)?;
        let (train, replay) = (trainer.cache(&some)?, trainer.cache(&self.replay)?);
        let config = TrainConfig { epochs: 15, rate: 1e-2, smoothing: 0.1, ..TrainConfig::default() };
        trainer.fit(&config, Splits { train: &train, replay: Some(&replay), valid: None }, &mut |_| true)?;
        Ok(trainer.adapter())
    }

    fn judged(&self, owner: &Examples) -> Examined {
        let evidence = Evidence { owner, earlier: 0, guard: &self.guard, ambient: &self.ambient };
        examine(&self.model, None, &evidence, &GateSettings::default(), &mut |i| self.train(owner, i)).unwrap()
    }

    fn taught(&self) -> Examples {
        self.model.examples(&clips("caribbean/adapt", TAUGHT), &Augment::default(), 1, 0).unwrap()
    }
}

/// White noise of a random level as features.
fn noise(model: &Model, rng: &mut fastrand::Rng) -> Vec<f32> {
    let level = 10f32.powf(-1.0 - rng.f32());
    let samples = (0..16_000).map(|_| level * (2.0 * rng.f32() - 1.0)).collect();
    let sound = accentor::source::Audio { samples, rate_hz: 16_000 };
    model.features(&accentor::source::Sample::Audio(sound)).unwrap()
}

#[test]
fn an_accent_is_admitted_and_wrong_labels_and_noise_are_not() {
    let home = Home::new();
    let taught = home.taught();
    let honest = home.judged(&taught).verdict;
    assert!(honest.admitted, "{:#?}", honest.reasons);
    assert_eq!(honest.figures.trainings, TAUGHT + 1);
    assert!((0.4..=0.75).contains(&honest.calibration.threshold));

    // Every third label is that of the next word.
    let words = home.model.labels().len();
    let mut wrong = home.model.new_examples(1);
    for i in 0..taught.len() {
        let label = if i % 3 == 0 { (taught.target(i) + 1) % words } else { taught.target(i) };
        wrong.push(taught.input(i, 0), label).unwrap();
    }
    let verdict = home.judged(&wrong).verdict;
    assert!(!verdict.admitted && verdict.reasons[0].contains("labels are wrong"), "{:#?}", verdict.reasons);

    let mut rng = fastrand::Rng::with_seed(7);
    let mut nothing = home.model.new_examples(1);
    for i in 0..taught.len() {
        nothing.push(&noise(&home.model, &mut rng), taught.target(i)).unwrap();
    }
    let verdict = home.judged(&nothing).verdict;
    assert!(!verdict.admitted, "{:#?}", verdict.reasons);
    // Figures and reasons can be kept.
    let text = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<accentor::gate::Verdict>(&text).unwrap(), verdict);
}

#[test]
fn the_accent_is_confirmed_in_use_and_its_reverse_is_taken_back() {
    let home = Home::new();
    let taught = home.taught();
    let adapter = home.train(&taught, &(0..taught.len()).collect::<Vec<_>>()).unwrap();
    let heard = home.model.examples(&clips("caribbean/test", 10), &Augment::default(), 1, 0).unwrap();
    let (base, adapted) = (home.model.session(None).unwrap(), home.model.session(Some(&adapter)).unwrap());
    for (now, then, confirms) in [(&base, &adapted, true), (&adapted, &base, false)] {
        let thresholds = Thresholds { trial: 0.5, before: 0.5 };
        let mut trial = Trial::new(&TrialSettings::default(), thresholds, Rate::default());
        let mut order: Vec<usize> = (0..heard.len()).collect();
        fastrand::Rng::with_seed(3).shuffle(&mut order);
        let outcome = order.into_iter().find_map(|i| {
            let (before, scores) = (now.scores(heard.input(i, 0)).unwrap(), then.scores(heard.input(i, 0)).unwrap());
            let label = heard.target(i);
            if !scores.iter().any(|s| *s >= thresholds.trial) {
                return trial.observe(Observation::Missed { label, trial: &scores, before: &before });
            }
            let right = scores.iter().all(|s| *s <= scores[label]);
            let feedback = if right { Observation::Confirmed } else { Observation::Corrected(label) };
            trial.observe(Observation::Wake { trial: &scores, before: &before }).or_else(|| trial.observe(feedback))
        });
        let ended_so = match &outcome {
            Some(Outcome::Confirm(_)) => confirms,
            Some(Outcome::RollBack(_)) => !confirms,
            None => false,
        };
        assert!(ended_so, "{outcome:?}: {}", trial.explain());
    }
}

#[test]
fn what_cannot_be_judged_is_an_error() {
    let home = Home::new();
    let taught = home.taught();
    let ask = |earlier: usize, settings: GateSettings| {
        let evidence = Evidence { owner: &taught, earlier, guard: &home.guard, ambient: &home.ambient };
        let train = &mut |_: &[usize]| Err(std::io::Error::other("stopped"));
        examine(&home.model, None, &evidence, &settings, train).unwrap_err()
    };
    assert!(matches!(ask(taught.len(), GateSettings::default()), GateError::Nothing { .. }));
    assert!(matches!(ask(0, GateSettings::default()), GateError::Training(e) if e.to_string() == "stopped"));
    let one_fold = GateSettings { folds: 1, ..GateSettings::default() };
    assert!(matches!(ask(0, one_fold), GateError::Setting { what: "folds", .. }));
    for wrong in [-0.1, 1.1, f32::NAN] {
        let settings = GateSettings { least_found: wrong, ..GateSettings::default() };
        assert!(matches!(ask(0, settings), GateError::Setting { what: "least_found", .. }), "{wrong}");
    }
    assert!(toml::from_str::<GateSettings>("fold = 3").is_err(), "a field that is spelled wrong");
    assert_eq!(toml::from_str::<GateSettings>("folds = 3").unwrap().folds, 3);
}
