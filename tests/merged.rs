//! Merged files and adapter folders give the logits that PyTorch recorded with the adapter beside the network.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod recording;

use accentor::Adapter;
use accentor::Model;
use recording::{Recording, batch, largest_error};

/// Relative to the largest logit, f32 against f64, as tests/gradients.rs.
const TOLERANCE: f64 = 1e-4;

fn error(recording: &Recording, model: &Model, adapter: Adapter) -> f64 {
    let mut trainer = model.trainer(adapter, 1).unwrap_or_else(|e| panic!("{}: {e}", recording.name));
    let cached = trainer.cache(&recording.examples()).unwrap();
    let logits: Vec<f32> = batch(&cached).iter().flat_map(|(x, _)| trainer.logits(x).unwrap()).collect();
    largest_error(&logits, recording.tensor("logits"))
}

#[test]
fn what_is_merged_or_written_computes_the_same() {
    let names = recording::names().into_iter().filter(|name| name.ends_with("-b3"));
    let recordings = names.map(|name| Recording::read(&name)).filter(|r| !r.meta.shared);
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for recording in recordings {
        let model = recording.open(&recording.onnx().unwrap());
        let start = recording.start(&model);

        let written = folder.path().join(&recording.name);
        model.write_adapter(&written, &start).unwrap();
        let read = model.read_adapter(&written).unwrap_or_else(|e| panic!("{}: {e}", recording.name));
        let found = error(&recording, &model, read);
        assert!(found <= TOLERANCE, "{}: read back, {found:e}", recording.name);

        // Two layers on one weight have no merged file with that one weight; merge says so or gives each its own.
        let Ok(merged) = model.merge(&start) else { continue };
        let path = folder.path().join(format!("{}.onnx", recording.name));
        std::fs::write(&path, merged.bytes).unwrap();
        let whole = recording.open(&path);
        let nothing = whole.new_adapter(&accentor::AdapterSpec::default(), 0).unwrap();
        let found = error(&recording, &whole, nothing);
        assert!(found <= TOLERANCE, "{}: merged, {found:e}", recording.name);
        compared += 1;
    }
    assert!(compared > 30, "only {compared} recordings merged");
}
