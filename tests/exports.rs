//! One network as each exporter writes it adapts to one result: tests/reference/README.md, "Exports".
//!
//! `cargo test --release --test exports -- --nocapture` prints the figures of each file.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod recording;

use std::collections::BTreeMap;
use std::fs;

use accentor::{Adapter, Examples, Model};
use recording::{Recorded, Recording, batch, data, loss_error, losses, relative_error, same_members};
use serde::Deserialize;

const NETS: [&str; 4] = ["cnn", "conv1d", "dscnn", "mlp"];
const STEPS: usize = 20;
/// Relative, of each loss and of each trained tensor by its norm. The files differ by the order of sums and by BatchNorm,
/// folded or not: some roundings of f32 (6e-8) a step, which twenty steps let grow to 9e-7 where it was measured.
const TOLERANCE: f64 = 1e-5;
/// What training must have moved, or agreement would say nothing.
const LEAST_MOVE: f64 = 1e-2;

/// `sites.json`, what is used of it.
#[derive(Deserialize)]
struct Exports {
    layers: Vec<String>,
    recorded_sites: BTreeMap<String, String>,
    files: Vec<Export>,
}

#[derive(Deserialize)]
struct Export {
    file: String,
    input_layout: String,
    output: String,
    sites: Vec<ExportedSite>,
}

#[derive(Deserialize)]
struct ExportedSite {
    layer: String,
    site: String,
    node: String,
    initializer: String,
}

/// What some steps on a file gave: its losses, and the adapter's tensors by the layer of the network.
struct Trained {
    losses: Vec<f32>,
    tensors: BTreeMap<String, Vec<Vec<f32>>>,
}

/// Axis 1 of each input goes to the end.
fn channels_last(examples: &Examples, shape: &[usize]) -> Examples {
    let mut out = Examples::new(examples.input_len(), 1);
    for index in 0..examples.len() {
        let x = examples.input(index, 0);
        let (channels, plane) = (shape[1], x.len() / shape[1]);
        let moved: Vec<f32> = (0..x.len()).map(|i| x[i % channels * plane + i / channels]).collect();
        out.push(&moved, examples.target(index)).unwrap();
    }
    out
}

fn open(recording: &Recording, net: &str, export: &Export) -> (Model, Examples) {
    let mut shape = recording.meta.input.shape.clone();
    let mut examples = recording.examples();
    if export.input_layout == "channels_last" {
        examples = channels_last(&examples, &shape);
        shape[1..].rotate_left(1);
    }
    let onnx = data().join("exports").join(net).join(&export.file);
    (recording.open_as(&onnx, shape, &export.output), examples)
}

fn tensors(adapter: &Adapter, export: &Export) -> BTreeMap<String, Vec<Vec<f32>>> {
    let layer = |key: &str| export.sites.iter().find(|s| s.site == key).unwrap().layer.clone();
    let of = |site: &accentor::lora::AdapterSite| site.delta.tensors().into_iter().map(<[f32]>::to_vec).collect();
    adapter.sites.iter().map(|site| (layer(&site.key), of(site))).collect()
}

/// The start, and the result of each recorded optimiser.
fn train(recording: &Recording, net: &str, exports: &Exports, export: &Export) -> (Trained, Vec<Trained>) {
    let (model, examples) = open(recording, net, export);
    let sites = model.sites();
    assert!(
        same_members(sites.iter().map(|s| s.key.as_str()), export.sites.iter().map(|s| s.site.as_str())),
        "{net}/{}: sites",
        export.file
    );
    for (site, exported) in sites.iter().filter_map(|s| Some((s, export.sites.iter().find(|e| e.site == s.key)?))) {
        let graph = model.graph();
        assert_eq!(graph.nodes[site.node].name, exported.node);
        assert_eq!(graph.values[site.weight].name, exported.initializer);
    }
    let start = recording.adapter(&model, |key| {
        let layer = &export.sites.iter().find(|s| s.site == key)?.layer;
        recording.meta.sites.iter().find(|s| s.site == exports.recorded_sites[layer])
    });
    let begun = Trained { losses: Vec::new(), tensors: tensors(&start, export) };
    let results = [Recorded::Sgd, Recorded::AdamW].map(|which| {
        let mut trainer = model.trainer(start.clone(), 1).unwrap();
        let cached = trainer.cache(&examples).unwrap();
        let (kind, rate, _) = recording.training(which);
        let losses = losses(&mut trainer, &batch(&cached), kind, rate, STEPS);
        Trained { losses, tensors: tensors(&trainer.adapter(), export) }
    });
    (begun, results.into())
}

/// The worst tensor's ‖found − expected‖₂/‖expected‖₂, and the least.
fn errors(found: &Trained, expected: &Trained) -> Vec<f64> {
    let pairs = found.tensors.iter().flat_map(|(layer, t)| t.iter().zip(&expected.tensors[layer]));
    pairs.map(|(f, e)| relative_error(f, e)).collect()
}

#[test]
fn every_exporter_adapts_to_the_same_result() {
    let mut failures = Vec::new();
    for net in NETS {
        let text = fs::read(data().join("exports").join(net).join("sites.json")).unwrap();
        let exports: Exports = serde_json::from_slice(&text).unwrap();
        let recording = Recording::read(&format!("export_{net}-b16"));
        let mut first: Option<Vec<Trained>> = None;
        for export in &exports.files {
            let (start, results) = train(&recording, net, &exports, export);
            assert!(same_members(start.tensors.keys().map(String::as_str), exports.layers.iter().map(String::as_str)));
            for result in &results {
                let least = errors(&start, result).into_iter().fold(f64::INFINITY, f64::min);
                assert!(least > LEAST_MOVE, "{net}/{}: a tensor moved by {least:e} only", export.file);
                assert!(result.losses[STEPS - 1] < result.losses[0], "{net}/{}: {:?}", export.file, result.losses);
            }
            let Some(expected) = &first else {
                first = Some(results);
                continue;
            };
            for ((found, expected), optimiser) in results.iter().zip(expected).zip(["sgd", "adamw"]) {
                let loss = loss_error(&found.losses, &expected.losses);
                let tensor = errors(found, expected).into_iter().fold(0.0, |a: f64, e| if e <= a { a } else { e });
                let line = format!("{net:8} {:28} {optimiser:6} {loss:9.1e} {tensor:9.1e}", export.file);
                println!("{line}");
                // A NaN is a failure too.
                if !(loss <= TOLERANCE && tensor <= TOLERANCE) {
                    failures.push(line);
                }
            }
        }
        assert_eq!(exports.files.len(), 8, "{net}: four exporters, batch free and fixed");
    }
    assert!(
        failures.is_empty(),
        "net, file, optimiser, losses, tensors beyond {TOLERANCE:e}:\n{}",
        failures.join("\n")
    );
}
