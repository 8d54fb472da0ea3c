//! The loader, the planner and a pass over what is loaded.
#![no_main]

#[path = "../../tests/fuzz_entry/mod.rs"]
mod fuzz_entry;

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    // The loader turns tract's panics into errors.
    init: std::panic::set_hook(Box::new(|panic| {
        if fuzz_entry::is_ours(panic) {
            eprintln!("{panic}");
            std::process::abort();
        }
    })),
    |data: &[u8]| fuzz_entry::onnx(data)
);
