#!/bin/sh
# The FSDD protocol (data/fsdd/PROTOCOL.md of the shared folder) on KWT-1: a head of ten digits on `embedding`, trained on the US speakers,
# then head only, LoRA, and LoRA with the whole head, for each speaker and seed. fsdd_torch.py gives PyTorch's figures from the same base.
#   PYTHON=venv/bin/python tests/protocols/fsdd_kwt1.sh SHARED OUT [RATE [SEEDS]]          RATE: 2e-3, SEEDS: "0 1 2"
# Each run leaves OUT/METHOD-SPEAKER-SEED.json. A run takes a minute or two on one core.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
shared=$(cd "${1:?usage: fsdd_kwt1.sh SHARED OUT [RATE [SEEDS]]}" && pwd)
mkdir -p "${2:?where to}" && cd "$2"
rate=${3:-2e-3}
seeds=${4:-0 1 2}
python=${PYTHON:-python3}
accentor=${ACCENTOR:-$root/target/release/accentor}

"$python" "$here/fsdd.py" "$shared/data/fsdd" csv
"$python" "$here/new_head.py" "$shared/models/kwt1_features.onnx" start.onnx 10
mkdir -p start base
digits='labels = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]'
for model in start base; do
    sed -e '/^sha256/d' -e "s/^labels.*/$digits/" -e "s|^onnx = .*|onnx = \"../$model.onnx\"|" \
        -e 's/align = "start"/align = "centre"/' "$root/models/kwt1/model.toml" > $model/model.toml
done
if [ ! -f base.onnx ]; then
    "$accentor" adapt --model start --data csv/us-train.csv --eval csv/us-test.csv --head --sites '^$' --out us-head
    "$accentor" merge --model start --adapter us-head --out base.onnx
fi
for seed in $seeds; do
    for speaker in nicolas yweweler; do
        for method in head lora lora+head; do
            case $method in
                head) set -- --head --sites '^$' ;;
                lora) set -- --lr "$rate" ;;
                *) set -- --head --lr "$rate" ;;
            esac
            "$accentor" adapt --model base --data csv/$speaker-train-5.csv --eval csv/$speaker-test.csv --guard csv/us-test.csv \
                --seed "$seed" "$@" --out "adapter-$method" --json > "$method-$speaker-$seed.json"
        done
    done
done
