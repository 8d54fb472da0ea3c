//! Writes `corpus/onnx` and `corpus/adapter` from committed files.

#[path = "../../tests/fuzz_entry/mod.rs"]
mod fuzz_entry;

use std::fs;

fn main() -> std::io::Result<()> {
    let base = fuzz_entry::base();
    let models = fuzz_entry::models().into_iter().map(|(_, bytes)| bytes).collect();
    for (name, files) in [("onnx", models), ("adapter", fuzz_entry::adapters(&base))] {
        let folder = format!("corpus/{name}");
        fs::create_dir_all(&folder)?;
        for (at, bytes) in files.iter().enumerate() {
            fs::write(format!("{folder}/seed-{at}"), bytes)?;
        }
    }
    Ok(())
}
