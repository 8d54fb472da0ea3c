//! Public models on real data: what lies in the shared folder, and is skipped where there is none.
//!
//! The folder is `$ACCENTOR_SHARED`, else `../shared`; tests/protocols/kws01.py prepares the same data by hand.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod recording;
mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use scene::{Scene, npy};

/// MFCC of kws01_mfcc as DS-CNN takes them: real = (q - OFFSET) · STEP, of int8 q.
const OFFSET: f64 = 83.0;
const STEP: f64 = 0.584_702_908_992_767_3;
const SHAPE: [usize; 3] = [49, 10, 1];

/// The folder with `models/dscnn_kws.onnx` and the data; none is said.
fn folder() -> Option<PathBuf> {
    let found = recording::shared_models().map(|models| models.parent().unwrap().to_owned());
    let found = found.filter(|f| f.join("models/dscnn_kws.onnx").is_file() && f.join("data").is_dir());
    if found.is_none() {
        println!("skipped: no shared folder (set ACCENTOR_SHARED to it)");
    }
    found
}

/// A scene with `dscnn-kws`: the manifest of models/dscnn-kws with the ONNX file beside it.
fn scene(shared: &Path) -> Scene {
    let scene = Scene::new();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/dscnn-kws/model.toml");
    scene.write("dscnn-kws/model.toml", fs::read(manifest).unwrap());
    fs::copy(shared.join("models/dscnn_kws.onnx"), scene.path("dscnn-kws/dscnn_kws.onnx")).unwrap();
    scene
}

#[test]
fn dscnn_finds_913_of_1000_commands() {
    let Some(shared) = folder() else { return };
    let scene = scene(&shared);
    let data = shared.join("data/kws01_mfcc");
    let labels = accentor::Manifest::read(&scene.path("dscnn-kws")).unwrap().labels;
    let features = fs::read(data.join("features_1000x49x10_i8.bin")).unwrap();
    let numbers = fs::read(data.join("labels_1000_u8.bin")).unwrap();
    let mut table = String::from("path,label\n");
    let rows = fs::read_to_string(data.join("y_labels.csv")).unwrap();
    // file,classes,label
    let rows: Vec<Vec<&str>> = rows.lines().map(|l| l.split(',').map(str::trim).collect()).collect();
    let len = SHAPE.iter().product();
    assert_eq!((rows.len(), numbers.len(), features.len()), (1000, 1000, 1000 * len));
    for (index, (row, clip)) in rows.iter().zip(features.chunks_exact(len)).enumerate() {
        let label: usize = row[2].parse().unwrap();
        assert_eq!(label, usize::from(numbers[index]), "{}", row[0]);
        let real: Vec<f32> = clip.iter().map(|q| ((f64::from(*q as i8) - OFFSET) * STEP) as f32).collect();
        scene.write(&format!("kws01/{index}.npy"), npy(&real, &SHAPE));
        table += &format!("{index}.npy,{}\n", labels[label]);
    }
    scene.write("kws01/kws01.csv", table);
    let found = scene.json("eval --model dscnn-kws --data kws01/kws01.csv");
    assert_eq!((found["correct"].as_u64(), found["samples"].as_u64()), (Some(913), Some(1000)));
}

#[test]
fn dscnn_finds_ten_of_ten_recordings() {
    let Some(shared) = folder() else { return };
    let scene = scene(&shared);
    let mut table = String::from("path,label\n");
    for entry in fs::read_dir(shared.join("data/speech_commands_examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "wav") {
            table += &format!("{},{}\n", path.display(), path.file_stem().unwrap().to_str().unwrap());
        }
    }
    scene.write("examples.csv", table);
    let found = scene.json("eval --model dscnn-kws --data examples.csv");
    assert_eq!((found["correct"].as_u64(), found["samples"].as_u64()), (Some(10), Some(10)));
}

#[test]
fn kwt1_with_its_own_front_end_finds_the_ten_example_words() {
    let Some(shared) = folder() else { return };
    let words = shared.join("data/speech_commands_examples");
    let files = ["kwt1_frontend.onnx", "kwt1_features.onnx"];
    if !words.is_dir() || files.iter().any(|f| !shared.join("models").join(f).is_file()) {
        println!("skipped: no kwt1 or no example words in the shared folder");
        return;
    }
    let scene = Scene::new();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kwt1/model.toml");
    scene.write("kwt1/model.toml", fs::read(manifest).unwrap());
    for file in files {
        fs::copy(shared.join("models").join(file), scene.path("kwt1").join(file)).unwrap();
    }
    let mut table = String::from("path,label\n");
    for word in ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"] {
        table += &format!("{},{word}\n", words.join(format!("{word}.wav")).canonicalize().unwrap().display());
    }
    scene.write("words.csv", table);
    let found = scene.json("eval --model kwt1 --data words.csv");
    assert_eq!((found["correct"].as_u64(), found["samples"].as_u64()), (Some(10), Some(10)));
    assert!(scene.json("inspect kwt1")["training"].is_object(), "it can be trained");
}

/// Of the inputs of the adapted layers and the largest pair that lives beside them.
const ARENA: f64 = 1.3;

#[test]
fn arenas_hold_little_more_than_they_must() {
    let Some(models) = recording::shared_models() else {
        println!("skipped: no shared folder (set ACCENTOR_SHARED to it)");
        return;
    };
    let names = [
        "dscnn_kws",
        "resnet8_cifar10",
        "mobilenetv1_025_vww96",
        "speech_embedding_96",
        "efficientnet_lite0",
        "kwt1_features",
    ];
    let trainer = |name: &str| {
        let model = accentor::Model::open(models.join(format!("{name}.onnx"))).unwrap();
        model.trainer(model.new_adapter(&accentor::AdapterSpec::default(), 0).unwrap(), 1).unwrap()
    };
    for name in names {
        let trainer = trainer(name);
        let (arena, bound) = (trainer.arena_bytes() as f64, trainer.arena_bound_bytes() as f64);
        assert!(arena <= ARENA * bound, "{name}: {arena} bytes, at least {bound} are needed");
    }
}
