//! Whether a program runs under qemu's user mode.

use std::process::Child;

/// The emulator is what the kernel runs.
pub(crate) fn emulated(child: &Child) -> bool {
    let program = std::fs::read_link(format!("/proc/{}/exe", child.id()));
    program.is_ok_and(|program| program.to_string_lossy().contains("qemu"))
}
