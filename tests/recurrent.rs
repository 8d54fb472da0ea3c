//! Adapters on the weights of recurrent layers: chosen, merged, written and read. Gradients: tests/gradients.rs.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod onnx_file;
mod recording;

use accentor::graph::{Choice, SiteKind, choose};
use accentor::lora::merge::merge;
use accentor::onnx::{LoadOptions, load_bytes};
use accentor::{Adapter, AdapterSpec, Model};
use recording::{Recording, largest_error};

/// Relative, of the largest logit: a merged weight is rounded to f32 once more.
const TOLERANCE: f64 = 1e-5;

/// The recordings with a recurrent layer, each with its model and its start, where A and B are random and not zero.
fn recordings() -> Vec<(Recording, Model, Adapter)> {
    let names = recording::names().into_iter().filter(|n| n.ends_with("-b3"));
    let open = |name: String| {
        let recording = Recording::read(&name);
        let model = (!recording.meta.shared).then(|| recording.open(&recording.onnx().unwrap()))?;
        let recurrent = model.sites().iter().any(|s| s.kind == SiteKind::Recurrent);
        recurrent.then(|| {
            let start = recording.start(&model);
            (recording, model, start)
        })
    };
    let found: Vec<_> = names.filter_map(open).collect();
    assert!(found.len() >= 10, "{}", found.len());
    found
}

fn logits(recording: &Recording, run: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    let examples = recording.examples();
    (0..examples.len()).flat_map(|i| run(examples.input(i, 0))).collect()
}

#[test]
fn merged_files_compute_what_base_and_adapter_compute() {
    for (recording, model, start) in recordings() {
        let session = model.session(Some(&start)).unwrap();
        let expected = logits(&recording, |x| session.logits(x).unwrap());
        let bytes = std::fs::read(model.path()).unwrap();
        let bound = start.bind(model.graph(), &model.sites(), model.sha256()).unwrap();
        let merged = merge(&bytes, model.graph(), &start, &bound).unwrap();
        assert!(merged.notes.is_empty(), "{}: {:?}", recording.name, merged.notes);

        let mut shape = recording.meta.input.shape.clone();
        shape[0] = 1;
        let options = LoadOptions {
            input_shape: Some(shape),
            outputs: vec![recording.meta.output.clone()],
            ..LoadOptions::default()
        };
        let graph = load_bytes(&merged.bytes, None, &options).unwrap();
        let alone = Model::from_graph(graph, Vec::new(), None).unwrap().session(None).unwrap();
        let found = logits(&recording, |x| alone.logits(x).unwrap());
        assert!(largest_error(&found, &expected) < TOLERANCE, "{}", recording.name);

        let beside = model.session_of(&model.base().unwrap(), Some(&start)).unwrap();
        let found = logits(&recording, |x| beside.logits(x).unwrap());
        assert!(largest_error(&found, &expected) < TOLERANCE, "{}: unmerged", recording.name);
    }
}

#[test]
fn folders_give_back_the_same_adapter() {
    let folder = std::env::temp_dir().join(format!("accentor-recurrent-{}", std::process::id()));
    for (recording, model, start) in recordings() {
        model.write_adapter(&folder, &start).unwrap();
        assert_eq!(model.read_adapter(&folder).unwrap(), start, "{}", recording.name);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn each_weight_and_direction_can_be_chosen() {
    let (_, model, _) = recordings().into_iter().find(|(r, ..)| r.name == "lstm-b3").unwrap();
    let sites = model.sites();
    let keys = |choice: &str| -> Vec<String> {
        choose(model.graph(), &sites, &Choice::parse(choice).unwrap()).into_iter().map(|s| s.key).collect()
    };
    let all = ["both.W", "both.R", "both.W_reverse", "both.R_reverse", "next.W", "next.R", "fc"];
    assert_eq!(keys("auto"), all);
    assert_eq!(keys(r"\.R(_reverse)?$"), ["both.R", "both.R_reverse", "next.R"]);
    let one = AdapterSpec { sites: Choice::parse(r"^both\.W_reverse$").unwrap(), ..AdapterSpec::default() };
    let mut trainer = model.trainer(model.new_adapter(&one, 0).unwrap(), 1).unwrap();
    let clip = trainer.cache(&recording_examples(&model)).unwrap();
    let first = trainer.step(&[(clip.input(0, 0), 0)], 0.1).unwrap();
    for _ in 0..20 {
        trainer.step(&[(clip.input(0, 0), 0)], 0.1).unwrap();
    }
    assert!(trainer.step(&[(clip.input(0, 0), 0)], 0.1).unwrap() < first);
}

fn recording_examples(model: &Model) -> accentor::Examples {
    let mut examples = model.new_examples(1);
    let len = model.input_shape().iter().product();
    examples.push(&recording::generate("x", 1, len, 1.0, 0.0), 0).unwrap();
    examples
}

/// Without a Transpose in front, the first dimension of the input is time and the second the batch, which becomes 1.
#[test]
fn steps_are_no_batch() {
    let net = |dims: [i64; 3], layout: i64| {
        let attributes = [onnx_file::int("hidden_size", 2), onnx_file::int("layout", layout)];
        let net = onnx_file::Net::new().input("x", &dims).weight("w", &[1, 6, 4]).weight("r", &[1, 6, 2]);
        let file = net.node("GRU", &["x", "w", "r"], "y", &attributes).output("y").file();
        let graph = load_bytes(&file, None, &LoadOptions::default()).unwrap();
        (graph.values[graph.inputs[0]].shape.clone(), graph.values[graph.outputs[0]].shape.clone())
    };
    assert_eq!(net([3, 5, 4], 0), (vec![3, 1, 4], vec![3, 1, 1, 2]));
    assert_eq!(net([5, 3, 4], 1), (vec![1, 3, 4], vec![1, 3, 1, 2]));
}

#[test]
fn sequence_lengths_are_refused_with_their_cure() {
    let net = |lengths: &[i64]| {
        onnx_file::Net::new()
            .input("x", &[3, 1, 4])
            .weight("w", &[1, 6, 4])
            .weight("r", &[1, 6, 2])
            .integers("lengths", lengths)
            .node("GRU", &["x", "w", "r", "", "lengths"], "y", &[onnx_file::int("hidden_size", 2)])
            .output("y")
            .file()
    };
    load_bytes(&net(&[3]), None, &LoadOptions::default()).unwrap();
    let error = load_bytes(&net(&[2]), None, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("sequence_lens") && error.contains("export the model without"), "{error}");
}
