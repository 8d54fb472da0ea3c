#!/bin/sh
# Adapters between accentor, PEFT and ONNX Runtime. Needs a Python with requirements.txt and a model; see README.md.
#   PYTHON=/path/to/venv/bin/python tests/interop/run.sh dscnn_digits_us.onnx
set -eu
here=$(dirname "$0")
model=${1:?usage: run.sh MODEL.onnx [a|b|c|d …]}
root=$here/../..
accentor=${ACCENTOR:-$root/target/release/accentor}
[ -x "$accentor" ] || cargo build --release --manifest-path "$root/Cargo.toml"
shift
checks=$(printf %s "$@")
exec "${PYTHON:-python3}" -W ignore "$here/interop.py" --accentor "$accentor" --model "$model" --only "${checks:-abcd}"
