//! The reader of adapter folders.
#![no_main]

#[path = "../../tests/fuzz_entry/mod.rs"]
mod fuzz_entry;

use std::sync::OnceLock;

use accentor::Model;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

fuzz_target!(|data: &[u8]| {
    static BASE: OnceLock<(Model, TempDir)> = OnceLock::new();
    let (model, folder) = BASE.get_or_init(|| (fuzz_entry::base(), tempfile::tempdir().unwrap()));
    fuzz_entry::adapter(model, folder.path(), data);
});
