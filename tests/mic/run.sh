#!/usr/bin/env bash
# The microphone's path against the real sound systems: ALSA's file and null devices, and a PulseAudio server of our own
# whose null sink's monitor is the microphone. Recorded speech goes in, the words come out, gaps are counted.
#
#     tests/mic/run.sh [ACCENTOR]      a binary with the feature mic; built where it is not named
#
# Needs python3, and on Debian alsa-utils, pulseaudio, libasound2-plugins. What is missing is skipped with a line.
set -euo pipefail
cd "$(dirname "$0")/../.."
accentor=${1:-}
if [ -z "$accentor" ]; then
    cargo build --release --locked --features mic
    accentor=${CARGO_TARGET_DIR:-target}/release/accentor
fi
work=$(mktemp -d)
started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
skip() { echo "skipped: $*"; }

# The model and what is said: FSDD's recordings of people where they are, else the demo's clips.
shared=${ACCENTOR_SHARED:-../shared}
model=models/kws-commands speech=models/kws-commands/demo/us/test people=no
if [ -f "$shared/models/dscnn_digits_us.onnx" ] && [ -d "$shared/data/fsdd" ]; then
    # The manifest with the file's own path in it.
    sed "s|^onnx = .*|onnx = \"$(realpath "$shared")/models/dscnn_digits_us.onnx\"|" models/dscnn-digits-us/model.toml > "$work/model.toml"
    model=$work/model.toml speech=$shared/data/fsdd people=yes
else
    skip "recordings of people: $shared has none; the demo's clips are played in their place"
    command -v flac > /dev/null || { skip "the demo's clips are FLAC, and there is no flac to decode them"; exit 0; }
fi
python3 tests/mic/scene.py make "$speech" "$work" "$people"
count() { python3 tests/mic/scene.py count "$work" "$1" "$2"; }

# 1. From the file itself: what the model makes of this speech without any device.
"$accentor" listen --model "$model" --threshold 0.7 --input "$work/speech.wav" --json > "$work/file.jsonl"
count "$work/file.jsonl" "from the file"

# 2. ALSA: a capture device that reads a pipe which is filled at the pace of a microphone (`paced`), one that reads a file as
# fast as it is asked (`rushed`: the null device below it has no clock), and silence without end (`null`).
export HOME=$work ALSA_CONFIG_DIR=${ALSA_CONFIG_DIR:-/usr/share/alsa}
mkfifo "$work/pipe"
# Kept open for both: the device is opened and closed several times, and a pipe without a writer would make it wait.
exec 3<> "$work/pipe"
cat > "$work/.asoundrc" <<RC
pcm.paced { type file slave.pcm null file /dev/null infile "$work/pipe" format raw
    hint { show on description "speech at the pace of a microphone" } }
pcm.rushed { type file slave.pcm null file /dev/null infile "$work/speech.raw" format raw
    hint { show on description "speech as fast as it is asked for" } }
pcm.!default { type plug slave.pcm { type hw card 77 } }
RC
"$accentor" devices --json > "$work/devices.json" 2> "$work/devices.err" || fail "devices: $(cat "$work/devices.err")"
for name in paced rushed null; do
    grep -q "\"name\":\"$name\"" "$work/devices.json" || fail "devices does not list $name: $(cat "$work/devices.json")"
done
"$accentor" devices > "$work/devices.txt"
grep -q 'speech at the pace of a microphone' "$work/devices.txt" || fail "devices does not say what a device is"
grep -q 'ALSA lib' "$work/devices.err" && fail "devices prints what ALSA says: $(cat "$work/devices.err")"
# A default device that is not there is an error with a cure.
if "$accentor" listen --model "$model" --threshold 0.7 > "$work/out" 2> "$work/err"; then fail "listened to no device"; fi
grep -q 'accentor devices' "$work/err" || fail "no cure in: $(cat "$work/err")"

seconds=$(cat "$work/seconds")
# The player ends with the listener, and what it left in the pipe goes.
paced() {
    "$accentor" listen --model "$model" --threshold 0.7 --input paced --seconds "$seconds" "${@:2}" --json > "$1" & started+=($!); listener=$!
    sleep 0.5
    python3 tests/mic/scene.py play "$work/speech.raw" "$work/pipe" & started+=($!); player=$!
    wait "$listener"
    kill "$player"
    wait "$player" 2>/dev/null || true
    timeout 0.5 cat <&3 > /dev/null || true
}
paced "$work/paced.jsonl"
count "$work/paced.jsonl" "ALSA, a file at a microphone's pace"
grep -q '"gaps":0' "$work/paced.jsonl" || fail "gaps without a reason: $(tail -1 "$work/paced.jsonl")"

