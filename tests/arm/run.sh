#!/usr/bin/env bash
# The tests of the library without tract (kernels, operators with their gradients, plan, training) for ARM under qemu: aarch64 as
# Cortex-A53, A72 and A76, armv7 with the kernels' scalar code.
#
#   usage: tests/arm/run.sh [aarch64] [armv7]          (both)
#
# Needs the Rust targets (rustup target add), a cross gcc for each and qemu-user-static. Linker and runner are taken from cargo's environment
# (CARGO_TARGET_…_LINKER, …_RUNNER) where they are set, else from the names of Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=${CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER:-aarch64-linux-gnu-gcc}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=${CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER:-qemu-aarch64-static -L /usr/aarch64-linux-gnu}
export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=${CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER:-arm-linux-gnueabihf-gcc}
export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_RUNNER=${CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_RUNNER:-qemu-arm-static -L /usr/arm-linux-gnueabihf}

# Built once for each target and run once for each core.
check() {
    local target=$1
    shift
    for cpu in "$@"; do
        printf '\n== %s as %s (%ss)\n' "$target" "$cpu" "$SECONDS"
        QEMU_CPU=$cpu cargo test --locked --profile emulated --target "$target" --no-default-features --lib -- --quiet
    done
}

[ $# -gt 0 ] || set -- aarch64 armv7
for target in "$@"; do
    case $target in
        aarch64) check aarch64-unknown-linux-gnu cortex-a53 cortex-a72 cortex-a76 ;;
        armv7) check armv7-unknown-linux-gnueabihf cortex-a7 ;;
        *) echo "unknown target $target: aarch64 or armv7" >&2; exit 2 ;;
    esac
done
printf '\n== ARM done in %ss\n' "$SECONDS"
