#!/usr/bin/env bash
# `accentor adapt` for aarch64 within a limit on the guest's whole address space, under qemu.
#
#   usage: tests/arm/memory.sh BINARY ONNX [MIB]          (64)
#
# BINARY is accentor for aarch64-unknown-linux-gnu, ONNX the file of models/dscnn-kws. qemu-user takes setrlimit(RLIMIT_AS) from the guest, says
# yes and does nothing (the host's limit would be qemu's own), so the limit is -R: all that the guest maps must lie within that many MiB, code,
# libraries, stack, heap and holes. A limit on the sum (ulimit -v on a board) is milder. The stack is given 1 MiB of it (-s): qemu maps all of a
# stack at once, the kernel what is used. A second run, which needs more, must be refused it: the limit holds.
set -euo pipefail
binary=$1 onnx=$(realpath "$2") mib=${3:-64}
project=$(cd "$(dirname "$0")/../.." && pwd)
root=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cp "$project/models/dscnn-kws/model.toml" "$onnx" "$folder"
demo=$project/models/kws-commands/demo
adapt() {
    qemu-aarch64-static -cpu cortex-a53 -R "${mib}M" -s 1M -L "$root" "$binary" adapt --model "$folder" --data "$demo/scotland/adapt" \
        --replay "$demo/us/replay" --out "$folder/out" "$@"
}

printf '== 50 clips of ten words in 8 versions, 50 of replay, 30 epochs, within %s MiB\n' "$mib"
time adapt --cache-file "$folder" --eval "$demo/scotland/test"
printf '== the control: 1,000 versions of each clip in memory\n'
status=0
adapt --variants 1000 --epochs 1 >/dev/null 2>&1 || status=$?
echo "ended with status $status"
# SIGABRT: what Rust's allocator does where memory is refused.
[ "$status" -eq 134 ]