# The same through a ring that is shorter than what ALSA hands over at once: every such piece loses its end.
paced "$work/tiny.jsonl" --ring-ms 4
python3 tests/mic/scene.py gaps "$work/tiny.jsonl" "ALSA, a ring of 4 ms"

# Faster than any model: the ring overflows, and what is lost and what is heard is all that was said.
"$accentor" listen --model "$model" --threshold 0.7 --input rushed --seconds "$seconds" --json > "$work/rushed.jsonl"
python3 tests/mic/scene.py gaps "$work/rushed.jsonl" "ALSA, as fast as it goes"

# Silence is no word.
"$accentor" listen --model "$model" --threshold 0.7 --input null --seconds 60 --json > "$work/null.jsonl"
grep -q '"detections":0' "$work/null.jsonl" || fail "words in silence: $(cat "$work/null.jsonl")"

# 3. PulseAudio, a server of our own.
if ! command -v pulseaudio > /dev/null || ! command -v paplay > /dev/null; then
    skip "PulseAudio: not installed (Debian: pulseaudio, pulseaudio-utils, libasound2-plugins)"
    exit 0
fi
export XDG_RUNTIME_DIR=$work/run PULSE_RUNTIME_PATH=$work/run/pulse PULSE_STATE_PATH=$work/state PULSE_SERVER=unix:$work/run/pulse/native
mkdir -p -m 700 "$work/run" "$work/run/pulse" "$work/state"
pulseaudio -n --daemonize=no --exit-idle-time=-1 --use-pid-file=no --disable-shm=yes --log-target="file:$work/pulse.log" \
    -L "module-native-protocol-unix auth-anonymous=1 socket=$work/run/pulse/native" \
    -L "module-null-sink sink_name=speaker rate=48000" 2> "$work/pulse.err" &
server=$!
started+=("$server")
for _ in $(seq 50); do pactl info > /dev/null 2>&1 && break; sleep 0.1; done
pactl info > /dev/null || fail "the PulseAudio server did not come up: $(cat "$work/pulse.log" "$work/pulse.err")"
pactl set-default-source speaker.monitor
cat > "$work/.asoundrc" <<RC
pcm.!default { type pulse hint { show on description "PulseAudio" } }
ctl.!default { type pulse }
RC
listen() {
    "$accentor" listen --model "$model" --threshold 0.7 --seconds "$(($1 + 2))" "${@:2}" --json & started+=($!); listener=$!
}
listen "$seconds" > "$work/pulse.jsonl"
sleep 1
paplay --device=speaker "$work/speech.wav"
wait "$listener"
count "$work/pulse.jsonl" "PulseAudio, a null sink's monitor"
grep -q '"gaps":0' "$work/pulse.jsonl" || fail "gaps without a reason: $(tail -1 "$work/pulse.jsonl")"

# A process that is stopped for longer than all buffers hold loses sound, and says so.
listen "$seconds" > "$work/stopped.jsonl"
sleep 1
paplay --device=speaker "$work/speech.wav" & started+=($!); player=$!
sleep 5
kill -STOP "$listener"
sleep 8
kill -CONT "$listener"
wait "$listener"
kill "$player" 2>/dev/null || true
python3 tests/mic/scene.py gaps "$work/stopped.jsonl" "PulseAudio, stopped for 8 s"

# 4. record: a word that is played again and again.
(while :; do paplay --device=speaker "$work/word.wav" || exit; done) & started+=($!)
sleep 1
"$accentor" record --label word --count 3 --out "$work/clips" --seconds 3 --retries 20 --quiet --json > "$work/record.json" 2> "$work/record.err" ||
    fail "record: $(cat "$work/record.err")"
[ "$(ls "$work/clips/word")" = "$(printf '001.wav\n002.wav\n003.wav')" ] || fail "record wrote $(ls "$work/clips/word")"
mv "$work/clips/word" "$work/clips/$(cat "$work/word")"
"$accentor" eval --model "$model" --data "$work/clips" --json > "$work/eval.json"
grep -q '"correct":3' "$work/eval.json" || fail "the recorded clips are not the word: $(cat "$work/eval.json")"
echo "record: 3 clips of \"$(cat "$work/word")\", $(grep -o '"refused":[0-9]*' "$work/record.json"), all known to the model"
# Nothing but silence is refused.
kill "${started[-1]}" 2>/dev/null || true
sleep 2
if "$accentor" record --label word --count 1 --out "$work/none" --seconds 0.5 --retries 1 --quiet 2> "$work/record.err"; then
    fail "recorded silence"
fi
grep -q 'silence' "$work/record.err" && [ ! -e "$work/none" ] || fail "silence: $(cat "$work/record.err")"
echo "all done"
