//! Classes that a model's file lacks: taught, kept in the adapter, merged.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod scene;

use std::fs;
use std::path::Path;

use accentor::Model;
use accentor::source::{self, Sample};
use scene::{Scene, kws};

/// A PCM wav file of 16 bits, one channel.
fn wav(rate_hz: u32, samples: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|s| ((s * 32767.0) as i16).to_le_bytes()).collect();
    let mut out = b"RIFF".to_vec();
    out.extend((36 + data.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16u32.to_le_bytes());
    for half in [1u16, 1] {
        out.extend(half.to_le_bytes());
    }
    out.extend(rate_hz.to_le_bytes());
    out.extend((rate_hz * 2).to_le_bytes());
    for half in [2u16, 16] {
        out.extend(half.to_le_bytes());
    }
    out.extend(b"data");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

/// Words that no model knows: those of an accent, played backwards.
fn backwards(scene: &Scene, part: &str, words: &[(&str, &str)], into: &str) {
    let data = source::dataset(&kws().join("demo").join(part)).unwrap();
    for (word, name) in words {
        for (i, clip) in data.examples.iter().filter(|e| e.label == *word).enumerate() {
            let Sample::Audio(clip) = source::read(&clip.path).unwrap() else { panic!("no sound") };
            let samples: Vec<f32> = clip.samples.iter().rev().copied().collect();
            scene.write(&format!("{into}/{name}/{i}.wav"), wav(clip.rate_hz, &samples));
        }
    }
}

fn correct(evaluation: &serde_json::Value) -> f64 {
    evaluation["accuracy"].as_f64().unwrap()
}

#[test]
fn an_eleventh_word_is_taught_and_the_ten_stay() {
    let scene = Scene::new();
    backwards(&scene, "scotland/adapt", &[("stop", "pots")], "new");
    backwards(&scene, "scotland/test", &[("stop", "pots")], "test");
    let us = format!("{}/demo/us", kws().display());
    scene.fails(1, "adapt --model KWS --data new --out out", &["pots", "new one", "--new-labels"]);
    let line = format!(
        "adapt --model KWS --data new --new-labels --replay {us}/replay --eval test --guard {us}/test --out out"
    );
    let report = scene.json(&line);
    assert_eq!(report["new_labels"], serde_json::json!(["pots"]));
    assert_eq!(correct(&report["before"]), 0.0, "a word that the model lacks was found");
    assert!(correct(&report["after"]) >= 0.8, "{}", report["after"]);
    let (before, after) = (correct(&report["guard"]["before"]), correct(&report["guard"]["after"]));
    assert!(after >= before - 0.03, "the ten words went from {before} to {after}");

    // Labels and layer are in the adapter.
    let eval = scene.json("eval --model KWS --adapter out --data test");
    assert_eq!(eval["correct"], report["after"]["correct"]);
    let clip = "test/pots/0.wav";
    let predicted = scene.json(&format!("predict --model KWS --adapter out --top 11 {clip}"));
    assert_eq!(predicted["predictions"][0]["labels"].as_array().unwrap().len(), 11);
    scene.fails(1, "eval --model KWS --data test", &["no label `pots`"]);

    // The merged file is a model of eleven words by itself.
    let merged = scene.json("merge --model KWS --adapter out --out merged/eleven.onnx");
    assert_eq!(merged["manifest"], "merged/eleven.toml");
    assert_eq!(scene.json("eval --model merged/eleven.toml --data test")["confusion"], eval["confusion"]);
    let (model, frozen) = (Model::open(scene.path("merged/eleven.toml")).unwrap(), Model::open(kws()).unwrap());
    assert_eq!(model.labels()[..10], *frozen.labels());
    assert_eq!(model.labels()[10], "pots");
    let adapter = frozen.read_adapter(&scene.path("out")).unwrap();
    let (one, two) = (model.session(None).unwrap(), frozen.session(Some(&adapter)).unwrap());
    let input: Vec<f32> = (0..one.input_len()).map(|i| (i as f32 * 0.37).sin() * 10.0).collect();
    for (a, b) in one.logits(&input).unwrap().iter().zip(two.logits(&input).unwrap()) {
        // The merged weights are rounded once more.
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
    }
    // Only the layer grew: its rows, and the one size that the file states.
    let file = |p: &Path| fs::metadata(p).unwrap().len();
    let grown = file(&scene.path("merged/eleven.onnx")) - file(&kws().join("kws-commands.onnx"));
    let inputs = model.graph().values[model.graph().value_named("embedding").unwrap()].len() as u64;
    assert!((4 * (inputs + 1)..4 * (inputs + 1) + 16).contains(&grown), "{grown} bytes more for {inputs} inputs");

    // On it goes from there.
    scene.json("adapt --model merged/eleven.toml --data new --out more --epochs 1 --replay test");
}

#[test]
fn a_new_head_reads_a_tensor_of_the_file() {
    let scene = Scene::new();
    let words = [("stop", "pots"), ("yes", "say"), ("go", "og")];
    backwards(&scene, "scotland/adapt", &words, "new");
    backwards(&scene, "scotland/test", &words, "test");
    let line = "adapt --model KWS --data new --eval test --new-head embedding";
    let report = scene.json(&format!("{line} --out out --sites none"));
    assert_eq!(report["new_labels"], serde_json::json!(["og", "pots", "say"]));
    assert!(correct(&report["after"]) >= 0.8, "{}", report["after"]);
    let eval = scene.json("eval --model KWS --adapter out --data test");
    assert_eq!(eval["correct"], report["after"]["correct"]);
    // Beside low-rank pairs below it, and with labels in an order of their own.
    let report = scene.json(&format!("{line} --out both --labels say,pots,og --epochs 5"));
    assert_eq!(report["new_labels"], serde_json::json!(["say", "pots", "og"]));
    let merged = scene.json("merge --model KWS --adapter both --out three.onnx");
    assert_eq!(merged["manifest"], "three.toml");
    let eval = scene.json("eval --model KWS --adapter both --data test");
    assert_eq!(scene.json("eval --model three.toml --data test")["confusion"], eval["confusion"]);
    // The output that was there stays.
    let whole = Model::open(scene.path("three.onnx")).unwrap();
    assert_eq!(whole.labels().len(), 10);
}

#[test]
fn what_cannot_be_taught_says_why() {
    let scene = Scene::new();
    backwards(&scene, "scotland/adapt", &[("stop", "pots"), ("yes", "say")], "new");
    fs::create_dir(scene.path("one")).unwrap();
    fs::rename(scene.path("new/say"), scene.path("one/say")).unwrap();
    let data = "adapt --model KWS --out out --data";
    scene.fails(2, &format!("{data} new --new-labels --new-head embedding"), &["--new-head", "cannot be used with"]);
    scene.fails(
        1,
        &format!("{data} new --labels a,b --new-head embeding"),
        &["embeding", "no such tensor", "`embedding`"],
    );
    scene.fails(1, &format!("{data} new --labels a,b --new-head mfcc"), &["mfcc", "input"]);
    scene.fails(1, &format!("{data} one --new-head embedding"), &["2 labels or more, found 1"]);
    scene.fails(1, &format!("{data} one --new-labels"), &["`say`", "--replay"]);
    scene.fails(1, &format!("{data} one --new-head embedding --labels say,say"), &["`say` is there twice"]);
    // An adapter whose labels and layer do not fit each other.
    fs::rename(scene.path("one/say"), scene.path("new/say")).unwrap();
    scene.json(&format!("{data} new --new-labels --epochs 1 --sites none --variants 1"));
    let path = scene.path("out/adapter_config.json");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, says) in [
        ("\"pots\",", "", "weight shape"),
        ("\"pots\"", "\"yes\"", "`yes` is there twice"),
        ("\"extended\"", "{\"new\": {\"output\": \"nothing\"}}", "no such tensor"),
        ("\"extended\"", "\"wider\"", "wider"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&path, good.replace(from, to)).unwrap();
        scene.fails(1, "eval --model KWS --adapter out --data new", &[says]);
    }
}
