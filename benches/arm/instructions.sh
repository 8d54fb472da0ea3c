#!/usr/bin/env bash
# Guest instructions of a training step and of an inference pass on aarch64, under qemu with -cpu cortex-a72; one thread.
#
#   usage: benches/arm/instructions.sh BINARY PLUGIN MODEL.onnx[:BATCH]...
#
# BINARY is accentor for aarch64-unknown-linux-gnu, PLUGIN a qemu plugin that prints `guest_insns N` at the end. What starts and loads is taken out:
# each figure is the difference of two runs with other numbers of steps. Multiply-adds are those that `inspect --json` of the same binary says.
set -euo pipefail
binary=$1 plugin=$2
shift 2
root=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}

count() {
    qemu-aarch64 -cpu cortex-a72 -L "$root" -plugin "$plugin" "$binary" bench --model "$1" --batch "$2" --steps "$4" "$3" 2>&1 >/dev/null |
        awk '/guest_insns/ { print $2 }'
}

printf '%-30s %5s %12s %8s %12s %8s\n' model batch step a-MAC inference a-MAC
for entry in "$@"; do
    IFS=: read -r model batch <<<"$entry"
    batch=${batch:-16}
    said=$(qemu-aarch64 -cpu cortex-a72 -L "$root" "$binary" inspect "$model" --batch "$batch" --clips 1 --json)
    field() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" <<<"$said" | head -1; }
    step_macs=$(field step_multiply_adds) forward_macs=$(field multiply_adds)
    step=$(($(count "$model" "$batch" --only-train 3) - $(count "$model" "$batch" --only-train 1)))
    pass=$(($(count "$model" "$batch" --only-infer 3) - $(count "$model" "$batch" --only-infer 1)))
    awk -v name="$(basename "$model" .onnx)" -v batch="$batch" -v step=$((step / 2)) -v pass=$((pass / 2)) -v s="$step_macs" -v f="$forward_macs" \
        'BEGIN { printf "%-30s %5d %12d %8.3f %12d %8.3f\n", name, batch, step, step / s, pass, pass / (f * batch) }'
done
